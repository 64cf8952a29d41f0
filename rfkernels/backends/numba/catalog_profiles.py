"""Kernels of a distance in any form, compiled: `rfkernels.catalog.profiles` specifies what is looked up."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from rfkernels.activations import Program, trace
from rfkernels.backends.numba.catalog_groups import Groups, padded
from rfkernels.backends.numba.catalog_kernels import distance_kernel
from rfkernels.backends.numba.catalog_lanes import left_out
from rfkernels.backends.numba.compiling import jit
from rfkernels.backends.numba.emitter import INT, Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module
from rfkernels.backends.numba.lowering import emit
from rfkernels.backends.numba.records import Elements, FloatRows, Floats, Held, Ints
from rfkernels.catalog.profiles import CODED, clipped, levels
from rfkernels.catalog.radial import NEARER, Points
from rfkernels.catalog.records import Table
from rfkernels.catalog.scans import NOTHING
from rfkernels.catalog.spheres import GUESSED, LEVELS
from rfkernels.kernels import LogProfile


class Tables(NamedTuple):
    """What is looked up for a kernel, and where groups of a table lie in it.

    `least` and `most` are the numbers that tables have, from 2 to the power of `first` on. Rows of `guessed` are logs
    of means, and then how uneven weights are. Of groups, `level` is the spread before that of each, and `beyond` how
    far from it that is. For codes are `values`, before which lie `least` and `most`, `slopes` and `steep`, which
    `wide_steep` is in float64, or 1 where logs are linear; `begin` is what the first bits of `least` are. `nearest` is
    the log of an item at a point, and `nearer` what squared distances of anchors of its cell are multiplied by.
    """

    least: float
    most: float
    first: int
    begin: int
    guessed: FloatRows
    level: Ints
    beyond: Floats
    wide_steep: Floats
    nearest: float
    nearer: float
    values: Elements
    slopes: Elements
    steep: Elements


def tables_of(table: Table, given: Points) -> Held[Tables]:
    """Return tables, with room for whole vectors of groups and one more."""
    dtype, profile = table.rows.dtype, given.profile
    least, most = (float(clipped(x, profile)) for x in (0.0, np.inf))
    level, beyond = levels(profile, abs(given.factor) * table.spread.astype(np.float64))
    pad = padded(len(level)) + padded(1) - len(level)
    values, slopes, steep = profile.coded
    bits = int(np.array(least, dtype).view(f"i{dtype.itemsize}")) >> left_out(8 * dtype.itemsize, CODED)
    with np.errstate(over="ignore"):  # sums of what fits no number of rows are taken as specified
        narrow = [x.astype(dtype) for x in (np.concatenate([[least, most], values]), slopes, steep)]
    made = Tables(
        least,
        most,
        profile.first,
        bits,
        np.concatenate([profile.log_means, profile.uneven], 1),
        np.pad(level.astype(np.int32), (0, pad)),
        np.pad(beyond, (0, pad)),
        np.ones(len(steep)) if given.linear else np.ascontiguousarray(steep),
        profile.nearest,
        1.0 if given.linear else 1 - NEARER,
        *narrow,
    )
    return Held(made, dtype)


@jit
def _clipped(t: Tables, x: float) -> float:
    """Return a number that tables have, the least of them for NaN."""
    return min(x, t.most) if x > t.least else t.least


@jit
def look_up(g: Groups, t: Tables, cells: Any, row: Any, log: Any, uneven: Any) -> None:
    """Write what is guessed of groups, as `catalog.profiles.guessed` has it; `row` is memory for a row of the table."""
    for c in range(len(g.held)):
        part, exponent = math.frexp(_clipped(t, abs(cells[c])))
        within = (2 * part - 1) * GUESSED
        node = int(within)
        place, beyond = (exponent - 1 - t.first) * GUESSED + node, within - node
        low, high = t.guessed[place], t.guessed[place + 1]
        for j in range(2 * LEVELS):
            row[j] = low[j] + beyond * (high[j] - low[j])
        for group in range(g.first[c], g.first[c + 1]):
            level, further = t.level[group], t.beyond[group]
            log[group] = row[level] + further * (row[level + 1] - row[level])
            mean = row[LEVELS + level]
            uneven[group] = mean + further * (row[LEVELS + level + 1] - mean)


@jit
def slope_at(t: Tables, square: float) -> float:
    """Return the size of the slope of logs at a square."""
    part, exponent = math.frexp(_clipped(t, square))
    return float(t.wide_steep[(exponent - 1 - t.first) * CODED + int((2 * part - 1) * CODED)])


@lru_cache(maxsize=64)
def program_of(profile: LogProfile) -> Program | None:
    """Return what a profile computes; None if it uses what not every backend has, or refuses other namespaces."""
    try:
        return trace(lambda xp, u, a: profile(xp, u))
    except (ValueError, RuntimeError):
        return None


@lru_cache(maxsize=64)
def profile_kernel(machine: Machine, bits: int, dim: int, program: Program) -> tuple[Code, Code]:
    """Compile ``logits``: logs of a kernel at what ``distances`` of `distance_kernel`, which comes behind it, writes.

    It is compiled in each process, as `lowering` does it. Squares are made logs in whole vectors, and no numbers where
    they fit none.
    """
    distances = distance_kernel(machine, bits, dim)
    module = ir.Module(name=f"rfkernels_catalog_profile_{bits}_{dim}")
    e = Emitter(module, "logits", "rows row_stride places count query out", bits, machine.lanes(bits))
    m, b, (*_, count, _, out) = e.math, e.builder, e.arguments
    kind = ir.FunctionType(INT, [INT] * len(e.arguments))
    b.call(b.inttoptr(e.integer(distances.addresses["distances"]), kind.as_pointer()), e.arguments)
    none, endless, wrong = (m.constant(x) for x in (NOTHING, np.inf, np.nan))
    with e.loop(0, count, e.lanes) as i:
        square = e.load_vector(out, i)
        log = emit(program, m, square, m.constant(0.0))
        log = m.where(m.lt(log, none), none, log)
        e.store_vector(m.where(m.lt(square, endless), log, wrong), out, i)
    e.finish()
    return compile_module(module, machine.width), distances
