"""What all passes over blocks begin with: a plan, a task for each head, and room for what they write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rfkernels._arrays import dtype_name
from rfkernels.backends.numba import threads
from rfkernels.backends.numba.block_inputs import Inputs, heavy_tiles
from rfkernels.backends.numba.block_layout import layout, tasks
from rfkernels.backends.numba.block_records import BlockPlan
from rfkernels.backends.numba.heads import query_heads
from rfkernels.backends.numba.packing import address, point
from rfkernels.backends.numba.records import Held
from rfkernels.grouping import Plan
from rfkernels.state import State


@dataclass(frozen=True, eq=False)
class Prepared:
    """A pass: its plan, the code that the plan's addresses lie in, and what its tasks read and write.

    Parameters
    ----------
    queries : array of Queries, shape (heads, shared)
        Where queries are.
    base : array of BlockTask, shape (heads,)
        The task with nothing seen, and nothing of groups.
    kept : tuple
        What tasks point into.
    length : int
        How many queries there are.
    delta : int
        What is added to the number of a query for its position.
    """

    laid: Held[BlockPlan]
    code: Any
    given: Inputs
    queries: Any
    base: Any
    kept: tuple[Any, ...]
    length: int
    delta: int
    threads: int

    @property
    def plan(self) -> BlockPlan:
        """The plan, as Python reads it."""
        return self.laid.record

    @property
    def keys(self) -> int:
        """How many keys there are, with those of a state."""
        return int(self.given.k.shape[-2])

    @property
    def shared(self) -> int:
        """How many query heads share keys."""
        return int(self.queries.shape[1])


def prepare(given: Inputs, size: int, plan: Plan, q: Any, out: Any, logs: Any) -> Prepared:
    """Lay out a pass with so many groups."""
    keys = given.k.shape[-2]
    names = tuple(dtype_name(x.dtype) for x in (q, given.k, given.v, out))
    # No further than to both ends: a window may be wider than any integer of the machine.
    reach = None if plan.reach is None else min(plan.reach, max(keys, q.shape[-2]) // plan.block + 1)
    near = 0 if reach is None else (reach + 1 + (0 if plan.causal else reach)) * plan.block
    laid, code = layout(
        names,
        given.dtype,
        near=near,
        joining=plan.block if plan.merged else 0,
        dim=given.k.shape[-1],
        width=given.v.shape[-1],
        groups=size,
        heavy=given.positions.shape[-1],
        block=plan.block,
        reach=-1 if reach is None else reach,
        causal=int(plan.causal),
    )
    p = laid.record
    heavy = heavy_tiles(given, p.dim_pad, p.width_pad, p.heavy_pad)
    constants = np.zeros(max(p.dim_pad, p.width_pad), given.dtype), np.arange(p.groups, dtype=np.int32)
    queries = query_heads(q, out, logs, given.batch)
    delta = keys - q.shape[-2] if plan.causal else 0
    base = tasks(
        p,
        given.batch,
        given.dtype,
        given.k,
        given.v,
        given.mask,
        zeros=address(constants[0]),
        every=address(constants[1]),
        q_row=q.strides[-2],
        q_column=q.strides[-1],
        out_row=out.strides[-2],
        delta=delta,
        groups=queries.shape[1],
    )
    point(base, dict(zip(("heavy_xt", "heavy_v", "heavy_term", "heavy_positions"), heavy, strict=True)))
    point(base, {"queries": queries})
    kept = (constants, heavy, q, out, logs)
    return Prepared(laid, code, given, queries, base, kept, q.shape[-2], delta, threads.thread_count())


def worth_threads(w: Prepared) -> bool:
    """Whether there is enough to do for handing work to other threads."""
    p, new = w.plan, w.keys - w.given.held
    columns = p.groups + p.heavy + p.band_tile
    return (w.length * w.shared + new) * len(w.base) * columns * (p.dim + p.width) > threads.SERIAL_WORK


def from_state(w: Prepared) -> Any:
    """Return the sums of a state as kernels have them, (heads, groups, row); None if there is no state."""
    state, p = w.given.sums, w.plan
    if state is None:
        return None
    kv = state.kv.reshape(len(w.base), p.groups, p.dim + 1 + p.width)
    sums = np.zeros((len(w.base), p.groups, p.sums_row), w.given.dtype)
    sums[..., : p.dim] = kv[..., : p.dim]
    sums[..., p.dim_pad : p.dim_pad + p.width] = kv[..., p.dim + 1 :]
    sums[..., p.dim_pad + p.width_pad] = kv[..., p.dim]
    sums[..., p.dim_pad + p.width_pad + 1] = state.z.reshape(len(w.base), p.groups)
    return sums


def to_state(w: Prepared, sums: Any) -> State:
    """Undo `from_state`."""
    p, shape = w.plan, (*w.given.batch, w.plan.groups)
    tail = p.dim_pad + p.width_pad
    parts = (sums[..., : p.dim], sums[..., tail : tail + 1], sums[..., p.dim_pad : p.dim_pad + p.width])
    kv, z = np.concatenate(parts, -1), np.array(sums[..., tail + 1])
    return State(kv.reshape(*shape, kv.shape[-1]), z.reshape(shape), np.zeros(shape, w.given.dtype))
