"""Projections on Hadamard rows without multiplying: told by their values, and equal to products on every machine."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rfkernels as rfk
from rfkernels.backends.numba import hadamard_kernels, packing, structured
from rfkernels.backends.numba.jit import Machine, host_width
from rfkernels.samplers._structured import factors, walsh_hadamard

MACHINES = [Machine(*x) for x in ((64, 8, 8), (32, 4, 6), (16, 4, 4), (16, 8, 8)) if x[0] <= host_width()]
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"causal": True})
BESIDE: tuple[dict[str, Any], ...] = ({"causal": True, "window": 9}, {"window": 9}, {"causal": True, "heavy": 2})
CASES = [*itertools.product(["positive", "hyperbolic", "elu+1"], OPTIONS), *(("positive", x) for x in BESIDE)]


def rows(seed: int, count: int, dim: int, *batch: int) -> Any:
    """Hadamard rows, (*batch, count, dim)."""
    return rfk.draw("relu", dim, count, sampler="hadamard", batch=batch, rng=seed).projection


def multiplied_out(norms: Any, signs: Any) -> Any:
    """N H D₀ H D₁ H D₂, from the definition of H, (*batch, blocks · n, n)."""
    n = norms.shape[-1]
    ones = np.array([[bin(i & j).count("1") for j in range(n)] for i in range(n)])
    h = (-1.0) ** ones / np.sqrt(n)
    product = norms[..., None] * (h * signs[..., 0, None, :] @ h * signs[..., 1, None, :] @ h * signs[..., 2, None, :])
    return product.reshape(*norms.shape[:-2], -1, n)


def features(name: str, dim: int, blocks: int, seed: int = 0, *, products: bool = False, **changes: Any) -> Any:
    """Features of Hadamard rows; those that are to be multiplied by have an array that its owner could change."""
    drawn = rfk.draw(name, dim, 2 * blocks * dim, sampler="hadamard", rng=seed)
    own = {"projection": np.array(drawn.projection)} if products else {}
    return dataclasses.replace(drawn, **own, **changes)


# Telling Hadamard rows ------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**20), st.sampled_from([32, 64, 128]), st.integers(1, 3), st.sampled_from([(), (2,), (2, 3)]))
def test_rows_are_told_and_taken_apart(seed: int, n: int, blocks: int, batch: tuple[int, ...]) -> None:
    given = rows(seed, blocks * n, n, *batch)
    found = factors(given)
    assert found is not None
    assert found.norms.shape == (*batch, blocks, n)
    assert found.signs.shape == (*batch, blocks, 3, n)
    assert np.all(np.abs(found.signs) == 1)
    np.testing.assert_allclose(multiplied_out(*found), given, rtol=0, atol=1e-12)


@given(st.integers(0, 2**20))
def test_whoever_scaled_them_or_turned_them_round(seed: int) -> None:
    given, rng = rows(seed, 128, 64), np.random.default_rng(seed)
    size = np.exp(rng.standard_normal((128, 1)) * 20)
    for changed in (given, -given):
        found = factors(changed * size)
        assert found is not None
        np.testing.assert_allclose(multiplied_out(*found) / size, changed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", ["iid", "orthogonal", "regularized", "simplex", "sobol"])
def test_other_rows_are_not(sampler: str) -> None:
    assert factors(rfk.draw("relu", 32, 64, sampler=sampler, rng=0).projection) is None


def changed(how: str) -> Any:
    given = np.array(rows(3, 96, 32))
    if how == "an entry":
        given[70, 3] *= 1 + 1e-12
    elif how == "rounding":
        given = given.astype(np.float32)
    elif how == "rounding, and back":
        given = given.astype(np.float32).astype(np.float64)
    elif how == "integers":
        given = np.rint(given).astype(np.int64)
    elif how == "huge norms":
        given *= 1e200
    elif how == "rows of the transform":
        norms = np.linalg.norm(given[:32], axis=-1, keepdims=True)
        transform = walsh_hadamard((given[:32] / norms).T).T
        transform[[20, 21]] = transform[[21, 20]]
        given[:32] = norms * walsh_hadamard(transform.T).T
    elif how == "a sign":
        given[70, 3] *= -1
    elif how == "a sign of all rows but one":
        given[:31, 3] *= -1
    elif how == "two rows":
        given[[40, 41]] = given[[41, 40]]
    elif how == "a block":
        given[32:64] = rfk.draw("relu", 32, 32, rng=0).projection
    elif how == "no row":
        given[50] = 0
    elif how == "infinity":
        given[50, 4] = np.inf
    elif how == "nan":
        given[50, 4] = np.nan
    return given


@pytest.mark.parametrize(
    "how",
    [
        *("an entry", "a sign", "a sign of all rows but one", "two rows", "a block", "no row", "infinity", "nan"),
        *("rounding", "rounding, and back", "integers", "huge norms", "rows of the transform"),
    ],
)
def test_rows_that_were_changed_are_not(how: str) -> None:
    assert factors(changed("nothing")) is not None
    assert factors(changed(how)) is None


@pytest.mark.parametrize(("count", "dim"), [(32, 64), (96, 64), (64, 48), (64, 33), (0, 32), (64, 16)])
def test_whole_blocks_of_powers_of_two_are_needed(count: int, dim: int) -> None:
    assert factors(rows(0, max(count, 1), dim)[:count]) is None


# Projecting on them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("n", [32, 64, 128, 512])
def test_projections_are_products(machine: Machine, bits: int, n: int) -> None:
    """Of columns and of rows, on every width of vectors; what lies between rows stays as it is."""
    dtype = np.dtype(f"f{bits // 8}")
    rng = np.random.default_rng(n)
    blocks, count = 3, 2 * machine.step(bits)
    norms, signs = rng.uniform(0.5, 2, (blocks, n)).astype(dtype), rng.choice([-1, 1], (blocks, 3, n)).astype(dtype)
    x = rng.standard_normal((count, n + 5)).astype(dtype)
    across = np.zeros((n, count + 3), dtype)
    across[:, :count] = x[:, :n].T
    columns, along = np.full((blocks * n, count + 7), 7, dtype), np.full((count, blocks * n + 4), 7, dtype)
    code = hadamard_kernels.projections(machine, bits, n)

    def run(name: str, given: Any, out: Any) -> None:
        function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 8)(code.addresses[name])
        sizes = given.shape[1], signs.ctypes.data, norms.ctypes.data, out.ctypes.data, out.shape[1], count, blocks
        function(given.ctypes.data, *sizes)

    run("hadamard_columns", across, columns)
    run("hadamard_rows", x, along)
    expected = x[:, :n].astype(float) @ (multiplied_out(norms.astype(float), signs.astype(float)) * n**1.5).T
    close = {"rtol": 0, "atol": 8 * np.finfo(dtype).eps * np.abs(expected).max()}
    np.testing.assert_allclose(columns[:, :count].T, expected, **close)
    np.testing.assert_allclose(along[:, : blocks * n], expected, **close)
    assert np.all(columns[:, count:] == 7)
    assert np.all(along[:, blocks * n :] == 7)


@pytest.mark.parametrize(("order", "largest"), list(itertools.product([2, 32, 64, 256, 1024], [8, 16])))
def test_passes_are_three_transforms_with_signs_before_each(order: int, largest: int) -> None:
    passes = hadamard_kernels._passes(order, largest)
    met = [number for step in passes for number in step.rounds if number is not None]
    assert met == [2, 1, 0]
    assert max(step.size for step in passes) <= largest
    assert len(passes) == 3 * len({step.stride for step in passes}) - 2
    whole = np.prod([float(step.size) ** len(step.rounds) for step in passes])
    assert whole == float(order) ** 3


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_attention_is_that_of_products(name: str, dtype: Any, options: dict[str, Any]) -> None:
    """Of the same rows in features that are not kept, with queries that share keys, lengths that fill no tile, a mask."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, heads, 150, 64)).astype(dtype) for heads in (3, 1, 1))
    mask = None if "heavy" in options else rng.random((2, 1, 150)) < 0.8
    fast, slow = features(name, 64, 2), features(name, 64, 2, products=True)
    assert structured.hadamard(fast, 32) is not None
    assert structured.hadamard(slow, 32) is None
    got = rfk.attention(q, k, v, fast, mask=mask, full=True, **options)
    expected = rfk.attention(q, k, v, slow, mask=mask, full=True, **options)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-12}
    np.testing.assert_allclose(got.output, expected.output, **close)
    np.testing.assert_allclose(got.log_normalizer, expected.log_normalizer, **close)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dim", [32, 128, 256])
def test_attention_on_every_machine(monkeypatch: pytest.MonkeyPatch, machine: Machine, dim: int) -> None:
    monkeypatch.setattr(packing, "machine", lambda: machine)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 77, dim)).astype(np.float32) for _ in range(3))
    own = features("positive", dim, 1, scale=np.array(0.3 / np.sqrt(dim)))
    own.scale.setflags(write=False)
    assert structured.hadamard(own, machine.step(32)) is not None
    got = rfk.attention(q, k, v, own, causal=True)
    expected = rfk.attention(*(x.astype(float) for x in (q, k, v)), own, causal=True, backend="numpy")
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_each_head_has_rows_of_its_own() -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((2, 3, 40, 32)) for _ in range(3))
    own = rfk.draw("positive", 32, 96, sampler="hadamard", batch=(3,), rng=5)
    assert structured.hadamard(own, 16) is not None
    got = rfk.attention(q, k, v, own)
    np.testing.assert_allclose(got, rfk.attention(q, k, v, own, backend="numpy"), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("where", ["q", "k"])
def test_values_that_are_not_finite_are_refused(where: str) -> None:
    given = {name: np.zeros((1, 70, 64), np.float32) for name in "qkv"}
    given[where][0, 66, 63] = np.nan
    own = features("positive", 64, 1)
    assert structured.hadamard(own, 32) is not None
    with pytest.raises(ValueError, match=f"{where} must be finite"):
        rfk.attention(*given.values(), own)


@pytest.mark.parametrize("sides", [("query",), ("key",), ("query", "key")])
def test_features_with_a_matrix_are_multiplied_by(sides: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    matrix = np.linalg.qr(rng.standard_normal((64, 64)))[0].copy()
    matrix.setflags(write=False)
    own = features("positive", 64, 1, **{name: rfk.features.Side(matrix=matrix) for name in sides})
    assert structured.frozen(own)
    assert structured.hadamard(own, 16) is None
    q, k, v = (rng.standard_normal((1, 20, 64)) for _ in range(3))
    got = rfk.attention(q, k, v, own)
    np.testing.assert_allclose(got, rfk.attention(q, k, v, own, backend="numpy"), rtol=1e-9, atol=1e-11)


def test_which_widths_are_told() -> None:
    """Whole register tiles, no more than fit a line of code, and none whose signs could not be told."""
    assert structured.hadamard(features("positive", 32, 1), 16) is not None
    assert structured.hadamard(features("positive", 32, 1), 64) is None
    assert structured.hadamard(features("positive", 16, 1), 16) is None
    assert structured.hadamard(features("positive", 256, 1), 8) is not None
    assert structured.hadamard(features("positive", 512, 1), 8) is None


def test_rows_of_other_kinds_of_numbers() -> None:
    own = features("positive", 64, 1)
    whole = np.rint(2 * own.projection).astype(np.int64)
    whole.setflags(write=False)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 20, 64)) for _ in range(3))
    other = dataclasses.replace(own, projection=whole)
    got = rfk.attention(q, k, v, other)
    np.testing.assert_allclose(got, rfk.attention(q, k, v, other, backend="numpy"), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e34, 1e36])
def test_inputs_as_large_as_products_take(size: float) -> None:
    """Sums between rounds are not much larger than the projections."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 30, 64)).astype(np.float32) for _ in range(3))
    q = (q * size).astype(np.float32)
    k = (k * np.float32(1e-3)).astype(np.float32)
    got = rfk.attention(q, k, v, features("relu", 64, 1))
    expected = rfk.attention(*(x.astype(float) for x in (q, k, v)), features("relu", 64, 1), backend="numpy")
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_norms_from_1e_minus_6_to_1e4() -> None:
    """To what the rounding of exponents allows."""
    rng = np.random.default_rng(0)
    own = features("positive", 64, 1)
    for size in (1e-6, 1.0, 1e4):
        q, k, v = (rng.standard_normal((1, 30, 64)).astype(np.float32) for _ in range(3))
        q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) * np.float32(size) for x in (q, k))
        got = rfk.attention(q, k, v, own)
        expected = rfk.attention(q.astype(float), k.astype(float), v.astype(float), own, backend="numpy")
        largest = size**2 / 8 + size * np.abs(own.projection).max()
        assert np.all(np.isfinite(got))
        relative = np.abs(got - expected).max() / np.abs(expected).max()
        assert relative <= 1e-4 + 16 * np.finfo(np.float32).eps * largest
