"""The groups that points would join as items: where those are that equal them, which nothing else tells of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.cells import chunks
from rfkernels.catalog.compiled import compiled
from rfkernels.catalog.known import OfTables
from rfkernels.catalog.metric import compared
from rfkernels.catalog.records import Table

LOOKED = 16
"""Cells whose centres a point is compared with: those of the nearest means, which guesses know the distances of."""

MORE = 1.25
"""What sums of squared distances may be more than they are known as, by rounding."""

ROUNDED = 4
"""Last digits that a squared distance may be off by from what it was when its item joined a group, and means may."""


class Homes(NamedTuple):
    """Centres as they are compared; groups of cells from the inside outwards, where those of cells begin, and edges.

    Of each group, `held` is what the squared distances of its items from the mean of the cell come to: none is more,
    from the mean as it is rounded either.
    """

    centres: Any
    first: Any
    order: Any
    edge: Any
    held: Any


@np.errstate(over="ignore")
def _prepared(table: Table) -> Homes:
    order = np.lexsort((table.edge, table.cell))
    first = np.searchsorted(table.cell[order], np.arange(len(table.centres) + 1))
    centres = compared(table.metric, table.centres).astype(np.float64)
    lengths = np.sqrt((table.means.astype(np.float64) ** 2).sum(1))[table.cell]
    held = np.sqrt(MORE * table.count * table.spread.astype(np.float64))
    held = (held + ROUNDED * np.finfo(table.means.dtype).eps * lengths) ** 2
    return Homes(centres, first, order, table.edge.copy(), held)


known_homes = OfTables(_prepared)
"""Returns what tells which groups of a table points would join."""


def looked(means: Any) -> int:
    """Return how many dot products a home takes for each point, beside those with means of cells (..., cells, dim)."""
    return min(LOOKED, int(means.shape[-2]))


@np.errstate(over="ignore", invalid="ignore")
def homes(table: Table, points: Any) -> Any:
    """Return the group that each point (points, dim) would join, −1 for none.

    Of cells that are empty, and of points that are not finite in the dtype of rows, there is none.
    """
    known, dtype, found = known_homes(table), table.rows.dtype, np.empty(len(points), np.int64)
    means, size = table.means.astype(np.float64), looked(table.means)
    for part in chunks(len(points), LOOKED * points.shape[1]):
        near = np.argpartition((means**2).sum(1) - 2 * points[part] @ means.T, size - 1)[:, :size]
        own = compared(table.metric, points[part].astype(dtype)).astype(np.float64)
        square = ((own[:, None] - known.centres[near]) ** 2).sum(-1)
        at = np.arange(len(own)), square.argmin(1)
        away = (square[at] * (1 + ROUNDED * np.finfo(dtype).eps)).astype(dtype)
        label = near[at].astype(np.int32)
        group = compiled("catalog_store").joined(known.first, known.order, known.edge, label, away)
        mean, held = means[near[at]], known.held[group]
        found[part] = np.where(np.isfinite(away) & (((points[part] - mean) ** 2).sum(1) <= held), group, -1)
    return found
