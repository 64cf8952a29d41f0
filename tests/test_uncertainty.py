"""Standard errors: which rows are independent, what groups of them say together, and whether intervals hold."""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from typing import Any

import numpy as np
import oracle
import pytest

import rfkernels as rfk
from rfkernels import backends, partials, testing, uncertainty
from rfkernels._arrays import namespace
from rfkernels.exact import exact_block
from rfkernels.features import Blocks
from rfkernels.uncertainty import UntrustedErrorWarning, _check, _groups, _jackknife, half_width, trusted

attend = partial(uncertainty.attend, rfk.attention)


@pytest.fixture(scope="module")
def heads() -> tuple[Any, ...]:
    from importlib.resources import files

    with np.load(str(files("rfkernels") / "data" / "minilm_heads.npz")) as data:
        return tuple(data[name].astype(np.float32) for name in "qkv")


def small(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def quiet(*args: Any, **options: Any) -> Any:
    """`attend` where it cannot be checked or need not be right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedErrorWarning)
        return attend(*args, **options)


# Which rows are drawn together


@pytest.mark.parametrize(
    ("sampler", "blocks"),
    [
        ("iid", Blocks(1)),
        ("orthogonal", Blocks(5)),
        ("regularized", Blocks(5)),
        ("simplex", Blocks(5)),
        ("hadamard", Blocks(8)),
        ("paired", Blocks(5)),
        ("antithetic", Blocks(5, 2)),
        (rfk.samplers.antithetic("iid"), Blocks(1, 2)),
        ("sobol", None),
        ("stratified", None),
        (lambda normal, count, dim: normal((count, dim)), None),
        (
            rfk.samplers.Sampler("own", lambda normal, count, dim: normal((count, dim)), coupling="independent"),
            Blocks(1),
        ),
    ],
)
def test_draw_says_which_rows_are_drawn_together(sampler: Any, blocks: Any) -> None:
    assert rfk.draw("positive", 5, 40, sampler=sampler, rng=0).blocks == blocks


def test_fit_and_jax_keep_the_blocks() -> None:
    jax = pytest.importorskip("jax")
    q, k = small(2, 30, 4)
    features = rfk.fit(q, k, 64, rng=0)
    assert features.blocks == Blocks(4, 2)
    assert jax.tree.map(lambda x: x, features).blocks == Blocks(4, 2)
    assert jax.jit(lambda f: f)(features).blocks == Blocks(4, 2)


def test_blocks_that_are_none() -> None:
    with pytest.raises(TypeError, match="blocks must be a Blocks or None, got 'zz'"):
        dataclasses.replace(rfk.draw("relu", 3, 4, rng=0), blocks="zz")


def test_other_rows_are_of_no_known_blocks() -> None:
    features = rfk.draw("positive", 3, 8, rng=0)
    assert testing.binding.with_rows(features, small(8, 3)).blocks is None


@pytest.mark.parametrize(("dim", "count"), [(4, 64), (4, 72), (8, 64), (5, 104), (16, 48), (1, 24)])
@pytest.mark.parametrize("sampler", ["iid", "orthogonal", "antithetic"])
def test_groups_are_equal_parts_and_whole_blocks_where_there_are_eight(dim: int, count: int, sampler: str) -> None:
    features = rfk.draw("positive", dim, count, sampler=sampler, rng=0)
    index = _groups.partition(features)
    assert sorted(index.ravel()) == list(range(count))
    assert 8 <= len(index) <= 32
    assert features.blocks is not None
    size, copies = features.blocks
    block = np.arange(count) % (count // copies) // size
    shared = max(len({g for g, rows in enumerate(index) if b in block[rows]}) for b in range(block.max() + 1))
    units, rest = divmod(count // copies, size)
    if not rest and any(units % groups == 0 for groups in range(8, 33)):
        assert shared == 1
    for rows in index:  # w and −w are never parted
        own = features.projection[rows]
        assert copies == 1 or all(np.any(np.all(own == -w, -1)) for w in own)


def test_rows_that_depend_on_each_other_are_refused() -> None:
    x = small(9, 4)
    for features in (
        rfk.draw("positive", 4, 64, sampler="sobol", rng=0),
        dataclasses.replace(rfk.draw("positive", 4, 64, rng=0), blocks=None),
    ):
        with pytest.raises(ValueError, match=r"rows that are drawn independently"):
            attend(x, x, x, features)
    with pytest.raises(ValueError, match=r"8 to 32 groups of equally many rows: features have 37"):
        attend(x, x, x, rfk.draw("positive", 4, 37, rng=0))
    with pytest.raises(ValueError, match=r"blocks=.* do not divide"):
        attend(x, x, x, dataclasses.replace(rfk.draw("positive", 4, 33, rng=0), blocks=Blocks(1, 2)))


# The estimate


CASES = {
    "bidirectional": {},
    "causal": {"causal": True},
    "window": {"window": 5},
    "causal window": {"causal": True, "window": 5},
    "mask": {"mask": np.arange(40) % 3 > 0},
    "segments": {"causal": True, "segment_ids": np.arange(40) // 13},
}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", ["positive", "hyperbolic", "trigonometric"])
def test_groups_together_are_the_whole(name: str, options: dict[str, Any], backend: str) -> None:
    compare(name, small(3, 2, 40, 4, dtype=np.float64), options, backend, 1e-10)


def test_groups_together_are_the_whole_under_jax() -> None:
    jnp = pytest.importorskip("jax").numpy
    options = {"causal": True, "segment_ids": jnp.arange(40) // 13, "mask": jnp.arange(40) % 3 > 0}
    compare("positive", jnp.asarray(small(3, 2, 40, 4)), options, "jax", 1e-5)


def compare(name: str, qkv: Any, options: dict[str, Any], backend: str, tolerance: float) -> None:
    q, k, v = qkv
    k, v = k[:1], v[..., :3]
    features = rfk.draw(name, 4, 64, batch=(2, 1), rng=0)
    want = rfk.attention(q, k, v, features, full=True, backend=backend, **options)
    got = quiet(q, k, v, features, backend=backend, check=0, **options)
    for name in ("output", "log_normalizer", "sign"):
        a, b = (np.asarray(getattr(result, name)) for result in (got, want))
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    assert got.error.output.shape == want.output.shape
    assert got.error.log_normalizer.shape == got.error.effective.shape == want.log_normalizer.shape
    assert (got.state is None) == (want.state is None)
    if got.state is not None:
        own, other = (s.state if options.get("window") else s for s in (got.state, want.state))
        for a, b in zip(own, other, strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [None, 6])
def test_a_pass_is_resumed(window: int | None) -> None:
    q, k, v = small(3, 2, 50, 4, dtype=np.float64)
    features = rfk.draw("hyperbolic", 4, 64, rng=0)
    options = {"causal": True, "window": window, "check": 0}
    whole = quiet(q, k, v, features, **options)
    state, parts = None, []
    for part in (slice(0, 17), slice(17, 18), slice(18, 50)):
        done = quiet(q[:, part], k[:, part], v[:, part], features, state=state, **options)
        state = done.state
        parts.append(done)
    np.testing.assert_allclose(np.concatenate([p.output for p in parts], -2), whole.output, atol=1e-12)
    np.testing.assert_allclose(np.concatenate([p.error.output for p in parts], -2), whole.error.output, atol=1e-12)
    direct = rfk.attention(q, k, v, features, causal=True, window=window)
    np.testing.assert_allclose(whole.output, direct, atol=1e-12)


@pytest.mark.parametrize("options", [{"heavy": 3, "causal": True}, {"heavy": 3}, {"groups": 4, "heavy": 2}], ids=str)
def test_heavy_keys_and_residuals_of_groups_have_errors(options: dict[str, Any]) -> None:
    q, k, v = small(3, 2, 70, 4)
    features = rfk.draw("positive", 4, 512, rng=0)
    want = rfk.attention(q, k, v, features, window=16, full=True, **options)
    got = quiet(q, k, v, features, window=16, **options)
    np.testing.assert_allclose(got.output, want.output, rtol=1e-4, atol=1e-5)
    exact = rfk.exact_attention(q, k, v, causal=options.get("causal", False))
    assert np.mean(np.abs(got.output - exact) <= half_width(got.error.output, got.error.freedom)) > 0.9
    assert got.state is None
    if options.get("causal"):
        with pytest.raises(ValueError, match="resumed from a state"):
            attend(q, k, v, features, window=16, state=want.state, **options)


def test_half_floats_are_returned_as_such_but_groups_are_not_rounded() -> None:
    q, k, v = small(3, 200, 8, dtype=np.float16)
    features = rfk.draw("positive", 8, 512, rng=0)
    half, single = (quiet(*(x.astype(t) for x in (q, k, v)), features) for t in (np.float16, np.float32))
    assert half.output.dtype == np.float16
    assert half.error.output.dtype == np.float32
    np.testing.assert_allclose(half.error.output, single.error.output, rtol=0.02, atol=2**-9 * np.abs(v).max())
    assert np.mean(half.output == rfk.attention(q, k, v, features)) > 0.98
    exact = np.abs(half.output - single.output)
    assert np.all(exact <= half.error.output)  # which rounding is part of


def test_no_keys_and_no_queries() -> None:
    features = rfk.draw("positive", 4, 64, rng=0)
    x = small(7, 4)
    found = attend(x, x, x, features, mask=np.zeros(7, bool))
    assert np.all(found.output == 0)
    assert np.all(found.error.output == 0)
    assert np.all(found.log_normalizer == -np.inf)
    assert np.all(found.error.effective == 0)
    assert attend(x[:0], x, x, features).error.output.shape == (0, 4)
    assert attend(*small(3, 0, 7, 4), features).error.inflation.shape == (0,)
    assert attend(x, x, x[:, :0], features).error.output.shape == (7, 0)
    assert attend(x, x[:0], x[:0], features).error.output.shape == (7, 4)


# The standard error


def test_it_is_the_delete_one_jackknife() -> None:
    q, k, v = small(3, 12, 4, dtype=np.float64)
    features = rfk.draw("trigonometric", 4, 64, sampler="iid", rng=0)
    phi_q, phi_k = (rfk.transform(x, features, side=side) for x, side in ((q, "query"), (k, "key")))
    rows = np.arange(features.count) % features.rows
    index = _groups.partition(features)

    def estimate(keep: Any) -> tuple[Any, Any]:
        weight = phi_q[:, keep] @ phi_k[:, keep].T * features.count / np.sum(keep)
        return weight @ v / weight.sum(-1, keepdims=True), np.log(np.abs(weight.sum(-1)))

    output, log = estimate(rows >= 0)
    left = [estimate(~np.isin(rows, group)) for group in index]
    got = quiet(q, k, v, features, check=0)
    factor = (len(index) - 1) / len(index)
    np.testing.assert_allclose(got.error.output, np.sqrt(factor * sum((o - output) ** 2 for o, _ in left)), rtol=1e-8)
    np.testing.assert_allclose(
        got.error.log_normalizer, np.sqrt(factor * sum((x - log) ** 2 for _, x in left)), rtol=1e-8
    )
    assert got.error.freedom == len(index) - 1


def test_effective_features() -> None:
    same = np.zeros((8, 3))
    assert _jackknife.combine(np, same[..., None], same, same + 1, 800).effective == pytest.approx([800] * 3)
    one = np.where(np.arange(8)[:, None] == 0, 0.0, -60.0) + same
    assert _jackknife.combine(np, same[..., None], one, same + 1, 800).effective == pytest.approx([800 / 801] * 3)


def test_a_sum_that_one_group_holds_has_no_finite_error() -> None:
    logs = np.where(np.arange(8)[:, None] == 3, 0.0, -np.inf)
    found = _jackknife.combine(np, np.ones((8, 1, 2)), logs, (logs == 0) * 1.0, 64)
    assert np.all(found.output == 1)
    assert np.all(found.error == np.inf)
    assert np.all(found.log_error == np.inf)


def dominated(gaps: Any) -> tuple[Any, Any, Any]:
    """Outputs, logs and signs of eight groups, one of which is ahead of the others by `gaps`, a row for each."""
    outputs, logs = small(8, len(gaps), 3), small(8, len(gaps), seed=1)
    logs[3] += np.asarray(gaps, np.float32)
    return outputs, logs, np.ones_like(logs)


@pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
def test_errors_are_those_of_the_others_where_one_group_holds_nearly_the_whole_sum(backend: str) -> None:
    outputs, logs, signs = dominated([0, 10, 20, 30, 40, 60, 95, 200])
    found = _jackknife.combine(np, outputs, logs, signs, 64, backends.load(backend).spread)
    weight = np.exp(logs.astype(np.float64) - logs.max(0))
    without = [np.delete(np.arange(8), b) for b in range(8)]
    left = np.array([np.einsum("br,brj->rj", weight[a], outputs[a]) / weight[a].sum(0)[:, None] for a in without])
    average = np.einsum("br,brj->rj", weight, outputs) / weight.sum(0)[:, None]
    expected = np.sqrt(7 / 8 * np.sum((left - average) ** 2, 0))
    np.testing.assert_allclose(found.error[:5], expected[:5], rtol=1e-5)
    np.testing.assert_allclose(found.output, average, rtol=1e-5)
    assert np.all(found.error[5:] == np.inf)
    assert np.all(found.log_error[5:] == np.inf)
    assert np.all(np.isfinite(found.log_error[:5]))


def test_errors_have_derivatives_where_one_group_holds_nearly_the_whole_sum() -> None:
    jax = pytest.importorskip("jax")
    outputs, logs, signs = dominated([0, 10, 20, 30, 40, 60, 95, 200])

    def total(outputs: Any, logs: Any) -> Any:
        found = _jackknife.combine(jax.numpy, outputs, logs, signs, 64)
        infinite = found.log_error == jax.numpy.inf
        log_error = jax.numpy.where(infinite, 0, found.log_error)
        return jax.numpy.sum(jax.numpy.where(infinite[:, None], 0, found.error)) + jax.numpy.sum(log_error)

    by_output, by_log = jax.jit(jax.grad(total, (0, 1)))(*map(jax.numpy.asarray, (outputs, logs)))
    assert np.all(np.isfinite(by_output))
    assert np.all(np.isfinite(by_log))
    assert np.all(np.abs(by_output[:, :5]).max((0, 2)) > 1e-3)
    assert np.all(by_output[:, 5:] == 0)


@pytest.mark.parametrize("backend", oracle.backends())
def test_errors_of_large_norms_are_numbers(backend: str) -> None:
    q, k, v = (oracle.place(30 * small(65, 64, seed=seed), backend) for seed in range(3))
    found = quiet(q, k, v, rfk.draw("positive", 64, 128, rng=0), causal=True, backend=backend)
    assert not np.any(np.isnan(found.error.output))
    assert 0 < np.mean(np.isinf(found.error.output)) < 0.9


DRAWS = 2000


def repeated(sampler: Any, dim: int, count: int, name: str = "positive") -> tuple[Any, Any, Any, Any]:
    """Variance over draws and mean squared standard error, of outputs and of log-normalisers."""
    q, k, v = (0.6 * small(3, 6, dim, seed=3, dtype=np.float64))[:, None]
    features = rfk.draw(name, dim, count, sampler=sampler, scale=1.0, batch=(DRAWS,), rng=1)
    found = quiet(q, k, v[..., :2], features, check=0)
    means = (found.error.output**2).mean(0), (found.error.log_normalizer**2).mean(0)
    return found.output.var(0), means[0], found.log_normalizer.var(0), means[1]


@pytest.mark.parametrize(
    ("sampler", "dim", "count"),
    [("iid", 4, 256), ("orthogonal", 4, 256), ("antithetic", 4, 256), ("simplex", 3, 240), ("hadamard", 3, 256)],
)
def test_it_is_the_spread_of_many_draws(sampler: str, dim: int, count: int) -> None:
    variance, squared, log_variance, log_squared = repeated(sampler, dim, count)
    # Six standard deviations of a ratio of variances over as many draws; the rest is the bias of the jackknife.
    tolerance = 6 * np.sqrt(3 / DRAWS) + 0.1
    assert np.all(np.abs(squared / variance - 1) < tolerance)
    assert np.all(np.abs(log_squared / log_variance - 1) < tolerance)


@pytest.mark.parametrize("sampler", ["orthogonal", "antithetic", "simplex"])
def test_parts_of_blocks_do_not_understate_it(sampler: str) -> None:
    variance, squared, log_variance, log_squared = repeated(sampler, 32, 64)
    tolerance = 6 * np.sqrt(3 / DRAWS)
    assert np.all(squared / variance > 1 - tolerance)
    assert np.all(log_squared / log_variance > 1 - tolerance)
    assert np.all(squared / variance < 2)


# The check against exact attention


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"mask": np.arange(30) % 4 > 0}], ids=str)
def test_exact_rows_are_those_of_exact_attention(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_check, "_KEYS", 7)
    q, k, v = small(2, 21, 4), small(2, 30, 4, seed=1), small(2, 30, 3, seed=2)
    features = rfk.draw("positive", 4, 64, scale=0.7, rng=0)
    at = _check.positions(21, 6)
    part = _check.exact_rows(q, k, v, features, at, options.get("causal", False), options.get("mask"), None)
    want = rfk.exact_attention(q, k, v, scale=0.7, **options)[:, at]
    np.testing.assert_allclose(rfk.exact.partials.normalize(np, part), want, rtol=1e-5, atol=1e-6)


def test_exact_rows_stay_in_their_segment() -> None:
    q, k, v = small(3, 2, 30, 4)
    features, ids = rfk.draw("positive", 4, 64, rng=0), np.arange(30) // 8
    part = _check.exact_rows(q, k, v, features, np.arange(30), True, None, ids)
    want = rfk.exact_attention(q, k, v, causal=True, segment_ids=ids)
    np.testing.assert_allclose(rfk.exact.partials.normalize(np, part), want, rtol=1e-5, atol=1e-6)


def test_positions_are_spread_evenly() -> None:
    assert list(_check.positions(100, 4)) == [12, 37, 62, 87]
    assert list(_check.positions(3, 32)) == [0, 1, 2]
    assert list(_check.positions(0, 32)) == []


def test_the_order_statistic_is_that_of_one_more_value() -> None:
    def statistic(x: Any) -> Any:
        return _check._order_statistic(np, x, np.ones(x.shape, bool))

    assert statistic(np.arange(39.0)[::-1]) == 37.0  # the 38th of 39: 0.95 · 40
    assert statistic(np.arange(5.0)) == 4.0
    assert statistic(np.arange(32.0)) == pytest.approx(30.35)
    assert statistic(np.array([1.0] * 38 + [np.inf])) == 1
    assert statistic(np.array([1.0] * 37 + [np.inf] * 2)) == np.inf
    assert statistic(np.array([1.0] * 31 + [np.inf])) == np.inf


@pytest.mark.parametrize("module", ["numpy", "jax.numpy"])
def test_what_is_not_known_does_not_count(module: str) -> None:
    xp = pytest.importorskip(module)
    x = xp.asarray([np.arange(60.0)] * 3)
    known = xp.stack([xp.arange(60) % 3 == 0, xp.arange(60) < 39, xp.zeros(60, bool)])
    np.testing.assert_allclose(_check._order_statistic(xp, x, known), [56.85, 37, np.inf], rtol=1e-6)


def compared(log: Any, log_error: float, truth: Any, output: float = 0.0, error: float = 1.0) -> Any:
    """Inflations of a row of that log and log error, where that log is exact, of an output that should be 0."""
    row = np.zeros(1)
    found = _jackknife.Estimate(row[:, None] + output, row + log, row, row[:, None] + error, row + log_error, row)
    exact = partials.Partial(row[:, None], row + (truth > -np.inf), row + truth)
    return _check.inflations(np, found, exact, np.arange(1), 2.0, 0.0)


def test_no_factor_is_enough_for_an_error_of_zero() -> None:
    assert compared(3.0, 0.5, 7.0, 8.0, 1.0) == (4.0, 4.0)
    assert compared(3.0, 0.5, 3.0, 1.0, 0.0) == (np.inf, 1.0)
    assert compared(3.0, 0.5, 3.0, 0.0, 0.0) == (1.0, 1.0)
    assert compared(3.0, np.inf, 7.0, 8.0, np.inf) == (np.inf, np.inf)


def test_nothing_to_compare_inflates_nothing() -> None:
    none = np.zeros((2, 0))
    found = _jackknife.Estimate(none[..., None], none, none, none[..., None], none, none)
    exact = partials.Partial(none[..., None], none, none)
    for factor in _check.inflations(np, found, exact, np.arange(0), 2.0, 0.0):
        np.testing.assert_array_equal(factor, [1, 1])


def test_infinite_errors_do_not_vouch_for_finite_ones() -> None:
    rows = np.zeros((100, 1))
    error = np.where(np.arange(100)[:, None] < 5, 1.0, np.inf)
    found = _jackknife.Estimate(rows + 6, rows[:, 0], rows[:, 0], error, error[:, 0], rows[:, 0])
    exact = partials.Partial(rows, rows[:, 0] + 1, rows[:, 0])
    assert _check.inflations(np, found, exact, np.arange(100), 2.0, 0.0) == (3.0, 1.0)


def test_logs_of_nothing_are_off_by_any_factor() -> None:
    assert compared(-np.inf, 1e-6, 3.0)[1] == np.inf
    assert compared(3.0, 0.5, -np.inf)[1] == np.inf
    assert compared(3.0, np.inf, -np.inf)[1] == np.inf
    assert compared(-np.inf, 1e-6, -np.inf)[1] == 1


@pytest.mark.parametrize("backend", oracle.backends())
def test_queries_whose_features_are_zero_are_not_trusted(backend: str) -> None:
    q, k, v = (oracle.place(x, backend) for x in (small(2, 64, 3), small(2, 1, 3, seed=1), small(2, 1, 5, seed=2)))
    features = rfk.draw("relu", 3, 8, sampler="iid", rng=0)
    with pytest.warns(UntrustedErrorWarning, match="not to be trusted"):
        found = attend(q, k, v, features, backend=backend)
    assert list(np.isneginf(found.log_normalizer)[:, 1::2].sum(-1)) == [5, 1]  # of the 32 that are looked at
    assert list(np.isinf(found.error.inflation)) == [True, False]
    assert np.all(np.isinf(found.error.output[0]))
    assert np.mean(np.isfinite(found.error.output[1])) > 0.5
    assert not np.any(np.isnan(found.error.output[1]))
    assert np.all(np.isinf(found.error.log_inflation))
    assert np.all(np.isinf(found.error.log_normalizer))


def test_errors_have_derivatives_where_features_are_zero() -> None:
    jax = pytest.importorskip("jax")
    q, k, v = map(jax.numpy.asarray, (small(64, 3), small(1, 3, seed=1), small(1, 5, seed=2)))
    rare, nothing = rfk.draw("relu", 3, 16, sampler="antithetic", rng=0), rfk.draw("relu", 3, 8, sampler="iid", rng=0)

    def total(q: Any, features: rfk.Features) -> Any:
        error = quiet(q, k, v, features).error
        return sum(
            jax.numpy.sum(jax.numpy.where(x < jax.numpy.inf, x, 0)) for x in (error.output, error.log_normalizer)
        )

    for features in (nothing, rare):
        assert np.all(np.isfinite(jax.jit(jax.grad(total))(q, features)))


def test_intervals_hold_on_heads_of_a_trained_transformer(heads: tuple[Any, ...]) -> None:
    q, k, v = (x[1::2] for x in heads)
    features = rfk.fit(q, k, 1024, method="tilted", scale=32**-0.5, rng=3)
    found = quiet(q, k, v, features)
    ok = trusted(found.error)
    assert 3 <= np.sum(ok) < 6
    others = np.setdiff1d(np.arange(512), _check.positions(512, 32))
    exact = rfk.exact_attention(q, k, v)[ok][:, others]
    width = half_width(found.error.output, found.error.freedom)[ok][:, others]
    assert 0.92 <= np.mean(np.abs(found.output[ok][:, others] - exact) <= width) <= 0.98
    unchecked = quiet(q, k, v, features, check=0)
    np.testing.assert_allclose(
        found.error.output, unchecked.error.output * found.error.inflation[:, None, None], rtol=1e-6
    )
    assert np.all(found.error.inflation >= 1)
    assert np.all(found.error.log_inflation >= 1)


def test_a_mask_and_a_broadcast_batch_are_checked_as_they_are_seen() -> None:
    q, k, v = 0.5 * small(3, 2, 3, 60, 8)
    features = rfk.draw("positive", 8, 512, batch=(3,), rng=0)
    found = attend(q, k[:1], v[:1], features, mask=np.arange(60) < 50, causal=True)
    assert found.error.inflation.shape == (2, 3)


# Warnings


def test_it_warns_where_errors_are_too_small_and_names_the_caller(heads: tuple[Any, ...]) -> None:
    q, k, v = (x[3] for x in heads)
    features = rfk.draw("positive", 32, 256, rng=0)
    with pytest.warns(UntrustedErrorWarning, match="not to be trusted") as caught:
        found = attend(q, k, v, features)
    assert caught[0].filename == __file__
    assert not trusted(found.error)


def test_those_who_call_for_errors_by_name_are_named() -> None:
    x = 3 * small(40, 8)
    features = rfk.draw("positive", 8, 64, rng=0)
    with pytest.warns(UntrustedErrorWarning) as one:
        rfk.attention(x, x, x, features, full=True, error=True)
    with pytest.warns(UntrustedErrorWarning) as other:
        rfk.log_normalizer(x, x, features, error=True)
    assert one[0].filename == other[0].filename == __file__


def test_it_warns_once_where_nothing_was_checked() -> None:
    x = small(20, 4)
    features = rfk.draw("positive", 4, 64, rng=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            found = attend(x, x, x, features, check=0)
    assert len(caught) == 1
    assert found.error.inflation is None
    assert not trusted(found.error)
    with pytest.warns(UntrustedErrorWarning, match="not compared"):
        attend(x, x, x, rfk.draw("elu+1", 4, 64, rng=0))


def test_many_features_of_an_easy_problem_are_trusted() -> None:
    q, k, v = 0.5 * small(3, 2, 40, 4)
    assert np.all(trusted(attend(q, k, v, rfk.draw("positive", 4, 512, rng=0)).error))


def test_nothing_is_warned_of_under_jit(heads: tuple[Any, ...]) -> None:
    jax = pytest.importorskip("jax")
    q, k, v = (jax.numpy.asarray(x[3, :64]) for x in heads)
    features = rfk.draw("positive", 32, 256, rng=0)
    got = jax.jit(attend)(q, k, v, features)
    want = quiet(*(np.asarray(x) for x in (q, k, v)), features)
    np.testing.assert_allclose(got.output, want.output, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.error.output, want.error.output, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(got.error.inflation, want.error.inflation, rtol=2e-3)
    np.testing.assert_allclose(half_width(1.0, got.error.freedom), half_width(1.0, 7), rtol=1e-12)


def test_groups_alone_have_no_errors() -> None:
    x = small(9, 4)
    with pytest.raises(TypeError, match="groups= alone have none"):
        attend(x, x, x, None, groups=4)


@pytest.mark.parametrize("check", [-1, 1.5, True])
def test_a_bad_check_is_refused(check: Any) -> None:
    x = small(9, 4)
    with pytest.raises(ValueError, match="check must be an integer of at least 0"):
        attend(x, x, x, rfk.draw("positive", 4, 64, rng=0), check=check)


def test_half_widths() -> None:
    assert half_width(np.array(2.0), 7) == pytest.approx(2 * 2.364624)
    assert half_width(np.array(1.0), 31, 0.5) == pytest.approx(0.682483, rel=1e-4)
    with pytest.raises(ValueError, match="level must be above 0"):
        half_width(np.array(1.0), 7, 1.0)
    with pytest.raises(ValueError, match=r"level must be above 0 and below 1, got .0.9."):
        half_width(np.array(1.0), 7, "0.9")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"error must be Errors, .* got float"):
        trusted(0.5)  # type: ignore[arg-type]


def test_heavy_positions_and_groups_with_axes_of_their_own() -> None:
    rng = np.random.default_rng(0)
    q, k, v = 0.3 * rng.standard_normal((3, 64, 8))
    features = rfk.draw("positive", 8, 64, rng=0)
    heavy = np.stack([rng.permutation(64)[:3] for _ in range(8)])
    groups = rfk.fit_groups(*(0.3 * rng.standard_normal((2, 8, 64, 8))), 4)
    for options in ({"heavy": heavy}, {"groups": groups}):
        plain = rfk.attention(q, k, v, features, **options)
        found = rfk.attention(q, k, v, features, **options, full=True, error=True)
        np.testing.assert_allclose(found.output, plain, rtol=1e-10, atol=1e-12)
        assert found.error.output.shape == plain.shape


def test_states_and_masks_are_those_that_attention_takes() -> None:
    q, k, v = 0.3 * np.random.default_rng(0).standard_normal((3, 2, 64, 8))
    features = rfk.draw("positive", 8, 64, rng=0)
    for count in (32, 128):
        other = rfk.attention(q, k, v, rfk.draw("positive", 8, count, rng=1), causal=True, full=True).state
        with pytest.raises(ValueError, match="state must have kv"):
            rfk.attention(q, k, v, features, causal=True, state=other, full=True, error=True)
    with pytest.raises(TypeError, match="mask must be a boolean array, got list"):
        rfk.attention(q, k, v, features, mask=[True] * 64, full=True, error=True)
    with pytest.raises(ValueError, match="full=True"):
        rfk.attention(q, k, v, features, error=True)
    with pytest.raises(TypeError, match="features must be given"):
        rfk.attention(q, k, v, full=True, error=True)


# What is compiled


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 3), (5, 0), (1, 1), (700, 6)])
def test_compiled_spreads(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], dtype: Any) -> None:
    spreads = pytest.importorskip("rfkernels.backends.numba.spreads")
    monkeypatch.setattr(spreads, "_PIECE", 1000)
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(8, 2, *shape)).astype(dtype)
    share, ratio = rng.random((2, 8, 2, shape[0])).astype(dtype)
    share /= share.sum(0)
    share[:, :, :1], ratio[:, :, :1] = 1 / 8, 0  # no spread
    share[:, :, -1:] = 0
    for got, expected in zip(
        spreads.spread(np, outputs, share, ratio), partials.spread(np, outputs, share, ratio), strict=True
    ):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, rtol=0, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("kernel", [rfk.kernels.EXPONENTIAL, rfk.kernels.SHIFTED_GAUSSIAN])
@pytest.mark.parametrize("keys", [0, 1, 300])
def test_compiled_rows_are_exact(kernel: Any, keys: int) -> None:
    rows = pytest.importorskip("rfkernels.backends.numba.exact_rows")
    rng = np.random.default_rng(keys)
    q, k, v = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(2, 1, keys, 4)), rng.normal(size=(3, keys, 2))
    q[:, :, 1] *= 30  # weights far apart
    allowed = rng.random((2, 1, 5, keys)) < 0.5
    allowed[:, :, 2] = False
    got, expected = (f(np, q, k, v, allowed, kernel) for f in (rows.few_rows, exact_block))
    assert np.all(got.shift[:, :, 2] == -np.inf)
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("module", ["numpy", "jax.numpy"])
@pytest.mark.parametrize("unit", [1e-30, 1e-22, 1e14, 1e25, 1e35])
def test_errors_have_the_unit_of_the_values(unit: float, module: str) -> None:
    xp = pytest.importorskip(module)
    q, k, v = (xp.asarray(x, np.float32) for x in np.random.default_rng(0).standard_normal((3, 2, 40, 8)))
    features = rfk.draw("positive", 8, 128, rng=0)
    plain, found = (rfk.attention(q, k, v * np.float32(u), features, full=True, error=True) for u in (1, unit))
    np.testing.assert_allclose(found.error.output / np.float32(unit), plain.error.output, rtol=1e-3)
    np.testing.assert_allclose(found.output / np.float32(unit), plain.output, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.error.inflation, plain.error.inflation, rtol=1e-3)


@pytest.mark.parametrize(("factor", "offset"), [(1e4, 0), (1e25, 0), (1, 1e4)])
def test_columns_and_later_values_of_another_size_vouch_for_no_others(factor: float, offset: float) -> None:
    q, k, v = 1.5 * small(3, 2, 64, 8)
    features = rfk.draw("positive", 8, 64, rng=0)
    plain, other = v.copy(), v.copy()
    other[..., :3] = other[..., :3] * np.float32(factor) + np.float32(offset)
    expected, found = (quiet(q, k, x, features).error for x in (plain, other))
    assert np.all(expected.inflation > uncertainty.LIMIT)
    np.testing.assert_allclose(found.inflation, expected.inflation, rtol=0.1)
    np.testing.assert_allclose(found.output[..., 3:], expected.output[..., 3:], rtol=0.1)
    other = v.copy()
    other[:, -1] = np.float32(factor) + np.float32(offset)
    expected, found = (quiet(q, k, x, features, causal=True).error for x in (plain, other))
    np.testing.assert_allclose(found.inflation, expected.inflation, rtol=0.25)  # one query in 32 sees it
    np.testing.assert_allclose(found.output[:, :-1], expected.output[:, :-1], rtol=0.25)


@pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
def test_large_columns_do_not_round_small_ones(backend: str) -> None:
    q, k, v = small(3, 2, 32, 4) / 2
    features, options = rfk.draw("positive", 4, 512, rng=0), {"causal": True, "check": 0, "check_finite": False}

    def errors(v: Any, size: float, **more: Any) -> Any:
        given = (oracle.place(x, backend) for x in (q, k, v * np.float32([size, 1, 1, 1])))
        return np.asarray(quiet(*given, features, backend=backend, **options, **more).error.output)[:, 8:12]

    exact = errors(v, 1e7, window=32)[..., 1:]  # of values that cancel
    assert np.all((exact > 1e-6) & (exact < 1e-5))
    v[:, -1, 0] = np.nan
    found = errors(v, 1e7)
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(found, errors(v, 1) * [1e7, 1, 1, 1], rtol=1e-3)


@pytest.mark.parametrize("module", ["numpy", "jax"])
@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_how_far_values_lie_apart_that_a_query_may_see(causal: bool, segmented: bool, module: str) -> None:
    rng, at = np.random.default_rng(0), _check.positions(9, 5)
    for keys in (9,) if segmented else (9, 7, 12):
        q, v = small(2, 3, 9, 4), small(2, 1, keys, 5, seed=1)
        ids = np.sort(rng.integers(0, 3, (3, 9)), -1) if segmented else None
        for mask in (None, rng.random((2, 3, keys)) < 0.6):
            expected = np.zeros((2, 3, 5, 5))
            for i, j, row in np.ndindex(2, 3, 5):
                seen = np.ones(keys, bool) if mask is None else mask[i, j].copy()
                seen &= not causal or np.arange(keys) <= at[row] + keys - 9
                seen &= ids is None or ids[j] == ids[j, at[row]]
                expected[i, j, row] = np.ptp(v[i, 0][seen], 0) if seen.any() else 0
            own = [oracle.place(x, module) for x in (q, v, mask, ids)]
            found = _check.reach(namespace(own[0]), *own[:2], at, causal, *own[2:])
            np.testing.assert_allclose(np.broadcast_to(found, expected.shape), expected, rtol=1e-6)


def test_values_of_other_segments_vouch_for_none() -> None:
    q, k, v = 1.5 * small(3, 2, 64, 8)
    features, ids = rfk.draw("positive", 8, 64, rng=0), np.repeat([0, 1], [60, 4])
    other = v.copy()
    other[:, 60:] += 1e4
    expected, found = (quiet(q, k, x, features, segment_ids=ids).error.inflation for x in (v, other))
    assert np.all(expected > uncertainty.LIMIT)
    np.testing.assert_allclose(found, expected, rtol=0.1)


def test_columns_of_half_floats_are_rounded_each_by_itself() -> None:
    q, k, v = (small(3, 1, 32, 4) / 2).astype(np.float16)
    v[..., 0] += 300
    features = rfk.draw("positive", 4, 64, rng=0)
    half, single = (quiet(*(x.astype(dtype) for x in (q, k, v)), features) for dtype in (np.float16, np.float32))
    np.testing.assert_allclose(half.error.output[..., 1:], single.error.output[..., 1:], rtol=1e-3)
    assert half.error.output[..., 0].min() > 0.2


@pytest.mark.parametrize("freedom", [0, -3, 2.7, True, float("nan")])
def test_degrees_of_freedom_are_positive_integers(freedom: Any) -> None:
    with pytest.raises(ValueError, match="freedom must be a positive integer"):
        half_width(np.ones(2), freedom)
