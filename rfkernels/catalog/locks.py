"""Locks that a forked process can take, whichever thread held them when it was forked."""

from __future__ import annotations

import os
from threading import Lock
from typing import Any
from weakref import WeakSet

_OWNERS: WeakSet[Any] = WeakSet()


def lock_of(owner: Any) -> Lock:
    """Return a lock that the owner keeps as `_lock`, where every forked process will find a new one."""
    _OWNERS.add(owner)
    return Lock()


def _renew() -> None:
    for owner in _OWNERS:
        owner._lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
