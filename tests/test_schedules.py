"""What the Numba backend's schedules must withstand beyond conformance: other machines, interrupts, extremes."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rfkernels as rfk
from rfkernels.backends.numba import compiling, lowering, packing, passes
from rfkernels.backends.numba.jit import Machine

SCHEDULES: tuple[dict[str, Any], ...] = ({}, {"causal": True}, {"causal": True, "window": 9}, {"window": 9})


def inputs(*shape: int, dim: int = 5, width: int = 3, dtype: Any = np.float64) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((*shape, n)).astype(dtype) for n in (dim, dim, width)]


@pytest.mark.parametrize("target", [Machine(16, 8, 8), Machine(16, 4, 6)])
@pytest.mark.parametrize("count", [4, 8, 10, 34])
@pytest.mark.parametrize("options", SCHEDULES)
def test_other_register_tiles(
    monkeypatch: pytest.MonkeyPatch, count: int, options: dict[str, Any], target: Machine
) -> None:
    """As on 64-bit Arm in float64, 8 rows and 4 columns: more rows than columns; and two heights, as with AVX2."""
    monkeypatch.setattr(packing, "machine", lambda: target)
    q, k, v = inputs(2, 77)
    for name in ("hyperbolic", "positive"):
        features = rfk.draw(name, 5, count, rng=0)
        expected = rfk.attention(q, k, v, features, backend="numpy", **options)
        np.testing.assert_allclose(rfk.attention(q, k, v, features, **options), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", SCHEDULES)
@pytest.mark.parametrize("name", ["hyperbolic", "positive"])
@pytest.mark.parametrize("sampler", ["orthogonal", "hadamard"])
def test_few_positions_after_large_ones(sampler: str, name: str, options: dict[str, Any]) -> None:
    """Few keys are projected row by row, into memory where a thread keeps what it computed of other features."""
    rng = np.random.default_rng(0)
    features = rfk.draw(name, 32, 192, sampler=sampler, rng=0)
    assert (packing.hadamard(features, packing.machine().step(32)) is not None) == (sampler == "hadamard")
    large, relu = np.zeros((1, 80, 32), np.float32), rfk.draw("relu", 32, 128, rng=0)
    large[..., 0] = 3e38
    for length in (1, 2, 3, 8, 9, 16, 17, 31, 33, 65, 66, 73, 81):
        q, k, v = rng.standard_normal((3, 2, length, 32)).astype(np.float32)
        rfk.attention(large, k[:1], v[:1], relu)
        expected = rfk.attention(*(x.astype(np.float64) for x in (q, k, v)), features, backend="numpy", **options)
        got = rfk.attention(q, k, v, features, **options)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4, err_msg=f"{length} positions")


def test_addresses_are_those_of_first_elements(tmp_path: Path) -> None:
    x = np.arange(24.0).reshape(4, 6)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for array in (x, x[1:, 2:], x[::-1, ::-2], x.T, x[:0], mapped, np.lib.stride_tricks.as_strided(x, (3,), (0,))):
        assert packing.address(array) == array.ctypes.data


def test_few_keys_of_fitted_features() -> None:
    """Queries and keys have matrices of their own."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 90, 32)) / 2
    features = rfk.fit(q, k, 64, rng=0)
    assert features.key.matrix is not None
    for count in (1, 8, 40):
        some = q, k[:, :count], v[:, :count]
        expected = rfk.attention(*some, features, backend="numpy")
        np.testing.assert_allclose(rfk.attention(*some, features), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("heads", [2, 3, 8])
@pytest.mark.parametrize("length", [1, 100, 700])
def test_reading_begins_when_the_keys_of_a_head_are_written(
    heads: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one run over all tasks, each head's own, in which queries come after the keys of their head."""
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "2")
    monkeypatch.setattr("rfkernels.backends.numba.threads.SERIAL_WORK", 0)
    runs = []
    run = passes.threads.run
    monkeypatch.setattr(
        passes.threads, "run", lambda work, count, after=(): runs.append(list(after)) or run(work, count, after)
    )
    q, k, v = inputs(heads, length)
    features = rfk.draw("positive", 5, 8, rng=0)
    got = rfk.attention(q, k, v, features)
    np.testing.assert_allclose(got, rfk.attention(q, k, v, features, backend="numpy"), rtol=1e-9, atol=1e-11)
    spans = 2 if length > packing.TILE else 1
    idle = heads == 3 and length == 700
    expected = [None] * heads + [head for head in range(heads) for _ in range(spans)]
    assert runs[-1] == ([] if idle else expected)


@pytest.mark.parametrize("window", [200, 2**31 - 1, 2**31 + 5, 2**32 + 3, sys.maxsize, 10**20])
@pytest.mark.parametrize("causal", [False, True])
def test_any_window_wider_than_the_sequence_is_exact_attention(window: int, causal: bool) -> None:
    q, k, v = inputs(2, 150)
    features = rfk.draw("positive", 5, 16, rng=0)
    got = rfk.attention(q, k, v, features, causal=causal, window=window)
    np.testing.assert_allclose(
        got, rfk.exact_attention(q, k, v, causal=causal, backend="numpy"), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("threads", ["1", "2", "5"])
@pytest.mark.parametrize("options", SCHEDULES)
def test_chunks_of_a_sequence(monkeypatch: pytest.MonkeyPatch, threads: str, options: dict[str, Any]) -> None:
    """One head and several threads; a two-sided window whose buffers hold a small part of the sequence."""
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", threads)
    monkeypatch.setattr("rfkernels.backends.numba.threads.SERIAL_WORK", 0)
    monkeypatch.setattr(passes, "_PART_BYTES", 1 << 14)
    q, k, v = inputs(1, 1500)
    features = rfk.draw("positive", 5, 16, rng=0)
    expected = rfk.attention(q, k, v, features, backend="numpy", **options)
    np.testing.assert_allclose(rfk.attention(q, k, v, features, **options), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("name", "count"), [("hyperbolic", 34), ("positive", 192)])
@pytest.mark.parametrize("length", [1, 1500])
def test_a_state_holds_no_more_than_itself(monkeypatch: pytest.MonkeyPatch, name: str, count: int, length: int) -> None:
    """Not the states of all chunks, nor padding; 192 features and columns are whole vectors on any machine."""
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "5")
    monkeypatch.setattr("rfkernels.backends.numba.threads.SERIAL_WORK", 0)
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, length, 192)) / 14
    features = rfk.draw(name, 192, count, rng=0)
    for x in rfk.attention(q, k, v, features, causal=True, full=True).state:
        assert x.flags.c_contiguous
        assert x.base is None or x.base.nbytes <= 2 * x.nbytes


def test_where_many_heads_lie_is_found_again() -> None:
    """For hundreds of shapes it would take gigabytes."""
    found: list[int] = []

    @packing.kept_by_shape
    def find(heads: int) -> Any:
        found.append(heads)
        return np.zeros(heads)

    for heads in (2, 2, 1 << 16, 1 << 16):
        find(heads)
    assert found == [2, 1 << 16, 1 << 16]
    kept = [weakref.ref(find(heads)) for heads in range(1000)]
    assert sum(x() is not None for x in kept) < 500


def test_programs_that_differ_in_a_constant_only() -> None:
    """An instruction's number and a constant of that value must not be taken for each other."""
    q, k, v = inputs(40)
    maps = [
        rfk.FeatureMap((lambda xp, u, a: (lambda one, two: one + two)(xp.abs(u), xp.square(u)),)),
        rfk.FeatureMap((lambda xp, u, a: (lambda one, two: one + 1)(xp.abs(u), xp.square(u)),)),
        rfk.FeatureMap((lambda xp, u, a: xp.abs(u) + 0.0 * u,)),
        rfk.FeatureMap((lambda xp, u, a: xp.abs(u) + -0.0 * u,)),
    ]
    assert len({given.programs() for given in maps}) == 4
    for given in maps:
        features = rfk.draw(given, 5, 10, rng=0)
        expected = rfk.attention(q, k, v, features, backend="numpy")
        np.testing.assert_allclose(rfk.attention(q, k, v, features), expected, rtol=1e-10)


def test_an_activation_that_is_infinite_at_zero() -> None:
    """Padding columns, whose projections are zero, must not reach the sums."""
    q, k, v = inputs(40)
    features = rfk.draw(rfk.FeatureMap((lambda xp, u, a: 1 / xp.abs(u),)), 5, 10, rng=0)
    for options in ({}, {"causal": True}):
        expected = rfk.attention(q, k, v, features, backend="numpy", **options)
        np.testing.assert_allclose(rfk.attention(q, k, v, features, **options), expected, rtol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_joins_a_map_that_declares_no_exponent(causal: bool) -> None:
    plain = rfk.FeatureMap((lambda xp, u, a: xp.exp(u + a),), -0.5, nonnegative=True, kernel=rfk.kernels.EXPONENTIAL)
    q, k, v = inputs(90)
    features = rfk.draw(plain, 5, 24, rng=0)
    expected = rfk.attention(q, k, v, features, backend="numpy", causal=causal, window=4)
    np.testing.assert_allclose(
        rfk.attention(q, k, v, features, causal=causal, window=4), expected, rtol=1e-9, atol=1e-11
    )


def test_code_of_maps_that_are_gone_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant that changes at every step compiles a new map each time: only so many are kept."""
    references = []
    compile_module = lowering.compile_module

    def watched(*arguments: Any) -> Any:
        code = compile_module(*arguments)
        references.append(weakref.ref(code))
        return code

    assert 0 < lowering.lowered.cache_info().maxsize <= 64
    limit = 4
    monkeypatch.setattr(lowering, "compile_module", watched)
    monkeypatch.setattr(packing, "lowered", lru_cache(limit)(lowering.lowered.__wrapped__))
    constant = 1.0
    features = rfk.draw(rfk.FeatureMap((lambda xp, u, a: xp.abs(u) + constant,)), 5, 10, rng=0)
    q, k, v = inputs(4)
    for step in range(limit + 10):
        constant = 1.0 + step
        rfk.attention(q, k, v, features)
    gc.collect()
    assert len(references) == limit + 10
    assert sum(reference() is not None for reference in references) <= limit


INTERRUPTED = """
    import numpy as np, rfkernels as rfk, signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores interrupts
    q, k, v = np.random.default_rng(0).standard_normal((3, 16, 16384, 64), dtype=np.float32)
    features = rfk.draw("positive", 64, 256, rng=0)
    rfk.attention(q[:, :64], k[:, :64], v[:, :64], features)
    print("ready", flush=True)
    for _ in range(1000):
        arrays = [x.copy() for x in (q, k, v)]
        try:
            rfk.attention(*arrays, features, causal=True)
        except KeyboardInterrupt:
            del arrays
            out = rfk.attention(q[:, :64], k[:, :64], v[:, :64], features)
            assert np.isfinite(out).all()
            print("interrupted", flush=True)
            sys.exit(0)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_an_interrupt_waits_for_the_threads_that_read_the_arrays() -> None:
    """Threads know arrays by address: a caller that frees them after Ctrl-C must not pull them from under a thread."""
    environment = {**os.environ, "RFKERNELS_NUM_THREADS": "2"}
    command = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(INTERRUPTED)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        # Somewhere in a call; the copies between calls may be hit too, and the interrupt is then simply sent again.
        for _ in range(3):
            time.sleep(0.3)
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
        rest = child.stdout.read()
        assert child.wait(60) in (0, 1, -signal.SIGINT)
        assert "interrupted" in rest or child.returncode != 0


def test_compiled_code_goes_by_all_files_that_it_may_come_from(tmp_path: Path) -> None:
    """Numba's own cache goes by the caller's file, in which nothing changes here."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(compiling.__file__, package)
    (package / "callee.py").write_text("from package.compiling import jit\n\n\n@jit\ndef value():\n    return 1\n")
    (package / "caller.py").write_text(
        "from package.callee import value\nfrom package.compiling import entry\n\n\n@entry\ndef total():\n    return 10 + value()\n"
    )
    code = "from package.caller import total; print(total(), sum(total.stats.cache_hits.values()))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "compiled")}

    def run() -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    assert [run(), run()] == ["11 0", "11 1"]
    callee = package / "callee.py"
    callee.write_text(callee.read_text().replace("1", "2"))
    assert run() == "12 0"


def test_python_calls_entries_alone() -> None:
    """Others have no code for that; before and after they are compiled."""

    @compiling.entry
    def rounded(n: int) -> int:
        return compiling.up(n, 4)

    for _ in range(2):
        with pytest.raises(TypeError, match=r"up\(\) can only be called by compiled functions"):
            compiling.up(5, 4)
        assert rounded(5) == 8


def test_numbers_in_calls_are_not_compiled_in() -> None:
    """Nor numbers in tuples; else a function is compiled for every number that it is called with."""

    @compiling.jit
    def total(x: int, pair: tuple[int, int]) -> int:
        return x + pair[0] + pair[1]

    @compiling.entry
    def totals(n: int) -> int:
        return total(0, (1, n)) + total(1, (n, 0)) + total(n, (n, n))

    assert totals(5) == 6 + 6 + 15
    assert len(total.signatures) == 1  # type: ignore[attr-defined]


HELPER = """
up = compiling.entry(compiling.up.py_func)
assert up(5, 4) == 8
assert not up.stats.cache_hits
"""
ATTENTION = """
x = np.ones((4, 8), np.float32)
assert np.allclose(rfk.attention(x, x, x, rfk.draw("positive", 8, 16, rng=0)), 1)
"""


@pytest.mark.parametrize(
    "compiled", [HELPER, pytest.param(ATTENTION, marks=pytest.mark.long)], ids=["helper", "attention"]
)
def test_no_directory_to_keep_compiled_code_in(compiled: str) -> None:
    """Where nothing can be written, everything is compiled in every process."""
    code = """
        import numpy as np, rfkernels as rfk
        from rfkernels.backends.numba import compiling, objects
        assert objects.directory() is None
    """
    environment = {**os.environ, "NUMBA_CACHE_DIR": os.path.join(os.devnull, "missing")}
    command = [sys.executable, "-c", textwrap.dedent(code) + compiled]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_numba_told_not_to_compile_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    made = compiling.entry(lambda n: n)
    with pytest.raises(RuntimeError, match="which NUMBA_DISABLE_JIT forbids: unset it, or pass backend='numpy'"):
        made(1)
