"""Kernels of a catalog's plans, of float64: shares of cells, sorting, drawing; called by address, as all kernels.

Arrays of cells are padded to whole vectors: cells that do not exist hold no items and have bucket BUCKETS - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.emitter import INT, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module
from rfkernels.catalog.plan import BUCKETS, PER_NAT

_I32 = ir.IntType(32)
_GOLDEN, _FACTORS = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


@cache
def plan_kernels(machine: Machine) -> Code:
    """Compile ``shares``, ``buckets``, ``totals``, ``offsets``, ``draw`` and ``find``."""
    module = ir.Module(name="rfkernels_catalog_plans")
    for emit, parameters in (
        (_shares, "logits top mass noise best count numbers share base masses noises score"),
        (_buckets, "score count out"),
        (_totals, "mass noise count sums"),
        (_offsets, "sizes count state out"),
        (_draw, "mass count state runs rate out reached"),
        (_find, "places count state rate reached mass first halvings ends share unit odds"),
    ):
        emit(Emitter(module, emit.__name__[1:], parameters, 64, machine.lanes(64)))
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


def _shares(e: Emitter) -> None:
    """Of each cell: what weights of its groups are multiplied by, twice the log of that, sums, and the best score.

    `numbers` gets what weights are relative to: the largest; the largest score is the number behind the last.
    """
    logits, top, mass, noise, best, count, numbers, share, base, masses, noises, score = e.arguments
    m, nothing = e.math, e.math.constant(float("-inf"))
    largest, most = e.variable(nothing), e.variable(nothing)
    with e.loop(0, count, e.lanes) as i:
        own = e.load_vector(top, i)
        own = m.where(m.gt(own, nothing), m.add(own, e.load_vector(logits, i)), nothing)
        largest.set(m.maximum(largest.get(), own))
        e.store_vector(own, base, i)
    e.store(m.reduce_max(largest.get()), numbers, e.integer(0))
    highest = m.splat(e.load(numbers, e.integer(0)))
    with e.loop(0, count, e.lanes) as i:
        own = m.sub(e.load_vector(base, i), highest)
        weight, own = m.exp(own), m.add(own, own)
        square = m.add(own, e.load_vector(best, i))
        most.set(m.maximum(most.get(), square))
        sums = (m.mul(weight, e.load_vector(x, i)) for x in (mass, noise))
        for x, out in zip((weight, own, square, *sums), (share, base, score, masses, noises), strict=True):
            e.store_vector(x, out, i)
    e.store(m.reduce_max(most.get()), score, count)
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


def _totals(e: Emitter) -> None:
    """Sum up two arrays."""
    *arrays, count, sums = e.arguments
    m = e.math
    totals = [e.variable(m.constant(0.0)) for _ in arrays]
    with e.loop(0, count, e.lanes) as i:
        for total, x in zip(totals, arrays, strict=True):
            total.set(m.add(total.get(), e.load_vector(x, i)))
    for j, total in enumerate(totals):
        e.store(m.reduce_add(total.get()), sums, e.integer(j))
    e.finish()


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
    """Write how many runs begin before the end of each cell, where cells are as long as their mass times the rate.

    `reached` are these ends themselves, after a first number for the beginning.
    """
    mass, count, state, runs, rate, out, reached = e.arguments
    m, b, zero, none = e.math, e.builder, e.math.constant(0.0), _integers(e, 0)
    given, most, scale = _splat(e, state), _splat(e, runs), m.splat(e.load(rate, e.integer(0)))
    ends, before = e.variable(zero), e.variable(none)
    e.store(e.scalar(0.0), reached, e.integer(0))
    with e.loop(0, count, e.lanes) as i:
        own = e.load_vector(mass, i)
        ends.set(_running(e, own, zero, ends.get(), m.add))
        end = m.mul(ends.get(), scale)
        e.store_vector(end, reached, e.add(i, 1))
        near = b.fptosi(end, m.integer)
        within = m.lt(_uniform(e, given, near), m.sub(end, b.sitofp(near, m.vector)))
        number = b.add(near, b.zext(within, m.integer))
        number = b.select(b.icmp_signed("<", number, most), number, most)
        # Rounding may have put ends out of order, or a cell of no mass beyond the one before it.
        number = b.select(m.gt(own, zero), number, none)
        number = _running(e, number, none, before.get(), _larger(e))
        _store_numbers(e, number, out, i)
        before.set(number)
    e.finish()


def _find(e: Emitter) -> None:
    """Write the group of each run, and the weight of its items.

    `places` has the cell of each run that is the first in one, and 0 for the others, whose cell is that of the run
    before. A run lies in the first group that ends beyond it.
    """
    places, count, state, rate, reached, mass, first, halvings, ends, share, unit, odds = e.arguments
    m, b, numbers = e.math, e.builder, ir.VectorType(_I32, e.lanes)
    none, given, scale = ir.Constant(numbers, [0] * e.lanes), _splat(e, state), m.splat(e.load(rate, e.integer(0)))
    before, local = e.variable(none), e.array(e.element, e.lanes)
    with e.loop(0, count, e.lanes) as i:
        before.set(_running(e, e.load_vector(places, i, _I32), none, before.get(), _larger(e)))
        e.store_vector(before.get(), places, i)
        begin = length = m.constant(0.0)
        for lane in range(e.lanes):
            cell = b.zext(b.extract_element(before.get(), _I32(lane)), INT)
            begin = b.insert_element(begin, e.load(reached, cell), _I32(lane))
            length = b.insert_element(length, e.load(mass, cell), _I32(lane))
        own = _places(e, i)
        at = m.add(_uniform(e, given, own), b.sitofp(own, m.vector))
        part = m.div(m.sub(at, begin), m.mul(length, scale))
        e.store_vector(m.maximum(m.constant(0.0), m.minimum(m.constant(1.0), part)), local, e.integer(0))
        with e.loop(0, e.lanes) as lane:
            j = e.add(i, lane)
            cell = b.zext(e.load(places, j, _I32), INT)
            group = _beyond(e, ends, first, cell, halvings, e.load(local, lane))
            e.store(b.trunc(group, _I32), places, j)
            e.store(b.fmul(e.load(share, cell), e.load(unit, group)), odds, j)
    e.finish()


def _beyond(e: Emitter, ends: Any, first: Any, cell: Any, halvings: Any, at: Any) -> Any:
    """Return the first group of a cell that ends beyond a place; the last with any mass ends beyond all.

    Halves are few, as it cannot be foreseen which is taken.
    """
    b = e.builder
    low, high = (e.variable(e.load(first, e.add(cell, k), INT)) for k in range(2))
    with e.loop(0, halvings):
        middle = b.lshr(e.add(low.get(), high.get()), e.integer(1))
        beyond = b.fcmp_ordered(">", e.load(ends, middle), at)
        low.set(b.select(beyond, low.get(), e.add(middle, 1)))
        high.set(b.select(beyond, e.add(middle, 1), high.get()))
    found = e.variable(low.get())
    with e.loop(low.get(), high.get(), e.lanes) as j:
        beyond = e.math.gt(e.load_vector(ends, j), e.math.splat(at))
        mask = b.zext(b.bitcast(beyond, ir.IntType(e.lanes)), INT)
        step = b.cttz(b.or_(mask, e.integer(1 << e.lanes)), ir.IntType(1)(1))
        found.set(e.add(found.get(), b.select(b.icmp_signed("==", found.get(), j), step, e.integer(0))))
    return found.get()
