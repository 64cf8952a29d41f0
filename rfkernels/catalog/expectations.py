"""Expectations of many queries, a few at a time, and at the budget that an error asks for."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels.catalog import engines, pilots, reductions
from rfkernels.catalog.arguments import check_fit, ids_of_rows
from rfkernels.catalog.records import Table
from rfkernels.catalog.reductions import Expectation

_NUMBERS = 1 << 21
"""Dot products of queries that are held together."""


def expected(
    table: Table, queries: Any, values: Any, budget: int, error: float | None, seed: int, backend: str
) -> Expectation:
    """Return softmax-weighted means of values by id.

    The error asked for is the largest standard error of a column, in standard deviations of its values under the
    softmax. What a sample does not show of heavy tails its normalizers are judged by, as `estimates` does without
    codes: their relative standard error is that of a mean of like values.
    """
    found, excess = _expected(table, queries, values, budget, seed, backend, judged=error is not None)
    if error is None:
        return found
    sums = engines.estimated(table, queries, budget, None, seed, backend, coded=False)

    def again(same: Any, own: int) -> Expectation:
        return _expected(table, queries[same], values, own, pilots.seed_of(seed, -1), backend, judged=False)[0]

    excess = np.maximum(excess, sums.standard_error) / error
    return pilots.aimed(found, excess, budget, int(table.count.sum()), again)


def _expected(
    table: Table, queries: Any, values: Any, budget: int, seed: int, backend: str, *, judged: bool
) -> tuple[Expectation, Any]:
    """Return expectations and, if they are to be judged, their relative errors."""
    items = int(table.count.sum())
    budget = items + sum(table.means.shape) if budget >= items else budget
    step, shape = max(1, _NUMBERS // budget), (0, values.shape[1])
    parts, excess = [Expectation(np.empty(shape), np.empty(shape))], [np.empty(0)]
    for first in range(0, len(queries), step):
        own = queries[first : first + step]
        taken = engines.choose(backend).evaluate(table, own, budget, pilots.seed_of(seed, first))
        check_fit(np.where(taken.rows < 0, 0, taken.logits), table)
        taken = taken._replace(rows=ids_of_rows(table, taken.rows))
        parts.append(reductions.expectation(taken, values))
        if judged:
            excess.append(reductions.relative_error(taken, values, parts[-1]))
    return Expectation(*map(np.concatenate, zip(*parts, strict=True))), np.concatenate(excess)
