"""Uniform convergence: how many features bring every entry of an attention matrix of any length within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import rfkernels as rfk
from rfkernels import FeatureMap, Features
from theory._cubature import Array
from theory._verdict import Measured, Result, Verdict, greatest

STATEMENT = r"""
**Theorem 4** of the paper: for queries and keys with $|q|, |k| \le R$, $l = R d^{-1/4}$ and
$\delta = \varepsilon e^{-l^2}$, trigonometric features from
$m = \Theta(d \delta^{-2} \log(4 d^{3/4} R / \delta))$ orthogonal rows bring every entry of the unnormalised
attention matrix within $\varepsilon$ with constant probability; $L$ does not enter.

What makes it independent of $L$ is an identity. For every $x$, $y$ and any rows

$$\varphi(x) \cdot \varphi(y) - K = e^{(|x|^2 + |y|^2)/2} g(x - y) , \qquad
g(t) = \frac1m \sum_i \cos(w_i \cdot t) - e^{-|t|^2/2} ,$$

so no entry is off by more than $e^{l^2} \sup_{|t| \le 2l} |g(t)|$, and with $L \to \infty$ points in the ball that
supremum is reached. It is bounded here for given rows, with certainty, in the plane: by the values on a grid of
spacing $h$ and the Lipschitz constant $\frac1m \sum |w_i| + e^{-1/2}$.

The $\Theta$ hides a constant. An explicit bound of the same order is that of Rahimi and Recht for independent rows,

$$P\Bigl[ \sup_{|t| \le 2l} |g| \ge \delta \Bigr] \le 2^8 \Bigl( \frac{2 l \sqrt d}{\delta} \Bigr)^2
\exp\Bigl( -\frac{m \delta^2}{4 (d + 2)} \Bigr) .$$

Claims checked: the identity; that errors over $L$ points stay below the certified supremum, for $L$ from $2^6$ to
$2^{14}$; and that with the $m$ of the explicit bound at probability $\frac12$ the supremum is below $\delta$, for every
draw, of independent and orthogonal rows. The theorem is about trigonometric features only. For positive ones $g$ is
not a function of $x - y$, and the error at $x = y$ has the relative variance $(e^{4 l^2} - 1)/m$.
"""

CITATION = (
    "Choromanski et al., Rethinking Attention with Performers, arXiv 2009.14794, theorem 4; "
    "Rahimi and Recht, Random Features for Large-Scale Kernel Machines, 2007, claim 1, for the explicit constant."
)

DIM, RADIUS, DELTA = 2, 1.0, 0.2
"""The plane, l (the bound on |x| and |y|), and δ."""
LENGTHS = (64, 512, 4096, 16384)
DRAWS = 3


def error_function(rows: Array, points: Array) -> Array:
    """Return g at each of the points (n, dim)."""
    values: Array = np.mean(np.cos(points @ rows.T), -1) - np.exp(-np.sum(points**2, -1) / 2)
    return values


def certified(rows: Array, radius: float, cells: int = 160) -> tuple[float, float]:
    """Return two numbers between which the supremum of |g| over the disc lies."""
    axis = np.linspace(0, radius, cells + 1)
    both = np.stack(np.meshgrid(np.linspace(-radius, radius, 2 * cells + 1), axis), -1).reshape(-1, 2)  # g is even
    spacing = radius / cells
    near = both[np.sum(both**2, -1) <= (radius + spacing) ** 2]
    values = np.abs(error_function(rows, near))
    inside = np.sum(near**2, -1) <= radius**2
    slope = float(np.mean(np.linalg.norm(rows, axis=-1))) + math.exp(-0.5)
    return float(values[inside].max()), float(values.max()) + slope * spacing / math.sqrt(2)


def ball(length: int, dim: int, radius: float, rng: np.random.Generator) -> Array:
    """Return points of which a half are uniform in the ball and a half on its surface, where errors are largest."""
    directions = rng.standard_normal((length, dim))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    lengths = np.where(np.arange(length) % 2, 1.0, rng.uniform(size=length) ** (1 / dim))
    points: Array = radius * lengths[:, None] * directions
    return points


def sup_error(features: Features, q: Array, k: Array) -> float:
    """Return the largest error of the unnormalised attention matrix, a block of queries at a time."""
    phi_k, worst = rfk.transform(k, features, side="key"), 0.0
    for start in range(0, len(q), 1024):
        part = q[start : start + 1024]
        off = rfk.transform(part, features, side="query") @ phi_k.T - np.exp(part @ k.T)
        worst = greatest(worst, float(np.max(np.abs(off))))
    return worst


def rahimi_recht(dim: int, radius: float, delta: float, probability: float = 0.5) -> int:
    """Return how many rows the explicit bound asks for."""
    logs = math.log(2**8 / probability) + 2 * math.log(2 * radius * math.sqrt(dim) / delta)
    return math.ceil(4 * (dim + 2) / delta**2 * logs)


def identity(feature_map: FeatureMap) -> Measured:
    """Compare the library's estimates with e^{(|x|² + |y|²)/2} g(x − y)."""
    rng, worst = np.random.default_rng(0), 0.0
    for dim in (2, 16):
        features = rfk.draw(feature_map, dim, 24, scale=1.0, rng=0)
        x, y = ball(64, dim, 1.5, rng), ball(64, dim, 1.5, rng)
        log, sign = rfk.log_kernel(x, y, features, return_sign=True)
        lift = np.exp((np.sum(x**2, -1) + np.sum(y**2, -1)) / 2)
        stated = np.exp(np.sum(x * y, -1)) + lift * error_function(features.projection, x - y)
        worst = greatest(worst, float(np.max(np.abs(sign * np.exp(log) - stated) / lift)))
    return Measured("float64", "the identity", worst, 1e-14)


def of_lengths(
    feature_map: FeatureMap, lengths: tuple[int, ...] = LENGTHS, rows: int = 64
) -> tuple[list[float], float]:
    """Return the largest errors of matrices of growing length, of the same features, and the certified bound."""
    features = rfk.draw(feature_map, DIM, 2 * rows, scale=1.0, rng=1)
    rng = np.random.default_rng(1)
    errors = []
    for length in lengths:
        q = ball(min(length, 2048), DIM, RADIUS, rng)
        k = np.concatenate([-q, ball(max(length - len(q), 0), DIM, RADIUS, rng)])[:length]
        errors.append(sup_error(features, q, k))
    return errors, math.exp(RADIUS**2) * certified(features.projection, 2 * RADIUS)[1]


def certainty(feature_map: FeatureMap, bound: Callable[..., int], sampler: str) -> tuple[float, float, int]:
    """Return the largest upper and the mean lower certified supremum over draws with the rows that a bound asks for."""
    rows = bound(DIM, RADIUS, DELTA)
    found = [
        certified(rfk.draw(feature_map, DIM, 2 * rows, sampler=sampler, scale=1.0, rng=seed).projection, 2 * RADIUS, 60)
        for seed in range(DRAWS)
    ]
    return max(high for _, high in found), float(np.mean([low for low, _ in found])), rows


def enough(feature_map: FeatureMap, sampler: str, draws: int = 21) -> int:
    """Return how many rows bring the supremum below δ in half the draws, among powers of √2."""
    for half in range(6, 40):
        rows = round(2 ** (half / 2))
        drawn = (rfk.draw(feature_map, DIM, 2 * rows, sampler=sampler, scale=1.0, rng=seed) for seed in range(draws))
        sups = [certified(features.projection, 2 * RADIUS, 20)[0] for features in drawn]
        if np.median(sups) < DELTA:
            return rows
    raise ValueError("no number of rows is enough")


def check(feature_map: FeatureMap | None = None, bound: Callable[..., int] = rahimi_recht) -> Verdict:
    """Put the theorem to the proof.

    Parameters
    ----------
    feature_map : FeatureMap, optional
        The map; "trigonometric" by default.
    bound : callable, optional
        Rows that are claimed to be enough, from d, l and δ.
    """
    chosen = rfk.lookup("trigonometric") if feature_map is None else feature_map
    errors, most = of_lengths(chosen)
    measured = [
        identity(chosen),
        Measured("certificate", "largest error over L = 16384 to its bound for every L", greatest(*errors) / most, 1.0),
    ]
    found = [
        "64 rows, l = 1: largest errors "
        + ", ".join(f"{error:.3f} (L = {length})" for length, error in zip(LENGTHS, errors, strict=True))
        + f"; at most {most:.3f} for every L."
    ]
    for sampler in ("iid", "orthogonal"):
        high, low, rows = certainty(chosen, bound, sampler)
        measured.append(Measured("certificate", f"supremum with {rows} rows, {sampler}", high, DELTA))
        needed = enough(chosen, sampler)
        found.append(
            f"d = 2, l = 1, δ = {DELTA}, {sampler}: the explicit bound asks for {rows} rows, with which the "
            f"supremum is {low:.3f} on average; {needed} rows are enough in half the draws, "
            f"{rows / needed:.0f} times fewer."
        )
    found += _of_theorem_4()
    return Verdict(tuple(measured), tuple(found))


def _of_theorem_4() -> list[str]:
    """Say what the theorem asks for, with the constant of Θ taken as 1, at sizes that are used."""
    found = []
    for dim, radius in ((16, 2.0), (64, 4.0), (64, 8.0)):
        l2 = radius**2 / math.sqrt(dim)
        delta = 0.1 * math.exp(-l2)
        rows = dim / delta**2 * math.log(4 * dim**0.75 * radius / delta)
        found.append(
            f"Theorem 4 at d = {dim}, R = {radius:g}, ε = 0.1, with 1 for the constant of Θ: m = {rows:.2g}, of which "
            f"the factor exp(2 l²) = {math.exp(2 * l2):.3g} is due to ε being absolute while entries reach exp(l²)."
        )
    return found


def figure() -> Figure:
    """Draw largest errors against the length, with the bound for every length, and suprema against the rows."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    trigonometric = rfk.lookup("trigonometric")
    for i, rows in enumerate((32, 128)):
        errors, most = of_lengths(trigonometric, LENGTHS[:3], rows)
        left.semilogx(LENGTHS[:3], errors, "o-", color=f"C{i}", label=f"{rows} rows")
        left.axhline(most, color=f"C{i}", linestyle="--", label="certified for every L")
    counts = [8, 32, 128, 512, 2048]
    for i, sampler in enumerate(("iid", "orthogonal")):
        sups: list[Any] = []
        for rows in counts:
            draws = (rfk.draw(trigonometric, DIM, 2 * rows, sampler=sampler, scale=1.0, rng=s) for s in range(9))
            sups.append(np.median([certified(features.projection, 2 * RADIUS, 20)[0] for features in draws]))
        right.loglog(counts, sups, "o-", color=f"C{i}", label=f"{sampler}, median of 9")
    deltas = np.geomspace(0.02, 1, 20)
    right.loglog(
        [rahimi_recht(DIM, RADIUS, delta) for delta in deltas], deltas, "--", color="black", label="explicit bound"
    )
    left.set(title="largest error of the matrix, l = 1, d = 2", xlabel="L", ylim=(0, None))
    right.set(title="sup |g| over |t| ≤ 2", xlabel="rows")
    left.legend(fontsize="small")
    right.legend(fontsize="small")
    return drawn


RESULT = Result("uniform_convergence", STATEMENT, CITATION, check, figure)
