"""Estimates are unbiased, whatever the parameters; that they are without any is shown in test_moments.py.

Expectations over the projection are integrated, not sampled, by the assertions of `rfkernels.testing`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import assume, given

import rfkernels as rfk
from rfkernels import FeatureMap, Features, Side, testing
from rfkernels.testing import strategies as rst

KERNELS = [name for name in rfk.names() if rfk.lookup(name).kernel is not None and rfk.lookup(name).radii is None]
SOFTMAX = ["hyperbolic", "positive", "trigonometric"]
EXPONENTIAL = [name for name in KERNELS if rfk.lookup(name).exponential]

# Unbiasedness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*EXPONENTIAL, "cosine", "relu", "sign"])
@given(pair=rst.pairs(), a=rst.points(norm=0.5), b=rst.points(norm=0.5), left=rst.matrices(), right=rst.matrices())
def test_each_side_is_preprocessed_by_its_own_parameters(
    name: str, pair: Any, a: Any, b: Any, left: Any, right: Any
) -> None:
    """E φ(x)·φ(y) = k(T (x − a), T' (y − b)), times e^(linear·x + linear'·y) for an exponential map."""
    feature_map = rfk.lookup(name)
    for inner in (left @ (pair[0] - a), right @ (pair[1] - b)):  # kernels hold where squared norms do not underflow
        assume(not np.any(inner) or inner @ inner > 1e-290)
    query, key = Side(left, a), Side(right, b)
    if feature_map.exponential:
        query, key = Side(left, a, 0.5 * b), Side(right, b, -0.5 * a)
    features = testing.bind(feature_map, np.zeros((1, 2)), scale=7.0, query=query, key=key)  # a matrix replaces √scale

    def kernel(x: Any, y: Any) -> testing.Integral:
        tilt = math.exp(0.5 * b @ x - 0.5 * a @ y) if feature_map.exponential else 1.0
        value, allowed = testing.kernel_value(feature_map.kernel, left @ (x - a), right @ (y - b))
        return testing.Integral(tilt * value, tilt * allowed)

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


@given(pair=oracle.PAIRS, scale=rst.scales())
def test_hyperbolic_features_vary_less_than_positive_ones_at_equal_columns(pair: Any, scale: float) -> None:
    """By the factor 1 − e^−s (the same lemma)."""
    testing.assert_ordering("hyperbolic", "positive", *pair, scale=scale)


@pytest.mark.parametrize("name", [name for name in rfk.names() if rfk.lookup(name).nonnegative])
@given(pair=oracle.PAIRS)
def test_features_of_maps_that_say_so_are_not_negative(name: str, pair: Any) -> None:
    testing.assert_positive(name, *pair, strict=rfk.lookup(name).exponential)
