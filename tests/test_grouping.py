"""Passes over blocks: near and heavy keys exact, all others in groups or features. NumPy; JAX is in test_grouping_jax."""

from __future__ import annotations

from typing import Any

import grouped_oracle
import numpy as np
import oracle
import pytest
from grouped_oracle import (
    CASES,
    CLOSE,
    DIM,
    SCALE,
    WIDTH,
    attend,
    centred,
    make_call,
    make_groups,
    normal,
    pieces,
)

import rfkernels as rfk
from rfkernels import testing
from rfkernels.grouping import BlockState, plan_for
from rfkernels.groups import fit_groups

# The oracle


@pytest.mark.parametrize("name", CASES)
def test_as_every_query_by_itself(name: str) -> None:
    call = CASES[name]
    expected, got = grouped_oracle.expect(call), attend(call, full=True, backend="numpy")
    assert got.output.shape == expected.output.shape
    assert got.log_normalizer.shape == expected.log_normalizer.shape
    np.testing.assert_allclose(got.output, expected.output, **CLOSE)
    np.testing.assert_allclose(got.log_normalizer, expected.log_normalizer, **CLOSE)
    np.testing.assert_array_equal(got.sign, expected.log_normalizer > -np.inf)


@pytest.mark.parametrize("backend", oracle.backends("numba"))
@pytest.mark.parametrize("name", ["causal, features in groups", "grouped queries", "long blocks"])
def test_the_default_backend_does_the_same(name: str, backend: str) -> None:
    call = CASES[name]
    expected = grouped_oracle.expect(call)
    for given in (backend, None):
        np.testing.assert_allclose(attend(call, backend=given), expected.output, **CLOSE)


@pytest.mark.parametrize(
    ("window", "block", "reach"),
    [
        (1, 16, 0),
        (2, 16, 1),
        (17, 16, 1),
        (18, 16, 2),
        (31, 16, 2),
        (32, 32, 1),
        (63, 32, 2),
        (64, 64, 1),
        (128, 64, 2),
    ],
)
def test_blocks_are_a_power_of_two_that_a_window_holds(window: int, block: int, reach: int) -> None:
    plan = plan_for(window, causal=True)
    assert (plan.block, plan.reach) == (block, reach) == grouped_oracle.blocks(window, True)


def test_blocks_without_a_window() -> None:
    assert plan_for(None, causal=True)[:2] == (64, 0)
    assert plan_for(None, causal=False).reach is None


# Identities


def exact(q: Any, k: Any, v: Any, **options: Any) -> Any:
    return rfk.exact_attention(q, k, v, scale=SCALE, backend="numpy", **options)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_a_group_for_each_key_is_exact(causal: bool, window: int | None) -> None:
    q, k, v = normal(3, 150, DIM)
    groups = centred(k)
    got = rfk.attention(q, k, v, groups=groups, causal=causal, window=window)
    np.testing.assert_allclose(got, exact(q, k, v, causal=causal), **CLOSE)


def test_keys_that_occur_often_are_exact_in_one_group() -> None:
    q, few, v = normal(120, DIM), normal(7, DIM, seed=1), normal(120, WIDTH, seed=2)
    k = few[np.random.default_rng(3).integers(7, size=120)]
    for groups in (centred(few), fit_groups(q, k, 20, scale=SCALE)):
        np.testing.assert_allclose(rfk.attention(q, k, v, groups=groups), exact(q, k, v), **CLOSE)


def test_one_group_is_one_key() -> None:
    """Where there is but one group and no exact part, its value is all that a query sees."""
    q, k, v = normal(3, 90, DIM)
    groups = make_groups(np.random.default_rng(0), 1)
    got = rfk.attention(q, k, v, groups=groups, full=True)
    np.testing.assert_allclose(got.output, np.broadcast_to(v.mean(0), v.shape), **CLOSE)
    x = SCALE * q
    bend = (
        np.einsum("ti,ij,tj->t", x, groups.spread, x)
        / 2
        * np.einsum("si,ij,sj->", k, groups.metric, k - k.mean(0))
        / 90
    )
    np.testing.assert_allclose(got.log_normalizer, x @ k.mean(0) + np.minimum(bend, 1) + np.log(90), **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_over_everything_is_exact(causal: bool) -> None:
    q, k, v = normal(3, 150, DIM)
    groups = make_groups(np.random.default_rng(0), 3)
    got = rfk.attention(q, k, v, groups=groups, causal=causal, window=10**9)
    np.testing.assert_allclose(got, exact(q, k, v, causal=causal), **CLOSE)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("by", ["groups", "features"])
def test_all_keys_heavy_is_exact(by: str, causal: bool, window: int | None) -> None:
    q, k, v = normal(3, 90, DIM)
    mask = np.random.default_rng(1).random(90) < 0.8
    positions = np.random.default_rng(2).permutation(90)
    given: Any = {"groups": make_groups(np.random.default_rng(0), 3)}
    if by == "features":
        given = {"features": rfk.draw("positive", DIM, 4, scale=SCALE, rng=0)}
    got = rfk.attention(q, k, v, heavy=positions, causal=causal, window=window, mask=mask, **given)
    np.testing.assert_allclose(got, exact(q, k, v, causal=causal, mask=mask), **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
def test_features_of_nothing_left_are_as_good_for_all_values(causal: bool) -> None:
    """With a centre at each key the residual is zero: φ(q)·φ(0) varies with the query alone, and cancels."""
    q, k, v = normal(3, 150, DIM)
    groups = centred(k)
    features = rfk.draw("positive", DIM, 3, scale=SCALE, rng=0)
    got = rfk.attention(q, k, v, features, groups=groups, full=True, causal=causal, window=None if not causal else 1)
    if not causal:
        np.testing.assert_allclose(got.output, exact(q, k, v), **CLOSE)
    own = rfk.log_kernel(q, np.zeros_like(q), features)
    logs = SCALE * q @ k.T + own[:, None]
    if causal:
        t, s = np.arange(150)[:, None], np.arange(150)
        logs = np.where(s // 16 == t // 16, SCALE * q @ k.T, logs)
        logs = np.where(s <= t, logs, -np.inf)
    np.testing.assert_allclose(got.log_normalizer, np.logaddexp.reduce(logs, -1), **CLOSE)


# No bias with features


@pytest.mark.parametrize("name", ["positive", "hyperbolic"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_sums_are_unbiased_with_features(grouped: bool, causal: bool, name: str) -> None:
    """A quadrature rule in the place of random rows gives expectations: those of sums are exact."""
    q, k = 0.6 * normal(2, 80, 2)
    v = normal(80, WIDTH, seed=1)
    rows, weights = testing.hermite()
    features = testing.bind(rfk.lookup(name), rows, scale=SCALE, log_weight=np.log(len(rows) * weights) / 2)
    groups = make_groups(np.random.default_rng(0), 4, dim=2) if grouped else None
    got = rfk.attention(q, k, v, features, groups=groups, heavy=np.array([1, 60]), causal=causal, window=5, full=True)
    np.testing.assert_allclose(got.output, exact(q, k, v, causal=causal), rtol=1e-8, atol=1e-9)
    if not causal:
        expected = rfk.exact_log_normalizer(q, k, scale=SCALE)
        np.testing.assert_allclose(got.log_normalizer, expected, atol=1e-9)


def test_order_zero_is_biased_and_says_so() -> None:
    """The other way round: no test above would notice features that are left out."""
    q, k, v = normal(3, 80, 2)
    got = rfk.attention(q, k, v, groups=make_groups(np.random.default_rng(0), 4, dim=2))
    assert np.abs(got - exact(q, k, v)).max() > 0.01
    assert "biased" in (rfk.grouping.summaries.__doc__ or "")


# Causality


@pytest.mark.parametrize("features", [0, 5])
def test_later_positions_touch_nothing_earlier(features: int) -> None:
    call = make_call(150, 150, True, 20, heavy=[0, 3, 120], masked=(), features=features)
    rng = np.random.default_rng(5)
    before = attend(call, full=True, backend="numpy")
    for cut in (1, 16, 77, 149):
        q, k, v, mask = (np.array(x) for x in (*call[:3], call.mask))
        q[cut:], k[cut:], v[cut:] = (1e3 * rng.normal(size=x[cut:].shape) for x in (q, k, v))
        mask[cut:] = rng.random(len(mask[cut:])) < 0.5
        after = attend(call._replace(q=q, k=k, v=v, mask=mask), full=True, backend="numpy")
        np.testing.assert_array_equal(after.output[:cut], before.output[:cut])
        np.testing.assert_array_equal(after.log_normalizer[:cut], before.log_normalizer[:cut])
        assert np.any(after.output[cut:] != before.output[cut:])


def test_masked_keys_touch_nothing() -> None:
    """Neither outputs, nor groups that are found from them."""
    q, k, v = normal(3, 120, DIM)
    mask = np.random.default_rng(1).random(120) < 0.6
    other = np.where(mask[:, None], k, 50 * k)
    for given in ({"groups": 9}, {"groups": 9, "heavy": 7, "window": 5}):
        one, two = (rfk.attention(q, x, v, mask=mask, **given) for x in (k, other))
        np.testing.assert_array_equal(one, two)
    long = normal(2500, DIM, seed=3)
    seen = np.arange(2500) % 50 == 0
    for one, two in zip(
        *(fit_groups(q, x, 9, mask=seen) for x in (long, np.where(seen[:, None], long, 7))), strict=True
    ):
        np.testing.assert_array_equal(one, two)


# Streaming


STREAMED = ["causal, heavy keys of each head", "causal, grouped queries", "causal, features in groups",
            "causal, features and heavy keys", "causal, several values to each key", "window over two blocks"]  # fmt: skip


@pytest.mark.parametrize("name", STREAMED)
def test_pieces_give_what_one_pass_gives(name: str) -> None:
    call = CASES[name]
    keys = call.k.shape[-2]
    whole = attend(call, full=True, backend="numpy")
    for cuts in (list(range(1, keys)), list(range(7, keys, 7)), [16, 32], [0, 0, 50], [keys]):
        output, log, state = pieces(call, cuts, backend="numpy")
        np.testing.assert_allclose(output, whole.output, **CLOSE)
        np.testing.assert_allclose(log, whole.log_normalizer, **CLOSE)
        assert isinstance(state, BlockState)
        assert state.position == keys
        held = state.mask.reshape(*state.mask.shape[:-2], -1)
        for one, two in zip(state.sums, whole.state.sums, strict=True):
            np.testing.assert_allclose(one, two, **CLOSE)
        np.testing.assert_array_equal(state.mask, whole.state.mask)
        for name in ("keys", "values"):
            one, two = (np.where(held[..., None], getattr(x, name), 0) for x in (state, whole.state))
            np.testing.assert_array_equal(one, two)


def test_a_state_is_as_large_after_many_keys_as_after_few() -> None:
    few, many = (attend(make_call(n, n, True, 20, heavy=[0, 1]), full=True, backend="numpy").state for n in (10, 300))
    for name in ("keys", "values", "mask", "heavy_keys", "heavy_values", "heavy_mask"):
        assert getattr(few, name).shape == getattr(many, name).shape
    assert [x.shape for x in few.sums] == [x.shape for x in many.sums]


def test_sums_of_two_machines_are_merged() -> None:
    """Far keys are a monoid: their sums are merged as those of features are."""
    call = make_call(160, 160, True, 1)
    first, second = (
        attend(call._replace(q=call.q[part], k=call.k[part], v=call.v[part]), full=True).state.sums
        for part in (slice(0, 80), slice(64, 160))
    )
    both = rfk.merge_states(first, second)  # each has left its last block of 16 out
    whole = attend(call._replace(q=call.q[:0]), full=True).state.sums
    for one, two in zip(both, whole, strict=True):
        np.testing.assert_allclose(one, two, **CLOSE)


def test_a_state_is_not_changed_by_its_use() -> None:
    call = make_call(40, 40, True, 5, heavy=[0, 1])
    state = attend(call, full=True).state
    copies = [np.array(x) for x in (*state.sums, state.keys, state.mask, state.heavy_keys)]
    attend(call, state=state)
    for one, two in zip(copies, (*state.sums, state.keys, state.mask, state.heavy_keys), strict=True):
        np.testing.assert_array_equal(one, two)


def test_heavy_keys_that_were_seen_need_not_be_named_again() -> None:
    call = make_call(90, 90, True, 5, heavy=[0, 3])
    whole = attend(call)
    state = attend(call._replace(q=call.q[:20], k=call.k[:20], v=call.v[:20]), full=True).state
    rest = call._replace(q=call.q[20:], k=call.k[20:], v=call.v[20:])
    np.testing.assert_allclose(attend(rest._replace(heavy=None), state=state), whole[20:], **CLOSE)
    nothing = attend(call._replace(q=call.q[:0], k=call.k[:0], v=call.v[:0]), full=True).state
    np.testing.assert_allclose(
        attend(call._replace(heavy=None), state=nothing), attend(call._replace(heavy=None)), **CLOSE
    )


def test_heavy_keys_beside_features_alone_need_not_be_named_again() -> None:
    call = make_call(90, 90, True, 5, heavy=[0, 3], groups=0, features=8)
    state = attend(call._replace(q=call.q[:20], k=call.k[:20], v=call.v[:20]), full=True).state
    rest = call._replace(q=call.q[20:], k=call.k[20:], v=call.v[20:], heavy=None)
    np.testing.assert_allclose(attend(rest, state=state), attend(call)[20:], **CLOSE)


def test_a_state_takes_what_is_wider_and_finer() -> None:
    """More batch axes and float64 after float32: as one pass over all of it."""
    call = make_call(60, 60, True, 5, batches=dict.fromkeys("qkv", (2,)))
    same = call.k[:1].repeat(2, 0)[:, :30].astype(np.float32)
    state = rfk.attention(call.q[0, :30].astype(np.float32), same[0], same[0, :, :WIDTH], groups=call.groups,
                          causal=True, window=5, full=True).state  # fmt: skip
    k = np.concatenate([same, call.k[:, 30:]], -2)
    v = np.concatenate([same[..., :WIDTH], call.v[:, 30:]], -2)
    rest = rfk.attention(
        call.q[:, 30:], k[:, 30:], v[:, 30:], groups=call.groups, causal=True, window=5, state=state, full=True
    )
    expected = rfk.attention(call.q[:, 30:], k, v, groups=call.groups, causal=True, window=5)
    np.testing.assert_allclose(rest.output, expected, rtol=1e-6, atol=1e-6)  # sums of the first part are float32
    assert rest.state.keys.dtype == rest.state.sums.kv.dtype == np.float64


# Norms and dtypes


@pytest.mark.parametrize("features", [0, 8])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("norm", [1e-3, 1e3])
def test_norms_of_keys(norm: float, causal: bool, features: int) -> None:
    call = make_call(70, 70, causal, 5, heavy=[0], features=features)
    call = call._replace(k=norm * call.k, groups=call.groups._replace(centres=norm * call.groups.centres))
    expected = grouped_oracle.expect(call)
    np.testing.assert_allclose(attend(call), expected.output, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(attend(call, full=True).log_normalizer, expected.log_normalizer, rtol=1e-9)


@pytest.mark.parametrize("features", [0, 8])
@pytest.mark.parametrize("at", [0, 40, 69])
@pytest.mark.parametrize("sign", [1, -1])
def test_one_huge_key(sign: int, at: int, features: int) -> None:
    """Exponents of ±1e4, in its own group: neither it nor all others are lost."""
    call = make_call(70, 70, True, 5, features=features)
    k = np.array(call.k)
    k[at] = sign * np.array([1e4, 0, 0, 0])
    centres = np.concatenate([call.groups.centres, k[at : at + 1]])
    q = np.concatenate([np.ones((70, 1)), call.q[:, 1:]], -1)
    call = call._replace(q=q, k=k, groups=call.groups._replace(centres=centres))
    expected = grouped_oracle.expect(call)
    for dtype, close in ((np.float64, 1e-8), (np.float32, 2e-3)):
        small = call._replace(**{name: getattr(call, name).astype(dtype) for name in "qkv"})
        got = attend(small, full=True)
        assert np.all(np.isfinite(got.output))
        np.testing.assert_allclose(got.output, expected.output, rtol=close, atol=close)
        np.testing.assert_allclose(got.log_normalizer, expected.log_normalizer, rtol=close, atol=close)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["causal, features in groups", "grouped queries", "more keys"])
def test_dtypes(name: str, dtype: str) -> None:
    kind = oracle.DTYPES[dtype]
    call = CASES[name]
    call = call._replace(**{part: getattr(call, part).astype(kind) for part in "qkv"})
    got = attend(call, full=True)
    assert got.output.dtype == kind
    assert got.log_normalizer.dtype == np.float32
    expected = grouped_oracle.expect(call)
    np.testing.assert_allclose(got.log_normalizer, expected.log_normalizer, atol=2e-4)
    atol = (
        1e-4
        if dtype == "float32"
        else 2 * float(np.abs(expected.output).max()) * float(oracle.ml_dtypes.finfo(kind).eps)
    )
    np.testing.assert_allclose(got.output.astype(np.float64), expected.output, atol=atol)
    if got.state is not None:
        assert got.state.keys.dtype == got.state.sums.kv.dtype == np.float32


def test_arrays_that_are_views() -> None:
    call = CASES["causal, grouped queries"]
    strided = call._replace(**{n: np.flip(np.flip(getattr(call, n), -2).copy(), -2) for n in "qkv"})
    for name in "qkv":
        getattr(strided, name).setflags(write=False)
    np.testing.assert_array_equal(attend(strided), attend(call))
