"""Packed sequences: each of several in a row gets what it would get alone (on JAX: test_jax_segments.py)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import oracle
import pytest

import rfkernels as rfk

MODES: dict[str, dict[str, Any]] = {
    "bidirectional": {},
    "causal": {"causal": True},
    "window": {"window": 9},
    "causal window": {"causal": True, "window": 9},
    "wide causal window": {"causal": True, "window": 150},
}
STARTS = (0, 1, 2, 40, 105, 169)
LENGTH = 200
ROW = np.repeat(np.array([-3, 0, 1, 5, 6, 900]), np.diff((*STARTS, LENGTH)))

every_backend = pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def inputs(*batch: int, dtype: Any = np.float64, dim: int = 8) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(7)
    q, k = (oracle.normal(rng, *batch, LENGTH, dim, dtype=np.dtype(dtype)) for _ in range(2))
    return q, k, oracle.normal(rng, *batch, LENGTH, 5, dtype=np.dtype(dtype))


def attend(backend: str, q: Any, k: Any, v: Any, features: rfk.Features, **options: Any) -> Any:
    return rfk.attention(q, k, v, features, backend=backend, full=True, **options)


def check(backend: str, q: Any, k: Any, v: Any, features: rfk.Features, **options: Any) -> None:
    result = attend(backend, q, k, v, features, **options)
    assert (result.state is None) is ("window" in options and "causal" not in options)
    oracle.check_result(result, oracle.expect(q, k, v, features, **options), q.dtype)


@every_backend
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, mode) for name in ("positive", "hyperbolic", "trigonometric") for mode in MODES),
        *((name, mode) for name in ("relu", "signed") for mode in ("bidirectional", "causal")),
    ],
)
def test_queries_see_keys_of_their_own_segment(backend: str, name: str, mode: str) -> None:
    features = oracle.draw(name, 8, 33)
    rows = np.stack([ROW, np.zeros_like(ROW), np.arange(LENGTH) // 61])[:, None]
    check(backend, *inputs(3, 2), features, segment_ids=rows, **MODES[mode])


@every_backend
@every_mode
def test_with_masks_and_grouped_queries(backend: str, mode: dict[str, Any]) -> None:
    q, k, v = inputs(2, 2, 3)
    mask = np.random.default_rng(0).random((2, 1, 1, LENGTH)) < 0.6
    mask[..., 40:105] = False  # a whole segment
    rows = np.stack([ROW, np.arange(LENGTH) // 70])[:, None, None]
    features = oracle.draw("positive", 8, 32, batch=(2, 1))
    check(backend, q, k[:, :, :1], v[:, :, :1], features, segment_ids=rows, mask=mask, **mode)


@every_backend
@every_mode
def test_norms_that_jump_between_segments(backend: str, mode: dict[str, Any]) -> None:
    q, k, v = inputs(2, dtype=np.float32)
    scale = np.where(ROW % 2 == 0, 30, 1).astype(np.float32)[:, None]
    for factor in (scale, 31 - scale):
        check(backend, q, k * factor, v, oracle.draw("positive", 8, 32), segment_ids=ROW, **mode)


@every_backend
@every_mode
def test_each_segment_by_itself_gives_the_same(backend: str, mode: dict[str, Any]) -> None:
    q, k, v = inputs()
    features = oracle.draw("positive", 8, 32)
    packed = attend(backend, q, k, v, features, segment_ids=ROW, **mode)
    for low, high in pairwise((*STARTS, LENGTH)):
        alone = attend(backend, q[low:high], k[low:high], v[low:high], features, **mode)
        np.testing.assert_allclose(packed.output[low:high], alone.output, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(packed.log_normalizer[low:high], alone.log_normalizer, rtol=1e-9, atol=1e-12)


@every_backend
@pytest.mark.parametrize("mode", ["bidirectional", "causal", "causal window", "wide causal window"])
def test_states_go_in_at_the_first_segment_and_come_out_of_the_last(backend: str, mode: str) -> None:
    """The first segment goes on from the state before, and the last goes on in a later call."""
    options, features = MODES[mode], oracle.draw("positive", 8, 32)
    q, k, v = inputs(2)
    cut, last = 120, slice(STARTS[-1], LENGTH)

    def part(rows: slice, **given: Any) -> Any:
        return attend(backend, q[:, rows], k[:, rows], v[:, rows], features, **given, **options)

    first = part(slice(0, cut), segment_ids=ROW[:cut])
    second = part(slice(cut, None), segment_ids=ROW[cut:], state=first.state)
    if options:
        whole = part(slice(0, None), segment_ids=ROW)
        np.testing.assert_allclose(second.output, whole.output[:, cut:], rtol=1e-8, atol=1e-11)
    again, alone = slice(0, 30), part(last)
    expected = part(again, state=alone.state).output
    np.testing.assert_allclose(part(again, state=second.state).output, expected, rtol=1e-8, atol=1e-11)


@every_mode
def test_exact_attention(mode: dict[str, Any]) -> None:
    q, k, v = inputs(2)
    packed = rfk.exact_attention(q, k, v, segment_ids=ROW, **mode)
    for low, high in pairwise((*STARTS, LENGTH)):
        alone = rfk.exact_attention(q[:, low:high], k[:, low:high], v[:, low:high], **mode)
        np.testing.assert_allclose(packed[:, low:high], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["numpy", None])
def test_nothing_in_segments(backend: str | None) -> None:
    features, q, k, v = oracle.draw("positive", 8, 32), *inputs(2)
    options: dict[str, Any] = {"full": True, "backend": backend}
    for heads, length in ((2, 0), (0, LENGTH), (0, 0)):
        given = (x[:heads, :length] for x in (q, k, v))
        ids = np.broadcast_to(ROW[:length], (heads, length))
        empty = rfk.attention(*given, features, segment_ids=ids, **options)
        assert empty.output.shape == (heads, length, 5)
        assert (np.asarray(empty.state.shift) == -np.inf).all()


def test_many_short_segments() -> None:
    features = oracle.draw("positive", 8, 32)
    q, k, v = inputs(2)
    alone = rfk.attention(q, k, v, features, causal=True, segment_ids=np.arange(LENGTH))
    np.testing.assert_allclose(alone, v, rtol=1e-9)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0] * LENGTH, TypeError, "segment_ids must be an array of integers, got list"),
        (np.zeros(LENGTH), TypeError, "segment_ids must be of an integer dtype, got float64"),
        (ROW > 0, TypeError, "segment_ids must be of an integer dtype, got bool"),
        (
            ROW[:-1],
            ValueError,
            r"segment_ids must have shape \(\*batch, 200\) with axes that broadcast to \(2,\), got \(199,\)",
        ),
        (np.stack([ROW] * 3), ValueError, r"got \(3, 200\)"),
        (ROW[::-1], ValueError, r"segment_ids must not decrease, but segment_ids\[31\] is less"),
        (np.stack([ROW, -ROW]), ValueError, r"segment_ids\[1, 1\] is less"),
    ],
)
def test_what_is_refused(ids: Any, error: type[Exception], message: str) -> None:
    q, k, v = inputs(2)
    features = oracle.draw("positive", 8, 32)
    with pytest.raises(error, match=message):
        rfk.attention(q, k, v, features, segment_ids=ids)
    with pytest.raises(error, match=message):
        rfk.exact_attention(q, k, v, segment_ids=ids)


def test_other_lengths_are_refused() -> None:
    q, k, v = inputs(2)
    with pytest.raises(ValueError, match="where q and k have the same length, got lengths 199 and 200"):
        rfk.attention(q[:, 1:], k, v, oracle.draw("positive", 8, 32), segment_ids=ROW)
