"""Files out are complete or not there, whatever happens to the process that writes them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import killed_saves
import pytest

from rfkernels._files import whole_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_process_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", killed_saves.__file__, str(tmp_path), "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert "neither" not in seen
    assert seen["old"] + seen["new"] == 60
    assert seen["killed"] >= 30
    assert seen["leftovers"] >= 20  # most die while they write
    assert seen["piled up"] == 0  # each removes what the one before left
    assert seen["in the end"] == ["some.catalog"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["some"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs permissions")
def test_who_may_read_a_file_that_is_replaced_may_read_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(b"secret")
    for mode in (0o600, 0o440):
        path.chmod(mode)
        with whole_file(path) as file:  # what a killed process leaves can be opened, and so removed
            assert os.fstat(file.fileno()).st_mode & 0o777 == mode | 0o600  # before anything is in it
        assert path.stat().st_mode & 0o777 == mode


def test_a_disk_that_is_full_is_told_with_the_name_of_the_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, usual[1]))
    try:
        with pytest.raises(OSError, match=r"File too large.*some") as caught, whole_file(tmp_path / "some") as file:
            file.write(bytes(8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert caught.value.filename == str(tmp_path / "some")
    assert names(tmp_path) == []


def test_bytes_are_on_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[Any] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        here = os.fstat(descriptor)
        happened.append("folder" if os.path.samestat(here, tmp_path.stat()) else here.st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", lambda *given: happened.append("name") or replace(*given))
    with whole_file(tmp_path / "some") as file:
        file.write(b"12345")
    assert happened == [5, "name", "folder"]


def test_a_folder_that_may_be_written_to_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may, opened = os.access, os.open

    def refused(path: Any, *given: Any) -> int:
        if path == tmp_path:
            raise PermissionError
        return opened(path, *given)

    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK and may(path, mode))
    monkeypatch.setattr(os, "open", refused)
    with whole_file(tmp_path / "some") as file:
        file.write(b"whole")
    assert (tmp_path / "some").read_bytes() == b"whole"


def test_leftovers_go_and_files_being_written_stay(tmp_path: Path) -> None:
    (tmp_path / ".rfkernels-0123.tmp").write_bytes(b"left by a killed process")
    (tmp_path / ".rfkernels-notes").write_bytes(b"of someone")
    os.mkfifo(tmp_path / ".rfkernels-pipe.tmp")
    (tmp_path / ".rfkernels-link.tmp").symlink_to(tmp_path / "no such file")
    with whole_file(tmp_path / "a") as a, whole_file(tmp_path / "b") as b:
        a.write(b"a")
        b.write(b"b")
        assert len(list(tmp_path.glob(".rfkernels-????????????.tmp"))) == 2
    assert names(tmp_path) == [".rfkernels-link.tmp", ".rfkernels-notes", "a", "b"]
    assert (tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes() == b"ab"


def test_a_temporary_file_taken_for_a_leftover_before_it_was_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    flock, taken = fcntl.flock, []

    def late(file: Any, how: int) -> None:
        if not taken:
            taken.append(Path(file.name))
            taken[0].unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with whole_file(tmp_path / "some") as file:
        file.write(b"whole")
    assert taken
    assert (tmp_path / "some").read_bytes() == b"whole"
    assert names(tmp_path) == ["some"]


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "some")
    with whole_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "some").read_bytes() == b"new"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    cases = (
        ("pipe", FileExistsError),
        ("folder", IsADirectoryError),
        ("none/", IsADirectoryError),
        ("absent/some", FileNotFoundError),
    )
    for name, error in cases:
        with pytest.raises(error, match=name.removesuffix("/some")), whole_file(f"{tmp_path}/{name}"):
            pytest.fail("opened")
    assert names(tmp_path) == ["folder", "pipe"]


@pytest.mark.parametrize("method", ["open", "replace"])
def test_what_is_refused_is_told_with_the_name_of_the_file(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *names: Any) -> None:
        raise PermissionError(errno.EACCES, "refused", str(path), None, *map(str, names[: method == "replace"]))

    monkeypatch.setattr(Path, method, refused)
    with pytest.raises(PermissionError) as caught, whole_file(tmp_path / "some"):
        pass
    assert str(caught.value) == f"[Errno {errno.EACCES}] refused: {str(tmp_path / 'some')!r}"
    assert names(tmp_path) == []
