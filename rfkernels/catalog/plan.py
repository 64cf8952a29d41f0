"""What a query does: which groups are taken exactly, and where items are drawn from the others.

This is the specification; `rfkernels.backends.numba.catalog` computes the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.records import Table

RUN = 4
"""Items of a draw: neighbours in a group, whose order is random, so that memory is read in runs.

Longer runs would be faster, but standard errors come from differences of runs: of fewer, they are too large.
"""

SHARED = 256
"""Queries, neighbours in a batch, whose runs begin at the same places: one finds in cache what others have read."""

FEWEST_RUNS = 32
BUCKETS, PER_NAT = 256, 4

STEPS = 4
"""Sizes of queries that guesses tell apart, in an octave: what depends on them alone is computed once for many.

More make estimates no better: errors of guesses that all groups share cancel.
"""

TRUSTED = 0.25
"""The predicted relative error of far groups up to which the control variate is used: beyond, guesses are poor."""

FLOOR = 1e-3
"""What is added to guessed variances, so that no group is drawn from too little; no prediction counts it."""

_NONE = np.empty(0, np.int64)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Guess(NamedTuple):
    """What is expected of the items of each group, for one query or, with axes for them in front, for several.

    Parameters
    ----------
    log_mean : array, shape (groups,)
        Log of the mean weight of an item.
    variance : array, shape (groups,)
        Variance of an item's weight, less what a control variate takes, in units of its squared mean.
    cell_logits : array, shape (cells,)
        q·(mean of the cell), which the control variate is taken about.
    floor : float, default FLOOR
        What of the variance is no guess.
    """

    log_mean: Any
    variance: Any
    cell_logits: Any
    floor: float = FLOOR


class Plan(NamedTuple):
    """What one query does.

    Parameters
    ----------
    opened : array of int
        Groups whose items are all taken.
    far : array of int
        The other groups.
    top : float
        The largest log mean weight of far groups, which weights and slopes are relative to.
    weights : array, shape (groups in far,)
        Guessed sums of the weights of far groups: draws are in proportion to them.
    runs : int
        How many runs are drawn.
    log_error : float
        Log of the predicted standard error of the sum, −inf if everything is taken.
    slopes : array, shape (cells,)
        Coefficients of q·(y − mean) in the control variate; zeros where it is not to be used.
    """

    opened: Any
    far: Any
    top: float
    weights: Any
    runs: int
    log_error: float
    slopes: Any


def fewest_dots(table: Table) -> int:
    """Return the smallest budget that lets items be drawn."""
    cells, dim = table.means.shape
    return int(cells + dim + FEWEST_RUNS * RUN)


def guess(table: Table, queries: Any) -> Guess:
    """Guess weights exp(q·y): items of a group as normal about the mean of their cell, of the shape that all share.

    The mean of exp over n normal numbers of deviation s is about exp(s²/2) as long as s ≤ c = √(2 log n); beyond, the
    largest number makes up the sum, and the mean is exp(s c − c²/2) (freezing, as in Derrida's random energy model).
    The mean square is the same at 2 s. Here n counts all items: together they reach farther than any one group. The
    size of the query, which s is in proportion to, is rounded.
    """
    logits = queries @ table.means.T
    deviation = rounded(sizes(table, queries))[..., None] * np.sqrt(table.spread, dtype=np.float64)
    log_mean, variance = moments(deviation, np.sqrt(2 * np.log(table.count.sum())))
    return Guess(logits[..., table.cell] + log_mean, variance, logits)


def moments(deviation: Any, edge: Any) -> tuple[Any, Any]:
    """Return the log of the mean weight relative to that of the cell's mean, and the variance, as `Guess` has it."""
    log_mean = _log_mean_exp(deviation, edge)
    apart = _log_mean_exp(2 * deviation, edge) - 2 * log_mean
    return log_mean, np.expm1(apart) - apart + FLOOR


def sizes(table: Table, queries: Any) -> Any:
    """Return the standard deviation of q·y about the mean of the cell where the spread is 1, (...)."""
    return np.sqrt(np.maximum(((queries @ table.shape) * queries).sum(-1), 0))


def rounded(size: Any) -> Any:
    """Return the nearest power of the STEPS-th root of 2; 0 for 0."""
    with np.errstate(divide="ignore"):
        return np.exp2(np.rint(STEPS * np.log2(size)) / STEPS)


def deviations(table: Table, queries: Any) -> Any:
    """Return the standard deviation of q·y about the mean of the cell in each group, (..., groups)."""
    return sizes(table, queries)[..., None] * np.sqrt(table.spread)


def _log_mean_exp(deviation: Any, edge: Any) -> Any:
    low = np.minimum(deviation, edge)
    return low * (deviation - low / 2)


def plan(table: Table, guessed: Guess, budget: int, run: int = RUN, looked: Any = _NONE) -> Plan:
    """Choose the opened groups that minimise the predicted variance, where items are drawn in runs of so many.

    Groups that are to be looked at are opened whatever is guessed of them; the others are chosen for what these leave
    of the budget. What is chosen for its own sake as well leaves room for runs.

    Groups are opened in the order of their second moments per item, bucket by bucket of like ones, and the rest of the
    budget is drawn: the variance of the rest is (Σ w)(Σ w v) / draws for draws in proportion to w. Of groups that are
    far below the largest, that is in the last bucket, as many are opened as if there were no others: guesses of few
    items that lie far out are often too large, and sums lie in what is below.
    """
    count, top = table.count.astype(np.float64), float(guessed.log_mean.max())
    if not np.isfinite(top):
        raise ValueError(f"queries must have dot products with items that fit {table.rows.dtype}")
    budget -= int(table.count[looked].sum())
    if budget >= count.sum() + sum(table.means.shape):
        every, none = np.arange(len(count)), np.arange(0)
        return Plan(every, none, top, none.astype(np.float64), 0, -np.inf, np.zeros(len(table.means)))
    score = 2 * (guessed.log_mean - top) + np.log(guessed.variance)
    highest, first, last = float(score.max()), 0, BUCKETS - 1
    while True:
        bucket = np.clip(first + PER_NAT * (highest - score), 0, last).astype(np.int64)
        weight = count * np.exp(np.minimum(guessed.log_mean - guessed.log_mean[bucket >= first].max(), 0))
        # Sums over what is left are summed: next to the largest groups the others are less than rounding.
        items, weights, noises = (_left(bucket, x) for x in (count, weight, weight * guessed.variance))
        runs = (budget - sum(table.means.shape) - count.sum() + items) // run
        variance = np.where(runs >= FEWEST_RUNS, weights * noises / np.maximum(run * runs, 1), np.inf)
        best = first + int(variance[first:].argmin())
        if bucket[bucket >= best].min() < last:
            break
        # All others are opened: those of the last bucket are told apart, from the second on.
        highest, first = float(score[bucket == last].max()), 1
    far, opened = np.flatnonzero(bucket >= best), np.flatnonzero(bucket < best)
    again = np.isin(looked, opened)
    left = budget - sum(table.means.shape) - int(table.count[opened].sum()) + int(table.count[looked[again]].sum())
    drawn_runs = left // run
    # Relative to the largest of their own: next to opened groups all of them may be less than the smallest number.
    far_top = float(guessed.log_mean[far].max())
    drawn = count[far] * np.exp(guessed.log_mean[far] - far_top)
    square = drawn.sum() * (drawn @ guessed.variance[far]) / (run * drawn_runs)
    slopes = np.zeros(len(table.means))
    if np.sqrt(square) <= TRUSTED * drawn.sum():
        cell = table.cell[far]
        slopes = np.bincount(cell, drawn, len(slopes)) / np.maximum(np.bincount(cell, count[far], len(slopes)), 1)
    predicted = drawn.sum() * (drawn @ guessed.variance[far] - guessed.floor * drawn.sum()) / (run * drawn_runs)
    log_error = far_top + float(np.log(predicted)) / 2 if predicted > 0 else -np.inf
    return Plan(np.concatenate([opened, looked[~again]]), far, far_top, drawn, drawn_runs, log_error, slopes)


def _left(bucket: Any, x: Any) -> Any:
    """Return the sums of x over each bucket and all later ones."""
    return np.cumsum(np.bincount(bucket, x, BUCKETS)[::-1])[::-1]


def uniforms(seed: int, stream: int, count: int) -> Any:
    """Return numbers in [0, 1), (count,), that depend on seed, stream and place alone: those of splitmix64."""
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) + _GOLDEN * np.uint64(stream + 1))
        places = np.arange(1, count + 1, dtype=np.uint64)
        return (_mix(state + _GOLDEN * places) >> np.uint64(11)) * 2.0**-53


def _mix(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Runs(NamedTuple):
    """Drawn items: their rows, (runs, items of a run), their group, and the log of the expected draws of each."""

    rows: Any
    group: Any
    log_expected: Any


def draw_runs(table: Table, planned: Plan, seed: int, query: int, run: int = RUN) -> Runs:
    """Draw runs in proportion to the weights of far groups, one from each of as many equal parts of their total.

    The runs of a group follow each other around it from a random item on, which is the same for SHARED queries.
    """
    ends = np.cumsum(planned.weights)
    at = (np.arange(planned.runs) + uniforms(seed, 2 * query, planned.runs)) / planned.runs * ends[-1]
    place = np.minimum(np.searchsorted(ends, at, side="right"), np.flatnonzero(planned.weights)[-1])
    group, turn = planned.far[place], np.arange(planned.runs) - np.searchsorted(place, place)
    count = table.count[group].astype(np.int64)
    begin = uniforms(seed, 2 * (query // SHARED) + 1, len(table.count))[group]
    first = (np.minimum((begin * count).astype(np.int64), count - 1) + run * turn) % count
    rows = table.start[group][:, None] + (first[:, None] + np.arange(run)) % count[:, None]
    log_expected = np.log(planned.runs * run * planned.weights[place] / ends[-1] / count)
    return Runs(rows, group, np.where(np.isin(group, planned.opened), np.inf, log_expected))


def rows_of(table: Table, groups: Any) -> Any:
    """Return the rows of whole groups, one group after the other."""
    count = table.count[groups].astype(np.int64)
    first = np.cumsum(count) - count
    return np.arange(count.sum()) + np.repeat(table.start[groups] - first, count)
