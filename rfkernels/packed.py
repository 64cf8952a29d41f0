"""Executable specification of packed sequences: each element of the batch, and in it each segment, by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from rfkernels import core, partials
from rfkernels.core import Options
from rfkernels.features import Features, Side
from rfkernels.partials import Partial
from rfkernels.state import State


def attend(
    q: Any, k: Any, v: Any, features: Features, options: Options, mask: Any, segments: Any, state: State
) -> tuple[Partial, State | None]:
    """Run `core.attend` on NumPy arrays, each query seeing keys of its own segment.

    `segments` are those of the queries, (*batch, length). Keys in excess of queries come before them and belong to the
    first segment, as `state` does; the state returned is that of the last.
    """
    own = state.z.shape[:-1]
    batch = np.broadcast_shapes(q.shape[:-2], own)
    length, width = q.shape[-2], v.shape[-1]
    found = Partial(*(np.empty((*batch, length, *tail), v.dtype) for tail in ((width,), (), ())))
    after = State(*(np.array(x) for x in state))
    for index in np.ndindex(*batch):
        of_state = tuple(min(i, n - 1) for i, n in zip(index[len(batch) - len(own) :], own, strict=True))
        given = [_element(x, tail, index) for x, tail in ((q, 2), (k, 2), (v, 2), (mask, 1), (segments, 1))]
        begin = State(*(x[of_state] for x in state))
        part, last = _alone(*given, features=_features(features, index), options=options, state=begin)
        for whole, one in zip(found, part, strict=True):
            whole[index] = one
        for whole, one in zip(after, last or begin, strict=True):
            whole[of_state] = one
    bidirectional_window = options.window is not None and not options.causal
    return found, None if bidirectional_window else after


def _alone(
    q: Any, k: Any, v: Any, mask: Any, segments: Any, *, features: Features, options: Options, state: State
) -> tuple[Partial, State | None]:
    """Run the segments of one element of the batch."""
    before = len(k) - len(q)
    parts, after = [core.read(np, state, q[:0], features)], None
    for low, high in _bounds(segments):
        keys = slice(before + low if low else 0, before + high)
        if low:
            state = State(np.zeros_like(state.kv), np.zeros_like(state.z), core.empty_shift(np, features, state.shift))
        seen = None if mask is None else mask[keys]
        part, after = core.attend(np, q[low:high], k[keys], v[keys], features, options, seen, state)
        parts.append(part)
    return partials.stack(np, parts), after


def _bounds(segments: Any) -> Iterator[tuple[int, int]]:
    starts = np.flatnonzero(segments[1:] != segments[:-1]) + 1
    return pairwise([0, *starts.tolist(), len(segments)] if len(segments) else [])


def _element(x: Any, tail: int, index: tuple[int, ...]) -> Any:
    """Return what an array with `tail` axes of its own holds for one element of a batch that it broadcasts to."""
    if x is None:
        return None
    axes = x.ndim - tail
    return x[tuple(min(i, n - 1) for i, n in zip(index[len(index) - axes :], x.shape[:axes], strict=True))]


def _features(features: Features, index: tuple[int, ...]) -> Features:
    def side(given: Side) -> Side:
        return Side(*(_element(x, tail, index) for x, tail in zip(given, (2, 1, 1), strict=True)))

    return replace(
        features,
        projection=_element(features.projection, 2, index),
        log_weight=_element(features.log_weight, 1, index),
        query=side(features.query),
        key=side(features.key),
    )
