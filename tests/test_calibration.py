"""Learned features: the loss is the library's own error, parts are held out, and what was learned is never worse there."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import xla

pytest.importorskip("jax")
pytest.importorskip("optax")

import rfkernels as rfk
from rfkernels.calibration import Calibration, Progress, calibrate
from rfkernels.calibration.data import BLOCK, check_sequences, drawn, every, listed, split, together

HEADS, DIM = 2, 4


def captured(seed: int, length: int = 96, heads: tuple[int, ...] = (HEADS,), keys: int | None = None) -> Any:
    """Queries and keys with a mean and a few directions that matter, and values."""
    rng = np.random.default_rng(seed)
    own = np.random.default_rng(7).standard_normal((3, DIM, DIM))
    q, k, v = (
        rng.standard_normal((*heads, n, DIM)) @ root
        for n, root in zip((length, keys or length, keys or length), own, strict=True)
    )
    return q.astype(np.float32) + 0.5, k.astype(np.float32) + 0.5, v.astype(np.float32)


def learned(q: Any, k: Any, v: Any = None, **options: Any) -> Calibration:
    defaults: dict[str, Any] = {"steps": 50, "learning_rate": 0.02, "progress": False, "rng": 0}
    if "features" not in options:
        defaults["count"] = 8
    return calibrate(q, k, v, **{**defaults, **options})


def error_at(features: Any, q: Any, k: Any, v: Any, at: Any, **options: Any) -> Any:
    """Relative error of the library's output at some queries of each head: squares of error and of output."""
    exact = rfk.exact_attention(q, k, v, scale=float(features.scale), causal=options.get("causal", False))
    apart = rfk.attention(q, k, v, features, backend="numpy", **options) - exact
    return np.sum(apart[..., at, :] ** 2, (-1, -2)), np.sum(exact[..., at, :] ** 2, (-1, -2))


def test_it_improves_on_other_queries() -> None:
    q, k, v = captured(0)
    found = learned(q, k, v)
    assert np.all(found.best > 0)
    assert np.all(found.test.learned < 0.9 * found.test.start)
    assert np.all(found.validation.learned < 0.9 * found.validation.start)
    np.testing.assert_array_equal(found.history.validation[0], found.validation.start)
    np.testing.assert_allclose(found.history.validation.min(0), found.validation.learned, rtol=1e-5)
    assert list(found.history.step) == [0, 25, 50]
    assert np.all(found.history.train[2] < found.history.train[1])


# Errors are those of attention --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "valued"),
    [
        ({}, True),
        ({"causal": True, "window": 5}, False),
        pytest.param({}, False, marks=pytest.mark.long),
        pytest.param({"causal": True}, True, marks=pytest.mark.long),
        pytest.param({"window": 5}, True, marks=pytest.mark.long),
    ],
    ids=["plain", "causal window weights", "weights", "causal", "window"],
)
def test_errors_are_those_of_attention(options: dict[str, Any], valued: bool) -> None:
    """Of sequences of several lengths, one with more keys than queries; before learning and after."""
    sequences = [captured(0, 40), captured(1, 33), captured(2, 20, keys=45), captured(3, 50)]
    q, k, v = ([s[i] for s in sequences] for i in range(3))
    found = learned(q, k, v if valued else None, steps=25, **options)
    parts = split([x.shape[-2] for x in q], 0.2, np.random.default_rng(0).spawn(2)[0])
    for features, errors in ((found.start, 0), (found.features, 1)):
        for part, given in zip(parts, (found.train, found.validation, found.test), strict=True):
            squares: Any = 0
            for x, y, z, at in zip(q, k, v, part, strict=True):
                values = (
                    z if valued else np.broadcast_to(np.eye(y.shape[-2], dtype=z.dtype), (HEADS, *[y.shape[-2]] * 2))
                )
                squares = squares + np.array(error_at(features, x, y, np.ascontiguousarray(values), at, **options))
            np.testing.assert_allclose(given[errors], np.sqrt(squares[0] / squares[1]), rtol=2e-3)


def check_errors_of_many_heads_and_columns() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 12, 512, 32), np.float32)
    found = learned(q, k, v, count=256, steps=1)
    at = split([512], 0.2, np.random.default_rng(0).spawn(2)[0]).test[0]
    error, size = error_at(found.start, q, k, v, at)
    np.testing.assert_allclose(found.test.start, np.sqrt(error / size), rtol=2e-3)


@pytest.mark.long
def test_errors_of_many_heads_and_columns() -> None:
    """Of a size at which jaxlib 0.10.2 fuses products with what follows, and gets it wrong (jax-ml/jax #39103)."""
    code = "import test_calibration; test_calibration.check_errors_of_many_heads_and_columns()"
    done = subprocess.run([sys.executable, "-c", code], env=xla.default(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_queries_that_share_keys() -> None:
    """One set of features for each head of keys; the error is over all queries that share them."""
    q, k, v = captured(0, 60, (2, 3))
    k, v = k[:, :1], v[:, :1]
    found = learned(q, k, v)
    assert found.features.batch == found.best.shape == found.test.start.shape == (2, 1)
    at = split([60], 0.2, np.random.default_rng(0).spawn(2)[0]).test[0]
    error, size = error_at(found.features, q, k, v, at)
    np.testing.assert_allclose(found.test.learned[:, 0], np.sqrt(error.sum(1) / size.sum(1)), rtol=2e-3)


def test_a_query_that_sees_nothing_has_no_error() -> None:
    q, k, v = captured(0, 60, keys=30)
    found = learned(q, k, v, causal=True)
    assert np.all(np.isfinite(found.history.validation))
    assert np.all(found.stopped == "steps")


def test_values_of_zeros_are_estimated_without_error() -> None:
    """Such a head, as a pruned one, has nothing to learn and leaves the others alone."""
    q, k, v = captured(0)
    v[0] = 0
    found = learned(q, k, v, patience=25)
    for errors in (found.train, found.validation, found.test):
        np.testing.assert_array_equal([errors.start[0], errors.learned[0]], 0)
    assert list(found.stopped) == ["patience", "steps"]
    assert found.best[0] == 0
    assert found.test.learned[1] < found.test.start[1]


@pytest.mark.parametrize(("dtype", "sizes"), [(np.float32, (2.0**-100, 2.0**120)), (np.float64, (2.0**-300, 2.0**900))])
def test_errors_do_not_depend_on_the_size_of_values(dtype: Any, sizes: tuple[float, float]) -> None:
    q, k, v = (x.astype(dtype) for x in captured(0))
    found, sized = learned(q, k, v), learned(q, k, v * np.array(sizes, dtype)[:, None, None])
    np.testing.assert_array_equal(sized.validation, found.validation)
    np.testing.assert_array_equal(sized.test, found.test)


def test_an_estimate_of_what_is_nothing_has_an_infinite_error() -> None:
    """A value that all but one key share is zero, and that key's weight vanishes in exact attention alone."""
    q, k, v = (np.full((1, 96, DIM), value, np.float32) for value in (6, 6, 0))
    k[:, -1] *= -1
    v[:, -1] = 1
    found = learned(q, k, v, features=rfk.draw("positive", DIM, 8, rng=0), steps=25)
    assert found.test.start == np.inf
    assert list(found.stopped) == ["not finite"]


def test_every_backend_runs_them_alike() -> None:
    import jax.numpy as jnp

    q, k, v = captured(0)
    features = learned(q, k, v).features
    assert features.projection.dtype == np.float64
    assert not features.projection.flags.writeable
    expected = rfk.attention(q, k, v, features, backend="numpy")
    np.testing.assert_allclose(rfk.attention(q, k, v, features, backend="numba"), expected, rtol=1e-3, atol=1e-4)
    on_jax = rfk.attention(*(jnp.asarray(x) for x in (q, k, v)), features)
    np.testing.assert_allclose(on_jax, expected, rtol=1e-3, atol=1e-4)


# Never worse, and when it stops -------------------------------------------------------------------------------------------


def test_no_step_is_kept_that_makes_it_worse() -> None:
    """With an absurd learning rate the result is what `fit` gave, bit for bit."""
    q, k, v = captured(0)
    found = learned(q, k, v, learning_rate=1e9)
    assert np.all(found.best == 0)
    assert found.features is found.start
    for errors in (found.validation, found.test):
        np.testing.assert_array_equal(errors.start, errors.learned)


def test_a_head_that_breaks_keeps_the_start_and_leaves_the_others_alone() -> None:
    q, k, v = captured(0)
    start = rfk.fit(q, k, 8, rng=3)
    large = np.array([1e25, 1], np.float32)[:, None, None]  # its square is infinite in float32
    found = learned(large * q, large * k, v, features=start)
    assert list(found.stopped) == ["not finite", "steps"]
    assert found.best[0] == 0 < found.best[1]
    np.testing.assert_array_equal(found.features.projection[0], start.projection[0])
    np.testing.assert_array_equal(found.features.key.matrix[0], start.key.matrix[0])
    assert np.all(np.isnan(found.history.validation[:, 0]))
    alone = learned(q[1:], k[1:], v[1:], features=_head(start, 1))
    np.testing.assert_allclose(alone.features.projection[0], found.features.projection[1], rtol=1e-3, atol=1e-4)


def _head(features: Any, head: int) -> Any:
    def own(x: Any) -> Any:
        return None if x is None else x[head : head + 1]

    query, key = (rfk.Side(*(own(x) for x in side)) for side in (features.query, features.key))
    return rfk.Features(features.map, own(features.projection), own(features.log_weight), query, key, features.scale)


def test_a_parameter_that_is_not_finite_stops_its_head_at_the_best_so_far() -> None:
    """A gradient breaks in the middle: what was best before is kept."""
    q, k, v = captured(0)
    module = import_module("rfkernels.integrations.optax")
    learner, calls = module.errors, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        result = np.array(learner(*arguments))
        if len(calls) == 4:  # that of the start, twice, and after the first steps come before
            result[0] = np.nan
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "errors", failing)
        found = learned(q, k, v, steps=100)
    assert list(found.stopped) == ["not finite", "steps"]
    assert list(found.best) == [25, 100]


def test_patience() -> None:
    q, k, v = captured(0)
    found = learned(q, k, v, learning_rate=1e9, steps=500, patience=50)
    assert list(found.stopped) == ["patience"] * HEADS
    assert found.history.step[-1] == 50
    np.testing.assert_array_equal(found.features.projection, found.start.projection)


def test_the_same_seed_gives_the_same_features() -> None:
    q, k, v = captured(0)
    first, again, other = (learned(q, k, v, rng=seed) for seed in (0, np.random.default_rng(0), 1))
    np.testing.assert_array_equal(first.features.projection, again.features.projection)
    np.testing.assert_array_equal(first.test.learned, again.test.learned)
    assert np.any(first.test.start != other.test.start)


def test_it_starts_from_fit_on_the_training_part() -> None:
    sequences = [captured(i, 40) for i in range(5)]
    q, k, v = ([s[i] for s in sequences] for i in range(3))
    found = learned(q, k, v, steps=25, scale=0.7)
    train = split([40] * 5, 0.2, np.random.default_rng(0).spawn(2)[0]).train
    used = [i for i, at in enumerate(train) if len(at)]
    assert len(used) == 3
    start = rfk.fit(*(np.concatenate([x[i] for i in used], -2) for x in (q, k)), 8, scale=0.7, rng=0)
    np.testing.assert_array_equal(found.start.projection, start.projection)
    np.testing.assert_array_equal(found.start.key.linear, start.key.linear)


def test_one_sequence_is_fitted_without_the_held_out_queries() -> None:
    q, k, v = captured(0)
    found = learned(q, k, v, steps=25)
    train = split([q.shape[-2]], 0.2, np.random.default_rng(0).spawn(2)[0]).train[0]
    start = rfk.fit(q[:, train], k, 8, rng=0)
    np.testing.assert_array_equal(found.start.projection, start.projection)
    np.testing.assert_array_equal(found.start.key.linear, start.key.linear)


def test_features_without_sides_or_heads_are_a_start() -> None:
    q, k, v = captured(0)
    plain = rfk.draw("hyperbolic", DIM, 8, scale=0.3, rng=1)
    found = learned(0.5 * q, 0.5 * k, v, features=plain)
    assert found.features.batch == found.start.batch == (HEADS,)
    assert found.features.map is plain.map
    assert float(found.features.scale) == 0.3
    assert np.all(found.test.learned < found.test.start)


def test_jax_arrays_give_jax_features() -> None:
    import jax
    import jax.numpy as jnp

    q, k, v = (jnp.asarray(x) for x in captured(0))
    found = learned(q, k, v)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(found.features))
    assert rfk.attention(q, k, v, found.features).shape == v.shape
    assert np.all(found.test.learned < found.test.start)


# Parts and blocks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[100], [64, 200], [10], [30, 40, 50], [30] * 12], ids=str)
def test_every_query_is_in_one_part(lengths: list[int]) -> None:
    parts = split(lengths, 0.2, np.random.default_rng(0))
    for i, length in enumerate(lengths):
        merged = np.concatenate([part[i] for part in parts])
        np.testing.assert_array_equal(np.sort(merged), np.arange(length))
        if len(lengths) > 2:
            assert [len(part[i]) for part in parts].count(0) == 2
    total = [sum(map(len, part)) for part in parts]
    assert min(total) > 0
    assert total[0] >= sum(lengths) / 2 or len(lengths) == 3


def test_held_out_queries_come_in_runs() -> None:
    parts = split([320], 0.2, np.random.default_rng(0))
    for part in parts[1:]:
        assert set(part[0] // 16) == {run for run in set(part[0] // 16) if np.sum(part[0] // 16 == run) == 16}


def test_blocks() -> None:
    part = [np.arange(3, 150), np.zeros(0, np.int64), np.arange(10)]
    blocks = every(part, 1000)
    for i, positions in enumerate(part):
        found = blocks.position[blocks.sequence == i][blocks.valid[blocks.sequence == i]]
        np.testing.assert_array_equal(found, positions)
    assert every(part, 50).valid.sum() <= 52
    random = drawn(part, 200, np.random.default_rng(0))
    assert set(random.sequence) == {0, 2}
    for i, position, valid in zip(*random, strict=True):
        assert valid.sum() == min(BLOCK, len(part[i])) == len(set(position[valid]))
        assert set(position[valid]) <= set(part[i])


def test_shared_keys_keep_their_queries() -> None:
    q, k, v = captured(0, 5, (2, 3))
    data = together([q], [k[:, :1]], [v[:, :1]])
    np.testing.assert_array_equal(data.q[0], q.astype(np.float32))
    data = together([q[:, :1]], [k], None)
    np.testing.assert_array_equal(data.q[0, :, 0], np.repeat(q[:, 0], 3, 0))
    assert check_sequences(listed("q", q), listed("k", k), None) == (2, 3)


# What is told ---------------------------------------------------------------------------------------------------------


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    q, k, v = captured(0)
    seen: list[Progress] = []
    found = learned(q, k, v, progress=seen.append)
    assert [p.step for p in seen] == [25, 50]
    np.testing.assert_array_equal(seen[-1].start, found.validation.start)
    np.testing.assert_allclose(seen[-1].best, found.validation.learned, rtol=1e-5)
    assert capsys.readouterr().err == ""
    learned(q, k, v, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("calibrate [##########..........] 25/50  held-out error, median head: ")
    assert lines[-1].startswith("calibrate [####################] 50/50")
    text = str(found).splitlines()
    assert text[0].startswith("2 of 2 heads improved in 50 steps")
    assert text[-1].split() == ["test,", "worst", "head", *(f"{x.max():.3f}" for x in found.test)]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rfkernels.integrations.optax", raising=False)
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package 'optax': pip install 'rfkernels\[calibrate\]'"):
        learned(*captured(0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": rfk.draw("positive", DIM, 8, rng=0), "count": 8}, ValueError, "either count or features"),
        ({"count": None}, ValueError, "either count or features"),
        ({"features": rfk.draw("relu", DIM, 8, rng=0)}, ValueError, "feature_map must be exponential"),
        ({"features": rfk.draw("positive", DIM, 8, rng=0), "scale": 1.0}, ValueError, "scale= belongs to count="),
        ({"features": rfk.draw("positive", DIM, 8, batch=(5, HEADS), rng=0)}, ValueError, "no batch axes that k lacks"),
        ({"features": rfk.draw("positive", 5, 8, rng=0)}, ValueError, "features are of dim 5"),
        ({"steps": 0}, ValueError, "steps must be a positive integer"),
        ({"patience": 1.5}, ValueError, "patience must be a positive integer"),
        ({"learning_rate": True}, ValueError, "learning_rate must be a number above 0"),
        ({"causal": "no"}, TypeError, "causal must be True or False, got 'no'"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be a number above 0"),
        ({"holdout": 0.5}, ValueError, "holdout must be a number above 0 and below 0.5"),
        ({"window": 0}, ValueError, "window must be a positive integer"),
        ({"rng": None}, TypeError, "rng must be an int"),
        ({"rng": -1}, ValueError, "rng must be at least 0"),
        ({"q": []}, ValueError, "q must be an array or a list of at least one"),
        ({"q": [captured(0)[0]] * 2}, ValueError, "as many sequences, got 2 of q and 1 of k"),
        ({"q": captured(0)[0][:, :0]}, ValueError, "q must hold at least one vector"),
        ({"q": captured(0)[0][:, :2]}, ValueError, "leave nothing to learn from"),
        ({"v": captured(0)[2][:1]}, ValueError, "v must have the batch axes of k"),
        ({"v": captured(0)[2][..., :0]}, ValueError, r"v must be at least one wide, got shape \(2, 96, 0\)"),
        ({"q": captured(0)[0][..., :0], "k": captured(0)[1][..., :0]}, ValueError, "q and k must be at least one wide"),
        ({"q": captured(0)[0][:0], "k": captured(0)[1][:0], "v": None}, ValueError, "there must be at least one head"),
        ({"q": captured(0)[0][:0], "k": captured(0)[1][:1], "v": None}, ValueError, "there must be at least one head"),
        ({"v": np.full_like(captured(0)[2], np.inf)}, ValueError, "v must be finite"),
        (
            {"k": captured(0)[1].astype(float) * 1e40},
            ValueError,
            "k must fit float32, in which features are learned, got a number of",
        ),
        (
            {"q": [captured(0)[0]] * 2, "k": [captured(0)[1], captured(0)[1][:1]], "v": None},
            ValueError,
            "must agree but for their length",
        ),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, dict) else "",
)
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    q, k, v = captured(0)
    with pytest.raises(error, match=message):
        learned(**{"q": q, "k": k, "v": v, **change})


def test_learned_features_have_no_standard_errors() -> None:
    q, k, v = 1.5 * np.random.default_rng(0).standard_normal((3, 2, 128, DIM))
    found = rfk.calibrate(q, k, v, count=16, steps=40, progress=False, rng=0)
    assert found.features.blocks is None
    with pytest.raises(ValueError, match="learned ones"):
        rfk.attention(q, k, v, found.features, full=True, error=True)
    with pytest.raises(TypeError, match="progress must be a bool or a callable, got NoneType"):
        rfk.calibrate(q, k, v, count=16, steps=40, progress=None, rng=0)  # type: ignore[arg-type]
