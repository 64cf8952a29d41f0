"""Attention for Flax nnx that decodes from a state: one token costs the same however many came before."""

from __future__ import annotations

from typing import Any

try:
    import jax
    import jax.numpy as jnp
    from flax import nnx
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"rfkernels.integrations.nnx needs the package {error.name!r}: pip install 'rfkernels[flax]'"
    ) from error

from rfkernels import Features
from rfkernels._checks import check_batch
from rfkernels.integrations._layout import (
    attend,
    check_settings,
    check_stream,
    read_stream_mask,
    split_heads,
    stream_state,
)
from rfkernels.integrations.flax import promoted, refuse


class StreamingAttention(nnx.Module):
    """Causal linear attention whose cache is a state of constant size.

    An ``attention_fn`` for `flax.nnx.MultiHeadAttention`, whose own ``decode`` stays False, or a layer by itself. Until
    `reset` is called it is a causal pass; after that it resumes from the state of what came before and updates it: call
    it with the prompt in pieces of any length, then with a token at a time.

    Parameters
    ----------
    features : Features
        What `draw` returned: one set, or one for each head of keys as batch axes ``(heads,)``. The module holds them
        as an `nnx.Variable`, which is no parameter.
    window : int, optional
        Exact weights for the last `window` keys, as in `attention`. The cache holds them.

    Examples
    --------
    >>> import jax.numpy as jnp, rfkernels as rfk
    >>> from flax import nnx
    >>> from rfkernels.integrations.nnx import StreamingAttention
    >>> attend = StreamingAttention(rfk.draw("positive", dim=8, count=64, rng=0))
    >>> layer = nnx.MultiHeadAttention(4, 32, attention_fn=attend, decode=False, rngs=nnx.Rngs(0))
    >>> attend.reset(batch=(2,), heads=4, width=8)
    >>> layer(jnp.ones((2, 10, 32))).shape
    (2, 10, 32)
    """

    def __init__(self, features: Features, window: int | None = None) -> None:
        check_settings(features, window)
        self.features = nnx.Variable(jax.tree.map(jnp.asarray, features))
        self.window = window
        self.state: nnx.Cache[Any] | None = nnx.data(None)

    def reset(
        self,
        batch: tuple[int, ...],
        heads: int,
        width: int,
        *,
        query_heads: int | None = None,
        dtype: Any = jnp.float32,
    ) -> None:
        """Forget what came before and decode from now on.

        Parameters
        ----------
        batch : tuple of int
            Batch axes of the inputs.
        heads : int
            Heads of keys.
        width : int
            The width of a head's values.
        query_heads : int, optional
            Heads of queries, if they are more.
        dtype : dtype, default float32
            float32 or float64; that of the sums.
        """
        check_batch(batch)
        group = () if query_heads in (None, heads) else (1,)
        empty = stream_state(self.features.get_value(), (*batch, heads, *group), width, self.window, dtype)
        self.state = nnx.Cache(empty)

    def __call__(
        self,
        query: Any,
        key: Any,
        value: Any,
        mask: Any = None,
        dropout_rng: Any = None,
        dropout_rate: float = 0.0,
        broadcast_dropout: bool = True,
        deterministic: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: Any = None,
        is_causal: bool = True,
    ) -> Any:
        """Attend to the positions up to each query's own, which is causal whatever `is_causal` says.

        Parameters
        ----------
        query, key, value : array, shape (*batch, length, heads, dim)
            Of equal length; keys may have fewer heads.
        mask : array, shape (*batch, 1, 1, length), optional
            Over the keys given.
        dropout_rng, dropout_rate, broadcast_dropout, deterministic, dtype, precision, module
            As `rfkernels.integrations.flax.attention_fn`.

        Returns
        -------
        array, shape (*batch, length, heads, dim)
        """
        refuse(None, dropout_rate, deterministic, module)
        heads = split_heads(*promoted(query, key, value, dtype), self.features.get_value())
        seen = read_stream_mask(heads, mask)
        if self.state is None:
            return attend(heads, mask=seen, causal=True, window=self.window).output
        state = self.state.get_value()
        check_stream(heads, state, "reset was given")
        done = attend(heads, mask=seen, causal=True, window=self.window, state=state, full=True)
        self.state.set_value(done.state)
        return done.output
