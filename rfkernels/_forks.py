"""Locks that no other thread holds when a process is forked, so that every child can take them.

What they protect is whole then, too: of a thread that compiles, or imports what compiles, nothing is left in a child
that could finish it.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - its lock, as that of logging, has to be taken after those below
import logging  # noqa: F401
import os
import threading
from contextlib import AbstractContextManager
from typing import Any

loading = threading.RLock()
"""Held by who imports a backend."""

_locks: list[AbstractContextManager[Any]] = [loading]


class _Own(threading.local):
    """What a thread took for each fork that it began: a signal may begin one while another waits."""

    def __init__(self) -> None:
        self.taken: list[list[AbstractContextManager[Any]]] = []


_own = _Own()


def wait_for(*locks: AbstractContextManager[Any]) -> None:
    """Let forks wait for reentrant locks, each of which is only taken by who holds none of those after it."""
    _locks.extend(locks)


def _take() -> None:
    taken: list[AbstractContextManager[Any]] = []
    _own.taken.append(taken)
    for lock in _locks:
        lock.__enter__()
        taken.append(lock)


def _leave() -> None:
    taken = _own.taken.pop()
    while taken:
        taken.pop().__exit__(None, None, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take, after_in_parent=_leave, after_in_child=_leave)
