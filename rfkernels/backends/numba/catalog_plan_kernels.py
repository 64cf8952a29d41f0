"""Kernels of a catalog's plans, of float64: shares of cells, sorting, drawing; called by address, as all kernels.

Arrays of cells are padded to whole vectors: cells that do not exist hold no items and have bucket BUCKETS - 1.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.catalog_lanes import (
    gathered,
    hidden,
    larger,
    list_lanes,
    narrow,
    places_from,
    positive,
    running,
    splat_long,
    splat_narrow,
    uniform,
)
from rfkernels.backends.numba.emitter import INT, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module, compiled_once
from rfkernels.catalog.plan import BUCKETS, PER_NAT

_I32 = ir.IntType(32)


@compiled_once
def plan_kernels(machine: Machine) -> Code:
    """Compile the kernels that `Rules` has by these names."""
    module = ir.Module(name="rfkernels_catalog_plans")
    for emit, parameters in (
        (_shares, "logits top mass noise best count numbers share base masses noises score"),
        (_buckets, "score count out"),
        (_totals, "mass noise count sums"),
        (_offsets, "sizes count state out"),
        (_draw, "mass count state runs rate out reached"),
        (_find, "places count state rate reached mass first halvings ends share unit odds"),
        (_survey, "cell count share base unit size variance score best odds mass bucket tallies"),
        (_before, "bucket count limit out"),
        (_spread, "places count odds out"),
    ):
        emit(Emitter(module, emit.__name__[1:], parameters, 64, machine.lanes(64)))
    return compile_module(module, machine.width, keep=True)


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
        e.store_vector(narrow(e, m.minimum(last, depth)), out, i)
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
    m, given = e.math, splat_long(e, state)
    with e.loop(0, count, e.lanes) as i:
        size = e.load_vector(sizes, i)
        place = m.minimum(m.mul(uniform(e, given, places_from(e, i)), size), m.sub(size, m.constant(1.0)))
        e.store_vector(narrow(e, place), out, i)
    e.finish()


def _draw(e: Emitter) -> None:
    """Write how many runs begin before the end of each cell, where cells are as long as their mass times the rate.

    `reached` are these ends themselves, after a first number for the beginning.
    """
    mass, count, state, runs, rate, out, reached = e.arguments
    m, b, zero, kind = e.math, e.builder, e.math.constant(0.0), ir.VectorType(_I32, e.lanes)
    none = ir.Constant(kind, [0] * e.lanes)
    no_mass, no_runs = hidden(e, zero), hidden(e, none)
    given, most, scale = splat_long(e, state), splat_narrow(e, runs), m.splat(e.load(rate, e.integer(0)))
    ends, before = e.variable(zero), e.variable(none)
    e.store(e.scalar(0.0), reached, e.integer(0))
    with e.loop(0, count, e.lanes) as i:
        ends.set(running(e, e.load_vector(mass, i), no_mass, ends.get(), m.add))
        e.store_vector(m.mul(ends.get(), scale), reached, e.add(i, 1))
    with e.loop(0, count, e.lanes) as i:
        own, end = e.load_vector(mass, i), e.load_vector(reached, e.add(i, 1))
        near = narrow(e, end)
        within = m.lt(uniform(e, given, b.zext(near, m.integer)), m.sub(end, b.sitofp(near, m.vector)))
        number = b.add(near, b.zext(within, kind))
        number = b.select(b.icmp_signed("<", number, most), number, most)
        # Rounding may have put ends out of order, or a cell of no mass beyond the one before it.
        e.store_vector(b.select(m.gt(own, zero), number, none), out, i)
    with e.loop(0, count, e.lanes) as i:
        number = running(e, e.load_vector(out, i, _I32), no_runs, before.get(), larger(e))
        e.store_vector(number, out, i)
        before.set(number)
    e.finish()


def _find(e: Emitter) -> None:
    """Write the group of each run, and the weight of its items.

    `places` has the cell of each run that is the first in one, and 0 for the others, whose cell is that of the run
    before. A run lies in the first group that ends beyond it.
    """
    places, count, state, rate, reached, mass, first, halvings, ends, share, unit, odds = e.arguments
    m, b, numbers = e.math, e.builder, ir.VectorType(_I32, e.lanes)
    none, given, scale = ir.Constant(numbers, [0] * e.lanes), splat_long(e, state), m.splat(e.load(rate, e.integer(0)))
    before, local, nothing = e.variable(none), e.array(e.element, e.lanes), hidden(e, none)
    with e.loop(0, count, e.lanes) as i:
        before.set(running(e, e.load_vector(places, i, _I32), nothing, before.get(), larger(e)))
        e.store_vector(before.get(), places, i)
        cells = [b.zext(b.extract_element(before.get(), _I32(lane)), INT) for lane in range(e.lanes)]
        begin, length = (gathered(e, x, cells) for x in (reached, mass))
        own = places_from(e, i)
        at = m.add(uniform(e, given, own), positive(e, own))
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


def _survey(e: Emitter) -> None:
    """Write of each group the weight of an item, that of all, and its bucket; and add to a row of that bucket.

    Rows are of numbers of items, weights, noises, and items again, which fill a vector. At `best` are the score that
    buckets count from, and the bucket of that.
    """
    cell, count, share, base, unit, size, variance, score, best, odds, mass, bucket, tallies = e.arguments
    m, b, last = e.math, e.builder, e.math.constant(float(BUCKETS - 1))
    highest, bottom = (m.splat(e.load(best, e.integer(j))) for j in range(2))
    rows, kind = e.array(e.element, 4 * e.lanes), ir.VectorType(e.element, 4)
    with e.loop(0, count, e.lanes) as j:
        cells = [b.zext(e.load(cell, e.add(j, lane), _I32), INT) for lane in range(e.lanes)]
        weight, level = (gathered(e, x, cells) for x in (share, base))
        own, items = m.mul(weight, e.load_vector(unit, j)), e.load_vector(size, j)
        whole = m.mul(own, items)
        depth = m.mul(m.constant(float(PER_NAT)), m.sub(highest, m.add(level, e.load_vector(score, j))))
        depth = m.add(bottom, depth)
        depth = narrow(e, m.maximum(m.constant(0.0), m.minimum(last, depth)))
        e.store_vector(depth, bucket, j)
        e.store_vector(own, odds, j)
        e.store_vector(whole, mass, j)
        sums = items, whole, m.mul(whole, e.load_vector(variance, j)), items
        together = _alternate(b, *(_alternate(b, x, y) for x, y in (sums[::2], sums[1::2])))
        b.store(together, e.address(rows, e.integer(0))).align = 8
        for lane in range(e.lanes):
            to = e.address(tallies, e.mul(b.zext(b.extract_element(depth, _I32(lane)), INT), 4))
            total, row = (b.load(x, typ=kind) for x in (to, e.address(rows, e.integer(4 * lane))))
            total.align = row.align = 8
            b.store(b.fadd(total, row), to).align = 8
    e.finish()


def _before(e: Emitter) -> None:
    """List the groups of buckets before one; return how many these are."""
    bucket, count, limit, out = e.arguments
    b, some, many = e.builder, e.splat_number(limit), e.variable(e.integer(0))
    with e.loop(0, count, e.lanes) as j:
        within = b.icmp_signed("<", b.add(e.splat_number(j), e.lane_numbers()), e.splat_number(count))
        near = b.and_(within, b.icmp_signed("<", e.load_vector(bucket, j, _I32), some))
        list_lanes(e, near, j, out, many)
    e.finish(many.get())


def _alternate(b: Any, x: Any, y: Any) -> Any:
    """Return the lanes of two vectors in turn."""
    lanes = x.type.count
    order = [k for j in range(lanes) for k in (j, lanes + j)]
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(_I32, 2 * lanes), order))


def _spread(e: Emitter) -> None:
    """Fill places: those that hold 0 get what the last before them holds; and write the odds of each."""
    places, count, odds, out = e.arguments
    b = e.builder
    none = ir.Constant(ir.VectorType(_I32, e.lanes), [0] * e.lanes)
    before, nothing = e.variable(none), hidden(e, none)
    with e.loop(0, count, e.lanes) as i:
        before.set(running(e, e.load_vector(places, i, _I32), nothing, before.get(), larger(e)))
        e.store_vector(before.get(), places, i)
        groups = [b.zext(b.extract_element(before.get(), _I32(lane)), INT) for lane in range(e.lanes)]
        e.store_vector(gathered(e, odds, groups), out, i)
    e.finish()
