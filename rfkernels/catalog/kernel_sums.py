"""Sums of other kernels than exp(q·y) over all items: groups by what two points of each say, items by chance."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.estimates import deviation_of_sum
from rfkernels.catalog.plan import Guess, deviations, draw_runs, plan, rows_of
from rfkernels.catalog.records import Estimate, Table
from rfkernels.kernels import Kernel

_BLOCK = 1 << 16
_SHARE = 0.1
"""How much of the mean guess every item gets besides its own: no item is left out because a guess was bad."""


def kernel_sums(table: Table, queries: Any, kernel: Kernel, scale: float, budget: int, seed: int) -> Estimate:
    """Estimate log Σ k(√scale q, √scale y) over the items, as `estimates.estimate` but without control variates."""
    scaled = Scaled(kernel, scale)
    found = [_one(table, query, scaled, budget, seed, i) for i, query in enumerate(queries.astype(np.float64))]
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


def exact_kernel_sums(table: Table, queries: Any, kernel: Kernel, scale: float) -> Estimate:
    """Return log Σ k(√scale q, √scale y) over all items."""
    scaled, rows = Scaled(kernel, scale), rows_of(table, np.arange(len(table.count)))
    out = np.full(len(queries), -np.inf)
    for i, query in enumerate(queries.astype(np.float64)):
        for first in range(0, len(rows), _BLOCK):
            out[i] = np.logaddexp(out[i], np.logaddexp.reduce(logs(table, rows[first : first + _BLOCK], query, scaled)))
    return Estimate(out, np.zeros(len(queries)), np.full(len(queries), len(rows)))


def _guess(table: Table, query: Any, kernel: Scaled) -> Guess:
    """Guess a group's mean kernel from two points, one standard deviation of q·y to either side of its cell's mean."""
    logits = table.means @ query
    away = deviations(table, query)
    norms = (table.means**2).sum(1)[table.cell] + table.spread
    with np.errstate(divide="ignore"):
        both = np.stack([kernel.log(logits[table.cell] + sign * away, query @ query, norms) for sign in (-1, 1)])
        top = max(float(both.max()), -1e300)
        below, above = np.exp(both - top)
        mean = (below + above) / 2
        mean = mean + _SHARE * max(float(table.count @ mean / table.count.sum()), np.finfo(float).tiny)
        variance = ((above - below) / 2 / mean) ** 2 + _SHARE
    return Guess(top + np.log(mean), variance, logits)


def _one(table: Table, query: Any, kernel: Scaled, budget: int, seed: int, place: int) -> tuple[float, float, int]:
    chosen = plan(table, _guess(table, query, kernel), budget)
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
        deviation = deviation_of_sum(parts)
        total, taken = total + parts.sum(), taken + drawn.size
    return float(top + np.log(total)), float(deviation / total), taken + sum(table.means.shape)
