"""Softmax-weighted means of values of the items: the specification, query by query."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.arguments import check_fit
from rfkernels.catalog.codes import BLOCK, moved
from rfkernels.catalog.estimates import take
from rfkernels.catalog.plan import RUN, Plan, guess, sizes, uniforms
from rfkernels.catalog.plan import rounded as rounded_sizes
from rfkernels.catalog.rays import planned
from rfkernels.catalog.records import Table
from rfkernels.catalog.scans import DEVIATIONS, Shares, choose, limits, scan, shares_in
from rfkernels.catalog.trust import variances

MILD = 0.8, *DEVIATIONS
"""Of logits within cells: up to the first all dot products are with items, as codes tell too little between them.

Of twice as many items half are worth as much as those that codes choose at exp(deviation²) = 2. Beyond the last, codes
are off by too much.
"""

MEANT = 2, 6
"""Between these, one dot product in so many is with items, whose values are averaged; more codes see more of a tail."""

_BLOCK, _TOGETHER = 1 << 14, 64
"""Rows, and queries, that are taken at a time."""


class Weighed(NamedTuple):
    """Means of values, their standard errors, and the deviations of values under the softmax, (queries, width).

    `relative` are relative standard errors of the sums of weights that means are over, (queries,).
    """

    mean: Any
    standard_error: Any
    deviation: Any
    relative: Any


class Taken(NamedTuple):
    """Items of a query: their rows, logits, and logs of what their weights are multiplied by.

    `draws` are the numbers of the draws that items came with, −1 for those that are taken for sure, and `counts` how
    many draws of two kinds there are: numbers of the second kind come behind those of the first.
    """

    rows: Any
    logits: Any
    log_weights: Any
    draws: Any
    counts: tuple[int, int]


def meant(table: Table, budget: int, away: int) -> tuple[Shares | None, ...]:
    """Return what a budget is spent on, as `scans.shares`, for queries of each kind: see `MILD`."""
    if table.codes is None:
        return ()
    return None, *shares_in(table, budget, away, MEANT)


def exact(table: Table, queries: Any, values: Any, log_normalizer: Any) -> Any:
    """Return Σ p v over all items, (queries, width), a block of queries and of rows at a time.

    Weights are divided by their own sum so far: normalizers are of products in the dtype of rows, and tell only whether
    these fit it.
    """
    check_fit(log_normalizer, table.rows.dtype)
    mean, held = np.zeros((len(queries), values.shape[1])), np.flatnonzero(table.ids >= 0)
    for start in range(0, len(queries), _TOGETHER):
        own = slice(start, start + _TOGETHER)
        wide = queries[own].astype(np.float64)
        total, top = np.zeros((len(wide), 1)), np.full((len(wide), 1), -np.inf)
        for first in range(0, len(held), _BLOCK):
            rows = held[first : first + _BLOCK]
            logits, before = wide @ table.rows[rows].T.astype(np.float64), top
            top = np.maximum(before, logits.max(1, keepdims=True))
            weights, kept = np.exp(logits - top), np.exp(before - top) * total
            total = kept + weights.sum(1, keepdims=True)
            with np.errstate(over="ignore", invalid="ignore"):
                mean[own] *= kept / total
                mean[own] += weights / total @ values[table.ids[rows]].astype(np.float64)
    return mean


def expect(table: Table, queries: Any, values: Any, budget: int, seed: int) -> Weighed:
    """Estimate Σ p v for queries (queries, dim), at no more than `budget` dot products each.

    The mean over items that are taken is weighted by exp(q·y) over the expected number of times that each is taken: a
    ratio of unbiased sums. From the first number of `MILD` on, items are taken from those whose codes are read, in
    proportion to what these say of them, large ones for sure: see `scans.estimate_one`.
    """
    spent = *meant(table, budget, len(moved(table))), None
    kinds = np.searchsorted(limits(table, MILD), rounded_sizes(sizes(table, queries.astype(np.float64))))
    found = []
    for i, query in enumerate(queries.astype(np.float64)):
        own, guessed, given = spent[min(int(kinds[i]), len(spent) - 1)], guess(table, query), None
        if own is not None:
            chosen = planned(table, query, guessed, own.scanned + sum(table.means.shape), BLOCK)
            given = by_codes(table, query, chosen, own, seed, i)
        if given is None:
            chosen = planned(table, query, guessed, budget)
            given = by_rows(table, query, chosen, seed, i)
        check_fit(given.logits[None], table.rows.dtype)
        found.append(weigh(given, chosen, values[table.ids[given.rows]]))
    shape = (0, values.shape[1])
    none = Weighed(np.empty(shape), np.empty(shape), np.empty(shape), np.empty(0))
    return Weighed(*map(np.array, zip(*found, strict=True))) if found else none


def by_rows(table: Table, query: Any, chosen: Plan, seed: int, place: int) -> Taken:
    """Take what `estimates.estimate` takes where it reads no codes."""
    rows, sure, runs = take(table, chosen, seed, place)
    number = 0 if runs is None else len(runs.rows)
    log_weights = np.zeros(len(rows))
    if runs is not None:
        log_weights[sure:] = np.repeat(-runs.log_expected, RUN)
    draws = np.concatenate([np.full(sure, -1), np.repeat(np.arange(number), RUN)])
    return Taken(rows, table.rows[rows] @ query, log_weights, draws, (0, number))


def by_codes(table: Table, query: Any, chosen: Plan, spent: Shares, seed: int, place: int) -> Taken | None:
    """Take items in proportion to w b h, as `scans.estimate_one` calls what it knows of them from codes.

    What is drawn are items of opened groups, one by one, and runs, with all of their items that are taken. None where
    codes tell nothing of too many.
    """
    seen = scan(table, query, seed, place, chosen, guess(table, query).cell_logits)
    if seen.untold > spent.checked // 2:
        return None
    at = uniforms(seed, 2 * place, len(seen.begins) + spent.checked)[len(seen.begins) :]
    size = seen.boosts * np.exp(seen.logits - seen.logits.max())
    checks = choose(np.exp(seen.log_weights) * size, spent.checked - seen.untold, at)
    taken, large = np.concatenate([checks.large, checks.others]), len(checks.large)
    with np.errstate(divide="ignore"):
        drawn = np.log(checks.distance) - np.log(size[checks.others])
    log_weights = np.concatenate([seen.log_weights[checks.large], drawn])
    first = seen.begins[0] if len(seen.begins) else len(seen.rows)
    draws = np.full(len(taken), -1)
    single = np.flatnonzero((np.arange(len(taken)) >= large) & (taken < first))
    draws[single] = np.arange(len(single))
    runs = taken >= first
    draws[runs] = len(single) + np.searchsorted(seen.begins, taken[runs], side="right") - 1
    rows = seen.rows[taken]
    return Taken(rows, table.rows[rows] @ query, log_weights, draws, (len(single), len(seen.begins)))


def weigh(given: Taken, chosen: Plan, values: Any) -> tuple[Any, Any, Any, float]:
    """Return the weighted mean of values (items, width), its standard error, deviations, and the relative error.

    Differences of neighbouring draws show how much sums vary. What is predicted of the sum of weights beyond that, as
    `trust.variances` has it, is counted as if values varied along with it as they do under the softmax, once at most.
    So is the part that one draw has: equal items get as many draws as they should to within one, which differences of
    draws inside a group do not show.
    """
    log = given.logits + given.log_weights
    top = float(log.max())
    weights, values = np.exp(log - top), values.astype(np.float64)
    total = float(weights.sum())
    mean = weights @ values / total
    deviation = np.sqrt(weights @ (values - mean) ** 2 / total)
    single, runs = given.counts
    square, seen, beyond = np.zeros(values.shape[1]), 0.0, 0.0
    for first, count in ((0, single), (single, runs)):
        own = (given.draws >= first) & (given.draws < first + count)
        parts = np.zeros((count, values.shape[1] + 1))
        moved = np.column_stack([values[own] - mean, np.ones(np.count_nonzero(own))])
        np.add.at(parts, given.draws[own] - first, weights[own, None] / total * moved)
        own_square = _differences(parts)
        square, seen = square + own_square[:-1], seen + own_square[-1]
        if first == single and count > 1:
            beyond = variances(parts[:, -1], top + np.log(total), chosen)[1]
    one = float(weights[given.draws >= 0].sum()) / total / max(single + runs, 1)
    square += min(beyond + one**2, 1.0) * deviation**2
    return mean, np.sqrt(square), deviation, float(np.sqrt(seen + beyond))


def _differences(parts: Any) -> Any:
    """Return the squared error of sums over draws, (draws, width), from differences of neighbours."""
    if len(parts) < 2:
        return (parts**2).sum(0)
    pairs = parts[: len(parts) // 2 * 2].reshape(-1, 2, parts.shape[1])
    return ((pairs[:, 0] - pairs[:, 1]) ** 2).sum(0) * len(parts) / (2 * len(pairs))
