"""Tile kernels of the steps that find groups; those that passes over blocks have as well are in `block_kernels`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.emitter import INT, Emitter, Variable
from rfkernels.backends.numba.kernels import ABSENT, SENTINEL, Emit

BYTE, SHORT = ir.IntType(8), ir.IntType(32)


def best(e: Emitter, top: Variable, place: Variable, value: Any, column: Any) -> None:
    """Go on with the largest value of each lane, and with the first column that has it, as a number."""
    m = e.math
    lane = ir.Constant(m.vector, [float(i) for i in range(e.lanes)])
    better = m.gt(value, top.get())
    place.set(m.where(better, m.add(m.splat(e.builder.sitofp(column, e.element)), lane), place.get()))
    top.set(m.where(better, value, top.get()))


def first_best(e: Emitter, top: Variable, place: Variable) -> Any:
    """Return the first column that has the largest value of all lanes."""
    m, b = e.math, e.builder
    largest = m.splat(m.reduce_max(top.get()))
    first = m.where(m.ge(top.get(), largest), m.neg(place.get()), m.constant(SENTINEL[e.align * 8]))
    return b.fptosi(b.fneg(m.reduce_max(first)), SHORT)


def allowed_label(e: Emitter, label: Any, mask: Any, stride: Any, i: Any) -> Any:
    """Return a label, −1 where the mask (bytes; none at address 0) does not allow row i."""
    b, found = e.builder, e.variable(label)
    with b.if_then(b.icmp_signed("!=", mask, e.integer(0))):
        given = e.load(e.add(mask, e.mul(i, stride)), e.integer(0), BYTE)
        found.set(b.select(b.icmp_signed("!=", given, BYTE(0)), label, SHORT(-1)))
    return found.get()


def _residual(e: Emitter) -> None:
    """Subtract from each row the one of `means`, as wide, that its label names; zeros where that is negative."""
    labels, x, x_row, rows, width, means, out, out_row = e.arguments
    b = e.builder
    with e.loop(0, rows) as r:
        label = b.sext(e.load(labels, r, SHORT), INT)
        counts = b.icmp_signed(">=", label, e.integer(0))
        start = b.select(counts, e.mul(label, width), e.integer(0))
        kept = e.splat_condition(counts)
        with e.loop(0, width, e.lanes) as j:
            value = e.math.sub(e.load_vector(x, e.add(e.mul(r, x_row), j)), e.load_vector(means, e.add(start, j)))
            e.store_vector(e.math.where(kept, value, e.math.constant(0.0)), out, e.add(e.mul(r, out_row), j))
    e.finish()


def _hide(e: Emitter) -> None:
    """Put the sentinel into rows that the mask does not allow."""
    scores, columns, rows, mask, stride = e.arguments
    b = e.builder
    with e.loop(0, rows) as r:
        given = e.load(e.add(mask, e.mul(r, stride)), e.integer(0), BYTE)
        with b.if_then(b.icmp_signed("==", given, BYTE(0))), e.loop(0, columns, e.lanes) as c:
            e.store_vector(e.math.constant(SENTINEL[e.align * 8]), scores, e.add(e.mul(r, columns), c))
    e.finish()


def _weights(e: Emitter, score: Any, factor: Any, top: Any) -> Any:
    """Return exp(factor · score − top); zero where the score is the sentinel."""
    m = e.math
    exists = m.gt(score, m.constant(ABSENT[e.align * 8]))
    return m.where(exists, m.exp_of_exponent(m.sub(m.mul(factor, score), top)), m.constant(0.0))


def _crest(e: Emitter) -> None:
    """Go on with the largest scale · score of each column, and with the sum of weights on that scale.

    Unless `level` is 0, weights take the place of scores, and their scale is noted there.
    """
    scores, columns, rows, scale, top, den, level = e.arguments
    m, b, missing = e.math, e.builder, e.math.constant(SENTINEL[e.align * 8])
    kept = b.icmp_signed("!=", level, e.integer(0))
    factor = m.splat(e.load(scale, e.integer(0)))
    with e.loop(0, columns, e.lanes) as c:
        old = e.load_vector(top, c)
        highest = e.variable(old)
        with e.loop(0, rows) as r:
            score = e.load_vector(scores, e.add(e.mul(r, columns), c))
            own = m.where(m.gt(score, m.constant(ABSENT[e.align * 8])), m.mul(factor, score), missing)
            highest.set(m.maximum(highest.get(), own))
        new = highest.get()
        total = e.variable(m.mul(e.load_vector(den, c), m.exp(m.sub(old, new))))
        with e.loop(0, rows) as r:
            index = e.add(e.mul(r, columns), c)
            weight = _weights(e, e.load_vector(scores, index), factor, new)
            total.set(m.add(total.get(), weight))
            with b.if_then(kept):
                e.store_vector(weight, scores, index)
        with b.if_then(kept):
            e.store_vector(new, level, c)
        e.store_vector(new, top, c)
        e.store_vector(total.get(), den, c)
    e.finish()


def _relevel(e: Emitter) -> None:
    """Replace a log scale of each column by what weights on it are to be multiplied by: exp(level − top) · den."""
    level, top, den, columns = e.arguments
    m = e.math
    with e.loop(0, columns, e.lanes) as c:
        factor = m.exp(m.sub(e.load_vector(level, c), e.load_vector(top, c)))
        e.store_vector(m.mul(factor, e.load_vector(den, c)), level, c)
    e.finish()


def _invert(e: Emitter) -> None:
    """Replace denominators of the first `count` columns by 1 / (den · count), and others, and zeros, by zero."""
    den, count, columns = e.arguments
    b = e.builder
    number = b.sitofp(count, e.element)
    with e.loop(0, columns) as c:
        below = e.load(den, c)
        counts = b.and_(e.less(c, count), b.fcmp_ordered(">", below, e.scalar(0.0)))
        share = b.fdiv(e.scalar(1.0), b.select(counts, b.fmul(below, number), e.scalar(1.0)))
        e.store(b.select(counts, share, e.scalar(0.0)), den, c)
    e.finish()


def _share(e: Emitter) -> None:
    """Sum weights times a factor over the columns of each row."""
    scores, columns, rows, scale, top, factor, out = e.arguments
    m = e.math
    steep = m.splat(e.load(scale, e.integer(0)))
    with e.loop(0, rows) as r:
        total = e.variable(m.constant(0.0))
        with e.loop(0, columns, e.lanes) as c:
            weight = _weights(e, e.load_vector(scores, e.add(e.mul(r, columns), c)), steep, e.load_vector(top, c))
            total.set(m.fma(weight, e.load_vector(factor, c), total.get()))
        e.store(m.reduce_add(total.get()), out, r)
    e.finish()


def _shrink(e: Emitter) -> None:
    """Multiply `count` values by a factor; a multiple of lanes."""
    values, factor, count = e.arguments
    given = e.math.splat(e.load(factor, e.integer(0)))
    with e.loop(0, count, e.lanes) as i:
        e.store_vector(e.math.mul(e.load_vector(values, i), given), values, i)
    e.finish()


def _approach(e: Emitter) -> None:
    """Lower the squared distances of a tile's keys to those from more centres, with a row of scores for each.

    The distance is own − 2 score + square. The largest weight times distance is a bound from then on, and the first key
    that has it is noted.
    """
    scores, columns, rows, own, known, squares, weight, nearest, bound, place, first = e.arguments
    m, b = e.math, e.builder
    # Before the first, all are as far as can be.
    none = b.icmp_signed("==", known, e.integer(0))
    least = m.splat(b.select(none, e.scalar(-SENTINEL[e.align * 8]), e.scalar(0.0)))
    top, column = e.variable(m.constant(SENTINEL[e.align * 8])), e.variable(m.constant(0.0))
    with e.loop(0, columns, e.lanes) as c:
        square, closest = e.load_vector(squares, c), e.variable(m.maximum(least, e.load_vector(nearest, c)))
        with e.loop(0, rows) as r:
            both = m.add(square, m.splat(e.load(own, r)))
            distance = m.fma(e.load_vector(scores, e.add(e.mul(r, columns), c)), m.constant(-2.0), both)
            closest.set(m.minimum(closest.get(), m.maximum(distance, m.constant(0.0))))
        e.store_vector(closest.get(), nearest, c)
        best(e, top, column, m.mul(e.load_vector(weight, c), closest.get()), c)
    e.store(m.reduce_max(top.get()), bound, e.integer(0))
    e.store(e.add(first, b.sext(first_best(e, top, column), INT)), place, e.integer(0))
    e.finish()


def _turn(e: Emitter) -> None:
    """Return −1 less the key to take if the tile of the largest bound knows all centres; else the tile and how many.

    Those are returned as tile · 2³² + how many, and the tile is noted to know all. If the bound is zero, the key is
    `first`.
    """
    bounds, fresh, places, tiles, centres, first = e.arguments
    b = e.builder
    top, tile = e.variable(e.load(bounds, e.integer(0))), e.variable(e.integer(0))
    with e.loop(1, tiles) as i:
        better = b.fcmp_ordered(">", e.load(bounds, i), top.get())
        tile.set(b.select(better, i, tile.get()))
        top.set(b.select(better, e.load(bounds, i), top.get()))
    known = e.load(fresh, tile.get(), INT)
    with b.if_then(b.icmp_signed("==", known, centres)):
        apart = b.fcmp_ordered(">", top.get(), e.scalar(0.0))
        b.ret(b.sub(e.integer(-1), b.select(apart, e.load(places, tile.get(), INT), first)))
    e.store(centres, fresh, tile.get())
    e.finish(e.add(e.mul(tile.get(), 1 << 32), known))


FINDING: dict[str, tuple[str, Emit]] = {
    "residual": ("labels x x_row rows width means out out_row", _residual),
    "hide": ("scores columns rows mask stride", _hide),
    "crest": ("scores columns rows scale top den level", _crest),
    "relevel": ("level top den columns", _relevel),
    "invert": ("den count columns", _invert),
    "share": ("scores columns rows scale top factor out", _share),
    "shrink": ("values factor count", _shrink),
    "approach": ("scores columns rows own known squares weight nearest bound place first", _approach),
    "turn": ("bounds fresh places tiles centres first", _turn),
}
"""Parameters and body of each kernel by its name."""
