"""Stores of catalogs: built, changed at random and merged, they hold the right items in groups summed right."""

from __future__ import annotations

import copy
import subprocess
import sys
import tracemalloc
from dataclasses import fields
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scipy.stats import chisquare

from rfkernels.backends.numba import catalog_store
from rfkernels.catalog import building, changes, layout, store
from rfkernels.catalog.cells import LARGEST, default_cells, nearest, pack, room_for, shell_sizes
from rfkernels.catalog.invariants import check_arrays
from rfkernels.catalog.records import Store
from rfkernels.catalog.tables import typical_spread

Items = dict[int, Any]


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def runs(held: Store) -> list[slice]:
    return [slice(a, a + n) for a, n in zip(held.start.tolist(), held.count.tolist(), strict=True)]


def check(held: Store, items: Items) -> None:
    """Everything that a store promises, against the items that it should hold and sums taken afresh."""
    check_arrays(held)
    assert sorted(np.flatnonzero(held.slots >= 0).tolist()) == sorted(items)
    dtype = held.rows.dtype
    expected = np.array([items[i] for i in sorted(items)], dtype).reshape(-1, held.rows.shape[1])
    np.testing.assert_array_equal(held.rows[held.slots[sorted(items)]], expected)
    assert held.count.max(initial=0) <= LARGEST
    assert 3 * held.end <= 4 * room_for(held.count).sum() or held.end == held.capacity.sum()
    order = np.lexsort((held.edge, held.cell))
    eps = 64 * np.finfo(dtype).eps
    outer = dict(pairwise(order.tolist()))
    far = 4 * typical_spread(store.table(held))  # so far from all cells items may be in one of their own
    for g, run in enumerate(runs(held)):
        y, centres = held.rows[run].astype(np.float64), held.centres.astype(np.float64)
        apart = y - centres[held.cell[g]]
        square = (apart**2).sum(1)
        np.testing.assert_allclose(held.sums[g], apart.sum(0), rtol=1e-12, atol=1e-12 * np.abs(apart).sum())
        np.testing.assert_allclose(held.squares[g], square.sum(), rtol=1e-12)
        scale = eps * ((y**2).sum(1) + (centres**2).sum(1).max())
        nearest = ((y[:, None] - centres) ** 2).sum(2).min(1)
        assert (square <= nearest + scale)[nearest < far].all(), "not in the nearest cell"
        assert (square >= held.edge[g] - scale).all(), "within the edge of its group"
        after = outer.get(g)
        if after is not None and held.cell[after] == held.cell[g]:
            assert (square <= held.edge[after] + scale).all(), "beyond the edge of the next group"
    innermost = order[np.diff(held.cell[order], prepend=-1) > 0]
    assert not held.edge[innermost].any()
    check_table(held)


def check_table(held: Store) -> None:
    found = store.table(held)
    assert (np.diff(found.cell) >= 0).all()
    rtol = 1e-4 if held.rows.dtype == np.float32 else 1e-10
    for cell in range(len(held.centres)):
        own = [held.rows[run].astype(np.float64) for run in np.array(runs(held), object)[held.cell == cell]]
        mean = np.concatenate(own).mean(0) if own else np.zeros(held.rows.shape[1])
        np.testing.assert_allclose(found.means[cell], mean, rtol=rtol, atol=rtol)
        for y, spread in zip(own, found.spread[found.cell == cell], strict=True):
            np.testing.assert_allclose(spread, ((y - mean) ** 2).sum(1).mean(), rtol=rtol, atol=rtol)
    assert found.means.dtype == found.spread.dtype == held.rows.dtype
    assert (found.spread >= 0).all()


def snapshot(held: Store) -> dict[str, Any]:
    return {field.name: copy.deepcopy(getattr(held, field.name)) for field in fields(held) if field.compare}


def assert_same(held: Store, before: dict[str, Any]) -> None:
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(held, name), value, err_msg=name)


# Building


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda t: t.__name__)
@pytest.mark.parametrize(("n", "dim"), [(0, 3), (1, 1), (2, 5), (40, 1), (3000, 4)])
def test_built(n: int, dim: int, dtype: Any) -> None:
    items = normal(n, dim).astype(dtype)
    held = store.build(items, rng=1)
    assert held.rows.dtype == (np.float64 if dtype is np.float64 else np.float32)
    check(held, dict(enumerate(items.astype(held.rows.dtype))))
    assert len(held.rows) == held.end == held.built == held.capacity.sum() == n, "no room to spare"
    assert 1 <= len(held.centres) <= default_cells(n)
    np.testing.assert_allclose(np.trace(held.shape), 1, rtol=1e-5)
    np.testing.assert_allclose(held.shape, held.shape.T)


def test_identical_items_are_one_cell() -> None:
    items = np.full((2000, 3), 1.5, np.float32)
    held = store.build(items, cells=7)
    assert len(held.centres) == 1
    check(held, dict(enumerate(items)))
    np.testing.assert_allclose(held.shape, np.eye(3) / 3)
    store.add(held, items, np.arange(2000, 4000))
    check(held, dict(enumerate(np.concatenate([items, items]))))


def test_cells_are_those_of_k_means() -> None:
    corners = 20 * np.eye(5, dtype=np.float32)
    label = np.repeat(np.arange(5), 300)
    items = corners[label] + normal(1500, 5)
    held = store.build(items, cells=40)
    spread = (store.table(held).spread * held.count).sum() / 1500
    assert spread < 5 * 0.75, "cells leave less than items about their corners have"
    found = np.zeros((1500, 5))
    for g, run in enumerate(runs(held)):
        found[held.ids[run]] = held.centres[held.cell[g]]
    assert (found.argmax(1) == label).all()


def test_shape_is_the_covariance_within_cells() -> None:
    items = normal(3000, 3, dtype=np.float64) * [3, 1, 0.2]
    held = store.build(items, cells=4)
    means, apart = store.table(held).means, np.empty_like(items)
    for g, run in enumerate(runs(held)):
        apart[run] = held.rows[run] - means[held.cell[g]]
    sample = apart[held.slots[: 60 * 4]].T  # it is estimated from as many
    expected = np.cov(apart.T, bias=True)
    np.testing.assert_allclose(held.shape, expected / np.trace(expected), atol=0.15)
    assert sample.shape == (3, 240)
    small = store.build(items[:200], cells=4)
    apart = np.concatenate(
        [small.rows[r] - store.table(small).means[c] for r, c in zip(runs(small), small.cell, strict=True)]
    )
    np.testing.assert_allclose(small.shape, apart.T @ apart / (apart**2).sum(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 2e18), (np.float64, 2e148)])
def test_items_whose_squares_hardly_fit(dtype: Any, size: float) -> None:
    items = np.random.default_rng(3).normal(size=(3000, 8))
    items[:20] *= 1e-3
    usual, large = (store.build((items * x).astype(dtype), rng=1) for x in (1, size))
    np.testing.assert_allclose(large.shape, usual.shape, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(large.scales / dtype(size), usual.scales, rtol=1e-3)


@pytest.mark.parametrize(("dtype", "largest"), [(np.float32, 1.8e19), (np.float64, 2e149)])
def test_the_largest_items_that_there_may_be(dtype: Any, largest: float) -> None:
    """Squares of all that k-means is shown are summed, and then those of groups: warnings are errors here."""
    directions = np.random.default_rng(3).normal(size=(3_000, 8))
    items = (directions / np.linalg.norm(directions, axis=1, keepdims=True) * largest).astype(dtype)
    held = store.table(store.build(items))
    assert len(held.means) == default_cells(3_000)
    assert np.isfinite(held.spread).all()
    assert np.linalg.norm(held.means.astype(np.float64) / largest, axis=1).max() < 1
    with pytest.raises(ValueError, match=r"squared norms whose sums fit.*items\[7\]"):
        store.build(np.where(np.arange(3_000)[:, None] == 7, 8 * items, items / 2), cells=1)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (0, []),
        (1, [1]),
        (32, [32]),
        (63, [63]),
        (64, [32, 32]),
        (96, [32, 64]),
        (159, [32, 127]),
        (480, [32, 64, 128, 256]),
        (1000, [32, 64, 128, 256, 256, 264]),
    ],
)
def test_sizes_of_shells(count: int, sizes: list[int]) -> None:
    assert shell_sizes(count) == sizes
    held = store.build(normal(count, 3), cells=1)
    np.testing.assert_array_equal(held.count, sizes)


def test_shells_lie_within_each_other_in_random_order() -> None:
    held = store.build(normal(5000, 3), cells=3)
    ranks = []
    for g, run in enumerate(runs(held)):
        square = ((held.rows[run] - held.centres[held.cell[g]]) ** 2).sum(1)
        if len(square) >= 64:
            ranks.append(np.corrcoef(np.arange(len(square)), square)[0, 1] * np.sqrt(len(square)))
    assert len(ranks) > 15
    assert np.abs(ranks).max() < 4
    assert abs(np.mean(ranks)) < 4 / np.sqrt(len(ranks))


def test_seeds() -> None:
    items = normal(2000, 3)
    once, again, other = (store.build(items, rng=seed) for seed in (3, np.random.default_rng(3), 4))
    assert_same(once, snapshot(again))
    assert (once.ids != other.ids).any()


def test_items_in_parts_and_rows_in_a_file(tmp_path: Any) -> None:
    items, ids = normal(60_000, 48), np.random.default_rng(2).permutation(90_000)[:60_000]
    np.save(tmp_path / "items.npy", items)
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, (60_100, 48))
    mapped = np.load(tmp_path / "items.npy", mmap_mode="r")
    store.build(mapped[:200], cells=2)  # compiled, and scikit-learn imported
    tracemalloc.start()
    held = store.build(mapped, ids, rows=rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held.rows is rows
    assert peak < 0.7 * items.nbytes, "items are never in memory as a whole"
    beyond = sum(
        getattr(held, field.name).nbytes
        for field in fields(held)
        if field.compare and field.name not in ("rows", "end", "built")
    )
    assert beyond - 4 * 30_000 < 0.25 * items.nbytes  # less slots of ids that are missing
    given = store.build(items, ids)
    for name in ("count", "cell", "edge", "sums", "slots"):
        np.testing.assert_array_equal(getattr(held, name), getattr(given, name))
    np.testing.assert_array_equal(held.rows[: held.end], given.rows)
    assert (held.ids[held.end :] == -1).all()
    check(held, dict(zip(ids.tolist(), items, strict=True)))


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; from rfkernels.catalog import store; print([m for m in ('jax', 'numba', 'scipy', 'sklearn') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_scikit_learn_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"rfkernels\[catalog\]"):
        store.build(normal(100, 2), cells=2)
    check(store.build(normal(100, 2), cells=1), dict(enumerate(normal(100, 2))))


# Compiled parts


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "dim", "cells"), [(0, 3, 2), (1, 1, 1), (70, 5, 3), (9000, 6, 300), (500, 131, 129)])
def test_nearest_centres(n: int, dim: int, cells: int, dtype: Any) -> None:
    x, centres = normal(n, dim, dtype=dtype), normal(cells, dim, seed=1, dtype=dtype)
    label, square = nearest(x, pack(centres))
    exact = np.stack([((x.astype(float) - c) ** 2).sum(1) for c in centres.astype(float)], 1)
    np.testing.assert_allclose(square, exact[np.arange(n), label], rtol=64 * np.finfo(dtype).eps)
    np.testing.assert_allclose(square, exact.min(1), rtol=1e3 * np.finfo(dtype).eps)
    assert label.dtype == np.int32
    assert square.dtype == dtype


@pytest.mark.parametrize("width", ["16", "32"])
def test_nearest_centres_on_narrower_machines(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left of items beside whole register tiles."""
    monkeypatch.setenv("RFKERNELS_VECTOR_BYTES", width)
    packed, centres = pack(normal(37, 5, seed=1)), normal(37, 5, seed=1).astype(float)
    for n in range(60, 140):
        x = normal(n, 5)
        exact = ((x[:, None].astype(float) - centres) ** 2).sum(2)
        label, square = nearest(x, packed)
        np.testing.assert_array_equal(label, exact.argmin(1))
        np.testing.assert_allclose(square, exact.min(1), rtol=64 * np.finfo(np.float32).eps)


def test_nearest_centres_far_from_the_origin_and_ties() -> None:
    x, centres = normal(500, 4), normal(30, 4, seed=1)
    far, away = x + np.float32(2**12), centres + np.float32(2**12)
    exactly = nearest(far.astype(float), pack(away.astype(float)))[0]
    np.testing.assert_array_equal(nearest(far, pack(away))[0], exactly)
    assert (nearest(x, pack(np.concatenate([centres, centres])))[0] < 30).all()


@pytest.mark.parametrize("count", [[], [1], [5, 0, 7], [300] * 400])
def test_sums(count: list[int]) -> None:
    counts = np.array(count, np.int32)
    start = np.cumsum(counts, dtype=np.int64) - counts
    rows, centre = normal(int(counts.sum()), 7), normal(len(counts), 7, seed=1)
    sums, squares = np.full((len(counts), 7), np.nan), np.full(len(counts), np.nan)
    cell, groups = np.arange(len(counts), dtype=np.int32), np.arange(len(counts))
    catalog_store.sum_groups(rows, groups, (start, counts, cell), centre, sums, squares)
    apart = rows.astype(float) - np.repeat(centre, counts, axis=0)
    label = np.repeat(np.arange(len(counts)), counts)
    np.testing.assert_allclose(squares, np.bincount(label, (apart**2).sum(1), len(counts)), rtol=1e-12)
    for k in range(7):
        np.testing.assert_allclose(sums[:, k], np.bincount(label, apart[:, k], len(counts)), rtol=1e-10, atol=1e-10)


# Changes


class Events:
    """Counts what happens inside, and how many rows are read or moved by it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.born = self.repacked = self.rows = 0
        repack, moved, summed = changes.repack, changes.move, catalog_store.sum_groups

        def counted_repack(held: Store, total: Any) -> None:
            self.repacked += int(held.count.sum())
            repack(held, total)

        def counted_move(held: Store, items: Any, ids: Any, group: Any, rng: Any) -> Any:
            self.rows += int(held.count[np.unique(group)].sum())
            before = len(held.count)
            found = moved(held, items, ids, group, rng)
            self.born += len(held.count) - before
            return found

        def counted_sums(rows: Any, groups: Any, place: Any, *rest: Any) -> None:
            self.rows += int(place[1][groups].sum())
            summed(rows, groups, place, *rest)

        for module in (changes, layout):
            monkeypatch.setattr(module, "repack", counted_repack)
        monkeypatch.setattr(changes, "move", counted_move)
        monkeypatch.setattr(catalog_store, "sum_groups", counted_sums)


def change(held: Store, items: Items, rng: np.random.Generator, size: int) -> int:
    """Make one random change to a store and to the dictionary of its items; return of how many items."""
    dim, dtype = held.rows.shape[1], held.rows.dtype
    kind = rng.choice(["add", "remove", "update", "nudge"], p=[0.38, 0.26, 0.18, 0.18])
    known = np.fromiter(items, np.int64)
    if kind == "add":
        ids = rng.choice(np.setdiff1d(np.arange(40_000), known), size, replace=False)
        new = (rng.normal(size=(size, dim)) * rng.gamma(1, 1, (size, 1)) + 3 * rng.normal(size=dim)).astype(dtype)
        store.add(held, new, ids)
        items.update(zip(ids.tolist(), new, strict=True))
        return size
    ids = rng.choice(known, min(size, len(known)), replace=False)
    if kind == "remove":
        if rng.random() < 0.3 and size:  # whole groups, which end
            ids = np.concatenate([held.ids[run] for run in runs(held) if rng.random() < 0.02] + [ids[:1]])
            ids = np.unique(ids)
        store.remove(held, ids)
        for i in ids.tolist():
            del items[i]
        return len(ids)
    new = np.array([items[i] for i in ids.tolist()]).reshape(-1, dim)
    new = (new * 1.01 if kind == "nudge" else rng.normal(size=new.shape)).astype(dtype)
    store.update(held, ids, new)
    items.update(zip(ids.tolist(), new, strict=True))
    return len(ids)


@pytest.mark.parametrize(("dim", "dtype", "seed"), [(3, np.float32, 0), (1, np.float64, 1)])
def test_hundred_thousand_changes(dim: int, dtype: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    events, rng = Events(monkeypatch), np.random.default_rng(seed)
    first = normal(2000, dim, dtype=dtype)
    held, items, done, ended, calls = store.build(first, cells=12), dict(enumerate(first)), 0, 0, 0
    while done < 100_000:
        size = int(rng.choice([0, 1, 2, 30, 500, 1500], p=[0.02, 0.4, 0.1, 0.2, 0.2, 0.08]))
        before = len(held.count)
        done += change(held, items, rng, size)
        ended += len(held.count) < before
        calls += 1
        if calls % 40 == 0:
            check(held, items)
    check(held, items)
    assert min(events.born, events.repacked / 2000, ended) >= 5, "too little happened"


def test_one_by_one_and_all_at_once_hold_the_same() -> None:
    items = normal(900, 2)
    grown, filled = (store.build(items[:0]) for _ in range(2))
    for i, item in enumerate(items):
        store.add(grown, item[None], [i])
    store.add(filled, items, np.arange(900))
    for held in (grown, filled):
        check(held, dict(enumerate(items)))
    np.testing.assert_array_equal(np.sort(filled.count), np.sort(shell_sizes(900)))
    store.remove(filled, np.arange(900)[::-1])
    check(filled, {})
    assert filled.end == 0
    assert len(filled.rows) == 0
    for i in range(900):
        store.remove(grown, [i])
    check(grown, {})


def test_an_item_at_a_centre_joins_its_cell() -> None:
    items = normal(500, 2)
    held = store.build(items, cells=5)
    store.add(held, held.centres, np.arange(500, 505))
    check(held, dict(enumerate([*items, *held.centres])))


def test_items_that_stay_in_their_group_keep_their_row() -> None:
    items = normal(500, 3, dtype=np.float64)
    held = store.build(items, cells=3)
    store.update(held, [7], items[[7]])
    slot = held.slots[7]
    store.update(held, [7], items[[7]] * (1 + 1e-9))
    assert held.slots[7] == slot
    check(held, {**dict(enumerate(items)), 7: items[7] * (1 + 1e-9)})
    store.update(held, [7], items[[7]])
    slots = held.slots.copy()
    store.update(held, np.arange(500), items)  # of each group one lies at its edge
    np.testing.assert_array_equal(held.slots, slots)


def test_half_precision_joins_single() -> None:
    held = store.build(normal(50, 3))
    new = normal(2, 3, seed=1).astype(ml_dtypes.bfloat16)
    store.add(held, new, [50, 51])
    store.update(held, [0], new[:1])
    items = dict(enumerate([*normal(50, 3), *new.astype(np.float32)]))
    check(held, {**items, 0: new[0].astype(np.float32)})


def test_places_are_random() -> None:
    """Of every order of two old and two new items there are equally many."""
    items, empty, orders = normal(4, 2), store.build(normal(0, 2)), np.zeros((4, 4, 4, 4), int)
    for seed in range(720):
        held, rng = copy.deepcopy(empty), np.random.default_rng(seed)
        store.add(held, items[:2], [0, 1], rng=rng)
        store.add(held, items[2:], [2, 3], rng=rng)
        orders[tuple(held.ids[:4])] += 1
    found = orders[orders > 0]
    assert len(found) == 24
    assert chisquare(found).pvalue > 1e-4


def test_places_stay_random_when_items_leave() -> None:
    orders = np.zeros((4, 4, 4), int)
    for seed in range(360):
        held = store.build(normal(5, 2), cells=1, rng=seed)
        store.remove(held, [0, 4])
        orders[tuple(held.ids[:3])] += 1
    found = orders[orders > 0]
    assert len(found) == 6
    assert chisquare(found).pvalue > 1e-4


def test_time_does_not_depend_on_the_number_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in rows: those of two groups at most for one item, and a constant number in the long run."""
    events, touched, repacked = Events(monkeypatch), {}, {}
    for n in (2000, 32_000):
        rng = np.random.default_rng(0)
        held = store.build(normal(n, 2), cells=n // 500)
        store.add(held, normal(1, 2), [n])
        most, events.repacked, changed = 0, 0, 0
        for step in range(60):
            events.rows = 0
            store.add(held, rng.normal(size=(1, 2)).astype(np.float32), [n + 1 + step])
            store.update(held, [step], rng.normal(size=(1, 2)).astype(np.float32))
            store.remove(held, [1000 + step])
            most = max(most, events.rows)
        for step in range(8):
            size = n // 8
            store.add(held, rng.normal(size=(size, 2)).astype(np.float32), 10 * n + step * size + np.arange(size))
            store.remove(held, held.ids[held.slots[held.slots >= 0][:size]])
            changed += 2 * size
        touched[n], repacked[n] = most, events.repacked / changed
    assert max(touched.values()) <= 7 * LARGEST
    assert touched[32_000] <= 1.5 * touched[2000]
    assert max(repacked.values()) < 8


def test_growing_slots_one_by_one_copies_them_seldom() -> None:
    held = store.build(normal(100, 2))
    wholes = set()
    for i in range(100, 400):
        store.add(held, normal(1, 2, seed=i), [i])
        assert len(held.slots) == i + 1
        wholes.add(held.slots.ctypes.data)
    assert len(wholes) < 12


def test_slots_that_are_part_of_another_array_are_not_grown_into_it() -> None:
    held = store.build(normal(10, 2))
    outer = np.full(40, 5, np.int32)
    outer[1:11] = held.slots
    held.slots = outer[1:11]
    store.add(held, normal(1, 2, seed=1), [10])
    assert outer[0] == 5
    assert (outer[11:] == 5).all()
    check(held, dict(enumerate([*normal(10, 2), *normal(1, 2, seed=1)])))


@pytest.mark.parametrize("first", ["add", "remove", "update"])
def test_a_store_that_may_not_be_written_to_is_copied_at_the_first_change(first: str, tmp_path: Any) -> None:
    items = normal(2000, 3)
    held = store.build(items)
    np.save(tmp_path / "rows.npy", held.rows)
    written = (tmp_path / "rows.npy").read_bytes()
    held.rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    for field in fields(held):
        if isinstance(getattr(held, field.name), np.ndarray):
            getattr(held, field.name).flags.writeable = False
    mapped = held.rows
    assert store.table(held).rows is mapped
    expected = dict(enumerate(items))
    if first == "add":
        store.add(held, -items[:3], [2000, 2001, 2002])
        expected |= {2000: -items[0], 2001: -items[1], 2002: -items[2]}
    elif first == "remove":
        store.remove(held, [5])
        del expected[5]
    else:
        store.update(held, [5], -items[[7]])
        expected[5] = -items[7]
    check(held, expected)
    assert (tmp_path / "rows.npy").read_bytes() == written
    assert held.rows.flags.writeable


# Merging and grouping anew


def test_merged_stores_hold_what_both_held() -> None:
    a, b = normal(800, 3), 2 * normal(500, 3, seed=1)
    one, two = store.build(a, np.arange(800) * 2), store.build(b, np.arange(500) * 2 + 1, cells=4)
    for part in (one, two):  # with rows to spare
        store.add(part, b[:1], [5001])
        store.remove(part, [5001])
        assert len(part.rows) > part.end > part.built
    before = snapshot(one), snapshot(two)
    held = store.merge(one, two)
    assert_same(one, before[0])
    assert_same(two, before[1])
    check_arrays(held)
    check_table(held)
    items = dict(zip(range(0, 1600, 2), a, strict=True)) | dict(zip(range(1, 1000, 2), b, strict=True))
    assert np.flatnonzero(held.slots >= 0).tolist() == sorted(items)
    np.testing.assert_array_equal(held.rows[held.slots[sorted(items)]], [items[i] for i in sorted(items)])
    assert len(held.centres) == len(one.centres) + 4
    assert held.built == 1300
    masses = [(store.table(x).spread * x.count).sum() for x in (one, two)]
    np.testing.assert_allclose(held.shape, np.average([one.shape, two.shape], 0, masses), rtol=1e-5, atol=1e-6)
    check(store.regroup(held, 1), items)
    store.remove(held, sorted(items)[:600])
    check_arrays(held)
    check_table(held)


def test_few_far_items_do_not_outweigh_others_when_stores_are_merged() -> None:
    near = store.build(normal(3000, 3, dtype=np.float64) * [3, 1, 0.2])
    far = store.build(np.array([[0.0, 0, 1e4], [0, 0, -1e4]]), [3000, 3001], cells=1)
    for held in (store.merge(near, far), store.merge(far, near), store.merge(near, far, most=1)):
        np.testing.assert_allclose(held.shape, near.shape, atol=0.03)


def test_merging_with_no_items() -> None:
    items = normal(100, 3)
    full, empty = store.build(items), store.build(items[:0])
    for held in (store.merge(full, empty), store.merge(empty, full)):
        check_arrays(held)
        np.testing.assert_allclose(held.shape, full.shape, rtol=1e-6)
        np.testing.assert_array_equal(held.rows[held.slots], items)
    assert not store.merge(empty, empty).count.size


def test_stores_that_merge_over_and_over_do_not_drown_in_cells() -> None:
    items = normal(3600, 3)
    parts = [store.build(items[i], i) for i in np.split(np.arange(3600), 18)]
    held, most = parts[0], 0
    for i, part in enumerate(parts[1:], 2):
        before = snapshot(held), snapshot(part)
        merged = store.merge(held, part) if i % 3 else store.merge(part, held)
        assert_same(held, before[0])
        assert_same(part, before[1])
        held = merged
        assert len(held.centres) <= 2 * default_cells(200 * i)
        most = max(most, len(held.centres))
    assert most > 3 * len(parts[0].centres), "cells are kept while there are few"
    check_arrays(held)
    check_table(held)
    np.testing.assert_array_equal(held.rows[held.slots], items)
    assert store.outgrown(held), "most items came after the cells were found"
    found = store.regroup(held)
    assert not store.outgrown(found)
    assert len(found.centres) == default_cells(3600)
    check(found, dict(enumerate(items)))


def test_merged_stores_may_keep_all_cells() -> None:
    one, two = (store.build(normal(100, 3), np.arange(i, i + 100), cells=40) for i in (0, 100))
    assert len(store.merge(one, two, most=200).centres) == len(one.centres) + len(two.centres)
    held = store.merge(one, two)
    assert len(held.centres) == len(one.centres)
    assert held.built == 100
    check(held, dict(enumerate(np.concatenate([normal(100, 3)] * 2))))
    few = store.build(normal(60, 3, seed=1), np.arange(200, 260), cells=30)
    for held in (store.merge(few, one), store.merge(one, few)):
        np.testing.assert_array_equal(held.centres, one.centres)
    np.testing.assert_allclose(np.trace(held.shape), 1, rtol=1e-5)


def test_grouping_anew_is_building_from_the_same_items(tmp_path: Any) -> None:
    items = normal(3000, 3)
    held = store.build(items)
    store.remove(held, np.arange(0, 3000, 3))
    before = snapshot(held)
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, (2000, 3))
    found = store.regroup(held, 5, cells=9, rows=rows)
    assert_same(held, before)
    assert found.rows is rows
    assert len(found.centres) == 9
    check(found, {i: items[i] for i in range(3000) if i % 3})


def test_when_cells_are_outgrown() -> None:
    items = normal(2000, 3)
    held = store.build(items)
    assert not store.outgrown(held)
    store.remove(held, np.arange(900))
    assert not store.outgrown(held)
    store.remove(held, np.arange(900, 1100))
    assert store.outgrown(held)
    held = store.build(items)
    store.add(held, normal(2100, 3, seed=1), np.arange(2000, 4100))
    assert store.outgrown(held)
    held = store.build(items)
    store.update(held, np.arange(2000), items + 1)
    assert store.outgrown(held), "all items moved one way"
    held = store.build(items)
    store.update(held, np.arange(2000), 1.2 * items)
    assert not store.outgrown(held)
    store.update(held, np.arange(2000), 1.6 * items)
    assert store.outgrown(held), "items are wider apart, and no group is of far ones any more"
    assert not store.outgrown(store.build(items[:0]))
    assert not store.outgrown(store.build(np.repeat(items[:20], 50, axis=0))), "of means that rounding alone moves"


@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_merged_cells_are_not_outgrown_by_either_ones_items(factor: float) -> None:
    items = normal(1000, 3)
    one, other = store.build(items), store.build(np.float32(factor) * items, np.arange(1000, 2000))
    none = store.build(items[:0])
    for held in (store.merge(one, other), store.merge(none, other), store.merge(other, none)):
        assert not store.outgrown(held)
        store.update(held, np.arange(1000, 2000), np.float32(20 * (1 + factor)) * items)
        assert store.outgrown(held)
    np.testing.assert_array_equal(store.merge(one, other).scales, store.merge(other, one).scales)


# Refusals


def with_value(value: float, at: tuple[int, int] = (3, 1), n: int = 10) -> Any:
    x = normal(n, 3)
    x[at] = value
    return x


ADDED: dict[str, tuple[type, str, Any, Any]] = {
    "a list": (TypeError, "items must be .*got list", [[1.0, 2.0, 3.0]], [900]),
    "integers": (TypeError, "items must have one of the dtypes.*int64", np.ones((1, 3), int), [900]),
    "more precision": (TypeError, "items .*holds float32, got float64", np.ones((1, 3)), [900]),
    "one axis": (ValueError, r"items must have shape .*got \(3,\)", np.ones(3, np.float32), [900]),
    "another dim": (
        ValueError,
        r"items must have shape \(items, 3\).*got \(1, 4\)",
        np.ones((1, 4), np.float32),
        [900],
    ),
    "not a number": (ValueError, r"items\[3, 1\] is nan", with_value(np.nan), np.arange(900, 910)),
    "infinity": (ValueError, r"items\[3, 1\] is -inf", with_value(-np.inf), np.arange(900, 910)),
    "too large": (ValueError, r"squared norms whose sums fit.*items\[3\]", with_value(1e30), np.arange(900, 910)),
    "ids that are no integers": (TypeError, "ids must be integers, got float64", normal(1, 3), [900.0]),
    "too few ids": (ValueError, r"ids must have shape \(2,\).*got \(1,\)", normal(2, 3), [900]),
    "a negative id": (ValueError, r"between 0 and 2147483646, but ids\[1\] is -1", normal(2, 3), [900, -1]),
    "too large an id": (ValueError, r"ids\[0\] is 2147483647", normal(1, 3), [2**31 - 1]),
    "an id twice": (ValueError, "distinct, but 901 occurs", normal(3, 3), [901, 900, 901]),
    "an id in use": (ValueError, "not be in use, but the catalog holds 4", normal(2, 3), [900, 4]),
}


@pytest.mark.parametrize("case", ADDED)
def test_additions_that_are_refused(case: str) -> None:
    error, message, items, ids = ADDED[case]
    held = store.build(normal(100, 3))
    before = snapshot(held)
    with pytest.raises(error, match=message):
        store.add(held, items, ids)
    assert_same(held, before)


@pytest.mark.parametrize(
    ("error", "message", "ids"),
    [
        (TypeError, "ids must be integers", [1.0, 2.0]),
        (ValueError, "distinct, but 3 occurs", [3, 3]),
        (ValueError, r"ids\[0\] is -1", [-1, 3]),
        (KeyError, "does not hold 7", [3, 7]),
        (KeyError, "does not hold 100", [3, 100]),
        (ValueError, "ids must have shape", [[3, 4]]),
    ],
)
def test_ids_that_are_refused(error: type, message: str, ids: Any) -> None:
    held = store.build(normal(100, 3))
    store.remove(held, [7])
    before = snapshot(held)
    with pytest.raises(error, match=message):
        store.remove(held, ids)
    with pytest.raises(error, match=message):
        store.update(held, ids, normal(2, 3))
    assert_same(held, before)


def test_updates_that_are_refused() -> None:
    held = store.build(normal(100, 3))
    before = snapshot(held)
    with pytest.raises(ValueError, match="agree in length, got 2 and 1"):
        store.update(held, [1, 2], normal(1, 3))
    with pytest.raises(ValueError, match=r"items\[3, 1\] is nan"):
        store.update(held, np.arange(10), with_value(np.nan))
    with pytest.raises(TypeError, match="float64"):
        store.update(held, [1], np.ones((1, 3)))
    assert_same(held, before)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (TypeError, "items must be", {"items": [[1.0]]}),
        (ValueError, r"dim of at least 1, got \(3, 0\)", {"items": np.ones((3, 0))}),
        (ValueError, r"items\[3, 1\] is nan", {"items": with_value(np.nan)}),
        (ValueError, r"items\[19999, 2\] is inf", {"items": with_value(np.inf, (19_999, 2), 20_000), "cells": 3}),
        (ValueError, r"squared norms whose sums fit.*items\[3\]", {"items": with_value(1e30)}),
        (ValueError, "cells must be an integer from 1 to 10.*got 0", {"cells": 0}),
        (ValueError, "cells must be .*got 11", {"cells": 11}),
        (ValueError, "cells must be .*got True", {"cells": True}),
        (ValueError, "cells must be .*got 2.0", {"cells": 2.0}),
        (ValueError, r"ids must have shape \(10,\)", {"ids": np.arange(9)}),
        (ValueError, "distinct, but 1 occurs", {"ids": np.arange(10) // 2 + 1}),
        (TypeError, "rows must be a NumPy array of float32", {"rows": np.empty((10, 3))}),
        (TypeError, "rows must be .*written to", {"rows": np.broadcast_to(np.float32(0), (10, 3))}),
        (ValueError, r"rows must have shape \(at least 10, 3\), got \(9, 3\)", {"rows": np.empty((9, 3), np.float32)}),
    ],
)
def test_what_building_refuses(error: type, message: str, given: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        store.build(**{"items": normal(10, 3), **given})


def test_rows_may_not_be_the_items() -> None:
    items = normal(10, 3)
    with pytest.raises(ValueError, match="must not share memory"):
        building.build(items, rows=items)


def test_stores_that_do_not_merge() -> None:
    held = store.build(normal(20, 3))
    with pytest.raises(ValueError, match="in common, but both hold 4"):
        store.merge(held, store.build(normal(2, 3), [30, 4]))
    with pytest.raises(ValueError, match="agree in dim, got 3 and 2"):
        store.merge(held, store.build(normal(2, 2), [30, 31]))
    with pytest.raises(TypeError, match="float32 and float64"):
        store.merge(held, store.build(normal(2, 3, dtype=float), [30, 31]))
