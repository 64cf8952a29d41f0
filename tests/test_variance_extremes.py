"""Errors in closed form where norms are large, differences small, or values in odd units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rfkernels import proposals, samplers, variance
from rfkernels.variance._terms import bennett, log_most


@pytest.mark.parametrize("dim", [2, 3, 16, 63])
@pytest.mark.parametrize("sampler", ["orthogonal", "simplex", samplers.antithetic("simplex")])
@pytest.mark.parametrize("name", ["positive", "hyperbolic", "trigonometric"])
@pytest.mark.parametrize("norm", [1e3, 1e6, 1e100])
def test_coupled_rows_at_any_norm(name: str, sampler: Any, dim: int, norm: float) -> None:
    """What is coupled is nothing beside the moment of a row, and takes neither time nor memory that grows with s."""
    x = np.full(dim, norm / math.sqrt(4 * dim))
    y = -x if name == "trigonometric" else x
    options: dict[str, Any] = {"count": 4 * dim, "log": True}
    apart = samplers.antithetic("iid") if "antithetic" in getattr(sampler, "name", sampler) else "iid"
    found, alone = (variance.relative(name, x, y, sampler=s, **options) for s in (sampler, apart))
    assert found == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("dim", [3, 65, 1023])
def test_orthogonal_moment_far_out(dim: int) -> None:
    mp = pytest.importorskip("mpmath").mp
    with mp.workdps(40):
        for s in (8191.0, 8193.0, 17000.0, 1e5):
            exact = mp.log(mp.hyp1f1(dim, mp.mpf(dim) / 2, mp.mpf(s) / 2, maxterms=10**6)) - s
            found = float(variance.coupling_moment("orthogonal", s, dim, log=True))
            assert abs(found - exact) <= 1e-14 * s


@pytest.mark.parametrize("s", [3000.0, 8000.0, 9000.0, 1e6, 1e12])
def test_moment_of_equal_directions_in_the_plane(s: float) -> None:
    """C at c = 1 is (2/π) ∫ cos ψ e^(−x (1 − cos ψ)) (1 + x (1 + cos ψ)) dψ / (4/π) over a quarter turn, x = s/2."""
    width = 14 / math.sqrt(s / 2)
    points, weights = np.polynomial.legendre.leggauss(400)
    angles = width * (1 + points) / 2
    x = s / 2
    inner = np.cos(angles) * np.exp(-2 * x * np.sin(angles / 2) ** 2) * (1 + x * (1 + np.cos(angles)))
    expected = math.log(float(np.sum(weights * inner)) * width / 2)
    assert variance.coupling_moment(1.0, s, 2, log=True) == pytest.approx(expected, abs=1e-6)


def test_cross_moments_far_out() -> None:
    x = np.array([[200.0, 0.0, 0.0], [3e5, 0.0, 0.0]])
    other = np.array([0.0, 1.0, 0.0])
    found = variance.cross_moment("positive", x, -x + other, -3 * x, count=3, sampler="orthogonal")
    assert np.all(np.isfinite(found))


@pytest.mark.parametrize("unit", [1e-320, 1e-170, 1e160, 1e300])
def test_the_unit_of_values_does_not_matter(unit: float) -> None:
    q, k, v = np.random.default_rng(0).uniform(-1, 1, (3, 12, 4))
    v = np.round(v * 8) / 8 * 1e3
    plain = variance.attention_error("positive", q, k, v, count=32)
    found = variance.attention_error("positive", q, k, v * unit, count=32)
    np.testing.assert_allclose(found, plain, rtol=1e-9 if unit > 1e-300 else 1e-2)
    absolute = variance.attention_error("positive", q, k, v, count=32, relative=False)
    found = variance.attention_error("positive", q, k, v * unit, count=32, relative=False)
    np.testing.assert_allclose(found / unit, absolute, rtol=1e-9 if unit > 1e-300 else 1e-2)


@pytest.mark.parametrize("dim", [2, 3, 64, 65, 1024])
def test_moments_of_cosines_are_right_or_nan(dim: int) -> None:
    mp = pytest.importorskip("mpmath").mp
    with mp.workdps(60):
        for s in (-0.5, -4.0, -12.0, -20.0, -40.0, -100.0):
            exact = mp.hyp1f1(dim, mp.mpf(dim) / 2, mp.mpf(s) / 2) * mp.exp(-s)
            found = float(variance.coupling_moment("orthogonal", s, dim))
            assert abs(found - exact) <= 1e-3 * abs(exact) or (math.isnan(found) and s < -12)


@pytest.mark.parametrize("name", ["hyperbolic", "trigonometric"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm", [1e-7, 1e-3, 0.05])
def test_simplex_rows_of_even_features_at_small_norms(name: str, dtype: Any, norm: float) -> None:
    """The first order of 1 − C is odd in the cosine: what is left of it at both signs is rounding alone."""
    dim = 8
    x = np.zeros(dim, dtype)
    x[0] = norm

    def excess(x: Any) -> float:
        both = [variance.relative(name, x, 0 * x, count=2 * dim, sampler=s, log=True) for s in ("simplex", "iid")]
        return float(both[0] - both[1])

    reference = np.zeros(dim)
    reference[0] = 0.01
    assert excess(x) == pytest.approx(excess(reference), abs=1e-3)


def test_points_have_coordinates() -> None:
    nothing = np.zeros((3, 0))
    for function in (variance.relative, variance.cross_moment):
        given = (nothing, nothing) if function is variance.relative else (nothing, nothing, nothing)
        with pytest.raises(ValueError, match=r"x must be at least one wide, got shape \(3, 0\)"):
            function("positive", *given, count=4)
    with pytest.raises(ValueError, match=r"x must be at least one wide"):
        variance.features_needed(0.1, 0.9, "positive", nothing, nothing)
    with pytest.raises(ValueError, match=r"q must be at least one wide"):
        variance.attention_error("positive", nothing, nothing, np.ones((3, 2)), count=4)


@pytest.mark.parametrize("dim", [1, 2, 8, 64, 65, 1024])
def test_ratios_that_are_at_most_one_are(dim: int) -> None:
    s = np.concatenate([[0.0], np.logspace(-16, 3, 400)])
    assert np.all(variance.regularized_ratio(s, dim) <= 1)
    for kind in ("orthogonal", "simplex") if dim > 1 else ():
        assert np.all(variance.coupling_moment(kind, s, dim) <= 1)


@pytest.mark.parametrize("dim", [3000, 20_000])
def test_means_over_directions_in_many_dimensions(dim: int) -> None:
    """What is integrated is as narrow as 1/√dim: against the power series, whose terms are all positive."""
    half, s, c = dim / 2, 9.0, 0.5

    def rising(a: float, k: int) -> float:
        return math.lgamma(a + k) - math.lgamma(a)

    norms = [math.exp(k * math.log(half * s / 2) - math.lgamma(k + 1) - rising(half, k) - s / 2) for k in range(60)]
    assert variance.regularized_ratio(s, dim) == pytest.approx(sum(norms), rel=1e-9)
    sines = [math.exp(rising(half, j / 2) - rising(half + 1 / 2, j / 2)) for j in range(60)]  # E sin(2φ)^j
    powers = [sum(math.comb(k, j) * c**j * sines[j] for j in range(k + 1)) for k in range(60)]
    terms = [math.exp(rising(dim, k) - rising(half, k) - math.lgamma(k + 1) - s) * (s / 2) ** k for k in range(60)]
    expected = sum(a * b for a, b in zip(terms, powers, strict=True))
    assert variance.coupling_moment(c, s, dim) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("error", [1e-6, 0.3, 1e3])
def test_rates_of_bennett_against_mpmath(dtype: Any, error: float) -> None:
    """RV/b² · h(b ε/RV), h(u) = (1 + u) log(1 + u) − u, whose u may be near to 0 or beyond any number."""
    mp = pytest.importorskip("mpmath").mp
    log_variance, log_reach = (a.reshape(-1).astype(dtype) for a in np.meshgrid(np.r_[-30:80:7], np.r_[-30:300:11]))
    found, info = bennett(np, log_variance, log_reach, error), np.finfo(dtype)
    with mp.workdps(400):
        for rate, v, b in zip(found, log_variance, log_reach, strict=True):
            u = mp.exp(mp.mpf(float(b)) - float(v)) * error
            exact = mp.mpf(error) ** 2 / mp.exp(float(v)) * ((1 + u) * mp.log(1 + u) - u) / u**2
            expected = min(float(exact), math.exp(log_most(np, dtype)))
            assert float(rate) == pytest.approx(expected, rel=float(500 * info.eps), abs=float(info.tiny))


@pytest.mark.parametrize("side", ["two", "lower", "upper"])
@pytest.mark.parametrize("proposal", [None, proposals.isotropic(1.1)], ids=["none", "wide"])
@pytest.mark.parametrize("name", ["positive", "hyperbolic", "trigonometric"])
@pytest.mark.parametrize("s", [0.0, 1e-12, 1e-3, 1.0, 12.0, 20.0, 30.0, 60.0, 400.0])
def test_bounds_in_float32_are_those_in_float64(name: str, proposal: Any, side: Any, s: float) -> None:
    """Where u of Bennett's inequality, or a rate, is beyond the range of float32, or nothing varies at all."""
    jnp = pytest.importorskip("jax.numpy")
    x = np.array([math.sqrt(s) / 2, 0, 0, 0], np.float32)
    y = -x if name == "trigonometric" else x
    options: dict[str, Any] = {"sampler": "iid", "proposal": proposal, "side": side}
    exact = x.astype(float), y.astype(float)
    for error in (1e-3, 0.5, 3.0):
        expected = variance.tail_bound(name, *exact, error, count=64, **options)
        assert variance.tail_bound(name, x, y, error, count=64, **options) == pytest.approx(expected, rel=1e-3)
    traced = variance.tail_bound(name, jnp.asarray(x), jnp.asarray(y), 3.0, count=64, **options)
    assert float(traced) == pytest.approx(expected, rel=1e-3)
    counts = [variance.features_needed(3.0, 0.9, name, *pair, **options) for pair in ((x, y), exact)]
    assert counts[0] == pytest.approx(counts[1], rel=1e-3)


@pytest.mark.parametrize("size", [1e80, 1e140, 1e160])
def test_proposals_of_any_width(size: float) -> None:
    """The volume (ρ/4)^½ of each axis where its square overflows; NaN, and not exact, where ρ itself does."""
    options: dict[str, Any] = {"sampler": "iid", "proposal": proposals.Gaussian(size)}
    x = np.full(3, 0.5)
    with np.errstate(over="ignore", invalid="ignore"):
        found = variance.relative("positive", x, x, count=1, log=True, **options)
        bound = variance.tail_bound("positive", x, x, 0.1, count=1, **options)
    if size > 1e154:
        assert np.isnan([found, bound]).all()
    else:
        assert found == pytest.approx(1.5 * math.log(size / 2) + 1.5 * math.log(size))
        assert bound == 1
