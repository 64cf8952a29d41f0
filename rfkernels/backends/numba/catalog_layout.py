"""What compiled estimates over a catalog know and write to."""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any, NamedTuple

import numpy as np

from rfkernels.backends.numba.catalog_kernels import AHEAD, TOGETHER, dot_kernel, weight_kernels
from rfkernels.backends.numba.catalog_plan_kernels import plan_kernels
from rfkernels.backends.numba.jit import machine
from rfkernels.catalog import estimates, plan
from rfkernels.catalog.records import Table

_STRETCH_BYTES = 1 << 16
"""Of the runs that all queries of a block take in before they go on: next to what else they use, a part of a cache."""

_KEPT = 1 << 23
"""Bytes of working memory that a thread keeps between calls, at most."""


class Rules(NamedTuple):
    """Addresses of kernels, sizes, and the numbers of the specification."""

    dots: int
    near_dots: int
    fetch: int
    wide_dots: int
    largest: int
    exponentials: int
    guess: int
    buckets: int
    rest: int
    offsets: int
    draw: int
    rows: int
    row_stride: int
    budget: int
    ahead: int
    stretch: int
    shared: int
    seed: Any
    fewest_runs: int
    trusted: float
    heavy: float
    edge: float
    floor: float


class Groups(NamedTuple):
    """The groups of a table, and its cells: what they hold, and means and then the shape in rows of float64.

    `cell`, `deviation` and `size` are padded to whole vectors; `reach` is the largest deviation of each cell.
    """

    start: Any
    count: Any
    cell: Any
    deviation: Any
    size: Any
    held: Any
    reach: Any
    means: Any
    every: Any
    items: int


class Scratch(NamedTuple):
    """Memory of a thread, of which each query uses all in turn; arrays of groups are padded to whole vectors."""

    weight: Any
    mass: Any
    noise: Any
    second: Any
    bucket: Any
    ends: Any
    offset: Any
    candidates: Any
    sizes: Any
    sums: Any
    cells: Any
    items: Any
    numbers: Any
    x: Any
    top: Any


class Lists(NamedTuple):
    """What the queries of a block take: arrays whose first axis is the query.

    `places` are rows: those of opened groups, up to a multiple of 4, then those of runs, then zeros. `marks` tell where
    the runs of each stretch of groups begin. `slopes` are of cells, `draw` has the group and `odds` the weight of an
    item of each run. `products` are logits, one for each place.
    """

    places: Any
    products: Any
    marks: Any
    cells: Any
    opened: Any
    draw: Any
    odds: Any
    slopes: Any
    sizes: Any
    measures: Any


_prepared: dict[int, tuple[Any, tuple[int, ...], Groups]] = {}
_local = threading.local()


def groups(table: Table) -> Groups:
    """Return what is known of the groups of a table, which is kept as long as the means of its cells are."""
    key, parts = id(table.means), tuple(map(id, table))
    known = _prepared.get(key)
    if known is not None and known[0]() is table.means and known[1] == parts:
        return known[2]
    made = _groups(table)
    _prepared[key] = weakref.ref(table.means, lambda _: _prepared.pop(key, None)), parts, made
    return made


def _groups(table: Table) -> Groups:
    dim, cells = table.rows.shape[1], len(table.means)
    deviation, reach = np.sqrt(table.spread, dtype=np.float64), np.zeros(cells)
    np.maximum.at(reach, table.cell, deviation)
    return Groups(
        np.ascontiguousarray(table.start, np.int64),
        np.ascontiguousarray(table.count, np.int32),
        _padded(table.cell, np.uint32),
        _padded(deviation),
        _padded(table.count),
        np.bincount(table.cell, table.count, cells),
        reach,
        np.concatenate([table.means, table.shape], dtype=np.float64),
        np.arange(cells + dim + TOGETHER * (AHEAD + 2), dtype=np.int32) % (cells + dim),
        int(table.count.sum(dtype=np.int64)),
    )


def _padded(x: Any, dtype: Any = np.float64) -> Any:
    out = np.zeros((len(x) + 7) // 8 * 8, dtype)
    out[: len(x)] = x
    return out


def rules(table: Table, g: Groups, budget: int, seed: int) -> tuple[Rules, Any]:
    """Return the rules of a call, and the code that these know by address."""
    m, dim, bits = machine(), table.rows.shape[1], 8 * table.rows.dtype.itemsize
    code = dots, wide, weights, plans = (
        *(dot_kernel(m, own, dim) for own in (bits, 64)),
        weight_kernels(m, bits),
        plan_kernels(m),
    )
    row = table.rows.strides[0]
    made = Rules(
        *(dots.addresses[name] for name in ("dots", "near_dots", "fetch")),
        wide.addresses["near_dots"],
        *(weights.addresses[name] for name in ("largest", "exponentials")),
        *(plans.addresses[name] for name in ("guess", "buckets", "rest", "offsets", "draw")),
        rows=table.rows.ctypes.data,
        row_stride=row,
        budget=budget,
        ahead=TOGETHER * (AHEAD + 1),
        stretch=max(1, _STRETCH_BYTES // (plan.RUN * row)),
        shared=plan.SHARED,
        seed=np.uint64(seed),
        fewest_runs=plan.FEWEST_RUNS,
        trusted=plan.TRUSTED,
        heavy=estimates.HEAVY,
        edge=math.sqrt(2 * math.log(max(g.items, 1))),
        floor=plan._FLOOR,
    )
    return made, code


def memory(g: Groups, r: Rules, block: int, dtype: Any) -> tuple[Scratch, Lists]:
    """Return memory for a thread and a block of queries: what this thread used last, if that is as large."""
    key = (len(g.start), len(g.means), len(g.held), r.budget, r.stretch, block, dtype)
    known = getattr(_local, "memory", None)
    if known is not None and known[0] == key:
        return known[1], known[2]
    made = _scratch(g, r, dtype), _lists(g, r, block, dtype)
    size = sum(x.nbytes for part in made for x in part)
    _local.memory = (key, *made) if size <= _KEPT else None
    return made


def _scratch(g: Groups, r: Rules, dtype: Any) -> Scratch:
    padded, cells = len(g.size), len(g.held)
    weight, mass, noise, second = np.zeros((4, padded + 8))
    bucket, ends, offset, candidates = np.zeros((4, padded + 8), np.int32)
    return Scratch(
        *(weight, mass, noise, second, bucket, ends, offset, candidates),
        sizes=np.empty((4, plan.BUCKETS), np.int64),
        sums=np.empty((2, plan.BUCKETS)),
        cells=np.empty((4, cells)),
        items=np.empty(cells),
        numbers=np.empty(8),
        x=np.empty(r.budget + 32, dtype),
        top=np.empty(1, dtype),
    )


def _lists(g: Groups, r: Rules, block: int, dtype: Any) -> Lists:
    stretches, runs = -(-len(g.start) // r.stretch), r.budget // 4 + 4
    return Lists(
        places=np.empty((block, r.budget + r.ahead + 8), np.int32),
        products=np.empty((block, r.budget + 32), dtype),
        marks=np.empty((block, stretches + 1), np.int32),
        cells=np.empty((block, len(g.means) + 8)),
        opened=np.empty((block, len(g.start)), np.uint32),
        draw=np.empty((block, runs), np.uint32),
        odds=np.empty((block, runs)),
        slopes=np.empty((block, len(g.held))),
        sizes=np.empty((block, 4), np.int64),
        measures=np.empty((block, 3)),
    )
