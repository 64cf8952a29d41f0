"""Means over the directions of coupled rows, as sums without cancellation: C(s), 1 − C(s) and the law on a sphere.

Two rows of independent chi norms whose Haar-distributed directions have the cosine c, and x = s/2, n = dim/2:

    C = e^(−s) E 1F1(dim; n; x (1 + c sin 2φ)),  φ on (0, π/2) with the density of (sin φ cos φ)^(dim − 1),

since the squared norms stand in the ratio sin²φ : cos²φ and the sum of both rows points anywhere. All terms of the
series of 1F1 are positive for s > 0. By Kummer's transformation C is for c = 0 the mean of
p_k = n (n − 1) … (n − k + 1) / (n (n + 1) … (n + k − 1)) over k ~ Poisson(x), from which 1 − C is had term by term.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import is_jax, namespace, stopped

_NEAR = 0.5
"""Below this |s| / 2 a power series gives 1 − C."""

_NEAR_TERMS = 24
_TRACED_TERMS = 512
_TRACED_REACH = 256
"""Up to this exponent the traced terms hold all that counts: 256 + 12 √256 + 40 are fewer."""

_FAR = 4096
"""Up to this x NumPy sums the series in powers of x, as many terms as x; beyond, what it tends to."""

_BLURRED = 512
"""Up to this x |c| the nodes of `ratios` are close enough for what is narrow about a right angle."""

_BLOCK = 1 << 21
_ANGLES = 160

_WIDE = 36
"""How many times 1/√dim from a right angle the density (sin 2φ)^(dim − 1) is looked at."""

_GAUSS = 2048
"""Up to this dim Gauss–Legendre nodes are close enough for (sin θ)^(dim − 2)."""


def log_moment(s: Any, dim: int, cosine: float) -> Any:
    """Return log C for s ≥ 0, any shape; NaN where traced arrays exceed what a fixed number of terms reaches."""
    xp = namespace(s)
    x = xp.where(s > 0, s, 1) / 2
    if cosine == 0 and dim % 2 == 0:
        found = xp.where(s > 0, _log_polynomial(xp, x, dim // 2) - x, 0)
        return np.minimum(found, 0) if xp is np else found
    far = np.zeros(x.shape, bool) if is_jax(s) else x > min(_reach(dim), _BLURRED / max(abs(cosine), 1e-9))
    if np.any(far):
        found = log_moment(np.where(far, 1, s), dim, cosine)
        found[far] = _far_moment(x[far], dim, cosine)
        return found
    count = _term_count(x, 2 * (1 + max(cosine, 0.0)))
    logs = xp.asarray(_rising(dim, cosine, count), s.dtype)
    order = xp.arange(count, dtype=s.dtype)
    found = _by_blocks(lambda part: _log_sum(xp, logs + order * xp.log(part)[..., None]) - 2 * part, x, count)
    if is_jax(s):
        found = xp.where(2 * (1 + max(cosine, 0.0)) * x <= _TRACED_REACH, found, xp.nan)
    elif cosine <= 0:
        found = np.minimum(found, 0)  # which rounding may leave above
    return xp.where(s > 0, found, 0)


def _log_polynomial(xp: Any, x: Any, n: int) -> Any:
    """Return log Σ p_k xᵏ / k!, of which only the n + 1 first terms are not zero for an even dim."""
    logs = xp.asarray(_falling(2 * n, n + 1)[1] - _log_factorial(n + 1), x.dtype)
    order = xp.arange(n + 1, dtype=x.dtype)
    return _by_blocks(lambda part: _log_sum(xp, logs + order * xp.log(part)[..., None]), x, n + 1)


def _reach(dim: int) -> int:
    return max(_FAR, 2 * dim)


def _far_moment(x: Any, dim: int, cosine: float) -> Any:
    """Return log C for x beyond `_reach`, any one axis: a mean over ψ = π/2 − 2φ, of which but little counts."""
    x = x.astype(np.float64)
    if cosine == 0:
        return _log_damped(x, dim) - x
    points, weights = np.polynomial.legendre.leggauss(_ANGLES)
    whole, steep = math.pi / 2, x * abs(cosine)
    tails = 14 / np.sqrt(steep + dim) if cosine > 0 else (dim + 14 * math.sqrt(dim) + 40) / steep

    def mean(part: Any, reach: Any) -> Any:
        angles = reach[:, None] * (1 + points) / 2
        angles = angles if cosine > 0 else whole - angles
        logs = (dim - 1) * np.log(np.cos(angles)) + np.log(weights * reach[:, None] / 2)
        means = part[:, None] * (1 + cosine * np.cos(angles))
        fall = (1 - cosine) + 2 * cosine * np.sin(angles / 2) ** 2  # 1 − c cos ψ, of equal directions without rounding
        return _log_sum(np, logs - part[:, None] * fall + _log_damped(means, dim))

    step = max(1, _BLOCK // (dim * _ANGLES))
    parts = [slice(start, start + step) for start in range(0, x.size, step)]
    norm = math.log(2) + math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2) - math.log(math.pi) / 2
    return norm + np.concatenate([mean(x[part], np.minimum(tails, whole)[part]) for part in parts])


def _log_damped(x: Any, dim: int) -> Any:
    """Return log e^(−x) 1F1(dim; n; x)."""
    far = x > _reach(dim)
    found = log_kummer(np.where(far, 0, x), dim, dim / 2)
    order = np.arange(dim - 1)  # all terms of the series in powers of 1/x are had: (1 − dim)_k ends it, or (−n)_k
    factors = (order - dim / 2) * (order + 1 - dim) / (order + 1)
    factors = factors[: dim // 2] if dim % 2 == 0 else factors
    signs = np.cumprod(np.concatenate([[1.0], np.sign(factors)]))
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.abs(factors)))])
    given = np.log(x[far])
    terms = logs - np.arange(len(logs)) * given[:, None]
    top = np.max(terms, -1, initial=0)
    total = np.log(np.sum(signs * np.exp(terms - top[:, None]), -1)) + top
    found[far] = math.lgamma(dim / 2) - math.lgamma(dim) + dim / 2 * given + total
    return found


def gap(s: Any, dim: int, cosine: float, log_scale: Any = 0.0, even: bool = False) -> Any:
    """Return (1 − C) e^(−log_scale), if `even` that of the mean of C at both signs of the cosine.

    For s < 0, which trigonometric features have, log_scale must be at least −s.
    """
    xp = namespace(s)
    near = abs(s) < 2 * _NEAR
    turns = (cosine, -cosine) if even and cosine != 0 else (cosine,)
    small = xp.where(near, s, 0) / 2
    series = xp.zeros_like(s)
    for coefficients in list(zip(*(_near(dim, c) for c in turns), strict=True))[::-1]:
        series = series * small + sum(coefficients) / len(turns)  # of both signs the first, odd ones, are none
    close = series * small * xp.exp(-small - log_scale)
    far: Any = sum(_far_gap(s, dim, c, log_scale, near) for c in turns)
    return xp.where(near, close, far / len(turns))


def _far_gap(s: Any, dim: int, cosine: float, log_scale: Any, near: Any) -> Any:
    """Return (1 − C) e^(−log_scale) where s is not near 0."""
    xp = namespace(s)
    far_positive, far_negative = xp.where(s >= 2 * _NEAR, s, 1), xp.where(s <= -2 * _NEAR, -s, 1)
    logs = log_moment(far_positive, dim, cosine)
    far = -xp.expm1(xp.where(xp.isnan(logs), -xp.inf, logs)) * xp.exp(-log_scale)  # C is nothing beside e^s there
    if not _all_positive(s):
        turned = xp.exp(-log_scale) - xp.exp(xp.where(near | (s > 0), 0, -s - log_scale)) * _turned(
            far_negative, dim, cosine
        )
        far = xp.where(s > 0, far, turned)
    return far


def _turned(delta: Any, dim: int, cosine: float) -> Any:
    """Return C e^(−delta) at s = −delta < 0: the mean of (−1)^k p_k over k ~ Poisson((1 + c sin 2φ) delta / 2)."""
    xp = namespace(delta)
    total = xp.zeros_like(delta)
    if cosine == 0:
        nodes, weights = np.zeros(1), np.ones(1)
    else:
        nodes, weights = ratios(dim)
    for node, weight in zip(nodes, weights, strict=True):
        mean, weight = delta / 2 * (1 + cosine * node), xp.ones_like(delta) * weight
        if not is_jax(delta):
            near = np.minimum(mean, _reach(dim))
            mean, weight = near, weight * np.where(near < mean, _fallen(np.maximum(mean, 1), near, dim), 1)
        count = _term_count(mean, 1.0)
        if dim % 2 == 0:
            count = min(count, dim // 2 + 1)
        signs, logs = _falling(dim, count)
        order = np.arange(count)
        signs, logs = (xp.asarray(a, delta.dtype) for a in (signs * (-1.0) ** order, logs - _log_factorial(count)))
        order = xp.asarray(order, delta.dtype)

        def poisson(part: Any, signs: Any = signs, logs: Any = logs, order: Any = order) -> Any:
            return xp.sum(signs * xp.exp(logs + order * xp.log(part)[..., None] - part[..., None]), -1)

        total = total + weight * _by_blocks(poisson, mean, count)
    return total


def _fallen(mean: Any, near: Any, dim: int) -> Any:
    """Return 1F1(dim; n; −mean) / 1F1(dim; n; −near) of large means, which falls like the power −dim."""
    factors = [1.0]
    for k in range(8):
        factors.append(factors[-1] * (dim + k) * (dim / 2 + 1 + k) / (k + 1))
    one, other = (np.polynomial.polynomial.polyval(1 / y, factors) for y in (mean, near))
    return (near / mean) ** dim * one / other


@lru_cache(maxsize=64)
def sphere(dim: int) -> tuple[Any, Any]:
    """Return nodes and log-weights for the mean over a coordinate of a uniform direction, from −1 to 1."""
    if dim == 1:
        return np.array([-1.0, 1.0]), np.log([0.5, 0.5])
    if dim <= _GAUSS:
        points, weights = np.polynomial.legendre.leggauss(400)
    else:  # nearly the same nodes, not at the cost of their cube; what is integrated vanishes at the ends
        steps = 10 * math.isqrt(dim)
        angles = math.pi * (np.arange(steps) + 0.5) / steps
        points, weights = -np.cos(angles), np.sin(angles)
    angles = math.pi * (1 + points) / 2
    logs = np.log(weights) + (dim - 2) * np.log(np.sin(angles))
    return np.cos(angles), logs - _log_sum(np, logs)


@lru_cache(maxsize=64)
def sphere_bias(dim: int) -> tuple[float, ...]:
    """Return coefficients from x² on, x = s/2, of 0F1(; n; n x) − e^x, n = dim/2: those of the mean less those of 1."""
    n, ratio, defect, found = dim / 2, 1.0, 0.0, []
    for k in range(1, _NEAR_TERMS + 1):
        defect -= ratio * (k - 1) / (n + k - 1)  # n^k / (n)_k − 1
        ratio *= n / (n + k - 1)
        found.append(defect / math.factorial(k))
    return tuple(found[1:])


class Degree(NamedTuple):
    """Spherical harmonics of one degree: how many there are, and their zonal one at a right angle, 1 at none."""

    degree: int
    size: float
    right_angle: float


def degrees(dim: int, even: bool) -> list[Degree]:
    """Return the harmonics, above the constant, that functions with a fast Taylor series have, even ones or all."""
    found = []
    for degree in range(2 if even else 1, 17, 2 if even else 1):
        if dim == 1:
            size = 1.0 if degree == 1 else 0.0
        else:
            size = (2 * degree + dim - 2) / degree * math.comb(degree + dim - 3, degree - 1)
        angle = 0.0 if degree % 2 or dim == 1 else math.prod(-(2 * j - 1) / (dim + 2 * j - 3) for j in _half(degree))
        found.append(Degree(degree, size, angle))
    return found


def _half(degree: int) -> range:
    return range(1, degree // 2 + 1)


@lru_cache(maxsize=64)
def ratios(dim: int) -> tuple[Any, Any]:
    """Return nodes sin 2φ and weights for the mean over the ratio of two chi norms."""
    points, weights = np.polynomial.legendre.leggauss(_ANGLES)
    double = math.pi / 2 + min(math.pi / 2, _WIDE / math.sqrt(dim)) * points
    logs = np.log(weights) + (dim - 1) * np.log(np.sin(double))
    weights = np.exp(logs - np.max(logs))
    return np.sin(double), weights / np.sum(weights)


@lru_cache(maxsize=256)
def _rising(dim: int, cosine: float, count: int) -> Any:
    """Logs of the coefficients of C e^(2x) in x: (dim)_k / (dim/2)_k · E (1 + c sin 2φ)^k / k!."""
    k = np.arange(1, count)
    logs = np.concatenate([[0.0], np.cumsum(np.log((dim + k - 1) / (dim / 2 + k - 1) / k))])
    if cosine != 0:
        nodes, weights = ratios(dim)
        used = weights > 0
        steps = np.log(np.maximum(1 + cosine * nodes[used], 1e-300))
        terms = np.log(weights[used]) + np.arange(count)[:, None] * steps
        logs = logs + _log_sum(np, terms)
    return logs


@lru_cache(maxsize=256)
def _falling(dim: int, count: int) -> tuple[Any, Any]:
    """Signs and logs of p_k, k < count; zeros of an even dim are left out by the caller."""
    k = np.arange(1, count)
    factors = (dim / 2 - k + 1) / (dim / 2 + k - 1)
    signs = np.concatenate([[1.0], np.cumprod(np.sign(factors))])
    return signs, np.concatenate([[0.0], np.cumsum(np.log(np.abs(factors)))])


@lru_cache(maxsize=64)
def _near(dim: int, cosine: float) -> tuple[float, ...]:
    """Coefficients of (1 − C) e^x in x from the first power on: (1 − E q_k) / k!."""
    nodes, weights = ratios(dim) if cosine != 0 else (np.zeros(1), np.ones(1))
    shift = cosine * nodes
    p, defects = [1.0], [0.0]
    for k in range(1, _NEAR_TERMS + 1):
        factor = (dim / 2 - k + 1) / (dim / 2 + k - 1)
        p.append(p[-1] * factor)
        defects.append(defects[-1] + p[-2] * 2 * (k - 1) / (dim / 2 + k - 1))
    coefficients = []
    for k in range(1, _NEAR_TERMS + 1):
        # e^x C = E e^(x h) Σ p_j (x (1 + h))^j / j!, h = c sin 2φ; and (1 + h) + h = 1 + 2h is what 1 would be
        rest = sum(math.comb(k, j) * shift ** (k - j) * (1 + shift) ** j * defects[j] for j in range(k + 1))
        grown = -2 * shift * sum((1 + 2 * shift) ** j for j in range(k))  # 1 − (1 + 2h)^k
        coefficients.append(float(np.sum(weights * (rest + grown))) / math.factorial(k))
    return tuple(coefficients)


def _log_factorial(count: int) -> Any:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count)))])


def _log_sum(xp: Any, terms: Any) -> Any:
    top = stopped(xp, xp.max(terms, -1, keepdims=True))
    return xp.log(xp.sum(xp.exp(terms - top), -1)) + top[..., 0]


def _term_count(x: Any, reach: float) -> int:
    """How many terms of a series whose largest is below reach · x; a power of two, so that few are tabulated."""
    if is_jax(x):
        return _TRACED_TERMS
    largest = reach * float(np.max(x, initial=1.0))
    return 1 << math.ceil(math.log2(largest + 12 * math.sqrt(largest) + 40))


def _by_blocks(function: Any, x: Any, count: int) -> Any:
    """Apply an elementwise function that makes `count` terms of each element to some elements at a time."""
    if is_jax(x) or x.size * count <= _BLOCK:
        return function(x)
    flat, step = x.reshape(-1), max(1, _BLOCK // count)
    parts = [function(flat[start : start + step]) for start in range(0, flat.size, step)]
    return np.concatenate(parts).reshape(x.shape)


def _all_positive(s: Any) -> bool:
    return not is_jax(s) and bool(np.all(s >= 0))


def log_kummer(x: Any, a: float, b: float) -> Any:
    """Return log e^(−x) 1F1(a; b; x) for x ≥ 0 and a, b > 0; NaN where traced x exceed what so many terms reach."""
    xp = namespace(x)
    inside = xp.where(x > 0, x, 1)
    least = max(_FAR, 4 * abs((b - a) * (1 - a)))
    far = np.zeros(x.shape, bool) if is_jax(x) else inside > least
    near = xp.where(far, 1, inside) if np.any(far) else inside
    count = _term_count(near, max(1.0, a / b))
    logs = xp.asarray(_kummer(a, b, count), x.dtype)
    order = xp.arange(count, dtype=x.dtype)
    found = _by_blocks(lambda part: _log_sum(xp, logs + order * xp.log(part)[..., None]) - part, near, count)
    if is_jax(x):
        found = xp.where(inside <= _TRACED_REACH, found, xp.nan)
    elif np.any(far):
        found = np.where(far, _far_kummer(np.where(far, inside, least), a, b), found)
    return xp.where(x > 0, found, 0)


def _far_kummer(x: Any, a: float, b: float) -> Any:
    """Return log e^(−x) 1F1(a; b; x) by the series in powers of 1/x, whose terms fall fourfold at first."""
    term, total = np.ones_like(x), np.ones_like(x)
    for k in range(24):
        term = term * (b - a + k) * (1 - a + k) / ((k + 1) * x)
        total = total + term
    return math.lgamma(b) - math.lgamma(a) + (a - b) * np.log(x) + np.log(total)


@lru_cache(maxsize=1024)
def _kummer(a: float, b: float, count: int) -> Any:
    k = np.arange(1, count)
    return np.concatenate([[0.0], np.cumsum(np.log((a + k - 1) / (b + k - 1) / k))])
