"""The items of largest q·y: what is looked at, how many of them are found, and compiled code against the specification."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rfkernels as rfk
from rfkernels.backends.numba import catalog_looks, catalog_scan_kernels, catalog_search
from rfkernels.backends.numba.catalog_guesses import prepared
from rfkernels.catalog import codes, tops
from rfkernels.catalog.records import Table

ITEMS, CELLS, COUNT = 6_000, 30, 10


@cache
def data(dim: int = 24, dtype: str = "float32") -> tuple[rfk.Catalog, Any, Any]:
    """A catalog, queries, and the rows of a table that would say the same."""
    rng = np.random.default_rng(dim)
    centres = rng.normal(size=(CELLS, dim))
    items = (centres[rng.integers(CELLS, size=ITEMS)] + rng.normal(size=(ITEMS, dim))).astype(dtype)
    return rfk.Catalog(items, cells=CELLS), rng.normal(size=(19, dim)).astype(dtype), items


def largest(items: Any, queries: Any, count: int) -> Any:
    return np.argsort(-(queries.astype(np.float64) @ items.T.astype(np.float64)), axis=1, kind="stable")[:, :count]


def recall(found: Any, expected: Any) -> float:
    return float(np.mean([np.isin(own, best).mean() for own, best in zip(found, expected, strict=True)]))


def assert_same(catalog: rfk.Catalog, queries: Any, count: int, budget: int, expected: Any = None) -> Any:
    """Compiled code finds what the specification finds, which is `expected` if it is known; return it."""
    found = catalog.top(queries, count, budget=budget, backend="numba")
    expected = catalog.top(queries, count, budget=budget, backend="numpy") if expected is None else expected
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-12, atol=1e-12)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dim", [3, 4, 8, 9, 24, 130])
def test_as_specified(dim: int, dtype: str) -> None:
    catalog, queries, _ = data(dim, dtype)
    for count in (1, COUNT, 150):
        for budget in (CELLS + dim + 128, 900, ITEMS - 1, ITEMS):
            assert_same(catalog, queries, count, budget)


@pytest.mark.parametrize("count", [1, 700, ITEMS - 1, ITEMS])
def test_as_many_as_are_asked_for(count: int) -> None:
    catalog, queries, items = data()
    found = assert_same(catalog, queries[:3], count, CELLS + 24 + 128)
    assert (np.diff(found.logits) <= 0).all()
    assert all(len(set(own)) == count for own in found.ids.tolist())
    if count == ITEMS:
        np.testing.assert_array_equal(found.ids, largest(items, queries[:3], ITEMS))


@cache
def specified(dtype: str, budget: int) -> Any:
    catalog, queries, _ = data(24, dtype)
    return catalog.top(queries, COUNT, budget=budget, backend="numpy")


WAYS = [("16", 2), ("16", 1), ("32", 2), (None, 4), (None, 2)]
"""Bytes of vectors, and how many products of bytes are added up at once."""


@pytest.mark.parametrize(("width", "added"), WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_on_other_processors(monkeypatch: pytest.MonkeyPatch, width: str | None, added: int, dtype: str) -> None:
    if width is not None:
        monkeypatch.setenv("RFKERNELS_VECTOR_BYTES", width)
    if catalog_scan_kernels.products_added(catalog_looks.machine().width) < added:
        pytest.skip(f"no instruction for such vectors adds up {added} products of bytes here")
    monkeypatch.setattr(catalog_search, "products_added", lambda _: added)
    held, queries, _ = data(24, dtype)
    catalog = rfk.Catalog.from_store(held.store)  # nothing is known of it
    for budget in (CELLS + 24 + 128, 900, ITEMS):
        assert_same(catalog, queries, COUNT, budget, specified(dtype, budget))


def test_codes_show_more_items_than_dot_products_would() -> None:
    """As many as their price allows, and almost none of the largest among these is lost."""
    catalog, queries, items = data()
    without = catalog.table._replace(codes=None)
    expected = largest(items, queries, COUNT)
    rows, coded = (recall(tops.top(table, queries, COUNT, 300).ids, expected) for table in (without, catalog.table))
    assert rows < 0.7 < 0.95 < coded
    given = tops.scope(catalog.table, 300, COUNT, 0)
    table = catalog.table
    each = [tops.promise(table, query) for query in queries.astype(np.float64)]
    promised = [tops.promising(table.count, own, given.seen, COUNT) for own in each]
    seen = [np.isin(own, rows_of(catalog.table, groups)).mean() for own, groups in zip(expected, promised, strict=True)]
    assert coded >= np.mean(seen) - 0.01


def rows_of(table: Table, groups: Any) -> Any:
    return np.concatenate([table.ids[table.start[g] : table.start[g] + table.count[g]] for g in groups])


def test_all_codes_find_all() -> None:
    catalog, queries, items = data()
    budget = int(0.2 * ITEMS) + 200
    assert tops.scope(catalog.table, budget, COUNT, 0) == (ITEMS, 3 * COUNT + 10)
    assert recall(catalog.top(queries, COUNT, budget=budget).ids, largest(items, queries, COUNT)) > 0.99


def test_what_a_budget_is_spent_on() -> None:
    table = data()[0].table
    price, beside = codes.cost(table), CELLS + 24
    assert tops.scope(table, ITEMS, COUNT, 0) == (ITEMS, 0)
    assert tops.scope(table, beside + 340, COUNT, 0) == (int(300 / price), 40)
    assert tops.scope(table, beside + 343, COUNT, 3) == (int(300 / price), 40)
    assert tops.scope(table, beside + 60, COUNT, 0) == (int(30 / price), 30)
    assert tops.scope(table, beside + 60, 500, 0) == (500, 500)
    assert tops.scope(table, beside + 1_500, 900, 0) == (int(600 / price), 900)
    assert tops.scope(table, beside + 2_000, 600, 0) == (ITEMS, 2_000 - int(np.ceil(price * ITEMS)))
    assert tops.scope(table._replace(codes=None), beside + 60, COUNT, 0) == (60, 0)
    assert tops.scope(table._replace(codes=None), beside + 5, COUNT, 0) == (COUNT, 0)


def test_groups_that_promise_most() -> None:
    """The largest of normal numbers is expected √(2 log n) deviations out."""
    catalog, queries, _ = data()
    table = catalog.table
    for query in queries[:4].astype(np.float64):
        apart = np.sqrt(query @ table.shape @ query)
        apart = 2 ** (np.round(4 * np.log2(apart)) / 4)
        promise = (table.means @ query)[table.cell] + apart * np.sqrt(table.spread * 2 * np.log(table.count))
        order = np.argsort(-promise)
        ends = np.cumsum(table.count[order])
        for number in (1, 7, len(order)):
            for most in (ends[number - 1], ends[number - 1] + 1):
                np.testing.assert_array_equal(
                    tops.promising(table.count, tops.promise(table, query), most, 1), np.sort(order[:number])
                )
        for least, number in ((0, 0), (1, 1), (ends[4], 5), (ends[4] + 1, 6)):
            found = tops.promising(table.count, tops.promise(table, query), 0, least)
            np.testing.assert_array_equal(found, np.sort(order[:number]))


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 130])
def test_batches(count: int) -> None:
    catalog, queries, _ = data()
    many = np.resize(queries, (count, 24))
    for budget in (600, ITEMS):
        found = catalog.top(many, COUNT, budget=budget)
        assert found.ids.shape == found.logits.shape == (count, COUNT)
        alone = catalog.top(queries, COUNT, budget=budget)
        np.testing.assert_array_equal(found.ids, np.resize(alone.ids, (count, COUNT)))


def test_after_changes(tmp_path: Path) -> None:
    """Rows that are free are not found, groups begin anywhere, and some cells are empty or away from their anchors."""
    rng = np.random.default_rng(3)
    _, queries, items = data()
    catalog = rfk.Catalog(items, cells=CELLS)
    catalog.save(tmp_path / "items")
    mapped = rfk.Catalog.load(tmp_path / "items", mapped=True)
    for held in (catalog, mapped):
        held.remove(np.flatnonzero(items @ items[0] > 30))
        for _ in range(20):
            held.add(rng.normal(size=(37, 24)).astype(np.float32) + items[7])
            held.remove(rng.choice(held.ids, 60, replace=False))
            held.update(rng.choice(held.ids, 30, replace=False), rng.normal(size=(30, 24)).astype(np.float32))
        ids = held.ids
        for budget in (CELLS + 24 + 140, 700, 2_000, ITEMS + 1_000):
            found = assert_same(held, queries, COUNT, budget)
            assert np.isin(found.ids, ids).all()
        np.testing.assert_array_equal(found.ids, ids[largest(held.items(ids), queries, COUNT)])


@pytest.mark.parametrize("budget", [200, 1_000])
def test_equal_items(budget: int) -> None:
    """Those of the first rows are taken, and each once."""
    items = np.repeat(np.random.default_rng(0).normal(size=(2, 24)), 450, axis=0).astype(np.float32)
    catalog, queries = rfk.Catalog(items, cells=4), np.concatenate([items[:1], 0 * items[:1]])
    found = assert_same(catalog, queries, 30, budget)
    assert all(len(set(own)) == 30 for own in found.ids.tolist())
    assert (found.ids[0] < 450).all()
    if budget > 900:
        np.testing.assert_array_equal(np.sort(catalog.store.slots[:450])[:30], catalog.store.slots[found.ids[0]])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_equal_logits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever threads find them, and whether larger ones come before or after."""
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", str(threads))
    rng = np.random.default_rng(0)
    for seed in range(8):
        items, queries = (rng.integers(-2, 3, (count, 3)).astype(np.float64) for count in (3_000, 5))
        catalog = rfk.Catalog(items, cells=3, rng=seed)
        for count in (1, 5, 40, 300):
            assert_same(catalog, queries, count, 3_000)


@pytest.mark.parametrize("budget", [200, 1_000])
@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_items_of_any_size(budget: int, size: float) -> None:
    items = (size * np.random.default_rng(0).normal(size=(900, 24))).astype(np.float32)
    queries = np.random.default_rng(1).normal(size=(5, 24)).astype(np.float32)
    found = rfk.Catalog(items, cells=4).top(queries, COUNT, budget=budget)
    assert recall(found.ids, largest(items, queries, COUNT)) > (0.99 if budget > 900 else 0.7)


@pytest.mark.parametrize("budget", [200, 900])
def test_logits_that_do_not_fit_single_precision(budget: int) -> None:
    """As specified, in float64: whole, in parts that cancel, and only of some items."""
    rng = np.random.default_rng(0)
    items = (100 + rng.normal(size=(900, 24))).astype(np.float32)
    queries = np.repeat([[1.0, -1.0], [1.0, 0.0], [1e-4, 0.0]], 12, axis=1) * 3e37
    queries[1:, 1:] = 0
    catalog = rfk.Catalog(items, cells=4)
    queries = np.concatenate([queries, rng.normal(size=(2, 24))]).astype(np.float32)
    found = assert_same(catalog, queries, COUNT, budget)
    assert found.logits[1].min() > np.finfo(np.float32).max
    np.testing.assert_array_equal(assert_same(catalog, queries[3:], COUNT, budget).ids, found.ids[3:])
    if budget == 900:
        np.testing.assert_array_equal(found.ids, largest(items, queries, COUNT))


def test_items_whose_squares_hardly_fit() -> None:
    items = np.random.default_rng(0).normal(size=(900, 24)).astype(np.float32)
    usual, large = rfk.Catalog(items, cells=4), rfk.Catalog(np.float32(2.0**61) * items, cells=4)
    query = np.ones(24, np.float32)
    for budget in (160, 900):
        for backend in ("numba", "numpy"):
            expected = usual.top(query, COUNT, budget=budget, backend=backend)
            np.testing.assert_array_equal(large.top(query, COUNT, budget=budget, backend=backend).ids, expected.ids)


def test_fewer_items_than_would_be_looked_at_again() -> None:
    """The next group would be too many."""
    items = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
    catalog = rfk.Catalog(items, cells=1)
    table = catalog.table
    assert table.count.tolist() == [32, 64, 128, 376]
    catalog.remove(rows_of(table, [1, 2]))
    given = tops.scope(catalog.table, 132, COUNT, 0)
    assert 32 < given.ranked < given.seen < 408
    assert_same(catalog, items[:5], COUNT, 132)


def test_single_precision_does_not_decide() -> None:
    """Items that lie far from zero, whose logits differ by less than float32 shows."""
    rng = np.random.default_rng(0)
    items, queries = (1e5 + rng.normal(size=(3_000, 16))).astype(np.float32), rng.normal(size=(20, 16))
    queries = queries.astype(np.float32)
    catalog = rfk.Catalog(items)
    for budget in (900, 3_000):
        assert_same(catalog, queries, 20, budget)


@pytest.mark.parametrize("size", [1e6, 1e30])
def test_one_item_far_from_all_others(size: float) -> None:
    """Limits are halved until few groups lie between them, and as long as that is of use."""
    items = np.random.default_rng(0).normal(size=(6_000, 8))
    items[0] = size
    catalog = rfk.Catalog(items)
    assert_same(catalog, items[1:9], 300, 900)


def test_memory_is_that_of_this_catalog() -> None:
    """Of as many groups, but more items: those that are looked at are more than before by a group."""

    def shell(rng: Any, count: int, size: float) -> Any:
        x = rng.normal(size=(count, 16))
        return (size * x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    def made(inner: int) -> rfk.Catalog:
        rng = np.random.default_rng(0)
        first = [shell(rng, count, size) for count, size in ((32, 10), (64, 5), (128, 0.01))]
        catalog = rfk.Catalog(np.concatenate(first), cells=1)
        catalog.remove(np.arange(29))
        catalog.add(shell(rng, 448, 6), np.arange(1000, 1448))
        catalog.add(shell(rng, 384, 0.01), np.arange(2000, 2384))
        held = catalog.store
        group = int(np.argmin(held.edge))
        ids = held.ids[held.start[group] : held.start[group] + held.count[group]]
        if inner < len(ids):
            catalog.remove(ids[inner:].copy())
        return catalog

    few, many = made(2), made(512)
    assert len(few.table.count) == len(many.table.count)
    query = np.random.default_rng(1).normal(size=(1, 16)).astype(np.float32)
    kinds = [prepared(x.table).groups.record for x in (few, many)]
    sizes = [len(catalog_search.finds("top", g, 516, np.dtype(np.float32)).record.blocks) for g in kinds]
    assert sizes[0] < sizes[1]
    few.top(query, 516, budget=145)
    assert_same(many, query, 516, 145)


def test_memory_is_that_of_what_is_looked_at() -> None:
    catalog, _, _ = data()
    given, g = tops.scope(catalog.table, 400, COUNT, 0), prepared(catalog.table).groups.record
    made = catalog_search._finds(g, given.seen, np.dtype(np.float32))
    assert sum(x.nbytes for x in made) < 12 * (given.seen + g.most + 32 * len(g.start)) + 100 * CELLS + 20_000
