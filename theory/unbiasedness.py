"""The estimates are unbiased: E φ(x)·φ(y) = k(x, y) for softmax and ReLU features; `generalized` has the other maps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import mpmath as mp
import numpy as np
from matplotlib.figure import Figure

import rfkernels as rfk
from rfkernels import FeatureMap
from theory import _cubature as cubature
from theory import _multiprecision as multiprecision
from theory import _symbolic as symbolic
from theory._cubature import Array, Pairs
from theory._verdict import Measured, Result, Verdict, greatest

STATEMENT = r"""
For rows $w \sim N(0, I)$,

$$\mathbb{E}\, \varphi(x) \cdot \varphi(y) = k(x, y) .$$

- positive, hyperbolic and trigonometric features: $k = \exp(x \cdot y)$;
- exp features without an offset: $k = \exp(|x + y|^2 / 2)$;
- ReLU features: $k = |x||y| (\sin\theta + (\pi - \theta) \cos\theta) / 2\pi$, $\theta$ the angle of $x$ and $y$;
- squared ReLU features: $k = |x|^2|y|^2 (3 \sin\theta \cos\theta + (\pi - \theta)(1 + 2 \cos^2\theta)) / 2\pi$.

Deviations are relative to $k(x, y)$ for exponential maps, and to $\sqrt{k(x, x)\, k(y, y)}$ for the others, whose
kernel vanishes where $x$ and $y$ are opposed.
"""

CITATION = (
    "Choromanski et al., Rethinking Attention with Performers, arXiv 2009.14794, lemma 1; "
    "Cho and Saul, Kernel Methods for Deep Learning, 2009, for ReLU and its square."
)

SCALES = (0.3, 1.0, 2.0)
CUBATURE, MULTIPRECISION = 1e-12, 1e-15
"""Claimed precision. The second is that of constants such as √2 and π, which the definitions hold as double floats."""

LINE = ((7.0, 6.0), (7.0, -7.0), (1e-6, 9.0))
"""Numbers x and y far outside of what float64 cubature reaches."""
PLANE = ((1.0, 1.0, 1e-3), (1e3, 1e-3, math.pi - 1e-3), (1e-8, 1e8, 2.0))
"""Norms of x and y and the angle between them: nearly parallel, nearly opposed, and far apart in norm."""


NAMES = ("positive", "hyperbolic", "trigonometric", "exp", "relu", "squared_relu")


def known() -> dict[str, FeatureMap]:
    """Return the library's maps that the result is about."""
    return {name: rfk.lookup(name) for name in NAMES}


def unit(feature_map: FeatureMap, points: Pairs, scale: float = 1.0) -> Array:
    """Return what deviations are relative to: the kernel, or √(k(x, x) k(y, y)) for a map that is not exponential."""
    if feature_map.exponential:
        return cubature.kernel(feature_map, points, scale)
    of_x = cubature.kernel(feature_map, Pairs(points.x, points.x), scale)
    of_y = cubature.kernel(feature_map, Pairs(points.y, points.y), scale)
    bound: Array = np.sqrt(of_x * of_y)
    return bound


def deviations(feature_map: FeatureMap, points: Pairs, scale: float = 1.0) -> Array:
    """Return (E φ(x)·φ(y) − k(x, y)) / unit for each pair, by cubature."""
    apart = cubature.mean(feature_map, points, scale) - cubature.kernel(feature_map, points, scale)
    relative: Array = apart / unit(feature_map, points, scale)
    return relative


def by_cubature(name: str, feature_map: FeatureMap) -> Measured:
    """Compare on pairs of norm up to 1 at several scales, in float64."""
    points = cubature.pairs()
    error = greatest(*(cubature.largest(deviations(feature_map, points, scale)) for scale in SCALES))
    return Measured("cubature", name, error, CUBATURE)


def by_symbols(name: str, feature_map: FeatureMap) -> Measured:
    """Prove it for all x and y."""
    return symbolic.compare(name, symbolic.moment(feature_map), symbolic.kernel(feature_map))


def by_many_digits(name: str, feature_map: FeatureMap) -> Measured:
    """Compare at extreme points, in multiple precision."""
    with mp.workdps(multiprecision.DIGITS):
        if feature_map.exponential:
            errors = [_line(feature_map, mp.mpf(x), mp.mpf(y)) for x, y in LINE]
        else:
            errors = [_plane(feature_map, mp.mpf(x), mp.mpf(y), mp.mpf(angle)) for x, y, angle in PLANE]
        return Measured("mpmath", name, greatest(*errors), MULTIPRECISION)


def _line(feature_map: FeatureMap, x: mp.mpf, y: mp.mpf) -> float:
    mean = multiprecision.line_mean(feature_map, x, y)
    return float(abs(mean / multiprecision.kernel(feature_map, x * y, x * x, y * y) - 1))


def _plane(feature_map: FeatureMap, x: mp.mpf, y: mp.mpf, angle: mp.mpf) -> float:
    closed = multiprecision.kernel(feature_map, x * y * mp.cos(angle), x * x, y * y)
    of_x, of_y = (multiprecision.kernel(feature_map, n * n, n * n, n * n) for n in (x, y))
    return float(abs(multiprecision.plane_mean(feature_map, x, y, angle) - closed) / mp.sqrt(of_x * of_y))


def check(maps: Mapping[str, FeatureMap] | None = None) -> Verdict:
    """Put maps to the proof.

    Parameters
    ----------
    maps : mapping of str to FeatureMap, optional
        Maps with a kernel, by name; the library's own by default.

    Returns
    -------
    Verdict
        For each map: cubature in the plane, a proof by SymPy, and mpmath at extreme points.
    """
    items = (known() if maps is None else maps).items()
    methods = (by_cubature, by_symbols, by_many_digits)
    return Verdict(tuple(method(name, feature_map) for method in methods for name, feature_map in items))


def figure() -> Figure:
    """Draw kernels of unit vectors against their angle with the integrals of the features, and the deviations."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    angles = np.linspace(0.02, math.pi - 0.02, 41)
    points = Pairs(np.tile([1.0, 0.0], (41, 1)), np.stack([np.cos(angles), np.sin(angles)], -1))
    for i, (name, feature_map) in enumerate(known().items()):
        left.plot(angles, cubature.kernel(feature_map, points), color=f"C{i}", linewidth=1)
        some = Pairs(points.x[i::6], points.y[i::6])
        left.plot(angles[i::6], cubature.mean(feature_map, some), "o", color=f"C{i}", label=name, markersize=4)
        errors = np.maximum(np.abs(deviations(feature_map, points)), 1e-17)
        right.semilogy(angles, errors, ".", color=f"C{i}", label=name)
    right.axhline(CUBATURE, color="black", linestyle="--", linewidth=1, label="claimed")
    left.set(title="kernel (line), integral of features (dots)", xlabel="angle between unit vectors", yscale="log")
    right.set(title="relative deviation", xlabel="angle between unit vectors")
    left.legend(fontsize="small")
    right.legend(fontsize="small", loc="center right", bbox_to_anchor=(1.0, 0.75))
    return drawn


RESULT = Result("unbiasedness", STATEMENT, CITATION, check, figure)
