"""Features beside near and heavy keys in compiled tiles, against the specification of passes over blocks."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from grouped_oracle import Call, attend, make_call, normal, pieces

import rfkernels as rfk

threads = pytest.importorskip("rfkernels.backends.numba.threads")

GROUPED = {"q": (2, 2, 3), "k": (2, 2, 1), "v": (2, 2, 1)}

CASES = {
    "causal": make_call(150, 150, True, 20, heavy=[0, 149, 40], masked=(), features=6, groups=0),
    "causal, no window": make_call(200, 200, True, None, heavy=[0, 3], features=6, groups=0),
    "causal, long blocks": make_call(400, 400, True, 100, heavy=[0, 77], features=6, groups=0),
    "causal, one block": make_call(9, 9, True, 20, heavy=[0], features=6, groups=0),
    "causal, more keys": make_call(50, 130, True, 20, heavy=[3, 129], masked=(), features=6, groups=0),
    "causal, one query": make_call(1, 130, True, 20, heavy=[3, 129], features=6, groups=0),
    "causal, no queries": make_call(0, 70, True, 5, heavy=[3], features=6, groups=0),
    "causal, grouped queries": make_call(
        70, 70, True, 16, heavy=[0, 1], masked=(2, 1, 1), features=6, groups=0, batches=GROUPED
    ),
    "causal, no heavy keys": make_call(90, 90, True, 20, features=6, groups=0)._replace(heavy=np.zeros(0, int)),
    "causal, most keys are heavy": make_call(260, 260, True, 1, heavy=[*range(200)], features=6, groups=0),
    "both sides": make_call(150, 150, False, 20, heavy=[0, 149, 40], masked=(), features=6, groups=0),
    "both sides, one window": make_call(150, 150, False, 1, heavy=[5], features=6, groups=0),
    "both sides, long blocks": make_call(400, 400, False, 100, heavy=[0, 77], features=6, groups=0),
    "both sides, wide window": make_call(150, 150, False, 1000, heavy=[0, 77], features=6, groups=0),
    "both sides, more keys": make_call(50, 330, False, 20, heavy=[3, 129], masked=(), features=6, groups=0),
    "both sides, more queries": make_call(330, 50, False, 20, heavy=[3, 29], masked=(), features=6, groups=0),
    "both sides, no queries": make_call(0, 70, False, 5, heavy=[3], features=6, groups=0),
    "both sides, grouped queries": make_call(
        70, 70, False, 16, heavy=[0, 1], masked=(2, 1, 1), features=6, groups=0, batches=GROUPED
    ),
    "no window": make_call(150, 170, False, None, heavy=[0, 149, 40], masked=(), features=6, groups=0),
    "no window, grouped queries": make_call(70, 90, False, None, heavy=[1], features=6, groups=0, batches=GROUPED),
    "features of each head": make_call(
        90,
        90,
        True,
        16,
        heavy=[[0], [5]],
        features=6,
        groups=0,
        batches=dict.fromkeys(("q", "k", "v", "features"), (2,)),
    ),
    "nothing allowed": make_call(40, 40, False, 5, heavy=[3], features=6, groups=0)._replace(mask=np.zeros(40, bool)),
}
CLOSE = {"rtol": 1e-8, "atol": 1e-9}


def assert_same(call: Call, **options: Any) -> None:
    expected, got = (attend(call, full=True, backend=backend, **options) for backend in ("numpy", "numba"))
    np.testing.assert_allclose(got.output, expected.output, **CLOSE)
    np.testing.assert_allclose(got.log_normalizer, expected.log_normalizer, **CLOSE)
    np.testing.assert_array_equal(got.sign, expected.sign)
    assert (got.state is None) == (expected.state is None) == (not call.causal)
    if call.causal:
        for one, two in zip(*(sums_of(x.state) for x in (got, expected)), strict=True):
            np.testing.assert_allclose(one, two, **CLOSE)
        np.testing.assert_array_equal(got.state.mask, expected.state.mask)


def sums_of(state: Any) -> list[Any]:
    """Return sums on the scale of 1: backends may keep them on others."""
    scale = np.exp(state.sums.shift)
    return [state.sums.kv * scale[..., None], state.sums.z * scale, state.heavy_keys, state.heavy_values]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no pass fall back on the specification."""

    def refuse(*_: Any) -> None:
        raise AssertionError("not compiled")

    monkeypatch.setattr("rfkernels.backends.numba.blocks.numpy.blocks", refuse)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", CASES)
def test_as_is_specified(name: str) -> None:
    assert_same(CASES[name])


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 20])
def test_heads_and_chunks_on_threads(causal: bool, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SERIAL_WORK", 0)
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "3")
    used, run = [], threads.run
    monkeypatch.setattr(
        threads, "run", lambda tasks, count, after=(): used.append(len(tasks)) or run(tasks, count, after)
    )
    for heads in ((), (5,)):
        batches = dict.fromkeys("qkv", heads)
        assert_same(
            make_call(1500, 1500, causal, window, heavy=[7, 900], masked=(), features=6, groups=0, batches=batches)
        )
    assert max(used) >= 5


@pytest.mark.usefixtures("compiled")
def test_two_activations() -> None:
    for base in ("causal", "both sides", "no window"):
        call = CASES[base]
        assert_same(call._replace(features=rfk.draw("hyperbolic", call.q.shape[-1], 32, scale=0.3, rng=0)))


@pytest.mark.usefixtures("compiled")
def test_features_that_are_fitted() -> None:
    """They have centres of their own on either side."""
    call = CASES["causal"]
    fitted = rfk.fit(call.q, call.k, 16, scale=0.7, method="tilted", rng=0)
    for base in ("causal", "both sides", "no window"):
        assert_same(CASES[base]._replace(features=fitted))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("causal", [False, True])
def test_single_precision(dtype: str, causal: bool) -> None:
    q, k, v = (np.asarray(x, dtype) for x in normal(3, 2, 300, 40, seed=3) / 2)
    features = rfk.draw("positive", 40, 64, rng=0)
    options = {"features": features, "window": 32, "heavy": 4, "causal": causal}
    got, wide = (rfk.attention(*(x.astype(t) for x in (q, k, v)), **options) for t in (dtype, np.float64))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, wide, atol=5e-3)


@pytest.mark.parametrize("cuts", [[16, 32], [7], list(range(1, 100, 3)), [0, 50, 99]])
def test_from_a_state(cuts: list[int]) -> None:
    """Wherever a block is cut, and whichever backend the state is of."""
    call = make_call(
        100,
        100,
        True,
        5,
        heavy=[0, 77],
        masked=(),
        features=6,
        groups=0,
        batches={"q": (2, 3), "k": (2, 1), "v": (2, 1)},
    )
    expected = pieces(call, cuts, backend="numpy")
    found = pieces(call, cuts, backend="numba")
    for one, two in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(one, two, **CLOSE)
    for one, two in zip(sums_of(found[2]), sums_of(expected[2]), strict=True):
        np.testing.assert_allclose(one, two, **CLOSE)
    half, rest = (
        call._replace(**{name: getattr(call, name)[..., part, :] for name in "qkv"}, mask=call.mask[part])
        for part in (slice(55), slice(55, None))
    )
    state = attend(half, full=True, backend="numpy").state
    one, two = (attend(rest, state=state, backend=name) for name in ("numpy", "numba"))
    np.testing.assert_allclose(one, two, **CLOSE)


def test_code_lives_as_long_as_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of threads that compile at once, all but one have code that no cache keeps."""
    from rfkernels.backends.numba import block_kernels, far_features, far_schedule

    made: list[Any] = []

    def compiled_here(*given: Any) -> Any:
        code = block_kernels.blockwise.__wrapped__(*given)
        made.append(weakref.ref(code))
        return code

    def blocks(*given: Any) -> int:
        gc.collect()
        assert made[-1]() is not None
        return run(*given)

    run = far_schedule.blocks
    monkeypatch.setattr(far_features, "blockwise", compiled_here)
    monkeypatch.setattr(far_schedule, "blocks", blocks)
    for name in ("causal", "both sides", "no window"):
        attend(CASES[name], backend="numba")
    assert len(made) == 3
