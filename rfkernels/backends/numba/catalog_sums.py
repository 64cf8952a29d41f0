"""Sums over what queries of a catalog take, compiled: `rfkernels.catalog.estimates` specifies them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels.backends.numba.catalog_layout import Groups, Lists, Rules, Scratch
from rfkernels.backends.numba.schedule import call, jit


@jit
def multiply(r: Rules, n: Lists, queries: Any, products: Any) -> int:
    """Write dot products of queries with what they take: all pass over the groups once, stretch by stretch."""
    for stretch in range(n.marks.shape[2] - 1):
        for i in range(len(queries)):
            for part in range(2):
                first, last = n.marks[i, part, stretch], n.marks[i, part, stretch + 1]
                if first < last:
                    places, out = n.places[i, first:].ctypes.data, products[i, first:].ctypes.data
                    query = queries[i].ctypes.data
                    call(r.dots, (r.rows, r.row_stride, places, last - first, query, out))
    return 0


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
def _exponentials(r: Rules, s: Scratch, products: Any, size: int, end: int, least: float) -> float:
    """Write exponentials relative to the largest product, or to `least` where that is more, which is returned."""
    x, padded = s.x, (end + 7) & ~7
    for j in range(end):
        x[j] = products[j]
    x[size : (size + 3) & ~3] = -np.inf
    x[end:padded] = -np.inf
    call(r.largest, (x.ctypes.data, padded, s.number.ctypes.data))
    s.number[0] = max(s.number[0], least)
    call(r.exponentials, (x.ctypes.data, padded, s.number.ctypes.data))
    return float(s.number[0])


@jit
def _total(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, products: Any, steady: int) -> tuple[float, float, float]:
    """Return what sums are relative to, the sum of all, and that of squared differences of successive runs."""
    size, _, runs, _ = n.sizes[i]
    guessed, total, _ = n.measures[i]
    first, x = (size + 3) & ~3, s.x
    top = _exponentials(r, s, products, size, first + 4 * runs, guessed if steady else -np.inf)
    z = even = apart = 0.0
    for j in range(0, first, 4):
        z += (x[j] + x[j + 1]) + (x[j + 2] + x[j + 3])
    relative = math.exp(guessed - top) if steady else 0.0
    for run in range(runs):
        j, cell = first + 4 * run, g.cell[n.draw[i, run]]
        expected = total / (4 * runs * n.odds[i, run])
        own = (x[j] + x[j + 1]) + (x[j + 2] + x[j + 3])
        if steady:
            mean = (products[j] + products[j + 1]) + (products[j + 2] + products[j + 3]) - 4 * n.cells[i, cell]
            own -= relative * n.slopes[i, cell] * mean
        own *= expected
        z += own
        if run % 2:
            apart += (own - even) ** 2
        even = own
    return top, z - relative * _known(g, n, i, products) if steady else z, apart


@jit
def _sum_up(r: Rules, g: Groups, s: Scratch, n: Lists, i: int, products: Any, out: Any) -> None:
    size, _, runs, steady = n.sizes[i]
    top, z, apart = _total(r, g, s, n, i, products, steady)
    if z <= 0:  # only where the error is larger than the sum itself
        top, z, apart = _total(r, g, s, n, i, products, 0)
    out[0] = top + math.log(z)
    out[1] = math.sqrt(apart * runs / (runs // 2 * 2)) / z if runs > 1 else 0.0
    predicted = math.exp(n.measures[i, 2] - out[0])
    if predicted > r.heavy:
        out[1] = max(out[1], predicted)
    out[2] = size + 4 * runs


@jit
def estimate(r: Rules, g: Groups, s: Scratch, n: Lists, queries: Any, products: Any, out: Any) -> int:
    """Estimate log-normalizers of the queries of a block: log, standard error and dot products of each."""
    multiply(r, n, queries, products)
    for i in range(len(queries)):
        _sum_up(r, g, s, n, i, products[i], out[i])
    return 0


@jit
def evaluate(r: Rules, g: Groups, s: Scratch, n: Lists, queries: Any, products: Any, out: tuple[Any, Any, Any]) -> int:
    """Write rows, logits and log weights of what the queries of a block take."""
    multiply(r, n, queries, products)
    rows, logits, log_weights = out
    for i in range(len(queries)):
        size, _, runs, _ = n.sizes[i]
        drawn = (size + 3) & ~3
        for j in range(size):
            rows[i, j], logits[i, j], log_weights[i, j] = n.places[i, j], products[i, j], 0.0
        for j in range(4 * runs):
            rows[i, size + j], logits[i, size + j] = n.places[i, drawn + j], products[i, drawn + j]
        for run in range(runs):
            weight = math.log(n.measures[i, 1] / (4 * runs * n.odds[i, run]))
            log_weights[i, size + 4 * run : size + 4 * run + 4] = weight
        end = size + 4 * runs
        rows[i, end:], logits[i, end:], log_weights[i, end:] = -1, -np.inf, -np.inf
    return 0
