"""Estimates of sums from the codes of many items, put right by dot products with a few: the specification.

Codes cost a fraction of a dot product, so that many more items are looked at; what they say is off by their rounding.
Of the items looked at, some are taken again in proportion to what they add to the sum, and dot products with these say
by how much all are off, without bias.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.codes import BLOCK, cost, logits_of, moved, rounded, variances
from rfkernels.catalog.plan import FEWEST_RUNS, Guess, Plan, draw_runs, rows_of, sizes, uniforms
from rfkernels.catalog.plan import rounded as rounded_sizes
from rfkernels.catalog.rays import planned
from rfkernels.catalog.records import Table
from rfkernels.catalog.tables import typical_spread
from rfkernels.catalog.trust import trusted_error, widening

DEVIATIONS = 1.5, 20.0
"""Of logits within cells: from the first on few items make up most of a sum, and above all they must be met.

Up to the second codes are of use, which are off by a tenth of it: less than the largest of many logits lie apart.
"""

CHECKED, FEWEST_CHECKS = (6, 12), 32
"""Up to each of these, one dot product in so many is spent on items that are taken again; and on how many at least.

With more of them, estimates err less by rounding, and more by what is not looked at.
"""

MOST = 12.0
"""The largest variance of a logit by rounding: codes of more tell nothing. What they might hide would also take all dot
products from items that hold the sum, which would count as their codes say.

Of blocks with more, items are taken instead, as far as half of those that are taken again suffices: else codes are not
read at all.
"""

SMALLEST = float(np.finfo(np.float32).tiny)
"""The least size from which on items are taken again for sure: below, single precision would take all for large."""

RESOLVED = 2.0**-60
"""What a sum must be at least, relative to the largest weight as codes have it: in less, single precision is lost."""

CANCELLED = 0.125
"""What is left of a sum of few items that are taken again must be more of what codes say: else that cancels.

So it does where codes rate all items far too high, as they do logs of kernels far from all items.
"""

NOTHING = -(2.0**100)
"""Stands for the log of 0, which no arithmetic is to meet."""

TELLING = 1 / 32
"""What variance checks must show, as a part of that of items which none may have met, for half of that not to count."""

ROUNDS = 3
"""How often it is seen anew which items are large enough to be taken again for sure."""


class Shares(NamedTuple):
    """What a budget is spent on: codes of so many items, and dot products with so many of these."""

    scanned: int
    checked: int


def shares(table: Table, budget: int, away: int) -> tuple[Shares | None, ...]:
    """Return what a budget is spent on besides cells, `away` of which have moved; None where codes are of no use.

    The first is for queries that let logits deviate by less within cells, and so on: see `kinds`.
    """
    if table.codes is None:
        return (None,) * len(CHECKED)
    return shares_in(table, budget, away, CHECKED)


def shares_in(table: Table, budget: int, away: int, parts: tuple[int, ...]) -> tuple[Shares | None, ...]:
    """Return what a budget is spent on where one dot product in so many is on items, for each of `parts`."""
    rest, items = budget - sum(table.means.shape) - away, int(table.count.sum())
    return tuple(_shares(rest, items, cost(table), part) for part in parts)


def _shares(rest: int, items: int, price: float, part: int) -> Shares | None:
    checked = max(FEWEST_CHECKS, rest // part)
    scanned = int((rest - checked) / price)
    if scanned >= items:
        return Shares(items, min(items, rest - int(np.ceil(price * items))))
    return Shares(scanned, checked) if scanned >= FEWEST_RUNS * BLOCK else None


def limits(table: Table, deviations: tuple[float, ...] = DEVIATIONS) -> Any:
    """Return the sizes of queries up to which logits deviate by no more than each of some numbers within cells."""
    with np.errstate(divide="ignore"):
        return np.array(deviations) / np.sqrt(typical_spread(table))


def kinds(table: Table, queries: Any) -> Any:
    """Return which of `shares` queries take, (queries,); there is none for those that codes are of no use for."""
    return np.searchsorted(limits(table), rounded_sizes(sizes(table, queries)))


class Checks(NamedTuple):
    """Places of items that are taken again: large ones for sure, and others from each of equal parts of the sizes."""

    large: Any
    others: Any
    distance: float


def choose(given: Any, count: int, at: Any) -> Checks:
    """Choose at most so many of items of given sizes, (items,); `at` in [0, 1) are places in equal parts, (count,)."""
    least = max(float(given.sum()) / count, SMALLEST)
    for _ in range(ROUNDS):
        large = given >= least
        left, number = float(given[~large].sum()), count - int(np.count_nonzero(large))
        if left <= 0 or number <= 0:
            break
        least = max(left / number, SMALLEST)
    large = given >= least
    ends = np.cumsum(np.where(large, 0, given))
    total = float(ends[-1])
    number = max(1, round(total / least)) if total > 0 else 0
    distance = total / max(number, 1)
    places = np.searchsorted(ends, (np.arange(number) + at[:number]) * distance, side="right")
    if number:
        places = np.minimum(places, np.flatnonzero(~large & (given > 0))[-1])
    return Checks(np.flatnonzero(large), places, distance)


class Scanned(NamedTuple):
    """Items whose codes were read: rows, cells, what codes say of logits, and logs of weights; runs come last.

    `begins` are the places where runs begin among all of them, and `boosts` what sizes of items grow by, as codes of
    the block may be off. Of so many items codes tell nothing: logits are theirs.
    """

    rows: Any
    cells: Any
    logits: Any
    log_weights: Any
    begins: Any
    boosts: Any
    untold: int


class Listed(NamedTuple):
    """Items whose codes are to be read: rows, the group of each, and logs of weights; runs come last.

    `begins` are the places where runs begin among all of them, and `blocks` where new blocks do.
    """

    rows: Any
    groups: Any
    log_weights: Any
    begins: Any
    blocks: Any


def listed(table: Table, seed: int, place: int, chosen: Plan) -> Listed:
    """Return what was chosen.

    A run is what a group has in a block of codes, that of the item where a run of items would begin: an item is in
    it with the share of the group's items that the block has.
    """
    rows, counts = rows_of(table, chosen.opened), table.count[chosen.opened]
    groups, log_weights, begins = np.repeat(chosen.opened, counts), np.zeros(len(rows)), np.arange(0)
    own = np.flatnonzero(np.diff(groups * len(table.codes) + rows // BLOCK, prepend=-1))
    if len(chosen.far):
        runs = draw_runs(table, chosen, seed, place, BLOCK)
        first, last = table.start[runs.group], table.start[runs.group] + table.count[runs.group]
        begin = runs.rows[:, 0] // BLOCK * BLOCK
        low, high = np.maximum(begin, first), np.minimum(begin + BLOCK, last)
        size = high - low
        begins = len(rows) + np.cumsum(size) - size
        rows = np.concatenate([rows, np.repeat(high - np.cumsum(size), size) + np.arange(size.sum())])
        groups = np.concatenate([groups, np.repeat(runs.group, size)])
        expected = runs.log_expected + np.log(size / BLOCK)
        log_weights = np.concatenate([log_weights, np.repeat(-expected, size)])
        own = np.append(own, begins)
    return Listed(rows, groups, log_weights, begins, own)


def scan(table: Table, query: Any, seed: int, place: int, chosen: Plan, cell_logits: Any) -> Scanned:
    """Read the codes of what was chosen."""
    given = listed(table, seed, place, chosen)
    cells = table.cell[given.groups]
    logits = logits_of(table, query, given.rows, cells, cell_logits)
    variance = variances(table, given.rows, rounded(query, table.scales))
    sizes = np.diff(given.blocks, append=len(given.rows))
    untold = np.repeat(np.maximum.reduceat(variance, given.blocks) >= MOST, sizes)
    logits[untold], variance[untold] = table.rows[given.rows[untold]] @ query, 0.0
    return scanned(given, cells, logits, variance, int(untold.sum()))


def scanned(given: Listed, cells: Any, logits: Any, variance: Any, untold: int = 0) -> Scanned:
    """Return what codes say, where rounding lets logits vary so much."""
    most = np.maximum.reduceat(variance, given.blocks)
    boosts = np.repeat(np.exp(most), np.diff(given.blocks, append=len(given.rows)))
    return Scanned(given.rows, cells, logits, given.log_weights, given.begins, boosts, untold)


def estimate_one(
    table: Table, query: Any, guessed: Guess, spent: Shares, seed: int, place: int
) -> tuple[float, float, int]:
    """Return the estimate of log Σ exp(q·y), its relative standard error, and the dot products it is worth.

    With h = exp of what codes say, f = exp(q·y), w the weights of items and s the slopes of the control variate,
    Σ w (h − s l̃) is the sum as codes have it. What Σ w (f − h − s (l − l̃)) adds is estimated from items in proportion
    to w (b h + s): large ones once, with their own weight, others from equal parts of the sum. Here b = exp(v), with v
    the largest variance that rounding may give logits of the block: f is h exp(v) in the root mean square.
    """
    chosen = planned(table, query, guessed, spent.scanned + sum(table.means.shape), BLOCK)
    seen = scan(table, query, seed, place, chosen, guessed.cell_logits)
    if seen.untold > spent.checked // 2:
        return np.nan, np.nan, 0
    at = uniforms(seed, 2 * place, len(seen.begins) + spent.checked)[len(seen.begins) :]
    exact, count = partial(_products, table, query), spent.checked - seen.untold
    log, error, checked = summed(exact, chosen, guessed.cell_logits, seen, chosen.slopes, count, at)
    if not np.isfinite(log) and chosen.slopes.any():  # only where the error is larger than the sum itself
        none = np.zeros_like(chosen.slopes)
        log, error, checked = summed(exact, chosen, guessed.cell_logits, seen, none, count, at)
    dots = sum(table.means.shape) + len(moved(table)) + checked + seen.untold
    return log, error, dots + int(np.ceil(cost(table) * len(seen.rows)))


def _products(table: Table, query: Any, rows: Any) -> Any:
    return table.rows[rows] @ query


def summed(
    products: Callable[[Any], Any],
    chosen: Plan,
    cell_logits: Any,
    seen: Scanned,
    slopes: Any,
    count: int,
    at: Any,
    widened: bool = False,
) -> tuple[float, float, int]:
    """Return the log of a sum, its relative standard error, and how many items were taken again.

    `products` returns the logits of rows, and `at` are places in [0, 1) of what is taken again. Errors of few of these
    may be widened, see `trust.widening`, and sums that cancel are then none.
    """
    top, weight = float(seen.logits.max()), np.exp(seen.log_weights)
    if slopes.any():
        top = max(top, chosen.top)
    near = np.exp(seen.logits - top)
    slope = slopes[seen.cells] * np.exp(chosen.top - top) if slopes.any() else np.zeros(len(near))
    size = seen.boosts * near + slope
    checks = choose(weight * size, count, at)
    taken = np.concatenate([checks.large, checks.others])
    exact, large = products(seen.rows[taken]), len(checks.large)
    if (exact == NOTHING).all():  # what codes say beside that is noise
        return -np.inf, np.inf, len(taken)
    with np.errstate(over="ignore", invalid="ignore"):
        right = np.exp(exact - top)
        off = (right - near[taken] - slope[taken] * (exact - seen.logits[taken]))[large:]
    others = checks.distance * off / size[checks.others]
    logits = seen.logits.copy()
    near[checks.large], logits[checks.large] = right[:large], exact[:large]
    parts = weight * (near - slope * (logits - cell_logits[seen.cells]))
    total = parts.sum() + others.sum()
    least = max(RESOLVED * np.exp(seen.logits.max() - top), CANCELLED * parts.sum() if widened else 0.0)
    if not least < total < np.inf:
        return np.nan, np.nan, len(taken)
    log = float(top + np.log(total))
    own = 0.0
    if len(seen.begins):
        own = trusted_error(np.add.reduceat(parts, seen.begins) / total, log, chosen)
    pairs = others[: len(others) // 2 * 2].reshape(-1, 2) / total
    squares = (pairs[:, 0] - pairs[:, 1]) ** 2
    apart = float(squares.sum())
    square = apart * len(others) / max(pairs.size, 1)
    if widened:
        square *= widening(apart, float((squares**2).sum()))
    if len(others) == 1:  # nothing to compare it with
        square = float(others[0] / total) ** 2
    left = slope == 0
    left[checks.large] = False
    missed = checks.distance * unmet(seen.boosts[left], (weight * size)[left], checks.distance) / total**2
    return log, float(np.hypot(own, np.sqrt(square + untold(square, missed)))), len(taken)


def unmet(boosts: Any, sizes: Any, distance: float) -> float:
    """Return what items that are not taken again may be off by, in the mean square, relative to a distance.

    They are without a control variate: beside one much less is left of what rounding does.

    An item adds (f − h) / (b h), with f and h as in `estimate_one` and b = exp(v): 1 − 1 / b in the mean square or so,
    and half of that for most items of a block, as v is the largest there. What no check has met is that of all items,
    or of as many as one check stands for.
    """
    square = (1 - 1 / boosts) / 2
    return min(float(square @ sizes), distance * float(square.max(initial=0)))


def untold(square: float, missed: float) -> float:
    """Return what counts of a variance of items that may not have been met, where differences of checks show a square.

    It is almost all where these are next to nothing, as where all checks met equal items: that tells of no others.
    """
    return missed / (1 + (square / missed / TELLING) ** 2) if square < missed else 0.0
