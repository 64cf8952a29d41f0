"""Kernels that read the codes of blocks of items, as `rfkernels.catalog.codes` has them; called by address.

A block fills a vector, or a few where vectors are short: four bytes for each row, whose products with the same four of
a query add up to one number.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

from llvmlite import binding, ir

from rfkernels.backends.numba.catalog_kernels import call_function, fetch, splat
from rfkernels.backends.numba.emitter import INT, POINTER, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module
from rfkernels.catalog.codes import BLOCK, LARGEST, LEVELS, TOGETHER, eights, shared

AHEAD = 8
"""How many blocks are fetched before they are needed: lists of blocks end in so many more that there are."""

_BYTE, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)

_HELD, _UNROLLED = 10, 40
"""Eights of numbers of a query that registers hold; and that are multiplied one after the other, more in a loop."""

_SAFE = 32767 // (2 * TOGETHER // 4 * (LEVELS - 1) * LARGEST)
"""Eights whose products add up to numbers of 16 bits."""

_PAIRS = {64: "avx512.pmaddubs.w.512", 32: "avx2.pmadd.ub.sw", 16: "ssse3.pmadd.ub.sw.128"}
_FOURS = {64: "avx512.pmaddw.d.512", 32: "avx2.pmadd.wd", 16: "sse2.pmadd.wd"}
"""Instructions of x86 that multiply bytes and add two products, and then two sums."""


def multiplies_bytes() -> bool:
    """Whether the host has instructions for products of bytes."""
    return platform.machine().lower() in ("x86_64", "amd64") and bool(binding.get_host_cpu_features().get("ssse3"))


@cache
def scan_kernels(machine: Machine, bits: int, dim: int, bytewise: bool) -> Code:
    """Compile ``scan``, ``sum_blocks`` and ``pick`` for logits of `bits` bits.

    ``scan``: for each of some blocks, out = base + step numbers[0] (Σ code · query − shift) for the rows in its mask,
    −inf for others, and the widest step; numbers[1] gets the largest. ``sum_blocks``: of each block, sums of weights
    and of logits, and the largest weight. ``pick``: replaces the number of a block, and how far in it a place lies, by
    the place of an item: they are as long as factor · (boost · weight + slope), and large ones are left out.
    """
    module = ir.Module(name=f"rfkernels_catalog_scan_{bits}_{dim}")
    lanes = machine.lanes(bits)
    parameters = "codes blocks masks bases count query shift numbers out widest"
    _Scan(Emitter(module, "scan", parameters, bits, lanes), machine.width, dim, bytewise).emit()
    _sum_blocks(Emitter(module, "sum_blocks", "weights logits count sums linear most", bits, min(lanes, BLOCK)))
    _pick(Emitter(module, "pick", "weights masks factors boosts slopes least rest count places", bits, lanes))
    return compile_module(module, machine.width, keep=True)


class _Scan:
    """Logits of blocks of rows."""

    def __init__(self, e: Emitter, width: int, dim: int, bytewise: bool) -> None:
        self.e, self.width, self.lanes, self.bytewise = e, width, width // 4, bytewise
        self.whole, self.shared = eights(dim), shared(dim)
        self.eights = self.whole + self.shared
        self.size = BLOCK * (self.whole * TOGETHER // 2 + (4 if self.shared else 2))

    def emit(self) -> None:
        """Emit the function."""
        e, b = self.e, self.e.builder
        codes, blocks, masks, bases, count, query, shift, numbers, out, widest = e.arguments
        kind = ir.VectorType(e.element, self.lanes)
        none = ir.Constant(kind, [float("-inf")] * self.lanes)
        factor, less = splat(b, e.load(numbers, e.integer(0)), self.lanes), splat(b, b.trunc(shift, _I32), self.lanes)
        held = self.width == 64 and self.eights <= _HELD
        given = [self._query(query, e.integer(k)) for k in range(self.eights)] if held else None
        most = e.variable(none)
        with e.loop(0, count) as i:
            later = b.zext(e.load(blocks, e.add(i, AHEAD), _I32), INT)
            fetch(e, e.add(codes, e.mul(later, self.size)), self.size)
            block = e.add(codes, e.mul(b.zext(e.load(blocks, i, _I32), INT), self.size))
            base, mask = splat(b, e.load(bases, i), self.lanes), e.load(masks, i, _I32)
            wide = ir.Constant(ir.VectorType(ir.FloatType(), self.lanes), [0.0] * self.lanes)
            for first in range(0, BLOCK, self.lanes):
                total = b.sub(self._products(block, first, query, given), less)
                steps = self._steps(block, first)
                scaled = b.fmul(b.fmul(b.sitofp(total, kind), factor), steps if e.align == 4 else b.fpext(steps, kind))
                there = b.bitcast(b.trunc(b.lshr(mask, _I32(first)), ir.IntType(self.lanes)), _flags(self.lanes))
                logits = b.select(there, b.fadd(scaled, base), none)
                e.store_vector(logits, out, e.add(e.mul(i, BLOCK), first))
                most.set(b.select(b.fcmp_ordered(">", logits, most.get()), logits, most.get()))
                wide = b.select(b.and_(there, b.fcmp_ordered(">", steps, wide)), steps, wide)
            step = self._largest(wide)
            e.store(step if e.align == 4 else b.fpext(step, e.element), widest, i)
        e.store(self._largest(most.get()), numbers, e.integer(1))
        e.finish()

    def _largest(self, x: Any) -> Any:
        """Return the largest lane."""
        b, half = self.e.builder, self.lanes
        while half > 1:
            half //= 2
            order = ir.Constant(ir.VectorType(_I32, self.lanes), [(j + half) % self.lanes for j in range(self.lanes)])
            other = b.shuffle_vector(x, x, order)
            x = b.select(b.fcmp_ordered(">", other, x), other, x)
        return b.extract_element(x, _I32(0))

    def _query(self, query: Any, k: Any) -> tuple[Any, ...]:
        """Load eight numbers of the query: four for low halves of bytes and four for high ones, in all lanes."""
        e, kind = self.e, ir.VectorType(_BYTE, self.width)
        place = e.mul(k, 2)
        halves = (e.load(query, e.add(place, j), _I32) for j in range(2))
        return tuple(e.builder.bitcast(splat(e.builder, x, self.lanes), kind) for x in halves)

    def _steps(self, block: Any, first: int) -> Any:
        """Load steps of rows: bfloat16 numbers are the upper halves of floats."""
        e, b, kind = self.e, self.e.builder, ir.VectorType(_I32, self.lanes)
        if self.shared:
            value = b.load(b.inttoptr(e.add(block, self.size - 4 * BLOCK + 4 * first), POINTER), typ=kind)
            value.align = 1
            bits = b.and_(value, ir.Constant(kind, [0xFFFF0000] * self.lanes))
            return b.bitcast(bits, ir.VectorType(ir.FloatType(), self.lanes))
        at = e.add(block, self.size - 2 * BLOCK + 2 * first)
        value = b.load(b.inttoptr(at, POINTER), typ=ir.VectorType(_I16, self.lanes))
        value.align = 1
        bits = b.shl(b.zext(value, kind), ir.Constant(kind, [16] * self.lanes))
        return b.bitcast(bits, ir.VectorType(ir.FloatType(), self.lanes))

    def _products(self, block: Any, first: int, query: Any, given: list[Any] | None) -> Any:
        """Return sums of codes times numbers of the query, for as many rows as a vector has lanes."""
        e, b = self.e, self.e.builder
        total = e.variable(ir.Constant(ir.VectorType(_I32, self.lanes), None))

        def take(places: list[Any]) -> None:
            pairs = None
            for k in places:
                own = self._eight(block, first, k, given[k] if given else self._query(query, _number(e, k)))
                pairs = own if pairs is None else b.add(pairs, own)
            total.set(b.add(total.get(), self._fours(pairs)))

        whole = self.eights // _SAFE * _SAFE
        if self.eights <= _UNROLLED:
            for k in range(0, self.eights, _SAFE):
                take(list(range(k, min(k + _SAFE, self.eights))))
        else:
            with e.loop(0, whole, _SAFE) as k:
                take([e.add(k, j) for j in range(_SAFE)])
            if whole < self.eights:
                take(list(range(whole, self.eights)))
        return total.get()

    def _eight(self, block: Any, first: int, k: Any, query: tuple[Any, ...]) -> Any:
        """Return sums of products of eight numbers, those of a row still in two parts."""
        e, b = self.e, self.e.builder
        at = e.add(block, e.mul(_number(e, k), BLOCK * TOGETHER // 2), first * TOGETHER // 2)
        pairs = b.load(b.inttoptr(at, POINTER), typ=ir.VectorType(_I16, self.width // 2))
        pairs.align = 1
        high = b.lshr(pairs, ir.Constant(pairs.type, [4] * (self.width // 2)))
        kind = ir.VectorType(_BYTE, self.width)
        low = ir.Constant(kind, [LEVELS - 1] * self.width)
        parts = [self._pairs(b.and_(b.bitcast(x, kind), low), q) for x, q in zip((pairs, high), query, strict=True)]
        return b.add(*parts)

    def _pairs(self, numbers: Any, query: Any) -> Any:
        """Return sums of products of neighbours, as numbers of 16 bits."""
        b, half = self.e.builder, self.width // 2
        if self.bytewise:
            kind = ir.VectorType(_I16, half)
            return call_function(self.e, f"llvm.x86.{_PAIRS[self.width]}", kind, (numbers, query))
        wide = ir.VectorType(_I16, self.width)
        return _neighbours(b, b.mul(b.zext(numbers, wide), b.sext(query, wide)))

    def _fours(self, pairs: Any) -> Any:
        """Return sums of neighbours, as numbers of 32 bits."""
        b, kind = self.e.builder, ir.VectorType(_I32, self.lanes)
        if self.bytewise:
            return call_function(self.e, f"llvm.x86.{_FOURS[self.width]}", kind, (pairs, _ones(pairs.type)))
        return _neighbours(b, b.sext(pairs, ir.VectorType(_I32, 2 * self.lanes)))


def _number(e: Emitter, k: Any) -> Any:
    return e.integer(k) if isinstance(k, int) else k


def _ones(kind: Any) -> Any:
    return ir.Constant(kind, [1] * kind.count)


def _flags(lanes: int) -> Any:
    return ir.VectorType(ir.IntType(1), lanes)


def _neighbours(b: Any, x: Any) -> Any:
    """Return sums of neighbouring lanes."""
    half = x.type.count // 2
    even, odd = (ir.Constant(ir.VectorType(_I32, half), [2 * j + k for j in range(half)]) for k in range(2))
    return b.add(b.shuffle_vector(x, x, even), b.shuffle_vector(x, x, odd))


def _sum_blocks(e: Emitter) -> None:
    """Sum up blocks, as many together as a vector has lanes."""
    weights, logits, count, sums, linear, most = e.arguments
    m, b, zero, nothing = e.math, e.builder, e.math.constant(0.0), e.math.constant(float("-inf"))

    def there(x: Any) -> Any:
        return m.where(m.gt(x, nothing), x, zero)

    with e.loop(0, count, e.lanes) as i:
        for x, own, operation, out in (
            (weights, _same, m.add, sums),
            (logits, there, m.add, linear),
            (weights, _same, m.maximum, most),
        ):
            vectors = []
            for block in range(e.lanes):
                at = e.mul(e.add(i, block), BLOCK)
                parts = [own(e.load_vector(x, e.add(at, k))) for k in range(0, BLOCK, e.lanes)]
                while len(parts) > 1:
                    parts = [operation(*two) for two in zip(parts[::2], parts[1::2], strict=True)]
                vectors += parts
            while len(vectors) > 1:
                pairs = zip(vectors[::2], vectors[1::2], strict=True)
                vectors = [operation(*_split(b, x, y, e.lanes)) for x, y in pairs]
            e.store_vector(vectors[0], out, i)
    e.finish()


def _same(x: Any) -> Any:
    return x


def _split(b: Any, x: Any, y: Any, lanes: int) -> tuple[Any, ...]:
    """Return the even lanes of two vectors, and the odd ones."""
    orders = (ir.Constant(ir.VectorType(_I32, lanes), [2 * j + k for j in range(lanes)]) for k in range(2))
    return tuple(b.shuffle_vector(x, y, order) for order in orders)


def _pick(e: Emitter) -> None:
    """Find the first item with which the sum of sizes is beyond a place, or the last there is."""
    weights, masks, factors, boosts, slopes, least, rest, count, places = e.arguments
    b, numbers, bits = e.builder, ir.VectorType(e.element, BLOCK), ir.IntType(BLOCK)
    none, limit = ir.Constant(numbers, [0.0] * BLOCK), splat(b, e.load(least, e.integer(0)), BLOCK)
    with e.loop(0, count) as i:
        block = b.zext(e.load(places, i, _I32), INT)
        own = b.load(e.address(weights, e.mul(block, BLOCK)), typ=numbers)
        own.align = e.align
        factor, boost, slope = (splat(b, e.load(x, block), BLOCK) for x in (factors, boosts, slopes))
        own = b.fmul(factor, b.fadd(b.fmul(boost, own), slope))
        mask = b.trunc(e.load(masks, block, _I32), bits)
        there = b.bitcast(mask, _flags(BLOCK))
        sums = own = b.select(b.and_(there, b.fcmp_ordered("<", own, limit)), own, none)
        step = 1
        while step < BLOCK:
            order = [BLOCK + j if j < step else j - step for j in range(BLOCK)]
            sums = b.fadd(sums, b.shuffle_vector(sums, none, ir.Constant(ir.VectorType(_I32, BLOCK), order)))
            step *= 2
        at = e.load(rest, i, ir.DoubleType())
        beyond = b.fcmp_ordered(">", sums, splat(b, at if e.align == 8 else b.fptrunc(at, e.element), BLOCK))
        first, some = (b.bitcast(x, bits) for x in (beyond, b.fcmp_ordered(">", own, none)))
        some = b.select(b.icmp_unsigned("!=", some, bits(0)), some, mask)  # all may be less than the smallest number
        last = b.sub(bits(BLOCK - 1), b.ctlz(some, ir.IntType(1)(0)))
        found = b.select(b.icmp_unsigned("!=", first, bits(0)), b.cttz(first, ir.IntType(1)(0)), last)
        e.store(b.trunc(e.add(e.mul(block, BLOCK), b.zext(found, INT)), _I32), places, i)
    e.finish()
