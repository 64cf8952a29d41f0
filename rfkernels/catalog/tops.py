"""The items of largest q·y: looked for in the groups that promise most, by their codes first; the specification."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.codes import cost, logits_of, moved
from rfkernels.catalog.plan import rounded, rows_of, sizes
from rfkernels.catalog.records import Table, Top

RANKED, BESIDE = 3, 10
"""Items that dot products are taken with after their codes, for each that is asked for, and besides.

Codes err by a tenth of the deviation of logits within cells: fewer than one in a hundred of the largest ten or hundred
is lost so (`benchmarks/catalog.py top`).
"""


class Scope(NamedTuple):
    """What a budget is spent on: how many items are looked at and, if by their codes, how many are looked at again."""

    seen: int
    ranked: int


def scope(table: Table, budget: int, count: int, away: int) -> Scope:
    """Return what a budget is spent on besides cells, `away` of which have moved, where `count` items are asked for."""
    rest, items = budget - sum(table.means.shape), int(table.count.sum())
    if budget >= items:
        return Scope(items, 0)
    if table.codes is None:
        return Scope(max(rest, count), 0)
    rest, wanted = rest - away, RANKED * count + BESIDE
    ranked = max(count, min(wanted, rest // 2))
    seen = max(int((rest - ranked) / cost(table)), count)
    if seen >= items:
        seen, ranked = items, max(ranked, min(wanted, rest - int(np.ceil(cost(table) * items))))
    return Scope(seen, min(ranked, seen))


def top(table: Table, queries: Any, count: int, budget: int) -> Top:
    """Return the largest items of the groups that promise most, as many as `budget` allows but at least `count` items.

    Of equal ones those in the first rows are taken.
    """
    away = 0 if table.codes is None else len(moved(table))
    given, found = scope(table, budget, count, away), [Top(np.empty((0, count), np.int32), np.empty((0, count)))]
    for query in queries.astype(np.float64):
        groups = promising(table, query, given.seen, count)
        rows = _largest(table, query, groups, given.ranked, count)
        found.append(settled(table, query[None], rows[None], count))
    return Top(*map(np.concatenate, zip(*found, strict=True)))


def promising(table: Table, query: Any, most: int, least: int) -> Any:
    """Return the groups that promise most: of at most `most` items, and of at least `least`.

    What a group promises is the largest of n normal numbers of its mean and deviation s: about mean + s √(2 log n). The
    size of the query, which s is in proportion to, is rounded as for estimates.
    """
    promise = (table.means @ query)[table.cell] + rounded(sizes(table, query)) * stretch(table)
    order = np.argsort(-promise, kind="stable")
    items = np.cumsum(table.count[order])
    number = max(int(np.searchsorted(items, most, side="right")), int(np.searchsorted(items, least)) + 1)
    return np.sort(order[:number])


def stretch(table: Table) -> Any:
    """Return about how far the largest logit of each group lies above that of its cell, for a query of size 1."""
    return np.sqrt(table.spread, dtype=np.float64) * np.sqrt(2 * np.log(np.maximum(table.count, 2)))


def _largest(table: Table, query: Any, groups: Any, ranked: int, count: int) -> Any:
    """Return the rows of the largest items of some groups."""
    rows = rows_of(table, groups)
    if ranked:
        found = logits_of(table, query, rows, np.repeat(table.cell[groups], table.count[groups]), table.means @ query)
        rows = rows[np.argsort(-found, kind="stable")[:ranked]]
    rows = np.sort(rows)
    return rows[np.argsort(-(table.rows[rows] @ query), kind="stable")[:count]]


def settled(table: Table, queries: Any, rows: Any, count: int) -> Top:
    """Return the largest of some items of each query, (queries, items) by row, in their order; −1 stands for none."""
    rows = np.sort(rows, axis=1)
    logits = np.matmul(table.rows[rows].astype(np.float64), queries[..., None])[..., 0]
    logits[rows < 0] = -np.inf
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return Top(table.ids[np.take_along_axis(rows, order, 1)], np.take_along_axis(logits, order, 1))
