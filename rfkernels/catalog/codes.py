"""Codes of items: four bits for each number, from which logits are guessed at a fraction of what dot products cost.

A row of codes begins with the numbers of the first half of the dimensions in the low halves of its bytes and those of
the second half in the high ones; the last two bytes are the size of a step, a bfloat16. An item is about
anchor + step · (code − 7.5) · scales, where the anchor is a point of its cell that stays where it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.records import Table

STEP = 0.3352
"""Of 16 equal steps, the size that rounds normal numbers of deviation 1 with the least squared error (Max 1960)."""

ROUNDING = 0.0115
"""That squared error, as a part of the variance of what is rounded."""

MIDDLE = 7.5
"""The code that stands for 0."""

DEAREST = 0.375
"""What a code may cost, in dot products, to be of use."""

LEAST = 1e-4
"""The least variance that a dimension is taken to have, relative to the average."""

STEP_BYTES, ALIGNED = 2, 4

SHARPEST = 127
"""The largest number that those of a query are rounded to."""


class Rounded(NamedTuple):
    """A query times the scales of codes, in whole numbers: the products with codes are sums of integers.

    Parameters
    ----------
    numbers : array of int, shape (dim,)
        From −127 to 127.
    unit : float
        What they are multiplied by.
    """

    numbers: Any
    unit: float


def width(dim: int, itemsize: int) -> int:
    """Return the bytes of a code, a multiple of 4; 0 where codes would cost too much to be of use."""
    size = -(-(-(-dim // 2) + STEP_BYTES) // ALIGNED) * ALIGNED
    return size if size <= DEAREST * dim * itemsize else 0


def scales_of(shape: Any) -> Any:
    """Return the scales of codes for items of that covariance about their means: deviations, 1 on the average."""
    dim = len(shape)
    return np.sqrt(np.maximum(np.diag(shape) * dim, LEAST)).astype(shape.dtype)


def cost(table: Table) -> float:
    """Return what reading a code costs, in dot products: bytes over bytes."""
    return float(table.codes.shape[1] / (table.rows.shape[1] * table.rows.dtype.itemsize))


def rounded(query: Any, scales: Any) -> Rounded:
    """Round a query to the numbers that codes are multiplied by."""
    scaled = query.astype(np.float64) * scales.astype(np.float64)
    unit = float(np.abs(scaled).max()) / SHARPEST
    return Rounded(np.rint(scaled / unit).astype(np.int64) if unit > 0 else np.zeros(len(scaled), np.int64), unit)


def residuals(table: Table, rows: Any, given: Rounded) -> Any:
    """Return what codes say of q·(y − anchor), for rows of any shape."""
    own = table.codes[rows]
    half = own.shape[-1] - STEP_BYTES
    numbers = np.concatenate([own[..., :half] & 15, own[..., :half] >> 4], -1)[..., : table.rows.shape[1]]
    bits = np.ascontiguousarray(own[..., half:]).view("<u2")[..., 0].astype(np.uint32) << 16
    step = bits.view(np.float32).astype(np.float64)
    return step * given.unit * (numbers @ given.numbers - MIDDLE * given.numbers.sum())


def moved(table: Table) -> Any:
    """Return the cells whose means are no longer where their anchors are."""
    return np.flatnonzero((table.means != table.anchors).any(1))
