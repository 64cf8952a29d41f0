"""Kernels that read the codes of items, as `rfkernels.catalog.codes` has them; called by address, as all kernels.

A vector holds the numbers of half as many bytes of a row: those in the low halves of the bytes, then those in the high
ones; the query lies in the same order. Bytes that are no numbers meet zeros of the query.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

from llvmlite import binding, ir

from rfkernels.backends.numba.catalog_kernels import call_function, fetch
from rfkernels.backends.numba.emitter import INT, POINTER, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module
from rfkernels.catalog.codes import MIDDLE
from rfkernels.catalog.scans import RUN

_BYTE, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)

_UNROLLED = 8
"""Vectors of a row that are multiplied one after the other; more of them in a loop."""

_PAIRS = {64: "avx512.pmaddubs.w.512", 32: "avx2.pmadd.ub.sw", 16: "ssse3.pmadd.ub.sw.128"}
_FOURS = {64: "avx512.pmaddw.d.512", 32: "avx2.pmadd.wd", 16: "sse2.pmadd.wd"}
"""Instructions of x86 that multiply bytes and add two products, and four, to one number."""


def multiplies_bytes() -> bool:
    """Whether the host has instructions for products of bytes."""
    return platform.machine().lower() in ("x86_64", "amd64") and bool(binding.get_host_cpu_features().get("ssse3"))


@cache
def scan_kernels(machine: Machine, bits: int, size: int, bytewise: bool) -> Code:
    """Compile ``scan`` for rows of `size` bytes and logits of `bits` bits, and ``blocks``.

    ``scan``: out[i] = numbers[1] + step_i numbers[0] (2 Σ code · query − shift) for `count` rows from the address of
    codes on, written in whole vectors; asks for some bytes that are needed later. ``blocks``: sum and largest of every
    RUN numbers. ``pick``: for each of some places, given as a block of RUN sizes and how far in it, the size below
    `least` that lies there.
    """
    module = ir.Module(name=f"rfkernels_catalog_scan_{bits}_{size}")
    parameters = "codes count query shift numbers out ahead ahead_size"
    _scan(Emitter(module, "scan", parameters, bits, machine.lanes(bits)), machine.width, size, bytewise)
    _blocks(Emitter(module, "blocks", "x count sums most", bits, min(machine.lanes(bits), RUN)))
    _pick(Emitter(module, "pick", "sizes least rest count places", bits, machine.lanes(bits)))
    return compile_module(module, machine.width, keep=True)


def query_bytes(width: int, size: int) -> int:
    """Return the length of a query in the order of codes, for vectors of `width` bytes."""
    return -(-size // (width // 2)) * width


def _scan(e: Emitter, width: int, size: int, bytewise: bool) -> None:
    codes, count, query, shift, numbers, out, ahead, ahead_size = e.arguments
    b, together = e.builder, width // 4
    fetch(e, ahead, ahead_size)
    rows = _Rows(e, width, size, query, bytewise)
    factor, base = (_splat(b, e.load(numbers, e.integer(i)), together) for i in range(2))
    less = _splat(b, b.trunc(shift, _I32), together)

    def take(i: Any, own: list[Any]) -> None:
        totals = b.sub(b.shl(rows.products(own), ir.Constant(less.type, [1] * together)), less)
        kind = ir.VectorType(e.element, together)
        steps = rows.steps(own)
        scaled = b.fmul(b.fmul(b.sitofp(totals, kind), factor), steps if e.align == 4 else b.fpext(steps, kind))
        e.store_vector(b.fadd(scaled, base), out, i)

    whole = b.and_(count, e.integer(-together))
    with e.loop(0, whole, together) as i:
        first = e.add(codes, e.mul(i, size))
        take(i, [e.add(first, r * size) for r in range(together)])
    with b.if_then(e.less(whole, count)):
        last = b.sub(count, e.integer(1))
        places = [e.add(whole, r) for r in range(together)]
        take(whole, [e.add(codes, e.mul(b.select(e.less(p, last), p, last), size)) for p in places])
    e.finish()


def _splat(b: Any, value: Any, lanes: int) -> Any:
    kind = ir.VectorType(value.type, lanes)
    single = b.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    return b.shuffle_vector(single, single, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


class _Rows:
    """Products of a query with rows of codes, as many as a vector has numbers of 32 bits."""

    def __init__(self, e: Emitter, width: int, size: int, query: Any, bytewise: bool) -> None:
        self.e, self.width, self.size, self.query, self.bytewise = e, width, size, query, bytewise
        self.chunk = width // 2
        self.chunks = -(-size // self.chunk)

    def steps(self, rows: list[Any]) -> Any:
        """Return the steps of rows: bfloat16 in their last two bytes, the upper half of a float."""
        e, kind = self.e, ir.VectorType(_I32, len(rows))
        found: Any = ir.Constant(kind, ir.Undefined)
        for r, row in enumerate(rows):
            bits = e.load(e.add(row, self.size - 4), e.integer(0), _I32)
            found = e.builder.insert_element(found, bits, _I32(r))
        high = e.builder.and_(found, ir.Constant(kind, [0xFFFF0000] * len(rows)))
        return e.builder.bitcast(high, ir.VectorType(ir.FloatType(), len(rows)))

    def products(self, rows: list[Any]) -> Any:
        """Return sums of codes times numbers of the query, one for each row."""
        e = self.e
        if self.chunks <= _UNROLLED:
            sums = [self._sum(row, range(self.chunks)) for row in rows]
        else:
            whole = self.size // self.chunk
            totals = [e.variable(self._sum(row, range(whole, self.chunks))) for row in rows]
            with e.loop(0, whole) as c:
                at, query = e.mul(c, self.chunk), self._vector(e.add(self.query, e.mul(c, self.width)))
                for row, total in zip(rows, totals, strict=True):
                    total.set(e.builder.add(total.get(), self._four(self._numbers(e.add(row, at), self.chunk), query)))
            sums = [total.get() for total in totals]
        while len(sums) > 1:
            sums = [self._paired(x, y) for x, y in zip(sums[::2], sums[1::2], strict=True)]
        return sums[0]

    def _sum(self, row: Any, chunks: range) -> Any:
        """Return sums over some vectors of a row."""
        e, total = self.e, ir.Constant(ir.VectorType(_I32, self.width // 4), None)
        for c in chunks:
            there = min(self.chunk, self.size - c * self.chunk)
            own = self._numbers(e.add(row, c * self.chunk), there)
            total = e.builder.add(total, self._four(own, self._vector(e.add(self.query, c * self.width))))
        return total

    def _vector(self, at: Any) -> Any:
        value = self.e.builder.load(self.e.builder.inttoptr(at, POINTER), typ=ir.VectorType(_BYTE, self.width))
        value.align = 1
        return value

    def _numbers(self, at: Any, there: int) -> Any:
        """Load so many bytes, a multiple of 4, and return the numbers in their low halves, then those in the high."""
        b, lanes = self.e.builder, self.chunk // 4
        kind, mask = ir.VectorType(_I32, lanes), ir.VectorType(ir.IntType(1), lanes)
        pointer = b.inttoptr(at, POINTER)
        if there == self.chunk:
            loaded = b.load(pointer, typ=kind)
            loaded.align = 1
        else:
            held = ir.Constant(mask, [4 * lane < there for lane in range(lanes)])
            given = pointer, _I32(1), held, ir.Constant(kind, [0] * lanes)
            loaded = call_function(self.e, f"llvm.masked.load.v{lanes}i32.p0", kind, given)
        pairs = b.bitcast(loaded, ir.VectorType(_I16, self.chunk // 2))
        high = b.lshr(pairs, ir.Constant(pairs.type, [4] * (self.chunk // 2)))
        kind = ir.VectorType(_BYTE, self.chunk)
        order = ir.Constant(ir.VectorType(_I32, self.width), list(range(self.width)))
        both = b.shuffle_vector(b.bitcast(pairs, kind), b.bitcast(high, kind), order)
        return b.and_(both, ir.Constant(both.type, [15] * self.width))

    def _four(self, numbers: Any, query: Any) -> Any:
        """Return sums of four products each."""
        b, half = self.e.builder, self.width // 2
        if self.bytewise:
            kind = ir.VectorType(_I16, half)
            pairs = call_function(self.e, f"llvm.x86.{_PAIRS[self.width]}", kind, (numbers, query))
            ones = ir.Constant(kind, [1] * half)
            return call_function(
                self.e, f"llvm.x86.{_FOURS[self.width]}", ir.VectorType(_I32, half // 2), (pairs, ones)
            )
        wide = ir.VectorType(_I16, self.width)
        products = b.mul(b.zext(numbers, wide), b.sext(query, wide))
        parts = [
            b.sext(
                b.shuffle_vector(products, products, ir.Constant(ir.VectorType(_I32, half // 2), order)),
                ir.VectorType(_I32, half // 2),
            )
            for order in ([4 * j + k for j in range(half // 2)] for k in range(4))
        ]
        return b.add(b.add(parts[0], parts[1]), b.add(parts[2], parts[3]))

    def _paired(self, x: Any, y: Any) -> Any:
        """Return sums of neighbours: those of x, then those of y."""
        b, lanes = self.e.builder, self.width // 4
        even, odd = (ir.Constant(ir.VectorType(_I32, lanes), [2 * j + k for j in range(lanes)]) for k in range(2))
        return b.add(b.shuffle_vector(x, y, even), b.shuffle_vector(x, y, odd))


def _blocks(e: Emitter) -> None:
    """Write sum and largest of every RUN numbers, as float64."""
    x, count, sums, most = e.arguments
    m, b = e.math, e.builder
    with e.loop(0, count, RUN) as i:
        vectors = [e.load_vector(x, e.add(i, k)) for k in range(0, RUN, e.lanes)]
        total = largest = vectors[0]
        for own in vectors[1:]:
            total, largest = m.add(total, own), m.maximum(largest, own)
        place = b.udiv(i, e.integer(RUN))
        for value, out in ((m.reduce_add(total), sums), (m.reduce_max(largest), most)):
            e.store(value if e.align == 8 else b.fpext(value, ir.DoubleType()), out, place)
    e.finish()


def _pick(e: Emitter) -> None:
    """Replace numbers of blocks by places of sizes: of the first with which the sum is beyond, or the last there is."""
    sizes, least, rest, count, places = e.arguments
    b, numbers = e.builder, ir.VectorType(e.element, RUN)
    none, limit = ir.Constant(numbers, [0.0] * RUN), _splat(b, e.load(least, e.integer(0)), RUN)
    with e.loop(0, count) as i:
        block = e.mul(b.zext(e.load(places, i, _I32), INT), RUN)
        own = b.load(e.address(sizes, block), typ=numbers)
        own.align = e.align
        sums = own = b.select(b.fcmp_ordered("<", own, limit), own, none)
        step = 1
        while step < RUN:
            order = [RUN + j if j < step else j - step for j in range(RUN)]
            sums = b.fadd(sums, b.shuffle_vector(sums, none, ir.Constant(ir.VectorType(_I32, RUN), order)))
            step *= 2
        at = e.load(rest, i, ir.DoubleType())
        beyond = b.fcmp_ordered(">", sums, _splat(b, at if e.align == 8 else b.fptrunc(at, e.element), RUN))
        first, there = (b.bitcast(x, ir.IntType(RUN)) for x in (beyond, b.fcmp_ordered(">", own, none)))
        last = b.sub(ir.IntType(RUN)(RUN - 1), b.ctlz(there, ir.IntType(1)(0)))
        found = b.select(b.icmp_unsigned("!=", first, ir.IntType(RUN)(0)), b.cttz(first, ir.IntType(1)(0)), last)
        e.store(b.trunc(e.add(block, b.zext(found, INT)), _I32), places, i)
    e.finish()


assert MIDDLE == 7.5  # twice it is a whole number: what `shift` of ``scan`` is a multiple of
