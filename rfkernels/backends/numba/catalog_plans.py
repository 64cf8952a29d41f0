"""What queries of a catalog do, compiled: `rfkernels.catalog.plan` specifies it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels.backends.numba.catalog_layout import Groups, Lists, Rules, Scratch
from rfkernels.backends.numba.schedule import call, jit

_TINY = 1e-100
"""The sum of far weights from which on they are taken relative to their own largest, as some may be 0 otherwise."""

_ONE, _TWO = np.uint64(1), np.uint64(2)  # indices without a sign need no look at whether they count from the end


@jit
def _mixed(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@jit
def _state(seed: Any, query: int) -> Any:
    return _mixed(seed + np.uint64(0x9E3779B97F4A7C15) * np.uint64(query + 1))


@jit
def _uniform(state: Any, place: int) -> float:
    return float(_mixed(state + np.uint64(0x9E3779B97F4A7C15) * np.uint64(place)) >> np.uint64(11)) * 2.0**-53


@jit
def _logits(r: Rules, g: Groups, query: Any, out: Any) -> float:
    """Write dot products with the means of cells; return the variance of logits about them where the spread is 1."""
    dim, cells = len(query), len(g.held)
    place, row = g.every.ctypes.data, query.ctypes.data
    rows = (cells + dim + 3) & ~3
    call(r.wide_dots, (g.means.ctypes.data, g.means.strides[0], place, rows, row, out.ctypes.data))
    scale = 0.0
    for j in range(dim):
        scale += out[cells + j] * query[j]
    return scale


@jit
def _guess(r: Rules, g: Groups, s: Scratch, logits: Any, scale: float) -> float:
    """Fill the arrays of groups; return the largest log mean weight."""
    deviation = math.sqrt(max(scale, 0.0))
    for i in range(len(g.start)):
        own = deviation * g.deviation[i]
        low, high = own if own < r.edge else r.edge, 2 * own if 2 * own < r.edge else r.edge
        mean = low * (own - low / 2)
        s.apart[i] = high * (2 * own - high / 2) - 2 * mean
        s.log_mean[i] = logits[g.cell[i]] + mean
    size, number = len(s.log_mean), s.number.ctypes.data
    call(r.largest, (s.log_mean.ctypes.data, size, number))
    given = (s.log_mean.ctypes.data, s.apart.ctypes.data, g.size.ctypes.data, size, number, r.floor.ctypes.data)
    out = (s.weight.ctypes.data, s.mass.ctypes.data, s.noise.ctypes.data, s.score.ctypes.data)
    call(r.guess, (*given, *out))
    return float(s.number[0])


@jit
def _share(r: Rules, g: Groups, s: Scratch, budget: int) -> tuple[int, int]:
    """Return the first bucket that is not opened, and the number of runs."""
    call(r.largest, (s.score.ctypes.data, len(s.score), s.number.ctypes.data))
    best, last = s.number[0], s.buckets.shape[1] - 1
    for i in range(len(s.bucket)):
        place = r.per_nat * (best - s.score[i])
        s.bucket[i] = np.uint32(place if place < last else last)
    sums = s.buckets
    sums[:] = 0
    for i in range(len(g.start)):
        own, j = i & 3, s.bucket[i]  # neighbours are often of one bucket: not to wait for each other's sums
        sums[own, j, 0] += g.size[i]
        sums[own, j, 1] += s.mass[i]
        sums[own, j, 2] += s.noise[i]
    for j in range(last, -1, -1):
        for k in range(3):
            sums[0, j, k] += sums[1, j, k] + (sums[2, j, k] + sums[3, j, k])
            if k > 0 and j < last:
                sums[0, j, k] += sums[0, j + 1, k]
    chosen, runs, least, taken = 0, budget // 4, np.inf, 0
    for j in range(last + 1):
        left = (budget - taken) // 4
        if left < r.fewest_runs:
            break
        variance = sums[0, j, 1] * sums[0, j, 2] / (4 * left)
        if variance < least:
            chosen, runs, least = j, left, variance
        taken += int(sums[0, j, 0])
    return chosen, runs


@jit
def _open(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, chosen: int) -> tuple[int, int, float]:
    """List rows of opened groups and sum up the others; return numbers of items and groups, and the noise."""
    places, size, opened, total, noise = n.places[i], 0, 0, 0.0, 0.0
    s.cells[:] = 0
    s.items[:] = g.held
    for j in range(len(g.start)):
        if j % r.stretch == 0:
            n.marks[i, 0, j // r.stretch] = (size + 3) & ~3
        cell = g.cell[j]
        if s.bucket[j] < chosen:
            n.opened[i, opened] = j
            opened += 1
            s.items[cell] -= g.size[j]
            for row in range(g.start[j], g.start[j] + g.count[j]):
                places[size] = row
                size += 1
        else:
            total += s.mass[j]
            noise += s.noise[j]
            s.cells[j & 3, cell] += s.mass[j]
        s.ends[j] = total
    n.marks[i, 0, -1] = (size + 3) & ~3
    places[size : size + 3] = places[max(size - 1, 0)]
    for c in range(len(s.items)):
        mass = (s.cells[0, c] + s.cells[1, c]) + (s.cells[2, c] + s.cells[3, c])
        n.slopes[i, c] = mass / max(s.items[c], 1.0)
    return size, opened, noise


@jit
def _draw(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, runs: int, state: Any) -> None:
    """Find the group of each run: the first that ends beyond where the run lies, and of some weight."""
    total, where, draw = s.ends[-1], s.where, n.draw[i]
    last = len(g.start) - 1
    while last > 0 and s.ends[last - 1] == total:
        last -= 1
    for run in range(runs):
        where[run + 1] = (run + _uniform(state, 2 * run + 1)) / runs * total
        s.turn[run] = _uniform(state, 2 * run + 2)
    where[0], where[runs + 1], where[runs + 2] = -np.inf, np.inf, np.inf
    draw[: runs + 1] = 0
    before, rate, most, first = np.uint64(0), runs / total, np.uint64(runs), (n.sizes[i, 0] + 3) & ~3
    for j in range(last + 1):
        if j % r.stretch == 0:
            n.marks[i, 1, j // r.stretch] = first + 4 * np.int64(before)
        draw[before] = j  # a later group with as many runs before it takes the place over
        end = s.ends[j]
        near = np.uint64(np.int64(end * rate))  # right, or too small by one; by rounding, too large
        near = near if near < most else most
        before = near - _ONE + np.uint64(where[near] < end)
        before += np.uint64(where[near + _ONE] < end) + np.uint64(where[near + _TWO] < end)
    n.marks[i, 1, last // r.stretch + 1 :] = first + 4 * runs


@jit
def _run(g: Groups, s: Scratch, n: Lists, i: int, runs: int) -> None:
    """List the rows of runs."""
    places, own, at = n.places[i], n.draw[i, 0], (n.sizes[i, 0] + 3) & ~3
    for run in range(runs):
        own = n.draw[i, run] if n.draw[i, run] > own else own
        count, start = g.count[own], g.start[own]
        offset = min(int(s.turn[run] * count), count - 1)
        n.draw[i, run], n.odds[i, run] = own, s.weight[own]
        for _ in range(4):
            places[at] = start + offset
            offset = offset + 1 if offset + 1 < count else 0
            at += 1


@jit
def _renew(r: Rules, g: Groups, s: Scratch, chosen: int) -> float:
    """Take weights of far groups relative to the largest of their own, and return that."""
    top = -np.inf
    for j in range(len(g.start)):
        if s.bucket[j] >= chosen:
            top = max(top, s.log_mean[j])
    for j in range(len(g.start)):
        if s.bucket[j] >= chosen:
            s.weight[j] = math.exp(s.log_mean[j] - top)
            s.mass[j] = g.size[j] * s.weight[j]
            s.noise[j] = s.mass[j] * (math.expm1(s.apart[j]) - s.apart[j] + r.floor[0])
    return top


@jit
def _choose(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, query: Any, number: int) -> None:
    budget = r.budget - len(g.held) - len(query)
    scale = _logits(r, g, query, n.cells[i])
    top = _guess(r, g, s, n.cells[i], scale)
    chosen, runs = _share(r, g, s, budget)
    if budget >= g.held.sum():
        chosen, runs = s.buckets.shape[1], 0
    size, opened, noise = _open(r, g, s, n, i, chosen)
    if runs > 0 and s.ends[-1] < _TINY:
        top = _renew(r, g, s, chosen)
        size, opened, noise = _open(r, g, s, n, i, chosen)
    total, log_error = s.ends[-1], -np.inf
    if runs > 0:
        log_error = top + (math.log(total) + math.log(noise) - math.log(4.0 * runs)) / 2
    steady = runs > 0 and noise <= r.trusted**2 * total * (4 * runs)
    n.sizes[i] = (size, opened, runs, int(steady))
    n.measures[i] = (top, total, log_error)
    first = (size + 3) & ~3
    n.marks[i, 1] = first
    if runs > 0:
        _draw(r, g, s, n, i, runs, _state(r.seed, number))
        _run(g, s, n, i, runs)
    n.places[i, first + 4 * runs : first + 4 * runs + r.ahead] = 0


@jit
def choose(r: Rules, g: Groups, s: Scratch, n: Lists, queries: Any, first: int) -> int:
    """List what the queries of a block take; the first of them has number `first`."""
    for i in range(len(queries)):
        _choose(r, g, s, n, i, queries[i], first + i)
    return 0
