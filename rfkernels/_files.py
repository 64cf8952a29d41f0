"""Files out that are either complete or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_TEMPORARY = ".rfkernels-{}.tmp"


@contextmanager
def whole_file(path: str | os.PathLike[str], *, lasting: bool = True) -> Iterator[BinaryIO]:
    """Open a file that takes its name only when it is complete and on disk; after any failure nothing is left.

    It is written beside `path` under the name ``.rfkernels-*.tmp``. A process that is killed leaves that, which the
    next file written to the folder removes; those being written are locked and stay. Windows knows no such lock: there
    what a killed process leaves has to be removed by hand. The mode of a file that is replaced is that of the new one.

    Parameters
    ----------
    path : str or path
        The file, no name that ends as those of folders do. Where it is a link, the file that the link names.
    lasting : bool, default True
        Whether it has to outlast a loss of power, for which the disk is waited for.

    Yields
    ------
    file : binary file
        Open for reading and writing.

    Raises
    ------
    OSError
        What `path` names is there and no regular file, or writing fails; it names a file, never the one beside it. One
        that was there is left as it was.
    """
    named, path = os.fspath(path), Path(os.path.realpath(path))
    if path.is_dir() or not os.path.basename(named):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), named)
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "is there and no regular file", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(path.parent))
    _remove_leftovers(path.parent)
    try:
        temporary, file = _temporary(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with file:
            mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
            if mode is not None:  # who removes what a killed process leaves has to open it
                temporary.chmod(mode | stat.S_IRUSR | stat.S_IWUSR)
            yield file
            file.flush()
            if lasting:
                os.fsync(file.fileno())
            if mode is not None:
                temporary.chmod(mode)
            temporary.replace(path)
        if lasting:
            _to_disk(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            error.filename = str(path)
            del error.filename2  # of a file that could not be renamed
        raise


def _temporary(folder: Path) -> tuple[Path, BinaryIO]:
    """Open a new file and lock it."""
    while True:
        temporary = folder / _TEMPORARY.format(secrets.token_hex(6))
        file = temporary.open("x+b")
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # of file systems without locks, where leftovers stay too
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # another process took it for a leftover before it was locked


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files of processes that were killed: those that nobody has locked."""
    if sys.platform == "win32":
        return
    for leftover in folder.glob(_TEMPORARY.format("*")):
        # What is gone by now, or locked, or someone else's, or on a file system without locks, is left alone.
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(descriptor)


def _to_disk(folder: Path) -> None:
    """Make the names in a folder outlast a loss of power; Windows has no such call, nor has a folder not to be read."""
    if sys.platform == "win32" or not os.access(folder, os.R_OK):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
