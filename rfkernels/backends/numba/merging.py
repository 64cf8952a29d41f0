"""Merging of points by Ward's criterion, compiled: rounds as `rfkernels.grouping.merging.reduced` specifies them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels.backends.numba.compiling import jit, jit_with

_MOST = np.finfo(np.float64).max
"""The cost of what is not finite: points are merged all the same, or nothing would end."""


def reduced(_: Any, x: Any, weight: Any, size: int) -> Any:
    """Return a group, from 0 to size − 1, for each point of positive weight; (*batch, points)."""
    batch = np.broadcast_shapes(x.shape[:-2], weight.shape[:-1])
    points = np.broadcast_to(x, (*batch, *x.shape[-2:])).reshape(-1, *x.shape[-2:])
    weights = np.broadcast_to(weight, (*batch, weight.shape[-1])).reshape(-1, weight.shape[-1])
    label = np.empty(weights.shape, np.int64)
    for own, mass, out in zip(points, weights, label, strict=True):
        _reduce(np.ascontiguousarray(own.T), mass.copy(), size, out)
    return label.reshape(*batch, weight.shape[-1])


@jit
def _distances(x: Any, i: int, row: Any) -> None:
    """Write squared distances of point i from all; points are columns."""
    row[:] = 0
    for axis in range(x.shape[0]):
        own = x[axis, i]
        for j in range(x.shape[1]):
            apart = x[axis, j] - own
            row[j] += apart * apart


@jit
def _nearest(square: Any, weight: Any, left: Any, i: int) -> tuple[int, float]:
    best, at = np.inf, -1
    for j in range(len(weight)):
        if left[j] and j != i:
            cost = weight[i] * weight[j] / (weight[i] + weight[j]) * square[i, j]
            if not cost < _MOST:
                cost = _MOST
            if cost < best:
                best, at = cost, j
    return at, best


@jit
def _sort(places: Any, found: int, cost: Any) -> None:
    """Sort places by their cost."""
    for k in range(1, found):
        own, j = places[k], k
        while j > 0 and cost[places[j - 1]] > cost[own]:
            places[j] = places[j - 1]
            j -= 1
        places[j] = own


@jit_with(entry=True, allocates=True)
def _reduce(x: Any, weight: Any, size: int, label: Any) -> None:
    count, surplus = len(weight), -size
    left, stale = np.empty(count, np.bool_), np.empty(count, np.bool_)
    root, nearest, leads = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    square, least = np.empty((count, count), x.dtype), np.empty(count)
    for i in range(count):
        left[i] = stale[i] = weight[i] > 0
        root[i] = i
        surplus += left[i]
        if left[i]:
            _distances(x, i, square[i])
    while surplus > 0:
        for i in range(count):
            if left[i] and (stale[i] or not left[nearest[i]] or stale[nearest[i]]):
                nearest[i], least[i] = _nearest(square, weight, left, i)
        found = 0
        for i in range(count):
            if left[i] and i < nearest[i] and nearest[nearest[i]] == i:
                leads[found] = i
                found += 1
        for i in range(count):  # costs that differ by rounding may have passed each other: look at all points again
            stale[i] = found == 0 and left[i]
        if found > surplus:
            _sort(leads, found, least)
            found = surplus
        for k in range(found):
            i, j = leads[k], nearest[leads[k]]
            both = weight[i] + weight[j]
            for axis in range(x.shape[0]):
                x[axis, i] = (x[axis, i] * weight[i] + x[axis, j] * weight[j]) / both
            weight[i], left[j], stale[i] = both, False, True
            for point in range(count):
                if root[point] == j:
                    root[point] = i
        surplus -= found
        for k in range(found):
            i = leads[k]
            _distances(x, i, square[i])
            for j in range(count):
                square[j, i] = square[i, j]
    place = -1
    for i in range(count):
        place += left[i]
        nearest[i] = place
    for i in range(count):
        label[i] = max(nearest[root[i]], 0)
