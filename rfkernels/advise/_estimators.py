"""The estimators that are compared, as data: how each is prepared, called, written down and what it keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from rfkernels.advise._problem import Problem, first_half, strides
from rfkernels.attention import attention
from rfkernels.baseline import exact_attention
from rfkernels.features import draw
from rfkernels.fitting import Choice, choose, fit, moments
from rfkernels.fitting.statistics import attended, pooled
from rfkernels.grouping import plan_for
from rfkernels.state import empty_state

EXACT, AVERAGE, WINDOW = "exact attention", "plain average", "window alone"
HEAVY = 16


class Estimator(NamedTuple):
    """A way to compute attention in linear time.

    Parameters
    ----------
    name : str
    sized : bool
        Whether it takes a count.
    windows : {"none", "needed", "any"}
        Whether it takes a window.
    prepare : callable ``(problem, count) -> prepared``
        What is made once, from the first half of the data if from data at all.
    attend : callable ``(problem, prepared, window) -> output``
        The call itself.
    kept : callable ``(problem, prepared, window) -> int``
        Bytes that keys and values are reduced to.
    lines : callable ``(problem, count, window) -> str``
        What a user writes.
    choice : callable ``(problem) -> Choice or None``, optional
        What a prediction starts from: None stands for plain positive features; no callable, for no prediction.
    columns : int
        Feature columns of a draw, two for antithetic pairs.
    counts : callable ``(problem, counts) -> counts``
        What it takes for these counts of feature columns.
    """

    name: str
    sized: bool
    windows: Literal["none", "needed", "any"]
    prepare: Callable[[Problem, int], Any]
    attend: Callable[[Problem, Any, int | None], Any]
    kept: Callable[[Problem, Any, int | None], int]
    lines: Callable[[Problem, int | None, int | None], str]
    choice: Callable[[Problem], Choice | None] | None = None
    columns: int = 1
    counts: Callable[[Problem, tuple[int, ...]], tuple[int, ...]] = lambda _, counts: counts


def exact(problem: Problem, _prepared: Any = None, window: int | None = None) -> Any:
    """Compute exact attention, of nearby keys only if there is a window."""
    given = problem.q, problem.k, problem.v
    return exact_attention(*given, scale=problem.scale, causal=problem.causal, window=window)


def exact_lines(problem: Problem, _count: int | None = None, window: int | None = None) -> str:
    """Write the call of exact attention."""
    return f"out = rfk.exact_attention(q, k, v{_options(problem, window, scale=True)})"


def positions_bytes(problem: Problem, positions: float) -> int:
    """Return the bytes of that many keys and values of all heads."""
    each: int = sum(math.prod(x.shape[:-2]) * x.shape[-1] * x.itemsize for x in (problem.k, problem.v))
    return round(positions * each)


def _nothing(_problem: Problem, _count: int) -> None:
    return None


def _average(problem: Problem, _prepared: Any, _window: int | None) -> Any:
    v, (queries, keys) = problem.v, problem.sizes
    dtype = np.result_type(v, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # the error of such an output is infinite
        out = v.mean(-2, keepdims=True, dtype=dtype)
        if problem.causal:
            out = (v.cumsum(-2, dtype=dtype) / np.arange(1, keys + 1)[:, None])[..., -queries:, :]
    return np.broadcast_to(out, (*problem.batch, queries, v.shape[-1]))


def _average_lines(problem: Problem, _count: int | None, _window: int | None) -> str:
    dtype = "dtype=np.result_type(v, np.float32)"
    if not problem.causal:
        return f"out = v.mean(-2, keepdims=True, {dtype})  # the same for every query"
    return f"out = (v.cumsum(-2, {dtype}) / np.arange(1, v.shape[-2] + 1)[:, None])[..., -{problem.sizes[0]}:, :]"


def _average_kept(problem: Problem, _prepared: Any, _window: int | None) -> int:
    v = problem.v
    return int(math.prod(v.shape[:-2]) * (v.shape[-1] + 1) * v.itemsize)


def _window_kept(problem: Problem, _prepared: Any, window: int | None) -> int:
    return positions_bytes(problem, window or 0)


def _linear(problem: Problem, features: Any, window: int | None, heavy: int | None = None) -> Any:
    given = problem.q, problem.k, problem.v
    return attention(*given, features, causal=problem.causal, window=window, heavy=heavy)


def _linear_kept(problem: Problem, features: Any, window: int | None, heavy: int = 0) -> int:
    batch = np.broadcast_shapes(problem.k.shape[:-2], problem.v.shape[:-2], features.batch)
    state = empty_state(features, problem.v.shape[-1], batch, np.result_type(problem.k, problem.v, np.float32))
    near = _blocks_bytes(problem, window, heavy) if heavy else positions_bytes(problem, window or 0)
    return sum(int(x.nbytes) for x in state) + near


def _blocks_bytes(problem: Problem, window: int | None, heavy: int, sums: int = 0) -> int:
    """Return the bytes of so many sums, of the keys and values of blocks that are exact, and of heavy ones."""
    plan = plan_for(window, problem.causal)
    near = 0 if plan.reach is None else (plan.reach + 1) * plan.block
    k, v = problem.k, problem.v
    heads = math.prod(np.broadcast_shapes(k.shape[:-2], v.shape[:-2]))
    numbers: int = heads * (sums + (near + heavy) * (k.shape[-1] + v.shape[-1]))
    return numbers * int(np.result_type(k, v, np.float32).itemsize)


def _drawn(problem: Problem, count: int) -> Any:
    batch, dim = tuple(problem.k.shape[:-2]), problem.k.shape[-1]
    return draw("positive", dim, count, scale=problem.scale, batch=batch, rng=problem.seed)


def _drawn_lines(problem: Problem, count: int | None, window: int | None) -> str:
    given = f'"positive", {problem.k.shape[-1]}, {count}, batch={tuple(problem.k.shape[:-2])}'
    return _linear_lines(problem, f"rfk.draw({given}{_scale(problem)}, rng={problem.seed})", window)


def _fitted(method: str, problem: Problem, count: int) -> Any:
    return fit(*first_half(problem), count, method=method, scale=problem.scale, rng=problem.seed)


def _fitted_lines(
    method: str, problem: Problem, count: int | None, window: int | None, heavy: int | None = None
) -> str:
    made = f'rfk.fit({_samples(problem)}, {count}, method="{method}"{_scale(problem)}, rng={problem.seed})'
    return _linear_lines(problem, made, window, _ONCE, heavy)


_ONCE = "  # once, from data like what is to come"


def _samples(problem: Problem) -> str:
    """Write the queries and keys that parameters come from: of a causal pass not all, as they are measured on it."""
    ends = [str(size // 2) if problem.causal else "" for size in problem.sizes]
    parts = [f":{end}" + (f":{step}" if step > 1 else "") for end, step in zip(ends, strides(problem), strict=True)]
    return ", ".join(name if part == ":" else f"{name}[..., {part}, :]" for name, part in zip("qk", parts, strict=True))


def _linear_lines(problem: Problem, made: str, window: int | None, after: str = "", heavy: int | None = None) -> str:
    options = _options(problem, window, heavy=heavy)
    return f"features = {made}{after}\nout = rfk.attention(q, k, v, features{options})"


def _grouped(_problem: Problem, count: int) -> int:
    """Return the number: groups are those of the very keys that are attended."""
    return count


def _groups(problem: Problem, count: int, window: int | None, heavy: int | None = None) -> Any:
    options: dict[str, Any] = {"causal": problem.causal, "window": window, "heavy": heavy, "scale": problem.scale}
    return attention(problem.q, problem.k, problem.v, groups=count, **options)


def _groups_lines(problem: Problem, count: int | None, window: int | None, heavy: int | None = None) -> str:
    return f"out = rfk.attention(q, k, v, groups={count}{_options(problem, window, True, heavy)})"


def _groups_kept(problem: Problem, count: int, window: int | None, heavy: int = 0) -> int:
    dim, width = problem.k.shape[-1], problem.v.shape[-1]
    merging = dim * (dim + width) + count + plan_for(window, causal=True).block if problem.causal else 0
    return _blocks_bytes(problem, window, heavy, count * (dim + width + 3) + merging)


def _groups_counts(problem: Problem, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return half the counts, as a group keeps a key besides a value, where groups have four keys or more."""
    return tuple(count // 2 for count in counts if 2 * count <= problem.sizes[1])


def _scale(problem: Problem) -> str:
    return "" if problem.scale is None else f", scale={problem.scale!r}"


def _options(problem: Problem, window: int | None, scale: bool = False, heavy: int | None = None) -> str:
    causal = ", causal=True" if problem.causal else ""
    near = "" if window is None else f", window={window}"
    return f"{_scale(problem) if scale else ''}{causal}{near}{'' if heavy is None else f', heavy={heavy}'}"


def _no_choice(_problem: Problem) -> None:
    return None


def _choice(method: str, problem: Problem) -> Choice:
    q, k = first_half(problem)
    queries, scale = pooled(q, tuple(k.shape[:-2])), problem.scale or 1 / math.sqrt(q.shape[-1])
    if method == "affine":
        return choose(moments(queries), moments(k), scale=scale)
    of_queries, of_keys, cross = attended(queries, k, scale)
    return choose(of_queries, of_keys, scale=scale, cross=cross)


def _fit_record(method: str, heavy: int | None = None) -> Estimator:
    prepare, lines, choice = partial(_fitted, method), partial(_fitted_lines, method), partial(_choice, method)
    if heavy is not None:
        calls = partial(_linear, heavy=heavy), partial(_linear_kept, heavy=heavy), partial(lines, heavy=heavy)
        return Estimator(f"fit, {method}, heavy", True, "any", prepare, *calls)
    return Estimator(f"fit, {method}", True, "any", prepare, _linear, _linear_kept, lines, choice, columns=2)


ESTIMATORS: tuple[Estimator, ...] = (
    Estimator(AVERAGE, False, "none", _nothing, _average, _average_kept, _average_lines),
    Estimator(WINDOW, False, "needed", _nothing, exact, _window_kept, exact_lines),
    Estimator("draw, positive", True, "any", _drawn, _linear, _linear_kept, _drawn_lines, _no_choice),
    _fit_record("affine"),
    _fit_record("tilted"),
    _fit_record("tilted", HEAVY),
    Estimator("groups", True, "any", _grouped, _groups, _groups_kept, _groups_lines, counts=_groups_counts),
    Estimator(
        "groups, heavy",
        True,
        "any",
        _grouped,
        partial(_groups, heavy=HEAVY),
        partial(_groups_kept, heavy=HEAVY),
        partial(_groups_lines, heavy=HEAVY),
        counts=_groups_counts,
    ),
)
