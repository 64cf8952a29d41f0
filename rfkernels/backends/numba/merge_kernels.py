"""Tile kernels of groups that are merged from the past: what points receive, what merging costs, and merging itself.

As in `block_kernels`. Points are groups, padded, and the keys of a block after them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from rfkernels.backends.numba.emitter import INT, Emitter
from rfkernels.backends.numba.group_kernels import SHORT, allowed_label, best, first_best
from rfkernels.backends.numba.jit import Code, Machine, compile_module, compiled_once
from rfkernels.backends.numba.kernels import Emit

MOST = {32: float(np.finfo(np.float32).max), 64: float(np.finfo(np.float64).max)}
"""The cost of what is not finite: points are merged all the same, or nothing would end."""

NONE = float("inf")


@compiled_once
def merging(machine: Machine, bits: int) -> Code:
    """Compile the kernels for elements of `bits` bits."""
    module = ir.Module(name=f"rfkernels_merging_{bits}")
    for name, (parameters, emit) in _KERNELS.items():
        emit(Emitter(module, name, parameters, bits, machine.lanes(bits)))
    return compile_module(module, machine.width, keep=True)


def _receive(e: Emitter) -> None:
    """Add up the columns of weights that were taken on a log scale of `level`, over their denominators.

    Rows are of several heads, `per` of each, of which the first `count` are queries.
    """
    scores, row, rows, per, count, columns, level, top, den, out = e.arguments
    m, b = e.math, e.builder
    with e.loop(0, rows, e.lanes) as r:
        below = e.load_vector(den, r)
        filled = m.gt(below, m.constant(0.0))
        weight = m.exp(m.sub(e.load_vector(level, r), e.load_vector(top, r)))
        share = m.div(weight, m.where(filled, below, m.constant(1.0)))
        e.store_vector(m.where(filled, share, m.constant(0.0)), level, r)
    with e.loop(0, columns, e.lanes) as c:
        total = e.variable(e.load_vector(out, c))
        with e.loop(0, b.sdiv(rows, per)) as head:
            first = e.mul(head, per)
            with e.loop(first, e.add(first, count)) as r:
                weight = e.load_vector(scores, e.add(e.mul(r, row), c))
                total.set(m.fma(m.splat(e.load(level, r)), weight, total.get()))
        e.store_vector(total.get(), out, c)
    e.finish()


def _name(e: Emitter) -> None:
    """Write first, first + 1, ... for so many keys, −1 where the mask (bytes; none at address 0) does not allow one."""
    mask, stride, first, count, out = e.arguments
    with e.loop(0, count) as i:
        e.store(allowed_label(e, e.builder.trunc(e.add(first, i), SHORT), mask, stride, i), out, i)
    e.finish()


def _weigh_points(e: Emitter) -> None:
    """Weigh points by attention and number of keys, a share of each; note that each stands for itself, −1 if empty.

    The number of keys is found in the last column but one of sums, after `tail`. Returns how many are not empty.
    """
    mass, sums, row, tail, points, weight, owner = e.arguments
    b = e.builder

    def number(i: Any) -> Any:
        return e.load(sums, e.add(e.mul(i, row), tail, 1))

    def attention(i: Any) -> Any:
        given = e.load(mass, i)
        counts = b.and_(b.fcmp_ordered(">", given, e.scalar(0.0)), b.fcmp_ordered("<", given, e.scalar(NONE)))
        return b.select(counts, given, e.scalar(0.0))

    received, keys = e.variable(e.scalar(0.0)), e.variable(e.scalar(0.0))
    with e.loop(0, points) as i:
        received.set(b.fadd(received.get(), attention(i)))
        keys.set(b.fadd(keys.get(), number(i)))

    def above(total: Any) -> Any:
        return b.select(b.fcmp_ordered(">", total, e.scalar(0.0)), total, e.scalar(1.0))

    received.set(above(received.get()))
    keys.set(above(keys.get()))
    left = e.variable(e.integer(0))
    with e.loop(0, points) as i:
        filled = b.fcmp_ordered(">", number(i), e.scalar(0.0))
        both = b.fadd(b.fdiv(attention(i), received.get()), b.fdiv(number(i), keys.get()))
        both = b.select(b.fcmp_ordered(">", both, e.scalar(0.0)), both, e.scalar(1.0))  # or nothing would end
        e.store(b.select(filled, both, e.scalar(0.0)), weight, i)
        e.store(b.select(filled, b.trunc(i, SHORT), SHORT(-1)), owner, i)
        left.set(e.add(left.get(), b.zext(filled, INT)))
    e.finish(left.get())


def _cheapest(e: Emitter) -> None:
    """Find for each row of products the first other point that costs least to merge with; −1 if there is none.

    The cost is w u / (w + u) · (square + square − 2 product), at least 0.
    """
    scores, row, first, rows, points, squares, weight, nearest, cost = e.arguments
    m, b = e.math, e.builder
    lane, most = e.lane_numbers(), m.constant(MOST[e.align * 8])
    with e.loop(0, rows) as r:
        i = e.add(first, r)
        e.store(SHORT(-1), nearest, i)
        e.store(e.scalar(NONE), cost, i)
        with b.if_then(b.fcmp_ordered(">", e.load(weight, i), e.scalar(0.0))):
            one, square = m.splat(e.load(weight, i)), m.splat(e.load(squares, i))
            top, place = e.variable(m.constant(-NONE)), e.variable(m.constant(0.0))
            with e.loop(0, points, e.lanes) as c:
                two = e.load_vector(weight, c)
                product = e.load_vector(scores, e.add(e.mul(r, row), c))
                apart = m.fma(product, m.constant(-2.0), m.add(square, e.load_vector(squares, c)))
                pair = m.div(m.mul(one, two), m.add(one, two))
                own = m.mul(pair, m.where(m.lt(apart, m.constant(0.0)), m.constant(0.0), apart))
                own = m.where(m.lt(own, most), own, most)
                other = b.icmp_signed("!=", lane, e.splat_number(b.sub(i, c)))
                exists = m.and_(m.gt(two, m.constant(0.0)), other)
                best(e, top, place, m.where(exists, m.neg(own), m.constant(-NONE)), c)
            least = b.fneg(m.reduce_max(top.get()))
            with b.if_then(b.fcmp_ordered("<", least, e.scalar(NONE))):
                e.store(first_best(e, top, place), nearest, i)
                e.store(least, cost, i)
    e.finish()


def _tie(e: Emitter) -> None:
    """Write to which point each is tied by the cheapest ties, so many of them; −1 to none. Costs are overwritten.

    Of two that are each other's nearest the second one is tied, and of equal costs the first ones count.
    """
    cost, nearest, points, wanted, ties = e.arguments
    m, b = e.math, e.builder
    lane = e.lane_numbers()
    with e.loop(0, points) as i:
        other = b.sext(e.load(nearest, i, SHORT), INT)
        back = e.load(nearest, b.select(e.less(other, e.integer(0)), i, other), SHORT)
        first = b.and_(b.icmp_signed("==", b.sext(back, INT), i), e.less(i, other))
        e.store(b.select(first, e.scalar(NONE), e.load(cost, i)), cost, i)
    with e.loop(0, points) as i:
        own = e.load(cost, i)
        e.store(SHORT(-1), ties, i)
        with b.if_then(b.fcmp_ordered("<", own, e.scalar(NONE))):
            rank = e.variable(m.constant(0.0))
            with e.loop(0, points, e.lanes) as c:
                others = e.load_vector(cost, c)
                earlier = b.icmp_signed("<", lane, e.splat_number(b.sub(i, c)))
                before = m.where(earlier, m.le(others, m.splat(own)), m.lt(others, m.splat(own)))
                rank.set(m.add(rank.get(), m.where(before, m.constant(1.0), m.constant(0.0))))
            cheaper = b.fptosi(m.reduce_add(rank.get()), INT)
            with b.if_then(e.less(cheaper, wanted)):
                e.store(e.load(nearest, i, SHORT), ties, i)
    e.finish()


def _mix(e: Emitter) -> None:
    """Move a point to the weighted mean with another, which weighs nothing from then on."""
    source, target, x, row, weight = e.arguments
    m, b = e.math, e.builder
    one, two = e.load(weight, source), e.load(weight, target)
    both = b.fadd(one, two)
    share_one, share_two = (m.splat(b.fdiv(part, both)) for part in (one, two))
    with e.loop(0, row, e.lanes) as j:
        at = e.add(e.mul(target, row), j)
        moved = m.mul(e.load_vector(x, e.add(e.mul(source, row), j)), share_one)
        e.store_vector(m.fma(e.load_vector(x, at), share_two, moved), x, at)
    e.store(both, weight, target)
    e.store(e.scalar(0.0), weight, source)
    e.finish()


def _fold(e: Emitter) -> None:
    """Add the sums of one point to those of another; write what lay between their means, for Σ left rightᵀ.

    Of n and l keys that is n l / (n + l) (x − y), and (x − y, u − v) with the mean values u and v.
    """
    source, target, sums, row, dim, width, left, right = e.arguments
    m, b = e.math, e.builder
    one, two, size = e.mul(source, row), e.mul(target, row), e.add(dim, width)
    few, many = (e.load(sums, e.add(at, size, 1)) for at in (one, two))
    factor = m.splat(b.fdiv(b.fmul(few, many), b.fadd(few, many)))
    below_one, below_two = (m.splat(b.fdiv(e.scalar(1.0), n)) for n in (few, many))

    def apart(j: Any) -> Any:
        x, y = (e.load_vector(sums, e.add(at, j)) for at in (one, two))
        e.store_vector(m.add(x, y), sums, e.add(two, j))
        between = m.sub(m.mul(x, below_one), m.mul(y, below_two))
        e.store_vector(between, right, j)
        return between

    with e.loop(0, dim, e.lanes) as j:
        e.store_vector(m.mul(factor, apart(j)), left, j)
    with e.loop(dim, size, e.lanes) as j:
        apart(j)
    tail = e.add(two, size)
    e.store_vector(m.add(e.load_vector(sums, e.add(one, size)), e.load_vector(sums, tail)), sums, tail)
    e.finish()


def _form(e: Emitter) -> None:
    """Write spread and cross-covariance on the scale of a trace of 1; the spread as a form, lower triangular."""
    within, dim, dim_pad, width_pad, spread, cross = e.arguments
    m, b = e.math, e.builder
    lane, row, trace = e.lane_numbers(), e.add(dim_pad, width_pad), e.variable(e.scalar(0.0))
    with e.loop(0, dim) as i:
        trace.set(b.fadd(trace.get(), e.load(within, e.mul(i, e.add(row, 1)))))
    known = b.fcmp_ordered(">", trace.get(), e.scalar(0.0))
    share = m.splat(b.fdiv(e.scalar(1.0), b.select(known, trace.get(), e.scalar(1.0))))
    with e.loop(0, dim) as i:
        with e.loop(0, dim_pad, e.lanes) as j:
            value = m.mul(share, e.load_vector(within, e.add(e.mul(i, row), j)))
            diagonal = e.splat_number(b.sub(i, j))
            value = m.where(b.icmp_signed("<", lane, diagonal), m.add(value, value), value)
            kept = b.icmp_signed("<=", lane, diagonal)
            e.store_vector(m.where(kept, value, m.constant(0.0)), spread, e.add(e.mul(i, dim_pad), j))
        with e.loop(0, width_pad, e.lanes) as j:
            value = e.load_vector(within, e.add(e.mul(i, row), dim_pad, j))
            e.store_vector(m.mul(share, value), cross, e.add(e.mul(i, width_pad), j))
    e.finish()


_KERNELS: dict[str, tuple[str, Emit]] = {
    "receive": ("scores row rows per count columns level top den out", _receive),
    "name": ("mask stride first count out", _name),
    "weigh_points": ("mass sums row tail points weight owner", _weigh_points),
    "cheapest": ("scores row first rows points squares weight nearest cost", _cheapest),
    "tie": ("cost nearest points wanted ties", _tie),
    "mix": ("source target x row weight", _mix),
    "fold": ("source target sums row dim width left right", _fold),
    "form": ("within dim dim_pad width_pad spread cross", _form),
}
"""Parameters and body of each kernel by its name."""
