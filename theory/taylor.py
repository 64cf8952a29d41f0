"""What Taylor features leave out."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import mpmath as mp
import numpy as np
from matplotlib.figure import Figure

from rfkernels import materialized
from theory import _cubature as cubature
from theory import _multiprecision as multiprecision
from theory._verdict import Measured, Result, Verdict, greatest

STATEMENT = r"""
Features $\phi_\alpha(x) = x^\alpha / \sqrt{\alpha!}$ of all multi-indices of degree up to $N$ have
$\phi(x) \cdot \phi(y) = T_N(L) = \sum_{n \le N} L^n / n!$ with $L = x \cdot y$, exactly, in $\binom{d + N}{N}$
columns. They are not random; relative to $e^L$ their bias is

$$
T_N(L) e^{-L} - 1 = -\frac{L^{N+1}}{(N+1)!}\, {}_1F_1(N + 1; N + 2; -L) .
$$

For even $N$ it is above $-1$, that is $T_N > 0$: weights of attention are positive. For odd $N$, $T_N < 0$ below some
negative $L$. Large weights are all but lost, since the bias tends to $-1$ as $L$ grows, and small ones are too large,
since it grows like $e^{|L|}$ for $L < 0$ and even $N$.
"""

CITATION = (
    "Degree 2: Arora et al. (Based), arXiv 2402.18668, with a column for each ordered pair of coordinates. "
    "The remainder follows from Taylor's theorem."
)

PRECISION = 1e-12
"""Claimed precision of the bias, and of features relative to the sum of the magnitudes of terms."""

DEGREES = (0, 1, 2, 5, 8)
DOTS = (-60.0, -30.0, -4.0, -1.0, -1e-3, 1e-3, 0.5, 4.0, 30.0, 300.0)


def polynomial(degree: int, dot: Any) -> Any:
    """Return T_N(L) in multiple precision."""
    return mp.fsum(mp.mpf(dot) ** n / mp.factorial(n) for n in range(degree + 1))


def bias(degree: int) -> float:
    """Return the largest relative error of the library's bias."""
    features, worst = materialized.taylor(1, degree, scale=1.0), 0.0
    for dot in DOTS:
        exact = polynomial(degree, dot) * mp.exp(-mp.mpf(dot)) - 1
        stated = float(materialized.relative_bias(np.array([dot]), np.array([1.0]), features))
        squared = float(materialized.relative_error(np.array([dot]), np.array([1.0]), features, log=True))
        log = 2 * mp.log(abs(exact))
        worst = greatest(worst, float(abs(stated / exact - 1)), float(abs(squared - log) / max(1, abs(log))))
    return worst


def columns(degree: int, dim: int) -> float:
    """Return the largest error of φ(x)·φ(y), relative to the sum of magnitudes Σ |L|ⁿ/n!."""
    features, worst = materialized.taylor(dim, degree, scale=1.0), 0.0
    if features.count != math.comb(dim + degree, degree):
        return math.inf
    points = cubature.pairs((0.1, 1.0, 3.0))
    pad = np.zeros((len(points.x), dim - 2))
    x, y = (np.concatenate([v, pad + shift], -1) for v, shift in zip(points, (0.5, -0.7), strict=True))
    log, sign = materialized.log_kernel(x, y, features)
    for one, dot, size in zip(sign * np.exp(log), np.sum(x * y, -1), np.sum(np.abs(x * y), -1), strict=True):
        worst = greatest(worst, abs(float(one - polynomial(degree, dot))) / float(polynomial(degree, size)))
    return worst


def positive(degree: int) -> float:
    """Return the share of a range of L where T_N of even degree is not positive."""
    dots = np.linspace(-40, 40, 161)[:, None]
    sign = materialized.log_kernel(dots, np.ones_like(dots), materialized.taylor(1, degree, scale=1.0))[1]
    return float(np.mean(sign <= 0))


def check() -> Verdict:
    """Compare the library's features and its bias with many digits.

    Returns
    -------
    Verdict
        For each degree: the bias, the features in two and three dimensions, and for even ones the sign.
    """
    with mp.workdps(multiprecision.DIGITS):
        measured = [Measured("mpmath", f"bias, degree {n}", bias(n), PRECISION) for n in DEGREES]
        measured += [
            Measured("mpmath", f"features, degree {n}, d = {dim}", columns(n, dim), PRECISION)
            for n, dim in product(DEGREES, (2, 3))
        ]
    signs = [Measured("signs", f"degree {n}", positive(n), 0.0) for n in DEGREES if n % 2 == 0]
    return Verdict((*measured, *signs))


def figure() -> Figure:
    """Draw T_N/e^L − 1 against L."""
    drawn = Figure(figsize=(6, 4), layout="constrained")
    axis, dots = drawn.subplots(), np.linspace(-4, 6, 101)[:, None]
    for degree in (1, 2, 3, 4):
        found = materialized.relative_bias(dots, np.ones_like(dots), materialized.taylor(1, degree, scale=1.0))
        axis.semilogy(dots[:, 0], np.abs(found), label=f"degree {degree}")
    axis.set(title="|bias| of Taylor features relative to exp(x · y)", xlabel="x · y", ylim=(1e-6, 1e4))
    axis.legend(fontsize="small")
    return drawn


RESULT = Result("taylor", STATEMENT, CITATION, check, figure)
