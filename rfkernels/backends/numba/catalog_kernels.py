"""Kernels of a catalog: dot products with scattered rows, guesses of weights, exponentials; called by address.

Addresses and sizes are 64-bit integers, strides in bytes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.emitter import INT, POINTER, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module

TOGETHER = 4
"""Rows that are multiplied together; lists of rows end in so many places, times one more than AHEAD, that are valid."""

AHEAD = 8
"""How many fours of rows are fetched before they are needed."""

_LINE = 64
_I32 = ir.IntType(32)


@cache
def dot_kernel(machine: Machine, bits: int) -> Code:
    """Compile ``dots`` for rows of elements of `bits` bits: out[i] = query · rows[places[i]]."""
    module = ir.Module(name=f"rfkernels_catalog_dots_{bits}")
    e = Emitter(module, "dots", "rows row_stride places count query dim out", bits, machine.lanes(bits))
    _dots(e)
    return compile_module(module, machine.width, keep=True)


@cache
def weight_kernels(machine: Machine) -> Code:
    """Compile ``largest``, ``guess`` and ``exponentials``; in float64, of arrays padded to multiples of 8."""
    module = ir.Module(name="rfkernels_catalog_weights")

    def emitter(name: str, parameters: str) -> Emitter:
        return Emitter(module, name, parameters, 64, machine.lanes(64))

    _largest(emitter("largest", "x count out"))
    _guess(emitter("guess", "log_mean squares count top floor weight variance score"))
    _exponentials(emitter("exponentials", "x count top"))
    return compile_module(module, machine.width, keep=True)


def _function(e: Emitter, name: str, result: Any, *parameters: Any) -> Any:
    module = e.builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, parameters), name)


def _masked(e: Emitter, base: Any, index: Any, mask: Any) -> Any:
    """Load a vector of which only the lanes of the mask exist, zeros elsewhere."""
    name = f"llvm.masked.load.v{e.lanes}f{e.math.bits}.p0"
    load = _function(e, name, e.math.vector, POINTER, _I32, mask.type, e.math.vector)
    return e.builder.call(load, [e.address(base, index), _I32(e.align), mask, e.math.constant(0.0)])


def _fetch(e: Emitter, at: Any, size: Any) -> None:
    """Ask for the lines of `size` bytes; into the second level, as the first is too small for what is on its way."""
    prefetch = _function(e, "llvm.prefetch.p0", ir.VoidType(), POINTER, _I32, _I32, _I32)
    with e.loop(0, size, _LINE) as j:
        e.builder.call(prefetch, [e.builder.inttoptr(e.add(at, j), POINTER), _I32(0), _I32(2), _I32(1)])


def _dots(e: Emitter) -> None:
    rows, stride, places, count, query, dim, out = e.arguments
    b = e.builder
    whole = b.and_(dim, e.integer(-e.lanes))
    mask = b.icmp_signed("<", e.lane_numbers(), e.splat_number(b.sub(dim, whole)))
    last = _masked(e, query, whole, mask)

    def row(index: Any) -> Any:
        return e.add(rows, e.mul(b.sext(e.load(places, index, _I32), INT), stride))

    with e.loop(0, count, TOGETHER) as i:
        for r in range(TOGETHER):
            _fetch(e, row(e.add(i, AHEAD * TOGETHER + r)), e.mul(dim, e.align))
        own = [row(e.add(i, r)) for r in range(TOGETHER)]
        sums = [e.variable(e.math.mul(last, _masked(e, x, whole, mask))) for x in own]
        with e.loop(0, whole, e.lanes) as k:
            q = e.load_vector(query, k)
            for total, x in zip(sums, own, strict=True):
                total.set(e.math.fma(q, e.load_vector(x, k), total.get()))
        for r, total in enumerate(sums):
            e.store(e.math.reduce_add(total.get()), out, e.add(i, r))
    e.finish()


def _largest(e: Emitter) -> None:
    x, count, out = e.arguments
    kept = e.variable(e.load_vector(x, e.integer(0)))
    with e.loop(e.lanes, count, e.lanes) as i:
        kept.set(e.math.maximum(kept.get(), e.load_vector(x, i)))
    e.store(e.math.reduce_max(kept.get()), out, e.integer(0))
    e.finish()


def _guess(e: Emitter) -> None:
    """Mean weight of an item, its variance in units of the square of that, and the log of their second moment."""
    log_mean, squares, count, top, floor, weight, variance, score = e.arguments
    m = e.math
    shift, least = m.splat(e.load(top, e.integer(0))), m.splat(e.load(floor, e.integer(0)))
    with e.loop(0, count, e.lanes) as i:
        relative = m.sub(e.load_vector(log_mean, i), shift)
        square = e.load_vector(squares, i)
        noise = m.add(m.sub(m.expm1(square), square), least)
        e.store_vector(m.exp(relative), weight, i)
        e.store_vector(noise, variance, i)
        e.store_vector(m.add(m.add(relative, relative), m.log(noise)), score, i)
    e.finish()


def _exponentials(e: Emitter) -> None:
    x, count, top = e.arguments
    shift = e.math.splat(e.load(top, e.integer(0)))
    with e.loop(0, count, e.lanes) as i:
        e.store_vector(e.math.exp(e.math.sub(e.load_vector(x, i), shift)), x, i)
    e.finish()
