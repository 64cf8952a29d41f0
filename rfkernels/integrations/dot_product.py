"""Linear attention with the signature of `jax.nn.dot_product_attention`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

try:
    import jax
    import jax.numpy as jnp
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"rfkernels.integrations.dot_product needs the package {error.name!r}: pip install 'rfkernels[jax]'"
    ) from error

from rfkernels import Features
from rfkernels._checks import check_flags, check_scale
from rfkernels.integrations._layout import KeyMask, attend, check_settings, read_mask, split_heads

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def dot_product_attention_fn(
    features: Features, *, window: int | None = None, check_finite: bool = True
) -> Callable[..., Any]:
    """Bind features to a function that stands in for `jax.nn.dot_product_attention`.

    The function takes the same arguments, in the same layout (BTNH or TNH, fewer heads of keys for grouped queries),
    and returns what they mean there with weights that the features estimate:

    - `scale`: None is the scale of the features, whose default is JAX's, 1/√H. Another scale takes the place of theirs.
    - `is_causal`: query t sees keys up to t, counted from the first of each, also where T and S differ.
    - `mask`: of shape (B, N or 1, 1, S), over keys. Outside jit a causal (T, S) mask is recognised as well.
    - `query_seq_lengths`, `key_value_seq_lengths`: outputs beyond are zeros, keys beyond are not seen.
    - `return_residual`: the estimate of the log of the sum of weights, without a gradient.
    - `bias`, `local_window_size`, ``implementation="cudnn"``: refused.

    A query that may attend nothing gets zeros; JAX returns an average of values there.

    Parameters
    ----------
    features : Features
        What `draw` returned: one set, or one for each head of keys as batch axes ``(K,)``.
    window : int, optional
        Exact weights for keys less than `window` positions away, as in `attention`; needs T = S.
    check_finite : bool, default True
        Whether NaN and infinity are refused, outside jit.

    Returns
    -------
    callable
        With the signature of `jax.nn.dot_product_attention`. It raises ValueError for what it cannot honour.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, rfkernels as rfk
    >>> from rfkernels.integrations.dot_product import dot_product_attention_fn
    >>> attention = dot_product_attention_fn(rfk.draw("positive", dim=16, count=64, rng=0))
    >>> x = jnp.ones((2, 10, 4, 16))
    >>> attention(x, x[:, :, :2], x[:, :, :2]).shape
    (2, 10, 4, 16)
    """
    check_settings(features, window, check_finite=check_finite)

    def dot_product_attention(
        query: ArrayLike,
        key: ArrayLike,
        value: ArrayLike,
        bias: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        *,
        scale: float | None = None,
        is_causal: bool = False,
        query_seq_lengths: ArrayLike | None = None,
        key_value_seq_lengths: ArrayLike | None = None,
        local_window_size: int | tuple[int, int] | None = None,
        implementation: Literal["xla", "cudnn"] | None = None,
        return_residual: bool = False,
    ) -> Any:
        check_flags(is_causal=is_causal, return_residual=return_residual)
        _refuse(bias, local_window_size, implementation, return_residual, features)
        shape = jnp.shape(query)
        q, k, v = (_four_axes(name, x) for name, x in (("query", query), ("key", key), ("value", value)))
        heads = split_heads(q, k, v, features if scale is None else _rescaled(features, scale))
        length, keys = q.shape[-3], k.shape[-3]
        if window is not None and length != keys:
            raise ValueError(f"window counts positions, so query and key must agree in length; got {length} and {keys}")
        seen = KeyMask(None, causal=False) if mask is None else _boolean(mask, length, keys)
        within = _within(key_value_seq_lengths, "key_value_seq_lengths", len(k), keys)
        allowed = [x for x in (seen.keys, None if within is None else within[:, None]) if x is not None]
        done = attend(
            heads,
            mask=None if not allowed else allowed[0] if len(allowed) == 1 else allowed[0] & allowed[1],
            causal=is_causal or seen.causal,
            align_first=True,
            window=window,
            full=return_residual,
            check_finite=check_finite,
        )
        real = _within(query_seq_lengths, "query_seq_lengths", len(q), length)
        output = done.output if real is None else jnp.where(real[..., None, None], done.output, 0)
        output = output.reshape(*shape[:-1], v.shape[-1])
        if not return_residual:
            return output
        residual = done.log_normalizer if real is None else jnp.where(real[..., None], done.log_normalizer, -jnp.inf)
        return output, jax.lax.stop_gradient(residual).astype(k.dtype).reshape(shape[:-1])

    return dot_product_attention


def _refuse(bias: Any, local_window_size: Any, implementation: Any, return_residual: bool, features: Features) -> None:
    if bias is not None:
        raise ValueError(
            "bias cannot be honoured: weights of pairs are never formed, so nothing can be added to their logs"
        )
    if local_window_size is not None:
        raise ValueError(
            "local_window_size lets a query see nearby keys only, which is not linear attention; for exact weights "
            "nearby and estimated ones beyond, pass window= to dot_product_attention_fn"
        )
    if implementation not in (None, "xla"):
        raise ValueError(f"implementation must be None or 'xla', got {implementation!r}: there is no other one")
    if return_residual and not features.map.nonnegative:
        raise ValueError("return_residual needs a nonnegative feature map: this one's sum of weights may have no log")


def _four_axes(name: str, x: ArrayLike) -> jax.Array:
    array = jnp.asarray(x)
    if array.ndim not in (3, 4):
        raise ValueError(
            f"{name} must have shape (batch, length, heads, dim) or (length, heads, dim), got {array.shape}"
        )
    return array if array.ndim == 4 else array[None]


def _rescaled(features: Features, scale: Any) -> Features:
    if features.query.matrix is not None or features.key.matrix is not None:
        raise ValueError(
            "scale is part of features that were fitted; pass scale=None, and choose it where the features are made"
        )
    check_scale(scale)
    return replace(features, scale=jnp.asarray(scale, jnp.result_type(features.projection)))


def _boolean(mask: ArrayLike, length: int, keys: int) -> KeyMask:
    array = mask if hasattr(mask, "dtype") else jnp.asarray(mask)
    if array.dtype != bool:
        raise ValueError(f"mask must be of dtype bool (True = may be attended), got {array.dtype}")
    return read_mask(array, length, keys)


def _within(lengths: ArrayLike | None, name: str, batch: int, positions: int) -> jax.Array | None:
    """Return which positions lie within the length of each sequence, (batch, positions)."""
    if lengths is None:
        return None
    given = jnp.asarray(lengths)
    if given.shape != (batch,) or not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers of shape ({batch},), got {given.dtype} of shape {given.shape}")
    return jnp.arange(positions)[None] < given[:, None]
