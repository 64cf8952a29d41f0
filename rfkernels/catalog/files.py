"""Catalogs in files: safetensors with a version and checksums, written whole or not at all; see `header`."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rfkernels._checks import check_flags
from rfkernels._files import whole_file
from rfkernels.catalog import aligned
from rfkernels.catalog.copies import Unchanged
from rfkernels.catalog.header import HEADER, Header, checked_info, header_bytes, read_header, size_of
from rfkernels.catalog.invariants import (
    LAYOUT,
    MAPPED,
    check_arrays,
    check_contents,
    check_layout,
    check_rows,
)
from rfkernels.catalog.layout import rows_of, side_by_side, sparse, trimmed
from rfkernels.catalog.mapping import Private, source_of
from rfkernels.catalog.records import Store

_BLOCK = 1 << 20
"""Bytes of an array that are gone through at a time."""


def save(store: Store, path: str | os.PathLike[str], info: Mapping[str, str] | None = None) -> None:
    """Write a catalog to a file, which takes its name only when it is complete and on disk.

    Every array is gone through once, a MiB at a time: no second copy is held, nor all of what is mapped, but for codes
    where groups are laid out anew: where a quarter of the rows are free, they are written side by side. If writing
    fails, or the process is killed, the file that was there is still there, unchanged. What a killed process leaves
    beside it, ``.rfkernels-*.tmp``, is removed by the next that writes to the folder. The file that `store.rows` is
    mapped from may be the one replaced.

    Parameters
    ----------
    store : Store
        What to write.
    path : str or path
        The file; one that is there is replaced.
    info : mapping of str to str, optional
        What else to write, for `read_info`; 8 KiB of JSON at most.

    Raises
    ------
    ValueError
        Something of `store` is not as `Store` says, so that `load` would refuse it, or `info` is too long.
    TypeError
        `info` holds something else than strings.
    OSError
        The file cannot be written.
    RuntimeError
        `store` was changed meanwhile.
    """
    info = checked_info(info)
    with whole_file(_named(path)) as file, Unchanged(store, "saved: nothing is written"):
        held = replace(store)
        check_arrays(held)
        if isinstance(held.source, Private):  # or each mapping that is changed and saved would add room
            held = trimmed(held)
        if sparse(held):
            shape = max(1, rows_of(held)), held.rows.shape[1]
            _fill_file(file, shape, held.rows.dtype, partial(side_by_side, held), info)
        else:
            file.write(bytes(HEADER))
            _write(file, held, info, rows_are_there=False)


def create(
    path: str | os.PathLike[str],
    shape: tuple[int, int],
    dtype: str,
    fill: Callable[[Any], Store],
    info: Mapping[str, str] | None = None,
) -> None:
    """Write a catalog that is larger than memory: its rows are filled in the file itself.

    Parameters
    ----------
    path : str or path
        The file, which takes its name only when it is complete and on disk, as in `save`.
    shape : (room, dim)
        Shape of the rows.
    dtype : {"float32", "float64"}
        Dtype of the rows.
    fill : function of an array that returns a `Store`
        Given a writable array of that shape, mapped from the file and 0 everywhere. The rows of the store that it
        returns are this array or the first part of it; they are read-only afterwards.
    info : mapping of str to str, optional
        As in `save`.

    Raises
    ------
    ValueError, TypeError, OSError
        As in `save`; ValueError also if the store has other rows than the given ones. Where the disk has no room for
        the rows, the error comes before `fill` is called.

    Examples
    --------
    >>> files.create("items.catalog", items.shape, "float32", lambda rows: build(items, rows=rows))  # doctest: +SKIP
    """
    info = checked_info(info)
    if dtype not in LAYOUT["rows"][1] or len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"rows must be of dtype float32 or float64 and have a shape (room, dim), got {dtype} {shape}")
    with whole_file(_named(path)) as file:
        _fill_file(file, shape, dtype, fill, info)


def load(path: str | os.PathLike[str], *, mapped: bool = False, verify: bool = False) -> Store:
    """Read a catalog from a file that `save` or `create` wrote.

    Nothing in a file is run. All that `Store` says of its arrays is checked, and so are their checksums, so that a file
    that was cut off, altered or made by something else is refused; memory is taken for no more than the file holds.

    Parameters
    ----------
    path : str or path
        The file.
    mapped : bool, default False
        Leave the rows and their codes in the file and map them, read-only; the rest is read. The file must not be
        written in place meanwhile; saving over it is fine, since that makes a new one. Changes of the catalog take
        memory for the groups that they touch, and leave the file as it is.
    verify : bool, default False
        Go through mapped rows all the same, to check their checksum and that items are finite. Rows that are not mapped
        are always checked.

    Returns
    -------
    store : Store
        The catalog.

    Raises
    ------
    ValueError
        The file is not one of a catalog, or of a later version, or it is damaged.
    OSError
        The file cannot be read.
    """
    path = Path(_named(path))
    check_flags(mapped=mapped, verify=verify)
    with _opened(path) as (file, header):
        try:
            return _read(file, header, mapped, verify)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def read_info(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return what was written with a catalog besides its arrays: the `info` of `save`; raises what `load` does."""
    with _opened(Path(_named(path))) as (_, header):
        return header.info


def _named(path: Any) -> str:
    """Return a path as it was given: one that ends in a slash is that of a folder."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or os.PathLike, got {path!r}")
    return os.fspath(path)


# Writing


def _fill_file(
    file: BinaryIO, shape: tuple[int, int], dtype: Any, fill: Callable[[Any], Store], info: Mapping[str, str]
) -> None:
    size = HEADER + math.prod(shape) * np.dtype(dtype).itemsize
    if hasattr(os, "posix_fallocate"):  # or a full disk would end the process when the mapped rows are filled
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)
    rows = np.memmap(file, dtype, "r+", HEADER, shape)
    store = fill(np.asarray(rows))
    check_arrays(store)
    same = store.rows.ctypes.data == rows.ctypes.data and store.rows.flags.c_contiguous
    if not same or store.rows.dtype != rows.dtype or store.rows.shape[1] != rows.shape[1]:
        raise ValueError("fill must return a store whose rows are those it was given, or the first of them; got others")
    store.rows.flags.writeable = False
    rows.flush()
    file.truncate(HEADER + store.rows.nbytes)
    file.seek(0, os.SEEK_END)
    _write(file, store, info, rows_are_there=True)


def _write(file: BinaryIO, store: Store, info: Mapping[str, str], rows_are_there: bool) -> None:
    """Write the arrays from where the file stands, and the header, which takes checksums, at its beginning."""
    checksums = {}
    for name in LAYOUT:
        crc = 0
        for first, block in _blocks(getattr(store, name)):
            if name == "rows":
                check_rows(first, block, store.ids)
            if name != "rows" or not rows_are_there:
                file.write(block)
            crc = zlib.crc32(block, crc)
        checksums[name] = f"{crc:08x}"
    file.seek(0)
    file.write(header_bytes(store, info, checksums))


# Reading


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Header]]:
    """Open a file and read its header."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file; expected one that Catalog.save wrote")
    while True:
        with path.open("rb") as file:
            header = read_header(file, path)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file, header
                return
            # It was replaced meanwhile: the header may be that of the new file.


def _read(file: BinaryIO, header: Header, mapped: bool, verify: bool) -> Store:
    check_layout(header.layout)
    arrays, offsets, offset = {}, {}, HEADER
    for name in LAYOUT:
        shape, dtype = header.layout[name]
        in_file = mapped and name in MAPPED and size_of(shape, dtype) > 0
        array = _map(file, offset, shape, dtype) if in_file else _fill(file, offset, shape, dtype, name)
        if not in_file or verify:
            crc = 0
            for _, block in _blocks(array):
                crc = zlib.crc32(block, crc)
            if header.crc32(name) != f"{crc:08x}":
                raise ValueError(f"{name} does not have the checksum that the header states")
        arrays[name], offsets[name] = array, offset
        offset += size_of(shape, dtype)
    source = source_of(file, offsets["rows"], offsets["codes"]) if mapped else None
    store = Store(**arrays, end=header.number("end"), built=header.number("built"), source=source)
    check_contents(store)
    if not mapped or verify:
        for first, block in _blocks(store.rows):
            check_rows(first, block, store.ids)
    return store


def _map(file: BinaryIO, offset: int, shape: tuple[int, ...], dtype: str) -> Any:
    return np.asarray(np.memmap(file, np.dtype(dtype).newbyteorder("<"), "r", offset, shape))


def _fill(file: BinaryIO, offset: int, shape: tuple[int, ...], dtype: str, name: str) -> Any:
    make = aligned.empty if name in MAPPED else np.empty
    array = make(shape, np.dtype(dtype).newbyteorder("<"))
    file.seek(offset)
    for _, block in _blocks(array):
        if file.readinto(block) != block.nbytes:  # type: ignore[attr-defined]
            raise ValueError("it was cut off while it was read")
    return array


def _blocks(array: Any) -> Iterator[tuple[int, Any]]:
    """Yield runs of rows of about `_BLOCK` bytes, contiguous, each after the index of its first."""
    step = max(1, _BLOCK * len(array) // max(1, array.nbytes))
    for first in range(0, len(array), step):
        yield first, np.ascontiguousarray(array[first : first + step])
