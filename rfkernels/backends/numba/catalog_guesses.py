"""What is guessed of the groups of a catalog from the size of a query alone: computed once for queries of like size.

`rfkernels.catalog.plan.guess` specifies it: an item of group g in cell c weighs exp(q·mean of c) times what depends on
the spread of g and the size of q, which is rounded.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels.backends.numba.catalog_groups import Groups, groups_of, padded
from rfkernels.backends.numba.compiling import call, entry, jit_with
from rfkernels.backends.numba.jit import Machine
from rfkernels.backends.numba.records import FloatRows, Floats, Held, IntRows, view
from rfkernels.catalog import aligned
from rfkernels.catalog.codes import moved
from rfkernels.catalog.known import OfTables
from rfkernels.catalog.plan import STEPS, moments
from rfkernels.catalog.records import Table
from rfkernels.catalog.tops import reach

_KEPT, _SHARE = (1 << 23, 1 << 31), 16
"""Bytes that are kept between calls: this part of what items take, but at least the first and at most the second."""


class Guesses(NamedTuple):
    """What is guessed for each of some sizes of queries, which are the first axis of all arrays.

    `unit` is the mean weight of a group's items relative to that of its cell's largest group, and `top` the log of the
    latter over the weight of the cell's mean. `mass` and `noise` are sums over cells of guessed sums of weights, and of
    these times `variance`; `least` is what the mass would be if all items were the mean. `score` is the log of a
    group's second moment and `best` the largest in a cell; `second` is half of that log, over the weight of the cell's
    mean. `ends` is what part of its cell's mass lies in a group and those before it, infinite from the last with any
    on. `order` has the groups of each cell by falling score, and `mass_from` and `noise_from` are sums from a place in
    it on. `unit`, `variance`, `score`, `second` and `ends` have room for a vector behind the last group, arrays of
    cells are padded to whole ones.
    """

    size: Floats
    unit: FloatRows
    variance: FloatRows
    score: FloatRows
    second: FloatRows
    ends: FloatRows
    order: IntRows
    mass_from: FloatRows
    noise_from: FloatRows
    top: FloatRows
    mass: FloatRows
    noise: FloatRows
    best: FloatRows
    least: FloatRows


@jit_with(entry=True, allocates=True)
def _sizes(dots: int, groups: int, queries: Any, out: Any) -> int:
    """Write the nearest whole number to STEPS log2 of the size of each query."""
    g, dim = view(Groups, groups), queries.shape[1]
    product, end = np.empty(dim + 4), (dim + 3) & ~3
    given = g.means.ctypes.data, g.means.strides[0], g.every[len(g.held) :].ctypes.data  # the rows of the shape
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


def sizes(dots: int, g: Held[Groups], queries: Any) -> Any:
    """Return STEPS log2 of the rounded sizes of queries of float64, (queries,)."""
    out = np.empty(len(queries), np.int64)
    _sizes(dots, g.address, queries, out)
    return out


class Known:
    """Guesses for the sizes of queries that there were, as far as there is room. Threads may share it.

    What a call needs beyond that is made for it and not kept.

    Parameters
    ----------
    g : Held[Groups]
    room : int
        Bytes of what items take.
    """

    def __init__(self, g: Held[Groups], room: int) -> None:
        self._groups, self._most = g.record, min(max(_KEPT[0], room // _SHARE), _KEPT[1])
        self._held: tuple[dict[int, int], Held[Guesses]] | None = None

    def at(self, sizes: Any) -> tuple[Held[Guesses], Any]:
        """Return guesses for sizes (queries,), and the place of each of these in them."""
        numbers, held = sizes.tolist(), self._held
        if held is None or not all(map(held[0].__contains__, numbers)):
            held = self._with(held, sorted(set(numbers)))
            if _bytes(held[1]) <= self._most:
                self._held = held
        places, guesses = held
        return guesses, np.array([places[x] for x in numbers], np.int64)

    def _with(
        self, held: tuple[dict[int, int], Held[Guesses]] | None, numbers: list[int]
    ) -> tuple[dict[int, int], Held[Guesses]]:
        """Return guesses with those for other sizes, or these alone if all are too large to be kept."""
        if held is not None:
            places, old = held
            new = [x for x in numbers if x not in places]
            if _bytes(old) * (len(places) + len(new)) <= self._most * len(places):
                made = guess(self._groups, new)
                every = {**places, **{x: len(places) + i for i, x in enumerate(new)}}
                joined = map(np.concatenate, zip(old.record, made, strict=True))
                return every, Held(Guesses._make(joined))
        return {x: i for i, x in enumerate(numbers)}, Held(guess(self._groups, numbers))


def _bytes(held: Held[Guesses]) -> int:
    return sum(x.nbytes for x in held.record)


@entry
def _sum_cells(first: Any, order: Any, sums: Any, noises: Any, ends: Any, mass_from: Any, noise_from: Any) -> int:
    """Write what part of its cell's sum lies in a group and those before it; and sums from a place in the order on."""
    for c in range(len(first) - 1):
        total, mass, noise = 0.0, 0.0, 0.0
        for j in range(first[c], first[c + 1]):
            total += sums[j]
            ends[j] = total
        for j in range(first[c + 1] - 1, first[c] - 1, -1):
            ends[j] = np.inf if mass == 0 else ends[j] / total
            mass += sums[j]
        mass = 0.0
        for k in range(first[c + 1] - 1, first[c] - 1, -1):
            mass, noise = mass + sums[order[k]], noise + noises[order[k]]
            mass_from[k], noise_from[k] = mass, noise
    return 0


@np.errstate(over="ignore", invalid="ignore")
def guess(g: Groups, sizes: list[int]) -> Guesses:
    """Return guesses for queries of these sizes, NaN where they are infinite."""
    groups, cells = len(g.start), padded(len(g.held))
    wide = aligned.zeros((5, len(sizes), padded(groups) + 8))
    wide[2] = -np.inf
    order = np.empty((len(sizes), groups), np.int32)
    parts = np.zeros((2, len(sizes), groups + 1))
    whole = aligned.zeros((5, len(sizes), cells))
    whole[0] = whole[3] = -np.inf
    made = Guesses._make((np.exp2(np.array(sizes) / STEPS), *wide, order, *parts, *whole))
    for i in range(len(sizes)):
        _guess(g, made, i)
    return made


def _guess(g: Groups, made: Guesses, i: int) -> None:
    """Fill the arrays of a size."""
    groups, filled = len(g.start), np.flatnonzero(np.diff(g.first))
    cell, begin = g.cell.astype(np.int64), g.first[filled]
    log_mean, variance = moments(made.size[i] * g.deviation, g.edge)
    made.top[i, filled] = np.maximum.reduceat(log_mean, begin)
    relative = log_mean - made.top[i, cell]
    unit, score = np.exp(relative), 2 * relative + np.log(variance)
    sums = unit * g.size[:groups]
    noises = sums * variance
    second = log_mean + np.log(variance) / 2
    for out, x in ((made.unit, unit), (made.variance, variance), (made.score, score), (made.second, second)):
        out[i, :groups] = x
    made.order[i] = np.lexsort((-score, cell))
    made.mass[i, filled], made.noise[i, filled] = np.add.reduceat(sums, begin), np.add.reduceat(noises, begin)
    made.best[i, filled] = np.maximum.reduceat(score, begin)
    made.least[i, filled] = g.held[filled] * np.exp(-made.top[i, filled])
    _sum_cells(g.first, made.order[i], sums, noises, made.ends[i], made.mass_from[i], made.noise_from[i])


class Prepared(NamedTuple):
    """What is known of a table: its groups, guesses, and what else is computed once for each machine.

    `moved` are the cells that are no longer where their anchors are, and `common` is what calls have in common, by
    machine, budget, and use; `radial` is what sums of functions of distances know. `reach` is as in `tops.bounded`.
    """

    groups: Held[Groups]
    guesses: Known
    rules: dict[tuple[Machine, bool], Any]
    codes: dict[Machine, Any]
    finders: dict[Machine, Any]
    radial: dict[Machine, Any]
    common: dict[tuple[Machine, int, Any], Any]
    moved: Any
    reach: float


def _prepare(table: Table) -> Prepared:
    g = groups_of(table)
    return Prepared(g, Known(g, table.rows.nbytes), {}, {}, {}, {}, {}, moved(table), reach(table))


prepared = OfTables(_prepare)
"""Returns what is known of a table."""


def steps(size: float) -> int:
    """Return the largest whole number of steps that a size is not below."""
    return math.floor(STEPS * math.log2(size)) if 0 < size < np.inf else -_NOTHING - 1
