"""Executable specification of passes over blocks: exact nearby, exact for heavy keys, sums for all others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from rfkernels import kernels, partials
from rfkernels._arrays import differing, matmul, rows_at
from rfkernels.exact import exact_block
from rfkernels.grouping import merging, summaries
from rfkernels.grouping.records import BlockState, Far, Plan
from rfkernels.partials import Partial
from rfkernels.state import State, merge_states

CHUNK = 1024
"""Keys or queries at a time where there is no window."""

TOGETHER = 16
"""Blocks whose sums are held at once in a bidirectional pass; only every such number of sums is kept of all others."""


class Rows(NamedTuple):
    """Queries, keys and values in the dtype of sums, which keys may be attended, and the positions of heavy ones.

    Parameters
    ----------
    q, k, v : array, shape (*batch, length, dim), (*batch, keys, dim) and (*batch, keys, width)
    mask : array of bool, shape (*batch, keys)
    heavy : array of int, shape (*batch, heavy)
    """

    q: Any
    k: Any
    v: Any
    mask: Any
    heavy: Any


def attend(xp: Any, rows: Rows, far: Far, plan: Plan, state: BlockState | None) -> tuple[Partial, BlockState | None]:
    """Run a whole pass; a causal one returns the state after its last key."""
    if plan.causal:
        start = begin(xp, rows, far, plan) if state is None else widened(xp, rows, far, state)
        return causal(xp, rows, far, plan, start)
    return bidirectional(xp, rows, far, plan), None


def light(xp: Any, rows: Rows, first: Any = 0) -> Any:
    """Return which keys may be attended and are not heavy; the first key stands at position `first`."""
    positions = first + xp.arange(rows.k.shape[-2])
    return rows.mask & ~xp.any(rows.heavy[..., :, None] == positions, -2)


def near(xp: Any, q: Any, k: Any, v: Any, allowed: Any, far: Far) -> Partial:
    """Sum exact weights over the keys that are allowed to each query."""
    root = xp.sqrt(xp.asarray(far.scale, q.dtype))
    return exact_block(xp, q * root, k * root, v, allowed, kernels.EXPONENTIAL)


def bidirectional(xp: Any, rows: Rows, far: Far, plan: Plan) -> Partial:
    """Let each query see all keys."""
    free = light(xp, rows)
    heavy_k, heavy_v = (rows_at(xp, x, rows.heavy) for x in (rows.k, rows.v))
    heavy_allowed = rows_at(xp, rows.mask[..., None], rows.heavy)[..., 0]
    if plan.reach is None:
        total = _whole(xp, rows, far, free)
        found = []
        for start in range(0, max(rows.q.shape[-2], 1), CHUNK):
            q = rows.q[..., start : start + CHUNK, :]
            exact = near(xp, q, heavy_k, heavy_v, heavy_allowed[..., None, :], far)
            found.append(partials.join(xp, summaries.read(xp, far, total, q), exact))
        return partials.stack(xp, found)
    found, size, reach = [], plan.block, plan.reach
    for block, sums in enumerate(_others(xp, rows, far, plan, free)):
        q = rows.q[..., block * size : (block + 1) * size, :]
        part = slice(max(block - reach, 0) * size, (block + reach + 1) * size)
        allowed = joined(xp, free[..., part, None], heavy_allowed[..., None])
        keys, values = (joined(xp, x[..., part, :], y) for x, y in ((rows.k, heavy_k), (rows.v, heavy_v)))
        exact = near(xp, q, keys, values, xp.swapaxes(allowed, -1, -2), far)
        found.append(partials.join(xp, summaries.read(xp, far, sums, q), exact))
    return partials.stack(xp, found)


def joined(xp: Any, x: Any, y: Any) -> Any:
    """Put rows after each other, with batch axes that broadcast."""
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return xp.concatenate([xp.broadcast_to(part, (*batch, *part.shape[-2:])) for part in (x, y)], -2)


def _written(xp: Any, rows: Rows, far: Far, free: Any, low: int, high: int) -> State:
    part = slice(max(low, 0), max(high, 0))
    return summaries.write(xp, far, rows.k[..., part, :], rows.v[..., part, :], free[..., part])


def _whole(xp: Any, rows: Rows, far: Far, free: Any) -> State:
    total = _written(xp, rows, far, free, 0, CHUNK)
    for start in range(CHUNK, rows.k.shape[-2], CHUNK):
        total = merge_states(total, _written(xp, rows, far, free, start, start + CHUNK))
    return total


def _others(xp: Any, rows: Rows, far: Far, plan: Plan, free: Any) -> Iterator[State]:
    """Return for each block of queries the sums of all keys but those of the blocks near it, without subtracting."""
    assert plan.reach is not None
    size, apart, length = plan.block, plan.reach + 1, rows.q.shape[-2]
    blocks = max(-(-length // size), 1)

    def of(block: int) -> State:
        return _written(xp, rows, far, free, block * size, (block + 1) * size)

    last = max(-(-rows.k.shape[-2] // size), blocks + apart)
    after = of(last)
    starts = range(0, blocks, TOGETHER)
    kept = {}
    for start in reversed(starts):
        stop = min(start + TOGETHER, blocks)
        for block in range((last if start == starts[-1] else stop + apart) - 1, stop + apart - 1, -1):
            after = merge_states(of(block), after)
        kept[start] = after
        for block in range(stop + apart - 1, start + apart - 1, -1):
            after = merge_states(of(block), after)
    before = of(-1)
    for start in starts:
        stop = min(start + TOGETHER, blocks)
        suffixes = [kept.pop(start)]
        for block in range(stop + apart - 1, start + apart - 1, -1):
            suffixes.append(merge_states(of(block), suffixes[-1]))
        for block in range(start, stop):
            before = merge_states(before, of(block - apart))
            yield merge_states(before, suffixes[stop - block])


def begin(xp: Any, rows: Rows, far: Far, plan: Plan) -> BlockState:
    """Return the state before the first key."""
    assert plan.reach is not None
    batch = np.broadcast_shapes(
        rows.k.shape[:-2], rows.v.shape[:-2], rows.mask.shape[:-1], rows.heavy.shape[:-1], *far.batch
    )
    dim, width, dtype = rows.k.shape[-1], rows.v.shape[-1], rows.k.dtype
    held, heavy = (plan.reach + 1) * plan.block, rows.heavy.shape[-1]

    def zeros(*shape: int) -> Any:
        return xp.zeros((*batch, *shape), dtype)

    def none(*shape: int) -> Any:
        return xp.zeros((*batch, *shape), bool)

    nearby = zeros(held, dim), zeros(held, width), none(plan.reach + 1, plan.block)
    others = *nearby, zeros(heavy, dim), zeros(heavy, width), none(heavy), 0
    if not plan.merged:
        return BlockState(summaries.empty(xp, far, width, batch, dtype), *others)
    sums = State(zeros(plan.merged, dim + 1 + width), zeros(plan.merged), zeros(plan.merged))
    return BlockState(sums, *others, mass=zeros(plan.merged + plan.block), within=zeros(dim, dim + width))


def widened(xp: Any, rows: Rows, far: Far, state: BlockState) -> BlockState:
    """Return the state with the batch axes of everything that is written to it, in the dtype of sums."""
    shapes = rows.k.shape[:-2], rows.v.shape[:-2], rows.mask.shape[:-1], rows.heavy.shape[:-1], *far.batch
    batch = np.broadcast_shapes(*shapes, state.heavy_mask.shape[:-1])

    def wide(x: Any, tail: int) -> Any:
        kept = x if x.dtype in (bool, rows.k.dtype) else x.astype(rows.k.dtype)
        shape = (*batch, *x.shape[x.ndim - tail :])
        return kept if x.shape == shape else xp.broadcast_to(kept, shape)

    sums = State(*(wide(x, tail) for x, tail in zip(state.sums, (2, 1, 1), strict=True)))
    return state._replace(sums=sums, **{name: wide(getattr(state, name), tail) for name, tail in tails(state).items()})


def tails(state: BlockState) -> dict[str, int]:
    """Return how many axes of each array follow its batch axes, those of the sums aside."""
    own = {"keys": 2, "values": 2, "mask": 2, "heavy_keys": 2, "heavy_values": 2, "heavy_mask": 1}
    return own if state.mass is None else own | {"mass": 1, "within": 2}


def causal(xp: Any, rows: Rows, far: Far, plan: Plan, state: BlockState) -> tuple[Partial, BlockState]:
    """Let each query see the keys up to its own, a block at a time; the last query is aligned with the last key."""
    keys, start = rows.k.shape[-2], 0
    early = keys - rows.q.shape[-2]
    state, part = step(xp, _piece(rows, 0, 0, early), far, plan, state)
    found = [part]
    while start < keys:
        stop = min(start + plan.block - state.position % plan.block, keys)
        if start < early:
            stop = min(stop, early)
        state, part = step(xp, _piece(rows, start, stop, early), far, plan, state)
        found.append(part)
        start = stop
    return partials.stack(xp, found), state


def _piece(rows: Rows, start: int, stop: int, early: int) -> Rows:
    q = rows.q[..., max(start - early, 0) : max(stop - early, 0), :]
    return Rows(q, rows.k[..., start:stop, :], rows.v[..., start:stop, :], rows.mask[..., start:stop], rows.heavy)


def step(xp: Any, rows: Rows, far: Far, plan: Plan, state: BlockState, real: Any = True) -> tuple[BlockState, Partial]:
    """Take keys that lie in one block, and a query for each of them or none; those that are not real fill up blocks."""
    assert plan.reach is not None
    count, first = rows.k.shape[-2], state.position
    if count:
        state = _advanced(xp, far, plan, state)
    slot = plan.reach * plan.block + first % plan.block
    keys, values = (_put(xp, old, new, slot, 2) for old, new in ((state.keys, rows.k), (state.values, rows.v)))
    mask = _put(xp, state.mask.reshape(*state.mask.shape[:-2], keys.shape[-2]), light(xp, rows, first), slot, 1)
    state = state._replace(keys=keys, values=values, mask=mask.reshape(state.mask.shape), position=first + count)
    state = state._replace(**_heavy(xp, rows, state, first))
    own = xp.arange(rows.q.shape[-2])[:, None]
    nearby = mask[..., None, :] & (xp.arange(mask.shape[-1]) <= slot + own)
    heavy = state.heavy_mask[..., None, :] & (rows.heavy[..., None, :] <= first + own)
    allowed = xp.swapaxes(joined(xp, xp.swapaxes(nearby, -1, -2), xp.swapaxes(heavy, -1, -2)), -1, -2)
    keys, values = joined(xp, keys, state.heavy_keys), joined(xp, values, state.heavy_values)
    if plan.merged:
        return merging.read(xp, state, rows.q, keys, values, allowed, far.scale, real)
    exact = near(xp, rows.q, keys, values, allowed, far)
    return state, partials.join(xp, summaries.read(xp, far, state.sums, rows.q), exact)


def _advanced(xp: Any, far: Far, plan: Plan, state: BlockState) -> BlockState:
    """Let the oldest block go where the key to come begins a new one."""
    size = plan.block

    def moved() -> BlockState:
        keys, values = (xp.roll(x, -size, -2) for x in (state.keys, state.values))
        mask = xp.concatenate([state.mask[..., 1:, :], xp.zeros_like(state.mask[..., :1, :])], -2)
        oldest = state.keys[..., :size, :], state.values[..., :size, :], state.mask[..., 0, :]
        moved = state._replace(keys=keys, values=values, mask=mask)
        if plan.merged:
            return merging.absorb(xp, moved, *oldest)
        return moved._replace(sums=merge_states(state.sums, summaries.write(xp, far, *oldest)))

    begins = (state.position % size == 0) & (state.position > 0)
    if isinstance(state.position, int | np.integer):
        return moved() if begins else state
    jax = sys.modules["jax"]
    return jax.tree.map(lambda new, old: xp.where(begins, new, old), moved(), state)  # type: ignore[no-any-return]


def _put(xp: Any, old: Any, new: Any, slot: Any, tail: int) -> Any:
    """Return an array with new rows from `slot` on, along the axis that `tail` axes begin with."""
    count = new.shape[-tail]
    wide = (*old.shape[: old.ndim - tail], count, *old.shape[old.ndim - tail + 1 :])
    new = xp.broadcast_to(new, wide).astype(old.dtype)
    if xp is np:
        old = old.copy()
        old[(..., slice(slot, slot + count), *[slice(None)] * (tail - 1))] = new
        return old
    new = differing(xp, new, tail, (old, tail))
    return sys.modules["jax"].lax.dynamic_update_slice_in_dim(old, new, slot, old.ndim - tail)


def _heavy(xp: Any, rows: Rows, state: BlockState, first: Any) -> dict[str, Any]:
    """Return heavy keys, their values and which were seen, with those among the new ones, if there are any at all."""
    if not rows.heavy.shape[-1]:
        return {}
    positions = first + xp.arange(rows.k.shape[-2])
    found = (rows.heavy[..., :, None] == positions) & rows.mask[..., None, :]
    share, here = found.astype(rows.k.dtype), xp.any(found, -1)

    def put(old: Any, new: Any) -> Any:
        return xp.where(here[..., None], matmul(xp, share, new), old)

    keys, values = put(state.heavy_keys, rows.k), put(state.heavy_values, rows.v)
    return {"heavy_keys": keys, "heavy_values": values, "heavy_mask": state.heavy_mask | here}
