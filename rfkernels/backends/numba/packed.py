"""Packed sequences: every segment is a pass of its own, over the rows that it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.passes import Heads, worth_threads
from rfkernels.backends.numba.records import Held
from rfkernels.backends.numba.schedule_records import Queries
from rfkernels.state import State

Run = Callable[[Heads, State, State], tuple[bool, State | None]]
"""A pass: heads, states to begin from and states of no keys, to whether inputs were finite and the states after it."""


class Segment(NamedTuple):
    """Queries low <= i < high of some heads, and the keys that they see, from `start` to where the queries end."""

    heads: list[int]
    low: int
    high: int
    start: int


def packed(h: Heads, segments: Any, batch: tuple[int, ...], state: State, empty: State, run: Run) -> tuple[bool, State]:
    """Run a pass over each segment; the first begins from `state`, and the states after the last are returned.

    `segments` are those of the keys. Keys in excess of queries come before them and are of the first segment.
    """
    before = h.keys - h.length
    found = list(_segments(segments[..., before:], batch, before))
    after = State(*(np.array(x) for x in state))
    apart = len(found) >= 2 * h.threads and worth_threads(h)
    inner = h.threads if not apart else 1

    def one(segment: Segment) -> int:
        heads, low, high, _ = segment
        none = State(*(x[: len(heads)] for x in empty))
        start = State(*(x[heads] for x in state)) if low == 0 else none
        fine, done = run(_part(h, segment, inner), start, none)
        if done is not None and high == h.length:
            for whole, own in zip(after, done, strict=True):
                whole[heads] = own
        return int(not fine)

    work = [partial(one, segment) for segment in found]
    return threads.run(work, h.threads if apart else 1) == 0, after


def _segments(segments: Any, batch: tuple[int, ...], before: int) -> Iterator[Segment]:
    """Find the segments of the heads, those of equal rows together."""
    length = segments.shape[-1]
    if length == 0:
        return
    count = math.prod(segments.shape[:-1])
    row_of_head = np.broadcast_to(np.arange(count).reshape(segments.shape[:-1]), batch).ravel()
    for i, row in enumerate(segments.reshape(count, length)):
        heads = np.flatnonzero(row_of_head == i).tolist()
        starts = (np.flatnonzero(row[1:] != row[:-1]) + 1).tolist()
        if heads:
            ends = pairwise([0, *starts, length])
            yield from (Segment(heads, low, high, before + low if low else 0) for low, high in ends)


def _part(h: Heads, segment: Segment, inner: int) -> Heads:
    """Return some heads, and of those the rows of a segment."""
    heads, low, high, start = segment
    p, tasks = h.layout.plan, h.tasks[heads]
    for name in ("k", "v", "mask"):
        tasks[name] += np.where(tasks[name] == 0, 0, start * tasks[f"{name}_row"])
    rows = int(tasks["q_row"][0]), int(tasks["out_row"][0]), p.element, p.element
    own = (x[heads] for x in h.queries.record)
    moved = (np.where(at == 0, 0, at + low * row) for at, row in zip(own, rows, strict=True))
    return replace(
        h,
        weights=[h.weights[head] for head in heads],
        tasks=tasks,
        queries=Held(Queries(*moved)),
        length=high - low,
        keys=h.keys - h.length + high - start,
        threads=inner,
    )
