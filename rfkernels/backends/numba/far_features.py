"""Passes over blocks whose far keys are sums of features: near and heavy keys exact, on threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import dtype_name
from rfkernels.backends.numba import far_schedule, heads, passes, threads
from rfkernels.backends.numba.block_inputs import After, Inputs, heavy_tiles
from rfkernels.backends.numba.block_kernels import blockwise
from rfkernels.backends.numba.heads import Heads
from rfkernels.backends.numba.internal import to_internal, to_state
from rfkernels.backends.numba.jit import Code
from rfkernels.backends.numba.packing import address, layout, pack_weights, scratch, up
from rfkernels.backends.numba.passes import Slots, Tasks
from rfkernels.backends.numba.records import Held
from rfkernels.backends.numba.schedule_records import Beside
from rfkernels.features import Features
from rfkernels.grouping import Far, Plan
from rfkernels.state import State

_ALL = 1 << 30
"""Farther than any key that is looked at."""


class _Pass(NamedTuple):
    """A pass over heads: how it is cut into blocks, what is exact, and states of what was seen before, if anything.

    `code` is what `beside` knows by address: of threads that compile at once, all but one get what no cache keeps.
    """

    heads: Heads
    plan: Plan
    beside: Held[Beside]
    code: Code
    begun: State | None


def run(given: Inputs, features: Features, far: Far, plan: Plan, q: Any, out: Any, logs: Any) -> After | None:
    """Run the pass; return the sums of the keys that left, if it is causal."""
    names = tuple(dtype_name(x.dtype) for x in (q, given.k, given.v, out))
    made = layout(features, np.dtype(given.dtype).itemsize * 8, given.v.shape[-1], names, False)
    arrays = {"q": q, "k": given.k, "v": given.v, "out": out, "mask": given.mask}
    window = None if plan.reach is None else (plan.reach + 1) * plan.block
    h = heads.heads(made, features, pack_weights(made, features), given.batch, arrays, logs, window)
    begun = None if given.sums is None else to_internal(made, features, given.sums)
    tiles = heavy_tiles(
        given, made.plan.dim_pad, made.plan.width_pad, up(given.positions.shape[-1], made.plan.column_step)
    )
    code = blockwise(made.machine, made.plan.element * 8)
    beside = _beside(h, plan, given, tiles, code.addresses["below"])
    whole = _Pass(h, plan, Held(beside), code, begun)
    if plan.causal:
        return After(to_state(made, features, _causal(whole), given.batch))
    if plan.reach is None:
        _all(whole)
    else:
        _both_sides(whole)
    return None


def _beside(h: Heads, plan: Plan, given: Inputs, tiles: tuple[Any, ...], below: int) -> Beside:
    reach = -1 if plan.reach is None else plan.reach
    count = given.positions.shape[-1]
    sizes = plan.block, reach, 0 if plan.causal else max(reach, 0), 0 if plan.causal else _ALL, count
    return Beside(below, *sizes, up(count, h.layout.plan.column_step), *map(address, tiles))


def _runner(w: _Pass, tasks: Tasks, slot: int, span: tuple[int, int], seen: tuple[int, int]) -> Callable[[int], int]:
    """Return what lets the queries of a span, of any head, see all that they see, given how many keys a state holds."""
    h = w.heads

    def run(head: int) -> int:
        own = scratch(h.layout), tasks.at(slot), w.beside.address
        return far_schedule.blocks(h.layout.held.address, *own, head, *span, *seen)

    return run


def _causal(w: _Pass) -> State:
    h, o = w.heads, w.beside.record
    slots, delta = Slots(h, w.begun), h.keys - h.length
    tasks = Tasks(h, slots)
    tasks.set(delta=delta, near=1, near_low=-_ALL, near_high=delta + 1)
    last = max((h.keys - 1) // o.block - o.reach, 0) * o.block
    head = _runner(w, tasks, 0, (0, h.length), (0, last))
    threads.run([partial(head, index) for index in range(h.count)], h.threads if h.worth_threads else 1)
    return slots.last()


def _all(w: _Pass) -> None:
    h = w.heads
    _, after = passes.write(h, w.begun)
    tasks = Tasks(h, Slots(h, after))
    tasks.set(near=1)
    spans = passes.cut(h.length, passes.chunk_count(h, h.length), h.layout.plan.tile)
    runners = [_runner(w, tasks, 0, span, (0, 0)) for span in spans]
    work = [partial(runner, head) for runner in runners for head in range(h.count)]
    threads.run(work, h.threads if h.worth_threads else 1)


def _both_sides(w: _Pass) -> None:
    """Read each chunk of queries twice: backwards, which leaves sums in a buffer, then forwards, joining them."""
    h = w.heads
    spans, step = passes.two_sided_spans(h)
    for first in range(0, h.count, step):
        _both_sides_of(w, spans, range(first, min(first + step, h.count)))


def _both_sides_of(w: _Pass, spans: list[tuple[int, int]], some: range) -> None:
    h, o, last = w.heads, w.beside.record, len(spans) - 1
    p = h.layout.plan
    before, after = (Slots(h, start, len(spans)) for start in (w.begun, None))
    starts = [min(max(low // o.block - o.reach, 0) * o.block, h.keys) for low, _ in spans]
    ends = [max(h.keys - ((max(high, 1) - 1) // o.block + o.reach + 1) * o.block, 0) for _, high in reversed(spans)]
    forward, backward = Tasks(h, before), Tasks(h, after, reverse=True)
    count = h.threads if h.worth_threads else 1
    threads.run(passes.absorbing(h, forward, starts, some) + passes.absorbing(h, backward, ends, some), count)
    before.scan()
    after.scan()
    rows = np.array([[high - low] for low, high in spans])
    forward.set(part_mode=2, part_rows=rows, near=1, near_low=-_ALL, near_high=_ALL)
    backward.set(part_mode=1, part_rows=rows[::-1])

    def span(index: int, head: int) -> int:
        buffer = np.empty(h.shared * int(rows[index, 0]) * (p.width_pad + 2), h.layout.dtype)
        backward.put(last - index, head, address(buffer))
        forward.put(index, head, address(buffer))
        own = h.layout.held.address, scratch(h.layout), backward.at(last - index), w.beside.address
        far_schedule.behind(*own, head, *spans[index])
        return _runner(w, forward, index, spans[index], (starts[index], 0))(head)

    threads.run([partial(span, index, head) for index in range(len(spans)) for head in some], count)
