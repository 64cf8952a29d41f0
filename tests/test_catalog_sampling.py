"""Draws whose proposal knows the sums of groups from the codes of their items."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import rfkernels as rfk
from rfkernels.backends.numba import catalog_sampling
from rfkernels.catalog import codes, sampling
from rfkernels.catalog.plan import guess, rows_of
from rfkernels.catalog.records import Table

ITEMS, DIM, CELLS = 20_000, 16, 40
SHARP = 6.0


@cache
def catalog(dtype: str = "float64") -> rfk.Catalog:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CELLS, DIM))
    items = centres[rng.integers(CELLS, size=ITEMS)] + rng.normal(size=(ITEMS, DIM)) * rng.gamma(3, 0.3, DIM)
    return rfk.Catalog(items.astype(dtype), cells=CELLS)


def queries(count: int = 12, scale: float = SHARP) -> Any:
    return scale * DIM**-0.5 * np.random.default_rng(1).normal(size=(count, DIM)) * np.geomspace(0.3, 2, count)[:, None]


def true_sums(table: Table, query: Any) -> Any:
    rows = rows_of(table, np.arange(len(table.count)))
    return sampling.sums_of(table.rows[rows] @ query, table.count)


def effective(table: Table, query: Any) -> float:
    """(E w)²/E w² of the importance weights of draws, from the sums of groups and what they are drawn by."""
    log_sums, true = sampling._promising(table, query)[0], true_sums(table, query)
    total = sampling.log_sum
    return float(np.exp(2 * total(true) - total(log_sums) - total(2 * true - log_sums)))


def test_what_is_taken_before_the_first_draw() -> None:
    """Codes of the groups of the largest second moments, and the items of those of them that codes say sum to most."""
    table = catalog().table
    most = int((sampling.HEAD - sampling.AGAIN) / codes.cost(table))
    assert sampling.coded(table) == most < ITEMS
    assert sampling.coded(table._replace(codes=None)) == 0
    for query in queries():
        log_sums, taken = sampling._promising(table, query)
        guessed, true = guess(table, query), true_sums(table, query)
        moments = 2 * guessed.log_mean + np.log(guessed.variance)
        order = np.argsort(-moments)
        read = order[np.cumsum(table.count[order]) <= most]
        left = np.setdiff1d(order, read)
        np.testing.assert_allclose(log_sums[left], np.log(table.count[left]) + guessed.log_mean[left])
        exact = np.array(list(taken))
        assert np.isin(exact, read).all()
        assert 0 < table.count[exact].sum() <= sampling.AGAIN
        np.testing.assert_allclose(log_sums[exact], true[exact])
        coded, off = np.setdiff1d(read, exact), 0.3 * np.sqrt(query @ table.shape @ query * table.spread.max())
        assert np.abs(log_sums[coded] - true[coded]).max() < off
        assert log_sums[coded].max() < log_sums[exact].min() + off


def test_draws_are_worth_more_where_codes_are_read() -> None:
    table = catalog().table
    plain, coded = (
        np.array([effective(own, query) for query in queries()]) for own in (table._replace(codes=None), table)
    )
    assert coded.min() > 0.9
    assert np.median(plain[-4:]) < 0.1
    assert (coded > 0.99 * plain).all()


@pytest.mark.parametrize("width", [None, "16", "32"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_draws_are_as_specified(dtype: str, width: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if width is not None:
        monkeypatch.setenv("RFKERNELS_VECTOR_BYTES", width)
    held = rfk.Catalog.from_store(catalog(dtype).store)  # nothing is known of it
    q = queries().astype(dtype)
    found, expected = (held.sample(q, 400, 2, backend=backend) for backend in ("numba", "numpy"))
    np.testing.assert_array_equal(found.ids, expected.ids)
    tolerance = 1e-10 if dtype == "float64" else 2e-5
    np.testing.assert_allclose(found.log_probability, expected.log_probability, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=tolerance, atol=tolerance)


def test_draws_after_changes() -> None:
    rng, held = np.random.default_rng(5), rfk.Catalog(catalog().items(catalog().ids), cells=CELLS)
    for _ in range(10):
        held.remove(rng.choice(held.ids, 700, replace=False))
        held.add(2 + rng.normal(size=(300, DIM)))
    found, expected = (held.sample(queries(), 200, 2, backend=backend) for backend in ("numba", "numpy"))
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.log_probability, expected.log_probability, rtol=1e-10)


def test_small_catalogs_are_taken_as_a_whole() -> None:
    items = np.random.default_rng(0).normal(size=(70, DIM))
    held = rfk.Catalog(items, cells=3)
    assert sampling.coded(held.table) == 70
    found, expected = (held.sample(items[:3], 50, 1, backend=backend) for backend in ("numba", "numpy"))
    np.testing.assert_array_equal(found.ids, expected.ids)
    log = items[:3] @ items.T
    log -= np.logaddexp.reduce(log, axis=1)[:, None]
    np.testing.assert_allclose(found.log_probability, np.take_along_axis(log, found.ids, 1), rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_far_above_what_is_guessed(dtype: str) -> None:
    """In a direction in which no item but one lies."""
    items = np.random.default_rng(0).normal(size=(3_000, 64))
    items[:, 0] = 0
    items *= 5 / np.linalg.norm(items, axis=1, keepdims=True)
    items[7] = 5 * np.eye(64)[0]
    held = rfk.Catalog(items.astype(dtype))
    for size in (300, 1_000):
        found = held.sample((size * np.eye(64)[:1]).astype(dtype), 20, 0)
        assert (found.ids == 7).all()
        np.testing.assert_allclose(found.log_probability, 0, atol=1e-6)


def test_guesses_are_drawn_by_where_codes_say_what_is_no_number() -> None:
    table, q = catalog("float32").table, queries().astype(np.float32)
    plain = sampling.sample(table._replace(codes=None), q, 100, np.random.default_rng(2))
    away = table._replace(scales=np.full_like(table.scales, np.finfo(np.float32).max))
    found = catalog_sampling.sample(away, q, 100, np.random.default_rng(2))
    np.testing.assert_array_equal(found.ids, plain.ids)
    np.testing.assert_allclose(found.log_probability, plain.log_probability, rtol=1e-4, atol=1e-4)
