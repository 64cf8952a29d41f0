"""The command line: what it prints, what it refuses, and that no failure leaves half a file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner, Result

import rfkernels as rfk
import rfkernels.benchmark
import rfkernels.cli
from rfkernels.backends import load
from rfkernels.benchmark import Line
from rfkernels.cli import commands, doctor, files, measure, pictures, run, words
from rfkernels.cli.output import BadInput, as_bytes, as_error, as_factor, as_time, print_json

COMMANDS = ("demo", "advise", "attend", "softmax", "bench", "doctor")


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(commands, [str(argument) for argument in arguments], prog_name="rfkernels")


def python(code: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with the arguments as those of the program."""
    command = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, Any]:
    """Write q.npy, k.npy, v.npy and mask.npy."""
    rng = np.random.default_rng(0)
    q, k, v = 0.5 * rng.standard_normal((3, 2, 90, 8), dtype=np.float32)
    made = {"q": q, "k": k, "v": v, "mask": np.arange(90) % 3 > 0}
    for name, array in made.items():
        np.save(tmp_path / f"{name}.npy", array)
    return made


def attend(folder: Path, *more: Any) -> Result:
    return invoke("attend", *(folder / f"{name}.npy" for name in "qkv"), "-o", folder / "out.npy", *more)


# The program as a whole.


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_has_an_example(command: tuple[str, ...], option: str) -> None:
    result = invoke(*command, option)
    assert result.exit_code == 0
    assert "Example: rfkernels" in result.stdout


def test_version_in_a_process_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-m", "rfkernels", "--version"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"rfkernels {rfk.__version__}\n", "")


@pytest.mark.parametrize("missing", ["click", "rich", "matplotlib"])
def test_without_its_packages_it_says_what_to_install(missing: str) -> None:
    done = python(f"import sys; sys.modules[{missing!r}] = None; from rfkernels.__main__ import main; main()", "doctor")
    line = "the command line needs its extra: pip install 'rfkernels[cli]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_the_library_does_not_import_the_command_line() -> None:
    code = "import sys, rfkernels; print([m for m in sys.modules if m.startswith(('click', 'rich', 'rfkernels.cli'))])"
    assert python(code).stdout == "[]\n"


@pytest.mark.parametrize("arguments", [("nothing",), ("attend",), ("attend", "--window", "0"), ("demo", "--seed", "x")])
def test_usage_errors(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


@pytest.mark.parametrize("traceback", [False, True])
def test_what_nobody_foresaw(
    traceback: bool, arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a wheel came off\nand rolled away")

    monkeypatch.setattr(rfk, "attention", fail)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    inputs = [str(tmp_path / f"{name}.npy") for name in "qkv"]
    options = ["--traceback"] if traceback else []
    monkeypatch.setattr(sys, "argv", ["rfkernels", *options, "attend", *inputs, "-o", str(tmp_path / "out.npy")])
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert "Error: unexpected failure: RuntimeError: a wheel came off\n" in error
    assert ("Traceback" in error) == traceback
    assert listing(tmp_path) == {"q.npy", "k.npy", "v.npy", "mask.npy"}


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (MemoryError("Unable to allocate 2 TiB"), "Error: there is not enough memory: Unable to allocate 2 TiB\n"),
        (MemoryError(), "Error: there is not enough memory\n"),
        (OSError(errno.ENOSPC, "it is full", "a.txt"), "Error: cannot write a.txt: it is full\n"),
    ],
)
def test_a_lack_of_room_is_said_plainly(
    failure: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: Any) -> None:
        raise failure

    monkeypatch.setattr(rfkernels.cli, "commands", fail)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        run()
    assert (caught.value.code, capsys.readouterr().err) == (1, said)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is full")
@pytest.mark.parametrize("command", ["attend", "softmax", "doctor"])
def test_standard_output_that_is_full(command: str, arrays: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "items.npy", arrays["k"][0])
    files = {
        "attend": [*(tmp_path / f"{name}.npy" for name in "qkv"), "-o", tmp_path / "out.npy"],
        "softmax": [tmp_path / "items.npy"] * 2,
        "doctor": [],
    }[command]
    arguments = [sys.executable, "-m", "rfkernels", command, *files, "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 1
    printed = done.stderr.removeprefix("\n")  # rich before version 15 ends the line of a bar that was never drawn
    assert printed.startswith("Error: cannot write the output: ")
    assert printed.count("\n") == 1


def test_closed_standard_output_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rfkernels.cli, "commands", lambda **_: pytest.fail("it went to work"))
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as caught:
        run()
    assert (caught.value.code, capsys.readouterr().err) == (
        1,
        "Error: standard output is closed; it may be /dev/null\n",
    )


def test_closed_standard_error_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["rfkernels", "demo", "--out", str(tmp_path / "nowhere")])
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as caught:
        run()
    sys.stderr.close()
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (as_error(0.004), "0.00"),
        (as_error(12.34), "12.3"),
        (as_error(12345.6), "12,346"),
        (as_time(0.00123), "1.2 ms"),
        (as_time(0.0123), "12 ms"),
        (as_time(0.123), "0.12 s"),
        (as_time(12.3), "12 s"),
        (as_bytes(0), "0 B"),
        (as_bytes(1536), "1.5 KiB"),
        (as_bytes(64 << 20), "64 MiB"),
        (as_bytes(1 << 50), "1048576 GiB"),
        (as_factor(1.234), "1.2"),
        (as_factor(1234.5), "1,234"),
    ],
)
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected


def test_json_names_files_whatever_their_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xc3\xa9 \xff.npy")
    print_json({"out": name})
    printed = capsys.readouterr().out
    assert printed.isascii()  # so that no locale changes it
    assert json.loads(printed) == {"out": name}


# attend


def test_attend_writes_what_the_library_returns(arrays: Any, tmp_path: Path) -> None:
    options = ["--map", "hyperbolic", "--features", 32, "--sampler", "iid", "--window", 5, "--scale", 0.3, "--seed", 7]
    result = attend(tmp_path, "--mask", tmp_path / "mask.npy", "--causal", "--json", *options)
    assert result.exit_code == 0, result.stderr
    features = rfk.draw("hyperbolic", 8, 32, sampler="iid", scale=0.3, rng=7)
    given = (arrays[name] for name in "qkv")
    expected = rfk.attention(*given, features, causal=True, window=5, mask=arrays["mask"])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    summary = json.loads(result.stdout)
    assert summary["inputs"]["mask"] == {"file": str(tmp_path / "mask.npy"), "shape": [90], "dtype": "bool"}
    assert summary["seconds"] > 0
    assert summary["compare"] is None
    shown = {key: summary[key] for key in ("out", "shape", "dtype", "map", "features", "sampler", "causal", "window")}
    assert shown == {
        "out": str(tmp_path / "out.npy"),
        "shape": [2, 90, 8],
        "dtype": "float32",
        "map": "hyperbolic",
        "features": 32,
        "sampler": "iid",
        "causal": True,
        "window": 5,
    }
    assert (summary["scale"], summary["seed"]) == (0.3, 7)


def test_attend_by_the_specification(arrays: Any, tmp_path: Path) -> None:
    result = attend(tmp_path, "--map", "relu", "--features", 32, "--window", 5, "--backend", "numpy", "--json")
    assert result.exit_code == 0, result.stderr
    features = rfk.draw("relu", 8, 32, rng=0)
    expected = rfk.attention(*(arrays[name] for name in "qkv"), features, window=5, backend="numpy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    assert json.loads(result.stdout)["backend"] == "numpy"


def test_attend_reports_on_stderr(arrays: Any, tmp_path: Path) -> None:
    result = attend(tmp_path, "--compare")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "wrote " in result.stderr
    assert "averaging the values" in result.stderr


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_compare_is_the_error_against_exact_attention(causal: bool, mask: bool, arrays: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", arrays["q"][:, :70])  # the last query sees the last key
    options = ["--causal"] * causal + ["--mask", tmp_path / "mask.npy"] * mask
    found = json.loads(attend(tmp_path, "--compare", "--json", "--features", 16, *options).stdout)["compare"]
    how = {"causal": causal, "mask": arrays["mask"] if mask else None}
    q, k, v = arrays["q"][:, :70], arrays["k"], arrays["v"]
    exact, average = (rfk.exact_attention(x, k, v, **how) for x in (q, np.zeros_like(q)))
    errors = [np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (np.load(tmp_path / "out.npy"), average)]
    assert found["rows"] == 140
    np.testing.assert_allclose([found["error"], found["average_error"]], errors, rtol=1e-4)


def test_compare_takes_a_sample_of_long_inputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "qkv":
        np.save(tmp_path / f"{name}.npy", 0.1 * rng.standard_normal((3, 1, 400, 4)))
    np.save(tmp_path / "k.npy", 0.1 * rng.standard_normal((400, 4)))  # keys shared by all heads
    found = json.loads(attend(tmp_path, "--compare", "--json", "--causal").stdout)["compare"]
    assert found["rows"] == 256
    assert 0 < found["error"] < found["average_error"]


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (1, 8)])
def test_attend_takes_short_inputs(shape: tuple[int, ...], tmp_path: Path) -> None:
    for name in "qkv":
        np.save(tmp_path / f"{name}.npy", np.ones(shape, np.float16))
    result = attend(tmp_path, "--compare", "--json")
    assert result.exit_code == 0, result.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.ones(shape, np.float16))
    assert "of no use" not in result.stderr, "what is exact is as good as it gets"


def test_attend_takes_big_endian_and_fortran_order(arrays: Any, tmp_path: Path) -> None:
    attend(tmp_path)
    expected = np.load(tmp_path / "out.npy")
    np.save(tmp_path / "k.npy", arrays["k"].astype(">f4"))
    np.save(tmp_path / "v.npy", np.asfortranarray(arrays["v"]))
    assert attend(tmp_path, "--force").exit_code == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-6)


class Broken(NamedTuple):
    """Something that cannot be used: the content of k.npy (None: no file), further options, and what is to be said."""

    content: Any
    options: tuple[str, ...]
    said: str


def npy(array: Any, folder: Path) -> bytes:
    path = folder / "any.npy"
    np.save(path, array, allow_pickle=True)
    content = path.read_bytes()
    path.unlink()
    return content


def archive(folder: Path) -> bytes:
    path = folder / "any.npz"
    np.savez(path, k=np.ones(3))
    content = path.read_bytes()
    path.unlink()
    return content


KEYS = np.ones((2, 90, 8), np.float32)
BROKEN = {
    "missing": Broken(None, (), "k: {k}: no such file"),
    "empty": Broken(b"", (), "k: {k} is empty"),
    "text": Broken(b"1,2,3\n", (), "k: {k} is not a .npy file"),
    "pickle": Broken(pickle.dumps({"k": 1}), (), "k: {k} is a pickle"),
    "objects": Broken(np.array([1, None], object), (), "k: {k} holds Python objects"),
    "archive": Broken(
        archive, (), "k: {k} is an archive (.npz), of which the array meant has to be saved alone; expected a .npy"
    ),
    "cut header": Broken(lambda folder: npy(KEYS, folder)[:40], (), "k: {k} is damaged"),
    "cut data": Broken(lambda folder: npy(KEYS, folder)[:-5], (), "k: {k} is truncated"),
    "no data": Broken(lambda folder: npy(KEYS, folder)[:128], (), "k: {k} is truncated"),
    "mangled header": Broken(lambda folder: npy(KEYS, folder).replace(b"shape", b"sh\0pe"), (), "k: {k} is damaged"),
    "integers": Broken(KEYS.astype(int), (), "k must have one of the dtypes"),
    "complex": Broken(KEYS.astype(complex), (), "k must have one of the dtypes"),
    "structured": Broken(np.zeros((2, 90, 8), "f4,f4"), (), "k must have one of the dtypes"),
    "vector": Broken(KEYS[0, 0], (), "k must have shape"),
    "width": Broken(KEYS[..., :5], (), "q and k must agree in dim"),
    "length": Broken(KEYS[:, :80], (), "k and v must agree in length"),
    "swapped axes": Broken(KEYS.swapaxes(0, 1), (), "were length and heads swapped?"),
    "nan": Broken(np.where(np.arange(8) == 3, np.float32("nan"), KEYS), (), "k must be finite, but k[0, 0, 3] is nan"),
    "mask of numbers": Broken(KEYS, ("--mask", "{k}"), "mask must be of dtype bool"),
    "no mask": Broken(KEYS, ("--mask", "{k}.txt"), "mask: {k}.txt: no such file"),
    "map": Broken(KEYS, ("--map", "posit"), "unknown feature map 'posit'; known are: abs"),
    "sampler": Broken(KEYS, ("--sampler", "sobel"), "unknown sampler 'sobel'; known are: antithetic"),
    "odd": Broken(KEYS, ("--map", "hyperbolic", "--features", "3"), "--map hyperbolic --features 3"),
    "features": Broken(KEYS, ("--features", "0"), "'--features'"),
    "scale": Broken(KEYS, ("--scale", "-1"), "--scale must be a positive finite number"),
    "memory": Broken(KEYS, ("--features", "1" + 15 * "0"), "--map positive --features 1000000000000000 "),
    "backend": Broken(KEYS, ("--map", "relu", "--window", "4"), "; pass --backend numpy"),
    "window": Broken(KEYS, ("--map", "elu+1", "--window", "4"), "window="),
}


@pytest.mark.parametrize("case", BROKEN)
def test_attend_refuses_what_it_cannot_use(case: str, arrays: Any, tmp_path: Path) -> None:
    broken, path = BROKEN[case], tmp_path / "k.npy"
    if broken.content is None:
        path.unlink()
    elif isinstance(broken.content, np.ndarray):
        np.save(path, broken.content, allow_pickle=True)
    else:
        path.write_bytes(broken.content(tmp_path) if callable(broken.content) else broken.content)
    before = listing(tmp_path)
    result = attend(tmp_path, *(option.format(k=path) for option in broken.options))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    message = " ".join(result.stderr.split())
    assert broken.said.format(k=path) in message
    assert "Traceback" not in message
    assert listing(tmp_path) == before
    if "must" in broken.said and not broken.options:
        assert f"k = {path}: " in message


def test_damaged_headers_never_escape(arrays: Any, tmp_path: Path) -> None:
    good, rng = bytearray(npy(arrays["k"], tmp_path)), np.random.default_rng(0)
    path = tmp_path / "k.npy"
    for _ in range(300):
        damaged = good.copy()
        damaged[rng.integers(6, 100)] = rng.choice(list(b"(){}[],':0129 <>|fOV\n\\-e\x00\xff"))
        path.write_bytes(damaged)
        with contextlib.suppress(BadInput):
            files.load_array("k", path)


def test_a_directory_is_no_input(arrays: Any, tmp_path: Path) -> None:
    (tmp_path / "k.npy").unlink()
    (tmp_path / "k.npy").mkdir()
    result = attend(tmp_path)
    assert result.exit_code == 2
    assert "is not a regular file" in result.stderr


def test_what_may_not_be_looked_at(arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, **_: Any) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", forbidden)
    for call, said in (
        (lambda: files.load_array("k", tmp_path / "k.npy"), "k: {}/k.npy cannot be read: Permission denied"),
        (lambda: files.check_target(tmp_path / "x.npy", True), "--out {}/x.npy cannot be written: Permission denied"),
    ):
        with pytest.raises(BadInput, match=re.escape(said.format(tmp_path))):
            call()


def test_attend_replaces_a_file_only_when_told_to(arrays: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    out.write_text("precious")
    result = attend(tmp_path)
    assert (result.exit_code, out.read_text()) == (2, "precious")
    assert "--force" in result.stderr
    assert attend(tmp_path, "--force").exit_code == 0
    assert np.load(out).shape == (2, 90, 8)


@pytest.mark.parametrize(
    "target", [".", "nowhere/out.npy", os.devnull, "-", "out.txt", "folder.npy", "null.npy", "lost.npy"]
)
def test_attend_refuses_impossible_targets_at_once(
    target: str, arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rfk, "attention", lambda *_, **__: pytest.fail("it went to work"))
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "null.npy").symlink_to(os.devnull)
    (tmp_path / "lost.npy").symlink_to(tmp_path / "nowhere" / "out.npy")
    files = (tmp_path / f"{name}.npy" for name in "qkv")
    result = invoke("attend", *files, "--force", "--out", tmp_path / target)
    assert result.exit_code == 2
    assert "--out" in result.stderr


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("failure", [FULL_DISK, KeyboardInterrupt(), MemoryError()])
def test_a_failure_in_the_middle_of_writing_leaves_nothing(
    failure: BaseException, arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_save(file: Any, *_: Any, **__: Any) -> None:
        file.write(b"\x93NUMPY and then")
        file.flush()
        assert any(name.startswith(".rfkernels-") for name in listing(tmp_path))
        raise failure

    (tmp_path / "out.npy").write_text("precious")
    before = listing(tmp_path)
    monkeypatch.setattr(np, "save", broken_save)
    result = attend(tmp_path, "--force")
    assert result.exit_code == 1
    assert listing(tmp_path) == before
    assert (tmp_path / "out.npy").read_text() == "precious"
    if isinstance(failure, OSError):
        assert f"cannot write {tmp_path / 'out.npy'}: No space left on device" in " ".join(result.stderr.split())


def test_a_file_that_may_not_grow_leaves_nothing(arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    limits, save = resource.getrlimit(resource.RLIMIT_FSIZE), np.save

    def limited_save(*arguments: Any, **options: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            save(*arguments, **options)
            arguments[0].flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    before = listing(tmp_path)
    monkeypatch.setattr(np, "save", limited_save)
    result = attend(tmp_path)
    assert result.exit_code == 1
    assert "cannot write" in result.stderr
    assert listing(tmp_path) == before


def test_a_terminated_process_leaves_nothing(arrays: Any, tmp_path: Path) -> None:
    code = """
import os, signal, sys
import numpy as np
from rfkernels.__main__ import main

def save(file, *_, **__):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGTERM)

np.save = save
main()
"""
    before = listing(tmp_path)
    inputs = [tmp_path / f"{name}.npy" for name in "qkv"]
    done = python(code, "attend", *inputs, "-o", tmp_path / "out.npy")
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, ""), done.stderr
    assert listing(tmp_path) == before


# demo


class Demonstration(NamedTuple):
    result: Result
    report: measure.Report
    folder: Path


@pytest.fixture(scope="module")
def quick_demo(tmp_path_factory: pytest.TempPathFactory) -> Demonstration:
    folder, reports, measured = tmp_path_factory.mktemp("demo"), [], measure.measure

    def remember(*arguments: Any) -> measure.Report:
        reports.append(measured(*arguments))
        return reports[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "measure", remember)
        result = invoke("demo", "--quick", "--json", "--out", folder)
    assert result.exit_code == 0, result.output
    return Demonstration(result, reports[0], folder)


def test_demo_writes_its_picture(quick_demo: Demonstration) -> None:
    assert listing(quick_demo.folder) == {"rfkernels-demo.png"}
    content = (quick_demo.folder / "rfkernels-demo.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    assert width > 1000
    assert height > 700


def test_demo_json(quick_demo: Demonstration) -> None:
    found = json.loads(quick_demo.result.stdout)
    assert quick_demo.result.stderr == ""
    keys = {
        "which",
        "heads",
        "length",
        "dim",
        "draws",
        "seed",
        "load",
        "rows",
        "timings",
        "words",
        "picture",
        "seconds",
    }
    assert set(found) == keys
    assert (found["heads"], found["length"], found["dim"]) == (4, 512, 32)
    assert {row["name"] for row in found["rows"]} == {
        *("exact", "average of v", "window alone", "groups"),
        *("positive", "hyperbolic", "trigonometric", "relu", "elu+1"),
    }
    assert all(row["seconds"] > 0 for row in found["rows"] if row["name"] != "average of v")
    assert found["words"] == words.sentences(quick_demo.report)


def test_demo_errors_are_what_they_are_called(quick_demo: Demonstration) -> None:
    with np.load(str(resources.files("rfkernels") / "data" / "minilm_heads.npz")) as data:
        which = list(zip(data["layer"].tolist(), data["head"].tolist(), strict=True))
        chosen = [which.index(pair) for pair in quick_demo.report.which]
        q, k, v = (data[name][chosen].astype(np.float64) for name in "qkv")
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(32)
    near = np.abs(np.subtract.outer(np.arange(512), np.arange(512))) < 64
    for causal in (False, True):
        seen = np.tril(np.ones((512, 512), bool)) if causal else np.ones((512, 512), bool)

        def output(allowed: Any, logits: Any = logits) -> Any:
            weights = np.exp(logits) * allowed
            return weights @ v / weights.sum(-1, keepdims=True)

        exact = output(seen)
        expected = {"average of v": output(seen, 0 * logits), "window alone": output(seen & near), "exact": exact}
        for row in quick_demo.report.rows:
            if row.causal == causal and row.name in expected:
                errors = measure.relative_errors(expected[row.name], exact)
                np.testing.assert_allclose([row.error, row.worst], [np.median(errors), max(errors)], atol=1e-5)


def test_demo_errors_lie_as_they_should(quick_demo: Demonstration) -> None:
    rows = {(row.name, row.features, row.window, row.causal): row for row in quick_demo.report.rows}
    for causal in (False, True):
        for name in ("positive", "hyperbolic"):
            plain, near = rows[name, 256, None, causal], rows[name, 256, 64, causal]
            assert near.error < 0.8 * plain.error
            assert plain.error < 1.2 * rows["average of v", None, None, causal].error
            assert near.error < rows["window alone", None, 64, causal].error
            assert near.memory - plain.memory == 64 * (2 * 32 * 4 + 1)
            assert plain.memory == 256 * (32 + 2) * 4
        assert rows["groups", 64, 64, causal].error < 0.2 * rows["positive", 256, 64, causal].error
        assert all(row.worst >= row.error for row in rows.values())


def test_demo_prints_a_table_and_words(
    quick_demo: Demonstration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "measure", lambda *_: quick_demo.report)
    monkeypatch.setattr(pictures, "draw_report", lambda *_: b"a picture")
    monkeypatch.chdir(tmp_path)
    result = invoke("demo", "--quick")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for row in quick_demo.report.rows:
        if not row.causal and row.features not in measure.ONLY_DRAWN:
            assert re.search(
                rf"^{re.escape(row.name)} .*\b{re.escape(as_error(row.error))} ", result.stdout, re.MULTILINE
            )
    for sentence in words.sentences(quick_demo.report):
        assert sentence in text
    assert "picture: rfkernels-demo.png" in text
    assert max(map(len, result.stdout.splitlines())) <= 120
    assert listing(tmp_path) == {"rfkernels-demo.png"}


def test_words_follow_the_numbers(quick_demo: Demonstration) -> None:
    def said(**errors: float) -> str:
        rows = [row._replace(error=errors.get(row.name, row.error), beaten=0) for row in quick_demo.report.rows]
        return " ".join(words.sentences(quick_demo.report._replace(rows=rows)))

    assert "0.10 on the median head, 87% less than averaging; averaging is better on none" in said(
        positive=0.1, **{"average of v": 0.78}
    )
    assert "1.56 on the median head, 2 times that of averaging" in said(positive=1.56, **{"average of v": 0.78})
    assert "Trigonometric features:" in said(trigonometric=2.0)
    assert "other processes took" in " ".join(words.sentences(quick_demo.report._replace(load=0.9)))
    assert "other processes took" not in " ".join(words.sentences(quick_demo.report._replace(load=0.1)))
    assert "Trigonometric features:" not in said(trigonometric=0.5)


@pytest.mark.parametrize(
    ("value", "phrase"),
    [(0.5, "50% less than"), (0.98, "no better and no worse than"), (1.5, "50% more than"), (40, "40 times that of")],
)
def test_comparisons(value: float, phrase: str) -> None:
    assert words.compared(value, 1.0) == phrase


def test_demo_without_its_folder(tmp_path: Path) -> None:
    result = invoke("demo", "--out", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "there is no directory" in result.stderr


def test_demo_leaves_no_half_picture(
    quick_demo: Demonstration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "measure", lambda *_: quick_demo.report)
    monkeypatch.setattr(pictures, "draw_report", lambda *_: b"a picture")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    result = invoke("demo", "--quick", "--out", tmp_path)
    assert result.exit_code == 1
    assert "cannot write" in result.stderr
    assert listing(tmp_path) == set()


# doctor


@pytest.fixture
def no_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_JAX_PROBE", "raise SystemExit('jax is broken')")


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax")
    result = invoke("doctor", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) == {"versions", "machine", "caches", "backends", "jax_devices", "ok"}
    assert {"python", "rfkernels", "numpy", "numba", "llvmlite", "jax", "torch"} <= set(found["versions"])
    assert found["versions"]["numpy"] == np.__version__
    assert {"cpus", "cpu", "vector bytes", "threads"} <= set(found["machine"])
    assert {name: backend["works"] for name, backend in found["backends"].items()} == dict.fromkeys(
        ("numba", "numpy", "jax"), True
    )
    assert found["jax_devices"]
    assert found["ok"] is True


@pytest.mark.usefixtures("no_jax")
def test_doctor_survives_a_broken_jax() -> None:
    pytest.importorskip("jax")
    result = invoke("doctor")
    assert result.exit_code == 0
    assert re.search(r"^backend jax +FAILED \(jax is broken\)", result.stdout, re.MULTILINE)
    assert re.search(r"^backend numba +ok", result.stdout, re.MULTILINE)


def test_a_broken_numba_is_compared_with_what_does_not_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        if name == "numba":
            raise ImportError("numba is broken")
        return load(name)

    monkeypatch.setattr("rfkernels.backends.load", broken)
    assert doctor.self_test("numpy") < 1e-6
    with pytest.raises(ImportError, match="numba is broken"):
        doctor.self_test("numba")


@pytest.mark.usefixtures("no_jax")
def test_doctor_without_jax_or_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise OSError("no directory is writable")

    monkeypatch.setattr(doctor, "_version", lambda _: None)
    monkeypatch.setattr(doctor, "_folder", nowhere)
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "absent (not installed: pip install 'rfkernels[jax]')" in result.stdout
    assert "compiled anew by every process: OSError: no directory is writable" in result.stdout


@pytest.mark.usefixtures("no_jax")
@pytest.mark.parametrize("broken", [lambda _: 0.5, lambda _: 1 / 0])
def test_doctor_fails_with_the_self_test(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "self_test", broken)
    result = invoke("doctor", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["backends"]["numba"]["works"] is False


# bench

LINES = [
    Line("fast", 25.0, "x", ">= 20", "1 ms, 25 ms"),
    Line("slow", 1.5, "x", "<= 1.3", "2 ms, 3 ms"),
    Line("absent", float("nan"), "x", ">= 200", "not measured: no module named torch"),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    given: list[bool] = []

    def measured(quick: bool, report: Any) -> list[Line]:
        given.append(quick)
        for line in LINES:
            report(line)
        return LINES

    monkeypatch.setattr(rfkernels.benchmark, "run", measured)
    return given


def test_bench_prints_lines_and_a_table(asked: list[bool]) -> None:
    result = invoke("bench")
    assert (result.exit_code, asked) == (0, [False])
    assert [line.split() for line in result.stdout.splitlines()[1:]] == [
        ["fast", "25", "x", ">=", "20", "met"],
        ["slow", "1.5", "x", "<=", "1.3", "missed"],
        ["absent", "not", "measured", ">=", "200"],
    ]
    said = result.stderr.splitlines()
    assert (said[0], said[2]) == ("fast: 25 x (1 ms, 25 ms)", "absent: not measured: no module named torch")


def test_bench_refuses_threads_that_are_no_number(asked: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "many")
    result = invoke("bench")
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    assert "RFKERNELS_NUM_THREADS must be a positive integer, got 'many'" in result.stderr


def test_bench_json(asked: list[bool]) -> None:
    result = invoke("bench", "--json", "--quick")
    assert (result.exit_code, asked) == (0, [True])
    found = json.loads(result.stdout)
    assert [line["value"] for line in found["lines"]] == [25.0, 1.5, None]
    assert {line["met"] for line in found["lines"]} == {None}  # targets are those of the full sizes
    assert set(found["lines"][0]) == {"name", "value", "unit", "target", "detail", "met"}


def test_no_time_of_the_demo_is_that_of_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact attention takes seconds to compile where nothing has been, and milliseconds after that."""
    calls: list[str] = []
    exact = rfk.exact_attention

    def called(*arrays: Any, **options: Any) -> Any:
        calls.append("called")
        return exact(*arrays, **options)

    def timed(call: Any) -> Any:
        calls.append("timed")
        return call(), 1.0

    monkeypatch.setattr("rfkernels.exact_attention", called)
    monkeypatch.setattr(measure, "fastest", timed)
    measure._goal(measure.load_heads(1), causal=False)
    assert calls == ["called", "timed", "called"]
