"""Array files in, and files out that are either complete or not there."""

from __future__ import annotations

import os
import tokenize
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np

from rfkernels import _files
from rfkernels.cli.output import BadInput

_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
# What NumPy raises on headers that are not what it wrote.
_UNREADABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)


def load_array(name: str, path: Path) -> Any:
    """Map the array of a .npy file into memory, read-only and in native byte order; `name` is the argument's."""
    where = f"{name}: {path}"
    try:
        if not path.exists():
            raise BadInput(f"{where}: no such file")
        if not path.is_file():
            raise BadInput(f"{where} is not a regular file; expected a .npy file (numpy.save)")
        with path.open("rb") as file:
            start = file.read(len(_NPY))
        if start != _NPY:
            raise BadInput(f"{where} {_what(start)}; expected a .npy file (numpy.save)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the parser, on damaged headers
            array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    except OSError as error:
        raise BadInput(f"{where} cannot be read: {error.strerror or error}") from error
    except _UNREADABLE as error:
        raise BadInput(f"{where} {_damage(error)}") from error


def _what(start: bytes) -> str:
    if not start:
        return "is empty"
    if start.startswith(_ZIP):
        return "is an archive (.npz), of which the array meant has to be saved alone"
    if start[:1] == b"\x80":
        return "is a pickle, which is refused because loading one can run any code"
    return "is not a .npy file"


def _damage(error: BaseException) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "Python objects" in reason:
        return "holds Python objects (dtype object), which are refused because loading them can run any code"
    if "mmap length" in reason or "Reached EOF" in reason or isinstance(error, EOFError):
        return "is truncated: it ends before the array that its header announces"
    return f"is damaged: {reason}"


def check_suffix(path: Path, suffixes: Collection[str], option: str = "--out") -> None:
    """Refuse a file whose name does not say what is written to it; `option` names it."""
    if path.suffix.lower() not in suffixes:
        raise BadInput(f"{option} {path}: expected a name that ends in {', '.join(suffixes)}, got {path.suffix!r}")


def check_target(path: Path, force: bool, option: str = "--out") -> None:
    """Refuse, before any work is done, a file that could not be written in the end; `option` names it."""
    try:
        folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
        if path.is_dir():
            raise BadInput(f"{option} {path} is a directory; name a file")
        if path.exists() and not path.is_file():
            raise BadInput(f"{option} {path} is there and no regular file")
        if path.exists() and not force:
            raise BadInput(f"{option} {path} exists; pass --force to replace it")
        if not folder.is_dir():
            raise BadInput(f"{option} {path}: there is no directory {folder}")
        if not os.access(folder, os.W_OK):
            raise BadInput(f"{option} {path}: the directory {folder} is not writable")
    except OSError as error:
        raise BadInput(f"{option} {path} cannot be written: {error.strerror or error}") from error


@contextmanager
def whole_file(path: Path, force: bool = False) -> Iterator[BinaryIO]:
    """Open a file that takes its name only when it is complete; after any failure nothing is left."""
    try:
        with _files.whole_file(path) as file:
            yield file
            check_target(path, force)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror or error}") from error
