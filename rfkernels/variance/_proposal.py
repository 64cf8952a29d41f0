"""The isotropic proposal of least variance."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels._arrays import accumulator, namespace
from rfkernels._checks import check_array, check_qk, check_scale, require_finite_arrays
from rfkernels.proposals import Gaussian
from rfkernels.variance._rows import check_squares


def optimal_variance(phi: Any) -> Any:
    """Return σ² of the isotropic proposal with the least variance of positive features, (1 + ρ*)/2.

    ρ* = ½ (1 + 2φ + √((1 + 2φ)² + 8φ)) with φ = |x + y|²/dim; A = (1 − σ²)/4 is that of generalized exponential
    features (Chefs' random tables, arXiv 2205.15317).

    Parameters
    ----------
    phi : array or float
        |x + y|²/dim of the scaled points, or its mean over pairs; at least 0.

    Returns
    -------
    array, shape of phi
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If phi holds no real numbers, or one that is negative or not finite (not checked of JAX arrays).
    """
    xp, phi = check_squares(phi, name="phi")
    double = 1 + 2 * phi
    return (1 + double / 2 * (1 + xp.sqrt(1 + 8 * (phi / double) / double))) / 2  # in which no square overflows


def optimal_proposal(x: Any, y: Any, *, scale: float = 1.0) -> Gaussian:
    """Return the isotropic proposal that suits pairs of given points best.

    It minimizes the mean over all pairs of a row of x and one of y of log E X² / K², the log second moment of a row
    of positive features, by the mean of |x + y|² alone: `optimal_variance` at
    φ = (mean |x|² + 2 mean x · mean y + mean |y|²) / dim (FAVOR++, arXiv 2205.15317). `rfkernels.fit` goes further,
    with a mean and different variances in different directions.

    Parameters
    ----------
    x, y : array, shape (*batch, dim)
        Points, such as queries and keys; one of each gives the optimum of that pair. All axes but the last are pooled.
    scale : float, default 1
        Multiplies x·y. For attention 1/√dim.

    Returns
    -------
    proposals.Gaussian
        For ``draw(..., proposal=, scale=)`` with the same scale.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, there are no points, or a value is not finite.
    """
    check_array("x", x, 1)
    check_array("y", y, 1)
    if not (x.size and y.size):
        raise ValueError(f"x and y must hold points, got shapes {x.shape} and {y.shape}")
    check_qk(x.reshape(-1, x.shape[-1])[:1, :], y.reshape(-1, y.shape[-1])[:1, :], names=("x", "y"))
    check_scale(scale, optional=False)
    require_finite_arrays(x=x, y=y)
    xp, dim = namespace(x, y, scale), x.shape[-1]
    dtype = accumulator(xp, x, y)
    x, y = (xp.asarray(a, dtype).reshape(-1, dim) for a in (x, y))
    squares = xp.mean(xp.sum(x * x, -1)) + xp.mean(xp.sum(y * y, -1))
    phi = scale * (squares + 2 * xp.sum(xp.mean(x, 0) * xp.mean(y, 0))) / dim
    root = xp.sqrt(optimal_variance(xp.maximum(phi, 0)))
    return Gaussian(float(root) if xp is np else root)
