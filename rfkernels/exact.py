"""Exact attention, kernels and log-normalisers: what every estimate is compared with."""

from __future__ import annotations

import math
from typing import Any

from rfkernels import kernels, partials
from rfkernels._arrays import accumulator, matmul, namespace, stopped
from rfkernels._checks import (
    check_finite_arrays,
    check_flags,
    check_mask,
    check_qk,
    check_qkv,
    check_scale,
    check_segments,
    check_window,
    result_dtype,
)
from rfkernels.kernels import Kernel
from rfkernels.partials import Partial

_BLOCK = 128


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
    check_flags(causal=causal)
    check_window(window)
    if check_finite:
        check_finite_arrays(q=q, k=k, v=v)
    xp = namespace(q, k, v)
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
    length, keys = q.shape[-2], k.shape[-2]
    parts = []
    for start in range(0, max(length, 1), _BLOCK):
        rows = q[..., start : start + _BLOCK, :]
        low, high = _visible(start, rows.shape[-2], keys, length, causal, window)
        part = slice(low, high)
        allowed = _allowed(xp, start, rows.shape[-2], low, high, keys - length if causal else 0, causal, window)
        if mask is not None:
            allowed = allowed & mask[..., None, part]
        if segment_ids is not None:
            own = segment_ids[..., start : start + _BLOCK, None]
            allowed = allowed & (own == segment_ids[..., None, part])
        parts.append(exact_block(xp, rows, k[..., part, :], v[..., part, :], allowed, kernel))
    return partials.stack(xp, parts)


def _visible(start: int, rows: int, keys: int, length: int, causal: bool, window: int | None) -> tuple[int, int]:
    offset = keys - length if causal else 0
    first, last = start + offset, start + offset + rows
    reach = keys + length + abs(offset) if window is None else window
    high = last if causal else last - 1 + reach
    return min(max(first - reach + 1, 0), keys), min(max(high, 0), keys)


def _allowed(xp: Any, start: int, rows: int, low: int, high: int, offset: int, causal: bool, window: int | None) -> Any:
    position, key = xp.arange(start, start + rows)[:, None] + offset, xp.arange(low, max(low, high))
    allowed = key <= position if causal else xp.ones((rows, key.shape[0]), bool)
    if window is not None:
        allowed = allowed & (abs(position - key) < window)
    return allowed


def exact_block(xp: Any, q: Any, k: Any, v: Any, allowed: Any, kernel: Kernel) -> Partial:
    """Sum exact weights over the keys that are allowed, all at once; q and k are scaled already."""
    dot, xx, yy = matmul(xp, q, xp.swapaxes(k, -1, -2)), _squares(xp, q)[..., :, None], _squares(xp, k)[..., None, :]
    if kernel.norm_weight is None:  # its derivative may have no value where nothing is allowed, as at zero
        dot, xx, yy = (xp.where(allowed, x, one) for x, one in ((dot, 0), (xx, 1), (yy, 1)))
    log_weight = xp.where(allowed, kernel.log(xp, dot, xx, yy), -xp.inf)
    shift = stopped(xp, xp.max(log_weight, -1, initial=-xp.inf))
    weight = xp.exp(log_weight - xp.where(shift == -xp.inf, 0, shift)[..., None])
    if kernel.sign is not None:
        weight = weight * kernel.sign(xp, dot, xx, yy)
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
    _check_sign(kernel, return_sign)
    check_qk(x, y, names=("x", "y"), pairs=True)
    check_scale(scale)
    check_finite_arrays(x=x, y=y)
    xp = namespace(x, y)
    dtype = accumulator(xp, x, y)
    root = xp.sqrt(xp.asarray(scale, dtype))
    x, y = x.astype(dtype) * root, y.astype(dtype) * root
    products = xp.sum(x * y, -1), _squares(xp, x), _squares(xp, y)
    log = kernel.log(xp, *products)
    if not return_sign:
        return log
    if kernel.sign is not None:
        return log, kernel.sign(xp, *products)
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
    _check_sign(kernel, return_sign)
    check_qk(queries, keys, names=("queries", "keys"))
    check_mask(mask, keys, queries=queries.shape[:-2])
    check_scale(scale)
    check_finite_arrays(queries=queries, keys=keys)
    xp = namespace(queries, keys)
    part = exact_partial(queries, keys, keys[..., :0], scale=scale, mask=mask, kernel=kernel)
    log, sign = partials.log_denominator(xp, part)
    return (log, sign) if return_sign else log


def _check_sign(kernel: Kernel, return_sign: bool) -> None:
    if kernel.sign is not None and not return_sign:
        raise ValueError(
            f"the kernel {kernel.name!r} can be negative: "
            "pass return_sign=True for the log of the magnitude and the sign"
        )


def _squares(xp: Any, x: Any) -> Any:
    return xp.sum(x * x, -1)
