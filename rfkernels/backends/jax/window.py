"""Exact weights nearby: a band of keys that moves along with the chunks of queries, joined with what lies beyond."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rfkernels import partials
from rfkernels.backends.jax import schedule
from rfkernels.backends.jax.chunks import TAILS, Rows, chunk_size, cut
from rfkernels.backends.jax.schedule import Finish, Found, Sizes
from rfkernels.backends.jax.tiles import Carry, prepared
from rfkernels.core import Options
from rfkernels.exact import exact_block
from rfkernels.features import Features
from rfkernels.partials import Partial

_LEAST, _LARGEST = 128, 512
"""Queries at a time, about as many as the window is wide: what is computed outside of it is thrown away."""


def attend(
    carry: Carry, rows: Rows, features: Features, options: Options, finish: Finish, sizes: Sizes
) -> tuple[Carry, Found]:
    """Join exact weights of the keys in the window with estimated ones of all others."""
    assert options.window is not None
    if options.causal:
        after, found = schedule.causal(carry, rows, features, options.window, tuple, sizes)
        far = Partial(*found)
    else:
        after, far = schedule.two_sided(carry, rows, features, options.window, options.window, sizes)
    return after, _near(rows, features, options, far, carry.state.kv.dtype, finish)


def _near(rows: Rows, features: Features, options: Options, far: Partial, dtype: Any, finish: Finish) -> Found:
    """Scan over chunks of queries; the keys of a window that the next chunk sees as well are carried on."""
    assert options.window is not None
    assert options.kernel is not None
    window, kernel = options.window, options.kernel
    length, keys = rows.q.shape[-2], rows.k.shape[-2]
    offset = keys - length if options.causal else 0
    behind = max(min(window - 1, offset + length - 1), 0)
    ahead = 0 if options.causal else max(min(window - 1, keys - 1), 0)
    root = jnp.sqrt(jnp.asarray(features.scale, dtype))
    held, coming = _band(rows, offset - behind, behind + ahead, length)
    size = chunk_size(length, min(max(window, _LEAST), _LARGEST))

    def body(carried: Rows, chunk: tuple[Rows, Partial, Any]) -> tuple[Rows, Found]:
        new, estimated, real = chunk
        seen = Rows(None, *map(_appended, carried[1:], new[1:], TAILS[1:]))
        band = prepared(seen._replace(q=new.q, of_query=new.of_query), dtype)
        allowed = _allowed(real, band, window, behind, options.causal)
        total = exact_block(jnp, band.q * root, band.k * root, band.v, allowed, kernel)
        return _last(seen, behind + ahead), finish(partials.join(jnp, estimated, total))

    real = (jnp.arange(length + -length % size) < length).reshape(-1, size)
    chunks = cut(coming, size), _cut_partial(far, size), real
    _, found = lax.scan(jax.checkpoint(body, prevent_cse=False), held, chunks)
    return schedule.joined(found, length)


def _band(rows: Rows, start: int, held: int, length: int) -> tuple[Rows, Rows]:
    """Return the keys from `start` on, as many as are held before the first chunk, and then one for each query."""
    keys = rows.k.shape[-2]
    mask = jnp.ones(keys, bool) if rows.mask is None else rows.mask
    whole = Rows(None, rows.k, rows.v, mask, None, rows.of_key)

    def span(first: int, count: int) -> Rows:
        return Rows(
            *(None if x is None else _span(x, first, count, tail) for x, tail in zip(whole, TAILS, strict=True))
        )

    return span(start, held), span(start + held, length)._replace(q=rows.q, of_query=rows.of_query)


def _span(x: Any, first: int, count: int, tail: int) -> Any:
    """Return positions from `first` on, zeros (False) where there are none."""
    axis = x.ndim - tail
    low, high = min(max(first, 0), x.shape[axis]), min(max(first + count, 0), x.shape[axis])
    before = min(max(-first, 0), count)
    there = lax.slice_in_dim(x, low, max(low, high), axis=axis)
    after = count - before - there.shape[axis]
    return jnp.pad(there, [(before, after) if i == axis else (0, 0) for i in range(x.ndim)])


def _appended(old: Any, new: Any, tail: int) -> Any:
    return None if old is None or new is None else jnp.concatenate([old, new], old.ndim - tail)


def _last(rows: Rows, count: int) -> Rows:
    def end(x: Any, tail: int) -> Any:
        axis = x.ndim - tail
        return lax.slice_in_dim(x, x.shape[axis] - count, x.shape[axis], axis=axis)

    return Rows(*(None if x is None else end(x, tail) for x, tail in zip(rows, TAILS, strict=True)))


def _allowed(real: Any, band: Rows, window: int, behind: int, causal: bool) -> Any:
    """Return which keys of the band each query sees exactly; query t stands at position t + behind of the band.

    Those that fill up the last chunk are zeros, where a kernel may have no derivative: they see none.
    """
    distance = jnp.arange(real.shape[0])[:, None] + behind - jnp.arange(band.k.shape[-2])
    near = real[:, None] & (abs(distance) < window) & (distance >= 0 if causal else True)
    allowed = near & band.mask[..., None, :]
    if band.of_key is not None:
        allowed = allowed & (band.of_query[..., :, None] == band.of_key[..., None, :])
    return allowed


def _cut_partial(found: Partial, size: int) -> Partial:
    as_rows = Rows(q=found.numerator, of_query=found.denominator, of_key=found.shift)
    chunks = cut(as_rows, size)
    return Partial(chunks.q, chunks.of_query, chunks.of_key)
