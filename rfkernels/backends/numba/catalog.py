"""Estimates over a catalog, compiled: the same numbers as `rfkernels.catalog.estimates`, which specifies them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rfkernels.backends.numba import catalog_steps, threads
from rfkernels.backends.numba.catalog_kernels import AHEAD, TOGETHER, dot_kernel, weight_kernels
from rfkernels.backends.numba.catalog_steps import Groups, Lists, Rules, Scratch
from rfkernels.backends.numba.jit import machine
from rfkernels.catalog import estimates, plan
from rfkernels.catalog.records import Estimate, Table

_BLOCK = 64
_STRETCH_BYTES = 1 << 19


def estimate(table: Table, queries: Any, budget: int, seed: int) -> Estimate:
    g, r, keep = _prepared(table, budget, seed)
    own = np.ascontiguousarray(queries, table.rows.dtype)
    wide = np.asarray(queries, np.float64)
    logits = wide @ np.asarray(table.means, np.float64).T
    scales = np.einsum("ij,ij->i", wide @ np.asarray(table.shape, np.float64), wide)
    out = np.empty((len(own), 3))
    count = threads.thread_count()
    block = max(1, min(_BLOCK, -(-len(own) // count)))
    share = max(block, min(8 * block, -(-len(own) // count)))
    work = [
        partial(_share, g, r, block, own, logits, scales, first, min(first + share, len(own)), out)
        for first in range(0, len(own), share)
    ]
    threads.run(work, count)
    del keep
    return Estimate(out[:, 0], out[:, 1], out[:, 2].astype(np.int64) + sum(table.means.shape))


def _prepared(table: Table, budget: int, seed: int) -> tuple[Groups, Rules, Any]:
    g = Groups(
        np.ascontiguousarray(table.start, np.int64),
        np.ascontiguousarray(table.count, np.int32),
        np.ascontiguousarray(table.cell, np.int32),
        np.ascontiguousarray(table.spread, np.float64),
    )
    element = table.rows.dtype.itemsize
    dots, weights = dot_kernel(machine(), 8 * element), weight_kernels(machine())
    items = int(g.count.sum(dtype=np.int64))
    row = table.rows.strides[0]
    stretch = max(1, _STRETCH_BYTES * len(g.start) // max(items * row, 1))
    rules = Rules(
        dots.addresses["dots"],
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
    return g, rules, (dots, weights)


def _share(g: Groups, r: Rules, block: int, queries: Any, logits: Any, scales: Any, first: int, last: int, out: Any) -> int:
    s, n = _scratch(g, r, logits.shape[1]), _lists(g, r, block if last - first > 1 else 1, logits.shape[1], queries.dtype)
    for i in range(first, last, block):
        own = slice(i, min(i + block, last))
        catalog_steps.estimate(r, g, s, n, queries[own], logits[own], scales[own], i, out[own])
    return 0


def _scratch(g: Groups, r: Rules, cells: int) -> Scratch:
    padded = (len(g.start) + 7) // 8 * 8
    log_mean, squares, weight, variance, score = np.zeros((5, padded))
    log_mean[len(g.start) :] = -np.inf
    buckets = plan.BUCKETS
    return Scratch(
        log_mean, squares, weight, variance, score, np.empty(len(g.start), np.int32),
        np.empty(buckets, np.int64), np.empty(buckets), np.empty(buckets), np.empty(cells), np.empty(r.budget + 16), np.empty(1),
    )


def _lists(g: Groups, r: Rules, block: int, cells: int, dtype: Any) -> Lists:
    stretches = -(-len(g.start) // r.stretch)
    runs = r.budget // 4 + 1
    return Lists(
        np.empty((block, r.budget + r.ahead + 8), np.int32),
        np.empty((block, r.budget + 8), dtype),
        np.empty((block, 2, stretches + 1), np.int32),
        np.empty((block, len(g.start)), np.int32),
        np.empty((block, runs), np.int32),
        np.empty((block, runs)),
        np.empty((block, cells)),
        np.empty((block, 4), np.int64),
        np.empty((block, 3)),
    )
