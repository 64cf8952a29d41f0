"""What must hold of numbers on JAX: norms that jump anywhere, nothing from the future, half precision."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import xla
from oracle import MAPS

import rfkernels as rfk

TOKENS, AT = 131, (0, 1, 5, 31, 63, 64, 65, 100, 127, 128, 130)
SCHEDULES: dict[str, dict[str, Any]] = {
    "bidirectional": {},
    "causal": {"causal": True},
    "windowed causal": {"causal": True, "window": 5},
    "windowed": {"window": 5},
}


def stairs(n: int, at: int) -> Any:
    """Up by 30 twice, and down again."""
    return 30.0 ** (np.arange(n) >= at).astype(float) * 30.0 ** ((np.arange(n) >= at + 5) & (np.arange(n) < at + 40))


PATTERNS = {
    "spike": lambda n, at: np.where(np.arange(n) == at, 30.0, 1.0),
    "dip": lambda n, at: np.where(np.arange(n) == at, 1.0, 30.0),
    "step up": lambda n, at: np.where(np.arange(n) >= at, 30.0, 1.0),
    "step down": lambda n, at: np.where(np.arange(n) >= at, 1.0, 30.0),
    "alternating": lambda n, at: np.where(np.arange(n) % (at % 7 + 2) == 0, 30.0, 1.0),
    "ramp": lambda n, at: 30.0 ** np.clip((np.arange(n) - at) / 20, 0, 1),
    "stairs": stairs,
    "zeros first": lambda n, at: np.where(np.arange(n) < at, 0.0, np.where(np.arange(n) % 3 == 0, 30.0, 1.0)),
}


def inputs(batch: int = len(AT), seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    q, k, v = (oracle.normal(rng, batch, TOKENS, n) for n in (4, 4, 2))
    return q, k / np.linalg.norm(k, axis=-1, keepdims=True), v


@functools.cache
def compiled(jit: Any, **options: Any) -> Any:
    return jit(lambda q, k, v, features, mask: rfk.attention(q, k, v, features, mask=mask, full=True, **options))


def attend(q: Any, k: Any, v: Any, features: rfk.Features, mask: Any = None, jit: Any = xla.jit, **options: Any) -> Any:
    return compiled(jit, **options)(q, k, v, features, mask)


@pytest.mark.parametrize(
    "schedule",
    [*(x for x in SCHEDULES if x != "windowed causal"), pytest.param("windowed causal", marks=pytest.mark.long)],
)
def test_norms_jump_thirtyfold_inside_a_chunk(schedule: str) -> None:
    features, options = oracle.draw("positive", 4, 3, scale=1.0), SCHEDULES[schedule]
    q, k, v = inputs()
    for name, pattern in PATTERNS.items():
        size = np.stack([pattern(TOKENS, at) for at in AT]).astype(np.float32)
        jumping = k * size[..., None]
        oracle.check_result(
            attend(q, jumping, v, features, **options),
            oracle.expect(q, jumping, v, features, **options),
            np.float32,
            f"{schedule} {name}",
        )


def test_a_jump_behind_masked_keys() -> None:
    """Beside masked keys a query sees the state alone, and not on the scale of the key that ends the masked ones."""
    features = oracle.draw("positive", 4, 4, scale=1.0)
    q, k, v = (x[:1] for x in inputs())
    for (before, after), masked, at in itertools.product(((1.0, 30.0), (30.0, 1.0)), (1, 5, 40), (0, 64, 70)):
        jumping = k * np.where(np.arange(TOKENS) < at, before, after).astype(np.float32)[:, None]
        mask = (np.arange(TOKENS) < at) | (np.arange(TOKENS) >= at + masked)
        expected = oracle.expect(q, jumping, v, features, causal=True, mask=mask)
        result = attend(q, jumping, v, features, mask, causal=True)
        oracle.check_result(result, expected, np.float32, f"{before} {after} {masked} {at}")


@pytest.mark.parametrize(("name", "window"), oracle.alternate(["positive", "trigonometric", "relu"], [None, 5]))
def test_later_keys_change_no_earlier_output(name: str, window: int | None) -> None:
    """Element t of the batch has its keys from t on multiplied, and their values replaced."""
    features = oracle.draw(name, 4, 6)
    q, k, v = (np.broadcast_to(x[:1], (len(AT), *x.shape[1:])) for x in inputs())
    earlier = np.arange(TOKENS) < np.array(AT)[:, None]
    before = attend(q, k, v, features, causal=True, window=window)
    for factor, value in itertools.product((1e-3, 1e3), (1.0, 1e20)):
        k_other = np.where(earlier[..., None], k, np.float32(factor) * k)
        v_other = np.where(earlier[..., None], v, np.float32(value) * v)
        after = attend(q, k_other, v_other, features, causal=True, window=window)
        moved = np.abs(np.asarray(after.output) - np.asarray(before.output))[earlier]
        allowed = 2e-5 if MAPS[name].nonnegative else 1e-3
        assert moved.max() <= allowed, f"{factor=} {value=}: moved by {moved.max():.3g}"
        one, two = (np.asarray(x.log_normalizer)[earlier] for x in (before, after))
        np.testing.assert_allclose(two, one, rtol=10 * allowed, atol=10 * allowed)


def test_masked_keys_of_any_value_do_not_count() -> None:
    """Not even those that are not finite, if they are let pass."""
    features = oracle.draw("positive", 4, 6)
    q, k, v = inputs(2)
    mask = np.arange(TOKENS) % 3 != 0
    for options in SCHEDULES.values():
        expected = oracle.expect(q, k, v, features, mask=mask, **options)
        for value in (1e17, np.inf, np.nan):
            k_other, v_other = (np.where(mask[:, None], x, np.float32(value)) for x in (k, v))
            result = attend(q, k_other, v_other, features, mask, jax.jit, check_finite=False, **options)
            oracle.check_result(result, expected, np.float32, f"{options} {value}")


def test_rows_that_fill_up_chunks_or_are_masked_need_no_derivative() -> None:
    """√|u| has none at 0, which is what masked keys are multiplied to."""
    root = rfk.FeatureMap((lambda xp, u, a: xp.sqrt(xp.abs(u)),), nonnegative=True)
    features = jax.tree.map(jnp.float32, rfk.draw(root, 4, 6, rng=0))
    q, k, v = (jnp.asarray(x[..., :5, :]) for x in inputs(2))
    mask = jnp.arange(5) % 3 != 0
    for causal in (False, True):
        gradient = jax.grad(lambda f, causal=causal: rfk.attention(q, k, v, f, causal=causal, mask=mask).sum())(
            features
        )
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("schedule", ["bidirectional", "causal", "windowed causal"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_in_and_out(dtype: str, schedule: str) -> None:
    """Within 1e-2 of float64 on the same inputs, with a state in float32."""
    rng, options = np.random.default_rng(0), SCHEDULES[schedule]
    features = rfk.draw("positive", 16, 64, rng=0)
    q, k, v = (oracle.normal(rng, 2, 200, n, dtype=oracle.DTYPES[dtype]) for n in (16, 16, 8))
    result = attend(q, k, v, features, jit=jax.jit, **options)
    wide = [x.astype(np.float64) for x in (q, k, v)]
    expected = rfk.attention(*wide, features, backend="numpy", **options)
    assert result.output.dtype == oracle.DTYPES[dtype]
    state = result.state.state if "window" in options else result.state
    assert {x.dtype for x in state} == {np.dtype(np.float32)}
    error = np.linalg.norm(np.asarray(result.output).astype(np.float64) - expected) / np.linalg.norm(expected)
    assert error < 1e-2


def test_float32_is_as_exact_as_its_exponents() -> None:
    """Within 1e-5 + 16 ε × the largest exponent, relative to the largest value."""
    rng = np.random.default_rng(0)
    features = rfk.draw("positive", 16, 64, rng=0)
    for size, schedule in itertools.product((1.0, 4.0), ("bidirectional", "causal", "windowed causal")):
        q, k, v = (oracle.normal(rng, 2, 200, n) for n in (16, 16, 8))
        q, k = q * np.float32(size), k * np.float32(size)
        wide = [x.astype(np.float64) for x in (q, k, v)]
        expected = rfk.attention(*wide, features, backend="numpy", **SCHEDULES[schedule])
        u, a, _ = oracle.exponents(k, features, "key")
        largest = max(np.abs(u + a).max(), np.abs(oracle.exponents(q, features, "query")[0]).max())
        error = np.abs(np.asarray(attend(q, k, v, features, **SCHEDULES[schedule]).output) - expected).max()
        assert error <= (1e-5 + 16 * np.finfo(np.float32).eps * largest) * np.abs(v).max()


def test_second_derivatives_just_short_of_a_jump() -> None:
    """Denominators of e^-39 on the scale of their chunk: e^117, their third power inverted, is not in float32."""
    features = rfk.draw("positive", 1, 1, scale=1.0, rng=0)
    w = float(features.projection[0, 0])
    far = w + np.sqrt(w * w + 2 * 39)  # where w k − k²/2 is −39
    rng = np.random.default_rng(0)
    k = np.array([far, far - 0.02, far - 0.05, 0.0, 0.1])[:, None]
    q, v, along, weights = 0.1 * rng.standard_normal((5, 1)), *rng.standard_normal((3, 5, 1))

    def curvature(dtype: Any) -> Any:
        given = [jnp.asarray(x, dtype) for x in (q, v, weights, k, along)]
        arrays = jax.tree.map(lambda x: jnp.asarray(x, dtype), features)

        def loss(q: Any, v: Any, weights: Any, k: Any) -> Any:
            return jnp.sum(rfk.attention(q, k, v, arrays, causal=True) * weights)

        product = xla.jit(lambda q, v, w, k, d: jax.jvp(jax.grad(loss, 3), (q, v, w, k), (0 * q, 0 * v, 0 * w, d))[1])
        return np.asarray(product(*given))

    with jax.enable_x64(True):
        expected = curvature(np.float64)
    np.testing.assert_allclose(curvature(np.float32), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
