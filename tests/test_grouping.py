"""Passes over blocks: near and heavy keys exact, all others in groups or features. NumPy; JAX is in test_grouping_jax."""

from __future__ import annotations

from typing import Any

import grouped_oracle
import numpy as np
import oracle
import pytest
from grouped_oracle import CASES, DIM, SCALE, WIDTH, Call, make_call, make_groups

import rfkernels as rfk
from rfkernels import testing
from rfkernels.grouping import BlockState, fit_groups, heavy_keys, plan_for

CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def attend(call: Call, **options: Any) -> Any:
    return rfk.attention(*call[:3], **{**call.options(), **options})


def centred(k: Any) -> rfk.Groups:
    """Return groups with these centres, in the metric of Euclid."""
    return rfk.Groups(centres=k, metric=np.eye(DIM), spread=np.eye(DIM), cross=None, scale=SCALE)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


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
    return rfk.exact_attention(q, k, v, scale=SCALE, **options)


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


def pieces(call: Call, cuts: list[int], **options: Any) -> Any:
    """Run a causal call in pieces; return outputs, log-normalisers and the last state."""
    state, outputs, logs, q, k, v = None, [], [], *call[:3]
    for start, stop in zip([0, *cuts], [*cuts, k.shape[-2]], strict=True):
        part = slice(start, stop)
        given = {**call.options(), "mask": None if call.mask is None else call.mask[..., part], **options}
        done = rfk.attention(q[..., part, :], k[..., part, :], v[..., part, :], state=state, full=True, **given)
        state = done.state
        outputs.append(done.output)
        logs.append(done.log_normalizer)
    return np.concatenate(outputs, -2), np.concatenate(logs, -1), state


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


# Errors


def arguments() -> dict[str, Any]:
    q, k, v = normal(3, 40, DIM)
    return {"q": q, "k": k, "v": v, "groups": make_groups(np.random.default_rng(0), 3)}


def causal_state(**options: Any) -> Any:
    return rfk.attention(**{**arguments(), "causal": True, "full": True, **options}).state


def bad(name: str, at: tuple[int, ...], value: float) -> Any:
    x = np.array(arguments()[name])
    x[at] = value
    return x


GROUPS, FEATURES = arguments()["groups"], rfk.draw("positive", DIM, 4, scale=SCALE, rng=0)
REFUSED: dict[str, tuple[type, str, dict[str, Any]]] = {
    "nothing for other keys": (TypeError, "features must be given, or groups=", {"groups": None, "heavy": 3}),
    "not groups": (TypeError, "groups must be a Groups .*got list", {"groups": [1, 2]}),
    "a tuple of arrays": (TypeError, "groups must be a Groups .*got tuple", {"groups": tuple(GROUPS)}),
    "no groups": (ValueError, "groups, .*must be a positive integer, got 0", {"groups": 0}),
    "a truth value": (ValueError, "groups, .*must be a positive integer, got True", {"groups": True}),
    "centres of another width": (
        ValueError,
        r"groups must have centres \(\*batch, count, 4\).*got \(3, 5\)",
        {"groups": make_groups(np.random.default_rng(0), 3, dim=5)},
    ),
    "a metric of another width": (ValueError, r"groups must have .*\(2, 2\)", {"groups": GROUPS._replace(metric=np.eye(2))}),
    "a spread of another width": (ValueError, r"groups must have .*\(2, 2\)", {"groups": GROUPS._replace(spread=np.eye(2))}),
    "centres that are a list": (TypeError, "groups.centres must be .*list", {"groups": GROUPS._replace(centres=[[0.0] * 4])}),
    "no centre": (ValueError, r"groups must have .*\(0, 4\)", {"groups": GROUPS._replace(centres=np.zeros((0, 4)))}),
    "batch axes of groups": (
        ValueError,
        r"batch axes do not broadcast: .*groups \(3,\)",
        {"groups": make_groups(np.random.default_rng(0), 3, (3,)), **{n: np.stack([arguments()[n]] * 2) for n in "qkv"}},
    ),
    "batch axes within groups": (
        ValueError,
        r"groups.centres \(2,\), groups.metric \(3,\)",
        {"groups": GROUPS._replace(centres=np.zeros((2, 3, 4)), metric=np.zeros((3, 4, 4)))},
    ),
    "two scales": (
        ValueError,
        "groups and features must have one scale, got 0.7 and 0.5",
        {"features": rfk.draw("positive", DIM, 4, rng=0)},
    ),
    "a signed map": (ValueError, "exponential, nonnegative", {"features": rfk.draw("trigonometric", DIM, 4, scale=SCALE, rng=0)}),
    "a map that is not exponential": (ValueError, "exponential, nonnegative", {"groups": None, "heavy": 2, "features": rfk.draw("relu", DIM, 4, rng=0)}),
    "features of another width": (ValueError, "features are of dim 3", {"features": rfk.draw("positive", 3, 4, rng=0)}),
    "something else for features": (TypeError, "features must be a Features", {"features": "positive"}),
    "packed sequences": (ValueError, "segment_ids= cannot be combined", {"segment_ids": np.zeros(40, int)}),
    "a window of nothing": (ValueError, "window must be a positive integer or None, got 0", {"window": 0}),
    "more queries than keys": (
        ValueError,
        "a key for each query, got lengths 40 and 30",
        {"causal": True, "k": arguments()["k"][:30], "v": arguments()["v"][:30]},
    ),
    "NaN in q": (ValueError, r"q must be finite, but q\[3, 1\] is nan", {"q": bad("q", (3, 1), np.nan)}),
    "infinity in k": (ValueError, r"k must be finite, but k\[5, 2\] is inf", {"k": bad("k", (5, 2), np.inf), "groups": 3}),
    "NaN in v": (ValueError, r"v must be finite, but v\[0, 0\] is nan", {"v": bad("v", (0, 0), np.nan), "causal": True}),
    "a mask of numbers": (TypeError, "mask must be of dtype bool", {"mask": np.ones(40), "groups": 3}),
    "a mask over pairs": (ValueError, r"mask must be over keys, .*got \(40, 40\)", {"mask": np.ones((40, 40), bool)}),
    "no heavy key": (ValueError, "heavy, .*must be a positive integer, got 0", {"heavy": 0}),
    "positions in a list": (ValueError, r"heavy, if not an array .*got \[1, 2\]", {"heavy": [1, 2]}),
    "positions that are not whole": (ValueError, "heavy must hold integers .*float64", {"heavy": np.ones(2)}),
    "truth values for positions": (ValueError, "heavy must hold integers .*bool", {"heavy": np.ones(40, bool)}),
    "one position": (ValueError, r"heavy must hold integers \(\*batch, heavy\).*shape \(\)", {"heavy": np.array(3)}),
    "a position twice": (ValueError, r"heavy must not hold a position twice, got \[1, 3, 3\]", {"heavy": np.array([3, 1, 3])}),
    "a position before the first": (ValueError, r"heavy must hold positions of at least 0 .*\[-1, 2\]", {"heavy": np.array([2, -1])}),
    "a position beyond the last": (ValueError, r"less than 40, got \[2, 40\]", {"heavy": np.array([40, 2])}),
    "batch axes of positions": (
        ValueError,
        r"batch axes do not broadcast: .*heavy \(3,\)",
        {"heavy": np.arange(6).reshape(3, 2), **{n: np.stack([arguments()[n]] * 2) for n in "qkv"}},
    ),
    "a state without positions": (ValueError, "bidirectional pass: its keys have no position", {"state": causal_state()}),
    "a state of sums": (
        TypeError,
        "state must be a BlockState .*got State",
        {"causal": True, "state": rfk.empty_state(FEATURES, DIM), "features": FEATURES},
    ),
    "a state of a window": (
        TypeError,
        "state must be a BlockState .*got DecodeState",
        {"causal": True, "window": 5, "state": rfk.empty_state(FEATURES, DIM, window=5), "features": FEATURES},
    ),
    "a state of blocks for features alone": (
        TypeError,
        "got a BlockState",
        {"groups": None, "causal": True, "features": FEATURES, "state": causal_state()},
    ),
    "a state of a shorter window": (
        ValueError,
        r"same window.*keys \(\*batch, 128, 4\), got \(32, 4\)",
        {"causal": True, "window": 64, "state": causal_state(window=16)},
    ),
    "a state that is as large by chance": (
        ValueError,
        r"same window.*mask \(\*batch, 2, 32\), got \(1, 64\)",
        {"causal": True, "window": 32, "state": causal_state()},
    ),
    "a state of other groups": (
        ValueError,
        r"same window, groups.*sums.kv \(\*batch, 3, 9\), got \(5, 9\)",
        {"causal": True, "state": causal_state(groups=make_groups(np.random.default_rng(0), 5))},
    ),
    "a state of merged groups": (
        ValueError,
        "same groups; those that are merged",
        {"causal": True, "state": causal_state(groups=3)},
    ),
    "merged groups from a state of others": (
        ValueError,
        "same groups; those that are merged",
        {"causal": True, "groups": 3, "state": causal_state()},
    ),
    "merged groups with features": (
        ValueError,
        "groups must be a Groups .*features as well",
        {"causal": True, "groups": 3, "features": FEATURES},
    ),
    "groups for values of another width": (
        ValueError,
        r"groups.cross must have shape \(\*batch, 4, 4\), .*got \(4, 2\)",
        {"groups": GROUPS._replace(cross=np.zeros((4, 2)))},
    ),
    "a second scale": (ValueError, "scale= goes with groups= given as a number", {"scale": 0.5}),
    "a state without features": (
        ValueError,
        r"sums.kv \(\*batch, 12, 4\), got \(3, 9\)",
        {"causal": True, "features": FEATURES, "state": causal_state()},
    ),
    "a state of other values": (
        ValueError,
        r"values \(\*batch, 64, 2\), got \(64, 4\)",
        {"causal": True, "v": arguments()["v"][:, :2], "state": causal_state()},
    ),
    "a state of fewer heavy keys": (
        ValueError,
        "heavy must be as in the pass that the state comes from, of 1 positions, got 4",
        {"causal": True, "heavy": 4, "state": causal_state(heavy=1)},
    ),
    "a state without heavy keys": (
        ValueError,
        "of 0 positions, got 2",
        {"causal": True, "heavy": np.array([50, 60]), "state": causal_state()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    kind, message, options = REFUSED[name]
    with pytest.raises(kind, match=message):
        rfk.attention(**{**arguments(), **options})


def test_what_is_not_finite_passes_if_asked() -> None:
    x = arguments() | {"k": bad("k", (5, 2), np.nan)}
    for given in ({}, {"groups": 3, "heavy": 2}):
        with np.errstate(invalid="ignore"):
            got = rfk.attention(**{**x, **given}, check_finite=False)
        assert got.shape == (40, DIM)


@pytest.mark.parametrize(
    ("kind", "message", "options"),
    [
        (ValueError, "count must be a positive integer, got 2.0", {"count": 2.0}),
        (ValueError, "scale must be a positive finite number, got -1", {"scale": -1}),
        (ValueError, r"q must hold at least one vector, got shape \(0, 4\)", {"q": np.zeros((0, 4))}),
        (ValueError, r"k must hold at least one vector, got shape \(0, 4\)", {"k": np.zeros((0, 4))}),
        (ValueError, r"k must be finite, but k\[1, 0\] is nan", {"k": bad("k", (1, 0), np.nan)}),
        (ValueError, "q and k must agree in dim", {"k": np.zeros((5, 3))}),
        (ValueError, "mask must be over keys", {"mask": np.ones(39, bool)}),
    ],
)
def test_fits_refuse(kind: type, message: str, options: dict[str, Any]) -> None:
    given: dict[str, Any] = {"q": arguments()["q"], "k": arguments()["k"], "count": 3, **options}
    with pytest.raises(kind, match=message):
        fit_groups(**given)
    with pytest.raises(kind, match=message):
        heavy_keys(**given)


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
    for given in ({}, {"heavy": 3}, {"features": FEATURES}, {"window": 3}):
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
def test_merged_groups_are_exact_while_there_are_enough(backend: str) -> None:
    """Of keys that occur often a group each is enough, whatever order they come in."""
    q, few, v = normal(120, DIM), normal(4, DIM, seed=1), normal(120, WIDTH, seed=2)
    k = few[np.random.default_rng(3).integers(4, size=120)]
    for keys, count in ((normal(120, DIM, seed=4), 120), (k, 40), (np.ones((120, DIM)), 2)):
        got = rfk.attention(q, keys, v, groups=count, causal=True, window=1, backend=backend)
        np.testing.assert_allclose(got, rfk.exact_attention(q, keys, v, causal=True), **CLOSE)


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
@pytest.mark.parametrize("value", [np.nan, 1e19, 1e30])
def test_merging_ends_whatever_the_keys(value: float, backend: str) -> None:
    """Squares that overflow, and what is not a number."""
    q, k, v = normal(3, 60, DIM).astype(np.float32)
    k[3], k[5:9] = value, -value
    with np.errstate(all="ignore"):
        got = rfk.attention(q, k, v, groups=4, causal=True, window=1, check_finite=False, backend=backend)
    assert got.shape == v.shape


def test_numba_merges_as_is_specified() -> None:
    pytest.importorskip("numba")
    from rfkernels.backends.numba.merging import reduced as compiled
    from rfkernels.grouping.merging import reduced

    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, weight = rng.normal(size=(2, 40, 3)), rng.random((2, 40)) * (rng.random((2, 40)) < 0.8)
        one, two = (np.where(weight > 0, f(np, x, weight, 11), -1) for f in (compiled, reduced))
        np.testing.assert_array_equal(one, two)
        assert set(two[0]) == {-1, *range(11)}


def test_sums_of_kernels_in_groups_on_every_backend() -> None:
    """Values of no width are not the same as no values."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 3, 200, 8))
    exact = rfk.exact_log_normalizer(q, k, scale=8**-0.5)
    found = [rfk.log_normalizer(q, k, groups=32, heavy=4, backend=name) for name in ("numpy", "numba")]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10)
    assert np.abs(found[0] - exact).max() < 0.2
