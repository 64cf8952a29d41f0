"""What results should be: weights pair by pair in float64, in dense matrices, with no schedule to share with the library.

Also what tests of several files need: backends, maps, inputs, and how far rounding may go.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

import rfkernels as rfk
from rfkernels._arrays import elementwise
from rfkernels.testing import strategies as rst

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
FLOOR = {np.dtype(np.float64): 1e-11, np.dtype(np.float32): 1e-4}


# Backends


def _exists(backend: str) -> bool:
    return hasattr(importlib.import_module(f"rfkernels.backends.{backend}"), "BACKEND")


def backends(*names: str) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(not _exists(name), reason=f"backend {name!r} is not there yet"))
        for name in names or ("numpy", "jax", "numba")
    ]


def alternate(one: Iterable[Any], other: Iterable[Any]) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: all pairs, of which every second runs in the long mode only."""
    return [
        pytest.param(a, b, marks=pytest.mark.long if (i + j) % 2 else ())
        for (i, a), (j, b) in itertools.product(enumerate(one), enumerate(other))
    ]


PAIRS = st.one_of(
    rst.pairs(), rst.pairs(5), st.tuples(rst.points(), rst.points()), st.tuples(rst.points(1), rst.points(1))
)
"""Points of one, two and five dimensions, parallel and opposed ones among them."""

DEFAULT = None if _exists("numba") else "numpy"
"""What tests of the default backend pass as ``backend=``."""


def place(x: Any, backend: str | None) -> Any:
    """Return an array of the kind that the backend takes."""
    if x is None or backend != "jax":
        return x
    import jax.numpy as jnp

    return jnp.asarray(x)


@contextlib.contextmanager
def precision(backend: str | None, dtype: Any) -> Iterator[None]:
    """Let JAX have float64 where a test needs it."""
    if backend != "jax":
        yield
        return
    import jax

    with jax.enable_x64(np.dtype(dtype) == np.float64):
        yield


# Maps


def softplus(xp: Any, u: Any, a: Any) -> Any:
    return xp.log1p(xp.exp(-xp.abs(u))) + xp.maximum(u, 0)


def tilted(xp: Any, u: Any, a: Any) -> Any:
    return xp.exp(a + u / 2) * (2 + xp.sin(u))


def bounded(xp: Any, u: Any, a: Any) -> Any:
    return xp.where(u > 0.5, xp.exp(a - u), xp.exp(a - u) / (1 + xp.square(u)))


def signed(xp: Any, u: Any, a: Any) -> Any:
    return xp.tanh(u - 0.25)


CUSTOM = {
    "softplus": rfk.FeatureMap((softplus,), nonnegative=True),
    "custom exponential": rfk.FeatureMap(
        (tilted, bounded), -0.25, (0.5, -1.0), nonnegative=True, kernel=rfk.kernels.EXPONENTIAL
    ),
    "signed": rfk.FeatureMap((signed,)),
}
MAPS = {**{name: rfk.lookup(name) for name in rfk.names()}, "arc_cosine(3)": rfk.maps.arc_cosine(3), **CUSTOM}
EXPONENTIAL = [name for name, feature_map in MAPS.items() if feature_map.exponential]
WITH_KERNEL = [name for name, feature_map in MAPS.items() if feature_map.kernel is not None]


def draw(name: str, dim: int, rows: int, **options: Any) -> rfk.Features:
    """Draw features of a map of `MAPS` with that many projection rows."""
    options.setdefault("rng", 0)
    return rfk.draw(MAPS[name], dim, rows * len(MAPS[name].activations), **options)


def affine(features: rfk.Features, rng: np.random.Generator) -> rfk.Features:
    """Give both sides a matrix and a centre, and exponential maps a linear part and log-weights as well."""
    dim, batch, root = features.dim, features.batch, np.sqrt(np.asarray(features.scale))

    def side() -> rfk.Side:
        matrix = root * (np.eye(dim) + 0.3 / np.sqrt(dim) * rng.standard_normal((*batch, dim, dim)))
        linear = 0.3 / np.sqrt(dim) * rng.standard_normal((*batch, dim)) if features.map.exponential else None
        return rfk.Side(matrix, 0.3 * rng.standard_normal((*batch, dim)), linear)

    weight = rng.standard_normal(features.log_weight.shape) if features.map.exponential else features.log_weight
    return dataclasses.replace(features, query=side(), key=side(), log_weight=weight)


# Rounding


def accumulation(*arrays: Any) -> Any:
    """The dtype of sums over arrays of these dtypes."""
    return np.dtype(np.float64 if any(x.dtype == np.float64 for x in arrays) else np.float32)


def exponents(x: Any, features: rfk.Features, side: str) -> tuple[Any, Any, Any]:
    """Return u (*batch, length, rows), a (*batch, length, 1) and |w||T x|, which rounding of u is a part of.

    Next to its centre a vector has the rounding of both.
    """
    given, x = features.side(side), np.asarray(x).astype(np.float64)
    matrix = np.sqrt(np.asarray(features.scale)) * np.eye(features.dim) if given.matrix is None else given.matrix
    t = size = np.einsum("...ij,...tj->...ti", matrix, x)
    if given.centre is not None:
        centre = np.asarray(given.centre)[..., None, :]
        t, size = (
            np.einsum("...ij,...tj->...ti", m, y)
            for m, y in ((matrix, x - centre), (np.abs(matrix), np.abs(x) + np.abs(centre)))
        )
    rows = np.asarray(features.projection)
    u = np.einsum("...rd,...td->...tr", rows, t)
    a = features.map.offset * np.sum(t * t, -1, keepdims=True)
    if given.linear is not None:
        a = a + np.sum(np.asarray(given.linear)[..., None, :] * x, -1, keepdims=True)
    reach = np.linalg.norm(rows, axis=-1)[..., None, :] * np.linalg.norm(size, axis=-1, keepdims=True)
    return u, a, reach


def tolerance(largest: Any, dtype: Any) -> Any:
    """What rounding of exponents up to `largest` allows: 1e-4 + 16 ε × the largest exponent in float32."""
    return FLOOR[np.dtype(dtype)] + 16 * np.finfo(dtype).eps * largest


def envelope(x: Any, features: rfk.Features, side: str, dtype: Any) -> tuple[Any, Any]:
    """Return log of |φ| plus what rounding of u does to it in units of the tolerance, and the tolerance of each row."""
    u, a, reach = exponents(x, features, side)
    b = np.asarray(features.log_weight)[..., None, :]
    allowed = tolerance(np.max(np.abs(u) + np.abs(a) + np.abs(b), -1), dtype)
    delta = 4 * np.finfo(dtype).eps * reach
    columns = []
    for i, activation in enumerate(features.map.activations):
        slope = features.map.slopes[i] if features.map.exponential else None
        shift = slope * u + a + b if slope is not None else np.zeros_like(u)
        inside = -slope * u if slope is not None else a + b + np.zeros_like(u)
        value, up, down = (np.asarray(activation(elementwise(np), z, inside)) for z in (u, u + delta, u - delta))
        slack = np.maximum(np.abs(up - value), np.abs(down - value)) / allowed[..., None]
        columns.append(np.log(np.maximum(np.abs(value) + slack, 1e-300)) + shift)
    return np.concatenate(columns, -1) - np.log(features.count) / 2, allowed


# The oracle


class Expected(NamedTuple):
    """A result and how far rounding may move it.

    `bound` is for `output`; `log_bound` is relative to the magnitude of the normalizer. Rows where `certain` is False have
    a normalizer that rounding may turn to anything; of these only finiteness can be asked.
    """

    output: Any
    log_normalizer: Any
    sign: Any
    bound: Any
    log_bound: Any
    certain: Any


def seen_pairs(length: int, keys: int, causal: bool, window: int | None, segments: Any = None) -> tuple[Any, Any]:
    """Return which keys each query sees, and which of them exactly: boolean matrices (*batch of segments, length, keys)."""
    t, s = np.arange(length)[:, None], np.arange(keys)
    if causal:
        t = t + keys - length
    seen = s <= t if causal else np.ones((length, keys), bool)
    if segments is not None:
        assert length == keys
        seen = seen & (segments[..., :, None] == segments[..., None, :])
    near = np.zeros_like(seen) if window is None else seen & (np.abs(t - s) < window)
    return seen, near


def expect(
    q: Any,
    k: Any,
    v: Any,
    features: rfk.Features,
    *,
    causal: bool = False,
    window: int | None = None,
    mask: Any = None,
    segment_ids: Any = None,
) -> Expected:
    """Return what attention should be, from dense weights in float64, a few queries at a time."""
    dtype = accumulation(q, k, v)
    q, k, v = (np.asarray(x).astype(np.float64) for x in (q, k, v))
    seen, near = seen_pairs(q.shape[-2], k.shape[-2], causal, window, segment_ids)
    of_keys, step = envelope(k, features, "key", dtype), 32
    parts = [
        _rows(q[..., rows, :], k, v, features, of_keys, seen[..., rows, :], near[..., rows, :], mask, dtype)
        for rows in (slice(i, i + step) for i in range(0, max(q.shape[-2], 1), step))
    ]
    return Expected(*(np.concatenate(x, -1 - (x[0].ndim > parts[0][1].ndim)) for x in zip(*parts, strict=True)))


def _rows(
    q: Any, k: Any, v: Any, features: rfk.Features, of_keys: Any, seen: Any, near: Any, mask: Any, dtype: Any
) -> Expected:
    log, sign = log_estimates(q, k, features)
    of_q, tolerance_q = envelope(q, features, "query", dtype)
    of_k, tolerance_k = of_keys
    log_size, _ = _log_products(of_q, np.ones_like(of_q), of_k, np.ones_like(of_k))
    allowed = np.maximum(tolerance_q[..., :, None], tolerance_k[..., None, :])
    if near.any():
        exact, exact_sign, exact_moved = exact_kernels(q, k, features, dtype)
        largest = np.where(np.isfinite(exact), np.abs(exact), 0)
        allowed = np.where(near, np.maximum(allowed, tolerance(largest, dtype)), allowed)
        exact_size = np.logaddexp(exact, exact_moved - np.log(allowed))
        log, sign, log_size = (
            np.where(near, exact, log),
            np.where(near, exact_sign, sign),
            np.where(near, exact_size, log_size),
        )
    seen = seen if mask is None else seen & mask[..., None, :]
    log, log_size = np.where(seen, log, -np.inf), np.where(seen, log_size, -np.inf)
    allowed = np.max(np.where(seen, allowed, 0), -1, initial=0)
    shift = np.max(log_size, -1, initial=-np.inf)
    shift = np.where(np.isfinite(shift), shift, 0)
    weight, size = sign * np.exp(log - shift[..., None]), np.exp(log_size - shift[..., None])
    total, total_size = weight.sum(-1), allowed * size.sum(-1)
    empty, magnitude = total == 0, np.where(total == 0, 1, np.abs(total))
    output = np.where(empty[..., None], 0, weight @ v / np.where(empty, 1, total)[..., None])
    slack = np.where(empty, 0, total_size / magnitude)
    certain = np.where(empty, total_size == 0, slack < 0.5)
    spread = allowed[..., None] * (size @ np.abs(v)) / magnitude[..., None] + np.abs(output) * slack[..., None]
    bound = spread / (1 - np.where(certain, slack, 0))[..., None]
    log_total = np.where(empty, -np.inf, np.log(magnitude) + shift)
    shape = bound.shape[:-1]  # values may have batch axes that weights lack
    rows = (np.broadcast_to(x, shape) for x in (log_total, np.sign(total), slack, certain))
    log_total, sign, slack, certain = rows
    return Expected(output, log_total, sign, bound, slack, certain)


def exact_kernels(q: Any, k: Any, features: rfk.Features, dtype: Any) -> tuple[Any, Any, Any]:
    """Return log |k(q_t, k_s)| and its sign for all pairs, and the log of how far rounding of q·k may move it.

    A function of the angle may have a vertical tangent at 0 or π, so it is taken at products that are rounded either way.
    """
    kernel, scale = features.map.kernel, float(features.scale)
    dot = scale * (q @ np.swapaxes(k, -1, -2))
    xx, yy = scale * np.square(q).sum(-1)[..., :, None], scale * np.square(k).sum(-1)[..., None, :]
    log = kernel.log(np, dot, xx, yy)
    sign = kernel.sign(np, dot, xx, yy) if kernel.sign is not None else np.ones_like(log)
    if kernel.norm_weight is not None:
        return log, sign, np.full_like(log, -np.inf)
    step = 8 * np.finfo(dtype).eps * np.sqrt(xx * yy)
    apart = []
    for moved in (dot + step, dot - step):
        with np.errstate(invalid="ignore"):  # −inf where both are zero
            other = kernel.log(np, moved, xx, yy)
            turned = sign * (1.0 if kernel.sign is None else kernel.sign(np, moved, xx, yy))
        top = np.maximum(np.maximum(log, other), -700)
        apart.append(np.log(np.maximum(np.abs(np.exp(log - top) - turned * np.exp(other - top)), 1e-300)) + top)
    return log, sign, np.maximum(*apart)


def log_estimates(q: Any, k: Any, features: rfk.Features) -> tuple[Any, Any]:
    """Return log |k̂(q_t, k_s)| and its sign for all pairs, (*batch, length, keys)."""
    one = rfk.transform(q, features, side="query", log=True)
    return _log_products(*one, *rfk.transform(k, features, side="key", log=True))


def _log_products(one: Any, sign: Any, other: Any, other_sign: Any) -> tuple[Any, Any]:
    """Return the log of the magnitude and the sign of Σⱼ sign_tj sign_sj exp(one_tj + other_sj), for all pairs.

    By a product of matrices, and pair by pair where exponentials vanish in it.
    """
    batch = np.broadcast_shapes(one.shape[:-2], other.shape[:-2])
    one, sign = (np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (one, sign))
    other, other_sign = (np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (other, other_sign))
    (a, top), (b, other_top) = _scaled(one), _scaled(other)
    total, shift = (sign * a) @ np.swapaxes(other_sign * b, -1, -2), top + np.swapaxes(other_top, -1, -2)
    lost = np.nonzero(a @ np.swapaxes(b, -1, -2) < 1e-200)
    t, s = lost[:-1], (*lost[:-2], lost[-1])
    each, shift[lost] = _scaled(one[t] + other[s], keepdims=False)
    total[lost] = (sign[t] * other_sign[s] * each).sum(-1)
    nothing = total == 0
    log = np.log(np.where(nothing, 1, np.abs(total))) + shift
    return np.where(nothing, -np.inf, log), np.sign(total)


def _scaled(log: Any, keepdims: bool = True) -> tuple[Any, Any]:
    """Return exponentials divided by the largest of each row, and its log; of rows that are all zero, 0."""
    top = np.max(log, -1, keepdims=True)
    top = np.where(top == -np.inf, 0, top)
    return np.exp(log - top), top if keepdims else top[..., 0]


def check_output(got: Any, expected: Expected, dtype: Any, what: str = "output") -> None:
    """Require an output of that dtype to be within its bound."""
    dtype = np.dtype(dtype)
    assert got.dtype == dtype, f"{what}: dtype {got.dtype}, expected {dtype}"
    assert got.shape == expected.output.shape, f"{what}: shape {got.shape}, expected {expected.output.shape}"
    value = np.asarray(got).astype(np.float64)
    info = ml_dtypes.finfo(dtype)
    with np.errstate(over="ignore"):  # a signed map may divide by nearly nothing, and float16 ends at 65504
        small = np.abs(expected.output) + expected.bound < float(info.max)
    bad = ~np.isfinite(value) & (small & expected.certain[..., None] | (dtype != np.float16))
    assert not bad.any(), f"{what}: not finite at {np.argwhere(bad)[0]}"
    value = np.where(np.isfinite(value), value, 0)
    rounding = 0.5001 * np.abs(expected.output) * float(info.eps) + float(info.smallest_subnormal)
    bound = np.where(expected.certain[..., None] & small, expected.bound + rounding, np.inf)
    _require(np.abs(value - expected.output), bound, what, value, expected.output)


def check_normalizer(log: Any, sign: Any, expected: Expected, what: str = "log_normalizer") -> None:
    """Require a log normalizer and its sign to be within their bounds."""
    log, sign = np.asarray(log).astype(np.float64), np.asarray(sign)
    assert log.shape == sign.shape == expected.log_normalizer.shape, f"{what}: shape {log.shape}, sign {sign.shape}"
    known = expected.log_normalizer > -np.inf
    none = expected.certain & ~known
    assert (log[none] == -np.inf).all(), f"{what}: expected -inf where there is nothing to sum"
    assert (sign[none] == 0).all(), f"{what}: expected sign 0 where there is nothing to sum"
    use = expected.certain & known
    assert (sign[use] == expected.sign[use]).all(), f"{what}: wrong sign"
    assert np.isfinite(log[use]).all(), f"{what}: not finite"
    rounding = (
        4 * np.finfo(np.float32 if expected.log_bound.size and expected.log_bound.max() > 1e-5 else np.float64).eps
    )
    bound = 2 * expected.log_bound[use] + rounding * np.abs(expected.log_normalizer[use])
    _require(np.abs(log[use] - expected.log_normalizer[use]), bound, what, log[use], expected.log_normalizer[use])


def _require(error: Any, bound: Any, what: str, got: Any, expected: Any) -> None:
    if not (error <= bound).all():
        with np.errstate(divide="ignore"):
            worst = np.unravel_index(np.argmax(error / bound), error.shape)
        raise AssertionError(
            f"{what}{list(map(int, worst))}: got {got[worst]!r}, expected {expected[worst]!r}; the error "
            f"{error[worst]:.3g} exceeds its bound {bound[worst]:.3g}; {int((error > bound).sum())} of {error.size} do"
        )


def check_result(result: Any, expected: Expected, dtype: Any, what: str = "") -> None:
    """Require the output and normalizer of an `AttentionResult` to be within their bounds."""
    check_output(result.output, expected, dtype, f"{what} output".strip())
    check_normalizer(result.log_normalizer, result.sign, expected, f"{what} log_normalizer".strip())


def check_same(got: Any, expected: Any, scale: float = 1.0, largest: float = 0.0, what: str = "") -> None:
    """Require two results of the same numbers in another order to agree to rounding."""
    assert got.dtype == expected.dtype, f"{what}: dtype {got.dtype}, expected {expected.dtype}"
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    one, two = (np.asarray(x).astype(np.float64) for x in (got, expected))
    accumulated = np.float64 if got.dtype == np.float64 else np.float32
    eps = max(float(ml_dtypes.finfo(got.dtype).eps), 64 * float(np.finfo(accumulated).eps))
    bound = np.full(one.shape, scale * (eps + 16 * np.finfo(accumulated).eps * largest))
    error = np.where(one == two, 0, np.abs(one - np.where(one == two, 0, two)))
    _require(np.nan_to_num(error, nan=np.inf), bound, what or "result", one, two)


# Inputs


def normal(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> Any:
    """Standard normals of a shape, in a dtype."""
    return rng.standard_normal(shape).astype(dtype)
