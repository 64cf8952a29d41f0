"""Schedules of passes over blocks: like `schedule`."""

from __future__ import annotations

from rfkernels.backends.numba.block_records import LOWEST, ONE, SCALE, SQUARE, BlockPlan, BlockScratch, BlockTask
from rfkernels.backends.numba.compiling import call, entry, jit, up
from rfkernels.backends.numba.records import view
from rfkernels.backends.numba.schedule_records import queries_at


@jit
def packed(
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
def forms(p: BlockPlan, x: tuple[int, int], form: int, y: int, rows: tuple[int, int], factor: int, out: int) -> None:
    """Take factor · xᵀ F x of rows, padded and not, F being lower triangular: what is above is left out."""
    start, e = 0, p.element
    while start < p.dim:
        part = form + (start * p.dim_pad + start) * e
        sizes = (rows[0], p.column_step, p.dim - start)
        call(p.gemm, (x[0] + start * e, x[1], 1, part, p.dim_pad, y + start * e, p.dim_pad, *sizes))
        start += p.column_step
    call(p.dots, (*x, y, p.dim_pad, rows[1], p.dim_pad, factor, out))


@jit
def assign(p: BlockPlan, s: BlockScratch, t: BlockTask, low: int, high: int, squares: int) -> None:
    """Label keys low <= i < high, and take their squares if there is room for them, at an address."""
    i, scores_row = low, p.groups_pad + p.column_step
    one = t.numbers + ONE * p.element
    while i < high:
        n = min(p.tile, high - i)
        rows = up(n, p.row_step)
        x, x_row = packed(p, t, 0, i, n, rows, 1, s.x)
        call(p.gemm, (x, x_row, 1, t.drawn, p.groups_pad, s.scores, scores_row, rows, p.groups_pad, p.dim))
        mask = 0 if t.mask == 0 else t.mask + i * t.mask_row
        call(p.pick, (s.scores, scores_row, n, p.groups_pad, t.offset, mask, t.mask_row, t.labels + 4 * i))
        if squares != 0:
            forms(p, (x, x_row), t.metric, s.y, (rows, n), one, squares + i * p.element)
        i += n


@jit
def gather(p: BlockPlan, s: BlockScratch, t: BlockTask, low: int, high: int, sums: int) -> None:
    """Add labelled keys low <= i < high to sums."""
    i = max(low, 0)
    high = min(high, t.keys)
    while i < high:
        n = min(p.tile, high - i)
        k, k_row = packed(p, t, 0, i, n, n, 0, s.x)
        v, v_row = packed(p, t, 1, i, n, n, 0, s.v)
        given = (t.labels + 4 * i, t.squares + i * p.element, k, k_row, v, v_row, n)
        call(p.scatter, (*given, p.dim_pad, p.width_pad, sums, p.sums_row))
        i += n


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
def refresh(p: BlockPlan, s: BlockScratch, t: BlockTask, after: int, listed: int) -> None:
    """Take the means of the listed groups anew; no metric is that of Euclid."""
    names = (s.list, listed)
    means = (s.mean, p.dim_pad, s.far_v, p.width_pad, s.far_term, s.squares)
    call(p.means, (*names, t.before, after, p.sums_row, p.dim_pad, p.width_pad, *means))
    rows, one = up(listed, p.row_step), t.numbers + ONE * p.element
    if t.metric == 0:
        call(p.dots, (s.mean, p.dim_pad, s.mean, p.dim_pad, listed, p.dim_pad, one, s.dots))
    else:
        forms(p, (s.mean, p.dim_pad), t.metric, s.mean_y, (rows, listed), one, s.dots)
    call(p.place, (*names, s.mean, p.dim_pad, s.squares, s.dots, s.far_x, s.far_bend, s.flags))
    call(p.transpose, (s.far_x, p.dim_pad, s.far_xt, p.far_row, p.groups_pad, p.dim_pad))


@jit
def load_block(p: BlockPlan, s: BlockScratch, t: BlockTask, first: int, count: int) -> int:
    """Pack the queries of all heads that share the keys below each other; return how many rows that are."""
    rows, q_row = up(count, p.row_step), p.dim_pad + p.column_step
    for index in range(t.groups):
        source = (queries_at(t.queries, index).q + first * t.q_row, t.q_row, t.q_column)
        to = s.query + index * rows * q_row * p.element
        call(p.pack_q, (*source, 0, count, rows, p.dim, t.zeros, to, q_row))
    total = rows * t.groups
    square, lowest = t.numbers + SQUARE * p.element, t.numbers + LOWEST * p.element
    forms(p, (s.query, q_row), t.spread, s.y, (total, total), square, s.along)
    call(p.fill, (s.out, t.zeros, total * p.width_pad))
    call(p.fill, (s.denominator, t.zeros, up(total, p.column_step)))
    call(p.fill, (s.top, lowest, up(total, p.column_step)))
    return total


@jit
def _add_rows(
    p: BlockPlan,
    s: BlockScratch,
    t: BlockTask,
    span: tuple[int, int],
    keys: tuple[int, int, int, int, int],
    bend: int,
    high: int,
    step: int,
    scores: int,
) -> None:
    """Add the weights of a tile of keys (transposed keys, values, terms, columns) to queries: a first and a count.

    Row i of them sees columns c < high + step · i, all if step is 0; if it is negative, those whose positions are at
    most high + i. Weights stay where the scores are.
    """
    (xt, xt_row, v, term, columns), (r, count) = keys, span
    e, q_row, scores_row = p.element, p.dim_pad + p.column_step, columns + p.column_step
    query = s.query + r * q_row * e
    call(p.gemm, (query, q_row, 1, xt, xt_row, scores, scores_row, count, columns, p.dim))
    out, scale = s.out + r * p.width_pad * e, t.numbers + SCALE * e
    weigh = p.weigh_bent if bend != 0 else (p.weigh_cut if step != 0 else p.weigh)
    rows = count if step >= 0 else 1
    for i in range(0, count, rows):
        seen = high if step >= 0 else call(p.below, (t.heavy_positions, p.heavy, high + i))
        limits = (scores + i * scores_row * e, scores_row, rows, columns, seen, max(step, 0))
        sums = (s.top + (r + i) * e, out + i * p.width_pad * e, p.width_pad, p.width_pad, s.denominator + (r + i) * e)
        call(weigh, (*limits, term, bend, s.along + (r + i) * e, s.moved + (r + i) * e, scale, *sums))
    depth = min(columns, high) if step == 0 else columns
    call(p.gemm_add, (scores, scores_row, 1, v, p.width_pad, out, p.width_pad, count, p.width_pad, depth))


@jit
def add_groups(p: BlockPlan, s: BlockScratch, t: BlockTask, total: int, kept: int) -> None:
    """Add the groups; there may be room to keep the weights of all rows."""
    far = (s.far_xt, p.far_row, s.far_v, s.far_term, p.groups_pad)
    row = (p.groups_pad + p.column_step) * p.element
    for r in range(0, total, p.rows_at_once):
        span, scores = (r, min(p.rows_at_once, total - r)), s.scores if kept == 0 else kept + r * row
        _add_rows(p, s, t, span, far, s.far_bend, p.groups, 0, scores)
    if t.cross != 0:
        query = (s.query, p.dim_pad + p.column_step)
        call(p.gemm, (*query, 1, t.cross, p.width_pad, s.direction, p.width_pad, total, p.width_pad, p.dim))
        scale = t.numbers + SCALE * p.element
        call(p.move, (s.out, p.width_pad, total, p.width_pad, s.direction, s.moved, s.along, scale))


@jit
def add_heavy(p: BlockPlan, s: BlockScratch, t: BlockTask, total: int, rows: int, position: int) -> None:
    """Add the heavy keys; `position` is that of the first of so many rows of each head."""
    if p.heavy == 0:
        return
    heavy = (t.heavy_xt, p.heavy_pad, t.heavy_v, t.heavy_term, p.heavy_pad)
    late = p.causal and call(p.below, (t.heavy_positions, p.heavy, position)) < p.heavy
    r = 0
    while r < total:
        span = r, min(p.rows_at_once, rows - r % rows)
        if late:
            _add_rows(p, s, t, span, heavy, 0, position + r % rows, -1, s.scores)
        else:
            _add_rows(p, s, t, span, heavy, 0, p.heavy, 0, s.scores)
        r += span[1]


@jit
def add_near(
    p: BlockPlan, s: BlockScratch, t: BlockTask, total: int, first: int, count: int, low: int, high: int, kept: int
) -> int:
    """Add the exact weights of keys low <= i < high, as many as fit in a tile, to queries from `first`.

    There may be room to keep the weights of all rows. Returns the key to go on with.
    """
    rows, near_row, e = up(count, p.row_step), p.band_tile + p.column_step, p.element
    n = min(p.band_tile, high - low)
    columns = up(n, p.column_step)
    x, x_row = packed(p, t, 0, low, n, columns, 1, s.x)
    v, _ = packed(p, t, 1, low, n, columns, 1, s.v)
    mask = 0 if t.mask == 0 else t.mask + low * t.mask_row
    call(p.allowed, (mask, t.mask_row, 0, n, columns, s.term))
    call(p.transpose, (x, x_row, s.xt, near_row, columns, p.dim_pad))
    r = 0
    while r < total:
        span = r, min(p.rows_at_once, rows - r % rows)
        seen, step, wide = columns, 0, columns
        if p.causal:
            seen, step = first + r % rows + t.delta - low + 1, 1
            if kept == 0:
                wide = min(columns, up(max(seen + span[1] - 1, 0), p.column_step))
        if seen >= columns:
            step = 0
        if wide > 0:
            scores = s.scores if kept == 0 else kept + r * (columns + p.column_step) * e
            _add_rows(p, s, t, span, (s.xt, near_row, v, s.term, wide), 0, seen, step, scores)
        r += span[1]
    return low + n


@jit
def store_block(p: BlockPlan, s: BlockScratch, t: BlockTask, first: int, count: int) -> None:
    """Normalise and write the sums of queries from `first`."""
    e, rows = p.element, up(count, p.row_step)
    for index in range(t.groups):
        r, g = index * rows, queries_at(t.queries, index)
        if g.denominator != 0:
            call(p.copy, (s.denominator + r * e, g.denominator + first * e, count))
            call(p.copy, (s.top + r * e, g.shift + first * e, count))
        out, sums = g.out + first * t.out_row, s.out + r * p.width_pad * e
        call(p.unpack, (sums, p.width_pad, s.denominator + r * e, count, p.width, out, t.out_row))


@jit
def clear(p: BlockPlan, s: BlockScratch, t: BlockTask) -> int:
    """Forget all groups and list them as changed; return how many those are."""
    call(p.fill, (s.far_x, t.zeros, p.groups_pad * p.dim_pad))
    call(p.fill, (s.far_v, t.zeros, p.groups_pad * p.width_pad))
    call(p.fill, (s.far_bend, t.zeros, p.groups_pad))
    call(p.fill, (s.far_term, t.numbers + LOWEST * p.element, p.groups_pad))
    call(p.fill, (s.flags, t.zeros, p.groups_pad))
    return call(p.touch, (t.every, p.groups, s.flags, s.list, 0))


@entry
def label(plan: int, scratch: int, task: int, low: int, high: int, sums: int) -> int:
    """Label keys low <= i < high, take their squares, and add them to sums if these are not at 0."""
    p, s, t = view(BlockPlan, plan), view(BlockScratch, scratch), view(BlockTask, task)
    assign(p, s, t, low, high, t.squares)
    if sums != 0:
        gather(p, s, t, low, high, sums)
    return 0


@entry
def blocks(plan: int, scratch: int, task: int, low: int, high: int) -> int:
    """Let queries low <= i < high of a head see near and heavy keys, and groups of all others."""
    p, s, t = view(BlockPlan, plan), view(BlockScratch, scratch), view(BlockTask, task)
    listed = clear(p, s, t)
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
            refresh(p, s, t, after, listed)
            listed = 0
        total = load_block(p, s, t, i, n)
        add_groups(p, s, t, total, 0)
        add_heavy(p, s, t, total, up(n, p.row_step), i + t.delta)
        while start < stop:
            start = add_near(p, s, t, total, i, n, start, stop, 0)
        store_block(p, s, t, i, n)
        i += n
    gather(p, s, t, absorbed, t.until, t.before)
    return 0


@entry
def multiply(plan: int, x: int, y: int, out: int, rows: int) -> None:
    """Multiply padded rows by a padded square."""
    p = view(BlockPlan, plan)
    call(p.gemm, (x, p.dim_pad, 1, y, p.dim_pad, out, p.dim_pad, rows, p.dim_pad, p.dim))
