"""Features of given rows, and what each row alone estimates."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from rfkernels import core, maps
from rfkernels.estimates import transform
from rfkernels.features import Features, Side, SideName
from rfkernels.maps import FeatureMap
from rfkernels.testing.grids import Array

_PLAIN = Side()


def bind(
    feature_map: str | FeatureMap,
    rows: Any,
    *,
    scale: float = 1.0,
    query: Side = _PLAIN,
    key: Side = _PLAIN,
    log_weight: Any = 0.0,
) -> Features:
    """Return features of given rows, such as those of a `Grid`.

    Parameters
    ----------
    feature_map : str or FeatureMap
        The map.
    rows : array, shape (rows, dim)
        The projection.
    scale : float, default 1
        Multiplies x·y.
    query, key : Side, optional
        The affine preprocessing; none by default.
    log_weight : array, shape (rows,) or (), default 0
        The log-weight of each row.

    Returns
    -------
    Features
    """
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2:
        raise ValueError(f"rows must have shape (rows, dim), got {rows.shape}")
    weights = np.broadcast_to(np.asarray(log_weight, np.float64), len(rows))
    return Features(maps.resolve(feature_map), rows, weights, query, key, np.asarray(scale, np.float64))


def with_rows(features: Features, rows: Any, log_weight: Any = 0.0) -> Features:
    """Return the same features with other rows, whose log-weights are added to that of the first row."""
    weights = np.broadcast_to(np.asarray(features.log_weight)[0] + log_weight, len(rows))
    return dataclasses.replace(features, projection=rows, log_weight=weights, blocks=None)


def inner_points(features: Features, x: Array, y: Array) -> tuple[Array, Array]:
    """Return what rows are multiplied with, T(x − centre) of either side, each of shape (dim,)."""
    identity = dataclasses.replace(features, projection=np.eye(features.dim))
    u, v = core.project(np, x[None], identity, "query")[0][0], core.project(np, y[None], identity, "key")[0][0]
    return u, v


def row_estimates(features: Features, x: Any, y: Any) -> Array:
    """Return what each projection row alone would estimate.

    Parameters
    ----------
    features : Features
        The features, without batch axes.
    x, y : array, shape (*batch, dim)
        Points of the query and the key side; batch axes broadcast.

    Returns
    -------
    array, shape (*batch, rows)
        Σ h(u, …) h(v, …) over the activations of a row, divided by their number: φ(x)·φ(y) is the mean over rows.
    """
    if features.batch:
        raise ValueError(f"features must have no batch axes, got {features.batch}")
    return rows_of(features, x, y).estimates


class Rows(NamedTuple):
    """What each row alone estimates, (*batch, rows), and the |φ(x)| and |φ(y)| that it multiplies.

    Norms are zero for exponential maps, whose product is taken in logs and rounded as itself.
    """

    estimates: Array
    norms: tuple[Array, Array]


def rows_of(features: Features, x: Array, y: Array) -> Rows:
    """Return the estimates of each row and what their rounding is relative to."""
    sides: tuple[tuple[Array, SideName], ...] = (x[..., None, :], "query"), (y[..., None, :], "key")

    def by_activation(columns: Array) -> Array:
        return columns.reshape(*columns.shape[:-2], -1, features.rows)

    if features.map.exponential:
        (log_x, sign_x), (log_y, sign_y) = (transform(p, features, side=side, log=True) for p, side in sides)
        product, norms = by_activation(sign_x * sign_y * np.exp(log_x + log_y)), (np.zeros(()), np.zeros(()))
    else:
        one, other = (by_activation(transform(p, features, side=side, backend="numpy")) for p, side in sides)
        product = one * other
        norms = tuple(np.sqrt(features.rows * np.sum(columns**2, -2)) for columns in (one, other))
    return Rows(features.rows * product.sum(-2), norms)  # φ holds m^-½ on each side, for all rows together
