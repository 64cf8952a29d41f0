"""Schedules of tiles, compiled by Numba once for every map, dtype and machine.

Only integers pass through here: addresses, strides and sizes. The kernels that do arithmetic are called by address, so
these functions are cached on disk whatever map they run.
"""

from __future__ import annotations

from rfkernels.backends.numba.compiling import call, entry, jit, up
from rfkernels.backends.numba.schedule_records import Plan, Scratch, Task, Weights, queries_at
from rfkernels.backends.numba.schedule_steps import (
    activate_keys,
    add_keys,
    add_triangle,
    holds_keys,
    keys_at,
    load_keys,
    load_queries,
    load_values,
    move_shift,
    no_features,
    query_rows,
    read_state,
    records,
    rescale,
    write_keys,
)


@jit
def near_queries(p: Plan, w: Weights, s: Scratch, t: Task, q: int, x: int, x_row: int, count: int) -> tuple[int, int]:
    """Return where queries for exact weights lie, and their stride: at `q` and, as `load_queries` left them, at `x`."""
    rows = up(count, p.row_step)
    if w.centred != 0:
        x, x_row = s.query_x, p.dim_pad + p.column_step
        call(p.pack_q, (q, t.q_row, t.q_column, 0, count, rows, p.dim, w.zeros, x, x_row))
    call(p.offsets_rows, (x, x_row, p.dim_pad, x, x_row, p.dim_pad, 0, w.near_parameters, s.query_term, rows))
    return x, x_row


@jit
def add_window(p: Plan, w: Weights, s: Scratch, t: Task, q: int, x: int, x_row: int, first: int, count: int) -> int:
    """Add exact weights of the keys in the windows of queries from `first`; return whether inputs are finite."""
    x, x_row = near_queries(p, w, s, t, q, x, x_row, count)
    low, high = max(0, first + t.near_low), min(t.keys, first + count - 1 + t.near_high)
    # Whole columns need no copy; the keys that fill them up lie outside the window of every query.
    start = max(low - (up(high - low, p.column_step) - (high - low)), 0) if low < high else high
    return add_near(p, w, s, t, x, x_row, first, count, start, high)


@jit
def add_near(
    p: Plan, w: Weights, s: Scratch, t: Task, x: int, x_row: int, first: int, count: int, start: int, high: int
) -> int:
    """Add exact weights of keys start <= s < high to queries first <= i < first + count, as `t` lets them see these.

    Returns whether inputs are finite.
    """
    rows, near_row, none = up(count, p.row_step), p.band_tile + p.column_step, (0, w.near_parameters)
    while start < high:
        n = min(p.band_tile, high - start)
        columns = up(n, p.column_step)
        fine, k, k_row = keys_at(p, t, start, n, w.zeros, s.near_x)
        if fine == 0:
            return 0
        fine, v, v_row = load_values(p, w, t, start, n, s.near_v)
        if fine == 0:
            return 0
        mask = 0 if t.mask == 0 else t.mask + start * t.mask_row
        call(p.valid, (mask, t.mask_row, 0, n, columns, s.near_valid))
        call(p.transpose, (k, k_row, s.near_xt, near_row, columns, p.dim_pad))
        end = (*none, s.near_valid, s.near_term, columns)
        call(p.offsets_columns, (s.near_xt, near_row, p.dim, s.near_xt, near_row, p.dim, *end))
        for r in range(0, rows, p.rows_at_once):
            span = r, min(p.rows_at_once, rows - r)
            _near_rows(p, w, s, t, x + r * x_row * p.element, x_row, v, v_row, span, first - start, columns)
        start += n
    return 1


@jit
def _near_rows(
    p: Plan,
    w: Weights,
    s: Scratch,
    t: Task,
    x: int,
    x_row: int,
    v: int,
    v_row: int,
    span: tuple[int, int],
    offset: int,
    columns: int,
) -> None:
    """Add exact weights for queries r <= i < r + count, by `span`, and the part of a key tile that any of them sees."""
    (r, count), e, near_row = span, p.element, p.band_tile + p.column_step
    low = max(0, offset + r + t.near_low) // p.column_step * p.column_step
    high = min(columns, up(max(0, offset + r + count - 1 + t.near_high), p.column_step))
    if low >= high:
        return
    out = s.out + r * p.width_pad * e
    call(p.gemm, (x, x_row, 1, s.near_xt + low * e, near_row, s.near_scores, near_row, count, high - low, p.dim))
    first = offset + r - low
    limits = (high - low, first + t.near_low, first + t.near_high)
    terms = (s.near_term + low * e, s.query_term + r * e, w.scale)
    sums = (s.top + r * e, out, p.width_pad, p.width_pad, s.denominator + r * e)
    call(p.band, (s.near_scores, near_row, count, *limits, *terms, *sums))
    values = (v + low * v_row * e, v_row, out, p.width_pad, count, p.width_pad, high - low)
    call(p.gemm_add, (s.near_scores, near_row, 1, *values))


@entry
def absorb(plan: int, scratch: int, tasks: int, first: int, last: int, low: int, high: int) -> int:
    """Write keys low <= s < high of heads first <= h < last to their states; return 1 if some input is not finite."""
    for head in range(first, last):
        p, w, s, t = records(plan, scratch, tasks, head)
        if write_keys(p, w, s, t, low, high) < 0:
            return 1
    return 0


@jit
def store(p: Plan, s: Scratch, t: Task, index: int, first: int, count: int, high: int) -> None:
    """Normalise and write the sums of queries from `first`, or pass them on as a part."""
    e, g = p.element, queries_at(t.queries, index)
    if t.part_mode != 0:
        sums = t.part + index * t.part_rows * (p.width_pad + 2) * e
        denominators = sums + t.part_rows * p.width_pad * e
        shifts = denominators + t.part_rows * e
        if t.part_mode == 1:
            call(p.copy, (s.out, sums + first * p.width_pad * e, count * p.width_pad))
            call(p.copy, (s.denominator, denominators + first * e, count))
            call(p.copy, (s.top, shifts + first * e, count))
            return
        last = high - 1 - first
        other = (sums + last * p.width_pad * e, p.width_pad, denominators + last * e, shifts + last * e)
        call(p.join, (s.out, p.width_pad, s.denominator, s.top, *other, count, p.width_pad))
    if g.denominator != 0:
        call(p.copy, (s.denominator, g.denominator + first * e, count))
        call(p.copy, (s.top, g.shift + first * e, count))
    out = g.out + first * t.out_row
    call(p.unpack, (s.out, p.width_pad, s.denominator, count, p.width, out, t.out_row))


@jit
def wants_logs(t: Task, index: int) -> int:
    """Return whether anybody reads the log scale of the sums."""
    return int(t.near != 0 or t.part_mode != 0 or queries_at(t.queries, index).denominator != 0)


@entry
def emit(plan: int, scratch: int, tasks: int, first: int, last: int, low: int, high: int) -> int:
    """Let queries low <= i < high of heads first <= h < last read the whole state; return 1 if one is not finite."""
    for head in range(first, last):
        p, w, s, t = records(plan, scratch, tasks, head)
        if _emit(p, w, s, t, low, high) != 0:
            return 1
    return 0


@jit
def _emit(p: Plan, w: Weights, s: Scratch, t: Task, low: int, high: int) -> int:
    seen = holds_keys(p, t)
    for index in range(t.groups):
        i, logs, g = low, wants_logs(t, index), queries_at(t.queries, index)
        while i < high:
            n = min(p.tile, high - i)
            q = g.q + t.q_start + i * t.q_row
            if load_queries(p, w, s, t, q, n, logs)[0] == 0:
                return 1
            if seen != 0:
                read_state(p, w, s, t, n, logs, q + n * t.q_row, g.out + i * t.out_row)
            else:
                no_features(p, w, s, n)
            store(p, s, t, index, i, n, high)
            i += n
    return 0


@entry
def near(plan: int, scratch: int, tasks: int, first: int, last: int, low: int, high: int) -> int:
    """Let queries low <= i < high of heads first <= h < last see keys exactly, as tasks say, and nothing else.

    Return 1 if some input is not finite.
    """
    for head in range(first, last):
        p, w, s, t = records(plan, scratch, tasks, head)
        for index in range(t.groups):
            i, g = low, queries_at(t.queries, index)
            while i < high:
                n = min(p.tile, high - i)
                q = g.q + i * t.q_row
                fine, x, x_row = query_rows(p, s, t, q, n, w.zeros)
                if fine == 0:
                    return 1
                no_features(p, w, s, n)
                if add_window(p, w, s, t, q, x, x_row, i, n) == 0:
                    return 1
                store(p, s, t, index, i, n, high)
                i += n
    return 0


@entry
def span(plan: int, scratch: int, tasks: int, first: int, last: int, low: int, high: int) -> int:
    """Let queries low <= i < high of heads first <= h < last read a state that grows by key i + delta.

    Return 1 if some input is not finite.
    """
    for head in range(first, last):
        p, w, s, t = records(plan, scratch, tasks, head)
        if _span(p, w, s, t, low, high) != 0:
            return 1
    return 0


@jit
def _span(p: Plan, w: Weights, s: Scratch, t: Task, low: int, high: int) -> int:
    """Run `span` over a head, tile by tile.

    A tile whose keys raise the shift too far above what its first query sees is halved until they do not: with a common
    shift its early queries would read zeros. Keys are written to the state part by part, so that queries meet fewer of
    them one by one.
    """
    seen = holds_keys(p, t)
    i = low
    while i < high:
        n = min(p.tile, high - i)
        while True:
            start = i + t.delta
            found, columns, v, v_row = 0, 0, s.v, 0
            if start + n > 0 and start < t.keys:
                found, columns = load_keys(p, w, s, t, start, n)
                fine, v, v_row = load_values(p, w, t, start, n, s.v)
                if found < 0 or fine == 0:
                    return 1
            if found == 0:
                break
            visible = call(p.first_valid, (s.valid, columns))
            first = visible if seen == 0 or visible == 0 else -1
            if move_shift(p, w, s, t, columns, first) == 0 or n == 1:
                break
            n = (n + 1) // 2
        step = n
        if found > 0:
            seen, step = 1, p.part if t.near == 0 else n  # windows of whole tiles overlap less
            rescale(p, s, t)
        for r in range(0, n, step):
            count = min(step, n - r)
            part = min(up(count, p.column_step), columns - r)
            values = v + r * v_row * p.element
            if found > 0:
                activate_keys(p, w, s, r, part, int(found != columns))
            for index in range(t.groups):
                g, logs = queries_at(t.queries, index), wants_logs(t, index)
                q = g.q + t.q_start + (i + r) * t.q_row
                fine, x, x_row = load_queries(p, w, s, t, q, count, logs)
                if fine == 0:
                    return 1
                if seen != 0:
                    read_state(p, w, s, t, count, logs, q + count * t.q_row, g.out + (i + r) * t.out_row)
                else:
                    no_features(p, w, s, count)
                if found > 0:
                    add_triangle(p, s, r, count, values, v_row)
                if t.near != 0 or t.part_mode != 0:
                    call(p.settle, (s.denominator, s.top, count))
                if t.near != 0 and add_window(p, w, s, t, q, x, x_row, i + r, count) == 0:
                    return 1
                store(p, s, t, index, i + r, count, high)
            if found > 0:
                add_keys(p, s, t, r, count, values, v_row, start + n + r)
        i += n
    return 0
