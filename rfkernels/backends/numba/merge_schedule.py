"""Schedule of causal passes whose groups are merged from the keys that leave: like `block_schedule`.

What is merged with what is specified by `rfkernels.grouping.merging`.
"""

from __future__ import annotations

from rfkernels.backends.numba.block_records import ONE, BlockPlan, BlockScratch, BlockTask, Merging
from rfkernels.backends.numba.block_schedule import (
    add_groups,
    add_heavy,
    add_near,
    clear,
    load_block,
    packed,
    refresh,
    store_block,
)
from rfkernels.backends.numba.compiling import call, entry, jit, up
from rfkernels.backends.numba.records import view


@jit
def _owner(m: Merging, point: int) -> int:
    while m.owner[point] != point:
        point = m.owner[point]
    return point


@jit
def _join(p: BlockPlan, s: BlockScratch, t: BlockTask, m: Merging, start: int) -> int:
    """Put a block of keys behind the groups as points; return how many points there are."""
    e, keys = p.element, s.far_x + p.groups_pad * p.dim_pad * p.element
    joining, mask = p.points - p.groups_pad, 0 if t.mask == 0 else t.mask + start * t.mask_row
    call(m.name, (mask, t.mask_row, p.groups_pad, p.block, m.ties_at))
    source = (t.k + start * t.k_row, t.k_row, t.k_column)
    call(p.pack_k, (*source, 0, p.block, joining, p.dim, t.zeros, keys, p.dim_pad))
    v, v_row = packed(p, t, 1, start, p.block, p.block, 0, s.v)
    own, one = m.squares + p.groups_pad * e, t.numbers + ONE * e
    call(p.dots, (keys, p.dim_pad, keys, p.dim_pad, joining, p.dim_pad, one, own))
    call(p.fill, (t.before + p.groups_pad * p.sums_row * e, t.zeros, joining * p.sums_row))
    sums = (t.before, p.sums_row)
    call(p.scatter, (m.ties_at, own, keys, p.dim_pad, v, v_row, p.block, p.dim_pad, p.width_pad, *sums))
    return call(m.weigh_points, (t.mass, *sums, p.dim_pad + p.width_pad, p.points, m.weight, m.owner_at))


@jit
def _merge(p: BlockPlan, s: BlockScratch, t: BlockTask, m: Merging, surplus: int) -> int:
    """Make points one by the cheapest ties; return how many there still are too many."""
    e, row = p.element, p.points + p.column_step
    call(p.dots, (s.far_x, p.dim_pad, s.far_x, p.dim_pad, p.points, p.dim_pad, t.numbers + ONE * e, m.squares))
    call(p.transpose, (s.far_x, p.dim_pad, s.far_xt, p.far_row, p.points, p.dim_pad))
    for i in range(0, p.points, p.tile):
        rows = min(p.tile, p.points - i)
        x = (s.far_x + i * p.dim_pad * e, p.dim_pad, 1)
        call(p.gemm, (*x, s.far_xt, p.far_row, m.scores, row, rows, p.points, p.dim))
        call(m.cheapest, (m.scores, row, i, rows, p.points, m.squares, m.weight, m.nearest_at, m.cost))
    call(m.tie, (m.cost, m.nearest_at, p.points, surplus, m.ties_at))
    left = surplus
    for i in range(p.points):
        if m.ties[i] >= 0:
            other = _owner(m, m.ties[i])
            if other != i:
                m.owner[i] = other
                left -= 1
    if left > 0:
        for i in range(p.points):
            if m.ties[i] >= 0 and m.owner[i] != i:
                call(m.mix, (i, _owner(m, i), s.far_x, p.dim_pad, m.weight))
    return left


@jit
def _collect(p: BlockPlan, s: BlockScratch, t: BlockTask, m: Merging) -> int:
    """Add up the sums of points that became one; list the groups that changed, and return how many those are.

    No place of a group that is gone stays free: points are made one only where there are too many.
    """
    e, both, size, rows, changed = p.element, p.dim_pad + p.width_pad, p.sums_row * p.element, 0, 0
    for i in range(p.points):
        if m.owner[i] >= 0 and m.owner[i] != i:
            other = _owner(m, i)
            out = (m.left + rows * p.dim_pad * e, m.right + rows * both * e)
            call(m.fold, (i, other, t.before, p.sums_row, p.dim_pad, p.width_pad, *out))
            rows += 1
            for place in (i, other):
                if place < p.groups:
                    m.changed[changed] = place
                    changed += 1
    call(p.gemm_add, (m.left, 1, p.dim_pad, m.right, both, t.within, both, up(p.dim, p.row_step), both, rows))
    place = 0
    for i in range(p.groups_pad, p.points):
        if m.owner[i] == i:
            while m.owner[place] == place:
                place += 1
            call(p.copy, (t.before + i * size, t.before + place * size, p.sums_row))
            m.changed[changed] = place
            changed, place = changed + 1, place + 1
    return call(p.touch, (m.changed_at, changed, s.flags, s.list, 0))


@jit
def _absorb(p: BlockPlan, s: BlockScratch, t: BlockTask, m: Merging, start: int) -> None:
    """Merge the block of keys that begins with this one into the groups."""
    surplus = _join(p, s, t, m, start) - p.groups
    while surplus > 0:
        surplus = _merge(p, s, t, m, surplus)
    listed = _collect(p, s, t, m)
    if listed != 0:
        refresh(p, s, t, 0, listed)
        call(m.form, (t.within, p.dim, p.dim_pad, p.width_pad, t.spread, t.cross))


@jit
def _attend(p: BlockPlan, s: BlockScratch, t: BlockTask, m: Merging, block: int, low: int, high: int) -> None:
    """Let queries low <= i < high of a block see near and heavy keys and groups; note what matters of the weights."""
    e, count, oldest = p.element, high - low, block - p.reach
    rows, start, stop = up(count, p.row_step), max(oldest, 0) * p.block, min((block + 1) * p.block, t.keys)
    total, columns = load_block(p, s, t, low, count), up(min(p.band_tile, stop - start), p.column_step)
    add_groups(p, s, t, total, m.far)
    call(p.copy, (s.top, m.far_level, total))
    add_heavy(p, s, t, total, rows, low + t.delta)
    start = add_near(p, s, t, total, low, count, start, stop, m.near)
    call(p.copy, (s.top, m.near_level, total))
    while start < stop:
        start = add_near(p, s, t, total, low, count, start, stop, 0)
    per, seen = (total, rows, count), (s.top, s.denominator)
    call(m.receive, (m.far, p.groups_pad + p.column_step, *per, p.groups_pad, m.far_level, *seen, t.mass))
    if oldest >= 0:
        own = t.mass + p.groups_pad * e
        call(m.receive, (m.near, columns + p.column_step, *per, min(columns, p.block), m.near_level, *seen, own))
    store_block(p, s, t, low, count)


@entry
def merged(plan: int, scratch: int, merging: int, task: int, length: int, begun: int) -> int:
    """Let the queries of a head, so many, see what was before them; some blocks are begun already."""
    p, s, t = view(BlockPlan, plan), view(BlockScratch, scratch), view(BlockTask, task)
    m = view(Merging, merging)
    refresh(p, s, t, 0, clear(p, s, t))
    call(m.form, (t.within, p.dim, p.dim_pad, p.width_pad, t.spread, t.cross))
    for block in range(max(begun - 1, 0), (t.keys + p.block - 1) // p.block):
        oldest = block - 1 - p.reach
        if block >= begun and oldest >= 0:
            _absorb(p, s, t, m, oldest * p.block)
            call(p.fill, (t.mass, t.zeros, p.points))
        low, high = max(block * p.block - t.delta, 0), min((block + 1) * p.block - t.delta, length)
        if low < high:
            _attend(p, s, t, m, block, low, high)
    return 0
