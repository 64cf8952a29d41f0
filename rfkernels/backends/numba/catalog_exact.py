"""Sums over all items of a catalog, and the largest of all, compiled.

`rfkernels.catalog.estimates.exact` and `rfkernels.catalog.tops` specify them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.catalog_entries import ENTRY, sink
from rfkernels.backends.numba.catalog_kernels import AHEAD, TOGETHER, dot_kernel, weight_kernels
from rfkernels.backends.numba.compiling import call, entry, jit
from rfkernels.backends.numba.jit import machine
from rfkernels.backends.numba.kernels import shared
from rfkernels.backends.numba.packing import up
from rfkernels.catalog.records import Estimate, Table

_QUERIES, _ROWS = 64, 512
"""Of a product of matrices: its result fits the second level of cache."""

_AT_ONCE = 1024
"""Queries whose largest are kept together."""

FEW = 4
"""Queries from which on rows are worth being packed."""


def exact(table: Table, queries: Any) -> Estimate:
    """Return log Σ exp(q·y) over all items; threads share queries, or rows where queries are few."""
    state = _over_all(_add, table, queries, lambda shape: np.full((*shape, 2), [-np.inf, 0.0]))
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.logaddexp.reduce(state[..., 0] + np.log(state[..., 1]), axis=0)
    items = int(table.count.sum(dtype=np.int64))
    return Estimate(log, np.zeros(len(log)), np.full(len(log), items))


def largest(table: Table, queries: Any, count: int) -> Any:
    """Return the rows of so many items of the largest logits of each query; these must fit the dtype of rows."""
    empty, rows = np.array((-np.inf, -1), ENTRY), np.empty((len(queries), count), np.int64)
    for first in range(0, len(queries), _AT_ONCE):
        own = queries[first : first + _AT_ONCE]
        state = np.concatenate(_over_all(_keep, table, own, lambda shape: np.full((*shape, count), empty)), axis=1)
        best = np.lexsort((state["row"], -state["logit"]), axis=1)[:, :count]
        rows[first : first + _AT_ONCE] = np.take_along_axis(state["row"], best, 1)
    return rows


def logits(table: Table, query: Any, rows: Any, many: bool) -> Any:
    """Return the logits of some rows, rounded as those are that `exact` adds up for many queries or for one."""
    own, empty = (
        table._replace(rows=table.rows[rows], ids=np.zeros(len(rows), np.int32)),
        np.array((-np.inf, -1), ENTRY),
    )
    queries = np.repeat(query[None], FEW if many else 1, axis=0)
    states = _over_all(_keep, own, queries, lambda shape: np.full((*shape, len(rows)), empty))
    state = np.concatenate(states[:, 0])
    return state["logit"][np.argsort(state["row"], kind="stable")[-len(rows) :]]


def _over_all(step: Any, table: Table, queries: Any, make: Callable[[tuple[int, int]], Any]) -> Any:
    """Return states of each part of the rows and query, (parts, queries), after all items of the part."""
    own, count = np.asarray(queries, table.rows.dtype), threads.thread_count()
    used = np.flatnonzero(table.ids >= 0)
    end = int(used[-1]) + 1 if len(used) else 0
    parts = count if len(own) < count * _QUERIES else 1
    span = up(max(-(-end // parts), 1), _ROWS)
    state = make((parts, len(own)))
    kernels, code = _kernels(table.rows, len(own))
    work = [
        partial(
            _block,
            step,
            kernels,
            table,
            own[i : i + _QUERIES],
            (part * span, min(part * span + span, end)),
            state[part, i:],
        )
        for i in range(0, len(own), _QUERIES)
        for part in range(parts)
    ]
    threads.run(work, count)
    del code
    return state


def _kernels(rows: Any, queries: int) -> tuple[tuple[int, ...], Any]:
    """Return addresses of kernels, and what must stay alive as long as they are called."""
    m, bits = machine(), 8 * rows.itemsize
    code = dots, products, weights = dot_kernel(m, bits, rows.shape[1]), shared(m, bits), weight_kernels(m, bits)
    first = dots.addresses["dots"] if queries < FEW else 0
    middle = (products.addresses[x] for x in (f"pack_{rows.dtype.name}", "transpose", "gemm"))
    return (first, *middle, weights.addresses["largest"], weights.addresses["sum"]), code


def _block(step: Any, kernels: tuple[int, ...], table: Table, queries: Any, span: tuple[int, int], state: Any) -> int:
    """Add the items of a span of rows to what is known for each query."""
    rows, m = table.rows, machine()
    lanes, dim = m.lanes(8 * rows.itemsize), rows.shape[1]
    padded, pad = np.zeros((up(len(queries), m.rows), dim), rows.dtype), up(dim, 2 * lanes)
    padded[: len(queries)] = queries
    row = _ROWS + m.vectors * lanes
    packed, turned, logits = (np.empty(shape, rows.dtype) for shape in ((_ROWS, pad), (pad, row), (len(padded), row)))
    places = np.empty(_ROWS + TOGETHER * (AHEAD + 1), np.int32)
    given = rows.ctypes.data, rows.strides[0], rows.itemsize
    other = np.zeros((2, pad), rows.dtype)
    return int(
        step(kernels, given, table.ids, span, padded, (packed, turned, logits), places, other, state[: len(queries)])
    )


@entry
def _add(
    kernels: Any,
    given: Any,
    ids: Any,
    span: Any,
    queries: Any,
    scratch: tuple[Any, Any, Any],
    places: Any,
    other: Any,
    state: Any,
) -> int:
    """Add to the largest logit, and to the sum of exponentials relative to it.

    `given` is the address of rows, their stride and the size of an element, `other` zeros and room for numbers.
    """
    packed, _, logits = scratch
    for first in range(span[0], span[1], len(packed)):
        _fill(kernels, given, ids, (first, span[1]), (queries, len(state)), scratch, places, other)
        for i in range(len(state)):
            _absorb(kernels[4], kernels[5], len(packed), logits[i], other[1], state[i])
    return 0


@entry
def _keep(
    kernels: Any,
    given: Any,
    ids: Any,
    span: Any,
    queries: Any,
    scratch: tuple[Any, Any, Any],
    places: Any,
    other: Any,
    state: Any,
) -> int:
    """Keep the largest logits and their rows: heaps whose least is the first."""
    packed, _, logits = scratch
    for first in range(span[0], span[1], len(packed)):
        _fill(kernels, given, ids, (first, span[1]), (queries, len(state)), scratch, places, other)
        for i in range(len(state)):
            call(kernels[4], (logits[i].ctypes.data, len(packed), other[1].ctypes.data))
            if other[1, 0] > state[i, 0].logit:
                _insert(state[i], logits[i], first, len(packed))
    return 0


@jit
def _insert(heap: Any, logits: Any, first: int, count: int) -> None:
    for j in range(count):
        if logits[j] > heap[0].logit:
            heap[0].logit, heap[0].row = logits[j], first + j
            sink(heap)


@jit
def _fill(
    kernels: Any,
    given: Any,
    ids: Any,
    span: tuple[int, int],
    own: tuple[Any, int],
    scratch: tuple[Any, Any, Any],
    places: Any,
    other: Any,
) -> None:
    """Write the logits of the next rows up to the end of a span, −inf for those that no item is in."""
    (packed, _, logits), (first, end), (queries, number) = scratch, span, own
    size = len(packed)
    count, start = min(size, end - first), given[0] + first * given[1]
    if kernels[0] != 0:
        for j in range(len(places)):
            places[j] = min(j, count - 1)
        for i in range(number):
            query, out = queries[i].ctypes.data, logits[i].ctypes.data
            call(kernels[0], (start, given[1], places.ctypes.data, size, query, out))
    else:
        source = (start, given[1], given[2], 0, count, size, queries.shape[1], other.ctypes.data)
        _multiply(kernels, source, queries, scratch)
    for j in range(size):
        if j >= count or ids[first + j] < 0:
            logits[:, j] = -np.inf


@jit
def _multiply(kernels: Any, source: Any, queries: Any, scratch: tuple[Any, Any, Any]) -> None:
    packed, turned, logits = scratch
    (size, pad), row = packed.shape, logits.shape[1]
    call(kernels[1], (*source, packed.ctypes.data, pad))
    call(kernels[2], (packed.ctypes.data, pad, turned.ctypes.data, row, size, pad))
    right, out = (turned.ctypes.data, row), (logits.ctypes.data, row)
    dim = queries.shape[1]
    call(kernels[3], (queries.ctypes.data, dim, 1, *right, *out, len(queries), size, dim))


@jit
def _absorb(largest: int, total: int, size: int, logits: Any, number: Any, state: Any) -> None:
    call(largest, (logits.ctypes.data, size, number.ctypes.data))
    if number[0] == -np.inf:
        return
    if number[0] > state[0]:
        state[1] *= math.exp(state[0] - number[0])
        state[0] = number[0]
    number[0] = state[0]
    call(total, (logits.ctypes.data, size, number.ctypes.data, number[1:].ctypes.data))
    state[1] += number[1]
