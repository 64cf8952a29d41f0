"""Expectations over coupled isotropic rows, to rounding: spheres, chi-distributed norms, and samplers run on a grid."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from rfkernels import FeatureMap
from rfkernels.samplers import Sampler
from theory import _cubature as cubature
from theory._cubature import Array, Grid, Pairs


class Rule(NamedTuple):
    """Nodes (n,) and weights (n,) of a quadrature of total weight 1."""

    nodes: Array
    weights: Array


def cosine(dim: int, nodes: int = 40) -> Rule:
    """Return a Gauss rule for one coordinate of a point that is uniform on the unit sphere of `dim` dimensions."""
    from scipy.special import roots_chebyt, roots_gegenbauer

    points, weights = roots_chebyt(nodes) if dim == 2 else roots_gegenbauer(nodes, dim / 2 - 1)
    return Rule(points, weights / weights.sum())


def squared_norm(dim: int, nodes: int = 40) -> Rule:
    """Return a Gauss–Laguerre rule for |w|², w ~ N(0, I) of `dim` dimensions."""
    from scipy.special import roots_genlaguerre

    points, weights = roots_genlaguerre(nodes, dim / 2 - 1)
    return Rule(2 * points, weights / weights.sum())


def norm(dim: int, nodes: int = 48) -> Rule:
    """Return a Gauss–Legendre rule for |w|² with nodes in |w| itself, as good for odd powers of |w|."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    low, high = max(0.0, math.sqrt(dim) - 7), math.sqrt(dim) + 11
    lengths = low + (high - low) * (1 + points) / 2
    density = np.exp((dim - 1) * np.log(lengths / math.sqrt(dim)) - (lengths**2 - dim) / 2)
    return Rule(lengths**2, weights * density / (weights @ density))


def shadow(dim: int, radius: float, nodes: int = 40, turns: int = 128) -> Grid:
    """Return what the sphere of that radius casts on a plane: two coordinates of a uniform point, as grid rows (n, 2).

    Of the squared length of the two, the share in radius² is Beta(1, (dim − 2)/2), and their angle is uniform.
    """
    from scipy.special import roots_jacobi

    if dim == 2:
        share = Rule(np.ones(1), np.ones(1))
    else:
        points, weights = roots_jacobi(nodes, (dim - 4) / 2, 0)
        share = Rule((1 + points) / 2, weights / weights.sum())
    angles = 2 * math.pi * np.arange(turns) / turns
    lengths = radius * np.sqrt(share.nodes)[:, None, None]
    rows = lengths * np.stack([np.cos(angles), np.sin(angles)], -1)
    return Grid(rows.reshape(-1, 2), np.repeat(share.weights / turns, turns))


def coordinates(dim: int, count: int, nodes: int) -> Grid:
    """Return a rule for the first `count` coordinates of a uniform point of the unit sphere, rows (n, count)."""
    rows, weights, rest = np.zeros((1, 0)), np.ones(1), np.ones(1)
    for i in range(count):
        left = dim - i
        rule = cosine(left, nodes) if left > 1 else Rule(np.array([1.0, -1.0]), np.full(2, 0.5))
        new = np.sqrt(rest)[:, None] * rule.nodes
        rows = np.concatenate([np.repeat(rows, len(rule.nodes), 0), new.reshape(-1, 1)], 1)
        weights = np.outer(weights, rule.weights).reshape(-1)
        rest = np.maximum(rest[:, None] * (1 - rule.nodes**2), 0).reshape(-1)
    return Grid(rows, weights)


class Pair(NamedTuple):
    """Row pairs in the plane: rows (2n, 2), two consecutive ones each, and the weight (n,) of each pair."""

    rows: Array
    weights: Array


def blocks(sampler: Sampler, turns: int = 40, radial: int = 24, opposed: bool = False) -> Pair:
    """Run a sampler of blocks in the plane on a grid of normals that integrates over all its blocks of two rows.

    A block is made from two Gaussian vectors, of which only the direction of the first and the side of it on which the
    second lies matter, and from norms. So the angle goes round by the trapezoidal rule, the side takes both signs, and
    squared norms are the nodes of Gauss–Laguerre: for integrands analytic in the rows the mean is exact to rounding.
    A simplex, whose rows are not at a right angle, has odd powers of norms too, and Gauss–Legendre in the norm instead.
    With `opposed` quantiles of norms the sampler asks for one normal per pair instead, by Gauss–Hermite.
    """
    squares = norm(2, radial) if sampler.coupling == "simplex" else squared_norm(2, radial)
    lines = np.polynomial.hermite_e.hermegauss(radial)
    ranges = (range(turns), (1.0, -1.0), range(radial), (0,) if opposed else range(radial))
    turn, side, one, two = (part.reshape(-1) for part in np.meshgrid(*ranges, indexing="ij"))
    one, two = one.astype(int), two.astype(int)
    angle = 2 * math.pi * turn / turns + 0.1
    first = np.stack([np.cos(angle), np.sin(angle)], -1)
    second = side[:, None] * np.stack([-first[:, 1], first[:, 0]], -1) + 0.3 * first
    norms = np.sqrt(squares.nodes[np.stack([one, two], -1)]).reshape(-1)
    given: dict[tuple[int, ...], Array] = {(len(angle), 2, 2): np.stack([first, second], -1)}  # columns of each matrix
    if opposed:
        given[len(angle), 1, 1], weights = lines[0][one, None, None], lines[1][one] / math.sqrt(2 * math.pi)
    else:
        given[len(norms), 2], weights = np.stack([0.6 * norms, 0.8 * norms], -1), squares.weights[one]
        weights = weights * squares.weights[two]
    return Pair(np.asarray(sampler(given.__getitem__, len(norms), 2)), weights / (2 * turns))


class Moments(NamedTuple):
    """Relative to the kernel: mean of one row, mean square of one, and mean product of the two rows of a pair."""

    mean: Array
    square: Array
    product: Array


def moments(feature_map: FeatureMap, pair: Pair, points: Pairs) -> Moments:
    """Return the moments of what single rows estimate, for each pair of points."""
    found: list[tuple[Array, Array, Array]] = []
    for x, y in zip(*points, strict=True):
        here = Pairs(x[None], y[None])
        alone = cubature.estimates(feature_map, Grid(pair.rows, pair.weights), here)[0]
        first, second = (alone / cubature.kernel(feature_map, here)).reshape(-1, 2).T
        both = pair.weights / 2
        found.append((both @ (first + second), both @ (first**2 + second**2), pair.weights @ (first * second)))
    return Moments(*(np.array(moment) for moment in zip(*found, strict=True)))


def product_moment(
    dim: int, s: float, cosine_between: float, nodes: int = 40, even: bool = False, radii: Rule | None = None
) -> float:
    """Return E X₁X₂ / K² of positive features (of hyperbolic ones if `even`) for two rows at an angle of that cosine.

    The product is exp((w₁ + w₂)·z − s). The direction of w₁ ± w₂ is uniform, and its squared length is
    r₁² + r₂² ± 2 r₁r₂ cos; so three one-dimensional rules do, whatever the dimension. Norms are chi-distributed and
    independent, or have squares by the rule `radii`.
    """
    law = squared_norm if cosine_between == 0 else norm
    squares = law(dim, nodes) if radii is None else radii
    direction = cosine(dim, nodes)
    one, two = squares.nodes[:, None], squares.nodes[None, :]
    weight = np.outer(squares.weights, squares.weights)
    total = 0.0
    signs = (1.0, -1.0) if even else (1.0,)
    for sign in signs:
        length = np.sqrt(np.maximum(one + two + 2 * sign * cosine_between * np.sqrt(one * two), 0))
        exponent = length[..., None] * math.sqrt(s) * direction.nodes - s
        total += float(np.sum(weight * (np.exp(exponent) @ direction.weights)))
    return total / len(signs)
