"""Changes of mapped catalogs: private pages, an untouched file, and copies where nothing else is possible."""

from __future__ import annotations

import copy
import mmap
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import in_memory

import rfkernels as rfk
from rfkernels.catalog import changes, invariants, layout, mapping
from rfkernels.catalog.codes import BLOCK

DIM = 64


def normal(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.safetensors"


def written_to(rows: Any) -> int:
    """Bytes of the pages of an array that are this process's own, as are those that it wrote to.

    Page by page: a mapping that the system lists may be one with whatever lies beside it.
    """
    page, begin = mmap.PAGESIZE, rows.ctypes.data
    first, last = begin // page, -(-(begin + rows.nbytes) // page)
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(8 * first)
        entries = np.frombuffer(file.read(8 * (last - first)), np.uint64)
    present, of_file = (entries >> np.uint64(bit) & np.uint64(1) for bit in (63, 61))
    return page * int(np.count_nonzero(present > of_file))


def change(catalog: rfk.Catalog, first: Any) -> Any:
    """Replace the first items, remove 20 and add 5; return the ids of these."""
    catalog.update(np.arange(len(first)), first)
    catalog.remove(np.arange(200, 220))
    return catalog.add(normal(5, 1))


def test_changes_take_memory_for_what_they_touch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (changes, layout):
        monkeypatch.setattr(module, "repack", lambda *_: pytest.fail("everything was copied"))
    items = normal(60_000)
    rfk.Catalog(items, cells=20).save(path)
    written, own = path.read_bytes(), items.copy()
    own[:5] = -items[:5]
    # What changes compile takes memory too: it is compiled before.
    change(rfk.Catalog.load(path, mapped=True), own[:5])
    catalog = rfk.Catalog.load(path, mapped=True)
    tracemalloc.start()
    added = change(catalog, own[:5])
    assert tracemalloc.get_traced_memory()[1] < items.nbytes / 8
    tracemalloc.stop()
    rows = catalog.store.rows
    assert isinstance(rows.base.base.obj, mmap.mmap)
    kept = np.append(np.arange(200), np.arange(220, 60_000))
    np.testing.assert_array_equal(catalog.items(kept), own[kept])
    np.testing.assert_array_equal(catalog.items(added), normal(5, 1))
    if sys.platform == "linux":
        assert 0 < written_to(rows) < items.nbytes / 10
        assert 0 < written_to(catalog.store.codes) < catalog.store.codes.nbytes / 3
        rows[:] = 1
        assert written_to(rows) >= items.nbytes
    assert path.read_bytes() == written


def test_groups_that_moved_take_the_memory_that_they_fill(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time and again a few items join, move and leave, all over a catalog, whose groups all move to other rows."""
    for module in (changes, layout):
        monkeypatch.setattr(module, "repack", lambda *_: pytest.fail("everything was copied"))
    closed, rng = [], np.random.default_rng(0)
    close_up = changes.close_up
    monkeypatch.setattr(changes, "close_up", lambda *given: closed.append(close_up(*given)))
    items = normal(8_000)
    rfk.Catalog(items, cells=20).save(path)
    written, catalog = path.read_bytes(), rfk.Catalog.load(path, mapped=True)
    held, rooms = dict(enumerate(items)), []
    for _ in range(100):
        moving, leaving = np.split(rng.choice(list(held), 800, replace=False), 2)
        new = rng.normal(size=(800, DIM)).astype(np.float32)
        catalog.update(moving, new[:400])
        catalog.remove(leaving)
        joining = catalog.add(new[400:])
        held |= dict(zip([*moving, *joining], new, strict=True))
        for one in leaving:
            del held[one]
        rooms.append(catalog.store.end)
    first = catalog.store.source.first
    assert (catalog.store.start < first).mean() < 0.1
    assert len(closed) > 3
    assert max(rooms) - first < 1.6 * len(items)
    np.testing.assert_array_equal(catalog.items(list(held)), list(held.values()))
    invariants.check_arrays(catalog.store)
    assert path.read_bytes() == written
    if sys.platform == "linux":
        assert written_to(catalog.store.rows[:first]) < items.nbytes / 10
        assert written_to(catalog.store.source.rows) < 1.2 * items.nbytes
    expected = catalog.log_normalizer(items[:9], budget=2_000)
    copied = copy.deepcopy(catalog)
    assert len(copied.store.rows) < 1.2 * len(items)
    np.testing.assert_allclose(copied.log_normalizer(items[:9], budget=2_000), expected, rtol=1e-5)
    catalog.save(path)
    again = rfk.Catalog.load(path, mapped=True, verify=True)
    assert len(again.store.rows) < 1.2 * len(items)
    np.testing.assert_array_equal(again.items(list(held)), list(held.values()))
    np.testing.assert_allclose(again.log_normalizer(items[:9], budget=2_000), expected, rtol=1e-5)


def test_groups_of_a_created_catalog_have_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, moved = normal(6_000), []
    catalog = rfk.Catalog.create(path, items, cells=10)
    invariants.check_arrays(catalog.store)
    assert not (catalog.store.start % BLOCK).any()
    assert len(items) < len(catalog.store.rows) == catalog.store.end < 1.25 * len(items)
    move = changes.move
    monkeypatch.setattr(changes, "move", lambda *given: moved.extend(given[3]) or move(*given))
    added = catalog.add(normal(100, 1))
    assert len(moved) < 50
    np.testing.assert_array_equal(catalog.items(added), normal(100, 1))
    np.testing.assert_array_equal(catalog.items(np.arange(6_000)), items)


def test_a_created_catalog_of_small_groups_has_no_room(path: Path) -> None:
    items = normal(300)
    catalog = rfk.Catalog.create(path, items, cells=100)
    assert len(catalog.store.rows) == catalog.store.end == 300
    np.testing.assert_array_equal(catalog.items(np.arange(300)), items)


def test_files_and_copies_have_no_rows_that_were_never_used(path: Path) -> None:
    items = normal(500)
    rfk.Catalog(items, cells=4).save(path)
    size = path.stat().st_size
    for _ in range(3):
        catalog = rfk.Catalog.load(path, mapped=True)
        catalog.update([7], items[7:8])
        assert len(catalog.store.rows) > 500
        assert len(copy.deepcopy(catalog).store.rows) == 500
        catalog.save(path)
        assert path.stat().st_size == size


def test_a_mapped_catalog_may_lose_all_its_items(path: Path) -> None:
    rfk.Catalog(normal(500), cells=4).save(path)
    catalog = rfk.Catalog.load(path, mapped=True)
    catalog.add(normal(5, 1))
    catalog.remove(catalog.ids)
    catalog.save(path)
    again = rfk.Catalog.load(path, mapped=True)
    assert len(again) == 0
    assert len(again.store.rows) == 1
    np.testing.assert_array_equal(again.items(again.add(normal(50, 1))), normal(50, 1))


def test_all_items_may_change(path: Path) -> None:
    """More rows are taken than lie in the file or behind it."""
    items = normal(3_000)
    rfk.Catalog(items, cells=8).save(path)
    written, catalog = path.read_bytes(), rfk.Catalog.load(path, mapped=True)
    for seed in range(1, 6):
        new = normal(3_000, seed)
        catalog.update(np.arange(3_000), new)
        catalog.add(new, np.arange(3_000 * seed, 3_000 * seed + 3_000))
    np.testing.assert_array_equal(catalog.items(np.arange(3_000)), new)
    np.testing.assert_array_equal(catalog.items(np.arange(6_000, 9_000)), normal(3_000, 2))
    assert path.read_bytes() == written
    catalog.save(path)
    assert len(rfk.Catalog.load(path)) == 18_000


def test_a_change_without_a_place_for_it_leaves_rows_as_they_are(path: Path) -> None:
    rfk.Catalog(normal(500), cells=4).save(path)
    catalog = rfk.Catalog.load(path, mapped=True)
    with pytest.raises(KeyError):
        catalog.remove([500])
    assert not catalog.store.rows.flags.writeable


@pytest.mark.parametrize("how", ["replaced", "gone"])
def test_a_file_that_is_not_the_same_any_more(path: Path, how: str) -> None:
    items = normal(500)
    rfk.Catalog(items, cells=4).save(path)
    catalog = rfk.Catalog.load(path, mapped=True)
    if how == "replaced":
        rfk.Catalog(-items, cells=4).save(path)
    else:
        path.unlink()
    catalog.remove([7])
    assert in_memory(catalog.store.rows)
    np.testing.assert_array_equal(catalog.items(np.arange(8, 500)), items[8:])


def test_where_there_are_not_as_many_addresses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = normal(500)
    rfk.Catalog(items, cells=4).save(path)
    catalog = rfk.Catalog.load(path, mapped=True)
    monkeypatch.setattr(mapping, "_ROOM", 1 << 32)
    catalog.remove([7])
    assert in_memory(catalog.store.rows)
    np.testing.assert_array_equal(catalog.items(np.arange(8, 500)), items[8:])


def test_memory_that_cannot_be_given_back_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = normal(500)
    rfk.Catalog(items, cells=4).save(path)
    catalog = rfk.Catalog.load(path, mapped=True)
    monkeypatch.setattr(mmap, "MADV_DONTNEED", 1 << 20)  # the system knows of none
    catalog.add(normal(100, 1), np.arange(500, 600))
    assert (catalog.store.start >= 500).any()
    np.testing.assert_array_equal(catalog.items(np.arange(600)), np.concatenate([items, normal(100, 1)]))


def test_rows_at_any_offset(path: Path) -> None:
    """Mappings begin at pages; rows need not."""
    items = normal(112)  # with what lies before them on their page, more than seven pages
    path.write_bytes(b"x" * 5000 + items.tobytes() + b"end")
    with path.open("rb") as file:
        source = mapping.source_of(file, 5000, 100)
    rows = mapping.privately(source, items, items[:0], 100).rows
    np.testing.assert_array_equal(rows[:112], items)
    assert rows.shape == (336, DIM)
    rows[:] = 1
    assert path.read_bytes()[5000:-3] == items.tobytes()
    assert mapping.privately(None, items, items[:0], 100) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may set memory aside")
def test_rows_may_be_more_than_memory(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole, which takes no room on disk either
    with path.open("rb") as file:
        source, items = mapping.source_of(file, 0, 0), np.broadcast_to(np.float32(0), (1 << 30, 256))
    rows = mapping.privately(source, items, items[:0], 1 << 30).rows
    rows[[7, -1]] = 1
    assert rows[:, 0][[6, 7, 1 << 29, -1]].tolist() == [0, 1, 0, 1]


def test_what_the_system_refuses(path: Path) -> None:
    path.write_bytes(bytes(8192))
    with path.open("rb") as file, pytest.raises(OSError, match="cannot be mapped to be changed"):
        mapping._lay_over(mmap.mmap(-1, 8192), 8192, file, 1, mmap.MAP_PRIVATE)
