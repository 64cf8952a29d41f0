"""Adapters for JAX and Flax mean what their hosts mean, decode as they attend, and refuse what they cannot honour."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import xla

import rfkernels as rfk

pytest.importorskip("flax")

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from rfkernels.integrations import linen as our_linen
from rfkernels.integrations import nnx as our_nnx
from rfkernels.integrations.dot_product import dot_product_attention_fn
from rfkernels.integrations.flax import attention_fn
from rfkernels.integrations.reversible import reversible_stack

B, L, N, K, H = 2, 6, 6, 2, 8
WIDTH = N * H
FEATURES = rfk.draw("positive", dim=H, count=32, rng=3)
PER_HEAD = rfk.draw("positive", dim=H, count=32, batch=(K,), rng=4)
CAUSAL = np.tril(np.ones((L, L), bool))
PADDED = np.arange(L) < np.array([[4], [6]])  # (B, L): which keys are real
PER_HEAD_KEYS = np.arange(B * N * L).reshape(B, N, 1, L) % 5 != 4


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(0.7 * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


Q, KEYS, VALUES = normal(0, B, L, N, H), normal(1, B, L, K, H), normal(2, B, L, K, H)
X = normal(5, B, L, WIDTH)


def close(one: Any, other: Any, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def dense(q: Any, k: Any, v: Any, features: rfk.Features, allowed: Any) -> np.ndarray:
    """Sum over all pairs in float64, in the layout (B, T, N, H); `allowed` broadcasts to (B, N, T, S)."""
    q, k, v = (np.moveaxis(np.asarray(x, np.float64), -2, -3) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    if features.batch:
        features = rfk.Features(
            features.map,
            np.repeat(features.projection, group, 0),
            np.repeat(features.log_weight, group, 0),
            features.query,
            features.key,
            features.scale,
        )
    k, v = (np.repeat(x, group, 1) for x in (k, v))
    phi_q, phi_k = rfk.transform(q, features, side="query"), rfk.transform(k, features, side="key")
    weights = np.where(allowed, np.einsum("bntm,bnsm->bnts", phi_q, phi_k), 0)
    total = weights.sum(-1, keepdims=True)
    return np.moveaxis(weights / np.where(total == 0, 1, total) @ v, -3, -2)


def test_arrays_that_a_traced_function_closes_over_are_checked() -> None:
    q, k, v = normal(9, 3, B, N, L, H)
    run = jax.jit(lambda q, k: rfk.attention(q, k, v, FEATURES))
    close(run(q, k), rfk.attention(q, k, v, FEATURES))
    bad = v.at[1, 0, 2, 3].set(jnp.nan)
    with pytest.raises(ValueError, match=r"v must be finite, but v\[1, 0, 2, 3\] is nan"):
        jax.jit(lambda q: rfk.attention(q, k, bad, FEATURES))(q)


# The function of jax.nn


def test_the_signature_is_that_of_jax() -> None:
    ours = inspect.signature(dot_product_attention_fn(FEATURES)).parameters.values()
    theirs = inspect.signature(jax.nn.dot_product_attention).parameters.values()
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.1},
        {"mask": PADDED[:, None, None]},
        {"mask": PER_HEAD_KEYS},
        {"mask": CAUSAL[None, None]},
        {"mask": CAUSAL & PADDED[:, None, None]},
        {"mask": PADDED[:, None, None], "is_causal": True, "scale": 0.9},
        {"key_value_seq_lengths": jnp.array([3, 6], jnp.int32)},
        {"query_seq_lengths": jnp.array([2, 6], jnp.int32), "mask": PER_HEAD_KEYS},
        {"implementation": "xla", "key_value_seq_lengths": jnp.array([5, 3], jnp.int32), "mask": PADDED[:, None, None]},
    ],
    ids=lambda options: " ".join(options) or "nothing",
)
def test_a_window_over_everything_is_what_jax_computes(options: dict[str, Any]) -> None:
    ours = dot_product_attention_fn(FEATURES, window=L)
    close(ours(Q, KEYS, VALUES, **options), jax.nn.dot_product_attention(Q, KEYS, VALUES, **options))


def test_residual_and_layout_without_a_batch_are_those_of_jax() -> None:
    ours = dot_product_attention_fn(FEATURES, window=L)
    options = {"is_causal": True, "return_residual": True}
    for given in ((Q, KEYS, VALUES), (Q[0], KEYS[0], VALUES[0])):
        for one, other in zip(ours(*given, **options), jax.nn.dot_product_attention(*given, **options), strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            close(one, other)
    beyond = ours(Q, KEYS, VALUES, return_residual=True, query_seq_lengths=jnp.array([2, 6]))[1]
    assert np.isneginf(beyond[0, 2:]).all()
    assert np.isfinite(beyond[1]).all()


@pytest.mark.parametrize(
    ("length", "keys", "features"),
    [(6, 6, FEATURES), (6, 4, PER_HEAD), (4, 6, PER_HEAD), (6, 0, FEATURES)],
    ids=["equal", "more queries", "more keys", "no keys"],
)
def test_the_first_query_is_aligned_with_the_first_key(length: int, keys: int, features: rfk.Features) -> None:
    q, k, v = Q[:, :length], KEYS[:, :keys], VALUES[:, :keys]
    allowed = CAUSAL[:length, :keys] & PADDED[:, None, None, :keys]
    expected = dense(q, k, v, features, allowed)
    for bound in (dot_product_attention_fn(features), attention_fn(features)):
        ours = jax.jit(partial(bound, is_causal=True))
        close(ours(q, k, v, mask=PADDED[:, None, None, :keys]), expected)


def test_queries_without_keys_are_zeros() -> None:
    out = dot_product_attention_fn(FEATURES)(Q, KEYS, VALUES, key_value_seq_lengths=jnp.array([0, 6]))
    assert not out[0].any()
    assert out[1].all()


def test_the_scale_of_the_features_is_the_default() -> None:
    scaled = rfk.draw("positive", dim=H, count=32, scale=0.7, rng=3)
    one, other = dot_product_attention_fn(scaled), dot_product_attention_fn(FEATURES)
    close(one(Q, KEYS, VALUES), other(Q, KEYS, VALUES, scale=0.7))
    assert abs(one(Q, KEYS, VALUES) - other(Q, KEYS, VALUES)).max() > 1e-3


FITTED = rfk.Features(
    FEATURES.map,
    FEATURES.projection,
    FEATURES.log_weight,
    rfk.Side(np.eye(H)),
    rfk.Side(np.eye(H)),
    FEATURES.scale,
)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bias": jnp.zeros((1, 1, L, L))}, "bias cannot be honoured"),
        ({"local_window_size": 3}, "window= to dot_product_attention_fn"),
        ({"local_window_size": (3, 0)}, "window= to dot_product_attention_fn"),
        ({"implementation": "cudnn"}, "implementation must be None or 'xla', got 'cudnn'"),
        ({"mask": jnp.ones((1, 1, 1, L))}, "mask must be of dtype bool"),
        ({"mask": np.triu(np.ones((L, L), bool))[None, None]}, "other than a causal one"),
        ({"mask": np.ones((1, 1, 1, L + 1), bool)}, "mask must broadcast to"),
        ({"mask": np.ones((1, 3, 1, L), bool)}, "mask has 3 heads, but query has 6"),
        ({"key_value_seq_lengths": jnp.ones(B)}, "key_value_seq_lengths must be integers of shape"),
        ({"query_seq_lengths": jnp.ones(B + 1, int)}, "query_seq_lengths must be integers of shape"),
    ],
)
def test_what_the_function_refuses(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dot_product_attention_fn(FEATURES)(Q, KEYS, VALUES, **options)


@pytest.mark.parametrize(
    ("make", "arrays", "text"),
    [
        (partial(dot_product_attention_fn, FEATURES), (Q[:, :, :3], KEYS, VALUES), "a multiple of the heads of key"),
        (partial(dot_product_attention_fn, FEATURES), (Q, KEYS, VALUES[:, 1:]), "key and value in length"),
        (partial(dot_product_attention_fn, FEATURES), (Q[0, 0], KEYS, VALUES), "query must have shape"),
        (partial(dot_product_attention_fn, FEATURES, window=2), (Q, KEYS[:, 1:], VALUES[:, 1:]), "window counts"),
        (
            partial(dot_product_attention_fn, PER_HEAD),
            (Q, KEYS[:, :, :1], VALUES[:, :, :1]),
            "features must be one set",
        ),
        (
            partial(dot_product_attention_fn, FEATURES),
            (Q[..., 1:], KEYS, VALUES),
            "query and key must be of the dim of",
        ),
        (
            partial(dot_product_attention_fn, FEATURES),
            (Q, KEYS.at[1, 3, 0, 2].set(jnp.nan), VALUES),
            r"key must be finite, but key\[1, 3, 0, 2\] is nan",
        ),
    ],
)
def test_what_the_function_refuses_of_arrays(make: Callable[[], Any], arrays: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()(*arrays)
    with pytest.raises(TypeError, match=r"query must have one of the dtypes .* got int32"):
        make()(Q.astype(jnp.int32), KEYS, VALUES)


@pytest.mark.parametrize("scale", [-1.0, 0.0, float("nan"), float("inf")])
def test_scales_that_are_none(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be a positive finite number"):
        dot_product_attention_fn(FEATURES)(Q, KEYS, VALUES, scale=scale)


def test_refusals_that_depend_on_the_features() -> None:
    with pytest.raises(ValueError, match="scale is part of features that were fitted"):
        dot_product_attention_fn(FITTED)(Q, KEYS, VALUES, scale=0.3)
    signed = rfk.draw("trigonometric", dim=H, count=32, rng=0)
    with pytest.raises(ValueError, match="nonnegative feature map"):
        dot_product_attention_fn(signed)(Q, KEYS, VALUES, return_residual=True)


# attention_fn of Flax's layers


def test_the_adapter_names_what_flax_passes() -> None:
    ours = inspect.signature(attention_fn(FEATURES)).parameters
    for host in (nn.dot_product_attention, nnx.dot_product_attention):
        theirs = inspect.signature(host).parameters
        assert set(theirs) <= set(ours)
        positional = list(theirs)[: list(theirs).index("module") + 1]
        assert list(ours)[: len(positional)] == positional


def linen_layers(features: rfk.Features = FEATURES, **options: Any) -> tuple[Any, Any, Any]:
    """Exact layer, layer with the adapter, and the parameters of both."""
    exact = nn.MultiHeadDotProductAttention(N)
    ours = nn.MultiHeadDotProductAttention(N, attention_fn=attention_fn(features, **options))
    return exact, ours, exact.init(jax.random.key(0), X)


MASKS = {
    "none": None,
    "keys, bool": PADDED[:, None, None],
    "keys, float": PADDED[:, None, None].astype(np.float32),
    "heads": PER_HEAD_KEYS,
    "for all": PADDED[0],
    "causal": nn.make_causal_mask(np.ones((B, L))),
    "causal, padded": nn.combine_masks(nn.make_causal_mask(np.ones((B, L))), PADDED[:, None, None]),
    "pairs that are keys": np.broadcast_to(PADDED[:, None, None], (B, 1, L, L)),
}


@pytest.mark.parametrize("name", MASKS)
def test_linen_masks_mean_what_they_mean_to_linen(name: str) -> None:
    exact, ours, parameters = linen_layers(window=L)
    mask = MASKS[name]
    close(ours.apply(parameters, X, mask=mask), exact.apply(parameters, X, mask=mask))
    if mask is not None:
        assert abs(ours.apply(parameters, X, mask=mask) - ours.apply(parameters, X)).max() > 1e-3


def test_linen_under_jit_with_a_mask_over_keys() -> None:
    exact, ours, parameters = linen_layers(window=L, causal=True)
    keys = PADDED[:, None, None]
    run = jax.jit(lambda parameters, x, mask: ours.apply(parameters, x, mask=mask))
    mask = nn.combine_masks(nn.make_causal_mask(np.ones((B, L))), keys)
    close(run(parameters, X, keys), exact.apply(parameters, X, mask=mask))


def test_estimates_through_linen_are_those_of_the_library() -> None:
    q, k, v = normal(7, 3, B, L, N, H)
    close(attention_fn(FEATURES)(q, k, v, mask=PER_HEAD_KEYS), dense(q, k, v, FEATURES, PER_HEAD_KEYS))
    close(attention_fn(PER_HEAD)(q, KEYS, VALUES, is_causal=True), dense(q, KEYS, VALUES, PER_HEAD, CAUSAL))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_linen_casts_to_its_dtype(dtype: Any) -> None:
    layer = nn.MultiHeadDotProductAttention(
        N, dtype=dtype, force_fp32_for_softmax=True, precision="highest", attention_fn=attention_fn(FEATURES)
    )
    whole = nn.MultiHeadDotProductAttention(N, attention_fn=attention_fn(FEATURES))
    parameters = whole.init(jax.random.key(0), X)
    out = layer.apply(parameters, X)
    assert out.dtype == dtype
    close(out.astype(jnp.float32), whole.apply(parameters, X), 0.03 if dtype == jnp.bfloat16 else 2e-5)


def test_gradients_pass_through_linen() -> None:
    exact, ours, parameters = linen_layers(window=L, causal=True)
    mask = nn.make_causal_mask(np.ones((B, L)))
    one = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(ours.apply(p, X)))))(parameters)
    other = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(exact.apply(p, X, mask=mask)))))(parameters)
    jax.tree.map(partial(close, tolerance=1e-4), one, other)


def nnx_layers(**options: Any) -> tuple[Any, Any]:
    """Exact layer and layer with the adapter, of equal parameters and fewer heads of keys than of queries."""
    make = partial(nnx.MultiHeadAttention, N, WIDTH, num_kv_heads=K, decode=False)
    return make(rngs=nnx.Rngs(0)), make(attention_fn=attention_fn(FEATURES, **options), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", MASKS)
def test_nnx_masks_mean_what_they_mean_to_nnx(name: str) -> None:
    exact, ours = nnx_layers(window=L)
    mask = MASKS[name]
    mask = mask if mask is None or mask.ndim == 4 else mask[None, None, None]
    close(ours(X, mask=mask), exact(X, mask=mask))


@pytest.mark.parametrize("made", [attention_fn, dot_product_attention_fn])
def test_traced_causality_is_refused_by_name(made: Any) -> None:
    with pytest.raises(TypeError, match=r"is_causal must be True or False.*static"):
        jax.eval_shape(lambda flag: made(FEATURES)(Q, KEYS, VALUES, is_causal=flag), True)


@pytest.mark.skipif(
    "is_causal" not in inspect.signature(nnx.MultiHeadAttention.__call__).parameters, reason="came with Flax 0.12.8"
)
def test_nnx_is_causal_under_jit() -> None:
    exact, ours = nnx_layers(window=L)
    keys = PADDED[:, None, None].astype(np.float32)
    run = nnx.jit(lambda layer, mask: layer(X, mask=mask, is_causal=True))
    pairs = np.broadcast_to(keys, (B, 1, L, L))  # nnx itself broadcasts the causal mask to the shape of the other
    close(run(ours, keys), exact(X, mask=pairs, is_causal=True))


ADAPTER = attention_fn(FEATURES)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bias": jnp.zeros((1, 1, L, L))}, "bias cannot be honoured"),
        ({"dropout_rate": 0.1}, r"dropout on attention weights .*dropout_rate=0.1"),
        ({"module": object()}, "sow_weights=True cannot be honoured"),
        ({"qk_attn_weights_einsum": jnp.einsum}, "qk_attn_weights_einsum cannot be honoured"),
        ({"attn_weights_value_einsum": jnp.einsum}, "attn_weights_value_einsum cannot be honoured"),
        ({"einsum_dot_general": jax.lax.dot_general}, "einsum_dot_general cannot be honoured"),
        ({"mask": np.triu(np.ones((L, L), bool))}, "other than a causal one"),
        ({"mask": nn.make_attention_mask(PADDED, PADDED)}, "other than a causal one"),
        ({"mask": np.ones((B, 1, 3, L), bool)}, "mask must broadcast to"),
    ],
)
def test_what_the_adapter_refuses(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ADAPTER(Q, KEYS, VALUES, **options)


@pytest.mark.parametrize("make", [attention_fn, dot_product_attention_fn, our_nnx.StreamingAttention])
def test_what_adapters_are_made_with_is_checked_at_once(make: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="features must be a Features"):
        make("positive")
    with pytest.raises(ValueError, match="window must be a positive integer or None, got 0"):
        make(FEATURES, window=0)


@pytest.mark.parametrize("given", [{"dropout_rate": 0.1}, {"dropout_rate": 0.0, "deterministic": False}])
def test_what_is_traced_of_dropout_must_be_static(given: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"under jax.jit .* must be static"):
        jax.eval_shape(lambda given: ADAPTER(Q, KEYS, VALUES, **given), given)
    known = jax.eval_shape(lambda rate: ADAPTER(Q, KEYS, VALUES, dropout_rate=rate, deterministic=True), 0.1)
    assert known.shape == Q.shape


def test_refusals_through_the_layers() -> None:
    _, ours, parameters = linen_layers()
    with pytest.raises(ValueError, match="inside jit the values of a mask are not known"):
        jax.jit(lambda mask: ours.apply(parameters, X, mask=mask))(MASKS["causal"])
    with pytest.raises(ValueError, match="sow_weights"):
        ours.apply(parameters, X, sow_weights=True)
    dropping = nn.MultiHeadDotProductAttention(N, dropout_rate=0.3, attention_fn=ADAPTER)
    with pytest.raises(ValueError, match=r"dropout_rate=0\.3"):
        dropping.apply(parameters, X, deterministic=False, rngs={"dropout": jax.random.key(0)})
    close(dropping.apply(parameters, X, deterministic=True), ours.apply(parameters, X))


@pytest.mark.parametrize("options", [{"window": 2}, {"causal": True}])
def test_lengths_that_differ_have_no_common_positions(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="query and key must agree in length"):
        attention_fn(FEATURES, **options)(Q[:, :3], KEYS, VALUES, is_causal=True)


# Decoding


def test_the_cache_of_linen_decodes_what_the_pass_computes() -> None:
    """Linen's own cache holds all keys: right, at a cost that grows with its length."""
    _, ours, parameters = linen_layers(causal=True)
    decoder = nn.MultiHeadDotProductAttention(N, decode=True, attention_fn=attention_fn(FEATURES, causal=True))
    cache = decoder.init(jax.random.key(0), X)["cache"]

    def step(cache: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        out, changed = decoder.apply({**parameters, "cache": cache}, token, mutable=["cache"])
        return changed["cache"], out

    tokens = jnp.moveaxis(X[:, :, None], 1, 0)
    _, out = jax.jit(lambda cache: jax.lax.scan(step, cache, tokens))(cache)
    close(jnp.moveaxis(out, 0, 1)[:, :, 0], ours.apply(parameters, X))


def shapes(tree: Any) -> list[Any]:
    return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("window", [None, 2])
def test_linen_streams_what_it_attends(window: int | None) -> None:
    prompt = 3
    _, ours, parameters = linen_layers(causal=True, window=window)
    stream = our_linen.StreamingAttention(FEATURES, window, decode=True)
    decoder = nn.MultiHeadDotProductAttention(N, attention_fn=stream)
    empty = decoder.init(jax.random.key(0), X[:, :1])["cache"]

    def step(cache: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        out, changed = decoder.apply({**parameters, "cache": cache}, tokens, mutable=["cache"])
        return changed["cache"], out

    @jax.jit
    def generate(cache: Any) -> tuple[Any, jax.Array]:
        cache, first = step(cache, X[:, :prompt])
        cache, rest = jax.lax.scan(step, cache, jnp.moveaxis(X[:, prompt:, None], 1, 0))
        return cache, jnp.concatenate([first, jnp.moveaxis(rest, 0, 1)[:, :, 0]], 1)

    cache, out = generate(empty)
    close(out, ours.apply(parameters, X))
    assert shapes(cache) == shapes(empty)
    whole = nn.MultiHeadDotProductAttention(N, attention_fn=our_linen.StreamingAttention(FEATURES, window))
    close(whole.apply(parameters, X), ours.apply(parameters, X))


def test_nnx_restores_features_and_state() -> None:
    """As checkpoints do: into a module that has others."""
    saved, restored = (our_nnx.StreamingAttention(rfk.draw("positive", H, 4, rng=seed)) for seed in (0, 1))
    for layer in (saved, restored):
        layer.reset(batch=(), heads=1, width=H)
    saved(*[jnp.ones((3, 1, H))] * 3)
    state = nnx.state(restored)
    nnx.replace_by_pure_dict(state, nnx.to_pure_dict(nnx.state(saved)))
    nnx.update(restored, state)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(restored), nnx.state(saved))
    np.testing.assert_array_equal(restored.features.projection, saved.features.projection)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("key_heads", [N, K])
def test_nnx_streams_what_it_attends(window: int | None, key_heads: int) -> None:
    prompt = 3
    make = partial(nnx.MultiHeadAttention, N, WIDTH, num_kv_heads=key_heads, decode=False)
    expected = make(attention_fn=attention_fn(FEATURES, causal=True, window=window), rngs=nnx.Rngs(0))(X)
    layer = make(attention_fn=our_nnx.StreamingAttention(FEATURES, window), rngs=nnx.Rngs(0))
    close(layer(X), expected)
    layer.attention_fn.reset((B,), key_heads, H, query_heads=N)
    graph, state = nnx.split(layer)

    def step(state: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        layer = nnx.merge(graph, state)
        out = layer(tokens)
        return nnx.state(layer), out

    @jax.jit
    def generate(state: Any) -> tuple[Any, jax.Array]:
        state, first = step(state, X[:, :prompt])
        state, rest = jax.lax.scan(step, state, jnp.moveaxis(X[:, prompt:, None], 1, 0))
        return state, jnp.concatenate([first, jnp.moveaxis(rest, 0, 1)[:, :, 0]], 1)

    after, out = generate(state)
    close(out, expected)
    assert shapes(after) == shapes(state)


@pytest.mark.parametrize("window", [None, 2])
def test_plain_functions_decode_in_a_loop(window: int | None) -> None:
    q, k, v = normal(8, 3, B, N, L, H)
    options = {"causal": True, "window": window}

    def step(state: Any, token: Any) -> tuple[Any, jax.Array]:
        done = rfk.attention(*token, FEATURES, state=state, full=True, **options)
        return done.state, done.output

    @jax.jit
    def generate(q: Any, k: Any, v: Any) -> jax.Array:
        empty = jax.tree.map(jnp.asarray, rfk.empty_state(FEATURES, H, (B, N), window=window))
        state, first = step(empty, (q[..., :3, :], k[..., :3, :], v[..., :3, :]))
        tokens = tuple(jnp.moveaxis(x[..., 3:, None, :], -3, 0) for x in (q, k, v))
        _, rest = jax.lax.scan(step, state, tokens)
        return jnp.concatenate([first, jnp.moveaxis(rest[..., 0, :], 0, -2)], -2)

    close(generate(q, k, v), rfk.attention(q, k, v, FEATURES, **options))


def test_what_the_streaming_layers_refuse() -> None:
    with pytest.raises(TypeError, match="features must be a Features"):
        our_linen.StreamingAttention(None).apply({}, Q, KEYS, VALUES)
    with pytest.raises(ValueError, match="batch must be a tuple of sizes of at least 0, got 2"):
        our_nnx.StreamingAttention(FEATURES).reset(batch=2, heads=1, width=H)
    decoding, stream = our_linen.StreamingAttention(FEATURES, decode=True), our_nnx.StreamingAttention(FEATURES)
    cache = decoding.init(jax.random.key(0), *(x[:1, :1] for x in (Q, KEYS, VALUES)))
    stream.reset(batch=(1,), heads=K, width=H, query_heads=N)
    for call in (partial(decoding.apply, cache, mutable=["cache"]), stream):
        with pytest.raises(ValueError, match=rf"key must have the batch and heads that .*, \(1, {K}, 1\), got \({B}, "):
            call(Q, KEYS, VALUES)
    for layer in (our_linen.StreamingAttention(FEATURES), our_nnx.StreamingAttention(FEATURES)):
        call = layer if isinstance(layer, nnx.Module) else partial(layer.apply, {})
        for options, text in (
            ({"dropout_rate": 0.1}, "dropout_rate=0.1"),
            ({"mask": PER_HEAD_KEYS}, "mask must be one for all heads"),
            ({"mask": np.triu(np.ones((L, L), bool))}, "other than a causal one"),
            ({"module": object()}, "sow_weights"),
        ):
            with pytest.raises(ValueError, match=text):
                call(Q, KEYS, VALUES, **options)
        with pytest.raises(ValueError, match="query and key must agree in length"):
            call(Q, KEYS[:, 1:], VALUES[:, 1:])
        close(
            call(Q, KEYS, VALUES, mask=PADDED[:, None, None]),
            dense(Q, KEYS, VALUES, FEATURES, CAUSAL & PADDED[:, None, None]),
        )


# Reversible blocks


def heads_of(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.moveaxis((x @ w).reshape(*x.shape[:-1], 2, H), -2, -3)


def attend_block(p: Any, x: jax.Array) -> jax.Array:
    features = jax.tree.map(partial(jnp.asarray, dtype=x.dtype), FEATURES)
    out = rfk.attention(*(heads_of(x, p[name]) for name in "qkv"), features)
    return jnp.moveaxis(out, -3, -2).reshape(x.shape) @ p["o"]


def feed_block(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["a"]) @ p["b"]


def plain_stack(p: Any, x1: jax.Array, x2: jax.Array) -> tuple[jax.Array, jax.Array]:
    def block(streams: Any, own: Any) -> tuple[Any, None]:
        x1, x2 = streams
        x1 = x1 + attend_block(own, x2)
        return (x1, x2 + feed_block(own, x1)), None

    return jax.lax.scan(block, (x1, x2), p)[0]


def gradient_of(stack: Any, jit: Any = jax.jit) -> Callable[..., Any]:
    return jit(jax.grad(lambda p, x1, x2: sum(jnp.sum(jnp.sin(y)) for y in stack(p, x1, x2)), argnums=(0, 1, 2)))


def block_parameters(depth: int, dtype: Any) -> dict[str, jax.Array]:
    rng = np.random.default_rng(11)
    return {name: jnp.asarray(0.15 * rng.standard_normal((depth, 2 * H, 2 * H)), dtype) for name in "qkvoab"}


def test_reversible_gradients_are_those_of_the_plain_stack() -> None:
    with jax.enable_x64(True):
        streams = [jnp.asarray(normal(seed, 2, 12, 2 * H), jnp.float64) for seed in (1, 2)]
        parameters = block_parameters(5, jnp.float64)
        reversible = reversible_stack(attend_block, feed_block)
        jax.tree.map(
            partial(close, tolerance=1e-12), reversible(parameters, *streams), plain_stack(parameters, *streams)
        )
        one, other = (gradient_of(stack)(parameters, *streams) for stack in (reversible, plain_stack))
        assert shapes(one) == shapes((parameters, *streams))
        jax.tree.map(partial(close, tolerance=1e-10), one, other)


def test_reversible_blocks_with_keys_of_dropout() -> None:
    def feed(p: Any, x: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(p["key"], 0.5, x.shape), jnp.sin(p["w"] * x), 0)

    def loss(w: jax.Array, dropped: jax.Array) -> jax.Array:
        stack = reversible_stack(lambda p, x: p["w"] * x, feed)
        return jnp.sum(stack({"w": w, "key": dropped}, x, x)[1])

    def plain(w: jax.Array, dropped: jax.Array) -> jax.Array:
        x1 = x2 = x
        for own, key in zip(w, dropped, strict=True):
            x1 = x1 + own * x2
            x2 = x2 + feed({"w": own, "key": key}, x1)
        return jnp.sum(x2)

    x, w, keys = jnp.arange(1.0, 5.0), jnp.array([0.3, 0.7]), jax.random.split(jax.random.key(0), 2)
    close(jax.jit(jax.grad(loss))(w, keys), jax.grad(plain)(w, keys))


@pytest.mark.parametrize(("name", "dtype"), [("attend", jnp.float32), ("feed", jnp.bfloat16)])
def test_blocks_that_change_dtype_or_shape_are_named(name: str, dtype: Any) -> None:
    blocks = {"attend": lambda p, x: x, "feed": lambda p, x: x, name: lambda p, x: jnp.zeros((2, 3), dtype)}
    x = jnp.ones((2, 3), jnp.float16)
    with pytest.raises(ValueError, match=rf"{name} must return .* float16 of shape \(2, 3\), got {dtype.__name__}"):
        reversible_stack(**blocks)(jnp.ones(2), x, x)


@pytest.mark.long
def test_activation_memory_does_not_grow_with_depth() -> None:
    def temporaries(stack: Any, depth: int) -> int:
        streams = (normal(1, 4, 256, 2 * H), normal(2, 4, 256, 2 * H))
        compiled = gradient_of(stack, xla.jit).lower(block_parameters(depth, jnp.float32), *streams).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    reversible = reversible_stack(attend_block, feed_block)
    shallow, deep = (temporaries(reversible, depth) for depth in (2, 8))
    assert deep <= 1.02 * shallow
    assert temporaries(plain_stack, 8) > 2.5 * deep  # what is avoided


# Without the packages


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("integrations.linen", "flax", "flax"),
        ("integrations.nnx", "flax", "flax"),
        ("integrations.flax", "jax", "flax"),
        ("integrations.dot_product", "jax", "jax"),
        ("integrations.reversible", "jax", "jax"),
        ("backends.jax", "jax", "jax"),
    ],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str, package: str, extra: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"rfkernels.{module}")
    with pytest.raises(
        ModuleNotFoundError, match=rf"needs the package '{package}.*': pip install 'rfkernels\[{extra}\]'"
    ):
        importlib.import_module(f"rfkernels.{module}")
