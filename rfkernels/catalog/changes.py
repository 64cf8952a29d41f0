"""Changes of a catalog: items join groups, whose sums they are added to, and leave them, which are then summed again.

An item is moved within its group or, when that is full or outgrown, with its group to rows that were never used. So a
change touches as many rows as the groups that it concerns hold, at most 512 each, however many items there are. Rows
that groups have left are taken back all at once, when they are a quarter of all: the items are then laid out anew,
which comes to a constant number of rows for every item that was added or removed since. Rows in a file stay where they
are: groups that leave it are laid out behind it, and those it has lost are only missing when it is written again.

Nothing is subtracted from a sum, and a group is cut and summed again before many items were added one by one: sums
are those that a fresh build would take, to rounding.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from rfkernels.catalog.cells import MOST, check_found, check_ids, check_items, nearest
from rfkernels.catalog.compiled import compiled
from rfkernels.catalog.layout import close_up, lengthen, make_room, move, needed, repack, sparse
from rfkernels.catalog.lookup import drop, group_of, index, joined
from rfkernels.catalog.mapping import Private, privately
from rfkernels.catalog.metric import compared
from rfkernels.catalog.records import Store


def add(store: Store, items: Any, ids: Any, *, rng: np.random.Generator | None = None) -> None:
    """Add items under ids that are not in use.

    Each joins the cell of the nearest centre, there the outermost group that begins no farther out than it lies, and
    in that group a random place.

    Parameters
    ----------
    store : Store
        Changed in place, and not at all if an error is raised. Rows that are mapped from a file stay there, but for
        pages that are written to and groups that move: memory for all items is taken when these fill twice as many
        rows as the file has. Other arrays that may not be written to are copied at the first change.
    items : array, shape (count, dim)
        Of a dtype that the store's holds without rounding.
    ids : array of int, shape (count,)
        From 0 to 2³¹ − 2. Four bytes are kept for every number up to the largest.
    rng : numpy.random.Generator, optional
        Where random places come from; by default the first id and the number of items decide.

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
    label, square = nearest(compared(store.metric, items), index(store).packed)
    check_found(items, square, store.metric)
    _begin(store)
    size = max(len(store.slots), int(ids.max(initial=-1)) + 1)
    group = _groups(store, label, square, size)
    _moving(store)
    store.slots = _longer(store.slots, size)
    _settle(store, _place(store, items, ids, group, rng))
    store.whole = True
    _tidy(store)


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
    _begin(store)
    group = group_of(store, store.slots[ids])
    _moving(store)
    _take(store, ids, group)
    _settle(store, group)
    store.whole = True
    _tidy(store)


def update(store: Store, ids: Any, items: Any, *, rng: np.random.Generator | None = None) -> None:
    """Replace the items with these ids: as `remove` and `add`, but items that stay in their group keep their place.

    Parameters and errors are those of `remove` and `add`.
    """
    items = check_items(items, store.rows.shape[1], store.rows.dtype)
    ids = _held(store, ids)
    if len(ids) != len(items):
        raise ValueError(f"ids and items must agree in length, got {len(ids)} and {len(items)}")
    label, square = nearest(compared(store.metric, items), index(store).packed)
    check_found(items, square, store.metric)
    _begin(store)
    before = group_of(store, store.slots[ids])
    after = _groups(store, label, square, len(store.slots), before)
    stay = before == after
    _moving(store)
    _replace(store, store.slots[ids[stay]], items[stay], store.cell[before[stay]])
    _take(store, ids[~stay], before[~stay])
    placed = _place(store, items[~stay], ids[~stay], after[~stay], rng)
    _settle(store, np.concatenate([before, placed]))
    store.whole = True
    _tidy(store)


def _moving(store: Store) -> None:
    """Have a store know that items are being moved: what breaks this off leaves it so."""
    store.changes += 1
    store.whole = False


def _replace(store: Store, rows: Any, items: Any, cells: Any) -> None:
    """Write items to rows that others held, in the same cells."""
    store.rows[rows] = items
    if store.codes.shape[1]:
        given = np.asarray(store.rows), rows, cells, store.anchors, store.scales, store.codes
        compiled("catalog_encoding").encode(*given)


def _held(store: Store, ids: Any) -> Any:
    ids = check_ids(ids, np.size(ids))
    within = ids < len(store.slots)
    held = within.copy()
    held[within] = store.slots[ids[within]] >= 0
    if not held.all():
        raise KeyError(f"ids must be those of items in the catalog, but it does not hold {ids[~held][0]}")
    return ids


def _begin(store: Store) -> None:
    """See to it that arrays may be written to."""
    if not store.rows.flags.writeable:
        made = privately(store.source, store.rows, store.codes, store.end)
        if made is None:
            repack(store, store.count)
        else:
            lengthen(store, made, len(store.rows) + len(store.rows) // 4)
    for name, value in vars(store).items():
        if isinstance(value, np.ndarray) and not value.flags.writeable:
            setattr(store, name, np.array(value))


def _longer(slots: Any, size: int) -> Any:
    """Return slots for ids below `size`: a view of more, so that to grow one by one takes constant time for each."""
    whole = slots.base
    own = isinstance(whole, np.ndarray) and whole.flags.owndata and whole.dtype == slots.dtype
    if not own or whole.ctypes.data != slots.ctypes.data or len(whole) < size:
        whole = np.full(min(size + size // 4, MOST + 1), -1, slots.dtype)
        whole[: len(slots)] = slots
    return whole[:size]


def _groups(store: Store, label: Any, square: Any, size: int, before: Any = -1) -> Any:
    """Return the groups that items join, with rows for those that were in others and memory for so many slots.

    Nothing is moved yet: what is refused for want of memory, or interrupted, leaves all as it was.
    """
    try:
        group = joined(store, label, square)
        _reserve(store, group[group != before])
        store.slots = _longer(store.slots, size)[: len(store.slots)]  # none in use yet
    except BaseException:
        drop(store, np.flatnonzero(store.count == 0))  # groups that were given to vacant cells
        store.whole = True
        raise
    return group


def _reserve(store: Store, group: Any) -> None:
    """See to it that there are rows for the items that join groups."""
    over = compiled("catalog_store").crowded(store.count, store.capacity, group)
    if not over.any():
        return
    total = store.count + np.bincount(group, minlength=len(store.count)).astype(np.int32)
    more = needed(total[np.unique(group[over])])
    if store.end + more > len(store.rows):
        make_room(store, total, more)


def _place(store: Store, items: Any, ids: Any, group: Any, rng: np.random.Generator | None) -> Any:
    """Write items to rows of their groups and add them to sums; return groups that have to be summed again."""
    code, items, moved = compiled("catalog_store"), np.require(items, store.rows.dtype, ["C", "W", "E"]), group[:0]
    seed = int(ids[0] if len(ids) else 0), int(store.count.sum())
    chance = code.chances(*seed, len(ids)) if rng is None else rng.random(len(ids))
    over = code.crowded(store.count, store.capacity, group)
    if over.any():
        chosen = np.flatnonzero(over)
        chosen = chosen[np.argsort(group[chosen], kind="stable")]
        moved = move(store, items[chosen], ids[chosen], group[chosen], rng or np.random.default_rng(seed))
        items, ids, group, chance = (x[~over] for x in (items, ids, group, chance))
    place, sums = (store.start, store.count, store.cell), (store.centres, store.sums, store.squares)
    grid = store.anchors, compiled("catalog_encoding").room_of(store.scales), store.codes
    code.put(np.asarray(store.rows), store.ids, store.slots, place, *sums, grid, (items, ids, group, chance))
    return moved


def _take(store: Store, ids: Any, group: Any) -> None:
    """Take items out of their groups, which have to be summed again."""
    rows, place = np.asarray(store.rows), (store.start, store.count)
    compiled("catalog_store").take(rows, store.codes, store.ids, store.slots, place, ids, group)


def _settle(store: Store, changed: Any) -> None:
    """Sum groups again, and end those without items."""
    there = np.zeros(len(store.count), bool)
    there[changed] = True
    changed = np.flatnonzero(there)
    empty = store.count[changed] == 0
    place, code = (store.start, store.count, store.cell), compiled("catalog_store")
    code.sum_groups(store.rows, changed[~empty], place, store.centres, store.sums, store.squares)
    if empty.any():
        drop(store, changed[empty])


def _tidy(store: Store) -> None:
    """Take free rows back if they are many."""
    private = store.source if isinstance(store.source, Private) else None
    if not sparse(store, private.first if private else 0):
        return
    if private:
        close_up(store, private)
    else:
        with suppress(MemoryError):  # the change is done, and free rows can be taken back later
            repack(store, store.count)
