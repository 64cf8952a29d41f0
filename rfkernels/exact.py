"""Exact attention, kernels and log-normalisers: what every estimate is compared with."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import numpy as np

from rfkernels import kernels, partials
from rfkernels._arrays import accumulator, compiled, matmul, namespace, over_rows, stopped
from rfkernels._checks import (
    check_finite_arrays,
    check_flags,
    check_known,
    check_mask,
    check_qk,
    check_qkv,
    check_scale,
    check_segments,
    check_untraced,
    check_window,
    require_finite,
    result_dtype,
)
from rfkernels.kernels import Kernel, evaluated
from rfkernels.partials import Partial

_BLOCK = 128
_SCANS = 8
"""Scans of a causal pass: one alone would take twice the time, as it cuts keys to the same number for all queries."""


def exact_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    mask: Any = None,
    segment_ids: Any = None,
    kernel: Kernel = kernels.EXPONENTIAL,
    check_finite: bool = True,
) -> Any:
    """Compute attention with exact weights, a block of queries at a time.

    Row t of the output is Σ_s k(√scale q_t, √scale k_s) v_s / Σ_s k(√scale q_t, √scale k_s), by default
    softmax(scale q kᵀ) v.

    Parameters
    ----------
    q : array, shape (*batch, length, dim)
        Queries; heads are batch axes, and batch axes broadcast.
    k, v : array, shape (*batch, keys, dim) and (*batch, keys, width)
        Keys and values.
    scale : float, optional
        Multiplies q·k; 1/√dim by default.
    causal : bool, default False
        Whether query t sees keys up to t only. When lengths differ the last query is aligned with the last key.
    window : int, optional
        Attend only to keys less than `window` positions away: t − window < s ≤ t if causal, |t − s| < window if not.
    mask : array of bool, shape (*batch, keys), optional
        True where a key may be attended.
    segment_ids : array of int, shape (*batch, length), optional
        Packed sequences: keys are seen by queries of the same segment only (see `attention`).
    kernel : Kernel, default kernels.EXPONENTIAL
        The kernel of the weights.
    check_finite : bool, default True
        Whether NaN and infinity are refused.

    Returns
    -------
    array, shape (*batch, length, width)
        In the common dtype of q, k and v; zeros for a query that may attend nothing.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, or a value is not finite.
    """
    check_qkv(q, k, v)
    check_mask(mask, k, q=q.shape[:-2], v=v.shape[:-2])
    check_segments(segment_ids, q, k, v=v.shape[:-2])
    check_scale(scale)
    _check_kernel(kernel)
    check_flags(causal=causal, check_finite=check_finite)
    check_window(window)
    if check_finite:
        check_finite_arrays(q=q, k=k, v=v)
    xp = namespace(q, k, v)
    if xp is np:
        check_untraced(scale=scale, mask=mask, segment_ids=segment_ids)
    options = {"scale": scale, "causal": causal, "window": window, "mask": mask, "segment_ids": segment_ids}
    part = exact_partial(q, k, v, kernel=kernel, **options)
    return partials.normalize(xp, part).astype(result_dtype(xp, q, k, v))


def exact_partial(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: Any = None,
    causal: bool = False,
    window: int | None = None,
    mask: Any = None,
    segment_ids: Any = None,
    kernel: Kernel = kernels.EXPONENTIAL,
) -> Partial:
    """Sum exact weights over the keys that each query sees (arguments as `exact_attention`)."""
    xp = namespace(q, k, v)
    dtype = accumulator(xp, q, k, v)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    root = xp.sqrt(xp.asarray(scale, dtype))
    q, k = q * root, k * root
    run = _sums if xp is np else compiled(_sums, "xp", "seen", "kernel")
    reach = None if window is None else min(int(window), q.shape[-2] + k.shape[-2])
    part: Partial = run(xp, q, k, v, mask, segment_ids, _Seen(bool(causal), reach), kernel)
    return part


class _Seen(NamedTuple):
    """Which keys each query sees, by their positions; those of queries are aligned with those of keys."""

    causal: bool
    window: int | None

    def span(self, first: int, last: int, keys: int) -> tuple[int, int]:
        """Return from where to where there are keys that queries from `first` to before `last` see."""
        low = 0 if self.window is None else first - self.window + 1
        high = last if self.causal else keys if self.window is None else last - 1 + self.window
        low = min(max(low, 0), keys)
        return low, min(max(high, low), keys)

    def allowed(self, xp: Any, position: Any, key: Any) -> Any:
        """Return whether a query sees a key."""
        allowed = key <= position if self.causal else xp.ones(xp.broadcast_shapes(position.shape, key.shape), bool)
        return allowed if self.window is None else allowed & (abs(position - key) < self.window)


class _Band(NamedTuple):
    """Keys from position `low` on, each array (*batch, keys, n); what is not there is None."""

    low: Any
    k: Any
    v: Any
    mask: Any
    of_key: Any

    def part(self, xp: Any, first: Any, count: int) -> _Band:
        """Return so many keys, from position `first` on as far as they reach; where may not be known before."""
        start, lax = xp.clip(first - self.low, 0, self.k.shape[-2] - count), sys.modules["jax"].lax
        parts = (None if x is None else lax.dynamic_slice_in_dim(x, start, count, x.ndim - 2) for x in self[1:])
        return _Band(self.low + start, *parts)


def _sums(xp: Any, q: Any, k: Any, v: Any, mask: Any, segments: Any, seen: _Seen, kernel: Kernel) -> Partial:
    """Sum weights of queries and keys that are scaled; in JAX by a few scans, each over keys of a number of its own."""
    length, keys = q.shape[-2], k.shape[-2]
    offset = keys - length if seen.causal else 0
    mask, segments = (None if x is None else xp.asarray(x)[..., None] for x in (mask, segments))
    stage, parts = _BLOCK, []
    if xp is not np:
        scans = _SCANS if seen.causal and seen.window is None else 1
        stage = max(-(-length // (scans * _BLOCK)), 1) * _BLOCK
    for first in range(0, max(length, 1), stage):
        last = min(first + stage, length)
        low, high = seen.span(first + offset, last + offset, keys)
        band = _Band(low, *(None if x is None else x[..., low:high, :] for x in (k, v, mask, segments)))
        rows = q[..., first:last, :], None if segments is None else segments[..., first:last, :]
        parts.append(_over_band(xp, rows, first + offset, band, seen, kernel))
    return partials.stack(xp, parts)


def _over_band(xp: Any, rows: Any, first: int, band: _Band, seen: _Seen, kernel: Kernel) -> Partial:
    """Sum weights of queries, and their segments, from position `first` on, a block of them at a time."""
    length, held = rows[0].shape[-2], band.k.shape[-2]
    count = held if seen.window is None else min(held, _BLOCK + 2 * (seen.window - 1))

    def step(_: None, start: Any, block: Any) -> Any:
        q, of_query = block
        position = first + start + xp.arange(q.shape[-2])[:, None]
        near = band if count == held else band.part(xp, position[0, 0] - seen.window + 1, count)
        allowed = seen.allowed(xp, position, near.low + xp.arange(count)) & (position < first + length)
        if near.mask is not None:
            allowed = allowed & xp.swapaxes(near.mask, -1, -2)
        if of_query is not None:
            allowed = allowed & (of_query == xp.swapaxes(near.of_key, -1, -2))
        part = exact_block(xp, q, near.k, near.v, allowed, kernel)
        return None, (part.numerator, part.denominator[..., None], part.shift[..., None])

    _, (numerator, denominator, shift) = over_rows(xp, step, None, rows, _BLOCK)
    return Partial(numerator, denominator[..., 0], shift[..., 0])


def exact_block(xp: Any, q: Any, k: Any, v: Any, allowed: Any, kernel: Kernel) -> Partial:
    """Sum exact weights over the keys that are allowed, all at once; q and k are scaled already."""
    dot, xx, yy = matmul(xp, q, xp.swapaxes(k, -1, -2)), _squares(xp, q)[..., :, None], _squares(xp, k)[..., None, :]
    if kernel.norm_weight is None:  # its derivative may have no value where nothing is allowed, as at zero
        dot, xx, yy = (xp.where(allowed, x, one) for x, one in ((dot, 0), (xx, 1), (yy, 1)))
    log_weight = xp.where(allowed, evaluated(kernel.log, xp, dot, xx, yy), -xp.inf)
    shift = stopped(xp, xp.max(log_weight, -1, initial=-xp.inf))
    weight = xp.exp(log_weight - xp.where(shift == -xp.inf, 0, shift)[..., None])
    if kernel.sign is not None:
        weight = weight * evaluated(kernel.sign, xp, dot, xx, yy)
    return Partial(matmul(xp, weight, v), xp.sum(weight, -1), shift)


def exact_log_kernel(
    x: Any, y: Any, *, scale: float = 1.0, kernel: Kernel = kernels.EXPONENTIAL, return_sign: bool = False
) -> Any:
    """Return log |k(√scale x, √scale y)|, pair by pair.

    Parameters
    ----------
    x, y : array, shape (*batch, dim)
        The points; batch axes broadcast against each other.
    scale : float, default 1
        Multiplies x·y.
    kernel : Kernel, default kernels.EXPONENTIAL
        The kernel, such as ``rfk.lookup("relu").kernel``.
    return_sign : bool, default False
        Return ``(log, sign)``. Required of kernels that can be negative.

    Returns
    -------
    array, shape (*batch), or a tuple of two such arrays
        In the accumulation dtype; −inf where the kernel is zero.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, a value is not finite, or the kernel is signed and `return_sign` is False.
    """
    _check_kernel(kernel)
    _check_sign(kernel, return_sign)
    check_qk(x, y, names=("x", "y"), pairs=True)
    check_scale(scale, optional=False)
    for name, points in (("x", x), ("y", y)):
        require_finite(name, points)
    xp = namespace(x, y)
    dtype = accumulator(xp, x, y)
    root = xp.sqrt(xp.asarray(scale, dtype))
    x, y = x.astype(dtype) * root, y.astype(dtype) * root
    products = xp.sum(x * y, -1), _squares(xp, x), _squares(xp, y)
    log = evaluated(kernel.log, xp, *products)
    if not return_sign:
        return log
    if kernel.sign is not None:
        return log, evaluated(kernel.sign, xp, *products)
    return log, xp.where(log == -xp.inf, 0, xp.ones_like(log))


def exact_log_normalizer(
    queries: Any,
    keys: Any,
    *,
    scale: float = 1.0,
    mask: Any = None,
    kernel: Kernel = kernels.EXPONENTIAL,
    return_sign: bool = False,
) -> Any:
    """Return log |Σ_s k(√scale q, √scale k_s)| for each query.

    Parameters
    ----------
    queries : array, shape (*batch, length, dim)
        Queries.
    keys : array, shape (*batch, keys, dim)
        Keys.
    scale : float, default 1
        Multiplies q·k.
    mask : array of bool, shape (*batch, keys), optional
        True where a key counts.
    kernel : Kernel, default kernels.EXPONENTIAL
        The kernel.
    return_sign : bool, default False
        Return ``(log, sign)``. Required of kernels that can be negative.

    Returns
    -------
    array, shape (*batch, length), or a tuple of two such arrays
        In the accumulation dtype; −inf where the sum is zero, as that of no keys.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, a value is not finite, or the kernel is signed and `return_sign` is False.
    """
    _check_kernel(kernel)
    _check_sign(kernel, return_sign)
    check_qk(queries, keys, names=("queries", "keys"))
    check_known(queries=queries, keys=keys)
    check_mask(mask, keys, queries=queries.shape[:-2])
    check_scale(scale, optional=False)
    for name, points in (("queries", queries), ("keys", keys)):
        require_finite(name, points)
    xp = namespace(queries, keys)
    part = exact_partial(queries, keys, keys[..., :0], scale=scale, mask=mask, kernel=kernel)
    log, sign = partials.log_denominator(xp, part)
    return (log, sign) if return_sign else log


def _check_kernel(kernel: Any) -> None:
    if not isinstance(kernel, Kernel):
        raise TypeError(
            f"kernel must be a Kernel, such as rfkernels.lookup('relu').kernel, got {type(kernel).__name__}"
        )


def _check_sign(kernel: Kernel, return_sign: bool) -> None:
    check_flags(return_sign=return_sign)
    if kernel.sign is not None and not return_sign:
        raise ValueError(
            f"the kernel {kernel.name!r} can be negative: "
            "pass return_sign=True for the log of the magnitude and the sign"
        )


def _squares(xp: Any, x: Any) -> Any:
    return xp.sum(x * x, -1)
