"""Exact attention of the Numba backend against its specification, which is compared with all weights elsewhere."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest

import rfkernels as rfk
from rfkernels.backends.numba import exact, packing
from rfkernels.backends.numba.jit import Machine

GAUSSIAN = rfk.lookup("gaussian").kernel
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
WIDE_CLOSE = {np.float64: 1e-12, np.float32: 2e-5, np.float16: 2e-3, ml_dtypes.bfloat16: 2e-2}
SEEN: tuple[dict[str, Any], ...] = ({}, {"window": 9}, {"causal": True}, {"causal": True, "window": 70})


def both(q: Any, k: Any, v: Any, **options: Any) -> list[Any]:
    return [rfk.exact_attention(q, k, v, backend=name, **options) for name in ("numba", "numpy")]


def arrays(*sizes: int, dtype: Any = np.float64, dim: int = 5, width: int = 3) -> tuple[Any, Any, Any]:
    length, keys = sizes[0], sizes[-1]
    rng = np.random.default_rng(length + keys)
    shapes = (2, 3, length, dim), (2, 1, keys, dim), (2, 1, keys, width)
    q, k, v = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("options", SEEN, ids=str)
@pytest.mark.parametrize("dtype", WIDE_CLOSE)
def test_dtypes_and_shared_keys(dtype: Any, options: dict[str, Any]) -> None:
    for sizes, kernel in itertools.product(((70,), (300,), (1, 130), (130, 1)), (rfk.kernels.EXPONENTIAL, GAUSSIAN)):
        q, k, v = arrays(*sizes, dtype=dtype)
        mask = np.random.default_rng(0).random((2, 1, sizes[-1])) < 0.7
        for seen in (None, mask):
            got, expected = both(q, k, v, mask=seen, kernel=kernel, scale=0.4, **options)
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape) == (q.dtype, (2, 3, sizes[0], 3))
            wide = got.astype(np.float64), expected.astype(np.float64)
            np.testing.assert_allclose(*wide, rtol=WIDE_CLOSE[dtype], atol=WIDE_CLOSE[dtype])


@pytest.mark.parametrize("options", SEEN, ids=str)
def test_arrays_that_lie_otherwise(options: dict[str, Any]) -> None:
    q, k, v = arrays(150, dim=64, width=16, dtype=np.float32)
    turned = q[..., ::-1, :], np.asfortranarray(k), np.repeat(v, 2, -1)[..., ::2]
    fixed = [x.copy() for x in (q, k, v)]
    for x in fixed:
        x.flags.writeable = False
    for given in (turned, fixed):
        got, expected = both(*given, **options)
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("options", SEEN, ids=str)
def test_segments(options: dict[str, Any]) -> None:
    q, k, v = arrays(150)
    segments = np.sort(np.random.default_rng(0).integers(0, 5, (2, 1, 150)), -1)
    np.testing.assert_allclose(*both(q, k, v, segment_ids=segments, **options), **CLOSE)


@pytest.mark.parametrize("options", SEEN, ids=str)
@pytest.mark.parametrize("threads", ["1", "3"])
def test_spans_on_threads(threads: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", threads)
    monkeypatch.setattr("rfkernels.backends.numba.threads.SERIAL_WORK", 0)
    for sizes in ((1100,), (1100, 700), (700, 1100)):
        np.testing.assert_allclose(*both(*arrays(*sizes), **options), **CLOSE)


@pytest.mark.parametrize("target", [Machine(16, 8, 8), Machine(16, 4, 6), Machine(16, 4, 4)])
def test_other_register_tiles(target: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "machine", lambda: target)
    for options in SEEN:
        np.testing.assert_allclose(*both(*arrays(150), **options), **CLOSE)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_normalizers(dtype: Any) -> None:
    for sizes, kernel in itertools.product(((150,), (0, 5), (5, 0)), (rfk.kernels.EXPONENTIAL, GAUSSIAN)):
        q, k, _ = arrays(*sizes, dtype=dtype)
        mask = np.random.default_rng(0).random((2, 1, sizes[-1])) < 0.7
        for seen in (None, mask, np.zeros_like(mask)):
            given = {"mask": seen, "kernel": kernel, "return_sign": True}
            found = [rfk.exact_log_normalizer(q, k, backend=name, **given) for name in ("numba", "numpy")]
            for got, expected in zip(*found, strict=True):
                assert got.dtype == expected.dtype == dtype
                np.testing.assert_allclose(got, expected, rtol=WIDE_CLOSE[dtype], atol=WIDE_CLOSE[dtype])


def test_kernels_that_are_not_compiled_are_those_of_the_reference() -> None:
    q, k, v = arrays(40)
    np.testing.assert_array_equal(*both(q, k, v, kernel=rfk.lookup("relu").kernel))


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(name: str, value: float) -> None:
    for sizes in ((150,), (0, 150), (150, 0)):
        given = dict(zip("qkv", arrays(*sizes, dim=64, width=64, dtype=np.float32), strict=True))
        if given[name].size:
            given[name][..., -1, -1] = value
            with pytest.raises(ValueError, match=rf"^{name} must be finite"):
                rfk.exact_attention(**given)
    with pytest.raises(ValueError, match="keys"):
        rfk.exact_log_normalizer(np.ones((3, 2)), np.full((3, 2), value))


def test_no_thread_keeps_more_than_a_pass_over_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Working memory does not grow with lengths."""
    taken: list[int] = []
    placed = packing.placed

    def watched(memory: Any, sizes: dict[str, int], element: int) -> Any:
        taken.append(element * sum(sizes.values()))
        return placed(memory, sizes, element)

    monkeypatch.setattr(packing, "placed", watched)
    for length in (600, 1200):
        packing._memory.scratch = None
        q, k, v = (oracle.normal(np.random.default_rng(0), length, 64) for _ in range(3))
        rfk.exact_attention(q, k, v)
    assert max(taken) < 1 << 20


def test_what_is_let_pass_goes_where_arithmetic_takes_it() -> None:
    for name, value in itertools.product("qkv", (np.nan, np.inf)):
        given = dict(zip("qkv", arrays(150, dtype=np.float32), strict=True))
        given[name][..., 7, 1] = value
        with np.errstate(all="ignore"):
            got, expected = both(**given, check_finite=False)
        assert not np.isfinite(expected).all()
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("options", [{"window": 2}, {"window": 2, "causal": True}], ids=str)
def test_keys_that_nobody_sees_are_to_be_finite(options: dict[str, Any]) -> None:
    q, k, v = arrays(3, 700)
    k[..., 300, 1] = np.nan
    for queries in (q, q[..., :0, :]):
        with pytest.raises(ValueError, match=r"^k must be finite"):
            rfk.exact_attention(queries, k, v, **options)


def test_gaussian_kernels_far_from_the_origin() -> None:
    """Squared norms cancel in the log of the kernel, which is never above 0."""
    q, k, v = (x.astype(np.float32) for x in arrays(40, dim=8))
    for size in (1e2, 1e4):
        far = q + np.float32(size), k + np.float32(size), v
        np.testing.assert_allclose(*both(*far, kernel=GAUSSIAN, scale=1.0), rtol=1e-4, atol=1e-4)
        log = rfk.exact_log_normalizer(far[1][..., :1, :], far[1][..., :1, :], kernel=GAUSSIAN)
        assert (log <= 0).all()


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 1.3e19), (np.float64, 9e153)])
def test_logs_near_the_lowest_number_count(dtype: Any, size: float) -> None:
    q, k = (size * np.array(x, dtype) for x in ([[1], [-1], [0.1]], [[-1], [-0.5]]))
    v = np.array([[1], [2]], dtype)
    for options in ({}, {"window": 1}):
        np.testing.assert_array_equal(*both(q, k[: len(q)], v, **options))
    logs = [rfk.exact_log_normalizer(q, k, backend=name) for name in ("numba", "numpy")]
    np.testing.assert_allclose(*logs, rtol=1e-6)
    mask = np.zeros(2, bool)
    assert not np.any(both(q, k, v, mask=mask))


def test_no_kernel_is_kept() -> None:
    def made() -> Any:
        return rfk.Kernel("own", lambda xp, dot, xx, yy: dot, norm_weight=0.0)

    q, k, v = arrays(20)
    kernel = made()
    known = weakref.ref(kernel)
    np.testing.assert_allclose(rfk.exact_attention(q, k, v, kernel=kernel), rfk.exact_attention(q, k, v))
    del kernel
    gc.collect()
    assert known() is None


def test_edges_of_triangles_stay_in_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last of 64 rows, of which 12 are multiplied at once, in vectors of 2."""
    monkeypatch.setattr(packing, "machine", lambda: Machine(16, 4, 6))
    q, k, v = (x[0, 0] for x in arrays(130))
    features = rfk.draw("positive", 5, 8, rng=0)
    for window in (None, 3, 64):
        options = {"causal": True, "window": window}
        expected = rfk.attention(q, k, v, features, backend="numpy", **options)
        np.testing.assert_allclose(rfk.attention(q, k, v, features, **options), expected, **CLOSE)
