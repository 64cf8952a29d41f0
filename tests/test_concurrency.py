"""Many threads at once, processes after a fork, and processes that share compiled code on disk.

Everything with processes runs in a script of its own, so that pytest is never forked and a hang ends in a timeout.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest

import rfkernels as rfk
from rfkernels.backends.numba.jit import compiled_once

THREADS = 8
TIMEOUT = 120
LIBRARY = str(Path(rfk.__file__).parents[1])
needs_numba = pytest.mark.skipif(oracle.DEFAULT is not None, reason="backend 'numba' is not there yet")


@pytest.fixture(autouse=True)
def little_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    if oracle.DEFAULT is None:
        monkeypatch.setattr("rfkernels.backends.numba.threads.SERIAL_WORK", 0)


def together(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Run work(0), work(1), ... at once, one thread each; return what they return, raise what they raise."""
    barrier, results, errors = threading.Barrier(count), [None] * count, []

    def run(index: int) -> None:
        try:
            barrier.wait(30)
            results[index] = work(index)
        except BaseException as error:  # noqa: BLE001 - it is raised below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return results


def jobs() -> list[Callable[[], Any]]:
    """Calls that differ in map, shape, dtype and schedule."""
    made = []
    for i in range(THREADS):
        rng = np.random.default_rng(i)
        dtype = (np.float32, np.float64)[i % 2]
        q, k, v = (rng.standard_normal((3, 300 + 10 * i, n)).astype(dtype) for n in (8 + i, 8 + i, 5 + i))
        name = ("positive", "relu", "hyperbolic", "softplus")[i % 4]
        features = oracle.draw(name, 8 + i, 16)
        window = 20 if i % 4 in (0, 2) else None
        options = {"causal": i % 3 != 0, "window": window, "full": True, "backend": oracle.DEFAULT}
        made.append(
            lambda q=q, k=k, v=v, features=features, options=options: rfk.attention(q, k, v, features, **options)
        )
    return made


def assert_equal(one: Any, two: Any) -> None:
    for x, y in zip(one[::2], two[::2], strict=True):  # the output and the normalizer
        np.testing.assert_array_equal(x, y)


def test_eight_threads_give_what_one_gives() -> None:
    calls = jobs()
    alone = [call() for call in calls]
    for _ in range(3):
        for got, expected in zip(
            together(lambda i: [calls[(i + j) % THREADS]() for j in range(3)]), alone, strict=True
        ):
            assert_equal(got[0], expected)
    for i, got in enumerate(together(lambda i: [calls[(i + j) % THREADS]() for j in range(3)])):
        for j in range(3):
            assert_equal(got[j], alone[(i + j) % THREADS])


def test_eight_threads_share_features_and_a_state() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 500, n)) for n in (8, 8, 5))
    features = oracle.draw("positive", 8, 32)
    state = rfk.write_state(rfk.empty_state(features, 5, (2,), np.float64), k, v, features, backend=oracle.DEFAULT)
    expected = rfk.read_state(state, q, features, backend=oracle.DEFAULT)
    for got in together(lambda i: rfk.read_state(state, q, features, backend=oracle.DEFAULT)):
        np.testing.assert_array_equal(got, expected)


def test_a_refusal_in_one_thread_does_not_disturb_the_others() -> None:
    calls = jobs()
    alone = [call() for call in calls]
    bad = np.full((600, 8), np.nan)

    def work(index: int) -> Any:
        for _ in range(3):
            if index % 2:
                with pytest.raises(ValueError, match="must be finite"):
                    rfk.attention(bad, bad, bad, oracle.draw("positive", 8, 16), backend=oracle.DEFAULT)
            else:
                assert_equal(calls[index](), alone[index])

    together(work)


def test_maps_are_registered_and_used_by_eight_threads() -> None:
    """Each thread has maps of its own, compiled while the others compile theirs."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((40, n)) for n in (4, 4, 3))

    def work(index: int) -> Any:
        def activation(xp: Any, u: Any, a: Any) -> Any:
            return xp.maximum(u, 0) + 1 + index

        features = rfk.draw(rfk.FeatureMap((activation,), nonnegative=True), 4, 8, rng=0)
        return [rfk.attention(q, k, v, features, backend=backend) for backend in (oracle.DEFAULT, "numpy")]

    for got, expected in together(work):
        np.testing.assert_allclose(got, expected, rtol=1e-9)


# Processes


PRELUDE = """
import os, sys, threading, multiprocessing
import numpy as np
import rfkernels as rfk

BACKEND = {backend!r}
if BACKEND is None:
    from rfkernels.backends.numba import threads as handing
    handing.SERIAL_WORK = 0  # so little would not be handed to other threads

def pooled():
    return BACKEND is not None or bool(handing._pools)
features = rfk.draw("positive", 16, 32, rng=0)
rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((3, 700, n)).astype(np.float32) for n in (16, 16, 8))

def compute(index=0):
    return float(rfk.attention(q, k, v, features, backend=BACKEND).astype(np.float64).sum())
"""


def script(body: str, tmp_path: Path, **environment: str) -> str:
    """Run a script in a new interpreter, warnings being errors; return what it prints."""
    path = tmp_path / "script.py"
    path.write_text(PRELUDE.format(backend=oracle.DEFAULT) + textwrap.dedent(body))
    search = os.pathsep.join(filter(None, [LIBRARY, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", str(path)],
        env={**os.environ, "PYTHONPATH": search, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def test_after_a_fork(tmp_path: Path) -> None:
    """The child of a process whose pool is running computes the same, with threads of its own, twice removed too."""
    printed = script(
        """
        expected = compute()
        assert pooled()
        def child(depth):
            pid = os.fork()
            if pid:
                _, status = os.waitpid(pid, 0)
                return os.waitstatus_to_exitcode(status)
            code = 1
            try:
                results = [None] * 4
                threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, compute())) for i in range(4)]
                for t in threads: t.start()
                for t in threads: t.join()
                good = all(r == expected for r in results)
                code = 0 if good and (depth == 0 or child(depth - 1) == 0) else 1
            finally:
                os._exit(code)
        codes = [child(1) for _ in range(3)]
        assert codes == [0, 0, 0], codes
        assert compute() == expected
        print("good")
        """,
        tmp_path,
        RFKERNELS_NUM_THREADS="3",
    )
    assert printed == "good"


@needs_numba
def test_a_fork_while_other_threads_compute(tmp_path: Path) -> None:
    """Or compile: it waits for them, and they for no lock of the standard library that a fork takes."""
    printed = script(
        """
        expected, stop = compute(), threading.Event()
        assert pooled()
        def busy():
            while not stop.is_set():
                compute()
        threads = [threading.Thread(target=busy, daemon=True) for _ in range(2)]
        for t in threads: t.start()
        codes = []
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if compute() == expected else 1)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        stop.set()
        for t in threads: t.join()

        import logging, signal, time
        from llvmlite.binding import ffi
        from numba.core.compiler_lock import global_compiler_lock
        from rfkernels import _forks
        from rfkernels.backends.numba import jit
        for number, lock in enumerate((_forks.loading, jit._lock, global_compiler_lock, ffi.lib._lock)):
            begun = threading.Event()
            def compiling():
                with lock:
                    begun.set()
                    time.sleep(0.05)
                    logging.getLogger(f"compiling {number}")
            thread = threading.Thread(target=compiling)
            thread.start()
            begun.wait()
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                with lock:
                    os._exit(0)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            thread.join()
        assert codes == [0] * 9, codes

        # An interrupt of one fork that waits leaves another its locks.
        begun, end = threading.Event(), threading.Event()
        def compiling():
            with jit._lock:
                begun.set()
                end.wait()
        def forking():
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        def interrupt(*_):
            raise KeyboardInterrupt
        threads = [threading.Thread(target=target) for target in (compiling, forking)]
        sys.unraisablehook = lambda _: None
        signal.signal(signal.SIGALRM, interrupt)
        threads[0].start()
        begun.wait()
        threads[1].start()
        while _forks.loading.acquire(blocking=False):
            _forks.loading.release()
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        forking()
        end.set()
        for t in threads: t.join()
        assert _forks.loading.acquire(timeout=20)
        print("good")
        """,
        tmp_path,
        RFKERNELS_NUM_THREADS="2",
    )
    assert printed == "good"


@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.long)])
def test_multiprocessing(method: str, tmp_path: Path) -> None:
    printed = script(
        f"""
        if __name__ == "__main__":
            expected = compute()
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                results = pool.map_async(compute, range(4)).get(60)
            assert results == [expected] * 4, (results, expected)
            print("good")
        """,
        tmp_path,
    )
    assert printed == "good"


def test_threads_that_outlive_the_main_one(tmp_path: Path) -> None:
    printed = script(
        """
        import time
        expected = compute()
        assert pooled()
        def late():
            time.sleep(0.3)
            print("good" if compute() == expected else "bad")
        threading.Thread(target=late).start()
        """,
        tmp_path,
        RFKERNELS_NUM_THREADS="2",
    )
    assert printed == "good"


def test_exit_handlers(tmp_path: Path) -> None:
    printed = script(
        """
        import atexit
        expected = compute()
        assert pooled()
        atexit.register(lambda: print("good" if compute() == expected else "bad"))
        """,
        tmp_path,
        RFKERNELS_NUM_THREADS="2",
    )
    assert printed == "good"


# Compiled code on disk


CUSTOM = """
LEVEL = float(sys.argv[1]) if len(sys.argv) > 1 else float(os.environ["LEVEL"])

def activation(xp, u, a):
    return xp.maximum(u, 0) + LEVEL

mine = rfk.draw(rfk.FeatureMap((activation,), nonnegative=True), 16, 32, rng=0)
got = rfk.attention(q, k, v, mine, causal=True, backend=BACKEND)
expected = rfk.attention(q, k, v, mine, causal=True, backend="numpy")
assert np.allclose(got, expected, rtol=1e-3, atol=1e-4), np.abs(got - expected).max()
compute()
print(float(got.astype(np.float64).sum()))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A cache directory filled by a first process, in which eight threads call at once, and what they computed."""
    place = tmp_path_factory.mktemp("compiled")
    body = """
        barrier, results = threading.Barrier(8), {}
        def work(i):
            barrier.wait()
            results[i] = compute()
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert len(results) == 8 and len(set(results.values())) == 1, results
        assert results[0] == compute()
        print(compute())
        """
    printed = script(body, place, NUMBA_CACHE_DIR=str(place / "cache"))
    return place / "cache", printed


@pytest.fixture
def cache(compiled: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the filled cache, with its times."""
    return Path(shutil.copytree(compiled[0], tmp_path / "cache"))


def test_the_first_calls_of_a_process_come_from_eight_threads(compiled: tuple[Path, str], tmp_path: Path) -> None:
    assert script("print(compute())", tmp_path) == compiled[1]


@needs_numba
def test_a_second_process_finds_compiled_code_and_no_stale_map(cache: Path, tmp_path: Path) -> None:
    environment = {"NUMBA_CACHE_DIR": str(cache)}

    def files() -> dict[str, int]:
        return {str(p.relative_to(cache)): p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file()}

    first = script(CUSTOM, tmp_path, LEVEL="1.0", **environment)
    found = files()
    assert found
    assert script(CUSTOM, tmp_path, LEVEL="1.0", **environment) == first
    assert files() == found  # nothing new, nothing written again
    assert script(CUSTOM, tmp_path, LEVEL="3.0", **environment) != first
    changed = CUSTOM.replace("xp.maximum(u, 0)", "xp.square(u)")
    assert script(changed, tmp_path, LEVEL="1.0", **environment) != first
    assert files() == found


@needs_numba
def test_damaged_files_on_disk_are_compiled_anew(cache: Path, compiled: tuple[Path, str], tmp_path: Path) -> None:
    objects = list(cache.rglob("*.o"))
    assert objects
    for damage in (lambda code: b"", lambda code: code[:-9] + bytes([code[-9] ^ 1]) + code[-8:]):
        for path in objects:
            path.write_bytes(damage(path.read_bytes()))
        assert script("print(compute())", tmp_path, NUMBA_CACHE_DIR=str(cache)) == compiled[1]


@needs_numba
def test_functions_on_disk_are_whole_or_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each signature has a file of its own: an index of them could be written by two processes at once."""
    from rfkernels.backends.numba import objects
    from rfkernels.backends.numba.compiling import entry

    folder = tmp_path / "cache"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))

    def made() -> Any:
        @entry
        def twice(x: Any) -> Any:
            return x + x

        return twice

    def hits(function: Any) -> int:
        return sum(function.stats.cache_hits.values())

    first, second = made(), made()
    assert (first(1), second(1.5)) == (2, 3.0)
    kept = [path for path in folder.rglob("*") if path.is_file()]
    assert len(kept) == 2
    assert all(objects._NAMES.fullmatch(path.name) for path in kept)
    found = made()
    assert (found(1), found(1.5), hits(found)) == (2, 3.0, 2)
    for path in kept:
        path.write_bytes(path.read_bytes()[:-1])
    (folder / ".rfkernels-0123.tmp").write_bytes(b"left by a killed process")
    found, late = made(), made()
    assert (found(1), hits(found)) == (2, 0)
    assert {path for path in folder.rglob("*") if path.is_file()} == set(kept)
    shutil.rmtree(folder)
    folder.write_text("no directory any more")
    assert (late(1), hits(late)) == (2, 0)


@needs_numba
def test_code_in_a_folder_that_may_only_be_read_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where whoever installs a library calls it once for all who run it."""
    from rfkernels.backends.numba import objects

    package, user = tmp_path / "package", tmp_path / "user"
    monkeypatch.setattr(objects, "_folders", lambda: (package, user))
    objects.write("first", b"of the package")
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != package and may(path, mode))
    objects.write("second", b"of the user")
    assert (objects.read("first"), objects.read("second")) == (b"of the package", b"of the user")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*")) if path.is_file()] == [
        "package/first",
        "user/second",
    ]
    objects.write("first", b"again")
    assert objects.read("first") == b"of the package"
    (package / "first").write_bytes(b"damaged")
    assert objects.read("first") == b"again"
    assert objects.read("third") is None


@needs_numba
def test_code_that_nobody_reads_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of earlier versions, which would add up; what else lies there is not touched."""
    from rfkernels.backends.numba import objects

    monkeypatch.setattr(objects, "_folders", lambda: (tmp_path,))
    names = [f"rfkernels-{i:032x}.o" for i in range(2)] + [f"m.f_0123abcd-{i}.py311.{i:032x}.nbc" for i in range(2)]
    others = ["f.1.nbc", "rfkernels-1.o"]
    for name in (*names, *others):
        objects.write(name, b"code")
        os.utime(tmp_path / name, (0, 0))
    assert objects.read(names[0]) == objects.read(names[2]) == b"code"
    objects._remove_unread.cache_clear()
    objects.write(names[3], b"anew")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[0], *names[2:], *others])


def test_threads_that_ask_at_once_get_the_same_code() -> None:
    """Of code that each compiled, all but one would be freed, and be called all the same."""
    made: list[int] = []

    @compiled_once
    def compiled(machine: int, bits: int = 32) -> list[int]:
        made.append(bits)
        time.sleep(0.05)
        return [machine, bits]

    found = together(lambda i: compiled(1, bits=64))
    assert made == [64]
    assert all(x is found[0] for x in found)
    assert compiled(2) == [2, 32]


def test_all_code_is_compiled_once() -> None:
    """What is compiled for good is kept by what the test above is of."""
    files = sorted((Path(rfk.__file__).parent / "backends" / "numba").glob("*.py"))
    assert not [x for x in files if re.search(r"@cache\ndef \w+\([^)]*\) -> (Code|tuple\[Code)", x.read_text())]


@needs_numba
def test_first_calls_of_a_catalog_come_from_many_threads(tmp_path: Path) -> None:
    """In a process that has compiled nothing yet."""
    body = """
    rng = np.random.default_rng(0)
    items = rng.normal(size=(3000, 12)).astype(np.float32)
    queries, values = items[:8], items[:, :3]
    catalog = rfk.Catalog(items)
    calls = [
        lambda: catalog.expectation(queries, values, budget=600),
        lambda: catalog.kernel_sum(queries, "gaussian", budget=600),
        lambda: catalog.log_normalizer(queries, budget=600),
        lambda: catalog.top(queries, 4, budget=600).logits,
        lambda: catalog.sample(queries, 4).logits,
    ]
    found = [None] * 20
    barrier = threading.Barrier(len(found))

    def work(i):
        barrier.wait(30)
        found[i] = calls[i % len(calls)]()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(found))]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    print(all(np.array_equal(x, calls[i % len(calls)]()) for i, x in enumerate(found)))
    """
    assert script(body, tmp_path).strip() == "True"


@pytest.mark.long
@needs_numba
def test_a_disk_that_cannot_be_written_only_costs_time(compiled: tuple[Path, str], tmp_path: Path) -> None:
    """A cache directory that is a file, as root writes to any directory."""
    blocked = tmp_path / "blocked"
    blocked.write_text("not a directory")
    assert script("print(compute())", tmp_path, NUMBA_CACHE_DIR=str(blocked)) == compiled[1]
