"""Items drawn on the devices of JAX from a proposal close to exp(q·y), and the exact probability of every item."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rfkernels._arrays import matmul, stopped
from rfkernels._checks import check_flags
from rfkernels.backends.jax.catalog_arguments import (
    check_count,
    check_filled,
    check_ids,
    check_key,
    check_known,
    check_queries,
    each_query,
    parts_of,
    promoting,
)
from rfkernels.backends.jax.catalog_proposal import counted, inside, log_share, picked, proposed, rows_at
from rfkernels.backends.jax.tables import DeviceTable, Sharded
from rfkernels.catalog.cells import LARGEST
from rfkernels.catalog.records import Draws
from rfkernels.catalog.sampling import HEAD

_TOGETHER = 64
"""Groups of one query whose items are taken at once."""


@promoting
def sample(
    table: DeviceTable | Sharded, queries: Any, n: int, key: Any, *, head: int = HEAD, whole: bool = True
) -> Draws:
    """Draw n items for each query, independently and with replacement, and say with what probability each was drawn.

    A query takes the items H of the groups that promise most. Then it draws either one of these in proportion to
    exp(q·y), or one of the other groups by its guessed sum ω_g, and of its items one in that proportion:

        p(y) = exp(q·y) / S  if y is in H,  else  ω_g / S · exp(q·y) / Σ_{z in g} exp(q·z),

    where S = Σ_{y in H} exp(q·y) + Σ_{g not in H} ω_g, as `Catalog.sample` does where items have no codes; but what is
    stated, and drawn by, are these shares rounded to parts of 2⁻²⁸ and at least one.

    May be called under `jax.jit` with `n` and `head` static. Guesses may be stale, as after `with_rows`: they decide
    how much weights differ, and stated probabilities are exact all the same. They are constants to derivatives.

    Parameters
    ----------
    table : DeviceTable or Sharded
        What `device_table` or `sharded` returned. Devices of a mesh are drawn in proportion to S of their own items;
        of each query S and the draws are communicated.
    queries : array, shape (queries, dim)
        The queries.
    n : int
        Draws for each query.
    key : jax.Array
        A key of `jax.random`. Queries draw independently of each other.
    head : int, default 2048
        Items that are taken before the first draw, at most, on each device; no more than 64 groups.
    whole : bool, default True
        Whether all items of drawn groups are taken, as the time of 512 dot products for each draw; else any of the n_g
        items is drawn with 1 / n_g.
        Without, and with a head of 0, draws cost no dot products but those with the means of cells, and their
        probabilities do not depend on items: what a training step wants that is to cost little.

    Returns
    -------
    Draws
        Arrays of JAX, (queries, n). exp(logits − log_probability) are importance weights, whose mean is an unbiased
        estimate of Z.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, queries are not finite, or the table has no items.
    """
    queries, own = check_queries(table, queries), parts_of(table)[0]
    check_count("n", n)
    check_key(key)
    check_count("head", head)
    check_flags(whole=whole)
    check_filled(table)
    how = How(head, bool(whole))
    if isinstance(table, Sharded):
        return Draws(*_sampled_of_mesh(own, queries, key, n=n, how=how, mesh=table.mesh, axis=table.axis))
    return Draws(*_sampled(own, queries, key, n=n, how=how)[:3])


@promoting
def log_probability(
    table: DeviceTable | Sharded, queries: Any, ids: Any, *, head: int = HEAD, whole: bool = True
) -> Any:
    """Return the log of the probability with which `sample` draws items; those of all items sum to 1.

    Parameters
    ----------
    table, queries, head, whole
        As in `sample`.
    ids : array of int, shape (items,) or (queries, items)
        The items: the same for all queries, or each query's own.

    Returns
    -------
    array, shape (queries, items)
        A constant to derivatives.

    Raises
    ------
    KeyError
        If an id is not in the table; under `jax.jit` its log-probability is −inf.
    TypeError, ValueError
        If arguments do not fit together.
    """
    queries, own = check_queries(table, queries), parts_of(table)[0]
    check_count("head", head)
    check_flags(whole=whole)
    check_filled(table)
    each = check_each(ids, queries)
    how = How(head, bool(whole))
    if isinstance(table, Sharded):
        found = _stated_of_mesh(own, queries, each, how=how, mesh=table.mesh, axis=table.axis)
    else:
        found = _stated(own, queries, each, how=how)[0]
    check_known(ids, found > -jnp.inf)
    return found


class How(NamedTuple):
    """How many items are taken before the first draw, and whether those of drawn groups are."""

    head: int
    whole: bool


def check_each(ids: Any, queries: Any) -> Any:
    """Require ids (items,) or (queries, items); return the latter."""
    ids = check_ids(ids, (1, 2))
    if ids.ndim == 2 and len(ids) != len(queries):
        raise ValueError(f"ids must have shape (items,) or ({len(queries)}, items), got {ids.shape}")
    return jnp.broadcast_to(ids, (len(queries), ids.shape[-1]))


def _drawn(table: DeviceTable, query: Any, key: Any, n: int, how: How) -> tuple[Any, Any, Any, Any]:
    """Return ids, log-probabilities and logits of draws, and what all items are guessed to weigh."""
    proposal = jax.tree.map(partial(stopped, jnp), proposed(table, query, how.head))
    groups, dtype = len(table.count), proposal.log_total.dtype
    pick_key, row_key = jax.random.split(key)
    place, size = picked(proposal.ticks, pick_key, n)
    group = jnp.minimum(place, groups - 1)
    if how.whole:
        within, log_inside = _picked_inside(table, query, group, jax.random.split(row_key, n))
        rows = table.start[group] + within
    else:
        count = jnp.maximum(table.count[group], 1)
        rows = table.start[group] + jax.random.randint(row_key, (n,), 0, count)
        log_inside = -jnp.log(count.astype(dtype))
    closed = place < groups
    if how.head:
        rows = jnp.where(closed, rows, proposal.rows[jnp.maximum(place - groups, 0)])
    log = log_share(proposal.ticks[place], size, dtype) + jnp.where(closed, log_inside, 0)
    return table.ids[rows], log, matmul(jnp, table.rows[rows], query), proposal.log_total


def _of_rows(table: DeviceTable, query: Any, rows: Any, how: How) -> tuple[Any, Any]:
    """Return log-probabilities of rows, −inf where they are −1, and what all items are guessed to weigh."""
    proposal = proposed(table, query, how.head)
    size, dtype = jnp.maximum(jnp.sum(proposal.ticks, dtype=jnp.int32), 1), proposal.log_total.dtype
    group = jnp.searchsorted(jnp.cumsum(table.count), rows, side="right")
    group = jnp.minimum(group, len(table.count) - 1)
    begin, offset = proposal.begin[group], rows - table.start[group]
    place = jnp.where(begin >= 0, len(table.count) + begin + offset, group)
    if how.whole:
        log_inside = _log_inside(table, query, group, jnp.maximum(offset, 0))
    else:
        log_inside = -jnp.log(jnp.maximum(table.count[group], 1).astype(dtype))
    log = log_share(proposal.ticks[place], size, dtype) + jnp.where(begin >= 0, 0, log_inside)
    return jnp.where(rows >= 0, log, -jnp.inf), proposal.log_total


def _picked_inside(table: DeviceTable, query: Any, group: Any, keys: Any) -> tuple[Any, Any]:
    """Draw an item from each of some groups; return its place in the group, and the log of its probability there."""

    def one(group: Any, key: Any) -> tuple[Any, Any]:
        ticks, parts = inside(table, query, group[None])
        place, _ = picked(ticks[0], key, 1)
        return place[0], stopped(jnp, log_share(ticks[0, place[0]], parts[0], table.rows.dtype))

    places, logs = jax.lax.map(lambda x: one(*x), (group, keys), batch_size=_TOGETHER)
    return places, logs


def _log_inside(table: DeviceTable, query: Any, group: Any, place: Any) -> Any:
    """Return the log of the probability that an item has in its group; every group is taken once if items are many."""

    def one(group: Any) -> Any:
        ticks, parts = inside(table, query, group[None])
        return log_share(ticks[0], parts, table.rows.dtype)

    groups = len(table.count)
    if len(group) > groups:
        return jax.lax.map(one, jnp.arange(groups), batch_size=_TOGETHER)[group, place]
    return jax.lax.map(lambda x: one(x[0])[x[1]], (group, place), batch_size=_TOGETHER)


def _numbers(table: DeviceTable, how: How, n: int) -> int:
    items = how.head + min(n, _TOGETHER) * (LARGEST if how.whole else 1)
    (cells, dim), groups = table.means.shape, len(table.count)
    every = groups * LARGEST if how.whole and n > groups else n
    numbers: int = items * (dim + 1) + cells + groups + every
    return numbers


@partial(jax.jit, static_argnames=("n", "how"))
def _sampled(table: DeviceTable, queries: Any, key: Any, *, n: int, how: How) -> Any:
    def one(query: Any, number: Any) -> Any:
        return _drawn(table, query, jax.random.fold_in(key, number), n, how)

    return each_query(one, (queries, jnp.arange(len(queries))), _numbers(table, how, n))


@partial(jax.jit, static_argnames="how")
def _stated(table: DeviceTable, queries: Any, ids: Any, *, how: How) -> Any:
    def one(query: Any, rows: Any) -> Any:
        return _of_rows(table, query, rows, how)

    found = each_query(one, (queries, rows_at(table, ids)), _numbers(table, how, ids.shape[-1]))
    return jax.tree.map(partial(stopped, jnp), found)


def _devices(log_total: Any, axis: str) -> tuple[Any, Any]:
    """Return each device's probability, in parts of their sum, for each query: (queries, devices), and this sum."""
    ticks = jax.vmap(lambda log: counted(log)[0])(jax.lax.all_gather(log_total, axis, axis=1))
    return ticks, jnp.maximum(jnp.sum(ticks, 1), 1)


@partial(jax.jit, static_argnames=("n", "how", "mesh", "axis"))
def _sampled_of_mesh(table: DeviceTable, queries: Any, key: Any, *, n: int, how: How, mesh: Any, axis: str) -> Any:
    def part(table: DeviceTable, queries: Any, key: Any) -> Any:
        own, me = jax.tree.map(lambda x: x[0], table), jax.lax.axis_index(axis)
        device_key, item_key = jax.random.split(key)
        ids, log, logits, log_total = _sampled(own, queries, jax.random.fold_in(item_key, me), n=n, how=how)
        ticks, size = _devices(log_total, axis)
        keys = jax.random.split(device_key, len(queries))
        device = jax.vmap(lambda ticks, key: picked(ticks, key, n)[0])(ticks, keys)
        log = log + log_share(ticks[:, me], size, log.dtype)[:, None]
        return jax.lax.psum(tuple(jnp.where(device == me, x, 0) for x in (ids, log, logits)), axis)

    spec, whole = jax.sharding.PartitionSpec(axis), jax.sharding.PartitionSpec()
    return jax.shard_map(part, mesh=mesh, in_specs=(spec, whole, whole), out_specs=whole)(table, queries, key)


@partial(jax.jit, static_argnames=("how", "mesh", "axis"))
def _stated_of_mesh(table: DeviceTable, queries: Any, ids: Any, *, how: How, mesh: Any, axis: str) -> Any:
    def part(table: DeviceTable, queries: Any, ids: Any) -> Any:
        own, me = jax.tree.map(lambda x: x[0], table), jax.lax.axis_index(axis)
        log, log_total = _stated(own, queries, ids, how=how)
        ticks, size = _devices(log_total, axis)
        return jax.lax.pmax(log + log_share(ticks[:, me], size, log.dtype)[:, None], axis)

    spec, whole = jax.sharding.PartitionSpec(axis), jax.sharding.PartitionSpec()
    return jax.shard_map(part, mesh=mesh, in_specs=(spec, whole, whole), out_specs=whole)(table, queries, ids)
