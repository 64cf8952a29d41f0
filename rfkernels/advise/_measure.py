"""Running what is compared: errors on some queries, and the time of a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rfkernels._timing import fastest
from rfkernels.advise._estimators import ESTIMATORS, EXACT, Estimator, exact, exact_lines, positions_bytes
from rfkernels.advise._predict import predict, predicted_rows
from rfkernels.advise._problem import Problem, chosen_rows, exact_rows, relative_errors, short
from rfkernels.advise._report import Row

_WARM = 64
_ENOUGH_SECONDS, _REPEATS = 0.1, 3
_EXACT_POSITIONS = 2048
_REDRAWS = 2

Progress = Callable[[str, int, int], None]


class Plan(NamedTuple):
    """What is tried: counts and windows of each estimator, and how many queries are measured."""

    counts: tuple[int, ...]
    windows: tuple[int | None, ...]
    sample: int

    def counts_of(self, problem: Problem, estimator: Estimator) -> tuple[int | None, ...]:
        """Return the counts of an estimator, None for one that takes none."""
        return estimator.counts(problem, self.counts) if estimator.sized else (None,)

    def windows_of(self, estimator: Estimator) -> tuple[int | None, ...]:
        """Return the windows of an estimator, None for no window."""
        if estimator.windows == "none":
            return (None,)
        return tuple(w for w in self.windows if w is not None or estimator.windows == "any")


class Measured(NamedTuple):
    """Exact attention and the rest, the positions of the queries measured, and their exact outputs."""

    exact: Row
    rows: list[Row]
    positions: Any
    goal: Any


def measure(problem: Problem, plan: Plan, progress: Progress | None) -> Measured:
    """Measure everything."""
    rows, found, done = chosen_rows(problem, plan.sample), [], 0
    total = 1 + sum(len(plan.counts_of(problem, e)) for e in ESTIMATORS)

    def advance(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(what, done, total)
        done += 1

    advance(EXACT)
    goal = exact_rows(problem, rows)
    seconds = _exact_seconds(problem)
    errors, keys = (0.0,) * goal[..., 0, 0].size, problem.sizes[1]
    memory, call = positions_bytes(problem, keys * problem.growth), exact_lines(problem)
    best = Row(EXACT, None, None, errors, None, seconds, 0.0, memory, call)
    for estimator in ESTIMATORS:
        windows = plan.windows_of(estimator)
        drawn = _predicted(problem, rows, estimator, windows) if windows else None
        for count in plan.counts_of(problem, estimator):
            advance(estimator.name if count is None else f"{estimator.name}, {count}")
            found += _rows(problem, estimator, count, windows, rows, goal, drawn)
    if progress is not None:
        progress("done", total, total)
    return Measured(best, found, rows, goal)


def _rows(
    problem: Problem,
    estimator: Estimator,
    count: int | None,
    windows: Sequence[int | None],
    rows: Any,
    goal: Any,
    drawn: Any,
) -> list[Row]:
    prepared, setup = fastest(partial(estimator.prepare, problem, count or 0), repeats=1)
    made = []
    for i, window in enumerate(windows):
        estimator.attend(short(problem, _WARM), prepared, window)  # compiles, if need be
        out, seconds = fastest(partial(estimator.attend, problem, prepared, window), _REPEATS, _ENOUGH_SECONDS)
        errors = relative_errors(problem, out[..., rows, :], goal)
        kept = estimator.kept(problem, prepared, window)
        predicted = None if drawn is None else _for_count(drawn[i], estimator, count)
        call, seconds = estimator.lines(problem, count, window), seconds * problem.growth
        made.append(Row(estimator.name, count, window, errors, predicted, seconds, setup, kept, call))
    return made


def redrawn(problem: Problem, measured: Measured, label: str) -> tuple[float, ...]:
    """Return the error of the worst head with other draws of what that row uses; nothing if nothing is drawn."""
    row = next((row for row in measured.rows if row.label == label), None)
    estimator = next((e for e in ESTIMATORS if row is not None and e.name == row.estimator), None)
    if row is None or estimator is None or not estimator.sized:
        return ()
    found = []
    for seed in range(problem.seed + 1, problem.seed + 1 + _REDRAWS):
        prepared = estimator.prepare(problem._replace(seed=seed), row.count or 0)
        out = estimator.attend(problem, prepared, row.window)
        found.append(relative_errors(problem, out[..., measured.positions, :], measured.goal))
    return () if all(errors == row.errors for errors in found) else tuple(max(errors) for errors in found)


def _predicted(problem: Problem, rows: Any, estimator: Estimator, windows: tuple[int | None, ...]) -> Any:
    some = predicted_rows(problem, rows)
    if estimator.choice is None or not len(some):
        return None
    return predict(problem, some, estimator.choice(problem), windows)


def _for_count(drawn: Any, estimator: Estimator, count: int | None) -> tuple[float, ...]:
    draws = (count or 1) / estimator.columns
    return tuple(float(error) for error in drawn / np.sqrt(draws))


def _exact_seconds(problem: Problem) -> float:
    """Return the time of exact attention at the user's length, from that of fewer positions: it grows as the square.

    Arrays that are shorter than both are repeated: the first and small calls are slow out of proportion.
    """
    wanted = [max(1, round(size * problem.growth)) for size in problem.sizes]
    queries, keys = (min(size, _EXACT_POSITIONS) for size in wanted)
    more = 1.0
    if problem.causal:
        queries = keys  # which sees half of all pairs, where few queries of many keys see more
        more = 2 - wanted[0] / wanted[1]
    q, k, v = (_repeated(x, size) for x, size in ((problem.q, queries), (problem.k, keys), (problem.v, keys)))
    call = partial(exact, problem._replace(q=q, k=k, v=v))
    call()
    _, seconds = fastest(call, _REPEATS, _ENOUGH_SECONDS)
    return seconds * more * (wanted[0] / queries) * (wanted[1] / keys)


def _repeated(x: Any, positions: int) -> Any:
    """Return an array of that many positions, beginning again at the first after the last."""
    return np.take(x, np.arange(positions) % x.shape[-2], axis=-2)
