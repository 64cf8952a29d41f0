"""Proposals: other distributions of the rows of exponential maps, with log-weights that keep estimates unbiased.

With rows w ~ q instead of N(0, I), features times √(p(w)/q(w)) on both sides estimate the same kernel. Every positive
exponential estimator of the literature is such an importance sampling of the features of Performers: generalized
exponential features (FAVOR++, arXiv 2205.15317) have an isotropic normal proposal, dense-exponential ones (FAVOR#,
arXiv 2302.00787) a normal one in suitable coordinates. Of all proposals for the features of one set of points, that of
least error is a mixture of normals (arXiv 2406.18802).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import accumulator, is_jax, matmul, namespace, stopped
from rfkernels._checks import check_array, check_scale, require_finite_arrays
from rfkernels.samplers import Normal


class Gaussian(NamedTuple):
    """Rows root · w + mean of standard normal w: N(mean, root rootᵀ).

    Parameters
    ----------
    root : array, shape (dim, dim) or (dim,) or ()
        A root of the covariance: a matrix, the diagonal of one, or one standard deviation for all directions.
    mean : array, shape (dim,), optional
        None (the default) for zero.
    """

    root: Any
    mean: Any = None


class Mixture(NamedTuple):
    """Rows centres[i] + w of standard normal w, i drawn with probability weights[i].

    Parameters
    ----------
    centres : array, shape (n, dim)
        Means of the components, whose covariance is I.
    weights : array, shape (n,)
        Their probabilities.
    """

    centres: Any
    weights: Any


Proposal = Gaussian | Mixture


def isotropic(variance: float) -> Gaussian:
    """Return N(0, variance · I): generalized exponential features with A = (1 − variance) / 4.

    f(w, x) = D exp(A|w|² + √(1 − 4A) w·x − |x|²/2), D = (1 − 4A)^(dim/4), of standard normal w (FAVOR++, arXiv
    2205.15317) is the positive map of √variance · w with the log-weight of this proposal. The variance of estimates is
    finite for variance > ½, and the terms are bounded for variance > 1. `rfkernels.variance.optimal_proposal` returns
    the best for given points.

    Parameters
    ----------
    variance : float
        Of each coordinate of a row.

    Returns
    -------
    Gaussian

    Raises
    ------
    ValueError
        If `variance` is not a finite number above ½.
    """
    given = np.asarray(variance)
    if given.ndim or given.dtype.kind not in "iuf" or not (math.isfinite(variance) and variance > 0.5):
        raise ValueError(f"variance must be finite and above 1/2 for estimates of finite variance, got {variance!r}")
    return Gaussian(math.sqrt(variance))


def self_attention_mixture(points: Any, *, scale: float | None = None) -> Mixture:
    """Return the rows of least error for positive features of one set of points, as queries and keys at once.

    The error is E ‖K̂ − K‖²_F over all pairs of points, K_ij = exp(scale · x_i·x_j), from independent rows. The best
    density is proportional to that of N(0, I) times the squared norm of the column of features of all points
    (arXiv 2406.18802), which for positive features is the mixture Σ_i K_ii N(2 √scale x_i, I) / tr K. Every row then
    has ‖φφᵀ‖_F = tr K exactly, and the error of m rows is ((tr K)² − ‖K‖²_F) / m. The log-weight of a row costs
    n · dim operations for n points; a sample of them serves.

    Parameters
    ----------
    points : array, shape (n, dim)
        The points.
    scale : float, optional
        That of the features that are drawn: 1/√dim (the default) is that of attention.

    Returns
    -------
    Mixture

    Raises
    ------
    TypeError, ValueError
        If points are no array of finite numbers of that shape, there are none, or scale is not positive and finite.
    """
    check_array("points", points, 2)
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"points must have shape (n, dim) and not be empty, got {points.shape}")
    check_scale(scale)
    require_finite_arrays(points=points)
    xp = namespace(points)
    points = points.astype(accumulator(xp, points))
    scale = 1 / math.sqrt(points.shape[-1]) if scale is None else scale
    log_weights = scale * xp.sum(points * points, -1)
    weights = xp.exp(log_weights - stopped(xp, xp.max(log_weights)))
    return Mixture(2 * math.sqrt(scale) * points, weights / xp.sum(weights))


def check_proposal(proposal: Any, dim: int) -> None:
    """Require a proposal for rows of that width."""
    if isinstance(proposal, Gaussian):
        root = np.shape(proposal.root)
        if root not in ((), (dim,), (dim, dim)):
            raise ValueError(f"root of the proposal must have shape (), ({dim},) or ({dim}, {dim}), got {root}")
        if proposal.mean is not None and np.shape(proposal.mean) != (dim,):
            raise ValueError(f"mean of the proposal must have shape ({dim},), got {np.shape(proposal.mean)}")
        _check_finite(root=proposal.root, mean=proposal.mean)
        _check_invertible(proposal.root, dim)
    elif isinstance(proposal, Mixture):
        centres, weights = np.shape(proposal.centres), np.shape(proposal.weights)
        if len(centres) != 2 or centres[1] != dim or weights != centres[:1]:
            raise ValueError(
                f"a mixture needs centres of shape (n, {dim}) and weights of shape (n,), got {centres} and {weights}"
            )
        _check_finite(centres=proposal.centres)
        if not is_jax(proposal.weights):  # which may be traced
            given = np.asarray(proposal.weights)
            if not (np.all(given >= 0) and 0 < np.sum(given) < math.inf):
                raise ValueError(f"weights of a mixture must be at least 0, finite and not all 0, got {given}")
    else:
        raise TypeError(f"proposal must be a Gaussian or a Mixture of rfkernels.proposals, got {proposal!r}")


def _check_finite(**parts: Any) -> None:
    """Require finite real numbers, of what is not JAX's and may be traced."""
    for name, value in parts.items():
        if value is None or is_jax(value):
            continue
        given = np.asarray(value)
        if given.dtype.kind in "bcOSU":
            raise TypeError(f"{name} of the proposal must hold real numbers, got dtype {given.dtype}")
        if not np.all(np.isfinite(given)):
            raise ValueError(f"{name} of the proposal must be finite, got {value}")


def _check_invertible(given: Any, dim: int) -> None:
    """Require a root that can be inverted, if it is not JAX's and may be traced."""
    if not is_jax(given):
        root = np.asarray(given, np.float64)
        if np.linalg.matrix_rank(root) < dim if root.ndim == 2 else not np.all(root):
            raise ValueError(f"root of the proposal must be invertible, got {root.tolist()}")


def propose(xp: Any, proposal: Proposal, rows: Any, normal: Normal) -> tuple[Any, Any]:
    """Turn standard normal rows into rows of the proposal, and return ½ log(p / q) of each as well.

    Which component of a mixture a row belongs to is drawn from `normal`, independently of the rows.
    """
    if isinstance(proposal, Gaussian):
        return _gaussian(xp, proposal, rows)
    return _mixture(xp, proposal, rows, normal)


def _gaussian(xp: Any, proposal: Gaussian, rows: Any) -> tuple[Any, Any]:
    root = xp.asarray(proposal.root, rows.dtype)
    dim = rows.shape[-1]
    if root.ndim == 2:
        drawn, log_volume = matmul(xp, rows, root.T), xp.linalg.slogdet(root)[1]
    else:
        drawn, log_volume = rows * root, xp.sum(xp.log(xp.abs(xp.broadcast_to(root, (dim,)))))
    if proposal.mean is not None:
        drawn = drawn + xp.asarray(proposal.mean, rows.dtype)
    log_ratio = log_volume + (xp.sum(rows * rows, -1) - xp.sum(drawn * drawn, -1)) / 2
    return drawn, log_ratio / 2


def _mixture(xp: Any, proposal: Mixture, rows: Any, normal: Normal) -> tuple[Any, Any]:
    centres, weights = (xp.asarray(x, rows.dtype) for x in proposal)
    weights = weights / xp.sum(weights)
    pair = normal((2, rows.shape[0]))
    uniform = (xp.arctan2(pair[0], pair[1]) / math.pi + 1) / 2  # the angle of two normals is uniform
    chosen = xp.minimum(xp.searchsorted(xp.cumsum(weights), uniform, side="right"), weights.shape[0] - 1)
    drawn = rows + centres[chosen]
    log_weights = xp.log(xp.where(weights > 0, weights, 1)) + xp.where(weights > 0, 0, -xp.inf)
    log_ratio = matmul(xp, drawn, centres.T) - xp.sum(centres * centres, -1) / 2 + log_weights  # of weight · q / p
    top = stopped(xp, xp.max(log_ratio, -1, keepdims=True))
    return drawn, -(xp.log(xp.sum(xp.exp(log_ratio - top), -1)) + top[:, 0]) / 2
