"""`rfkernels softmax`: what it writes, what its check says, and what it refuses."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from scipy.special import logsumexp
from scipy.stats import binom

import rfkernels as rfk
from rfkernels.cli import checking, columns, commands, softmax
from rfkernels.cli.checking import Checked, Items, check_rows, compare

ALL = ("--budget", 10_000)  # of 3,000 items: every sum is exact
NAMES = ["query", "log_normalizer", "standard_error", "dots"]


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def arrays(tmp_path: Path) -> tuple[Any, Any]:
    """Write items.npy and queries.npy."""
    rng = np.random.default_rng(0)
    items, queries = rng.standard_normal((3000, 6), np.float32), rng.standard_normal((45, 6), np.float32)
    np.save(tmp_path / "items.npy", items)
    np.save(tmp_path / "queries.npy", queries)
    return items, queries


def invoke(folder: Path, *more: Any) -> Result:
    files = [folder / "items.npy", folder / "queries.npy"]
    given = ["softmax", *(str(argument) for argument in (*files, *more))]
    return CliRunner().invoke(commands, given, prog_name="rfkernels")


def printed(folder: Path, *more: Any) -> dict[str, Any]:
    result = invoke(folder, "--json", *more)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def logits(items: Any, queries: Any) -> Any:
    return queries.astype(float) @ items.astype(float).T


# What is computed


def test_a_budget_of_all_items_gives_exact_sums(arrays: Any, tmp_path: Path) -> None:
    found = printed(tmp_path, *ALL, "--scale", 0.7)["columns"]
    assert list(found) == NAMES
    assert found["query"] == list(range(45))
    np.testing.assert_allclose(found["log_normalizer"], logsumexp(0.7 * logits(*arrays), axis=1), rtol=1e-5)
    assert set(found["standard_error"]) == {0.0}


@pytest.mark.parametrize("scale", [0.7, 1e5])
def test_queries_of_half_precision_are_scaled_in_that_of_the_items(scale: float, arrays: Any, tmp_path: Path) -> None:
    queries = arrays[1].astype(np.float16)
    np.save(tmp_path / "queries.npy", queries)
    found = printed(tmp_path, *ALL, "--scale", scale)["columns"]["log_normalizer"]
    np.testing.assert_allclose(found, logsumexp(scale * logits(arrays[0], queries), axis=1), rtol=1e-6)


@pytest.mark.parametrize("width", [("--bandwidth", 2.5), ("--scale", 0.16)])
def test_gaussian_sums(width: tuple[str, float], arrays: Any, tmp_path: Path) -> None:
    items, queries = (x.astype(float) for x in arrays)
    found = printed(tmp_path, *ALL, "--kernel", "gaussian", *width)["columns"]
    squares = np.square(queries[:, None] - items).sum(-1)
    np.testing.assert_allclose(found["log_normalizer"], logsumexp(-squares / (2 * 2.5**2), axis=1), rtol=1e-5)


def test_sums_of_other_kernels_are_the_library_s(arrays: Any, tmp_path: Path) -> None:
    items, queries = arrays
    catalog = rfk.Catalog(items, rng=2)
    for error in (None, 0.02):
        more = () if error is None else ("--error", error)
        found = printed(tmp_path, "--budget", 600, "--kernel", "relu", "--seed", 2, *more)["columns"]
        expected = catalog.kernel_sum(queries, "relu", budget=600, error=error, full=True, rng=2)
        for name, values in expected._asdict().items():
            np.testing.assert_allclose(found[name], values, rtol=1e-6)


def test_a_catalog_is_told_queries_of_all_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may repeat with a period: one kind of query after another."""
    settings = softmax.Settings(400, None, "softmax", 1.0, None, None, 512, 0, True)
    kinds = np.tile(np.eye(4, dtype=np.float32), (4_000, 1))
    asked = softmax._asked(kinds, settings)
    assert (asked.sum(0) > 400).all()
    assert len(asked) == 2_000
    assert softmax._asked(kinds, settings._replace(kernel="positive")) is not None
    assert softmax._asked(kinds, settings._replace(kernel="gaussian")) is None
    np.testing.assert_array_equal(softmax._asked(kinds[:1_999], settings), kinds[:1_999])


def test_what_it_returns_is_the_library_s(arrays: Any, tmp_path: Path) -> None:
    items, queries = arrays
    found, catalog = (
        printed(tmp_path, "--budget", 600, "--seed", 3, "--top", 5),
        rfk.Catalog(items, queries=queries, rng=3),
    )
    np.testing.assert_array_equal(found["columns"]["top"], catalog.top(queries, 5, budget=600).ids)
    expected = catalog.log_normalizer(queries, budget=600, full=True, rng=3)
    for name, values in expected._asdict().items():
        np.testing.assert_allclose(found["columns"][name], values, rtol=1e-6)
    assert 0 < max(found["columns"]["dots"]) <= 600


@pytest.mark.parametrize("batch", [7, 1024])
def test_a_query_that_is_not_finite_is_named_by_its_row(
    batch: int, arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "_ASKED", 9)  # every fifth of them
    queries = arrays[1].copy()
    queries[10, 2] = np.nan
    np.save(tmp_path / "queries.npy", queries)
    result = invoke(tmp_path, "--batch", batch)
    assert result.exit_code == 2
    assert "queries[10, 2] is nan" in " ".join(result.stderr.split())


def test_batches_are_put_together(arrays: Any, tmp_path: Path) -> None:
    whole, parts = (printed(tmp_path, *ALL, "--batch", size)["columns"] for size in (45, 7))
    np.testing.assert_allclose(parts["log_normalizer"], whole["log_normalizer"], rtol=1e-6)
    drawn = printed(tmp_path, "--budget", 600, "--batch", 1)["columns"]["log_normalizer"]
    assert len(drawn) == 45


def test_batches_are_drawn_independently(arrays: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "queries.npy", np.repeat(arrays[1][:1], 8, axis=0))
    found = printed(tmp_path, "--budget", 600, "--batch", 2)["columns"]["log_normalizer"]
    assert len(set(found)) >= 4


def test_top_items_and_their_probabilities(arrays: Any, tmp_path: Path) -> None:
    found = printed(tmp_path, *ALL, "--top", 3)["columns"]
    exact = logits(*arrays)
    order = np.argsort(-exact, axis=1)[:, :3]
    np.testing.assert_array_equal(found["top"], order)
    probability = np.exp(exact - logsumexp(exact, axis=1, keepdims=True))
    np.testing.assert_allclose(found["probability"], np.take_along_axis(probability, order, 1), rtol=1e-4)


def test_items_are_mapped(arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = rfk.Catalog

    def watched(items: Any, **options: Any) -> Any:
        seen.append(items)
        return real(items, **options)

    monkeypatch.setattr(rfk, "Catalog", watched)
    assert invoke(tmp_path).exit_code == 0
    assert isinstance(seen[0].base, np.memmap)


@pytest.mark.parametrize("name", ["out.csv", "out.json", "out.npz"])
def test_no_queries(name: str, arrays: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "queries.npy", arrays[1][:0])
    result = invoke(tmp_path, "-o", tmp_path / name, "--check", 5, "--top", 2)
    assert result.exit_code == 0, result.output
    assert (tmp_path / name).stat().st_size > 0
    assert "0 queries over 3,000 items" in result.stderr


# What is written


@pytest.fixture
def written(arrays: Any, tmp_path: Path) -> dict[str, Any]:
    for suffix in ("csv", "json", "npz"):
        result = invoke(tmp_path, "--budget", 600, "--top", 2, "-o", tmp_path / f"out.{suffix}")
        assert (result.exit_code, result.stdout) == (0, ""), result.output
        assert f"wrote {tmp_path}/out.{suffix}: query, log_normalizer, standard_error, dots, top" in result.stderr
    return printed(tmp_path, "--budget", 600, "--top", 2)["columns"]


def test_three_formats_hold_the_same(written: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads((tmp_path / "out.json").read_text()) == written
    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive:
        assert {name: archive[name].tolist() for name in archive} == written
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert list(rows[0]) == [*NAMES, "top_1", "top_2", "probability_1", "probability_2"]
    for name in NAMES:
        np.testing.assert_allclose([float(row[name]) for row in rows], written[name], rtol=1e-6)
    second = [float(row["probability_2"]) for row in rows]
    np.testing.assert_allclose(second, [pair[1] for pair in written["probability"]], rtol=1e-6)
    assert [int(row["top_1"]) for row in rows] == [pair[0] for pair in written["top"]]


def test_summary(arrays: Any, tmp_path: Path) -> None:
    found = printed(tmp_path, "-o", tmp_path / "out.npz", "--error", 0.5, "--budget", 700)
    assert "columns" not in found
    assert found["out"] == str(tmp_path / "out.npz")
    assert found["inputs"]["items"] == {
        "file": str(tmp_path / "items.npy"),
        "shape": [3000, 6],
        "dtype": "float32",
    }
    shown = {name: found[name] for name in ("kernel", "scale", "budget", "error", "top", "check", "batch", "seed")}
    expected = {"kernel": "softmax", "scale": 1.0, "budget": 700, "error": 0.5, "batch": 1024, "seed": 0}
    assert shown == {**expected, "top": None, "check": None}
    assert min(found["seconds"].values()) > 0


def test_without_a_file_the_summary_is_the_result(arrays: Any, tmp_path: Path) -> None:
    result = invoke(tmp_path, "--budget", 600)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "45 queries over 3,000 items" in result.stdout
    assert "standard_error: median 0.0" in result.stdout
    assert "standard_error: median 0, 0 to 0" in invoke(tmp_path, *ALL).stdout


def test_queries_that_miss_the_error_take_more(arrays: Any, tmp_path: Path) -> None:
    plain, better = (printed(tmp_path, "--budget", 600, *more)["columns"] for more in ((), ("--error", 0.01)))
    assert max(plain["standard_error"]) > 0.01
    assert np.mean(better["standard_error"]) < np.mean(plain["standard_error"])
    assert max(plain["dots"]) <= 600 < max(better["dots"])
    missed = sum(error > 0.01 for error in better["standard_error"])
    said = invoke(tmp_path, "--budget", 600, "--error", 0.01).stdout
    assert (f"{missed} queries came out above --error 0.01" in said) == (missed > 0)


def test_what_is_not_finite() -> None:
    made = {"a": np.array([1.5, -np.inf], np.float32), "b": np.array([[1, 2], [3, 4]])}
    assert columns.listed(made) == {"a": [1.5, None], "b": [[1, 2], [3, 4]]}
    file = io.BytesIO()
    columns._write_csv(file, made)
    assert file.getvalue().decode() == "a,b_1,b_2\n1.5,1,2\n-inf,3,4\n"


def test_progress_is_for_terminals(arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(softmax, "console", lambda stderr=False: Console(file=shown, force_terminal=True, width=80))
    assert invoke(tmp_path, "--batch", 10, "--check", 3).exit_code == 0
    assert "\x1b[" in shown.getvalue()
    assert "checking" in shown.getvalue()


# What --check says


def test_check_compares_with_exact_sums(arrays: Any, tmp_path: Path) -> None:
    found = printed(tmp_path, "--budget", 600, "--check", 45)
    estimate, error = (np.array(found["columns"][name]) for name in ("log_normalizer", "standard_error"))
    exact = logsumexp(logits(*arrays), axis=1)
    off = np.abs(np.expm1(estimate - exact))
    checked = found["check"]
    assert checked["queries"] == 45
    assert checked["median_error"] == pytest.approx(np.median(off), rel=1e-3)
    assert checked["high_error"] == pytest.approx(np.quantile(off, 0.95), rel=1e-3)
    assert abs(checked["covered"] - np.sum(np.abs(np.expm1(exact - estimate)) < 1.96 * error)) <= 1
    few = printed(tmp_path, "--check", 10, *ALL)["check"]
    assert (few["queries"], few["covered"]) == (10, 10)
    assert few["median_error"] < 1e-5


def test_check_of_gaussian_sums(arrays: Any, tmp_path: Path) -> None:
    found = printed(tmp_path, *ALL, "--kernel", "gaussian", "--bandwidth", 1.5, "--check", 9)["check"]
    assert found["high_error"] < 1e-4


def test_exact_sums_in_parts(arrays: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_ITEMS", 700)
    items, queries = arrays
    exact = logsumexp(0.5 * logits(items, queries), axis=1)
    chosen = np.array([7, 3, 40])
    given = {"log_normalizer": exact + 0.1 * (np.arange(45) == 3), "standard_error": np.full(45, 1e-12)}
    seen: list[tuple[str, int, int]] = []
    kernel = rfk.kernels.EXPONENTIAL
    found = check_rows(
        given, chosen, queries, Items(items.__getitem__, 3000), kernel, 0.5, lambda *done: seen.append(done)
    )
    assert (found.queries, found.covered) == (3, 2)
    assert found.median_error < 1e-9
    assert found.high_error == pytest.approx(0.9 * np.expm1(0.1), rel=1e-6)
    assert seen[-1] == ("checking", 2800, 3000)


def test_intervals_are_around_the_estimate() -> None:
    exact = np.zeros(4)
    estimate = np.log(
        [1.0, 1.2, 0.84, 2.0]
    )  # intervals of half-width 0.196 Ẑ: the third ends at 1.0046, the fourth at 1.61
    assert compare(estimate, np.full(4, 0.1), exact) == Checked(4, pytest.approx(0.18), pytest.approx(0.88), 3, False)
    assert compare(np.log([0.83]), np.array([0.1]), np.zeros(1)).covered == 0
    assert compare(np.array([30.0001]), np.zeros(1), np.array([30.0])).covered == 1  # rounding of exact sums


@pytest.mark.parametrize(("covered", "count"), [(88, 100), (89, 100), (90, 100), (0, 1), (0, 2), (7, 10)])
def test_too_few_is_what_chance_does_not_explain(covered: int, count: int) -> None:
    assert checking._at_most(covered, count) == pytest.approx(binom.cdf(covered, count, 0.95), rel=1e-9)
    errors = np.where(np.arange(count) < covered, 0.0, 1.0)
    found = compare(errors, np.zeros(count), np.zeros(count))
    assert (found.covered, found.too_few) == (covered, binom.cdf(covered, count, 0.95) < 0.01)


def test_an_estimate_that_vanished_is_far_off() -> None:
    found = compare(np.array([-np.inf, -900.0]), np.ones(2), np.zeros(2))
    assert (found.covered, found.median_error) == (0, 1.0)


def test_sums_of_nothing_that_are_estimated_so_are_right() -> None:
    nothing = np.full(4, -np.inf)
    assert compare(nothing, np.full(4, np.inf), nothing) == Checked(4, 0.0, 0.0, 4, False)
    missed = compare(np.zeros(4), np.zeros(4), nothing)
    assert (missed.covered, missed.median_error) == (0, np.inf)


def test_logs_too_large_for_their_exponentials_are_compared() -> None:
    exact = np.full(4, 1e12)
    far = exact + [0, 1e5, 1e6, 1e9]  # the last is more than rounding
    assert compare(far, np.zeros(4), exact) == Checked(4, np.inf, np.inf, 3, False)


@pytest.mark.parametrize(("by", "status"), [(KeyboardInterrupt(), 1), (SystemExit(143), 143)], ids=["key", "signal"])
def test_who_stops_it_halfway_is_told_what_is_lost(
    arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: BaseException, status: int
) -> None:
    given = softmax._batch

    def stopped(catalog: Any, queries: Any, settings: Any, seed: int) -> Any:
        if seed >> 32 == 20:
            raise by
        return given(catalog, queries, settings, seed)

    monkeypatch.setattr(softmax, "_batch", stopped)
    before = listing(tmp_path)
    result = invoke(tmp_path, "--batch", 10, "-o", tmp_path / "out.csv")
    assert result.exit_code == status
    assert "stopped after 20 of 45 queries: nothing is written until all are done" in result.stderr
    assert listing(tmp_path) == before


def test_it_says_when_intervals_do_not_hold(arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "too small" not in invoke(tmp_path, *ALL, "--check", 20).stdout
    monkeypatch.setattr(softmax, "check_rows", lambda *_: Checked(20, 0.3, 0.9, 12, True))
    said = " ".join(invoke(tmp_path, "--check", 20).stdout.split())
    assert "median 0.3, 95th percentile 0.9; 12 of 20 95 % intervals hold" in said
    assert "standard errors are too small here" in said


# What it refuses


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-o", "{folder}/out.txt"), "expected a name that ends in .csv, .json, .npz, got '.txt'"),
        (("-o", "{folder}/items.npy"), "expected a name that ends in"),
        (("-o", "{folder}/nowhere/out.csv"), "there is no directory"),
        (("--bandwidth", "2"), "--bandwidth is for --kernel gaussian, got --kernel softmax"),
        (("--scale", "3", "--kernel", "gaussian", "--bandwidth", "2"), "--bandwidth 2.0 and --scale 3.0 contradict"),
        (("--scale", "1", "--kernel", "gaussian", "--bandwidth", "2"), "--bandwidth 2.0 and --scale 1.0 contradict"),
        (("--force",), "--force is for --out, which is not given"),
        (("--top", "2", "--kernel", "gaussian"), "--top is for --kernel softmax, got --kernel gaussian"),
        (
            ("--kernel", "gauss"),
            "one of softmax, abs, cauchy, cosine, exp, gaussian, hyperbolic, laplacian, matern32, ",
        ),
        (("--kernel", "gauss"), "got 'gauss'"),
        (("--kernel", "elu+1"), "a map with a kernel that is not negative"),
        (("--kernel", "elu+1"), "got 'elu+1'"),
        (("--kernel", "erf"), "got 'erf'"),
        (("--budget", "20"), "--budget must be at least"),
        (("--budget", "0"), "'--budget'"),
        (("--error", "0"), "--error must be a number between 0 and 1, got 0.0"),
        (("--error", "1"), "--error must be a number between 0 and 1, got 1.0"),
        (("--top", "0"), "'--top'"),
        (("--scale", "1e39"), "--scale must keep queries finite in the items' dtype, float32, got 1e+39"),
        (("--scale", "nan"), "--scale must be a number from 1e-200 to 1e+200, got nan"),
        (("--error", "nan"), "--error must be a number between 0 and 1, got nan"),
        (("--scale", "1e201"), "--scale must be a number from 1e-200 to 1e+200, got 1e+201"),
        (("--kernel", "gaussian", "--bandwidth", "1e-200"), "--bandwidth must be a number from 1e-100 to 1e+100, got"),
        (("--kernel", "gaussian", "--bandwidth", "1e200"), "--bandwidth must be a number from 1e-100 to 1e+100, got"),
        (("--top", "3001"), "--top must be at most the number of items, 3000, got 3001"),
    ],
)
def test_options_that_cannot_be_used(options: tuple[str, ...], said: str, arrays: Any, tmp_path: Path) -> None:
    before = listing(tmp_path)
    result = invoke(tmp_path, *(option.format(folder=tmp_path) for option in options))
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert said in " ".join(result.stderr.split())
    assert listing(tmp_path) == before


@pytest.mark.parametrize("options", [("--error", "2"), ("--top", "3001")])
def test_options_are_refused_before_items_are_grouped(
    options: tuple[str, ...], arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rfk, "Catalog", lambda *_, **__: pytest.fail("items were grouped"))
    assert invoke(tmp_path, *options).exit_code == 2


@pytest.mark.parametrize("bandwidth", [1e-100, 1e100])
def test_bandwidths_at_the_ends(bandwidth: float, arrays: Any, tmp_path: Path) -> None:
    items, queries = (x.astype(float) for x in arrays)
    squares = np.square(queries[:, None] - items).sum(-1)
    found = printed(tmp_path, *ALL, "--kernel", "gaussian", "--bandwidth", bandwidth)["columns"]
    expected = logsumexp(-squares / 2 * bandwidth**-2, axis=1)
    np.testing.assert_allclose(found["log_normalizer"], expected, rtol=1e-5)


ITEMS = np.ones((30, 6), np.float32)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "items: {items}: no such file"),
        (b"", "items: {items} is empty"),
        (b"1,2,3\n", "items: {items} is not a .npy file"),
        (ITEMS.astype(int), "items must have one of the dtypes"),
        (ITEMS[0], "items must have shape (items, dim), got (6,)"),
        (np.ones(()), "items must have shape (items, dim), got ()"),
        (ITEMS[:, :5], "queries must have shape (queries, 5), got (45, 6)"),
        (np.where(np.arange(6) == 2, np.float32("nan"), ITEMS), "items must be finite, but items[0, 2] is nan"),
    ],
)
def test_files_that_cannot_be_used(
    content: Any, said: str, arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "_ASKED", 9)  # what is said is of all queries
    path = tmp_path / "items.npy"
    path.unlink()
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif content is not None:
        path.write_bytes(content)
    result = invoke(tmp_path, "-o", tmp_path / "out.csv")
    assert result.exit_code == 2, result.output
    message = " ".join(result.stderr.split())
    assert said.format(items=path) in message
    assert listing(tmp_path) <= {"items.npy", "queries.npy"}
    if isinstance(content, np.ndarray):
        assert f"items = {path}: " in message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize("name", ["items", "queries"])
def test_a_pipe_is_not_waited_for(name: str, arrays: Any, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.npy"
    path.unlink()
    os.mkfifo(path)
    files = [tmp_path / "items.npy", tmp_path / "queries.npy"]
    command = [sys.executable, "-m", "rfkernels", "softmax", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert f"{name}: {path} is not a regular file" in done.stderr


@pytest.mark.parametrize("package", ["sklearn", "safetensors"])
def test_a_package_that_is_missing(package: str, arrays: Any, tmp_path: Path) -> None:
    if package == "safetensors":
        rfk.Catalog(arrays[0]).save(tmp_path / "items.npy")
    code = f"import sys; sys.modules[{package!r}] = None; from rfkernels.__main__ import main; main()"
    command = [sys.executable, "-c", code, "softmax", tmp_path / "items.npy", tmp_path / "queries.npy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"Error: .*: pip install 'rfkernels\[catalog\]'\n", done.stderr)


def test_a_file_is_replaced_only_when_told_to(arrays: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("precious")
    result = invoke(tmp_path, "-o", out)
    assert (result.exit_code, out.read_text()) == (2, "precious")
    assert invoke(tmp_path, "-o", out, "--force").exit_code == 0
    assert out.read_text().startswith("query,")


@pytest.mark.parametrize("suffix", ["csv", "json", "npz"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_of_writing_leaves_nothing(
    failure: BaseException, suffix: str, arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: Any, _: Any) -> None:
        file.write(b"half")
        file.flush()
        assert any(name.startswith(".rfkernels-") for name in listing(tmp_path))
        raise failure

    before = listing(tmp_path)
    monkeypatch.setitem(columns._WRITERS, f".{suffix}", broken)
    result = invoke(tmp_path, "-o", tmp_path / f"out.{suffix}")
    assert result.exit_code == 1
    assert listing(tmp_path) == before


@pytest.mark.parametrize("kind", ["of two axes", "of one axis", "integers"])
def test_queries_that_cannot_be_used(kind: str, arrays: Any, tmp_path: Path) -> None:
    queries = {"of two axes": np.ones((2, 3, 6)), "of one axis": np.ones(6), "integers": np.ones((2, 6), int)}[kind]
    np.save(tmp_path / "queries.npy", queries)
    result = invoke(tmp_path, "-o", tmp_path / "out.csv")
    assert result.exit_code == 2, result.output
    assert f"queries = {tmp_path / 'queries.npy'}: " in " ".join(result.stderr.split())
    assert listing(tmp_path) == {"items.npy", "queries.npy"}


# A saved catalog


def test_a_saved_catalog_in_place_of_items(arrays: Any, tmp_path: Path) -> None:
    items, _ = arrays
    catalog = rfk.Catalog(items)
    catalog.remove(np.arange(0, 3000, 2))
    catalog.save(tmp_path / "items.npy")  # what a file is called does not matter
    found = printed(tmp_path, *ALL, "--check", 5, "--top", 2)
    exact = logits(*arrays)
    exact[:, ::2] = -np.inf
    np.testing.assert_allclose(found["columns"]["log_normalizer"], logsumexp(exact, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(found["columns"]["top"], np.argsort(-exact, axis=1)[:, :2])
    assert (found["items"], found["check"]["covered"]) == (1500, 5)
    assert found["inputs"]["items"] == {"file": str(tmp_path / "items.npy")}


def test_a_catalog_that_was_cut(arrays: Any, tmp_path: Path) -> None:
    path = tmp_path / "items.npy"
    rfk.Catalog(arrays[0]).save(path)
    path.write_bytes(path.read_bytes()[:-7])
    result = invoke(tmp_path, "-o", tmp_path / "out.csv")
    assert result.exit_code == 2, result.output
    assert "items" in result.stderr
    assert listing(tmp_path) == {"items.npy", "queries.npy"}


def test_a_catalog_with_one_wrong_bit(arrays: Any, tmp_path: Path) -> None:
    path = tmp_path / "items.npy"
    rfk.Catalog(arrays[0]).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(arrays[0][1234].tobytes()) + 1] ^= 1
    path.write_bytes(content)
    result = invoke(tmp_path, "-o", tmp_path / "out.csv")
    assert result.exit_code == 2, result.output
    message = " ".join(result.stderr.split())
    assert f"{path} is damaged: rows does not have the checksum that the header states" in message
    assert listing(tmp_path) == {"items.npy", "queries.npy"}
    assert invoke(tmp_path, "--no-verify").exit_code == 0


def test_an_empty_catalog(arrays: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "items.npy", arrays[0][:0])
    found = printed(tmp_path, "--check", 5)
    assert set(found["columns"]["log_normalizer"]) == {None}
    assert found["check"] is None
