"""Means of values under the softmax, compiled and on threads: `rfkernels.catalog.means` specifies them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rfkernels.backends.numba.catalog import Call, Use, call_of, run, step
from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_layout import Dots, Lists, Rules, Scratch, at, kept
from rfkernels.backends.numba.catalog_looks import Codes, Looks
from rfkernels.backends.numba.catalog_mean_kernels import mean_kernels
from rfkernels.backends.numba.catalog_scans import check_dots, choose_checks, choose_some, look, state_of_checks
from rfkernels.backends.numba.catalog_sums import exponentials, multiply, trusted
from rfkernels.backends.numba.catalog_taken import list_rows
from rfkernels.backends.numba.compiling import call, entry, jit, up
from rfkernels.backends.numba.jit import machine
from rfkernels.backends.numba.records import FloatRows, Floats, Held, Ints, view, view_like
from rfkernels.catalog.arguments import check_fit
from rfkernels.catalog.codes import BLOCK
from rfkernels.catalog.means import Weighed
from rfkernels.catalog.plan import RUN
from rfkernels.catalog.records import Table
from rfkernels.catalog.scans import Shares

_WHOLE, _SQUARES, _OWN, _BEFORE, _UPON, _ACROSS, _CENTRE, _NONE = range(8)
"""Rows of sums: of values and their squares; of a draw and of that before it; of differences of draws, squared and
times those of weights; where values are counted from; and zeros."""


_AHEAD = 8
"""How many rows of values are fetched before they are added."""


class Values(NamedTuple):
    """Where values lie: an address, strides in bytes and a width, the kernel that adds them, and the id of each row."""

    add: int
    values: int
    row: int
    column: int
    width: int
    ids: Ints


class Room(NamedTuple):
    """What a query takes, memory of a thread: rows, weights, and numbers of draws, and sums of values over them.

    `numbers` are the sum of weights; the sum of squared differences of draws; and of runs the sum of weights, of
    squared differences, and of fourth powers of these.
    """

    rows: Ints
    weights: Floats
    draws: Ints
    sums: FloatRows
    numbers: Floats
    one: Floats


@jit
def _add(v: Values, x: Room, j: int, later: int, weight: int, centre: int, to: int) -> None:
    """Add the values of an item; those of another are fetched."""
    row, next_row = v.values + v.row * v.ids[x.rows[j]], v.values + v.row * v.ids[x.rows[later]]
    out = x.sums[to].ctypes.data, x.sums[_SQUARES].ctypes.data
    call(v.add, (row, v.column, v.width, x.sums[centre].ctypes.data, weight, *out, next_row))


@jit
def _difference(v: Values, x: Room, one: float, two: float, mass: float, scale: float, runs: bool) -> None:
    """Add the difference of two draws, that before and the last, of which each counts so many times."""
    sums, numbers = x.sums, x.numbers
    for k in range(v.width):
        off = one * sums[_BEFORE, k] - two * sums[_OWN, k]
        sums[_UPON, k] += scale * off * off
        sums[_ACROSS, k] += scale * off * mass
    numbers[1] += scale * mass * mass
    if runs:
        numbers[3] += mass * mass
        numbers[4] += (mass * mass) ** 2


@jit
def _add_draws(v: Values, x: Room, begin: int, end: int, count: int, runs: bool) -> None:
    """Add items of draws, which are in order, and differences of pairs of draws; some may have no items."""
    sums, paired, before, mass_before = x.sums, count // 2 * 2, -1, 0.0
    scale = count / paired if paired > 0 else 1.0
    j = begin
    while j < end:
        draw, mass = x.draws[j], 0.0
        for k in range(v.width):
            sums[_OWN, k] = 0.0
        while j < end and x.draws[j] == draw:
            mass += x.weights[j]
            _add(v, x, j, min(j + _AHEAD, end - 1), x.weights[j:].ctypes.data, _CENTRE, _OWN)
            j += 1
        x.numbers[0] += mass
        x.numbers[2] += mass if runs else 0.0
        for k in range(v.width):
            sums[_WHOLE, k] += sums[_OWN, k]
        if before >= 0 and before + 1 == draw:
            _difference(v, x, 1.0, 1.0, mass_before - mass, scale, runs)
            before = -1
            continue
        if before >= 0:
            _difference(v, x, 1.0, 0.0, mass_before, scale, runs)
            before = -1
        if draw % 2 == 1 or count == 1:
            _difference(v, x, 0.0, 1.0, -mass, scale, runs)
        elif draw < paired:
            before, mass_before = draw, mass
            for k in range(v.width):
                sums[_BEFORE, k] = sums[_OWN, k]
    if before >= 0:
        _difference(v, x, 1.0, 0.0, mass_before, scale, runs)


@jit
def _weigh(v: Values, x: Room, ends: tuple[int, int, int], counts: tuple[int, int]) -> float:
    """Add up what is listed: items that are taken for sure, draws of single items, and runs, up to these ends.

    Returns what one draw has of the sum of weights, on average.
    """
    sums, heaviest = x.sums, 0
    for j in range(ends[2]):
        if x.weights[j] > x.weights[heaviest]:
            heaviest = j
    for i in range(8):
        for k in range(v.width):
            sums[i, k] = 0.0
    x.numbers[:] = 0.0
    x.one[0] = 1.0
    _add(v, x, heaviest, 0, x.one.ctypes.data, _NONE, _CENTRE)  # next to which others may be as nothing
    for k in range(v.width):
        sums[_SQUARES, k] = 0.0
    sure, single, end = ends
    for j in range(sure):
        x.numbers[0] += x.weights[j]
        _add(v, x, j, min(j + _AHEAD, end - 1), x.weights[j:].ctypes.data, _CENTRE, _WHOLE)
    held = x.numbers[0]
    _add_draws(v, x, sure, single, counts[0], False)
    _add_draws(v, x, single, end, counts[1], True)
    return float((x.numbers[0] - held) / max(counts[0] + counts[1], 1))


@jit
def _finish(r: Rules, s: Scratch, v: Values, x: Room, runs: int, given: tuple[float, float], out: Any) -> float:
    """Write means, standard errors and deviations; return the relative error of the sum of weights.

    Given are what was predicted of that error, squared, and what one draw has; weights are relative to the same.
    """
    predicted, one = given
    total, sums = x.numbers[0], x.sums
    beyond = 0.0
    if runs > 0:
        s.numbers[2], s.numbers[3], s.numbers[4] = x.numbers[2], x.numbers[3], x.numbers[4]
        seen = x.numbers[3] * runs / (2 * (runs // 2)) / total**2
        beyond = max(trusted(r, s, runs, total, predicted / total**2) ** 2 - seen, 0.0)
    for k in range(v.width):
        mean = sums[_WHOLE, k] / total
        deviation = max(sums[_SQUARES, k] / total - mean**2, 0.0)
        square = (sums[_UPON, k] - 2 * mean * sums[_ACROSS, k] + mean**2 * x.numbers[1]) / total**2
        out[0, k] = sums[_CENTRE, k] + mean
        out[1, k] = math.sqrt(max(square, 0.0) + min(beyond + (one / total) ** 2, 1.0) * deviation)
        out[2, k] = math.sqrt(deviation)
    return math.sqrt(x.numbers[1] / total**2 + beyond)


@jit
def _list_checks(c: Codes, k: Looks, x: Room, first: int, chosen: tuple[int, int, float]) -> tuple[int, int, int]:
    """List checked items by draws, blocks from `first` on being runs; return where lists end."""
    large, others, distance = chosen
    end, j, n = large + others, 0, 0
    while j < large and k.found[j] // BLOCK < first:
        x.rows[n], x.weights[n], j, n = k.places[j], k.factors[k.found[j] // BLOCK] * k.right[j], j + 1, n + 1
    sure, i = n, large
    while i < end and k.found[i] // BLOCK < first:
        _list_other(k, x, n, i, distance)
        x.draws[n], i, n = n - sure, i + 1, n + 1
    single = n
    while j < large or i < end:
        block = k.found[j] // BLOCK if j < large else k.found[i] // BLOCK
        if (i < end and k.found[i] // BLOCK < block) or j == large:
            block = k.found[i] // BLOCK
            _list_other(k, x, n, i, distance)
            i += 1
        else:
            x.rows[n], x.weights[n], j = k.places[j], k.factors[block] * k.right[j], j + 1
        x.draws[n] = block - first
        n += 1
    return sure, single, n


@jit
def _list_other(k: Looks, x: Room, n: int, i: int, distance: float) -> None:
    """List an item that was chosen in proportion to its size."""
    place = k.found[i]
    size = float(k.boosts[place // BLOCK]) * float(k.weights[place])
    x.rows[n], x.weights[n] = k.places[i], distance * k.right[i] / size if size > 0 else 0.0


@entry
def _by_codes(
    rules: int,
    groups: int,
    guesses: int,
    codes: int,
    scratch: int,
    lists: int,
    looks: int,
    values: int,
    room: int,
    sizes: Any,
    numbers: Any,
    spent: Any,
    seed: int,
    wide: Any,
    queries: Any,
    out: Any,
    relative: Any,
) -> int:
    """Write means, standard errors and deviations of queries, (queries, 3, width), and relative errors of sums.

    As `catalog_scans.estimate`; errors are NaN where codes do not tell, of how many is returned.
    """
    r, g, v, s = at(rules, groups, guesses, scratch)
    n, c, k = view(Lists, lists), view(Codes, codes), view_like(Looks, looks, queries)
    y, x, lost = view(Values, values), view(Room, room), 0
    scanned, checks = spent
    first, shared = 0, -1
    while first < len(queries):
        given = sizes, numbers, scanned, seed
        end, shared = choose_some(r, g, v, s, n, c, k, (first, shared), given, wide)
        for i in range(first, end):
            own = checks, state_of_checks(n, i - first, seed, numbers[i]), (wide[i], queries[i])
            relative[i] = _mean_by_codes(r, g, s, n, c, k, y, x, i - first, own, out[i])
            lost += int(np.isnan(relative[i]))
        first = end
    return lost


@jit
def _mean_by_codes(
    r: Rules,
    g: Groups,
    s: Scratch,
    n: Lists,
    c: Codes,
    k: Looks,
    y: Values,
    x: Room,
    i: int,
    given: tuple[int, Any, Any],
    out: Any,
) -> float:
    (checks, state, (wide, query)), runs = given, n.sizes[i, 2]
    first, _, untold = look(r, g, s, n, c, k, i, (wide, query, checks), 0)
    if first < 0:
        return np.nan
    blocks, top = first + runs, float(k.numbers[2])
    call(r.totals, (k.sums.ctypes.data, k.parts.ctypes.data, up(blocks, BLOCK), k.totals.ctypes.data))
    total = k.totals[0]
    if not 0 < total < np.inf:
        return np.nan
    chosen = choose_checks(r, c, k, blocks, (checks - untold, state, total))
    check_dots(r, k, chosen[0] + chosen[1], query)
    ends = _list_checks(c, k, x, first, chosen)
    one = _weigh(y, x, ends, (ends[1] - ends[0], runs))
    if not 0 < x.numbers[0] < np.inf:
        return np.nan
    return _finish(r, s, y, x, runs, (math.exp(2 * (n.measures[i, 2] - top)), one), out)


@entry
def _by_rows(
    rules: int,
    groups: int,
    scratch: int,
    lists: int,
    dots: int,
    values: int,
    room: int,
    queries: Any,
    out: Any,
    relative: Any,
) -> int:
    """Write the same from the rows that queries of a block take."""
    r, g, s, n = view(Rules, rules), view(Groups, groups), view(Scratch, scratch), view(Lists, lists)
    d, v, x = view_like(Dots, dots, queries), view(Values, values), view(Room, room)
    multiply(r, g, s, n, d, queries)
    for i in range(len(queries)):
        size, _, runs, _ = n.sizes[i]
        list_rows(r, g, s, n, i)
        first, places = (size + 3) & ~3, n.places[i]
        top = exponentials(r, d, d.products[i], size, first + RUN * runs, -np.inf)
        for j in range(size):
            x.rows[j], x.weights[j] = places[j], d.weights[j]
        for j in range(RUN * runs):
            draw = j // RUN
            x.rows[size + j], x.draws[size + j] = places[first + j], draw
            x.weights[size + j] = d.weights[first + j] * n.measures[i, 1] / (RUN * runs * n.odds[i, draw])
        one = _weigh(v, x, (size, size, size + RUN * runs), (0, runs))
        relative[i] = _finish(r, s, v, x, runs, (math.exp(2 * (n.measures[i, 2] - top)), one), out[i])
    return 0


def expect(table: Table, queries: Any, values: Any, budget: int, seed: int) -> Weighed:
    """Estimate Σ p v for queries (queries, dim), as `rfkernels.catalog.means.expect` specifies."""
    given = call_of(table, budget, seed, Use.MEANS)
    width = values.shape[1]
    out, relative, where = np.empty((len(queries), 3, width)), np.empty(len(queries)), _values(table, values)
    run(partial(_expect, given, where), given, queries, out, relative)
    check_fit(np.where(np.isnan(relative), np.inf, 0.0), table.rows.dtype)
    return Weighed(out[:, 0], out[:, 1], out[:, 2], relative)


def _values(table: Table, values: Any) -> Held[Values]:
    add = mean_kernels(machine()).addresses[f"add_{values.dtype.name}"]
    return Held(Values(add, values.ctypes.data, values.strides[0], values.strides[1], values.shape[1], table.ids))


def _expect(call: Call, values: Held[Values], numbers: Any, queries: Any, wide: Any, sized: Any, *out: Any) -> None:
    """Estimate from codes what these are of use for, and from rows what is left."""
    room = _room(call.budget, values.record.width)  # there as long as this runs, whether or not it is kept

    def by_codes(at: tuple[int, ...], spent: Shares, *given: Any) -> int:
        return int(_by_codes(*(*at, values.address, room.address, *given)))

    def by_rows(at: tuple[int, ...], *given: Any) -> None:
        _by_rows(*(*at, values.address, room.address, *given))

    step(by_codes, by_rows, call, (numbers, queries, wide, sized), out, out[-1])


def _room(items: int, width: int) -> Held[Room]:
    """Return memory for a query that takes so many items."""
    return kept("means", (items, width), lambda: Held(_new_room(items + (items >> 14) + 2 * BLOCK, width)))


def _new_room(items: int, width: int) -> Room:
    rows, draws = np.zeros((2, items), np.int32)
    return Room(rows, np.zeros(items), draws, np.zeros((8, width)), np.zeros(5), np.zeros(1))
