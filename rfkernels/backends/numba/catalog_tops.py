"""The items of largest q·y, compiled: `rfkernels.catalog.tops` specifies them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.catalog_exact import earlier, largest, swap
from rfkernels.backends.numba.catalog_groups import Groups, padded
from rfkernels.backends.numba.catalog_guesses import Prepared, prepared, sizes
from rfkernels.backends.numba.catalog_kernels import AHEAD as ROWS_AHEAD
from rfkernels.backends.numba.catalog_kernels import TOGETHER as ROWS_TOGETHER
from rfkernels.backends.numba.catalog_layout import Rules, kept, plain, rules
from rfkernels.backends.numba.catalog_list_kernels import MASK_SHIFT
from rfkernels.backends.numba.catalog_looks import Codes, codes
from rfkernels.backends.numba.catalog_plans import all_cell_logits
from rfkernels.backends.numba.catalog_scan_kernels import AHEAD, level_kernels, products_added
from rfkernels.backends.numba.catalog_scans import anchored, begin_of, rounded
from rfkernels.backends.numba.catalog_top_kernels import top_kernels
from rfkernels.backends.numba.compiling import call, entry, jit, up
from rfkernels.backends.numba.jit import Machine, machine
from rfkernels.backends.numba.records import Bytes, Elements, FloatRows, Floats, Held, Ints, view, view_like
from rfkernels.catalog import tops
from rfkernels.catalog.codes import BLOCK
from rfkernels.catalog.codes import TOGETHER as EIGHT
from rfkernels.catalog.plan import STEPS
from rfkernels.catalog.records import Table, Top

_BLOCK = 64
"""Queries that are settled together."""

_TOGETHER = 8
"""Queries whose products with cells are taken together."""

_HALVINGS = 16
"""How often a limit is halved at most: what then is still between two is sorted."""

MARGIN = 2, 16
"""Items whose logits are taken again in float64 for each that is asked for, and besides, where all are looked at."""

_MASK = (1 << BLOCK) - 1

_ENTRY = np.dtype([("logit", np.float64), ("row", np.int64)])


class Finders(NamedTuple):
    """Addresses of kernels."""

    levels: int
    promise: int
    weigh: int
    listed: int
    span: int
    counted: int
    collect: int


class Finds(NamedTuple):
    """What is found for one query, memory of a thread.

    Of cells, `cells` are logits for some queries and `anchored` those that codes count from; of groups, `promise` is
    that, `opened` lists those that are looked through and `near` those about the limit. Of blocks, `blocks` are
    numbers, `masks` which of their items are looked at, `bases` the logits that codes count from, and `largest` what
    codes say is the largest; of items, `logits` are what codes say. `found` are places of items, `places` rows of those
    that are taken again and `exact` their logits. `query` is the query in whole numbers; `numbers` and `ends` pass
    numbers to kernels, their unit first.
    """

    logits: Elements
    largest: Elements
    bases: Elements
    exact: Elements
    numbers: Elements
    query: Bytes
    anchored: Floats
    promise: Floats
    ends: Floats
    cells: FloatRows
    blocks: Ints
    masks: Ints
    opened: Ints
    near: Ints
    found: Ints
    places: Ints


def top(table: Table, queries: Any, count: int, budget: int) -> Top:
    """Return the largest items that queries find, as `rfkernels.catalog.tops.top` specifies."""
    known = prepared(table)
    given, items = tops.scope(table, budget, count, len(known.moved)), known.groups.record.items
    if given.seen < items and not given.ranked:
        return tops.top(table, queries, count, budget)
    wide, own = plain(queries, np.float64), plain(queries, table.rows.dtype)
    ids, logits = np.empty((len(wide), count), np.int32), np.empty((len(wide), count))
    number = threads.thread_count()
    block = min(_BLOCK, max(1, -(-len(wide) // number)))

    def settle(part: slice, rows: Any) -> int:
        with np.errstate(over="ignore", invalid="ignore"):  # who asked refuses what is no number
            found = tops.settled(table, wide[part], rows, count)
            lost = np.flatnonzero((rows < 0).all(1))
            if len(lost):  # that do not fit the dtype of rows
                found.ids[lost], found.logits[lost] = tops.top(table, wide[part][lost], count, budget)
        ids[part], logits[part] = found
        return 0

    def task(part: slice) -> int:
        return settle(part, _search(table, known, given, (wide[part], own[part]), count))

    parts = [slice(first, first + block) for first in range(0, len(wide), block)]
    if given.ranked:
        threads.run([partial(task, part) for part in parts], number)
    else:
        rows = largest(table, queries, min(MARGIN[0] * count + MARGIN[1], items))
        threads.run([partial(settle, part, rows[part]) for part in parts], number)
    return Top(ids, logits)


def _search(table: Table, known: Prepared, given: tops.Scope, queries: tuple[Any, Any], count: int) -> Any:
    """Return the rows of what queries of float64 and of the dtype of rows find, (queries, count); −1 for none."""
    wide, own = queries
    rows = np.full((len(wide), count), -1, np.int64)
    g, r, c, f = known.groups, rules(table, known, True), codes(table, known), _finders(table, known)
    k = _finds(g.record, given, table.rows.dtype)
    with np.errstate(over="ignore"):
        scales = np.exp2(sizes(r.record.wide_dots, g, wide) / STEPS)
    heap, at = np.empty(len(k.record.found), _ENTRY), (r.address, g.address, c.address, f[0].address, k.address)
    _search_all(*at, scales, tuple(given), wide, own, heap, rows)
    return rows


def _finders(table: Table, own: Prepared) -> tuple[Held[Finders], Any]:
    """Return addresses of kernels for a table on the machine of this call, and their code."""
    m = machine()
    found = own.finders.get(m)
    if found is None:
        found = own.finders.setdefault(m, _compiled(m, 8 * table.rows.dtype.itemsize, table.rows.shape[1]))
    return cast(tuple[Held[Finders], Any], found)


def _compiled(m: Machine, bits: int, dim: int) -> tuple[Held[Finders], Any]:
    levels, others = level_kernels(m, bits, dim, products_added(m.width)), top_kernels(m, bits)
    names = ("promise", "weigh", "listed", "span", "counted", "collect")
    return Held(Finders(levels.addresses["levels"], *(others.addresses[x] for x in names))), (levels, others)


def _finds(g: Groups, given: tops.Scope, dtype: Any) -> Held[Finds]:
    key = len(g.start), len(g.held), len(g.means), g.most, given, dtype
    return kept("finds", key, lambda: Held(_made(g, given, dtype), dtype))


def _made(g: Groups, given: tops.Scope, dtype: Any) -> Finds:
    # A group more than there is room for is looked through if there are not enough items without it.
    items, cells, groups = min(given.seen + g.most, g.items), len(g.held), len(g.size)
    blocks = items // BLOCK + 2 * min(len(g.start), items) + 2 * BLOCK + AHEAD
    made = [
        np.empty(BLOCK * blocks, dtype),
        *np.empty((2, blocks), dtype),
        np.empty(given.ranked + 2 * BLOCK, dtype),
        np.empty(2, dtype),
        np.zeros(len(g.means) - cells + EIGHT, np.int8),
        np.empty(cells),
        np.empty(groups),
        np.empty(2),
        np.empty((_TOGETHER, padded(cells) + 8)),
        *np.empty((2, blocks), np.int32),
        *np.empty((2, groups), np.int32),
        np.empty(BLOCK * blocks, np.int32),
        np.empty(given.ranked + ROWS_TOGETHER * (ROWS_AHEAD + 1), np.int32),
    ]
    return Finds._make(made)


@entry
def _search_all(
    rules: int,
    groups: int,
    codes: int,
    finders: int,
    finds: int,
    scales: Any,
    given: Any,
    wide: Any,
    queries: Any,
    heap: Any,
    out: Any,
) -> int:
    """Write the rows of what queries find."""
    r, g, c = view(Rules, rules), view(Groups, groups), view(Codes, codes)
    f, k = view(Finders, finders), view_like(Finds, finds, queries)
    for first in range(0, len(queries), _TOGETHER):
        all_cell_logits(r, g, k, wide[first : first + _TOGETHER])
        for i in range(first, min(first + _TOGETHER, len(queries))):
            cells = k.cells[i - first]
            opened = _open(g, f, k, cells, scales[i], given[0], out.shape[1])
            blocks = _read(g, c, f, k, cells, opened, wide[i])
            if blocks > 0:
                _rank(r, f, k, blocks, given[1], queries[i], heap, out[i])
    return 0


@jit
def _open(g: Groups, f: Finders, k: Finds, cells: Any, scale: float, most: int, least: int) -> int:
    """List the groups that promise most; return how many these are, or −1 where promises are no numbers."""
    end, groups, limit = up(len(g.start), EIGHT), len(g.start), max(most, least)
    k.ends[0] = scale
    given = cells.ctypes.data, g.cell.ctypes.data, g.stretch.ctypes.data, g.size.ctypes.data, end, k.ends.ctypes.data
    call(f.promise, (*given, k.promise.ctypes.data))
    low, high = k.ends[0], np.nextafter(k.ends[1], np.inf)
    if not (-np.inf < low and high < np.inf):
        return -1
    if limit >= g.items:
        for group in range(groups):
            k.opened[group] = group
        return groups
    for _ in range(_HALVINGS):
        middle = low + (high - low) / 2
        if not low < middle < high:
            break
        k.ends[0] = middle
        call(f.weigh, (k.promise.ctypes.data, g.size.ctypes.data, end, k.ends.ctypes.data))
        if k.ends[1] > limit:
            low = middle
        else:
            high = middle
    k.ends[0] = low
    return _cut(
        g,
        k,
        call(f.listed, (k.promise.ctypes.data, groups, k.ends.ctypes.data, k.opened.ctypes.data)),
        high,
        most,
        least,
    )


@jit
def _cut(g: Groups, k: Finds, listed: int, high: float, most: int, least: int) -> int:
    """Take of the groups that are listed those that fit; promises of `high` all do."""
    items = many = 0
    for j in range(listed):
        group = k.opened[j]
        if k.promise[group] >= high:
            items += g.count[group]
            continue
        place = many
        while place > 0 and k.promise[k.near[place - 1]] < k.promise[group]:
            k.near[place] = k.near[place - 1]
            place -= 1
        k.near[place] = group
        many += 1
    taken = 0
    while taken < many and (items + g.count[k.near[taken]] <= most or items < least):
        items += g.count[k.near[taken]]
        taken += 1
    if taken == many:
        return listed
    last, opened = k.near[taken], 0
    for j in range(listed):
        group = k.opened[j]
        if k.promise[group] > k.promise[last] or (k.promise[group] == k.promise[last] and group < last):
            k.opened[opened] = group
            opened += 1
    return opened


@jit
def _read(g: Groups, c: Codes, f: Finders, k: Finds, cells: Any, opened: int, query: Any) -> int:
    """Write what codes of opened groups say; return the number of blocks, or 0 where that is no number."""
    if opened <= 0:
        return 0
    shift, _ = rounded(c, k, query)
    anchored(g, c, k, cells, query)
    m = 0
    for j in range(opened):
        group = k.opened[j]
        base = k.anchored[g.cell[group]]
        for block in range(g.start[group] // BLOCK, (g.start[group] + g.count[group] - 1) // BLOCK + 1):
            begin = begin_of(g, group, block)
            k.blocks[m], k.masks[m], k.bases[m] = np.int32(begin), np.int32(begin >> MASK_SHIFT & _MASK), base
            m += 1
        if not -np.inf < k.bases[m - 1] < np.inf:
            return 0
    end = up(m, BLOCK)
    for j in range(m, end):
        k.masks[j], k.bases[j] = 0, 0
    for j in range(m, end + AHEAD):
        k.blocks[j] = k.blocks[m - 1]
    given = c.codes, k.blocks.ctypes.data, k.masks.ctypes.data, k.bases.ctypes.data, end
    out = k.numbers.ctypes.data, k.logits.ctypes.data, k.largest.ctypes.data
    call(f.levels, (*given, k.query.ctypes.data, shift, *out))
    return m if -np.inf < k.numbers[1] < np.inf else 0


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
    for _ in range(_HALVINGS):
        k.numbers[0] = low + (high - low) / 2
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
def _rank(r: Rules, f: Finders, k: Finds, blocks: int, ranked: int, query: Any, heap: Any, out: Any) -> None:
    """Take dot products with the items whose codes say most, and write the rows of the largest."""
    _limit(f, k, blocks, ranked)
    given = k.logits.ctypes.data, k.largest.ctypes.data, up(blocks, BLOCK), k.numbers.ctypes.data
    many = call(f.collect, (*given, k.found.ctypes.data))
    for j in range(many):
        heap[j].logit, heap[j].row = k.logits[k.found[j]], k.found[j]
    end = min(many, ranked)
    first(heap, many, end)
    for j in range(end):
        place = heap[j].row
        k.places[j] = BLOCK * k.blocks[place // BLOCK] + place % BLOCK
    for j in range(r.ahead):
        k.places[end + j] = k.places[0]
    call(r.dots, (r.rows, r.row_stride, k.places.ctypes.data, end, query.ctypes.data, k.exact.ctypes.data))
    for j in range(end):
        heap[j].logit, heap[j].row = k.exact[j], k.places[j]
    first(heap, end, len(out))
    for j in range(len(out)):
        out[j] = heap[j].row


@jit
def first(entries: Any, count: int, wanted: int) -> None:
    """Move so many of some entries to the front: those of the largest logits, and of equal ones in the first rows."""
    low, high = 0, count - 1
    while low < high and low < wanted <= high:
        middle = (low + high) // 2
        for i, j in ((low, middle), (low, high), (middle, high)):
            if earlier(entries, j, i):
                swap(entries, i, j)
        logit, row = entries[middle].logit, entries[middle].row
        i, j = low, high
        while i <= j:
            while entries[i].logit > logit or (entries[i].logit == logit and entries[i].row < row):
                i += 1
            while entries[j].logit < logit or (entries[j].logit == logit and entries[j].row > row):
                j -= 1
            if i <= j:
                swap(entries, i, j)
                i, j = i + 1, j - 1
        if wanted <= j + 1:
            high = j
        elif wanted >= i:
            low = i
        else:
            return
