"""How far one draw may be from the kernel, and what follows for the sum of many."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels._arrays import broadcasting
from rfkernels._checks import check_flags
from rfkernels.maps import FeatureMap
from rfkernels.proposals import Proposal
from rfkernels.variance._rows import Form, Pair, check_proposed, directions, form_of, resolve, scaled_pair, spread_of

_FAR = 40.0
"""Beyond the log of 2⁵³, the most draws there are."""


def bennett(xp: Any, log_variance: Any, log_reach: Any, error: float) -> Any:
    """Return RV/b² · h(b error/RV) = error²/RV · H(b error/RV), H(u) = h(u)/u²; 0 where b is infinite."""
    exists = (log_reach < xp.inf) & (log_variance < xp.inf) & (log_variance > -xp.inf)
    log_variance = xp.where(exists, log_variance, 0)
    log_u = xp.where(exists, log_reach, 0) + math.log(error) - log_variance
    beyond = log_u > _FAR  # where u² H(u) is u (log u − 1) to the last bit, and u itself may be no number
    u = xp.exp(xp.where(beyond, 0, log_u))
    small = u < 0.1
    near, far = xp.where(small, u, 0), xp.where(small, 1, u)
    series = xp.zeros_like(u)
    for j in range(16, -1, -1):
        series = 1 / ((j + 1) * (j + 2)) - series * near
    log_shape = xp.log(xp.where(small, series, ((1 + 1 / far) * xp.log1p(far) - 1) / far))
    log_shape = xp.where(beyond, xp.log(xp.where(beyond, log_u, 2) - 1) - log_u, log_shape)
    log_rate = 2 * math.log(error) - log_variance + log_shape
    return xp.where(exists, xp.exp(xp.minimum(log_rate, log_most(xp, log_rate.dtype))), 0)


def log_most(xp: Any, dtype: Any) -> float:
    """Return the log of a number that counts of draws can be multiplied with, and whose inverse is normal."""
    return math.log(float(xp.finfo(dtype).max)) - _FAR


@broadcasting
def term_bound(
    feature_map: str | FeatureMap,
    x: Any,
    y: Any,
    *,
    scale: float = 1.0,
    proposal: Proposal | None = None,
    log: bool = False,
) -> Any:
    """Return a bound on |X/K|, what one row of exponential features estimates relative to the kernel.

    For a Gaussian proposal of standard deviations σ_l > 1 it is Π σ_l exp(z_l²/(2(σ_l² − 1))), z = x + y − mean in its
    axes, attained by positive features; the same at each sign of x + y bounds hyperbolic ones. For trigonometric
    features it is Π σ_l exp(|x − y|²/2) if every σ_l is at least 1, as without a proposal.

    Parameters
    ----------
    feature_map, x, y, scale, proposal
        As in `relative`, of an exponential map of one of its forms.
    log : bool, default False
        Return the logarithm.

    Returns
    -------
    array, shape (*batch)
        inf where estimates are unbounded, as those of positive features without a proposal are.

    Raises
    ------
    TypeError, ValueError
        If shapes or types do not fit, or the map is not of a known form.
    """
    check_flags(log=log)
    feature_map, _ = resolve(feature_map, "iid")
    form = form_of(feature_map)
    if form is None:
        raise ValueError("term_bound needs a map that computes what positive, hyperbolic or trigonometric features do")
    check_proposed(feature_map, proposal)
    xp, pair = scaled_pair(x, y, scale)
    found = log_term_bound(xp, form, pair, proposal)
    if log:
        return found
    with np.errstate(over="ignore"):
        return xp.exp(found)


def log_term_bound(xp: Any, form: Form, pair: Pair, proposal: Proposal | None) -> Any:
    """Return the log of `term_bound` at scaled points."""
    spread = spread_of(xp, proposal, pair.x.shape[-1], pair.x.dtype)
    points = directions(xp, form, pair, spread)
    excess = (spread.sigma - 1) * (spread.sigma + 1)
    volume = xp.sum(xp.zeros_like(points[0]) + xp.log(spread.sigma), -1)
    if form.square_sign < 0:
        half = xp.sum(points[0] * points[0], -1) / 2
        return xp.where(xp.all(excess >= 0), volume + half, xp.inf)
    wide = excess > 0
    reach = [xp.sum(z * z / (2 * xp.where(wide, excess, 1)), -1) for z in points]
    largest = reach[0] if len(reach) == 1 else xp.maximum(*reach)
    return xp.where(xp.all(wide), volume + largest, xp.inf)
