"""Schedules of the steps that find groups: like `schedule`."""

from __future__ import annotations

from rfkernels.backends.numba.block_records import (
    HALF,
    LOWEST,
    ONE,
    SCALE,
    SHARE,
    BlockPlan,
    BlockScratch,
    BlockTask,
    Search,
)
from rfkernels.backends.numba.block_schedule import assign, gather, packed
from rfkernels.backends.numba.compiling import call, entry, jit, up
from rfkernels.backends.numba.records import view


@entry
def mass(plan: int, scratch: int, task: int, q: int, count: int, out: int, room: int) -> int:
    """Write the attention that each key receives on average from `count` queries.

    There is room for the weights of whole tiles and a log scale for each tile; if not (0), all is computed twice.
    """
    p, s, t = view(BlockPlan, plan), view(BlockScratch, scratch), view(BlockTask, task)
    columns, e = up(count, p.column_step), p.element
    scale, one, stride = t.numbers + SCALE * e, t.numbers + ONE * e, (p.tile + 1) * columns * e
    call(p.pack_q, (q, t.q_row, t.q_column, 0, count, columns, p.dim, t.zeros, s.query, p.dim_pad))
    call(p.transpose, (s.query, p.dim_pad, s.xt, columns, columns, p.dim_pad))
    call(p.fill, (s.top, t.numbers + LOWEST * e, columns))
    call(p.fill, (s.denominator, t.zeros, columns))
    for turn in range(2):
        i = 0
        while i < t.keys:
            n = min(p.tile, t.keys - i)
            rows = up(n, p.row_step)
            scores = s.scores if room == 0 else room + i // p.tile * stride
            level = scores + p.tile * columns * e
            if turn == 0 or room == 0:
                x, x_row = packed(p, t, 0, i, n, rows, 1, s.x)
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
    i, rows, row, e = 0, up(p.dim, p.row_step), p.dim_pad + p.column_step, p.element
    while i < f.queries:
        n = min(p.tile, f.queries - i)
        call(p.pack_q, (f.q + i * t.q_row, t.q_row, t.q_column, 0, n, n, p.dim, t.zeros, s.x, row))
        call(p.gemm_add, (s.x, 1, row, s.x, row, f.metric, p.dim_pad, rows, p.dim_pad, n))
        i += n
    call(p.shrink, (f.metric, t.numbers + SHARE * e, p.dim_pad * p.dim_pad))
    i = 0
    while i < t.keys:
        x, x_row = packed(p, t, 0, i, min(p.tile, t.keys - i), p.tile, 1, s.x)
        call(p.gemm, (x, x_row, 1, f.metric, p.dim_pad, s.y, p.dim_pad, p.tile, p.dim_pad, p.dim))
        call(p.dots, (x, x_row, s.y, p.dim_pad, p.tile, p.dim_pad, t.numbers + ONE * e, f.squares + i * e))
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
                rows = up(missing, p.row_step)
                centres, xt = f.centres + known * p.dim_pad * e, f.xt + first * p.dim_pad * e
                call(p.gemm, (centres, p.dim_pad, 1, xt, p.tile, s.scores, p.tile, rows, p.tile, p.dim))
                own = (f.squares + first * e, f.weight + first * e, f.nearest + first * e)
                best = (f.bounds + tile * e, f.places + 8 * tile, first)
                call(p.approach, (s.scores, p.tile, missing, f.own + known * e, known, *own, *best))


@entry
def find(plan: int, scratch: int, task: int, search: int) -> int:
    """Find groups of the keys of a task, and what is left of keys and values within."""
    p, s, t, f = view(BlockPlan, plan), view(BlockScratch, scratch), view(BlockTask, task), view(Search, search)
    e = p.element
    _measure(p, s, t, f)
    _spread_out(p, s, t, f)
    call(p.gemm, (f.centres, p.dim_pad, 1, f.metric, p.dim_pad, f.drawn, p.dim_pad, p.groups_pad, p.dim_pad, p.dim))
    call(p.fill, (t.offset, t.numbers + LOWEST * e, p.groups_pad))
    call(p.dots, (f.centres, p.dim_pad, f.drawn, p.dim_pad, p.groups, p.dim_pad, t.numbers + HALF * e, t.offset))
    call(p.transpose, (f.drawn, p.dim_pad, t.drawn, p.groups_pad, p.groups_pad, p.dim_pad))
    assign(p, s, t, 0, t.keys, 0)
    return within(p, s, t, f.covariance, f.cross)


@jit
def within(p: BlockPlan, s: BlockScratch, t: BlockTask, out: int, cross: int) -> int:
    """Add Σ k kᵀ and Σ k vᵀ, of what is left of keys and values less the means of their groups."""
    call(p.fill, (t.before, t.zeros, p.groups * p.sums_row))
    gather(p, s, t, 0, t.keys, t.before)
    means = (s.mean, p.dim_pad, s.far_v, p.width_pad, s.far_term, s.squares)
    call(p.means, (t.every, p.groups, t.before, 0, p.sums_row, p.dim_pad, p.width_pad, *means))
    i, rows, x_row = 0, up(p.dim, p.row_step), p.dim_pad + p.column_step
    while i < t.keys:
        n = min(p.tile, t.keys - i)
        labels = t.labels + 4 * i
        k, k_row = packed(p, t, 0, i, n, n, 0, s.x)
        call(p.residual, (labels, k, k_row, n, p.dim_pad, s.mean, s.x, x_row))
        call(p.gemm_add, (s.x, 1, x_row, s.x, x_row, out, p.dim_pad, rows, p.dim_pad, n))
        v, v_row = packed(p, t, 1, i, n, n, 0, s.v)
        call(p.residual, (labels, v, v_row, n, p.width_pad, s.far_v, s.v, p.width_pad))
        call(p.gemm_add, (s.x, 1, x_row, s.v, p.width_pad, cross, p.width_pad, rows, p.width_pad, n))
        i += n
    return 0
