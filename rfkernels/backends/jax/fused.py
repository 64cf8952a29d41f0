"""Whole passes as a few kernels on a GPU: the features of no position ever reach memory.

Keys write states, one for each stretch of positions; these are summed along the sequence, and queries read them. W
meets inputs of bfloat16 in parts whose products are exact, and float32 in three products of tf32, so that projections
keep their precision; features and what they multiply are in the dtype of the values, and sums in float32.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfkernels._arrays import unmasked
from rfkernels.backends.jax import fused_calls
from rfkernels.backends.jax.chunks import Rows
from rfkernels.backends.jax.fused_calls import Given, Side, Tile, Tiles
from rfkernels.core import Options
from rfkernels.features import Features, SideName
from rfkernels.maps import lookup
from rfkernels.partials import Partial, log_denominator
from rfkernels.state import State

HALF = Tiles(Tile(128, 64, 4, 3), Tile(128, 64, 4, 2), Tile(128, 32, 8, 2), Tile(16, 16, 4, 1))
SINGLE = Tiles(Tile(64, 64, 4, 2), Tile(64, 64, 4, 1), Tile(64, 32, 4, 1), Tile(16, 16, 4, 1))
"""The fastest of those tried on an H200 (benchmarks/results/gpu-2026-11-28.txt), for bfloat16 and float32 values."""

_PARTS = 2
"""How many numbers of bfloat16 stand for each of W: 17 bits of it are right."""

_WRITERS = 256
"""About how many programs shall write at once where they need not be as many as tiles."""

_PURE = (lookup("positive").programs(), lookup("hyperbolic").programs())
"""What features compute that are exponentials and nothing else."""

VARIABLE = "RFKERNELS_GPU_KERNELS"
"""The variable of the environment that asks for kernels if it is 1: on a GPU they ran in an earlier form only."""

_CAPABILITY = 8.0
"""The least compute capability of a GPU whose tensor cores take bfloat16 and tf32."""

_SIZES = (16, 32, 64, 128)
"""Widths that kernels are made for."""

_LACKING = frozenset({"erf"})
"""Functions of activations that Triton is not given by Pallas."""


def usable(rows: Rows, features: Features, state: State, options: Options) -> bool:
    """Whether there are kernels for a pass, and a GPU to run them."""
    length, keys = rows.q.shape[-2], rows.k.shape[-2]
    sizes = features.dim in _SIZES and rows.v.shape[-1] in _SIZES and features.rows % _SIZES[0] == 0
    plain = options.window is None and rows.of_key is None and state.kv.dtype == jnp.float32
    if not (sizes and plain and min(length, keys) > 0 and (length == keys or not options.causal)):
        return False
    names = {name for program in features.map.programs() for name, _ in program.instructions}
    return not names & _LACKING and available()


def available() -> bool:
    """Whether kernels are asked for, and there is a GPU whose tensor cores take bfloat16.

    And only one: XLA divides no kernel among devices.
    """
    if os.environ.get(VARIABLE) != "1":
        return False
    try:
        devices = jax.devices("cuda")
    except RuntimeError:
        return False
    return len(devices) == 1 and float(getattr(devices[0], "compute_capability", "0")) >= _CAPABILITY


def instead(fast: Callable[[Any], Any], slow: Callable[[Any], Any], given: Any) -> Any:
    """Return fast(given), which kernels compute, and the derivatives of slow(given), which is the same."""

    @jax.custom_jvp
    def run(given: Any) -> Any:
        return fast(given)

    @run.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        return jax.jvp(slow, primals, tangents)

    return run(given)


def attend(
    rows: Rows, features: Features, state: State, causal: bool, dtype: Any, tiles: Tiles | None = None, *,
    interpret: bool = False,
) -> tuple[tuple[Any, Any, Any], State]:  # fmt: skip
    """Run a pass without window and segments: output, log-normaliser and its sign, and the state after it."""
    q, k, v = rows.q, unmasked(rows.k, rows.mask), unmasked(rows.v, rows.mask)
    q, k, v = (x if x.dtype == jnp.bfloat16 else x.astype(jnp.float32) for x in (q, k, v))
    own = state.kv.shape[:-2]
    wide = np.broadcast_shapes(own, q.shape[:-2])
    of_key = wide if causal else own
    length, keys, count = q.shape[-2], k.shape[-2], features.rows
    tiles = _fitting(tiles or (HALF if v.dtype == jnp.bfloat16 else SINGLE), length, keys, count)
    span = tiles.causal.positions if causal else _span(keys, tiles.write, math.prod(own) * count)
    pure = features.map.exponential and features.map.programs() in _PURE
    unit = fused_calls.unit(pure)
    hidden = _hidden(rows.mask, keys, span, of_key)
    query, key = _side(q, features, "query", wide, unit), _side(k, features, "key", of_key, unit)
    extra, keep = key.extra, None
    if hidden is not None and features.map.exponential:
        extra = jnp.where(hidden, -jnp.inf, 0.0 if extra is None else _padded(extra, span, 1))
    elif hidden is not None:
        keep = 1 - hidden.astype(jnp.float32)
    step = tiles.causal.positions if causal else tiles.read.positions
    given = Given(
        query._replace(x=_padded(query.x, step, 1), extra=_padded(query.extra, step, 1)),
        key._replace(x=_padded(key.x, span, 1), extra=_padded(extra, span, 1)),
        _flat(features.log_weight * unit, wide, 1),
        keep,
        _padded(_full(v, of_key, 2), span, 1),
        features.map,
        tiles,
        pure,
        interpret,
    )
    start = state._replace(shift=state.shift * unit)
    start = State(*(_full(x, of_key, tail) for x, tail in zip(start, (2, 1, 1), strict=True)))
    pieces, first = fused_calls.written(given, span, causal)
    before, jumps, after = fused_calls.summed(given, pieces, first, start, causal)
    if causal:
        found = fused_calls.causal(given, before, pieces.shift, jumps, dtype)
    else:
        held = (x.reshape(*own, *x.shape[1:]) for x in after)
        found = fused_calls.read(
            given, State(*(_full(x, wide, tail) for x, tail in zip(held, (2, 1, 1), strict=True))), dtype
        )
    output, denominator, scale = (x[:, :length].reshape(*wide, length, *x.shape[2:]) for x in found)
    log, sign = log_denominator(jnp, Partial(None, denominator, scale / unit - math.log(features.count)))
    last = State(*(_once(x.reshape(*of_key, *x.shape[1:]), own, len(of_key)) for x in after))
    return (output, log, sign), last._replace(shift=last.shift / unit)


def _side(x: Any, features: Features, name: SideName, batch: tuple[int, ...], unit: float) -> Side:
    given, w = features.side(name), features.projection
    weight = jnp.full((), features.map.offset * unit, jnp.float32)
    t = x if given.centre is None else x.astype(jnp.float32) - given.centre[..., None, :]
    if given.matrix is None:
        w, weight = w * jnp.sqrt(features.scale), weight * features.scale
    else:
        turn = jnp.swapaxes(given.matrix, -1, -2)
        t = jnp.matmul(t.astype(jnp.float32), turn, precision="highest")
    extra = None
    if given.linear is not None:
        extra = jnp.sum(x.astype(jnp.float32) * given.linear[..., None, :], -1) * unit
    w = (w * unit)[..., None, :, :] if t.dtype == jnp.float32 else _parts(w * unit)
    return Side(_flat(w, batch, 3), _full(t, batch, 2), weight[None], None if extra is None else _full(extra, batch, 1))


def _parts(w: Any) -> Any:
    """Return numbers of bfloat16 that add up to w."""
    pieces, rest = [], w
    for _ in range(_PARTS):
        pieces.append(rest.astype(jnp.bfloat16))
        rest = rest - pieces[-1].astype(jnp.float32)
    return jnp.stack(pieces, -3)


def _hidden(mask: Any, keys: int, span: int, batch: tuple[int, ...]) -> Any:
    """Return which keys, those that a stretch is filled up with among them, are not seen; None if there are none."""
    if mask is None and keys % span == 0:
        return None
    mask = jnp.ones(keys, bool) if mask is None else jnp.broadcast_to(mask, (*mask.shape[:-1], keys))
    return _padded(_full(~mask, batch, 1), span, 1, True)


def _full(x: Any, batch: tuple[int, ...], tail: int) -> Any:
    """Flatten batch axes, all of them there."""
    x = jnp.broadcast_to(x, (*batch, *x.shape[x.ndim - tail :]))
    return x.reshape(math.prod(batch), *x.shape[x.ndim - tail :])


def _once(x: Any, batch: tuple[int, ...], rank: int) -> Any:
    """Return one of the states that are equal because queries alone have a batch axis."""
    return x[(0,) * (rank - len(batch))][tuple(slice(n) for n in batch)]


def _flat(x: Any, batch: tuple[int, ...], tail: int) -> Any:
    """Flatten batch axes, into an axis of length 1 where all share one."""
    if math.prod(x.shape[: x.ndim - tail]) == 1:
        return x.reshape(1, *x.shape[x.ndim - tail :])
    return _full(x, batch, tail)


def _padded(x: Any, size: int, axis: int, value: Any = 0) -> Any:
    missing = 0 if x is None else -x.shape[axis] % size
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)], constant_values=value)


def _fitting(tiles: Tiles, length: int, keys: int, rows: int) -> Tiles:
    """Return tiles no larger than what they are to hold."""

    def fitted(tile: Tile, positions: int) -> Tile:
        longest = max(16, 1 << max(positions - 1, 0).bit_length())
        return tile._replace(positions=min(tile.positions, longest), rows=math.gcd(tile.rows, rows))

    prefix = tiles.prefix._replace(rows=math.gcd(tiles.prefix.rows, rows))
    return Tiles(fitted(tiles.write, keys), fitted(tiles.read, length), fitted(tiles.causal, keys), prefix)


def _span(keys: int, tile: Tile, rows: int) -> int:
    """Return how many keys one program writes, so that about as many write at once as shall."""
    steps = -(-keys // tile.positions)
    return tile.positions * -(-steps // max(1, _WRITERS * tile.rows // max(rows, 1)))
