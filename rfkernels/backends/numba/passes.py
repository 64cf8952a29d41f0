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
from rfkernels.backends.numba.records import Held, rows_of
from rfkernels.backends.numba.schedule_records import Queries, Task
from rfkernels.features import Features
from rfkernels.state import State, merge_states

_PART_BYTES = 1 << 23
"""Memory for the sums of the backward half of a two-sided window, per thread."""

_NOWHERE = Held(Queries(*np.empty((4, 0, 0), np.int64)))

Runner = Callable[[], int]


@dataclass(eq=False)
class Heads:
    """All heads of a pass, and how many threads share it.

    Parameters
    ----------
    weights : list of int, (heads,)
        Addresses of packed features.
    tasks : array of Task, shape (heads,)
        What does not depend on the state that is read or written.
    queries : Held[Queries]
        Where queries are.
    alive : Any
        What addresses lie in.
    """

    layout: Layout
    features: Features
    weights: list[int]
    tasks: Any
    queries: Held[Queries]
    length: int
    keys: int
    shared: int
    threads: int
    alive: Any

    @property
    def count(self) -> int:
        """How many heads have keys of their own."""
        return len(self.tasks)


def heads(
    layout: Layout,
    features: Features,
    packed: PackedWeights,
    batch: tuple[int, ...],
    arrays: dict[str, Any],
    logs: tuple[Any, Any] | None,
) -> Heads:
    """Find the address of every head; arrays are q, out, k, v and mask, any of which may be missing."""
    k, v, q, out, mask = (arrays.get(name) for name in ("k", "v", "q", "out", "mask"))
    tasks = rows_of(Task, math.prod(batch))
    for name, x, own in (("k", k, 2), ("v", v, 2), ("mask", mask, 1)):
        if x is not None:
            tasks[name] = addresses(x, batch, own)
    for name, x in (("k", k), ("v", v), ("q", q)):
        if x is not None:
            tasks[f"{name}_row"], tasks[f"{name}_column"] = x.strides[-2:]
            tasks[f"{name}_plain"] = _plain(layout, features, name, x)
    queries, shared = _NOWHERE, 0
    if mask is not None:
        tasks["mask_row"] = mask.strides[-1]
    if q is not None and out is not None:
        tasks["out_row"] = out.strides[-2]
        queries = Held(Queries(*query_heads(q, out, logs, batch)))
        shared = queries.record.q.shape[1] if len(tasks) else 0
    tasks["groups"] = shared
    places = [x.address for x in packed.sets]
    if len(places) == 1:
        weights = places * len(tasks)
    else:
        sets = np.arange(len(places)).reshape(features.batch)
        weights = [places[i] for i in np.broadcast_to(sets, batch).ravel().tolist()]
    return Heads(
        layout=layout,
        features=features,
        weights=weights,
        tasks=tasks,
        queries=queries,
        length=0 if q is None else q.shape[-2],
        keys=0 if k is None else k.shape[-2],
        shared=shared,
        threads=threads.thread_count(),
        alive=(arrays, packed),
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
        self._sentinel = h.layout.sentinel if h.features.map.exponential else -math.inf

    def addresses(self) -> tuple[Any, Any, Any]:
        """Return where the sums and shifts of states lie, (slots, heads) each."""
        index = np.arange(self.state.z.shape[0] * self.state.z.shape[1]).reshape(self.state.z.shape[:2])
        kv, z, shift = (address(x) + index * (x[0, 0].nbytes if index.size else 0) for x in self.state)
        return kv, z, shift

    def seen(self) -> Any:
        """Return which states hold any key, (slots, heads)."""
        return (self.state.shift > self._sentinel / 2).any(-1)

    def last(self) -> State:
        """Return the states after the last chunk; copies, lest they keep those of all others."""
        return State(*(x[-1] if len(x) == 1 else x[-1].copy() for x in self.state))

    def scan(self) -> None:
        """Merge every slot with all before it."""
        for i in range(1, len(self.state.z)):
            before, own = (State(*(x[j] for x in self.state)) for j in (i - 1, i))
            for array, merged in zip(self.state, merge_states(before, own), strict=True):
                array[i] = merged


class Tasks:
    """Tasks of all heads on the states in slots; in reverse, of keys and rows read backwards."""

    def __init__(self, h: Heads, slots: Slots, reverse: bool = False) -> None:
        made = np.repeat(h.tasks[None], len(slots.state.z), 0)
        made["keys"] = h.keys
        made["kv"], made["z"], made["shift"] = slots.addresses()
        if reverse:
            for name in ("k", "v", "mask"):
                made[name] += np.where(made[name] == 0, 0, (h.keys - 1) * made[f"{name}_row"])
            for name in ("k_row", "v_row", "mask_row", "q_row", "out_row"):
                made[name] *= -1
        self._made, self._start, self._size = made, address(made), int(made.itemsize)

    def set(self, **fields: Any) -> None:
        """Set fields to numbers, or to arrays that broadcast to (slots, heads)."""
        for name, value in fields.items():
            self._made[name] = value

    def at(self, slot: int, head: int, **fields: int) -> int:
        """Return the address of a task, some of whose fields are set before."""
        for name, value in fields.items():
            self._made[name][slot, head] = value
        return self._start + (slot * len(self._made[0]) + head) * self._size


def worth_threads(h: Heads) -> bool:
    """Whether there is enough to do for handing work to other threads."""
    p = h.layout.plan
    return (h.length * h.shared + h.keys) * h.count * p.total * (p.dim + p.width) > threads.SERIAL_WORK


def _run(h: Heads, work: Sequence[Runner]) -> bool:
    return threads.run(work, h.threads if worth_threads(h) else 1) == 0


def _idle(h: Heads) -> bool:
    """Whether heads alone leave threads idle."""
    even = h.count % h.threads == 0 or h.count >= 4 * h.threads
    return h.threads > 1 and h.count > 0 and not even and worth_threads(h)


def chunk_count(h: Heads, length: int) -> int:
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


def cut(length: int, chunks: int, tile: int) -> list[tuple[int, int]]:
    """Cut a sequence into so many chunks of whole tiles, as alike as can be."""
    step = up(-(-length // chunks), tile)
    return list(pairwise([min(i * step, length) for i in range(chunks)] + [length]))


def absorbing(h: Heads, tasks: Tasks, ends: list[int], some: range | None = None) -> list[Runner]:
    """Return the work of writing to each slot the keys between its end and that of the slot before."""
    plan = h.layout.held.address

    def absorb(head: int, slot: int, low: int, high: int) -> int:
        return schedule.absorb(plan, h.weights[head], scratch(h.layout), tasks.at(slot, head), low, high)

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
        ends += [low + end for _, end in cut(high - low, chunk_count(h, high - low), h.layout.plan.tile)]
        first.append(len(ends) - 1)
    return ends, first


def write(h: Heads, state: State, empty: State) -> tuple[bool, State]:
    """Write all keys; return whether inputs were finite, and the state."""
    spans = cut(h.keys, chunk_count(h, h.keys), h.layout.plan.tile)
    slots = Slots(h, [state] + [empty] * (len(spans) - 1))
    fine = _run(h, absorbing(h, Tasks(h, slots), [high for _, high in spans]))
    slots.scan()
    return fine, slots.last()


def read(h: Heads, state: State) -> bool:
    """Let all queries read the state; return whether they were finite."""
    slots = Slots(h, [state])
    tasks, plan, queries = Tasks(h, slots), h.layout.held.address, h.queries.address
    tasks.set(seen=slots.seen())

    def emit(head: int, low: int, high: int) -> int:
        own = h.weights[head], scratch(h.layout), tasks.at(0, head)
        return schedule.emit(plan, *own, queries, head, low, high)

    spans = cut(h.length, chunk_count(h, h.length), h.layout.plan.tile)
    return _run(h, [partial(emit, head, *span) for span in spans for head in range(h.count)])


def causal(h: Heads, state: State, empty: State, window: int | None) -> tuple[bool, State]:
    """Run a causal pass; return whether inputs were finite, and the state of all keys but those in the window."""
    lag = window or 0
    delta = h.keys - h.length - lag
    spans = cut(h.length, _causal_chunks(h, h.length), h.layout.plan.tile)
    starts = [min(max(low + delta, 0), h.keys) for low, _ in spans]
    ends, first = _pieces(h, starts)
    slots = Slots(h, [state] + [empty] * (len(ends) - 1))
    tasks, plan, queries = Tasks(h, slots), h.layout.held.address, h.queries.address
    fine = _run(h, absorbing(h, tasks, ends))
    slots.scan()
    tasks.set(seen=slots.seen(), delta=delta)
    if lag:
        tasks.set(near=1, near_low=delta + 1, near_high=delta + lag + 1)

    def span(head: int, slot: int, low: int, high: int) -> int:
        own = h.weights[head], scratch(h.layout), tasks.at(slot, head)
        return schedule.span(plan, *own, queries, head, low, high)

    chunks = zip(first, spans, strict=True)
    work = [partial(span, head, slot, *bounds) for slot, bounds in chunks for head in range(h.count)]
    return fine and _run(h, work), slots.last()


def two_sided(h: Heads, state: State, empty: State, window: int) -> bool:
    """Run a bidirectional pass with a window; return whether inputs were finite.

    Each chunk of queries is read twice: backwards against the keys after the window, which leaves its sums in a buffer,
    then forwards against those before it, joining the buffer and the exact weights of the window.
    """
    spans, step = two_sided_spans(h)
    some = (range(first, min(first + step, h.count)) for first in range(0, h.count, step))
    return all(_two_sided(h, state, empty, window, spans, heads) for heads in some)


def two_sided_spans(h: Heads) -> tuple[list[tuple[int, int]], int]:
    """Cut queries that see both sides, so that memory is bounded; return also how many heads go together."""
    p = h.layout.plan
    row_bytes = h.shared * (p.width_pad + 2) * p.element
    chunks = max(_causal_chunks(h, h.length), -(-h.length * row_bytes // _PART_BYTES), 1)
    return cut(h.length, chunks, p.tile), max(h.count if chunks == 1 else h.threads, 1)


def _two_sided(h: Heads, state: State, empty: State, window: int, spans: list[tuple[int, int]], some: range) -> bool:
    p, last = h.layout.plan, len(spans) - 1
    before, after = (Slots(h, [first] + [empty] * last) for first in (state, empty))
    starts = [min(max(low - window, 0), h.keys) for low, _ in spans]
    ends = [min(max(h.keys - high - window, 0), h.keys) for _, high in reversed(spans)]
    forward, backward = Tasks(h, before), Tasks(h, after, reverse=True)
    fine = _run(h, absorbing(h, forward, starts, some) + absorbing(h, backward, ends, some))
    before.scan()
    after.scan()
    plan, queries = h.layout.held.address, h.queries.address
    lows, highs = (np.array(x)[:, None] for x in zip(*spans, strict=True))
    forward.set(part_mode=2, part_rows=highs - lows, delta=-window, seen=before.seen())
    forward.set(near=1, near_low=1 - window, near_high=window)
    turned = (highs - 1) * int(h.tasks["q_row"][0]), h.keys - highs - window
    q_start, delta = (x[::-1] for x in turned)
    backward.set(part_mode=1, part_rows=(highs - lows)[::-1], q_start=q_start, delta=delta, seen=after.seen())

    def span(head: int, index: int, low: int, high: int) -> int:
        buffer = np.empty(h.shared * (high - low) * (p.width_pad + 2), h.layout.dtype)
        own, part = (h.weights[head], scratch(h.layout)), address(buffer)
        task = backward.at(last - index, head, part=part)
        failed = schedule.span(plan, *own, task, queries, head, 0, high - low)
        task = forward.at(index, head, part=part)
        return failed or schedule.span(plan, *own, task, queries, head, low, high)

    return fine and _run(h, [partial(span, head, i, *bounds) for i, bounds in enumerate(spans) for head in some])
