"""What schedules do with a tile of keys or queries, compiled by Numba once for every map, dtype and machine."""

from __future__ import annotations

from rfkernels.backends.numba.compiling import call, jit, up
from rfkernels.backends.numba.emitter import LINE
from rfkernels.backends.numba.records import view
from rfkernels.backends.numba.schedule_records import Plan, Scratch, Task, Weights

_TASK = 8 * len(Task._fields)
"""Bytes of a task."""


@jit
def records(plan: int, scratch: int, tasks: int, head: int) -> tuple[Plan, Weights, Scratch, Task]:
    """Return the records at some addresses, those of a head among its own."""
    t = view(Task, tasks + head * _TASK)
    return view(Plan, plan), view(Weights, t.weights), view(Scratch, scratch), t


@jit
def holds_keys(p: Plan, t: Task) -> int:
    """Return whether the state holds any key; of maps without exponents, 1."""
    return call(p.holds, (t.shift, p.total))


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
def keys_at(p: Plan, t: Task, start: int, count: int, centre: int, out: int) -> tuple[int, int, int]:
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
    fine, x, x_row = keys_at(p, t, start, count, w.key_centre, s.x)
    if fine == 0:
        return -1, columns
    mask = 0 if t.mask == 0 else t.mask + start * t.mask_row
    found = call(p.valid, (mask, t.mask_row, first, last, columns, s.valid))
    if found == 0:
        return 0, columns
    call(p.transpose, (x, x_row, s.xt, u_row, columns, p.dim_pad))
    if p.weight_row != 0:  # of features that are given `u` is where `xt` is
        _project_columns(p, w, s, x, x_row, count, columns)
    y, y_rows = s.xt, p.dim
    if w.key_matrix != 0:
        y = s.y
        call(p.gemm, (w.key_matrix, p.dim_pad, 1, s.xt, u_row, y, u_row, up(p.dim, p.row_step), columns, p.dim))
    end = (w.key_linear, w.key_parameters, s.valid, s.offsets, columns)
    call(p.offsets_columns, (y, u_row, y_rows, s.xt, u_row, p.dim, *end))
    return found, columns


@jit
def _rows_of(p: Plan, count: int) -> tuple[int, int]:
    """Return what multiplies so many rows by a matrix, and how many it takes."""
    return (p.gemm_row, 1) if count == 1 else (p.gemm, up(count, p.row_step))


@jit
def _project_columns(p: Plan, w: Weights, s: Scratch, x: int, x_row: int, count: int, columns: int) -> None:
    """Project keys that lie in columns, or in rows if these are few."""
    u_row = p.tile + p.column_step
    if 2 * up(count, p.row_step) <= columns:
        _project_few(p, w, s, x, x_row, count, columns)
    elif p.hadamard_columns != 0:
        call(p.hadamard_columns, (s.xt, u_row, w.signs, w.norms, s.u, u_row, columns, p.rows // p.dim))
    else:
        call(p.gemm, (w.key, 1, p.weight_row, s.xt, u_row, s.u, u_row, p.pad, columns, p.dim))


@jit
def _project_few(p: Plan, w: Weights, s: Scratch, x: int, x_row: int, count: int, columns: int) -> None:
    """Project keys row by row, as queries are, where whole columns would be padding for the most part."""
    rows, q_row = up(count, p.row_step), p.total + p.column_step
    call(p.gemm, (w.zeros, 0, 0, w.zeros, 0, s.query, q_row, columns, p.pad, 0))
    if p.hadamard_rows != 0:
        call(p.hadamard_rows, (x, x_row, w.signs, w.norms, s.query, q_row, rows, p.rows // p.dim))
    else:
        gemm, own = _rows_of(p, count)
        call(gemm, (x, x_row, 1, w.key, p.weight_row, s.query, q_row, own, p.pad, p.dim))
    call(p.transpose, (s.query, q_row, s.u, p.tile + p.column_step, columns, p.pad))


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
def activate_keys(p: Plan, w: Weights, s: Scratch, first: int, columns: int, ragged: int) -> None:
    """Turn projections of the keys in so many columns from `first` into features, and sum these up in scratch."""
    e, add = p.element, s.add if p.key_shift != 0 else w.log_weight
    function = p.key_activation_ragged if ragged != 0 else p.key_activation
    u, offsets, valid = s.u + first * e, s.offsets + first * e, s.valid + first * e
    call(function, (u, p.tile + p.column_step, offsets, add, valid, p.rows, p.pad, columns, s.sums))


@jit
def _share(p: Plan, plain: int, count: int, rows: int) -> int:
    """Return how many bytes to ask for at each register tile of a product of so many rows; none if not `plain`.

    All together are those of `count` rows of an input, and of one of values.
    """
    if plain == 0:
        return 0
    tiles = max(rows // p.row_step * (p.width_pad // p.column_step), 1)
    return up(count * max(p.dim, p.width) * p.element // tiles, LINE)


@jit
def _lowest(at: int, row: int, first: int, count: int) -> int:
    """Return the lowest address of so many rows from `first` on, which may run backwards."""
    return at + first * row + min(0, (count - 1) * row)


@jit
def add_keys(p: Plan, s: Scratch, t: Task, first: int, count: int, v: int, v_row: int, after: int) -> None:
    """Add the features of so many keys from column `first` on, and values, to the state.

    Meanwhile as many keys and values from key `after` on are fetched.
    """
    call(p.accumulate, (t.z, s.sums, p.total))
    u, u_row = s.u + first * p.element, p.tile + p.column_step
    size = _share(p, t.k_plain & t.v_plain, count, p.total)
    ahead = (_lowest(t.k, t.k_row, after, count), _lowest(t.v, t.v_row, after, count), size)
    call(p.gemm_add_ahead, (u, u_row, 1, v, v_row, t.kv, p.width_pad, p.total, p.width_pad, count, *ahead))


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
            activate_keys(p, w, s, 0, columns, int(found != columns))
            add_keys(p, s, t, 0, n, v, v_row, i + n)
        i, total = i + n, total + found
    return total


@jit
def query_rows(p: Plan, s: Scratch, t: Task, q: int, count: int, centre: int) -> tuple[int, int, int]:
    """Return whether queries are finite, where they lie in padded rows, and the rows' stride."""
    source, to = (q, t.q_row, t.q_column), (p.dim, centre, s.x, p.dim_pad + p.column_step)
    return _rows(p, p.pack_q, source, t.q_plain, (0, count, up(count, p.row_step)), to)


@jit
def load_queries(p: Plan, w: Weights, s: Scratch, t: Task, q: int, count: int, logs: int) -> tuple[int, int, int]:
    """Project queries; return whether they are finite, where they lie in padded rows, and the rows' stride.

    Of an exponential map their offsets matter for logs only.
    """
    rows, q_row = up(count, p.row_step), p.total + p.column_step
    fine, x, x_row = query_rows(p, s, t, q, count, w.query_centre)
    if p.weight_row == 0:
        for r in range(rows):
            call(p.copy, (x + r * x_row * p.element, s.query + r * q_row * p.element, p.pad))
    elif p.hadamard_rows != 0:
        call(p.hadamard_rows, (x, x_row, w.signs, w.norms, s.query, q_row, rows, p.rows // p.dim))
    else:
        gemm, own = _rows_of(p, count)
        call(gemm, (x, x_row, 1, w.query, p.weight_row, s.query, q_row, own, p.pad, p.dim))
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
def read_state(p: Plan, w: Weights, s: Scratch, t: Task, count: int, logs: int, after: int, out: int) -> None:
    """Activate loaded queries, and contract them with the state into sums, denominators and, for logs, their scale.

    Meanwhile the next queries, which lie at `after`, and room for results at `out`, if these go there, are fetched.
    """
    rows, q_row = up(count, p.row_step), p.total + p.column_step
    call(p.sum, (w.log_weight, t.shift, s.new, p.total))
    queries = (s.query, q_row, s.offsets, s.new, t.z, p.rows, p.pad, rows, s.denominator, s.top)
    call(p.query_activation, queries)
    if count == 1:
        call(p.gemm_row, (s.query, q_row, 1, t.kv, p.width_pad, s.out, p.width_pad, 1, p.width_pad, p.total))
    else:
        after = _lowest(after, t.q_row, 0, count)
        out = after if t.part_mode == 1 else _lowest(out, t.out_row, 0, count)
        ahead = (after, out, _share(p, t.q_plain, count, rows))
        sums = (s.out, p.width_pad, rows, p.width_pad, p.total)
        call(p.gemm_ahead, (s.query, q_row, 1, t.kv, p.width_pad, *sums, *ahead))
    if p.key_shift == 0:
        call(p.copy, (w.base, s.top, rows))
    elif logs:
        call(p.sum, (s.top, s.offsets, s.top, rows))


@jit
def add_triangle(p: Plan, s: Scratch, first: int, count: int, v: int, v_row: int) -> None:
    """Let query r see keys c <= r of so many from column `first` on."""
    u, q_row, u_row = s.u + first * p.element, p.total + p.column_step, p.tile + p.column_step
    rows = up(count, p.row_step)
    for r in range(0, rows, p.rows_at_once):
        stop = min(r + p.rows_at_once, rows)
        queries, scores = s.query + r * q_row * p.element, s.scores + r * u_row * p.element
        gemm, own = (p.gemm_row, 1) if count == 1 else (p.gemm, stop - r)
        call(gemm, (queries, q_row, 1, u, u_row, scores, u_row, own, up(stop, p.column_step), p.total))
    call(p.triangle, (s.scores, u_row, rows, s.denominator))
    for r in range(0, rows, p.rows_at_once):
        stop = min(r + p.rows_at_once, rows)
        scores, out = s.scores + r * u_row * p.element, s.out + r * p.width_pad * p.element
        call(p.gemm_add, (scores, u_row, 1, v, v_row, out, p.width_pad, stop - r, p.width_pad, stop))


@jit
def no_features(p: Plan, w: Weights, s: Scratch, count: int) -> None:
    """Set the sums of queries that see nothing through features."""
    rows = up(count, p.row_step)
    call(p.gemm, (w.zeros, 0, 0, w.zeros, 0, s.out, p.width_pad, rows, p.width_pad, 0))
    call(p.copy, (w.zeros, s.denominator, rows))
    call(p.copy, (w.lowest, s.top, rows))
