"""From the estimates of groups to that of all, and its standard error."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import matmul

UNITS = 16.0
"""Units of rounding of the sums, relative to the result, that no standard error is below."""

_TILE = 1 << 15
"""Numbers of each group that NumPy takes at a time, so that they stay in the cache."""


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


def combine(xp: Any, outputs: Any, logs: Any, signs: Any, count: int, rounding: float = 0.0) -> Estimate:
    """Join what groups of equally many features estimate, and leave each of them out in turn.

    Sums over keys are averages of those of the groups, D_b, so that the output is o = Σ_b p_b o_b with p_b = D_b / Σ D.
    Without group b the output is off from o by −p_b (o_b − o) / Σ_{c≠b} p_c, and log D by the log of B / (B − 1) times
    that sum of p_c. The standard error of either is √((B − 1) / B) times the root of the sum of squares (Tukey 1958),
    taken about the estimate and not about the mean of what is left. It is infinite where one group holds the whole sum,
    and never below what rounding amounts to, which is at least `rounding` relative to a row.
    """
    groups = logs.shape[0]
    top = xp.max(logs, 0)
    base = xp.where(top == -xp.inf, 0, top)
    sums = signs * xp.exp(logs - base)
    total = xp.sum(sums, 0)
    nothing = total == 0
    share = xp.where(nothing, 0, sums / xp.where(nothing, 1, total))
    log = xp.where(nothing, -xp.inf, xp.log(xp.where(nothing, 1, xp.abs(total))) + base - math.log(groups))

    left = matmul(xp, 1 - xp.eye(groups, dtype=share.dtype), share.reshape(groups, -1)).reshape(share.shape)
    gone = left == 0
    left = xp.where(gone, 1, left)
    whole = xp.any(gone & (share != 0), 0)  # in one group
    output, squares = _output(xp, outputs, share, share / left)
    factor, eps = (groups - 1) / groups, UNITS * xp.finfo(log.dtype).eps
    size = xp.max(xp.abs(output), -1, keepdims=True, initial=0)
    error = xp.where(whole[..., None], xp.inf, xp.maximum(xp.sqrt(factor * squares), max(rounding, eps) * size))
    moved = xp.where(gone, 0, xp.log(xp.abs(left) / factor))
    least = eps * xp.maximum(xp.where(nothing, 0, xp.abs(log)), 1)
    log_error = xp.where(whole, xp.inf, xp.maximum(xp.sqrt(factor * xp.sum(moved**2, 0)), least))

    variance = xp.sum((groups * share - 1) ** 2, 0) / (groups * (groups - 1))
    effective = xp.where(nothing, 0, count / (1 + count * variance))
    return Estimate(output, log, xp.sign(total), error, log_error, effective)


def _output(xp: Any, outputs: Any, share: Any, ratio: Any) -> tuple[Any, Any]:
    """Return Σ share · outputs, and the sum of squares of ratio · (outputs − that)."""
    shape = outputs.shape[1:]
    rows, width = math.prod(shape[:-1]), shape[-1]
    outputs = outputs.reshape(len(outputs), rows, width)
    share, ratio = (x.reshape(len(x), rows, 1) for x in (share, ratio))
    step = max(rows, 1) if xp is not np else max(1, _TILE // max(width, 1))
    averages, squares = [], []
    for start in range(0, max(rows, 1), step):
        parts, weights, factors = (x[:, start : start + step] for x in (outputs, share, ratio))
        average = sum(p * w for p, w in zip(parts, weights, strict=True))
        averages.append(average)
        squares.append(sum((f * (p - average)) ** 2 for p, f in zip(parts, factors, strict=True)))
    return xp.concatenate(averages).reshape(shape), xp.concatenate(squares).reshape(shape)
