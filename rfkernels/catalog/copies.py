"""Copies of catalogs, and what is pickled of them."""

from __future__ import annotations

import copy
from dataclasses import replace
from threading import Lock
from typing import Any, Self

from rfkernels.catalog.records import Store


class OfStore:
    """What is made of a store, and is copied and pickled with all its items in memory."""

    _lock: Lock
    _store: Store

    def _set(self, held: Store) -> None:
        raise NotImplementedError

    @classmethod
    def from_store(cls, held: Store) -> Self:
        """Return a catalog of a store that was built or loaded elsewhere."""
        made = cls.__new__(cls)
        made._set(held)
        return made

    def __reduce__(self) -> Any:
        with self._lock:
            return type(self).from_store, (replace(self._store, index=None, source=None),)

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # changes of one are none of the other
