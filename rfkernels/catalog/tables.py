"""What estimates read of a store, derived from the sums of its groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels.catalog.records import Store, Table
from rfkernels.catalog.spheres import middle_spread

FAR = 6.0
"""Up to how many times the distance of the middle item from the mean of its cell others count as they are.

A few that lie farther away would else be all that is seen of the rest.
"""


def table(store: Store) -> Table:
    """Return the table of a store: means of cells, and spreads of groups about them, from sums about the centres.

    With S_g = Σ (y − c) and R_g = Σ |y − c|² over the n_g items of a group, and m the mean of y − c over its cell, the
    spread is R_g / n_g − 2 m·S_g / n_g + |m|², and at least 0. It takes time in proportion to the number of groups.

    Parameters
    ----------
    store : Store

    Returns
    -------
    Table
        It shares rows and ids with the store, so it holds until the store changes.
    """
    number, sums = cell_sums(store)
    shift = sums / np.maximum(number, 1)[:, None]
    means = np.where(number[:, None] > 0, store.centres + shift, 0)
    own = shift[store.cell]
    cross = np.einsum("ij,ij->i", own, store.sums)
    spread = (store.squares - 2 * cross) / store.count + np.einsum("ij,ij->i", own, own)
    dtype, order = store.rows.dtype, np.argsort(store.cell, kind="stable")
    return Table(
        store.rows,
        store.ids,
        store.start[order],
        store.count[order],
        store.cell[order],
        np.maximum(spread, 0).astype(dtype)[order],
        means.astype(dtype),
        store.shape,
        store.codes if store.codes.shape[1] else None,
        store.anchors,
        store.scales,
        store.metric,
        store.centres,
        store.edge[order],
    )


def typical_spread(table: Table) -> float:
    """Return the mean of the squared distances of items from the means of their cells, none of which is FAR."""
    return sum(spreads_of(table))


def spreads_of(*tables: Table) -> list[float]:
    """Return what of that mean, over the items of several tables, is due to each; none is FAR from what all have."""
    spread, count = (np.concatenate([getattr(x, name) for x in tables]) for name in ("spread", "count"))
    if not count.any():
        return [0.0] * len(tables)
    # Squares of the largest items fit no number, nor do sums of others.
    spread, count = np.minimum(spread.astype(np.float64), np.finfo(spread.dtype).max / 2), count.astype(np.int64)
    near = np.minimum(spread / FAR**2, middle_spread(np, spread, count)) * (FAR**2 * count / count.sum())
    return [float(own.sum()) for own in np.split(near, np.cumsum([len(x.count) for x in tables])[:-1])]


def cell_sums(store: Store) -> tuple[Any, Any]:
    """Return how many items each cell holds, and Σ (y − centre) over them."""
    cells = len(store.centres)
    number = np.bincount(store.cell, store.count, cells).astype(np.int64)
    sums = np.zeros((cells, store.rows.shape[1]))
    order = np.argsort(store.cell, kind="stable")
    first = np.flatnonzero(np.diff(store.cell[order], prepend=-1))
    if len(order):
        sums[store.cell[order[first]]] = np.add.reduceat(store.sums[order], first)
    return number, sums
