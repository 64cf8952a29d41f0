"""Kernels of a catalog: dot products with scattered rows, and exponentials; called by address.

Addresses and sizes are 64-bit integers, strides in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.catalog_lanes import Differences, gathered
from rfkernels.backends.numba.emitter import INT, LINE, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module, compiled_once
from rfkernels.catalog.plan import RUN, SHARED

TOGETHER = 4
"""Rows that are multiplied together; lists of rows end in so many places, times one more than AHEAD, that are valid."""

AHEAD = 16
"""How many fours of rows are fetched before they are needed."""

_GROUPS_AHEAD = 16
"""Groups whose runs are fetched together, before they are needed."""

WORD = 64
"""Queries of a mask."""

_UNROLLED = 16

_HELD = 16
"""Registers that may hold rows."""

_I32 = ir.IntType(32)


@compiled_once
def dot_kernel(machine: Machine, bits: int, dim: int) -> Code:
    """Compile kernels for rows of `dim` elements.

    ``dots`` and ``near_dots``, for rows that are in a cache: out[i] = query · rows[places[i]], for so many rows.
    ``block_dots``: the same for TOGETHER queries. ``pass_runs``: all runs that up to SHARED queries take, WORD times
    `words` of them.
    """
    module = ir.Module(name=f"rfkernels_catalog_dots_{bits}")

    def emitter(name: str, parameters: str) -> Emitter:
        return Emitter(module, name, parameters, bits, machine.lanes(bits))

    _dots(emitter("dots", "rows row_stride places count query out"), dim, AHEAD)
    _dots(emitter("near_dots", "rows row_stride places count query out"), dim, 0)
    _block_dots(emitter("block_dots", "rows row_stride places count queries query_row out out_row"), dim)
    parameters = "rows row_stride start count offset most groups queries query_row out draw next words"
    _pass_runs(emitter("pass_runs", parameters), dim)
    return compile_module(module, machine.width, keep=True)


@compiled_once
def distance_kernel(machine: Machine, bits: int, dim: int) -> Code:
    """Compile ``distances`` and ``near_distances``: as ``dots``, but out[i] = factor |rows[places[i]] − point|².

    The factor lies behind the point.
    """
    module = ir.Module(name=f"rfkernels_catalog_distances_{bits}")
    for name, ahead in (("distances", AHEAD), ("near_distances", 0)):
        emitter = Emitter(module, name, "rows row_stride places count query out", bits, machine.lanes(bits))
        _dots(emitter, dim, ahead, squared=True)
    return compile_module(module, machine.width, keep=True)


@compiled_once
def weight_kernels(machine: Machine, bits: int = 64) -> Code:
    """Compile ``largest``, ``exponentials``, ``sum`` and ``add_runs``, of arrays padded to whole vectors."""
    module = ir.Module(name=f"rfkernels_catalog_weights_{bits}")

    def emitter(name: str, parameters: str) -> Emitter:
        return Emitter(module, name, parameters, bits, machine.lanes(bits))

    _largest(emitter("largest", "x count out"))
    _exponentials(emitter("exponentials", "x count top out"))
    _sum(emitter("sum", "x count top out"))
    parameters = "x products draw odds cell slopes cells count numbers"
    _add_runs(Emitter(module, "add_runs", parameters, 64, machine.lanes(64)), ir.FloatType() if bits == 32 else None)
    return compile_module(module, machine.width, keep=True)


def _masked(e: Emitter, base: Any, index: Any, mask: Any) -> Any:
    """Load a vector of which only the lanes of the mask exist, zeros elsewhere."""
    name = f"llvm.masked.load.v{e.lanes}f{e.math.bits}.p0"
    given = e.address(base, index), _I32(e.align), mask, e.math.constant(0.0)
    return e.call(name, e.math.vector, given)


def _steps(e: Emitter, stop: Any, step: int) -> Iterator[Any]:
    """Run over 0, step, ... below stop: few turns, of a number that is known, one after the other, many in a loop."""
    if isinstance(stop, int) and stop <= _UNROLLED * step:
        yield from map(e.integer, range(0, stop, step))
    else:
        with e.loop(0, stop, step) as i:
            yield i


def fetch(e: Emitter, at: Any, size: Any, near: bool = False) -> None:
    """Ask for the lines of `size` bytes; if not `near`, into the second level, as the first would be too small."""
    for j in _steps(e, size, LINE):
        e.fetch(e.add(at, j), near)


def _row(e: Emitter, rows: Any, stride: Any, places: Any, index: Any) -> Any:
    return e.add(rows, e.mul(e.builder.sext(e.load(places, index, _I32), INT), stride))


def _dots(e: Emitter, dim: int, ahead: int, squared: bool = False) -> None:
    rows, stride, places, count, query, out = e.arguments
    tail = _Tail(e, dim)
    last = tail.load(query)
    factor = e.math.splat(e.load(query, e.integer(dim))) if squared else None
    with e.loop(0, count, TOGETHER) as i:
        for r in range(TOGETHER if ahead else 0):
            fetch(e, _row(e, rows, stride, places, e.add(i, ahead * TOGETHER + r)), dim * e.align)
        own = [_row(e, rows, stride, places, e.add(i, r)) for r in range(TOGETHER)]
        if factor is None:
            _store_sums(e, _sums(e, tail, query, last, own), out, i)
        else:
            squares = _squares(e, tail, query, last, own)
            _store_sums(e, [e.math.mul(factor, x) for x in squares], out, i)
    e.finish()


def _block_dots(e: Emitter, dim: int) -> None:
    rows, stride, places, count, queries, query_row, out, out_row = e.arguments
    tail, m = _Tail(e, dim), e.math
    given = [e.add(queries, e.mul(query_row, j)) for j in range(TOGETHER)]
    with e.loop(0, count, TOGETHER) as i:
        own = [_row(e, rows, stride, places, e.add(i, r)) for r in range(TOGETHER)]
        ends = [tail.load(x) for x in own]
        totals = [[e.variable(m.mul(tail.load(q), x)) for x in ends] for q in given]
        for k in _steps(e, tail.whole, e.lanes):
            vectors = [e.load_vector(x, k) for x in own]
            for q, sums in zip(given, totals, strict=True):
                number = e.load_vector(q, k)
                for total, x in zip(sums, vectors, strict=True):
                    total.set(m.fma(number, x, total.get()))
        for j, sums in enumerate(totals):
            _store_sums(e, [total.get() for total in sums], e.add(out, e.mul(out_row, j)), i)
    e.finish()


def _pass_runs(e: Emitter, dim: int) -> None:
    """Multiply queries with runs, group by group: a run is read once, for all queries that take it.

    `out` and `draw` have an address for each query, which move on, and `next` the group that lies at the latter.
    """
    rows, stride, start, count, offset, most, groups, queries, query_row, out, draw, following, words = e.arguments
    b, tail, at, masks = e.builder, _Tail(e, dim), e.array(INT, RUN), e.array(INT, SHARED // WORD)
    given = tail, queries, query_row, out, draw, following, words

    def bound(x: Any) -> Any:
        return b.select(e.less(x, groups), x, groups)

    with e.loop(0, groups, _GROUPS_AHEAD) as first:
        second, third = (bound(e.add(first, k * _GROUPS_AHEAD)) for k in (1, 2))
        _fetch_runs(e, rows, stride, start, offset, most, second, third)
        with e.loop(first, second) as group:
            place = e.variable(b.sext(e.load(offset, group, _I32), INT))
            with e.repeat(partial(_equal, e, following, group, masks, words)):
                _run(e, rows, stride, e.load(start, group, INT), e.load(count, group, _I32), place, at)
                for half in range(0, RUN, TOGETHER):
                    own = [e.load(at, e.integer(half + r), INT) for r in range(TOGETHER)]
                    _multiply(e, dim, masks, own, half, *given)
    e.finish()


def _run(e: Emitter, rows: Any, stride: Any, start: Any, count: Any, place: Any, at: Any) -> None:
    """Write the addresses of the rows of a run, which go around their group; `place` moves on."""
    b, size = e.builder, e.builder.zext(count, INT)
    place.set(b.urem(place.get(), size))
    for r in range(RUN):
        e.store(e.add(rows, e.mul(e.add(start, place.get()), stride)), at, e.integer(r))
        after = e.add(place.get(), 1)
        place.set(b.select(e.less(after, size), after, e.integer(0)))


def _multiply(
    e: Emitter,
    dim: int,
    masks: Any,
    own: list[Any],
    half: int,
    tail: _Tail,
    queries: Any,
    query_row: Any,
    out: Any,
    draw: Any,
    following: Any,
    words: Any,
) -> None:
    """Multiply the queries of masks with four rows of a run; with the last of them the queries move on."""
    b, left = e.builder, e.variable(e.integer(0))
    held = [tail.held(x) for x in own] if TOGETHER * -(-dim // e.lanes) <= _HELD else None
    with e.loop(0, words) as word:
        left.set(e.load(masks, word, INT))
        with e.repeat(lambda: b.icmp_unsigned("!=", left.get(), e.integer(0))):
            i = e.add(e.mul(word, WORD), b.cttz(left.get(), ir.IntType(1)(1)))
            left.set(b.and_(left.get(), b.sub(left.get(), e.integer(1))))
            query, to = e.add(queries, e.mul(query_row, i)), e.load(out, i, INT)
            _store_sums(e, _sums(e, tail, query, tail.load(query), own, held), to, e.integer(half))
            if half + TOGETHER == RUN:
                run = e.add(e.load(draw, i, INT), 4)
                e.store(e.add(to, RUN * e.align), out, i)
                e.store(run, draw, i)
                e.store(e.load(run, e.integer(0), _I32), following, i)


def _equal(e: Emitter, numbers: Any, number: Any, masks: Any, words: Any) -> Any:
    """Write so many masks of those numbers that are equal to another, and return whether there are any."""
    b, wanted, some = e.builder, e.splat_number(number), e.variable(e.integer(0))
    with e.loop(0, words) as word:
        mask = e.integer(0)
        for i in range(0, WORD, e.lanes):
            own = e.load_vector(numbers, e.add(e.mul(word, WORD), i), _I32)
            same = b.bitcast(b.icmp_signed("==", own, wanted), ir.IntType(e.lanes))
            mask = b.or_(mask, b.shl(b.zext(same, INT), e.integer(i)))
        e.store(mask, masks, word)
        some.set(b.or_(some.get(), mask))
    return b.icmp_unsigned("!=", some.get(), e.integer(0))


class _Tail:
    """The elements of rows behind the last whole vector."""

    def __init__(self, e: Emitter, dim: int) -> None:
        self._emitter, self.whole = e, dim // e.lanes * e.lanes
        kind = ir.VectorType(ir.IntType(1), e.lanes)
        self._mask = ir.Constant(kind, [lane < dim - self.whole for lane in range(e.lanes)])

    def load(self, row: Any) -> Any:
        """Load them, and zeros beside."""
        return _masked(self._emitter, row, self._emitter.integer(self.whole), self._mask)

    def held(self, row: Any) -> list[Any]:
        """Load a row: its whole vectors, then its tail."""
        e = self._emitter
        return [*(e.load_vector(row, e.integer(k)) for k in range(0, self.whole, e.lanes)), self.load(row)]


def _sums(e: Emitter, tail: _Tail, query: Any, last: Any, own: list[Any], held: list[Any] | None = None) -> list[Any]:
    """Return vectors whose elements sum to the products of a query with rows, which may be held in registers."""
    m = e.math
    if held is not None:
        sums = [m.mul(last, x[-1]) for x in held]
        for j, k in enumerate(range(0, tail.whole, e.lanes)):
            q = e.load_vector(query, e.integer(k))
            sums = [m.fma(q, x[j], total) for total, x in zip(sums, held, strict=True)]
        return sums
    totals = [e.variable(m.mul(last, tail.load(x))) for x in own]
    for k in _steps(e, tail.whole, e.lanes):
        q = e.load_vector(query, k)
        for total, x in zip(totals, own, strict=True):
            total.set(m.fma(q, e.load_vector(x, k), total.get()))
    return [total.get() for total in totals]


def _squares(e: Emitter, tail: _Tail, point: Any, last: Any, own: list[Any]) -> list[Any]:
    """Return vectors whose elements sum to the squared distances of rows from a point."""
    m = e.math
    totals = [e.variable(m.square(m.sub(tail.load(x), last))) for x in own]
    for k in _steps(e, tail.whole, e.lanes):
        p = e.load_vector(point, k)
        for total, x in zip(totals, own, strict=True):
            off = m.sub(e.load_vector(x, k), p)
            total.set(m.fma(off, off, total.get()))
    return [total.get() for total in totals]


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

    first, second = halves(vectors[0], vectors[1], lanes), halves(vectors[2], vectors[3], lanes)
    total, part = halves(first, second, lanes // 2), lanes // 4
    while part > 1:
        total, part = halves(total, total, part), part // 2
    kind = ir.VectorType(_I32, TOGETHER)
    e.store_vector(b.shuffle_vector(total, total, ir.Constant(kind, list(range(TOGETHER)))), out, index)


def _fetch_runs(e: Emitter, rows: Any, stride: Any, start: Any, offset: Any, most: Any, first: Any, last: Any) -> None:
    """Ask for so many runs of each of some groups."""
    with e.loop(first, last) as i:
        place = e.add(e.load(start, i, INT), e.builder.sext(e.load(offset, i, _I32), INT))
        size = e.mul(e.mul(e.builder.sext(e.load(most, i, _I32), INT), stride), RUN)
        fetch(e, e.add(rows, e.mul(place, stride)), size)


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


def _sums_of_runs(e: Emitter, x: Any, index: Any, kind: Any) -> Any:
    """Return sums of RUN numbers, side by side, one for each lane."""
    b, lane = e.builder, ir.VectorType(_I32, e.lanes)
    vectors = [e.load_vector(x, e.add(index, r * e.lanes), kind) for r in range(RUN)]
    while len(vectors) > 1:
        halves = zip(vectors[::2], vectors[1::2], strict=True)
        even, odd = (ir.Constant(lane, [2 * j + k for j in range(e.lanes)]) for k in range(2))
        vectors = [b.fadd(b.shuffle_vector(x, y, even), b.shuffle_vector(x, y, odd)) for x, y in halves]
    return vectors[0] if kind is None else b.fpext(vectors[0], e.math.vector)


def _add_runs(e: Emitter, kind: Any) -> None:
    """Add up runs, less control variates, each divided by the number of times that it is expected.

    `numbers` are what slopes and weights of groups are multiplied by and then, written, the sum and those of second and
    fourth powers of differences of successive runs.
    """
    x, products, draw, odds, cell, slopes, cells, count, numbers = e.arguments
    m, b, zero = e.math, e.builder, e.math.constant(0.0)
    relative, factor = (m.splat(e.load(numbers, e.integer(i))) for i in range(2))
    total, differences = e.variable(zero), Differences(e, count)
    with e.loop(0, count, e.lanes) as i:
        groups = [b.zext(e.load(draw, e.add(i, lane), _I32), INT) for lane in range(e.lanes)]
        places = [b.zext(e.load(cell, group, _I32), INT) for group in groups]
        slope, logit = (gathered(e, x, places) for x in (slopes, cells))
        first = e.mul(i, RUN)
        moved = m.sub(_sums_of_runs(e, products, first, kind), m.mul(m.constant(float(RUN)), logit))
        own = m.sub(_sums_of_runs(e, x, first, kind), m.mul(m.mul(relative, slope), moved))
        there, paired = differences.within(i)
        own = m.where(there, m.mul(own, m.div(factor, e.load_vector(odds, i))), zero)
        total.set(m.add(total.get(), own))
        differences.add(own, paired)
    e.store(m.reduce_add(total.get()), numbers, e.integer(2))
    differences.store(numbers, 3)
    e.finish()
