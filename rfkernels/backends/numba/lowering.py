"""Lower a feature map's activations to the three tile kernels that depend on it.

The kernels are compiled in each process from what the activations trace to at that moment: nothing is read from disk,
so nothing can be stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from llvmlite import ir

from rfkernels.activations import FUNCTIONS, Constant, Instruction, Operand, Program
from rfkernels.backends.numba.emitter import Emitter, Variable
from rfkernels.backends.numba.jit import Code, Machine, compile_module
from rfkernels.backends.numba.kernels import SENTINEL
from rfkernels.backends.numba.vectormath import VectorMath

JUMP_LIMIT = 40.0
"""How far, in log scale, a tile's keys may exceed the earliest key that its first query sees.

A query's weights are then at least e^-40 of the tile's scale: far from underflow, which in float32 begins at e^-87.
"""

Slopes = tuple[float, ...]

_METHODS = {"and": "and_", "or": "or_", "not": "not_"}
_METHODS |= {name: name for name in (*FUNCTIONS, "add", "sub", "mul", "div", "neg", "gt", "ge", "lt", "le")}


def emit(
    program: Program, math: VectorMath, u: ir.Value, a: ir.Value, known: Mapping[int, ir.Value] | None = None
) -> ir.Value:
    """Append the instructions of a program and return its result, a vector.

    Parameters
    ----------
    program : Program
        What to compute.
    math : VectorMath
        The vectors to compute it in.
    u, a : llvmlite.ir.Value
        Its inputs, vectors.
    known : mapping of int to llvmlite.ir.Value, optional
        Results of instructions, by position, that need not be computed.
    """
    known = known or {}
    inputs = {"u": u, "a": a}
    values: list[ir.Value] = []

    def value(operand: Operand) -> ir.Value:
        if isinstance(operand, Constant):
            return math.constant(operand.value)
        return inputs[operand] if isinstance(operand, str) else values[operand]

    for i, (name, operands) in enumerate(program.instructions):
        values.append(known[i] if i in known else getattr(math, _METHODS[name])(*map(value, operands)))
    return value(program.result)


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


_EXPONENTS: dict[float, tuple[Instruction, ...]] = {
    1.0: (("add", ("u", "a")), ("add", ("a", "u"))),
    -1.0: (("sub", ("a", "u")),),
}
"""Instructions that compute the exponent slope · u + a."""


def _feature(m: VectorMath, program: Program, slope: float | None, u: Any, a: Any, add: Any) -> Any:
    """Evaluate an activation at the offset a + add.

    For an exponential map the exponent is taken as it was when the shift was found, so that the largest is exactly
    zero: at large norms another order of rounding could make it overflow or vanish. Where the program forms the
    exponent itself it is given this one; elsewhere it is turned back into an offset.
    """
    if slope is None or slope == 0:
        return emit(program, m, u, m.add(a, add))
    exponent = m.add(m.fma(u, m.constant(slope), a), add)
    known: dict[int, Any] = {}
    for i, (name, operands) in enumerate(program.instructions):
        if (name, operands) in _EXPONENTS.get(slope, ()):
            known[i] = exponent
        elif name == "exp" and known.get(cast(int, operands[0])) is exponent:
            known[i] = m.exp_of_exponent(exponent)
    return emit(program, m, u, m.fma(u, m.constant(-slope), exponent), known)


def _key_activation(e: Emitter, programs: tuple[Program, ...], slopes: Slopes | None, ragged: bool) -> None:
    """Activate projections (row j of u is feature j of every key) in place; sums_j = Σ over the tile's keys.

    Activation i of row j is written to row i · pad + j. Rows between `rows` and `pad` become zero. In the ragged form
    the features of keys that are not valid are zero.
    """
    u, u_row, offsets, add, valid, rows, pad, columns, sums = e.arguments
    m, b = e.math, e.builder
    zero = m.constant(0.0)
    starts = [e.mul(pad, i) for i in range(len(programs))]
    steep = slopes or (None,) * len(programs)
    totals = [e.array(m.vector, e.lanes) for _ in programs]
    with e.loop(0, rows, e.lanes) as block:
        last = e.add(block, e.lanes)
        with b.if_then(e.less(rows, last)), e.loop(0, e.lanes * e.lanes, e.lanes) as i:
            for total in totals:
                e.store_vector(zero, total, i)
        with e.loop(block, b.select(e.less(rows, last), rows, last)) as j:
            adds = [m.splat(e.load(add, e.add(start, j))) for start in starts]
            sums_here = [e.variable(zero) for _ in programs]
            row = e.mul(j, u_row)
            with e.loop(0, columns, e.lanes) as c:
                projected, offset = e.load_vector(u, e.add(row, c)), e.load_vector(offsets, c)
                for i, (program, start, total) in enumerate(zip(programs, starts, sums_here, strict=True)):
                    value = _feature(m, program, steep[i], projected, offset, adds[i])
                    if ragged:
                        value = m.where(m.gt(e.load_vector(valid, c), zero), value, zero)
                    total.set(m.add(total.get(), value))
                    e.store_vector(value, u, e.add(e.mul(e.add(start, j), u_row), c))
            for found, total in zip(sums_here, totals, strict=True):
                e.store_vector(found.get(), total, e.mul(b.sub(j, block), e.lanes))
        for start, total in zip(starts, totals, strict=True):
            e.store_vector(_reduced(e, total, m.add), sums, e.add(start, block))
    with e.loop(rows, pad) as j:
        for start in starts:
            e.store(e.scalar(0.0), sums, e.add(start, j))
            with e.loop(0, columns, e.lanes) as c:
                e.store_vector(zero, u, e.add(e.mul(e.add(start, j), u_row), c))
    e.finish()


def _reduced(e: Emitter, rows: Any, operation: Any) -> Any:
    """Reduce each of the vectors at an address, one to a lane."""
    return e.math.reduce_each([e.load_vector(rows, e.integer(i * e.lanes)) for i in range(e.lanes)], operation)


def _key_shift(e: Emitter, slopes: Slopes) -> None:
    """Take new_j, the larger of shift_j and the tile's largest exponent, and add_j = log_weight_j − new_j.

    It is rounded so that no exponent is above zero, and the largest is zero where the tile brings the shift.

    Returns 1 if some new_j exceeds the exponent of key `first` and shift_j (shift_j alone when `first` is negative) by
    more than the limit, else 0.
    """
    u, u_row, offsets, log_weight, rows, pad, columns, shift, first, new, add = e.arguments
    m, b = e.math, e.builder
    zero, lowest = m.constant(0.0), m.constant(SENTINEL[e.align * 8])
    worst = e.variable(zero)
    sees = b.icmp_signed(">=", first, e.integer(0))
    column = b.select(sees, first, e.integer(0))
    earliest_offset = m.splat(e.load(offsets, column))
    tops, of_first = [e.array(m.vector, e.lanes) for _ in slopes], e.array(m.vector, 1)
    with e.loop(0, pad, e.lanes) as block:
        with e.loop(0, e.lanes) as r:
            row, highest = e.mul(e.add(block, r), u_row), [e.variable(lowest) for _ in slopes]
            with e.loop(0, columns, e.lanes) as c:
                projected, offset = e.load_vector(u, e.add(row, c)), e.load_vector(offsets, c)
                for top, slope in zip(highest, slopes, strict=True):
                    exponent = m.fma(projected, m.constant(slope), offset) if slope != 0 else offset
                    top.set(m.maximum(top.get(), exponent))
            for top, found in zip(tops, highest, strict=True):
                e.store_vector(found.get(), top, e.mul(r, e.lanes))
            e.store(e.load(u, e.add(row, column)), of_first, r)
        exists = b.icmp_signed("<", e.lane_numbers(), e.splat_number(b.sub(rows, block)))
        for i, (top, slope) in enumerate(zip(tops, slopes, strict=True)):
            index = e.add(e.mul(pad, i), block)
            weight, old = e.load_vector(log_weight, index), e.load_vector(shift, index)
            largest = _reduced(e, top, m.maximum)
            brought, down = m.add(largest, weight), m.neg(largest)
            moved = m.where(exists, m.maximum(old, brought), old)
            e.store_vector(moved, new, index)
            added = m.where(m.gt(brought, old), down, m.minimum(m.sub(weight, moved), down))
            e.store_vector(m.where(exists, added, zero), add, index)
            earliest = m.fma(e.load_vector(of_first, e.integer(0)), m.constant(slope), earliest_offset)
            earliest = m.add(earliest, weight)
            reached = m.where(b.and_(m.gt(earliest, old), e.splat_condition(sees)), earliest, old)
            worst.set(m.maximum(worst.get(), m.sub(moved, reached)))
    jump = b.fcmp_ordered(">", m.reduce_max(worst.get()), e.scalar(JUMP_LIMIT))
    e.finish(b.zext(jump, u.type))


def _query_activation(e: Emitter, programs: tuple[Program, ...], slopes: Slopes | None) -> None:
    """Activate projections (row r of u is query r) in place and take each query's denominator.

    Activation i of column j is written to column i · pad + j; columns between `rows` and `pad` become zero. For an
    exponential map a query's own offset cancels: its features are taken at add_j − top, with top the largest
    slope · u_j + add_j, which is written out. Denominators and tops are written in whole vectors.
    """
    u, u_row, offsets, add, _, rows, pad, queries, denominator, top = e.arguments
    m, b = e.math, e.builder
    starts = [e.mul(pad, i) for i in range(len(programs))]
    whole = b.and_(rows, e.integer(-e.lanes))
    each = e.array(m.vector, e.lanes)
    with e.loop(0, queries, e.lanes) as block:
        last = e.add(block, e.lanes)
        last = b.select(e.less(queries, last), queries, last)
        if slopes is not None:
            with e.loop(block, last) as r:
                highest, row = e.variable(m.constant(SENTINEL[e.align * 8])), e.mul(r, u_row)
                with e.loop(0, pad, e.lanes) as j:
                    projected = e.load_vector(u, e.add(row, j))
                    for start, slope in zip(starts, slopes, strict=True):
                        exponent = m.fma(projected, m.constant(slope), e.load_vector(add, e.add(start, j)))
                        highest.set(m.maximum(highest.get(), exponent))
                e.store_vector(highest.get(), each, e.mul(b.sub(r, block), e.lanes))
            e.store_vector(_reduced(e, each, m.maximum), top, block)
        with e.loop(block, last) as r:
            row = e.mul(r, u_row)
            offset = m.splat(e.load(offsets, r) if slopes is None else b.fneg(e.load(top, r)))
            total = e.variable(m.constant(0.0))
            for low, high, ragged in ((e.integer(0), whole, False), (whole, pad, True)):
                with e.loop(low, high, e.lanes) as j:
                    exists = b.icmp_signed("<", e.lane_numbers(), e.splat_number(b.sub(rows, j))) if ragged else None
                    columns = [e.add(start, j) for start in starts]
                    _query_features(e, programs, slopes, e.add(row, j), columns, offset, exists, total)
            e.store_vector(total.get(), each, e.mul(b.sub(r, block), e.lanes))
        e.store_vector(_reduced(e, each, m.add), denominator, block)
    e.finish()


def _query_features(
    e: Emitter,
    programs: tuple[Program, ...],
    slopes: Slopes | None,
    row: Any,
    columns: list[Any],
    offset: Any,
    exists: Any,
    total: Variable,
) -> None:
    """Activate a vector of projections of one query, zero where it does not exist, and add to the denominator."""
    u, _, _, add, z, *_ = e.arguments
    m = e.math
    projected = e.load_vector(u, row)
    for program, column, slope in zip(programs, columns, slopes or (None,) * len(programs), strict=True):
        value = _feature(m, program, slope, projected, e.load_vector(add, column), offset)
        if exists is not None:
            value = m.where(exists, value, m.constant(0.0))
        total.set(m.fma(value, e.load_vector(z, column), total.get()))
        e.store_vector(value, u, e.builder.add(row, e.builder.sub(column, columns[0])))
