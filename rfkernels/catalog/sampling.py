"""Items drawn from a proposal close to exp(q·y), with the exact probability of each draw; and from exp(q·y) itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rfkernels.catalog.codes import cost, logits_of
from rfkernels.catalog.plan import guess, rows_of
from rfkernels.catalog.rays import SHARE, along
from rfkernels.catalog.records import Draws, Table
from rfkernels.catalog.tops import promising

HEAD, HEAD_GROUPS = 2048, 64
"""Dot products that are taken before the first draw, and groups that they are taken with at most."""

AGAIN = 512
"""How many of these are with items whose codes were read: these take what is left."""

_BLOCK = 1 << 16


def sample(table: Table, queries: Any, draws: int, rng: Any) -> Draws:
    """Draw items, independently and with replacement, for queries (queries, dim); ids are those of the table.

    A group is drawn in proportion to the sum ω_g of its weights exp(q·y), exact for the groups that promise most, from
    codes for more that may matter, and guessed for others; then all its items are taken, and one is drawn in proportion
    to exp(q·y). So

        log p(y) = log ω_g − log Σ_h ω_h + q·y − log Σ_{z in g} exp(q·z).
    """
    return _drawn(table, queries, draws, rng, _promising)


def sample_exactly(table: Table, queries: Any, draws: int, rng: Any) -> Draws:
    """Draw items from the softmax itself: every logit is taken, but few are held at a time."""
    return _drawn(table, queries, draws, rng, _every)


Sums = Callable[[Table, Any], tuple[Any, dict[int, Any]]]
"""What gives the logs of the groups' sums for a query, and the logits of groups that need not be taken again."""


def _promising(table: Table, query: Any) -> tuple[Any, dict[int, Any]]:
    guessed = guess(table, query)
    log_sums, groups, most = np.log(table.count) + guessed.log_mean, np.arange(len(table.count)), HEAD
    seen = coded(table)
    if seen:
        promised = guessed.log_mean + np.log(guessed.variance) / 2
        promised[along(table, query, guessed.cell_logits, seen // SHARE)] = promised.max()
        groups, most = promising(table.count, promised, seen, 1), AGAIN
        rows, cells = rows_of(table, groups), np.repeat(table.cell[groups], table.count[groups])
        log_sums[groups] = sums_of(logits_of(table, query, rows, cells, guessed.cell_logits), table.count[groups])
    chosen = groups[head(log_sums[groups], table.count[groups], most)]
    logits = {int(g): table.rows[rows_of(table, np.array([g]))] @ query for g in chosen}
    for g, own in logits.items():
        log_sums[g] = log_sum(own)
    return log_sums, logits


def coded(table: Table) -> int:
    """Return how many items' codes are read before the first draw."""
    if table.codes is None:
        return 0
    return min(int((HEAD - AGAIN) / cost(table)), int(table.count.sum()))


def head(log_sums: Any, count: Any, most: int) -> Any:
    """Return the groups that sum to most, largest first: at most so many, of at most so many items."""
    groups = min(HEAD_GROUPS, len(count))
    order = np.argpartition(-log_sums, groups - 1)[:groups]
    order = order[np.lexsort((order, -log_sums[order]))]
    return order[np.cumsum(count[order]) <= most]


def _every(table: Table, query: Any) -> tuple[Any, dict[int, Any]]:
    return np.concatenate([sums_of(own, count) for own, count in all_logits(table, query)]), {}


def all_logits(table: Table, query: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the logits of the items of so many whole groups at a time, and how many items each of these has."""
    ends = np.cumsum(table.count, dtype=np.int64)
    parts = np.searchsorted(ends, np.arange(_BLOCK, ends[-1] + _BLOCK, _BLOCK), side="left") + 1
    first = 0
    for last in np.unique(np.minimum(parts, len(ends))):
        yield table.rows[rows_of(table, np.arange(first, last))] @ query, table.count[first:last]
        first = last


def sums_of(logits: Any, count: Any) -> Any:
    """Return log Σ exp(logit) over parts of so many items, side by side."""
    first = np.cumsum(count, dtype=np.int64) - count
    top = np.maximum.reduceat(logits, first)
    return top + np.log(np.add.reduceat(np.exp(logits - np.repeat(top, count)), first))


def log_sum(logits: Any) -> float:
    """Return log Σ exp(logit)."""
    top = logits.max()
    return float(top + np.log(np.exp(logits - top).sum()))


def _drawn(table: Table, queries: Any, draws: int, rng: Any, sums: Sums) -> Draws:
    shape = len(queries), draws
    rows, log, logits = np.empty(shape, np.int64), np.empty(shape), np.empty(shape)
    for i, query in enumerate(queries.astype(np.float64)):
        rows[i], log[i], logits[i] = _one(table, query, draws, rng, sums)
    return Draws(table.ids[rows].astype(np.int64), log, logits)


def _one(table: Table, query: Any, draws: int, rng: Any, sums: Sums) -> tuple[Any, Any, Any]:
    weights, known = sums(table, query)
    log_share = weights - log_sum(weights)
    group, u = _pick(np.exp(log_share), rng.random(draws)), rng.random(draws)
    rows, log, logits = np.empty(draws, np.int64), np.empty(draws), np.empty(draws)
    for g in np.unique(group):
        own = known.get(int(g))
        own = table.rows[rows_of(table, np.array([g]))] @ query if own is None else own
        mine = np.flatnonzero(group == g)
        inside = own - log_sum(own)
        place = _pick(np.exp(inside), u[mine])
        rows[mine], logits[mine] = table.start[g] + place, own[place]
        log[mine] = log_share[g] + inside[place]
    return rows, log, logits


def _pick(probability: Any, u: Any) -> Any:
    """Return the places at which uniform numbers fall; places without probability are never returned."""
    ends = np.cumsum(probability)
    return np.minimum(np.searchsorted(ends, u * ends[-1], side="right"), np.flatnonzero(probability)[-1])
