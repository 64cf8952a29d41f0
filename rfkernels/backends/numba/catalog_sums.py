"""Sums over what queries of a catalog take, compiled: `rfkernels.catalog.estimates` specifies them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_kernels import WORD
from rfkernels.backends.numba.catalog_layout import Dots, Lists, Rules, Scratch
from rfkernels.backends.numba.catalog_taken import list_rows
from rfkernels.backends.numba.compiling import call, entry, jit
from rfkernels.backends.numba.records import view, view_like
from rfkernels.catalog.plan import RUN
from rfkernels.catalog.scans import untold as specified_untold
from rfkernels.catalog.trust import WIDER

_TOGETHER = 4
"""Queries from which on they take runs group by group."""

untold = jit(specified_untold)


@jit
def _multiply_one(r: Rules, n: Lists, d: Dots, i: int, end: int, query: Any) -> None:
    """Write dot products of a query with the rows of its list."""
    if end > 0:
        row = query.ctypes.data
        call(r.dots, (r.rows, r.row_stride, n.places[i].ctypes.data, end, row, d.products[i].ctypes.data))


@jit
def alone(r: Rules, g: Groups, s: Scratch, n: Lists, d: Dots, queries: Any) -> None:
    """Write dot products of queries with what they take, one query after the other."""
    for i in range(len(queries)):
        list_rows(r, g, s, n, i)
        _multiply_one(r, n, d, i, ((n.sizes[i, 0] + 3) & ~3) + RUN * n.sizes[i, 2], queries[i])


@jit
def _together(r: Rules, g: Groups, s: Scratch, n: Lists, d: Dots, queries: Any) -> None:
    """Write dot products of queries with what they take: a run is read once, for all that take it."""
    out, draw, waiting = s.queues[0], s.queues[1], s.waiting
    waiting[:] = -1
    for i in range(len(queries)):
        end = (n.sizes[i, 0] + 3) & ~3
        _multiply_one(r, n, d, i, end, queries[i])
        out[i], draw[i], waiting[i] = d.products[i, end:].ctypes.data, n.draw[i].ctypes.data, np.int32(n.draw[i, 0])
    parts = g.start.ctypes.data, g.count.ctypes.data, s.offset.ctypes.data, s.most.ctypes.data, len(g.start)
    words = (len(queries) + WORD - 1) // WORD
    given = queries.ctypes.data, queries.strides[0], out.ctypes.data, draw.ctypes.data, waiting.ctypes.data, words
    call(r.pass_runs, (r.rows, r.row_stride, *parts, *given))


@jit
def _known(g: Groups, n: Lists, i: int, products: Any) -> float:
    """Return what the control variate comes to over opened items."""
    known, at = 0.0, 0
    for j in range(n.sizes[i, 1]):
        group = n.opened[i, j]
        count, cell = g.count[group], g.cell[group]
        total = 0.0
        for k in range(at, at + count):
            total += products[k]
        at += count
        known += n.slopes[i, cell] * (total - count * n.cells[i, cell])
    return known


@jit
def exponentials(r: Rules, d: Dots, products: Any, size: int, end: int, least: float) -> float:
    """Write exponentials relative to the largest product, or to `least` where that is more, which is returned."""
    padded = (end + 15) & ~15
    products[size : (size + 3) & ~3] = -np.inf
    products[end:padded] = -np.inf
    call(r.largest, (products.ctypes.data, padded, d.top.ctypes.data))
    d.top[0] = max(d.top[0], least)
    call(r.exponentials, (products.ctypes.data, padded, d.top.ctypes.data, d.weights.ctypes.data))
    return float(d.top[0])


@jit
def _total(r: Rules, g: Groups, s: Scratch, n: Lists, d: Dots, i: int, steady: int) -> tuple[float, float]:
    """Return what sums are relative to, and the sum of all; those of differences of runs stay in `numbers`."""
    size, _, runs, _ = n.sizes[i]
    guessed, total, _ = n.measures[i]
    first, x, numbers, products = (size + 3) & ~3, d.weights, s.numbers, d.products[i]
    top = exponentials(r, d, products, size, first + RUN * runs, guessed if steady else -np.inf)
    z = 0.0
    for j in range(0, first, 4):
        z += (x[j] + x[j + 1]) + (x[j + 2] + x[j + 3])
    if runs == 0:
        return top, z
    n.draw[i, runs : runs + 8], n.odds[i, runs : runs + 8] = 0, 1.0  # a whole vector more is read, and left out
    relative = math.exp(guessed - top) if steady else 0.0
    numbers[0], numbers[1] = relative, total / (RUN * runs)
    given = x[first:].ctypes.data, products[first:].ctypes.data, n.draw[i].ctypes.data, n.odds[i].ctypes.data
    cells = g.cell.ctypes.data, n.slopes[i].ctypes.data, n.cells[i].ctypes.data
    call(r.add_runs, (*given, *cells, runs, numbers.ctypes.data))
    z += numbers[2]
    return top, z - relative * _known(g, n, i, products) if steady else z


@jit
def sum_up(r: Rules, g: Groups, s: Scratch, n: Lists, d: Dots, i: int, out: Any) -> None:
    """Write the log of a sum over what a query takes, its standard error and how many items these are."""
    size, _, runs, steady = n.sizes[i]
    top, z = _total(r, g, s, n, d, i, steady)
    if z <= 0:  # only where the error is larger than the sum itself
        top, z = _total(r, g, s, n, d, i, 0)
    out[0] = top + math.log(z)
    out[1] = trusted(r, s, runs, z, math.exp(2 * (n.measures[i, 2] - out[0]))) if runs > 0 else 0.0
    out[2] = size + RUN * runs


@jit
def trusted(r: Rules, s: Scratch, runs: int, z: float, predicted: float) -> float:
    """Return the relative standard error, from what differences of runs show and from the predicted variance."""
    square, fourth, pairs = s.numbers[3], s.numbers[4], runs // 2
    seen, effective = (math.sqrt(square * runs / (2 * pairs)) / z) ** 2, float(pairs)
    if square > 0:  # with fourth powers that are no numbers, one leaves nothing of others
        effective = square**2 / fourth if 0 < fourth < np.inf else 1.0
    elif s.numbers[2] == 0:
        effective = 0.0
    share = r.few**2 / (effective**2 + r.few**2)
    return math.sqrt(seen + share * (predicted - seen)) if predicted > seen else math.sqrt(seen)


@jit
def widening(square: float, fourth: float) -> float:
    """Return what a variance is multiplied by, as `rfkernels.catalog.trust.widening` has it."""
    few = min(fourth / square**2, 1.0) if 0 < fourth < np.inf and 0 < square**2 < np.inf else 1.0
    return (1 + few * (WIDER[0] + few * (WIDER[1] + few * WIDER[2]))) ** 2


@jit
def multiply(r: Rules, g: Groups, s: Scratch, n: Lists, d: Dots, queries: Any) -> None:
    """Write dot products of queries with what they take."""
    if len(queries) < _TOGETHER:
        alone(r, g, s, n, d, queries)
    else:
        _together(r, g, s, n, d, queries)


@entry
def estimate(rules: int, groups: int, scratch: int, lists: int, dots: int, queries: Any, out: Any) -> int:
    """Estimate log-normalizers of a block of queries: log, standard error and dot products of each."""
    r, g, s, n = view(Rules, rules), view(Groups, groups), view(Scratch, scratch), view(Lists, lists)
    d = view_like(Dots, dots, queries)
    multiply(r, g, s, n, d, queries)
    for i in range(len(queries)):
        sum_up(r, g, s, n, d, i, out[i])
        out[i, 2] += len(g.means)
    return 0
