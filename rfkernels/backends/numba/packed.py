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
from rfkernels.backends.numba.heads import Heads
from rfkernels.backends.numba.packing import point
from rfkernels.backends.numba.passes import Slots
from rfkernels.backends.numba.records import named
from rfkernels.backends.numba.schedule_records import Queries, Task
from rfkernels.state import State

Run = Callable[[Heads, State | None], tuple[bool, State | None]]
"""A pass: heads and states to begin from, None if they hold no keys, to whether inputs were finite and the states after
it."""


class Segment(NamedTuple):
    """Queries low <= i < high of some heads, and the keys that they see, from `start` to where the queries end."""

    heads: list[int]
    low: int
    high: int
    start: int


def packed(h: Heads, segments: Any, batch: tuple[int, ...], start: State | None, run: Run) -> tuple[bool, State]:
    """Run a pass over each segment, the first from `start` or no keys; return the states after the last.

    `segments` are those of the keys. Keys in excess of queries come before them and are of the first segment.
    """
    before = h.keys - h.length
    found = list(_segments(segments[..., before:], batch, before))
    after = Slots(h, None if start is None else State(*(np.array(x) for x in start))).last()
    apart = len(found) >= 2 * h.threads and h.worth_threads
    inner = h.threads if not apart else 1

    def one(segment: Segment) -> int:
        heads, low, high, _ = segment
        own = None if start is None or low > 0 else State(*(x[heads] for x in start))
        fine, done = run(_part(h, segment, inner), own)
        if done is not None and high == h.length:
            for whole, part in zip(after, done, strict=True):
                whole[heads] = part
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
    p, chosen, own = h.layout.plan, h.tasks[heads], h.queries[heads]
    tasks, queries, first = named(Task, chosen), named(Queries, own), named(Task, h.tasks[:1])
    for name in ("k", "v", "mask"):
        tasks[name] += np.where(tasks[name] == 0, 0, start * tasks[f"{name}_row"])
    tasks["keys"] = keys = h.keys - h.length + high - start
    rows = {"q": first["q_row"], "out": first["out_row"], "denominator": p.element, "shift": p.element}
    for name, row in rows.items():
        queries[name] += np.where(queries[name] == 0, 0, low * row)
    point(tasks, {"queries": own})
    return replace(
        h,
        tasks=chosen,
        queries=own,
        length=high - low,
        keys=keys,
        threads=inner,
    )
