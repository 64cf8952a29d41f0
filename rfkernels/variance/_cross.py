"""How estimates of one row at different keys move together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from rfkernels._arrays import broadcasting
from rfkernels._checks import check_qk, require_finite_arrays
from rfkernels.maps import FeatureMap
from rfkernels.proposals import Proposal
from rfkernels.samplers import Rows, Sampler
from rfkernels.variance import _series
from rfkernels.variance._relative import require_isotropic
from rfkernels.variance._rows import (
    Form,
    Pair,
    check_count,
    check_proposed,
    cosine_of,
    coupled_pairs,
    directions,
    form_of,
    log_second_moment,
    mean_excess,
    resolve,
    scaled_pair,
    spread_of,
)


@broadcasting
def cross_moment(
    feature_map: str | FeatureMap,
    x: Any,
    y: Any,
    other: Any,
    *,
    count: int | None = None,
    sampler: str | Sampler | Rows = "iid",
    scale: float = 1.0,
    proposal: Proposal | None = None,
) -> Any:
    """Return E k̂(x, y) k̂(x, other) / (k(x, y) k(x, other)): how estimates at two keys move together.

    For one row of positive features under a Gaussian proposal it is G exp(|m|²/ρ − |y − other|²/4) with
    m = x + (y + other)/2 less the mean, and G and ρ as in `relative`: exp(z·z') without a proposal, z = x + y and
    z' = x + other. Hyperbolic features have the mean of that at ±z', trigonometric ones likewise with differences.
    n independent draws have 1 + (M − 1)/n, coupled ones the further term of rows in one block, a sum over spherical
    harmonics of degree l of P_l(c) P_l(cos θ) λ_l(|z|²) λ_l(|z'|²) with c the cosine of rows, θ the angle of z and z'.

    Parameters
    ----------
    feature_map : str or FeatureMap
        An exponential map of one of the forms of `relative`.
    x, y, other : array, shape (*batch, dim)
        A point and two others to estimate its kernel with; batch axes broadcast.
    count : int, optional
        Feature columns; those of one draw, a row or an antithetic pair, by default.
    sampler : str, Sampler or callable, default "iid"
        As in `relative`, of normal rows.
    scale, proposal
        As in `relative`.

    Returns
    -------
    array, shape (*batch)
        1 plus `relative` where y and other are the same; 1 for estimates that are not correlated.

    Raises
    ------
    TypeError, ValueError
        As `relative`, and for maps of no known form and the biased rows of "regularized".
    """
    feature_map, sampler = resolve(feature_map, sampler)
    form = cross_form(feature_map, sampler, proposal)
    draws = 1 if count is None else check_count(feature_map, sampler, count)
    check_qk(x, other, names=("x", "other"), pairs=True)
    require_finite_arrays(other=other)
    xp, pair = scaled_pair(x, y, scale)
    second = Pair(pair.x, scaled_pair(x, other, scale)[1].y)
    dim = pair.x.shape[-1]
    spread = spread_of(xp, proposal, dim, pair.x.dtype)
    ones, others = directions(xp, form, pair, spread), directions(xp, form, second, spread)
    ones, others = (list(xp.broadcast_arrays(*ones, *others))[s] for s in (slice(len(ones)), slice(len(ones), None)))
    turns = (1, -1) if sampler.antithetic else (1,)
    sign = form.square_sign
    exponents = [log_second_moment(xp, spread, sign, a, b, turn) for a in ones for b in others for turn in turns]
    moment = mean_excess(xp, exponents)
    with np.errstate(over="ignore"):
        total = 1 + xp.exp(moment.top) * moment.scaled / draws
    cosine, coupled = cosine_of(sampler, dim), coupled_pairs(draws, dim)
    if cosine is None or not coupled:
        return total
    require_isotropic(form, sampler, spread)
    even = sampler.antithetic or len(form.signs) == 2
    squares = [xp.sum(a * a, -1) for a in (ones[0], others[0])]
    gram = xp.sum(ones[0] * others[0], -1)
    change, weights = 0.0, dict(waves(dim, cosine, even))
    for degree, zonal in enumerate(zonals(xp, gram, squares[0], squares[1], dim, max(weights)), 1):
        if degree not in weights:
            continue
        logs = sum(log_wave(xp, s, dim, degree, sign) for s in squares)
        with np.errstate(over="ignore"):
            change = change + weights[degree] * sign**degree * xp.exp(logs) * zonal
    return total + change * (coupled / draws**2)


def cross_form(feature_map: FeatureMap, sampler: Sampler, proposal: Proposal | None) -> Form:
    form = form_of(feature_map)
    if form is None:
        raise ValueError(
            "cross moments are known of maps only that compute what positive, hyperbolic or trigonometric features do"
        )
    check_proposed(feature_map, proposal)
    if sampler.law != "normal":
        raise ValueError(f"cross moments are known of normal rows only, not of the sampler {sampler.name!r}")
    return form


def waves(dim: int, cosine: float, even: bool, tolerance: float = 1e-7) -> list[tuple[int, float]]:
    """Degrees of spherical harmonics and N_l P_l(c), until what is left out is small against a whole block's rows."""
    values, found = [1.0, cosine], []
    for degree in range(1, 129):
        if degree > 1:
            low, a = degree - 1, dim - 2
            values.append(((2 * low + a) * cosine * values[low] - low * values[low - 1]) / (low + a))
        if even and degree % 2:
            continue
        size = (2 * degree + dim - 2) / degree * math.comb(degree + dim - 3, degree - 1)
        if values[degree] != 0:
            found.append((degree, size * values[degree]))
        if degree > 2 and max(abs(values[degree]), abs(values[degree - 1])) * (dim - 1) < tolerance:
            break
    return found


def log_wave(xp: Any, s: Any, dim: int, degree: int, sign: int) -> Any:
    """Return log |λ_l(±s)|, λ_l = e^(∓x) (±x)^(l/2) Γ(a) / Γ(b) 1F1(a; b; ±x), x = s/2, a = (dim + l)/2, b = dim/2 + l.

    It is what the mean over chi norms leaves of the harmonics of degree l of a row's relative estimate.
    """
    a, b = (dim + degree) / 2, dim / 2 + degree
    x = xp.where(s > 0, s, 0) / 2
    start = math.lgamma(a) - math.lgamma(b)
    first = a if sign > 0 else b - a  # by Kummer's transformation, which makes all terms positive
    logs = _series.log_kummer(x, first, b)
    power = xp.where(x > 0, degree / 2 * xp.log(xp.where(x > 0, x, 1)), -xp.inf)
    return start + power + logs + (0 if sign > 0 else x)


def zonals(xp: Any, gram: Any, one: Any, other: Any, dim: int, highest: int) -> Iterator[Any]:
    """Yield P_l(cos θ), the zonal harmonics that are 1 at no angle, from the first degree on."""
    scale = xp.sqrt(one * other)
    cosine = xp.clip(xp.where(scale > 0, gram / xp.where(scale > 0, scale, 1), 1), -1, 1)
    before, now = 1.0, cosine
    for degree in range(1, highest + 1):
        yield now
        before, now = now, ((2 * degree + dim - 2) * cosine * now - degree * before) / (degree + dim - 2)
