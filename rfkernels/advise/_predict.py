"""The error to expect of positive features, in closed form, for a few queries.

The delta method of `rfkernels.variance.attention_error`, for what that has no room for: fitted parameters, and keys
near a query that are exact. With weights A, output o and cross moments M_ij of one draw, the mean square error is
Σ_ij A_i A_j (M_ij − 1) (v_i − o)·(v_j − o) / draws over the keys i, j that are estimated. Rows of different draws
are taken to be independent; those that are orthogonal err less, above all in few dimensions.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels.advise._problem import Problem, head_arrays, in_units, root_scale, seen_at
from rfkernels.features import Side
from rfkernels.fitting import Choice

_PAIRS, _MOST = 1 << 20, 4

IN_RANGE = 0.3
"""Above it the delta method overestimates without limit."""


class Law(NamedTuple):
    """What one draw of rows estimates: z = x + y in the axes of the rows, and ρ = 2 · variance − 1 along each."""

    x: Any
    y: Any
    rho: Any
    antithetic: bool


def predicted_rows(problem: Problem, rows: Any) -> Any:
    """Return the few of the measured queries that are predicted; none where keys are too many."""
    some = min(_MOST, _PAIRS // problem.sizes[1] ** 2, len(rows))
    return rows[np.linspace(0, len(rows) - 1, some).round().astype(int)]


def predict(problem: Problem, rows: Any, choice: Choice | None, windows: tuple[int | None, ...]) -> Any:
    """Return relative errors of one draw, (windows, heads)."""
    found = np.empty((len(windows), math.prod(problem.batch)))
    keys, root = problem.sizes[1], root_scale(problem)
    for column, head in enumerate(np.ndindex(*problem.batch)):
        q, k, v = head_arrays(problem, head)
        v = in_units(v)
        law = _law(problem, q[rows], k, choice, head)
        squares, size = np.zeros(len(windows)), 0.0
        for i, position in enumerate(seen_at(problem, rows)):
            seen = np.arange(keys) <= (position if problem.causal else keys)
            weights = _softmax(np.where(seen, root**2 * (k @ q[rows[i]]), -np.inf))
            out = weights @ v
            size += float(out @ out)
            apart = np.abs(np.arange(keys) - position)
            far = [weights * (apart >= (0 if w is None else w)) for w in windows]
            squares += _squares(law, i, far, v - out)
        with np.errstate(divide="ignore", over="ignore"):
            found[:, column] = np.sqrt(squares / size) if size > 0 else np.inf
    return found


def _softmax(logits: Any) -> Any:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _law(problem: Problem, q: Any, k: Any, choice: Choice | None, head: tuple[int, ...]) -> Law:
    if choice is None:
        root = root_scale(problem)
        return Law(root * q, root * k, np.ones(q.shape[-1]), antithetic=False)

    def own(x: Any, axes: int) -> Any:
        return np.broadcast_to(x, (*problem.batch, *x.shape[x.ndim - axes :]))[head]

    def sent(x: Any, side: Side) -> Any:
        return (x - own(side.centre, 1)) @ own(side.matrix, 2).T

    axes, sigma, _ = np.linalg.svd(own(choice.proposal.root, 2))
    return Law(sent(q, choice.query) @ axes, sent(k, choice.key) @ axes, 2 * sigma**2 - 1, antithetic=True)


def _squares(law: Law, query: int, far: list[Any], apart: Any) -> Any:
    """Return squared errors of one query for each set of weights of the keys that are estimated."""
    z, inverse = law.x[query] + law.y, 1 / law.rho
    volume = float(np.sum(np.log((1 + law.rho) ** 2 / (4 * law.rho))) / 2)
    own = volume / 2 + z * z @ ((inverse - 1) / 4)
    outer, gram = own[:, None] + own, (z * ((inverse + 1) / 2)) @ z.T
    exponents = [outer + gram, outer - gram] if law.antithetic else [outer + gram]
    with np.errstate(over="ignore"):
        excess = np.minimum(np.mean([np.expm1(e) for e in exponents], 0), np.finfo(float).max)
        products = [(w[:, None] * apart) for w in far]
        return np.array([max(float(np.sum(p * _times(excess, p))), 0.0) for p in products])


def _times(excess: Any, p: Any) -> Any:
    """Return the product, of rows and columns that count alone: what is infinite elsewhere must not touch it."""
    live = np.flatnonzero(np.any(p != 0, -1))
    product = np.zeros_like(p)
    with np.errstate(over="ignore", invalid="ignore"):
        some = excess[np.ix_(live, live)] @ p[live]
        product[live] = np.where(np.isnan(some), np.inf, some)
    return product
