"""Distributions of projection rows, each drawn from a source of standard normals.

A source is a function of a shape: ``normal(shape) -> array``. It may be a pseudo-random generator, a JAX key or a
quasi-random sequence; a sampler is ``sampler(normal, count, dim) -> rows`` of shape ``(count, dim)``. The record
`Sampler` says besides which law a row has by itself and how rows are coupled, from which `rfkernels.variance` knows
what estimates are worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from rfkernels._arrays import namespace

Normal = Callable[[tuple[int, ...]], Any]
Rows = Callable[[Normal, int, int], Any]
Coupling = Literal["independent", "orthogonal", "simplex", "other"]


@dataclass(frozen=True)
class Sampler:
    """How projection rows are drawn, and what is known of their distribution.

    Parameters
    ----------
    name : str
        What it is called in tables and errors.
    rows : callable
        ``rows(normal, count, dim)``: draw rows, shape (count, dim).
    law : str, default "normal"
        The law of a row by itself: "normal" for N(0, I), which every map is unbiased under, or the name of another.
    coupling : {"independent", "orthogonal", "simplex", "other"}, default "other"
        How rows depend on each other, antithetic partners aside: not at all; in blocks of dim rows with independent
        norms and Haar-distributed directions at a right angle, or at the angle of a simplex; or in a way of which no
        closed form is known.
    antithetic : bool, default False
        Whether the second half of the rows are the negatives of the first.
    host : bool, default False
        Whether rows can only be drawn on the host, from an integer seed and not from a JAX key.
    """

    name: str
    rows: Rows
    law: str = "normal"
    coupling: Coupling = "other"
    antithetic: bool = False
    host: bool = False

    def __call__(self, normal: Normal, count: int, dim: int) -> Any:
        """Draw rows, shape (count, dim)."""
        return self.rows(normal, count, dim)


def _iid(normal: Normal, count: int, dim: int) -> Any:
    return normal((count, dim))


def _haar(normal: Normal, count: int, dim: int) -> Any:
    """Directions, (count, dim): orthonormal in blocks of dim rows, each block Haar-distributed.

    Each block is the Q of a QR decomposition of a Gaussian matrix, its columns multiplied by the signs of the diagonal
    of R: without the signs Q is not Haar-distributed and exponential features are biased.
    """
    blocks = -(-count // dim)
    gaussian = normal((blocks, dim, dim))
    xp = namespace(gaussian)
    basis, triangle = xp.linalg.qr(gaussian)
    diagonal = xp.diagonal(triangle, axis1=-2, axis2=-1)
    signs = xp.where(diagonal < 0, -1.0, 1.0)
    return xp.swapaxes(basis * signs[:, None, :], -1, -2).reshape(blocks * dim, dim)[:count]


def _chi(normal: Normal, count: int, dim: int) -> Any:
    """Independent norms of standard normal vectors, (count, 1)."""
    squares = normal((count, dim)) ** 2
    xp = namespace(squares)
    return xp.sqrt(xp.sum(squares, axis=-1, keepdims=True))


def _orthogonal(normal: Normal, count: int, dim: int) -> Any:
    return _haar(normal, count, dim) * _chi(normal, count, dim)


def _regularized(normal: Normal, count: int, dim: int) -> Any:
    return _haar(normal, count, dim) * math.sqrt(dim)


iid = Sampler("iid", _iid, coupling="independent")
"""Independent rows, each N(0, I)."""

orthogonal = Sampler("orthogonal", _orthogonal, coupling="orthogonal")
"""Haar-orthogonal blocks of `dim` rows, with independent chi-distributed norms.

Rows of one block are exactly orthogonal, each row is marginally N(0, I), and the variance of an estimate is lower than
with `iid` (Performers, arXiv 2009.14794, theorem 2).
"""

regularized = Sampler("regularized", _regularized, law="sphere", coupling="orthogonal")
"""Haar-orthogonal blocks of rows of norm √dim: uniform on a sphere, not normal.

Positive features then estimate the regularized softmax kernel SMREG (Performers, arXiv 2009.14794, theorem 1), which is
at most the softmax kernel and tends to it as dim grows.
"""


def antithetic(sampler: Sampler | Rows) -> Sampler:
    """Modify a sampler: half the rows are its draws, the other half their negatives.

    Pairs ±w cancel the odd part of an estimate's error. Worthwhile for maps that are not already even in w; for
    "hyperbolic" and "trigonometric" features the second half repeats the first.

    Parameters
    ----------
    sampler : Sampler or callable
        What draws the first half.

    Returns
    -------
    Sampler
        Raises ValueError when asked for an odd count of rows.
    """
    half = resolve(sampler)
    if half.antithetic:
        raise ValueError(f"the rows of {half.name!r} are antithetic already")

    def pairs(normal: Normal, count: int, dim: int) -> Any:
        if count % 2:
            raise ValueError(f"antithetic rows come in pairs: their count must be even, got {count}")
        first = half(normal, count // 2, dim)
        return namespace(first).concatenate([first, -first])

    return replace(half, name=f"antithetic({half.name})", rows=pairs, antithetic=True)


def names() -> tuple[str, ...]:
    """Names of the samplers that `rfkernels.draw` knows, sorted."""
    return tuple(sorted(_TABLE))


def resolve(sampler: str | Sampler | Rows) -> Sampler:
    """Return the sampler itself or the one of that name; a function is taken to draw normal rows, coupled somehow."""
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(sampler, str):
        if sampler not in _TABLE:
            raise ValueError(f"unknown sampler {sampler!r}; known are: {', '.join(names())}")
        return _TABLE[sampler]
    if not callable(sampler):
        raise TypeError(f"sampler must be a name or a function (normal, count, dim) -> rows, got {sampler!r}")
    return Sampler(getattr(sampler, "__name__", repr(sampler)), sampler)


_TABLE: dict[str, Sampler] = {
    "antithetic": antithetic(orthogonal),
    "iid": iid,
    "orthogonal": orthogonal,
    "regularized": regularized,
}
