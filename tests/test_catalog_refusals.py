"""Files that no catalog was saved to, or that were cut off, altered or forged, are refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from stores import same, some_store

from rfkernels.catalog import files
from rfkernels.catalog import header as headers
from rfkernels.catalog.header import HEADER
from rfkernels.catalog.invariants import LAYOUT
from rfkernels.catalog.records import Store

REFUSED = "is not a catalog|is damaged|is a catalog of version"
SAID = 3000
"""No header of these tests says more bytes than this; the rest of it is spaces."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "some.catalog"
    files.save(some_store(120, 9), path, {"kernel": "gaussian"})
    return path


def refuse(path: Path, text: str = REFUSED, **options: bool) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        files.load(path, **options)
    assert str(path) in str(caught.value)


# Damage


def test_any_bit(path: Path) -> None:
    whole, rng = path.read_bytes(), random.Random(0)
    store = some_store(120, 9)
    rows, codes = range(HEADER, HEADER + store.rows.nbytes), range(len(whole) - store.codes.nbytes, len(whole))
    places = [*range(8), *rng.sample(range(8, SAID), 150), *rng.sample(range(SAID, HEADER), 30)]
    places += [*rng.sample(rows, 60), *rng.sample(range(rows.stop, codes.start), 150), *rng.sample(codes, 30)]
    for place in places:
        altered = bytearray(whole)
        altered[place] ^= 1 << rng.randrange(8)
        path.write_bytes(altered)
        refuse(path)
        refuse(path, mapped=True, verify=True)
        if place in rows or place in codes:  # which nobody goes through
            assert not same(files.load(path, mapped=True), store)
        else:
            refuse(path, mapped=True)


def test_any_bit_of_what_only_the_checksum_of_the_header_covers(path: Path) -> None:
    whole = path.read_bytes()
    for text in (b"gaussian", b'"built": "120"', b"info kernel"):
        first = whole.index(text)
        for bit in range(8 * len(text)):
            altered = bytearray(whole)
            altered[first + bit // 8] ^= 1 << bit % 8
            path.write_bytes(altered)
            refuse(path)
            refuse(path, mapped=True)


def test_a_header_of_another_length(path: Path) -> None:
    whole = path.read_bytes()
    for length in (HEADER - 16, HEADER + 8, 1 << 15):
        path.write_bytes(
            (length - 8).to_bytes(8, "little") + whole[8:HEADER].strip().ljust(length - 8) + whole[HEADER:]
        )
        assert len(safetensors.numpy.load_file(path)) == len(LAYOUT)  # all is well with it otherwise
        refuse(path, "is damaged")
        refuse(path, "is damaged", mapped=True)


def test_any_length(path: Path) -> None:
    whole, rng = path.read_bytes(), random.Random(0)
    for length in (0, 1, 7, 8, 9, HEADER - 1, HEADER, len(whole) - 1, *rng.sample(range(len(whole)), 50)):
        path.write_bytes(whole[:length])
        refuse(path)
        refuse(path, mapped=True)
    for more in (b"\0", b" ", bytes(4096), whole):
        path.write_bytes(whole + more)
        refuse(path)
        refuse(path, mapped=True)


def test_a_file_that_is_cut_off_while_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_header = files.read_header

    def cut_off(file: Any, path: Path) -> Any:
        header = read_header(file, path)
        os.truncate(path, HEADER + 100)
        return header

    monkeypatch.setattr(files, "read_header", cut_off)
    refuse(path, "is damaged: it was cut off while it was read")


# Files of something else


class Bomb:
    def __reduce__(self) -> Any:
        return os._exit, (3,)


def archive() -> bytes:
    made = io.BytesIO()
    np.savez(made, rows=np.ones(3))
    return made.getvalue()


def saved(array: Any) -> bytes:
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


FOREIGN = {
    "empty": b"",
    "text": b"not at all a catalog, only some text\n" * 1000,
    "npy": saved(np.ones((40, 3), np.float32)),
    "npz": archive(),
    "pickle": pickle.dumps(Bomb()),
    "zeros": bytes(1 << 16),
    "safetensors": safetensors.numpy.save({"rows": np.ones((40, 3), np.float32)}),
    "safetensors of something": safetensors.numpy.save({}, {"format": "pt", "version": "1"}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_something_else(path: Path, name: str) -> None:
    path.write_bytes(FOREIGN[name])
    refuse(path, "is not a catalog")
    refuse(path, "is not a catalog", mapped=True)
    with pytest.raises(ValueError, match="is not a catalog"):
        files.read_info(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        refuse(tmp_path / name, "is not a regular file; expected one that Catalog.save wrote")
    with pytest.raises(FileNotFoundError, match="absent"):
        files.load(tmp_path / "absent")


def test_a_later_version_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "_VERSION", "5")
    files.save(some_store(), path)
    monkeypatch.undo()
    refuse(path, "is a catalog of version '5'; this version of rfkernels reads '4'")


def test_the_library_of_the_format_may_be_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs the package 'safetensors': pip install 'rfkernels\[catalog\]'"
    ):
        files.load(path)


# Forged headers


Said = dict[str, Any]


def forge(path: Path, change: Callable[[Said], Any]) -> None:
    """Change what a header says and state the right checksum of that."""
    whole = path.read_bytes()
    said = json.loads(whole[8:HEADER])
    change(said)
    metadata = said.get("__metadata__", {})
    metadata["crc32"] = headers._checksum(metadata)
    path.write_bytes(whole[:8] + json.dumps(said).encode().ljust(HEADER - 8) + whole[HEADER:])


def shape(name: str, *sizes: int) -> Callable[[Said], Any]:
    return lambda said: said[name].update(shape=sizes)


def dtype(name: str, code: str) -> Callable[[Said], Any]:
    return lambda said: said[name].update(dtype=code)


def offsets(name: str, *ends: int) -> Callable[[Said], Any]:
    return lambda said: said[name].update(data_offsets=ends)


def metadata(**items: Any) -> Callable[[Said], Any]:
    return lambda said: said["__metadata__"].update(items)


def swap(said: Said, name: str, other: str) -> None:
    said[name], said[other] = said[other], said[name]


FORGED: dict[str, tuple[Callable[[Said], Any], str]] = {
    "2^60 bytes": (shape("rows", 1 << 58, 1), "is not a catalog, or damaged"),
    "2^60 bytes and offsets": (
        lambda said: said["rows"].update(shape=[1 << 58, 1], data_offsets=[0, 1 << 60]),
        "damaged",
    ),
    "2^80 bytes": (shape("rows", 1 << 40, 1 << 40), "is not a catalog, or damaged"),
    "negative size": (shape("ids", -1), "is not a catalog, or damaged"),
    "fraction": (shape("ids", 1.5), "is not a catalog, or damaged"),  # type: ignore[arg-type]
    "shape that does not multiply": (shape("ids", 5), "is not a catalog, or damaged"),
    "overlap": (offsets("ids", 0, 480), "is not a catalog, or damaged"),
    "backwards": (offsets("ids", 960, 480), "is not a catalog, or damaged"),
    "offsets beyond the file": (offsets("slots", 1 << 50, 1 << 51), "is not a catalog, or damaged"),
    "integers for floats": (dtype("rows", "I32"), "rows is of dtype int32; expected float32 or float64"),
    "unsigned": (dtype("ids", "U32"), "ids is of dtype U32; expected int32"),
    "floats for integers": (dtype("ids", "F32"), "ids is of dtype float32; expected int32"),
    "unknown dtype": (dtype("ids", "X32"), "is not a catalog, or damaged"),
    "one axis more": (lambda said: said["ids"]["shape"].append(1), r"ids has shape \(\d+, 1\); expected \(room\)"),
    "other dim": (
        lambda said: said["centres"]["shape"].reverse() or said["centres"].update(shape=[27, 1]),
        r"centres has shape \(27, 1\); expected dim = 9",
    ),
    "arrays that change places": (
        lambda said: swap(said, "count", "capacity"),
        "is damaged: it holds rows, ids, start, capacity, count, .*; expected rows, ids, start, count, capacity",
    ),
    "an array less": (lambda said: said.pop("slots"), "is not a catalog, or damaged"),
    "an array more": (
        lambda said: said.update(more={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
        "is damaged",
    ),
    "no metadata": (
        lambda said: said.pop("__metadata__"),
        "is not a catalog: it is a safetensors file of something else",
    ),
    "no checksum": (lambda said: said["__metadata__"].pop("crc32 ids"), "ids does not have the checksum"),
    "other checksum": (metadata(**{"crc32 ids": "00000000"}), "ids does not have the checksum"),
    "number in metadata": (metadata(end=7), "is not a catalog, or damaged"),
    "negative end": (metadata(end="-1"), "end is '-1'; expected a number"),
    "long end": (metadata(end="9" * 5000), "end is '9+'; expected a number"),
    "no end": (lambda said: said["__metadata__"].pop("end"), "end is ''; expected a number"),
    "end beyond room": (metadata(end="99999999"), "end is 99999999; expected 0 to "),
    "huge built": (metadata(built="999999999999"), "built is 999999999999; expected 0 to 2147483647"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_headers(path: Path, name: str) -> None:
    change, text = FORGED[name]
    forge(path, change)
    refuse(path, text)
    refuse(path, text, mapped=True)


def test_forging_as_such_is_not_what_is_refused(path: Path) -> None:
    forge(path, metadata(built="77", **{"info kernel": "other"}))
    assert files.load(path).built == 77
    assert files.read_info(path) == {"kernel": "other"}


def raw(text: bytes, size: int | None = None) -> bytes:
    return (len(text) if size is None else size).to_bytes(8, "little") + text


RAW = {
    "header of 2^63 bytes": raw(b"{}", 1 << 63),
    "header of 2^60 bytes": raw(b"{}", 1 << 60),
    "header of 50 MB": raw(b"{}", 50_000_000),
    "header of 50 MB that is there": raw(b'{"a":"' + b"x" * 50_000_000 + b'"}'),
    "header beyond the file": raw(b"{}", HEADER - 8),
    "no header": raw(b""),
    "no object": raw(b"[1, 2]".ljust(HEADER - 8)),
    "nested": raw((b'{"a":' * 3000 + b"1" + b"}" * 3000).ljust(HEADER * 2)),
    "nested lists": raw(b'{"__metadata__":{"format":' + b"[" * 500_000 + b"]" * 500_000 + b"}}"),
    "no text": raw(b'{"\xff\xfe":1}'.ljust(HEADER - 8)),
    "NaN": raw(b'{"rows":{"dtype":"F32","shape":[NaN,1],"data_offsets":[0,4]}}'),
    "twice the same": raw(b'{"__metadata__":{},"__metadata__":{}}'.ljust(HEADER - 8)),
    "2^60 rows of nothing": raw(b'{"rows":{"dtype":"F32","shape":[1152921504606846976,0],"data_offsets":[0,0]}}'),
}

LIMITED = """
import resource, sys
from pathlib import Path
from rfkernels.catalog import files
import safetensors
import numpy
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 8_000_000, used + 8_000_000))
for path in sorted(Path(sys.argv[1]).iterdir()):
    for mapped in (False, True):
        try:
            files.load(path, mapped=mapped)
        except ValueError as error:
            print(path.name, error)
        else:
            raise SystemExit(f"{path} was loaded")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and limits of memory")
def test_no_header_makes_it_take_memory(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name, content in RAW.items():
        (folder / name).write_bytes(content)
    for name, (change, _) in FORGED.items():
        (folder / name).write_bytes(path.read_bytes())
        forge(folder / name, change)
    with (folder / "header of 2^34 bytes that is there").open("wb") as file:
        file.write(raw(b"{}", 1 << 34))
        file.truncate(1 << 35)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIMITED, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 * len(os.listdir(folder))


# Forged contents


def put(store: Store, name: str, index: Any, value: Any) -> Store:
    array = getattr(store, name).copy()
    array[index] = value
    return replace(store, **{name: array})


def two_ids(store: Store) -> Store:
    first, second = store.start[:2]
    return put(store, "ids", second, store.ids[first])


CONTENTS: dict[str, tuple[Callable[[Store], Store], str]] = {
    "NaN in an item": (
        lambda s: put(s, "rows", (s.start[1], 2), np.nan),
        r"rows\[\d+\] is not finite; expected a finite item of id",
    ),
    "infinite item": (lambda s: put(s, "rows", (s.start[1], 2), -np.inf), r"rows\[\d+\] is not finite"),
    "NaN in a centre": (
        lambda s: put(s, "centres", (1, 2), np.nan),
        r"centres\[1, 2\] is nan; expected a finite number",
    ),
    "infinite sum": (lambda s: put(s, "sums", (1, 2), np.inf), r"sums\[1, 2\] is inf; expected a finite number"),
    "NaN in an anchor": (lambda s: put(s, "anchors", (1, 2), np.nan), r"anchors\[1, 2\] is nan"),
    "scale of 0": (lambda s: put(s, "scales", 2, 0), r"scales\[2\] is 0.0; expected more than 0"),
    "NaN in shape": (lambda s: put(s, "shape", (1, 2), np.nan), r"shape\[1, 2\] is nan"),
    "negative square": (lambda s: put(s, "squares", 1, -1), r"squares\[1\] is -1.0; expected at least 0"),
    "negative edge": (lambda s: put(s, "edge", 1, -1), r"edge\[1\] is -1.0; expected at least 0"),
    "cell beyond": (lambda s: put(s, "cell", 1, 3), r"cell\[1\] is 3; expected 0 to 2"),
    "negative cell": (lambda s: put(s, "cell", 1, -1), r"cell\[1\] is -1; expected 0 to 2"),
    "empty group": (lambda s: put(s, "count", 1, 0), r"count\[1\] is 0; expected 1 to capacity"),
    "count beyond capacity": (
        lambda s: put(s, "count", 1, s.capacity[1] + 1),
        r"count\[1\] is \d+; expected 1 to capacity",
    ),
    "negative start": (lambda s: put(s, "start", 1, -1), r"start\[1\] is -1; expected 0 to end − capacity"),
    "group beyond room": (
        lambda s: put(s, "start", 1, len(s.rows)),
        r"start\[1\] is \d+; expected 0 to end − capacity",
    ),
    "start of 2^63 - 1": (lambda s: put(s, "start", 1, 2**63 - 1), r"start\[1\] is 9223372036854775807; expected"),
    "capacity beyond end": (
        lambda s: put(s, "capacity", s.start.argmax(), s.capacity[s.start.argmax()] + 1),
        r"start\[\d+\] is",
    ),
    "huge capacity": (lambda s: put(s, "capacity", 1, 2**31 - 1), r"start\[1\] is"),
    "groups that overlap": (
        lambda s: put(s, "capacity", s.start.argmin(), s.capacity[s.start.argmin()] + 1),
        r"start\[\d+\] is \d+; expected groups that have no row in common",
    ),
    "twice the same group": (
        lambda s: put(s, "start", 1, s.start[0]),
        r"start\[\d+\] is \d+; expected groups that have no row in common",
    ),
    "count less than ids": (
        lambda s: put(s, "count", s.count.argmax(), s.count.max() - 1),
        r"ids\[\d+\] is \d+; expected ids in the rows of groups",
    ),
    "no id": (lambda s: put(s, "ids", s.start[1], -1), r"ids\[\d+\] is -1; expected ids in the rows of groups"),
    "id of a free row": (
        lambda s: put(s, "ids", -1, 3),
        r"ids\[\d+\] is 3; expected ids in the rows of groups, −1 elsewhere",
    ),
    "free row that is -2": (lambda s: put(s, "ids", -1, -2), r"ids\[\d+\] is -2; expected"),
    "id beyond slots": (
        lambda s: put(s, "ids", s.start[1], 10**9),
        r"slots\[\d+\] is \d+; expected the row of each id",
    ),
    "twice the same id": (two_ids, r"slots\[\d+\] is \d+; expected the row of each id"),
    "slot beyond room": (lambda s: put(s, "slots", 4, len(s.rows)), r"slots\[4\] is \d+; expected −1 to"),
    "slot of -2": (lambda s: put(s, "slots", 4, -2), r"slots\[4\] is -2; expected −1 to"),
    "item without a slot": (
        lambda s: put(s, "slots", s.ids[s.start[1]], -1),
        "slots name 119 items; expected 120, those in groups",
    ),
    "slots without end": (lambda s: replace(s, slots=s.slots[: s.ids.max()]), "slots name 119 items; expected 120"),
    "end beyond room": (lambda s: replace(s, end=len(s.rows) + 1), "end is "),
    "end within a group": (lambda s: replace(s, end=s.end - 4), r"start\[\d+\] is \d+; expected 0 to end − capacity"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_forged_contents(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, text = CONTENTS[name]
    store, before = spoil(some_store(120, 9)), path.read_bytes()
    with pytest.raises(ValueError, match=text):
        files.save(store, path)
    assert path.read_bytes() == before
    monkeypatch.setattr(files, "check_arrays", lambda _: None)
    monkeypatch.setattr(files, "check_rows", lambda *_: None)
    files.save(store, path)
    monkeypatch.undo()
    refuse(path, f"is damaged: {text}")
    if name in ("NaN in an item", "infinite item"):
        refuse(path, text, mapped=True, verify=True)
    else:
        refuse(path, text, mapped=True)


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (lambda s: replace(s, rows=s.rows.tolist()), TypeError, "rows must be a numpy.ndarray, got list"),
        (
            lambda s: replace(s, rows=s.rows.astype(np.float16)),
            ValueError,
            "rows is of dtype float16; expected float32 or float64",
        ),
        (lambda s: replace(s, rows=s.rows.astype(">f4")), ValueError, "rows is of dtype >f4; expected"),
        (lambda s: replace(s, ids=s.ids.astype(np.int64)), ValueError, "ids is of dtype int64; expected int32"),
        (lambda s: replace(s, ids=s.ids[1:]), ValueError, r"ids has shape \(\d+,\); expected room = \d+ as in rows"),
        (lambda s: replace(s, rows=s.rows[:, :0], sums=s.sums[:, :0]), ValueError, "sums|dim"),
        (
            lambda s: replace(s, codes=s.codes[:, :4]),
            ValueError,
            r"codes has shape \(\d+, 4\); expected \(\d+, 128\) for so many rows",
        ),
        (lambda s: replace(s, end=3.5), TypeError, "float"),
    ],
)
def test_stores_that_are_not_saved(path: Path, spoil: Any, error: type[Exception], text: str) -> None:
    before = path.read_bytes()
    with pytest.raises(error, match=text):
        files.save(spoil(some_store(120, 9)), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
