"""The catalog on the devices of JAX: all its public names, and the estimates of `rfkernels.catalog.estimates`.

Every query takes the same number of dot products: those with the means of cells, and one for each of its places. The
first places hold runs of items drawn from closed groups, the others all items of opened groups; how many groups are
opened is decided for each query, and no place is wasted on padding.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rfkernels._arrays import matmul, stopped
from rfkernels.backends.jax.catalog_arguments import check_known, check_places, check_queries, each_query, parts_of
from rfkernels.backends.jax.catalog_draws import check_each, log_probability, sample
from rfkernels.backends.jax.catalog_groups import regrouped
from rfkernels.backends.jax.catalog_means import expectation, logits_of
from rfkernels.backends.jax.catalog_plan import finite, placed, planned
from rfkernels.backends.jax.catalog_rows import refreshed, with_rows
from rfkernels.backends.jax.tables import DeviceTable, Sharded, device_table, sharded, split
from rfkernels.catalog.plan import RUN
from rfkernels.catalog.records import Estimate
from rfkernels.catalog.trust import FEW

__all__ = [
    "DeviceTable",
    "Sharded",
    "device_table",
    "estimate",
    "expectation",
    "log_probability",
    "probabilities",
    "refreshed",
    "regrouped",
    "sample",
    "sharded",
    "split",
    "with_rows",
]


def estimate(table: DeviceTable | Sharded, queries: Any, budget: int, key: Any) -> Estimate:
    """Estimate the log-normalizers of queries: log Σ_i exp(q·y_i) over the items of a table.

    What `rfkernels.catalog.estimates.estimate` computes, in the dtype of the items and with JAX's random numbers. May
    be called under `jax.jit` with `budget` static; compiled once for each shape and budget. Logits are computed at full
    precision. Memory beyond the items is for a bounded number of queries at a time.

    Parameters
    ----------
    table : DeviceTable or Sharded
        What `device_table` or `sharded` returned. Devices of a mesh share the budget evenly; each estimates the sum
        over its own items, and of each query no more than that sum and its error is communicated. A `DeviceTable` may
        be an argument of compiled functions, and so may a `Sharded`.
    queries : array, shape (queries, dim)
        The queries.
    budget : int
        Dot products for each query, those with the means of cells and with the rows of the shape included.
    key : jax.Array
        A key of `jax.random`. Queries draw independently of each other.

    Returns
    -------
    Estimate
        Arrays of JAX, (queries,). The log-normalizer of no items is −inf.

    Raises
    ------
    TypeError
        If the queries are not an array of floats, or the budget is not an int.
    ValueError
        If the queries are not finite rows as long as items, or the budget does not suffice for a sample on each device.
    """
    own, devices = parts_of(table)
    queries, places = check_queries(table, queries), check_places(table, budget)
    if isinstance(table, Sharded):
        log, error, taken = _of_mesh(own, queries, key, places=places, mesh=table.mesh, axis=table.axis)
    else:
        log, error, taken = _of_device(own, queries, key, places=places)
    return Estimate(log, error, taken + devices * sum(own.means.shape[-2:]))


def probabilities(table: DeviceTable | Sharded, queries: Any, ids: Any, budget: int, key: Any) -> Any:
    """Estimate the softmax exp(q·y_i) / Z of some items.

    Parameters
    ----------
    table, queries, budget, key
        As in `estimate`, whose standard error is also that of the log of each probability.
    ids : array of int, shape (items,) or (queries, items)
        The items: the same for all queries, or each query's own.

    Returns
    -------
    array, shape (queries, items)
        Probabilities; not cut at one, which an estimate may pass.

    Raises
    ------
    KeyError
        If an id is not in the table; under `jax.jit` its probability is 0.
    TypeError, ValueError
        If arguments do not fit together.
    """
    queries = check_queries(table, queries)
    each = check_each(ids, queries)
    logits = logits_of(table, queries, each)
    check_known(ids, logits > -jnp.inf)
    return jnp.exp(logits - estimate(table, queries, budget, key).log_normalizer[:, None])


@partial(jax.jit, static_argnames="places")
def _of_device(table: DeviceTable, queries: Any, key: Any, *, places: int) -> Any:
    return _estimated(table, queries, key, places)


@partial(jax.jit, static_argnames=("places", "mesh", "axis"))
def _of_mesh(table: DeviceTable, queries: Any, key: Any, *, places: int, mesh: Any, axis: str) -> Any:
    def part(table: DeviceTable, queries: Any, key: Any) -> Any:
        own = jax.tree.map(lambda x: x[0], table)
        log, error, taken = _estimated(own, queries, jax.random.fold_in(key, jax.lax.axis_index(axis)), places)
        top = finite(jax.lax.pmax(stopped(jnp, log), axis))
        value = jnp.exp(log - top)
        total, square, dots = jax.lax.psum((value, stopped(jnp, value * error) ** 2, taken), axis)
        return top + jnp.log(total), jnp.sqrt(square) / jnp.where(total > 0, total, 1), dots

    spec, whole = jax.sharding.PartitionSpec(axis), jax.sharding.PartitionSpec()
    return jax.shard_map(part, mesh=mesh, in_specs=(spec, whole, whole), out_specs=whole)(table, queries, key)


def _estimated(table: DeviceTable, queries: Any, key: Any, places: int) -> Any:
    """Return log-normalizers, standard errors and how many items were taken, a bounded number of queries at a time."""

    def one(query: Any, number: Any) -> Any:
        return _one(table, query, jax.random.fold_in(key, number), places)

    if not len(table.count) or not len(table.rows):
        nothing = jnp.zeros(len(queries), queries.dtype)
        return nothing - jnp.inf, nothing, jnp.zeros(len(queries), jnp.int32)
    return each_query(one, (queries, jnp.arange(len(queries))), places * queries.shape[1])


def _one(table: DeviceTable, query: Any, key: Any, places: int) -> Any:
    plan = planned(table, query, places)
    held, expected = placed(table, plan, key, places)
    logits = matmul(jnp, table.rows.at[held.row].get(mode="promise_in_bounds"), query)
    run = jnp.arange(places // RUN) < plan.runs
    taken = jnp.where(jnp.repeat(run, RUN) | held.opened, logits, -jnp.inf)
    top = jnp.maximum(jnp.where(jnp.any(plan.slopes > 0), plan.top, -jnp.inf), jnp.max(taken))
    weights = jnp.exp(taken - finite(top))
    cell = table.cell[held.group]
    # Over a whole cell this part sums to 0: what opened groups have of it, the others lack.
    slopes = jnp.where(plan.slopes > 0, jnp.exp(jnp.minimum(plan.top - finite(top), 0)) * plan.slopes, 0)
    moved = slopes[cell] * (logits - plan.centre[cell])
    head, known = (jnp.sum(jnp.where(held.opened, x, 0)) for x in (weights, moved))
    expected = jnp.where(run, expected, 1)
    plain, bent = (jnp.where(run, jnp.sum(x.reshape(-1, RUN), -1) / expected, 0) for x in (weights, weights - moved))
    total = head + jnp.sum(bent) - known
    parts = jnp.where(total > 0, bent, plain)
    total = jnp.where(total > 0, total, head + jnp.sum(plain))  # only where the error is larger than the sum itself
    pairs = parts[: len(parts) // 2 * 2].reshape(-1, 2)
    log, count = top + jnp.log(total), plan.runs // 2
    apart = jnp.where(jnp.arange(len(pairs)) < count, pairs[:, 0] - pairs[:, 1], 0) / jnp.where(total > 0, total, 1)
    predicted = jnp.exp(2 * (plan.log_error - finite(log)))
    error = _trusted(stopped(jnp, apart) ** 2, jnp.where(jnp.any(parts != 0), count, 0), plan.runs, predicted)
    return log, error, plan.ends[-1] + RUN * plan.runs


def _trusted(square: Any, alike: Any, runs: Any, predicted: Any) -> Any:
    """Return the standard error that `rfkernels.catalog.trust.trusted_error` specifies; no runs have none.

    `alike` is how many differences there are in effect if they are all zero.
    """
    most = jnp.max(square)
    relative = square / jnp.where(most > 0, most, 1)  # fourth powers would be less than the smallest number
    effective = jnp.where(most > 0, jnp.sum(relative) ** 2 / jnp.maximum(jnp.sum(relative**2), 1), alike)
    seen = jnp.sum(square) * runs / jnp.maximum(runs // 2 * 2, 1)
    share = FEW**2 / (effective**2 + FEW**2)
    return jnp.where(runs > 0, jnp.sqrt(seen + share * jnp.maximum(predicted - seen, 0)), 0)
