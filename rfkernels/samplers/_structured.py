"""Rows of Hadamard matrices between random signs, which need no decomposition."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import namespace
from rfkernels.samplers._record import Normal
from rfkernels.samplers._rotations import chi

ROUNDS = 3

_FEWEST = 32
"""Coordinates of rows that are taken apart."""

_TOGETHER = 1 << 20
"""Numbers of blocks that are taken apart at a time."""

_PRECISION = 2.0**-48
"""By how much rows of norm one may differ from what they are made of: a few times the rounding of sums of squares."""


def walsh_hadamard(x: Any) -> Any:
    """Multiply the last axis by the orthonormal Hadamard matrix, in n log₂ n additions.

    Parameters
    ----------
    x : array, shape (*batch, n)
        n is a power of two.

    Returns
    -------
    array, shape (*batch, n)
        x H with H[i, j] = n^-½ (−1)^(number of ones that i and j share in binary).

    Raises
    ------
    ValueError
        If n is not a power of two.
    """
    xp, n = namespace(x), x.shape[-1]
    if n < 1 or n & (n - 1):
        raise ValueError(f"the last axis of x must be a power of two, got shape {x.shape}")
    width = 1
    while width < n:
        pairs = x.reshape(*x.shape[:-1], n // (2 * width), 2, width)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = xp.stack([first + second, first - second], -2).reshape(x.shape)
        width *= 2
    return x / math.sqrt(n)


def order(dim: int) -> int:
    """Return the least power of two that is not below dim: the rows of a block."""
    return 1 << (dim - 1).bit_length()


def hadamard(normal: Normal, count: int, dim: int) -> Any:
    """Rows of H D H D H D of the next power of two, times independent norms, cut to dim coordinates."""
    n = order(dim)
    gaussian = normal((-(-count // n), ROUNDS, n))
    xp = namespace(gaussian)
    signs = xp.where(gaussian < 0, -1.0, 1.0).astype(gaussian.dtype)
    rows = xp.eye(n, dtype=gaussian.dtype)
    for i in range(ROUNDS):
        rows = walsh_hadamard(rows) * signs[:, i, None, :]
    return rows.reshape(-1, n)[:count, :dim] * chi(normal, count, n)


class Factors(NamedTuple):
    """What blocks of rows N H D₀ H D₁ H D₂ are made of, with orthonormal Hadamard matrices H.

    Parameters
    ----------
    norms : array, shape (*batch, blocks, n)
        Diagonals of N: positive.
    signs : array, shape (*batch, blocks, 3, n)
        Diagonals of D₀, D₁ and D₂.
    """

    norms: Any
    signs: Any


def factors(rows: Any) -> Factors | None:
    """Find what rows are made of, to multiply by them in some n log n additions a block.

    Parameters
    ----------
    rows : numpy.ndarray, shape (*batch, count, n)
        Any rows: Hadamard rows are told by their values alone.

    Returns
    -------
    Factors or None
        None unless all rows are whole blocks of Hadamard rows, with any norms, to the rounding of float64. Of less than
        32 coordinates signs cannot always be told, and are not looked for.
    """
    *batch, count, n = rows.shape
    if n < _FEWEST or n != order(n) or count % n or rows.size == 0:
        return None
    blocks = rows.reshape(-1, n, n)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(blocks, axis=-1)
    if not (np.all(norms > 0) and np.all(np.isfinite(norms))):
        return None
    matrix, together = walsh_hadamard(np.eye(n)), max(1, _TOGETHER // n**2)
    found = []
    for first in range(0, len(blocks), together):
        part = slice(first, first + together)
        signs = _signs(blocks[part] / norms[part, :, None], matrix)
        if signs is None:
            return None
        found.append(signs)
    shape = (*batch, count // n)
    return Factors(norms.reshape(*shape, n), np.concatenate(found).reshape(*shape, ROUNDS, n))


def _signs(rows: Any, matrix: Any) -> Any:
    """Find the signs of blocks of orthonormal rows, (blocks, rounds, n); None if there are none.

    H times the rows is D₀ C D₂, with C[i, j] = c[i ⊕ j] and c the transform of D₁, over √n. Signs are not unique: D₀, c
    and D₂ times any row of √n H make the same, as that only permutes D₁. So the first signs of D₂ may be taken to be
    those that make rows 0 and 2^b of D₀ alike: the two rows then tell where D₂ differs at places that differ in bit b.
    The signs of D₀ are those of its transform in the first row, once D₂ and D₁ are undone.
    """
    n = rows.shape[-1]
    place, bits = np.arange(n), [1 << i for i in range(n.bit_length() - 1)]
    top, *others = np.moveaxis(matrix[[0, *bits]] @ rows, -2, 0)
    if np.any(np.abs(np.abs(others[0][:, place ^ 1]) - np.abs(top)) > 4 * _PRECISION):
        return None  # most rows are not of this kind, and end here
    last = np.ones((len(rows), n)) * (place == 0)
    turns = []
    for bit, other in zip(bits, others, strict=True):
        equal = top * other[:, place ^ bit]
        turn = np.sign(equal) * (np.abs(equal) > _PRECISION)
        turns.append(np.where(turn == 0, turn[:, place ^ bit], turn))
    for _ in bits:
        for bit, turn in zip(bits, turns, strict=True):
            last = np.where(last == 0, last[:, place ^ bit] * turn, last)
    middle = np.sign((top * last) @ matrix)
    first = np.sign(((rows[:, 0] * last) @ matrix * middle) @ matrix)
    signs = np.stack([first, middle, last], 1)
    again = (matrix * first[:, None] @ matrix * middle[:, None] @ matrix) * last[:, None]
    return signs if np.all(signs) and np.all(np.abs(again - rows) <= _PRECISION) else None
