"""Closed forms k(x, y) that feature maps estimate, as logs of functions of x·y, |x|² and |y|²."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LogKernel = Callable[[Any, Any, Any, Any], Any]


@dataclass(frozen=True)
class Kernel:
    """A kernel that is a function of x·y, |x|² and |y|² of the scaled inputs.

    Parameters
    ----------
    name : str
        What it is called in tables and errors.
    log : callable
        ``log(xp, dot, xx, yy)``: the log of k(x, y) from x·y, |x|² and |y|².
    norm_weight : float, optional
        κ when log k(x, y) = x·y + κ (|x|² + |y|²). Such kernels have exact parts in attention (``window=``); None for
        any other form.
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


def _angle(xp: Any, dot: Any, xx: Any, yy: Any) -> tuple[Any, Any, Any]:
    """Return |x||y|, the angle θ, and π − θ, which is not taken as a difference."""
    norms = xp.sqrt(xx) * xp.sqrt(yy)
    cosine = xp.clip(dot / xp.where(norms == 0, 1, norms), -1, 1)
    return norms, xp.arccos(cosine), 2 * xp.arcsin(xp.sqrt((1 + cosine) / 2))


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
    norms, angle, rest = _angle(xp, dot, xx, yy)
    shape = xp.sin(angle) + (math.pi - angle) * xp.cos(angle)
    shape = xp.where(rest > _NEARLY_OPPOSED, shape, _odd_series(rest, _SERIES_1))
    return _log(xp, norms * shape / (2 * math.pi))


def _arc_cosine_2(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    norms, angle, rest = _angle(xp, dot, xx, yy)
    cosine = xp.cos(angle)
    shape = 3 * xp.sin(angle) * cosine + (math.pi - angle) * (1 + 2 * cosine**2)
    shape = xp.where(rest > _NEARLY_OPPOSED, shape, _odd_series(2 * rest, _SERIES_2))
    return _log(xp, norms**2 * shape / (2 * math.pi))


EXPONENTIAL = Kernel("exponential", _exponential, norm_weight=0.0)
"""k(x, y) = exp(x·y), the kernel of softmax (Performers, arXiv 2009.14794)."""

SHIFTED_GAUSSIAN = Kernel("shifted_gaussian", _shifted_gaussian, norm_weight=0.5)
"""k(x, y) = exp(|x + y|²/2), what exp features without an offset estimate: E exp(w·x) exp(w·y), w ~ N(0, I)."""

ARC_COSINE_1 = Kernel("arc_cosine_1", _arc_cosine_1)
"""k(x, y) = |x||y| (sin θ + (π − θ) cos θ) / 2π, θ the angle: E max(w·x, 0) max(w·y, 0) (Cho and Saul 2009)."""

ARC_COSINE_2 = Kernel("arc_cosine_2", _arc_cosine_2)
"""k(x, y) = |x|²|y|² (3 sin θ cos θ + (π − θ)(1 + 2 cos² θ)) / 2π: E max(w·x, 0)² max(w·y, 0)² (Cho and Saul 2009)."""
