"""Quadrature grids that take the place of random rows: expectations over a projection become sums.

An elementwise map reads a row w ~ N(0, I) through w·x and w·y alone, hence through its component in the plane of x and
y, which is a standard normal of two dimensions. A grid in the plane therefore serves points of every dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Grid(NamedTuple):
    """Rows and weights with Σ weights · f(rows) = E f(w), w ~ N(0, I), for the functions that the grid is made for.

    Parameters
    ----------
    rows : array, shape (n, dim)
        The nodes.
    weights : array, shape (n,)
        Their weights, none of them negative.
    """

    rows: Array
    weights: Array


@lru_cache(maxsize=32)
def hermite(nodes: int = 48, dim: int = 2) -> Grid:
    """Return the Gauss–Hermite product grid, for functions that are analytic in the row.

    Exact for polynomials of degree below 2 · nodes in each coordinate. Of E exp(w·z) with 48 nodes the relative error
    is at most 1e-13 up to |z|² = 14.

    Parameters
    ----------
    nodes : int, default 48
        Nodes in each coordinate.
    dim : int, default 2
        Coordinates: two for points of any dimension.

    Returns
    -------
    Grid
        Of nodes**dim rows; read-only.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / math.sqrt(2 * math.pi)
    rows = np.stack(np.meshgrid(*[points] * dim, indexing="ij"), -1).reshape(-1, dim)
    products = math.prod(np.meshgrid(*[weights] * dim, indexing="ij"))
    return _read_only(Grid(rows, np.asarray(products).reshape(-1)))


def polar(x: Any, y: Any, nodes: int = 16, radial: int = 40, reach: float = 12.0) -> Grid:
    """Return a polar Gauss–Legendre grid for functions of w·x and w·y with kinks or jumps at zero only.

    The circle is cut at the four directions perpendicular to x or y, so that no piece has a kink inside; pieces much
    wider than a right angle are halved.

    Parameters
    ----------
    x, y : array, shape (2,)
        The points, in the plane; zero cuts nothing.
    nodes : int, default 16
        Angles in each piece.
    radial : int, default 40
        Radii.
    reach : float, default 12
        Largest radius; a normal of two dimensions has the mass exp(−reach²/2) beyond.

    Returns
    -------
    Grid
    """
    perpendicular = [math.atan2(v[1], v[0]) + turn for v in (x, y) for turn in (math.pi / 2, -math.pi / 2)]
    start = perpendicular[0]  # a cut, so that no piece wraps around
    cuts = np.sort(np.mod(np.array(perpendicular) - start, 2 * math.pi))
    cuts = np.append(cuts, 2 * math.pi)
    wide = np.diff(cuts) > 1.75
    cuts = np.unique([*cuts, *((cuts[:-1] + cuts[1:]) / 2)[wide]])  # halves converge faster where a map is steep
    turns, turn_weights = _pieces(cuts, nodes)
    angles, radii = start + turns, reach * (1 + _legendre(radial)[0]) / 2
    density = reach / 2 * _legendre(radial)[1] * radii * np.exp(-(radii**2) / 2) / (2 * math.pi)
    rows = radii[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    return Grid(rows.reshape(-1, 2), np.outer(density, turn_weights).reshape(-1))


def strips(x: Any, y: Any, kinks: Sequence[float], nodes: int = 24, reach: float = 12.0) -> Grid:
    """Return a Gauss–Legendre grid for functions of w·x and w·y with kinks or jumps at the values `kinks`.

    The plane is cut along the lines w·x = t and w·y = t: by the coordinate along x first, then, for each of its nodes,
    by the one across, where the lines of y stand at places that move linearly. The coordinate along x is also cut where
    a line of y enters, halves and leaves the square of the grid, which matters when x and y are nearly parallel.

    Parameters
    ----------
    x, y : array, shape (2,)
        The points, in the plane; zero cuts nothing.
    kinks : sequence of float
        The values t.
    nodes : int, default 24
        Nodes in each piece of each coordinate.
    reach : float, default 12
        Largest coordinate in magnitude.

    Returns
    -------
    Grid
    """
    values = np.asarray(kinks, float).reshape(-1)
    along, across = _frame(np.asarray(x, float), np.asarray(y, float))
    norm, (first, second) = float(along @ x), (float(along @ y), float(across @ y))
    ends = np.array([-reach, 0.0, reach])
    outer = [ends]
    with np.errstate(over="ignore"):  # lines too far away for a float are clipped like others
        if norm > 0:
            outer.append(values / norm)
        if first != 0:
            outer += [((values[:, None] - second * ends) / first).reshape(-1)]
    a, a_weights = _pieces(_sorted(np.concatenate(outer), reach), nodes)
    inner = np.broadcast_to(ends, (len(a), 3))
    if second != 0:
        with np.errstate(over="ignore"):
            lines = (values - first * a[:, None]) / second
        inner = np.concatenate([inner, np.clip(lines, -reach, reach)], -1)
    b, b_weights = _pieces(np.sort(inner, -1), nodes)
    weights = (a_weights[:, None] * b_weights * np.exp(-(a[:, None] ** 2 + b**2) / 2) / (2 * math.pi)).reshape(-1)
    rows = (a[:, None, None] * along + b[..., None] * across).reshape(-1, 2)
    return Grid(rows[weights > 0], weights[weights > 0])


def two_rows(angle: float, angles: int = 64, radial: int = 48, reach: float = 13.0) -> tuple[Array, Array, Array]:
    """Return pairs of rows in the plane at an angle and their weights, for the moments of coupled rows.

    Each of the two is N(0, I) by itself: their norms are independent, and their direction is uniform.

    Parameters
    ----------
    angle : float
        By which the second row is turned from the first.
    angles : int, default 64
        Directions, equally spaced: exact for trigonometric polynomials of a smaller degree.
    radial : int, default 48
        Gauss–Legendre radii of each row.
    reach : float, default 13
        Largest radius.

    Returns
    -------
    tuple of array, shapes (n, 2), (n, 2) and (n,)
        First rows, second rows, and weights.
    """
    radii = reach * (1 + _legendre(radial)[0]) / 2
    density = reach / 2 * _legendre(radial)[1] * radii * np.exp(-(radii**2) / 2)
    turns = 2 * math.pi * np.arange(angles) / angles
    turn, i, j = (a.reshape(-1) for a in np.meshgrid(turns, np.arange(radial), np.arange(radial), indexing="ij"))
    first = radii[i, None] * np.stack([np.cos(turn), np.sin(turn)], -1)
    second = radii[j, None] * np.stack([np.cos(turn + angle), np.sin(turn + angle)], -1)
    return first, second, density[i] * density[j] / angles


def plane(x: Any, y: Any) -> Array:
    """Return an orthonormal basis of a plane that holds x and y, as rows: shape (2, dim).

    A grid in the plane times this basis has rows of the dimension of x and y. In one dimension the second row is zero.

    Parameters
    ----------
    x, y : array, shape (dim,)
        The points, of which any may be zero and which may be parallel.

    Returns
    -------
    array, shape (2, dim)
    """
    basis = np.linalg.qr(np.stack([x, y], -1))[0].T
    return basis if len(basis) == 2 else np.concatenate([basis, np.zeros((1, basis.shape[1]))])


def _frame(x: Array, y: Array) -> tuple[Array, Array]:
    """Unit vectors along x and across it; along y, or the first axis, where there is no direction of x."""
    longer = next((v for v in (x, y) if np.hypot(*v) > 0), np.array([1.0, 0.0]))
    along = longer / np.hypot(*longer)
    return along, np.array([-along[1], along[0]])


def _sorted(cuts: Array, reach: float) -> Array:
    return np.unique(np.clip(cuts, -reach, reach))


@lru_cache(maxsize=32)
def _legendre(nodes: int) -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(nodes)


def _pieces(cuts: Array, nodes: int) -> tuple[Array, Array]:
    """Gauss–Legendre nodes and weights between consecutive cuts, along the last axis."""
    points, weights = _legendre(nodes)
    half = np.diff(cuts)[..., None] / 2
    places, shares = cuts[..., :-1, None] + half * (1 + points), half * weights
    return places.reshape(*cuts.shape[:-1], -1), shares.reshape(*cuts.shape[:-1], -1)


def _read_only(grid: Grid) -> Grid:
    for array in grid:
        array.setflags(write=False)
    return grid
