"""What holds for the arrays of every catalog: checked before they are written and after they are read."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import Any

import numpy as np

from rfkernels.catalog.codes import block_bytes, blocks_of
from rfkernels.catalog.records import Store

_FLOAT = ("float32", "float64")
MAPPED = "rows", "codes"
"""Arrays with a line for each row, which may be left in a file."""
LAYOUT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "rows": (("room", "dim"), _FLOAT),
    "ids": (("room",), ("int32",)),
    "start": (("groups",), ("int64",)),
    "count": (("groups",), ("int32",)),
    "capacity": (("groups",), ("int32",)),
    "cell": (("groups",), ("int32",)),
    "edge": (("groups",), _FLOAT),
    "sums": (("groups", "dim"), ("float64",)),
    "squares": (("groups",), ("float64",)),
    "centres": (("cells", "dim"), _FLOAT),
    "shape": (("dim", "dim"), _FLOAT),
    "slots": (("largest id + 1",), ("int32",)),
    "anchors": (("cells", "dim"), _FLOAT),
    "scales": (("dim",), _FLOAT),
    "metric": (("compared", "dim"), _FLOAT),
    "codes": (("blocks of codes", "bytes of a block"), ("uint8",)),
}
"""Axes and dtypes of each array of a `Store`, in the order in which they are written; equal names are equal sizes."""
_ASYMMETRY = 2.0**-12
"""How much metrics may be off by rounding."""

BLOCK = 1 << 20
"""Bytes of an array that are gone through at a time."""


def layout_of(store: Store) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of each array; dtypes in foreign byte order by a name that `check_layout` refuses."""
    arrays = {name: getattr(store, name) for name in LAYOUT}
    return {name: (array.shape, _dtype_name(array.dtype)) for name, array in arrays.items()}


def _dtype_name(dtype: Any) -> str:
    return str(dtype.name if dtype == dtype.newbyteorder("<") else dtype.str)


def check_arrays(store: Store) -> None:
    """Require NumPy arrays for which `check_layout` and `check_contents` hold."""
    for name in LAYOUT:
        if not isinstance(getattr(store, name), np.ndarray):
            raise TypeError(f"{name} must be a numpy.ndarray, got {type(getattr(store, name)).__name__}")
    check_layout(layout_of(store))
    check_contents(store)


def check_layout(given: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Require the shape and dtype of each array to be that of `LAYOUT`; sizes that have a name have to agree."""
    sizes: dict[str, tuple[int, str]] = {}
    for name, (axes, dtypes) in LAYOUT.items():
        shape, dtype = given[name]
        if dtype not in dtypes:
            raise ValueError(f"{name} is of dtype {dtype}; expected {' or '.join(dtypes)}")
        if len(shape) != len(axes):
            raise ValueError(f"{name} has shape {shape}; expected ({', '.join(axes)})")
        for axis, size in zip(axes, shape, strict=True):
            known, first = sizes.setdefault(axis, (size, name))
            if size != known:
                raise ValueError(f"{name} has shape {shape}; expected {axis} = {known} as in {first}")
    if sizes["dim"][0] < 1:
        raise ValueError("rows have dim 0; expected at least 1")
    if given["metric"][1] != given["rows"][1]:
        raise ValueError(f"metric is of dtype {given['metric'][1]}; expected {given['rows'][1]} as in rows")
    whole = blocks_of(sizes["room"][0]), block_bytes(sizes["dim"][0], np.dtype(given["rows"][1]).itemsize)
    if given["codes"][0] != whole:
        raise ValueError(f"codes has shape {given['codes'][0]}; expected {whole} for so many rows")
    if sizes["compared"][0] not in (0, sizes["dim"][0]):
        raise ValueError(f"metric has shape {given['metric'][0]}; expected as many rows as columns, or none")
    for axis in ("room", "groups", "cells", "largest id + 1"):
        if sizes[axis][0] > np.iinfo(np.int32).max:
            raise ValueError(f"{sizes[axis][1]} has {axis} = {sizes[axis][0]}; expected less than 2³¹")


def check_contents(store: Store) -> None:
    """Require everything that `Store` says of its arrays, save for the values in `rows` and what was summed of them.

    Raises
    ------
    ValueError
        With the name of the array, the first index that is wrong, its value and what was expected.
    """
    room, groups, cells = len(store.rows), len(store.start), len(store.centres)
    for name, value, most in (("end", store.end, room), ("built", store.built, np.iinfo(np.int32).max)):
        if not 0 <= index(value) <= most:
            raise ValueError(f"{name} is {value}; expected 0 to {most}")
    for name in ("edge", "sums", "squares", "centres", "shape", "anchors", "scales", "metric"):
        _require(name, getattr(store, name), np.isfinite(getattr(store, name)), "a finite number")
    for name in ("edge", "squares"):
        _require(name, getattr(store, name), getattr(store, name) >= 0, "at least 0")
    _require("scales", store.scales, store.scales > 0, "more than 0")
    _check_metric(store.metric)
    _require("cell", store.cell, (store.cell >= 0) & (store.cell < cells), f"0 to {cells - 1}")
    _require("count", store.count, (store.count >= 1) & (store.count <= store.capacity), "1 to capacity")
    inside = (store.start >= 0) & (store.start <= store.end - store.capacity)
    _require("start", store.start, inside, f"0 to end − capacity, where end is {store.end}")
    order = np.argsort(store.start)
    begins, ends = store.start[order], (store.start + store.capacity)[order]
    apart = np.ones(groups, bool)
    apart[order[1:]] = begins[1:] >= ends[:-1]
    _require("start", store.start, apart, "groups that have no row in common")
    _check_ids(store, room)


def _check_metric(metric: Any) -> None:
    """Require what `metric.metric_of` returns, which can be undone."""
    if not len(metric):
        return
    size = np.linalg.eigvalsh(metric.astype(np.float64))
    off = np.abs(metric - metric.T).max() / np.abs(metric).max(initial=np.finfo(metric.dtype).tiny)
    if not (off < _ASYMMETRY and size[0] > 0 and abs(np.log(size).mean()) < _ASYMMETRY):
        raise ValueError(
            f"metric has eigenvalues from {size[0]:.6g} to {size[-1]:.6g}; expected a symmetric one of determinant 1"
        )


def _check_ids(store: Store, room: int) -> None:
    """Require ids in the rows of groups, nowhere else, and `slots` to be their inverse."""
    ids, slots = store.ids, store.slots
    steps = np.zeros(room + 1, np.int8)
    steps[store.start] += 1  # no two groups begin, or end, at the same row
    steps[store.start + store.count] -= 1
    taken = np.cumsum(steps[:-1], dtype=np.int8).astype(bool)
    _require("ids", ids, np.where(taken, ids >= 0, ids == -1), "ids in the rows of groups, −1 elsewhere")
    _require("slots", slots, (slots >= -1) & (slots < room), f"−1 to {room - 1}")
    used = np.flatnonzero(slots >= 0)
    right = np.ones(len(slots), bool)
    right[used] = ids[slots[used]] == used
    _require("slots", slots, right, "the row of each id")
    # Rows that slots name are different ones, as their ids are: equally many of them are all there are.
    if len(used) != np.count_nonzero(taken):
        raise ValueError(f"slots name {len(used)} items; expected {np.count_nonzero(taken)}, those in groups")


def check_rows(first: int, block: Any, ids: Any) -> None:
    """Require finite items; `block` are the rows from `first` on, `ids` those of all. Free rows may hold anything."""
    ids = ids[first : first + len(block)]
    finite = np.isfinite(block)
    if finite.all():
        return
    bad = np.flatnonzero(~finite.all(axis=1) & (ids >= 0))
    if len(bad):
        raise ValueError(f"rows[{first + bad[0]}] is not finite; expected a finite item of id {ids[bad[0]]}")


def _require(name: str, values: Any, right: Any, expected: str) -> None:
    if not right.all():
        first = np.unravel_index(int(np.argmin(right)), right.shape)
        where = ", ".join(str(i) for i in first)
        raise ValueError(f"{name}[{where}] is {values[first]}; expected {expected}")
