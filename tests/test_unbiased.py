"""Estimates are unbiased, whatever the parameters, and samplers draw rows that are marginally standard normal.

Expectations over the projection are integrated, not sampled: the nodes of a quadrature rule take the place of random
rows. Two dimensions are the general case, since a row is a standard normal on the plane of x and y. Samplers are judged
by six standard errors, with sample sizes for which a wrong sampler misses by several times as much.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import rfkernels as rfk
from rfkernels import FeatureMap, Features, Side

cases = settings(derandomize=True, max_examples=25, deadline=None, database=None)

KERNELS = [name for name in rfk.names() if rfk.lookup(name).kernel is not None]
SOFTMAX = ["hyperbolic", "positive", "trigonometric"]
EXPONENTIAL = [name for name in KERNELS if rfk.lookup(name).exponential]


class Grid(NamedTuple):
    """Rows and weights with Σ weights · f(rows) = E f(w), w ~ N(0, I)."""

    rows: Any
    weights: Any


def hermite(nodes: int = 48) -> Grid:
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    rows = np.stack(np.meshgrid(points, points, indexing="ij"), -1).reshape(-1, 2)
    return Grid(rows, np.outer(weights, weights).reshape(-1) / (2 * math.pi))


HERMITE = hermite()


def polar(*kinks: Any) -> Grid:
    """Pieces of the circle between the perpendiculars of `kinks`, times radii: exact where h has a kink at 0."""
    perpendicular = [math.atan2(v[1], v[0]) + turn for v in kinks for turn in (math.pi / 2, -math.pi / 2)]
    cuts = np.sort(np.mod([*perpendicular, 0.0], 2 * math.pi))
    points, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(cuts, append=2 * math.pi)[:, None] / 2
    angles = (cuts[:, None] + half * (1 + points)).reshape(-1)
    radial_points, radial_weights = np.polynomial.legendre.leggauss(40)
    radii = 6 * (1 + radial_points)
    density = 6 * radial_weights * radii * np.exp(-(radii**2) / 2) / (2 * math.pi)
    rows = radii[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    return Grid(rows.reshape(-1, 2), np.outer(density, (half * weights).reshape(-1)).reshape(-1))


def bind(feature_map: FeatureMap, rows: Any, scale: float = 1.0, **changes: Any) -> Features:
    features = Features(feature_map, rows, np.zeros(len(rows)), Side(), Side(), np.asarray(scale))
    return dataclasses.replace(features, **changes)


def row_estimates(features: Features, x: Any, y: Any) -> Any:
    """What each row alone would estimate, (rows,)."""
    log_x, sign_x = rfk.transform(x[None], features, side="query", log=True)
    log_y, sign_y = rfk.transform(y[None], features, side="key", log=True)
    columns = (sign_x * sign_y * np.exp(log_x + log_y)).reshape(-1, features.rows)
    return features.rows * columns.sum(0)


def grid_for(feature_map: FeatureMap, x: Any, y: Any) -> Grid:
    return HERMITE if feature_map.exponential else polar(x, y)


def exact(feature_map: FeatureMap, x: Any, y: Any) -> float:
    return float(np.exp(rfk.exact_log_kernel(x, y, kernel=feature_map.kernel)))


def unit(feature_map: FeatureMap, x: Any, y: Any) -> float:
    """What a deviation is relative to: the kernel, or its bound for maps whose kernel may vanish."""
    if feature_map.exponential:
        return exact(feature_map, x, y)
    return math.sqrt(exact(feature_map, x, x) * exact(feature_map, y, y))


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_subnormal=False)


@st.composite
def balls(draw: Callable[[Any], float], radius: float) -> Any:
    """Points of a ball, its centre included, but none whose squared norm underflows."""
    norm, angle = radius * draw(st.just(0.0) | numbers(1e-6, 1)), draw(numbers(-math.pi, math.pi))
    return norm * np.array([math.cos(angle), math.sin(angle)])


@st.composite
def matrices(draw: Callable[[Any], float]) -> Any:
    """Rotation × stretch × rotation, neither symmetric nor orthogonal as a rule."""
    angles, stretch = [draw(numbers(-math.pi, math.pi)) for _ in range(2)], [draw(numbers(0.7, 1.4)) for _ in range(2)]
    left, right = (np.array([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]]) for t in angles)
    return left @ np.diag(stretch) @ right


SCALES = numbers(0.05, 1.5)


# Unbiasedness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
@cases
@given(x=balls(1.0), y=balls(1.0), scale=SCALES)
def test_unbiased(name: str, x: Any, y: Any, scale: float) -> None:
    """E φ(x)·φ(y) = k(√scale x, √scale y)."""
    feature_map = rfk.lookup(name)
    grid, root = grid_for(feature_map, x, y), math.sqrt(scale)
    mean = row_estimates(bind(feature_map, grid.rows, scale), x, y) @ grid.weights
    assert abs(mean - exact(feature_map, root * x, root * y)) <= 1e-9 * unit(feature_map, root * x, root * y)


@pytest.mark.parametrize("name", KERNELS)
@cases
@given(x=balls(1.0), y=balls(1.0), a=balls(0.5), b=balls(0.5), left=matrices(), right=matrices())
def test_each_side_is_preprocessed_by_its_own_parameters(
    name: str, x: Any, y: Any, a: Any, b: Any, left: Any, right: Any
) -> None:
    """E φ(x)·φ(y) = k(T (x − a), T' (y − b)), times e^(linear·x + linear'·y) for an exponential map."""
    feature_map = rfk.lookup(name)
    sides = {"query": Side(left, a), "key": Side(right, b)}
    tilt = 0.0
    if feature_map.exponential:
        sides = {"query": Side(left, a, 0.5 * b), "key": Side(right, b, -0.5 * a)}
        tilt = 0.5 * b @ x - 0.5 * a @ y
    u, v = left @ (x - a), right @ (y - b)
    grid = grid_for(feature_map, u, v)
    mean = row_estimates(bind(feature_map, grid.rows, 7.0, **sides), x, y) @ grid.weights  # a matrix replaces √scale
    assert abs(mean - math.exp(tilt) * exact(feature_map, u, v)) <= 1e-9 * math.exp(tilt) * unit(feature_map, u, v)


def affine(feature_map: FeatureMap, grid: Grid, scale: float, a: Any, b: Any, t: Any) -> Features:
    """Features of exp(scale x·y) from x·y = (Tx − Ta)·(T⁻ᵀy − T⁻ᵀb) + x·b + a·y − a·b."""
    root = math.sqrt(scale)
    return bind(
        feature_map,
        grid.rows,
        scale,
        query=Side(root * t, a, scale * b),
        key=Side(root * np.linalg.inv(t).T, b, scale * a),
        log_weight=np.full(len(grid.rows), -scale * (a @ b) / 2),
    )


@pytest.mark.parametrize("name", SOFTMAX)
@cases
@given(x=balls(1.0), y=balls(1.0), a=balls(0.5), b=balls(0.5), t=matrices(), scale=SCALES)
def test_unbiased_after_centring_and_balancing(name: str, x: Any, y: Any, a: Any, b: Any, t: Any, scale: float) -> None:
    features = affine(rfk.lookup(name), HERMITE, scale, a, b, t)
    mean = row_estimates(features, x, y) @ HERMITE.weights
    np.testing.assert_allclose(mean, math.exp(scale * (x @ y)), rtol=1e-9)


@pytest.mark.parametrize("name", EXPONENTIAL)
@cases
@given(x=balls(1.0), y=balls(1.0), mean=balls(1.0), root=matrices(), scale=numbers(0.05, 1.0))
def test_unbiased_under_importance_sampling(name: str, x: Any, y: Any, mean: Any, root: Any, scale: float) -> None:
    """Rows from N(μ, Σ), log-weights ½ log(N(w; 0, I) / N(w; μ, Σ))."""
    feature_map = rfk.lookup(name)
    root = root / 0.75  # standard deviations of 0.93 to 1.87: a proposal much narrower than the target has no variance
    rows = mean + HERMITE.rows @ root.T
    log_ratio = (HERMITE.rows**2).sum(-1) / 2 - (rows**2).sum(-1) / 2 + math.log(abs(np.linalg.det(root)))
    features = bind(feature_map, rows, scale, log_weight=log_ratio / 2)
    found = row_estimates(features, x, y) @ HERMITE.weights
    np.testing.assert_allclose(found, exact(feature_map, math.sqrt(scale) * x, math.sqrt(scale) * y), rtol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", SOFTMAX)
def test_quadrature_features_give_exact_attention(name: str, causal: bool) -> None:
    """With the weights of the rule as log-weights nothing is random: kernels, normalisers and attention are exact."""
    rng = np.random.default_rng(3)
    q, k = (0.6 * rng.standard_normal((2, 9, 2)) for _ in range(2))
    v = rng.standard_normal((2, 9, 3))
    a, b, t, scale = np.array([0.3, -0.2]), np.array([-0.1, 0.4]), np.array([[1.1, 0.3], [-0.2, 0.8]]), 0.7
    features = affine(rfk.lookup(name), HERMITE, scale, a, b, t)
    weights = np.log(features.rows * HERMITE.weights) / 2
    features = dataclasses.replace(features, log_weight=features.log_weight + weights)
    out = rfk.attention(q, k, v, features, causal=causal, backend="numpy")
    np.testing.assert_allclose(out, rfk.exact_attention(q, k, v, causal=causal, scale=scale), rtol=1e-9, atol=1e-10)
    log, sign = rfk.log_kernel(q, k, features, return_sign=True)
    np.testing.assert_array_equal(sign, 1)
    np.testing.assert_allclose(log, rfk.exact_log_kernel(q, k, scale=scale), atol=1e-9)
    log, sign = rfk.log_normalizer(q, k, features, return_sign=True, backend="numpy")
    np.testing.assert_array_equal(sign, 1)
    np.testing.assert_allclose(log, rfk.exact_log_normalizer(q, k, scale=scale), atol=1e-9)


# Second moments -------------------------------------------------------------------------------------------------------

VARIANCES = {
    "positive": lambda s, delta: math.expm1(s),
    "hyperbolic": lambda s, delta: 2 * math.sinh(s / 2) ** 2,
    "trigonometric": lambda s, delta: 2 * math.sinh(delta / 2) ** 2,
}


@pytest.mark.parametrize("name", SOFTMAX)
@cases
@given(x=balls(1.0), y=balls(1.0), scale=numbers(0.05, 0.85))
def test_variance_of_one_row(name: str, x: Any, y: Any, scale: float) -> None:
    """E (φ(x)·φ(y))² / K² = 1 + relative variance (Performers, arXiv 2009.14794, lemma 2); s and δ are at most 3.4."""
    found = row_estimates(bind(rfk.lookup(name), HERMITE.rows, scale), x, y) / math.exp(scale * (x @ y))
    s, delta = scale * float((x + y) @ (x + y)), scale * float((x - y) @ (x - y))
    np.testing.assert_allclose(found**2 @ HERMITE.weights, 1 + VARIANCES[name](s, delta), rtol=1e-6)
    np.testing.assert_allclose((found - 1) ** 2 @ HERMITE.weights, VARIANCES[name](s, delta), rtol=1e-6, atol=1e-20)


# Samplers -------------------------------------------------------------------------------------------------------------

SAMPLERS = ["iid", "orthogonal", "antithetic"]


def unsigned(normal: Any, count: int, dim: int) -> Any:
    """Orthogonal blocks as LAPACK's QR leaves them: not Haar-distributed, since the signs of R are not folded in."""
    basis = np.linalg.qr(normal((-(-count // dim), dim, dim)))[0]
    directions = np.swapaxes(basis, -1, -2).reshape(-1, dim)[:count]
    return directions * np.linalg.norm(normal((count, dim)), axis=-1, keepdims=True)


def equal_norms(normal: Any, count: int, dim: int) -> Any:
    """Rows of the orthogonal sampler, stretched to √d."""
    rows = rfk.samplers.orthogonal(normal, count, dim)
    return rows * (math.sqrt(dim) / np.linalg.norm(rows, axis=-1, keepdims=True))


def rows_of(sampler: Any, count: int, dim: int, rng: Any = 0) -> Any:
    return np.asarray(rfk.draw("positive", dim, count, sampler=sampler, rng=rng).projection)


def halves(sampler: Any, rows: Any) -> Any:
    """The rows that are drawn: of antithetic ones the first half."""
    return rows[: len(rows) // 2] if sampler == "antithetic" else rows


def mean_along_ones(rows: Any) -> float:
    """Standard errors of the mean of w·(1, …, 1)/√d from 0.

    Every term has variance 1 and terms of different rows are uncorrelated, in an orthogonal block too: its rows may
    change sign one by one.
    """
    return float(abs(rows.sum(-1).mean()) / math.sqrt(rows.shape[-1]) * math.sqrt(len(rows)))


def kernel_along_ones(rows: Any, s: float = 1.0) -> float:
    """Standard errors of the mean of e^(w·z − s/2), z = √s (1, …, 1)/√d, from 1: the bias of positive features.

    One row has the relative variance eˢ − 1, and orthogonal rows of a block are coupled so as to lower the mean's.
    """
    z = math.sqrt(s / rows.shape[-1])
    return float(abs(np.mean(np.exp(z * rows.sum(-1) - s / 2)) - 1) / math.sqrt(math.expm1(s) / len(rows)))


def spread(rows: Any, s: float = 0.5) -> float:
    """Standard errors of the mean of (e^(w·z − s/2) − 1)² from eˢ − 1, for independent rows.

    That square has the relative variance κ − 1 with κ = e⁴ˢ + 2 e³ˢ + 3 e²ˢ − 3, the kurtosis of a lognormal variable.
    """
    z, variance = math.sqrt(s / rows.shape[-1]), math.expm1(s)
    kurtosis = math.exp(4 * s) + 2 * math.exp(3 * s) + 3 * math.exp(2 * s) - 3
    found = np.mean((np.exp(z * rows.sum(-1) - s / 2) - 1) ** 2)
    return float(abs(found - variance) / (variance * math.sqrt((kurtosis - 1) / len(rows))))


def norms_p_value(rows: Any) -> float:
    """Kolmogorov–Smirnov test of |w| against the chi distribution of d degrees of freedom."""
    return float(stats.kstest(np.linalg.norm(rows, axis=-1), stats.chi(rows.shape[-1]).cdf).pvalue)


# At s = 1 one standard error of `kernel_along_ones` is √((e − 1) / COUNT), or 0.6 % of the kernel. Rows without the
# sign fix are off by several percent, less so in wider blocks: by 9 standard errors or more, as asserted below.
COUNT = 48_000


def assert_marginally_normal(rows: Any) -> None:
    count, dim = rows.shape
    assert mean_along_ones(rows) <= 6
    assert kernel_along_ones(rows) <= 6
    assert norms_p_value(rows) >= 1e-6
    identity = np.eye(dim)
    assert np.all(np.abs(rows.T @ rows / count - identity) <= 6 * np.sqrt((1 + identity) / count))


@pytest.mark.parametrize("dim", [4, 16, 64])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rows_are_marginally_normal(sampler: str, dim: int) -> None:
    assert_marginally_normal(halves(sampler, rows_of(sampler, COUNT, dim)))


@pytest.mark.parametrize("dim", [4, 16, 64])
def test_blocks_without_the_sign_fix_are_rejected(dim: int) -> None:
    rows = rows_of(unsigned, COUNT, dim)
    assert mean_along_ones(rows) > 12
    assert kernel_along_ones(rows) > 9
    with pytest.raises(AssertionError):
        assert_marginally_normal(rows)


@pytest.mark.parametrize("dim", [4, 16, 64])
def test_norms_of_root_d_are_rejected(dim: int) -> None:
    rows = rows_of(equal_norms, COUNT, dim)
    assert norms_p_value(rows) < 1e-30
    with pytest.raises(AssertionError):
        assert_marginally_normal(rows)


@pytest.mark.parametrize("dim", [4, 16, 64])
def test_iid_estimates_spread_as_the_lemma_says(dim: int) -> None:
    assert spread(rows_of("iid", COUNT, dim)) <= 6


def test_the_spread_notices_norms_of_root_d() -> None:
    assert spread(rows_of(equal_norms, COUNT, 4)) > 9


def cosines(rows: Any) -> Any:
    directions = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return directions @ directions.T - np.eye(len(rows))


@pytest.mark.parametrize(("count", "dim"), [(1, 1), (1, 5), (8, 8), (12, 16), (21, 8), (256, 64), (3, 1)])
def test_rows_of_a_block_are_orthogonal(count: int, dim: int) -> None:
    """Also in the last block, which may be cut; rows of different blocks are not."""
    rows = rows_of("orthogonal", count, dim)
    for start in range(0, count, dim):
        assert np.abs(cosines(rows[start : start + dim])).max() <= 1e-10
    if count > dim > 1:
        assert np.abs(cosines(rows)).max() > 1e-3


@pytest.mark.parametrize("half", ["iid", "orthogonal"])
def test_antithetic_rows_come_in_pairs(half: str) -> None:
    sampler = getattr(rfk.samplers, half)
    rows = rows_of(rfk.samplers.antithetic(sampler), 24, 8, rng=5)
    np.testing.assert_array_equal(rows[12:], -rows[:12])
    np.testing.assert_array_equal(rows[:12], rows_of(sampler, 12, 8, rng=5))


def test_antithetic_is_antithetic_of_orthogonal_rows() -> None:
    named, spelled = "antithetic", rfk.samplers.antithetic(rfk.samplers.orthogonal)
    np.testing.assert_array_equal(rows_of(named, 32, 8), rows_of(spelled, 32, 8))


# Randomness -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_integer_seed_is_a_projection(sampler: str) -> None:
    rows = rows_of(sampler, 32, 8, rng=7)
    for same in (7, np.int64(7), np.random.SeedSequence(7), np.random.default_rng(7)):
        np.testing.assert_array_equal(rows_of(sampler, 32, 8, rng=same), rows)
    assert np.all(rows_of(sampler, 32, 8, rng=8) != rows)
    assert rows.dtype == np.float64


def test_a_generator_moves_on_and_a_seed_sequence_does_not() -> None:
    generator, sequence = np.random.default_rng(7), np.random.SeedSequence(7)
    assert np.all(rows_of("iid", 8, 4, rng=generator) != rows_of("iid", 8, 4, rng=generator))
    np.testing.assert_array_equal(rows_of("iid", 8, 4, rng=sequence), rows_of("iid", 8, 4, rng=sequence))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_elements_of_a_batch_are_drawn_independently(sampler: str) -> None:
    drawn = rfk.draw("positive", 4, 8000, sampler=sampler, batch=(2, 3), rng=0).projection
    assert drawn.shape == (2, 3, 8000, 4)
    flat = drawn.reshape(6, -1)
    first = halves(sampler, drawn[0, 0])
    for i in range(6):
        assert mean_along_ones(halves(sampler, drawn.reshape(6, 8000, 4)[i])) <= 6
        for j in range(i):
            assert np.all(flat[i] != flat[j])
            products = halves(sampler, flat[i].reshape(8000, 4)) * halves(sampler, flat[j].reshape(8000, 4))
            assert abs(products.sum()) <= 6 * math.sqrt(first.size)  # each product has variance 1, all are uncorrelated


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_jax_key_draws_the_same_distribution(sampler: str) -> None:
    jax = pytest.importorskip("jax")
    one, same, other = (
        rfk.draw("positive", 8, COUNT, sampler=sampler, rng=jax.random.key(seed)).projection for seed in (0, 0, 1)
    )
    assert isinstance(one, jax.Array)
    rows = np.asarray(one, np.float64)
    assert_marginally_normal(halves(sampler, rows))
    if sampler != "iid":
        assert np.abs(cosines(rows[:8])).max() <= 1e-5
    np.testing.assert_array_equal(one, same)
    assert np.mean(rows == np.asarray(other, np.float64)) < 1e-4  # float32 values coincide now and then


def test_a_jax_key_draws_a_batch() -> None:
    jax = pytest.importorskip("jax")
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        one, other = np.asarray(rfk.draw("positive", 4, 8, sampler="iid", batch=(2,), rng=key).projection)
        assert np.all(one != other)
