"""Tile kernels that every map shares: matrix products, packing, sums on a log scale, normalisation.

Addresses and sizes are 64-bit integers; matrices are row-major with a leading dimension in elements. Packed matrices
are padded to whole register tiles, so no kernel has a ragged edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from rfkernels.backends.numba import conversions
from rfkernels.backends.numba.emitter import INT, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module, compiled_once
from rfkernels.backends.numba.products import gemm, gemm_row

SENTINEL = {32: -3e38, 64: -1.7e308}
"""Stands for the exponent of a key that does not count: finite, so that differences are never nan."""

ABSENT = {bits: 0.75 * lowest for bits, lowest in SENTINEL.items()}
"""What is below this does not count. No key of a finite squared norm has such an exponent."""

DTYPES = ("float32", "float64", "float16", "bfloat16")

Emit = Callable[[Emitter], None]


@compiled_once
def shared(machine: Machine, bits: int) -> Code:
    """Compile the kernels for elements of `bits` bits."""
    module = ir.Module(name=f"rfkernels_{bits}")
    lanes = machine.lanes(bits)

    def function(name: str, parameters: str, emit: Emit) -> None:
        emitter = Emitter(module, name, parameters, bits, lanes)
        emit(emitter)

    product = "a a_row a_column b b_row c c_row rows columns depth"
    function("gemm", product, lambda e: gemm(e, machine, accumulate=False))
    function("gemm_add", product, lambda e: gemm(e, machine, accumulate=True))
    function("gemm_row", product, lambda e: gemm_row(e, machine))
    ahead = f"{product} one other size"
    function("gemm_ahead", ahead, lambda e: gemm(e, machine, accumulate=False))
    function("gemm_add_ahead", ahead, lambda e: gemm(e, machine, accumulate=True))
    for name in DTYPES if bits == 64 else (name for name in DTYPES if name != "float64"):
        function(f"pack_{name}", "source row column first last rows width centre out out_row", _packing(name, bits))
        function(f"unpack_{name}", "sums sums_row denominator rows width out out_row", _unpacking(name))
    function("finite", "source row rows width", _finite)
    function("transpose", "source source_row out out_row rows columns", _transpose)
    function("valid", "mask stride first last columns out", _valid)
    function("first_valid", "valid columns", _first_valid)
    function("holds", "shift count", _holds)
    function("offsets_columns", "y y_row y_rows x x_row x_rows linear parameters valid out columns", _offsets_columns)
    function("offsets_rows", "y y_row y_width x x_row x_width linear parameters out rows", _offsets_rows)
    function("rescale", "shift new kv kv_row width z count", _rescale)
    function("accumulate", "into terms count", _accumulate)
    function("sum", "x y out count", _sum)
    function("copy", "source out count", _copy)
    function("triangle", "scores row rows denominator", lambda e: _triangle(e, machine.rows_at_once))
    function("band", "scores row rows columns low high key_term query_term scale shift sums sums_row width den", _band)
    function("settle", "den shift rows", _settle)
    function("join", "sums sums_row den shift other other_row other_den other_shift rows width", _join)
    return compile_module(module, machine.width, keep=True)


def _packing(name: str, bits: int) -> Emit:
    """Copy rows first <= r < last less a centre, zeros elsewhere; return whether all were finite."""

    def emit(e: Emitter) -> None:
        source, row, column, first, last, rows, width, centre, out, out_row = e.arguments
        b = e.builder
        kind = conversions.STORAGE[name]
        largest = e.variable(e.integer(0))
        step = 2 * e.lanes
        padded = b.and_(e.add(width, step - 1), e.integer(-step))
        full = b.and_(width, e.integer(-e.lanes))

        def clear(low: Any, high: Any, start: Any) -> None:
            with e.loop(low, high) as r, e.loop(start, padded, e.lanes) as j:
                e.store_vector(e.math.constant(0.0), out, e.add(e.mul(r, out_row), j))

        clear(e.integer(0), first, e.integer(0))
        clear(last, rows, e.integer(0))
        clear(first, last, full)
        size = conversions.SIZE[name]
        whole = b.select(b.icmp_signed("==", column, e.integer(size)), full, e.integer(0))
        worst = e.variable(ir.Constant(e.math.integer, [0] * e.lanes))
        with e.loop(first, last) as r:
            base, start = e.add(source, e.mul(r, row)), e.mul(r, out_row)
            with e.loop(0, whole, e.lanes) as j:
                value = conversions.widen(e, name, e.load_vector(base, j, kind))
                worst.set(conversions.largest_exponent(e, worst.get(), value))
                e.store_vector(b.fsub(value, e.load_vector(centre, j)), out, e.add(start, j))
            with e.loop(whole, width) as j:
                value = conversions.widen(e, name, e.load(e.add(base, e.mul(j, column)), e.integer(0), kind))
                largest.set(conversions.largest_exponent_scalar(e, largest.get(), value))
                e.store(b.fsub(value, e.load(centre, j)), out, e.add(start, j))
        e.finish(conversions.all_finite(e, worst.get(), largest.get()))

    return emit


def _finite(e: Emitter) -> None:
    """Return whether rows of elements are all finite; the width is a multiple of two vectors."""
    source, row, rows, width = e.arguments
    worst = e.variable(ir.Constant(e.math.integer, [0] * e.lanes))
    with e.loop(0, rows) as r:
        base = e.add(source, e.mul(r, row))
        with e.loop(0, width, 2 * e.lanes) as j:
            for i in (0, e.lanes):
                worst.set(conversions.largest_exponent(e, worst.get(), e.load_vector(base, e.add(j, i))))
    e.finish(conversions.all_finite(e, worst.get(), e.integer(0)))


def _unpacking(name: str) -> Emit:
    """Write sums / denominator in the dtype asked for; zeros where the denominator is exactly zero."""

    def emit(e: Emitter) -> None:
        sums, sums_row, denominator, rows, width, out, out_row = e.arguments
        b = e.builder
        whole = b.and_(width, e.integer(-e.lanes))
        with e.loop(0, rows) as r:
            below = e.load(denominator, r)
            nothing = b.fcmp_ordered("==", below, e.scalar(0.0))
            below = b.select(nothing, e.scalar(1.0), below)
            numerator = b.select(nothing, e.scalar(0.0), e.scalar(1.0))
            bases = e.add(out, e.mul(r, out_row))
            start = e.mul(r, sums_row)
            divisor, kept = e.math.splat(below), e.math.splat(numerator)
            with e.loop(0, whole, e.lanes) as j:
                value = b.fdiv(b.fmul(e.load_vector(sums, e.add(start, j)), kept), divisor)
                e.store_vector(conversions.narrow(e, name, value), bases, j)
            with e.loop(whole, width) as j:
                value = b.fdiv(b.fmul(e.load(sums, e.add(start, j)), numerator), below)
                e.store(conversions.narrow(e, name, value), bases, j)
        e.finish()

    return emit


def _transpose(e: Emitter) -> None:
    """Transpose blocks of lanes × lanes by a network of two-source shuffles; both sizes are multiples of lanes."""
    source, source_row, out, out_row, rows, columns = e.arguments
    n = e.lanes
    lane = ir.VectorType(ir.IntType(32), n)
    with e.loop(0, rows, n) as i, e.loop(0, columns, n) as j:
        block = [e.load_vector(source, e.add(e.mul(e.add(i, r), source_row), j)) for r in range(n)]
        step = n // 2
        while step:
            upper = ir.Constant(lane, [x if not x & step else n + x - step for x in range(n)])
            lower = ir.Constant(lane, [x + step if not x & step else n + x for x in range(n)])
            for r in (r for r in range(n) if not r & step):
                one, two = block[r], block[r + step]
                block[r] = e.builder.shuffle_vector(one, two, upper)
                block[r + step] = e.builder.shuffle_vector(one, two, lower)
            step //= 2
        for r in range(n):
            e.store_vector(block[r], out, e.add(e.mul(e.add(j, r), out_row), i))
    e.finish()


def _valid(e: Emitter) -> None:
    """Write 1 where a key exists and the mask (bytes; none at address 0) allows it, else 0; return their number."""
    mask, stride, first, last, columns, out = e.arguments
    b = e.builder
    every = b.and_(b.icmp_signed("==", mask, e.integer(0)), b.icmp_signed("==", b.sub(last, first), columns))
    with b.if_then(every):
        with e.loop(0, columns, e.lanes) as c:
            e.store_vector(e.math.constant(1.0), out, c)
        b.ret(columns)
    count = e.variable(e.integer(0))
    masked = b.icmp_signed("!=", mask, e.integer(0))
    byte = ir.IntType(8)
    one = e.variable(e.integer(0))
    with e.loop(0, columns) as c:
        inside = b.and_(b.icmp_signed(">=", c, first), e.less(c, last))
        one.set(b.zext(inside, INT))
        with b.if_then(b.and_(inside, masked)):
            given = e.load(e.add(mask, e.mul(c, stride)), e.integer(0), byte)
            one.set(b.zext(b.icmp_signed("!=", given, byte(0)), INT))
        count.set(e.add(count.get(), one.get()))
        e.store(b.sitofp(one.get(), e.element), out, c)
    e.finish(count.get())


def _offsets_columns(e: Emitter) -> None:
    """Sum a = weight Σ y² + Σ linear x + constant down each column; −∞ where a column is not valid.

    No projection of a masked key, infinite or no number at all, lifts its exponent from there.
    """
    y, y_row, y_rows, x, x_row, x_rows, linear, parameters, valid, out, columns = e.arguments
    m, b = e.math, e.builder
    weight, constant = m.splat(e.load(parameters, e.integer(0))), m.splat(e.load(parameters, e.integer(1)))
    with e.loop(0, columns, e.lanes) as c:
        total, slope = e.variable(m.constant(0.0)), e.variable(constant)
        with e.loop(0, y_rows) as i:
            value = e.load_vector(y, e.add(e.mul(i, y_row), c))
            total.set(m.fma(value, value, total.get()))
        with b.if_then(b.icmp_signed("!=", linear, e.integer(0))), e.loop(0, x_rows) as i:
            value = e.load_vector(x, e.add(e.mul(i, x_row), c))
            slope.set(m.fma(value, m.splat(e.load(linear, i)), slope.get()))
        result = m.fma(weight, total.get(), slope.get())
        exists = m.gt(e.load_vector(valid, c), m.constant(0.0))
        e.store_vector(m.where(exists, result, m.constant(-math.inf)), out, c)
    e.finish()


def _offsets_rows(e: Emitter) -> None:
    """Sum a = weight Σ y² + Σ linear x + constant along each row."""
    y, y_row, y_width, x, x_row, x_width, linear, parameters, out, rows = e.arguments
    m, b = e.math, e.builder
    weight, constant = e.load(parameters, e.integer(0)), e.load(parameters, e.integer(1))
    with e.loop(0, rows) as r:
        total, slope = e.variable(m.constant(0.0)), e.variable(m.constant(0.0))
        with e.loop(0, y_width, e.lanes) as j:
            value = e.load_vector(y, e.add(e.mul(r, y_row), j))
            total.set(m.fma(value, value, total.get()))
        with b.if_then(b.icmp_signed("!=", linear, e.integer(0))), e.loop(0, x_width, e.lanes) as j:
            value = e.load_vector(x, e.add(e.mul(r, x_row), j))
            slope.set(m.fma(value, e.load_vector(linear, j), slope.get()))
        squared = b.fmul(weight, m.reduce_add(total.get()))
        e.store(b.fadd(b.fadd(squared, m.reduce_add(slope.get())), constant), out, r)
    e.finish()


def _rescale(e: Emitter) -> None:
    """Where new_j > shift_j: multiply row j of kv and z_j by exp(shift_j − new_j) and move shift_j there."""
    shift, new, kv, kv_row, width, z, count = e.arguments
    m, b = e.math, e.builder
    with e.loop(0, count) as j:
        old, moved = e.load(shift, j), e.load(new, j)
        with b.if_then(b.fcmp_ordered(">", moved, old)):
            factor = m.exp(m.splat(b.fsub(old, moved)))
            with e.loop(0, width, e.lanes) as i:
                index = e.add(e.mul(j, kv_row), i)
                e.store_vector(m.mul(e.load_vector(kv, index), factor), kv, index)
            single = b.extract_element(factor, e.integer(0))
            e.store(b.fmul(e.load(z, j), single), z, j)
            e.store(moved, shift, j)
    e.finish()


def _accumulate(e: Emitter) -> None:
    """Add terms to `into`; the count is a multiple of lanes."""
    into, terms, count = e.arguments
    with e.loop(0, count, e.lanes) as i:
        e.store_vector(e.math.add(e.load_vector(into, i), e.load_vector(terms, i)), into, i)
    e.finish()


def _sum(e: Emitter) -> None:
    """Take out = x + y, writing exactly `count` elements."""
    x, y, out, count = e.arguments
    whole = e.builder.and_(count, e.integer(-e.lanes))
    with e.loop(0, whole, e.lanes) as i:
        e.store_vector(e.math.add(e.load_vector(x, i), e.load_vector(y, i)), out, i)
    with e.loop(whole, count) as i:
        e.store(e.builder.fadd(e.load(x, i), e.load(y, i)), out, i)
    e.finish()


def _copy(e: Emitter) -> None:
    """Take out = source, writing exactly `count` elements."""
    source, out, count = e.arguments
    whole = e.builder.and_(count, e.integer(-e.lanes))
    with e.loop(0, whole, e.lanes) as i:
        e.store_vector(e.load_vector(source, i), out, i)
    with e.loop(whole, count) as i:
        e.store(e.load(source, i), out, i)
    e.finish()


def _first_valid(e: Emitter) -> None:
    """Return the first column that is valid, the number of columns if none is."""
    valid, columns = e.arguments
    b = e.builder
    found = e.variable(columns)
    with e.loop(0, columns) as c:
        counts = b.fcmp_ordered(">", e.load(valid, c), e.scalar(0.0))
        found.set(b.select(b.and_(counts, e.less(c, found.get())), c, found.get()))
    e.finish(found.get())


def _holds(e: Emitter) -> None:
    """Return whether any of so many shifts is that of a key: above the sentinel."""
    shift, count = e.arguments
    largest = e.variable(e.math.constant(SENTINEL[e.align * 8]))
    with e.loop(0, count, e.lanes) as i:
        largest.set(e.math.maximum(largest.get(), e.load_vector(shift, i)))
    above = e.builder.fcmp_ordered(">", e.math.reduce_max(largest.get()), e.scalar(ABSENT[e.align * 8]))
    e.finish(e.builder.zext(above, e.integer(0).type))


def _triangle(e: Emitter, block: int) -> None:
    """Zero column c > r of row r, as far as its block of rows is read, and add the rest to its denominator."""
    scores, row, rows, denominator = e.arguments
    m, b = e.math, e.builder
    lane = e.lane_numbers()
    with e.loop(0, rows) as r:
        total = e.variable(m.constant(0.0))
        edge = e.mul(e.add(b.sdiv(r, e.integer(block)), 1), block)
        edge = b.select(e.less(edge, rows), edge, rows)
        with e.loop(0, edge, e.lanes) as c:
            index = e.add(e.mul(r, row), c)
            seen = b.icmp_signed("<=", lane, e.splat_number(b.sub(r, c)))
            value = m.where(seen, e.load_vector(scores, index), m.constant(0.0))
            total.set(m.add(total.get(), value))
            e.store_vector(value, scores, index)
        e.store(b.fadd(e.load(denominator, r), m.reduce_add(total.get())), denominator, r)
    e.finish()


def _band(e: Emitter) -> None:
    """Turn dot products into exact weights and put the rows of `sums` on the new log scale.

    Row r counts columns low + r <= c < high + r. The log-weight is scale · score + key_term + query_term; `shift` is
    the running maximum of each row, to which sums and denominators are rescaled; weights that do not count become zero.
    """
    scores, row, rows, columns, low, high, key_term, query_term, scale, shift, sums, sums_row, width, den = e.arguments
    m, b = e.math, e.builder
    lane, missing = e.lane_numbers(), m.constant(SENTINEL[e.align * 8])
    factor = m.splat(e.load(scale, e.integer(0)))
    absent = m.constant(ABSENT[e.align * 8])
    with e.loop(0, rows) as r:
        first, last = e.add(low, r), e.add(high, r)
        top = e.variable(m.splat(e.load(shift, r)))
        query = m.splat(e.load(query_term, r))
        with e.loop(0, columns, e.lanes) as c:
            index, term = e.add(e.mul(r, row), c), e.load_vector(key_term, c)
            log = m.add(m.fma(factor, e.load_vector(scores, index), term), query)
            after = b.icmp_signed(">=", lane, e.splat_number(b.sub(first, c)))
            before = b.icmp_signed("<", lane, e.splat_number(b.sub(last, c)))
            counts = b.and_(m.gt(term, absent), b.and_(after, before))  # a large score would lift what does not
            log = m.where(counts, log, missing)
            top.set(m.maximum(top.get(), log))
            e.store_vector(log, scores, index)
        old, new = e.load(shift, r), m.reduce_max(top.get())
        moved = m.splat(new)
        total = e.variable(m.constant(0.0))
        with e.loop(0, columns, e.lanes) as c:
            index = e.add(e.mul(r, row), c)
            log = e.load_vector(scores, index)
            weight = m.where(m.gt(log, absent), m.exp_of_exponent(m.sub(log, moved)), m.constant(0.0))
            total.set(m.add(total.get(), weight))
            e.store_vector(weight, scores, index)
        move_row(e, r, (old, new), total.get(), (sums, sums_row, width, den, shift))
    e.finish()


def move_row(e: Emitter, r: Any, scales: tuple[Any, Any], total: Any, out: tuple[Any, Any, Any, Any, Any]) -> None:
    """Put row r of sums and denominators from one log scale on another, and add weights to the denominator."""
    (old, new), (sums, sums_row, width, den, shift), m, b = scales, out, e.math, e.builder
    shrink = m.exp(m.splat(b.fsub(old, new)))
    single = b.extract_element(shrink, e.integer(0))
    with b.if_then(b.fcmp_ordered(">", new, old)), e.loop(0, width, e.lanes) as i:
        index = e.add(e.mul(r, sums_row), i)
        e.store_vector(m.mul(e.load_vector(sums, index), shrink), sums, index)
    e.store(b.fadd(b.fmul(e.load(den, r), single), m.reduce_add(total)), den, r)
    e.store(new, shift, r)


def _settle(e: Emitter) -> None:
    """Where a denominator is zero, nothing was seen: put the row on the lowest log scale, where any other part wins."""
    den, shift, rows = e.arguments
    with e.loop(0, rows) as r:
        nothing = e.builder.fcmp_ordered("==", e.load(den, r), e.scalar(0.0))
        lowest = e.scalar(SENTINEL[e.align * 8])
        e.store(e.builder.select(nothing, lowest, e.load(shift, r)), shift, r)
    e.finish()


def _join(e: Emitter) -> None:
    """Add the rows of another partial sum, on the larger of the two log scales; its rows may run backwards."""
    sums, sums_row, den, shift, other, other_row, other_den, other_shift, rows, width = e.arguments
    m, b = e.math, e.builder
    with e.loop(0, rows) as r:
        back = b.sub(e.integer(0), r)
        one, two = e.load(shift, r), e.load(other_shift, back)
        new = b.select(b.fcmp_ordered(">", two, one), two, one)
        keep, take = m.exp(m.splat(b.fsub(one, new))), m.exp(m.splat(b.fsub(two, new)))
        with e.loop(0, width, e.lanes) as i:
            index = e.add(e.mul(r, sums_row), i)
            theirs = e.load_vector(other, e.add(e.mul(back, other_row), i))
            e.store_vector(m.fma(theirs, take, m.mul(e.load_vector(sums, index), keep)), sums, index)
        kept = b.fmul(e.load(den, r), b.extract_element(keep, e.integer(0)))
        taken = b.fmul(e.load(other_den, back), b.extract_element(take, e.integer(0)))
        e.store(b.fadd(kept, taken), den, r)
        e.store(new, shift, r)
    e.finish()
