"""Parameters of the laws of random monomials and Maclaurin features that suit given points."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels._checks import check_array, check_flags, check_scale, require_finite_arrays
from rfkernels.materialized.maclaurin import Law


def optimal_rate(x: Any, y: Any, *, scale: float | None = None, each: bool = False) -> Any:
    """Return the rates of Poisson features that suit these points: those which minimise the mean log E (k̂/k)².

    The mean is over all pairs of an x and a y. One rate: λ = √(Σ_l E x_l² E y_l² / dim) at the scaled inputs, which for
    one pair is λ* of Chefs' Random Tables (arXiv 2205.15317). One for each coordinate: λ_l = √(E x_l² E y_l²), never
    worse; for one pair with x_l y_l ≥ 0 in all coordinates the estimate is then exact.

    Parameters
    ----------
    x, y : array, shape (*batch, length, dim) or (dim,)
        Queries and keys, not yet scaled; axes before the last are pooled.
    scale : float, optional
        That of the features; 1/√dim by default.
    each : bool, default False
        Return a rate for each coordinate.

    Returns
    -------
    float, or numpy.ndarray of shape (dim,)

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If arguments do not fit together, or a rate would be zero, since a coordinate vanishes in all points.
    """
    check_flags(each=each)
    x, y = _points(x, y, scale)
    products = np.mean(x * x, 0) * np.mean(y * y, 0)
    rates = np.sqrt(products if each else np.mean(products))
    if not np.all(rates > 0):
        where = f" in coordinate {int(np.argmin(rates))}" if each else ""
        raise ValueError(f"x or y vanishes{where}, so that the optimal rate is 0, for which there are no features")
    return rates if each else float(rates)


def optimal_probability(x: Any, y: Any, *, scale: float | None = None) -> float:
    """Return the p of geometric features that suits these points: the one that minimises the mean log E (k̂/k)².

    −dim log p + Σ_l E log I₀(2|x_l y_l|/√(1 − p)), the mean over all pairs, is minimised numerically: give a sample of
    at most some hundred points of each.

    Parameters
    ----------
    x, y : array, shape (*batch, length, dim) or (dim,)
        Queries and keys, not yet scaled; axes before the last are pooled.
    scale : float, optional
        That of the features; 1/√dim by default.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If arguments do not fit together, or all products x_l y_l are zero.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import expit, i0e

    x, y = _points(x, y, scale)
    products = 2 * np.abs(x[:, None, :] * y[None, :, :])
    if not np.any(products > 0):
        raise ValueError("x or y vanishes, so that the optimal probability is 1, for which there are no features")

    def objective(logit: float) -> float:
        bessel = products / math.sqrt(expit(-logit))
        moments = np.mean(np.log(i0e(bessel)) + bessel, (0, 1))
        return float(np.sum(moments) - x.shape[-1] * math.log(expit(logit)))

    return float(expit(minimize_scalar(objective, bounds=(-30.0, 30.0), method="bounded", options={"xatol": 1e-6}).x))


def optimal_degree(x: Any, y: Any, *, law: Law = "rademacher", scale: float | None = None) -> float:
    """Return the mean degree of Maclaurin features that suits these points: the one of the least mean log E (k̂/k)².

    λ = √E c, the mean over all pairs of an x and a y, with c = E (w·x)²(w·y)² of `draw_maclaurin`.

    Parameters
    ----------
    x, y : array, shape (*batch, length, dim) or (dim,)
        Queries and keys, not yet scaled; axes before the last are pooled.
    law : {"rademacher", "normal"}, default "rademacher"
        That of the features.
    scale : float, optional
        That of the features; 1/√dim by default.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If arguments do not fit together, or x or y vanishes.
    """
    if law not in ("rademacher", "normal"):
        raise ValueError(f"law must be 'rademacher' or 'normal', got {law!r}")
    x, y = _points(x, y, scale)
    first, second = x.T @ x / len(x), y.T @ y / len(y)
    fourth = np.trace(first) * np.trace(second) + 2 * np.sum(first * second)
    if law == "rademacher":
        fourth -= 2 * np.sum(np.diag(first) * np.diag(second))
    if not fourth > 0:
        raise ValueError("x or y vanishes, so that the optimal mean degree is 0, for which there are no features")
    return math.sqrt(fourth)


def _points(x: Any, y: Any, scale: float | None) -> tuple[Any, Any]:
    """Return scaled points, (n, dim) each, in float64."""
    for name, points in (("x", x), ("y", y)):
        check_array(name, points, 1)
        if points.size == 0:
            raise ValueError(f"{name} must hold at least one point, got shape {points.shape}")
    dim = x.shape[-1]
    if y.shape[-1] != dim:
        raise ValueError(f"x and y must agree in dim, got shapes {x.shape} and {y.shape}")
    check_scale(scale)
    require_finite_arrays(x=x, y=y)
    root = math.sqrt(1 / math.sqrt(dim) if scale is None else scale)
    first, second = (np.asarray(v).astype(np.float64).reshape(-1, dim) * root for v in (x, y))
    return first, second
