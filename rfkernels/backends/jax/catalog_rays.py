"""Groups that items along a query, or at a point, would join, on the devices of JAX.

See `rfkernels.catalog.rays` and `rfkernels.catalog.homes`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfkernels._arrays import matmul, stopped
from rfkernels.backends.jax.tables import DeviceTable
from rfkernels.catalog.homes import ROUNDED, looked
from rfkernels.catalog.rays import NEAR, SLIGHT


def along(table: DeviceTable, query: Any, cell_logits: Any, most: int) -> Any:
    """Return which groups items along a query would join, (groups,), of no more than `most` items in all.

    Cells whose items moved since they were grouped have none.
    """
    query, centre = stopped(jnp, (query, cell_logits))
    known, none = table.homes, jnp.zeros(len(table.count), bool)
    if most < 1:
        return none
    held = _held(table)
    size = jnp.sqrt(matmul(jnp, query, query))
    least = jax.scipy.special.logsumexp(jnp.where(held > 0, centre, -jnp.inf), b=held) - SLIGHT
    matter, unit = (known.lengths > 0) & (size * known.lengths > least), jnp.where(size > 0, size, jnp.inf)
    group = _joined(table, query / unit, centre / unit)
    first = jnp.argmax((group[:, None] == group) & matter, 1) == jnp.arange(len(group))
    new = matter & first & (group >= 0)
    fits = jnp.cumsum(jnp.where(new, table.count[group], 0)) <= most
    return none.at[jnp.where(new & fits, group, len(none))].set(True, mode="drop")


def _joined(table: DeviceTable, unit: Any, across: Any) -> Any:
    """Return the group that an item of each length along a direction would join, −1 if cells near it hold none."""
    known, means, held = table.homes, table.means, _settled(table)
    square = jnp.where(held > 0, jnp.sum(means * means, 1), jnp.inf)
    near = jax.lax.top_k(2 * jnp.median(known.lengths) * across - square, min(NEAR, len(means)))[1]
    own, centres = matmul(jnp, unit, known.metric), known.centres[near]
    beyond = jnp.where(held[near] > 0, jnp.sum(centres * centres, 1), jnp.inf)
    lengths = known.lengths[:, None]
    away = beyond - 2 * lengths * matmul(jnp, centres, own) + lengths**2 * matmul(jnp, own, own)
    return _at(table, near[jnp.argmin(away, 1)], jnp.min(away, 1))


def home(table: DeviceTable, point: Any, square: Any) -> Any:
    """Return the group that a point would join, −1 for none, given squared distances from the means of cells.

    See `rfkernels.catalog.homes`; cells whose items moved since they were grouped have none.
    """
    held = _settled(table)
    near = jax.lax.top_k(-jnp.where(held > 0, square, jnp.inf), looked(table.means))[1]
    away = jnp.sum((matmul(jnp, point, table.homes.metric) - table.homes.centres[near]) ** 2, 1)
    away = jnp.where(held[near] > 0, away, jnp.inf)
    return _at(table, near[jnp.argmin(away)], jnp.min(away))


def _held(table: DeviceTable) -> Any:
    """Return how many items cells hold."""
    return jnp.zeros(len(table.means), table.count.dtype).at[table.cell].add(table.count)


def _settled(table: DeviceTable) -> Any:
    """Return how many items cells hold, none where some moved."""
    return jnp.where(table.settled, _held(table), 0)


def _at(table: DeviceTable, cell: Any, away: Any) -> Any:
    """Return the groups of cells that items at squared distances from their centres would join, −1 for none."""
    known, reach = table.homes, away * (1 + ROUNDED * np.finfo(away.dtype).eps)
    first, last = known.first[cell], known.first[cell] + known.groups[cell]

    def halved(_: Any, bounds: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = bounds
        middle = (low + high) // 2
        inside = known.edge[middle] <= reach
        return jnp.where((low < high) & inside, middle + 1, low), jnp.where((low < high) & ~inside, middle, high)

    steps = max(len(known.edge), 1).bit_length()
    outermost, _ = jax.lax.fori_loop(0, steps, halved, (first, last))
    some = jnp.isfinite(reach) & (last > first)
    return jnp.where(some, known.order[jnp.maximum(outermost - 1, first)], -1)
