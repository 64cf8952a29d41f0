"""The steps that find groups and heavy keys, head by head on threads: as `rfkernels.grouping.fitting` has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from rfkernels._arrays import dtype_name
from rfkernels.backends.numba import block_schedule, threads
from rfkernels.backends.numba.block_inputs import pack_groups
from rfkernels.backends.numba.block_layout import layout, scratch, tasks
from rfkernels.backends.numba.block_schedule import BlockPlan, BlockTask
from rfkernels.backends.numba.kernels import SENTINEL
from rfkernels.backends.numba.packing import address, addresses, up
from rfkernels.grouping import Groups
from rfkernels.grouping.fitting import Steps

_BAND = 192

_SERIAL_WORK = 1 << 21
"""Multiplications below which handing work to other threads costs more than it saves."""


def _prepared(
    k: Any, batch: tuple[int, ...], scale: float, mask: Any = None, v: Any = None, groups: int = 1
) -> tuple[BlockPlan, list[BlockTask], Any]:
    """Return a plan, a task for each head, and what must stay alive."""
    name = dtype_name(k.dtype)
    width = 0 if v is None else v.shape[-1]
    sizes = {"dim": k.shape[-1], "width": width, "groups": groups, "heavy": 0, "block": 1, "reach": -1, "causal": 0}
    plan, code = layout((name, name, name, name), k.dtype, _BAND, **sizes)
    zeros = np.zeros(max(plan.dim_pad, plan.width_pad), k.dtype)
    numbers = np.array([1.0, scale, scale**2, SENTINEL[plan.element * 8]], k.dtype)
    same = {"zeros": address(zeros), "numbers": address(numbers)}
    return plan, [task._replace(**same) for task in tasks(plan, batch, k.dtype, k, v, mask)], (zeros, numbers, code)


def _run(work: Sequence[Callable[[], int]], products: int) -> None:
    threads.run(work, threads.thread_count() if products > _SERIAL_WORK else 1)


def _mass(xp: Any, rows: Any, k: Any, scale: float, mask: Any) -> Any:
    allowed = () if mask is None else mask.shape[:-1]
    batch, keys = np.broadcast_shapes(rows.shape[:-2], k.shape[:-2], allowed), k.shape[-2]
    p, found, alive = _prepared(k, batch, scale, mask)
    out = np.empty((math.prod(batch), keys), k.dtype)
    rows = rows.astype(k.dtype, copy=False)
    q_rows = {"q_row": rows.strides[-2], "q_column": rows.strides[-1]}

    def one(task: BlockTask, q: int, own: Any) -> int:
        return block_schedule.mass(p, scratch(p, 1), task._replace(**q_rows), q, rows.shape[-2], address(own))

    work = [partial(one, *given) for given in zip(found, addresses(rows, batch, 2), out, strict=True)]
    _run(work, 2 * out.size * rows.shape[-2] * p.dim)
    del alive
    return out.reshape(*batch, keys)


def _some(xp: Any, k: Any, v: Any, weight: Any, half: int) -> tuple[Any, Any, Any]:
    given = [k] if v is None else [k, v]
    batch = np.broadcast_shapes(weight.shape[:-1], *(x.shape[:-2] for x in given))
    keys, spaced = k.shape[-2], np.arange(half) * k.shape[-2] // half
    out = [np.empty((*batch, 2 * half, x.shape[-1]), x.dtype) for x in given]
    wide = [np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in given]
    weights, kept = np.broadcast_to(weight, (*batch, keys)), np.empty((*batch, 2 * half), weight.dtype)

    def one(head: tuple[int, ...]) -> int:
        own = -weights[head]
        some = np.argpartition(own, half - 1)[:half]
        chosen = np.concatenate([some[np.argsort(own[some], kind="stable")], spaced])
        kept[head] = weights[head][chosen]
        for x, room in zip(wide, out, strict=True):
            # All positions are in range; to find out that they are NumPy would fill a copy.
            np.take(x[head], chosen, 0, room[head], mode="clip")
        return 0

    _run([partial(one, head) for head in np.ndindex(batch)], sum(x.size for x in out))
    return out[0], None if v is None else out[1], kept


def _spread_out(xp: Any, k: Any, metric: Any, weight: Any, count: int) -> Any:
    batch = np.broadcast_shapes(k.shape[:-2], metric.shape[:-2], weight.shape[:-1])
    heads, keys = math.prod(batch), k.shape[-2]
    p, found, alive = _prepared(k, batch, 1.0)
    row = up(keys, p.tile)
    wide = np.zeros((math.prod(metric.shape[:-2]), p.dim, p.dim_pad), k.dtype)
    wide[..., : p.dim] = metric.reshape(-1, p.dim, p.dim)
    own = np.broadcast_to(np.arange(len(wide)).reshape(metric.shape[:-2]), batch).ravel()
    weights = np.zeros((heads, row), k.dtype)
    weights[:, :keys] = np.broadcast_to(weight, (*batch, keys)).reshape(heads, keys)
    picked = np.zeros((heads, count), np.int32)

    def one(head: int) -> int:
        room = np.zeros((p.dim_pad + 2, row), k.dtype)
        task = found[head]._replace(metric=address(wide[own[head]]), squares=address(room[1]))
        places = address(room[2:]), address(room[0]), address(picked[head])
        start = int(np.argmax(weights[head])), int(np.argmax(weights[head] > 0))
        return block_schedule.spread_out(p, scratch(p, 1), task, address(weights[head]), start, count, places)

    _run([partial(one, head) for head in range(heads)], heads * keys * count * p.dim)
    del alive
    return picked.reshape(*batch, count)


def _labels(xp: Any, groups: Groups, k: Any) -> Any:
    batch, keys = np.broadcast_shapes(k.shape[:-2], groups.batch), k.shape[-2]
    p, found, alive = _prepared(k, batch, 1.0, groups=groups.size)
    packed = pack_groups(p, groups._replace(cross=None), k.dtype)
    sets = np.broadcast_to(np.arange(len(packed.drawn)).reshape(groups.batch), batch).ravel().tolist()
    out = np.empty((math.prod(batch), keys), np.int32)

    def one(task: BlockTask, own: int, labels: Any) -> int:
        given = {"drawn": address(packed.drawn[own]), "offset": address(packed.offset[own]), "labels": address(labels)}
        return block_schedule.assign(p, scratch(p, 1), task._replace(**given), 0, keys)

    _run([partial(one, *given) for given in zip(found, sets, out, strict=True)], out.size * p.groups * p.dim)
    del alive
    return out.reshape(*batch, keys)


def _moment(xp: Any, x: Any) -> Any:
    batch = x.shape[:-2]
    p, found, alive = _prepared(x, batch, 1.0)
    out = np.zeros((math.prod(batch), p.dim_pad, p.dim_pad), x.dtype)

    def one(task: BlockTask, own: Any) -> int:
        return block_schedule.moment(p, scratch(p, 1), task, address(own))

    _run([partial(one, *given) for given in zip(found, out, strict=True)], x.size * p.dim)
    del alive
    return out[:, : p.dim, : p.dim].reshape(*batch, p.dim, p.dim)


def _within(xp: Any, groups: Groups, k: Any, v: Any, allowed: Any) -> tuple[Any, Any]:
    width, count, moving = 0 if v is None else v.shape[-1], groups.size, v is not None
    v = np.empty((k.shape[-2], 0), k.dtype) if v is None else v
    names = np.where(allowed, _labels(xp, groups, k), np.int32(-1))
    batch = np.broadcast_shapes(names.shape[:-1], v.shape[:-2])
    heads, keys = math.prod(batch), k.shape[-2]
    p, found, alive = _prepared(k, batch, 1.0, v=v, groups=count)
    names = np.ascontiguousarray(np.broadcast_to(names, (*batch, keys)), np.int32).reshape(heads, keys)
    every, squares = np.arange(count, dtype=np.int32), np.zeros(keys, k.dtype)
    sums = np.zeros((heads, count, p.sums_row), k.dtype)
    out, cross = (np.zeros((heads, p.dim_pad, pad), k.dtype) for pad in (p.dim_pad, p.width_pad))

    def one(head: int) -> int:
        task = found[head]._replace(labels=address(names[head]), squares=address(squares), every=address(every))
        places = address(out[head]), address(cross[head])
        return block_schedule.within(p, scratch(p, 1), task._replace(before=address(sums[head])), *places)

    _run([partial(one, head) for head in range(heads)], heads * keys * p.dim * (p.dim + width))
    del alive
    square = out[:, : p.dim, : p.dim].reshape(*batch, p.dim, p.dim)
    return square, cross[:, : p.dim, :width].reshape(*batch, p.dim, width) if moving else None


def _each(one: Callable[..., Groups], q: Any, k: Any, v: Any, mask: Any, mass: Any) -> Groups:
    """Take heads one by one on threads, each of which does all steps of a head, if there are enough alike."""
    batch, count = k.shape[:-2], threads.thread_count()
    masks = () if mask is None or mask.ndim == 1 else mask.shape[:-1]
    same = {q.shape[:-2], mass.shape[:-1], batch if v is None else v.shape[:-2], masks or batch} == {batch}
    heads = math.prod(batch)
    if not batch or not same or heads == 0 or (heads % count and heads < 4 * count):
        return one(q, k, v, mask, mass)
    results: dict[tuple[int, ...], Groups] = {}

    def task(head: tuple[int, ...]) -> int:
        own = None if v is None else v[head], mask[head] if masks else mask
        results[head] = one(q[head], k[head], *own, mass[head])
        return 0

    threads.run([partial(task, head) for head in np.ndindex(batch)], count)
    parts = zip(*(results[head][:-1] for head in np.ndindex(batch)), strict=True)
    centres, metric, spread, cross = (_stacked(list(part), batch) for part in parts)
    return Groups(centres, metric, spread, cross, results[(0,) * len(batch)].scale)


def _stacked(parts: list[Any], batch: tuple[int, ...]) -> Any:
    return None if parts[0] is None else np.stack(parts).reshape(*batch, *parts[0].shape)


STEPS = Steps(_each, _mass, _moment, _some, _spread_out, _within)
