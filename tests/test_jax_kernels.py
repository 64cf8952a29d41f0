"""Kernels that are written by hand, in windows on JAX: their gradients are those of dense mathematics."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import rfkernels as rfk

DIM, WIDTH, WINDOW = 4, 3, 9


def quad(xp: Any, u: Any, a: Any) -> Any:
    return xp.square(u)


def log_quad(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """Neither finite nor differentiable where a vector is zero."""
    return xp.log(xx * yy + 2 * xp.square(dot))


QUADRATIC = rfk.FeatureMap((quad,), nonnegative=True, kernel=rfk.Kernel("quadratic", log_quad))


def dense(q: Any, k: Any, v: Any, features: rfk.Features, causal: bool, mask: Any, segments: Any) -> Any:
    """Attention by matrices of all weights."""
    q, k = (x * jnp.sqrt(features.scale).astype(x.dtype) for x in (q, k))
    u, w = (jnp.einsum("...ld,jd->...lj", x, features.projection, precision="highest") for x in (q, k))
    estimate = jnp.einsum("...lj,...sj->...ls", u**2, w**2, precision="highest") / features.count
    dot = jnp.einsum("...ld,...sd->...ls", q, k, precision="highest")
    exact = jnp.sum(q * q, -1)[..., None] * jnp.sum(k * k, -1)[..., None, :] + 2 * dot**2
    offset = k.shape[-2] - q.shape[-2] if causal else 0
    distance = jnp.arange(q.shape[-2])[:, None] + offset - jnp.arange(k.shape[-2])
    seen = jnp.broadcast_to(distance >= 0 if causal else True, dot.shape) & mask[..., None, :]
    if segments is not None:
        seen = seen & (segments[..., -q.shape[-2] :, None] == segments[..., None, :])
    weight = jnp.where(seen, jnp.where(abs(distance) < WINDOW, exact, estimate), 0)
    return weight @ v / jnp.where(jnp.sum(weight, -1) == 0, 1, jnp.sum(weight, -1))[..., None]


@pytest.mark.parametrize(
    ("case", "double"),
    oracle.alternate(
        [(20, 20, True, False), (150, 160, True, True), (150, 150, False, True), (37, 30, False, False)], [False, True]
    ),
)
def test_gradients_of_windows_are_those_of_dense_mathematics(case: tuple[int, int, bool, bool], double: bool) -> None:
    """With lengths that fill no chunk, with masks and with segments, none of whose zeros the kernel may meet."""
    length, keys, causal, masked = case
    rng, dtype = np.random.default_rng(0), np.float64 if double else np.float32
    with jax.enable_x64(double):
        features = jax.tree.map(lambda x: jnp.asarray(x, dtype), rfk.draw(QUADRATIC, dim=DIM, count=16, rng=3))
        shapes = (length, DIM), (keys, DIM), (keys, WIDTH), (length, WIDTH)
        q, k, v, weights = (oracle.normal(rng, 2, *shape, dtype=dtype) for shape in shapes)
        mask = rng.random((2, keys)) < 0.7 if masked else None
        segments = np.sort(rng.integers(0, 3, (2, keys)), -1) if masked and length == keys else None

        def library(*qkv: Any) -> Any:
            options = {"causal": causal, "window": WINDOW, "mask": mask, "segment_ids": segments}
            return jnp.sum(jnp.square(rfk.attention(*qkv, features, **options)) * weights)

        def matrices(*qkv: Any) -> Any:
            seen = np.ones(keys, bool) if mask is None else mask
            return jnp.sum(jnp.square(dense(*qkv, features, causal, seen, segments)) * weights)

        found, expected = (jax.jit(jax.grad(f, (0, 1, 2)))(q, k, v) for f in (library, matrices))
        tolerance = 1e-9 if double else 1e-4
        for one, two in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance * np.abs(two).max())


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_exact_attention(causal: bool) -> None:
    """Queries that fill up its blocks meet no key either."""
    rng = np.random.default_rng(0)
    q, k, v, weights = (oracle.normal(rng, 150, n) for n in (DIM, DIM, WIDTH, WIDTH))
    assert QUADRATIC.kernel is not None
    kernel = QUADRATIC.kernel

    def library(*qkv: Any) -> Any:
        return jnp.sum(rfk.exact_attention(*qkv, scale=1.0, causal=causal, kernel=kernel) * weights)

    def matrices(q: Any, k: Any, v: Any) -> Any:
        dot = jnp.matmul(q, k.T, precision="highest")
        weight = jnp.sum(q * q, -1)[:, None] * jnp.sum(k * k, -1) + 2 * dot**2
        weight = jnp.tril(weight) if causal else weight
        return jnp.sum(weight @ v / jnp.sum(weight, -1, keepdims=True) * weights)

    found, expected = (jax.jit(jax.grad(f, (0, 1, 2)))(q, k, v) for f in (library, matrices))
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4 * np.abs(two).max())


def test_functions_that_are_not_elementwise_are_refused() -> None:
    for log in (
        lambda xp, dot, xx, yy: dot.sum(),
        lambda xp, dot, xx, yy: dot - xp.max(dot, -1, keepdims=True),
        lambda xp, dot, xx, yy: dot.T,
        lambda xp, dot, xx, yy: dot[..., None],
        lambda xp, dot, xx, yy: jnp.asarray(dot) - jnp.max(dot),
    ):
        with pytest.raises(ValueError, match="log must be elementwise: <function"):
            rfk.Kernel("b", log)
    with pytest.raises(ValueError, match="sign must be elementwise"):
        rfk.Kernel("b", log_quad, sign=lambda xp, dot, xx, yy: xp.sign(dot - xp.mean(dot)))
    with pytest.raises(ValueError, match=r"sign must return -1, 0 or 1, but <function .* returned array"):
        rfk.Kernel("b", log_quad, sign=lambda xp, dot, xx, yy: dot)
    with pytest.raises(TypeError, match=r"log must be a function log\(xp, dot, xx, yy\) that can be hashed, got None"):
        rfk.Kernel("b", None)  # type: ignore[arg-type]
    for log in (lambda xp, dot, xx, yy: None, lambda xp, dot, xx, yy: 1j * dot):  # type: ignore[assignment]
        with pytest.raises(TypeError, match="log must return real numbers, but <function"):
            rfk.Kernel("b", log)
    for profile in (lambda xp, squared: "no", lambda xp, squared: -1j * squared):
        with pytest.raises(TypeError, match="profile must return real numbers, but <function"):
            rfk.Kernel.of_distance("b", profile)
    with pytest.raises(ValueError, match="profile must be elementwise: <function"):
        rfk.Kernel.of_distance("b", lambda xp, squared: jnp.max(squared) - squared)
    assert rfk.Kernel("constant", lambda xp, dot, xx, yy: 0.0).name == "constant"


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("constant", [0, np.float64(1), False])
def test_logs_are_of_the_shape_and_dtype_of_the_points(xp: Any, constant: Any) -> None:
    x = xp.ones((2, 3, DIM), xp.float32)
    same = rfk.Kernel("same", lambda xp, dot, xx, yy: constant, sign=lambda xp, dot, xx, yy: 1)
    some = rfk.Kernel("some", lambda xp, dot, xx, yy: xp.where(dot > 0, constant, -5))
    for kernel in (same, some):
        log, sign = rfk.exact_log_kernel(x, x[:1], kernel=kernel, return_sign=True)
        assert log.shape == sign.shape == (2, 3)
        assert log.dtype == sign.dtype == np.float32
        np.testing.assert_array_equal(log, float(constant))
    log = rfk.exact_log_normalizer(x, x, kernel=same, return_sign=True)[0]
    assert log.dtype == np.float32
    tiny = rfk.Kernel("tiny", lambda xp, dot, xx, yy: -1e300, sign=lambda xp, dot, xx, yy: xp.sign(dot / (0 * xx)))
    assert rfk.kernels.evaluated(tiny.log, xp, x[0, 0], 1, 1)[0] == -np.inf


def test_norm_weights_that_are_not_those_of_the_log_are_refused() -> None:
    for weight in (np.nan, np.inf, "0", True, 1j):
        with pytest.raises(ValueError, match="norm_weight must be a finite number or None, got"):
            rfk.Kernel("b", lambda xp, dot, xx, yy: dot, norm_weight=weight)  # type: ignore[arg-type]
    for log, weight in (
        (lambda xp, dot, xx, yy: 2 * dot, 0.0),
        (lambda xp, dot, xx, yy: dot - xx - yy, -0.5),
        (lambda xp, dot, xx, yy: dot - xx, -1.0),
        (lambda xp, dot, xx, yy: 2 * jnp.asarray(dot), 0.0),
    ):
        with pytest.raises(ValueError, match=r"norm_weight must be None, or κ where log is .* another function"):
            rfk.Kernel("b", log, norm_weight=weight)
    assert (
        rfk.Kernel("b", lambda xp, dot, xx, yy: dot - (xx + yy) / 2, norm_weight=np.float32(-0.5)).norm_weight == -0.5
    )
    with pytest.raises(ValueError, match="norm_weight must be None"):
        dataclasses.replace(rfk.Kernel.of_distance("b", lambda xp, squared: -squared), norm_weight=-0.5)
    halved = rfk.Kernel.of_distance("b", lambda xp, squared: -squared / 2)
    assert dataclasses.replace(halved, norm_weight=-0.5).norm_weight == -0.5


def test_functions_of_numpy_are_refused_by_jax_alone() -> None:
    kernel = rfk.Kernel("b", lambda xp, dot, xx, yy: np.log(xx * yy + dot**2))
    x = np.random.default_rng(0).standard_normal((5, DIM))
    assert np.isfinite(rfk.exact_attention(x, x, x, kernel=kernel)).all()
    with pytest.raises(
        TypeError, match="must be made of those of their namespace xp to be used with JAX, got <function"
    ):
        rfk.exact_attention(*[jnp.asarray(x)] * 3, kernel=kernel)


def test_a_kernel_with_a_parameter_that_is_differentiated() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((150, DIM)), jnp.float32)

    def loss(power: Any) -> Any:
        kernel = rfk.Kernel("power", lambda xp, dot, xx, yy: power * dot)
        return jnp.sum(jnp.square(rfk.exact_attention(x, x, x, scale=1.0, kernel=kernel)))

    def expected(power: Any) -> Any:
        return jnp.sum(jnp.square(jax.nn.softmax(power * x @ x.T, -1) @ x))

    for run in (jax.grad(loss), jax.jit(jax.grad(loss))):
        np.testing.assert_allclose(run(0.5), jax.grad(expected)(0.5), rtol=1e-4)
