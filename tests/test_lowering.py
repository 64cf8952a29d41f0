"""Every public entry point is lowered for CUDA and TPU on a machine that has neither; what is exported for a CPU runs.

That a program is lowered says that XLA has all its operations on that platform, not that it was run there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import rfkernels as rfk

LENGTH, DIM, WIDTH, ROWS = 70, 4, 2, 4  # longer than a causal pass takes at a time, so that platforms differ
PLATFORMS = ("cuda", "tpu")


def softsign(xp: Any, u: Any, a: Any) -> Any:
    """A map of the user's own, registered nowhere."""
    return u / (1 + xp.abs(u)) + 1


MAPS = {"positive": rfk.lookup("positive"), "custom": rfk.FeatureMap((softsign,), nonnegative=True)}


class Arrays(NamedTuple):
    """Arguments of every entry point."""

    q: Any
    k: Any
    v: Any
    mask: Any


def arrays(dtype: Any = np.float32) -> Arrays:
    rng = np.random.default_rng(0)
    q, k, v = (oracle.normal(rng, 2, LENGTH, n, dtype=np.float32) for n in (DIM, DIM, WIDTH))
    return Arrays(*(jnp.asarray(x, dtype) for x in (q, k, v)), jnp.asarray(rng.random((2, LENGTH)) < 0.7))


@functools.cache
def features(name: str) -> rfk.Features:
    return rfk.draw(MAPS[name], DIM, ROWS * len(MAPS[name].activations), rng=0)


def written(x: Arrays, f: rfk.Features) -> Any:
    return rfk.write_state(rfk.empty_state(f, WIDTH, (2,)), x.k, x.v, f, mask=x.mask)


def streamed(x: Arrays, f: rfk.Features) -> Any:
    """A windowed pass and what resumes from it, flat: a named tuple is not part of an exported signature."""
    options: dict[str, Any] = {"causal": True, "window": 2, "full": True}
    first = rfk.attention(*x[:3], f, mask=x.mask, **options)
    return jax.tree.leaves(rfk.attention(*x[:3], f, state=first.state, **options))


ENTRIES: dict[str, Callable[[Arrays, rfk.Features], Any]] = {
    "attention": lambda x, f: rfk.attention(*x[:3], f, mask=x.mask),
    "attention, causal": lambda x, f: rfk.attention(*x[:3], f, causal=True, mask=x.mask),
    "attention, full": lambda x, f: jax.tree.leaves(rfk.attention(*x[:3], f, causal=True, full=True)),
    "attention, causal window": lambda x, f: rfk.attention(*x[:3], f, causal=True, window=2),
    "attention, window": lambda x, f: rfk.attention(*x[:3], f, window=2),
    "attention, streamed": streamed,
    "attention, groups": lambda x, _: rfk.attention(*x[:3], groups=3, heavy=2, window=2, mask=x.mask),
    "attention, merged groups": lambda x, _: rfk.attention(*x[:3], groups=3, causal=True, mask=x.mask),
    "fit_groups": lambda x, _: tuple(rfk.fit_groups(x.q, x.k, 3, v=x.v, mask=x.mask)),
    "heavy_keys": lambda x, _: rfk.heavy_keys(x.q, x.k, 3, mask=x.mask),
    "linear_attention": lambda x, f: rfk.linear_attention(*(jnp.exp(y) for y in x[:2]), x.v, causal=True, mask=x.mask),
    "write_state": lambda x, f: tuple(written(x, f)),
    "read_state": lambda x, f: rfk.read_state(written(x, f), x.q, f),
    "merge_states": lambda x, f: tuple(rfk.merge_states(written(x, f), written(x._replace(k=x.q), f))),
    "transform": lambda x, f: rfk.transform(x.q, f, side="query"),
    "transform, log": lambda x, f: rfk.transform(x.k, f, side="key", log=True),
    "log_kernel": lambda x, f: rfk.log_kernel(x.q, x.k, f),
    "log_normalizer": lambda x, f: rfk.log_normalizer(x.q, x.k, f, mask=x.mask),
    "exact_attention": lambda x, f: rfk.exact_attention(*x[:3], causal=True, window=2, mask=x.mask),
    "exact_log_kernel": lambda x, f: rfk.exact_log_kernel(x.q, x.k),
    "exact_log_normalizer": lambda x, f: rfk.exact_log_normalizer(x.q, x.k, mask=x.mask),
}
NEED_KERNEL = {"attention, causal window", "attention, window", "attention, streamed"}
DIFFERENTIATED = ("attention", "attention, causal", "attention, causal window", "attention, window", "linear_attention")


def gradient(entry: Callable[[Arrays, rfk.Features], Any]) -> Callable[[Arrays, rfk.Features], Any]:
    def run(x: Arrays, f: rfk.Features) -> Any:
        return jax.grad(lambda *qkv: jnp.sum(jnp.square(entry(Arrays(*qkv, x.mask), f))), (0, 1, 2))(*x[:3])

    return run


FUNCTIONS = {**ENTRIES, **{f"gradient of {name}": gradient(ENTRIES[name]) for name in DIFFERENTIATED}}
CASES = [
    (name, feature_map)
    for name in FUNCTIONS
    for feature_map in MAPS
    if feature_map == "positive" or name.removeprefix("gradient of ") not in NEED_KERNEL
    if feature_map == "positive"
    or not name.startswith(("exact", "linear", "gradient of linear", "fit_groups", "heavy"))
    if feature_map == "positive" or "groups" not in name
]


def function(name: str, feature_map: str) -> Callable[..., Any]:
    f = features(feature_map)
    return jax.jit(lambda *x: FUNCTIONS[name](Arrays(*x), f))


def test_every_public_function_is_here() -> None:
    called = {name.split(",")[0] for name in ENTRIES}
    public = {name for name in rfk.__all__ if callable(getattr(rfk, name)) and not isinstance(getattr(rfk, name), type)}
    before = {"draw", "empty_state", "fit", "lookup", "names", "register"}  # make what a computation is given
    before |= {"advise", "calibrate"}
    assert public - called == before


@pytest.mark.parametrize(("case", "platform"), oracle.alternate(CASES, PLATFORMS))
def test_lowered_for_accelerators(case: tuple[str, str], platform: str) -> None:
    x = arrays()
    exported = jax.export.export(function(*case), platforms=[platform])(*x)
    assert exported.platforms == (platform,)
    again = jax.export.deserialize(exported.serialize())
    assert again.platforms == (platform,)
    program = again.mlir_module()
    assert "func.func public @main" in program
    assert "callback" not in program, "the host would be called"
    with pytest.raises(ValueError, match=f"{platform}.*cpu"):
        again.call(*x)


def test_what_a_platform_lacks_is_noticed() -> None:
    with pytest.raises(NotImplementedError, match="tpu"):
        jax.export.export(jax.jit(jnp.linalg.eig), platforms=["tpu"])(jnp.eye(3))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lowered_in_half_precision(dtype: str) -> None:
    for name in ("attention, causal", "gradient of attention, causal"):
        exported = jax.export.export(function(name, "positive"), platforms=["cuda", "tpu"])(*arrays(dtype))
        assert exported.platforms == ("cuda", "tpu")
        assert all(aval.dtype == dtype for aval in exported.out_avals)


DEAR = {"attention, full", "attention, causal window", "attention, streamed", "merge_states"}  # to compile, and twice
ROUND_TRIPS = [(name, "positive") for name in ENTRIES if name not in DEAR]
ROUND_TRIPS += [("attention", "custom"), ("attention, causal", "custom"), ("gradient of attention", "custom")]


@pytest.mark.parametrize(
    ("name", "feature_map"),
    [pytest.param(*case, marks=pytest.mark.long if i % 2 else ()) for i, case in enumerate(ROUND_TRIPS)],
)
def test_what_was_exported_for_all_platforms_runs_here(name: str, feature_map: str) -> None:
    x, run = arrays(), function(name, feature_map)
    exported = jax.export.export(run, platforms=["cpu", *PLATFORMS])(*x)
    assert exported.platforms == ("cpu", *PLATFORMS)
    got = jax.export.deserialize(exported.serialize()).call(*x)
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(run(*x)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
