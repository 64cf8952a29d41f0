"""Attention from features that are given: the Numba backend's passes against their specification."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import rfkernels as rfk
from rfkernels.backends.numba import given
from rfkernels.backends.numba.jit import Machine

LENGTHS = (0, 3), (3, 0), (1, 90), (90, 1), (70, 70), (200, 130), (130, 200)


def arrays(length: int, keys: int, count: int = 7, width: int = 5, dtype: Any = np.float64) -> tuple[Any, Any, Any]:
    """Features of either sign whose products are positive for the most part, and values."""
    rng = np.random.default_rng(length + keys)
    phi_q, phi_k = rng.random((2, 3, length, count)) - 0.1, rng.random((2, 1, keys, count)) - 0.1
    return phi_q.astype(dtype), phi_k.astype(dtype), rng.standard_normal((1, keys, width)).astype(dtype)


def assert_same(phi_q: Any, phi_k: Any, v: Any, close: float = 1e-9, **options: Any) -> None:
    for causal in (False, True):
        got, expected = (
            rfk.linear_attention(phi_q, phi_k, v, causal=causal, backend=name, **options) for name in ("numba", "numpy")
        )
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(got, expected, rtol=close, atol=close)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_lengths_sizes_and_masks(lengths: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random((2, 1, lengths[1])) < 0.6
    for (count, width), seen in itertools.product(((1, 1), (7, 5), (100, 64)), (None, mask)):
        phi_q, phi_k, v = arrays(*lengths, count, width)
        assert_same(phi_q, phi_k, v, mask=seen)
    assert_same(phi_q, phi_k[0], v, mask=mask)


def test_nothing_is_seen() -> None:
    phi_q, phi_k, v = arrays(70, 80)
    none = np.zeros((2, 1, 80), bool)
    assert_same(phi_q, phi_k, v, mask=none)
    np.testing.assert_array_equal(rfk.linear_attention(phi_q, phi_k, v, mask=none), 0)
    np.testing.assert_array_equal(rfk.linear_attention(phi_q, phi_k[..., :3, :], v[:, :3], causal=True)[..., :67, :], 0)
    assert_same(phi_q[..., :0], phi_k[..., :0], v)
    assert_same(phi_q, phi_k, v[..., :0])


def test_arrays_that_lie_otherwise() -> None:
    phi_q, phi_k, v = arrays(150, 150, 64, 32, np.float32)
    turned = phi_q[..., ::-1, :], np.asfortranarray(phi_k), np.repeat(v, 2, -1)[..., ::2]
    fixed = [x.copy() for x in (phi_q, phi_k, v)]
    for x in fixed:
        x.flags.writeable = False
    kept = [x.copy() for x in fixed]
    for given_arrays in (turned, fixed):
        assert_same(*given_arrays, close=1e-4)
    for x, before in zip(fixed, kept, strict=True):
        np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_spans_on_threads(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", threads)
    monkeypatch.setattr("rfkernels.backends.numba.threads.SERIAL_WORK", 0)
    for lengths in ((1100, 1100), (700, 1100)):
        phi_q, phi_k, v = arrays(*lengths)
        assert_same(phi_q, phi_k, v)
        assert_same(phi_q[0, 0], phi_k[0, 0], v[0])


def test_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "machine", lambda: Machine(16, 4, 4))
    assert_same(*arrays(130, 130, dtype=np.float32), close=1e-4)


@pytest.mark.parametrize("name", ["phi_q", "phi_k", "v"])
@pytest.mark.parametrize("causal", [False, True])
def test_what_is_not_finite_is_named(name: str, causal: bool) -> None:
    for lengths in ((70, 70), (0, 70), (70, 0)):
        named = dict(zip(("phi_q", "phi_k", "v"), arrays(*lengths), strict=True))
        if not named[name].size:
            continue
        named[name][..., -1, 2] = np.nan
        with pytest.raises(ValueError, match=f"{name} "):
            rfk.linear_attention(**named, causal=causal)
        assert rfk.linear_attention(**named, causal=causal, check_finite=False).shape[-2] == lengths[0]


def test_features_whose_squares_overflow() -> None:
    phi_q, phi_k, v = arrays(70, 70, dtype=np.float32)
    assert_same(phi_q * np.float32(1e25), phi_k, v, close=1e-4)
    assert_same(phi_q, phi_k * np.float32(1e25), v, close=1e-4)
