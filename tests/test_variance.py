"""Errors that `rfkernels.variance` predicts are those that features have.

Expectations are integrated where that is possible, over one row or a coupled pair, on grids of `rfkernels.testing`, which
judges simulations as well. At extremes mpmath is the judge.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rfkernels as rfk
from rfkernels import proposals, samplers, testing, variance
from rfkernels.testing import strategies as rst
from rfkernels.variance import _series

SOFTMAX = ["hyperbolic", "positive", "trigonometric"]
SIMPLEX = samplers.simplex
TILTED = proposals.Gaussian(np.array([[1.1, 0.2], [-0.1, 0.9]]))
SHIFTED = proposals.Gaussian(np.array([[1.0, 0.15], [0.1, 1.2]]), np.array([0.2, -0.3]))


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_subnormal=False)


def along(s: float, dim: int) -> Any:
    """A point x with |x + x|² = s."""
    x = np.zeros(dim)
    x[0] = math.sqrt(s) / 2
    return x


def estimates(name: str, rows: Any, x: Any, y: Any, proposal: Any = None) -> Any:
    """What each standard normal row alone estimates relative to the kernel, under a proposal."""
    v, log_weight = (rows, 0.0) if proposal is None else proposals.propose(np, proposal, rows, None)
    features = testing.bind(name, v, log_weight=log_weight)
    return testing.row_estimates(features, x, y) / testing.kernel_value(features.map.kernel, x, y).value  # type: ignore[arg-type]


ROWS, WEIGHTS = testing.hermite(64)


# One row ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "proposal", [None, proposals.isotropic(1.3), TILTED, SHIFTED], ids=["none", "iso", "tilt", "shift"]
)
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("name", [*SOFTMAX, "exp"])
def test_one_draw_is_what_a_grid_integrates(name: str, antithetic: bool, proposal: Any) -> None:
    x, y = np.array([0.5, -0.2]), np.array([0.3, 0.6])
    sampler = samplers.antithetic("iid") if antithetic else samplers.iid
    columns = len(rfk.lookup(name).activations) * (2 if antithetic else 1)
    if name == "trigonometric" and proposal is SHIFTED:
        with pytest.raises(ValueError, match="mean"):
            variance.relative(name, x, y, count=columns, sampler=sampler, proposal=proposal)
        return
    found = estimates(name, ROWS, x, y, proposal)
    if antithetic:
        found = (found + estimates(name, -ROWS, x, y, proposal)) / 2
    for draws in (1, 7):
        predicted = variance.relative(name, x, y, count=draws * columns, sampler=sampler, proposal=proposal)
        testing.assert_moments(found, WEIGHTS, mean=1, variance=draws * predicted)


@pytest.mark.parametrize("name", SOFTMAX)
@given(x=rst.points(2, 1.1), y=rst.points(2, 1.1), scale=numbers(0.1, 1.0))
def test_scale_multiplies_both_sides(name: str, x: Any, y: Any, scale: float) -> None:
    scaled = variance.relative(name, x, y, count=8, scale=scale)
    root = math.sqrt(scale)
    np.testing.assert_allclose(scaled, variance.relative(name, root * x, root * y, count=8), rtol=1e-12, atol=1e-300)


@given(x=rst.points(3, 1.4), y=rst.points(3, 1.4))
def test_identities_of_the_softmax_maps(x: Any, y: Any) -> None:
    """Lemma 2 of Performers and what follows from it."""
    s = float((x + y) @ (x + y))
    one = {name: variance.relative(name, x, y, count=8, sampler="iid") for name in SOFTMAX}
    np.testing.assert_allclose(one["positive"], math.expm1(s) / 8, rtol=1e-14)
    np.testing.assert_allclose(one["hyperbolic"], -math.expm1(-s) * one["positive"], rtol=1e-10, atol=1e-300)
    for sampler in ("iid", "orthogonal", "antithetic"):
        turned = variance.relative("hyperbolic", x, -y, count=64, sampler=sampler)
        if sampler == "iid":
            np.testing.assert_allclose(
                variance.relative("trigonometric", x, y, count=64, sampler=sampler), turned, rtol=1e-9, atol=1e-300
            )
    pairs = variance.relative("positive", x, y, count=64, sampler="antithetic")
    np.testing.assert_allclose(pairs, variance.relative("hyperbolic", x, y, count=64), rtol=1e-9, atol=1e-300)


@given(
    name=st.sampled_from(SOFTMAX),
    proposal=st.sampled_from([None, TILTED]),
    x=rst.points(2, 1.1),
    y=rst.points(2, 1.1),
    other=rst.points(2, 1.1),
)
def test_one_row_at_two_keys(name: str, proposal: Any, x: Any, y: Any, other: Any) -> None:
    both = estimates(name, ROWS, x, y, proposal) * estimates(name, ROWS, x, other, proposal)
    found = variance.cross_moment(name, x, y, other, proposal=proposal)
    testing.assert_moments(both, WEIGHTS, mean=found, rtol=1e-6)
    np.testing.assert_allclose(
        variance.cross_moment("positive", x, y, other), math.exp((x + y) @ (x + other)), rtol=1e-12
    )


# Coupled rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [1e-3, 0.7, 1.0, 3.0, 6.0])
def test_coupling_in_the_plane(s: float) -> None:
    """A quadrature over angles and radii gives C to rounding, e^(−s/2)(1 + s/2) for a right angle."""
    z = np.array([math.sqrt(s), 0.0])
    for turn, kind in ((math.pi / 2, "orthogonal"), (math.pi, "simplex"), (1.0, math.cos(1.0))):
        one, other, weights = testing.two_rows(turn)
        expected = weights @ np.exp((one + other) @ z - s)
        np.testing.assert_allclose(variance.coupling_moment(kind, s, 2), expected, rtol=1e-12)
        turned = weights @ (np.exp(s) * np.cos(one @ z) * np.cos(other @ z))
        both = (variance.coupling_moment(kind, -s, 2) + variance.coupling_moment(-math.cos(turn), -s, 2)) / 2
        np.testing.assert_allclose(both, turned, rtol=1e-11, atol=1e-13)
    assert variance.coupling_moment(np.float32(0.5), s, 2) == variance.coupling_moment(0.5, s, 2)
    np.testing.assert_allclose(variance.coupling_moment("orthogonal", s, 2), math.exp(-s / 2) * (1 + s / 2), rtol=1e-14)


@pytest.mark.parametrize("name", SOFTMAX)
def test_cross_moments_of_coupled_rows_in_the_plane(name: str) -> None:
    """At keys that are not in line only the sum over harmonics knows it."""
    x, y, other = np.array([0.4, 0.3]), np.array([0.5, -0.2]), np.array([-0.3, 0.6])
    columns = len(rfk.lookup(name).activations)
    for sampler, turn in ((samplers.orthogonal, math.pi / 2), (SIMPLEX, math.pi)):
        apart = 0.0
        for reflected in (turn, -turn):  # Haar-distributed directions turn either way
            one, second, weights = testing.two_rows(reflected)
            same = weights @ (estimates(name, one, x, y) * estimates(name, one, x, other))
            apart += weights @ (estimates(name, one, x, y) * estimates(name, second, x, other)) / 2
        found = variance.cross_moment(name, x, y, other, count=2 * columns, sampler=sampler)
        np.testing.assert_allclose(found, (same + apart) / 2, rtol=1e-7)


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 16, 63, 64, 128])
def test_orthogonal_moment_against_mpmath(dim: int) -> None:
    mp = pytest.importorskip("mpmath").mp
    with mp.workdps(40):
        n = mp.mpf(dim) / 2
        for s in (1e-8, 1e-3, 0.4, 0.999, 1.0, 2.5, 20.0, 300.0, 1e4):
            exact = mp.exp(-s) * mp.hyp1f1(2 * n, n, mp.mpf(s) / 2)
            if dim > 1:
                found = float(variance.coupling_moment("orthogonal", s, dim, log=True))
                assert abs(found - mp.log(exact)) <= 1e-13 * max(1, abs(mp.log(exact)))
            assert abs(_series.gap(np.asarray(s), dim, 0.0) / (1 - exact) - 1) <= 1e-12
            turned = mp.exp(mp.mpf(s) / 2) * mp.hyp1f1(-n, n, mp.mpf(s) / 2, zeroprec=400)
            found = _series.gap(np.asarray(-s), dim, 0.0, s)
            expected = (1 - turned) * mp.exp(-s)
            assert abs(found - expected) <= (1e-12 * abs(expected) if s < 1 else 2e-14)


@given(s=numbers(1e-2, 30.0), dim=st.integers(2, 70))
def test_couplings_are_in_order(s: float, dim: int) -> None:
    """Theorem 2 of Performers, and that a smaller cosine is better."""
    orthogonal, simplex = (variance.coupling_moment(kind, s, dim) for kind in ("orthogonal", "simplex"))
    assert simplex < orthogonal < 1
    assert 1 - orthogonal >= 2 / (dim + 2) * math.expm1(-s / 2) ** 2 * (1 - 1e-9)
    np.testing.assert_allclose(1 - orthogonal, _series.gap(np.asarray(s), dim, 0.0), rtol=1e-9)


@pytest.mark.parametrize(("count", "pairs"), [(1, 0), (4, 12), (5, 12), (7, 18), (11, 30)])
def test_how_many_rows_are_coupled(count: int, pairs: int) -> None:
    """In blocks of dim = 4, also with a proposal and in antithetic pairs."""
    x, y = np.array([0.3, 0.2, -0.1, 0.4]), np.array([0.1, -0.3, 0.2, 0.5])
    gap = float(1 - variance.coupling_moment("orthogonal", float((x + y) @ (x + y)), 4))
    for proposal in (None, proposals.isotropic(1.4)):
        for antithetic in (False, True):
            kinds = ("iid", "orthogonal")
            free, bound = (samplers.antithetic(kind) if antithetic else samplers.resolve(kind) for kind in kinds)
            columns = 2 * count if antithetic else count
            errors = [
                variance.relative("positive", x, y, count=columns, sampler=kind, proposal=proposal)
                for kind in (free, bound)
            ]
            np.testing.assert_allclose(errors[0] - errors[1], pairs * gap / count**2, rtol=1e-10, atol=1e-16)


def test_a_mean_moves_the_point() -> None:
    rng = np.random.default_rng(2)
    x, y, mean = 0.3 * rng.standard_normal((3, 6))
    for sampler in ("iid", "orthogonal"):
        moved = variance.relative("positive", x, y - mean, count=32, sampler=sampler, proposal=proposals.isotropic(1.2))
        proposal = proposals.Gaussian(math.sqrt(1.2), mean)
        np.testing.assert_allclose(
            variance.relative("positive", x, y, count=32, sampler=sampler, proposal=proposal), moved, rtol=1e-12
        )


SIMULATED = [
    ("positive", "orthogonal", None),
    ("positive", "antithetic", proposals.isotropic(1.3)),
    ("trigonometric", "orthogonal", None),
    ("positive", "regularized", None),
    ("hyperbolic", "regularized", None),
]


@pytest.mark.parametrize(("name", "sampler", "proposal"), SIMULATED)
def test_against_simulation(name: str, sampler: Any, proposal: Any) -> None:
    """Blocks of 8 rows, one and a half of them; the kurtosis of one row is at most 300, and that of their mean 20."""
    rng = np.random.default_rng(5)
    x, y = 0.25 * rng.standard_normal((2, 8))
    predicted = variance.relative(name, x, y, count=24, sampler=sampler, proposal=proposal)
    drawn = testing.drawn_estimates(name, x, y, 24, sampler=sampler, proposal=proposal, batch=4000)

    def estimate(generator: np.random.Generator) -> Any:
        return drawn(generator) / math.exp(x @ y)

    testing.assert_variance_by_sampling(estimate, 1.0, predicted, fourth=20 * predicted**2, detect=predicted / 3)


# The regularized kernel -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 5, 64])
def test_regularized_rows_against_mpmath(dim: int) -> None:
    mp = pytest.importorskip("mpmath").mp
    draws = 3 * dim + (1 if dim > 1 else 0)
    coupled_share = mp.mpf(3 * dim * (dim - 1)) / draws**2
    with mp.workdps(60):
        n = mp.mpf(dim) / 2
        for s in (1e-9, 1e-3, 0.3, 2.0, 40.0):
            x, y = along(s, dim), dim * mp.mpf(s) / 4
            mean = mp.exp(-mp.mpf(s) / 2) * mp.hyp0f1(n, y)
            np.testing.assert_allclose(float(variance.regularized_ratio(s, dim)), float(mean), rtol=1e-12)
            cross = mp.exp(-mp.mpf(s)) * mp.hyp0f1(n, 2 * y) - mean**2
            for name in ("positive", "hyperbolic"):
                if name == "positive":
                    second = mp.exp(-mp.mpf(s)) * mp.hyp0f1(n, 4 * y)
                else:
                    second = (mp.exp(-mp.mpf(s)) * mp.hyp0f1(n, 4 * y) + mp.exp(-mp.mpf(s))) / 2
                exact = (second - mean**2) / draws + coupled_share * cross + (mean - 1) ** 2
                count = draws * len(rfk.lookup(name).activations)
                found = variance.relative(name, x, x, count=count, sampler="regularized")
                np.testing.assert_allclose(float(found), float(exact), rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [128, 512])
def test_regularized_rows_of_great_width(dim: int, dtype: Any) -> None:
    """The weights of most directions underflow there, also on JAX in float32."""
    mp = pytest.importorskip("mpmath").mp
    jnp = pytest.importorskip("jax.numpy")
    draws = dim + 3
    with mp.workdps(60):
        for s in (0.01, 8.0, 64.0, 150.0):
            x = along(s, dim).astype(dtype)
            square = mp.mpf(float(np.sum((2 * x.astype(np.float64)) ** 2)))
            n, y = mp.mpf(dim) / 2, dim * square / 4
            mean = mp.exp(-square / 2) * mp.hyp0f1(n, y)
            second, pair = (mp.exp(-square) * mp.hyp0f1(n, k * y) for k in (4, 2))
            share = mp.mpf(dim * (dim - 1) + 6) / draws**2
            exact = float(mp.log((second - mean**2) / draws + share * (pair - mean**2) + (mean - 1) ** 2))
            options = {"count": draws, "sampler": "regularized", "log": True}
            np.testing.assert_allclose(variance.relative("positive", x, x, **options), exact, rtol=1e-9, atol=1e-9)
            if dtype == np.float32:
                found = variance.relative("positive", jnp.asarray(x), jnp.asarray(x), **options)
                np.testing.assert_allclose(found, exact, rtol=1e-3, atol=2e-2)
        found = variance.regularized_ratio(1e5, dim, log=True)
        exact = float(mp.log(mp.hyp0f1(n, mp.mpf(dim) * 25000)) - 50000)
        np.testing.assert_allclose(found, exact, rtol=1e-9)


def test_what_is_refused_of_regularized_rows() -> None:
    x = np.array([0.3, -0.2])
    jnp = pytest.importorskip("jax.numpy")
    with pytest.raises(ValueError, match="trigonometric"):
        variance.relative("trigonometric", x, x, count=8, sampler="regularized")
    with pytest.raises(ValueError, match="float64"):
        variance.relative("hyperbolic", jnp.asarray(x), jnp.asarray(x), count=8, sampler="regularized")
    for s, dim in ((-1.0, 4), (np.nan, 4), (1.0, 0), (1.0, 2.5)):
        with pytest.raises(ValueError, match=r"s must|dim must"):
            variance.regularized_ratio(s, dim)
    assert variance.regularized_ratio([1, 2], 4).shape == (2,)
    with pytest.raises(ValueError, match="finite"):
        variance.coupling_moment("orthogonal", np.nan, 4)
    with pytest.raises(ValueError, match="phi must"):
        variance.optimal_variance(-1.0)
    with pytest.raises(ValueError, match=r"x and y must hold points, got shapes \(0,\) and \(2,\)"):
        variance.optimal_proposal(x[:0], x)
    for call in (partial(variance.regularized_ratio, 1.0, 4), partial(variance.term_bound, "positive", x, x)):
        with pytest.raises(TypeError, match="log must be True or False, got 'no'"):
            call(log="no")


def test_a_kernel_of_zero_has_no_relative_error_and_no_nan_in_gradients() -> None:
    jax = pytest.importorskip("jax")
    x, nothing = np.array([0.3, -0.2], np.float32), np.zeros(2, np.float32)
    for name in ("relu", "squared_relu", "abs", "square", "erf"):
        assert variance.relative(name, nothing, x, count=8, sampler="iid") == 0
        gradient = jax.grad(lambda a, name=name: variance.relative(name, a, x, count=8, sampler="iid"))
        assert np.all(np.isfinite(jax.jit(gradient)(nothing)))


def test_traced_series_end_in_nan_and_not_in_a_wrong_number() -> None:
    jnp = pytest.importorskip("jax.numpy")
    a, b, c = np.zeros(4), 60.0 * np.eye(4)[0], 60.0 * np.eye(4)[1]
    assert variance.cross_moment("positive", a, b, c, count=8, sampler="orthogonal") > 10
    found = variance.cross_moment("positive", *map(jnp.asarray, (a, b, c)), count=8, sampler="orthogonal")
    assert np.isnan(found)


# Extremes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["iid", "orthogonal", "antithetic"])
def test_logs_at_extremes(sampler: str) -> None:
    """Relative to mpmath's e^s, nothing overflows at s = 1e4 and nothing cancels at 1e-12."""
    for s in (1e-12, 1e4):
        x = along(s, 16)
        log = variance.relative("positive", x, x, count=64, sampler=sampler, log=True)
        first = math.log(s / 64)
        if sampler == "antithetic":  # s²/2 for each of 32 pairs, less s²/36 for each two of a block
            first = math.log(s * s / 2 * (1 / 32 - 2 * 16 * 15 / 32**2 / 18))
        expected = first if s < 1 else s - math.log(64)
        np.testing.assert_allclose(log, expected, rtol=1e-11)
        value = variance.relative("positive", x, x, count=64, sampler=sampler)
        np.testing.assert_array_equal(value, np.inf) if s > 1 else np.testing.assert_allclose(value, math.exp(log))


def test_nothing_to_err_on() -> None:
    x = np.array([0.3, -0.4])
    for sampler in ("iid", "orthogonal", "antithetic", "regularized"):
        assert variance.relative("positive", x, -x, count=8, sampler=sampler) == 0
        assert variance.relative("positive", x, -x, count=8, sampler=sampler, log=True) == -np.inf
    assert variance.relative("positive", x, x, count=8, sampler="iid", proposal=proposals.Gaussian(0.7)) == np.inf
    tiny = np.array(
        [1e-13, 0.0], np.float32
    )  # whose square is in the range of float32, and not the error, its fourth power
    assert variance.relative("positive", tiny, 0 * tiny, count=8, sampler="antithetic", log=True) == -np.inf


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        *oracle.alternate(SOFTMAX, ["iid", "orthogonal", "antithetic"]),
        ("positive", "regularized"),
    ],
)
def test_jax_agrees_and_differentiates(name: str, sampler: str) -> None:
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(7)
    x, y = 0.3 * rng.standard_normal((2, 3, 6)).astype(np.float32)

    def total(x: Any) -> Any:
        return variance.relative(name, x, y, count=24, sampler=sampler, log=True).sum()

    found = jax.jit(lambda x: variance.relative(name, x, y, count=24, sampler=sampler))(jax.numpy.asarray(x))
    np.testing.assert_allclose(
        found, variance.relative(name, x.astype(float), y.astype(float), count=24, sampler=sampler), rtol=1e-3
    )
    gradient = np.asarray(jax.jit(jax.grad(total))(x))
    step = np.zeros((3, 6))
    step[1, 2] = 1e-5
    ahead, behind = (
        variance.relative(name, x + t * step, y.astype(float), count=24, sampler=sampler, log=True).sum()
        for t in (1, -1)
    )
    np.testing.assert_allclose(gradient[1, 2], (ahead - behind) / 2e-5, rtol=1e-2, atol=1e-3)
    assert np.all(np.isfinite(gradient))
    zeros = jax.grad(lambda x: variance.relative(name, x, 0 * y, count=24, sampler=sampler).sum())
    np.testing.assert_array_equal(jax.jit(zeros)(jax.numpy.zeros((3, 6))), 0)


# Proposals --------------------------------------------------------------------------------------------------------


@given(x=rst.points(5, 1.8), y=rst.points(5, 1.8), scale=numbers(0.3, 1.0))
def test_no_isotropic_proposal_is_better_than_the_optimal_one(x: Any, y: Any, scale: float) -> None:
    best = variance.optimal_proposal(x, y, scale=scale)
    errors = [
        variance.relative(
            "positive", x, y, count=1, sampler="iid", scale=scale, proposal=proposals.Gaussian(t * best.root)
        )
        for t in (1, 0.99, 1.01, 1 / best.root)
    ]
    assert errors[0] <= min(errors[1:]) * (1 + 1e-9)


def test_the_optimal_proposal_of_sets_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(11)
    x, y = rng.standard_normal((2, 7, 4)), rng.standard_normal((5, 4)) + 0.5
    squares = ((x.reshape(-1, 1, 4) + y) ** 2).sum(-1)
    expected = variance.optimal_variance(0.7 * squares.mean() / 4)
    np.testing.assert_allclose(variance.optimal_proposal(x, y, scale=0.7).root ** 2, expected, rtol=1e-12)
    a = (1 - expected) / 4  # A of arXiv 2205.15317, whose optimum is in closed form
    phi = 0.7 * squares.mean() / 4
    np.testing.assert_allclose(a, (1 - 2 * phi - math.sqrt((2 * phi + 1) ** 2 + 8 * phi)) / 16, rtol=1e-12)


TABLE = [  # dim, tau and log10 errors of 256 columns at x·y = 0, |x|² = |y|² = tau √dim
    (
        16,
        0.25,
        {
            "trig": -1.67,
            "prf": -1.60,
            "orf": -1.70,
            "sim": -1.86,
            "hyp": -1.67,
            "hyp-orf": -1.95,
            "oprf": -1.78,
            "oprf-orf": -1.95,
            "oprf-sim": -2.27,
            "oprf-anti": -2.55,
        },
    ),
    (16, 2.0, {"trig": 4.54, "prf": 4.54, "oprf": 0.86, "oprf-orf": 0.86, "oprf-sim": 0.85, "oprf-anti": 0.85}),
    (
        64,
        0.25,
        {
            "trig": -0.69,
            "prf": -0.69,
            "orf": -0.74,
            "sim": -0.77,
            "hyp": -0.69,
            "hyp-orf": -0.81,
            "oprf": -0.86,
            "oprf-orf": -0.95,
            "oprf-sim": -1.00,
            "oprf-anti": -1.08,
        },
    ),
    (128, 4.0, {"trig": 36.90, "prf": 36.90, "oprf": 18.68}),
]
METHODS = {
    "trig": ("trigonometric", "iid"),
    "prf": ("positive", "iid"),
    "orf": ("positive", "orthogonal"),
    "sim": ("positive", SIMPLEX),
    "hyp": ("hyperbolic", "iid"),
    "hyp-orf": ("hyperbolic", "orthogonal"),
    "anti": ("positive", "antithetic"),
}


@pytest.mark.parametrize(("dim", "tau", "row"), TABLE)
def test_the_ranking_of_methods(dim: int, tau: float, row: dict[str, float]) -> None:
    x, y = np.zeros((2, dim))
    x[0] = y[1] = math.sqrt(tau * math.sqrt(dim))
    best = variance.optimal_proposal(x, y)
    for method, expected in row.items():
        name, sampler = METHODS[method.replace("oprf-", "").replace("oprf", "prf")]
        proposal = best if method.startswith("oprf") else None
        log = variance.relative(name, x, y, count=256, sampler=sampler, proposal=proposal, log=True)
        assert abs(log / math.log(10) - expected) <= 0.0151, method


# Tails ------------------------------------------------------------------------------------------------------------


@given(
    w=rst.points(3, 30.0),
    x=rst.points(3, 1.4),
    y=rst.points(3, 1.4),
    deviations=st.lists(numbers(1.05, 2.0), min_size=3, max_size=3),
)
def test_no_term_is_above_its_bound(w: Any, x: Any, y: Any, deviations: list[float]) -> None:
    proposal = proposals.Gaussian(np.array(deviations), np.array([0.1, -0.2, 0.3]))
    sigma = np.array(deviations)
    peak = (sigma * (x + y - proposal.mean)) / (sigma**2 - 1)
    bound = variance.term_bound("positive", x, y, proposal=proposal)
    found = estimates("positive", np.stack([w, peak]), x, y, proposal)
    assert found[0] <= bound * (1 + 1e-9)
    np.testing.assert_allclose(found[1], bound, rtol=1e-8)
    assert abs(estimates("trigonometric", w[None], x, y)[0]) <= variance.term_bound("trigonometric", x, y) * (1 + 1e-9)
    assert variance.term_bound("positive", x, y) == np.inf


BOUNDED = [
    ("positive", "iid", proposals.isotropic(1.5)),
    ("positive", "orthogonal", proposals.isotropic(1.5)),
    ("positive", "antithetic", proposals.isotropic(1.5)),
    ("trigonometric", "iid", None),
    ("hyperbolic", "iid", None),
]


@pytest.mark.parametrize("side", ["two", "lower", "upper"])
@pytest.mark.parametrize(("name", "sampler", "proposal"), BOUNDED)
def test_tails_are_below_their_bounds(name: str, sampler: Any, proposal: Any, side: Any) -> None:
    rng = np.random.default_rng(4)
    x, y = 0.3 * rng.standard_normal((2, 4))
    features = rfk.draw(name, 4, 16, sampler=sampler, proposal=proposal, scale=1.0, batch=(8000,), rng=9)
    phi = [rfk.transform(np.broadcast_to(a, (8000, 1, 4)), features, side=s) for a, s in ((x, "query"), (y, "key"))]
    ratio = (phi[0] * phi[1]).sum((-1, -2)) / math.exp(x @ y)
    for error in (0.05, 0.15, 0.3, 0.5):
        beyond = {"lower": ratio <= 1 - error, "upper": ratio >= 1 + error, "two": abs(ratio - 1) >= error}[side]
        bound = variance.tail_bound(name, x, y, error, count=16, sampler=sampler, proposal=proposal, side=side)
        testing.assert_probability_at_most(beyond, bound)


def test_the_bounds_are_the_inequalities() -> None:
    """Written out for one point each; the exponential ones take over far out."""
    x, proposal, count, error = np.array([0.4, 0.2]), proposals.isotropic(1.5), 600, 0.3
    rv = float(variance.relative("positive", x, x, count=1, sampler="iid", proposal=proposal))
    reach = float(variance.term_bound("positive", x, x, proposal=proposal)) - 1

    def bennett(b: float) -> float:
        u = b * error / rv
        return math.exp(-count * rv / b**2 * ((1 + u) * math.log1p(u) - u))

    options = {"count": count, "proposal": proposal}
    bound = {
        side: variance.tail_bound("positive", x, x, error, sampler="iid", side=side, **options)
        for side in ("lower", "upper", "two")
    }
    np.testing.assert_allclose([bound["lower"], bound["upper"]], [bennett(1.0), bennett(reach)], rtol=1e-9)
    np.testing.assert_allclose(bound["two"], bennett(1.0) + bennett(reach), rtol=1e-9)
    assert bound["lower"] <= math.exp(-count * error**2 / (2 * (rv + 1)))
    rv, count, error = float(variance.relative("positive", 2 * x, 2 * x, count=1, sampler="iid")), 400_000, 0.02
    found = variance.tail_bound("positive", 2 * x, 2 * x, error, count=count, sampler="iid", side="lower")
    np.testing.assert_allclose(found, bennett(1.0), rtol=1e-9)
    v = float(variance.relative("positive", x, x, count=20))
    np.testing.assert_allclose(variance.tail_bound("positive", x, x, 0.7, count=20), v / 0.49, rtol=1e-12)
    np.testing.assert_allclose(
        variance.tail_bound("positive", x, x, 0.7, count=20, side="upper"), v / (v + 0.49), rtol=1e-12
    )
    biased = float(variance.relative("positive", 3 * x, 3 * x, count=20, sampler="regularized"))
    np.testing.assert_allclose(
        variance.tail_bound("positive", 3 * x, 3 * x, 2.0, count=20, sampler="regularized", side="upper"),
        biased / 4,
        rtol=1e-12,
    )


@pytest.mark.parametrize("side", ["two", "lower", "upper"])
@pytest.mark.parametrize(
    ("name", "sampler", "proposal"),
    [*BOUNDED, ("hyperbolic", "orthogonal", None), ("trigonometric", "orthogonal", None), ("positive", SIMPLEX, None)],
)
def test_features_needed_is_the_smallest_count(name: str, sampler: Any, proposal: Any, side: Any) -> None:
    """Against every smaller count: one more row than whole blocks may be worse than the blocks alone."""
    x, y = 0.25 * np.random.default_rng(3).standard_normal((2, 2, 5))
    step = len(rfk.lookup(name).activations) * (2 if samplers.resolve(sampler).antithetic else 1)
    options = {"sampler": sampler, "proposal": proposal, "side": side}
    for error, confidence in ((0.5, 0.6), (0.3, 0.9)):
        found = variance.features_needed(error, confidence, name, x, y, **options)
        for i, count in enumerate(found.astype(int)):
            bounds = [
                float(variance.tail_bound(name, x[i], y[i], error, count=c, **options))
                for c in range(step, count + 1, step)
            ]
            assert [bound <= 1 - confidence for bound in bounds] == [False] * (len(bounds) - 1) + [True]


def test_features_needed_at_extremes() -> None:
    needed = variance.features_needed(0.1, 0.9, "positive", along(1e4, 4), along(1e4, 4))
    assert needed == np.inf
    x = np.array([0.3, 0.1])
    assert variance.features_needed(0.1, 0.9, "hyperbolic", x, -x, sampler="antithetic") == 4


# Attention --------------------------------------------------------------------------------------------------------


def data(length: int = 10, dim: int = 6, keys: int = 12) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(1)
    return (
        0.4 * rng.standard_normal((length, dim)),
        0.4 * rng.standard_normal((keys, dim)) + 0.2,
        rng.standard_normal((keys, 3)),
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("name", "sampler", "proposal"), [
    ("positive", "iid", proposals.Gaussian(np.linspace(0.9, 1.3, 6))),
    ("positive", "orthogonal", proposals.Gaussian(1.1, np.full(6, 0.1))),
    ("positive", SIMPLEX, None),
    ("positive", "antithetic", None),
    ("hyperbolic", "orthogonal", None),
    ("hyperbolic", "iid", proposals.Gaussian(1.1, np.full(6, 0.1))),
    ("trigonometric", "orthogonal", None),
    ("exp", "orthogonal", None),
])  # fmt: skip
def test_attention_error_is_the_sum_over_cross_moments(name: str, sampler: Any, proposal: Any, causal: bool) -> None:
    q, k, v = data()
    mask = np.ones(12, bool)
    mask[4] = False
    options: dict[str, Any] = {"count": 120, "sampler": sampler, "proposal": proposal}
    found = variance.attention_error(name, q, k, v, causal=causal, mask=mask, relative=False, scale=0.7, **options)
    kernel = rfk.lookup(name).kernel
    expected = []
    for t in range(10):
        seen = mask & (np.arange(12) <= t + 2 if causal else True)
        logs = rfk.exact_log_kernel(q[t][None], k, scale=0.7, kernel=kernel)
        weights = np.where(seen, np.exp(logs), 0) / np.exp(logs)[seen].sum()
        moments = variance.cross_moment(name, q[t][None, None], k[:, None], k[None], scale=0.7, **options)
        apart = weights[:, None] * (v - weights @ v)
        expected.append(math.sqrt(np.sum(moments * (apart @ apart.T))))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    output = rfk.exact_attention(q, k, v, causal=causal, mask=mask, scale=0.7, kernel=kernel)
    relative = variance.attention_error(name, q, k, v, causal=causal, mask=mask, scale=0.7, **options)
    np.testing.assert_allclose(relative * np.linalg.norm(output, axis=-1), found, rtol=1e-12)


def test_attention_error_against_simulation() -> None:
    """The delta method is of first order: predictions of a few percent are right to a few percent."""
    q, k, v = data()
    proposal = variance.optimal_proposal(q, k, scale=6**-0.5)
    predicted = variance.attention_error("positive", q, k, v, count=1200, sampler="antithetic", proposal=proposal)
    features = rfk.draw("positive", 6, 1200, sampler="antithetic", proposal=proposal, batch=(500,), rng=2)
    out = rfk.attention(np.broadcast_to(q, (500, 10, 6)), k, v, features, backend="numpy")
    exact = rfk.exact_attention(q, k, v)
    squares = ((out - exact) ** 2).sum(-1) / (exact**2).sum(-1)
    errors = abs(squares.mean(0) - predicted**2)
    assert np.all(errors <= 6 * squares.std(0) / math.sqrt(500) + 0.05 * predicted**2)
    assert predicted.max() < 0.1


def test_attention_error_at_extremes() -> None:
    q, k, v = data()
    k[3] = 200.0
    with np.errstate(all="raise", under="ignore"):
        found = variance.attention_error("positive", 50 * q, k, v, count=48)
    assert np.all(found >= 0)
    assert not np.any(np.isnan(found))
    alone = variance.attention_error("positive", q, k[:1], v[:1], count=48)
    np.testing.assert_allclose(alone, 0, atol=1e-12)
    nothing = variance.attention_error("positive", q, k, v, count=48, mask=np.zeros(12, bool))
    np.testing.assert_array_equal(nothing, 0)
    batch = variance.attention_error("positive", np.stack([q, 2 * q])[:, None], k[None], v[None, None], count=48)
    assert batch.shape == (2, 1, 10)


# What is refused --------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    x = np.array([0.3, 0.2])
    mixture = proposals.Mixture(np.zeros((2, 2)), np.ones(2))
    bare = rfk.FeatureMap((lambda xp, u, a: xp.maximum(u, 0),))
    other = samplers.Sampler("mine", lambda normal, count, dim: normal((count, dim)))
    refused: list[tuple[str, Any, dict[str, Any]]] = [
        ("mixture", "positive", {"proposal": mixture}),
        ("not isotropic", "positive", {"proposal": TILTED}),
        ("under a proposal with a mean", "hyperbolic", {"proposal": proposals.Gaussian(1.1, x)}),
        ("'mine'", "positive", {"sampler": other}),
        ("multiple of 4", "hyperbolic", {"sampler": "antithetic", "count": 6}),
        ("count must be a positive integer", "positive", {"count": 0}),
        ("log_variance", bare, {"sampler": "iid"}),
        ("'sphere'", "positive", {"sampler": "regularized", "proposal": proposals.isotropic(1.2)}),
    ]
    for message, name, options in refused:
        with pytest.raises(ValueError, match=message):
            variance.relative(name, x, x, **{"count": 8, **options})
    for sampler in (other, *map(samplers.resolve, ("stratified", "sobol"))):  # coupled in one dimension, too
        with pytest.raises(ValueError, match="closed form is known for the coupling"):
            variance.relative("positive", x[:1], x[:1], count=8, sampler=sampler)
    for message, call in (
        ("confidence", lambda: variance.features_needed(0.1, 1.0, "positive", x, x)),
        ("error", lambda: variance.tail_bound("positive", x, x, 0.0, count=8)),
        ("error must be a positive", lambda: variance.tail_bound("positive", x, x, True, count=8)),
        ("scale .* got None", lambda: variance.relative("positive", x, x, count=8, scale=None)),
        ("scale .* got None", lambda: variance.cross_moment("positive", x, x, x, count=8, scale=None)),
        ("scale .* got None", lambda: variance.term_bound("positive", x, x, scale=None)),
        ("scale .* got None", lambda: variance.tail_bound("positive", x, x, 0.1, count=8, scale=None)),
        ("scale .* got None", lambda: variance.features_needed(0.1, 0.9, "positive", x, x, scale=None)),
        ("scale .* got None", lambda: variance.optimal_proposal(x, x, scale=None)),
        ("side", lambda: variance.tail_bound("positive", x, x, 0.1, count=8, side="both")),
        ("biased", lambda: variance.features_needed(0.1, 0.9, "positive", x, x, sampler="regularized")),
        ("kind", lambda: variance.coupling_moment("haar", 1.0, 4)),
        ("at least 2", lambda: variance.coupling_moment("simplex", 1.0, 1)),
        ("log=True", lambda: variance.coupling_moment("orthogonal", -1.0, 4, log=True)),
        (
            "infinite variance",
            lambda: variance.attention_error(
                "positive", x[None], x[None], x[None], count=8, proposal=proposals.Gaussian(0.6)
            ),
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for name, pair in (("x", (np.ma.array(x), x)), ("y", (x, np.ma.array(x)))):
        with pytest.raises(TypeError, match=f"{name} must be a plain array, got MaskedArray"):
            variance.features_needed(0.1, 0.9, "positive", *pair)


def test_gaussian_features_err_as_trigonometric_ones() -> None:
    x, y = np.array([0.3, 0.2, 0.1]), np.array([-0.4, 0.2, 0.5])
    for sampler in ("iid", "orthogonal"):
        errors = [variance.relative(name, x, y, count=12, sampler=sampler) for name in ("gaussian", "trigonometric")]
        assert errors[0] == errors[1]
    with pytest.raises(ValueError, match="exponential"):
        variance.relative("gaussian", x, y, count=12, proposal=proposals.isotropic(1.2))


def test_a_map_may_bring_its_own_variance() -> None:
    """The log of the variance of max(w·x, 0) max(w·y, 0) for x = y: E g⁴/2 − (E g²/2)² of a normal g of variance |x|²."""
    own = rfk.FeatureMap(
        (lambda xp, u, a: xp.maximum(u, 0),),
        nonnegative=True,
        kernel=rfk.lookup("relu").kernel,
        log_variance=lambda xp, dot, xx, yy: xp.log(1.25 * xx * yy),
    )
    x = np.array([0.3, 0.2])
    np.testing.assert_allclose(variance.relative(own, x, x, count=10, sampler="iid"), 1.25 / 0.25 / 10, rtol=1e-12)
    with pytest.raises(ValueError, match="sampler='iid'"):
        variance.relative(own, x, x, count=10)
    with pytest.raises(ValueError, match="under a proposal"):
        variance.relative(own, x, x, count=10, sampler="iid", proposal=proposals.isotropic(1.2))
    assert variance.features_needed(0.5, 0.9, own, x, x, sampler="iid", side="lower") < variance.features_needed(
        0.5, 0.9, own, x, x, sampler="iid"
    )
