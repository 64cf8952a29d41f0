"""Kernels that read the codes of blocks of items, as `rfkernels.catalog.codes` has them; called by address.

A block fills a vector, or a few where vectors are short: four bytes for each row, whose products with the same four of
a query add up to one number.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir

from rfkernels.backends.numba.catalog_kernels import fetch
from rfkernels.backends.numba.catalog_lanes import looked_up, splat, squares_in, steps_in
from rfkernels.backends.numba.emitter import INT, POINTER, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module, compiled_once
from rfkernels.catalog.codes import BLOCK, LARGEST, LEVELS, TOGETHER, eights, shared
from rfkernels.catalog.profiles import CODED
from rfkernels.catalog.radial import TEMPERED, UNSURE
from rfkernels.catalog.scans import MOST

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

_ALL_FOUR = {64: "avx512.vpdpbusd.512"}
"""Instructions that do both."""


def products_added(width: int) -> int:
    """Return how many products of bytes an instruction of the host adds up in vectors of some bytes: 4, 2, or 1."""
    features = binding.get_host_cpu_features()
    if platform.machine().lower() not in ("x86_64", "amd64") or not features.get("ssse3"):
        return 1
    return 4 if width in _ALL_FOUR and features.get("avx512vnni") else 2


@compiled_once
def scan_kernels(machine: Machine, bits: int, dim: int, added: int) -> Code:
    """Compile ``scan`` for logits of `bits` bits.

    For each of some blocks, as many as make whole vectors: logits = base + step numbers[0] (Σ code · query − shift) of
    the rows in its mask, −inf of others; weights = exp(logits − numbers[2]); boosts, of the widest step and numbers[4];
    and with these in float64: the sum of what its items are checked in proportion to, and that of weights less the
    control variate. numbers[1] gets the largest logit, and numbers[5] the largest boost.

    ``scan_each`` does so with another query for each block, tempered, without control variates, and adds what codes say
    of squares: `query` are the addresses of the queries, and of the unit, the shift, and the deviation at step 1 of
    each, then the bytes from one query to the next, and the address of what squares are multiplied by; `centres` are
    the numbers of queries of blocks.
    """
    return _scans(machine, bits, dim, added, scan=(False, False), scan_each=(True, False))


@compiled_once
def profile_kernels(machine: Machine, bits: int, dim: int, added: int) -> Code:
    """Compile ``scan_profile``: ``scan_each`` where codes say squares, and logits are as `catalog.profiles.coded` says.

    Behind the rest is what `catalog_lanes.looked_up` takes.
    """
    return _scans(machine, bits, dim, added, scan_profile=(True, True))


def _scans(machine: Machine, bits: int, dim: int, added: int, **kinds: tuple[bool, bool]) -> Code:
    module = ir.Module(name=f"rfkernels_catalog_{next(iter(kinds))}_{bits}_{dim}")
    known = "codes blocks masks bases count query shift numbers"
    parameters = f"{known} logits weights boosts factors slopes centres sizes sums parts"
    for name, kind in kinds.items():
        emitter = Emitter(module, name, parameters, bits, machine.lanes(bits))
        _Scan(emitter, machine.width, dim, added, *kind).emit()
    return compile_module(module, machine.width, keep=True)


@compiled_once
def level_kernels(machine: Machine, bits: int, dim: int, added: int) -> Code:
    """Compile ``levels``: logits as those of `scan_kernels`, the largest of each block, and the largest of all."""
    module = ir.Module(name=f"rfkernels_catalog_levels_{bits}_{dim}")
    parameters = "codes blocks masks bases count query shift numbers logits largest"
    _Scan(Emitter(module, "levels", parameters, bits, machine.lanes(bits)), machine.width, dim, added).emit_levels()
    return compile_module(module, machine.width, keep=True)


class _Scan:
    """Logits of blocks of rows."""

    def __init__(
        self, e: Emitter, width: int, dim: int, added: int, each: bool = False, looked_up: bool = False
    ) -> None:
        self.e, self.width, self.lanes, self.added = e, width, width // 4, added
        self.each, self.looked_up = each, looked_up
        self.whole, self.shared = eights(dim), shared(dim)
        self.eights = self.whole + self.shared
        self.size = BLOCK * (self.whole * TOGETHER // 2 + (4 if self.shared else 2))

    def emit(self) -> None:
        """Emit what weighs."""
        e = self.e
        codes, blocks, masks, bases, count, query, shift, numbers, logits, *others = e.arguments
        place, steps = (codes, blocks, masks, bases), e.array(e.math.vector, e.lanes)
        boosted = e.variable(e.math.constant(0.0))
        known, most = None if self.each else self._given(query, shift, numbers), e.variable(self._nothing())
        with e.loop(0, count, e.lanes) as first:
            with e.loop(0, e.lanes) as i:
                block = e.add(first, i)
                given = known or self._given_each(query, others[4], block)
                wide = self._narrowed(self._read(place, block, given, logits, most)[0])
                if self.each and not self.looked_up:
                    wide = e.math.mul(wide, e.math.splat(given[4]))
                e.store_vector(wide, steps, e.mul(i, e.lanes))
            boosted.set(e.math.maximum(boosted.get(), self._weigh(first, numbers, steps, logits, *others)))
        e.store(self._largest(most.get()), numbers, e.integer(1))
        e.store(e.math.reduce_max(boosted.get()), numbers, e.integer(5))
        e.finish()

    def emit_levels(self) -> None:
        """Emit what does not."""
        e = self.e
        codes, blocks, masks, bases, count, query, shift, numbers, logits, largest = e.arguments
        place = codes, blocks, masks, bases
        given, most = self._given(query, shift, numbers), e.variable(self._nothing())
        with e.loop(0, count) as i:
            e.store(self._largest(self._read(place, i, given, logits, most)[1]), largest, i)
        e.store(self._largest(most.get()), numbers, e.integer(1))
        e.finish()

    def _nothing(self) -> Any:
        return ir.Constant(ir.VectorType(self.e.element, self.lanes), [float("-inf")] * self.lanes)

    def _given(self, query: Any, shift: Any, numbers: Any) -> tuple[Any, ...]:
        """Return the address of the query, itself if registers hold it, what products are less, and what units are."""
        e, b = self.e, self.e.builder
        less = splat(b, b.trunc(shift, _I32), self.lanes)
        held = self.width == 64 and self.eights <= _HELD
        own = [self._query(query, e.integer(k)) for k in range(self.eights)] if held else None
        return query, own, less, splat(b, e.load(numbers, e.integer(0)), self.lanes)

    def _given_each(self, known: Any, owners: Any, block: Any) -> tuple[Any, ...]:
        """Return the same of the query of a block, and how much rounding lets logits deviate where steps are 1."""
        e, b = self.e, self.e.builder
        queries, units, shifts, deviations, row = (e.load(known, e.integer(j), INT) for j in range(5))
        owner = b.fptosi(e.load(owners, block), INT)
        less = splat(b, e.load(shifts, owner, _I32), self.lanes)
        unit = splat(b, e.load(units, owner), self.lanes)
        squared, *tables = (e.load(known, e.integer(j), INT) for j in range(5, 10 if self.looked_up else 6))
        square = splat(b, e.load(squared, e.integer(0)), self.lanes)
        return e.add(queries, e.mul(row, owner)), None, less, unit, e.load(deviations, owner), square, *tables

    def _read(self, place: tuple[Any, ...], i: Any, given: tuple[Any, ...], logits: Any, most: Any) -> tuple[Any, Any]:
        """Store the logits of a block; return vectors of its widest step and its largest logit."""
        e, b, (query, numbers, less, factor), (codes, blocks, masks, bases) = self.e, self.e.builder, given[:4], place
        later = b.zext(e.load(blocks, e.add(i, AHEAD), _I32), INT)
        fetch(e, e.add(codes, e.mul(later, self.size)), self.size, near=True)
        block = e.add(codes, e.mul(b.zext(e.load(blocks, i, _I32), INT), self.size))
        base, mask, out = (
            splat(b, e.load(bases, i), self.lanes),
            e.load(masks, i, _I32),
            e.address(logits, e.mul(i, BLOCK)),
        )
        kind = ir.VectorType(e.element, self.lanes)
        none = largest = self._nothing()
        step = kind if self.looked_up else ir.VectorType(ir.FloatType(), self.lanes)
        wide = ir.Constant(step, [0.0] * self.lanes)
        for first in range(0, BLOCK, self.lanes):
            total = b.sub(self._products(block, first, query, numbers), less)
            words = self._words(block, first)
            steps = steps_in(b, words)
            own_steps = steps if e.align == 4 else b.fpext(steps, kind)
            scaled = b.fmul(b.fmul(b.sitofp(total, kind), factor), own_steps)
            if self.each:
                part = squares_in(b, words)
                part = part if e.align == 4 else b.fpext(part, kind)
                scaled = b.fadd(scaled, b.fmul(b.fmul(own_steps, own_steps), b.fmul(part, given[5])))
            if self.looked_up:
                own, slope = looked_up(e, b.fadd(scaled, base), given[6:], CODED)
                steps = b.fmul(b.fmul(own_steps, splat(b, given[4], self.lanes)), slope)
                own = b.fsub(own, self._tempered(steps))
            elif self.each:
                off = b.fmul(own_steps, splat(b, given[4], self.lanes))
                own = b.fadd(b.fsub(scaled, self._tempered(off)), base)
            else:
                own = b.fadd(scaled, base)
            there = b.bitcast(b.trunc(b.lshr(mask, _I32(first)), ir.IntType(self.lanes)), _flags(self.lanes))
            own = b.select(there, own, none)
            b.store(own, b.gep(out, [e.integer(first)], source_etype=e.element)).align = e.align
            largest = b.select(b.fcmp_ordered(">", own, largest), own, largest)
            wide = b.select(b.and_(there, b.fcmp_ordered(">", steps, wide)), steps, wide)
        most.set(b.select(b.fcmp_ordered(">", largest, most.get()), largest, most.get()))
        return wide, largest

    def _tempered(self, off: Any) -> Any:
        """Return what logits are less, as `catalog.radial` has it, where rounding lets them deviate so much."""
        b, kind = self.e.builder, off.type
        square, most = b.fmul(off, off), ir.Constant(kind, [UNSURE] * self.lanes)
        square = b.select(b.fcmp_ordered("<", square, most), square, most)
        return b.fmul(square, ir.Constant(kind, [TEMPERED] * self.lanes))

    def _narrowed(self, wide: Any) -> Any:
        """Return a vector of elements, whose largest is that of steps."""
        e, b = self.e, self.e.builder
        while wide.type.count > e.lanes:
            half = wide.type.count // 2
            low, high = (ir.Constant(ir.VectorType(_I32, half), list(range(j, j + half))) for j in (0, half))
            one, two = b.shuffle_vector(wide, wide, low), b.shuffle_vector(wide, wide, high)
            wide = b.select(b.fcmp_ordered(">", one, two), one, two)
        return wide if wide.type == e.math.vector else b.fpext(wide, e.math.vector)

    def _weigh(self, first: Any, numbers: Any, steps: Any, logits: Any, weights: Any, *others: Any) -> Any:
        """Store weights of as many blocks as a vector has lanes, and sums; return boosts."""
        boosts, factors, slopes, centres, sizes, *sums = others
        e, m, zero, nothing = self.e, self.e.math, self.e.math.constant(0.0), self.e.math.constant(float("-inf"))
        top, spread = (m.splat(e.load(numbers, e.integer(j))) for j in (2, 4))
        near, linear = [], []
        for block in range(e.lanes):
            at = e.mul(e.add(first, block), BLOCK)
            x = [e.load_vector(logits, e.add(at, k)) for k in range(0, BLOCK, e.lanes)]
            own = [m.exp_of_exponent(m.sub(y, top)) for y in x]
            for k, y in enumerate(own):
                e.store_vector(y, weights, e.add(at, k * e.lanes))
            near.append(_joined(own, m.add))
            linear.append(_joined([m.where(m.gt(y, nothing), y, zero) for y in x], m.add))
        plain, straight = (m.reduce_each(x, m.add) for x in (near, linear))
        factor, slope, centre, size = (e.load_vector(x, first) for x in (factors, slopes, centres, sizes))
        wide = m.reduce_each([e.load_vector(steps, e.integer(j * e.lanes)) for j in range(e.lanes)], m.maximum)
        most = (1 + TEMPERED) * UNSURE if self.each else MOST
        boost = m.exp(m.minimum(m.constant(most), m.mul(m.mul(wide, wide), spread)))
        e.store_vector(boost, boosts, first)
        total = m.mul(factor, m.add(m.mul(boost, plain), m.mul(slope, size)))
        part = m.mul(factor, m.sub(plain, m.mul(slope, m.sub(straight, m.mul(size, centre)))))
        for x, out in zip((total, part), sums, strict=True):
            self._store_wide(x, out, first)
        return boost

    def _store_wide(self, x: Any, out: Any, index: Any) -> None:
        """Store numbers of float64."""
        e, b, kind = self.e, self.e.builder, ir.DoubleType()
        x = x if e.align == 8 else b.fpext(x, ir.VectorType(kind, e.lanes))
        b.store(x, e.address(out, index, kind)).align = 8

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

    def _words(self, block: Any, first: int) -> Any:
        """Load numbers whose upper halves say how long steps and squares of rows are."""
        e, b, kind = self.e, self.e.builder, ir.VectorType(_I32, self.lanes)
        if self.shared:
            value = b.load(b.inttoptr(e.add(block, self.size - 4 * BLOCK + 4 * first), POINTER), typ=kind)
            value.align = 1
            return value
        at = e.add(block, self.size - 2 * BLOCK + 2 * first)
        value = b.load(b.inttoptr(at, POINTER), typ=ir.VectorType(_I16, self.lanes))
        value.align = 1
        return b.shl(b.zext(value, kind), ir.Constant(kind, [16] * self.lanes))

    def _products(self, block: Any, first: int, query: Any, given: list[Any] | None) -> Any:
        """Return sums of codes times numbers of the query, for as many rows as a vector has lanes."""
        e, none = self.e, ir.Constant(ir.VectorType(_I32, self.lanes), None)
        totals = [e.variable(none) for _ in range(2)]

        def take(places: list[Any]) -> None:
            eights = [
                (self._halves(block, first, k), given[k] if given else self._query(query, _number(e, k)))
                for k in places
            ]
            if self.added == 4:
                for halves, own in eights:
                    for total, x, q in zip(totals, halves, own, strict=True):
                        total.set(self._added(total.get(), x, q))
            else:
                pairs = [self._pairs(x, q) for halves, own in eights for x, q in zip(halves, own, strict=True)]
                totals[0].set(e.builder.add(totals[0].get(), self._fours(_joined_all(e.builder, pairs))))

        whole = self.eights // _SAFE * _SAFE
        if self.eights <= _UNROLLED:
            for k in range(0, self.eights, _SAFE):
                take(list(range(k, min(k + _SAFE, self.eights))))
        else:
            with e.loop(0, whole, _SAFE) as k:
                take([e.add(k, j) for j in range(_SAFE)])
            if whole < self.eights:
                take(list(range(whole, self.eights)))
        low, high = (total.get() for total in totals)
        if self.added == 4:
            high = e.builder.ashr(high, ir.Constant(high.type, [4] * self.lanes))
        return e.builder.add(low, high)

    def _halves(self, block: Any, first: int, k: Any) -> tuple[Any, ...]:
        """Return eight numbers of each row: four from low halves of bytes and four from high ones.

        Where products are added in 32 bits the latter are 16 times as large, which spares a shift of each.
        """
        e, b = self.e, self.e.builder
        at = e.add(block, e.mul(_number(e, k), BLOCK * TOGETHER // 2), first * TOGETHER // 2)
        pairs = b.load(b.inttoptr(at, POINTER), typ=ir.VectorType(_I16, self.width // 2))
        pairs.align = 1
        kind = ir.VectorType(_BYTE, self.width)
        low, high = (ir.Constant(kind, [x] * self.width) for x in (LEVELS - 1, LEVELS * (LEVELS - 1)))
        if self.added == 4:
            return tuple(b.and_(b.bitcast(pairs, kind), mask) for mask in (low, high))
        shifted = b.lshr(pairs, ir.Constant(pairs.type, [4] * (self.width // 2)))
        return tuple(b.and_(b.bitcast(x, kind), low) for x in (pairs, shifted))

    def _added(self, total: Any, numbers: Any, query: Any) -> Any:
        """Return sums with four products more each."""
        kind = total.type
        given = total, *(self.e.builder.bitcast(x, kind) for x in (numbers, query))
        return self.e.call(f"llvm.x86.{_ALL_FOUR[self.width]}", kind, given)

    def _pairs(self, numbers: Any, query: Any) -> Any:
        """Return sums of products of neighbours, as numbers of 16 bits."""
        b, half = self.e.builder, self.width // 2
        if self.added > 1:
            kind = ir.VectorType(_I16, half)
            return self.e.call(f"llvm.x86.{_PAIRS[self.width]}", kind, (numbers, query))
        wide = ir.VectorType(_I16, self.width)
        return _neighbours(b, b.mul(b.zext(numbers, wide), b.sext(query, wide)))

    def _fours(self, pairs: Any) -> Any:
        """Return sums of neighbours, as numbers of 32 bits."""
        b, kind = self.e.builder, ir.VectorType(_I32, self.lanes)
        if self.added > 1:
            return self.e.call(f"llvm.x86.{_FOURS[self.width]}", kind, (pairs, _ones(pairs.type)))
        return _neighbours(b, b.sext(pairs, ir.VectorType(_I32, 2 * self.lanes)))


def _joined_all(b: Any, parts: list[Any]) -> Any:
    """Add up vectors of integers."""
    total = parts[0]
    for x in parts[1:]:
        total = b.add(total, x)
    return total


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


def _joined(parts: list[Any], operation: Callable[[Any, Any], Any]) -> Any:
    """Combine a power of two of vectors."""
    while len(parts) > 1:
        parts = [operation(*two) for two in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
