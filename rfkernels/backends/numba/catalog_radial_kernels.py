"""Kernels of sums over distances: guesses of groups, and whole numbers for codes; called by address, as all kernels."""

from __future__ import annotations

from llvmlite import ir

from rfkernels.backends.numba.emitter import INT, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module, compiled_once
from rfkernels.catalog.codes import LARGEST, MIDDLE
from rfkernels.catalog.radial import SHARE, UNEVEN

_I8, _I32 = ir.IntType(8), ir.IntType(32)


@compiled_once
def radial_kernels(machine: Machine, bits: int) -> Code:
    """Compile ``weigh`` of float64, as `rfkernels.catalog.radial.guess` has it, and ``aim``.

    ``weigh`` writes what comes of logs of mean weights, and of how uneven weights are: `numbers` are how many items
    there are and, written, what weights are relative to and the largest score. `sizes` are 0 behind the last group.

    ``aim``, of rows of `bits` bits: for some cells (anchor − point) weights, in whole numbers of a unit; and that unit,
    MIDDLE times the sum of numbers, and how much rounding lets the logit of an item deviate whose step is 1.
    """
    module = ir.Module(name=f"rfkernels_catalog_radial_{bits}")
    lanes = machine.lanes(64)
    _weigh(Emitter(module, "weigh", "log uneven sizes count numbers unit variance score", 64, lanes))
    parameters = "cells count anchors row point weights pad scaled queries query_row units shifts deviations"
    _aim(Emitter(module, "aim", parameters, bits, machine.lanes(bits)))
    return compile_module(module, machine.width, keep=True)


def _weigh(e: Emitter) -> None:
    log, uneven, sizes, count, numbers, unit, variance, score = e.arguments
    m, zero, nothing = e.math, e.math.constant(0.0), e.math.constant(float("-inf"))
    items = m.splat(e.load(numbers, e.integer(0)))
    top, total, best = e.variable(nothing), e.variable(zero), e.variable(nothing)
    with e.loop(0, count, e.lanes) as j:
        guessed = m.where(m.gt(e.load_vector(sizes, j), zero), e.load_vector(log, j), nothing)
        top.set(m.maximum(top.get(), guessed))
        e.store_vector(guessed, log, j)
    e.store(m.reduce_max(top.get()), numbers, e.integer(1))
    highest = m.splat(e.load(numbers, e.integer(1)))
    with e.loop(0, count, e.lanes) as j:
        own = m.exp(m.sub(e.load_vector(log, j), highest))
        total.set(m.fma(own, e.load_vector(sizes, j), total.get()))
        e.store_vector(own, log, j)
    floor = m.div(m.splat(e.builder.fmul(e.scalar(SHARE), m.reduce_add(total.get()))), items)
    with e.loop(0, count, e.lanes) as j:
        own, there = e.load_vector(log, j), m.gt(e.load_vector(sizes, j), zero)
        mean = m.add(own, floor)
        part = m.div(own, mean)
        log_square = m.maximum(zero, m.minimum(m.constant(UNEVEN), e.load_vector(uneven, j)))
        excess = m.sub(m.exp(log_square), m.constant(1.0))
        varies = m.fma(excess, m.mul(part, part), m.constant(SHARE))
        own_score = m.log(m.mul(m.mul(mean, mean), varies))
        own_score = m.where(there, own_score, nothing)
        best.set(m.maximum(best.get(), own_score))
        for x, out in ((m.where(there, mean, zero), unit), (varies, variance), (own_score, score)):
            e.store_vector(x, out, j)
    e.store(m.reduce_max(best.get()), numbers, e.integer(2))
    e.finish()


def _aim(e: Emitter) -> None:
    cells, count, anchors, row, point, weights, pad, scaled, queries, query_row, units, shifts, deviations = e.arguments
    m, b, zero = e.math, e.builder, e.math.constant(0.0)
    kind = ir.VectorType(_I32, e.lanes)
    rint = f"llvm.rint.v{e.lanes}f{m.bits}"
    with e.loop(0, count) as j:
        cell = b.zext(e.load(cells, j, _I32), INT)
        anchor, out = e.add(anchors, e.mul(cell, row)), e.add(queries, e.mul(cell, query_row))
        largest, total, square = e.variable(zero), e.variable(zero), e.variable(zero)
        with e.loop(0, pad, e.lanes) as k:
            away = m.sub(e.load_vector(anchor, k), e.load_vector(point, k))
            own = m.mul(away, e.load_vector(weights, k))
            largest.set(m.maximum(largest.get(), m.abs(own)))
            e.store_vector(own, scaled, k)
        unit = b.fdiv(m.reduce_max(largest.get()), e.scalar(float(LARGEST)))
        some = b.fcmp_ordered(">", unit, e.scalar(0.0))
        divisor = m.splat(b.select(some, unit, e.scalar(1.0)))
        with e.loop(0, pad, e.lanes) as k:
            number = e.call(rint, m.vector, (m.div(e.load_vector(scaled, k), divisor),))
            total.set(m.add(total.get(), number))
            square.set(m.fma(number, number, square.get()))
            e.store_vector(b.trunc(b.fptosi(number, kind), ir.VectorType(_I8, e.lanes)), out, k)
        shift = b.fmul(e.scalar(float(MIDDLE)), m.reduce_add(total.get()))
        deviation = m.sqrt(m.splat(b.fdiv(m.reduce_add(square.get()), e.scalar(12.0))))
        e.store(unit, units, cell)
        e.store(b.fptosi(shift, _I32), shifts, cell)
        e.store(b.fmul(unit, b.extract_element(deviation, _I32(0))), deviations, cell)
    e.finish()
