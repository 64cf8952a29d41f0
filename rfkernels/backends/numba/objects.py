"""Compiled code kept on disk between processes, each in a file of its own that is whole or counts for nothing.

A disk that is full, read-only or damaged costs the time to compile, and nothing else.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from rfkernels._files import whole_file

_DIGEST = 32


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
    return code if hashlib.sha256(code).digest() == digest else None


def write(name: str, code: bytes) -> None:
    """Write a file after its digest, in one step, if the disk lets one."""
    place = directory()
    if place is not None:
        with suppress(OSError), whole_file(place / name, lasting=False) as file:
            file.write(hashlib.sha256(code).digest() + code)


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
