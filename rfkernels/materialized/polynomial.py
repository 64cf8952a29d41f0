"""Taylor features: all monomials up to a degree, and the remainder that they leave."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from rfkernels.materialized._records import read_only, scale_of, size
from rfkernels.materialized.monomials import Monomials, log_weights

MOST = 1 << 22
"""Columns that Taylor features may have."""


def taylor(dim: int, degree: int, *, scale: float | None = None) -> Monomials:
    """Return Taylor features: φ_α(x) = x^α / √α! for all α of degree up to N, so that φ(x)·φ(y) = Σ_{n≤N} (x·y)ⁿ / n!.

    Not random and biased: the error is Taylor's remainder (see `relative_bias`). Estimates are positive if N is even,
    not if it is odd. Degree 2 is the map of Based (arXiv 2402.18668). Monomials that differ in the order of factors
    only are one column, so there are binomial(dim + N, N) of them instead of 1 + dim + … + dim^N.

    Parameters
    ----------
    dim : int
        The width of queries and keys.
    degree : int
        N, at least 0.
    scale : float, optional
        Multiplies q·k; split evenly over both sides. 1/√dim by default.

    Returns
    -------
    Monomials

    Raises
    ------
    ValueError
        If a size or the scale is out of its range, or there would be more than 2²² columns.

    Examples
    --------
    >>> from rfkernels import materialized
    >>> materialized.taylor(16, 2).count
    153
    """
    dim, degree = size("dim", dim), size("degree", degree, 0)
    few = min(dim, degree)
    if few > 12 or math.comb(dim + degree, few) > MOST:  # binomial(26, 13) is more, and others would take long
        raise ValueError(f"degree must leave {MOST:,} columns or fewer, got {degree} for dim {dim}")
    chosen = [index for n in range(degree + 1) for index in combinations_with_replacement(range(dim), n)]
    exponents = np.zeros((len(chosen), dim), np.int64)
    for row, index in zip(exponents, chosen, strict=True):
        np.add.at(row, list(index), 1)
    log_weight, degree_array = log_weights("taylor", exponents, degree), read_only(float(degree))
    return Monomials("taylor", read_only(exponents), read_only(log_weight), degree_array, scale_of(scale, dim))


def log_remainder(dot: Any, degree: int) -> tuple[Any, Any]:
    """Return the log of |T_N(L) e^{−L} − 1| and its sign, T_N Taylor's polynomial of degree N.

    The remainder is L^{N+1}/(N+1)! ₁F₁(1; N+2; L), and ₁F₁(1; N+2; L) = (N+1) ∫ e^{Lt} (1 − t)^N dt over (0, 1): no
    large part is subtracted, neither for negative L.
    """
    from scipy.special import gammainc, gammaln, hyp1f1

    n = degree + 1
    magnitude = np.abs(dot)
    power = n * np.log(np.where(magnitude == 0, 1, magnitude)) - gammaln(n + 1)
    # Kummer: e^{−L} ₁F₁(1; N+2; L) = ₁F₁(N+1; N+2; −L), at most 1 for L > 0; for L < 0 the other form is.
    log = power + np.where(
        dot > 0,
        np.log(hyp1f1(n, n + 1, -np.clip(dot, 0, n))),
        np.log(hyp1f1(1, n + 1, np.minimum(dot, 0))) + np.maximum(-dot, 0),
    )
    log = np.where(dot > n, np.log(gammainc(n, np.maximum(dot, n))), log)  # where that would vanish
    sign = np.where(dot > 0, -1.0, np.where(dot == 0, 0.0, -((-1.0) ** n)))
    return np.where(magnitude == 0, -np.inf, log), sign
