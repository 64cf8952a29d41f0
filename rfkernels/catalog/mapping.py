"""Rows that are mapped from a file, and become private page by page as they are written to."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_FIXED = 0x10
"""MAP_FIXED, of which `mmap` does not know; the same number on all systems that have it."""

_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE: what is never written to needs no memory, so it may be more than there is."""

_ROOM = 3
"""Times the rows of a file that there is room for in all: what is never written to takes addresses alone."""


class Source(NamedTuple):
    """Where rows and their codes are mapped from.

    Parameters
    ----------
    path : str
        The file.
    rows, codes : int
        Where they begin, in bytes.
    identity : (int, int)
        Device and inode: a file of the same name may have taken its place.
    """

    path: str
    rows: int
    codes: int
    identity: tuple[int, int]


class Private(NamedTuple):
    """Rows that may be written to: those of a file, which stays as it is, and free ones behind them.

    Parameters
    ----------
    memory : mmap.mmap
        What they lie in.
    rows : array, shape (room, dim)
        All of them; only pages that are written to take memory.
    codes : array, shape (⌈room / 16⌉, bytes)
        Their codes, likewise.
    first : int
        Rows before this one were in use when they were mapped.
    """

    memory: mmap.mmap
    rows: Any
    codes: Any
    first: int

    def release(self, begin: int, end: int) -> None:
        """Give back the memory of the pages that lie in a run of rows: nobody may ask what these hold any more."""
        before = self.rows.ctypes.data - _address(self.memory)
        size, page = self.rows.strides[0], mmap.PAGESIZE
        start, stop = -(-(before + begin * size) // page) * page, (before + end * size) // page * page
        if start < stop and hasattr(mmap, "MADV_DONTNEED"):
            with suppress(OSError):  # pages that were locked in memory, as by mlockall, stay there
                self.memory.madvise(mmap.MADV_DONTNEED, start, stop - start)


def source_of(file: BinaryIO, rows: int, codes: int) -> Source:
    """Return the source of rows and codes that begin there in an open file."""
    return Source(os.path.abspath(file.name), rows, codes, _identity(file))


def _identity(file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino


def privately(source: Source | Private | None, rows: Any, codes: Any, first: int) -> Private | None:
    """Return rows and codes that may be written to, with room for twice as many behind them.

    None where that cannot be: without a source, if the file is no longer there, on systems without private mappings,
    and where these set aside memory or addresses that there are not.

    Parameters
    ----------
    source : Source, optional
        Where they are.
    rows, codes : array
        They themselves, of which shapes and dtypes matter.
    first : int
        How many rows are in use.

    Raises
    ------
    OSError
        If the system refuses the mapping for another reason.
    """
    if not isinstance(source, Source) or not hasattr(mmap, "MAP_PRIVATE") or not os.path.isfile(source.path):
        return None
    with open(source.path, "rb") as file:
        if _identity(file) != source.identity:
            return None
        try:
            memory, own = _with_room(file, source.rows, rows)
            return Private(memory, own, _with_room(file, source.codes, codes)[1], first)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            return None


def _with_room(file: BinaryIO, offset: int, array: Any) -> tuple[mmap.mmap, Any]:
    """Map an array that begins there in a file, with room behind it; return what it lies in, too."""
    skipped, room, width = offset % mmap.ALLOCATIONGRANULARITY, _ROOM * len(array), array.shape[1]
    flags = mmap.MAP_PRIVATE | _NO_RESERVE
    memory = mmap.mmap(-1, max(1, skipped + _ROOM * array.nbytes), flags=flags | mmap.MAP_ANONYMOUS)
    if array.nbytes:
        _lay_over(memory, skipped + array.nbytes, file, offset - skipped, flags)
    return memory, np.frombuffer(memory, array.dtype, room * width, skipped).reshape(room, width)


def _lay_over(memory: mmap.mmap, length: int, file: BinaryIO, offset: int, flags: int) -> None:
    """Map part of a file over the beginning of memory that is mapped already, and goes with it."""
    address = _address(memory)
    system = ctypes.CDLL(None, use_errno=True).mmap
    system.restype = ctypes.c_void_p
    system.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_longlong]
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if system(address, length, access, flags | _FIXED, file.fileno(), offset) != address:
        error = ctypes.get_errno()
        raise OSError(error, f"the file cannot be mapped to be changed: {os.strerror(error)}", file.name)


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
