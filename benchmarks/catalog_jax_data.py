"""What catalogs on a device are measured with: GloVe in half precision, tables, exact sums; carried in two files."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.glove import FILE, MODULE, REQUIREMENT, Array, Setting, settings_of
from benchmarks.packaged import folder
from rfkernels.catalog.records import Table

SHA256 = "98c0866621edc6c504b5e554864bcfe17e8b8650285cfd379b0ef86bc1075477"
"""Of the 400,000 vectors in half precision, as bytes."""

PARTS = "ids", "start", "count", "cell", "spread", "means", "shape", "metric", "centres", "edge"
"""What is carried of a table: all but its rows, which are the items of its ids."""


class Case(NamedTuple):
    """Settings over the same items, and the table of their catalog."""

    kind: str
    settings: list[Setting]
    table: Table


def vectors(path: Path | None, count: int | None = None) -> Array:
    """Return the vectors of a .npy file, by default that inside the installed package, rounded to half precision.

    The file may hold them in half precision already: both are the same items.
    """
    path = folder(MODULE, REQUIREMENT, "--vectors FILE") / FILE if path is None else path
    half = np.ascontiguousarray(np.load(path, allow_pickle=False), np.float16)
    found = _digest(half)
    if found != SHA256:
        raise SystemExit(f"{path} holds vectors of sha256 {found} in half precision, expected {SHA256}")
    return half[:count]


def built(half: Array, queries: int) -> tuple[list[Case], str]:
    """Build the two catalogs and sum exactly; return them, and how long it took."""
    cases, took = [], []
    for kind, settings in _kinds(half, queries):
        start = time.perf_counter()
        table = settings[0].held.catalog().table
        middle = time.perf_counter()
        assert all(np.isfinite(setting.exact).all() for setting in settings)
        took.append(f"{kind} {middle - start:.1f} s, exact sums in NumPy {time.perf_counter() - middle:.1f} s")
        cases.append(Case(kind, settings, table))
    return cases, "built: " + "; ".join(took)


def save(path: Path, cases: list[Case]) -> None:
    """Write what `loaded` reads."""
    arrays: dict[str, Any] = {}
    for kind, settings, table in cases:
        held = settings[0].held
        arrays |= {f"{kind} {name}": getattr(table, name) for name in PARTS}
        arrays |= {f"{kind} exact {tau:g}": found for tau, found in held.exact.items()}
        arrays[f"{kind} items"] = np.array(_digest(held.items))
    np.savez_compressed(path, **arrays)


def loaded(path: Path, half: Array, queries: int) -> tuple[list[Case], str]:
    """Read tables and exact sums; rows are taken from the vectors."""
    start, cases = time.perf_counter(), []
    with np.load(path, allow_pickle=False) as file:
        for kind, settings in _kinds(half, queries):
            held = settings[0].held
            # Norms, and so unit vectors, may differ by a rounding from one processor to another.
            if kind == "raw" and str(file["raw items"]) != _digest(held.items):
                raise SystemExit(f"{path} is of other items: leave --load out, or save it anew with this NumPy")
            own = {name: file[f"{kind} {name}"] for name in PARTS}
            held.exact = {tau: file[f"{kind} exact {tau:g}"] for tau in (setting.tau for setting in settings)}
            cases.append(Case(kind, settings, Table(held.items[own["ids"]], **own)))
    return cases, f"loaded in {time.perf_counter() - start:.1f} s"


def _kinds(half: Array, queries: int) -> list[tuple[str, list[Setting]]]:
    """Return the settings of raw and of unit vectors, those to be measured first at the front."""
    given = settings_of(half.astype(np.float32), queries)
    return [(kind, [x for x in given if x.name.startswith(kind)][::-1]) for kind in ("unit", "raw")]


def _digest(x: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(x).data).hexdigest()
