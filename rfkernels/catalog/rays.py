"""Groups that items along a query would join: queries are often items but for their size, and nothing tells of that.

The sum of a sharp query that equals an item, but for what stands for a temperature, is in large part that item, which
may lie anywhere in a group of which little is expected. How long the item is is not known: all lengths are tried that
items have, if one of that length would matter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.homes import ROUNDED, Homes, known_homes
from rfkernels.catalog.known import OfTables
from rfkernels.catalog.metric import compared
from rfkernels.catalog.plan import FEWEST_RUNS, RUN, Guess, Plan, plan
from rfkernels.catalog.records import Table

LENGTHS, SAMPLED = 16, 512
"""Lengths of items that are tried, quantiles of those of so many items."""

NEAR = 4
"""Cells whose centres are compared with a query: those of the means nearest to an item of middle length along it."""

SLIGHT = 4.0
"""By what the log of a weight may be less than that of the sum of as many means of cells, and still matter.

The sum is never less, as exp is convex; guesses of it are often far too large where queries are sharp.
"""

SHARE = 4
"""One in so many of the items that a query takes may be in such groups."""


class Rays(NamedTuple):
    """What is known of items along any direction.

    Parameters
    ----------
    lengths : array, shape (≤ LENGTHS,)
        Lengths of items, the longest first; none where it is not known which groups items join.
    held : array, shape (cells,)
        How many items cells hold.
    square, beyond : array, shape (cells,)
        Squared lengths of the means of cells, and of centres as they are compared; ∞ for cells without items.
    homes : Homes
        What tells which group an item joins.
    """

    lengths: Any
    held: Any
    square: Any
    beyond: Any
    homes: Homes


def _rays(table: Table) -> Rays:
    cells, dim = table.means.shape
    if table.centres is None or not len(table.count):
        none, first = np.empty(0), np.zeros(1, np.int64)
        return Rays(none, np.zeros(cells), none, none, Homes(np.empty((0, dim)), first, first[:0], none, none))
    homes = known_homes(table)
    some = table.rows[_spread_out(table)].astype(np.float64)
    lengths = np.quantile(np.sqrt((some**2).sum(1)), 1 - (np.arange(LENGTHS) + 0.5) / LENGTHS)
    held = np.bincount(table.cell, table.count, cells)
    square, beyond = ((x**2).sum(1) for x in (table.means.astype(np.float64), homes.centres))
    square[held == 0] = beyond[held == 0] = np.inf
    return Rays(lengths, held, square, beyond, homes)


def _spread_out(table: Table) -> Any:
    """Return SAMPLED rows of items, or all, spread out evenly over groups."""
    ends = np.cumsum(table.count, dtype=np.int64)
    places = np.linspace(0, ends[-1] - 1, min(SAMPLED, ends[-1])).astype(np.int64)
    group = np.searchsorted(ends, places, side="right")
    return table.start[group] + places - (ends - table.count)[group]


known_rays = OfTables(_rays)
"""Returns what is known of a table."""


def along(table: Table, query: Any, cell_logits: Any, most: int) -> Any:
    """Return groups that items along a query would join, of no more than `most` items, those of long items first."""
    known, size = known_rays(table), float(np.sqrt(query @ query))
    homes, filled = known.homes, known.held > 0
    least = float(np.logaddexp.reduce(np.log(known.held[filled]) + cell_logits[filled])) - SLIGHT
    lengths = known.lengths[size * known.lengths > least] if size > 0 else known.lengths[:0]
    if not len(lengths):
        return np.empty(0, np.int64)
    near = np.argsort(known.square - 2 * np.median(known.lengths) / size * cell_logits, kind="stable")[:NEAR]
    own = compared(table.metric.astype(np.float64), query / size)
    across, square = homes.centres[near] @ own, float(own @ own)
    found: list[int] = []
    for length in lengths:
        away = known.beyond[near] - 2 * length * across + length**2 * square
        cell = near[away.argmin()]
        groups = homes.order[homes.first[cell] : homes.first[cell + 1]]
        edge = homes.edge[groups].astype(np.float64)
        at = np.searchsorted(edge, float(away.min()) * (1 + ROUNDED * np.finfo(table.rows.dtype).eps), side="right")
        group = int(groups[max(int(at), 1) - 1])
        if group not in found:
            if table.count[found].sum() + table.count[group] > most:
                break
            found.append(group)
    return np.array(found, np.int64)


def most_along(items: Any, run: int = RUN) -> Any:
    """Return how many items groups along a query may have, where so many are taken in all."""
    return min(items // SHARE, items - FEWEST_RUNS * run)


def planned(table: Table, query: Any, guessed: Guess, budget: int, run: int = RUN) -> Plan:
    """Return a plan that opens the groups along a query, too, for a part of the budget.

    Draws are as they would be without, and those from such groups count nothing.
    """
    items = budget - sum(table.means.shape)
    most = most_along(items, run)
    looked = along(table, query, guessed.cell_logits, most) if items < table.count.sum() else np.empty(0, np.int64)
    return plan(table, guessed, budget, run, looked)
