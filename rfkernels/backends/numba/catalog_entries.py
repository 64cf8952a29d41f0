"""Items with their logits, in the order of falling logits and, of equal ones, of rows: kept in heaps, and selected."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels.backends.numba.compiling import jit

ENTRY = np.dtype([("logit", np.float64), ("row", np.int64)])


@jit
def sink(heap: Any) -> None:
    """Move the first entry of a heap down until none below it comes later."""
    place, end = 0, len(heap)
    while 2 * place + 1 < end:
        below = 2 * place + 1
        if below + 1 < end and earlier(heap, below, below + 1):
            below += 1
        if not earlier(heap, place, below):
            return
        swap(heap, place, below)
        place = below


@jit
def earlier(entries: Any, i: int, j: int) -> bool:
    """Return whether an entry comes before another: the larger logit first, of equal ones the first row."""
    x, y = entries[i], entries[j]
    return bool(x.logit > y.logit or (x.logit == y.logit and x.row < y.row))


@jit
def swap(entries: Any, i: int, j: int) -> None:
    """Exchange two entries."""
    logit, row = entries[i].logit, entries[i].row
    entries[i].logit, entries[i].row = entries[j].logit, entries[j].row
    entries[j].logit, entries[j].row = logit, row


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
