"""What compiled estimates over a catalog know and write to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np

from rfkernels.backends.numba.catalog_groups import Groups, padded
from rfkernels.backends.numba.catalog_kernels import AHEAD, TOGETHER, dot_kernel, weight_kernels
from rfkernels.backends.numba.catalog_plan_kernels import plan_kernels
from rfkernels.backends.numba.jit import Machine, machine
from rfkernels.catalog import estimates, plan
from rfkernels.catalog.records import Table

_KEPT = 1 << 24
"""Bytes of working memory that a thread keeps between calls, at most."""

_VECTORS = 4
"""Vectors of a cell's groups that are looked through one after the other."""


class Rules(NamedTuple):
    """Addresses of kernels, sizes, and the numbers of the specification."""

    dots: int
    pass_runs: int
    wide_dots: int
    largest: int
    exponentials: int
    sum: int
    add_runs: int
    shares: int
    buckets: int
    totals: int
    offsets: int
    draw: int
    find: int
    halvings: int
    rows: int
    row_stride: int
    budget: int
    ahead: int
    shared: int
    seed: Any
    per_nat: float
    fewest_runs: int
    trusted: float
    heavy: float


class Scratch(NamedTuple):
    """Memory of a thread, of which each query uses all in turn; arrays of cells are padded to whole vectors.

    Of cells: `share` is what the weights of its groups are multiplied by and `base` twice the log of that, `far` and
    `noise` are sums over groups that are not opened, `score` is the largest second moment; `reached` and `ends` are how
    far runs have come before each cell, and how many begin before its end; `turn` is the next group in the order of
    scores, `taken` how many groups are opened, `items` how many items are left; `bucket` and `following` are lists of
    cells by the bucket of their next group, which begin in `first`; `touched` lists cells with candidates.

    Of groups: `mass` is the guessed sum of weights, `opened` whether all items are taken, `offset` the item that runs
    begin with, `most` the most runs that a query of the block takes. `candidates` are groups that may be opened and
    `depths` their buckets; `sizes` and `sums` are items, weights and noises of each bucket.

    `numbers` and `top` pass numbers to kernels. Of the queries of a block, `queues` are addresses that they move on
    from, and `waiting` the groups that they wait for.
    """

    share: Any
    base: Any
    far: Any
    noise: Any
    score: Any
    reached: Any
    items: Any
    bucket: Any
    ends: Any
    turn: Any
    taken: Any
    touched: Any
    following: Any
    first: Any
    mass: Any
    opened: Any
    offset: Any
    most: Any
    candidates: Any
    depths: Any
    sizes: Any
    sums: Any
    numbers: Any
    top: Any
    queues: Any
    waiting: Any


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


_local = threading.local()


def rules(table: Table, g: Groups, budget: int, seed: int) -> tuple[Rules, Any]:
    """Return the rules of a call, and the code that these know by address."""
    m = machine()
    code, addresses = _addresses(m, 8 * table.rows.dtype.itemsize, table.rows.shape[1])
    values = (
        *addresses,
        halvings(g.widest, m.lanes(64)),
        table.rows.ctypes.data,
        table.rows.strides[0],
        budget,
        TOGETHER * (AHEAD + 1),
        plan.SHARED,
        np.uint64(seed),
        float(plan.PER_NAT),
        plan.FEWEST_RUNS,
        plan.TRUSTED,
        estimates.HEAVY,
    )
    return Rules._make(values), code


@cache
def _addresses(m: Machine, bits: int, dim: int) -> tuple[Any, Any]:
    code = dot_kernel(m, bits, dim), dot_kernel(m, 64, dim), weight_kernels(m, bits), plan_kernels(m)
    names = (
        ("dots", "pass_runs"),
        ("near_dots",),
        ("largest", "exponentials", "sum", "add_runs"),
        ("shares", "buckets", "totals", "offsets", "draw", "find"),
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
    groups, cells = len(g.size) + 8, padded(len(g.held)) + 8
    share, base, far, noise, score, reached, items = np.zeros((7, cells))
    bucket, ends, turn, taken, touched, following = np.zeros((6, cells), np.int32)
    offset, most, candidates, depths = np.zeros((4, groups), np.int32)
    return Scratch(
        *(share, base, far, noise, score, reached, items, bucket, ends, turn, taken, touched, following),
        first=np.empty(plan.BUCKETS, np.int32),
        mass=np.empty(groups),
        opened=np.zeros(groups, np.bool_),
        offset=offset,
        most=most,
        candidates=candidates,
        depths=depths,
        sizes=np.empty(plan.BUCKETS, np.int64),
        sums=np.empty((2, plan.BUCKETS)),
        numbers=np.empty(8),
        top=np.empty(2, dtype),
        queues=np.empty((2, plan.SHARED), np.int64),
        waiting=np.empty(plan.SHARED, np.int32),
    )


def halvings(groups: int, lanes: int) -> int:
    """Return how often so many groups are halved until _VECTORS hold them."""
    return (groups // (_VECTORS * lanes)).bit_length()


def _lists(g: Groups, r: Rules, block: int, dtype: Any) -> Lists:
    runs = r.budget // plan.RUN + 8
    return Lists(
        places=np.empty((block, r.budget + r.ahead + 8), np.int32),
        products=np.empty((block, r.budget + 32), dtype),
        x=np.empty(r.budget + 32, dtype),
        cells=np.empty((block, padded(len(g.held)) + 8)),
        opened=np.empty((block, len(g.start)), np.uint32),
        draw=np.empty((block, runs), np.uint32),
        odds=np.empty((block, runs)),
        slopes=np.zeros((block, padded(len(g.held)))),
        sizes=np.empty((block, 4), np.int64),
        measures=np.empty((block, 3)),
    )
