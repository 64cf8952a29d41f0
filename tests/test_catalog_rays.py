"""Queries that are items but for their size: the item itself is not missed."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

from rfkernels.catalog import Catalog, engines
from rfkernels.catalog.plan import fewest_dots, guess
from rfkernels.catalog.rays import along, known_rays, planned

ITEMS, DIM, BUDGET, TAU = 20_000, 32, 400, 10.0


@cache
def items() -> Any:
    y = np.random.default_rng(0).normal(size=(ITEMS, DIM))
    return (y / np.linalg.norm(y, axis=1, keepdims=True)).astype(np.float32)


@cache
def built() -> Catalog:
    return Catalog(items(), rng=0)


def exact(queries: Any, y: Any) -> Any:
    return logsumexp(queries.astype(np.float64) @ y.astype(np.float64).T, axis=1)


def groups_of(catalog: Catalog) -> Any:
    """Return the group of each item."""
    t, found = catalog.table, np.empty(len(catalog), np.int64)
    for group, (start, count) in enumerate(zip(t.start, t.count, strict=True)):
        found[t.ids[start : start + count]] = group
    return found


def found_along(table: Any, query: Any, most: int) -> Any:
    return along(table, query, table.means @ query, most)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("lengths", [0.0, 0.4])
def test_groups_along_a_query_are_those_of_the_item(told: bool, lengths: float) -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=(4_000, 8))
    y = (y / np.linalg.norm(y, axis=1, keepdims=True) * np.exp(lengths * rng.normal(size=(4_000, 1)))).astype(
        np.float32
    )
    own = Catalog(y, queries=rng.normal(size=(50, 8)) * [5, 5, 1, 1, 1, 1, 1, 0.2] if told else None, rng=0)
    of, met = groups_of(own), []
    for i in range(300):
        query = 20 * y[i].astype(np.float64)
        met.append(of[i] in found_along(own.table, query, len(y)))
    assert np.mean(met) > (0.92 if lengths == 0 else 0.78)


def test_groups_along_a_query_are_few_and_of_long_items_first() -> None:
    rng = np.random.default_rng(2)
    y = (rng.normal(size=(4_000, 8)) * np.exp(0.4 * rng.normal(size=(4_000, 1)))).astype(np.float32)
    t = Catalog(y, rng=0).table
    looked = [(found_along(t, x, len(y)), x) for x in 5 * y[:50].astype(np.float64)]
    every, query = max(looked, key=lambda own: len(own[0]))
    assert len(every) > 2
    for most in (0, *np.cumsum(t.count[every])):
        some = found_along(t, query, int(most))
        np.testing.assert_array_equal(some, every[: len(some)])
        assert t.count[some].sum() == most
    lengths = known_rays(t).lengths
    assert (np.diff(lengths) <= 0).all()
    np.testing.assert_allclose(np.median(np.linalg.norm(y, axis=1)), np.median(lengths), rtol=0.1)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_queries_that_are_items(backend: str) -> None:
    """Without that 15 in 100 were off by more than five standard errors, and 41 intervals in 100 failed."""
    queries = np.float32(TAU) * items()[: 200 if backend == "numba" else 60]
    found = built().log_normalizer(queries, budget=BUDGET, full=True, backend=backend)
    off = np.abs(found.log_normalizer - exact(queries, items()))
    assert (off < np.log1p(5 * found.standard_error)).all()
    assert (off < np.log1p(1.96 * found.standard_error)).mean() > 0.9
    assert np.median(off) < 0.05
    assert (found.dots <= BUDGET).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("told", [False, True])
def test_backends_agree(told: bool, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    y = (rng.normal(size=(6_000, 8)) * rng.gamma(2, 0.5, size=(6_000, 1))).astype(dtype)
    own = Catalog(y, queries=y[:200] if told else None, rng=0)
    for tau in (0.3, 1.0, 2.0):
        queries = (tau * y[:20]).astype(dtype)
        one, other = (own.log_normalizer(queries, budget=500, full=True, backend=b) for b in ("numba", "numpy"))
        np.testing.assert_array_equal(one.dots, other.dots)
        np.testing.assert_allclose(one.log_normalizer, other.log_normalizer, rtol=0, atol=1e-3)
        means = [own.expectation(queries, y, budget=500, backend=b) for b in ("numba", "numpy")]
        np.testing.assert_allclose(*means, rtol=0, atol=1e-3)


@pytest.mark.parametrize("coded", [True, False])
def test_sums_are_unbiased(coded: bool) -> None:
    """Whatever is drawn from groups that are looked at along a query is not counted a second time."""
    rng = np.random.default_rng(4)
    y = (rng.normal(size=(3_000, 12)) * 0.5).astype(np.float32)
    t = Catalog(y, rng=0).table
    budget = fewest_dots(t) + 500

    def looks(query: Any) -> bool:
        own = planned(t, query, guess(t, query), budget)
        return bool(np.isin(own.far, own.opened).any())

    queries = np.array([x for x in np.float32(1.5) * y[:200] if looks(x)])
    assert len(queries) >= 4
    engine, right = engines.choose("numba"), exact(queries, y)
    found = [engine.estimate(t, queries, budget, seed, coded).log_normalizer for seed in range(300)]
    ratios = np.exp(found - right)
    z = (np.mean(ratios, 0) - 1) / (np.std(ratios, 0) / np.sqrt(len(ratios)))
    assert (np.abs(z) < 4).all(), z


def test_budgets_are_kept_and_nothing_odd_fails() -> None:
    rng = np.random.default_rng(5)
    y = rng.normal(size=(3_000, 4)).astype(np.float32)
    for cells in (1, 2, 3, 12):
        own = Catalog(y, cells=cells, rng=0)
        least = fewest_dots(own.table)
        for size in (0.0, 1e-30, 1.0, 1e4, 1e30):
            for budget in (least, least + 40, 1_000):
                found = own.log_normalizer(np.float32(size) * y[:5], budget=budget, full=True)
                assert (found.dots <= budget).all()
                assert np.isfinite(found.log_normalizer).all()
    zeros = Catalog(np.zeros((3_000, 4), np.float32), cells=2)
    np.testing.assert_allclose(zeros.log_normalizer(y[:3], budget=500), np.log(3_000), rtol=1e-6)


def test_cells_that_are_empty() -> None:
    rng = np.random.default_rng(6)
    y = rng.normal(size=(3_000, 4)).astype(np.float32)
    own = Catalog(y, cells=6, rng=0)
    cell = own.table.cell[groups_of(own)]
    own.remove(np.flatnonzero((cell != 1) & (cell != 4)))
    t, left, queries = own.table, y[(cell == 1) | (cell == 4)], 3 * y[:100]
    for query in queries.astype(np.float64):
        points = known_rays(t).lengths[:, None] * query / np.linalg.norm(query)
        away = ((points[:, None] - t.centres[[1, 4]]) ** 2).sum(-1)
        found = found_along(t, query, len(left))
        assert np.isin(t.cell[found], np.array([1, 4])[away.argmin(1)]).all()
    for backend in ("numba", "numpy"):
        found = own.log_normalizer(queries, budget=fewest_dots(t) + 100, full=True, backend=backend)
        off = np.abs(found.log_normalizer - exact(queries, left))
        assert (off < np.log1p(5 * found.standard_error) + 1e-4).mean() > 0.9


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_draws_for_queries_that_are_items(backend: str) -> None:
    """The item itself is drawn as often as it should be: else its weight beside that of others is large."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(60_000, 24))
    y = (y / np.linalg.norm(y, axis=1, keepdims=True) * np.exp(0.2 * rng.normal(size=(60_000, 1)))).astype(np.float32)
    queries = 20 * y[:60]
    drawn = Catalog(y, rng=0).sample(queries, 400, rng=0, backend=backend)
    weights = np.exp(drawn.logits - drawn.log_probability - exact(queries, y)[:, None])
    assert (weights.sum(1) ** 2 / (weights**2).sum(1) / 400).min() > 0.5


def test_lengths_are_those_specified_where_means_are_nothing_beside_guesses() -> None:
    """Weights of means of cells relative to what is guessed of the largest groups are less than float64 has."""
    rng = np.random.default_rng(3)
    y = rng.normal(size=(8_000, 12))
    y = (y / np.linalg.norm(y, axis=1, keepdims=True) * np.exp(0.7 * rng.normal(size=(8_000, 1)))).astype(np.float32)
    own = Catalog(y, rng=0).table
    budget = fewest_dots(own) + 700
    one, other = (
        engines.choose(b).estimate(own, np.float32(400) * y[:20], budget, 1, False) for b in ("numba", "numpy")
    )
    np.testing.assert_array_equal(one.dots, other.dots)
