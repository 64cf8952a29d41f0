"""Causal passes as accelerators take them, many tiles at once, compared here with the core in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import rfkernels as rfk
from rfkernels.backends.jax import heads, schedule, tiles
from rfkernels.backends.jax.chunks import even_size
from rfkernels.backends.jax.schedule import Sizes

LENGTH, DIM, WIDTH, ROWS = 107, 5, 3, 6
SIZES = Sizes(16, 8, 4)
"""So that there are several stretches of several tiles, and a last one that is not full."""


@pytest.fixture(autouse=True)
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    jax.clear_caches()  # compiled passes of these shapes may be there, and have other sizes
    monkeypatch.setattr(heads, "CPU", SIZES)
    yield
    jax.clear_caches()


def arrays(batch: tuple[int, ...] = (2,), seed: int = 0, length: int = LENGTH) -> Any:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((*batch, length, n)) for n in (DIM, DIM, WIDTH))


def compare(given: Any, features: rfk.Features, dtype: Any = np.float64, **options: Any) -> None:
    options = {"causal": True, "full": True, **options}
    wanted = rfk.attention(*given, features, backend="numpy", **options)
    allowed = 1e-9 if dtype == np.float64 else 2e-4
    with oracle.precision("jax", dtype):
        for name in ("mask", "state"):
            if options.get(name) is not None:
                options[name] = jax.tree.map(jnp.asarray, options[name])
        found = rfk.attention(*(jnp.asarray(x, dtype) for x in given), features, **options)
    np.testing.assert_allclose(found.output, wanted.output, rtol=allowed, atol=allowed)
    np.testing.assert_allclose(found.log_normalizer, wanted.log_normalizer, rtol=allowed, atol=allowed)
    one, two = (x if isinstance(x, rfk.State) else x.state for x in (found.state, wanted.state))
    np.testing.assert_allclose(one.shift, two.shift, rtol=allowed, atol=allowed)
    np.testing.assert_allclose(one.kv, two.kv, rtol=allowed, atol=allowed)
    np.testing.assert_allclose(one.z, two.z, rtol=allowed, atol=allowed)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tiles were taken together, whenever some were."""
    counts: list[int] = []
    own = tiles.together

    def counted(carry: Any, rows: Any, features: Any) -> Any:
        counts.append(rows.k.shape[0])
        return own(carry, rows, features)

    monkeypatch.setattr(tiles, "together", counted)
    return counts


MAPS = ("positive", "hyperbolic", "trigonometric", "custom exponential", "relu", "softplus")


@pytest.mark.parametrize("name", MAPS)
def test_tiles_together_are_the_core(name: str, taken: list[int]) -> None:
    features = oracle.draw(name, DIM, ROWS, scale=0.3)
    compare(arrays(), features)
    assert set(taken) == {SIZES.tiles}


@pytest.mark.parametrize("name", ["positive", "relu"])
def test_masks_and_states(name: str) -> None:
    features, (q, k, v) = oracle.draw(name, DIM, ROWS, scale=0.3), arrays()
    mask = np.random.default_rng(1).random((2, LENGTH)) < 0.5
    mask[0, :30] = False  # nothing is seen for some tiles
    mask[1, :3] = False
    compare((q, k, v), features, mask=mask)
    state = rfk.write_state(rfk.empty_state(features, WIDTH, (2,), np.float64), q, v, features)
    compare((q, k, v), features, mask=mask, state=state)


@pytest.mark.parametrize("name", ["positive", "hyperbolic"])
def test_norms_that_jump(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = arrays()
    k[:, [0, 1, 40, 66]] *= 30  # the first seen have the lowest exponents
    k[:, 70:80] /= 30
    features = oracle.draw(name, DIM, ROWS, scale=1.0)
    compare((q, k, v), features)
    compare((q, k, v), features, np.float32)
    monkeypatch.setattr(tiles, "JUMP", 1e9)  # the guard is what does it
    jax.clear_caches()
    with pytest.raises(AssertionError):
        compare((q, k, v), features, np.float32)


def test_later_keys_leave_earlier_outputs_alone() -> None:
    q, k, v = (jnp.asarray(x, jnp.float32) for x in arrays())
    features = oracle.draw("positive", DIM, ROWS, scale=0.5)
    before = rfk.attention(q, k, v, features, causal=True)
    after = rfk.attention(q, k.at[:, 52:].multiply(1e3), v.at[:, 52:].set(7), features, causal=True)
    np.testing.assert_allclose(after[:, :52], before[:, :52], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["of each head", "grouped", "more queries", "fewer queries", "windowed", "one set"])
def test_what_a_pass_may_be_given(kind: str) -> None:
    q, k, v = arrays((2, 3))
    features, options = oracle.draw("positive", DIM, ROWS, scale=0.3), {}
    if kind == "of each head":
        features = oracle.draw("positive", DIM, ROWS, batch=(3,), scale=0.3)
    elif kind == "grouped":
        k, v = k[:, :1], v[:, :1]
    elif kind == "more queries":
        k, v = k[..., :60, :], v[..., :60, :]
    elif kind == "fewer queries":
        q = q[..., :50, :]
    elif kind == "windowed":
        options = {"window": 7}
    else:
        features, k, v = oracle.draw("positive", DIM, ROWS, batch=(3,), scale=0.3), k[0, 0], v[0, 0]
    compare((q, k, v), features, **options)


def loss(q: Any, k: Any, v: Any, features: rfk.Features) -> Any:
    return jnp.sum(jnp.square(rfk.attention(q, k, v, features, causal=True)))


def curvature(*given: Any) -> Any:
    return jax.grad(lambda *x: sum(jnp.sum(y**2) for y in jax.grad(loss, (0, 1, 2))(*x)), 1)(*given)


@pytest.mark.parametrize("jumps", [pytest.param(False, marks=pytest.mark.long), True])
def test_derivatives_are_those_of_one_tile_after_another(jumps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with oracle.precision("jax", np.float64):
        q, k, v = (jnp.asarray(x) for x in arrays(length=45))
        k = k.at[:, :2].multiply(30) if jumps else k
        features = jax.tree.map(jnp.asarray, oracle.draw("positive", DIM, ROWS, scale=0.5))
        found = []
        for sizes in (SIZES, SIZES._replace(tiles=1)):
            monkeypatch.setattr(heads, "CPU", sizes)
            jax.clear_caches()
            gradient = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(q, k, v, features)
            along = jax.tree.map(jnp.zeros_like, q), v[..., :1] + k, jax.tree.map(jnp.zeros_like, v), features
            tangent = jax.jit(lambda *x: jax.jvp(loss, x[:4], x[4:]))(q, k, v, features, *along)
            found.append([gradient, tangent])
            if not jumps:
                of_each = jax.vmap(jax.grad(lambda k: loss(q, k, v, features)))(jnp.stack([k, k / 2]))
                found[-1] += [of_each, curvature(q, k, v, features)]
    for one, two in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-7, atol=1e-9 * max(1, float(np.max(np.abs(two)))))


@pytest.mark.parametrize(
    ("length", "size"), [(0, 8), (1, 8), (8, 8), (9, 16), (32, 32), (33, 24), (64, 32), (65, 24), (107, 32)]
)
def test_stretches_are_even(length: int, size: int) -> None:
    assert even_size(length, 8, 4) == size


def test_sizes_keep_features_that_are_made_at_once_few() -> None:
    assert schedule.accelerator(8, 256) == Sizes(16384, 128, 64)
    assert schedule.accelerator(512, 256) == Sizes(256, 128, 2)
    assert schedule.accelerator(1, 16) == Sizes(65536, 128, 64)
    assert schedule.accelerator(10**6, 256) == Sizes(128, 128, 1)
