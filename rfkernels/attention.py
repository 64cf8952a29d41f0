"""The attention façade: validate, choose a backend, hand over."""

from __future__ import annotations

from typing import Any, NamedTuple

from rfkernels import core
from rfkernels._arrays import accumulator, namespace
from rfkernels._checks import (
    broadcast_batch,
    check_array,
    check_features,
    check_finite_arrays,
    check_kv,
    check_mask,
    check_qk,
    check_qkv,
    check_window,
    result_dtype,
)
from rfkernels.backends import Pass, choose
from rfkernels.core import Options
from rfkernels.features import Features, SideName
from rfkernels.state import DecodeState, State, empty_state


class AttentionResult(NamedTuple):
    """What `attention` returns with ``full=True``.

    Parameters
    ----------
    output : array, shape (*batch, length, width)
        The normalised output.
    state : State, DecodeState or None
        What a later call resumes from; a DecodeState after a causal pass with a window, None after a bidirectional one
        with a window.
    log_normalizer : array, shape (*batch, length)
        log |Σ_s k̂(q, k_s)| over the keys each query sees, in the accumulation dtype; −inf where it sees none.
    sign : array, shape (*batch, length)
        The sign of that sum: never −1 for a nonnegative map, 0 where there is no key.
    """

    output: Any
    state: State | DecodeState | None
    log_normalizer: Any
    sign: Any


def attention(
    q: Any,
    k: Any,
    v: Any,
    features: Features,
    *,
    causal: bool = False,
    window: int | None = None,
    mask: Any = None,
    state: State | DecodeState | None = None,
    full: bool = False,
    backend: str | None = None,
    check_finite: bool = True,
) -> Any:
    """Compute linear attention: time and memory linear in the length.

    Row t of the output is Σ_s k̂(q_t, k_s) v_s / Σ_s k̂(q_t, k_s), with k̂(x, y) = φ(x)·φ(y) the kernel that the features
    estimate (Performers, arXiv 2009.14794, section 2). Sums are kept on a log scale: no epsilon is added anywhere.

    Parameters
    ----------
    q : array, shape (*batch, length, dim)
        Queries; heads are batch axes. Batch axes broadcast, so grouped queries are q ``(B, Hkv, G, L, d)`` with k and v
        ``(B, Hkv, 1, S, d)``.
    k, v : array, shape (*batch, keys, dim) and (*batch, keys, width)
        Keys and values.
    features : Features
        What `draw` returned; the scale of q·k is part of it.
    causal : bool, default False
        Whether query t sees keys up to t only. When lengths differ the last query is aligned with the last key.
    window : int, optional
        Keys less than `window` positions away get exact weights, all others estimated ones: t − window < s ≤ t if
        causal, |t − s| < window if not. Needs a map whose kernel has a closed form.
    mask : array of bool, shape (*batch, keys), optional
        True where a key may be attended.
    state : State or DecodeState, optional
        Sums over earlier keys, which every query sees. With a window it must be a DecodeState.
    full : bool, default False
        Return an `AttentionResult` instead of the output alone.
    backend : {"numba", "jax", "numpy"}, optional
        Chosen by the kind of array if not given: numba for numpy.ndarray, jax for jax.Array.
    check_finite : bool, default True
        Whether NaN and infinity are refused.

    Returns
    -------
    array, shape (*batch, length, width), or AttentionResult
        In the common dtype of q, k and v, computed in float64 if that is float64 and in float32 otherwise. Zeros where
        the sum of weights is exactly zero.

    Raises
    ------
    TypeError
        If an argument has the wrong type or dtype.
    ValueError
        If shapes do not fit, a value is not finite, or the features cannot honour what is asked.

    Examples
    --------
    >>> import numpy as np, rfkernels as rfk
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 8, 100, 64), dtype=np.float32)
    >>> features = rfk.draw("positive", dim=64, count=256, rng=0)
    >>> rfk.attention(q, k, v, features, causal=True).shape
    (8, 100, 64)
    """
    check_qkv(q, k, v)
    check_features(features, "k", k)
    check_mask(mask, k)
    check_window(window)
    xp = namespace(q, k, v, *(state or ()))
    decode = _decode_state(state, features, k, v, mask, causal, window)
    start = decode.state if decode is not None else _start(state, features, k, v, mask)
    options = _options(features, causal, window)
    chosen = choose(backend, q, k, v)
    dtype = result_dtype(xp, q, k, v)
    if decode is None:
        done = chosen.attend(q, k, v, features, options, mask, start, check_finite, dtype)
        return AttentionResult(done.output, done.state, done.log_normalizer, done.sign) if full else done.output
    keys, values, seen = _extend(xp, decode, k, v, mask)
    done = chosen.attend(q, keys, values, features, options, seen, start, check_finite, dtype)
    if not full:
        return done.output
    assert window is not None
    after = _advance(xp, decode, done, window, keys, values, seen)
    return AttentionResult(done.output, after, done.log_normalizer, done.sign)


def _options(features: Features, causal: bool, window: int | None) -> Options:
    if window is None:
        return Options(bool(causal))
    kernel = features.map.kernel
    if kernel is None:
        raise ValueError(
            "window= joins exact weights with estimated ones, which needs a map whose kernel has a closed form; "
            "this map names none (FeatureMap(..., kernel=))"
        )
    return Options(bool(causal), int(window), kernel)


def _start(state: State | DecodeState | None, features: Features, k: Any, v: Any, mask: Any) -> State:
    """Return the state to begin from, with the batch axes of everything that is written to it."""
    shapes = {"k": k.shape[:-2], "v": v.shape[:-2], "features": features.batch}
    if mask is not None:
        shapes["mask"] = mask.shape[:-1]
    if state is None:
        dtype = accumulator(namespace(k, v), k, v)
        empty = empty_state(features, v.shape[-1], broadcast_batch(**shapes), dtype)
        assert isinstance(empty, State)
        return empty
    if not isinstance(state, State):
        raise TypeError(f"state must be a State (a DecodeState only goes with window=), got {type(state).__name__}")
    _check_state(state, features, v.shape[-1])
    batch = broadcast_batch(state=state.kv.shape[:-2], **shapes)
    xp = namespace(*state)
    tail = (features.count, v.shape[-1])
    return State(
        xp.broadcast_to(state.kv, (*batch, *tail)),
        xp.broadcast_to(state.z, (*batch, features.count)),
        xp.broadcast_to(state.shift, (*batch, features.count)),
    )


def _check_state(state: State, features: Features, width: int | None) -> None:
    count = state.kv.shape[-2]
    if count != features.count or state.z.shape != state.kv.shape[:-1] or state.shift.shape != state.z.shape:
        raise ValueError(
            f"state must have kv (*batch, {features.count}, width), z and shift (*batch, {features.count}), "
            f"got {state.kv.shape}, {state.z.shape} and {state.shift.shape}"
        )
    if width is not None and state.kv.shape[-1] != width:
        raise ValueError(f"state holds values of width {state.kv.shape[-1]}, but v has width {width}")


def _decode_state(
    state: State | DecodeState | None, features: Features, k: Any, v: Any, mask: Any, causal: bool, window: int | None
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
        start = _start(None, features, k, v, mask)
        xp = namespace(k, v)
        shapes = (*start.kv.shape[:-2], window)
        keys, values = xp.zeros((*shapes, k.shape[-1]), k.dtype), xp.zeros((*shapes, v.shape[-1]), v.dtype)
        return DecodeState(start, keys[..., :0, :], values[..., :0, :], xp.zeros((*shapes[:-1], 0), bool), 0)
    if not isinstance(state, DecodeState):
        raise TypeError(
            "state must be a DecodeState when window= is given (empty_state(..., window=) or a windowed pass with "
            f"full=True returns one), got {type(state).__name__}"
        )
    if state.keys.shape[-2] > window:
        raise ValueError(f"state was made with a window of {state.keys.shape[-2]}, got window={window}")
    return state._replace(state=_start(state.state, features, k, v, mask))


def _extend(xp: Any, decode: DecodeState, k: Any, v: Any, mask: Any) -> tuple[Any, Any, Any]:
    """Put the keys still in the window before the new ones."""
    pending = decode.keys.shape[-2]
    if pending == 0:
        return k, v, mask
    batch = broadcast_batch(state=decode.keys.shape[:-2], k=k.shape[:-2])
    new = xp.ones(k.shape[-2], bool) if mask is None else mask
    wide = broadcast_batch(state=decode.mask.shape[:-1], mask=new.shape[:-1])

    def joined(old: Any, added: Any, leading: tuple[int, ...], tail: int) -> Any:
        both = [xp.broadcast_to(x, (*leading, *x.shape[x.ndim - tail :])) for x in (old.astype(added.dtype), added)]
        return xp.concatenate(both, axis=-tail)

    values = broadcast_batch(state=decode.values.shape[:-2], v=v.shape[:-2])
    return joined(decode.keys, k, batch, 2), joined(decode.values, v, values, 2), joined(decode.mask, new, wide, 1)


def _advance(xp: Any, decode: DecodeState, done: Pass, window: int, keys: Any, values: Any, seen: Any) -> DecodeState:
    """Return the state after a pass: its sums hold all keys but the last `window`."""
    assert done.state is not None
    if seen is None:
        seen = xp.ones(keys.shape[-2], bool)
    position = decode.position + keys.shape[-2] - decode.keys.shape[-2]
    return DecodeState(done.state, keys[..., -window:, :], values[..., -window:, :], seen[..., -window:], position)


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
    check_kv(k, v)
    check_features(features, "k", k)
    check_mask(mask, k)
    start = _start(state, features, k, v, mask)
    return choose(backend, k, v, *state).write(start, k, v, features, mask, check_finite)


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
    check_features(features, "q", q)
    if not isinstance(state, State):
        raise TypeError(f"state must be a State, got {type(state).__name__}")
    _check_state(state, features, None)
    broadcast_batch(q=q.shape[:-2], state=state.kv.shape[:-2])
    done = choose(backend, q, *state).read(state, q, features, check_finite, q.dtype)
    return AttentionResult(done.output, state, done.log_normalizer, done.sign) if full else done.output


def linear_attention(
    phi_q: Any, phi_k: Any, v: Any, *, causal: bool = False, mask: Any = None, check_finite: bool = True
) -> Any:
    """Compute attention from features that are given: row t is φ_q(t)·Σ_s φ_k(s) v_sᵀ / φ_q(t)·Σ_s φ_k(s).

    For maps that are not an elementwise function of a projection. The features are used as they are: no scale is
    applied, no shift is taken.

    Parameters
    ----------
    phi_q : array, shape (*batch, length, count)
        Features of queries.
    phi_k : array, shape (*batch, keys, count)
        Features of keys.
    v : array, shape (*batch, keys, width)
        Values.
    causal : bool, default False
        Whether query t sees keys up to t only; the last query is aligned with the last key.
    mask : array of bool, shape (*batch, keys), optional
        True where a key may be attended.
    check_finite : bool, default True
        Whether NaN and infinity are refused.

    Returns
    -------
    array, shape (*batch, length, width)
        In the common dtype of the arguments; zeros where the denominator is exactly zero.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together.
    """
    check_qk(phi_q, phi_k, names=("phi_q", "phi_k"))
    check_kv(phi_k, v)
    check_mask(mask, phi_k)
    if check_finite:
        check_finite_arrays(phi_q=phi_q, phi_k=phi_k, v=v)
    xp = namespace(phi_q, phi_k, v)
    dtype = accumulator(xp, phi_q, phi_k, v)
    out = core.linear_attention(xp, phi_q.astype(dtype), phi_k.astype(dtype), v.astype(dtype), causal, mask)
    return out.astype(result_dtype(xp, phi_q, phi_k, v))


def transform(x: Any, features: Features, *, side: SideName, log: bool = False, check_finite: bool = True) -> Any:
    """Return φ(x) itself.

    Parameters
    ----------
    x : array, shape (*batch, length, dim)
        Queries or keys.
    features : Features
        The features.
    side : {"query", "key"}
        Which preprocessing applies.
    log : bool, default False
        Return log |φ| and the sign of φ, which hold at norms where φ itself would overflow or vanish.
    check_finite : bool, default True
        Whether NaN and infinity are refused.

    Returns
    -------
    array, shape (*batch, length, count), or a tuple of two such arrays
        φ with φ(x)·φ(y) an estimate of the kernel; m^-½ is included.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together.
    """
    check_array("x", x, 2)
    check_features(features, "x", x)
    features.side(side)
    if check_finite:
        check_finite_arrays(x=x)
    xp = namespace(x)
    values, signs = core.transform(xp, x.astype(accumulator(xp, x)), features, side)
    return (values, signs) if log else (signs * xp.exp(values)).astype(x.dtype)


def _signed(log: Any, sign: Any, features: Features, return_sign: bool) -> Any:
    if return_sign:
        return log, sign
    if not features.map.nonnegative:
        raise ValueError(
            "estimates of this map can be negative: pass return_sign=True for the log of the magnitude and the sign"
        )
    return log


def log_kernel(x: Any, y: Any, features: Features, *, return_sign: bool = False, check_finite: bool = True) -> Any:
    """Estimate log k(x, y), pair by pair: the log of φ(x)·φ(y), whose mean (not that of its log) is the kernel.

    Parameters
    ----------
    x, y : array, shape (*batch, dim)
        Points of the query and the key side; batch axes broadcast against each other.
    features : Features
        The features, without batch axes of their own or with axes that broadcast against those of x.
    return_sign : bool, default False
        Return ``(log, sign)``. Required of maps whose estimates can be negative.
    check_finite : bool, default True
        Whether NaN and infinity are refused.

    Returns
    -------
    array, shape (*batch), or a tuple of two such arrays
        In the accumulation dtype; −inf where the estimate is zero.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, or the map is signed and `return_sign` is False.
    """
    check_qk(x, y, names=("x", "y"), pairs=True)
    check_features(features, "x", x[..., None, :])
    if check_finite:
        check_finite_arrays(x=x, y=y)
    xp = namespace(x, y)
    dtype = accumulator(xp, x, y)
    log, sign = core.log_kernel(xp, x.astype(dtype), y.astype(dtype), features)
    return _signed(log, sign, features, return_sign)


def log_normalizer(
    queries: Any,
    keys: Any,
    features: Features,
    *,
    mask: Any = None,
    return_sign: bool = False,
    backend: str | None = None,
    check_finite: bool = True,
) -> Any:
    """Estimate log Σ_s k(q, k_s) for each query, from a state: linear in the number of keys.

    Parameters
    ----------
    queries : array, shape (*batch, length, dim)
        Queries.
    keys : array, shape (*batch, keys, dim)
        Keys.
    features : Features
        The features; ``draw(..., scale=1)`` for plain dot products.
    mask : array of bool, shape (*batch, keys), optional
        True where a key counts.
    return_sign : bool, default False
        Return ``(log, sign)``. Required of maps whose estimates can be negative.
    backend, check_finite
        As in `attention`.

    Returns
    -------
    array, shape (*batch, length), or a tuple of two such arrays
        In the accumulation dtype; −inf where no key counts.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, or the map is signed and `return_sign` is False.
    """
    check_qk(queries, keys, names=("queries", "keys"))
    values = keys[..., :0]
    result = attention(
        queries, keys, values, features, mask=mask, full=True, backend=backend, check_finite=check_finite
    )
    return _signed(result.log_normalizer, result.sign, features, return_sign)
