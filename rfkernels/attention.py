"""The attention façade: validate, choose a backend, hand over."""

from __future__ import annotations

from typing import Any, Literal, overload

from rfkernels import blocked, uncertainty
from rfkernels._arrays import broadcasting, namespace, unmasked
from rfkernels._checks import (
    broadcast_batch,
    check_finite_arrays,
    check_flags,
    check_known,
    check_kv,
    check_mask,
    check_qk,
    check_qkv,
    check_segments,
    check_window,
    is_tracer,
    result_dtype,
)
from rfkernels.backends import choose
from rfkernels.core import Options
from rfkernels.features import Features, check_features
from rfkernels.grouping import BlockState
from rfkernels.state import DecodeState, State
from rfkernels.streaming import AttentionResult, advance, batch_of, begin, extend, resume


@overload
def attention(
    q: Any,
    k: Any,
    v: Any,
    features: Features | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    heavy: Any = None,
    groups: Any = None,
    scale: float | None = None,
    mask: Any = None,
    segment_ids: Any = None,
    state: State | DecodeState | BlockState | None = None,
    full: Literal[False] = False,
    error: bool = False,
    backend: str | None = None,
    check_finite: bool = True,
) -> Any: ...
@overload
def attention(
    q: Any,
    k: Any,
    v: Any,
    features: Features | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    heavy: Any = None,
    groups: Any = None,
    scale: float | None = None,
    mask: Any = None,
    segment_ids: Any = None,
    state: State | DecodeState | BlockState | None = None,
    full: Literal[True],
    error: bool = False,
    backend: str | None = None,
    check_finite: bool = True,
) -> AttentionResult: ...
@overload
def attention(
    q: Any,
    k: Any,
    v: Any,
    features: Features | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    heavy: Any = None,
    groups: Any = None,
    scale: float | None = None,
    mask: Any = None,
    segment_ids: Any = None,
    state: State | DecodeState | BlockState | None = None,
    full: bool,
    error: bool = False,
    backend: str | None = None,
    check_finite: bool = True,
) -> Any: ...
@broadcasting
def attention(
    q: Any,
    k: Any,
    v: Any,
    features: Features | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    heavy: Any = None,
    groups: Any = None,
    scale: float | None = None,
    mask: Any = None,
    segment_ids: Any = None,
    state: State | DecodeState | BlockState | None = None,
    full: bool = False,
    error: bool = False,
    backend: str | None = None,
    check_finite: bool = True,
) -> Any:
    """Compute linear attention: time and memory linear in the length.

    Row t of the output is Σ_s k̂(q_t, k_s) v_s / Σ_s k̂(q_t, k_s), with k̂(x, y) = φ(x)·φ(y) the kernel that the features
    estimate (Performers, arXiv 2009.14794, section 2). Sums are kept on a log scale: no epsilon is added anywhere.

    With `groups` or `heavy`, a sequence is cut into blocks of B positions. A query sees exactly the keys of its own
    block (up to itself if causal), of as many blocks beside it as the window needs, and the heavy keys; all others in
    sums. Exact and summed parts share one softmax: weights are positive, and nothing is subtracted from a sum.

    Parameters
    ----------
    q : array, shape (*batch, length, dim)
        Queries; heads are batch axes. Batch axes broadcast, so grouped queries are q ``(B, Hkv, G, L, d)`` with k and v
        ``(B, Hkv, 1, S, d)``.
    k, v : array, shape (*batch, keys, dim) and (*batch, keys, width)
        Keys and values.
    features : Features
        What `draw` or `fit` returned; the scale of q·k is part of it. May be left out where `groups` are given.
    causal : bool, default False
        Whether query t sees keys up to t only. When lengths differ the last query is aligned with the last key.
    window : int, optional
        Keys less than `window` positions away get exact weights, all others estimated ones: t − window < s ≤ t if
        causal, |t − s| < window if not. Needs a map whose kernel has a closed form; the numba backend joins those that
        have a `Kernel.norm_weight` (the exponential ones), the numpy backend any. With `groups` or `heavy`, whole
        blocks are exact: B is `window` rounded down to a power of two, from 16 to 64, and a query sees ⌈(window − 1)/B⌉
        blocks before its own (and after it, if not causal), hence all keys of the window and some more. Without a
        window, its own block of 64 if causal, and none if not.
    heavy : int or array of int, shape (*batch, heavy), optional
        Positions of keys that every query (not before them, if causal) sees exactly, no position twice. A number stands
        for the first positions if causal, and for those that `heavy_keys` finds if not. With `features`, which must be
        positive ones of the exponential kernel, all others are estimated without bias.
    groups : int or Groups, optional
        A key that is neither near nor heavy belongs to a group, which acts as one key at the mean of its keys. That is
        biased, also where it is accurate. What `fit_groups` returned divides keys by centres that stay as they are; it
        must come of other data if causal. A number of groups is fitted to q, k and v themselves if not causal; if
        causal, groups are merged from keys as they leave the window, which no later key touches. With `features`,
        each key's weight is estimated from what is left of it once the centre of its group is subtracted, without bias
        if centres do not depend on the rows of the features; causal then needs a Groups.
    scale : float or array, shape (), optional
        Multiplies q·k where `groups` is a number and there are no features, which have their own; 1/√dim by default.
    mask : array of bool, shape (*batch, keys), optional
        True where a key may be attended.
    segment_ids : array of int, shape (*batch, length), optional
        Packed sequences: keys are seen by queries of the same segment only, as if each were run alone. The numbers must
        not decrease along a row (not checked under `jax.jit`), and q and k must be of the same length.
    state : State, DecodeState or BlockState, optional
        Sums over earlier keys, which every query sees; with segments, every query of the first segment of its row. With
        a window it must be a DecodeState, and q longer than k by one at most; with `groups` or `heavy` a BlockState:
        what a causal pass with the same window, groups, features and number of heavy keys returned. `heavy` may then be
        left out once all were seen.
    full : bool, default False
        Return an `AttentionResult` instead of the output alone; with segments, its state is that of the last one.
    error : bool, default False
        Estimate standard errors as well, from independent groups of features, checked against exact attention of 32
        queries: the field `error` of the result, which needs ``full=True``. With `heavy` or `groups` its `state` is
        then None, and none can be resumed from. Warns where errors are not to be trusted (`rfkernels.uncertainty`).
    backend : {"numba", "jax", "numpy"}, optional
        Chosen by the kind of array if not given: numba for numpy.ndarray, jax for jax.Array.
    check_finite : bool, default True
        Whether NaN and infinity are refused, in masked keys as well. If they are let pass, one of them may reach every
        output, but none that is masked reaches any. What JAX traces is not looked at; shapes and dtypes always are.

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
        If shapes do not fit, a value is not finite, or the features cannot honour what is asked. With `groups` or
        `heavy` also: segments, a bidirectional pass from a state, more queries than keys in a causal one, a position
        that occurs twice, and features that are not positive ones of the exponential kernel.

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
    if not type(causal) is type(full) is type(error) is type(check_finite) is bool:  # in less time, at every token
        check_flags(causal=causal, full=full, error=error, check_finite=check_finite)
    if error:
        if not full:
            raise ValueError("error=True returns standard errors in an AttentionResult: pass full=True as well")
        given = {"causal": causal, "window": window, "heavy": heavy, "groups": groups, "scale": scale, "mask": mask}
        given |= {"state": state, "segment_ids": segment_ids, "backend": backend, "check_finite": check_finite}
        return uncertainty.attend(attention, q, k, v, features, **given, stacklevel=4)
    if heavy is not None or groups is not None or isinstance(state, BlockState):
        check_window(window)
        done = blocked.attend(
            q,
            k,
            v,
            features,
            groups,
            heavy,
            scale=scale,
            causal=bool(causal),
            window=window,
            mask=mask,
            segment_ids=segment_ids,
            state=state,
            full=full,
            backend=backend,
            check_finite=check_finite,
        )
        return AttentionResult(done.output, done.state, done.log_normalizer, done.sign) if full else done.output
    check_features(features, "k", k)
    assert features is not None
    blocked.check_no_scale(scale, "features")
    batches = {"q": q.shape[:-2], "v": v.shape[:-2], "features": features.batch, "state": batch_of(state)}
    broadcast_batch(k=k.shape[:-2], **batches)
    check_mask(mask, k, **batches)
    check_segments(segment_ids, q, k, v=v.shape[:-2], features=features.batch, state=batches["state"])
    check_window(window)
    decode = resume(state, features, q, k, v, mask, segment_ids, causal, window)
    start = decode.state if decode is not None else begin(state, features, k, v, mask, segment_ids)
    chosen = choose(backend, q, k, v, mask=mask, segment_ids=segment_ids, state=start, features=features)
    xp = namespace(q, k, v)
    keys, values, seen, segments = k, v, mask, segment_ids if k.shape[-2] else None
    if decode is not None:
        keys, values, seen, segments = extend(xp, decode, k, v, mask, segments)
    if not check_finite:
        values = unmasked(values, seen)
    elif keys is not k:
        check_finite_arrays(q=q, k=k, v=v)
        check_finite = False
    options = _options(features, causal, window, full, q.shape[-2] + keys.shape[-2])
    dtype = result_dtype(xp, q, k, v)
    done = chosen.attend(q, keys, values, features, options, seen, segments, start, check_finite, dtype)
    if not full:
        return done.output
    after = done.state if decode is None else advance(xp, decode, done, window, keys, values, seen, segments)
    return AttentionResult(done.output, after, done.log_normalizer, done.sign)


def _options(features: Features, causal: bool, window: int | None, full: bool, positions: int) -> Options:
    if window is None:
        return Options(bool(causal), full=full)
    kernel = features.map.kernel
    if kernel is None:
        raise ValueError(
            "window= joins exact weights with estimated ones, which needs a map whose kernel has a closed form; "
            "this map names none (FeatureMap(..., kernel=))"
        )
    return Options(bool(causal), min(int(window), positions + 1), kernel, full)


@broadcasting
def linear_attention(
    phi_q: Any,
    phi_k: Any,
    v: Any,
    *,
    causal: bool = False,
    mask: Any = None,
    backend: str | None = None,
    check_finite: bool = True,
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
    backend : {"numba", "jax", "numpy"}, optional
        Chosen by the kind of array if not given: numba for numpy.ndarray, jax for jax.Array.
    check_finite : bool, default True
        Whether NaN and infinity are refused. If they are let pass, none that is masked reaches any output.

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
    check_kv(phi_k, v, names=("phi_k", "v"))
    check_flags(causal=causal, check_finite=check_finite)
    if causal:
        check_known(phi_q=phi_q, phi_k=phi_k, v=v)
    check_mask(mask, phi_k, phi_q=phi_q.shape[:-2], v=v.shape[:-2])
    chosen, xp = choose(backend, phi_q, phi_k, v, mask=mask), namespace(phi_q, phi_k, v)
    if is_tracer(v) or not check_finite:
        v = unmasked(v, mask)
    return chosen.given(phi_q, phi_k, v, causal, mask, check_finite, result_dtype(xp, phi_q, phi_k, v))
