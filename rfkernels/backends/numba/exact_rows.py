"""Exact weights of a few queries, compiled: NumPy's product would leave its threads spinning on the cores of ours."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.compiling import jit_with
from rfkernels.exact import exact_block
from rfkernels.kernels import Kernel
from rfkernels.partials import Partial


def few_rows(xp: Any, q: Any, k: Any, v: Any, allowed: Any, kernel: Kernel) -> Partial:
    """Do what `exact_block` does, heads on threads, for kernels whose log is x·y + κ (|x|² + |y|²)."""
    if kernel.norm_weight is None or not q.dtype == k.dtype == v.dtype:
        return exact_block(xp, q, k, v, allowed, kernel)
    batch = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2], allowed.shape[:-2])
    q, k, v, allowed = (np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (q, k, v, allowed))
    numerator = np.zeros((*batch, q.shape[-2], v.shape[-1]), q.dtype)
    denominator, shift = np.zeros(numerator.shape[:-1], q.dtype), np.full(numerator.shape[:-1], -np.inf, q.dtype)

    def one(head: tuple[int, ...]) -> int:
        turned, weight = np.ascontiguousarray(k[head].T), q.dtype.type(kernel.norm_weight)
        given = (
            np.ascontiguousarray(q[head]),
            turned,
            np.ascontiguousarray(v[head]),
            np.ascontiguousarray(allowed[head]),
        )
        return _rows(*given, weight, numerator[head], denominator[head], shift[head])

    heads = [partial(one, head) for head in np.ndindex(batch)]
    threads.run(heads, threads.thread_count() if math.prod(batch) > 1 else 1)
    return Partial(numerator, denominator, shift)


@jit_with(entry=True, allocates=True)
def _rows(q: Any, k: Any, v: Any, allowed: Any, weight: Any, numerator: Any, denominator: Any, shift: Any) -> int:
    dim, keys = k.shape
    log, own = np.empty(keys, q.dtype), np.zeros(keys, q.dtype)
    for a in range(dim):
        for j in range(keys):
            own[j] += weight * k[a, j] * k[a, j]
    for i in range(len(q)):
        for j in range(keys):
            log[j] = own[j]
        for a in range(dim):
            x = q[i, a]
            for j in range(keys):
                log[j] += x * (k[a, j] + weight * x)
        top = shift[i]
        for j in range(keys):
            if allowed[i, j]:
                top = max(top, log[j])
        shift[i] = top
        for j in range(keys):
            if allowed[i, j]:
                share = np.exp(log[j] - top)
                denominator[i] += share
                for c in range(v.shape[1]):
                    numerator[i, c] += share * v[j, c]
    return 0
