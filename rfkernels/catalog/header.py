"""The header of a catalog's file: what it is, where its arrays are, and their checksums.

A file of version 4 is a safetensors file whose header, padded with spaces, takes the first 16 KiB; `rows` come next, so
that they can be mapped and may be written before anything else is known, then the other arrays of `LAYOUT` in their
order. The header's metadata holds `format`, `version`, `end` and `built`, the CRC-32 of each array (``crc32 rows``),
what the caller adds (``info kernel``) and, as `crc32`, that of all other metadata. CRC-32 finds any change of up to
32 neighbouring bits, and others but for one in 2³²; it is no protection from someone who means to forge a file.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rfkernels.catalog.invariants import LAYOUT, layout_of
from rfkernels.catalog.records import Store

HEADER = 1 << 14
"""Bytes before the rows."""
_FORMAT, _VERSION = "rfkernels.catalog", "4"
_JSON = HEADER - 8
_LONGEST_INFO = 8192
_LONGEST_JSON = 1 << 20  # of later versions, which are refused by name
_INFO = "info "
_CODES = {"float32": "F32", "float64": "F64", "int32": "I32", "int64": "I64", "uint8": "U8"}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


class Header(NamedTuple):
    """What a file says of itself: shape and dtype of each array, and metadata."""

    layout: dict[str, tuple[tuple[int, ...], str]]
    metadata: dict[str, str]

    @property
    def info(self) -> dict[str, str]:
        """What the caller of `save` added."""
        return {key.removeprefix(_INFO): text for key, text in self.metadata.items() if key.startswith(_INFO)}

    def crc32(self, name: str) -> str:
        """Return the checksum that the file states of an array."""
        return self.metadata.get(f"crc32 {name}", "")

    def number(self, name: str) -> int:
        """Return a number of the metadata."""
        text = self.metadata.get(name, "")
        if not re.fullmatch("[0-9]{1,18}", text):
            raise ValueError(f"{name} is {text!r}; expected a number")
        return int(text)


def checked_info(info: Mapping[str, str] | None) -> Mapping[str, str]:
    """Require strings that fit into the header."""
    info = {} if info is None else info
    for item in (text for pair in info.items() for text in pair):
        if not isinstance(item, str):
            raise TypeError(f"info must hold strings, got {item!r}")
    size = len(json.dumps(dict(info), ensure_ascii=False).encode())
    if size > _LONGEST_INFO:
        raise ValueError(f"info takes {size} bytes as JSON; expected at most {_LONGEST_INFO}")
    return info


def header_bytes(store: Store, info: Mapping[str, str], checksums: Mapping[str, str]) -> bytes:
    """Return the header of a file, given the checksums of its arrays."""
    metadata = {"format": _FORMAT, "version": _VERSION, "end": str(int(store.end)), "built": str(int(store.built))}
    metadata |= {f"crc32 {name}": checksum for name, checksum in checksums.items()}
    metadata |= {_INFO + key: text for key, text in info.items()}
    layout = layout_of(store)
    metadata["crc32"] = _checksum(metadata)
    described: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (shape, dtype) in layout.items():
        begin, end = end, end + size_of(shape, dtype)
        described[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [begin, end]}
    return _JSON.to_bytes(8, "little") + json.dumps(described, ensure_ascii=False).encode().ljust(_JSON)


def read_header(file: BinaryIO, path: Path) -> Header:
    """Read what a file says of itself; its syntax, and that arrays fill it without gaps, is the library's to check."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ModuleNotFoundError(
            f"loading a catalog needs the package {error.name!r}: pip install 'rfkernels[catalog]'"
        ) from error
    start = file.read(8)
    size = int.from_bytes(start, "little")
    if len(start) < 8 or size > _LONGEST_JSON:
        raise ValueError(f"{path} is not a catalog: expected a safetensors file that Catalog.save wrote")
    try:
        with safe_open(path, "np") as opened:
            metadata = opened.metadata() or {}
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
            layout = {
                name: (tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(f"{path} is not a catalog, or damaged: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a catalog: it is a safetensors file of something else")
    if metadata.get("version") != _VERSION:
        found = metadata.get("version")
        raise ValueError(f"{path} is a catalog of version {found!r}; this version of rfkernels reads {_VERSION!r}")
    if metadata.get("crc32") != _checksum(metadata):
        raise ValueError(f"{path} is damaged: its header does not have the checksum that it states")
    if _filled(layout, layout) != _filled(layout, LAYOUT) or layout.keys() != LAYOUT.keys():
        raise ValueError(f"{path} is damaged: it holds {', '.join(layout)}; expected {', '.join(LAYOUT)} in this order")
    return Header(layout, metadata)


def _filled(layout: Mapping[str, tuple[tuple[int, ...], str]], names: Iterable[str]) -> list[str]:
    """Return the names of arrays that take room: where the others are is not to be told from an order."""
    return [name for name in names if math.prod(layout.get(name, ((0,), ""))[0]) > 0]


def size_of(shape: tuple[int, ...], dtype: str) -> int:
    """Return how many bytes an array takes."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def _checksum(metadata: Mapping[str, str]) -> str:
    """Return the checksum of all metadata but itself; the layout is one that fits no other numbers of bytes."""
    said = sorted(item for item in metadata.items() if item[0] != "crc32")
    return f"{zlib.crc32(json.dumps(said).encode()):08x}"
