"""What is guessed of the groups of a catalog from the size of a query alone: computed once for queries of like size.

`rfkernels.catalog.plan.guess` specifies it: an item of group g in cell c weighs exp(q·mean of c) times what depends on
the spread of g and the size of q, which is rounded.
"""

from __future__ import annotations

import math
import weakref
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from rfkernels.backends.numba.catalog_groups import Groups, groups_of, padded
from rfkernels.backends.numba.compiling import call, jit_with
from rfkernels.catalog.plan import STEPS, moments
from rfkernels.catalog.records import Table

_LEAST_KEPT, _SHARE = 1 << 23, 16
"""Bytes that are kept between calls, or this part of what items take if that is more."""


class Guesses(NamedTuple):
    """What is guessed for each of some sizes of queries, which are the first axis of all arrays.

    `unit` is the mean weight of a group's items relative to that of its cell's largest group, and `top` the log of the
    latter over the weight of the cell's mean. `mass` and `noise` are sums over cells of guessed sums of weights, and of
    these times `variance`; `score` is the log of a group's second moment and `best` the largest in a cell. `ends` is
    what part of its cell's mass lies in a group and those before it, infinite from the last with any on. `order` has
    the groups of each cell by falling score, and `mass_from` and `noise_from` are sums from a place in it on. Arrays of
    groups end in room for a vector, those of cells are padded to whole ones.
    """

    size: Any
    unit: Any
    variance: Any
    score: Any
    ends: Any
    order: Any
    mass_from: Any
    noise_from: Any
    top: Any
    mass: Any
    noise: Any
    best: Any


@jit_with(entry=True, allocates=True)
def _sizes(dots: int, rows: Any, places: Any, queries: Any, out: Any) -> int:
    """Write the nearest whole number to STEPS log2 of the size of each query; the shape is the rows at some places."""
    dim = queries.shape[1]
    product, end = np.empty(dim + 4), (dim + 3) & ~3
    given = rows.ctypes.data, rows.strides[0], places.ctypes.data
    for i in range(len(queries)):
        call(dots, (*given, end, queries[i].ctypes.data, product.ctypes.data))
        square = 0.0
        for j in range(dim):
            square += product[j] * queries[i, j]
        finite = 0 < square < np.inf
        out[i] = np.rint(STEPS * math.log2(math.sqrt(square))) if finite else (_NOTHING if square <= 0 else -_NOTHING)
    return 0


_NOTHING = -(1 << 20)
"""Stands for a size of 0, and its opposite for what is no number."""


def sizes(dots: int, g: Groups, queries: Any) -> Any:
    """Return STEPS log2 of the rounded sizes of queries of float64, (queries,)."""
    out = np.empty(len(queries), np.int64)
    _sizes(dots, g.means, g.every[len(g.held) :], queries, out)
    return out


class Known:
    """Guesses for the sizes of queries that there were, as far as there is room. Threads may share it.

    Parameters
    ----------
    g : Groups
    room : int
        Bytes of what items take.
    """

    def __init__(self, g: Groups, room: int) -> None:
        self._groups, self._most = g, max(_LEAST_KEPT, room // _SHARE)
        self._held: tuple[dict[int, int], Guesses] | None = None

    def at(self, sizes: Any) -> tuple[Guesses, Any]:
        """Return guesses for sizes (queries,), and the place of each of these in them."""
        numbers, held = sizes.tolist(), self._held
        if held is None or not held[0].keys() >= set(numbers):
            held = self._held = self._with(held, sorted(set(numbers)))
        places, guesses = held
        return guesses, np.array([places[x] for x in numbers], np.int64)

    def _with(self, held: tuple[dict[int, int], Guesses] | None, numbers: list[int]) -> Any:
        """Return guesses with those for other sizes, or these alone if all are too large to be kept."""
        if held is not None:
            places, old = held
            new = [x for x in numbers if x not in places]
            if sum(x.nbytes for x in old) * (len(places) + len(new)) <= self._most * len(places):
                made = guess(self._groups, new)
                every = {**places, **{x: len(places) + i for i, x in enumerate(new)}}
                return every, Guesses(*(np.concatenate(pair) for pair in zip(old, made, strict=True)))
        return {x: i for i, x in enumerate(numbers)}, guess(self._groups, numbers)


@np.errstate(over="ignore", invalid="ignore")
def guess(g: Groups, sizes: list[int]) -> Guesses:
    """Return guesses for queries of these sizes, NaN where they are infinite."""
    size = np.exp2(np.array(sizes) / STEPS)
    groups = len(g.start)
    cell, filled = g.cell[:groups].astype(np.int64), np.diff(g.first) > 0
    begin = g.first[:-1][filled]
    place = (np.cumsum(filled) - 1)[cell]

    def over_cells(operation: Any, x: Any, nothing: float) -> tuple[Any, Any]:
        """Return what an operation makes of each cell: for all cells, padded, and for the cell of each group."""
        own = operation.reduceat(x, begin, axis=1)
        out = np.full((len(x), padded(len(g.held))), nothing, np.float64)
        out[:, np.flatnonzero(filled)] = own
        return out, own[:, place]

    log_mean, variance = moments(size[:, None] * g.deviation, g.edge)
    top, own_top = over_cells(np.maximum, log_mean, -np.inf)
    relative = log_mean - own_top
    score, unit = 2 * relative + np.log(variance), np.exp(relative)
    sums = unit * g.size[:groups]
    mass, own_mass = over_cells(np.add, sums, 0)
    some = np.where(sums > 0, np.arange(groups), -1)
    last = over_cells(np.maximum, some, -1)[1]
    share = np.cumsum(sums / own_mass, axis=1)
    before = (share - sums / own_mass)[:, g.first[cell]]
    ends = np.where(np.arange(groups) >= last, np.inf, share - before)
    order = np.stack([np.lexsort((-own, cell)) for own in score])
    noises = sums * variance
    from_here = (_backwards(np.take_along_axis(x, order, 1), g.first) for x in (sums, noises))
    wide = (np.pad(x, ((0, 0), (0, 8))) for x in (unit, variance, score, ends))
    every = over_cells(np.add, noises, 0)[0], over_cells(np.maximum, score, -np.inf)[0]
    return Guesses._make((size, *wide, order.astype(np.int32), *from_here, top, mass, *every))


def _backwards(x: Any, first: Any) -> Any:
    """Return sums over each group and those behind it in its cell, (sizes, groups + 1)."""
    out = np.zeros((len(x), x.shape[1] + 1))
    for begin, end in pairwise(first):
        out[:, begin:end] = np.cumsum(x[:, begin:end][:, ::-1], axis=1)[:, ::-1]
    return out


_prepared: dict[int, tuple[tuple[Any, ...], Groups, Known]] = {}


def prepared(table: Table) -> tuple[Groups, Known]:
    """Return what is known of a table, which is kept as long as the means of its cells are."""
    key = id(table.means)
    found = _prepared.get(key)
    if found is not None and all(part() is own for part, own in zip(found[0], table, strict=True)):
        return found[1:]
    g, (*parts, means, shape) = groups_of(table), table
    own = weakref.ref(means, lambda _: _prepared.pop(key, None))
    known = Known(g, table.rows.nbytes)
    _prepared[key] = (*map(weakref.ref, parts), own, weakref.ref(shape)), g, known
    return g, known
