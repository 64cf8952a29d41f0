"""What queries of a catalog do, compiled: `rfkernels.catalog.plan` specifies it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels.backends.numba.catalog_layout import Groups, Lists, Rules, Scratch
from rfkernels.backends.numba.compiling import call, jit

TINY = 1e-100
"""Weights relative to the largest are looked at anew where they are less: some may be 0 that are not."""

_NONE = np.uint32(0xFFFFFFFF)
"""The number of no group."""


@jit
def _mixed(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@jit
def _state(seed: Any, stream: int) -> Any:
    return _mixed(seed + np.uint64(0x9E3779B97F4A7C15) * np.uint64(stream + 1))


@jit
def deviation(r: Rules, g: Groups, query: Any, out: Any) -> float:
    """Write dot products with the means of cells; return the deviation of logits about them where the spread is 1."""
    dim, cells = len(query), len(g.held)
    place, row = g.every.ctypes.data, query.ctypes.data
    rows = (cells + dim + 3) & ~3
    call(r.wide_dots, (g.means.ctypes.data, g.means.strides[0], place, rows, row, out.ctypes.data))
    square = 0.0
    for j in range(dim):
        square += out[cells + j] * query[j]
    return math.sqrt(max(square, 0.0))


@jit
def log_mean(r: Rules, deviation: float) -> float:
    """Return the log of the mean of exp over normal numbers."""
    low = deviation if deviation < r.edge else r.edge
    return low * (deviation - low / 2)


@jit
def weigh(r: Rules, g: Groups, s: Scratch, logits: Any, scale: float) -> float:
    """Fill the arrays of groups relative to the largest mean weight, whose log is returned."""
    top = -np.inf
    for c in range(len(g.held)):
        if g.held[c] > 0:
            top = max(top, logits[c] + log_mean(r, scale * g.reach[c]))
    s.numbers[0], s.numbers[1], s.numbers[2], s.numbers[3] = top, scale, r.edge, r.floor
    given = (logits.ctypes.data, g.cell.ctypes.data, g.deviation.ctypes.data, g.size.ctypes.data, len(g.size))
    out = (s.weight.ctypes.data, s.mass.ctypes.data, s.noise.ctypes.data, s.score.ctypes.data)
    call(r.guess, (*given, s.numbers.ctypes.data, *out))
    return top


@jit
def _share(r: Rules, g: Groups, s: Scratch, budget: int) -> tuple[int, int, float, float, int]:
    """Return the first bucket that is not opened, runs, the sums of weights and noises from there on, and candidates.

    Candidates are the groups of buckets that may be opened, in order: few, so that all others are summed up at once.
    """
    sizes, buckets = s.sizes, s.sizes.shape[1]
    sizes[:] = 0
    s.score[len(g.size)] = s.numbers[4]
    call(r.buckets, (s.score.ctypes.data, len(g.size), s.bucket.ctypes.data))
    for i in range(len(g.start)):
        sizes[i & 3, np.uint32(s.bucket[i])] += g.count[i]
    taken, last = 0, 0
    while True:
        for k in range(1, 4):
            sizes[0, last] += sizes[k, last]
        if (budget - taken - sizes[0, last]) // 4 < r.fewest_runs or last == buckets - 1:
            break
        taken += sizes[0, last]
        last += 1
    arrays = s.bucket.ctypes.data, len(g.size), last, s.mass.ctypes.data, s.noise.ctypes.data
    listed = call(r.rest, (*arrays, s.numbers.ctypes.data, s.candidates.ctypes.data))
    s.sums[:, :last] = 0
    for i in range(listed):
        group = s.candidates[i]
        s.sums[0, s.bucket[group]] += s.mass[group]
        s.sums[1, s.bucket[group]] += s.noise[group]
    mass, noise, least = s.numbers[0], s.numbers[1], np.inf
    chosen, runs, total, noises = 0, budget // 4, mass, noise
    for j in range(last, -1, -1):
        if j < last:
            mass, noise, taken = mass + s.sums[0, j], noise + s.sums[1, j], taken - sizes[0, j]
        left = (budget - taken) // 4
        if mass * noise / (4 * left) <= least:
            chosen, runs, total, noises, least = j, left, mass, noise, mass * noise / (4 * left)
    return chosen, runs, total, noises, listed


@jit
def _open(g: Groups, s: Scratch, n: Lists, i: int, chosen: int, listed: int) -> tuple[int, int]:
    """List opened groups and their rows, and take their weights away; return numbers of items and groups."""
    places, size, opened = n.places[i], 0, 0
    for c in range(len(g.held)):
        s.items[c] = g.held[c]
    for j in range(listed):
        group = s.candidates[j]
        if s.bucket[group] < chosen:
            n.opened[i, opened] = group
            opened += 1
            s.mass[group] = 0.0
            count, start = g.count[group], g.start[group]
            s.items[g.cell[group]] -= count
            for k in range(count):
                places[size + k] = start + k
            size += count
    places[size : size + 3] = places[max(size - 1, 0)]
    return size, opened


@jit
def _slopes(g: Groups, s: Scratch, out: Any) -> None:
    """Write the mean weight of what is left of each cell."""
    s.cells[:] = 0
    for j in range(len(g.start)):
        s.cells[j & 3, g.cell[j]] += s.mass[j]
    for c in range(len(out)):
        mass = (s.cells[0, c] + s.cells[1, c]) + (s.cells[2, c] + s.cells[3, c])
        out[c] = mass / max(s.items[c], 1.0)


@jit
def _draw(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, runs: int, number: int) -> None:
    """Find the group of each run: the first that ends beyond where the run lies, and of some weight."""
    s.numbers[0], draw, ends = runs / n.measures[i, 1], n.draw[i], s.ends
    state, groups = _state(r.seed, 2 * number), len(g.start)
    out = s.numbers.ctypes.data, ends.ctypes.data, s.most.ctypes.data
    call(r.draw, (s.mass.ctypes.data, len(g.size), state, runs, *out))
    if ends[groups - 1] < runs:  # by rounding
        last = groups - 1
        while s.mass[last] == 0:
            last -= 1
        ends[last:groups] = runs
    draw[: runs + 8] = 0
    before = np.uint64(0)
    for j in range(groups):
        draw[before] = j  # a later group with as many runs before it takes the place over
        before = np.uint64(ends[j])
    call(r.fill, (draw.ctypes.data, runs, s.weight.ctypes.data, n.odds[i].ctypes.data))


@jit
def place(g: Groups, s: Scratch, group: int, turn: int, places: Any) -> None:
    """Write the rows of a run of a group; its runs follow each other around it."""
    count, start = g.count[group], g.start[group]
    offset = s.offset[group] + 4 * turn
    if offset >= count:
        offset %= count
    for k in range(4):
        places[k] = start + offset
        offset = offset + 1 if offset + 1 < count else 0


@jit
def list_rows(r: Rules, g: Groups, s: Scratch, n: Lists, i: int) -> None:
    """List the rows of the runs of a query."""
    first, runs, turn, draw = (n.sizes[i, 0] + 3) & ~3, n.sizes[i, 2], 0, n.draw[i]
    for run in range(runs):
        turn = turn + 1 if run > 0 and draw[run] == draw[run - 1] else 0
        place(g, s, draw[run], turn, n.places[i, first + 4 * run :])
    end = first + 4 * runs
    n.places[i, end : end + r.ahead] = 0


@jit
def _renew(r: Rules, g: Groups, s: Scratch, logits: Any, scale: float, chosen: int) -> tuple[float, float, float]:
    """Take weights of far groups relative to the largest of their own; return that, their sum and that of noises."""
    top, total, noise = -np.inf, 0.0, 0.0
    for j in range(len(g.start)):
        s.weight[j] = logits[g.cell[j]] + log_mean(r, scale * g.deviation[j])
        if s.bucket[j] >= chosen:
            top = max(top, s.weight[j])
    for j in range(len(g.start)):
        s.weight[j] = math.exp(s.weight[j] - top)
        if s.bucket[j] >= chosen:
            own = scale * g.deviation[j]
            apart = log_mean(r, 2 * own) - 2 * log_mean(r, own)
            s.mass[j] = g.size[j] * s.weight[j]
            total += s.mass[j]
            noise += s.mass[j] * (math.expm1(apart) - apart + r.floor)
    return top, total, noise


@jit
def _choose(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, query: Any, number: int) -> None:
    budget = r.budget - len(g.held) - len(query)
    scale = deviation(r, g, query, n.cells[i])
    top = weigh(r, g, s, n.cells[i], scale)
    if budget >= g.items:
        chosen, runs, total, noise, listed = s.sizes.shape[1], 0, 0.0, 0.0, len(g.start)
        for j in range(listed):
            s.candidates[j] = j
    else:
        chosen, runs, total, noise, listed = _share(r, g, s, budget)
    size, opened = _open(g, s, n, i, chosen, listed)
    if runs > 0 and total < TINY:
        top, total, noise = _renew(r, g, s, n.cells[i], scale, chosen)
    log_error = top + (math.log(total) + math.log(noise) - math.log(4.0 * runs)) / 2 if runs > 0 else -np.inf
    steady = runs > 0 and noise <= r.trusted**2 * total * (4 * runs)
    sizes, measures = n.sizes[i], n.measures[i]
    sizes[0], sizes[1], sizes[2], sizes[3] = size, opened, runs, int(steady)
    measures[0], measures[1], measures[2] = top, total, log_error
    if steady:
        _slopes(g, s, n.slopes[i])
    if runs > 0:
        _draw(r, g, s, n, i, runs, number)
    n.draw[i, runs] = _NONE
    end = (size + 3) & ~3
    n.places[i, end : end + r.ahead] = 0


@jit
def choose(r: Rules, g: Groups, s: Scratch, n: Lists, queries: Any, first: int) -> int:
    """List what the queries of a block take; the first of them has number `first`."""
    state = _state(r.seed, 2 * (first // r.shared) + 1)
    call(r.offsets, (g.size.ctypes.data, len(g.size), state, s.offset.ctypes.data))
    s.most[:] = 0
    for i in range(len(queries)):
        _choose(r, g, s, n, i, queries[i], first + i)
    return 0
