"""What compiled sums of functions of distances know of a table, and write to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels.activations import Program
from rfkernels.backends.numba.catalog_groups import Groups, padded
from rfkernels.backends.numba.catalog_guesses import Guesses, Prepared
from rfkernels.backends.numba.catalog_kernels import distance_kernel
from rfkernels.backends.numba.catalog_layout import Rules, kept, rules
from rfkernels.backends.numba.catalog_looks import Codes, codes
from rfkernels.backends.numba.catalog_profiles import Tables, profile_kernel, tables_of
from rfkernels.backends.numba.catalog_radial_kernels import radial_kernels
from rfkernels.backends.numba.catalog_scan_kernels import products_added, profile_kernels
from rfkernels.backends.numba.jit import Machine, machine
from rfkernels.backends.numba.records import Bytes, ElementRows, Elements, Floats, Held, Ints, Longs
from rfkernels.catalog.codes import TOGETHER, eights, shared, square_unit
from rfkernels.catalog.radial import Points
from rfkernels.catalog.records import Table
from rfkernels.catalog.spheres import LEVELS

_PAD = 64
"""What rows of numbers in the order of codes are a multiple of."""


class Radial(NamedTuple):
    """What is known of a table: addresses of kernels, and the numbers of the specification.

    `squares` is what |y − anchor|² is where the step is 1, and `owner` are numbers of cells. `anchors` are what codes
    of each cell count from, and `scales` what steps are multiplied by, both in the order of codes, whose place for each
    dimension is in `order`; they are empty where there are no codes.
    """

    near_distances: int
    weigh: int
    aim: int
    squares: float
    owner: Floats
    order: Longs
    anchors: ElementRows
    scales: Elements


class Aims(NamedTuple):
    """What is known of one point, memory of a thread.

    `numbers` are those of the guess; `log` and `uneven` are what it needs of groups, and `looked_up` is a row of its
    table. Of cells whose codes are read, `cells`, `queries` are what these are multiplied by, with `units`, `shifts`
    and `deviations`, and `seen` is whether they are listed; `known` tells kernels where all that is. `squared` is what
    squares of steps are multiplied by, and `slopes` are zeros. `point`, `weights` and `scaled` are in the order of
    codes.
    """

    numbers: Floats
    log: Floats
    uneven: Floats
    looked_up: Floats
    slopes: Floats
    squared: Elements
    point: Elements
    weights: Elements
    scaled: Elements
    units: Elements
    deviations: Elements
    queries: Bytes
    shifts: Ints
    cells: Ints
    seen: Ints
    known: Longs


class Known(NamedTuple):
    """What is known of a table on a machine, whatever the points: rules for distances from rows and after codes."""

    by_rows: Held[Rules]
    by_codes: Held[Rules]
    radial: Held[Radial]
    codes: Held[Codes] | None
    code: Any


class Tools(NamedTuple):
    """What sums over a table are made with: `scan` is the address of what reads codes; the code is there as long."""

    by_rows: Held[Rules]
    by_codes: Held[Rules]
    radial: Held[Radial]
    codes: Held[Codes] | None
    scan: int
    tables: Held[Tables]
    code: Any


def tools_of(table: Table, own: Prepared, given: Points, program: Program | None) -> Tools:
    """Return what sums from points are made with; without a program logs are linear, else they are looked up."""
    m, bits, dim = machine(), 8 * table.rows.dtype.itemsize, table.rows.shape[1]
    known: Known = own.radial.get(m) or own.radial.setdefault(m, _found(m, table, own))
    tables, codes, scan = tables_of(table, given), known.codes, 0
    if program is None:
        scan = 0 if codes is None else codes.record.scan_each
        return Tools(known.by_rows, known.by_codes, known.radial, codes, scan, tables, known)
    kernel, scans = profile_kernel(m, bits, dim, program), None
    by_rows, by_codes = (
        Held(x.record._replace(dots=kernel[0].addresses["logits"])) for x in (known.by_rows, known.by_codes)
    )
    if codes is not None:
        scans = profile_kernels(m, bits, dim, products_added(m.width))
        scan = scans.addresses["scan_profile"]
    return Tools(by_rows, by_codes, known.radial, codes, scan, tables, (kernel, scans, known))


def _found(m: Machine, table: Table, own: Prepared) -> Known:
    bits, dim = 8 * table.rows.dtype.itemsize, table.rows.shape[1]
    distances, wide, kernels = distance_kernel(m, bits, dim), distance_kernel(m, 64, dim), radial_kernels(m, bits)
    given = rules(table, own), rules(table, own, True)
    # There is no control variate, whose slopes guesses that are never trusted leave out.
    by_rows, by_codes = (
        Held(x.record._replace(dots=distances.addresses["distances"], trusted=0.0, floor=0.0, widened=1)) for x in given
    )
    order, anchors, scales = _in_order(table)
    made = Radial(
        wide.addresses["near_distances"],
        kernels.addresses["weigh"],
        kernels.addresses["aim"],
        0.0 if table.codes is None else square_unit(table),
        np.arange(len(table.means), dtype=np.float64),
        order,
        anchors,
        scales,
    )
    held = None if table.codes is None else codes(table, own)
    return Known(by_rows, by_codes, Held(made, table.rows.dtype), held, (distances, wide, kernels, given))


def _in_order(table: Table) -> tuple[Any, Any, Any]:
    """Return where each dimension lies in the order of codes, and anchors and scales in that order."""
    dim, dtype = table.rows.shape[1], table.rows.dtype
    order = np.arange(dim)
    if shared(dim):
        order[dim // TOGETHER * TOGETHER + 2 :] += 2
    if table.codes is None:
        return order, np.zeros((0, _PAD), dtype), np.zeros(_PAD, dtype)
    pad = -(-(TOGETHER * (eights(dim) + shared(dim))) // _PAD) * _PAD
    anchors, scales = np.zeros((len(table.anchors), pad), dtype), np.zeros(pad, dtype)
    anchors[:, order], scales[order] = table.anchors, table.scales
    return order, anchors, scales


def aims(known: Tools, cells: int, dtype: Any) -> Held[Aims]:
    """Return memory for a point."""
    groups, pad = len(known.tables.record.level), len(known.radial.record.scales)
    return kept("aims", (groups, cells, pad, dtype), lambda: Held(_new_aims(groups, cells, pad, dtype), dtype))


def _new_aims(groups: int, cells: int, pad: int, dtype: Any) -> Aims:
    made = [
        np.zeros(3),
        *np.zeros((2, groups)),
        np.zeros(2 * LEVELS),
        np.zeros(cells),
        np.zeros(1, dtype),
        *np.zeros((3, pad), dtype),
        *np.zeros((2, cells), dtype),
        np.zeros(cells * pad, np.int8),
        *np.zeros((3, cells), np.int32),
        np.zeros(10, np.int64),
    ]
    return Aims._make(made)


def guesses(g: Groups) -> Held[Guesses]:
    """Return memory for what is guessed of groups: as for one size of queries, of which no more is used."""
    return kept("radial", (len(g.start), len(g.held)), lambda: Held(_new_guesses(len(g.size) + 8, padded(len(g.held)))))


def _new_guesses(groups: int, cells: int) -> Guesses:
    unit, variance, score = np.zeros((3, 1, groups))
    none, order = np.zeros((1, 1)), np.zeros((1, 1), np.int32)
    known = np.zeros(1), unit, variance, score, none, none, order, none, none
    return Guesses(*known, np.zeros((1, cells)), none, none, none, none)
