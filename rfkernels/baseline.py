"""Exact attention, kernels and log-normalisers: what every estimate is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels import kernels
from rfkernels._arrays import accumulator, broadcasting, namespace, unmasked
from rfkernels._checks import (
    check_flags,
    check_known,
    check_mask,
    check_qk,
    check_qkv,
    check_scale,
    check_segments,
    check_untraced,
    check_window,
    is_tracer,
    require_finite,
    result_dtype,
    scale_or_default,
)
from rfkernels.backends import choose
from rfkernels.core import Options
from rfkernels.kernels import Kernel, evaluated


@broadcasting
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
    backend: str | None = None,
    check_finite: bool = True,
) -> Any:
    """Compute attention with exact weights: in quadratic time, but with memory that is linear in the length.

    Row t of the output is Σ_s k(√scale q_t, √scale k_s) v_s / Σ_s k(√scale q_t, √scale k_s), by default
    softmax(scale q kᵀ) v.

    Parameters
    ----------
    q : array, shape (*batch, length, dim)
        Queries; heads are batch axes, and batch axes broadcast.
    k, v : array, shape (*batch, keys, dim) and (*batch, keys, width)
        Keys and values.
    scale : float, optional
        Multiplies q·k; 1/√dim by default. Of arrays of no width all products are 0, whatever it is.
    causal : bool, default False
        Whether query t sees keys up to t only. When lengths differ the last query is aligned with the last key.
    window : int, optional
        Attend only to keys less than `window` positions away: t − window < s ≤ t if causal, |t − s| < window if not.
    mask : array of bool, shape (*batch, keys), optional
        True where a key may be attended.
    segment_ids : array of int, shape (*batch, length), optional
        Packed sequences: keys are seen by queries of the same segment only (see `attention`).
    kernel : Kernel, default kernels.EXPONENTIAL
        The kernel of the weights. The numba backend has those with a `Kernel.norm_weight`, such as the exponential and,
        unless norms are so large that rounding matters, the Gaussian one; it does all others as the numpy backend does.
    backend : {"numba", "jax", "numpy"}, optional
        Chosen by the kind of array if not given: numba for numpy.ndarray, jax for jax.Array.
    check_finite : bool, default True
        Whether NaN and infinity are refused. If they are let pass, none that is masked reaches any output.

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
    xp = namespace(q, k, v)
    if xp is np:
        check_untraced(scale=scale)
    chosen = choose(backend, q, k, v, mask=mask, segment_ids=segment_ids)
    scale = scale_or_default(scale, q.shape[-1])
    options = Options(causal, window, kernel)
    dtype = result_dtype(xp, q, k, v)
    if is_tracer(v) or not check_finite:
        v = unmasked(v, mask)
    return chosen.exact(q, k, v, options, scale, mask, segment_ids, check_finite, dtype).output


@broadcasting
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
    xp = _checked(scale, None, x=x, y=y)
    dtype = accumulator(xp, x, y)
    root = xp.sqrt(xp.asarray(scale, dtype))
    x, y = x.astype(dtype) * root, y.astype(dtype) * root
    products = xp.sum(x * y, -1), xp.sum(x * x, -1), xp.sum(y * y, -1)
    log = evaluated(kernel.log, xp, *products)
    if not return_sign:
        return log
    if kernel.sign is not None:
        return log, evaluated(kernel.sign, xp, *products)
    return log, xp.where(log == -xp.inf, 0, xp.ones_like(log))


@broadcasting
def exact_log_normalizer(
    queries: Any,
    keys: Any,
    *,
    scale: float = 1.0,
    mask: Any = None,
    kernel: Kernel = kernels.EXPONENTIAL,
    return_sign: bool = False,
    backend: str | None = None,
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
    backend : {"numba", "jax", "numpy"}, optional
        As in `exact_attention`.

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
    xp = _checked(scale, mask, queries=queries, keys=keys)
    chosen = choose(backend, queries, keys, mask=mask)
    options, dtype = Options(kernel=kernel, full=True), accumulator(xp, queries, keys)
    found = chosen.exact(queries, keys, keys[..., :0], options, scale, mask, None, False, dtype)
    return (found.log_normalizer, found.sign) if return_sign else found.log_normalizer


def _checked(scale: Any, mask: Any, **points: Any) -> Any:
    """Require a scale and finite points; return the namespace of these, beside which JAX traces nothing but its own."""
    check_scale(scale, optional=False)
    for name, x in points.items():
        require_finite(name, x)
    xp = namespace(*points.values())
    if xp is np:
        check_untraced(scale=scale, mask=mask)
    return xp


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
