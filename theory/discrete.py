"""What estimates of random monomials are worth: Poisson and geometric features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import sympy as sp
from matplotlib.figure import Figure
from scipy import stats

from rfkernels import materialized
from rfkernels.materialized import Monomials, monomials
from theory import _cubature as cubature
from theory import _multiprecision as multiprecision
from theory._cubature import Array, Pairs
from theory._verdict import Measured, Result, Verdict, greatest

STATEMENT = r"""
With $K = \exp(x \cdot y)$ and $L = x \cdot y$, one column of each of these is an unbiased estimate $\hat K$ of $K$,
with

$$
\mathrm{Poisson:}\ \frac{E \hat K^2}{K^2} = \exp \sum_l \frac{(\lambda_l - x_l y_l)^2}{\lambda_l} , \qquad
\mathrm{geometric:}\ \frac{E \hat K^2}{K^2} =
e^{-2L} \prod_l \frac{1}{p_l} I_0\!\left(\frac{2 |x_l y_l|}{\sqrt{1 - p_l}}\right) .
$$

Consequences:

- The best rates are $\lambda_l = |x_l y_l|$, which leave $\exp(2 \sum_l (|x_l y_l| - x_l y_l))$: nothing is random if
  no $x_l y_l$ is negative, and no other law of the exponents does better, by the inequality of Cauchy and Schwarz. The
  best single rate is $\sqrt{\sum_l x_l^2 y_l^2 / d}$.
- None is better than positive features everywhere. At $y = -x$, where those are exact, all have at least
  $E \hat K^2 / K^2 = \exp(4 |x|^2)$, whatever their parameters.
"""

CITATION = (
    "Likhosherstov et al., Chefs' Random Tables, arXiv 2205.15317, with one parameter for all coordinates. "
    "Those of each coordinate and the consequences are derived here."
)

SUMMATION, MULTIPRECISION = 1e-10, 1e-12
"""Claimed precision, relative to K or to the variance."""

TERMS = 60
"""Exponents from 0 to this are summed over; what is left out is measured as "tail"."""

Weights = Callable[[Any, Any, Any], Any]

LAWS: tuple[tuple[monomials.Law, Any], ...] = (
    ("poisson", np.array([0.7, 0.7])),
    ("poisson", np.array([0.4, 1.3])),
    ("geometric", np.array([0.4, 0.4])),
    ("geometric", np.array([0.6, 0.25])),
)

EXTREME = ((6.0, 5.0), (6.0, -5.0), (1e-3, 2e-3), (20.0, 1.0), (-0.5, 3.0))
"""Numbers x and y whose relative variances differ by many orders of magnitude."""


def probabilities(law: str, exponents: Any, parameter: Array) -> Array:
    """Return q(α) of multi-indices, from SciPy's laws."""
    each = stats.poisson.pmf(exponents, parameter) if law == "poisson" else stats.geom.pmf(exponents + 1, parameter)
    found: Array = np.prod(each, -1)
    return found


def grid(law: monomials.Law, parameter: Array, weights: Weights) -> tuple[Monomials, Array]:
    """Return features of all multi-indices of two coordinates, one each, and the probability that each is drawn."""
    axes = np.meshgrid(np.arange(TERMS + 1), np.arange(TERMS + 1), indexing="ij")
    exponents = np.stack(axes, -1).reshape(-1, 2)
    features = Monomials(law, exponents, weights(law, exponents, parameter), parameter, np.asarray(1.0))
    return features, probabilities(law, exponents, parameter)


def column_estimates(features: Any, points: Pairs) -> Array:
    """Return φ_j(x) φ_j(y) for each pair and column, (pairs, count)."""
    log_x, sign_x = materialized.transform(points.x, features, side="query", log=True)
    log_y, sign_y = materialized.transform(points.y, features, side="key", log=True)
    found: Array = sign_x * sign_y * np.exp(log_x + log_y)
    return found


def tail(law: str, parameter: Array, points: Pairs) -> float:
    """Bound what exponents above `TERMS` add to E (K̂/K)²: for each coordinate the first such term times all sums.

    A sum of n > N of rⁿ/n! is at most r^{N+1}/(N+1)! times the whole sum, and so is one of rⁿ/n!².
    """
    products, n = np.abs(points.x * points.y), TERMS + 1
    if law == "poisson":
        ratio = products**2 / parameter
        log_first, log_sums = n * np.log(ratio) - math.lgamma(n + 1), parameter + ratio
    else:
        ratio = products**2 / (1 - parameter)
        log_first, log_sums = n * np.log(ratio) - 2 * math.lgamma(n + 1), 2 * np.sqrt(ratio) - np.log(parameter)
    return float(np.max(np.sum(np.exp(log_first), -1) * np.exp(np.sum(log_sums + 2 * products, -1))))


def by_summation(weights: Weights) -> list[Measured]:
    """Sum the library's columns over the law of their exponents, and compare with its closed forms."""
    points, measured = cubature.pairs((0.1, 0.7, 1.5)), []
    kernel = np.exp(np.sum(points.x * points.y, -1))
    for law, parameter in LAWS:
        features, probability = grid(law, parameter, weights)
        found = column_estimates(features, points) / kernel[:, None]
        stated = features.count * materialized.relative_error(points.x, points.y, features)
        subject = f"{law} {', '.join(str(p) for p in parameter)}"
        mean, variance = found @ probability, found**2 @ probability - 1
        measured += [
            Measured("summation", f"{subject}: mean", cubature.largest(mean - 1), SUMMATION),
            Measured("summation", f"{subject}: variance", cubature.largest(variance / stated - 1), SUMMATION),
            Measured("tail", subject, tail(law, parameter, points), SUMMATION),
        ]
    return measured


def by_many_digits() -> list[Measured]:
    """Compare the library's closed forms with sums of many digits, at extreme points of one coordinate."""
    errors: dict[str, float] = {}
    with mp.workdps(2 * multiprecision.DIGITS):
        for law, parameter in (("poisson", 0.7), ("poisson", 31.0), ("geometric", 0.1), ("geometric", 0.9)):
            errors[f"{law} {parameter}"] = greatest(*(_series(law, parameter, x, y) for x, y in EXTREME))
    return [Measured("mpmath", name, error, MULTIPRECISION) for name, error in errors.items()]


def _series(law: Any, parameter: float, x: float, y: float) -> float:
    dot, total, n = mp.mpf(x) * mp.mpf(y), mp.mpf(0), 0
    given = mp.mpf(parameter)
    while True:
        if law == "poisson":
            term = mp.exp(given) * (dot**2 / given) ** n / mp.factorial(n)
        else:
            term = (dot**2 / (1 - given)) ** n / mp.factorial(n) ** 2 / given
        total, n = total + term, n + 1
        if term < total * mp.mpf(10) ** -multiprecision.DIGITS:
            break
    exact = mp.log(total * mp.exp(-2 * dot) - 1)
    features = Monomials(law, np.zeros((1, 1), int), np.zeros(1), np.array([parameter]), np.asarray(1.0))
    stated = float(materialized.relative_error(np.array([x]), np.array([y]), features, log=True))
    return float(abs(stated - exact) / max(1, abs(exact)))


def by_symbols() -> list[Measured]:
    """Prove the sums and the consequences."""
    a, b, rate = sp.symbols("a b lambda", positive=True)
    n, dot = sp.Symbol("n", integer=True, nonnegative=True), sp.Symbol("L", real=True)
    poisson = sp.summation(sp.exp(rate) * (a**2 / rate) ** n / sp.factorial(n), (n, 0, sp.oo))
    bessel = sp.summation(b**n / sp.factorial(n) ** 2, (n, 0, sp.oo))
    log_moment = rate + a**2 / rate - 2 * dot
    claims = [
        ("the Poisson sum", poisson, sp.exp(rate + a**2 / rate)),
        ("the geometric sum", bessel, sp.besseli(0, 2 * sp.sqrt(b))),
        ("the best rate", sp.diff(log_moment, rate).subs(rate, a), 0),
        ("what it leaves", log_moment.subs(rate, a), 2 * (a - dot)),
        ("a minimum", sp.diff(log_moment, rate, 2), 2 * a**2 / rate**3),
    ]
    return [proved(*claim) for claim in claims]


def proved(subject: str, one: Any, other: Any) -> Measured:
    apart = sp.simplify(sp.sympify(one - other))
    return Measured("SymPy", subject, 0.0 if apart == 0 else math.inf, 0.0, str(apart))


def best_log_moments(x: Array, y: Array) -> dict[str, float]:
    """Return log E (K̂/K)² at the best parameters of a pair."""
    rate, rates = (materialized.optimal_rate(x, y, scale=1.0, each=each) for each in (False, True))
    chosen: dict[str, materialized.Materialized] = {
        "Poisson, one rate": materialized.draw_poisson(len(x), 1, rate=rate, scale=1.0, rng=0),
        "Poisson": materialized.draw_poisson(len(x), 1, rate=rates, scale=1.0, rng=0),
        "geometric": materialized.draw_geometric(
            len(x), 1, probability=materialized.optimal_probability(x, y, scale=1.0), scale=1.0, rng=0
        ),
        "Maclaurin": materialized.draw_maclaurin(
            len(x), 1, rate=materialized.optimal_degree(x, y, scale=1.0), scale=1.0, rng=0
        ),
    }
    return {name: float(np.log1p(materialized.relative_error(x, y, features))) for name, features in chosen.items()}


def opposed() -> Measured:
    """Measure how far below 4|x|² the least log E (K̂/K)² at y = −x is: not at all, but for rounding."""
    points = cubature.pairs((0.3, 1.0, 2.0)).x
    apart = [4 * float(x @ x) - min(best_log_moments(x, -x).values()) for x in points]
    return Measured("best parameters", "y = -x", greatest(0.0, *apart), SUMMATION)


def check(weights: Weights | None = None) -> Verdict:
    """Put the closed forms to the proof.

    Parameters
    ----------
    weights : callable, optional
        ``weights(law, exponents, parameter)``: to be taken for the library's own log-weights of monomials.

    Returns
    -------
    Verdict
        Sums over the law of the exponents, sums of many digits at extreme points, and proofs.
    """
    chosen = weights or monomials.log_weights
    return Verdict((*by_summation(chosen), *by_many_digits(), *by_symbols(), opposed()))


def figure() -> Figure:
    """Draw second moments of one column against the angle, with the best parameters of each pair."""
    drawn = Figure(figsize=(6, 4), layout="constrained")
    axis, dim, norm = drawn.subplots(), 64, math.sqrt(2.0)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, 2)))[0].T
    angles = np.linspace(0.02, math.pi - 0.02, 41)
    x, y = norm * basis[0], norm * (np.cos(angles)[:, None] * basis[0] + np.sin(angles)[:, None] * basis[1])
    axis.plot(angles, norm**2 * 2 * (1 + np.cos(angles)) / math.log(10), color="black", label="positive")
    curves = [best_log_moments(x, one) for one in y]
    for name in curves[0]:
        axis.plot(angles, np.array([curve[name] for curve in curves]) / math.log(10), label=name)
    axis.set(title="log₁₀ E (K̂/K)² of one column, |x|² = |y|² = 2, d = 64", xlabel="angle between x and y")
    axis.legend(fontsize="small")
    return drawn


RESULT = Result("discrete", STATEMENT, CITATION, check, figure)
