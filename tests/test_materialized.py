"""Features that are materialized: what they are, that they are unbiased, and what their estimates are worth.

Expectations over discrete laws are summed term by term, and what is drawn is judged by `rfkernels.testing` with moments from
the definition of its law. `theory` has the sums that need cubature.
"""

from __future__ import annotations

import importlib
import itertools
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

import rfkernels as rfk
from rfkernels import materialized, testing
from rfkernels.materialized import Maclaurin, Monomials

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # theory/ is not part of the package; last, so that the library stays the installed one


DIM = 4
DRAWN: dict[str, Any] = {
    "poisson": lambda count=24, **given: materialized.draw_poisson(DIM, count, rate=0.3, **given),
    "poisson each": lambda count=24, **given: materialized.draw_poisson(DIM, count, rate=[0.1, 0.5, 0.2, 0.9], **given),
    "geometric": lambda count=24, **given: materialized.draw_geometric(DIM, count, probability=0.6, **given),
    "maclaurin": lambda count=24, **given: materialized.draw_maclaurin(DIM, count, rate=1.2, **given),
    "maclaurin normal": lambda count=24, **given: materialized.draw_maclaurin(
        DIM, count, rate=1.2, law="normal", **given
    ),
    "hybrid": lambda count=24, **given: materialized.draw_angular_hybrid(DIM, count, directions=2, **given),
}
TAYLOR = {f"taylor {degree}": materialized.taylor(DIM, degree) for degree in (0, 2, 3)}
FEATURES = {**{name: draw(rng=1) for name, draw in DRAWN.items()}, **TAYLOR}
everything = pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_subnormal=False)


def vectors(size: int, radius: float) -> st.SearchStrategy[Any]:
    """Coordinates of either sign, and zeros."""
    return st.lists(st.just(0.0) | numbers(-radius, radius), min_size=size, max_size=size).map(np.array)


def columns(x: Any, y: Any, features: Any) -> Any:
    """φ_j(x) φ_j(y) of each column."""
    log_x, sign_x = materialized.transform(x[None], features, side="query", log=True)
    log_y, sign_y = materialized.transform(y[None], features, side="key", log=True)
    return (sign_x * sign_y * np.exp(log_x + log_y))[0]


# Means and variances, summed over the law ------------------------------------------------------------------------------

TERMS = 50


def all_exponents(law: Any, parameter: Any) -> tuple[Monomials, Any]:
    """Features of all pairs of exponents up to 50, as `draw` would weight a single column, and their probabilities."""
    exponents = np.array(list(itertools.product(range(TERMS + 1), repeat=2)))
    probability = (
        stats.poisson.pmf(exponents, parameter) if law == "poisson" else stats.geom.pmf(exponents + 1, parameter)
    )
    log_weight = materialized.monomials.log_weights(law, exponents, parameter)
    return Monomials(law, exponents, log_weight, parameter, np.asarray(1.0)), probability.prod(-1)


@pytest.mark.parametrize("law", ["poisson", "geometric"])
@given(x=vectors(2, 1.4), y=vectors(2, 1.4), first=numbers(0.3, 0.7), second=numbers(0.3, 0.7))
def test_monomials_are_unbiased_with_the_variance_stated(law: Any, x: Any, y: Any, first: float, second: float) -> None:
    features, probability = all_exponents(law, np.array([first, second]))
    found = columns(x, y, features) / math.exp(x @ y)
    stated = features.count * materialized.relative_error(x, y, features)
    testing.assert_moments(found, probability, mean=1, variance=stated, rtol=1e-12)


def signs(factors: int) -> Any:
    """All rows of two signs, for each of the factors: (4^factors, factors, 2)."""
    rows = np.array(list(itertools.product([-1.0, 1.0], repeat=2)))
    chosen = list(itertools.product(range(4), repeat=factors))
    return rows[np.array(chosen, int).reshape(len(chosen), factors)]


@given(x=vectors(2, 1.0), y=vectors(2, 1.0), rate=numbers(0.05, 0.3))
def test_products_of_signs_are_unbiased_with_the_variance_stated(x: Any, y: Any, rate: float) -> None:
    """Degrees above 5 are left out: their share is bounded."""
    estimates, chances, rate_array = [], [], np.asarray(rate)
    for degree in range(6):
        rows, degrees = signs(degree), np.full(4**degree, degree)
        log_weight = materialized.maclaurin.log_weights(degrees, rate_array)
        features = Maclaurin("rademacher", rows, degrees, log_weight, rate_array, np.asarray(1.0))
        estimates.append(columns(x, y, features) / math.exp(x @ y))
        chances.append(np.full(len(rows), stats.poisson.pmf(degree, rate) / len(rows)))
    dot, fourth = x @ y, (x @ x) * (y @ y) + 2 * (x @ y) ** 2 - 2 * np.sum((x * y) ** 2)
    left_mean = abs(dot) ** 6 / math.factorial(6) * math.exp(2 * abs(dot))
    left_second = math.exp(rate - 2 * dot + fourth / rate) * (fourth / rate) ** 6 / math.factorial(6)
    one = Maclaurin("rademacher", np.zeros((1, 0, 2)), np.zeros(1, int), np.zeros(1), rate_array, np.asarray(1.0))
    testing.assert_moments(
        np.concatenate(estimates),
        np.concatenate(chances),
        mean=testing.Integral(1.0, left_mean),
        variance=testing.Integral(materialized.relative_error(x, y, one) - left_second / 2, left_second / 2),
        rtol=1e-12,
    )


@given(x=vectors(3, 2.0), y=vectors(3, 2.0), degree=st.integers(0, 6), scale=numbers(0.1, 2.0))
def test_taylor_features_are_the_polynomial(x: Any, y: Any, degree: int, scale: float) -> None:
    features = materialized.taylor(3, degree, scale=scale)
    assert features.count == math.comb(3 + degree, degree)
    dot = scale * (x @ y)
    polynomial = sum(dot**n / math.factorial(n) for n in range(degree + 1))
    size = sum((scale * (np.abs(x) @ np.abs(y))) ** n / math.factorial(n) for n in range(degree + 1))
    log, sign = materialized.log_kernel(x, y, features)
    assert abs(sign * np.exp(log) - polynomial) <= 1e-13 * size
    if degree % 2 == 0:
        assert sign == 1
    bias = polynomial * math.exp(-dot) - 1
    np.testing.assert_allclose(
        materialized.relative_bias(x, y, features), bias, atol=1e-13 * (1 + size * math.exp(-dot)), rtol=0
    )
    log_error = materialized.relative_error(x, y, features, log=True)
    np.testing.assert_allclose(np.exp(log_error / 2), abs(materialized.relative_bias(x, y, features)), rtol=1e-12)


def test_the_bias_of_taylor_features_has_no_cancellation() -> None:
    """Against the first term of the remainder, and at sizes that overflow."""
    features = materialized.taylor(1, 2, scale=1.0)
    small = np.array([[1e-5], [-1e-5]])
    np.testing.assert_allclose(
        materialized.relative_bias(small, np.ones((2, 1)), features), [-1e-15 / 6, 1e-15 / 6], rtol=1e-4
    )
    log = materialized.relative_error(np.array([-2000.0]), np.array([1.0]), features, log=True)
    np.testing.assert_allclose(log, 2 * (2000 + math.log(2000**2 / 2 - 2000 + 1)), rtol=1e-12)
    np.testing.assert_array_equal(
        materialized.relative_bias(
            small,
            np.ones((2, 1)),
            FEATURES["poisson"].__class__("poisson", np.zeros((1, 1), int), np.zeros(1), np.ones(1), np.asarray(1.0)),
        ),
        0,
    )


@given(
    norm=st.floats(-7, 1).map(lambda power: 10.0**power),
    near=st.floats(-1, 1),
    opposed=st.booleans(),
    dim=st.integers(1, 3),
)
def test_geometric_features_have_variances_without_cancellation(
    norm: float, near: float, opposed: bool, dim: int
) -> None:
    """About the best probability, 1 − |x_l y_l| of small products, where parts of the first order cancel."""
    check_geometric_variance(norm, opposed, 1 / (1 + norm**2 * 2**near), dim)


@pytest.mark.parametrize("opposed", [False, True])
@pytest.mark.parametrize("norm", [0.0, 1e-3, 0.5, 0.69])
@pytest.mark.parametrize("probability", [1e-300, 1e-16, 1e-8, 0.3, 0.5, 0.9, 1 - 1e-12])
def test_geometric_features_of_small_probability_have_variances(probability: float, norm: float, opposed: bool) -> None:
    """Where 1 − p has lost p."""
    check_geometric_variance(norm, opposed, probability, 1)


def test_geometric_features_have_variances_where_squares_of_terms_are_no_numbers() -> None:
    check_geometric_variance(1e100, False, 0.9, 1)


def check_geometric_variance(norm: float, opposed: bool, probability: float, dim: int) -> None:
    x = np.full(dim, norm)
    y = -x if opposed else x
    features = materialized.draw_geometric(dim, 1, probability=probability, scale=1.0, rng=0)
    with mp.workdps(80):
        p, term = mp.mpf(float(features.parameter[0])), mp.mpf(norm * norm) * (-1 if opposed else 1)
        each = mp.besseli(0, 2 * abs(term) / mp.sqrt(1 - p)) * mp.exp(-2 * term) / p
        exact = mp.log(each**dim - 1)
    found = float(materialized.relative_error(x, y, features, log=True))
    assert abs(found - exact) <= 1e-13 * max(1, abs(exact))


@pytest.mark.parametrize("degree", [2, 12, 40])
def test_taylor_features_of_far_points(degree: int) -> None:
    """An estimate that is nothing beside the kernel is off by all of it; what overflows is infinite, without a warning."""
    features, one = materialized.taylor(1, degree, scale=1.0), np.ones((3, 1))
    far = np.array([[1e30], [1e150], [-709.7]])
    np.testing.assert_array_equal(materialized.relative_bias(far, one, features)[:2], -1)
    np.testing.assert_array_equal(materialized.relative_error(far, one, features), [1, 1, np.inf])


@given(x=vectors(DIM, 2.0), y=vectors(DIM, 2.0))
def test_a_hybrid_mixes_its_parts(x: Any, y: Any) -> None:
    features = FEATURES["hybrid"]
    same = [np.where(v @ features.directions.T < 0, -1, 1) for v in (x, y)]
    share = np.mean(same[0] != same[1])
    parts = [rfk.log_kernel(x, y, part, return_sign=True) for part in (features.hyperbolic, features.trigonometric)]
    hyperbolic, trigonometric = (sign * np.exp(log) for log, sign in parts)
    log, sign = materialized.log_kernel(x, y, features)
    size = hyperbolic + math.exp((x @ x + y @ y) / 4)  # what |trigonometric| is at most; scale is 1/2
    assert abs(sign * np.exp(log) - share * hyperbolic - (1 - share) * trigonometric) <= 1e-13 * size


def test_errors_of_a_hybrid_at_the_limits() -> None:
    x = np.array([0.3, -0.4, 0.5, 0.1])
    features = FEATURES["hybrid"]
    zero = np.zeros(DIM)
    np.testing.assert_allclose(materialized.relative_error(x, x, features), 0, atol=1e-20)
    np.testing.assert_allclose(materialized.relative_error(x, -x, features), 0, atol=1e-20)
    assert materialized.relative_error(zero, zero, features, log=True) == -np.inf
    s = 0.5 * float(x @ x)  # at the origin the angle is taken for a right one, and both parts have the same variance
    iid = materialized.draw_angular_hybrid(DIM, 12, directions=2, sampler="iid", rng=0)
    single = 2 * math.sinh(s / 2) ** 2
    np.testing.assert_allclose(materialized.relative_error(x, zero, iid), single * 0.75, rtol=1e-12)
    far = materialized.relative_error(60 * x, -20 * x, features, log=True)
    assert np.isfinite(far)
    pairs = materialized.draw_angular_hybrid(DIM, 24, directions=2, sampler="antithetic", rng=0)
    np.testing.assert_allclose(materialized.relative_error(x, zero, pairs), single * 0.75, rtol=1e-12)


def test_the_theory_notices_broken_weights() -> None:
    discrete, maclaurin = (importlib.import_module(f"theory.{name}") for name in ("discrete", "maclaurin"))
    own = materialized.monomials.log_weights
    broken = discrete.by_summation(lambda law, exponents, parameter: own(law, exponents, parameter) * 1.001)
    assert not any(one.holds for one in broken if one.method == "summation")
    assert not maclaurin.check(lambda degrees, rate: materialized.maclaurin.log_weights(degrees, rate) + 1e-6).holds


# What is drawn ---------------------------------------------------------------------------------------------------------

COUNT = 60_000
X, Y = np.array([0.5, -0.7, 0.3, 0.4]), np.array([0.6, 0.2, -0.5, 0.8])  # scaled by 1/2 in all


def moments(name: str, features: Any, power: int) -> float:
    """E (k̂/k)^power of one column, from the definition of its law."""
    a, dot = X * Y / 2, X @ Y / 2
    n = np.arange(40)[:, None]
    parameter = np.asarray(features.rate if isinstance(features, Maclaurin) else features.parameter)
    if name.startswith("poisson"):
        total = np.prod(np.exp(power * parameter + parameter * ((a / parameter) ** power - 1)))
    elif name == "geometric":
        law = stats.geom.pmf(n + 1, parameter)
        ratio = a / (1 - parameter)
        terms = law * ratio ** (power * n) / (special.factorial(n) * parameter) ** power
        total = np.prod(terms.sum(0))
    else:
        points, weights = np.array([-1.0, 1.0]), np.array([0.5, 0.5])
        if name == "maclaurin normal":
            points, weights = np.polynomial.hermite_e.hermegauss(5)
            weights = weights / weights.sum()
        rows = np.array(list(itertools.product(points, repeat=DIM)))
        chance = np.prod(list(itertools.product(weights, repeat=DIM)), -1)
        factor = np.sum(chance * (rows @ X * (rows @ Y) / 2) ** power)
        total = np.exp(power * parameter + parameter * (factor / parameter**power - 1))
    return float(total * math.exp(-power * dot))


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "hybrid"])
def test_drawn_columns_have_the_moments_stated(name: str) -> None:
    features = DRAWN[name](1, rng=7)
    first, second, third, fourth = (moments(name, features, power) for power in (1, 2, 3, 4))
    np.testing.assert_allclose(first, 1, rtol=1e-12)
    np.testing.assert_allclose(second - 1, materialized.relative_error(X, Y, features), rtol=1e-10)

    def estimate(rng: np.random.Generator) -> Any:
        return COUNT * columns(X, Y, DRAWN[name](COUNT, rng=rng)) / math.exp(X @ Y / 2)

    central = fourth - 4 * third + 6 * second - 3
    testing.assert_unbiased_by_sampling(estimate, 1.0, variance=second - 1, detect=0.05)
    detect = math.sqrt(central) / 15
    testing.assert_variance_by_sampling(estimate, 1.0, second - 1, fourth=central, detect=detect)


@pytest.mark.parametrize("name", ["poisson each", "geometric"])
def test_exponents_have_their_law(name: str) -> None:
    parameter = DRAWN[name](1, rng=8).parameter
    law = stats.poisson(parameter) if name == "poisson each" else stats.geom(parameter, loc=-1)
    values = np.arange(4)[:, None]
    chance, mean, variance = law.pmf(values), law.mean(), law.var()

    def shares(rng: np.random.Generator) -> Any:
        return DRAWN[name](COUNT, rng=rng).exponents[:, None, :] == values

    def products(rng: np.random.Generator) -> Any:
        apart = (DRAWN[name](COUNT, rng=rng).exponents - mean) / np.sqrt(variance)
        return np.stack([apart[:, i] * apart[:, j] for i, j in itertools.combinations(range(DIM), 2)], -1)

    testing.assert_unbiased_by_sampling(shares, chance, variance=chance * (1 - chance), detect=0.03)
    testing.assert_unbiased_by_sampling(products, np.zeros(6), variance=1.0, detect=0.06)


def test_drawn_hybrids_have_the_moments_stated() -> None:
    """One row of each part and two directions, drawn anew each time; moments of the parts by Gauss–Hermite."""

    def drawn(rng: Any) -> Any:
        return materialized.draw_angular_hybrid(DIM, 12, directions=2, sampler="iid", batch=(COUNT,), rng=rng)

    def estimate(rng: np.random.Generator) -> Any:
        log, sign = materialized.log_kernel(np.broadcast_to(X, (COUNT, DIM)), Y, drawn(rng))
        return sign * np.exp(log - X @ Y / 2)

    points, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    s, delta = (float(v @ v) / 2 for v in (X + Y, X - Y))
    hyperbolic = np.exp(-s / 2) * np.cosh(points * math.sqrt(s)) - 1
    trigonometric = np.exp(delta / 2) * np.cos(points * math.sqrt(delta)) - 1
    tau = math.acos(X @ Y / math.sqrt((X @ X) * (Y @ Y))) / math.pi
    shares, chances = np.array([0, 0.5, 1]), np.array([(1 - tau) ** 2, 2 * tau * (1 - tau), tau**2])

    def moment(power: int) -> float:
        return sum(
            math.comb(power, k)
            * float(chances @ (shares**k * (1 - shares) ** (power - k)))
            * float(weights @ hyperbolic**k)
            * float(weights @ trigonometric ** (power - k))
            for k in range(power + 1)
        )

    np.testing.assert_allclose(moment(2), materialized.relative_error(X, Y, drawn(9)), rtol=1e-10)
    testing.assert_unbiased_by_sampling(estimate, 1.0, variance=moment(2), detect=math.sqrt(moment(2)) / 20)
    detect = math.sqrt(moment(4)) / 15
    testing.assert_variance_by_sampling(estimate, 1.0, moment(2), fourth=moment(4), detect=detect)


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_seed_draws_the_same(name: str) -> None:
    one, other = DRAWN[name](rng=3), DRAWN[name](rng=np.random.default_rng(3))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert isinstance(a, np.ndarray)
        assert not a.flags.writeable
    stacked = DRAWN[name](rng=3, batch=(2, 3))
    assert stacked.batch == (2, 3)
    assert stacked.count == one.count == 24
    assert stacked.dim == one.dim == DIM
    different = DRAWN[name](rng=4)
    assert any(
        a.shape != b.shape or np.any(a != b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(different), strict=True)
    )


def test_a_hybrid_may_be_drawn_from_a_key() -> None:
    features = materialized.draw_angular_hybrid(DIM, 24, directions=2, rng=jax.random.key(0))
    assert isinstance(features.directions, jax.Array)
    assert not np.allclose(features.hyperbolic.projection, features.trigonometric.projection)
    assert materialized.transform(jnp.ones((3, DIM)), features, side="key").shape == (3, 24)
    assert np.isfinite(materialized.relative_error(X, Y, features))


# Numerics, and JAX -----------------------------------------------------------------------------------------------------


def awkward() -> Any:
    """Rows with zeros, negative coordinates, nothing but zeros, and small and large norms."""
    rows = np.random.default_rng(2).standard_normal((6, DIM))
    rows[1, 2] = 0
    rows[2] = 0
    rows[3] *= -1
    rows[4] *= 1e-20
    rows[5] *= 6
    return rows


def direct(x: Any, features: Any) -> Any:
    """Columns by powers and products as they are defined, without logs."""
    t = x * math.sqrt(features.scale)
    weight = np.exp(features.log_weight)
    if isinstance(features, Monomials):
        return weight * np.prod(t[:, None, :] ** features.exponents, -1)
    found = []
    for row, degree in zip(features.rows, features.degrees, strict=True):
        found.append(np.prod(t @ row[:degree].T, -1))
    return weight * np.stack(found, -1)


@pytest.mark.parametrize("name", [name for name in FEATURES if name != "hybrid"])
def test_columns_are_those_of_the_definition(name: str) -> None:
    features = FEATURES[name]
    for side in ("query", "key"):
        found = materialized.transform(awkward(), features, side=side)
        np.testing.assert_allclose(found, direct(awkward(), features), rtol=1e-12, atol=0)


@everything
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_jax_equals_numpy(features: Any, dtype: str) -> None:
    import ml_dtypes

    given_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    x = (awkward() / 4).astype(given_dtype)
    with jax.enable_x64(dtype == "float64"):

        def both(x: Any, y: Any, features: Any) -> Any:
            return [materialized.transform(x, features, side=side) for side in ("query", "key")], (
                materialized.log_kernel(x, y, features)
            )

        sides, (log, sign) = jax.jit(both)(jnp.asarray(x), jnp.asarray(x[::-1].copy()), features)
        for side, found in zip(("query", "key"), sides, strict=True):
            expected = materialized.transform(x, features, side=side)
            assert found.dtype == expected.dtype == given_dtype
            tolerance = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 0.02, "float16": 2e-3}[dtype]
            np.testing.assert_allclose(
                np.asarray(found, np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance * 1e-2
            )
        log_numpy, sign_numpy = materialized.log_kernel(x, x[::-1], features)
        assert log.dtype == log_numpy.dtype == ("float64" if dtype == "float64" else "float32")
        np.testing.assert_allclose(sign * jnp.exp(log), sign_numpy * np.exp(log_numpy), rtol=1e-3, atol=1e-4)


@everything
def test_derivatives_are_right_and_finite_at_zeros(features: Any) -> None:
    def total(x: Any) -> Any:
        phi = materialized.transform(x, features, side="query")
        return jnp.sum(phi * jnp.cos(jnp.arange(phi.shape[-1])))

    with jax.enable_x64(True):
        x, along = (jnp.asarray(one) for one in np.random.default_rng(5).standard_normal((2, 6, DIM)))
        gradient, step = jax.jit(jax.grad(total)), 1e-6
        moved = [
            np.sum(
                materialized.transform(np.asarray(x + by * along), features, side="query")
                @ np.cos(np.arange(features.count))
            )
            for by in (step, -step)
        ]
        np.testing.assert_allclose(
            jnp.sum(gradient(x) * along), (moved[0] - moved[1]) / (2 * step), rtol=1e-6, atol=1e-7
        )
        assert jnp.all(jnp.isfinite(gradient(jnp.asarray(awkward()))))


def test_float32_rounds_no_worse_than_its_exponents() -> None:
    for features in FEATURES.values():
        x = awkward()[[0, 1, 3]].astype(np.float32)
        exact = materialized.transform(x.astype(np.float64), features, side="key")
        found = materialized.transform(x, features, side="key")
        assert np.all(np.abs(found - exact) <= 2e-5 * np.abs(exact) + 1e-6)


def test_logs_hold_where_columns_overflow() -> None:
    x = np.full((1, DIM), -1e30, np.float32)
    features = Monomials("taylor", np.array([[3, 0, 0, 1]]), np.zeros(1), np.asarray(4.0), np.asarray(1.0))
    log, sign = materialized.transform(x, features, side="key", log=True)
    np.testing.assert_allclose(log, 4 * 30 * math.log(10), rtol=1e-6)
    assert sign == 1
    features = FEATURES["maclaurin"]
    log, sign = materialized.transform(x, features, side="key", log=True)
    assert np.all(np.isfinite(log) | (sign == 0))
    assert np.max(log) > 100
    log, sign = materialized.log_kernel(100 * X, -100 * Y, FEATURES["taylor 3"])
    np.testing.assert_allclose(
        sign * np.exp(log), sum((-5000 * (X @ Y)) ** n / math.factorial(n) for n in range(4)), rtol=1e-12
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log = materialized.relative_error(100 * X, -100 * Y, FEATURES["geometric"], log=True)
        assert np.isfinite(log)
        assert log > 709


@everything
@pytest.mark.parametrize("backend", ["numpy", "jax"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_that_of_dense_weights(features: Any, backend: str, causal: bool) -> None:
    rng = np.random.default_rng(11)
    q, k, v = (0.7 * rng.standard_normal((2, 200, width)) for width in (DIM, DIM, 3))
    weights = np.einsum(
        "bin,bjn->bij",
        materialized.transform(q, features, side="query"),
        materialized.transform(k, features, side="key"),
    )
    sums = weights.sum(-1)
    if causal:
        weights = np.tril(weights)
    condition = np.abs(weights).sum(-1, keepdims=True) / np.abs(weights.sum(-1, keepdims=True))
    expected = weights @ v / weights.sum(-1, keepdims=True)
    with jax.enable_x64(True):

        def attend(q: Any, k: Any, v: Any) -> Any:
            phi_q, phi_k = (materialized.transform(x, features, side=side) for x, side in ((q, "query"), (k, "key")))
            return phi_q, phi_k, rfk.linear_attention(phi_q, phi_k, v, causal=causal)

        if backend == "numpy":
            phi_q, phi_k, found = attend(q, k, v)
        else:
            phi_q, phi_k, found = jax.jit(attend)(q, k, v)
        assert isinstance(found, np.ndarray if backend == "numpy" else jax.Array)
        assert np.all(np.abs(np.asarray(found) - expected) <= 1e-9 * condition**2)
        phi_q, phi_k = np.asarray(phi_q), np.asarray(phi_k)
        np.testing.assert_allclose((phi_q @ phi_k.sum(-2)[..., None])[..., 0], sums, rtol=1e-8, atol=1e-8)


def test_many_columns_give_attention_of_softmax() -> None:
    """Positive features need no less: the error of the output is that of the kernel."""
    rng = np.random.default_rng(12)
    q, k = (0.5 * rng.standard_normal((40, DIM)) for _ in range(2))
    v = rng.standard_normal((40, 2))
    exact = rfk.exact_attention(q, k, v)
    for name, draw in DRAWN.items():
        features = draw(24_000, rng=13)
        phi_q, phi_k = (materialized.transform(x, features, side=side) for x, side in ((q, "query"), (k, "key")))
        assert np.max(np.abs(rfk.linear_attention(phi_q, phi_k, v) - exact)) < 0.05, name


@everything
def test_lengths_and_batches(features: Any) -> None:
    for shape in ((0, DIM), (1, DIM), (3, 0, DIM), (2, 1, 5, DIM), (0, 4, DIM)):
        x = np.ones(shape)
        assert materialized.transform(x, features, side="query").shape == (*shape[:-1], features.count)
        log, sign = materialized.log_kernel(x, x, features)
        assert log.shape == sign.shape == shape[:-1]
        assert materialized.relative_error(x, x, features).shape == shape[:-1]
        assert materialized.relative_bias(x, x, features).shape == shape[:-1]
    x = np.random.default_rng(0).standard_normal((5, 3, DIM))
    whole = materialized.transform(x[:, ::2], features, side="key")
    np.testing.assert_array_equal(whole[3], materialized.transform(x[3, ::2].copy(), features, side="key"))


@pytest.mark.parametrize("name", DRAWN)
def test_a_batch_is_its_elements(name: str) -> None:
    """Heads with columns of their own, and a batch axis of the inputs that has none."""
    features = DRAWN[name](rng=5, batch=(3,))
    x = np.random.default_rng(0).standard_normal((2, 1, 4, DIM))
    found = materialized.transform(x, features, side="query")
    assert found.shape == (2, 3, 4, 24)
    with_static = jax.tree.map(lambda leaf: leaf[1] if leaf.ndim and leaf.shape[0] == 3 else leaf, features)
    np.testing.assert_allclose(found[:, 1], materialized.transform(x[:, 0], with_static, side="query"), rtol=1e-13)


# Parameters ------------------------------------------------------------------------------------------------------------


def mean_log_moment(features: Any, x: Any, y: Any) -> float:
    error = features.count * materialized.relative_error(x[:, None], y, features)
    return float(np.mean(np.log1p(error)))


OPTIMA: dict[str, Any] = {
    "poisson": (materialized.optimal_rate, lambda value: materialized.draw_poisson(DIM, 1, rate=value, rng=0)),
    "geometric": (
        materialized.optimal_probability,
        lambda value: materialized.draw_geometric(DIM, 1, probability=value, rng=0),
    ),
    "maclaurin": (materialized.optimal_degree, lambda value: materialized.draw_maclaurin(DIM, 1, rate=value, rng=0)),
    "maclaurin normal": (
        lambda x, y: materialized.optimal_degree(x, y, law="normal"),
        lambda value: materialized.draw_maclaurin(DIM, 1, rate=value, law="normal", rng=0),
    ),
}


@pytest.mark.parametrize("name", OPTIMA)
def test_optima_are_minima(name: str) -> None:
    rng = np.random.default_rng(4)
    x, y = (rng.standard_normal((n, DIM)) * [1, 0.5, 2, 1] + 0.3 for n in (7, 9))
    best, draw = OPTIMA[name]
    value = best(x, y)
    at, beside = mean_log_moment(draw(value), x, y), [mean_log_moment(draw(value * by), x, y) for by in (0.999, 1.001)]
    assert at < min(beside)
    assert value == best(x[None], y)
    assert isinstance(value, float)


def test_rates_of_each_coordinate() -> None:
    rng = np.random.default_rng(4)
    x, y = np.abs(rng.standard_normal((2, DIM)))
    rates = materialized.optimal_rate(x, y, each=True)
    np.testing.assert_allclose(rates, x * y / 2)
    features = materialized.draw_poisson(DIM, 1, rate=rates, rng=0)
    log, sign = materialized.log_kernel(x, y, features)
    np.testing.assert_allclose(sign * np.exp(log), math.exp(x @ y / 2), rtol=1e-13)  # nothing is random
    np.testing.assert_allclose(materialized.relative_error(x, y, features), 0, atol=1e-15)
    np.testing.assert_allclose(materialized.optimal_rate(x, y), math.sqrt(np.sum((x * y / 2) ** 2) / DIM))
    np.testing.assert_allclose(materialized.optimal_rate(x, y, scale=3.0), math.sqrt(np.sum((3 * x * y) ** 2) / DIM))
    x, y = (rng.standard_normal((n, DIM)) * [1, 0.5, 2, 1] for n in (7, 9))
    rates = materialized.optimal_rate(x, y, each=True)
    at = mean_log_moment(materialized.draw_poisson(DIM, 1, rate=rates, rng=0), x, y)
    assert at < mean_log_moment(OPTIMA["poisson"][1](materialized.optimal_rate(x, y)), x, y)
    for i in range(DIM):
        for by in (0.999, 1.001):
            moved = np.where(np.arange(DIM) == i, by, 1) * rates
            assert at < mean_log_moment(materialized.draw_poisson(DIM, 1, rate=moved, rng=0), x, y)


@given(x=vectors(DIM, 2.0), y=vectors(DIM, 2.0))
def test_rows_of_signs_are_never_worse(x: Any, y: Any) -> None:
    one, other = (materialized.draw_maclaurin(DIM, 1, rate=0.7, law=law, rng=0) for law in ("rademacher", "normal"))
    logs = [materialized.relative_error(x, y, features, log=True) for features in (one, other)]
    assert logs[0] <= logs[1] + 1e-12


# Errors ----------------------------------------------------------------------------------------------------------------

ONES = np.ones((3, DIM))
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "dim": (lambda: materialized.taylor(0, 2), ValueError, "dim must be a positive integer, got 0"),
    "degree": (lambda: materialized.taylor(2, -1), ValueError, "degree must be an integer of at least 0, got -1"),
    "columns": (lambda: materialized.taylor(64, 6), ValueError, "degree must leave 4,194,304 columns or fewer, got 6"),
    "more columns": (
        lambda: materialized.taylor(16, 10),
        ValueError,
        "degree must leave .* or fewer, got 10 for dim 16",
    ),
    "degree huge": (lambda: materialized.taylor(8, 2**70), ValueError, "degree must leave 4,194,304 columns or fewer"),
    "degree bool": (lambda: materialized.taylor(2, True), ValueError, "degree"),
    "count": (lambda: materialized.draw_poisson(2, 0, rate=1, rng=0), ValueError, "count must be a positive"),
    "rate": (lambda: materialized.draw_poisson(2, 3, rate=0.0, rng=0), ValueError, "rate must be positive and finite"),
    "rate nan": (lambda: materialized.draw_poisson(2, 3, rate=math.nan, rng=0), ValueError, "rate"),
    "rate shape": (
        lambda: materialized.draw_poisson(2, 3, rate=[1.0] * 3, rng=0),
        ValueError,
        r"rate must be a number or an array of shape \(2,\)",
    ),
    "rate kind": (lambda: materialized.draw_maclaurin(2, 3, rate="x", rng=0), ValueError, "rate must be a number, got"),
    "probability": (
        lambda: materialized.draw_geometric(2, 3, probability=1.0, rng=0),
        ValueError,
        "probability must be between 0 and 1, got 1.0",
    ),
    "law": (lambda: materialized.draw_maclaurin(2, 3, rate=1, law="uniform", rng=0), ValueError, "law must be"),
    "optimal law": (lambda: materialized.optimal_degree(X, Y, law="uniform"), ValueError, "law must be"),
    "scale": (lambda: materialized.taylor(2, 2, scale=-1.0), ValueError, "scale must be a positive finite number"),
    "scale kind": (lambda: materialized.taylor(2, 2, scale="1"), ValueError, "scale must be a positive finite number"),
    "batch": (lambda: materialized.draw_poisson(2, 3, rate=1, batch=2, rng=0), ValueError, "batch must be a tuple"),
    "rng": (lambda: materialized.draw_poisson(2, 3, rate=1, rng="0"), TypeError, "rng must be an int"),
    "rng negative": (lambda: materialized.draw_poisson(2, 3, rate=1, rng=-1), ValueError, "rng must be at least 0"),
    "key": (
        lambda: materialized.draw_geometric(2, 3, probability=0.5, rng=jax.random.key(0)),
        ValueError,
        "geometric features are drawn on the host.*got a JAX key",
    ),
    "hybrid count": (
        lambda: materialized.draw_angular_hybrid(2, 10, directions=2, rng=0),
        ValueError,
        r"count must be a multiple of 4 \(directions \+ 1\) = 12, got 10",
    ),
    "directions": (
        lambda: materialized.draw_angular_hybrid(2, 12, directions=0, rng=0),
        ValueError,
        "directions must be a positive integer",
    ),
    "sampler": (
        lambda: materialized.draw_angular_hybrid(2, 12, directions=2, sampler="regularized", rng=0),
        ValueError,
        "sampler must draw normal rows, but the law of 'regularized' is 'sphere'",
    ),
    "coupling": (
        lambda: materialized.relative_error(
            np.ones(2),
            np.ones(2),
            materialized.draw_angular_hybrid(
                2, 12, directions=2, sampler=lambda normal, count, dim: normal((count, dim)), rng=0
            ),
        ),
        ValueError,
        "no closed form is known for the coupling of the sampler",
    ),
    "side": (
        lambda: materialized.transform(ONES, FEATURES["poisson"], side="value"),  # type: ignore[arg-type]
        ValueError,
        "side must be 'query' or 'key', got 'value'",
    ),
    "features": (
        lambda: materialized.transform(ONES, rfk.draw("relu", DIM, 8, rng=0), side="key"),  # type: ignore[arg-type]
        TypeError,
        "features must be drawn by rfkernels.materialized, got Features",
    ),
    "width": (
        lambda: materialized.transform(np.ones((3, 2)), FEATURES["poisson"], side="key"),
        ValueError,
        r"features are of dim 4, but x has shape \(3, 2\)",
    ),
    "finite": (
        lambda: materialized.transform(ONES * np.inf, FEATURES["poisson"], side="key"),
        ValueError,
        r"x must be finite, but x\[0, 0\] is inf",
    ),
    "pair finite": (lambda: materialized.log_kernel(X, Y * np.nan, FEATURES["hybrid"]), ValueError, "y must be finite"),
    "batches": (
        lambda: materialized.transform(np.ones((2, 3, DIM)), DRAWN["poisson"](rng=0, batch=(3,)), side="key"),
        ValueError,
        "batch axes do not broadcast",
    ),
    "integers": (lambda: materialized.log_kernel(np.ones(DIM, int), Y, FEATURES["poisson"]), TypeError, "x must have"),
    "optimal rate": (
        lambda: materialized.optimal_rate(X * [1, 0, 1, 1], Y, each=True),
        ValueError,
        "vanishes in coordinate 1, so that the optimal rate is 0",
    ),
    "optimal probability": (lambda: materialized.optimal_probability(0 * X, Y), ValueError, "optimal probability is 1"),
    "dims of points": (lambda: materialized.optimal_rate(X, Y[:2]), ValueError, "x and y must agree in dim, got"),
    "optimal degree": (lambda: materialized.optimal_degree(0 * X, Y), ValueError, "optimal mean degree is 0"),
    "no points": (lambda: materialized.optimal_rate(ONES[:0], ONES), ValueError, "x must hold at least one point"),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_infinity_passes_if_asked() -> None:
    found = materialized.transform(ONES * np.nan, FEATURES["taylor 2"], side="key", check_finite=False)
    assert np.isnan(found).any()


def test_a_pytree_made_before_jax_knew_of_it() -> None:
    for features in FEATURES.values():
        leaves, tree = jax.tree.flatten(features)
        again = jax.tree.unflatten(tree, leaves)
        assert type(again) is type(features)
        assert again.count == features.count
