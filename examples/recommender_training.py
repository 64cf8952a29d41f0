"""Ways to train the recommender: the softmax over all items, or negatives that are drawn in one way or another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import recommender_model
from recommender_data import Events, Parts
from recommender_model import Draw, State

import rfkernels as rfk

Rng = np.random.Generator
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
    """How negatives are drawn, and what is done after a step that changed some items."""

    draw: Callable[[State, Events, int, Rng], Draw]
    changed: Callable[[State, np.ndarray], None] = lambda state, rows: None


def uniform(parts: Parts, state: State, given: Settings) -> Sampler:
    def draw(state: State, batch: Events, count: int, rng: Rng) -> Draw:
        ids = rng.integers(0, parts.items, (len(batch.targets), count), np.int32)
        return Draw(ids, np.full(ids.shape, -np.log(parts.items)))

    return Sampler(draw)


def log_uniform(parts: Parts, state: State, given: Settings) -> Sampler:
    """Draw the item of rank r, counted from 0 by how often items were taken, with p = log((r+2)/(r+1)) / log(N+1)."""
    taken = np.bincount(parts.train.targets, minlength=parts.items)
    by_rank = np.argsort(-taken, kind="stable").astype(np.int32)
    width = np.log(parts.items + 1)
    log_probability = np.log(np.log1p(1 / np.arange(1, parts.items + 1)) / width)

    def draw(state: State, batch: Events, count: int, rng: Rng) -> Draw:
        rank = np.exp(rng.random((len(batch.targets), count)) * width).astype(np.int64) - 1
        rank = np.minimum(rank, parts.items - 1)  # rounding may reach N
        return Draw(by_rank[rank], log_probability[rank])

    return Sampler(draw)


_queries = jax.jit(recommender_model.queries)


def catalog(parts: Parts, state: State, given: Settings) -> Sampler:
    """Draw close to the softmax of the model itself.

    The catalog is told every few steps where the items are by now. What it draws in between has the probability that
    it states, so that the loss stays as right as it was.
    """
    held = rfk.Catalog(np.asarray(state.items), rng=given.seed)
    moved: list[np.ndarray] = []

    def draw(state: State, batch: Events, count: int, rng: Rng) -> Draw:
        drawn = held.sample(np.asarray(_queries(state.tower, batch.histories)), count, rng)
        return Draw(drawn.ids, drawn.log_probability)

    def changed(state: State, rows: np.ndarray) -> None:
        moved.append(rows[rows < parts.items])
        if len(moved) == given.every:
            ids = np.unique(np.concatenate(moved))
            held.update(ids, np.asarray(state.items)[ids])
            moved.clear()

    return Sampler(draw, changed)


SAMPLERS = {"uniform": uniform, "log-uniform": log_uniform, "catalog": catalog}


def train(way: str, parts: Parts, given: Settings, rate: float) -> Iterator[Check]:
    """Train, and tell the scores at every check; batches are the same for all ways."""
    state = recommender_model.initial(parts.items, given.dim, given.seed)
    sampler = SAMPLERS[way](parts, state, given) if way in SAMPLERS else None
    order, rng = np.random.default_rng([given.seed, 1]), np.random.default_rng([given.seed, 2])
    batches = (parts.train.take(order.integers(0, len(parts.train.targets), given.batch)) for _ in iter(int, 1))
    _step(jax.tree.map(jnp.copy, state), next(batches), sampler, given, rate, rng)  # compiles
    seconds = np.zeros(2)
    for check in range(1, given.checks + 1):
        start = _clocks()
        for _ in range(given.steps):
            state, rows = _step(state, next(batches), sampler, given, rate, rng)
            if sampler is not None:
                sampler.changed(state, rows)
        state.items.block_until_ready()
        seconds += _clocks() - start
        validation, test = (recommender_model.score(state, events) for events in (parts.validation, parts.test))
        yield Check(check * given.steps, float(seconds[0]), float(seconds[1]), validation, test)


def _clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def _step(state: State, batch: Events, sampler: Sampler | None, given: Settings, rate: float, rng: Rng) -> Any:
    """Return the state after a step, and the rows that it moved."""
    if sampler is None:
        return recommender_model.full_step(state, batch.histories, batch.targets, rate)[0], None
    drawn = sampler.draw(state, batch, given.negatives, rng)
    need = recommender_model.needed(batch.targets, drawn, len(state.items))
    return recommender_model.sampled_step(state, batch.histories, need, rate)[0], need.rows
