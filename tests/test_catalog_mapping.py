"""Changes of mapped catalogs: private pages, an untouched file, and copies where nothing else is possible."""

from __future__ import annotations

import mmap
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rfkernels as rfk
from rfkernels.catalog import changes, mapping

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
    monkeypatch.setattr(changes, "repack", lambda *_: pytest.fail("everything was copied"))
    items = normal(60_000)
    rfk.Catalog(items, cells=20).save(path)
    written, own = path.read_bytes(), items.copy()
    own[:5] = -items[:5]
    # What changes compile takes memory too: it is compiled before.
    change(rfk.Catalog.load(path, mapped=True), own[:5])
    catalog = rfk.Catalog.load(path, mapped=True)
    tracemalloc.start()
    added = change(catalog, own[:5])
    assert tracemalloc.get_traced_memory()[1] < items.nbytes / 3
    tracemalloc.stop()
    rows = catalog.store.rows
    assert isinstance(rows.base.base.obj, mmap.mmap)
    kept = np.append(np.arange(200), np.arange(220, 60_000))
    np.testing.assert_array_equal(catalog.items(kept), own[kept])
    np.testing.assert_array_equal(catalog.items(added), normal(5, 1))
    if sys.platform == "linux":
        assert 0 < written_to(rows) < items.nbytes / 10
        rows[:] = 1
        assert written_to(rows) >= items.nbytes
    assert path.read_bytes() == written


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
    assert catalog.store.rows.flags.owndata
    np.testing.assert_array_equal(catalog.items(np.arange(8, 500)), items[8:])


def test_rows_at_any_offset(path: Path) -> None:
    """Mappings begin at pages; rows need not."""
    items = normal(112)  # with what lies before them on their page, more than seven pages
    path.write_bytes(b"x" * 5000 + items.tobytes() + b"end")
    with path.open("rb") as file:
        source = mapping.source_of(file, 5000)
    rows = mapping.private(source, items.shape, items.dtype)
    np.testing.assert_array_equal(rows[:112], items)
    assert rows.shape == (140, DIM)
    rows[:] = 1
    assert path.read_bytes()[5000:-3] == items.tobytes()
    assert mapping.private(None, items.shape, items.dtype) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may set memory aside")
def test_rows_may_be_more_than_memory(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole, which takes no room on disk either
    with path.open("rb") as file:
        source = mapping.source_of(file, 0)
    rows = mapping.private(source, (1 << 30, 256), np.dtype(np.float32))
    rows[[7, -1]] = 1
    assert rows[:, 0][[6, 7, 1 << 29, -1]].tolist() == [0, 1, 0, 1]


def test_what_the_system_refuses(path: Path) -> None:
    path.write_bytes(bytes(8192))
    with path.open("rb") as file, pytest.raises(OSError, match="cannot be mapped to be changed"):
        mapping._lay_over(mmap.mmap(-1, 8192), 8192, file, 1, mmap.MAP_PRIVATE)
