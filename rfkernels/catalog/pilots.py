"""As many dot products as an error asks for: a pilot says how many these are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from rfkernels.catalog.plan import uniforms

_PARTS = 1 << 62
"""A number of no stream that estimates draw from."""

Record = TypeVar("Record", bound=tuple[Any, ...])


def aimed(pilot: Record, excess: Any, budget: int, items: int, run: Callable[[Any, int], Record]) -> Record:
    """Return what queries yield at the budgets that an error asks for, as it falls with the root of the budget.

    Nothing of the pilot is kept: a standard error and the value beside it depend on each other, so that keeping those
    whose error is small would be a choice by value.

    Parameters
    ----------
    pilot : named tuple of arrays, each with an axis of queries in front
        What was found at `budget` dot products a query; its numbers are not used.
    excess : array, shape (queries,)
        The error of the pilot over the error that is asked for; may be infinite.
    budget, items : int
        Where budgets begin, and where they end: there, all is exact.
    run : function of (places of queries, budget)
        What computes these anew, with other random numbers than the pilot's.
    """
    doublings = np.ceil(2 * np.log2(np.clip(excess, 1, items + 1)))
    budgets = np.minimum(budget * 2.0**doublings, max(items, budget)).astype(np.int64)
    found = [np.empty_like(part) for part in pilot]
    for own in np.unique(budgets):
        same = np.flatnonzero(budgets == own)
        for part, new in zip(found, run(same, int(own)), strict=True):
            part[same] = new
    return type(pilot)(*found)


def seed_of(seed: int, part: int) -> int:
    """Return the seed of a part of a call: the first, 0, has that of the call; −1 is what follows a pilot."""
    return int(uniforms(seed, _PARTS + part, 1)[0] * 2**53) if part else seed
