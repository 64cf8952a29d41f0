"""What must hold of numbers: any norm, jumps anywhere, nothing from the future, exact parts exact, no epsilon."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import EXPONENTIAL, MAPS, WITH_KERNEL

import rfkernels as rfk
from rfkernels import _arrays

BACKENDS = oracle.backends("numpy", "numba")
SCHEDULES: dict[str, dict[str, Any]] = {
    "bidirectional": {},
    "causal": {"causal": True},
    "windowed causal": {"causal": True, "window": 5},
    "windowed": {"window": 5},
}
SOFTMAX = [name for name in WITH_KERNEL if MAPS[name].kernel.norm_weight is not None]
"""Maps that every backend can join with exact weights."""

EACH_MAP = [
    pytest.param(*backend.values, name, marks=backend.marks, id=f"{backend.values[0]}-{name}")
    for backend in oracle.backends()
    for name in (sorted(MAPS) if backend.values[0] != "jax" else ("positive", "relu"))
]


def arrays(
    shape: tuple[int, ...], dim: int, width: int, seed: int = 0, dtype: Any = np.float32
) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    return tuple(oracle.normal(rng, *shape, n, dtype=dtype) for n in (dim, dim, width))


def unit(x: Any) -> Any:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def run(backend: str, q: Any, k: Any, v: Any, features: rfk.Features, mask: Any = None, **options: Any) -> Any:
    """Attend, on JAX as one compiled function, with a result in NumPy arrays."""
    options.update(full=True, backend=backend)
    if backend != "jax":
        return rfk.attention(q, k, v, features, mask=mask, **options)
    import jax

    def compiled(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return rfk.attention(q, k, v, features, mask=mask, **options)._replace(state=None)

    with oracle.precision(backend, q.dtype):
        result = jax.jit(compiled)(*(oracle.place(x, backend) for x in (q, k, v, mask)))
        return rfk.AttentionResult(*(None if x is None else np.asarray(x) for x in result))


# Norms


@functools.cache
def of_norm(name: str, schedule: str, norm: float, dim: int, dtype: Any) -> tuple[Any, ...]:
    """Inputs of one norm, their features, and what attention should be: the same for every backend."""
    q, k, v = arrays((67,), dim, 2)
    q, k, v = (dtype(norm) * unit(q).astype(dtype), dtype(norm) * unit(k).astype(dtype), v.astype(dtype))
    features = oracle.draw(name, dim, 6)
    return q, k, v, features, oracle.expect(q, k, v, features, **SCHEDULES[schedule])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", EXPONENTIAL)
@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_from_1e_minus_6_to_1e4(backend: str, name: str, schedule: str) -> None:
    for norm, dim in itertools.product((1e-6, 1e-3, 1.0, 10.0, 100.0, 1e3, 1e4), (2, 64)):
        dtype = np.float64 if norm in (1e-6, 1e4) and dim == 64 else np.float32
        *inputs, expected = of_norm(name, schedule, norm, dim, dtype)
        result = run(backend, *inputs, **SCHEDULES[schedule])
        oracle.check_result(result, expected, dtype, f"{norm=} {dim=} {dtype.__name__}")


@pytest.mark.parametrize("name", EXPONENTIAL)
@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_that_differ_between_queries_and_keys(backend: str, name: str) -> None:
    """Norms of 1e-6 to 1e4 side by side in one sequence, on both sides."""
    rng = np.random.default_rng(1)
    q, k, v = arrays((131,), 16, 3, seed=1, dtype=np.float64)
    q, k = (unit(x) * 10.0 ** rng.uniform(-6, 4, (131, 1)) for x in (q, k))
    features = oracle.draw(name, 16, 6)
    for dtype, schedule in ((np.float32, "bidirectional"), (np.float32, "causal"), (np.float64, "windowed causal")):
        given = [x.astype(dtype) for x in (q, k, v)]
        expected = oracle.expect(*given, features, **SCHEDULES[schedule])
        oracle.check_result(run(backend, *given, features, **SCHEDULES[schedule]), expected, dtype, schedule)


@pytest.mark.parametrize("name", ["exp", "hyperbolic", "positive", "trigonometric"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_finite_as_long_as_the_squared_norm_is(backend: str, name: str) -> None:
    features, lowest, highest = oracle.draw(name, 4, 8), 0.5, 2.0
    for dtype, norm in ((np.float32, 1e5), (np.float32, 1e9), (np.float32, 1e18), (np.float64, 1e150)):
        q, k, v = arrays((70,), 4, 3, dtype=dtype)
        v = np.clip(np.abs(v), lowest, highest)
        large = [dtype(norm) * unit(x) for x in (q, k)]
        for schedule, (one, two) in itertools.product(SCHEDULES, (large, (q, large[1]), (large[0], k))):
            output = run(backend, one, two, v, features, **SCHEDULES[schedule]).output
            assert np.isfinite(output).all(), f"{schedule} {norm=} {dtype.__name__}"
            if MAPS[name].nonnegative and schedule in ("bidirectional", "causal"):
                message = f"{schedule} {norm=} {dtype.__name__}: not a weighted mean of the values"
                assert (output >= lowest * 0.999).all(), message
                assert (output <= highest * 1.001).all(), message


def test_jax_is_right_operation_by_operation() -> None:
    import jax.numpy as jnp

    q, k, v = arrays((4,), 8, 3)
    features = oracle.draw("positive", 8, 6)
    for options in ({}, {"causal": True}):
        result = rfk.attention(*(jnp.asarray(3 * x) for x in (q, k, v)), features, full=True, **options)
        oracle.check_result(result, oracle.expect(3 * q, 3 * k, 3 * v, features, **options), np.float32)


def test_what_a_product_of_matrices_says_of_numbers_is_no_warning() -> None:
    """OpenBLAS says "invalid" of products of small finite matrices, now and then, for numbers that it does not use."""
    assert np.isnan(_arrays.matmul(np, np.array([[np.inf, -np.inf]]), np.ones((2, 1)))).all()


# Norms that jump inside a tile


def spike(n: int, at: int) -> Any:
    return np.where(np.arange(n) == at, 30.0, 1.0)


def dip(n: int, at: int) -> Any:
    return np.where(np.arange(n) == at, 1.0, 30.0)


def step_up(n: int, at: int) -> Any:
    return np.where(np.arange(n) >= at, 30.0, 1.0)


def step_down(n: int, at: int) -> Any:
    return np.where(np.arange(n) >= at, 1.0, 30.0)


def block(n: int, at: int) -> Any:
    return np.where((np.arange(n) >= at) & (np.arange(n) < at + 9), 30.0, 1.0)


def alternating(n: int, at: int) -> Any:
    return np.where(np.arange(n) % (at % 7 + 2) == 0, 30.0, 1.0)


def ramp(n: int, at: int) -> Any:
    return 30.0 ** np.clip((np.arange(n) - at) / 20, 0, 1)


def stairs(n: int, at: int) -> Any:
    """Up by 30 twice, and down again."""
    return 30.0 ** (np.arange(n) >= at).astype(float) * 30.0 ** ((np.arange(n) >= at + 5) & (np.arange(n) < at + 40))


def zeros_first(n: int, at: int) -> Any:
    return np.where(np.arange(n) < at, 0.0, np.where(np.arange(n) % 3 == 0, 30.0, 1.0))


PATTERNS = [spike, dip, step_up, step_down, block, alternating, ramp, stairs, zeros_first]
TOKENS = 131


def jumping(pattern: Any, positions: Any, dtype: Any = np.float32) -> tuple[Any, Any, Any]:
    """One batch element for each position of the jump, with keys of norm 1 on average."""
    q, k, v = arrays((len(positions), TOKENS), 4, 2, dtype=np.float64)
    size = np.stack([pattern(TOKENS, at) for at in positions])
    return tuple(x.astype(dtype) for x in (q, unit(k) * size[..., None], v))


@functools.cache
def jumps(pattern: Any, schedule: str, name: str, start: int) -> tuple[Any, ...]:
    """Inputs that jump at every third position from `start` on, and what attention should be."""
    q, k, v = jumping(pattern, range(start, TOKENS, 3))
    features = oracle.draw(name, 4, 3, scale=1.0)
    return q, k, v, features, oracle.expect(q, k, v, features, **SCHEDULES[schedule])


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_jump_thirtyfold_inside_a_tile(backend: str, schedule: str, pattern: Any) -> None:
    """At every position where tiles meet causality, at every third elsewhere."""
    cases = [("positive", 0)]
    if backend == "numba" and schedule == "causal":
        cases += [("positive", 1), ("positive", 2), ("exp", 1)]
    for name, start in cases:
        *inputs, expected = jumps(pattern, schedule, name, start)
        oracle.check_result(run(backend, *inputs, **SCHEDULES[schedule]), expected, np.float32, f"{name} {start}")


@pytest.mark.parametrize("name", EXPONENTIAL)
@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_jump_for_every_map_and_dtype(backend: str, name: str) -> None:
    for pattern, dtype in itertools.product(PATTERNS, (np.float32, np.float64)):
        if dtype is np.float64 and pattern not in (step_up, alternating):
            continue
        q, k, v = jumping(pattern, (0, 1, 31, 64, 100), dtype)
        features = oracle.draw(name, 4, 3)
        expected = oracle.expect(q, k, v, features, causal=True)
        oracle.check_result(run(backend, q, k, v, features, causal=True), expected, dtype, pattern.__name__)


@pytest.mark.parametrize("height", [35.0, 45.0, 60.0, 75.0, 85.0, 100.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_jump_of_one_exponent(backend: str, height: float) -> None:
    """The feature of a key that queries of its tile do not see yet rises by so much, others stay: none may underflow."""
    q, k, v = arrays((130,), 4, 2, dtype=np.float64)
    features = oracle.draw("exp", 4, 3, scale=1.0)
    row = features.projection[0]
    k = unit(k) / 10
    k[81:] = row / (row @ row) * height
    inputs = tuple(x.astype(np.float32) for x in (8 * unit(q), k, v))
    expected = oracle.expect(*inputs, features, causal=True)
    oracle.check_result(run(backend, *inputs, features, causal=True), expected, np.float32, str(height))


@pytest.mark.parametrize("name", EXPONENTIAL)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_jump_behind_masked_keys(backend: str, name: str) -> None:
    """Queries beside masked keys read the state alone, and not on the scale of the key that ends the masked ones."""
    q, k, v = arrays((140,), 4, 2)
    features = oracle.draw(name, 4, 4, scale=1.0)
    for (before, after), masked in itertools.product(((1.0, 30.0), (30.0, 1.0)), (1, 5, 40)):
        k_jumps = (unit(k) * np.where(np.arange(140) < 70, before, after)[:, None]).astype(np.float32)
        mask = (np.arange(140) < 70) | (np.arange(140) >= 70 + masked)
        expected = oracle.expect(q, k_jumps, v, features, causal=True, mask=mask)
        state, parts = None, []
        for i in (slice(0, 70), slice(70, 140)):  # so that a tile begins with masked keys
            inputs = (q[i], k_jumps[i], v[i], features)
            parts.append(run(backend, *inputs, mask=mask[i], causal=True, state=state))
            state = parts[-1].state
        output = np.concatenate([part.output for part in parts])
        oracle.check_output(output, expected, np.float32, f"{before} {after} {masked}")


@st.composite
def sequences(draw: st.DrawFn) -> dict[str, Any]:
    """A sequence in segments of very different norms, masked here and there, cut into chunks."""
    segment = st.tuples(
        st.integers(1, 40), st.sampled_from([0.0, 1e-3, 1.0, 5.0, 30.0, 300.0]), st.sampled_from([0.0, 0.3, 1.0, 1.0])
    )
    segments = draw(st.lists(segment, min_size=1, max_size=4))
    length = sum(n for n, _, _ in segments)
    return {
        "segments": segments,
        "ends": [0, *sorted(draw(st.lists(st.integers(0, length), max_size=2))), length],
        "name": draw(
            st.sampled_from(["positive", "positive", "hyperbolic", "exp", "trigonometric", "custom exponential"])
        ),
        "window": draw(st.sampled_from([None, None, 1, 7, 64])),
        "preprocess": draw(st.booleans()),
        "seed": draw(st.integers(0, 1 << 16)),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@given(sequences())
def test_norms_masks_windows_and_chunks_at_random(backend: str, case: dict[str, Any]) -> None:
    rng = np.random.default_rng(case["seed"])
    size, allowed = (np.concatenate([np.full(x[0], x[i]) for x in case["segments"]]) for i in (1, 2))
    q, k, v = arrays((len(size),), 4, 2, seed=case["seed"])
    k = (unit(k) * size[:, None]).astype(np.float32)
    mask, features = rng.random(len(size)) < allowed, oracle.draw(case["name"], 4, 5, rng=case["seed"])
    if case["preprocess"]:
        features = oracle.affine(features, rng)
    options = {"causal": True, "window": case["window"]}
    expected = oracle.expect(q, k, v, features, mask=mask, **options)
    oracle.check_result(run(backend, q, k, v, features, mask=mask, **options), expected, np.float32, "whole")
    state, parts = None, []
    for start, stop in itertools.pairwise(case["ends"]):
        i = slice(start, stop)
        parts.append(run(backend, q[i], k[i], v[i], features, mask=mask[i], state=state, **options))
        state = parts[-1].state
    joined = (np.concatenate([np.asarray(x[field]) for x in parts]) for field in (0, 2, 3))
    output, log, sign = joined
    oracle.check_result(rfk.AttentionResult(output, state, log, sign), expected, np.float32, "chunks")
    both = oracle.expect(q, k, v, features, mask=mask, window=case["window"])
    result = run(backend, q, k, v, features, mask=mask, window=case["window"])
    oracle.check_result(result, both, np.float32, "bidirectional")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_keys_of_any_norm_do_not_count(backend: str, schedule: str) -> None:
    positions = (0, 1, 40, 63, 64, 90)
    for pattern, name in itertools.product((spike, block, alternating), ("positive", "trigonometric", "relu")):
        if name == "relu" and "window" in SCHEDULES[schedule]:
            continue
        q, k, v = jumping(pattern, positions)
        huge = np.linalg.norm(k, axis=-1) > 5
        mask, features = ~huge, oracle.draw(name, 4, 4, scale=1.0)
        expected = oracle.expect(q, k, v, features, mask=mask, **SCHEDULES[schedule])
        for factor in (np.float32(1), np.float32(1e3), np.float32(1e17)):
            k_huge, v_huge = (np.where(huge[..., None], factor * x, x) for x in (k, v))
            result = run(backend, q, k_huge, v_huge, features, mask=mask, **SCHEDULES[schedule])
            oracle.check_result(result, expected, np.float32, f"{name} {pattern.__name__} {factor}")


# Causality


@pytest.mark.parametrize(
    ("name", "window"),
    [(name, window) for name in sorted(MAPS) for window in (None, 1, 5, 100) if not window or name in SOFTMAX],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_later_keys_change_no_earlier_output(backend: str, name: str, window: int | None) -> None:
    """Element t of the batch has its keys from t on multiplied, and their values replaced."""
    length = 131
    steps = np.array([1, 2, 5, 31, 32, 33, 62, 63, 64, 65, 66, 97, 127, 128, 129, 130])
    q, k, v = arrays((length,), 4, 3)
    features = oracle.draw(name, 4, 6)
    later = np.arange(length) >= steps[:, None]
    before = run(backend, q, k, v, features, causal=True, window=window)
    expected = oracle.expect(q, k, v, features, causal=True, window=window)
    largest = 1e15 if MAPS[name].exponential else 1e3  # times the value, it has to stay in float32
    for factor, value in itertools.product((1e-3, 1e3, largest), (1.0, 1e30 if MAPS[name].exponential else 1e20)):
        many_k = np.where(later[..., None], np.float32(factor) * k, k)
        many_v = np.where(later[..., None], np.float32(value) * v, v)
        after = run(backend, q, many_k, many_v, features, causal=True, window=window)
        rows = np.broadcast_to(~later, after.output.shape[:-1])
        wanted = oracle.Expected(*(np.broadcast_to(x, (len(steps), *x.shape))[rows] for x in expected))
        oracle.check_output(after.output[rows], wanted, np.float32, f"{factor=} {value=}")
        old = np.broadcast_to(before.output, after.output.shape)[rows]
        certain = wanted.certain & (wanted.log_bound < 0.01)
        moved = np.abs(after.output[rows] - old)[certain]
        assert np.all(moved <= 2 * wanted.bound[certain]), f"{factor=} {value=}"
        if MAPS[name].nonnegative:
            allowed = 2e-6 * (1 + np.max(np.abs(oracle.exponents(q, features, "query")[0])))
            assert np.all(moved <= 10 * allowed), f"{factor=} {value=}: moved by {moved.max():.3g}"
        log = np.asarray(after.log_normalizer)[rows]
        np.testing.assert_allclose(log[certain], wanted.log_normalizer[certain], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_of_a_prefix_are_those_of_the_whole(backend: str) -> None:
    q, k, v = arrays((2, 140), 5, 3)
    for name in MAPS:
        features = oracle.draw(name, 5, 6)
        whole = run(backend, q, k, v, features, causal=True)
        for n in (1, 2, 63, 64, 65, 139):
            part = run(backend, q[:, :n], k[:, :n], v[:, :n], features, causal=True)
            expected = oracle.expect(q[:, :n], k[:, :n], v[:, :n], features, causal=True)
            oracle.check_result(part, expected, np.float32, name)
            moved = np.abs(part.output - whole.output[:, :n])
            assert np.all((moved <= 2 * expected.bound) | ~expected.certain[..., None]), name


# Exact parts


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("backend", "name"), [case for case in EACH_MAP if case.values[1] in SOFTMAX])
def test_a_window_over_everything_is_exact_attention(backend: str, name: str, causal: bool) -> None:
    kernel = MAPS[name].kernel
    for length, keys in ((5, 3),) if backend == "jax" else ((1, 1), (65, 65), (130, 130), (130, 65), (65, 130)):
        for norm, dtype in ((10.0, np.float32), (1.0, np.float32), (1.0, np.float64), (100.0, np.float64)):
            if backend == "jax" and norm == 1.0:
                continue
            q, k, v = arrays((max(length, keys),), 6, 3, seed=length, dtype=dtype)
            q, k, v = (norm * q)[:length], (norm * k)[:keys], v[:keys]
            features = oracle.draw(name, 6, 4)
            exact = rfk.exact_attention(q, k, v, causal=causal, kernel=kernel, backend="numpy")
            logs = rfk.exact_log_kernel(q[:, None], k[None], scale=float(features.scale), kernel=kernel)
            largest = float(np.max(np.abs(logs)))
            for window in (max(length, keys), 10**6)[backend == "jax" :]:
                result = run(backend, q, k, v, features, causal=causal, window=window)
                oracle.check_same(result.output, exact, 4.0, largest, f"{length} {keys} {norm} {window}")
                if not causal:
                    log = rfk.exact_log_normalizer(q, k, scale=float(features.scale), kernel=kernel, backend="numpy")
                    oracle.check_same(np.asarray(result.log_normalizer), log, 1 + largest, largest)


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize("backend", BACKENDS)
def test_exact_and_estimated_weights_of_any_ratio_are_joined(backend: str, name: str) -> None:
    """Rows whose near keys weigh e^±hundreds of what the far keys do, or see no far key at all."""
    for far, near, schedule in itertools.product(
        (-12.0, 1.0, 12.0), (-12.0, 1.0, 12.0), ("windowed", "windowed causal")
    ):
        q, k, v = arrays((131,), 4, 3)
        direction = unit(np.ones(4, np.float32))
        q = q / 4 + 8 * direction
        positions = np.arange(131) % 70
        size = np.where(positions < 6, near, far)[:, None].astype(np.float32)
        k = k / 4 + size * direction
        features = oracle.draw(name, 4, 4)
        expected = oracle.expect(q, k, v, features, **SCHEDULES[schedule])
        result = run(backend, q, k, v, features, **SCHEDULES[schedule])
        oracle.check_result(result, expected, np.float32, f"{far=} {near=} {schedule}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_exact_weights_hold_at_any_norm(backend: str) -> None:
    for norm, dtype in itertools.product((1e-6, 1e-3, 30.0, 1e3, 1e4), (np.float32, np.float64)):
        q, k, v = arrays((70,), 8, 3, dtype=dtype)
        q, k = (dtype(norm) * unit(x) for x in (q, k))
        exact = rfk.exact_attention(q, k, v, backend=None if backend == "jax" else backend)
        assert np.isfinite(exact).all()
        wide = rfk.exact_attention(*(x.astype(np.float64) for x in (q, k, v)), backend="numpy")
        largest = norm**2 / np.sqrt(8)
        allowed = oracle.tolerance(largest, dtype)
        assert np.all(np.abs(exact - wide) <= 2 * allowed * np.abs(v).max())
        result = run(backend, q, k, v, oracle.draw("positive", 8, 4), window=70)
        assert np.all(np.abs(result.output - wide) <= 2 * allowed * np.abs(v).max())


def test_a_constant_added_to_all_keys_changes_no_exact_weight() -> None:
    q, k, v = arrays((2, 70), 8, 3, dtype=np.float64)
    for causal, window in itertools.product((False, True), (None, 7)):
        moved = rfk.exact_attention(q, k + 1.5, v, causal=causal, window=window)
        np.testing.assert_allclose(
            moved, rfk.exact_attention(q, k, v, causal=causal, window=window), rtol=1e-9, atol=1e-12
        )


# Masks and order


@pytest.mark.parametrize(("backend", "name"), EACH_MAP)
def test_masking_keys_is_dropping_them(backend: str, name: str) -> None:
    length = 6 if backend == "jax" else 131
    q, k, v = arrays((2, length), 5, 3)
    mask = np.random.default_rng(0).random(length) < 0.5
    features = oracle.draw(name, 5, 6)
    masked = run(backend, q, k, v, features, mask=mask)
    dropped = run(backend, q, k[:, mask], v[:, mask], features)
    expected = oracle.expect(q, k[:, mask], v[:, mask], features)
    oracle.check_result(dropped, expected, np.float32, "dropped")
    oracle.check_result(masked, expected, np.float32, "masked")


@pytest.mark.parametrize("name", sorted(MAPS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_keys_does_not_matter(backend: str, name: str) -> None:
    q, k, v = arrays((131,), 5, 3)
    order, features = np.random.default_rng(0).permutation(131), oracle.draw(name, 5, 6)
    expected = oracle.expect(q, k, v, features)
    oracle.check_result(run(backend, q, k[order], v[order], features), expected, np.float32)


@pytest.mark.parametrize(("backend", "name"), EACH_MAP)
def test_nothing_allowed_gives_zeros(backend: str, name: str) -> None:
    q, k, v = arrays((2, 4), 5, 3)
    features = oracle.draw(name, 5, 4)
    for causal in (False, True):
        mask = np.array([[False], [True]]) & np.ones(4, bool)
        result = run(backend, q, k, v, features, causal=causal, mask=mask)
        assert (result.output[0] == 0).all()
        assert (np.asarray(result.log_normalizer)[0] == -np.inf).all()
        assert (np.asarray(result.sign)[0] == 0).all()
        assert np.isfinite(np.asarray(result.log_normalizer)[1]).all()
        if backend == "jax":
            continue
        empty = run(backend, q, k[:, :0], v[:, :0], features, causal=causal)
        assert (empty.output == 0).all()
        assert (empty.log_normalizer == -np.inf).all()
    if name in SOFTMAX:
        result = run(backend, q, k, v, features, window=2, mask=np.zeros(4, bool))
        assert (result.output == 0).all()
        assert (np.asarray(result.log_normalizer) == -np.inf).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", oracle.backends())
def test_relu_of_opposed_vectors_gives_zeros(backend: str, causal: bool) -> None:
    features = dataclasses.replace(oracle.draw("relu", 3, 4), projection=np.abs(oracle.draw("relu", 3, 4).projection))
    q = np.ones((5, 3), np.float32)
    result = run(backend, q, -q, np.full((5, 2), 7, np.float32), features, causal=causal)
    assert (result.output == 0).all()
    assert (np.asarray(result.log_normalizer) == -np.inf).all()
    assert (np.asarray(result.sign) == 0).all()


# Normalizers


@pytest.mark.parametrize("name", sorted(MAPS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_normalizer_is_the_sum_of_estimates(backend: str, name: str) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 3, 70, 5))
    mask = rng.random((3, 70)) < 0.7
    features = oracle.draw(name, 5, 6, scale=1.0)
    log, sign = oracle.log_estimates(q, k, features)
    log = np.where(mask[:, None], log, -np.inf)
    terms = sign * np.exp(log)
    got, got_sign = rfk.log_normalizer(q, k, features, mask=mask, return_sign=True, backend=backend)
    size = np.abs(terms).sum(-1)
    assert np.all(np.abs(got_sign * np.exp(got) - terms.sum(-1)) <= 1e-9 * size)


def test_normalizers_in_float16_stay_in_the_accumulation_dtype() -> None:
    q, k, v = arrays((7,), 4, 3, dtype=np.float16)
    for backend in ("numpy", oracle.DEFAULT):
        result = rfk.attention(q, k, v, oracle.draw("positive", 4, 4), full=True, backend=backend)
        assert result.output.dtype == np.float16
        assert result.log_normalizer.dtype == np.float32
        assert {x.dtype for x in result.state} == {np.dtype(np.float32)}


def test_long_float16_sums_do_not_overflow_or_stall() -> None:
    """Sums in float16 would stop growing at 2048 and overflow at 65504."""
    k = np.zeros((70000, 2), np.float16)
    v = np.ones((70000, 1), np.float16)
    for name, backend in itertools.product(("positive", "relu", "elu+1"), ("numpy", oracle.DEFAULT)):
        result = rfk.attention(k[:2], k, v, oracle.draw(name, 2, 4), full=True, backend=backend)
        if name != "relu":
            np.testing.assert_allclose(result.output, 1, rtol=1e-3)
            np.testing.assert_allclose(result.log_normalizer, np.log(70000), rtol=1e-5)
        else:
            assert (result.output == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_keys_average_their_values(backend: str) -> None:
    """Whatever the map, equal keys have equal weights: no epsilon, no drift."""
    rng = np.random.default_rng(0)
    q, v = rng.standard_normal((9, 4)), rng.standard_normal((130, 3))
    k = np.broadcast_to(rng.standard_normal(4), (130, 4))
    means = np.cumsum(v, 0) / np.arange(1, 131)[:, None]
    for name in sorted(set(MAPS) - {"sign", "signed", "trigonometric"}):  # estimates may be zero
        features = oracle.draw(name, 4, 32)
        for size in (1e-3, 1.0, 20.0):
            got = run(backend, size * q, size * k, v, features).output
            np.testing.assert_allclose(got, np.broadcast_to(v.mean(0), got.shape), rtol=1e-9, atol=1e-9)
            causal = run(backend, np.broadcast_to(size * q[:1], k.shape), size * k, v, features, causal=True).output
            np.testing.assert_allclose(causal, means, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 9e18), (np.float64, 6.5e153)])
def test_keys_whose_squares_are_near_the_largest_number(dtype: Any, size: float) -> None:
    """Their exponents count, however low, and none that is masked does, however large its dot products."""
    features = rfk.draw("positive", 2, 4, scale=1.0, rng=0)
    k = dtype(size) * np.stack([np.linspace(0.2, 1, 20), np.zeros(20)], -1).astype(dtype)
    v, mask, last = np.arange(20, dtype=dtype)[:, None], np.arange(20) < 10, k[-1:].repeat(20, 0)
    calls: tuple[dict[str, Any], ...] = ({}, {"window": 15}, {"window": 15, "causal": True}, {"heavy": np.arange(15)})
    for q, seen, options in itertools.product((last, -last), (mask, ~mask), calls):
        given = {"features": features, "mask": seen, "full": True, **options}
        got, expected = (rfk.attention(q, k, v, backend=name, **given) for name in ("numba", "numpy"))
        np.testing.assert_allclose(got.log_normalizer, expected.log_normalizer, rtol=1e-5)
        np.testing.assert_allclose(got.output, expected.output, rtol=1e-5)
    exact = (rfk.exact_attention(last, k, v, scale=1.0, mask=mask, backend=name) for name in ("numba", "numpy"))
    np.testing.assert_array_equal(*exact)


def test_log_weights_as_large_as_exponents() -> None:
    """The exponent that the shift is taken of stays the largest, and zero, whatever rounds beside its log-weight."""
    rng, ones = np.random.default_rng(0), np.ones((30, 1), np.float32)
    for seed in range(6):
        q, k = (1e8 * (rng.standard_normal((30, 8)) + rng.standard_normal(8)).astype(np.float32) for _ in "qk")
        features = rfk.fit(q, k, 16, rng=seed)
        np.testing.assert_allclose(rfk.attention(q, k, ones, features, causal=True), ones, rtol=1e-5)
