"""Catalogs: estimates against all dot products, their errors, draws and refusals."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import chisquare

import rfkernels as rfk
from rfkernels.catalog import means, plan, scans
from rfkernels.catalog.codes import BLOCK
from rfkernels.kernels import Kernel

ITEMS, DIM, BUDGET, SEEDS = 3_000, 8, 400, 400
FEW = 200
"""A budget at which codes of half the items are read."""

CODED = pytest.mark.parametrize("coded", [True, False], ids=["codes", "rows"])
SCALES = (0.05, 0.2, 0.5)
"""Of queries: from a nearly flat softmax to one that a few items fill."""


@cache
def data() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, DIM))
    items = centres[rng.integers(12, size=ITEMS)] + rng.normal(size=(ITEMS, DIM)) * rng.gamma(4, 0.15, (ITEMS, 1))
    return items, rng.normal(size=(6, DIM))


@cache
def catalog(dtype: str = "float64", coded: bool = True) -> rfk.Catalog:
    made = rfk.Catalog(data()[0].astype(dtype), cells=20, rng=0)
    if not coded:
        made.store.codes = made.store.codes[:, :0]
    return made


def logits(scale: float = 1.0) -> Any:
    items, queries = data()
    return scale * queries @ items.T


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_exact_from_as_many_dots_as_items(backend: str, dtype: str) -> None:
    found = catalog(dtype).log_normalizer(data()[1], budget=ITEMS, full=True, backend=backend)
    np.testing.assert_allclose(found.log_normalizer, logsumexp(logits(), 1), rtol=1e-12 if dtype == "float64" else 1e-5)
    assert not found.standard_error.any()
    assert (found.dots == ITEMS).all()


@cache
def estimated(scale: float, backend: str, coded: bool = True) -> Any:
    """Ẑ / Z, (seeds, queries), and the standard errors of Ẑ in units of Z."""
    queries, budget = scale * data()[1], FEW if coded else BUDGET
    given = {"budget": budget, "full": True, "backend": backend}
    found = [catalog(coded=coded).log_normalizer(queries, rng=seed, **given) for seed in range(SEEDS)]
    log, error, dots = (np.stack(part) for part in zip(*found, strict=True))
    assert budget - 20 <= dots.max() <= budget
    ratio = np.exp(log - logsumexp(logits(scale), 1))
    return ratio, ratio * error


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("scale", SCALES)
@CODED
def test_unbiased(scale: float, backend: str, coded: bool) -> None:
    ratio, _ = estimated(scale, backend, coded)
    deviation = ratio.std(0)
    assert deviation.max() > 1e-5, "nothing was estimated"
    assert (np.abs(ratio.mean(0) - 1) <= 6 * deviation / np.sqrt(SEEDS)).all()


@pytest.mark.parametrize("scale", SCALES)
@CODED
def test_standard_errors_are_those_of_repeated_estimates(scale: float, coded: bool) -> None:
    ratio, error = estimated(scale, "numpy", coded)
    np.testing.assert_allclose(np.sqrt((error**2).mean(0)), ratio.std(0), rtol=0.5)


@CODED
def test_nominal_intervals_cover(coded: bool) -> None:
    """At the sharpest of the scales some seventy runs do not show the tail, and intervals cover less."""
    for scale, least in zip(SCALES, (0.93, 0.93, 0.85), strict=True):
        ratio, error = estimated(scale, "numpy", coded)
        assert least <= (np.abs(ratio - 1) <= 1.96 * error).mean() <= 0.97


@CODED
def test_backends_agree(coded: bool) -> None:
    for scale in SCALES:
        found, expected = (estimated(scale, backend, coded)[0] for backend in ("numba", "numpy"))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_codes_are_worth_their_cost() -> None:
    """At half the budget estimates from codes are no worse, but where hardly anything varies."""
    for scale in SCALES[1:]:
        coded, plain = (np.median(np.abs(estimated(scale, "numpy", own)[0] - 1)) for own in (True, False))
        assert coded < plain


@CODED
def test_better_than_as_many_items_at_random(coded: bool) -> None:
    rng = np.random.default_rng(1)
    for scale in SCALES:
        ratio, _ = estimated(scale, "numpy", coded)
        weights = np.exp(logits(scale) - logsumexp(logits(scale), 1)[:, None])
        drawn = rng.integers(ITEMS, size=(SEEDS, BUDGET))
        uniform = ITEMS * np.stack([own[drawn].mean(1) for own in weights], 1)
        assert np.median(np.abs(ratio - 1)) < np.median(np.abs(uniform - 1)) / 2


@CODED
def test_the_control_variate_pays(monkeypatch: pytest.MonkeyPatch, coded: bool) -> None:
    ratio, _ = estimated(0.05, "numpy", coded)
    monkeypatch.setattr(plan, "TRUSTED", 0.0)
    queries, given = 0.05 * data()[1], {"budget": FEW if coded else BUDGET, "backend": "numpy"}
    plain = [catalog(coded=coded).log_normalizer(queries, rng=seed, **given) for seed in range(100, 200)]
    assert ratio.std() < 0.5 * np.exp(np.stack(plain) - logsumexp(logits(0.05), 1)).std()


def test_an_error_that_is_asked_for_is_reached() -> None:
    queries = 0.5 * data()[1]
    loose = catalog().log_normalizer(queries, budget=FEW, full=True)
    tight = catalog().log_normalizer(queries, budget=FEW, error=0.003, full=True)
    assert (loose.standard_error > 0.003).all()
    assert np.median(tight.standard_error) <= 0.003
    assert (tight.dots > 2 * loose.dots).all()
    np.testing.assert_allclose(tight.log_normalizer, logsumexp(logits(0.5), 1), atol=0.03)


def test_an_error_that_is_asked_for_does_not_choose_by_value() -> None:
    queries = 0.5 * data()[1]
    found = [catalog().log_normalizer(queries, budget=300, error=0.1, rng=seed) for seed in range(SEEDS)]
    ratio = np.exp(np.stack(found) - logsumexp(logits(0.5), 1))
    assert (np.abs(ratio.mean(0) - 1) <= 6 * ratio.std(0) / np.sqrt(SEEDS)).all()


def test_changes_are_seen_by_whoever_reads_next() -> None:
    items, queries = data()
    own = rfk.Catalog(items[:2_000], cells=10)
    before = own.log_normalizer(queries, budget=ITEMS)
    ids = own.add(items[2_000:])
    np.testing.assert_allclose(own.log_normalizer(queries, budget=ITEMS), logsumexp(logits(), 1), rtol=1e-12)
    own.remove(ids)
    np.testing.assert_allclose(own.log_normalizer(queries, budget=ITEMS), before, rtol=1e-12)


def test_same_seed_same_numbers_whatever_comes_with_a_query() -> None:
    queries = data()[1]
    together = catalog().log_normalizer(queries, budget=BUDGET)
    np.testing.assert_array_equal(together, catalog().log_normalizer(queries, budget=BUDGET))
    np.testing.assert_array_equal(together[0], catalog().log_normalizer(queries[0], budget=BUDGET))
    assert (together != catalog().log_normalizer(queries, budget=BUDGET, rng=1)).any()


@pytest.mark.parametrize("coded", [False, True])
def test_taken_items_are_weighted_without_bias(coded: bool) -> None:
    """With weights, the items that a query takes count as all items do: in number, and in any sum over them."""
    table, queries = catalog().table, 0.4 * data()[1]
    value, given, own = np.cos(np.arange(len(table.rows))), sum(table.means.shape), scans.Shares(900, 90)
    found = np.zeros((SEEDS, len(queries)))
    for (seed, i), query in zip(np.ndindex(found.shape), np.tile(queries, (SEEDS, 1)), strict=True):
        guessed = plan.guess(table, query)
        if coded:
            chosen = plan.plan(table, guessed, own.scanned + given, BLOCK)
            taken = means.by_codes(table, query, chosen, own, seed, i)
        else:
            taken = means.by_rows(table, query, plan.plan(table, guessed, BUDGET), seed, i)
        np.testing.assert_allclose(taken.logits, table.rows[taken.rows] @ query, rtol=1e-12, atol=1e-12)
        found[seed, i] = np.exp(taken.log_weights + taken.logits) @ (2 + value[taken.rows])
    whole = (np.exp(queries @ table.rows.T) * (2 + value) * (table.ids >= 0)).sum(1)
    assert (np.abs(found.mean(0) - whole) <= 6 * found.std(0) / np.sqrt(SEEDS)).all()


def test_all_items_of_a_group_are_drawn_alike() -> None:
    table = catalog().table
    planned = plan.plan(table, plan.guess(table, 0.1 * data()[1][0]), BUDGET)._replace(runs=50_000)
    runs = plan.draw_runs(table, planned, 7, 0)
    seen = np.bincount(runs.rows.ravel(), minlength=len(table.rows))
    expected = np.zeros(len(seen))
    for group in planned.far:
        mine = slice(int(table.start[group]), int(table.start[group] + table.count[group]))
        expected[mine] = plan.RUN * (runs.group == group).sum() / table.count[group]
        np.testing.assert_allclose(np.exp(runs.log_expected[runs.group == group]), expected[mine][0], rtol=0.05)
    # Runs of four count an item four times less independently than single draws would.
    kept = expected > 0
    assert ((seen - expected)[kept] ** 2 / expected[kept]).mean() < 1.2


def test_expectations() -> None:
    queries, values = 0.4 * data()[1], np.random.default_rng(2).normal(size=(ITEMS, 3))
    weights = np.exp(logits(0.4) - logsumexp(logits(0.4), 1)[:, None])
    exact = catalog().expectation(queries, values, budget=2 * ITEMS, full=True)
    np.testing.assert_allclose(exact.mean, weights @ values, rtol=1e-10)
    assert not exact.standard_error.any()
    for given, shape in ((queries, (len(queries),)), (queries[0], ())):
        several, one = (catalog().expectation(given, x, budget=BUDGET, full=True) for x in (values, values[:, 1]))
        assert one.mean.shape == one.standard_error.shape == shape
        np.testing.assert_allclose(one, [part[..., 1] for part in several], rtol=1e-12)
    found = [catalog().expectation(queries, values, budget=BUDGET, full=True, rng=seed) for seed in range(SEEDS)]
    mean, error = (np.stack(part) for part in zip(*found, strict=True))
    assert 0.9 < (np.abs(mean - weights @ values) <= 1.96 * error).mean() < 0.98
    np.testing.assert_allclose(np.sqrt((error**2).mean(0)), mean.std(0), rtol=0.4)


def test_probabilities() -> None:
    queries = 0.4 * data()[1]
    weights = np.exp(logits(0.4) - logsumexp(logits(0.4), 1)[:, None])
    ids = np.array([5, 0, 2_999])
    np.testing.assert_allclose(catalog().probabilities(queries, ids, budget=ITEMS), weights[:, ids], rtol=1e-10)
    own = np.arange(12).reshape(6, 2)
    found = catalog().probabilities(queries, own, budget=BUDGET)
    np.testing.assert_allclose(found, np.take_along_axis(weights, own, 1), rtol=0.2)
    assert catalog().probabilities(queries[0], ids).shape == (3,)


@pytest.mark.parametrize("size", [1.0, 1e6, 1e9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_probabilities_of_an_item_that_is_all_of_the_sum(dtype: str, size: float) -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(1, 50)).astype(dtype)
    items = np.concatenate([first, -first + rng.normal(size=(ITEMS - 1, 50)).astype(dtype) / 10])
    for held in (rfk.Catalog(first), rfk.Catalog(items, cells=10)):
        for q in (size * first, size * np.repeat(first, 5, 0) * np.arange(1, 6).astype(dtype)[:, None]):
            for budget in (800, 2 * ITEMS):
                for ids in ([0, 0], np.zeros((len(q), 1), int)):
                    np.testing.assert_allclose(held.probabilities(q, ids, budget=budget), 1, rtol=1e-4)
    assert held.probabilities(size * first, np.zeros(0, int)).shape == (1, 0)


def test_the_largest() -> None:
    queries = data()[1]
    order = np.argsort(-logits(), 1)[:, :10]
    found = catalog().top(queries, 10, budget=2 * ITEMS)
    np.testing.assert_array_equal(found.ids, order)
    np.testing.assert_allclose(found.logits, np.take_along_axis(logits(), order, 1))
    some = catalog().top(queries, 10, budget=600)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(some.ids, order, strict=True)]) >= 8
    assert catalog().top(queries[0], ITEMS, budget=600).ids.shape == (ITEMS,)


@pytest.mark.parametrize("exact", [False, True])
def test_draws_come_with_their_probability(exact: bool) -> None:
    query, draws = 0.5 * data()[1][0], 100_000
    found = catalog().sample(query, draws, 3, exact=exact)
    own = 0.5 * data()[0] @ data()[1][0]
    np.testing.assert_allclose(found.logits, own[found.ids], rtol=1e-10)
    stated = np.zeros(ITEMS)
    stated[found.ids] = np.exp(found.log_probability)
    seen = np.bincount(found.ids, minlength=ITEMS)
    assert stated.sum() <= 1 + 1e-9
    head = stated * draws >= 20
    both = [np.append(x[head], total - x[head].sum()) for x, total in ((seen, draws), (stated * draws, draws))]
    assert chisquare(*both).pvalue > 1e-6
    softmax = np.exp(own - logsumexp(own))
    if exact:
        np.testing.assert_allclose(stated[found.ids], softmax[found.ids], rtol=1e-9)
    weights = np.exp(found.logits - found.log_probability - logsumexp(own))
    assert abs(weights.mean() - 1) <= 6 * weights.std() / np.sqrt(draws) + 1e-9
    assert weights.mean() ** 2 / (weights**2).mean() > 0.5


def test_compiled_draws_are_those_specified() -> None:
    for scale in SCALES:
        compiled, specified = (
            catalog().sample(scale * data()[1], 200, 5, backend=backend) for backend in ("numba", "numpy")
        )
        np.testing.assert_array_equal(compiled.ids, specified.ids)
        np.testing.assert_allclose(compiled.log_probability, specified.log_probability, rtol=1e-12)
        np.testing.assert_allclose(compiled.logits, specified.logits, rtol=1e-9, atol=1e-12)


def test_probabilities_of_draws_sum_to_one() -> None:
    """Of a small catalog every item is drawn sooner or later."""
    items = np.random.default_rng(0).normal(size=(700, 4))
    small = rfk.Catalog(items, cells=5, rng=0)
    found = small.sample(np.array([0.5, -0.2, 0.1, 0.0]), 60_000, 1)
    stated = np.zeros(700)
    stated[found.ids] = np.exp(found.log_probability)
    assert (stated > 0).all()
    np.testing.assert_allclose(stated.sum(), 1, rtol=1e-10)


def cosine_bump(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """A kernel of the user's own: the log of 1 + x·y / (1 + |x|² + |y|²)."""
    return xp.log1p(dot / (1 + xx + yy))


@pytest.mark.parametrize("kernel", ["gaussian", "relu", Kernel("bump", cosine_bump)], ids=["gaussian", "relu", "own"])
def test_sums_of_other_kernels(kernel: Any) -> None:
    (items, queries), scale = data(), 0.7
    own = kernel if isinstance(kernel, Kernel) else rfk.lookup(kernel).kernel
    squares = [scale * (x * x).sum(1) for x in (queries, items)]
    with np.errstate(divide="ignore"):
        log = own.log(np, scale * queries @ items.T, squares[0][:, None], squares[1])
    whole = logsumexp(log, 1)
    np.testing.assert_allclose(catalog().kernel_sum(queries, kernel, scale=scale, budget=ITEMS), whole, rtol=1e-10)
    found = [
        catalog().kernel_sum(queries, kernel, scale=scale, budget=BUDGET, full=True, rng=seed) for seed in range(200)
    ]
    ratio = np.exp(np.stack([each.log_normalizer for each in found]) - whole)
    assert (np.abs(ratio.mean(0) - 1) <= 6 * ratio.std(0) / np.sqrt(200)).all()
    assert np.median(np.abs(ratio - 1)) < 0.1
    error = np.sqrt(((ratio * np.stack([each.standard_error for each in found])) ** 2).mean(0)) / ratio.std(0)
    assert (error > 0.7).all()
    assert (error < 2.5).all(), "more than the predicted error of those where tails are heavy"


def epanechnikov(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    return xp.log(xp.maximum(1 - (xx + yy - 2 * dot), 0))


@pytest.mark.parametrize("scale", [0.1, 0.5, 1e8])
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_kernels_that_are_zero_at_a_distance(scale: float) -> None:
    """However few groups, or none, have an item where they are not."""
    (items, queries), kernel = data(), Kernel("epanechnikov", epanechnikov)
    squares = np.square(queries[:, None] - items).sum(-1)
    with np.errstate(divide="ignore"):
        whole = np.log(np.maximum(1 - scale * squares, 0).sum(1))
    found = catalog().kernel_sum(queries, kernel, scale=scale, budget=BUDGET, full=True)
    assert (found.standard_error[np.isneginf(found.log_normalizer)] == np.inf).all()
    best = catalog().kernel_sum(queries, kernel, scale=scale, budget=BUDGET, error=0.1)
    known = np.isfinite(whole)
    np.testing.assert_array_equal(np.isneginf(best), ~known)
    assert (np.abs(best[known] - whole[known]) < 0.5).all()
    assert known.any() == (scale < 1e8)


def test_kernels_that_can_be_negative_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel must not be negative"):
        catalog().kernel_sum(data()[1], Kernel("dot", cosine_bump, sign=lambda xp, dot, xx, yy: xp.sign(dot)))


@pytest.mark.parametrize("big", [1e2, 1e4])
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_large_logits(big: float, backend: str) -> None:
    found = catalog().log_normalizer(big * data()[1], budget=BUDGET, full=True, backend=backend)
    assert np.isfinite(found.log_normalizer).all()
    largest = big * logits().max(1)
    assert (found.log_normalizer <= largest + np.log(ITEMS)).all()
    told = np.abs(np.expm1(found.log_normalizer - logsumexp(logits(big), 1))) <= 3 * found.standard_error + 1e-6
    assert told.mean() >= 0.5
    whole = catalog().log_normalizer(big * data()[1], budget=BUDGET, error=0.05, backend=backend)
    np.testing.assert_allclose(whole, logsumexp(logits(big), 1), rtol=1e-9)


def test_few_items_and_none() -> None:
    empty = rfk.Catalog(np.empty((0, 3)))
    query = np.ones(3)
    assert empty.log_normalizer(query) == -np.inf
    with pytest.raises(ValueError, match="the catalog is empty"):
        empty.sample(query, 1)
    one = rfk.Catalog(np.ones((1, 3), np.float32))
    assert one.log_normalizer(query.astype(np.float32)) == pytest.approx(3)
    assert one.sample(query, 2).ids.tolist() == [0, 0]
    same = rfk.Catalog(np.ones((5_000, 3)), cells=4)
    assert same.log_normalizer(query, budget=200) == pytest.approx(3 + np.log(5_000))


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_ids_are_of_one_dtype(backend: str) -> None:
    held, large = catalog(), rfk.Catalog(np.eye(3, dtype=np.float32))
    assert held.ids.dtype == held.add(data()[0][:0]).dtype == np.int64
    for q in (data()[1], data()[1][:0]):
        assert held.sample(q, 2, backend=backend).ids.dtype == np.int64
        assert held.sample(q, 2, exact=True).ids.dtype == np.int64
        for budget in (BUDGET, 2 * ITEMS):
            assert held.top(q, 2, budget=budget, backend=backend).ids.dtype == np.int64
    q = np.array([[1, 0, 0], [1e20, 0, 0]], np.float32)
    assert large.top(q, 2, backend=backend).ids.dtype == np.int64


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c, q: c.log_normalizer(q[:, :3]), ValueError, r"queries must have shape \(queries, 8\).*got \(6, 3\)"),
        (lambda c, q: c.log_normalizer(q.astype(int)), TypeError, "queries must have one of the dtypes"),
        (
            lambda c, q: c.log_normalizer(q * np.nan),
            ValueError,
            r"queries must be finite in the items' dtype, float64, but queries\[0, 0\] is nan",
        ),
        (lambda c, q: c.log_normalizer(q, budget=50), ValueError, "budget must be at least 156"),
        (lambda c, q: c.log_normalizer(q, budget=0), ValueError, "budget must be a positive integer"),
        (lambda c, q: c.log_normalizer(q, error=2.0), ValueError, "error must be a number between 0 and 1"),
        (lambda c, q: c.log_normalizer(q, rng=-1), ValueError, "rng must be an integer seed"),
        (lambda c, q: c.log_normalizer(q, backend="torch"), ValueError, "backend must be one of numba, numpy"),
        (lambda c, q: c.probabilities(q, [3_000]), KeyError, "ids must be .* not hold 3000"),
        (lambda c, q: c.probabilities(q, [-1]), KeyError, "ids must be .* not hold -1"),
        (lambda c, q: c.probabilities(q, [0.5]), TypeError, "ids must be integers"),
        (lambda c, q: c.expectation(q, q), ValueError, r"values must have shape \(3000, width\) or \(3000,\), got"),
        (lambda c, q: c.top(q, 0), ValueError, "k must be an integer from 1 to 3000"),
        (lambda c, q: c.sample(q, -1), ValueError, "n must be an integer from 0"),
        (lambda c, q: c.kernel_sum(q, "no such"), ValueError, "no such"),
        (lambda c, q: c.kernel_sum(q, scale=-1.0), ValueError, "scale must be a number between 0 and inf"),
        (lambda c, q: c.kernel_sum(q, scale=np.float32("nan")), ValueError, "scale must be a number"),
        (
            lambda c, q: c.expectation(q, np.arange(ITEMS)),
            TypeError,
            r"values must be a numpy.ndarray of float16, .* a number or a row for each id, got int64 \(3000,\)",
        ),
        (lambda c, q: c.expectation(q, np.full((ITEMS, 2), np.nan)), ValueError, r"values\[0, 0\] is nan"),
        (lambda c, q: c.expectation(q, np.full(ITEMS, np.nan)), ValueError, r"values\[0\] is nan"),
        (lambda c, q: c.log_normalizer(q, budget=2000.0), ValueError, "budget must be a positive integer.*got 2000.0"),
        (lambda c, q: c.log_normalizer(q, full="no"), TypeError, "full must be True or False, got 'no'"),
        (lambda c, q: c.expectation(q, np.ones((ITEMS, 1)), full=0), TypeError, "full must be True or False, got 0"),
        (lambda c, q: c.kernel_sum(q, full=None), TypeError, "full must be True or False, got None"),
        (lambda c, q: c.sample(q, 1, exact="no"), TypeError, "exact must be True or False, got 'no'"),
        (lambda c, q: c.sample(q, 1, rng=-1), ValueError, "rng must be at least 0 .*got -1"),
        (lambda c, q: c.sample(q, 1, rng=None), TypeError, "rng must be an int, .*got None of type NoneType"),
        (lambda c, q: rfk.Catalog(q, rng=None), TypeError, "rng must be an int, .*got None of type NoneType"),
        (lambda c, q: rfk.Catalog(q, rng=True), TypeError, "rng must be an int, .*got True of type bool"),
        (lambda c, q: rfk.Catalog(q, rng=-1), ValueError, "rng must be .*got -1"),
        (lambda c, q: rfk.Catalog(q, rng="a"), TypeError, "rng must be .*got 'a'"),
        (lambda c, q: rfk.Catalog(q).regroup(rng=-1), ValueError, "rng must be .*got -1"),
        (lambda c, q: rfk.Catalog(q, cells=2).remove(3), ValueError, r"ids must have shape \(items,\), got \(\)"),
        (lambda c, q: c.add(q[0]), ValueError, r"items must have shape \(items, 8\).*got \(8,\)"),
        (lambda c, q: rfk.Catalog(q[0]), ValueError, r"items must have shape \(items, dim\).*got \(8,\)"),
        (lambda c, q: rfk.Catalog.create("no", q[0]), ValueError, r"items must have shape \(items, dim\).*got \(8,\)"),
        (lambda c, q: rfk.Catalog(np.ma.array(q)), TypeError, "items must be a plain array, .* catalog takes none"),
        (lambda c, q: c.top(np.ma.array(q), 1), TypeError, "queries must be a plain array, .* catalog takes none"),
        (lambda c, q: rfk.Catalog(q[:0]).top(q, 3), ValueError, "the catalog is empty"),
        (
            lambda c, q: c.kernel_sum(q, "gausian"),
            ValueError,
            "kernel must be a Kernel or one of abs, cauchy, cosine, exp, .*got 'gausian'",
        ),
        (lambda c, q: rfk.Catalog.load(3), TypeError, "path must be a str or os.PathLike, got 3"),
        (lambda c, q: rfk.Catalog.load("no", mapped="no"), TypeError, "mapped must be True or False"),
        (lambda c, q: rfk.Catalog.load("no", verify="no"), TypeError, "verify must be True or False"),
        (lambda c, q: c.save(None), TypeError, "path must be a str or os.PathLike, got None"),
        (lambda c, q: rfk.Catalog.create(None, q), TypeError, "path must be a str or os.PathLike, got None"),
        (lambda c, q: c.merge(3), TypeError, "other must be a Catalog, got int"),
    ],
)
def test_refusals(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(catalog(), data()[1])
