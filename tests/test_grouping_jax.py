"""Passes over blocks in JAX: the same numbers, derivatives, transformations, memory and platforms."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import grouped_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xla
from grouped_oracle import CASES, DIM, SCALE, WIDTH, Call, make_call, make_groups, moving

import rfkernels as rfk
from rfkernels.backends.jax import blocks
from rfkernels.groups import fit_groups, heavy_keys

LONG = pytest.mark.long
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(autouse=True)
def double() -> Any:
    with jax.enable_x64(True):
        yield


def there(call: Call) -> Call:
    """Return the call with arrays of JAX."""
    put = {
        name: None if getattr(call, name) is None else jnp.asarray(getattr(call, name)) for name in ("mask", "heavy")
    }
    arrays = (jnp.asarray(x) for x in call[:3])
    groups = call.groups if isinstance(call.groups, int) else jax.tree.map(jnp.asarray, call.groups)
    return call._replace(**dict(zip("qkv", arrays, strict=True)), groups=groups, **put)


def attend(call: Call, **options: Any) -> Any:
    return rfk.attention(*call[:3], **{**call.options(), **options})


def normal(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


# The oracle, on what exercises each part once: a program takes seconds to compile

SOME = [
    "length 0, both sides, window 5",
    "length 0, causal, window 20",
    "length 17, both sides, window None",
    "many blocks",
    "causal, heavy keys of each head",
    "more queries",
    "grouped queries",
    "causal, features in groups",
    "features in groups",
    "values that move",
]


@pytest.mark.parametrize("name", [*SOME, *(pytest.param(name, marks=LONG) for name in CASES if name not in SOME)])
def test_as_every_query_by_itself(name: str) -> None:
    call = CASES[name]
    expected, got = grouped_oracle.expect(call), attend(there(call), full=True)
    assert got.output.shape == expected.output.shape
    np.testing.assert_allclose(got.output, expected.output, **CLOSE)
    np.testing.assert_allclose(got.log_normalizer, expected.log_normalizer, **CLOSE)


def test_groups_that_are_merged_are_those_of_numpy() -> None:
    call = make_call(110, 110, True, 5, heavy=[0, 3], masked=(), batches=dict.fromkeys("qkv", (2,)))._replace(groups=6)
    here, got = attend(call, full=True, backend="numpy"), attend(there(call), full=True)
    np.testing.assert_allclose(got.output, here.output, **CLOSE)
    np.testing.assert_allclose(got.log_normalizer, here.log_normalizer, **CLOSE)


# States


@pytest.mark.parametrize("groups", ["given", pytest.param("merged", marks=LONG)])
def test_tokens_one_by_one_compile_once(groups: str) -> None:
    """The state is an argument: neither its position nor its content is part of the program."""
    call = make_call(60, 60, True, 5, heavy=[0, 3, 50], masked=(), batches={"q": (3,)})
    call = there(call if groups == "given" else call._replace(groups=4))
    whole, traced = attend(call, full=True), 0

    @jax.jit
    def token(state: Any, q: Any, k: Any, v: Any, mask: Any) -> Any:
        nonlocal traced
        traced += 1
        return attend(call._replace(q=q, k=k, v=v, mask=mask), state=state, full=True)

    before = blocks._pass._cache_size()
    first = call._replace(q=call.q[:, :21], k=call.k[:21], v=call.v[:21], mask=call.mask[:21])
    done = attend(first, full=True)
    outputs, logs = [done.output], [done.log_normalizer]
    for t in range(21, 60):
        part = slice(t, t + 1)
        done = token(done.state, call.q[:, part], call.k[part], call.v[part], call.mask[part])
        outputs.append(done.output)
        logs.append(done.log_normalizer)
    assert traced <= 2  # the first state may differ in weak types
    assert blocks._pass._cache_size() <= before + 3
    np.testing.assert_allclose(jnp.concatenate(outputs, -2), whole.output, **CLOSE)
    np.testing.assert_allclose(jnp.concatenate(logs, -1), whole.log_normalizer, **CLOSE)
    assert int(done.state.position) == 60


def test_pieces_without_jit_from_a_state_of_numpy_shape() -> None:
    """A piece that is longer than a block, from a position within one; and the state of a NumPy pass is as good."""
    call = CASES["causal, features in groups"]
    whole = attend(call, backend="numpy")
    start = slice(0, 7)
    state = attend(
        call._replace(q=call.q[start], k=call.k[start], v=call.v[start], mask=call.mask[start]), full=True
    ).state
    rest = there(call._replace(q=call.q[7:], k=call.k[7:], v=call.v[7:], mask=call.mask[7:]))
    np.testing.assert_allclose(attend(rest, state=jax.tree.map(jnp.asarray, state)), whole[7:], **CLOSE)


@LONG
def test_a_state_in_float32_takes_float64() -> None:
    call = there(make_call(40, 40, True, 5))
    half = slice(0, 20)
    state = rfk.attention(
        *(x[half].astype(jnp.float32) for x in call[:3]), groups=call.groups, causal=True, window=5, full=True
    )
    done = attend(call._replace(q=call.q[20:], k=call.k[20:], v=call.v[20:]), state=state.state, full=True)
    assert done.state.keys.dtype == done.state.sums.kv.dtype == jnp.float64
    np.testing.assert_allclose(done.output, attend(call)[20:], rtol=1e-5, atol=1e-5)


# Derivatives and transformations


def check_gradient(function: Callable[..., Any], arguments: tuple[Any, ...], step: float = 1e-6) -> None:
    """Compare derivatives along random directions with central differences."""
    rng = np.random.default_rng(0)
    value = jax.jit(function)
    gradients = jax.jit(jax.grad(function, tuple(range(len(arguments)))))(*arguments)
    for i, (x, gradient) in enumerate(zip(arguments, gradients, strict=True)):
        assert np.all(np.isfinite(gradient))
        assert np.any(gradient != 0)
        along = jnp.asarray(rng.normal(size=x.shape))
        up, down = (value(*arguments[:i], x + sign * step * along, *arguments[i + 1 :]) for sign in (1, -1))
        np.testing.assert_allclose(jnp.sum(gradient * along), (up - down) / (2 * step), rtol=2e-5, atol=1e-7)


GRADIENTS = {
    "causal": make_call(40, 40, True, 5, heavy=[0, 30], masked=()),
    "both sides": moving(make_call(40, 40, False, 5, heavy=[0, 30], masked=())),
    "features in groups": make_call(40, 40, False, None, features=4),
    "found": make_call(40, 40, False, 5)._replace(groups=4),
    "merged": make_call(60, 60, True, 1)._replace(groups=4),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=LONG) if name in ("causal", "both sides") else name for name in GRADIENTS]
)
def test_derivatives_are_those_of_differences(name: str) -> None:
    """Which group a key is of is constant almost everywhere; all else varies smoothly."""
    call = there(GRADIENTS[name])
    weight = normal(call.q.shape[-2], WIDTH, seed=8)
    check_gradient(lambda q, k, v: jnp.sum(weight * attend(call._replace(q=q, k=k, v=v))), call[:3])


@pytest.mark.parametrize("options", [{"window": 32}, pytest.param({"causal": True}, marks=LONG)])
def test_sizes_that_xla_fuses(options: dict[str, Any]) -> None:
    """XLA of jaxlib 0.10.2 fused products with the sums over them wrongly, at sizes like these and no smaller ones."""
    with np.load(rfk.__path__[0] + "/data/minilm_heads.npz") as file:
        q, k, v = (file[name].astype(np.float32) for name in "qkv")
    groups = fit_groups(q, k, 128, v=v)
    axes = rfk.Groups(0, 0, 0, 0, None)
    one = xla.jit(jax.vmap(lambda g, *x: rfk.attention(*x, groups=g, **options), in_axes=(axes, 0, 0, 0)))
    got = one(jax.tree.map(jnp.asarray, groups), *map(jnp.asarray, (q, k, v)))
    np.testing.assert_allclose(got, rfk.attention(q, k, v, groups=groups, **options), atol=2e-5)


def test_vmap_is_a_batch_axis() -> None:
    call = there(make_call(40, 40, True, 5, heavy=[0, 30], batches=dict.fromkeys("qkv", (3,))))
    together = jax.vmap(lambda q, k, v: attend(call._replace(q=q, k=k, v=v)))(*call[:3])
    np.testing.assert_allclose(together, attend(call), **CLOSE)


def test_a_scale_that_is_traced_is_kept() -> None:
    q, k, v = normal(3, 40, DIM)
    features = rfk.draw("positive", DIM, 8, scale=0.9, rng=0)
    eager = rfk.attention(q, k, v, features, groups=4, heavy=2)
    traced = jax.jit(lambda f: rfk.attention(q, k, v, f, groups=4, heavy=2))(features)
    np.testing.assert_allclose(traced, eager, **CLOSE)


def test_scales_of_jax_must_agree_as_well() -> None:
    q, k, v = normal(3, 40, DIM)
    features = rfk.draw("positive", DIM, 8, scale=0.9, rng=0)
    with pytest.raises(ValueError, match="groups and features must have one scale"):
        rfk.attention(q, k, v, features, groups=fit_groups(q, k, 4, scale=0.3))
    with pytest.raises(TypeError, match=r"groups holds a jax\.Array"):
        rfk.attention(*(np.asarray(x) for x in (q, k, v)), groups=fit_groups(q, k, 4))
    with pytest.raises(TypeError, match=r"heavy holds a jax\.Array"):
        rfk.attention(*(np.asarray(x) for x in (q, k, v)), groups=3, heavy=jnp.arange(3))


# Fits


@pytest.mark.parametrize("keys", [pytest.param(200, marks=LONG), 2300])
def test_fits_are_those_of_numpy(keys: int) -> None:
    q, k, v = normal(2, 3, 40, DIM), normal(2, 1, keys, DIM, seed=1), normal(2, 1, keys, WIDTH, seed=2)
    mask = np.random.default_rng(0).random((2, 1, keys)) < 0.8
    expected = fit_groups(np.asarray(q), np.asarray(k), 9, v=np.asarray(v), mask=mask)
    run = jax.jit(lambda q, k, v: fit_groups(q, k, 9, v=v, mask=jnp.asarray(mask)))
    for one, two in zip(run(q, k, v), expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-8, atol=1e-8)
    found = jax.jit(lambda q, k: heavy_keys(q, k, 7, mask=jnp.asarray(mask)))(q, k)
    np.testing.assert_array_equal(found, heavy_keys(np.asarray(q), np.asarray(k), 7, mask=mask))


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=LONG), pytest.param(jnp.float16, marks=LONG)]
)
def test_dtypes(dtype: Any) -> None:
    call = CASES["causal, features in groups"]
    small = call._replace(**{name: np.asarray(jnp.asarray(getattr(call, name), dtype)) for name in "qkv"})
    got = attend(there(small), full=True)
    assert got.output.dtype == dtype
    assert got.log_normalizer.dtype == got.state.keys.dtype == got.state.sums.kv.dtype == jnp.float32
    expected = grouped_oracle.expect(small._replace(**{n: getattr(small, n).astype(np.float64) for n in "qkv"}))
    np.testing.assert_allclose(got.log_normalizer, expected.log_normalizer, atol=2e-4)
    atol = 1e-4 + float(np.abs(expected.output).max()) * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(got.output.astype(jnp.float64), expected.output, atol=atol)


# Memory and platforms


def temporaries(function: Callable[..., Any], length: int) -> int:
    """Bytes of temporary memory of a compiled function of queries, keys and values; nothing is run."""
    shape = jax.ShapeDtypeStruct((1, length, 32), jnp.float32)
    return int(xla.jit(function).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes)


PASSES: dict[str, dict[str, Any]] = {
    "both sides": {"window": 32},
    "causal": {"causal": True, "window": 32},
    "no window": {},
}


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("causal", 16),
        *(
            pytest.param(*case, marks=LONG)
            for case in (("both sides", 0), ("both sides", 16), ("causal", 0), ("no window", 0), ("no window", 16))
        ),
    ],
)
def test_memory_is_linear(name: str, features: int) -> None:
    """And less than one number for each query and key, or for each key and sum."""
    groups = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), make_groups(np.random.default_rng(0), 32, dim=32))
    given = rfk.draw("positive", 32, features, scale=SCALE, rng=0) if features else None

    def run(q: Any, k: Any, v: Any) -> Any:
        return rfk.attention(q, k, v, given, groups=groups, heavy=np.arange(8), **PASSES[name])

    length = 8192
    one, two = temporaries(run, length), temporaries(run, 2 * length)
    assert two < 2.3 * one
    assert one < 4 * length * length / 2
    if features:
        assert one < 4 * length * 32 * features


ENTRIES: dict[str, Callable[..., Any]] = {
    "groups": lambda q, k, v: rfk.attention(q, k, v, groups=4, heavy=2, window=5),
    "causal": lambda q, k, v: rfk.attention(q, k, v, groups=4, heavy=2, window=5, causal=True),
    "fit_groups": lambda q, k, v: tuple(fit_groups(q, k, 4, v=v)),
    "heavy_keys": lambda q, k, v: heavy_keys(q, k, 4),
    "gradient": lambda q, k, v: jax.grad(lambda q: jnp.sum(rfk.attention(q, k, v, groups=4, window=5)))(q),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_lowered_for_accelerators(name: str) -> None:
    with jax.enable_x64(False):
        arrays = tuple(x.astype(jnp.float32) for x in normal(3, 2, 70, DIM))
        for platform in ("cuda", "tpu"):
            exported = jax.export.export(jax.jit(ENTRIES[name]), platforms=[platform])(*arrays)
            program = exported.mlir_module()
            assert exported.platforms == (platform,)
            assert "func.func public @main" in program
            assert "callback" not in program, "the host would be called"


def test_fits_are_compiled_once() -> None:
    """Eager calls with other numbers of the same shapes."""
    compiled: list[str] = []

    def heard(name: str, _: float, **__: Any) -> None:
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        for seed in range(3):
            q, k, v = jax.random.normal(jax.random.key(seed), (3, 2, 90, 6))
            fit_groups(q, k, 7, v=v)
            heavy_keys(q, k, 3)
            rfk.attention(q, k, v, groups=7, window=4)
            if seed == 0:
                assert compiled
                compiled.clear()
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert not compiled


@pytest.mark.parametrize(
    "call",
    [
        lambda x, scale: fit_groups(x, x, 2, scale=scale),
        lambda x, scale: heavy_keys(x, x, 2, scale=scale),
        lambda x, scale: rfk.exact_log_normalizer(x, x, scale=scale),
        lambda x, scale: rfk.exact_log_kernel(x, x, scale=scale),
        lambda x, scale: rfk.attention(x, x, x, groups=2, scale=scale),
        lambda x, scale: rfk.attention(x, x, x, groups=2, scale=scale, causal=True),
    ],
    ids=["groups", "heavy", "normalizer", "kernel", "attention", "causal attention"],
)
def test_scales_of_jax(call: Callable[[Any, Any], Any]) -> None:
    """Traced beside NumPy arrays they are named; of a wrong value they are refused whatever is beside them."""
    x = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    with pytest.raises(TypeError, match="scale is traced by JAX"):
        jax.jit(partial(call, x))(0.5)
    for given, bad in itertools.product((x, jnp.asarray(x)), (np.nan, -1.0)):
        with pytest.raises(ValueError, match="scale must be a positive finite number"):
            call(given, jnp.float32(bad))
    jax.tree.map(np.testing.assert_allclose, call(x, jnp.float32(0.5)), call(x, 0.5))
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, jax.jit(partial(call, jnp.asarray(x)))(0.5), call(x, 0.5))


def test_groups_of_padded_keys_of_any_size_and_value() -> None:
    """Where values are traced nobody looks for what is not finite; products of four of these queries and keys vanish."""
    q, k, v = (normal(20, n, seed=n).astype(np.float32) for n in (DIM, DIM, WIDTH))
    mask = jnp.arange(20) % 3 != 0
    run = jax.jit(partial(rfk.attention, groups=4, mask=mask))
    expected = run(q, k, v)
    keys, values = (jnp.where(mask[:, None], x, np.nan) for x in (k, v))
    np.testing.assert_allclose(run(2.0**-60 * q, 2.0**60 * keys, values), expected, rtol=1e-5)
    np.testing.assert_allclose(run(2.0**60 * q, 2.0**-60 * keys, values), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["window", "groups", "heavy"])
def test_numbers_that_must_be_static_are_named(name: str) -> None:
    x = jnp.ones((4, DIM))
    with pytest.raises((TypeError, ValueError), match=f"^{name} must .* under jax.jit .* must be static"):
        jax.jit(lambda n: rfk.attention(x, x, x, rfk.draw("positive", DIM, 4, rng=0), **{name: n}))(3)
