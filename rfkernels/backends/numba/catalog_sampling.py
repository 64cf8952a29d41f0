"""Items drawn for many queries, compiled and on threads: as `rfkernels.catalog.sampling` specifies it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_guesses import Guesses, prepared, sizes
from rfkernels.backends.numba.catalog_kernels import AHEAD, TOGETHER
from rfkernels.backends.numba.catalog_layout import Rules, Scratch, at, kept, plain, rules, scratch
from rfkernels.backends.numba.catalog_looks import Codes, codes
from rfkernels.backends.numba.catalog_plan_groups import log_mean
from rfkernels.backends.numba.catalog_plans import TINY, cell_logits, shares
from rfkernels.backends.numba.catalog_rays import look_along
from rfkernels.backends.numba.catalog_search import Finders, Finds, finders, finds, open_groups, read_codes
from rfkernels.backends.numba.compiling import call, entry, jit
from rfkernels.backends.numba.records import Elements, FloatRows, Floats, Held, Ints, Longs, view, view_like
from rfkernels.catalog.arguments import check_fit
from rfkernels.catalog.codes import BLOCK
from rfkernels.catalog.rays import SHARE
from rfkernels.catalog.records import Draws, Table
from rfkernels.catalog.sampling import AGAIN, HEAD, HEAD_GROUPS, coded

_SHARE = 16
"""Queries that a thread takes at a time."""


class Room(NamedTuple):
    """Memory of a thread.

    `products` are logits of groups that were taken and `where` those of each begin (−1: not taken), which `touched`
    lists; `known` are groups whose sums are not guessed, `logs` those of these sums, and weights, and `head` the groups
    that are taken before the first draw. `every` numbers all groups.
    """

    products: Elements
    top: Elements
    where: Longs
    ends: Floats
    inside: Floats
    places: Ints
    cells: Floats
    every: Longs
    known: Longs
    head: Longs
    logs: FloatRows
    touched: Longs


def sample(table: Table, queries: Any, draws: int, rng: Any) -> Draws:
    """Draw items, independently and with replacement, for queries (queries, dim); ids are those of the table."""
    u = rng.random((len(queries), 2, draws))
    rows, log, logits = np.empty((len(u), draws), np.int64), np.empty((len(u), draws)), np.empty((len(u), draws))
    order = np.argsort(u[:, 0], axis=1)
    known, seen = prepared(table), coded(table)
    g, r = known.groups, rules(table, known)
    c, f = (codes(table, known).address, finders(table, known).address) if seen else (0, 0)
    own, wide = plain(queries, table.rows.dtype), plain(queries, np.float64)
    most, dtype = int(g.record.count.max()), own.dtype

    def share(first: int) -> int:
        part = slice(first, first + _SHARE)
        room, s = _memory(g.record, most, draws, dtype), scratch(g.record)
        drawn = rows[part], log[part], logits[part]
        v, places = known.guesses.at(sizes(r.record.wide_dots, g, wide[part]))
        k = finds("sample", g.record, seen, dtype) if seen else None
        own_at = r.address, g.address, v.address, s.address, room.address, c, f, k.address if k is not None else 0
        return _sample(*own_at, seen, places, wide[part], own[part], u[part], order[part], drawn)

    threads.run([partial(share, first) for first in range(0, len(u), _SHARE)], threads.thread_count())
    check_fit(log, table.rows.dtype)
    return Draws(table.ids[rows].astype(np.int64), log, logits)


def _memory(g: Groups, most: int, draws: int, dtype: Any) -> Held[Room]:
    """Return memory for the draws of a query."""
    key = len(g.start), len(g.means), most, draws, dtype
    return kept("room", key, lambda: Held(_room(g, most, draws, dtype), dtype))


def _room(g: Groups, most: int, draws: int, dtype: Any) -> Room:
    count = len(g.start)
    return Room(
        products=np.empty((most + 16) * min(draws + HEAD_GROUPS, count) + 16, dtype),
        top=np.empty(2, dtype),
        where=np.full(count, -1, np.int64),
        ends=np.empty(count),
        inside=np.empty(most),
        places=np.empty(most + 16 + TOGETHER * (AHEAD + 1), np.int32),
        cells=np.empty(len(g.means) + 8),
        every=np.arange(count),
        known=np.empty(count, np.int64),
        head=np.empty(min(HEAD_GROUPS, count), np.int64),
        logs=np.empty((2, count)),
        touched=np.empty(draws + HEAD_GROUPS, np.int64),
    )


@jit
def _take(r: Rules, g: Groups, room: Room, group: Any, query: Any, used: int) -> Any:
    """Write the logits of the items of a group behind those that are there; return how many places are used then."""
    count, places, pad = g.count[group], room.places, (g.count[group] + 15) & ~15
    for j in range(pad + r.ahead):
        places[j] = min(j, count - 1)
    rows, out = r.rows + g.start[group] * r.row_stride, room.products[used:].ctypes.data
    call(r.dots, (rows, r.row_stride, places.ctypes.data, (count + 3) & ~3, query.ctypes.data, out))
    room.products[used + count : used + pad] = -np.inf
    room.where[group] = used
    return used + pad


@jit
def _head(g: Groups, promise: Any, groups: Any, head: Any, items: int) -> int:
    """List the places of the groups that promise most, largest first, of at most so many items; return their number."""
    most, held = len(head), 0
    for j in range(len(groups)):
        if held == most and promise[j] <= promise[head[most - 1]]:
            continue
        held = min(held + 1, most)
        place = held - 1
        while place > 0 and promise[head[place - 1]] < promise[j]:
            head[place] = head[place - 1]
            place -= 1
        head[place] = j
    for i in range(held):
        items -= g.count[groups[head[i]]]
        if items < 0:
            return i
    return held


@jit
def _log_sum(r: Rules, room: Room, logits: Any, size: int) -> float:
    x = logits.ctypes.data
    call(r.largest, (x, size, room.top.ctypes.data))
    call(r.sum, (x, size, room.top.ctypes.data, room.top[1:].ctypes.data))
    return float(room.top[0]) + math.log(room.top[1])


@jit
def _by_codes(
    r: Rules,
    g: Groups,
    v: Guesses,
    s: Scratch,
    room: Room,
    size: int,
    wide: Any,
    top: float,
    given: tuple[Codes, Finders, Finds, int],
) -> int:
    """Write the sums of groups that codes say; return how many these are, 0 where codes say what is no number."""
    c, f, k, items = given
    looked, _ = look_along(g, s, (top, v.least[size]), wide, room.cells, items // SHARE)
    opened = open_groups(g, f, k, room.cells, (v.second[size].ctypes.data, 1.0), items, 1, s.rays[:looked])
    if read_codes(g, c, f, k, room.cells, opened, wide) == 0:
        return 0
    first = 0
    for i in range(opened):
        group = k.opened[i]
        begin, last = g.start[group] // BLOCK, (g.start[group] + g.count[group] - 1) // BLOCK
        count = BLOCK * (last - begin + 1)
        room.known[i], room.logs[0, i] = group, _log_sum(r, room, k.logits[first:], count)
        first += count
    return opened


@jit
def _taken(r: Rules, g: Groups, s: Scratch, room: Room, scale: float, query: Any, summed: int) -> tuple[int, int, int]:
    """Take groups; return how many sums are known then, how many groups are taken and places used.

    That is of the groups whose sums codes say, `summed`, if there are any.
    """
    groups, logs, used, mass = room.every, room.logs[0], 0, s.mass
    if summed > 0:
        groups = room.known[:summed]
        count = _head(g, logs, groups, room.head, AGAIN)
    else:
        count = _head(g, mass, groups, room.head, HEAD)
        if mass[room.head[-1]] < TINY:  # some that are 0 promise more than others
            _logs(g, room, scale, room.ends)
            count = _head(g, room.ends, groups, room.head, HEAD)
    for i in range(count):
        group = groups[room.head[i]]
        used = _take(r, g, room, group, query, used)
        own = _log_sum(r, room, room.products[room.where[group] :], (g.count[group] + 15) & ~15)
        if summed > 0:
            logs[room.head[i]] = own
        else:
            room.known[i], logs[i] = group, own
        room.head[i] = group
    return summed if summed > 0 else count, count, used


@jit
def _masses(
    r: Rules,
    g: Groups,
    v: Guesses,
    s: Scratch,
    room: Room,
    size: int,
    wide: Any,
    query: Any,
    given: tuple[Codes, Finders, Finds, int],
) -> tuple[int, int, float]:
    """Fill the sums of groups, relative to some number; return how many are taken, places used, and their total."""
    scale, mass = v.size[size], s.mass
    cell_logits(r, g, wide, room.cells)
    top = shares(r, v, s, size, room.cells)
    for c in range(len(g.held)):
        for j in range(g.first[c], g.first[c + 1]):
            mass[j] = s.share[c] * g.size[j] * v.unit[size, j]
    summed = _by_codes(r, g, v, s, room, size, wide, top, given) if given[3] > 0 else 0
    known, count, used = _taken(r, g, s, room, scale, query, summed)
    largest, logs = top, room.logs[0]
    for i in range(known):
        largest = max(largest, logs[i])
    factor = math.exp(top - largest)
    for i in range(known):
        room.logs[1, i] = math.exp(logs[i] - largest)
    total = _totalled(g, mass, room.ends, factor, room.known[:known], room.logs[1])
    if total < TINY:
        _logs(g, room, scale, mass)
        for i in range(known):
            mass[room.known[i]] = logs[i]
        largest = -np.inf
        for j in range(len(g.start)):
            largest = max(largest, mass[j])
        for j in range(len(g.start)):
            mass[j] = math.exp(mass[j] - largest)
        total = _totalled(g, mass, room.ends, 1.0, room.known[:0], logs)
    return count, used, total


@jit
def _logs(g: Groups, room: Room, scale: float, out: Any) -> None:
    """Write the logs of what groups are guessed to sum to."""
    for j in range(len(g.start)):
        out[j] = math.log(g.size[j]) + room.cells[g.cell[j]] + log_mean(g, scale * g.deviation[j])


@jit
def _totalled(g: Groups, mass: Any, ends: Any, factor: float, head: Any, own: Any) -> float:
    """Multiply sums of groups by a factor, set those of the head, and add them up."""
    if factor != 1.0:
        for j in range(len(g.start)):
            mass[j] *= factor
    for i in range(len(head)):
        mass[head[i]] = own[i]
    total = 0.0
    for j in range(len(g.start)):
        total += mass[j]
        ends[j] = total
    return total


@jit
def _place(ends: Any, count: int, at: float) -> int:
    """Return the first place whose end lies beyond `at`; the last that has a part of its own if there is none."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if ends[middle] > at:
            high = middle
        else:
            low = middle + 1
    if low == count:
        low = count - 1
        while low > 0 and ends[low] == ends[low - 1]:
            low -= 1
    return low


@entry
def _sample(
    rules: int,
    groups: int,
    guesses: int,
    scratch: int,
    room: int,
    codes: int,
    finders: int,
    finds: int,
    seen: int,
    sizes: Any,
    wide: Any,
    queries: Any,
    u: Any,
    order: Any,
    drawn: Any,
) -> int:
    r, g, v, s = at(rules, groups, guesses, scratch)
    own, given = view_like(Room, room, queries), (view(Codes, codes), view(Finders, finders))
    known = (*given, view_like(Finds, finds, queries), seen)
    rows, log, logits = drawn
    for i in range(len(queries)):
        _draw(r, g, v, s, own, sizes[i], wide[i], queries[i], known, u[i], order[i], (rows[i], log[i], logits[i]))
    return 0


@jit
def _draw(
    r: Rules,
    g: Groups,
    v: Guesses,
    s: Scratch,
    room: Room,
    size: int,
    wide: Any,
    query: Any,
    known: tuple[Codes, Finders, Finds, int],
    u: Any,
    order: Any,
    drawn: Any,
) -> None:
    """Draw the items of a query; `order` is that of the numbers which choose groups."""
    out, log, logits = drawn
    seen, used, total = _masses(r, g, v, s, room, size, wide, query, known)
    for j in range(seen):
        room.touched[j] = room.head[j]
    last, own, at, inside = -1, 0.0, 0, room.inside
    for k in range(len(order)):
        i = order[k]
        x = _place(room.ends, len(room.ends), u[0, i] * total)
        count = g.count[x]
        if room.where[x] < 0:
            used = _take(r, g, room, x, query, used)
            room.touched[seen] = x
            seen += 1
        if x != last:
            last, at = x, room.where[x]
            high, summed = -np.inf, 0.0
            for j in range(count):
                high = max(high, room.products[at + j])
            for j in range(count):
                summed += math.exp(room.products[at + j] - high)
                inside[j] = summed
            own = high + math.log(summed)
        place = _place(inside, count, u[1, i] * inside[count - 1])
        out[i], logits[i] = g.start[x] + place, room.products[at + place]
        log[i] = math.log(s.mass[x] / total) + logits[i] - own
    for i in range(seen):
        room.where[room.touched[i]] = -1
