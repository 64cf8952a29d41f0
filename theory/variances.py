"""How far estimates of softmax features spread: lemma 2 of Performers, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import mpmath as mp
import numpy as np
import sympy as sp
from matplotlib.figure import Figure

import rfkernels as rfk
from rfkernels import FeatureMap
from theory import _cubature as cubature
from theory import _multiprecision as multiprecision
from theory import _symbolic as symbolic
from theory._cubature import Array, Pairs
from theory._verdict import Measured, Result, Verdict, greatest

STATEMENT = r"""
With $s = |x + y|^2$, $\delta = |x - y|^2$ and $K = \exp(x \cdot y)$, estimates from $n$ independent rows have the mean
squared errors

$$
\mathrm{positive:}\ \tfrac{1}{n} e^{s} K^2 (1 - e^{-s}) , \qquad
\mathrm{hyperbolic:}\ \tfrac{1}{2n} e^{s} K^2 (1 - e^{-s})^2 , \qquad
\mathrm{trigonometric:}\ \tfrac{1}{2n} e^{s} K^{-2} (1 - e^{-\delta})^2 .
$$

Relative to $K^2$ these are $(e^s - 1)/n$, $2 \sinh^2(s/2)/n$ and $2 \sinh^2(\delta/2)/n$. A hyperbolic or trigonometric
map has two columns for each row. It follows that

- at an equal number of columns, hyperbolic features have $1 - e^{-s}$ times the error of positive ones;
- exchanging $|x - y|^2$ and $|x + y|^2$, that is, turning $y$ to $-y$, exchanges the relative errors of hyperbolic and
  trigonometric features;
- at an equal number of columns, hyperbolic features have the smaller error where $x \cdot y < 0$, trigonometric ones
  where $x \cdot y > 0$.
"""

CITATION = (
    "Choromanski et al., Rethinking Attention with Performers, arXiv 2009.14794, lemma 2. "
    "The consequences follow by algebra and are checked in the same way."
)

CUBATURE, MULTIPRECISION = 1e-10, 2e-15
"""Claimed precision of relative variances. The second is that of √2, to the fourth power, as a double float."""

LINE = ((3.0, 2.5), (4.0, -3.5), (1e-3, 2e-3), (6.0, 0.5))
"""Numbers x and y whose relative variances differ by many orders of magnitude."""

LEMMA_2: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "positive": lambda xp, s, delta, k: xp.exp(s) * k**2 * -xp.expm1(-s),
    "hyperbolic": lambda xp, s, delta, k: xp.exp(s) * k**2 * -xp.expm1(-s) * -xp.expm1(-s) / 2,
    "trigonometric": lambda xp, s, delta, k: xp.exp(s) * k**-2 * xp.expm1(-delta) ** 2 / 2,
}
"""Mean squared error of one row as the paper states it."""

RELATIVE: dict[str, Callable[[Any, Any, Any], Any]] = {
    "positive": lambda xp, s, delta: xp.expm1(s),
    "hyperbolic": lambda xp, s, delta: 2 * xp.sinh(s / 2) ** 2,
    "trigonometric": lambda xp, s, delta: 2 * xp.sinh(delta / 2) ** 2,
}
"""The same relative to K²."""


def library() -> dict[str, FeatureMap]:
    """Return the library's own maps that the lemma is about."""
    return {name: rfk.lookup(name) for name in LEMMA_2}


def squares(points: Pairs) -> tuple[Array, Array]:
    """Return |x + y|² and |x − y|²."""
    return np.sum((points.x + points.y) ** 2, -1), np.sum((points.x - points.y) ** 2, -1)


def relative_variance(feature_map: FeatureMap, points: Pairs) -> Array:
    """Return E (φ(x)·φ(y) / K − 1)² of one row by cubature: no large part is subtracted."""
    grid = cubature.hermite()
    apart = cubature.estimates(feature_map, grid, points) / np.exp(np.sum(points.x * points.y, -1))[:, None] - 1
    variance: Array = apart**2 @ grid.weights
    return variance


def by_cubature(maps: Mapping[str, FeatureMap]) -> list[Measured]:
    """Compare on pairs of norm up to 1, in float64."""
    points = cubature.pairs()
    s, delta = squares(points)
    dot = (s - delta) / 4
    found = {name: relative_variance(feature_map, points) for name, feature_map in maps.items()}
    stated = {name: LEMMA_2[name](np, s, delta, np.exp(dot)) / np.exp(2 * dot) for name in maps}
    columns = {name: len(feature_map.activations) for name, feature_map in maps.items()}
    ratio = columns["hyperbolic"] * found["hyperbolic"] / (columns["positive"] * found["positive"])
    turned = relative_variance(maps["hyperbolic"], Pairs(points.x, -points.y))
    better = columns["hyperbolic"] * found["hyperbolic"] < columns["trigonometric"] * found["trigonometric"]
    errors = {name: cubature.largest(found[name] / stated[name] - 1) for name in maps}
    errors["hyperbolic : positive"] = cubature.largest(ratio / -np.expm1(-s) - 1)
    errors["trigonometric = hyperbolic at -y"] = cubature.largest(found["trigonometric"] / turned - 1)
    errors["share of pairs where hyperbolic < trigonometric is not x·y < 0"] = float(np.mean(better != (dot < 0)))
    return [Measured("cubature", subject, error, CUBATURE) for subject, error in errors.items()]


def by_symbols(maps: Mapping[str, FeatureMap]) -> list[Measured]:
    """Prove it for all x and y."""
    x, y, c = symbolic.X, symbolic.Y, symbolic.C
    s, delta, k = x**2 + y**2 + 2 * x * y * c, x**2 + y**2 - 2 * x * y * c, sp.exp(x * y * c)
    mse = {name: symbolic.moment(m, 2) - 2 * k * symbolic.moment(m) + k**2 for name, m in maps.items()}
    relative = {name: sp.expand(error / k**2) for name, error in mse.items()}
    hyperbolic, trigonometric = relative["hyperbolic"], relative["trigonometric"]
    namespace, columns = symbolic.NAMESPACE, {name: len(m.activations) for name, m in maps.items()}
    per_column = {name: columns[name] * error for name, error in relative.items()}
    claims = [(name, mse[name], LEMMA_2[name](namespace, s, delta, k)) for name in maps]
    claims += [(f"{name}, relative", relative[name], RELATIVE[name](namespace, s, delta)) for name in maps]
    claims += [
        ("hyperbolic : positive", per_column["hyperbolic"], (1 - sp.exp(-s)) * per_column["positive"]),
        ("trigonometric = hyperbolic at -y", trigonometric, hyperbolic.subs(c, -c)),
        ("hyperbolic - trigonometric", hyperbolic - trigonometric, 2 * sp.sinh(x**2 + y**2) * sp.sinh(2 * x * y * c)),
    ]
    return [symbolic.compare(*claim) for claim in claims]


def by_many_digits(maps: Mapping[str, FeatureMap]) -> list[Measured]:
    """Compare at extreme points, in multiple precision."""
    with mp.workdps(multiprecision.DIGITS):
        errors = {name: greatest(*(_line(name, m, mp.mpf(x), mp.mpf(y)) for x, y in LINE)) for name, m in maps.items()}
    return [Measured("mpmath", name, error, MULTIPRECISION) for name, error in errors.items()]


def _line(name: str, feature_map: FeatureMap, x: mp.mpf, y: mp.mpf) -> float:
    k = mp.exp(x * y)
    stated = LEMMA_2[name](multiprecision.NAMESPACE, (x + y) ** 2, (x - y) ** 2, k)
    return float(abs(multiprecision.line_mean(feature_map, x, y, centre=k, power=2) / stated - 1))


def check(maps: Mapping[str, FeatureMap] | None = None) -> Verdict:
    """Put the maps to the proof.

    Parameters
    ----------
    maps : mapping of str to FeatureMap, optional
        Definitions to take for those of the library: of "positive", "hyperbolic" or "trigonometric".

    Returns
    -------
    Verdict
        For each map and each consequence: cubature in the plane and a proof by SymPy; for each map also mpmath at
        extreme points.
    """
    chosen = {**library(), **(maps or {})}
    return Verdict((*by_cubature(chosen), *by_symbols(chosen), *by_many_digits(chosen)))


def figure() -> Figure:
    """Draw relative variances per column against the angle, and hyperbolic against positive features."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    angles = np.linspace(0.02, math.pi - 0.02, 41)
    points = Pairs(np.tile([1.0, 0.0], (41, 1)), np.stack([np.cos(angles), np.sin(angles)], -1))
    s, delta = squares(points)
    found = {}
    for i, (name, feature_map) in enumerate(library().items()):
        columns = len(feature_map.activations)
        found[name] = columns * relative_variance(feature_map, points)
        left.semilogy(angles, columns * RELATIVE[name](np, s, delta), color=f"C{i}", linewidth=1)
        left.semilogy(angles[i::6], found[name][i::6], "o", color=f"C{i}", label=name, markersize=4)
    right.plot(s, -np.expm1(-s), color="black", linewidth=1, label="1 − exp(−s)")
    right.plot(s, found["hyperbolic"] / found["positive"], "o", color="C1", label="integrals of features", markersize=4)
    left.set(title="relative variance × columns: lemma (line), integral (dots)", xlabel="angle between unit vectors")
    right.set(title="hyperbolic : positive, equal columns", xlabel="s = |x + y|²", ylim=(0, 1.05))
    left.title.set_fontsize("medium")
    left.legend(fontsize="small")
    right.legend(fontsize="small")
    return drawn


RESULT = Result("variances", STATEMENT, CITATION, check, figure)
