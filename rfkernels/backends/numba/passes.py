"""Split a pass over heads and chunks of the sequence, and run it on threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from rfkernels.backends.numba import schedule, threads
from rfkernels.backends.numba.packing import Layout, PackedWeights, address, addresses, scratch, up
from rfkernels.backends.numba.schedule_records import Group, Task
from rfkernels.features import Features
from rfkernels.state import State, merge_states

_PART_BYTES = 1 << 23
"""Memory for the sums of the backward half of a two-sided window, per thread."""

Runner = Callable[[], int]


@dataclass
class Heads:
    """Addresses and strides of all heads of a pass, and how many threads share it."""

    layout: Layout
    features: Features
    weights: PackedWeights
    feature_set: list[int]
    k: list[int]
    v: list[int]
    mask: list[int]
    groups: list[Group]
    strides: dict[str, int]
    plain: dict[str, int]
    length: int
    keys: int
    shared: int
    threads: int
    arrays: dict[str, Any]

    @property
    def count(self) -> int:
        """How many heads have keys of their own."""
        return len(self.k)

    def own_weights(self, head: int) -> Any:
        """Return the packed features of a head."""
        return self.weights.sets[self.feature_set[head]]


def heads(
    layout: Layout,
    features: Features,
    weights: PackedWeights,
    batch: tuple[int, ...],
    arrays: dict[str, Any],
    logs: tuple[Any, Any] | None,
) -> Heads:
    """Find the address of every head; arrays are q, out, k, v and mask, any of which may be missing."""
    k, v, q, out, mask = (arrays.get(name) for name in ("k", "v", "q", "out", "mask"))
    strides = dict.fromkeys(("k_row", "k_column", "v_row", "v_column", "q_row", "q_column", "out_row", "mask_row"), 0)
    for name, x in (("k", k), ("v", v), ("q", q)):
        if x is not None:
            strides |= {f"{name}_row": x.strides[-2], f"{name}_column": x.strides[-1]}
    count = math.prod(batch)
    groups: list[Group] = []
    if mask is not None:
        strides["mask_row"] = mask.strides[-1]
    if q is not None and out is not None:
        strides["out_row"] = out.strides[-2]
        groups = [Group(*own) for own in zip(*query_heads(q, out, logs, batch), strict=True)]
    sets = np.arange(math.prod(features.batch)).reshape(features.batch)
    found = [[0] * count if x is None else addresses(x, batch, own) for x, own in ((k, 2), (v, 2), (mask, 1))]
    return Heads(
        layout=layout,
        features=features,
        weights=weights,
        feature_set=np.broadcast_to(sets, batch).ravel().tolist(),
        k=found[0],
        v=found[1],
        mask=found[2],
        groups=groups,
        strides=strides,
        plain={f"{name}_plain": _plain(layout, features, name, x) for name, x in (("q", q), ("k", k), ("v", v))},
        length=0 if q is None else q.shape[-2],
        keys=0 if k is None else k.shape[-2],
        shared=len(groups[0].q) if groups else 0,
        threads=threads.thread_count(),
        arrays=arrays,
    )


def _plain(layout: Layout, features: Features, name: str, x: Any) -> int:
    """Whether tiles of an array can be read where they lie: full rows of elements, one after the other."""
    p, side = layout.plan, features.query if name == "q" else features.key
    if x is None or x.dtype != layout.dtype or (name != "v" and side.centre is not None):
        return 0
    width, wanted = x.shape[-1], p.width_pad if name == "v" else p.dim_pad
    rows = width == wanted and x.strides[-2:] == (width * p.element, p.element)
    return int(rows and x.flags.aligned)


def query_heads(q: Any, out: Any, logs: tuple[Any, Any] | None, batch: tuple[int, ...]) -> tuple[Any, Any, Any, Any]:
    """Return addresses of queries, outputs, denominators and shifts, by head of keys and query head that shares it."""
    outer = out.shape[:-2]
    own = (1,) * (len(outer) - len(batch)) + batch
    shared = [axis for axis, size in enumerate(own) if size == 1 and outer[axis] != 1]
    order = [axis for axis in range(len(outer)) if axis not in shared] + shared

    def grouped(x: Any, tail: int) -> Any:
        at = np.array(addresses(x, outer, tail), np.int64).reshape(outer)
        return np.ascontiguousarray(
            at.transpose(order).reshape(math.prod(batch), math.prod(outer[axis] for axis in shared))
        )

    q_at, out_at = grouped(q, 2), grouped(out, 2)
    below, shift = (grouped(x, 1) for x in logs) if logs else (np.zeros_like(q_at),) * 2
    return q_at, out_at, below, shift


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
    nothing = denominator == 0
    log = np.log(np.where(nothing, 1, np.abs(denominator))) + shift
    return np.where(nothing, -np.inf, log).astype(denominator.dtype), np.sign(denominator)


class Slots:
    """States of all heads, one for each chunk of the sequence; arrays are (slots, heads, ...)."""

    def __init__(self, h: Heads, states: list[State]) -> None:
        single = len(states) == 1 and all(x.flags.writeable for x in states[0])
        stacked = (x[None] for x in states[0]) if single else (np.stack(x) for x in zip(*states, strict=True))
        self.state = State(*stacked)
        self._at = [(address(x), x[0, 0].nbytes if x[0].size else 0) for x in self.state]
        self._heads = self.state.z.shape[1]
        self._sentinel = h.layout.sentinel if h.features.map.exponential else -math.inf

    def addresses(self, slot: int, head: int) -> tuple[int, int, int]:
        """Return where the sums and shifts of one state lie."""
        index = slot * self._heads + head
        kv, z, shift = (start + index * size for start, size in self._at)
        return kv, z, shift

    def seen(self) -> list[list[bool]]:
        """Return which states hold any key."""
        return (self.state.shift > self._sentinel / 2).any(-1).tolist()  # type: ignore[no-any-return]

    def last(self) -> State:
        """Return the states after the last chunk."""
        return State(*(x[-1] for x in self.state))

    def scan(self) -> None:
        """Merge every slot with all before it."""
        for i in range(1, len(self.state.z)):
            before, own = (State(*(x[j] for x in self.state)) for j in (i - 1, i))
            for array, merged in zip(self.state, merge_states(before, own), strict=True):
                array[i] = merged


def _task(h: Heads, slots: Slots, slot: int, head: int, changes: dict[str, int], reverse: bool = False) -> Task:
    """Return the task of one head on the state in a slot; in reverse, of keys and rows read backwards."""
    s, row = h.strides, -1 if reverse else 1
    last = h.keys - 1 if reverse else 0
    kv, z, shift = slots.addresses(slot, head)
    return Task(
        k=h.k[head] + last * s["k_row"],
        k_row=row * s["k_row"],
        k_column=s["k_column"],
        v=h.v[head] + last * s["v_row"],
        v_row=row * s["v_row"],
        v_column=s["v_column"],
        mask=h.mask[head] + last * s["mask_row"] if h.mask[head] else 0,
        mask_row=row * s["mask_row"],
        q_row=row * s["q_row"],
        q_column=s["q_column"],
        out_row=row * s["out_row"],
        keys=h.keys,
        kv=kv,
        z=z,
        shift=shift,
        seen=changes.get("seen", 0),
        delta=changes.get("delta", 0),
        near=changes.get("near", 0),
        near_low=changes.get("near_low", 0),
        near_high=changes.get("near_high", 0),
        groups=h.shared,
        part=changes.get("part", 0),
        part_rows=changes.get("part_rows", 0),
        part_mode=changes.get("part_mode", 0),
        **h.plain,
    )


def worth_threads(h: Heads) -> bool:
    """Whether there is enough to do for handing work to other threads."""
    p = h.layout.plan
    return (h.length * h.shared + h.keys) * h.count * p.total * (p.dim + p.width) > threads.SERIAL_WORK


def _run(h: Heads, work: Sequence[Runner]) -> bool:
    return threads.run(work, h.threads if worth_threads(h) else 1) == 0


def _idle(h: Heads) -> bool:
    """Whether heads alone leave threads idle."""
    even = h.count % h.threads == 0 or h.count >= 4 * h.threads
    return h.threads > 1 and h.count > 0 and not even


def _chunks(h: Heads, length: int) -> int:
    """Return how many chunks a sequence is cut into so that all threads have work, where cutting costs nothing."""
    return max(1, min(-(-4 * h.threads // h.count), length // (4 * h.layout.plan.tile))) if _idle(h) else 1


def _causal_chunks(h: Heads, length: int) -> int:
    """Return how many chunks a causal pass is cut into.

    The keys before each chunk are written once more, half the work of a pass over them: by all threads together, while
    the chunks themselves are taken whole.
    """
    if not _idle(h):
        return 1

    def cost(chunks: int) -> float:
        return h.count * (chunks - 1) / (2 * h.threads) / chunks + -(-h.count * chunks // h.threads) / chunks

    most = max(1, min(4 * h.threads, length // (4 * h.layout.plan.tile)))
    return min(range(1, most + 1), key=cost)


def _spans(length: int, chunks: int, tile: int) -> list[tuple[int, int]]:
    step = up(-(-length // chunks), tile)
    return list(pairwise([min(i * step, length) for i in range(chunks)] + [length]))


def _absorbing(
    h: Heads, slots: Slots, ends: list[int], reverse: bool = False, some: range | None = None
) -> list[Runner]:
    """Return the work of writing to each slot the keys between its end and that of the slot before."""

    def absorb(head: int, slot: int, low: int, high: int) -> int:
        task = _task(h, slots, slot, head, {}, reverse)
        return schedule.absorb(h.layout.plan, h.own_weights(head), scratch(h.layout), task, low, high)

    return [
        partial(absorb, head, slot, low, high)
        for slot, (low, high) in enumerate(pairwise([0, *ends]))
        for head in some or range(h.count)
        if low < high
    ]


def _pieces(h: Heads, starts: list[int]) -> tuple[list[int], list[int]]:
    """Cut the keys before each start so that all threads can write them.

    Returns where each piece ends, and after which piece each start comes.
    """
    ends: list[int] = []
    first: list[int] = []
    for low, high in pairwise([0, *starts]):
        ends += [low + end for _, end in _spans(high - low, _chunks(h, high - low), h.layout.plan.tile)]
        first.append(len(ends) - 1)
    return ends, first


def write(h: Heads, state: State, empty: State) -> tuple[bool, State]:
    """Write all keys; return whether inputs were finite, and the state."""
    spans = _spans(h.keys, _chunks(h, h.keys), h.layout.plan.tile)
    slots = Slots(h, [state] + [empty] * (len(spans) - 1))
    fine = _run(h, _absorbing(h, slots, [high for _, high in spans]))
    slots.scan()
    return fine, slots.last()


def read(h: Heads, state: State) -> bool:
    """Let all queries read the state; return whether they were finite."""
    slots = Slots(h, [state])
    seen = slots.seen()[0]

    def emit(head: int, low: int, high: int) -> int:
        task = _task(h, slots, 0, head, {"seen": seen[head]})
        p, s = h.layout.plan, scratch(h.layout)
        return schedule.emit(p, h.own_weights(head), s, task, h.groups[head], low, high)

    spans = _spans(h.length, _chunks(h, h.length), h.layout.plan.tile)
    return _run(h, [partial(emit, head, *span) for span in spans for head in range(h.count)])


def causal(h: Heads, state: State, empty: State, window: int | None) -> tuple[bool, State]:
    """Run a causal pass; return whether inputs were finite, and the state of all keys but those in the window."""
    lag = window or 0
    delta = h.keys - h.length - lag
    spans = _spans(h.length, _causal_chunks(h, h.length), h.layout.plan.tile)
    starts = [min(max(low + delta, 0), h.keys) for low, _ in spans]
    ends, first = _pieces(h, starts)
    slots = Slots(h, [state] + [empty] * (len(ends) - 1))
    fine = _run(h, _absorbing(h, slots, ends))
    slots.scan()
    seen = slots.seen()
    near = {"near": int(lag > 0), "near_low": delta + 1, "near_high": delta + lag + 1, "delta": delta}

    def span(head: int, slot: int, low: int, high: int) -> int:
        task = _task(h, slots, slot, head, near | {"seen": seen[slot][head]})
        p, s = h.layout.plan, scratch(h.layout)
        return schedule.span(p, h.own_weights(head), s, task, h.groups[head], low, high)

    chunks = zip(first, spans, strict=True)
    work = [partial(span, head, slot, *bounds) for slot, bounds in chunks for head in range(h.count)]
    return fine and _run(h, work), slots.last()


def two_sided(h: Heads, state: State, empty: State, window: int) -> bool:
    """Run a bidirectional pass with a window; return whether inputs were finite.

    Each chunk of queries is read twice: backwards against the keys after the window, which leaves its sums in a buffer,
    then forwards against those before it, joining the buffer and the exact weights of the window.
    """
    p = h.layout.plan
    row_bytes = h.shared * (p.width_pad + 2) * p.element
    chunks = max(_causal_chunks(h, h.length), -(-h.length * row_bytes // _PART_BYTES), 1)
    spans = _spans(h.length, chunks, p.tile)
    step = h.count if chunks == 1 else h.threads
    some = (range(first, min(first + step, h.count)) for first in range(0, h.count, max(step, 1)))
    return all(_two_sided(h, state, empty, window, spans, heads) for heads in some)


def _two_sided(h: Heads, state: State, empty: State, window: int, spans: list[tuple[int, int]], some: range) -> bool:
    p, last = h.layout.plan, len(spans) - 1
    before, after = (Slots(h, [first] + [empty] * last) for first in (state, empty))
    starts = [min(max(low - window, 0), h.keys) for low, _ in spans]
    ends = [min(max(h.keys - high - window, 0), h.keys) for _, high in reversed(spans)]
    fine = _run(h, _absorbing(h, before, starts, some=some) + _absorbing(h, after, ends, True, some))
    before.scan()
    after.scan()
    seen_before, seen_after = before.seen(), after.seen()

    def span(head: int, index: int, low: int, high: int) -> int:
        rows = high - low
        buffer = np.empty(h.shared * rows * (p.width_pad + 2), h.layout.dtype)
        part = {"part": address(buffer), "part_rows": rows}
        s, w, group = scratch(h.layout), h.own_weights(head), h.groups[head]
        backward = {"part_mode": 1, "delta": h.keys - high - window, "seen": seen_after[last - index][head]}
        task = _task(h, after, last - index, head, part | backward, reverse=True)
        turned = group._replace(q=group.q + (high - 1) * h.strides["q_row"])
        failed = schedule.span(p, w, s, task, turned, 0, rows)
        near = {"near": 1, "near_low": 1 - window, "near_high": window}
        forward = {"part_mode": 2, "delta": -window, "seen": seen_before[index][head]}
        task = _task(h, before, index, head, part | near | forward)
        return failed or schedule.span(p, w, s, task, group, low, high)

    return fine and _run(h, [partial(span, head, i, *bounds) for i, bounds in enumerate(spans) for head in some])
