"""States in use: begin from one, resume a window, write keys, read them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import accumulator, broadcasting, is_jax, namespace, record, unmasked
from rfkernels._checks import (
    broadcast_batch,
    check_array,
    check_flags,
    check_known,
    check_kv,
    check_mask,
    common_dtype,
    is_tracer,
)
from rfkernels.backends import Pass, choose
from rfkernels.features import Features, check_features
from rfkernels.grouping import BlockState
from rfkernels.state import DecodeState, State, check_position, check_sums, empty_sums, no_sums


@record
class Errors(NamedTuple):
    """Standard errors of what attention estimates, from the spread of independent groups of features.

    Parameters
    ----------
    output : array, shape (*batch, length, width)
        Of each component of the output.
    log_normalizer : array, shape (*batch, length)
        Of the log of the sum of weights.
    effective : array, shape (*batch, length)
        The effective number of features, m / (1 + m r) with r the relative variance of the sum of weights: m where all
        features say the same, near 1 where a few decide, 0 where there is no key.
    freedom : int
        Degrees of freedom of Student's t distribution, the number of groups less 1.
    inflation, log_inflation : array, shape (*batch), optional
        By how much the errors of output and log-normaliser had to be multiplied for their 95 % intervals to hold over a
        sample of queries that exact attention was computed of, of those with finite errors; at least 1. None if they
        were not checked. Infinite, as the errors then are, where no factor is enough: about 5 % of the sample or more
        have an error of zero and are off, as queries are whose features are all zero, or a log-normaliser of −inf that
        should be finite. Also where all errors of the sample are infinite.
    """

    output: Any
    log_normalizer: Any
    effective: Any
    freedom: int
    inflation: Any = None
    log_inflation: Any = None


@record
class AttentionResult(NamedTuple):
    """What `attention` returns with ``full=True``.

    Parameters
    ----------
    output : array, shape (*batch, length, width)
        The normalised output.
    state : State, DecodeState, BlockState or None
        What a later call resumes from; a DecodeState after a causal pass with a window, a BlockState after one with
        `groups` or `heavy`, None after a bidirectional one with any of these.
    log_normalizer : array, shape (*batch, length)
        log |Σ_s k̂(q, k_s)| over the keys each query sees, in the accumulation dtype; −inf where it sees none.
    sign : array, shape (*batch, length)
        The sign of that sum: never −1 for a nonnegative map, 0 where there is no key.
    error : Errors, optional
        Standard errors, if they were asked for.
    """

    output: Any
    state: State | DecodeState | BlockState | None
    log_normalizer: Any
    sign: Any
    error: Errors | None = None


def begin(
    state: State | DecodeState | None, features: Features, k: Any, v: Any, mask: Any, segments: Any = None
) -> State:
    """Return the state to begin from, with the batch axes of everything that is written to it."""
    shapes = {"k": k.shape[:-2], "v": v.shape[:-2], "features": features.batch}
    for name, given in (("mask", mask), ("segment_ids", segments)):
        if given is not None:
            shapes[name] = given.shape[:-1]
    if state is None:
        xp = namespace(k, v)
        sizes = v.shape[-1], broadcast_batch(**shapes), accumulator(xp, k, v)
        return no_sums(features, *sizes) if xp is np else empty_sums(xp, features, *sizes)
    if not isinstance(state, State):
        raise TypeError(f"state must be a State (a DecodeState only goes with window=), got {type(state).__name__}")
    check_state(state, features, v.shape[-1])
    batch = broadcast_batch(state=state.kv.shape[:-2], **shapes)
    if batch == state.kv.shape[:-2]:
        return state
    xp = namespace(*state)
    tail = (features.count, v.shape[-1])
    return State(
        xp.broadcast_to(state.kv, (*batch, *tail)),
        xp.broadcast_to(state.z, (*batch, features.count)),
        xp.broadcast_to(state.shift, (*batch, features.count)),
    )


def batch_of(state: Any) -> tuple[int, ...]:
    """Return the batch axes of a state, whose sums are checked, and none for what is not one."""
    given = state.state if isinstance(state, DecodeState) else state
    if not isinstance(given, State):
        return ()
    check_sums("state", given)
    return tuple(given.kv.shape[:-2])


def check_state(state: State, features: Features, width: int | None) -> None:
    """Require a state, whose sums are checked, of the features' count and, if given, of that width."""
    if state.kv.shape[-2] != features.count:
        raise ValueError(
            f"state must have kv (*batch, {features.count}, width), z and shift (*batch, {features.count}), "
            f"got {state.kv.shape}, {state.z.shape} and {state.shift.shape}"
        )
    if width is not None and state.kv.shape[-1] != width:
        raise ValueError(f"state holds values of width {state.kv.shape[-1]}, but v has width {width}")


def resume(
    state: State | DecodeState | None,
    features: Features,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    segments: Any,
    causal: bool,
    window: int | None,
) -> DecodeState | None:
    """Return the state that a windowed causal pass resumes from, None if there is none to resume."""
    if window is None:
        return None
    if not causal:
        if state is not None:
            raise ValueError(
                "state= cannot be combined with window= in a bidirectional pass: its keys have no position"
            )
        return None
    if state is None:
        xp = namespace(k, v)
        return DecodeState(
            begin(None, features, k, v, mask, segments), k[..., :0, :], v[..., :0, :], xp.zeros(0, bool), 0
        )
    if not isinstance(state, DecodeState):
        raise TypeError(
            "state must be a DecodeState when window= is given (empty_state(..., window=) or a windowed pass with "
            f"full=True returns one), got {type(state).__name__}"
        )
    _check_pending(state, k, v, window)
    _check_early(state, q.shape[-2], k.shape[-2])
    return state._replace(state=begin(state.state, features, k, v, mask, segments))


def _check_pending(state: DecodeState, k: Any, v: Any, window: int) -> None:
    """Require what a decode state holds to fit the new keys and values, and to be as much as the window needs."""
    check_array("state.keys", state.keys, 2)
    check_array("state.values", state.values, 2)
    if not (isinstance(state.mask, np.ndarray) or is_jax(state.mask)) or state.mask.ndim < 1:
        raise TypeError(f"state.mask must be a boolean array (*batch, window), got {type(state.mask).__name__}")
    pending = state.mask.shape[-1]
    shapes = (state.keys.shape[-2:], state.values.shape[-2:])
    expected = ((pending, k.shape[-1]), (pending, v.shape[-1]))
    if shapes != expected or state.mask.dtype != bool:
        raise ValueError(
            f"state must hold keys (*batch, {pending}, {k.shape[-1]}), values (*batch, {pending}, {v.shape[-1]}) and a "
            f"boolean mask (*batch, {pending}), got {state.keys.shape}, {state.values.shape} and {state.mask.dtype}"
        )
    broadcast_batch(
        **{"state.keys": state.keys.shape[:-2], "state.values": state.values.shape[:-2]},
        **{"state.mask": state.mask.shape[:-1], "k": k.shape[:-2], "v": v.shape[:-2]},
    )
    check_position(state.position)
    position = state.position
    seen = position if isinstance(position, int | np.integer) else pending
    if pending > window or pending < min(window, seen):
        raise ValueError(f"state was made with a window of {pending}, got window={window}")


def _check_early(state: DecodeState, length: int, keys: int) -> None:
    """Require queries that stand at the last key of the state or after it, unless that holds all keys one by one."""
    if length > keys + 1 and (is_tracer(state.position) or state.position > state.mask.shape[-1]):
        raise ValueError(
            "q may be longer than k by one at most where a pass with window= resumes from a state: its sums hold keys "
            f"that earlier queries must not see, or see exactly; got lengths {length} and {keys}"
        )


def extend(xp: Any, decode: DecodeState, k: Any, v: Any, mask: Any, segments: Any) -> tuple[Any, Any, Any, Any]:
    """Put the keys still in the window before the new ones; they are of the first segment."""
    pending = decode.keys.shape[-2]
    if pending == 0:
        return k, v, mask, segments
    if segments is not None and segments.shape[-1]:
        segments = xp.concatenate([xp.repeat(segments[..., :1], pending, -1), segments], -1)
    batch = broadcast_batch(state=decode.keys.shape[:-2], k=k.shape[:-2])
    new = xp.ones(k.shape[-2], bool) if mask is None else mask
    wide = broadcast_batch(state=decode.mask.shape[:-1], mask=new.shape[:-1])

    def joined(old: Any, added: Any, leading: tuple[int, ...], tail: int) -> Any:
        shapes = ((*leading, *x.shape[x.ndim - tail :]) for x in (old, added))
        both = [x if x.shape == own else xp.broadcast_to(x, own) for x, own in zip((old, added), shapes, strict=True)]
        return xp.concatenate(both, axis=-tail, dtype=common_dtype(xp, old, added))

    values = broadcast_batch(state=decode.values.shape[:-2], v=v.shape[:-2])
    keys = joined(decode.keys, k, batch, 2)
    return keys, joined(decode.values, v, values, 2), joined(decode.mask, new, wide, 1), segments


def advance(
    xp: Any, decode: DecodeState, done: Pass, window: int | None, keys: Any, values: Any, seen: Any, segments: Any
) -> DecodeState:
    """Return the state after a pass: its sums hold all keys but the last `window`, of the last segment."""
    assert done.state is not None
    assert window is not None
    if seen is None:
        seen = xp.ones(keys.shape[-2], bool)
    if segments is not None:
        seen = seen & (segments == segments[..., -1:])
    position = decode.position + keys.shape[-2] - decode.keys.shape[-2]
    last = keys[..., -window:, :], values[..., -window:, :], seen[..., -window:]
    if decode.keys.shape[-2] == 0 or keys.shape[-2] > 2 * window:
        # Copies: a caller may use the buffers of k and v again, and a view would keep all of them alive.
        last = tuple(xp.array(x) for x in last)
    return DecodeState(done.state, *last, position)


@broadcasting
def write_state(
    state: State,
    k: Any,
    v: Any,
    features: Features,
    *,
    mask: Any = None,
    backend: str | None = None,
    check_finite: bool = True,
) -> State:
    """Add keys and values to a state.

    Parameters
    ----------
    state : State
        What `empty_state`, `write_state`, `merge_states` or a full pass returned. It is not changed.
    k, v : array, shape (*batch, keys, dim) and (*batch, keys, width)
        Keys and values.
    features : Features
        The features of the state.
    mask : array of bool, shape (*batch, keys), optional
        True where a key counts.
    backend, check_finite
        As in `attention`.

    Returns
    -------
    State
        Equal, to rounding, to the merge of `state` with the state of the new keys alone.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together.
    """
    if not isinstance(state, State):
        raise TypeError(f"state must be a State, got {type(state).__name__}")
    check_kv(k, v)
    check_known(k=k, v=v)
    check_features(features, "k", k)
    check_flags(check_finite=check_finite)
    check_mask(mask, k, v=v.shape[:-2], features=features.batch, state=batch_of(state))
    start = begin(state, features, k, v, mask)
    if not check_finite:
        v = unmasked(v, mask)
    return choose(backend, k, v, mask=mask, state=start, features=features).write(
        start, k, v, features, mask, check_finite
    )


@broadcasting
def read_state(
    state: State,
    q: Any,
    features: Features,
    *,
    full: bool = False,
    backend: str | None = None,
    check_finite: bool = True,
) -> Any:
    """Attend to the keys of a state.

    Parameters
    ----------
    state : State
        Sums over keys.
    q : array, shape (*batch, length, dim)
        Queries, which all see every key of the state.
    features : Features
        The features of the state.
    full : bool, default False
        Return an `AttentionResult` instead of the output alone.
    backend, check_finite
        As in `attention`.

    Returns
    -------
    array, shape (*batch, length, width), or AttentionResult
        In the dtype of q.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together.
    """
    check_array("q", q, 2)
    check_known(q=q)
    check_features(features, "q", q)
    check_flags(full=full, check_finite=check_finite)
    if not isinstance(state, State):
        raise TypeError(f"state must be a State, got {type(state).__name__}")
    batch = batch_of(state)
    check_state(state, features, None)
    broadcast_batch(q=q.shape[:-2], state=batch, features=features.batch)
    done = choose(backend, q, state=state, features=features).read(state, q, features, full, check_finite, q.dtype)
    return AttentionResult(done.output, state, done.log_normalizer, done.sign) if full else done.output
