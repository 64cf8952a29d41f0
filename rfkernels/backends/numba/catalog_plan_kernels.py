"""Kernels of a catalog's plans, of float64: guesses of weights, sorting, drawing; called by address, as all kernels.

Arrays of groups are padded to whole vectors: groups that do not exist hold no items and have bucket BUCKETS - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.emitter import INT, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module
from rfkernels.catalog.plan import BUCKETS, PER_NAT, SHARED

_I32 = ir.IntType(32)
_GOLDEN, _FACTORS = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


@cache
def plan_kernels(machine: Machine) -> Code:
    """Compile ``guess``, ``buckets``, ``rest``, ``offsets``, ``draw``, ``fill`` and ``equal``."""
    module = ir.Module(name="rfkernels_catalog_plans")
    for emit, parameters in (
        (_guess, "logits cell deviation sizes count numbers weight mass noise score"),
        (_buckets, "score count out"),
        (_rest, "bucket count first mass noise sums candidates"),
        (_offsets, "sizes count state out"),
        (_draw, "mass count state runs rate out most"),
        (_fill, "groups count weight odds"),
    ):
        emit(Emitter(module, emit.__name__[1:], parameters, 64, machine.lanes(64)))
    _equal(Emitter(module, "equal", "numbers number", 32, machine.lanes(32)))
    return compile_module(module, machine.width, keep=True)


def _integers(e: Emitter, value: int) -> Any:
    return ir.Constant(e.math.integer, [value] * e.lanes)


def _splat(e: Emitter, value: Any) -> Any:
    """Return a 64-bit integer in every lane."""
    single = e.builder.insert_element(ir.Constant(e.math.integer, ir.Undefined), value, _I32(0))
    return e.builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_I32, e.lanes), [0] * e.lanes))


def _places(e: Emitter, first: Any) -> Any:
    """Return first, first + 1, ... as 64-bit integers."""
    return e.builder.add(_splat(e, first), ir.Constant(e.math.integer, list(range(e.lanes))))


def _mixed(e: Emitter, z: Any) -> Any:
    b = e.builder
    for shift, factor in _FACTORS:
        z = b.mul(b.xor(z, b.lshr(z, _integers(e, shift))), _integers(e, factor))
    return b.xor(z, b.lshr(z, _integers(e, 31)))


def _uniform(e: Emitter, state: Any, places: Any) -> Any:
    """Return numbers in [0, 1) of a stream: those of splitmix64."""
    b = e.builder
    z = _mixed(e, b.add(state, b.mul(_integers(e, _GOLDEN), b.add(places, _integers(e, 1)))))
    return e.math.mul(b.sitofp(b.lshr(z, _integers(e, 11)), e.math.vector), e.math.constant(2.0**-53))


def _store_numbers(e: Emitter, x: Any, base: Any, index: Any) -> None:
    """Store integers as 32 bits."""
    e.store_vector(e.builder.trunc(x, ir.VectorType(_I32, e.lanes)), base, index)


def _guess(e: Emitter) -> None:
    """Of each group: mean weight of an item, sum of weights, that times relative variance, log of second moment.

    `numbers` are what weights are relative to, the deviation of logits where the spread is 1, the edge, the floor, and
    then, written, the largest log of a second moment.
    """
    logits, cell, deviation, sizes, count, numbers, weight, mass, noise, score = e.arguments
    m, b = e.math, e.builder
    top, scale, edge, floor = (m.splat(e.load(numbers, e.integer(i))) for i in range(4))
    half, nothing = m.constant(0.5), m.constant(float("-inf"))
    most = e.variable(nothing)
    with e.loop(0, count, e.lanes) as i:
        logit = m.constant(0.0)
        for lane in range(e.lanes):
            own = b.zext(e.load(cell, e.add(i, lane), _I32), INT)
            logit = b.insert_element(logit, e.load(logits, own), _I32(lane))
        own = m.mul(scale, e.load_vector(deviation, i))
        twice = m.add(own, own)
        low, high = m.minimum(own, edge), m.minimum(twice, edge)
        mean = m.mul(low, m.sub(own, m.mul(half, low)))
        apart = m.sub(m.mul(high, m.sub(twice, m.mul(half, high))), m.add(mean, mean))
        variance = m.add(m.sub(m.exp(apart), m.add(apart, m.constant(1.0))), floor)
        relative, size = m.sub(m.add(logit, mean), top), e.load_vector(sizes, i)
        own = m.exp(relative)
        total, square = m.mul(own, size), m.add(m.add(relative, relative), m.log(variance))
        square = m.where(m.gt(size, m.constant(0.0)), square, nothing)
        most.set(m.maximum(most.get(), square))
        for x, out in ((own, weight), (total, mass), (m.mul(total, variance), noise), (square, score)):
            e.store_vector(x, out, i)
    e.store(m.reduce_max(most.get()), numbers, e.integer(4))
    e.finish()


def _buckets(e: Emitter) -> None:
    """Write in what bucket each second moment lies; the largest log is the number behind the last."""
    score, count, out = e.arguments
    m, last = e.math, e.math.constant(float(BUCKETS - 1))
    best = m.splat(e.load(score, count))
    with e.loop(0, count, e.lanes) as i:
        depth = m.mul(m.constant(float(PER_NAT)), m.sub(best, e.load_vector(score, i)))
        _store_numbers(e, e.builder.fptosi(m.minimum(last, depth), m.integer), out, i)
    e.finish()


def _rest(e: Emitter) -> None:
    """Sum up groups from a bucket on; list the others and return how many these are."""
    bucket, count, first, mass, noise, sums, candidates = e.arguments
    b, m = e.builder, e.math
    bound, zero = e.splat_number(first), m.constant(0.0)
    masses, noises, listed = e.variable(zero), e.variable(zero), e.variable(e.integer(0))
    with e.loop(0, count, e.lanes) as i:
        early = b.icmp_signed("<", e.load_vector(bucket, i, _I32), bound)
        for total, x in ((masses, mass), (noises, noise)):
            total.set(m.add(total.get(), b.select(early, zero, e.load_vector(x, i))))
        some = b.icmp_unsigned("!=", b.bitcast(early, ir.IntType(e.lanes)), ir.IntType(e.lanes)(0))
        with e.loop(i, b.select(some, e.add(i, e.lanes), i)) as j:
            e.store(b.trunc(j, _I32), candidates, listed.get())
            own = b.icmp_signed("<", e.load(bucket, j, _I32), b.trunc(first, _I32))
            listed.set(b.add(listed.get(), b.zext(own, INT)))
    for j, total in enumerate((masses, noises)):
        e.store(m.reduce_add(total.get()), sums, e.integer(j))
    e.finish(listed.get())


def _offsets(e: Emitter) -> None:
    """Write the item of each group that runs begin with."""
    sizes, count, state, out = e.arguments
    m, b = e.math, e.builder
    given = _splat(e, state)
    with e.loop(0, count, e.lanes) as i:
        size = e.load_vector(sizes, i)
        place = m.minimum(m.mul(_uniform(e, given, _places(e, i)), size), m.sub(size, m.constant(1.0)))
        _store_numbers(e, b.fptosi(place, e.math.integer), out, i)
    e.finish()


def _running(e: Emitter, x: Any, first: Any, before: Any, operation: Callable[[Any, Any], Any]) -> Any:
    """Return x combined with all lanes before it, and with the last lane of what came before; `first` changes none."""
    lane, step = ir.VectorType(_I32, e.lanes), 1
    while step < e.lanes:
        order = [e.lanes + j if j < step else j - step for j in range(e.lanes)]
        x = operation(x, e.builder.shuffle_vector(x, first, ir.Constant(lane, order)))
        step *= 2
    last = ir.Constant(lane, [e.lanes - 1] * e.lanes)
    return operation(x, e.builder.shuffle_vector(before, before, last))


def _larger(e: Emitter) -> Callable[[Any, Any], Any]:
    return lambda x, y: e.builder.select(e.builder.icmp_signed(">", x, y), x, y)


def _draw(e: Emitter) -> None:
    """Write how many runs begin before the end of each group, where groups are as long as their mass times the rate.

    `most` is raised to the number of runs in each group.
    """
    mass, count, state, runs, rate, out, highest = e.arguments
    m, b, zero, none = e.math, e.builder, e.math.constant(0.0), _integers(e, 0)
    given, most, scale = _splat(e, state), _splat(e, runs), m.splat(e.load(rate, e.integer(0)))
    lane, ends, before = ir.VectorType(_I32, e.lanes), e.variable(zero), e.variable(none)
    shifted = ir.Constant(lane, [e.lanes - 1 + j for j in range(e.lanes)])
    with e.loop(0, count, e.lanes) as i:
        ends.set(_running(e, e.load_vector(mass, i), zero, ends.get(), m.add))
        end = m.mul(ends.get(), scale)
        near = b.fptosi(end, m.integer)
        within = m.lt(_uniform(e, given, near), m.sub(end, b.sitofp(near, m.vector)))
        number = b.add(near, b.zext(within, m.integer))
        number = b.select(b.icmp_signed("<", number, most), number, most)
        number = _running(e, number, none, before.get(), _larger(e))  # rounding may have put ends out of order
        _store_numbers(e, number, out, i)
        own = b.trunc(b.sub(number, b.shuffle_vector(before.get(), number, shifted)), lane)
        e.store_vector(_larger(e)(e.load_vector(highest, i, _I32), own), highest, i)
        before.set(number)
    e.finish()


def _fill(e: Emitter) -> None:
    """Give places without a group that of the place before, and write the weights of all."""
    groups, count, weight, odds = e.arguments
    numbers, b = ir.VectorType(_I32, e.lanes), e.builder
    none = ir.Constant(numbers, [0] * e.lanes)
    before = e.variable(none)
    with e.loop(0, count, e.lanes) as i:
        before.set(_running(e, e.load_vector(groups, i, _I32), none, before.get(), _larger(e)))
        e.store_vector(before.get(), groups, i)
        own = e.math.constant(0.0)
        for j in range(e.lanes):
            group = b.zext(b.extract_element(before.get(), _I32(j)), INT)
            own = b.insert_element(own, e.load(weight, group), _I32(j))
        e.store_vector(own, odds, i)
    e.finish()


def _equal(e: Emitter) -> None:
    """Return a mask of those of SHARED numbers that are equal to another."""
    numbers, number = e.arguments
    b, wanted, mask = e.builder, e.splat_number(number), e.integer(0)
    for i in range(0, SHARED, e.lanes):
        same = b.icmp_signed("==", e.load_vector(numbers, e.integer(i), _I32), wanted)
        mask = b.or_(mask, b.shl(b.zext(b.bitcast(same, ir.IntType(e.lanes)), INT), e.integer(i)))
    e.finish(mask)
