"""Closed forms k(x, y) that feature maps estimate, as logs of functions of x·y, |x|² and |y|²."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

LogKernel = Callable[[Any, Any, Any, Any], Any]


@dataclass(frozen=True)
class Kernel:
    """A kernel that is a function of x·y, |x|² and |y|² of the scaled inputs.

    Parameters
    ----------
    name : str
        What it is called in tables and errors.
    log : callable
        ``log(xp, dot, xx, yy)``: the log of k(x, y) from x·y, |x|² and |y|². To be differentiated it must have a
        derivative wherever it is −inf, as that of ``xp.where`` between constants is.
    norm_weight : float, optional
        κ when log k(x, y) = x·y + κ (|x|² + |y|²); None for any other form. The numba backend has exact parts in
        attention (``window=``) for such kernels only, the others for all.
    """

    name: str
    log: LogKernel
    norm_weight: float | None = None


def _exponential(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    return dot


def _shifted_gaussian(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    return dot + (xx + yy) / 2


_NEARLY_OPPOSED = 0.5
"""Below this π − θ the closed forms are differences of nearly equal terms, and their series is taken instead."""


class _Angle(NamedTuple):
    """|x||y|, cos θ, θ, and π − θ, which is not taken as a difference.

    The angle has no derivative in the cosine at ±1, nor a norm at zero, though the kernels do: `between` says where the
    cosine lies inside, and θ and π − θ are those of a right angle elsewhere.
    """

    norms: Any
    cosine: Any
    between: Any
    angle: Any
    rest: Any


def _angle(xp: Any, dot: Any, xx: Any, yy: Any) -> _Angle:
    nothing = (xx == 0) | (yy == 0)
    norms = xp.where(nothing, 0, xp.sqrt(xp.where(nothing, 1, xx)) * xp.sqrt(xp.where(nothing, 1, yy)))
    cosine = dot / xp.where(norms == 0, 1, norms)
    between = (cosine > -1) & (cosine < 1)
    inside = xp.where(between, cosine, 0)
    angle, obtuse = xp.arccos(inside), inside < 0
    rest = 2 * xp.arcsin(xp.sqrt((1 + xp.where(obtuse, inside, 0)) / 2))
    return _Angle(norms, cosine, between, angle, xp.where(obtuse, rest, math.pi - angle))


def _log(xp: Any, value: Any) -> Any:
    return xp.where(value > 0, xp.log(xp.where(value > 0, value, 1)), -xp.inf)


def _odd_series(x: Any, coefficients: list[float]) -> Any:
    total = 0.0
    for power, coefficient in enumerate(coefficients, 1):
        total = total + coefficient * x ** (2 * power + 1)
    return total


_SERIES_1 = [(-1) ** k * (1 / math.factorial(2 * k + 1) - 1 / math.factorial(2 * k)) for k in range(1, 9)]
_SERIES_2 = [(-1) ** k * (0.5 / math.factorial(2 * k) - 1.5 / math.factorial(2 * k + 1)) for k in range(1, 11)]


def _arc_cosine_1(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    norms, cosine, between, angle, rest = _angle(xp, dot, xx, yy)
    shape = xp.sin(angle) + (math.pi - angle) * xp.cos(angle)
    shape = xp.where(rest > _NEARLY_OPPOSED, shape, _odd_series(rest, _SERIES_1))
    shape = xp.where(between, shape, xp.where(cosine > 0, math.pi * cosine, 0))
    return _log(xp, norms * shape / (2 * math.pi))


def _arc_cosine_2(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    norms, cosine, between, angle, rest = _angle(xp, dot, xx, yy)
    c = xp.cos(angle)
    shape = 3 * xp.sin(angle) * c + (math.pi - angle) * (1 + 2 * c**2)
    shape = xp.where(rest > _NEARLY_OPPOSED, shape, _odd_series(2 * rest, _SERIES_2))
    shape = xp.where(between, shape, xp.where(cosine > 0, math.pi * (4 * cosine - 1), 0))
    return _log(xp, norms**2 * shape / (2 * math.pi))


EXPONENTIAL = Kernel("exponential", _exponential, norm_weight=0.0)
"""k(x, y) = exp(x·y), the kernel of softmax (Performers, arXiv 2009.14794)."""

SHIFTED_GAUSSIAN = Kernel("shifted_gaussian", _shifted_gaussian, norm_weight=0.5)
"""k(x, y) = exp(|x + y|²/2), what exp features without an offset estimate: E exp(w·x) exp(w·y), w ~ N(0, I)."""

ARC_COSINE_1 = Kernel("arc_cosine_1", _arc_cosine_1)
"""k(x, y) = |x||y| (sin θ + (π − θ) cos θ) / 2π, θ the angle: E max(w·x, 0) max(w·y, 0) (Cho and Saul 2009)."""

ARC_COSINE_2 = Kernel("arc_cosine_2", _arc_cosine_2)
"""k(x, y) = |x|²|y|² (3 sin θ cos θ + (π − θ)(1 + 2 cos² θ)) / 2π: E max(w·x, 0)² max(w·y, 0)² (Cho and Saul 2009)."""
