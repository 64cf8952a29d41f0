"""Queries that are items but for their size, and points that are items, on the devices of JAX.

See `rfkernels.catalog.rays` and `rfkernels.catalog.homes`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp
from test_catalog_rays import ITEMS, TAU, built, exact, items

from rfkernels.catalog import Catalog
from rfkernels.catalog.homes import homes
from rfkernels.catalog.plan import RUN
from rfkernels.catalog.rays import LENGTHS, along

jax = pytest.importorskip("jax", reason="needs jax")
jc = pytest.importorskip("rfkernels.backends.jax.catalog")
rays = pytest.importorskip("rfkernels.backends.jax.catalog_rays")
tables = pytest.importorskip("rfkernels.backends.jax.tables")
plans = pytest.importorskip("rfkernels.backends.jax.catalog_plan")

KEY, BUDGET, MOST = jax.random.key(1), 1_000, 200


@cache
def table(regrouped: bool = False) -> Any:
    held = jc.device_table(built().table)
    return jc.regrouped(held, jax.random.key(3)) if regrouped else held


@jax.jit
def looked_at(held: Any, queries: Any) -> Any:
    return jax.vmap(lambda query: rays.along(held, query, held.means @ query, MOST))(queries)


@pytest.mark.parametrize("told", [False, True])
def test_groups_along_a_query_are_those_that_are_specified(told: bool) -> None:
    rng = np.random.default_rng(1)
    y = (rng.normal(size=(4_000, 8)) * np.exp(0.4 * rng.normal(size=(4_000, 1)))).astype(np.float32)
    own = Catalog(y, queries=rng.normal(size=(50, 8)) * [5, 5, 1, 1, 1, 1, 1, 0.2] if told else None, rng=0).table
    queries = np.concatenate([5 * y[:100], y[100:200] / 5, np.zeros((1, 8), np.float32)])
    found = np.asarray(looked_at(jc.device_table(own), queries))
    wanted = [along(own, x, own.means @ x, MOST) for x in queries.astype(np.float64)]
    alike = [set(np.flatnonzero(a)) == set(b) for a, b in zip(found, wanted, strict=True)]
    assert np.mean(alike) > 0.98
    assert 20 < sum(len(x) > 1 for x in wanted) < 200
    assert not found[-1].any()


@pytest.mark.parametrize("regrouped", [False, True])
def test_queries_that_are_items(regrouped: bool) -> None:
    """Without that 36 and 44 of 200 were off by more than five standard errors."""
    held, queries = table(regrouped), np.float32(TAU) * items()[:200]
    found = jc.estimate(held, queries, BUDGET, KEY)
    off = np.abs(np.asarray(found.log_normalizer) - exact(queries, items()))
    error = np.asarray(found.standard_error)
    assert (off < np.log1p(5 * error)).all()
    assert (off < np.log1p(1.96 * error)).mean() > 0.87
    assert np.median(off) < 0.06
    assert (np.asarray(found.dots) <= BUDGET).all()


def test_draws_for_queries_that_are_items() -> None:
    """Without that the 5th percentile of the share was .13."""
    queries = np.float32(TAU) * items()[:60]
    drawn = jc.sample(table(), queries, 64, KEY, head=512)
    weights = np.exp(np.asarray(drawn.logits - drawn.log_probability, np.float64) - exact(queries, items())[:, None])
    share = weights.sum(1) ** 2 / (weights**2).sum(1) / 64
    assert np.quantile(share, 0.05) > 0.8
    np.testing.assert_allclose(weights.mean(), 1, atol=0.05)


def test_means_at_queries_that_are_items() -> None:
    queries, values = np.float32(1.5 * TAU) * items()[:100], items()
    mean = np.asarray(jc.expectation(table(), queries, values, BUDGET, KEY).mean)
    logits = queries.astype(np.float64) @ values.T
    wanted = np.exp(logits - exact(queries, values)[:, None]) @ values
    assert np.median(np.linalg.norm(mean - wanted, axis=1)) < 0.05


def test_parts_of_a_table_know_their_own() -> None:
    parts = tables.split(built().table, 2)
    queries = np.float32(2 * TAU) * items()[:100]
    found = [np.asarray(looked_at(part, queries)) for part in parts]
    met = 0
    for part, looked in zip(parts, found, strict=True):
        for row in range(len(queries)):
            ids = [part.ids[s : s + n] for s, n in zip(part.start[looked[row]], part.count[looked[row]], strict=True)]
            met += row in np.concatenate([np.empty(0, int), *ids])
    assert met > 95


def test_groups_that_are_looked_at_take_room_once() -> None:
    """Counted twice where they are opened for what is guessed of them, too, they keep others closed."""

    @jax.jit
    def spent(held: Any, query: Any) -> Any:
        guess = plans.guessed(held, query)
        plain = plans.planned(held, guess, BUDGET)
        opened = (held.count > 0) & ~plain.closed
        looked = opened & (plain.ends <= MOST)
        return jax.numpy.any(looked), plans.planned(held, guess, BUDGET, looked)

    y = np.random.default_rng(1).normal(size=(3_000, 8)).astype(np.float32)
    some, plan = spent(jc.device_table(Catalog(y, rng=0).table), y[0])
    assert some
    assert BUDGET - RUN < plan.ends[-1] + RUN * plan.runs <= BUDGET


def test_cells_of_which_items_moved_have_none() -> None:
    held, queries = table(), np.float32(2 * TAU) * items()[:50]
    assert np.asarray(looked_at(held, queries)).any(1).all()
    moved = jc.with_rows(held, np.arange(ITEMS), items()[::-1].copy())
    assert not np.asarray(looked_at(moved, queries)).any()
    again = jc.refreshed(moved)
    np.testing.assert_allclose(again.homes.lengths, 1, rtol=1e-5)
    assert again.homes.lengths.shape == (LENGTHS,)


def test_nothing_is_looked_at_where_no_one_knows_which_groups_items_join() -> None:
    held = jc.device_table(built().table._replace(centres=None, edge=None))
    assert not np.asarray(looked_at(held, np.float32(2 * TAU) * items()[:50])).any()
    assert not np.asarray(looked_at(jc.refreshed(held), np.float32(2 * TAU) * items()[:50])).any()
    assert len(tables.split(built().table._replace(centres=None, edge=None), 2)) == 2


def test_looking_is_constant_to_derivatives() -> None:
    query = np.float32(TAU) * items()[0]
    own = table()
    slope = jax.jit(jax.grad(lambda x: jc.estimate(own, x[None], BUDGET, KEY).log_normalizer[0]))(query)
    logits = query.astype(np.float64) @ items().T
    wanted = np.exp(logits - exact(query[None], items())) @ items()
    assert np.linalg.norm(slope - wanted) < 0.25 * np.linalg.norm(wanted)


@pytest.mark.parametrize("told", [False, True])
def test_groups_at_points_are_those_that_are_specified(told: bool) -> None:
    rng = np.random.default_rng(1)
    y = (rng.normal(size=(4_000, 8)) * np.exp(0.4 * rng.normal(size=(4_000, 1)))).astype(np.float32)
    own = Catalog(y, queries=rng.normal(size=(50, 8)) * [5, 5, 1, 1, 1, 1, 1, 0.2] if told else None, rng=0).table
    points = np.concatenate([y[:150], 2 * y[150:200]])

    @jax.jit
    def at(held: Any, given: Any) -> Any:
        return jax.vmap(lambda x: rays.home(held, x, ((held.means - x) ** 2).sum(1)))(given)

    assert (np.asarray(at(jc.device_table(own), points)) == homes(own, points.astype(np.float64))).mean() > 0.98


@pytest.mark.parametrize(("kernel", "width"), [("laplacian", 0.05), ("gaussian", 0.2)])
def test_sums_of_kernels_at_items(kernel: str, width: float) -> None:
    """Without that 59 in 100 narrow Laplacian sums were off by more than five standard errors, by e^6."""
    points, scale = items()[:100], 1 / (2 * width**2)
    square = np.maximum(2 - 2 * points.astype(np.float64) @ items().astype(np.float64).T, 0)
    square[np.arange(100), np.arange(100)] = 0
    wanted = logsumexp(-np.sqrt(scale * square) if kernel == "laplacian" else -scale * square / 2, axis=1)
    found = jc.kernel_sum(table(), points, kernel, BUDGET, KEY, scale=scale)
    off, error = np.abs(np.asarray(found.log_normalizer) - wanted), np.asarray(found.standard_error)
    assert (off < np.log1p(5 * error) + 1e-3).all()
    assert (off < np.log1p(1.96 * error) + 1e-4).mean() > 0.88
    assert (np.asarray(found.dots) <= BUDGET).all()


def test_no_home_is_looked_for_where_too_few_dots_are_left_or_all_items_are_taken() -> None:
    y = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    held = jc.device_table(Catalog(y, cells=4, rng=0).table)
    for budget, spent in ((6 + 128, 134), (6 + 4 + 128, 138)):
        assert jc.kernel_sum(held, y[:1], "gaussian", budget, KEY).dots == spent
    assert jc.kernel_sum(held, y[:1], "gaussian", 6 + 500, KEY).standard_error == 0
