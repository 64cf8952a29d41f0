"""Estimates from the codes of items, compiled: `rfkernels.catalog.scans` specifies them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_layout import Codes, Lists, Looks, Rules, Scratch
from rfkernels.backends.numba.catalog_plans import state_of, uniform
from rfkernels.backends.numba.catalog_sums import trusted
from rfkernels.backends.numba.compiling import call, entry, jit, jit_with
from rfkernels.backends.numba.records import view, view_like
from rfkernels.catalog.codes import MIDDLE
from rfkernels.catalog.scans import ROUNDS, RUN

_fast = jit_with("contract", "reassoc", "nsz")
"""With sums in any order."""

_PART = 4096
"""Bytes of a group that are fetched before they are needed, at most."""


@jit
def _round(c: Codes, k: Looks, query: Any) -> tuple[float, int]:
    """Write a query in whole numbers, in the order of codes; return half their unit, and twice the sum times MIDDLE."""
    largest, dim, half, total = 0.0, len(query), c.size - c.step_bytes, 0
    for j in range(dim):
        largest = max(largest, abs(query[j] * c.scales[j]))
    unit = largest / c.sharpest
    k.query[:] = 0
    if unit > 0:
        for j in range(dim):
            number = int(np.rint(query[j] * c.scales[j] / unit))
            byte = j if j < half else j - half
            chunk, place = byte // c.chunk, byte % c.chunk
            k.query[2 * c.chunk * chunk + place + (0 if j < half else c.chunk)] = number
            total += number
    return unit / 2, int(2 * MIDDLE) * total


@jit
def _anchored(g: Groups, c: Codes, k: Looks, cells: Any, query: Any) -> None:
    """Write dot products with the points that codes of each cell count from: its mean, unless that has moved."""
    for i in range(len(g.held)):
        k.bases[i] = cells[i]
    for j in range(len(c.moved)):
        total = 0.0
        for i in range(len(query)):
            total += c.anchors[j, i] * query[i]
        k.bases[c.moved[j]] = total


@jit
def _read(c: Codes, k: Looks, row: int, count: int, shift: int, at: int, after: int, more: int) -> None:
    """Write what codes of some rows say of logits, and ask for those of rows that come after."""
    given = k.query.ctypes.data, shift, k.numbers.ctypes.data, k.products[at:].ctypes.data
    call(c.scan, (c.codes + row * c.size, count, *given, c.codes + after * c.size, min(more * c.size, _PART)))


@jit
def _read_opened(g: Groups, c: Codes, k: Looks, n: Lists, i: int, shift: int) -> int:
    """Read the codes of opened groups; return where runs begin."""
    at, opened = 0, n.sizes[i, 1]
    for j in range(opened):
        group = n.opened[i, j]
        after = n.opened[i, j + 1] if j + 1 < opened else group
        k.numbers[1] = k.bases[g.cell[group]]
        _read(c, k, g.start[group], g.count[group], shift, at, g.start[after], g.count[after])
        at += g.count[group]
    first = (at + RUN - 1) // RUN * RUN
    k.products[at:first] = -np.inf
    return first


@jit
def _place_runs(g: Groups, s: Scratch, k: Looks, n: Lists, i: int) -> None:
    """Write what item of its group each run begins with; runs of a group follow each other around it."""
    turn, draw = 0, n.draw[i]
    for run in range(n.sizes[i, 2]):
        turn = turn + 1 if run > 0 and draw[run] == draw[run - 1] else 0
        k.where[run] = (s.offset[draw[run]] + RUN * turn) % g.count[draw[run]]


@jit
def _read_runs(g: Groups, c: Codes, k: Looks, n: Lists, i: int, shift: int, first: int) -> None:
    draw, runs = n.draw[i], n.sizes[i, 2]
    for run in range(runs):
        group, later = draw[run], draw[run + 4 if run + 4 < runs else run]
        count, offset, at = g.count[group], k.where[run], first + RUN * run
        after = g.start[later] + k.where[run + 4 if run + 4 < runs else run]
        k.numbers[1] = k.bases[g.cell[group]]
        stop = at + RUN
        while at < stop:
            many = min(count - offset, stop - at)
            _read(c, k, g.start[group] + offset, many, shift, at, after, RUN)
            at, offset = at + many, 0


@_fast
def _add_opened(x: Any, products: Any, slope: float, out: Any) -> tuple[float, float]:
    """Write sizes of opened items of a cell; return the sums of their weights and logits."""
    total, linear, more = 0.0, 0.0, x[:0].dtype.type(slope)
    for j in range(len(x)):
        total += x[j]
        linear += products[j]
        out[j] = x[j] + more
    return total, linear


@_fast
def _size_run(x: Any, factor: float, slope: float, out: Any) -> None:
    weight, more = x[:0].dtype.type(factor), x[:0].dtype.type(slope)
    for j in range(RUN):
        out[j] = weight * (x[j] + more)


@jit
def _weigh(r: Rules, g: Groups, s: Scratch, n: Lists, k: Looks, i: int, first: int, steady: int) -> tuple[float, float]:
    """Write weights, and sizes of items for checks; return what weights are relative to, and their sum."""
    _, opened, runs, _ = n.sizes[i]
    guessed, total, _ = n.measures[i]
    end, numbers = first + RUN * runs, s.numbers
    call(r.largest, (k.products.ctypes.data, end, k.top.ctypes.data))
    if steady:
        k.top[0] = max(k.top[0], guessed)
    call(r.exponentials, (k.products.ctypes.data, end, k.top.ctypes.data, k.weights.ctypes.data))
    top, z, at = float(k.top[0]), 0.0, 0
    relative = math.exp(guessed - top) if steady else 0.0
    for j in range(opened):
        group = n.opened[i, j]
        count, cell = g.count[group], g.cell[group]
        slope = relative * n.slopes[i, cell]
        part = slice(at, at + count)
        own, linear = _add_opened(k.weights[part], k.products[part], slope, k.sizes[part])
        z += own - slope * (linear - count * n.cells[i, cell])
        at += count
    k.sizes[at:first] = 0
    if runs == 0:
        return top, z
    n.draw[i, runs : runs + 8], n.odds[i, runs : runs + 8] = 0, 1.0  # a whole vector more is read, and left out
    numbers[0], numbers[1] = relative, total / (RUN * runs)
    given = k.weights[first:].ctypes.data, k.products[first:].ctypes.data, n.draw[i].ctypes.data, n.odds[i].ctypes.data
    cells = g.cell.ctypes.data, n.slopes[i].ctypes.data, n.cells[i].ctypes.data
    call(r.add_runs, (*given, *cells, runs, numbers.ctypes.data))
    for run in range(runs):
        slope = relative * n.slopes[i, g.cell[n.draw[i, run]]]
        at = first + RUN * run
        _size_run(k.weights[at:], numbers[1] / n.odds[i, run], slope, k.sizes[at:])
    return top, z + numbers[2]


@jit
def _least(k: Looks, blocks: int, count: int) -> float:
    """Return the size from which on items are checked for sure."""
    total = 0.0
    for b in range(blocks):
        total += k.sums[b]
    least = total / count
    for _ in range(ROUNDS):
        many, taken = 0, 0.0
        for b in range(blocks):
            if k.most[b] >= least:
                for j in range(RUN * b, RUN * b + RUN):
                    if k.sizes[j] >= least:
                        many += 1
                        taken += k.sizes[j]
        if total - taken <= 0 or count <= many:
            break
        least = (total - taken) / (count - many)
    return least


@jit
def _choose(r: Rules, k: Looks, blocks: int, count: int, uniform: float) -> tuple[int, int, float]:
    """List items to be checked: large ones, then others; return how many these are, and the distance of the others."""
    least, large, left, last = _least(k, blocks, count), 0, 0.0, 0
    for b in range(blocks):
        if k.most[b] >= least:
            k.sums[b] = 0.0
            for j in range(RUN * b, RUN * b + RUN):
                if k.sizes[j] >= least:
                    k.found[large] = j
                    large += 1
                else:
                    k.sums[b] += k.sizes[j]
        left += k.sums[b]
        k.most[b] = left
        if k.sums[b] > 0:
            last = b
    if left <= 0:
        return large, 0, 0.0
    others = max(1, round(left / least))
    distance, b = left / others, 0
    for j in range(others):
        place = (j + uniform) * distance
        while b < last and k.most[b] <= place:
            b += 1
        k.found[large + j], k.rest[j] = b, place - (k.most[b] - k.sums[b])
    k.top[1] = least
    call(r.pick, (k.sizes.ctypes.data, k.top[1:].ctypes.data, k.rest.ctypes.data, others, k.found[large:].ctypes.data))
    return large, others, distance


@jit
def _find_rows(g: Groups, k: Looks, n: Lists, i: int, first: int, begin: int, stop: int) -> None:
    """Write rows and groups of items, whose places ascend."""
    opened, at = 0, 0
    for j in range(begin, stop):
        place = k.found[j]
        if place < first:
            while place >= at + g.count[n.opened[i, opened]]:
                at += g.count[n.opened[i, opened]]
                opened += 1
            group = n.opened[i, opened]
            k.places[j] = g.start[group] + place - at
        else:
            run = (place - first) // RUN
            group = n.draw[i, run]
            k.places[j] = g.start[group] + (k.where[run] + (place - first) % RUN) % g.count[group]
        k.groups[j] = group


@jit
def _check(
    r: Rules,
    g: Groups,
    s: Scratch,
    n: Lists,
    k: Looks,
    i: int,
    first: int,
    chosen: tuple[int, int, float],
    top: float,
    relative: float,
    query: Any,
) -> tuple[float, float]:
    """Return what dot products with items add to the sum, and the square of its standard error."""
    large, others, distance = chosen
    end = large + others
    _find_rows(g, k, n, i, first, 0, large)
    _find_rows(g, k, n, i, first, large, end)
    for j in range(r.ahead):
        k.places[end + j] = k.places[0]
    given = r.rows, r.row_stride, k.places.ctypes.data, end
    call(r.dots, (*given, query.ctypes.data, k.exact.ctypes.data))
    more, square, before = 0.0, 0.0, 0.0
    for j in range(end):
        place = k.found[j]
        near, logit = float(k.weights[place]), float(k.exact[j])
        slope = relative * n.slopes[i, g.cell[k.groups[j]]]
        off = math.exp(logit - top) - near - slope * (logit - k.products[place])
        if j < large:
            weight = 1.0
            if place >= first:
                weight = s.numbers[1] / n.odds[i, (place - first) // RUN]
            more += weight * off
        else:
            own = distance * off / (near + slope)
            more += own
            if (j - large) % 2 == 1:
                square += (own - before) ** 2
            before = own
    pairs = others // 2
    return more, square * others / (2 * pairs) if pairs > 0 else 0.0


@jit
def _sum_up(
    r: Rules,
    g: Groups,
    s: Scratch,
    n: Lists,
    k: Looks,
    i: int,
    first: int,
    given: tuple[int, float, int],
    query: Any,
    out: Any,
) -> None:
    size, _, runs, _ = n.sizes[i]
    checks, chance, steady = given
    top, z = _weigh(r, g, s, n, k, i, first, steady)
    relative = math.exp(n.measures[i, 0] - top) if steady else 0.0
    blocks = first // RUN + runs
    call(r.blocks, (k.sizes.ctypes.data, RUN * blocks, k.sums.ctypes.data, k.most.ctypes.data))
    chosen = _choose(r, k, blocks, checks, chance)
    more, square = _check(r, g, s, n, k, i, first, chosen, top, relative, query)
    z += more
    out[0] = out[1] = np.nan
    out[2] = chosen[0] + chosen[1] + math.ceil(r.cost * (size + RUN * runs))
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
        factor, shift = _round(c, k, wide[i])
        k.numbers[0] = factor
        _anchored(g, c, k, n.cells[i], wide[i])
        first = _read_opened(g, c, k, n, i, shift)
        _place_runs(g, s, k, n, i)
        _read_runs(g, c, k, n, i, shift, first)
        chance = uniform(state_of(seed, 2 * numbers[i]), n.sizes[i, 2])
        _sum_up(r, g, s, n, k, i, first, (checks, chance, n.sizes[i, 3]), queries[i], out[i])
        if n.sizes[i, 3] and not out[i, 0] < np.inf:  # only where the error is larger than the sum itself
            _sum_up(r, g, s, n, k, i, first, (checks, chance, 0), queries[i], out[i])
    return 0
