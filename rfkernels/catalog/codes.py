"""Codes of items: four bits for each number, from which logits are guessed at a fraction of what dot products cost.

An item is about anchor + step · (code − 7.5) · scales, where the anchor is a point of its cell that stays where it is.
The codes of BLOCK rows lie together: four numbers of each row in the low halves of four bytes and the next four in the
high ones, row after row, then the same for the next eight numbers, and so on; last come the steps, bfloat16 numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.records import Table

BLOCK = 16
"""Rows whose codes lie together."""

LEVELS, MIDDLE = 16, 7.5
"""How many codes there are, and the one that stands for 0."""

TOGETHER = 8
"""Numbers of a row that lie together, in four bytes."""

STEP = 0.3352
"""Of 16 equal steps, the size that rounds normal numbers of deviation 1 with the least squared error (Max 1960)."""

DEAREST = 0.375
"""What a code may cost, in dot products, to be of use."""

LEAST_SCALE = 0.01
"""The least scale of a dimension, relative to the average: items may come to differ where those there are do not."""

LARGEST = 127
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


def block_bytes(dim: int, itemsize: int) -> int:
    """Return the bytes of the codes of a block of rows; 0 where codes would cost too much to be of use."""
    size = -(-dim // TOGETHER) * (TOGETHER // 2) + 2
    return BLOCK * size if size <= DEAREST * dim * itemsize else 0


def blocks_of(rows: int) -> int:
    """Return how many blocks rows take."""
    return -(-rows // BLOCK)


def scales_of(shape: Any) -> Any:
    """Return the scales of codes for items of that covariance about their means: deviations, 1 on the average."""
    return np.sqrt(np.maximum(np.diag(shape) * len(shape), LEAST_SCALE**2)).astype(shape.dtype)


def cost(table: Table) -> float:
    """Return what reading a code costs, in dot products: bytes over bytes."""
    return float(table.codes.shape[1] / (BLOCK * table.rows.shape[1] * table.rows.dtype.itemsize))


def rounded(query: Any, scales: Any) -> Rounded:
    """Round a query to the numbers that codes are multiplied by."""
    scaled = query.astype(np.float64) * scales.astype(np.float64)
    unit = float(np.abs(scaled).max()) / LARGEST
    return Rounded(np.rint(scaled / unit).astype(np.int64) if unit > 0 else np.zeros(len(scaled), np.int64), unit)


def residuals(table: Table, rows: Any, given: Rounded) -> Any:
    """Return what codes say of q·(y − anchor), (rows,)."""
    dim, block, lane = table.rows.shape[1], rows // BLOCK, rows % BLOCK
    packed = table.codes[:, : -2 * BLOCK].reshape(len(table.codes), -1, BLOCK, TOGETHER // 2)[block, :, lane]
    numbers = np.concatenate([packed & 15, packed >> 4], -1).reshape(len(rows), -1)[:, :dim]
    return steps(table.codes)[block, lane] * given.unit * (numbers @ given.numbers - MIDDLE * given.numbers.sum())


def steps(codes: Any) -> Any:
    """Return the steps of rows in float64, (blocks, BLOCK)."""
    bits = np.ascontiguousarray(codes[:, -2 * BLOCK :]).view("<u2").astype(np.uint32) << 16
    return bits.view(np.float32).astype(np.float64)


def moved(table: Table) -> Any:
    """Return the cells whose means are no longer where their anchors are."""
    return np.flatnonzero((table.means != table.anchors).any(1))
