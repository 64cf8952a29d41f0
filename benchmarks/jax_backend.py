"""Measure the JAX backend: ratios in one run. For a GPU see ``gpu.py``.

Run with ``python benchmarks/jax_backend.py [--quick]``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rfkernels as rfk
from rfkernels.benchmark import peers
from rfkernels.benchmark.line import Line, Ratio, meets, ratio_line
from rfkernels.benchmark.plan import FULL, allowed_threads
from rfkernels.benchmark.timing import Call, measure


class Sizes(NamedTuple):
    """Heads, positions, width and features."""

    heads: int = 8
    length: int = 8192
    dim: int = 64
    features: int = 256

    def __str__(self) -> str:
        return f"H={self.heads} L={self.length} d={self.dim} m={self.features}"


def inputs(sizes: Sizes, dtype: Any = jnp.float32) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    shape = (sizes.heads, sizes.length, sizes.dim)
    q, k, v = (jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for _ in range(3))
    return q, k, v


def squared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return value and gradient of the sum of squares of the output."""
    return jax.value_and_grad(lambda *x: jnp.sum(jnp.square(function(*x).astype(jnp.float32))), (0, 1, 2))


def ready(function: Callable[..., Any], *arrays: Any) -> Call:
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arrays))  # type: ignore[no-untyped-call]


def attend(features: rfk.Features, **options: Any) -> Callable[..., Any]:
    return lambda q, k, v: rfk.attention(q, k, v, features, **options)


def plain_causal(features: rfk.Features, chunk: int = 128) -> Callable[..., Any]:
    """The plain mathematics, causal: φ on one scale for the whole sequence, and a scan over chunks."""
    w, root = jnp.asarray(features.projection, jnp.float32), float(features.scale) ** 0.5

    def exponent(x: Any) -> Any:
        x = x * root
        return jnp.einsum("hld,md->hlm", x, w, precision="highest") - jnp.sum(x * x, -1, keepdims=True) / 2

    def run(q: Any, k: Any, v: Any) -> Any:
        of_q, of_k = exponent(q), exponent(k)
        phi_q = jnp.exp(of_q - jnp.max(of_q, -1, keepdims=True))
        phi_k = jnp.exp(of_k - jnp.max(of_k, (-2, -1), keepdims=True))

        def body(carry: Any, chunks: Any) -> Any:
            kv, z = carry
            a, b, c = chunks
            near = jnp.tril(jnp.einsum("htm,hsm->hts", a, b))
            top = jnp.einsum("htm,hmd->htd", a, kv) + near @ c
            bottom = jnp.einsum("htm,hm->ht", a, z) + jnp.sum(near, -1)
            return (kv + jnp.einsum("htm,htd->hmd", b, c), z + jnp.sum(b, 1)), top / bottom[..., None]

        heads, length, dim = v.shape
        cut = [jnp.moveaxis(x.reshape(heads, length // chunk, chunk, -1), 1, 0) for x in (phi_q, phi_k, v)]
        start = jnp.zeros((heads, w.shape[0], dim)), jnp.zeros((heads, w.shape[0]))
        return jnp.moveaxis(jax.lax.scan(body, start, cut)[1], 0, 1).reshape(v.shape)

    return run


def ratios(sizes: Sizes, rounds: int) -> Iterator[Line]:
    """Forward and backward in one run, by turns."""
    features = rfk.draw("positive", sizes.dim, sizes.features, rng=0)
    given, threads = inputs(sizes), allowed_threads()
    plan = FULL.__class__(**{**FULL.__dict__, "heads": sizes.heads, "dim": sizes.dim, "count": sizes.features})
    both, causal, windowed = (
        attend(features, **options) for options in ({}, {"causal": True}, {"causal": True, "window": 128})
    )
    together = jax.vmap(both)  # heads that the library is not told of stay together, as those of a causal pass do
    cases = {
        "plain": lambda: peers.jax_plain(plan, tuple(np.asarray(x) for x in given)),  # type: ignore[arg-type]
        "plain causal": lambda: ready(plain_causal(features), *given),
        "bidirectional": lambda: ready(both, *given),
        "bidirectional, heads together": lambda: ready(together, *given),
        "causal": lambda: ready(causal, *given),
        "window": lambda: ready(windowed, *given),
        "bidirectional, value and gradient": lambda: ready(squared(both), *given),
        "causal, value and gradient": lambda: ready(squared(causal), *given),
    }
    timings = measure(cases, rounds, 0.3)
    for ratio in (
        Ratio(f"plain mathematics / bidirectional, {sizes}", "plain", "bidirectional", ">= 1.8"),
        Ratio(
            f"causal / bidirectional in the same layout, {sizes}", "causal", "bidirectional, heads together", "<= 1.5"
        ),
        Ratio(f"causal / bidirectional, {sizes}", "causal", "bidirectional"),
        Ratio(f"plain causal / causal, {sizes}", "plain causal", "causal", ">= 1"),
        Ratio(f"window of 128 / causal, {sizes}", "window", "causal"),
    ):
        yield ratio_line(timings, ratio, threads)
    for mode in ("bidirectional", "causal"):
        total = Ratio(f"{mode}: value and gradient / forward, {sizes}", f"{mode}, value and gradient", mode)
        line = ratio_line(timings, total, threads)
        yield line
        yield Line(f"{mode}: backward alone / forward, {sizes}", line.value - 1, "x", "<= 3", "the line above less one")


def compilation(sizes: Sizes) -> Iterator[Line]:
    """Seconds to lower and compile, with nothing kept from before."""
    features = rfk.draw("positive", sizes.dim, sizes.features, rng=0)
    shape = jax.ShapeDtypeStruct((sizes.heads, sizes.length, sizes.dim), jnp.float32)  # type: ignore[no-untyped-call]
    for mode, options in (("bidirectional", {}), ("causal", {"causal": True})):
        function = attend(features, **options)
        for what, given in (("forward", function), ("value and gradient", squared(function))):
            jax.clear_caches()  # type: ignore[no-untyped-call]
            start = time.perf_counter()
            jax.jit(given).lower(shape, shape, shape).compile()
            seconds = time.perf_counter() - start
            yield Line(f"compile {mode}, {what}, {sizes}", seconds, "s", "<= 5", "once")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds")
    options = parser.parse_args(arguments)
    sizes, rounds = (Sizes(2, 1024), 2) if options.quick else (Sizes(), 7)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {allowed_threads()} threads")
    for lines in (ratios(sizes, rounds), compilation(sizes)):
        for line in lines:
            reached = {None: "", True: "reached", False: "MISSED"}[None if options.quick else meets(line)]
            print(f"{line.name}: {line.value:.3g} {line.unit} {line.target} {reached} ({line.detail})", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
