"""From the estimates of groups to that of all, and its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rfkernels import partials
from rfkernels._arrays import root, stopped

Spread = Callable[..., tuple[Any, Any]]

UNITS = 16.0
"""Units of rounding of the sums, relative to the result, that no standard error is below."""


class Estimate(NamedTuple):
    """An estimate of attention from all groups, with the standard errors that their spread says.

    Parameters
    ----------
    output, log_normalizer, sign : arrays, shape (*batch, length, width) and twice (*batch, length)
        As in `AttentionResult`.
    error, log_error : arrays, of the shapes of output and log_normalizer
        Standard errors.
    effective : array, shape (*batch, length)
        The effective number of features.
    """

    output: Any
    log_normalizer: Any
    sign: Any
    error: Any
    log_error: Any
    effective: Any


def combine(xp: Any, outputs: Any, logs: Any, signs: Any, count: int, spread: Spread = partials.spread) -> Estimate:
    """Join what groups of equally many features estimate, and leave each of them out in turn.

    Sums over keys are averages of those of the groups, D_b, so that the output is o = Σ_b p_b o_b with p_b = D_b / Σ D.
    Without group b the output is off from o by −p_b (o_b − o) / Σ_{c≠b} p_c, and log D by the log of B / (B − 1) times
    that sum of p_c. The standard error of either is √((B − 1) / B) times the root of the sum of squares (Tukey 1958),
    taken about the estimate and not about the mean of what is left. That of the log is never below what rounding
    amounts to; that of the output is yet to be compared with it (`rounding`). Both are infinite where one group holds
    the whole sum but for the root of the smallest normal number (1e-19 in float32), beyond which derivatives overflow.
    `spread` is that of the backend.
    """
    groups = logs.shape[0]
    top = stopped(xp, xp.max(logs, 0))
    base = xp.where(top == -xp.inf, 0, top)
    sums = signs * xp.exp(logs - base)
    total = xp.sum(sums, 0)
    nothing = total == 0
    share = xp.where(nothing, 0, sums / xp.where(nothing, 1, total))
    log = xp.where(nothing, -xp.inf, xp.log(xp.where(nothing, 1, xp.abs(total))) + base - math.log(groups))

    left = _of_others(xp, share)
    gone = xp.abs(left) < math.sqrt(xp.finfo(log.dtype).tiny)
    left = xp.where(gone, 1, left)
    whole = xp.any(gone & (share != 0), 0)  # in one group
    factor, eps = (groups - 1) / groups, UNITS * xp.finfo(log.dtype).eps
    output, error = spread(xp, outputs, share, math.sqrt(factor) * (share / left))
    if xp is not np or whole.any():
        error = xp.where(whole[..., None], xp.inf, error)
    moved = xp.where(gone, 0, xp.log(xp.abs(left) / factor))
    least = eps * xp.maximum(xp.where(nothing, 0, xp.abs(log)), 1)
    log_error = xp.where(whole, xp.inf, xp.maximum(root(xp, factor * xp.sum(moved**2, 0)), least))

    variance = xp.sum((groups * share - 1) ** 2, 0) / (groups * (groups - 1))
    effective = xp.where(nothing, 0, count / (1 + count * variance))
    return Estimate(output, log, xp.sign(total), error, log_error, effective)


def rounding(xp: Any, output: Any, largest: Any, narrow: float) -> Any:
    """Return what rounding of an output may amount to.

    Rounding of sums is relative to the values that cancel in them. Unknown as these are, they are taken for as large as
    the largest output of the row, but for no larger than any value of the column, `largest`, lest a column of large
    numbers widen those of others. That of the result, `narrow`, is relative to each number.
    """
    size = stopped(xp, xp.abs(output))
    row = xp.max(size, -1, keepdims=True, initial=0)
    eps = UNITS * float(xp.finfo(output.dtype).eps)
    return xp.maximum(eps * xp.maximum(xp.minimum(row, largest), size), narrow * size)


def _of_others(xp: Any, share: Any) -> Any:
    """Return for each group the sum over all others."""
    nothing = xp.zeros_like(share[:1])
    before, after = xp.cumsum(share[:-1], 0), xp.cumsum(share[:0:-1], 0)[::-1]
    return xp.concatenate([nothing, before]) + xp.concatenate([after, nothing])
