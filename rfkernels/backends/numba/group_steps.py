"""The steps that find groups and heavy keys, head by head on threads: as `rfkernels.grouping.fitting` has them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from rfkernels._arrays import dtype_name
from rfkernels.backends.numba import group_schedule, threads
from rfkernels.backends.numba.block_layout import layout, scratch, tasks
from rfkernels.backends.numba.block_records import BlockPlan, BlockTask, Search
from rfkernels.backends.numba.kernels import SENTINEL
from rfkernels.backends.numba.packing import address, addresses, placed, up
from rfkernels.grouping import Groups, fitting

_BAND = 192

_KEPT = 33 << 15
"""Weights that a thread has room for: of 32,768 keys for 32 queries, with a log scale for each 64 of them."""

_memory = threading.local()


def _prepared(
    k: Any, batch: tuple[int, ...], scale: float, mask: Any = None, v: Any = None, groups: int = 1, queries: int = 1
) -> tuple[BlockPlan, list[BlockTask], Any]:
    """Return a plan, a task for each head, and what must stay alive."""
    name = dtype_name(k.dtype)
    width = 0 if v is None else v.shape[-1]
    sizes = {"dim": k.shape[-1], "width": width, "groups": groups, "heavy": 0, "block": 1, "reach": -1, "causal": 0}
    plan, code = layout((name, name, name, name), k.dtype, _BAND, **sizes)
    zeros = np.zeros(max(plan.dim_pad, plan.width_pad), k.dtype)
    numbers = np.array([1.0, scale, scale**2, SENTINEL[plan.element * 8], 1 / queries, -0.5], k.dtype)
    same = {"zeros": address(zeros), "numbers": address(numbers)}
    return plan, [task._replace(**same) for task in tasks(plan, batch, k.dtype, k, v, mask)], (zeros, numbers, code)


def _run(work: Sequence[Callable[[], int]], products: int) -> None:
    threads.run(work, threads.thread_count() if products > threads.SERIAL_WORK else 1)


def _mass(xp: Any, rows: Any, k: Any, scale: float, mask: Any) -> Any:
    allowed = () if mask is None else mask.shape[:-1]
    batch, keys = np.broadcast_shapes(rows.shape[:-2], k.shape[:-2], allowed), k.shape[-2]
    p, found, alive = _prepared(k, batch, scale, mask)
    out = np.empty((math.prod(batch), keys), k.dtype)
    rows = rows.astype(k.dtype, copy=False)
    q_rows = {"q_row": rows.strides[-2], "q_column": rows.strides[-1]}

    count, tiles = rows.shape[-2], -(-keys // p.tile)
    kept = tiles * (p.tile + 1) * up(count, p.column_step)

    def one(task: BlockTask, q: int, own: Any) -> int:
        room = placed(_memory, {"": kept}, p.element)[""] if kept <= _KEPT else 0
        return group_schedule.mass(p, scratch(p, 1), task._replace(**q_rows), q, count, address(own), room)

    work = [partial(one, *given) for given in zip(found, addresses(rows, batch, 2), out, strict=True)]
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
    p, found, alive = _prepared(rooms[0], batch, scale, None, held, count, q.shape[-2])
    out = _results(p, len(weight), k.dtype)

    def one(head: int, q_at: int) -> int:
        own = weight[head]
        if keys > fitting.KEYS:
            at = np.unravel_index(head, batch)
            own = _choose([x[at] for x in given], [x[at] for x in rooms], own, fitting.KEYS // 2)
        rows = {"q_row": q.strides[-2], "q_column": q.strides[-1]}
        return _search(p, found[head]._replace(**rows), own, {"q": q_at, "queries": q.shape[-2]}, out, head)

    work = [partial(one, *given) for given in enumerate(addresses(q, batch, 2))]
    _run(work, 2 * len(work) * rooms[0].shape[-2] * count * p.dim)
    del alive
    metric, centres, covariance, cross = (x.reshape(*batch, *x.shape[1:]) for x in out)
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


def _results(p: BlockPlan, heads: int, dtype: Any) -> tuple[Any, ...]:
    """Return zeros for the metric, the centres (with rows to spare for the last register tile), and what is within."""
    square = (p.dim_pad, p.dim_pad), (p.groups_pad + p.row_step, p.dim_pad), (p.dim_pad, p.dim_pad)
    return tuple(np.zeros((heads, *shape), dtype) for shape in (*square, (p.dim_pad, p.width_pad)))


def _search(p: BlockPlan, task: BlockTask, weight: Any, given: dict[str, int], out: Sequence[Any], head: int) -> int:
    """Find the groups of one head: its keys are in the task."""
    dtype, keys = weight.dtype, len(weight)
    row, tiles = up(keys, p.tile), up(keys, p.tile) // p.tile
    weights, nothing = np.zeros(row, dtype), np.zeros(row, dtype)
    weights[:keys] = weight
    allowed, labels = weights > 0, np.empty(row, np.int32)
    known = {"bounds": np.full(tiles, -SENTINEL[p.element * 8], dtype), "fresh": np.zeros(tiles, np.int64)}
    known |= {"places": np.empty(tiles, np.int64), "own": np.empty(p.groups_pad, dtype)}
    room = {"xt": (p.dim_pad, row), "squares": row, "nearest": row, "drawn": (p.groups_pad, p.dim_pad)}
    known |= {name: np.empty(shape, dtype) for name, shape in room.items()}
    own = {"drawn": np.empty((p.dim_pad, p.groups_pad), dtype), "offset": np.empty(p.groups_pad, dtype)}
    own |= {"labels": labels, "every": np.arange(p.groups, dtype=np.int32)}
    own |= {"before": np.zeros((p.groups, p.sums_row), dtype), "mask": allowed}
    task = task._replace(mask_row=1, **{name: address(x) for name, x in own.items()})
    results = {
        name: address(x[head]) for name, x in zip(("metric", "centres", "covariance", "cross"), out, strict=True)
    }
    first = {"weight": address(weights), "at": int(np.argmax(weight)), "first": int(np.argmax(allowed))}
    search = Search(**given, **first, **results, **{name: address(x) for name, x in known.items()})
    scattered = task._replace(squares=address(nothing))
    return group_schedule.find(p, scratch(p, 1), scattered, task, search)


STEPS = fitting.Steps(_mass, _find)
