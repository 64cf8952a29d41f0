"""Catalogs at the edges: changes that fail halfway, forks, empty cells, dot products that do not fit."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

import rfkernels as rfk
from rfkernels.catalog import changes, copies, engines, expectations, facade, invariants, layout, pilots, store
from rfkernels.catalog.records import Store

DIM = 6


def data(count: int, seed: int = 0, away: float = 0.0) -> Any:
    return (np.random.default_rng(seed).normal(size=(count, DIM)) + away).astype(np.float32)


def exact(items: Any, queries: Any) -> Any:
    return logsumexp(queries.astype(np.float64) @ items.T.astype(np.float64), axis=1)


# Changes that fail


def no_memory(*_: Any) -> None:
    raise MemoryError


@pytest.mark.parametrize("change", ["add", "add to a vacant cell", "update"])
def test_a_change_without_room_changes_nothing(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    items = np.concatenate([data(1_000), data(1_000, 1, 8.0)])
    catalog, new = rfk.Catalog(items, cells=2), np.tile(items[:1], (900, 1))
    if change == "add to a vacant cell":
        catalog.remove(np.arange(1_000))
        items = items[1_000:]
    for module in (changes, layout):
        monkeypatch.setattr(module, "repack", no_memory)
    monkeypatch.setattr(changes, "needed", lambda total: 1 << 40)
    before = catalog.log_normalizer(items[:3], budget=10_000)
    with pytest.raises(MemoryError):
        catalog.update(np.arange(1_050, 1_950), new) if change == "update" else catalog.add(new)
    assert len(catalog) == len(items)
    assert catalog.store.count.all(), "a group of no items cannot be drawn from"
    np.testing.assert_array_equal(catalog.log_normalizer(items[:3], budget=10_000), before)
    monkeypatch.undo()
    catalog.add(new)
    expected = exact(np.concatenate([items, new]), items[:3])
    np.testing.assert_allclose(catalog.log_normalizer(items[:3], budget=10_000), expected, rtol=1e-6)


@pytest.mark.parametrize("step", ["joined", "_reserve", "_longer"])
def test_ids_that_there_is_no_memory_for_leave_a_catalog_whole(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    items = np.concatenate([data(1_000), data(1_000, 1, 8.0)])
    catalog = rfk.Catalog(items, cells=2)
    catalog.remove(np.arange(1_000))
    done, slots = getattr(changes, step), len(catalog.store.slots)

    def broken(*given: Any) -> Any:
        done(*given)
        raise MemoryError

    monkeypatch.setattr(changes, step, broken)
    with pytest.raises(MemoryError):
        catalog.add(items[:1_000], np.arange(3_000, 4_000))  # to a vacant cell
    monkeypatch.undo()
    invariants.check_arrays(catalog.store)
    assert len(catalog.store.slots) == slots
    np.testing.assert_array_equal(catalog.items(catalog.ids), items[1_000:])
    catalog.add(items[:1_000], np.arange(3_000, 4_000))
    np.testing.assert_array_equal(catalog.items(np.arange(3_000, 4_000)), items[:1_000])


def test_free_rows_are_taken_back_when_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    items = data(3_000)
    catalog = rfk.Catalog(items)
    catalog.log_normalizer(items[:1])
    for module in (changes, layout):
        monkeypatch.setattr(module, "repack", no_memory)
    catalog.remove(np.arange(2_000))
    room = len(catalog.store.rows)
    np.testing.assert_allclose(
        catalog.log_normalizer(items[:3], budget=3_000), exact(items[2_000:], items[:3]), rtol=1e-6
    )
    monkeypatch.undo()
    catalog.remove([2_000])
    assert len(catalog.store.rows) < 0.6 * room


def test_rows_that_cannot_be_laid_out_anew_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    items = data(3_000)
    catalog = rfk.Catalog(items)
    monkeypatch.setattr(layout, "encode", no_memory)
    catalog.remove(np.arange(2_000))
    invariants.check_arrays(catalog.store)
    np.testing.assert_array_equal(catalog.items(catalog.ids), items[2_000:])


@pytest.mark.parametrize("step", ["_take", "_place", "_settle"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_change_that_is_broken_off_halfway_is_not_read(
    step: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    items = data(3_000)
    catalog = rfk.Catalog(items)
    catalog.log_normalizer(items[:1])
    catalog.save(tmp_path / "items")
    done = getattr(changes, step)

    def broken(*given: Any) -> Any:
        done(*given)
        raise error

    monkeypatch.setattr(changes, step, broken)
    with pytest.raises(error):
        catalog.update(np.arange(1_500), 2 * items[1_500:])
    monkeypatch.undo()
    for read in (
        lambda: catalog.log_normalizer(items[:1]),
        lambda: catalog.top(items[:1], 1),
        lambda: catalog.items([2_000]),
        lambda: catalog.add(items[:1]),
        lambda: catalog.save(tmp_path / "items"),
        lambda: rfk.Catalog(items[:1], ids=[5_000]).merge(catalog),
        lambda: copy.copy(catalog),
        catalog.regroup,
        catalog.__len__,
    ):
        with pytest.raises(RuntimeError, match="the catalog is not whole: a change of it was broken off halfway"):
            read()
    again = rfk.Catalog.load(tmp_path / "items")
    np.testing.assert_array_equal(again.items(again.ids), items)


def test_estimates_after_a_failed_change_read_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is made again: half of its arrays are those of the store."""
    items = data(3_000)
    catalog = rfk.Catalog(items)
    catalog.log_normalizer(items[:1])
    done = store.remove

    def interrupted(*given: Any) -> None:
        done(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(facade.store, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        catalog.remove(np.arange(1_500))
    found = [np.exp(catalog.log_normalizer(items[:2], budget=300, rng=seed)) for seed in range(50)]
    ratio = np.mean(found, 0) / np.exp(exact(items[1_500:], items[:2]))
    assert np.all(np.abs(ratio - 1) < 0.1)


@pytest.mark.parametrize("wrong", [False, True], ids=["found", "refused"])
def test_what_is_read_beside_a_change_is_an_error(wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever became of it: of rows that move, a sum is off by any amount, and ids are those of no item."""
    items = data(300)
    catalog, other = rfk.Catalog(items, cells=4), rfk.Catalog(data(9, 1), ids=np.arange(400, 409), cells=2)
    whole, on = rfk.Catalog(items, cells=4), True

    def beside(module: Any, name: str) -> None:
        done = getattr(module, name)

        def changed(*given: Any, **named: Any) -> Any:
            found = done(*given, **named)
            if on:
                changes.update(catalog.store, [7], items[7:8])
            if on and wrong:
                raise IndexError("beyond the end")
            return found

        monkeypatch.setattr(module, name, changed)

    beside(facade, "check_queries")
    beside(facade, "rows_of_ids")
    beside(facade.store, "merge")
    beside(facade.store, "outgrown")
    beside(facade.store, "regroup")
    for read in (
        lambda: catalog.log_normalizer(items[:2]),
        lambda: catalog.kernel_sum(items[:2]),
        lambda: catalog.expectation(items[:2], items),
        lambda: catalog.top(items[:2], 3),
        lambda: catalog.sample(items[:2], 3),
        lambda: catalog.probabilities(items[:2], [3]),
        lambda: catalog.items([3]),
        lambda: catalog.merge(other),
        lambda: other.merge(catalog),
        lambda: catalog.outgrown,
        lambda: catalog.regroup(cells=4),
    ):
        with pytest.raises(RuntimeError, match="the catalog was changed in another thread while it was"):
            read()
    on = False
    np.testing.assert_array_equal(catalog.log_normalizer(items[:2]), whole.log_normalizer(items[:2]))


@pytest.mark.parametrize("copied", [copy.copy, pickle.dumps, lambda x: pickle.dumps(x, 5, buffer_callback=id)])
def test_a_copy_of_what_changes_meanwhile_is_an_error(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = rfk.Catalog(data(300), cells=4)
    copied(catalog)

    def changed(held: Any, protocol: Any) -> Any:
        changes.remove(catalog.store, [7])
        return object.__reduce_ex__(held, protocol)

    monkeypatch.setattr(Store, "__reduce_ex__", changed)
    with pytest.raises(RuntimeError, match="changed in another thread while it was copied: copy it again"):
        copied(catalog)


def test_what_is_read_of_old_groups_and_new_ones_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows found in one order of items hold others in the next."""
    catalog, found = rfk.Catalog(data(300), cells=4), facade.rows_of_ids

    def beside(held: Any, ids: Any) -> Any:
        slots = found(held, ids)
        catalog.regroup(cells=5)
        return slots

    monkeypatch.setattr(facade, "rows_of_ids", beside)
    for read in (lambda: catalog.probabilities(data(2), [3]), lambda: catalog.items([3])):
        with pytest.raises(RuntimeError, match="changed in another thread while it was read: ask again"):
            read()


def test_of_two_that_group_anew_at_once_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other may have been changed since."""
    items, regroup = data(300), store.regroup
    catalog = rfk.Catalog(items, cells=4)

    def beside(held: Any, **how: Any) -> Any:
        monkeypatch.undo()
        catalog.regroup(cells=5)
        catalog.remove([7])
        return regroup(held, **how)

    monkeypatch.setattr(store, "regroup", beside)
    with pytest.raises(RuntimeError, match="while it was grouped anew: it stays in the groups that it had"):
        catalog.regroup(cells=6)
    assert (len(catalog), len(catalog.table.means)) == (299, 5)


def test_what_changes_before_new_groups_take_their_place_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, leave = rfk.Catalog(data(300), cells=4), copies.Unchanged.__exit__

    def beside(unchanged: Any, *given: Any) -> None:
        leave(unchanged, *given)
        monkeypatch.undo()
        catalog.remove([7])

    monkeypatch.setattr(copies.Unchanged, "__exit__", beside)
    with pytest.raises(RuntimeError, match="while it was grouped anew: it stays in the groups that it had"):
        catalog.regroup(cells=6)
    assert (len(catalog), len(catalog.table.means)) == (299, 4)


def test_who_asks_waits_for_a_change_that_is_under_way(tmp_path: Any) -> None:
    items = data(300)
    catalog, other = rfk.Catalog(items, cells=4), rfk.Catalog(data(9, 1), ids=np.arange(400, 409), cells=2)
    asked = (
        lambda: catalog.items([3]),
        lambda: catalog.ids,
        lambda: len(catalog),
        lambda: catalog.store,
        lambda: catalog.add(items[:1]),
        lambda: catalog.save(tmp_path / "items"),
        lambda: other.merge(catalog),
        lambda: catalog.regroup(cells=4),
    )
    with ThreadPoolExecutor(len(asked)) as pool:
        with catalog._lock:
            catalog._held.whole = False
            waiting = [pool.submit(call) for call in asked]
            assert not wait(waiting, 0.05).done
            with pytest.raises(RuntimeError, match="under way in another thread"):
                repr(catalog)
            catalog._held.whole = True
        errors = [x.exception(20) for x in waiting]
    assert all(error is None or "changed in another thread" in str(error) for error in errors)
    assert len(catalog) == 301


def test_masks_are_not_passed_over() -> None:
    items = data(300)
    catalog, masked = rfk.Catalog(items), np.ma.array([5, 6], mask=[False, True])
    for call in (
        lambda: catalog.remove(masked),
        lambda: catalog.update(masked, items[:2]),
        lambda: catalog.add(items[:2], masked + 300),
        lambda: rfk.Catalog(items[:2], ids=masked),
        lambda: catalog.items(masked),
        lambda: catalog.probabilities(items[:1], masked),
    ):
        with pytest.raises(TypeError, match="ids must not be masked"):
            call()
    with pytest.raises(TypeError, match="values must be a plain array, got MaskedArray"):
        catalog.expectation(items[:1], np.ma.array(items, mask=items > 0))
    assert len(catalog) == 300


# Forks and tables


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_a_fork_beside_a_change_can_read() -> None:
    catalog = rfk.Catalog(data(300))
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with catalog._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = multiprocessing.get_context("fork").Process(target=lambda: catalog.table)
    try:
        child.start()
        child.join(30)
        assert child.exitcode == 0
    finally:
        child.kill()
        done.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_a_fork_can_group_items() -> None:
    catalog = rfk.Catalog(data(3_000), cells=20)
    child = multiprocessing.get_context("fork").Process(target=catalog.regroup, kwargs={"cells": 20})
    try:
        child.start()
        child.join(30)
        assert child.exitcode == 0
    finally:
        child.kill()


def test_tables_of_other_spreads_are_not_mistaken_for_each_other() -> None:
    items = data(3_000)
    catalog = rfk.Catalog(items)
    for factor in (1.0, 9.0, 0.25, 4.0):
        given = catalog.table._replace(spread=catalog.table.spread * factor)
        fast = engines.choose("numba").estimate(given, 2 * items[:3], 400, 5)
        gc.collect()
        plain = engines.choose("numpy").estimate(given, 2 * items[:3], 400, 5)
        np.testing.assert_allclose(fast.log_normalizer, plain.log_normalizer, rtol=1e-5)
        del given


def test_a_first_cell_without_items_counts_for_nothing() -> None:
    """Its weight overflows where all others are tiny."""
    other = rfk.Catalog(data(2_000, 1, 50.0))
    catalog = rfk.Catalog(data(50), cells=1)
    catalog.remove(np.arange(50))
    items, merged = other.items(other.ids), catalog.merge(other)
    assert np.bincount(merged.table.cell, minlength=2)[0] == 0
    queries, values = -2.7 * np.ones((2, DIM), np.float32), np.linspace(0, 1, 2_000, dtype=np.float32)[:, None]
    assert exact(items, queries).max() < -750
    for backend in ("numba", "numpy"):
        found = merged.log_normalizer(queries, budget=600, full=True, backend=backend)
        np.testing.assert_array_less(
            np.abs(found.log_normalizer - exact(items, queries)), 6 * found.standard_error + 1e-3
        )
        mean = merged.expectation(queries, values, budget=600, full=True, backend=backend)
        logits = queries.astype(np.float64) @ items.T
        wanted = np.exp(logits - logsumexp(logits, axis=1)[:, None]) @ values
        np.testing.assert_array_less(np.abs(mean.mean - wanted), 6 * mean.standard_error + 1e-3)


# Chance


def test_seeds_of_pilots_and_parts_are_nobody_elses() -> None:
    parts = [pilots.seed_of(seed, part) for seed in range(40) for part in range(-1, 40)]
    assert len(set(parts)) == len(parts)
    assert pilots.seed_of(7, 0) == 7
    assert all(0 <= one < 2**64 for one in parts)
    items = data(3_000)
    catalog = rfk.Catalog(items)
    aimed = catalog.log_normalizer(items[:5], budget=400, error=0.9, rng=0)
    for seed in range(3):
        assert not np.any(aimed == catalog.log_normalizer(items[:5], budget=400, rng=seed))


def test_columns_that_do_not_vary_have_no_error() -> None:
    items = data(3_000)
    table, queries = rfk.Catalog(items).table, items[:8] / 4
    values = np.column_stack([np.full(3_000, 0.1), np.full(3_000, -1e9 / 3)])
    for backend in ("numpy", "numba"):
        expect = engines.choose(backend).expect
        assert not expectations.largest_error(expect(table, queries, values, 500, 0)).any()
        moved = values + 1e-2 * items[:, :2] * [0, 1]
        assert expectations.largest_error(expect(table, queries, moved, 500, 0)).all()


# Arguments


def test_no_queries_have_no_expectations() -> None:
    items = data(500)
    catalog = rfk.Catalog(items)
    for error in (None, 0.1):
        assert catalog.expectation(items[:0], items, error=error).shape == (0, DIM)


def test_rows_in_another_order_are_refused() -> None:
    items = data(500)
    with pytest.raises(ValueError, match="rows must lie in C order"):
        store.build(items, rows=np.empty((500, DIM), np.float32, order="F"))


@pytest.mark.parametrize(("dtype", "size"), [(np.float64, 1e308), (np.float32, 3e38)])
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_dot_products_that_do_not_fit(backend: str, dtype: Any, size: float) -> None:
    items = data(2_000).astype(dtype)
    catalog, huge, values = rfk.Catalog(items), np.full((2, DIM), size, dtype), np.ones((2_000, 1))
    calls = {
        "log_normalizer": lambda: catalog.log_normalizer(huge, budget=400, backend=backend),
        "exact": lambda: catalog.log_normalizer(huge, budget=4_000, backend=backend),
        "expectation": lambda: catalog.expectation(huge, values, budget=400, backend=backend),
        "sample": lambda: catalog.sample(huge, 3, backend=backend),
        "sample exactly": lambda: catalog.sample(huge, 3, exact=True),
    }
    if dtype is np.float64:  # logits of the largest are of that, whatever the items'
        calls["top"] = lambda: catalog.top(huge, 3, budget=400, backend=backend)
        calls["top of all"] = lambda: catalog.top(huge, 3, budget=4_000, backend=backend)
    if backend == "numba":
        with pytest.raises(ValueError, match="that fit"):
            calls["exact"]()  # and nothing else is said
    for name, call in calls.items():
        fits = pytest.raises(ValueError, match=f"must have dot products with items that fit {np.dtype(dtype)}")
        with np.errstate(over="ignore", invalid="ignore"), fits:
            pytest.fail(f"{name} returned {call()}")


@pytest.mark.parametrize("items", [5, None, [[1.0] * DIM]])
def test_what_is_no_array_is_named(items: Any) -> None:
    with pytest.raises(TypeError, match="items must be"):
        rfk.Catalog(data(10)).add(items)


def test_a_file_of_nothing_is_not_made(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="items must not be empty"):
        rfk.Catalog.create(tmp_path / "none.safetensors", data(0))
    assert not list(tmp_path.iterdir())
