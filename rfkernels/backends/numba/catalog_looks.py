"""What compiled estimates know of the codes of items, and write of what these say."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np

from rfkernels.backends.numba.catalog_check_kernels import check_kernels
from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_guesses import Prepared
from rfkernels.backends.numba.catalog_kernels import AHEAD, TOGETHER
from rfkernels.backends.numba.catalog_layout import kept
from rfkernels.backends.numba.catalog_list_kernels import list_kernels
from rfkernels.backends.numba.catalog_scan_kernels import products_added, scan_kernels
from rfkernels.backends.numba.jit import Machine, machine
from rfkernels.backends.numba.records import Bytes, Elements, FloatRows, Floats, Held, Ints, Longs
from rfkernels.catalog import aligned
from rfkernels.catalog.codes import BLOCK, cost
from rfkernels.catalog.codes import TOGETHER as EIGHT
from rfkernels.catalog.records import Table


class Codes(NamedTuple):
    """Codes of a table: addresses of kernels and their own, what one costs, and what they count from.

    `moved` are the cells whose means are no longer where their anchors are, which `anchors` are those of.
    """

    scan: int
    scan_each: int
    begins: int
    list_runs: int
    list_opened: int
    large: int
    pick: int
    check: int
    unmet: int
    replace: int
    compare: int
    codes: int
    cost: float
    scales: Floats
    moved: Ints
    anchors: FloatRows


class Looks(NamedTuple):
    """What codes say for one query, memory of a thread.

    Of blocks, `blocks` are numbers, `masks` which of their items are looked at, `sizes` how many, and `bases` the
    logits that codes count from, which are `anchored` for each cell. Items count `factors` times, less `slopes`, which
    are `steepness` in each cell, times how far their logits are from `centres`: `parts` are sums of that. Items are
    checked in proportion to weights, `boosts` times larger as the widest step may hide more, and slopes: `sums` are
    those of that, `others` sums without large items, and `ends` and `reached` how many checks
    begin before the end of each block. `repeated` are runs of groups that those before are of, and `begins` what the
    first run of each group looks at. Of items, `logits` are what codes say and `weights` their exponentials; of those
    that are checked, `found` are places, `places` rows, `exact` logits and `right` their exponentials.

    `query` is the query in whole numbers. `numbers` are its unit, the largest logit, what weights are relative to, the
    size from which on items are checked for sure, how much rounding lets logits vary where steps are 1, and the largest
    boost; `totals` and `addresses` pass numbers and arrays to kernels.
    """

    logits: Elements
    weights: Elements
    bases: Elements
    sizes: Elements
    centres: Elements
    boosts: Elements
    factors: Elements
    slopes: Elements
    exact: Elements
    right: Elements
    numbers: Elements
    query: Bytes
    anchored: Floats
    steepness: Floats
    parts: Floats
    sums: Floats
    others: Floats
    reached: Floats
    totals: Floats
    begins: Longs
    addresses: Longs
    blocks: Ints
    masks: Ints
    ends: Ints
    repeated: Ints
    found: Ints
    places: Ints


def codes(table: Table, own: Prepared) -> Held[Codes]:
    """Return the codes of a table, as `rules` has it."""
    m = machine()
    found = own.codes.get(m)
    if found is None:
        found = own.codes.setdefault(m, _codes(m, table, own.moved))
    return cast(Held[Codes], found[0])


def _codes(m: Machine, table: Table, moved: Any) -> tuple[Held[Codes], Any]:
    bits = 8 * table.rows.dtype.itemsize
    code = (
        scan_kernels(m, bits, table.rows.shape[1], products_added(m.width)),
        check_kernels(m, bits),
        list_kernels(m, bits),
    )
    made = Codes(
        code[0].addresses["scan"],
        code[0].addresses["scan_each"],
        code[2].addresses["begins"],
        code[2].addresses["list_runs"],
        code[2].addresses["list_opened"],
        code[1].addresses["large"],
        code[1].addresses["pick"],
        code[1].addresses["check"],
        code[1].addresses["unmet"],
        code[1].addresses["replace"],
        code[1].addresses["compare"],
        table.codes.ctypes.data,
        cost(table),
        table.scales.astype(np.float64),
        moved.astype(np.int32),
        table.anchors[moved].astype(np.float64),
    )
    return Held(made), code


def looks(g: Groups, scanned: int, checked: int, dtype: Any) -> Held[Looks]:
    """Return memory for what codes say for one query, of so many items, of which so many are checked."""
    key = len(g.start), len(g.held), len(g.means), scanned, checked, dtype
    return kept("looks", key, lambda: Held(_looks(g, scanned, checked, dtype), dtype))


def _looks(g: Groups, scanned: int, checked: int, dtype: Any) -> Looks:
    # What a group has in blocks begins and ends within one. Rounding may make more items large than there are checks.
    blocks = scanned // BLOCK + 2 * min(len(g.start), scanned) + 2 * BLOCK
    checks = checked + (checked >> 14) + TOGETHER * (AHEAD + 1) + BLOCK
    cells = len(g.held)
    sizes = (
        *(2 * ((BLOCK * blocks, dtype),)),
        *(6 * ((blocks, dtype),)),
        *(2 * ((checks, dtype),)),
        (6, dtype),
        (len(g.means) - cells + EIGHT, np.int8),
        *(2 * ((cells, np.float64),)),
        *(4 * ((blocks, np.float64),)),
        (4, np.float64),
        (len(g.start) + EIGHT, np.int64),
        (7, np.int64),
        *(4 * ((blocks, np.int32),)),
        *(2 * ((checks, np.int32),)),
    )
    return Looks._make(aligned.zeros(*size) for size in sizes)
