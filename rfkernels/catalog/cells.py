"""Cells and shells: where items belong, and how those of a cell are cut into groups; checks of items and ids."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from rfkernels._arrays import FLOATS, dtype_name
from rfkernels._checks import check_array, first_nonfinite
from rfkernels.catalog.compiled import compiled

SHELLS = (32, 64, 128, 256)
"""Items in the groups of a cell from the outside on; the last size goes on to the centre."""

LARGEST = 512
"""Items in a group at most: one that outgrows this is cut by distance."""

MOST = 2**31 - 2
"""The largest id, and the most rows."""

CHUNK = 1 << 19
"""Numbers that are read at a time, of whole items."""

PER_CELL = 60
"""Items of the sample that cells are found in, for each cell."""

_IMPORTED_BY = os.getpid()
"""The process whose threads scikit-learn may have started."""

_SQUARE = float(np.finfo(np.float64).max) / 2**32
"""The largest squared distance that fits float64 when it is summed over all items there may be."""

_ROUNDS = 10
"""Rounds of k-means: more of them improve cells by less than a twentieth part of what random cells lack."""


def default_cells(count: int) -> int:
    """Return about 0.63 √n cells: what a query spends on cells and what it gains from them are then in balance."""
    return max(1, round(0.63 * math.sqrt(count)))


def shell_sizes(count: int) -> list[int]:
    """Return how many items each group of a cell takes, outermost first; a last one below half its size joins another.

    >>> shell_sizes(300), shell_sizes(40), shell_sizes(0)
    ([32, 64, 204], [40], [])
    """
    sizes: list[int] = []
    while count > 0:
        full = SHELLS[min(len(sizes), len(SHELLS) - 1)]
        if sizes and 2 * count < full:
            sizes[-1] += count
            break
        sizes.append(min(full, count))
        count -= sizes[-1]
    return sizes


def room_for(count: Any) -> Any:
    """Return how many rows groups are given that have to move: an eighth more than they fill, as far as they grow."""
    return np.minimum(count + count // 8 + 4, LARGEST)


def find_centres(sample: Any, cells: int, rng: np.random.Generator) -> Any:
    """Return the centres of cells by k-means (Lloyd's algorithm from random items, by scikit-learn).

    It sums all squares: where these would not fit, it is shown items divided by a power of 2. In a forked process on
    one thread: OpenMP would wait for ever for those that were not forked along.
    """
    import warnings

    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ImportError(
            "a catalog of more than one cell is built with scikit-learn: pip install 'rfkernels[catalog]'"
        ) from error
    seed = int(rng.integers(2**31))
    means = KMeans(cells, init="random", n_init=1, max_iter=_ROUNDS, tol=0, random_state=seed, copy_x=False)
    threads = None if os.getpid() == _IMPORTED_BY else 1
    fitting = (np.finfo(sample.dtype).maxexp - sample.size.bit_length()) // 2 - 1
    power = max(0, int(np.frexp(np.abs(sample).max())[1]) - fitting)
    with warnings.catch_warnings(), threadpool_limits(threads, user_api="openmp"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct items than cells are no fault
        found = means.fit(np.ldexp(sample, -power)).cluster_centers_
    return np.ldexp(found.astype(sample.dtype), power)


def pack(centres: Any) -> Any:
    """Return centres as `nearest` reads them."""
    return compiled("catalog_nearest").pack(centres)


def nearest(items: Any, packed: Any) -> tuple[Any, Any]:
    """Return each item's cell, that of the nearest centre, and its squared distance from there."""
    own = np.require(items, packed.centres.dtype, ["C", "W", "E"])  # compiled once, for arrays of one kind
    found: tuple[Any, Any] = compiled("catalog_nearest").nearest(own, packed)
    return found


def chunks(count: int, dim: int) -> Iterator[slice]:
    """Cut so many items into parts that are read at a time."""
    step = max(1, CHUNK // dim)
    return (slice(a, min(a + step, count)) for a in range(0, count, step))


def spans(start: Any, count: Any) -> Any:
    """Return all rows of runs, one run after another."""
    offset = np.cumsum(count) - count
    return np.arange(count.sum()) + np.repeat(start - offset, count)


def check_plain(name: str, x: Any) -> None:
    """Require an array of floats, of any number of axes."""
    check_array(name, x, 0, masked="the catalog takes none that are masked")


def check_items(items: Any, dim: int | None = None, dtype: Any = None) -> Any:
    """Require items (n, dim) that a catalog of this dim and dtype can hold unrounded; return them as of NumPy."""
    check_plain("items", items)
    if dim is not None and (items.ndim != 2 or items.shape[1] != dim):
        raise ValueError(f"items must have shape (items, {dim}), as those of the catalog, got {items.shape}")
    if items.ndim != 2 or items.shape[1] < 1:
        raise ValueError(f"items must have shape (items, dim) with dim of at least 1, got {items.shape}")
    own = held_dtype(items)
    if dtype is not None and own.itemsize > dtype.itemsize:
        allowed = ", ".join(FLOATS[1:])
        raise TypeError(
            f"items must have one of the dtypes {allowed}, because the catalog holds {dtype}, got {dtype_name(own)}"
        )
    return np.asarray(items)


def held_dtype(items: Any) -> Any:
    """Return the dtype that items are held in."""
    return np.dtype(np.float64 if items.dtype == np.float64 else np.float32)


def check_found(items: Any, square: Any, metric: Any) -> None:
    """Refuse items whose distance from the nearest centre is NaN or too large to sum, with the first bad index."""
    bad = np.flatnonzero(~(square <= min(_SQUARE, float(np.finfo(square.dtype).max))))
    if len(bad) == 0:
        return
    row = int(bad[0])
    index = first_nonfinite(np.asarray(items[row]))
    if index is None:
        told = " as they are compared for past queries" if len(metric) else ""
        kind = square.dtype
        raise ValueError(f"items must have squared norms whose sums fit {kind}{told}, but items[{row}] is too large")
    value = np.asarray(items[row])[index].astype(np.float64).item()
    raise ValueError(f"items must be finite, but items[{row}, {index[0]}] is {value}")


def plain_ids(ids: Any) -> Any:
    """Return ids as an array; those that are masked would count as if they were not."""
    if isinstance(ids, np.ma.MaskedArray):
        raise TypeError("ids must not be masked, got MaskedArray; ids.compressed() has those that are not")
    return np.asarray(ids)


def check_ids(ids: Any, count: int) -> Any:
    """Require so many distinct ids from 0 to 2³¹ − 2; return them as int32."""
    given = plain_ids(ids)
    if given.size == 0 and count == 0:
        return np.zeros(0, np.int32)
    if given.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, got {given.dtype}")
    if given.ndim != 1:
        raise ValueError(f"ids must have shape (items,), got {given.shape}")
    if given.shape != (count,):
        raise ValueError(f"ids must have shape ({count},), one for each item, got {given.shape}")
    bad = np.flatnonzero((given < 0) | (given > MOST))
    if len(bad):
        raise ValueError(f"ids must lie between 0 and {MOST}, but ids[{bad[0]}] is {given[bad[0]]}")
    given = given.astype(np.int32)
    ordered = np.sort(given)
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        raise ValueError(f"ids must be distinct, but {ordered[twice[0]]} occurs more than once")
    return given
