"""Attention for Flax linen that decodes from a state: one token costs the same however many came before."""

from __future__ import annotations

from typing import Any

try:
    import flax.linen as nn
    import jax.numpy as jnp
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"rfkernels.integrations.linen needs the package {error.name!r}: pip install 'rfkernels[flax]'"
    ) from error

from rfkernels import Features
from rfkernels._arrays import accumulator
from rfkernels.integrations._layout import (
    Heads,
    attend,
    check_settings,
    check_stream,
    read_stream_mask,
    split_heads,
    stream_state,
)
from rfkernels.integrations.flax import promoted, refuse


class StreamingAttention(nn.Module):
    """Causal linear attention whose cache is a state of constant size.

    An ``attention_fn`` for `flax.linen.MultiHeadDotProductAttention`, whose own ``decode`` stays False, or a layer by
    itself. Without `decode` it is a causal pass. With it, the collection "cache" holds the state of what came before:
    apply the prompt in pieces of any length, then a token at a time, with ``mutable=["cache"]``. `init` with inputs of
    one token makes the empty cache and leaves it empty, as Flax does.

    Parameters
    ----------
    features : Features
        What `draw` returned: one set, or one for each head of keys as batch axes ``(heads,)``.
    window : int, optional
        Exact weights for the last `window` keys, as in `attention`. The cache holds them.
    decode : bool, default False
        Whether to resume from the cache and to update it.

    Examples
    --------
    >>> import flax.linen as nn, jax, jax.numpy as jnp, rfkernels as rfk
    >>> from rfkernels.integrations.linen import StreamingAttention
    >>> features = rfk.draw("positive", dim=8, count=64, rng=0)
    >>> layer = nn.MultiHeadDotProductAttention(4, attention_fn=StreamingAttention(features, decode=True))
    >>> x = jnp.ones((2, 10, 32))
    >>> variables = layer.init(jax.random.key(0), x[:, :1])
    >>> out, cache = layer.apply(variables, x, mutable=["cache"])
    >>> out.shape
    (2, 10, 32)
    """

    features: Features
    window: int | None = None
    decode: bool = False

    @nn.compact
    def __call__(
        self,
        query: Any,
        key: Any,
        value: Any,
        bias: Any = None,
        mask: Any = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        module: Any = None,
        qk_attn_weights_einsum: Any = None,
        attn_weights_value_einsum: Any = None,
    ) -> Any:
        """Attend to the positions up to each query's own.

        Parameters
        ----------
        query, key, value : array, shape (*batch, length, heads, dim)
            Of equal length; keys may have fewer heads.
        mask : array, shape (*batch, 1, 1, length), optional
            Over the keys given.
        bias, dropout_rate, deterministic, dtype, module, qk_attn_weights_einsum, attn_weights_value_einsum
            As `rfkernels.integrations.flax.attention_fn`.

        Returns
        -------
        array, shape (*batch, length, heads, dim)
        """
        check_settings(self.features, self.window, decode=self.decode)
        products = {
            "qk_attn_weights_einsum": qk_attn_weights_einsum,
            "attn_weights_value_einsum": attn_weights_value_einsum,
        }
        refuse(bias, dropout_rate, deterministic, module, **products)
        heads = split_heads(*promoted(query, key, value, dtype), self.features)
        seen = read_stream_mask(heads, mask)
        if not self.decode:
            return attend(heads, mask=seen, causal=True, window=self.window).output
        exists = self.has_variable("cache", "state")
        state = self.variable("cache", "state", self._empty, heads)
        check_stream(heads, state.value, "the cache was made for")
        done = attend(heads, mask=seen, causal=True, window=self.window, state=state.value, full=True)
        if exists:
            state.value = done.state
        return done.output

    def _empty(self, heads: Heads) -> Any:
        dtype = accumulator(jnp, *heads[:3])
        return stream_state(heads.features, heads.k.shape[:-2], heads.v.shape[-1], self.window, dtype)
