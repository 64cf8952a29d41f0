"""Tile kernels of passes over blocks: which group a key is of, sums and means of groups, and softmax over tiles.

As in `kernels`: addresses and sizes are 64-bit integers, and packed matrices are padded to whole register tiles.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.emitter import INT, Emitter
from rfkernels.backends.numba.group_kernels import BYTE, FINDING, SHORT, allowed_label, best, first_best
from rfkernels.backends.numba.jit import Code, Machine, compile_module, compiled_once
from rfkernels.backends.numba.kernels import ABSENT, SENTINEL, Emit, move_row
from rfkernels.grouping.summaries import LARGEST_BEND, ROUNDING

EPSILON = {32: 2.0**-23, 64: 2.0**-52}


@compiled_once
def blockwise(machine: Machine, bits: int) -> Code:
    """Compile the kernels for elements of `bits` bits."""
    module = ir.Module(name=f"rfkernels_blocks_{bits}")
    lanes = machine.lanes(bits)

    def function(name: str, parameters: str, emit: Emit) -> None:
        emit(Emitter(module, name, parameters, bits, lanes))

    function("fill", "out value count", _fill)
    function("allowed", "mask stride first last columns out", _allowed)
    function("pick", "scores row rows columns bias mask stride labels", _pick)
    function("dots", "x x_row y y_row rows width factor out", _dots)
    function("scatter", "labels squares k k_row v v_row rows dim width sums sums_row", _scatter)
    function("touch", "labels count flags list listed", _touch)
    function("below", "positions count position", _below)
    function("means", "list count one other row dim width x x_row values values_row term squares", _means)
    function("place", "list count x width squares dots out bend flags", _place)
    weigh = "scores row rows columns high step key_term bend along moved scale shift sums sums_row width den"
    function("weigh", weigh, lambda e: _weigh(e, bent=False, cut=False))
    function("weigh_cut", weigh, lambda e: _weigh(e, bent=False, cut=True))
    function("weigh_bent", weigh, lambda e: _weigh(e, bent=True, cut=False))
    function("move", "sums row rows width direction moved along scale", _move)
    for name, (parameters, emit) in FINDING.items():
        function(name, parameters, emit)
    return compile_module(module, machine.width, keep=True)


def _fill(e: Emitter) -> None:
    """Write one number, found at an address, to `count` elements: a multiple of lanes."""
    out, value, count = e.arguments
    given = e.math.splat(e.load(value, e.integer(0)))
    with e.loop(0, count, e.lanes) as i:
        e.store_vector(given, out, i)
    e.finish()


def _allowed(e: Emitter) -> None:
    """Write 0 where a key exists and the mask (bytes; none at address 0) allows it, else the sentinel."""
    mask, stride, first, last, columns, out = e.arguments
    b, missing = e.builder, e.scalar(SENTINEL[e.align * 8])
    with e.loop(0, columns, e.lanes) as c:
        e.store_vector(e.math.constant(SENTINEL[e.align * 8]), out, c)
    with e.loop(first, last) as c:
        e.store(e.scalar(0.0), out, c)
    with b.if_then(b.icmp_signed("!=", mask, e.integer(0))), e.loop(first, last) as c:
        given = e.load(e.add(mask, e.mul(c, stride)), e.integer(0), BYTE)
        e.store(b.select(b.icmp_signed("!=", given, BYTE(0)), e.scalar(0.0), missing), out, c)
    e.finish()


def _pick(e: Emitter) -> None:
    """Write the first column of the largest score + bias of each row, −1 where the mask does not allow the row."""
    scores, row, rows, columns, bias, mask, stride, labels = e.arguments
    m = e.math
    with e.loop(0, rows) as r:
        top, place = e.variable(m.constant(SENTINEL[e.align * 8])), e.variable(m.constant(0.0))
        with e.loop(0, columns, e.lanes) as c:
            score = m.add(e.load_vector(scores, e.add(e.mul(r, row), c)), e.load_vector(bias, c))
            best(e, top, place, score, c)
        e.store(allowed_label(e, first_best(e, top, place), mask, stride, r), labels, r)
    e.finish()


def _dots(e: Emitter) -> None:
    """Take factor · Σ x y along each row."""
    x, x_row, y, y_row, rows, width, factor, out = e.arguments
    m, b = e.math, e.builder
    with e.loop(0, rows) as r:
        total = e.variable(m.constant(0.0))
        with e.loop(0, width, e.lanes) as j:
            left, right = e.load_vector(x, e.add(e.mul(r, x_row), j)), e.load_vector(y, e.add(e.mul(r, y_row), j))
            total.set(m.fma(left, right, total.get()))
        e.store(b.fmul(m.reduce_add(total.get()), e.load(factor, e.integer(0))), out, r)
    e.finish()


def _scatter(e: Emitter) -> None:
    """Add k, v, kᵀ M k and 1 of each key to the row of sums that its label names; none if that is negative."""
    labels, squares, k, k_row, v, v_row, rows, dim, width, sums, sums_row = e.arguments
    m, b = e.math, e.builder
    with e.loop(0, rows) as r:
        label = b.sext(e.load(labels, r, SHORT), INT)
        with b.if_then(b.icmp_signed(">=", label, e.integer(0))):
            start = e.mul(label, sums_row)
            for source, row, at, size in ((k, k_row, start, dim), (v, v_row, e.add(start, dim), width)):
                with e.loop(0, size, e.lanes) as j:
                    value = e.load_vector(source, e.add(e.mul(r, row), j))
                    e.store_vector(m.add(e.load_vector(sums, e.add(at, j)), value), sums, e.add(at, j))
            tail = e.add(start, dim, width)
            e.store(b.fadd(e.load(sums, tail), e.load(squares, r)), sums, tail)
            e.store(b.fadd(e.load(sums, e.add(tail, 1)), e.scalar(1.0)), sums, e.add(tail, 1))
    e.finish()


def _touch(e: Emitter) -> None:
    """Put labels that have no flag yet on the list, which has `listed` of them; return how many it has then."""
    labels, count, flags, names, listed = e.arguments
    b, length = e.builder, e.variable(listed)
    with e.loop(0, count) as r:
        label = e.load(labels, r, SHORT)
        with b.if_then(b.icmp_signed(">=", label, SHORT(0))):
            wide = b.sext(label, INT)
            with b.if_then(b.icmp_signed("==", e.load(flags, wide, BYTE), BYTE(0))):
                e.store(BYTE(1), flags, wide)
                e.store(label, names, length.get())
                length.set(e.add(length.get(), 1))
    e.finish(length.get())


def _below(e: Emitter) -> None:
    """Return how many of the positions, 64-bit integers in ascending order, are at most this one."""
    positions, count, position = e.arguments
    b, found = e.builder, e.variable(e.integer(0))
    with e.loop(0, count) as i:
        reached = b.icmp_signed("<=", e.load(positions, i, INT), position)
        found.set(e.add(found.get(), b.zext(reached, INT)))
    e.finish(found.get())


def _means(e: Emitter) -> None:
    """Take the means of the groups on the list, of one or two sums: row i of x and squares are of the i-th on the list.

    Values and the log of the number of keys are written to the groups' own places.
    """
    names, count, one, other, row, dim, width, x, x_row, values, values_row, term, squares = e.arguments
    m, b = e.math, e.builder
    two = b.icmp_signed("!=", other, e.integer(0))
    other = b.select(two, other, one)
    share = m.splat(b.select(two, e.scalar(1.0), e.scalar(0.0)))

    def both(index: Any) -> Any:
        return m.fma(e.load_vector(other, index), share, e.load_vector(one, index))

    with e.loop(0, count) as i:
        group = b.sext(e.load(names, i, SHORT), INT)
        start = e.mul(group, row)
        tail = both(e.add(start, dim, width))
        keys = m.splat(b.extract_element(tail, SHORT(1)))
        filled = m.gt(keys, m.constant(0.0))
        below = m.where(filled, keys, m.constant(1.0))
        share_of_one = m.div(m.constant(1.0), below)
        for size, at, out, index in (
            (dim, start, x, e.mul(i, x_row)),
            (width, e.add(start, dim), values, e.mul(group, values_row)),
        ):
            with e.loop(0, size, e.lanes) as j:
                e.store_vector(m.mul(both(e.add(at, j)), share_of_one), out, e.add(index, j))
        log = m.where(filled, m.log(below), m.constant(SENTINEL[e.align * 8]))
        e.store(b.extract_element(log, SHORT(0)), term, group)
        e.store(b.extract_element(m.div(tail, below), SHORT(0)), squares, i)
    e.finish()


def _place(e: Emitter) -> None:
    """Put the means of the listed groups in their rows, and half of what squares exceed `dots` by, but for rounding."""
    names, count, x, width, squares, dots, out, bend, flags = e.arguments
    b = e.builder
    with e.loop(0, count) as i:
        group = b.sext(e.load(names, i, SHORT), INT)
        e.store(BYTE(0), flags, group)
        apart = b.fsub(e.load(squares, i), e.load(dots, i))
        least = b.fmul(e.load(squares, i), e.scalar(ROUNDING * EPSILON[e.align * 8]))
        apart = b.select(b.fcmp_ordered(">", apart, least), apart, e.scalar(0.0))
        e.store(b.fmul(apart, e.scalar(0.5)), bend, group)
        with e.loop(0, width, e.lanes) as j:
            e.store_vector(e.load_vector(x, e.add(e.mul(i, width), j)), out, e.add(e.mul(group, width), j))
    e.finish()


def _weigh(e: Emitter, bent: bool, cut: bool) -> None:
    """Turn dot products into weights and put the rows of `sums` on the new log scale.

    If cut, row r counts columns c < high + step · r. The log-weight is scale · score + key_term and, if bent, what the
    bend of the key adds to it; `moved` are the sums of weight times that. The rest is as in `kernels.band`.
    """
    scores, row, rows, columns, high, step, key_term, bend, along, moved, scale, shift, *out = e.arguments
    sums, sums_row, width, den = out
    m, b = e.math, e.builder
    lane, missing = e.lane_numbers(), m.constant(SENTINEL[e.align * 8])
    factor = m.splat(e.load(scale, e.integer(0)))
    absent, most = m.constant(ABSENT[e.align * 8]), m.constant(LARGEST_BEND)
    with e.loop(0, rows) as r:
        last = e.add(high, e.mul(step, r))
        top = e.variable(m.splat(e.load(shift, r)))
        steep = m.splat(e.load(along, r)) if bent else None

        def lift(c: Any, steep: Any = steep) -> Any:
            return m.minimum(m.mul(steep, e.load_vector(bend, c)), most)

        with e.loop(0, columns, e.lanes) as c:
            index, term = e.add(e.mul(r, row), c), e.load_vector(key_term, c)
            log = m.fma(factor, e.load_vector(scores, index), term)
            if bent:
                log = m.add(log, lift(c))
            log = m.where(m.gt(term, absent), log, missing)
            if cut:
                log = m.where(b.icmp_signed("<", lane, e.splat_number(b.sub(last, c))), log, missing)
            top.set(m.maximum(top.get(), log))
            e.store_vector(log, scores, index)
        old, new = e.load(shift, r), m.reduce_max(top.get())
        # Far above what is missing, which so weighs nothing even if there is nothing else.
        level, total, lifted = m.maximum(m.splat(new), absent), e.variable(m.constant(0.0)), e.variable(m.constant(0.0))
        with e.loop(0, columns, e.lanes) as c:
            index = e.add(e.mul(r, row), c)
            weight = m.exp_of_exponent(m.sub(e.load_vector(scores, index), level))
            total.set(m.add(total.get(), weight))
            if bent:
                lifted.set(m.fma(weight, lift(c), lifted.get()))
            e.store_vector(weight, scores, index)
        if bent:
            e.store(m.reduce_add(lifted.get()), moved, r)
        move_row(e, r, (old, new), total.get(), (sums, sums_row, width, den, shift))
    e.finish()


def _move(e: Emitter) -> None:
    """Add 2 scale · moved / along times a direction to each row; nothing where `along` is not positive."""
    sums, row, rows, width, direction, moved, along, scale = e.arguments
    m, b = e.math, e.builder
    with e.loop(0, rows) as r:
        steep = e.load(along, r)
        known = b.fcmp_ordered(">", steep, e.scalar(0.0))
        both = b.fmul(b.fmul(e.load(moved, r), e.load(scale, e.integer(0))), e.scalar(2.0))
        share = b.fdiv(both, b.select(known, steep, e.scalar(1.0)))
        factor = m.splat(b.select(known, share, e.scalar(0.0)))
        with e.loop(0, width, e.lanes) as j:
            index = e.add(e.mul(r, row), j)
            e.store_vector(m.fma(e.load_vector(direction, index), factor, e.load_vector(sums, index)), sums, index)
    e.finish()
