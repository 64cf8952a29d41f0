"""Lists of the blocks of codes that queries read, compiled: `rfkernels.catalog.scans.listed` specifies them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_layout import Lists, Rules, Scratch
from rfkernels.backends.numba.catalog_list_kernels import MASK_SHIFT, SIZE_SHIFT
from rfkernels.backends.numba.catalog_looks import Codes, Looks
from rfkernels.backends.numba.catalog_plans import place_runs
from rfkernels.backends.numba.catalog_scan_kernels import AHEAD
from rfkernels.backends.numba.compiling import call, jit, up
from rfkernels.catalog.codes import BLOCK

_MASK = np.int32((1 << BLOCK) - 1)

Sources = tuple[int, int, int, int]
"""Addresses of numbers for each group, and of what logits count from, centres, and slopes for each such number."""


@jit
def place_block_runs(r: Rules, g: Groups, s: Scratch, c: Codes, k: Looks, seed: Any, number: int) -> None:
    """Write where the runs of each group begin, and what the first of them looks at."""
    place_runs(r, g, s, seed, number)
    given = g.start.ctypes.data, g.size.ctypes.data, s.offset.ctypes.data, up(len(g.start), 8)
    call(c.begins, (*given, k.begins.ctypes.data))


@jit
def begin_of(g: Groups, group: int, block: int) -> int:
    """Return what a group has in a block of rows: block, mask and number."""
    low = max(g.start[group] - BLOCK * block, 0)
    high = min(g.start[group] + g.count[group] - BLOCK * block, BLOCK)
    return int(block | ((1 << high) - (1 << low)) << MASK_SHIFT | (high - low) << SIZE_SHIFT)


@jit
def _put(k: Looks, m: int, begin: int) -> int:
    """List a block; return how many of its items are looked at."""
    size = begin >> SIZE_SHIFT
    k.blocks[m], k.masks[m], k.sizes[m] = np.int32(begin), np.int32(begin >> MASK_SHIFT) & _MASK, size
    return size


@jit
def _places(k: Looks, first: int) -> int:
    """Return the address of those of what is listed of blocks, from one on."""
    out = k.addresses
    out[0], out[1] = k.blocks[first:].ctypes.data, k.masks[first:].ctypes.data
    out[2], out[3], out[4] = k.bases[first:].ctypes.data, k.centres[first:].ctypes.data, k.slopes[first:].ctypes.data
    out[5], out[6] = k.sizes[first:].ctypes.data, k.factors[first:].ctypes.data
    return int(out.ctypes.data)


@jit
def _list_opened(g: Groups, c: Codes, k: Looks, n: Lists, i: int, known: Sources) -> int:
    """List the blocks of opened groups; return how many these are."""
    given = n.opened[i].ctypes.data, n.sizes[i, 1], g.start.ctypes.data, g.count.ctypes.data
    return int(call(c.list_opened, (*given, *known, _places(k, 0))))


@jit
def _list_runs(g: Groups, s: Scratch, c: Codes, k: Looks, n: Lists, i: int, first: int, known: Sources) -> int:
    """List the blocks of runs, behind others; return how many items these are."""
    runs, draw, (cell, bases, centres, slopes) = n.sizes[i, 2], n.draw[i], known
    k.totals[0] = n.measures[i, 1] / runs
    given = draw.ctypes.data, k.begins.ctypes.data, cell, n.odds[i].ctypes.data, bases, centres, slopes, runs
    many = call(c.list_runs, (*given, k.totals.ctypes.data, _places(k, first), k.repeated.ctypes.data))
    items, turn, before = int(k.totals[1]), 0, -1
    for j in range(many):
        run = k.repeated[j]
        group, m = draw[run], first + run
        turn = turn + 1 if run == before + 1 else 1
        place = (s.offset[group] + BLOCK * turn) % g.count[group]
        items -= int(k.sizes[m])
        k.factors[m] *= k.sizes[m]
        items += _put(k, m, begin_of(g, group, (g.start[group] + place) // BLOCK))
        k.factors[m] /= k.sizes[m]
        before = run
    return items


@jit
def list_blocks(g: Groups, s: Scratch, c: Codes, k: Looks, n: Lists, i: int, known: Sources) -> tuple[int, int]:
    """List the blocks of opened groups and then those of runs; return where the latter begin, and how many items."""
    first, items = _list_opened(g, c, k, n, i, known), n.sizes[i, 0]
    m = first + n.sizes[i, 2]
    if m > first:
        items += _list_runs(g, s, c, k, n, i, first, known)
    end = up(m, BLOCK)
    for j in range(m, end):
        k.masks[j], k.sizes[j], k.bases[j], k.centres[j], k.slopes[j], k.factors[j] = 0, 0, 0, 0, 0, 0
    for j in range(m, end + AHEAD):
        k.blocks[j] = k.blocks[m - 1]
    return first, items
