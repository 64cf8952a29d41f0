"""Whole passes as scans over chunks: memory that does not grow with length times features, in any derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from rfkernels import core, partials
from rfkernels._arrays import matmul
from rfkernels.backends.jax import tiles
from rfkernels.backends.jax.chunks import TAILS, Rows, chunk_size, cut, even_size, join, part
from rfkernels.backends.jax.tiles import Carry, prepared
from rfkernels.features import Features
from rfkernels.partials import Partial
from rfkernels.state import State


class Sizes(NamedTuple):
    """Positions at a time: where keys are written or a state is read, and where each query sees the keys before it.

    And how many tiles of the latter are taken together.
    """

    chunk: int
    causal: int
    tiles: int = 1


CPU = Sizes(2048, 64)
"""Measured (benchmarks/jax_backend.py)."""

_TILE, _MOST = 128, 64
"""Positions of a causal tile on an accelerator, and tiles together: states before them cost as their square."""


def accelerator(heads: int, count: int) -> Sizes:
    """Return sizes for an accelerator, where many small kernels cost more than what they compute.

    Features of so many positions of all heads are made at once as have 2**25 numbers.
    """
    positions = (1 << 25) // max(heads * count, 1)
    chunk = 1 << max(positions, 1).bit_length() - 1
    return Sizes(min(max(chunk, _TILE), 1 << 16), _TILE, min(max(chunk // _TILE, 1), _MOST))


SAVED = "rfkernels.state"
"""The name of what a derivative had better keep than compute again: a written state, small and dear."""

_GROUP, _UNGROUPED = 16, 128
"""A derivative keeps the state before each chunk. Of long sequences it keeps that before each group of chunks instead,
and those inside a group when it comes to it: memory hardly grows with length, for one more pass over keys."""

Found = tuple[Any, Any, Any]
Finish = Callable[[Partial], Found]
"""What is kept of the sums of each query: (*batch, length, width) and twice (*batch, length), or None."""


def write(carry: Carry, rows: Rows, features: Features, sizes: Sizes) -> Carry:
    """Add keys to a state; of several segments only the last is kept."""
    length = rows.k.shape[-2]
    if length == 0:
        return carry
    if rows.of_key is not None:
        last = rows.of_key[..., -1]
        stays = rows.of_key == last[..., None]
        carry = Carry(tiles.kept(features, carry.state, carry.segment == last), last)
        rows = rows._replace(mask=stays if rows.mask is None else stays & rows.mask)
    dtype = carry.state.kv.dtype

    def body(state: State, chunk: Rows) -> tuple[State, None]:
        chunk = prepared(chunk, dtype)
        u, exponent = core.key_exponents(jnp, chunk.k, features, chunk.mask)
        shift = core.raised(jnp, state.shift, exponent, features)
        phi = core.key_features(jnp, u, exponent, shift, features, chunk.mask)
        held = _turned(core.rescaled(jnp, _turned(state), shift))
        kv = held.kv + matmul(jnp, jnp.swapaxes(chunk.v, -1, -2), phi)
        return State(kv, held.z + jnp.sum(phi, -2), shift), None

    keys = Rows(k=rows.k, v=rows.v, mask=rows.mask)
    state, _ = _scan(body, _turned(carry.state), keys, _chunk(length, sizes))
    state = _turned(state)
    return carry._replace(state=checkpoint_name(state, SAVED))  # type: ignore[no-untyped-call]


def _turned(state: State) -> State:
    """Return the sums transposed, as the scan carries them: XLA on a CPU multiplies vᵀ φ in half the time of φᵀ v."""
    return state._replace(kv=jnp.swapaxes(state.kv, -1, -2))


def read(carry: Carry, rows: Rows, features: Features, finish: Finish, sizes: Sizes) -> Found:
    """Read a state for each query."""
    dtype = carry.state.kv.dtype

    def body(_: None, chunk: Rows) -> tuple[None, Found]:
        return None, finish(tiles.read(carry, prepared(chunk, dtype), features))

    queries = Rows(q=rows.q, of_query=rows.of_query)
    length = rows.q.shape[-2]
    return joined(_scan(body, None, queries, _chunk(length, sizes))[1], length)


def _chunk(length: int, sizes: Sizes) -> int:
    if sizes.tiles == 1:
        return chunk_size(length, sizes.chunk)
    return even_size(length, chunk_size(length, sizes.causal), sizes.chunk // sizes.causal)


def causal(carry: Carry, rows: Rows, features: Features, lag: int, finish: Finish, sizes: Sizes) -> tuple[Carry, Found]:
    """Let query t see keys s <= t + (keys − length) − lag, and return what holds all keys but the last `lag`."""
    length, keys = rows.q.shape[-2], rows.k.shape[-2]
    first = keys - length - lag
    early = min(max(-first, 0), length)
    done = min(max(first, 0), keys)
    carry = write(carry, part(rows, (0, 0), (0, done)), features, sizes)
    found = []
    if early or not length:
        found.append(read(carry, part(rows, (0, early), (0, 0)), features, finish, sizes))
    both = min(length - early, keys - done)
    if both > 0:
        aligned = part(rows, (early, early + both), (done, done + both))
        carry, rest = _aligned(carry, aligned, features, finish, sizes)
        found.append(rest)
    if early + both < length:
        found.append(read(carry, part(rows, (early + both, length), (0, 0)), features, finish, sizes))
    return carry, _concatenated(found)


def two_sided(
    carry: Carry, rows: Rows, features: Features, before: int, after: int, sizes: Sizes
) -> tuple[Carry, Partial]:
    """Let query t see keys s <= t − before and s >= t + after: two passes, the second of them backwards."""
    length, keys = rows.q.shape[-2], rows.k.shape[-2]
    forward, found = causal(carry, rows, features, before + keys - length, tuple, sizes)
    turned = Rows(*(None if x is None else jnp.flip(x, x.ndim - tail) for x, tail in zip(rows, TAILS, strict=True)))
    last = None if rows.of_key is None else rows.of_key[..., -1]
    empty = Carry(tiles.kept(features, carry.state, jnp.zeros((), bool)), last)
    _, other = causal(empty, turned, features, after, tuple, sizes)
    back = Partial(*(jnp.flip(x, x.ndim - tail) for x, tail in zip(other, (2, 1, 1), strict=True)))
    return forward, partials.join(jnp, Partial(*found), back)


def _aligned(carry: Carry, rows: Rows, features: Features, finish: Finish, sizes: Sizes) -> tuple[Carry, Found]:
    length, dtype = rows.q.shape[-2], carry.state.kv.dtype
    tile = chunk_size(length, sizes.causal)
    size = tile if rows.of_key is not None else even_size(length, tile, sizes.tiles)

    def body(carry: Carry, chunk: Rows) -> tuple[Carry, Found]:
        if size == tile:
            carry, found = tiles.causal(carry, prepared(chunk, dtype), features)
            return carry, finish(found)
        carry, found = tiles.together(carry, cut(chunk, tile), features)
        return carry, joined(finish(found), size)

    def group(carry: Carry, chunk: Rows) -> tuple[Carry, Found]:
        carry, found = _scan(body, carry, chunk, size)
        return carry, joined(found, size * _GROUP)

    if length <= size * _UNGROUPED:
        carry, found = _scan(body, carry, rows, size)
    else:
        carry, found = _scan(group, carry, rows, size * _GROUP)
    return carry, joined(found, length)


def _scan(body: Callable[[Any, Rows], Any], start: Any, rows: Rows, size: int) -> Any:
    chunks = cut(rows, size)
    body = jax.checkpoint(body, prevent_cse=False)
    return lax.scan(body, start, chunks)


def joined(found: Found, length: int) -> Found:
    """Put together what a scan returned of each chunk."""
    log, sign = (None if x is None else join(x, length, 1) for x in found[1:])
    return join(found[0], length, 2), log, sign


def _concatenated(found: list[Found]) -> Found:
    if len(found) == 1:
        return found[0]
    outputs, *logs = zip(*found, strict=True)
    log, sign = (None if x[0] is None else jnp.concatenate(x, -1) for x in logs)
    return jnp.concatenate(outputs, -2), log, sign
