"""Sequences cut into chunks for a scan, and the results put together again."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax


class Rows(NamedTuple):
    """Queries and keys of the same positions; what is not there is None.

    Parameters
    ----------
    q, k, v : array, shape (*batch, length, dim or width)
    mask : array of bool, shape (*batch, length)
    of_query, of_key : array of int, shape (*batch, length)
        The segment of each query and each key.
    """

    q: Any = None
    k: Any = None
    v: Any = None
    mask: Any = None
    of_query: Any = None
    of_key: Any = None


TAILS = Rows(2, 2, 2, 1, 1, 1)
"""How many axes of each follow its batch axes."""


def part(rows: Rows, queries: tuple[int, int], keys: tuple[int, int]) -> Rows:
    """Return the queries and the keys from one position to another."""
    spans = Rows(queries, keys, keys, keys, queries, keys)
    fields = zip(rows, spans, TAILS, strict=True)
    return Rows(*(None if x is None else _along(x, span[0], span[1], tail) for x, span, tail in fields))


def _along(x: Any, start: int, stop: int, tail: int) -> Any:
    return lax.slice_in_dim(x, start, stop, axis=x.ndim - tail)


def cut(rows: Rows, size: int) -> Rows:
    """Put chunks on a leading axis; the last is filled up with masked keys, and all else goes on as it ends.

    At a query of zeros an activation may have no derivative; where the last one is, it is needed anyway.
    """
    given = rows.q if rows.q is not None else rows.k
    length = given.shape[-2]
    missing = -length % size
    if missing and rows.k is not None and rows.mask is None:
        rows = rows._replace(mask=jnp.ones(length, bool))
    repeated = Rows(q=True, k=False, v=False, mask=False, of_query=True, of_key=True)
    fields = zip(rows, TAILS, repeated, strict=True)
    return Rows(*(None if x is None else _cut(x, size, missing, tail, again) for x, tail, again in fields))


def _cut(x: Any, size: int, missing: int, tail: int, again: bool) -> Any:
    axis = x.ndim - tail
    if missing:
        x = lax.concatenate([x, _filling(x, missing, axis, again)], axis)
    x = x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _filling(x: Any, count: int, axis: int, again: bool) -> Any:
    """Return the last row so many times, or zeros; `jnp.pad` would slice axes that lie on a mesh."""
    last = lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
    return jnp.repeat(last if again else jnp.zeros_like(last), count, axis, total_repeat_length=count)


def join(x: Any, length: int, tail: int) -> Any:
    """Undo `cut` for what a scan returned of each chunk."""
    axis = x.ndim - 1 - tail
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
    return _along(x, 0, length, tail)


def chunk_size(length: int, largest: int) -> int:
    """Return `largest`, or the next power of two for a sequence that is shorter."""
    return min(largest, 1 << max(length - 1, 0).bit_length())


def even_size(length: int, unit: int, most: int) -> int:
    """Return the size, of at most `most` units, of as few parts as there must be, that are nearly equal."""
    units = -(-length // unit)
    parts = -(-units // most)
    return unit * max(-(-units // max(parts, 1)), 1)
