"""What schedules of tiles are told: addresses, strides and sizes."""

from __future__ import annotations

from typing import NamedTuple

from rfkernels.backends.numba.compiling import jit
from rfkernels.backends.numba.records import order, view


class Plan(NamedTuple):
    """What is the same for every head of a pass: kernels by address, sizes in elements, flags.

    Kernels of Hadamard rows are at 0 where there are none: what they would project is multiplied. Where `weight_row` is
    0, features are given, and nothing is projected.
    """

    gemm: int
    gemm_add: int
    gemm_row: int
    gemm_ahead: int
    gemm_add_ahead: int
    pack_q: int
    pack_k: int
    pack_v: int
    finite: int
    unpack: int
    transpose: int
    valid: int
    first_valid: int
    holds: int
    offsets_columns: int
    offsets_rows: int
    rescale: int
    accumulate: int
    sum: int
    copy: int
    triangle: int
    band: int
    settle: int
    join: int
    key_activation: int
    key_activation_ragged: int
    key_shift: int
    query_activation: int
    hadamard_columns: int
    hadamard_rows: int
    element: int
    tile: int
    part: int
    band_tile: int
    row_step: int
    rows_at_once: int
    column_step: int
    dim: int
    dim_pad: int
    rows: int
    pad: int
    weight_row: int
    total: int
    width: int
    width_pad: int
    check: int


class Scratch(NamedTuple):
    """Addresses of the working memory of one thread."""

    x: int
    xt: int
    y: int
    offsets: int
    valid: int
    u: int
    sums: int
    new: int
    add: int
    v: int
    query: int
    scores: int
    out: int
    denominator: int
    top: int
    near_x: int
    near_xt: int
    near_v: int
    near_valid: int
    near_term: int
    near_scores: int
    query_x: int
    query_term: int


class Weights(NamedTuple):
    """Addresses of the packed arrays of one set of features; 0 for what it does not have."""

    query: int
    key: int
    log_weight: int
    query_matrix: int
    key_matrix: int
    query_centre: int
    key_centre: int
    query_linear: int
    key_linear: int
    query_parameters: int
    key_parameters: int
    near_parameters: int
    scale: int
    zeros: int
    base: int
    lowest: int
    signs: int
    norms: int
    centred: int


class Task(NamedTuple):
    """One run over the keys of one head: addresses of its weights, queries and rows 0, strides in bytes, what is seen.

    Query i sees keys s <= i + delta through features and, if `near`, keys i + near_low <= s < i + near_high exactly.
    With `part_mode` 1 the sums go unnormalised to the buffer at `part`, with 2 those found there, of the same rows in
    reverse, are joined. The rows of q, k or v that are `plain` are read where they lie, without a copy. Queries begin
    `q_start` bytes behind row 0.
    """

    weights: int
    queries: int
    k: int
    k_row: int
    k_column: int
    v: int
    v_row: int
    v_column: int
    mask: int
    mask_row: int
    q_start: int
    q_row: int
    q_column: int
    out_row: int
    keys: int
    kv: int
    z: int
    shift: int
    delta: int
    near: int
    near_low: int
    near_high: int
    groups: int
    part: int
    part_rows: int
    part_mode: int
    q_plain: int
    k_plain: int
    v_plain: int


FIELDS = order(Task)
"""Which of the words of a Task each is."""


class Queries(NamedTuple):
    """Where one of the query heads that share keys is read and written: addresses of row 0; 0 for what is not there."""

    q: int
    out: int
    denominator: int
    shift: int


_QUERIES = 8 * len(Queries._fields)
"""Bytes of them."""


@jit
def queries_at(first: int, index: int) -> Queries:
    """Return those of a query head, given where those of the first are that shares its keys."""
    return view(Queries, first + index * _QUERIES)


class Beside(NamedTuple):
    """What queries see exactly beside features: their block, `reach` before it and `ahead` after it, and heavy keys.

    A reach of −1 is none of these. Heavy keys are seen up to so much `later` a position as the query's own.
    Of heavy keys, padded, addresses for the first head: as columns, values, terms (the sentinel where one may not be
    seen) and positions in ascending order, 64-bit integers. `below` is the address of the kernel that counts these.
    """

    below: int
    block: int
    reach: int
    ahead: int
    later: int
    heavy: int
    heavy_pad: int
    xt: int
    v: int
    term: int
    positions: int
