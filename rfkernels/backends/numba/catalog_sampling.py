"""Items drawn for many queries, compiled and on threads: as `rfkernels.catalog.sampling` specifies it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

from rfkernels.backends.numba import threads
from rfkernels.catalog.plan import guess
from rfkernels.catalog.records import Draws, Table
from rfkernels.catalog.sampling import head

Function = TypeVar("Function", bound=Callable[..., Any])

_SHARE = 16
"""Queries that a thread takes at a time."""


def sample(table: Table, queries: Any, draws: int, rng: Any) -> Draws:
    """Draw items, independently and with replacement, for queries (queries, dim); ids are those of the table."""
    u = rng.random((len(queries), 2, draws))
    rows, log, logits = np.empty((len(u), draws), np.int64), np.empty((len(u), draws)), np.empty((len(u), draws))
    most = int(table.count.max())
    room = min(int(table.count.sum()), most * (draws + 64))

    def share(first: int) -> int:
        buffer, where = np.empty(room), np.full(len(table.count), -1, np.int64)
        ends, inside = np.empty(len(table.count)), np.empty(most)
        own = queries[first : first + _SHARE].astype(np.float64)
        guessed = np.log(table.count) + guess(table, own).log_mean
        for i, (query, log_sums) in enumerate(zip(own, guessed, strict=True), first):
            chosen = head(log_sums, table.count)
            scratch, out = (buffer, where, ends, inside), (rows[i], log[i], logits[i])
            _draw(table.rows, table.start, table.count, query, chosen, log_sums, u[i], scratch, out)
        return 0

    threads.run([partial(share, first) for first in range(0, len(u), _SHARE)], threads.thread_count())
    return Draws(table.ids[rows], log, logits)


def _fast(function: Function) -> Function:
    """Compile with sums in any order; nothing is assumed to be finite."""
    return cast(Function, njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})(function))


@_fast
def _logits(rows: Any, first: int, count: int, query: Any, out: Any) -> float:
    """Write the logits of a run of rows and return the log of the sum of their exponentials."""
    top = -np.inf
    for i in range(count):
        total = 0.0
        row = rows[first + i]
        for j in range(len(query)):
            total += row[j] * query[j]
        out[i] = total
        top = max(top, total)
    total = 0.0
    for i in range(count):
        total += np.exp(out[i] - top)
    return float(top + np.log(total))


@_fast
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


@njit(nogil=True, cache=True)
def _draw(
    rows: Any,
    start: Any,
    count: Any,
    query: Any,
    chosen: Any,
    log_sums: Any,
    uniform: Any,
    scratch: Any,
    drawn: Any,
) -> None:
    (buffer, where, ends, inside), (out, log, logits) = scratch, drawn
    to_group, to_item = uniform[0], uniform[1]
    used = 0
    for g in chosen:
        where[g] = used
        log_sums[g] = _logits(rows, start[g], count[g], query, buffer[used:])
        used += count[g]
    top = log_sums.max()
    total = 0.0
    for g in range(len(log_sums)):
        total += np.exp(log_sums[g] - top)
        ends[g] = total
    log_total = top + np.log(total)
    group = np.empty(len(to_group), np.int64)
    for i in range(len(group)):
        group[i] = _place(ends, len(ends), to_group[i] * total)
    touched = np.empty(len(group) + len(chosen), np.int64)
    touched[: len(chosen)] = chosen
    seen = len(chosen)
    last, own = -1, 0.0
    order = np.argsort(group, kind="mergesort")
    for i in order:
        g = group[i]
        if where[g] < 0:
            where[g] = used
            _logits(rows, start[g], count[g], query, buffer[used:])
            used += count[g]
            touched[seen] = g
            seen += 1
        part = buffer[where[g] : where[g] + count[g]]
        if g != last:
            last = g
            high, summed = part.max(), 0.0
            for j in range(count[g]):
                summed += np.exp(part[j] - high)
                inside[j] = summed
            own = high + np.log(summed)
        place = _place(inside, count[g], to_item[i] * inside[count[g] - 1])
        out[i], logits[i] = start[g] + place, part[place]
        log[i] = log_sums[g] - log_total + part[place] - own
    for i in range(seen):
        where[touched[i]] = -1
