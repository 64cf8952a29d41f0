"""Estimates are unbiased, whatever the parameters, and samplers draw rows that are marginally standard normal.

Expectations over the projection are integrated, not sampled, by the assertions of `rfkernels.testing`. Samplers are
judged by six standard errors, with sample sizes for which a wrong sampler misses by several times as much.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import rfkernels as rfk
from rfkernels import FeatureMap, Features, Side, testing
from rfkernels.testing import strategies as rst

KERNELS = [name for name in rfk.names() if rfk.lookup(name).kernel is not None]
SOFTMAX = ["hyperbolic", "positive", "trigonometric"]
EXPONENTIAL = [name for name in KERNELS if rfk.lookup(name).exponential]

PAIRS = st.one_of(
    rst.pairs(), rst.pairs(5), st.tuples(rst.points(), rst.points()), st.tuples(rst.points(1), rst.points(1))
)
"""Of one, two and five dimensions, parallel and opposed ones among them."""


def exact(feature_map: FeatureMap, x: Any, y: Any) -> float:
    return float(np.exp(rfk.exact_log_kernel(x, y, kernel=feature_map.kernel)))


# Unbiasedness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
@given(pair=PAIRS, scale=rst.scales())
def test_unbiased(name: str, pair: Any, scale: float) -> None:
    """E φ(x)·φ(y) = k(√scale x, √scale y)."""
    testing.assert_unbiased(name, *pair, scale=scale)


@pytest.mark.parametrize("name", KERNELS)
@given(pair=rst.pairs(), a=rst.points(norm=0.5), b=rst.points(norm=0.5), left=rst.matrices(), right=rst.matrices())
def test_each_side_is_preprocessed_by_its_own_parameters(
    name: str, pair: Any, a: Any, b: Any, left: Any, right: Any
) -> None:
    """E φ(x)·φ(y) = k(T (x − a), T' (y − b)), times e^(linear·x + linear'·y) for an exponential map."""
    feature_map = rfk.lookup(name)
    query, key = Side(left, a), Side(right, b)
    if feature_map.exponential:
        query, key = Side(left, a, 0.5 * b), Side(right, b, -0.5 * a)
    features = testing.bind(feature_map, np.zeros((1, 2)), scale=7.0, query=query, key=key)  # a matrix replaces √scale

    def kernel(x: Any, y: Any) -> float:
        tilt = 0.5 * b @ x - 0.5 * a @ y if feature_map.exponential else 0.0
        return math.exp(tilt) * exact(feature_map, left @ (x - a), right @ (y - b))

    testing.assert_unbiased(features, *pair, kernel=kernel)


def affine(feature_map: FeatureMap, scale: float, a: Any, b: Any, t: Any, rows: Any, log_weight: Any = 0.0) -> Features:
    """Features of exp(scale x·y) from x·y = (Tx − Ta)·(T⁻ᵀy − T⁻ᵀb) + x·b + a·y − a·b."""
    root = math.sqrt(scale)
    return testing.bind(
        feature_map,
        rows,
        scale=scale,
        query=Side(root * t, a, scale * b),
        key=Side(root * np.linalg.inv(t).T, b, scale * a),
        log_weight=log_weight - scale * (a @ b) / 2,
    )


@pytest.mark.parametrize("name", SOFTMAX)
@given(pair=rst.pairs(), a=rst.points(norm=0.5), b=rst.points(norm=0.5), t=rst.matrices(), scale=rst.scales())
def test_unbiased_after_centring_and_balancing(name: str, pair: Any, a: Any, b: Any, t: Any, scale: float) -> None:
    testing.assert_unbiased(affine(rfk.lookup(name), scale, a, b, t, np.zeros((1, 2))), *pair)


@pytest.mark.parametrize("name", EXPONENTIAL)
@given(pair=rst.pairs(), mean=rst.points(), root=rst.matrices(stretch=(0.93, 1.87)), scale=rst.scales(0.05, 1.0))
def test_unbiased_under_importance_sampling(name: str, pair: Any, mean: Any, root: Any, scale: float) -> None:
    """Rows from N(μ, Σ), log-weights ½ log(N(w; 0, I) / N(w; μ, Σ)); a much narrower proposal has no variance."""
    testing.assert_unbiased(name, *pair, scale=scale, proposal=rfk.proposals.Gaussian(root, mean))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", SOFTMAX)
def test_quadrature_features_give_exact_attention(name: str, causal: bool) -> None:
    """With the weights of the rule as log-weights nothing is random: kernels, normalisers and attention are exact."""
    rng = np.random.default_rng(3)
    q, k = (0.6 * rng.standard_normal((2, 9, 2)) for _ in range(2))
    v = rng.standard_normal((2, 9, 3))
    a, b, t, scale = np.array([0.3, -0.2]), np.array([-0.1, 0.4]), np.array([[1.1, 0.3], [-0.2, 0.8]]), 0.7
    rows, weights = testing.hermite()
    features = affine(rfk.lookup(name), scale, a, b, t, rows, np.log(len(rows) * weights) / 2)
    out = rfk.attention(q, k, v, features, causal=causal, backend="numpy")
    np.testing.assert_allclose(out, rfk.exact_attention(q, k, v, causal=causal, scale=scale), rtol=1e-9, atol=1e-10)
    log, sign = rfk.log_kernel(q, k, features, return_sign=True)
    np.testing.assert_array_equal(sign, 1)
    np.testing.assert_allclose(log, rfk.exact_log_kernel(q, k, scale=scale), atol=1e-9)
    log, sign = rfk.log_normalizer(q, k, features, return_sign=True, backend="numpy")
    np.testing.assert_array_equal(sign, 1)
    np.testing.assert_allclose(log, rfk.exact_log_normalizer(q, k, scale=scale), atol=1e-9)


# Second moments -------------------------------------------------------------------------------------------------------

RELATIVE_VARIANCES = {
    "positive": lambda s, delta: np.expm1(s),
    "hyperbolic": lambda s, delta: 2 * np.sinh(s / 2) ** 2,
    "trigonometric": lambda s, delta: 2 * np.sinh(delta / 2) ** 2,
}


@pytest.mark.parametrize("name", SOFTMAX)
@given(pair=PAIRS, scale=rst.scales(0.05, 0.85))
def test_variance_of_one_row(name: str, pair: Any, scale: float) -> None:
    """Relative to K², as lemma 2 of Performers (arXiv 2009.14794) says; s and δ are at most 3.4."""

    def log_variance(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
        s, delta = xp.maximum(xx + yy + 2 * dot, 0), xp.maximum(xx + yy - 2 * dot, 0)
        return 2 * dot + xp.log(RELATIVE_VARIANCES[name](s, delta))

    testing.assert_variance(name, *pair, log_variance=log_variance, scale=scale)


@given(pair=PAIRS, scale=rst.scales())
def test_hyperbolic_features_vary_less_than_positive_ones_at_equal_columns(pair: Any, scale: float) -> None:
    """By the factor 1 − e^−s (the same lemma)."""
    testing.assert_ordering("hyperbolic", "positive", *pair, scale=scale)


@pytest.mark.parametrize("name", [name for name in rfk.names() if rfk.lookup(name).nonnegative])
@given(pair=PAIRS)
def test_features_of_maps_that_say_so_are_not_negative(name: str, pair: Any) -> None:
    testing.assert_positive(name, *pair, strict=rfk.lookup(name).exponential)


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
