"""Kernels that find the largest of many numbers; called by address, as all kernels.

Limits are found by halves: numbers above one are counted in whole vectors, which takes less time than sorting them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.catalog_lanes import each_lane, gathered
from rfkernels.backends.numba.emitter import INT, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module, compiled_once
from rfkernels.catalog.codes import BLOCK

_I32 = ir.IntType(32)


@compiled_once
def top_kernels(machine: Machine, bits: int) -> Code:
    """Compile kernels for promises of groups, of float64, and for logits of `bits` bits."""
    module = ir.Module(name=f"rfkernels_catalog_top_{bits}")
    for emit, parameters, own in (
        (_promise, "logits cell stretch size count numbers out", 64),
        (_weigh, "values weights count numbers", 64),
        (_listed, "values count numbers out", 64),
        (_span, "values count numbers", bits),
        (_counted, "values count numbers", bits),
        (_collect, "values largest count numbers out", bits),
    ):
        emit(Emitter(module, emit.__name__[1:], parameters, own, machine.lanes(own)))
    return compile_module(module, machine.width, keep=True)


def _promise(e: Emitter) -> None:
    """Write what groups promise: the logit of the cell and numbers[0] times how far they stretch; numbers get the span.

    Lanes that stand for no group have no items, and do not count.
    """
    logits, cell, stretch, size, count, numbers, out = e.arguments
    m, b, scale = e.math, e.builder, e.math.splat(e.load(numbers, e.integer(0)))
    low, high = (e.variable(m.constant(float(x))) for x in ("inf", "-inf"))
    with e.loop(0, count, e.lanes) as j:
        cells = [b.zext(e.load(cell, e.add(j, lane), _I32), INT) for lane in range(e.lanes)]
        own = m.add(gathered(e, logits, cells), m.mul(scale, e.load_vector(stretch, j)))
        e.store_vector(own, out, j)
        there = m.gt(e.load_vector(size, j), m.constant(0.0))
        low.set(m.minimum(low.get(), m.where(there, own, low.get())))
        high.set(m.maximum(high.get(), m.where(there, own, high.get())))
    _store_span(e, low, high, numbers)


def _store_span(e: Emitter, low: Any, high: Any, numbers: Any) -> None:
    m = e.math
    nothing = m.constant(0.0)
    e.store(e.builder.fneg(m.reduce_max(m.sub(nothing, low.get()))), numbers, e.integer(0))
    e.store(m.reduce_max(high.get()), numbers, e.integer(1))
    e.finish()


def _weigh(e: Emitter) -> None:
    """Write to numbers[1] the sum of the weights of values that are not below numbers[0]."""
    values, weights, count, numbers = e.arguments
    m, limit = e.math, e.math.splat(e.load(numbers, e.integer(0)))
    total = e.variable(m.constant(0.0))
    with e.loop(0, count, e.lanes) as j:
        own = m.where(m.gt(limit, e.load_vector(values, j)), m.constant(0.0), e.load_vector(weights, j))
        total.set(m.add(total.get(), own))
    e.store(m.reduce_add(total.get()), numbers, e.integer(1))
    e.finish()


def _listed(e: Emitter) -> None:
    """List values that are not below numbers[0]; return how many these are."""
    values, count, numbers, out = e.arguments
    b, m, many = e.builder, e.math, e.variable(e.integer(0))
    limit = m.splat(e.load(numbers, e.integer(0)))
    with e.loop(0, count, e.lanes) as j:
        within = b.icmp_signed("<", b.add(e.splat_number(j), e.lane_numbers()), e.splat_number(count))
        for lane in each_lane(e, b.and_(within, b.not_(m.gt(limit, e.load_vector(values, j))))):
            e.store(b.trunc(e.add(j, lane), _I32), out, many.get())
            many.set(e.add(many.get(), 1))
    e.finish(many.get())


def _span(e: Emitter) -> None:
    """Write the least value but for −inf, and the largest."""
    values, count, numbers = e.arguments
    m, nothing = e.math, e.math.constant(float("-inf"))
    low, high = e.variable(m.constant(float("inf"))), e.variable(nothing)
    with e.loop(0, count, e.lanes) as j:
        own = e.load_vector(values, j)
        low.set(m.minimum(low.get(), m.where(m.gt(own, nothing), own, low.get())))
        high.set(m.maximum(high.get(), own))
    _store_span(e, low, high, numbers)


def _counted(e: Emitter) -> None:
    """Return how many values are not below numbers[0]."""
    values, count, numbers = e.arguments
    b, m, limit = e.builder, e.math, e.math.splat(e.load(numbers, e.integer(0)))
    none, one = (ir.Constant(ir.VectorType(_I32, e.lanes), [x] * e.lanes) for x in (0, 1))
    many, total = e.variable(none), e.variable(_I32(0))
    with e.loop(0, count, e.lanes) as j:
        many.set(b.add(many.get(), b.select(m.gt(limit, e.load_vector(values, j)), none, one)))
    for lane in range(e.lanes):
        total.set(b.add(total.get(), b.extract_element(many.get(), _I32(lane))))
    e.finish(b.zext(total.get(), INT))


def _collect(e: Emitter) -> None:
    """List the places of items that are not below numbers[0], of blocks whose `largest` are not either."""
    values, largest, count, numbers, out = e.arguments
    b, m, many = e.builder, e.math, e.variable(e.integer(0))
    limit = m.splat(e.load(numbers, e.integer(0)))

    def enough(x: Any) -> Any:
        return b.not_(m.gt(limit, x))

    with e.loop(0, count, e.lanes) as i:
        for lane in each_lane(e, enough(e.load_vector(largest, i))):
            first = e.mul(e.add(i, lane), BLOCK)
            for k in range(0, BLOCK, e.lanes):
                for place in each_lane(e, enough(e.load_vector(values, e.add(first, k)))):
                    e.store(b.trunc(e.add(first, k, place), _I32), out, many.get())
                    many.set(e.add(many.get(), 1))
    e.finish(many.get())
