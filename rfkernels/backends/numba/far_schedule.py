"""Schedules of passes over blocks whose far keys are sums of features: like `schedule`."""

from __future__ import annotations

from rfkernels.backends.numba.compiling import call, entry, jit, up
from rfkernels.backends.numba.records import view
from rfkernels.backends.numba.schedule import add_near, near_queries, store
from rfkernels.backends.numba.schedule_records import Beside, Plan, Scratch, Task, Weights, queries_at
from rfkernels.backends.numba.schedule_steps import (
    holds_keys,
    load_queries,
    no_features,
    read_state,
    records,
    write_keys,
)


@jit
def _add_heavy(
    p: Plan, w: Weights, s: Scratch, o: Beside, head: int, x: tuple[int, int], count: int, position: int
) -> None:
    """Add exact weights of heavy keys to so many queries, the first of which stands at a position."""
    e, near_row, rows = p.element, p.band_tile + p.column_step, up(count, p.row_step)
    positions = o.positions + head * o.heavy * 8
    late = call(o.below, (positions, o.heavy, position)) < o.heavy
    for start in range(0, o.heavy_pad, p.band_tile):
        columns = min(p.band_tile, o.heavy_pad - start)
        xt, term = (o.xt + (head * p.dim_pad * o.heavy_pad + start) * e, o.term + (head * o.heavy_pad + start) * e)
        v = o.v + (head * o.heavy_pad + start) * p.width_pad * e
        for r in range(0, rows, p.rows_at_once):
            own = min(p.rows_at_once, rows - r)
            out = s.out + r * p.width_pad * e
            query = x[0] + r * x[1] * e
            call(p.gemm, (query, x[1], 1, xt, o.heavy_pad, s.near_scores, near_row, own, columns, p.dim))
            step = 1 if late else own
            for i in range(0, own, step):
                seen = columns
                if late:
                    seen = call(o.below, (positions, o.heavy, position + r + i)) - start
                limits = (s.near_scores + i * near_row * e, near_row, step, columns, -own, seen)
                terms = (term, s.query_term + (r + i) * e, w.scale)
                sums = (s.top + (r + i) * e, out + i * p.width_pad * e, p.width_pad, p.width_pad)
                call(p.band, (*limits, *terms, *sums, s.denominator + (r + i) * e))
            values = (v, p.width_pad, out, p.width_pad, own, p.width_pad, columns)
            call(p.gemm_add, (s.near_scores, near_row, 1, *values))


@jit
def _far(p: Plan, w: Weights, s: Scratch, t: Task, q: int, out: int, count: int, seen: int) -> tuple[int, int, int]:
    """Let queries read the state, if anything was seen; return as `load_queries` does."""
    found = load_queries(p, w, s, t, q, count, 1)
    if found[0] != 0:
        if seen != 0:
            read_state(p, w, s, t, count, 1, q + count * t.q_row, out)
        else:
            no_features(p, w, s, count)
    return found


@entry
def blocks(
    plan: int,
    scratch: int,
    tasks: int,
    beside: int,
    head: int,
    low: int,
    high: int,
    absorbed: int,
    until: int,
) -> int:
    """Let queries low <= i < high of a head see near and heavy keys, and features of keys before the near ones.

    Of these the state holds `absorbed` already, and `until` when this is done. Return 1 if an input is not finite.
    """
    (p, w, s, t), o = records(plan, scratch, tasks, head), view(Beside, beside)
    seen, i = holds_keys(p, t), low
    while i < high:
        block = (i + t.delta) // o.block
        n = min((block + 1) * o.block - t.delta, high) - i
        start, stop = 0, 0
        if o.reach >= 0:
            start = min(max(block - o.reach, 0) * o.block, t.keys)
            stop = min((block + 1 + o.ahead) * o.block, t.keys)
            found = write_keys(p, w, s, t, absorbed, start)
            if found < 0:
                return 1
            absorbed, seen = max(absorbed, start), seen | found
        for index in range(t.groups):
            g = queries_at(t.queries, index)
            q = g.q + i * t.q_row
            fine, x, x_row = _far(p, w, s, t, q, g.out + i * t.out_row, n, seen)
            if fine == 0:
                return 1
            x, x_row = near_queries(p, w, s, t, q, x, x_row, n)
            if add_near(p, w, s, t, x, x_row, i, n, start, stop) == 0:
                return 1
            if o.heavy > 0:
                _add_heavy(p, w, s, o, head, (x, x_row), n, i + t.delta + o.later)
            store(p, s, t, index, i, n, high)
        i += n
    return int(write_keys(p, w, s, t, absorbed, until) < 0)


@entry
def behind(plan: int, scratch: int, tasks: int, beside: int, head: int, low: int, high: int) -> int:
    """Let queries, the last of low <= i < high first, see features of keys after the near ones; all is read backwards.

    The state holds what is behind all of them. Return 1 if an input is not finite.
    """
    (p, w, s, t), o = records(plan, scratch, tasks, head), view(Beside, beside)
    seen, last = holds_keys(p, t), high - 1
    absorbed = max(t.keys - (last // o.block + o.reach + 1) * o.block, 0)
    while last >= low:
        block = last // o.block
        n = last + 1 - max(block * o.block, low)
        stop = max(t.keys - (block + o.reach + 1) * o.block, 0)
        found = write_keys(p, w, s, t, absorbed, stop)
        if found < 0:
            return 1
        absorbed, seen = stop, seen | found
        for index in range(t.groups):
            q = queries_at(t.queries, index).q + last * -t.q_row
            if _far(p, w, s, t, q, 0, n, seen)[0] == 0:
                return 1
            store(p, s, t, index, high - 1 - last, n, high)
        last -= n
    return 0
