"""Numbers that NumPy carries through the library's own code without rounding: SymPy expressions in object arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import sympy as sp


class Exact:
    """An exact number, with the operations and functions that the library's states are made with.

    NumPy calls the methods ``exp`` and ``sqrt`` of what is in an object array; comparisons must be decidable.
    """

    def __init__(self, value: Any) -> None:
        self.value = _value(value)

    def __add__(self, other: Any) -> Exact:
        return Exact(self.value + _value(other))

    def __sub__(self, other: Any) -> Exact:
        return Exact(self.value - _value(other))

    def __mul__(self, other: Any) -> Exact:
        return Exact(self.value * _value(other))

    def __truediv__(self, other: Any) -> Exact:
        return Exact(self.value / _value(other))

    def __rsub__(self, other: Any) -> Exact:
        return Exact(_value(other) - self.value)

    def __rtruediv__(self, other: Any) -> Exact:
        return Exact(_value(other) / self.value)

    def __pow__(self, power: int) -> Exact:
        return Exact(self.value**power)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Exact:
        return Exact(-self.value)

    def __lt__(self, other: Any) -> bool:
        return bool(self.value < _value(other))

    def __le__(self, other: Any) -> bool:
        return bool(self.value <= _value(other))

    def __gt__(self, other: Any) -> bool:
        return bool(self.value > _value(other))

    def __ge__(self, other: Any) -> bool:
        return bool(self.value >= _value(other))

    def __eq__(self, other: object) -> bool:
        return _same(self.value, _value(other))

    def __hash__(self) -> int:
        return hash(self.value)

    def exp(self) -> Exact:
        """Return eˣ; products of exponentials stay apart, so that equal sums expand to the same terms."""
        return Exact(sp.expand(sp.exp(self.value)))

    def sqrt(self) -> Exact:
        """Return √x."""
        return Exact(sp.sqrt(self.value))


def _value(other: Any) -> Any:
    """Return the SymPy number: a float is the fraction that it holds."""
    if isinstance(other, float) and math.isfinite(other):
        return sp.Rational(other)
    return other.value if isinstance(other, Exact) else sp.sympify(other)


def exact(values: Any) -> Any:
    """Return an object array of exact numbers."""
    array = np.asarray(values, dtype=object)
    flat = [Exact(value) for value in array.reshape(-1)]
    out = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(array.shape)


def apart(one: Any, other: Any) -> int:
    """Return in how many places two object arrays of exact numbers differ."""
    if one.shape != other.shape:
        return int(max(one.size, other.size))
    return sum(not _same(_value(a), _value(b)) for a, b in zip(one.reshape(-1), other.reshape(-1), strict=True))


def _same(a: Any, b: Any) -> bool:
    if a == b or {a, b} & {sp.oo, -sp.oo}:
        return bool(a == b)
    return bool(sp.expand(a - b) == 0)
