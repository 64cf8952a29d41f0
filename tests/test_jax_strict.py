"""JAX told to refuse promotion of ranks and dtypes: what is documented to broadcast does so all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rfkernels as rfk
from rfkernels import materialized, proposals, uncertainty, variance
from rfkernels.backends.jax import catalog as on_device
from rfkernels.integrations.dot_product import dot_product_attention_fn
from rfkernels.integrations.linen import StreamingAttention
from rfkernels.integrations.sampled_softmax import sampled_softmax_loss

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 12, 4)), jnp.float32)
FEATURES, HEADS = (rfk.draw("positive", dim=4, count=8, batch=batch, rng=0) for batch in ((), (2,)))
MASK, KEY = jnp.arange(12) < 9, jax.random.key(0)
BLOCKS = {"causal": True, "groups": 2, "full": True}


def decoded(x: Any) -> Any:
    state = rfk.empty_state(FEATURES, 4, (2, 2), window=3)
    done = rfk.attention(x, x, x, FEATURES, causal=True, window=3, state=state, full=True)
    return rfk.attention(x, x, x, FEATURES, causal=True, window=3, state=done.state)


def stored(x: Any) -> Any:
    state = rfk.write_state(rfk.empty_state(FEATURES, 4), x, x, FEATURES)
    return rfk.read_state(rfk.merge_states(state, state), x, FEATURES)


COMPUTED: dict[str, Callable[[Any], Any]] = {
    "attention": lambda x: rfk.attention(x, x, x, FEATURES, mask=MASK),
    "window": lambda x: rfk.attention(x, x[:, :1], x[:, :1], FEATURES, window=3, mask=MASK),
    "heads": lambda x: jax.grad(lambda x: rfk.attention(x, x, x, HEADS, causal=True).sum())(x),
    "standard errors": lambda x: rfk.attention(x, x, x, FEATURES, full=True, error=True).error,
    "standard errors alone": lambda x: uncertainty.attend(rfk.attention, x, x, x, FEATURES).error.output,
    "standard errors of half floats": lambda x: (
        rfk.attention(*[x.astype(jnp.bfloat16)] * 3, FEATURES, full=True, error=True).error
    ),
    "blocks": lambda x: rfk.attention(x, x, x, **BLOCKS, state=rfk.attention(x, x, x, **BLOCKS).state),
    "heavy": lambda x: rfk.attention(x, x, x, FEATURES, heavy=2, mask=MASK),
    "draw": lambda x: (
        rfk.draw("positive", 4, 8, proposal=proposals.Gaussian(np.eye(4), np.ones(4)), rng=KEY).projection
    ),
    "rotations": lambda x: rfk.draw("positive", 4, 8, sampler="hadamard", rng=KEY).projection,
    "fit": lambda x: rfk.fit(x, x, method="balanced", count=8, rng=0),
    "groups": lambda x: rfk.fit_groups(x, x, 2),
    "heavy keys": lambda x: rfk.heavy_keys(x, x, 2),
    "exact": lambda x: rfk.exact_attention(x, x, x, causal=True, mask=MASK),
    "exact log_normalizer": lambda x: rfk.exact_log_normalizer(x, x, mask=MASK),
    "exact log_kernel": lambda x: rfk.exact_log_kernel(x[0, 0, 0], x),
    "given features": lambda x: rfk.linear_attention(x, x, x, causal=True, mask=MASK),
    "transform": lambda x: rfk.transform(x, HEADS, side="key", log=True),
    "log_kernel": lambda x: rfk.log_kernel(x[0, 0, 0], x, FEATURES),
    "log_normalizer": lambda x: rfk.log_normalizer(x, x, FEATURES, mask=MASK),
    "variance": lambda x: variance.relative("positive", x[0, 0, 0], x, count=8),
    "Taylor": lambda x: materialized.log_kernel(x[0, 0, 0], x, materialized.taylor(4, 2)),
    "decoding": decoded,
    "decoding half floats": lambda x: decoded(x.astype(jnp.bfloat16)),
    "decoding in a layer": lambda x: StreamingAttention(FEATURES, window=3, decode=True).init(
        KEY, *[x.astype(jnp.bfloat16)] * 3
    ),
    "states": stored,
    "adapter": lambda x: dot_product_attention_fn(FEATURES)(
        *[jnp.swapaxes(x, 1, 2)] * 3, mask=MASK[None, None, None], key_value_seq_lengths=jnp.array([9, 4])
    ),
    "sampled softmax": lambda x: sampled_softmax_loss(
        x[0, 0], x[1, 1], jnp.arange(12), jnp.arange(5, dtype=jnp.uint8), log_probability=jnp.full(5, -2.5)
    ),
}

TABLE = on_device.device_table(rfk.Catalog(np.asarray(X.reshape(-1, 4))).table)
ON_DEVICE: dict[str, Callable[[Any], Any]] = {
    "estimate": lambda q: on_device.estimate(TABLE, q, 300, KEY),
    "probabilities": lambda q: on_device.probabilities(TABLE, q, jnp.arange(3), 300, KEY),
    "kernel_sum": lambda q: on_device.kernel_sum(TABLE, q, "laplacian", 300, KEY),
    "expectation": lambda q: on_device.expectation(TABLE, q, X.reshape(-1, 4), 300, KEY),
    "top": lambda q: on_device.top(TABLE, q, 3, 300),
    "sample": lambda q: on_device.sample(TABLE, q, 4, KEY),
    "log_probability": lambda q: on_device.log_probability(TABLE, q, jnp.arange(3)),
    "with_rows": lambda q: on_device.with_rows(TABLE, jnp.arange(12), q),
    "refreshed": lambda q: on_device.refreshed(on_device.with_rows(TABLE, jnp.arange(12), q)),
    "regrouped": lambda q: on_device.regrouped(on_device.with_rows(TABLE, jnp.arange(12), q), KEY),
}


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize("name", COMPUTED)
def test_functions(name: str) -> None:
    jax.eval_shape(COMPUTED[name], X)


@pytest.mark.parametrize("name", ON_DEVICE)
def test_catalogs_on_devices(name: str) -> None:
    jax.eval_shape(ON_DEVICE[name], X[0, 0])


@pytest.mark.parametrize("name", ["estimate", "kernel_sum", "regrouped"])
def test_catalogs_on_devices_keep_their_dtypes_with_those_of_64_bits_enabled(name: str) -> None:
    with jax.enable_x64(True):
        found = jax.eval_shape(ON_DEVICE[name], X[0, 0])
    if isinstance(found, on_device.DeviceTable):
        assert [x.dtype for x in jax.tree.leaves(found)] == [x.dtype for x in jax.tree.leaves(TABLE)]
    assert all(x.dtype != np.float64 for x in jax.tree.leaves(found))


def test_dtypes_of_the_users_own_are_not_promoted() -> None:
    with pytest.raises(ValueError, match="float16"):
        rfk.attention(X, X.astype(jnp.float16), X, FEATURES)
