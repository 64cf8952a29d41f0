"""Kernels of a catalog: dot products with scattered rows, and exponentials; called by address.

Addresses and sizes are 64-bit integers, strides in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.emitter import INT, POINTER, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module
from rfkernels.catalog.plan import RUN

TOGETHER = 4
"""Rows that are multiplied together; lists of rows end in so many places, times one more than AHEAD, that are valid."""

AHEAD = 16
"""How many fours of rows are fetched before they are needed."""

_LINE, _UNROLLED = 64, 16
_I32 = ir.IntType(32)


@cache
def dot_kernel(machine: Machine, bits: int, dim: int) -> Code:
    """Compile ``dots`` and ``near_dots`` for rows of `dim` elements: out[i] = query · rows[places[i]]; and ``fetch``.

    ``near_dots`` is for rows that are in a cache; ``fetch`` asks for the runs that groups begin with.
    """
    module = ir.Module(name=f"rfkernels_catalog_dots_{bits}")

    def emitter(name: str, parameters: str) -> Emitter:
        return Emitter(module, name, parameters, bits, machine.lanes(bits))

    _dots(emitter("dots", "rows row_stride places count query out"), dim, AHEAD)
    _dots(emitter("near_dots", "rows row_stride places count query out"), dim, 0)
    _fetch_runs(emitter("fetch", "rows row_stride start offset first last"), dim)
    return compile_module(module, machine.width, keep=True)


@cache
def weight_kernels(machine: Machine, bits: int = 64) -> Code:
    """Compile ``largest``, ``exponentials`` and ``sum``, of arrays padded to whole vectors."""
    module = ir.Module(name=f"rfkernels_catalog_weights_{bits}")

    def emitter(name: str, parameters: str) -> Emitter:
        return Emitter(module, name, parameters, bits, machine.lanes(bits))

    _largest(emitter("largest", "x count out"))
    _exponentials(emitter("exponentials", "x count top out"))
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


def _row(e: Emitter, rows: Any, stride: Any, places: Any, index: Any) -> Any:
    return e.add(rows, e.mul(e.builder.sext(e.load(places, index, _I32), INT), stride))


def _dots(e: Emitter, dim: int, ahead: int) -> None:
    rows, stride, places, count, query, out = e.arguments
    whole = dim // e.lanes * e.lanes
    mask = ir.Constant(ir.VectorType(ir.IntType(1), e.lanes), [lane < dim - whole for lane in range(e.lanes)])
    last = _masked(e, query, e.integer(whole), mask)
    with e.loop(0, count, TOGETHER) as i:
        for r in range(TOGETHER if ahead else 0):
            _fetch(e, _row(e, rows, stride, places, e.add(i, ahead * TOGETHER + r)), dim * e.align)
        own = [_row(e, rows, stride, places, e.add(i, r)) for r in range(TOGETHER)]
        sums = [e.variable(e.math.mul(last, _masked(e, x, e.integer(whole), mask))) for x in own]
        for k in _steps(e, whole, e.lanes):
            q = e.load_vector(query, k)
            for total, x in zip(sums, own, strict=True):
                total.set(e.math.fma(q, e.load_vector(x, k), total.get()))
        _store_sums(e, [total.get() for total in sums], out, i)
    e.finish()


def _store_sums(e: Emitter, vectors: list[Any], out: Any, index: Any) -> None:
    """Store the sums of the elements of four vectors, which share registers as soon as they leave room."""
    b, lanes, m = e.builder, e.lanes, e.math
    if lanes < TOGETHER:
        for r, x in enumerate(vectors):
            e.store(m.reduce_add(x), out, e.add(index, r))
        return

    def halves(x: Any, y: Any, part: int) -> Any:
        """Add the halves of parts of x and of y; what comes of x is in the lower half."""
        low = [j + k for j in range(0, lanes, part) for k in range(part // 2)]
        low += [lanes + j for j in low]
        kept, moved = ([j + shift for j in low] for shift in (0, part // 2))
        kind = ir.VectorType(_I32, lanes)
        return m.add(*(b.shuffle_vector(x, y, ir.Constant(kind, order)) for order in (kept, moved)))

    first, second = halves(*vectors[:2], lanes), halves(*vectors[2:], lanes)
    total, part = halves(first, second, lanes // 2), lanes // 4
    while part > 1:
        total, part = halves(total, total, part), part // 2
    kind = ir.VectorType(_I32, TOGETHER)
    e.store_vector(b.shuffle_vector(total, total, ir.Constant(kind, list(range(TOGETHER)))), out, index)


def _fetch_runs(e: Emitter, dim: int) -> None:
    rows, stride, start, offset, first, last = e.arguments
    with e.loop(first, last) as i:
        place = e.add(e.load(start, i, INT), e.builder.sext(e.load(offset, i, _I32), INT))
        _fetch(e, e.add(rows, e.mul(place, stride)), RUN * dim * e.align)
    e.finish()


def _largest(e: Emitter) -> None:
    x, count, out = e.arguments
    kept = e.variable(e.load_vector(x, e.integer(0)))
    with e.loop(e.lanes, count, e.lanes) as i:
        kept.set(e.math.maximum(kept.get(), e.load_vector(x, i)))
    e.store(e.math.reduce_max(kept.get()), out, e.integer(0))
    e.finish()


def _exponentials(e: Emitter) -> None:
    x, count, top, out = e.arguments
    shift = e.math.splat(e.load(top, e.integer(0)))
    with e.loop(0, count, e.lanes) as i:
        e.store_vector(e.math.exp(e.math.sub(e.load_vector(x, i), shift)), out, i)
    e.finish()


def _sum(e: Emitter) -> None:
    x, count, top, out = e.arguments
    shift, total = e.math.splat(e.load(top, e.integer(0))), e.variable(e.math.constant(0.0))
    with e.loop(0, count, e.lanes) as i:
        total.set(e.math.add(total.get(), e.math.exp(e.math.sub(e.load_vector(x, i), shift))))
    e.store(e.math.reduce_add(total.get()), out, e.integer(0))
    e.finish()
