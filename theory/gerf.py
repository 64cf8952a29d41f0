"""Positive features of an isotropic proposal: the best variance of rows, and that their terms are bounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import sympy as sp
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar

import rfkernels as rfk
from rfkernels.fitting.algebra import best_spread
from theory import _cubature as cubature
from theory._cubature import Array
from theory._verdict import Measured, Result, Verdict, greatest

STATEMENT = r"""
Generalised exponential features $f(w, x) = D \exp(A|w|^2 + \sqrt{1 - 4A}\, w \cdot x - |x|^2/2)$, $D = (1 - 4A)^{d/4}$,
are positive features whose rows have the variance $\sigma^2 = 1 - 4A = (1 + \rho)/2$, with the log-weight of importance
sampling. Their relative variance is

$$ \mathrm{RV}(\rho) = \Big(\frac{(1 + \rho)^2}{4 \rho}\Big)^{d/2} e^{s/\rho} - 1 , \qquad s = |x + y|^2 . $$

- It is least at $\rho^* = \frac12\big(1 + 2\phi + \sqrt{(1 + 2\phi)^2 + 8\phi}\big)$, $\phi = s/d$, that is,
  $A^* = \frac1{16}\big(1 - 2\phi - \sqrt{(2\phi + 1)^2 + 8\phi}\big)$, the only zero of its derivative; there it is no
  more than $e^s - 1$, that of positive features.
- The formula with $\frac18$ for $\frac1{16}$ and $|x + y|^2$ for $\phi$, as found in a public write-up, is worse at
  every point tried.
- For $\sigma > 1$ the estimate of a single row is bounded, whatever the row:
  $0 < f(w, x) f(w, y) \le K \sigma^d \exp\big(s / (2(\sigma^2 - 1))\big)$, reached at
  $w = z / (1 - \sigma^{-2})$.
"""

CITATION = (
    "Likhosherstov et al., Chefs' Random Tables, arXiv 2205.15317. The bound and the form as "
    "importance sampling are derived here."
)

CUBATURE, ROUNDING, MINIMUM = 1e-8, 1e-11, 1e-7

Spread = Callable[[Any, Any], Any]


def variance(s: Any, rho: Any, dim: int) -> Any:
    """Return log (1 + RV)."""
    return dim / 2 * np.log((1 + rho) ** 2 / (4 * rho)) + s / rho


def estimates(rows: Array, sigma: float, x: Array, y: Array) -> Array:
    """Return what the library's features estimate with each standard normal row, relative to K."""
    drawn, log_weight = rfk.proposals.propose(np, rfk.proposals.isotropic(sigma**2), rows, None)  # type: ignore[arg-type]
    features = rfk.Features(rfk.lookup("positive"), drawn, log_weight, rfk.Side(), rfk.Side(), np.asarray(1.0))
    logs = [rfk.transform(v[None], features, side="query", log=True)[0][0] for v in (x, y)]
    relative: Array = len(rows) * np.exp(sum(logs) - x @ y)
    return relative


def by_cubature() -> list[Measured]:
    """Integrate over rows in the plane."""
    grid, points = cubature.hermite(64), cubature.pairs(norms=(0.3, 0.8), turns=7)
    mean, second, form = 0.0, 0.0, 0.0
    for x, y in zip(*points, strict=True):
        for sigma in (0.9, 1.1, 1.3):
            found = estimates(grid.rows, sigma, x, y)
            closed = math.exp(variance(np.sum((x + y) ** 2), 2 * sigma**2 - 1, 2))
            mean = greatest(mean, abs(float(found @ grid.weights) - 1))
            second = greatest(second, abs(float(found**2 @ grid.weights) / closed - 1))
            form = greatest(form, cubature.largest(found / paper(grid.rows, sigma, x, y) - 1))
    named = {"unbiased": mean, "relative variance": second}
    measured = [Measured("cubature", subject, error, CUBATURE) for subject, error in named.items()]
    return [*measured, Measured("evaluation", "f(w, x) f(w, y) is the library's", form, ROUNDING)]


def paper(rows: Array, sigma: float, x: Array, y: Array) -> Array:
    """Return f(w, x) f(w, y) / K as the paper has it."""
    a = (1 - sigma**2) / 4
    squares = np.sum(rows**2, -1)
    logs = 2 * a * squares + math.sqrt(1 - 4 * a) * rows @ (x + y) - (x @ x + y @ y) / 2 - x @ y
    product: Array = (1 - 4 * a) ** (len(x) / 2) * np.exp(logs)
    return product


def by_symbols() -> list[Measured]:
    """Prove where the derivative vanishes, that it changes sign only there, and where a term is largest."""
    rho, phi, sigma, s, w = sp.symbols("rho phi sigma s w", positive=True)
    slope = sp.diff(sp.log((1 + rho) ** 2 / (4 * rho)) / 2 + phi / rho, rho)
    root = (1 + 2 * phi + sp.sqrt((1 + 2 * phi) ** 2 + 8 * phi)) / 2
    best = (1 - 2 * phi - sp.sqrt((2 * phi + 1) ** 2 + 8 * phi)) / 16
    quadratic = rho**2 - (1 + 2 * phi) * rho - 2 * phi  # negative at zero, so it has one positive root
    term = w * sp.sqrt(s) - s / 2 - w**2 / 2 * (1 - sigma**-2)
    top = sp.sqrt(s) / (1 - sigma**-2)
    claims = {
        "derivative": slope * 2 * rho**2 * (1 + rho) - quadratic,
        "its only zero": quadratic.subs(rho, root),
        "A* = (1 - ρ*)/8": best - (1 - root) / 8,
        "where a term is largest": sp.diff(term, w).subs(w, top),
        "the bound": term.subs(w, top) - s / (2 * (sigma**2 - 1)),
    }
    left = {name: sp.simplify(claim) for name, claim in claims.items()}
    return [
        Measured("SymPy", name, float(rest != 0), 0.0, "" if rest == 0 else str(rest)) for name, rest in left.items()
    ]


def by_minimisation(spread: Spread) -> list[Measured]:
    """Compare the library's ρ with a numerical minimum, with the plain features and with the wrong formula."""
    excess, worse, wrong = 0.0, 0.0, 0.0
    for dim in (1, 2, 16, 64):
        for s in (0.01, 0.5, 3.5, 20.0, 200.0):
            phi = s / dim
            found = variance(s, float(spread(np, np.float64(phi))), dim)
            least = minimize_scalar(
                lambda t, s=s, dim=dim: variance(s, math.exp(t), dim), bounds=(-3, 12), method="bounded"
            )
            excess = greatest(excess, abs(found - least.fun) / least.fun)
            worse = greatest(worse, found - s)
            a = (1 - 2 * s - math.sqrt((2 * s + 1) ** 2 + 8 * s)) / 8
            wrong = greatest(wrong, float(variance(s, 1 - 8 * a, dim) <= found))
    return [
        Measured("minimisation", "log(1 + RV) at the library's ρ*", excess, MINIMUM),
        Measured("minimisation", "excess over positive features", worse, 0.0),
        Measured("minimisation", "share of points where the formula with 1/8 is no worse", wrong, 0.0),
    ]


def by_rows() -> list[Measured]:
    """Compare terms of many rows, and of the worst one, with the bound."""
    rng, excess, gap = np.random.default_rng(0), -math.inf, 0.0
    for dim, sigma in ((2, 1.1), (5, 1.5), (16, 1.2)):
        x, y = rng.standard_normal((2, dim)) / math.sqrt(dim)
        z = x + y
        bound = sigma**dim * math.exp(z @ z / (2 * (sigma**2 - 1)))
        worst = z / (1 - sigma**-2) / sigma
        rows = np.concatenate([rng.standard_normal((2000, dim)), worst + 0.1 * rng.standard_normal((2000, dim))])
        excess = greatest(excess, float(np.max(estimates(rows, sigma, x, y)) / bound - 1))
        gap = greatest(gap, abs(float(estimates(worst[None], sigma, x, y)[0]) / bound - 1))
    return [
        Measured("evaluation", "excess of a term over its bound", max(excess, 0.0), ROUNDING),
        Measured("evaluation", "the bound is reached", gap, ROUNDING),
    ]


def check(spread: Spread = best_spread) -> Verdict:
    """Put the library's ρ, or another in its place, to the proof."""
    return Verdict((*by_cubature(), *by_symbols(), *by_minimisation(spread), *by_rows()))


def figure() -> Figure:
    """Draw the relative variance against ρ, its minimum, and the gain over positive features."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    rho, s = np.geomspace(0.5, 10, 200), np.linspace(0.1, 40, 200)
    for i, energy in enumerate((2.0, 8.0, 16.0)):
        best = best_spread(np, np.float64(energy / 16))
        left.semilogy(rho, np.expm1(variance(energy, rho, 16)), color=f"C{i}", linewidth=1, label=f"s = {energy:g}")
        left.semilogy(best, np.expm1(variance(energy, best, 16)), "o", color=f"C{i}", markersize=5)
    for dim in (4, 16, 64):
        gain = s - variance(s, best_spread(np, s / dim), dim)
        right.plot(s, gain / math.log(10), linewidth=1, label=f"d = {dim}")
    left.set(title="relative variance, d = 16; dots: ρ*", xlabel="ρ")
    right.set(title="log10 of the gain over positive features", xlabel="s = |x + y|²")
    left.legend(fontsize="small")
    right.legend(fontsize="small")
    return drawn


RESULT = Result("gerf", STATEMENT, CITATION, check, figure)
