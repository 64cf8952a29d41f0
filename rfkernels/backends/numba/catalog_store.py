"""What a catalog does with its items when it is built or changed, compiled: sums over groups, and moves within them."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.compiling import jit_with
from rfkernels.catalog.codes import BLOCK, LEVELS, MIDDLE, STEP, TOGETHER

_jit = jit_with("contract", entry=True, allocates=True)
"""With products and sums contracted."""

_fast = jit_with("contract", "reassoc", "nsz", "nnan", allocates=True)
"""With sums in any order."""

_WIDER, _TAILS = 1.5, 3.0
"""Steps are tried that are so many times larger, one after the other, where a number is this many deviations out."""


def encode_groups(rows: Any, groups: Any, place: tuple[Any, Any, Any], grid: tuple[Any, Any], codes: Any) -> None:
    """Write the codes of the items of some groups; `grid` are anchors and scales, the rest is as in `sum_groups`."""
    if codes.shape[1]:
        _on_threads(partial(_encode_groups, np.asarray(rows)), groups, place, (*grid, codes), rows.shape[1])


def sum_groups(rows: Any, groups: Any, place: tuple[Any, Any, Any], centres: Any, sums: Any, squares: Any) -> None:
    """Write Σ (y − centre) and Σ |y − centre|² over the items of some groups, in float64.

    Parameters
    ----------
    rows : array, shape (room, dim)
    groups : array of int64, shape (any number,)
        Which, each once.
    place : (start, count, cell)
        Of all groups.
    centres : array, shape (cells, dim)
    sums, squares : array, shape (all groups, dim) and (all groups,)
        Changed in place, for these groups alone.
    """
    # A mapped array is of a class that Numba does not know.
    _on_threads(partial(_sum, np.asarray(rows)), groups, place, (centres, sums, squares), rows.shape[1])


def _on_threads(step: Any, groups: Any, place: tuple[Any, Any, Any], given: tuple[Any, ...], dim: int) -> None:
    """Do something with groups: at once where they hold few items."""
    ends = np.cumsum(place[1][groups])
    if (int(ends[-1]) * dim if len(ends) else 0) < threads.LIGHT_WORK:
        step(groups, *place, *given)
        return
    count = threads.thread_count()
    cuts = [0, *np.searchsorted(ends, np.linspace(0, ends[-1], 4 * count + 1)[1:-1]).tolist(), len(groups)]
    threads.run([partial(step, groups[a:b], *place, *given) for a, b in pairwise(cuts)], count)


@_jit
def _encode_groups(
    rows: Any, groups: Any, start: Any, count: Any, cell: Any, anchors: Any, scales: Any, codes: Any
) -> int:
    apart, inverse, numbers, bits = _room(scales)
    for g in groups:
        for i in range(start[g], start[g] + count[g]):
            _encode(rows[i], anchors[cell[g]], inverse, i, codes, apart, numbers, bits)
    return 0


@_jit
def encode(rows: Any, chosen: Any, cells: Any, anchors: Any, scales: Any, codes: Any) -> int:
    """Write the codes of some rows of cells."""
    apart, inverse, numbers, bits = _room(scales)
    for i in range(len(chosen)):
        _encode(rows[chosen[i]], anchors[cells[i]], inverse, chosen[i], codes, apart, numbers, bits)
    return 0


@_jit
def _room(scales: Any) -> Any:
    """Return room for an item, one over the scales, room for codes, and for the bits of a step."""
    return np.empty_like(scales), 1 / scales, np.zeros(len(scales) + TOGETHER, np.uint8), np.empty(1, np.float32)


@_fast
def _encode(row: Any, anchor: Any, inverse: Any, place: int, codes: Any, apart: Any, numbers: Any, bits: Any) -> None:
    """Write the code of an item: the step is that of normal numbers or, where some lie far out, the best of a few."""
    dim, block, lane = len(row), place // BLOCK, place % BLOCK
    square = largest = row[0] * 0
    for k in range(dim):
        own = (row[k] - anchor[k]) * inverse[k]
        apart[k] = own
        square += own * own
        largest = max(largest, abs(own))
    step = np.sqrt(square / dim)
    scale = type(step)(0)
    if 0 < step < np.inf:
        best = step * type(step)(STEP)
        if largest > _TAILS * step:
            best = _least(apart, best, largest)
        scale = _quantised(apart, best, numbers)
    bits[0] = min(scale, np.finfo(np.float32).max / 2)
    found = bits.view(np.uint32)[0]
    found = (found + 0x7FFF + ((found >> 16) & 1)) >> 16
    half, beside = TOGETHER // 2, 1 <= dim % TOGETHER <= TOGETHER // 2
    at, last = half * lane, dim // TOGETHER * TOGETHER
    for k in range(0, last if beside else dim, TOGETHER):
        for j in range(half):
            codes[block, at + j] = numbers[k + j] | numbers[k + half + j] << 4
        at += half * BLOCK
    at += (4 if beside else 2) * lane - half * lane
    for j in range(2 if beside else 0):
        codes[block, at] = numbers[last + j] | numbers[last + 2 + j] << 4
        at += 1
    codes[block, at], codes[block, at + 1] = found & 0xFF, found >> 8


@_fast
def _copy(codes: Any, to: int, given: int) -> None:
    """Copy the code of a row to that of another."""
    half = TOGETHER // 2
    for k in range(0, codes.shape[1], half * BLOCK):
        many = min(half, (codes.shape[1] - k) // BLOCK)  # steps alone are two bytes
        for j in range(many):
            codes[to // BLOCK, k + many * (to % BLOCK) + j] = codes[given // BLOCK, k + many * (given % BLOCK) + j]


@_fast
def _level(x: Any, inverse: Any) -> Any:
    """Return the number from 0 to 15 that stands for x, given one over the step, less the one that stands for 0."""
    kind = type(inverse)
    return min(max(np.rint(x * inverse), kind(-MIDDLE)), kind(LEVELS - 1 - MIDDLE))


@_fast
def _quantised(apart: Any, step: Any, numbers: Any) -> Any:
    """Write numbers from 0 to 15, and return the step that suits them best."""
    inverse, product = 1 / step, step * 0
    square = product
    for k in range(len(apart)):
        own = _level(apart[k], inverse)
        numbers[k] = np.uint8(own + type(step)(MIDDLE))
        product += own * apart[k]
        square += own * own
    return product / square


@_fast
def _least(apart: Any, step: Any, largest: Any) -> Any:
    """Return the step of the least squared error, of this one and wider ones, up to where none is cut off."""
    best, least = step, step * 0 + np.inf
    while True:
        error, inverse = step * 0, 1 / step
        for k in range(len(apart)):
            own = _level(apart[k], inverse) * step - apart[k]
            error += own * own
        if error < least:
            best, least = step, error
        widest = largest / type(step)(LEVELS - 1 - MIDDLE)
        if step >= widest:
            return best
        step = min(step * type(step)(_WIDER), widest)


@_jit
def _sum(rows: Any, groups: Any, start: Any, count: Any, cell: Any, centres: Any, sums: Any, squares: Any) -> int:
    dim = rows.shape[1]
    own, square = np.empty(dim), np.empty(dim)
    for g in groups:
        centre = centres[cell[g]]
        own[:], square[:] = 0, 0
        for i in range(start[g], start[g] + count[g]):
            for k in range(dim):
                apart = np.float64(rows[i, k]) - np.float64(centre[k])
                own[k] += apart
                square[k] += apart * apart
        for k in range(dim):
            sums[g, k] = own[k]
        squares[g] = square.sum()
    return 0


@_jit
def chances(seed: int, more: int, count: int) -> Any:
    """Return numbers in [0, 1) that depend on two integers and their place alone: those of splitmix64."""
    out, state = np.empty(count), np.uint64(seed) << np.uint64(32) ^ np.uint64(more)
    for i in range(count):
        state += np.uint64(0x9E3779B97F4A7C15)
        z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out[i] = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return out


@_jit
def room(count: Any, largest: int) -> int:
    """Return how many rows `cells.room_for` gives groups of these sizes."""
    rows = 0
    for n in count:
        rows += min(n + n // 8 + 4, largest)
    return rows


@_jit
def joined(first: Any, order: Any, edge: Any, label: Any, square: Any) -> Any:
    """Return the outermost group of each item's cell that begins no farther out than it lies, −1 in a cell of none.

    Groups of cell c are those at first[c] to first[c + 1] in `order`, from the inside outwards; the first begins at 0.
    """
    group = np.empty(len(label), np.int64)
    for i in range(len(label)):
        begin, end = first[label[i]], first[label[i] + 1]
        while end - 1 > begin and edge[order[end - 1]] > square[i]:
            end -= 1
        group[i] = order[end - 1] if end > begin else -1
    return group


@_jit
def crowded(count: Any, capacity: Any, group: Any) -> Any:
    """Return which items would join a group that has no room for all of those that do."""
    more = np.zeros(len(count), np.int64)
    for g in group:
        more[g] += 1
    over = np.empty(len(group), np.bool_)
    for i in range(len(group)):
        over[i] = count[group[i]] + more[group[i]] > capacity[group[i]]
    return over


@_jit
def take(rows: Any, codes: Any, ids: Any, slots: Any, place: tuple[Any, Any], given: Any, group: Any) -> None:
    """Take items out of their groups: the last item of a group moves to the place that falls vacant."""
    start, count = place
    for j in range(len(given)):
        g, row = group[j], slots[given[j]]
        count[g] -= 1
        last = start[g] + count[g]
        slots[given[j]] = -1
        if row != last:
            rows[row], ids[row] = rows[last], ids[last]
            _copy(codes, row, last)
            slots[ids[row]] = row
        ids[last] = -1


@_jit
def put(
    rows: Any,
    ids: Any,
    slots: Any,
    place: tuple[Any, Any, Any],
    centres: Any,
    sums: Any,
    squares: Any,
    grid: tuple[Any, Any, Any],
    given: tuple[Any, Any, Any, Any],
) -> None:
    """Insert items, given with their ids, groups and a number in [0, 1), into groups that have room, and add to sums.

    Each changes places with a random item of its group or none, as in the inside-out shuffle of Fisher and Yates: an
    order that was random stays so.
    """
    (start, count, cell), (items, new, group, chance), (anchors, scales, codes) = place, given, grid
    residual, inverse, numbers, bits = _room(scales)
    for j in range(len(new)):
        g = group[j]
        last, at = start[g] + count[g], start[g] + int(chance[j] * (count[g] + 1))
        if at != last:
            rows[last], ids[last] = rows[at], ids[at]
            _copy(codes, last, at)
            slots[ids[last]] = last
        rows[at], ids[at], slots[new[j]] = items[j], new[j], at
        if codes.shape[1]:
            _encode(rows[at], anchors[cell[g]], inverse, at, codes, residual, numbers, bits)
        count[g] += 1
        square, centre = 0.0, centres[cell[g]]
        for k in range(len(centre)):
            apart = np.float64(items[j, k]) - np.float64(centre[k])
            sums[g, k] += apart
            square += apart * apart
        squares[g] += square
