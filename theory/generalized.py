"""Generalised attention: the kernels that other activations estimate, and what a row of each is worth."""

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
from theory._verdict import Measured, Result, Verdict

STATEMENT = r"""
Generalised attention takes any activation $h$: a row $w \sim N(0, I)$ estimates the kernel
$k(x, y) = \mathbb{E}\, h(w \cdot x) h(w \cdot y)$. With the angle $\theta$, $a = |x|^2$ and $b = |y|^2$,

- step: $(\pi - \theta)/2\pi =: p$, of variance $p (1 - p)$;
- sign: $1 - 2\theta/\pi$, of variance $4 \theta (\pi - \theta)/\pi^2$;
- powers $\max(u, 0)^n$: the arc-cosine kernel of order $n$, whose second moment is that of order $2n$;
- $|u|$: $\frac2\pi |x||y| (\sin\theta + (\frac\pi2 - \theta) \cos\theta)$, of second moment $ab + 2 (x \cdot y)^2$;
- $u^2$: $ab + 2 (x \cdot y)^2$, of variance $8 a^2 b^2 + 68 ab (x \cdot y)^2 + 20 (x \cdot y)^4$;
- $\cos u$: $e^{-(a + b)/2} \cosh(x \cdot y)$, of second moment
  $\frac14 (1 + e^{-2a} + e^{-2b} + e^{-2(a + b)} \cosh(4\, x \cdot y))$;
- $\mathrm{erf}(u)$: $\frac2\pi \arcsin\bigl( 2\, x \cdot y / \sqrt{(1 + 2a)(1 + 2b)} \bigr)$, whose variance is an
  integral.

These are the kernels and variances that the library's maps name. Means are compared relative to
$\sqrt{k(x, x)\, k(y, y)}$, variances to second moments. SymPy proves all but those of $\mathrm{erf}$, whose products
have no elementary integral, in the plane for acute angles and $|x| \ge |y|$; cubature covers all angles.
"""

CITATION = (
    "Choromanski et al., Rethinking Attention with Performers, arXiv 2009.14794, section 2.2; Cho and Saul, Kernel "
    "Methods for Deep Learning, 2009; Williams, Computation with Infinite Neural Networks, 1998. "
    "The variances follow from the same integrals."
)

CUBATURE, MULTIPRECISION = 1e-11, 1e-13
"""Claimed precision. The second is that of the library's quadrature for erf, in constants of double precision."""

NAMES = ("step", "sign", "relu", "squared_relu", "abs", "square", "cosine", "erf")
FAR = (3, 2, 0.6)
"""Norms of x and y and the angle between them, where erf is steep."""


def library() -> dict[str, FeatureMap]:
    """Return the library's maps that the result is about."""
    return {**{name: rfk.lookup(name) for name in NAMES}, "arc-cosine of order 3": rfk.maps.arc_cosine(3)}


def unit(feature_map: FeatureMap, points: Pairs) -> Array:
    """Return √(k(x, x) k(y, y))."""
    of_x, of_y = (cubature.kernel(feature_map, Pairs(point, point)) for point in points)
    bound: Array = np.sqrt(of_x * of_y)
    return bound


def by_cubature(name: str, feature_map: FeatureMap) -> list[Measured]:
    """Compare on pairs of norms up to 1, at acute and obtuse angles."""
    points = cubature.pairs((0.1, 0.5, 1.0), 6)
    mean, second = (cubature.mean(feature_map, points, power=power) for power in (1, 2))
    apart = (mean - cubature.kernel(feature_map, points)) / unit(feature_map, points)
    spread = (second - mean**2 - cubature.variance(feature_map, points)) / second
    errors = {name: apart, f"{name}, variance": spread}
    return [Measured("cubature", what, cubature.largest(error), CUBATURE) for what, error in errors.items()]


def by_symbols(name: str, feature_map: FeatureMap) -> list[Measured]:
    """Prove both."""
    mean, second = (symbolic.moment(feature_map, power) for power in (1, 2))
    return [
        symbolic.compare(name, mean, symbolic.kernel(feature_map)),
        symbolic.compare(f"{name}, variance", second - mean**2, symbolic.variance(feature_map)),
    ]


def by_many_digits(name: str, feature_map: FeatureMap) -> list[Measured]:
    """Compare in multiple precision, where the cubature is of no help against rounding."""
    assert feature_map.log_variance is not None
    with mp.workdps(20):
        x, y, angle = map(mp.mpf, FAR)
        products = x * y * mp.cos(angle), x * x, y * y
        mean, second = (multiprecision.plane_mean(feature_map, x, y, angle, power, degree=5) for power in (1, 2))
        stated = mp.exp(feature_map.log_variance(multiprecision.NAMESPACE, *products))
        errors = {
            name: abs(mean - multiprecision.kernel(feature_map, *products)) / mp.sqrt(second),
            f"{name}, variance": abs(second - mean**2 - stated) / second,
        }
    return [Measured("mpmath", what, float(error), MULTIPRECISION) for what, error in errors.items()]


def check(maps: Mapping[str, FeatureMap] | None = None) -> Verdict:
    """Put maps to the proof.

    Parameters
    ----------
    maps : mapping of str to FeatureMap, optional
        Maps with a kernel and a variance, by name; the library's own by default. One named "erf" has no proof by SymPy,
        and is compared in multiple precision instead.
    """
    measured = []
    for name, feature_map in (library() if maps is None else maps).items():
        measured += by_cubature(name, feature_map)
        measured += (by_many_digits if name == "erf" else by_symbols)(name, feature_map)
    return Verdict(tuple(measured))


def figure() -> Figure:
    """Draw kernels of unit vectors against their angle, and relative errors of one row, with integrals as dots."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    angles = np.linspace(0.02, math.pi - 0.02, 61)
    points = Pairs(np.tile([1.0, 0.0], (61, 1)), np.stack([np.cos(angles), np.sin(angles)], -1))
    some = Pairs(points.x[::10], points.y[::10])
    for i, (name, feature_map) in enumerate(library().items()):
        of_one = cubature.kernel(feature_map, Pairs(points.x, points.x))
        left.plot(angles, cubature.kernel(feature_map, points) / of_one, color=f"C{i}", linewidth=1, label=name)
        mean, second = (cubature.mean(feature_map, some, power=power) for power in (1, 2))
        left.plot(angles[::10], mean / of_one[::10], "o", color=f"C{i}", markersize=3)
        right.semilogy(angles, np.sqrt(cubature.variance(feature_map, points)) / of_one, color=f"C{i}", linewidth=1)
        spread = np.sqrt(np.maximum(second - mean**2, 0)) / of_one[::10]
        right.semilogy(angles[::10], spread, "o", color=f"C{i}", markersize=3)
    left.set(title="k(x, y) / k(x, x), unit vectors", xlabel="angle")
    right.set(title="standard deviation of one row / k(x, x)", xlabel="angle", ylim=(1e-2, 30))
    left.legend(fontsize="x-small")
    return drawn


RESULT = Result("generalized", STATEMENT, CITATION, check, figure)
