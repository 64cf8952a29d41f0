"""Mean and variance of what one projection row estimates, integrated and not sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rfkernels import maps, proposals
from rfkernels._checks import check_scale, is_number
from rfkernels.features import Features, Side
from rfkernels.maps import FeatureMap
from rfkernels.proposals import Gaussian
from rfkernels.testing.binding import Rows, bind, inner_points, rows_of, with_rows
from rfkernels.testing.grids import Array, Grid, hermite, plane, polar, strips

ROUNDING = 256 * float(np.finfo(np.float64).eps)
"""Relative error that a row's estimate may have from rounding of w·x and w·y: generous, as these are short sums."""

_SETTLED = 2
"""How many times as much as on the grid before may be allowed: what grows with the grid would allow anything."""

_LARGEST_DIM = 3

_HERMITE = 32, 48, 96, 128
"""Nodes of Hermite grids; a proposal of 1.75 times the width needs the last two."""

_POLAR = (12, 32, 11.0), (20, 44, 12.0), (32, 72, 13.0), (56, 128, 16.0)
"""Sizes of polar grids; bounded and polynomial maps of points of norm one need the first two."""


class QuadratureError(ArithmeticError):
    """Grids of different sizes disagree, so that nothing can be said of the map: neither that it passes nor fails."""


class Integral(NamedTuple):
    """Integrals for a batch of pairs.

    Parameters
    ----------
    value : array, shape (*batch)
        The integrals, on whose value two grids of different sizes agree.
    allowed : array, shape (*batch)
        Deviations that the relative tolerance asked for and rounding explain.
    """

    value: Any
    allowed: Any


def check_tolerance(rtol: float) -> None:
    """Require a relative tolerance that something can be held to."""
    if not (is_number(rtol) and rtol >= 0):
        raise ValueError(f"rtol must be a finite number of at least 0, got {rtol!r}")


def mean(
    features: str | FeatureMap | Features,
    x: Any,
    y: Any,
    *,
    scale: float | None = None,
    proposal: Gaussian | None = None,
    kinks: Sequence[float] | None = None,
    rtol: float = 1e-9,
) -> Integral:
    """Integrate what a row estimates, E φ(x)·φ(y), pair by pair.

    Two grids of different sizes have to agree to a quarter of what is allowed, or else a larger one with the second,
    and on what rounding comes to. That is strong evidence, though no proof: a spike between all nodes goes unseen.

    Parameters
    ----------
    features : str, FeatureMap or Features
        A map; or features, of which the affine preprocessing and a constant log-weight are kept and the rows replaced.
    x, y : array, shape (*batch, dim)
        Points of the query and the key side; batch axes broadcast.
    scale : float, optional
        Multiplies x·y, for a map; 1 by default. Features have theirs.
    proposal : proposals.Gaussian, optional
        Distribution of the rows of an exponential map, in at most three dimensions, where the grid has to span them.
    kinks : sequence of float, optional
        Values of u where an activation is not smooth. By default none for exponential maps, and zero for others.
    rtol : float, default 1e-9
        Allowed deviation, relative to E |φ(x)·φ(y)| of one row.

    Returns
    -------
    Integral

    Raises
    ------
    QuadratureError
        If the grids disagree: norms are too large, or activations have kinks that were not named.
    ValueError
        If the rows' distribution is one that cannot be integrated: a map with `radii`, log-weights that differ; or
        kinks are not finite, or `rtol` is no finite number of at least 0.
    """
    check_tolerance(rtol)

    def evaluate(bound: Features, weights: Array, x: Array, y: Array) -> tuple[float, float]:
        rows = rows_of(bound, x, y)
        found = rows.estimates
        size = float(weights @ np.abs(found))
        if size == 0 and bound.map.exponential:  # features that vanish in all rows have underflowed
            return np.nan, np.nan
        return float(weights @ found), rtol * size + ROUNDING * _magnitude(rows, weights, 2)

    return _integrate(evaluate, features, x, y, scale, proposal, kinks)


def variance(
    features: str | FeatureMap | Features,
    x: Any,
    y: Any,
    *,
    scale: float | None = None,
    proposal: Gaussian | None = None,
    kinks: Sequence[float] | None = None,
    rtol: float = 1e-6,
) -> Integral:
    """Integrate the variance of what a single row estimates, pair by pair.

    Parameters
    ----------
    features, x, y, scale, proposal, kinks
        As in `mean`.
    rtol : float, default 1e-6
        Allowed deviation, relative to the variance.

    Returns
    -------
    Integral

    Raises
    ------
    QuadratureError, ValueError
        As `mean`.
    """
    check_tolerance(rtol)

    def evaluate(bound: Features, weights: Array, x: Array, y: Array) -> tuple[float, float]:
        rows = rows_of(bound, x, y)
        found = rows.estimates
        value = float(weights @ (found - weights @ found) ** 2)
        size = _magnitude(rows, weights, 4)
        error = ROUNDING * (float(np.sqrt(weights @ found**2)) + size)  # of a standard deviation
        jumps = ROUNDING * size**2  # they move with w·x and w·y
        return value, rtol * value + 2 * error * float(np.sqrt(value)) + error**2 + jumps

    return _integrate(evaluate, features, x, y, scale, proposal, kinks)


def _magnitude(rows: Rows, weights: Array, power: int) -> float:
    """(E |φ(x)|ᵖ E |φ(y)|ᵖ)^(1/p), to which rounding is relative where factors are larger than their product.

    That is so of ReLU near opposed points. By Cauchy and Schwarz it bounds the root of the mean p/2-th power of the
    product, and each factor is rounded by itself.
    """
    one, other = (float(np.sum(weights * norm**power)) for norm in rows.norms)
    return float((one * other) ** (1 / power))


def _integrate(
    evaluate: Callable[[Features, Array, Array, Array], tuple[float, float]],
    features: str | FeatureMap | Features,
    x: Any,
    y: Any,
    scale: float | None,
    proposal: Gaussian | None,
    kinks: Sequence[float] | None,
) -> Integral:
    """Evaluate on grids of growing size, pair by pair, until two agree."""
    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    subject = _subject(features, scale, x.shape[-1])
    if proposal is not None:
        _check_proposal(features, proposal, x.shape[-1])
    if kinks is not None and not np.all(np.isfinite(kinks)):
        raise ValueError(f"kinks must be finite numbers, got {kinks!r}")
    value, allowed = np.empty(x.shape[:-1]), np.empty(x.shape[:-1])
    for index in np.ndindex(value.shape):
        disagree, before = [], 0.0
        for rows, weights, log_weight in _rows(subject, x[index], y[index], proposal, kinks):
            bound = with_rows(subject, rows, log_weight)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not agreed upon
                value[index], allowed[index] = evaluate(bound, weights, x[index], y[index])
                disagree.append(float(value[index]))
                settled = len(disagree) > 1 and allowed[index] <= _SETTLED * before
                if settled and abs(disagree[-1] - disagree[-2]) <= allowed[index] / 4:
                    break
                before = float(allowed[index])
        else:
            raise QuadratureError(_no_agreement(subject.map, x[index], y[index], disagree, kinks))
    return Integral(value, allowed)


def features_of(features: str | FeatureMap | Features, scale: float | None, dim: int) -> Features:
    """Return the features given, or those of a map with a row of zeros."""
    check_scale(scale)
    if not isinstance(features, Features):
        return bind(features, np.zeros((1, dim)), scale=1.0 if scale is None else scale)
    if scale is not None:
        raise ValueError("scale is that of the features and must be left out where they are given")
    if features.batch:
        raise ValueError(f"features must have no batch axes, got {features.batch}")
    if features.dim != dim:
        raise ValueError(f"features are of dim {features.dim}, but x and y of {dim}")
    return features


def _subject(features: str | FeatureMap | Features, scale: float | None, dim: int) -> Features:
    """Features that are integrated over their rows, with a single row of their own."""
    features = features_of(features, scale, dim)
    if not np.all(features.log_weight == features.log_weight[0]):
        raise ValueError("the rows of features come from a proposal: pass the map and proposal= to integrate over it")
    if features.map.radii is not None:
        raise ValueError("a map that has radii cannot be integrated over them; use assert_unbiased_by_sampling")
    query, key = (
        Side(*(None if a is None else np.asarray(a, np.float64) for a in side))
        for side in (features.query, features.key)
    )
    arrays = np.asarray(features.log_weight, np.float64)[:1], np.asarray(features.scale, np.float64)
    return dataclasses.replace(features, log_weight=arrays[0], query=query, key=key, scale=arrays[1])


def _check_proposal(features: str | FeatureMap | Features, proposal: Gaussian, dim: int) -> None:
    if isinstance(features, Features) or not maps.resolve(features).exponential:
        raise ValueError("proposal needs an exponential map, not features, whose rows are drawn already")
    if not isinstance(proposal, Gaussian):
        raise TypeError(f"proposal must be a proposals.Gaussian to be integrated, got {type(proposal).__name__}")
    proposals.check_proposal(proposal, dim)
    if dim > _LARGEST_DIM:
        raise ValueError(f"under a proposal points have at most {_LARGEST_DIM} dimensions, got {dim}")


def _rows(
    subject: Features, x: Array, y: Array, proposal: Gaussian | None, kinks: Sequence[float] | None
) -> Iterator[tuple[Array, Array, Array]]:
    """Rows, weights and log-weights of grids, from the smallest to the largest."""
    if proposal is not None:
        for nodes in _HERMITE:
            grid = hermite(nodes, len(x))
            drawn, log_weight = proposals.propose(np, proposal, grid.rows, np.zeros)
            yield drawn, grid.weights, log_weight
        return
    u, v = inner_points(subject, x, y)
    basis = plane(u, v)
    for grid in _grids(subject.map, basis @ u, basis @ v, kinks):
        yield grid.rows @ basis, grid.weights, np.zeros(len(grid.rows))


def _grids(feature_map: FeatureMap, u: Array, v: Array, kinks: Sequence[float] | None) -> Iterator[Grid]:
    if kinks is None and feature_map.exponential:
        yield from (hermite(nodes) for nodes in _HERMITE)
    elif not np.any(np.asarray(() if kinks is None else kinks)):
        yield from (polar(u, v, *sizes) for sizes in _POLAR)
    else:
        yield from (strips(u, v, kinks or (), *sizes) for sizes in ((24, 11.0), (32, 12.0), (56, 16.0)))


def _no_agreement(
    feature_map: FeatureMap, x: Array, y: Array, found: list[float], kinks: Sequence[float] | None
) -> str:
    named = "0" if kinks is None else ", ".join(f"{kink:g}" for kink in kinks) or "0"
    cause = (
        "the norms are too large for it, or its activations are not smooth (see kinks=)"
        if kinks is None and feature_map.exponential
        else f"the norms are too large, or an activation has a kink or a jump at a value of u other than {named}: "
        "name all of them in kinks="
    )
    listed = ", ".join(f"{value:.12g}" for value in found)
    return f"grids of growing size give {listed} for x = {x.tolist()}, y = {y.tolist()}: {cause}"
