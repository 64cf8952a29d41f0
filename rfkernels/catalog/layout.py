"""Where groups lie among the rows: moved to others when they are full or outgrown, and laid out anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog import aligned
from rfkernels.catalog.building import encode
from rfkernels.catalog.cells import LARGEST, MOST, SHELLS, room_for, shell_sizes
from rfkernels.catalog.codes import blocks_of
from rfkernels.catalog.compiled import compiled
from rfkernels.catalog.lookup import append, forget, relocate
from rfkernels.catalog.mapping import Private
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
        left = int(store.start[one.group])
        store.ids[left : left + store.count[one.group]] = -1
        if isinstance(store.source, Private):
            store.source.release(left, left + int(store.capacity[one.group]))
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


def make_room(store: Store, total: Any, more: int) -> None:
    """See to it that so many rows were never used: of those behind a file, or by laying all groups out anew."""
    size = store.end + more
    if isinstance(store.source, Private) and size <= min(len(store.source.rows), MOST):
        lengthen(store, store.source, size + (size - store.source.first) // 2)
    else:
        repack(store, total)


def lengthen(store: Store, private: Private, size: int) -> None:
    """Take rows into use up to this one, as far as there are."""
    size = min(size, len(private.rows), MOST)
    ids = np.append(store.ids, np.full(size - len(store.ids), -1, np.int32))
    vars(store).update(rows=private.rows[:size], codes=private.codes[: blocks_of(size)], ids=ids, source=private)


def rows_of(store: Store, first: int = 0) -> int:
    """Return how many rows the groups that lie from one on would take side by side."""
    return int(compiled("catalog_store").room(store.count[store.start >= first], LARGEST))


def sparse(store: Store, first: int = 0) -> bool:
    """Whether more than a quarter of the rows in use, from one on, would be free if groups lay side by side."""
    return 3 * (store.end - first) > 4 * rows_of(store, first)


def close_up(store: Store, private: Private) -> None:
    """Lay the groups behind those of a file out side by side, none farther from it than it was.

    Each is moved in one piece, which no interrupt divides: between them the store is whole.
    """
    groups = np.flatnonzero(store.start >= private.first)
    groups = groups[np.argsort(store.start[groups])]
    capacity = np.minimum(store.capacity[groups], room_for(store.count[groups]))
    ends = private.first + np.cumsum(capacity, dtype=np.int64)
    held, end = store.end, int(ends[-1]) if len(ends) else private.first
    arrays = np.asarray(store.rows), store.codes, store.ids, store.slots, (store.start, store.count, store.capacity)
    forget(store)
    store.changes += 1
    for group, first, room in zip(groups.tolist(), (ends - capacity).tolist(), capacity.tolist(), strict=True):
        compiled("catalog_store").shift(*arrays, group, first, room)
    store.end = end
    private.release(end, held)


def repack(store: Store, total: Any) -> None:
    """Lay all groups out side by side in memory with room for so many items each, and a quarter more rows at the end.

    Groups that would be too large keep their size, and find the rows they will be cut into at the end.
    """
    fits = total <= LARGEST
    capacity = room_for(np.where(fits, total, store.count)).astype(np.int32)
    end = int(capacity.sum())
    size = end + end // 4 + needed(total[~fits])
    if size > MOST:
        raise ValueError(f"a catalog holds at most {MOST} rows, got {size}")
    made = _laid_out(store, capacity, aligned.empty((size, store.rows.shape[1]), store.rows.dtype))
    used, slots = np.flatnonzero(made.ids >= 0), np.array(store.slots)
    slots[made.ids[used]] = used
    names = "rows", "codes", "ids", "start", "capacity", "end", "source"
    own = {name: getattr(made, name) for name in names}
    forget(store)
    store.changes += 1
    vars(store).update(own, slots=slots)  # all at once: an interrupt finds the one or the other


def trimmed(store: Store) -> Store:
    """Return a store that shares all arrays with this one, without the rows at the end that were never used."""
    end = store.end
    return replace(store, rows=store.rows[:end], ids=store.ids[:end], codes=store.codes[: blocks_of(end)])


def apart(store: Store) -> Store:
    """Return a store of no file, without free rows if these are many; it may share arrays with this one."""
    alone = replace(trimmed(store), index=None, source=None)
    room = rows_of(alone), alone.rows.shape[1]
    return side_by_side(alone, aligned.empty(room, alone.rows.dtype)) if sparse(alone) else alone


def side_by_side(store: Store, rows: Any) -> Store:
    """Return a store of the same groups in other rows, `rows_of` at least, which shares other arrays with it."""
    made = _laid_out(store, room_for(store.count).astype(np.int32), rows)
    used, slots = np.flatnonzero(made.ids >= 0), np.full_like(store.slots, -1)
    slots[made.ids[used]] = used
    return replace(made, slots=slots)


def _laid_out(store: Store, capacity: Any, rows: Any) -> Store:
    """Return a store whose groups lie side by side in other rows; slots do not name these yet."""
    ids = np.full(len(rows), -1, np.int32)
    codes = aligned.zeros((blocks_of(len(rows)), store.codes.shape[1]), np.uint8)
    start = np.cumsum(capacity, dtype=np.int64) - capacity
    for old, new, count in zip(store.start.tolist(), start.tolist(), store.count.tolist(), strict=True):
        rows[new : new + count], ids[new : new + count] = (x[old : old + count] for x in (store.rows, store.ids))
    own = {"start": start, "capacity": capacity, "end": int(capacity.sum()), "source": None}
    made = replace(store, rows=rows, ids=ids, codes=codes, **own)
    encode(made, np.arange(len(start)))
    return made
