"""Rows of Hadamard matrices between random signs, which need no decomposition."""

from __future__ import annotations

import math
from typing import Any

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
