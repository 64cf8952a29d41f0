"""The items of largest q·y on the devices of JAX: looked for in the groups that promise most, or among all."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rfkernels._arrays import matmul
from rfkernels.backends.jax.catalog_arguments import (
    check_count,
    check_places,
    check_queries,
    each_query,
    numbers_of,
    parts_of,
    promoting,
)
from rfkernels.backends.jax.catalog_plan import rounded_size
from rfkernels.backends.jax.tables import DeviceTable, Sharded
from rfkernels.catalog.records import Top

_SHARED = 16
"""How many times as many numbers may be under way where all items are taken: products of few queries read them anew."""


@promoting
def top(table: DeviceTable | Sharded, queries: Any, k: int, budget: int | None = None) -> Top:
    """Return the k items of largest q·y among those that a query takes, largest first.

    A query takes the groups that promise most, q·μ + s √(2 log n) with the deviation s and the number n of their items,
    as `Catalog.top` does where items have no codes; of the last one as many items as there is room for. Without a
    budget, or with one that suffices for the rows of each device, all are taken, by products of matrices. May be called
    under `jax.jit` with `k` and `budget` static.

    Parameters
    ----------
    table : DeviceTable or Sharded
        What `device_table` or `sharded` returned. Devices of a mesh share the budget evenly, each looks for k among its
        own items, and these are communicated.
    queries : array, shape (queries, dim)
        The queries.
    k : int
        How many.
    budget : int, optional
        As in `estimate`: it decides how many of the true largest are found. All of them by default.

    Returns
    -------
    Top
        ids and logits, arrays of JAX, (queries, k). Where rows of the table are padding and there are fewer items than
        k, the others are −1 and −inf.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, queries are not finite, or a query may not take k items.
    """
    own, devices = parts_of(table)
    queries = check_queries(table, queries)
    check_count("k", k, 1)
    rows = own.ids.shape[-1]
    if budget is None:
        budget = devices * rows
    check_count("budget", budget)
    every = budget // devices >= rows
    places, most = (rows, devices * rows) if every else [check_places(table, budget)] * 2
    if not most:
        raise ValueError("table must have items, got none")
    if k > most:
        raise ValueError(f"k must be at most {most}, the items that a query may take, got {k}")
    how = {"k": int(k), "places": None if every else places}
    if isinstance(table, Sharded):
        return Top(*_of_mesh(own, queries, **how, mesh=table.mesh, axis=table.axis))
    return Top(*_of_device(own, queries, **how))


@partial(jax.jit, static_argnames=("k", "places"))
def _of_device(table: DeviceTable, queries: Any, *, k: int, places: int | None) -> Any:
    one = partial(_of_all, table, k) if places is None else partial(_of_groups, table, k, places)
    numbers = -(-len(table.rows) // _SHARED) if places is None else numbers_of(table, places, queries.shape[1])
    return each_query(one, (queries,), numbers)


@partial(jax.jit, static_argnames=("k", "places", "mesh", "axis"))
def _of_mesh(table: DeviceTable, queries: Any, *, k: int, places: int | None, mesh: Any, axis: str) -> Any:
    def part(table: DeviceTable, queries: Any) -> Any:
        own = _of_device(jax.tree.map(lambda x: x[0], table), queries, k=k, places=places)
        ids, logits = (jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in own)
        return jax.vmap(partial(_largest, k))(ids, logits)

    spec, whole = jax.sharding.PartitionSpec(axis), jax.sharding.PartitionSpec()
    # Every device finds the same of what all have sent, which JAX cannot see.
    run = jax.shard_map(part, mesh=mesh, in_specs=(spec, whole), out_specs=whole, check_vma=False)
    return run(table, queries)


def _of_all(table: DeviceTable, k: int, query: Any) -> tuple[Any, Any]:
    logits = jnp.where(table.ids >= 0, matmul(jnp, table.rows, query), -jnp.inf)
    return _largest(k, table.ids, logits)


def _of_groups(table: DeviceTable, k: int, places: int, query: Any) -> tuple[Any, Any]:
    beyond = jnp.sqrt(table.spread) * jnp.sqrt(2 * jnp.log(jnp.maximum(table.count, 2)))
    promised = matmul(jnp, table.means, query)[table.cell] + rounded_size(table, query) * beyond
    order = jnp.argsort(jnp.where(table.count > 0, -promised, jnp.inf))
    ends = jnp.cumsum(table.count[order])
    place = jnp.arange(places)
    rank = jnp.minimum(jnp.searchsorted(ends, place, side="right"), len(order) - 1)
    group = order[rank]
    row = jnp.where(place < ends[-1], table.start[group] + place - (ends[rank] - table.count[group]), 0)
    logits = matmul(jnp, table.rows.at[row].get(mode="promise_in_bounds"), query)
    return _largest(k, table.ids[row], jnp.where(place < ends[-1], logits, -jnp.inf))


def _largest(k: int, ids: Any, logits: Any) -> tuple[Any, Any]:
    """Return the ids of the k largest and their logits, −1 and −inf for none."""
    found, place = jax.lax.top_k(logits, min(k, len(logits)))
    missing = (0, k - len(found))
    found = jnp.pad(found, missing, constant_values=-jnp.inf)
    return jnp.where(found > -jnp.inf, jnp.pad(ids[place], missing, constant_values=-1), -1), found
