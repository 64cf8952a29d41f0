"""The assertions of `rfkernels.testing` pass what is right, fail what is wrong, and say so when they cannot tell."""

from __future__ import annotations

import dataclasses
import importlib
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from scipy import integrate, stats

import rfkernels as rfk
from rfkernels import FeatureMap, Kernel, Side, testing
from rfkernels.samplers import Sampler
from rfkernels.testing import grids
from rfkernels.testing import strategies as rst

INTEGRABLE = [name for name in rfk.names() if rfk.lookup(name).kernel is not None and rfk.lookup(name).radii is None]
RNG = np.random.default_rng(5)
X, Y = 0.35 * RNG.standard_normal((2, 6, 5))
RIGHT = np.array([0.9, 0.3]), np.array([-0.2, 0.6])
"""A pair at a right angle."""


def quadratic(xp: Any, u: Any, a: Any) -> Any:
    return xp.square(u)


def log_quadratic(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    return xp.log(xx * yy + 2 * dot**2)


def log_quadratic_variance(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """E (w·x)⁴ (w·y)⁴ − k², by Wick's theorem."""
    return xp.log(8 * (xx * yy) ** 2 + 68 * xx * yy * dot**2 + 20 * dot**4)


QUADRATIC = FeatureMap(
    (quadratic,), nonnegative=True, kernel=Kernel("quadratic", log_quadratic), log_variance=log_quadratic_variance
)


def magnitude(xp: Any, u: Any, a: Any) -> Any:
    return xp.abs(u)


def log_magnitude(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    norms = xp.sqrt(xx * yy)
    angle = xp.arccos(xp.clip(dot / norms, -1, 1))
    return xp.log(2 / math.pi * norms * (xp.sin(angle) + (math.pi / 2 - angle) * xp.cos(angle)))


ABSOLUTE = FeatureMap((magnitude,), nonnegative=True, kernel=Kernel("abs", log_magnitude))


def softplus(xp: Any, u: Any, a: Any) -> Any:
    return xp.log1p(xp.exp(-xp.abs(u))) + xp.maximum(u, 0)


SOFTPLUS = FeatureMap((softplus,), nonnegative=True)


def threshold(xp: Any, u: Any, a: Any) -> Any:
    return xp.where(u > 0.4, 1.0, 0.0)


THRESHOLD = FeatureMap((threshold,), nonnegative=True)


def identity(xp: Any, u: Any, a: Any) -> Any:
    return u


LINEAR = FeatureMap((identity,), kernel=Kernel("linear", lambda xp, dot, xx, yy: xp.log(xp.abs(dot))))
"""A kernel that may be negative, known by its magnitude only."""


def log_positive_variance(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    return 2 * dot + xp.log(xp.expm1(xx + yy + 2 * dot))


def scaled(factor: float) -> Callable[[Any, Any, Any, Any], Any]:
    return lambda xp, dot, xx, yy: log_quadratic(xp, dot, xx, yy) + math.log(factor)


def above(t: float, x: Any, y: Any) -> float:
    """P(w·x > t, w·y > t), by a one-dimensional integral."""
    norm = np.linalg.norm(x)
    along = y @ x / norm
    across = math.sqrt(y @ y - along**2)
    density = lambda a: stats.norm.pdf(a) * stats.norm.sf((t - along * a) / across)  # noqa: E731
    return float(integrate.quad(density, t / norm, 12, epsabs=1e-13, epsrel=1e-13, limit=200)[0])


# Unbiasedness


@pytest.mark.parametrize("dim", [1, 2, 3, 9])
@pytest.mark.parametrize("name", INTEGRABLE)
def test_the_registered_maps_are_unbiased_in_every_dimension(name: str, dim: int) -> None:
    x, y = 0.8 / math.sqrt(dim) * np.random.default_rng(dim).standard_normal((2, 4, dim))
    testing.assert_unbiased(name, x, y, scale=0.7)
    with pytest.raises(AssertionError, match="is biased"):
        testing.assert_unbiased(name, x, y, scale=0.7, kernel=lambda x, y: np.full(4, 0.123))


@pytest.mark.parametrize("feature_map", [QUADRATIC, ABSOLUTE], ids=["smooth", "kink at zero"])
def test_a_map_of_ones_own(feature_map: FeatureMap) -> None:
    testing.assert_unbiased(feature_map, X, Y)
    testing.assert_unbiased(feature_map, X[0], Y, scale=2.5)
    testing.assert_unbiased(
        feature_map, X[0], Y[0], kernel=lambda x, y: np.exp(feature_map.kernel.log(np, x @ y, x @ x, y @ y))
    )


def test_a_kernel_with_a_wrong_constant_fails() -> None:
    wrong = dataclasses.replace(QUADRATIC, kernel=Kernel("wrong", scaled(1 + 1e-8)))
    said = r"quadratic is biased: E φ\(x\)·φ\(y\) is [\d.e-]+, not the kernel [\d.e-]+: .* 1\.00e-08 of it, where .* allowed"
    with pytest.raises(AssertionError, match=said) as caught:
        testing.assert_unbiased(wrong, X, Y)
    assert "6 of 6 fail" in str(caught.value)
    worst = int(re.search(r"pair \((\d),\)", str(caught.value))[1])  # type: ignore[index]
    assert str(X[worst].tolist()) in str(caught.value)
    testing.assert_unbiased(wrong, X, Y, rtol=1e-7)


def test_only_the_pairs_that_deviate_are_reported() -> None:
    expected = np.exp(log_quadratic(np, np.sum(X * Y, -1), np.sum(X * X, -1), np.sum(Y * Y, -1)))
    expected[3] *= 1.01
    with pytest.raises(AssertionError, match=re.escape("(pair (3,), 1 of 6 fail)")):
        testing.assert_unbiased(QUADRATIC, X, Y, kernel=lambda x, y: expected)


BROKEN = {
    "offset": dataclasses.replace(rfk.lookup("positive"), offset=-0.4),
    "no offset": dataclasses.replace(rfk.lookup("hyperbolic"), offset=0.0),
    "a factor": dataclasses.replace(rfk.lookup("positive"), activations=(lambda xp, u, a: xp.exp(u + a) * (1 + 1e-8),)),
    "leaky": dataclasses.replace(
        rfk.lookup("relu"), activations=(lambda xp, u, a: xp.maximum(u, 1e-4 * u),), nonnegative=False
    ),
    "another kernel": dataclasses.replace(rfk.lookup("relu"), kernel=rfk.kernels.ARC_COSINE_2),
}


@pytest.mark.parametrize("feature_map", BROKEN.values(), ids=BROKEN)
def test_broken_maps_fail(feature_map: FeatureMap) -> None:
    with pytest.raises(AssertionError, match="is biased"):
        testing.assert_unbiased(feature_map, X, Y)


def test_kernels_that_can_be_negative_have_a_sign() -> None:
    assert np.any(np.sum(X * Y, -1) < 0)
    signed = dataclasses.replace(LINEAR.kernel, sign=lambda xp, dot, xx, yy: xp.sign(dot))
    testing.assert_unbiased(LINEAR, X, Y, kernel=signed)
    with pytest.raises(AssertionError, match="is biased"):
        testing.assert_unbiased(LINEAR, X, Y)


def test_smooth_maps_without_a_closed_form_are_integrated() -> None:
    """Softplus at x = y: a one-dimensional integral."""
    found = testing.mean(SOFTPLUS, X, X)
    for x, value in zip(X, found.value, strict=True):
        norm = float(np.linalg.norm(x))
        wanted = integrate.quad(
            lambda a, n=norm: stats.norm.pdf(a) * np.logaddexp(0, n * a) ** 2, -12, 12, epsrel=1e-13
        )[0]
        assert value == pytest.approx(wanted, rel=1e-12)
    assert found.value.shape == found.allowed.shape == (6,)
    with pytest.raises(ValueError, match="softplus names no kernel to compare with: pass kernel="):
        testing.assert_unbiased(SOFTPLUS, X, Y)


def test_jumps_away_from_zero_have_to_be_named() -> None:
    with pytest.raises(
        testing.QuadratureError, match=r"grids of growing size give .* value of u other than 0: .* kinks="
    ):
        testing.assert_unbiased(THRESHOLD, X, Y, kernel=lambda x, y: 0.0)
    with pytest.raises(testing.QuadratureError, match=r"other than 0.3: .* kinks="):
        testing.mean(THRESHOLD, *RIGHT, kinks=(0.3,))
    wanted = np.array([above(0.4, x, y) for x, y in zip(X, Y, strict=True)])
    testing.assert_unbiased(THRESHOLD, X, Y, kernel=lambda x, y: wanted, kinks=(0.4,))
    testing.assert_unbiased(THRESHOLD, X, Y, kernel=lambda x, y: wanted, kinks=(-0.7, 0.4, 0.0))
    with pytest.raises(AssertionError, match="threshold is biased"):
        testing.assert_unbiased(THRESHOLD, X, Y, kernel=lambda x, y: wanted * (1 + 1e-7), kinks=(0.4,))


@pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-6, 1e-2, 1.0, math.pi / 2, math.pi - 1e-6, math.pi])
def test_jumps_are_integrated_at_every_angle(apart: float) -> None:
    x, y = np.array([1.1, 0.0]), 0.8 * np.array([math.cos(apart), math.sin(apart)])
    if apart < 1e-9:
        wanted = stats.norm.sf(0.4 / 0.8)
    elif apart > math.pi - 1e-4:
        wanted = 0.0
    else:
        wanted = above(0.4, x, y)
    found = testing.mean(THRESHOLD, x, y, kinks=(0.4,)).value
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@given(pair=rst.pairs(3))
def test_grids_for_jumps_agree_with_those_for_kinks_at_zero(pair: Any) -> None:
    """On ReLU, whose kink at zero both can have; a cut where nothing happens changes nothing."""
    one, other = testing.mean("relu", *pair), testing.mean("relu", *pair, kinks=(0.0, 0.3))
    assert abs(one.value - other.value) <= one.allowed + other.allowed


@pytest.mark.parametrize("tiny", [1e-320, 1e-310])
def test_lines_of_kinks_may_be_too_far_away_for_a_float(tiny: float) -> None:
    """Points whose component along or across each other is next to nothing, or all of them."""
    one, off = np.array([1.0, 0.0]), np.array([0.75, 0.0])
    for x, y in [(one, off + [0, tiny]), (one, np.array([tiny, 0.75])), (tiny * one, np.array([tiny, 0.75]))]:
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            grid = grids.strips(x, y, (0.0, 0.3))
        assert np.isfinite(grid.rows).all()
        assert grid.weights.sum() == pytest.approx(1, rel=1e-12)


def test_norms_that_are_too_large_are_no_pass() -> None:
    x = np.array([30.0, 0.0])
    with pytest.raises(testing.QuadratureError, match="norms are too large"):
        testing.assert_unbiased("positive", x, x)


def test_a_proposal_is_integrated_over() -> None:
    gaussian = rfk.proposals.Gaussian(np.array([[1.3, 0.2], [-0.1, 1.1]]), np.array([0.3, -0.2]))
    testing.assert_unbiased("hyperbolic", X[:, :2], Y[:, :2], proposal=gaussian)
    for dim in (1, 2, 3):
        testing.assert_unbiased("positive", X[:2, :dim], Y[:2, :dim], proposal=rfk.proposals.isotropic(1.5))
    with pytest.raises(ValueError, match="at most 3 dimensions, got 5"):
        testing.assert_unbiased("positive", X, Y, proposal=rfk.proposals.isotropic(1.5))
    with pytest.raises(ValueError, match="needs an exponential map"):
        testing.assert_unbiased("relu", X, Y, proposal=rfk.proposals.isotropic(1.5))
    mixture = rfk.proposals.Mixture(np.zeros((1, 2)), np.ones(1))
    with pytest.raises(TypeError, match="Gaussian"):
        testing.assert_unbiased("positive", X[:, :2], Y[:, :2], proposal=mixture)  # type: ignore[arg-type]


def test_features_are_integrated_over_other_rows() -> None:
    centre, linear = 0.2 * np.ones(5), np.array([0.3, 0.0, -0.1, 0.2, 0.0])
    drawn = rfk.draw("positive", 5, 8, scale=0.6, rng=0)
    testing.assert_unbiased(drawn, X, Y)
    shifted = dataclasses.replace(drawn, query=Side(centre=centre, linear=linear))
    kernel = lambda x, y: np.exp(0.6 * np.sum((x - centre) * y, -1) + x @ linear)  # noqa: E731
    testing.assert_unbiased(shifted, X, Y, kernel=kernel)
    with pytest.raises(AssertionError, match="'positive' is biased"):
        testing.assert_unbiased(shifted, X, Y)
    for holds in (testing.assert_unbiased, testing.assert_positive):
        with pytest.raises(ValueError, match="scale is that of the features"):
            holds(drawn, X, Y, scale=1.0)
        with pytest.raises(ValueError, match="no batch axes"):
            holds(rfk.draw("positive", 5, 8, batch=(2,), rng=0), X, Y)
        with pytest.raises(ValueError, match="features are of dim 4, but x and y of 5"):
            holds(rfk.draw("positive", 4, 8, rng=0), X, Y)
        with pytest.raises(ValueError, match="scale must be a positive finite number, got -1"):
            holds("positive", X, Y, scale=-1)
    proposed = rfk.draw("positive", 5, 8, proposal=rfk.proposals.isotropic(1.5), rng=0)
    with pytest.raises(ValueError, match="come from a proposal"):
        testing.assert_unbiased(proposed, X, Y)


def test_what_cannot_be_integrated_is_refused() -> None:
    mixed = dataclasses.replace(rfk.lookup("positive"), radii=lambda normal, count: np.ones(count))
    with pytest.raises(ValueError, match="assert_unbiased_by_sampling"):
        testing.assert_unbiased(mixed, X, Y)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (X, Y[:, :4], "one dim above 0"),
        (np.array(1.0), Y, "one dim above 0"),
        (X[:0], Y[:0], "hold no pair"),
        (X * np.nan, Y, "finite"),
    ],
)
def test_points_have_to_fit(x: Any, y: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        testing.assert_unbiased(QUADRATIC, x, y)


def test_expected_values_have_to_fit_and_be_numbers() -> None:
    with pytest.raises(ValueError, match=r"shape \(5,\), but there are pairs \(6,\)"):
        testing.assert_unbiased(QUADRATIC, X, Y, kernel=lambda x, y: np.ones(5))
    with pytest.raises(AssertionError, match="nan"):
        testing.assert_unbiased(QUADRATIC, X, Y, kernel=lambda x, y: np.full(6, np.nan))
    with pytest.raises(AssertionError, match="inf"):
        testing.assert_unbiased(QUADRATIC, X, Y, kernel=lambda x, y: np.full(6, np.inf))


# Variances


def test_the_variance_is_the_closed_form() -> None:
    testing.assert_variance(QUADRATIC, X, Y, scale=1.7)
    testing.assert_variance("positive", X, Y, log_variance=log_positive_variance)
    wrong = dataclasses.replace(
        QUADRATIC, log_variance=lambda *args: log_quadratic_variance(*args) + math.log(1 + 1e-5)
    )
    with pytest.raises(
        AssertionError, match=r"quadratic: the variance of one row is .*, not the closed form .*: .* 1.00e-05"
    ):
        testing.assert_variance(wrong, X, Y)
    with pytest.raises(ValueError, match="softplus has no log_variance"):
        testing.assert_variance(SOFTPLUS, X, Y)


def test_the_variance_of_several_activations_is_that_of_their_mean() -> None:
    def log_variance(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
        return 2 * dot + xp.log(2 * xp.sinh((xx + yy + 2 * dot) / 2) ** 2)

    testing.assert_variance("hyperbolic", X, Y, log_variance=log_variance)


@pytest.mark.parametrize("variance", [0.8, 1.0, 1.6])
def test_the_variance_under_a_proposal_is_that_of_generalized_exponential_features(variance: float) -> None:
    """G(ρ, d) e^(s/ρ) − 1 times K², ρ = 2σ² − 1, G = ((1 + ρ)² / 4ρ)^(d/2) (arXiv 2205.15317)."""

    def log_variance(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
        rho = 2 * variance - 1
        return 2 * dot + xp.log((1 + rho) ** 2 / (4 * rho) * xp.exp((xx + yy + 2 * dot) / rho) - 1)

    proposal = rfk.proposals.isotropic(variance)
    testing.assert_variance("positive", X[:, :2], Y[:, :2], log_variance=log_variance, proposal=proposal)


def test_the_variance_where_it_vanishes() -> None:
    """At y = −x a positive feature map has no variance, though x·y and |x|² do not cancel to the last bit."""
    point = np.array([0.3, 0.1, -0.7])
    testing.assert_variance("positive", point, -point, log_variance=log_positive_variance)
    testing.assert_variance("positive", 0 * point, point, log_variance=log_positive_variance)
    with pytest.raises(AssertionError, match="variance of one row"):
        testing.assert_variance("positive", point, -point, log_variance=lambda xp, dot, xx, yy: xp.log(1e-12))


def test_a_bound_of_the_variance() -> None:
    exact = testing.variance(QUADRATIC, X, Y).value
    testing.assert_variance_at_most(QUADRATIC, X, Y, exact)
    testing.assert_variance_at_most(
        QUADRATIC, X, Y, lambda x, y: 28 * np.sum(x * x, -1) ** 2 * np.sum(y * y, -1) ** 2 * 4
    )
    testing.assert_variance_at_most(QUADRATIC, X, Y, exact.max())
    with pytest.raises(AssertionError, match=r"variance of one row is .*, not at most .* too much"):
        testing.assert_variance_at_most(QUADRATIC, X, Y, 0.9999 * exact)
    with pytest.raises(AssertionError, match="1 of 6 fail"):
        testing.assert_variance_at_most(QUADRATIC, X, Y, np.where(np.arange(6) == 2, 0.99, 1.01) * exact)


def test_ordering() -> None:
    testing.assert_ordering("hyperbolic", "positive", X, Y, scale=0.5)
    testing.assert_ordering("positive", "positive", X, Y)
    with pytest.raises(
        AssertionError, match=r"of 'positive' at equal columns is .*, not at most that of 'hyperbolic',"
    ):
        testing.assert_ordering("positive", "hyperbolic", X, Y)


def test_ordering_is_at_equal_columns() -> None:
    """Far from opposed points hyperbolic features have about half the variance in a row, but two columns for it."""
    x = np.array([1.4, 0.0])
    exact = {name: float(testing.variance(name, x, x).value) for name in ("positive", "hyperbolic")}
    assert exact["hyperbolic"] < 0.51 * exact["positive"]
    testing.assert_ordering("hyperbolic", "positive", x, x)
    testing.assert_ordering("hyperbolic", lambda x, y: 2 * exact["hyperbolic"], x, x)
    with pytest.raises(AssertionError, match="too much"):
        testing.assert_ordering("hyperbolic", lambda x, y: 1.9 * exact["hyperbolic"], x, x)
    with pytest.raises(AssertionError, match="constant at equal columns"):

        def constant(x: Any, y: Any) -> Any:
            return np.array(exact["positive"])

        testing.assert_ordering(constant, "hyperbolic", x, x)


# Signs


def test_positivity() -> None:
    testing.assert_positive("positive", X, Y, strict=True)
    testing.assert_positive("relu", X, Y)
    for name, side in (("trigonometric", "query"), ("positive", None)):
        if side:
            with pytest.raises(AssertionError, match=f"{name!r} has a negative feature on the {side} side: at .* row"):
                testing.assert_positive(name, X, Y)
    with pytest.raises(AssertionError, match="'relu' has a feature that is not positive on the query side"):
        testing.assert_positive("relu", X, Y, strict=True)
    rare = FeatureMap((lambda xp, u, a: xp.where(u > 20, -1.0, 1.0),))
    with pytest.raises(AssertionError, match="negative feature"):
        testing.assert_positive(rare, X, Y)
    one_sided = FeatureMap((lambda xp, u, a: xp.where(a > 0.5, -1.0, 1.0),), offset=1.0)
    with pytest.raises(AssertionError, match="on the key side"):
        testing.assert_positive(one_sided, np.array([0.1, 0.1]), np.array([1.0, 1.0]))
    for strict in (False, True):
        with pytest.raises(AssertionError, match="a feature that is no number"):
            testing.assert_positive(FeatureMap((lambda xp, u, a: u * np.nan,)), X, Y, strict=strict)


@pytest.mark.parametrize("activation", [lambda xp, u, a: xp.exp(20 * u), lambda xp, u, a: xp.exp(3 * xp.square(u))])
def test_rounding_that_grows_with_the_grid_allows_nothing(activation: Any) -> None:
    """Of a map whose second moment is not there, or farther out than any grid."""
    with pytest.raises(testing.QuadratureError, match="norms are too large"):
        testing.assert_unbiased(FeatureMap((activation,)), X[0], Y[0], kernel=rfk.kernels.EXPONENTIAL)


def test_variances_of_an_ordering_are_of_the_pairs() -> None:
    with pytest.raises(ValueError, match=r"<lambda> must broadcast to the shape \(\), got \(3,\)"):
        testing.assert_ordering(lambda x, y: np.zeros(3), "positive", X[0], Y[0])


def test_positivity_looks_along_the_preprocessed_points() -> None:
    """A quarter turn takes both points out of their line."""
    sign = FeatureMap((lambda xp, u, a: u,))
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    features = testing.bind(sign, np.ones((3, 2)), query=Side(turn), key=Side(turn))
    with pytest.raises(AssertionError, match="negative feature"):
        testing.assert_positive(features, np.array([1.0, 0.0]), np.array([1.0, 0.0]))


# Rows


def unsigned(normal: Any, count: int, dim: int) -> Any:
    """Blocks as LAPACK's QR leaves them: not Haar-distributed, since the signs of R are not folded in."""
    basis = np.linalg.qr(normal((-(-count // dim), dim, dim)))[0]
    directions = np.swapaxes(basis, -1, -2).reshape(-1, dim)[:count]
    return directions * np.linalg.norm(normal((count, dim)), axis=-1, keepdims=True)


def equal_norms(normal: Any, count: int, dim: int) -> Any:
    rows = normal((count, dim))
    return rows * math.sqrt(dim) / np.linalg.norm(rows, axis=-1, keepdims=True)


def wide(normal: Any, count: int, dim: int) -> Any:
    return 1.05 * normal((count, dim))


def correlated(normal: Any, count: int, dim: int) -> Any:
    rows = normal((count, dim))
    rows[:, 1] = 0.3 * rows[:, 0] + math.sqrt(1 - 0.09) * rows[:, 1]
    return rows


def two_points(normal: Any, count: int, dim: int) -> Any:
    return np.sign(normal((count, dim)))


def broken_last_row(normal: Any, count: int, dim: int) -> Any:
    rows = normal((count, dim))
    rows[-1] = 0.5
    return rows


def repeated(normal: Any, count: int, dim: int) -> Any:
    """One row for all: coupled as closely as can be, and each of them normal."""
    return np.repeat(normal((1, dim)), count, 0)


@pytest.mark.parametrize("dim", [1, 3, 4])
@pytest.mark.parametrize("sampler", ["iid", "orthogonal", "antithetic", "regularized", repeated])
def test_rows_of_the_right_law_pass(sampler: Any, dim: int) -> None:
    testing.assert_marginal_law(sampler, dim, count=2000)


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        (unsigned, "the mean"),
        (equal_norms, "distribution of norms"),
        (wide, r"\|w\|²"),
        (correlated, "along"),
        (two_points, "along|norms"),
        (broken_last_row, "along"),
    ],
)
def test_rows_of_a_wrong_law_fail(sampler: Any, said: str) -> None:
    with pytest.raises(
        AssertionError, match=f"rows of '{sampler.__name__}' in dimension 4 do not have the law 'normal'.*{said}"
    ):
        testing.assert_marginal_law(sampler, 4, count=10_000)


@pytest.mark.parametrize("dim", [9, 16])
def test_blocks_without_the_sign_fix_fail_in_any_dimension(dim: int) -> None:
    with pytest.raises(AssertionError, match="the mean"):
        testing.assert_marginal_law(unsigned, dim, count=3000)


def test_a_mean_between_the_directions_that_are_judged_is_noticed() -> None:
    away = np.tile([1, -1, 1, -1, -1, 1, -1, 1], 2) / 4  # at right angles to both diagonals
    rows = np.random.default_rng(0).standard_normal((1000, 16)) + 12 / math.sqrt(1000) * away
    with pytest.raises(AssertionError, match="the mean has norm"):
        testing.assert_law_of_rows(rows)


def test_the_law_of_rows_on_a_sphere() -> None:
    with pytest.raises(AssertionError, match=r"have norms from .*, not √dim"):
        testing.assert_marginal_law(Sampler("iid", rfk.samplers.iid.rows, law="sphere"), 4, count=500)
    with pytest.raises(AssertionError, match="law 'sphere'"):
        testing.assert_marginal_law(Sampler("corners", two_points, law="sphere"), 4)
    with pytest.raises(ValueError, match=r"law of the sampler must be one of .*, got 'hadamard'"):
        testing.assert_marginal_law(Sampler("other", wide, law="hadamard"), 4)
    with pytest.raises(ValueError, match="count must be at least dim = 4, got 3"):
        testing.assert_marginal_law("iid", 4, count=3)
    for dim, rows in ((0, None), (4, 0)):
        with pytest.raises(ValueError, match="dim and rows must be at least 1, got"):
            testing.assert_marginal_law("iid", dim, rows=rows)


LAWS = {
    "normal": lambda rng: rng.standard_normal((4000, 3)),
    "sphere": lambda rng: np.asarray(
        rfk.draw("elu+1", 3, 3, sampler="regularized", batch=(4000,), rng=rng).projection[:, 0]
    ),
    "cauchy": lambda rng: rng.standard_cauchy((4000, 3)),
    "laplace": lambda rng: rng.laplace(size=(4000, 3)),
}


@pytest.mark.parametrize("claimed", LAWS)
@pytest.mark.parametrize("law", LAWS)
def test_laws_of_given_rows(law: str, claimed: str) -> None:
    rows = LAWS[law](np.random.default_rng(2))
    if law == claimed:
        testing.assert_law_of_rows(rows, claimed)
        return
    with pytest.raises(AssertionError, match=f"these (have norms|do not have the law '{claimed}')"):
        testing.assert_law_of_rows(rows, claimed, what="these")


def test_coordinates_of_another_law_that_are_not_independent_fail() -> None:
    rows = LAWS["cauchy"](np.random.default_rng(3))
    rows[:, 1] = np.where(rows[:, 0] > 0, 1, -1) * np.abs(rows[:, 1])
    with pytest.raises(AssertionError, match="do not have the law 'cauchy'"):
        testing.assert_law_of_rows(rows, "cauchy")


def test_rows_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(
        ValueError, match="law must be one of normal, sphere, cauchy, laplace to be judged, got 'other'"
    ):
        testing.assert_law_of_rows(np.ones((4, 2)), "other")
    for shape in ((4,), (3, 4), (4, 0), (2, 4, 2)):
        with pytest.raises(ValueError, match="rows must have shape"):
            testing.assert_law_of_rows(np.ones(shape))
    with pytest.raises(ValueError, match="false_alarm must be a probability"):
        testing.assert_law_of_rows(np.ones((4, 2)), false_alarm=0.0)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_rows_that_are_not_finite_fail(odd: float) -> None:
    rows = LAWS["normal"](np.random.default_rng(3))
    rows[7, 1] = odd
    with pytest.raises(AssertionError, match="rows are not finite: row 7 is"):
        testing.assert_law_of_rows(rows)


def test_rows_that_are_one_percent_too_long_fail() -> None:
    rows = np.random.default_rng(0).standard_normal((20_000, 16))
    with pytest.raises(AssertionError, match=r"the mean of \|w\|²/dim is 1\.02"):
        testing.assert_law_of_rows(1.01 * rows)


def test_correct_rows_fail_as_rarely_as_promised() -> None:
    """At a bound of one in four, with 60 seeds: more than 30 alarms have a probability below 1e-5 under it."""
    alarms = 0
    for seed in range(60):
        try:
            testing.assert_marginal_law("iid", 2, count=60, rows=2, false_alarm=0.25, rng=seed)
        except AssertionError:
            alarms += 1
    assert 0 < alarms <= 30


# Samples


def estimates(name: str, count: int, **options: Any) -> Callable[[np.random.Generator], Any]:
    x, y = np.array([0.3, 0.2, 0.1, 0.0]), np.array([0.3, -0.2, 0.4, 0.1])

    def estimator(rng: np.random.Generator) -> Any:
        return np.exp(rfk.log_kernel(x, y, rfk.draw(name, 4, count, scale=1.0, rng=rng, **options)))

    return estimator


S = float(np.sum(np.array([0.6, 0.0, 0.5, 0.1]) ** 2))
K = math.exp(0.09 - 0.04 + 0.04)


def test_an_unbiased_estimator_passes_and_a_biased_one_fails() -> None:
    variance = K**2 * math.expm1(S) / 256
    testing.assert_unbiased_by_sampling(estimates("positive", 256), K, variance=variance, detect=0.02)
    said = r"the mean of estimates is not 1\.094\d+: \d+ of them average .* standard errors off; .* probability 2e-09"
    with pytest.raises(AssertionError, match=said):
        testing.assert_unbiased_by_sampling(
            estimates("positive", 256, sampler=unsigned), K, variance=variance, detect=0.02
        )


def lognormal(rng: np.random.Generator) -> Any:
    """Of mean 1 and variance e² − 1: heavy-tailed, with a kurtosis in the thousands."""
    return np.exp(math.sqrt(2) * rng.standard_normal(5000) - 1)


def test_heavy_tails_are_no_false_alarm() -> None:
    for seed in range(5):
        testing.assert_unbiased_by_sampling(lognormal, 1.0, variance=math.expm1(2), detect=0.1, rng=seed)
    with pytest.raises(AssertionError, match="standard errors off"):
        testing.assert_unbiased_by_sampling(
            lambda rng: 1.1 * lognormal(rng), 1.0, variance=math.expm1(2) * 1.21, detect=0.1
        )


def skewed(rng: np.random.Generator) -> Any:
    """0 or 25, of mean 1 and variance 24, so skewed that the sample mean of few draws is far from normal."""
    return 25.0 * (rng.random(1000) < 0.04)


def alarms_of(estimator: Any, exact: float, variance: float, detect: float, false_alarm: float) -> int:
    alarms = 0
    for seed in range(200):
        try:
            testing.assert_unbiased_by_sampling(
                estimator, exact, variance=variance, detect=detect, false_alarm=false_alarm, miss=0.1, rng=seed
            )
        except AssertionError:
            alarms += 1
    return alarms


@pytest.mark.parametrize("detect", [0.5, 4.0])
def test_false_alarms_are_as_rare_as_promised(detect: float) -> None:
    """At a bound of one in four: more than 78 of 200 would have a probability below 1e-5."""
    assert alarms_of(skewed, 1.0, 24.0, detect, 0.25) <= 78


@pytest.mark.parametrize("sign", [-1, 1])
def test_deviations_are_missed_as_rarely_as_promised(sign: int) -> None:
    """At a bound of one in ten: fewer than 160 of 200 would have a probability below 1e-5."""
    assert alarms_of(lambda rng: skewed(rng) + sign * 0.5, 1.0, 24.0, 0.5, 0.25) >= 160


def test_the_sample_is_as_large_as_it_has_to_be() -> None:
    drawn = []

    def estimator(rng: np.random.Generator) -> Any:
        drawn.append(rng)
        return 1 + (rng.random() < 0.5) * 2.0 - 1

    testing.assert_unbiased_by_sampling(estimator, 1.0, variance=1.0, detect=0.5)
    coarse = len(drawn)
    testing.assert_unbiased_by_sampling(estimator, 1.0, variance=1.0, detect=0.25)
    assert 3.5 < (len(drawn) - coarse) / coarse < 4.5  # as 1/detect²
    level = math.log(2 / 2e-9)
    assert coarse == math.ceil((level * 3.25 + math.log(1000)) ** 2 / (2 * level * 0.25))


def test_several_entries_are_judged_together() -> None:
    exact = np.array([[1.0, 2.0], [3.0, 4.0]])

    def estimator(rng: np.random.Generator) -> Any:
        return exact * (1 + 0.1 * rng.standard_normal((50, 2, 2)))

    testing.assert_unbiased_by_sampling(estimator, exact, variance=0.01 * exact**2)
    with pytest.raises(AssertionError, match=re.escape("the mean of estimates at (1, 0) is not 3")):
        testing.assert_unbiased_by_sampling(
            lambda rng: estimator(rng) + np.array([[0, 0], [0.05, 0]]), exact, variance=0.01 * exact**2
        )
    with pytest.raises(ValueError, match=r"must end in the shape \(2, 2\) of exact, got \(2,\)"):
        testing.assert_unbiased_by_sampling(lambda rng: np.ones(2), exact, variance=1.0)


def test_estimates_that_are_not_numbers_fail() -> None:
    with pytest.raises(AssertionError, match="nan"):
        testing.assert_unbiased_by_sampling(lambda rng: np.nan, 1.0, variance=1.0, detect=0.5)


def test_a_sample_that_cannot_tell_is_refused() -> None:
    for options in ({"variance": 0.0}, {"variance": 1.0, "detect": 0.0}, {"variance": np.nan}):
        with pytest.raises(ValueError, match="must be positive"):
            testing.assert_unbiased_by_sampling(lognormal, 1.0, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be positive.* 0\.0"):
        testing.assert_unbiased_by_sampling(lognormal, 0.0, variance=1.0)  # one percent of nothing
    with pytest.raises(ValueError, match="estimates would be needed"):
        testing.assert_unbiased_by_sampling(lognormal, 1.0, variance=1.0, detect=1e-4)
    for name, value in (("false_alarm", 0), ("false_alarm", np.nan), ("miss", 0), ("miss", 1.0)):
        with pytest.raises(ValueError, match=f"{name} must be a probability above 0 and below 1, got {value}"):
            testing.assert_unbiased_by_sampling(lognormal, 1.0, variance=1.0, **{name: value})
    with pytest.raises(ValueError, match=r"detect must broadcast to the shape \(2,\), got \(3,\)"):
        testing.assert_unbiased_by_sampling(lognormal, [1.0, 1.0], variance=1.0, detect=np.ones(3))
    with pytest.raises(ValueError, match=r"must return at least one estimate, got shape \(0, 2\)"):
        testing.assert_unbiased_by_sampling(lambda rng: np.ones((0, 2)), [1.0, 1.0], variance=1.0)
    with pytest.raises(ValueError, match="must be finite numbers, got inf"):
        testing.assert_unbiased_by_sampling(lognormal, np.inf, variance=1.0, detect=1.0)


def test_estimates_of_drawn_features() -> None:
    """Every pair reads all draws; a map that is twice too large is noticed, and one with radii is estimated."""
    x, y = (
        np.array([[[0.3, -0.2, 0.5]], [[0.1, 0.4, 0.0]]]),
        np.array([[0.2, 0.6, -0.1], [0.0, 0.3, 0.3], [0.5, 0.5, 0.5]]),
    )
    for name in ("positive", "laplacian"):
        estimator = testing.drawn_estimates(name, x, y, 12, scale=0.8, batch=700)
        found = estimator(np.random.default_rng(0))
        assert found.shape == (700, 2, 3)
        np.testing.assert_array_equal(found, estimator(np.random.default_rng(0)))
        kernel = rfk.lookup(name).kernel
        assert kernel is not None
        exact = testing.kernel_value(kernel, x, y, scale=0.8).value
        testing.assert_unbiased_by_sampling(estimator, exact, variance=0.5, detect=0.1)
        with pytest.raises(AssertionError, match="the mean of estimates"):
            testing.assert_unbiased_by_sampling(estimator, exact + 0.12, variance=0.5, detect=0.1)
    proposal = rfk.proposals.isotropic(1.3)
    estimator = testing.drawn_estimates("positive", x, y, 8, sampler="iid", proposal=proposal)
    testing.assert_unbiased_by_sampling(estimator, np.exp(np.sum(x * y, -1)), variance=0.5, detect=0.1)
    with pytest.raises(ValueError, match="x and y must be"):
        testing.drawn_estimates("positive", x, y[:, :2], 8)


def test_two_rows_at_an_angle() -> None:
    first, second, weights = testing.two_rows(1.1)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    for rows in (first, second):
        np.testing.assert_allclose(weights @ rows, 0, atol=1e-12)
        np.testing.assert_allclose((rows * weights[:, None]).T @ rows, np.eye(2), atol=1e-12)
        np.testing.assert_allclose(weights @ rows**4, 3, rtol=1e-12)
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    np.testing.assert_allclose(np.sum(first * second, -1), math.cos(1.1) * lengths, atol=1e-12)
    np.testing.assert_allclose(weights @ lengths, math.pi / 2, rtol=1e-7)  # norms are independent, of mean √(π/2)


def test_a_variance_by_sampling() -> None:
    def estimator(rng: np.random.Generator) -> Any:
        return 3 + 2 * rng.standard_normal(4000)

    testing.assert_variance_by_sampling(estimator, 3.0, 4.0, fourth=3 * 16.0)
    with pytest.raises(AssertionError, match=r"the variance of estimates is not 4\.3"):
        testing.assert_variance_by_sampling(estimator, 3.0, 4.3, fourth=3 * 18.5)
    with pytest.raises(AssertionError, match="the variance of estimates is not 4"):
        testing.assert_variance_by_sampling(estimator, 2.3, 4.0, fourth=3 * 16.0)
    for wrong, said in (
        ({"variance": [4.0, 4.0]}, r"variance must broadcast to the shape \(\), got \(2,\)"),
        ({"fourth": [48.0, 48.0]}, r"fourth must broadcast to the shape \(\), got \(2,\)"),
        ({"fourth": 16.0}, r"fourth must be above the square of variance, got 16\.0 and variance 4\.0"),
    ):
        with pytest.raises(ValueError, match=said):
            testing.assert_variance_by_sampling(estimator, 3.0, **{"variance": 4.0, "fourth": 48.0} | wrong)


# Strategies


@given(pair=rst.pairs(4, norm=2.0, angle=(0.5, 1.0)))
def test_pairs_are_in_range(pair: Any) -> None:
    x, y = pair
    assert x.shape == y.shape == (4,)
    first, second = np.linalg.norm(x), np.linalg.norm(y)
    assert max(first, second) <= 2 + 1e-12
    if min(first, second) > 0:
        assert min(first, second) >= 2e-6 * (1 - 1e-9)
        assert 0.5 - 1e-7 <= math.acos(min(1.0, x @ y / (first * second))) <= 1 + 1e-7


@given(point=rst.points(3, norm=5.0), matrix=rst.matrices(3, stretch=(0.5, 2.0)), scale=rst.scales(0.1, 3.0))
def test_points_matrices_and_scales_are_in_range(point: Any, matrix: Any, scale: float) -> None:
    assert point.shape == (3,)
    assert np.linalg.norm(point) <= 5 + 1e-12
    values = np.linalg.svd(matrix, compute_uv=False)
    assert values.max() <= 2 + 1e-12
    assert values.min() >= 0.5 - 1e-12
    assert 0.1 <= scale <= 3.0


@given(batch=rst.batches(dim=3, norm=0.5, dtype=np.float32))
def test_batches_fit_together(batch: Any) -> None:
    q, k, v = batch
    assert q.dtype == k.dtype == v.dtype == np.float32
    assert q.shape[-1] == k.shape[-1] == 3
    assert k.shape[:-1] == v.shape[:-1]
    np.broadcast_shapes(q.shape[:-2], k.shape[:-2])
    for x in (q, k):
        assert np.all(np.linalg.norm(x, axis=-1) <= 0.5 + 1e-6)
    features = rfk.draw("positive", 3, 4, rng=0)
    out = rfk.attention(q, k, v, features, backend="numpy")
    assert out.shape == (*np.broadcast_shapes(q.shape[:-2], k.shape[:-2]), q.shape[-2], v.shape[-1])


def found(strategy: Any, wanted: Any) -> None:
    """Require an example among the first two thousand, without making it small."""
    find(strategy, wanted, settings=settings(max_examples=2000, phases=[Phase.generate]), random=random.Random(0))


AWKWARD = {
    "no queries": lambda s: s.q[-2] == 0 < s.k[-2],
    "no keys": lambda s: s.k[-2] == 0 < s.q[-2],
    "one key": lambda s: s.k[-2] == 1,
    "more queries than keys": lambda s: s.q[-2] > s.k[-2] > 2,
    "more keys than queries": lambda s: s.k[-2] > s.q[-2] > 2,
    "the longest odd length": lambda s: s.q[-2] == 17,
    "queries grouped over keys": lambda s: len(s.q) == len(s.k) and s.k[0] == 1 < s.q[0],
    "keys shared by a missing axis": lambda s: len(s.q) < len(s.k),
    "an empty batch": lambda s: 0 in s.q[:-2],
    "values of no width": lambda s: s.v[-1] == 0,
}


@pytest.mark.parametrize("wanted", AWKWARD.values(), ids=AWKWARD)
def test_awkward_shapes_are_found(wanted: Any) -> None:
    found(rst.shapes(), wanted)


def test_shapes_that_fail_are_made_small() -> None:
    few = settings(max_examples=100, database=None, phases=[Phase.generate, Phase.shrink])
    small = find(rst.shapes(), lambda s: s.q[-2] > 3 and s.k[-2] > 2, settings=few, random=random.Random(0))
    assert small == ((4, 4), (3, 4), (3, 0))


def test_parallel_opposed_and_vanishing_pairs_are_found() -> None:
    def cosine(pair: Any) -> float:
        norms = np.linalg.norm(pair[0]) * np.linalg.norm(pair[1])
        return float(pair[0] @ pair[1] / norms) if norms > 0 else math.nan

    found(rst.pairs(), lambda pair: cosine(pair) > 1 - 1e-15)
    found(rst.pairs(), lambda pair: cosine(pair) < -1 + 1e-15)
    found(rst.pairs(), lambda pair: math.isnan(cosine(pair)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: rst.points(0), "dim must be at least 1, got 0"),
        (lambda: rst.pairs(1), "dim must be at least 2, got 1"),
        (lambda: rst.points(norm=0.0), "norm must be positive and finite"),
        (lambda: rst.pairs(norm=math.inf), "norm must be positive and finite"),
        (lambda: rst.pairs(angle=(1.0, 0.5)), "angle must be two increasing numbers"),
        (lambda: rst.matrices(stretch=(0.0, 1.0)), "stretch must be two increasing positive numbers"),
        (lambda: rst.scales(2.0, 1.0), "low and high must be increasing positive numbers"),
        (lambda: found(rst.shapes(longest=0), bool), "longest must be at least 1, got 0"),
        (lambda: found(rst.batches(dim=0), bool), "dim must be at least 1, got 0"),
        (lambda: found(rst.batches(norm=-1.0), bool), "norm must be positive and finite"),
    ],
)
def test_strategies_refuse_what_has_no_examples(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


# Imports


def test_only_the_strategies_need_hypothesis(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, rfkernels.testing; print(sorted({'hypothesis', 'jax', 'numba', 'scipy', 'pytest'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "rfkernels.testing.strategies")
    monkeypatch.delattr(testing, "strategies")
    with pytest.raises(ImportError, match="needs Hypothesis: pip install hypothesis, or the extra 'test' of rfkernels"):
        importlib.import_module("rfkernels.testing.strategies")


def test_the_public_names_have_docstrings() -> None:
    assert list(testing.__all__) == sorted(testing.__all__)
    for name in testing.__all__:
        assert getattr(testing, name).__doc__


def test_nothing_is_said_of_what_underflows() -> None:
    x, y = np.array([500.0, 200.0]), np.array([100.0, -200.0])
    with pytest.raises(testing.QuadratureError, match="norms are too large"), np.errstate(over="ignore"):
        testing.assert_unbiased("positive", x, y)
    with pytest.raises(ValueError, match="scale"):
        testing.assert_unbiased("positive", x / 1000, y / 1000, scale=-1.0)
    with pytest.raises(ValueError, match="rows must have shape"):
        testing.bind("positive", np.ones(2))
    features = rfk.draw("positive", 2, 4, batch=(2,), rng=0)
    with pytest.raises(ValueError, match="batch axes"):
        testing.row_estimates(features, x, y)


# Laws that are enumerated, and probabilities


def test_moments_of_values_and_weights() -> None:
    values, weights = np.array([[0.0, 2.0, 4.0], [1.0, 1.0, 1.0]]), np.array([0.25, 0.5, 0.25])
    testing.assert_moments(values, weights, mean=[2.0, 1.0], variance=[2.0, 0.0])
    testing.assert_moments(values[0], weights, mean=testing.Integral(2.1, 0.11), variance=testing.Integral(1.5, 0.2))
    with pytest.raises(AssertionError, match=r"the mean of estimates at \(1,\) is 1, not 1.00001: 1.00e-05 apart"):
        testing.assert_moments(values, weights, mean=[2.0, 1.00001])
    with pytest.raises(AssertionError, match=r"the variance of estimates at \(0,\) is 2, not 2.1: 1.00e-01 apart"):
        testing.assert_moments(values, weights, mean=[2.0, 1.0], variance=[2.1, 0.0])
    with pytest.raises(AssertionError, match="the mean of estimates is nan"):
        testing.assert_moments([np.nan, 1.0, 1.0], weights, mean=1.0)
    with pytest.raises(ValueError, match=r"one value for each weight .* not be empty, got shapes \(2,\) and \(3,\)"):
        testing.assert_moments([1.0, 2.0], weights, mean=1.0)
    with pytest.raises(ValueError, match="not be empty"):
        testing.assert_moments(np.zeros((0, 3)), weights, mean=1.0)
    with pytest.raises(ValueError, match=r"the variance must have shape \(2,\) or \(\), as estimates have, got \(3,\)"):
        testing.assert_moments(values, weights, mean=[2.0, 1.0], variance=weights)
    with pytest.raises(AssertionError, match="the mean of estimates is inf"):
        testing.assert_moments([np.inf, 1.0, 1.0], weights, mean=1.0)
    with pytest.raises(AssertionError, match="the variance of estimates is inf"):
        testing.assert_moments([1e170, 0.0], [1e-170, 1.0], mean=1.0, variance=7.0)


def test_what_happens_too_often_is_noticed() -> None:
    happened = np.zeros((1000, 2), bool)
    happened[:100, 0] = happened[:30, 1] = True
    testing.assert_probability_at_most(happened, [0.1, 0.03])
    testing.assert_probability_at_most(happened, 1.5)
    testing.assert_probability_at_most(np.zeros(10, bool), 0.0)
    with pytest.raises(AssertionError, match=r"event \(1,\) happened in 30 of 1000 trials, .* if its own is 0.005"):
        testing.assert_probability_at_most(happened, [0.1, 0.005])
    with pytest.raises(AssertionError, match=r"happened in 1 of 10 trials, which has probability 0\.0e"):
        testing.assert_probability_at_most(np.arange(10) == 3, 0.0)
    limit = stats.binom.isf(1e-3, 1000, 0.1)
    testing.assert_probability_at_most(np.arange(1000) < limit, 0.1, false_alarm=1e-3)
    with pytest.raises(AssertionError, match="trials"):
        testing.assert_probability_at_most(np.arange(1000) < limit + 1, 0.1, false_alarm=1e-3)


@pytest.mark.parametrize(
    ("happened", "bound", "message"),
    [
        (np.zeros(3), 0.1, r"must be bool of shape \(trials, \*events\), got float64 of \(3,\)"),
        (np.zeros((0, 2), bool), 0.1, r"got bool of \(0, 2\)"),
        (np.zeros(3, bool), -0.1, "bound must not be negative, got -0.1"),
        (np.zeros((3, 2), bool), [0.1] * 3, r"bound must broadcast to the shape \(2,\), got \(3,\)"),
    ],
)
def test_trials_that_cannot_be_judged(happened: Any, bound: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        testing.assert_probability_at_most(happened, bound)


def test_an_alarm_that_is_no_probability_is_refused() -> None:
    for value in (0, 2, np.nan):
        with pytest.raises(ValueError, match="false_alarm must be a probability"):
            testing.assert_probability_at_most(np.ones(9, bool), 0.5, false_alarm=value)


@pytest.mark.parametrize("rtol", [math.inf, math.nan, -1e-9, "1e-9"])
def test_a_tolerance_that_all_or_nothing_passes_is_refused(rtol: Any) -> None:
    calls: list[Callable[[], None]] = [
        lambda: testing.assert_unbiased("relu", X, Y, kernel=lambda x, y: np.array(5.0), rtol=rtol),
        lambda: testing.assert_variance("positive", X, Y, rtol=rtol),
        lambda: testing.assert_variance_at_most("positive", X, Y, 0.0, rtol=rtol),
        lambda: testing.assert_ordering(lambda x, y: 2.0, lambda x, y: 1.0, X, Y, rtol=rtol),
        lambda: testing.assert_moments([1.0, 2.0], [0.5, 0.5], mean=7.0, rtol=rtol),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="rtol must be a finite number of at least 0, got"):
            call()


def test_kinks_that_are_nowhere_are_refused() -> None:
    with pytest.raises(ValueError, match="kinks must be finite numbers, got"):
        testing.assert_unbiased("relu", X, Y, kinks=[0.0, math.nan])
