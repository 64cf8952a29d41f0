"""What a query of a catalog does, compiled once: `rfkernels.catalog.plan` and `rfkernels.catalog.estimates` specify it.

Queries go through in blocks: first all are planned, then the groups are passed over once, in stretches that fit a
cache, by all queries of the block, then each is summed up.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels.backends.numba.schedule import call, jit


class Rules(NamedTuple):
    """Addresses of kernels, sizes, and the numbers of the specification."""

    dots: int
    largest: int
    guess: int
    exponentials: int
    rows: int
    row_stride: int
    budget: int
    ahead: int
    stretch: int
    seed: Any
    fewest_runs: int
    per_nat: float
    trusted: float
    heavy: float
    most: float
    floor: Any


class Groups(NamedTuple):
    """The groups of a table."""

    start: Any
    count: Any
    cell: Any
    spread: Any


class Scratch(NamedTuple):
    """Memory of a thread, of which each query uses all in turn; arrays of groups are padded to multiples of 8."""

    log_mean: Any
    squares: Any
    weight: Any
    variance: Any
    score: Any
    bucket: Any
    taken: Any
    sums: Any
    noises: Any
    items: Any
    x: Any
    number: Any


class Lists(NamedTuple):
    """What the queries of a block take: arrays whose first axis is the query.

    `places` are rows: those of opened groups, up to a multiple of 4, then those of runs, then zeros. `marks` tell how
    many of either come before each stretch of groups. `slopes` are of cells, `draw` has the group and `odds` the
    weight of an item of each run.
    """

    places: Any
    logits: Any
    marks: Any
    opened: Any
    draw: Any
    odds: Any
    slopes: Any
    sizes: Any
    measures: Any


@jit
def mixed(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@jit
def _uniform(state: Any, place: int) -> float:
    return float(mixed(state + np.uint64(0x9E3779B97F4A7C15) * np.uint64(place)) >> np.uint64(11)) * 2.0**-53


@jit
def _guess(r: Rules, g: Groups, s: Scratch, logits: Any, scale: float) -> float:
    """Fill the arrays of groups; return the largest log mean weight."""
    groups = len(g.start)
    for i in range(groups):
        square = min(scale * g.spread[i], r.most)
        s.squares[i] = square
        s.log_mean[i] = logits[g.cell[i]] + square / 2
    size, number = len(s.log_mean), s.number.ctypes.data
    call(r.largest, (s.log_mean.ctypes.data, size, number))
    arrays = (s.weight.ctypes.data, s.variance.ctypes.data, s.score.ctypes.data)
    call(r.guess, (s.log_mean.ctypes.data, s.squares.ctypes.data, size, number, r.floor.ctypes.data, *arrays))
    return s.number[0]


@jit
def _share(r: Rules, g: Groups, s: Scratch, budget: int) -> tuple[int, int, float]:
    """Return the first bucket that is not opened, the number of runs, and the predicted relative error."""
    call(r.largest, (s.score.ctypes.data, len(s.score), s.number.ctypes.data))
    best, last = s.number[0], len(s.taken) - 1
    s.taken[:] = 0
    s.sums[:] = 0
    s.noises[:] = 0
    total = 0.0
    for i in range(len(g.start)):
        bucket = int(min(r.per_nat * (best - s.score[i]), last))
        weight = g.count[i] * s.weight[i]
        s.bucket[i] = bucket
        s.taken[bucket] += g.count[i]
        s.sums[bucket] += weight
        s.noises[bucket] += weight * s.variance[i]
        total += weight
    for bucket in range(last, 0, -1):
        s.sums[bucket - 1] += s.sums[bucket]
        s.noises[bucket - 1] += s.noises[bucket]
    chosen, runs, least, taken = 0, budget // 4, np.inf, 0
    for bucket in range(last + 1):
        left = (budget - taken) // 4
        if left < r.fewest_runs:
            break
        variance = s.sums[bucket] * s.noises[bucket] / (4 * left)
        if variance < least:
            chosen, runs, least = bucket, left, variance
        taken += s.taken[bucket]
    return chosen, runs, math.sqrt(least) / total


@jit
def _open(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, chosen: int) -> tuple[int, int, float, int]:
    """List rows of opened groups and sum up weights of the others; return items, groups, total and the last of those."""
    places, slopes, marks = n.places[i], n.slopes[i], n.marks[i, 0]
    slopes[:] = 0
    s.items[:] = 0
    size, opened, total, last = 0, 0, 0.0, -1
    for j in range(len(g.start)):
        if j % r.stretch == 0:
            marks[j // r.stretch] = (size + 3) & ~3
        if s.bucket[j] < chosen:
            n.opened[i, opened] = j
            opened += 1
            for row in range(g.start[j], g.start[j] + g.count[j]):
                places[size] = row
                size += 1
        else:
            weight = g.count[j] * s.weight[j]
            total += weight
            slopes[g.cell[j]] += weight
            s.items[g.cell[j]] += g.count[j]
            if weight > 0:
                last = j
    marks[-1] = (size + 3) & ~3
    places[size : size + 3] = places[max(size - 1, 0)]
    for c in range(len(slopes)):
        slopes[c] /= max(s.items[c], 1)
    return size, opened, total, last


@jit
def _draw(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, plan: tuple[int, int, float, int], state: Any) -> None:
    """List rows of runs, from place `first` on."""
    first, runs, total, last = plan
    chosen, places, marks = n.sizes[i, 3], n.places[i], n.marks[i, 1]
    group, own, end, mark, at = -1, -1, 0.0, 0, first
    for run in range(runs):
        where = (run + _uniform(state, 2 * run + 1)) / runs * total
        while end <= where and group < last:
            group += 1
            if group % r.stretch == 0:
                marks[mark] = at
                mark += 1
            if s.bucket[group] >= chosen:
                end += g.count[group] * s.weight[group]
                own = group
        count, start = g.count[own], g.start[own]
        offset = min(int(_uniform(state, 2 * run + 2) * count), count - 1)
        n.draw[i, run], n.odds[i, run] = own, s.weight[own]
        for _ in range(4):
            places[at] = start + offset
            offset = offset + 1 if offset + 1 < count else 0
            at += 1
    marks[mark:] = at
    places[at : at + r.ahead] = 0


@jit
def _choose(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, logits: Any, scale: float, dim: int, state: Any) -> None:
    top = _guess(r, g, s, logits, scale)
    chosen, runs, error = _share(r, g, s, r.budget - len(logits) - dim)
    size, opened, total, last = _open(r, g, s, n, i, chosen)
    if error > r.trusted:
        n.slopes[i] = 0
    if total <= 0:
        runs = 0
    n.sizes[i] = (size, opened, runs, chosen)
    n.measures[i] = (top, total, error)
    _draw(r, g, s, n, i, ((size + 3) & ~3, runs, total, last), state)


@jit
def _multiply(r: Rules, n: Lists, queries: Any) -> None:
    """Pass over groups once with all queries, stretch by stretch."""
    for stretch in range(n.marks.shape[2] - 1):
        for i in range(len(queries)):
            for part in range(2):
                first, last = n.marks[i, part, stretch], n.marks[i, part, stretch + 1]
                if first < last:
                    places, out = n.places[i, first:].ctypes.data, n.logits[i, first:].ctypes.data
                    query = queries[i].ctypes.data
                    call(r.dots, (r.rows, r.row_stride, places, last - first, query, queries.shape[1], out))


@jit
def _known(g: Groups, n: Lists, i: int, logits: Any) -> float:
    """Return what the control variate comes to over opened items."""
    known, at = 0.0, 0
    for j in range(n.sizes[i, 1]):
        group = n.opened[i, j]
        count, cell = g.count[group], g.cell[group]
        total = 0.0
        for k in range(at, at + count):
            total += n.logits[i, k]
        at += count
        known += n.slopes[i, cell] * (total - count * logits[cell])
    return known


@jit
def _sum_up(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, logits: Any, out: Any) -> None:
    size, _, runs, _ = n.sizes[i]
    guessed, total, error = n.measures[i]
    first, x = (size + 3) & ~3, s.x
    end = first + 4 * runs
    for j in range(end):
        x[j] = n.logits[i, j]
    x[size:first] = -np.inf
    padded = (end + 7) & ~7
    x[end:padded] = -np.inf
    call(r.largest, (x.ctypes.data, padded, s.number.ctypes.data))
    top = s.number[0] = max(s.number[0], guessed) if runs > 0 else s.number[0]
    call(r.exponentials, (x.ctypes.data, padded, s.number.ctypes.data))
    head = 0.0
    for j in range(0, first, 4):
        head += (x[j] + x[j + 1]) + (x[j + 2] + x[j + 3])
    relative, even = math.exp(guessed - top), 0.0
    plain = moved = plain_apart = moved_apart = plain_even = 0.0
    for run in range(runs):
        j, cell = first + 4 * run, g.cell[n.draw[i, run]]
        expected = total / (4 * runs * n.odds[i, run])
        mean = n.logits[i, j] + n.logits[i, j + 1] + n.logits[i, j + 2] + n.logits[i, j + 3] - 4 * logits[cell]
        own = ((x[j] + x[j + 1]) + (x[j + 2] + x[j + 3])) * expected
        both = own - relative * n.slopes[i, cell] * mean * expected
        plain += own
        moved += both
        if run % 2:
            plain_apart += (own - plain_even) ** 2
            moved_apart += (both - even) ** 2
        plain_even, even = own, both
    known = relative * _known(g, n, i, logits)
    z, apart = head + moved - known, moved_apart
    if z <= 0:
        z, apart = head + plain, plain_apart
    pairs = runs // 2 * 2
    seen = math.sqrt(apart * runs / pairs) / z if pairs > 0 else 0.0
    out[0] = top + math.log(z)
    out[1] = max(seen, error) if error > r.heavy and runs > 0 else seen
    out[2] = size + 4 * runs


@jit
def estimate(r: Rules, g: Groups, s: Scratch, n: Lists, queries: Any, logits: Any, scales: Any, first: int, out: Any) -> int:
    """Estimate log-normalizers of the queries of a block, the first of which has number `first`."""
    for i in range(len(queries)):
        state = mixed(r.seed + np.uint64(0x9E3779B97F4A7C15) * np.uint64(first + i + 1))
        _choose(r, g, s, n, i, logits[i], scales[i], queries.shape[1], state)
    _multiply(r, n, queries)
    for i in range(len(queries)):
        _sum_up(r, g, s, n, i, logits[i], out[i])
    return 0
