"""Items far out: guesses of what few of them weigh are often far too large, and sums lie in what is below."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from both_plans import assert_as_specified
from scipy.special import logsumexp
from test_catalog_numba import BUDGET, queries, table

from rfkernels.catalog import Catalog, codes, plan, scans
from rfkernels.catalog.building import _inwards, _loose
from rfkernels.catalog.records import Estimate

ITEMS, DIM, FAR = 6000, 8, 25
FACTORS = 8.0, 1000.0
DOTS = 1000


def asked() -> Any:
    return (0.7 * np.random.default_rng(1).normal(size=(120, DIM))).astype(np.float32)


@cache
def catalog(factor: float, updated: bool = False) -> tuple[Catalog, Any]:
    """A catalog with a few items that lie so many times farther out, from the first or since; and log Z."""
    y = np.random.default_rng(0).normal(size=(ITEMS, DIM)).astype(np.float32)
    far = y.copy()
    far[:FAR] *= np.float32(factor)
    made = Catalog(y if updated else far)
    if updated:
        made.update(np.arange(FAR), far[:FAR])
    return made, logsumexp(asked().astype(np.float64) @ far.T.astype(np.float64), axis=1)


def share_held(found: Estimate, exact: Any) -> float:
    """Return the share of 95 % intervals that hold, but for the rounding of large logits to single precision."""
    off = np.abs(np.expm1(np.minimum(found.log_normalizer - exact, 50)))
    return float((off <= 1.96 * found.standard_error + 2e-6 * np.maximum(np.abs(exact), 1)).mean())


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("updated", [False, True])
@pytest.mark.parametrize("factor", FACTORS)
def test_sums_are_found_below_outliers(factor: float, updated: bool, backend: str) -> None:
    made, exact = catalog(factor, updated)
    found = made.log_normalizer(asked(), budget=DOTS, full=True, backend=backend)
    off = np.abs(found.log_normalizer - exact)
    assert (off > 0.5).sum() <= 1
    assert share_held(found, exact) > 0.97
    assert (found.dots <= DOTS).all()


@pytest.mark.parametrize("factor", FACTORS)
def test_backends_agree(factor: float) -> None:
    made, _ = catalog(factor)
    one, two = (made.log_normalizer(asked(), budget=DOTS, full=True, backend=x) for x in ("numba", "numpy"))
    close = np.isclose(one.log_normalizer, two.log_normalizer, rtol=2e-6, atol=1e-4)
    assert close.mean() > 0.95  # of others, logits of cells are rounded such that other groups are opened


def test_dots_are_those_of_the_specification() -> None:
    """Items that codes tell nothing of count as dot products, as others that are taken."""
    made, _ = catalog(1000.0)
    one, two = (made.log_normalizer(asked(), budget=DOTS, full=True, backend=x) for x in ("numba", "numpy"))
    assert (np.abs(one.dots - two.dots) <= 3).mean() > 0.9


def test_means_are_found_below_outliers() -> None:
    made, exact = catalog(1000.0)
    far = made.items(np.arange(ITEMS)).astype(np.float64)
    mean = np.exp(asked() @ far.T - exact[:, None]) @ np.sin(far)
    found = made.expectation(asked(), np.sin(far), budget=DOTS, full=True)
    off = np.abs(found.mean - mean)
    assert (off <= 1.96 * found.standard_error + 1e-5).mean() > 0.97


@pytest.mark.parametrize("factor", [3.0, 300.0, 1e4, 1e100])
@pytest.mark.parametrize("seed", [0, 1])
def test_groups_far_below_the_largest_are_told_apart_as_specified(factor: float, seed: int) -> None:
    """Of scattered spreads, so that scores are: some groups lie many windows of buckets below others."""
    t = table()
    spread = t.spread * np.exp(np.random.default_rng(seed).normal(size=len(t.spread)))
    t = t._replace(spread=np.where(np.arange(len(spread)) % 17 == 0, 30 * spread, spread))
    guessed = plan.guess(t, queries(scale=factor))
    score = 2 * guessed.log_mean + np.log(guessed.variance)
    assert (np.ptp(score, axis=1) > 3 * plan.BUCKETS / plan.PER_NAT).any()
    found = assert_as_specified(t, queries(scale=factor), BUDGET, seed)
    assert np.isfinite(found.log_normalizer).all()


def test_groups_are_opened_in_the_order_of_their_scores() -> None:
    """However far apart these are, as many as the budget allows: what is left is less than what is opened."""
    t, q = table(), queries(scale=1e4)[-1]
    guessed = plan.guess(t, q)
    chosen = plan.plan(t, guessed, BUDGET)
    score = 2 * guessed.log_mean + np.log(guessed.variance)
    assert score[chosen.opened].min() > score[chosen.far].max()
    opened = t.count[chosen.opened].sum()
    largest = t.count[chosen.far[score[chosen.far].argmax()]]
    assert opened + largest + plan.RUN * plan.FEWEST_RUNS > BUDGET - sum(t.means.shape)


def test_items_that_codes_tell_nothing_of_are_taken() -> None:
    """Far items are coded in large steps: what these say may be off by hundreds."""
    made, exact = catalog(1000.0)
    t, q = made.table, asked()
    given = [codes.rounded(x, t.scales) for x in q.astype(np.float64)]
    far = np.flatnonzero((t.ids >= 0) & (t.ids < FAR))
    off = max(codes.variances(t, far, x).max() for x in given)
    assert off > 10 * scans.MOST
    found = made.log_normalizer(q, budget=3000, full=True)
    np.testing.assert_allclose(found.log_normalizer, exact, rtol=1e-5)


def test_too_many_such_items_are_left_to_rows() -> None:
    """Where codes of nearly all items tell nothing, the budget does not suffice to take them beside others."""
    y = np.random.default_rng(2).normal(size=(3000, DIM)).astype(np.float32)
    y[: len(y) // 3] *= 3000
    made, q = Catalog(y), asked()[:40]
    exact = logsumexp(q.astype(np.float64) @ y.T.astype(np.float64), axis=1)
    for backend in ("numba", "numpy"):
        found = made.log_normalizer(q, budget=1200, full=True, backend=backend)
        assert (found.dots <= 1200).all()
        assert share_held(found, exact) > 0.9


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_items_that_hold_the_sum_are_taken_beside_those_that_codes_tell_little_of(backend: str) -> None:
    """What codes of few far items might hide is more than the sum, and all others would count as their codes say."""
    rng = np.random.default_rng(3)
    y = (rng.normal(size=(20_000, 16)) * np.exp(rng.normal(size=(20_000, 1)))).astype(np.float32)
    q = (0.3 * rng.normal(size=(150, 16))).astype(np.float32)[[7, 31, 37, 79, 86, 105, 140]]
    exact = logsumexp(q.astype(np.float64) @ y.T.astype(np.float64), axis=1)
    found = Catalog(y, cells=20).log_normalizer(q, budget=2000, full=True, backend=backend)
    assert share_held(found, exact) == 1


@cache
def mild() -> tuple[Any, Catalog]:
    """Items of which a few lie five times farther out than others: not far from all, but from those of their cell."""
    y = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32)
    y[:50] *= 5
    return y, Catalog(y)


def test_what_few_items_of_a_group_hold_is_not_missed() -> None:
    y, made = mild()
    q = (0.2 * np.random.default_rng(3).normal(size=(200, 16))).astype(np.float32)
    logits = q.astype(np.float64) @ y.T.astype(np.float64)
    log = logsumexp(logits, axis=1)
    mean, values = np.exp(logits - log[:, None]) @ y, y.astype(np.float64)
    found = made.expectation(q, values, budget=1000, full=True)
    missed = np.abs(found.mean - mean) > 5 * found.standard_error
    assert missed.any(1).mean() < 0.02
    sums = made.log_normalizer(q, budget=1000, full=True)
    assert share_held(sums, log) > 0.9


def test_items_far_beyond_their_group_have_cells_of_their_own() -> None:
    y, made = mild()
    t = made.table
    cell = np.repeat(t.cell, t.count)
    rows = np.repeat(t.start - np.cumsum(t.count) + t.count, t.count) + np.arange(len(y))
    far = t.ids[rows] < 50
    assert np.isin(cell[~far], cell[far]).mean() < 0.01
    assert len(t.means) <= 89 + 89 // 8


def loose(label: Any, square: Any, cells: int, dim: int) -> Any:
    return _loose(*_inwards(label, square, cells), square, dim)


def test_which_items_are_loose() -> None:
    """Of each cell those far beyond half of the farthest 32; the farthest of all where these are too many."""
    sizes = 12_300, 500, 40, 20
    square = np.concatenate([np.linspace(1, 1.2, sizes[0]), np.full(500, 3.0), np.zeros(40), np.linspace(1, 9, 20)])
    square[[7, 11_999, 12_400]] = 1.9, 9.0, 4.9
    label = np.repeat(np.arange(4), sizes).astype(np.int32)
    assert loose(label, square, 4, 50).tolist() == [11_999, 12_400]
    assert loose(label, square, 4, 16).tolist() == [11_999]
    assert not len(loose(label[:12_000], square[:12_000], 1, 50))
    square[12_300 : 12_300 + 500] = np.tile(np.r_[np.full(20, 3.0), 9.0, np.full(4, 3.0)], 20) + np.arange(500) / 1e4
    assert loose(label, square, 4, 50).tolist() == [11_999]


def test_few_items_are_loose() -> None:
    """One of 256 at most: those that lie farthest beyond others of their cells, however many there are."""
    square = np.ones((4, 3200))
    square[:, :15] = 2 + np.arange(60).reshape(15, 4).T
    label = np.repeat(np.arange(4), 3200).astype(np.int32)
    found = loose(label, square.ravel(), 4, 50)
    assert len(found) == 4 * 3200 // 256 == 50
    assert sorted(square.ravel()[found]) == [*range(12, 62)]


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_kernels_of_points_far_from_all_items(backend: str) -> None:
    """What codes say of the logs of such kernels is far too high, and would cancel."""
    y = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32)
    to = np.random.default_rng(1).normal(size=(12, 16))
    q = (300 * to / np.linalg.norm(to, axis=1, keepdims=True)).astype(np.float32)
    apart = np.sqrt(((q[:, None].astype(np.float64) - y) ** 2).sum(-1))
    found = Catalog(y).kernel_sum(q, "laplacian", budget=1500, full=True, backend=backend)
    assert (found.standard_error < 0.2).all()
    assert share_held(found, logsumexp(-apart, axis=1)) > 0.8


def test_compiled_code_takes_items_that_codes_tell_nothing_of() -> None:
    y = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32)
    y[:50] *= 1000
    q = (0.5 * np.random.default_rng(0).normal(size=(20_200, 16))[20_000:]).astype(np.float32)
    exact = logsumexp(q.astype(np.float64) @ y.T.astype(np.float64), axis=1)
    found = Catalog(y).log_normalizer(q, budget=2000, full=True)
    assert (np.abs(found.log_normalizer - exact) < 0.5).all()


@pytest.mark.parametrize(("seed", "count", "dim", "wild"), [(0, ITEMS, DIM, 1.0), (5, 20_000, 1, 0.0)])
def test_groups_that_are_guessed_far_too_large_leave_others_their_digits(
    seed: int, count: int, dim: int, wild: float
) -> None:
    """Items at many distances share cells: control variates are relative to what is drawn from, with codes or none."""
    rng = np.random.default_rng(seed)
    y = (rng.normal(size=(count, dim)) * np.exp(wild * rng.normal(size=(count, 1)))).astype(np.float32)
    q = asked() if dim == DIM else np.linspace(-10, 10, 240, dtype=np.float32)[:, None]
    found = Catalog(y, cells=20 if wild else None).log_normalizer(q, budget=DOTS if wild else 2 * DOTS, full=True)
    assert share_held(found, logsumexp(q.astype(np.float64) @ y.T.astype(np.float64), axis=1)) > 0.99


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_checks_of_equal_items_tell_nothing_of_others(backend: str) -> None:
    """Where almost all items are zeros, few checks meet one that codes round, and some none."""
    rng = np.random.default_rng(0)
    y = (rng.normal(size=(ITEMS, 32)) * (rng.random((ITEMS, 1)) < 0.01)).astype(np.float32)
    asked = (0.1 * rng.normal(size=(40, 32))).astype(np.float32)
    found = Catalog(y, cells=20).log_normalizer(asked, budget=500, full=True, backend=backend)
    off = np.abs(found.log_normalizer - logsumexp(asked.astype(np.float64) @ y.T.astype(np.float64), axis=1))
    assert np.median(off) > 1e-4
    assert (off <= 4 * found.standard_error).all()
    assert (off <= 1.96 * found.standard_error).mean() > 0.9
    assert np.sqrt((found.standard_error**2).mean()) < 3 * np.sqrt((off**2).mean())
