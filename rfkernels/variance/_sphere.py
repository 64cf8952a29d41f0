"""Rows of the "regularized" sampler: of norm √dim, which makes estimates biased."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels._arrays import broadcasting, stopped
from rfkernels._checks import check_flags
from rfkernels.proposals import Proposal
from rfkernels.samplers import Sampler
from rfkernels.variance import _series
from rfkernels.variance._rows import Form, Pair, check_dim, check_squares, cosine_of, coupled_pairs


def error(xp: Any, form: Form, pair: Pair, draws: int, sampler: Sampler, proposal: Proposal | None) -> tuple[Any, Any]:
    """Return the relative mean squared error times e^(−top), and top.

    A row estimates e^(κt − s/2) of the kernel, κ² = dim · s and t the coordinate of a uniform direction; even features
    and antithetic pairs have cosh κt in place of e^κt. With y = κ²/4 and n = dim/2 the mean is e^(−s/2) 0F1(; n; y),
    and an orthogonal pair has the cross moment e^(−s) 0F1(; n; 2y). Cosines have differences of oscillating integrals
    instead, of which little is left in floating point: they are refused.
    """
    if sampler.law != "sphere":
        raise ValueError(f"no closed form is known for rows of the law {sampler.law!r} of the sampler {sampler.name!r}")
    if proposal is not None:
        raise ValueError(f"proposal needs normal rows, but the law of the sampler {sampler.name!r} is 'sphere'")
    if form.square_sign < 0:
        raise ValueError("no closed form that can be computed is known for trigonometric features of 'sphere' rows")
    if xp is np:
        pair = Pair(pair.x.astype(np.float64), pair.y.astype(np.float64))
    dim = pair.x.shape[-1]
    cosine, coupled = cosine_of(sampler, dim), coupled_pairs(draws, dim)
    even = len(form.signs) == 2 or sampler.antithetic
    if even and pair.x.dtype != np.float64:
        raise ValueError("rows of the 'sphere' law in pairs need float64, as their parts cancel: set jax_enable_x64")
    if cosine not in (None, 0.0):
        raise ValueError(f"no closed form is known for rows of the sampler {sampler.name!r} on a sphere")
    points = pair.x + form.key_sign * pair.y
    square = xp.sum(points * points, -1)
    share = coupled / draws if cosine == 0.0 else 0.0
    spread, bias, top = _moments(xp, square, dim, even, share)
    near = square * dim < 1
    small = xp.where(near, square, 0)
    spread = xp.where(near, _near_spread(xp, small, dim, even, share), spread)
    bias = xp.where(near, _near_bias(xp, small, dim), bias)
    return spread / draws + bias**2, 2 * xp.where(near, 0, top)


def _near_bias(xp: Any, s: Any, dim: int) -> Any:
    """Return the mean less 1 for |s| · dim < 1."""
    total = xp.zeros_like(s)
    for coefficient in _series.sphere_bias(dim)[::-1]:
        total = total * (s / 2) + coefficient
    return xp.exp(-s / 2) * total * (s / 2) ** 2


def _near_spread(xp: Any, s: Any, dim: int, even: bool, share: float) -> Any:
    """Return the draws' variance times their number for |s| · dim < 1, `share` of the number being coupled pairs.

    A sum over spherical harmonics, by the Funk–Hecke formula: those of second degree, most of an even function's
    variance, cancel exactly over the rows of a whole block.
    """
    y, total = s * dim / 4, xp.zeros_like(s)
    for degree, count, angle in _series.degrees(dim, even):
        wave = xp.ones_like(s)
        for k in range(12, 0, -1):
            wave = 1 + wave * y / (k * (dim / 2 + degree + k - 1))
        factor = math.exp(math.lgamma(dim / 2) - math.lgamma(dim / 2 + degree))
        total = total + count * (1 + share * angle) * (factor * wave) ** 2 * y**degree
    return xp.exp(-s) * total


def _moments(xp: Any, square: Any, dim: int, even: bool, share: float) -> tuple[Any, Any, Any]:
    """Return the draws' variance times their number and e^(−2 top), their mean less 1 times e^(−top), and top."""
    nodes, log_weights = (xp.asarray(a, square.dtype) for a in _series.sphere(dim))
    roots = log_weights / 2
    positive = xp.where(square > 0, square, 1)
    kappa, damping = xp.sqrt(positive * dim), -positive / 2
    angles = kappa[..., None] * nodes
    logs = (xp.logaddexp(angles, -angles) - math.log(2) if even else angles) + damping[..., None]
    highest = xp.max(2 * (logs + roots), -1, keepdims=True)
    top = (xp.log(xp.sum(xp.exp(2 * (logs + roots) - highest), -1)) + highest[..., 0]) / 2
    top = stopped(xp, xp.maximum(top, 0))
    values = xp.exp(logs + roots - top[..., None])  # √weight · estimate · e^(−top), at most 1
    mean = xp.sum(xp.exp(logs + log_weights - top[..., None]), -1)
    spread = xp.sum((values - xp.exp(roots) * mean[..., None]) ** 2, -1)
    if share:
        wide, shift = math.sqrt(2) * angles, 2 * (damping - top)
        spread = spread + share * (xp.sum(xp.exp(wide + log_weights + shift[..., None]), -1) - mean**2)
    return spread, mean - xp.exp(-top), top


@broadcasting
def regularized_ratio(s: Any, dim: int, *, log: bool = False) -> Any:
    """Return SMREG / SM, the mean of positive features of norm-√dim rows relative to the softmax kernel.

    It is e^(−s/2) 0F1(; dim/2; dim s/4) with s = |x + y|²: at most 1, at least 1 − s²/(4 (dim + 2)), and nearly that
    for small s (the regularized softmax kernel, arXiv 2009.14794; the closed form follows from the mean over a sphere).

    Parameters
    ----------
    s : array or float
        |x + y|² of the scaled points, at least 0.
    dim : int
        The width.
    log : bool, default False
        Return the logarithm.

    Returns
    -------
    array, shape of s

    Raises
    ------
    TypeError
        If log is no bool.
    ValueError
        If dim is no positive integer, or s is negative or not finite (not checked of JAX arrays).
    """
    check_flags(log=log)
    xp, s = check_squares(s)
    check_dim(dim)
    nodes, log_weights = (xp.asarray(a, s.dtype) for a in _series.sphere(dim))
    kappa = xp.sqrt(xp.where(s > 0, s, 0) * dim)
    logs = kappa[..., None] * (nodes - 1) + log_weights
    found = xp.log(xp.sum(xp.exp(logs - xp.max(logs, -1, keepdims=True)), -1)) + xp.max(logs, -1) + kappa - s / 2
    found = np.minimum(found, 0) if xp is np else found  # which rounding may leave above
    return found if log else xp.exp(found)
