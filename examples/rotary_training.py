"""What the rotary model is trained on: words as numbers, and passages that come again."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import rotary_model
from rotary_model import Parameters, Shape

FIRST = 0
"""The token that every sequence begins with."""


def read_words(path: Path, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Return words and marks as numbers by hash, for training and, of every text the last tenth, held out.

    A name that the model never saw has a number too, the same each time; two words may share one.
    """
    files = sorted(path.glob("*_gut.txt")) or sorted(path.glob("*.txt")) if path.is_dir() else [path]
    train, held_out = [], []
    for file in files:
        words = re.findall(r"\w+|[^\w\s]|\n", file.read_text(encoding="utf-8", errors="replace"))
        numbers = np.array([1 + zlib.crc32(word.encode()) % (vocabulary - 1) for word in words], np.int32)
        split = len(numbers) - len(numbers) // 10
        train.append(numbers[:split])
        held_out.append(numbers[split:])
    return np.concatenate(train), np.concatenate(held_out)


def with_copies(row: np.ndarray, share: float, rng: np.random.Generator, *, shortest: int = 8, gap: int = 8) -> None:
    """Overwrite passages of a sequence with earlier ones, in place, until about that share of it is copied."""
    done, longest = 0, max(len(row) // 8, shortest + 1)
    while done < share * len(row):
        count = int(rng.integers(shortest, longest))
        target = int(rng.integers(count + gap + 2, len(row) - count))
        source = int(rng.integers(2, target - count - gap + 1))
        row[target : target + count] = row[source : source + count].copy()
        done += count


def batches(tokens: np.ndarray, batch: int, length: int, copies: float, seed: Any) -> Iterator[np.ndarray]:
    """Return sequences (batch, length + 2), each of which begins with the first token, twice."""
    rng = np.random.default_rng(seed)
    while True:
        starts = rng.integers(0, len(tokens) - length, batch)
        rows = tokens[starts[:, None] + np.arange(length)]
        rows = np.concatenate([np.full((batch, 2), FIRST, rows.dtype), rows], 1)
        for row in rows:
            with_copies(row, copies, rng)
        yield rows


def train(
    tokens: np.ndarray,
    shape: Shape,
    *,
    steps: int,
    batch: int,
    length: int,
    copies: float,
    rate: float = 3e-3,
    seed: int = 0,
    advance: Callable[[float], Any] = lambda loss: None,
) -> Parameters:
    """Train with exact attention; `advance` is called with the loss of each step."""
    schedule = optax.warmup_cosine_decay_schedule(0, rate, steps // 20 + 1, steps, rate / 10)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01))
    parameters = rotary_model.initial(shape, seed)
    memory = optimizer.init(parameters)

    def loss(parameters: Parameters, rows: jax.Array) -> jax.Array:
        return rotary_model.losses(parameters, rows, shape, rotary_model.exact()).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters: Parameters, memory: Any, rows: jax.Array) -> tuple[Parameters, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(parameters, rows)
        updates, memory = optimizer.update(gradient, memory, parameters)
        return optax.apply_updates(parameters, updates), memory, value

    for _, rows in zip(range(steps), batches(tokens, batch, length, copies, seed), strict=False):
        parameters, memory, value = step(parameters, memory, rows)
        advance(float(value))
    return parameters
