"""How far standard errors of few draws are to be trusted."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels.catalog.plan import Plan

_FAR = 1.959964
"""Deviations within which 95 % of normal numbers lie."""

WIDER = (
    (_FAR**2 + 1) / 4,
    (5 * _FAR**4 + 16 * _FAR**2 + 3) / 96,
    (3 * _FAR**6 + 19 * _FAR**4 + 17 * _FAR**2 - 15) / 384,
)
"""What 95 % of numbers of Student's distribution with n degrees of freedom lie within, relative to normal ones: about 1
+ these over n, n² and n³ (Abramowitz and Stegun, Handbook of mathematical functions, 26.7.5).
"""

FEW = 4.0
"""With as many differences of draws as this, in effect, a larger variance that was predicted counts for half."""


def widening(square: float, fourth: float) -> float:
    """Return what a variance from the squares of differences is multiplied by, of which there may be few in effect.

    It is the square of how much farther Student's distribution reaches than a normal one, of (Σ d²)² / Σ d⁴ degrees of
    freedom and at least one.
    """
    few = min(fourth / square**2, 1.0) if 0 < fourth < np.inf and 0 < square**2 < np.inf else 1.0
    return (1 + few * (WIDER[0] + few * (WIDER[1] + few * WIDER[2]))) ** 2


def trusted_error(parts: Any, log: float, chosen: Plan) -> float:
    """Return the relative standard error of a sum of one draw from each stratum.

    It comes from squared differences d² of pairs of neighbouring strata, of which there are n = (Σ d²)² / Σ d⁴ in
    effect: all of them if they are the same, and none if nothing was drawn that weighs anything. Few large draws do not
    show the tail that they have missed: of what was predicted beyond, a share of FEW² / (n² + FEW²) counts.
    """
    seen, beyond = variances(parts, log, chosen)
    return float(np.sqrt(seen + beyond))


def variances(parts: Any, log: float, chosen: Plan) -> tuple[float, float]:
    """Return the squared relative error that differences show, and what counts of the prediction beyond it."""
    pairs = parts[: len(parts) // 2 * 2].reshape(-1, 2)
    square = (pairs[:, 0] - pairs[:, 1]) ** 2
    largest = square.max(initial=0)
    relative = square / largest if largest > 0 else np.full(len(pairs), float(parts.any()))
    effective = relative.sum() ** 2 / max((relative**2).sum(), 1)
    with np.errstate(over="ignore"):
        predicted = np.exp(2 * (chosen.log_error - log))
    seen = square.sum() * len(parts) / pairs.size
    share = FEW**2 / (effective**2 + FEW**2)
    return float(seen), float(share * max(predicted - seen, 0))
