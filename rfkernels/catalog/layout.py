"""Where groups lie among the rows: moved to others when they are full or outgrown, and laid out anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.building import encode
from rfkernels.catalog.cells import LARGEST, MOST, SHELLS, room_for, shell_sizes
from rfkernels.catalog.codes import blocks_of
from rfkernels.catalog.lookup import append, forget, relocate
from rfkernels.catalog.metric import compared
from rfkernels.catalog.records import Store


class Moved(NamedTuple):
    """Groups of one cell that are to be laid out: items from the outside inwards, and how many each group takes."""

    group: int
    items: Any
    ids: Any
    sizes: list[int]
    edges: Any


def needed(total: Any) -> int:
    """Return how many rows groups of so many items take at most, cut or not."""
    return int((total + total // 8 + 4 * (total // SHELLS[0] + 1)).sum())


def move(store: Store, items: Any, ids: Any, group: Any, rng: np.random.Generator) -> Any:
    """Lay groups out at the end with the items that join them, in order of groups; return these and those born."""
    full, first = np.unique(group, return_index=True)
    parts = (np.split(x, first)[1:] for x in (items, ids))
    moved = [_gather(store, *each) for each in zip(full.tolist(), *parts, strict=True)]
    starts, born, known = [], [], len(store.count)
    for one in moved:
        store.ids[store.start[one.group] : store.start[one.group] + store.count[one.group]] = -1
        ends = np.cumsum(one.sizes).tolist()
        for size, stop, edge in zip(one.sizes, ends, one.edges, strict=True):
            order = stop - size + rng.permutation(size)
            run, room = slice(store.end, store.end + size), int(room_for(size))
            store.rows[run], store.ids[run] = one.items[order], one.ids[order]
            store.slots[store.ids[run]] = np.arange(run.start, run.stop)
            if stop == ends[-1]:
                starts.append(store.end)
                store.count[one.group], store.capacity[one.group] = size, room
            else:
                born.append((store.end, size, room, store.cell[one.group], edge))
            store.end += room
    relocate(store, full, np.array(starts, np.int64))
    if born:
        begin, counts, rooms, cell, edge = (np.asarray(column) for column in zip(*born, strict=True))
        append(store, begin, count=counts, capacity=rooms, cell=cell, edge=edge)
    moved_or_born = np.concatenate([full, np.arange(known, len(store.count))])
    encode(store, moved_or_born)
    return moved_or_born


def _gather(store: Store, group: int, items: Any, ids: Any) -> Moved:
    """Return all items of a group with those that join it, cut by distance if they are more than a group holds."""
    run = slice(store.start[group], store.start[group] + store.count[group])
    items, ids = np.concatenate([store.rows[run], items]), np.concatenate([store.ids[run], ids])
    if len(ids) <= LARGEST:
        return Moved(group, items, ids, [len(ids)], store.edge[group : group + 1])
    cell = store.cell[group]
    apart = compared(store.metric, items.astype(np.float64) - store.centres[cell])
    square = np.einsum("ij,ij->i", apart, apart)
    order = np.argsort(-square, kind="stable")
    outermost = store.edge[group] >= store.edge[store.cell == cell].max()
    parts = len(ids) // (LARGEST // 2)
    sizes = shell_sizes(len(ids)) if outermost else [len(x) for x in np.array_split(ids, parts)]
    edges = square[order][np.cumsum(sizes) - 1].astype(store.edge.dtype)
    return Moved(group, items[order], ids[order], sizes, edges)


def repack(store: Store, total: Any) -> None:
    """Lay all groups out side by side with room for so many items each, and a quarter more rows at the end.

    Groups that would be too large keep their size, and find the rows they will be cut into at the end.
    """
    fits = total <= LARGEST
    capacity = room_for(np.where(fits, total, store.count)).astype(np.int32)
    start = np.cumsum(capacity, dtype=np.int64) - capacity
    end = int(capacity.sum())
    size = end + end // 4 + needed(total[~fits])
    if size > MOST:
        raise ValueError(f"a catalog holds at most {MOST} rows, got {size}")
    rows, ids = np.empty((size, store.rows.shape[1]), store.rows.dtype), np.full(size, -1, np.int32)
    codes = np.zeros((blocks_of(size), store.codes.shape[1]), np.uint8)
    for old, new, count in zip(store.start.tolist(), start.tolist(), store.count.tolist(), strict=True):
        rows[new : new + count], ids[new : new + count] = (x[old : old + count] for x in (store.rows, store.ids))
    used = np.flatnonzero(ids >= 0)
    named, whole = ids[used], store.whole
    encode(replace(store, rows=rows, codes=codes, start=start), np.arange(len(start)))
    forget(store)
    if not store.slots.flags.writeable:
        store.slots = np.array(store.slots)
    store.whole = False
    store.changes += 1
    store.slots[named] = used
    vars(store).update(rows=rows, codes=codes, ids=ids, start=start, capacity=capacity, end=end, whole=whole)
