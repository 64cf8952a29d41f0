"""What is computed once for each table, and kept as long as the means of its cells are."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from operator import call, is_
from typing import Any, Generic, TypeVar

from rfkernels.catalog.records import Table

K = TypeVar("K")


class OfTables(Generic[K]):
    """A function of a table that remembers what it has returned.

    Parameters
    ----------
    make : callable
        What it is; the table must not be referred to by what it returns.
    """

    def __init__(self, make: Callable[[Table], K]) -> None:
        self._make = make
        self._known: dict[int, tuple[tuple[Callable[[], Any], ...], K]] = {}

    def __call__(self, table: Table) -> K:
        """Return what it is for a table."""
        key = id(table.means)
        found = self._known.get(key)
        if found is not None and all(map(is_, map(call, found[0]), table)):
            return found[1]
        made = self._make(table)
        self._known[key] = tuple(self._reference(x, key if x is table.means else None) for x in table), made
        return made

    def _reference(self, x: Any, key: int | None) -> Callable[[], Any]:
        """Return what returns an array while it is there; with the means of cells goes what is known by that key."""
        if x is None:
            return lambda: None
        return weakref.ref(x) if key is None else weakref.ref(x, lambda _: self._known.pop(key, None))
