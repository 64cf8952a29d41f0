"""Sums of any kernel on JAX: guesses as specified, unbiased sums with honest errors, derivatives, refusals."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clustered import BUDGET, ITEMS, catalog, data
from oracle import alternate
from profiled import KERNELS, squares, whole
from scipy import special
from scipy.special import logsumexp

import rfkernels as rfk
from rfkernels.backends.jax import catalog as on_device
from rfkernels.backends.jax import catalog_kernels, catalog_sums
from rfkernels.catalog import Catalog, kernel_sums, radial
from rfkernels.kernels import ARC_COSINE_1, SHIFTED_GAUSSIAN, Kernel

KEYS = 150
FALLING = Kernel("falling", lambda xp, dot, xx, yy: dot - 0.3 * (xx + yy), norm_weight=-0.3)
ALL: dict[str, Kernel] = {
    **KERNELS,
    "gaussian": rfk.lookup("gaussian").kernel,
    "exponential": rfk.lookup("positive").kernel,
    "shifted": SHIFTED_GAUSSIAN,
    "falling": FALLING,
    "flat": Kernel("flat", lambda xp, dot, xx, yy: dot - 0.05 * (xx + yy), norm_weight=-0.05),
    "arc_cosine": ARC_COSINE_1,
}

ALIKE = {"cauchy", "matern52", "box", "shifted", "flat"}
"""Kernels of which sums are estimated as those of others, whose programs are compiled by default."""


def alternated(other: list[Any]) -> list[Any]:
    """All kernels and others as `oracle.alternate` pairs them, those that are alike in the long mode only."""
    pairs = alternate(ALL, other)
    return [pytest.param(*x.values, marks=pytest.mark.long) if x.values[0] in ALIKE else x for x in pairs]


@pytest.fixture(autouse=True)
def double() -> Any:
    with jax.enable_x64(True):
        yield


@cache
def table(dim: int, dtype: str = "float64") -> Any:
    with jax.enable_x64(True):
        return on_device.device_table(catalog(dim, dtype).table)


known = jax.jit(lambda weights, *given: weights.known(*given), static_argnums=0)
guess = jax.jit(lambda weights, *given: weights.guess(*given), static_argnums=0)


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
        return dot


def narrow(name: str, dim: int) -> float:
    return 0.05 if name in ("exponential", "shifted", "flat", "arc_cosine") else 0.6 / dim


def budget(dim: int, own: int = BUDGET) -> int:
    return own + sum(catalog(dim).table.means.shape)


@pytest.mark.parametrize(
    ("name", "dim"),
    alternate(["laplacian", "cauchy", "epanechnikov", "ring", "rising", "gaussian", "falling"], [1, 2, 12, 50]),
)
def test_guesses_of_distances_are_those_of_the_specification(dim: int, name: str) -> None:
    host, (_, queries) = catalog(dim).table, data(dim)
    for scale in (0.02 / dim, 4.0 / dim):
        weight = ALL[name].norm_weight
        if weight is None:
            given = radial.points_from(host, queries, ALL[name], scale)
        else:
            given = radial.points_of(host, queries, weight, scale)
        points, size, constant, weights = catalog_kernels._weights(ALL[name], jnp.asarray(queries), jnp.asarray(scale))
        np.testing.assert_allclose(points, given.points, rtol=1e-12)
        np.testing.assert_allclose(constant, given.constant, rtol=1e-12)
        shared = known(weights, table(dim), points, size)
        for query, point in zip(points, given.points, strict=True):
            got, expected = guess(weights, table(dim), shared, query, size), radial.guess(host, point, given, -1)
            np.testing.assert_allclose(got.log_mean, expected.log_mean, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(got.variance, expected.variance, rtol=1e-6)


@pytest.mark.parametrize("name", ["flat", "arc_cosine"])
def test_guesses_of_products_are_those_of_the_specification(name: str) -> None:
    host, (_, queries) = catalog(12).table, data(12)
    _, size, _, weights = catalog_kernels._weights(ALL[name], jnp.asarray(queries), jnp.asarray(0.05))
    for query in queries:
        got = guess(weights, table(12), None, jnp.asarray(query), size)
        expected = kernel_sums.guess(host, query, kernel_sums.Scaled(ALL[name], 0.05))
        np.testing.assert_allclose(got.log_mean, expected.log_mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got.variance, expected.variance, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_logs_of_weights_are_those_of_the_kernel(name: str) -> None:
    items, queries = data(12)
    scale = narrow(name, 12)
    points, size, constant, weights = catalog_kernels._weights(ALL[name], jnp.asarray(queries), jnp.asarray(scale))
    logs = jax.jit(jax.vmap(lambda point: weights.logits(jnp.asarray(items), point, size)))(points)
    expected = whole(items, queries, ALL[name], scale)
    np.testing.assert_allclose(logsumexp(logs, 1) + constant, expected, rtol=1e-10)


@pytest.mark.parametrize(("name", "dtype"), alternated(["float64", "float32"]))
def test_exact_where_all_items_are_taken(name: str, dtype: str) -> None:
    items, queries = data(12, dtype)
    with jax.enable_x64(dtype == "float64"):
        own = on_device.device_table(catalog(12, dtype).table)
        key, scale = jax.random.key(0), narrow(name, 12)
        found = on_device.kernel_sum(own, queries, ALL[name], budget(12, ITEMS + 3), key, scale=scale)
        assert found.log_normalizer.dtype == dtype
    expected = whole(items, queries, ALL[name], scale)
    close = {"rtol": 1e-10} if dtype == "float64" else {"rtol": 1e-5, "atol": 1e-4}
    np.testing.assert_allclose(found.log_normalizer, expected, **close)
    np.testing.assert_array_equal(found.standard_error, 0)


@pytest.mark.parametrize(("name", "dim"), alternated([2, 12]))
def test_unbiased_and_as_uncertain_as_it_says(dim: int, name: str) -> None:
    items, queries = data(dim)
    scale, own = narrow(name, dim), table(dim)

    def one(seed: Any) -> Any:
        key = jax.random.key(seed)
        return on_device.kernel_sum(own, queries, ALL[name], budget(dim), key, scale=scale)

    found = jax.jit(lambda seeds: jax.lax.map(one, seeds))(jnp.arange(KEYS))
    ratio = np.exp(np.asarray(found.log_normalizer) - whole(items, queries, ALL[name], scale))
    assert ratio.std(0).max() > 1e-6
    assert (np.abs(ratio.mean(0) - 1) <= 6 * ratio.std(0) / np.sqrt(KEYS) + 1e-12).all()
    error = np.where(ratio > 0, found.standard_error, 1)
    said = np.sqrt(((np.where(ratio > 0, ratio, 1) * error) ** 2).mean(0))
    assert (said > 0.6 * ratio.std(0)).all()
    some = ratio.std(0) > 1e-9
    assert np.median(said[some] / ratio.std(0)[some]) < 3
    assert (found.dots <= budget(dim)).all()


def test_errors_are_those_of_numpy() -> None:
    """The root mean square over queries and seeds, of both where no codes are read."""
    items, queries = data(12)
    host = catalog(12).table._replace(codes=None)
    for name, scale in (("laplacian", 0.5), ("gaussian", 0.2)):
        kernel, errors = ALL[name], []
        expected = whole(items, queries, kernel, scale)
        for seed in range(40):
            key = jax.random.key(seed)
            there = on_device.kernel_sum(table(12), queries, kernel, budget(12), key, scale=scale)
            how = host, queries, kernel_sums.Scaled(kernel, scale), budget(12), None, seed, "numba"
            logs = np.stack([there.log_normalizer, kernel_sums.estimated(*how).log_normalizer])
            errors.append(np.expm1(logs - expected))
        own, theirs = np.sqrt(np.square(errors).mean((0, 2)))
        assert 0.7 * theirs < own < 1.4 * theirs


def test_in_single_precision() -> None:
    items, queries = data(12, "float32")
    with jax.enable_x64(False):
        own = on_device.device_table(catalog(12, "float32").table)
        for name in ("laplacian", "epanechnikov", "gaussian"):
            for scale in (0.01, 1.0, 100.0):
                found = on_device.kernel_sum(own, queries, ALL[name], budget(12), jax.random.key(1), scale=scale)
                assert found.log_normalizer.dtype == jnp.float32
                assert not np.isnan(found.log_normalizer).any()
                assert not np.isnan(found.standard_error).any()
                with np.errstate(invalid="ignore"):
                    off = np.abs(np.asarray(found.log_normalizer, np.float64) - whole(items, queries, ALL[name], scale))
                # `found` may be 0 where few items are near, and then says so.
                held = np.asarray(found.standard_error)
                assert ((off < 5 * held + 1e-3) | np.isinf(held)).all()


def test_items_far_from_the_origin() -> None:
    """Distances keep their digits where products would cancel."""
    items, queries = data(12, "float32")
    shift = np.float32(2.0**13)
    with jax.enable_x64(False):
        far = on_device.device_table(Catalog(items + shift, cells=30).table)
        for name in ("laplacian", "gaussian"):
            found = on_device.kernel_sum(far, queries + shift, ALL[name], budget(12), jax.random.key(0), scale=0.5)
            expected = whole(
                (items + shift).astype(np.float64), (queries + shift).astype(np.float64), KERNELS["laplacian"], 0.5
            )
            if name == "gaussian":
                expected = logsumexp(-0.25 * squares(items + shift, queries + shift), axis=1)
            off = np.abs(np.asarray(found.log_normalizer) - expected)
            assert (off < 4 * np.asarray(found.standard_error) + 1e-3).all()
            assert np.median(off) < 0.1


def test_sums_over_nothing() -> None:
    items, queries = data(12)
    given = table(12), queries + 1e3, KERNELS["epanechnikov"]
    nowhere = on_device.kernel_sum(*given, budget(12), jax.random.key(0))
    np.testing.assert_array_equal(nowhere.log_normalizer, -np.inf)
    np.testing.assert_array_equal(nowhere.standard_error, np.inf)
    every = on_device.kernel_sum(*given, budget(12, ITEMS), jax.random.key(0))
    np.testing.assert_array_equal(every.log_normalizer, -np.inf)
    np.testing.assert_array_equal(every.standard_error, 0)
    emptied = Catalog(items[:300], cells=3)
    emptied.remove(np.arange(300))
    none = on_device.device_table(emptied.table)
    found = on_device.kernel_sum(none, queries, KERNELS["laplacian"], 600, jax.random.key(0))
    np.testing.assert_array_equal(found.log_normalizer, -np.inf)
    np.testing.assert_array_equal(found.standard_error, 0)
    assert on_device.kernel_sum(table(12), queries[:0], ALL["arc_cosine"], 900, jax.random.key(0)).dots.shape == (0,)
    assert on_device.kernel_sum(table(12), queries[:0], ALL["laplacian"], 900, jax.random.key(0)).dots.shape == (0,)


@pytest.mark.parametrize("name", ["laplacian", "gaussian", "exponential", "arc_cosine"])
def test_derivatives_are_those_of_the_sum(name: str) -> None:
    """Of queries, which for a density are its score, and of the scale."""
    items, queries = data(12)
    scale, kernel, there = narrow(name, 12), ALL[name], table(12)

    def log(q: Any, scale: Any) -> Any:
        if kernel.profile is not None:
            return jax.nn.logsumexp(kernel.profile(jnp, scale * jnp.sum((items - q) ** 2, 1)))
        return jax.nn.logsumexp(kernel.log(jnp, scale * (items @ q), scale * (q @ q), scale * jnp.sum(items**2, 1)))

    def estimated(q: Any, scale: Any, own: int) -> Any:
        found = on_device.kernel_sum(there, q[None], kernel, budget(12, own), jax.random.key(3), scale=scale)
        return found.log_normalizer[0]

    runs = log, partial(estimated, own=ITEMS), partial(estimated, own=2_000)
    gradients = [jax.jit(jax.grad(run, (0, 1))) for run in runs]
    for q in queries[:3]:
        found = (gradient(jnp.asarray(q), jnp.asarray(scale)) for gradient in gradients)
        for exactly, all_taken, some_taken in zip(*found, strict=True):
            np.testing.assert_allclose(all_taken, exactly, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(some_taken, exactly, rtol=0.5, atol=0.2 * np.abs(exactly).max())


@pytest.mark.parametrize("seed", [4, 5])
def test_guesses_in_two_dimensions_of_many_items(seed: int) -> None:
    """Next to the largest distance there is, one less a little is one in single precision."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(100_000, 2)).astype(np.float32)
    queries = rng.normal(size=(40, 2)).astype(np.float32)
    with jax.enable_x64(False):
        own = on_device.device_table(Catalog(items, cells=60).table)
        found = on_device.kernel_sum(own, queries, "gaussian", 2_000, jax.random.key(0), scale=200.0)
    off = np.abs(found.log_normalizer - logsumexp(-100 * squares(items, queries), axis=1))
    assert np.median(off) < 0.05


def test_groups_of_one_vector_each() -> None:
    places = np.zeros((24, 3), np.float32)
    places[:, 0] = np.arange(24)
    repeated = Catalog(np.repeat(places, 400, axis=0), cells=24)
    with jax.enable_x64(False):
        own = on_device.device_table(repeated.table)
        own = own._replace(spread=jnp.zeros_like(own.spread))
        queries = jnp.asarray(places[:8] + 0.0625)
        weights, points = catalog_kernels.Distances("gaussian", lambda xp, s: -s / 2), queries
        shared = known(weights, own, points, jnp.float32(4))
        got = guess(weights, own, shared, queries[0], jnp.float32(4))
    assert np.isfinite(got.log_mean).all()
    assert np.isfinite(got.variance).all()
    near = own.cell == own.cell[np.argmax(got.log_mean)]
    assert np.asarray(got.log_mean)[~np.asarray(near)].max() < got.log_mean.max() - 0.5


@pytest.mark.parametrize("far", [1e4, 1e6, 1e8])
def test_one_far_query_spoils_no_other(far: float) -> None:
    _, queries = data(12, "float32")
    with jax.enable_x64(False):
        own = on_device.device_table(catalog(12, "float32").table)
        both = np.concatenate([queries, np.full((1, 12), far, np.float32)])
        how = "gaussian", budget(12), jax.random.key(0)
        alone, beside = (on_device.kernel_sum(own, q, *how, scale=0.2) for q in (queries, both))
    for one, two in zip(alone[:2], beside[:2], strict=True):
        np.testing.assert_allclose(two[: len(queries)], one, rtol=1e-3)


def test_derivatives_of_tables_and_of_errors() -> None:
    _, queries = data(12)

    def log(own: Any, name: str = "laplacian") -> Any:
        return on_device.kernel_sum(own, queries[:1], name, budget(12), jax.random.key(0), scale=0.1).log_normalizer[0]

    def error(q: Any, own: int) -> Any:
        given = table(12), q, "gaussian", budget(12, own), jax.random.key(0)
        return on_device.kernel_sum(*given, scale=0.1).standard_error.sum()

    rows = jax.jit(jax.grad(lambda rows: log(table(12)._replace(rows=rows))))(table(12).rows)
    whole = jax.jit(jax.grad(log, allow_int=True))(table(12))
    np.testing.assert_allclose(whole.rows, rows, rtol=1e-12, atol=1e-15)
    assert np.abs(rows).max() > 0
    for own in (BUDGET, ITEMS):
        np.testing.assert_array_equal(jax.jit(jax.grad(error), static_argnums=1)(jnp.asarray(queries), own), 0)


def test_kernels_with_the_error_function() -> None:
    items, queries = data(12)
    kernel = Kernel.of_distance("faded", lambda xp, s: xp.log(1.5 - xp.erf(xp.sqrt(s))))
    expected = logsumexp(np.log(1.5 - special.erf(np.sqrt(0.05 * squares(items, queries)))), axis=1)
    found = on_device.kernel_sum(table(12), queries, kernel, budget(12, ITEMS), jax.random.key(0), scale=0.05)
    np.testing.assert_allclose(found.log_normalizer, expected, rtol=1e-9)
    for backend in ("numba", "numpy"):
        host = catalog(12).kernel_sum(queries, kernel, scale=0.05, budget=ITEMS, backend=backend)
        np.testing.assert_allclose(host, expected, rtol=1e-9)


def test_compiled_once_for_a_kernel() -> None:
    _, queries = data(12)
    before = catalog_sums._of_device._cache_size()
    for i, scale in enumerate((0.1, 0.2, jnp.asarray(0.3))):
        on_device.kernel_sum(table(12), queries[:5] + i, "laplacian", 801, jax.random.key(i), scale=scale)
    assert catalog_sums._of_device._cache_size() == before + 1


def test_a_query_draws_the_same_in_any_company() -> None:
    _, queries = data(12)
    some, more = (
        on_device.kernel_sum(table(12), q, "laplacian", budget(12), jax.random.key(0), scale=0.2)
        for q in (queries, np.concatenate([queries, 30 * queries[:3]]))
    )
    for a, b in zip(some, more, strict=True):
        np.testing.assert_allclose(a, b[: len(queries)], rtol=1e-9)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", ["laplacian", "gaussian", "arc_cosine"])
def test_lowered_for_accelerators(name: str, platform: str) -> None:
    with jax.enable_x64(False):
        own = on_device.device_table(catalog(12, "float32").table)
        queries = jnp.asarray(data(12, "float32")[1])

        def run(table: Any, queries: Any, seed: Any, scale: Any) -> Any:
            return tuple(on_device.kernel_sum(table, queries, ALL[name], 900, jax.random.key(seed), scale=scale))

        exported = jax.export.export(jax.jit(run), platforms=[platform])(own, queries, 0, jnp.float32(1))
    assert exported.platforms == (platform,)


def test_refusals() -> None:
    _, queries = data(12)
    given, key = (table(12), queries), jax.random.key(0)
    with pytest.raises(TypeError, match="kernel must be a Kernel or the name of a map that has one, got 3"):
        on_device.kernel_sum(*given, 3, 900, key)
    with pytest.raises(ValueError, match="kernel must not be negative, but sign can be"):
        on_device.kernel_sum(*given, "sign", 900, key)
    with pytest.raises(ValueError, match="norm_weight must be a finite number or None, got nan"):
        on_device.kernel_sum(*given, Kernel("own", lambda xp, dot, xx, yy: dot, norm_weight=np.nan), 900, key)
    for wrong in (-1.0, 0, np.nan, "wide", jnp.ones(2), jnp.asarray(1)):
        with pytest.raises(ValueError, match="scale must be a number between 0 and inf"):
            on_device.kernel_sum(*given, "gaussian", 900, key, scale=wrong)
    with pytest.raises(ValueError, match="budget must be at least"):
        on_device.kernel_sum(*given, "gaussian", 20, key)
    for odd in ("900", 900.5):
        with pytest.raises(TypeError, match=f"budget must be an int, got {odd!r}"):
            on_device.kernel_sum(*given, "gaussian", odd, key)
    with pytest.raises(TypeError, match="table must be what device_table or sharded returns, got Catalog"):
        on_device.kernel_sum(catalog(12), queries, "gaussian", 900, key)
    with jax.enable_x64(False):
        single = on_device.device_table(catalog(12, "float32").table)
        with pytest.raises(ValueError, match=r"queries must be finite, but queries\[0, 0\] is -?inf"):
            on_device.kernel_sum(single, 1e300 * queries, "gaussian", 900, key)
    forms = {
        "one": lambda xp, s: -s[:1],
        "truth": lambda xp, s: s < 1,
    }
    for name, profile in forms.items():
        with pytest.raises(
            ValueError, match=f"kernel must return a real log for each number, but {name} has a profile"
        ):
            on_device.kernel_sum(*given, Kernel.of_distance(name, profile), 900, key)
    with pytest.raises(ValueError, match="kernel must return a real log for each number, but own has a log"):
        on_device.kernel_sum(*given, Kernel("own", lambda xp, dot, xx, yy: dot[:1]), 900, key)
    with pytest.raises(TypeError, match=r"log must be a function log\(xp, dot, xx, yy\) that can be hashed"):
        on_device.kernel_sum(*given, Kernel("own", Unhashable()), 900, key)
    of_items = Kernel("of_items", lambda xp, dot, xx, yy: -yy)
    found = on_device.kernel_sum(*given, of_items, np.int64(budget(12, ITEMS)), key)
    np.testing.assert_allclose(found.log_normalizer, logsumexp(-(data(12)[0] ** 2).sum(1)))
    infinite = Kernel.of_distance("infinite", lambda xp, squared: -xp.log(0 * squared))
    with pytest.raises(ValueError, match="kernel must have logs below infinity, but the sum of infinite for query 0"):
        on_device.kernel_sum(*given, infinite, 900, key)
