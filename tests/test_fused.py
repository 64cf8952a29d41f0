"""Kernels for a GPU: run by Pallas' interpreter, and compared with the core in float64.

They are lowered for CUDA, and run there where there is a GPU.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import rfkernels as rfk
from rfkernels.activations import FUNCTIONS
from rfkernels.backends.jax import fused
from rfkernels.backends.jax.chunks import Rows
from rfkernels.backends.jax.fused_calls import Tile, Tiles
from rfkernels.core import Options

DIM, WIDTH, ROWS, LENGTH = 16, 32, 48, 83
SMALL = Tiles(Tile(32, 16, 1, 1), Tile(32, 16, 1, 1), Tile(32, 16, 1, 1), Tile(2, 16, 1, 1))
"""So that there are several of everything."""

ALLOWED = {"float32": 3e-5, "bfloat16": 2e-2}
DTYPES = tuple(ALLOWED)


def arrays(
    dtype: str, batch: tuple[int, ...] = (2,), lengths: tuple[int, int] = (LENGTH, LENGTH), seed: int = 0
) -> Any:
    rng = np.random.default_rng(seed)
    shapes = (lengths[0], DIM), (lengths[1], DIM), (lengths[1], WIDTH)
    return tuple(jnp.asarray(rng.standard_normal((*batch, *shape)), dtype) for shape in shapes)


def wide(x: Any) -> Any:
    return np.asarray(jnp.asarray(x, jnp.float32), np.float64)


@functools.partial(jax.jit, static_argnames=("causal", "dtype", "tiles"))
def compiled(rows: Rows, features: rfk.Features, state: rfk.State, causal: bool, dtype: str, tiles: Tiles) -> Any:
    return fused.attend(rows, features, state, causal, jnp.dtype(dtype), tiles, interpret=True)


def run(given: Any, features: rfk.Features, causal: bool, mask: Any = None, state: Any = None) -> Any:
    q, k, v = given
    batch = np.broadcast_shapes(k.shape[:-2], features.batch)
    state = rfk.empty_state(features, v.shape[-1], batch) if state is None else state
    features, state = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (features, state))
    rows = Rows(q, k, v, None if mask is None else jnp.asarray(mask))
    return compiled(rows, features, state, causal, str(v.dtype), SMALL)


def compare(given: Any, features: rfk.Features, causal: bool, mask: Any = None, state: Any = None) -> None:
    """Compare with the core, of denominators that cancel relative to the sum of absolute values."""
    options: dict[str, Any] = {"causal": causal, "mask": mask, "state": state}
    wanted = rfk.attention(*map(wide, given), features, full=True, backend="numpy", **options)
    (output, log, sign), after = run(given, features, causal, mask, state)
    dtype = str(given[2].dtype)
    assert output.dtype == dtype
    allowed = ALLOWED[dtype] * (1 if features.map.nonnegative else 20)
    scale = np.max(np.abs(wanted.output))
    np.testing.assert_allclose(wide(output), wanted.output, atol=allowed * scale, rtol=0)
    seen = np.isfinite(wanted.log_normalizer)
    np.testing.assert_array_equal(np.isfinite(log), seen)
    rounding = 3e-7  # of exponents, which may be in the thousands
    wanted_log = np.where(seen, wanted.log_normalizer, 0)
    np.testing.assert_allclose(np.where(seen, log, 0), wanted_log, atol=allowed, rtol=rounding)
    np.testing.assert_array_equal(sign, wanted.sign)
    np.testing.assert_allclose(after.shift, wanted.state.shift, atol=allowed, rtol=rounding)
    largest = np.max(np.abs(wanted.state.kv), (-2, -1), keepdims=True)
    np.testing.assert_allclose(after.kv / largest, wanted.state.kv / largest, atol=allowed)
    np.testing.assert_allclose(after.z, wanted.state.z, atol=allowed * np.max(wanted.state.z))


MAPS = ("positive", "hyperbolic", "trigonometric", "relu", "custom exponential", "softplus")
MODES = [(dtype, causal) for dtype in DTYPES for causal in (False, True)]


@pytest.mark.parametrize(("name", "mode"), oracle.alternate(MAPS, MODES))
def test_passes_are_those_of_the_core(name: str, mode: tuple[str, bool]) -> None:
    dtype, causal = mode
    q, k, v = arrays(dtype)
    features = oracle.draw(name, DIM, ROWS, scale=0.1)
    compare((q, k, v), features, causal)
    mask = np.random.default_rng(1).random((2, LENGTH)) < 0.6
    mask[0, :40] = False  # a whole tile, and the first keys of another
    mask[1, :3] = False
    compare((q, k, v), features, causal, mask)
    hidden = (jnp.where(mask[..., None], x, jnp.asarray(np.nan, dtype)) for x in (k, v))
    found, expected = (run((q, *given), features, causal, mask)[0][0] for given in (hidden, (k, v)))
    np.testing.assert_array_equal(wide(found), wide(expected))


@pytest.mark.parametrize(("name", "dtype"), oracle.alternate(["positive", "hyperbolic", "custom exponential"], DTYPES))
def test_norms_that_jump(name: str, dtype: str) -> None:
    """Within a tile, up and down, where no key was seen before and where there were some."""
    q, k, v = arrays(dtype)
    factor = np.ones(LENGTH)
    factor[[0, 1, 40, 70]] = 30  # the first seen have the lowest exponents
    factor[50:60] = 0.1
    compare((q, k * jnp.asarray(factor, dtype)[:, None], v), oracle.draw(name, DIM, ROWS, scale=0.5), True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_later_keys_leave_earlier_outputs_alone(dtype: str) -> None:
    q, k, v = arrays(dtype)
    features = oracle.draw("positive", DIM, ROWS, scale=0.5)
    (before, _, _), _ = run((q, k, v), features, True)
    (after, _, _), _ = run((q, k.at[:, 45:].multiply(1e3), v.at[:, 45:].set(7)), features, True)
    np.testing.assert_allclose(wide(after)[:, :45], wide(before)[:, :45], atol=ALLOWED[dtype])


@pytest.mark.parametrize(
    ("kind", "causal"), oracle.alternate(["fitted", "of each head", "grouped", "resumed"], [False, True])
)
def test_what_a_pass_may_be_given(kind: str, causal: bool) -> None:
    q, k, v = arrays("float32", (2, 3))
    features, state = oracle.draw("positive", DIM, ROWS, scale=0.3), None
    if kind == "fitted":
        features = rfk.fit(q, k, ROWS, scale=0.3, rng=0)
        assert features.query.matrix is not None
        assert features.query.centre is not None or features.query.linear is not None
    elif kind == "of each head":
        features = oracle.draw("positive", DIM, ROWS, batch=(3,), scale=0.3)
    elif kind == "grouped":
        k, v = k[:, :1], v[:, :1]
    else:
        empty = rfk.empty_state(features, WIDTH, (2, 3), np.float64)
        state = rfk.write_state(empty, wide(q), wide(v), features)
    compare((q, k, v), features, causal, state=state)


def test_as_many_queries_as_keys_are_not_needed_where_all_are_seen() -> None:
    compare(arrays("float32", (2,), (70, 20)), oracle.draw("positive", DIM, ROWS, scale=0.3), False)
    compare(arrays("float32", (2,), (3, 130)), oracle.draw("positive", DIM, ROWS, scale=0.3), False)


def test_half_precision_of_the_other_kind_is_taken_as_float32() -> None:
    compare(arrays("float32"), oracle.draw("positive", DIM, ROWS), True)
    q, k, v = arrays("float16")
    features = oracle.draw("positive", DIM, ROWS)
    (output, _, _), _ = run((q, k, v), features, True)
    wanted = rfk.attention(*map(wide, (q, k, v)), features, causal=True, backend="numpy")
    np.testing.assert_allclose(wide(output), wanted, atol=4e-3)


# What is differentiated, and where there are kernels


def by_kernels(q: Any, k: Any, v: Any, features: rfk.Features) -> Any:
    """A causal pass by kernels."""
    state = jax.tree.map(jnp.asarray, rfk.empty_state(features, WIDTH, q.shape[:-2]))

    def fast(given: Any) -> Any:
        features = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), given[1])
        return fused.attend(Rows(*given[0]), features, state, True, jnp.float32, SMALL, interpret=True)[0][0]

    return fused.instead(fast, lambda given: rfk.attention(*given[0], given[1], causal=True), ((q, k, v), features))


def loss(function: Any) -> Any:
    return lambda *x: jnp.sum(jnp.square(function(*x)))


def gradient(function: Any) -> Any:
    return jax.grad(loss(function), (0, 1, 2, 3))


def tangent(function: Any) -> Any:
    return lambda *x: jax.jvp(function, x, jax.tree.map(jnp.ones_like, x))[1]


def curvature(function: Any) -> Any:
    return jax.grad(lambda *x: jnp.sum(jax.grad(loss(function))(*x) ** 2), 1)


def test_derivatives_are_those_of_what_stands_by() -> None:
    features = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), oracle.draw("positive", DIM, ROWS))

    def slow(q: Any, k: Any, v: Any, features: rfk.Features) -> Any:
        return rfk.attention(q, k, v, features)

    def instead(*given: Any) -> Any:
        return fused.instead(lambda given: jax.lax.stop_gradient(slow(*given)), lambda given: slow(*given), given)

    def all_of(function: Any) -> Any:
        return jax.jit(lambda *x: [of(function)(*x) for of in (lambda f: f, gradient, tangent, curvature)])

    one, two = (all_of(function)(*arrays("float32"), features) for function in (instead, slow))
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(y))))


def test_kernels_under_vmap() -> None:
    features = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), oracle.draw("positive", DIM, ROWS))
    q, k, v = arrays("float32", (3, 2))
    found = jax.jit(jax.vmap(lambda q, k, v: by_kernels(q, k, v, features)))(q, k, v)
    np.testing.assert_allclose(found, rfk.attention(q, k, v, features, causal=True), atol=1e-5)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let passes be traced as where there is one; nothing may be run."""
    monkeypatch.setattr(fused, "available", lambda: True)


def program(function: Any, *given: Any) -> str:
    return str(jax.jit(function).trace(*given).lower(lowering_platforms=("cuda",)).as_text())


OLD = tuple(map(int, jax.__version__.split(".")[:2])) < (0, 11)
needs_lowering = pytest.mark.skipif(not OLD, reason="this JAX lowers kernels of Triton only where there is a GPU")


@needs_lowering
@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_lowered_to_kernels_and_its_gradient_to_none(causal: bool) -> None:
    features = oracle.draw("positive", DIM, ROWS)
    q, k, v = arrays("bfloat16", (2,), (131, 131))

    def attend(q: Any, k: Any, v: Any) -> Any:
        return rfk.attention(q, k, v, features, causal=causal)

    text = program(attend, q, k, v)
    for name in ("write", "prefix", *(("causal", "mend") if causal else ("read",))):
        assert f"rfkernels_{name}" in text
    assert "rfkernels_" not in program(jax.grad(lambda *x: jnp.sum(attend(*x).astype(jnp.float32))), q, k, v)


def of_function(name: str) -> rfk.FeatureMap:
    def activation(xp: Any, u: Any, a: Any) -> Any:
        if name == "where":
            return xp.where((u > 0) & ~(u >= 1) | (u < -1), u, xp.pi / (2 + xp.abs(u)))
        numbers = (2 + xp.abs(u), u)[: FUNCTIONS[name]]
        return -(getattr(xp, name)(*numbers) ** 2) + xp.e

    return rfk.FeatureMap((activation,))


@needs_lowering
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_what_activations_may_use_is_lowered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), rfk.draw(of_function(name), DIM, ROWS, rng=0))
    q, k, v = arrays("float32")
    state = jax.tree.map(jnp.asarray, rfk.empty_state(features, WIDTH, (2,)))
    monkeypatch.setattr(fused, "available", lambda: True)
    assert fused.usable(Rows(q, k, v), features, state, Options()) is (name not in fused._LACKING)

    def attend(q: Any, k: Any, v: Any) -> Any:
        return fused.attend(Rows(q, k, v), features, state, False, jnp.float32)[0]

    if name in fused._LACKING:
        with pytest.raises(NotImplementedError):
            program(attend, q, k, v)
    else:
        assert "rfkernels_read" in program(attend, q, k, v)


class Device:
    """What is asked of a GPU."""

    def __init__(self, capability: str) -> None:
        self.compute_capability = capability


def test_kernels_must_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [Device("9.0")]
    monkeypatch.setattr(jax, "devices", lambda platform: devices)
    monkeypatch.delenv(fused.VARIABLE, raising=False)
    assert not fused.available()
    monkeypatch.setenv(fused.VARIABLE, "1")
    assert fused.available()
    devices.append(Device("9.0"))
    assert not fused.available()
    devices[:] = [Device("7.5")]
    assert not fused.available()


def test_no_kernels_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(platform: str) -> Any:
        raise RuntimeError(f"no {platform}")

    monkeypatch.setenv(fused.VARIABLE, "1")
    monkeypatch.setattr(jax, "devices", none)
    assert not fused.available()


def test_where_there_are_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    features = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), oracle.draw("positive", DIM, ROWS))
    q, k, v = arrays("float32")
    state = jax.tree.map(jnp.asarray, rfk.empty_state(features, WIDTH, (2,)))
    given = Rows(q, k, v), features, state, Options(causal=True)
    assert fused.usable(*given) is fused.available()
    monkeypatch.setattr(fused, "available", lambda: True)
    assert fused.usable(*given)
    rows, options = given[0], given[3]
    ids = jnp.zeros(LENGTH, int)
    for other in (
        (rows._replace(q=q[:, 1:]), features, state, options),
        (rows._replace(v=v[..., :31]), features, state, options),
        (rows._replace(of_query=ids, of_key=ids), features, state, options),
        (rows, oracle.draw("positive", DIM, 24), state, options),
        (rows, features, state, options._replace(window=3)),
        (rows._replace(q=q[:, :0], k=k[:, :0], v=v[:, :0]), features, state, options),
    ):
        assert not fused.usable(*other)
    with jax.enable_x64(True):
        double = state._replace(kv=jnp.zeros(state.kv.shape, jnp.float64))
        assert not fused.usable(rows, features, double, options)


def test_a_tile_is_no_longer_than_what_it_holds() -> None:
    tiles = fused._fitting(fused.HALF, 20, 3, 48)
    assert [tile.positions for tile in tiles] == [16, 32, 16, 16]
    assert all(48 % tile.rows == 0 for tile in tiles)


# On a GPU


needs_gpu = pytest.mark.skipif(
    not fused.available(), reason=f"needs {fused.VARIABLE}=1 and a GPU whose tensor cores take bfloat16"
)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_on_a_gpu(name: str, causal: bool, dtype: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 700, n)), dtype) for n in (64, 64, 64))
    if name == "positive":
        k = k.at[:, 300:303].multiply(20)
    features = rfk.draw(oracle.MAPS[name], 64, 128, scale=0.03, rng=0)
    mask = rng.random((2, 700)) < 0.7
    wanted = rfk.attention(*map(wide, (q, k, v)), features, causal=causal, mask=mask, full=True, backend="numpy")

    def attend(q: Any, k: Any, v: Any) -> Any:
        return rfk.attention(q, k, v, features, causal=causal, mask=jnp.asarray(mask), full=True)

    found = jax.jit(attend)(q, k, v)
    assert "rfkernels_write" in program(attend, q, k, v)
    allowed = ALLOWED[dtype] * (1 if features.map.nonnegative else 20)
    np.testing.assert_allclose(wide(found.output), wanted.output, atol=allowed * np.max(np.abs(wanted.output)))
    seen = np.isfinite(wanted.log_normalizer)
    np.testing.assert_allclose(
        np.where(seen, found.log_normalizer, 0), np.where(seen, wanted.log_normalizer, 0), atol=allowed
    )
