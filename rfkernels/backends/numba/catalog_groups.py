"""The groups of a catalog's table as compiled code reads them, and work on many of them."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.catalog_kernels import AHEAD, TOGETHER
from rfkernels.backends.numba.records import FloatRows, Floats, Held, Ints, Longs, Numbers
from rfkernels.catalog import aligned
from rfkernels.catalog.homes import ROUNDED
from rfkernels.catalog.rays import known_rays
from rfkernels.catalog.records import Table
from rfkernels.catalog.tops import stretch


class Groups(NamedTuple):
    """The groups of a table, and its cells: what they hold, and means and then the shape in rows of float64.

    The groups of cell c are those from first[c] to first[c + 1], at most `widest`, and hold at most `most` items.
    `stretch` is how many units of a query's size the largest logit is expected beyond that of the cell. It and `size`
    are padded to whole vectors, and a vector more; `start` and `cell` have room for as much: lanes that stand for no
    run may name no group.

    From `lengths` on they are those of `rfkernels.catalog.rays.Rays`: `median` is that of lengths, `outward` the order
    of its homes, and `edges` are in that order; `rounded` is what squared distances are multiplied by for rounding, and
    `middle` the mean of all items.
    """

    start: Longs
    count: Ints
    cell: Numbers
    deviation: Floats
    size: Floats
    stretch: Floats
    first: Longs
    held: Floats
    means: FloatRows
    every: Ints
    items: int
    most: int
    widest: int
    edge: float
    lengths: Floats
    median: float
    square: Floats
    metric: FloatRows
    centres: FloatRows
    beyond: Floats
    outward: Longs
    edges: Floats
    rounded: float
    middle: Floats


def groups_of(table: Table) -> Held[Groups]:
    """Return the groups of a table, which lie cell by cell."""
    items, dim, cells = int(table.count.sum(dtype=np.int64)), table.rows.shape[1], len(table.means)
    if (np.diff(table.cell) < 0).any():
        raise ValueError("table must have groups in the order of their cells")
    first = np.searchsorted(table.cell, np.arange(cells + 1)).astype(np.int64)
    groups = Groups(
        _with_room(table.start, np.int64)[: len(table.start)],
        np.ascontiguousarray(table.count, np.int32),
        _with_room(table.cell, np.uint32)[: len(table.cell)],
        np.sqrt(table.spread, dtype=np.float64),
        _with_room(table.count, np.float64),
        _with_room(stretch(table), np.float64),
        first,
        np.bincount(table.cell, table.count, cells),
        np.concatenate([table.means, table.shape], dtype=np.float64),
        np.arange(cells + dim + TOGETHER * (AHEAD + 2), dtype=np.int32) % (cells + dim),
        items,
        int(table.count.max(initial=0)),
        int(np.diff(first).max(initial=0)),
        math.sqrt(2 * math.log(max(items, 1))),
        *_along(table),
    )
    return Held(groups)


def _along(table: Table) -> tuple[Any, ...]:
    """Return what is known of items along a direction."""
    rays, rounded = known_rays(table), 1 + ROUNDED * float(np.finfo(table.rows.dtype).eps)
    homes, median = rays.homes, float(np.median(rays.lengths)) if len(rays.lengths) else 0.0
    metric = np.empty((0, table.rows.shape[1])) if table.metric is None else table.metric.astype(np.float64)
    outward, middle = homes.order, rays.held @ table.means.astype(np.float64) / max(rays.held.sum(), 1)
    of_cells = rays.square, metric, homes.centres, rays.beyond
    return rays.lengths, median, *of_cells, outward, homes.edge[outward].astype(np.float64), rounded, middle


def padded(count: int) -> int:
    """Return the length of arrays of so many numbers in whole vectors."""
    return (count + 7) // 8 * 8


def _with_room(x: Any, dtype: Any) -> Any:
    """Return numbers and zeros behind them, up to a whole vector and a vector more."""
    out = aligned.zeros(padded(len(x)) + padded(1), dtype)
    out[: len(x)] = x
    return out


def on_threads(step: Any, groups: Any, place: tuple[Any, Any, Any], given: tuple[Any, ...], dim: int) -> None:
    """Do something with groups, whose `place` are start, count and cell of all: at once where they hold few items."""
    ends = np.cumsum(place[1][groups])
    if (int(ends[-1]) * dim if len(ends) else 0) < threads.LIGHT_WORK:
        step(groups, *place, *given)
        return
    count = threads.thread_count()
    cuts = [0, *np.searchsorted(ends, np.linspace(0, ends[-1], 4 * count + 1)[1:-1]).tolist(), len(groups)]
    threads.run([partial(step, groups[a:b], *place, *given) for a, b in pairwise(cuts)], count)
