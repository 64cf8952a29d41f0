"""Proposals change the rows and the error of exponential features, not what they estimate.

Expectations are integrated where rows are normal: nodes of a quadrature rule take the place of draws.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rfkernels as rfk
from rfkernels import Features, Side, testing
from rfkernels.proposals import Gaussian, Mixture, isotropic, propose, self_attention_mixture

SOFTMAX = ["hyperbolic", "positive", "trigonometric"]

POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
ROWS = np.stack(np.meshgrid(POINTS, POINTS, indexing="ij"), -1).reshape(-1, 2)
PROBABILITIES = np.outer(WEIGHTS, WEIGHTS).reshape(-1) / (2 * math.pi)
"""Rows of N(0, I) in the plane, and their weights."""

FULL = Gaussian(np.array([[1.2, 0.3], [-0.1, 1.5]]), np.array([0.4, -0.3]))
"""A proposal whose root is not symmetric."""


def nothing(shape: tuple[int, ...]) -> Any:
    raise AssertionError("a Gaussian proposal draws nothing besides its rows")


def row_estimates(name: str, rows: Any, log_weight: Any, x: Any, y: Any) -> Any:
    """What each row alone would estimate, (rows,)."""
    features = Features(rfk.lookup(name), rows, log_weight, Side(), Side(), np.asarray(1.0))
    log_x, sign_x = rfk.transform(x[None], features, side="query", log=True)
    log_y, sign_y = rfk.transform(y[None], features, side="key", log=True)
    return features.rows * (sign_x * sign_y * np.exp(log_x + log_y)).reshape(-1, features.rows).sum(0)


def vectors(radius: float) -> st.SearchStrategy[Any]:
    numbers = st.floats(-radius, radius, allow_subnormal=False)
    return st.tuples(numbers, numbers).map(np.array)


# Gaussian -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "proposal",
    [isotropic(0.9), isotropic(1.5), Gaussian(np.array([1.1, 1.4])), Gaussian(1.0, np.array([0.5, 0.2])), FULL],
    ids=["narrow", "wide", "diagonal", "shifted", "full"],
)
@given(name=st.sampled_from(SOFTMAX), x=vectors(0.6), y=vectors(0.6))
def test_gaussian_proposals_are_unbiased(proposal: Gaussian, name: str, x: Any, y: Any) -> None:
    rows, log_weight = propose(np, proposal, ROWS, nothing)
    testing.assert_moments(row_estimates(name, rows, log_weight, x, y), PROBABILITIES, mean=math.exp(x @ y))


@given(
    x=vectors(0.6),
    y=vectors(0.6),
    mean=vectors(0.8),
    angle=st.floats(0, math.pi),
    variances=st.tuples(*[st.floats(0.9, 2.5)] * 2),
)
def test_the_second_moment_of_gaussian_proposals(
    x: Any, y: Any, mean: Any, angle: float, variances: tuple[float, float]
) -> None:
    """1 + relative variance = Π (1 + ρ)/(2√ρ) exp(Σ t²/ρ): ρ = 2σ² − 1, t = z − μ along the axes of the proposal."""
    axes = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    rows, log_weight = propose(np, Gaussian(axes * np.sqrt(variances), mean), ROWS, nothing)
    rho, t = 2 * np.array(variances) - 1, (x + y - mean) @ axes
    second = float(np.prod((1 + rho) / (2 * np.sqrt(rho)))) * math.exp(np.sum(t**2 / rho))
    found = row_estimates("positive", rows, log_weight, x, y) / math.exp(x @ y)
    testing.assert_moments(found, PROBABILITIES, mean=1, variance=second - 1, rtol=1e-6)


def test_a_mean_at_the_sum_of_the_points_leaves_no_variance() -> None:
    """Features of N(x + y, I) estimate k(x, y) exactly."""
    x, y = np.array([0.3, -1.1]), np.array([2.0, 0.4])
    rows, log_weight = propose(np, Gaussian(1.0, x + y), ROWS, nothing)
    np.testing.assert_allclose(row_estimates("positive", rows, log_weight, x, y), math.exp(x @ y), rtol=1e-12)


@pytest.mark.parametrize("dim", [1, 3, 8])
@pytest.mark.parametrize("variance", [0.7, 1.0, 2.2])
def test_isotropic_proposals_are_generalized_exponential_features(variance: float, dim: int) -> None:
    """f(w, x) = (1 − 4A)^(d/4) exp(A|w|² + √(1 − 4A) w·x − |x|²/2) of the same normals w (arXiv 2205.15317)."""
    a, x = (1 - variance) / 4, np.random.default_rng(1).standard_normal((5, dim))
    features = rfk.draw("positive", dim, 16, proposal=isotropic(variance), scale=1.0, rng=2)
    w = rfk.draw("positive", dim, 16, rng=2).projection
    log = a * np.sum(w * w, -1) + math.sqrt(1 - 4 * a) * x @ w.T - np.sum(x * x, -1)[:, None] / 2
    log += dim / 4 * math.log(1 - 4 * a) - math.log(16) / 2
    found, sign = rfk.transform(x, features, side="key", log=True)
    np.testing.assert_allclose(found, log, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(sign, 1)


@given(x=vectors(3.0), y=vectors(3.0), variance=st.floats(1.05, 4.0))
def test_wide_proposals_bound_every_term(x: Any, y: Any, variance: float) -> None:
    """A row alone estimates at most σᵈ exp(s / (2(σ² − 1))) times the kernel, however far out it is."""
    rows, log_weight = propose(np, isotropic(variance), 3 * ROWS, nothing)
    s = float((x + y) @ (x + y))
    features = Features(rfk.lookup("positive"), rows, log_weight, Side(), Side(), np.asarray(1.0))
    log = sum(rfk.transform(p[None], features, side="key", log=True)[0] for p in (x, y)) + math.log(len(rows))
    assert np.max(log) - x @ y <= math.log(variance) + s / (2 * (variance - 1)) + 1e-9


@pytest.mark.parametrize("variance", [0.5, 0.0, -1.0, math.inf, math.nan, True, None, "1.4", [1.4, 1.2]])
def test_variances_of_at_most_a_half_are_refused(variance: Any) -> None:
    with pytest.raises(ValueError, match="variance must be finite and above 1/2"):
        isotropic(variance)


# Mixtures -------------------------------------------------------------------------------------------------------------


def test_log_weights_of_a_mixture_are_densities() -> None:
    """½ log(p/q), from densities that are written out."""
    rng = np.random.default_rng(0)
    mixture = Mixture(rng.standard_normal((3, 4)), np.array([2.0, 0.0, 5.0]))
    rows, log_weight = propose(np, mixture, rng.standard_normal((200, 4)), rng.standard_normal)

    def density(centre: Any) -> Any:
        return np.exp(-np.sum((rows - centre) ** 2, -1) / 2)

    q = (2 * density(mixture.centres[0]) + 5 * density(mixture.centres[2])) / 7
    np.testing.assert_allclose(log_weight, np.log(density(0.0) / q) / 2, rtol=1e-10, atol=1e-12)


def test_components_of_a_mixture_are_drawn_by_weight() -> None:
    rng = np.random.default_rng(0)
    centres, weights = np.array([[-50.0], [0.0], [50.0]]), np.array([0.2, 0.0, 0.6])
    rows, _ = propose(np, Mixture(centres, weights), rng.standard_normal((40_000, 1)), rng.standard_normal)
    of_each = np.abs(rows - centres.T) < 25
    assert np.all(of_each.sum(-1) == 1)
    testing.assert_probability_at_most(of_each, [0.25, 0.0, 0.75])
    testing.assert_probability_at_most(~of_each, [0.75, 1.0, 0.25])
    near = rows[of_each[:, 2]] - 50
    testing.assert_law_of_rows(near)


PLACES = np.random.default_rng(4).standard_normal((6, 5)) * np.array([0.6, 0.1, 0.4, 0.4, 0.3, 0.7])[:, None]
"""Six points of different norms in five dimensions."""


@pytest.mark.parametrize("scale", [None, 0.3, 1.0])
def test_every_row_of_the_best_mixture_has_the_same_norm(scale: float | None) -> None:
    """‖φφᵀ‖_F = Σ φ² = tr K for one row alone, so that E ‖φφᵀ‖²_F = (tr K)² (arXiv 2406.18802)."""
    mixture = self_attention_mixture(PLACES, scale=scale)
    features = rfk.draw("positive", 5, 1, sampler="iid", proposal=mixture, scale=scale, batch=(200,), rng=0)
    gram = np.exp((5**-0.5 if scale is None else scale) * np.sum(PLACES**2, -1))
    phi = rfk.transform(PLACES, features, side="key")
    np.testing.assert_allclose(np.sum(phi**2, (-1, -2)), gram.sum(), rtol=1e-10)
    assert len(np.unique(phi[:, 0, 0])) == 200


@pytest.mark.long
def test_the_error_of_the_best_mixture() -> None:
    """E ‖K̂ − K‖²_F = ((tr K)² − ‖K‖²_F) / m, and the mean is K: terms of one row are bounded by tr K."""
    gram, rows = np.exp(PLACES @ PLACES.T / math.sqrt(5)), 4
    expected = (np.trace(gram) ** 2 - np.sum(gram**2)) / rows
    largest = (2 * np.trace(gram)) ** 2

    def apart(mixture: Mixture | None, rng: np.random.Generator) -> Any:
        features = rfk.draw("positive", 5, rows, sampler="iid", proposal=mixture, batch=(5000,), rng=rng)
        phi = rfk.transform(PLACES, features, side="key")
        return phi @ np.swapaxes(phi, -1, -2) - gram

    def squares(rng: np.random.Generator) -> Any:
        found = np.sum(apart(mixture, rng) ** 2, (-1, -2))
        assert found.max() <= largest
        return found

    mixture = self_attention_mixture(PLACES)
    testing.assert_unbiased_by_sampling(squares, expected, variance=largest * expected, detect=0.2 * expected)
    testing.assert_unbiased_by_sampling(
        lambda rng: apart(mixture, rng), np.zeros_like(gram), variance=expected, detect=0.1 * np.sqrt(expected)
    )
    assert np.mean(np.sum(apart(None, np.random.default_rng(0)) ** 2, (-1, -2))) > 2 * expected


def test_large_norms_neither_overflow_nor_vanish() -> None:
    points = np.array([[1.0, 0.0], [40.0, 0.0]])  # weights in the ratio of e^1 and e^1600
    mixture = self_attention_mixture(points, scale=1.0)
    np.testing.assert_array_equal(mixture.weights, [0, 1])
    features = rfk.draw("positive", 2, 8, proposal=mixture, scale=1.0, rng=0)
    assert np.all(np.isfinite(features.log_weight))
    np.testing.assert_allclose(rfk.log_kernel(points[1], points[1], features), 1600, rtol=1e-12)


@pytest.mark.parametrize("points", [np.ones(3), np.ones((2, 2, 2)), np.ones((0, 3)), np.full((2, 2), np.nan)])
def test_points_that_are_none_are_refused(points: Any) -> None:
    with pytest.raises(ValueError, match="points must"):
        self_attention_mixture(points)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf])
def test_scales_that_are_none_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must"):
        self_attention_mixture(np.ones((2, 2)), scale=scale)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -0.1], [np.nan, 1.0], [np.inf, 1.0]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights of a mixture"):
        rfk.draw("positive", 2, 4, proposal=Mixture(np.ones((2, 2)), np.array(weights)), rng=0)


# Drawing --------------------------------------------------------------------------------------------------------------


PROPOSALS = {
    "isotropic": isotropic(1.4),
    "full": FULL,
    "mixture": Mixture(np.array([[0.8, 0.2], [-0.3, 0.5], [0.0, 0.0]]), np.array([1.0, 1.0, 2.0])),
}
X, Y = np.array([0.5, 0.4]), np.array([0.3, -0.6])


def assert_unbiased(log: Any, sign: Any) -> None:
    """The mean of the estimates of many independent draws is the kernel of X and Y, by six standard errors."""
    estimates = np.asarray(sign * np.exp(log), np.float64) / math.exp(X @ Y)
    standard_error = estimates.std() / math.sqrt(estimates.size)
    assert standard_error < 0.01
    assert abs(estimates.mean() - 1) <= 6 * standard_error


@pytest.mark.parametrize(
    ("sampler", "name"),
    [
        *oracle.alternate(("iid", "orthogonal", "simplex", "antithetic", "paired"), SOFTMAX),
        ("sobol", "positive"),
        *(pytest.param("sobol", name, marks=pytest.mark.long) for name in SOFTMAX if name != "positive"),
    ],
)
@pytest.mark.parametrize("proposal", PROPOSALS)
def test_drawn_proposals_are_unbiased(proposal: str, name: str, sampler: str) -> None:
    """With every map and coupling, for each element of a batch."""
    features = rfk.draw(name, 2, 16, sampler=sampler, proposal=PROPOSALS[proposal], scale=1.0, batch=(2, 1500), rng=0)
    assert features.log_weight.shape == features.projection.shape[:-1]
    log, sign = rfk.log_kernel(X, Y, features, return_sign=True)
    assert log.shape == (2, 1500)
    assert_unbiased(log, sign)
    if sampler != "sobol":
        assert np.all(features.projection[0] != features.projection[1])


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize("proposal", PROPOSALS)
def test_jax_keys_draw_proposals(proposal: str, name: str) -> None:
    jax = pytest.importorskip("jax")
    keys = {"proposal": PROPOSALS[proposal], "scale": 1.0, "sampler": "iid", "rng": jax.random.key(1)}
    features = rfk.draw(name, 2, 60_000, **keys)
    assert isinstance(features.log_weight, jax.Array)
    log, sign = rfk.log_kernel(jax.numpy.asarray(X), jax.numpy.asarray(Y), features, return_sign=True)
    rows, weight = np.asarray(features.projection, np.float64), np.asarray(features.log_weight, np.float64)
    estimates = row_estimates(name, rows, weight, X, Y) / math.exp(X @ Y)
    assert abs(estimates.mean() - 1) <= 6 * estimates.std() / math.sqrt(estimates.size)
    assert estimates.std() < 3
    np.testing.assert_allclose(float(sign * np.exp(log)) / math.exp(X @ Y), estimates.mean(), rtol=1e-4)


def test_a_mixture_is_built_of_jax_arrays() -> None:
    jax = pytest.importorskip("jax")
    given = self_attention_mixture(jax.numpy.asarray(PLACES, "float32"))
    wanted = self_attention_mixture(PLACES)
    assert isinstance(given.weights, jax.Array)
    np.testing.assert_allclose(given.centres, wanted.centres, rtol=1e-5)
    np.testing.assert_allclose(given.weights, wanted.weights, rtol=1e-5)
    drawn = jax.jit(lambda points, key: rfk.draw("positive", 5, 8, proposal=self_attention_mixture(points), rng=key))
    assert np.all(np.isfinite(drawn(jax.numpy.asarray(PLACES, "float32"), jax.random.key(0)).log_weight))


@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        (rfk.proposals.Gaussian(np.ones((4, 4))), "root of the proposal must be invertible"),
        (rfk.proposals.Gaussian(0.0), "root of the proposal must be invertible"),
        (rfk.proposals.Gaussian(np.nan), "root of the proposal must be finite"),
        (rfk.proposals.Gaussian(1.0, np.full(4, np.inf)), "mean of the proposal must be finite"),
        (rfk.proposals.Mixture(np.full((1, 4), np.nan), np.ones(1)), "centres of the proposal must be finite"),
    ],
)
def test_proposals_that_no_weight_can_make_up_for_are_refused(proposal: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rfk.draw("positive", 4, 8, proposal=proposal, rng=0)


@pytest.mark.parametrize("root", ["wide", 1 + 2j, True])
def test_proposals_of_no_real_numbers_are_refused(root: Any) -> None:
    with pytest.raises(TypeError, match="root of the proposal must hold real numbers, got dtype"):
        rfk.draw("positive", 4, 8, proposal=rfk.proposals.Gaussian(root), rng=0)
