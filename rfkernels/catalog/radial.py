"""Sums of kernels that are functions of a distance from a point, as the Gaussian is: the specification, query by query.

A log of x·y + κ (|x|² + |y|²), with κ not 0, nor next to it, is κ |y − p|² + a constant, where p = −x / (2κ): the
squared distance of items from a point, x itself for the Gaussian. Distances keep their digits where products of points
far from the origin would cancel. What is guessed of groups, and logs of any other form, are known by a `Profile`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog import profiles, scans, spheres
from rfkernels.catalog.codes import BLOCK, ROUNDED, cost, moved, residuals, rounded, squares, variances
from rfkernels.catalog.estimates import take
from rfkernels.catalog.known import OfTables
from rfkernels.catalog.plan import RUN, Guess, Plan, plan, uniforms
from rfkernels.catalog.profiles import Outline, Profile, outline_of, profile_of
from rfkernels.catalog.records import Estimate, Table
from rfkernels.catalog.scans import CHECKED, NOTHING, Scanned, Shares, shares_in
from rfkernels.catalog.tables import typical_spread
from rfkernels.catalog.trust import trusted_error
from rfkernels.kernels import Kernel

SHARE = 0.1
"""How much of the mean guess every item gets besides its own: no item is left out because a guess was bad."""

FLAT = 0.1
"""The size of norm weights below which kernels are not seen as functions of a distance: points would lie too far away
for distances to keep what matters.
"""

UNEVEN = 600.0
"""The largest log of how much the mean square of weights may exceed the square of their mean in a guess."""

AT_MOST = 300.0
"""By how much an item at a point itself is taken to weigh more than others, in the log: numbers have to fit both."""

NEARER = 0.15
"""By what part of their distance from the anchor, squared, codes may be off of an item at the point itself."""

CODED = 3.5
"""Dimensions, in effect, from which on codes are read: in fewer, more items are about as near as the nearest than are
checked, and groups tell enough of where these are.
"""

TEMPERED, UNSURE = 1.5, 4.0
"""What codes say of an item, h, is off by a factor whose log has a variance v, of which so much counts at most.

With exp(−v TEMPERED) h in its place, as far as that is normal, an item is off by the least in the mean square: codes
that know little count for little, and what they rate too high does not make sums vary.
"""

HOPELESS = 100.0
"""The variance of what codes say, near a point, beyond which they are not read: they no longer tell items apart."""

_BLOCK = 1 << 16
"""Rows that are taken at a time."""


class Points(NamedTuple):
    """What sums of exp(g(factor |y − p|²) + constant) are of.

    Parameters
    ----------
    points : array, shape (queries, dim)
        p, in float64.
    factor : float
        Of the squared distance, not 0.
    constant : array, shape (queries,)
        What belongs to queries alone.
    profile : Profile
        g of squared distances times the size of the factor, or what is as large.
    linear : bool
        Whether g is the identity, as it is of kernels with a norm weight; the factor is above 0 where it is not.
    home : array of int, shape (queries,)
        The group that p would join as an item, −1 for none.
    """

    points: Any
    factor: float
    constant: Any
    profile: Profile
    linear: bool
    home: Any


SIGNED = {
    -1: Kernel.of_distance("falling", lambda xp, squared: -squared),
    1: Kernel.of_distance("rising", lambda xp, squared: squared),
}
"""Kernels of a norm weight below 0 and above, from squared distances times its size."""


def points_of(table: Table, queries: Any, norm_weight: float, scale: float) -> Points:
    """Return what a kernel of a norm weight other than 0 is, where x·y, |x|² and |y|² are multiplied by a scale."""
    wide, beside = queries.astype(np.float64), scale * (norm_weight - 1 / (4 * norm_weight))
    factor, kernel = scale * norm_weight, SIGNED[1 if norm_weight > 0 else -1]
    with np.errstate(over="ignore", invalid="ignore"):
        points, constant = -wide / (2 * norm_weight), beside * (wide * wide).sum(-1)
    profile = profile_of(kernel, _outline(table), abs(factor), points)
    return Points(points, factor, constant, profile, True, np.full(len(points), -1))


def points_from(table: Table, queries: Any, kernel: Kernel, scale: float) -> Points:
    """Return what a kernel that has a profile is, where squared distances are multiplied by a scale."""
    wide = queries.astype(np.float64)
    profile = profile_of(kernel, _outline(table), scale, wide)
    return Points(wide, scale, np.zeros(len(wide)), profile, False, np.full(len(wide), -1))


def _outlined(table: Table) -> Outline:
    dim = dimension(table)
    return outline_of(table, dim, float(spheres.edge(np, dim, float(table.count.sum()))))


_outline = OfTables(_outlined)


def dimension(table: Table) -> float:
    """Return in how many dimensions, in effect, items lie near each other: see `spheres.dimension`."""
    return float(spheres.dimension(np, table.shape.astype(np.float64)))


def guess(table: Table, point: Any, given: Points, home: int) -> Guess:
    """Guess mean and variance of a group's weights exp(g(factor |y − p|²)): items as evenly spread over a sphere.

    About the mean m of the cell, |y − p|² = |m − p|² + |y − m|² + 2 (m − p)·(y − m), of which the second term is
    taken to be that of all items of the group, and the third to have the law of a coordinate on a sphere. Of none of
    these is an item at the point itself, which only the group that is its home can have: there one is taken to be.
    """
    square, spread = ((table.means.astype(np.float64) - point) ** 2).sum(1), table.spread.astype(np.float64)
    size = abs(given.factor)
    each, uneven = profiles.guessed(given.profile, size * square, table.cell, size * spread)
    top = float(each.max())
    own = np.exp(each - top)
    floor = SHARE * float(table.count @ own) / float(table.count.sum())
    if home >= 0:
        nearest = min(given.profile.nearest, top + AT_MOST)
        log, uneven[home] = with_item(np, each[home], uneven[home], nearest, table.count[home])
        own[home] = np.exp(log - top)
    mean = own + floor
    excess = np.exp(np.clip(uneven, 0, UNEVEN)) - 1
    return Guess(top + np.log(mean), excess * (own / mean) ** 2 + SHARE, np.zeros(len(table.means)), floor=0.0)


def with_item(xp: Any, log: Any, uneven: Any, own: Any, count: Any) -> tuple[Any, Any]:
    """Return logs of the mean weight, and of the mean square less twice that, where one of the items has a log more."""
    mean = xp.logaddexp(log, own - xp.log(count))
    return mean, xp.logaddexp(2 * log + uneven, 2 * own - xp.log(count)) - 2 * mean


def spent_on(table: Table, budget: int, away: int) -> Shares | None:
    """Return what a budget is spent on, where so many cells have moved; None if all of it is on items."""
    coded = table.codes is not None and dimension(table) >= CODED
    return shares_in(table, budget, away, CHECKED[:1])[0] if coded else None


def reach_of(table: Table, factor: float) -> float:
    """Return the largest size of g'² factor |m − p|², m the nearest mean of a cell, where codes are read.

    Codes are off by ROUNDED times the variance that 2 g' factor (m − p)·(y − m) has: see `HOPELESS`.
    """
    spread = np.float64(typical_spread(table))
    with np.errstate(divide="ignore"):
        return float(HOPELESS * table.rows.shape[1] / (4 * ROUNDED * abs(factor) * spread))


def radial_sums(table: Table, given: Points, budget: int, seed: int) -> Estimate:
    """Estimate log Σ exp(g(factor |y − p|²) + constant) over the items, at no more than `budget` dot products each."""
    found = [one_radial_sum(table, given, budget, seed, i) for i in range(len(given.points))]
    log, error, dots = zip(*found, strict=True) if found else ((), (), ())
    return Estimate(np.array(log, np.float64), np.array(error, np.float64), np.array(dots, np.int64))


@np.errstate(over="ignore", invalid="ignore")
def exact_radial_sums(table: Table, given: Points) -> Estimate:
    """Return log Σ exp(g(factor |y − p|²) + constant) over all items."""
    rows, out = np.flatnonzero(table.ids >= 0), np.full(len(given.points), -np.inf)
    for i, point in enumerate(given.points):
        for first in range(0, len(rows), _BLOCK):
            part = _logits(table, point, given, rows[first : first + _BLOCK])
            out[i] = np.logaddexp(out[i], _total(part)[0])
    out = out if given.linear else ended(out)
    return Estimate(out + given.constant, np.zeros(len(out)), np.full(len(out), len(rows)))


@np.errstate(over="ignore", invalid="ignore")
def one_radial_sum(table: Table, given: Points, budget: int, seed: int, place: int) -> tuple[float, float, int]:
    """Return the log of one of the sums, its relative standard error, and the dot products that it is worth."""
    away = len(moved(table))
    spent, point = spent_on(table, budget, away), given.points[place]
    log, error, dots = np.nan, np.nan, 0
    nearest = abs(given.factor) * ((table.means.astype(np.float64) - point) ** 2).sum(1)[table.cell].min()
    slope = 1.0 if given.linear else profiles.coded(given.profile, nearest)[1]
    if spent is not None and slope**2 * nearest <= reach_of(table, given.factor):
        log, error, dots = _by_codes(table, point, given, spent, seed, place)
    if np.isnan(log):
        log, error, dots = _by_rows(table, point, given, budget, seed, place)
    log = log if given.linear else float(ended(log))
    return log + float(given.constant[place]), error, dots


def ended(log: Any) -> Any:
    """Return logs of sums of which nothing was seen but zeros as they are."""
    return np.where(log < NOTHING / 2, -np.inf, log)


def _logits(table: Table, point: Any, given: Points, rows: Any) -> Any:
    squares = given.factor * ((table.rows[rows].astype(np.float64) - point) ** 2).sum(-1)
    return squares if given.linear else np.maximum(given.profile.log(squares), NOTHING)


def _chosen(table: Table, given: Points, place: int, budget: int, run: int) -> Plan:
    """Return what is taken; there is no control variate, as items far away would make it vary more than the sum."""
    found = plan(table, guess(table, given.points[place], given, int(given.home[place])), budget, run)
    return found._replace(slopes=np.zeros_like(found.slopes))


def _by_rows(table: Table, point: Any, given: Points, budget: int, seed: int, place: int) -> tuple[float, float, int]:
    """Return log, relative standard error, and dot products, as `estimates.estimate` where no codes are read."""
    chosen = _chosen(table, given, place, budget, RUN)
    rows, sure, runs = take(table, chosen, seed, place)
    logits, dots = _logits(table, point, given, rows), len(rows) + sum(table.means.shape)
    if runs is None:
        return _total(logits)[0], 0.0, dots
    logits[sure:] -= np.repeat(runs.log_expected, RUN)
    log, weights = _total(logits)
    return log, trusted_error(weights[sure:].reshape(-1, RUN).sum(1), log, chosen), dots


def _total(logits: Any) -> tuple[float, Any]:
    """Return the log of a sum of exponentials, and what part of it each is."""
    top = float(logits.max())
    if top == -np.inf:
        return top, np.zeros_like(logits)
    weights = np.exp(logits - top)
    total = float(weights.sum())
    return top + float(np.log(total)), weights / total


def _by_codes(
    table: Table, point: Any, given: Points, spent: Shares, seed: int, place: int
) -> tuple[float, float, int]:
    """Return the same from codes, as `scans.estimate_one` has it without a control variate."""
    chosen = _chosen(table, given, place, spent.scanned + sum(table.means.shape), BLOCK)
    seen = _scan(table, point, given, scans.listed(table, seed, place, chosen), int(given.home[place]))
    at = uniforms(seed, 2 * place, len(seen.begins) + spent.checked)[len(seen.begins) :]
    exact = partial(_logits, table, point, given)
    none = chosen.slopes
    log, error, checked = scans.summed(exact, chosen, none, seen, none, spent.checked, at, widened=True)
    dots = sum(table.means.shape) + len(moved(table)) + checked + int(np.ceil(cost(table) * len(seen.rows)))
    return log, error, dots


def _scan(table: Table, point: Any, given: Points, listed: scans.Listed, home: int) -> Scanned:
    """Say what codes say: |y − p|² = |a − p|² + 2 (a − p)·(y − a) + |y − a|², with a where codes of a cell count from.

    Codes know the last two terms.
    """
    cells, anchors, factor = table.cell[listed.groups], table.anchors.astype(np.float64), given.factor
    away = ((anchors - point) ** 2).sum(1)
    if home >= 0 and not given.linear:
        away[table.cell[home]] *= 1 - NEARER
    logits = factor * (away[cells] + squares(table, listed.rows))
    variance = np.empty(len(cells))
    for cell in np.unique(cells):
        own = np.flatnonzero(cells == cell)
        query = rounded(2 * factor * (anchors[cell] - point), table.scales)
        logits[own] += residuals(table, listed.rows[own], query)
        variance[own] = variances(table, listed.rows[own], query)
    if not given.linear:
        logits, slope = profiles.coded(given.profile, logits)
        variance *= slope**2
    variance = np.minimum(variance, UNSURE)
    return scans.scanned(listed, cells, logits - TEMPERED * variance, (1 + TEMPERED) * variance)
