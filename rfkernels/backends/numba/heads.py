"""Heads of a pass: where their queries, keys, values and outputs lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.packing import SHAPES, Layout, PackedWeights, addresses, point
from rfkernels.backends.numba.records import rows_of
from rfkernels.backends.numba.schedule_records import Queries, Task
from rfkernels.features import Features, SideName

_SIDES: dict[str, SideName] = {"q": "query", "k": "key"}


@dataclass(eq=False)
class Heads:
    """All heads of a pass, and how many threads share it.

    Parameters
    ----------
    features : Features or None
        None where all that queries see is exact.
    window : int or None
        Keys less than so far from a query are seen exactly, and through features all others.
    tasks : array of Task, shape (heads,)
        What does not depend on the state that is read or written.
    queries : array of Queries, shape (heads, shared)
        Where queries are.
    alive : Any
        What addresses lie in.
    """

    layout: Layout
    features: Features | None
    window: int | None
    tasks: Any
    queries: Any
    length: int
    keys: int
    shared: int
    threads: int
    alive: Any

    @property
    def count(self) -> int:
        """How many heads have keys of their own."""
        return len(self.tasks)

    def runs(self, some: range | None = None) -> list[tuple[int, int]]:
        """Return which heads, of some or of all, go together: all where there is little to do, else each alone."""
        heads = range(self.count) if some is None else some
        return [(i, i + 1) for i in heads] if worth_threads(self) else [(heads.start, heads.stop)]


def worth_threads(h: Heads) -> bool:
    """Whether there is enough to do for handing work to other threads."""
    p, queries = h.layout.plan, h.length * h.shared
    far = queries + h.keys if h.window is None else queries + max(h.keys - h.window, 0)
    near = 0 if h.window is None else queries * min(h.window, h.keys)
    return (far * p.total + near) * h.count * (p.dim + p.width) > threads.SERIAL_WORK


def heads(
    layout: Layout,
    features: Features | None,
    packed: PackedWeights,
    batch: tuple[int, ...],
    arrays: dict[str, Any],
    logs: tuple[Any, Any] | None,
    window: int | None = None,
) -> Heads:
    """Find the address of every head; arrays are q, out, k, v and mask, any of which may be missing."""
    k, v, q, out, mask = (arrays.get(name) for name in ("k", "v", "q", "out", "mask"))
    tasks = rows_of(Task, math.prod(batch))
    for name, x, own in (("k", k, 2), ("v", v, 2), ("mask", mask, 1)):
        if x is not None:
            tasks[name] = addresses(x, batch, own)
            tasks[f"{name}_row"] = x.strides[-own]
    for name, x in (("k", k), ("v", v), ("q", q)):
        if x is not None:
            tasks[f"{name}_column"], tasks[f"{name}_plain"] = x.strides[-1], _plain(layout, features, name, x)
    queries, shared = None, 0
    if q is not None and out is not None:
        tasks["q_row"], tasks["out_row"] = q.strides[-2], out.strides[-2]
        queries = query_heads(q, out, logs, batch)
        point(tasks, {"queries": queries})
        shared = queries.shape[1]
    tasks["groups"], tasks["keys"] = shared, 0 if k is None else k.shape[-2]
    tasks["weights"] = packed.addresses(() if features is None else features.batch, batch)
    return Heads(
        layout=layout,
        features=features,
        window=window,
        tasks=tasks,
        queries=queries,
        length=0 if q is None else q.shape[-2],
        keys=0 if k is None else k.shape[-2],
        shared=shared,
        threads=threads.thread_count(),
        alive=(arrays, packed),
    )


def _plain(layout: Layout, features: Features | None, name: str, x: Any) -> int:
    """Whether tiles of an array can be read where they lie: full rows of elements, one after the other."""
    p, side = layout.plan, None if features is None or name == "v" else features.side(_SIDES[name])
    if x is None or x.dtype != layout.dtype or (side is not None and side.centre is not None):
        return 0
    width, wanted = x.shape[-1], p.width_pad if name == "v" else p.dim_pad
    rows = width == wanted and x.strides[-2:] == (width * p.element, p.element)
    return int(rows and x.flags.aligned)


def query_heads(q: Any, out: Any, logs: tuple[Any, Any] | None, batch: tuple[int, ...]) -> Any:
    """Return where queries, outputs, denominators and shifts lie, by head of keys and query head that shares it."""
    outer = out.shape[:-2]
    shape, order = _sharing(outer, batch)
    found = rows_of(Queries, math.prod(shape)).reshape(shape)
    names = Queries._fields if logs else ("q", "out")
    for name, x, own in zip(names, (q, out, *(logs or ())), (2, 2, 1, 1), strict=False):
        found[name] = addresses(x, outer, own).reshape(outer).transpose(order).reshape(shape)
    return found


@lru_cache(SHAPES)
def _sharing(outer: tuple[int, ...], batch: tuple[int, ...]) -> tuple[tuple[int, int], list[int]]:
    """Return how many heads of keys there are and query heads to each, and the order of axes that sorts them so."""
    own = (1,) * (len(outer) - len(batch)) + batch
    shared = [axis for axis, size in enumerate(own) if size == 1 and outer[axis] != 1]
    order = [axis for axis in range(len(outer)) if axis not in shared] + shared
    return (math.prod(batch), math.prod(outer[axis] for axis in shared)), order


def outputs(
    outer: tuple[int, ...], length: int, width: int, dtype: Any, sums: Any, full: bool
) -> tuple[Any, tuple[Any, Any] | None]:
    """Return room for the output and, if full, for denominators and shifts."""
    out = np.empty((*outer, length, width), dtype)
    return out, (np.empty((*outer, length), sums), np.empty((*outer, length), sums)) if full else None


def log_normalizers(logs: tuple[Any, Any] | None) -> tuple[Any, Any]:
    """Return log |denominator| + shift, and the sign."""
    if logs is None:
        return None, None
    denominator, shift = logs
    nothing = denominator == 0
    log = np.log(np.where(nothing, 1, np.abs(denominator))) + shift
    return np.where(nothing, -np.inf, log).astype(denominator.dtype), np.sign(denominator)
