"""The steps that find groups and heavy keys, head by head on threads: as `rfkernels.grouping.fitting` has them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from rfkernels._arrays import dtype_name
from rfkernels.backends.numba import group_schedule, threads
from rfkernels.backends.numba.block_layout import layout, scratch, tasks
from rfkernels.backends.numba.block_records import BlockPlan, Search
from rfkernels.backends.numba.kernels import SENTINEL
from rfkernels.backends.numba.packing import address, addresses, placed, point, up
from rfkernels.backends.numba.records import Held, rows_of
from rfkernels.grouping import Groups, fitting

_BAND = 192

_KEPT = 33 << 15
"""Weights that a thread has room for: of 32,768 keys for 32 queries, with a log scale for each 64 of them."""


class _Memory(threading.local):
    """Buffers of a thread, and what lies where in the last two."""

    def __init__(self) -> None:
        self.weights, self.task, self.search = SimpleNamespace(), SimpleNamespace(), SimpleNamespace()
        self.room: Any = None


_memory = _Memory()


def _prepared(
    k: Any,
    batch: tuple[int, ...],
    scale: float,
    mask: Any = None,
    v: Any = None,
    groups: int = 1,
    queries: int = 1,
    **same: int,
) -> tuple[Held[BlockPlan], Any, Any]:
    """Return a plan, a task for each head, and what must stay alive."""
    name = dtype_name(k.dtype)
    width = 0 if v is None else v.shape[-1]
    sizes = {"dim": k.shape[-1], "width": width, "groups": groups, "heavy": 0, "block": 1, "reach": -1, "causal": 0}
    laid, code = layout((name, name, name, name), k.dtype, _BAND, **sizes)
    plan = laid.record
    zeros = np.zeros(max(plan.dim_pad, plan.width_pad), k.dtype)
    numbers = np.array([1.0, scale, scale**2, SENTINEL[plan.element * 8], 1 / queries, -0.5], k.dtype)
    same |= {"zeros": address(zeros), "numbers": address(numbers)}
    return laid, tasks(plan, batch, k.dtype, k, v, mask, **same), (zeros, numbers, code)


def _run(work: Sequence[Callable[[], int]], products: int) -> None:
    threads.run(work, threads.thread_count() if products > threads.SERIAL_WORK else 1)


def _mass(xp: Any, rows: Any, k: Any, scale: float, mask: Any) -> Any:
    allowed = () if mask is None else mask.shape[:-1]
    batch, keys = np.broadcast_shapes(rows.shape[:-2], k.shape[:-2], allowed), k.shape[-2]
    rows = rows.astype(k.dtype, copy=False)
    laid, found, alive = _prepared(k, batch, scale, mask, q_row=rows.strides[-2], q_column=rows.strides[-1])
    p, out = laid.record, np.empty((math.prod(batch), keys), k.dtype)
    count, tiles = rows.shape[-2], -(-keys // p.tile)
    kept = tiles * (p.tile + 1) * up(count, p.column_step)

    def one(task: int, q: int, own: int) -> int:
        room = placed(_memory.weights, {"": kept}, p.element)[""] if kept <= _KEPT else 0
        return group_schedule.mass(laid.address, scratch(p, 1).address, task, q, count, own, room)

    given = addresses(found, found.shape, 0), addresses(rows, batch, 2), addresses(out, out.shape[:1], 1)
    work = [partial(one, *own) for own in zip(*given, strict=True)]
    _run(work, 2 * out.size * rows.shape[-2] * p.dim)
    del alive
    return out.reshape(*batch, keys)


def _find(q: Any, k: Any, v: Any, count: int, scale: Any, mask: Any, mass: Any) -> Groups:
    batch, keys = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], mass.shape[:-1]), k.shape[-2]
    if v is not None and np.broadcast_shapes(batch, v.shape[:-2]) != batch:
        return fitting.STEPS.find(q, k, v, count, scale, mask, mass)  # centres are not to be found for each of them
    weight = mass + mass.dtype.type(fitting.EVEN / keys) * (1 if mask is None else mask)
    weight = np.broadcast_to(weight, (*batch, keys)).reshape(-1, keys)
    given = [np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (k, v) if x is not None]
    rooms = given
    if keys > fitting.KEYS:
        rooms = [np.empty((*batch, fitting.KEYS, x.shape[-1]), k.dtype) for x in given]
    q = fitting.spaced(q, fitting.MEASURE)
    held = rooms[1] if len(rooms) > 1 else None
    same = {"q_row": q.strides[-2], "q_column": q.strides[-1], "mask_row": 1}
    laid, found, alive = _prepared(rooms[0], batch, scale, None, held, count, q.shape[-2], **same)
    p, heads = laid.record, len(weight)
    out, own = _results(p, heads, k.dtype), _own(p, heads, rooms[0].shape[-2], k.dtype)
    searches = rows_of(Search, heads)
    searches["q"], searches["queries"] = addresses(q, batch, 2), q.shape[-2]
    point(searches, {**out, **{name: own[name] for name in ("weight", "bounds", "fresh")}})
    point(found, {"mask": own["allowed"]})
    found["every"], found["squares"] = address(own["every"]), address(own["nothing"])
    at, search_at = address(found), address(searches)

    def one(head: int) -> int:
        mine = weight[head]
        if keys > fitting.KEYS:
            place = np.unravel_index(head, batch)
            mine = _choose([x[place] for x in given], [x[place] for x in rooms], mine, fitting.KEYS // 2)
        weights, allowed = own["weight"][head], own["allowed"][head]
        weights[: len(mine)] = mine
        np.greater(weights, 0, out=allowed)
        room, more = _room(p, len(weights))
        for table, places in ((found, room), (searches, more)):
            for name, at_place in places.items():
                table[name][head] = at_place
        searches["at"][head], searches["first"][head] = weights.argmax(), allowed.argmax()
        task, search = at + head * found.itemsize, search_at + head * searches.itemsize
        return group_schedule.find(laid.address, scratch(p, 1).address, task, search)

    work = [partial(one, head) for head in range(heads)]
    _run(work, 2 * len(work) * rooms[0].shape[-2] * count * p.dim)
    del alive
    metric, centres, covariance, cross = (x.reshape(*batch, *x.shape[1:]) for x in out.values())
    metric = np.ascontiguousarray(metric[..., : p.dim, : p.dim])
    groups = Groups(centres[..., :count, : p.dim].copy(), metric, metric, None, np.asarray(scale, k.dtype))
    within = None if v is None else cross[..., : p.dim, : p.width]
    return fitting.with_spread(np, groups, covariance[..., : p.dim, : p.dim], within)


def _choose(given: Sequence[Any], rooms: Sequence[Any], weight: Any, half: int) -> Any:
    """Put the keys that weigh most and evenly spaced ones, and their values, into rooms; return their weights."""
    own = -weight
    some = np.argpartition(own, half - 1)[:half]
    spaced = np.arange(half) * len(weight) // half
    chosen = np.concatenate([some[np.argsort(own[some], kind="stable")], spaced])
    for x, room in zip(given, rooms, strict=True):
        # All positions are in range; to find out that they are NumPy would fill a copy.
        np.take(x, chosen, 0, room, mode="clip")
    return weight[chosen]


def _results(p: BlockPlan, heads: int, dtype: Any) -> dict[str, Any]:
    """Return zeros for the metric, the centres (with rows to spare for the last register tile), and what is within."""
    shapes = {"metric": (p.dim_pad, p.dim_pad), "centres": (p.groups_pad + p.row_step, p.dim_pad)}
    shapes |= {"covariance": (p.dim_pad, p.dim_pad), "cross": (p.dim_pad, p.width_pad)}
    return {name: np.zeros((heads, *shape), dtype) for name, shape in shapes.items()}


def _own(p: BlockPlan, heads: int, keys: int, dtype: Any) -> dict[str, Any]:
    """Return what searches begin with, by head, and what all of them read."""
    tiles, row = -(-keys // p.tile), up(keys, p.tile)
    return {
        "weight": np.zeros((heads, row), dtype),
        "allowed": np.empty((heads, row), np.bool_),
        "bounds": np.full((heads, tiles), -SENTINEL[p.element * 8], dtype),
        "fresh": np.zeros((heads, tiles), np.int64),
        "every": np.arange(p.groups, dtype=np.int32),
        "nothing": np.zeros(row, dtype),
    }


def _room(p: BlockPlan, row: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return this thread's working memory for keys in whole tiles, kept between calls: for a task and for a search."""
    known = _memory.room
    if known is None or known[0] != (p, row):
        _memory.room = None  # an interrupt may leave other buffers
        sizes = {"labels": row, "offset": p.groups_pad, "drawn": p.dim_pad * p.groups_pad}
        sizes["before"] = p.groups * p.sums_row
        more = {"xt": p.dim_pad * row, "squares": row, "nearest": row, "own": p.groups_pad}
        more |= {"drawn": p.groups_pad * p.dim_pad, "places": 2 * row // p.tile}
        known = _memory.room = (
            (p, row),
            (placed(_memory.task, sizes, p.element), placed(_memory.search, more, p.element)),
        )
    return cast(tuple[dict[str, int], dict[str, int]], known[1])


STEPS = fitting.Steps(_mass, _find)
