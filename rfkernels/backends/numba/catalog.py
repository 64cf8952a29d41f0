"""Estimates over a catalog, compiled: the same numbers as `rfkernels.catalog.estimates`, which specifies them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from rfkernels.backends.numba import catalog_plans, catalog_sums, threads
from rfkernels.backends.numba.catalog_exact import exact
from rfkernels.backends.numba.catalog_layout import lists, prepared, scratch
from rfkernels.catalog.records import Estimate, Evaluated, Table

_Part = Callable[[slice], Any]

_BLOCK, _BLOCK_ITEMS = 128, 1 << 20


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


def _run(step: Callable[..., int], table: Table, queries: Any, budget: int, seed: int, out: _Part) -> None:
    """Plan blocks of queries and run a step on each, a few blocks a task; blocks keep what they share in a cache."""
    g, r, keep = prepared(table, budget, seed)
    wide = np.ascontiguousarray(queries, np.float64)
    own, count = np.ascontiguousarray(queries, table.rows.dtype), threads.thread_count()
    block = max(1, min(_BLOCK, _BLOCK_ITEMS // budget, -(-len(own) // count)))
    share = max(block, min(8 * block, -(-len(own) // count)))

    def task(first: int) -> int:
        last = min(first + share, len(own))
        size = min(block, last - first)
        s, n, products = scratch(g, r), lists(g, r, size, own.shape[1]), np.empty((size, budget + 8), own.dtype)
        for i in range(first, last, block):
            part = slice(i, min(i + block, last))
            catalog_plans.choose(r, g, s, n, wide[part], i)
            step(r, g, s, n, own[part], products, out(part))
        return 0

    threads.run([partial(task, first) for first in range(0, len(own), share)], count)
    del keep


__all__ = ["estimate", "evaluate", "exact"]
