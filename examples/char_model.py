"""A small causal language model over characters, whose attention is exact or linear, and its decoding from states."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rfkernels as rfk

Parameters = dict[str, Any]


class Shape(NamedTuple):
    """The size of a model."""

    vocabulary: int
    layers: int = 4
    heads: int = 4
    dim: int = 32

    @property
    def width(self) -> int:
        """Width of the stream between blocks."""
        return self.heads * self.dim


class Attention(NamedTuple):
    """How a model attends: exactly (no features), or by one set of features for each layer."""

    features: tuple[rfk.Features, ...] | None = None
    window: int | None = None


def attention(shape: Shape, name: str, count: int, window: int | None, seed: Any) -> Attention:
    """Draw the features of every layer and head; the name "exact" has none. The same seed gives the same features."""
    if name == "exact":
        return Attention()
    seeds = np.random.SeedSequence(seed).spawn(shape.layers)
    drawn = (rfk.draw(name, shape.dim, count, batch=(shape.heads,), rng=each) for each in seeds)
    return Attention(jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), tuple(drawn)), window)


def initial(shape: Shape, seed: int) -> Parameters:
    """Return fresh parameters."""
    rng = np.random.default_rng(seed)

    def normal(rows: int, columns: int, gain: float = 1.0) -> jax.Array:
        return jnp.asarray(gain * rng.standard_normal((rows, columns)) / np.sqrt(rows), jnp.float32)

    width, out = shape.width, 1 / np.sqrt(2 * shape.layers)
    blocks = [
        {
            "qkv": normal(width, 3 * width),
            "out": normal(width, width, out),
            "up": normal(width, 4 * width),
            "down": normal(4 * width, width, out),
            "gains": jnp.ones((2, width)),
        }
        for _ in range(shape.layers)
    ]
    embedding = normal(shape.vocabulary, width, 0.02 * np.sqrt(shape.vocabulary))
    return {"embedding": embedding, "blocks": blocks, "gain": jnp.ones(width), "head": normal(width, shape.vocabulary)}


def _normed(x: jax.Array, gain: jax.Array) -> jax.Array:
    return gain * jax.nn.standardize(x, axis=-1)


def _rotated(x: jax.Array, start: Any) -> jax.Array:
    """Turn pairs of coordinates by angles that grow with the position: q·k then knows how far apart they are."""
    half = x.shape[-1] // 2
    angles = (start + jnp.arange(x.shape[-2]))[:, None] * 10_000.0 ** (-jnp.arange(half) / half)
    one, other = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([one * cos - other * sin, one * sin + other * cos], -1)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, features: rfk.Features | None, window: int | None, state: Any
) -> tuple[jax.Array, Any]:
    if features is None:
        swapped = (jnp.swapaxes(x, -2, -3) for x in (q, k, v))
        return jnp.swapaxes(jax.nn.dot_product_attention(*swapped, is_causal=True), -2, -3), None
    run = partial(rfk.attention, q, k, v, features, causal=True, window=window, backend="jax")
    if state is None:
        return run(), None
    done = run(state=state, full=True)
    return done.output, done.state


def logits(
    parameters: Parameters, tokens: jax.Array, shape: Shape, how: Attention, states: Any = None, start: Any = 0
) -> tuple[jax.Array, Any]:
    """Return the logits of what follows each token, (batch, length, vocabulary), and the states after the last.

    With `states` the tokens go on from position `start`; the states are those of the layers.
    """
    x, after = parameters["embedding"][tokens], []
    for i, block in enumerate(parameters["blocks"]):
        qkv = (_normed(x, block["gains"][0]) @ block["qkv"]).reshape(*x.shape[:-1], 3, shape.heads, shape.dim)
        q, k, v = jnp.moveaxis(qkv, (-3, -2), (0, -3))
        given = None if how.features is None else how.features[i]
        turned = _rotated(q, start), _rotated(k, start), v
        out, state = _attend(*turned, given, how.window, None if states is None else states[i])
        x = x + jnp.moveaxis(out, -3, -2).reshape(x.shape) @ block["out"]
        x = x + jax.nn.gelu(_normed(x, block["gains"][1]) @ block["up"]) @ block["down"]
        after.append(state)
    return _normed(x, parameters["gain"]) @ parameters["head"], after


def loss(parameters: Parameters, tokens: jax.Array, shape: Shape, how: Attention) -> jax.Array:
    """Return the mean of −log p(next character) in nats; tokens are (batch, length + 1)."""
    found, _ = logits(parameters, tokens[:, :-1], shape, how)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(found), tokens[:, 1:, None], -1)
    return -jnp.mean(chosen)


def empty_states(shape: Shape, how: Attention, batch: int) -> list[Any]:
    """Return one empty state for each layer, whose size does not depend on how much will be read."""
    assert how.features is not None
    axes = (batch, shape.heads)
    made = [rfk.empty_state(features, shape.dim, axes, window=how.window) for features in how.features]
    states: list[Any] = jax.tree.map(jnp.asarray, made)
    return states


def streamed_logits(parameters: Parameters, tokens: jax.Array, shape: Shape, how: Attention) -> jax.Array:
    """Return the same as `logits`, one token at a time."""

    def step(carry: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        states, position = carry
        found, states = logits(parameters, token[:, None], shape, how, states, position)
        return (states, position + 1), found[:, 0]

    first = (empty_states(shape, how, len(tokens)), jnp.zeros((), jnp.int32))
    return jnp.swapaxes(jax.lax.scan(step, first, tokens.T)[1], 0, 1)


def sample(
    parameters: Parameters,
    prompt: jax.Array,
    key: jax.Array,
    *,
    shape: Shape,
    how: Attention,
    length: int,
    temperature: float = 0.8,
) -> jax.Array:
    """Read the prompt (batch, positions) in one pass, then draw `length` tokens, each from the states alone."""

    def draw(found: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.categorical(key, found / temperature)

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        states, token, position = carry
        found, states = logits(parameters, token[:, None], shape, how, states, position)
        return (states, draw(found[:, 0], key), position + 1), token

    keys = jax.random.split(key, length + 1)
    found, states = logits(parameters, prompt, shape, how, empty_states(shape, how, len(prompt)))
    carry = (states, draw(found[:, -1], keys[0]), jnp.asarray(prompt.shape[1], jnp.int32))
    return jax.lax.scan(step, carry, keys[1:])[1].T
