"""Estimates over a catalog, compiled: the same numbers as `rfkernels.catalog.estimates`, which specifies them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rfkernels.backends.numba import catalog_scans, catalog_sums, threads
from rfkernels.backends.numba.catalog_exact import exact
from rfkernels.backends.numba.catalog_guesses import Prepared, prepared, sizes
from rfkernels.backends.numba.catalog_layout import Rules, dots, lists, plain, rules, scratch
from rfkernels.backends.numba.catalog_looks import Codes, codes, looks
from rfkernels.backends.numba.catalog_plans import choose
from rfkernels.backends.numba.jit import machine
from rfkernels.backends.numba.records import Held
from rfkernels.catalog.plan import SHARED
from rfkernels.catalog.records import Estimate, Evaluated, Table
from rfkernels.catalog.scans import Shares, shares

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


class _Common(NamedTuple):
    """What calls of a table have in common: rules, what may be spent where codes are read, and the most of that."""

    rules: Held[Rules]
    spent: tuple[Shares | None, ...]
    most: Shares | None
    coded: Held[Rules] | None
    codes: Held[Codes] | None


class _Call(NamedTuple):
    """What queries of a call have in common."""

    table: Table
    known: Prepared
    common: _Common
    budget: int
    seed: Any


def _call(table: Table, budget: int, seed: int, coded: bool) -> _Call:
    known, key = prepared(table), (machine(), budget, coded)
    found = known.common.get(key)
    if found is None:
        if len(known.common) >= _BUDGETS:
            known.common.clear()
        found = known.common[key] = _common(table, known, budget, coded)
    return _Call(table, known, found, budget, np.uint64(seed))


def _common(table: Table, known: Prepared, budget: int, coded: bool) -> _Common:
    spent = shares(table, budget, len(known.moved)) if coded else ()
    some = [x for x in spent if x is not None]
    if not some:
        return _Common(rules(table, known), (), None, None, None)
    most = Shares(*map(max, *some, some[0]))
    return _Common(rules(table, known), spent, most, rules(table, known, True), codes(table, known))


def estimate(table: Table, queries: Any, budget: int, seed: int, coded: bool = True) -> Estimate:
    """Estimate log Σ exp(q·y) for queries (queries, dim), as `rfkernels.catalog.estimates.estimate` specifies."""
    call = _call(table, budget, seed, coded)
    out = np.empty((len(queries), 3))
    _run(partial(_estimate, call), call, queries, lambda own: (out[own],))
    return Estimate(out[:, 0], out[:, 1], out[:, 2].astype(np.int64) + sum(table.means.shape))


def _estimate(call: _Call, numbers: Any, queries: Any, wide: Any, sized: Any, out: Any) -> None:
    """Estimate from codes what these are of use for, and from rows what is left."""
    given, spent = (numbers, queries, wide, sized), call.common.spent
    if not spent:
        _sum(catalog_sums.estimate, call, given, out)
        return
    every = sized.tolist()
    first, last = bisect_left(call.known.limits, min(every)), bisect_left(call.known.limits, max(every))
    if first < last or first >= len(spent) or spent[first] is None:
        out[:] = np.nan
    lost = _scan(call, first, given, out) if first == last else _scan_kinds(call, given, out)
    if not lost:
        return
    for part in _pieces(call, numbers, np.flatnonzero(~np.isfinite(out[:, 0]))):
        found = np.empty((len(part), 3))
        _sum(catalog_sums.estimate, call, tuple(x[part] for x in given), found)
        out[part] = found


def _scan_kinds(call: _Call, given: _Given, out: Any) -> int:
    """Do as `_scan` for queries of several kinds."""
    kinds, lost = np.searchsorted(call.known.limits, given[-1]), 0
    for kind in np.unique(kinds).tolist():
        own = kinds == kind
        found = out[own]
        lost += _scan(call, kind, tuple(x[own] for x in given), found)
        out[own] = found
    return lost


def _pieces(call: _Call, numbers: Any, places: Any) -> list[Any]:
    """Cut places of queries where blocks that read rows would end."""
    cuts = np.flatnonzero(np.diff(numbers[places] // SHARED)) + 1
    most = max(1, _BLOCK_ITEMS // call.budget)
    return [part[i : i + most] for part in np.split(places, cuts) for i in range(0, len(part), most)]


def _scan(call: _Call, kind: int, given: _Given, out: Any) -> int:
    """Choose what queries of a kind take, and estimate from its codes; return how many there is no estimate of."""
    numbers, queries, wide, sized = given
    g, (_, spent, most, r, c) = call.known.groups, call.common
    own = spent[kind] if kind < len(spent) else None
    if own is None or most is None or r is None or c is None:
        return len(queries)
    # Memory is that of all kinds of queries, so that a batch of several uses what is there.
    s, n = scratch(g.record), lists(g.record, most.scanned, min(_TOGETHER, len(queries)), True)
    k = looks(g.record, *most, call.table.rows.dtype)
    v, places = call.known.guesses.at(sized)
    at = r.address, g.address, v.address, c.address, s.address, n.address, k.address
    return int(catalog_scans.estimate(*at, places, numbers, tuple(own), call.seed, wide, queries, out))


def evaluate(table: Table, queries: Any, budget: int, seed: int) -> Evaluated:
    """Return the items that `estimate` takes without codes, as `rfkernels.catalog.estimates.evaluate` specifies."""
    rows = np.empty((len(queries), budget), np.int32)
    logits, log_weights = np.empty((2, *rows.shape))
    call = _call(table, budget, seed, False)

    def step(numbers: Any, own: Any, wide: Any, sized: Any, *out: Any) -> None:
        _sum(catalog_sums.evaluate, call, (numbers, own, wide, sized), out)

    _run(step, call, queries, lambda own: (rows[own], logits[own], log_weights[own]))
    return Evaluated(rows, logits, log_weights)


def _even(queries: int, count: int) -> int:
    """Return how many queries make a block where blocks need not be a power of two: as many on each thread."""
    return max(1, -(-queries // (count * max(1, -(-queries // (count * _BLOCK))))))


def _block(queries: int, most: int, count: int) -> int:
    """Return how many queries make a block, a power of two up to some number: large ones, with work for all threads."""
    block = min(1 << most.bit_length() - 1, 1 << (-(-queries // count) - 1).bit_length())

    def longest(size: int) -> int:
        whole, rest = divmod(queries, size)
        return max(-(-whole // count) * size, whole // count * size + rest)

    return block // 2 if block > 1 and _HALVED * longest(block // 2) < longest(block) else block


def _run(step: Callable[..., None], call: _Call, queries: Any, out: Callable[[slice], Any]) -> None:
    """Do something with blocks of queries, on threads."""
    g, r, dtype = call.known.groups, call.common.rules, call.table.rows.dtype
    own, wide = plain(queries, dtype), plain(queries, np.float64)
    count = threads.thread_count() if len(own) > 1 else 1
    if not call.common.spent:
        block = _block(len(own), min(_BLOCK, max(1, _BLOCK_ITEMS // call.budget)), count)
    else:
        block = _even(len(own), count)

    def task(first: int) -> int:
        part = slice(first, first + block)
        numbers = np.arange(first, min(first + block, len(own)))
        step(numbers, own[part], wide[part], sizes(r.record.wide_dots, g, wide[part]), *out(part))
        return 0

    threads.run([partial(task, first) for first in range(0, len(own), block)], count)


def _sum(step: Callable[..., int], call: _Call, given: _Given, out: Any) -> None:
    """Choose what queries take, and run a step on its rows."""
    numbers, queries, wide, sized = given
    table, known, budget = call.table, call.known, call.budget
    g, r = known.groups, call.common.rules
    s, n, d = scratch(g.record), lists(g.record, budget, len(queries)), dots(budget, len(queries), table.rows.dtype)
    (v, places), left = known.guesses.at(sized), budget - sum(table.means.shape)
    choose(r.address, g.address, v.address, s.address, n.address, places, wide, left, call.seed, numbers)
    step(r.address, g.address, s.address, n.address, d.address, queries, out)


__all__ = ["estimate", "evaluate", "exact"]
