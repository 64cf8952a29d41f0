"""The catalog on the devices of JAX: all its public names, and log-normalizers and probabilities."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from rfkernels.backends.jax.catalog_arguments import check_filled, check_known, check_queries, promoting
from rfkernels.backends.jax.catalog_draws import check_each, log_probability, sample
from rfkernels.backends.jax.catalog_groups import regrouped
from rfkernels.backends.jax.catalog_kernels import kernel_sum
from rfkernels.backends.jax.catalog_means import expectation, logits_of
from rfkernels.backends.jax.catalog_rows import refreshed, with_rows
from rfkernels.backends.jax.catalog_sums import SOFTMAX, summed
from rfkernels.backends.jax.catalog_tops import top
from rfkernels.backends.jax.tables import DeviceTable, Sharded, device_table, sharded, split
from rfkernels.catalog.records import Estimate

__all__ = [
    "DeviceTable",
    "Sharded",
    "device_table",
    "estimate",
    "expectation",
    "kernel_sum",
    "log_probability",
    "probabilities",
    "refreshed",
    "regrouped",
    "sample",
    "sharded",
    "split",
    "top",
    "with_rows",
]


@promoting
def estimate(table: DeviceTable | Sharded, queries: Any, budget: int, key: Any) -> Estimate:
    """Estimate the log-normalizers of queries: log Σ_i exp(q·y_i) over the items of a table.

    What `rfkernels.catalog.estimates.estimate` computes, in the dtype of the items and with JAX's random numbers. May
    be called under `jax.jit` with `budget` static; compiled once for each shape and budget. Logits are computed at full
    precision. Memory beyond the items is for a bounded number of queries at a time, of derivatives too.

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
    return summed(table, check_queries(table, queries), budget, key, SOFTMAX, None)


@promoting
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
        If arguments do not fit together, or the table has no items.
    """
    queries = check_queries(table, queries)
    check_filled(table)
    each = check_each(ids, queries)
    logits = logits_of(table, queries, each)
    check_known(ids, logits > -jnp.inf)
    return jnp.exp(logits - estimate(table, queries, budget, key).log_normalizer[:, None])
