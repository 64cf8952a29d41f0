"""Rows whose directions are Haar-distributed, and independent rows: all that NumPy and JAX draw alike."""

from __future__ import annotations

import math
from typing import Any

from rfkernels._arrays import namespace
from rfkernels.samplers._record import Normal


def iid(normal: Normal, count: int, dim: int) -> Any:
    """Independent rows, each N(0, I)."""
    return normal((count, dim))


def haar(normal: Normal, count: int, dim: int) -> Any:
    """Directions, (count, dim): orthonormal in blocks of dim rows, each block Haar-distributed."""
    return _bases(normal, count, dim).reshape(-1, dim)[:count]


def _bases(normal: Normal, count: int, dim: int) -> Any:
    """Haar-distributed orthogonal matrices, (blocks, dim, dim), with count rows or more together.

    Each is the Q of a QR decomposition of a Gaussian matrix, its columns multiplied by the signs of the diagonal of R:
    without the signs Q is not Haar-distributed and exponential features are biased.
    """
    gaussian = normal((-(-count // dim), dim, dim))
    xp = namespace(gaussian)
    basis, triangle = xp.linalg.qr(gaussian)
    diagonal = xp.diagonal(triangle, axis1=-2, axis2=-1)
    signs = xp.where(diagonal < 0, -1.0, 1.0)
    return xp.swapaxes(basis * signs[:, None, :], -1, -2)


def chi(normal: Normal, count: int, dim: int) -> Any:
    """Independent norms of standard normal vectors, (count, 1)."""
    squares = normal((count, dim)) ** 2
    xp = namespace(squares)
    return xp.sqrt(xp.sum(squares, axis=-1, keepdims=True))


def orthogonal(normal: Normal, count: int, dim: int) -> Any:
    """Haar directions at right angles, times independent norms."""
    return haar(normal, count, dim) * chi(normal, count, dim)


def regularized(normal: Normal, count: int, dim: int) -> Any:
    """Haar directions at right angles, times √dim."""
    return haar(normal, count, dim) * math.sqrt(dim)


def simplex(normal: Normal, count: int, dim: int) -> Any:
    """Haar-rotated directions from the centre of a simplex to its corners, times independent norms."""
    directions = _bases(normal, count, dim)
    if dim > 1:  # in one dimension a block is a single row, and the simplex a point
        xp = namespace(directions)
        directions = (directions - xp.mean(directions, -2, keepdims=True)) * math.sqrt(dim / (dim - 1))
    return directions.reshape(-1, dim)[:count] * chi(normal, count, dim)
