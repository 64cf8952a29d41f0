"""The benchmark: its clockwork, and the structure of what it reports. Nothing here asserts a speed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rfkernels as rfk
from rfkernels import benchmark
from rfkernels.benchmark import Line, children, line, meets, plan, processes, products, scaling, speed, suite, timing
from rfkernels.benchmark.timing import Timings, Unavailable, interleave, measure, timed

TINY = replace(
    plan.QUICK,
    heads=2,
    dim=8,
    count=16,
    length=64,
    slow_length=32,
    crossover=(16, 32),
    long=((1, 128),),
    single=64,
    positions=(20, 40),
    tokens=2,
    caches=(24,),
    window=8,
    products=(32,),
    rounds=2,
    slow_rounds=1,
    seconds=0.0,
    backend="numpy",
)
PEERS = {"torch", "performer_pytorch", "jax", "ml_dtypes"}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0.0)


class FakeClock:
    """A clock that only the work moves on."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls = 0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds
            self.calls += 1

        return call


@pytest.mark.parametrize(("cost", "seconds", "number"), [(0.25, 1.0, 4), (0.25, 0.9, 4), (3.0, 1.0, 1), (0.5, 0.0, 1)])
def test_a_sample_repeats_short_calls_and_is_per_call(cost: float, seconds: float, number: int) -> None:
    clock = FakeClock()
    sampler = timed(clock.work(cost), seconds, clock)
    assert clock.calls == (2 if seconds else 1)
    before = clock.calls
    assert sampler() == pytest.approx(cost)
    assert clock.calls - before == number


def test_rounds_sample_every_case_in_rotating_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0.5)
    order: list[str] = []
    pauses: list[float] = []

    def sampler(name: str) -> Callable[[], float]:
        def sample() -> float:
            order.append(name)
            return float(len(order))

        return sample

    samples = interleave({name: sampler(name) for name in "abc"}, 4, pauses.append)
    assert "".join(order) == "abcbcacababc"
    assert samples["b"] == [2.0, 4.0, 9.0, 11.0]
    assert pauses == [0.5] * 12


def test_ratios_are_medians_of_rounds_and_ignore_drift() -> None:
    drift = np.array([1.0, 7.0, 2.0, 40.0, 3.0])
    slow, fast = drift * [3.0, 3.0, 3.0, 3.0, 30.0], drift
    timings = Timings({"slow": list(slow), "fast": list(fast)})
    assert timings.ratio("slow", "fast") == pytest.approx(3.0)
    assert timings.median("fast") == 3.0


def test_a_case_that_fails_is_left_out_with_the_reason() -> None:
    def absent() -> Callable[[], Any]:
        raise ModuleNotFoundError("No module named 'peer'", name="peer")

    def breaks() -> Any:
        raise RuntimeError("first line\nsecond line")

    timings = measure({"ours": lambda: int, "absent": absent, "broken": lambda: breaks}, rounds=3, seconds=0)
    assert timings.missing == {"absent": "peer is not installed", "broken": "RuntimeError: first line"}
    assert list(timings.samples) == ["ours"]
    assert len(timings.samples["ours"]) == 3
    ratio = line.ratio_line(timings, line.Ratio("name", "absent", "ours", ">= 20"), 2)
    assert math.isnan(ratio.value)
    assert ratio._replace(value=0) == Line("name", 0, "x", ">= 20", "not measured: absent: peer is not installed")


def test_a_ratio_line_says_what_is_behind_it() -> None:
    timings = Timings({"peer": [0.6, 0.8, 0.64], "ours": [0.03, 0.032, 0.0312]})
    made = line.ratio_line(timings, line.Ratio("name", "peer", "ours", ">= 20", 0.5, "a note"), 2)
    assert made.value == pytest.approx(0.5 * 0.64 / 0.0312)
    assert made.detail == "peer 640 ms, ours 31.2 ms; rounds 10 to 12.5; 2 threads; a note"


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [
        (1.3, "<= 1.3", True),
        (1.31, "<= 1.3", False),
        (20.0, ">= 20", True),
        (0.25, "< 0.25", False),
        (1.0, "> 1", False),
        (math.inf, "<= 512", False),
        (math.nan, ">= 20", None),
        (3.0, "", None),
    ],
)
def test_a_line_knows_whether_it_meets_its_target(value: float, target: str, met: bool | None) -> None:
    assert meets(Line("name", value, "x", target, "")) is met


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.34, "12.3 s"), (0.03123, "31.2 ms"), (4.2e-5, "42 µs"), (1234.0, "1234 s")]
)
def test_times_are_written_with_their_unit(seconds: float, text: str) -> None:
    assert line.show_seconds(seconds) == text


@pytest.mark.parametrize(
    ("ratios", "first"),
    [
        ({256: 0.5, 512: 1.2, 1024: 2.0}, 512),
        ({256: 1.5, 512: 0.9, 1024: 2.0}, 1024),
        ({256: 1.5, 512: 2.0, 1024: 1.0}, math.inf),
        ({256: 1.1, 512: 1.2}, 256),
    ],
)
def test_the_crossover_is_the_length_from_which_on_ours_is_faster(ratios: dict[int, float], first: float) -> None:
    assert speed.first_faster(ratios) == first


def test_threads_are_set_for_the_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    call = plan.with_threads(1, lambda: seen.append(plan.os.environ.get(plan.THREADS_VARIABLE)))
    monkeypatch.setenv(plan.THREADS_VARIABLE, "5")
    assert plan.allowed_threads() == 5
    call()
    assert seen == ["1"]
    assert plan.os.environ[plan.THREADS_VARIABLE] == "5"
    monkeypatch.delenv(plan.THREADS_VARIABLE)
    assert plan.allowed_threads() >= 1
    call()
    assert plan.THREADS_VARIABLE not in plan.os.environ


@pytest.mark.parametrize("length", [5, plan._TILE, plan._TILE + 3])
def test_inputs_repeat_a_tile(length: int) -> None:
    arrays = plan.inputs(replace(TINY, dim=2), length, 1)
    for x in arrays:
        assert x.shape == (1, length, 2)
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x[:, plan._TILE :], x[:, : max(0, length - plan._TILE)])
    assert not np.array_equal(arrays[0], arrays[1])


def test_what_does_not_fit_into_memory_is_not_measured() -> None:
    plan.require_memory(TINY, 10, 1)
    if plan._free_memory() is None:
        pytest.skip("free memory is unknown on this system")
    with pytest.raises(Unavailable, match="GB of free memory"):
        plan.require_memory(TINY, 10**15, 8)


def test_a_product_worker_multiplies_and_a_crash_is_reported() -> None:
    worker = children.ProductWorker("", 1)
    try:
        assert worker.seconds(16) > 0
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(Unavailable, match="crashed"):
            worker.seconds(16)
    finally:
        worker.close()


def test_a_wrong_product_is_noticed() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 64, 64), np.float32)
    out = x @ y
    assert children._is_product(x, y, out)
    assert not children._is_product(x, y, out + 0.1)
    assert not children._is_product(x, y, out.T)


def test_rivals_that_fail_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def candidates(*_: Any) -> Iterator[tuple[str, int, Callable[[], Callable[[], float]]]]:
        def crash() -> Callable[[], float]:
            raise Unavailable("its process crashed")

        yield "fast", 10, lambda: lambda: 2e-6
        yield "crash", 10, crash
        yield "slow", 10, lambda: lambda: 4e-6

    monkeypatch.setattr(products, "_candidates", candidates)
    with products.rivals(TINY) as (found, left_out):
        assert {name: rival.operations for name, rival in found.items()} == {"fast 10": 2000.0, "slow 10": 2000.0}
    assert left_out == {"crash": "its process crashed"}
    monkeypatch.setattr(products, "timed", lambda *_: lambda: 8e-6)
    slow = {"performer-pytorch": lambda: 1e-3, "performer-pytorch, causal": lambda: 4e-3}
    slow |= {"rfkernels": lambda: 5e-4, "rfkernels, causal": lambda: 1e-3}
    monkeypatch.setattr(products, "prepare", lambda *_: (slow, {"jax.jit": "jax is not installed"}))
    made, *bounds = products.fraction(TINY)
    operations = 8 * TINY.length * TINY.heads * TINY.dim * TINY.count
    assert made.value == pytest.approx((operations / 8e-6) / (2000 / 2e-6))
    assert "fast 10 1, slow 10 0" in made.detail
    assert "without crash (its process crashed)" in made.detail
    alone = operations * 2e-6 / 2000
    short = alone * TINY.slow_length / TINY.length
    assert "rfkernels 2 in these rounds" in bounds[0].detail
    assert "rfkernels, causal 4 in these rounds" in bounds[2].detail
    assert [bound.value for bound in bounds] == pytest.approx([1e-3 / alone, np.nan, 4e-3 / short], nan_ok=True)


def allocate(count: int) -> Any:
    return np.ones(count, np.uint8)


needs_peaks = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot reset the peak of resident memory"
)


@needs_peaks
def test_a_footprint_is_the_rise_of_the_peak_without_the_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call() -> Any:
        allocate(64_000_000)
        return allocate(32_000_000)

    monkeypatch.setattr(children, "ours", lambda *_, **__: call)
    allocate(200_000_000)  # an earlier peak, above that of the call
    children.print_footprint(json.dumps({"plan": {}, "length": 10, "options": {}}))
    assert 28_000_000 < int(capsys.readouterr().out) < 36_000_000  # the temporary is gone before the output is there


def test_the_footprint_grows_with_what_a_call_needs() -> None:
    small, large = (children.footprint(TINY, length, {"causal": False}) for length in (256, 16_384))
    assert small < 4_000_000
    assert large > 16_384 * TINY.heads * TINY.count * 4  # the numpy backend holds all features at once


def test_the_first_call_in_a_new_process_is_timed_inside_it() -> None:
    case = {"heads": 2, "dim": 8, "count": 16, "causal": True, "backend": "numpy"}
    assert 0.01 < processes._first_call(json.dumps(case), {}) < 600


def test_processes_that_are_timed_find_bytecode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what pip installs does, though the environment forbids to write it; compiling takes longer than the rest."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    children.run_child("import rfkernels", changes=processes._bytecode(str(tmp_path)))
    assert any(tmp_path.rglob("rfkernels/attention.*.pyc"))


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(Unavailable, match="ValueError: no such thing"):
        children.run_child("raise ValueError('no such thing')")


def test_decoding_starts_from_the_same_state_every_time() -> None:
    for window in (None, TINY.window):
        decode = scaling.decoder(TINY, 20, window)
        first, second = decode(), decode()
        if window is None:
            np.testing.assert_array_equal(first.kv, second.kv)
        else:
            assert first.position == second.position == 20 + TINY.tokens


def test_a_quick_run_reports_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "QUICK", replace(TINY, memory=(64,), first_call=True))
    monkeypatch.setattr(processes, "run_child", lambda *_, **__: "0.5\n")
    monkeypatch.setattr(processes, "footprint", lambda *_: 1_000_000)
    monkeypatch.setenv(plan.THREADS_VARIABLE, "2")
    reported: list[Line] = []
    lines = benchmark.run(quick=True, report=reported.append)
    assert all(x is y for x, y in zip(lines, reported, strict=True))
    assert len({x.name for x in lines}) == len(lines) > 40
    assert not {x.name for x in lines} & set(suite.MEASUREMENTS), "a whole measurement failed"
    for made in lines:
        assert made.unit in {"x", "ms", "µs", "s", "MB", "positions"}
        assert made.detail
        if math.isnan(made.value):
            assert made.detail.startswith("not measured: ")
            assert any(f"{peer} is not installed" in made.detail for peer in PEERS) or "length above" in made.detail
        else:
            assert made.value >= 0 or made.name == "import rfkernels"  # a difference of two fakes here
            meets(made)
    targets = [x.target for x in lines if x.target]
    for target in (">= 20", ">= 4", ">= 0.70", "<= 1.3", ">= 200", "<= 512", "<= 1024", "<= 1", "<= 1.35", "<= 1.15"):
        assert target in targets
    for target in ("<= 32", ">= 1.7", ">= 1.35", "< 0.25", "< 1.5"):
        assert target in targets


def test_one_failure_does_not_cost_the_other_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Line("good", 1.0, "x", "", "detail")

    def fails(_: plan.Plan) -> Iterator[Line]:
        yield good
        raise MemoryError

    monkeypatch.setattr(suite, "MEASUREMENTS", {"bad": fails, "fine": lambda _: iter([good])})
    lines = benchmark.run()
    assert [x.name for x in lines] == ["good", "bad", "good"]
    assert lines[1].detail == "not measured: MemoryError"


def test_importing_the_benchmark_imports_no_peer() -> None:
    code = "import sys, rfkernels.benchmark; print({'torch', 'jax', 'numba', 'scipy', 'psutil'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_plain_mathematics_of_jax_is_ours() -> None:
    pytest.importorskip("jax")
    from rfkernels.benchmark import peers

    arrays = plan.inputs(TINY, 50)
    np.testing.assert_allclose(peers.jax_plain(TINY, arrays)(), plan.ours(TINY, arrays)(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_torch_computes_what_exact_attention_does(causal: bool) -> None:
    pytest.importorskip("torch")
    from rfkernels.benchmark import peers

    arrays = plan.inputs(TINY, 50)
    peer = np.asarray(peers.torch_exact(TINY, arrays, causal)())[0]
    np.testing.assert_allclose(peer, rfk.exact_attention(*arrays, causal=causal), rtol=1e-4, atol=1e-5)


def load_script() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "cpu.py"
    spec = importlib.util.spec_from_file_location("benchmarks_cpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_keeps_json_and_markdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script()
    made = [
        Line("one", 21.5, "x", ">= 20", "ours 1 ms"),
        Line("two", math.nan, "x", ">= 4", "not measured: jax is not installed"),
        Line("three", math.inf, "positions", "<= 512", "of 256"),
    ]
    monkeypatch.setattr(script, "run", lambda quick, report: made)
    out = tmp_path / "new" / "result.json"
    assert script.main(["--quick", "--out", str(out)]) == 0
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert [row["value"] for row in kept["lines"]] == [21.5, None, None]
    assert kept["machine"]["processor"]
    assert kept["machine"]["run"].startswith("quick")
    table = out.with_suffix(".md").read_text(encoding="utf-8")
    assert table.strip() == capsys.readouterr().out.strip()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines() if row.startswith("|")]
    assert rows[0] == ["what", "measured", "target", "met", "detail"]
    assert rows[2:] == [
        ["one", "21.5 x", ">= 20", "yes", "ours 1 ms"],
        ["two", "not measured", ">= 4", "", "not measured: jax is not installed"],
        ["three", "none", "<= 512", "no", "of 256"],
    ]
