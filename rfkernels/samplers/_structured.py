"""Rows of Hadamard matrices between random signs, which need no decomposition."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import namespace
from rfkernels.samplers._record import Normal
from rfkernels.samplers._rotations import chi

_ROUNDS = 3


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
    gaussian = normal((-(-count // n), _ROUNDS, n))
    xp = namespace(gaussian)
    signs = xp.where(gaussian < 0, -1.0, 1.0).astype(gaussian.dtype)
    rows = xp.eye(n, dtype=gaussian.dtype)
    for i in range(_ROUNDS):
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
    """Find what rows are made of, to multiply by them in n log₂ n additions a block.

    Parameters
    ----------
    rows : numpy.ndarray, shape (*batch, count, n)
        Any rows: Hadamard rows are told by their values alone.

    Returns
    -------
    Factors or None
        None unless all rows are whole blocks of Hadamard rows, with any norms, to the rounding of their dtype. Of few
        coordinates, below 32, signs cannot always be told: None as well.
    """
    *batch, count, n = rows.shape
    if n != order(n) or count % n or rows.size == 0:
        return None
    blocks = rows.reshape(-1, n, n)
    norms = np.linalg.norm(blocks.astype(np.float64), axis=-1)
    if not (np.all(norms > 0) and np.all(np.isfinite(norms))):
        return None
    signs = _signs(blocks / norms[..., None], n * float(np.finfo(rows.dtype).eps))
    shape = (*batch, count // n)
    return None if signs is None else Factors(norms.reshape(*shape, n), signs.reshape(*shape, _ROUNDS, n))


def _signs(rows: Any, precision: float) -> Any:
    """Find the signs of blocks of orthonormal rows, (blocks, rounds, n); None if there are none.

    H times the rows is D₀ C D₂, with C[i, j] = c[i ⊕ j] and c the transform of D₁, over √n. Signs are not unique: D₀, c
    and D₂ times any row of √n H make the same, as that only permutes D₁. So the first signs of D₂ may be taken to be
    those that make rows 0 and 2^b of D₀ alike: the two rows then tell where D₂ differs at places that differ in bit b.
    """
    n = rows.shape[-1]
    place, bits = np.arange(n), [1 << i for i in range(n.bit_length() - 1)]
    if bits:  # most rows are not of this kind, as two rows of the transform show
        even, odd = rows[0].sum(0), np.where(place % 2, -1, 1) @ rows[0]
        if np.any(np.abs(np.abs(odd[place ^ 1]) - np.abs(even)) > n * precision):
            return None
    product = np.swapaxes(walsh_hadamard(np.swapaxes(rows, -1, -2)), -1, -2)
    last = np.ones((len(rows), n)) * (place == 0)
    turns = []
    for bit in bits:
        equal = product[:, 0] * product[:, bit][:, place ^ bit]
        turn = np.sign(equal) * (np.abs(equal) > precision)
        turns.append(np.where(turn == 0, turn[:, place ^ bit], turn))
    for _ in bits:
        for bit, turn in zip(bits, turns, strict=True):
            last = np.where(last == 0, last[:, place ^ bit] * turn, last)
    circulant = (product[:, 0] * last)[:, place[:, None] ^ place]
    first = np.sign(np.sum(product * last[:, None] * circulant, -1))
    signs = np.stack([first, np.sign(walsh_hadamard(circulant[:, 0])), last], 1)
    again = np.eye(n)
    for i in range(_ROUNDS):
        again = walsh_hadamard(again) * signs[:, i, None]
    return signs if np.all(signs) and np.all(np.abs(again - rows) <= precision) else None
