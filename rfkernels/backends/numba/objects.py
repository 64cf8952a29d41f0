"""Compiled code kept on disk between processes, each in a file of its own that is whole or counts for nothing.

A disk that is full, read-only or damaged costs the time to compile, and nothing else. Code that no process read for a
while, as that of another version of the package, is removed.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from rfkernels._files import whole_file

_DIGEST = 32

_DAY = 24 * 60 * 60
_UNREAD = 60 * _DAY
"""Seconds after which code that was not read is removed; when it was is noted once a day."""

_NAMES = re.compile(r"rfkernels-[0-9a-f]{32}\.o|.+_[0-9a-f]{8}-\d+\.py\d+t?\.[0-9a-f]{32}\.nbc")
"""Of files of code; others may lie beside them."""


def _folders() -> tuple[Path, ...]:
    given = os.environ.get("NUMBA_CACHE_DIR")
    places = (Path(given),) if given else (Path(__file__).parent / "__pycache__", _of_user())
    return tuple(place for place in places if place is not None)


def directory() -> Path | None:
    """Return where compiled code is kept: NUMBA_CACHE_DIR, the package's own cache, or the user's; None if none can."""
    for place in _folders():
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(place, os.W_OK):
            return place
    return None


def _of_user() -> Path | None:
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(given) if given else Path.home() / ".cache") / "rfkernels"
    except RuntimeError:
        return None


def read(name: str) -> bytes | None:
    """Return what `write` wrote under a name, from whichever folder has it whole: one may be for all, and read-only."""
    return next((found for place in _folders() if (found := _whole(place / name)) is not None), None)


def _whole(path: Path) -> bytes | None:
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    digest, code = whole[:_DIGEST], whole[_DIGEST:]
    if hashlib.sha256(code).digest() != digest:
        return None
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > _DAY:
            os.utime(path)
    return code


def write(name: str, code: bytes) -> None:
    """Write a file after its digest, in one step, if the disk lets one."""
    place = directory()
    if place is not None:
        _remove_unread(place)
        with suppress(OSError), whole_file(place / name, lasting=False) as file:
            file.write(hashlib.sha256(code).digest() + code)


@cache
def _remove_unread(folder: Path) -> None:
    """Remove code that no process read for long, once in a process."""
    with suppress(OSError):
        for path in filter(lambda path: _NAMES.fullmatch(path.name), folder.iterdir()):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _UNREAD:
                    path.unlink()


class Stored:
    """Object code under a key.

    Parameters
    ----------
    key : str
        Everything that the code depends on.
    """

    def __init__(self, key: str) -> None:
        self._name = f"rfkernels-{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"
        self.code = read(self._name)

    def save(self, code: bytes) -> None:
        """Write the code under its key."""
        if self.code is None:
            write(self._name, code)
