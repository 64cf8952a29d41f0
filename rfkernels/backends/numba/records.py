"""Records that compiled functions read at an address: named tuples of numbers and arrays, laid out in words of 64 bits.

Numba hands a named tuple on field by field, an array as seven numbers: functions of hundreds of arguments, which take
long to compile and, from Python, to call. An address is one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, cast, get_type_hints

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core.datamodel import models
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, intrinsic, lower_getattr_generic, register_model

Flags = Annotated[Any, np.bool_, 1]
Floats = Annotated[Any, np.float64, 1]
FloatRows = Annotated[Any, np.float64, 2]
Longs = Annotated[Any, np.int64, 1]
LongRows = Annotated[Any, np.int64, 2]
Bytes = Annotated[Any, np.int8, 1]
Ints = Annotated[Any, np.int32, 1]
IntRows = Annotated[Any, np.int32, 2]
Numbers = Annotated[Any, np.uint32, 1]
NumberRows = Annotated[Any, np.uint32, 2]
Elements = Annotated[Any, None, 1]
ElementRows = Annotated[Any, None, 2]
"""Arrays in C order, by type and number of axes; elements are of the type that a record is made for."""

_WORD = ir.IntType(64)

R = TypeVar("R", bound=tuple[Any, ...])


class Field(NamedTuple):
    """Type, number of axes (0: a number), and the place of the first word."""

    dtype: np.dtype[Any]
    ndim: int
    place: int

    @property
    def format(self) -> str:
        """What `struct` calls its words."""
        return "q" * (5 + 2 * self.ndim) if self.ndim else {"i": "q", "f": "d"}[self.dtype.kind]


@cache
def fields(record: type, element: np.dtype[Any]) -> dict[str, Field]:
    """Return the fields of a record for elements of some type."""
    found: dict[str, Field] = {}
    place = 0
    for name, hint in get_type_hints(record, include_extras=True).items():
        dtype, ndim = getattr(hint, "__metadata__", (hint, 0))
        found[name] = Field(np.dtype(element if dtype is None else dtype), ndim, place)
        place += len(found[name].format)
    return found


class Held(Generic[R]):
    """A record, and the address of its words, which are there as long as this is.

    Parameters
    ----------
    record : named tuple
        With fields of int, float, and the arrays of this module.
    element : dtype, default float64
        Of elements.

    Raises
    ------
    TypeError
        If an array is not as annotated: compiled functions would read other memory.
    """

    def __init__(self, record: R, element: Any = np.float64) -> None:
        own = fields(type(record), np.dtype(element))
        words: list[Any] = []
        for (name, field), x in zip(own.items(), record, strict=True):
            if field.ndim == 0:
                words.append(x)
            elif x.dtype == field.dtype and x.ndim == field.ndim and x.flags.c_contiguous and x.flags.aligned:
                words += 0, 0, x.size, x.itemsize, x.ctypes.data, *x.shape, *x.strides  # as Numba holds an array
            else:
                expected = f"an aligned array of {field.dtype} in C order with {field.ndim} axes"
                raise TypeError(f"{name} must be {expected}, got {x.dtype} {x.shape} with strides {x.strides}")
        self.record = record
        self._words = np.frombuffer(struct.pack("".join(x.format for x in own.values()), *words), np.int64)
        self.address: int = self._words.ctypes.data

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        return sum(x.nbytes for x in self.record if isinstance(x, np.ndarray))


def rows_of(record: type, count: int) -> Any:
    """Return so many records of integers, all zero, as a structured array (count,)."""
    return np.zeros(count, _row(record))


def words_of(rows: Any) -> Any:
    """Return the words of records of integers, (..., fields)."""
    return rows.view(np.int64).reshape(*rows.shape, len(rows.dtype))


def words(record: type, given: dict[str, int]) -> Any:
    """Return the words of a record of integers, (fields,): zeros where none are given."""
    places = order(record)
    found = [0] * len(places)
    for name, x in given.items():
        found[places[name]] = x
    return np.array(found, np.int64)


@cache
def order(record: type) -> dict[str, int]:
    """Return which of the words of a record of integers each field is."""
    return {name: i for i, name in enumerate(_row(record).names)}


def named(record: type, words: Any) -> Any:
    """Undo `words_of`: the fields are views of the same memory."""
    return words.view(_row(record))[..., 0]


@cache
def _row(record: type) -> Any:
    return np.dtype([(name, np.int64) for name in fields(record, np.dtype(np.float64))])


class At(types.Type):
    """Numba's type of a record at an address."""

    def __init__(self, record: type, element: np.dtype[Any]) -> None:
        self.record, self.element = record, element
        super().__init__(name=f"At({record.__module__}.{record.__qualname__}, {element})")

    def field(self, name: str) -> tuple[Field, Any]:
        """Return a field and Numba's type of it."""
        own = fields(self.record, self.element)[name]
        number = from_dtype(own.dtype)
        return own, types.Array(number, own.ndim, "C") if own.ndim else number


@register_model(At)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _WORD)  # type: ignore[no-untyped-call]


@infer_getattr
class _Typed(AttributeTemplate):
    key = At

    def generic_resolve(self, kind: At, name: str) -> Any:  # type: ignore[override]
        return kind.field(name)[1] if name in fields(kind.record, kind.element) else None


@lower_getattr_generic(At)  # type: ignore[no-untyped-call]
def _loaded(context: Any, builder: Any, kind: At, address: Any, name: str) -> Any:
    own, found = kind.field(name)
    place = builder.add(address, _WORD(8 * own.place))
    loaded = builder.load(builder.inttoptr(place, context.get_value_type(found).as_pointer()))
    loaded.set_metadata("invariant.load", builder.module.add_metadata([]))  # so that loops need not load it again
    return loaded


def _at(record: Any, element: Any, *given: Any) -> Any:
    def code(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return target.cast(builder, values[1], signature.args[1], types.int64)

    return At(record.instance_class, np.dtype(element))(record, *given), code


def _view(context: Any, record: Any, address: Any) -> Any:
    return _at(record, np.float64, address)


def _view_like(context: Any, record: Any, address: Any, like: Any) -> Any:
    return _at(record, str(like.dtype), address, like)


view = cast(Callable[[type[R], int], R], intrinsic(_view))
"""``view(record, address)`` returns the record at an address, without elements or of those of float64."""

view_like = cast(Callable[[type[R], int, Any], R], intrinsic(_view_like))
"""``view_like(record, address, like)`` returns one whose elements are of the type of the array `like`."""
