"""Changes of a catalog: items join groups and leave them, and every group that changed is summed again.

An item is moved within its group or, when that is full or outgrown, with its group to rows that were never used. So a
change touches as many rows as the groups that it concerns hold, at most 512 each, however many items there are. Rows
that groups have left are taken back all at once, when they are a quarter of all: the items are then laid out anew,
which comes to a constant number of rows for every item that was added or removed since.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.cells import (
    LARGEST,
    MOST,
    SHELLS,
    check_found,
    check_ids,
    check_items,
    nearest,
    room_for,
    shell_sizes,
    spans,
)
from rfkernels.catalog.compiled import compiled
from rfkernels.catalog.records import Store

GROUPS = ("start", "count", "capacity", "cell", "edge", "sums", "squares")
"""Arrays of a store with an entry for each group."""


class Moved(NamedTuple):
    """Groups of one cell that are to be laid out: items from the outside inwards, and how many each group takes."""

    group: int
    items: Any
    ids: Any
    sizes: list[int]
    edges: Any


def add(store: Store, items: Any, ids: Any, *, rng: np.random.Generator | None = None) -> None:
    """Add items under ids that are not in use.

    Each joins the cell of the nearest centre, there the outermost group that begins no farther out than it lies, and
    in that group a random place.

    Parameters
    ----------
    store : Store
        Changed in place, and not at all if an error is raised. Arrays that may not be written to, such as those of a
        mapped file, are copied at the first change, so the whole table is in memory from then on.
    items : array, shape (count, dim)
        Of a dtype that the store's holds without rounding.
    ids : array of int, shape (count,)
        From 0 to 2³¹ − 2. Four bytes are kept for every number up to the largest.
    rng : numpy.random.Generator, optional
        Where random places come from; by default one seeded by the first id and the number of items.

    Raises
    ------
    TypeError
        For items that would have to be rounded, or ids that are no integers.
    ValueError
        For items of another dim, NaN or infinity, and for ids that occur twice, are in use, or out of range.
    """
    items = check_items(items, store.rows.shape[1], store.rows.dtype)
    ids = check_ids(ids, len(items))
    taken = ids[ids < len(store.slots)]
    taken = taken[store.slots[taken] >= 0]
    if len(taken):
        raise ValueError(f"ids must not be in use, but the catalog holds {taken[0]}; update() replaces items")
    label, square = nearest(items, store.centres)
    check_found(items, square)
    _begin(store, ids)
    _settle(store, _place(store, items, ids, _joined(store, label, square), _random(store, ids, rng)))


def remove(store: Store, ids: Any) -> None:
    """Remove the items with these ids.

    The last items of a group move to the places that fall vacant. A group without items ends.

    Raises
    ------
    TypeError
        For ids that are no integers.
    ValueError
        For ids that occur twice or are out of range.
    KeyError
        For ids that the store does not hold; as after every error, nothing is changed.
    """
    ids = _held(store, ids)
    _begin(store, ids)
    _settle(store, _take(store, store.slots[ids]))


def update(store: Store, ids: Any, items: Any, *, rng: np.random.Generator | None = None) -> None:
    """Replace the items with these ids: as `remove` and `add`, but items that stay in their group keep their place.

    Parameters and errors are those of `remove` and `add`.
    """
    items = check_items(items, store.rows.shape[1], store.rows.dtype)
    ids = _held(store, ids)
    if len(ids) != len(items):
        raise ValueError(f"ids and items must agree in length, got {len(ids)} and {len(items)}")
    label, square = nearest(items, store.centres)
    check_found(items, square)
    _begin(store, ids)
    rows = store.slots[ids]
    before, after = group_of(store, rows), _joined(store, label, square)
    stay = before == after
    store.rows[rows[stay]] = items[stay]
    _take(store, rows[~stay])
    placed = _place(store, items[~stay], ids[~stay], after[~stay], _random(store, ids, rng))
    _settle(store, np.concatenate([before, placed]))


def group_of(store: Store, rows: Any) -> Any:
    """Return the groups that rows belong to."""
    order = np.argsort(store.start)
    return order[np.searchsorted(store.start[order], rows, side="right") - 1]


def _held(store: Store, ids: Any) -> Any:
    ids = check_ids(ids, np.size(ids))
    within = ids < len(store.slots)
    held = within.copy()
    held[within] = store.slots[ids[within]] >= 0
    if not held.all():
        raise KeyError(f"ids must be those of items in the catalog, but it does not hold {ids[~held][0]}")
    return ids


def _random(store: Store, ids: Any, rng: np.random.Generator | None) -> np.random.Generator:
    return rng if rng is not None else np.random.default_rng([*ids[:1].tolist(), int(store.count.sum())])


def _begin(store: Store, ids: Any) -> None:
    """See to it that arrays may be written to, and that there is a slot for every id."""
    if not store.rows.flags.writeable:
        _repack(store, store.count)
    for field in fields(store):
        value = getattr(store, field.name)
        if isinstance(value, np.ndarray) and not value.flags.writeable and field.name != "rows":
            setattr(store, field.name, np.array(value))
    needed = int(ids.max(initial=-1)) + 1
    if needed > len(store.slots):
        store.slots = _longer(store.slots, needed)


def _longer(slots: Any, size: int) -> Any:
    """Return slots for ids below `size`: a view of more, so that to grow one by one takes constant time for each."""
    whole = slots.base
    own = isinstance(whole, np.ndarray) and whole.flags.owndata and whole.dtype == slots.dtype
    if not own or whole.ctypes.data != slots.ctypes.data or len(whole) < size:
        whole = np.full(min(size + size // 4, MOST + 1), -1, slots.dtype)
        whole[: len(slots)] = slots
    return whole[:size]


def _joined(store: Store, label: Any, square: Any) -> Any:
    """Return the group that each item joins; cells without any are given one of no rows yet."""
    vacant = np.setdiff1d(label, store.cell)
    _append(store, np.full(len(vacant), store.end), cell=vacant)
    keys = store.cell + 1j * store.edge  # complex numbers are ordered by their real, then by their imaginary parts
    order = np.argsort(keys, kind="stable")
    return order[np.searchsorted(keys[order], label + 1j * square, side="right") - 1]


def _append(store: Store, start: Any, **given: Any) -> None:
    """Append groups; what is not given is 0."""
    for name in GROUPS:
        own = getattr(store, name)
        new = np.zeros((len(start), *own.shape[1:]), own.dtype)
        new[:] = start if name == "start" else given.get(name, 0)
        setattr(store, name, np.concatenate([own, new]))


def _place(store: Store, items: Any, ids: Any, group: Any, rng: np.random.Generator) -> Any:
    """Write items to rows of their groups; return the groups that changed."""
    order = np.argsort(group, kind="stable")
    items, ids, group = items[order].astype(store.rows.dtype, copy=False), ids[order], group[order]
    total = store.count + np.bincount(group, minlength=len(store.count)).astype(np.int32)
    full = total > store.capacity
    if store.end + _needed(total[full]) > len(store.rows):
        _repack(store, total)
        full = total > store.capacity
    over = full[group]
    born = _move(store, np.flatnonzero(full), items[over], ids[over], group[over], rng)
    _insert(store, items[~over], ids[~over], group[~over], rng)
    return np.concatenate([group, born])


def _needed(total: Any) -> int:
    """Return how many rows groups of so many items take at most, cut or not."""
    return int((total + total // 8 + 4 * (total // SHELLS[0] + 1)).sum())


def _insert(store: Store, items: Any, ids: Any, group: Any, rng: np.random.Generator) -> None:
    """Insert items, in order of their groups, into groups that have room.

    Each changes places with a random item of its group or none, as in the inside-out shuffle of Fisher and Yates: an
    order that was random stays so. The first new item of each group goes at once, then the second, and so on.
    """
    first = np.searchsorted(group, group, side="left")
    rank = np.arange(len(group)) - first
    turn = np.argsort(rank, kind="stable")
    rows, slots = store.rows, store.slots
    for now in np.split(turn, np.cumsum(np.bincount(rank))[:-1]):
        start, held = store.start[group[now]], store.count[group[now]] + rank[now]
        last, place = start + held, start + rng.integers(held + 1)
        rows[last], store.ids[last] = rows[place], store.ids[place]
        rows[place], store.ids[place] = items[now], ids[now]
        slots[store.ids[last]], slots[ids[now]] = last, place
    store.count = store.count + np.bincount(group, minlength=len(store.count)).astype(np.int32)


def _move(store: Store, full: Any, items: Any, ids: Any, group: Any, rng: np.random.Generator) -> Any:
    """Lay groups out at the end together with items that join them; return the groups that were born."""
    cuts = np.searchsorted(group, [full, full + 1]).T
    moved = [_gather(store, g, items[a:b], ids[a:b]) for g, (a, b) in zip(full.tolist(), cuts.tolist(), strict=True)]
    born, known = [], len(store.count)
    count, start, capacity = store.count.copy(), store.start.copy(), store.capacity.copy()
    for one in moved:
        store.ids[start[one.group] : start[one.group] + count[one.group]] = -1
        ends = np.cumsum(one.sizes).tolist()
        for size, stop, edge in zip(one.sizes, ends, one.edges, strict=True):
            order = stop - size + rng.permutation(size)
            run, room = slice(store.end, store.end + size), int(room_for(size))
            store.rows[run], store.ids[run] = one.items[order], one.ids[order]
            store.slots[store.ids[run]] = np.arange(run.start, run.stop)
            if stop == ends[-1]:
                start[one.group], count[one.group], capacity[one.group] = store.end, size, room
            else:
                born.append((store.end, size, room, store.cell[one.group], edge))
            store.end += room
    store.count, store.start, store.capacity = count, start, capacity
    if born:
        begin, counts, rooms, cell, edge = (np.asarray(column) for column in zip(*born, strict=True))
        _append(store, begin, count=counts, capacity=rooms, cell=cell, edge=edge)
    return np.arange(known, len(store.count))


def _gather(store: Store, group: int, items: Any, ids: Any) -> Moved:
    """Return all items of a group with those that join it, cut by distance if they are more than a group holds."""
    run = slice(store.start[group], store.start[group] + store.count[group])
    items, ids = np.concatenate([store.rows[run], items]), np.concatenate([store.ids[run], ids])
    if len(ids) <= LARGEST:
        return Moved(group, items, ids, [len(ids)], store.edge[group : group + 1])
    cell = store.cell[group]
    apart = items.astype(np.float64) - store.centres[cell]
    square = np.einsum("ij,ij->i", apart, apart)
    order = np.argsort(-square, kind="stable")
    outermost = store.edge[group] >= store.edge[store.cell == cell].max()
    parts = len(ids) // (LARGEST // 2)
    sizes = shell_sizes(len(ids)) if outermost else [len(x) for x in np.array_split(ids, parts)]
    edges = square[order][np.cumsum(sizes) - 1].astype(store.edge.dtype)
    return Moved(group, items[order], ids[order], sizes, edges)


def _take(store: Store, rows: Any) -> Any:
    """Take items out of their groups; return the groups that changed.

    Places that fall vacant are filled with the last items of the group, so that a random order stays random.
    """
    group = group_of(store, rows)
    lost = np.bincount(group, minlength=len(store.count)).astype(np.int32)
    left = store.count - lost
    store.slots[store.ids[rows]] = -1
    store.ids[rows] = -1
    changed = np.flatnonzero(lost)
    changed = changed[np.argsort(store.start[changed])]
    last = spans(store.start[changed] + left[changed], lost[changed])
    last = last[store.ids[last] >= 0]
    vacant = np.sort(rows[rows - store.start[group] < left[group]])
    store.rows[vacant], store.ids[vacant] = store.rows[last], store.ids[last]
    store.slots[store.ids[vacant]] = vacant
    store.ids[last] = -1
    store.count = left
    return changed


def _settle(store: Store, changed: Any) -> None:
    """Sum groups that changed again, end those without items, and take free rows back if they are many."""
    changed = np.unique(changed)
    changed = changed[store.count[changed] > 0]
    centre = store.centres[store.cell[changed]]
    sums, squares = compiled("catalog_store").summed(store.rows, store.start[changed], store.count[changed], centre)
    store.sums[changed], store.squares[changed] = sums, squares
    if not store.count.all():
        alive = store.count > 0
        for name in GROUPS:
            setattr(store, name, getattr(store, name)[alive])
        order = np.lexsort((store.edge, store.cell))
        innermost = order[np.diff(store.cell[order], prepend=-1) > 0]
        store.edge[innermost] = 0  # every item of a cell has a group to join
    if 3 * store.end > 4 * room_for(store.count).sum():
        _repack(store, store.count)


def _repack(store: Store, total: Any) -> None:
    """Lay all groups out side by side with room for so many items each, and a quarter more rows at the end.

    Groups that would be too large keep their size, and find the rows they will be cut into at the end.
    """
    fits = total <= LARGEST
    capacity = room_for(np.where(fits, total, store.count)).astype(np.int32)
    start = np.cumsum(capacity, dtype=np.int64) - capacity
    end = int(capacity.sum())
    size = end + end // 4 + _needed(total[~fits])
    if size > MOST:
        raise ValueError(f"a catalog holds at most {MOST} rows, got {size}")
    rows, ids = np.empty((size, store.rows.shape[1]), store.rows.dtype), np.full(size, -1, np.int32)
    for old, new, count in zip(store.start.tolist(), start.tolist(), store.count.tolist(), strict=True):
        rows[new : new + count], ids[new : new + count] = (x[old : old + count] for x in (store.rows, store.ids))
    used = np.flatnonzero(ids >= 0)
    if not store.slots.flags.writeable:
        store.slots = np.array(store.slots)
    store.slots[ids[used]] = used
    store.rows, store.ids, store.start, store.capacity, store.end = rows, ids, start, capacity, end
