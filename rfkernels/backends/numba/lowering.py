"""Lower a feature map's activations to the three tile kernels that depend on it.

The kernels are compiled in each process from what the activations trace to at that moment: nothing is read from disk,
so nothing can be stale.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from llvmlite import ir

from rfkernels.activations import Program
from rfkernels.backends.numba.emitter import Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module
from rfkernels.backends.numba.kernels import SENTINEL
from rfkernels.backends.numba.vectormath import VectorMath, emit

JUMP_LIMIT = 40.0
"""How far, in log scale, a tile's keys may exceed the earliest key that its first query sees.

A query's weights are then at least e^-40 of the tile's scale: far from underflow, which in float32 begins at e^-87.
"""

Slopes = tuple[float, ...]


@lru_cache(maxsize=64)
def lowered(machine: Machine, bits: int, programs: tuple[Program, ...], slopes: Slopes | None) -> Code:
    """Compile the kernels of a map."""
    module = ir.Module(name="rfkernels_map")
    lanes = machine.lanes(bits)
    keys = "u u_row offsets add valid rows pad columns sums"
    _key_activation(Emitter(module, "key_activation", keys, bits, lanes), programs, slopes, ragged=False)
    _key_activation(Emitter(module, "key_activation_ragged", keys, bits, lanes), programs, slopes, ragged=True)
    queries = "u u_row offsets add z rows pad queries denominator top"
    _query_activation(Emitter(module, "query_activation", queries, bits, lanes), programs, slopes)
    if slopes is not None:
        shifts = "u u_row offsets log_weight rows pad columns shift first new add"
        _key_shift(Emitter(module, "key_shift", shifts, bits, lanes), slopes)
    return compile_module(module, machine.width)


def _offset(m: VectorMath, slopes: Slopes | None, i: int, u: Any, a: Any, add: Any) -> Any:
    """Return what activation i takes as its second argument, for the offset a + add.

    For an exponential map the exponent is taken as it was when the shift was found and turned back into an offset, so
    that the largest is exactly zero: at large norms another order of rounding could make it overflow or vanish.
    """
    if slopes is None or slopes[i] == 0:
        return m.add(a, add)
    slope = m.constant(slopes[i])
    return m.fma(u, m.neg(slope), m.add(m.fma(u, slope, a), add))


def _key_activation(e: Emitter, programs: tuple[Program, ...], slopes: Slopes | None, ragged: bool) -> None:
    """Activate projections (row j of u is feature j of every key) in place; sums_j = Σ over the tile's keys.

    Activation i of row j is written to row i · pad + j. Rows between `rows` and `pad` become zero. In the ragged form
    the features of keys that are not valid are zero.
    """
    u, u_row, offsets, add, valid, rows, pad, columns, sums = e.arguments
    m = e.math
    zero = m.constant(0.0)
    starts = [e.mul(pad, i) for i in range(len(programs))]
    with e.loop(0, rows) as j:
        adds = [m.splat(e.load(add, e.add(start, j))) for start in starts]
        totals = [e.variable(zero) for _ in programs]
        row = e.mul(j, u_row)
        with e.loop(0, columns, e.lanes) as c:
            projected, offset = e.load_vector(u, e.add(row, c)), e.load_vector(offsets, c)
            for i, (program, start, total) in enumerate(zip(programs, starts, totals, strict=True)):
                value = emit(program, m, projected, _offset(m, slopes, i, projected, offset, adds[i]))
                if ragged:
                    value = m.where(m.gt(e.load_vector(valid, c), zero), value, zero)
                total.set(m.add(total.get(), value))
                e.store_vector(value, u, e.add(e.mul(e.add(start, j), u_row), c))
        for start, total in zip(starts, totals, strict=True):
            e.store(m.reduce_add(total.get()), sums, e.add(start, j))
    with e.loop(rows, pad) as j:
        for start in starts:
            e.store(e.scalar(0.0), sums, e.add(start, j))
            with e.loop(0, columns, e.lanes) as c:
                e.store_vector(zero, u, e.add(e.mul(e.add(start, j), u_row), c))
    e.finish()


def _key_shift(e: Emitter, slopes: Slopes) -> None:
    """Take new_j, the larger of shift_j and the tile's largest exponent, and add_j = log_weight_j − new_j.

    Returns 1 if some new_j exceeds the exponent of key `first` and shift_j (shift_j alone when `first` is negative) by
    more than the limit, else 0.
    """
    u, u_row, offsets, log_weight, rows, pad, columns, shift, first, new, add = e.arguments
    m, b = e.math, e.builder
    worst = e.variable(e.scalar(0.0))
    sees = b.icmp_signed(">=", first, e.integer(0))
    column = b.select(sees, first, e.integer(0))
    earliest_offset = e.load(offsets, column)
    lowest = m.constant(SENTINEL[e.align * 8])
    for i, slope in enumerate(slopes):
        start, steep = e.mul(pad, i), m.constant(slope)
        with e.loop(0, rows) as j:
            top = e.variable(lowest)
            row = e.mul(j, u_row)
            with e.loop(0, columns, e.lanes) as c:
                exponent = e.load_vector(offsets, c)
                if slope != 0:
                    exponent = m.fma(e.load_vector(u, e.add(row, c)), steep, exponent)
                top.set(m.maximum(top.get(), exponent))
            index = e.add(start, j)
            weight, old = e.load(log_weight, index), e.load(shift, index)
            reached = b.fadd(m.reduce_max(top.get()), weight)
            moved = b.select(b.fcmp_ordered(">", reached, old), reached, old)
            e.store(moved, new, index)
            e.store(b.fsub(weight, moved), add, index)
            projected = b.fmul(e.scalar(slope), e.load(u, e.add(row, column)))
            earliest = b.fadd(b.fadd(projected, earliest_offset), weight)
            use = b.and_(sees, b.fcmp_ordered(">", earliest, old))
            jump = b.fsub(moved, b.select(use, earliest, old))
            worst.set(b.select(b.fcmp_ordered(">", jump, worst.get()), jump, worst.get()))
        with e.loop(rows, pad) as j:
            e.store(e.load(shift, e.add(start, j)), new, e.add(start, j))
            e.store(e.scalar(0.0), add, e.add(start, j))
    e.finish(b.zext(b.fcmp_ordered(">", worst.get(), e.scalar(JUMP_LIMIT)), e.arguments[0].type))


def _query_activation(e: Emitter, programs: tuple[Program, ...], slopes: Slopes | None) -> None:
    """Activate projections (row r of u is query r) in place and take each query's denominator.

    Activation i of column j is written to column i · pad + j; columns between `rows` and `pad` become zero. For an
    exponential map a query's own offset cancels: its features are taken at add_j − top, with top the largest
    slope · u_j + add_j, which is written out.
    """
    u, u_row, offsets, add, z, rows, pad, queries, denominator, top = e.arguments
    m, b = e.math, e.builder
    starts = [e.mul(pad, i) for i in range(len(programs))]
    with e.loop(0, queries) as r:
        row = e.mul(r, u_row)
        offset = m.splat(e.load(offsets, r))
        if slopes is not None:
            highest = e.variable(m.constant(SENTINEL[e.align * 8]))
            with e.loop(0, pad, e.lanes) as j:
                projected = e.load_vector(u, e.add(row, j))
                for start, slope in zip(starts, slopes, strict=True):
                    exponent = m.fma(projected, m.constant(slope), e.load_vector(add, e.add(start, j)))
                    highest.set(m.maximum(highest.get(), exponent))
            largest = m.reduce_max(highest.get())
            e.store(largest, top, r)
            offset = m.splat(b.fneg(largest))
        total = e.variable(m.constant(0.0))
        with e.loop(0, pad, e.lanes) as j:
            projected = e.load_vector(u, e.add(row, j))
            exists = b.icmp_signed("<", e.lane_numbers(), e.splat_number(b.sub(rows, j)))
            for i, (program, start) in enumerate(zip(programs, starts, strict=True)):
                column = e.add(start, j)
                own = _offset(m, slopes, i, projected, e.load_vector(add, column), offset)
                value = m.where(exists, emit(program, m, projected, own), m.constant(0.0))
                total.set(m.fma(value, e.load_vector(z, column), total.get()))
                e.store_vector(value, u, e.add(row, column))
        e.store(m.reduce_add(total.get()), denominator, r)
    e.finish()
