"""The state is a commutative monoid, writing is merging, and a windowed stream equals the whole pass for any split."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import MAPS

import rfkernels as rfk

DIM, ROWS, WIDTH = 3, 4, 2
BACKENDS = oracle.backends("numpy", "numba")


def features_of(name: str, **options: Any) -> rfk.Features:
    return oracle.draw(name, DIM, ROWS, **options)


def keys_of(seed: int, count: int, spread: float, batch: tuple[int, ...] = (), dtype: Any = np.float64) -> Any:
    """Keys whose norms differ by up to e^±spread from key to key, and values."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.uniform(-spread, spread, (*batch, count, 1)))
    return oracle.normal(rng, *batch, count, DIM, dtype=dtype) * size.astype(dtype), oracle.normal(
        rng, *batch, count, WIDTH, dtype=dtype
    )


def written(name: str, k: Any, v: Any, mask: Any = None, backend: str | None = "numpy") -> Any:
    features = features_of(name)
    batch = np.broadcast_shapes(k.shape[:-2], v.shape[:-2])
    state = rfk.empty_state(features, v.shape[-1], batch, k.dtype)
    return rfk.write_state(state, k, v, features, mask=mask, backend=backend)


def assert_same_state(got: Any, expected: Any, absolute: Any, eps: float = 2.3e-16) -> None:
    """Require two states to hold the same sums on a common log scale, to rounding relative to sums of magnitudes.

    `absolute` is a state of the same keys with |φ| and |v| in place of φ and v, or None if nothing cancels.
    """
    for one, two in zip(got, expected, strict=True):
        assert one.shape == two.shape
        assert one.dtype == two.dtype
    largest = np.max(np.abs(np.where(np.isfinite(expected.shift), expected.shift, 0)), initial=0)
    allowed = eps * (200 + 16 * largest)
    np.testing.assert_array_equal(np.isfinite(got.shift), np.isfinite(expected.shift))
    common = np.where(np.isfinite(expected.shift), expected.shift, 0)
    down = np.where(np.isfinite(got.shift), got.shift - common, 0)
    assert np.all(np.abs(down) <= allowed)
    scale = np.exp(down)
    size = expected if absolute is None else absolute
    assert np.all(np.abs(got.z * scale - expected.z) <= allowed * np.abs(size.z) + 1e-300)
    assert np.all(np.abs(got.kv * scale[..., None] - expected.kv) <= allowed * np.abs(size.kv) + 1e-300)


def magnitudes(name: str, k: Any, v: Any, mask: Any = None) -> Any:
    """Sums of |φ| and |φ||v| on the log scale of the state, where |φ| is what rounding is relative to.

    u = w·x is rounded relative to Σ|wᵢxᵢ|, and φ by its derivative times that: near a zero of a cosine far more than |φ|.
    """
    features = features_of(name)
    state = written(name, k, v, mask)
    shift = np.where(np.isfinite(state.shift), state.shift, 0)

    def phi(keys: Any) -> Any:
        log, sign = rfk.transform(keys, features, side="key", log=True)
        scaled = sign * np.exp(log + np.log(features.count) / 2 - shift[..., None, :])
        return scaled if mask is None else np.where(mask[..., None], scaled, 0)

    here, step = phi(k), 1e-6
    size = np.abs(here)
    for away in (step, -step):
        moved = phi(k + away * np.sign(features.projection)[:, None] * np.abs(k))
        by_row = moved.reshape(*moved.shape[:-1], len(features.map.activations), features.rows)
        own = np.stack([by_row[row, ..., row] for row in range(features.rows)], -1).reshape(here.shape)
        size = np.maximum(size, np.abs(own - here) / step)
    return rfk.State(np.swapaxes(size, -1, -2) @ np.abs(v), size.sum(-2), state.shift)


maps = st.sampled_from(sorted(MAPS))
seeds = st.integers(0, 1 << 20)
counts = st.integers(0, 70)
spreads = st.sampled_from([0.0, 1.0, 3.5])


# Monoid laws


@given(maps, seeds, counts, spreads)
def test_the_empty_state_is_the_identity(name: str, seed: int, count: int, spread: float) -> None:
    state = written(name, *keys_of(seed, count, spread))
    empty = rfk.empty_state(features_of(name), WIDTH, (), np.float64)
    for merged in (rfk.merge_states(empty, state), rfk.merge_states(state, empty)):
        for one, two in zip(merged, state, strict=True):
            np.testing.assert_array_equal(one, two)


@given(maps, seeds, counts, counts, spreads)
def test_merging_commutes(name: str, seed: int, count: int, other: int, spread: float) -> None:
    one, two = written(name, *keys_of(seed, count, spread)), written(name, *keys_of(seed + 1, other, spread))
    for first, second in zip(rfk.merge_states(one, two), rfk.merge_states(two, one), strict=True):
        np.testing.assert_array_equal(first, second)


@given(maps, seeds, st.tuples(counts, counts, counts), spreads)
def test_merging_associates(name: str, seed: int, count: tuple[int, int, int], spread: float) -> None:
    parts = [keys_of(seed + i, n, spread) for i, n in enumerate(count)]
    one, two, three = (written(name, *part) for part in parts)
    left = rfk.merge_states(rfk.merge_states(one, two), three)
    right = rfk.merge_states(one, rfk.merge_states(two, three))
    k, v = (np.concatenate(x) for x in zip(*parts, strict=True))
    assert_same_state(left, right, magnitudes(name, k, v))


@pytest.mark.parametrize("backend", BACKENDS)
@given(maps, seeds, counts, counts, spreads, st.booleans())
def test_merging_is_writing_together(
    backend: str, name: str, seed: int, count: int, other: int, spread: float, masked: bool
) -> None:
    k, v = keys_of(seed, count + other, spread)
    mask = np.random.default_rng(seed).random(len(k)) < 0.7 if masked else None
    parts = [slice(0, count), slice(count, None)]
    halves = [written(name, k[i], v[i], None if mask is None else mask[i], backend) for i in parts]
    together = written(name, k, v, mask, backend)
    size = magnitudes(name, k, v, mask)
    assert_same_state(rfk.merge_states(*halves), together, size)
    features = features_of(name)
    more = None if mask is None else mask[count:]
    one_after_another = rfk.write_state(halves[0], k[count:], v[count:], features, mask=more, backend=backend)
    assert_same_state(one_after_another, together, size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(maps, seeds, counts, spreads)
def test_backends_write_the_same_state(
    dtype: Any, backend: str, name: str, seed: int, count: int, spread: float
) -> None:
    k, v = keys_of(seed, count, spread, dtype=dtype)
    wide = k.astype(np.float64), v.astype(np.float64)
    expected, size = written(name, *wide), magnitudes(name, *wide)
    got = written(name, k, v, backend=backend)
    assert got.z.dtype == dtype
    largest = np.max(
        np.abs(np.concatenate([x.ravel() for x in oracle.exponents(wide[0], features_of(name), "key")])), initial=0
    )
    eps = float(np.finfo(dtype).eps) * (1 + largest)
    assert_same_state(rfk.State(*(x.astype(np.float64) for x in got)), expected, size, eps)


@pytest.mark.parametrize("name", sorted(MAPS))
def test_merging_two_empty_states_is_empty(name: str) -> None:
    empty = rfk.empty_state(features_of(name), WIDTH, (2,))
    for one, two in zip(rfk.merge_states(empty, empty), empty, strict=True):
        np.testing.assert_array_equal(one, two)


def test_batch_axes_of_merged_states_broadcast() -> None:
    features = features_of("positive")
    wide = written("positive", *keys_of(0, 5, 1.0, (2, 3)))
    narrow = written("positive", *keys_of(1, 4, 1.0, (3,)))
    merged = rfk.merge_states(wide, narrow)
    assert merged.kv.shape == (2, 3, features.count, WIDTH)
    for i, j in itertools.product(range(2), range(3)):
        one = rfk.State(*(x[i, j] for x in wide))
        two = rfk.State(*(x[j] for x in narrow))
        for got, expected in zip(merged, rfk.merge_states(one, two), strict=True):
            np.testing.assert_array_equal(got[i, j], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_axes_of_a_state_broadcast_against_new_keys(backend: str) -> None:
    """A prefix shared by all heads, then keys for each; and queries with batch axes that the state lacks."""
    features, rng = features_of("positive"), np.random.default_rng(0)
    shared, (k, v) = keys_of(0, 5, 1.0), keys_of(1, 4, 1.0, (2, 3))
    state = rfk.write_state(written("positive", *shared), k, v, features, backend=backend)
    assert state.kv.shape == (2, 3, features.count, WIDTH)
    q = rng.standard_normal((2, 3, 6, DIM))
    got = rfk.read_state(state, q, features, backend=backend)
    both = [
        np.concatenate([np.broadcast_to(x, (2, 3, 5, x.shape[-1])), y], -2) for x, y in zip(shared, (k, v), strict=True)
    ]
    oracle.check_output(got, oracle.expect(q, *both, features), np.float64)
    got = rfk.read_state(written("positive", *shared), q, features, backend=backend)
    oracle.check_output(got, oracle.expect(q, *shared, features), np.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["positive", "relu"])
@pytest.mark.parametrize("numbers", [(0.0, 0.0, None), (1.0, 0.0, None), (0.0, 1.0, None), (1.0, 2.0, -0.5)])
def test_a_state_may_be_broadcast_from_numbers(
    backend: str, name: str, numbers: tuple[float, float, float | None]
) -> None:
    """Backends may know the state of no keys by its numbers, and must not take another one for it."""
    features = features_of(name)
    empty = rfk.empty_state(features, WIDTH, (2,), np.float64)
    lowest = float(empty.shift.flat[0])
    filled = [lowest if number is None else number for number in numbers]
    if name == "relu":
        filled[2] = 0.0
    elif numbers[:2] != (0.0, 0.0) and numbers[2] is None:
        filled[2] = 0.0  # sums of no keys have nothing else than zeros
    given = rfk.State(*(np.broadcast_to(np.asarray(x), y.shape) for x, y in zip(filled, empty, strict=True)))
    whole = rfk.State(*(np.array(x) for x in given))
    k, v = keys_of(0, 5, 0.5, (2,))
    for keys in (0, 5):
        options: dict[str, Any] = {"full": True, "causal": True, "backend": backend}
        got, expected = (
            rfk.attention(k, k[:, :keys], v[:, :keys], features, state=state, **options) for state in (given, whole)
        )
        _same(got, expected)
        assert all(x.flags.writeable for x in got.state)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["positive", "relu"])
@pytest.mark.parametrize("size", [32, 5])
def test_states_in_any_layout(backend: str, name: str, size: int) -> None:
    """In sizes that backends pad and in those that they take as they are."""
    rng = np.random.default_rng(0)
    features = rfk.draw(name, DIM, size, rng=0)
    k, v = rng.standard_normal((3, 5, DIM)), rng.standard_normal((3, 5, size))
    state = rfk.write_state(rfk.empty_state(features, size, (3,)), k, v, features, backend="numpy")
    for turned in (np.asfortranarray, lambda x: x[::-1].copy()[::-1], lambda x: np.repeat(x, 2, -1)[..., ::2]):
        given = rfk.State(*map(turned, state))
        for part in (given, *(state._replace(**{name: x}) for name, x in given._asdict().items())):
            _same(*(rfk.attention(k, k, v, features, state=x, full=True, backend=backend) for x in (part, state)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "width"), [((0,), 2), ((2, 0), 2), ((2,), 0)])
def test_states_without_heads_or_width(backend: str, batch: tuple[int, ...], width: int) -> None:
    features = features_of("positive")
    k, v = np.ones((*batch, 5, DIM)), np.ones((*batch, 5, width))
    done = rfk.attention(k, k, v, features, full=True, backend=backend)
    assert done.output.shape == v.shape
    assert [x.shape for x in done.state] == [(*batch, features.count, width), *[(*batch, features.count)] * 2]
    np.testing.assert_allclose(done.state.z, rfk.write_state(rfk.empty_state(features, width, batch), k, v, features).z)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reading_the_state_of_no_keys_from_numbers(backend: str) -> None:
    """Large enough for memory that is freed too early to be taken by the output."""
    features = rfk.draw("positive", 8, 256, rng=0)
    empty = rfk.empty_state(features, 32, (16,), np.float64)
    given = rfk.State(*(np.broadcast_to(x.flat[0], x.shape) for x in empty))
    q = np.random.default_rng(0).standard_normal((16, 70, 8))
    for _ in range(3):
        got = rfk.read_state(given, q, features, full=True, backend=backend)
        np.testing.assert_array_equal(got.output, 0)
        np.testing.assert_array_equal(got.log_normalizer, -np.inf)


def _same(got: Any, expected: Any) -> None:
    """Require the same output and state."""
    np.testing.assert_allclose(got.output, expected.output, rtol=1e-12)
    for x, y in zip(got.state, expected.state, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_whose_first_head_holds_nothing(backend: str) -> None:
    """Nor its first feature, by the numbers that it begins with."""
    features = features_of("positive")
    k, v = keys_of(0, 5, 0.5, (2,))
    mask = np.array([[False] * 5, [True] * 5])
    state = rfk.write_state(rfk.empty_state(features, WIDTH, (2,), np.float64), k, v, features, mask=mask)
    assert [x.flat[0] for x in state] == [0.0, 0.0, -np.inf]
    got = rfk.read_state(state, k, features, backend=backend)
    np.testing.assert_allclose(got, rfk.attention(k, k, v, features, mask=mask, backend="numpy"), rtol=1e-12)
    again = rfk.write_state(state, k[:, :0], v[:, :0], features, backend=backend)
    for x, y in zip(again, state, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["positive", "relu"])
def test_a_first_pass_returns_a_state_of_its_own(backend: str, name: str) -> None:
    """What it begins with is one number to an array, which nobody may write to."""
    features = features_of(name)
    k, v = keys_of(0, 5, 0.5, (2,))
    for keys in (0, 5):
        state = rfk.attention(k, k[:, :keys], v[:, :keys], features, full=True, backend=backend).state
        expected = rfk.write_state(
            rfk.empty_state(features, WIDTH, (2,), np.float64), k[:, :keys], v[:, :keys], features
        )
        for x, y in zip(state, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12)
            x += 1.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_are_not_changed(backend: str) -> None:
    features, (k, v) = features_of("positive"), keys_of(0, 5, 1.0)
    state = written("positive", k, v, backend=backend)
    kept = [x.copy() for x in state]
    for x in state:
        x.flags.writeable = False
    later = keys_of(1, 70, 3.0)
    rfk.write_state(state, *later, features, backend=backend)
    rfk.merge_states(state, written("positive", *later, backend=backend))
    rfk.read_state(state, k, features, backend=backend)
    for causal in (False, True):
        rfk.attention(k, *later, features, causal=causal, state=state, full=True, backend=backend)
    for one, two in zip(state, kept, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_is_promoted_when_float64_keys_are_written(backend: str) -> None:
    features, (k, v) = features_of("positive"), keys_of(0, 5, 1.0)
    for dtype, keys in itertools.product((np.float32, np.float64), repeat=2):
        state = rfk.empty_state(features, WIDTH, dtype=dtype)
        state = rfk.write_state(state, k.astype(keys), v.astype(keys), features, backend=backend)
        wanted = np.float64 if np.float64 in (dtype, keys) else np.float32
        assert {x.dtype for x in state} == {np.dtype(wanted)}
        out = rfk.read_state(state, k.astype(np.float32), features, backend=backend)
        assert out.dtype == np.float32
        oracle.check_output(out, oracle.expect(*(x.astype(np.float32) for x in (k, k, v)), features), np.float32)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_state_after_a_pass_is_the_written_one(backend: str, causal: bool) -> None:
    for name in MAPS:
        (k, v), features = keys_of(0, 70, 1.0), features_of(name)
        mask = np.arange(70) % 5 != 0
        result = rfk.attention(k[:9], k, v, features, causal=causal, mask=mask, full=True, backend=backend)
        assert_same_state(result.state, written(name, k, v, mask), magnitudes(name, k, v, mask))


def test_an_empty_state() -> None:
    features = features_of("positive", batch=(3,))
    state = rfk.empty_state(features, 5, (2, 3))
    assert [x.shape for x in state] == [(2, 3, ROWS, 5), (2, 3, ROWS), (2, 3, ROWS)]
    assert {x.dtype for x in state} == {np.dtype(np.float32)}
    assert (state.shift == -np.inf).all()
    assert (rfk.empty_state(features_of("relu"), 5).shift == 0).all()
    q = np.ones((2, 3, 4, DIM))
    for backend in ("numpy", oracle.DEFAULT):
        result = rfk.read_state(state, q, features, full=True, backend=backend)
        assert result.output.shape == (2, 3, 4, 5)
        assert (result.output == 0).all()
        assert (result.log_normalizer == -np.inf).all()
        assert (result.sign == 0).all()
    decode = rfk.empty_state(features, 5, (2, 3), np.float64, window=7)
    assert isinstance(decode, rfk.DecodeState)
    assert decode.keys.shape == (2, 3, 7, DIM)
    assert decode.values.shape == (2, 3, 7, 5)
    assert decode.mask.shape == (2, 3, 7)
    assert not decode.mask.any()
    assert decode.position == 0


@pytest.mark.parametrize("part", [..., (0, 0), (0, -1)])
@pytest.mark.parametrize("backend", ["numpy", oracle.DEFAULT])
def test_shifts_that_are_no_number_are_not_passed_over(part: Any, backend: str) -> None:
    features, q = features_of("positive"), np.ones((2, 3, DIM))
    state = rfk.write_state(rfk.empty_state(features, 5, (2,), np.float64), q, np.ones((2, 3, 5)), features)
    state.shift[part] = np.nan
    with np.errstate(invalid="ignore"):
        assert np.isnan(rfk.read_state(state, q, features, backend=backend)[0]).all()
        for causal in (False, True):
            out = rfk.attention(q, q, np.ones((2, 3, 5)), features, causal=causal, state=state, backend=backend)
            assert np.isnan(out[0]).all()


# Windowed streams


@st.composite
def splits(draw: st.DrawFn, longest: int = 80) -> list[int]:
    """Ends of consecutive chunks, empty ones included, of a sequence."""
    length = draw(st.integers(0, longest))
    inner = draw(st.lists(st.integers(0, length), max_size=4))
    return [0, *sorted(inner), length]


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    st.sampled_from(oracle.EXPONENTIAL[:2] + ["trigonometric", "custom exponential"]),
    seeds,
    splits(),
    st.sampled_from([1, 2, 3, 33, 64, 65, 200]),
    st.booleans(),
    st.booleans(),
)
def test_a_windowed_stream_equals_the_whole(
    backend: str, name: str, seed: int, ends: list[int], window: int, masked: bool, allocated: bool
) -> None:
    features, (k, v) = features_of(name), keys_of(seed, ends[-1], 1.0)
    rng = np.random.default_rng(seed)
    q, mask = rng.standard_normal(k.shape), rng.random(len(k)) < 0.7 if masked else None
    expected = oracle.expect(q, k, v, features, causal=True, window=window, mask=mask)
    options = {"causal": True, "window": window, "backend": backend}
    oracle.check_result(
        rfk.attention(q, k, v, features, mask=mask, full=True, **options), expected, np.float64, "whole"
    )
    state = rfk.empty_state(features, WIDTH, (), np.float64, window=window) if allocated else None
    parts = []
    for start, stop in itertools.pairwise(ends):
        i = slice(start, stop)
        seen = None if mask is None else mask[i]
        parts.append(rfk.attention(q[i], k[i], v[i], features, mask=seen, state=state, full=True, **options))
        state = parts[-1].state
        assert state.position == stop
        assert state.keys.shape[-2] == (window if allocated else min(stop, window))
        kept = min(stop, window)
        np.testing.assert_array_equal(state.keys[state.keys.shape[-2] - kept :], k[stop - kept : stop])
        np.testing.assert_array_equal(state.values[state.values.shape[-2] - kept :], v[stop - kept : stop])
    together = [
        np.concatenate([getattr(part, name) for part in parts]) for name in ("output", "log_normalizer", "sign")
    ]
    oracle.check_result(rfk.AttentionResult(together[0], state, *together[1:]), expected, np.float64, "stream")


@pytest.mark.parametrize("backend", BACKENDS)
@given(maps, seeds, splits(), st.booleans())
def test_a_stream_equals_the_whole(backend: str, name: str, seed: int, ends: list[int], masked: bool) -> None:
    features, (k, v) = features_of(name), keys_of(seed, ends[-1], 1.0)
    rng = np.random.default_rng(seed)
    q, mask = rng.standard_normal(k.shape), rng.random(len(k)) < 0.7 if masked else None
    expected = oracle.expect(q, k, v, features, causal=True, mask=mask)
    state, parts = None, []
    for start, stop in itertools.pairwise(ends):
        i = slice(start, stop)
        seen = None if mask is None else mask[i]
        options = {"mask": seen, "state": state, "causal": True, "full": True, "backend": backend}
        parts.append(rfk.attention(q[i], k[i], v[i], features, **options))
        state = parts[-1].state
    together = [
        np.concatenate([getattr(part, name) for part in parts]) for name in ("output", "log_normalizer", "sign")
    ]
    oracle.check_result(rfk.AttentionResult(together[0], state, *together[1:]), expected, np.float64, "stream")


@pytest.mark.parametrize("backend", BACKENDS)
def test_decoding_with_batches_groups_and_features_per_head(backend: str) -> None:
    rng = np.random.default_rng(5)
    q = rng.standard_normal((2, 2, 3, 40, DIM))
    k, v = rng.standard_normal((2, 2, 1, 40, DIM)), rng.standard_normal((2, 2, 1, 40, WIDTH))
    features = features_of("positive", batch=(2, 1))
    mask = rng.random((2, 1, 1, 40)) < 0.8
    state = rfk.empty_state(features, WIDTH, (2, 2, 1), np.float64, window=6)
    outputs = []
    for t in range(40):
        i = slice(t, t + 1)
        options = {"causal": True, "window": 6, "mask": mask[..., i], "full": True, "backend": backend}
        result = rfk.attention(q[..., i, :], k[..., i, :], v[..., i, :], features, state=state, **options)
        state = result.state
        outputs.append(result.output)
    expected = oracle.expect(q, k, v, features, causal=True, window=6, mask=mask)
    oracle.check_output(np.concatenate(outputs, -2), expected, np.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_before_the_last_key_of_a_windowed_state(backend: str) -> None:
    """They are computed as in the whole where the state holds all keys one by one, and refused otherwise."""
    features, window = features_of("positive"), 5
    q, k, v = np.random.default_rng(0).normal(size=(3, 14, DIM))
    given: dict[str, Any] = {"causal": True, "window": window, "backend": backend}
    whole = rfk.attention(q, k, v, features, **given)
    for held, back, new in itertools.product((4, 10), (1, 2, 4), (0, 1, 3)):
        state = rfk.attention(q[:held], k[:held], v[:held], features, full=True, **given).state
        state = state._replace(position=np.asarray(held)) if new else state  # as of a state that was saved
        rows, more = slice(held - back, held + new), slice(held, held + new)
        if held > window and back > 1:
            with pytest.raises(ValueError, match=rf"got lengths {back + new} and {new}"):
                rfk.attention(q[rows], k[more], v[more], features, state=state, **given)
        else:
            got = rfk.attention(q[rows], k[more], v[more], features, state=state, **given)
            np.testing.assert_allclose(got, whole[rows], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_in_float64_stays_so_as_float32_keys_come(backend: str, window: int | None) -> None:
    """One key more counts beside as many as float32 has whole numbers for."""
    features, x = features_of("positive"), np.ones((1, DIM), np.float32)
    start = rfk.empty_state(features, DIM, dtype=np.float64, window=window)
    given: dict[str, Any] = {"causal": True, "window": window, "full": True, "backend": backend}
    done = rfk.attention(x, x, x, features, state=start, **given)
    if window is not None:  # the key leaves for the sums as the next one comes
        done = rfk.attention(x, x, x, features, state=done.state, **given)
    one = done.state if window is None else done.state.state
    many = rfk.State(2.0**26 * one.kv, 2.0**26 * one.z, one.shift)
    state = many if window is None else done.state._replace(state=many)
    done = rfk.attention(x, x, x, features, state=state, **given)
    sums = done.state if window is None else done.state.state
    assert (done.output.dtype, sums.z.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(sums.z - many.z, one.z, rtol=1e-6)
