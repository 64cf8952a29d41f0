"""A kernel of one's own as attention: register it, attend, differentiate, compare with its exact weights, lower it.

    python examples/custom_kernel.py

The map is h(u) = u², of one activation. With w ~ N(0, I) it estimates the kernel k(x, y) = E (w·x)² (w·y)²
= |x|² |y|² + 2 (x·y)², which attends to keys that are parallel or opposed to the query.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rfkernels as rfk

HEADS, LENGTH, DIM = 4, 96, 16
COUNTS = (64, 256, 1024, 4096)


def quadratic(xp: Any, u: Any, a: Any) -> Any:
    """Return h(u, a) = u²: written once, read by NumPy, JAX and Numba."""
    return xp.square(u)


def log_quadratic(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """Return log (|x|² |y|² + 2 (x·y)²), from x·y, |x|² and |y|²."""
    return xp.log(xx * yy + 2 * xp.square(dot))


KERNEL = rfk.Kernel("quadratic", log_quadratic)
MAP = rfk.FeatureMap((quadratic,), nonnegative=True, kernel=KERNEL)


def inputs() -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(x, jnp.float32) for x in rng.standard_normal((3, HEADS, LENGTH, DIM)))


def error(estimate: Any, exact: Any) -> float:
    """‖estimate − exact‖ / ‖exact‖."""
    return float(jnp.linalg.norm(estimate - exact) / jnp.linalg.norm(exact))


def output_and_gradient(attend: Callable[..., Any]) -> tuple[Any, Any]:
    """Return the output, and the gradient with respect to the queries of a function of it."""
    q, k, v = inputs()

    def loss(q: Any) -> tuple[Any, Any]:
        out = attend(q, k, v)
        return jnp.sum(jnp.sin(3 * out)), out

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(q)
    return out, gradient


def errors(causal: bool) -> list[tuple[int | None, float, float]]:
    """Features, error of output and gradient; no features stand for the average of the values, which knows nothing."""
    exact, exact_gradient = output_and_gradient(partial(rfk.exact_attention, causal=causal, kernel=KERNEL))
    v = inputs()[2]
    seen = jnp.cumsum(v, -2) / jnp.arange(1, LENGTH + 1)[:, None] if causal else v.mean(-2, keepdims=True)
    rows: list[tuple[int | None, float, float]] = [
        (None, error(jnp.broadcast_to(seen, v.shape), exact), error(jnp.zeros_like(v), exact_gradient))
    ]
    for count in COUNTS:
        features = rfk.draw("quadratic", dim=DIM, count=count, rng=1)
        out, gradient = output_and_gradient(partial(rfk.attention, features=features, causal=causal))
        rows.append((count, error(out, exact), error(gradient, exact_gradient)))
    return rows


def lowered(length: int = 4096) -> dict[str, int]:
    """Lower the causal pass and its gradients for machines that need not be here; return the sizes of the programs."""
    features = rfk.draw("quadratic", dim=DIM, count=256, rng=1)

    def loss(q: Any, k: Any, v: Any) -> Any:
        return jnp.sum(jnp.square(rfk.attention(q, k, v, features, causal=True)))

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    shapes = [jax.ShapeDtypeStruct((HEADS, length, DIM), jnp.float32)] * 3  # type: ignore[no-untyped-call]
    return {
        platform: len(jax.export.export(step, platforms=[platform])(*shapes).mlir_module_serialized)
        for platform in ("tpu", "cuda")
    }


def main() -> None:
    rfk.register("quadratic", MAP, replace=True)
    print("Registered 'quadratic': features (w·x)² of the kernel |x|² |y|² + 2 (x·y)², against its exact weights\n")
    print(f"{'':13}  {'features':>8}  {'error':>6}  {'error of the gradient':>21}")
    for causal in (False, True):
        for count, of_output, of_gradient in errors(causal):
            kind, name = "causal" if causal else "bidirectional", "none*" if count is None else str(count)
            print(f"{kind:13}  {name:>8}  {of_output:6.3f}  {of_gradient:21.3f}")
    print(
        "\n* the average of the values that a query sees, and no gradient: what an estimate that knows nothing gives\n"
    )
    for platform, size in lowered().items():
        print(f"Lowered for {platform}, not run there: causal output and gradients at length 4096, {size:,} bytes")


if __name__ == "__main__":
    main()
