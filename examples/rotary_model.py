"""A small causal language model as large ones are built: rotary keys, grouped queries, RMS norms, gated layers.

How it attends is an argument, so that what it was trained with can be swapped for something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Parameters = dict[str, Any]
Attend = Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array]
"""From the layer, q (batch, shared, group, length, dim) and k, v (batch, shared, 1, length, dim) to what q reads."""


class Shape(NamedTuple):
    """The size of a model: each of the `shared` heads of keys is read by `group` heads of queries."""

    vocabulary: int
    layers: int = 3
    shared: int = 2
    group: int = 2
    dim: int = 32

    @property
    def width(self) -> int:
        """Width of the stream between blocks."""
        return self.shared * self.group * self.dim


def initial(shape: Shape, seed: int) -> Parameters:
    """Return fresh parameters.

    In the last shared head of the first layer queries begin as keys do. Its keys being those of the token before (see
    `logits`), it begins by looking for what came after earlier uses of a token, which training would take long to find.
    """
    rng = np.random.default_rng(seed)

    def normal(rows: int, columns: int, gain: float = 1.0) -> jax.Array:
        return jnp.asarray(gain * rng.standard_normal((rows, columns)) / np.sqrt(rows), jnp.float32)

    width, small, out = shape.width, shape.shared * shape.dim, 1 / np.sqrt(2 * shape.layers)
    blocks = [
        {
            "q": normal(width, width),
            "k": normal(width, small),
            "v": normal(width, small),
            "out": normal(width, width, out),
            "up": normal(width, 4 * width),
            "down": normal(2 * width, width, out),
            "gains": jnp.ones((2, width)),
        }
        for _ in range(shape.layers)
    ]
    copy = 1.5 * blocks[0]["k"][:, -shape.dim :]
    blocks[0]["k"] = blocks[0]["k"].at[:, -shape.dim :].set(copy)
    for i in range(1, shape.group + 1):
        columns = slice(width - i * shape.dim, width - (i - 1) * shape.dim)
        blocks[0]["q"] = blocks[0]["q"].at[:, columns].set(copy)
    embedding = normal(shape.vocabulary, width, np.sqrt(shape.vocabulary))
    return {"embedding": embedding, "blocks": blocks, "gain": jnp.ones(width), "head": normal(width, shape.vocabulary)}


def _normed(x: jax.Array, gain: jax.Array) -> jax.Array:
    return gain * x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def rotated(x: jax.Array, start: Any = 0) -> jax.Array:
    """Turn pairs of coordinates by angles that grow with the position: q·k then knows how far apart they are."""
    half = x.shape[-1] // 2
    angles = (start + jnp.arange(x.shape[-2]))[:, None] * 100_000.0 ** (-jnp.arange(half) / half)
    one, other = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([one * cos - other * sin, one * sin + other * cos], -1)


def _heads(x: jax.Array, shape: Shape) -> jax.Array:
    """Return (batch, shared, heads of each, length, dim) of (batch, length, heads · dim)."""
    split = x.reshape(*x.shape[:-1], shape.shared, -1, shape.dim)
    return jnp.moveaxis(split, -4, -2)


def logits(parameters: Parameters, tokens: jax.Array, shape: Shape, attend: Attend, start: Any = 0) -> jax.Array:
    """Return the logits of what follows each token but the first, (batch, length, vocabulary).

    `tokens` (batch, 1 + length) begin with the token before position `start`, for the head of the first layer whose
    keys are those of the token before. Elsewhere keys are of the token itself.
    """
    both = parameters["embedding"][tokens]
    x, before = both[:, 1:], both[:, :-1]
    for i, block in enumerate(parameters["blocks"]):
        y = _normed(x, block["gains"][0])
        q, k, v = (_heads(y @ block[name], shape) for name in "qkv")
        if i == 0:
            earlier = _heads(_normed(before, block["gains"][0]) @ block["k"], shape)
            k = k.at[:, -1].set(earlier[:, -1])
        out = attend(i, rotated(q, start), rotated(k, start), v)
        x = x + jnp.moveaxis(out, -2, -4).reshape(x.shape) @ block["out"]
        gate, up = jnp.split(_normed(x, block["gains"][1]) @ block["up"], 2, -1)
        x = x + (jax.nn.silu(gate) * up) @ block["down"]
    found: jax.Array = _normed(x, parameters["gain"]) @ parameters["head"]
    return found


def exact(allowed: Any = None) -> Attend:
    """Return exact attention to earlier keys, or to those that are `allowed` (length, length)."""

    def attend(_: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.einsum("...td,...sd->...ts", q, k) / np.sqrt(q.shape[-1])
        seen = np.tri(q.shape[-2], dtype=bool) if allowed is None else allowed
        found: jax.Array = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1) @ v
        return found

    return attend


def losses(parameters: Parameters, tokens: jax.Array, shape: Shape, attend: Attend) -> jax.Array:
    """Return −log p of each token after the first two, in nats: (batch, length)."""
    found = jax.nn.log_softmax(logits(parameters, tokens[:, :-1], shape, attend))
    return -jnp.take_along_axis(found, tokens[:, 2:, None], -1)[..., 0]
