"""What a catalog does with its items when it is built or changed, compiled: sums over groups, and moves within them."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.catalog_encoding import copy_code, encode_row
from rfkernels.backends.numba.catalog_groups import on_threads
from rfkernels.backends.numba.compiling import jit, jit_with

_jit = jit_with("contract", entry=True, allocates=True)
"""With products and sums contracted."""


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
    on_threads(partial(_sum, np.asarray(rows)), groups, place, (centres, sums, squares), rows.shape[1])


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
        squares[g] = 0
        for k in range(dim):
            sums[g, k] = own[k]
            squares[g] += square[k]
    return 0


def copy(items: Any, rows: Any, where: Any) -> None:
    """Copy items (count, dim), of the dtype of rows, to those of rows (room, dim) that are named."""
    given, to = np.require(items, rows.dtype, ["C", "W", "E"]), np.asarray(rows)
    workers = 1 if given.size < threads.LIGHT_WORK else threads.thread_count()
    cuts = np.linspace(0, len(given), workers + 1).astype(np.int64).tolist()
    threads.run([partial(_copy, given[a:b], to, where[a:b]) for a, b in pairwise(cuts)], workers)


@_jit
def _copy(items: Any, rows: Any, where: Any) -> int:
    for i in range(len(items)):
        _copy_row(rows, where[i], items, i)
    return 0


@jit
def _copy_row(rows: Any, to: int, given: Any, place: int) -> None:
    """Numbers one by one: Numba compiles assignments of arrays with the text of errors that cannot occur."""
    for k in range(rows.shape[1]):
        rows[to, k] = given[place, k]


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
            _copy_row(rows, row, rows, last)
            ids[row] = ids[last]
            copy_code(codes, row, last)
            slots[ids[row]] = row
        ids[last] = -1


@_jit
def shift(
    rows: Any, codes: Any, ids: Any, slots: Any, place: tuple[Any, Any, Any], group: int, first: int, room: int
) -> None:
    """Let a group begin at an earlier row, with another capacity, and move its items there, in their order."""
    start, count, capacity = place
    if first < start[group]:
        for i in range(count[group]):
            row, to = start[group] + i, first + i
            _copy_row(rows, to, rows, row)
            copy_code(codes, to, row)
            held, ids[row] = ids[row], -1
            ids[to], slots[held] = held, to
    start[group], capacity[group] = first, room


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
    (start, count, cell), (items, new, group, chance), (anchors, room, codes) = place, given, grid
    for j in range(len(new)):
        g = group[j]
        last, at = start[g] + count[g], start[g] + int(chance[j] * (count[g] + 1))
        if at != last:
            _copy_row(rows, last, rows, at)
            ids[last] = ids[at]
            copy_code(codes, last, at)
            slots[ids[last]] = last
        _copy_row(rows, at, items, j)
        ids[at], slots[new[j]] = new[j], at
        if codes.shape[1]:
            encode_row(rows[at], anchors[cell[g]], at, codes, room)
        count[g] += 1
        square, centre = 0.0, centres[cell[g]]
        for k in range(len(centre)):
            apart = np.float64(items[j, k]) - np.float64(centre[k])
            sums[g, k] += apart
            square += apart * apart
        squares[g] += square
