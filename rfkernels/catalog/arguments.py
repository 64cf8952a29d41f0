"""Checks of what a catalog's methods are given."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels._checks import check_array, check_finite_arrays
from rfkernels.catalog.plan import fewest_dots
from rfkernels.catalog.records import Store, Table

SEEDS = 1 << 64
"""Seeds are less than this."""


def check_queries(queries: Any, dim: int) -> Any:
    """Require finite queries (queries, dim) or (dim,); return them as NumPy's, (queries, dim)."""
    check_array("queries", queries, 1)
    if queries.ndim > 2 or queries.shape[-1] != dim:
        raise ValueError(f"queries must have shape (queries, {dim}) or ({dim},), got {queries.shape}")
    check_finite_arrays(queries=queries)
    return np.atleast_2d(np.asarray(queries))


def check_budget(table: Table, budget: Any) -> int:
    """Require a number of dot products that suffices for a sample, or for all items."""
    items = int(table.count.sum())
    if isinstance(budget, bool) or not isinstance(budget, int | np.integer) or budget < 1:
        raise ValueError(f"budget must be a positive number of dot products per query, got {budget!r}")
    least = fewest_dots(table)
    if budget < least and budget < items:
        raise ValueError(f"budget must be at least {least} for this catalog (cells, dim and a sample), got {budget}")
    return int(budget)


def check_seed(rng: Any) -> int:
    """Require an integer seed."""
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer) or not 0 <= rng < SEEDS:
        raise ValueError(f"rng must be an integer seed from 0 to 2**64 - 1, got {rng!r}")
    return int(rng)


def check_count(name: str, count: Any, least: int, most: int) -> None:
    """Require an integer between two others."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not least <= count <= most:
        raise ValueError(f"{name} must be an integer from {least} to {most}, got {count!r}")


def check_filled(table: Table) -> None:
    """Require at least one item."""
    if not len(table.count):
        raise ValueError("the catalog is empty: there is no softmax over no items")


def rows_of_ids(store: Store, ids: Any) -> Any:
    """Return the row of each id; one that is not there is a KeyError."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, got {ids.dtype}")
    known = (ids >= 0) & (ids < len(store.slots))
    rows = np.full(ids.shape, -1, np.int64)
    rows[known] = store.slots[ids[known]]
    if (rows < 0).any():
        raise KeyError(f"no item has the id {int(ids[rows < 0].flat[0])}")
    return rows


def ids_of_rows(table: Table, rows: Any) -> Any:
    """Return the id of each row, −1 for −1."""
    return np.where(rows >= 0, table.ids[rows], -1)
