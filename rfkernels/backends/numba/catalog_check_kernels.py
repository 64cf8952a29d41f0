"""Kernels that choose which items of blocks are checked, and add up blocks; called by address, as all kernels."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.catalog_lanes import (
    Differences,
    gathered,
    hidden,
    larger,
    list_lanes,
    places_from,
    positive,
    running,
    splat,
    splat_long,
    uniform,
)
from rfkernels.backends.numba.emitter import INT, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module, compiled_once
from rfkernels.catalog.codes import BLOCK

_I1, _I16, _I32 = ir.IntType(1), ir.IntType(16), ir.IntType(32)


@compiled_once
def check_kernels(machine: Machine, bits: int) -> Code:
    """Compile ``large``, ``pick``, ``check``, ``unmet``, ``replace`` and ``compare``, for weights of `bits` bits.

    ``large``: lists the items that are checked for sure, and writes sums over the others of each block and, in the
    first of `numbers`, of all; returns how many it lists, which are in the blocks `near`. ``pick``: replaces the first
    place in each block, zeros beside, by the items of places that lie one in each of equal parts, of some length, of
    the sum over the others. ``check``: of items found from `first` on, each of which stands for the first of `numbers`,
    writes behind that by how much codes are off in all, and sums of second and fourth powers of differences of
    neighbours. ``unmet``: what `rfkernels.catalog.scans.unmet` takes the least of. ``replace``: sums up blocks with
    found items, where these count as they are. ``compare``: writes the sum of all parts, and of those from `first` on
    that of second and fourth powers of differences of neighbours.
    """
    module = ir.Module(name=f"rfkernels_catalog_checks_{bits}")
    element = ir.FloatType() if bits == 32 else ir.DoubleType()
    items = "weights masks factors boosts slopes least"
    for emit, parameters in (
        (_large, f"{items} sums count numbers others near found"),
        (_pick, f"{items} count state numbers reached places"),
        (_check, "weights logits boosts slopes exact right found first count numbers"),
        (_unmet, "slopes boosts others count numbers"),
        (_replace, "weights logits masks factors slopes centres exact right found count parts"),
    ):
        emit(Emitter(module, emit.__name__[1:], parameters, 64, machine.lanes(64)), element)
    _compare(Emitter(module, "compare", "parts count first runs numbers", 64, machine.lanes(64)))
    return compile_module(module, machine.width, keep=True)


def _items(e: Emitter, element: Any, arrays: tuple[Any, ...], block: Any) -> tuple[Any, Any, Any]:
    """Load a block: what its items are checked in proportion to, which there are, and which are large."""
    weights, masks, factors, boosts, slopes, least = arrays
    b, kind = e.builder, ir.VectorType(element, BLOCK)
    own = b.load(e.address(weights, e.mul(block, BLOCK), element), typ=kind)
    own.align = 4
    factor, boost, slope = (splat(b, e.load(x, block, element), BLOCK) for x in (factors, boosts, slopes))
    there = b.bitcast(b.trunc(e.load(masks, block, _I32), _I16), ir.VectorType(_I1, BLOCK))
    sizes = b.fmul(factor, b.fadd(b.fmul(boost, own), slope))
    limit = splat(b, e.load(least, e.integer(0), element), BLOCK)
    return sizes, there, b.and_(there, b.fcmp_ordered(">=", sizes, limit))


def _shuffled(b: Any, x: Any, y: Any, order: list[int]) -> Any:
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(_I32, len(order)), order))


def _wide(e: Emitter, x: Any) -> Any:
    """Return a number in float64."""
    return x if isinstance(x.type, ir.DoubleType) else e.builder.fpext(x, ir.DoubleType())


def _widened(e: Emitter, x: Any) -> Any:
    """Return a vector of float64."""
    return x if x.type == e.math.vector else e.builder.fpext(x, e.math.vector)


def _sum(b: Any, x: Any) -> Any:
    """Return the sum of a power of two of lanes."""
    lanes = step = x.type.count
    while step > 1:
        step //= 2
        x = b.fadd(x, _shuffled(b, x, x, [(j + step) % lanes for j in range(lanes)]))
    return b.extract_element(x, _I32(0))


def _large(e: Emitter, element: Any) -> None:
    *items, sums, count, numbers, others, near, found = e.arguments
    m, b, zero = e.math, e.builder, e.math.constant(0.0)
    limit = m.splat(_wide(e, e.load(items[-1], e.integer(0), element)))
    total, rest = e.variable(zero), e.variable(e.scalar(0.0))
    blocks, at = (e.variable(e.integer(0)) for _ in range(2))
    with e.loop(0, count, e.lanes) as i:
        own = e.load_vector(sums, i)
        some = m.ge(own, limit)
        e.store_vector(own, others, i)
        total.set(m.add(total.get(), m.where(some, zero, own)))
        list_lanes(e, some, i, near, blocks)
    with e.loop(0, blocks.get()) as j:
        _list_large(e, element, tuple(items), b.zext(e.load(near, j, _I32), INT), (found, others, at, rest))
    e.store(b.fadd(m.reduce_add(total.get()), rest.get()), numbers, e.integer(0))
    e.finish(at.get())


def _list_large(e: Emitter, element: Any, items: tuple[Any, ...], block: Any, given: tuple[Any, ...]) -> None:
    """List the large items of a block, and write and add the sum over the others."""
    b, (found, others, at, rest) = e.builder, given
    sizes, there, large = _items(e, element, items, block)
    list_lanes(e, large, e.mul(block, BLOCK), found, at)
    own = b.select(b.and_(there, b.not_(large)), sizes, ir.Constant(sizes.type, [0.0] * BLOCK))
    total = _wide(e, _sum(b, own))
    e.store(total, others, block)
    rest.set(b.fadd(rest.get(), total))


def _pick(e: Emitter, element: Any) -> None:
    *items, count, state, numbers, reached, places = e.arguments
    m, b, kind = e.math, e.builder, ir.VectorType(_I32, e.lanes)
    none, given = ir.Constant(kind, [0] * e.lanes), splat_long(e, state)
    distance, before = m.splat(e.load(numbers, e.integer(0))), e.variable(none)
    nothing, no_items = hidden(e, none), hidden(e, ir.Constant(ir.VectorType(element, BLOCK), [0.0] * BLOCK))
    rests, blocks = e.array(e.element, e.lanes), e.array(_I32, e.lanes)
    with e.loop(0, count, e.lanes) as i:
        before.set(running(e, e.load_vector(places, i, _I32), nothing, before.get(), larger(e)))
        e.store_vector(before.get(), blocks, e.integer(0))
        own = [b.zext(b.extract_element(before.get(), _I32(lane)), INT) for lane in range(e.lanes)]
        begin = gathered(e, reached, own)
        own = places_from(e, i)
        at = m.add(uniform(e, given, own), positive(e, own))
        e.store_vector(m.mul(m.sub(at, begin), distance), rests, e.integer(0))
        with e.loop(0, e.lanes) as lane:
            block = b.zext(e.load(blocks, lane, _I32), INT)
            found = _beyond(e, element, tuple(items), block, e.load(rests, lane), no_items)
            e.store(b.trunc(e.add(e.mul(block, BLOCK), found), _I32), places, e.add(i, lane))
    e.finish()


def _beyond(e: Emitter, element: Any, items: tuple[Any, ...], block: Any, rest: Any, nothing: Any) -> Any:
    """Return the first item that the sum of sizes is beyond a place with, or the last there is; large ones are none."""
    b, bits = e.builder, _I16
    own, there, large = _items(e, element, items, block)
    none = ir.Constant(own.type, [0.0] * BLOCK)
    sums = own = b.select(b.and_(there, b.not_(large)), own, none)
    step = 1
    while step < BLOCK:
        sums = b.fadd(sums, _shuffled(b, sums, nothing, [BLOCK + j if j < step else j - step for j in range(BLOCK)]))
        step *= 2
    at = rest if isinstance(element, ir.DoubleType) else b.fptrunc(rest, element)
    first, some = (
        b.bitcast(x, bits) for x in (b.fcmp_ordered(">", sums, splat(b, at, BLOCK)), b.fcmp_ordered(">", own, none))
    )
    first = b.and_(first, some)  # sums may rise by rounding where nothing is
    mask = b.bitcast(there, bits)
    some = b.select(b.icmp_unsigned("!=", some, bits(0)), some, mask)  # all may be less than the smallest number
    last = b.sub(bits(BLOCK - 1), b.ctlz(some, _I1(0)))
    return b.zext(b.select(b.icmp_unsigned("!=", first, bits(0)), b.cttz(first, _I1(0)), last), INT)


def _check(e: Emitter, element: Any) -> None:
    weights, logits, boosts, slopes, exact, right, found, first, count, numbers = e.arguments
    m, b, zero = e.math, e.builder, e.math.constant(0.0)
    none = ir.Constant(ir.VectorType(_I32, e.lanes), [0] * e.lanes)
    distance, total, differences = m.splat(e.load(numbers, e.integer(0))), e.variable(zero), Differences(e, count)
    with e.loop(0, count, e.lanes) as i:
        there, paired = differences.within(i)
        own = b.select(there, e.load_vector(found, e.add(first, i), _I32), none)
        places = [b.zext(b.extract_element(own, _I32(lane)), INT) for lane in range(e.lanes)]
        blocks = [b.lshr(place, e.integer(BLOCK.bit_length() - 1)) for place in places]
        near, told = (_widened(e, gathered(e, x, places, element)) for x in (weights, logits))
        boost, slope = (_widened(e, gathered(e, x, blocks, element)) for x in (boosts, slopes))
        logit, weight = (_widened(e, e.load_vector(x, e.add(first, i), element)) for x in (exact, right))
        off = m.sub(m.sub(weight, near), m.mul(slope, m.sub(logit, told)))
        size = m.add(m.mul(boost, near), slope)
        off = m.where(b.and_(there, m.gt(size, zero)), m.div(m.mul(distance, off), size), zero)
        total.set(m.add(total.get(), off))
        differences.add(off, paired)
    e.store(m.reduce_add(total.get()), numbers, e.integer(1))
    differences.store(numbers, 2)
    e.finish()


def _unmet(e: Emitter, element: Any) -> None:
    slopes, boosts, others, count, numbers = e.arguments
    m, b, zero, one = e.math, e.builder, *map(e.math.constant, (0.0, 1.0))
    total, most = e.variable(zero), e.variable(zero)
    with e.loop(0, count, e.lanes) as i:
        slope, boost = (_widened(e, e.load_vector(x, i, element)) for x in (slopes, boosts))
        size = e.load_vector(others, i)
        square = m.mul(m.constant(0.5), m.sub(one, m.div(one, boost)))
        square = m.where(b.and_(b.fcmp_ordered("==", slope, zero), m.gt(size, zero)), square, zero)
        total.set(m.fma(square, size, total.get()))
        most.set(m.maximum(most.get(), square))
    e.store(m.reduce_add(total.get()), numbers, e.integer(0))
    e.store(m.reduce_max(most.get()), numbers, e.integer(1))
    e.finish()


def _replace(e: Emitter, element: Any) -> None:
    weights, logits, masks, factors, slopes, centres, exact, right, found, count, parts = e.arguments
    b, kind = e.builder, ir.VectorType(ir.DoubleType(), BLOCK)
    none = ir.Constant(kind, [0.0] * BLOCK)
    with e.loop(0, count) as j:
        place = b.zext(e.load(found, j, _I32), INT)
        for given, out in ((right, weights), (exact, logits)):
            e.store(e.load(given, j, element), out, place)
    with e.loop(0, count) as j:  # a block with some found items is summed up for each of them
        block = b.lshr(b.zext(e.load(found, j, _I32), INT), e.integer(BLOCK.bit_length() - 1))
        there = b.bitcast(b.trunc(e.load(masks, block, _I32), _I16), ir.VectorType(_I1, BLOCK))
        own = [e.address(x, e.mul(block, BLOCK), element) for x in (weights, logits)]
        near, logit = (b.load(x, typ=ir.VectorType(element, BLOCK)) for x in own)
        near.align = logit.align = 4
        factor, slope, centre = (_wide(e, e.load(x, block, element)) for x in (factors, slopes, centres))
        near, logit = (x if x.type == kind else b.fpext(x, kind) for x in (near, logit))
        off = b.fsub(near, b.fmul(splat(b, slope, BLOCK), b.fsub(logit, splat(b, centre, BLOCK))))
        total = _sum(b, b.select(there, off, none))
        e.store(b.fmul(factor, total), parts, block)
    e.finish()


def _compare(e: Emitter) -> None:
    parts, count, first, runs, numbers = e.arguments
    m, zero, differences = e.math, e.math.constant(0.0), Differences(e, runs)
    total, drawn = (e.variable(zero) for _ in range(2))
    with e.loop(0, count, e.lanes) as i:
        total.set(m.add(total.get(), e.load_vector(parts, i)))
    with e.loop(0, runs, e.lanes) as i:
        own, (there, paired) = e.load_vector(parts, e.add(first, i)), differences.within(i)
        drawn.set(m.add(drawn.get(), m.where(there, own, zero)))
        differences.add(own, paired)
    for place, x in enumerate((total, drawn), 1):
        e.store(m.reduce_add(x.get()), numbers, e.integer(place))
    differences.store(numbers, 3)
    e.finish()
