"""Causal passes over blocks whose far keys are sums of features: near and heavy keys exact, a head on each thread."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rfkernels._arrays import dtype_name
from rfkernels.backends.numba import far_schedule, passes, threads
from rfkernels.backends.numba.block_inputs import After, Inputs, heavy_tiles
from rfkernels.backends.numba.block_kernels import blockwise
from rfkernels.backends.numba.packing import address, layout, pack_weights, scratch, to_internal, to_state, up
from rfkernels.backends.numba.records import Held
from rfkernels.backends.numba.schedule_records import Beside
from rfkernels.features import Features
from rfkernels.grouping import Far, Plan
from rfkernels.grouping.summaries import empty

_ALL = 1 << 30
"""Farther than any key that is looked at."""


def fits(far: Far, plan: Plan) -> bool:
    """Whether a pass is of this kind: causal, without groups, and of features of exp(x·y)."""
    kernel = None if far.features is None else far.features.map.kernel
    return plan.causal and far.groups is None and kernel is not None and kernel.norm_weight == 0


def run(given: Inputs, features: Features, far: Far, plan: Plan, q: Any, out: Any, logs: Any) -> After:
    """Run the pass; return the sums of the keys that left."""
    assert plan.reach is not None
    keys, length = given.k.shape[-2], q.shape[-2]
    names = tuple(dtype_name(x.dtype) for x in (q, given.k, given.v, out))
    made = layout(features, np.dtype(given.dtype).itemsize * 8, given.v.shape[-1], names, False)
    arrays = {"q": q, "k": given.k, "v": given.v, "out": out, "mask": given.mask}
    h = passes.heads(made, features, pack_weights(made, features), given.batch, arrays, logs)
    begun = given.sums or empty(np, far, given.v.shape[-1], given.batch, given.dtype)
    slots = passes.Slots(h, [to_internal(made, features, begun)])
    tasks, delta = passes.Tasks(h, slots), keys - length
    tasks.set(seen=slots.seen(), delta=delta, near=1, near_low=-_ALL, near_high=delta + 1)
    p, code = made.plan, blockwise(made.machine, made.plan.element * 8)
    heavy_pad = up(given.positions.shape[-1], p.column_step)
    tiles = heavy_tiles(given, p.dim_pad, p.width_pad, heavy_pad)
    beside = Held(
        Beside(
            code.addresses["below"],
            plan.block,
            min(plan.reach, keys // plan.block + 1),
            given.positions.shape[-1],
            heavy_pad,
            *map(address, tiles),
        )
    )

    def head(index: int) -> int:
        own = h.weights[index], scratch(made), tasks.at(0, index), h.queries.address, beside.address
        return far_schedule.blocks(made.held.address, *own, index, 0, length)

    threads.run([partial(head, index) for index in range(h.count)], h.threads if passes.worth_threads(h) else 1)
    return After(to_state(made, features, slots.last(), given.batch))
