"""Compiled code kept on disk between processes, each in a file of its own that is whole or counts for nothing.

A disk that is full, read-only or damaged costs the time to compile, and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path

_DIGEST = 32


def directory() -> Path | None:
    """Return where compiled code is kept: NUMBA_CACHE_DIR, the package's own cache, or the user's; None if none can."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    for place in (Path(given),) if given else (Path(__file__).parent / "__pycache__", _of_user()):
        try:
            if place is not None:
                place.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if place is not None and os.access(place, os.W_OK):
            return place
    return None


def _of_user() -> Path | None:
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(given) if given else Path.home() / ".cache") / "rfkernels"
    except RuntimeError:
        return None


def read(path: Path) -> bytes | None:
    """Return what `write` wrote to a file, if it is there and whole."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    digest, code = whole[:_DIGEST], whole[_DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def write(path: Path, code: bytes) -> None:
    """Write a file after its digest, in one step, if the disk lets one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        temporary.write_bytes(hashlib.sha256(code).digest() + code)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


class Stored:
    """Object code under a key.

    Parameters
    ----------
    key : str
        Everything that the code depends on.
    """

    def __init__(self, key: str) -> None:
        place = directory()
        self._path = place and place / f"rfkernels-{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"
        self.code = None if self._path is None else read(self._path)

    def save(self, code: bytes) -> None:
        """Write the code under its key."""
        if self._path is not None and self.code is None:
            write(self._path, code)
