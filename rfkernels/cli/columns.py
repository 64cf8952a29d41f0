"""Columns of numbers, one row a query, as CSV, JSON or NPZ by the suffix of a file's name."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rfkernels.cli.files import check_suffix, check_target, whole_file
from rfkernels.cli.output import plain

Columns = Mapping[str, Any]
"""Arrays by name, each (queries,) or (queries, several)."""


def check_columns_target(path: Path, force: bool) -> None:
    """Refuse, before any work is done, a file that could not be written or whose name does not say its format."""
    check_suffix(path, _WRITERS)
    check_target(path, force)


def write_columns(path: Path, columns: Columns, force: bool) -> None:
    """Write the columns to a file that takes its name only when it is complete."""
    with whole_file(path, force) as file:
        _WRITERS[path.suffix.lower()](file, columns)


def listed(columns: Columns) -> dict[str, Any]:
    """Return the columns as lists for strict JSON, where what is not finite is null."""
    return {name: plain(values.tolist()) for name, values in columns.items()}


def _write_csv(file: BinaryIO, columns: Columns) -> None:
    """Write a line a query; several values of one query take numbered columns."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    names, single = zip(*_single(columns), strict=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(zip(*single, strict=True))
    text.detach()  # flushed, and the file stays open


def _single(columns: Columns) -> Iterator[tuple[str, Any]]:
    for name, values in columns.items():
        if values.ndim == 1:
            yield name, values
        else:
            yield from ((f"{name}_{i + 1}", column) for i, column in enumerate(values.T))


def _write_json(file: BinaryIO, columns: Columns) -> None:
    file.write(json.dumps(listed(columns), allow_nan=False).encode() + b"\n")


def _write_npz(file: BinaryIO, columns: Columns) -> None:
    np.savez(file, **columns)


_WRITERS: dict[str, Callable[[BinaryIO, Columns], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".npz": _write_npz,
}
