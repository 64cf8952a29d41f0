"""Groups that are found in keys, and those that are merged from keys as they leave the window."""

from __future__ import annotations

from typing import Any

import grouped_oracle
import numpy as np
import oracle
import pytest
from grouped_oracle import (
    CLOSE,
    DIM,
    WIDTH,
    Call,
    attend,
    make_call,
    normal,
    pieces,
)

import rfkernels as rfk
from rfkernels import groups as groups_module
from rfkernels.backends import Backend, choose
from rfkernels.groups import fit_groups, heavy_keys

# Fits


@pytest.mark.parametrize(
    ("queries", "keys", "mask", "batch"),
    [
        ((), (), None, ()),
        ((2, 3), (2, 3), None, (2, 3)),
        ((2, 3, 4), (2, 3, 1), None, (2, 3, 1)),
        ((2, 3), (), None, ()),
        ((), (2,), None, (2,)),
        ((2, 3), (1, 3), (2, 1), (2, 3)),
        ((2, 3), (), (2, 1), (2, 1)),
    ],
)
def test_there_are_groups_for_each_batch_axis_of_keys(queries: Any, keys: Any, mask: Any, batch: Any) -> None:
    q, k = normal(*queries, 30, DIM), normal(*keys, 40, DIM, seed=1)
    seen = None if mask is None else np.random.default_rng(0).random((*mask, 40)) < 0.5
    groups = fit_groups(q, k, 5, mask=seen)
    assert groups.batch == batch
    assert groups.centres.shape == (*batch, 5, DIM)
    assert groups.spread.shape == (*batch, DIM, DIM)
    assert heavy_keys(q, k, 6, mask=seen).shape == (*batch, 6)
    got = rfk.attention(q, k, k, groups=5, heavy=3, mask=seen, window=4)
    assert got.shape == (*np.broadcast_shapes(queries, keys), 30, DIM)


def test_queries_of_shared_keys_are_pooled() -> None:
    q, k = normal(2, 3, 20, DIM), normal(2, 1, 50, DIM, seed=1)
    flat = fit_groups(q.reshape(2, 60, DIM), k[:, 0], 5)
    np.testing.assert_allclose(fit_groups(q, k, 5).metric[:, 0], flat.metric)
    np.testing.assert_array_equal(heavy_keys(q, k, 5)[:, 0], heavy_keys(q.reshape(2, 60, DIM), k[:, 0], 5))


def test_metric_and_spread_are_those_of_their_definition() -> None:
    q, k = normal(2, 300, DIM)
    groups = fit_groups(q, k, 7)
    np.testing.assert_allclose(groups.metric, q.T @ q / 300)
    apart = k[:, None] - groups.centres
    label = np.argmin(np.einsum("sci,ij,scj->sc", apart, groups.metric, apart), -1)
    assert set(label) == set(range(7))
    within = np.concatenate([k[label == c] - k[label == c].mean(0) for c in range(7)])
    covariance = within.T @ within
    np.testing.assert_allclose(groups.spread, covariance / np.sum(covariance * groups.metric))


def test_keys_that_receive_the_most_are_heavy() -> None:
    q, k = normal(32, DIM), normal(500, DIM, seed=1)
    weight = np.exp(q @ k.T / 2)
    mass = (weight / weight.sum(-1, keepdims=True)).mean(0)
    np.testing.assert_array_equal(heavy_keys(q, k, 20), np.sort(np.argsort(-mass)[:20]))
    np.testing.assert_array_equal(heavy_keys(q, k, 900), np.arange(500))


def test_masked_keys_are_heavy_last() -> None:
    """Also where the weights of others are too small to be told from zero."""
    q, k = 1e3 * normal(1, DIM), 1e3 * normal(100, DIM, seed=1)
    mask = np.arange(100) >= 90
    np.testing.assert_array_equal(heavy_keys(q, k, 10, mask=mask), np.arange(90, 100))
    assert set(range(90, 100)) < set(heavy_keys(q, k, 12, mask=mask))


KEYS = {
    "constant": np.ones((60, DIM)),
    "zero": np.zeros((60, DIM)),
    "one": normal(1, DIM),
    "two": normal(2, DIM),
    "two kinds": np.repeat(normal(2, DIM), 30, 0),
    "huge": 1e6 * normal(60, DIM),
    "tiny": 1e-12 * normal(60, DIM),
    "one huge": np.concatenate([normal(59, DIM), np.full((1, DIM), 1e5)]),
}


@pytest.mark.parametrize("backend", [*oracle.backends("numba"), None])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_fits_are_those_of_the_reference(backend: str | None, dtype: Any) -> None:
    q, k, v = (normal(2, n, 300, size).astype(dtype) for n, size in ((3, DIM), (1, DIM), (1, WIDTH)))
    mask, close = np.random.default_rng(0).random((2, 1, 300)) < 0.8, {"rtol": 1e-4, "atol": 1e-5}
    for values, seen in ((None, None), (v, mask)):
        got, expected = (fit_groups(q, k, 20, v=values, mask=seen, backend=name) for name in (backend, "numpy"))
        for x, y in zip(got, expected, strict=True):
            assert (x is None) == (y is None)
            if y is not None:
                assert np.asarray(x).dtype == np.asarray(y).dtype
                np.testing.assert_allclose(x, y, **close)
        heavy = (heavy_keys(q, k, 9, mask=seen, backend=name) for name in (backend, "numpy"))
        np.testing.assert_array_equal(*heavy)


def test_groups_are_found_on_the_backend_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = normal(50, DIM), normal(50, DIM)
    chosen: list[str] = []

    def watched(name: str | None, *arrays: Any, **others: Any) -> Backend:
        found = choose(name, *arrays, **others)

        def mass(*given: Any) -> Any:
            chosen.append(found.name)
            return found.steps.mass(*given)

        return found._replace(steps=found.steps._replace(mass=mass))

    monkeypatch.setattr(groups_module, "choose", watched)
    for backend in (None, "numba", "numpy"):
        fit_groups(q, k, 3, backend=backend)
        heavy_keys(q, k, 3, backend=backend)
    assert chosen == ["numba"] * 4 + ["numpy"] * 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", KEYS)
def test_fits_of_few_or_odd_keys(name: str, dtype: Any) -> None:
    k = KEYS[name].astype(dtype)
    q, v = normal(60, DIM).astype(dtype), normal(len(k), WIDTH).astype(dtype)
    nobody, only = np.zeros(len(k), bool), np.arange(len(k)) == len(k) - 1
    for mask in (None, nobody, only):
        groups = fit_groups(q, k, 7, v=v, mask=mask)
        assert all(np.all(np.isfinite(x)) for x in groups if x is not None)
        assert groups.centres.shape == (7, DIM)
        assert np.all(np.isfinite(heavy_keys(q, k, 7, mask=mask)))
        got = rfk.attention(q, k, v, groups=groups, mask=mask)
        assert np.all(np.isfinite(got))
        if mask is nobody:
            np.testing.assert_array_equal(got, 0)
        if mask is only:
            np.testing.assert_allclose(got, np.broadcast_to(v[-1], got.shape), rtol=1e-5)


@pytest.mark.parametrize(("length", "keys"), [(0, 0), (0, 5), (5, 0), (1, 1)])
def test_lengths_of_nothing(length: int, keys: int) -> None:
    q, k, v = normal(2, length, DIM), normal(2, keys, DIM), normal(2, keys, WIDTH)
    features = rfk.draw("positive", DIM, 4, scale=grouped_oracle.SCALE, rng=0)
    for given in ({}, {"heavy": 3}, {"features": features}, {"window": 3}):
        got = rfk.attention(q, k, v, groups=4, **given)
        assert got.shape == (2, length, WIDTH)
        np.testing.assert_allclose(got, np.broadcast_to(v, got.shape) if keys == 1 else 0, atol=1e-12)


def heads() -> tuple[Any, Any, Any]:
    with np.load(rfk.__path__[0] + "/data/minilm_heads.npz") as file:
        return tuple(file[name].astype(np.float32) for name in "qkv")


def errors(**options: Any) -> Any:
    """Error of each of the twelve heads, relative to the norm of its exact output."""
    q, k, v = heads()
    expected, got = rfk.exact_attention(q, k, v), rfk.attention(q, k, v, **options)
    return np.linalg.norm(got - expected, axis=(-2, -1)) / np.linalg.norm(expected, axis=(-2, -1))


def test_errors_on_heads_of_a_trained_model() -> None:
    """Seed 0, which nothing here was chosen by; the bounds are those that the library promises."""
    found = {count: errors(groups=count, window=32) for count in (8, 32, 128)}
    medians = {count: np.median(x) for count, x in found.items()}
    assert medians[8] > medians[32] > medians[128]
    assert medians[128] <= 0.06
    assert found[128].max() <= 0.25
    assert np.median(errors(groups=128)) <= 0.12
    assert np.median(errors(groups=32, window=32, heavy=32)) < medians[32]


# Groups that are merged from the keys as they leave


def merged_call(length: int = 150, **options: Any) -> Call:
    return make_call(length, length, True, 5, **options)._replace(groups=6)


@pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
@pytest.mark.parametrize(("window", "heavy", "share"), [(1, [], 1.0), (17, [0, 40], 0.8)])
def test_merged_groups_are_those_of_the_keys_in_them(backend: str, window: int, heavy: list[int], share: float) -> None:
    """By the definition: received attention, rounds of merging, spread and cross-covariance from the keys themselves."""
    rng = np.random.default_rng(2)
    q, k, v = 1.5 * rng.normal(size=(3, 130, DIM))
    mask = rng.random(130) < share
    given = {"groups": 9, "window": window, "causal": True, "mask": mask, "backend": backend}
    if heavy:
        given["heavy"] = np.array(heavy)
    expected = grouped_oracle.merged_attention(q, k, v, 9, window, heavy, mask)
    np.testing.assert_allclose(rfk.attention(q, k, v, **given), expected, **CLOSE)


@pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
def test_merged_groups_are_exact_while_there_are_enough(backend: str) -> None:
    """Of keys that occur often a group each is enough, whatever order they come in."""
    q, few, v = normal(120, DIM), normal(4, DIM, seed=1), normal(120, WIDTH, seed=2)
    k = few[np.random.default_rng(3).integers(4, size=120)]
    for keys, count in ((normal(120, DIM, seed=4), 120), (k, 40), (np.ones((120, DIM)), 2)):
        got = rfk.attention(q, keys, v, groups=count, causal=True, window=1, backend=backend)
        np.testing.assert_allclose(got, rfk.exact_attention(q, keys, v, causal=True, backend="numpy"), **CLOSE)


def test_merged_groups_are_no_worse_than_fewer_of_them() -> None:
    """On heads of a trained model, from nothing but the past."""
    q, k, v = (x[::3] for x in heads())
    expected = rfk.exact_attention(q, k, v, causal=True)
    found = []
    for count in (8, 32, 128):
        apart = rfk.attention(q, k, v, groups=count, causal=True, window=32) - expected
        found.append(np.median(np.linalg.norm(apart, axis=(-2, -1)) / np.linalg.norm(expected, axis=(-2, -1))))
    assert found[0] > found[1] > found[2]
    assert found[2] <= 0.06


@pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
def test_merged_groups_do_not_see_what_is_later(backend: str) -> None:
    call = merged_call(heavy=[0, 120], masked=())
    before = attend(call, backend=backend)
    rng = np.random.default_rng(5)
    for cut in (1, 16, 77, 149):
        q, k, v, mask = (np.array(x) for x in (*call[:3], call.mask))
        q[cut:], k[cut:], v[cut:] = (1e3 * rng.normal(size=x[cut:].shape) for x in (q, k, v))
        mask[cut:] = rng.random(len(mask[cut:])) < 0.5
        after = attend(call._replace(q=q, k=k, v=v, mask=mask), backend=backend)
        np.testing.assert_array_equal(after[:cut], before[:cut])
        assert np.any(after[cut:] != before[cut:])


@pytest.mark.parametrize("batches", [{}, {"q": (2, 3), "k": (2, 1), "v": (2, 1)}])
def test_merged_groups_in_pieces(batches: dict[str, tuple[int, ...]]) -> None:
    call = merged_call(100, heavy=[0, 77], masked=(), batches=batches)
    whole = attend(call, full=True, backend="numpy")
    assert whole.output.shape == (*batches.get("q", ()), 100, WIDTH)
    for cuts in (list(range(1, 100)), list(range(7, 100, 7)), [16, 32], [0, 50]):
        output, log, _ = pieces(call, cuts, backend="numpy")
        np.testing.assert_allclose(output, whole.output, **CLOSE)
        np.testing.assert_allclose(log, whole.log_normalizer, **CLOSE)


def test_merged_groups_count_every_key_once() -> None:
    call = merged_call(heavy=[0, 3], masked=())
    state = attend(call, full=True, backend="numpy").state
    left = np.zeros(150, bool)
    left[: 150 - state.mask.size + (16 - 150 % 16) % 16] = True  # all but the blocks that are held
    left &= call.mask
    left[[0, 3]] = False
    np.testing.assert_allclose(state.sums.z.sum(), left.sum())
    np.testing.assert_allclose(state.sums.kv[:, :DIM].sum(0), call.k[left].sum(0), **CLOSE)
    np.testing.assert_allclose(state.sums.kv[:, DIM + 1 :].sum(0), call.v[left].sum(0), **CLOSE)


@pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
@pytest.mark.parametrize(("of_q", "of_k"), [(2.0**-60, 2.0**60), (2.0**60, 2.0**-60), (2.0**50, 2.0**50)])
def test_groups_of_keys_of_any_size(of_q: float, of_k: float, backend: str) -> None:
    """Products of four of them are out of range. Of large logits the exact ones are expected, as all keys are centres."""
    q, k, v = (normal(2, 30, n, seed=n).astype(np.float32) for n in (DIM, DIM, WIDTH))
    given, groups = (np.float32(of_q) * q, np.float32(of_k) * k, v), 5 if of_q * of_k == 1 else 30
    got = rfk.attention(*given, groups=groups, window=4, backend=backend)
    expected = (
        rfk.attention(q, k, v, groups=5, window=4, backend=backend) if groups == 5 else rfk.exact_attention(*given)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 1e-40), (np.float64, 1e-310)])
def test_groups_of_subnormal_keys(dtype: Any, size: float) -> None:
    q, k, v = (normal(30, n, seed=n).astype(dtype) for n in (DIM, DIM, WIDTH))
    for given in ((q, dtype(size) * k), (dtype(size) * q, k)):
        expected = np.broadcast_to(v.mean(0), v.shape)
        np.testing.assert_allclose(rfk.attention(*given, v, groups=5, window=4), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_masked_keys_of_any_value_are_in_no_group(value: float, causal: bool, backend: str) -> None:
    q, k, v = (normal(40, n, seed=n).astype(np.float32) for n in (DIM, DIM, WIDTH))
    mask = np.arange(40) % 3 != 0
    options: dict[str, Any] = {"mask": mask, "check_finite": False, "backend": backend}
    keys, values = (np.where(mask[:, None], x, np.float32(value)) for x in (k, v))
    call = {**options, "groups": 4, "window": 4, "causal": causal}
    np.testing.assert_array_equal(rfk.attention(q, keys, values, **call), rfk.attention(q, k, v, **call))
    for x, y in zip(fit_groups(q, k, 4, v=v, **options), fit_groups(q, keys, 4, v=values, **options), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
@pytest.mark.parametrize("value", [np.nan, 1e19, 1e30])
def test_merging_ends_whatever_the_keys(value: float, backend: str) -> None:
    """Squares that overflow, what is not a number, and logits of other keys whose weights overflow beside it."""
    q, k, v = normal(3, 60, DIM).astype(np.float32)
    k[3], k[5:9] = value, -value
    with np.errstate(all="ignore"):
        for size in (1, 100):
            options = {"groups": 4, "causal": True, "window": 1, "check_finite": False, "backend": backend}
            got = rfk.attention(size * q, k, v, **options, full=True)
            assert got.output.shape == v.shape
            for part in ("mass", "within"):
                broken = got.state._replace(**{part: np.full_like(getattr(got.state, part), np.inf)})
                rfk.attention(size * q, k, v, **options, state=broken)
            sums = got.state.sums._replace(z=np.full_like(got.state.sums.z, np.inf))
            rfk.attention(size * q, k, v, **options, state=got.state._replace(sums=sums))


def test_sums_of_kernels_in_groups_on_every_backend() -> None:
    """Values of no width are not the same as no values."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 3, 200, 8))
    exact = rfk.exact_log_normalizer(q, k, scale=8**-0.5)
    found = [rfk.log_normalizer(q, k, groups=32, heavy=4, backend=name) for name in ("numpy", "numba")]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10)
    assert np.abs(found[0] - exact).max() < 0.2
