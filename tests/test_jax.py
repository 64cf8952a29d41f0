"""JAX's transformations of attention: compiled, mapped, differentiated, resumed, donated, lowered for other platforms."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import xla

import rfkernels as rfk
from rfkernels.backends import jax as backend_of_jax
from rfkernels.backends.jax import heads

LENGTH, DIM, WIDTH = 70, 4, 3  # more than one chunk, and not a multiple of it
MODES: dict[str, dict[str, Any]] = {
    "bidirectional": {},
    "causal": {"causal": True},
    "windowed causal": {"causal": True, "window": 9},
    "windowed": {"window": 9},
}


def arrays(*batch: int, dtype: Any = jnp.float32, jumps: bool = False, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((*batch, LENGTH, n)) for n in (DIM, DIM, WIDTH))
    if jumps:
        k = k * np.where(np.arange(LENGTH) % 30 < 13, 0.5, 15.0)[:, None]
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v))  # type: ignore[return-value]


def features_of(name: str = "positive", dtype: Any = jnp.float32, **options: Any) -> rfk.Features:
    drawn = oracle.draw(name, DIM, 6, **options)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), drawn)


# Derivatives


def difference(function: Any, at: Any, along: Any, step: float = 2e-6) -> Any:
    """Central difference of fourth order of a function of a pytree."""

    def value(times: float) -> Any:
        return function(jax.tree.map(lambda x, d: np.asarray(x) + times * step * np.asarray(d), at, along))

    values = [jax.tree.map(np.asarray, value(times)) for times in (1, -1, 2, -2)]
    return jax.tree.map(lambda a, b, c, d: (8 * (a - b) - (c - d)) / (12 * step), *values)


def check_derivatives(mode: str, name: str, jumps: bool, masked: bool, segments: Any = None) -> None:
    """Compare grad, jvp and Hessian-vector products with differences: q, k, v, all arrays of the features, the state."""
    with jax.enable_x64(True):
        rng, heads = np.random.default_rng(3), 2
        q, k, v = arrays(heads, dtype=jnp.float64, jumps=jumps)
        drawn = oracle.affine(oracle.draw(name, DIM, 6, scale=1.0, batch=(heads,)), rng)
        features = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), drawn)
        state = None
        if "window" not in MODES[mode]:
            state = rfk.empty_state(features, WIDTH, (heads,), np.float64)
            state = rfk.write_state(state, k[:, :5], v[:, :5], features)
        mask = None
        if masked:  # the first queries see nothing if causal
            mask = jnp.asarray((rng.random((heads, LENGTH)) < 0.7) & (np.arange(LENGTH) >= 6))
            state = None if MODES[mode].get("causal") else state
        weights = jnp.asarray(rng.standard_normal((heads, LENGTH, WIDTH + 1)))

        def loss(given: Any) -> Any:
            q, k, v, features, state = given
            options = {"mask": mask, "segment_ids": segments, **MODES[mode]}
            result = rfk.attention(q, k, v, features, state=state, full=True, **options)
            log = jnp.where(jnp.isfinite(result.log_normalizer), result.log_normalizer, 0)
            return jnp.sum(result.output * weights[..., :-1]) + jnp.sum(log * weights[..., -1])

        given = (q, k, v, features, state)
        along = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), given)
        gradient = jax.jit(jax.grad(loss))
        slopes, curved = jax.tree.map(
            np.asarray, jax.jit(lambda x, d: jax.jvp(jax.grad(loss), (x,), (d,)))(given, along)
        )
        expected = difference(jax.jit(loss), given, along)
        pairs = zip(jax.tree.leaves(slopes), jax.tree.leaves(along), strict=True)
        got = sum(np.sum(x * d) for x, d in pairs)
        np.testing.assert_allclose(got, expected, rtol=1e-6)
        for one, two in zip(jax.tree.leaves(curved), jax.tree.leaves(difference(gradient, given, along)), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6 * max(float(np.abs(two).max()), 1e-3))
        if masked:
            assert (slopes[1][~mask] == 0).all()
            assert (slopes[2][~mask] == 0).all()
            if MODES[mode].get("causal"):
                assert (slopes[0][:, :6] == 0).all()


@pytest.mark.parametrize(
    ("mode", "name", "jumps", "masked"),
    [
        pytest.param("bidirectional", "positive", False, True, marks=pytest.mark.long),
        *(pytest.param(mode, "positive", True, True, marks=pytest.mark.long) for mode in ("causal", "windowed causal")),
        pytest.param("windowed", "positive", True, False, marks=pytest.mark.long),
        *(
            pytest.param(mode, name, name == "hyperbolic", masked, marks=pytest.mark.long)
            for mode, name, masked in itertools.product(
                MODES, ("hyperbolic", "trigonometric", "custom exponential", "relu"), (False, True)
            )
            if not (name == "relu" and "window" in MODES[mode])  # its kernel has no second derivative everywhere
        ),
    ],
)
def test_derivatives(mode: str, name: str, jumps: bool, masked: bool) -> None:
    check_derivatives(mode, name, jumps, masked)


@pytest.mark.parametrize("mode", ["causal", *(pytest.param(x, marks=pytest.mark.long) for x in MODES if x != "causal")])
def test_derivatives_with_segments(mode: str) -> None:
    check_derivatives(mode, "positive", mode == "causal", True, jnp.repeat(jnp.arange(3), np.array([20, 30, 20])))


def test_gradients_in_float32_are_those_in_float64() -> None:
    """Also where the largest feature of a row is tiny on the scale of its chunk, just short of taking it in pieces."""
    features = features_of(scale=1.0)
    gradient = jax.grad(
        lambda q, k, v, features: jnp.sum(rfk.attention(q, k, v, features, causal=True) ** 2), (0, 1, 2)
    )
    single, double = xla.jit(gradient), jax.jit(gradient)
    for jumps in (False, True):
        given = arrays(2, jumps=jumps)
        got = single(*given, features)
        with jax.enable_x64(True):
            expected = double(*jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), (*given, features)))
        for one, two in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-4 * float(np.abs(two).max()))


# Other transformations


def of_many(mode: str) -> tuple[tuple[Any, Any, Any], Any]:
    """Arrays in which the keys of one element jump and those of the others do not, and attention to them."""
    q, k, v = arrays(3, jumps=True)
    features = features_of()
    return (q, k.at[1:].set(arrays(3)[1][1:]), v), lambda *x: rfk.attention(*x, features, **MODES[mode])


@pytest.mark.parametrize("mode", ["causal", pytest.param("windowed causal", marks=pytest.mark.long)])
def test_vmap(mode: str) -> None:
    given, attend = of_many(mode)
    expected = oracle.expect(*(np.asarray(x) for x in given), features_of(), **MODES[mode])
    oracle.check_output(jax.jit(jax.vmap(attend))(*given), expected, np.float32)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["causal", "windowed causal"])
def test_gradients_under_vmap_and_checkpoint(mode: str) -> None:
    given, attend = of_many(mode)
    ours = jax.jit(jax.vmap(jax.grad(lambda *x: jnp.sum(jax.checkpoint(attend)(*x) ** 2))))(*given)
    whole = jax.jit(jax.grad(lambda *x: jnp.sum(attend(*x) ** 2)))(*given)
    np.testing.assert_allclose(ours, whole, rtol=1e-3, atol=1e-4 * float(jnp.abs(whole).max()))


def test_a_branch_stays_a_branch_under_vmap() -> None:
    """Or every chunk would be computed position by position as well."""
    given = (x[:, :60] for x in arrays(3))  # one chunk, so that no other branch asks for the platform
    text = str(jax.make_jaxpr(jax.vmap(lambda q, k, v: rfk.attention(q, k, v, features_of(), causal=True)))(*given))
    assert " cond[" in text


def test_axes_that_heads_are_taken_one_by_one_over() -> None:
    """Grouped queries, features for each head, masks and states with axes of their own."""
    rng = np.random.default_rng(0)
    for shapes in (
        {"q": (2, 2, 3), "k": (2, 2, 1), "v": (2, 2, 1), "features": (2, 1)},
        {"q": (2, 1), "k": (3,), "v": (1, 3)},
        {"q": (3, 2), "k": (), "v": (2,)},
        {"q": (2, 2), "k": (2, 1), "v": (2, 1)},
        {"q": (3, 1, 2), "k": (1, 2, 1), "v": (1, 2, 1)},
    ):
        q, k, v = (oracle.normal(rng, *shapes[x], LENGTH, DIM) for x in ("q", "k", "v"))
        features = oracle.draw("positive", DIM, 6, batch=shapes.get("features", ()))
        result = rfk.attention(*map(jnp.asarray, (q, k, v)), features, full=True)
        oracle.check_result(result, oracle.expect(q, k, v, features), np.float32, str(shapes))
        specified = rfk.attention(q, k, v, features, full=True, backend="numpy").state
        assert [x.shape for x in result.state] == [x.shape for x in specified]
        for one, two in zip(result.state, specified, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Causal passes take heads one by one however short they are."""
    monkeypatch.setattr(heads, "_TOGETHER", 0)
    backend_of_jax._pass.clear_cache()
    yield
    backend_of_jax._pass.clear_cache()


def causal_pass(gradient: bool) -> Any:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(oracle.normal(rng, *shape, LENGTH, DIM)) for shape in ((2, 2, 3), (2, 2, 1), (2, 2, 1)))
    features = oracle.draw("positive", DIM, 6, batch=(2, 1))

    def loss(*arrays: Any) -> Any:
        result = rfk.attention(*arrays, features, causal=True, full=True)
        return jnp.sum(jnp.square(result.output)) + jnp.sum(result.state.kv), result

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True) if gradient else loss)(q, k, v)


@pytest.mark.parametrize("gradient", [False, pytest.param(True, marks=pytest.mark.long)])
def test_long_causal_passes_take_heads_one_by_one(gradient: bool, request: pytest.FixtureRequest) -> None:
    together = causal_pass(gradient)
    request.getfixturevalue("one_by_one")
    for one, two in zip(jax.tree.leaves(causal_pass(gradient)), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "start"),  # of which one is more than a chunk, and one less than a window
    [(8, 66), *(pytest.param(*case, marks=pytest.mark.long) for case in ((8, 3), (None, 66), (None, 3)))],
)
def test_a_generation_loop(window: int | None, start: int) -> None:
    """Prefill, then single tokens in a `lax.scan`, with states of one shape; differentiable as a whole."""
    features = features_of()
    q, k, v = arrays(2)
    mode = {"causal": True, "window": window}
    expected = oracle.expect(*(np.asarray(x) for x in (q, k, v)), features, **mode)

    def generate(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
        state = rfk.empty_state(features, WIDTH, (2,), window=window)
        first = rfk.attention(*(x[:, :start] for x in (q, k, v)), features, state=state, full=True, **mode)

        def step(state: Any, token: Any) -> tuple[Any, Any]:
            result = rfk.attention(*(x[:, None] for x in token), features, state=state, full=True, **mode)
            return result.state, result.output[:, 0]

        tokens = tuple(jnp.moveaxis(x[:, start:], 1, 0) for x in (q, k, v))
        state, rest = jax.lax.scan(step, first.state, tokens)
        return jnp.concatenate([first.output, jnp.moveaxis(rest, 0, 1)], 1), state

    def loss(k: Any) -> tuple[Any, Any]:
        output, state = generate(q, k, v)
        return jnp.sum(output**2), (output, state)

    (_, (output, state)), got = jax.jit(jax.value_and_grad(loss, has_aux=True))(k)
    oracle.check_output(output, expected, np.float32)
    if window is not None:
        assert int(state.position) == LENGTH
        np.testing.assert_array_equal(state.keys, k[:, -window:])
    whole = jax.jit(jax.grad(lambda k: jnp.sum(rfk.attention(q, k, v, features, **mode) ** 2)))(k)
    np.testing.assert_allclose(got, whole, rtol=1e-3, atol=1e-4 * float(jnp.abs(whole).max()))


def test_states_under_jit_and_grad() -> None:
    features, (q, k, v) = features_of(), arrays(2)

    @jax.jit
    @jax.grad
    def gradient(k: Any) -> Any:
        empty = rfk.empty_state(features, WIDTH, (2,))
        parts = [rfk.write_state(empty, k[:, i], v[:, i], features) for i in (slice(0, 30), slice(30, None))]
        return jnp.sum(rfk.read_state(rfk.merge_states(*parts), q, features) ** 2)

    whole = jax.jit(jax.grad(lambda k: jnp.sum(rfk.attention(q, k, v, features) ** 2)))(k)
    np.testing.assert_allclose(gradient(k), whole, rtol=1e-3, atol=1e-5 * float(jnp.abs(whole).max()))


# Pytrees, traces, transfers


def test_features_and_states_are_pytrees() -> None:
    features = features_of()
    state = rfk.empty_state(features, WIDTH, (2,), window=5)
    for tree in (features, state):
        leaves, structure = jax.tree.flatten(tree)
        again = jax.tree.unflatten(structure, leaves)
        assert type(again) is type(tree)
        assert all(x is y for x, y in zip(jax.tree.leaves(again), leaves, strict=True))
    assert jax.tree.map(lambda x: x, features).map is features.map


def test_states_can_be_donated() -> None:
    features, (_, k, v) = features_of(), arrays(2)
    write = jax.jit(lambda state, k, v: rfk.write_state(state, k, v, features), donate_argnums=0)
    state = write(rfk.empty_state(features, WIDTH, (2,)), k, v)
    expected = rfk.write_state(state, k, v, features)
    got = write(state, k, v)
    assert state.kv.is_deleted()
    np.testing.assert_allclose(got.kv, expected.kv, rtol=1e-5)


def test_new_seeds_are_not_new_traces() -> None:
    traces = 0

    @jax.jit
    def attend(q: Any, k: Any, v: Any, features: rfk.Features) -> Any:
        nonlocal traces
        traces += 1
        return rfk.attention(q, k, v, features, causal=True)

    given = arrays(2)
    outputs = [attend(*given, rfk.draw("positive", DIM, 6, rng=seed)) for seed in range(3)]
    assert traces == 1
    assert not np.allclose(outputs[0], outputs[1])
    for seed in range(3):
        attend(*given, rfk.draw("positive", DIM, 6, rng=jax.random.key(seed)))
    assert traces <= 2  # arrays of JAX are committed to other types than NumPy's at most once


def test_what_an_activation_reads_may_change() -> None:
    """Compiled code is kept for what a map computes now, as in the numba backend."""
    scale = {"by": 1.0}
    changing = rfk.FeatureMap((lambda xp, u, a: xp.exp(scale["by"] * u),), nonnegative=True)
    features, given = rfk.draw(changing, DIM, 6, rng=0), arrays()
    first = rfk.attention(*given, features)
    scale["by"] = 2.0
    second = rfk.attention(*given, features)
    assert not np.allclose(first, second)


def test_nothing_calls_the_host_or_is_configured_inside_jit() -> None:
    before = dict(jax.config.values)
    features, given = features_of(), arrays(2)
    attend = jax.jit(lambda features, *x: rfk.attention(*x, features, causal=True, window=9))
    assert "callback" not in str(jax.make_jaxpr(attend)(features, *given))
    attend(features, *given).block_until_ready()
    assert dict(jax.config.values) == before


@pytest.mark.parametrize(("name", "causal"), oracle.alternate(["relu", "squared_relu"], [False, True]))
def test_windows_of_kernels_of_the_angle_have_gradients(name: str, causal: bool) -> None:
    """Also where vectors are parallel, opposed or zero, and no angle has a derivative."""
    with jax.enable_x64(True):
        features = features_of(name, jnp.float64)
        rng = np.random.default_rng(0)
        q, k, v = (jnp.asarray(rng.standard_normal((30, n))) for n in (DIM, DIM, WIDTH))

        def loss(given: tuple[Any, Any]) -> Any:
            return jnp.sum(jnp.square(rfk.attention(*given, v, features, causal=causal, window=4)))

        gradient = jax.jit(jax.grad(loss))
        along = tuple(jnp.asarray(rng.standard_normal((30, DIM))) for _ in range(2))
        slope = sum(jnp.vdot(one, two) for one, two in zip(gradient((q, k)), along, strict=True))
        np.testing.assert_allclose(slope, difference(jax.jit(loss), (q, k), along), rtol=1e-6)
        special = jnp.where(jnp.arange(30)[:, None] % 3 == 0, 0, q)
        for given in ((q, q), (q, -q), (q, 3 * q), (special, k), (q, special), (special, special)):
            assert all(jnp.isfinite(x).all() for x in gradient(given))
        scaled = gradient((q, q * jnp.linspace(1, 2, 30)[:, None]))[0]
        nudged = gradient((q, q * jnp.linspace(1, 2, 30)[:, None] + 1e-9))[0]
        np.testing.assert_allclose(scaled, nudged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("length", "keys"), [(10, 4), (200, 70), (5, 0), (4, 10)])
def test_a_window_with_other_numbers_of_queries_and_keys(length: int, keys: int) -> None:
    rng = np.random.default_rng(0)
    q, k, v = oracle.normal(rng, 2, length, DIM), oracle.normal(rng, 2, keys, DIM), oracle.normal(rng, 2, keys, WIDTH)
    features = oracle.draw("positive", DIM, 6)
    for window in (2, 300):
        result = rfk.attention(*map(jnp.asarray, (q, k, v)), features, window=window, full=True)
        oracle.check_result(result, oracle.expect(q, k, v, features, window=window), np.float32, f"{window=}")


def test_a_wider_state_is_taken_in_the_precision_there_is() -> None:
    q, k, v = arrays(2)
    features = oracle.draw("positive", DIM, 6)
    state = rfk.write_state(rfk.empty_state(features, WIDTH, (2,), np.float64), *map(np.asarray, (k, v)), features)
    assert rfk.attention(q, k, v, features, state=state).dtype == jnp.float32


# Validation


def test_shapes_are_checked_under_jit_and_values_outside_of_it() -> None:
    features, (q, k, v) = features_of(), arrays(2)
    bad = k.at[1, 3, 2].set(jnp.nan)
    with pytest.raises(ValueError, match=r"k must be finite, but k\[1, 3, 2\] is nan"):
        rfk.attention(q, bad, v, features)
    assert not jnp.isfinite(jax.jit(lambda k: rfk.attention(q, k, v, features))(bad)).all()
    falling = jnp.arange(LENGTH)[::-1]
    with pytest.raises(ValueError, match="segment_ids must not decrease"):
        rfk.attention(q, k, v, features, segment_ids=falling)
    jax.jit(lambda ids: rfk.attention(q, k, v, features, segment_ids=ids))(falling)
    for given, options, message in (
        ((q[..., :2], k, v), {}, "must agree in dim"),
        ((q, k[:, :-1], v), {}, "agree in length"),
        ((q, k, v), {"mask": jnp.ones(3, bool)}, "mask must be over keys"),
        ((q, k, v), {"segment_ids": jnp.zeros(3, int)}, "segment_ids must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.jit(lambda *x, options=options: rfk.attention(*x, features, **options))(*given)
    with pytest.raises(TypeError, match="k must have one of the dtypes"):
        jax.jit(lambda k: rfk.attention(q, k, v, features))(k.astype(int))


# Memory and platforms


def temporaries(function: Any, length: int, count: int) -> int:
    """Bytes of temporary memory of a compiled function of `count` arrays; nothing is run."""
    shape = jax.ShapeDtypeStruct((8, length, 64), jnp.float32)
    return int(xla.jit(function).lower(*[shape] * count).compile().memory_analysis().temp_size_in_bytes)


@pytest.mark.parametrize("causal", [False, pytest.param(True, marks=pytest.mark.long)])
def test_memory_does_not_grow_with_length_times_features(causal: bool) -> None:
    forward, backward = {}, {}
    for count in (256, 512):
        features = rfk.draw("positive", 64, count, rng=0)

        def attend(q: Any, k: Any, v: Any, features: rfk.Features = features) -> Any:
            return rfk.attention(q, k, v, features, causal=causal)

        forward[count] = temporaries(attend, 65536, 3)
        backward[count] = temporaries(lambda q, k, v, up, attend=attend: jax.vjp(attend, q, k, v)[1](up), 65536, 4)
        assert backward[count] < 2.5 * forward[count]
    assert forward[512] < 1.1 * forward[256]


@pytest.mark.usefixtures("one_by_one")
def test_accelerators_have_all_heads_at_once() -> None:
    """Lowered on a machine without one; not run."""
    from jax import export

    shape = jax.ShapeDtypeStruct((5, 120, DIM), jnp.float32)
    attend = jax.jit(lambda q, k, v: rfk.attention(q, k, v, features_of(), causal=True))
    loops = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for platform in ("cpu", "cuda", "tpu"):
            module = export.export(attend, platforms=[platform])(shape, shape, shape).mlir_module()
            loops[platform] = module.count("stablehlo.while")
            assert ("tensor<5x128x" in module) is (platform != "cpu")
    assert loops["cuda"] == loops["tpu"] == loops["cpu"] - 1


def test_features_of_numpy_that_are_closed_over_serve_both_precisions() -> None:
    """A rematerialised scan keeps its constants: float64 ones would meet float32 arrays when x64 is turned off."""
    features = oracle.draw("positive", 8, 16)

    def block(x: Any, w: Any) -> Any:
        return x + rfk.attention(x @ w, x, x, features), None

    def loss(weights: Any) -> Any:
        return jnp.sum(jax.lax.scan(block, jnp.ones((2, 12, 8), weights.dtype), weights)[0])

    for double in (True, False):
        with jax.enable_x64(double):
            gradient = jax.jit(jax.grad(loss))(jnp.ones((3, 8, 8), jnp.float64 if double else jnp.float32))
        assert np.isfinite(np.asarray(gradient)).all()


def test_features_of_vmap_are_mapped_over() -> None:
    many = jax.vmap(lambda key: rfk.draw("relu", 4, 8, rng=key))(jax.random.split(jax.random.key(0), 2))
    x = jnp.ones((2, 3, 4))
    with pytest.raises(ValueError, match=r"features.scale must have no axes, got shape \(2,\)"):
        rfk.attention(x, x, x, many)
    assert jax.eval_shape(jax.vmap(rfk.attention), x, x, x, many).shape == x.shape


def test_fitted_features_under_vmap() -> None:
    """XLA of jaxlib 0.10.2 fuses a product with the sum over it wrongly on a CPU, at sizes like these."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 12, 512, 32), np.float32)
    features = rfk.fit(q, k, 256, rng=0)
    axes = jax.tree.map(lambda x: 0 if x.ndim else None, features)
    one = xla.jit(jax.vmap(lambda features, *x: rfk.attention(*x, features), in_axes=(axes, 0, 0, 0)))
    found = one(features, *map(jnp.asarray, (q, k, v)))
    np.testing.assert_allclose(found, rfk.attention(q, k, v, features), atol=1e-4)
