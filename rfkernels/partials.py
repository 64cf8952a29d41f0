"""Weighted sums over some of the keys, on a log scale per query: what exact and estimated parts are joined as."""

from __future__ import annotations

from typing import Any, NamedTuple

from rfkernels._arrays import stopped


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
