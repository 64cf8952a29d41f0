"""Estimates over a catalog, compiled: the same numbers as `rfkernels.catalog.estimates`, which specifies them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from rfkernels.backends.numba import catalog_steps, threads
from rfkernels.backends.numba.catalog_kernels import AHEAD, TOGETHER, dot_kernel, weight_kernels
from rfkernels.backends.numba.catalog_steps import Groups, Lists, Rules, Scratch
from rfkernels.backends.numba.jit import machine
from rfkernels.catalog import estimates, plan
from rfkernels.catalog.records import Estimate, Evaluated, Table

_BLOCK, _BLOCK_ITEMS = 128, 1 << 20
_EXACT_QUERIES, _EXACT_ROWS, _PART = 64, 8192, 512
_STRETCH_BYTES = 1 << 19


def estimate(table: Table, queries: Any, budget: int, seed: int) -> Estimate:
    """Estimate log Σ exp(q·y) for queries (queries, dim), as `rfkernels.catalog.estimates.estimate` specifies."""
    out = np.empty((len(queries), 3))
    _run(catalog_steps.estimate, table, queries, budget, seed, lambda own: out[own])
    return Estimate(out[:, 0], out[:, 1], out[:, 2].astype(np.int64) + sum(table.means.shape))


def evaluate(table: Table, queries: Any, budget: int, seed: int) -> Evaluated:
    """Return the items that `estimate` takes, as `rfkernels.catalog.estimates.evaluate` specifies."""
    rows = np.empty((len(queries), budget), np.int32)
    logits, log_weights = np.empty((2, *rows.shape))
    _run(catalog_steps.evaluate, table, queries, budget, seed, lambda own: (rows[own], logits[own], log_weights[own]))
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
    work = [partial(catalog_steps.absorb, *kernels, logits[x], np.empty(2, logits.dtype), state[x]) for x in parts]
    threads.run(work, count)


def _run(
    step: Callable[..., int], table: Table, queries: Any, budget: int, seed: int, out: Callable[[slice], Any]
) -> None:
    """Run a step over blocks of queries, a few blocks a task."""
    g, r, keep = _prepared(table, budget, seed)
    own, count = np.ascontiguousarray(queries, table.rows.dtype), threads.thread_count()
    block = max(1, min(_BLOCK, _BLOCK_ITEMS // budget, -(-len(own) // count)))
    share = max(block, min(8 * block, -(-len(own) // count)))

    def task(first: int) -> int:
        last = min(first + share, len(own))
        s, n = _scratch(g, r, own.shape[1]), _lists(g, r, min(block, last - first), own)
        for i in range(first, last, block):
            part = slice(i, min(i + block, last))
            step(r, g, s, n, own[part], i, out(part))
        return 0

    threads.run([partial(task, first) for first in range(0, len(own), share)], count)
    del keep


def _prepared(table: Table, budget: int, seed: int) -> tuple[Groups, Rules, Any]:
    g = Groups(
        np.ascontiguousarray(table.start, np.int64),
        np.ascontiguousarray(table.count, np.int32),
        table.cell.astype(np.uint32),
        np.ascontiguousarray(table.spread, np.float64),
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
        plan._LARGEST,
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


def _scratch(g: Groups, r: Rules, dim: int) -> Scratch:
    groups, cells, runs = len(g.start), len(g.held), r.budget // 4 + 4
    log_mean, squares, weight, mass, noise, score = np.zeros((6, len(g.size)))
    log_mean[groups:] = -np.inf
    return Scratch(
        *(log_mean, squares, weight, mass, noise, score),
        bucket=np.empty(groups, np.uint32),
        ends=np.empty(groups),
        buckets=np.empty((4, plan.BUCKETS, 3)),
        cells=np.empty((4, cells)),
        items=np.empty(cells),
        where=np.empty(runs),
        turn=np.empty(runs),
        x=np.empty(r.budget + 16),
        query=np.empty(dim),
        number=np.empty(1),
    )


def _lists(g: Groups, r: Rules, block: int, queries: Any) -> Lists:
    stretches, runs = -(-len(g.start) // r.stretch), r.budget // 4 + 4
    return Lists(
        places=np.empty((block, r.budget + r.ahead + 8), np.int32),
        logits=np.empty((block, r.budget + 8), queries.dtype),
        marks=np.empty((block, 2, stretches + 1), np.int32),
        cells=np.empty((block, len(g.held) + queries.shape[1] + 8)),
        opened=np.empty((block, len(g.start)), np.uint32),
        draw=np.empty((block, runs), np.uint32),
        odds=np.empty((block, runs)),
        slopes=np.empty((block, len(g.held))),
        sizes=np.empty((block, 3), np.int64),
        measures=np.empty((block, 3)),
    )
