"""Groups that promise most, and what codes say of their items, compiled: for `catalog_tops` and `catalog_sampling`."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np

from rfkernels.backends.numba.catalog_block_lists import begin_of
from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_guesses import Prepared
from rfkernels.backends.numba.catalog_layout import kept
from rfkernels.backends.numba.catalog_list_kernels import MASK_SHIFT
from rfkernels.backends.numba.catalog_looks import Codes
from rfkernels.backends.numba.catalog_scan_kernels import AHEAD, level_kernels, products_added
from rfkernels.backends.numba.catalog_scans import anchored, rounded
from rfkernels.backends.numba.catalog_top_kernels import top_kernels
from rfkernels.backends.numba.compiling import call, jit, up
from rfkernels.backends.numba.jit import Machine, machine
from rfkernels.backends.numba.records import Bytes, Elements, Floats, Held, Ints
from rfkernels.catalog.codes import BLOCK
from rfkernels.catalog.codes import TOGETHER as EIGHT
from rfkernels.catalog.records import Table

HALVINGS = 64
"""How often a limit is halved at most: what then is still between two is sorted."""

_BETWEEN = 2
"""Largest groups whose items may lie between two limits: then there is no more halving."""

_MASK = (1 << BLOCK) - 1


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

    Of cells, `anchored` are the logits that codes count from; of groups, `promise` is that, `opened` lists those that
    are looked through and `near` those about the limit. Of blocks, `blocks` are numbers, `masks` which of their items
    are looked at, `bases` the logits that codes count from, and `largest` what codes say is the largest; of items,
    `logits` are what codes say. `query` is the query in whole numbers; `numbers` and `ends` pass numbers to kernels.
    """

    logits: Elements
    largest: Elements
    bases: Elements
    numbers: Elements
    query: Bytes
    anchored: Floats
    promise: Floats
    ends: Floats
    blocks: Ints
    masks: Ints
    opened: Ints
    near: Ints


def finders(table: Table, own: Prepared) -> Held[Finders]:
    """Return addresses of kernels for a table on the machine of this call; their code is there as long as `own` is."""
    m = machine()
    found = own.finders.get(m)
    if found is None:
        found = own.finders.setdefault(m, _compiled(m, 8 * table.rows.dtype.itemsize, table.rows.shape[1]))
    return cast(Held[Finders], found[0])


def _compiled(m: Machine, bits: int, dim: int) -> tuple[Held[Finders], Any]:
    levels, others = level_kernels(m, bits, dim, products_added(m.width)), top_kernels(m, bits)
    names = ("promise", "weigh", "listed", "span", "counted", "collect")
    return Held(Finders(levels.addresses["levels"], *(others.addresses[x] for x in names))), (levels, others)


def finds(name: str, g: Groups, seen: int, dtype: Any) -> Held[Finds]:
    """Return memory, kept under a name, for what is found among so many items and a group more."""
    key = len(g.start), len(g.held), len(g.means), g.most, g.items, seen, dtype
    return kept(name, key, lambda: Held(_finds(g, seen, dtype), dtype))


def _finds(g: Groups, seen: int, dtype: Any) -> Finds:
    # A group more than there is room for is looked through if there are not enough items without it.
    items, cells, groups = min(seen + g.most, g.items), len(g.held), len(g.size)
    blocks = items // BLOCK + 2 * min(len(g.start), items) + 2 * BLOCK + AHEAD
    made = [
        np.empty(BLOCK * blocks, dtype),
        *np.empty((2, blocks), dtype),
        np.empty(2, dtype),
        np.zeros(len(g.means) - cells + EIGHT, np.int8),
        np.empty(cells),
        np.empty(groups),
        np.empty(2),
        *np.empty((2, blocks), np.int32),
        *np.empty((2, groups), np.int32),
    ]
    return Finds._make(made)


@jit
def open_groups(
    g: Groups, f: Finders, k: Finds, cells: Any, given: tuple[int, float], most: int, least: int, first: Any
) -> int:
    """List the groups that promise most, of at most `most` items and at least `least`; return how many these are.

    What they promise is the logit of the cell and, given by address, how far they stretch times a scale. Where that is
    no number none are listed. Those that are to be the first promise as much as any.
    """
    end, groups, limit, (stretch, k.ends[0]) = up(len(g.start), EIGHT), len(g.start), max(most, least), given
    known = cells.ctypes.data, g.cell.ctypes.data, stretch, g.size.ctypes.data, end, k.ends.ctypes.data
    call(f.promise, (*known, k.promise.ctypes.data))
    for j in range(len(first)):
        k.promise[first[j]] = k.ends[1]
    low, high = k.ends[0], np.nextafter(k.ends[1], np.inf)
    if not (-np.inf < low and high < np.inf):
        return 0
    if limit >= g.items:
        for group in range(groups):
            k.opened[group] = group
        return groups
    below, above = float(g.items), 0.0
    for _ in range(HALVINGS):
        middle = low / 2 + high / 2
        if below - above <= _BETWEEN * g.most or not low < middle < high:
            break
        k.ends[0] = middle
        call(f.weigh, (k.promise.ctypes.data, g.size.ctypes.data, end, k.ends.ctypes.data))
        if k.ends[1] > limit:
            low, below = middle, k.ends[1]
        else:
            high, above = middle, k.ends[1]
    k.ends[0] = low
    listed = call(f.listed, (k.promise.ctypes.data, groups, k.ends.ctypes.data, k.opened.ctypes.data))
    return _cut(g, k, listed, high, most, least)


@jit
def _cut(g: Groups, k: Finds, listed: int, high: float, most: int, least: int) -> int:
    """Take of the groups that are listed those that fit; promises of `high` all do."""
    items = many = 0
    for j in range(listed):
        group = k.opened[j]
        if k.promise[group] >= high:
            items += g.count[group]
            continue
        k.near[many] = group
        many += 1
    _sort(k.near, k.promise, many)
    taken = 0
    while taken < many and (items + g.count[k.near[taken]] <= most or items < least):
        items += g.count[k.near[taken]]
        taken += 1
    if taken == many:
        return listed
    last, opened = k.near[taken], 0
    for j in range(listed):
        group = k.opened[j]
        if _earlier(k.promise, group, last):
            k.opened[opened] = group
            opened += 1
    return opened


@jit
def _earlier(promise: Any, group: int, other: int) -> bool:
    return bool(promise[group] > promise[other] or (promise[group] == promise[other] and group < other))


@jit
def _sort(groups: Any, promise: Any, count: int) -> None:
    """Sort groups by falling promise, by Shell's method: few are left to be sorted as a rule, but sometimes all."""
    gap = count // 2
    while gap > 0:
        for i in range(gap, count):
            group, place = groups[i], i
            while place >= gap and _earlier(promise, group, groups[place - gap]):
                groups[place] = groups[place - gap]
                place -= gap
            groups[place] = group
        gap //= 2


@jit
def read_codes(g: Groups, c: Codes, f: Finders, k: Finds, cells: Any, opened: int, query: Any) -> int:
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
    end = up(m, BLOCK)
    for j in range(m, end):
        k.masks[j], k.bases[j] = 0, 0
    for j in range(m, end + AHEAD):
        k.blocks[j] = k.blocks[m - 1]
    given = c.codes, k.blocks.ctypes.data, k.masks.ctypes.data, k.bases.ctypes.data, end
    out = k.numbers.ctypes.data, k.logits.ctypes.data, k.largest.ctypes.data
    call(f.levels, (*given, k.query.ctypes.data, shift, *out))
    return m if -np.inf < k.numbers[1] < np.inf else 0
