"""Features that are given and exact attention on JAX: one program for any length, and what NumPy computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import xla

import rfkernels as rfk
from rfkernels import estimates

BATCH, DIM, WIDTH = 2, 4, 3
SHAPES = [(5, 3), (300, 300), (300, 140), (140, 300)]


def exact(q: Any, k: Any, v: Any, **options: Any) -> Any:
    return rfk.exact_attention(q, k, v, **options)


def normalizer(q: Any, k: Any, v: Any, **options: Any) -> Any:
    return rfk.exact_log_normalizer(q, k, **options)


def linear(q: Any, k: Any, v: Any, **options: Any) -> Any:
    xp = jnp if isinstance(q, jax.Array) else np
    return rfk.linear_attention(xp.exp(q), xp.exp(k), v, **options)


FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "linear": (linear, {}),
    "linear, causal": (linear, {"causal": True}),
    "exact": (exact, {}),
    "exact, causal": (exact, {"causal": True}),
    "exact, window": (exact, {"window": 20}),
    "exact, causal window": (exact, {"window": 20, "causal": True}),
    "exact, any window": (exact, {"window": 10**12}),
    "normalizer": (normalizer, {}),
}


@pytest.mark.parametrize(("name", "shape"), oracle.alternate(list(FUNCTIONS), SHAPES))
def test_values_and_gradients(name: str, shape: tuple[int, int]) -> None:
    """Of JAX those of NumPy, and along a direction their difference, with masks and segments or without."""
    (function, options), (length, keys) = FUNCTIONS[name], shape
    rng, dtype = np.random.default_rng(0), np.float64
    q, k, v = (oracle.normal(rng, BATCH, *shape, dtype=dtype) for shape in ((length, DIM), (keys, DIM), (keys, WIDTH)))
    others: list[dict[str, Any]] = [{}, {"mask": rng.random((BATCH, keys)) < 0.7}]
    if function is exact and length == keys:
        others.append({"segment_ids": np.sort(rng.integers(0, 4, (BATCH, keys)), -1)})
    for other in others:

        def run(q: Any, k: Any, v: Any, other: Any = other) -> Any:
            return function(q, k, v, **options, **other)

        expected = run(q, k, v)
        weights, along = rng.standard_normal(expected.shape), [rng.standard_normal(x.shape) for x in (q, k, v)]
        ahead, behind = (run(*(x + 1e-6 * sign * d for x, d in zip((q, k, v), along, strict=True))) for sign in (1, -1))
        with jax.enable_x64(True):
            result = jax.jit(run)(*map(jnp.asarray, (q, k, v)))
            gradient = jax.jit(jax.grad(lambda *x, run=run, w=weights: jnp.sum(run(*x) * w), (0, 1, 2)))
            found = sum(np.vdot(x, d) for x, d in zip(gradient(q, k, v), along, strict=True))
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(found, np.vdot(weights, ahead - behind) / 2e-6, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_in_float32(name: str) -> None:
    function, options = FUNCTIONS[name]
    rng = np.random.default_rng(1)
    q, k, v = (oracle.normal(rng, 2, 1100, n) for n in (DIM, DIM, WIDTH))
    expected = function(*(x.astype(np.float64) for x in (q, k, v)), **options)
    result = xla.jit(lambda *x: function(*x, **options))(*map(jnp.asarray, (q, k, v)))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_programs_and_temporaries_do_not_grow_with_the_length(name: str) -> None:
    """Neither those of a pass nor of its gradient: a longer one has more numbers, and as many instructions."""
    function, options = FUNCTIONS[name]

    def gradient(q: Any, k: Any, v: Any) -> Any:
        return jax.grad(lambda *x: jnp.sum(function(*x, **options)), (0, 1, 2))(q, k, v)

    for run in (lambda *x: function(*x, **options), gradient):
        programs = {}
        for length in (8192, 65536):
            rows = [jax.ShapeDtypeStruct((length, n), jnp.float32) for n in (DIM, DIM, WIDTH)]
            programs[length] = jax.jit(run).lower(*rows)
        short, long = (x.as_text().count("stablehlo.") for x in programs.values())
        assert long < 1.1 * short
    memory = {n: x.compile().memory_analysis().temp_size_in_bytes for n, x in programs.items()}
    assert memory[65536] < 10 * memory[8192]


@pytest.mark.parametrize("name", ["positive", "trigonometric", "relu"])
@pytest.mark.parametrize(
    ("shape", "most", "turns"),
    [((53,), 6, (16,)), ((3, 8), 6, (8,)), ((53,), 2, (32, 16, 4)), ((2,), 0.5, (2,)), ((3, 5, 2), 4, (4, 2, 2))],
    ids=str,
)
def test_kernels_in_turns_are_those_of_all_pairs_at_once(
    name: str, shape: tuple[int, ...], most: float, turns: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is left over, in turns too, in eager and compiled code, with derivatives of points and features."""
    rng = np.random.default_rng(0)
    features = rfk.draw(name, DIM, 8, rng=0)

    def run(x: Any, y: Any, features: Any) -> Any:
        return rfk.log_kernel(x, y, features, return_sign=True)

    def gradient(*given: Any) -> Any:
        return jax.grad(lambda *given: jnp.sum(run(*given)[0] * weights), (0, 1, 2))(*given)

    with jax.enable_x64(True):
        given = *(jnp.asarray(rng.standard_normal((*shape, DIM))) for _ in range(2)), features
        weights = rng.standard_normal(shape)
        once = jax.jit(lambda *given: gradient(*given))  # JAX keeps what it compiled of a function that it knows
        expected = run(*given), once(*given)
        monkeypatch.setattr(estimates, "_TERMS_OF_JAX", int(8 * most))
        seen = jax.make_jaxpr(run)(*given)
        assert re.findall(r"length=(\d+)", str(seen)) == [str(n) for n in turns]
        for found in ((run(*given), jax.jit(gradient)(*given)), (jax.jit(run)(*given), gradient(*given))):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), found, expected)


@pytest.mark.parametrize("name", ["positive", "relu"])
@pytest.mark.parametrize(("count", "of_pairs"), [(256, 200_000), (1 << 15, (1 << 16) - 1)])
def test_kernels_of_many_pairs_take_no_memory_for_all_their_terms(name: str, count: int, of_pairs: int) -> None:
    """Nor for those that are left over, which may be hundreds of pairs."""
    features, pairs = rfk.draw(name, DIM, count, rng=0), jax.ShapeDtypeStruct((of_pairs, DIM), jnp.float32)

    def total(x: Any, y: Any) -> Any:
        return jnp.sum(rfk.log_kernel(x, y, features))

    for run in (total, jax.grad(total, (0, 1))):
        needed = xla.jit(run).lower(pairs, pairs).compile().memory_analysis().temp_size_in_bytes
        assert needed < 4 * (8 * estimates._TERMS_OF_JAX + 4 * 2 * of_pairs * DIM)
