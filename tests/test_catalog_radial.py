"""Sums of Gaussian and like kernels over catalogs: as specified, unbiased, and told how far off."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from clustered import BUDGET, FEW, ITEMS, WIDTHS, assert_as_specified, catalog, data
from scipy.special import betainc, logsumexp

import rfkernels as rfk
from rfkernels.catalog import Catalog, radial, scans, spheres, tables
from rfkernels.catalog.codes import moved
from rfkernels.kernels import SHIFTED_GAUSSIAN, Kernel


def norm_weighted(weight: float) -> Kernel:
    return Kernel("own", lambda xp, dot, xx, yy: dot + weight * (xx + yy), norm_weight=weight)


def exact(items: Any, queries: Any, scale: float, weight: float = -0.5) -> Any:
    x, y = queries.astype(np.float64), items.astype(np.float64)
    return logsumexp(scale * (x @ y.T + weight * ((x**2).sum(1)[:, None] + (y**2).sum(1))), axis=1)


@pytest.mark.parametrize("weight", [-0.5, 0.5, -0.3])
@pytest.mark.parametrize("dim", [1, 2, 3, 6, 8, 11, 16, 17, 50, 90])
def test_as_specified(dim: int, weight: float) -> None:
    t, (_, queries) = catalog(dim).table, data(dim)
    for seed, scale in enumerate((0.02, 0.5, 4.0)):
        given = radial.points_of(t, queries, weight, scale / dim)
        for budget in (FEW, BUDGET):
            found = assert_as_specified(t, given, budget + sum(t.means.shape), seed, 1e-10)
            assert (found.standard_error > 0).any()


@pytest.mark.parametrize("weight", [-0.5, 0.5, -0.3])
@pytest.mark.parametrize("dim", [12, 50])
def test_groups_weigh_about_what_is_guessed(dim: int, weight: float) -> None:
    t, (_, queries) = catalog(dim).table, data(dim)
    given = radial.points_of(t, queries, weight, 0.5 / dim)
    for point in given.points:
        found = radial.guess(t, point, given, -1).log_mean
        squares = given.factor * ((t.rows - point) ** 2).sum(1)
        true = [logsumexp(squares[a : a + n]) - np.log(n) for a, n in zip(t.start, t.count, strict=True)]
        apart = found - true
        assert np.abs(apart - np.median(apart)).mean() < 0.5


@pytest.mark.parametrize(
    ("dim", "dtype", "coded"), [(2, "float32", False), (3, "float64", False), (8, "float64", True)]
)
def test_where_codes_are_read_and_where_not(dim: int, dtype: str, coded: bool) -> None:
    t = catalog(dim, dtype).table
    assert (radial.spent_on(t, BUDGET, 0) is not None) is coded
    assert (t.codes is not None) is (dim > 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dim", [3, 19, 50])
def test_any_machine(dim: int, dtype: str) -> None:
    t, (_, queries) = catalog(dim, dtype).table, data(dim, dtype)
    given = radial.points_of(t, queries, -0.5, 0.6 / dim)
    for budget in (FEW, BUDGET):
        assert_as_specified(t, given, budget + sum(t.means.shape), 2, 1e-10 if dtype == "float64" else 1e-5, WIDTHS)


@pytest.mark.parametrize("dim", [2, 12])
@pytest.mark.parametrize("weight", [-0.5, 0.5, 0.0, -0.8])
def test_unbiased(dim: int, weight: float) -> None:
    """On the average over seeds the sums are exact, and errors are what standard errors say."""
    items, queries = data(dim)
    scale, seeds = 0.2 / dim if weight > 0 else 1.6 / dim, 150
    whole = exact(items, queries, scale, weight)
    found = [
        catalog(dim).kernel_sum(queries, norm_weighted(weight), scale=scale, budget=BUDGET, full=True, rng=seed)
        for seed in range(seeds)
    ]
    ratio = np.exp(np.stack([x.log_normalizer for x in found]) - whole)
    assert (np.abs(ratio.mean(0) - 1) <= 6 * ratio.std(0) / np.sqrt(seeds)).all()
    said = np.sqrt(((ratio * np.stack([x.standard_error for x in found])) ** 2).mean(0))
    assert (said > 0.7 * ratio.std(0)).all()
    assert np.median(ratio.std(0)) < 0.2


def test_exponential_kernels_are_softmax_normalizers() -> None:
    _, queries = data(12)
    found = catalog(12).kernel_sum(queries, norm_weighted(0.0), scale=0.5, budget=BUDGET, rng=3)
    np.testing.assert_array_equal(found, catalog(12).log_normalizer(queries * 0.5, budget=BUDGET, rng=3))


@pytest.mark.parametrize("dim", [2, 4, 6, 12])
def test_intervals_hold_however_narrow_kernels_are(dim: int) -> None:
    rng = np.random.default_rng(0)
    items = data(dim)[0]
    queries = items[rng.choice(ITEMS, 150, replace=False)] + 0.3 * rng.normal(size=(150, dim))
    for scale in (0.3, 1.0, 3.0, 10.0, 50.0):
        whole = exact(items, queries, scale)
        found = catalog(dim).kernel_sum(queries, scale=scale, budget=BUDGET, full=True)
        assert (np.abs(found.log_normalizer - whole) <= 1.96 * found.standard_error + 1e-3).mean() > 0.85, scale


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("dim", [2, 12])
def test_items_far_from_the_origin(dim: int, backend: str) -> None:
    """Distances keep their digits: products of such points would lose all of them in single precision."""
    items, queries = data(dim, "float32")
    shift = np.float32(2.0**13)
    far = Catalog(items + shift, cells=30)
    held = (items + shift).astype(np.float64) - 2.0**13
    whole = exact(held, (queries + shift).astype(np.float64) - 2.0**13, 2.0 / dim)
    found = far.kernel_sum(queries + shift, scale=2.0 / dim, budget=BUDGET, full=True, backend=backend)
    assert (np.abs(found.log_normalizer - whole) <= 4 * found.standard_error + 1e-4).all()
    assert np.median(np.abs(found.log_normalizer - whole)) < 0.1


def test_cells_that_have_moved() -> None:
    """Codes count from where means of cells were."""
    items, queries = data(12)
    changed, own = Catalog(items, cells=30), np.arange(0, ITEMS, 3)
    new = items[own] + 0.4
    changed.update(own, new)
    t = changed.table
    assert len(moved(t)) > 20
    whole = np.array(items)
    whole[own] = new
    given = radial.points_of(t, queries, -0.5, 0.1)
    for budget in (FEW + sum(t.means.shape), BUDGET):
        assert_as_specified(t, given, budget, 1, 1e-10)
    ratio = [
        np.exp(changed.kernel_sum(queries, scale=0.1, budget=BUDGET, rng=s) - exact(whole, queries, 0.1))
        for s in range(100)
    ]
    assert (np.abs(np.mean(ratio, 0) - 1) <= 6 * np.std(ratio, 0) / 10).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [3.0, 30.0, 1e3])
def test_errors_where_codes_tell_nothing(scale: float, dtype: str) -> None:
    """Of sharp kernels and queries far from items of all sizes, whatever is missed is said to be."""
    rng = np.random.default_rng(0)
    items = (3 * rng.gamma(0.3, size=(2_000, 1)) * rng.normal(size=(40, 16)).repeat(50, 0)).astype(dtype)
    queries = (items[rng.integers(2_000, size=60)] + 0.2 * rng.normal(size=(60, 16))).astype(dtype)
    queries[::2] *= 50
    heavy = Catalog(items, cells=20)
    found = heavy.kernel_sum(queries, scale=scale, budget=1_000, full=True)
    whole = exact(items, queries, scale)
    off = np.abs(found.log_normalizer - whole)
    held = (off <= 3 * found.standard_error + 1e-4 * np.abs(whole)).mean()
    assert held > (0.97 if scale == 1e3 else 0.8)  # there codes are not read
    if dtype == "float64":
        assert_as_specified(
            heavy.table, radial.points_of(heavy.table, queries, -0.5, scale), 1_000, 0, 1e-10 * np.abs(whole).max()
        )


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_catalogs_that_have_lost_all_items(backend: str) -> None:
    items, queries = data(12)
    emptied = Catalog(items[:300], cells=3)
    emptied.remove(np.arange(300))
    np.testing.assert_array_equal(emptied.kernel_sum(queries, backend=backend), -np.inf)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_free_rows_and_empty_cells(dtype: str) -> None:
    items, queries = data(12, dtype)
    fewer = Catalog(items, cells=30)
    cell = fewer.store.cell[np.searchsorted(fewer.store.start, fewer.store.slots, side="right") - 1]
    gone = np.union1d(np.flatnonzero(cell == cell[100]), np.arange(0, ITEMS, 5))
    fewer.remove(gone)
    t, given = fewer.table, radial.points_of(fewer.table, queries, -0.5, 0.1)
    for budget in (FEW + sum(t.means.shape), BUDGET):
        assert_as_specified(t, given, budget, 1, 1e-10 if dtype == "float64" else 1e-5)
    whole = exact(np.delete(items, gone, 0), queries, 0.1)
    np.testing.assert_allclose(fewer.kernel_sum(queries, scale=0.1, budget=ITEMS), whole, rtol=1e-5)


@pytest.mark.parametrize("weight", [1e-3, -1e-8, 1e-300])
def test_norm_weights_next_to_nothing(weight: float) -> None:
    """Their points lie too far away for distances to tell anything."""
    items, queries = data(12, "float32")
    given = {"scale": 0.1, "budget": ITEMS}
    found = catalog(12, "float32").kernel_sum(queries, norm_weighted(weight), **given)
    np.testing.assert_allclose(found, exact(items, queries, 0.1, weight), rtol=1e-6)


def test_exact_sums_of_large_logs_in_single_precision() -> None:
    items, queries = data(12, "float32")
    far = 300 * queries
    found = catalog(12, "float32").kernel_sum(far, scale=30.0, budget=ITEMS)
    wide, at = items.astype(np.float64), far.astype(np.float64)
    whole = logsumexp(-15.0 * ((at[:, None] - wide) ** 2).sum(-1), axis=1)
    assert (whole < -1e6).all()
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-3)


def test_intervals_of_large_logs_in_single_precision() -> None:
    """In single precision the logs of some are off by thirty standard errors."""
    items, queries = data(12, "float32")
    far = np.float32(3e6) * queries
    found = catalog(12, "float32").kernel_sum(far, scale=1e-7, budget=BUDGET, full=True)
    whole = logsumexp(-5e-8 * ((far.astype(np.float64)[:, None] - items) ** 2).sum(-1), axis=1)
    assert (np.abs(found.log_normalizer - whole) < 3 * found.standard_error).all()
    assert (found.standard_error < 0.02).all()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int64])
def test_scales_of_any_type(kind: Any) -> None:
    _, queries = data(12)
    found, expected = (catalog(12).kernel_sum(queries, scale=x, budget=BUDGET) for x in (kind(1.3), float(kind(1.3))))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_norm_weights_that_are_no_numbers_are_named(weight: float) -> None:
    with pytest.raises(ValueError, match=f"norm_weight must be a finite number or None, got {weight}"):
        catalog(12).kernel_sum(data(12)[1], norm_weighted(weight), budget=BUDGET)


def test_scales_next_to_nothing() -> None:
    np.testing.assert_allclose(catalog(12).kernel_sum(data(12)[1], scale=5e-324, budget=BUDGET), np.log(ITEMS))


@pytest.mark.parametrize("budget", [BUDGET, ITEMS])
def test_points_too_large_for_the_dtype_are_summed_in_another(budget: int) -> None:
    _, queries = data(12, "float32")
    large = queries * np.float32(1e20)
    found = catalog(12, "float32").kernel_sum(large, scale=1e-39, budget=budget)
    whole = np.log(ITEMS) - 0.5e-39 * (large.astype(np.float64) ** 2).sum(1)
    assert (whole < 0).all()
    np.testing.assert_allclose(found, whole, rtol=1e-6)


def test_one_query_is_as_one_of_many_and_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    _, queries = data(12)
    whole = catalog(12).kernel_sum(queries, scale=0.2, budget=BUDGET)
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "1")
    np.testing.assert_array_equal(catalog(12).kernel_sum(queries, scale=0.2, budget=BUDGET), whole)
    one = catalog(12).kernel_sum(queries[0], scale=0.2, budget=BUDGET)
    assert one.shape == ()
    assert one == whole[0]
    assert catalog(12).kernel_sum(queries[:0], scale=0.2, budget=BUDGET).shape == (0,)


def test_items_that_are_all_the_same() -> None:
    same = Catalog(np.full((5_000, 3), 2.0), cells=4)
    found = same.kernel_sum(np.full((1, 3), 1.0), scale=2.0, budget=300, full=True)
    np.testing.assert_allclose(found.log_normalizer, np.log(5_000) - 3, atol=0.01)
    assert found.standard_error < 0.05


def test_dimension_and_tails() -> None:
    shape = np.diag([0.5, 0.5, 0.0])
    t = catalog(3).table._replace(shape=shape)
    assert radial.dimension(t) == pytest.approx(2 * spheres.LOCAL)
    assert radial.dimension(t._replace(shape=0 * shape)) == 1
    assert spheres.edge(np, 1.0, 1e12) < 1
    assert spheres.edge(np, 1e7, 1e6) == pytest.approx(np.sqrt(2 * np.log(1e6)), rel=1e-3)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_both_backends_and_no_other(backend: str) -> None:
    items, queries = data(8)
    found = catalog(8).kernel_sum(queries, rfk.lookup("gaussian").kernel, scale=0.1, budget=BUDGET, backend=backend)
    np.testing.assert_allclose(found, exact(items, queries, 0.1), atol=0.3)
    with pytest.raises(ValueError, match="backend must be one of numba, numpy, got 'torch'"):
        catalog(8).kernel_sum(queries, budget=BUDGET, backend="torch")


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_logs_that_fit_no_number_are_refused(backend: str) -> None:
    _, queries = data(8)
    with pytest.raises(ValueError, match="queries must have dot products with items that fit"):
        catalog(8).kernel_sum(queries * 1e160, SHIFTED_GAUSSIAN, scale=1e10, budget=BUDGET, backend=backend)


OUTLIERS = {"one": (1, 1e4), "few": (40, 1e4), "not so far": (40, 30.0), "near": (40, 5.0)}


@cache
def spoiled(outliers: str) -> tuple[Any, Any, Catalog]:
    """Items of which some lie many times farther out than others, queries among the others, and a catalog."""
    count, far = OUTLIERS.get(outliers, (0, 1.0))
    rng = np.random.default_rng(2)
    items = 2 * rng.normal(size=(30, 12))[rng.integers(30, size=8_000)] + rng.normal(size=(8_000, 12))
    queries = items[:150] + 0.3 * rng.normal(size=(150, 12))
    items[rng.choice(8_000, count, replace=False)] *= far
    return items, queries, Catalog(items)


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("outliers", OUTLIERS)
def test_outliers_spoil_nothing(outliers: str, scale: float) -> None:
    """What is known of all groups together is that of most items, and outliers lie in cells of their own."""
    size = {}
    for kind in ("none", outliers):
        items, queries, held = spoiled(kind)
        found = [held.kernel_sum(queries, scale=scale, budget=1_200, full=True, rng=seed) for seed in range(4)]
        off = np.array([x.log_normalizer for x in found]) - exact(items, queries, scale)
        within = np.abs(off) <= 1.96 * np.array([x.standard_error for x in found]) + 1e-9
        assert within.mean() > 0.92
        size[kind] = np.sqrt(np.mean(np.minimum(np.abs(off), 1) ** 2))
    assert size[outliers] < 2 * size["none"]


def test_outliers_have_cells_of_their_own() -> None:
    items, _, held = spoiled("few")
    table = held.table
    far = np.abs(items).max(1) > 1e3
    for cell in np.unique(table.cell):
        rows = np.concatenate(
            [np.arange(table.start[g], table.start[g] + table.count[g]) for g in np.flatnonzero(table.cell == cell)]
        )
        assert len(set(far[table.ids[rows]].tolist())) == 1
    assert len(table.means) <= 9 * len(spoiled("none")[2].table.means) // 8
    assert len(Catalog(items[~far], cells=7).table.means) == 7


def test_the_typical_spread_is_not_that_of_outliers() -> None:
    plain, added = (Catalog(spoiled("none")[0]) for _ in range(2))
    assert tables.typical_spread(plain.table) == pytest.approx(float(plain.table.spread @ plain.table.count) / 8_000)
    added.add(np.full((1, 12), 1e4))  # its whole group counts as it
    assert tables.typical_spread(added.table) == pytest.approx(tables.typical_spread(plain.table), rel=1)
    np.testing.assert_allclose(scans.limits(added.table), scans.limits(plain.table), rtol=0.5)
    np.testing.assert_allclose(radial.reach_of(added.table, 1.0), radial.reach_of(plain.table, 1.0), rtol=1)
    assert tables.typical_spread(Catalog(np.zeros((0, 3))).table) == 0


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_an_outlier_that_comes_later_spoils_little(scale: float) -> None:
    """In few dimensions groups alone tell where items lie: their guesses must tell spreads of usual groups apart."""
    items = np.random.default_rng(0).normal(size=(8_000, 3))
    held, queries, size = Catalog(items), items[:150] + 0.1, []
    for added in (items[:0], np.full((1, 3), 3e4)):
        held.add(added)
        found = [held.kernel_sum(queries, scale=scale, budget=900, rng=seed) for seed in range(4)]
        size.append(np.sqrt(np.mean((np.array(found) - exact(items, queries, scale)) ** 2)))
    assert size[1] < 4 * size[0]
    spread, count = np.array([0.0, 1.0, 2.0, 1e9, 1e-9, 3.0]), np.array([5, 9, 30, 4, 3, 0])
    np.testing.assert_allclose(spheres.ends(np, spread, count), (2 / spheres.APART, 2 * spheres.APART, 1e9))
    np.testing.assert_allclose(spheres.ends(np, spread[:3], count[:3]), (1, 2, 2))
    np.testing.assert_allclose(spheres.ends(np, spread[:1], count[:1]), (0, 0, 0))


def test_guesses_between_nodes_are_of_no_negative_variance() -> None:
    """Mean squares are no less than squared means, but what is interpolated of both may be."""
    table = Catalog(np.random.default_rng(2).standard_normal((6000, 3)), cells=40).table
    given = radial.points_of(table, np.array([[-2.408, 0.729, -4.969]]), -0.5, 0.3)
    assert (radial.guess(table, given.points[0], given, -1).variance > 0).all()
    assert_as_specified(table, given, 900, 2, 1e-10)


@pytest.mark.parametrize("width", [0.01, 0.002, 0.001])
@pytest.mark.parametrize("dim", [1, 4])
def test_narrow_kernels_on_lines_are_seen(dim: int, width: float) -> None:
    """Where a sphere has two ends, a group may have items near a point between all distances that are tried of it."""
    rng = np.random.default_rng(dim)
    items, points = ((rng.normal(size=(n, 1)) * np.ones(dim)).astype(np.float32) for n in (10_000, 200))
    held, scale = rfk.Catalog(items), dim**-1.0 / width**2
    wanted, beyond = exact_near(items, points, scale), 0
    for seed in range(3):
        found = held.kernel_sum(points, scale=scale, budget=600, full=True, rng=seed)
        off = np.abs(np.expm1(np.clip(found.log_normalizer - wanted, -700, 700)))
        beyond += np.count_nonzero(off > 2 * found.standard_error + 1e-4)
    assert beyond <= 0.02 * 3 * len(points)


def test_groups_on_lines_are_guessed_between_the_distances_tried() -> None:
    """Out to 1.6 deviations of normal items, where one in nine lies beyond, none far below what it is."""
    x, one, scale = spheres.nodes(np, -8, 10, spheres.GUESSED), np.float64(1), 1e4
    edge = spheres.edge(np, one, np.float64(10_000))
    guessed, _ = spheres.means(np, lambda squares: -scale / 2 * squares, x, np.ones(1), one, edge, betainc)
    off = guessed[:, 0] - (-x - np.log(scale)) / 2
    assert (np.abs(off[x < 2.5]) < 8).all()


def exact_near(items: Any, points: Any, scale: float) -> Any:
    """Return exact logs of Gaussian sums from distances, which keep their digits."""
    apart = points.astype(np.float64)[:, None] - items.astype(np.float64)
    return logsumexp(-scale / 2 * (apart**2).sum(-1), axis=1)
