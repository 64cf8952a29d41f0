"""Kernels that add up rows of values, of any float dtype and at any strides; called by address, as all kernels."""

from __future__ import annotations

from llvmlite import ir

from rfkernels.backends.numba import conversions
from rfkernels.backends.numba.emitter import LINE, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module, compiled_once
from rfkernels.catalog.arguments import VALUES


@compiled_once
def mean_kernels(machine: Machine) -> Code:
    """Compile ``add_<dtype>``: with x = row − centre, sums += weight x and squares += weight x², all in float64.

    Meanwhile the row at `later` is fetched.
    """
    module = ir.Module(name="rfkernels_catalog_means")
    for name in (dtype.name for dtype in VALUES):
        parameters = "row column width centre weight sums squares later"
        _add(Emitter(module, f"add_{name}", parameters, 64, machine.lanes(64)), name)
    return compile_module(module, machine.width, keep=True)


def _add(e: Emitter, name: str) -> None:
    row, column, width, centre, weight, sums, squares, later = e.arguments
    b, m, kind, size = e.builder, e.math, conversions.STORAGE[name], conversions.SIZE[name]
    single = e.load(weight, e.integer(0))
    every = m.splat(single)
    dense = b.icmp_signed("==", column, e.integer(size))
    with e.loop(0, b.select(dense, e.mul(width, size), e.integer(0)), LINE) as at:
        e.fetch(e.add(later, at), near=True)
    whole = b.select(dense, b.and_(width, e.integer(-e.lanes)), e.integer(0))
    with e.loop(0, whole, e.lanes) as j:
        x = m.sub(conversions.widen(e, name, e.load_vector(row, j, kind)), e.load_vector(centre, j))
        weighted = m.mul(every, x)
        e.store_vector(m.add(e.load_vector(sums, j), weighted), sums, j)
        e.store_vector(m.fma(weighted, x, e.load_vector(squares, j)), squares, j)
    with e.loop(whole, width) as j:
        stored = e.load(e.add(row, e.mul(j, column)), e.integer(0), kind)
        one = b.fsub(conversions.widen(e, name, stored), e.load(centre, j))
        part = b.fmul(single, one)
        e.store(b.fadd(e.load(sums, j), part), sums, j)
        e.store(b.fadd(e.load(squares, j), b.fmul(part, one)), squares, j)
    e.finish()
