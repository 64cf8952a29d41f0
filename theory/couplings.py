"""What couplings of rows are worth: one number, which falls with the cosine between directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
from matplotlib.figure import Figure

import rfkernels as rfk
from rfkernels import FeatureMap, variance
from rfkernels.samplers import Sampler
from theory import _cubature as cubature
from theory import _isotropic as isotropic
from theory._cubature import Array
from theory._verdict import Measured, Result, Verdict, greatest

STATEMENT = r"""
A coupling of rows changes an estimate's variance by the relative cross moment $C = \mathbb{E} X_1 X_2 / K^2$ of its
coupled pairs alone. For positive features, rows with independent chi-distributed norms and directions of cosine $c$,
and $s = |x + y|^2$,

$$C(c) = e^{-s}\, \mathbb{E}\, {}_1F_1\!\left( d; \tfrac d2; \tfrac s2 \bigl( 1 + 2 c \sqrt{b (1 - b)} \bigr) \right),
\qquad b \sim \mathrm{Beta}(\tfrac d2, \tfrac d2) .$$

All coefficients of ${}_1F_1$ are positive, so $C$ rises with $c$ and is convex in it. Hence

- simplex rows ($c = -1/(d - 1)$) are at least as good as orthogonal ones ($c = 0$), and those as independent ones
  ($C = 1$, by theorem 2 of Performers);
- simplex rows are the best of all couplings of $d$ directions independent of the norms: cosines of $d$ unit vectors
  average at least $-1/(d - 1)$, and a convex function that rises has its least mean there;
- features that are even in the row (hyperbolic, trigonometric) see $\frac12 (C(c) + C(-c))$, even and convex in $c$:
  orthogonal rows are the best of them, and simplex rows strictly worse;
- of orthogonal rows, norms of opposed quantiles, $F(r_1) + F(r_2) = 1$, have a smaller $C$ than independent ones;
- an antithetic pair of positive features has $C = e^{-s}$, the least of all pairs whose rows are normal.

The last holds by the inequality of Jensen: $X_1 X_2 = e^{(w_1 + w_2) \cdot z} K^2
e^{-s}$ has the mean $e^{-s} K^2$ or more whenever the rows have mean zero.
"""

CITATION = (
    "Reid et al., Simplex Random Features, arXiv 2301.13856, for simplex rows; Choromanski et al., arXiv 2009.14794, "
    "theorem 2, for orthogonal ones. The forms for all cosines, and the argument by convexity, are ours."
)

CUBATURE, QUADRATURE, OPPOSED = 1e-12, 1e-11, 1e-12
DIMS, SQUARES = (2, 3, 8, 16, 64), (0.01, 0.1, 1.0, 4.0, 8.0, 20.0)

Moment = Callable[[Any, float, int], Any]


def library_moment(kind: str | float, s: float, dim: int) -> float:
    """Return the library's C for a cosine or a named coupling."""
    return float(variance.coupling_moment(kind, s, dim))


def by_cubature(sampler: Sampler, moment: Moment) -> list[Measured]:
    """Integrate over the library's samplers in the plane, where simplex rows point away from each other."""
    points = cubature.pairs((0.3, 1.0), 3)
    squares = np.sum((points.x + points.y) ** 2, -1)
    measured = []
    for given, c in ((rfk.samplers.orthogonal, 0.0), (sampler, -1.0)):
        block = isotropic.blocks(given, radial=24 if c == 0 else 40)
        for name, cosines in (("positive", (c,)), ("hyperbolic", (c, -c))):
            found = isotropic.moments(rfk.lookup(name), block, points)
            stated = np.mean([[moment(cosine, s, 2) for s in squares] for cosine in cosines], 0)
            error = greatest(cubature.largest(found.mean - 1), cubature.largest(found.product / stated - 1))
            measured.append(Measured("cubature", f"{given.name}, {name}: mean and C", error, CUBATURE))
    return measured


def opposed(s: float, dim: int, nodes: int = 60) -> float:
    """Return C of orthogonal rows with norms of opposed quantiles: a line integral over the quantile of one."""
    from scipy.special import gammainccinv, gammaincinv, hyp0f1, ndtr

    lines, weights = np.polynomial.hermite_e.hermegauss(nodes)
    near, far = gammaincinv(dim / 2, ndtr(-abs(lines))), gammainccinv(dim / 2, ndtr(-abs(lines)))
    total: float = weights @ hyp0f1(dim / 2, (near + far) * s / 2) * math.exp(-s) / math.sqrt(2 * math.pi)
    return total


def of_opposed_norms(sampler: Sampler) -> list[Measured]:
    """Integrate over the library's sampler of paired norms, and require a C of at most that of independent norms."""
    points = cubature.pairs((0.3, 1.0), 3)
    squares = np.sum((points.x + points.y) ** 2, -1)
    found = isotropic.moments(rfk.lookup("positive"), isotropic.blocks(sampler, radial=60, opposed=True), points)
    stated = np.array([opposed(s, 2) for s in squares])
    error = greatest(cubature.largest(found.mean - 1), cubature.largest(found.product / stated - 1))
    excess = greatest(*(opposed(s, dim) / library_moment("orthogonal", s, dim) - 1 for dim in DIMS for s in SQUARES))
    return [
        Measured("cubature", f"{sampler.name}: mean and C", error, OPPOSED),
        Measured("quadrature", "opposed norms above independent ones by", max(excess, 0.0), 1e-12),
    ]


def of_antithetic_pairs(feature_map: FeatureMap) -> Measured:
    """Compare C of the library's antithetic rows with exp(−s)."""
    points = cubature.pairs((0.3, 1.0), 3)
    grid = cubature.hermite()
    rows = rfk.samplers.antithetic("iid")(lambda shape: grid.rows, 2 * len(grid.rows), 2)
    alone = cubature.estimates(feature_map, cubature.Grid(rows, np.ones(len(rows))), points)
    first, second = np.split(alone / np.exp(np.sum(points.x * points.y, -1))[:, None], 2, axis=1)
    error = (first * second) @ grid.weights * np.exp(np.sum((points.x + points.y) ** 2, -1)) - 1
    return Measured("cubature", "antithetic: C", cubature.largest(error), CUBATURE)


def by_quadrature(moment: Moment) -> Measured:
    """Compare C of many cosines and dimensions with a quadrature over the angle and both norms."""
    worst = 0.0
    for dim in (2, 3, 8, 64):
        for s in (0.1, 1.0, 4.0, 8.0):
            for c in (-1.0, -1 / (dim - 1), -0.3, 0.0, 0.5, 0.9):
                found = isotropic.product_moment(dim, s, c, nodes=64)
                worst = greatest(worst, abs(moment(c, s, dim) / found - 1))
    return Measured("quadrature", "C(c) for d = 2, 3, 8, 64", worst, QUADRATURE)


def in_order(moment: Moment) -> list[Measured]:
    """Require that C rises with the cosine, is convex in it, and stands in the order that follows."""
    cosines = np.linspace(-1, 1, 21)
    falls = bends = order = even = 0.0
    for dim in DIMS:
        for s in SQUARES:
            values = np.array([moment(c, s, dim) for c in cosines])
            falls = greatest(falls, float(np.max(-np.diff(values) / values[1:])))
            bends = greatest(bends, float(np.max(-np.diff(values, 2) / values[1:-1])))
            mean = (values + values[::-1]) / 2
            even = greatest(even, float(np.max(1 - mean / mean[10])))
            simplex, orthogonal, independent = (
                moment(kind, s, dim) for kind in ("simplex", "orthogonal", "independent")
            )
            order = greatest(order, simplex / orthogonal - 1, orthogonal / independent - 1, math.exp(-s) / simplex - 1)
    claims = {
        "C falls with c by": falls,
        "C bends down by": bends,
        "antithetic ≤ simplex ≤ orthogonal ≤ independent broken by": order,
        "even features below orthogonal by": even,
    }
    return [Measured("grid", name, max(error, 0.0), 1e-12) for name, error in claims.items()]


def by_many_digits(moment: Moment) -> Measured:
    """Compare C at extremes with the integral over b in multiple precision."""
    worst = 0.0
    with mp.workdps(30):
        for dim, s, c in ((16, 40.0, -1 / 15), (64, 100.0, -1 / 63), (4, 60.0, 0.5)):
            half = mp.mpf(dim) / 2

            def integrand(t: Any, half: Any = half, s: float = s, c: float = c) -> Any:
                product = mp.sin(t) * mp.cos(t)  # √(b (1 − b)) with b = sin²t
                inside = mp.mpf(s) / 2 * (1 + 2 * mp.mpf(c) * product)
                return 2 * product ** (2 * half - 1) * mp.hyp1f1(2 * half, half, inside)

            pieces = [mp.pi * i / 16 for i in range(9)]
            found = mp.quad(integrand, pieces, maxdegree=4) / mp.beta(half, half) * mp.exp(-s)
            worst = greatest(worst, float(abs(moment(c, s, dim) / found - 1)))
    return Measured("mpmath", "C(c) at large s", worst, 1e-11)


def findings() -> tuple[str, ...]:
    """Say how much there is to gain."""
    found = []
    for dim, s in ((16, 1.0), (16, 4.0), (64, 1.0), (64, 8.0)):
        spread = math.expm1(s)
        shares = [1 - (dim - 1) * (1 - library_moment(kind, s, dim)) / spread for kind in ("orthogonal", "simplex")]
        both = (math.exp(s) + math.exp(-s) - 2) / spread
        found.append(
            f"d = m = {dim}, s = {s:g}: the variance of independent rows is multiplied by {shares[0]:.3f} by "
            f"orthogonal rows, by {shares[1]:.3f} by simplex rows, and by {both:.3f} by antithetic pairs."
        )
    c = (library_moment(-1 / 15, 4.0, 16) + library_moment(1 / 15, 4.0, 16)) / 2
    gain = (1 - library_moment(0.0, 4.0, 16)) / (1 - c)
    found.append(
        f"Hyperbolic features, d = 16, s = 4: orthogonal rows save {gain:.4f} times what simplex rows do, so that the "
        "loss by a simplex is real but small."
    )
    return tuple(found)


def check(
    sampler: Sampler = rfk.samplers.simplex,
    moment: Moment = library_moment,
    paired: Sampler = rfk.samplers.paired,
    feature_map: FeatureMap | None = None,
) -> Verdict:
    """Put the couplings to the proof.

    Parameters
    ----------
    sampler, paired : Sampler, optional
        What draws simplex rows, and rows with norms of opposed quantiles.
    moment : callable, optional
        C from a cosine or the name of a coupling, s and d.
    feature_map : FeatureMap, optional
        The map of antithetic pairs; "positive" by default.
    """
    chosen = rfk.lookup("positive") if feature_map is None else feature_map
    measured = [*by_cubature(sampler, moment), *of_opposed_norms(paired), of_antithetic_pairs(chosen)]
    return Verdict((*measured, by_quadrature(moment), *in_order(moment), by_many_digits(moment)), findings())


def figure() -> Figure:
    """Draw C against the cosine, and what couplings leave of the variance."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    cosines = np.linspace(-1, 1, 41)
    for i, s in enumerate((1.0, 4.0)):
        values = np.array([library_moment(c, s, 16) for c in cosines])
        left.plot(cosines, values, color=f"C{i}", label=f"positive, s = {s:g}")
        left.plot(cosines, (values + values[::-1]) / 2, "--", color=f"C{i}", label=f"hyperbolic, s = {s:g}")
    left.axvline(-1 / 15, color="black", linewidth=0.8)
    squares = np.geomspace(0.05, 16, 50)
    spread: Array = np.expm1(squares)
    kinds = ("orthogonal", "simplex")
    for i, kind in enumerate(kinds):
        saved = np.array([15 * (1 - library_moment(kind, s, 16)) for s in squares])
        right.semilogx(squares, 1 - saved / spread, color=f"C{i}", label=kind)
    saved = np.array([15 * (1 - opposed(s, 16)) / 15 + 14 * (1 - library_moment("orthogonal", s, 16)) for s in squares])
    right.semilogx(squares, 1 - saved / spread, ":", color="C2", label="orthogonal, opposed norms")
    right.semilogx(squares, (np.exp(squares) + np.exp(-squares) - 2) / spread, "--", color="C3", label="antithetic iid")
    left.set(title="C of a pair, d = 16 (line: simplex)", xlabel="cosine")
    right.set(title="variance : that of independent rows, m = d = 16", xlabel="s = |x + y|²", ylim=(0, 1.02))
    left.legend(fontsize="small")
    right.legend(fontsize="small")
    return drawn


RESULT = Result("couplings", STATEMENT, CITATION, check, figure)
