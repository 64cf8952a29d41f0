"""The items of largest q·y, compiled: `rfkernels.catalog.tops` specifies them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.catalog_entries import ENTRY, first
from rfkernels.backends.numba.catalog_exact import largest
from rfkernels.backends.numba.catalog_groups import Groups, padded
from rfkernels.backends.numba.catalog_guesses import Prepared, prepared, sizes
from rfkernels.backends.numba.catalog_kernels import AHEAD as ROWS_AHEAD
from rfkernels.backends.numba.catalog_kernels import TOGETHER as ROWS_TOGETHER
from rfkernels.backends.numba.catalog_layout import Rules, kept, plain, rules
from rfkernels.backends.numba.catalog_looks import Codes, codes
from rfkernels.backends.numba.catalog_plans import all_cell_logits
from rfkernels.backends.numba.catalog_search import HALVINGS, Finders, Finds, finders, finds, open_groups, read_codes
from rfkernels.backends.numba.compiling import call, entry, jit, up
from rfkernels.backends.numba.jit import machine
from rfkernels.backends.numba.records import Elements, FloatRows, Held, Ints, view, view_like
from rfkernels.catalog import tops
from rfkernels.catalog.codes import BLOCK
from rfkernels.catalog.plan import STEPS
from rfkernels.catalog.records import Table, Top

_BLOCK = 1024
"""Queries that a thread takes at a time, at most: fewer would have threads wait for each other more often."""

_NUMBERS = 1 << 19
"""Numbers of items that are settled together."""

_TOGETHER = 8
"""Queries whose products with cells are taken together."""

MARGIN = 2, 16
"""Items whose logits are taken again in float64 for each that is asked for, and besides."""


class Ranks(NamedTuple):
    """Memory of a thread: logits of cells for some queries; places of items, rows and logits of those taken again."""

    exact: Elements
    cells: FloatRows
    found: Ints
    places: Ints


def top(table: Table, queries: Any, count: int, budget: int) -> Top:
    """Return the largest items that queries find, as `rfkernels.catalog.tops.top` specifies."""
    known = prepared(table)
    given, items = tops.scope(table, budget, count, len(known.moved)), known.groups.record.items
    if given.seen < items and not given.ranked:
        return tops.top(table, queries, count, budget)
    small, size = tops.bounded(known.reach, queries), (len(queries), count)
    if small.all():
        return _top(table, known, given, queries, count)
    found = Top(np.empty(size, np.int64), np.empty(size))
    for own, answer in (
        (small, _top(table, known, given, queries[small], count)),
        (~small, tops.top(table, queries[~small], count, budget)),
    ):
        found.ids[own], found.logits[own] = answer
    return found


def _top(table: Table, known: Prepared, given: tops.Scope, queries: Any, count: int) -> Top:
    """Return the largest items that queries find, whose logits fit the dtype of rows."""
    wide, own, number = plain(queries, np.float64), plain(queries, table.rows.dtype), threads.thread_count()
    ids, logits = np.empty((len(wide), count), np.int64), np.empty((len(wide), count))
    wanted = min(MARGIN[0] * count + MARGIN[1], given.ranked or given.seen)
    rows = np.empty((len(wide), wanted), np.int64) if given.ranked else largest(table, queries, wanted)
    block = min(_BLOCK, max(1, -(-len(wide) // number)))
    step = max(1, _NUMBERS // (wanted * wide.shape[1]))

    def task(first: int) -> int:
        last = min(first + block, len(wide))
        if given.ranked:
            _search(table, known, given, (wide[first:last], own[first:last]), count, rows[first:last])
        for begin in range(first, last, step):
            part = slice(begin, min(begin + step, last))
            ids[part], logits[part] = tops.settled(table, wide[part], rows[part], count)
        return 0

    threads.run([partial(task, first) for first in range(0, len(wide), block)], number)
    return Top(ids, logits)


def _search(table: Table, known: Prepared, given: tops.Scope, queries: tuple[Any, Any], count: int, rows: Any) -> None:
    """Write the rows of what queries of float64 and of the dtype of rows find, (queries, wanted)."""
    wide, own = queries
    g, (r, c, f) = known.groups, _tools(table, known)
    dtype, cells = table.rows.dtype, len(known.groups.record.held)
    k = finds("top", g.record, given.seen, dtype)
    places = len(k.record.logits)
    n = kept("ranks", (cells, places, given.ranked, dtype), lambda: _ranks(g.record, places, given.ranked, dtype))
    scales = np.exp2(sizes(r.record.wide_dots, g, wide) / STEPS)
    heap, at = np.empty(places, ENTRY), (r.address, g.address, c.address, f.address, k.address, n.address)
    _search_all(*at, scales, (*given, count), wide, own, heap, rows)


def _tools(table: Table, known: Prepared) -> tuple[Held[Rules], Held[Codes], Held[Finders]]:
    """Return what all searches of a table have in common, which is kept."""
    key = machine(), 0, _tools
    found = known.common.get(key)
    if found is None:
        found = known.common[key] = rules(table, known, True), codes(table, known), finders(table, known)
    return cast(tuple[Held[Rules], Held[Codes], Held[Finders]], found)


def _ranks(g: Groups, places: int, ranked: int, dtype: Any) -> Held[Ranks]:
    made = [
        np.empty(ranked + 2 * BLOCK, dtype),
        np.empty((_TOGETHER, padded(len(g.held)) + 8)),
        np.empty(places, np.int32),
        np.empty(ranked + ROWS_TOGETHER * (ROWS_AHEAD + 1), np.int32),
    ]
    return Held(Ranks._make(made), dtype)


@entry
def _search_all(
    rules: int,
    groups: int,
    codes: int,
    finders: int,
    finds: int,
    ranks: int,
    scales: Any,
    given: Any,
    wide: Any,
    queries: Any,
    heap: Any,
    out: Any,
) -> int:
    """Write the rows of what queries find."""
    r, g, c = view(Rules, rules), view(Groups, groups), view(Codes, codes)
    f, k, n = view(Finders, finders), view_like(Finds, finds, queries), view_like(Ranks, ranks, queries)
    for begin in range(0, len(queries), _TOGETHER):
        all_cell_logits(r, g, n, wide[begin : begin + _TOGETHER])
        for i in range(begin, min(begin + _TOGETHER, len(queries))):
            cells, stretch = n.cells[i - begin], (g.stretch.ctypes.data, scales[i])
            opened = open_groups(g, f, k, cells, stretch, given[0], given[2], n.found[:0])
            blocks = read_codes(g, c, f, k, cells, opened, wide[i])
            _rank(r, f, k, n, blocks, given[1], queries[i], heap, out[i])
    return 0


@jit
def _limit(f: Finders, k: Finds, blocks: int, wanted: int) -> None:
    """Write to the numbers a limit that at least so many items reach, and not many more than need be.

    As many blocks are looked at by their largest items only.
    """
    if blocks > wanted:
        given = k.largest.ctypes.data, up(blocks, BLOCK), k.numbers.ctypes.data
    else:
        given = k.logits.ctypes.data, BLOCK * up(blocks, BLOCK), k.numbers.ctypes.data
    call(f.span, given)
    low, high = k.numbers[0], k.numbers[1]
    for _ in range(HALVINGS):
        k.numbers[0] = low / 2 + high / 2
        middle = k.numbers[0]
        if not low < middle < high:
            break
        many = call(f.counted, given)
        if many < wanted:
            high = middle
            continue
        low = middle
        if many <= wanted + wanted // 8:
            break
    k.numbers[0] = low


@jit
def _rank(r: Rules, f: Finders, k: Finds, n: Ranks, blocks: int, ranked: int, query: Any, heap: Any, out: Any) -> None:
    """Take dot products with the items whose codes say most, and write the rows of the largest."""
    _limit(f, k, blocks, ranked)
    given = k.logits.ctypes.data, k.largest.ctypes.data, up(blocks, BLOCK), k.numbers.ctypes.data
    many = call(f.collect, (*given, n.found.ctypes.data))
    for j in range(many):
        heap[j].logit, heap[j].row = k.logits[n.found[j]], n.found[j]
    end = min(many, ranked)
    first(heap, many, end)
    for j in range(end):
        place = heap[j].row
        n.places[j] = BLOCK * k.blocks[place // BLOCK] + place % BLOCK
    for j in range(r.ahead):
        n.places[end + j] = n.places[0]
    call(r.dots, (r.rows, r.row_stride, n.places.ctypes.data, end, query.ctypes.data, n.exact.ctypes.data))
    for j in range(end):
        heap[j].logit, heap[j].row = n.exact[j], n.places[j]
    first(heap, end, len(out))
    for j in range(len(out)):
        out[j] = heap[j].row if j < end else -1
