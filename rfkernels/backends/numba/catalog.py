"""Estimates over a catalog, compiled: the same numbers as `rfkernels.catalog.estimates`, which specifies them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rfkernels.backends.numba import catalog_scans, catalog_sums, threads
from rfkernels.backends.numba.catalog_exact import exact
from rfkernels.backends.numba.catalog_guesses import Prepared, prepared, sizes, steps
from rfkernels.backends.numba.catalog_layout import Lists, Rules, Scratch, dots, kept, lists, plain, rules, scratch
from rfkernels.backends.numba.catalog_looks import Codes, Looks, codes, looks
from rfkernels.backends.numba.catalog_plans import choose
from rfkernels.backends.numba.jit import machine
from rfkernels.backends.numba.records import Held
from rfkernels.catalog.estimates import from_rows
from rfkernels.catalog.means import MILD, meant
from rfkernels.catalog.plan import SHARED, guess
from rfkernels.catalog.records import Estimate, Table
from rfkernels.catalog.scans import Shares, limits, shares

_BLOCK, _BLOCK_ITEMS = SHARED, 1 << 20
"""Queries that pass over the groups together, a power of two and at most SHARED; fewer if their items are many."""

_TOGETHER = 8
"""Queries that choose codes to read before any are read: what they choose stays in a cache."""

_BUDGETS = 64
"""Budgets that a table keeps in mind what calls have in common of."""

_HALVED = 1.1
"""What a query of half a block may cost relative to one of a whole block, which reads more rows from a cache."""


_Given = tuple[Any, ...]
"""Numbers of queries in their batch, these of the dtype of rows and in float64, and their sizes."""


class Use(Enum):
    """What a call is for: sums, from codes or from rows, or means of values."""

    SUMS = auto()
    SUMS_OF_ROWS = auto()
    MEANS = auto()


class _Common(NamedTuple):
    """What calls of a table have in common: rules, what may be spent where codes are read, and the most of that.

    `limits` are the sizes of the largest queries that each of `spent` is for, as `sizes` has it.
    """

    rules: Held[Rules]
    limits: list[int]
    spent: tuple[Shares | None, ...]
    most: Shares | None
    coded: Held[Rules] | None
    codes: Held[Codes] | None


class Call(NamedTuple):
    """What queries of a call have in common."""

    table: Table
    known: Prepared
    common: _Common
    use: Use
    budget: int
    seed: Any


class _Memory(NamedTuple):
    """What a thread reads codes with: memory, and the addresses of codes and of that."""

    scratch: Held[Scratch]
    lists: Held[Lists]
    looks: Held[Looks]
    addresses: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of arrays."""
        return self.scratch.nbytes + self.lists.nbytes + self.looks.nbytes


def call_of(table: Table, budget: int, seed: int, use: Use) -> Call:
    """Return what queries of a call have in common."""
    known, key = prepared(table), (machine(), budget, use)
    found = known.common.get(key)
    if found is None:
        found = remember(known, key, _common(table, known, budget, use))
    return Call(table, known, found, use, budget, np.uint64(seed))


def remember(known: Prepared, key: tuple[Any, int, Any], found: Any) -> Any:
    """Keep what calls of a budget have in common, and return it."""
    if len(known.common) >= _BUDGETS:
        known.common.clear()
    known.common[key] = found
    return found


def _common(table: Table, known: Prepared, budget: int, use: Use) -> _Common:
    spent: tuple[Shares | None, ...] = ()
    if use is not Use.SUMS_OF_ROWS:
        spent = (shares if use is Use.SUMS else meant)(table, budget, len(known.moved))
    some = [x for x in spent if x is not None]
    if not some:
        return _Common(rules(table, known), [], (), None, None, None)
    most = Shares(*map(max, *some, some[0]))
    ends = [steps(x) for x in (limits(table) if use is Use.SUMS else limits(table, MILD))]
    return _Common(rules(table, known), ends, spent, most, rules(table, known, True), codes(table, known))


def estimate(table: Table, queries: Any, budget: int, seed: int, coded: bool = True) -> Estimate:
    """Estimate log Σ exp(q·y) for queries (queries, dim), as `rfkernels.catalog.estimates.estimate` specifies."""
    given = call_of(table, budget, seed, Use.SUMS if coded else Use.SUMS_OF_ROWS)
    out = np.empty((len(queries), 3))
    run(partial(_estimate, given), given, queries, out)
    log, error, dots = out.T
    return Estimate(log, error, dots.astype(np.int64))


def _estimate(call: Call, numbers: Any, queries: Any, wide: Any, sized: Any, out: Any) -> None:
    if step(_from_codes, _from_rows, call, (numbers, queries, wide, sized), (out,), out[:, 0]) == 0:
        return
    for i in np.flatnonzero(np.isnan(out[:, 0])):  # weights beside others, or squares of these, do not fit float64
        known = guess(call.table, wide[i])
        out[i] = from_rows(call.table, wide[i], known, call.budget, int(call.seed), int(numbers[i]))


def _from_codes(at: tuple[int, ...], spent: Shares, *given: Any) -> int:
    return int(catalog_scans.estimate(*at, *given))


def _from_rows(at: tuple[int, ...], *given: Any) -> None:
    catalog_sums.estimate(*at, *given)


def step(
    by_codes: Callable[..., int],
    by_rows: Callable[..., None],
    call: Call,
    given: _Given,
    out: tuple[Any, ...],
    found: Any,
) -> int:
    """Estimate from codes what these are of use for, and from rows what is left, where what is `found` is no number.

    Functions are called with addresses of records, what both know of queries, and where results are written. Returns
    for how many rows are read.
    """
    lost = _scan_kinds(by_codes, call, given, out, found)
    for part in () if lost == 0 else _pieces(call, given[0], np.flatnonzero(np.isnan(found))):
        own, results = tuple(x[part] for x in given), tuple(x[part] for x in out)
        _read_rows(by_rows, call, own, results)
        for x, result in zip(out, results, strict=True):
            x[part] = result
    return lost


def _scan_kinds(by_codes: Callable[..., int], call: Call, given: _Given, out: tuple[Any, ...], found: Any) -> int:
    """Estimate from codes for queries of all kinds; return of how many nothing was found."""
    spent, ends, every = call.common.spent, call.common.limits, given[-1].tolist()
    first, last = bisect_left(ends, min(every)), bisect_left(ends, max(every))
    if first == last and first < len(spent) and spent[first] is not None:
        return _scan(by_codes, call, first, given, out)
    found[:] = np.nan
    if first == last:
        return len(every)
    kinds, lost = np.searchsorted(ends, every), 0
    for kind in np.unique(kinds).tolist():
        own = kinds == kind
        results = tuple(x[own] for x in out)
        lost += _scan(by_codes, call, kind, tuple(x[own] for x in given), results)
        for x, result in zip(out, results, strict=True):
            x[own] = result
    return lost


def _scan(by_codes: Callable[..., int], call: Call, kind: int, given: _Given, out: tuple[Any, ...]) -> int:
    """Do something with what codes say for queries of a kind; return of how many they say nothing."""
    (numbers, queries, wide, sized), (_, _, spent, most, r, c) = given, call.common
    own = spent[kind] if kind < len(spent) else None
    if own is None or most is None or r is None or c is None:
        return len(queries)
    memory, (v, places) = _memory(call, most, c, min(_TOGETHER, len(queries))), call.known.guesses.at(sized)
    at = r.address, call.known.groups.address, v.address, *memory.addresses
    return by_codes(at, own, places, numbers, tuple(own), call.seed, wide, queries, *out)


def _memory(call: Call, most: Shares, c: Held[Codes], together: int) -> _Memory:
    """Return memory for so many queries, of any kind, so that a batch of several uses what is there."""
    g, dtype = call.known.groups, call.table.rows.dtype

    def made() -> _Memory:
        own = scratch(g.record), lists(g.record, most.scanned, together, True), looks(g.record, *most, dtype)
        return _Memory(*own, (c.address, *(x.address for x in own)))

    return kept(call.use.name, (call.common, together), made)


def _read_rows(by_rows: Callable[..., None], call: Call, given: _Given, out: tuple[Any, ...]) -> None:
    """Choose what queries take from rows, and do something with it; records are there as long as this runs."""
    numbers, queries, wide, sized = given
    table, known, budget = call.table, call.known, call.budget
    g, r = known.groups, call.common.rules
    s, n, d = scratch(g.record), lists(g.record, budget, len(queries)), dots(budget, len(queries), table.rows.dtype)
    (v, places), left = known.guesses.at(sized), budget - sum(table.means.shape)
    choose(r.address, g.address, v.address, s.address, n.address, places, wide, left, call.seed, numbers)
    by_rows((r.address, g.address, s.address, n.address, d.address), queries, *out)


def _pieces(call: Call, numbers: Any, places: Any) -> list[Any]:
    """Cut places of queries where blocks that read rows would end."""
    cuts = np.flatnonzero(np.diff(numbers[places] // SHARED)) + 1
    most = max(1, _BLOCK_ITEMS // call.budget)
    return [part[i : i + most] for part in np.split(places, cuts) for i in range(0, len(part), most)]


def even(queries: int, count: int) -> int:
    """Return how many queries make a block where blocks need not be a power of two: as many on each thread."""
    return max(1, -(-queries // (count * max(1, -(-queries // (count * _BLOCK))))))


def _block(queries: int, most: int, count: int) -> int:
    """Return how many queries make a block, a power of two up to some number: large ones, with work for all threads."""
    block = min(1 << most.bit_length() - 1, 1 << (-(-queries // count) - 1).bit_length())

    def longest(size: int) -> int:
        whole, rest = divmod(queries, size)
        return max(-(-whole // count) * size, whole // count * size + rest)

    return block // 2 if block > 1 and _HALVED * longest(block // 2) < longest(block) else block


def run(work: Callable[..., None], call: Call, queries: Any, *out: Any) -> None:
    """Do something with blocks of queries, and of the arrays that results are written to, on threads."""
    g, r, dtype = call.known.groups, call.common.rules, call.table.rows.dtype
    own, wide = plain(queries, dtype), plain(queries, np.float64)
    count = threads.thread_count() if len(own) > 1 else 1
    if not call.common.spent:
        block = _block(len(own), min(_BLOCK, max(1, _BLOCK_ITEMS // call.budget)), count)
    else:
        block = even(len(own), count)

    def task(first: int, queries: Any, wide: Any, *out: Any) -> int:
        work(np.arange(first, first + len(wide)), queries, wide, sizes(r.record.wide_dots, g, wide), *out)
        return 0

    if 0 < len(own) <= block:
        task(0, own, wide, *out)
    else:
        parts = [slice(first, first + block) for first in range(0, len(own), block)]
        threads.run([partial(task, part.start, *(x[part] for x in (own, wide, *out))) for part in parts], count)


__all__ = ["Call", "Use", "call_of", "estimate", "even", "exact", "remember", "run", "step"]
