"""Attention inside `jax.shard_map`, each device holding a part of the sequence."""

from __future__ import annotations

from typing import Any

from rfkernels import partials
from rfkernels._arrays import accumulator
from rfkernels._checks import broadcast_batch, check_flags, check_mask, check_qkv, check_window, result_dtype
from rfkernels.attention import attention
from rfkernels.features import Features, check_features
from rfkernels.integrations.collectives import (
    Axis,
    axis_size,
    from_last,
    halo,
    leaving,
    merge_over_devices,
    states_before,
    with_mask,
)
from rfkernels.integrations.placement import Name
from rfkernels.partials import Partial
from rfkernels.state import DecodeState, State, empty_sums
from rfkernels.streaming import AttentionResult, read_state, write_state

_BACKEND = "jax"


def sequence_attention(
    q: Any,
    k: Any,
    v: Any,
    features: Features,
    *,
    axis_name: Name,
    causal: bool = False,
    window: int | None = None,
    mask: Any = None,
    full: bool = False,
) -> Any:
    """Compute linear attention inside `jax.shard_map`, each device holding a part of the sequence.

    Equal to `rfkernels.attention` of the whole sequence, and so are its derivatives. Devices exchange sums over keys,
    whose size does not depend on the length. Bidirectional, each writes a state of its own keys and one reduction
    merges them; causal, an exclusive scan gives each the state of the keys before its own.

    Parameters
    ----------
    q : array, shape (*batch, length, dim)
        This device's queries. The axis orders the devices: the first holds the first positions.
    k, v : array, shape (*batch, keys, dim) and (*batch, keys, width)
        This device's keys and values.
    features : Features
        The same on every device.
    axis_name : str or tuple of str
        The mesh axis that the sequence is spread over.
    causal : bool, default False
        Whether query t sees keys up to t only. Needs as many queries as keys.
    window : int, optional
        Keys less than `window` positions away get exact weights. The last keys and values of a device travel to the
        next (and, bidirectional, the first ones back), so a window may not be wider than one device's part. Needs as
        many queries as keys.
    mask : array of bool, shape (*batch, keys), optional
        True where one of this device's keys may be attended.
    full : bool, default False
        Return an `AttentionResult`. Its state is that of the whole sequence, the same on every device.

    Returns
    -------
    array, shape (*batch, length, width), or AttentionResult
        This device's part of the output.

    Raises
    ------
    TypeError
        If an argument has the wrong type or dtype.
    ValueError
        If shapes do not fit, the axis is not bound, or what is asked for would need more than a neighbour's keys.

    Notes
    -----
    With m features and values of width w, a step moves m (w + 2) numbers for each head of a device, in float32 (float64
    if the arrays are): one reduction, or the 1 + ⌈log₂(devices − 1)⌉ steps of the scan. A window adds its
    keys and values. Values are not checked for NaN and infinity.
    """
    size = axis_size(axis_name)
    check_flags(causal=causal, full=full)
    check_arguments(q, k, v, features, mask, window)
    check_lengths(q.shape[-2], k.shape[-2], size, causal, window)
    if size == 1 and window is not None:
        window = min(window, max(k.shape[-2], 1))  # as wide as all keys, there being no neighbour to ask
    q, k, v = _promoted(q, k, v)
    axis = Axis(axis_name, size)
    if causal:
        result = _causal(q, k, v, features, axis, window, mask, full)
    elif window is None:
        result = _bidirectional(q, k, v, features, axis, mask)
    else:
        result = _two_sided(q, k, v, features, axis, window, mask)
    return result if full else result.output


def check_arguments(q: Any, k: Any, v: Any, features: Features, mask: Any, window: int | None) -> None:
    """Require arguments that fit together, as `attention` does."""
    check_qkv(q, k, v)
    check_features(features, "k", k)
    batches = {"q": q.shape[:-2], "v": v.shape[:-2], "features": features.batch}
    broadcast_batch(k=k.shape[:-2], **batches)
    check_mask(mask, k, **batches)
    check_window(window)


def check_lengths(length: int, keys: int, size: int, causal: bool, window: int | None) -> None:
    """Refuse what would need keys of more than the neighbouring device."""
    if (causal or window is not None) and length != keys and size > 1:
        raise ValueError(
            "causal=True and window= need as many queries as keys on each device, so that both have the same "
            f"positions; got {length} and {keys}"
        )
    if window is not None and window > keys and size > 1:
        raise ValueError(
            f"window={window} reaches past the neighbouring device, each of which holds {keys} keys: only neighbours "
            "exchange keys, so use fewer devices or a window that is no wider than a device's part"
        )


def _promoted(*arrays: Any) -> list[Any]:
    import jax.numpy as jnp

    dtype = result_dtype(jnp, *arrays)
    return [jnp.asarray(x, dtype) for x in arrays]


def _written(k: Any, v: Any, features: Features, mask: Any) -> State:
    """Return the state of these keys alone."""
    import jax.numpy as jnp

    shapes = {"k": k.shape[:-2], "v": v.shape[:-2], "features": features.batch}
    batch = broadcast_batch(**shapes, mask=() if mask is None else mask.shape[:-1])
    empty = empty_sums(jnp, features, v.shape[-1], batch, accumulator(jnp, k, v))
    return write_state(empty, k, v, features, mask=mask, backend=_BACKEND, check_finite=False)


def _bidirectional(q: Any, k: Any, v: Any, features: Features, axis: Axis, mask: Any) -> AttentionResult:
    state = merge_over_devices(_written(k, v, features, mask), axis, features.map.exponential)
    result: AttentionResult = read_state(state, q, features, full=True, backend=_BACKEND, check_finite=False)
    return result


def _causal(
    q: Any, k: Any, v: Any, features: Features, axis: Axis, window: int | None, mask: Any, full: bool
) -> AttentionResult:
    own = (k, v, mask)
    if window is not None:
        before = halo(k, v, axis, window, mask)
        own = tuple(leaving(old, new, window) for old, new in zip(before, with_mask(k, v, mask), strict=True))
    state: Any = states_before(_written(*own[:2], features, own[2]), axis, features.map.exponential)
    if window is not None:
        state = DecodeState(state, *before, axis.rank() * k.shape[-2])
    options: dict[str, Any] = {"causal": True, "window": window, "mask": mask, "state": state}
    result: AttentionResult = attention(q, k, v, features, **options, full=True, backend=_BACKEND, check_finite=False)
    return result._replace(state=from_last(result.state, axis)) if full else result


def _two_sided(q: Any, k: Any, v: Any, features: Features, axis: Axis, window: int, mask: Any) -> AttentionResult:
    """Join a pass over the keys up to each query with one, read backwards, over those after it."""
    import jax.numpy as jnp

    dtype, kind = q.dtype, accumulator(jnp, q)
    q, k, v = (x.astype(kind) for x in (q, k, v))
    before = _causal(q, k, v, features, axis, window, mask, False)
    back = axis._replace(reverse=True)
    k, v, seen = with_mask(jnp.flip(k, -2), jnp.flip(v, -2), None if mask is None else jnp.flip(mask, -1))
    # A query's own key was in the first pass: here every key stands one place later, behind the query before it.
    k, v, seen = (leaving(old, new, 1) for old, new in zip(halo(k, v, back, 1, seen), (k, v, seen), strict=True))
    after = _causal(jnp.flip(q, -2), k, v, features, back, window - 1 or None, seen, False)
    log, sign = jnp.flip(after.log_normalizer, -1), jnp.flip(after.sign, -1)
    turned = AttentionResult(jnp.flip(after.output, -2), None, log, sign)
    part = partials.join(
        jnp, *(Partial(x.output * x.sign[..., None], x.sign, x.log_normalizer) for x in (before, turned))
    )
    return AttentionResult(partials.normalize(jnp, part).astype(dtype), None, *partials.log_denominator(jnp, part))
