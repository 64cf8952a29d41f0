"""What a catalog computes of its items when it is built or changed, compiled: nearest centres, and sums over groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.schedule import jit

_ITEMS = 64
"""Items that share a tile of centres in the fastest cache."""

_CENTRES = 128
"""Centres in a tile."""

_SERIAL_WORK = 1 << 19
"""Multiplications below which handing work to other threads costs more than it saves."""


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


@jit
def _nearest(x: Any, origin: Any, centres: Any, moved: Any, half: Any, label: Any, square: Any) -> int:
    """Minimise |e|²/2 − x·e, where x and the centres e are taken from the mean of the centres: far data round less."""
    dim, cells = moved.shape
    scores = np.empty(_CENTRES, x.dtype)
    own = np.empty((_ITEMS, dim), x.dtype)
    least = np.empty(_ITEMS, x.dtype)
    for first in range(0, len(x), _ITEMS):
        last = min(first + _ITEMS, len(x))
        for i in range(first, last):
            label[i], least[i - first] = 0, np.inf
            for k in range(dim):
                own[i - first, k] = x[i, k] - origin[k]
        for tile in range(0, cells, _CENTRES):
            width = min(_CENTRES, cells - tile)
            score = scores[:width]
            for i in range(first, last):
                score[:] = half[tile : tile + width]
                y = own[i - first]
                for k in range(0, dim - 3, 4):  # four at a time, so that scores are read and written less often
                    a, b, c, d = y[k], y[k + 1], y[k + 2], y[k + 3]
                    one, two = moved[k, tile : tile + width], moved[k + 1, tile : tile + width]
                    three, four = moved[k + 2, tile : tile + width], moved[k + 3, tile : tile + width]
                    for j in range(width):
                        score[j] -= a * one[j] + b * two[j] + c * three[j] + d * four[j]
                for k in range(dim // 4 * 4, dim):
                    a, one = y[k], moved[k, tile : tile + width]
                    for j in range(width):
                        score[j] -= a * one[j]
                best, at = least[i - first], -1
                for j in range(width):
                    if score[j] < best:
                        best, at = score[j], j
                if at >= 0:
                    least[i - first], label[i] = best, tile + at
        for i in range(first, last):
            total = 0.0
            for k in range(dim):
                apart = np.float64(x[i, k]) - np.float64(centres[label[i], k])
                total += apart * apart
            square[i] = total
    return 0


@jit
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
