"""Passes over blocks: a scan for causal ones, two for those that see both sides."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rfkernels import partials
from rfkernels._arrays import accumulator, differing, rows_at
from rfkernels.backends import Pass
from rfkernels.backends.jax.heads import feature_tails, spread_as
from rfkernels.backends.jax.tiles import normalized
from rfkernels.grouping import BlockState, Far, Plan, schedule, summaries
from rfkernels.grouping.schedule import CHUNK, TOGETHER, Rows
from rfkernels.partials import Partial
from rfkernels.state import State, merge_states


def attend(rows: Rows, far: Far, plan: Plan, state: BlockState | None, dtype: Any) -> Pass:
    """Run a pass over blocks, as `rfkernels.grouping.schedule` specifies it."""
    held = None if state is None else state.keys
    sums = accumulator(jnp, rows.q, rows.k, rows.v, held)
    rows = Rows(*(jnp.asarray(x) for x in rows))
    far = jax.tree.map(lambda x: jnp.asarray(x).astype(sums), far)
    if state is not None:
        state = jax.tree.map(jnp.asarray, state)
    programs = None if far.features is None else far.features.map.programs()
    done: Pass = _pass(rows, far, state, plan, jnp.dtype(sums), jnp.dtype(dtype), programs)
    return done


@partial(jax.jit, static_argnames=("plan", "sums", "dtype", "programs"))
def _pass(rows: Rows, far: Far, state: BlockState | None, plan: Plan, sums: Any, dtype: Any, programs: Any) -> Pass:
    q, k, v = (x.astype(sums) for x in rows[:3])
    rows = rows._replace(q=q, k=jnp.where(rows.mask[..., None], k, 0), v=jnp.where(rows.mask[..., None], v, 0))
    far = spread_as(rows.k, far, _tails(far))
    after: BlockState | None = None
    if not plan.causal:
        part = _both_sides(rows, far, plan)
    elif state is None:
        part, after = _causal(rows, far, plan)
    else:
        part, after = _resumed(rows, far, plan, state)
    return Pass(*normalized(part, dtype, plan.full), after if plan.full else None)


def _sources(rows: Rows, far: Far) -> list[tuple[Any, int]]:
    """Return what sums are made of, and how many axes of each follow its batch axes."""
    own = [(rows.k, 2), (rows.v, 2), (rows.mask, 1), (rows.heavy, 1)]
    return own + list(zip(jax.tree.leaves(far), _tails(far), strict=True))


def _tails(far: Far) -> list[int]:
    """Return how many axes of each leaf follow its batch axes."""
    groups = [min(x.ndim, 2) for x in jax.tree.leaves(far.groups)]
    return [*groups, *([] if far.features is None else feature_tails(far.features)), 0]


def _differing_sums(sums: State, sources: list[tuple[Any, int]]) -> State:
    return State(*(differing(jnp, x, tail, *sources) for x, tail in zip(sums, (2, 1, 1), strict=True)))


def _differing(state: BlockState, rows: Rows, far: Far, plan: Plan) -> BlockState:
    """Return the state that differs from device to device wherever what is written to it does."""
    sources = _sources(rows, far) + [(rows.q, 2)] * (plan.merged > 0)
    tails = schedule.tails(state).items()
    arrays = {name: differing(jnp, getattr(state, name), tail, *sources) for name, tail in tails}
    return state._replace(sums=_differing_sums(state.sums, sources), **arrays)


def _causal(rows: Rows, far: Far, plan: Plan) -> tuple[Partial, BlockState]:
    """Scan over blocks from the first key on."""
    keys, length = rows.k.shape[-2], rows.q.shape[-2]
    whole = -(-keys // plan.block) * plan.block
    q = _padded(rows.q, keys - length, whole - keys)
    k, v = (_padded(x, 0, whole - keys) for x in (rows.k, rows.v))
    mask = _padded(rows.mask[..., None], 0, whole - keys)
    state = _differing(schedule.begin(jnp, rows, far, plan), rows, far, plan)._replace(position=jnp.zeros((), int))
    if not keys:
        state, part = schedule.step(jnp, rows, far, plan, state)
        return part, state

    def body(state: BlockState, block: Any) -> tuple[BlockState, Partial]:
        q, k, v, mask, real = block
        return schedule.step(jnp, Rows(q, k, v, mask[..., 0], rows.heavy), far, plan, state, real)

    blocks = tuple(_cut(x, plan.block) for x in (q, k, v, mask, _real(whole, keys - length, keys)))
    state, found = lax.scan(jax.checkpoint(body, prevent_cse=False), state, blocks)
    part = _rejoined(found)
    first = keys - length
    part = Partial(part.numerator[..., first:keys, :], part.denominator[..., first:keys], part.shift[..., first:keys])
    return part, state._replace(position=jnp.asarray(keys))


def _resumed(rows: Rows, far: Far, plan: Plan, state: BlockState) -> tuple[Partial, BlockState]:
    """Scan over single keys: where a block begins may not be known before the program runs."""
    keys, length = rows.k.shape[-2], rows.q.shape[-2]
    state = _differing(schedule.widened(jnp, rows, far, state), rows, far, plan)
    q = _padded(rows.q, keys - length, 0)

    def body(state: BlockState, piece: Any) -> tuple[BlockState, Partial]:
        q, k, v, mask, real = piece
        return schedule.step(jnp, Rows(q, k, v, mask[..., 0], rows.heavy), far, plan, state, real)

    pieces = tuple(_cut(x, 1) for x in (q, rows.k, rows.v, rows.mask[..., None], _real(keys, keys - length, keys)))
    state, found = lax.scan(jax.checkpoint(body, prevent_cse=False), state, pieces)
    part = _rejoined(found)
    first = keys - length
    return Partial(part.numerator[..., first:, :], part.denominator[..., first:], part.shift[..., first:]), state


def _real(count: int, first: int, last: int) -> Any:
    """Return, (count, 1), which positions have a query that was given."""
    positions = jnp.arange(count)[:, None]
    return (positions >= first) & (positions < last)


def _both_sides(rows: Rows, far: Far, plan: Plan) -> Partial:
    """Let each query see all keys: sums of what lies after are held for some blocks at a time."""
    free = schedule.light(jnp, rows)
    heavy_k, heavy_v = (rows_at(jnp, x, rows.heavy) for x in (rows.k, rows.v))
    heavy_allowed = rows_at(jnp, rows.mask[..., None], rows.heavy)[..., 0]

    def seen(q: Any, sums: State, k: Any, v: Any, allowed: Any) -> Partial:
        both = schedule.joined(jnp, k, heavy_k), schedule.joined(jnp, v, heavy_v)
        allowed = schedule.joined(jnp, allowed[..., None], heavy_allowed[..., None])
        exact = schedule.near(jnp, q, *both, jnp.swapaxes(allowed, -1, -2), far)
        return partials.join(jnp, summaries.read(jnp, far, sums, q), exact)

    if plan.reach is None:
        return _no_window(rows, far, free, seen)
    size, reach, length, keys = plan.block, plan.reach, rows.q.shape[-2], rows.k.shape[-2]
    blocks = max(-(-max(length, keys) // size), 1)
    blocks = -(-blocks // TOGETHER) * TOGETHER if blocks > TOGETHER else blocks
    group, whole, apart = min(blocks, TOGETHER), blocks * size, (reach + 1) * size

    given = rows.k, rows.v, free[..., None]
    after, before = (tuple(_shifted(x, by, size, (blocks // group, group)) for x in given) for by in (apart, -apart))
    edge = reach * size
    band = tuple(_padded(_padded(x, edge, 0), 0, max(whole - keys, 0) + edge) for x in given)
    queries = _shifted(rows.q, 0, size, (blocks // group, group))

    def written(block: Any) -> State:
        return summaries.write(jnp, far, block[0], block[1], block[2][..., 0])

    def add(sums: State, block: Any) -> tuple[State, State]:
        total = merge_states(sums, written(block))
        return total, total

    def only(sums: State, block: Any) -> tuple[State, State]:
        def more(total: State, one: Any) -> tuple[State, None]:
            return merge_states(total, written(one)), None

        return lax.scan(more, sums, block)[0], sums

    batch = np.broadcast_shapes(rows.k.shape[:-2], rows.v.shape[:-2], free.shape[:-1], *far.batch)
    nothing = _differing_sums(summaries.empty(jnp, far, rows.v.shape[-1], batch, rows.k.dtype), _sources(rows, far))
    _, beyond = lax.scan(only, nothing, after, reverse=True)

    def body(sums: State, given: Any) -> tuple[State, Partial]:
        index, later, own_after, own_before, q = given
        _, suffixes = lax.scan(add, later, own_after, reverse=True)

        def one(sums: State, given: Any) -> tuple[State, Partial]:
            block, suffix, earlier, rows_q = given
            sums = merge_states(sums, written(earlier))
            near = (lax.dynamic_slice_in_dim(x, block * size, (2 * reach + 1) * size, x.ndim - 2) for x in band)
            k, v, allowed = near
            return sums, seen(rows_q, merge_states(sums, suffix), k, v, allowed[..., 0])

        numbers = index * group + jnp.arange(group)
        return lax.scan(jax.checkpoint(one, prevent_cse=False), sums, (numbers, suffixes, own_before, q))

    given_groups = (jnp.arange(blocks // group), beyond, after, before, queries)
    _, found = lax.scan(jax.checkpoint(body, prevent_cse=False), nothing, given_groups)
    found = Partial(*(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]) for x in found))
    part = _rejoined(found)
    return Partial(part.numerator[..., :length, :], part.denominator[..., :length], part.shift[..., :length])


def _shifted(x: Any, by: int, size: int, groups: tuple[int, int]) -> Any:
    """Return an array in which what stood at position i + by stands at i, cut into groups of blocks."""
    whole = groups[0] * groups[1] * size
    there = _padded(x[..., max(by, 0) : max(whole + by, 0), :], min(max(-by, 0), whole), 0)
    there = _padded(there, 0, whole - there.shape[-2])
    return _cut(there, size).reshape(*groups, *there.shape[:-2], size, there.shape[-1])


def _no_window(rows: Rows, far: Far, free: Any, seen: Any) -> Partial:
    length, keys = rows.q.shape[-2], rows.k.shape[-2]
    batch = np.broadcast_shapes(rows.k.shape[:-2], rows.v.shape[:-2], free.shape[:-1], *far.batch)
    total = _differing_sums(summaries.empty(jnp, far, rows.v.shape[-1], batch, rows.k.dtype), _sources(rows, far))
    size = min(CHUNK, max(keys, 1))
    chunks = tuple(_cut(_padded(x, 0, -keys % size), size) for x in (rows.k, rows.v, free[..., None]))

    def write(sums: State, chunk: Any) -> tuple[State, None]:
        k, v, allowed = chunk
        return merge_states(sums, summaries.write(jnp, far, k, v, allowed[..., 0])), None

    total, _ = lax.scan(jax.checkpoint(write, prevent_cse=False), total, chunks)
    size = min(CHUNK, max(length, 1))

    def read(_: None, q: Any) -> tuple[None, Partial]:
        nothing = rows.k[..., :0, :], rows.v[..., :0, :], free[..., :0]
        return None, seen(q, total, *nothing)

    _, found = lax.scan(jax.checkpoint(read, prevent_cse=False), None, _cut(_padded(rows.q, 0, -length % size), size))
    part = _rejoined(found)
    return Partial(part.numerator[..., :length, :], part.denominator[..., :length], part.shift[..., :length])


def _padded(x: Any, before: int, after: int) -> Any:
    """Return an array with rows of zeros (False) put before and after."""
    if before == after == 0:
        return x
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(before, after), (0, 0)])


def _cut(x: Any, size: int) -> Any:
    """Put blocks of rows on a leading axis."""
    x = x.reshape(*x.shape[:-2], x.shape[-2] // size, size, x.shape[-1])
    return jnp.moveaxis(x, -3, 0)


def _rejoined(found: Partial) -> Partial:
    """Put the sums of blocks of queries after each other."""
    numerator = jnp.moveaxis(found.numerator, 0, -3)
    numerator = numerator.reshape(*numerator.shape[:-3], numerator.shape[-3] * numerator.shape[-2], numerator.shape[-1])
    others = (jnp.moveaxis(x, 0, -2) for x in found[1:])
    return Partial(numerator, *(x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1]) for x in others))
