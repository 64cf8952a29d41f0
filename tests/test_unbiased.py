"""Estimates are unbiased, whatever the parameters.

Expectations over the projection are integrated, not sampled: the nodes of a quadrature rule take the place of random
rows. Two dimensions are the general case, since a row is a standard normal on the plane of x and y.
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
