"""Hypothesis strategies for what feature maps are tested with: points, pairs, shapes, batches, parameters.

``import rfkernels.testing.strategies as rst``; needs Hypothesis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rfkernels.testing.grids import Array

try:
    from hypothesis import strategies as st
    from hypothesis.strategies import SearchStrategy
except ImportError as error:
    raise ImportError(
        "rfkernels.testing.strategies needs Hypothesis: pip install hypothesis, or the extra 'test' of rfkernels"
    ) from error

_SMALLEST = 1e-6
"""Norms are zero, or at least this share of the largest, so that no square underflows."""


class Shapes(NamedTuple):
    """Shapes of queries, keys and values that fit together."""

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]


class Batch(NamedTuple):
    """Queries, keys and values that fit together."""

    q: Any
    k: Any
    v: Any


def _between(low: float, high: float) -> SearchStrategy[float]:
    return st.floats(low, high, allow_subnormal=False)


def _norms(largest: float) -> SearchStrategy[float]:
    return st.one_of(st.just(0.0), _between(_SMALLEST * largest, largest))


def _check_dim(dim: int, smallest: int = 1) -> None:
    if dim < smallest:
        raise ValueError(f"dim must be at least {smallest}, got {dim}")


def _check_norm(norm: float) -> None:
    if not 0 < norm < math.inf:
        raise ValueError(f"norm must be positive and finite, got {norm!r}")


@st.composite
def _directions(draw: Callable[[Any], Any], dim: int) -> Array:
    """Unit vectors; coordinates may be zero, or of very different magnitude."""
    vector = np.array(draw(st.lists(_between(-1.0, 1.0), min_size=dim, max_size=dim)))
    length = float(np.linalg.norm(vector))
    return vector / length if length > 1e-100 else np.eye(dim)[0]


def points(dim: int = 2, norm: float = 1.0) -> SearchStrategy[Array]:
    """Points of the ball of radius `norm`, its centre included, shape (dim,).

    Norms below a millionth of `norm` are zero, so that squared norms do not underflow.

    Parameters
    ----------
    dim : int, default 2
        The dimension.
    norm : float, default 1.0
        The largest norm.

    Returns
    -------
    SearchStrategy

    Raises
    ------
    ValueError
        If `dim` is below 1, or `norm` not positive and finite.
    """
    _check_dim(dim)
    _check_norm(norm)
    return st.builds(lambda length, direction: length * direction, _norms(norm), _directions(dim))


def pairs(
    dim: int = 2, norm: float = 1.0, angle: tuple[float, float] = (0.0, math.pi)
) -> SearchStrategy[tuple[Array, Array]]:
    """Pairs of points of norm at most `norm` with an angle between them in a given range.

    Parallel and opposed pairs, and points that are zero, are tried often.

    Parameters
    ----------
    dim : int, default 2
        The dimension, at least two.
    norm : float, default 1.0
        The largest norm.
    angle : tuple of two float, default (0, π)
        The smallest and the largest angle.

    Returns
    -------
    SearchStrategy
        Of tuples (x, y) of arrays of shape (dim,).

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    _check_dim(dim, 2)
    _check_norm(norm)
    low, high = angle
    if not 0 <= low <= high <= math.pi:
        raise ValueError(f"angle must be two increasing numbers from 0 to π, got {angle!r}")
    turns = st.one_of(st.sampled_from([low, high]), _between(low, high))
    return st.builds(_pair, _norms(norm), _norms(norm), turns, _directions(dim), _directions(dim))


def _pair(first: float, second: float, turn: float, along: Array, other: Array) -> tuple[Array, Array]:
    across = other - (other @ along) * along
    if np.linalg.norm(across) < 1e-3:  # nearly parallel: an axis is not, if it is the least one of `along`
        axis = np.eye(len(along))[int(np.argmin(np.abs(along)))]
        across = axis - (axis @ along) * along
    across = across / np.linalg.norm(across)
    return first * along, second * (math.cos(turn) * along + math.sin(turn) * across)


def matrices(dim: int = 2, stretch: tuple[float, float] = (0.7, 1.4)) -> SearchStrategy[Array]:
    """Invertible matrices: reflection × stretch × reflection, neither symmetric nor orthogonal as a rule.

    Parameters
    ----------
    dim : int, default 2
        Rows and columns.
    stretch : tuple of two float, default (0.7, 1.4)
        The range of singular values.

    Returns
    -------
    SearchStrategy
        Of arrays of shape (dim, dim).

    Raises
    ------
    ValueError
        If `dim` is below 1, or `stretch` not two increasing positive numbers.
    """
    _check_dim(dim)
    if not 0 < stretch[0] <= stretch[1] < math.inf:
        raise ValueError(f"stretch must be two increasing positive numbers, got {stretch!r}")
    values = st.lists(_between(*stretch), min_size=dim, max_size=dim)
    return st.builds(_matrix, _directions(dim), values, _directions(dim))


def _matrix(left: Array, values: list[float], right: Array) -> Array:
    one, other = (np.eye(len(v)) - 2 * np.outer(v, v) for v in (left, right))
    product: Array = one @ np.diag(values) @ other
    return product


def scales(low: float = 0.05, high: float = 1.5) -> SearchStrategy[float]:
    """Positive factors of x·y.

    Parameters
    ----------
    low, high : float, default 0.05 and 1.5
        The range.

    Returns
    -------
    SearchStrategy

    Raises
    ------
    ValueError
        If the range is empty or not positive.
    """
    if not 0 < low <= high < math.inf:
        raise ValueError(f"low and high must be increasing positive numbers, got {low!r} and {high!r}")
    return _between(low, high)


@st.composite
def shapes(draw: Callable[[Any], Any], dim: int = 4, longest: int = 17, axes: int = 2) -> Shapes:
    """Awkward shapes of queries, keys and values, which fit together.

    Lengths are 0, 1, odd or anything up to `longest`, of queries and keys independently; batch axes may be missing,
    of size one on one side only, or empty; the width of values may be zero and differs from `dim` as a rule.

    Parameters
    ----------
    dim : int, default 4
        The width of queries and keys.
    longest : int, default 17
        The largest length.
    axes : int, default 2
        The largest number of batch axes.

    Returns
    -------
    SearchStrategy
        Of `Shapes`; the batch axes of q, k and v broadcast, those of k and v agree.

    Raises
    ------
    ValueError
        If `dim` or `longest` is below 1; when an example is drawn.
    """
    _check_dim(dim)
    if longest < 1:
        raise ValueError(f"longest must be at least 1, got {longest!r}")
    lengths = st.one_of(st.integers(0, longest), st.sampled_from([0, 1, max(longest - 1 + longest % 2, 1)]))
    full = draw(st.lists(st.sampled_from([2, 1, 3, 0]), max_size=axes))
    sides = [tuple(draw(st.sampled_from([size, 1])) for size in full) for _ in range(2)]
    while sides[0][:1] == (1,) and draw(st.booleans()):
        sides[0] = sides[0][1:]  # an axis that is missing broadcasts like one of size one
    length, keys, width = draw(lengths), draw(lengths), draw(st.integers(0, 5))
    return Shapes((*sides[0], length, dim), (*sides[1], keys, dim), (*sides[1], keys, width))


@st.composite
def batches(
    draw: Callable[[Any], Any],
    dim: int = 4,
    norm: float = 1.0,
    longest: int = 17,
    axes: int = 2,
    dtype: Any = np.float64,
) -> Batch:
    """Queries, keys and values of awkward shapes, with rows of norm at most `norm`.

    Parameters
    ----------
    dim, longest, axes
        As in `shapes`.
    norm : float, default 1.0
        The largest norm of a query or key; some are zero. Values are standard normal.
    dtype : dtype, default float64
        Of all three.

    Returns
    -------
    SearchStrategy
        Of `Batch`.

    Raises
    ------
    ValueError
        As `shapes` and `points`; when an example is drawn.
    """
    _check_norm(norm)
    shape = draw(shapes(dim, longest, axes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    zeros = draw(st.sampled_from([0.0, 0.3]))
    q, k = _ball(rng, shape.q, norm, zeros), _ball(rng, shape.k, norm, zeros)
    return Batch(q.astype(dtype), k.astype(dtype), rng.standard_normal(shape.v).astype(dtype))


def _ball(rng: np.random.Generator, shape: tuple[int, ...], norm: float, zeros: float) -> Array:
    vectors = rng.standard_normal(shape)
    lengths = norm * rng.random((*shape[:-1], 1)) * (rng.random((*shape[:-1], 1)) >= zeros)
    ball: Array = lengths * vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return ball
