"""Stores of random items, made without the library's own grouping."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels.catalog.building import encode
from rfkernels.catalog.codes import block_bytes, blocks_of
from rfkernels.catalog.invariants import LAYOUT
from rfkernels.catalog.records import Store


def in_memory(x: Any) -> bool:
    """Return whether an array lies in memory of its own, rather than in a file."""
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x.base is None


def some_store(
    items: int = 300, dim: int = 8, *, seed: int = 0, dtype: str = "float32", slack: int = 3, rows: Any = None
) -> Store:
    """Groups of 1 to 40 items in three cells, with room to grow, in random places of the table; free rows are NaN."""
    rng = np.random.default_rng(seed)
    ends = np.unique(np.append(rng.integers(1, max(items, 1) + 1, items // 20), items))[: items or None]
    count = np.diff(ends, prepend=0)[: min(items, len(ends))].astype(np.int32)
    groups = len(count)
    capacity = count + rng.integers(0, slack + 1, groups).astype(np.int32)
    places = rng.permutation(groups)
    start = np.zeros(groups, np.int64)
    start[places] = np.cumsum(capacity[places]) - capacity[places]
    end = int(capacity.sum())
    room = end + slack
    if rows is None:
        rows = np.empty((room, dim), dtype)
    rows = rows[:room]
    rows[:] = np.nan
    centres = rng.standard_normal((3 if items else 0, dim)).astype(dtype)
    cell = rng.integers(0, 3, groups).astype(np.int32)
    ids, slots = np.full(room, -1, np.int32), np.full(2 * items, -1, np.int32)
    sums, squares, names = np.zeros((groups, dim)), np.zeros(groups), rng.permutation(2 * items)
    for g, (first, many) in enumerate(zip(start, count, strict=True)):
        own = slice(first, first + many)
        rows[own] = centres[cell[g]] + rng.standard_normal((many, dim))
        ids[own], names = names[:many], names[many:]
        apart = rows[own] - centres[cell[g]].astype(np.float64)
        sums[g], squares[g] = apart.sum(0), (apart**2).sum()
    taken = np.flatnonzero(ids >= 0)
    slots[ids[taken]] = taken
    shape = np.eye(dim) / dim
    codes, anchors, scales = (
        np.zeros((blocks_of(room), block_bytes(dim, rows.itemsize)), np.uint8),
        centres + 1,
        centres.sum(0) ** 2 + 1,
    )
    axes, log = np.linalg.qr(rng.standard_normal((dim, dim)))[0], rng.standard_normal(dim)
    metric = ((axes * np.exp(log - log.mean())) @ axes.T).astype(dtype)
    given = centres, shape, slots, codes, anchors, scales.astype(dtype), metric[: dim * (items % 2)]
    store = Store(rows, ids, start, count, capacity, cell, np.zeros(groups), sums, squares, *given, end, items)
    encode(store, np.arange(groups))
    return store


def same(a: Store, b: Store) -> bool:
    """Whether two stores are equal to the last bit, dtypes included."""
    arrays = ((getattr(a, name), getattr(b, name)) for name in LAYOUT)
    equal = all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in arrays)
    return equal and (a.end, a.built) == (b.end, b.built)
