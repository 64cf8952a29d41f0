"""Executable specification of packed sequences: each segment is run alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels import core
from rfkernels.core import Options
from rfkernels.features import Features
from rfkernels.partials import Partial
from rfkernels.state import State


def attend(
    xp: Any, q: Any, k: Any, v: Any, features: Features, options: Options, mask: Any, segments: Any, state: State
) -> tuple[Partial, State | None]:
    """Run a whole pass in which no query sees a key of another segment (arguments as `Backend.attend`)."""
    if segments is None:
        return core.attend(xp, q, k, v, features, options, mask, state)
    of_query = segments[..., segments.shape[-1] - q.shape[-2] :]
    empty = State(xp.zeros_like(state.kv), xp.zeros_like(state.z), core.empty_shift(xp, features, state.shift))
    total, final = None, None
    for segment in np.unique(np.asarray(segments)) if np.size(segments) else (0,):  # no heads: one pass, for the shapes
        own = segments == segment
        seen = own if mask is None else own & mask
        start = _chosen(xp, own[..., 0], state, empty)
        part, after = core.attend(xp, q, k, v, features, options, seen, start)
        inside = of_query == segment
        total = (
            part
            if total is None
            else Partial(
                xp.where(inside[..., None], part.numerator, total.numerator),
                xp.where(inside, part.denominator, total.denominator),
                xp.where(inside, part.shift, total.shift),
            )
        )
        if after is not None:
            final = _chosen(xp, own[..., -1], after, after if final is None else final)
    assert total is not None
    return total, final


def _chosen(xp: Any, condition: Any, one: State, other: State) -> State:
    """Return one state where a condition (*batch,) holds, and the other elsewhere."""
    condition = condition[..., None]
    kv = xp.where(condition[..., None], one.kv, other.kv)
    return State(kv, xp.where(condition, one.z, other.z), xp.where(condition, one.shift, other.shift))
