"""Averages of several estimates and their spread, compiled: as `rfkernels.partials.spread` has them."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.compiling import entry

_PIECE = 1 << 17
"""Numbers of each estimate in a task."""


def spread(_: Any, outputs: Any, share: Any, ratio: Any) -> tuple[Any, Any]:
    """Do what `rfkernels.partials.spread` does, rows on threads."""
    shape = outputs.shape[1:]
    rows, width = math.prod(shape[:-1]), shape[-1]
    given = np.ascontiguousarray(outputs).reshape(len(outputs), rows, width)
    weights, factors = (np.ascontiguousarray(x, outputs.dtype).reshape(len(x), rows) for x in (share, ratio))
    average, error = (np.empty((rows, width), outputs.dtype) for _ in range(2))
    step = max(1, _PIECE // max(width, 1))
    cuts = [*range(0, rows, step), rows]
    threads.run(
        [partial(_spread, given, weights, factors, average, error, *piece) for piece in pairwise(cuts)],
        threads.thread_count(),
    )
    return average.reshape(shape), error.reshape(shape)


@entry
def _spread(outputs: Any, share: Any, ratio: Any, average: Any, error: Any, low: int, high: int) -> int:
    groups, _, width = outputs.shape
    for r in range(low, high):
        first, whole = 0, 0.0
        for b in range(groups):
            whole += share[b, r]
            if abs(share[b, r]) > abs(share[first, r]):
                first = b
        for j in range(width):
            average[r, j], error[r, j] = 0, 0
        for b in range(groups):
            weight = share[b, r]
            for j in range(width):
                average[r, j] += weight * (outputs[b, r, j] - outputs[first, r, j])
        for b in range(groups):
            factor = ratio[b, r]
            for j in range(width):
                apart = factor * (outputs[b, r, j] - outputs[first, r, j] - average[r, j])
                error[r, j] += apart * apart
        for j in range(width):
            average[r, j] += whole * outputs[first, r, j]
            error[r, j] = np.sqrt(error[r, j])
    return 0
