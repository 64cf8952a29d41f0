"""Schedules of passes over blocks and of the steps that find groups: like `schedule`, with a cache of their own.

Numba's cache notices a change of this file alone. All that is compiled into it from elsewhere is `schedule.call`. Its
source has the digest `CALL`, which a test compares, so that it does not change unless this file does.
"""

from __future__ import annotations

from typing import NamedTuple

from rfkernels.backends.numba.schedule import Group, call, jit

CALL = "f7a3c60c7864d004"


class BlockPlan(NamedTuple):
    """What is the same for every head of a pass over blocks: kernels by address, sizes in elements."""

    gemm: int
    gemm_add: int
    pack_q: int
    pack_k: int
    pack_v: int
    unpack: int
    transpose: int
    copy: int
    fill: int
    allowed: int
    pick: int
    dots: int
    scatter: int
    touch: int
    below: int
    means: int
    place: int
    weigh: int
    weigh_cut: int
    weigh_bent: int
    move: int
    hide: int
    crest: int
    invert: int
    share: int
    relevel: int
    residual: int
    shrink: int
    approach: int
    turn: int
    element: int
    tile: int
    band_tile: int
    row_step: int
    column_step: int
    dim: int
    dim_pad: int
    width: int
    width_pad: int
    groups: int
    groups_pad: int
    sums_row: int
    heavy: int
    heavy_pad: int
    block: int
    reach: int
    causal: int


class BlockScratch(NamedTuple):
    """Addresses of the working memory of one thread in a pass over blocks."""

    x: int
    xt: int
    v: int
    term: int
    y: int
    scores: int
    query: int
    along: int
    moved: int
    direction: int
    out: int
    denominator: int
    top: int
    list: int
    flags: int
    mean: int
    mean_y: int
    squares: int
    dots: int
    far_x: int
    far_xt: int
    far_v: int
    far_term: int
    far_bend: int


class BlockTask(NamedTuple):
    """Some queries of one head: addresses of row 0, strides in bytes, sums over the keys far from the first block.

    Query i stands at key i + delta. `before` holds the keys below `absorbed`, and those below `until` when the task is
    done; `after`, if not 0, those far behind the last block. `shelf` has room for sums of as many blocks as `together`
    says and of every one whose number it divides.
    """

    k: int
    k_row: int
    k_column: int
    v: int
    v_row: int
    v_column: int
    mask: int
    mask_row: int
    q_row: int
    q_column: int
    out_row: int
    keys: int
    k_plain: int
    v_plain: int
    labels: int
    squares: int
    every: int
    drawn: int
    offset: int
    metric: int
    spread: int
    cross: int
    numbers: int
    zeros: int
    heavy_xt: int
    heavy_v: int
    heavy_term: int
    heavy_positions: int
    before: int
    after: int
    shelf: int
    together: int
    absorbed: int
    until: int
    delta: int
    groups: int


class Search(NamedTuple):
    """Where groups of one head are found: addresses of what is given, of working memory and of results.

    Parameters
    ----------
    q, queries : int
        Rows of queries, with the strides of the task, and how many there are.
    weight : int
        Of each key, for whole tiles.
    at, first : int
        The key to begin with, and the one that is taken again where keys that differ have run out.
    xt, squares, nearest : int
        Of all keys: products with the metric as columns, a tile after the other, squares, and squared distances.
    bounds, fresh, places : int
        Of each tile: its largest weight times distance, how many centres it is known for, and the key that has it.
    own, drawn : int
        Of each centre: its square, and its product with the metric.
    metric, centres, covariance, cross : int
        The results, padded; squares and `cross` are zero at first, as is `metric`.
    """

    q: int
    queries: int
    weight: int
    at: int
    first: int
    xt: int
    squares: int
    nearest: int
    bounds: int
    fresh: int
    places: int
    own: int
    drawn: int
    metric: int
    centres: int
    covariance: int
    cross: int


_ONE, _SCALE, _SQUARE, _LOWEST, _SHARE, _HALF = 0, 1, 2, 3, 4, 5
"""Where numbers lie that kernels read at an address: 1, the scale, its square and the sentinel; and in a search 1 over
the number of queries, and −1/2."""


@jit
def _up(n: int, step: int) -> int:
    return (n + step - 1) // step * step


@jit
def _packed(
    p: BlockPlan, t: BlockTask, value: int, start: int, count: int, rows: int, whole: int, out: int
) -> tuple[int, int]:
    """Return where `count` keys, or values, from `start` lie padded, and their stride; `whole` if also in rows."""
    if value:
        if t.v_plain and (not whole or count == rows):
            return t.v + start * t.v_row, p.width_pad
        source = (t.v + start * t.v_row, t.v_row, t.v_column)
        call(p.pack_v, (*source, 0, count, rows, p.width, t.zeros, out, p.width_pad))
        return out, p.width_pad
    if t.k_plain and (not whole or count == rows):
        return t.k + start * t.k_row, p.dim_pad
    row = p.dim_pad + p.column_step
    call(p.pack_k, (t.k + start * t.k_row, t.k_row, t.k_column, 0, count, rows, p.dim, t.zeros, out, row))
    return out, row


@jit
def _forms(p: BlockPlan, x: tuple[int, int], form: int, y: int, rows: tuple[int, int], factor: int, out: int) -> None:
    """Take factor · xᵀ F x of rows, padded and not, F being lower triangular: what is above is left out."""
    start, e = 0, p.element
    while start < p.dim:
        part = form + (start * p.dim_pad + start) * e
        sizes = (rows[0], p.column_step, p.dim - start)
        call(p.gemm, (x[0] + start * e, x[1], 1, part, p.dim_pad, y + start * e, p.dim_pad, *sizes))
        start += p.column_step
    call(p.dots, (*x, y, p.dim_pad, rows[1], p.dim_pad, factor, out))


@jit
def assign(p: BlockPlan, s: BlockScratch, t: BlockTask, low: int, high: int) -> int:
    """Label keys low <= i < high, and take their squares where there is room for them."""
    i, scores_row = low, p.groups_pad + p.column_step
    one = t.numbers + _ONE * p.element
    while i < high:
        n = min(p.tile, high - i)
        rows = _up(n, p.row_step)
        x, x_row = _packed(p, t, 0, i, n, rows, 1, s.x)
        call(p.gemm, (x, x_row, 1, t.drawn, p.groups_pad, s.scores, scores_row, rows, p.groups_pad, p.dim))
        mask = 0 if t.mask == 0 else t.mask + i * t.mask_row
        call(p.pick, (s.scores, scores_row, n, p.groups_pad, t.offset, mask, t.mask_row, t.labels + 4 * i))
        if t.squares != 0:
            _forms(p, (x, x_row), t.metric, s.y, (rows, n), one, t.squares + i * p.element)
        i += n
    return 0


@jit
def gather(p: BlockPlan, s: BlockScratch, t: BlockTask, low: int, high: int, sums: int) -> int:
    """Add labelled keys low <= i < high to sums."""
    i = max(low, 0)
    high = min(high, t.keys)
    while i < high:
        n = min(p.tile, high - i)
        k, k_row = _packed(p, t, 0, i, n, n, 0, s.x)
        v, v_row = _packed(p, t, 1, i, n, n, 0, s.v)
        given = (t.labels + 4 * i, t.squares + i * p.element, k, k_row, v, v_row, n)
        call(p.scatter, (*given, p.dim_pad, p.width_pad, sums, p.sums_row))
        i += n
    return 0


@jit
def _touched(p: BlockPlan, s: BlockScratch, t: BlockTask, low: int, high: int, listed: int) -> int:
    """List the groups of keys low <= i < high as changed."""
    low, high = max(low, 0), min(high, t.keys)
    return call(p.touch, (t.labels + 4 * low, max(high - low, 0), s.flags, s.list, listed))


@jit
def _shelve(p: BlockPlan, s: BlockScratch, t: BlockTask, first: int, last: int) -> None:
    """Keep the sums behind the last block of every so many, from the end on; `last` is the last block."""
    size = p.groups * p.sums_row
    stacks = (last - first) // t.together + 1
    kept = t.shelf + t.together * size * p.element
    call(p.copy, (t.after, kept + (stacks - 1) * size * p.element, size))
    for stack in range(stacks - 1, 0, -1):
        own = kept + stack * size * p.element
        to = own - size * p.element
        call(p.copy, (own, to, size))
        start = first + stack * t.together
        stop = min(start + t.together - 1, last)
        gather(p, s, t, (start + p.reach) * p.block, (stop + p.reach + 1) * p.block, to)


@jit
def _unshelve(p: BlockPlan, s: BlockScratch, t: BlockTask, first: int, last: int, block: int) -> None:
    """Rebuild the sums behind each block from this one, the first of so many, to the last of them."""
    size = p.groups * p.sums_row
    stack = (block - first) // t.together
    stop = min(block + t.together - 1, last)
    call(p.copy, (t.shelf + (t.together + stack) * size * p.element, t.shelf + (stop - block) * size * p.element, size))
    for own in range(stop - 1, block - 1, -1):
        to = t.shelf + (own - block) * size * p.element
        call(p.copy, (to + size * p.element, to, size))
        gather(p, s, t, (own + p.reach + 1) * p.block, (own + p.reach + 2) * p.block, to)


@jit
def _refresh(p: BlockPlan, s: BlockScratch, t: BlockTask, after: int, listed: int) -> None:
    """Take the means of the listed groups anew."""
    names = (s.list, listed)
    means = (s.mean, p.dim_pad, s.far_v, p.width_pad, s.far_term, s.squares)
    call(p.means, (*names, t.before, after, p.sums_row, p.dim_pad, p.width_pad, *means))
    rows, one = _up(listed, p.row_step), t.numbers + _ONE * p.element
    _forms(p, (s.mean, p.dim_pad), t.metric, s.mean_y, (rows, listed), one, s.dots)
    call(p.place, (*names, s.mean, p.dim_pad, s.squares, s.dots, s.far_x, s.far_bend, s.flags))
    call(p.transpose, (s.far_x, p.dim_pad, s.far_xt, p.groups_pad + p.column_step, p.groups_pad, p.dim_pad))


@jit
def _load_block(p: BlockPlan, s: BlockScratch, t: BlockTask, g: Group, first: int, count: int) -> int:
    """Pack the queries of all heads that share the keys below each other; return how many rows that are."""
    rows, q_row = _up(count, p.row_step), p.dim_pad + p.column_step
    for index in range(t.groups):
        source = (g.q[index] + first * t.q_row, t.q_row, t.q_column)
        to = s.query + index * rows * q_row * p.element
        call(p.pack_q, (*source, 0, count, rows, p.dim, t.zeros, to, q_row))
    total = rows * t.groups
    square, lowest = t.numbers + _SQUARE * p.element, t.numbers + _LOWEST * p.element
    _forms(p, (s.query, q_row), t.spread, s.y, (total, total), square, s.along)
    call(p.fill, (s.out, t.zeros, total * p.width_pad))
    call(p.fill, (s.denominator, t.zeros, _up(total, p.column_step)))
    call(p.fill, (s.top, lowest, _up(total, p.column_step)))
    return total


@jit
def _add_rows(
    p: BlockPlan,
    s: BlockScratch,
    t: BlockTask,
    r: int,
    keys: tuple[int, int, int, int, int],
    bend: int,
    high: int,
    step: int,
) -> None:
    """Add the weights of a tile of keys (transposed keys, values, terms, columns) to one register tile of queries.

    Row i of them sees columns c < high + step · i, all if step is 0; if it is negative, those whose positions are at
    most high + i.
    """
    xt, xt_row, v, term, columns = keys
    e, q_row, scores_row = p.element, p.dim_pad + p.column_step, columns + p.column_step
    query = s.query + r * q_row * e
    call(p.gemm, (query, q_row, 1, xt, xt_row, s.scores, scores_row, p.row_step, columns, p.dim))
    out, scale = s.out + r * p.width_pad * e, t.numbers + _SCALE * e
    weigh = p.weigh_bent if bend != 0 else (p.weigh_cut if step != 0 else p.weigh)
    rows = p.row_step if step >= 0 else 1
    for i in range(0, p.row_step, rows):
        seen = high if step >= 0 else call(p.below, (t.heavy_positions, p.heavy, high + i))
        limits = (s.scores + i * scores_row * e, scores_row, rows, columns, seen, max(step, 0))
        sums = (s.top + (r + i) * e, out + i * p.width_pad * e, p.width_pad, p.width_pad, s.denominator + (r + i) * e)
        call(weigh, (*limits, term, bend, s.along + (r + i) * e, s.moved + (r + i) * e, scale, *sums))
    depth = min(columns, high) if step == 0 else columns
    call(p.gemm_add, (s.scores, scores_row, 1, v, p.width_pad, out, p.width_pad, p.row_step, p.width_pad, depth))


@jit
def _add_far(p: BlockPlan, s: BlockScratch, t: BlockTask, total: int, rows: int, position: int) -> None:
    """Add the groups and the heavy keys; `position` is that of the first of so many rows of each head."""
    far = (s.far_xt, p.groups_pad + p.column_step, s.far_v, s.far_term, p.groups_pad)
    heavy = (t.heavy_xt, p.heavy_pad, t.heavy_v, t.heavy_term, p.heavy_pad)
    late = p.causal and call(p.below, (t.heavy_positions, p.heavy, position)) < p.heavy
    for r in range(0, total, p.row_step):
        _add_rows(p, s, t, r, far, s.far_bend, p.groups, 0)
    if t.cross != 0:
        query = (s.query, p.dim_pad + p.column_step)
        call(p.gemm, (*query, 1, t.cross, p.width_pad, s.direction, p.width_pad, total, p.width_pad, p.dim))
        scale = t.numbers + _SCALE * p.element
        call(p.move, (s.out, p.width_pad, total, p.width_pad, s.direction, s.moved, s.along, scale))
    for r in range(0, total, p.row_step):
        if p.heavy != 0 and late:
            _add_rows(p, s, t, r, heavy, 0, position + r % rows, -1)
        elif p.heavy != 0:
            _add_rows(p, s, t, r, heavy, 0, p.heavy, 0)


@jit
def _add_near(
    p: BlockPlan, s: BlockScratch, t: BlockTask, total: int, first: int, count: int, low: int, high: int
) -> None:
    """Add the exact weights of keys low <= i < high to queries from `first`."""
    rows, near_row, start = _up(count, p.row_step), p.band_tile + p.column_step, low
    while start < high:
        n = min(p.band_tile, high - start)
        columns = _up(n, p.column_step)
        x, x_row = _packed(p, t, 0, start, n, columns, 1, s.x)
        v, _ = _packed(p, t, 1, start, n, columns, 1, s.v)
        mask = 0 if t.mask == 0 else t.mask + start * t.mask_row
        call(p.allowed, (mask, t.mask_row, 0, n, columns, s.term))
        call(p.transpose, (x, x_row, s.xt, near_row, columns, p.dim_pad))
        for r in range(0, total, p.row_step):
            seen, step = columns, 0
            if p.causal:
                seen, step = first + r % rows + t.delta - start + 1, 1
            wide = min(columns, _up(max(seen + p.row_step - 1, 0), p.column_step))
            if seen >= columns:
                step = 0
            if wide > 0:
                _add_rows(p, s, t, r, (s.xt, near_row, v, s.term, wide), 0, seen, step)
        start += n


@jit
def _store_block(p: BlockPlan, s: BlockScratch, t: BlockTask, g: Group, first: int, count: int) -> None:
    """Normalise and write the sums of queries from `first`."""
    e, rows = p.element, _up(count, p.row_step)
    for index in range(t.groups):
        r = index * rows
        if g.denominator[index] != 0:
            call(p.copy, (s.denominator + r * e, g.denominator[index] + first * e, count))
            call(p.copy, (s.top + r * e, g.shift[index] + first * e, count))
        out, sums = g.out[index] + first * t.out_row, s.out + r * p.width_pad * e
        call(p.unpack, (sums, p.width_pad, s.denominator + r * e, count, p.width, out, t.out_row))


@jit
def blocks(p: BlockPlan, s: BlockScratch, t: BlockTask, g: Group, low: int, high: int) -> int:
    """Let queries low <= i < high see near and heavy keys, and groups of all others."""
    call(p.fill, (s.far_x, t.zeros, p.groups_pad * p.dim_pad))
    call(p.fill, (s.far_v, t.zeros, p.groups_pad * p.width_pad))
    call(p.fill, (s.far_bend, t.zeros, p.groups_pad))
    call(p.fill, (s.far_term, t.numbers + _LOWEST * p.element, p.groups_pad))
    call(p.fill, (s.flags, t.zeros, p.groups_pad))
    listed = call(p.touch, (t.every, p.groups, s.flags, s.list, 0))
    absorbed, after, i = t.absorbed, 0, low
    first, last = (low + t.delta) // p.block, (high - 1 + t.delta) // p.block
    if t.after != 0 and low < high:
        _shelve(p, s, t, first, last)
    while i < high:
        block = (i + t.delta) // p.block
        n = min((block + 1) * p.block - t.delta, high) - i
        start, stop = 0, 0
        if p.reach >= 0:
            start = min(max(block - p.reach, 0) * p.block, t.keys)
            stop = min((block + 1 + (0 if p.causal else p.reach)) * p.block, t.keys)
            if start > absorbed:
                gather(p, s, t, absorbed, start, t.before)
                listed = _touched(p, s, t, absorbed, start, listed)
                absorbed = start
        if t.after != 0:
            if (block - first) % t.together == 0:
                _unshelve(p, s, t, first, last, block)
            after = t.shelf + (block - first) % t.together * p.groups * p.sums_row * p.element
            listed = _touched(p, s, t, (block + p.reach) * p.block, (block + p.reach + 1) * p.block, listed)
        if listed != 0:
            _refresh(p, s, t, after, listed)
            listed = 0
        total = _load_block(p, s, t, g, i, n)
        _add_far(p, s, t, total, _up(n, p.row_step), i + t.delta)
        _add_near(p, s, t, total, i, n, start, stop)
        _store_block(p, s, t, g, i, n)
        i += n
    gather(p, s, t, absorbed, t.until, t.before)
    return 0


@jit
def mass(p: BlockPlan, s: BlockScratch, t: BlockTask, q: int, count: int, out: int, room: int) -> int:
    """Write the attention that each key receives on average from `count` queries.

    There is room for the weights of whole tiles and a log scale for each tile; if not (0), all is computed twice.
    """
    columns, e = _up(count, p.column_step), p.element
    scale, one, stride = t.numbers + _SCALE * e, t.numbers + _ONE * e, (p.tile + 1) * columns * e
    call(p.pack_q, (q, t.q_row, t.q_column, 0, count, columns, p.dim, t.zeros, s.query, p.dim_pad))
    call(p.transpose, (s.query, p.dim_pad, s.xt, columns, columns, p.dim_pad))
    call(p.fill, (s.top, t.numbers + _LOWEST * e, columns))
    call(p.fill, (s.denominator, t.zeros, columns))
    for turn in range(2):
        i = 0
        while i < t.keys:
            n = min(p.tile, t.keys - i)
            rows = _up(n, p.row_step)
            scores = s.scores if room == 0 else room + i // p.tile * stride
            level = scores + p.tile * columns * e
            if turn == 0 or room == 0:
                x, x_row = _packed(p, t, 0, i, n, rows, 1, s.x)
                call(p.gemm, (x, x_row, 1, s.xt, columns, scores, columns, rows, columns, p.dim))
                if t.mask != 0:
                    call(p.hide, (scores, columns, n, t.mask + i * t.mask_row, t.mask_row))
            if turn == 0:
                call(p.crest, (scores, columns, n, scale, s.top, s.denominator, 0 if room == 0 else level))
            elif room == 0:
                call(p.share, (scores, columns, n, scale, s.top, s.denominator, out + i * e))
            else:
                call(p.relevel, (level, s.top, s.denominator, columns))
                call(p.dots, (scores, columns, level, 0, n, columns, one, out + i * e))
            i += n
        if turn == 0:
            call(p.invert, (s.denominator, count, columns))
    return 0


@jit
def _measure(p: BlockPlan, s: BlockScratch, t: BlockTask, f: Search) -> None:
    """Take the second moment of queries, and what distances of keys are taken from."""
    i, rows, row, e = 0, _up(p.dim, p.row_step), p.dim_pad + p.column_step, p.element
    while i < f.queries:
        n = min(p.tile, f.queries - i)
        call(p.pack_q, (f.q + i * t.q_row, t.q_row, t.q_column, 0, n, n, p.dim, t.zeros, s.x, row))
        call(p.gemm_add, (s.x, 1, row, s.x, row, f.metric, p.dim_pad, rows, p.dim_pad, n))
        i += n
    call(p.shrink, (f.metric, t.numbers + _SHARE * e, p.dim_pad * p.dim_pad))
    i = 0
    while i < t.keys:
        x, x_row = _packed(p, t, 0, i, min(p.tile, t.keys - i), p.tile, 1, s.x)
        call(p.gemm, (x, x_row, 1, f.metric, p.dim_pad, s.y, p.dim_pad, p.tile, p.dim_pad, p.dim))
        call(p.dots, (x, x_row, s.y, p.dim_pad, p.tile, p.dim_pad, t.numbers + _ONE * e, f.squares + i * e))
        call(p.transpose, (s.y, p.dim_pad, f.xt + i * p.dim_pad * e, p.tile, p.tile, p.dim_pad))
        i += p.tile


@jit
def _spread_out(p: BlockPlan, s: BlockScratch, t: BlockTask, f: Search) -> None:
    """Choose keys as centres, each the farthest from those before by weight times distance.

    What is known of a tile is a bound once there are more centres: only where it is the largest is it taken anew.
    """
    at, e, tiles = f.at, p.element, (t.keys + p.tile - 1) // p.tile
    for chosen in range(p.groups):
        centre = f.centres + chosen * p.dim_pad * e
        call(p.pack_k, (t.k + at * t.k_row, t.k_row, t.k_column, 0, 1, 1, p.dim, t.zeros, centre, p.dim_pad))
        call(p.copy, (f.squares + at * e, f.own + chosen * e, 1))
        if chosen + 1 == p.groups:
            break
        at = -1
        while at < 0:
            found = call(p.turn, (f.bounds, f.fresh, f.places, tiles, chosen + 1, f.first))
            if found < 0:
                at = -1 - found
            else:
                tile, known = found >> 32, found & 0xFFFFFFFF
                first, missing = tile * p.tile, chosen + 1 - known
                rows = _up(missing, p.row_step)
                centres, xt = f.centres + known * p.dim_pad * e, f.xt + first * p.dim_pad * e
                call(p.gemm, (centres, p.dim_pad, 1, xt, p.tile, s.scores, p.tile, rows, p.tile, p.dim))
                own = (f.squares + first * e, f.weight + first * e, f.nearest + first * e)
                best = (f.bounds + tile * e, f.places + 8 * tile, first)
                call(p.approach, (s.scores, p.tile, missing, f.own + known * e, known, *own, *best))


@jit
def find(p: BlockPlan, s: BlockScratch, t: BlockTask, u: BlockTask, f: Search) -> int:
    """Find groups of the keys of `t`, and what is left of keys and values within; `u` has no place for squares."""
    e = p.element
    _measure(p, s, t, f)
    _spread_out(p, s, t, f)
    call(p.gemm, (f.centres, p.dim_pad, 1, f.metric, p.dim_pad, f.drawn, p.dim_pad, p.groups_pad, p.dim_pad, p.dim))
    call(p.fill, (t.offset, t.numbers + _LOWEST * e, p.groups_pad))
    call(p.dots, (f.centres, p.dim_pad, f.drawn, p.dim_pad, p.groups, p.dim_pad, t.numbers + _HALF * e, t.offset))
    call(p.transpose, (f.drawn, p.dim_pad, t.drawn, p.groups_pad, p.groups_pad, p.dim_pad))
    assign(p, s, u, 0, t.keys)
    return within(p, s, t, f.covariance, f.cross)


@jit
def within(p: BlockPlan, s: BlockScratch, t: BlockTask, out: int, cross: int) -> int:
    """Add Σ k kᵀ and Σ k vᵀ, of what is left of keys and values less the means of their groups."""
    gather(p, s, t, 0, t.keys, t.before)
    means = (s.mean, p.dim_pad, s.far_v, p.width_pad, s.far_term, s.squares)
    call(p.means, (t.every, p.groups, t.before, 0, p.sums_row, p.dim_pad, p.width_pad, *means))
    i, rows, x_row = 0, _up(p.dim, p.row_step), p.dim_pad + p.column_step
    while i < t.keys:
        n = min(p.tile, t.keys - i)
        labels = t.labels + 4 * i
        k, k_row = _packed(p, t, 0, i, n, n, 0, s.x)
        call(p.residual, (labels, k, k_row, n, p.dim_pad, s.mean, s.x, x_row))
        call(p.gemm_add, (s.x, 1, x_row, s.x, x_row, out, p.dim_pad, rows, p.dim_pad, n))
        v, v_row = _packed(p, t, 1, i, n, n, 0, s.v)
        call(p.residual, (labels, v, v_row, n, p.width_pad, s.far_v, s.v, p.width_pad))
        call(p.gemm_add, (s.x, 1, x_row, s.v, p.width_pad, cross, p.width_pad, rows, p.width_pad, n))
        i += n
    return 0


@jit
def multiply(p: BlockPlan, x: int, y: int, out: int, rows: int) -> None:
    """Multiply padded rows by a padded square."""
    call(p.gemm, (x, p.dim_pad, 1, y, p.dim_pad, out, p.dim_pad, rows, p.dim_pad, p.dim))
