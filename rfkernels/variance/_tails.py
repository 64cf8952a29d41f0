"""How probable a large relative error is, at most, and the count that makes it improbable enough."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from rfkernels._arrays import broadcasting
from rfkernels._checks import check_qk, is_number
from rfkernels.maps import FeatureMap
from rfkernels.proposals import Proposal
from rfkernels.samplers import Rows, Sampler
from rfkernels.variance import _sphere
from rfkernels.variance._relative import Parts, log_of, mean_error, parts_of
from rfkernels.variance._rows import (
    Form,
    Pair,
    check_count,
    columns_per_draw,
    coupled_pairs,
    form_of,
    resolve,
    scaled_pair,
)
from rfkernels.variance._terms import bennett, log_most, log_term_bound

Side = Literal["two", "lower", "upper"]

_MOST = 2.0**53
"""Counts beyond are not told apart by floats, nor ever drawn."""


@broadcasting
def tail_bound(
    feature_map: str | FeatureMap,
    x: Any,
    y: Any,
    error: float,
    *,
    count: int,
    sampler: str | Sampler | Rows = "orthogonal",
    scale: float = 1.0,
    proposal: Proposal | None = None,
    side: Side = "two",
) -> Any:
    """Bound the probability that k̂(x, y) is off by `error` · k(x, y) or more.

    The least of the bounds that are proved for the rows at hand. With V of `relative`, its value RV of one draw (a
    row, or an antithetic pair) and n draws:

    - always: V/error², and on one side V/(V + error²) (Chebyshev and Cantelli; for the biased rows of the
      "regularized" sampler V/error² on each side);
    - for estimates of draws that are at most b above or below their mean, on that side
      exp(−n RV/b² · h(b error/RV)) with h(u) = (1 + u) log(1 + u) − u (Bennett's inequality, from which Bernstein's
      follows), and for both sides the sum of two.

    Draws of nonnegative maps lie at most b = 1 below the mean. Those of exponential features lie at most
    `term_bound` − 1 above it. The lower bound, and the upper one of trigonometric features, is used for
    independent draws only. The upper one of positive and hyperbolic features, antithetic or not, is used for
    orthogonal draws too: given the norms, an estimate is a power series in w·z with coefficients of one sign, and for
    orthonormal directions E Π (u_i·z)^(k_i) is at most the product of the means, so no exponential moment of the sum
    is above that of independent rows (the argument of theorem 3 of Performers, arXiv 2009.14794).

    Parameters
    ----------
    feature_map, x, y, count, sampler, scale, proposal
        As in `relative`.
    error : float
        The relative error, positive.
    side : {"two", "lower", "upper"}, default "two"
        Whether k̂ ≤ (1 − error) k, k̂ ≥ (1 + error) k, or either counts.

    Returns
    -------
    array, shape (*batch)
        At most 1.

    Raises
    ------
    TypeError, ValueError
        As `relative`, and if `error` is not positive and finite or `side` is not one of the three.
    """
    feature_map, sampler = resolve(feature_map, sampler)
    draws = check_count(feature_map, sampler, count)
    _check_error(error, side)
    xp, pair = scaled_pair(x, y, scale)
    dim, form = pair.x.shape[-1], form_of(feature_map)
    if form is not None and sampler.law != "normal":
        scaled, top = _sphere.error(xp, form, pair, draws, sampler, proposal)
        return xp.exp(xp.minimum(log_of(xp, scaled, top) - 2 * math.log(error), 0))
    parts = parts_of(xp, feature_map, pair, sampler, proposal, coupled=coupled_pairs(draws, dim) > 0)
    rates = _rates(xp, feature_map, form, pair, sampler, proposal, parts, error)
    return _bound(xp, log_of(xp, mean_error(parts, draws, dim), parts.top), rates, draws, error, side)


@broadcasting
def features_needed(
    error: float,
    confidence: float,
    feature_map: str | FeatureMap,
    x: Any,
    y: Any,
    *,
    sampler: str | Sampler | Rows = "orthogonal",
    scale: float = 1.0,
    proposal: Proposal | None = None,
    side: Side = "two",
) -> Any:
    """Return the smallest count with a `tail_bound` of at most 1 − confidence: enough columns for that error.

    Parameters
    ----------
    error : float
        The relative error, positive.
    confidence : float
        The probability that it is not reached, in (0, 1).
    feature_map, x, y, sampler, scale, proposal
        As in `relative`.
    side : {"two", "lower", "upper"}, default "two"
        As in `tail_bound`.

    Returns
    -------
    array of float64, shape (*batch)
        Whole numbers, multiples of what one row (or an antithetic pair) takes; inf if more than 2⁵³ draws are needed.
        Always a NumPy array: it is found by bisection, on the host.

    Raises
    ------
    TypeError, ValueError
        As `tail_bound`, and if `confidence` is not in (0, 1) or estimates are biased (the sampler "regularized").

    Examples
    --------
    >>> import numpy as np
    >>> from rfkernels import variance
    >>> x = np.array([0.5, 0.0, 0.0, 0.0])
    >>> float(variance.features_needed(0.1, 0.95, "positive", x, x))
    3048.0
    """
    feature_map, sampler = resolve(feature_map, sampler)
    _check_error(error, side)
    if not (isinstance(confidence, int | float | np.floating) and 0 < confidence < 1):
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
    if sampler.law != "normal":
        raise ValueError(f"estimates from the sampler {sampler.name!r} are biased: no count may be enough")
    check_qk(x, y, names=("x", "y"), pairs=True)
    xp, pair = scaled_pair(np.asarray(x), np.asarray(y), scale)
    dim, form, allowed = pair.x.shape[-1], form_of(feature_map), 1 - confidence
    parts = parts_of(xp, feature_map, pair, sampler, proposal, coupled=True)
    rates = _rates(xp, feature_map, form, pair, sampler, proposal, parts, error)

    def enough(draws: Any) -> Any:
        log_error = log_of(xp, mean_error(parts, draws, dim), parts.top)
        return _bound(xp, log_error, rates, draws, error, side) <= allowed

    return _smallest(enough, parts.top.shape, dim) * columns_per_draw(feature_map, sampler)


def _smallest(enough: Callable[[Any], Any], shape: tuple[int, ...], dim: int) -> Any:
    """Return the smallest number of draws that is enough, inf if 2⁵³ are not.

    Errors fall from whole block to whole block; inside a block, where one more row may raise them, n² times the excess
    is convex in n, so that in the block before the first whole one that is enough they cross once, and in those
    before not at all. (1 − C of trigonometric features may be below 0, but for dim up to 128 never by more than a
    twentieth of what it would take for another order.)
    """
    blocks = _bisect(lambda n: enough(n * dim), np.zeros(shape), np.full(shape, np.floor(_MOST / dim)))
    low = np.maximum(blocks - 1, 0) * dim
    found = _bisect(enough, low, blocks * dim)
    return np.where(enough(found), found, np.inf)


def _bisect(enough: Callable[[Any], Any], low: Any, high: Any) -> Any:
    """Return the smallest whole number in (low, high] that is enough, high if none is."""
    while np.any(high - low > 1):
        middle = np.maximum(np.floor((low + high) / 2), 1)
        yes = enough(middle)
        low, high = np.where(yes, low, middle), np.where(yes, np.minimum(middle, high), high)
    return high


class _Rates(NamedTuple):
    """What a draw adds to the exponents of both sides; 0 where no exponential bound is proved."""

    lower: Any
    upper: Any


def _bound(xp: Any, log_error: Any, rates: _Rates, draws: Any, error: float, side: Side) -> Any:
    log_ratio = log_error - 2 * math.log(error)
    lower, upper = (xp.exp(-draws * rate) for rate in rates)
    if side == "two":
        by_variance = xp.exp(xp.minimum(log_ratio, 0))
        return xp.minimum(by_variance, lower + upper)
    most = log_most(xp, log_ratio.dtype)
    one_sided = 1 / (1 + xp.exp(-xp.clip(log_ratio, -most, most)))
    return xp.minimum(xp.where(log_ratio == -xp.inf, 0, one_sided), lower if side == "lower" else upper)


def _rates(
    xp: Any,
    feature_map: FeatureMap,
    form: Form | None,
    pair: Pair,
    sampler: Sampler,
    proposal: Proposal | None,
    parts: Parts,
    error: float,
) -> _Rates:
    log_variance = log_of(xp, parts.one, parts.top)
    none = xp.zeros_like(log_variance)
    independent = sampler.coupling == "independent"
    even_powers = sampler.coupling == "orthogonal" and form is not None and form.square_sign > 0
    lower = upper = none
    if form is not None and (independent or even_powers):
        log_top = log_term_bound(xp, form, pair, proposal)
        upper = bennett(xp, log_variance, log_top + xp.log(-xp.expm1(-xp.maximum(log_top, 1e-30))), error)
    if independent and feature_map.nonnegative:
        lower = bennett(xp, log_variance, none, error)
    elif independent and form is not None:
        lower = bennett(xp, log_variance, xp.logaddexp(log_top, none), error)
    return _Rates(lower, upper)


def _check_error(error: Any, side: Any) -> None:
    if not (is_number(error) and error > 0):
        raise ValueError(f"error must be a positive finite number, got {error!r}")
    if side not in ("two", "lower", "upper"):
        raise ValueError(f"side must be 'two', 'lower' or 'upper', got {side!r}")
