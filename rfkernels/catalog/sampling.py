"""Items drawn from a proposal close to exp(q·y), with the exact probability of each draw; and from exp(q·y) itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from rfkernels.catalog.plan import guess, rows_of
from rfkernels.catalog.records import Draws, Table

HEAD = 2048
"""Items of the groups that are taken exactly before the first draw."""

_BLOCK = 1 << 16
_WHOLE = 16
_NUMBERS = 1 << 22


def sample(table: Table, queries: Any, draws: int, rng: Any) -> Draws:
    """Draw items, independently and with replacement, for queries (queries, dim); ids are those of the table.

    A group is drawn in proportion to the sum ω_g of its weights exp(q·y), exact for the groups that promise most and
    guessed for others; then all its items are taken, and one is drawn in proportion to exp(q·y). So

        log p(y) = log ω_g − log Σ_h ω_h + q·y − log Σ_{z in g} exp(q·z).

    Queries are taken together, a group at a time: one product serves all that need its items.
    """
    return _drawn(table, queries, draws, rng, _promising, max(1, _NUMBERS // max(len(table.count), 1)))


def sample_exactly(table: Table, queries: Any, draws: int, rng: Any) -> Draws:
    """Draw items from the softmax itself: every logit is taken, but few are held at a time."""
    return _drawn(table, queries, draws, rng, _every, _WHOLE)


Sums = Callable[[Table, Any], Any]
"""What gives the logs of the groups' sums, (queries, groups)."""


def _promising(table: Table, queries: Any) -> Any:
    log_sums = np.log(table.count) + np.stack([guess(table, query).log_mean for query in queries])
    order = np.argsort(-log_sums, 1, kind="stable")
    head = np.zeros(log_sums.shape, bool)
    np.put_along_axis(head, order, np.cumsum(table.count[order], 1) <= HEAD, 1)
    by_group, query = np.nonzero(head.T)
    for part in _runs_of_equals(by_group):
        group, own = by_group[part.start], query[part]
        log_sums[own, group] = _log_sums(_logits(table, group, queries[own]))
    return log_sums


def _every(table: Table, queries: Any) -> Any:
    parts = []
    for rows, count in _whole_groups(table):
        logits = queries @ np.asarray(table.rows[rows], np.float64).T
        first = np.cumsum(count, dtype=np.int64) - count
        top = np.maximum.reduceat(logits, first, 1)
        parts.append(top + np.log(np.add.reduceat(np.exp(logits - np.repeat(top, count, 1)), first, 1)))
    return np.concatenate(parts, 1)


def _whole_groups(table: Table) -> Iterator[tuple[Any, Any]]:
    """Yield the rows of so many whole groups at a time, and how many items each of these has."""
    ends = np.cumsum(table.count, dtype=np.int64)
    parts = np.searchsorted(ends, np.arange(_BLOCK, ends[-1] + _BLOCK, _BLOCK), side="left") + 1
    first = 0
    for last in np.unique(np.minimum(parts, len(ends))):
        yield rows_of(table, np.arange(first, last)), table.count[first:last]
        first = last


def _logits(table: Table, group: Any, queries: Any) -> Any:
    start = table.start[group]
    return queries @ np.asarray(table.rows[start : start + table.count[group]], np.float64).T


def _log_sums(logits: Any) -> Any:
    """Return log Σ exp(logit) over the last axis."""
    top = logits.max(-1)
    return top + np.log(np.exp(logits - top[..., None]).sum(-1))


def _runs_of_equals(x: Any) -> Iterator[slice]:
    """Yield where each value of an array in ascending order is."""
    edges = np.flatnonzero(np.diff(x, prepend=-1, append=-1))
    for first, last in pairwise(edges):
        yield slice(int(first), int(last))


def _drawn(table: Table, queries: Any, draws: int, rng: Any, sums: Sums, together: int) -> Draws:
    shape = len(queries), draws
    rows, log, logits = np.empty(shape, np.int64), np.empty(shape), np.empty(shape)
    for first in range(0, len(queries), together):
        part = slice(first, first + together)
        own = queries[part].astype(np.float64)
        u = rng.random((len(own), 2, draws))
        log_sums = sums(table, own)
        log_share = log_sums - _log_sums(log_sums)[:, None]
        group = np.stack([_pick(share, each) for share, each in zip(np.exp(log_share), u[:, 0], strict=True)])
        rows[part], log[part], logits[part] = _inside(table, own, group, u[:, 1])
        log[part] += np.take_along_axis(log_share, group, 1)
    return Draws(table.ids[rows], log, logits)


def _inside(table: Table, queries: Any, group: Any, u: Any) -> tuple[Any, Any, Any]:
    """Draw an item of each group in proportion to exp(q·y): its row, the log of its share of the group, and q·y."""
    query = np.repeat(np.arange(len(queries)), group.shape[1])
    group, u = group.ravel(), u.ravel()
    order = np.argsort(group, kind="stable")
    rows, log, logits = np.empty(len(group), np.int64), np.empty(len(group)), np.empty(len(group))
    for part in _runs_of_equals(group[order]):
        chosen = order[part]
        own, which = np.unique(query[chosen], return_inverse=True)
        found = _logits(table, group[chosen[0]], queries[own])
        inside = found - _log_sums(found)[:, None]
        place = _pick_rows(np.exp(inside), which, u[chosen])
        rows[chosen] = table.start[group[chosen[0]]] + place
        log[chosen], logits[chosen] = inside[which, place], found[which, place]
    shape = len(queries), -1
    return rows.reshape(shape), log.reshape(shape), logits.reshape(shape)


def _pick(probability: Any, u: Any) -> Any:
    """Return the places at which uniform numbers fall; places without probability are never returned."""
    ends = np.cumsum(probability)
    return np.minimum(np.searchsorted(ends, u * ends[-1], side="right"), np.flatnonzero(probability)[-1])


def _pick_rows(probability: Any, which: Any, u: Any) -> Any:
    """Pick as `_pick` does for many distributions at once, number `which` for each uniform number."""
    ends = np.cumsum(probability, 1)
    last = probability.shape[1] - 1 - (probability[:, ::-1] > 0).argmax(1)
    place, step = np.empty(len(u), np.int64), max(1, _NUMBERS // probability.shape[1])
    for first in range(0, len(u), step):
        own, each = which[first : first + step], u[first : first + step]
        place[first : first + step] = (ends[own] <= (each * ends[own, -1])[:, None]).sum(1)
    return np.minimum(place, last[which])
