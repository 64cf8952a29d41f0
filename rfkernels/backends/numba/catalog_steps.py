"""What a query of a catalog does, compiled once: `rfkernels.catalog.plan` and `rfkernels.catalog.estimates` specify it.

Queries go through in blocks: first all are planned, then the groups are passed over once, in stretches that fit a
cache, by all queries of the block, then each is summed up.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels.backends.numba.schedule import call, jit

_TINY = 1e-200
"""The sum of far weights from which on they are taken relative to their own largest, as some may be 0 otherwise."""

_ONE, _TWO = np.uint64(1), np.uint64(2)  # indices without a sign need no look at whether they count from the end


class Rules(NamedTuple):
    """Addresses of kernels, sizes, and the numbers of the specification."""

    dots: int
    wide_dots: int
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
    """The groups of a table, and its cells: what they hold, and means and then the shape in rows of float64."""

    start: Any
    count: Any
    cell: Any
    spread: Any
    size: Any
    held: Any
    means: Any
    every: Any


class Scratch(NamedTuple):
    """Memory of a thread, of which each query uses all in turn; arrays of groups are padded to multiples of 8."""

    log_mean: Any
    squares: Any
    weight: Any
    mass: Any
    noise: Any
    score: Any
    bucket: Any
    ends: Any
    buckets: Any
    cells: Any
    items: Any
    where: Any
    turn: Any
    x: Any
    query: Any
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
    cells: Any
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
def _logits(r: Rules, g: Groups, s: Scratch, query: Any, out: Any) -> float:
    """Write dot products with the means of cells; return the variance of logits about them where the spread is 1."""
    s.query[:] = query
    dim, cells = len(query), len(g.held)
    place, row = g.every.ctypes.data, s.query.ctypes.data
    rows = (cells + dim + 3) & ~3
    call(r.wide_dots, (g.means.ctypes.data, g.means.strides[0], place, rows, row, out.ctypes.data))
    scale = 0.0
    for j in range(dim):
        scale += out[cells + j] * s.query[j]
    return scale


@jit
def _guess(r: Rules, g: Groups, s: Scratch, logits: Any, scale: float) -> float:
    """Fill the arrays of groups; return the largest log mean weight."""
    for i in range(len(g.start)):
        square = scale * g.spread[i]
        square = square if square < r.most else r.most
        s.squares[i] = square
        s.log_mean[i] = logits[g.cell[i]] + square / 2
    size, number = len(s.log_mean), s.number.ctypes.data
    call(r.largest, (s.log_mean.ctypes.data, size, number))
    given = (s.log_mean.ctypes.data, s.squares.ctypes.data, g.size.ctypes.data, size, number, r.floor.ctypes.data)
    out = (s.weight.ctypes.data, s.mass.ctypes.data, s.noise.ctypes.data, s.score.ctypes.data)
    call(r.guess, (*given, *out))
    return s.number[0]


@jit
def _share(r: Rules, g: Groups, s: Scratch, budget: int) -> tuple[int, int, float]:
    """Return the first bucket that is not opened, the number of runs, and the predicted relative error."""
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
    return chosen, runs, math.sqrt(least) / sums[0, 0, 1]


@jit
def _open(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, chosen: int) -> tuple[int, int]:
    """List rows of opened groups and sum up the weights of the others; return the numbers of items and of groups."""
    places, size, opened, total = n.places[i], 0, 0, 0.0
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
            s.cells[j & 3, cell] += s.mass[j]
        s.ends[j] = total
    n.marks[i, 0, -1] = (size + 3) & ~3
    places[size : size + 3] = places[max(size - 1, 0)]
    for c in range(len(s.items)):
        mass = (s.cells[0, c] + s.cells[1, c]) + (s.cells[2, c] + s.cells[3, c])
        n.slopes[i, c] = mass / max(s.items[c], 1.0)
    return size, opened


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
        beyond = (
            np.uint64(where[near] < end) + np.uint64(where[near + _ONE] < end) + np.uint64(where[near + _TWO] < end)
        )
        before = near + beyond - _ONE
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
def _renew(g: Groups, s: Scratch, chosen: int) -> float:
    """Take weights of far groups relative to the largest of their own; return their sum."""
    top, total = -np.inf, 0.0
    for j in range(len(g.start)):
        if s.bucket[j] >= chosen:
            top = max(top, s.log_mean[j])
    for j in range(len(g.start)):
        if s.bucket[j] >= chosen:
            s.weight[j] = math.exp(s.log_mean[j] - top)
            total += g.size[j] * s.weight[j]
        s.ends[j] = total
    return total


@jit
def _choose(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, query: Any, number: int) -> None:
    budget = r.budget - len(g.held) - len(query)
    scale = _logits(r, g, s, query, n.cells[i])
    top = _guess(r, g, s, n.cells[i], scale)
    chosen, runs, error = _share(r, g, s, budget)
    if budget >= g.held.sum():
        chosen, runs, error = s.buckets.shape[1], 0, 0.0
    size, opened = _open(r, g, s, n, i, chosen)
    if error > r.trusted:
        n.slopes[i] = 0
    total = s.ends[-1]
    if runs > 0 and total < _TINY:
        total = _renew(g, s, chosen)
    n.sizes[i] = (size, opened, runs)
    n.measures[i] = (top, total, error)
    first = (size + 3) & ~3
    n.marks[i, 1] = first
    if runs > 0:
        _draw(r, g, s, n, i, runs, mixed(r.seed + np.uint64(0x9E3779B97F4A7C15) * np.uint64(number + 1)))
        _run(g, s, n, i, runs)
    n.places[i, first + 4 * runs : first + 4 * runs + r.ahead] = 0


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
                    call(r.dots, (r.rows, r.row_stride, places, last - first, query, out))


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
    size, _, runs = n.sizes[i]
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
def _take(r: Rules, g: Groups, s: Scratch, n: Lists, queries: Any, first: int) -> None:
    for i in range(len(queries)):
        _choose(r, g, s, n, i, queries[i], first + i)
    _multiply(r, n, queries)


@jit
def estimate(r: Rules, g: Groups, s: Scratch, n: Lists, queries: Any, first: int, out: Any) -> int:
    """Estimate log-normalizers of the queries of a block, the first of which has number `first`."""
    _take(r, g, s, n, queries, first)
    for i in range(len(queries)):
        _sum_up(r, g, s, n, i, n.cells[i], out[i])
    return 0


@jit
def evaluate(r: Rules, g: Groups, s: Scratch, n: Lists, queries: Any, first: int, out: tuple[Any, Any, Any]) -> int:
    """Write rows, logits and log weights of what the queries of a block take."""
    _take(r, g, s, n, queries, first)
    rows, logits, log_weights = out
    for i in range(len(queries)):
        size, _, runs = n.sizes[i]
        drawn = (size + 3) & ~3
        for j in range(size):
            rows[i, j], logits[i, j], log_weights[i, j] = n.places[i, j], n.logits[i, j], 0.0
        for j in range(4 * runs):
            rows[i, size + j], logits[i, size + j] = n.places[i, drawn + j], n.logits[i, drawn + j]
        for run in range(runs):
            weight = math.log(n.measures[i, 1] / (4 * runs * n.odds[i, run]))
            log_weights[i, size + 4 * run : size + 4 * run + 4] = weight
        end = size + 4 * runs
        rows[i, end:], logits[i, end:], log_weights[i, end:] = -1, -np.inf, -np.inf
    return 0


@jit
def absorb(largest: int, total: int, part: int, logits: Any, number: Any, state: Any) -> int:
    """Add exponentials of logits, `part` columns at a time, to the largest logit and the sum relative to it of each."""
    for i in range(len(logits)):
        for first in range(0, logits.shape[1], part):
            x = logits[i, first : first + part].ctypes.data
            call(largest, (x, part, number.ctypes.data))
            if number[0] == -np.inf:
                continue
            if number[0] > state[i, 0]:
                state[i, 1] *= math.exp(state[i, 0] - number[0])
                state[i, 0] = number[0]
            number[0] = state[i, 0]
            call(total, (x, part, number.ctypes.data, number[1:].ctypes.data))
            state[i, 1] += number[1]
    return 0
