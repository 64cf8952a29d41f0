"""What queries of a catalog take, noted and listed, compiled: `rfkernels.catalog.plan` specifies it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels.backends.numba.catalog_groups import Groups
from rfkernels.backends.numba.catalog_layout import Lists, Rules, Scratch
from rfkernels.backends.numba.compiling import jit
from rfkernels.catalog.plan import RUN

_NONE = np.uint32(0xFFFFFFFF)
"""The number of no group."""


@jit
def place(g: Groups, s: Scratch, group: int, turn: int, places: Any) -> None:
    """Write the rows of a run of a group; its runs follow each other around it."""
    count, start = g.count[group], g.start[group]
    offset = s.offset[group] + RUN * turn
    if offset >= count:
        offset %= count
    for k in range(RUN):
        places[k] = start + offset
        offset = offset + 1 if offset + 1 < count else 0


@jit
def list_rows(r: Rules, g: Groups, s: Scratch, n: Lists, i: int) -> None:
    """List the rows of the runs of a query."""
    first, runs, turn, draw = (n.sizes[i, 0] + 3) & ~3, n.sizes[i, 2], 0, n.draw[i]
    for run in range(runs):
        turn = turn + 1 if run > 0 and draw[run] == draw[run - 1] else 0
        place(g, s, draw[run], turn, n.places[i, first + RUN * run :])
    end = first + RUN * runs
    for k in range(r.ahead):
        n.places[i, end + k] = 0


@jit
def note(r: Rules, n: Lists, i: int, counts: tuple[int, int, int], sums: tuple[float, float, float]) -> bool:
    """Note how many items, groups and runs a query takes, and what is guessed; return whether guesses are trusted.

    `sums` are what weights are relative to, and the sums of weights and noises of what is not opened.
    """
    (items, opened, runs), (top, total, noise) = counts, sums
    guessed, log_error = noise - r.floor * total, -np.inf
    if runs > 0 and guessed > 0:
        log_error = top + (math.log(total) + math.log(guessed) - math.log(r.run * runs)) / 2
    steady = runs > 0 and noise <= r.trusted**2 * total * (r.run * runs)
    sizes, measures = n.sizes[i], n.measures[i]
    sizes[0], sizes[1], sizes[2], sizes[3] = items, opened, runs, int(steady)
    measures[0], measures[1], measures[2] = top, total, log_error
    return bool(steady)


@jit
def end_lists(r: Rules, s: Scratch, n: Lists, i: int) -> None:
    """End lists of what a query takes as kernels expect, and forget which groups are opened."""
    items, opened, runs, _ = n.sizes[i]
    for k in range(opened):
        s.opened[n.opened[i, k]] = False
    if not r.listed:
        return
    n.draw[i, runs] = _NONE
    for k in range(3):
        n.places[i, items + k] = n.places[i, max(items - 1, 0)]
    end = (items + 3) & ~3
    for k in range(r.ahead):
        n.places[i, end + k] = 0
