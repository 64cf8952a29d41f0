"""Means of values under the softmax: compiled as specified, in whatever way values lie, and as wrong as they say."""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

import rfkernels as rfk
from rfkernels.backends.numba import (
    catalog_layout,
    catalog_means,
    catalog_sampling,
    catalog_scans,
    catalog_sums,
    catalog_tops,
    records,
)
from rfkernels.backends.numba.catalog import Use, call_of
from rfkernels.catalog import means, scans
from rfkernels.catalog.plan import guess, plan, rounded, sizes
from rfkernels.catalog.rays import planned

ITEMS, DIM, CELLS, BUDGET = 6_000, 13, 30, 500


@cache
def catalog(dtype: str = "float64", seed: int = 0) -> rfk.Catalog:
    rng = np.random.default_rng(seed)
    spread = rng.gamma(4, 0.2, (ITEMS, 1)) * rng.gamma(3, 0.3, DIM)
    items = rng.normal(size=(CELLS, DIM))[rng.integers(CELLS, size=ITEMS)] + spread * rng.normal(size=(ITEMS, DIM))
    return rfk.Catalog(items.astype(dtype), cells=CELLS)


def queries(count: int = 16, least: float = 0.05, most: float = 12.0) -> Any:
    """Queries of all kinds, from those that hardly tell items apart to those that codes are too coarse for."""
    made = np.random.default_rng(1).normal(size=(count, DIM)) / DIM**0.5
    return made * np.geomspace(least, most, count)[:, None]


def values(width: int = 3, dtype: str = "float64") -> Any:
    return (np.random.default_rng(2).normal(size=(ITEMS, width)) + 5).astype(dtype)


def softmax(held: rfk.Catalog, q: Any, given: Any) -> tuple[Any, Any]:
    """Means of values and standard deviations."""
    logits = q.astype(np.float64) @ held.items(held.ids).T.astype(np.float64)
    p, own = np.exp(logits - logsumexp(logits, 1)[:, None]), given[held.ids].astype(np.float64)
    return p @ own, np.sqrt(np.maximum(p @ own**2 - (p @ own) ** 2, 0))


def assert_as_specified(table: Any, q: Any, given: Any, budget: int = BUDGET, rtol: float = 1e-9) -> Any:
    expected = means.expect(table, q, given, budget, 3)
    for groups_a_run in (0, len(table.start)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(catalog_layout, "GROUPS_A_RUN", groups_a_run)
            own = table._replace(means=table.means.copy())
            found = catalog_means.expect(own, q, given, budget, 3)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)
    return found


def kinds(table: Any, q: Any) -> list[int]:
    size = rounded(sizes(table, q.astype(np.float64)))
    return np.searchsorted(scans.limits(table, means.MILD), size).tolist()


@pytest.mark.parametrize("width", ["", "16", "32"])
def test_as_specified(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if width:
        monkeypatch.setenv("RFKERNELS_VECTOR_BYTES", width)
    table, q = catalog().table, queries(most=40.0)
    assert set(kinds(table, q)) == {0, 1, 2, 3}
    found = assert_as_specified(table, q, values(19))
    assert (found.relative > 0).all()


@pytest.mark.parametrize("budget", [300, 420, 611, 1_400, 3_000, 5_500])
def test_any_number_of_draws(budget: int) -> None:
    """Of odd numbers the last draw has no other to be compared with."""
    assert_as_specified(catalog().table, queries(9), values(), budget)


def test_a_single_item_has_no_other_to_be_compared_with() -> None:
    table, q, budget, single = catalog().table, 6 * queries(60, 1.0, 1.0), 370, 0
    for i, query in enumerate(q):
        spent = (*means.meant(table, budget, 0), None)[kinds(table, query[None])[0]]
        if spent is None:
            continue
        chosen = plan(table, guess(table, query), spent.scanned + sum(table.means.shape), scans.BLOCK)
        single += means.by_codes(table, query, chosen, spent, 3, i).counts[0] == 1
    assert single > 0
    assert_as_specified(table, q, values(), budget)


def test_single_precision() -> None:
    held, q = catalog("float32"), queries(most=2.0).astype(np.float32)
    assert_as_specified(held.table, q, values(5, "float32"), rtol=2e-3)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_values_however_they_lie(dtype: str) -> None:
    table, q, wide = catalog().table, queries(6), values(18, dtype)
    for own in (wide, wide[:, ::2], wide[:, ::-1], wide[::-1], np.asfortranarray(wide), wide[:, :1], wide[:, :0]):
        assert_as_specified(table, q, own)
    read_only = wide.copy()
    read_only.flags.writeable = False
    assert_as_specified(table, q, read_only)


def test_mixed_kinds_and_many_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "3")
    q = np.tile(queries(most=40.0), (20, 1))[np.random.default_rng(0).permutation(320)]
    assert_as_specified(catalog().table, q, values())


def test_sums_and_means_and_budgets_share_nothing() -> None:
    """They spend dot products in other ways."""
    table, q = catalog().table._replace(means=catalog().table.means.copy()), queries(6)
    before = call_of(table, BUDGET, 0, Use.SUMS).common
    assert call_of(table, BUDGET, 0, Use.SUMS).common is before
    assert_as_specified(table, q, values())
    found = call_of(table, BUDGET, 0, Use.MEANS).common
    assert found.spent == means.meant(table, BUDGET, 0) != before.spent
    assert call_of(table, BUDGET, 0, Use.SUMS_OF_ROWS).common.spent == ()
    assert call_of(table, BUDGET + 100, 0, Use.MEANS).common.spent == means.meant(table, BUDGET + 100, 0) != found.spent


def test_tables_without_codes() -> None:
    table = catalog().table._replace(codes=None)
    assert_as_specified(table, queries(), values())
    assert call_of(table, BUDGET, 0, Use.MEANS).common.spent == ()


def test_items_that_were_removed_and_moved() -> None:
    held = rfk.Catalog(catalog().items(np.arange(ITEMS)), cells=CELLS)
    held.remove(np.arange(0, ITEMS, 3))
    held.update(np.array([1, 2]), 3 + held.items(np.array([1, 2])))
    assert_as_specified(held.table, queries(), values())
    whole = held.expectation(queries(), values(), budget=2 * ITEMS, full=True)
    mean, _ = softmax(held, queries(), values())
    np.testing.assert_allclose(whole.mean, mean, rtol=1e-9)
    assert not whole.standard_error.any()


@pytest.mark.parametrize("size", [0.3, 1.5, 4.0])
def test_errors_are_as_large_as_is_said(size: float) -> None:
    """Queries that rows, many checks and few checks are for."""
    held, given = catalog(), values()
    q = size * queries(24, 1.0, 1.0)
    assert {0.3: 0, 1.5: 1, 4.0: 2}[size] in kinds(held.table, q)
    (mean, _), seen = softmax(held, q, given), []
    for seed in range(60):
        found = held.expectation(q, given, budget=BUDGET, full=True, rng=seed)
        seen.append(((found.mean - mean), found.standard_error))
    off, error = (np.stack(x) for x in zip(*seen, strict=True))
    assert 0.92 < (np.abs(off) <= 1.96 * error).mean() < 0.99
    ratio = np.sqrt((error**2).mean((0, 1)) / (off**2).mean((0, 1)))
    assert 0.8 < ratio.min() < ratio.max() < 1.6
    assert np.abs(off.mean(0) / (off.std(0) / np.sqrt(60))).max() < 5


def test_codes_find_more_of_a_steep_softmax() -> None:
    held, given, q = catalog(), values(), 4 * queries(24, 1.0, 1.0)
    (mean, deviation), off = softmax(held, q, given), []
    for table in (held.table, held.table._replace(codes=None)):
        found = np.stack([catalog_means.expect(table, q, given, BUDGET, seed).mean for seed in range(8)])
        off.append(np.median(np.abs(found - mean) / deviation))
    assert off[0] < 0.6 * off[1]


def test_what_was_predicted_of_a_missed_tail_counts() -> None:
    """As if values varied along with weights, as much as they do under the softmax."""
    table, seen = catalog().table, []
    for i, query in enumerate(4 * queries(8, 1.0, 1.0)):
        spent = means.meant(table, BUDGET, 0)[kinds(table, query[None])[0]]
        assert spent is not None
        chosen = plan(table, guess(table, query), spent.scanned + sum(table.means.shape), scans.BLOCK)
        taken = means.by_codes(table, query, chosen, spent, 0, i)
        given, log = values()[table.ids[taken.rows]], logsumexp(taken.logits + taken.log_weights)
        lower, higher = (means.weigh(taken, chosen._replace(log_error=x), given) for x in (-np.inf, log))
        beyond = higher[3] ** 2 - lower[3] ** 2
        np.testing.assert_allclose(higher[1] ** 2 - lower[1] ** 2, beyond * higher[2] ** 2, rtol=1e-6)
        np.testing.assert_array_equal(higher[0], lower[0])
        seen.append(beyond)
    assert min(seen) > 0


@pytest.mark.parametrize("size", [0.3, 3.0])
def test_values_that_are_not_taken_are_not_read(size: float) -> None:
    """Which is what makes a query take no time that grows with the catalog."""
    held, given = catalog(), values()
    q = size * queries(4, 1.0, 1.0)
    before = held.expectation(q, given, budget=BUDGET)
    untouched = np.ones(ITEMS, bool)
    for i, query in enumerate(q):
        kind = kinds(held.table, query[None])[0]
        own = (*means.meant(held.table, BUDGET, 0), None)[kind]
        guessed = guess(held.table, query)
        if own is None:
            taken = means.by_rows(held.table, query, planned(held.table, query, guessed, BUDGET), 0, i)
        else:
            chosen = planned(held.table, query, guessed, own.scanned + sum(held.table.means.shape), scans.BLOCK)
            taken = means.by_codes(held.table, query, chosen, own, 0, i)
        untouched[held.table.ids[taken.rows]] = False
    assert untouched.sum() > ITEMS // 3
    given[untouched] = np.nan
    np.testing.assert_array_equal(held.expectation(q, given, budget=BUDGET), before)


def test_values_that_are_no_numbers_are_named() -> None:
    held, given, q = catalog(), values(), queries(4)
    given[4_321, 1] = np.inf
    with pytest.raises(ValueError, match=r"where items are taken, but values\[4321, 1\] is inf"):
        held.expectation(q, given, budget=2 * ITEMS)
    given[:] = np.nan
    with pytest.raises(ValueError, match=r"but values\[0, 0\] is nan"):
        held.expectation(q, given, budget=BUDGET)


def test_values_too_large_for_means() -> None:
    held = catalog()
    given = np.where(np.arange(ITEMS)[:, None] % 2, 1.7e308, -1.7e308)
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(ValueError, match="means that fit float64"):
        held.expectation(queries(4), given, budget=BUDGET)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_logits_far_above_what_is_guessed(backend: str) -> None:
    """Items that lie where no group says so."""
    held = rfk.Catalog(catalog().items(np.arange(ITEMS)), cells=CELLS)
    q = queries(3, 2.0, 3.0)
    far = held.items(np.arange(3))
    held.update(np.arange(3), 200 * far)
    mean, _ = softmax(held, q, values())
    found = held.expectation(q, values(), budget=BUDGET, full=True, backend=backend)
    np.testing.assert_array_less(np.abs(found.mean - mean), 6 * found.standard_error + 1e-6)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "longdouble", "int64"])
def test_values_of_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(TypeError, match="of float16, float32 or float64 in this machine"):
        catalog().expectation(queries(2), np.ones((ITEMS, 2), dtype), budget=BUDGET)


def test_exact_weights_add_up_to_one() -> None:
    held, q = catalog("float32"), 300 * queries(70, 1.0, 1.0).astype(np.float32)
    found = held.expectation(q, np.ones((ITEMS, 1)), budget=2 * ITEMS)
    np.testing.assert_allclose(found, 1, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_means_of_logits_beyond_what_their_rounding_lets_exponentials_be(dtype: str) -> None:
    items = np.random.default_rng(0).normal(size=(3, DIM)).astype(dtype)
    for count in (1, 3):
        q = 1e13 * items[:1]
        found = rfk.Catalog(items[:count], cells=1).expectation(q, np.arange(6.0).reshape(3, 2), budget=BUDGET)
        np.testing.assert_allclose(found, [[0, 1]])


def test_exact_means_of_the_largest_values() -> None:
    found = catalog().expectation(queries(4), np.full((ITEMS, 1), 1.7e308), budget=2 * ITEMS)
    np.testing.assert_allclose(found, 1.7e308)


def test_errors_beside_an_item_that_weighs_most() -> None:
    """Deviations about another item would be rounding."""
    table, q = catalog().table, queries(24, 40.0, 100.0)
    given = values() + 1e3 * np.arange(ITEMS)[:, None]
    for budget in (200, 400):
        expected, found = (engine.expect(table, q, given, budget, 3) for engine in (means, catalog_means))
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9)
        some = expected.standard_error > 1e-9 * np.abs(expected.mean)
        assert some.mean() > 0.2
        np.testing.assert_allclose(found.standard_error[some], expected.standard_error[some], rtol=1e-3)


@pytest.mark.parametrize("size", [0.3, 4.0, 40.0])
def test_memory_is_there_as_long_as_it_is_used(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that are too large are not kept between calls; compiled code knows them by address alone."""
    made: list[Any] = []
    init = records.Held.__init__

    def noted(self: Any, *given: Any) -> None:
        init(self, *given)
        made.append(weakref.ref(self))

    def watched(module: Any, name: str) -> None:
        function = getattr(module, name)

        def watch(*given: Any) -> Any:
            assert [x for x in made if x() is None] == []
            return function(*given)

        monkeypatch.setattr(module, name, watch)

    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "1")
    monkeypatch.setattr(catalog_layout, "_KEPT", 0)
    for module, name in (
        (catalog_means, "_by_codes"),
        (catalog_means, "_by_rows"),
        (catalog_scans, "estimate"),
        (catalog_sums, "estimate"),
        (catalog_sampling, "_sample"),
        (catalog_tops, "_search_all"),
    ):
        watched(module, name)
    monkeypatch.setattr(records.Held, "__init__", noted)
    held, q = catalog(), size * queries(1, 1.0, 1.0)
    for call in (
        lambda: held.expectation(q, values(), budget=BUDGET),
        lambda: held.log_normalizer(q, budget=BUDGET),
        lambda: held.sample(q, 3),
        lambda: held.top(q, 3, budget=BUDGET),
    ):
        made.clear()
        call()


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_equal_items_are_drawn_as_often_as_they_should_be_to_within_one(backend: str) -> None:
    """Neighbouring draws of groups of equal items do not differ."""
    rng = np.random.default_rng(0)
    same, distinct = rng.integers(5, size=3_000), rng.normal(size=(5, 8)).astype(np.float32)
    items, values, asked = distinct[same], rng.normal(size=(5, 2))[same], 0.1 * rng.normal(size=(40, 8))
    weights = np.exp(asked @ items.T.astype(np.float64))
    weights /= weights.sum(1, keepdims=True)
    mean = weights @ values
    found = rfk.Catalog(items).expectation(asked.astype(np.float32), values, budget=400, full=True, backend=backend)
    off, deviation = np.abs(found.mean - mean), np.sqrt(weights @ values**2 - mean**2)
    assert np.median(off / deviation) > 1e-3
    assert (off < 4 * found.standard_error).all()
    assert np.median(found.standard_error / deviation) < 0.04
