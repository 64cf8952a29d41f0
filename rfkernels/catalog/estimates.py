"""Estimates of sums over all items from the few that are taken: the specification, query by query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rfkernels.catalog.codes import moved
from rfkernels.catalog.plan import Guess, Plan, Runs, draw_runs, guess, rows_of
from rfkernels.catalog.rays import planned
from rfkernels.catalog.records import Estimate, Table
from rfkernels.catalog.scans import Shares, estimate_one, kinds, shares
from rfkernels.catalog.trust import trusted_error

_BLOCK = 1 << 14


def estimate(
    table: Table,
    queries: Any,
    budget: int,
    seed: int,
    coded: bool = True,
    guessed: Callable[[Table, Any], Guess] = guess,
) -> Estimate:
    """Estimate log Σ exp(q·y) for queries (queries, dim), at no more than `budget` dot products each.

    The sum over opened groups is exact; Σ over the others is the mean of draws of (exp(q·y) − s q·(y − mean)) / p,
    where p is the expected number of draws of y and s the slope of its cell: over a whole cell the subtracted part sums
    to zero, so what of it fell to opened items is known. Unbiased for the sum, whatever is `guessed`. Where codes are
    of use, and `coded`, these are read instead of items, as `scans.estimate_one` has it.
    """
    spent: tuple[Shares | None, ...] = (None,)
    if coded and table.codes is not None:
        spent = *shares(table, budget, len(moved(table))), None
    found = []
    for i, query in enumerate(queries.astype(np.float64)):
        own, known = spent[min(int(kinds(table, query)), len(spent) - 1)], guessed(table, query)
        one = estimate_one(table, query, known, own, seed, i) if own is not None else None
        if one is None or not np.isfinite(one[0]):
            one = from_rows(table, query, known, budget, seed, i)
        found.append(one)
    log, error, dots = zip(*found, strict=True) if found else ((), (), ())
    return Estimate(np.array(log, np.float64), np.array(error, np.float64), np.array(dots, np.int64))


def from_rows(table: Table, query: Any, guessed: Guess, budget: int, seed: int, place: int) -> tuple[float, float, int]:
    """Return the same of one query from rows: log, standard error and dot products."""
    chosen = planned(table, query, guessed, budget)
    exact = table.rows[rows_of(table, chosen.opened)] @ query
    if not len(chosen.far):
        return _log_sum(exact), 0.0, len(exact) + sum(table.means.shape)
    runs = draw_runs(table, chosen, seed, place)
    drawn = table.rows[runs.rows] @ query
    plain = drawn - runs.log_expected[:, None]
    dots = sum(table.means.shape) + exact.size + drawn.size
    largest = max(float(plain.max()), float(exact.max(initial=-np.inf)))
    if chosen.slopes.any():
        top = max(largest, chosen.top)
        moved, known = _moved(table, chosen, guessed, exact, drawn, runs)
        scale = np.exp(chosen.top - top)
        parts = (np.exp(plain - top) - scale * moved).sum(-1)
        total = np.exp(exact - top).sum() + parts.sum() - scale * known
        if total > 0:  # not only where the error is larger than the sum itself
            return float(top + np.log(total)), trusted_error(parts / total, top + np.log(total), chosen), dots
    parts = np.exp(plain - largest).sum(-1)
    total = np.exp(exact - largest).sum() + parts.sum()
    log = float(largest + np.log(total))
    return log, trusted_error(parts / total, log, chosen), dots


def _log_sum(logits: Any) -> float:
    top = logits.max()
    return float(top + np.log(np.exp(logits - top).sum()))


def _moved(table: Table, chosen: Plan, guessed: Guess, exact: Any, drawn: Any, runs: Runs) -> tuple[Any, float]:
    """Return the control variate of drawn items, and what it comes to over opened ones: over all others, minus that."""
    counts, cells = table.count[chosen.opened], table.cell[chosen.opened]
    residuals = exact - np.repeat(guessed.cell_logits[cells], counts)
    cell = table.cell[runs.group, None]
    moved = chosen.slopes[cell] * (drawn - guessed.cell_logits[cell]) * np.exp(-runs.log_expected)[:, None]
    return moved, float(np.repeat(chosen.slopes[cells], counts) @ residuals)


def take(table: Table, chosen: Plan, seed: int, place: int) -> tuple[Any, int, Runs | None]:
    """Return the rows that a query takes, how many of them for sure, which come first, and the runs of the others."""
    opened = rows_of(table, chosen.opened)
    if not len(chosen.far):
        return opened, len(opened), None
    runs = draw_runs(table, chosen, seed, place)
    return np.concatenate([opened, runs.rows.ravel()]), len(opened), runs


def exact(table: Table, queries: Any) -> Estimate:
    """Return log Σ exp(q·y) over all items, a block of rows at a time."""
    queries = queries.astype(np.float64)
    rows, out = rows_of(table, np.arange(len(table.count))), np.full(len(queries), -np.inf)
    for first in range(0, len(rows), _BLOCK):
        logits = queries @ table.rows[rows[first : first + _BLOCK]].T.astype(np.float64)
        out = np.logaddexp(out, np.logaddexp.reduce(logits, axis=1))
    return Estimate(out, np.zeros(len(queries)), np.full(len(queries), len(rows)))
