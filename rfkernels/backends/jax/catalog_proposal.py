"""What items are drawn from on the devices of JAX: groups by their guessed sums, and some items by exp(q·y).

Probability is counted in whole numbers, as in `catalog_plan`, at least 1 for every item taken and every group that is
drawn from: so it is known exactly in any precision, and no item is out of reach.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rfkernels._arrays import matmul
from rfkernels.backends.jax.catalog_plan import TICKS, finite, guessed
from rfkernels.backends.jax.catalog_rays import along
from rfkernels.backends.jax.tables import DeviceTable
from rfkernels.catalog.cells import LARGEST
from rfkernels.catalog.rays import SHARE
from rfkernels.catalog.sampling import HEAD_GROUPS


class Proposal(NamedTuple):
    """What is drawn from for one query: closed groups, then places of items that were taken.

    Parameters
    ----------
    ticks : array of int32, shape (groups + head,)
        Probabilities of groups and places, in parts of their sum.
    rows : array of int32, shape (head,)
        The row of each place.
    begin : array of int32, shape (groups,)
        The place of the first item of each group, −1 for groups that are drawn from.
    log_total : array
        Log of what all items are guessed to weigh, −inf without items.
    """

    ticks: Any
    rows: Any
    begin: Any
    log_total: Any


def proposed(table: DeviceTable, query: Any, head: int) -> Proposal:
    """Take items of the groups that promise most, `head` at most; count what these and the other groups weigh.

    Those along the query come first.
    """
    guess = guessed(table, query)
    log = guess.log_mean
    log_sums = log + jnp.log(jnp.maximum(table.count, 1).astype(log.dtype))
    begin = jnp.full(len(table.count), -1, jnp.int32)
    if not head:
        ticks, log_total = counted(log_sums)
        return Proposal(ticks, jnp.zeros(0, jnp.int32), begin, log_total)
    looked = along(table, query, guess.cell_logits, head // SHARE)
    order = jax.lax.top_k(jnp.where(looked, jnp.inf, log_sums), min(HEAD_GROUPS, len(table.count)))[1]
    ends = jnp.cumsum(table.count[order])
    first, fits = ends - table.count[order], (ends <= head) & (table.count[order] > 0)
    begin = begin.at[order].set(jnp.where(fits, first, -1))
    place = jnp.arange(head)
    rank = jnp.minimum(jnp.searchsorted(ends, place, side="right"), len(order) - 1)
    held = fits[rank] & (place < ends[-1])
    rows = jnp.where(held, table.start[order][rank] + place - first[rank], 0)
    logits = jnp.where(held, matmul(jnp, table.rows[rows], query), -jnp.inf)
    ticks, log_total = counted(jnp.concatenate([jnp.where(begin < 0, log_sums, -jnp.inf), logits]))
    return Proposal(ticks, rows, begin, log_total)


def inside(table: DeviceTable, query: Any, group: Any) -> tuple[Any, Any]:
    """Take all items of groups (n,); return what they weigh, (n, 512), in parts of the sum over each, and that sum."""
    place, count = jnp.arange(LARGEST), table.count[group][:, None]
    rows = table.start[group][:, None] + jnp.minimum(place, count - 1)
    logits = jnp.where(place < count, matmul(jnp, table.rows[rows], query), -jnp.inf)
    ticks = jax.vmap(lambda log: counted(log)[0])(logits)
    return ticks, jnp.maximum(jnp.sum(ticks, 1, dtype=jnp.int32), 1)


def counted(log_weights: Any) -> tuple[Any, Any]:
    """Return probabilities in parts of their sum, at least 1 where a weight is not 0, and the log of all weights."""
    top = finite(jnp.max(log_weights))
    weight = jnp.exp(log_weights - top)
    total = jnp.sum(weight)
    share = weight / jnp.where(total > 0, total, 1)
    ticks = jnp.where(log_weights > -jnp.inf, jnp.maximum(jnp.floor(share * TICKS), 1), 0)
    return ticks.astype(jnp.int32), top + jnp.log(total)


def picked(ticks: Any, key: Any, n: int) -> tuple[Any, Any]:
    """Draw n places by their probability in parts of the sum; return them and that sum."""
    ends = jnp.cumsum(ticks, dtype=jnp.int32)
    size = jnp.maximum(ends[-1], 1)
    place = jnp.searchsorted(ends, jax.random.randint(key, (n,), 0, size), side="right")
    return jnp.minimum(place, len(ticks) - 1), size


def log_share(ticks: Any, size: Any, dtype: Any) -> Any:
    """Return the log of a probability that is counted in parts of a sum."""
    return jnp.log(ticks.astype(dtype)) - jnp.log(size.astype(dtype))


def rows_at(table: DeviceTable, ids: Any) -> Any:
    """Return the rows of ids, −1 for those that the table lacks."""
    return table.slots.at[ids].get(mode="fill", fill_value=-1, wrap_negative_indices=False)
