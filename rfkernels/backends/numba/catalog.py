"""Estimates over a catalog, compiled: the same numbers as `rfkernels.catalog.estimates`, which specifies them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from rfkernels.backends.numba import catalog_sums, threads
from rfkernels.backends.numba.catalog_exact import exact
from rfkernels.backends.numba.catalog_guesses import prepared, sizes
from rfkernels.backends.numba.catalog_layout import dots, lists, plain, rules, scratch
from rfkernels.backends.numba.catalog_plans import choose
from rfkernels.catalog.plan import SHARED
from rfkernels.catalog.records import Estimate, Evaluated, Table

_Part = Callable[[slice], Any]

_BLOCK, _BLOCK_ITEMS = SHARED, 1 << 20
"""Queries that pass over the groups together, a power of two and at most SHARED; fewer if their items are many."""

_HALVED = 1.1
"""What a query of half a block may cost relative to one of a whole block, which reads more rows from a cache."""


def estimate(table: Table, queries: Any, budget: int, seed: int) -> Estimate:
    """Estimate log Σ exp(q·y) for queries (queries, dim), as `rfkernels.catalog.estimates.estimate` specifies."""
    out = np.empty((len(queries), 3))
    _run(catalog_sums.estimate, table, queries, budget, seed, lambda own: out[own])
    return Estimate(out[:, 0], out[:, 1], out[:, 2].astype(np.int64) + sum(table.means.shape))


def evaluate(table: Table, queries: Any, budget: int, seed: int) -> Evaluated:
    """Return the items that `estimate` takes, as `rfkernels.catalog.estimates.evaluate` specifies."""
    rows = np.empty((len(queries), budget), np.int32)
    logits, log_weights = np.empty((2, *rows.shape))
    _run(catalog_sums.evaluate, table, queries, budget, seed, lambda own: (rows[own], logits[own], log_weights[own]))
    return Evaluated(rows, logits, log_weights)


def _block(queries: int, most: int, count: int) -> int:
    """Return how many queries make a block, a power of two up to some number: large ones, with work for all threads."""
    block = min(1 << most.bit_length() - 1, 1 << (-(-queries // count) - 1).bit_length())

    def longest(size: int) -> int:
        whole, rest = divmod(queries, size)
        return max(-(-whole // count) * size, whole // count * size + rest)

    return block // 2 if block > 1 and _HALVED * longest(block // 2) < longest(block) else block


def _run(step: Callable[..., int], table: Table, queries: Any, budget: int, seed: int, out: _Part) -> None:
    """Choose what the queries of a block take, and run a step on it; blocks on threads."""
    known = prepared(table)
    g, r, mixed = known.groups, rules(table, known), np.uint64(seed)
    dtype, count = table.rows.dtype, threads.thread_count()
    own, wide = plain(queries, dtype), plain(queries, np.float64)
    block = _block(len(own), min(_BLOCK, max(1, _BLOCK_ITEMS // budget)), count)

    def task(first: int) -> int:
        part = slice(first, first + block)
        s, n, d = scratch(g.record), lists(g.record, budget, block), dots(budget, block, dtype)
        v, places = known.guesses.at(sizes(r.record.wide_dots, g, wide[part]))
        choose(r.address, g.address, v.address, s.address, n.address, places, wide[part], budget, mixed, first)
        return step(r.address, g.address, s.address, n.address, d.address, own[part], out(part))

    threads.run([partial(task, first) for first in range(0, len(own), block)], count)


__all__ = ["estimate", "evaluate", "exact"]
