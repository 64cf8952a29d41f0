"""Changes of a catalog that are interrupted anywhere: it is as before or after, or refuses, and nobody waits for ever."""

from __future__ import annotations

import contextlib
import copy
import dis
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

import rfkernels as rfk
from rfkernels.catalog import building, changes, invariants, layout
from rfkernels.catalog.compiled import compiled

DIM = 5
OURS = str(Path(rfk.__file__).parent)
LOOKS = "CALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD"
"""What the interpreter does before it looks whether it was interrupted."""


@cache
def looks(code: CodeType) -> frozenset[int]:
    """Return after which instructions that is; of what a `with` returns, the error is seen in the midst of it."""
    pairs = pairwise(dis.get_instructions(code))
    return frozenset(x.offset for x, after in pairs if x.opname.startswith(LOOKS) and after.opname != "SWAP")


class Interrupt:
    """Interrupts the library, and `contextlib` in it, where it is for the n-th time that it could be."""

    def __init__(self, after: int) -> None:
        self.left, self._before = after, dict[FrameType, int]()

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(OURS) and file != contextlib.__file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            before, self._before[frame] = self._before.get(frame, -1), frame.f_lasti
            self.left -= before in looks(frame.f_code)
            if self.left == 0:
                sys.settrace(None)
                self._before.clear()
                raise KeyboardInterrupt
        return self


def interrupted(change: Any, after: int) -> Interrupt:
    """Make a change, with one interrupt; the error is given up only when it is seen whether locks are free."""
    found = Interrupt(after)
    sys.settrace(found)
    try:
        change()
    finally:
        sys.settrace(None)
    return found


def data(count: int, away: float = 0.0) -> Any:
    return (np.random.default_rng(count).normal(size=(count, DIM)) + away).astype(np.float32)


ITEMS = np.concatenate([data(900), data(901, 4.0)])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalogs") / "items"
    rfk.Catalog.create(path, ITEMS, cells=3)
    return path


def grown(catalog: rfk.Catalog) -> rfk.Catalog:
    """Return a catalog of which groups have moved."""
    for away in range(3):
        catalog.add(data(250 + away, away))
    return catalog


CHANGES: dict[str, Any] = {
    "add": lambda x: x.add(data(5)),
    "add many": lambda x: x.add(data(1_500)),
    "remove": lambda x: x.remove([3, 900, 9]),
    "remove many": lambda x: x.remove(x.ids[900:]),
    "update": lambda x: x.update([3, 900, 9], data(3)),
}


def held(catalog: rfk.Catalog) -> dict[int, bytes]:
    ids = catalog.ids
    return {int(i): item.tobytes() for i, item in zip(ids, catalog.items(ids), strict=True)}


def check(catalog: rfk.Catalog) -> None:
    """Require all that a store says of its arrays, sums and codes among it."""
    store = catalog.store
    invariants.check_arrays(store)
    other = replace(store, sums=store.sums.copy(), squares=store.squares.copy(), codes=store.codes.copy())
    every, place = np.arange(len(store.count)), (store.start, store.count, store.cell)
    compiled("catalog_store").sum_groups(store.rows, every, place, store.centres, other.sums, other.squares)
    np.testing.assert_allclose(store.sums, other.sums, 1e-9, 1e-9)
    np.testing.assert_allclose(store.squares, other.squares, 1e-9, 1e-9)
    building.encode(other, every)
    np.testing.assert_array_equal(store.codes, other.codes)


def gone_on(catalog: rfk.Catalog, change: Any, after: dict[int, bytes]) -> str:
    """Return what a catalog is after an interrupt, and see it changed once more."""
    try:
        own = held(catalog)
    except RuntimeError as error:
        assert "not whole" in str(error)
        return "refused"
    check(catalog)
    if own == after:
        return "after"
    change(catalog)
    assert held(catalog) == after
    check(catalog)
    return "before"


@pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")  # files that nobody has yet
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", ["in memory", "mapped", "grown"])
def test_an_interrupt_leaves_what_was_or_what_will_be(name: str, kind: str, path: Path) -> None:
    change, whole = CHANGES[name], rfk.Catalog.load(path)

    def made() -> rfk.Catalog:
        if kind == "in memory":
            return copy.copy(whole)
        mapped = rfk.Catalog.load(path, mapped=True)
        return grown(mapped) if kind == "grown" else mapped

    change(made())
    last, points = made(), 1 << 30
    points -= interrupted(lambda: change(last), points).left
    after = held(last)
    left = Counter[str]()
    for place in range(1, points, max(1, points // 40)):
        catalog = made()
        with pytest.raises(KeyboardInterrupt) as error:
            interrupted(lambda own=catalog: change(own), place)
        assert not catalog._lock.locked(), f"{error.traceback[-2]} has it"
        left[gone_on(catalog, change, after)] += 1
    assert left["before"] > 5


# Changes that take long are moved out of the way of interrupts


def interrupting(done: Any, after: int) -> Any:
    """Return a function that is interrupted once, when it was called so many times before."""
    calls = count()

    def broken(*given: Any) -> Any:
        found = done(*given)
        if next(calls) == after:
            raise KeyboardInterrupt
        return found

    return broken


@pytest.mark.parametrize("change", ["add", "update"])
@pytest.mark.parametrize("step", ["joined", "_reserve", "make_room"])
def test_until_items_move_nothing_is_changed(step: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = rfk.Catalog(ITEMS, cells=3)
    before, largest = held(catalog), len(catalog.store.slots)
    monkeypatch.setattr(changes, step, interrupting(getattr(changes, step), 0))
    with pytest.raises(KeyboardInterrupt):
        catalog.add(data(2_000)) if change == "add" else catalog.update(np.arange(900), data(900, 9.0))
    assert held(catalog) == before
    assert len(catalog.store.slots) == largest, "ids that no item got are in use"
    check(catalog)


def test_rows_that_are_being_laid_out_anew_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = rfk.Catalog(ITEMS, cells=3)
    monkeypatch.setattr(layout, "encode", interrupting(building.encode, 0))
    with pytest.raises(KeyboardInterrupt):
        catalog.remove(np.arange(1_500))
    np.testing.assert_array_equal(catalog.items(catalog.ids), ITEMS[1_500:])
    check(catalog)


def test_a_vacant_cell_that_nobody_joined_is_vacant(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = rfk.Catalog(ITEMS, cells=2)
    catalog.remove(np.arange(900))
    before = held(catalog)
    monkeypatch.setattr(changes, "make_room", interrupting(layout.make_room, 0))
    with pytest.raises(KeyboardInterrupt):
        catalog.add(data(1_500))
    assert held(catalog) == before
    check(catalog)


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_groups_behind_a_file_are_moved_one_by_one(moved: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = grown(rfk.Catalog.load(path, mapped=True))
    code, end, items = compiled("catalog_store"), catalog.store.end, held(catalog)
    monkeypatch.setattr(code, "shift", interrupting(code.shift, moved))
    gone = catalog.ids[900:]
    with pytest.raises(KeyboardInterrupt):
        catalog.remove(gone)
    monkeypatch.undo()
    left = {i: item for i, item in items.items() if i not in gone}
    assert held(catalog) == left
    check(catalog)
    catalog.remove(catalog.ids[-1:])
    check(catalog)
    assert catalog.store.end < end
