"""A catalog's store: built from items, changed, merged with others, and grouped anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rfkernels.catalog import aligned
from rfkernels.catalog.building import build, build_chosen, encode, place
from rfkernels.catalog.cells import MOST, default_cells
from rfkernels.catalog.changes import add, remove, update
from rfkernels.catalog.codes import blocks_of, spread_of
from rfkernels.catalog.invariants import LAYOUT
from rfkernels.catalog.lookup import GROUPS
from rfkernels.catalog.metric import alike, metric_of
from rfkernels.catalog.records import Store
from rfkernels.catalog.tables import spreads_of, table, typical_spread

__all__ = ["add", "build", "merge", "outgrown", "regroup", "remove", "table", "update"]

_CELLS = 2
"""Times the number of cells by default, up to which merged stores keep those of both."""

_DRIFT = 0.25
"""How much of the squared distances from centres may be due to means of cells that have moved away from there."""

_WIDER = 2.0
"""Times the squared distances from means that there were when cells were found, up to which groups suit items."""


def merge(a: Store, b: Store, *, most: int | None = None) -> Store:
    """Return a store of the items of two, with their cells and groups side by side as long as these are few.

    Nothing is summed or assigned anew then: items keep their cells, so a merged store has as many as both. Where that
    would be too many, or items are not compared in the same way in both, items of the smaller store join the cells of
    the larger one, as `add` has it; `outgrown` then counts from when these were found. `regroup` finds common ones.

    Parameters
    ----------
    a, b : Store
        Of the same dim and dtype, without common ids. They stay as they are.
    most : int, optional
        How many cells there may be side by side; by default twice as many as `build` finds for so many items.

    Raises
    ------
    TypeError
        If they hold items of different dtypes.
    ValueError
        If they differ in dim, have an id in common, or are too many.
    """
    if a.rows.dtype != b.rows.dtype:
        raise TypeError(f"catalogs to merge must hold the same dtype, got {a.rows.dtype} and {b.rows.dtype}")
    if a.rows.shape[1] != b.rows.shape[1]:
        raise ValueError(f"catalogs to merge must agree in dim, got {a.rows.shape[1]} and {b.rows.shape[1]}")
    common = min(len(a.slots), len(b.slots))
    twice = np.flatnonzero((a.slots[:common] >= 0) & (b.slots[:common] >= 0))
    if len(twice):
        raise ValueError(f"catalogs to merge must have no ids in common, but both hold {twice[0]}")
    if a.end + b.end > MOST:
        raise ValueError(f"a catalog holds at most {MOST} rows, got {a.end} and {b.end}")
    most = _CELLS * default_cells(int(a.count.sum() + b.count.sum())) if most is None else most
    beside = alike(a.metric, b.metric) and len(a.centres) + len(b.centres) <= most
    return _side_by_side(a, b) if beside else _absorbed(a, b)


def _absorbed(a: Store, b: Store) -> Store:
    """Return a store of the cells of the one that holds more items, which those of the other have joined."""
    large, small = (a, b) if a.count.sum() >= b.count.sum() else (b, a)
    arrays: dict[str, Any] = {name: np.array(getattr(large, name)) for name in LAYOUT}
    held = replace(large, **arrays, source=None)
    rows = np.flatnonzero(small.ids >= 0)
    add(held, small.rows[rows], small.ids[rows])
    held.shape = _pooled(a, b)
    return held


def _side_by_side(a: Store, b: Store) -> Store:
    names = *GROUPS, "centres", "anchors"
    joined: dict[str, Any] = {name: np.concatenate([getattr(a, name), getattr(b, name)]) for name in names}
    joined["start"][len(a.start) :] += a.end
    joined["cell"][len(a.cell) :] += len(a.centres)
    slots = np.full(max(len(a.slots), len(b.slots)), -1, np.int32)
    slots[: len(a.slots)] = a.slots
    held = np.flatnonzero(b.slots >= 0)
    slots[held] = b.slots[held] + a.end
    rows, ids = (np.concatenate([x[: a.end], y[: b.end]]) for x, y in ((a.rows, b.rows), (a.ids, b.ids)))
    given = {
        "slots": slots,
        "shape": _pooled(a, b),
        "codes": aligned.zeros((blocks_of(len(rows)), a.codes.shape[1]), np.uint8),
        "scales": _pooled_scales(a, b),
        "metric": a.metric.copy(),
    }
    store = Store(rows, ids, end=a.end + b.end, built=a.built + b.built, **given, **joined)
    encode(store, np.arange(len(store.start)))
    return store


def _pooled_scales(a: Store, b: Store) -> Any:
    """Return scales of codes whose squares are the mean over all items of those that each was coded with."""
    own, other = (float(x.count.sum()) ** 0.5 for x in (a, b))
    whole = np.hypot(own, other) or 1.0
    return np.hypot(own / whole * a.scales, other / whole * b.scales).astype(a.scales.dtype)


def _pooled(a: Store, b: Store) -> Any:
    """Pool covariances of trace 1 by how far items of each store lie from means of their cells, none of them FAR."""
    one, other = spreads_of(table(a), table(b))
    total = one + other
    return a.shape.copy() if total == 0 else (a.shape * (one / total) + b.shape * (other / total)).astype(a.shape.dtype)


def regroup(store: Store, rng: Any = 0, *, cells: int | None = None, rows: Any = None, queries: Any = None) -> Store:
    """Return a store of the same items in cells found anew; parameters are those of `build`.

    Without queries items are compared as before. The given store stays as it is, so there are two copies of the items
    until it is given up.
    """
    metric = store.metric if queries is None else metric_of(queries, store.rows.shape[1], store.rows.dtype)
    chosen = np.flatnonzero(store.ids >= 0)
    rows = place(rows, len(chosen), store.rows.shape[1], store.rows.dtype, store.rows)
    return build_chosen(store.rows, chosen, store.ids[chosen], cells, rng, rows, metric)


def outgrown(store: Store) -> bool:
    """Whether cells no longer suit the items, so that `regroup` is worth its time; results are right either way.

    That is so when there are twice or half as many items as when the cells were found, and when items have moved away
    together: when Σ_c n_c |mean_c − mean_c then|² is more than a quarter of the sum of squared distances from centres;
    or apart: when squared distances from means have doubled.
    """
    held, count = table(store), int(store.count.sum())
    away = held.means.astype(np.float64) - store.anchors
    moved = np.bincount(store.cell, store.count, len(away)) @ np.einsum("ij,ij->i", away, away)
    apart = typical_spread(held) > _WIDER * spread_of(store.scales)
    return apart or not store.built <= 2 * count <= 4 * store.built or bool(moved > _DRIFT * store.squares.sum())
