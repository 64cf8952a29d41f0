"""Softmax-weighted means over a catalog on the devices of JAX, and logits of some of its items."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfkernels._arrays import is_jax, matmul, stopped
from rfkernels._checks import check_array
from rfkernels.backends.jax.catalog_arguments import (
    check_filled,
    check_key,
    check_places,
    check_queries,
    each_query,
    numbers_of,
    parts_of,
    promoting,
)
from rfkernels.backends.jax.catalog_plan import Plan, finite, guessed, placed, planned
from rfkernels.backends.jax.catalog_proposal import rows_at
from rfkernels.backends.jax.catalog_rays import along
from rfkernels.backends.jax.catalog_sums import variances
from rfkernels.backends.jax.tables import DeviceTable, Sharded
from rfkernels.catalog.plan import RUN
from rfkernels.catalog.rays import most_along
from rfkernels.catalog.records import Expectation


@promoting
def expectation(table: DeviceTable | Sharded, queries: Any, values: Any, budget: int, key: Any) -> Expectation:
    """Estimate the softmax-weighted mean Σ_i p_i v_i of values of the items.

    Numerator and denominator come from the same items: those of opened groups, and those drawn from the others, which
    count by one over their expected number of draws. May be called under `jax.jit` with `budget` static.

    Parameters
    ----------
    table : DeviceTable or Sharded
        What `device_table` or `sharded` returned. Devices of a mesh share the budget evenly and each takes the part of
        its own items; three numbers and two rows of values are communicated for each query.
    queries : array, shape (queries, dim)
        The queries.
    values : array, shape (largest id + 1, width)
        The value of each id, whole on every device; those of ids that are not in the table do not matter.
    budget : int
        As in `estimate`.
    key : jax.Array
        A key of `jax.random`. Queries draw independently of each other.

    Returns
    -------
    Expectation
        mean and standard_error, arrays of JAX, (queries, width). The bias of this ratio falls as one over the budget.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, queries are not finite, or the table has no items.
    """
    own, queries, places = parts_of(table)[0], check_queries(table, queries), check_places(table, budget)
    check_filled(table)
    check_key(key)
    values = _check_values(values, own)
    if isinstance(table, Sharded):
        return Expectation(*_of_mesh(own, queries, values, key, places=places, mesh=table.mesh, axis=table.axis))
    return Expectation(*_of_device(own, queries, values, key, places=places, axis=None))


def _check_values(values: Any, table: DeviceTable) -> Any:
    check_array("values", values, 2)
    least = table.slots.shape[-1]
    if values.ndim != 2 or len(values) < least:
        raise ValueError(f"values must have shape (at least {least}, width), a row for each id, got {values.shape}")
    return values if is_jax(values) else np.asarray(values)


@partial(jax.jit, static_argnames=("places", "axis"))
def _of_device(table: DeviceTable, queries: Any, values: Any, key: Any, *, places: int, axis: str | None) -> Any:
    def one(query: Any, number: Any) -> Any:
        return _mean(table, values, query, jax.random.fold_in(key, number), places, axis)

    width = queries.shape[1] + values.shape[1]
    return each_query(one, (queries, jnp.arange(len(queries))), numbers_of(table, places, width))


@partial(jax.jit, static_argnames=("places", "mesh", "axis"))
def _of_mesh(table: DeviceTable, queries: Any, values: Any, key: Any, *, places: int, mesh: Any, axis: str) -> Any:
    def part(table: DeviceTable, queries: Any, values: Any, key: Any) -> Any:
        own = jax.tree.map(lambda x: x[0], table)
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        return _of_device(own, queries, values, key, places=places, axis=axis)

    spec, whole = jax.sharding.PartitionSpec(axis), jax.sharding.PartitionSpec()
    specs = (spec, whole, whole, whole)
    return jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=whole)(table, queries, values, key)


def _mean(table: DeviceTable, values: Any, query: Any, key: Any, places: int, axis: str | None) -> tuple[Any, Any]:
    def over_devices(x: Any) -> Any:
        return x if axis is None else jax.lax.psum(x, axis)

    guess = guessed(table, query)
    plan = planned(table, guess, places, along(table, query, guess.cell_logits, most_along(places)))
    held, expected = placed(table, plan, key, places)
    logits = matmul(jnp, table.rows.at[held.row].get(mode="promise_in_bounds"), query)
    run = jnp.arange(places // RUN) < plan.runs
    drawn = jnp.repeat(run, RUN)
    log = jnp.where(drawn, logits - jnp.repeat(jnp.log(jnp.where(run, expected, 1)), RUN), logits)
    taken = drawn | held.opened
    log = jnp.where(taken, log, -jnp.inf)
    top = jnp.max(log)
    top = finite(top if axis is None else jax.lax.pmax(stopped(jnp, top), axis))
    weight = jnp.exp(log - top)
    own = jnp.where(taken[:, None], values[table.ids[held.row]], 0).astype(log.dtype)
    total, moment = over_devices((jnp.sum(weight), matmul(jnp, weight, own)))
    mean = moment / jnp.where(total > 0, total, 1)
    apart = jnp.where(drawn, weight, 0).reshape(-1, 1, RUN)
    parts = matmul(jnp, apart, (own - mean).reshape(-1, RUN, own.shape[1]))[:, 0]
    pairs = parts[: len(parts) // 2 * 2].reshape(-1, 2, own.shape[1])
    known = (jnp.arange(len(pairs)) < plan.runs // 2)[:, None]
    square = jnp.sum(jnp.where(known, pairs[:, 0] - pairs[:, 1], 0) ** 2, 0)
    deviation = matmul(jnp, weight, jnp.where(taken[:, None], own - mean, 0) ** 2)
    whole = stopped(jnp, jnp.where(total > 0, total, 1))
    beyond = _beyond(plan, jnp.sum(apart, (1, 2)) / whole, top + jnp.log(whole))
    square, deviation, share, runs, beyond = over_devices(
        stopped(jnp, (square, deviation, jnp.sum(apart), plan.runs, beyond))
    )
    one = share / whole / jnp.maximum(runs, 1)  # see `rfkernels.catalog.means.weigh`
    return mean, jnp.sqrt(square + jnp.minimum(beyond + one**2, 1) * deviation * whole) / whole


def _beyond(plan: Plan, parts: Any, log: Any) -> Any:
    """Return what counts of the variance that is predicted of a sum beyond what its parts, one of each run, show."""
    pairs, count = parts[: len(parts) // 2 * 2].reshape(-1, 2), plan.runs // 2
    apart = jnp.where(jnp.arange(len(pairs)) < count, pairs[:, 0] - pairs[:, 1], 0)
    alike = jnp.where(jnp.any(parts != 0), count, 0)
    beyond = variances(apart**2, alike, plan.runs, jnp.exp(2 * (plan.log_error - log)))[1]
    return jnp.where(plan.runs > 0, beyond, 0)


def logits_of(table: DeviceTable | Sharded, queries: Any, ids: Any) -> Any:
    """Return q·y of ids (queries, items), −inf for those that the table lacks."""
    if isinstance(table, Sharded):
        return _logits_of_mesh(table.table, queries, ids, mesh=table.mesh, axis=table.axis)
    return _logits(table, queries, ids)


@jax.jit
def _logits(table: DeviceTable, queries: Any, ids: Any) -> Any:
    rows = rows_at(table, ids)
    return each_query(
        lambda query, row: jnp.where(row >= 0, matmul(jnp, table.rows[jnp.maximum(row, 0)], query), -jnp.inf),
        (queries, rows),
        max(1, ids.shape[-1] * queries.shape[-1]),
    )


@partial(jax.jit, static_argnames=("mesh", "axis"))
def _logits_of_mesh(table: DeviceTable, queries: Any, ids: Any, *, mesh: Any, axis: str) -> Any:
    def part(table: DeviceTable, queries: Any, ids: Any) -> Any:
        own = _logits(jax.tree.map(lambda x: x[0], table), queries, ids)
        held = own > -jnp.inf
        found, times = jax.lax.psum((jnp.where(held, own, 0), held.astype(jnp.int32)), axis)
        return jnp.where(times > 0, found, -jnp.inf)

    spec, whole = jax.sharding.PartitionSpec(axis), jax.sharding.PartitionSpec()
    return jax.shard_map(part, mesh=mesh, in_specs=(spec, whole, whole), out_specs=whole)(table, queries, ids)
