"""What passes over blocks and the search for groups are told: addresses, strides and sizes."""

from __future__ import annotations

from typing import NamedTuple

from rfkernels.backends.numba.records import Ints

ONE, SCALE, SQUARE, LOWEST, SHARE, HALF = 0, 1, 2, 3, 4, 5
"""Where numbers lie that kernels read at an address: 1, the scale, its square and the sentinel; and in a search 1 over
the number of queries, and −1/2."""


class BlockPlan(NamedTuple):
    """What is the same for every head of a pass over blocks: kernels by address, sizes in elements.

    `points` are groups and, where groups are merged, room for the keys of a block behind them.
    """

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
    rows_at_once: int
    column_step: int
    dim: int
    dim_pad: int
    width: int
    width_pad: int
    groups: int
    groups_pad: int
    points: int
    far_row: int
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
    """Some queries of one head: addresses of `Queries` and of row 0, strides in bytes, sums over keys far from a block.

    Query i stands at key i + delta. `before` holds the keys below `absorbed`, and those below `until` when the task is
    done; `after`, if not 0, those far behind the last block. `shelf` has room for sums of as many blocks as `together`
    says and of every one whose number it divides. Where groups are merged, `before` has room for all points, as has
    `mass` for what they received, and `within` is that of a `BlockState`.
    """

    queries: int
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
    mass: int
    within: int
    delta: int
    groups: int


class Merging(NamedTuple):
    """What merging needs beside a pass over blocks: kernels, and the working memory of a thread, by address.

    Parameters
    ----------
    far, near, far_level, near_level : int
        For each row of queries: its weights of groups and of the first near keys, and the log scales they are on.
    scores, squares, weight, cost : int
        Products of a tile of points with all, and of each point its square, what it weighs, and what its tie costs.
    left, right : int
        Rows of differences that `fold` writes.
    nearest, ties, owner, changed : array of int32
        Of each point: its nearest one, the one it is tied to, the one it became part of; and places of groups.
    """

    receive: int
    name: int
    weigh_points: int
    cheapest: int
    tie: int
    mix: int
    fold: int
    form: int
    far: int
    near: int
    far_level: int
    near_level: int
    scores: int
    squares: int
    weight: int
    cost: int
    left: int
    right: int
    nearest_at: int
    ties_at: int
    owner_at: int
    changed_at: int
    ties: Ints
    owner: Ints
    changed: Ints


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
