"""Trace an elementwise activation, written once as ``h(xp, u, a)``, into a straight-line program.

The program is what a compiled backend lowers, what a cache is keyed by, and how an activation that no backend could run
is refused before anything is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from types import ModuleType
from typing import Any, NamedTuple

Activation = Callable[[Any, Any, Any], Any]

FUNCTIONS: dict[str, int] = {
    "abs": 1,
    "cos": 1,
    "erf": 1,
    "exp": 1,
    "expm1": 1,
    "log": 1,
    "log1p": 1,
    "maximum": 2,
    "minimum": 2,
    "sin": 1,
    "sqrt": 1,
    "square": 1,
    "tanh": 1,
    "where": 3,
}
"""Functions of the namespace that an activation may use, and how many arguments each takes."""

CONSTANTS: dict[str, float] = {"pi": math.pi, "e": math.e}

_LARGEST_POWER = 8
_COMPARISONS = frozenset({"gt", "ge", "lt", "le"})
_BOOLEAN = _COMPARISONS | {"and", "or", "not"}


class Constant(NamedTuple):
    """A constant, by its exact digits: as numbers 1 and 1.0, or 0.0 and −0.0, would be taken for each other."""

    digits: str

    @property
    def value(self) -> float:
        """The number."""
        return float.fromhex(self.digits)


Operand = int | str | Constant
Instruction = tuple[str, tuple[Operand, ...]]


@dataclass(frozen=True)
class Program:
    """A straight-line program of elementwise instructions.

    Parameters
    ----------
    instructions : tuple of (str, tuple of operand)
        An operation and its operands, in order. An operand is ``"u"`` or ``"a"`` (the inputs), an ``int`` (the result
        of that earlier instruction) or a `Constant`. Operations are ``add sub mul div neg gt ge lt le and
        or not`` and the names in `FUNCTIONS`.
    result : operand
        What the program returns.
    """

    instructions: tuple[Instruction, ...]
    result: Operand


class Traced:
    """Stands for an array while an activation is traced; arithmetic on it is recorded."""

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, recorder: _Recorder, operand: Operand, boolean: bool = False) -> None:
        self._recorder = recorder
        self._operand = operand
        self._boolean = boolean

    def __add__(self, other: object) -> Traced:
        return self._recorder.emit("add", self, other)

    def __radd__(self, other: object) -> Traced:
        return self._recorder.emit("add", other, self)

    def __sub__(self, other: object) -> Traced:
        return self._recorder.emit("sub", self, other)

    def __rsub__(self, other: object) -> Traced:
        return self._recorder.emit("sub", other, self)

    def __mul__(self, other: object) -> Traced:
        return self._recorder.emit("mul", self, other)

    def __rmul__(self, other: object) -> Traced:
        return self._recorder.emit("mul", other, self)

    def __truediv__(self, other: object) -> Traced:
        return self._recorder.emit("div", self, other)

    def __rtruediv__(self, other: object) -> Traced:
        return self._recorder.emit("div", other, self)

    def __neg__(self) -> Traced:
        return self._recorder.emit("neg", self)

    def __pos__(self) -> Traced:
        return self

    def __abs__(self) -> Traced:
        return self._recorder.emit("abs", self)

    def __pow__(self, power: object) -> Traced:
        if not isinstance(power, Integral) or not 1 <= int(power) <= _LARGEST_POWER:
            raise ValueError(f"a power in an activation must be an int from 1 to {_LARGEST_POWER}, got {power!r}")
        result = self
        for _ in range(int(power) - 1):
            result = result * self
        return result

    def __eq__(self, other: object) -> Any:
        raise ValueError("an activation cannot use == or !=; compare with <, <=, > or >= and xp.where")

    __ne__ = __eq__

    def __gt__(self, other: object) -> Traced:
        return self._recorder.emit("gt", self, other)

    def __ge__(self, other: object) -> Traced:
        return self._recorder.emit("ge", self, other)

    def __lt__(self, other: object) -> Traced:
        return self._recorder.emit("lt", self, other)

    def __le__(self, other: object) -> Traced:
        return self._recorder.emit("le", self, other)

    def __and__(self, other: object) -> Traced:
        return self._recorder.emit("and", self, other)

    def __or__(self, other: object) -> Traced:
        return self._recorder.emit("or", self, other)

    def __invert__(self) -> Traced:
        return self._recorder.emit("not", self)

    def __bool__(self) -> bool:
        raise ValueError("an activation cannot branch on its values; use xp.where(condition, x, y) instead of if")

    def __float__(self) -> float:
        raise ValueError("an activation must use the functions of its namespace xp, not those of math or numpy")


class _Recorder:
    """The namespace that a traced activation sees: it records calls and refuses what no backend has."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []

    def operand(self, value: object, boolean: bool) -> Operand:
        if isinstance(value, Traced):
            if value._boolean is not boolean:
                wanted, got = ("a condition", "a number") if boolean else ("a number", "a condition")
                raise ValueError(f"an activation used {got} where {wanted} is needed")
            return value._operand
        if boolean or isinstance(value, bool | str):
            raise ValueError(
                f"constants in an activation must be real numbers, and conditions comparisons, got {value!r}"
            )
        try:
            return Constant(float(value).hex())  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"constants in an activation must be real numbers, got {value!r}; with parameters that are learned, "
                "compute the features yourself and give them to linear_attention"
            ) from error

    def emit(self, name: str, *operands: object) -> Traced:
        booleans = [name in {"and", "or", "not"} or (name == "where" and i == 0) for i in range(len(operands))]
        recorded = tuple(self.operand(x, boolean) for x, boolean in zip(operands, booleans, strict=True))
        self.instructions.append((name, recorded))
        return Traced(self, len(self.instructions) - 1, name in _BOOLEAN)

    def __getattr__(self, name: str) -> Any:
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name not in FUNCTIONS:
            allowed = ", ".join(sorted(FUNCTIONS))
            raise ValueError(f"an activation used xp.{name}, which not every backend has; allowed are: {allowed}")

        def record(*operands: object) -> Traced:
            if len(operands) != FUNCTIONS[name]:
                raise ValueError(f"xp.{name} takes {FUNCTIONS[name]} arguments in an activation, got {len(operands)}")
            return self.emit(name, *operands)

        return record


def trace(activation: Activation) -> Program:
    """Record what an activation computes.

    Parameters
    ----------
    activation : callable
        ``h(xp, u, a)``, elementwise, written with arithmetic, comparisons and the functions of `xp` listed in
        `FUNCTIONS`.

    Returns
    -------
    Program
        The instructions; equal programs compute equal values, whatever functions they came from.

    Raises
    ------
    ValueError
        If the activation branches on values, uses a function that not every backend has, or returns no number.
    """
    if isinstance(activation, ModuleType) or not callable(activation):
        raise ValueError(f"an activation must be a function h(xp, u, a), got {activation!r}")
    recorder = _Recorder()
    try:
        result = activation(recorder, Traced(recorder, "u"), Traced(recorder, "a"))
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"the activation {activation!r} could not be traced ({error}); "
            f"it must be elementwise in u and a and use only xp functions: {', '.join(sorted(FUNCTIONS))}"
        ) from error
    return Program(tuple(recorder.instructions), recorder.operand(result, boolean=False))
