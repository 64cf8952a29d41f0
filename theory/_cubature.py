"""Expectations over the projection in the plane, to rounding: a quadrature grid takes the place of random rows.

Only the plane spanned by x and y matters, since a projection row on it is a standard normal of two dimensions; so d = 2
is the general case.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import rfkernels as rfk
from rfkernels import FeatureMap, Features, Side
from rfkernels._arrays import elementwise

Array = NDArray[np.float64]


class Grid(NamedTuple):
    """Rows (n, 2) and weights (n,) with Σ weights · f(rows) = E f(w), w ~ N(0, I)."""

    rows: Array
    weights: Array


class Pairs(NamedTuple):
    """Points x and y, each (n, 2), one pair in each line."""

    x: Array
    y: Array


def pairs(norms: tuple[float, ...] = (0.1, 0.5, 1.0), turns: int = 12) -> Pairs:
    """Return all pairs of these norms with the angles 2πi / `turns` + 0.1 between them; x points at one radian."""
    first, second, angle = np.meshgrid(norms, norms, 2 * math.pi * np.arange(turns) / turns + 0.1)
    x = first.reshape(-1, 1) * np.array([math.cos(1.0), math.sin(1.0)])
    turned = angle.reshape(-1) + 1.0
    return Pairs(x, second.reshape(-1, 1) * np.stack([np.cos(turned), np.sin(turned)], -1))


def hermite(nodes: int = 48) -> Grid:
    """Return the Gauss–Hermite product grid, for integrands that are analytic in the row."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / math.sqrt(2 * math.pi)
    rows = np.stack(np.meshgrid(points, points, indexing="ij"), -1).reshape(-1, 2)
    return Grid(rows, np.outer(weights, weights).reshape(-1))


def polar(x: Array, y: Array, nodes: int = 24, radial: int = 72, reach: float = 12.0) -> Grid:
    """Return a polar Gauss–Legendre grid for one pair, for integrands with a kink where w·x = 0 or w·y = 0.

    The angle is cut into pieces at the four directions perpendicular to x or y; the radius runs to `reach`, beyond
    which a normal of two dimensions has the mass exp(−reach²/2).
    """
    directions = [math.atan2(v[1], v[0]) + turn for v in (x, y) for turn in (math.pi / 2, -math.pi / 2)]
    start = min(direction % (2 * math.pi) for direction in directions)
    cuts = sorted((direction - start) % (2 * math.pi) for direction in directions)
    cuts.append(2 * math.pi)
    points, weights = np.polynomial.legendre.leggauss(nodes)
    low, half = np.array(cuts[:-1])[:, None], np.diff(cuts)[:, None] / 2
    angles, angle_weights = (start + low + half * (1 + points)).reshape(-1), (half * weights).reshape(-1)
    points, weights = np.polynomial.legendre.leggauss(radial)
    radii = reach * (1 + points) / 2
    radius_weights = reach / 2 * weights * radii * np.exp(-(radii**2) / 2) / (2 * math.pi)
    rows = radii[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    return Grid(rows.reshape(-1, 2), np.outer(radius_weights, angle_weights).reshape(-1))


def estimates(feature_map: FeatureMap, grid: Grid, points: Pairs, scale: float = 1.0) -> Array:
    """Return what each row of the grid alone would estimate: φ(x)·φ(y) of one-row features, (pairs, rows)."""
    zeros = np.zeros(len(grid.rows))
    features = Features(feature_map, grid.rows, zeros, Side(), Side(), np.asarray(scale))
    log_x, sign_x = rfk.transform(points.x, features, side="query", log=True)
    log_y, sign_y = rfk.transform(points.y, features, side="key", log=True)
    columns = sign_x * sign_y * np.exp(log_x + log_y)
    by_activation = columns.reshape(len(points.x), len(feature_map.activations), features.rows)
    total: Array = features.rows * by_activation.sum(1)  # φ holds m^-½ on each side, for all rows together
    return total


def mean(feature_map: FeatureMap, points: Pairs, scale: float = 1.0, power: int = 1) -> Array:
    """Return E (φ(x)·φ(y))^power for each pair: by Gauss–Hermite for an exponential map, else in polar pieces."""
    if feature_map.exponential:
        grid = hermite()
        averaged: Array = estimates(feature_map, grid, points, scale) ** power @ grid.weights
        return averaged
    means = []
    for x, y in zip(*points, strict=True):
        grid = polar(x, y)
        alone = estimates(feature_map, grid, Pairs(x[None], y[None]), scale)[0]
        means.append(float(alone**power @ grid.weights))
    return np.array(means)


def kernel(feature_map: FeatureMap, points: Pairs, scale: float = 1.0) -> Array:
    """Return the closed form k(√scale x, √scale y) that the map names."""
    assert feature_map.kernel is not None
    log, sign = rfk.exact_log_kernel(points.x, points.y, scale=scale, kernel=feature_map.kernel, return_sign=True)
    closed: Array = sign * np.exp(log)
    return closed


def variance(feature_map: FeatureMap, points: Pairs) -> Array:
    """Return the variance of a row that the map names."""
    assert feature_map.log_variance is not None
    products = (np.sum(a * b, -1) for a, b in ((points.x, points.y), (points.x, points.x), (points.y, points.y)))
    closed: Array = np.exp(feature_map.log_variance(elementwise(np), *products))
    return closed


def largest(errors: Array) -> float:
    """Return the largest magnitude; NaN if there is one."""
    return float(np.max(np.abs(errors)))
