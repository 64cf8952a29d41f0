"""Spectral maps estimate stationary kernels: closed forms, spread of one row, laws of rows, and every backend.

Radii are integrated over the chi distribution they are made from: nodes of a quadrature rule take the place of draws.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
from scipy import special, stats

import rfkernels as rfk
from rfkernels import FeatureMap, spectral, testing

BACKENDS = oracle.backends()

MAPS: dict[str, FeatureMap] = {
    "gaussian": spectral.gaussian(),
    "laplacian": spectral.laplacian(),
    "matern(3/2)": spectral.matern(1.5),
    "matern(5/2)": spectral.matern(2.5),
    "matern(9/2)": spectral.matern(4.5),
    "rational_quadratic(1/2)": spectral.rational_quadratic(0.5),
    "rational_quadratic(2)": spectral.rational_quadratic(2),
    "cauchy": spectral.cauchy(),
}

CLOSED: dict[str, Callable[[Any], Any]] = {
    "gaussian": lambda r: np.exp(-(r**2) / 2),
    "laplacian": lambda r: np.exp(-r),
    "matern(3/2)": lambda r: (1 + math.sqrt(3) * r) * np.exp(-math.sqrt(3) * r),
    "matern(5/2)": lambda r: (1 + math.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-math.sqrt(5) * r),
    "matern(9/2)": lambda r: 2**-3.5 / special.gamma(4.5) * (3 * r) ** 4.5 * special.kv(4.5, 3 * r),
    "rational_quadratic(1/2)": lambda r: 1 / np.sqrt(1 + r**2),
    "rational_quadratic(2)": lambda r: (1 + r**2 / 4) ** -2,
    "cauchy": lambda r: 1 / (1 + r**2),
}
"""Kernels of the distance as textbooks write them; Matérn's general form has a Bessel function."""

DEGREES = {"laplacian": 1, "matern(3/2)": 3, "matern(5/2)": 5, "matern(9/2)": 9}
DEGREES |= {"rational_quadratic(1/2)": 1, "rational_quadratic(2)": 4, "cauchy": 2}
"""How many normals a radius is made from."""


def moments(x: Any, y: Any) -> tuple[Any, Any, Any]:
    return np.sum(x * y, -1), np.sum(x * x, -1), np.sum(y * y, -1)


def log_kernel(name: str, r: Any) -> Any:
    """Of points r apart, neither at zero."""
    kernel = MAPS[name].kernel
    assert kernel is not None
    return kernel.log(np, 1 + r, np.ones_like(r), (1 + r) ** 2)


# Closed forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAPS)
def test_kernels_are_those_of_textbooks(name: str) -> None:
    r = np.linspace(0.01, 8, 60)
    np.testing.assert_allclose(np.exp(log_kernel(name, r)), CLOSED[name](r), rtol=1e-10)


def test_the_library_of_libraries() -> None:
    """scikit-learn's rbf_kernel and Matern by their formulas: exp(−γ|x − y|²), and a length scale."""
    x, y = np.random.default_rng(0).standard_normal((2, 5, 3))
    r = np.linalg.norm(x - y, axis=-1)
    rbf = rfk.exact_log_kernel(x, y, scale=2 * 0.35, kernel=rfk.lookup("gaussian").kernel)
    np.testing.assert_allclose(rbf, -0.35 * r**2, rtol=1e-12)
    matern = rfk.exact_log_kernel(x, y, scale=1 / 0.7**2, kernel=rfk.lookup("matern32").kernel)
    np.testing.assert_allclose(np.exp(matern), CLOSED["matern(3/2)"](r / 0.7), rtol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_points_that_are_equal(name: str) -> None:
    """The distance comes from rounded squares, of points far out and of one point: the kernel is at most 1."""
    kernel, variance = MAPS[name].kernel, MAPS[name].log_variance
    assert kernel is not None
    assert variance is not None
    x = 1e3 * np.random.default_rng(0).standard_normal((200, 7))
    dot, xx, yy = moments(x, x * (1 + 1e-15))
    for values in (dot, dot + 1e-9, dot - 1e-9):
        assert np.all(kernel.log(np, values, xx, yy) <= 0)
    zeros = np.zeros(1)
    assert kernel.log(np, zeros, zeros, zeros) == 0
    assert variance(np, zeros, zeros, zeros) == -np.inf


@pytest.mark.parametrize("name", MAPS)
def test_points_far_apart(name: str) -> None:
    """Logs are right where the kernel itself is zero: no power overflows."""
    r = np.array([1e3, 1e30, 1e75])
    square = r * r
    kernel, variance = MAPS[name].kernel, MAPS[name].log_variance
    assert kernel is not None
    assert variance is not None
    found = kernel.log(np, np.zeros(3), square, np.zeros(3))
    assert np.all(np.isfinite(found))
    root = math.sqrt(max(DEGREES.get(name, 0), 1))
    if "matern" in name or name == "laplacian":
        np.testing.assert_allclose(found, -root * r, rtol=0.05)
    np.testing.assert_allclose(variance(np, np.zeros(3), square, np.zeros(3)), math.log(0.5), atol=0.01)


@pytest.mark.parametrize("name", MAPS)
def test_derivatives_are_finite_where_points_are_equal(name: str) -> None:
    jax = pytest.importorskip("jax")
    kernel, variance = MAPS[name].kernel, MAPS[name].log_variance
    assert kernel is not None
    assert variance is not None
    for log in (kernel.log, variance):
        gradient = jax.jit(jax.grad(lambda x, log=log: log(jax.numpy, x @ x, x @ x, x @ x)))(jax.numpy.ones(3))
        assert np.all(np.isfinite(gradient))
    x, y = np.array([0.3, 0.4]), np.array([-0.1, 0.2])
    gradient = jax.jit(jax.grad(lambda x: kernel.log(jax.numpy, x @ y, x @ x, jax.numpy.asarray(y @ y))))(x)
    step = 1e-6
    for i in range(2):
        high, low = (kernel.log(np, *moments(x + sign * step * np.eye(2)[i], y)) for sign in (1, -1))
        np.testing.assert_allclose(gradient[i], (high - low) / (2 * step), rtol=1e-3)


POINTS, WEIGHTS = np.polynomial.legendre.leggauss(300)

# Laws of rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEGREES)
def test_radii_mix_gaussian_kernels_into_the_kernel(name: str) -> None:
    """E exp(−ρ²r²/2) = k(r), integrated over the norm of the normals that a radius ρ is made from."""
    degrees, radii = DEGREES[name], MAPS[name].radii
    assert radii is not None
    chi = 7 * (1 + POINTS)
    weights = 7 * WEIGHTS * stats.chi(degrees).pdf(chi)

    def normal(shape: tuple[int, ...]) -> Any:
        assert shape == (300, degrees)
        return np.concatenate([-chi[:, None], np.zeros((300, degrees - 1))], -1)

    rho = radii(normal, 300)
    assert rho.shape == (300,)
    for r in (0.0, 0.3, 1.0, 2.5):
        np.testing.assert_allclose(weights @ np.exp(-((rho * r) ** 2) / 2), CLOSED[name](max(r, 1e-9)), rtol=1e-8)


def test_the_gaussian_map_has_normal_rows() -> None:
    assert spectral.gaussian().radii is None
    assert spectral.fourier().radii is None


@pytest.mark.parametrize("name", [name for name in MAPS if name != "gaussian"])
def test_radii_are_finite_where_normals_are_zero(name: str) -> None:
    """In single precision a normal is zero once in ten million draws."""
    radii = MAPS[name].radii
    assert radii is not None
    drawn = radii(lambda shape: np.zeros(shape, np.float32), 3)
    assert np.all(np.isfinite(drawn * np.float32(1e3)))


X, Y = np.random.default_rng(3).standard_normal((2, 6, 4)) * np.array([0.02, 0.2, 0.4, 0.6, 1, 2])[:, None]
"""Points at distances from 0.05 to 4."""

ROWS, SLACK = 8, 1.2
"""Rows of each draw, and what their coupling may add to the variance of cosines."""


SAMPLERS = ["iid", "orthogonal", "simplex", "stratified"]


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        pytest.param(name, sampler, marks=pytest.mark.long if (i + j) % 4 else ())
        for i, name in enumerate(MAPS)
        for j, sampler in enumerate(SAMPLERS)
    ],
)
def test_unbiased(name: str, sampler: str) -> None:
    """One row estimates cos(w·(x − y)), of mean k and variance (1 + k(2r))/2 − k(r)²; couplings keep the mean."""
    estimator = testing.drawn_estimates(MAPS[name], X, Y, 2 * ROWS, sampler=sampler, batch=2000)
    k, variance = of_one_row(CLOSED[name])
    testing.assert_unbiased_by_sampling(estimator, k, variance=SLACK * variance / ROWS, detect=0.03)


def of_one_row(kernel: Callable[[Any], Any]) -> tuple[Any, Any]:
    r = np.linalg.norm(X - Y, axis=-1)
    return kernel(r), (1 + kernel(2 * r)) / 2 - kernel(r) ** 2


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if i % 2 else ()) for i, name in enumerate(MAPS)]
)
def test_the_variance_of_one_row(name: str) -> None:
    """The closed form, and what rows do; moments of cosines are sums of kernels at multiples of the distance."""
    r = np.linalg.norm(X - Y, axis=-1)
    log_variance = MAPS[name].log_variance
    assert log_variance is not None
    variance = np.exp(log_variance(np, *moments(X, Y)))
    k, expected = of_one_row(CLOSED[name])
    np.testing.assert_allclose(variance, expected, rtol=1e-6)
    twice, thrice, four_times = (CLOSED[name](n * r) for n in (2, 3, 4))
    third, fourth = (3 * k + thrice) / 4, (3 + 4 * twice + four_times) / 8
    central = fourth - 4 * k * third + 3 * k**2 * (1 + twice) - 3 * k**4
    estimator = testing.drawn_estimates(MAPS[name], X, Y, 2, sampler="iid", batch=50_000)
    detect = np.maximum(variance / 6, np.sqrt(central) / 20)  # squares of near points have heavy tails
    testing.assert_variance_by_sampling(estimator, k, variance, fourth=central, detect=detect)


@pytest.mark.parametrize("name", MAPS)
def test_the_variance_of_near_points_keeps_its_digits(name: str) -> None:
    """As points meet, the variance goes as r⁴, or as r or r³ where rows have heavy tails; digits go as ε/r³."""
    mp = pytest.importorskip("mpmath")
    degrees = DEGREES.get(name, 0)

    def k(r: Any) -> Any:
        if name == "gaussian":
            return mp.exp(-(r**2) / 2)
        if name == "cauchy" or "rational" in name:
            alpha, width = mp.mpf(degrees) / 2, 1 if name == "cauchy" else degrees
            return (1 + r**2 / width) ** -alpha
        order = mp.mpf(degrees) / 2
        t = mp.sqrt(degrees) * r
        return 2 ** (1 - order) / mp.gamma(order) * t**order * mp.besselk(order, t)

    log_variance = MAPS[name].log_variance
    assert log_variance is not None
    with mp.workdps(60):
        for r in (1.0, 1e-2, 2.0**-10):
            wanted = (1 + k(2 * mp.mpf(r))) / 2 - k(mp.mpf(r)) ** 2
            found = np.exp(log_variance(np, np.zeros(1), np.array([r * r]), np.zeros(1)))[0]
            assert abs(found / wanted - 1) <= 1e-13 + 4e-16 / r**3


def test_orthogonal_rows_with_radii_stay_orthogonal() -> None:
    rows = rfk.draw("matern32", 8, 32, rng=0, scale=1.0).projection
    gram = rows[:8] @ rows[:8].T
    norms = np.linalg.norm(rows, axis=-1)
    assert np.abs(gram - np.diag(np.diag(gram))).max() <= 1e-10 * norms.max() ** 2


# Sums of coordinates --------------------------------------------------------------------------------------------------


SUMS: dict[str, Callable[[Any], Any]] = {
    "cauchy": lambda difference: np.exp(-np.abs(difference).sum(-1)),
    "laplace": lambda difference: np.prod(1 / (1 + difference**2), -1),
    "orthogonal": lambda difference: np.exp(-np.square(difference).sum(-1) / 2),
}


@pytest.mark.parametrize("gamma", [0.4, 1.0])
@pytest.mark.parametrize("sampler", SUMS)
def test_rows_of_other_laws_estimate_their_characteristic_function(sampler: str, gamma: float) -> None:
    """scikit-learn's laplacian_kernel exp(−γ|x − y|₁) with scale=γ², and the Cauchy product of Rahimi and Recht."""
    difference = gamma * (X - Y)
    k, twice = SUMS[sampler](difference), SUMS[sampler](2 * difference)
    estimator = testing.drawn_estimates(spectral.fourier(), X, Y, 2 * ROWS, sampler=sampler, scale=gamma**2, batch=2000)
    variance = SLACK * ((1 + twice) / 2 - k**2) / ROWS
    testing.assert_unbiased_by_sampling(estimator, k, variance=variance, detect=0.03)


def test_fourier_names_no_kernel() -> None:
    assert spectral.fourier().kernel is None
    x = np.ones((3, 4))
    features = rfk.draw(spectral.fourier(), 4, 8, sampler="cauchy", rng=0)
    with pytest.raises(ValueError, match="closed form"):
        rfk.attention(x, x, x, features, causal=True, window=1, backend="numpy")


@pytest.mark.parametrize("sampler", ["cauchy", "laplace", "hadamard", "regularized"])
def test_radii_need_normal_rows(sampler: str) -> None:
    with pytest.raises(ValueError, match="normal rows"):
        rfk.draw("laplacian", 4, 8, sampler=sampler, rng=0)


def test_no_proposal_is_taken() -> None:
    for name in ("gaussian", "matern32"):
        with pytest.raises(ValueError, match="proposal needs an exponential map"):
            rfk.draw(name, 4, 8, proposal=rfk.proposals.isotropic(1.5), rng=0)


# Names and records ----------------------------------------------------------------------------------------------------


def test_registered_names() -> None:
    assert {name: rfk.lookup(name) for name in spectral.NAMED} == spectral.NAMED
    assert rfk.lookup("laplacian") is spectral.laplacian() is spectral.matern(0.5)
    assert rfk.lookup("matern32") is spectral.matern(1.5)
    assert rfk.lookup("matern52") is spectral.matern(2.5)
    assert rfk.lookup("gaussian") is spectral.gaussian()
    assert rfk.lookup("cauchy") is spectral.cauchy()


def test_maps_are_the_same_object_whenever_asked_for() -> None:
    """So that what was compiled for one serves the next."""
    assert spectral.matern(3.5) is spectral.matern(3.5)
    assert spectral.rational_quadratic(3) is spectral.rational_quadratic(3.0)
    assert spectral.matern(3.5) != spectral.matern(2.5)


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_plain_records(name: str) -> None:
    feature_map = MAPS[name]
    assert not feature_map.exponential
    assert not feature_map.nonnegative
    assert len(feature_map.activations) == 2
    copy = pickle.loads(pickle.dumps(feature_map))
    assert copy == feature_map
    assert hash(copy) == hash(feature_map)
    assert copy.programs() == feature_map.programs()


@pytest.mark.parametrize("order", [0, 1, 2.0, -0.5, 0.7, math.inf, math.nan, "3/2", None])
def test_orders_without_a_closed_form_are_refused(order: Any) -> None:
    with pytest.raises(ValueError, match="order must be one of 1/2, 3/2, 5/2"):
        spectral.matern(order)


@pytest.mark.parametrize("alpha", [0, -1, 0.3, math.inf, math.nan, True])
def test_alphas_that_are_no_halves_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be a positive multiple of 1/2"):
        spectral.rational_quadratic(alpha)


def test_orders_may_be_numbers_of_numpy() -> None:
    assert spectral.matern(np.float32(1.5)) is spectral.matern(1.5)
    assert spectral.rational_quadratic(np.int64(2)) is spectral.rational_quadratic(2)


# Backends -------------------------------------------------------------------------------------------------------------


def inputs(backend: str) -> tuple[Any, ...]:
    rng = np.random.default_rng(5)
    arrays = (
        0.5 * rng.standard_normal((2, 40, 4)),
        0.5 * rng.standard_normal((2, 40, 4)),
        rng.standard_normal((2, 40, 3)),
    )
    return tuple(oracle.place(x, backend) for x in arrays)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [*MAPS, "fourier"])
def test_attention_is_the_mean_by_estimated_weights(name: str, backend: str, causal: bool) -> None:
    feature_map = MAPS.get(name, spectral.fourier())
    features = rfk.draw(feature_map, 4, 512, scale=1.0, sampler="cauchy" if name == "fourier" else "orthogonal", rng=0)
    with oracle.precision(backend, np.float64):
        q, k, v = inputs(backend)
        found = np.asarray(rfk.attention(q, k, v, features, causal=causal, backend=backend))
        phi_q, phi_k = (np.asarray(rfk.transform(x, features, side=side)) for x, side in ((q, "query"), (k, "key")))
    weights = phi_q @ np.swapaxes(phi_k, -1, -2)
    weights = np.tril(weights) if causal else weights
    expected = weights @ np.asarray(v) / weights.sum(-1, keepdims=True)
    scale = np.abs(weights) @ np.abs(np.asarray(v)) / np.abs(weights.sum(-1, keepdims=True))
    assert np.all(np.abs(found - expected) <= 1e-10 * scale)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("gaussian", "numpy"),
        ("gaussian", "numba"),
        ("gaussian", "jax"),
        ("matern(3/2)", "numpy"),
        ("matern(3/2)", "jax"),
    ],
)
def test_exact_nearby_and_estimated_beyond(name: str, backend: str) -> None:
    """A window as long as the sequence is exact attention by the kernel."""
    features = rfk.draw(MAPS[name], 4, 64, scale=1.0, rng=0)
    with oracle.precision(backend, np.float64):
        q, k, v = inputs(backend)
        found = rfk.attention(q, k, v, features, causal=True, window=40, backend=backend)
        assert features.map.kernel is not None
        exact = rfk.exact_attention(q, k, v, causal=True, scale=1.0, kernel=features.map.kernel)
    np.testing.assert_allclose(np.asarray(found), np.asarray(exact), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gaussian", "laplacian", "cauchy"])
def test_sums_over_keys_are_estimated(name: str, backend: str) -> None:
    """Kernel density sums: one row has the variance of the mean of cos over the keys, at most ½ each."""
    q, k, _ = inputs("numpy")

    def estimate(rng: np.random.Generator) -> Any:
        features = rfk.draw(MAPS[name], 4, 128, sampler="iid", scale=1.0, batch=(500, 1), rng=rng)
        with oracle.precision(backend, np.float64):
            given = (oracle.place(x, backend) for x in (q, k))
            log, sign = rfk.log_normalizer(*given, features, return_sign=True, backend=backend)
        return np.asarray(sign) * np.exp(np.asarray(log))

    exact = np.exp(rfk.exact_log_normalizer(q, k, kernel=MAPS[name].kernel))  # type: ignore[arg-type]
    testing.assert_unbiased_by_sampling(estimate, exact, variance=40**2 * 0.5 / 64, detect=1.5)


@pytest.mark.parametrize("name", MAPS)
def test_jax_keys_draw_rows(name: str) -> None:
    jax = pytest.importorskip("jax")

    def estimate(rng: np.random.Generator) -> Any:
        key = jax.random.key(int(rng.integers(1 << 31)))
        features = rfk.draw(MAPS[name], 4, 20_000 * ROWS, sampler="orthogonal", scale=1.0, rng=key)
        assert isinstance(features.projection, jax.Array)
        host = jax.tree.map(lambda x: np.asarray(x, np.float64), features)
        return testing.row_estimates(host, X, Y).reshape(len(X), -1, ROWS).mean(-1).T  # blocks are independent

    k, variance = of_one_row(CLOSED[name])
    testing.assert_unbiased_by_sampling(estimate, k, variance=SLACK * variance / ROWS, detect=0.03)


def test_maps_of_equal_distance_have_equal_kernels() -> None:
    """Shifts of both points, and rotations, change nothing: only as far as squares round."""
    shift = np.array([3.0, -1.0, 2.0, 0.5])
    for feature_map in MAPS.values():
        assert feature_map.kernel is not None
        kept = feature_map.kernel.log(np, *moments(X, Y))
        np.testing.assert_allclose(feature_map.kernel.log(np, *moments(X + shift, Y + shift)), kept, atol=1e-11)


def test_records_can_be_changed() -> None:
    """A name for a kernel of one's own: the same activations, other radii."""
    narrow = dataclasses.replace(spectral.fourier(), radii=spectral.cauchy().radii, kernel=spectral.cauchy().kernel)
    ours, theirs = (rfk.draw(m, 3, 8, rng=0).projection for m in (narrow, spectral.cauchy()))
    np.testing.assert_array_equal(ours, theirs)
