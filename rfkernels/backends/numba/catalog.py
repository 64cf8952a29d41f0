"""Estimates over a catalog, compiled: the same numbers as `rfkernels.catalog.estimates`, which specifies them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from rfkernels.backends.numba import catalog_plans, catalog_sums, threads
from rfkernels.backends.numba.catalog_kernels import weight_kernels
from rfkernels.backends.numba.catalog_layout import lists, prepared, scratch
from rfkernels.backends.numba.jit import machine
from rfkernels.catalog.records import Estimate, Evaluated, Table

_Part = Callable[[slice], Any]

_BLOCK, _BLOCK_ITEMS = 128, 1 << 20
_EXACT_QUERIES, _EXACT_ROWS, _PART = 64, 8192, 512


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


def exact(table: Table, queries: Any) -> Estimate:
    """Return log Σ exp(q·y) over all items: products by NumPy, a block of rows and queries at a time, sums compiled."""
    rows, own = table.rows, np.ascontiguousarray(queries, table.rows.dtype)
    state = np.full((len(own), 2), [-np.inf, 0.0])
    used = np.flatnonzero(table.ids >= 0)
    end = int(used[-1]) + 1 if len(used) else 0
    for i in range(0, len(own), _EXACT_QUERIES):
        part = own[i : i + _EXACT_QUERIES]
        logits = np.full((len(part), _EXACT_ROWS), -np.inf, own.dtype)
        for first in range(0, end, _EXACT_ROWS):
            width = min(_EXACT_ROWS, end - first)
            np.matmul(part, rows[first : first + width].T, out=logits[:, :width])
            logits[:, :width][:, table.ids[first : first + width] < 0] = -np.inf
            logits[:, width:] = -np.inf
            _absorb(logits, state[i : i + _EXACT_QUERIES])
    with np.errstate(divide="ignore"):
        return Estimate(state[:, 0] + np.log(state[:, 1]), np.zeros(len(own)), np.full(len(own), len(used)))


def _absorb(logits: Any, state: Any) -> None:
    weights, count = weight_kernels(machine(), 8 * logits.itemsize), threads.thread_count()
    kernels = weights.addresses["largest"], weights.addresses["sum"], _PART
    share = -(-len(logits) // count)
    parts = [slice(i, i + share) for i in range(0, len(logits), share)]
    work = [partial(catalog_sums.absorb, *kernels, logits[x], np.empty(2, logits.dtype), state[x]) for x in parts]
    threads.run(work, count)


def _run(step: Callable[..., int], table: Table, queries: Any, budget: int, seed: int, out: _Part) -> None:
    """Plan blocks of queries and run a step on each, a few blocks a task; blocks keep what they share in a cache."""
    g, r, keep = prepared(table, budget, seed)
    own, count = np.ascontiguousarray(queries, table.rows.dtype), threads.thread_count()
    block = max(1, min(_BLOCK, _BLOCK_ITEMS // budget, -(-len(own) // count)))
    share = max(block, min(8 * block, -(-len(own) // count)))

    def task(first: int) -> int:
        last = min(first + share, len(own))
        s, n = scratch(g, r, own.shape[1]), lists(g, r, min(block, last - first), own)
        for i in range(first, last, block):
            part = slice(i, min(i + block, last))
            catalog_plans.choose(r, g, s, n, own[part], i)
            step(r, g, s, n, own[part], out(part))
        return 0

    threads.run([partial(task, first) for first in range(0, len(own), share)], count)
    del keep
