"""Kernels and variances of the named maps: integrated in the plane, and compared with many digits at extreme points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import oracle
import pytest
from hypothesis import given
from scipy import special

import rfkernels as rfk
from rfkernels import kernels, maps, moments, testing
from rfkernels._arrays import elementwise
from rfkernels.testing import strategies as rst

NAMED = {name: rfk.lookup(name) for name in rfk.names() if rfk.lookup(name).kernel and rfk.lookup(name).radii is None}
"""The named maps of normal rows; those with a law of their own are in test_spectral.py."""
ALL = {**NAMED, **{f"arc_cosine({n})": maps.arc_cosine(n) for n in range(9)}}


# Integrals in the plane


@pytest.mark.parametrize("name", [*NAMED, "arc_cosine(3)", "arc_cosine(4)", "arc_cosine(8)"])
@given(pair=oracle.PAIRS, scale=rst.scales(0.05, 1.0))
def test_kernel_and_variance_are_those_of_the_activations(name: str, pair: Any, scale: float) -> None:
    """E φ(x)·φ(y) = k(√scale x, √scale y), and the variance of a row in closed form."""
    testing.assert_unbiased(ALL[name], *pair, scale=scale, rtol=1e-12)
    testing.assert_variance(ALL[name], *pair, scale=scale, rtol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_variance_of_pairs_of_both_signs_and_of_no_length(name: str) -> None:
    """Parallel, opposed, orthogonal and zero vectors, where closed forms divide by zero or vanish."""
    zero, x = np.zeros(2), np.array([0.75, 0.0])
    pairs = [(x, y) for y in (x, -x, 0.5 * x, -2.0 * x, np.array([0.0, 0.8]), zero)]
    oblique = np.array([0.1643989873053573, 0.9863939238321437])  # w·x and −w·x are rounded apart
    pairs += [(oblique, np.array([-0.16439898730535718, -0.9863939238321437]))]
    one, other = np.array([*pairs, *((y, x) for x, y in pairs), (zero, zero)]).swapaxes(0, 1)
    testing.assert_unbiased(ALL[name], one, other, rtol=1e-12)
    testing.assert_variance(ALL[name], one, other, rtol=1e-10)


def test_which_maps_state_a_variance() -> None:
    assert {name for name in rfk.names() if rfk.lookup(name).log_variance is None} == {"elu+1"}


# Many digits


def _angle_form(n: int, dot: Any, xx: Any, yy: Any) -> Any:
    """The arc-cosine kernel by its integral, n! sin²ⁿ⁺¹θ ∫ cosⁿφ / (1 − cos θ cos φ)ⁿ⁺¹ dφ (Cho and Saul 2009)."""
    cosine = dot / mp.sqrt(xx * yy)
    sine = mp.sqrt((1 - cosine) * (1 + cosine))
    width = mp.sqrt(2 * (1 - cosine))  # of the peak at φ = 0 at acute angles
    cuts = [0, *(cut for cut in (width / 4, width, 4 * width, 16 * width) if cut < mp.pi / 2), mp.pi / 2]
    total = mp.quad(lambda t: mp.cos(t) ** n / (1 - cosine * mp.cos(t)) ** (n + 1), cuts)
    return (xx * yy) ** (mp.mpf(n) / 2) * mp.factorial(n) * sine ** (2 * n + 1) * total / (2 * mp.pi)


@pytest.mark.parametrize(
    "order", [0, 1, 2, 3, 5, 8, 16, *(pytest.param(n, marks=pytest.mark.long) for n in (4, 6, 7, 10, 12, 14))]
)
def test_arc_cosine_kernels_at_any_angle(order: int) -> None:
    """Accurate to rounding of the exponent, next to 0 and π as elsewhere."""
    cosines = [-1 + 1e-12, -1 + 1e-5, -0.9, -0.3, -1e-3, -1e-16, 1e-9, 0.2, 0.95, 1 - 1e-7, 1 - 1e-13]
    log = kernels.arc_cosine(order).log(np, np.array(cosines), np.ones(11), np.ones(11))
    with mp.workdps(40):
        for cosine, got in zip(cosines, log, strict=True):
            expected = mp.log(_angle_form(order, mp.mpf(cosine), mp.mpf(1), mp.mpf(1)))
            assert abs(got - expected) <= 4e-16 * (8 + abs(expected))


def power_shape(n: int, c: Any) -> Any:
    """J / 2π of the first orders."""
    rest = mp.acos(-c)
    shapes = {0: rest, 1: mp.sqrt(1 - c * c) + rest * c, 2: 3 * c * mp.sqrt(1 - c * c) + rest * (1 + 2 * c * c)}
    return shapes[n] / (2 * mp.pi)


def absolute_shape(c: Any) -> Any:
    return 2 / mp.pi * (mp.sqrt(1 - c * c) + c * mp.asin(c))


SHAPES: dict[str, tuple[int, Callable[[Any], tuple[Any, Any]]]] = {
    "abs": (1, lambda c: (absolute_shape(c), 1 + 2 * c * c - absolute_shape(c) ** 2)),
    "square": (2, lambda c: (1 + 2 * c * c, 9 + 72 * c**2 + 24 * c**4 - (1 + 2 * c * c) ** 2)),
    "sign": (0, lambda c: (2 / mp.pi * mp.asin(c), 1 - (2 / mp.pi * mp.asin(c)) ** 2)),
    "step": (0, lambda c: (power_shape(0, c), power_shape(0, c) - power_shape(0, c) ** 2)),
    "relu": (1, lambda c: (power_shape(1, c), power_shape(2, c) - power_shape(1, c) ** 2)),
}
"""The power of |x||y| in the kernel, and kernel and variance of unit vectors from the cosine, as textbooks write them."""


@pytest.mark.parametrize("name", SHAPES)
def test_any_norm(name: str) -> None:
    feature_map, (power, shape) = rfk.lookup(name), SHAPES[name]
    for one, two in itertools.product([1e-200, 1e-20, 1.0, 1e20, 1e200], repeat=2):
        for cosine in (-1.0, -0.75, -1e-9, 0.25, 1.0):
            dot = cosine * math.sqrt(one) * math.sqrt(two)
            got = [f(np, np.float64(dot), one, two) for f in (feature_map.kernel.log, feature_map.log_variance)]
            with mp.workdps(60):
                norms = mp.sqrt(mp.mpf(one) * mp.mpf(two))
                found = shape(mp.mpf(cosine) if abs(cosine) == 1 else mp.mpf(dot) / norms)
                for value, size, n in zip(got, map(abs, found), (power, 2 * power), strict=True):
                    if size < mp.mpf(10) ** -50:
                        assert value == -np.inf
                    else:
                        want = mp.log(size) + n * mp.log(norms)
                        assert abs(value - want) <= 2e-15 + 4e-16 * abs(want)


def lemma_2(name: str, dot: Any, xx: Any, yy: Any) -> Any:
    s, delta = xx + yy + 2 * dot, xx + yy - 2 * dot
    return {
        "positive": mp.exp(2 * dot) * mp.expm1(s),
        "hyperbolic": mp.exp(2 * dot) * 2 * mp.sinh(s / 2) ** 2,
        "trigonometric": mp.exp(2 * dot) * 2 * mp.sinh(delta / 2) ** 2,
        "exp": mp.exp(2 * s) - mp.exp(s),
    }[name]


@pytest.mark.parametrize("name", ["positive", "hyperbolic", "trigonometric", "exp"])
def test_lemma_2_neither_overflows_nor_cancels(name: str) -> None:
    points = [
        (1e4, 2e4, 1.5e4),
        (-1e4, 2e4, 1.5e4),
        (0.0, 1e-30, 1e-40),
        (3e-9, 1e-8, 2e-9),
        (0.0, 0.0, 1.0),
        (5e5, 5e5, 6e5),
    ]
    for dot, xx, yy in points:
        got = rfk.lookup(name).log_variance(np, np.float64(dot), xx, yy)
        with mp.workdps(60):
            want = mp.log(lemma_2(name, mp.mpf(dot), mp.mpf(xx), mp.mpf(yy)))
        assert abs(got - want) <= 1e-15 + 1e-15 * (abs(dot) + xx + yy) + 1e-15 * abs(want)
    assert rfk.lookup(name).log_variance(np, 0.0, 0.0, 0.0) == -np.inf
    square = np.float64(0.1)
    assert rfk.lookup(name).log_variance(np, square if name == "trigonometric" else -square, square, square) == -np.inf


@pytest.mark.parametrize("xx", [1e-12, 1e-4, 0.3, 2.0, 60.0, 1e4])
@pytest.mark.parametrize("ratio", [1e-6, 0.5, 1.0])
def test_variance_of_cosines_does_not_cancel(xx: float, ratio: float) -> None:
    """It falls like |x|⁴ at small norms while both of its parts are near 1."""
    for cosine in (-1.0, -0.3, 0.0, 0.999, 1.0):
        yy = ratio * xx
        dot = cosine * math.sqrt(xx * yy)
        got = moments.cosine(np, np.float64(dot), xx, yy)
        with mp.workdps(80):
            a, b, d = mp.mpf(xx), mp.mpf(yy), mp.mpf(dot)
            second = (1 + mp.exp(-2 * a) + mp.exp(-2 * b) + mp.exp(-2 * (a + b)) * mp.cosh(4 * d)) / 4
            want = mp.log(second - (mp.exp(-(a + b) / 2) * mp.cosh(d)) ** 2)
        assert abs(got - want) <= 1e-14


def test_variance_of_cosines_of_no_length_and_of_the_smallest() -> None:
    assert moments.cosine(np, 0.0, 0.0, 0.0) == -np.inf
    got = moments.cosine(np, 0.5e-200, 1e-200, 1e-200)  # ((3e-200)² + (1e-200)²) / 8
    np.testing.assert_allclose(got, math.log(10 / 8) - 400 * math.log(10), rtol=1e-15)


def error_function_variance(a: Any, b: Any, dot: Any) -> Any:
    """The second moment by a line integral over the covariance, with Gaussian means of a product in closed form."""

    def derivative(covariance: Any) -> Any:
        det = (1 + 2 * a) * (1 + 2 * b) - 4 * covariance**2
        sine = 2 * covariance / mp.sqrt((2 * det - 1 - 2 * a) * (2 * det - 1 - 2 * b))
        return 32 / mp.pi**2 * mp.asin(sine) / mp.sqrt(det)

    end = abs(dot)
    cuts = [0, *(end * (1 - mp.mpf(4) ** -k) for k in range(1, 12)), end]
    alone = 4 / mp.pi**2 * mp.asin(2 * a / (1 + 2 * a)) * mp.asin(2 * b / (1 + 2 * b))
    mean = 2 / mp.pi * mp.asin(2 * dot / mp.sqrt((1 + 2 * a) * (1 + 2 * b)))
    return alone + mp.quad(derivative, cuts) - mean**2


@pytest.mark.parametrize(
    "norms", [(1e-8, 1e-8), (1e-8, 1e-3), (0.1, 2.0), (1.0, 1.0), (7.0, 40.0), (1e4, 1e4), (1e6, 1e-2)]
)
def test_variance_of_the_error_function(norms: tuple[float, float]) -> None:
    xx, yy = norms
    for cosine in (-1.0, -0.4, 1e-3, 0.9, 1.0):
        dot = cosine * math.sqrt(xx * yy)
        got = moments.erf(np, np.float64(dot), xx, yy)
        with mp.workdps(40):
            want = mp.log(error_function_variance(mp.mpf(xx), mp.mpf(yy), mp.mpf(dot)))
        assert abs(got - want) <= 1e-13 + 1e-15 * math.sqrt(xx * yy)


def test_variance_of_the_error_function_where_it_is_linear() -> None:
    """At tiny norms erf u is 2u/√π, so the variance is (16/π²)(|x|²|y|² + (x·y)²)."""
    for dot, xx, yy in ((0.5e-200, 1e-200, 1e-200), (-1e-100, 1e-180, 1e-20), (0.0, 1e-300, 1e-12)):
        want = math.log(16 / math.pi**2) + math.log(xx) + math.log(yy) + math.log1p((dot / xx) * (dot / yy))
        np.testing.assert_allclose(moments.erf(np, np.float64(dot), xx, yy), want, rtol=1e-14)
    assert moments.erf(np, 0.0, 0.0, 1.0) == -np.inf


def test_moments_take_arrays_and_broadcast() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 1, 3)), rng.standard_normal((1, 7, 3))
    products = (x * y).sum(-1), (x * x).sum(-1), (y * y).sum(-1)
    for name, feature_map in ALL.items():
        assert feature_map.log_variance is not None
        got = feature_map.log_variance(np, *products)
        assert got.shape == (5, 7), name
        single = feature_map.log_variance(np, *(z.astype(np.float32) for z in products))
        assert single.dtype == np.float32, name
        np.testing.assert_allclose(single, got, rtol=2e-4, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("size", [1e-150, 1.0, 1e150])
def test_vectors_and_their_negatives_are_told_to_the_last_bit(size: float) -> None:
    """Rounding of the cosine, its root, is 1e-8 of the angle."""
    x = size * np.random.default_rng(0).standard_normal((100, 3))
    for name in ("step", "relu", "squared_relu"):
        assert (rfk.exact_log_kernel(x, -x, kernel=maps.lookup(name).kernel) == -np.inf).all()
        assert not rfk.variance.relative(name, x, -x, count=4, sampler="iid").any()
    for y in (x, -x):
        assert not rfk.variance.relative("sign", x, y, count=4, sampler="iid").any()


# On JAX


def test_variance_of_the_error_function_on_jax() -> None:
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    products = [np.array([0.1, -2.0, 0.0, 0.0]), np.array([0.5, 3.0, 1.0, 0.0]), np.array([0.2, 4.0, 1.0, 1.0])]
    with jax.enable_x64(True):
        got = moments.erf(jnp, *map(jnp.asarray, products))
    np.testing.assert_allclose(got, moments.erf(np, *products), rtol=1e-13)


def test_second_derivatives_at_equal_norms_are_those_nearby() -> None:
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    def log(size: Any) -> Any:
        return kernels.ABSOLUTE.log(jnp, 0.5, size**2, 1.0)

    with jax.enable_x64(True):
        found = list(map(jax.jit(jax.grad(jax.grad(log))), (1.0, 1.0 + 1e-9)))
    np.testing.assert_allclose(*found, rtol=1e-6)


@pytest.mark.parametrize("name", [*NAMED, "arc_cosine(3)"])
def test_kernels_and_variances_on_jax_and_their_derivatives(name: str) -> None:
    """The same values, derivatives that are those of differences, and no nan at parallel, opposed and zero vectors."""
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    feature_map = ALL[name]
    functions = [feature_map.kernel.log, feature_map.log_variance]
    if name == "erf":  # whose quadrature takes XLA a quarter of a minute to compile with its derivative
        del functions[1]

    def logs(xp: Any, x: Any, y: Any) -> Any:
        products = (x * y).sum(-1), (x * x).sum(-1), (y * y).sum(-1)
        return xp.stack([log(xp, *products) for log in functions])

    x, y = np.random.default_rng(1).standard_normal((2, 6, 3))
    zero, one = np.zeros(3), np.array([1.0, 0.0, 0.0])
    edges = np.array([(one, one), (one, -one), (one, zero), (zero, one), (zero, zero)])
    with jax.enable_x64(True):
        pairs = [jnp.concatenate([a, b]) for a, b in ((x, edges[:, 0]), (y, edges[:, 1]))]
        both = jax.jit(jax.vmap(lambda a, b: (logs(jnp, a, b), jax.jacrev(lambda a: logs(jnp, a, b))(a))))
        values, slopes = (np.asarray(z) for z in both(*pairs))
    np.testing.assert_allclose(values[:6].T, logs(np, x, y), rtol=1e-12, atol=1e-13)
    for i, step in enumerate(1e-6 * np.eye(3)):
        moved = (logs(np, x + step, y) - logs(np, x - step, y)) / 2e-6
        np.testing.assert_allclose(slopes[:6, :, i].T, moved, rtol=2e-6, atol=2e-6)
    assert not np.isnan(values).any()
    assert np.isfinite(slopes[6:, 0]).all()


def test_the_namespace_of_activations() -> None:
    x = np.linspace(-3, 3, 13)
    xp = elementwise(np)
    np.testing.assert_array_equal(xp.erf(x), special.erf(x))
    assert xp.erf(x.astype(np.float32)).dtype == np.float32
    assert xp.exp is np.exp
    assert elementwise(np) is xp
    with pytest.raises(AttributeError):
        xp.no_such_function  # noqa: B018
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    np.testing.assert_allclose(elementwise(jnp).erf(jnp.asarray(x)), special.erf(x), rtol=1e-6)
    found = jax.grad(lambda u: elementwise(jnp).erf(u))(0.5)
    np.testing.assert_allclose(found, 2 / math.sqrt(math.pi) * math.exp(-0.25), rtol=1e-6)


def test_the_largest_order_on_jax_and_the_largest_norms_of_erf() -> None:
    jnp = pytest.importorskip("jax.numpy")
    feature_map = rfk.maps.arc_cosine(8)
    inner = 0.2, 0.5, 0.7
    for form in (feature_map.kernel.log, feature_map.log_variance):
        np.testing.assert_allclose(form(jnp, *map(jnp.asarray, inner)), form(np, *map(np.float64, inner)), rtol=1e-4)
    xx, yy, dot = (np.float64(9e153) ** 2 * share for share in (1.25, 10 / 9, 5 / 6))  # twice of which is infinite
    log = rfk.kernels.ERF.log(np, dot, xx, yy)
    np.testing.assert_allclose(log, np.log(2 / np.pi * np.arcsin(dot / np.sqrt(xx) / np.sqrt(yy))), rtol=1e-12)
