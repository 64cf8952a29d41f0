"""Ways to attend that a trained rotary model can be given in place of its own, in one pass or a token at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rotary_model
from rotary_model import Attend, Parameters, Shape

import rfkernels as rfk
from rfkernels.grouping import plan_for


class Way(NamedTuple):
    """A way to attend: what is exact, and what stands for all other keys (nothing, groups or features)."""

    window: int | None = None
    heavy: int = 0
    groups: int = 0
    features: int = 0
    calibrated: bool = False

    @property
    def linear(self) -> bool:
        """Whether something stands for the keys that are not exact."""
        return bool(self.groups or self.features)

    @property
    def label(self) -> str:
        """What to call it."""
        parts = [] if self.window is None else [f"window {self.window}"]
        parts += [f"{self.heavy} first"] * bool(self.heavy)
        parts += [f"{self.groups} {'calibrated groups' if self.calibrated else 'groups'}"] * bool(self.groups)
        parts += [f"{self.features} fitted features"] * bool(self.features)
        return " + ".join(parts) or "exact attention"


def allowed(way: Way, length: int) -> np.ndarray:
    """Return which keys a query sees exactly, (length, length): those that `rfkernels.attention` has exact for it."""
    before = np.tri(length, dtype=bool)
    if way.window is None:
        return before
    plan = plan_for(way.window, True)
    assert plan.reach is not None
    block = np.arange(length) // plan.block
    near = block[:, None] - block <= plan.reach
    return before & (near | (np.arange(length) < way.heavy))


class Sample(NamedTuple):
    """Queries, keys and values of a layer."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray


def captured(parameters: Parameters, rows: Any, shape: Shape) -> list[Sample]:
    """Return queries, keys and values of every layer for sequences (batch, length + 1), put one after another.

    Queries are (shared, group, batch · length, dim), keys and values (shared, 1, batch · length, dim).
    """
    found = []
    exact = rotary_model.exact()

    def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        joined = (np.moveaxis(np.asarray(x), 0, 2) for x in (q, k, v))
        found.append(Sample(*(x.reshape(*x.shape[:2], -1, shape.dim) for x in joined)))
        return exact(i, q, k, v)

    rotary_model.logits(parameters, rows, shape, attend)
    return found


class Fitted(NamedTuple):
    """What a way needs that comes of other data, for each layer."""

    groups: tuple[Any, ...]
    features: tuple[Any, ...]


def fitted(way: Way, samples: list[Sample], seed: int = 0) -> Fitted:
    """Fit features and centres of groups to what other sequences gave (see `captured`)."""
    groups: list[Any] = [way.groups or None] * len(samples)
    features: list[Any] = [None] * len(samples)
    seeds = np.random.SeedSequence(seed).spawn(len(samples))
    for i, (q, k, v) in enumerate(samples):
        if way.calibrated:
            groups[i] = rfk.fit_groups(q, k, way.groups, v=v)
        if way.features:
            features[i] = rfk.fit(q, k, way.features, rng=seeds[i])
    both = (
        jax.tree.map(lambda x: jnp.asarray(x, jnp.float32) if isinstance(x, np.ndarray) else x, tuple(x))
        for x in (groups, features)
    )
    return Fitted(*both)


def swapped(way: Way, given: Fitted, states: list[Any] | None = None) -> Attend:
    """Return attention by the library; with `states`, one for each layer, it goes on from them and replaces them."""

    def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        done = rfk.attention(
            q, k, v, given.features[i], causal=True, window=way.window, heavy=way.heavy or None,
            groups=given.groups[i], state=None if states is None else states[i], full=True,
        )  # fmt: skip
        if states is not None:
            states[i] = done.state
        found: jax.Array = done.output
        return found

    return attend


def streamed_logits(parameters: Parameters, tokens: jax.Array, shape: Shape, way: Way, given: Fitted) -> jax.Array:
    """Return the same as `rotary_model.logits` with a swapped attention, one token at a time from states."""
    states: list[Any] = [None] * shape.layers
    first = rotary_model.logits(parameters, tokens[:, :2], shape, swapped(way, given, states))

    def step(carry: Any, pair: jax.Array) -> tuple[Any, jax.Array]:
        before, position = list(carry[0]), carry[1]
        found = rotary_model.logits(parameters, pair, shape, swapped(way, given, before), position)
        return (tuple(before), position + 1), found[:, 0]

    pairs = jnp.stack([tokens[:, 1:-1].T, tokens[:, 2:].T], -1)
    _, rest = jax.lax.scan(step, (tuple(states), jnp.ones((), int)), pairs)
    return jnp.concatenate([first, jnp.swapaxes(rest, 0, 1)], 1)


def way_losses(parameters: Parameters, rows: Any, shape: Shape, way: Way, given: Fitted) -> jax.Array:
    """Return −log p of the tokens of sequences, in nats, when the model attends that way."""
    attend = swapped(way, given) if way.linear else rotary_model.exact(allowed(way, rows.shape[1] - 2))
    return rotary_model.losses(parameters, rows, shape, attend)
