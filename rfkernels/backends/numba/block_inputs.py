"""What a pass over blocks reads: keys that go on from a state, heavy keys, packed groups; and the state after it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple
from weakref import finalize

import numpy as np

from rfkernels._arrays import is_frozen
from rfkernels.backends.numba import block_schedule
from rfkernels.backends.numba.block_records import BlockPlan
from rfkernels.backends.numba.kernels import SENTINEL
from rfkernels.backends.numba.packing import addresses
from rfkernels.backends.numba.records import Held
from rfkernels.grouping import BlockState, Far, Groups, Plan
from rfkernels.grouping.schedule import Rows, widened
from rfkernels.state import State


class Inputs(NamedTuple):
    """Keys from the first of a block on, and what is known of those before it.

    Parameters
    ----------
    batch : tuple of int
        Batch axes of keys, values, masks, heavy positions, groups and the state together.
    k, v : array, shape (*batch, keys, dim) and (*batch, keys, width)
        With batch axes of their own; after a state those that it holds come first.
    mask : array of bool, shape (*batch, keys), or None
        Which keys may be attended and are not heavy; None if all.
    origin : int
        The position of the first of them.
    heavy_keys, heavy_values, heavy_mask : array
        As a `BlockState` has them.
    positions : array of int, shape (*batch, heavy)
        Of the heavy keys.
    sums : State or None
        Sums to begin from: of k, kᵀ M k and v, and numbers of keys, or those of features.
    dtype : dtype
        Of sums.
    held : int
        How many of the keys come from the state.
    mass, within : array, or None
        As a `BlockState` has them.
    """

    batch: tuple[int, ...]
    k: Any
    v: Any
    mask: Any
    origin: int
    heavy_keys: Any
    heavy_values: Any
    heavy_mask: Any
    positions: Any
    sums: State | None
    dtype: Any
    held: int = 0
    mass: Any = None
    within: Any = None


def begin(rows: Rows, far: Far, plan: Plan, state: BlockState | None, dtype: Any) -> Inputs:
    """Put what a state holds before the keys, and find heavy ones among them."""
    if state is None:
        batch = np.broadcast_shapes(
            rows.k.shape[:-2], rows.v.shape[:-2], rows.mask.shape[:-1], rows.heavy.shape[:-1], *far.batch
        )
    else:
        state = widened(np, rows._replace(k=np.broadcast_to(np.zeros((), dtype), rows.k.shape)), far, state)
        batch = state.heavy_mask.shape[:-1]
    first = 0 if state is None else int(state.position)
    free = _free(rows, first)
    heavy = _heavy(rows, first, state, batch, dtype)
    if state is None or first == 0:
        return Inputs(batch, rows.k, rows.v, free, 0, *heavy, None, dtype)
    assert plan.reach is not None
    held = plan.reach * plan.block + (first % plan.block or plan.block)
    if free is None:
        free = np.ones(rows.k.shape[-2], bool)
    k, v = (_after(x, new, held, batch, 2) for x, new in ((state.keys, rows.k), (state.values, rows.v)))
    return Inputs(
        batch,
        k,
        v,
        _after(state.mask.reshape(*batch, (plan.reach + 1) * plan.block), free, held, batch, 1),
        first - held,
        *heavy,
        state.sums,
        dtype,
        held,
        state.mass,
        state.within,
    )


def _after(held: Any, new: Any, count: int, batch: tuple[int, ...], tail: int) -> Any:
    """Return new rows after the first `count` of those held."""
    old = held[..., :count, :] if tail == 2 else held[..., :count]
    return np.concatenate([old, np.broadcast_to(new, (*batch, *new.shape[-tail:]))], -tail, dtype=old.dtype)


def _free(rows: Rows, first: int) -> Any:
    """Return which new keys may be attended and are not heavy; None if all."""
    keys = rows.k.shape[-2]
    if not ((rows.heavy >= first) & (rows.heavy < first + keys)).any():
        return None if rows.mask.all() else rows.mask
    batch = np.broadcast_shapes(rows.mask.shape[:-1], rows.heavy.shape[:-1])
    free = np.array(np.broadcast_to(rows.mask, (*batch, keys)))
    positions = np.broadcast_to(rows.heavy, (*batch, rows.heavy.shape[-1])) - first
    for head in np.ndindex(batch):
        at = positions[head]
        free[head][at[(at >= 0) & (at < keys)]] = False
    return free


def _heavy(
    rows: Rows, first: int, state: BlockState | None, batch: tuple[int, ...], dtype: Any
) -> tuple[Any, Any, Any, Any]:
    """Return heavy keys, their values, which were seen, and their positions."""
    count, keys = rows.heavy.shape[-1], rows.k.shape[-2]
    positions = np.broadcast_to(rows.heavy, (*batch, count))
    if state is None:
        k, v = (np.zeros((*batch, count, x.shape[-1]), dtype) for x in (rows.k, rows.v))
        seen = np.zeros((*batch, count), bool)
    else:
        k, v, seen = state.heavy_keys, state.heavy_values, state.heavy_mask
    here = (positions >= first) & (positions < first + keys)
    if not here.any():
        return k, v, seen, positions
    at = np.clip(positions - first, 0, keys - 1)
    here &= np.take_along_axis(np.broadcast_to(rows.mask, (*batch, keys)), at, -1)

    def put(old: Any, new: Any) -> Any:
        wide = np.broadcast_to(new, (*batch, *new.shape[-2:]))
        return np.where(here[..., None], np.take_along_axis(wide, at[..., None], -2).astype(dtype), old)

    return put(k, rows.k), put(v, rows.v), seen | here, positions


class After(NamedTuple):
    """What a state holds of the keys that left: their sums and, where groups are merged, what `BlockState` says."""

    sums: State
    mass: Any = None
    within: Any = None


def finish(given: Inputs, plan: Plan, after: After) -> BlockState:
    """Return the state after the last key."""
    assert plan.reach is not None
    keys, held = given.k.shape[-2], (plan.reach + 1) * plan.block
    start = (max(keys - 1, 0) // plan.block - plan.reach) * plan.block
    mask = np.ones(keys, bool) if given.mask is None else given.mask

    def kept(x: Any, tail: int, dtype: Any) -> Any:
        room = np.zeros((*given.batch, held, *x.shape[x.ndim - tail + 1 :]), dtype)
        source = x[..., max(start, 0) :, :] if tail == 2 else x[..., max(start, 0) :]
        at = max(-start, 0)
        rows: Any = (..., slice(at, at + keys - max(start, 0)), *[slice(None)] * (tail - 1))
        room[rows] = source
        return room

    nearby = (
        kept(given.k, 2, given.dtype),
        kept(given.v, 2, given.dtype),
        kept(mask, 1, bool).reshape(*given.batch, plan.reach + 1, plan.block),
    )
    heavy = np.array(given.heavy_keys), np.array(given.heavy_values), np.array(given.heavy_mask)
    return BlockState(after.sums, *nearby, *heavy, given.origin + keys, after.mass, after.within)


def numbers_for(p: BlockPlan, scale: Any, dtype: Any) -> Any:
    """Return the numbers that kernels read at an address."""
    return np.array([1.0, float(scale), float(scale) ** 2, SENTINEL[p.element * 8]], dtype)


class Packed(NamedTuple):
    """Groups as kernels read them, for each of so many sets, one after the other; forms are lower triangular."""

    drawn: Any
    offset: Any
    metric: Any
    spread: Any
    cross: Any
    numbers: Any


_packed: dict[tuple[Any, ...], Packed] = {}


def pack_groups(plan: Held[BlockPlan], groups: Groups, dtype: Any) -> Packed:
    """Return packed groups, kept for as long as groups whose arrays nobody can change."""
    arrays = [x for x in groups[:-1] if x is not None]
    if not all(map(is_frozen, arrays)):
        return _pack_groups(plan, groups, dtype)
    p = plan.record
    key = (*map(id, arrays), float(groups.scale), p.groups_pad, p.dim_pad, p.width_pad, np.dtype(dtype))
    known = _packed.get(key)
    if known is None:
        known = _packed[key] = _pack_groups(plan, groups, dtype)
        ends: list[finalize[[], Any]] = []

        def forget() -> None:
            _packed.pop(key, None)
            for end in ends:
                end.detach()

        ends += [finalize(x, forget) for x in arrays]
    return known


def _pack_groups(plan: Held[BlockPlan], groups: Groups, dtype: Any) -> Packed:
    """Fold the metric into centres, and pad."""
    p = plan.record
    sets, dim, size, missing = math.prod(groups.batch), groups.dim, groups.size, SENTINEL[p.element * 8]
    centres = np.zeros((sets, p.groups_pad, p.dim_pad), dtype)
    given = np.broadcast_to(groups.centres, (*groups.batch, size, dim))
    centres[:, :size, :dim] = given.reshape(sets, size, dim)

    def padded(x: Any, pad: int) -> Any:
        wide, width = np.zeros((sets, p.dim_pad, pad), dtype), x.shape[-1]
        wide[:, :dim, :width] = np.broadcast_to(x, (*groups.batch, dim, width)).reshape(sets, dim, width)
        return wide

    metric, spread = padded(groups.metric, p.dim_pad), padded(groups.spread, p.dim_pad)
    cross = None if groups.cross is None else padded(groups.cross, p.width_pad)
    drawn = np.empty_like(centres)
    # Not NumPy's product: its threads would go on to spin for a while on the cores that ours need.
    for at, by, to in zip(*(addresses(x, (sets,), 2) for x in (centres, metric, drawn)), strict=True):
        block_schedule.multiply(plan.address, at, by, to, p.groups_pad)
    own = np.eye(p.dim_pad, dtype=dtype)
    metric, spread = (np.tril(x + np.swapaxes(x, 1, 2), -1) + x * own for x in (metric, spread))
    offset = np.full((sets, p.groups_pad), missing, dtype)
    offset[:, :size] = -np.sum(drawn * centres, -1)[:, :size] / 2
    numbers = numbers_for(p, groups.scale, dtype)
    return Packed(np.ascontiguousarray(np.swapaxes(drawn, 1, 2)), offset, metric, spread, cross, numbers)


def heavy_tiles(given: Inputs, dim_pad: int, width_pad: int, heavy_pad: int) -> tuple[Any, Any, Any, Any]:
    """Return heavy keys in ascending order of position as columns, their values, terms and positions, by head."""
    heads, count = math.prod(given.batch), given.positions.shape[-1]
    dim, width = given.heavy_keys.shape[-1], given.heavy_values.shape[-1]
    missing = SENTINEL[np.dtype(given.dtype).itemsize * 8]
    xt = np.zeros((heads, dim_pad, heavy_pad), given.dtype)
    v = np.zeros((heads, heavy_pad, width_pad), given.dtype)
    term = np.full((heads, heavy_pad), missing, given.dtype)
    positions = given.positions.reshape(heads, count)
    if count == 0:
        return xt, v, term, positions
    order = np.argsort(positions, -1, kind="stable")

    def sorted_rows(x: Any) -> Any:
        return np.take_along_axis(x.reshape(heads, count, x.shape[-1]), order[..., None], 1)

    xt[:, :dim, :count] = np.swapaxes(sorted_rows(given.heavy_keys), 1, 2)
    v[:, :count, :width] = sorted_rows(given.heavy_values)
    term[:, :count] = np.where(sorted_rows(given.heavy_mask[..., None])[..., 0], 0, missing)
    return xt, v, term, np.take_along_axis(positions, order, -1).astype(np.int64) - given.origin
