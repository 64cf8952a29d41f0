"""Catalogs of Dask arrays: built from chunks of items on many workers, and merged."""

from __future__ import annotations

from typing import Any

try:
    import dask.array
    import distributed
    from dask.base import compute
    from dask.delayed import delayed
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"catalogs of Dask arrays need the package {error.name!r}: pip install 'rfkernels[dask]'"
    ) from error

import numpy as np

from rfkernels._checks import check_flags
from rfkernels.catalog import Catalog, store
from rfkernels.catalog.arguments import check_seed
from rfkernels.catalog.building import build_chosen
from rfkernels.catalog.cells import check_ids, check_items, default_cells, held_dtype
from rfkernels.catalog.metric import metric_of
from rfkernels.catalog.records import Store

_DTYPES = ("float64", "float32", "float16")


def catalog_from_dask(
    items: Any,
    *,
    ids: Any = None,
    cells: int | None = None,
    queries: Any = None,
    regroup: bool = True,
    rng: int = 0,
    client: Any = None,
) -> Catalog:
    """Build one catalog from the rows of a Dask array.

    Each chunk of rows becomes a catalog of its own on a worker, with cells in proportion to its rows; neighbours are
    merged two by two until one is left, in which cells are found anew, and which comes to this process and has to fit
    its memory. The result is the same for the same chunks and seed, whichever worker does what, and though workers die:
    what a dead one held is computed again by others, as often as Dask's setting
    ``distributed.scheduler.allowed-failures`` allows.

    Parameters
    ----------
    items : dask.array.Array, shape (items, dim)
        The items, of dtype float16, float32 or float64, in chunks of at least one row. Chunks that divide rows are
        joined.
    ids : array of int, shape (items,), optional
        Their ids, from 0 to 2³¹ − 2, each once; row numbers by default.
    cells : int, optional
        About how many cells there are in all, at least one for each chunk; about 0.63 √items by default.
    queries : array, shape (count, dim), optional
        Past queries, as for `Catalog`; every worker is sent them.
    regroup : bool, default True
        Whether cells are found anew in all items, as by `Catalog.regroup`, for which one worker holds these twice.
        Otherwise cells stay those of the chunks, each of which has a few for items from everywhere: estimates are as
        right, and less precise the more chunks there are, unless a chunk is of items that are alike.
    rng : int, default 0
        Where grouping starts from. Chunks start from children of it.
    client : distributed.Client, optional
        The cluster that computes. Without one, what Dask computes on by default: the current client, or threads.

    Returns
    -------
    Catalog
        All items.

    Raises
    ------
    TypeError
        If items are not a Dask array of floats, a chunk is masked or would have to be rounded to the dtype that Dask
        was told, or the client is not one that waits for results.
    ValueError
        If items are not of two axes, or have chunks that are empty or of unknown size; if ids, cells or queries do not
        fit; if a chunk has not the shape that Dask was told, or an item is not finite.
    """
    _check_items(items)
    if client is not None and (not isinstance(client, distributed.Client) or client.asynchronous):
        raise TypeError(f"client must be a distributed.Client that is not asynchronous, got {client!r}")
    count, lengths = items.shape[0], items.chunks[0]
    ids = None if ids is None else check_ids(ids, count)
    check_flags(regroup=regroup)
    wanted, cells = cells, default_cells(count) if cells is None else cells
    if isinstance(cells, bool) or not isinstance(cells, int | np.integer) or not 1 <= cells <= count:
        raise ValueError(f"cells must be an integer from 1 to the number of items, {count}, got {cells!r}")
    metric = delayed(metric_of(queries, items.shape[1], held_dtype(items)))
    *seeds, last = np.random.SeedSequence(check_seed(rng)).spawn(len(lengths) + 1)
    begin = np.cumsum([0, *lengths]).tolist()
    stores = [
        delayed(_built)(
            block,
            range(first, first + length),
            None if ids is None else ids[first : first + length],
            max(1, round(cells * length / count)),
            metric,
            seed,
        )
        for block, first, length, seed in zip(
            items.rechunk({1: -1}).to_delayed().ravel(), begin[:-1], lengths, seeds, strict=True
        )
    ]
    while len(stores) > 1:
        pairs = [stores[i : i + 2] for i in range(0, len(stores), 2)]
        stores = [delayed(store.merge)(*pair, most=count) if len(pair) == 2 else pair[0] for pair in pairs]
    if regroup and len(lengths) > 1:
        stores = [delayed(_regrouped)(stores[0], wanted, last)]
    made = compute(stores[0])[0] if client is None else client.compute(stores[0]).result()
    return Catalog.from_store(made)


def _check_items(items: Any) -> None:
    if not isinstance(items, dask.array.Array):
        raise TypeError(f"items must be a dask.array.Array, got {type(items).__name__}; rfkernels.Catalog takes others")
    if items.ndim != 2:
        raise ValueError(f"items must have shape (items, dim), got {items.shape}")
    if items.dtype.name not in _DTYPES:
        raise TypeError(f"items must have one of the dtypes {', '.join(_DTYPES)}, got {items.dtype}")
    if np.isnan(items.shape).any():
        raise ValueError(
            f"items must have chunks of known size, got chunks {items.chunks}; items.compute_chunk_sizes() finds them"
        )
    if 0 in items.shape:
        raise ValueError(f"items must not be empty, got shape {items.shape}")
    if 0 in items.chunks[0]:
        empty = items.chunks[0].index(0)
        raise ValueError(
            f"items must have chunks of at least one row, but chunk {empty} of {len(items.chunks[0])} has none; "
            "items.rechunk() makes others"
        )


def _regrouped(merged: Store, cells: int | None, seed: np.random.SeedSequence) -> Store:
    """Find cells anew, on one thread as well."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="openmp"):
        return store.regroup(merged, seed, cells=cells)


def _built(items: Any, own: range, ids: Any, cells: int, metric: Any, seed: np.random.SeedSequence) -> Store:
    """Build a chunk of its own rows on a worker, if it is what Dask was told of it; errors tell where it lies.

    On one thread: workers have others to do, and the order in which threads add up would change last bits.
    """
    from threadpoolctl import threadpool_limits

    ids = np.arange(own.start, own.stop, dtype=np.int32) if ids is None else ids
    try:
        given = check_items(items, metric.shape[1], metric.dtype)
        if len(given) != len(own):
            raise ValueError(f"items must have {len(own)} rows, as Dask was told of the chunk, got {len(given)}")
        with threadpool_limits(1, user_api="openmp"):
            return build_chosen(given, None, ids, cells, seed, np.empty(given.shape, metric.dtype), metric)
    except (TypeError, ValueError) as error:
        raise type(error)(f"in the chunk that begins with row {own.start}: {error}") from error
