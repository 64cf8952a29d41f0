"""The items of largest q·y: looked for in the groups that promise most, by their codes first; the specification."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.codes import cost, logits_of, moved
from rfkernels.catalog.plan import rounded, rows_of, sizes
from rfkernels.catalog.records import Table, Top

RANKED, BESIDE = 3, 10
"""Items that dot products are taken with after their codes, for each that is asked for, and besides.

Codes err by a tenth of the deviation of logits within cells: where all codes are read, almost none of the ten largest
is lost so (`benchmarks/catalog.py top`).
"""

ROOM = 16
"""How many times smaller numbers must be than those that might not fit."""


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
    away = len(moved(table))
    given, found = scope(table, budget, count, away), [Top(np.empty((0, count), np.int64), np.empty((0, count)))]
    every = np.arange(len(table.count))
    for query in queries.astype(np.float64):
        some = given.seen < table.count.sum()
        groups = promising(table.count, promise(table, query), given.seen, count) if some else every
        rows = _largest(table, query, groups, given.ranked, count)
        found.append(settled(table, query[None], rows[None], count))
    return Top(*map(np.concatenate, zip(*found, strict=True)))


def promise(table: Table, query: Any) -> Any:
    """Return what groups promise: the largest of n normal numbers of their mean and deviation s.

    That is about mean + s √(2 log n). The size of the query, which s is in proportion to, is rounded as for estimates.
    """
    found = (table.means @ query)[table.cell] + rounded(sizes(table, query)) * stretch(table)
    if not np.isfinite(found).all():
        raise ValueError(f"queries must have dot products with items that fit {table.rows.dtype}")
    return found


def promising(count: Any, promised: Any, most: int, least: int) -> Any:
    """Return the groups that promise most, in ascending order: of at most `most` items, and of at least `least`."""
    order = np.argsort(-promised, kind="stable")
    items = np.cumsum(count[order])
    number = max(int(np.searchsorted(items, most, side="right")), int(np.searchsorted(items, least)) + (least > 0))
    return np.sort(order[:number])


def reach(table: Table) -> float:
    """Return the largest size of queries, as `bounded` has it."""
    return float(np.sqrt(float(np.finfo(table.rows.dtype).max)) / (ROOM * np.sqrt(table.rows.shape[1])))


def bounded(reached: float, queries: Any) -> Any:
    """Return for which queries no dot product, nor part of one, can be too large for the items' dtype.

    Squared distances of items from centres fit it, and codes are whole numbers of steps, which add up to no more than
    eight times the root of their number.
    """
    # No product of matrices: BLAS keeps its threads busy after one, on processors that others could use.
    with np.errstate(over="ignore"):
        return np.add.reduce(np.abs(queries), axis=1, dtype=np.float64) <= reached


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
    none = rows < 0
    some = table.rows[np.where(none, rows[:, -1:], rows)].astype(np.float64)
    logits = np.where(none, -np.inf, np.matmul(some, queries[..., None])[..., 0])
    order, each = np.argsort(-logits, axis=1, kind="stable")[:, :count], np.arange(len(rows))[:, None]
    return Top(table.ids[rows[each, order]].astype(np.int64), logits[each, order])
