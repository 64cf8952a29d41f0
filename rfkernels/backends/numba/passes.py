"""Split a pass over heads and chunks of the sequence, and run it on threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from rfkernels.backends.numba import schedule, threads
from rfkernels.backends.numba.packing import Layout, PackedWeights, addresses, scratch, up
from rfkernels.backends.numba.schedule import Group, Task
from rfkernels.features import Features
from rfkernels.state import State, merge_states

_SERIAL_WORK = 1 << 21
"""Multiplications below which handing work to other threads costs more than it saves."""

_PART_BYTES = 1 << 23
"""Memory for the sums of the backward half of a two-sided window, per thread."""


@dataclass
class Heads:
    """Addresses and strides of all heads of a pass, and how it is shared among threads."""

    layout: Layout
    features: Features
    weights: PackedWeights
    feature_set: Any
    k: Any
    v: Any
    mask: Any
    q: Any
    out: Any
    denominator: Any
    shift: Any
    strides: dict[str, int]
    length: int
    keys: int
    threads: int

    @property
    def count(self) -> int:
        """How many heads have keys of their own."""
        return len(self.k)

    @property
    def groups(self) -> int:
        """How many query heads share the keys of one."""
        return int(self.q.shape[1])


def heads(
    layout: Layout,
    features: Features,
    weights: PackedWeights,
    batch: tuple[int, ...],
    arrays: dict[str, Any],
    logs: tuple[Any, Any] | None,
) -> Heads:
    """Find the address of every head; arrays are q, out, k, v and mask, of which q and out may be None."""
    k, v, q, out, mask = (arrays.get(name) for name in ("k", "v", "q", "out", "mask"))
    strides = {"mask_row": 0}
    for name, x in (("k", k), ("v", v), ("q", q)):
        if x is not None:
            strides |= {f"{name}_row": x.strides[-2], f"{name}_column": x.strides[-1]}
    if mask is not None:
        strides["mask_row"] = mask.strides[-1]
    none = np.zeros(batch, np.int64)
    q_at = out_at = below = top = np.zeros((math.prod(batch), 0), np.int64)
    length = 0
    if q is not None and out is not None:
        outer, length = out.shape[:-2], q.shape[-2]
        q_at, out_at = (_grouped(addresses(x, outer, 2), batch) for x in (q, out))
        below, top = (_grouped(addresses(x, outer, 1), batch) for x in logs) if logs else (out_at * 0, out_at * 0)
        strides["out_row"] = out.strides[-2]
    sets = np.arange(math.prod(features.batch), dtype=np.int64).reshape(features.batch)
    return Heads(
        layout=layout,
        features=features,
        weights=weights,
        feature_set=np.broadcast_to(sets, batch).reshape(-1),
        k=(none if k is None else addresses(k, batch, 2)).reshape(-1),
        v=(none if v is None else addresses(v, batch, 2)).reshape(-1),
        mask=(none if mask is None else addresses(mask, batch, 1)).reshape(-1),
        q=q_at,
        out=out_at,
        denominator=below,
        shift=top,
        strides=strides,
        length=length,
        keys=0 if k is None else k.shape[-2],
        threads=threads.thread_count(),
    )


def _grouped(at: Any, batch: tuple[int, ...]) -> Any:
    """Reorder addresses of query heads as (heads with keys of their own, queries sharing them)."""
    own = (1,) * (at.ndim - len(batch)) + batch
    shared = [axis for axis in range(at.ndim) if own[axis] == 1 and at.shape[axis] != 1]
    order = [axis for axis in range(at.ndim) if axis not in shared] + shared
    return np.ascontiguousarray(at.transpose(order).reshape(math.prod(batch), -1))


def task(h: Heads, head: int, state: State, slot: int, changes: dict[str, int], reverse: bool = False) -> Task:
    """Return the task of one head on the state in `slot`; in reverse, of keys and rows read backwards."""
    s, size = h.strides, h.layout.plan.element
    keys, row = h.keys - 1, -1 if reverse else 1
    start = {name: keys * s.get(f"{name}_row", 0) if reverse else 0 for name in ("k", "v", "mask")}
    shift = state.shift[slot]
    empty = h.features.map.exponential and not (shift > h.layout.sentinel / 2).any()
    fields = {
        "k": h.k[head] + start["k"],
        "k_row": row * s.get("k_row", 0),
        "k_column": s.get("k_column", 0),
        "v": h.v[head] + start["v"],
        "v_row": row * s.get("v_row", 0),
        "v_column": s.get("v_column", 0),
        "mask": h.mask[head] + start["mask"] if h.mask[head] else 0,
        "mask_row": row * s["mask_row"],
        "q_row": row * s.get("q_row", 0),
        "q_column": s.get("q_column", size),
        "out_row": row * s.get("out_row", 0),
        "keys": h.keys,
        "kv": state.kv[slot].ctypes.data,
        "z": state.z[slot].ctypes.data,
        "shift": shift.ctypes.data,
        "seen": int(not empty),
        "delta": 0,
        "near": 0,
        "near_low": 0,
        "near_high": 0,
        "groups": h.groups,
        "part": 0,
        "part_rows": 0,
        "part_mode": 0,
    }
    return Task(**{name: int(value) for name, value in (fields | changes).items()})


def group(h: Heads, head: int, first_row: int = 0) -> Group:
    """Return the addresses of the query heads of one head, with `first_row` as row 0."""
    q = h.q[head] + first_row * h.strides["q_row"]
    return Group(q, h.out[head], h.denominator[head], h.shift[head])


Runner = Callable[[], int]


def absorbing(h: Heads, head: int, state: State, slot: int, low: int, high: int, reverse: bool = False) -> Runner:
    """Return the work of writing keys low <= s < high to a slot."""

    def work() -> int:
        given = task(h, head, state, slot, {}, reverse)
        return schedule.absorb(h.layout.plan, _weights(h, head), scratch(h.layout), given, low, high)

    return work


def _weights(h: Heads, head: int) -> Any:
    return h.weights.sets[h.feature_set[head]]


def _run(h: Heads, work: list[Runner]) -> bool:
    p = h.layout.plan
    size = (h.length * h.groups + h.keys) * h.count * p.total * (p.dim + p.width)
    return threads.run(work, h.threads if size > _SERIAL_WORK else 1) == 0


def _chunks(h: Heads, length: int, cheap: bool) -> int:
    """Return how many chunks the sequence is cut into so that all threads have work.

    Cutting a causal pass costs another reading of the keys, so it is cut only where heads alone leave threads idle.
    """
    most = max(1, length // (4 * h.layout.plan.tile))
    even = h.count % h.threads == 0 or h.count >= 4 * h.threads
    if h.threads == 1 or even or h.count == 0:
        return 1
    wanted = -(-4 * h.threads // h.count) if cheap else -(-2 * h.threads // h.count)
    return min(wanted, most)


def _bounds(length: int, chunks: int, tile: int) -> list[int]:
    step = up(-(-length // chunks), tile)
    return [min(i * step, length) for i in range(chunks)] + [length]


def _slots(state: State, more: int, like: State) -> State:
    """Return arrays of `more` + 1 slots per head: the state, then empty ones like `like`."""
    parts = [(given, np.repeat(empty[None], more, 0)) for given, empty in zip(state, like, strict=True)]
    return State(*(np.concatenate([given[None], empties]) for given, empties in parts))


def _slot(state: State, index: int) -> State:
    return State(state.kv[index], state.z[index], state.shift[index])


def _put(state: State, index: int, value: State) -> None:
    for array, new in zip(state, value, strict=True):
        array[index] = new


def _scan(state: State) -> None:
    """Merge every slot with all before it."""
    for i in range(1, len(state.z)):
        _put(state, i, merge_states(_slot(state, i - 1), _slot(state, i)))


def write(h: Heads, state: State, empty: State) -> tuple[bool, State]:
    """Write all keys; return whether inputs were finite, and the state."""
    bounds = _bounds(h.keys, _chunks(h, h.keys, cheap=True), h.layout.plan.tile)
    slots = _slots(state, len(bounds) - 2, empty)
    work = [
        absorbing(h, head, _slot(slots, i), head, low, high)
        for i, (low, high) in enumerate(pairwise(bounds))
        for head in range(h.count)
    ]
    fine = _run(h, work)
    _scan(slots)
    return fine, _slot(slots, -1)


def read(h: Heads, state: State) -> bool:
    """Let all queries read the state; return whether they were finite."""
    bounds = _bounds(h.length, _chunks(h, h.length, cheap=True), h.layout.plan.tile)

    def emitting(head: int, low: int, high: int) -> int:
        given = task(h, head, state, head, {})
        p, s = h.layout.plan, scratch(h.layout)
        return schedule.emit(p, _weights(h, head), s, given, group(h, head), low, high)

    return _run(h, [partial(emitting, head, *span) for span in pairwise(bounds) for head in range(h.count)])


def causal(h: Heads, state: State, empty: State, window: int | None) -> tuple[bool, State]:
    """Run a causal pass; return whether inputs were finite, and the state of all keys but those in the window."""
    lag = window or 0
    delta = h.keys - h.length - lag
    bounds = _bounds(h.length, _chunks(h, h.length, cheap=False), h.layout.plan.tile)
    slots = _slots(state, len(bounds) - 2, empty)
    ends = [min(max(low + delta, 0), h.keys) for low in bounds[:-1]]
    fine = _run(h, _prefixes(h, slots, ends))
    _scan(slots)
    near = {"near": int(lag > 0), "near_low": delta + 1, "near_high": delta + lag + 1, "delta": delta}

    def spanning(head: int, index: int) -> int:
        given = task(h, head, _slot(slots, index), head, near)
        p, s, w = h.layout.plan, scratch(h.layout), _weights(h, head)
        return schedule.span(p, w, s, given, group(h, head), bounds[index], bounds[index + 1])

    chunks = range(len(bounds) - 1)
    fine = fine and _run(h, [partial(spanning, head, i) for i in chunks for head in range(h.count)])
    return fine, _slot(slots, -1)


def _prefixes(
    h: Heads, slots: State, ends: list[int], reverse: bool = False, only: range | None = None
) -> list[Runner]:
    """Return the work of writing to each slot the keys between its end and that of the slot before."""
    return [
        absorbing(h, head, _slot(slots, i), head, low, high, reverse)
        for i, (low, high) in enumerate(pairwise([0, *ends]))
        for head in only or range(h.count)
        if low < high
    ]


def two_sided(h: Heads, state: State, empty: State, window: int) -> bool:
    """Run a bidirectional pass with a window; return whether inputs were finite.

    Each chunk of queries is read twice: backwards against the keys after the window, which leaves its sums in a buffer,
    then forwards against those before it, joining the buffer and the exact weights of the window.
    """
    p = h.layout.plan
    row_bytes = h.groups * (p.width_pad + 2) * p.element
    chunks = max(_chunks(h, h.length, cheap=False), -(-h.length * row_bytes // _PART_BYTES))
    bounds = _bounds(h.length, max(chunks, 1), p.tile)
    fine = True
    step = h.count if chunks == 1 else max(1, h.threads)
    for first in range(0, h.count, step):
        some = range(first, min(first + step, h.count))
        fine = fine and _two_sided(h, state, empty, window, bounds, some)
    return fine


def _two_sided(h: Heads, state: State, empty: State, window: int, bounds: list[int], some: range) -> bool:
    p, spans = h.layout.plan, list(pairwise(bounds))
    before = _slots(state, len(spans) - 1, empty)
    after = _slots(empty, len(spans) - 1, empty)
    starts = [min(max(low - window, 0), h.keys) for low, _ in spans]
    ends = [min(max(h.keys - high - window, 0), h.keys) for _, high in reversed(spans)]
    work = _prefixes(h, before, starts, only=some) + _prefixes(h, after, ends, reverse=True, only=some)
    fine = _run(h, work)
    _scan(before)
    _scan(after)

    def spanning(head: int, index: int) -> int:
        low, high = spans[index]
        rows = high - low
        buffer = np.empty(h.groups * rows * (p.width_pad + 2), h.layout.dtype)
        part = {"part": buffer.ctypes.data, "part_rows": rows}
        s, w = scratch(h.layout), _weights(h, head)
        backward = {"part_mode": 1, "delta": h.keys - high - window}
        behind = task(h, head, _slot(after, len(spans) - 1 - index), head, backward | part, reverse=True)
        failed = schedule.span(p, w, s, behind, group(h, head, high - 1), 0, rows)
        near = {"near": 1, "near_low": 1 - window, "near_high": window, "delta": -window}
        ahead = task(h, head, _slot(before, index), head, {"part_mode": 2} | part | near)
        return failed or schedule.span(p, w, s, ahead, group(h, head), low, high)

    return fine and _run(h, [partial(spanning, head, i) for i in range(len(spans)) for head in some])
