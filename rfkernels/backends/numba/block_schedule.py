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
    residual: int
    approach: int
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


_ONE, _SCALE, _SQUARE, _LOWEST = 0, 1, 2, 3
"""Where numbers lie that kernels read at an address: 1, the scale, its square and the sentinel."""


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
            call(p.gemm, (x, x_row, 1, t.metric, p.dim_pad, s.y, p.dim_pad, rows, p.dim_pad, p.dim))
            call(p.dots, (x, x_row, s.y, p.dim_pad, n, p.dim_pad, one, t.squares + i * p.element))
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
    rows = _up(listed, p.row_step)
    call(p.gemm, (s.mean, p.dim_pad, 1, t.metric, p.dim_pad, s.mean_y, p.dim_pad, rows, p.dim_pad, p.dim))
    one = t.numbers + _ONE * p.element
    call(p.dots, (s.mean, p.dim_pad, s.mean_y, p.dim_pad, listed, p.dim_pad, one, s.dots))
    columns = (s.far_xt, p.groups_pad + p.column_step, s.far_bend, s.flags)
    call(p.place, (*names, s.mean, p.dim_pad, p.dim, s.squares, s.dots, *columns))


@jit
def _load_block(p: BlockPlan, s: BlockScratch, t: BlockTask, g: Group, first: int, count: int) -> int:
    """Pack the queries of all heads that share the keys below each other; return how many rows that are."""
    rows, q_row = _up(count, p.row_step), p.dim_pad + p.column_step
    for index in range(t.groups):
        source = (g.q[index] + first * t.q_row, t.q_row, t.q_column)
        to = s.query + index * rows * q_row * p.element
        call(p.pack_q, (*source, 0, count, rows, p.dim, t.zeros, to, q_row))
    total = rows * t.groups
    call(p.gemm, (s.query, q_row, 1, t.spread, p.dim_pad, s.y, p.dim_pad, total, p.dim_pad, p.dim))
    square, lowest = t.numbers + _SQUARE * p.element, t.numbers + _LOWEST * p.element
    call(p.dots, (s.query, q_row, s.y, p.dim_pad, total, p.dim_pad, square, s.along))
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
    call(p.gemm_add, (s.scores, scores_row, 1, v, p.width_pad, out, p.width_pad, p.row_step, p.width_pad, columns))


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
    call(p.fill, (s.far_xt, t.zeros, p.dim_pad * (p.groups_pad + p.column_step)))
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
def mass(p: BlockPlan, s: BlockScratch, t: BlockTask, q: int, count: int, out: int) -> int:
    """Write the attention that each key receives on average from `count` queries; the keys are gone through twice."""
    columns, e = _up(count, p.column_step), p.element
    scale = t.numbers + _SCALE * e
    call(p.pack_q, (q, t.q_row, t.q_column, 0, count, columns, p.dim, t.zeros, s.query, p.dim_pad))
    call(p.transpose, (s.query, p.dim_pad, s.xt, columns, columns, p.dim_pad))
    call(p.fill, (s.top, t.numbers + _LOWEST * e, columns))
    call(p.fill, (s.denominator, t.zeros, columns))
    for turn in range(2):
        i = 0
        while i < t.keys:
            n = min(p.tile, t.keys - i)
            rows = _up(n, p.row_step)
            x, x_row = _packed(p, t, 0, i, n, rows, 1, s.x)
            call(p.gemm, (x, x_row, 1, s.xt, columns, s.scores, columns, rows, columns, p.dim))
            if t.mask != 0:
                call(p.hide, (s.scores, columns, n, t.mask + i * t.mask_row, t.mask_row))
            if turn == 0:
                call(p.crest, (s.scores, columns, n, scale, s.top, s.denominator))
            else:
                call(p.share, (s.scores, columns, n, scale, s.top, s.denominator, out + i * e))
            i += n
        if turn == 0:
            call(p.invert, (s.denominator, count, columns))
    return 0


@jit
def spread_out(
    p: BlockPlan,
    s: BlockScratch,
    t: BlockTask,
    weight: int,
    start: tuple[int, int],
    count: int,
    room: tuple[int, int, int],
) -> int:
    """Choose `count` keys from the first of these on, each the farthest from those before by weight times distance.

    Where no key is at any distance the second of these is taken.

    There is room for the keys' products with the metric as columns, a tile after the other, for distances and for the
    numbers of the keys chosen.
    """
    xt, nearest, picked = room
    one = t.numbers + _ONE * p.element
    i = 0
    while i < t.keys:
        n = min(p.tile, t.keys - i)
        rows = _up(n, p.column_step)
        x, x_row = _packed(p, t, 0, i, n, rows, 1, s.x)
        call(p.gemm, (x, x_row, 1, t.metric, p.dim_pad, s.y, p.dim_pad, rows, p.dim_pad, p.dim))
        call(p.dots, (x, x_row, s.y, p.dim_pad, n, p.dim_pad, one, t.squares + i * p.element))
        call(p.transpose, (s.y, p.dim_pad, xt + i * p.dim_pad * p.element, p.tile, rows, p.dim_pad))
        i += n
    at, first = start
    for chosen in range(count):
        x, _ = _packed(p, t, 0, at, 1, 1, 0, s.x)
        given = (xt, p.tile, p.dim_pad, x, t.squares, at, weight, nearest, t.keys, chosen, picked, first)
        at = call(p.approach, given)
    return 0


@jit
def moment(p: BlockPlan, s: BlockScratch, t: BlockTask, out: int) -> int:
    """Add Σ k kᵀ of all keys to a padded square."""
    i, rows = 0, _up(p.dim, p.row_step)
    while i < t.keys:
        n = min(p.tile, t.keys - i)
        x, x_row = _packed(p, t, 0, i, n, n, 0, s.x)
        call(p.gemm_add, (x, 1, x_row, x, x_row, out, p.dim_pad, rows, p.dim_pad, n))
        i += n
    return 0


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
