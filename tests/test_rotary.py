"""A causal model with rotary keys, grouped queries and a first token: its attention can be swapped, and streamed."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

for _package in ("jax", "optax", "rich"):
    pytest.importorskip(_package)

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
LENGTH = 130


@pytest.fixture(scope="module")
def load() -> Any:
    """Import an example by name."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(EXAMPLES)

    def load(name: str) -> ModuleType:
        import importlib

        return importlib.import_module(name)

    yield load
    patch.undo()


class Model:
    """Parameters of a small model, tokens (2, 1 + LENGTH) that begin with the first one, and samples of other tokens."""

    def __init__(self, load: Any) -> None:
        self.of, self.swap, training = load("rotary_model"), load("rotary_swap"), load("rotary_training")
        self.shape = self.of.Shape(64, layers=2, shared=2, group=2, dim=16)
        self.parameters = self.of.initial(self.shape, 0)
        random = np.random.default_rng(0).integers(1, 64, (3000,)).astype(np.int32)
        rows = iter(training.batches(random, 2, LENGTH, 0.3, 1))
        self.tokens, other = next(rows)[:, :-1], next(rows)[:, :-1]
        self.samples = self.swap.captured(self.parameters, other, self.shape)

    def logits(self, attend: Any, tokens: Any = None) -> np.ndarray:
        tokens = self.tokens if tokens is None else tokens
        return np.asarray(self.of.logits(self.parameters, tokens, self.shape, attend))

    def swapped(self, way: Any, tokens: Any = None) -> np.ndarray:
        return self.logits(self.swap.swapped(way, self.swap.fitted(way, self.samples)), tokens)


@pytest.fixture(scope="module")
def model(load: Any) -> Model:
    return Model(load)


def ways(model: Model) -> list[Any]:
    way = model.swap.Way
    return [way(32, 4, 16), way(32, 4, 16, calibrated=True), way(32, 4, features=32)]


def test_a_query_and_a_key_see_only_how_far_apart_they_are(load: Any) -> None:
    rotated = load("rotary_model").rotated
    q, k = np.random.default_rng(0).standard_normal((2, 40, 16)).astype(np.float32)
    same = np.broadcast_to(q[:1], q.shape), np.broadcast_to(k[:1], k.shape)
    products = np.asarray(rotated(same[0]) @ rotated(same[1]).T)
    for apart in (0, 1, 17):
        diagonal = np.diag(products, -apart)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
    assert abs(products[0, 0] - products[17, 0]) > 0.1
    np.testing.assert_allclose(rotated(q[5:], 5), np.asarray(rotated(q))[5:], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rotated(q), axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5)


def test_each_head_of_keys_is_read_by_a_group_of_queries(model: Model) -> None:
    """The same as with keys and values repeated for every head of queries, and attention written out."""

    def attend(_: int, q: Any, k: Any, v: Any) -> Any:
        flat = np.asarray(q).reshape(len(q), 4, LENGTH, 16)
        k, v = (np.repeat(np.asarray(x)[:, :, 0], 2, 1) for x in (k, v))
        out = np.zeros_like(flat)
        for t in range(LENGTH):
            scores = np.einsum("bhd,bhsd->bhs", flat[:, :, t], k[:, :, : t + 1]) / 4
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, :, t] = np.einsum("bhs,bhsd->bhd", weights / weights.sum(-1, keepdims=True), v[:, :, : t + 1])
        return out.reshape(q.shape)

    np.testing.assert_allclose(model.logits(attend), model.logits(model.of.exact()), atol=2e-5)


def test_one_head_of_keys_is_that_of_the_token_before(model: Model) -> None:
    """The first layer's last one; its queries begin as keys do, so that a token finds what came after its last use."""
    other = model.tokens.copy()
    other[:, 50] = 63 - other[:, 50]
    one, two = (model.swap.captured(model.parameters, x, model.shape)[0] for x in (model.tokens, other))
    moved = np.abs(one.k - two.k).max(-1).reshape(2, 2, LENGTH) > 1e-4
    assert {head: set(np.flatnonzero(moved[head].any(0))) for head in (0, 1)} == {0: {49}, 1: {50}}
    block = model.parameters["blocks"][0]
    np.testing.assert_array_equal(block["q"][:, 32:48], block["k"][:, 16:])
    np.testing.assert_array_equal(block["q"][:, 48:], block["k"][:, 16:])


@pytest.mark.long
def test_a_window_over_everything_changes_nothing(model: Model) -> None:
    exact = model.logits(model.of.exact())
    for way in ways(model)[::2]:
        np.testing.assert_allclose(model.swapped(way._replace(window=LENGTH + 64)), exact, atol=2e-5)


@pytest.mark.long
def test_ways_differ_where_keys_have_left_the_window(model: Model) -> None:
    """The window is 32: blocks of 32 and one block before, so up to position 63 all is exact."""
    exact = model.logits(model.of.exact())
    for way in ways(model):
        apart = np.abs(model.swapped(way) - exact).max((0, 2))
        assert apart[:64].max() < 2e-5
        assert apart[64:].max() > 1e-3


def test_as_many_groups_as_keys_is_exact(model: Model) -> None:
    """Keys that never had to be merged are groups of one key each."""
    many = model.swapped(model.swap.Way(32, 4, LENGTH))
    np.testing.assert_allclose(many, model.logits(model.of.exact()), atol=2e-5)


def test_what_is_exact_is_what_the_library_has_exact(model: Model) -> None:
    """A model whose far keys have no say gives the same with and without them."""
    way = model.swap.Way(32, 4)
    allowed = model.swap.allowed(way, LENGTH)
    assert allowed[70].sum() == (70 - 32 + 1) + 4
    assert allowed[31].sum() == 32
    assert not allowed[0, 1]
    assert not model.swap.allowed(way._replace(heavy=0), LENGTH)[70, 31]
    assert model.swap.allowed(model.swap.Way(), LENGTH)[70].sum() == 71
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 2, heads, LENGTH, 16)).astype(np.float32) for heads in (2, 1, 1))
    q[:, :, 1] = q[:, :, 0]
    k[..., 4:32, :] -= 40 * np.sign(q[:, :, :1, 70:71])  # far from the query at 70, and not among the first four
    whole = model.swap.swapped(way._replace(groups=16), model.swap.Fitted((16,), (None,)))(0, q, k, v)
    kept = model.of.exact(allowed)(0, q, k, v)
    np.testing.assert_allclose(np.asarray(whole)[..., 70, :], np.asarray(kept)[..., 70, :], atol=1e-5)


def test_a_first_token_that_all_attend_to_is_kept(model: Model) -> None:
    """A sink: without its exact weight a window is far off; with it, or as a group of its own, it is close."""
    rng = np.random.default_rng(3)
    q, k, v = (0.7 * rng.standard_normal((2, 2, heads, LENGTH, 16)).astype(np.float32) for heads in (2, 1, 1))
    q[..., 0] += 4
    k[..., 0, 0] += 7
    exact = np.asarray(model.of.exact()(0, q, k, v))

    def error(way: Any, groups: int | None = None) -> float:
        swap = model.swap
        attend = (
            swap.swapped(way, swap.Fitted((groups,), (None,))) if groups else model.of.exact(swap.allowed(way, LENGTH))
        )
        return float(np.linalg.norm((np.asarray(attend(0, q, k, v)) - exact)[..., 64:, :]) / np.linalg.norm(exact))

    way = model.swap.Way
    alone, first = error(way(32)), error(way(32, 4))
    assert first < alone / 3
    assert error(way(32, 4, 16), 16) < first
    assert error(way(32, 0, 16), 16) < alone / 3


def test_later_tokens_do_not_touch_earlier_logits(model: Model) -> None:
    changed = model.tokens.copy()
    changed[:, 111:] = 63 - changed[:, 111:]
    for way in ways(model):
        one, other = model.swapped(way), model.swapped(way, changed)
        np.testing.assert_array_equal(one[:, :110], other[:, :110])
        assert np.abs(one[:, 110:] - other[:, 110:]).max() > 1e-3


@pytest.mark.parametrize("index", range(3))
def test_a_stream_gives_the_logits_of_one_pass(model: Model, index: int) -> None:
    way = ways(model)[index]
    given = model.swap.fitted(way, model.samples)
    streamed = model.swap.streamed_logits(model.parameters, model.tokens, model.shape, way, given)
    np.testing.assert_allclose(streamed, model.swapped(way), atol=2e-5)


def test_copies_are_copies_and_the_first_token_stays(load: Any) -> None:
    training = load("rotary_training")
    row = np.arange(400)
    training.with_copies(row, 0.4, np.random.default_rng(0))
    np.testing.assert_array_equal(row[:2], [0, 1])
    moved = row != np.arange(400)
    assert 0.2 < moved.mean() < 0.6
    assert (row <= np.arange(400)).all()
    assert (row[moved] <= np.flatnonzero(moved) - 8).all()  # never from closer than the gap
    assert (np.diff(row)[moved[1:]] == 1).mean() > 0.9  # in passages
    plain = next(training.batches(np.arange(1, 900), 3, 100, 0.0, 0))
    assert plain.shape == (3, 102)
    assert (plain[:, :2] == training.FIRST).all()
    np.testing.assert_array_equal(np.diff(plain[:, 2:]), 1)


def test_words_keep_their_number_and_texts_are_held_out(load: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Anna said: it is Anna's. " * 50, encoding="utf-8")
    train, held_out = load("rotary_training").read_words(text, 64)
    assert len(train) + len(held_out) == 50 * 9
    assert len(held_out) == 45
    np.testing.assert_array_equal(train[0::9], train[0])
    assert train[0] == train[5]
    assert train.min() >= 1
    assert train.max() < 64


@pytest.mark.long
def test_the_example_runs(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = tmp_path / "weights.npz", tmp_path / "figures.json"
    sizes = ["--steps", "3", "--length", "94", "--vocabulary", "128", "--dim", "8", "--layers", "1"]
    arguments = ["--quick", *sizes, "--weights", str(weights), "--out", str(out)]
    load("rotary_lm").main(arguments)
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert list(figures["perplexity"]) == [
        "exact attention",
        "window 32",
        "window 32 + 4 first",
        "window 32 + 4 first + 64 fitted features",
        "window 32 + 4 first + 32 calibrated groups",
        "window 32 + 4 first + 32 groups",
    ]
    for label, scores in figures["perplexity"].items():
        assert label in printed
        assert set(scores) == {"as it is", "with copies"}
        assert 1 < scores["as it is"] < 200
    assert figures["stream"] < 1e-5
    stored = np.load(weights)
    assert all(stored[name].dtype == np.float16 for name in stored.files)


def test_a_model_of_other_shapes_is_refused(load: Any, tmp_path: Path) -> None:
    import jax

    example, model = load("rotary_lm"), load("rotary_model")
    kept, asked = (model.initial(model.Shape(words, layers=1, dim=8), 0) for words in (64, 32))
    leaves = [np.asarray(leaf, np.float16) for leaf in jax.tree.leaves(kept)]
    np.savez(tmp_path / "model.npz", *leaves)
    for read, leaf in zip(jax.tree.leaves(example.read_weights(tmp_path / "model.npz", kept)), leaves, strict=True):
        np.testing.assert_array_equal(read, leaf)
    with pytest.raises(
        SystemExit, match=r"--weights must hold a model of the --vocabulary.*got .*model.npz of other shapes"
    ):
        example.read_weights(tmp_path / "model.npz", asked)


def test_a_model_is_kept_and_not_trained_anew(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jax
    from rich.console import Console

    example, model = load("rotary_lm"), load("rotary_model")
    shape = model.Shape(64, layers=1, dim=8)
    given, trained = example.parse(["--weights", str(tmp_path / "model.npz")]), []

    def train(*_: Any, seed: int, **__: Any) -> Any:
        trained.append(seed)
        return model.initial(shape, 7)

    monkeypatch.setattr(example, "train", train)
    made, read = (jax.tree.leaves(example.load_or_train(given, np.zeros(0), shape, Console())) for _ in range(2))
    assert trained == [0]
    assert [file.name for file in tmp_path.iterdir()] == ["model.npz"]
    for one, other in zip(made, read, strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float16), other)


def test_the_benchmark_compares_each_way_once(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES.parent / "benchmarks")
    ways = load("causal_swap").ways_of(32, [8, 16], 64)
    assert len({way.label for way in ways}) == len(ways) == 9
    assert {way.window for way in ways} == {32}
    assert [way.linear for way in ways] == [False] * 2 + [True] * 7
    assert sum(way.calibrated for way in ways) == 2
