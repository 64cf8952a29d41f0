"""Expectations to many digits at extreme points: mpmath runs the library's own activations and kernels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mpmath as mp

from rfkernels import FeatureMap

DIGITS = 60
"""Digits that the sums are carried out to."""

NAMESPACE = SimpleNamespace(
    abs=abs,
    arccos=mp.acos,
    arcsin=mp.asin,
    clip=lambda value, low, high: min(max(value, low), high),
    cos=mp.cos,
    e=mp.e,
    erf=mp.erf,
    exp=mp.exp,
    expm1=mp.expm1,
    inf=mp.inf,
    log=mp.log,
    log1p=mp.log1p,
    maximum=max,
    minimum=min,
    pi=mp.pi,
    sign=mp.sign,
    sin=mp.sin,
    sinh=mp.sinh,
    sqrt=mp.sqrt,
    square=lambda value: value**2,
    tanh=mp.tanh,
    where=lambda condition, yes, no: yes if condition else no,
)
"""The namespace that an activation or a kernel runs on."""


def kernel(feature_map: FeatureMap, dot: Any, xx: Any, yy: Any) -> Any:
    """Return the closed form that the map names."""
    assert feature_map.kernel is not None
    sign = feature_map.kernel.sign
    magnitude = mp.exp(feature_map.kernel.log(NAMESPACE, dot, xx, yy))
    return magnitude if sign is None else magnitude * sign(NAMESPACE, dot, xx, yy)


def estimate(feature_map: FeatureMap, u: Any, v: Any, xx: Any, yy: Any) -> Any:
    """Return φ(x)·φ(y) of one-row features from the projections u = w·x and v = w·y."""
    a, b = feature_map.offset * xx, feature_map.offset * yy
    parts = [h(NAMESPACE, u, a) * h(NAMESPACE, v, b) for h in feature_map.activations]
    return sum(parts) / len(parts)


def line_mean(feature_map: FeatureMap, x: Any, y: Any, centre: Any = 0, power: int = 1) -> Any:
    """Return E (φ(x)·φ(y) − centre)^power for numbers x and y, by the trapezoidal rule.

    For an integrand that is analytic in the row with Gaussian decay, its error falls like exp(−2π²/step²); the range
    reaches 16 beyond the mean of the tilted Gaussian, where exp(−16²/2) is left.
    """
    step, reach = mp.mpf(1) / 8, 16 + power * (abs(x) + abs(y))
    total = mp.mpf(0)
    for i in range(-int(reach / step), int(reach / step) + 1):
        w = i * step
        total += mp.exp(-w * w / 2) * (estimate(feature_map, w * x, w * y, x * x, y * y) - centre) ** power
    return total * step / mp.sqrt(2 * mp.pi)


def plane_mean(feature_map: FeatureMap, x: Any, y: Any, angle: Any, power: int = 1, degree: int = 4) -> Any:
    """Return E (φ(x)·φ(y))^power for norms x and y and an angle in (0, π), by Gauss–Legendre in polar pieces."""
    quarter = mp.pi / 2

    def integrand(r: Any, t: Any) -> Any:
        u, v = r * x * mp.cos(t), r * y * mp.cos(t - angle)
        return r * mp.exp(-r * r / 2) * estimate(feature_map, u, v, x * x, y * y) ** power / (2 * mp.pi)

    cuts = [-quarter, angle - quarter, quarter, angle + quarter, 3 * quarter]
    return mp.quad(integrand, [0, 6, 14], cuts, method="gauss-legendre", maxdegree=degree)
