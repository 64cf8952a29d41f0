"""Proofs by SymPy, which runs the library's own activations and kernels on symbols."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import sympy as sp

from rfkernels import FeatureMap
from rfkernels.activations import Activation
from rfkernels.kernels import LogKernel
from theory._verdict import Measured

X, Y = sp.symbols("X Y", positive=True)
"""|x| and |y|."""
C = sp.symbols("C", real=True)
"""The cosine of the angle between x and y."""
S = sp.sqrt(1 - C**2)

SOMEWHERE = {X: sp.Rational(3, 4), Y: sp.Rational(1, 2), C: sp.Rational(1, 3)}
"""A point with |x| > |y| and an acute angle."""

_G, _H, _SLOPE, _TURN = sp.symbols("g h k t", real=True)
_P, _R = sp.symbols("p r", positive=True)


def _where(condition: Any, yes: Any, no: Any) -> Any:
    """Choose by a condition that is decided; one that is not holds wherever the closed forms are not degenerate."""
    return no if condition in (False, sp.false) else yes


NAMESPACE = SimpleNamespace(
    abs=sp.Abs,
    arccos=lambda value: sp.pi - sp.acos(-value) if value.could_extract_minus_sign() else sp.acos(value),
    arcsin=lambda value: sp.pi / 2 - sp.acos(value),
    clip=lambda value, low, high: value,  # of a cosine, which is between −1 and 1 but for rounding
    cos=sp.cos,
    e=sp.E,
    erf=sp.erf,
    exp=sp.exp,
    expm1=lambda value: sp.exp(value) - 1,
    inf=sp.oo,
    log=sp.log,
    log1p=lambda value: sp.log(1 + value),
    maximum=sp.Max,
    minimum=sp.Min,
    pi=sp.pi,
    sign=sp.sign,
    sin=sp.sin,
    sinh=sp.sinh,
    sqrt=sp.sqrt,
    square=lambda value: value**2,
    tanh=sp.tanh,
    where=_where,
)
"""The namespace that an activation or a kernel runs on."""


def exact(expression: Any) -> Any:
    """Read each floating-point constant as the number that it rounds: √q, π√q, √q/π or log q, q a simple fraction."""
    return expression.xreplace({value: _exact_number(value) for value in expression.atoms(sp.Float)})


def _exact_number(value: Any) -> Any:
    size = abs(float(value))
    for power in (0, 1, -1):
        square = Fraction((size / math.pi**power) ** 2).limit_denominator(1000)
        if math.isclose(math.sqrt(square) * math.pi**power, size, rel_tol=4e-16, abs_tol=0.0):
            root = sp.sqrt(sp.Rational(square.numerator, square.denominator))
            return sp.sign(value) * root * sp.pi**power
    argument = Fraction(math.exp(min(size, 10))).limit_denominator(100)
    if math.isclose(math.log(argument), size, rel_tol=4e-16, abs_tol=0.0):
        return sp.sign(value) * sp.log(sp.Rational(argument.numerator, argument.denominator))
    return sp.Rational(Fraction(float(value)))


def kernel(feature_map: FeatureMap) -> Any:
    """Return the closed form that the map names, where it is positive, in |x|, |y| and the cosine."""
    assert feature_map.kernel is not None
    return _closed(feature_map.kernel.log)


def variance(feature_map: FeatureMap) -> Any:
    """Return the variance that the map names, at acute angles, in |x|, |y| and the cosine."""
    assert feature_map.log_variance is not None
    return _closed(feature_map.log_variance)


def _closed(log: LogKernel) -> Any:
    """Return a closed form for acute angles and |x| ≥ |y|; shifts, which are maxima, must cancel."""
    found = sp.sympify(log(NAMESPACE, X * Y * C, X**2, Y**2)).subs(sp.Min(X**2, Y**2), Y**2)
    found = found.replace(sp.Abs, lambda value: value if value.subs(SOMEWHERE).evalf() > 0 else -value)
    shifts = {shift: sp.Dummy("shift", real=True) for shift in found.atoms(sp.Max)}
    return exact(sp.expand(sp.exp(found.xreplace(shifts)), power_exp=True) if shifts else sp.exp(found))


def moment(feature_map: FeatureMap, power: int = 1) -> Any:
    """Return E (φ(x)·φ(y))^power of one-row features in |x|, |y| and the cosine, for any dimension.

    The row is Gaussian on the plane of x and y, so the plane with x = (|x|, 0) is the general case.
    """
    waves = all(sp.sympify(h(NAMESPACE, _P, 0)).has(sp.cos, sp.sin, sp.exp) for h in feature_map.activations)
    return _exponential(feature_map, power) if waves else _by_sectors(feature_map, power)


def _exponential(feature_map: FeatureMap, power: int) -> Any:
    u, v = _G * X, (_G * C + _H * S) * Y
    a, b = feature_map.offset * X**2, feature_map.offset * Y**2
    parts = [h(NAMESPACE, u, a) * h(NAMESPACE, v, b) for h in feature_map.activations]
    estimate = exact(sp.Add(*parts)) / len(parts)
    return _gaussian_mean(_gaussian_mean(estimate**power, _G), _H)


def _gaussian_mean(expression: Any, variable: Any) -> Any:
    """Integrate a sum of exponentials of linear functions of `variable`, real or complex, against N(0, 1)."""
    terms = sp.Add.make_args(sp.powsimp(sp.expand(expression.rewrite(sp.exp), power_exp=False)))
    means = []
    for term in terms:
        coefficient, exponential = term.as_independent(variable)
        slope = sp.diff(sp.log(exponential).expand(force=True), variable)
        if slope.has(variable):
            raise ValueError(f"not an exponential of a linear function: {term}")
        rest = sp.simplify(exponential.subs(variable, 0))
        means.append(coefficient * rest * _exponential_mean().subs(_SLOPE, slope))
    return sp.Add(*means)


@cache
def _exponential_mean() -> Any:
    """Return E exp(k g), g ~ N(0, 1): integrated for real k, and entire in k, so it holds for complex k too."""
    density = sp.exp(-(_G**2) / 2) / sp.sqrt(2 * sp.pi)
    return sp.simplify(sp.integrate(sp.exp(_SLOPE * _G) * density, (_G, -sp.oo, sp.oo)))


def _by_sectors(feature_map: FeatureMap, power: int) -> Any:
    """Integrate in polar coordinates over the four sectors where w·x and w·y each have one sign."""
    a, b = feature_map.offset * X**2, feature_map.offset * Y**2
    start, stop = sp.acos(C) - sp.pi / 2, sp.pi / 2
    limits = {(1, 1): (start, stop), (-1, 1): (stop, start + sp.pi), (-1, -1): (start + sp.pi, stop + sp.pi)}
    limits[1, -1] = (-stop, start)
    total = sp.Integer(0)
    for one, other in product((1, -1), repeat=2):
        u, v = one * _R * X * sp.cos(_TURN), other * _R * Y * (C * sp.cos(_TURN) + S * sp.sin(_TURN))
        parts = [_half(h, one, a, u) * _half(h, other, b, v) for h in feature_map.activations]
        estimate = sp.expand((sp.Add(*parts) / len(parts)) ** power)
        total += sum(_sector(term, *limits[one, other]) for term in sp.Add.make_args(estimate))
    return total


def _half(activation: Activation, sign: int, a: Any, size: Any) -> Any:
    """Return h(sign · size, a), with `size` known to be positive."""
    return exact(sp.sympify(activation(NAMESPACE, sign * _P, a))).subs(_P, size)


def _sector(term: Any, start: Any, stop: Any) -> Any:
    """Integrate one term, a function of the radius times one of the direction, over a sector."""
    if term == 0:
        return term
    rest, radial = term.as_independent(_R)
    coefficient, angular = rest.as_independent(_TURN)
    length = sp.integrate(radial * _R * sp.exp(-(_R**2) / 2), (_R, 0, sp.oo)) / (2 * sp.pi)
    primitive = sp.integrate(angular, _TURN)
    return coefficient * length * (primitive.subs(_TURN, stop) - primitive.subs(_TURN, start))


def compare(subject: str, one: Any, other: Any) -> Measured:
    """Prove that two expressions in |x|, |y| and the cosine are equal, or say what is left of their difference."""
    apart = sp.expand(sp.expand_trig((one - other).rewrite([sp.sinh], sp.exp)))
    apart = apart if apart == 0 else sp.simplify(apart)
    if apart == 0:
        return Measured("SymPy", subject, 0.0, 0.0)
    error = abs(float(apart.subs(SOMEWHERE).evalf() / other.subs(SOMEWHERE).evalf()))
    text = str(apart)
    return Measured("SymPy", subject, error or math.inf, 0.0, text if len(text) <= 100 else f"{text[:97]}...")
