"""What a run is trained with: ways to attend, text as numbers, batches, and the training itself."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import char_model
import jax
import numpy as np
import optax
from char_model import Attention, Shape


class Way(NamedTuple):
    """A way to attend, as it is called on the picture."""

    map: str
    window: int | None = None

    @property
    def label(self) -> str:
        name = {"exact": "exact attention", "positive": "softmax features", "relu": "ReLU features"}.get(
            self.map, self.map
        )
        return name if self.window is None else f"{name}, window {self.window}"


def ways_of(given: argparse.Namespace) -> list[Way]:
    """Return the ways to compare, exact attention first."""
    nearby = [Way("positive", given.window)] if given.window else []
    return [Way("exact"), Way("positive"), *nearby, Way("relu")]


class Corpus(NamedTuple):
    """A text as numbers of characters, the last part of it held out."""

    characters: str
    train: np.ndarray
    held_out: np.ndarray

    def encode(self, text: str) -> np.ndarray:
        return np.array([self.characters.index(c) for c in text])

    def decode(self, tokens: Any) -> str:
        return "".join(self.characters[int(i)] for i in tokens)


def read_corpus(path: Path) -> Corpus:
    """Read a file, or all files *.txt of a folder; a twentieth is held out."""
    files = sorted(path.glob("*_gut.txt")) or sorted(path.glob("*.txt")) if path.is_dir() else [path]
    text = "\n\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    characters = "".join(sorted(set(text)))
    number = {c: i for i, c in enumerate(characters)}
    tokens = np.array([number[c] for c in text], np.int32)
    split = len(tokens) - len(tokens) // 20
    return Corpus(characters, tokens[:split], tokens[split:])


def batches(tokens: np.ndarray, batch: int, length: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    while True:
        starts = rng.integers(0, len(tokens) - length, batch)
        yield tokens[starts[:, None] + np.arange(length + 1)]


def training_step(shape: Shape, window: int | None, optimizer: Any) -> Callable[..., Any]:
    """Return the compiled step; features are an argument, so that new ones need no new compilation."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters: Any, memory: Any, features: Any, tokens: Any) -> tuple[Any, Any, Any]:
        how = Attention(features, window)
        loss, gradient = jax.value_and_grad(char_model.loss)(parameters, tokens, shape, how)
        updates, memory = optimizer.update(gradient, memory, parameters)
        return optax.apply_updates(parameters, updates), memory, loss

    return step


class Run(NamedTuple):
    """What came of training one way."""

    way: Way
    parameters: Any
    how: Attention
    losses: list[float]
    held_out: list[tuple[int, float]]
    seconds: float


def train(way: Way, corpus: Corpus, shape: Shape, given: argparse.Namespace, advance: Callable[[], Any]) -> Run:
    schedule = optax.warmup_cosine_decay_schedule(0, given.rate, given.steps // 20 + 1, given.steps, given.rate / 10)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01))
    parameters = char_model.initial(shape, given.seed)
    memory, step = optimizer.init(parameters), training_step(shape, way.window, optimizer)
    score = jax.jit(lambda p, features, tokens: char_model.loss(p, tokens, shape, Attention(features, way.window)))
    tests = next(batches(corpus.held_out, 4 * given.batch, given.length, given.seed + 1))
    losses, held_out, start = [], [], time.perf_counter()
    for t, tokens in zip(
        range(given.steps), batches(corpus.train, given.batch, given.length, given.seed), strict=False
    ):
        if t == 0 or (given.redraw and t % given.redraw == 0):
            how = char_model.attention(shape, way.map, given.features, way.window, [given.seed, t])
        parameters, memory, loss = step(parameters, memory, how.features, tokens)
        losses.append(loss)
        if (t + 1) % given.every == 0 or t + 1 == given.steps:
            held_out.append((t + 1, float(score(parameters, how.features, tests))))
        advance()
    seconds = time.perf_counter() - start
    return Run(way, parameters, how, [round(float(x), 4) for x in losses], held_out, seconds)
