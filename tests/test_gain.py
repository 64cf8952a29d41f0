"""The predicted gain of fitting is the mean of the closed form, which is evaluated here by itself, pair by pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rfkernels import fitting


def samples(seed: int = 0, shape: tuple[int, ...] = (2, 24, 3)) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((shape[-1], shape[-1]))
    return rng.standard_normal(shape) @ root + 0.5, rng.standard_normal((*shape[:-2], 20, shape[-1])) - 0.3


def log_moment(features: Any, x: Any, y: Any, scale: float, rows: Any) -> Any:
    """Log E (estimate / kernel)² of one row, from the rows' normal distribution: a Gaussian integral, by its matrices."""
    root = features.proposal.root
    u, t = x, y
    if features.query.centre is not None:
        u, t = x - features.query.centre, y - features.key.centre
    u, t = (
        math.sqrt(scale) * points if side.matrix is None else points @ side.matrix.T
        for side, points in ((features.query, u), (features.key, t))
    )
    precision = np.linalg.inv(root @ root.T)  # of the proposal q; p² / q has the precision 2 I − P
    both, dim = u + t, root.shape[0]
    inner = np.linalg.inv(2 * np.eye(dim) - precision)
    log = 2 * both @ inner @ both - both @ both
    return log + np.linalg.slogdet(inner)[1] / 2 - np.linalg.slogdet(precision)[1] / 2


@pytest.mark.parametrize("method", fitting.methods())
def test_the_gain_is_the_mean_of_the_closed_form(method: str) -> None:
    q, k = samples()
    scale = 0.4
    found = fitting.gain(q, k, methods=(method,), scale=scale)
    assert found.methods == ("unfitted", method)
    for head in range(2):
        x, y = q[head], k[head]
        if method == "tilted":
            chosen = fitting.choices.decide(x, y, method=method, scale=scale, prior=10.0)
        else:
            chosen = fitting.choose(fitting.moments(x), fitting.moments(y), method=method, scale=scale)
        logs = np.array([[log_moment(chosen, a, b, scale, None) for b in y] for a in x])
        plain = np.array([[scale * np.sum((a + b) ** 2) for b in y] for a in x])
        weight = np.exp(scale * x @ y.T)
        weight = weight / weight.sum(1, keepdims=True)
        for row, values in enumerate((plain, logs)):
            np.testing.assert_allclose(found.pairs[row, head], values.mean(), rtol=1e-9)
            np.testing.assert_allclose(found.attended[row, head], (weight * values).sum() / len(x), rtol=1e-9)
    np.testing.assert_allclose(found.columns[1], np.exp(found.attended[0] - found.attended[1]))


def test_all_methods_and_their_table() -> None:
    q, k = samples()
    found = fitting.gain(q, k)
    assert set(found.methods) == {"unfitted", *fitting.methods()}
    assert found.pairs.shape == found.attended.shape == (1 + len(fitting.methods()), 2)
    assert np.all(found.pairs.argmin(0) == found.methods.index("affine"))
    assert np.all(found.attended.argmin(0) == found.methods.index("tilted"))
    lines = str(found).splitlines()
    assert lines[0].endswith("2 heads")
    assert [line.split()[0] for line in lines[2:]] == list(found.methods)
    assert lines[2].split()[1:] == [f"{x.mean():.2f}" for x in (found.pairs[0], found.attended[0])] + ["1"]


def test_on_other_samples() -> None:
    """Choices come of the samples, and means are those of the others."""
    q, k = samples()
    other = samples(5)
    found = fitting.gain(q, k, methods=("affine",), on=other)
    own = fitting.gain(*other, methods=("affine",))
    np.testing.assert_array_equal(found.pairs[0], own.pairs[0])
    assert np.all(found.pairs[1] > own.pairs[1])


def test_shared_keys_and_many_vectors() -> None:
    """Queries of a group are pooled, and long samples thinned."""
    q, k = samples(1, (2, 3, 200, 2))
    keys = k[:, :1]
    found = fitting.gain(q, keys, methods=("affine",))
    assert found.pairs.shape == (2, 2, 1)
    pooled = q.reshape(2, 600, 2)
    thin = pooled[:, np.linspace(0, 599, 64).round().astype(int)]
    expected = np.mean(np.sum((thin[:, :, None] + keys) ** 2, -1) / math.sqrt(2), (1, 2))
    np.testing.assert_allclose(found.pairs[0, :, 0], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("best",)}, "methods must be a tuple of names"),
        ({"scale": -1.0}, "scale must be a positive finite number"),
        ({"on": (np.ones((3, 4, 3)), np.ones((3, 4, 3)))}, "on must have the batch axes and dim of k"),
        ({"q": np.ones((2, 0, 3))}, "q must hold at least one vector"),
        ({"k": np.full((2, 4, 3), np.nan)}, "k must be finite"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    q, k = samples()
    arguments: dict[str, Any] = {"q": q, "k": k, "methods": ("affine",), **change}
    with pytest.raises(ValueError, match=message):
        fitting.gain(**arguments)


def test_methods_are_names_that_are_known() -> None:
    q, k = np.random.default_rng(0).standard_normal((2, 2, 64, 4))
    for methods in ("affine", ("foo",)):
        with pytest.raises(ValueError, match=r"methods must be a tuple of names, each of affine.*tilted"):
            fitting.gain(q, k, methods=methods)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on must be queries and keys, got 1"):
        fitting.gain(q, k, on=(q,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="on must be a tuple of queries and keys, got int"):
        fitting.gain(q, k, on=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"keys of on must be a numpy.ndarray or jax.Array, got int"):
        fitting.gain(q, k, on=(q, 1))
    with pytest.raises(ValueError, match=r"methods must be a tuple of names, .*; got 5"):
        fitting.gain(q, k, methods=5)  # type: ignore[arg-type]
