"""Closed forms k(x, y) that feature maps estimate, as logs of functions of x·y, |x|² and |y|²."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import elementwise
from rfkernels._checks import is_number, is_tracer

LogKernel = Callable[[Any, Any, Any, Any], Any]
LogProfile = Callable[[Any, Any], Any]

LARGEST_ORDER = 16
"""The largest order of arc-cosine kernels: twice that of the maps, whose second moments have twice their order."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that is a function of x·y, |x|² and |y|² of the scaled inputs.

    Parameters
    ----------
    name : str
        What it is called in tables and errors.
    log : callable
        ``log(xp, dot, xx, yy)``: the log of |k(x, y)| from x·y, |x|² and |y|², elementwise, made of the functions of
        the namespace `xp`. What it returns must not change: code that is made of it is kept. To be differentiated it
        must have a derivative wherever it is −inf, as that of ``xp.where`` between constants is.
    norm_weight : float, optional
        κ when log k(x, y) = x·y + κ (|x|² + |y|²), which then may stand for `log`; None for any other form. The numba
        backend has exact parts in attention (``window=``) for such kernels only, the others for all.
    sign : callable, optional
        ``sign(xp, dot, xx, yy)``: the sign of k(x, y), one of −1, 0 and 1, for a kernel that can be negative. Where it
        is 0, exact attention takes the derivative of the weight to be 0 too.
    profile : callable, optional
        ``profile(xp, squared)``: the log of k(x, y) from |x − y|², for a kernel that depends on nothing else; then
        sums over a `Catalog` are compiled. `of_distance` makes such kernels.

    Raises
    ------
    TypeError, ValueError
        If a function is none, cannot be hashed, or is not elementwise where it was tried, `sign` returned other numbers
        there, or `norm_weight` is not a finite number or not that of `log`.
    """

    name: str
    log: LogKernel
    norm_weight: float | None = None
    sign: LogKernel | None = None
    profile: LogProfile | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {self.name!r}")
        if self.profile is not None:
            _check_profile(self.profile)
            _check_elementwise("profile", self.profile, self.log)
        else:
            for name, function in (("log", self.log), ("sign", self.sign)):
                if name == "log" or function is not None:
                    _check_function(name, function)
                    _check_elementwise(name, function, function)
            if self.sign is not None:
                _check_signs(self.sign)
        if self.norm_weight is not None:
            _check_norm_weight(self.norm_weight, self.log)

    @classmethod
    def of_distance(cls, name: str, profile: LogProfile) -> Kernel:
        """Return the kernel exp(profile(|x − y|²)).

        Parameters
        ----------
        name : str
            What it is called in tables and errors.
        profile : callable
            ``profile(xp, squared)``: the log of the kernel from |x − y|², elementwise, −inf where the kernel is 0. With
            arithmetic, comparisons and the functions that activations may use, `rfkernels.activations.FUNCTIONS` by
            way of `xp`, alone, it runs on every backend; a catalog has others evaluated by NumPy, in which a query may
            take seconds. What it returns must not change: tables and code that are made of it are kept.

        Returns
        -------
        Kernel
            Kernels of equal names and profiles are equal.

        Raises
        ------
        TypeError
            If the profile is not a function, cannot be hashed, or returned no real numbers where it was tried.
        ValueError
            If it is not elementwise where it was tried.

        Examples
        --------
        The Epanechnikov kernel, 1 − |x − y|² up to a distance of 1:

        >>> import rfkernels as rfk
        >>> def profile(xp, squared):
        ...     inside = squared < 1
        ...     return xp.where(inside, xp.log(xp.where(inside, 1 - squared, 1)), -float("inf"))
        >>> kernel = rfk.Kernel.of_distance("epanechnikov", profile)
        """
        _check_profile(profile)
        return cls(name, _OfDistance(profile), profile=profile)


def _check_profile(profile: Any) -> None:
    if not callable(profile) or not isinstance(profile, Hashable):
        raise TypeError(f"profile must be a function profile(xp, squared) that can be hashed, got {profile!r}")


_X, _Y = np.array([[0.3, -0.8], [1.1, 0.4]]), np.array([[0.5, 0.2], [-0.9, 0.7], [0.1, -1.3]])
_ROUNDING = 2.0**-16  # of what may be computed in float32
_PAIRS = _X @ _Y.T, (_X * _X).sum(-1)[:, None], (_Y * _Y).sum(-1)[None, :]


def _check_function(name: str, function: Any) -> None:
    if not callable(function) or not isinstance(function, Hashable):
        raise TypeError(f"{name} must be a function {name}(xp, dot, xx, yy) that can be hashed, got {function!r}")


def _check_elementwise(name: str, function: Any, run: Any) -> None:
    """Require a function whose values, taken of pairs of points by `run`, do not depend on the others beside them."""
    with np.errstate(all="ignore"):
        whole, row, column = (
            run(np, *(x[:rows, :columns] for x in _PAIRS)) for rows, columns in ((2, 3), (1, 3), (2, 1))
        )
    if is_tracer(whole):
        return
    try:
        values = [np.asarray(x).astype(np.float64, casting="same_kind") for x in (whole, row, column)]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must return real numbers, but {function!r} returned {whole!r}") from error
    try:
        whole, row, column = (np.broadcast_to(x, y) for x, y in zip(values, ((2, 3), (1, 3), (2, 1)), strict=True))
    except ValueError:
        alike = False
    else:
        pairs = (whole[:1], row), (whole[:, :1], column)
        alike = all(np.allclose(x, y, rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True) for x, y in pairs)
    if not alike:
        raise ValueError(
            f"{name} must be elementwise: {function!r} returned other values, or another shape, for points together "
            "than for each alone"
        )


def _check_signs(sign: Any) -> None:
    with np.errstate(all="ignore"):
        values = sign(np, *_PAIRS)
    if not (is_tracer(values) or np.isin(np.asarray(values), (-1, 0, 1)).all()):
        raise ValueError(f"sign must return -1, 0 or 1, but {sign!r} returned {values!r}")


def _check_norm_weight(weight: Any, log: Any) -> None:
    """Require κ to be that of the log, which some backends then do not look at."""
    if not is_number(weight):
        raise ValueError(f"norm_weight must be a finite number or None, got {weight!r}")
    dot, xx, yy = _PAIRS
    values = log(np, *_PAIRS)
    alike = is_tracer(values) or np.allclose(values, dot + weight * (xx + yy), rtol=_ROUNDING, atol=_ROUNDING)
    if not alike:
        raise ValueError(
            f"norm_weight must be None, or κ where log is x·y + κ (|x|² + |y|²), got {weight!r} and {log!r}, which is "
            "another function"
        )


def evaluated(function: LogKernel, xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """Return what a function, which JAX must be able to trace, returns, in the shape and dtype of x·y."""
    try:
        found = function(xp, dot, xx, yy)
    except TypeError as error:
        if xp is np:
            raise
        raise TypeError(
            f"a kernel's functions must be made of those of their namespace xp to be used with JAX, got {function!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    with np.errstate(over="ignore"):
        found = xp.asarray(found, dot.dtype)
    return found if found.shape == dot.shape else xp.full(dot.shape, found)


@dataclass(frozen=True)
class _OfDistance:
    """The log of a kernel from x·y, |x|² and |y|² by way of |x − y|²."""

    profile: LogProfile

    def __call__(self, xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
        return self.profile(elementwise(xp), squared_distance(xp, dot, xx, yy))


def squared_distance(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """Return |x − y|², at least 0: from x·y, |x|² and |y|² it is known to their rounding only."""
    return xp.maximum(xx + yy - 2 * dot, 0)


def log_magnitude(xp: Any, value: Any) -> Any:
    """Return the log of a nonnegative value, −inf at zero, where its derivative is zero."""
    return xp.where(value > 0, xp.log(xp.where(value > 0, value, 1)), -xp.inf)


class Angle(NamedTuple):
    """|x||y|, cos θ, whether θ is strictly between 0 and π, and cos θ there, 0 elsewhere.

    The angle has no derivative in the cosine at ±1, nor a norm at zero, though kernels do: what is differentiated is a
    function of `inside`, and taken where `between` holds.
    """

    norms: Any
    cosine: Any
    between: Any
    inside: Any


def angle_of(xp: Any, dot: Any, xx: Any, yy: Any) -> Angle:
    """Return what kernels of the angle are made of; the cosine is 0 where a vector is zero."""
    nothing = (xx == 0) | (yy == 0)
    norms = xp.where(nothing, 0, xp.sqrt(xp.where(nothing, 1, xx)) * xp.sqrt(xp.where(nothing, 1, yy)))
    same = (xx == yy) & (xx != 0)  # there to the last bit, with all derivatives
    one, other = xp.where(same, xx, 1), xp.where(same, yy, 1)
    norms = xp.where(same, one * xp.sqrt(other / one), norms)
    cosine = dot / xp.where(norms == 0, 1, norms)
    between = (cosine > -1) & (cosine < 1)
    return Angle(norms, cosine, between, xp.where(between, cosine, 0))


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    total = 0 * x + coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


@cache
def _arc_cosine_polynomials(order: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return p and q, constant terms first, of J = p(cos θ) sin θ + q(cos θ) (π − θ).

    J of the next order is sin²θ dJ/d(cos θ) + (2 order + 1) cos θ J. No coefficient is negative.
    """
    if order == 0:
        return (0,), (1,)
    before = _arc_cosine_polynomials(order - 1)
    size, n = order + 1, order - 1
    p, q = ([*x, *[0] * (size + 1 - len(x))] for x in before)
    slope_p, slope_q = ([k * x[k] for k in range(1, size + 1)] for x in (p, q))
    next_p = [slope_p[k] - (slope_p[k - 2] if k > 1 else 0) + 2 * n * p[k - 1] * (k > 0) + q[k] for k in range(size)]
    next_q = [slope_q[k] - (slope_q[k - 2] if k > 1 else 0) + (2 * n + 1) * q[k - 1] * (k > 0) for k in range(size)]
    return tuple(next_p), tuple(next_q)


@cache
def _arc_cosine_series(order: int) -> tuple[float, ...]:
    """Return the Taylor coefficients of 2F1(½, ½; order + 3/2; z) that matter in float64 for z up to ½."""
    terms = [1.0]
    while terms[-1] > 2.0 ** (len(terms) - 60):
        k = len(terms) - 1
        terms.append(terms[-1] * (k + 0.5) ** 2 / ((order + 1.5 + k) * (k + 1)))
    return tuple(terms)


@dataclass(frozen=True)
class _LogArcCosine:
    """The log of the arc-cosine kernel of an order, |x|ⁿ |y|ⁿ J(θ) / 2π.

    At obtuse angles the terms of J cancel; there it is n!² 2²ⁿ⁺¹ / (2n + 1)!! zⁿ⁺¹ᐟ² 2F1(½, ½; n + 3/2; z) with
    z = (1 + cos θ)/2, all of whose terms are positive.
    """

    order: int

    def __call__(self, xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
        n = self.order
        norms, cosine, between, inside = angle_of(xp, dot, xx, yy)
        acute = log_magnitude(xp, self._acute(xp, cosine, inside) / (2 * xp.pi))
        z = (1 + xp.where(between, xp.minimum(inside, 0), 0)) / 2
        factor = math.factorial(n) ** 2 * 4**n / math.prod(range(1, 2 * n + 2, 2))
        series = (n + 0.5) * xp.log(z) + xp.log(factor * _polynomial(z, _arc_cosine_series(n)) / xp.pi)
        shape = xp.where(cosine >= 0, acute, xp.where(between, series, -xp.inf))
        if n == 0:
            return xp.where(norms > 0, shape, -xp.inf)
        return n * log_magnitude(xp, norms) + shape

    def _acute(self, xp: Any, cosine: Any, inside: Any) -> Any:
        p, q = (tuple(map(float, x)) for x in _arc_cosine_polynomials(self.order))  # JAX has no such integers
        angle = xp.arccos(inside)
        shape = _polynomial(inside, p) * xp.sin(angle) + _polynomial(inside, q) * (xp.pi - angle)
        return xp.where(cosine < 1, shape, xp.pi * _polynomial(cosine, q))  # which has J's derivative at θ = 0


def arc_cosine(order: int) -> Kernel:
    """Return the arc-cosine kernel of an order n, E max(w·x, 0)ⁿ max(w·y, 0)ⁿ with w ~ N(0, I).

    It is |x|ⁿ |y|ⁿ J(θ) / 2π, with θ the angle and J(θ) = (−1)ⁿ sin²ⁿ⁺¹θ (d / (sin θ dθ))ⁿ ((π − θ) / sin θ): half of
    what Cho and Saul (Kernel methods for deep learning, 2009) give the name. The power 0 is the step function, 1 for
    w·x > 0 and 0 otherwise.

    Parameters
    ----------
    order : int
        n, from 0 to 16.

    Returns
    -------
    Kernel
        Kernels of equal order are equal.

    Raises
    ------
    ValueError
        If the order is not such an integer.
    """
    if isinstance(order, bool) or not isinstance(order, int) or not 0 <= order <= LARGEST_ORDER:
        raise ValueError(f"order must be an int from 0 to {LARGEST_ORDER}, got {order!r}")
    return Kernel(f"arc_cosine_{order}", _LogArcCosine(order))


def _sign_of_dot(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    return xp.sign(dot)


def _exponential(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    return dot


def _shifted_gaussian(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    return dot + (xx + yy) / 2


def _sign(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    _, _, between, inside = angle_of(xp, dot, xx, yy)
    return log_magnitude(xp, xp.where(between, 2 * xp.abs(xp.arcsin(inside)) / xp.pi, 1))


def _absolute(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    norms, cosine, between, inside = angle_of(xp, dot, xx, yy)
    shape = 2 * (xp.sqrt(1 - inside**2) + inside * (xp.pi / 2 - xp.arccos(inside))) / xp.pi
    return log_magnitude(xp, norms) + xp.log(xp.where(between, shape, xp.abs(cosine)))


def _square(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    norms, cosine, _, _ = angle_of(xp, dot, xx, yy)
    return 2 * log_magnitude(xp, norms) + xp.log(1 + 2 * cosine**2)


def _cosine(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    size = xp.abs(dot)
    return size - (xx + yy) / 2 + xp.log((1 + xp.exp(-2 * size)) / 2)


def error_function_sine(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """Return 2 x·y / √((1 + 2|x|²)(1 + 2|y|²)), the sine of π/2 times E erf(w·x) erf(w·y)."""
    return dot / (xp.sqrt(0.5 + xx) * xp.sqrt(0.5 + yy))


def _erf(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    sine = error_function_sine(xp, dot, xx, yy)
    between = (sine > -1) & (sine < 1)  # but for rounding it always is
    inside = xp.where(between, sine, 0)
    return log_magnitude(xp, xp.where(between, 2 * xp.abs(xp.arcsin(inside)) / xp.pi, 1))


EXPONENTIAL = Kernel("exponential", _exponential, norm_weight=0.0)
"""k(x, y) = exp(x·y), the kernel of softmax (Performers, arXiv 2009.14794)."""

SHIFTED_GAUSSIAN = Kernel("shifted_gaussian", _shifted_gaussian, norm_weight=0.5)
"""k(x, y) = exp(|x + y|²/2), what exp features without an offset estimate: E exp(w·x) exp(w·y), w ~ N(0, I)."""

ARC_COSINE_0 = arc_cosine(0)
"""k(x, y) = (π − θ) / 2π, θ the angle; 0 if a vector is: the probability of w·x > 0 and w·y > 0."""

ARC_COSINE_1 = arc_cosine(1)
"""k(x, y) = |x||y| (sin θ + (π − θ) cos θ) / 2π, θ the angle: E max(w·x, 0) max(w·y, 0) (Cho and Saul 2009)."""

ARC_COSINE_2 = arc_cosine(2)
"""k(x, y) = |x|²|y|² (3 sin θ cos θ + (π − θ)(1 + 2 cos² θ)) / 2π: E max(w·x, 0)² max(w·y, 0)² (Cho and Saul 2009)."""

SIGN = Kernel("sign", _sign, sign=_sign_of_dot)
"""k(x, y) = (2/π) arcsin cos θ = 1 − 2θ/π; 0 if a vector is: E sign(w·x) sign(w·y)."""

ABSOLUTE = Kernel("absolute", _absolute)
"""k(x, y) = (2/π) |x||y| (sin θ + (π/2 − θ) cos θ): E |w·x| |w·y|."""

SQUARE = Kernel("square", _square)
"""k(x, y) = |x|²|y|² + 2 (x·y)²: E (w·x)² (w·y)²."""

COSINE = Kernel("cosine", _cosine)
"""k(x, y) = exp(−(|x|² + |y|²)/2) cosh(x·y): E cos(w·x) cos(w·y)."""

ERF = Kernel("erf", _erf, sign=_sign_of_dot)
"""k(x, y) = (2/π) arcsin(2 x·y / √((1 + 2|x|²)(1 + 2|y|²))): E erf(w·x) erf(w·y) (Williams 1998)."""
