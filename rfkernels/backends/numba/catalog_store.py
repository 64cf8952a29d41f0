"""What a catalog computes of its items when it is built or changed, compiled: nearest centres, and sums over groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

from rfkernels.backends.numba import threads

Function = TypeVar("Function", bound=Callable[..., Any])

_ITEMS = 64
"""Items that share a tile of centres in the fastest cache; a multiple of four."""

_CENTRES = 128
"""Centres in a tile."""

_SERIAL_WORK = 1 << 19
"""Multiplications below which handing work to other threads costs more than it saves."""


def _jit(function: Function) -> Function:
    """Compile with products and sums contracted, kept on disk where that is possible."""
    try:
        return cast(Function, njit(nogil=True, cache=True, fastmath={"contract"})(function))
    except RuntimeError:
        # No directory can be written to: compile in every process.
        return cast(Function, njit(nogil=True, fastmath={"contract"})(function))


def nearest(x: Any, centres: Any) -> tuple[Any, Any]:
    """Return the nearest centre of each item, and its squared distance from there; the first of centres equally near.

    Parameters
    ----------
    x : array, shape (items, dim)
        C-contiguous and of the same dtype as the centres.
    centres : array, shape (cells, dim)
        At least one.

    Returns
    -------
    label : array of int32, shape (items,)
    square : array, shape (items,)
        NaN or infinite where an item is, or is too far away for its dtype.
    """
    origin = centres.mean(0)
    moved = np.ascontiguousarray((centres - origin).T)
    half = 0.5 * np.einsum("ij,ij->j", moved, moved)
    label, square = np.empty(len(x), np.int32), np.empty(len(x), x.dtype)
    own = np.ascontiguousarray(centres)
    step = max(_ITEMS, min(4096, -(-len(x) // threads.thread_count())))
    tasks = [
        partial(_nearest, x[a : a + step], origin, own, moved, half, label[a : a + step], square[a : a + step])
        for a in range(0, len(x), step)
    ]
    _run(tasks, x.size * len(centres))
    return label, square


def summed(rows: Any, start: Any, count: Any, centre: Any) -> tuple[Any, Any]:
    """Return Σ (y − centre) and Σ |y − centre|² over runs of rows, in float64.

    Parameters
    ----------
    rows : array, shape (room, dim)
    start, count : arrays of int, shape (runs,)
    centre : array, shape (runs, dim)

    Returns
    -------
    sums : array, shape (runs, dim)
    squares : array, shape (runs,)
    """
    sums, squares = np.empty(centre.shape), np.empty(len(start))
    rows = np.asarray(rows)  # a mapped array is of a class that Numba does not know
    work = int(count.sum()) * rows.shape[1]
    parts = 1 if work < _SERIAL_WORK else 4 * threads.thread_count()
    inner = np.searchsorted(np.cumsum(count), np.linspace(0, count.sum(), parts + 1)[1:-1])
    cuts = [0, *inner.tolist(), len(start)]
    tasks = [
        partial(_sum, rows, start[a:b], count[a:b], centre[a:b], sums[a:b], squares[a:b]) for a, b in pairwise(cuts)
    ]
    _run(tasks, work)
    return sums, squares


def _run(tasks: Sequence[Callable[[], int]], work: int) -> None:
    threads.run(tasks, 1 if work < _SERIAL_WORK else threads.thread_count())


@_jit
def _nearest(x: Any, origin: Any, centres: Any, moved: Any, half: Any, label: Any, square: Any) -> int:
    """Minimise |e|²/2 − x·e, where x and the centres e are taken from the mean of the centres: far data round less."""
    dim, cells = moved.shape
    own, least = np.empty((_ITEMS, dim), x.dtype), np.empty(_ITEMS, x.dtype)
    for first in range(0, len(x), _ITEMS):
        here = min(_ITEMS, len(x) - first)
        least[:], own[:] = np.inf, 0
        for i in range(here):
            label[first + i] = 0
            for k in range(dim):
                own[i, k] = x[first + i, k] - origin[k]
        for tile in range(0, cells, _CENTRES):
            width = min(_CENTRES, cells - tile)
            for i in range(0, here, 4):
                scores = _scores(own[i : i + 4], moved, half, slice(tile, tile + width))
                for r in range(min(4, here - i)):
                    best, at = least[i + r], -1
                    for j in range(width):
                        if scores[r, j] < best:
                            best, at = scores[r, j], j
                    if at >= 0:
                        least[i + r], label[first + i + r] = best, tile + at
        for i in range(first, first + here):
            total = 0.0
            for k in range(dim):
                apart = np.float64(x[i, k]) - np.float64(centres[label[i], k])
                total += apart * apart
            square[i] = total
    return 0


@_jit
def _scores(x: Any, moved: Any, half: Any, tile: slice) -> Any:
    """Return |e|²/2 − x·e for four items and all centres of a tile: every centre is read once for four items."""
    dim, width = len(moved), tile.stop - tile.start
    scores = np.empty((4, width), x.dtype)  # known to overlap nothing, so that loops need no checks
    s0, s1, s2, s3 = scores[0], scores[1], scores[2], scores[3]
    s0[:], s1[:], s2[:], s3[:] = half[tile], half[tile], half[tile], half[tile]
    for k in range(0, dim - 1, 2):
        one, two = moved[k, tile], moved[k + 1, tile]
        a0, a1, a2, a3 = x[0, k], x[1, k], x[2, k], x[3, k]
        b0, b1, b2, b3 = x[0, k + 1], x[1, k + 1], x[2, k + 1], x[3, k + 1]
        for j in range(width):
            s0[j] -= a0 * one[j] + b0 * two[j]
            s1[j] -= a1 * one[j] + b1 * two[j]
            s2[j] -= a2 * one[j] + b2 * two[j]
            s3[j] -= a3 * one[j] + b3 * two[j]
    if dim % 2:
        one, k = moved[dim - 1, tile], dim - 1
        for j in range(width):
            s0[j] -= x[0, k] * one[j]
            s1[j] -= x[1, k] * one[j]
            s2[j] -= x[2, k] * one[j]
            s3[j] -= x[3, k] * one[j]
    return scores


@_jit
def _sum(rows: Any, start: Any, count: Any, centre: Any, sums: Any, squares: Any) -> int:
    dim = rows.shape[1]
    own, square = np.empty(dim), np.empty(dim)
    for run in range(len(start)):
        own[:], square[:] = 0, 0
        for i in range(start[run], start[run] + count[run]):
            for k in range(dim):
                apart = np.float64(rows[i, k]) - np.float64(centre[run, k])
                own[k] += apart
                square[k] += apart * apart
        sums[run] = own
        squares[run] = square.sum()
    return 0
