"""Passes over blocks: near and heavy keys exact, groups of order 0 for all others, on threads."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from rfkernels._arrays import accumulator
from rfkernels.backends import Pass, numpy
from rfkernels.backends.numba import block_schedule, far_features, merging, threads
from rfkernels.backends.numba.block_inputs import After, Inputs, begin, finish, pack_groups
from rfkernels.backends.numba.block_layout import scratch
from rfkernels.backends.numba.heads import log_normalizers, outputs
from rfkernels.backends.numba.packing import TILE, address, point, up
from rfkernels.backends.numba.prepared import Prepared, from_state, prepare, to_state, worth_threads
from rfkernels.grouping import BlockState, Far, Groups, Plan
from rfkernels.grouping.schedule import Rows

_CHUNK = 16
"""Blocks in a chunk at least."""


def attend(rows: Rows, far: Far, plan: Plan, state: BlockState | None, dtype: Any) -> Pass:
    """Run a pass over blocks, the way it is specified where there are features in groups."""
    if far.features is not None and far.groups is not None:
        return numpy.blocks(rows, far, plan, state, dtype)
    sums = accumulator(np, rows.q, rows.k, rows.v, None if state is None else state.keys)
    given = begin(rows, far, plan, state, sums)
    outer = np.broadcast_shapes(rows.q.shape[:-2], given.batch)
    out, logs = outputs(outer, rows.q.shape[-2], rows.v.shape[-1], dtype, sums, plan.full)
    after = _after(given, far, plan, rows.q, out, logs)
    log, sign = log_normalizers(logs)
    wanted = plan.causal and plan.full
    return Pass(out, log, sign, finish(given, plan, after) if wanted and after is not None else None)


def _after(given: Inputs, far: Far, plan: Plan, q: Any, out: Any, logs: Any) -> After | None:
    """Run a pass; return what a state after it holds, if it is causal."""
    if far.features is not None:
        return far_features.run(given, far.features, far, plan, q, out, logs)
    if far.groups is None:
        return merging.run(prepare(given, plan.merged, plan, q, out, logs), far.scale)
    whole = _with(prepare(given, far.groups.size, plan, q, out, logs), far.groups)
    return After(to_state(whole, _run(whole)))


def _with(w: Prepared, groups: Groups) -> Prepared:
    """Tell tasks where groups are, and where to note the group of each key and kᵀ M k."""
    packed, shape = pack_groups(w.laid, groups, w.given.dtype), (len(w.base), w.keys)
    labels, squares = np.empty(shape, np.int32), np.empty(shape, w.given.dtype)
    own = np.arange(math.prod(groups.batch)).reshape(groups.batch)
    sets = np.broadcast_to(own, w.given.batch).ravel()
    by_set = {name: getattr(packed, name) for name in ("drawn", "offset", "metric", "spread", "cross")}
    point(w.base, {name: array for name, array in by_set.items() if array is not None}, sets)
    point(w.base, {"labels": labels, "squares": squares})
    w.base["numbers"] = address(packed.numbers)
    return replace(w, kept=(*w.kept, packed, labels, squares))


def _chunks(w: Prepared, length: int) -> list[tuple[int, int]]:
    """Cut queries at blocks so that all threads have work; one span, even of nothing, if heads are enough."""
    heads, delta, size = len(w.base), w.delta, w.plan.block
    first, last = delta // size, max(length - 1 + delta, delta) // size + 1
    even = heads % w.threads == 0 or heads >= 4 * w.threads or not worth_threads(w)
    count = 1 if w.threads == 1 or even else max(1, min(-(-4 * w.threads // heads), (last - first) // _CHUNK))
    step = -(-(last - first) // count)
    cuts = [0, *(min(max(block * size - delta, 0), length) for block in range(first + step, last, step)), length]
    return list(pairwise(cuts))


def _run(w: Prepared) -> Any:
    """Run the pass; return the sums of the far keys after the last block of every head."""
    p, heads = w.plan, len(w.base)
    spans = _chunks(w, w.length)
    starts, ends = _bounds(w, spans, w.delta)
    until = starts[-1] if p.reach < 0 or not p.causal else max((w.keys - 1) // p.block - p.reach, 0) * p.block
    labelled = until if p.causal and p.reach >= 0 else w.keys  # others stay exact, or are labelled when they leave
    cuts = sorted({0, labelled, *starts, *ends, *_even_cuts(w, labelled)})
    needed = len(spans) > 1 or p.reach < 0 or any(end < w.keys for end in ends)
    pieces = np.zeros((len(cuts) - 1 if needed else 0, heads, p.groups, p.sums_row), w.given.dtype)

    at, step, piece_at = address(w.base), w.base.itemsize, address(pieces) if needed else 0

    def first(head: int, piece: int) -> int:
        sums = piece_at + (piece * heads + head) * pieces[0, 0].nbytes if needed else 0
        own = cuts[piece], cuts[piece + 1]
        return block_schedule.label(w.laid.address, scratch(p, w.shared).address, at + head * step, *own, sums)

    count = w.threads if worth_threads(w) else 1
    threads.run([partial(first, head, piece) for piece in range(len(cuts) - 1) for head in range(heads)], count)
    before, after = _sums(w, cuts, starts, ends, pieces)
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
        return block_schedule.blocks(w.laid.address, scratch(p, w.shared).address, own, low, high)

    threads.run([partial(second, head, chunk) for chunk in range(len(spans)) for head in range(heads)], count)
    return before[-1]


def _bounds(w: Prepared, spans: list[tuple[int, int]], delta: int) -> tuple[list[int], list[int]]:
    """Return up to where keys are far before each span, and from where they are far after it."""
    p = w.plan
    if p.reach < 0:
        return [w.keys] * len(spans), []
    blocks = [((low + delta) // p.block, (high - 1 + delta) // p.block) for low, high in spans]
    starts = [0 if i == 0 else min(max(first - p.reach, 0) * p.block, w.keys) for i, (first, _) in enumerate(blocks)]
    return starts, [] if p.causal else [min((last + p.reach + 1) * p.block, w.keys) for _, last in blocks]


def _even_cuts(w: Prepared, keys: int) -> list[int]:
    """Return where keys are cut so that all threads have some to label."""
    count = -(-2 * w.threads // max(len(w.base), 1)) if worth_threads(w) else 1
    return [up(keys * i // count, TILE) for i in range(1, count) if up(keys * i // count, TILE) < keys]


def _sums(w: Prepared, cuts: list[int], starts: list[int], ends: list[int], pieces: Any) -> tuple[Any, Any]:
    """Return the sums of the far keys before and after each span."""
    shape = (len(starts), len(w.base), w.plan.groups, w.plan.sums_row)
    before, after = np.zeros(shape, w.given.dtype), np.zeros(shape if ends else (0,), w.given.dtype)
    begun = from_state(w)
    for i, start in enumerate(starts):
        if begun is not None:
            before[i] += begun
        for low, piece in zip(cuts, pieces, strict=False):
            if low < start:
                before[i] += piece
            if ends and low >= ends[i]:
                after[i] += piece
    return before, after
