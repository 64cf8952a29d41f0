"""Conversions between stored dtypes and computed elements, by integer arithmetic where hardware may lack them."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.emitter import INT, Emitter

STORAGE: dict[str, Any] = {
    "float32": ir.FloatType(),
    "float64": ir.DoubleType(),
    "float16": ir.IntType(16),
    "bfloat16": ir.IntType(16),
}
SIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
"""Bytes of an element."""


def _like(value: Any, kind: Any) -> Any:
    """Return `kind`, or vectors of it if the value is a vector."""
    return ir.VectorType(kind, value.type.count) if isinstance(value.type, ir.VectorType) else kind


def _constant(kind: Any, value: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def widen(e: Emitter, name: str, stored: Any) -> Any:
    """Convert stored values (scalar or vector) to computed elements; exact."""
    b = e.builder
    single = _like(stored, ir.FloatType())
    if name == "bfloat16":
        word = _like(stored, ir.IntType(32))
        value = b.bitcast(b.shl(b.zext(stored, word), _constant(word, 16)), single)
    elif name == "float16":
        value = _half_to_single(e, stored)
    else:
        value = stored
    wanted = _like(stored, e.element)
    return b.fpext(value, wanted) if value.type != wanted else value


def narrow(e: Emitter, name: str, value: Any) -> Any:
    """Convert computed elements to stored ones, rounding to nearest, ties to even."""
    b = e.builder
    if name == "float64":
        return value if e.align == 8 else b.fpext(value, _like(value, ir.DoubleType()))
    if e.align == 8:
        value = b.fptrunc(value, _like(value, ir.FloatType()))
    if name == "float32":
        return value
    return _single_to_half(e, value) if name == "float16" else _single_to_bfloat(e, value)


def _half_to_single(e: Emitter, stored: Any) -> Any:
    b, word, single = e.builder, _like(stored, ir.IntType(32)), _like(stored, ir.FloatType())
    bits = b.zext(stored, word)
    magnitude = b.shl(b.and_(bits, _constant(word, 0x7FFF)), _constant(word, 13))
    scaled = b.fmul(b.bitcast(magnitude, single), _constant(single, 2.0**112))
    special = b.icmp_unsigned(">=", magnitude, _constant(word, 0x7C00 << 13))
    infinite = b.or_(magnitude, _constant(word, 0x7F800000))
    sign = b.shl(b.and_(bits, _constant(word, 0x8000)), _constant(word, 16))
    return b.bitcast(b.or_(b.select(special, infinite, b.bitcast(scaled, word)), sign), single)


def _single_to_half(e: Emitter, value: Any) -> Any:
    b, word, single = e.builder, _like(value, ir.IntType(32)), _like(value, ir.FloatType())
    bits = b.bitcast(value, word)
    sign = b.and_(bits, _constant(word, 0x80000000))
    magnitude = b.xor(bits, sign)
    odd = b.and_(b.lshr(magnitude, _constant(word, 13)), _constant(word, 1))
    rounded = b.add(b.add(magnitude, _constant(word, ((15 - 127) << 23) + 0xFFF & 0xFFFFFFFF)), odd)
    normal = b.lshr(rounded, _constant(word, 13))
    magic = ((127 - 15) + (23 - 10) + 1) << 23
    aligned = b.fadd(b.bitcast(magnitude, single), b.bitcast(_constant(word, magic), single))
    subnormal = b.sub(b.bitcast(aligned, word), _constant(word, magic))
    result = b.select(b.icmp_unsigned("<", magnitude, _constant(word, 113 << 23)), subnormal, normal)
    is_nan = b.icmp_unsigned(">", magnitude, _constant(word, 0x7F800000))
    special = b.select(is_nan, _constant(word, 0x7E00), _constant(word, 0x7C00))
    result = b.select(b.icmp_unsigned(">=", magnitude, _constant(word, (127 + 16) << 23)), special, result)
    return b.trunc(b.or_(result, b.lshr(sign, _constant(word, 16))), _like(value, ir.IntType(16)))


def _single_to_bfloat(e: Emitter, value: Any) -> Any:
    b, word = e.builder, _like(value, ir.IntType(32))
    bits = b.bitcast(value, word)
    odd = b.and_(b.lshr(bits, _constant(word, 16)), _constant(word, 1))
    rounded = b.lshr(b.add(b.add(bits, _constant(word, 0x7FFF)), odd), _constant(word, 16))
    is_nan = b.icmp_unsigned(">", b.and_(bits, _constant(word, 0x7FFFFFFF)), _constant(word, 0x7F800000))
    return b.trunc(b.select(is_nan, _constant(word, 0x7FC0), rounded), _like(value, ir.IntType(16)))


def _exponent_mask(e: Emitter) -> int:
    return 0x7F800000 if e.align == 4 else 0x7FF0000000000000


def largest_exponent(e: Emitter, worst: Any, value: Any) -> Any:
    """Return the larger exponent field, lane by lane."""
    b, word = e.builder, e.math.integer
    field = b.and_(b.bitcast(value, word), _constant(word, _exponent_mask(e)))
    return b.select(b.icmp_unsigned(">", field, worst), field, worst)


def largest_exponent_scalar(e: Emitter, worst: Any, value: Any) -> Any:
    """Return the larger exponent field of a scalar, as a 64-bit integer."""
    b, word = e.builder, ir.IntType(e.align * 8)
    field = b.and_(b.bitcast(value, word), ir.Constant(word, _exponent_mask(e)))
    wide = b.zext(field, INT) if e.align == 4 else field
    return b.select(b.icmp_unsigned(">", wide, worst), wide, worst)


def all_finite(e: Emitter, worst: Any, largest: Any) -> Any:
    """Return 1 if no exponent field was that of infinity or NaN, else 0."""
    b = e.builder
    for lane in range(e.lanes):
        field = b.extract_element(worst, ir.IntType(32)(lane))
        wide = b.zext(field, INT) if e.align == 4 else field
        largest = b.select(b.icmp_unsigned(">", wide, largest), wide, largest)
    return b.zext(e.less(largest, e.integer(_exponent_mask(e))), INT)
