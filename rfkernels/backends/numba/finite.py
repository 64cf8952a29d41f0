"""Whether arrays are finite, on threads: for passes whose tiles do not look."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rfkernels._checks import check_finite_arrays
from rfkernels.backends.numba import threads

_BLOCK = 1 << 18
"""Numbers in a task."""


def check_finite(**arrays: Any) -> None:
    """Do what `check_finite_arrays` does: that one says where, if something is not finite."""
    few = all(x.size <= _BLOCK for x in arrays.values())
    blocks = [] if few else [block for x in arrays.values() for block in _blocks(x)]
    if len(blocks) <= len(arrays) or threads.run([partial(_bad, block) for block in blocks], threads.thread_count()):
        check_finite_arrays(**arrays)


def _blocks(x: Any) -> list[Any]:
    """Cut an array into views of about so many numbers; along its first axis alone if it cannot be flattened."""
    flat = x.reshape(-1) if x.flags.c_contiguous else x
    return np.array_split(flat, min(max(x.size // _BLOCK, 1), max(len(flat), 1)))


def _bad(x: Any) -> int:
    return int(not np.isfinite(x).all())
