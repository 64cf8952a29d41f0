"""Codes of items: four bits for each number, from which logits are guessed at a fraction of what dot products cost.

An item is about anchor + step · (code − 8) · scales, where the anchor is a point of its cell that stays where it is.
The codes of BLOCK rows lie together: four numbers of each row in the low halves of four bytes and the next four in the
high ones, row after row, then the same for the next eight numbers, and so on. Last come two bytes for each row; where
at most four numbers are left, each after two with two of these in low halves and two in high ones.

These bytes, the higher one first, are three bits of a square, twelve of the step, and the last bit of the square. The
step has six bits of an exponent, from −63, and six of a fraction, so that they lie as in single precision. The square
says how |y − anchor|² compares to (step / STEP)² Σ scales², which it is about where numbers are normal, by two bits of
an exponent, from −3, and two of a fraction.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.records import Table

BLOCK = 16
"""Rows whose codes lie together."""

LEVELS, MIDDLE = 16, 8
"""How many codes there are, and the one that stands for 0: numbers that are 0, as most are in sparse items, stay so."""

TOGETHER = 8
"""Numbers of a row that lie together, in four bytes."""

STEP, ROUNDED = 0.339, 0.0119
"""The size of steps that rounds normal numbers of deviation 1 with the least squared error, and that error."""

DEAREST = 0.375
"""What a code may cost, in dot products, to be of use."""

EXPONENT, FRACTION, STEP_BITS = -63, 6, 12
"""The least exponent of steps, bits of their fractions, and of both together."""

SQUARE_EXPONENT, SQUARE_FRACTION, SQUARE_BITS = -3, 2, 4
"""The same of squares, relative to what they are where numbers are normal."""

UNIT = 2.0**31
"""How many deviations scales are: steps of usual items are in the middle of those that there are."""

NEGLIGIBLE = 0.02
"""How many deviations means may be from their anchors: logits of a cell are off by a fifth of what rounding adds."""

LEAST_SCALE = 0.25
"""The least scale of a dimension, relative to the average: items may differ where those of a sample do not."""

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
    size = eights(dim) * (TOGETHER // 2) + (4 if shared(dim) else 2)
    return BLOCK * size if size <= DEAREST * dim * itemsize else 0


def shared(dim: int) -> bool:
    """Whether the last numbers of a row lie beside its step."""
    return 1 <= dim % TOGETHER <= TOGETHER // 2


def eights(dim: int) -> int:
    """Return how many eights of numbers a row has, but for those beside its step."""
    return dim // TOGETHER if shared(dim) else -(-dim // TOGETHER)


def blocks_of(rows: int) -> int:
    """Return how many blocks rows take."""
    return -(-rows // BLOCK)


def scales_of(shape: Any, spread: float) -> Any:
    """Return the scales of codes: deviations from the means of cells, for a covariance of trace 1 and mean square."""
    square = np.maximum(np.diag(shape).astype(np.float64), LEAST_SCALE**2 / len(shape)) * (spread or 1.0)
    return (UNIT * np.sqrt(square)).astype(shape.dtype)


def spread_of(scales: Any) -> float:
    """Return the mean square that scales were found for, to a few percent; 1 where items did not vary."""
    return float(((scales.astype(np.float64) / UNIT) ** 2).sum())


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
    whole, half = eights(dim) * BLOCK * TOGETHER // 2, TOGETHER // 2
    packed = table.codes[:, :whole].reshape(len(table.codes), eights(dim), BLOCK, half)[block, :, lane]
    numbers = np.concatenate([packed & 15, packed >> 4], -1).reshape(len(rows), TOGETHER * eights(dim))
    if shared(dim):
        last = table.codes[:, whole:].reshape(-1, BLOCK, 4)[block, lane, :2]
        numbers = np.concatenate([numbers, last & 15, last >> 4], -1)
    step = steps(table.codes, dim)[block, lane]
    return step * given.unit * (numbers[:, :dim] @ given.numbers - MIDDLE * given.numbers.sum())


def logits_of(table: Table, query: Any, rows: Any, cells: Any, cell_logits: Any) -> Any:
    """Return what codes say of q·y, (rows,), where products with the means of all cells are known."""
    anchored, changed = cell_logits.copy(), moved(table)
    anchored[changed] = table.anchors[changed] @ query
    return anchored[cells] + residuals(table, rows, rounded(query, table.scales))


def variances(table: Table, rows: Any, given: Rounded) -> Any:
    """Return how much rounding lets what codes say vary: steps are equally likely to be missed by any part of one."""
    step = steps(table.codes, table.rows.shape[1])[rows // BLOCK, rows % BLOCK]
    return step**2 * (given.unit * given.unit * (given.numbers @ given.numbers) / 12)


def steps(codes: Any, dim: int) -> Any:
    """Return the steps of rows in float64, (blocks, BLOCK)."""
    return _number(_words(codes, dim) >> 1 & ((1 << STEP_BITS) - 1), EXPONENT, FRACTION)


def squares(table: Table, rows: Any) -> Any:
    """Return what codes say of |y − anchor|², (rows,)."""
    block, lane, dim = rows // BLOCK, rows % BLOCK, table.rows.shape[1]
    step = steps(table.codes, dim)[block, lane]
    word = _words(table.codes, dim)[block, lane]
    square = word >> STEP_BITS + 1 << 1 | word & 1
    return _number(square, SQUARE_EXPONENT, SQUARE_FRACTION) * step**2 * square_unit(table)


def square_unit(table: Table) -> float:
    """Return what |y − anchor|² is where the step is 1 and numbers are normal."""
    return float((table.scales.astype(np.float64) ** 2).sum() / STEP**2)


def _words(codes: Any, dim: int) -> Any:
    words = np.ascontiguousarray(codes[:, eights(dim) * BLOCK * TOGETHER // 2 :]).view("<u2")
    return words[:, 1::2] if shared(dim) else words


def _number(bits: Any, exponent: int, fraction: int) -> Any:
    """Return the numbers that bits of an exponent and a fraction stand for."""
    one = 1 << fraction
    return np.ldexp(1 + (bits % one) / one, exponent + (bits // one).astype(np.int64))


def moved(table: Table) -> Any:
    """Return the cells whose means are no longer where their anchors are, to within far less than codes round."""
    if table.codes is None:
        return np.arange(0)
    apart = np.abs(table.means - table.anchors)
    return np.flatnonzero(np.linalg.norm(apart / (table.scales / UNIT), axis=1) > NEGLIGIBLE)
