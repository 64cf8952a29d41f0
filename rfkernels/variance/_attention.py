"""The predicted error of attention."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import broadcasting
from rfkernels._checks import check_flags, check_mask, check_qkv, check_scale, require_finite_arrays
from rfkernels.maps import FeatureMap
from rfkernels.proposals import Proposal
from rfkernels.samplers import Rows, Sampler
from rfkernels.variance._cross import cross_form, log_wave, waves, zonals
from rfkernels.variance._relative import require_isotropic
from rfkernels.variance._rows import (
    Form,
    Pair,
    Spread,
    check_count,
    check_width,
    cosine_of,
    coupled_pairs,
    directions,
    resolve,
    spread_of,
)

_BLOCK = 1 << 19
"""How many pairs of keys are taken at a time."""

_FAR = 1000.0


@broadcasting
def attention_error(
    feature_map: str | FeatureMap,
    q: Any,
    k: Any,
    v: Any,
    *,
    count: int,
    sampler: str | Sampler | Rows = "orthogonal",
    scale: float | None = None,
    proposal: Proposal | None = None,
    causal: bool = False,
    mask: Any = None,
    relative: bool = True,
) -> Any:
    """Predict the root-mean-square error of each row of linear attention's output, without drawing features.

    The delta method: to first order in the errors of kernels the output is off by Σ_j A_j (k̂_j/k_j − 1)(v_j − o), A
    and o being exact weights and output, so that its mean square is Σ_ij A_i A_j M_ij (v_i − o)·(v_j − o) with M_ij of
    `cross_moment`. It is exact in the limit of many features, and right to a few percent where they are many, at
    errors of a hundredth or two; of trigonometric features up to 0.1. Outputs of nonnegative features stay among the
    values, whose spread is all that they can err by: of rows in which a few draws decide, the prediction is too large
    by up to a half at 0.1, and without limit above 0.3 or so. Read it as "does not work" there, not as a number.

    Parameters
    ----------
    feature_map : str or FeatureMap
        An exponential map of one of the forms of `relative`.
    q : array, shape (*batch, length, dim)
        Queries. Time grows with length · keys², so a sample of the queries may be enough.
    k, v : array, shape (*batch, keys, dim) and (*batch, keys, width)
        Keys and values.
    count : int
        Feature columns, as in `rfkernels.draw`.
    sampler, proposal
        As in `relative`, of normal rows.
    scale : float, optional
        Multiplies q·k; 1/√dim by default, as in `rfkernels.draw`.
    causal : bool, default False
        Whether query t sees keys up to t only; the last query is aligned with the last key.
    mask : array of bool, shape (*batch, keys), optional
        True where a key may be attended.
    relative : bool, default True
        Whether errors are divided by |o|.

    Returns
    -------
    numpy.ndarray of float64, shape (*batch, length)
        0 where nothing or one key may be attended, and where squares of scaled points are below the range of floats;
        inf beyond that range. Computed on the host.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, a value is not finite, or no closed form is known, as in `cross_moment`.
    """
    check_flags(causal=causal, relative=relative)
    feature_map, sampler = resolve(feature_map, sampler)
    form = cross_form(feature_map, sampler, proposal)
    draws = check_count(feature_map, sampler, count)
    check_qkv(q, k, v)
    check_width("q", q)
    check_mask(mask, k, q=q.shape[:-2], v=v.shape[:-2])
    check_scale(scale)
    require_finite_arrays(q=q, k=k, v=v)
    dim, keys = q.shape[-1], k.shape[-2]
    root = math.sqrt(1 / math.sqrt(dim) if scale is None else scale)
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    spread = spread_of(np, proposal, dim, np.dtype(np.float64))
    if not np.all(2 * spread.sigma**2 > 1):
        raise ValueError("estimates have an infinite variance: every variance of the proposal must be above 1/2")
    coupling = _coupling(form, sampler, spread, draws, dim)
    problem = _Problem(feature_map.offset, form, sampler.antithetic, spread, coupling, dim)
    batch = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    unit = np.max(np.abs(v), (-2, -1), keepdims=True, initial=0)  # so that no square of values leaves the range
    unit = np.where(unit > 0, unit, 1)
    q, k, v = (np.broadcast_to(a, (*batch, *a.shape[-2:])) for a in (q * root, k * root, v / unit))
    allowed = np.broadcast_to(True if mask is None else np.asarray(mask), (*batch, keys))
    found = np.zeros((*batch, q.shape[-2]))
    step, offset = max(1, _BLOCK // max(1, keys * max(keys, dim))), keys - q.shape[-2]
    for index in np.ndindex(*batch):
        for start in range(0, q.shape[-2], step):
            rows = q[index][start : start + step]
            seen = np.broadcast_to(allowed[index], (len(rows), keys))
            if causal:
                seen = seen & (np.arange(keys) <= start + offset + np.arange(len(rows))[:, None])
            found[(*index, slice(start, start + step))] = _rows(problem, rows, k[index], v[index], seen, relative)
    with np.errstate(over="ignore"):
        return found / math.sqrt(draws) * (1 if relative else unit[..., 0])


class _Problem(NamedTuple):
    offset: float
    form: Form
    antithetic: bool
    spread: Spread
    coupling: list[tuple[int, float]]
    dim: int


def _coupling(form: Form, sampler: Sampler, spread: Spread, draws: int, dim: int) -> list[tuple[int, float]]:
    """Degrees of harmonics and their weights, relative to the moments of one draw."""
    cosine, coupled = cosine_of(sampler, dim), coupled_pairs(draws, dim)
    if cosine is None or not coupled:
        return []
    require_isotropic(form, sampler, spread)
    even = sampler.antithetic or len(form.signs) == 2
    return [(degree, weight * coupled / draws) for degree, weight in waves(dim, cosine, even, 1e-3)]


def _rows(problem: _Problem, q: Any, k: Any, v: Any, seen: Any, relative: bool) -> Any:
    """Return errors of some queries for one draw."""
    form, spread = problem.form, problem.spread
    sums = q[:, None] + form.key_sign * k
    norms = np.sum(q * q, -1)[:, None] + np.sum(k * k, -1)
    logs = form.square_sign * np.sum(sums * sums, -1) / 2 + problem.offset * norms
    logs = np.where(seen, logs, -np.inf)
    top = np.max(logs, -1, keepdims=True, initial=-np.inf)
    weights = np.exp(logs - np.where(top == -np.inf, 0, top))
    total = np.sum(weights, -1, keepdims=True)
    weights = weights / np.where(total > 0, total, 1)
    output = weights @ v
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    points = directions(np, form, Pair(q[:, None], k[None]), spread)
    moments, shift = _moments(problem, points, log_weights)
    apart = v - output[:, None]
    squares = np.sum((moments @ apart) * apart, (-1, -2))
    error = np.sqrt(np.maximum(squares, 0))
    if relative:
        error = _ratio(error, np.sqrt(np.sum(output * output, -1)))
    with np.errstate(over="ignore", divide="ignore"):
        return np.exp(shift + np.log(error))


def _ratio(error: Any, size: Any) -> Any:
    return np.where(error == 0, 0, np.where(size > 0, error / np.where(size > 0, size, 1), np.inf))


def _moments(problem: _Problem, points: list[Any], log_weights: Any) -> tuple[Any, Any]:
    """Return A_i A_j (M_ij − c) e^(−2 shift), (queries, keys, keys), and shift; what c is does not matter."""
    sign, (bend, turn) = problem.form.square_sign, _quadratics(problem.spread)
    volume = np.sum(_volumes(problem.spread) + np.zeros(problem.dim))
    squares = [volume / 2 + sign * np.sum(bend * z * z, -1) for z in points]
    exponents = []
    for left, one in zip(squares, points, strict=True):
        for right, other in zip(squares, points, strict=True):
            gram = sign * ((one * turn) @ np.swapaxes(other, -1, -2))
            outer = left[:, :, None] + right[:, None, :]
            exponents += [outer + gram, outer - gram] if problem.antithetic else [outer + gram]
    if len(exponents) > 2 and problem.spread.mean is None:
        exponents = exponents[:2]  # those at −z repeat those at z
    both = log_weights[:, :, None] + log_weights[:, None, :]
    live = both > -np.inf
    highest = np.max([np.max(e, (-1, -2), where=live, initial=-np.inf) for e in exponents], 0)
    if np.all(highest < 1):
        shift = np.zeros(len(both))
        moments = np.mean([np.expm1(np.where(live, e, 0)) for e in exponents], 0) * np.exp(both)
    else:
        sums = [np.where(live, e + np.where(live, both, 0), -np.inf) for e in exponents]
        shift = np.max([np.max(e, (-1, -2)) for e in sums], 0) / 2
        shift = np.where(shift == -np.inf, 0, shift)
        moments = np.mean([np.exp(e - 2 * shift[:, None, None]) for e in sums], 0)
    return moments + _coupled(problem, points[0], log_weights - shift[:, None]), shift


def _coupled(problem: _Problem, points: Any, log_weights: Any) -> Any:
    """Return what the rows of a block add to the moments."""
    if not problem.coupling:
        return 0.0
    squares, sign = np.sum(points * points, -1), problem.form.square_sign
    gram, total = points @ np.swapaxes(points, -1, -2), 0.0
    near = squares < _FAR  # beyond, the moments of one draw are larger by orders of magnitude
    squares, log_weights = np.where(near, squares, 1), np.where(near, log_weights, 0)
    weights = dict(problem.coupling)
    angles = zonals(np, gram, squares[:, :, None], squares[:, None, :], problem.dim, max(weights))
    for degree, zonal in enumerate(angles, 1):
        if degree in weights:
            wave = np.where(near, np.exp(log_weights + log_wave(np, squares, problem.dim, degree, sign)), 0)
            total = total + weights[degree] * sign**degree * (wave[:, :, None] * wave[:, None, :] * zonal)
    return total


def _quadratics(spread: Spread) -> tuple[Any, Any]:
    """Return (1/ρ − 1)/4 and (1/ρ + 1)/2."""
    inverse = 1 / (2 * spread.sigma**2 - 1)
    return (inverse - 1) / 4, (inverse + 1) / 2


def _volumes(spread: Spread) -> Any:
    """Return ½ log((1 + ρ)²/4ρ) of each axis."""
    rho = 2 * spread.sigma**2 - 1
    return np.log((1 + rho) ** 2 / (4 * rho)) / 2
