"""What kernels of catalogs do with the lanes of vectors: random numbers, running sums, differences of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.emitter import INT, Emitter
from rfkernels.catalog.codes import EXPONENT, FRACTION, SQUARE_EXPONENT, SQUARE_FRACTION, STEP_BITS

_I32 = ir.IntType(32)
_GOLDEN, _FACTORS = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


_BITS_52, _BITS_84 = (1023 + 52) << 52, (1023 + 84) << 52
"""What 2^52 and 2^84 are as bits of float64."""

_MOVED = 64
"""Bytes of vectors for which there is an instruction that moves some lanes together."""

_CONVERTED = 8
"""Lanes of float64 that there is an instruction for which converts 64-bit integers."""


def splat(b: Any, value: Any, lanes: int) -> Any:
    """Return a value in so many lanes."""
    kind = ir.VectorType(value.type, lanes)
    single = b.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    return b.shuffle_vector(single, single, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def left_out(bits: int, steps: int) -> int:
    """Return how many bits of numbers are behind those that number so many nodes in an octave, a power of 2."""
    return {32: 23, 64: 52}[bits] - (steps.bit_length() - 1)


def looked_up(e: Emitter, x: Any, tables: tuple[Any, ...], steps: int) -> tuple[Any, Any]:
    """Return what tables of so many nodes in an octave, a power of 2, have for a vector: values, and sizes of slopes.

    Addresses of values, before which lie the least and the largest number that there are, of slopes between nodes, and
    of their sizes; and the first bits of the least number.
    """
    b, kind, bits, lanes = e.builder, x.type, 8 * e.align, x.type.count
    *addresses, begin = tables
    values = addresses[0]
    least, most = (splat(b, e.load(values, e.integer(j)), lanes) for j in (-2, -1))
    x = b.select(b.fcmp_ordered(">", x, least), x, least)
    x = b.select(b.fcmp_ordered("<", x, most), x, most)
    whole, left = ir.VectorType(ir.IntType(bits), lanes), left_out(bits, steps)
    shift, mask = (ir.Constant(whole, [j] * lanes) for j in (left, -1 << left))
    pattern = b.bitcast(x, whole)
    node, place = b.bitcast(b.and_(pattern, mask), kind), b.lshr(pattern, shift)
    found = [ir.Constant(kind, ir.Undefined)] * 3
    for lane in range(lanes):
        own = b.extract_element(place, _I32(lane))
        own = b.sub(own if bits == 64 else b.zext(own, INT), begin)
        loaded = [e.load(address, own) for address in addresses]
        found = [b.insert_element(y, new, _I32(lane)) for y, new in zip(found, loaded, strict=True)]
    value, slope, steep = found
    return b.fadd(value, b.fmul(slope, b.fsub(x, node))), steep


def integers(e: Emitter, value: int) -> Any:
    """Return a 64-bit integer that is known in every lane."""
    return ir.Constant(e.math.integer, [value] * e.lanes)


def splat_long(e: Emitter, value: Any) -> Any:
    """Return a 64-bit integer in every lane."""
    single = e.builder.insert_element(ir.Constant(e.math.integer, ir.Undefined), value, _I32(0))
    return e.builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_I32, e.lanes), [0] * e.lanes))


def steps_in(b: Any, words: Any) -> Any:
    """Return steps of codes from the upper halves of words: as single precision but for the first of the exponent."""
    mask, first = ((1 << STEP_BITS) - 1) << 23 - FRACTION, (127 + EXPONENT) << 23
    return _float(b, b.or_(b.and_(words, _same(words, mask)), _same(words, first)))


def squares_in(b: Any, words: Any) -> Any:
    """Return what squares are, relative to normal ones."""
    place = 23 - SQUARE_FRACTION
    high = b.shl(b.lshr(words, _same(words, 16 + 1 + STEP_BITS)), _same(words, place + 1))
    low = b.shl(b.and_(b.lshr(words, _same(words, 16)), _same(words, 1)), _same(words, place))
    return _float(b, b.add(b.or_(high, low), _same(words, (127 + SQUARE_EXPONENT) << 23)))


def _same(words: Any, x: int) -> Any:
    return ir.Constant(words.type, [x] * words.type.count)


def _float(b: Any, bits: Any) -> Any:
    return b.bitcast(bits, ir.VectorType(ir.FloatType(), bits.type.count))


def places_from(e: Emitter, first: Any) -> Any:
    """Return first, first + 1, ... as 64-bit integers."""
    return e.builder.add(splat_long(e, first), ir.Constant(e.math.integer, list(range(e.lanes))))


def _mixed(e: Emitter, z: Any) -> Any:
    b = e.builder
    for shift, factor in _FACTORS:
        z = b.mul(b.xor(z, b.lshr(z, integers(e, shift))), integers(e, factor))
    return b.xor(z, b.lshr(z, integers(e, 31)))


def uniform(e: Emitter, state: Any, places: Any) -> Any:
    """Return numbers in [0, 1) of a stream: those of splitmix64."""
    b = e.builder
    z = _mixed(e, b.add(state, b.mul(integers(e, _GOLDEN), b.add(places, integers(e, 1)))))
    return e.math.mul(positive(e, b.lshr(z, integers(e, 11))), e.math.constant(2.0**-53))


def positive(e: Emitter, x: Any) -> Any:
    """Return integers from 0 to 2^53 as numbers of float64.

    Vectors up to 32 bytes would be converted lane by lane: there halves become fractions of 2^52 and 2^84.
    """
    b, kind = e.builder, e.math.vector
    if e.lanes == _CONVERTED:
        return b.sitofp(x, kind)
    low = b.or_(b.and_(x, integers(e, (1 << 32) - 1)), integers(e, _BITS_52))
    high = b.or_(b.lshr(x, integers(e, 32)), integers(e, _BITS_84))
    both = ir.Constant(kind, [2.0**84 + 2.0**52] * e.lanes)
    return b.fadd(b.fsub(b.bitcast(high, kind), both), b.bitcast(low, kind))


def narrow(e: Emitter, x: Any) -> Any:
    """Return numbers without their fractions as 32-bit integers; to longer ones they may be converted lane by lane."""
    return e.builder.fptosi(x, ir.VectorType(_I32, e.lanes))


def splat_narrow(e: Emitter, x: Any) -> Any:
    """Return an integer as one of 32 bits in every lane."""
    return splat(e.builder, e.builder.trunc(x, _I32), e.lanes)


def hidden(e: Emitter, value: Any) -> Any:
    """Return a constant vector as if it were not known, to be shifted in before other lanes.

    Of zeros that it knows LLVM makes instructions that expand vectors, which some processors take far longer for.
    """
    name = f"hidden_{len(e.builder.module.global_values)}"
    held = ir.GlobalVariable(e.builder.module, value.type, name)
    held.initializer = value
    loaded = e.builder.load(held, typ=value.type)
    loaded.align = e.align
    return loaded


def running(e: Emitter, x: Any, first: Any, before: Any, operation: Callable[[Any, Any], Any]) -> Any:
    """Return x combined with all lanes before it, and with the last lane of what came before.

    `first` is a hidden vector that changes none.
    """
    lane, step = ir.VectorType(_I32, e.lanes), 1
    while step < e.lanes:
        order = [e.lanes + j if j < step else j - step for j in range(e.lanes)]
        x = operation(x, e.builder.shuffle_vector(x, first, ir.Constant(lane, order)))
        step *= 2
    last = ir.Constant(lane, [e.lanes - 1] * e.lanes)
    return operation(x, e.builder.shuffle_vector(before, before, last))


def larger(e: Emitter) -> Callable[[Any, Any], Any]:
    """Return what takes the larger of two signed integers."""
    return lambda x, y: e.builder.select(e.builder.icmp_signed(">", x, y), x, y)


def gathered(e: Emitter, base: Any, places: list[Any], kind: Any = None) -> Any:
    """Return elements at some places side by side, one by one: instructions that gather them are no faster."""
    kind = kind or e.element
    found = ir.Constant(ir.VectorType(kind, e.lanes), ir.Undefined)
    for lane, place in enumerate(places):
        found = e.builder.insert_element(found, e.load(base, place, kind), _I32(lane))
    return found


def each_lane(e: Emitter, mask: Any) -> Iterator[Any]:
    """Run over the numbers of lanes that a mask has."""
    b, left = e.builder, e.variable(e.builder.zext(e.builder.bitcast(mask, ir.IntType(mask.type.count)), INT))
    with e.repeat(lambda: b.icmp_unsigned("!=", left.get(), e.integer(0))):
        yield b.cttz(left.get(), ir.IntType(1)(1))
        left.set(b.and_(left.get(), b.sub(left.get(), e.integer(1))))


def list_lanes(e: Emitter, mask: Any, first: Any, out: Any, many: Any) -> None:
    """Write the numbers of lanes that a mask has, from `first` on, behind so many; there must be room for a mask more.

    All lanes are written, as which of them there are cannot be foreseen: next to each other where an instruction moves
    them, else each in the place of the last that was none.
    """
    b, lanes = e.builder, mask.type.count
    bits = b.zext(b.bitcast(mask, ir.IntType(lanes)), INT)
    if e.lanes * e.align == _MOVED:
        kind = ir.VectorType(_I32, lanes)
        own = b.add(splat(b, b.trunc(first, _I32), lanes), ir.Constant(kind, list(range(lanes))))
        given = own, mask, ir.Constant(kind, ir.Undefined)
        e.store_vector(e.call(f"llvm.experimental.vector.compress.v{lanes}i32", kind, given), out, many.get())
        many.set(e.add(many.get(), b.ctpop(bits)))
        return
    for lane in range(lanes):
        e.store(b.trunc(e.add(first, lane), _I32), out, many.get())
        many.set(e.add(many.get(), b.and_(b.lshr(bits, e.integer(lane)), e.integer(1))))


class Differences:
    """Sums of second and fourth powers of differences of successive numbers, of which each pair counts once."""

    def __init__(self, e: Emitter, count: Any) -> None:
        self._emitter, self._ends = e, (e.splat_number(count), e.splat_number(e.builder.and_(count, e.integer(-2))))
        self._square, self._fourth = (e.variable(e.math.constant(0.0)) for _ in range(2))

    def within(self, index: Any) -> tuple[Any, Any]:
        """Return which numbers from an index on there are, and which are one of a pair."""
        e = self._emitter
        places = e.builder.add(e.splat_number(index), e.lane_numbers())
        return tuple(e.builder.icmp_signed("<", places, end) for end in self._ends)

    def add(self, x: Any, paired: Any) -> None:
        """Add those of the numbers of a vector."""
        e, m = self._emitter, self._emitter.math
        order = ir.Constant(ir.VectorType(_I32, e.lanes), [j ^ 1 for j in range(e.lanes)])
        step = m.sub(x, e.builder.shuffle_vector(x, x, order))
        square = m.where(paired, m.mul(step, step), m.constant(0.0))
        self._square.set(m.add(self._square.get(), square))
        self._fourth.set(m.fma(square, square, self._fourth.get()))

    def store(self, numbers: Any, place: int) -> None:
        """Store both."""
        e, m = self._emitter, self._emitter.math
        for j, twice in enumerate((self._square, self._fourth)):
            e.store(m.reduce_add(m.mul(twice.get(), m.constant(0.5))), numbers, e.integer(place + j))
