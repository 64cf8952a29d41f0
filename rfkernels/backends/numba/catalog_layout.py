"""What compiled estimates over a catalog know and write to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np

from rfkernels.backends.numba.catalog_groups import Groups, padded
from rfkernels.backends.numba.catalog_guesses import Guesses, Prepared
from rfkernels.backends.numba.catalog_kernels import AHEAD, TOGETHER, dot_kernel, weight_kernels
from rfkernels.backends.numba.catalog_plan_kernels import plan_kernels
from rfkernels.backends.numba.compiling import jit
from rfkernels.backends.numba.jit import Machine, compiled_once, machine
from rfkernels.backends.numba.records import (
    ElementRows,
    Elements,
    Flags,
    FloatRows,
    Floats,
    Held,
    IntRows,
    Ints,
    LongRows,
    Longs,
    NumberRows,
    view,
)
from rfkernels.catalog import aligned, plan, rays, trust
from rfkernels.catalog.codes import BLOCK
from rfkernels.catalog.records import Table

_KEPT = 1 << 24
"""Bytes of working memory that a thread keeps between calls, at most."""

GROUPS_A_RUN = 6
"""Groups for each run that could be drawn, up to which plans are made group by group."""

_VECTORS = 4
"""Vectors of a cell's groups that are looked through one after the other."""


class Rules(NamedTuple):
    """Addresses of kernels, sizes, and the numbers of the specification; for sums from rows, or from codes.

    `run` is the number of items in a run, `listed` whether rows are listed, which codes do not need, and `widened`
    whether errors of few checks are.
    """

    dots: int
    pass_runs: int
    wide_dots: int
    block_dots: int
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
    survey: int
    before: int
    spread: int
    halvings: int
    groups_a_run: int
    rows: int
    row_stride: int
    ahead: int
    shared: int
    per_nat: float
    fewest_runs: int
    trusted: float
    floor: float
    few: float
    run: int
    listed: int
    widened: int


class Scratch(NamedTuple):
    """Memory of a thread, of which each query uses all in turn; arrays of cells are padded to whole vectors.

    Of cells: `share` is what the weights of its groups are multiplied by and `base` twice the log of that, `far` and
    `noise` are sums over groups that are not opened, `score` is the largest second moment; `reached` and `ends` are how
    far runs have come before each cell, and how many begin before its end; `turn` is the next group in the order of
    scores, `taken` how many groups are opened, `items` how many items are left; `bucket` and `following` are lists of
    cells by the bucket of their next group, which begin in `first`; `touched` lists cells with candidates.

    Of groups: `mass` is the guessed sum of weights, `opened` whether all items are taken, `offset` the item that runs
    begin with, `most` the most runs that a query of the block takes. `candidates` are groups that may be opened and
    `depths` their buckets; `sizes` and `sums` are items, weights and noises of each bucket. Where plans are made group
    by group, `depths` are buckets of all of them, `odds` weights of an item, and `stops` and `passed` what `ends` and
    `reached` are of cells; `tallies` are sums over each bucket.

    `numbers` passes numbers to kernels. Of the queries of a block, `queues` are addresses that they move on
    from, and `waiting` the groups that they wait for. Along a query, `own` is its direction as items are
    compared, `near` are the nearest cells, `away` how far and `across` products with their centres; `rays` are groups.
    """

    share: Floats
    base: Floats
    far: Floats
    noise: Floats
    score: Floats
    reached: Floats
    items: Floats
    bucket: Ints
    ends: Ints
    turn: Ints
    taken: Ints
    touched: Ints
    following: Ints
    first: Ints
    mass: Floats
    opened: Flags
    offset: Ints
    most: Ints
    candidates: Ints
    depths: Ints
    sizes: Longs
    sums: FloatRows
    odds: Floats
    stops: Ints
    passed: Floats
    tallies: FloatRows
    numbers: Floats
    queues: LongRows
    waiting: Ints
    own: Floats
    near: Longs
    away: Floats
    across: Floats
    rays: Longs


class Lists(NamedTuple):
    """What the queries of a block take: arrays whose first axis is the query.

    `places` are rows: those of opened groups, up to a multiple of 4, then those of runs, then zeros. `slopes` are of
    cells, `draw` has the group of each run and then, where rows are read, a number that is no group's, and `odds` the
    weight of its items.
    """

    places: IntRows
    cells: FloatRows
    opened: NumberRows
    draw: NumberRows
    odds: FloatRows
    slopes: FloatRows
    sizes: LongRows
    measures: FloatRows


class Dots(NamedTuple):
    """Logits of the queries of a block, one for each place, room for weights of one query, and numbers of kernels."""

    products: ElementRows
    weights: Elements
    top: Elements


_local = threading.local()


def rules(table: Table, own: Prepared, coded: bool = False) -> Held[Rules]:
    """Return the rules for a table on the machine of this call; they and their code are there as long as `own` is."""
    m = machine()
    found = own.rules.get((m, coded))
    if found is None:  # of threads that compile at once one comes first, and what it found is never replaced
        found = own.rules.setdefault((m, coded), _rules(m, table, own.groups.record, coded))
    return cast(Held[Rules], found[0])


def _rules(m: Machine, table: Table, g: Groups, coded: bool) -> tuple[Held[Rules], Any]:
    """Return rules, and the code that they know by address."""
    code, addresses = _addresses(m, 8 * table.rows.dtype.itemsize, table.rows.shape[1])
    values = (
        *addresses,
        halvings(g.widest, m.lanes(64)),
        GROUPS_A_RUN,
        table.rows.ctypes.data,
        table.rows.strides[0],
        TOGETHER * (AHEAD + 1),
        plan.SHARED,
        float(plan.PER_NAT),
        plan.FEWEST_RUNS,
        plan.TRUSTED,
        plan.FLOOR,
        trust.FEW,
        BLOCK if coded else plan.RUN,
        int(not coded),
        0,
    )
    return Held(Rules._make(values)), code


@compiled_once
def _addresses(m: Machine, bits: int, dim: int) -> tuple[Any, Any]:
    code = dot_kernel(m, bits, dim), dot_kernel(m, 64, dim), weight_kernels(m, bits), plan_kernels(m)
    names = (
        ("dots", "pass_runs"),
        ("near_dots", "block_dots"),
        ("largest", "exponentials", "sum", "add_runs"),
        ("shares", "buckets", "totals", "offsets", "draw", "find", "survey", "before", "spread"),
    )
    return code, tuple(part.addresses[name] for part, own in zip(code, names, strict=True) for name in own)


def plain(x: Any, dtype: Any) -> Any:
    """Return an array in C order that may be written to: for others Numba would compile all anew."""
    x = np.ascontiguousarray(x, dtype)
    return x if x.flags.writeable else x.copy()


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


M = TypeVar("M", bound=_Sized)


def kept(name: str, key: tuple[Any, ...], make: Callable[[], M]) -> M:
    """Return memory for a thread: what it used last under a name, if the key is the same."""
    known = getattr(_local, name, None)
    if known is not None and known[0] == key:
        return cast(M, known[1])
    made = make()
    setattr(_local, name, (key, made) if made.nbytes <= _KEPT else None)
    return made


def scratch(g: Groups) -> Held[Scratch]:
    """Return memory for a query."""
    return kept("scratch", (len(g.start), len(g.held), len(g.means)), lambda: Held(_scratch(g)))


def lists(g: Groups, budget: int, block: int, coded: bool = False) -> Held[Lists]:
    """Return memory for what a block of queries takes; without rows where codes are read."""
    key = len(g.start), len(g.held), len(g.means), budget, block
    run, listed = (BLOCK, 0) if coded else (plan.RUN, budget)
    return kept("coded" if coded else "lists", key, lambda: Held(_lists(g, budget // run + 8, listed, block)))


def dots(budget: int, block: int, dtype: Any) -> Held[Dots]:
    """Return memory for logits of a block of queries."""
    return kept("dots", (budget, block, dtype), lambda: Held(_dots(budget, block, dtype), dtype))


def _scratch(g: Groups) -> Scratch:
    groups, cells = len(g.size) + 8, padded(len(g.held)) + 8
    share, base, far, noise, score, reached, items = (aligned.zeros(cells) for _ in range(7))
    bucket, ends, turn, taken, touched, following = (aligned.zeros(cells, np.int32) for _ in range(6))
    offset, most, candidates, depths = (aligned.zeros(groups, np.int32) for _ in range(4))
    return Scratch(
        *(share, base, far, noise, score, reached, items, bucket, ends, turn, taken, touched, following),
        first=aligned.empty(plan.BUCKETS, np.int32),
        mass=aligned.zeros(groups),
        opened=aligned.zeros(groups, np.bool_),
        offset=offset,
        most=most,
        candidates=candidates,
        depths=depths,
        sizes=aligned.empty(plan.BUCKETS, np.int64),
        sums=aligned.empty((2, plan.BUCKETS)),
        odds=aligned.zeros(groups),
        stops=aligned.zeros(groups, np.int32),
        passed=aligned.zeros(groups + 1),
        tallies=aligned.zeros((plan.BUCKETS, 4)),
        numbers=aligned.empty(8),
        queues=aligned.empty((2, plan.SHARED), np.int64),
        waiting=aligned.empty(plan.SHARED, np.int32),
        own=aligned.empty(g.means.shape[1]),
        near=aligned.empty(rays.NEAR, np.int64),
        away=aligned.empty(rays.NEAR),
        across=aligned.empty(rays.NEAR),
        rays=aligned.empty(rays.LENGTHS, np.int64),
    )


def halvings(groups: int, lanes: int) -> int:
    """Return how often so many groups are halved until _VECTORS hold them."""
    return (groups // (_VECTORS * lanes)).bit_length()


def _lists(g: Groups, runs: int, listed: int, block: int) -> Lists:
    return Lists(
        places=aligned.empty((block, listed + TOGETHER * (AHEAD + 1) + 8), np.int32),
        cells=aligned.empty((block, padded(len(g.held)) + 8)),
        opened=aligned.empty((block, len(g.start) + 8), np.uint32),
        draw=aligned.empty((block, runs), np.uint32),
        odds=aligned.empty((block, runs)),
        slopes=aligned.zeros((block, padded(len(g.held)))),
        sizes=aligned.empty((block, 4), np.int64),
        measures=aligned.empty((block, 3)),
    )


def _dots(budget: int, block: int, dtype: Any) -> Dots:
    return Dots(aligned.empty((block, budget + 32), dtype), aligned.empty(budget + 32, dtype), aligned.empty(2, dtype))


@jit
def at(rules: int, groups: int, guesses: int, scratch: int) -> tuple[Rules, Groups, Guesses, Scratch]:
    """Return the records at some addresses."""
    return view(Rules, rules), view(Groups, groups), view(Guesses, guesses), view(Scratch, scratch)
