"""Ways to train the recommender: the softmax over all items, or negatives that are drawn in one way or another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import recommender_model
from recommender_data import Events, Parts
from recommender_model import Draw, State

import rfkernels as rfk
from rfkernels.backends.jax import catalog as device_catalog

WAYS = ("full softmax", "uniform", "log-uniform", "catalog")


class Settings(NamedTuple):
    """What all ways share."""

    dim: int
    batch: int
    negatives: int
    checks: int
    steps: int
    seed: int
    every: int


class Check(NamedTuple):
    """Where a run stands.

    Seconds are those of training alone, by the clock and of all processors together: the second is what a machine that
    does something else as well can be judged by.
    """

    step: int
    seconds: float
    processor: float
    validation: tuple[float, float]
    test: tuple[float, float]


class Sampler(NamedTuple):
    """How negatives are drawn inside a step, from what, and how that is made anew for items that moved."""

    draw: Callable[[Any, Any, int, Any], Draw]
    held: Any
    remade: Callable[[Any, State, Any], Any] = lambda held, state, key: held


def uniform(parts: Parts, state: State, given: Settings) -> Sampler:
    return Sampler(_uniform, jnp.asarray(parts.items))


def _uniform(held: Any, queries: Any, count: int, key: Any) -> Draw:
    ids = jax.random.randint(key, (len(queries), count), 0, held)
    return Draw(ids, jnp.full(ids.shape, -jnp.log(held)))


def log_uniform(parts: Parts, state: State, given: Settings) -> Sampler:
    """Draw the item of rank r, counted from 0 by how often items were taken, with p = log((r+2)/(r+1)) / log(N+1)."""
    taken = np.bincount(parts.train.targets, minlength=parts.items)
    by_rank = np.argsort(-taken, kind="stable").astype(np.int32)
    return Sampler(_log_uniform, jnp.asarray(by_rank))


def _log_uniform(by_rank: Any, queries: Any, count: int, key: Any) -> Draw:
    width = np.log(len(by_rank) + 1)
    rank = jnp.exp(jax.random.uniform(key, (len(queries), count)) * width).astype(jnp.int32) - 1
    rank = jnp.minimum(rank, len(by_rank) - 1)  # rounding may reach N
    return Draw(by_rank[rank], jnp.log(jnp.log1p(1 / (rank + 1)) / width))


def catalog(parts: Parts, state: State, given: Settings) -> Sampler:
    """Draw close to the softmax of the model itself.

    The catalog is made anew every few steps from where the items are by now. What it draws in between has the
    probability that it states, so that the loss stays as right as it was.
    """
    table = device_catalog.device_table(rfk.Catalog(np.asarray(state.items), rng=given.seed).table)
    return Sampler(_guessed, device_catalog.regrouped(table, jax.random.key(given.seed)), _regrouped)


def _guessed(table: Any, queries: Any, count: int, key: Any) -> Draw:
    drawn = device_catalog.sample(table, queries, count, key, head=0, whole=False)
    return Draw(drawn.ids, drawn.log_probability)


@jax.jit
def _regrouped(table: Any, state: State, key: Any) -> Any:
    now = device_catalog.with_rows(table, jnp.arange(len(state.items)), state.items)
    return device_catalog.regrouped(now, key, rounds=1)


SAMPLERS = {"uniform": uniform, "log-uniform": log_uniform, "catalog": catalog}


def train(way: str, parts: Parts, given: Settings, rate: float) -> Iterator[Check]:
    """Train, and tell the scores at every check; batches are the same for all ways."""
    state = recommender_model.initial(parts.items, given.dim, given.seed)
    sampler = SAMPLERS[way](parts, state, given) if way in SAMPLERS else None
    order, key = np.random.default_rng([given.seed, 1]), jax.random.key(given.seed)
    batches = (parts.train.take(order.integers(0, len(parts.train.targets), given.batch)) for _ in iter(int, 1))
    step = partial(_step, given=given, rate=rate)
    step(jax.tree.map(jnp.copy, state), next(batches), sampler, key, 0)  # compiles
    seconds, number = np.zeros(2), 0
    for _ in range(given.checks):
        start = _clocks()
        for _ in range(given.steps):
            state, sampler = step(state, next(batches), sampler, key, number)
            number += 1
        state.items.block_until_ready()
        seconds += _clocks() - start
        validation, test = (recommender_model.score(state, events) for events in (parts.validation, parts.test))
        yield Check(number, float(seconds[0]), float(seconds[1]), validation, test)


def _clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def _step(
    state: State, batch: Events, sampler: Sampler | None, key: Any, number: int, given: Settings, rate: float
) -> tuple[State, Sampler | None]:
    """Return the state after a step, and what it draws from."""
    if sampler is None:
        return recommender_model.full_step(state, batch.histories, batch.targets, rate)[0], None
    key = jax.random.fold_in(key, number)
    if number % given.every == 0:
        sampler = sampler._replace(held=sampler.remade(sampler.held, state, key))
    options = {"draw": sampler.draw, "count": given.negatives}
    state, _ = recommender_model.sampled_step(state, sampler.held, batch.histories, batch.targets, key, rate, **options)
    return state, sampler
