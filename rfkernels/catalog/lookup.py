"""How changes find groups: by row, and by cell and distance."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels.catalog.cells import pack
from rfkernels.catalog.compiled import compiled
from rfkernels.catalog.metric import compared
from rfkernels.catalog.records import Index, Store

GROUPS = ("start", "count", "capacity", "cell", "edge", "sums", "squares")
"""Arrays of a store with an entry for each group."""


def index(store: Store) -> Index:
    """Return the index of a store, made anew if groups were born or ended since: once in many items that change."""
    if store.index is None or store.index.owner is None:
        packed = pack(compared(store.metric, store.centres)) if store.index is None else store.index.packed
        owner, order = np.argsort(store.start), np.lexsort((store.edge, store.cell))
        first = np.searchsorted(store.cell[order], np.arange(len(store.centres) + 1))
        store.index = Index(store.start[owner], owner, order, first, packed)
    return store.index


def group_of(store: Store, rows: Any) -> Any:
    """Return the groups that rows belong to."""
    known = index(store)
    return known.owner[np.searchsorted(known.begins, rows, side="right") - 1]


def joined(store: Store, label: Any, square: Any) -> Any:
    """Return the group that each item joins; cells without any are given one of no rows yet, which is not whole."""
    known = index(store)
    group = compiled("catalog_store").joined(known.first, known.order, store.edge, label, square)
    if (group < 0).any():
        vacant = np.unique(label[group < 0])
        store.whole = False
        append(store, np.full(len(vacant), store.end), cell=vacant)
        return joined(store, label, square)
    return group


def append(store: Store, start: Any, **given: Any) -> None:
    """Append groups; what is not given is 0."""
    longer = {}
    for name in GROUPS:
        own = getattr(store, name)
        new = np.zeros((len(start), *own.shape[1:]), own.dtype)
        new[:] = start if name == "start" else given.get(name, 0)
        longer[name] = np.concatenate([own, new])
    vars(store).update(longer)
    forget(store)


def drop(store: Store, groups: Any) -> None:
    """End groups without items; the innermost of those left in their cells begin at the centre from now on."""
    left = {name: np.delete(getattr(store, name), groups, 0) for name in GROUPS}
    order = np.lexsort((left["edge"], left["cell"]))
    innermost = order[np.diff(left["cell"][order], prepend=-1) > 0]
    left["edge"][innermost] = 0  # every item of a cell has a group to join
    forget(store)
    vars(store).update(left)


def relocate(store: Store, groups: Any, start: Any) -> None:
    """Let groups begin at other rows, behind all that were used, in ascending order."""
    known = index(store)
    leave = np.zeros(len(store.start), bool)
    leave[groups] = True
    stay = ~leave[known.owner]
    begins, owner = np.append(known.begins[stay], start), np.append(known.owner[stay], groups)
    store.index = known._replace(begins=begins, owner=owner)
    store.start[groups] = start


def forget(store: Store) -> None:
    """Have the index made anew when it is next needed."""
    if store.index is not None:
        store.index = store.index._replace(owner=None)
