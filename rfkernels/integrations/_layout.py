"""Attention in the layout of JAX and Flax, (*batch, length, heads, dim), and what of their masks can be honoured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rfkernels as rfk
from rfkernels import AttentionResult, DecodeState, Features, Side
from rfkernels._arrays import broadcast_shapes
from rfkernels._checks import check_array, check_finite_arrays, check_flags, check_window

_PAIRS = (
    "mask must be over keys, of shape (*batch, heads or 1, 1, {keys}), got {shape}: linear attention cannot honour a "
    "mask over pairs of queries and keys"
)
_TRACED = (
    ", and inside jit the values of a mask are not known, so it cannot be recognised as causal either. Ask for "
    "causality where the adapter is made or called (causal=True, is_causal=True) and leave the causal mask out"
)
_NAMES = "query", "key", "value"
_OTHER = " other than a causal one, with or without padded keys"


class Heads(NamedTuple):
    """Queries, keys and values as (*batch, heads, length, dim), and the features that go with them.

    When queries have more heads than keys, q is (*batch, heads of keys, group, length, dim), and k and v have a group
    axis of 1.
    """

    q: Any
    k: Any
    v: Any
    features: Features

    @property
    def grouped(self) -> bool:
        """Whether queries share heads of keys."""
        return bool(self.q.shape[-3] != self.k.shape[-3])


def check_settings(features: Any, window: Any, **flags: Any) -> None:
    """Check what an adapter is made with."""
    if not isinstance(features, Features):
        raise TypeError(f"features must be a Features (see rfkernels.draw), got {type(features).__name__}")
    check_window(window)
    check_flags(**flags)


def split_heads(query: Any, key: Any, value: Any, features: Features) -> Heads:
    """Move heads to the batch axes."""
    for name, x in zip(_NAMES, (query, key, value), strict=True):
        check_array(name, x, 0)
        if x.ndim < 3:
            raise ValueError(f"{name} must have shape (*batch, length, heads, dim), got {x.shape}")
    if key.shape[:-1] != value.shape[:-1] or query.shape[:-3] != key.shape[:-3]:
        raise ValueError(
            "query, key and value must agree in batch, and key and value in length and heads, of "
            f"(*batch, length, heads, dim); got {query.shape}, {key.shape} and {value.shape}"
        )
    if not query.shape[-1] == key.shape[-1] == features.dim:
        raise ValueError(
            f"query and key must be of the dim of the features, {features.dim}, got {query.shape} and {key.shape}"
        )
    q, k, v = (jnp.swapaxes(x, -2, -3) for x in (query, key, value))
    heads, key_heads = q.shape[-3], k.shape[-3]
    _check_batch(features, k.shape[:-2])
    if heads == key_heads:
        return Heads(q, k, v, features)
    if key_heads == 0 or heads % key_heads:
        raise ValueError(f"query must have a multiple of the heads of key, got {heads} and {key_heads}")
    q = q.reshape(*q.shape[:-3], key_heads, heads // key_heads, *q.shape[-2:])
    return Heads(q, k[..., None, :, :], v[..., None, :, :], _with_group_axis(features))


def _check_batch(features: Features, batch: tuple[int, ...]) -> None:
    """Require one set for all heads or one for each head of keys; else heads would be multiplied in silence."""
    try:
        fits = broadcast_shapes(features.batch, batch) == batch
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"features must be one set for all, or have batch axes that broadcast to (*batch, heads of keys), {batch}; "
            f"got {features.batch}"
        )


def _with_group_axis(features: Features) -> Features:
    """Let features with one set per head of keys broadcast over the group of queries."""

    def widen(x: Any, own: int) -> Any:
        return x if x is None or x.ndim <= own else jnp.expand_dims(x, -own - 1)

    def side(given: Side) -> Side:
        return Side(widen(given.matrix, 2), widen(given.centre, 1), widen(given.linear, 1))

    return replace(
        features,
        projection=widen(features.projection, 2),
        log_weight=widen(features.log_weight, 1),
        query=side(features.query),
        key=side(features.key),
    )


class KeyMask(NamedTuple):
    """What a mask of the host says: which keys may be attended, (*batch, heads or 1, keys), and if it is causal."""

    keys: Any
    causal: bool


def read_mask(mask: Any, length: int, keys: int) -> KeyMask:
    """Read a mask that broadcasts to (*batch, heads, length, keys); anything but zero may be attended."""
    if mask.ndim < 1 or mask.shape[-1] not in (1, keys) or (mask.ndim > 1 and mask.shape[-2] not in (1, length)):
        raise ValueError(f"mask must broadcast to (*batch, heads, {length}, {keys}), got {mask.shape}")
    if mask.ndim == 1 or mask.shape[-2] == 1:
        rows = mask if mask.ndim == 1 else mask[..., 0, :]
        return KeyMask(jnp.broadcast_to(rows.astype(bool), (*rows.shape[:-1], keys)), causal=False)
    refusal = _PAIRS.format(keys=keys, shape=mask.shape)
    if isinstance(mask, jax.core.Tracer):
        raise ValueError(refusal + _TRACED)
    dense = np.broadcast_to(np.asarray(mask) != 0, (*mask.shape[:-1], keys))
    seen = np.asarray(dense.any(-2))
    for causal in (False, True):
        pairs = np.tril(np.ones((length, keys), bool)) if causal else True
        if np.array_equal(dense, np.broadcast_to(seen[..., None, :] & pairs, dense.shape)):
            return KeyMask(jnp.asarray(seen), causal)
    raise ValueError(refusal + _OTHER)


def _align_first(heads: Heads, mask: Any) -> tuple[Heads, Any]:
    """Let query t of a causal pass see keys up to t: cut or pad the keys, as ours aligns the last query and key."""
    length, keys = heads.q.shape[-2], heads.k.shape[-2]
    if keys >= length:
        cut = heads._replace(k=heads.k[..., :length, :], v=heads.v[..., :length, :])
        return cut, None if mask is None else mask[..., :length]
    mask = jnp.ones(keys, bool) if mask is None else mask
    k, v = (jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, length - keys), (0, 0)]) for x in (heads.k, heads.v))
    return heads._replace(k=k, v=v), jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, length - keys)])


def attend(
    heads: Heads,
    *,
    mask: Any = None,
    causal: bool = False,
    align_first: bool = False,
    window: int | None = None,
    state: Any = None,
    full: bool = False,
    check_finite: bool = True,
) -> AttentionResult:
    """Run a pass; the output is (*batch, length, heads, width) and its logs are (*batch, length, heads).

    Parameters
    ----------
    heads : Heads
        What `split_heads` returned.
    mask : array of bool, shape (*batch, heads or 1, keys), optional
        True where a key may be attended.
    causal, window, state, full, check_finite
        As in `rfkernels.attention`; without `full` the state and the logs are None.
    align_first : bool, default False
        Whether a causal pass aligns the first query with the first key, as JAX and Flax do.

    Returns
    -------
    AttentionResult
    """
    if mask is not None and heads.grouped and mask.ndim > 1:
        over = (1, 1) if mask.shape[-2] == 1 else heads.q.shape[-4:-2]
        if mask.shape[-2] not in (1, over[0] * over[1]):
            raise ValueError(f"mask has {mask.shape[-2]} heads, but query has {over[0] * over[1]}")
        mask = mask.reshape(*mask.shape[:-2], *over, mask.shape[-1])
    if align_first and causal:
        heads, mask = _align_first(heads, mask)
    options = {"causal": causal, "window": window, "mask": mask, "state": state, "full": full, "backend": "jax"}
    try:
        done = rfk.attention(*heads[:3], heads.features, **options, check_finite=check_finite)
    except ValueError:
        if check_finite:
            check_finite_arrays(**{name: _merge_heads(heads, x, 2) for name, x in zip(_NAMES, heads, strict=False)})
        raise
    if not full:
        return AttentionResult(_merge_heads(heads, done, 2), None, None, None)
    logs = (_merge_heads(heads, x, 1) for x in (done.log_normalizer, done.sign))
    return AttentionResult(_merge_heads(heads, done.output, 2), done.state, *logs)


def _merge_heads(heads: Heads, x: Any, own: int) -> Any:
    """Move heads behind the length again; `own` axes of x are not batch axes."""
    if heads.grouped:
        x = x.reshape(*x.shape[: -own - 2], x.shape[-own - 2] * x.shape[-own - 1], *x.shape[x.ndim - own :])
    return jnp.swapaxes(x, -own - 1, -own)


def stream_state(features: Features, batch: tuple[int, ...], width: int, window: int | None, dtype: Any) -> Any:
    """Return an empty state whose leaves are all arrays of JAX, so that a loop can carry it."""
    return jax.tree.map(jnp.asarray, rfk.empty_state(features, width, batch, dtype, window=window))


def check_stream(heads: Heads, state: Any, made: str) -> None:
    """Require keys of the batch and heads that a state was made for, which would else grow in silence."""
    batch = (state.state if isinstance(state, DecodeState) else state).kv.shape[:-2]
    if heads.k.shape[:-2] != batch:
        raise ValueError(
            f"key must have the batch and heads that {made}, {batch}, got {heads.k.shape[:-2]}; of grouped queries "
            "heads of keys have an axis of 1 behind them"
        )


def read_stream_mask(heads: Heads, mask: Any) -> Any:
    """Read the mask over keys of a layer that decodes, which goes on from keys that it does not hold."""
    length, keys = heads.q.shape[-2], heads.k.shape[-2]
    if length != keys:
        raise ValueError(f"query and key must agree in length where a state goes on, got {length} and {keys}")
    if mask is None:
        return None
    seen = read_mask(mask, length, keys).keys
    if seen.ndim > 1 and seen.shape[-2] != 1:
        raise ValueError(f"mask must be one for all heads, (*batch, 1, 1, {keys}), got {mask.shape}")
    return seen
