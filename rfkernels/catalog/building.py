"""Build a catalog's store: centres from a sample, a pass that assigns items to cells, and one that copies them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from rfkernels._checks import generator_of
from rfkernels.catalog import aligned
from rfkernels.catalog.cells import (
    LARGEST,
    MOST,
    PER_CELL,
    SHELLS,
    check_found,
    check_ids,
    check_items,
    chunks,
    default_cells,
    find_centres,
    held_dtype,
    nearest,
    pack,
    shell_sizes,
)
from rfkernels.catalog.codes import BLOCK, block_bytes, blocks_of, scales_of
from rfkernels.catalog.compiled import compiled
from rfkernels.catalog.metric import compared, metric_of, restored
from rfkernels.catalog.records import Store
from rfkernels.catalog.tables import FAR, table, typical_spread

OUT = 16.0
"""How many times as far from all centres as half of the items are items lie in no cell with others."""

LOOSE, SPREAD = 1.6, 4.2
"""How many times as far from the centre, squared, as half of the outermost group of a cell are items lie elsewhere.

Sums in which an item counts that lies so are missed: what is guessed of its group is what the others are. In few
dimensions distances vary more: it is one and SPREAD over the root of the dimension there.
"""

RARE, JOINED = 256, 48
"""One item of so many, at most, lies elsewhere for that, and so many of these to a cell; of fewer items none does."""

FEW = 8
"""One cell more for so many of them, at most, is found for items that lie far from all."""


def build(
    items: Any,
    ids: Any = None,
    *,
    cells: int | None = None,
    rng: Any = 0,
    rows: Any = None,
    queries: Any = None,
    growing: bool = False,
) -> Store:
    """Group items into cells and these into shells.

    Centres come from k-means on a sample, 60 items a cell. Every item joins the nearest centre; those of a cell are
    sorted by distance and cut from the outside into groups of 32, 64, 128, 256, 256, … items in random order.

    Parameters
    ----------
    items : array, shape (n, dim)
        Read in parts, so it may be mapped from a file that is larger than memory. float64 is held as such, any other
        dtype as float32.
    ids : array of int, shape (n,), optional
        Distinct, from 0 to 2³¹ − 2; by default 0 to n − 1. Four bytes are kept for every number up to the largest.
    cells : int, optional
        From 1 to n; about 0.63 √n by default. Cells that no item joins are left out. Items that lie 16 times as far
        from all centres as half of the items do get cells of their own, an eighth more at most, and at least one. By
        default so do some that lie far beyond most of the outermost group of their cell, one of 256 items at most.
    rng : int, numpy.random.SeedSequence or numpy.random.Generator, default 0
    rows : array, shape (room, dim), optional
        Where items are copied to, with room for at least n: an array that may be written to, such as a mapped file.
    queries : array, shape (count, dim), optional
        Past queries: items are compared as `rfkernels.catalog.metric` has it.
    growing : bool, default False
        Leave an eighth more rows to each group, in whole blocks of codes, if there are so many; rows behind the last
        group are left out.

    Returns
    -------
    Store
        Besides the items, it takes about 8 bytes and dim / 2 + 2 of codes for each of them, and 8 · dim for each group.

    Raises
    ------
    TypeError
        For arrays of a wrong type.
    ValueError
        For NaN or infinity, wrong shapes, ids that occur twice or are out of range, and for a wrong number of cells.
    ImportError
        If scikit-learn is missing and there is more than one cell.
    """
    items = check_items(items)
    ids = np.arange(len(items), dtype=np.int32) if ids is None else check_ids(ids, len(items))
    dim, dtype = items.shape[1], held_dtype(items)
    metric = metric_of(queries, dim, dtype)
    return build_chosen(items, None, ids, cells, rng, place(rows, len(items), dim, dtype, items), metric, growing)


def place(rows: Any, count: int, dim: int, dtype: Any, items: Any) -> Any:
    """Return where so many items are copied to: the rows given, if they are fit for that, or new ones."""
    if count > MOST:
        raise ValueError(f"a catalog holds at most {MOST} items, got {count}")
    if rows is None:
        return aligned.empty((count, dim), dtype)
    if not isinstance(rows, np.ndarray) or rows.dtype != dtype or not rows.flags.writeable:
        raise TypeError(f"rows must be a NumPy array of {dtype} that may be written to, got {rows!r:.80}")
    if rows.ndim != 2 or len(rows) < count or rows.shape[1] != dim:
        raise ValueError(f"rows must have shape (at least {count}, {dim}), got {rows.shape}")
    if not rows.flags.c_contiguous:
        raise ValueError("rows must lie in C order, the numbers of an item side by side")
    if np.may_share_memory(rows, items):
        raise ValueError("rows must not share memory with items")
    return rows


def build_chosen(
    items: Any, chosen: Any, ids: Any, cells: int | None, rng: Any, rows: Any, metric: Any, growing: bool = False
) -> Store:
    """Build from all items, or from those chosen by position."""
    rng, n = generator_of(rng), len(ids)
    most = max(1, n)
    wanted = default_cells(n) if cells is None else cells
    if isinstance(wanted, bool) or not isinstance(wanted, int | np.integer) or not 1 <= wanted <= most:
        raise ValueError(f"cells must be an integer from 1 to {most}, at most one for each item, got {cells!r}")
    few = min(n, PER_CELL * wanted)
    places = np.sort(rng.choice(n, few, replace=False, shuffle=False))
    sample = _read(items, chosen, places, rows.dtype)
    centres = _centres(items, chosen, sample, int(wanted), rng, metric)
    label, square = _assign(items, chosen, n, centres, metric)
    beyond = min(OUT**2 * _median(square[places]), float(np.finfo(square.dtype).max))
    far = np.flatnonzero(square > beyond) if beyond else np.arange(0)
    centres = _join_far(items, chosen, centres, (label, square), far, len(far), rng, metric)
    order, held_by = _inwards(label, square, len(centres))
    loose = _loose(order, held_by, square, rows.shape[1]) if cells is None else np.arange(0)
    if len(loose):
        centres = _join_far(items, chosen, centres, (label, square), loose, len(loose) // JOINED, rng, metric)
        order, held_by = _inwards(label, square, len(centres), order)
    if n:
        centres, held_by = centres[held_by > 0], held_by[held_by > 0]
    groups = _shells(order, held_by, square, rng)
    if growing:
        rows = _make_room(groups, rows)
    where, count = np.empty(n, np.int32), groups["count"]
    where[order] = np.arange(n) + np.repeat(groups["start"] - np.cumsum(count, dtype=np.int64) + count, count)
    del order, label, square, places
    for part in chunks(n, rows.shape[1]):
        compiled("catalog_store").copy(_read(items, chosen, part, rows.dtype), rows, where[part])
    held, slots = np.full(len(rows), -1, np.int32), np.full(int(ids.max(initial=-1)) + 1, -1, np.int32)
    held[where], slots[ids] = ids, where
    sums, squares = np.empty((len(groups["start"]), rows.shape[1])), np.empty(len(groups["start"]))
    runs = tuple(groups[name] for name in ("start", "count", "cell"))
    compiled("catalog_store").sum_groups(rows, np.arange(len(squares)), runs, centres, sums, squares)
    codes = aligned.zeros((blocks_of(len(rows)), block_bytes(rows.shape[1], rows.itemsize)), np.uint8)
    end = int(groups["capacity"].sum())
    groups.update(sums=sums, squares=squares, slots=slots, centres=centres, shape=None, end=end)
    store = Store(rows, held, built=n, codes=codes, anchors=centres, scales=centres[0], metric=metric, **groups)
    store.shape = _shape(store, sample)
    found = table(store)
    store.anchors, store.scales = found.means, scales_of(store.shape, typical_spread(found))
    encode(store, np.arange(len(squares)))
    return store


def encode(store: Store, groups: Any) -> None:
    """Write the codes of the items of some groups."""
    place, grid = (store.start, store.count, store.cell), (store.anchors, store.scales)
    compiled("catalog_encoding").encode_groups(store.rows, groups, place, grid, store.codes)


def _read(items: Any, chosen: Any, part: Any, dtype: Any) -> Any:
    return np.asarray(items[part if chosen is None else chosen[part]]).astype(dtype, copy=False)


def _centres(items: Any, chosen: Any, sample: Any, cells: int, rng: np.random.Generator, metric: Any) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
        square = np.einsum("ij,ij->i", *[compared(metric, sample)] * 2)
    if not np.isfinite(square).all():
        _assign(items, chosen, len(items) if chosen is None else len(chosen), np.zeros_like(sample[:1]), metric)
    return _means(sample, cells, rng, metric)


def _means(sample: Any, cells: int, rng: np.random.Generator, metric: Any) -> Any:
    if cells > 1:
        return restored(metric, find_centres(compared(metric, sample), cells, rng))
    return sample.mean(0, keepdims=True) if len(sample) else np.zeros((1, sample.shape[1]), sample.dtype)


def _assign(items: Any, chosen: Any, n: int, centres: Any, metric: Any) -> tuple[Any, Any]:
    """Return each item's cell and its squared distance from the centre, as items are compared."""
    label, square, packed = np.empty(n, np.int32), np.empty(n, centres.dtype), pack(compared(metric, centres))
    for part in chunks(n, centres.shape[1]):
        own = compared(metric, _read(items, chosen, part, centres.dtype))
        label[part], square[part] = nearest(own, packed)
    check_found(items, square, metric)
    return label, square


def _join_far(
    items: Any,
    chosen: Any,
    centres: Any,
    found: tuple[Any, Any],
    far: Any,
    most: int,
    rng: np.random.Generator,
    metric: Any,
) -> Any:
    """Give items that lie far from others cells of their own, so many at most; return the centres of all.

    The mean of a cell is moved by one item of ten thousand that lies ten thousand times farther out, away from others.
    """
    if not len(far):
        return centres
    label, square = found
    place, dtype = far if chosen is None else chosen[far], centres.dtype
    cells = max(1, min(most, len(centres) // FEW))
    few = np.sort(rng.choice(len(far), min(len(far), PER_CELL * cells), replace=False, shuffle=False))
    own = _means(_read(items, place, few, dtype), cells, rng, metric)
    joined, square[far] = _assign(items, place, len(far), own, metric)
    label[far] = len(centres) + joined
    return np.concatenate([centres, own])


def _inwards(label: Any, square: Any, cells: int, known: Any = None) -> tuple[Any, Any]:
    """Return items cell by cell, the outermost first, and how many each cell has.

    What is `known` is such an order from before some items joined new cells, behind the others.
    """
    # Of integers of 16 bits NumPy sorts digits, in a quarter of the time.
    key = (label if known is None else label[known]).astype(np.min_scalar_type(cells))
    order = np.argsort(key, kind="stable")
    if known is not None:
        order = known[order]
    count = np.bincount(label, minlength=cells)
    for a, b in pairwise([0, *np.cumsum(count).tolist()]):
        mine = order[a:b]
        away = square[mine]
        if (away[1:] > away[:-1]).any():
            mine[:] = mine[np.argsort(-away)]
    return order, count


def _loose(order: Any, count: Any, square: Any, dim: int) -> Any:
    """Return items that lie far beyond most of the outermost group of their cell, the farthest of these if many do."""
    limit, most = max(LOOSE, 1 + SPREAD / dim**0.5), len(order) // RARE
    if most < JOINED:
        return np.arange(0)
    some = count > SHELLS[0]
    outermost = order[(np.cumsum(count) - count)[some, None] + np.arange(SHELLS[0])]
    away, row = square[outermost], np.arange(len(outermost))
    beyond = (away > 0).sum(1)  # where none is, items lie on the centre
    half = (away[row, (beyond - 1) // 2] + away[row, beyond // 2]) / 2
    own = np.divide(away, half[:, None], out=np.zeros_like(away), where=half[:, None] > 0)
    places, farther = outermost[own > limit], own[own > limit]
    return np.sort(places[np.argsort(-farther, kind="stable")[:most]])


def _shells(order: Any, held: Any, square: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Cut cells of so many items into groups and return the arrays of these; shuffle items within them."""
    count: list[int] = []
    cell: list[int] = []
    edge: list[Any] = []
    for c, (a, b) in enumerate(pairwise([0, *np.cumsum(held).tolist()])):
        mine, sizes = order[a:b], shell_sizes(b - a)
        last = np.cumsum(sizes, dtype=np.int64)
        count += sizes
        cell += [c] * len(sizes)
        edge += [*square[mine[last[:-1] - 1]], 0][: len(sizes)]
        for part in np.split(mine, last[:-1]):
            rng.shuffle(part)
    counts = np.asarray(count, np.int32)
    # Groups of whole blocks come first: they begin and end with blocks of codes.
    place, start = np.argsort(counts % BLOCK != 0, kind="stable"), np.empty(len(counts), np.int64)
    start[place] = np.cumsum(counts[place], dtype=np.int64) - counts[place]
    cells_of, edges = np.asarray(cell, np.int32), np.asarray(edge, square.dtype)
    return {"start": start, "count": counts, "capacity": counts.copy(), "cell": cells_of, "edge": edges}


def _make_room(groups: dict[str, Any], rows: Any) -> Any:
    """Let groups begin at blocks, with an eighth more rows than they fill, if there are so many; return those taken."""
    count = groups["count"]
    capacity = np.minimum(BLOCK * blocks_of(count + count // 8), LARGEST).astype(np.int32)
    if capacity.sum() <= min(len(rows), MOST):
        groups.update(capacity=capacity, start=np.cumsum(capacity, dtype=np.int64) - capacity)
    return rows[: groups["capacity"].sum()]


def _median(x: Any) -> float:
    """Return the median of what is more than 0; 0 if nothing is."""
    some = x[x > 0]
    return float(np.median(some)) if len(some) else 0.0


def _shape(store: Store, sample: Any) -> Any:
    """Return the covariance of a sample about the means of cells, of trace 1; even where items do not vary.

    Items farther away than FAR times the median count as if they lay there: a few would else be all that is seen.
    """
    dim, means, packed = store.rows.shape[1], table(store).means, pack(compared(store.metric, store.centres))
    label, away = np.empty(len(sample), np.int32), np.empty(len(sample), sample.dtype)

    def apart(part: slice) -> Any:
        own = means[label[part]]
        return np.subtract(sample[part], own, out=own)

    def sizes(own: Any) -> Any:
        return np.sqrt(np.einsum("ij,ij->i", own, own, dtype=np.float64))

    def product(own: Any, limit: Any) -> Any:
        own /= limit[:, None]  # squares of the largest items fit no number
        return own.T @ own

    for part in chunks(*sample.shape):
        label[part] = nearest(compared(store.metric, sample[part]), packed)[0]
        away[part] = sizes(apart(part))
    most, total = FAR * _median(away) or 1.0, np.zeros((dim, dim))
    for part in chunks(*sample.shape):
        total += product(apart(part), np.maximum(away[part], most))
    trace = np.trace(total)
    return (total / trace if trace > 0 else np.eye(dim) / dim).astype(store.rows.dtype)
