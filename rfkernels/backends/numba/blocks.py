"""Passes over blocks: near and heavy keys exact, groups of order 0 for all others, on threads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from rfkernels._arrays import accumulator, dtype_name
from rfkernels.backends import Pass, numpy
from rfkernels.backends.numba import block_schedule, merging, threads
from rfkernels.backends.numba.block_inputs import Inputs, Packed, begin, finish, heavy_tiles, pack_groups
from rfkernels.backends.numba.block_layout import layout, scratch, tasks
from rfkernels.backends.numba.block_records import BlockPlan
from rfkernels.backends.numba.packing import TILE, address, point, up
from rfkernels.backends.numba.passes import log_normalizers, outputs, query_heads
from rfkernels.backends.numba.records import Held
from rfkernels.backends.numba.schedule_records import Queries
from rfkernels.grouping import BlockState, Far, Plan
from rfkernels.grouping.schedule import Rows
from rfkernels.state import State

_CHUNK = 16
"""Blocks in a chunk at least."""


def attend(rows: Rows, far: Far, plan: Plan, state: BlockState | None, dtype: Any) -> Pass:
    """Run a pass over blocks, the way it is specified where far keys are no sums of given groups in the same dtype."""
    if far.features is not None or plan.merged:
        return numpy.blocks(rows, far, plan, state, dtype, merging.reduced)
    sums = accumulator(np, rows.q, rows.k, rows.v, None if state is None else state.keys)
    given = begin(rows, far, plan, state, sums)
    outer = np.broadcast_shapes(rows.q.shape[:-2], given.batch)
    out, logs = outputs(outer, rows.q.shape[-2], rows.v.shape[-1], dtype, sums, plan.full)
    whole = _whole(given, far, plan, rows.q, out, logs)
    after = _run(whole)
    log, sign = log_normalizers(logs)
    wanted = plan.causal and plan.full
    return Pass(out, log, sign, finish(given, plan, _to_state(whole, after)) if wanted else None)


@dataclass(frozen=True, eq=False)
class Whole:
    """A pass: its plan, the code that the plan's addresses lie in, and what its tasks read and write.

    Parameters
    ----------
    base : array of BlockTask, shape (heads,)
        The task with nothing seen.
    delta : int
        What is added to the number of a query for its position.
    labels, squares : array, shape (heads, keys)
        The group of each key (−1 if it is of none) and kᵀ M k, found by the first tasks.
    """

    laid: Held[BlockPlan]
    code: Any
    given: Inputs
    packed: Packed
    heavy: tuple[Any, ...]
    queries: Held[Queries]
    base: Any
    labels: Any
    squares: Any
    arrays: tuple[Any, ...]
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
        return int(self.queries.record.q.shape[1])


def _whole(given: Inputs, far: Far, plan: Plan, q: Any, out: Any, logs: Any) -> Whole:
    assert far.groups is not None
    heads, keys = math.prod(given.batch), given.k.shape[-2]
    names = tuple(dtype_name(x.dtype) for x in (q, given.k, given.v, out))
    # No further than to both ends: a window may be wider than any integer of the machine.
    reach = None if plan.reach is None else min(plan.reach, max(keys, q.shape[-2]) // plan.block + 1)
    near = 0 if reach is None else (reach + 1 + (0 if plan.causal else reach)) * plan.block
    laid, code = layout(
        names,
        given.dtype,
        dim=given.k.shape[-1],
        width=given.v.shape[-1],
        groups=far.groups.size,
        heavy=given.positions.shape[-1],
        near=near,
        block=plan.block,
        reach=-1 if reach is None else reach,
        causal=int(plan.causal),
    )
    p, packed = laid.record, pack_groups(laid, far.groups, given.dtype)
    heavy = heavy_tiles(given, p.dim_pad, p.width_pad, p.heavy_pad)
    labels, squares = np.empty((heads, keys), np.int32), np.empty((heads, keys), given.dtype)
    constants = np.zeros(max(p.dim_pad, p.width_pad), given.dtype), np.arange(p.groups, dtype=np.int32)
    own = np.arange(math.prod(far.groups.batch)).reshape(far.groups.batch)
    sets = np.broadcast_to(own, given.batch).ravel()
    queries = Held(Queries(*query_heads(q, out, logs, given.batch)))
    delta = keys - q.shape[-2] if plan.causal else 0
    base = tasks(
        p,
        given.batch,
        given.dtype,
        given.k,
        given.v,
        given.mask,
        numbers=address(packed.numbers),
        zeros=address(constants[0]),
        every=address(constants[1]),
        q_row=q.strides[-2],
        q_column=q.strides[-1],
        out_row=out.strides[-2],
        delta=delta,
        groups=queries.record.q.shape[1],
    )
    by_set = {name: getattr(packed, name) for name in ("drawn", "offset", "metric", "spread", "cross")}
    point(base, {name: array for name, array in by_set.items() if array is not None}, sets)
    by_head = dict(zip(("heavy_xt", "heavy_v", "heavy_term", "heavy_positions"), heavy, strict=True))
    point(base, {"labels": labels, "squares": squares} | by_head)
    arrays = (constants, q, out, logs)
    count = threads.thread_count()
    return Whole(laid, code, given, packed, heavy, queries, base, labels, squares, arrays, q.shape[-2], delta, count)


def _chunks(w: Whole, length: int) -> list[tuple[int, int]]:
    """Cut queries at blocks so that all threads have work; one span, even of nothing, if heads are enough."""
    heads, delta, size = len(w.base), w.delta, w.plan.block
    first, last = delta // size, max(length - 1 + delta, delta) // size + 1
    even = heads % w.threads == 0 or heads >= 4 * w.threads or not _worth_threads(w)
    count = 1 if w.threads == 1 or even else max(1, min(-(-4 * w.threads // heads), (last - first) // _CHUNK))
    step = -(-(last - first) // count)
    cuts = [0, *(min(max(block * size - delta, 0), length) for block in range(first + step, last, step)), length]
    return list(pairwise(cuts))


def _run(w: Whole) -> Any:
    """Run the pass; return the sums of the far keys after the last block of every head."""
    p, heads = w.plan, len(w.base)
    spans = _chunks(w, w.length)
    starts, ends = _bounds(w, spans, w.delta)
    cuts = sorted({0, w.keys, *starts, *ends, *_even_cuts(w)})
    needed = len(spans) > 1 or p.reach < 0 or any(end < w.keys for end in ends)
    pieces = np.zeros((len(cuts) - 1 if needed else 0, heads, p.groups, p.sums_row), w.given.dtype)

    at, step, piece_at = address(w.base), w.base.itemsize, address(pieces) if needed else 0

    def first(head: int, piece: int) -> int:
        sums = piece_at + (piece * heads + head) * pieces[0, 0].nbytes if needed else 0
        own = cuts[piece], cuts[piece + 1]
        return block_schedule.label(w.laid.address, scratch(p, w.shared).address, at + head * step, *own, sums)

    count = w.threads if _worth_threads(w) else 1
    threads.run([partial(first, head, piece) for piece in range(len(cuts) - 1) for head in range(heads)], count)
    before, after = _sums(w, cuts, starts, ends, pieces)
    until = starts[-1] if p.reach < 0 or not p.causal else max((w.keys - 1) // p.block - p.reach, 0) * p.block
    chunks = np.repeat(w.base[None], len(spans), 0)
    size = p.groups * p.sums_row * p.element
    places = np.arange(len(spans) * heads).reshape(chunks.shape) * size
    chunks["before"], chunks["after"] = address(before) + places, address(after) + places if ends else 0
    chunks["absorbed"], chunks["until"][-1] = np.array(starts)[:, None], until
    counts = [(high - low) // p.block + 2 for low, high in spans]
    together = [math.isqrt(count - 1) + 1 for count in counts]
    chunks["together"] = np.array(together)[:, None]
    chunk_at, shelf_at = address(chunks), chunks["shelf"]

    def second(head: int, chunk: int) -> int:
        low, high = spans[chunk]
        shelf = np.empty((together[chunk] - (-counts[chunk] // together[chunk])) * size if ends else 0, np.uint8)
        shelf_at[chunk, head] = address(shelf)
        own = chunk_at + (chunk * heads + head) * step
        return block_schedule.blocks(
            w.laid.address, scratch(p, w.shared).address, own, w.queries.address, head, low, high
        )

    threads.run([partial(second, head, chunk) for chunk in range(len(spans)) for head in range(heads)], count)
    return before[-1]


def _worth_threads(w: Whole) -> bool:
    """Whether there is enough to do for handing work to other threads."""
    p = w.plan
    columns = p.groups + p.heavy + p.band_tile
    return (w.length * w.shared + w.keys) * len(w.base) * columns * (p.dim + p.width) > threads.SERIAL_WORK


def _bounds(w: Whole, spans: list[tuple[int, int]], delta: int) -> tuple[list[int], list[int]]:
    """Return up to where keys are far before each span, and from where they are far after it."""
    p = w.plan
    if p.reach < 0:
        return [w.keys] * len(spans), []
    blocks = [((low + delta) // p.block, (high - 1 + delta) // p.block) for low, high in spans]
    starts = [0 if i == 0 else min(max(first - p.reach, 0) * p.block, w.keys) for i, (first, _) in enumerate(blocks)]
    return starts, [] if p.causal else [min((last + p.reach + 1) * p.block, w.keys) for _, last in blocks]


def _even_cuts(w: Whole) -> list[int]:
    """Return where keys are cut so that all threads have some to label."""
    count = -(-2 * w.threads // max(len(w.base), 1)) if _worth_threads(w) else 1
    return [up(w.keys * i // count, TILE) for i in range(1, count) if up(w.keys * i // count, TILE) < w.keys]


def _sums(w: Whole, cuts: list[int], starts: list[int], ends: list[int], pieces: Any) -> tuple[Any, Any]:
    """Return the sums of the far keys before and after each span."""
    shape = (len(starts), len(w.base), w.plan.groups, w.plan.sums_row)
    before, after = np.zeros(shape, w.given.dtype), np.zeros(shape if ends else (0,), w.given.dtype)
    begun = _from_state(w)
    for i, start in enumerate(starts):
        if begun is not None:
            before[i] += begun
        for low, piece in zip(cuts, pieces, strict=False):
            if low < start:
                before[i] += piece
            if ends and low >= ends[i]:
                after[i] += piece
    return before, after


def _from_state(w: Whole) -> Any:
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


def _to_state(w: Whole, sums: Any) -> State:
    """Undo `_from_state`."""
    p, batch = w.plan, w.given.batch
    tail = p.dim_pad + p.width_pad
    parts = (sums[..., : p.dim], sums[..., tail : tail + 1], sums[..., p.dim_pad : p.dim_pad + p.width])
    kv, z = np.concatenate(parts, -1), np.array(sums[..., tail + 1])
    shape = (*batch, p.groups)
    return State(kv.reshape(*shape, kv.shape[-1]), z.reshape(shape), np.zeros(shape, w.given.dtype))
