"""Tables of catalogs on the devices of JAX, whole or spread over a mesh axis by cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from rfkernels._arrays import name_records, record
from rfkernels.catalog.arguments import check_count
from rfkernels.catalog.cells import LARGEST, chunks
from rfkernels.catalog.metric import compared
from rfkernels.catalog.rays import LENGTHS, known_rays
from rfkernels.catalog.records import Table


@record
class DeviceHomes(NamedTuple):
    """What tells which group an item would join, and how long items are.

    Parameters
    ----------
    metric : array, shape (dim, dim)
        What items are multiplied by before they are compared.
    centres : array, shape (cells, dim)
        What those of each cell are compared with, multiplied by it.
    order : array of int32, shape (groups,)
        Groups by cell, and from the inside outwards.
    edge : array, shape (groups,)
        The least squared distance from the centre that items of each of these have.
    first, groups : array of int32, shape (cells,)
        Where those of each cell begin, and how many there are: none where it is not known which groups items join.
    lengths : array, shape (LENGTHS,)
        Lengths of items, the longest first.
    """

    metric: Any
    centres: Any
    order: Any
    edge: Any
    first: Any
    groups: Any
    lengths: Any


@record
class DeviceTable(NamedTuple):
    """A `Table` on a device, its groups one after the other and no rows between them.

    Parameters
    ----------
    rows : array, shape (items, dim)
    ids : array of int32, shape (items,)
    start, count, cell : array of int32, shape (groups,)
    spread : array, shape (groups,)
    means : array, shape (cells, dim)
    shape : array, shape (dim, dim)
        As in `Table`. Groups of no items and rows of id −1 are padding.
    seen : array, shape (groups,)
        What past queries see of the spread of a group, relative to all: groups are cut by that.
    slots : array of int32, shape (largest id + 1,)
        The row of each id, −1 for none.
    settled : array of bool, shape (cells,)
        Whether the mean of each cell is that of its items by now: the control variate rests on that.
    homes : DeviceHomes
    """

    rows: Any
    ids: Any
    start: Any
    count: Any
    cell: Any
    spread: Any
    means: Any
    shape: Any
    seen: Any
    slots: Any
    settled: Any
    homes: DeviceHomes


name_records()


@partial(jax.tree_util.register_dataclass, data_fields=["table"], meta_fields=["mesh", "axis"])
@dataclass(frozen=True)
class Sharded:
    """Tables of the devices of a mesh axis; a pytree, of which mesh and axis are no part that JAX traces.

    Parameters
    ----------
    table : DeviceTable
        The tables padded to one size and stacked: each array has the devices for its first axis and is spread over it.
    mesh : jax.sharding.Mesh
    axis : str
    """

    table: DeviceTable
    mesh: Any
    axis: str


def compact(table: Any) -> DeviceTable:
    """Return the arrays of a `Table` without the rows that belong to no group, still in the host's memory."""
    if isinstance(table, DeviceTable):
        return table
    _check_table(table)
    start, count = np.asarray(table.start), np.asarray(table.count)
    ends = np.cumsum(count, dtype=np.int64)
    begin = ends - count
    if (count > LARGEST).any():
        raise ValueError(f"table must have groups of {LARGEST} items at most, got one of {count.max()}")
    rows, ids = table.rows, np.asarray(table.ids, np.int32)
    if len(rows) != (ends[-1] if len(ends) else 0) or not np.array_equal(start, begin):
        taken = np.repeat(start - begin, count) + np.arange(count.sum())
        rows, ids = rows[taken], ids[taken]
    if len(rows) > np.iinfo(np.int32).max:
        raise ValueError(f"table has {len(rows)} items; a device takes fewer than 2**31, spread them with sharded()")
    begin, count, cell = (np.asarray(x, np.int32) for x in (begin, count, table.cell))
    slots = np.full(int(ids.max(initial=-1)) + 1, -1, np.int32)
    slots[ids] = np.arange(len(ids))
    settled, seen = np.ones(len(table.means), bool), _seen(table, rows, begin)
    guessed = table.spread, table.means, table.shape, seen
    return DeviceTable(rows, ids, begin, count, cell, *guessed, slots, settled, _homes(table))


def _homes(table: Table) -> DeviceHomes:
    known, (cells, dim), dtype = known_rays(table), table.means.shape, table.rows.dtype
    if not len(known.lengths):
        nothing = {"centres": np.zeros((cells, dim), dtype), "lengths": np.zeros(LENGTHS, dtype)}
        of_groups = {"order": np.zeros(len(table.count), np.int32), "edge": np.zeros(len(table.count), dtype)}
        of_cells = dict.fromkeys(("first", "groups"), np.zeros(cells, np.int32))
        return DeviceHomes(metric=np.eye(dim, dtype=dtype), **nothing, **of_groups, **of_cells)
    centres, first, order, edge, _ = known.homes
    return DeviceHomes(
        metric=table.metric if len(table.metric) else np.eye(dim, dtype=dtype),
        centres=centres.astype(dtype),
        order=order.astype(np.int32),
        edge=edge[order],
        first=first[:-1].astype(np.int32),
        groups=np.diff(first).astype(np.int32),
        lengths=known.lengths.astype(dtype),
    )


def _check_table(table: Any) -> None:
    if not isinstance(table, Table):
        raise TypeError(f"table must be that of a catalog, Catalog.table, got {type(table).__name__}")


def _seen(table: Any, rows: Any, begin: Any) -> Any:
    """Return `DeviceTable.seen`; 1 where a catalog was told no past queries."""
    spread = np.asarray(table.spread, np.float64)
    if table.metric is None or not len(table.metric) or not spread.any():
        return np.ones_like(table.spread)
    cell, square = np.repeat(table.cell, table.count), np.empty(len(rows))
    for part in chunks(*rows.shape):
        apart = compared(table.metric, rows[part] - table.means[cell[part]])
        square[part] = np.einsum("ij,ij->i", apart, apart, dtype=np.float64)
    found = np.add.reduceat(square, begin)  # a sum for each group
    found *= (spread @ table.count) / found.sum() / table.count
    return np.where(spread > 0, found / np.where(spread > 0, spread, 1), 1).astype(table.spread.dtype)


def device_table(table: Any, device: Any = None) -> DeviceTable:
    """Copy a table to a device.

    Parameters
    ----------
    table : Table
        What `rfkernels.catalog` keeps: items in groups.
    device : jax.Device or jax.sharding.Sharding, optional
        JAX's default device if not given.

    Returns
    -------
    DeviceTable
        A pytree of arrays, to be given to `estimate` and the like.

    Raises
    ------
    TypeError
        If the table is not that of a catalog.
    ValueError
        If there are 2**31 items or more, or more than 512 in a group, which a catalog never has.
    """
    held = compact(table)
    if held is not table:  # a device may read the host's memory, which the catalog changes in place
        held = jax.tree.map(np.array, held)
    made: DeviceTable = jax.device_put(held, device)
    return made


def split(table: Any, parts: int) -> list[DeviceTable]:
    """Divide the cells of a table into parts of about as many items, for `sharded`.

    Cells stay whole, since what makes an estimate vary less is that items add up to the mean of their cell. The
    largest cell left goes to the smallest part.

    Parameters
    ----------
    table : Table
    parts : int

    Returns
    -------
    list of DeviceTable
        In the host's memory.

    Raises
    ------
    TypeError
        If the table is not that of a catalog.
    ValueError
        If `parts` is no integer from 1 to the number of cells.
    """
    _check_table(table)
    cells = len(table.means)
    check_count("parts", parts, 1, cells)
    size = np.bincount(table.cell, table.count, minlength=cells)
    part, load = np.empty(cells, np.int64), np.zeros(parts)
    for c in np.argsort(-size, kind="stable"):
        part[c] = np.argmin(load)
        load[part[c]] += max(size[c], 1)
    return [_cells_of(table, np.flatnonzero(part == p)) for p in range(parts)]


def _cells_of(table: Any, cells: Any) -> DeviceTable:
    number = np.full(len(table.means), -1)
    number[cells] = np.arange(len(cells))
    own = number[table.cell] >= 0
    groups = {name: getattr(table, name)[own] for name in ("start", "count", "spread")}
    if table.centres is not None:
        groups |= {"edge": table.edge[own], "centres": table.centres[cells]}
    part = table._replace(**groups, cell=number[table.cell[own]], means=table.means[cells])
    copied: DeviceTable = jax.tree.map(np.array, compact(part))  # one part of all may be the catalog's own memory
    return copied


def sharded(tables: Any, mesh: Any, axis: str) -> Sharded:
    """Place one table on each device of a mesh axis.

    Parameters
    ----------
    tables : sequence of Table or DeviceTable
        One for each device, as those of catalogs built apart, or as `split` returns. All are of one covariance or of
        their own; items of a cell are in one of them, and so is every id.
    mesh : jax.sharding.Mesh
    axis : str
        The axis of the mesh. Over other axes the tables are replicated.

    Returns
    -------
    Sharded
        To be given to `estimate` and the like.

    Raises
    ------
    TypeError
        If the tables are not those of catalogs or parts of one, or their items differ in dtype.
    ValueError
        If the mesh has no such axis, there is not one table for each of its devices, their items differ in length, or
        an id is in two of them.
    """
    if axis not in mesh.shape:
        raise ValueError(f"axis must be an axis of the mesh, {tuple(mesh.shape)}, got {axis!r}")
    if len(tables) != mesh.shape[axis]:
        raise ValueError(f"axis {axis!r} has {mesh.shape[axis]} devices, but there are {len(tables)} tables")
    parts = [compact(table) for table in tables]
    if len({part.rows.shape[1:] for part in parts}) > 1:
        raise ValueError(f"tables must be of items of one length, got {[part.rows.shape[1] for part in parts]}")
    if len({part.rows.dtype for part in parts}) > 1:
        raise TypeError(f"tables must be of items of one dtype, got {[str(part.rows.dtype) for part in parts]}")
    _check_ids(parts)
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis))

    def stacked(path: Any, *arrays: Any) -> Any:
        largest, name = max(len(x) for x in arrays), path[-1].name

        def of_device(index: Any) -> Any:
            x = np.asarray(arrays[index[0].start or 0])
            wide = [(0, largest - len(x)), *[(0, 0)] * (x.ndim - 1)]
            return np.pad(x, wide, constant_values=-1 if name in ("ids", "slots") else 0)[None]

        return jax.make_array_from_callback((len(arrays), largest, *arrays[0].shape[1:]), spread, of_device)

    return Sharded(jax.tree_util.tree_map_with_path(stacked, *parts), mesh, axis)


def _check_ids(parts: Any) -> None:
    ids = np.sort(np.concatenate([np.asarray(part.ids) for part in parts]))
    twice = ids[1:][(ids[1:] == ids[:-1]) & (ids[1:] >= 0)]
    if len(twice):
        raise ValueError(f"tables must share no id, but {twice[0]} is in two of them")
