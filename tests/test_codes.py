"""Codes of items: how far off they are, that they follow the items, and estimates from them."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from both_plans import assert_as_specified
from scipy.special import logsumexp, stdtrit
from stores import in_memory

from rfkernels.backends.numba import catalog as compiled
from rfkernels.backends.numba import (
    catalog_check_kernels,
    catalog_groups,
    catalog_looks,
    catalog_scan_kernels,
    jit,
)
from rfkernels.catalog import Catalog, codes, estimates, scans, trust
from rfkernels.catalog.building import encode
from rfkernels.catalog.codes import BLOCK
from rfkernels.catalog.plan import _GOLDEN, _mix, uniforms
from rfkernels.catalog.records import Store, Table

ITEMS, CELLS = 6_000, 30


@cache
def catalog(dim: int = 13, dtype: str = "float64") -> Catalog:
    rng = np.random.default_rng(dim)
    centres = rng.normal(size=(CELLS, dim))
    spread = rng.gamma(4, 0.2, (ITEMS, 1)) * rng.gamma(3, 0.3, dim)
    items = centres[rng.integers(CELLS, size=ITEMS)] + spread * rng.normal(size=(ITEMS, dim))
    return Catalog(items.astype(dtype), cells=CELLS)


def queries(dim: int = 13, count: int = 12, scale: float = 1.0) -> Any:
    rng = np.random.default_rng(7)
    return scale * dim**-0.5 * rng.normal(size=(count, dim)) * np.geomspace(0.1, 3, count)[:, None]


def exact(held: Catalog, q: Any) -> Any:
    return logsumexp(q.astype(np.float64) @ held.items(held.ids).T.astype(np.float64), axis=1)


def rows_and_cells(table: Table) -> tuple[Any, Any]:
    rows = np.concatenate([np.arange(a, a + n) for a, n in zip(table.start, table.count, strict=True)])
    return rows, np.repeat(table.cell, table.count)


def approximate(table: Table, query: Any) -> tuple[Any, Any]:
    """What codes say of q·(y − anchor) for all items, and what it is."""
    rows, cells = rows_and_cells(table)
    apart = (table.rows[rows].astype(np.float64) - table.anchors[cells]) @ query
    return codes.residuals(table, rows, codes.rounded(query, table.scales)), apart


@pytest.mark.parametrize("dim", [4, 8, 9, 12, 13, 50, 130])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_codes_are_off_by_a_hundredth_of_the_variance(dim: int, dtype: str) -> None:
    for query in queries(dim)[::4]:
        said, apart = approximate(catalog(dim, dtype).table, query)
        assert 0.002 < np.var(said - apart) / np.var(apart) < 0.03
        assert abs(np.mean(said - apart)) < 0.02 * np.std(apart)


def test_normal_numbers_are_rounded_with_the_least_error() -> None:
    """That of 16 equal steps is 0.0115 of the variance (Max 1960), and 0.0119 with one of them at 0."""
    items = np.random.default_rng(0).normal(size=(2_000, 400)).astype(np.float32)
    table = Catalog(items, cells=1).table
    said, apart = approximate(table, np.random.default_rng(1).normal(size=400))
    assert 0.0095 < np.var(said - apart) / np.var(apart) < 0.0128


def squared(table: Table) -> tuple[Any, Any]:
    """What codes say of |y − anchor|² of all items, and what it is."""
    rows, cells = rows_and_cells(table)
    return codes.squares(table, rows), ((table.rows[rows].astype(np.float64) - table.anchors[cells]) ** 2).sum(1)


@pytest.mark.parametrize("dim", [4, 8, 9, 12, 13, 50, 130])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_codes_know_squares_to_an_eighth(dim: int, dtype: str) -> None:
    said, true = squared(catalog(dim, dtype).table)
    ratio = said[true > 0] / true[true > 0]
    within = np.abs(ratio - 1) < 0.13
    assert within.mean() > 0.99, np.percentile(ratio, [0, 1, 50, 99, 100])
    assert np.abs(ratio[within] - 1).mean() < 0.07


@pytest.mark.parametrize("far", [1e-5, 1e-3, 1e3, 1e5])
def test_codes_of_items_of_unlike_sizes(far: float) -> None:
    """Some lie much nearer to their anchor or farther away than others: codes say of each what it is."""
    items = np.random.default_rng(0).normal(size=(4_000, 24))
    items[:40] *= far
    table = Catalog(items, cells=1).table
    said, true = squared(table)
    np.testing.assert_allclose(said, true, rtol=0.13)
    said, apart = approximate(table, np.random.default_rng(1).normal(size=24))
    off = np.abs(said - apart) / np.sqrt(true)
    assert off.max() < 1


def test_few_large_numbers_are_not_cut_off() -> None:
    rng = np.random.default_rng(0)
    items = (rng.random((3_000, 64)) < 0.04) * rng.choice([-1.0, 1.0], (3_000, 64))
    said, apart = approximate(Catalog(items, cells=1).table, np.ones(64))
    assert np.var(said - apart) < 0.02 * np.var(apart)


@pytest.mark.parametrize("value", [0.0, 1e-15, 1e15])
def test_items_of_any_size(value: float) -> None:
    items = np.float32(value) * np.random.default_rng(0).integers(0, 3, (100, 16)).astype(np.float32)
    said, apart = approximate(Catalog(items).table, np.ones(16))
    np.testing.assert_allclose(said, apart, atol=2 * value)
    assert np.isfinite(said).all()


def test_codes_where_they_pay() -> None:
    assert [codes.block_bytes(dim, 4) for dim in (1, 4, 8, 50, 64)] == [0, 64, 96, 448, 544]
    assert Catalog(np.random.default_rng(0).normal(size=(40, 1))).table.codes is None
    assert codes.cost(catalog(50, "float32").table) == 0.14


def test_codes_take_a_seventh_of_the_items_at_most() -> None:
    held = catalog(50, "float32").store
    assert held.codes.nbytes < held.rows.nbytes / 7 + 448


def fresh(held: Store) -> Store:
    again = replace(held, codes=np.zeros_like(held.codes))
    encode(again, np.arange(len(held.start)))
    return again


def assert_fresh(held: Store) -> None:
    """Codes are those of the items that there are, to the last bit."""
    own, again = (Catalog.from_store(x).table for x in (held, fresh(held)))
    rows, _ = rows_and_cells(own)
    for query in np.eye(held.rows.shape[1])[:4]:
        given = codes.rounded(query, held.scales)
        np.testing.assert_array_equal(codes.residuals(own, rows, given), codes.residuals(again, rows, given))


@pytest.mark.parametrize("dim", [9, 16])
def test_codes_follow_their_items(dim: int) -> None:
    rng = np.random.default_rng(0)
    held = Catalog(rng.normal(size=(700, dim)), cells=6)
    for _ in range(20):
        ids = rng.choice(held.ids, 60, replace=False)
        held.update(ids[:30], rng.normal(size=(30, dim)))
        held.update(ids[30:40], held.items(ids[30:40]) + 0.01)
        held.remove(ids[40:])
        held.add(2 * rng.normal(size=(40, dim)))
        assert_fresh(held.store)
    other = Catalog(3 * rng.normal(size=(300, dim)), ids=np.arange(5_000, 5_300), cells=3)
    assert_fresh(held.merge(other).store)
    held.regroup()
    assert_fresh(held.store)


def test_codes_stay_in_a_mapped_file(tmp_path: Path) -> None:
    held, path = catalog(13, "float32"), tmp_path / "items.safetensors"
    held.save(path)
    mapped = Catalog.load(path, mapped=True)
    assert not in_memory(mapped.table.codes)
    own, q = held.log_normalizer(queries(), budget=500), queries()
    np.testing.assert_array_equal(mapped.log_normalizer(q, budget=500), own)
    mapped.update(mapped.ids[:9], mapped.items(mapped.ids[:9]) + 1)
    assert_fresh(mapped.store)


# Estimates


def assert_same(table: Table, q: Any, budget: int, seed: int, rtol: float = 1e-10, expected: Any = None) -> None:
    assert any(scans.shares(table, budget, len(codes.moved(table))))
    found = assert_as_specified(table, q, budget, seed, rtol, expected)
    assert (found.dots <= budget).all()
    assert (found.dots > 0.9 * budget - 20).all()


@cache
def specified(dim: int, budget: int) -> Any:
    return estimates.estimate(catalog(dim).table, queries(dim), budget, 3)


WAYS = [("16", 2), ("16", 1), ("32", 2), ("32", 1), (None, 4), (None, 2), (None, 1)]
"""Bytes of vectors, and how many products of bytes are added up at once."""


@pytest.mark.parametrize(("width", "added"), WAYS)
@pytest.mark.parametrize("dim", [3, 4, 5, 8, 9, 13, 50, 130, 330])
def test_as_specified(dim: int, width: str | None, added: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if width is not None:
        monkeypatch.setenv("RFKERNELS_VECTOR_BYTES", width)
    most = catalog_scan_kernels.products_added(catalog_looks.machine().width)
    if most < added:
        pytest.skip(f"no instruction for such vectors adds up {added} products of bytes here")
    monkeypatch.setattr(catalog_looks, "products_added", lambda _: added)
    held = Catalog.from_store(catalog(dim).store)  # nothing is known of it
    for budget in (CELLS + dim + 150, CELLS + dim + 500):
        assert_same(held.table, queries(dim), budget, 3, expected=specified(dim, budget))


def test_other_processors_have_no_instructions_for_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_scan_kernels.platform, "machine", lambda: "aarch64")
    assert catalog_scan_kernels.products_added(64) == 1


def test_old_processors_add_up_two_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_scan_kernels.platform, "machine", lambda: "x86_64")
    features = {"ssse3": True, "avx512vnni": True}
    monkeypatch.setattr(catalog_scan_kernels.binding, "get_host_cpu_features", lambda: features)
    assert [catalog_scan_kernels.products_added(width) for width in (16, 32, 64)] == [2, 2, 4]
    features["avx512vnni"] = False
    assert catalog_scan_kernels.products_added(64) == 2


@pytest.mark.parametrize("dim", [9, 50])
def test_in_single_precision(dim: int) -> None:
    """But where an item that is checked lies at the end of a part: there it may be its neighbour."""
    table, q = catalog(dim, "float32").table, queries(dim).astype(np.float32)
    found, expected = (engine.estimate(table, q, CELLS + dim + 300, 1) for engine in (compiled, estimates))
    off = np.abs(found.log_normalizer - expected.log_normalizer)
    assert np.median(off) < 1e-5
    assert (off < 0.3 * expected.standard_error + 1e-5).all()


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_queries_of_two_shares_of_places(scale: float) -> None:
    """256 of them begin runs at the same places, wherever a block of them ends; sharp ones among them read rows."""
    table, q = catalog().table, queries(count=12, scale=scale).repeat(25, axis=0)
    assert_same(table, q, CELLS + 13 + 150, 3)


def test_sharp_queries_read_rows_a_few_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as leave memory, and none of two shares."""
    monkeypatch.setattr(compiled, "_BLOCK_ITEMS", 1_000)
    numbers, places = np.arange(250, 270), np.array([0, 1, 2, 3, 4, 7, 8, 19])
    pieces = compiled._pieces(SimpleNamespace(budget=300), numbers, places)  # type: ignore[arg-type]
    assert [part.tolist() for part in pieces] == [[0, 1, 2], [3, 4], [7, 8, 19]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_far_above_what_is_guessed(dtype: str) -> None:
    """In a direction in which items did not vary when they were grouped."""
    items = 0.3 * np.random.default_rng(0).normal(size=(4_005, 16))
    items[:4_000, 0], items[4_000:, 0] = 0, 300
    held = Catalog(items[:4_000].astype(dtype), cells=20)
    held.add(items[4_000:].astype(dtype))
    query = np.eye(16, dtype=dtype)[:1]
    assert (scans.kinds(held.table, query) < 2).all()
    found, expected = (engine.estimate(held.table, query, 300, 0) for engine in (compiled, estimates))
    assert found.log_normalizer > 300
    np.testing.assert_allclose(found.log_normalizer, expected.log_normalizer, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_far_below_what_is_guessed(dtype: str) -> None:
    """Those of the farthest items vary far less in the direction of the query than all others do."""
    rng = np.random.default_rng(0)
    items = 0.3 * rng.normal(size=(4_000, 16))
    items[:32, 0], items[:32, 1:] = 0, np.sqrt(200 / 15) * rng.choice([-1, 1], (32, 15))
    held, query = Catalog(items.astype(dtype), cells=1), np.eye(16, dtype=dtype)[:1] * 24
    assert (scans.kinds(held.table, query) < 2).all()
    assert_same(held.table, query, 500, 0, 1e-10 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("groups", [7, 8, 9])
def test_a_vector_of_groups_more(groups: int) -> None:
    """Behind the last: the lanes of what a query does not draw may stand for it."""
    made = catalog_groups.groups_of(
        catalog().table._replace(
            **{name: getattr(catalog().table, name)[:groups] for name in ("start", "count", "cell", "spread", "edge")}
        )
    ).record
    for x in (made.start, made.cell):
        assert len(x) == groups
        read = -(-groups // 8) * 8 + 8
        assert x.base.ctypes.data + x.base.nbytes >= x.ctypes.data + read * x.itemsize
        assert not np.lib.stride_tricks.as_strided(x, (read,))[groups:].any()


def test_all_codes_are_read_where_the_budget_allows() -> None:
    table, q = catalog().table, queries()
    budget = int(codes.cost(table) * ITEMS) + CELLS + 13 + 200
    every = ITEMS, budget - CELLS - 13 - int(np.ceil(codes.cost(table) * ITEMS))
    assert scans.shares(table, budget, 0) == (every, every)
    assert_same(table, q, budget, 0)
    found = compiled.estimate(table, q, budget, 0)
    assert (np.abs(found.log_normalizer - exact(catalog(), q)) < 5 * found.standard_error + 1e-9).all()


def test_kinds_of_queries() -> None:
    """By how much logits deviate within cells; sizes of queries are rounded by up to a tenth."""
    table, met = catalog().table, set()
    for query in queries(count=60, scale=10.0):
        deviation, kind = np.std(approximate(table, query)[1]), int(scans.kinds(table, query))
        met.add(kind)
        assert kind in {int(np.searchsorted((1.5, 20.0), x * deviation)) for x in (0.85, 1, 1.15)}
    assert met == {0, 1, 2}


def test_what_a_budget_is_spent_on() -> None:
    table = catalog().table
    even, steep = scans.shares(table, CELLS + 13 + 5 + 480, 5)
    price = codes.cost(table)
    assert even == (int(400 / price), 80)
    assert steep == (int(440 / price), 40)
    few = scans.shares(table, CELLS + 13 + 150, 0)
    assert few == ((int(118 / price), 32),) * 2


def test_sharp_queries_are_answered_from_rows() -> None:
    table, q = catalog().table, queries(scale=24.0)
    fits = scans.kinds(table, q) < 2
    assert fits.any()
    assert not fits.all()
    plain, found = (compiled.estimate(table, q, 500, 2, coded) for coded in (False, True))
    np.testing.assert_array_equal(found.log_normalizer[~fits], plain.log_normalizer[~fits])
    assert (
        np.sum(found.log_normalizer[fits] != plain.log_normalizer[fits]) > 3
    )  # of sums that are one item codes say all
    assert_same(table, q, 500, 2)


def test_codes_find_the_few_items_that_sharp_queries_look_for() -> None:
    """Where logits deviate so, codes are off by one or two, and the largest items lie farther apart."""
    rng = np.random.default_rng(1)
    held, q = Catalog(rng.normal(size=(6_000, 32)).astype(np.float32), cells=30), rng.normal(size=(60, 32))
    q = (q * np.linspace(9, 18, 60)[:, None] / np.linalg.norm(q, axis=1, keepdims=True)).astype(np.float32)
    found, plain = (compiled.estimate(held.table, q, 1_200, 0, coded) for coded in (True, False))
    off, without = (np.abs(x.log_normalizer - exact(held, q)) for x in (found, plain))
    assert off.max() < 1e-4 < 1e-2 < np.median(without)
    assert np.median(found.standard_error) < 1e-4 < 1e2 < np.median(plain.standard_error)
    assert_as_specified(held.table, q[::10], 1_200, 0, 1e-5)


def test_cells_that_moved_away_from_their_anchors() -> None:
    held = Catalog(np.array(catalog().items(catalog().ids)), cells=CELLS)
    ids = held.ids[:2_000]
    held.update(ids, held.items(ids) + 0.3)
    assert len(codes.moved(held.table)) > CELLS // 2
    assert_same(held.table, queries(), 600, 1)
    found = [held.log_normalizer(queries(), budget=600, rng=seed, full=True) for seed in range(100)]
    ratio = np.exp([x.log_normalizer for x in found] - exact(held, queries()))
    assert (np.abs(ratio.mean(0) - 1) < 5 * ratio.std(0) / 10).all()
    assert 0.9 < np.mean(np.abs(ratio - 1) < 1.96 * ratio * [x.standard_error for x in found]) < 0.99


def test_a_query_of_zeros() -> None:
    np.testing.assert_allclose(catalog().log_normalizer(np.zeros(13), budget=500), np.log(ITEMS), rtol=1e-6)


def test_budgets_too_small_for_codes_read_rows() -> None:
    table = catalog().table
    assert scans.shares(table, CELLS + 13 + 60, 0) == (None, None)
    assert scans.shares(table._replace(codes=None), 1_000, 0) == (None, None)
    assert scans.shares(table, 300, 0)[0].scanned > scans.shares(table, 300, CELLS)[0].scanned  # type: ignore[union-attr]


@pytest.mark.parametrize("count", [10, 40, 200])
def test_items_are_checked_in_proportion(count: int) -> None:
    rng = np.random.default_rng(0)
    given = rng.gamma(0.2, size=300)
    hits = np.zeros(300)
    for _ in range(2_000):
        found = scans.choose(given, count, rng.random(count))
        assert len(found.large) + len(found.others) <= count
        hits[found.large] += 1
        np.add.at(hits, found.others, found.distance / given[found.others])
    off = np.abs(hits / 2_000 - 1) / np.sqrt(given.sum() / count / given / 2_000)
    assert np.mean(off < 2) > 0.9
    assert off[given > given.sum() / count / 100].max() < 5


def test_sizes_next_to_nothing_are_not_all_large() -> None:
    """A part of their sum may be 0 as a number, and then nothing is smaller."""
    sizes = np.zeros(1_000)
    sizes[3] = 5e-324
    found = scans.choose(sizes, 10, np.full(10, 0.5))
    assert len(found.large) == 0
    np.testing.assert_array_equal(found.others, [3])


def test_few_items_are_all_checked() -> None:
    found = scans.choose(np.ones(5), 9, np.zeros(9))
    np.testing.assert_array_equal(found.large, np.arange(5))
    assert not len(found.others)


# What a review found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("above", [30.0, 150.0, 600.0])
def test_items_far_above_all_others(above: float, dtype: str) -> None:
    """In single precision nothing is left of the others to be picked from."""
    items = 0.3 * np.random.default_rng(0).normal(size=(4_000, 16))
    items[:5, 0] += above
    held, query = Catalog(items.astype(dtype), cells=20), np.eye(16)[0].astype(dtype)
    found = held.log_normalizer(query, budget=250)
    np.testing.assert_allclose(found, logsumexp(items @ query), rtol=1e-6)


def test_as_many_like_items_as_are_checked() -> None:
    """All of them are exactly as large as the least that is checked for sure."""
    near = np.zeros((32, 16))
    near[:, 0] = 30
    items = np.concatenate([0.3 * np.random.default_rng(0).normal(size=(4_000, 16)), near]).astype(np.float32)
    held, query = Catalog(items, cells=20), np.eye(16, dtype=np.float32)[0]
    found = [held.log_normalizer(query, budget=250, backend=backend) for backend in ("numba", "numpy")]
    np.testing.assert_allclose(found, logsumexp(items @ query), rtol=1e-6)


def test_memory_is_that_of_catalogs_of_the_same_cells_and_dim() -> None:
    def looked(cells: int, dim: int) -> Any:
        groups = SimpleNamespace(start=np.zeros(160), held=np.zeros(cells), means=np.zeros((cells + dim, dim)))
        return catalog_looks.looks(groups, 1_152, 32, np.dtype(np.float64)).record  # type: ignore[arg-type]

    for cells, dim in ((96, 16), (64, 48), (96, 16)):
        made = looked(cells, dim)
        assert len(made.anchored) == cells
        assert len(made.query) >= dim + 2


def test_codes_of_a_hostile_file_that_nobody_verified(tmp_path: Path) -> None:
    held, path = catalog(13, "float32"), tmp_path / "items.safetensors"
    held.save(path)
    with path.open("r+b") as file:
        file.seek(-held.store.codes.nbytes, 2)
        file.write(b"\xff" * held.store.codes.nbytes)
    with pytest.raises(ValueError, match="is damaged"):
        Catalog.load(path)
    with pytest.raises(ValueError, match="is damaged"):
        Catalog.load(path, mapped=True, verify=True)
    mapped = Catalog.load(path, mapped=True)
    for backend in ("numba", "numpy"):  # codes say what is not so: estimates are wrong, and that is all
        assert np.isfinite(mapped.log_normalizer(queries(), budget=500, backend=backend)).all()


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_codes_of_outliers_are_not_believed(backend: str) -> None:
    """Steps of an item far out are wide: its code may say far too little, and it is checked for that."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(4_000, 16)).astype(np.float32)
    rng = np.random.default_rng(3)
    outlier, query = rng.normal(size=16) * rng.choice([8, 15, 25, 40]), (0.8 * rng.normal(size=16)).astype(np.float32)
    held = Catalog(items, cells=20, rng=219)
    items[0] = outlier  # of those that are there from the start codes know enough: they have cells of their own
    held.update([0], items[:1])
    assert items[0] @ query > logsumexp(items[1:] @ query) + 1
    table = held.table
    row = held.store.slots[:1]
    said = table.anchors[table.cell[(table.start <= row) & (table.start + table.count > row)]] @ query
    said += codes.residuals(table, row, codes.rounded(query, table.scales))
    assert said < items[0] @ query - 10
    given = {"budget": 500, "backend": backend}
    ratio = np.exp([held.log_normalizer(query, rng=s, **given) - logsumexp(items @ query) for s in range(60)])
    assert 0.9 < ratio.mean() < 1.1


def test_codes_that_say_too_much_leave_no_rounding() -> None:
    """What a code says of a large item is not added and taken away again."""
    items = np.random.default_rng(0).normal(size=(4_000, 16)).astype(np.float32)
    items[0] = 0
    items[0, 0] = 12
    held, query = Catalog(items, cells=1), 1.3 * np.eye(16, dtype=np.float32)[0]
    place = int(held.store.slots[0])
    begin = codes.BLOCK * 8 + 2 * (place % codes.BLOCK)  # of its step, behind two eights of numbers
    word = held.store.codes[place // codes.BLOCK, begin : begin + 2].view("<u2")
    before = codes.steps(held.store.codes, 16)[divmod(place, codes.BLOCK)]
    word += ((1 << codes.FRACTION) + (1 << codes.FRACTION - 2)) << 1  # one to the exponent, a quarter to the fraction
    assert 2 * before < codes.steps(held.store.codes, 16)[divmod(place, codes.BLOCK)] < 3 * before
    found = held.log_normalizer(query, budget=600, full=True)
    np.testing.assert_allclose(found.log_normalizer, logsumexp(items @ query), atol=5 * found.standard_error + 1e-5)
    assert found.standard_error < 0.05


@pytest.mark.parametrize(("rest", "lane"), [(0.5, 0), (1.5, 2), (99.0, 9)])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_places_in_blocks(rest: float, lane: int, weight: float) -> None:
    """Three items of the second block; of those that weigh nothing the last is taken."""
    state, ones = int(_mix(np.full(1, _GOLDEN))[0]), np.ones(2)  # of stream 0 of seed 0
    begin = float(uniforms(0, 0, 1)[0]) - rest  # a check lies as far behind where its block begins as it is to
    masks, places = np.array([0, 1 | 1 << 2 | 1 << 9], np.int32), np.zeros(BLOCK, np.int32)
    places[0] = 1
    items = np.full(32, weight), masks, ones, ones, np.zeros(2), np.array([5.0])
    others = ones, np.array([0.0, begin]), places
    kernel("pick", 11)(*map(address, items), 1, state, *map(address, others))
    assert places[0] == 16 + (lane if weight else 9)


def test_sums_that_rise_where_nothing_is() -> None:
    """By rounding, as sums are taken in a tree: no item is found where there is none."""
    rng, rises, state = np.random.default_rng(0), 0, int(_mix(np.full(1, _GOLDEN))[0])
    ones, none = np.ones(1, np.float32), np.zeros(1, np.float32)
    for _ in range(100):
        many = int(rng.integers(3, 15))
        weights = np.zeros(BLOCK, np.float32)
        weights[:many] = rng.exponential(size=many)
        sums, step = weights, 1
        while step < BLOCK:
            sums, step = sums + np.append(np.zeros(step, np.float32), sums[:-step]), 2 * step
        rest = float(sums[:many].max())
        rises += sums.max() > rest
        masks, places = np.array([(1 << many) - 1], np.int32), np.zeros(BLOCK, np.int32)
        items = weights, masks, ones, ones, none, np.full(1, np.inf, np.float32)
        others = np.ones(1), np.array([float(uniforms(0, 0, 1)[0]) - rest]), places
        kernel("pick", 11, 32)(*map(address, items), 1, state, *map(address, others))
        assert places[0] < many
    assert rises > 20


@pytest.mark.parametrize("width", [x for x in (16, 32, 64) if x <= jit.host_width()])
def test_large_items_and_what_is_left(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("RFKERNELS_VECTOR_BYTES", str(width))
    rng = np.random.default_rng(0)
    weights, masks = rng.exponential(size=(24, BLOCK)), rng.integers(1, 1 << BLOCK, 24).astype(np.int32)
    factors, boosts, slopes = 1 + rng.random((3, 24))
    there = (masks[:, None] >> np.arange(BLOCK) & 1).astype(bool)
    sizes = np.where(there, factors[:, None] * (boosts[:, None] * weights + slopes[:, None]), 0)
    near, found = np.full(64, -1, np.int32), np.full(400, -1, np.int32)
    others, left, least = np.zeros(24), np.zeros(1), np.array([8.0])
    given = weights, masks, factors, boosts, slopes, least, sizes.sum(1)
    many = kernel("large", 12)(*map(address, given), 24, *map(address, (left, others, near, found)))
    large = sizes >= least
    assert 10 < many < 300
    np.testing.assert_array_equal(found[:many], np.flatnonzero(large))
    assert (found[many + BLOCK :] == -1).all()  # as much is there room for
    blocks = np.flatnonzero(sizes.sum(1) >= least)
    np.testing.assert_array_equal(near[: len(blocks)], blocks)
    assert (near[len(blocks) + 8 :] == -1).all()
    np.testing.assert_allclose(others, np.where(large, 0, sizes).sum(1), rtol=1e-12)
    np.testing.assert_allclose(left[0], others.sum(), rtol=1e-12)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(("first", "count"), [(0, 24), (5, 13), (3, 1), (2, 0)])
def test_what_checks_add(first: int, count: int, bits: int) -> None:
    rng, kind = np.random.default_rng(0), np.float32 if bits == 32 else np.float64
    weights, logits = rng.normal(size=(2, 4 * BLOCK)).astype(kind)
    weights = np.exp(weights)
    boosts, slopes = 1 + rng.random((2, 4)).astype(kind)
    weights[7] = slopes[0] = slopes[1] = 0  # of size 0: it stands for nothing
    exact, right = rng.normal(size=(2, 48)).astype(kind)
    found, numbers = np.full(48, -(1 << 30), np.int32), np.array([3.0, np.nan, np.nan, np.nan])
    found[first : first + count] = own = rng.permutation(4 * BLOCK)[:count]
    found[first : first + min(count, 1)] = own[:1] = 7
    given = weights, logits, boosts, slopes, exact, right, found
    kernel("check", 10, bits)(*map(address, given), first, count, address(numbers))
    wide = [np.asarray(x, np.float64) for x in (weights, logits, boosts, slopes)]
    near, told, boost, slope = wide[0][own], wide[1][own], wide[2][own // BLOCK], wide[3][own // BLOCK]
    looked = slice(first, first + count)
    off = right[looked] - near - slope * (exact[looked].astype(np.float64) - told)
    size = boost * near + slope
    off = np.divide(3 * off, size, out=np.zeros(count), where=size > 0)
    square = (off[: count // 2 * 2].reshape(-1, 2) @ [1, -1]) ** 2
    np.testing.assert_allclose(numbers, [3, off.sum(), square.sum(), (square**2).sum()], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bits", [32, 64])
def test_what_no_check_may_have_met(bits: int) -> None:
    rng, kind = np.random.default_rng(0), np.float32 if bits == 32 else np.float64
    boosts, others, numbers = 1 + rng.random(24).astype(kind), rng.random(24), np.zeros(2)
    slopes = (rng.random(24) < 0.3).astype(kind)
    others[4:7] = boosts[5:9] = 0  # where there is no block any more boosts are 0
    others[7:9] = 0
    kernel("unmet", 5, bits)(*map(address, (slopes, boosts, others)), 24, address(numbers))
    left = (slopes == 0) & (others > 0)
    square = (1 - 1 / boosts[left].astype(np.float64)) / 2
    np.testing.assert_allclose(numbers, [square @ others[left], square.max()], rtol=1e-13)


@pytest.mark.parametrize("bits", [32, 64])
def test_blocks_with_items_found_are_summed_anew(bits: int) -> None:
    rng, kind = np.random.default_rng(0), np.float32 if bits == 32 else np.float64
    weights, logits = rng.normal(size=(2, 6, BLOCK)).astype(kind)
    masks = rng.integers(1, 1 << BLOCK, 6).astype(np.int32)
    there = (masks[:, None] >> np.arange(BLOCK) & 1).astype(bool)
    weights, logits[~there] = np.exp(weights), -np.inf
    factors, slopes, centres = rng.normal(size=(3, 6)).astype(kind)
    slopes[1] = 0
    found = np.flatnonzero(there & (np.arange(6)[:, None] != 4))[::3].astype(np.int32)
    exact, right = rng.normal(size=(2, len(found))).astype(kind)
    wide = [x.astype(np.float64) for x in (weights, logits)]
    wide[0].ravel()[found], wide[1].ravel()[found] = right, exact
    parts = np.full(6, np.nan)
    given = weights, logits, masks, factors, slopes, centres, exact, right, found
    kernel("replace", 11, bits)(*map(address, given), len(found), address(parts))
    off = np.where(there, wide[0] - slopes[:, None] * np.where(there, wide[1] - centres[:, None], 0), 0)
    expected = np.where(np.arange(6) == 4, np.nan, factors * off.sum(1))
    np.testing.assert_allclose(parts, expected, rtol=1e-12 if bits == 64 else 1e-6)


@pytest.mark.parametrize(("first", "runs"), [(0, 24), (5, 13), (3, 1), (24, 0)])
def test_sums_of_parts_and_of_differences(first: int, runs: int) -> None:
    parts, numbers = np.zeros(40), np.zeros(5)
    parts[: first + runs] = own = np.random.default_rng(0).normal(size=first + runs)
    kernel("compare", 5)(address(parts), 32, first, runs, address(numbers))
    drawn = own[first:]
    square = (drawn[: runs // 2 * 2].reshape(-1, 2) @ [1, -1]) ** 2
    np.testing.assert_allclose(numbers[1:], [own.sum(), drawn.sum(), square.sum(), (square**2).sum()], atol=1e-14)


def kernel(name: str, parameters: int, bits: int = 64) -> Any:
    code = catalog_check_kernels.check_kernels(catalog_looks.machine(), bits)
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * parameters)(code.addresses[name])


def address(x: Any) -> int:
    return int(x.ctypes.data)


def test_few_differences_are_judged_as_student_has_it() -> None:
    for n in (2, 3, 5, 10, 50):
        expected = (stdtrit(n, 0.975) / stdtrit(1e9, 0.975)) ** 2
        assert trust.widening(float(n), float(n)) == pytest.approx(expected, rel=0.07)
    assert trust.widening(0.0, 0.0) == trust.widening(1.0, 1.0) == trust.widening(1e-200, 0.0) > 20
    assert trust.widening(4.0, 1e-30) == pytest.approx(1)


def test_of_a_single_check_the_squared_error_is_what_it_says() -> None:
    items = 0.1 * np.random.default_rng(0).normal(size=(2_000, 16)).astype(np.float32)
    items[:66, 0] += 9
    table, q, budget = Catalog(items, cells=4).table, np.eye(1, 16, dtype=np.float32), 400
    assert scans.shares(table, budget, 0)[0] == (len(items), 67)  # large items, and one of all others
    expected, found = (x.estimate(table, q, budget, 0).standard_error for x in (estimates, compiled))
    np.testing.assert_allclose(found, expected, rtol=0.05)
