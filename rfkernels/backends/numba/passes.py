"""Split a pass over heads and chunks of the sequence, and run it on threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from rfkernels.backends.numba import schedule, threads
from rfkernels.backends.numba.heads import Heads
from rfkernels.backends.numba.internal import lowest
from rfkernels.backends.numba.packing import address, kept_by_shape, scratch, up
from rfkernels.backends.numba.records import named, rows_of, words, words_of
from rfkernels.backends.numba.schedule_records import FIELDS, Task
from rfkernels.state import State, merged

_PART_BYTES = 1 << 23
"""Memory for the sums of the backward half of a two-sided window, per thread."""

Runner = Callable[[], int]


class Slots:
    """States of all heads, one for each of so many chunks of the sequence; arrays are (slots, heads, ...).

    The first is `start`, which becomes theirs if it is the only one, and the others hold no keys; nor does the first
    if it is None.
    """

    def __init__(self, h: Heads, start: State | None, count: int = 1) -> None:
        if start is not None and count == 1:
            self.state = State(*(x[None] for x in start))
            return
        p, shape = h.layout.plan, (count, h.count, h.layout.plan.total)
        kv, z = np.zeros((*shape, p.width_pad), h.layout.dtype), np.zeros(shape, h.layout.dtype)
        self.state = State(kv, z, np.full(shape, lowest(h.layout, h.features), h.layout.dtype))
        if start is not None:
            for array, own in zip(self.state, start, strict=True):
                array[0] = own

    def last(self) -> State:
        """Return the states after the last chunk; copies, lest they keep those of all others."""
        return State(*(x[-1] if len(x) == 1 else x[-1].copy() for x in self.state))

    def scan(self) -> None:
        """Merge every slot with all before it."""
        for i in range(1, len(self.state.z)):
            before, own = (State(*(x[j] for x in self.state)) for j in (i - 1, i))
            for array, both in zip(self.state, merged(before, own), strict=True):
                array[i] = both


class Tasks:
    """Tasks of all heads on the states in slots, or on none; in reverse, of keys and rows read backwards."""

    def __init__(self, h: Heads, slots: Slots | None = None, reverse: bool = False) -> None:
        if slots is None:
            made = h.tasks[None].copy()
        else:
            state = slots.state
            own = words(Task, {name: address(x) for name, x in state._asdict().items()})
            made = h.tasks + (own + _places_in(*state.z.shape[:2], tuple(x.strides[1] for x in state)))
        if reverse:
            self._reverse(named(Task, made), h.keys - 1)
        self._made, self._start, self._size = made, address(made), int(made.strides[0])
        self._alive = h, slots

    @staticmethod
    def _reverse(made: Any, last: int) -> None:
        for name in ("k", "v", "mask"):
            made[name] += np.where(made[name] == 0, 0, last * made[f"{name}_row"])
        for name in ("k_row", "v_row", "mask_row", "q_row", "out_row"):
            made[name] *= -1

    def set(self, **fields: Any) -> None:
        """Set fields to numbers, or to arrays that broadcast to (slots, heads)."""
        for name, value in fields.items():
            self._made[..., FIELDS[name]] = value

    def at(self, slot: int) -> int:
        """Return the address of the tasks on the states in a slot, those of all heads one after the other."""
        return self._start + slot * self._size

    def put(self, slot: int, head: int, part: int) -> None:
        """Tell a task where its part is."""
        self._made[slot, head, FIELDS["part"]] = part


@kept_by_shape
def _places_in(slots: int, heads: int, sizes: tuple[int, ...]) -> Any:
    """Return tasks of (slots, heads) on states that begin at address 0, given how many bytes each takes of one head."""
    tasks = rows_of(Task, slots * heads).reshape(slots, heads)
    for name, size in zip(State._fields, sizes, strict=True):
        tasks[name] = np.arange(tasks.size).reshape(tasks.shape) * size
    return words_of(tasks)


def _run(h: Heads, work: Sequence[Runner], after: Sequence[int | None] = ()) -> bool:
    return threads.run(work, h.threads if h.worth_threads else 1, after) == 0


def _idle(h: Heads) -> bool:
    """Whether heads alone leave threads idle."""
    even = h.count % h.threads == 0 or h.count >= 4 * h.threads
    return h.threads > 1 and h.count > 0 and not even and h.worth_threads


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

    def absorb(slot: int, heads: tuple[int, int], low: int, high: int) -> int:
        return schedule.absorb(plan, scratch(h.layout), tasks.at(slot), *heads, low, high)

    return [
        partial(absorb, slot, heads, low, high)
        for slot, (low, high) in enumerate(pairwise([0, *ends]))
        for heads in h.runs(some)
        if low < high
    ]


def _emitting(h: Heads, tasks: Tasks, slot: int) -> tuple[list[Runner], int]:
    """Return the work of letting all queries read the states in a slot, run of heads by run, and in how many spans."""
    plan = h.layout.held.address

    def emit(heads: tuple[int, int], low: int, high: int) -> int:
        return schedule.emit(plan, scratch(h.layout), tasks.at(slot), *heads, low, high)

    # Halves of heads, lest threads wait long for the last of them.
    tile, halves = h.layout.plan.tile, h.threads > 1 and h.worth_threads
    spans = cut(h.length, max(chunk_count(h, h.length), 2 if halves and h.length > tile else 1), tile)
    return [partial(emit, heads, *span) for heads in h.runs() for span in spans], len(spans)


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


def write(h: Heads, start: State | None) -> tuple[bool, State]:
    """Write all keys; return whether inputs were finite, and the state."""
    spans = cut(h.keys, chunk_count(h, h.keys), h.layout.plan.tile)
    slots = Slots(h, start, len(spans))
    fine = _run(h, absorbing(h, Tasks(h, slots), [high for _, high in spans]))
    slots.scan()
    return fine, slots.last()


def read(h: Heads, state: State | None) -> bool:
    """Let all queries read the state, or no keys; return whether they were finite."""
    return _run(h, _emitting(h, Tasks(h, Slots(h, state)), 0)[0])


def bidirectional(h: Heads, start: State | None) -> tuple[bool, State]:
    """Write all keys and let all queries read them; return whether inputs were finite, and the state."""
    spans = cut(h.keys, chunk_count(h, h.keys), h.layout.plan.tile)
    slots = Slots(h, start, len(spans))
    tasks = Tasks(h, slots)
    writing = absorbing(h, tasks, [high for _, high in spans])
    reading, parts = _emitting(h, tasks, len(spans) - 1)
    if len(spans) == 1:
        # The queries of a head are read as soon as its keys are written, whatever becomes of other heads.
        after: list[int | None] = [None] * len(writing)
        after += [i // parts if writing else None for i in range(len(reading))]
        return _run(h, writing + reading, after), slots.last()
    fine = _run(h, writing)
    slots.scan()
    return fine and _run(h, reading), slots.last()


def causal(h: Heads, start: State | None) -> tuple[bool, State]:
    """Run a causal pass; return whether inputs were finite, and the state of all keys but those in the window."""
    lag, plan = h.window or 0, h.layout.held.address
    delta = h.keys - h.length - lag
    seen = {"near": 1, "near_low": delta + 1, "near_high": delta + lag + 1} if lag else {}
    if not h.worth_threads:  # in less time: tokens come one by one
        slots, room = Slots(h, start), scratch(h.layout)
        tasks, before = Tasks(h, slots), min(max(delta, 0), h.keys)
        failed = schedule.absorb(plan, room, tasks.at(0), 0, h.count, 0, before) if before else 0
        tasks.set(delta=delta, **seen)
        failed = failed or schedule.span(plan, room, tasks.at(0), 0, h.count, 0, h.length)
        return failed == 0, slots.last()
    spans = cut(h.length, _causal_chunks(h, h.length), h.layout.plan.tile)
    starts = [min(max(low + delta, 0), h.keys) for low, _ in spans]
    ends, first = _pieces(h, starts)
    slots = Slots(h, start, len(ends))
    tasks = Tasks(h, slots)
    fine = _run(h, absorbing(h, tasks, ends))
    slots.scan()
    tasks.set(delta=delta, **seen)

    def span(slot: int, heads: tuple[int, int], low: int, high: int) -> int:
        return schedule.span(plan, scratch(h.layout), tasks.at(slot), *heads, low, high)

    chunks = zip(first, spans, strict=True)
    work = [partial(span, slot, heads, *bounds) for slot, bounds in chunks for heads in h.runs()]
    return fine and _run(h, work), slots.last()


def two_sided(h: Heads) -> bool:
    """Run a bidirectional pass with a window; return whether inputs were finite.

    Each chunk of queries is read twice: backwards against the keys after the window, which leaves its sums in a buffer,
    then forwards against those before it, joining the buffer and the exact weights of the window.
    """
    spans, step = two_sided_spans(h)
    some = (range(first, min(first + step, h.count)) for first in range(0, h.count, step))
    return all(_two_sided(h, spans, heads) for heads in some)


def two_sided_spans(h: Heads) -> tuple[list[tuple[int, int]], int]:
    """Cut queries that see both sides, so that memory is bounded; return also how many heads go together."""
    p = h.layout.plan
    row_bytes = h.shared * (p.width_pad + 2) * p.element
    chunks = max(_causal_chunks(h, h.length), -(-h.length * row_bytes // _PART_BYTES), 1)
    return cut(h.length, chunks, p.tile), max(h.count if chunks == 1 else h.threads, 1)


def _two_sided(h: Heads, spans: list[tuple[int, int]], some: range) -> bool:
    assert h.window is not None
    window, p, last = h.window, h.layout.plan, len(spans) - 1
    before, after = Slots(h, None, len(spans)), Slots(h, None, len(spans))
    starts = [min(max(low - window, 0), h.keys) for low, _ in spans]
    ends = [min(max(h.keys - high - window, 0), h.keys) for _, high in reversed(spans)]
    forward, backward = Tasks(h, before), Tasks(h, after, reverse=True)
    fine = _run(h, absorbing(h, forward, starts, some) + absorbing(h, backward, ends, some))
    before.scan()
    after.scan()
    plan = h.layout.held.address
    lows, highs = (np.array(x)[:, None] for x in zip(*spans, strict=True))
    forward.set(part_mode=2, part_rows=highs - lows, delta=-window)
    forward.set(near=1, near_low=1 - window, near_high=window)
    turned = (highs - 1) * int(h.tasks[0, FIELDS["q_row"]]), h.keys - highs - window
    q_start, delta = (x[::-1] for x in turned)
    backward.set(part_mode=1, part_rows=(highs - lows)[::-1], q_start=q_start, delta=delta)

    def span(head: int, index: int, low: int, high: int) -> int:
        buffer = np.empty(h.shared * (high - low) * (p.width_pad + 2), h.layout.dtype)
        given, own = (plan, scratch(h.layout)), (head, head + 1)
        backward.put(last - index, head, address(buffer))
        forward.put(index, head, address(buffer))
        failed = schedule.span(*given, backward.at(last - index), *own, 0, high - low)
        return failed or schedule.span(*given, forward.at(index), *own, low, high)

    return fine and _run(h, [partial(span, head, i, *bounds) for i, bounds in enumerate(spans) for head in some])
