"""A two-tower recommender: histories become queries, items are vectors, and only the rows that a step needs move."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from recommender_data import LENGTH, Events

from rfkernels.integrations.sampled_softmax import sampled_softmax_loss

Tower = dict[str, Any]


class State(NamedTuple):
    """All that training changes; the last column of an item is its bias, which meets the 1 that ends every query.

    Parameters
    ----------
    tower : dict of array
        What makes a query of a history.
    items : array, shape (items, dim + 1)
    tower_squares, item_squares
        Sums of squared gradients (Adagrad), shaped as what they belong to.
    """

    tower: Tower
    items: Any
    tower_squares: Tower
    item_squares: Any


def initial(items: int, dim: int, seed: int) -> State:
    rng = np.random.default_rng(seed)
    tower = {
        "history": rng.normal(0, 0.1, (items + 1, dim)),  # the last row stands for no item
        "recency": np.linspace(-2, 0, LENGTH),
        "hidden": rng.normal(0, dim**-0.5, (dim, dim)),
        "offset": np.zeros(dim),
    }
    vectors = np.concatenate([rng.normal(0, 0.1, (items, dim)), np.zeros((items, 1))], 1)
    tower, table = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (tower, vectors))
    squares = jax.tree.map(jnp.zeros_like, (tower, table))
    return State(tower, table, *squares)


def queries(tower: Tower, histories: Any) -> Any:
    """Return (batch, dim + 1): an average of what was taken, weighted by place, through one layer, and a 1."""
    there = histories < len(tower["history"]) - 1
    weight = jnp.where(there, jnp.exp(tower["recency"]), 0)
    weight = weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-6)
    mean = jnp.einsum("bl,bld->bd", weight, tower["history"][histories])
    hidden = mean + jnp.tanh(mean @ tower["hidden"] + tower["offset"])
    return jnp.concatenate([hidden, jnp.ones_like(hidden[:, :1])], -1)


class Draw(NamedTuple):
    """Negatives for each query (batch, n) and the log of the probability of each."""

    ids: Any
    log_probability: Any


def needed(targets: Any, negatives: Any, items: int) -> tuple[Any, Any, Any]:
    """Return the rows that a step touches, filled up with rows that are out of range, and ids counted by these rows.

    What a step computes then does not depend on how many items there are; where it may touch all, these are its rows.
    """
    if negatives.size + targets.size >= items:
        return jnp.arange(items), targets, negatives
    ids = jnp.concatenate([targets[:, None], negatives], 1)
    rows, local = jnp.unique(ids, return_inverse=True, size=ids.size, fill_value=items)
    local = local.reshape(ids.shape)
    return rows, local[:, 0], local[:, 1:]


def adagrad(x: Any, squares: Any, gradient: Any, rate: Any) -> tuple[Any, Any]:
    squares = squares + gradient**2
    return x - rate * gradient * jax.lax.rsqrt(squares + 1e-10), squares


@partial(jax.jit, static_argnames=("draw", "count"), donate_argnums=0)
def sampled_step(
    state: State, held: Any, histories: Any, targets: Any, key: Any, rate: Any, *, draw: Any, count: int
) -> tuple[State, Any]:
    """Take a step with negatives that are drawn in it, `draw(held, queries, count, key)`; other items stay."""
    drawn = draw(held, queries(state.tower, histories), count, key)
    touched, own, negatives = needed(targets, drawn.ids, len(state.items))
    rows, squares = (x.at[touched].get(mode="fill", fill_value=0) for x in (state.items, state.item_squares))

    def loss(tower: Tower, rows: Any) -> Any:
        q = queries(tower, histories)
        return sampled_softmax_loss(q, rows, own, negatives, log_probability=drawn.log_probability).mean()

    value, (tower_gradient, gradient) = jax.value_and_grad(loss, (0, 1))(state.tower, rows)
    tower, tower_squares = _stepped(state, tower_gradient, rate)
    rows, squares = adagrad(rows, squares, gradient, rate)
    items = state.items.at[touched].set(rows, mode="drop", unique_indices=False)
    item_squares = state.item_squares.at[touched].set(squares, mode="drop", unique_indices=False)
    return State(tower, items, tower_squares, item_squares), value


@partial(jax.jit, donate_argnums=0)
def full_step(state: State, histories: Any, targets: Any, rate: Any) -> tuple[State, Any]:
    """Take a step with the softmax over all items."""

    def loss(tower: Tower, items: Any) -> Any:
        return log_losses(queries(tower, histories) @ items.T, targets).mean()

    value, (tower_gradient, gradient) = jax.value_and_grad(loss, (0, 1))(state.tower, state.items)
    tower, tower_squares = _stepped(state, tower_gradient, rate)
    items, item_squares = adagrad(state.items, state.item_squares, gradient, rate)
    return State(tower, items, tower_squares, item_squares), value


def _stepped(state: State, gradient: Tower, rate: Any) -> tuple[Tower, Tower]:
    pairs = {name: adagrad(x, state.tower_squares[name], gradient[name], rate) for name, x in state.tower.items()}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def log_losses(logits: Any, targets: Any) -> Any:
    return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]


@jax.jit
def _scores(tower: Tower, items: Any, histories: Any, targets: Any) -> tuple[Any, Any]:
    logits = queries(tower, histories) @ items.T
    own = jnp.take_along_axis(logits, targets[:, None], -1)
    rank = (logits >= own).sum(-1)  # 1 for the best; equals come before
    return log_losses(logits, targets).sum(), jnp.where(rank <= 10, 1 / jnp.log2(1.0 + rank), 0).sum()


def score(state: State, events: Events, batch: int = 500) -> tuple[float, float]:
    """Return log-loss, in nats, and NDCG@10 over all items, those taken before among them."""
    sums = np.zeros(2)
    for start in range(0, len(events.targets), batch):
        part = events.take(np.arange(start, min(start + batch, len(events.targets))))
        sums += [float(x) for x in _scores(state.tower, state.items, *part)]
    loss, gain = sums / len(events.targets)
    return float(loss), float(gain)
