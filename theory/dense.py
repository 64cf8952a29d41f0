"""Dense-exponential features: when they are unbiased, how far they spread, and which are best."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize

import rfkernels as rfk
from rfkernels import fitting
from rfkernels.fitting.algebra import best_spread
from theory import _cubature as cubature
from theory._cubature import Array
from theory._verdict import Measured, Result, Verdict, greatest
from theory.affine_gaussian import fitted, mean_log, samples, second_moment

STATEMENT = r"""
Dense-exponential features are $f^{(k)}(w, x) = D \exp(w^\top A w + w^\top B^{(k)} x + x^\top C^{(k)} x)$ of standard
normal $w$, $k = 1$ for queries and 2 for keys. They are unbiased for $\exp(x \cdot y)$ with a finite variance if

$$
8A \prec I , \quad {B^{(1)}}^\top (I - 4A)^{-1} B^{(2)} = I , \quad
C^{(k)} = -\tfrac12 {B^{(k)}}^\top (I - 4A)^{-1} B^{(k)} , \quad D = \det(I - 4A)^{1/4} ,
$$

and then, with $E = (I - 8A)^{-1}$, their variance is

$$
D^4 \det(I - 8A)^{-1/2} \exp\big(2 x^\top (C^{(1)} + {B^{(1)}}^\top E B^{(1)}) x
+ 2 y^\top (C^{(2)} + {B^{(2)}}^\top E B^{(2)}) y + 4 x^\top {B^{(1)}}^\top E B^{(2)} y\big) - K^2 .
$$

They are the positive features of $T x$ and $T^{-\top} y$, $T = (I - 4A)^{-1/2} B^{(1)}$, with rows of the covariance
$I - 4A$. Of the mean over all pairs of the log of variance + $K^2$, relative to $K^2$,

- the symmetric choice (SDERF, $B^{(1)} = B^{(2)}$) is the minimum for $T = I$: with the eigenvalues $\lambda_l$ and
  eigenvectors of the second moment of $x + y$, $A_{ll} = (1 - \rho_l)/8$,
  $\rho_l = \frac12\big(1 + 2\lambda_l + \sqrt{(1 + 2\lambda_l)^2 + 8\lambda_l}\big)$;
- the asymmetric choice (ADERF) is the minimum for scalar $A$:
  $B^{(1)} = \sqrt{1 - 4A}\, S^{1/2} U^\top \Lambda_1^{-1/2} Q_1^\top$ and
  $B^{(2)} = \sqrt{1 - 4A}\, S^{1/2} V^\top \Lambda_2^{-1/2} Q_2^\top$, where $Q_k \Lambda_k Q_k^\top$ are the second
  moments and $U S V^\top = \Lambda_1^{1/2} Q_1^\top Q_2 \Lambda_2^{1/2}$;
- with $S^{-1/2}$ in its place, as in a public write-up, the second condition fails.
"""

CITATION = (
    "Likhosherstov et al., FAVOR#, arXiv 2302.00787. The closed form of SDERF in terms of ρ, and the form as "
    "importance sampling, are derived here."
)

CUBATURE, ROUNDING, MINIMUM = 1e-8, 1e-9, 1e-7

Choose = Callable[..., fitting.Choice]


class Dense(NamedTuple):
    """A, B⁽¹⁾ and B⁽²⁾; C and D follow."""

    a: Array
    query: Array
    key: Array

    @property
    def inner(self) -> Array:
        """(I − 4A)⁻¹."""
        inner: Array = np.asarray(np.linalg.inv(np.eye(len(self.a)) - 4 * self.a), np.float64)
        return inner

    def squares(self, side: Array) -> Array:
        """C of a side."""
        return -side.T @ self.inner @ side / 2

    def log_features(self, rows: Array, x: Array, side: Array) -> Array:
        """Log f⁽ᵏ⁾(w, x) for each row w."""
        log_d = np.linalg.slogdet(np.eye(len(x)) - 4 * self.a)[1] / 4
        logs: Array = log_d + np.sum(rows @ self.a * rows, -1) + rows @ side @ x + x @ self.squares(side) @ x
        return logs

    def log_second_moment(self, x: Array, y: Array) -> float:
        """Log of variance + K²."""
        eye = np.eye(len(x))
        e = np.linalg.inv(eye - 8 * self.a)
        volume = np.linalg.slogdet(eye - 4 * self.a)[1] - np.linalg.slogdet(eye - 8 * self.a)[1] / 2
        own = [2 * v @ (self.squares(b) + b.T @ e @ b) @ v for v, b in ((x, self.query), (y, self.key))]
        return float(volume + sum(own) + 4 * x @ self.query.T @ e @ self.key @ y)


def by_cubature() -> list[Measured]:
    """Integrate features that satisfy the conditions, and ones that do not, in the plane."""
    grid, mean, second, invalid = cubature.hermite(64), 0.0, 0.0, 0.0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, y = 0.5 * rng.standard_normal((2, 2))
        a = -0.1 * np.eye(2) + 0.03 * rng.standard_normal((2, 2))
        a, query = (a + a.T) / 2, np.eye(2) + 0.2 * rng.standard_normal((2, 2))
        dense = Dense(a, query, (np.eye(2) - 4 * a) @ np.linalg.inv(query).T)
        found = np.exp(sum(dense.log_features(grid.rows, v, b) for v, b in ((x, dense.query), (y, dense.key))))
        mean = greatest(mean, abs(float(found @ grid.weights) / math.exp(x @ y) - 1))
        second = greatest(second, abs(float(found**2 @ grid.weights) / math.exp(dense.log_second_moment(x, y)) - 1))
        wrong = dense._replace(key=1.1 * dense.key)
        found = np.exp(sum(wrong.log_features(grid.rows, v, b) for v, b in ((x, wrong.query), (y, wrong.key))))
        invalid = greatest(invalid, abs(float(found @ grid.weights) / math.exp(1.1 * x @ y) - 1))
    return [
        Measured("cubature", "unbiased", mean, CUBATURE),
        Measured("cubature", "variance", second, CUBATURE),
        Measured("cubature", "without the second condition: exp(x'B'(I - 4A)⁻¹B y)", invalid, CUBATURE),
    ]


def dense_of(choice: fitting.Choice) -> tuple[Dense, Array]:
    """Return A and B of what the library chose, and the axes R of its rows: w there is R (I − 4A)^½ w here."""
    variances, axes = np.linalg.eigh(choice.proposal.root @ choice.proposal.root.T)
    eye = np.eye(len(axes))
    t, s = (eye if side.matrix is None else side.matrix for side in (choice.query, choice.key))
    roots = np.sqrt(variances)[:, None]
    return Dense(np.diag((1 - variances) / 4), roots * (axes.T @ t), roots * (axes.T @ s)), axes


def papers(q: Array, k: Array, method: str, power: float = 0.5) -> Dense:
    """Return SDERF or ADERF by the formulas of the paper, up to the order and signs of axes."""
    moments = [v.T @ v / len(v) for v in (q, k)]
    mixed = np.outer(q.mean(0), k.mean(0))
    dim = len(mixed)
    if method == "symmetric":
        values, axes = np.linalg.eigh(sum(moments) + mixed + mixed.T)
        a = (1 - 2 * values - np.sqrt((2 * values + 1) ** 2 + 8 * values)) / 16
        return Dense(np.diag(a), *[np.sqrt(1 - 4 * a)[:, None] * axes.T] * 2)
    (first, one), (second, two) = (np.linalg.eigh(m) for m in moments)
    u, s, v = np.linalg.svd(np.sqrt(first)[:, None] * (one.T @ two) * np.sqrt(second))
    phi = (2 * s.sum() + 2 * np.trace(mixed)) / dim
    a = (1 - 2 * phi - math.sqrt((2 * phi + 1) ** 2 + 8 * phi)) / 16
    front = math.sqrt(1 - 4 * a) * s[:, None] ** power
    return Dense(a * np.eye(dim), front * (u.T / np.sqrt(first)) @ one.T, front * (v / np.sqrt(second)) @ two.T)


def by_formulas(choose: Choose) -> list[Measured]:
    """Compare the library's features with the paper's formulas, row by row and in what they are worth."""
    rows_apart, spread_apart, conditions, wrong = 0.0, 0.0, 0.0, math.inf
    for method in ("symmetric", "asymmetric"):
        for seed in range(3):
            q, k = samples(seed, 3)
            choice = fitted(choose, q, k, method=method)
            dense, axes = dense_of(choice)
            rows = np.random.default_rng(seed).standard_normal((6, 3))
            features = fitting.bind(
                choice, rows @ np.diag(np.sqrt(1 - 4 * np.diag(dense.a))) @ axes.T @ _inverse(choice)
            )
            for v, side, name in ((q[0], dense.query, "query"), (k[0], dense.key, "key")):
                found = rfk.transform(v[None], features, side=name, log=True)[0][0] + math.log(6) / 2  # type: ignore[arg-type]
                rows_apart = greatest(rows_apart, cubature.largest(found - dense.log_features(rows, v, side)))
            given = papers(q, k, method)
            spread_apart = greatest(
                spread_apart, abs(dense.log_second_moment(q[1], k[1]) - given.log_second_moment(q[1], k[1]))
            )
            conditions = greatest(conditions, _condition(given), _condition(dense))
            if method == "asymmetric":
                wrong = -greatest(-wrong, -_condition(papers(q, k, method, power=-0.5)))
    return [
        Measured("evaluation", "log f is the library's", rows_apart, ROUNDING),
        Measured("evaluation", "log of the second moment is the paper's", spread_apart, 1e-7),
        Measured("evaluation", "the second condition", conditions, ROUNDING),
        Measured("evaluation", "share of cases where S^-1/2 meets it", float(not wrong >= 0.1), 0.0),
    ]


def _inverse(choice: fitting.Choice) -> Array:
    inverse: Array = np.linalg.inv(choice.proposal.root).T
    return inverse


def _condition(dense: Dense) -> float:
    return cubature.largest(dense.query.T @ dense.inner @ dense.key - np.eye(len(dense.a)))


def by_search(choose: Choose) -> list[Measured]:
    """Look for better A with T = I, and for better T and scalar A, numerically."""
    below, apart, origin = 0.0, 0.0, np.zeros(2)
    for seed in range(2):
        q, k = samples(seed, 2)
        plain = second_moment(q, k, np.eye(2), origin, origin)
        for method, count in (("symmetric", 4), ("asymmetric", 5)):
            choice = fitted(choose, q, k, method=method)
            t = np.eye(2) if choice.query.matrix is None else choice.query.matrix
            ours = mean_log(second_moment(q, k, t, origin, origin), choice.proposal.root @ choice.proposal.root.T)

            def objective(v: Array, q: Array = q, k: Array = k, plain: Array = plain) -> float:
                if len(v) == 4:
                    root = v.reshape(2, 2)
                    return mean_log(plain, np.eye(2) / 2 + root @ root.T)
                t = v[:4].reshape(2, 2)
                if abs(np.linalg.det(t)) < 1e-6:
                    return 1e6
                return min(mean_log(second_moment(q, k, t, origin, origin), np.eye(2) * (0.5 + v[4] ** 2)), 1e6)

            for start in range(3):
                rng = np.random.default_rng(start)
                first = np.append(np.eye(2), 1.0)[:count] + 0.3 * rng.standard_normal(count)
                found = minimize(objective, first, method="BFGS", options={"gtol": 1e-6}).fun
                below, apart = greatest(below, ours - found), greatest(apart, abs(found - ours))
    return [
        Measured("search", "how far another choice is below", max(below, 0.0), MINIMUM),
        Measured("search", "how far a search ends from it", apart, 1e-4),
    ]


def check(choose: Choose = fitting.choose) -> Verdict:
    """Put the library's choice, or another in its place, to the proof."""
    return Verdict((*by_cubature(), *by_formulas(choose), *by_search(choose)))


def figure() -> Figure:
    """Draw the variance of rows of SDERF against the energy of an axis, and what it gains over one variance for all."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    energy = np.geomspace(1e-2, 1e2, 100)
    left.loglog(energy, (1 + best_spread(np, energy)) / 2, linewidth=1)
    left.set(title="variance of rows along an axis", xlabel="λ = E z²")
    for decay in (0.0, 0.25, 1.0):
        spectrum = np.exp(-decay * np.arange(16))
        gains = [_gain(np.diag(total * spectrum / spectrum.sum())) for total in np.linspace(0.5, 30, 40)]
        right.plot(np.linspace(0.5, 30, 40), gains, linewidth=1, label=f"spectrum exp(−{decay:g} l)")
    right.set(title="log10 of the gain over one variance, d = 16", xlabel="E |x + y|²")
    right.legend(fontsize="small")
    return drawn


def _gain(second: Array) -> float:
    rho = best_spread(np, np.diag(second))
    one = best_spread(np, np.trace(second) / len(second))
    covariances = np.eye(len(second)) * (1 + one) / 2, np.diag((1 + rho) / 2)
    return (mean_log(second, covariances[0]) - mean_log(second, covariances[1])) / math.log(10)


RESULT = Result("dense", STATEMENT, CITATION, check, figure)
