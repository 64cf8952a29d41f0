"""Estimates of sums over all items from the few that are taken: the specification, query by query."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels.catalog.plan import RUN, Plan, draw_runs, guess, plan, rows_of
from rfkernels.catalog.records import Estimate, Evaluated, Table

_BLOCK = 1 << 14

HEAVY = 0.1
"""The predicted relative error beyond which a sample is not trusted to show its own tail."""


def estimate(table: Table, queries: Any, budget: int, seed: int) -> Estimate:
    """Estimate log Σ exp(q·y) for queries (queries, dim), at no more than `budget` dot products each.

    The sum over opened groups is exact; Σ over the others is the mean of draws of (exp(q·y) − s q·(y − mean)) / p,
    where p is the expected number of draws of y and s the slope of its cell: over a whole cell the subtracted part sums
    to zero, so what of it fell to opened items is known. Unbiased for the sum.
    """
    found = [_one(table, query, budget, seed, i) for i, query in enumerate(queries.astype(np.float64))]
    log, error, dots = zip(*found, strict=True) if found else ((), (), ())
    return Estimate(np.array(log, np.float64), np.array(error, np.float64), np.array(dots, np.int64))


def _one(table: Table, query: Any, budget: int, seed: int, place: int) -> tuple[float, float, int]:
    guessed = guess(table, query)
    chosen = plan(table, guessed, budget)
    opened = rows_of(table, chosen.opened)
    exact = table.rows[opened] @ query
    if not len(chosen.far):
        top = exact.max()
        return float(top + np.log(np.exp(exact - top).sum())), 0.0, len(exact) + sum(table.means.shape)
    runs = draw_runs(table, chosen, seed, place)
    drawn = table.rows[runs.rows] @ query
    top = max(chosen.top, float(drawn.max()), float(exact.max(initial=-np.inf)))
    scale = np.exp(chosen.top - top)
    expected = np.exp(-runs.log_expected)[:, None]
    slopes = scale * chosen.slopes[table.cell[runs.group], None]
    plain = np.exp(drawn - top) * expected
    moved = slopes * (drawn - guessed.cell_logits[table.cell[runs.group], None]) * expected
    known = scale * _moved(
        table, chosen, exact - np.repeat(guessed.cell_logits[table.cell[chosen.opened]], table.count[chosen.opened])
    )
    head = np.exp(exact - top).sum()
    parts = (plain - moved).sum(-1)
    total = head + parts.sum() - known
    if total <= 0:  # only where the error is larger than the sum itself
        parts = plain.sum(-1)
        total = head + parts.sum()
    dots = sum(table.means.shape) + exact.size + drawn.size
    return float(top + np.log(total)), _error(parts, total, chosen), dots


def _moved(table: Table, chosen: Plan, residuals: Any) -> float:
    """Return what the control variate comes to over opened items, and so, with the sign turned, over all others."""
    return float(np.repeat(chosen.slopes[table.cell[chosen.opened]], table.count[chosen.opened]) @ residuals)


def _error(parts: Any, total: float, chosen: Plan) -> float:
    """Return the relative standard error: from pairs of neighbouring strata, and as predicted where tails are heavy."""
    pairs = parts[: len(parts) // 2 * 2].reshape(-1, 2)
    seen = float(np.sqrt(((pairs[:, 0] - pairs[:, 1]) ** 2).sum() * len(parts) / pairs.size)) / total
    return max(seen, chosen.error) if chosen.error > HEAVY else seen


def evaluate(table: Table, queries: Any, budget: int, seed: int) -> Evaluated:
    """Return the items that `estimate` takes, with the logs of the weights that make sums over them unbiased."""
    rows = np.full((len(queries), budget), -1, np.int32)
    logits, log_weights = (np.full((len(queries), budget), -np.inf) for _ in range(2))
    for i, query in enumerate(queries.astype(np.float64)):
        chosen = plan(table, guess(table, query), budget)
        opened = rows_of(table, chosen.opened)
        runs = draw_runs(table, chosen, seed, i) if len(chosen.far) else None
        drawn = opened[:0] if runs is None else runs.rows.ravel()
        end = len(opened) + len(drawn)
        rows[i, :end] = np.concatenate([opened, drawn])
        logits[i, :end] = table.rows[rows[i, :end]] @ query
        log_weights[i, : len(opened)] = 0
        if runs is not None:
            log_weights[i, len(opened) : end] = np.repeat(-runs.log_expected, RUN)
    return Evaluated(rows, logits, log_weights)


def exact(table: Table, queries: Any) -> Estimate:
    """Return log Σ exp(q·y) over all items, a block of rows at a time."""
    queries = queries.astype(np.float64)
    rows, out = rows_of(table, np.arange(len(table.count))), np.full(len(queries), -np.inf)
    for first in range(0, len(rows), _BLOCK):
        logits = queries @ table.rows[rows[first : first + _BLOCK]].T.astype(np.float64)
        out = np.logaddexp(out, np.logaddexp.reduce(logits, axis=1))
    return Estimate(out, np.zeros(len(queries)), np.full(len(queries), len(rows)))
