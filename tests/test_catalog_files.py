"""Catalogs in files: what is saved comes back, and what is not as it was saved is refused."""

from __future__ import annotations

import errno
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from stores import same, some_store

import rfkernels as rfk
from rfkernels.catalog import changes, files, layout
from rfkernels.catalog.header import HEADER
from rfkernels.catalog.invariants import LAYOUT, MAPPED

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.catalog"


# What is saved comes back


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("items", [0, 1, 700])
def test_a_store_comes_back_to_the_last_bit(
    path: Path, items: int, dtype: str, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK", 1000)
    store = some_store(items, dtype=dtype)
    files.save(store, path)
    found = files.load(path, mapped=mapped)
    assert same(found, store)
    for name in LAYOUT:
        assert getattr(found, name).flags.writeable == (name not in MAPPED or not mapped), name
    assert type(found.end) is type(found.built) is int


def test_mapped_rows_are_those_of_the_file(path: Path) -> None:
    store = some_store()
    files.save(store, path)
    found = files.load(path, mapped=True)
    assert found.rows.ctypes.data % 4096 == 0
    row = int(store.start[0])
    with path.open("r+b") as file:
        file.seek(HEADER + row * store.rows.strides[0])
        file.write(np.full(8, 7, np.float32))
    assert (found.rows[row] == 7).all()
    with pytest.raises(ValueError, match="read-only"):
        found.rows[row] = 0


def test_the_library_of_the_format_reads_it_too(path: Path) -> None:
    store = some_store()
    files.save(store, path)
    found = safetensors.numpy.load_file(path)
    assert found.keys() == LAYOUT.keys()
    assert all(np.array_equal(found[name], getattr(store, name), equal_nan=name == "rows") for name in LAYOUT)


@pytest.mark.parametrize("order", ["strided", "columns first"])
def test_rows_need_not_be_contiguous(path: Path, order: str) -> None:
    store = some_store()
    apart = np.asfortranarray(store.rows) if order == "columns first" else np.repeat(store.rows, 2, axis=0)[::2]
    files.save(replace(store, rows=apart), path)
    assert same(files.load(path), store)


def test_what_is_added_comes_back(path: Path) -> None:
    files.save(some_store(), path)
    assert files.read_info(path) == {}
    info = {"kernel": "gaussian", "": "", "crc32": "ümläut \x00 \n 猫", "end": "17", "info info": "x" * 5000}
    files.save(some_store(), path, info)
    assert files.read_info(path) == info
    assert same(files.load(path), some_store())
    many = {f"{i:02x}": "" for i in range(760)}  # as long as it may be, in keys as short as can be
    files.save(some_store(), path, many)
    assert files.read_info(path) == many
    assert same(files.load(path), some_store())


@pytest.mark.parametrize(
    ("info", "error", "text"),
    [
        ({"kernel": 3}, TypeError, "info must hold strings, got 3"),
        ({3: "kernel"}, TypeError, "info must hold strings, got 3"),
        ({"kernel": "x" * 9000}, ValueError, "info takes 9014 bytes as JSON; expected at most 8192"),
        ({"kernel": "\ud800"}, ValueError, "surrogates not allowed"),
    ],
)
def test_what_cannot_be_added(path: Path, info: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        files.save(some_store(), path, info)
    assert not path.exists()


def test_a_mapped_store_is_saved_over_its_own_file(path: Path) -> None:
    files.save(some_store(seed=0), path)
    mapped = files.load(path, mapped=True)
    files.save(mapped, path)
    files.save(some_store(seed=1), path)
    assert same(mapped, some_store(seed=0))
    assert same(files.load(path), some_store(seed=1))


def test_a_file_that_is_replaced_while_it_is_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library opens the file by its name: its header may be that of another file than the one that is open."""
    files.save(some_store(seed=0), path)
    read_header, opened = files.read_header, []

    def late(*given: Any) -> Any:
        opened.append(given)
        if len(opened) == 1:
            files.save(some_store(seed=1), path)
        return read_header(*given)

    monkeypatch.setattr(files, "read_header", late)
    assert same(files.load(path, mapped=True), some_store(seed=1))
    assert len(opened) == 2


@pytest.mark.parametrize("change", ["remove", "repack", "is under way"])
@pytest.mark.parametrize("name", ["ids", "slots"])
def test_a_catalog_that_changes_while_it_is_saved_is_not_written(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: str, name: str
) -> None:
    store, blocks = some_store(), files._blocks
    files.save(store, path)
    before = path.read_bytes()
    store.whole = change != "is under way"

    def changing(array: Any) -> Any:
        yield from blocks(array)
        if array is getattr(store, name):
            if change == "repack":
                layout.repack(store, store.count)
            elif change == "remove":
                changes.remove(store, store.ids[store.ids >= 0][:1])
            store.whole = True

    monkeypatch.setattr(files, "_blocks", changing)
    with pytest.raises(RuntimeError, match="changed in another thread while it was saved"):
        files.save(store, path)
    assert (path.read_bytes(), os.listdir(path.parent)) == (before, [path.name])


def test_half_a_change_is_no_error_of_items(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = some_store()

    def changing(held: Any) -> None:
        changes.remove(store, store.ids[store.ids >= 0][:1])
        raise ValueError("ids[0] is -1")

    monkeypatch.setattr(files, "check_arrays", changing)
    with pytest.raises(RuntimeError, match="changed in another thread while it was saved"):
        files.save(store, path)


def test_no_second_copy_is_held(path: Path) -> None:
    store = some_store(100_000, 48)
    size, items = store.rows.nbytes, len(store.slots) // 2
    assert size > 18 * MIB
    others = (
        sum(getattr(store, name).nbytes for name in LAYOUT if name != "rows") + 24 * items
    )  # while they are checked

    def peak(call: Any) -> float:
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(lambda: files.save(store, path)) < others + 3 * MIB
    assert peak(lambda: files.load(path)) < size + others + 3 * MIB
    assert peak(lambda: files.load(path, mapped=True)) < others + 3 * MIB
    assert peak(lambda: files.load(path, mapped=True, verify=True)) < others + 3 * MIB


# Rows filled in the file itself


@pytest.mark.parametrize("spare", [0, 40])
def test_a_file_that_is_filled_in_place_is_the_one_that_save_writes(path: Path, tmp_path: Path, spare: int) -> None:
    store = some_store()
    files.save(store, path, {"a": "b"})
    made: list[Any] = []

    def fill(rows: Any) -> Any:
        assert rows.shape == (len(store.rows) + spare, 8)
        assert not rows.any()
        made.append(some_store(rows=rows))
        return made[0]

    files.create(tmp_path / "created", (len(store.rows) + spare, 8), "float32", fill, {"a": "b"})
    assert (tmp_path / "created").read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match="read-only"):
        made[0].rows[0] = 0


def test_filling_that_fails_leaves_the_old_file(path: Path) -> None:
    files.save(some_store(), path)
    before = path.read_bytes()
    room = len(some_store().rows)
    cases = [
        (lambda rows: some_store(), "fill must return a store whose rows are those it was given"),
        (lambda rows: some_store(rows=rows[1:]), "fill must return a store whose rows are those it was given"),
        (lambda rows: replace(some_store(), rows=rows.view(np.int32)), "rows is of dtype int32"),
        (lambda rows: replace(some_store(rows=rows), end=10**6), "end is 1000000; expected 0 to "),
        (lambda rows: some_store(rows=rows.fail), "has no attribute 'fail'"),
    ]
    for fill, text in cases:
        with pytest.raises((ValueError, AttributeError), match=text):
            files.create(path, (room + 1, 8), "float32", fill)
        assert os.listdir(path.parent) == [path.name]
        assert path.read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be asked for here")
def test_a_disk_without_room_is_noticed_before_anything_is_filled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def full(descriptor: int, first: int, size: int) -> None:
        asked.append(size - first)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        files.create(path, (1 << 10, 8), "float32", lambda rows: pytest.fail("was called"))
    assert asked == [HEADER + (1 << 15)]
    assert os.listdir(path.parent) == []


def test_what_cannot_be_created(path: Path) -> None:
    for shape, dtype in (
        ((3,), "float32"),
        ((3, 0), "float32"),
        ((-1, 3), "float64"),
        ((3, 3), "int32"),
        ((3, 3), "object"),
    ):
        with pytest.raises(ValueError, match="rows must be of dtype float32 or float64 and have a shape"):
            files.create(path, shape, dtype, lambda rows: pytest.fail("was called"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="info must hold strings"):
        files.create(path, (3, 3), "float32", lambda rows: pytest.fail("was called"), {"a": 1})  # type: ignore[dict-item]


# Catalogs


def estimates(catalog: Any) -> Any:
    return catalog.log_normalizer(
        np.random.default_rng(5).standard_normal((4, 6)).astype(np.float32), budget=300, backend="numpy"
    )


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
def test_a_catalog_that_changed_goes_on_where_it_was_saved(path: Path, mapped: bool) -> None:
    rng = np.random.default_rng(0)
    items = rng.standard_normal((3000, 6)).astype(np.float32)
    catalog = rfk.Catalog(items, cells=8)
    catalog.remove(np.arange(0, 900, 2))
    catalog.add(items[:300] + 1, ids=np.arange(5000, 5300))
    catalog.save(path)
    before = path.read_bytes()
    loaded = rfk.Catalog.load(path, mapped=mapped)
    assert len(loaded) == 2850
    assert np.array_equal(estimates(loaded), estimates(catalog))
    for one in (catalog, loaded):
        one.update(np.arange(5000, 5100), items[:100] - 1)
        one.remove(np.arange(901, 1500))
        one.add(items[901:1000], ids=np.arange(901, 1000))
    assert path.read_bytes() == before  # rows that are mapped are not written to
    assert np.array_equal(loaded.ids, catalog.ids)
    assert np.array_equal(loaded.items(loaded.ids), catalog.items(catalog.ids))
    for one in (loaded, catalog):
        one.save(path)
        held = layout.trimmed(one.store) if mapped and one is loaded else one.store
        assert same(rfk.Catalog.load(path, mapped=mapped).store, held)


def test_items_of_bfloat16_from_a_file_of_numpy(path: Path) -> None:
    """NumPy keeps no more of their dtype than its size; what is said of that works."""
    items = np.random.default_rng(0).normal(size=(70, 3)).astype(ml_dtypes.bfloat16)
    np.save(path.with_suffix(".npy"), items)
    mapped = np.load(path.with_suffix(".npy"), mmap_mode="r")
    with pytest.raises(TypeError, match=r"items .* got \|V2; of a file of bfloat16, x.view\(ml_dtypes.bfloat16\)"):
        rfk.Catalog(mapped)
    np.testing.assert_array_equal(
        rfk.Catalog(mapped.view(ml_dtypes.bfloat16)).items(range(70)), items.astype(np.float32)
    )


def test_a_catalog_is_built_in_its_file(path: Path) -> None:
    items = np.random.default_rng(0).standard_normal((3000, 6)).astype(np.float32)
    files.create(path, items.shape, "float32", lambda rows: rfk.catalog.store.build(items, cells=8, rows=rows))
    loaded, built = rfk.Catalog.load(path, mapped=True), rfk.Catalog(items, cells=8)
    assert same(loaded.store, built.store)
    assert np.array_equal(estimates(loaded), estimates(built))


def test_catalogs_without_items(path: Path) -> None:
    catalog = rfk.Catalog(np.ones((2, 3), np.float32))
    catalog.remove([0, 1])
    for mapped in (False, True):
        catalog.save(path)
        loaded = rfk.Catalog.load(path, mapped=mapped)
        assert len(loaded) == 0
        loaded.add(np.ones((1, 3), np.float32), ids=[7])
        assert loaded.ids.tolist() == [7]
