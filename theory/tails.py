"""How improbable large errors are: theorem 3 of Performers, lower tails, and tails under a wider proposal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

import rfkernels as rfk
from rfkernels import FeatureMap, Features, Side
from rfkernels.proposals import Proposal
from theory import _cubature as cubature
from theory import _isotropic as isotropic
from theory._cubature import Array, Grid, Pairs
from theory._distributions import bounded, largest_term, lognormal, relative_variance, sums
from theory._verdict import Measured, Result, Verdict, greatest

STATEMENT = r"""
**Theorem 3**, for the regularised kernel $\mathrm{SMREG}$ (rows on the sphere of radius $\sqrt d$),
$a > \mathrm{SMREG}$, $\theta > 0$ and $m \le d$ rows: with $X$ what a row estimates and
$M(\theta) = \mathbb{E}\, e^{\theta X}$,

$$P[\mathrm{iid} > a] \le e^{-\theta m a} M(\theta)^m , \qquad
P[\mathrm{ort} > a] \le e^{-\theta m a} \left( M(\theta)^m - \frac{\theta^4 m (m - 1)}{4 (d + 2)}
e^{-m (|x|^2 + |y|^2)/2} |x + y|^4 \right) .$$

True: $\mathbb{E}\, e^{\theta \sum X_i}$ of orthogonal rows is below that difference wherever it was integrated. Loose:
the same terms give, with $\Lambda = \exp(-(|x|^2 + |y|^2)/2)$, the larger gap
$\frac{\theta^2 m (m - 1)}{d + 2} (\mathrm{SMREG} - \Lambda)^2$, of second order in $\theta$, which is checked as well.

**Lower tails.** Estimates of positive maps from $m$ independent rows of relative variance $\mathrm{RV}$ have

$$P[\hat K \le (1 - \varepsilon) K] \le \exp\left( -\frac{m \varepsilon^2}{2 (\mathrm{RV} + 1)} \right) .$$

**A wider proposal.** Rows from $N(0, \sigma^2 I)$ with $\sigma > 1$ bound every term of positive features,

$$0 < X / K \le M_b = \sigma^d \exp\left( \frac{s}{2 (\sigma^2 - 1)} \right), \qquad
P[|\hat K / K - 1| > \varepsilon] \le
2 \exp\left( -\frac{m \varepsilon^2}{2 \mathrm{RV} + 2 M_b \varepsilon / 3} \right)$$

(Bernstein). With rows from $N(0, I)$ a term is lognormal, $M(\theta)$ is infinite, and no bound that is exponential in
$a$ can hold for the upper tail.
"""

CITATION = (
    "Choromanski et al., Rethinking Attention with Performers, arXiv 2009.14794, theorem 3; "
    "Likhosherstov et al., Chefs' Random Tables, arXiv 2205.15317, for bounded features under a wider proposal. "
    "The bounds of lower tails and of Bernstein are the classical ones with the constants of these features."
)

ROUNDING = 1e-11
"""Claimed precision of probabilities and of the library's terms."""

SPHERES = ((2, 2), (3, 2), (3, 3), (4, 4), (8, 2))
NUMBERS = ((0.5, 0.5), (0.7, 0.2), (0.9, -0.3))
THETAS = (0.01, 0.05, 0.2, 0.5)

Gap = Callable[[float, int, int, float, float], float]


class Case(NamedTuple):
    """Numbers x and y, in a dimension, with m rows: Λ, s, and X for the first m coordinates of the sphere."""

    factor: float
    square: float
    regularised: float
    together: Array
    weights: Array
    alone: Array
    alone_weights: Array


def case(feature_map: FeatureMap, x: float, y: float, dim: int, count: int, nodes: int = 24) -> Case:
    """Evaluate the map on the sphere of radius √dim, for points on one line."""
    points = Pairs(np.array([[x]]), np.array([[y]]))

    def terms(projections: Array) -> Array:
        found: Array = cubature.estimates(feature_map, Grid(projections.reshape(-1, 1), np.ones(1)), points)[0]
        return found

    several, single = isotropic.coordinates(dim, count, nodes), isotropic.cosine(dim, 60)
    root = math.sqrt(dim)
    together = terms(root * several.rows).reshape(-1, count).sum(1)
    alone = terms(root * single.nodes)
    factor = math.exp(-(x * x + y * y) / 2)
    mean = float(single.weights @ alone)
    return Case(factor, (x + y) ** 2, mean, together, several.weights, alone, single.weights)


def theorem_3(theta: float, dim: int, count: int, factor: float, square: float) -> float:
    """Return the gap of the theorem between the moments of independent and of orthogonal rows."""
    return theta**4 * count * (count - 1) / (4 * (dim + 2)) * factor**count * square**2


def by_quadrature(feature_map: FeatureMap, gap: Gap) -> list[Measured]:
    """Compare moment generating functions of orthogonal rows, integrated over the sphere, with the bounds."""
    stated = sharper = -math.inf
    mean = 0.0
    for dim, count in SPHERES:
        for x, y in NUMBERS:
            here = case(feature_map, x, y, dim, count)
            mean = greatest(mean, abs(float(here.weights @ here.together) / (count * here.regularised) - 1))
            for theta in THETAS:
                orthogonal = float(here.weights @ np.exp(theta * here.together))
                independent = float(here.alone_weights @ np.exp(theta * here.alone)) ** count
                saved = independent - orthogonal
                own = theta**2 * count * (count - 1) / (dim + 2) * (here.regularised - here.factor) ** 2
                stated = greatest(stated, (gap(theta, dim, count, here.factor, here.square) - saved) / independent)
                sharper = greatest(sharper, (own - saved) / independent)
    return [
        Measured("quadrature", "theorem 3 exceeded by", max(stated, 0.0), ROUNDING),
        Measured("quadrature", "the gap of second order exceeded by", max(sharper, 0.0), ROUNDING),
        Measured("quadrature", "mean of orthogonal rows", mean, ROUNDING),
    ]


def lower(m: int, error: float, second: float) -> float:
    """Return the bound of the lower tail from the second moment RV + 1."""
    return math.exp(-m * error**2 / (2 * second))


def bernstein(m: int, error: float, variance: float, most: float) -> float:
    """Return Bernstein's bound for both tails together."""
    return 2 * math.exp(-m * error**2 / (2 * variance + 2 * most * error / 3))


BOUNDED = ((0.5, 1.5, 2), (1.0, 1.3, 4), (2.0, 2.0, 1), (4.0, 1.8, 16))


def of_lower_tails(bound: Callable[[int, float, float], float]) -> Measured:
    """Compare probabilities, rounded so that they can only be too large, with the bound."""
    worst = -math.inf
    for s in (0.25, 1.0, 3.0):
        for m in (1, 2, 8, 64):
            for error in (0.1, 0.3, 0.7):
                found = sums(lognormal(s), m, m * (1 - error), upwards=False)
                worst = greatest(worst, found - bound(m, error, math.exp(s)))
    return Measured("convolution", "lower tail above its bound by", max(worst, 0.0), ROUNDING)


def of_bounded_terms(bound: Callable[[int, float, float, float], float]) -> list[Measured]:
    """Compare both tails under a wider proposal with Bernstein's bound, and the moments behind it with quadrature."""
    worst, off = -math.inf, 0.0
    for s, variance, dim in BOUNDED:
        most, spread = largest_term(s, variance, dim), relative_variance(s, variance, dim)
        levels = np.exp(np.linspace(math.log(most), math.log(most) - 40, 40001))[::-1]
        beyond = (1 - bounded(s, variance, dim)(levels)) * levels
        logs = np.log(levels)
        off = greatest(off, abs(float(np.trapezoid(beyond, logs)) - 1))
        off = greatest(off, abs(float(np.trapezoid(2 * levels * beyond, logs)) / (spread + 1) - 1))
        for m in (4, 32, 128):
            for error in (0.2, 0.5):
                below = sums(bounded(s, variance, dim), m, m * (1 - error), upwards=False)
                above = 1 - sums(bounded(s, variance, dim), m, m * (1 + error), upwards=True)
                worst = greatest(worst, below + above - bound(m, error, spread, most))
    return [
        Measured("convolution", "both tails above Bernstein's bound by", max(worst, 0.0), ROUNDING),
        Measured("convolution", "mean and second moment of bounded terms", off, 1e-4),
    ]


def of_the_library(feature_map: FeatureMap, proposal: Callable[[float], Proposal]) -> Measured:
    """Compare the library's terms with the quadratic whose top is M_b, and that top with what is stated."""
    worst = 0.0
    for variance, dim in ((1.2, 2), (1.8, 3), (4.0, 16)):
        rng = np.random.default_rng(0)
        x, y = 0.5 * rng.standard_normal((2, dim))
        a, z = (1 - 1 / variance) / 2, x + y
        normal = np.concatenate([rng.standard_normal((200, dim)), z[None] / (2 * a) / math.sqrt(variance)])
        drawn, log_weight = rfk.proposals.propose(np, proposal(variance), normal, rng.standard_normal)
        features = Features(feature_map, drawn, log_weight, Side(), Side(), np.asarray(1.0))
        parts = [rfk.transform(point, features, side=side, log=True)[0][0] for point, side in _sides(x, y)]
        terms = sum(parts) + math.log(features.rows) - x @ y
        away = np.sum((normal * math.sqrt(variance) - z / (2 * a)) ** 2, -1)
        stated = math.log(largest_term(float(z @ z), variance, dim)) - a * away
        worst = greatest(worst, cubature.largest(terms - stated), float(np.argmax(terms) != len(terms) - 1))
    return Measured("float64", "log X/K of the library against log M_b − a|w − z/2a|²", worst, 1e-12)


def _sides(x: Array, y: Array) -> tuple[tuple[Array, Any], tuple[Array, Any]]:
    return (x[None], "query"), (y[None], "key")


def findings(feature_map: FeatureMap) -> tuple[str, ...]:
    """Say how loose theorem 3 is, and what the upper tail of unbounded features is like."""
    from scipy.special import log_ndtr

    here = case(feature_map, 0.9, 0.9, 5, 5, nodes=20)
    theta = 0.5
    orthogonal = float(here.weights @ np.exp(theta * here.together))
    independent = float(here.alone_weights @ np.exp(theta * here.alone)) ** 5
    gap = theorem_3(theta, 5, 5, here.factor, here.square)
    found = [
        f"Theorem 3 at d = m = 5, x = y of length 0.9, θ = 0.5: orthogonal rows have E exp(θ Σ X) = {orthogonal:.4g}; "
        f"the theorem says at most {independent:.4g} − {gap:.1g}."
    ]
    for level in (4.0, 32.0, 256.0):
        m, s = 16, 1.0
        jump = math.log(m) + float(log_ndtr(-(math.log(m * level) + s / 2) / math.sqrt(s)))
        found.append(
            f"Positive features, s = 1, m = 16: one large term alone makes P[K̂ > {level:g} K] about exp({jump:.1f}), "
            f"that is, exp(−{-jump / level:.3f} · {level:g}): no rate in the level can be fixed."
        )
    m, error = 128, 0.5
    for s, variance, dim in ((1.0, 1.5, 4), (4.0, 1.39, 16)):
        distribution = bounded(s, variance, dim)
        both = 1 - sums(distribution, m, m * (1 + error), upwards=True)
        both += sums(distribution, m, m * (1 - error), upwards=False)
        stated = bernstein(m, error, relative_variance(s, variance, dim), largest_term(s, variance, dim))
        found.append(
            f"s = {s:g}, σ² = {variance}, d = {dim}, m = {m}: an error of {error:g} K has probability at most "
            f"{both:.2g} by convolution, and at most {stated:.2g} by Bernstein, whose M_b is "
            f"{largest_term(s, variance, dim):.3g}."
        )
    return tuple(found)


def check(
    feature_map: FeatureMap | None = None,
    proposal: Callable[[float], Proposal] = rfk.proposals.isotropic,
    gap: Gap = theorem_3,
    lower_bound: Callable[[int, float, float], float] = lower,
    both_bound: Callable[[int, float, float, float], float] = bernstein,
) -> Verdict:
    """Put the bounds to the proof.

    Parameters
    ----------
    feature_map : FeatureMap, optional
        The map; "positive" by default.
    proposal : callable, optional
        The proposal of a variance.
    gap, lower_bound, both_bound : callable, optional
        The gap of theorem 3 from θ, d, m, Λ and s; the bound of the lower tail from m, ε and RV + 1; Bernstein's
        from m, ε, RV and M_b.
    """
    chosen = rfk.lookup("positive") if feature_map is None else feature_map
    measured = [*by_quadrature(chosen, gap), of_lower_tails(lower_bound), *of_bounded_terms(both_bound)]
    return Verdict((*measured, of_the_library(chosen, proposal)), findings(chosen))


def figure() -> Figure:
    """Draw lower tails and both tails under a wider proposal, with their bounds, against the number of rows."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    rows = [1, 2, 4, 8, 16, 32, 64, 128]
    for i, s in enumerate((0.5, 1.0, 2.0)):
        left.semilogy(rows, [sums(lognormal(s), m, m / 2, False) for m in rows], color=f"C{i}", label=f"s = {s:g}")
        left.semilogy(rows, [lower(m, 0.5, math.exp(s)) for m in rows], "--", color=f"C{i}")
    s, variance, dim = 1.0, 1.5, 4
    distribution = bounded(s, variance, dim)
    spread, most = relative_variance(s, variance, dim), largest_term(s, variance, dim)
    for i, error in enumerate((0.5, 1.0)):
        found = [
            1 - sums(distribution, m, m * (1 + error), True) + sums(distribution, m, m * (1 - error), False)
            for m in rows
        ]
        right.semilogy(rows, found, color=f"C{i}", label=f"error of {error:g} K")
        right.semilogy(rows, [bernstein(m, error, spread, most) for m in rows], "--", color=f"C{i}")
    left.set(title="P[K̂ ≤ K/2]: convolution (line), bound (dashed)", xlabel="rows", ylim=(1e-8, 2))
    right.set(title=f"both tails, σ² = {variance}, d = {dim}, s = {s:g}", xlabel="rows", ylim=(1e-8, 3))
    left.legend(fontsize="small")
    right.legend(fontsize="small")
    return drawn


RESULT = Result("tails", STATEMENT, CITATION, check, figure)
