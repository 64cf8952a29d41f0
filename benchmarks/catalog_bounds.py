"""What a perfect guess of groups would give: the speed if their sums were known beforehand, for nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from benchmarks.catalog_speed import BATCH, compared, least_budget
from benchmarks.glove import Setting, errors
from rfkernels.benchmark.line import Line
from rfkernels.benchmark.plan import allowed_threads
from rfkernels.catalog.estimates import estimate
from rfkernels.catalog.plan import FLOOR, Guess, guess
from rfkernels.catalog.records import Table

HARDEST = "raw τ=1"
CHUNK = 25
"""Queries whose weights are held at a time."""


def bounds(settings: list[Setting]) -> Iterator[Line]:
    """Time, in the setting that takes most dot products, as many as suffice where sums of groups are known.

    A plan guesses of each group the mean and the variance of its weights, less what a control variate takes. The
    specification is given both as they are, whatever that takes; what is timed guesses them, and spends as many dot
    products.
    """
    (setting,) = (x for x in settings if x.name == HARDEST)
    catalog = setting.held.catalog()
    queries = setting.queries[:BATCH]
    known = dict(zip(map(bytes, queries.astype(np.float64)), _groups(catalog.table, queries), strict=True))

    def true(table: Table, query: Any) -> Guess:
        log_mean, variance = known[bytes(query)]
        return guess(table, query)._replace(log_mean=log_mean, variance=variance)

    @cache
    def estimated(budget: int) -> Any:
        return estimate(catalog.table, queries, budget, 0, guessed=true).log_normalizer

    budget = least_budget(setting, catalog, estimated)
    off = errors(estimated(budget), setting.exact[:BATCH])
    median, high = np.quantile(off, (0.5, 0.95))
    detail = f"error of Z: median {median:.2g}, 95th percentile {high:.2g}, {len(queries):,} queries"
    yield Line(f"{HARDEST}, sums of groups known: least dots a query", budget, "", "", detail)
    for line in compared(setting, catalog, len(queries), budget, allowed_threads(), time.perf_counter):
        yield line._replace(name=f"if sums of groups were known: {line.name}", target="")


def _groups(table: Table, queries: Any) -> Iterator[tuple[Any, Any]]:
    """Return the log of the mean weight of each group, and the variance in units of its squared mean, by query."""
    rows = np.concatenate([np.arange(a, a + n) for a, n in zip(table.start, table.count, strict=True)])
    begins, items = np.cumsum(table.count) - table.count, table.rows[rows]
    for first in range(0, len(queries), CHUNK):
        for logits in queries[first : first + CHUNK].astype(np.float64) @ items.T.astype(np.float64):
            top = np.maximum.reduceat(logits, begins)
            weights = np.exp(logits - np.repeat(top, table.count))
            mean, square = (np.add.reduceat(x, begins) / table.count for x in (weights, weights**2))
            yield top + np.log(mean), np.maximum(square / mean**2 - 1, 0) + FLOOR
