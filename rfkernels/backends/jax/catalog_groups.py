"""Cells of a catalog found anew on the devices of JAX, in static shapes, as items move."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfkernels._arrays import matmul
from rfkernels.backends.jax.catalog_arguments import check_count, check_filled, check_key, promoting
from rfkernels.backends.jax.catalog_rows import guesses, means_of, on_each
from rfkernels.backends.jax.tables import DeviceHomes, DeviceTable, Sharded
from rfkernels.catalog.cells import SHELLS

_TOGETHER = 8192
"""Items whose distances from all centres are held at a time."""


@promoting
def regrouped(table: DeviceTable | Sharded, key: Any, *, rounds: int = 3) -> DeviceTable | Sharded:
    """Return a table of the same items in new cells and groups, by k-means from the means of the cells so far.

    Cells are cut into groups by distance, as when a catalog is built that was told no past queries, and all guesses
    renewed. May be called under `jax.jit` with `rounds` static: there are room for cells + items / 64 groups or so,
    however many are used, and a table that was regrouped once keeps its shapes.

    Parameters
    ----------
    table : DeviceTable or Sharded
        Each device of a mesh regroups its own items; nothing is communicated.
    key : jax.Array
        A key of `jax.random`: items of a group are in random order.
    rounds : int, default 3
        Rounds of Lloyd's algorithm. Each takes the dot products of all items with all centres.

    Returns
    -------
    DeviceTable or Sharded
        Items keep their ids, and change rows.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, or the table has no items.
    """
    check_filled(table)
    check_count("rounds", rounds)
    check_key(key)
    made: DeviceTable | Sharded = on_each(table, _regrouping(rounds), key)
    return made


@cache
def _regrouping(rounds: int) -> Callable[..., Any]:
    """The same function for the same number of rounds, so that it is compiled once."""
    return partial(_regrouped, rounds=rounds)


def _regrouped(table: DeviceTable, key: Any, rounds: int) -> DeviceTable:
    there, cells = table.ids >= 0, len(table.means)
    means = table.means
    for _ in range(rounds):
        cell, _ = _nearest(table.rows, means)
        means = means_of(table.rows, jnp.where(there, cell, cells), means)
    cell, square = _nearest(table.rows, means)
    cell = jnp.where(there, cell, cells)
    size = jnp.zeros(cells, jnp.int32).at[cell].add(1, mode="drop")
    outermost = jnp.lexsort((-square, cell))
    ends = jnp.cumsum(size)
    rank = jnp.arange(len(cell)) - jnp.append(ends - size, 0)[cell[outermost]]
    groups, within = _shells(size)
    last = jnp.append(groups, 1)[cell[outermost]] - 1
    first = jnp.cumsum(groups) - groups
    room = max(len(table.count), most_groups(len(cell), cells))
    group = jnp.append(first, room)[cell[outermost]] + jnp.minimum(within(rank), last)
    shuffled = jnp.lexsort((jax.random.uniform(key, group.shape), group))
    order, group = outermost[shuffled], group[shuffled]
    ids = table.ids[order]
    count = jnp.zeros(room, jnp.int32).at[group].add(1, mode="drop")
    cell, row = cell[order], jnp.arange(len(ids), dtype=jnp.int32)
    own = jnp.zeros(room, jnp.int32).at[group].set(cell, mode="drop")
    every = jnp.arange(room, dtype=jnp.int32)
    outwards = jnp.where(count > 0, 2 * first[own] + groups[own] - 1 - every, every)  # groups begin with the outermost
    edge = jnp.full(room, jnp.inf, square.dtype).at[group].min(square[order], mode="drop")
    homes = DeviceHomes(
        metric=jnp.eye(table.rows.shape[1], dtype=means.dtype),
        centres=means,
        order=outwards.astype(jnp.int32),
        edge=edge[outwards],
        first=first.astype(jnp.int32),
        groups=groups.astype(jnp.int32),
        lengths=table.homes.lengths,
    )
    made = table._replace(
        rows=table.rows[order],
        ids=ids,
        start=jnp.cumsum(count) - count,
        count=count,
        cell=own,
        means=means,
        seen=jnp.ones(room, table.seen.dtype),
        slots=table.slots.at[jnp.where(ids < 0, len(table.slots), ids)].set(row, mode="drop"),
        homes=homes,
    )
    return guesses(made, group, cell)


def most_groups(items: int, cells: int) -> int:
    """Return how many groups so many items in so many cells may make.

    A cell of n items makes 1 + n / 64 at most, since it takes 64 for two, and 4 + n / 256, since later ones have 256.
    """
    return min(cells + items // (2 * SHELLS[0]), len(SHELLS) * cells + items // SHELLS[-1])


def _shells(size: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Return how many groups cells of such sizes make, and what tells in which a rank from the outside falls."""
    begins = jnp.array([0, *np.cumsum(SHELLS)])
    widths = jnp.array(SHELLS)

    def within(rank: Any) -> Any:
        early = jnp.searchsorted(begins[1:-1], rank, side="right")
        return jnp.where(rank < begins[-2], early, len(SHELLS) - 1 + (rank - begins[-2]) // SHELLS[-1])

    last = within(jnp.maximum(size - 1, 0))
    late = jnp.maximum(last - len(SHELLS) + 1, 0)
    place = jnp.minimum(last, len(SHELLS) - 1)
    left = size - begins[place] - late * SHELLS[-1]
    joins = (last > 0) & (2 * left < widths[place])
    return jnp.where(size > 0, last + 1 - joins, 0), within


def _nearest(rows: Any, means: Any) -> tuple[Any, Any]:
    """Return the nearest mean of each row, and the squared distance from it.

    Products are of what lies between them and the middle of the means: far from the origin, those of the rows as they
    are would be mostly rounding.
    """
    middle = jnp.median(means, 0)
    away = means - middle
    half = jnp.sum(away * away, 1) / 2

    def one(row: Any) -> tuple[Any, Any]:
        found = jnp.argmin(half - matmul(jnp, away, row - middle)).astype(jnp.int32)
        apart = row - means[found]
        return found, matmul(jnp, apart, apart)

    found: tuple[Any, Any] = jax.lax.map(one, rows, batch_size=_TOGETHER)
    return found
