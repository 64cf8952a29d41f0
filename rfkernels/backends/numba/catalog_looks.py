"""What compiled estimates know of the codes of items, and write of what these say."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np

from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_guesses import Prepared
from rfkernels.backends.numba.catalog_kernels import AHEAD, TOGETHER
from rfkernels.backends.numba.catalog_layout import kept
from rfkernels.backends.numba.catalog_scan_kernels import multiplies_bytes, scan_kernels
from rfkernels.backends.numba.jit import Machine, machine
from rfkernels.backends.numba.records import Bytes, Elements, FloatRows, Floats, Held, Ints
from rfkernels.catalog.codes import BLOCK, cost
from rfkernels.catalog.codes import TOGETHER as EIGHT
from rfkernels.catalog.records import Table


class Codes(NamedTuple):
    """Codes of a table: addresses of kernels and their own, what one costs, and what they count from.

    `moved` are the cells whose means are no longer where their anchors are, which `anchors` are those of.
    """

    scan: int
    sum_blocks: int
    pick: int
    codes: int
    cost: float
    scales: Floats
    moved: Ints
    anchors: FloatRows


class Looks(NamedTuple):
    """What codes say for one query, memory of a thread.

    Of blocks, `blocks` are numbers, `owners` the groups whose items are looked at, `masks` which these are, `sizes` how
    many, and `bases` the logits that codes count from, which are `anchored` for each cell; `plain`, `linear` and
    `largest` are sums of weights and of logits, and the largest weight. Items count `factors` times, less `slopes`
    times their logits: `parts` are sums of that. Items are checked in proportion to weights, `boosts` times larger as
    the `widest` step may hide more, and slopes: `sums` and `most` are sum and largest of that, and `rest` how far in
    its block a check lies. Of items, `logits` are what codes say and `weights` their exponentials; of those that are
    checked, `found` are places, `places` rows and `exact` logits.
    """

    logits: Elements
    weights: Elements
    bases: Elements
    plain: Elements
    linear: Elements
    largest: Elements
    widest: Elements
    boosts: Elements
    factors: Elements
    slopes: Elements
    exact: Elements
    numbers: Elements
    query: Bytes
    anchored: Floats
    parts: Floats
    sums: Floats
    most: Floats
    rest: Floats
    blocks: Ints
    owners: Ints
    masks: Ints
    sizes: Ints
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
    code = scan_kernels(m, 8 * table.rows.dtype.itemsize, table.rows.shape[1], multiplies_bytes())
    made = Codes(
        code.addresses["scan"],
        code.addresses["sum_blocks"],
        code.addresses["pick"],
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
    # What a group has in blocks begins and ends within one.
    blocks = scanned // BLOCK + 2 * min(len(g.start), scanned) + 2 * BLOCK
    checks = checked + TOGETHER * (AHEAD + 1) + BLOCK
    items, cells = np.zeros((2, BLOCK * blocks), dtype), len(g.held)
    made = [
        *items,
        *np.zeros((8, blocks), dtype),
        np.zeros(checks, dtype),
        np.zeros(5, dtype),
        np.zeros(len(g.means) - cells + EIGHT, np.int8),
        np.zeros(cells),
        *np.zeros((3, blocks)),
        np.zeros(checks),
        *np.zeros((4, blocks), np.int32),
        *np.zeros((2, checks), np.int32),
    ]
    return Looks._make(made)
