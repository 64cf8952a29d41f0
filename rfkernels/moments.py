"""How much one projection row tells: the log of the variance of what it estimates, for each named map.

Each is ``log_variance(xp, dot, xx, yy)``: from x·y, |x|² and |y|² of the scaled inputs, the log of
Var Σ h(w·x) h(w·y) / n over the n activations of the map, w ~ N(0, I); −inf where nothing varies. None overflows where
the squared norms do not, and all but `erf` are free of cancellation: they are as accurate as the |x ± y|² and
cos θ that follow from the arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

from rfkernels import kernels
from rfkernels.kernels import angle_of, error_function_sine, log_magnitude


def _log_drop(xp: Any, s: Any) -> Any:
    """Return log(1 − exp(−s)), −inf where s is not positive."""
    return log_magnitude(xp, -xp.expm1(-xp.where(s > 0, s, 0)))


def _log_sum(xp: Any, *logs: Any) -> Any:
    top = logs[0]
    for log in logs[1:]:
        top = xp.maximum(top, log)
    top = xp.where(top > -xp.inf, top, 0)
    return log_magnitude(xp, sum(xp.exp(log - top) for log in logs)) + top


def _log_difference(xp: Any, log_second: Any, log_mean: Any) -> Any:
    """Return log(E Z² − (E Z)²), −inf where rounding leaves nothing."""
    base = xp.where(log_second > -xp.inf, log_second, 0)
    return log_magnitude(xp, 1 - xp.exp(2 * log_mean - base)) + log_second


def positive(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """exp(2 x·y + s) (1 − e⁻ˢ), s = |x + y|² (Performers, arXiv 2009.14794, lemma 2)."""
    s = xx + yy + 2 * dot
    return 2 * dot + s + _log_drop(xp, s)


def hyperbolic(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """exp(2 x·y) 2 sinh²(s/2), s = |x + y|² (Performers, arXiv 2009.14794, lemma 2)."""
    s = xx + yy + 2 * dot
    return 2 * dot + s + 2 * _log_drop(xp, s) - math.log(2)


def trigonometric(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """exp(2 x·y) 2 sinh²(δ/2), δ = |x − y|² (Performers, arXiv 2009.14794, lemma 2)."""
    delta = xx + yy - 2 * dot
    return xx + yy + 2 * _log_drop(xp, delta) - math.log(2)


def shifted_gaussian(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """e²ˢ (1 − e⁻ˢ), s = |x + y|², of exp features without an offset."""
    s = xx + yy + 2 * dot
    return 2 * s + _log_drop(xp, s)


@dataclass(frozen=True)
class ArcCosineVariance:
    """Log-variance of rectified powers: the arc-cosine kernel of twice the order, less the square of their own.

    The square is at most half of the kernel.

    Parameters
    ----------
    order : int
        The order of the map, from 0 to 8.
    """

    order: int

    def __call__(self, xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
        """Return the log of the variance."""
        second, mean = (kernels.arc_cosine(n).log(xp, dot, xx, yy) for n in (2 * self.order, self.order))
        return _log_difference(xp, second, mean)


def sign(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """4 θ (π − θ) / π²; 0 if a vector is."""
    norms, _, between, inside = angle_of(xp, dot, xx, yy)
    angles = xp.arccos(inside) * xp.arccos(-inside)
    return log_magnitude(xp, xp.where(between & (norms > 0), 4 * angles / xp.pi**2, 0))


def absolute(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """|x|²|y|² + 2 (x·y)² less the square of the kernel, which is at most 4/π² of it."""
    return _log_difference(xp, kernels.SQUARE.log(xp, dot, xx, yy), kernels.ABSOLUTE.log(xp, dot, xx, yy))


def square(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """8 |x|⁴|y|⁴ + 68 |x|²|y|² (x·y)² + 20 (x·y)⁴."""
    norms, cosine, _, _ = angle_of(xp, dot, xx, yy)
    squared = cosine**2
    return 4 * log_magnitude(xp, norms) + xp.log(8 + squared * (68 + 20 * squared))


def cosine(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """((1 − e⁻ˢ)² + (1 − e⁻ᵟ)²) / 8 + (e⁻ᵃ − e⁻ᵇ)² / 4, with s and δ = |x ± y|², a = |x|² and b = |y|².

    The cosines of u + v and u − v, half of whose sum is cos u cos v, have the first two as variances and the third as
    covariance.
    """
    apart = -xp.minimum(xx, yy) + _log_drop(xp, xp.abs(xx - yy))
    sums = (_log_drop(xp, xx + yy + 2 * turn * dot) for turn in (1, -1))
    return _log_sum(xp, *(2 * drop - math.log(8) for drop in sums), 2 * apart - math.log(4))


@cache
def _legendre(nodes: int) -> tuple[tuple[float, float], ...]:
    """Return the points and weights of Gauss–Legendre quadrature on [0, 1]."""
    import numpy as np

    points, weights = np.polynomial.legendre.leggauss(nodes)
    return tuple(((1 + p) / 2, w / 2) for p, w in zip(points.tolist(), weights.tolist(), strict=True))


_NODES = 32


def erf(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """4/π² (arcsin α arcsin β + 4 ∫ arcsin g(t) dt) less the square of the kernel, the integral by quadrature.

    α = 2a / (1 + 2a) and β = 2b / (1 + 2b) with a = |x|² and b = |y|². The integral runs from 0 to arcsin γ, with
    γ = |2 x·y| / √((1 + 2a)(1 + 2b)), of g(t) = sin t / √((2 (1 + 2a) cos²t − 1)(2 (1 + 2b) cos²t − 1)).

    It comes from Price's theorem: the derivative of E erf²u erf²v in the covariance of u and v is the mean of
    (erf²)'(u) (erf²)'(v), in proportion to that of erf u erf v under a narrower normal law. The second moment is a
    combination of orthant probabilities of four normal variables, for which no elementary form is known. Of long and
    nearly parallel vectors the variance is a small difference, with a relative error of the order of ε |x||y|.
    """
    gamma = xp.abs(error_function_sine(xp, dot, xx, yy))
    gamma = xp.where(gamma < 1, gamma, 0)
    one, two = 2 * (1 + 2 * xx), 2 * (1 + 2 * yy)
    # tan t = sinh q, which spreads out the end of the range, where nearly parallel long vectors have their integral
    tangent = gamma / xp.sqrt((1 - gamma) * (1 + gamma))
    reach = xp.log1p(tangent + tangent**2 / (1 + xp.sqrt(1 + tangent**2)))
    integral = 0 * reach
    for point, weight in _legendre(_NODES):
        grown = xp.expm1(point * reach)
        sinh = grown * (2 + grown) / (2 * (1 + grown))
        cosh = xp.sqrt(1 + sinh**2)
        ratio = sinh * cosh / (xp.sqrt(one - cosh**2) * xp.sqrt(two - cosh**2))
        integral = integral + weight * xp.arcsin(ratio) / cosh
    alone = [xp.arcsin(2 * square / (1 + 2 * square)) for square in (xx, yy)]
    there = [xp.where(value > 0, value, 1) for value in alone]
    share = (reach / there[0]) * (integral / there[1])  # no product of small numbers, which could underflow
    second = log_magnitude(xp, alone[0]) + log_magnitude(xp, alone[1]) + xp.log(4 * (1 + 4 * share) / xp.pi**2)
    return _log_difference(xp, second, kernels.ERF.log(xp, dot, xx, yy))
