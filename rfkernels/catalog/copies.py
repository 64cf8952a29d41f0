"""What a catalog holds, and copies of it: for other processes, too."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any, Self

import numpy as np

from rfkernels.catalog.locks import lock_of
from rfkernels.catalog.records import Store, Table

_OUT_OF_BAND = 5
"""The first protocol of pickle that may leave buffers to whoever calls it, who may hand back those of the original."""


class OfStore:
    """What is made of a store, and is copied and pickled with all its items in memory."""

    _lock: Lock

    def _set(self, held: Store) -> None:
        self._lock = lock_of(self)
        self._held = held
        self._table: Table | None = None

    @property
    def _store(self) -> Store:
        """What is held, unless a change left it halfway."""
        if not self._held.whole:
            raise RuntimeError(
                "the catalog is not whole: a change of it was broken off halfway, or is under way in another thread. "
                "Load or build it again"
            )
        return self._held

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            self._table = None  # whatever becomes of the change: it holds arrays of the store
            yield

    @classmethod
    def from_store(cls, held: Store) -> Self:
        """Return a catalog of a store that was built or loaded elsewhere."""
        made = cls.__new__(cls)
        made._set(held)
        return made

    @classmethod
    def _own(cls, held: Store) -> Self:
        """Return a catalog of a store whose arrays may be another's, as those of buffers out of band are."""
        for name, value in vars(held).items():
            if isinstance(value, np.ndarray):
                setattr(held, name, value.copy())  # one after the other: no second copy of all is held
        return cls.from_store(held)

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = self._own if protocol >= _OUT_OF_BAND else self.from_store
        with self._lock:
            return made, (replace(self._store, index=None, source=None),)

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # changes of one are none of the other
