"""Schedules of tiles, compiled by Numba once for every map, dtype and machine.

Only integers pass through here: addresses, strides and sizes. The kernels that do arithmetic are called by address, so
these functions are cached on disk whatever map they run.
"""

from __future__ import annotations

from rfkernels.backends.numba.compiling import call, entry, jit, up
from rfkernels.backends.numba.records import view
from rfkernels.backends.numba.schedule_records import Plan, Queries, Scratch, Task, Weights


@jit
def records(plan: int, weights: int, scratch: int, task: int) -> tuple[Plan, Weights, Scratch, Task]:
    """Return the records at some addresses."""
    return view(Plan, plan), view(Weights, weights), view(Scratch, scratch), view(Task, task)


@jit
def _rows(
    p: Plan,
    pack: int,
    source: tuple[int, int, int],
    plain: int,
    span: tuple[int, int, int],
    to: tuple[int, int, int, int],
) -> tuple[int, int, int]:
    """Return whether rows are finite, where they lie padded to tiles, and their stride there: a copy unless plain.

    `source` is an address and strides in bytes, `span` what is there of so many rows, `to` a width, a centre, a place
    and a stride.
    """
    if plain and span[0] == 0 and span[1] == span[2]:
        fine = 1 if p.check == 0 else call(p.finite, (source[0], source[1], span[1], to[0]))
        return fine, source[0], source[1] // p.element
    return call(pack, (*source, *span, *to)) | (1 - p.check), to[2], to[3]


@jit
def _span(p: Plan, t: Task, start: int, count: int) -> tuple[int, int, int]:
    """Return which of `count` keys from `start` exist, and how many columns they take."""
    return max(0, -start), max(0, min(count, t.keys - start)), up(count, p.column_step)


@jit
def _keys(p: Plan, t: Task, start: int, count: int, centre: int, out: int) -> tuple[int, int, int]:
    """Return whether `count` keys from `start` are finite, where they lie, and their stride."""
    source, to = (t.k + start * t.k_row, t.k_row, t.k_column), (p.dim, centre, out, p.dim_pad + p.column_step)
    return _rows(p, p.pack_k, source, t.k_plain, _span(p, t, start, count), to)


@jit
def load_values(p: Plan, w: Weights, t: Task, start: int, count: int, out: int) -> tuple[int, int, int]:
    """Return whether the values of `count` keys are finite, where they lie, and their stride."""
    source, to = (t.v + start * t.v_row, t.v_row, t.v_column), (p.width, w.zeros, out, p.width_pad)
    return _rows(p, p.pack_v, source, t.v_plain, _span(p, t, start, count), to)


@jit
def load_keys(p: Plan, w: Weights, s: Scratch, t: Task, start: int, count: int) -> tuple[int, int]:
    """Project `count` keys from `start`; return how many count (−1 if one is not finite), and the columns."""
    (first, last, columns), u_row = _span(p, t, start, count), p.tile + p.column_step
    fine, x, x_row = _keys(p, t, start, count, w.key_centre, s.x)
    if fine == 0:
        return -1, columns
    mask = 0 if t.mask == 0 else t.mask + start * t.mask_row
    found = call(p.valid, (mask, t.mask_row, first, last, columns, s.valid))
    if found == 0:
        return 0, columns
    call(p.transpose, (x, x_row, s.xt, u_row, columns, p.dim_pad))
    call(p.gemm, (w.key, 1, p.pad, s.xt, u_row, s.u, u_row, p.pad, columns, p.dim))
    y, y_rows = s.xt, p.dim
    if w.key_matrix != 0:
        y = s.y
        call(p.gemm, (w.key_matrix, p.dim_pad, 1, s.xt, u_row, y, u_row, up(p.dim, p.row_step), columns, p.dim))
    end = (w.key_linear, w.key_parameters, s.valid, s.offsets, columns)
    call(p.offsets_columns, (y, u_row, y_rows, s.xt, u_row, p.dim, *end))
    return found, columns


@jit
def move_shift(p: Plan, w: Weights, s: Scratch, t: Task, columns: int, first: int) -> int:
    """Find the shift that the loaded keys bring; return whether it is too far from what the first query sees."""
    if p.key_shift == 0:
        return 0
    u_row = p.tile + p.column_step
    keys = (s.u, u_row, s.offsets, w.log_weight, p.rows, p.pad, columns, t.shift, first, s.new, s.add)
    return call(p.key_shift, keys)


@jit
def rescale(p: Plan, s: Scratch, t: Task) -> None:
    """Put the state on the shift found by `move_shift`."""
    if p.key_shift != 0:
        call(p.rescale, (t.shift, s.new, t.kv, p.width_pad, p.width_pad, t.z, p.total))


@jit
def activate_keys(p: Plan, w: Weights, s: Scratch, columns: int, found: int) -> None:
    """Turn projections into features; their sums over the tile go to scratch."""
    add = s.add if p.key_shift != 0 else w.log_weight
    function = p.key_activation if found == columns else p.key_activation_ragged
    call(function, (s.u, p.tile + p.column_step, s.offsets, add, s.valid, p.rows, p.pad, columns, s.sums))


@jit
def add_tile(p: Plan, s: Scratch, t: Task, columns: int, v: int, v_row: int) -> None:
    """Add the features of a tile and its values to the state."""
    call(p.accumulate, (t.z, s.sums, p.total))
    u_row = p.tile + p.column_step
    call(p.gemm_add, (s.u, u_row, 1, v, v_row, t.kv, p.width_pad, p.total, p.width_pad, columns))


@jit
def write_keys(p: Plan, w: Weights, s: Scratch, t: Task, low: int, high: int) -> int:
    """Write keys low <= s < high to the state; return how many counted, −1 if some input is not finite."""
    i, total = low, 0
    while i < high:
        n = min(p.tile, high - i)
        found, columns = load_keys(p, w, s, t, i, n)
        fine, v, v_row = load_values(p, w, t, i, n, s.v)
        if found < 0 or fine == 0:
            return -1
        if found > 0:
            move_shift(p, w, s, t, columns, -1)
            rescale(p, s, t)
            activate_keys(p, w, s, columns, found)
            add_tile(p, s, t, columns, v, v_row)
        i, total = i + n, total + found
    return total


@entry
def absorb(plan: int, weights: int, scratch: int, task: int, low: int, high: int) -> int:
    """Write keys low <= s < high to the state; return 1 if some input is not finite."""
    p, w, s, t = records(plan, weights, scratch, task)
    return int(write_keys(p, w, s, t, low, high) < 0)


@jit
def load_queries(p: Plan, w: Weights, s: Scratch, t: Task, q: int, count: int, logs: int) -> tuple[int, int, int]:
    """Project queries; return whether they are finite, where they lie in padded rows, and the rows' stride.

    Of an exponential map their offsets matter for logs only.
    """
    rows, q_row = up(count, p.row_step), p.total + p.column_step
    source, to = (q, t.q_row, t.q_column), (p.dim, w.query_centre, s.x, p.dim_pad + p.column_step)
    fine, x, x_row = _rows(p, p.pack_q, source, t.q_plain, (0, count, rows), to)
    call(p.gemm, (x, x_row, 1, w.query, p.pad, s.query, q_row, rows, p.pad, p.dim))
    if p.key_shift != 0 and not logs:
        return fine, x, x_row
    y, y_row = x, x_row
    if w.query_matrix != 0:
        y, y_row = s.y, p.dim_pad
        call(p.gemm, (x, x_row, 1, w.query_matrix, p.dim_pad, y, y_row, rows, p.dim_pad, p.dim))
    end = (w.query_linear, w.query_parameters, s.offsets, rows)
    call(p.offsets_rows, (y, y_row, p.dim_pad, x, x_row, p.dim_pad, *end))
    return fine, x, x_row


@jit
def read_state(p: Plan, w: Weights, s: Scratch, t: Task, count: int, logs: int) -> None:
    """Activate loaded queries, and contract them with the state into sums, denominators and, for logs, their scale."""
    rows, q_row = up(count, p.row_step), p.total + p.column_step
    call(p.sum, (w.log_weight, t.shift, s.new, p.total))
    queries = (s.query, q_row, s.offsets, s.new, t.z, p.rows, p.pad, rows, s.denominator, s.top)
    call(p.query_activation, queries)
    call(p.gemm, (s.query, q_row, 1, t.kv, p.width_pad, s.out, p.width_pad, rows, p.width_pad, p.total))
    if p.key_shift == 0:
        call(p.copy, (w.base, s.top, rows))
    elif logs:
        call(p.sum, (s.top, s.offsets, s.top, rows))


@jit
def add_triangle(p: Plan, s: Scratch, count: int, v: int, v_row: int) -> None:
    """Let query r see keys c <= r of its own tile."""
    q_row, u_row = p.total + p.column_step, p.tile + p.column_step
    rows = up(count, p.row_step)
    for r in range(0, rows, p.row_step):
        columns = up(min(r + p.row_step, rows), p.column_step)
        queries, scores = s.query + r * q_row * p.element, s.scores + r * u_row * p.element
        call(p.gemm, (queries, q_row, 1, s.u, u_row, scores, u_row, p.row_step, columns, p.total))
    call(p.triangle, (s.scores, u_row, rows, s.denominator))
    for r in range(0, rows, p.row_step):
        scores, out = s.scores + r * u_row * p.element, s.out + r * p.width_pad * p.element
        depth = min(r + p.row_step, rows)
        call(p.gemm_add, (scores, u_row, 1, v, v_row, out, p.width_pad, p.row_step, p.width_pad, depth))


@jit
def no_features(p: Plan, w: Weights, s: Scratch, count: int) -> None:
    """Set the sums of queries that see nothing through features."""
    rows = up(count, p.row_step)
    call(p.gemm, (w.zeros, 0, 0, w.zeros, 0, s.out, p.width_pad, rows, p.width_pad, 0))
    call(p.copy, (w.zeros, s.denominator, rows))
    call(p.copy, (w.lowest, s.top, rows))


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
        fine, k, k_row = _keys(p, t, start, n, w.zeros, s.near_x)
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
        for r in range(0, rows, p.row_step):
            _near_rows(p, w, s, t, x + r * x_row * p.element, x_row, v, v_row, r, first - start, columns)
        start += n
    return 1


@jit
def _near_rows(
    p: Plan, w: Weights, s: Scratch, t: Task, x: int, x_row: int, v: int, v_row: int, r: int, offset: int, columns: int
) -> None:
    """Add exact weights for one register tile of queries and the part of a key tile that any of them sees."""
    e, near_row = p.element, p.band_tile + p.column_step
    low = max(0, offset + r + t.near_low) // p.column_step * p.column_step
    high = min(columns, up(max(0, offset + r + p.row_step - 1 + t.near_high), p.column_step))
    if low >= high:
        return
    out = s.out + r * p.width_pad * e
    call(p.gemm, (x, x_row, 1, s.near_xt + low * e, near_row, s.near_scores, near_row, p.row_step, high - low, p.dim))
    first = offset + r - low
    limits = (high - low, first + t.near_low, first + t.near_high)
    terms = (s.near_term + low * e, s.query_term + r * e, w.scale)
    sums = (s.top + r * e, out, p.width_pad, p.width_pad, s.denominator + r * e)
    call(p.band, (s.near_scores, near_row, p.row_step, *limits, *terms, *sums))
    values = (v + low * v_row * e, v_row, out, p.width_pad, p.row_step, p.width_pad, high - low)
    call(p.gemm_add, (s.near_scores, near_row, 1, *values))


@jit
def store(p: Plan, s: Scratch, t: Task, g: Queries, head: int, index: int, first: int, count: int, high: int) -> None:
    """Normalise and write the sums of queries from `first`, or pass them on as a part."""
    e = p.element
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
    if g.denominator[head, index] != 0:
        call(p.copy, (s.denominator, g.denominator[head, index] + first * e, count))
        call(p.copy, (s.top, g.shift[head, index] + first * e, count))
    out = g.out[head, index] + first * t.out_row
    call(p.unpack, (s.out, p.width_pad, s.denominator, count, p.width, out, t.out_row))


@jit
def wants_logs(t: Task, g: Queries, head: int, index: int) -> int:
    """Return whether anybody reads the log scale of the sums."""
    return int(t.near != 0 or t.part_mode != 0 or g.denominator[head, index] != 0)


@entry
def emit(plan: int, weights: int, scratch: int, task: int, queries: int, head: int, low: int, high: int) -> int:
    """Let queries low <= i < high of a head read the whole state; return 1 if some input is not finite."""
    (p, w, s, t), g = records(plan, weights, scratch, task), view(Queries, queries)
    for index in range(t.groups):
        i, logs = low, wants_logs(t, g, head, index)
        while i < high:
            n = min(p.tile, high - i)
            if load_queries(p, w, s, t, g.q[head, index] + t.q_start + i * t.q_row, n, logs)[0] == 0:
                return 1
            if t.seen != 0:
                read_state(p, w, s, t, n, logs)
            else:
                no_features(p, w, s, n)
            store(p, s, t, g, head, index, i, n, high)
            i += n
    return 0


@entry
def span(plan: int, weights: int, scratch: int, task: int, queries: int, head: int, low: int, high: int) -> int:
    """Let queries low <= i < high of a head read a state that grows by key i + delta.

    Return 1 if some input is not finite. A tile whose keys raise the shift too far above what its first query sees is
    halved until they do not: with a common shift its early queries would read zeros.
    """
    (p, w, s, t), g = records(plan, weights, scratch, task), view(Queries, queries)
    seen = t.seen
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
        if found > 0:
            seen = 1
            rescale(p, s, t)
            activate_keys(p, w, s, columns, found)
        for index in range(t.groups):
            q, logs = g.q[head, index] + t.q_start + i * t.q_row, wants_logs(t, g, head, index)
            fine, x, x_row = load_queries(p, w, s, t, q, n, logs)
            if fine == 0:
                return 1
            if seen != 0:
                read_state(p, w, s, t, n, logs)
            else:
                no_features(p, w, s, n)
            if found > 0:
                add_triangle(p, s, n, v, v_row)
            if t.near != 0 or t.part_mode != 0:
                call(p.settle, (s.denominator, s.top, n))
            if t.near != 0 and add_window(p, w, s, t, q, x, x_row, i, n) == 0:
                return 1
            store(p, s, t, g, head, index, i, n, high)
        if found > 0:
            add_tile(p, s, t, columns, v, v_row)
        i += n
    return 0
