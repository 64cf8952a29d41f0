"""Sums of kernels that are functions of a distance, of any form: as specified, unbiased, and told how far off."""

from __future__ import annotations

import threading
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from clustered import BUDGET, FEW, ITEMS, WIDTHS, assert_as_specified, catalog, data
from oracle import alternate
from profiled import KERNELS, epanechnikov, exact, squares
from scipy.special import betainc

import rfkernels as rfk
from rfkernels.backends.numba import catalog_radial
from rfkernels.backends.numba.catalog_profiles import program_of
from rfkernels.catalog import Catalog, engines, profiles, radial, spheres
from rfkernels.catalog.codes import moved
from rfkernels.kernels import Kernel


def holds(found: Any, whole: Any, deviations: float = 1.96) -> Any:
    """Return which intervals hold."""
    with np.errstate(invalid="ignore"):
        off = np.abs(found.log_normalizer - whole)
    return (found.log_normalizer == whole) | (off <= deviations * found.standard_error + 1e-6)


@pytest.mark.parametrize(
    ("name", "dim"),
    alternate(["laplacian", "matern52", "cauchy", "epanechnikov", "ring", "rising"], [1, 2, 3, 6, 8, 11, 17, 50]),
)
def test_as_specified(dim: int, name: str) -> None:
    t, (_, queries) = catalog(dim).table, data(dim)
    for seed, scale in enumerate((0.02, 0.5, 4.0)):
        given = radial.points_from(t, queries, KERNELS[name], scale / dim)
        budget = (FEW, BUDGET)[(dim + seed) % 2]  # every kernel is asked for in odd and in even dimensions
        assert_as_specified(t, given, budget + sum(t.means.shape), seed, 1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dim", [3, 19, 50])
def test_any_machine(dim: int, dtype: str) -> None:
    t, (_, queries) = catalog(dim, dtype).table, data(dim, dtype)
    for kernel in (KERNELS["laplacian"], KERNELS["epanechnikov"]):
        given = radial.points_from(t, queries, kernel, 0.3 / dim)
        for budget in (FEW, BUDGET):
            assert_as_specified(t, given, budget + sum(t.means.shape), 2, 1e-9 if dtype == "float64" else 1e-4, WIDTHS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("name", KERNELS)
def test_exact(name: str, backend: str, dtype: str) -> None:
    items, queries = data(12, dtype)
    whole = exact(items, queries, KERNELS[name], 0.05)
    found = catalog(12, dtype).kernel_sum(queries, KERNELS[name], scale=0.05, budget=ITEMS, full=True, backend=backend)
    np.testing.assert_allclose(found.log_normalizer, whole, rtol=2e-6 if dtype == "float32" else 1e-12)
    np.testing.assert_array_equal(found.standard_error, 0)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dim", [2, 12])
def test_unbiased(dim: int, name: str) -> None:
    """On the average over seeds the sums are exact, and errors are what standard errors say."""
    items, queries = data(dim)
    scale, seeds = 0.6 / dim, 150
    whole = exact(items, queries, KERNELS[name], scale)
    found = [
        catalog(dim).kernel_sum(queries, KERNELS[name], scale=scale, budget=BUDGET, full=True, rng=seed)
        for seed in range(seeds)
    ]
    ratio = np.exp(np.stack([x.log_normalizer for x in found]) - whole)
    assert (np.abs(ratio.mean(0) - 1) <= 6 * ratio.std(0) / np.sqrt(seeds) + 1e-12).all()
    error = np.stack([np.where(ratio[i] > 0, x.standard_error, 1) for i, x in enumerate(found)])
    said = np.sqrt(((np.where(ratio > 0, ratio, 1) * error) ** 2).mean(0))
    assert (said > 0.6 * ratio.std(0)).all()


@pytest.mark.parametrize("name", ["laplacian", "cauchy", "epanechnikov", "box"])
@pytest.mark.parametrize("dim", [2, 4, 6, 12])
def test_intervals_hold_however_narrow_kernels_are(dim: int, name: str) -> None:
    rng = np.random.default_rng(0)
    items = data(dim)[0]
    queries = items[rng.choice(ITEMS, 150, replace=False)] + 0.3 * rng.normal(size=(150, dim))
    for scale in (0.3, 1.0, 3.0, 10.0, 50.0):
        kernel, own = KERNELS[name], scale * (dim if name == "laplacian" else 1 / dim)
        whole = exact(items, queries, kernel, own)
        found = catalog(dim).kernel_sum(queries, kernel, scale=own, budget=BUDGET, full=True)
        assert holds(found, whole).mean() > 0.8, scale


@pytest.mark.parametrize(("dim", "most"), [(2, 0.045), (4, 0.15)])
def test_groups_at_the_edge_of_a_kernel_are_found(dim: int, most: float) -> None:
    """Items of a group lie at several distances from the mean of their cell, and some within reach."""
    rng, items = np.random.default_rng(0), data(dim)[0]
    queries = items[rng.choice(ITEMS, 150, replace=False)] + 0.3 * rng.normal(size=(150, dim))
    whole = exact(items, queries, KERNELS["box"], 10 / dim)
    some = whole > -np.inf
    logs = [
        catalog(dim).kernel_sum(queries, KERNELS["box"], scale=10 / dim, budget=BUDGET, rng=seed) for seed in range(3)
    ]
    assert np.sqrt(np.mean(np.square(np.exp(np.stack(logs)[:, some] - whole[some]) - 1))) < most


def test_errors_are_those_of_codes() -> None:
    """A third of what they are from rows, on the average, where codes are read."""
    items, queries = data(12)
    for name in ("laplacian", "epanechnikov"):
        scale = 0.5 if name == "laplacian" else 0.05
        whole, errors = exact(items, queries, KERNELS[name], scale), {}
        for kind in ("codes", "rows"):
            own = Catalog(items, cells=30) if kind == "codes" else catalog(12)
            t = own.table if kind == "codes" else own.table._replace(codes=None)
            given = radial.points_from(t, queries, KERNELS[name], scale)
            found = [engines.choose("numba").radial(t, given, BUDGET, seed).log_normalizer for seed in range(20)]
            errors[kind] = np.sqrt(np.mean((np.exp(found - whole) - 1) ** 2))
        assert errors["codes"] < 0.6 * errors["rows"]


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("dim", [2, 12])
def test_items_far_from_the_origin(dim: int, backend: str) -> None:
    items, queries = data(dim, "float32")
    shift = np.float32(2.0**13)
    far = Catalog(items + shift, cells=30)
    held = (items + shift).astype(np.float64) - 2.0**13
    kernel = KERNELS["laplacian"]
    whole = exact(held, (queries + shift).astype(np.float64) - 2.0**13, kernel, 1.0)
    found = far.kernel_sum(queries + shift, kernel, scale=1.0, budget=BUDGET, full=True, backend=backend)
    assert holds(found, whole, 4).all()
    assert np.median(np.abs(found.log_normalizer - whole)) < 0.1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_changed_catalogs(dtype: str) -> None:
    """Codes count from where means of cells were, and rows may be free, and cells empty."""
    items, queries = data(12, dtype)
    changed, own = Catalog(items, cells=30), np.arange(0, ITEMS, 3)
    new = items[own] + np.asarray(0.4, dtype)
    changed.update(own, new)
    whole = np.array(items)
    whole[own] = new
    cell = changed.store.cell[np.searchsorted(changed.store.start, changed.store.slots, side="right") - 1]
    gone = np.union1d(np.flatnonzero(cell == cell[100]), np.arange(1, ITEMS, 7))
    changed.remove(gone)
    left = np.delete(whole, gone, 0)
    t = changed.table
    assert len(moved(t)) > 20
    for name in ("laplacian", "epanechnikov"):
        given = radial.points_from(t, queries, KERNELS[name], 0.05)
        for budget in (FEW, BUDGET):
            assert_as_specified(t, given, budget + sum(t.means.shape), 1, 1e-9 if dtype == "float64" else 1e-4)
        found = changed.kernel_sum(queries, KERNELS[name], scale=0.05, budget=ITEMS)
        np.testing.assert_allclose(found, exact(left, queries, KERNELS[name], 0.05), rtol=1e-5)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_sums_over_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    items, queries = data(12)
    given: dict[str, Any] = {"budget": BUDGET, "full": True, "backend": backend}
    monkeypatch.setattr(catalog_radial, "one_radial_sum", None)  # none is computed again
    for dtype in ("float32", "float64"):
        own = catalog(12, dtype)
        nowhere = own.kernel_sum(queries + 1e3, KERNELS["epanechnikov"], **given)
        np.testing.assert_array_equal(nowhere.log_normalizer, -np.inf)
        np.testing.assert_array_equal(nowhere.standard_error, np.inf)  # of what was not looked at, nothing is known
        whole = own.kernel_sum(queries + 1e3, KERNELS["epanechnikov"], **{**given, "budget": ITEMS})
        np.testing.assert_array_equal(whole.log_normalizer, -np.inf)
        np.testing.assert_array_equal(whole.standard_error, 0)
    emptied = Catalog(items[:300], cells=3)
    emptied.remove(np.arange(300))
    np.testing.assert_array_equal(emptied.kernel_sum(queries, KERNELS["laplacian"], backend=backend), -np.inf)
    assert catalog(12).kernel_sum(queries[:0], KERNELS["laplacian"], backend=backend).shape == (0,)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_an_error_that_is_wanted(backend: str) -> None:
    """A pilot says how many dot products it takes; where it has met nothing, all items are taken."""
    items, queries = data(12)
    kernel = KERNELS["epanechnikov"]
    both = np.concatenate([queries, queries + 1e3])
    found = catalog(12).kernel_sum(both, kernel, scale=0.02, budget=BUDGET, error=0.02, full=True, backend=backend)
    whole = exact(items, both, kernel, 0.02)
    assert (found.standard_error <= 0.06).all()
    assert holds(found, whole, 4).all()
    np.testing.assert_array_equal(found.log_normalizer[len(queries) :], -np.inf)


def test_kernels_that_other_backends_could_not_run_are_summed_by_numpy() -> None:
    items, queries = data(12)
    own = Kernel.of_distance("own", lambda xp, squared: -np.hypot(squared, 1))
    assert own.profile is not None
    assert program_of(own.profile) is None
    found = catalog(12).kernel_sum(queries, own, scale=0.05, budget=BUDGET, full=True)
    expected = catalog(12).kernel_sum(queries, own, scale=0.05, budget=BUDGET, full=True, backend="numpy")
    np.testing.assert_array_equal(found.log_normalizer, expected.log_normalizer)
    assert holds(found, exact(items, queries, own, 0.05), 4).all()
    np.testing.assert_allclose(
        catalog(12).kernel_sum(queries, own, scale=0.05, budget=ITEMS), exact(items, queries, own, 0.05)
    )


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_kernels_that_are_no_numbers_are_named(backend: str) -> None:
    _, queries = data(12)
    given: dict[str, Any] = {"budget": BUDGET, "backend": backend}
    wrong = Kernel.of_distance("wrong", lambda xp, squared: xp.log(squared - 1))
    with pytest.raises(ValueError, match="kernel must have logs below infinity, but that of wrong is nan at a squared"):
        catalog(12).kernel_sum(queries, wrong, **given)
    here = catalog(12).store.rows[catalog(12).store.slots[:3]]
    infinite = Kernel.of_distance("infinite", lambda xp, squared: xp.where(squared > 0, 0 * squared, float("inf")))
    with pytest.raises(ValueError, match="the sum of infinite for query 0 has the log"):
        catalog(12).kernel_sum(here, infinite, budget=ITEMS, backend=backend)
    whole = Kernel.of_distance("whole", lambda xp, squared: squared[:1])
    with pytest.raises(
        ValueError, match=r"a real log for each squared distance, but that of whole returned shape \(1,\)"
    ):
        catalog(12).kernel_sum(queries, whole, **given)


@pytest.mark.parametrize("profile", [None, 3, [1.0]])
def test_profiles_that_are_no_functions_are_refused(profile: Any) -> None:
    with pytest.raises(TypeError, match="profile must be a function profile"):
        Kernel.of_distance("own", profile)
    with pytest.raises(TypeError, match="name must be a string, got 3"):
        Kernel.of_distance(3, lambda xp, squared: -squared)  # type: ignore[arg-type]


def test_profiles_that_have_no_hash_are_refused() -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, xp: Any, squared: Any) -> Any:
            return -squared

    with pytest.raises(TypeError, match="that can be hashed"):
        Kernel.of_distance("own", Unhashable())
    with pytest.raises(TypeError, match="that can be hashed"):
        Kernel("own", KERNELS["box"].log, profile=Unhashable())


def test_kernels_of_a_distance_are_kernels() -> None:
    kernel = KERNELS["epanechnikov"]
    assert kernel == Kernel.of_distance("epanechnikov", epanechnikov)
    assert hash(kernel) == hash(Kernel.of_distance("epanechnikov", epanechnikov))
    x, y = np.array([0.1, 0.2]), np.array([0.4, -0.2])
    assert np.exp(kernel.log(np, x @ y, x @ x, y @ y)) == pytest.approx(1 - 0.09 - 0.16)
    assert all(rfk.lookup(name).kernel.profile is not None for name in ("laplacian", "matern32", "matern52", "cauchy"))
    assert rfk.lookup("relu").kernel.profile is None


@pytest.mark.parametrize("scale", [1e-40, 5e-324, 1e30, 1e300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scales_of_any_size(dtype: str, scale: float) -> None:
    items, queries = data(12, dtype)
    found = catalog(12, dtype).kernel_sum(queries, KERNELS["cauchy"], scale=scale, budget=BUDGET, full=True)
    whole = exact(items, queries, KERNELS["cauchy"], scale)
    assert holds(found, whole, 4).all()


def test_squares_too_large_for_single_precision() -> None:
    """Their logs may fit it again."""
    items, _ = data(12, "float32")
    large = items * np.float32(1e16)
    huge = Catalog(large, cells=30)
    for name in ("cauchy", "laplacian"):
        whole = exact(large, large[:3] / 2, KERNELS[name], 1e8)
        found = huge.kernel_sum(large[:3] / 2, KERNELS[name], scale=1e8, budget=ITEMS)
        np.testing.assert_allclose(found, whole, rtol=1e-9)
    sampled = huge.kernel_sum(large[:3] / 2, KERNELS["cauchy"], scale=1e8, budget=BUDGET, full=True)
    assert holds(sampled, exact(large, large[:3] / 2, KERNELS["cauchy"], 1e8), 4).all()


def test_exact_sums_of_sharp_kernels_in_single_precision() -> None:
    """Single precision knows squares to one part in ten millions, which such kernels multiply."""
    items, queries = data(12, "float32")
    sharp = Kernel.of_distance("sharp", lambda xp, squared: -1e6 * (squared - 1) ** 2)
    scale = float(1 / np.sort(squares(items, queries[:1])[0])[40])
    found = catalog(12, "float32").kernel_sum(queries[:1], sharp, scale=scale, budget=ITEMS)
    np.testing.assert_allclose(found, exact(items, queries[:1], sharp, scale), rtol=0, atol=1e-6)


def test_a_catalog_of_one_item() -> None:
    one = Catalog(np.ones((1, 12)))
    found = one.kernel_sum(np.zeros((2, 12)), KERNELS["laplacian"], full=True)
    np.testing.assert_allclose(found.log_normalizer, -np.sqrt(12))


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_what_codes_take_for_nothing_is_not_estimated_anew(backend: str) -> None:
    """A second estimate, of those alone that have met nothing, would count what they miss twice."""
    rng = np.random.default_rng(7)
    items = rng.normal(size=(20_000, 12))
    alone, query = Catalog(items, cells=90), 0.5 * rng.normal(size=(1, 12))
    scale, seeds = float(1 / np.sort(squares(items, query)[0])[:2].mean()), 2_000 if backend == "numba" else 150
    assert exact(items, query, KERNELS["box"], scale) == 0
    found = np.array(
        [
            alone.kernel_sum(query, KERNELS["box"], scale=scale, budget=312, rng=seed, backend=backend)[0]
            for seed in range(seeds)
        ]
    )
    weights = np.exp(found)
    assert (weights == 0).mean() > 0.3
    assert weights.mean() - 1 <= 5 * weights.std() / np.sqrt(seeds)
    if backend == "numpy":
        compiled = [alone.kernel_sum(query, KERNELS["box"], scale=scale, budget=312, rng=s)[0] for s in range(seeds)]
        np.testing.assert_allclose(weights, np.exp(compiled), atol=1e-9)


def test_nothing_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What codes say of a sum in which they met nothing stands, and only what is no number is asked of rows."""
    t, (_, queries) = catalog(12).table, data(12)
    given = radial.points_from(t, queries, KERNELS["box"], 0.05)
    for said, asked in ((-np.inf, False), (np.nan, True)):
        calls: list[int] = []
        monkeypatch.setattr(radial, "_by_codes", lambda *_, said=said: (said, np.inf, 7))
        monkeypatch.setattr(radial, "_by_rows", lambda *_, calls=calls: calls.append(1) or (1.0, 0.5, 8))
        log, error, dots = radial.one_radial_sum(t, given, BUDGET, 0, 0)
        assert bool(calls) is asked
        assert (log, error, dots) == ((1.0, 0.5, 8) if asked else (-np.inf, np.inf, 7))


@pytest.mark.parametrize("kernel", ["epanechnikov", "box"])
def test_nothing_is_not_computed_again(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_radial, "one_radial_sum", lambda *_: pytest.fail("computed again"))
    far = 100 + data(12, "float32")[1]
    assert np.isneginf(catalog(12, "float32").kernel_sum(far, KERNELS[kernel], budget=BUDGET)).all()


ROUGH: dict[str, Any] = {
    "ring": lambda xp, squared: -50 * (squared - 1) ** 2,
    "steep": lambda xp, squared: -8 * squared * squared,
    "stair": lambda xp, squared: xp.where(squared < 0.5, 0 * squared, xp.where(squared < 1, 0 * squared - 2, -5)),
}


@pytest.mark.parametrize("name", ROUGH)
def test_intervals_of_rough_kernels(name: str) -> None:
    """Codes may take items for others where kernels change much faster than they tell."""
    rng, items, kernel = np.random.default_rng(0), data(12)[0], Kernel.of_distance(name, ROUGH[name])
    queries = items[rng.choice(ITEMS, 150, replace=False)] + 0.3 * rng.normal(size=(150, 12))
    for rank in (30, 300):
        scale = float(1 / np.median(np.sort(squares(items, queries), 1)[:, rank]))
        found = catalog(12).kernel_sum(queries, kernel, scale=scale, budget=BUDGET, full=True)
        assert holds(found, exact(items, queries, kernel, scale)).mean() > 0.7, rank


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_distances_that_are_no_numbers(backend: str) -> None:
    """A factor of 0 times an infinite square has no place in a table."""
    _, queries = data(12)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="queries must have dot products with items that"):
        catalog(12).kernel_sum(queries * 1e200, scale=5e-324, budget=BUDGET, backend=backend)


@cache
def closed_over(width: float) -> Kernel:
    return Kernel.of_distance("own", lambda xp, squared: -xp.sqrt(squared + width))


def test_caches_tell_kernels_scales_budgets_and_tables_apart() -> None:
    items, queries = data(12)
    catalogs = catalog(12), Catalog(items[::2], cells=20)
    cases = [
        (c, closed_over(width), scale, budget)
        for c in catalogs
        for width in (0.5, 30.0)
        for scale in (0.05, 1.0)
        for budget in (BUDGET, 900)
    ]
    first = [c.kernel_sum(queries, k, scale=s, budget=b) for c, k, s, b in cases]
    for (c, k, s, b), found in zip(cases, first, strict=True):
        np.testing.assert_array_equal(c.kernel_sum(queries, k, scale=s, budget=b), found)
        expected = c.kernel_sum(queries, k, scale=s, budget=b, backend="numpy")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert len({x.tobytes() for x in first}) == len(cases)


def test_one_query_is_as_one_of_many_and_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables begin and end where the queries of a call are: that changes nothing but rounding."""
    _, queries = data(12)
    kernel = KERNELS["laplacian"]
    whole = catalog(12).kernel_sum(queries, kernel, scale=0.4, budget=BUDGET)
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "1")
    np.testing.assert_array_equal(catalog(12).kernel_sum(queries, kernel, scale=0.4, budget=BUDGET), whole)
    one = catalog(12).kernel_sum(queries[0], kernel, scale=0.4, budget=BUDGET)
    assert one.shape == ()
    np.testing.assert_allclose(one, whole[0], rtol=0, atol=1e-9)


def test_threads_at_once() -> None:
    _, queries = data(12)
    kernels = [Kernel.of_distance(f"own {i}", lambda xp, squared, i=i: -(i + 1) * xp.sqrt(squared)) for i in range(8)]
    expected = [catalog(12).kernel_sum(queries, kernel, budget=BUDGET) for kernel in kernels]
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        found[i] = [catalog(12).kernel_sum(queries, kernels[i], budget=BUDGET + j) for j in range(20)]

    running = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    for i in range(8):
        np.testing.assert_array_equal(found[i][0], expected[i])


def test_tables_are_as_good_as_the_kernel() -> None:
    t, (_, queries) = catalog(12).table, data(12)
    given = radial.points_from(t, queries, KERNELS["laplacian"], 0.5)
    assert given.profile is not None
    x = np.exp(np.linspace(np.log(0.1), np.log(100), 999))
    value, steep = profiles.coded(given.profile, x)
    np.testing.assert_allclose(value, -np.sqrt(x), atol=2e-3)
    np.testing.assert_allclose(steep, 0.5 / np.sqrt(x), rtol=0.03)
    nodes = spheres.nodes(np, -2, 3, profiles.CODED)
    assert (nodes[0], nodes[-1], len(nodes)) == (0.25, 2.0, 3 * profiles.CODED + 1)
    np.testing.assert_allclose(profiles.coded(given.profile, nodes)[0], -np.sqrt(nodes), rtol=1e-12)
    ends = profiles.clipped(np.array([0.0, np.inf]), given.profile)
    assert (ends == ends.astype(np.float32)).all()


def test_what_is_0_is_filled() -> None:
    logs = np.array([-np.inf, -np.inf, 0.0, -1.0, -np.inf, -np.inf])
    fall = 0.3
    expected = [-2 * fall, -fall, 0.0, -1.0, -2 * fall, -3 * fall]
    np.testing.assert_allclose(spheres.filled(np, logs, fall), expected)
    np.testing.assert_array_equal(spheres.filled(np, np.full(4, -np.inf), fall), 0)


def test_guesses_are_those_of_a_sphere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that lie evenly on spheres about the means of their cells weigh what is guessed."""
    rng, dim, radius = np.random.default_rng(0), 6, 0.7
    point = rng.normal(size=(200_000, dim))
    point *= radius / np.sqrt((point**2).sum(1, keepdims=True))
    x = 1.3
    with np.errstate(divide="ignore"):
        own = np.exp(epanechnikov(np, ((point - np.sqrt(x) * np.eye(dim)[0]) ** 2).sum(1) / 2))
    spreads = np.array([radius**2 / 2 * 0.999, radius**2 / 2])
    monkeypatch.setattr(spheres, "SPREADS", ((1.0, 1.0),))
    squares = np.array([x / 2, x])
    log = partial(profiles._log, "epanechnikov", epanechnikov)
    log_mean, uneven = spheres.means(np, log, squares, spreads, np.float64(dim), dim**0.5, betainc)
    np.testing.assert_allclose(log_mean[0, 1], np.log(own.mean()), atol=0.03)
    np.testing.assert_allclose(uneven[0, 1], np.log((own**2).mean() / own.mean() ** 2), atol=0.05)


@pytest.mark.parametrize(
    "profile",
    [
        lambda xp, s: -s.sum(),
        lambda xp, s: -xp.sqrt(s.mean()) + 0 * s,
        lambda xp, s: s.max() - s,
        lambda xp, s: -s[::-1],
    ],
)
def test_profiles_of_all_squares_together(profile: Any) -> None:
    with pytest.raises(ValueError, match="profile must be elementwise: <function"):
        Kernel.of_distance("together", profile)


def test_profiles_of_all_squares_together_where_these_are_many() -> None:
    kernel = Kernel.of_distance("together", lambda xp, s: s.max() - s if s.size > 6 else -s)
    with pytest.raises(ValueError, match="kernel must have a profile that takes squared distances one by one"):
        catalog(12).kernel_sum(data(12)[1], kernel)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_scales_at_which_no_distance_is_a_number(backend: str) -> None:
    """Of tables of such a kernel all levels are infinite: places in them have to be some, or memory is read anywhere."""
    items = np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32)
    with pytest.raises(ValueError, match="kernel must have logs"), np.errstate(all="ignore"):
        Catalog(items).kernel_sum(items[:3] + 1, "laplacian", scale=1.7e308, budget=600, backend=backend)
