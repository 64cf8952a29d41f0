"""Sums of functions of distances from points, compiled and on threads: `rfkernels.catalog.radial` specifies them."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.catalog import even, remember
from rfkernels.backends.numba.catalog_block_lists import place_block_runs
from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_guesses import Guesses, prepared
from rfkernels.backends.numba.catalog_layout import Dots, Lists, Rules, Scratch, at, dots, lists, scratch
from rfkernels.backends.numba.catalog_looks import Codes, Looks, looks
from rfkernels.backends.numba.catalog_plan_groups import decide, draw_groups, open_groups
from rfkernels.backends.numba.catalog_plans import place_runs, state_of
from rfkernels.backends.numba.catalog_points import Aims, Radial, Tools, aims, guesses, tools_of
from rfkernels.backends.numba.catalog_profiles import Tables, look_up, program_of, slope_at
from rfkernels.backends.numba.catalog_scans import look_at, state_of_checks
from rfkernels.backends.numba.catalog_scans import sum_up as sum_up_codes
from rfkernels.backends.numba.catalog_sums import alone, sum_up
from rfkernels.backends.numba.catalog_taken import end_lists, note
from rfkernels.backends.numba.compiling import call, entry, jit
from rfkernels.backends.numba.jit import machine
from rfkernels.backends.numba.records import Held, view, view_like
from rfkernels.catalog.profiles import sensitivity
from rfkernels.catalog.radial import AT_MOST, SHARE, TEMPERED, UNEVEN, Points, ended, one_radial_sum, reach_of, spent_on
from rfkernels.catalog.radial import exact_radial_sums as specified_exact
from rfkernels.catalog.radial import radial_sums as specified
from rfkernels.catalog.records import Estimate, Table
from rfkernels.catalog.scans import Shares

_EXACT = 2.0**-14
"""The error that logs of exact sums may have by rounding in the dtype of rows; others are computed in float64."""

_SHARE = 0.25
"""What part of its standard error an estimate may be off by rounding beyond that."""


@jit
def _guess(
    g: Groups, d: Radial, v: Guesses, s: Scratch, a: Aims, n: Lists, i: int, tables: int, point: Any, home: int
) -> float:
    """Write factor |m − p|² of cells, and what is guessed of groups; return what guesses are relative to."""
    cells, t = n.cells[i], view_like(Tables, tables, a.point)
    given = g.means.ctypes.data, g.means.strides[0], g.every.ctypes.data, (len(g.held) + 3) & ~3
    call(d.near_distances, (*given, point.ctypes.data, cells.ctypes.data))
    look_up(g, t, cells, a.looked_up, a.log, a.uneven)
    log = a.log[home] if home >= 0 else 0.0
    numbers = a.numbers
    numbers[0] = float(g.items)
    known = a.log.ctypes.data, a.uneven.ctypes.data, g.size.ctypes.data, len(g.start), numbers.ctypes.data
    call(d.weigh, (*known, v.unit.ctypes.data, v.variance.ctypes.data, v.score.ctypes.data))
    if home >= 0:
        _take_home(g, v, a, home, log, t.nearest)
    s.score[v.top.shape[1]] = numbers[2]
    return float(numbers[1])


@jit
def _take_home(g: Groups, v: Guesses, a: Aims, home: int, log: float, nearest: float) -> None:
    """Guess anew of a group whose log was known, where one of the items is at the point."""
    numbers, unit, variance, score = a.numbers, v.unit[0], v.variance[0], v.score[0]
    among = len(g.start) if score[home] == numbers[2] else 0
    floor, own = unit[home] - a.log[home], min(nearest, numbers[1] + AT_MOST)
    one = own - np.log(float(g.count[home]))
    mean = np.logaddexp(log, one)
    uneven = np.logaddexp(2 * log + a.uneven[home], own + one) - 2 * mean
    weight = np.exp(mean - numbers[1])
    unit[home] = weight + floor
    part = weight / unit[home]
    variance[home] = (np.exp(min(max(uneven, 0.0), UNEVEN)) - 1) * part * part + SHARE
    score[home] = np.log(unit[home] * unit[home] * variance[home])
    numbers[2] = score[home] if among > 0 else max(numbers[2], score[home])
    for group in range(among):  # without what it was, others may be the largest
        numbers[2] = max(numbers[2], score[group])


@jit
def _choose(
    r: Rules,
    g: Groups,
    d: Radial,
    v: Guesses,
    s: Scratch,
    a: Aims,
    n: Lists,
    i: int,
    given: tuple[int, int, Any, int],
    point: Any,
) -> bool:
    """List what a query takes, for tables, a budget, a random state and a home; return whether guesses are numbers."""
    tables, budget, state, home = given
    top = _guess(g, d, v, s, a, n, i, tables, point, home)
    if not -np.inf < top < np.inf:
        return False
    runs, total, noise, chosen = 0, 0.0, 0.0, 1
    if budget < g.items:
        runs, total, noise, chosen, _ = decide(r, g, v, s, 0, budget, n.cells[i, :0])
    else:
        s.depths[:] = 0
    items, opened = open_groups(r, g, s, n, i, chosen)
    note(r, n, i, (items, opened, runs), (top, total, noise))
    if runs > 0:
        draw_groups(r, g, s, n, i, state)
    end_lists(r, s, n, i)
    return True


@jit
def _told(g: Groups, a: Aims, n: Lists, i: int, tables: int, reach: float) -> bool:
    """Return whether codes tell enough at the nearest cell with items: see `rfkernels.catalog.radial.reach_of`."""
    nearest = np.inf
    for c in range(len(g.held)):
        if g.held[c] > 0:
            nearest = min(nearest, abs(n.cells[i, c]))
    slope = slope_at(view_like(Tables, tables, a.point), nearest)
    return slope * slope * nearest <= reach


@jit
def _list_cell(a: Aims, c: int, count: int) -> int:
    """List a cell if it is not listed yet; return how many there are."""
    if a.seen[c] == 0:
        a.seen[c], a.cells[count] = 1, c
        return count + 1
    return count


@jit
def _aim(
    g: Groups, d: Radial, c: Codes, k: Looks, a: Aims, n: Lists, i: int, at: tuple[int, int], point: Any, own: Any
) -> bool:
    """Write what logits of groups count from, and what codes of each cell that is looked at are multiplied by.

    Returns whether all of that are numbers; what is none is not left for others to come.
    """
    (tables, home), factor, dim = at, point[len(point) - 1], len(d.order)
    t = view_like(Tables, tables, a.point)
    for cell in range(len(g.held)):
        k.anchored[cell] = n.cells[i, cell]
    for j in range(len(c.moved)):
        square = 0.0
        for x in range(dim):
            square += (c.anchors[j, x] - point[x]) ** 2
        k.anchored[c.moved[j]] = factor * square
    if home >= 0:
        k.anchored[g.cell[home]] *= t.nearer
    for x in range(dim):
        a.point[d.order[x]] = own[x]
    for x in range(len(d.scales)):
        a.weights[x] = 2 * factor * d.scales[x]
    count = 0
    for j in range(n.sizes[i, 1]):
        count = _list_cell(a, g.cell[n.opened[i, j]], count)
    for j in range(n.sizes[i, 2]):
        count = _list_cell(a, g.cell[n.draw[i, j]], count)
    for j in range(count):
        a.seen[a.cells[j]] = 0
    given = a.cells.ctypes.data, count, d.anchors.ctypes.data, d.anchors.strides[0], a.point.ctypes.data
    pad, out = len(a.scaled), (a.units.ctypes.data, a.shifts.ctypes.data, a.deviations.ctypes.data)
    call(d.aim, (*given, a.weights.ctypes.data, pad, a.scaled.ctypes.data, a.queries.ctypes.data, pad, *out))
    known = a.known
    a.squared[0] = factor * d.squares
    known[0], known[1], known[2] = a.queries.ctypes.data, a.units.ctypes.data, a.shifts.ctypes.data
    known[3], known[4], known[5] = a.deviations.ctypes.data, pad, a.squared.ctypes.data
    known[6], known[7] = t.values[2:].ctypes.data, t.slopes.ctypes.data
    known[8], known[9] = t.steep.ctypes.data, t.begin
    finite = True
    for j in range(count):
        cell = a.cells[j]
        if not (a.units[cell] < np.inf and a.deviations[cell] < np.inf):
            a.units[cell] = a.deviations[cell] = 0
            finite = False
    return finite


@entry
def _by_codes(
    rules: int,
    groups: int,
    guesses: int,
    scratch: int,
    radial: int,
    aims: int,
    codes: int,
    lists: int,
    looks: int,
    tables: int,
    scan: int,
    first: int,
    spent: Any,
    seed: int,
    reach: float,
    homes: Any,
    wide: Any,
    points: Any,
    out: Any,
) -> int:
    """Estimate for queries, of which `first` is the number of the first: log, standard error and dot products of each.

    `points`, and `wide` of float64, end in the factor. Log and error are NaN where they are no numbers: of how many is
    returned.
    """
    r, g, v, s = at(rules, groups, guesses, scratch)
    d, a = view_like(Radial, radial, points), view_like(Aims, aims, points)
    n, c, k = view(Lists, lists), view(Codes, codes), view_like(Looks, looks, points)
    (scanned, checks), shared, lost = spent, -1, 0
    _begin(s, v)
    for i in range(len(points)):
        number = first + i
        if number // r.shared != shared:
            shared = number // r.shared
            place_block_runs(r, g, s, c, k, seed, number)
        out[i, 0], out[i, 1], out[i, 2] = np.nan, np.nan, 0.0
        given = tables, scanned, state_of(seed, 2 * number), homes[i]
        chosen = _choose(r, g, d, v, s, a, n, 0, given, wide[i])
        told = chosen and _told(g, a, n, 0, tables, reach)
        if not told or not _aim(g, d, c, k, a, n, 0, (tables, homes[i]), wide[i], points[i]):
            lost += 1
            continue
        k.numbers[4] = 1 + TEMPERED  # deviations are those of each query
        known = g.cell.ctypes.data, k.anchored.ctypes.data, d.owner.ctypes.data, a.slopes.ctypes.data
        read = scan, a.known.ctypes.data, 0
        begin, items, _ = look_at(read, r, g, s, n, c, k, 0, known, 0, (points[i], 0))
        if begin >= 0:
            checked = begin, checks, state_of_checks(n, 0, seed, number), items
            sum_up_codes(r, s, n, c, k, 0, checked, points[i], out[i])
            out[i, 2] += len(c.moved)
        lost += int(np.isnan(out[i, 0]))
    return lost


@jit
def _begin(s: Scratch, v: Guesses) -> None:
    """See to it that weights of groups are what is guessed of them, as those of no cell count."""
    for c in range(v.top.shape[1]):
        s.share[c], s.base[c] = 1.0, 0.0


@entry
def _by_rows(
    rules: int,
    groups: int,
    guesses: int,
    scratch: int,
    radial: int,
    aims: int,
    lists: int,
    dots: int,
    tables: int,
    numbers: Any,
    budget: int,
    seed: int,
    homes: Any,
    wide: Any,
    points: Any,
    out: Any,
) -> int:
    """Estimate the same from rows, for queries of some numbers."""
    r, g, v, s = at(rules, groups, guesses, scratch)
    d, a = view_like(Radial, radial, points), view_like(Aims, aims, points)
    n, x, shared = view(Lists, lists), view_like(Dots, dots, points), -1
    _begin(s, v)
    for i in range(len(points)):
        number = numbers[i]
        if number // r.shared != shared:
            shared = number // r.shared
            place_runs(r, g, s, seed, number)
        out[i, 0], out[i, 1], out[i, 2] = np.nan, np.nan, 0.0
        given = tables, budget, state_of(seed, 2 * number), homes[i]
        if _choose(r, g, d, v, s, a, n, 0, given, wide[i]):
            alone(r, g, s, n, x, points[i : i + 1])
            sum_up(r, g, s, n, x, 0, out[i])
    return 0


def radial_sums(table: Table, given: Points, budget: int, seed: int) -> Estimate:
    """Estimate log Σ exp(g(factor |y − p|²) + constant), as `rfkernels.catalog.radial.radial_sums` specifies."""
    call = _call_of(table, given, budget, seed)
    if call is None:
        return specified(table, given, budget, seed)
    out = _run(call, table, given)
    out[:, 2] += sum(table.means.shape)
    with np.errstate(invalid="ignore"):
        sure = _rounding(table, given, out[:, 0]) < np.maximum(_EXACT, _SHARE * out[:, 1])
    if not given.linear:
        sure |= np.isneginf(out[:, 0])  # kernels may be zero
    for i in np.flatnonzero(~sure):  # too large for the dtype of rows
        out[i] = np.array(one_radial_sum(table, given, budget, seed, int(i)))
    return Estimate(out[:, 0], out[:, 1], out[:, 2].astype(np.int64))


def exact_radial_sums(table: Table, given: Points) -> Estimate:
    """Return log Σ exp(g(factor |y − p|²) + constant), as `rfkernels.catalog.radial.exact_radial_sums` specifies."""
    items = int(table.count.sum())
    call = _call_of(table, given, items, 0)
    if call is None:
        return specified_exact(table, given)
    found = _run(call._replace(budget=items, left=items, spent=None), table, given)[:, 0]
    lost = np.flatnonzero(~(_rounding(table, given, found) < _EXACT))
    part = given._replace(points=given.points[lost], constant=given.constant[lost])
    found[lost] = specified_exact(table, part).log_normalizer
    return Estimate(found, np.zeros(len(found)), np.full(len(found), items))


def _rounding(table: Table, given: Points, logs: Any) -> Any:
    """Return by how much logs of sums may be off by rounding in the dtype of rows, NaN of those that fit none."""
    eps = float(np.finfo(table.rows.dtype).eps)
    if given.linear:
        return np.abs(logs - given.constant) * eps
    most = float(given.profile.plain[1].max()) * eps
    found = sensitivity(given.profile, logs, int(table.count.sum())) * eps if most >= _EXACT else most
    return np.where(logs < np.inf, found, np.nan)


def _run(call: _Call, table: Table, given: Points) -> Any:
    """Return log, standard error and dot products of each query, on threads."""
    (count, dim), reach = given.points.shape, call.reach / max(abs(given.factor), sys.float_info.min)
    wide, out = np.empty((count, dim + 1)), np.empty((count, 3))
    wide[:, :dim], wide[:, dim] = given.points, given.factor
    with np.errstate(over="ignore"):
        own = wide.astype(table.rows.dtype)
    together = threads.thread_count() if count > 1 else 1
    block = even(count, together)

    def task(first: int) -> int:
        part = slice(first, first + block)
        numbers = np.arange(first, min(first + block, count))
        _estimate(call, reach, numbers, given.home[part], wide[part], own[part], out[part])
        return 0

    threads.run([partial(task, first) for first in range(0, count, block)], together)
    if not given.linear:
        out[:, 0] = ended(out[:, 0])
    out[:, 0] += given.constant
    return out


class _Call(NamedTuple):
    """What queries of a call have in common."""

    groups: Held[Groups]
    known: Tools
    budget: int
    left: int
    spent: Shares | None
    reach: float
    seed: Any
    dtype: Any


def _call_of(table: Table, given: Points, budget: int, seed: int) -> _Call | None:
    """Return what is known for a budget; None if the profile cannot be compiled."""
    own = prepared(table)
    key = machine(), budget, (given.factor, given.linear, *given.profile.key)
    found = own.common.get(key)
    if found is None:
        program = None if given.linear else program_of(given.profile.key[1])
        if program is None and not given.linear:
            return None
        known = tools_of(table, own, given, program)
        spent = spent_on(table, budget, len(own.moved))
        left = budget - sum(table.means.shape)
        made = _Call(own.groups, known, budget, left, spent, reach_of(table, 1.0), None, table.rows.dtype)
        found = remember(own, key, made)
    return cast(_Call, found)._replace(seed=np.uint64(seed))


def _estimate(call: _Call, reach: float, numbers: Any, homes: Any, wide: Any, points: Any, out: Any) -> None:
    """Estimate from codes, and from rows where these say nothing."""
    g, known, shares, dtype = call.groups, call.known, call.spent, call.dtype
    s, a, v = scratch(g.record), aims(known, len(g.record.held), dtype), guesses(g.record)
    place = g.address, v.address, s.address, known.radial.address, a.address
    tables = known.tables.address
    if shares is not None and known.codes is not None:
        n, k = lists(g.record, shares.scanned, 1, True), looks(g.record, *shares, dtype)
        memory = known.codes.address, n.address, k.address, tables, known.scan
        first, spent = int(numbers[0]), tuple(shares)
        asked = call.seed, reach, homes, wide, points, out
        lost = _by_codes(known.by_codes.address, *place, *memory, first, spent, *asked)
        if lost == 0:
            return
        left = np.flatnonzero(np.isnan(out[:, 0]))
    else:
        left = np.arange(len(numbers))
    n, d = lists(g.record, call.budget, 1), dots(call.budget, 1, dtype)
    found = np.empty((len(left), 3))
    given = homes[left], wide[left], points[left], found
    used = n.address, d.address, tables
    _by_rows(known.by_rows.address, *place, *used, numbers[left], call.left, call.seed, *given)
    out[left] = found
