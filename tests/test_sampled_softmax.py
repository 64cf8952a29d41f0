"""Cross entropy from drawn items: what it is on average, exactly, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
from jax.test_util import check_grads

from rfkernels.integrations.sampled_softmax import sampled_softmax_loss

RNG = np.random.default_rng(7)
ITEMS, DIM = 9, 3
Q, Y, BIAS = (RNG.standard_normal(shape) for shape in ((2, 4, DIM), (ITEMS, DIM), (ITEMS,)))
T = RNG.integers(0, ITEMS, (2, 4))
P = RNG.dirichlet(np.ones(ITEMS))


@pytest.fixture(autouse=True)
def double() -> Any:
    with jax.enable_x64(True):
        yield


def full(queries: Any, items: Any, targets: Any, bias: Any = 0.0) -> Any:
    logits = queries @ items.T + bias
    return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]


def plainly(queries: Any, items: Any, targets: Any, negatives: Any, log_p: Any, bias: Any) -> np.ndarray:
    """Take the formula literally, query by query and draw by draw."""
    losses = np.empty(targets.shape)
    for at in np.ndindex(targets.shape):
        own, drawn = targets[at], negatives if negatives.ndim == 1 else negatives[at]
        probability = np.exp(np.broadcast_to(log_p, (*targets.shape, len(drawn)))[at])
        z = np.exp(queries[at] @ items[own] + bias[own])
        for j, p in zip(drawn, probability, strict=True):
            if j != own:
                z += np.exp(queries[at] @ items[j] + bias[j]) / (p * len(drawn))
        losses[at] = np.log(z) - queries[at] @ items[own] - bias[own]
    return losses


@pytest.mark.parametrize("shared", [False, True])
def test_formula(shared: bool) -> None:
    negatives = RNG.integers(0, ITEMS, (6,) if shared else (2, 4, 6))
    assert (negatives == T[..., None]).any()  # some hit the target
    loss = sampled_softmax_loss(Q, Y, T, negatives, log_probability=np.log(P)[negatives], bias=BIAS)
    expected = plainly(Q, Y, T, negatives, np.log(P)[negatives], BIAS)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert (np.asarray(loss) >= 0).all()
    without = sampled_softmax_loss(Q, Y, T, negatives, log_probability=np.log(P)[negatives])
    np.testing.assert_allclose(without, plainly(Q, Y, T, negatives, np.log(P)[negatives], 0 * BIAS), rtol=1e-12)


def test_all_items_once_are_the_softmax() -> None:
    def both(queries: Any, items: Any, bias: Any) -> Any:
        sampled = sampled_softmax_loss(
            queries, items, T, np.arange(ITEMS), log_probability=-np.log(ITEMS), bias=bias
        ).sum()
        return sampled, full(queries, items, T, bias).sum()

    arguments = tuple(map(jnp.asarray, (Q, Y, BIAS)))
    ours, theirs = both(*arguments)
    np.testing.assert_allclose(ours, theirs, rtol=1e-13)
    for one, other in zip(*jax.jit(jax.jacrev(both, (0, 1, 2)))(*arguments), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)


def expected(function: Any, count: int, probability: np.ndarray) -> Any:
    """Average over all sequences of draws: nothing is left to chance."""
    draws = np.array(list(itertools.product(range(len(probability)), repeat=count)))
    weight = np.prod(probability[draws], 1)
    values = jax.jit(jax.vmap(function))(jnp.asarray(draws))
    return np.tensordot(weight, np.asarray(values), 1)


def test_the_normalizer_is_unbiased() -> None:
    p, target = np.array([0.5, 0.2, 0.2, 0.1]), 1

    def ratio(drawn: Any) -> Any:
        return jnp.exp(sampled_softmax_loss(Q[0, 0], Y[:4], np.array(target), drawn, log_probability=jnp.log(p)[drawn]))

    for count in (1, 2, 5):
        exact = np.exp(full(Q[0, 0], Y[:4], np.array(target)))
        np.testing.assert_allclose(expected(ratio, count, p), exact, rtol=1e-12)


def test_bias_falls_as_one_over_n() -> None:
    """That of the loss is −Var / 2nZ² to first order; that of its gradient halves as well when n doubles."""
    p, target = np.array([0.3, 0.45, 0.25]), np.array(2)
    arguments = jnp.asarray(0.5 * Q[1, 2]), jnp.asarray(0.5 * Y[:3])

    def loss(arguments: Any, drawn: Any) -> Any:
        return sampled_softmax_loss(*arguments, target, drawn, log_probability=jnp.log(p)[drawn])

    exact = full(*arguments, target)
    weight = np.exp(np.asarray(arguments[1] @ arguments[0]))
    terms = np.where(np.arange(3) == 2, 0, weight / p)
    first = -(p @ terms**2 - (p @ terms) ** 2) / (2 * weight.sum() ** 2)
    biases = {n: expected(lambda drawn: loss(arguments, drawn), n, p) - float(exact) for n in (2, 4, 8)}
    assert [n * bias for n, bias in biases.items()] == pytest.approx(3 * [first], rel=0.05)
    true = jax.jit(jax.grad(lambda items: full(arguments[0], items, target)))(arguments[1])
    gradient = jax.grad(lambda items, drawn: loss((arguments[0], items), drawn))
    off = [
        np.linalg.norm(expected(lambda drawn: gradient(arguments[1], drawn), n, p) - np.asarray(true)) for n in (4, 8)
    ]
    assert off[0] > 1e-4
    assert 1.8 < off[0] / off[1] < 2.3


def test_draws_from_the_softmax_of_the_others_are_unbiased_from_one_on() -> None:
    queries, items, target = jnp.asarray(Q[0, 1]), jnp.asarray(Y[:5]), np.array(3)
    weight = np.exp(np.asarray(items @ queries)) * (np.arange(5) != 3)
    p = weight / weight.sum()

    def loss(items: Any, drawn: Any) -> Any:
        return sampled_softmax_loss(queries, items, target, drawn, log_probability=jnp.log(p)[drawn])

    others = np.array([0, 1, 2, 4])
    for j in others:
        assert float(loss(items, jnp.array([j]))) == pytest.approx(float(full(queries, items, target)), rel=1e-12)
    gradient = jax.jit(jax.grad(loss))
    mean = sum(p[j] * np.asarray(gradient(items, jnp.array([j]))) for j in others)
    true = jax.jit(jax.grad(lambda items: full(queries, items, target)))(items)
    np.testing.assert_allclose(mean, true, rtol=1e-11, atol=1e-14)


def test_transformations() -> None:
    negatives = RNG.integers(0, ITEMS, (2, 4, 6))
    log_p = jnp.log(P)[negatives]

    def loss(queries: Any, items: Any, targets: Any, negatives: Any, log_p: Any) -> Any:
        return sampled_softmax_loss(queries, items, targets, negatives, log_probability=log_p, bias=jnp.asarray(BIAS))

    whole = loss(Q, Y, T, negatives, log_p)
    np.testing.assert_allclose(jax.jit(loss)(Q, Y, T, negatives, log_p), whole, rtol=1e-13)
    axes = (0, None, 0, 0, 0)
    mapped = jax.jit(jax.vmap(jax.vmap(loss, axes), axes))
    np.testing.assert_allclose(mapped(Q, Y, T, negatives, log_p), whole, rtol=1e-13)
    check_grads(jax.jit(lambda q, y: loss(q, y, T, negatives, log_p)), (jnp.asarray(Q), jnp.asarray(Y)), order=2)
    constant = jax.jit(jax.grad(lambda log_p: loss(Q, Y, T, negatives, log_p).sum()))(log_p)
    assert not np.asarray(constant).any()


def test_extremes() -> None:
    queries, items = jnp.ones((1, 1)), jnp.array([[-1e300], [0.0], [60.0], [1e300]])

    @jax.jit
    @jax.value_and_grad
    def loss(items: Any, target: Any, drawn: Any) -> Any:
        return sampled_softmax_loss(queries, items, target, drawn, log_probability=-np.log(4))[0]

    cases = ((1, [3, 0, 3]), (2, [1, 1, 1]), (3, [0, 1, 2]), (2, [2, 2, 2]))
    found = [loss(items, np.array([target]), np.array(negatives)) for target, negatives in cases]
    assert float(found[0][0]) == 1e300
    assert float(found[1][0]) == pytest.approx(4 * np.exp(-60), rel=1e-12, abs=0)  # below the rounding of a logit
    assert float(found[2][0]) == 0
    assert float(found[3][0]) == 0  # nothing but hits
    assert all(np.isfinite(gradient).all() for _, gradient in found)
    assert not np.asarray(found[3][1]).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes(dtype: str) -> None:
    queries, items = (jnp.asarray(x, dtype) for x in (Q, Y))
    negatives = np.arange(ITEMS, dtype=np.uint8)
    loss = sampled_softmax_loss(queries, items, T.astype(np.int16), negatives, log_probability=-np.log(ITEMS))
    assert loss.dtype == ("float64" if dtype == "float64" else "float32")
    exact = full(np.asarray(queries, np.float64), np.asarray(items, np.float64), T)
    np.testing.assert_allclose(loss, exact, rtol=1e-12 if dtype == "float64" else 1e-5)

    def total(queries: Any) -> Any:
        return sampled_softmax_loss(queries, items, T, negatives, log_probability=-np.log(ITEMS)).sum()

    assert jax.jit(jax.grad(total))(queries).dtype == dtype


GOOD: dict[str, Any] = {
    "queries": Q[0],
    "items": Y,
    "targets": T[0],
    "negatives": np.array([0, 1]),
    "log_probability": np.log([0.5, 0.5]),
    "bias": BIAS,
}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"queries": [[1.0]]}, TypeError, "queries must be a numpy.ndarray or jax.Array, got list"),
        ({"items": np.ones((ITEMS, DIM), int)}, TypeError, "items must have one of the dtypes"),
        ({"items": np.ones((1, ITEMS, DIM))}, ValueError, r"items must have shape \(items, dim\) .* got \(1, 9, 3\)"),
        ({"items": np.ones((0, DIM))}, ValueError, "at least one item"),
        ({"queries": np.ones((4, 2))}, ValueError, r"queries and items must agree in dim, got shapes \(4, 2\)"),
        ({"bias": np.ones(4)}, ValueError, r"bias must have shape \(9,\), one number for each item, got \(4,\)"),
        ({"targets": [1, 2, 3, 4]}, TypeError, "targets must be an array of integers, got list"),
        ({"targets": np.ones(4)}, TypeError, "targets must be of an integer dtype, got float64"),
        ({"targets": np.array([0, 1])}, ValueError, r"targets must have shape \(4,\), one for each query, got \(2,\)"),
        ({"targets": np.array([0, 1, 9, 2])}, ValueError, r"targets must be .* 0 to 8, but targets\[2\] is 9"),
        ({"negatives": np.array([0, -1])}, ValueError, r"negatives must be .* but negatives\[1\] is -1"),
        ({"negatives": np.ones((2, 2), int)}, ValueError, r"negatives must have shape \(4, n\) or \(n,\).*got \(2, 2\)"),
        ({"negatives": np.ones(0, int)}, ValueError, r"with n at least 1, got \(0,\)"),
        ({"negatives": np.ones((4, 0), int)}, ValueError, r"with n at least 1, got \(4, 0\)"),
        ({"negatives": np.array(1)}, ValueError, r"with n at least 1, got \(\)"),
        ({"log_probability": np.zeros(3)}, ValueError, r"must broadcast to \(4, 2\), got shape \(3,\)"),
        ({"log_probability": np.zeros((5, 4, 2))}, ValueError, r"must broadcast to \(4, 2\), got shape \(5, 4, 2\)"),
        ({"log_probability": np.array([-1.0, 0.7])}, ValueError, r"at most 0, but log_probability\[1\] is 0.7"),
        ({"log_probability": None}, TypeError, "log_probability must be real numbers, got NoneType"),
        ({"log_probability": float("nan")}, ValueError, "log_probability must be finite, but log_probability is nan"),
        ({"log_probability": 0.7}, ValueError, "at most 0, but log_probability is 0.7"),
        ({"log_probability": np.ma.masked_less([-1.0, -2.0], -1.5)}, TypeError, "log_probability must be a plain array"),
        ({"negatives": np.ma.masked_equal([0, 1], 1)}, TypeError, "negatives must be a plain array, got MaskedArray"),
        ({"targets": np.ma.masked_equal([0, 1, 2, 3], 1)}, TypeError, "targets must be a plain array"),
        ({"check_finite": "no"}, TypeError, "check_finite must be True or False, got 'no'"),
        ({"queries": np.full((4, DIM), np.nan)}, ValueError, r"queries must be finite, but queries\[0, 0\] is nan"),
        ({"bias": np.full(ITEMS, np.nan)}, ValueError, r"bias must be finite, but bias\[0\] is nan"),
        ({"log_probability": np.nan}, ValueError, "log_probability must be finite, but log_probability is nan"),
        ({"log_probability": np.array([-1.0, -np.inf])}, ValueError, r"log_probability\[1\] is -inf"),
    ],
)  # fmt: skip
def test_refusals(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    assert np.isfinite(sampled_softmax_loss(**GOOD)).all()
    with pytest.raises(error, match=message):
        sampled_softmax_loss(**{**GOOD, **changed})


def test_what_jit_cannot_refuse_is_nan() -> None:
    compiled = jax.jit(lambda given: sampled_softmax_loss(**given))
    assert np.isfinite(compiled(GOOD)).all()
    for wrong in (-1, ITEMS):
        assert np.isnan(compiled({**GOOD, "negatives": np.array([0, wrong])})).all()
        loss = compiled({**GOOD, "targets": np.array([0, 1, wrong, 2])})
        assert np.isnan(loss).tolist() == [False, False, True, False]
    with jax.enable_x64(True):
        loss = compiled({**GOOD, "targets": np.array([0, 1, 2**32 + 2, 2])})
    assert np.isnan(loss).tolist() == [False, False, True, False]
    passed = sampled_softmax_loss(**{**GOOD, "queries": np.full((4, DIM), np.nan)}, check_finite=False)
    assert np.isnan(passed).all()
