"""The regularised softmax kernel: theorem 1 of Performers, a sharper bound for every d, and where the theorem fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import sympy as sp
from matplotlib.figure import Figure

import rfkernels as rfk
from rfkernels import FeatureMap, variance
from rfkernels.samplers import Sampler
from theory import _cubature as cubature
from theory import _isotropic as isotropic
from theory._cubature import Array, Pairs
from theory._isotropic import Rule
from theory._verdict import Measured, Result, Verdict, greatest

STATEMENT = r"""
With rows uniform on the sphere of radius $\sqrt d$ instead of $N(0, I)$ (the sampler "regularized"), positive and
hyperbolic features estimate, with $s = |x + y|^2$ and $\mathrm{SM} = \exp(x \cdot y)$,

$$\mathrm{SMREG} = e^{-(|x|^2 + |y|^2)/2}\, {}_0F_1(; d/2; d s/4), \qquad
\rho = \mathrm{SMREG} / \mathrm{SM} = e^{-s/2}\, {}_0F_1(; d/2; d s/4) .$$

Relative to $\mathrm{SM}^2$ a row of positive features has the second moment $e^{-s}\, {}_0F_1(; d/2; d s)$ and two rows
at a right angle have the cross moment $e^{-s}\, {}_0F_1(; d/2; d s/2)$. For every $d$ and $s$

$$1 - \frac{s^2}{4 (d + 2)} \;\le\; \rho \;\le\; 1 ,$$

and the lower bound is the expansion of $\rho$ to second order. For $\rho$ is $\mathbb{E}\, r_N$ with $N$ of the Poisson
law of mean $s/2$ and $r_k = (d/2)^k / (d/2)_k$; and $1 \ge r_k \ge 1 - k (k - 1)/(d + 2)$ by induction, as
$r_{k+1}/r_k = d/(d + 2k)$.

Theorem 1 says: if all entries of the attention matrix are at most $C$, the smallest $\rho$ is at least
$1 - 2 d^{-1/3} + o(d^{-1/3})$, and the largest at most 1 without any condition. The second half is true. The first half
is vacuous for $d \le 8$, far below the bound above where $s$ stays bounded, and false as it stands: a bound on
$x \cdot y$ is none on $s$ (see what was found).
"""

CITATION = (
    "Choromanski et al., Rethinking Attention with Performers, arXiv 2009.14794, theorem 1. "
    "The closed forms and the bound for every d are ours."
)

CUBATURE, QUADRATURE, MULTIPRECISION = 1e-12, 1e-12, 1e-40
DIMS = (2, 3, 4, 8, 16, 64, 256, 1024)
SQUARES = (1e-3, 0.1, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 200.0, 1000.0)

Share = Callable[[Any, Any], Any]


def share(s: Any, dim: Any) -> Any:
    """Return ρ, the regularised kernel relative to that of softmax."""
    return mp.exp(-mp.mpf(s) / 2) * mp.hyp0f1(mp.mpf(dim) / 2, mp.mpf(dim) * s / 4)


def square(s: Any, dim: Any) -> Any:
    """Return the second moment of a row of positive features relative to SM²."""
    return mp.exp(-mp.mpf(s)) * mp.hyp0f1(mp.mpf(dim) / 2, mp.mpf(dim) * s)


def product(s: Any, dim: Any) -> Any:
    """Return the cross moment of two rows at a right angle relative to SM²."""
    return mp.exp(-mp.mpf(s)) * mp.hyp0f1(mp.mpf(dim) / 2, mp.mpf(dim) * s / 2)


def lower_bound(s: Any, dim: Any) -> Any:
    """Return what ρ is at least, for every d and s."""
    return 1 - mp.mpf(s) ** 2 / (4 * (mp.mpf(dim) + 2))


def _values(closed: Share, points: Pairs, dim: int) -> Array:
    return np.array([float(closed(float(s), dim)) for s in np.sum((points.x + points.y) ** 2, -1)])


def by_cubature(feature_map: FeatureMap, regularised: Share) -> list[Measured]:
    """Compare means and squares over the sphere: what it casts on the plane of x and y takes the place of rows."""
    points = cubature.pairs((0.3, 1.0), 3)
    softmax = np.exp(np.sum(points.x * points.y, -1))
    measured = []
    for dim in (2, 3, 8, 64):
        grid = isotropic.shadow(dim, math.sqrt(dim))
        rows = cubature.estimates(feature_map, grid, points) / softmax[:, None]
        errors = {
            "kernel": cubature.largest(rows @ grid.weights / _values(regularised, points, dim) - 1),
            "second moment": cubature.largest(rows**2 @ grid.weights / _values(square, points, dim) - 1),
        }
        measured += [Measured("cubature", f"{what}, d = {dim}", error, CUBATURE) for what, error in errors.items()]
    return measured


def through_sampler(sampler: Sampler) -> list[Measured]:
    """Integrate over the library's sampler in the plane."""
    points = cubature.pairs((0.3, 1.0), 3)
    found = isotropic.moments(rfk.lookup("positive"), isotropic.blocks(sampler, radial=4), points)
    errors = {
        "sampler: kernel": found.mean / _values(share, points, 2) - 1,
        "sampler: second moment": found.square / _values(square, points, 2) - 1,
        "sampler: cross moment": found.product / _values(product, points, 2) - 1,
    }
    return [Measured("cubature", what, cubature.largest(error), CUBATURE) for what, error in errors.items()]


def by_quadrature() -> Measured:
    """Compare cross moments in more dimensions."""
    worst = 0.0
    for dim in (3, 8, 64):
        radius = Rule(np.array([float(dim)]), np.ones(1))
        for s in (0.1, 1.0, 4.0, 8.0):
            found = isotropic.product_moment(dim, s, 0.0, radii=radius)
            worst = greatest(worst, abs(found / float(product(s, dim)) - 1))
    return Measured("quadrature", "cross moment, d = 3, 8, 64", worst, QUADRATURE)


def of_the_library() -> list[Measured]:
    """Compare ρ and the errors of regularised estimates as the library states them."""
    ratio = error = 0.0
    for dim, s, rows in ((2, 1.0, 2), (3, 0.1, 7), (16, 4.0, 10), (64, 8.0, 256)):
        x = np.zeros(dim)
        x[0] = math.sqrt(s) / 2
        rho = share(s, dim)
        ratio = greatest(ratio, abs(float(variance.regularized_ratio(s, dim)) / float(rho) - 1))
        blocks, rest = divmod(rows, dim)
        coupled = blocks * dim * (dim - 1) + rest * (rest - 1)
        wanted = (rho - 1) ** 2 + (square(s, dim) - rho**2) / rows + (product(s, dim) - rho**2) * coupled / rows**2
        stated = float(variance.relative("positive", x, x, count=rows, sampler="regularized"))
        error = greatest(error, abs(stated / float(wanted) - 1))
    return [
        Measured("mpmath", "rfkernels.variance.regularized_ratio", ratio, 1e-12),
        Measured("mpmath", "rfkernels.variance.relative", error, 1e-10),
    ]


def by_many_digits(bound: Share) -> list[Measured]:
    """Look for a violation of either bound."""
    with mp.workdps(60):
        above = below = mp.mpf(0)
        for dim in DIMS:
            for s in map(mp.mpf, SQUARES):
                rho = share(s, dim)
                above, below = greatest(above, rho - 1), greatest(below, bound(s, dim) - rho)
        small = mp.mpf(10) ** -9
        order = abs((1 - share(small, 16)) / (1 - bound(small, 16)) - 1)
    return [
        Measured("mpmath", "ρ above 1 by", float(above), MULTIPRECISION),
        Measured("mpmath", "ρ below its bound by", float(below), MULTIPRECISION),
        Measured("mpmath", "the bound to second order", float(order), 1e-8),
    ]


def by_symbols() -> list[Measured]:
    """Prove the induction: what r_k is at least, one step on, is at least what r_{k+1} is."""
    d, k = sp.symbols("d k", positive=True)
    one, next_one = ((d / 2) ** n / sp.rf(d / 2, n) for n in (k, k + 1))
    ratio = sp.gammasimp(next_one.rewrite(sp.gamma) / one.rewrite(sp.gamma))
    here, there = 1 - k * (k - 1) / (d + 2), 1 - k * (k + 1) / (d + 2)
    step = sp.factor((here * d - there * (d + 2 * k)) * (d + 2))
    claims = {
        "r_{k+1}/r_k": sp.simplify(ratio - d / (d + 2 * k)),
        "the step of the induction is 2k(k + 2)(k − 1) ≥ 0": sp.expand(step - 2 * k * (k + 2) * (k - 1)),
    }
    return [Measured("SymPy", name, 0.0 if left == 0 else math.inf, 0.0, str(left)) for name, left in claims.items()]


def findings() -> tuple[str, ...]:
    """Say where theorem 1 is loose, vacuous and false."""
    found = [
        f"d = {dim}, s = {s:g}: ρ = {float(share(s, dim)):.4f}; at least {float(lower_bound(s, dim)):.4f} by the bound "
        f"above, and at least {1 - 2 * dim ** (-1 / 3):.4f} by theorem 1."
        for dim, s in ((8, 1.0), (16, 4.0), (64, 4.0), (64, 8.0), (1024, 8.0))
    ]
    large = (share(200.0, 1000), share(2000.0, 1000))
    found.append(
        "Theorem 1 needs a bound on |x + y|, which its premise does not give: for x and y at a right angle A = 1 "
        f"whatever their norms, but at d = 1000, where it says ρ ≥ 0.8, s = 200 has ρ = {mp.nstr(large[0], 3)} and "
        f"s = 2000 has ρ = {mp.nstr(large[1], 3)}. The bound above gives ρ ≥ 1 − 2 d^(−1/3) "
        "where s² ≤ 8 (d + 2) d^(−1/3)."
    )
    return tuple(found)


def check(
    sampler: Sampler = rfk.samplers.regularized,
    feature_map: FeatureMap | None = None,
    regularised: Share = share,
    bound: Share = lower_bound,
) -> Verdict:
    """Put the theorem to the proof.

    Parameters
    ----------
    sampler : Sampler, optional
        What draws the rows; the library's by default.
    feature_map : FeatureMap, optional
        The map; "positive" by default.
    regularised, bound : callable, optional
        ρ and its lower bound, from s and d.
    """
    chosen = rfk.lookup("positive") if feature_map is None else feature_map
    measured = [*by_cubature(chosen, regularised), *through_sampler(sampler), by_quadrature()]
    return Verdict((*measured, *of_the_library(), *by_many_digits(bound), *by_symbols()), findings())


def figure() -> Figure:
    """Draw ρ against s with its bound, and the smallest ρ for s ≤ 4 and s ≤ 16 against d with theorem 1."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    squares = np.linspace(0, 24, 80)
    for i, dim in enumerate((8, 64, 512)):
        left.plot(squares, [float(share(s, dim)) for s in squares], color=f"C{i}", label=f"d = {dim}")
        left.plot(squares, [float(lower_bound(s, dim)) for s in squares], "--", color=f"C{i}", linewidth=1)
    dims = np.unique(np.geomspace(2, 4096, 40).astype(int))
    for i, s in enumerate((4.0, 16.0)):
        right.semilogx(dims, [float(share(s, int(dim))) for dim in dims], color=f"C{i}", label=f"ρ at s = {s:g}")
    right.semilogx(dims, 1 - 2.0 * dims ** (-1 / 3), "--", color="black", label="theorem 1 without o(·)")
    left.set(title="SMREG : SM (line) and its lower bound", xlabel="s = |x + y|²", ylim=(0, 1.02))
    right.set(title="SMREG : SM against the dimension", xlabel="d", ylim=(-0.2, 1.05))
    left.legend(fontsize="small")
    right.legend(fontsize="small")
    return drawn


RESULT = Result("regularized", STATEMENT, CITATION, check, figure)
