"""What queries of a catalog do, compiled: `rfkernels.catalog.plan` specifies it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_guesses import Guesses
from rfkernels.backends.numba.catalog_kernels import TOGETHER
from rfkernels.backends.numba.catalog_layout import Lists, Rules, Scratch, at
from rfkernels.backends.numba.catalog_plan_groups import (
    complete,
    decide,
    draw_groups,
    few_groups,
    log_mean,
    open_groups,
    sum_others,
    take,
)
from rfkernels.backends.numba.catalog_rays import drop_draws, look_along, open_along
from rfkernels.backends.numba.catalog_taken import end_lists, note
from rfkernels.backends.numba.compiling import call, entry, jit
from rfkernels.backends.numba.records import view
from rfkernels.catalog.rays import SHARE

TINY = 1e-100
"""Weights relative to the largest are looked at anew where they are less: some may be 0 that are not."""

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""What states of random numbers move on by from one to the next."""

_LOOKED_AT = 8
"""One query in so many is asked how many runs it takes of each group: rows are fetched ahead for what those take."""


@jit
def _mixed(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@jit
def state_of(seed: Any, stream: int) -> Any:
    """Return the state of a stream of random numbers."""
    return _mixed(seed + GOLDEN * np.uint64(stream + 1))


@jit
def uniform(state: Any, place: int) -> float:
    """Return the number in [0, 1) at a place of a stream."""
    return float(_mixed(state + GOLDEN * np.uint64(place + 1)) >> np.uint64(11)) * 2.0**-53


@jit
def cell_logits(r: Rules, g: Groups, query: Any, out: Any) -> None:
    """Write dot products with the means of cells."""
    rows, given = (len(g.held) + 3) & ~3, (g.means.ctypes.data, g.means.strides[0], g.every.ctypes.data)
    call(r.wide_dots, (*given, rows, query.ctypes.data, out.ctypes.data))


@jit
def all_cell_logits(r: Rules, g: Groups, n: Any, queries: Any) -> None:
    """Write dot products of all queries with the means of cells, which are read once for some queries."""
    rows, end = (len(g.held) + 3) & ~3, len(queries) // TOGETHER * TOGETHER
    given = g.means.ctypes.data, g.means.strides[0], g.every.ctypes.data, rows
    for i in range(0, end, TOGETHER):
        own = queries[i].ctypes.data, queries.strides[0], n.cells[i].ctypes.data, n.cells.strides[0]
        call(r.block_dots, (*given, *own))
    for i in range(end, len(queries)):
        cell_logits(r, g, queries[i], n.cells[i])


@jit
def shares(r: Rules, v: Guesses, s: Scratch, size: int, logits: Any) -> float:
    """Fill the arrays of cells relative to the largest mean weight of a group, whose log is returned."""
    given = logits.ctypes.data, v.top[size].ctypes.data, v.mass[size].ctypes.data, v.noise[size].ctypes.data
    out = s.share.ctypes.data, s.base.ctypes.data, s.far.ctypes.data, s.noise.ctypes.data, s.score.ctypes.data
    call(r.shares, (*given, v.best[size].ctypes.data, v.top.shape[1], s.numbers.ctypes.data, *out))
    return float(s.numbers[0])


@jit
def _queue(s: Scratch, cell: int, bucket: int) -> None:
    s.following[cell] = s.first[bucket]
    s.first[bucket] = cell


@jit
def _candidates(r: Rules, g: Groups, v: Guesses, s: Scratch, size: int, budget: int) -> tuple[int, int]:
    """List groups that may be opened, bucket by bucket; return their number, and how many buckets hold them."""
    buckets, best = len(s.first), s.score[v.top.shape[1]]
    call(r.buckets, (s.score.ctypes.data, v.top.shape[1], s.bucket.ctypes.data))
    for j in range(buckets):
        s.first[j] = -1
    for c in range(len(g.held)):
        s.turn[c] = g.first[c]
        if s.bucket[c] < buckets - 1:
            _queue(s, c, s.bucket[c])
    listed, left = 0, budget
    for bucket in range(buckets - 1):
        items, end, c = 0, listed, s.first[bucket]
        while c >= 0:
            following, k, own = s.following[c], s.turn[c], bucket
            while k < g.first[c + 1]:
                group = v.order[size, k]
                depth = r.per_nat * (best - (s.base[c] + v.score[size, group]))
                own = int(depth) if depth < buckets - 1 else buckets - 1
                if own > bucket:
                    break
                s.candidates[end], s.depths[end] = group, bucket
                items, end, k = items + g.count[group], end + 1, k + 1
            s.turn[c] = k
            if bucket < own < buckets - 1:
                _queue(s, c, own)
            c = following
        if (left - items) // r.run < r.fewest_runs:
            return listed, bucket
        s.sizes[bucket], listed, left = items, end, left - items
    return listed, buckets - 1


@jit
def _rest(g: Groups, v: Guesses, s: Scratch, size: int, touched: int) -> None:
    """Sum up the groups of cells that have candidates, but for the first in the order of scores, which are taken."""
    for j in range(touched):
        c = s.touched[j]
        k = g.first[c] + s.taken[c]
        some = s.share[c] if k < g.first[c + 1] else 0.0
        s.far[c], s.noise[c] = some * v.mass_from[size, k], some * v.noise_from[size, k]


@jit
def _decide(r: Rules, g: Groups, v: Guesses, s: Scratch, size: int, budget: int) -> tuple[int, float, float, int]:
    """Find how many groups of each cell are opened; return runs, the sums of the weights and noises of others.

    The last number is how many cells are listed as touched: in others no group is opened. It is −1 where all groups but
    those of the last bucket are.
    """
    listed, last = _candidates(r, g, v, s, size, budget)
    taken = touched = 0
    for j in range(last):
        s.sums[0, j] = s.sums[1, j] = 0.0
        taken += s.sizes[j]
    for i in range(listed):
        group, j = s.candidates[i], s.depths[i]
        c = g.cell[group]
        own = s.share[c] * (g.size[group] * v.unit[size, group])
        s.sums[0, j] += own
        s.sums[1, j] += own * v.variance[size, group]
        if s.taken[c] == 0:
            s.touched[touched] = c
            touched += 1
        s.taken[c] += 1
    _rest(g, v, s, size, touched)
    call(r.totals, (s.far.ctypes.data, s.noise.ctypes.data, v.top.shape[1], s.numbers.ctypes.data))
    mass, noise, least = s.numbers[0], s.numbers[1], np.inf
    chosen, runs, total, noises = 0, budget // r.run, mass, noise
    for j in range(last, -1, -1):
        if j < last:
            if s.sizes[j] == 0:
                continue
            mass, noise, taken = mass + s.sums[0, j], noise + s.sums[1, j], taken - s.sizes[j]
        left = (budget - taken) // r.run
        if mass * noise / (r.run * left) <= least:
            chosen, runs, total, noises, least = j, left, mass, noise, mass * noise / (r.run * left)
    if chosen == len(s.first) - 1:
        return runs, total, noises, -1
    for i in range(listed):
        if s.depths[i] >= chosen:
            s.taken[g.cell[s.candidates[i]]] -= 1
    _rest(g, v, s, size, touched)
    return runs, total, noises, touched


@jit
def _open(r: Rules, g: Groups, v: Guesses, s: Scratch, n: Lists, i: int, size: int) -> tuple[int, int]:
    """List opened groups and, where they are asked for, their rows; return numbers of items and groups."""
    items, opened = 0, 0
    for c in range(len(g.held)):
        s.items[c] = g.held[c]
        if s.taken[c] == 0:
            continue
        for k in range(g.first[c], g.first[c] + s.taken[c]):
            s.opened[v.order[size, k]] = True
        for group in range(g.first[c], g.first[c + 1]):
            if s.opened[group]:
                n.opened[i, opened] = group
                items = take(r, g, n, i, group, items)
                s.items[c] -= g.count[group]
                opened += 1
    return items, opened


@jit
def _renew(g: Groups, v: Guesses, s: Scratch, size: int, logits: Any) -> tuple[float, float, float]:
    """Take weights of far groups relative to the largest of their own; return that, their sum and that of noises."""
    top, total, noise = -np.inf, 0.0, 0.0
    for group in range(len(g.start)):
        s.mass[group] = logits[g.cell[group]] + log_mean(g, v.size[size] * g.deviation[group])
        if not s.opened[group]:
            top = max(top, s.mass[group])
    for c in range(len(g.held)):
        s.far[c] = 0.0
        for group in range(g.first[c], g.first[c + 1]):
            s.odds[group] = 0.0 if s.opened[group] else math.exp(s.mass[group] - top)
            s.mass[group] = g.size[group] * s.odds[group]
            s.far[c] += s.mass[group]
            noise += s.mass[group] * v.variance[size, group]
        total += s.far[c]
    return top, total, noise


@jit
def _draw(r: Rules, g: Groups, v: Guesses, s: Scratch, n: Lists, i: int, size: int, state: Any, touched: int) -> None:
    """Find the group of each run: the first that ends beyond where the run lies, and of some weight.

    In cells that are not touched there are no opened groups.
    """
    runs, draw, ends, odds, cells = n.sizes[i, 2], n.draw[i], s.ends, n.odds[i], len(g.held)
    s.numbers[0] = runs / n.measures[i, 1]
    rate, far, reached = s.numbers.ctypes.data, s.far.ctypes.data, s.reached.ctypes.data
    call(r.draw, (far, v.top.shape[1], state, runs, rate, ends.ctypes.data, reached))
    complete(ends, s.far[:cells], runs, n.measures[i, 1])
    for k in range(runs + 8):
        draw[k] = 0
    before = np.uint64(0)
    for c in range(cells):
        draw[before] = c  # a later cell with as many runs before it takes the place over
        before = np.uint64(ends[c])
    given = draw.ctypes.data, runs, state, rate, reached, far, g.first.ctypes.data, r.halvings
    unit = v.ends[size].ctypes.data, s.share.ctypes.data, v.unit[size].ctypes.data
    call(r.find, (*given, *unit, odds.ctypes.data))
    for j in range(touched):
        if s.taken[s.touched[j]] > 0:
            _walk(g, v, s, n, i, size, state, s.touched[j])


@jit
def _look_ahead(s: Scratch, draw: Any, runs: int) -> None:
    """Note the most runs of each group."""
    turn = 0
    for k in range(runs):
        turn = turn + 1 if k > 0 and draw[k] == draw[k - 1] else 1
        s.most[draw[k]] = max(s.most[draw[k]], turn)


@jit
def _walk(g: Groups, v: Guesses, s: Scratch, n: Lists, i: int, size: int, state: Any, c: int) -> None:
    """Find the groups of the runs in a cell one after the other: some are opened."""
    draw, odds, rate = n.draw[i], n.odds[i], s.numbers[0]
    first, stop, group, last = s.ends[c - 1] if c > 0 else 0, s.ends[c], g.first[c], g.first[c + 1] - 1
    if first == stop:
        return
    for j in range(group, last + 1):
        s.mass[j] = 0.0 if s.opened[j] else s.share[c] * (g.size[j] * v.unit[size, j])
    while last > group and s.mass[last] == 0:
        last -= 1
    end = s.reached[c] + s.mass[group] * rate
    for k in range(first, stop):
        at = k + uniform(state, k)
        while group < last and (s.mass[group] == 0 or end <= at):
            group += 1
            end += s.mass[group] * rate
        draw[k], odds[k] = group, s.mass[group] / g.size[group]


@jit
def _choose(
    r: Rules,
    g: Groups,
    v: Guesses,
    s: Scratch,
    n: Lists,
    i: int,
    size: int,
    query: Any,
    budget: int,
    state: Any,
) -> None:
    runs, total, noise, touched, closely, deep = 0, 0.0, 0.0, 0, False, False
    top = shares(r, v, s, size, n.cells[i])
    for c in range(len(g.held)):
        s.taken[c] = g.first[c + 1] - g.first[c] if budget >= g.items else 0
    looked, every = 0, budget
    if budget < g.items:
        most = min(budget // SHARE, budget - r.fewest_runs * r.run)
        looked, held = look_along(g, s, (top, v.least[size]), query, n.cells[i], most)
        budget -= held
        closely = few_groups(r, g, budget)
        if not closely:
            runs, total, noise, touched = _decide(r, g, v, s, size, budget)
            closely = touched < 0
        if closely:
            runs, total, noise, touched, deep = decide(r, g, v, s, size, budget, n.cells[i])
    listed = closely
    items, opened = open_groups(r, g, s, n, i, touched) if listed else _open(r, g, v, s, n, i, size)
    if runs > 0 and (total < TINY or deep):
        closely = True
        top, total, noise = _renew(g, v, s, size, n.cells[i])
    counts = open_along(r, g, s, n, i, looked, (items, opened))
    if runs > 0 and looked > 0:  # some of them are opened anyway
        runs = (every - counts[0]) // r.run
    if note(r, n, i, (*counts, runs), (top, total, noise)):
        if listed:
            sum_others(g, s, n, i, opened)
        # Next to opened groups that were guessed far too large, all others may be less than single precision has.
        scale = min(total, 1.0)
        n.measures[i, 0] += math.log(scale)
        for c in range(len(g.held)):
            n.slopes[i, c] = s.far[c] / (scale * max(s.items[c], 1.0))
    if runs > 0 and closely:
        draw_groups(r, g, s, n, i, state)
    elif runs > 0:
        _draw(r, g, v, s, n, i, size, state, touched)
    drop_draws(s, n, i, looked)
    if r.listed and i % _LOOKED_AT == 0:
        _look_ahead(s, n.draw[i], runs)
    end_lists(r, s, n, i)


@entry
def choose(
    rules: int,
    groups: int,
    guesses: int,
    scratch: int,
    lists: int,
    sizes: Any,
    queries: Any,
    budget: int,
    seed: Any,
    numbers: Any,
) -> int:
    """List what queries of a block take, `numbers` in their batch; `sizes` are places of guesses."""
    r, g, v, s = at(rules, groups, guesses, scratch)
    place_runs(r, g, s, seed, numbers[0])
    choose_each(r, g, v, s, view(Lists, lists), sizes, queries, budget, seed, numbers)
    return 0


@jit
def place_runs(r: Rules, g: Groups, s: Scratch, seed: Any, number: int) -> None:
    """Write where the runs of each group begin, for all queries of a block, of which one has that number."""
    state = state_of(seed, 2 * (number // r.shared) + 1)
    call(r.offsets, (g.size.ctypes.data, len(g.size), state, s.offset.ctypes.data))
    s.most[:] = 0


@jit
def choose_each(
    r: Rules,
    g: Groups,
    v: Guesses,
    s: Scratch,
    n: Lists,
    sizes: Any,
    queries: Any,
    budget: int,
    seed: Any,
    numbers: Any,
) -> None:
    """List what some queries of a block take."""
    all_cell_logits(r, g, n, queries)
    for i in range(len(queries)):
        _choose(r, g, v, s, n, i, sizes[i], queries[i], budget, state_of(seed, 2 * numbers[i]))
