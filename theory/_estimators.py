"""Every estimator of the library, as what makes feature columns of queries and keys from a count and a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import rfkernels as rfk
from rfkernels import materialized, variance
from theory._cubature import Array

DIM = 16
"""The width of queries and keys."""

Phi = tuple[Array, Array]
Estimator = Callable[[Array, Array, int, int], Phi]


def _of_features(features: rfk.Features, q: Array, k: Array) -> Phi:
    return rfk.transform(q, features, side="query"), rfk.transform(k, features, side="key")


def drawn(feature_map: str, sampler: Any, q: Array, k: Array, count: int, seed: int) -> Phi:
    """Draw features without looking at data."""
    return _of_features(rfk.draw(feature_map, DIM, count, sampler=sampler, rng=seed), q, k)


def proposed(sampler: Any, q: Array, k: Array, count: int, seed: int) -> Phi:
    """Draw positive features from the isotropic proposal that suits the data (FAVOR++)."""
    proposal = variance.optimal_proposal(q, k, scale=1 / math.sqrt(DIM))
    return _of_features(rfk.draw("positive", DIM, count, sampler=sampler, proposal=proposal, rng=seed), q, k)


def fitted(method: str, sampler: Any, q: Array, k: Array, count: int, seed: int) -> Phi:
    """Fit features to the data."""
    return _of_features(rfk.fit(q, k, count, method=method, sampler=sampler, rng=seed), q, k)


def computed(draw: Callable[[Array, Array, int, int], Any], q: Array, k: Array, count: int, seed: int) -> Phi:
    """Compute the columns of materialized features."""
    features = draw(q, k, count, seed)
    return materialized.transform(q, features, side="query"), materialized.transform(k, features, side="key")


def _poisson(q: Array, k: Array, count: int, seed: int) -> Any:
    return materialized.draw_poisson(DIM, count, rate=materialized.optimal_rate(q, k[: len(q)]), rng=seed)


def _geometric(q: Array, k: Array, count: int, seed: int) -> Any:
    probability = materialized.optimal_probability(q[:64], k[:64])
    return materialized.draw_geometric(DIM, count, probability=probability, rng=seed)


def _maclaurin(q: Array, k: Array, count: int, seed: int) -> Any:
    return materialized.draw_maclaurin(DIM, count, rate=materialized.optimal_degree(q, k[: len(q)]), rng=seed)


def _hybrid(q: Array, k: Array, count: int, seed: int) -> Any:
    return materialized.draw_angular_hybrid(DIM, count, directions=7, rng=seed)


def _taylor(q: Array, k: Array, count: int, seed: int) -> Any:
    return materialized.taylor(DIM, 2)


PAPER: dict[str, Estimator] = {
    "trigonometric, iid": partial(drawn, "trigonometric", "iid"),
    "trigonometric, orthogonal": partial(drawn, "trigonometric", "orthogonal"),
    "positive, iid": partial(drawn, "positive", "iid"),
    "positive, orthogonal": partial(drawn, "positive", "orthogonal"),
}
"""The estimators of figure 4 of Performers."""

OURS: dict[str, Estimator] = {
    "FAVOR++, antithetic": partial(proposed, "antithetic"),
    "affine, antithetic": partial(fitted, "affine", "antithetic"),
}
"""Those that the check adds: an isotropic proposal, and the affine-Gaussian optimum."""

EVERY: dict[str, Estimator] = {
    **PAPER,
    "positive, simplex": partial(drawn, "positive", "simplex"),
    "positive, antithetic": partial(drawn, "positive", "antithetic"),
    "positive, stratified": partial(drawn, "positive", "stratified"),
    "positive, paired": partial(drawn, "positive", "paired"),
    "positive, hadamard": partial(drawn, "positive", "hadamard"),
    "positive, sobol": partial(drawn, "positive", "sobol"),
    "positive, halton": partial(drawn, "positive", "halton"),
    "positive, regularized": partial(drawn, "positive", "regularized"),
    "hyperbolic, iid": partial(drawn, "hyperbolic", "iid"),
    "hyperbolic, orthogonal": partial(drawn, "hyperbolic", "orthogonal"),
    "hyperbolic, simplex": partial(drawn, "hyperbolic", "simplex"),
    "FAVOR++, orthogonal": partial(proposed, "orthogonal"),
    "FAVOR++, simplex": partial(proposed, "simplex"),
    **{f"{m}, antithetic": partial(fitted, m, "antithetic") for m in ("symmetric", "asymmetric", "balanced")},
    **{f"{m}, antithetic": partial(fitted, m, "antithetic") for m in ("centred", "centred_isotropic", "tilted")},
    "affine, simplex": partial(fitted, "affine", "simplex"),
    **OURS,
    "Poisson": partial(computed, _poisson),
    "geometric": partial(computed, _geometric),
    "Maclaurin": partial(computed, _maclaurin),
    "angular hybrid, 7 directions": partial(computed, _hybrid),
    "Taylor of degree 2 (153 columns, biased)": partial(computed, _taylor),
}
"""All that the library has."""
