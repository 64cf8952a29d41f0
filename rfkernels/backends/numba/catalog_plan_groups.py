"""Plans made group by group, for queries that look at many of the groups there are.

Otherwise `catalog_plans` makes them cell by cell, in a time that does not depend on the number of groups.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_guesses import Guesses
from rfkernels.backends.numba.catalog_layout import Lists, Rules, Scratch
from rfkernels.backends.numba.compiling import call, jit


@jit
def few_groups(r: Rules, g: Groups, budget: int) -> bool:
    """Return whether a plan takes less time for all groups than for cells and what is drawn from them."""
    return len(g.start) <= r.groups_a_run * (budget // r.run)


_NEAR = 300.0
"""Up to so much below the largest score, products of two weights are numbers that are far above the least."""


@jit
def log_mean(g: Groups, deviation: float) -> float:
    """Return the log of the mean of exp over normal numbers."""
    low = deviation if deviation < g.edge else g.edge
    return low * (deviation - low / 2)


@jit
def decide(
    r: Rules, g: Groups, v: Guesses, s: Scratch, size: int, budget: int, logits: Any
) -> tuple[int, float, float, int, bool]:
    """Find from which bucket on groups are not opened; return runs, sums of weights and noises of these, and it.

    Where these are no numbers, nothing is opened. Groups of the last bucket may have to be told apart: buckets are then
    those of groups from there on. Last comes whether these lie so far below that weights have become relative to
    others, for which there have to be `logits` of cells.
    """
    last, slot, deep, lost, highest = len(s.tallies) - 1, v.top.shape[1], False, False, s.score[v.top.shape[1]]
    s.score[slot + 1] = 0.0
    _survey(r, g, v, s, size)
    while True:
        items = mass = noise = total = noises = 0.0
        chosen, runs, least = -1, 0, np.inf
        for j in range(last, 0 if deep else -1, -1):
            own = s.tallies[j]
            if own[0] == 0:
                continue
            items, mass, noise = items + own[0], mass + own[1], noise + own[2]
            left = (budget - g.items + int(items)) // r.run
            if left >= r.fewest_runs and mass * noise / (r.run * left) <= least:
                chosen, runs, total, noises, least = j, left, mass, noise, mass * noise / (r.run * left)
        if chosen < 0:
            return budget // r.run, mass, noise, 0, False
        if chosen < last:
            return runs, total, noises, chosen, lost
        s.score[slot], s.score[slot + 1], deep = _below(g, v, s, size), 1.0, True
        lost = len(logits) > 0 and highest - s.score[slot] > _NEAR
        if lost:
            _survey_below(r, g, v, s, size, logits)
        else:
            _survey(r, g, v, s, size)


@jit
def _survey(r: Rules, g: Groups, v: Guesses, s: Scratch, size: int) -> None:
    """Write weights and buckets of groups, and sums over these."""
    given = s.share.ctypes.data, s.base.ctypes.data, v.unit[size].ctypes.data, g.size.ctypes.data
    known = v.variance[size].ctypes.data, v.score[size].ctypes.data, s.score[v.top.shape[1] :].ctypes.data
    out = s.odds.ctypes.data, s.mass.ctypes.data, s.depths.ctypes.data, s.tallies.ctypes.data
    s.tallies[:] = 0.0
    call(r.survey, (g.cell.ctypes.data, len(g.start), *given, *known, *out))


@jit
def _below(g: Groups, v: Guesses, s: Scratch, size: int) -> float:
    """Return the largest score of the last bucket."""
    last, most = len(s.tallies) - 1, -np.inf
    for group in range(len(g.start)):
        if s.depths[group] == last:
            most = max(most, s.base[g.cell[group]] + v.score[size, group])
    return most


@jit
def _survey_below(r: Rules, g: Groups, v: Guesses, s: Scratch, size: int, logits: Any) -> None:
    """Do so for groups of the last bucket, whose weights beside those of others may be less than the least number."""
    last, groups, highest, top = len(s.tallies) - 1, len(g.start), s.score[v.top.shape[1]], -np.inf
    for group in range(groups):
        s.mass[group] = 0.0
        if s.depths[group] == last:
            s.odds[group] = logits[g.cell[group]] + log_mean(g, v.size[size] * g.deviation[group])
            top = max(top, s.odds[group])
    s.tallies[:] = 0.0
    for group in range(groups):
        if s.depths[group] < last:
            s.depths[group] = 0
            continue
        depth = 1 + r.per_nat * (highest - (s.base[g.cell[group]] + v.score[size, group]))
        s.depths[group] = int(min(max(depth, 0.0), float(last)))
        s.odds[group] = math.exp(s.odds[group] - top)
        s.mass[group] = s.odds[group] * g.size[group]
        own = s.tallies[s.depths[group]]
        own[0] += g.size[group]
        own[1] += s.mass[group]
        own[2] += s.mass[group] * v.variance[size, group]


@jit
def open_groups(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, chosen: int) -> tuple[int, int]:
    """List groups of buckets before one, whose masses become 0; return numbers of items and groups."""
    items, out = 0, n.opened[i].ctypes.data
    opened = call(r.before, (s.depths.ctypes.data, len(g.start), chosen, out)) if chosen > 0 else 0
    for j in range(opened):
        group = n.opened[i, j]
        items = take(r, g, n, i, group, items)
        s.mass[group], s.opened[group] = 0.0, True
    return items, opened


@jit
def sum_others(g: Groups, s: Scratch, n: Lists, i: int, opened: int) -> None:
    """Write how many items of each cell are not in opened groups, and where these are the mass of all others."""
    for c in range(len(g.held)):
        s.items[c] = g.held[c]
    for j in range(opened):
        group = n.opened[i, j]
        cell = g.cell[group]
        s.items[cell] -= g.count[group]
        if j > 0 and g.cell[n.opened[i, j - 1]] == cell:
            continue
        s.far[cell] = 0.0
        for other in range(g.first[cell], g.first[cell + 1]):
            s.far[cell] += s.mass[other]


@jit
def take(r: Rules, g: Groups, n: Lists, i: int, group: int, items: int) -> int:
    """List the rows of a group behind others, where they are asked for; return how many items there are now."""
    count, start, places = g.count[group], g.start[group], n.places[i]
    for k in range(count if r.listed else 0):
        places[items + k] = start + k
    return int(items + count)


@jit
def complete(ends: Any, mass: Any, runs: int, total: float) -> None:
    """See to it that all runs begin before some end: if by rounding they do not, in a part that they are few for."""
    last = len(mass) - 1
    while last >= 0 and ends[last] < runs:
        ends[last] = runs
        if 2 * len(mass) * mass[last] >= total:
            break
        last -= 1


@jit
def draw_groups(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, state: Any) -> None:
    """Find the group of each run, and the weight of its items: odds times the mass of the group are known."""
    runs, draw, groups, total = n.sizes[i, 2], n.draw[i], len(g.start), n.measures[i, 1]
    s.numbers[0] = runs / total
    given = s.mass.ctypes.data, len(g.size), state, runs, s.numbers.ctypes.data
    call(r.draw, (*given, s.stops.ctypes.data, s.passed.ctypes.data))
    complete(s.stops, s.mass[:groups], runs, total)
    draw[: runs + 8] = 0
    before = np.uint64(0)
    for group in range(groups):
        draw[before] = group  # a later group with as many runs before it takes the place over
        before = np.uint64(s.stops[group])
        if before == runs:
            break
    call(r.spread, (draw.ctypes.data, runs, s.odds.ctypes.data, n.odds[i].ctypes.data))
