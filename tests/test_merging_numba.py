"""Groups that are merged from the past in compiled tiles, against their specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from grouped_oracle import DIM, attend, make_call, normal, pieces

import rfkernels as rfk

threads = pytest.importorskip("rfkernels.backends.numba.threads")

CASES = {
    "two rounds": (3, make_call(150, 150, True, 5)),
    "one group": (1, make_call(100, 100, True, 1, masked=())),
    "more groups than keys": (200, make_call(100, 100, True, 1)),
    "as many places as lanes": (32, make_call(130, 130, True, 1, heavy=[0, 40, 129])),
    "blocks of 32": (9, make_call(200, 200, True, 40, masked=(), heavy=[3])),
    "long blocks": (70, make_call(400, 400, True, 64)),
    "no window": (9, make_call(300, 300, True, None, masked=())),
    "near keys in two tiles": (9, make_call(1200, 1200, True, 330)),
    "more keys": (6, make_call(50, 130, True, 20, heavy=[3, 129], masked=())),
    "a block without queries": (6, make_call(1, 130, True, 1)),
    "no queries": (6, make_call(0, 70, True, 1)),
    "grouped queries": (
        7,
        make_call(
            70, 70, True, 1, heavy=[0], masked=(2, 1, 1), batches={"q": (2, 2, 3), "k": (2, 2, 1), "v": (2, 2, 1)}
        ),
    ),
    "several values to each key": (7, make_call(70, 70, True, 1, batches={"v": (2,)})),
    "masks of each head": (7, make_call(90, 90, True, 1, masked=(3,), batches={"q": (3,)})),
    "nothing allowed": (7, make_call(90, 90, True, 1)._replace(mask=np.zeros(90, bool))),
    "keys that are the same": (7, make_call(90, 90, True, 1)._replace(k=np.ones((90, DIM)))),
}


def assert_same_state(got: Any, expected: Any) -> None:
    """Places of groups included; what stands for keys that there are none of does not count."""
    np.testing.assert_array_equal(got.mask, expected.mask)
    held = expected.mask.reshape(*expected.mask.shape[:-2], -1, 1)
    for one, two in zip(
        (*got.sums, got.mass, got.within, got.heavy_keys, held * got.keys, held * got.values, got.position),
        (*expected.sums, expected.mass, expected.within, expected.heavy_keys)
        + (held * expected.keys, held * expected.values, expected.position),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_as_is_specified(name: str) -> None:
    count, call = CASES[name]
    call = call._replace(groups=count)
    expected, got = (attend(call, full=True, backend=backend) for backend in ("numpy", "numba"))
    np.testing.assert_allclose(got.output, expected.output, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(got.log_normalizer, expected.log_normalizer, rtol=1e-9, atol=1e-10)
    assert_same_state(got.state, expected.state)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_in_single_precision(dtype: str) -> None:
    q, k, v = (np.asarray(x, dtype) for x in normal(3, 2, 300, 40, seed=3) / 2)
    got, expected = (
        rfk.attention(*(x.astype(t) for x in (q, k, v)), groups=20, window=32, causal=True) for t in (dtype, np.float64)
    )
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected, atol=5e-3)


@pytest.mark.parametrize("cuts", [[16, 32], [7], list(range(1, 100, 3)), [0, 50, 99]])
def test_from_a_state(cuts: list[int]) -> None:
    """Wherever a block is cut, and whichever backend the state is of."""
    call = make_call(100, 100, True, 5, heavy=[0, 77], masked=(), batches={"q": (2, 3), "k": (2, 1), "v": (2, 1)})
    call = call._replace(groups=6)
    expected = pieces(call, cuts, backend="numpy")
    for one, two in zip(pieces(call, cuts, backend="numba")[:2], expected[:2], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-10)
    assert_same_state(pieces(call, cuts, backend="numba")[2], expected[2])
    half = call._replace(**{name: getattr(call, name)[..., :55, :] for name in "qkv"}, mask=call.mask[:55])
    rest = call._replace(**{name: getattr(call, name)[..., 55:, :] for name in "qkv"}, mask=call.mask[55:])
    state = attend(half, full=True, backend="numpy").state
    one, two = (attend(rest, state=state, backend=name) for name in ("numpy", "numba"))
    np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-10)


def test_heads_run_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    call = make_call(100, 100, True, 5, heavy=[0, 77], masked=(), batches=dict.fromkeys("qkv", (5,)))
    call = call._replace(groups=6)
    expected = attend(call, backend="numpy")
    used, run = [], threads.run
    monkeypatch.setattr(threads, "run", lambda tasks, count, after=(): used.append(count) or run(tasks, count, after))
    monkeypatch.setattr(threads, "SERIAL_WORK", 0)
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "3")
    np.testing.assert_allclose(attend(call, backend="numba"), expected, rtol=1e-9, atol=1e-10)
    assert used == [3]


@pytest.mark.parametrize("groups", [3, "given"])
def test_from_a_state_of_no_heads(groups: Any) -> None:
    call = make_call(40, 40, True, 5, batches=dict.fromkeys("qkv", (0,)))
    call = call if groups == "given" else call._replace(groups=groups)
    for backend in ("numpy", "numba"):
        state = attend(call, full=True, backend=backend).state
        assert attend(call, state=state, backend=backend).shape == call.v.shape
