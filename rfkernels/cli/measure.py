"""What the demonstration measures: errors, times and memory on the heads that come with the package."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

import rfkernels as rfk
from rfkernels._timing import fastest

EXACT, AVERAGE, WINDOW_ALONE, GROUPS = "exact", "average of v", "window alone", "groups"
_MAPS = ("positive", "hyperbolic", "trigonometric", "relu", "elu+1")
_REPEATS = 6
TIMED_FEATURES = 256
ONLY_DRAWN = (64, 128, 512)  # numbers of features that are in the picture and not in the table


class Plan(NamedTuple):
    """How much is measured: heads, numbers of features and of groups, draws, and lengths for the growth of time."""

    heads: int
    counts: tuple[int, ...]
    groups: tuple[int, ...]
    draws: int
    window: int
    exact_lengths: tuple[int, ...]
    lengths: tuple[int, ...]


FULL = Plan(
    12, (64, 128, 256, 512, 1024), (64, 128), 3, 64, (512, 1024, 2048, 4096), (512, 1024, 2048, 4096, 8192, 16384)
)
QUICK = Plan(4, (64, 256), (64,), 1, 64, (512, 1024), (512, 1024, 2048))


class Heads(NamedTuple):
    """Queries, keys and values, float32 (heads, length, dim), and which heads they are."""

    q: Any
    k: Any
    v: Any
    layer: Any
    head: Any


class Row(NamedTuple):
    """One way to compute the heads' output, and how it does.

    `error` and `worst` are the median and the largest relative error over heads and draws, `beaten` the number of heads
    on which the average of v has a smaller error (than the median over draws), `seconds` the least time of a call for
    all heads, `memory` the bytes that one head's keys and values are reduced to (of exact attention: its weights).
    """

    name: str
    features: int | None
    window: int | None
    causal: bool
    error: float
    worst: float
    beaten: int
    seconds: float | None
    memory: int


class Timing(NamedTuple):
    """The time of one call at a length; exact attention has 0 features."""

    name: str
    features: int
    causal: bool
    heads: int
    length: int
    seconds: float


class Report(NamedTuple):
    """Everything measured.

    `which` lists the layer and the head of each of the `heads`; `load` is how many processes wanted a processor in the
    minute before, divided by the number of processors.
    """

    which: list[tuple[int, int]]
    heads: int
    length: int
    dim: int
    draws: int
    seed: int
    load: float
    rows: list[Row]
    timings: list[Timing]


def load_heads(count: int) -> Heads:
    """Read the heads that come with the package, `count` of them spread over the layers."""
    with files("rfkernels").joinpath("data", "minilm_heads.npz").open("rb") as file, np.load(file) as archive:
        q, k, v = (archive[name].astype(np.float32) for name in "qkv")
        layer, head = archive["layer"], archive["head"]
    chosen = np.linspace(0, len(q) - 1, count).round().astype(int)
    return Heads(q[chosen], k[chosen], v[chosen], layer[chosen], head[chosen])


def settings(plan: Plan) -> list[tuple[str, int, int | None]]:
    """List the maps, feature counts and windows; only the kernel of softmax joins with exact softmax weights."""
    made = []
    for name in _MAPS:
        windows = (None, plan.window) if rfk.lookup(name).kernel is rfk.kernels.EXPONENTIAL else (None,)
        made += [(name, count, window) for window in windows for count in plan.counts]
    return made


def steps(plan: Plan) -> int:
    """How many times `measure` advances."""
    return 2 * (len(settings(plan)) + 2 * len(plan.groups) + 1) + len(plan.exact_lengths) + 2 * len(plan.lengths)


def measure(heads: Heads, plan: Plan, seed: int, advance: Callable[[str], None]) -> Report:
    """Measure everything, telling `advance` what comes next before each step."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
    rows: list[Row] = []
    for causal in (False, True):
        advance("exact attention")
        goal = _goal(heads, causal)
        rows += _baselines(heads, plan.window, causal, goal)
        for name, count, window in settings(plan):
            advance(f"{name}, {count} features")
            rows.append(_row(heads, name, count, window, causal, goal, plan.draws, seed))
        for window in (None, plan.window):
            for count in plan.groups:
                advance(f"{count} groups")
                rows.append(_grouped(heads, count, window, causal, goal))
    timings = list(_timings(heads, plan, seed, advance))
    count, length, dim = heads.q.shape
    which = [(int(layer), int(head)) for layer, head in zip(heads.layer, heads.head, strict=True)]
    return Report(which, count, length, dim, plan.draws, seed, load, rows, timings)


def draw(heads: Heads, name: str, count: int, seed: int) -> rfk.Features:
    """Draw features, independent rows for each head."""
    return rfk.draw(name, heads.q.shape[-1], count, sampler="orthogonal", batch=heads.q.shape[:1], rng=seed)


def relative_errors(out: Any, exact: Any) -> Any:
    """Return |out − exact| / |exact| of each head."""
    return np.linalg.norm(out - exact, axis=(-2, -1)) / np.linalg.norm(exact, axis=(-2, -1))


class _Goal(NamedTuple):
    """Exact outputs, the time they took, and the error of the average of v on each head."""

    exact: Any
    seconds: float
    average: Any


def _goal(heads: Heads, causal: bool) -> _Goal:
    call = partial(rfk.exact_attention, heads.q, heads.k, heads.v, causal=causal)
    call()  # compiles, if need be
    exact, seconds = fastest(call)
    counts = np.arange(1, heads.v.shape[-2] + 1)[:, None]
    average = heads.v.cumsum(-2) / counts if causal else heads.v.mean(-2, keepdims=True)
    return _Goal(exact, seconds, relative_errors(average, exact))


def _summary(errors: Any, goal: _Goal) -> tuple[float, float, int]:
    """Return the median, the worst, and on how many heads the average of v does better; `errors` is (draws, heads)."""
    return float(np.median(errors)), float(np.max(errors)), int(np.sum(np.median(errors, axis=0) > goal.average))


def _row(
    heads: Heads, name: str, count: int, window: int | None, causal: bool, goal: _Goal, draws: int, seed: int
) -> Row:
    errors, times = [], []
    for i in range(draws):
        features = draw(heads, name, count, seed + i)
        call = partial(rfk.attention, heads.q, heads.k, heads.v, features, causal=causal, window=window)
        if i == 0:
            call()  # compiles, if need be
        out, seconds = fastest(call, -(-_REPEATS // draws))
        errors.append(relative_errors(out, goal.exact))
        times.append(seconds)
    memory = _nbytes(rfk.empty_state(features, heads.v.shape[-1], window=window))
    return Row(name, count, window, causal, *_summary(errors, goal), min(times), memory)


def _grouped(heads: Heads, count: int, window: int | None, causal: bool, goal: _Goal) -> Row:
    """Measure groups, found anew in each call: nothing is drawn."""
    call = partial(rfk.attention, heads.q, heads.k, heads.v, groups=count, causal=causal, window=window)
    call()
    out, seconds = fastest(call)
    few = (x[:1] for x in heads[:3])
    state = rfk.attention(*few, groups=count, causal=True, window=window, full=True).state
    errors = relative_errors(out, goal.exact)[None]
    return Row(GROUPS, count, window, causal, *_summary(errors, goal), seconds, _nbytes(state))


def _baselines(heads: Heads, window: int, causal: bool, goal: _Goal) -> Iterator[Row]:
    """What features are to be judged by: exact attention, and two ways that need none."""
    q, k, v = heads.q, heads.k, heads.v
    (length, width), item = v.shape[-2:], v.itemsize
    yield Row(EXACT, None, None, causal, 0.0, 0.0, 0, goal.seconds, length * length * item)
    near, seconds = fastest(partial(rfk.exact_attention, q, k, v, causal=causal, window=window))
    summary = _summary(relative_errors(near, goal.exact)[None], goal)
    yield Row(WINDOW_ALONE, None, window, causal, *summary, seconds, window * (k.shape[-1] + width) * item)
    yield Row(AVERAGE, None, None, causal, *_summary(goal.average[None], goal), None, (width + 1) * item)


def _timings(heads: Heads, plan: Plan, seed: int, advance: Callable[[str], None]) -> Iterator[Timing]:
    """Time calls on two heads, repeated end to end to each length."""
    few = Heads(*(x[:2] for x in heads))
    features = draw(few, "positive", TIMED_FEATURES, seed)
    for length in plan.lengths:
        q, k, v = (np.tile(x, (1, length // x.shape[-2], 1)) for x in few[:3])
        for causal in (False, True):
            advance(f"{length} tokens")
            call = partial(rfk.attention, q, k, v, features, causal=causal)
            yield Timing("positive", TIMED_FEATURES, causal, len(few.q), length, fastest(call)[1])
        if length in plan.exact_lengths:
            advance(f"{length} tokens, exactly")
            call = partial(rfk.exact_attention, q, k, v)
            yield Timing(EXACT, 0, False, len(few.q), length, fastest(call)[1])


def _nbytes(state: Any) -> int:
    """Bytes of the arrays of a state, nested or not."""
    return sum(_nbytes(x) if isinstance(x, tuple) else getattr(x, "nbytes", 0) for x in state)
