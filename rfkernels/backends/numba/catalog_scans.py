"""Estimates from the codes of items, compiled: `rfkernels.catalog.scans` specifies them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_layout import Lists, Rules, Scratch
from rfkernels.backends.numba.catalog_looks import Codes, Looks
from rfkernels.backends.numba.catalog_plans import state_of, uniform
from rfkernels.backends.numba.catalog_scan_kernels import AHEAD
from rfkernels.backends.numba.catalog_sums import trusted
from rfkernels.backends.numba.compiling import call, entry, jit
from rfkernels.backends.numba.records import view, view_like
from rfkernels.catalog.codes import BLOCK, LARGEST, MIDDLE, TOGETHER
from rfkernels.catalog.scans import MOST, ROUNDS


@jit
def _round(c: Codes, k: Looks, query: Any) -> tuple[int, float]:
    """Write a query in whole numbers, in the order of codes, and their unit.

    Returns MIDDLE times their sum, and how much rounding lets the logit of an item vary whose step is 1.
    """
    square, largest, total, dim = 0.0, 0.0, 0, len(query)
    last = dim // TOGETHER * TOGETHER
    beside = 1 <= dim - last <= TOGETHER // 2
    for j in range(dim):
        largest = max(largest, abs(query[j] * c.scales[j]))
    unit = largest / LARGEST
    for j in range(dim):
        number = int(np.rint(query[j] * c.scales[j] / unit)) if unit > 0 else 0
        k.query[j + 2 if beside and j >= last + 2 else j] = number
        total += number
        square += number * number
    k.numbers[0] = unit
    return MIDDLE * total, unit**2 * square / 12


@jit
def _anchored(g: Groups, c: Codes, k: Looks, cells: Any, query: Any) -> None:
    """Write dot products with the points that codes of each cell count from: its mean, unless that has moved."""
    for i in range(len(g.held)):
        k.anchored[i] = cells[i]
    for j in range(len(c.moved)):
        total = 0.0
        for i in range(len(query)):
            total += c.anchors[j, i] * query[i]
        k.anchored[c.moved[j]] = total


@jit
def _list(g: Groups, k: Looks, m: int, group: int, block: int) -> None:
    """List what a group has in a block of rows."""
    low = max(g.start[group] - BLOCK * block, 0)
    high = min(g.start[group] + g.count[group] - BLOCK * block, BLOCK)
    k.blocks[m], k.owners[m], k.sizes[m] = block, group, high - low
    k.masks[m] = (1 << high) - (1 << low)
    k.bases[m] = k.anchored[g.cell[group]]


@jit
def _list_all(g: Groups, s: Scratch, k: Looks, n: Lists, i: int) -> int:
    """List the blocks of opened groups and then those of runs; return where the latter begin."""
    m, turn, draw = 0, 0, n.draw[i]
    for j in range(n.sizes[i, 1]):
        group = n.opened[i, j]
        for block in range(g.start[group] // BLOCK, (g.start[group] + g.count[group] - 1) // BLOCK + 1):
            _list(g, k, m, group, block)
            m += 1
    first = m
    for run in range(n.sizes[i, 2]):
        group = draw[run]
        turn = turn + 1 if run > 0 and group == draw[run - 1] else 0
        place = s.offset[group] + BLOCK * turn
        if place >= g.count[group]:
            place %= g.count[group]
        _list(g, k, m, group, (g.start[group] + place) // BLOCK)
        m += 1
    for j in range(m, m + AHEAD):
        k.blocks[j] = k.blocks[m - 1]
    return first


@jit
def _read(c: Codes, k: Looks, count: int, shift: int) -> None:
    """Write what codes of all blocks say of logits; there are none in those up to a whole number of vectors."""
    given = c.codes, k.blocks.ctypes.data, k.masks.ctypes.data, k.bases.ctypes.data, count, k.query.ctypes.data
    call(c.scan, (*given, shift, k.numbers.ctypes.data, k.logits.ctypes.data, k.widest.ctypes.data))
    k.logits[BLOCK * count : BLOCK * (count + BLOCK)] = -np.inf


@jit
def _weigh(
    r: Rules, g: Groups, n: Lists, c: Codes, k: Looks, i: int, first: int, spread: float, steady: int
) -> tuple[float, float]:
    """Write weights and what items are checked in proportion to; return what they and slopes are relative to.

    `parts` get how often blocks count.
    """
    runs = n.sizes[i, 2]
    guessed, total, _ = n.measures[i]
    count = first + runs
    whole = (count + BLOCK - 1) // BLOCK * BLOCK
    k.numbers[2] = max(k.numbers[1], guessed) if steady else k.numbers[1]
    given = k.numbers[2:].ctypes.data, k.weights.ctypes.data
    call(r.exponentials, (k.logits.ctypes.data, BLOCK * whole, *given))
    out = k.plain.ctypes.data, k.linear.ctypes.data, k.largest.ctypes.data
    call(c.sum_blocks, (k.weights.ctypes.data, k.logits.ctypes.data, whole, *out))
    top = float(k.numbers[2])
    relative = math.exp(guessed - top) if steady else 0.0
    for m in range(count):
        k.boosts[m] = min(float(k.widest[m]) ** 2 * spread, MOST)
    k.numbers[4] = 0.0
    call(r.exponentials, (k.boosts.ctypes.data, whole, k.numbers[4:].ctypes.data, k.boosts.ctypes.data))
    for m in range(count):
        size = k.sizes[m]
        k.parts[m] = 1.0 if m < first else total / (n.odds[i, m - first] * runs * size)
        k.factors[m] = k.parts[m]
        k.slopes[m] = relative * n.slopes[i, g.cell[k.owners[m]]] if steady else 0.0
        factor, boost, slope = float(k.factors[m]), float(k.boosts[m]), float(k.slopes[m])
        k.sums[m] = factor * (boost * k.plain[m] + slope * size)
        k.most[m] = k.factors[m] * (k.boosts[m] * k.largest[m] + k.slopes[m])
    return top, relative


@jit
def _add_up(
    g: Groups, s: Scratch, n: Lists, k: Looks, i: int, first: int, given: tuple[int, float, float, int]
) -> float:
    """Return the sum of all parts of blocks, where large items count as they are; and compare runs."""
    large, top, relative, steady = given
    runs, z, j = n.sizes[i, 2], 0.0, 0
    for m in range(first + runs):
        cell, size, factor = g.cell[k.owners[m]], k.sizes[m], k.parts[m]
        slope, plain, linear = 0.0, float(k.plain[m]), float(k.linear[m])
        if steady:
            slope = relative * n.slopes[i, cell]
        if j < large and k.found[j] // BLOCK == m:
            plain = linear = 0.0
            for lane in range(BLOCK):
                place = BLOCK * m + lane
                if j < large and k.found[j] == place:
                    plain, linear = plain + math.exp(k.exact[j] - top), linear + k.exact[j]
                    j += 1
                elif k.masks[m] >> lane & 1:
                    plain, linear = plain + k.weights[place], linear + k.logits[place]
        k.parts[m] = factor * (plain - slope * (linear - size * n.cells[i, cell]))
        z += k.parts[m]
    _differ(s, k.parts[first : first + runs])
    return z


@jit
def _differ(s: Scratch, parts: Any) -> None:
    """Write the sum of runs, and of second and fourth powers of the differences of neighbours."""
    total, square, fourth = 0.0, 0.0, 0.0
    for j in range(0, len(parts) - 1, 2):
        apart = (parts[j] - parts[j + 1]) ** 2
        total += parts[j] + parts[j + 1]
        square += apart
        fourth += apart**2
    s.numbers[2], s.numbers[3], s.numbers[4] = total + (parts[-1] if len(parts) % 2 else 0.0), square, fourth


@jit
def _large(k: Looks, m: int, least: float, at: int) -> tuple[int, float]:
    """List the items of a block that are large, from a place on; return how many these are and the sum of others."""
    many, left = 0, 0.0
    for lane in range(BLOCK):
        if k.masks[m] >> lane & 1:
            size = k.factors[m] * (k.boosts[m] * k.weights[BLOCK * m + lane] + k.slopes[m])
            if size >= least:
                k.found[at + many] = BLOCK * m + lane
                many += 1
            else:
                left += size
    return many, left


@jit
def _least(k: Looks, blocks: int, count: int) -> float:
    """Return the size from which on items are checked for sure."""
    total = 0.0
    for m in range(blocks):
        total += k.sums[m]
    least = total / count
    for _ in range(ROUNDS):
        many, left = 0, 0.0
        for m in range(blocks):
            if k.most[m] >= least:
                more, rest = _large(k, m, least, 0)
                many, left = many + more, left + rest
            else:
                left += k.sums[m]
        if left <= 0 or count <= many:
            break
        least = left / (count - many)
    k.numbers[3] = least
    return float(k.numbers[3])


@jit
def _choose(c: Codes, k: Looks, blocks: int, count: int, state: Any, runs: int) -> tuple[int, int, float]:
    """List items to be checked: large ones, then others; return how many these are, and the sum that one stands for."""
    least, large, left, last = _least(k, blocks, count), 0, 0.0, 0
    for m in range(blocks):
        if k.most[m] >= least:
            many, k.sums[m] = _large(k, m, least, large)
            large += many
        left += k.sums[m]
        k.most[m] = left
        if k.sums[m] > 0:
            last = m
    if left <= 0:
        return large, 0, 0.0
    others = max(1, min(round(left / least), count - large))
    distance, m = left / others, 0
    for j in range(others):
        place = (j + uniform(state, runs + j)) * distance
        while m < last and k.most[m] <= place:
            m += 1
        k.found[large + j], k.rest[j] = m, place - (k.most[m] - k.sums[m])
    given = k.weights.ctypes.data, k.masks.ctypes.data, k.factors.ctypes.data, k.boosts.ctypes.data
    call(
        c.pick,
        (
            *given,
            k.slopes.ctypes.data,
            k.numbers[3:].ctypes.data,
            k.rest.ctypes.data,
            others,
            k.found[large:].ctypes.data,
        ),
    )
    return large, others, distance


@jit
def _check(r: Rules, k: Looks, chosen: tuple[int, int, float], top: float, query: Any) -> tuple[float, float]:
    """Write dot products with items; return what others than large ones add to the sum, and its squared error."""
    large, others, distance = chosen
    end = large + others
    for j in range(end):
        k.places[j] = BLOCK * k.blocks[k.found[j] // BLOCK] + k.found[j] % BLOCK
    for j in range(r.ahead):
        k.places[end + j] = k.places[0]
    given = r.rows, r.row_stride, k.places.ctypes.data, end
    call(r.dots, (*given, query.ctypes.data, k.exact.ctypes.data))
    more, square, before = 0.0, 0.0, 0.0
    for j in range(large, end):
        place = k.found[j]
        m, near, logit = place // BLOCK, float(k.weights[place]), float(k.exact[j])
        off = math.exp(logit - top) - near - k.slopes[m] * (logit - k.logits[place])
        size = float(k.boosts[m]) * near + k.slopes[m]
        own = distance * off / size if size > 0 else 0.0
        more += own
        if (j - large) % 2 == 1:
            square += (own - before) ** 2
        before = own
    pairs = others // 2
    return more, square * others / (2 * pairs) if pairs > 0 else before**2


@jit
def _sum_up(
    r: Rules,
    g: Groups,
    s: Scratch,
    n: Lists,
    c: Codes,
    k: Looks,
    i: int,
    first: int,
    given: tuple[int, Any, float, int],
    query: Any,
    out: Any,
) -> None:
    checks, state, spread, steady = given
    runs = n.sizes[i, 2]
    top, relative = _weigh(r, g, n, c, k, i, first, spread, steady)
    items, all_of_them = 0, 0.0
    for m in range(first + runs):
        items += k.sizes[m]
        all_of_them += k.sums[m]
    out[0] = out[1] = np.nan
    if not 0 < all_of_them < np.inf:
        return
    chosen = _choose(c, k, first + runs, checks, state, runs)
    more, square = _check(r, k, chosen, top, query)
    z = more + _add_up(g, s, n, k, i, first, (chosen[0], top, relative, steady))
    out[2] = chosen[0] + chosen[1] + math.ceil(c.cost * items)
    if 0 < z < np.inf:
        out[0] = top + math.log(z)
        own = trusted(r, s, runs, z, math.exp(2 * (n.measures[i, 2] - out[0]))) if runs > 0 else 0.0
        out[1] = math.sqrt(own**2 + square / z**2)


@entry
def estimate(
    rules: int,
    groups: int,
    codes: int,
    scratch: int,
    lists: int,
    looks: int,
    numbers: Any,
    checks: int,
    seed: Any,
    wide: Any,
    queries: Any,
    out: Any,
) -> int:
    """Estimate log-normalizers of queries, `numbers` in their batch: log, standard error and dot products of each.

    `wide` are the same queries in float64. Log and error are NaN where they are no numbers.
    """
    r, g, s, n = view(Rules, rules), view(Groups, groups), view(Scratch, scratch), view(Lists, lists)
    c, k = view(Codes, codes), view_like(Looks, looks, queries)
    for i in range(len(queries)):
        shift, spread = _round(c, k, wide[i])
        _anchored(g, c, k, n.cells[i], wide[i])
        first, runs, steady = _list_all(g, s, k, n, i), n.sizes[i, 2], n.sizes[i, 3]
        _read(c, k, first + runs, shift)
        state = state_of(seed, 2 * numbers[i])
        _sum_up(r, g, s, n, c, k, i, first, (checks, state, spread, steady), queries[i], out[i])
        if steady and not out[i, 0] < np.inf:  # only where the error is larger than the sum itself
            _sum_up(r, g, s, n, c, k, i, first, (checks, state, spread, 0), queries[i], out[i])
    return 0
