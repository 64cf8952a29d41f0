"""The sizes of a run, and the inputs and calls that the measurements share."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rfkernels.attention import attention
from rfkernels.benchmark.timing import Call, Unavailable
from rfkernels.features import draw
from rfkernels.maps import FeatureMap

Arrays = tuple[Any, Any, Any]
"""Queries, keys and values."""

THREADS_VARIABLE = "RFKERNELS_NUM_THREADS"

_TILE = 8192


@dataclass(frozen=True)
class Plan:
    """The sizes of a run.

    Parameters
    ----------
    heads, dim, count : int
        Heads, their width (of queries, keys and values) and feature columns.
    length : int
        Positions of most measurements.
    slow_length : int
        Positions of the comparison with a peer whose causal pass takes seconds.
    crossover : tuple of int
        Lengths at which exact attention is compared with.
    long : tuple of (int, int)
        Heads and length of the long inputs.
    single : int
        Positions of the measurement with one head.
    positions : tuple of (int, int)
        Positions at which tokens are decoded one at a time.
    tokens : int
        How many tokens are decoded from there.
    caches : tuple of int
        How many keys exact attention of one token has, which decoding is compared with.
    window : int
        The width of the exact window.
    memory : tuple of int
        Lengths at which memory is measured; empty to leave that out.
    products : tuple of int
        Orders of the matrices whose product shows the machine's best rate.
    core_types : tuple of str
        Values of OPENBLAS_CORETYPE to try besides none.
    rounds, slow_rounds : int
        Samples of each case, and of those that take long.
    seconds : float
        How long a sample lasts at least.
    first_call : bool
        Whether the first call in a new process is measured, with a warm and with an empty cache.
    backend : str, optional
        The library's backend; None for its default.
    """

    heads: int = 8
    dim: int = 64
    count: int = 256
    length: int = 8192
    slow_length: int = 4096
    crossover: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    long: tuple[tuple[int, int], ...] = ((2, 1_048_576), (8, 262_144))
    single: int = 65_536
    positions: tuple[int, int] = (1_000, 50_000)
    tokens: int = 100
    caches: tuple[int, ...] = (1_000, 4_000, 16_000)
    window: int = 128
    memory: tuple[int, ...] = (8_192, 262_144)
    products: tuple[int, ...] = (2048, 4096)
    core_types: tuple[str, ...] = ("Haswell", "SkylakeX", "Cooperlake", "Sapphirerapids", "Zen")
    rounds: int = 9
    slow_rounds: int = 5
    seconds: float = 0.1
    first_call: bool = True
    backend: str | None = None


FULL = Plan()
QUICK = Plan(
    length=2048,
    slow_length=256,
    crossover=(512, 1024),
    long=((2, 65_536),),
    single=16_384,
    positions=(500, 5_000),
    tokens=50,
    caches=(1_000, 4_000),
    memory=(),
    products=(1024, 2048),
    core_types=(),
    rounds=3,
    slow_rounds=2,
    seconds=0.02,
    first_call=False,
)


def inputs(plan: Plan, length: int, heads: int | None = None, dtype: Any = np.float32) -> Arrays:
    """Return queries, keys and values, standard normal and repeated every 8192 positions, (heads, length, dim) each."""
    heads = plan.heads if heads is None else heads
    rng = np.random.default_rng(0)
    tile = rng.standard_normal((3, heads, min(length, _TILE), plan.dim), np.float32).astype(dtype)
    repeats = -(-length // _TILE)
    q, k, v = (np.tile(x, (1, repeats, 1))[:, :length] for x in tile)
    return q, k, v


def ours(
    plan: Plan,
    arrays: Arrays,
    feature_map: str | FeatureMap = "positive",
    sampler: str = "orthogonal",
    **options: Any,
) -> Call:
    """Return a call of `rfkernels.attention` with the plan's features and default flags."""
    features = draw(feature_map, plan.dim, plan.count, sampler=sampler, rng=0)
    return partial(attention, *arrays, features, backend=plan.backend, **options)


def allowed_threads() -> int:
    """Return how many threads the library uses: RFKERNELS_NUM_THREADS, or the cores that this process may run on."""
    from rfkernels.backends.numba import threads

    return threads.thread_count()


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Let the library use so many threads inside the block."""
    before = os.environ.get(THREADS_VARIABLE)
    os.environ[THREADS_VARIABLE] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS_VARIABLE]
        else:
            os.environ[THREADS_VARIABLE] = before


def with_threads(count: int, call: Call) -> Call:
    """Return `call` with the library on so many threads."""

    def limited() -> None:
        with thread_count(count):
            call()

    return limited


def require_memory(plan: Plan, length: int, heads: int) -> None:
    """Raise Unavailable if q, k, v and the output, once more for copies, do not fit into free memory."""
    needed = 2 * 4 * 4 * math.prod((length, heads, plan.dim))
    free = _free_memory()
    if free is not None and free < needed:
        raise Unavailable(f"needs {needed / 1e9:.1f} GB of free memory, {free / 1e9:.1f} GB are there")


def _free_memory() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None
