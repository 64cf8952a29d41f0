"""What a catalog holds, and copies of it: for other processes, too."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import wraps
from threading import Lock
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import numpy as np

from rfkernels.catalog import aligned
from rfkernels.catalog.layout import apart
from rfkernels.catalog.locks import lock_of
from rfkernels.catalog.records import Store, Table

_OUT_OF_BAND = 5
"""The first protocol of pickle that may leave buffers to whoever calls it, who may hand back those of the original."""


C = TypeVar("C", bound="OfStore")
P = ParamSpec("P")
R = TypeVar("R")


class Unchanged:
    """Have it be a RuntimeError that another thread changes a store meanwhile, whatever was found wrong of it then."""

    def __init__(self, held: Store, doing: str) -> None:
        self.held, self._doing, self._changes, self._whole = held, doing, held.changes, held.whole

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if error is None or isinstance(error, Exception):
            self.check()

    def check(self) -> None:
        """Raise the error if it has come to that."""
        if not (self._whole and self.held.whole and self.held.changes == self._changes):
            raise RuntimeError(f"the catalog was changed in another thread while it was {self._doing}")


def reading(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Have a method wait for a change that is under way, and raise RuntimeError if another begins before it ends."""

    @wraps(method)
    def read(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._unchanged("read: ask again"):
            return method(self, *args, **kwargs)

    return read


class OfStore:
    """What is made of a store, and is copied and pickled with all its items in memory."""

    _lock: Lock

    def _set(self, held: Store) -> None:
        self._lock = lock_of(self)
        self._held = held
        self._table: Table | None = None

    @reading
    def __len__(self) -> int:
        return int(self._store.count.sum())

    @property
    def _store(self) -> Store:
        """What is held, unless a change left it halfway."""
        if not self._held.whole:
            raise RuntimeError(
                "the catalog is not whole: a change of it was broken off halfway, or is under way in another thread. "
                "If it was broken off, load or build it again"
            )
        return self._held

    def _unchanged(self, doing: str) -> Unchanged:
        """Return what has changes of what is held be an error, once none is under way."""
        with self._lock:
            return Unchanged(self._store, doing)

    def _to_change(self) -> Store:
        """Return what is held to who has the lock."""
        self._table = None  # whatever becomes of the change: it holds arrays of the store
        return self._store

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
                setattr(held, name, aligned.copied(value))  # one after the other: no second copy of all is held
        return cls.from_store(held)

    def _replace(self, make: Callable[[Store], Store]) -> None:
        """Hold what is made of the store in its place, unless that is changed meanwhile."""
        unchanged = self._unchanged("grouped anew: it stays in the groups that it had")
        with unchanged:
            made = make(unchanged.held)
        with self._lock:
            self._table = None
            unchanged.check()
            unchanged.held.changes += 1  # who reads may have taken something of either
            self._held = made

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = self._own if protocol >= _OUT_OF_BAND else self.from_store
        with self._lock:
            unchanged = Unchanged(self._store, "copied: copy it again")
            return made, (apart(unchanged.held),), None, self._last(unchanged)

    @staticmethod
    def _last(unchanged: Unchanged) -> Iterator[None]:
        """Yield no items of a list, which are asked for when all else is copied, if it was one store all the time."""
        unchanged.check()
        yield from ()

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # changes of one are none of the other
