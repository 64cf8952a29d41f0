"""Estimates from the codes of items, compiled: `rfkernels.catalog.scans` specifies them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels.backends.numba.catalog_block_lists import Sources, list_blocks, place_block_runs
from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_guesses import Guesses
from rfkernels.backends.numba.catalog_layout import Lists, Rules, Scratch, at
from rfkernels.backends.numba.catalog_looks import Codes, Looks
from rfkernels.backends.numba.catalog_plans import GOLDEN, choose_each, state_of
from rfkernels.backends.numba.catalog_sums import trusted, untold, widening
from rfkernels.backends.numba.compiling import call, entry, jit, up
from rfkernels.backends.numba.records import view, view_like
from rfkernels.catalog.codes import BLOCK, LARGEST, MIDDLE, TOGETHER
from rfkernels.catalog.scans import CANCELLED, MOST, NOTHING, RESOLVED, ROUNDS, SMALLEST

_BELOW, _ABOVE = 40.0, 10.0
"""How far from the guess the largest logit may lie: sums of weights relative to it then fit single precision."""

_UNTOLD = math.exp(MOST) * (1 - 2.0**-16)
"""What boosts are where codes tell nothing."""

Scan = tuple[int, int, int]
"""Addresses of a kernel that reads codes, and of what it knows of queries, and a number."""


@jit
def rounded(c: Codes, k: Any, query: Any) -> tuple[int, float]:
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
def anchored(g: Groups, c: Codes, k: Any, cells: Any, query: Any) -> None:
    """Write dot products with the points that codes of each cell count from: its mean, unless that has moved."""
    for i in range(len(g.held)):
        k.anchored[i] = cells[i]
    for j in range(len(c.moved)):
        total = 0.0
        for i in range(len(query)):
            total += c.anchors[j, i] * query[i]
        k.anchored[c.moved[j]] = total


@jit
def _steepness(g: Groups, n: Lists, k: Looks, i: int, relative: float) -> None:
    """Write slopes relative to what weights are."""
    for c in range(len(g.held)):
        k.steepness[c] = relative * n.slopes[i, c] if relative > 0 else 0.0


@jit
def _read(scan: Scan, c: Codes, k: Looks, count: int) -> None:
    """Write what codes of all blocks say of logits and of weights, and sums of these."""
    given = c.codes, k.blocks.ctypes.data, k.masks.ctypes.data, k.bases.ctypes.data, up(count, BLOCK)
    out = k.logits.ctypes.data, k.weights.ctypes.data, k.boosts.ctypes.data
    known = k.factors.ctypes.data, k.slopes.ctypes.data, k.centres.ctypes.data, k.sizes.ctypes.data
    sums = k.sums.ctypes.data, k.parts.ctypes.data
    kernel, query, shift = scan
    call(kernel, (*given, query, shift, k.numbers.ctypes.data, *out, *known, *sums))


@jit
def _arrays(k: Looks) -> tuple[int, int, int, int, int, int]:
    """Return the addresses of what says which items are checked."""
    given = k.weights.ctypes.data, k.masks.ctypes.data, k.factors.ctypes.data, k.boosts.ctypes.data
    return (*given, k.slopes.ctypes.data, k.numbers[3:].ctypes.data)


@jit
def _large(c: Codes, k: Looks, blocks: int, count: int, total: float) -> int:
    """List items that are checked for sure; return how many these are, and write sums over the others."""
    before, many, least = -1, 0, max(total / count, SMALLEST)
    given = k.sums.ctypes.data, up(blocks, BLOCK), k.totals.ctypes.data
    for turn in range(ROUNDS + 1):
        k.numbers[3] = least
        many = call(c.large, (*_arrays(k), *given, k.others.ctypes.data, k.ends.ctypes.data, k.found.ctypes.data))
        if many == before or many >= count or k.totals[0] <= 0 or turn == ROUNDS:
            break
        before, least = many, max(k.totals[0] / (count - many), SMALLEST)
    return many


@jit
def choose_checks(r: Rules, c: Codes, k: Looks, blocks: int, given: tuple[int, Any, float]) -> tuple[int, int, float]:
    """List items to be checked: large ones, then others; return how many these are, and the sum that one stands for."""
    count, state, total = given
    large, end = _large(c, k, blocks, count, total), up(blocks, BLOCK)
    left, least = k.totals[0], float(k.numbers[3])
    if left <= 0:
        return large, 0, 0.0
    others = max(1, min(round(left / least), count - large))
    k.totals[0] = others / left
    out = k.ends.ctypes.data, k.reached.ctypes.data
    call(r.draw, (k.others.ctypes.data, end, state, others, k.totals.ctypes.data, *out))
    last, before, places = end - 1, 0, k.found[large:]
    while k.others[last] <= 0:
        last -= 1
    places[: up(others, BLOCK)] = 0
    for m in range(last + 1):
        places[before] = m  # a later block with as many before it takes the place over
        before = k.ends[m]
    k.totals[0] = left / others
    call(c.pick, (*_arrays(k), others, state, k.totals.ctypes.data, k.reached.ctypes.data, places.ctypes.data))
    return large, others, left / others


@jit
def check_dots(r: Rules, k: Looks, end: int, query: Any) -> None:
    """Write rows of so many items, dot products with these, and their exponentials."""
    for j in range(end):
        k.places[j] = BLOCK * k.blocks[k.found[j] // BLOCK] + k.found[j] % BLOCK
    for j in range(r.ahead):
        k.places[end + j] = k.places[0]
    call(r.dots, (r.rows, r.row_stride, k.places.ctypes.data, end, query.ctypes.data, k.exact.ctypes.data))
    call(r.exponentials, (k.exact.ctypes.data, up(end, BLOCK), k.numbers[2:].ctypes.data, k.right.ctypes.data))


@jit
def _unmet(c: Codes, k: Looks, blocks: int, distance: float) -> float:
    """Return what `rfkernels.catalog.scans.unmet` does, of items without a control variate."""
    given = k.slopes.ctypes.data, k.boosts.ctypes.data, k.others.ctypes.data, up(blocks, BLOCK)
    call(c.unmet, (*given, k.totals.ctypes.data))
    return float(min(k.totals[0], distance * k.totals[1]))


@jit
def _check(
    r: Rules, c: Codes, k: Looks, blocks: int, chosen: tuple[int, int, float], query: Any
) -> tuple[float, float]:
    """Look at items; return what others than large ones add to the sum, and its squared error."""
    large, others, distance = chosen
    check_dots(r, k, large + others, query)
    k.totals[0] = distance
    known = k.weights.ctypes.data, k.logits.ctypes.data, k.boosts.ctypes.data, k.slopes.ctypes.data
    given = k.exact.ctypes.data, k.right.ctypes.data, k.found.ctypes.data, large, others
    call(c.check, (*known, *given, k.totals.ctypes.data))
    more, square, fourth, pairs = k.totals[1], k.totals[2], k.totals[3], others // 2
    square *= widening(square, fourth) if r.widened > 0 else 1.0
    square = square * others / (2 * pairs) if pairs > 0 else more**2
    return more, square + untold(square, distance * _unmet(c, k, blocks, distance))


@jit
def _only_zeros(k: Looks, end: int) -> bool:
    """Return whether nothing that was looked at weighs anything."""
    j = 0
    while j < end and k.exact[j] == NOTHING:
        j += 1
    return j == end


@jit
def _replace(c: Codes, k: Looks, large: int) -> None:
    """Sum up blocks with large items anew, where these count as they are."""
    known = k.weights.ctypes.data, k.logits.ctypes.data, k.masks.ctypes.data
    numbers = k.factors.ctypes.data, k.slopes.ctypes.data, k.centres.ctypes.data
    given = k.exact.ctypes.data, k.right.ctypes.data, k.found.ctypes.data, large, k.parts.ctypes.data
    call(c.replace, (*known, *numbers, *given))


@jit
def sum_up(
    r: Rules, s: Scratch, n: Lists, c: Codes, k: Looks, i: int, given: tuple[int, int, Any, int], query: Any, out: Any
) -> None:
    """Write the log of a sum, its standard error and dot products; NaN where it is no number."""
    first, checks, state, items = given
    runs, top = n.sizes[i, 2], float(k.numbers[2])
    blocks, out[0], out[1] = first + runs, np.nan, np.nan
    call(r.totals, (k.sums.ctypes.data, k.parts.ctypes.data, up(blocks, BLOCK), k.totals.ctypes.data))
    total = k.totals[0]
    if not 0 < total < np.inf:
        return
    chosen = choose_checks(r, c, k, blocks, (checks, state, total))
    more, square = _check(r, c, k, blocks, chosen, query)
    if _only_zeros(k, chosen[0] + chosen[1]):  # what codes say beside that is noise
        out[0], out[1] = -np.inf, np.inf
        out[2] = chosen[0] + chosen[1] + math.ceil(c.cost * items)
        return
    _replace(c, k, chosen[0])
    call(c.compare, (k.parts.ctypes.data, up(blocks, BLOCK), first, runs, s.numbers.ctypes.data))
    z = more + s.numbers[1]
    out[2] = chosen[0] + chosen[1] + math.ceil(c.cost * items)
    least = max(RESOLVED * math.exp(float(k.numbers[1]) - top), CANCELLED * s.numbers[1] if r.widened > 0 else 0.0)
    if least < z < np.inf:
        out[0] = top + math.log(z)
        own = trusted(r, s, runs, z, math.exp(2 * (n.measures[i, 2] - out[0]))) if runs > 0 else 0.0
        out[1] = math.sqrt(own**2 + square / z**2)


@jit
def _tell(r: Rules, k: Looks, blocks: int, most: int, query: Any) -> int:
    """Take items of blocks that codes tell nothing of; return how many, or −1 for more than `most`."""
    many = 0
    for m in range(blocks):
        for lane in range(BLOCK if k.boosts[m] >= _UNTOLD else 0):
            if k.masks[m] >> lane & 1:
                if many == most:
                    return -1
                k.found[many], many = BLOCK * m + lane, many + 1
    check_dots(r, k, many, query)
    j = 0
    while j < many:
        m, plain, linear, count = k.found[j] // BLOCK, 0.0, 0.0, 0
        while j < many and k.found[j] // BLOCK == m:
            k.logits[k.found[j]], k.weights[k.found[j]] = k.exact[j], k.right[j]
            plain, linear, count, j = plain + k.right[j], linear + k.exact[j] - k.centres[m], count + 1, j + 1
        k.boosts[m] = 1.0
        k.sums[m] = k.factors[m] * (plain + k.slopes[m] * count)
        k.parts[m] = k.factors[m] * (plain - k.slopes[m] * linear)
    largest = -np.inf
    for j in range(BLOCK * blocks):
        largest = max(largest, float(k.logits[j]))
    k.numbers[1] = largest
    return many


@jit
def look(
    r: Rules, g: Groups, s: Scratch, n: Lists, c: Codes, k: Looks, i: int, given: tuple[Any, Any, int], steady: int
) -> tuple[int, int, int]:
    """Read the codes of what a query takes; return as `look_at` does. Given are two forms of it, and checks."""
    wide, query, checks = given
    shift, k.numbers[4] = rounded(c, k, wide)
    anchored(g, c, k, n.cells[i], wide)
    known = g.cell.ctypes.data, k.anchored.ctypes.data, n.cells[i].ctypes.data, k.steepness.ctypes.data
    return look_at((c.scan, k.query.ctypes.data, shift), r, g, s, n, c, k, i, known, steady, (query, checks // 2))


@jit
def look_at(
    scan: Scan,
    r: Rules,
    g: Groups,
    s: Scratch,
    n: Lists,
    c: Codes,
    k: Looks,
    i: int,
    known: Sources,
    steady: int,
    untold: tuple[Any, int],
) -> tuple[int, int, int]:
    """Read codes; return where runs begin, −1 where a logit is no number, how many items there are and are not told.

    Weights are relative to what is guessed of the largest or, far from it, to what it is. For what is not told there is
    the query, and how many items may be.
    """
    guessed, runs = n.measures[i, 0], n.sizes[i, 2]
    top, many, (query, most) = guessed, 0, untold
    while True:
        k.numbers[2] = top
        _steepness(g, n, k, i, math.exp(guessed - top) if steady else 0.0)
        first, items = list_blocks(g, s, c, k, n, i, known)
        _read(scan, c, k, first + runs)
        if k.numbers[5] >= _UNTOLD:
            many = _tell(r, k, first + runs, most, query)
        largest = float(k.numbers[1])
        if many < 0 or not -np.inf < largest < np.inf:
            return -1, 0, 0
        wanted = max(largest, guessed) if steady else largest
        if wanted == top or -_BELOW < largest - top < _ABOVE:
            return first, items, many
        top = wanted


@jit
def _estimate(
    r: Rules, g: Groups, s: Scratch, n: Lists, c: Codes, k: Looks, i: int, given: tuple[int, Any, Any], out: Any
) -> None:
    """Estimate for one query."""
    checks, state, (wide, query) = given
    steady, out[0], out[1] = n.sizes[i, 3], np.nan, np.nan
    while True:
        first, items, untold = look(r, g, s, n, c, k, i, (wide, query, checks), steady)
        if first < 0:
            return
        sum_up(r, s, n, c, k, i, (first, checks - untold, state, items), query, out)
        out[2] += untold
        if not steady or out[0] < np.inf:  # only where the error is larger than the sum itself
            return
        steady = 0


@jit
def choose_some(
    r: Rules,
    g: Groups,
    v: Guesses,
    s: Scratch,
    n: Lists,
    c: Codes,
    k: Looks,
    span: tuple[int, int],
    given: tuple[Any, Any, int, Any],
    wide: Any,
) -> tuple[int, int]:
    """List what queries take from one on, as many as there is memory for; return where they end.

    `span` is that query, and which of them share where runs begin, as is returned; `given` are places of guesses,
    numbers in the batch, how many items are read, and the seed.
    """
    (first, shared), (sizes, numbers, scanned, seed) = span, given
    if numbers[first] // r.shared != shared:
        shared = numbers[first] // r.shared
        place_block_runs(r, g, s, c, k, seed, numbers[first])
    end = min(first + len(n.sizes), len(wide))
    while numbers[end - 1] // r.shared != shared:
        end -= 1
    part = slice(first, end)
    choose_each(r, g, v, s, n, sizes[part], wide[part], scanned, seed, numbers[part])
    return end, shared


@jit
def state_of_checks(n: Lists, i: int, seed: Any, number: int) -> Any:
    """Return the state of random numbers behind those that the runs of a query have taken."""
    return state_of(seed, 2 * number) + GOLDEN * np.uint64(n.sizes[i, 2])


@entry
def estimate(
    rules: int,
    groups: int,
    guesses: int,
    codes: int,
    scratch: int,
    lists: int,
    looks: int,
    sizes: Any,
    numbers: Any,
    spent: Any,
    seed: int,
    wide: Any,
    queries: Any,
    out: Any,
) -> int:
    """Estimate log-normalizers of queries, `numbers` in their batch: log, standard error and dot products of each.

    `wide` are the same queries in float64, `sizes` places of guesses, and `spent` is on codes, and on checks. Log and
    error are NaN where they are no numbers: of how many is returned.
    """
    r, g, v, s = at(rules, groups, guesses, scratch)
    n, c, k = view(Lists, lists), view(Codes, codes), view_like(Looks, looks, queries)
    scanned, checks = spent
    first, shared, lost = 0, -1, 0
    while first < len(queries):
        given = sizes, numbers, scanned, seed
        end, shared = choose_some(r, g, v, s, n, c, k, (first, shared), given, wide)
        for i in range(first, end):
            j = i - first
            _estimate(
                r, g, s, n, c, k, j, (checks, state_of_checks(n, j, seed, numbers[i]), (wide[i], queries[i])), out[i]
            )
            out[i, 2] += len(c.moved) + len(g.means)
            lost += int(np.isnan(out[i, 0]))
        first = end
    return lost
