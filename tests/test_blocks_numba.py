"""The Numba backend's passes over blocks and the steps that find groups, against their executable specification."""

from __future__ import annotations

import gc
import itertools
import re
import tracemalloc
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import rfkernels as rfk
from rfkernels.backends.numba import block_inputs, block_layout, blocks, finite, group_steps
from rfkernels.backends.numba.group_steps import STEPS as FAST
from rfkernels.backends.numba.jit import Machine, host_width
from rfkernels.grouping import fitting

DIM, WIDTH = 7, 5
WINDOWS = (None, 1, 20, 40, 200)


def inputs(length: int, keys: int, *, batch: Any = (2,), shared: Any = None, dtype: Any = np.float64) -> list[Any]:
    rng = np.random.default_rng(length + keys)
    own = batch if shared is None else shared
    sizes = ((*batch, length, DIM), (*own, keys, DIM), (*own, keys, WIDTH))
    return [rng.standard_normal(size).astype(dtype) for size in sizes]


def fitted(count: int = 6, batch: Any = (2,), moving: bool = True) -> rfk.Groups:
    rng = np.random.default_rng(count)
    q, k, v = (rng.standard_normal((*batch, 60, n)) for n in (DIM, DIM, WIDTH))
    return rfk.fit_groups(q, k, count, v=v if moving else None)


def both(q: Any, k: Any, v: Any, **options: Any) -> list[Any]:
    return [rfk.attention(q, k, v, full=True, backend=name, **options) for name in ("numba", "numpy")]


def assert_same(got: Any, expected: Any, tol: float = 1e-12) -> None:
    """Compare outputs, logarithms and states; keys that do not count may hold anything."""
    assert got.output.dtype == expected.output.dtype
    np.testing.assert_allclose(got.output, expected.output, rtol=tol, atol=tol)
    np.testing.assert_allclose(got.log_normalizer, expected.log_normalizer, rtol=tol, atol=tol)
    np.testing.assert_array_equal(got.sign, expected.sign)
    if expected.state is None:
        assert got.state is None
        return
    for name, one, two in zip(got.state._fields, got.state, expected.state, strict=True):
        if one is None or two is None:
            assert one is two, name
            continue
        pairs = zip(one, two, strict=True) if name == "sums" else ((one, two),)
        for x, y in pairs:
            x, y = np.asarray(x), np.asarray(y)
            assert (x.shape, x.dtype) == (y.shape, y.dtype), name
            if name in ("keys", "values"):
                seen = expected.state.mask.reshape(*x.shape[:-1], 1)
                x, y = (np.where(seen, z, 0) for z in (x, y))
            np.testing.assert_allclose(x, y, rtol=10 * tol, atol=10 * tol * max(1, np.abs(y).max(initial=0)))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("length", "keys"), [(150, 150), (1, 1), (70, 300), (300, 70), (0, 40), (333, 333)])
def test_bidirectional(length: int, keys: int, window: int | None) -> None:
    q, k, v = inputs(length, keys)
    mask = np.random.default_rng(1).random((2, keys)) < 0.7
    heavy = np.array([[min(9, keys - 1)], [0]])
    groups = fitted()
    for seen, places in itertools.product((None, mask, mask[0]), (None, heavy, heavy[0])):
        assert_same(*both(q, k, v, groups=groups, window=window, heavy=places, mask=seen))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("length", "keys"), [(150, 150), (1, 1), (70, 300), (0, 40), (0, 0), (333, 333)])
def test_causal(length: int, keys: int, window: int | None) -> None:
    q, k, v = inputs(length, keys)
    mask = np.random.default_rng(1).random((2, keys)) < 0.7
    groups = fitted()
    places: tuple[Any, ...] = (None, 3, np.array([[100, 5, 37], [500, 0, 2]]))
    for seen, heavy in itertools.product((None, mask), places):
        assert_same(*both(q, k, v, groups=groups, window=window, heavy=heavy, mask=seen, causal=True))


@pytest.mark.parametrize("window", [None, 1, 20, 40])
@pytest.mark.parametrize("cuts", [(0, 16, 128), (5, 6, 7, 64), (1, 150, 151), (199,)])
def test_resumed(cuts: tuple[int, ...], window: int | None) -> None:
    """A pass in pieces is the whole pass, and each piece begins from the specification's state as from one's own."""
    q, k, v = inputs(200, 200)
    mask = np.random.default_rng(1).random(200) < 0.8
    options: dict[str, Any] = {"groups": fitted(), "window": window, "heavy": np.array([3, 70, 180]), "causal": True}
    whole = rfk.attention(q, k, v, full=True, backend="numpy", mask=mask, **options)
    state, found = None, []
    for low, high in itertools.pairwise((0, *cuts, 200)):
        part = slice(low, high)
        given = [x[:, part] for x in (q, k, v)]
        got, expected = both(*given, mask=mask[part], state=state, **options)
        assert_same(got, expected)
        found.append(got.output)
        state = expected.state if len(found) % 2 else got.state
    np.testing.assert_allclose(np.concatenate(found, 1), whole.output, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 20])
def test_heads_that_share_keys(causal: bool, window: int | None) -> None:
    q, k, v = inputs(90, 90, batch=(2, 4), shared=(2, 1))
    for groups in (fitted(batch=(2, 1)), fitted(batch=()), fitted(batch=(4,))):
        options: dict[str, Any] = {"groups": groups, "window": window, "causal": causal, "heavy": np.array([1, 30])}
        assert_same(*both(q, k, v, **options))
        assert_same(*both(q, k[0, 0], v[:, 0][:, None], **options))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_narrow_dtypes(dtype: Any, causal: bool) -> None:
    q, k, v = inputs(200, 200, dtype=dtype)
    options: dict[str, Any] = {"groups": fitted(), "window": 20, "heavy": np.array([0, 1]), "causal": causal}
    got, expected = both(q, k, v, **options)
    tol = 1e-5 if dtype == np.float32 else 2.0**-7
    np.testing.assert_allclose(got.output.astype(float), expected.output.astype(float), rtol=tol, atol=tol)
    np.testing.assert_allclose(got.log_normalizer, expected.log_normalizer, rtol=1e-5)
    wide = rfk.attention(q.astype(float), k.astype(float), v.astype(float), **options)
    np.testing.assert_allclose(got.output.astype(float), wide, rtol=tol, atol=tol)


def test_mixed_dtypes_and_strides() -> None:
    q, k, v = inputs(100, 100)
    k = np.asfortranarray(k)
    v = np.repeat(v, 2, -2)[:, ::2].astype(np.float16)
    for causal in (False, True):
        assert_same(*both(q[:, ::-1], k, v, groups=fitted(), window=20, causal=causal))


@pytest.mark.parametrize("window", [*WINDOWS, 2**40, 10**30])
def test_without_far_keys_it_is_exact_attention(window: int | None) -> None:
    """Every key near, or each its own group."""
    q, k, v = inputs(40, 40)
    groups = rfk.fit_groups(q, k, 200)
    for causal in (False, True):
        if not causal or (window or 0) < 2**40:
            got = rfk.attention(q, k, v, groups=groups, window=window, causal=causal)
            np.testing.assert_allclose(
                got, rfk.exact_attention(q, k, v, causal=causal, backend="numpy"), rtol=1e-10, atol=1e-11
            )


@pytest.mark.parametrize("threads", ["1", "2", "7"])
@pytest.mark.parametrize("causal", [False, True])
def test_chunks_of_one_head(monkeypatch: pytest.MonkeyPatch, threads: str, causal: bool) -> None:
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", threads)
    monkeypatch.setattr("rfkernels.backends.numba.threads.SERIAL_WORK", 0)
    monkeypatch.setattr(blocks, "_CHUNK", 2)
    for length, keys, window in ((1500, 1500, 20), (700, 1500, 40), (700, 1500, None)):
        q, k, v = inputs(length, keys, batch=(1,))
        options: dict[str, Any] = {"groups": fitted(batch=()), "window": window, "causal": causal}
        assert_same(*both(q, k, v, heavy=np.array([2, 800]), **options), tol=1e-11)


def test_queries_beyond_the_keys_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "3")
    monkeypatch.setattr("rfkernels.backends.numba.threads.SERIAL_WORK", 0)
    monkeypatch.setattr(blocks, "_CHUNK", 2)
    q, k, v = inputs(900, 200, batch=(1,))
    assert_same(*both(q, k, v, groups=fitted(batch=()), window=20))


@pytest.mark.parametrize("target", [Machine(16, 8, 8), Machine(32, 4, 6), Machine(16, 4, 6)])
@pytest.mark.parametrize("causal", [False, True])
def test_other_register_tiles(monkeypatch: pytest.MonkeyPatch, causal: bool, target: Machine) -> None:
    """As on 64-bit Arm, 8 rows of 2 vectors of 16 bytes; as with AVX2, 4 or 6 rows, 12 at once; and with short vectors.

    Of three heads that share keys 20 queries are seen at a time, and of the last block 10: no multiples of 12.
    """
    if target.width > host_width():
        pytest.skip(f"this machine has vectors of {host_width()} bytes")
    monkeypatch.setattr(block_layout, "machine", lambda: target)
    q, k, v = inputs(150, 150, batch=(2, 3), shared=(2, 1))
    options: dict[str, Any] = {"window": 20, "heavy": np.array([0, 90]), "causal": causal}
    assert_same(*both(q, k, v, groups=fitted(9, batch=(2, 1)), **options))
    q, k, v = inputs(150, 150)
    assert_same(*both(q, k, v, groups=fitted(9), **options))
    got = found(q, k, v, 9, None, FAST)
    for x, y in zip(got, found(q, k, v, 9, None, fitting.STEPS), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_heads_wider_than_a_register_tile(dtype: Any) -> None:
    """Quadratic forms are taken from the lower triangle, a column of register tiles at a time."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 200, n)).astype(dtype) for n in (75, 75, 70))
    groups = rfk.fit_groups(q, k, 40, v=v)
    lopsided = groups.metric + np.tril(np.full((75, 75), 0.01, dtype), -1)
    tol = 1e-11 if dtype is np.float64 else 1e-4
    for given in (groups, groups._replace(metric=lopsided, spread=lopsided)):
        assert_same(*both(q, k, v, groups=given, window=20, heavy=np.array([3, 150])), tol=tol)
    for x, y in zip(found(q, k, v, 40, None, FAST), found(q, k, v, 40, None, fitting.STEPS), strict=True):
        np.testing.assert_allclose(x, y, rtol=100 * tol, atol=tol * np.abs(y).max())


def test_logits_far_apart_and_no_key_at_all() -> None:
    """Weights that differ by e^1000 within one row and from row to row; rows that see nothing are zero."""
    q, k, v = inputs(150, 150)
    k[:, ::7] *= 60
    q[:, ::5] *= 60
    for causal, dtype in itertools.product((False, True), (np.float64, np.float32)):
        given = [x.astype(dtype) for x in (q, k, v)]
        tol = 1e-9 if dtype is np.float64 else 0.02  # float32 rounds logits of 10⁴ to 10⁻³
        got, expected = both(*given, groups=fitted(), window=20, causal=causal)
        np.testing.assert_allclose(got.output, expected.output, rtol=tol, atol=tol)
        nothing = rfk.attention(*given, groups=fitted(), mask=np.zeros(150, bool), causal=causal, full=True)
        assert np.all(nothing.log_normalizer == -np.inf)
        assert not nothing.output.any()
        assert not nothing.sign.any()


def test_what_it_leaves_to_the_specification() -> None:
    """Features in the groups, groups merged on the way, a state of another dtype: the same numbers."""
    q, k, v = inputs(80, 80)
    features = rfk.draw("positive", DIM, 8, rng=0, scale=1 / np.sqrt(DIM))
    assert_same(*both(q, k, v, groups=fitted(moving=False), features=features, window=20))
    assert_same(*both(q, k, v, features=features, heavy=np.array([0]), window=20, causal=True))
    early = rfk.attention(q, k, v, groups=fitted(), causal=True, window=20, full=True).state
    late = [x.astype(np.float32) for x in (q, k, v)]
    assert_same(*both(*late, groups=fitted(), causal=True, window=20, state=early), tol=1e-6)


def test_nan_that_is_let_pass_stays_in_bounds() -> None:
    q, k, v = inputs(100, 3000)
    k[0, 5] = np.nan
    with np.errstate(invalid="ignore"):
        got = rfk.attention(q, k, v, groups=8, heavy=2, window=20, check_finite=False)
    assert got.shape == (2, 100, WIDTH)
    with pytest.raises(ValueError, match="k must be finite"):
        rfk.attention(q, k, v, groups=8)


@pytest.mark.parametrize("causal", [False, True])
def test_working_memory(causal: bool) -> None:
    """Beyond the output: a label and a square for each key, and sums of as many blocks as the root of their number."""

    def peak(length: int) -> int:
        q, k, v = (np.zeros((1, length, 16), np.float32) for _ in range(3))
        groups = rfk.fit_groups(q[:, :50], k[:, :50], 16)
        rfk.attention(q, k, v, groups=groups, window=64, causal=causal)
        tracemalloc.start()
        try:
            rfk.attention(q, k, v, groups=groups, window=64, causal=causal, check_finite=False)
            return tracemalloc.get_traced_memory()[1] - 4 * 16 * length
        finally:
            tracemalloc.stop()

    assert peak(80_000) - peak(20_000) < 60_000 * 16


# Finding groups


def found(q: Any, k: Any, v: Any, count: int, mask: Any, steps: fitting.Steps) -> rfk.Groups:
    return fitting.found(q, k, v, count, 0.4, mask, fitting.received(q, k, 0.4, mask, steps), steps)


@pytest.mark.parametrize("shape", [(2,), (2, 3), ()])
@pytest.mark.parametrize("keys", [60, 300, 3000])
def test_steps_that_find_groups(shape: tuple[int, ...], keys: int) -> None:
    q, k, v = inputs(90, keys, batch=shape)
    rng = np.random.default_rng(2)
    for mask in (None, rng.random(keys) < 0.8, rng.random((*shape, keys)) < 0.8):
        for values in (None, v):
            got = found(q, k, values, 20, mask, FAST)
            expected = found(q, k, values, 20, mask, fitting.STEPS)
            for name, x, y in zip(got._fields, got, expected, strict=True):
                if y is None:
                    assert x is None, name
                else:
                    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-10, err_msg=name)


def test_fewer_different_keys_than_groups() -> None:
    """Small integers, so that distances are exactly zero where keys have run out; the first key may not be attended."""
    rng = np.random.default_rng(3)
    q = rng.choice([-1.0, 1.0], (2, 64, DIM))
    k = rng.choice([-2.0, 0.0, 1.0], (3, DIM))[np.arange(50) % 3] * np.ones((2, 1, 1))
    mask = np.arange(50) > 0
    got, expected = (found(q, k, None, 9, mask, steps) for steps in (FAST, fitting.STEPS))
    np.testing.assert_array_equal(got.centres, expected.centres)
    assert np.all(got.centres[:, 3:] == k[:, [1]])


def test_steps_in_float32_keep_the_dtype() -> None:
    q, k, v = inputs(90, 300, dtype=np.float32)
    mask = np.arange(300) % 3 > 0
    got, expected = (found(q, k, v, 9, mask, steps) for steps in (FAST, fitting.STEPS))
    for x, y in zip(got, expected, strict=True):
        assert x.dtype == y.dtype == np.float32
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_attention_that_keys_receive() -> None:
    q, k, _ = inputs(500, 700, batch=(3,))
    mask = np.random.default_rng(0).random((3, 700)) < 0.5
    mask[1] = False
    for seen, scale in itertools.product((None, mask), (0.4, 90.0)):
        got, expected = (fitting.received(q, k, scale, seen, steps) for steps in (FAST, fitting.STEPS))
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-15)
    few = [fitting.received(q[:, :3], k, 0.4, None, steps) for steps in (FAST, fitting.STEPS)]
    np.testing.assert_allclose(*few, rtol=1e-12)


def test_attention_that_many_keys_receive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for weights they are computed twice. Keys are attended more and more, tile after tile, and less."""
    q, k, _ = inputs(500, 700)
    k += np.concatenate([np.arange(400), np.arange(300)[::-1]])[:, None] / 10
    expected = fitting.received(q, k, 0.4, None, fitting.STEPS)
    for room in (group_steps._KEPT, 0):
        monkeypatch.setattr(group_steps, "_KEPT", room)
        np.testing.assert_allclose(fitting.received(q, k, 0.4, None, FAST), expected, rtol=1e-9, atol=1e-15)


def test_attention_where_all_dot_products_are_near_the_lowest_number() -> None:
    k = np.array([[1.3e19], [1.4e19]], np.float32)
    np.testing.assert_array_equal(fitting.received(-k, k, 1.0, None, FAST), [1, 0])


def test_values_for_keys_that_are_shared() -> None:
    """Centres are found once; only what values do within the groups is of each of them."""
    q, k, v = inputs(90, 300, batch=(3,), shared=())
    got, expected = (found(q.reshape(-1, DIM), k, np.stack([v, -v]), 9, None, steps) for steps in (FAST, fitting.STEPS))
    assert got.centres.shape == (9, DIM)
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_what_is_not_finite_is_found_on_threads(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(finite, "_BLOCK", 1000)
    given = dict(zip("qkv", inputs(300, 300, batch=(2, 3), dtype=np.float32), strict=True))
    given[name][1, 2, 299, -1] = np.inf
    turned = {key: np.asfortranarray(x) for key, x in given.items()}
    message = re.escape(f"{name} must be finite, but {name}[1, 2, 299, {given[name].shape[-1] - 1}] is inf")
    for arrays in (given, turned):
        with pytest.raises(ValueError, match=message):
            rfk.attention(**arrays, groups=4)


def test_the_heaviest_come_first_among_equals() -> None:
    mass = np.random.default_rng(0).integers(0, 5, (2, 3, 40)).astype(np.float32)
    for count in (1, 7, 39, 40, 50):
        expected = np.sort(np.argsort(-mass, -1, stable=True)[..., :count], -1)
        np.testing.assert_array_equal(fitting.heaviest(mass, None, count), expected)


@pytest.mark.parametrize("shared", [(1,), ()])
def test_values_of_heads_whose_keys_are_one(shared: tuple[int, ...]) -> None:
    q, k, v = inputs(100, 100, batch=(3,))
    assert_same(*both(q, k[0].reshape(*shared, *k.shape[1:]), v, groups=6, heavy=4), tol=1e-10)


def test_groups_and_heavy_keys_of_the_input_itself() -> None:
    """What attention finds by itself is what one finds and hands over."""
    q, k, v = inputs(400, 400, batch=(2, 4), shared=(2, 1))
    got = rfk.attention(q, k, v, groups=12, heavy=5, window=20)
    groups = rfk.fit_groups(q, k, 12, v=v)
    expected = rfk.attention(q, k, v, groups=groups, heavy=rfk.heavy_keys(q, k, 5), window=20, backend="numpy")
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)


def test_packed_groups_are_kept_as_long_as_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    pack = block_inputs._pack_groups
    monkeypatch.setattr(block_inputs, "_pack_groups", lambda *given: packed.append(1) or pack(*given))
    groups, arrays = fitted(), inputs(70, 70)
    gc.collect()
    before = len(block_inputs._packed)
    for _ in range(3):
        assert_same(*both(*arrays, groups=groups, window=20, causal=True))
    assert len(packed) == 1
    for name in ("centres", "metric", "spread", "cross", "scale"):
        changed = getattr(groups, name) * 1.5
        changed.setflags(write=False)
        other = groups._replace(**{name: changed})
        assert_same(*both(*arrays, groups=other, window=20, causal=True))
    assert len(packed) == 6
    assert len(block_inputs._packed) > before
    del other, changed
    gc.collect()
    assert len(block_inputs._packed) == before + 2  # those of two scales, with the same arrays
    assert weakref.getweakrefcount(groups.metric) == 2
    del groups
    gc.collect()
    assert len(block_inputs._packed) == before


def test_groups_that_may_change_are_packed_anew() -> None:
    arrays, groups = inputs(70, 70), fitted()
    assert not any(x.flags.writeable for x in groups)
    own = groups._replace(centres=groups.centres.copy())
    assert_same(*both(*arrays, groups=own, window=20, causal=True))
    own.centres[...] *= 0.5
    assert_same(*both(*arrays, groups=own, window=20, causal=True))


@pytest.mark.parametrize("heavy", [None, 2, [[0, 71], [69, 70]], [[0, 1], [5, 80]]])
@pytest.mark.parametrize("groups", [6, "given"])
def test_tokens_one_by_one(groups: Any, heavy: Any) -> None:
    """Across the ends of blocks, with heavy keys before, among and after the tokens, of which one may not be seen."""
    arrays, start = inputs(150, 150), 60
    given = fitted() if groups == "given" else groups
    options: dict[str, Any] = {"groups": given, "window": 20, "causal": True, "full": True}
    if heavy is not None:
        options["heavy"] = heavy if isinstance(heavy, int) else np.array(heavy)
    mask = np.arange(150) != 70
    whole = rfk.attention(*arrays, **options, mask=mask, backend="numpy")
    state = rfk.attention(*(x[:, :start] for x in arrays), **options, mask=mask[:start]).state
    for t in range(start, 150):
        held = [x for x in (*state.sums, *state[1:]) if x is not None]
        before = [np.array(x) for x in held]
        token = (x[:, t : t + 1] for x in arrays)
        step = rfk.attention(*token, **options, mask=mask[t : t + 1], state=state)
        np.testing.assert_allclose(step.output, whole.output[:, t : t + 1], rtol=1e-9, atol=1e-11, err_msg=f"{t}")
        for x, y in zip(before, held, strict=True):
            np.testing.assert_array_equal(x, y)
        state = step.state


def test_states_hold_memory_of_their_own() -> None:
    """Also where no new key is heavy, and after a step with more batch axes."""
    q, k, v = inputs(90, 90, batch=())
    options: dict[str, Any] = {"groups": 6, "window": 20, "causal": True, "full": True, "heavy": np.array([3, 500])}
    states = [rfk.attention(q, k, v, **options).state]
    for batch in ((), (2,)):
        token = (np.broadcast_to(x[:1], (*batch, 1, x.shape[-1])) for x in (q, k, v))
        states.append(rfk.attention(*token, **options, state=states[-1]).state)
    arrays = [[*x.sums, x.keys, x.values, x.mask, x.heavy_keys, x.heavy_values, x.heavy_mask] for x in states]
    for own, other in itertools.pairwise(arrays):
        assert not any(np.shares_memory(x, y) for x in own for y in other)
    assert all(x.flags.writeable for own in arrays for x in own)
