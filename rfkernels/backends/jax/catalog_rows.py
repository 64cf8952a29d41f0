"""Items that change on the devices of JAX, in static shapes: rows replaced, and guesses renewed.

With these and `catalog_groups` a training run whose negatives come from a catalog stays on its devices throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfkernels._arrays import matmul, stopped
from rfkernels._checks import check_array, is_tracer, require_finite
from rfkernels.backends.jax.catalog_arguments import check_filled, check_ids, check_known, parts_of, promoting
from rfkernels.backends.jax.catalog_proposal import rows_at
from rfkernels.backends.jax.tables import DeviceTable, Sharded
from rfkernels.catalog.rays import LENGTHS, SAMPLED


@promoting
def with_rows(table: DeviceTable | Sharded, ids: Any, vectors: Any) -> DeviceTable | Sharded:
    """Return a table in which the vectors of some ids are replaced.

    Items stay in their groups, and what is guessed of these stays as it was until `refreshed` or `regrouped`: the
    farther items move meanwhile, the more weights differ. That is variance and never bias: probabilities stay exact,
    and estimates leave out the control variate of cells that an item of was replaced. Standard errors are too small
    where no draw has met an item that moved beyond what is guessed of its group.

    May be called under `jax.jit`.

    Parameters
    ----------
    table : DeviceTable or Sharded
    ids : array of int, shape (items,)
        The items, each once. An id of −1 is padding: what comes with it is left out.
    vectors : array, shape (items, dim)
        What takes their places, converted to the dtype of the table. Constants to derivatives.

    Returns
    -------
    DeviceTable or Sharded
        Of the same shapes.

    Raises
    ------
    KeyError
        If an id is not in the table; under `jax.jit` it is left out.
    TypeError, ValueError
        If arguments do not fit together, the table has no items, vectors are not finite or, outside `jax.jit`, an id
        occurs twice.
    """
    own, _ = parts_of(table)
    check_filled(table)
    dim = own.means.shape[-1]
    given = check_ids(ids, (1,))
    check_array("vectors", vectors, 1)
    if vectors.shape != (len(given), dim):
        raise ValueError(f"vectors must have shape ({len(given)}, {dim}), a row for each id, got {vectors.shape}")
    with np.errstate(over="ignore"):
        held = jnp.asarray(vectors, own.rows.dtype)
    require_finite("vectors", held)
    if not is_tracer(given):
        known = np.asarray(given)[np.asarray(given) >= 0]
        ordered = np.sort(known)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise ValueError(f"ids must be distinct, but {twice[0]} occurs more than once")
    check_known(given, _known(own, given) | (given == -1))
    made: DeviceTable | Sharded
    made = on_each(table, _replaced, given, stopped(jnp, held))
    return made


@promoting
def refreshed(table: DeviceTable | Sharded) -> DeviceTable | Sharded:
    """Return a table with means, spreads and covariance of the items as they are by now, each still in its group.

    Takes a pass over the items, dim² multiplications each. May be called under `jax.jit`; with a table of the same
    shapes, so that `jax.lax.cond` may do it every so many steps.
    """
    check_filled(table)
    made: DeviceTable | Sharded = on_each(table, _refreshed)
    return made


def on_each(table: DeviceTable | Sharded, function: Callable[..., Any], *given: Any) -> Any:
    """Apply a function of a table and arrays that all devices have to a table, or to that of each device."""
    if isinstance(table, DeviceTable):
        return _of_device(table, *given, function=function)
    return replace(table, table=_of_mesh(table.table, *given, function=function, mesh=table.mesh, axis=table.axis))


@partial(jax.jit, static_argnames="function")
def _of_device(table: DeviceTable, *given: Any, function: Callable[..., Any]) -> Any:
    return function(table, *given)


@partial(jax.jit, static_argnames=("function", "mesh", "axis"))
def _of_mesh(table: DeviceTable, *given: Any, function: Callable[..., Any], mesh: Any, axis: str) -> Any:
    def part(table: DeviceTable, *given: Any) -> Any:
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], table), *given))

    spec, whole = jax.sharding.PartitionSpec(axis), jax.sharding.PartitionSpec()
    specs = (spec, *[whole] * len(given))
    return jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=spec)(table, *given)


def _known(table: DeviceTable, ids: Any) -> Any:
    slots = table.slots.reshape(-1, table.slots.shape[-1])
    found = slots.at[:, ids].get(mode="fill", fill_value=-1, wrap_negative_indices=False)
    return jnp.any(found >= 0, 0)


def _groups(table: DeviceTable) -> Any:
    """Return the group of each row; padding is of the number of groups."""
    ends = jnp.cumsum(table.count)
    return jnp.searchsorted(ends, jnp.arange(len(table.rows)), side="right")


def _replaced(table: DeviceTable, ids: Any, vectors: Any) -> DeviceTable:
    row = rows_at(table, ids)
    group = jnp.searchsorted(jnp.cumsum(table.count), row, side="right")
    cell = jnp.where(row < 0, len(table.means), table.cell[group])
    row = jnp.where(row < 0, len(table.rows), row)
    return table._replace(
        rows=table.rows.at[row].set(vectors, mode="drop"),
        settled=table.settled.at[cell].set(False, mode="drop"),
    )


def _refreshed(table: DeviceTable) -> DeviceTable:
    group = _groups(table)
    cell = jnp.where(group < len(table.cell), table.cell[jnp.minimum(group, len(table.cell) - 1)], len(table.means))
    return guesses(table, group, cell)


def guesses(table: DeviceTable, group: Any, cell: Any) -> DeviceTable:
    """Renew means, spreads, covariance and lengths for rows of these groups and cells; the last may be padding."""
    means = means_of(table.rows, cell, table.means)
    there = cell < len(means)
    apart = jnp.where(there[:, None], table.rows - means[jnp.minimum(cell, len(means) - 1)], 0)
    square = jnp.sum(apart * apart, 1)
    number = jnp.maximum(table.count, 1)
    spread = jnp.zeros(len(table.count), square.dtype).at[group].add(square, mode="drop") / number
    product = matmul(jnp, apart.T, apart)
    total, dim = jnp.trace(product), table.rows.shape[1]
    shape = jnp.where(total > 0, product / jnp.where(total > 0, total, 1), jnp.eye(dim, dtype=product.dtype) / dim)
    homes = table.homes._replace(lengths=_lengths(table, jnp.sum(there)))
    return table._replace(means=means, spread=spread, shape=shape, settled=jnp.ones(len(means), bool), homes=homes)


def _lengths(table: DeviceTable, items: Any) -> Any:
    """Return lengths as `DeviceHomes` has them, given how many rows are no padding."""
    part = jnp.arange(SAMPLED) / (SAMPLED - 1)
    rows = table.rows[(part * jnp.maximum(items - 1, 0)).astype(jnp.int32)]
    size = jnp.sqrt(jnp.sum(rows * rows, 1))
    found = jnp.quantile(size, 1 - (jnp.arange(LENGTHS) + 0.5) / LENGTHS)
    return jnp.where(items > 0, found, 0).astype(table.homes.lengths.dtype)


def means_of(rows: Any, cell: Any, before: Any) -> Any:
    """Return the mean of the rows of each cell; a cell without any keeps the one before.

    Summed about the means before: the error of rounding is then a part of how far items lie apart, not of where.
    """
    there = cell < len(before)
    apart = jnp.where(there[:, None], rows - before[jnp.minimum(cell, len(before) - 1)], 0)
    count = jnp.zeros(len(before), rows.dtype).at[cell].add(1, mode="drop")
    sums = jnp.zeros_like(before).at[cell].add(apart, mode="drop")
    return before + sums / jnp.maximum(count, 1)[:, None]
