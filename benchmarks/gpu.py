"""Measure attention on one GPU: lengths, dtypes and directions against exact attention, and the limits of the chip.

Run with ``python benchmarks/gpu.py [--longest POWER] [--gradients]``. Exact attention of bfloat16 is cuDNN's, in the
layout it asks for; of float32 it is what XLA makes of `jax.nn.dot_product_attention`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rfkernels as rfk
from rfkernels.backends.jax import fused
from rfkernels.benchmark.line import show_seconds
from rfkernels.benchmark.timing import Timings, measure

HEADS, DIM, COUNT = 8, 64, 256
CHAIN = 8
"""Calls in a program that is timed, one after another: what a call costs within a model, not what Python costs."""


class Case(NamedTuple):
    """What is timed: exact or linear attention, of one length, dtype and direction."""

    length: int
    dtype: str
    causal: bool
    gradient: bool
    exact: bool


def inputs(case: Case) -> tuple[Any, Any, Any]:
    """Return q, k and v; cuDNN has the heads after the positions, and a batch of one."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (1, case.length, HEADS, DIM) if case.exact else (HEADS, case.length, DIM)
    q, k, v = (jax.random.normal(key, shape, case.dtype) for key in keys)
    return q, k, v


def function(case: Case, features: rfk.Features) -> Callable[..., Any]:
    """Return a call, or a chain of calls each of which has the output of the one before in its queries."""

    def exact(q: Any, k: Any, v: Any) -> Any:
        how: Any = "cudnn" if case.dtype == "bfloat16" else "xla"
        return jax.nn.dot_product_attention(q, k, v, is_causal=case.causal, implementation=how)

    def linear(q: Any, k: Any, v: Any) -> Any:
        return rfk.attention(q, k, v, features, causal=case.causal)

    one: Callable[..., Any] = exact if case.exact else linear
    if case.gradient:
        return jax.grad(lambda *x: jnp.sum(jnp.square(one(*x).astype(jnp.float32))), (0, 1, 2))

    def chain(q: Any, k: Any, v: Any) -> Any:
        for _ in range(calls(case)):
            q = q + one(q, k, v)
        return q

    return chain


def calls(case: Case) -> int:
    """Return how many calls a program has: one where a call takes long."""
    return 1 if case.gradient or case.length > 2**16 else CHAIN


def fits(case: Case) -> bool:
    """Whether exact attention is not too large, or too slow, for this."""
    if not case.exact:
        return True
    if case.dtype == "float32":
        return case.length <= 2**14
    return case.length <= (2**16 if case.gradient else 2**20)


def compiled(cases: list[Case], features: rfk.Features) -> dict[Case, Any]:
    """Compile all at once: XLA tries kernels of products on the GPU, which takes long."""

    def lowered(case: Case) -> Any:
        return jax.jit(function(case, features)).lower(*jax.eval_shape(lambda: inputs(case)))

    with ThreadPoolExecutor(max_workers=12) as pool:
        programs = pool.map(lambda case: lowered(case).compile(), cases)
        return dict(zip(cases, programs, strict=True))


def ready(program: Any, *given: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(program(*given))  # type: ignore[no-untyped-call]


def compare(programs: dict[Case, Any], rounds: int) -> Iterator[str]:
    """Time exact and linear attention by turns, and give the time of one call."""
    for case, program in programs.items():
        if case.exact:
            continue
        other = case._replace(exact=True)
        cases = {"linear": partial(ready, program, *inputs(case))}
        if other in programs:
            cases["exact"] = partial(ready, programs[other], *inputs(other))
        timings = measure(cases, 1 if case.length > 2**18 else rounds, 0.05)
        yield line(case, timings, calls(case), program.memory_analysis().temp_size_in_bytes)


def line(case: Case, timings: Timings, times: int, temporaries: int) -> str:
    linear = timings.median("linear") / times
    what = f"{case.dtype}, {'causal' if case.causal else 'bidirectional'}, {'gradient' if case.gradient else 'forward'}"
    text = f"L={case.length}, {what}: linear {show_seconds(linear)}, {temporaries / 2**20:.0f} MiB of temporaries"
    if "exact" not in timings.samples:
        return f"{text}; exact {timings.missing.get('exact', 'not tried')}"
    quotients = timings.quotients("exact", "linear")
    spread = f"rounds {min(quotients):.3g} to {max(quotients):.3g}"
    exact = timings.median("exact") / times
    return f"{text}; exact {show_seconds(exact)}, exact / linear {timings.ratio('exact', 'linear'):.3g} ({spread})"


def limits() -> Iterator[str]:
    """The best matrix products and the copy of this chip."""
    n = 8192
    x = jax.random.normal(jax.random.key(0), (n, n), jnp.float32)
    for name, dtype, precision in (
        ("bfloat16", jnp.bfloat16, None),
        ("float32 in three products of tf32", jnp.float32, jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3),
        ("float32", jnp.float32, "highest"),
    ):
        y = x.astype(dtype)
        product = jax.jit(lambda y, precision=precision: jnp.matmul(y, y, precision=precision))
        seconds = measure({"": partial(ready, product, y)}, 5, 0.05).median("")
        yield f"product of {n} x {n}, {name}: {2 * n**3 / seconds / 1e12:.0f} TFLOP/s"
    z = jnp.zeros(2**29, jnp.float32)
    copied = jax.jit(lambda z: z + 1)
    seconds = measure({"": partial(ready, copied, z)}, 5, 0.05).median("")
    yield f"copy, read and written: {2 * z.nbytes / seconds / 1e12:.2f} TB/s"


def accuracy(features: rfk.Features) -> Iterator[str]:
    """Largest error against the core in float64 on the same inputs, relative to the largest output."""
    rng = np.random.default_rng(0)
    for dtype in ("float32", "bfloat16"):
        q, k, v = (jnp.asarray(rng.standard_normal((2, 1024, DIM)), dtype) for _ in range(3))
        for causal in (False, True):
            wide: list[Any] = [np.asarray(x.astype(jnp.float32), np.float64) for x in (q, k, v)]
            wanted = rfk.attention(wide[0], wide[1], wide[2], features, causal=causal, backend="numpy")
            found = jax.jit(lambda q, k, v, causal=causal: rfk.attention(q, k, v, features, causal=causal))(q, k, v)
            error = np.max(np.abs(np.asarray(found.astype(jnp.float32)) - wanted)) / np.max(np.abs(wanted))
            yield f"error of {dtype}, {'causal' if causal else 'bidirectional'}: {error:.2g}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--longest", type=int, default=20, help="log2 of the longest sequence (default 20)")
    parser.add_argument("--gradients", action="store_true", help="gradients as well, of 4096 to 65536 positions")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    if jax.default_backend() != "gpu":
        print("not measured: there is no GPU here")
        return 1
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__} on {device}, H={HEADS} d={DIM} m={COUNT}; kernels: {fused.available()}", flush=True)
    features = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), rfk.draw("positive", dim=DIM, count=COUNT, rng=0))
    cases = [
        Case(2**power, dtype, causal, gradient, exact)
        for gradient in (False, *([True] if options.gradients else []))
        for power in (range(10, options.longest + 1) if not gradient else (12, 14, 16))
        if power < 15 or power % 2 == 0
        for dtype in ("bfloat16", "float32")
        for causal in (False, True)
        for exact in (True, False)
    ]
    start = time.perf_counter()
    programs = compiled([case for case in cases if fits(case)], features)
    print(f"compiled {len(programs)} programs in {time.perf_counter() - start:.0f} s", flush=True)
    for lines in (limits(), accuracy(features), compare(programs, options.rounds)):
        for text in lines:
            print(text, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
