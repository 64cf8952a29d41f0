"""A catalog built from chunks on many workers is that of all items, also when workers die while they build."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import distributed
import numpy as np
import pytest

from rfkernels.catalog import Catalog
from rfkernels.integrations.dask import catalog_from_dask

ITEMS, DIM, CHUNK = 1500, 5, 256  # the last chunk is shorter
PATIENCE = 120  # seconds that a loaded machine may take to start a worker
NUMBERS = np.random.default_rng(0).standard_normal((ITEMS, DIM)).astype(np.float32)


def chunked(x: Any = NUMBERS, chunk: int = CHUNK) -> Any:
    return da.from_array(x, chunks=(chunk, -1))


def log_sums(queries: Any, items: Any) -> Any:
    return np.log(np.exp(queries.astype(np.float64) @ items.T.astype(np.float64)).sum(1))


def check_same(got: Catalog, expected: Catalog) -> None:
    for field in dataclasses.fields(expected.store):
        one, two = getattr(got.store, field.name), getattr(expected.store, field.name)
        np.testing.assert_array_equal(one, two, err_msg=field.name)


def check_holds(catalog: Catalog, ids: Any = None) -> None:
    """Every item is there once under its id, and sums over all of them come out right."""
    ids = np.arange(ITEMS) if ids is None else ids
    np.testing.assert_array_equal(catalog.ids, np.sort(ids))
    np.testing.assert_array_equal(catalog.items(ids), NUMBERS)
    queries, budget = NUMBERS[:20], 600
    exact = catalog.log_normalizer(queries, budget=2 * ITEMS, backend="numpy")
    np.testing.assert_allclose(exact, log_sums(queries, NUMBERS), rtol=1e-6)
    found = catalog.log_normalizer(queries, budget=budget, full=True, backend="numpy")
    assert (found.dots <= budget).all()
    assert (np.abs(found.log_normalizer - exact) < 6 * found.standard_error).all()
    assert np.median(found.standard_error) < 0.1


@pytest.fixture(scope="module")
def expected() -> Catalog:
    return catalog_from_dask(chunked(), rng=7)


def test_all_items_are_there(expected: Catalog) -> None:
    check_holds(expected)
    check_holds(catalog_from_dask(chunked(), regroup=False))


def cell_count(**options: Any) -> int:
    return len(catalog_from_dask(chunked(), **options).table.means)


def test_as_many_cells_as_of_one_build(expected: Catalog) -> None:
    """Of cells that stay, to the rounding of the share of each chunk: every cell costs a dot product."""
    chunks = -(-ITEMS // CHUNK)
    assert len(expected.table.means) == len(Catalog(NUMBERS).table.means)
    assert abs(cell_count(regroup=False) - 0.63 * ITEMS**0.5) <= 1 + chunks / 2
    assert cell_count(cells=60, regroup=False) == pytest.approx(60, abs=chunks / 2)
    assert cell_count(cells=1, regroup=False) == chunks
    assert [cell_count(cells=cells) for cells in (1, 60)] == [1, 60]


def test_cells_found_anew_are_as_close_as_those_of_one_build(expected: Catalog) -> None:
    def spread(catalog: Catalog) -> float:
        table = catalog.table
        return float(sum(np.min(np.sum((table.means - x) ** 2, 1)) for x in NUMBERS))

    one = spread(Catalog(NUMBERS))
    assert spread(expected) < 1.05 * one
    assert spread(catalog_from_dask(chunked(), rng=7, regroup=False)) > 1.2 * one


def test_the_seed_and_the_chunks_decide(expected: Catalog) -> None:
    check_same(catalog_from_dask(chunked(), rng=7), expected)
    check_same(catalog_from_dask(da.from_array(NUMBERS, chunks=(CHUNK, 2)), rng=7), expected)
    assert not np.array_equal(catalog_from_dask(chunked(), rng=8).store.rows, expected.store.rows)


def test_past_queries_reach_all_chunks() -> None:
    past = np.random.default_rng(1).standard_normal((50, DIM)) * np.array([3, 3, 1, 1, 0.1])
    catalog = catalog_from_dask(chunked(), rng=7, queries=past)
    check_holds(catalog)
    alone = Catalog(NUMBERS, queries=past).store
    np.testing.assert_array_equal(catalog.store.metric, alone.metric)
    apart = catalog_from_dask(chunked(), rng=7, queries=past, regroup=False)
    assert len(apart.store.centres) > 0.8 * len(alone.centres), "cells of chunks lie side by side"
    with pytest.raises(ValueError, match=r"^queries must have shape \(queries, 5\), got \(50, 4\)"):
        catalog_from_dask(chunked(), queries=past[:, :4])


def test_chunks_start_from_seeds_of_their_own() -> None:
    """Items that are the same in two chunks are not ordered alike in both."""
    twice = np.concatenate([NUMBERS[:CHUNK], NUMBERS[:CHUNK]])
    rows = catalog_from_dask(chunked(twice), rng=7, regroup=False).store.rows
    assert not np.array_equal(rows[:CHUNK], rows[-CHUNK:])


def test_ids_are_given_to_rows() -> None:
    ids = np.random.default_rng(1).permutation(2 * ITEMS)[:ITEMS]
    check_holds(catalog_from_dask(chunked(), ids=ids), ids)


def test_one_chunk_is_a_catalog_of_its_own() -> None:
    check_holds(catalog_from_dask(chunked(chunk=ITEMS)))


@pytest.mark.parametrize(("dtype", "held"), [("float64", "float64"), ("float32", "float32"), ("float16", "float32")])
def test_dtypes(dtype: str, held: str) -> None:
    assert catalog_from_dask(chunked(NUMBERS.astype(dtype))).table.rows.dtype == held


# Clusters


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[distributed.Client]:
    """Processes on this machine, reached over the loopback interface; gone on return."""
    with warnings.catch_warnings():
        # It takes the next free port when another cluster has the usual one for its dashboard.
        warnings.filterwarnings("ignore", "Port 8787 is already in use", UserWarning)
        options: dict[str, Any] = {"processes": True, "threads_per_worker": 1, "memory_limit": 0}
        with (
            distributed.LocalCluster(n_workers=workers, dashboard_address=None, silence_logs=60, **options) as local,
            distributed.Client(local) as client,
        ):
            yield client


def dying(folder: Path) -> Callable[..., Any]:
    """Return what loads a chunk; the process that comes first is killed when it comes again.

    It notes who has loaded which. Until one is killed the others wait, so that nobody else has what the first one built.
    """

    def load(chunk: Any, block_info: Any = None) -> Any:
        own, number = os.getpid(), block_info[0]["chunk-location"][0]
        deadline = time.monotonic() + PATIENCE
        try:
            (folder / "first").symlink_to(str(own))
        except FileExistsError:
            if os.readlink(folder / "first") == str(own):
                (folder / "killed").touch()
                os.kill(own, signal.SIGKILL)
            while not (folder / "killed").exists():
                if time.monotonic() > deadline:
                    raise TimeoutError("no worker came for a second chunk") from None
                time.sleep(0.01)
        (folder / f"{number}-{own}").touch()
        return chunk

    return load


def test_a_worker_that_is_killed_in_mid_build(tmp_path: Path, expected: Catalog) -> None:
    items = chunked().map_blocks(dying(tmp_path), dtype=NUMBERS.dtype, meta=NUMBERS[:0])
    with cluster(2) as client:
        found = catalog_from_dask(items, rng=7, client=client)
    loaded = {tuple(path.name.split("-")) for path in tmp_path.glob("*-*")}
    killed = os.readlink(tmp_path / "first")
    chunks = {str(i) for i in range(len(items.chunks[0]))}
    assert len({number for number, process in loaded if process == killed}) == 1, "it is killed after its first chunk"
    assert {number for number, process in loaded if process != killed} == chunks, "others load that one again"
    check_same(found, expected)
    check_holds(found)


# What is refused


def unknown() -> Any:
    x = chunked()
    return x[x[:, 0] > 0]


def emptied() -> Any:
    """Return items of known chunks, one of which a filter has left without any."""
    x = chunked()
    return x[da.arange(ITEMS, chunks=CHUNK) // CHUNK != 1].compute_chunk_sizes()


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "numpy": (NUMBERS, {}, TypeError, "items must be a dask.array.Array, got ndarray"),
    "vector": (chunked()[:, 0], {}, ValueError, r"items must have shape \(items, dim\), got \(1500,\)"),
    "three axes": (chunked()[None], {}, ValueError, r"items must have shape \(items, dim\), got \(1, 1500, 5\)"),
    "integers": (chunked().astype(int), {}, TypeError, "items must have one of the dtypes .*, got int64"),
    "objects": (chunked().astype(object), {}, TypeError, "items must have one of the dtypes .*, got object"),
    "byte order": (chunked(NUMBERS.astype(">f4")), {}, TypeError, "byte order"),
    "unknown chunks": (unknown(), {}, ValueError, "known size.*compute_chunk_sizes"),
    "no items": (chunked()[:0], {}, ValueError, r"items must not be empty, got shape \(0, 5\)"),
    "no columns": (chunked()[:, :0], {}, ValueError, r"items must not be empty, got shape \(1500, 0\)"),
    "an empty chunk": (emptied(), {}, ValueError, "chunk 1 of 6 has none"),
    "cells, none": (chunked(), {"cells": 0}, ValueError, "cells must be an integer from 1 to .* 1500, got 0"),
    "cells, more than items": (chunked(), {"cells": 1501}, ValueError, "got 1501"),
    "cells, a float": (chunked(), {"cells": 3.0}, ValueError, "got 3.0"),
    "ids, too few": (chunked(), {"ids": np.arange(3)}, ValueError, r"ids must have shape \(1500,\)"),
    "ids, twice in different chunks": (
        chunked(),
        {"ids": np.arange(ITEMS) % (ITEMS - 1)},
        ValueError,
        "ids must be distinct, but 0 occurs more than once",
    ),
    "rng": (chunked(), {"rng": -1}, ValueError, "rng must be an integer seed"),
    "client": (chunked(), {"client": "tcp://127.0.0.1:1"}, TypeError, "client must be a distributed.Client"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    items, options, kind, text = REFUSED[case]
    with pytest.raises(kind, match=text):
        catalog_from_dask(items, **options)


def test_an_item_that_is_not_finite_is_named() -> None:
    bad = NUMBERS.copy()
    bad[2 * CHUNK + 3, 1] = np.nan
    with pytest.raises(ValueError, match=rf"chunk that begins with row {2 * CHUNK}: .*items\[3, 1\] is nan"):
        catalog_from_dask(chunked(bad))


UNLIKE: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "masked": (lambda x: np.ma.masked_greater(x, 3), TypeError, "items must be a plain array, got MaskedArray"),
    "fewer rows": (lambda x: x[1:], ValueError, "items must have 256 rows, as Dask was told of the chunk, got 255"),
    "more rows": (lambda x: x[[0, *range(len(x))]], ValueError, "items must have 256 rows, .* got 257"),
    "fewer columns": (lambda x: x[:, 1:], ValueError, r"items must have shape \(items, 5\), .* got \(256, 4\)"),
    "more digits": (lambda x: x.astype(np.float64), TypeError, "items must have .* holds float32, got float64"),
    "no array": (lambda x: x.tolist(), TypeError, "items must be a numpy.ndarray or jax.Array, got list"),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_chunks_that_are_not_what_dask_was_told(case: str) -> None:
    """They hold masked items, or others than are counted on, which would be taken, lost or rounded."""
    load, kind, text = UNLIKE[case]
    items = chunked(NUMBERS[:CHUNK]).map_blocks(load, dtype=NUMBERS.dtype, meta=NUMBERS[:0])
    with pytest.raises(kind, match=f"in the chunk that begins with row 0: {text}"):
        catalog_from_dask(items, ids=np.arange(CHUNK))
