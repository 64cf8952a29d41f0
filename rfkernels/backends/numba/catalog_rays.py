"""Groups that items along a query would join, compiled: `rfkernels.catalog.rays` specifies them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_layout import Lists, Rules, Scratch
from rfkernels.backends.numba.catalog_plan_groups import take
from rfkernels.backends.numba.compiling import jit
from rfkernels.catalog.rays import NEAR, SLIGHT

_LOST = 2.0**-900
"""Sums relative to what is guessed of the largest weights are taken anew where they are less: some terms may be 0."""


@jit
def look_along(g: Groups, s: Scratch, given: tuple[float, Any], query: Any, logits: Any, most: int) -> tuple[int, int]:
    """List groups that items along a query would join; return how many, and how many items they hold, at most `most`.

    `given` is the log of what shares of cells are relative to, and what multiples of these there are at least.
    """
    top, multiples = given
    size = math.sqrt(_square(query))
    if len(g.lengths) == 0 or size == 0:
        return 0, 0
    at_least = math.log(float(g.items))
    for j in range(len(query)):
        at_least += g.middle[j] * query[j]
    if not size * g.lengths[0] > at_least - SLIGHT:  # as the mean of exponentials is more than that of the mean
        return 0, 0
    total, found, items = 0.0, 0, 0
    for c in range(len(g.held)):
        total += s.share[c] * multiples[c]
    least = (top + math.log(total) if total > _LOST else _log_sum(g, logits)) - SLIGHT
    if not size * g.lengths[0] > least:
        return 0, 0
    _find_near(g, s, 2 * g.median / size, logits)
    square = _compare(g, s, query, size)
    for j in range(len(g.lengths)):
        if not size * g.lengths[j] > least:
            break
        group = _joined(g, s, g.lengths[j], square)
        if _is_listed(s, found, group):
            continue
        if items + g.count[group] > most:
            break
        s.rays[found] = group
        found, items = found + 1, items + g.count[group]
    return found, items


@jit
def _log_sum(g: Groups, logits: Any) -> float:
    """Return the log of the sum if all items were the means of their cells."""
    most, total = -np.inf, 0.0
    for c in range(len(g.held)):
        if g.held[c] > 0:
            most = max(most, logits[c])
    for c in range(len(g.held)):
        total += g.held[c] * math.exp(logits[c] - most) if g.held[c] > 0 else 0.0
    return most + math.log(total)


@jit
def _square(x: Any) -> float:
    total = 0.0
    for j in range(len(x)):
        total += x[j] * x[j]
    return total


@jit
def _find_near(g: Groups, s: Scratch, factor: float, logits: Any) -> None:
    """List the cells of the nearest means, the nearest first."""
    for k in range(NEAR):
        s.away[k], s.near[k] = np.inf, 0
    for c in range(len(g.held)):
        away = g.square[c] - factor * logits[c]
        if away < s.away[NEAR - 1]:
            k = NEAR - 1
            while k > 0 and away < s.away[k - 1]:
                s.away[k], s.near[k] = s.away[k - 1], s.near[k - 1]
                k -= 1
            s.away[k], s.near[k] = away, c


@jit
def _compare(g: Groups, s: Scratch, query: Any, size: float) -> float:
    """Write products of centres with the direction of a query, as they are compared; return the square of that."""
    dim, own = len(query), s.own
    for x in range(dim):
        own[x] = 0.0 if len(g.metric) > 0 else query[x] / size
    for j in range(len(g.metric)):
        for x in range(dim):
            own[x] += query[j] / size * g.metric[j, x]
    for k in range(NEAR):
        total, centre = 0.0, g.centres[s.near[k]]
        for x in range(dim):
            total += centre[x] * own[x]
        s.across[k] = total
    return _square(own)


@jit
def _joined(g: Groups, s: Scratch, length: float, square: float) -> int:
    """Return the group that an item of a length would join."""
    least, cell = np.inf, s.near[0]
    for k in range(NEAR):
        away = g.beyond[s.near[k]] - 2 * length * s.across[k] + length * length * square
        if away < least:
            least, cell = away, s.near[k]
    begin, end = g.first[cell], g.first[cell + 1]
    while end - 1 > begin and g.edges[end - 1] > least * g.rounded:
        end -= 1
    return int(g.outward[end - 1])


@jit
def _is_listed(s: Scratch, found: int, group: int) -> bool:
    k = 0
    while k < found and s.rays[k] != group:
        k += 1
    return k < found


@jit
def open_along(
    r: Rules, g: Groups, s: Scratch, n: Lists, i: int, found: int, counts: tuple[int, int]
) -> tuple[int, int]:
    """List such groups with those that are opened, of which there are so many items and groups; return that anew."""
    items, opened = counts
    for k in range(found):
        group = s.rays[k]
        if not s.opened[group]:
            n.opened[i, opened] = group
            items, opened = take(r, g, n, i, group, items), opened + 1
    return items, opened


@jit
def drop_draws(s: Scratch, n: Lists, i: int, found: int) -> None:
    """Have runs in such groups count nothing."""
    for k in range(found):
        s.opened[s.rays[k]] = True
    for run in range(n.sizes[i, 2] if found > 0 else 0):
        if s.opened[n.draw[i, run]]:
            n.odds[i, run] = np.inf
