"""An `attention_fn` for the attention layers of Flax, linen and nnx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import jax.numpy as jnp
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"rfkernels.integrations.flax needs the package {error.name!r}: pip install 'rfkernels[flax]'"
    ) from error

from rfkernels import Features
from rfkernels._checks import check_flags, is_tracer, static_hint
from rfkernels.integrations._layout import KeyMask, attend, check_settings, read_mask, split_heads


def attention_fn(
    features: Features, *, causal: bool = False, window: int | None = None, check_finite: bool = True
) -> Callable[..., Any]:
    """Bind features to a function for ``attention_fn=`` of Flax's layers.

    For `flax.linen.MultiHeadDotProductAttention` and `flax.nnx.MultiHeadAttention`. The function names every argument
    that either of them passes. It returns what they mean there, with weights that the features estimate, or raises:

    - `mask`: over keys, of shape (*batch, heads or 1, 1, keys), of any dtype. Outside jit a mask over pairs is
      recognised if it is causal, with or without padded keys; inside jit its values are not known and it is
      refused.
    - `is_causal` (nnx): query t sees keys up to t, counted from the first of each.
    - `dtype`: inputs are cast to it first. `precision`, `force_fp32_for_softmax`: any precision is met, as the
      projection and the sums are computed in float32 at full precision.
    - dropout with a rate above 0 when not deterministic, `bias`, `module` (``sow_weights=True``) and replacements of
      the products of pairs: refused, as weights of pairs are never formed.

    With ``decode=True`` those layers keep all keys and pass one query and a mask over them. That gives the right
    result, but reads all keys for each token; the layers in `rfkernels.integrations.linen` and `.nnx` keep a state
    instead.

    Parameters
    ----------
    features : Features
        What `draw` returned: one set, or one for each head of keys as batch axes ``(heads,)``.
    causal : bool, default False
        Whether query t sees keys up to t only; when lengths differ the last query is aligned with the last key, which
        is what a layer that decodes needs.
    window : int, optional
        Exact weights for keys less than `window` positions away, as in `attention`; query and key must agree in length.
    check_finite : bool, default True
        Whether NaN and infinity are refused, outside jit.

    Returns
    -------
    callable
        ``(query, key, value, bias=None, mask=None, ...) -> output``, all of shape (*batch, length, heads, dim).

    Examples
    --------
    >>> import flax.linen as nn, jax, jax.numpy as jnp, rfkernels as rfk
    >>> from rfkernels.integrations.flax import attention_fn
    >>> features = rfk.draw("positive", dim=8, count=64, rng=0)
    >>> layer = nn.MultiHeadDotProductAttention(num_heads=4, attention_fn=attention_fn(features, causal=True))
    >>> x = jnp.ones((2, 10, 32))
    >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
    (2, 10, 32)
    """
    check_settings(features, window, causal=causal, check_finite=check_finite)

    def linear_attention(
        query: Any,
        key: Any,
        value: Any,
        bias: Any = None,
        mask: Any = None,
        broadcast_dropout: bool = True,
        dropout_rng: Any = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: Any = None,
        force_fp32_for_softmax: bool = False,
        einsum_dot_general: Any = None,
        qk_attn_weights_einsum: Any = None,
        attn_weights_value_einsum: Any = None,
        promote_dtype: Any = None,
        is_causal: bool = False,
    ) -> Any:
        check_flags(is_causal=is_causal)
        refuse(
            bias,
            dropout_rate,
            deterministic,
            module,
            einsum_dot_general=einsum_dot_general,
            qk_attn_weights_einsum=qk_attn_weights_einsum,
            attn_weights_value_einsum=attn_weights_value_einsum,
        )
        heads = split_heads(*promoted(query, key, value, dtype, promote_dtype), features)
        length, keys = heads.q.shape[-2], heads.k.shape[-2]
        seen = KeyMask(None, causal=False) if mask is None else read_mask(mask, length, keys)
        first = is_causal or seen.causal
        if length != keys and (window is not None or (causal and first)):
            raise ValueError(
                f"{'causal' if window is None else 'window'} counts positions, so query and key must agree in length; "
                f"got {length} and {keys}. To decode with a window use rfkernels.integrations.linen or .nnx"
            )
        done = attend(
            heads,
            mask=seen.keys,
            causal=causal or first,
            align_first=first,
            window=window,
            check_finite=check_finite,
        )
        return done.output

    return linear_attention


def refuse(bias: Any, dropout_rate: Any, deterministic: Any, module: Any, **products: Any) -> None:
    """Raise on what would need the weights of pairs."""
    if is_tracer(deterministic):
        check_flags(deterministic=deterministic)
    if bias is not None:
        raise ValueError(
            "bias cannot be honoured: weights of pairs are never formed, so nothing can be added to their logs"
        )
    if not deterministic and (is_tracer(dropout_rate) or dropout_rate > 0):
        raise ValueError(
            f"dropout on attention weights cannot be honoured (dropout_rate={dropout_rate}): they are never formed. "
            "Set dropout_rate=0 or deterministic=True, and drop out the output of the layer instead"
            f"{static_hint(dropout_rate, 'a rate of 0')}"
        )
    if module is not None:
        raise ValueError("sow_weights=True cannot be honoured: attention weights are never formed")
    for name, given in products.items():
        if given is not None:
            raise ValueError(f"{name} cannot be honoured: there is no product of queries and keys to compute with it")


def promoted(query: Any, key: Any, value: Any, dtype: Any, promote_dtype: Any = None) -> tuple[Any, Any, Any]:
    """Cast to `dtype`, or to the common one; `promote_dtype` does it where given."""
    if promote_dtype is not None:
        query, key, value = promote_dtype((query, key, value), dtype=dtype)
        return query, key, value
    dtype = jnp.result_type(query, key, value) if dtype is None else dtype
    query, key, value = (jnp.asarray(x, dtype) for x in (query, key, value))
    return query, key, value
