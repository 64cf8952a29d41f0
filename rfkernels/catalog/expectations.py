"""Expectations of many queries, and at the budget that an error asks for."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels.catalog import engines, pilots
from rfkernels.catalog.arguments import check_means, takes_all
from rfkernels.catalog.means import Weighed, exact
from rfkernels.catalog.records import Expectation, Table

_FAR = 400
"""Up to what exponent of two squares of values, and parts of these, fit float64."""


def expected(
    table: Table, queries: Any, values: Any, budget: int, error: float | None, seed: int, backend: str
) -> Expectation:
    """Return softmax-weighted means of values by id.

    The error asked for is the largest standard error of a column, in standard deviations of its values under the
    softmax. What a sample does not show of heavy tails its sums of weights are judged by: their relative standard error
    is that of a mean of like values.
    """
    found = _expected(table, queries, values, budget, seed, backend)
    if error is None:
        return Expectation(*found[:2])

    def again(same: Any, own: int) -> Weighed:
        return _expected(table, queries[same], values, own, pilots.seed_of(seed, -1), backend)

    items, excess = int(table.count.sum()), np.maximum(largest_error(found), found.relative) / error
    excess = np.where(np.isnan(excess), np.inf, excess)  # squares of values may be too large
    return Expectation(*pilots.aimed(found, excess, budget, items, again)[:2])


def largest_error(found: Weighed) -> Any:
    """Return the largest standard error of a column in deviations of its values; of those that do not vary, none."""
    varies = found.deviation > 4096 * np.finfo(np.float64).eps * np.abs(found.mean)
    return (found.standard_error / np.where(varies, found.deviation, np.inf)).max(1, initial=0)


def _expected(table: Table, queries: Any, values: Any, budget: int, seed: int, backend: str) -> Weighed:
    engine = engines.choose(backend)
    if takes_all(table, budget):
        mean = exact(table, queries, values, engine.exact(table, queries).log_normalizer)
        found = Weighed(mean, np.zeros_like(mean), np.zeros_like(mean), np.zeros(len(mean)))
        check_means(found.mean, values, table)
        return found
    with np.errstate(over="ignore", invalid="ignore"):
        found = engine.expect(table, queries, values, budget, seed)
    check_means(found.mean, values, table)
    units = units_of(found.mean)
    if (units == 1).all():
        return found
    with np.errstate(over="ignore", invalid="ignore"):  # of values that are not taken
        found = engine.expect(table, queries, values / units, budget, seed)
    return Weighed(units * found.mean, units * found.standard_error, units * found.deviation, found.relative)


def units_of(mean: Any) -> Any:
    """Return the powers of two that columns of values are divided by, 1 where their squares fit float64 as they are.

    Values that are taken are about as large as their means: nothing else needs to be looked at.
    """
    exponent = np.frexp(np.abs(mean).max(0, initial=0))[1]
    return np.ldexp(1.0, np.where(np.abs(exponent) > _FAR, exponent - 1, 0))
