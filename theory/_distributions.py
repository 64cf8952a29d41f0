"""Distributions of what rows of positive features estimate, and of sums of it, by convolution."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from theory._cubature import Array


def sums(cdf: Callable[[Array], Array], count: int, top: float, upwards: bool, cells: int = 1 << 13) -> float:
    """Return P[X₁ + … + X_count < top] of positive terms, each rounded to a grid: up, or down for more than it is."""
    from scipy.signal import fftconvolve

    edges = np.linspace(0, top, cells + 1)
    mass = np.diff(cdf(edges), prepend=0.0)  # of (edge − step, edge], from zero on
    mass = mass if upwards else np.append(mass[1:], 0.0)
    total, power = np.zeros(cells + 1), mass
    total[0] = 1.0
    for bit in reversed(f"{count:b}"):
        if bit == "1":
            total = np.maximum(fftconvolve(total, power)[: cells + 1], 0)
        power = np.maximum(fftconvolve(power, power)[: cells + 1], 0)
    return float(np.sum(total[: cells if upwards else cells + 1]))


def lognormal(s: float) -> Callable[[Array], Array]:
    """Return the distribution of X/K of positive features: exp(√s g − s/2) of a normal g."""
    from scipy.special import ndtr

    def cdf(values: Array) -> Array:
        with np.errstate(divide="ignore"):
            found: Array = ndtr((np.log(values) + s / 2) / math.sqrt(s))
        return found

    return cdf


def bounded(s: float, variance: float, dim: int) -> Callable[[Array], Array]:
    """Return the distribution of X/K with rows from N(0, variance · I).

    log X/K is log M_b − a |w − z/2a|² with a = (1 − 1/variance)/2, and |w − z/2a|² / variance is a noncentral χ².
    """
    from scipy.stats import ncx2

    a = (1 - 1 / variance) / 2
    most = dim / 2 * math.log(variance) + s / (2 * (variance - 1))

    def cdf(values: Array) -> Array:
        with np.errstate(divide="ignore"):
            away = np.maximum((most - np.log(values)) / a, 0) / variance
        found: Array = np.where(np.isinf(away), 0.0, ncx2.sf(away, dim, s / (4 * a * a * variance)))
        return found

    return cdf


def relative_variance(s: float, variance: float, dim: int) -> float:
    """Return RV of positive features with rows from N(0, variance · I)."""
    rho = 2 * variance - 1
    return math.exp(dim / 2 * math.log((1 + rho) ** 2 / (4 * rho)) + s / rho) - 1


def largest_term(s: float, variance: float, dim: int) -> float:
    """Return M_b."""
    return float(variance ** (dim / 2) * math.exp(s / (2 * (variance - 1))))
