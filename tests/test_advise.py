"""Advice: errors are those of the call to paste, predictions hold, and the verdict is the truth on known heads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import rfkernels as rfk
from rfkernels._timing import fastest
from rfkernels.advise import Report, Row, advise, decide
from rfkernels.advise import _estimators as estimators
from rfkernels.advise import _measure as measuring
from rfkernels.advise import _predict as predicting
from rfkernels.advise import _problem as problems
from rfkernels.cli import commands
from rfkernels.cli.measure import load_heads

FAR = 1 << 22
"""A length at which exact attention is slower than anything else, on any machine."""


def arrays(size: float = 0.6, length: int = 96, heads: tuple[int, ...] = (2,), dim: int = 8, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, *heads, length, dim))
    return size * q, size * k, v + 0.5


def naive(q: Any, k: Any, v: Any, causal: bool = False, scale: float | None = None) -> Any:
    logits = (q.shape[-1] ** -0.5 if scale is None else scale) * q @ k.swapaxes(-1, -2)
    queries, keys = logits.shape[-2:]
    seen = np.arange(keys) <= np.arange(queries)[:, None] + keys - queries if causal else np.ones((queries, keys), bool)
    weights = np.exp(logits - logits.max(-1, keepdims=True)) * seen
    return weights @ v / weights.sum(-1, keepdims=True)


def norm_ratio(out: Any, exact: Any) -> Any:
    """Relative errors of heads over the second half of the queries, which are those measured."""
    half = exact.shape[-2] // 2
    out, exact = (np.broadcast_to(x, exact.shape)[..., half:, :] for x in (out, exact))
    return (np.linalg.norm(out - exact, axis=(-2, -1)) / np.linalg.norm(exact, axis=(-2, -1))).ravel()


def pasted(call: str, q: Any, k: Any, v: Any) -> Any:
    scope = {"rfk": rfk, "np": np, "q": q, "k": k, "v": v}
    exec(call, scope)
    return scope["out"]


@pytest.fixture
def equal_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every call take a second, so that of the estimators within tolerance the first is named."""
    monkeypatch.setattr(measuring, "fastest", lambda call, *_, **__: (call(), 1.0))


# What is measured.


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.2])
def test_every_call_to_paste_has_the_error_stated(causal: bool, scale: float | None) -> None:
    q, k, v = arrays()
    report = advise(q, k, v, causal=causal, scale=scale, counts=(16, 64), windows=(None, 12), rng=3)
    assert len(report.rows) == 1 + 1 + 4 * 2 * 2 + 2 * 1 * 2
    exact = naive(q, k, v, causal, scale)
    for row in (report.exact, *report.rows):
        found = norm_ratio(pasted(row.call, q, k, v), exact)
        fitted_to_all = not causal and row.estimator.startswith("fit")
        np.testing.assert_allclose(row.errors, found, rtol=1 if fitted_to_all else 1e-9, atol=1e-12, err_msg=row.label)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", ["affine", "tilted"])
def test_errors_are_those_of_queries_that_were_not_fitted_to(causal: bool, method: str) -> None:
    q, k, v = arrays()
    row = advise(q, k, v, causal=causal, counts=(32,), windows=(5,)).find(f"fit, {method}", 32, 5)
    features = rfk.fit(q[:, :48], k[:, :48], 32, method=method, rng=0)
    out = rfk.attention(q, k, v, features, causal=causal, window=5)
    np.testing.assert_allclose(row.errors, norm_ratio(out, naive(q, k, v, causal)), rtol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
def test_long_samples_are_thinned_in_the_call_as_well(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "_FITTED", 20)
    q, k, v = arrays(length=160)
    row = advise(q[:, :90], k, v, causal=causal, counts=(32,), windows=(None,)).find("fit, tilted", 32)
    assert f"rfk.fit(q[..., :{'45' if causal else ''}:3, :], k[..., :{'80' if causal else ''}:4, :], 32" in row.call
    features = rfk.fit(q[:, :45:3], k[:, :80:4], 32, method="tilted", rng=0)
    exact = naive(q[:, :90], k, v, causal)
    np.testing.assert_allclose(row.errors, norm_ratio(rfk.attention(q[:, :90], k, v, features, causal=causal), exact))
    np.testing.assert_allclose(
        row.errors, norm_ratio(pasted(row.call, q[:, :90], k, v), exact), rtol=1e-7 if causal else 1
    )


def test_a_sample_of_queries_sees_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "_PAIRS", 1000)  # blocks of a few queries
    q, k, v = arrays(length=200)
    for causal in (False, True):
        problem = problems.pose(q, k, v, causal=causal, length=None, scale=None, sample=30, rng=0)
        rows = problems.chosen_rows(problem, 30)
        assert len(set(rows)) == 30
        assert min(rows) >= 100
        np.testing.assert_allclose(problems.exact_rows(problem, rows), naive(q, k, v, causal)[:, rows], rtol=1e-12)
    few, everything = (advise(q, k, v, sample=sample, counts=(8,), windows=(None,)) for sample in (30, 256))
    assert (few.sample, everything.sample) == (30, 100)
    np.testing.assert_allclose(few.rows[0].errors, everything.rows[0].errors, rtol=0.3)
    assert few.rows[0].errors != everything.rows[0].errors


@pytest.mark.parametrize("causal", [False, True])
def test_other_queries_than_keys(causal: bool) -> None:
    q, k, v = arrays()
    report = advise(q[:, :40], k, v, causal=causal, counts=(16,), windows=(None, 6))
    exact = naive(q[:, :40], k, v, causal)
    for row in report.rows:
        if not row.estimator.startswith("fit"):
            np.testing.assert_allclose(row.errors, norm_ratio(pasted(row.call, q[:, :40], k, v), exact), rtol=1e-9)


def test_without_values_errors_are_those_of_the_weights() -> None:
    q, k, _ = arrays(size=1.0, length=160)
    report = advise(q, k, counts=(32,), windows=(None, 20))
    assert report.probes
    assert "the weights themselves" in str(report)
    identity = np.broadcast_to(np.eye(160), (2, 160, 160))
    exact = naive(q, k, identity)
    for row in report.rows:
        if not row.estimator.startswith("fit"):
            found = norm_ratio(pasted(row.call, q, k, identity), exact)
            np.testing.assert_allclose(row.errors, found, rtol=0.15, err_msg=row.label)


def test_heads_are_batch_axes_and_queries_may_be_grouped() -> None:
    q, k, v = arrays(heads=(2, 3))
    k, v = k[:, :1], v[:, :1]
    report = advise(q, k, v, counts=(16,), windows=(None, 6), causal=True)
    assert report.heads == ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))
    exact = naive(q, k, v, causal=True)
    for row in report.rows:
        np.testing.assert_allclose(row.errors, norm_ratio(pasted(row.call, q, k, v), exact), rtol=1e-9)
    alone = advise(q[0, 0], k[0, 0], v[0, 0], counts=(16,))
    assert alone.heads == ((),)
    assert "the head: " in str(alone)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes_and_arrays_of_jax(dtype: str) -> None:
    jnp = pytest.importorskip("jax.numpy")
    q, k, v = arrays()
    given = [jnp.asarray(x, dtype) for x in (q, k, v)]
    report = advise(*given, counts=(16,), windows=(None, 8), causal=True)
    double = advise(*(np.asarray(x, np.float64) for x in given), counts=(16,), windows=(None, 8), causal=True)
    for row, other in zip(report.rows, double.rows, strict=True):
        np.testing.assert_allclose(row.errors, other.errors, rtol=0.05, err_msg=row.label)


@pytest.mark.parametrize("causal", [False, True])
def test_a_plain_average_of_many_values_in_half_precision(causal: bool) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    q, k, v = (x.astype(bfloat16) for x in arrays(length=3000))
    v = v + bfloat16(1)
    problem = problems.pose(q, k, v, causal=causal, length=None, scale=None, sample=1, rng=0)
    average, *_ = estimators.ESTIMATORS
    expected = v.astype(float).mean(-2)
    for out in (average.attend(problem, None, None), pasted(average.lines(problem, None, None), q, k, v)):
        np.testing.assert_allclose(np.asarray(out, float)[..., -1, :], expected, rtol=1e-5)


def test_outputs_that_are_not_finite_have_an_infinite_error() -> None:
    q, k, v = (x.astype(np.float32) for x in arrays())
    v[0] = np.finfo(np.float32).max
    report = advise(q, k, v, counts=(16,), windows=(None,))
    assert report.find("plain average").errors[0] == np.inf
    assert np.isfinite(report.find("plain average").errors[1])
    assert not any(np.isnan(row.errors).any() for row in report.rows)
    v = v[..., :1]
    v[:, 1::2] *= -1
    v[1] = v[0]
    problem = problems.pose(q, k, v, causal=False, length=None, scale=None, sample=1, rng=0)
    assert np.isnan(estimators.ESTIMATORS[0].attend(problem, None, None)).any()  # and nobody is warned


def test_windows_that_reach_all_keys_are_left_out() -> None:
    q, k, v = arrays(length=32)
    labels = [row.label for row in advise(q, k, v, counts=(16,), windows=(None, 31, 32, 128)).rows]
    assert "window alone, window 31" in labels
    assert not any("32" in label or "128" in label for label in labels)


def test_output_of_zeros_has_no_relative_error() -> None:
    q, k, _ = arrays()
    report = advise(q, k, np.zeros_like(k), counts=(16,))
    assert {error for row in report.rows for error in row.errors} == {0.0}
    assert report.verdict.kind == "average"


def test_the_same_seed_gives_the_same_errors_and_another_seed_others() -> None:
    q, k, v = arrays()
    one, again, other = (advise(q, k, v, counts=(16,), rng=seed) for seed in (1, 1, 2))
    assert [row.errors for row in one.rows] == [row.errors for row in again.rows]
    assert one.find("draw, positive", 16).errors != other.find("draw, positive", 16).errors
    assert "rng=2" in other.find("draw, positive", 16).call


@pytest.mark.usefixtures("equal_times")
def test_the_verdict_is_put_to_other_draws() -> None:
    q, k, v = arrays()
    report = advise(q, k, v, causal=True, counts=(64,), windows=(None,), length=FAR, tolerance=0.07)
    assert (report.verdict.kind, report.verdict.label) == ("estimate", "fit, affine, 64")
    found = [
        advise(q, k, v, causal=True, counts=(64,), windows=(None,), rng=seed).find("fit, affine", 64).worst
        for seed in (1, 2)
    ]
    assert "With other seeds it is " in str(report)
    assert len(report.redraws) == 2
    np.testing.assert_allclose(report.redraws, found, rtol=1e-9)
    assert "take a larger count" not in str(report)
    assert "it is 0.010 and 0.071, more than is accepted" in str(replace(report, redraws=(0.01, 0.071)))
    tiny = advise(q / 20, k / 20, v, counts=(64,))
    assert (tiny.verdict.kind, tiny.redraws) == ("average", ())


# Times and memory.


@pytest.mark.usefixtures("equal_times")
def test_times_and_memory_are_those_at_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    exact = measuring.exact

    def noted(problem: Any, *_: Any) -> Any:
        sizes.append(problem.sizes[1])
        return exact(problem)

    monkeypatch.setattr(measuring, "exact", noted)
    q, k, v = (x.astype(np.float32) for x in arrays())
    given: Any = {"counts": (16,), "windows": (None, 12)}
    report = advise(q, k, v, length=960, **given)
    assert report.length == 960
    assert {row.seconds for row in report.rows} == {10.0}
    assert report.exact.seconds == 1.0
    assert set(sizes) == {960}
    assert advise(q, k, v, length=20480, **given).exact.seconds == 100.0
    assert advise(q, k, v, length=20480, causal=True, **given).exact.seconds == 100.0
    grown = advise(q[:, :32], k, v, length=10240, causal=True, **given).exact.seconds
    assert grown == pytest.approx(5 * 15 * (2 - 1 / 3))  # pairs seen: 10240 of 30720 keys, less a triangle
    features = rfk.draw("positive", 8, 16, batch=(2,), rng=0)
    state = rfk.empty_state(features, 8, (2,), np.float32)
    assert report.find("draw, positive", 16).memory == sum(x.nbytes for x in state)
    near = 2 * 12 * (8 + 8) * 4
    assert report.find("draw, positive", 16, 12).memory == sum(x.nbytes for x in state) + near
    assert report.find("window alone", None, 12).memory == near
    assert report.exact.memory == 2 * 960 * (8 + 8) * 4


@pytest.mark.parametrize(("window", "dtype"), [(None, "float32"), (12, "float16"), (33, "float64")])
def test_memory_with_heavy_keys_is_that_of_the_state_of_a_causal_pass(window: int | None, dtype: str) -> None:
    q, k, v = (x.astype(dtype) for x in arrays())
    report = advise(q, k, v[..., :5], causal=True, counts=(16,), windows=(window,))
    for found in report.find("groups, heavy", 8, window), report.find("fit, tilted, heavy", 16, window):
        scope: dict[str, Any] = {"rfk": rfk, "q": q, "k": k, "v": v[..., :5]}
        exec(found.call.replace("heavy=16", "heavy=16, full=True"), scope)
        state = scope["out"].state
        held = [*state.sums, state.keys, state.values, state.heavy_keys, state.heavy_values, state.mass, state.within]
        assert found.memory == sum(x.nbytes for x in held if x is not None)


def test_groups_of_few_keys_are_left_out() -> None:
    q, k, v = arrays(length=96)
    labels = [row.label for row in advise(q, k, v, counts=(48, 50), windows=(None,)).rows]
    assert [label for label in labels if label.startswith("groups")] == ["groups, 24", "groups, heavy, 24"]


def test_the_time_is_the_least_of_a_few() -> None:
    calls = []
    assert fastest(lambda: calls.append(0), 3)[1] < 0.1
    assert len(calls) == 3
    fastest(lambda: calls.append(0), 3, enough=0.0)
    assert len(calls) == 4  # once, however long it takes


def test_progress_goes_from_nothing_to_all() -> None:
    seen: list[tuple[str, int, int]] = []
    advise(*arrays(), counts=(16, 32), windows=(None,), progress=lambda *step: seen.append(step))
    names, done, totals = zip(*seen, strict=True)
    assert done == tuple(range(len(seen)))
    assert set(totals) == {len(seen) - 1}
    assert {"exact attention", "plain average", "fit, tilted, 32", "done"} <= set(names)


# Predictions.


@pytest.mark.parametrize("causal", [False, True])
def test_predictions_of_drawn_features_are_those_of_the_library(causal: bool) -> None:
    q, k, v = arrays(length=48)
    problem = problems.pose(q, k, v, causal=causal, length=None, scale=None, sample=9, rng=0)
    rows = predicting.predicted_rows(problem, problems.chosen_rows(problem, 9))
    found = predicting.predict(problem, rows, None, (None, 10_000))
    row_errors = rfk.variance.attention_error(
        "positive", q, k, v, count=1, sampler="iid", causal=causal, relative=False
    )
    size = np.linalg.norm(naive(q, k, v, causal)[:, rows], axis=(-2, -1))
    np.testing.assert_allclose(found[0], np.linalg.norm(row_errors[:, rows], axis=-1) / size, rtol=1e-6)
    np.testing.assert_array_equal(found[1], 0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", ["affine", "tilted"])
def test_predictions_are_the_errors_of_many_draws(causal: bool, method: str) -> None:
    q, k, v = arrays(length=64, heads=(1,), size=0.8)
    report = advise(q, k, v, causal=causal, counts=(1024,), windows=(None, 12), sample=4)
    problem = problems.pose(q, k, v, causal=causal, length=None, scale=None, sample=4, rng=0)
    rows = problems.chosen_rows(problem, 4)
    exact = naive(q, k, v, causal)[:, rows]
    for window in (None, 12):
        squares = []
        for seed in range(60):
            features = rfk.fit(
                q[:, :32], k[:, :32], 1024, method=method, sampler=rfk.samplers.antithetic("iid"), rng=seed
            )
            out = rfk.attention(q, k, v, features, causal=causal, window=window)
            squares.append(np.sum((out[:, rows] - exact) ** 2))
        found = np.sqrt(np.mean(squares)) / np.linalg.norm(exact)
        predicted = report.find(f"fit, {method}", 1024, window).predicted
        assert predicted is not None
        np.testing.assert_allclose(predicted, [found], rtol=0.2)
        assert predicted[0] < predicting.IN_RANGE


def test_predictions_fall_with_the_root_of_the_count_and_stop_where_they_say_little() -> None:
    q, k, v = arrays(size=3.0)
    report = advise(q, k, v, counts=(16, 64))
    for name in ("draw, positive", "fit, affine", "fit, tilted"):
        few, many = (report.find(name, count).predicted for count in (16, 64))
        assert few is not None
        assert many is not None
        np.testing.assert_allclose(few, 2 * np.array(many), rtol=1e-12)
        assert min(few) > predicting.IN_RANGE
    assert str(report).count("> 0.3") == 2 * 3 * 2
    assert report.rows[0].predicted is None


def test_predictions_survive_what_overflows() -> None:
    q, k, v = arrays(size=40.0)
    with np.errstate(all="raise", under="ignore"):
        report = advise(q, k, v, counts=(16,), windows=(None, 8))
    predicted = report.find("draw, positive", 16).predicted
    assert predicted is not None
    assert min(predicted) > 1e6


def test_too_many_keys_are_not_predicted() -> None:
    q, k, v = arrays(length=1100, heads=(1,), dim=2)
    assert {row.predicted for row in advise(q, k, v, counts=(16,), windows=(None,)).rows} == {None}


# Verdicts.


def row(name: str, seconds: float, error: float = 1.0, window: int | None = None) -> Row:
    return Row(name, None, window, (error,), None, seconds, 0.0, 0, f"out = {name!r}")


EXACT, AVERAGE = row("exact attention", 1.0, 0.0), "plain average"


@pytest.mark.parametrize(
    ("average", "fast", "slow", "kind", "label", "said"),
    [
        (0.5, (0.09, 0.2), (0.05, 0.5), "estimate", "fast", "its error is 0.090, and it takes 200 ms for all heads"),
        (0.5, (0.11, 0.2), (0.05, 0.5), "estimate", "slow", "500 ms for all heads against 1 s"),
        (0.5, (0.11, 0.2), (0.05, 2.0), "exact", "exact attention", "within 0.1 is slow, and takes 2 s"),
        (0.5, (0.40, 0.2), (0.45, 0.5), "exact", "exact attention", "the least error is 0.400 (fast)"),
        (0.3, (0.40, 0.2), (0.29, 0.5), "exact", "exact attention", "hardly better than a plain average of the values"),
        (0.1, (0.05, 0.2), (0.02, 0.5), "average", "plain average", "the least is 0.020 (slow)"),
        (0.1, (0.20, 0.2), (0.15, 0.5), "average", "plain average", "its error is 0.100"),
    ],
)
def test_what_is_decided(average: float, fast: Any, slow: Any, kind: str, label: str, said: str) -> None:
    rows = [row(AVERAGE, 0.01), row("fast", fast[1]), row("slow", slow[1])]
    verdict = decide(rows, EXACT, [average, fast[0], slow[0]], 0.1)
    assert (verdict.kind, verdict.label, verdict.call) == (kind, label, f"out = {label!r}")
    assert said in verdict.reason
    assert ("hardly better" in verdict.reason) == ("hardly better" in said)


def test_a_plain_average_does_as_well_where_norms_are_tiny() -> None:
    q, k, v = arrays(size=0.05)
    report = advise(q, k, v + 1, length=FAR)
    assert {verdict.kind for verdict in (report.verdict, *report.verdicts)} == {"average"}
    assert "a plain average of the values does as well" in str(report)
    np.testing.assert_allclose(norm_ratio(pasted(report.verdict.call, q, k, v + 1), naive(q, k, v + 1)), 0, atol=0.1)


@pytest.mark.parametrize("causal", [False, pytest.param(True, marks=pytest.mark.long)])
def test_exact_attention_where_nothing_works(causal: bool) -> None:
    q, k, v = arrays(size=3.0, length=512, dim=32)
    report = advise(q, k, v - 0.5, causal=causal, length=FAR, counts=(64, 256), windows=(None, 32))
    assert {verdict.kind for verdict in (report.verdict, *report.verdicts)} == {"exact"}
    assert "use exact attention" in str(report)
    assert min(row.worst for row in report.rows) > 0.5
    np.testing.assert_allclose(pasted(report.verdict.call, q, k, v), naive(q, k, v, causal), rtol=1e-9)


@pytest.mark.usefixtures("equal_times")
@pytest.mark.parametrize("causal", [False, True])
def test_fitted_features_where_centres_are_far(causal: bool) -> None:
    rng = np.random.default_rng(0)
    centre, length = rng.standard_normal((2, 16)), 256
    q, k, v = rng.standard_normal((3, 2, length, 16))
    q, k = 0.9 * q + 2 * centre[0], 0.9 * k + 2 * centre[1]
    v = v + 2 * k  # an output that queries decide
    report = advise(q, k, v - v.mean(-2, keepdims=True), causal=causal, length=FAR, windows=(None,), tolerance=0.2)
    assert report.verdict.kind == "estimate"
    assert report.verdict.label.startswith("fit, ")
    assert report.find("plain average").worst > 0.4
    assert report.find("draw, positive", 1024).worst > 0.4
    given = q, k, v - v.mean(-2, keepdims=True)
    found = norm_ratio(pasted(report.verdict.call, *given), naive(*given, causal))
    assert max(found) < 1.25 * report.verdict.error
    assert report.verdict.error <= 0.2


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Report]:
    heads = load_heads(4)
    given = tuple(x.astype(np.float64) for x in (heads.q, heads.k, heads.v))
    return given, advise(*given, length=FAR, counts=(256,), windows=(None, 128), tolerance=0.3)


def test_shipped_heads_need_a_window_and_a_fit(shipped: tuple[Any, Report]) -> None:
    given, report = shipped
    assert report.verdict.kind == "estimate"
    named = next(row for row in report.rows if row.label == report.verdict.label)
    assert named.estimator.split(",")[0] in ("fit", "groups")
    assert named.window == 128 or named.estimator.startswith("groups")
    found = norm_ratio(pasted(report.verdict.call, *given), naive(*given))
    np.testing.assert_allclose(max(found), report.verdict.error, rtol=0.25)
    assert report.find("draw, positive", 256).median > 0.8 * report.find("plain average").median
    assert advise(*given, length=FAR, counts=(64,), windows=(None,), tolerance=0.1).verdict.kind == "exact"


def test_each_head_has_a_verdict_of_its_own(shipped: tuple[Any, Report]) -> None:
    _, report = shipped
    assert len(report.verdicts) == len(report.heads) == 4
    for i, verdict in enumerate(report.verdicts):
        within = [r for r in report.rows if r.errors[i] <= 0.3]
        assert verdict.label == min(within, key=lambda r: r.seconds).label
        assert verdict.error == report.rows[[r.label for r in report.rows].index(verdict.label)].errors[i]
    assert report.verdict.error == max(report.rows[[r.label for r in report.rows].index(report.verdict.label)].errors)


# What is said.


def test_the_text_has_all_numbers(shipped: tuple[Any, Report]) -> None:
    _, report = shipped
    text = str(report)
    for found in report.rows:
        line = next(s for s in text.splitlines() if s.split("  ")[0] == found.estimator and _cells(found) in s)
        assert f"{found.median:.3f}  {found.worst:.3f}" in line
    assert report.verdict.call.splitlines()[0] in text
    assert "at 4,194,304 they may be larger" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 160


def _cells(found: Row) -> str:
    return f"{found.median:.3f}  {found.worst:.3f}"


def test_json_is_strict_and_complete() -> None:
    q, k, v = (np.ones((2, 96, 8)) for _ in range(3))
    q, k, v = 30 * q, 30 * k, 0 * v
    k[:, 0] *= -1
    v[:, 0] = 1  # a value whose weight vanishes
    report = advise(q, k, v, counts=(16,), windows=(None, 8))
    assert not np.isfinite(report.rows[0].worst)
    found = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(name))
    assert set(found) == set(Report.__dataclass_fields__)
    assert len(found["rows"]) == len(report.rows)
    assert None in found["rows"][0]["errors"]
    assert found["verdict"]["call"] == report.verdict.call
    with pytest.raises(KeyError, match="no row 'draw, positive' with count 17"):
        report.find("draw, positive", 17)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"counts": (63,)}, ValueError, "counts must be positive and even, for antithetic pairs of rows, got 63"),
        ({"counts": (True,)}, ValueError, "counts must be"),
        ({"counts": 64}, TypeError, "counts must be a tuple, got int"),
        ({"windows": 64}, TypeError, "windows must be a tuple, got int"),
        ({"counts": ()}, ValueError, r"counts must have at least one entry, got \(\)"),
        ({"windows": []}, ValueError, r"windows must have at least one entry, got \[\]"),
        ({"windows": (0,)}, ValueError, "window must be a positive integer"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be a positive finite number, got 0.0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be"),
        ({"length": 0}, ValueError, "length must be an integer of at least 1, got 0"),
        ({"sample": 2.5}, ValueError, "sample must be an integer of at least 1, got 2.5"),
        ({"rng": -1}, ValueError, "rng must be an integer of at least 0, got -1"),
        ({"rng": None}, ValueError, "rng must be an integer"),
        ({"scale": -1.0}, ValueError, "scale must be a positive finite number"),
        ({"q": np.ones((2, 1, 8))}, ValueError, "at least two queries and two keys"),
        ({"q": np.ones((0, 96, 8)), "k": np.ones((96, 8)), "v": np.ones((96, 8))}, ValueError, "at least one head"),
        ({"v": np.ones((2, 96, 0))}, ValueError, r"v must be at least one wide, got shape \(2, 96, 0\)"),
        ({"q": np.ones((2, 96, 0)), "k": np.ones((2, 96, 0))}, ValueError, "q must be at least one wide"),
        ({"q": np.ones((2, 97, 8)), "causal": True}, ValueError, "causal=True needs a key for every query"),
        ({"q": np.ones((2, 96, 7))}, ValueError, "q and k must agree in dim"),
        ({"v": np.full((2, 96, 8), np.nan)}, ValueError, r"v must be finite, but v\[0, 0, 0\] is nan"),
        ({"v": np.ones((2, 95, 8))}, ValueError, "k and v must agree in length"),
        ({"k": [[1.0]]}, TypeError, "k must be a numpy.ndarray or jax.Array, got list"),
        ({"causal": "no"}, TypeError, "causal must be True or False, got 'no'"),
    ],
)
def test_what_is_refused(change: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        advise(**dict(zip("qkv", arrays(), strict=True)) | change)


def test_importing_it_is_light() -> None:
    code = "import sys, rfkernels.advise; print({'jax', 'numba', 'scipy', 'matplotlib', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "set()\n"


# The command.


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Result]:
    given = dict(zip("qkv", (x.astype(np.float32) for x in arrays()), strict=True))
    for name, array in given.items():
        np.save(tmp_path / f"{name}.npy", array)

    def invoke(*more: Any, names: str = "qkv") -> Result:
        files = [str(tmp_path / f"{name}.npy") for name in names]
        options = ["--features", "16", "--window", "8", *(str(x) for x in more)]
        return CliRunner().invoke(commands, ["advise", *files, *options], prog_name="rfkernels")

    return invoke


def test_command_helps() -> None:
    result = CliRunner().invoke(commands, ["advise", "-h"], prog_name="rfkernels")
    assert result.exit_code == 0
    assert "Example: rfkernels advise q.npy k.npy v.npy" in result.stdout


def test_command_prints_the_text(saved: Callable[..., Result]) -> None:
    result = saved("--causal", "--length", 5000, "--tolerance", 0.4)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "2 heads, causal: 96 queries, 96 keys" in result.stdout
    assert "Verdict, for a tolerance of 0.4" in result.stdout
    assert "at 5,000" in result.stdout


def test_command_prints_json_and_writes_a_picture_with_a_row_for_each_head(
    saved: Callable[..., Result], tmp_path: Path
) -> None:
    outputs = ["--json", "--picture", tmp_path / "a.png"]
    written = saved(*outputs)
    assert written.exit_code == 0
    q, k, v = (np.load(tmp_path / f"{name}.npy") for name in "qkv")
    report = advise(q, k, v, counts=(16,), windows=(None, 8))
    found = json.loads(written.stdout)
    assert [r["errors"] for r in found["rows"]] == [list(r.errors) for r in report.rows]
    low = (tmp_path / "a.png").read_bytes()
    assert low.startswith(b"\x89PNG\r\n\x1a\n")
    for name in "qkv":
        np.save(tmp_path / f"{name}.npy", np.tile(np.load(tmp_path / f"{name}.npy"), (10, 1, 1)))
    refused = saved(*outputs)
    assert refused.exit_code == 2
    assert "--picture" in refused.stderr
    assert "pass --force to replace it" in " ".join(refused.stderr.split())
    assert saved(*outputs, "--force").exit_code == 0
    high = (tmp_path / "a.png").read_bytes()
    heights = [int.from_bytes(content[20:24], "big") for content in (low, high)]
    assert heights[1] - heights[0] > 18 * 20


def test_command_prints_json_alone(saved: Callable[..., Result]) -> None:
    result = saved("--json", "--seed", 5, names="qk")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["probes"] is True
    assert "rng=5" in next(r["call"] for r in found["rows"] if r["estimator"] == "fit, tilted")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--tolerance", -1), "--tolerance must be a positive finite number"),
        (("--features", 3), "--features must be even, for antithetic pairs of rows, got 3"),
        (("--force",), "--force is for --picture, which is not given"),
        (("--length", 0), "--length"),
        (("--picture", "a.txt"), "--picture a.txt: expected a name that ends in .png, got '.txt'"),
        (("--seed", "1e3"), "'1e3' is not a valid integer."),
        (("--picture", "nowhere/a.png"), "--picture nowhere/a.png: there is no directory nowhere"),
    ],
)
def test_command_refuses_what_it_cannot_use(saved: Callable[..., Result], more: Any, said: str) -> None:
    result = saved(*more)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_command_names_the_files_that_do_not_fit(saved: Callable[..., Result], tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", np.ones((2, 96, 7), np.float32))
    result = saved()
    assert result.exit_code == 2
    message = " ".join(result.stderr.split())
    assert "q and k must agree in dim" in message
    assert f"k = {tmp_path / 'k.npy'}: float32 (2, 96, 7)" in message
    (tmp_path / "k.npy").unlink()
    assert "no such file" in " ".join(saved().stderr.split())


def test_numbers_of_numpy_are_numbers() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 64, 8))
    report = advise(q, k, v, counts=(np.int64(8),), windows=(np.int64(16),), tolerance=np.float32(0.1))
    assert json.loads(report.to_json())["tolerance"] == pytest.approx(0.1)


@pytest.mark.parametrize("unit", [1e-170, 1e160])
def test_the_unit_of_values_does_not_matter(unit: float) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 32, 4))
    options: dict[str, Any] = {"counts": (16,), "windows": (None,)}
    plain, found = (advise(q, k, v * u, **options) for u in (1, unit))
    for one, other in zip(plain.rows, found.rows, strict=True):
        np.testing.assert_allclose(other.errors, one.errors, rtol=1e-9)
        if one.predicted is not None:
            np.testing.assert_allclose(other.predicted, one.predicted, rtol=1e-9)
