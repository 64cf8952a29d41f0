"""The groups that points would join as items: where those are that equal them, which nothing else tells of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.cells import nearest, pack
from rfkernels.catalog.compiled import compiled
from rfkernels.catalog.known import OfTables
from rfkernels.catalog.metric import compared
from rfkernels.catalog.records import Table


class _Homes(NamedTuple):
    """Packed centres; groups of cells from the inside outwards, where those of each cell begin, and edges of groups."""

    packed: Any
    first: Any
    order: Any
    edge: Any


def _prepared(table: Table) -> _Homes:
    order = np.lexsort((table.edge, table.cell))
    first = np.searchsorted(table.cell[order], np.arange(len(table.centres) + 1))
    return _Homes(pack(compared(table.metric, table.centres)), first, order, table.edge.copy())


_homes = OfTables(_prepared)


def homes(table: Table, points: Any) -> Any:
    """Return the group that each point (points, dim) would join, −1 for none: as many dot products as there are cells.

    Of cells that are empty, and of points that are not finite in the dtype of rows, there is none.
    """
    known, dtype = _homes(table), table.rows.dtype
    with np.errstate(over="ignore"):
        own = compared(table.metric, points.astype(dtype))
    label, square = nearest(own, known.packed)
    found = compiled("catalog_store").joined(known.first, known.order, known.edge, label, square)
    return np.where(np.isfinite(square), found, -1)
