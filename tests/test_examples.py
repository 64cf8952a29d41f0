"""The examples run, and what they claim holds at a tiny size."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rfkernels as rfk
from rfkernels import maps

for _package in ("jax", "optax", "rich", "matplotlib"):
    pytest.importorskip(_package)

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import an example by name, with a registry that is thrown away."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(maps, "_TABLE", dict(maps._TABLE))

    def load(name: str) -> ModuleType:
        import importlib

        return importlib.import_module(name)

    return load


def test_custom_kernel(load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("custom_kernel")
    counts = (64, 1024)
    monkeypatch.setattr(example, "COUNTS", counts)
    monkeypatch.setattr(example, "lowered", dict)
    kept: dict[bool, Any] = {}
    errors = example.errors
    monkeypatch.setattr(example, "errors", lambda causal: kept.setdefault(causal, errors(causal)))
    example.main()
    assert "quadratic" in rfk.names()
    printed = capsys.readouterr().out
    for causal in (False, True):
        (_, average, _), *rows = kept[causal]
        assert [row[0] for row in rows] == list(counts)
        assert f"{rows[-1][1]:.3f}" in printed
        assert rows[-1][1] < average / 3  # far better than what knows nothing
        for few, many in zip(rows[0][1:], rows[1][1:], strict=True):  # the error falls as 1/√m: sixteen times as many
            assert 2.5 < few / many < 6


def test_custom_kernel_is_the_mean_of_its_features(load: Any) -> None:
    example = load("custom_kernel")
    x, y = np.array([0.3, -1.1]), np.array([0.8, 0.5])
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)  # exact for polynomials of degree 9 in each coordinate
    w = np.stack(np.meshgrid(nodes, nodes), -1)
    mean = np.sum(np.outer(weights, weights) * example.quadratic(np, w @ x, 0) * example.quadratic(np, w @ y, 0)) / (
        2 * np.pi
    )
    np.testing.assert_allclose(mean, np.exp(example.KERNEL.log(np, x @ y, x @ x, y @ y)), rtol=1e-12)


def test_custom_kernel_is_lowered_for_machines_that_are_not_here(load: Any) -> None:
    example = load("custom_kernel")
    rfk.register("quadratic", example.MAP)
    sizes = example.lowered(64)
    assert set(sizes) == {"tpu", "cuda"}
    assert min(sizes.values()) > 1000


def test_testing_a_kernel(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("testing_a_kernel")
    tests = [name for name in vars(example) if name.startswith("test_")]
    assert len(tests) == 4
    for name in tests:
        getattr(example, name)()
    example.main()
    printed = capsys.readouterr().out
    assert "<lambda> is biased" in printed
    assert "cumulative is biased" in printed


TINY = [
    "--layers",
    "1",
    "--heads",
    "2",
    "--dim",
    "8",
    "--features",
    "16",
    "--window",
    "3",
    "--length",
    "12",
    "--batch",
    "2",
]


ALL = ["exact attention", "softmax features", "softmax features, window 3", "ReLU features"]


@pytest.mark.parametrize(
    "names", [[ALL[0], ALL[2]], pytest.param(ALL, marks=pytest.mark.long)], ids=["two of the ways", "all of them"]
)
def test_char_lm(
    load: Any, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load("char_lm")
    every = example.ways_of
    monkeypatch.setattr(example, "ways_of", lambda given: [way for way in every(given) if way.label in names])
    report = example.main(
        [*TINY, "--steps", "30", "--rate", "0.02", "--every", "10", "--sample", "7", "--out", str(tmp_path)]
    )
    assert json.loads((tmp_path / "char_lm.json").read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    assert (tmp_path / "char_lm.png").read_bytes().startswith(b"\x89PNG")
    runs = {run["way"]: run for run in report["runs"]}
    assert list(runs) == names
    printed = capsys.readouterr().out
    for name, run in runs.items():
        assert len(run["losses"]) == 30
        assert [step for step, _ in run["held_out"]] == [10, 20, 30]
        assert run["held_out"][-1][1] < run["losses"][0] - 0.5  # it learns
        if name != "exact attention":
            assert 0 < run["stream_error"] < 1e-5
            assert len(run["sample"].split("|")[-1]) == 7
            assert run["sample"] in printed


def test_char_lm_redraws_from_the_seed_and_the_step(load: Any) -> None:
    model = load("char_model")
    shape = model.Shape(5, layers=2, heads=2, dim=8)
    one, same, other = (model.attention(shape, "positive", 16, None, [0, step]).features for step in (0, 0, 5))
    for i in range(shape.layers):
        np.testing.assert_array_equal(one[i].projection, same[i].projection)
        assert abs(one[i].projection - other[i].projection).max() > 0.1
    assert abs(one[0].projection - one[1].projection).max() > 0.1
    assert abs(one[0].projection[0] - one[0].projection[1]).max() > 0.1  # every head has its own


def test_char_lm_cannot_see_what_comes_next(load: Any) -> None:
    model = load("char_model")
    shape = model.Shape(11, layers=2, heads=2, dim=8)
    parameters = model.initial(shape, 0)
    tokens = np.random.default_rng(0).integers(0, 11, (1, 10))
    changed = tokens.copy()
    changed[:, 6:] = (changed[:, 6:] + 1) % 11
    for name, window in (("exact", None), ("positive", 3)):
        how = model.attention(shape, name, 16, window, 0)
        one, other = (model.logits(parameters, given, shape, how)[0] for given in (tokens, changed))
        np.testing.assert_allclose(one[:, :6], other[:, :6], atol=1e-5)
        assert abs(one[:, 6:] - other[:, 6:]).max() > 1e-2


@pytest.mark.long
def test_char_lm_bench(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = load("char_lm").main([*TINY, "--bench", "--lengths", "8", "--tokens", "16", "--rounds", "1"])["bench"]
    assert [(row["length"], row["batch"]) for row in rows] == [(8, 2)]
    assert all(
        row[name] > 0 for row in rows for name in ("softmax features", "softmax features, window 3", "ReLU features")
    )
    assert "softmax features" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "option", "value", "said"),
    [
        ("char_lm", "batch", "0", "must be at least 1, got 0"),
        ("char_lm", "sample", "-5", "must be at least 1, got -5"),
        ("char_lm", "window", "-3", "must be at least 0, got -3"),
        ("char_lm", "seed", "-1", "must be at least 0, got -1"),
        ("char_lm", "temperature", "0", "must be more than 0, got 0.0"),
        ("char_lm", "text", "nosuch", "must be a text or a folder of texts, got nosuch, which is not there"),
        ("recommender", "seeds", "0", "must be at least 1, got 0"),
        (
            "recommender",
            "words",
            str(EXAMPLES),
            f"must hold texts, files that end in .txt, got {EXAMPLES}, which has none",
        ),
        ("rotary_lm", "tests", "0", "must be at least 1, got 0"),
        ("rotary_lm", "vocabulary", "1", "must be at least 2, got 1"),
        ("rotary_lm", "length", "24", "must be at least 25, got 24"),
        ("rotary_lm", "copies", "2", "must be a share from 0 to 1, got 2.0"),
        ("rotary_lm", "text", "nosuch", "must be a text or a folder of texts, got nosuch, which is not there"),
        ("rotary_lm", "weights", "model", "must end in .npz, got model"),
        ("rotary_lm", "weights", "nosuch/model.npz", "must be a file in a folder that is there, got nosuch/model.npz"),
        ("rotary_lm", "out", "nosuch/x.json", "must be a file in a folder that is there, got nosuch/x.json"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_is_begun(
    load: Any, name: str, option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        load(name).parse(["--quick", f"--{option}", value])
    assert f"error: --{option} {said}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["char_lm", "recommender"])
def test_a_folder_that_cannot_be_made_is_refused_before_training(load: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(FileExistsError, match="taken"):
        load(name).main(["--quick", "--out", str(tmp_path / "taken")])


def test_folders_are_refused_as_files_to_write(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.npz").mkdir()
    with pytest.raises(SystemExit, match="2"):
        load("rotary_lm").parse(["--weights", str(tmp_path / "model.npz")])
    assert "--weights must be a file in a folder that is there, got" in capsys.readouterr().err


def test_texts_as_long_as_sequences_are_refused(load: Any) -> None:
    refuse_short = load("refusals").refuse_short
    refuse_short(Path("a.txt"), {"words held out": 65}, 64)
    with pytest.raises(SystemExit, match=r"--text must be longer for --length 64: a\.txt has 64 words held out"):
        refuse_short(Path("a.txt"), {"words held out": 64}, 64)


@pytest.mark.parametrize(
    ("name", "text"),
    [("char_lm", ""), ("char_lm", "word " * 200), ("rotary_lm", ""), ("rotary_lm", "word " * 2000)],
    ids=["char_lm, none", "char_lm, little held out", "rotary_lm, none", "rotary_lm, little held out"],
)
def test_texts_that_are_too_short_are_refused(load: Any, name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(text)
    short = ["--quick", "--text", str(tmp_path / "short.txt")]
    with pytest.raises(SystemExit, match=r"--text must be longer for --length (64|254): .*short.txt has \d+ "):
        load(name).main(short if name == "rotary_lm" else [*short, "--out", str(tmp_path)])


def test_the_text_is_the_one_that_its_page_names() -> None:
    text, page = (EXAMPLES / "texts" / name for name in ("sonnets.txt", "README.md"))
    assert hashlib.sha256(text.read_bytes()).hexdigest() in page.read_text(encoding="utf-8")
