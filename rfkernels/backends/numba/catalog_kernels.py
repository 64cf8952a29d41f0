"""Kernels of a catalog: dot products with scattered rows, guesses of weights, exponentials; called by address.

Addresses and sizes are 64-bit integers, strides in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.emitter import INT, POINTER, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module

TOGETHER = 4
"""Rows that are multiplied together; lists of rows end in so many places, times one more than AHEAD, that are valid."""

AHEAD = 16
"""How many fours of rows are fetched before they are needed."""

_LINE, _UNROLLED = 64, 16
_I32 = ir.IntType(32)


@cache
def dot_kernel(machine: Machine, bits: int, dim: int) -> Code:
    """Compile ``dots`` for rows of `dim` elements of `bits` bits: out[i] = query · rows[places[i]]."""
    module = ir.Module(name=f"rfkernels_catalog_dots_{bits}")
    e = Emitter(module, "dots", "rows row_stride places count query out", bits, machine.lanes(bits))
    _dots(e, dim)
    return compile_module(module, machine.width, keep=True)


@cache
def weight_kernels(machine: Machine, bits: int = 64) -> Code:
    """Compile ``largest``, ``guess``, ``exponentials`` and ``sum``, of arrays padded to whole vectors."""
    module = ir.Module(name=f"rfkernels_catalog_weights_{bits}")

    def emitter(name: str, parameters: str) -> Emitter:
        return Emitter(module, name, parameters, bits, machine.lanes(bits))

    _largest(emitter("largest", "x count out"))
    _guess(emitter("guess", "log_mean squares sizes count top floor weight mass noise score"))
    _exponentials(emitter("exponentials", "x count top"))
    _sum(emitter("sum", "x count top out"))
    return compile_module(module, machine.width, keep=True)


def _function(e: Emitter, name: str, result: Any, *parameters: Any) -> Any:
    module = e.builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, parameters), name)


def _masked(e: Emitter, base: Any, index: Any, mask: Any) -> Any:
    """Load a vector of which only the lanes of the mask exist, zeros elsewhere."""
    name = f"llvm.masked.load.v{e.lanes}f{e.math.bits}.p0"
    load = _function(e, name, e.math.vector, POINTER, _I32, mask.type, e.math.vector)
    return e.builder.call(load, [e.address(base, index), _I32(e.align), mask, e.math.constant(0.0)])


def _steps(e: Emitter, stop: int, step: int) -> Iterator[Any]:
    """Run over 0, step, ... below stop: few turns one after the other, many in a loop."""
    if stop <= _UNROLLED * step:
        yield from map(e.integer, range(0, stop, step))
    else:
        with e.loop(0, stop, step) as i:
            yield i


def _fetch(e: Emitter, at: Any, size: int) -> None:
    """Ask for the lines of `size` bytes; into the second level, as the first is too small for what is on its way."""
    prefetch = _function(e, "llvm.prefetch.p0", ir.VoidType(), POINTER, _I32, _I32, _I32)
    for j in _steps(e, size, _LINE):
        e.builder.call(prefetch, [e.builder.inttoptr(e.add(at, j), POINTER), _I32(0), _I32(2), _I32(1)])


def _dots(e: Emitter, dim: int) -> None:
    rows, stride, places, count, query, out = e.arguments
    b, whole = e.builder, dim // e.lanes * e.lanes
    mask = ir.Constant(ir.VectorType(ir.IntType(1), e.lanes), [lane < dim - whole for lane in range(e.lanes)])
    last = _masked(e, query, e.integer(whole), mask)

    def row(index: Any) -> Any:
        return e.add(rows, e.mul(b.sext(e.load(places, index, _I32), INT), stride))

    with e.loop(0, count, TOGETHER) as i:
        for r in range(TOGETHER):
            _fetch(e, row(e.add(i, AHEAD * TOGETHER + r)), dim * e.align)
        own = [row(e.add(i, r)) for r in range(TOGETHER)]
        sums = [e.variable(e.math.mul(last, _masked(e, x, e.integer(whole), mask))) for x in own]
        for k in _steps(e, whole, e.lanes):
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
    """Of each group: mean weight of an item, sum of weights, that times relative variance, log of second moment."""
    log_mean, squares, sizes, count, top, floor, weight, mass, noise, score = e.arguments
    m = e.math
    shift, least = m.splat(e.load(top, e.integer(0))), m.splat(e.load(floor, e.integer(0)))
    with e.loop(0, count, e.lanes) as i:
        relative = m.sub(e.load_vector(log_mean, i), shift)
        square = e.load_vector(squares, i)
        variance, own = m.add(m.sub(m.expm1(square), square), least), m.exp(relative)
        total = m.mul(own, e.load_vector(sizes, i))
        e.store_vector(own, weight, i)
        e.store_vector(total, mass, i)
        e.store_vector(m.mul(total, variance), noise, i)
        e.store_vector(m.add(m.add(relative, relative), m.log(variance)), score, i)
    e.finish()


def _exponentials(e: Emitter) -> None:
    x, count, top = e.arguments
    shift = e.math.splat(e.load(top, e.integer(0)))
    with e.loop(0, count, e.lanes) as i:
        e.store_vector(e.math.exp(e.math.sub(e.load_vector(x, i), shift)), x, i)
    e.finish()


def _sum(e: Emitter) -> None:
    x, count, top, out = e.arguments
    shift, total = e.math.splat(e.load(top, e.integer(0))), e.variable(e.math.constant(0.0))
    with e.loop(0, count, e.lanes) as i:
        total.set(e.math.add(total.get(), e.math.exp(e.math.sub(e.load_vector(x, i), shift))))
    e.store(e.math.reduce_add(total.get()), out, e.integer(0))
    e.finish()
