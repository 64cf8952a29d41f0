"""Sums of other kernels than exp(q·y) over all items: groups by what four points of each say, items by chance."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np

from rfkernels.catalog import engines, pilots
from rfkernels.catalog.arguments import check_fit, check_logs, takes_all
from rfkernels.catalog.homes import homes, looked
from rfkernels.catalog.plan import Guess, deviations, draw_runs, fewest_dots, plan, rows_of
from rfkernels.catalog.radial import FLAT, SHARE, Points, points_from, points_of
from rfkernels.catalog.records import Estimate, Table
from rfkernels.catalog.trust import trusted_error
from rfkernels.kernels import Kernel

_BLOCK = 1 << 16
NODES = np.array([-2.3344142183389773, -0.7419637843027258, 0.7419637843027258, 2.3344142183389773])
NODE_WEIGHTS = np.array([0.0458758547680685, 0.4541241452319315, 0.4541241452319315, 0.0458758547680685])
"""Four points that stand for a normal number: Gauss-Hermite quadrature. Two show nothing of tails."""


def estimated(
    table: Table, queries: Any, kernel: Scaled, budget: int, error: float | None, seed: int, backend: str
) -> Estimate:
    """Estimate log Σ k(q, y) over the items, with as many dot products as a relative error asks for."""
    found = _estimated(table, queries, kernel, budget, seed, backend)
    if error is None:
        return found

    def again(same: Any, own: int) -> Estimate:
        better = _estimated(table, queries[same], kernel, own, pilots.seed_of(seed, -1), backend)
        return better._replace(dots=found.dots[same] + better.dots)

    return pilots.aimed(found, found.standard_error / error, budget, int(table.count.sum()), again)


def _estimated(table: Table, queries: Any, kernel: Scaled, budget: int, seed: int, backend: str) -> Estimate:
    exact = takes_all(table, budget)
    engine, given = engines.choose(backend), _points(table, queries, kernel)
    if kernel.kernel.norm_weight == 0:
        scaled = queries.astype(np.float64) * kernel.scale
        found = engine.exact(table, scaled) if exact else engine.estimate(table, scaled, budget, seed)
    elif given is not None:
        found = engine.exact_radial(table, given) if exact else _radial(engine, table, given, budget, seed)
    elif exact:
        return exact_kernel_sums(table, queries, kernel)
    else:
        return kernel_sums(table, queries, kernel, budget, seed)
    if given is not None and not given.linear:
        check_logs(kernel.kernel, found.log_normalizer)
    check_fit(found.log_normalizer, table.rows.dtype)
    return found


def _radial(engine: Any, table: Table, given: Points, budget: int, seed: int) -> Estimate:
    """Estimate with the homes of points known, where that leaves enough to draw items."""
    more = looked(table.means)
    if table.centres is None or budget - more < fewest_dots(table):
        return cast(Estimate, engine.radial(table, given, budget, seed))
    found: Estimate = engine.radial(table, given._replace(home=homes(table, given.points)), budget - more, seed)
    return found._replace(dots=found.dots + more)


def _points(table: Table, queries: Any, kernel: Scaled) -> Points | None:
    """Return what a kernel is as a function of distances; None if it is none."""
    norm_weight = kernel.kernel.norm_weight
    if not len(table.count):
        return None
    if norm_weight is not None and abs(norm_weight) >= FLAT:
        return points_of(table, queries, norm_weight, kernel.scale)
    return None if kernel.kernel.profile is None else points_from(table, queries, kernel.kernel, kernel.scale)


def kernel_sums(table: Table, queries: Any, kernel: Scaled, budget: int, seed: int) -> Estimate:
    """Estimate log Σ k(q, y) over the items, as `estimates.estimate` but without control variates."""
    found = [_one(table, query, kernel, budget, seed, i) for i, query in enumerate(queries.astype(np.float64))]
    log, error, dots = zip(*found, strict=True) if found else ((), (), ())
    return Estimate(np.array(log, np.float64), np.array(error, np.float64), np.array(dots, np.int64))


class Scaled(NamedTuple):
    """A kernel of points that are multiplied by √scale first."""

    kernel: Kernel
    scale: float

    def log(self, dot: Any, xx: Any, yy: Any) -> Any:
        """Return log k from q·y, |q|² and |y|² of the points as they are."""
        return self.kernel.log(np, self.scale * dot, self.scale * xx, self.scale * yy)


def logs(table: Table, rows: Any, query: Any, kernel: Scaled) -> Any:
    """Return log k(q, y) for rows of the table."""
    items = np.asarray(table.rows[rows], np.float64)
    return kernel.log(items @ query, query @ query, (items * items).sum(-1))


def exact_kernel_sums(table: Table, queries: Any, kernel: Scaled) -> Estimate:
    """Return log Σ k(q, y) over all items."""
    rows = rows_of(table, np.arange(len(table.count)))
    out = np.full(len(queries), -np.inf)
    for i, query in enumerate(queries.astype(np.float64)):
        for first in range(0, len(rows), _BLOCK):
            out[i] = np.logaddexp(out[i], np.logaddexp.reduce(logs(table, rows[first : first + _BLOCK], query, kernel)))
    return Estimate(out, np.zeros(len(queries)), np.full(len(queries), len(rows)))


def guess(table: Table, query: Any, kernel: Scaled) -> Guess:
    """Guess mean and variance of a group's kernels, q·y taken as normal about the mean of its cell, at four points."""
    logits = table.means @ query
    away = deviations(table, query)
    norms = (table.means**2).sum(1)[table.cell] + table.spread
    square = query @ query
    reach = np.sqrt(square * norms)  # no product is larger: a distance stays one
    dots = [np.clip(logits[table.cell] + z * away, -reach, reach) for z in NODES]
    with np.errstate(divide="ignore"):
        each = np.stack([kernel.log(dot, square, norms) for dot in dots])
        each = each if (each > -np.inf).any() else np.zeros_like(each)  # nothing tells groups apart
        top = float(each.max())
        values = np.exp(each - top)
        own, square = NODE_WEIGHTS @ values, NODE_WEIGHTS @ values**2
        mean = own + SHARE * float(table.count @ own / table.count.sum())
        variance = np.maximum(square - own**2, 0) / mean**2 + SHARE
    return Guess(top + np.log(mean), variance, logits, floor=0.0)


def _one(table: Table, query: Any, kernel: Scaled, budget: int, seed: int, place: int) -> tuple[float, float, int]:
    chosen = plan(table, guess(table, query, kernel), budget)
    exact = logs(table, rows_of(table, chosen.opened), query, kernel)
    top = float(exact.max(initial=-np.inf))
    if len(chosen.far):
        runs = draw_runs(table, chosen, seed, place)
        drawn = logs(table, runs.rows, query, kernel)
        top = max(top, float((drawn - runs.log_expected[:, None]).max()))
    if top == -np.inf:
        return -np.inf, 0.0 if not len(chosen.far) else np.inf, budget
    total, deviation, taken = np.exp(exact - top).sum(), 0.0, exact.size
    if len(chosen.far):
        parts = np.exp(drawn - runs.log_expected[:, None] - top).sum(-1)
        total, taken = total + parts.sum(), taken + drawn.size
        deviation = trusted_error(parts / total, top + np.log(total), chosen)
    return float(top + np.log(total)), deviation, taken + sum(table.means.shape)
