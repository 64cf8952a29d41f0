"""Errors that are asked for: reached, without choosing by value, and by exactness where a sample is hopeless."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

import rfkernels as rfk
from rfkernels.catalog import engines, pilots
from rfkernels.catalog.records import Expectation

ITEMS, DIM, BUDGET = 6_000, 6, 500


@cache
def data() -> tuple[Any, Any, Any]:
    """Items, queries that lie among them, and values of items: a coordinate, a rare class, a constant."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(12, DIM))[rng.integers(12, size=ITEMS)] + rng.normal(size=(ITEMS, DIM))
    values = np.stack([items[:, 0], np.arange(ITEMS) % 40 == 0, np.full(ITEMS, 7.0)], 1)
    return items, items[rng.choice(ITEMS, 40)] + 0.2 * rng.normal(size=(40, DIM)), values


@cache
def catalog() -> rfk.Catalog:
    return rfk.Catalog(data()[0], cells=30)


def softmax(scale: float) -> tuple[Any, Any]:
    """Means of values, (queries, 3), and the standard deviations of those that vary, (queries, 2)."""
    items, queries, values = data()
    logits = scale * queries @ items.T
    weights = np.exp(logits - logsumexp(logits, 1)[:, None])
    mean = weights @ values
    return mean, np.sqrt(np.maximum(weights @ values**2 - mean**2, 0))[:, :2]


def expected(scale: float, **given: Any) -> Expectation:
    _, queries, values = data()
    found: Expectation = catalog().expectation(scale * queries, values, budget=BUDGET, full=True, **given)
    return found


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_expectations_reach_their_error(backend: str) -> None:
    (mean, deviation), loose = softmax(0.3), expected(0.3, backend=backend)
    tight = expected(0.3, error=0.03, backend=backend)
    off, said = (np.abs(tight.mean - mean)[:, :2] / deviation), tight.standard_error[:, :2] / deviation
    assert np.median((loose.standard_error[:, :2] / deviation).max(1)) > 0.06
    assert 0.005 < np.median(said.max(1)) <= 0.03
    assert (said.max(1) <= 0.04).mean() > 0.9
    assert 0.005 < np.sqrt((off**2).mean()) < 0.03
    np.testing.assert_allclose(tight.mean[:, 2], 7, rtol=1e-12)


def test_units_of_values_do_not_matter() -> None:
    _, queries, values = data()
    moved = catalog().expectation(0.3 * queries, 1e4 * values - 50, budget=BUDGET, error=0.03)
    np.testing.assert_allclose(moved, 1e4 * expected(0.3, error=0.03).mean - 50, rtol=1e-8)


@pytest.mark.parametrize("unit", [2.0**-1000, 2.0**530, 2.0**990])
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_values_whose_squares_fit_no_number(backend: str, unit: float) -> None:
    _, queries, values = data()
    units = np.array([1, unit, unit])
    for error in (None, 0.1):
        found = catalog().expectation(queries, units * values, budget=BUDGET, full=True, error=error, backend=backend)
        usual = catalog().expectation(queries, values, budget=BUDGET, full=True, error=error, backend=backend)
        np.testing.assert_allclose(found.mean / units, usual.mean, rtol=1e-12)
        np.testing.assert_allclose(found.standard_error / units, usual.standard_error, rtol=1e-9, atol=1e-12)
        assert (found.standard_error[:, 1] > 0).mean() > 0.5 or error


def test_expectations_that_no_sample_tells_are_exact() -> None:
    mean, _ = softmax(100.0)
    found = expected(100.0, error=0.05)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6, atol=1e-6)


def test_normalizers_judge_values_that_show_nothing() -> None:
    """Of a class that a sample has not met, its values say that nothing varies; its normalizer knows better."""
    items, queries, _ = data()
    values = np.zeros((ITEMS, 1))
    given = catalog().table, queries, BUDGET
    plain, loose = (engines.estimated(*given, error, 0, "numba", coded=False) for error in (0.02, None))
    assert (plain.dots > 2 * loose.dots).mean() > 0.5
    whole = (items @ queries.T).argmax(0)
    values[whole] = 1.0
    found = catalog().expectation(queries, values, budget=BUDGET, error=0.02)
    logits = queries @ items.T
    exact = np.exp(logits - logsumexp(logits, 1)[:, None]) @ values
    assert np.abs(found - exact).max() < 0.06


def test_sums_that_judge_are_those_that_means_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes say more of a sum than the items that an expectation takes."""
    seen, aimed, queries = [], pilots.aimed, data()[1]

    def spied(pilot: Any, excess: Any, *given: Any) -> Any:
        seen.append(excess)
        return aimed(pilot, excess, *given)

    monkeypatch.setattr(pilots, "aimed", spied)
    values = np.zeros((ITEMS, 1))
    catalog().expectation(queries, values, budget=BUDGET, error=0.02)
    drawn = engines.choose("numba").expect(catalog().table, queries, values, BUDGET, 0)
    np.testing.assert_array_equal(seen[0], drawn.relative / 0.02)
    assert (drawn.relative > 0).all()


def log_kernel(scale: float) -> Any:
    items, queries, _ = data()
    return logsumexp(-scale * ((queries[:, None] - items) ** 2).sum(-1) / 2, axis=1)


def summed(scale: float, **given: Any) -> Any:
    return catalog().kernel_sum(data()[1], "gaussian", scale=scale, budget=BUDGET, full=True, **given)


def test_kernel_sums_reach_their_error() -> None:
    loose, tight = summed(0.5), summed(0.5, error=0.01)
    assert np.median(loose.standard_error) > 0.015
    assert 0.0002 < np.median(tight.standard_error) <= 0.01
    off = np.expm1(tight.log_normalizer - log_kernel(0.5))
    assert 0.0002 < np.sqrt((off**2).mean()) < 0.01
    assert np.median(tight.dots) > 2 * np.median(loose.dots)


def test_kernel_sums_are_not_chosen_by_value() -> None:
    found = [summed(1.0, error=0.15, rng=seed).log_normalizer for seed in range(60)]
    ratio = np.exp(np.stack(found) - log_kernel(1.0))
    assert ratio.std() > 0.01
    assert abs(ratio.mean() - 1) <= 5 * ratio.std() / np.sqrt(ratio.size)


@pytest.mark.parametrize(("scale", "hopeless"), [(64.0, 0.1), (1e6, 0.5)])
def test_kernels_so_narrow_that_samples_miss_them_are_summed_exactly(scale: float, hopeless: float) -> None:
    found, loose = summed(scale, error=0.05), summed(scale)
    missed = loose.standard_error > 2
    assert missed.mean() >= hopeless
    assert (found.dots[missed] >= ITEMS).mean() > 0.7
    assert (np.abs(found.log_normalizer - log_kernel(scale)) <= 0.05).mean() > 0.85
    known = ~missed & (np.abs(loose.log_normalizer - log_kernel(scale)) > 2 * loose.standard_error)
    assert known.mean() < 0.15


def test_budgets_of_a_pilot() -> None:
    """Four times the dot products halve an error; no query takes more than all items, and none less than the pilot."""
    pilot, asked = Expectation(np.full((5, 2), np.nan), np.full((5, 2), np.nan)), {}

    def run(same: Any, own: int) -> Expectation:
        asked.update(dict.fromkeys(same.tolist(), own))
        return Expectation(np.full((len(same), 2), own), np.repeat(same, 2).reshape(-1, 2))

    found = pilots.aimed(pilot, np.array([0.2, 1.0, 2.0, 3.0, np.inf]), 100, 1500, run)
    assert asked == {0: 100, 1: 100, 2: 400, 3: 1500, 4: 1500}
    np.testing.assert_array_equal(found.mean[:, 1], [100, 100, 400, 1500, 1500])
    np.testing.assert_array_equal(found.standard_error[:, 0], np.arange(5))


@pytest.mark.parametrize("error", [0, 1, -0.1, True, "small"])
def test_errors_that_are_refused(error: Any) -> None:
    with pytest.raises(ValueError, match="error must be a number between 0 and 1"):
        expected(1.0, error=error)
    with pytest.raises(ValueError, match="error must be a number between 0 and 1"):
        summed(1.0, error=error)
