"""Weighted sums over some of the keys, on a log scale per query: what exact and estimated parts are joined as."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import root, stopped


class Partial(NamedTuple):
    """Sums for each query over some keys, divided by exp(shift): Σ weight · v and Σ weight.

    Parameters
    ----------
    numerator : array, shape (*batch, length, width)
    denominator : array, shape (*batch, length)
    shift : array, shape (*batch, length)
        −inf where there is no key.
    """

    numerator: Any
    denominator: Any
    shift: Any


def join(xp: Any, first: Partial, second: Partial) -> Partial:
    """Add the sums of two disjoint sets of keys.

    Where one has none, its scale, which is 1 for a map that is not exponential, must not drown the other.
    """
    scales = [xp.where(part.denominator == 0, -xp.inf, part.shift) for part in (first, second)]
    scales = [
        xp.where(xp.any(part.numerator != 0, -1), part.shift, scale)
        for part, scale in zip((first, second), scales, strict=True)
    ]
    shift = stopped(xp, xp.maximum(*scales))
    base = xp.where(shift == -xp.inf, 0, shift)
    one, two = (xp.exp(scale - base) for scale in scales)
    numerator = first.numerator * one[..., None] + second.numerator * two[..., None]
    return Partial(numerator, first.denominator * one + second.denominator * two, shift)


def stack(xp: Any, parts: list[Partial]) -> Partial:
    """Put the sums of consecutive queries together."""
    numerators, denominators, shifts = zip(*parts, strict=True)
    return Partial(xp.concatenate(numerators, -2), xp.concatenate(denominators, -1), xp.concatenate(shifts, -1))


def normalize(xp: Any, part: Partial) -> Any:
    """Return Σ weight · v / Σ weight, and zeros where the denominator is exactly zero."""
    nothing = part.denominator == 0
    return xp.where(nothing[..., None], 0, part.numerator / xp.where(nothing, 1, part.denominator)[..., None])


def log_denominator(xp: Any, part: Partial) -> tuple[Any, Any]:
    """Return log |Σ weight| and its sign."""
    magnitude = xp.abs(part.denominator)
    log = xp.log(xp.where(magnitude == 0, 1, magnitude)) + part.shift
    return xp.where(magnitude == 0, -xp.inf, log), xp.sign(part.denominator)


_TILE = 1 << 15
"""Numbers of each estimate that NumPy takes at a time, so that they stay in the cache."""


def spread(xp: Any, outputs: Any, share: Any, ratio: Any) -> tuple[Any, Any]:
    """Return the average of several estimates, and how far they are spread.

    Estimates enter as their differences from the one of the largest share. How far that one is from the average is thus
    known to rounding even where it is nearly all of it, and `ratio` so large that rounding of the average would be all
    that is seen.

    Parameters
    ----------
    outputs : array, shape (estimates, *batch, length, width)
    share, ratio : array, shape (estimates, *batch, length)
        Shares add up to 1, or all are 0.

    Returns
    -------
    average, error : array, shape (*batch, length, width)
        a = Σ share · outputs and the root of Σ (ratio · (outputs − a))².
    """
    if xp is not np:
        return _spread(xp, outputs, share[..., None], ratio[..., None])
    shape = outputs.shape[1:]
    rows, width = math.prod(shape[:-1]), shape[-1]
    given = outputs.reshape(len(outputs), rows, width), *(x.reshape(len(x), rows, 1) for x in (share, ratio))
    step = max(1, _TILE // max(width, 1))
    parts = [_spread(xp, *(x[:, start : start + step] for x in given)) for start in range(0, max(rows, 1), step)]
    averages, errors = (xp.concatenate(x).reshape(shape) for x in zip(*parts, strict=True))
    return averages, errors


def _spread(xp: Any, outputs: Any, share: Any, ratio: Any) -> tuple[Any, Any]:
    first = xp.take_along_axis(outputs, xp.argmax(xp.abs(share), 0, keepdims=True), 0)[0]
    moved = sum((p - first) * w for p, w in zip(outputs, share, strict=True))
    average = xp.sum(share, 0) * first + moved
    squares = sum((f * (p - first - moved)) ** 2 for p, f in zip(outputs, ratio, strict=True))
    return average, root(xp, squares)
