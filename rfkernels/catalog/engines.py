"""What estimates are computed by: compiled code, or the specification."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog import estimates, sampling
from rfkernels.catalog.arguments import SEEDS
from rfkernels.catalog.compiled import compiled
from rfkernels.catalog.records import Draws, Estimate, Evaluated, Table


class Engine(NamedTuple):
    """The functions of `rfkernels.catalog.estimates` and `sampling`, or others that return the same to rounding."""

    estimate: Callable[..., Estimate]
    evaluate: Callable[..., Evaluated]
    exact: Callable[..., Estimate]
    sample: Callable[..., Draws]


@cache
def choose(backend: str) -> Engine:
    """Return an engine by name."""
    if backend == "numpy":
        return Engine(estimates.estimate, estimates.evaluate, estimates.exact, sampling.sample)
    if backend == "numba":
        fast = compiled("catalog")
        return Engine(fast.estimate, fast.evaluate, fast.exact, compiled("catalog_sampling").sample)
    raise ValueError(f"backend must be one of numba, numpy, got {backend!r}")


def estimated(table: Table, queries: Any, budget: int, error: float | None, seed: int, backend: str) -> Estimate:
    """Estimate log-normalizers; queries that miss the relative error start afresh with four times the budget.

    What decides is the standard error, of which the new draws know nothing, so that nothing is selected by its value.
    """
    found = _estimated(table, queries, budget, seed, backend)
    while error is not None and (found.standard_error > error).any():
        poor = np.flatnonzero(found.standard_error > error)
        budget, seed = 4 * budget, (seed + 1) % SEEDS
        better = _estimated(table, queries[poor], budget, seed, backend)
        for part, new in zip(found, better._replace(dots=found.dots[poor] + better.dots), strict=True):
            part[poor] = new
    return found


def _estimated(table: Table, queries: Any, budget: int, seed: int, backend: str) -> Estimate:
    engine, items = choose(backend), int(table.count.sum())
    if not items:
        return Estimate(np.full(len(queries), -np.inf), np.zeros(len(queries)), np.zeros(len(queries), np.int64))
    return engine.exact(table, queries) if budget >= items else engine.estimate(table, queries, budget, seed)
