"""Checks of what a catalog's methods are given."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from rfkernels._checks import first_nonfinite
from rfkernels.catalog.cells import check_plain, plain_ids
from rfkernels.catalog.plan import fewest_dots
from rfkernels.catalog.records import Store, Table
from rfkernels.kernels import Kernel
from rfkernels.maps import lookup, names

BUDGET = 4096
"""Dot products per query by default, if that is twice the least or more."""

SEEDS = 1 << 64
"""Seeds are less than this."""

VALUES = tuple(np.dtype(x) for x in (np.float16, np.float32, np.float64))
"""What values may be, in the byte order of this machine."""

_FEW = 16
_BLOCK = 1 << 16
"""Rows of values that are looked at together."""


def check_queries(queries: Any, table: Table) -> Any:
    """Require finite queries (queries, dim) or (dim,); return them as NumPy's, (queries, dim)."""
    check_plain("queries", queries)
    dim, dtype = table.means.shape[1], table.rows.dtype
    if queries.ndim > 2 or queries.shape[-1] != dim:
        raise ValueError(f"queries must have shape (queries, {dim}) or ({dim},), got {queries.shape}")
    given = np.asarray(queries).reshape(-1, dim)
    if given.dtype == dtype:
        index = first_nonfinite(given)
    else:
        with np.errstate(over="ignore"):
            index = first_nonfinite(given.astype(dtype))
    if index is not None:
        value = float(given[index])
        raise ValueError(f"queries must be finite in the items' dtype, {dtype}, but queries{list(index)} is {value}")
    return given


def check_values(values: Any, store: Store) -> Any:
    """Require values (ids, width) or (ids,) for all ids; return them as (ids, width)."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError("values must be a plain array, got MaskedArray; the catalog takes none that are masked")
    if not isinstance(values, np.ndarray) or values.dtype not in VALUES or values.ndim not in (1, 2):
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        expected = "of float16, float32 or float64 in this machine's byte order, with a number or a row for each id"
        raise TypeError(f"values must be a numpy.ndarray {expected}, got {found}")
    if len(values) < len(store.slots):
        raise ValueError(
            f"values must have shape ({len(store.slots)}, width) or ({len(store.slots)},), got {values.shape}"
        )
    return values if values.ndim == 2 else values[:, None]


def check_means(mean: Any, values: Any, table: Table) -> None:
    """Require that means of values are numbers: it would take long to look at all values beforehand."""
    if np.isfinite(mean).all():
        return
    held = np.sort(table.ids[table.ids >= 0])
    for first in range(0, len(held), _BLOCK):
        own = values[held[first : first + _BLOCK]]
        index = first_nonfinite(own)
        if index is not None:
            row, column = index
            where = f"values[{held[first + row]}" + (f", {column}]" if values.shape[1] > 1 else "]")
            raise ValueError(f"values must be finite where items are taken, but {where} is {float(own[index])}")
    raise ValueError("values must have means that fit float64")


def check_real(name: str, x: Any, below: float = np.inf) -> None:
    """Require a positive number below another."""
    if isinstance(x, bool) or not isinstance(x, int | float | np.floating | np.integer) or not 0 < x < below:
        raise ValueError(f"{name} must be a number between 0 and {below:g}, got {x!r}")


def check_error(error: Any) -> None:
    """Require an error between 0 and 1, or none."""
    if error is not None:
        check_real("error", error, 1)


def check_budget(table: Table, budget: Any) -> int:
    """Require a number of dot products that suffices for a sample, or for all items; choose one if it is None."""
    least = fewest_dots(table)
    if budget is None:
        return max(BUDGET, 2 * least)
    if isinstance(budget, bool) or not isinstance(budget, int | np.integer) or budget < 1:
        raise ValueError(f"budget must be a positive integer, in dot products per query, got {budget!r}")
    if budget < least and not takes_all(table, budget):
        raise ValueError(f"budget must be at least {least} for this catalog (cells, dim and a sample), got {budget}")
    return int(budget)


def takes_all(table: Table, budget: int | np.integer) -> bool:
    """Return whether so many dot products suffice for all items: a few groups often tell."""
    few = len(table.count) <= budget and sum(table.count[:_FEW].tolist()) <= budget
    return bool(few and table.count.sum() <= budget)


def check_seed(rng: Any) -> int:
    """Require an integer seed."""
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer) or not 0 <= rng < SEEDS:
        raise ValueError(f"rng must be an integer seed from 0 to 2**64 - 1, got {rng!r}")
    return int(rng)


def check_count(name: str, count: Any, least: int, most: int) -> None:
    """Require an integer between two others."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not least <= count <= most:
        raise ValueError(f"{name} must be an integer from {least} to {most}, got {count!r}")


def check_fit(found: Any, dtype: Any) -> None:
    """Require that no number of a query is NaN or above what a dtype has: then a dot product was too large for it."""
    most = _largest(dtype)
    few = found.ndim == 1 and len(found) <= _FEW  # of few Python sees sooner
    if not (all(map(most.__ge__, found.tolist())) if few else (found <= most).all()):
        bad = np.argwhere(~(found <= most))[0, 0]
        raise ValueError(f"queries must have dot products with items that fit {np.dtype(dtype)}; query {bad} has not")


@cache
def _largest(dtype: Any) -> float:
    return float(np.finfo(dtype).max)


def check_kernel(kernel: Any) -> Kernel:
    """Require a kernel that is not negative, or the name of a map that has one; return it."""
    if isinstance(kernel, str) and kernel not in names():
        known = [name for name in names() if (own := lookup(name).kernel) is not None and own.sign is None]
        raise ValueError(f"kernel must be a Kernel or one of {', '.join(known)}, got {kernel!r}")
    chosen = lookup(kernel).kernel if isinstance(kernel, str) else kernel
    if not isinstance(chosen, Kernel):
        raise TypeError(f"kernel must be a Kernel or the name of a map that has one, got {kernel!r}")
    if chosen.sign is not None:
        raise ValueError(f"kernel must not be negative, but {chosen.name} can be: its sums have no log")
    return chosen


def check_logs(kernel: Kernel, found: Any) -> None:
    """Require that logs of sums of a kernel are numbers, or −∞."""
    if not (found < np.inf).all():
        bad = int(np.argmin(found < np.inf))
        raise ValueError(
            f"kernel must have logs below infinity, but the sum of {kernel.name} for query {bad} has the log "
            f"{found[bad]}"
        )


def check_filled(table: Table) -> None:
    """Require at least one item."""
    if not len(table.count):
        raise ValueError("the catalog is empty: it has no items to take")


def rows_of_ids(store: Store, ids: Any) -> Any:
    """Return the row of each id; one that is not there is a KeyError."""
    ids = plain_ids(ids)
    ids = ids.astype(np.int64) if ids.size == 0 else ids
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, got {ids.dtype}")
    known = (ids >= 0) & (ids < len(store.slots))
    rows = np.full(ids.shape, -1, np.int64)
    rows[known] = store.slots[ids[known]]
    if (rows < 0).any():
        raise KeyError(f"ids must be those of items in the catalog, but it does not hold {int(ids[rows < 0].flat[0])}")
    return rows
