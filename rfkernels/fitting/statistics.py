"""Moments of vectors, all that fitting takes from data: a monoid, and those of pairs under attention weights."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import accumulator, matmul, namespace, stopped
from rfkernels._checks import broadcast_batch, check_array, is_tracer, magnitude, require_finite

_BLOCK = 256

_ROOM = 1024
"""How many times the sum of all squares the largest number is that is computed from moments."""


class Moments(NamedTuple):
    """Count, mean and scatter of vectors: a monoid under `merge`, so that blocks can be taken one by one.

    Parameters
    ----------
    count : array, shape (*batch)
        How many vectors were seen.
    mean : array, shape (*batch, dim)
        Their mean; zero of none.
    scatter : array, shape (*batch, dim, dim)
        Σ (x − mean)(x − mean)ᵀ.
    """

    count: Any
    mean: Any
    scatter: Any


def moments(x: Any) -> Moments:
    """Return count, mean and scatter of vectors.

    Parameters
    ----------
    x : array, shape (*batch, length, dim)
        The vectors, any number of them.

    Returns
    -------
    Moments
        In float64 of NumPy arrays, in the accumulation dtype of JAX arrays.

    Raises
    ------
    TypeError, ValueError
        If `x` is no array of that shape and of floats, a value is not finite, or squares leave the range of floats.
    """
    check_array("x", x, 2)
    check_samples(x=x)
    xp = namespace(x)
    x = x.astype(xp.float64 if xp is np else accumulator(xp, x))
    length = x.shape[-2]
    mean = xp.sum(x, -2) / max(length, 1)
    apart = x - mean[..., None, :]
    count = xp.full(x.shape[:-2], length, dtype=x.dtype)
    return Moments(count, mean, matmul(xp, xp.swapaxes(apart, -1, -2), apart))


def check_samples(**samples: Any) -> None:
    """Require finite vectors whose squares, and sums of these, are in the range of floats; tracers pass."""
    for name, x in samples.items():
        require_finite(name, x)
        if is_tracer(x):
            continue
        xp = namespace(x)
        dtype = xp.float64 if xp is np else accumulator(xp, x)
        largest = magnitude(x)
        most = math.sqrt(float(xp.finfo(dtype).max) / _ROOM / max(x.size, 1))
        if largest > most:
            raise ValueError(
                f"{name} must have squares whose sums are in the range of floats, as of numbers up to {most:.0e}, but "
                f"it has {largest:.0e}"
            )


def check_moments(**given: Any) -> None:
    """Require moments of one dim whose batch axes broadcast."""
    for name, found in given.items():
        if not isinstance(found, Moments):
            raise TypeError(f"{name} must be Moments (see rfkernels.fitting.moments), got {type(found).__name__}")
        for field, x in zip(Moments._fields, found, strict=True):
            if not hasattr(x, "shape"):
                raise TypeError(f"{name}.{field} must be an array, got {type(x).__name__}")
        *batch, dim = found.mean.shape or (None,)
        if (found.count.shape, found.scatter.shape) != (tuple(batch), (*batch, dim, dim)):
            raise ValueError(
                f"{name} must have count (*batch), mean (*batch, dim) and scatter (*batch, dim, dim), got "
                f"{found.count.shape}, {found.mean.shape} and {found.scatter.shape}"
            )
    means = {name: found.mean.shape for name, found in given.items()}
    if len({shape[-1] for shape in means.values()}) > 1:
        listed = " and ".join(map(str, means.values()))
        raise ValueError(f"{' and '.join(means)} must agree in dim, got means of shapes {listed}")
    broadcast_batch(**{name: shape[:-1] for name, shape in means.items()})


def merge(first: Moments, second: Moments) -> Moments:
    """Return the moments of both sets of vectors together (Chan, Golub and LeVeque 1979): no sums of raw squares.

    Parameters
    ----------
    first, second : Moments
        Of the same dim, with batch axes that broadcast.

    Returns
    -------
    Moments

    Raises
    ------
    TypeError
        If an argument is no Moments of arrays.
    ValueError
        If their shapes do not fit.
    """
    check_moments(first=first, second=second)
    xp = namespace(*first, *second)
    count = first.count + second.count
    share = second.count / xp.where(count == 0, 1, count)
    apart = second.mean - first.mean
    mean = first.mean + share[..., None] * apart
    weight = (first.count * share)[..., None, None]
    return Moments(count, mean, first.scatter + second.scatter + weight * apart[..., :, None] * apart[..., None, :])


def attended(queries: Any, keys: Any, scale: float) -> tuple[Moments, Moments, Any]:
    """Return moments of queries and keys, and their cross-covariance, over pairs drawn from softmax attention.

    A query is drawn uniformly, and a key with the probability softmax(scale q·k) that the query gives it; a block of
    queries at a time. The count of keys is their effective number, the inverse of the sum of squared probabilities.
    """
    of_queries, xp = moments(queries), namespace(queries, keys)
    dtype, length = of_queries.mean.dtype, queries.shape[-2]
    queries, keys = queries.astype(dtype), keys.astype(dtype)
    probability: Any = 0.0
    cross: Any = 0.0
    for start in range(0, length, _BLOCK):
        rows = queries[..., start : start + _BLOCK, :]
        weight = softmax(xp, scale * matmul(xp, rows, xp.swapaxes(keys, -1, -2)))
        probability = probability + xp.sum(weight, -2) / length
        apart = xp.swapaxes(rows - of_queries.mean[..., None, :], -1, -2)
        cross = cross + matmul(xp, matmul(xp, apart, weight), keys) / length  # queries are centred, so keys need not be
    mean = xp.sum(probability[..., None] * keys, -2)
    apart = keys - mean[..., None, :]
    count = 1 / xp.sum(probability**2, -1)
    scatter = matmul(xp, xp.swapaxes(probability[..., None] * apart, -1, -2), apart)
    return of_queries, Moments(count, mean, count[..., None, None] * scatter), cross


def softmax(xp: Any, logits: Any) -> Any:
    """Return weights that sum to one along the last axis."""
    weight = xp.exp(logits - stopped(xp, xp.max(logits, -1, keepdims=True)))
    return weight / xp.sum(weight, -1, keepdims=True)


def pooled(q: Any, batch: tuple[int, ...]) -> Any:
    """Move batch axes of queries along which there is but one set of features into the length."""
    own = tuple(q.shape[:-2])
    wanted = (1,) * (len(own) - len(batch)) + batch[max(len(batch) - len(own), 0) :]
    pooled = [i for i, (has, wants) in enumerate(zip(own, wanted, strict=True)) if has != wants and has > 1]
    kept = [i for i in range(len(own)) if i not in pooled]
    xp = namespace(q)
    moved = xp.moveaxis(q, kept, range(len(kept)))
    length = math.prod(own[i] for i in pooled) * q.shape[-2]
    shape = tuple(1 if i in pooled else has for i, has in enumerate(own))
    return moved.reshape(*shape[max(len(own) - len(batch), 0) :], length, q.shape[-1])
