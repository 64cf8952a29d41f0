"""Exact attention, tile by tile: no more memory than a pass over features takes, and no features."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import dtype_name
from rfkernels._checks import broadcast_batch
from rfkernels.backends import Pass, exact
from rfkernels.backends.numba import heads, kernels, schedule, threads
from rfkernels.backends.numba.finite import check_finite
from rfkernels.backends.numba.heads import Heads
from rfkernels.backends.numba.jit import Machine, machine
from rfkernels.backends.numba.packed import packed
from rfkernels.backends.numba.packing import Layout, PackedWeights, address, plan_of, scratch
from rfkernels.backends.numba.passes import Tasks, cut
from rfkernels.backends.numba.records import Held
from rfkernels.backends.numba.schedule_records import Weights
from rfkernels.core import Options

_TILE = 256
"""Queries that see a tile of keys before the next is loaded, which takes as long as a few queries do."""

_SPANS = 4
"""Spans of queries for each thread, where there are so many tiles: those of a causal pass see fewer or more keys."""

_ROUNDED = 2.0**-13
"""How much rounding may change logs in which squared norms count, before the reference is asked, which cuts logs."""


def attend(
    q: Any, k: Any, v: Any, options: Options, scale: float, mask: Any, segments: Any, check: bool, dtype: Any
) -> Pass:
    """Do what `rfkernels.backends.exact` does, for kernels whose log is x·y + κ (|x|² + |y|²)."""
    norm_weight = 0.0 if options.kernel is None else options.kernel.norm_weight
    if check:
        check_finite(q=q, k=k, v=v)
    if norm_weight is None or (norm_weight != 0 and _rounding(q, k, scale) > _ROUNDED):
        return exact(q, k, v, options, scale, mask, segments, False, dtype)
    bits = 64 if np.float64 in (q.dtype, k.dtype, v.dtype) else 32
    names = tuple(dtype_name(np.dtype(x)) for x in (q.dtype, k.dtype, v.dtype, dtype))
    sizes = q.shape[-1], v.shape[-1]
    given, weights = _prepared(machine(), bits, sizes, names, not check, float(scale), float(norm_weight))
    rows = {"mask": mask, "segments": segments}
    own = {name: x.shape[:-1] for name, x in rows.items() if x is not None}
    batch = broadcast_batch(k=k.shape[:-2], v=v.shape[:-2], **own)
    outer = broadcast_batch(q=q.shape[:-2], keys=batch)
    out, logs = heads.outputs(outer, q.shape[-2], v.shape[-1], dtype, given.dtype, options.full)
    arrays = {"q": q, "k": k, "v": v, "out": out, "mask": mask}
    every = q.shape[-2] + k.shape[-2]
    reach = every if options.window is None else min(int(options.window), every)
    h = heads.heads(given, None, weights, batch, arrays, logs, reach)
    run = partial(_run, options)
    fine, _ = run(h, None) if segments is None else packed(h, segments, batch, None, run)
    # NaN and infinity that are let pass go where arithmetic takes them; logs near the lowest number count as none here
    if not fine or (_nothing(out, logs) and _largest(q, k) * float(scale) > -kernels.ABSENT[bits]):
        return exact(q, k, v, options, scale, mask, segments, False, dtype)
    return Pass(out, *heads.log_normalizers(logs), None)


def _rounding(q: Any, k: Any, scale: Any) -> float:
    """Return how much rounding may change |x|², at most, in the precision of sums."""
    double = np.float64 in (q.dtype, k.dtype)
    return float(np.finfo(np.float64 if double else np.float32).eps) * float(scale) * _largest(q, k)


def _largest(*arrays: Any) -> float:
    """Return the largest squared norm of all vectors."""
    return max(float(np.einsum("...i,...i->...", x, x, dtype=np.float64).max(initial=0)) for x in arrays)


def _nothing(out: Any, logs: tuple[Any, Any] | None) -> bool:
    """Whether some row seems to have seen no key."""
    return bool((logs[0] == 0).any() if logs else out.shape[-1] and not out.any(-1).all())


class _Exact(NamedTuple):
    """How a pass is laid out, and what it is told of the kernel."""

    layout: Layout
    weights: PackedWeights


@lru_cache(256)
def _prepared(
    target: Machine,
    bits: int,
    sizes: tuple[int, int],
    names: tuple[str, ...],
    check: bool,
    scale: float,
    norm_weight: float,
) -> _Exact:
    code, dtype, sentinel = (kernels.shared(target, bits),), np.dtype(f"f{bits // 8}"), kernels.SENTINEL[bits]
    held, shape = plan_of(target, bits, code, (sizes[0], 0, 0, sizes[1]), names, check, _TILE)
    p = held.record
    arrays = {
        "near_parameters": np.array([norm_weight * scale, 0], dtype),
        "scale": np.array([scale], dtype),
        "zeros": np.zeros(max(p.dim_pad, p.width_pad, p.tile + p.column_step), dtype),
        "lowest": np.full(p.tile + p.column_step, sentinel, dtype),
    }
    places = {name: address(x) for name, x in arrays.items()}
    weights = Weights(**{**dict.fromkeys(Weights._fields, 0), **places})
    return _Exact(
        Layout(target, dtype.type, held, sentinel, code, shape, None),
        PackedWeights([Held(weights)], list(arrays.values())),
    )


def _run(options: Options, h: Heads, start: None) -> tuple[bool, None]:
    """Run a pass over whole heads; return whether inputs were finite, and no state."""
    ahead, reach = h.keys - h.length if options.causal else 0, h.window
    assert reach is not None
    tasks, plan, tile = Tasks(h), h.layout.held.address, h.layout.plan.tile
    tasks.set(near=1, near_low=ahead + 1 - reach, near_high=ahead + (1 if options.causal else reach))
    count = h.threads if h.worth_threads else 1
    spans = cut(h.length, max(1, min(_SPANS * count, h.length // tile)) if count > 1 else 1, tile)

    def near(heads: tuple[int, int], low: int, high: int) -> int:
        return schedule.near(plan, scratch(h.layout), tasks.at(0), *heads, low, high)

    work = [partial(near, heads, *span) for span in reversed(spans) for heads in h.runs()]
    return threads.run(work, count) == 0, start
