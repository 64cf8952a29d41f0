"""Causal passes whose groups are merged from the keys that leave, a head at a time on each thread."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, cast

import numpy as np

from rfkernels.backends.numba import merge_kernels, merge_schedule, threads
from rfkernels.backends.numba.block_inputs import After, numbers_for
from rfkernels.backends.numba.block_layout import scratch
from rfkernels.backends.numba.block_records import BlockPlan, Merging
from rfkernels.backends.numba.jit import Code, machine
from rfkernels.backends.numba.packing import address, placed, point, up
from rfkernels.backends.numba.prepared import Prepared, from_state, to_state, worth_threads
from rfkernels.backends.numba.records import Held


def run(w: Prepared, scale: Any) -> After:
    """Run the pass; return what is known of the keys that left."""
    p, heads, given = w.plan, len(w.base), w.given
    code = merge_kernels.merging(machine(), p.element * 8)
    sums, mass = np.zeros((heads, p.points, p.sums_row), given.dtype), np.zeros((heads, p.points), given.dtype)
    within = np.zeros((heads, p.dim_pad, p.dim_pad + p.width_pad), given.dtype)
    _from_state(w, sums, mass, within)
    spread, cross = (np.zeros((heads, p.dim_pad, pad), given.dtype) for pad in (p.dim_pad, p.width_pad))
    numbers = numbers_for(p, scale, given.dtype)
    w.base["numbers"] = address(numbers)
    point(w.base, {"before": sums, "mass": mass, "within": within, "spread": spread, "cross": cross})
    begun = 0 if given.held == 0 else p.reach + 1
    at, step = address(w.base), w.base.itemsize

    def merge(some: range) -> int:
        own = w.laid.address, scratch(p, w.shared).address, _memory_of(p, w.shared, code).address
        return sum(merge_schedule.merged(*own, at + index * step, w.length, begun) for index in some)

    apart = worth_threads(w)
    work = [range(i, i + 1) for i in range(heads)] if apart else [range(heads)]
    threads.run([partial(merge, some) for some in work], w.threads if apart else 1)
    return _after(w, sums, mass, within)


def _from_state(w: Prepared, sums: Any, mass: Any, within: Any) -> None:
    """Write what a state knows, if there is one, to where kernels have it."""
    p, given, begun = w.plan, w.given, from_state(w)
    if begun is None:
        return
    sums[:, : p.groups] = begun
    received = given.mass.reshape(len(w.base), p.groups + p.block)
    inner = given.within.reshape(len(w.base), p.dim, p.dim + p.width)
    mass[:, : p.groups] = received[:, : p.groups]
    mass[:, p.groups_pad : p.groups_pad + p.block] = received[:, p.groups :]
    within[:, : p.dim, : p.dim] = inner[..., : p.dim]
    within[:, : p.dim, p.dim_pad : p.dim_pad + p.width] = inner[..., p.dim :]


def _after(w: Prepared, sums: Any, mass: Any, within: Any) -> After:
    """Undo `_from_state`."""
    p, batch = w.plan, w.given.batch
    received = np.concatenate([mass[:, : p.groups], mass[:, p.groups_pad : p.groups_pad + p.block]], -1)
    inner = (within[:, : p.dim, : p.dim], within[:, : p.dim, p.dim_pad : p.dim_pad + p.width])
    return After(
        to_state(w, sums[:, : p.groups]),
        received.reshape(*batch, p.groups + p.block),
        np.concatenate(inner, -1).reshape(*batch, p.dim, p.dim + p.width),
    )


_memory = threading.local()


def _memory_of(p: BlockPlan, shared: int, code: Code) -> Held[Merging]:
    """Return kernels and this thread's working memory for queries of `shared` heads, kept between calls."""
    known = getattr(_memory, "merging", None)
    if known is not None and known[0] == (p, shared) and known[2] is code:
        return cast(Held[Merging], known[1])
    _memory.merging = None  # an interrupt may leave the buffer of another plan
    queries, both = up(shared * up(p.block, p.row_step), p.column_step), p.dim_pad + p.width_pad
    sizes = {
        "far": queries * (p.groups_pad + p.column_step),
        "near": queries * (p.band_tile + p.column_step),
        "far_level": queries,
        "near_level": queries,
        "scores": p.tile * (p.points + p.column_step),
        "squares": p.points,
        "weight": p.points,
        "cost": p.points,
        "left": p.points * p.dim_pad,
        "right": p.points * both,
    }
    names = {name: np.zeros(p.points, np.int32) for name in ("nearest", "ties", "owner")}
    names["changed"] = np.zeros(3 * p.points, np.int32)
    fields: dict[str, Any] = {name: array for name, array in names.items() if name in Merging._fields}
    fields |= {name: code.addresses[name] for name in Merging._fields if name in code.addresses}
    fields |= {f"{name}_at": address(array) for name, array in names.items()}
    made = Held(Merging(**fields, **placed(_memory, sizes, p.element)))
    _memory.merging = (p, shared), made, code, names
    return made
