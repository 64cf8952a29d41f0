"""What estimates of random Maclaurin features are worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import sympy as sp
from matplotlib.figure import Figure
from scipy import stats

from rfkernels import materialized
from rfkernels.materialized import Maclaurin, maclaurin
from theory import _cubature as cubature
from theory._cubature import Array
from theory._verdict import Measured, Result, Verdict, greatest
from theory.discrete import column_estimates, proved

STATEMENT = r"""
With $K = \exp(x \cdot y)$ and $L = x \cdot y$, one column $e^{\lambda/2} \lambda^{-N/2} \prod_{i \le N} w_i \cdot x$
with $N \sim \mathrm{Poisson}(\lambda)$ gives an unbiased estimate $\hat K$ of $K$, with

$$
\frac{E \hat K^2}{K^2} = \exp\left(\lambda + \frac{c}{\lambda} - 2L\right) , \qquad
c = E (w \cdot x)^2 (w \cdot y)^2 = |x|^2 |y|^2 + 2 L^2 - 2\,[\mathrm{signs}] \sum_l x_l^2 y_l^2 ,
$$

where the last sum is there for rows of signs, not for normal ones. Consequences:

- The best mean degree is $\sqrt c$. Rows of signs are better than normal ones at all $x$ and $y$.
- With $|x| = |y| = r$ and $\cos\theta = u$, normal rows and the best mean degree have
  $E \hat K^2 / K^2 = \exp(2 r^2 (\sqrt{1 + 2u^2} - u))$ against $\exp(2 r^2 (1 + u))$ of positive features: better for
  $u > 0$, equal at a right angle, worse for $u < 0$. At their worst angles they have $\exp(5.46\, r^2)$ and
  $\exp(4 r^2)$.
"""

CITATION = (
    "Kar and Karnick, Random Feature Maps for Dot Product Kernels, arXiv 1201.6530, with a geometric law of degrees. "
    "The second moments for a Poisson law and the consequences are derived here."
)

PRECISION = 1e-10
"""Claimed precision, relative to K or to the variance."""

TERMS = 60
"""Degrees from 0 to this are summed over."""

Weights = Callable[[Any, Any], Any]


def factors(law: maclaurin.Law) -> tuple[Array, Array]:
    """Return rows of two coordinates and weights with the moments of the law: exact to the degree that is needed."""
    points, weights = np.array([-1.0, 1.0]), np.array([0.5, 0.5])
    if law == "normal":
        points, weights = np.polynomial.hermite_e.hermegauss(5)
        weights = weights / math.sqrt(2 * math.pi)
    rows = np.stack(np.meshgrid(points, points, indexing="ij"), -1).reshape(-1, 2)
    return rows, np.outer(weights, weights).reshape(-1)


def by_enumeration(law: maclaurin.Law, weights: Weights) -> list[Measured]:
    """Take the library's products over all rows, for single degrees, and sum its closed form over all degrees."""
    points, rate = cubature.pairs((0.1, 0.7, 1.5)), np.asarray(0.8)
    rows, probability = factors(law)
    dot = np.sum(points.x * points.y, -1)
    fourth = (points.x @ rows.T) ** 2 * (points.y @ rows.T) ** 2 @ probability
    error = 0.0
    for degree in range(4 if law == "rademacher" else 3):
        indices = list(product(range(len(rows)), repeat=degree))
        chosen, degrees = np.array(indices, int).reshape(len(indices), degree), np.full(len(indices), degree)
        features = Maclaurin(law, rows[chosen], degrees, np.zeros(len(indices)), rate, np.asarray(1.0))
        found, chance = column_estimates(features, points), np.prod(probability[chosen], -1)
        error = greatest(error, cubature.largest(found @ chance - dot**degree))
        error = greatest(error, cubature.largest(found**2 @ chance / fourth**degree - 1))
    degrees = np.arange(TERMS + 1)
    columns = np.exp(2 * weights(degrees, rate))
    chance = stats.poisson.pmf(degrees, rate)
    mean = dot[:, None] ** degrees @ (chance * columns) / np.exp(dot)
    variance = fourth[:, None] ** degrees @ (chance * columns**2) / np.exp(2 * dot) - 1
    one = Maclaurin(law, np.zeros((1, 1, 2)), degrees[:1], np.zeros(1), rate, np.asarray(1.0))
    stated = materialized.relative_error(points.x, points.y, one)
    return [
        Measured("enumeration", f"{law} rows, single degrees", error, PRECISION),
        Measured("summation", f"{law} rows: mean", cubature.largest(mean - 1), PRECISION),
        Measured("summation", f"{law} rows: variance", cubature.largest(variance / stated - 1), PRECISION),
    ]


def by_symbols() -> list[Measured]:
    """Prove the consequences."""
    c, rate = sp.symbols("c lambda", positive=True)
    u, dot = sp.Symbol("u", real=True), sp.Symbol("L", real=True)
    log_moment = rate + c / rate - 2 * dot
    worst, square = sp.sqrt(1 + 2 * u**2) - u, sp.Symbol("q", positive=True)  # q = |x|² = |y|²
    best = log_moment.subs(rate, sp.sqrt(c)).subs({c: square**2 + 2 * (square * u) ** 2, dot: square * u})
    return [
        proved("the best mean degree", sp.diff(log_moment, rate).subs(rate, sp.sqrt(c)), 0),
        proved("a minimum", sp.diff(log_moment, rate, 2), 2 * c / rate**3),
        proved("what it leaves at equal norms", best, 2 * square * worst),
        proved("convex in the cosine", sp.diff(worst, u, 2), 2 / (1 + 2 * u**2) ** sp.Rational(3, 2)),
        proved("better than positive iff u > 0", (1 + 2 * u) ** 2 - (1 + 2 * u**2), 2 * u * (u + 2)),
        proved("the worst angle", worst.subs(u, -1), 1 + sp.sqrt(3)),
    ]


def check(weights: Weights | None = None) -> Verdict:
    """Put the closed forms to the proof.

    Parameters
    ----------
    weights : callable, optional
        ``weights(degrees, rate)``: to be taken for the library's own log-weights.

    Returns
    -------
    Verdict
        Enumeration of rows for single degrees, sums over degrees, and proofs.
    """
    chosen = weights or maclaurin.log_weights
    measured = [one for law in ("normal", "rademacher") for one in by_enumeration(law, chosen)]
    return Verdict((*measured, *by_symbols()))


def figure() -> Figure:
    """Draw log second moments of normal rows and of positive features against the angle."""
    drawn = Figure(figsize=(6, 4), layout="constrained")
    axis, angles = drawn.subplots(), np.linspace(0, math.pi, 101)
    u = np.cos(angles)
    axis.plot(angles, 2 * (np.sqrt(1 + 2 * u**2) - u), label="Maclaurin, normal rows, best mean degree")
    axis.plot(angles, 2 * (1 + u), color="black", label="positive")
    axis.set(title="log E (K̂/K)² of one column, in units of |x|² = |y|²", xlabel="angle between x and y")
    axis.legend(fontsize="small")
    return drawn


RESULT = Result("maclaurin", STATEMENT, CITATION, check, figure)
