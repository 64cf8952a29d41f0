"""Heads of a pass: where their queries, keys, values and outputs lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.packing import Layout, PackedWeights, address, kept_by_shape, places
from rfkernels.backends.numba.records import rows_of, words, words_of
from rfkernels.backends.numba.schedule_records import FIELDS, Queries, Task
from rfkernels.features import Features, SideName

Form = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides of an array."""

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
    tasks : array of int, shape (heads, fields)
        The words of a Task for each: what does not depend on the state that is read or written.
    queries : array of int, shape (heads, shared, fields)
        The words of Queries: where they are.
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

    @cached_property
    def worth_threads(self) -> bool:
        """Whether there is enough to do for handing work to other threads."""
        p, queries = self.layout.plan, self.length * self.shared
        far = queries + self.keys if self.window is None else queries + max(self.keys - self.window, 0)
        near = 0 if self.window is None else queries * min(self.window, self.keys)
        return (far * p.total + near) * self.count * (p.dim + p.width) > threads.SERIAL_WORK

    def runs(self, some: range | None = None) -> list[tuple[int, int]]:
        """Return which heads, of some or of all, go together: all where there is little to do, else each alone."""
        heads = range(self.count) if some is None else some
        return [(i, i + 1) for i in heads] if self.worth_threads else [(heads.start, heads.stop)]


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
    given = {"k": k, "v": v, "mask": mask, "q": q, "out": out}
    at = _task_places(batch, tuple(None if x is None else (x.shape, x.strides) for x in given.values()))
    own = {name: address(x) for name, x in (("k", k), ("v", v), ("mask", mask)) if x is not None}
    own |= {f"{name}_plain": _plain(layout, features, name, x) for name, x in (("k", k), ("v", v), ("q", q))}
    queries, shared = None, 0
    if q is not None and out is not None:
        queries = query_heads(q, out, logs, batch)
        own["queries"], shared = address(queries), queries.shape[1]
    tasks = at + words(Task, own)
    tasks[:, FIELDS["weights"]] = packed.addresses(() if features is None else features.batch, batch)
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


@kept_by_shape
def _task_places(batch: tuple[int, ...], forms: tuple[Form | None, ...]) -> Any:
    """Return tasks on arrays (k, v, mask, queries and outputs) that all begin at address 0, (heads, fields)."""
    tasks, (k, _, _, q, out) = rows_of(Task, math.prod(batch)), forms
    for name, form, own in zip(("k", "v", "mask"), forms[:3], (2, 2, 1), strict=True):
        if form is not None:
            tasks[name], tasks[f"{name}_row"] = places(*form, batch, own), form[1][-own]
    for name, form in (("k", k), ("v", forms[1]), ("q", q)):
        if form is not None:
            tasks[f"{name}_column"] = form[1][-1]
    if q is not None and out is not None:
        shared = _sharing(out[0][:-2], batch)[0][1]
        tasks["q_row"], tasks["out_row"], tasks["groups"] = q[1][-2], out[1][-2], shared
        tasks["queries"] = np.arange(len(tasks)) * shared * rows_of(Queries, 0).itemsize
    tasks["keys"] = 0 if k is None else k[0][-2]
    return words_of(tasks)


def query_heads(q: Any, out: Any, logs: tuple[Any, Any] | None, batch: tuple[int, ...]) -> Any:
    """Return where queries, outputs, denominators and shifts lie: words of Queries, (heads, shared, fields).

    Those that share a head of keys come one after the other.
    """
    given = dict(zip(Queries._fields, (q, out, *(logs or ())), strict=False))
    found = _query_places(batch, tuple((x.shape, x.strides) for x in given.values()))
    return found + words(Queries, {name: address(x) for name, x in given.items()})


@kept_by_shape
def _query_places(batch: tuple[int, ...], forms: tuple[Form, ...]) -> Any:
    """Return where they would lie if all arrays began at address 0, (heads, shared, fields)."""
    outer = forms[1][0][:-2]
    shape, order = _sharing(outer, batch)
    found = rows_of(Queries, math.prod(shape)).reshape(shape)
    for name, form, own in zip(Queries._fields, forms, (2, 2, 1, 1), strict=False):
        found[name] = places(*form, outer, own).reshape(outer).transpose(order).reshape(shape)
    return words_of(found)


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
    with np.errstate(divide="ignore"):
        log = np.log(np.abs(denominator))
    return log + shift, np.sign(denominator)
