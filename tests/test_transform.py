"""Features themselves: those that the Numba backend writes against their specification."""

from __future__ import annotations

import dataclasses
import itertools
import re
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest

import rfkernels as rfk
from rfkernels import estimates
from rfkernels._arrays import read_only
from rfkernels.backends.numba import transforms
from rfkernels.backends.numba.jit import Machine
from rfkernels.features import SideName

CLOSE = {np.float64: 1e-13, np.float32: 1e-5, np.float16: 2e-3, ml_dtypes.bfloat16: 2e-2}
SIDES: tuple[SideName, ...] = ("query", "key")


def assert_same(x: Any, features: rfk.Features) -> None:
    """Compare, relative to the largest feature: those near zero are as precise as what they are functions of."""
    for side in SIDES:
        got, expected = (rfk.transform(x, features, side=side, backend=name) for name in ("numba", "numpy"))
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        got, expected = got.astype(np.float64), expected.astype(np.float64)
        scale = np.abs(expected).max(initial=0)
        np.testing.assert_allclose(got, expected, rtol=CLOSE[x.dtype.type], atol=CLOSE[x.dtype.type] * scale)


def rows(*shape: int, dtype: Any = np.float64) -> Any:
    return (np.random.default_rng(shape[-2]).standard_normal(shape) * 0.6).astype(dtype)


@pytest.mark.parametrize("name", list(oracle.MAPS))
def test_every_map_on_both_sides(name: str) -> None:
    features = oracle.affine(oracle.draw(name, 5, 14, batch=(2,)), np.random.default_rng(0))
    for length in (1, 150):
        assert_same(rows(3, 2, length, 5), features)


@pytest.mark.parametrize("dtype", CLOSE)
def test_dtypes_lengths_and_batches(dtype: Any) -> None:
    for name, length in itertools.product(("positive", "hyperbolic", "relu"), (0, 1, 63, 200)):
        for batch, own in (((), ()), ((2,), ()), ((), (3,)), ((2, 1), (3,)), ((0,), ())):
            assert_same(rows(*batch, length, 5, dtype=dtype), rfk.draw(name, 5, 14, rng=0, batch=own))


def test_rows_that_lie_otherwise() -> None:
    features, x = rfk.draw("hyperbolic", 32, 64, rng=0), rows(2, 130, 32, dtype=np.float32)
    fixed = x.copy()
    fixed.flags.writeable = False
    for given in (x[..., ::-1, :], x[..., ::-1], np.asfortranarray(x), np.repeat(x, 2, -1)[..., ::2], fixed, x[:, ::2]):
        assert_same(given, features)


def test_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "machine", lambda: Machine(16, 4, 4))
    for name in ("positive", "trigonometric", "relu"):
        assert_same(rows(2, 70, 5, dtype=np.float32), rfk.draw(name, 5, 14, rng=0))


@pytest.mark.parametrize("threads", ["1", "3"])
def test_spans_on_threads(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", threads)
    monkeypatch.setattr("rfkernels.backends.numba.threads.SERIAL_WORK", 0)
    for shape in ((1000, 5), (3, 150, 5), (5, 1, 5)):
        assert_same(rows(*shape), rfk.draw("positive", 5, 14, rng=0))


@pytest.mark.parametrize("name", ["positive", "relu"])
def test_hadamard_rows_and_a_centre(name: str) -> None:
    features, x = rfk.draw(name, 64, 128, sampler="hadamard", rng=0), rows(70, 64, dtype=np.float32)
    assert_same(x, features)
    centre = np.linspace(-1, 1, 64)
    kept, own = (dataclasses.replace(features, query=rfk.Side(centre=x)) for x in (read_only(centre), centre))
    for _ in range(2):
        assert_same(x, kept)
        assert_same(x, own)
        centre *= -1
    assert transforms._turned(kept) is transforms._turned(kept)


def test_norms_at_which_features_vanish_or_overflow() -> None:
    for name, scale in itertools.product(("positive", "hyperbolic", "trigonometric", "exp"), (1e-30, 1e2, 1e4)):
        x, features = rows(20, 5, dtype=np.float32) * np.float32(scale), rfk.draw(name, 5, 14, rng=0)
        log, sign = rfk.transform(x.astype(np.float64), features, side="key", log=True)
        with np.errstate(over="ignore"):
            expected = (sign * np.exp(log)).astype(np.float32)
        got = rfk.transform(x, features, side="key")
        inside = np.abs(log) < 20
        np.testing.assert_allclose(got[inside], expected[inside], rtol=1e-2)
        np.testing.assert_array_equal(got[log > 100], expected[log > 100])
        np.testing.assert_array_equal(got[log < -110], 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_or_passed_on(bad: float) -> None:
    x, features = rows(100, 5), rfk.draw("positive", 5, 14, rng=0)
    x[77, 3] = bad
    with pytest.raises(ValueError, match=r"x .*(77, 3)"):
        rfk.transform(x, features, side="key")
    for name in ("positive", "gaussian", "elu+1"):
        own = rfk.draw(name, 5, 14, rng=0)
        found = rfk.transform(x, own, side="key", check_finite=False)
        assert np.isnan(found[77]).all() if np.isnan(bad) else not np.isfinite(found[77]).all()
        np.testing.assert_array_equal(found[:77], rfk.transform(x[:77], own, side="key"))


def test_a_backend_that_is_named() -> None:
    features = rfk.draw("positive", 5, 14, rng=0)
    with pytest.raises(ValueError, match="unknown backend 'torch'"):
        rfk.transform(rows(3, 5), features, side="key", backend="torch")


@pytest.mark.parametrize(("name", "scale"), [("positive", 1e60), ("relu", 1e80)])
def test_scales_beyond_the_dtype_are_refused(name: str, scale: float) -> None:
    x, features = rows(3, 5, dtype=np.float32), rfk.draw(name, 5, 14, scale=scale, rng=0)
    for call in (lambda: rfk.transform(x, features, side="key"), lambda: rfk.attention(x, x, x, features)):
        with pytest.raises(ValueError, match=f"features must fit float32, .* got scale {re.escape(f'{scale:.3g}')};"):
            call()
    assert np.isfinite(rfk.transform(x.astype(np.float64), features, side="key")).all()


@pytest.mark.parametrize("name", ["hyperbolic", "trigonometric", "relu"])
def test_kernels_of_many_pairs_take_no_memory_for_all_their_terms(name: str) -> None:
    x, y = 0.3 * rows(2, 40_000, 1, 3)
    features = rfk.draw(name, 3, 32, rng=0)
    tracemalloc.start()
    log, sign = rfk.log_kernel(x, y, features, return_sign=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 40_000 * x.itemsize + 16 * estimates._TERMS * x.itemsize
    terms = np.multiply(*(rfk.transform(z, features, side=side) for z, side in zip((x, y), SIDES, strict=True)))
    np.testing.assert_allclose(sign * np.exp(log), terms.sum(-1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["hyperbolic", "relu"])
@pytest.mark.parametrize("batch", [(), (5,)], ids=str)
def test_kernels_of_pairs_that_broadcast(name: str, batch: tuple[int, ...]) -> None:
    features = rfk.draw(name, 3, 8, rng=0, batch=batch)
    for of_x, of_y in (((5,), (5,)), ((5,), ()), ((4, 1), (5,)), ((2, 1, 5), (3, 5)), ((), ()), ((0,), (0,))):
        if batch and (not of_x or 0 in of_x):
            continue
        x, y = rows(*of_x, 1, 3), rows(*of_y, 1, 3)
        phi_x, phi_y = (rfk.transform(z, features, side=side) for z, side in zip((x, y), SIDES, strict=True))
        expected = np.sum(phi_x * phi_y, -1)[..., 0]
        got = rfk.log_kernel(x[..., 0, :], y[..., 0, :], features)
        assert got.shape == expected.shape
        np.testing.assert_allclose(np.exp(got), expected, rtol=1e-12)
