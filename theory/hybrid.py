"""What angular hybrid estimates are worth, and what their columns would be worth without the mixing."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import mpmath as mp
import numpy as np
from matplotlib.figure import Figure

import rfkernels as rfk
from rfkernels import Features, Side, materialized
from rfkernels.materialized import AngularHybrid
from theory import _cubature as cubature
from theory import _multiprecision as multiprecision
from theory._cubature import Array
from theory._verdict import Measured, Result, Verdict, greatest

WORST = {
    0.5: {1: 0.94, 2: 1.06, 3: 1.25, 16: 4.24},
    1.0: {1: 0.56, 2: 0.54, 3: 0.60, 16: 1.90},
    2.0: {1: 0.27, 2: 0.23, 3: 0.23, 16: 0.43},
    3.0: {1: 0.18, 2: 0.15, 3: 0.14, 16: 0.22},
}
"""Largest relative variance over all angles at equal columns, as in the last consequence, by r and n."""

TABLE = "\n".join(
    ["| r | n = 1 | n = 2 | n = 3 | n = 16 |", "| --- | --- | --- | --- | --- |"]
    + [f"| {r:g} | {' | '.join(f'{one:.2f}' for one in row.values())} |" for r, row in WORST.items()]
)

STATEMENT = (
    r"""
Let $\hat\lambda = \frac12 (1 - \frac1n \sum_i \mathrm{sgn}(t_i \cdot x)\, \mathrm{sgn}(t_i \cdot y))$ with independent
normal $t_i$. Then $\hat\lambda\, \hat K_{\mathrm{hyp}} + (1 - \hat\lambda) \hat K_{\mathrm{trig}}$ is unbiased for
$K = \exp(x \cdot y)$, and with independent parts its relative variance is

$$
E \hat\lambda^2\, V_{\mathrm{hyp}} + E (1 - \hat\lambda)^2\, V_{\mathrm{trig}} , \qquad
E \hat\lambda^2 = \tau \left(\tau + \tfrac{1 - \tau}{n}\right) , \quad
E (1 - \hat\lambda)^2 = (1 - \tau) \left(1 - \tau + \tfrac{\tau}{n}\right) , \quad \tau = \theta / \pi .
$$

A part of $R$ independent rows has $V = V_1 / R$, $V_1 = 2 \sinh^2(s/2)$ with $s = |x + y|^2$ or $|x - y|^2$; orthogonal
rows in blocks of $d$ have $V_1 / R - N (1 - C) / R^2$, $N$ the number of ordered pairs within blocks, and
$C = e^{-z} {}_1F_1(-d/2; d/2; -z)$, where $z = s/2$ for hyperbolic and $z = -s/2$ for trigonometric features.
Consequences:

- It is exact at $y = x$ and at $y = -x$, and never better than
  $V_{\mathrm{hyp}} V_{\mathrm{trig}} / (V_{\mathrm{hyp}} + V_{\mathrm{trig}})$, the best that a mixture with weights
  that are not random could be.
- It has $n + 1$ columns for each of its parts'. At equal columns and norms it has $(n + 1)^2 / n \ge 4$ times the
  relative variance of trigonometric or hyperbolic features alone at a right angle.
- At equal columns and $|x| = |y| = r$ its largest relative variance over all angles, in units of that of trigonometric
  or of hyperbolic features, $2 \sinh^2(2 r^2)$ per row, is as follows. The gain is polynomial in $r$, not exponential,
  and many directions spoil it.

"""
    + TABLE
)

CITATION = (
    "Choromanski et al., Hybrid Random Features, arXiv 2110.04367 (the estimator, its variance for independent rows). "
    "The covariance of orthogonal rows and the comparison at equal columns are derived here."
)

CUBATURE, MULTIPRECISION = 1e-9, 1e-12
"""Claimed precision of relative variances."""


def bound(name: str, rows: Array) -> Features:
    """Return features of one row for each batch element: rows is (*batch, 2)."""
    zeros = np.zeros((*rows.shape[:-1], 1))
    return Features(rfk.lookup(name), rows[..., None, :], zeros, Side(), Side(), np.asarray(1.0))


def relative(x: Array, y: Array, features: AngularHybrid) -> Array:
    """Return K̂/K for every batch element of the features."""
    log, sign = materialized.log_kernel(np.broadcast_to(x, (*features.batch, 2)), y, features)
    found: Array = sign * np.exp(log - x @ y)
    return found


def hybrid(hyperbolic: Array, trigonometric: Array, directions: Array) -> AngularHybrid:
    """Bind one row of each part and the directions, with batch axes that are broadcast."""
    batch = np.broadcast_shapes(hyperbolic.shape[:-1], trigonometric.shape[:-1], directions.shape[:-2])
    named = (("hyperbolic", hyperbolic), ("trigonometric", trigonometric))
    first, second = (bound(name, np.broadcast_to(rows, (*batch, 2))) for name, rows in named)
    shape = (*batch, directions.shape[-2], 2)
    return AngularHybrid(rfk.samplers.iid, first, second, np.broadcast_to(directions, shape))


def mixture() -> Measured:
    """Compare drawn features with λ̂ K̂_hyp + (1 − λ̂) K̂_trig, computed from its parts."""
    rng, worst = np.random.default_rng(0), 0.0
    for dim, directions, sampler in ((2, 1, "iid"), (5, 3, "orthogonal"), (16, 4, "antithetic")):
        count = 32 * (directions + 1)
        features = materialized.draw_angular_hybrid(
            dim, count, directions=directions, sampler=sampler, scale=0.7, rng=1
        )
        x, y = rng.standard_normal((2, 20, dim)) / math.sqrt(dim)
        towards = [np.where(v @ features.directions.T < 0, -1, 1) for v in (x, y)]
        share = (1 - np.mean(towards[0] * towards[1], -1)) / 2
        given = [rfk.log_kernel(x, y, p, return_sign=True) for p in (features.hyperbolic, features.trigonometric)]
        given.append(materialized.log_kernel(x, y, features))
        hyperbolic, trigonometric, mixed = (sign * np.exp(log) for log, sign in given)
        worst = greatest(worst, cubature.largest(mixed - share * hyperbolic - (1 - share) * trigonometric))
    return Measured("identity", "columns", worst, 1e-13)


def representatives(x: Array, y: Array) -> tuple[Array, Array]:
    """Return a direction that x and y are on the same side of, and one that parts them."""
    one, other = x / math.sqrt(x @ x), y / math.sqrt(y @ y)
    return one + other, one - other


def by_cubature() -> list[Measured]:
    """Integrate in the plane: over directions for given rows, and over rows and sides of two directions."""
    points, grid, rows = (
        cubature.pairs((0.2, 0.5), turns=3),
        cubature.hermite(12),
        (np.array([0.3, 1.0]), np.array([-0.8, 0.4])),
    )
    angle = mean = variance = 0.0
    for x, y in zip(*points, strict=True):
        same, parted = representatives(x, y)
        tau = math.acos(x @ y / math.sqrt((x @ x) * (y @ y))) / math.pi
        circle = cubature.polar(x, y)
        low, high = (relative(x, y, hybrid(rows[0], rows[1], one[None])) for one in (same, parted))
        found = relative(x, y, hybrid(rows[0], rows[1], circle.rows[:, None])) @ circle.weights
        angle = greatest(angle, abs(float(found - (1 - tau) * low - tau * high)))
        patterns = list(product((0, 1), repeat=2))
        directions = np.array([[parted if bit else same for bit in bits] for bits in patterns])
        chance = np.array([math.prod(tau if bit else 1 - tau for bit in bits) for bits in patterns])
        both = hybrid(grid.rows[:, None, None], grid.rows[:, None], directions)
        estimates, weights = relative(x, y, both), np.multiply.outer(np.outer(grid.weights, grid.weights), chance)
        stated = float(materialized.relative_error(x, y, both))
        mean = greatest(mean, abs(float(np.sum(weights * estimates)) - 1))
        variance = greatest(variance, abs(float(np.sum(weights * (estimates - 1) ** 2)) / stated - 1))
    found_errors = {"share of directions": angle, "mean": mean, "variance": variance}
    return [Measured("cubature", subject, error, CUBATURE) for subject, error in found_errors.items()]


def total(tau: Any, n: int, hyperbolic: Any, trigonometric: Any) -> Any:
    """Return E λ̂² V_hyp + E (1 − λ̂)² V_trig."""
    return tau * (tau + (1 - tau) / n) * hyperbolic + (1 - tau) * (1 - tau + tau / n) * trigonometric


def by_polar() -> Measured:
    """Integrate over two orthogonal rows of the plane, their norms and their direction apart."""
    points, n, turns = cubature.pairs((0.1, 0.5, 1.0)), 3, 64
    halves, weights = np.polynomial.laguerre.laggauss(40)
    angles = 2 * math.pi * np.arange(turns) / turns
    directions, norms = np.stack([np.cos(angles), np.sin(angles)], -1), np.sqrt(2 * halves)
    grid = cubature.Grid((directions[:, None] * norms[:, None]).reshape(-1, 2), np.zeros(turns * len(norms)))
    dot, parts = np.sum(points.x * points.y, -1), []
    for name, sign in (("hyperbolic", 1), ("trigonometric", -1)):
        estimates = cubature.estimates(rfk.lookup(name), grid, points).reshape(len(dot), turns, -1) @ weights
        mean = estimates / np.exp(dot)[:, None]
        covariance = np.mean(mean * np.roll(mean, turns // 4, -1), -1) - 1
        single = 2 * np.sinh(np.sum((points.x + sign * points.y) ** 2, -1) / 2) ** 2
        parts.append(single / 2 + covariance / 2)
    cosine = dot / np.sqrt(np.sum(points.x**2, -1) * np.sum(points.y**2, -1))
    features = materialized.draw_angular_hybrid(2, 8 * (n + 1), directions=n, scale=1.0, rng=0)
    stated = materialized.relative_error(points.x, points.y, features)
    found = total(np.arccos(cosine) / math.pi, n, *parts)
    return Measured("cubature", "variance with orthogonal rows", cubature.largest(found / stated - 1), CUBATURE)


def by_many_digits() -> list[Measured]:
    """Compare the library's closed form with that of the statement in many digits, for orthogonal rows."""
    measured = []
    with mp.workdps(multiprecision.DIGITS):
        for dim, rows in ((2, 2), (3, 7), (16, 19), (64, 64)):
            features = materialized.draw_angular_hybrid(dim, 4 * rows * 3, directions=2, scale=1.0, rng=0)
            worst = 0.0
            for norm, other, angle in (
                (1e-4, 2e-4, 1.0),
                (0.7, 0.9, 0.1),
                (2.0, 1.5, 3.0),
                (1.0, 1.0, 1.6),
                (5.0, 4, 2),
            ):
                x, y = np.zeros((2, dim))
                x[0], y[:2] = norm, (other * math.cos(angle), other * math.sin(angle))
                exact = mp.log(_many_digits(x[0], y[0], y[1], dim, rows))
                stated = float(materialized.relative_error(x, y, features, log=True))
                worst = greatest(worst, float(abs(stated - exact)))
            measured.append(Measured("mpmath", f"log variance, d = {dim}, {rows} rows", worst, MULTIPRECISION))
    return measured


def _many_digits(norm: float, along: float, across: float, dim: int, rows: int) -> Any:
    x, y, z = mp.mpf(norm), mp.mpf(along), mp.mpf(across)
    blocks, rest = divmod(rows, dim)
    coupled, half, parts = blocks * dim * (dim - 1) + rest * (rest - 1), mp.mpf(dim) / 2, []
    for sign in (1, -1):
        s = (x + sign * y) ** 2 + z**2
        c = mp.exp(-sign * s / 2) * mp.hyp1f1(-half, half, -sign * s / 2)
        parts.append(2 * mp.sinh(s / 2) ** 2 / rows - coupled * (1 - c) / mp.mpf(rows) ** 2)
    return total(mp.atan2(z, y) / mp.pi, 2, *parts)


def on_circle(r: float, angles: Array, n: int) -> tuple[Array, Array, Array]:
    """Return relative variances of one row of each part at |x| = |y| = r: of the hybrid, hyperbolic, trigonometric."""
    x, y = np.array([r, 0.0]), r * np.stack([np.cos(angles), np.sin(angles)], -1)
    features = materialized.draw_angular_hybrid(2, 4 * (n + 1), directions=n, sampler="iid", scale=1.0, rng=0)
    parts = (2 * np.sinh(r**2 * (1 + sign * np.cos(angles))) ** 2 for sign in (1, -1))
    return materialized.relative_error(x, y, features), *parts


def by_comparison() -> list[Measured]:
    """Compare with parts alone, at equal columns: a hybrid of one row of each has 2 (n + 1) times those of a part."""
    angles, measured = np.linspace(0, math.pi, 4001), []
    below = ends = 0.0
    for r, n, stated in [(r, n, stated) for r, row in WORST.items() for n, stated in row.items()]:
        mixed, hyperbolic, trigonometric = on_circle(r, angles, n)
        oracle = hyperbolic * trigonometric / (hyperbolic + trigonometric)
        below = greatest(below, float(np.max((oracle - mixed) / np.max(oracle))))
        ends = greatest(ends, mixed[0], mixed[-1])
        found = 2 * (n + 1) * np.max(mixed) / (2 * math.sinh(2 * r**2) ** 2)
        measured.append(Measured("worst angle", f"r = {r}, n = {n}", abs(found - stated), 0.0051))
    right = [float(on_circle(0.8, np.array([math.pi / 2]), n)[0][0]) for n in range(1, 9)]
    single = 2 * math.sinh(0.8**2) ** 2
    ratio = [2 * (n + 1) * one / single / ((n + 1) ** 2 / n) - 1 for n, one in enumerate(right, 1)]
    return [
        Measured("comparison", "below the best fixed mixture", max(below, 0.0), 1e-12),
        Measured("comparison", "y = ±x", ends, 1e-12),
        Measured("comparison", "right angle", cubature.largest(np.array(ratio)), 1e-12),
        *measured,
    ]


def check() -> Verdict:
    """Put columns and closed forms to the proof: by cubature, in many digits and by comparison."""
    return Verdict((mixture(), *by_cubature(), by_polar(), *by_many_digits(), *by_comparison()))


def figure() -> Figure:
    """Draw relative variances at equal columns against the angle."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    angles = np.linspace(0.01, math.pi - 0.01, 201)
    for axis, r in zip(drawn.subplots(1, 2), (1.0, 2.0), strict=True):
        for n in (1, 3, 16):
            axis.semilogy(angles, 4 * (n + 1) * on_circle(r, angles, n)[0], label=f"hybrid, n = {n}")
        _, hyperbolic, trigonometric = on_circle(r, angles, 1)
        axis.semilogy(angles, 2 * hyperbolic, "--", color="black", label="hyperbolic")
        axis.semilogy(angles, 2 * trigonometric, ":", color="black", label="trigonometric")
        axis.set(title=f"relative variance × columns, |x| = |y| = {r:g}", xlabel="angle between x and y")
        axis.set_ylim(bottom=1e-3)
        axis.title.set_fontsize("medium")
        axis.legend(fontsize="small")
    return drawn


RESULT = Result("hybrid", STATEMENT, CITATION, check, figure)
