"""What compiled estimates over a catalog know and write to."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np

from rfkernels.backends.numba.catalog_kernels import AHEAD, TOGETHER, dot_kernel, weight_kernels
from rfkernels.backends.numba.catalog_plan_kernels import plan_kernels
from rfkernels.backends.numba.jit import Machine, machine
from rfkernels.catalog import estimates, plan
from rfkernels.catalog.records import Table

_KEPT = 1 << 23
"""Bytes of working memory that a thread keeps between calls, at most."""


class Rules(NamedTuple):
    """Addresses of kernels, sizes, and the numbers of the specification."""

    dots: int
    run_dots: int
    fetch: int
    wide_dots: int
    largest: int
    exponentials: int
    sum: int
    add_runs: int
    guess: int
    buckets: int
    rest: int
    offsets: int
    draw: int
    fill: int
    equal: int
    rows: int
    row_stride: int
    budget: int
    ahead: int
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
    edge: float


class Scratch(NamedTuple):
    """Memory of a thread, of which each query uses all in turn; arrays of groups are padded to whole vectors."""

    weight: Any
    mass: Any
    noise: Any
    score: Any
    bucket: Any
    ends: Any
    offset: Any
    most: Any
    candidates: Any
    sizes: Any
    sums: Any
    cells: Any
    items: Any
    numbers: Any
    top: Any
    queues: Any
    following: Any
    places: Any


class Lists(NamedTuple):
    """What the queries of a block take: arrays whose first axis is the query.

    `places` are rows: those of opened groups, up to a multiple of 4, then those of runs, then zeros. `slopes` are of
    cells, `draw` has the group of each run, and then a number that is no group's, and `odds` the weight of its items.
    `products` are logits, one for each place, and `x` has room for as many of one query.
    """

    places: Any
    products: Any
    x: Any
    cells: Any
    opened: Any
    draw: Any
    odds: Any
    slopes: Any
    sizes: Any
    measures: Any


_prepared: dict[int, tuple[tuple[Any, ...], Groups]] = {}
_local = threading.local()


def groups(table: Table) -> Groups:
    """Return what is known of the groups of a table, which is kept as long as the means of its cells are."""
    key = id(table.means)
    known = _prepared.get(key)
    if known is not None and all(part() is own for part, own in zip(known[0], table, strict=True)):
        return known[1]
    made, (*parts, means, shape) = _groups(table), table
    own = weakref.ref(means, lambda _: _prepared.pop(key, None))
    _prepared[key] = (*map(weakref.ref, parts), own, weakref.ref(shape)), made
    return made


def _groups(table: Table) -> Groups:
    items = int(table.count.sum(dtype=np.int64))
    dim, cells = table.rows.shape[1], len(table.means)
    deviation, reach = np.sqrt(table.spread, dtype=np.float64), np.zeros(cells)
    np.maximum.at(reach, table.cell, deviation)
    return Groups(
        np.ascontiguousarray(table.start, np.int64),
        np.ascontiguousarray(table.count, np.int32),
        np.pad(table.cell.astype(np.uint32), (0, -len(table.cell) % 8), "edge" if len(table.cell) else "constant"),
        _padded(deviation),
        _padded(table.count),
        np.bincount(table.cell, table.count, cells),
        reach,
        np.concatenate([table.means, table.shape], dtype=np.float64),
        np.arange(cells + dim + TOGETHER * (AHEAD + 2), dtype=np.int32) % (cells + dim),
        items,
        math.sqrt(2 * math.log(max(items, 1))),
    )


def _padded(x: Any, dtype: Any = np.float64) -> Any:
    out = np.zeros((len(x) + 7) // 8 * 8, dtype)
    out[: len(x)] = x
    return out


def rules(table: Table, g: Groups, budget: int, seed: int) -> tuple[Rules, Any]:
    """Return the rules of a call, and the code that these know by address."""
    code, addresses = _addresses(machine(), 8 * table.rows.dtype.itemsize, table.rows.shape[1])
    values = (
        *addresses,
        table.rows.ctypes.data,
        table.rows.strides[0],
        budget,
        TOGETHER * (AHEAD + 1),
        plan.SHARED,
        np.uint64(seed),
        plan.FEWEST_RUNS,
        plan.TRUSTED,
        estimates.HEAVY,
        g.edge,
        plan._FLOOR,
    )
    return Rules._make(values), code


@cache
def _addresses(m: Machine, bits: int, dim: int) -> tuple[Any, Any]:
    code = dot_kernel(m, bits, dim), dot_kernel(m, 64, dim), weight_kernels(m, bits), plan_kernels(m)
    names = (
        ("dots", "run_dots", "fetch"),
        ("near_dots",),
        ("largest", "exponentials", "sum", "add_runs"),
        ("guess", "buckets", "rest", "offsets", "draw", "fill", "equal"),
    )
    return code, tuple(part.addresses[name] for part, own in zip(code, names, strict=True) for name in own)


def scratch(g: Groups, dtype: Any) -> Scratch:
    """Return memory for a thread: what it used last, if that fits."""
    return cast(Scratch, _kept("scratch", (len(g.start), len(g.held), dtype), lambda: _scratch(g, dtype)))


def lists(g: Groups, r: Rules, block: int, dtype: Any) -> Lists:
    """Return memory for a block of queries: what this thread used last, if that fits."""
    key = len(g.start), len(g.held), len(g.means), r.budget, block, dtype
    return cast(Lists, _kept("lists", key, lambda: _lists(g, r, block, dtype)))


def _kept(name: str, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    known = getattr(_local, name, None)
    if known is not None and known[0] == key:
        return known[1]
    made = make()
    setattr(_local, name, (key, made) if sum(x.nbytes for x in made) <= _KEPT else None)
    return made


def _scratch(g: Groups, dtype: Any) -> Scratch:
    padded, cells = len(g.size), len(g.held)
    weight, mass, noise, score = np.zeros((4, padded + 8))
    bucket, ends, offset, most, candidates = np.zeros((5, padded + 8), np.int32)
    return Scratch(
        *(weight, mass, noise, score, bucket, ends, offset, most, candidates),
        sizes=np.empty((4, plan.BUCKETS), np.int64),
        sums=np.empty((2, plan.BUCKETS)),
        cells=np.empty((4, cells)),
        items=np.empty(cells),
        numbers=np.empty(8),
        top=np.empty(2, dtype),
        queues=np.empty((2, plan.SHARED), np.int64),
        following=np.empty(plan.SHARED, np.int32),
        places=np.empty(plan.RUN, np.int32),
    )


def _lists(g: Groups, r: Rules, block: int, dtype: Any) -> Lists:
    runs = r.budget // 4 + 8
    return Lists(
        places=np.empty((block, r.budget + r.ahead + 8), np.int32),
        products=np.empty((block, r.budget + 32), dtype),
        x=np.empty(r.budget + 32, dtype),
        cells=np.empty((block, len(g.means) + 8)),
        opened=np.empty((block, len(g.start)), np.uint32),
        draw=np.empty((block, runs), np.uint32),
        odds=np.empty((block, runs)),
        slopes=np.zeros((block, len(g.held))),
        sizes=np.empty((block, 4), np.int64),
        measures=np.empty((block, 3)),
    )
