"""What compiled estimates over a catalog know and write to."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels.backends.numba.catalog_kernels import AHEAD, TOGETHER, dot_kernel, weight_kernels
from rfkernels.backends.numba.jit import machine
from rfkernels.catalog import estimates, plan
from rfkernels.catalog.records import Table

_STRETCH_BYTES = 1 << 19
"""Of rows that all queries of a block take in before they go on: a part of the second level of cache."""


class Rules(NamedTuple):
    """Addresses of kernels, sizes, and the numbers of the specification."""

    dots: int
    wide_dots: int
    largest: int
    guess: int
    exponentials: int
    rows: int
    row_stride: int
    budget: int
    ahead: int
    stretch: int
    seed: Any
    fewest_runs: int
    per_nat: float
    trusted: float
    heavy: float
    edge: float
    floor: Any


class Groups(NamedTuple):
    """The groups of a table, and its cells: what they hold, and means and then the shape in rows of float64."""

    start: Any
    count: Any
    cell: Any
    deviation: Any
    size: Any
    held: Any
    means: Any
    every: Any


class Scratch(NamedTuple):
    """Memory of a thread, of which each query uses all in turn; arrays of groups are padded to multiples of 8."""

    log_mean: Any
    apart: Any
    weight: Any
    mass: Any
    noise: Any
    score: Any
    bucket: Any
    ends: Any
    buckets: Any
    cells: Any
    items: Any
    where: Any
    turn: Any
    x: Any
    number: Any


class Lists(NamedTuple):
    """What the queries of a block take: arrays whose first axis is the query.

    `places` are rows: those of opened groups, up to a multiple of 4, then those of runs, then zeros. `marks` tell how
    many of either come before each stretch of groups. `slopes` are of cells, `draw` has the group and `odds` the
    weight of an item of each run.
    """

    places: Any
    marks: Any
    cells: Any
    opened: Any
    draw: Any
    odds: Any
    slopes: Any
    sizes: Any
    measures: Any


def prepared(table: Table, budget: int, seed: int) -> tuple[Groups, Rules, Any]:
    """Return a table and the rules of a call, and the code that these know by address."""
    g = Groups(
        np.ascontiguousarray(table.start, np.int64),
        np.ascontiguousarray(table.count, np.int32),
        table.cell.astype(np.uint32),
        np.sqrt(table.spread, dtype=np.float64),
        _padded(table.count),
        np.bincount(table.cell, table.count, len(table.means)),
        _rows(table),
        np.arange(sum(table.means.shape) + TOGETHER * (AHEAD + 2), dtype=np.int32) % sum(table.means.shape),
    )
    element = table.rows.dtype.itemsize
    dim = table.rows.shape[1]
    dots, wide = dot_kernel(machine(), 8 * element, dim), dot_kernel(machine(), 64, dim)
    weights = weight_kernels(machine())
    items = int(g.count.sum(dtype=np.int64))
    row = table.rows.strides[0]
    stretch = max(1, _STRETCH_BYTES * len(g.start) // max(items * row, 1))
    rules = Rules(
        dots.addresses["dots"],
        wide.addresses["dots"],
        weights.addresses["largest"],
        weights.addresses["guess"],
        weights.addresses["exponentials"],
        table.rows.ctypes.data,
        row,
        budget,
        TOGETHER * (AHEAD + 1),
        stretch,
        np.uint64(seed),
        plan.FEWEST_RUNS,
        float(plan.PER_NAT),
        plan.TRUSTED,
        estimates.HEAVY,
        math.sqrt(2 * math.log(max(items, 1))),
        np.array([plan._FLOOR]),
    )
    return g, rules, (dots, wide, weights)


def _padded(x: Any) -> Any:
    out = np.zeros((len(x) + 7) // 8 * 8)
    out[: len(x)] = x
    return out


def _rows(table: Table) -> Any:
    """Return means of cells and then the shape, one below the other."""
    return np.concatenate([table.means, table.shape], dtype=np.float64)


def scratch(g: Groups, r: Rules) -> Scratch:
    """Return memory for a thread."""
    groups, cells, runs = len(g.start), len(g.held), r.budget // 4 + 4
    log_mean, apart, weight, mass, noise, score = np.zeros((6, len(g.size)))
    log_mean[groups:] = -np.inf
    return Scratch(
        *(log_mean, apart, weight, mass, noise, score),
        bucket=np.empty(groups, np.uint32),
        ends=np.empty(groups),
        buckets=np.empty((4, plan.BUCKETS, 3)),
        cells=np.empty((4, cells)),
        items=np.empty(cells),
        where=np.empty(runs),
        turn=np.empty(runs),
        x=np.empty(r.budget + 16),
        number=np.empty(1),
    )


def lists(g: Groups, r: Rules, block: int, dim: int) -> Lists:
    """Return memory for a block of queries."""
    stretches, runs = -(-len(g.start) // r.stretch), r.budget // 4 + 4
    return Lists(
        places=np.empty((block, r.budget + r.ahead + 8), np.int32),
        marks=np.empty((block, 2, stretches + 1), np.int32),
        cells=np.empty((block, len(g.held) + dim + 8)),
        opened=np.empty((block, len(g.start)), np.uint32),
        draw=np.empty((block, runs), np.uint32),
        odds=np.empty((block, runs)),
        slopes=np.empty((block, len(g.held))),
        sizes=np.empty((block, 4), np.int64),
        measures=np.empty((block, 3)),
    )
