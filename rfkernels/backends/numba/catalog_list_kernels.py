"""Kernels that list which blocks of codes a query reads; called by address, as all kernels."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.catalog_lanes import (
    gathered,
    integers,
    list_lanes,
    narrow,
    positive,
    splat,
    splat_narrow,
)
from rfkernels.backends.numba.emitter import INT, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module, compiled_once
from rfkernels.catalog.codes import BLOCK

_I32 = ir.IntType(32)

MASK_SHIFT, SIZE_SHIFT = 32, 48
"""Where in 64 bits the mask of a group's rows in a block, and their number, are; the block is lowest."""


@compiled_once
def list_kernels(machine: Machine, bits: int) -> Code:
    """Compile ``begins``, ``list_runs`` and ``list_opened``, for weights of `bits` bits."""
    module = ir.Module(name=f"rfkernels_catalog_lists_{bits}")
    for emit, parameters in (
        (_begins, "start sizes offset count out"),
        (_list_runs, "draw begins cell odds bases centres slopes runs numbers out repeated"),
    ):
        emit(Emitter(module, emit.__name__[1:], parameters, 64, machine.lanes(64)), bits)
    opened = "opened count start counts cell bases centres slopes out"
    _list_opened(Emitter(module, "list_opened", opened, bits, machine.lanes(bits)))
    return compile_module(module, machine.width, keep=True)


def _begins(e: Emitter, _: int) -> None:
    """Write the block that the first run of each group is in, with its mask and number of rows."""
    start, sizes, offset, count, out = e.arguments
    b, none, whole = e.builder, integers(e, 0), integers(e, BLOCK)
    with e.loop(0, count, e.lanes) as i:
        first, size = e.load_vector(start, i, INT), b.zext(narrow(e, e.load_vector(sizes, i)), e.math.integer)
        place = b.add(first, b.zext(e.load_vector(offset, i, _I32), e.math.integer))
        block = b.ashr(place, integers(e, BLOCK.bit_length() - 1))
        low = b.sub(first, b.mul(block, whole))
        high = b.add(low, size)
        low = b.select(b.icmp_signed(">", low, none), low, none)
        high = b.select(b.icmp_signed("<", high, whole), high, whole)
        mask = b.sub(*(b.shl(integers(e, 1), x) for x in (high, low)))
        for x, shift in ((mask, MASK_SHIFT), (b.sub(high, low), SIZE_SHIFT)):
            block = b.or_(block, b.shl(x, integers(e, shift)))
        e.store_vector(block, out, i)
    e.finish()


def _list_opened(e: Emitter) -> None:
    """List the blocks of whole groups; return how many these are. `out` is as in ``list_runs``.

    Vectors that are begun are written whole.
    """
    opened, count, start, counts, cell, bases, centres, slopes, out = e.arguments
    b, m, kind, at = e.builder, e.math, ir.VectorType(_I32, e.lanes), e.variable(e.integer(0))
    blocks, masks, *numbers_out = (e.load(out, e.integer(j), INT) for j in range(7))
    none, whole, one = (ir.Constant(kind, [x] * e.lanes) for x in (0, BLOCK, 1))
    places = ir.Constant(kind, list(range(e.lanes)))
    with e.loop(0, count) as j:
        group = b.zext(e.load(opened, j, _I32), INT)
        own, first = b.zext(e.load(cell, group, _I32), INT), e.load(start, group, INT)
        known = [splat(b, _narrow(e, e.load(x, own, ir.DoubleType())), e.lanes) for x in (bases, centres, slopes)]
        block = b.ashr(first, e.integer(BLOCK.bit_length() - 1))
        low = b.sub(first, e.mul(block, BLOCK))
        high = e.add(low, b.sext(e.load(counts, group, _I32), INT))
        many = b.ashr(e.add(high, BLOCK - 1), e.integer(BLOCK.bit_length() - 1))
        with e.loop(0, many, e.lanes) as i:
            index, before = e.add(at.get(), i), b.mul(b.add(splat_narrow(e, i), places), whole)
            ends = []
            for x in (high, low):
                x = b.sub(splat_narrow(e, x), before)
                x = b.select(b.icmp_signed(">", x, none), x, none)
                ends.append(b.select(b.icmp_signed("<", x, whole), x, whole))
            e.store_vector(b.add(splat_narrow(e, e.add(block, i)), places), blocks, index)
            e.store_vector(b.sub(*(b.shl(one, x) for x in ends)), masks, index)
            numbers = *known, b.sitofp(b.sub(*ends), m.vector), m.constant(1.0)
            for x, to in zip(numbers, numbers_out, strict=True):
                e.store_vector(x, to, index)
        at.set(e.add(at.get(), many))
    e.finish(at.get())


def _narrow(e: Emitter, x: Any) -> Any:
    """Return a number of float64 in the type of elements."""
    return x if e.align == 8 else e.builder.fptrunc(x, e.element)


def _list_runs(e: Emitter, bits: int) -> None:
    """List the blocks of runs, of each group the first; return how many runs are of the same group as those before.

    `numbers` are what factors are over odds and sizes, and then, written, the number of items. `out` has the addresses
    of blocks, masks, bases, centres, slopes, sizes and factors; `repeated` gets runs whose blocks are others.
    """
    draw, begins, cell, odds, bases, centres, slopes, runs, numbers, out, repeated = e.arguments
    b, m, kind = e.builder, e.math, ir.VectorType(_I32, e.lanes)
    blocks, masks, *numbers_out = (e.load(out, e.integer(j), INT) for j in range(7))
    expected, items, many = (
        m.splat(e.load(numbers, e.integer(0))),
        e.variable(m.constant(0.0)),
        e.variable(e.integer(0)),
    )
    before = e.variable(ir.Constant(kind, [-1] * e.lanes))
    order = ir.Constant(ir.VectorType(_I32, e.lanes), list(range(e.lanes - 1, 2 * e.lanes - 1)))
    with e.loop(0, runs, e.lanes) as i:
        own = e.load_vector(draw, i, _I32)
        groups = [b.zext(b.extract_element(own, _I32(lane)), INT) for lane in range(e.lanes)]
        cells = [b.zext(e.load(cell, group, _I32), INT) for group in groups]
        begin = gathered(e, begins, groups, INT)
        size = positive(e, b.lshr(begin, integers(e, SIZE_SHIFT)))
        e.store_vector(b.trunc(begin, kind), blocks, i)
        mask = b.and_(b.lshr(begin, integers(e, MASK_SHIFT)), integers(e, (1 << BLOCK) - 1))
        e.store_vector(b.trunc(mask, kind), masks, i)
        factor = m.div(expected, m.mul(e.load_vector(odds, i), size))
        known = (gathered(e, x, cells) for x in (bases, centres, slopes))
        for x, at in zip((*known, size, factor), numbers_out, strict=True):
            _store(e, x, at, i, bits)
        within = b.icmp_signed("<", b.add(e.splat_number(i), e.lane_numbers()), e.splat_number(runs))
        items.set(m.add(items.get(), m.where(within, size, m.constant(0.0))))
        same = b.and_(within, b.icmp_signed("==", own, b.shuffle_vector(before.get(), own, order)))
        before.set(own)
        list_lanes(e, same, i, repeated, many)
    e.store(m.reduce_add(items.get()), numbers, e.integer(1))
    e.finish(many.get())


def _store(e: Emitter, x: Any, base: Any, index: Any, bits: int) -> None:
    """Store numbers, of single precision if so many bits are."""
    b, element = e.builder, ir.FloatType() if bits == 32 else ir.DoubleType()
    x = b.fptrunc(x, ir.VectorType(element, e.lanes)) if bits == 32 else x
    b.store(x, e.address(base, index, element)).align = bits // 8
