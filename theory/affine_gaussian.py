"""The best positive features of all that are affine in the inputs and Gaussian in the rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import sympy as sp
from matplotlib.figure import Figure
from scipy.optimize import minimize

import rfkernels as rfk
from rfkernels import fitting
from theory import _cubature as cubature
from theory._cubature import Array
from theory._verdict import Measured, Result, Verdict, greatest

STATEMENT = r"""
For vectors $a$, $b$ and an invertible $T$,
$x \cdot y = T(x - a) \cdot T^{-\top}(y - b) + x \cdot b + a \cdot y - a \cdot b$,
and positive features of the first term may take their rows from $N(\mu, \Sigma)$ instead of $N(0, I)$. With
$z = T(x - a) + T^{-\top}(y - b) - \mu$ in the eigenbasis of $\Sigma$ and $\rho_l = 2 \sigma_l^2 - 1 > 0$,

$$ 1 + \mathrm{RV} = \prod_l \frac{1 + \rho_l}{2 \sqrt{\rho_l}} \, \exp\big(z_l^2 / \rho_l\big) . $$

Over all pairs of a set of queries and a set of keys with covariances $S_x$ and $S_y$, the mean of
$\log(1 + \mathrm{RV})$ is least, among all $a, b, T, \mu, \Sigma$, where

- $a$ and $b$ are the means and $\mu = 0$;
- $T^\top T$ is the geometric mean of $S_x^{-1}$ and $S_y$, which makes both covariances equal,
  $T S_x T^\top = T^{-\top} S_y T^{-1}$, with eigenvalues $s_l$, the singular values of $S_x^{1/2} S_y^{1/2}$;
- $\Sigma$ has the same axes and $\rho_l = \frac12 \big(1 + 2\lambda_l + \sqrt{(1 + 2\lambda_l)^2 + 8\lambda_l}\big)$,
  $\lambda_l = 2 s_l$.

The reason is that the least of $\log\frac{1 + \rho}{2\sqrt\rho} + \lambda/\rho$ increases with $\lambda$, and that for
positive definite $P$ and $Q$ the ordered eigenvalues of $P + Q$ are no less than $2 s_l(P^{1/2} Q^{1/2})$, which does
not depend on $T$, for $PQ$ is similar to $S_x S_y$.

It is the mean of a logarithm that is least, over all pairs alike: not the error of attention, for which pairs of large
weight count more, nor RV itself, whose mean may be dominated by a few pairs.
"""

CITATION = (
    "Derived here; it adds means to the dense-exponential features of Likhosherstov et al., FAVOR#, arXiv 2302.00787. "
    "The inequality of eigenvalues: Bhatia and Kittaneh, On the singular values of a product of operators, 1990."
)

CUBATURE, ROUNDING, MINIMUM = 1e-7, 1e-9, 1e-7

Choose = Callable[..., fitting.Choice]


def mean_log(second: Array, covariance: Array) -> float:
    """Return the mean of log(1 + RV) for rows of that covariance, from the second moment of z; inf where RV is."""
    inner = 2 * covariance - np.eye(len(covariance))
    if np.linalg.eigvalsh(inner)[0] <= 0:
        return math.inf
    volume = np.linalg.slogdet(covariance)[1] - np.linalg.slogdet(inner)[1] / 2
    return float(volume + np.trace(np.linalg.solve(inner, second)))


def samples(seed: int, dim: int) -> tuple[Array, Array]:
    """Draw queries and keys of oblique normal distributions with means."""
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((2, dim, dim)) * np.exp(rng.standard_normal((2, 1, dim)) / 2) / 2
    centred = [rng.standard_normal((50, dim)) @ root.T for root in roots]
    return centred[0] + rng.standard_normal(dim), centred[1] + rng.standard_normal(dim)


def second_moment(q: Array, k: Array, t: Array, a: Array, b: Array) -> Array:
    """Return E z zᵀ over all pairs, z = T(x − a) + T⁻ᵀ(y − b)."""
    x, y = (q - a) @ t.T, (k - b) @ np.linalg.inv(t)
    mixed = np.outer(x.mean(0), y.mean(0))
    second: Array = x.T @ x / len(x) + y.T @ y / len(y) + mixed + mixed.T
    return second


def fitted(choose: Choose, q: Array, k: Array, **options: Any) -> fitting.Choice:
    """Return the library's choice for samples with scale 1, T as the samples have it."""
    return choose(fitting.moments(q), fitting.moments(k), scale=1.0, prior=1e-13, **options)


def by_cubature() -> list[Measured]:
    """Integrate rows of a proposal in the plane, T, a and b being in use as well."""
    grid, mean, second = cubature.hermite(64), 0.0, 0.0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        a, b, mu, x, y = 0.3 * rng.standard_normal((5, 2))
        t, root = np.eye(2) + 0.2 * rng.standard_normal((2, 2)), 1.15 * np.eye(2) + 0.1 * rng.standard_normal((2, 2))
        proposal = rfk.proposals.Gaussian(root, mu)
        rows, log_weight = rfk.proposals.propose(np, proposal, grid.rows, None)  # type: ignore[arg-type]
        sides = rfk.Side(t, a, b), rfk.Side(np.linalg.inv(t).T, b, a)
        features = rfk.Features(rfk.lookup("positive"), rows, log_weight - a @ b / 2, *sides, np.asarray(1.0))
        of_x = rfk.transform(x[None], features, side="query", log=True)[0][0]
        of_y = rfk.transform(y[None], features, side="key", log=True)[0][0]
        found = len(rows) * np.exp(of_x + of_y - x @ y)
        z = t @ (x - a) + np.linalg.inv(t).T @ (y - b) - mu
        closed = math.exp(mean_log(np.outer(z, z), root @ root.T))
        mean = greatest(mean, abs(float(found @ grid.weights) - 1))
        second = greatest(second, abs(float(found**2 @ grid.weights) / closed - 1))
    named = {"unbiased": mean, "1 + relative variance": second}
    return [Measured("cubature", subject, error, CUBATURE) for subject, error in named.items()]


def by_symbols() -> list[Measured]:
    """Prove the identity in the plane, and the factor of one axis."""
    x, y, a, b = (sp.Matrix(sp.symbols(f"{name}1 {name}2")) for name in "xyab")
    t = sp.Matrix(2, 2, sp.symbols("t1 t2 t3 t4"))
    identity = (t * (x - a)).dot(t.inv().T * (y - b)) + x.dot(b) + a.dot(y) - a.dot(b) - x.dot(y)
    rho, (z, mu) = sp.symbols("rho", positive=True), sp.symbols("z mu")
    variance = (1 + rho) / 2
    # N(w; 0, 1)² / N(w; μ, σ²) · exp(2 w z − z²) = front · exp(−curve w² + slope w + constant), integrated over w
    curve, slope, constant = 1 - 1 / (2 * variance), 2 * z - mu / variance, mu**2 / (2 * variance) - z**2
    front = sp.sqrt(variance) / sp.sqrt(2 * sp.pi)
    integral = sp.log(front * sp.sqrt(sp.pi / curve)) + slope**2 / (4 * curve) + constant
    factor = sp.log((1 + rho) / (2 * sp.sqrt(rho))) + (z - mu) ** 2 / rho
    square = sp.simplify(sp.exp(2 * sp.log(front * sp.sqrt(sp.pi / curve))) - (1 + rho) ** 2 / (4 * rho))
    exponent = sp.simplify((integral - factor).diff(z)), sp.simplify((integral - factor).diff(mu))
    left = {"the identity": sp.simplify(identity), "the factor": square, "its exponent": sp.Add(*map(abs, exponent))}
    return [
        Measured("SymPy", name, float(rest != 0), 0.0, "" if rest == 0 else str(rest)) for name, rest in left.items()
    ]


def by_algebra(choose: Choose) -> list[Measured]:
    """See that the library's T makes both covariances equal, to the singular values that it should."""
    apart, off = 0.0, 0.0
    for seed, dim in enumerate((1, 2, 3, 8)):
        q, k = samples(seed, dim)
        chosen = fitted(choose, q, k)
        first, second = (m @ np.cov(v.T, bias=True).reshape(dim, dim) @ m.T for m, v in _matrices(chosen, q, k))
        apart = greatest(apart, cubature.largest(first - second) / cubature.largest(first))
        halves = [_half(np.cov(v.T, bias=True).reshape(dim, dim)) for v in (q, k)]
        common = np.linalg.svd(halves[0] @ halves[1], compute_uv=False)
        off = greatest(off, cubature.largest(np.sort(np.linalg.eigvalsh(first)) - np.sort(common)) / common[0])
    named = {"covariances differ": apart, "eigenvalues": off}
    return [Measured("algebra", subject, error, ROUNDING) for subject, error in named.items()]


def _matrices(chosen: fitting.Choice, q: Array, k: Array) -> list[tuple[Array, Array]]:
    return [(chosen.query.matrix, q), (chosen.key.matrix, k)]


def _half(matrix: Array) -> Array:
    values, axes = np.linalg.eigh(matrix)
    half: Array = axes * np.sqrt(values) @ axes.T
    return half


def eigenvalue_excess(roots: Array) -> float:
    """Return the least λ_l(P + Q) / 2 s_l(P^½ Q^½) − 1, P and Q being root rootᵀ."""
    p, q = (root @ root.T for root in roots)
    sums = np.linalg.eigvalsh(p + q)[::-1]
    common = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False)  # of P^½ Q^½ too, up to rotations
    return float(np.min(sums / (2 * common) - 1))


def by_search(choose: Choose) -> list[Measured]:
    """Look for a counterexample to the inequality, and for better choices than the library's."""
    rng = np.random.default_rng(0)
    violation = greatest(*(-eigenvalue_excess(rng.standard_normal((2, n, n))) for n in (2, 3, 5) for _ in range(500)))
    for _ in range(3):
        start = rng.standard_normal(18)
        found = minimize(
            lambda v: eigenvalue_excess(v.reshape(2, 3, 3)), start, method="Nelder-Mead", options={"maxiter": 1500}
        )
        violation = greatest(violation, -found.fun)
    below, apart = 0.0, 0.0
    for seed in range(2):
        q, k = samples(seed, 2)
        chosen = fitted(choose, q, k)
        second = second_moment(q, k, chosen.query.matrix, chosen.query.centre, chosen.key.centre)
        ours = mean_log(second, chosen.proposal.root @ chosen.proposal.root.T)
        best = min(_search(q, k, np.random.default_rng(start)) for start in range(3))
        below, apart = greatest(below, ours - best), greatest(apart, abs(ours - best))
    return [
        Measured("search", "2 s_l over λ_l(P + Q), less 1", max(violation, 0.0), 1e-11),
        Measured("search", "how far another choice is below", max(below, 0.0), MINIMUM),
        Measured("search", "how far the best found is apart", apart, 1e-4),
    ]


def _search(q: Array, k: Array, rng: np.random.Generator) -> float:
    """Minimise over a, b, T and a root of Σ; μ is a shift of b."""

    def objective(v: Array) -> float:
        t, root = v[4:8].reshape(2, 2), v[8:].reshape(2, 2)
        if abs(np.linalg.det(t)) < 1e-6:
            return 1e6
        covariance = np.eye(2) / 2 + root @ root.T  # 2Σ − I is positive definite
        return min(mean_log(second_moment(q, k, t, v[:2], v[2:4]), covariance), 1e6)

    start = np.concatenate(
        [rng.standard_normal(4), np.eye(2).reshape(-1) + 0.3 * rng.standard_normal(4), np.eye(2).reshape(-1)]
    )
    return float(minimize(objective, start, method="BFGS", options={"gtol": 1e-6}).fun)


def check(choose: Choose = fitting.choose) -> Verdict:
    """Put the library's choice, or another in its place, to the proof."""
    return Verdict((*by_cubature(), *by_symbols(), *by_algebra(choose), *by_search(choose)))


def figure() -> Figure:
    """Draw the mean of log(1 + RV) of the library's methods for samples of growing norm."""
    drawn = Figure(figsize=(6, 4), layout="constrained")
    axes = drawn.subplots()
    q, k = samples(1, 8)
    sizes = np.linspace(0.2, 1.5, 14)
    for method in fitting.methods():
        if method != "tilted":
            axes.plot(sizes, [_value(method, size * q, size * k) for size in sizes], linewidth=1, label=method)
    axes.set(title="mean of log(1 + RV) over pairs, d = 8", xlabel="factor of queries and keys", yscale="log")
    axes.legend(fontsize="small")
    return drawn


def _value(method: str, q: Array, k: Array) -> float:
    chosen, dim = fitted(fitting.choose, q, k, method=method), q.shape[-1]
    t = np.eye(dim) if chosen.query.matrix is None else chosen.query.matrix
    a, b = (np.zeros(dim) if side.centre is None else side.centre for side in (chosen.query, chosen.key))
    return mean_log(second_moment(q, k, t, a, b), chosen.proposal.root @ chosen.proposal.root.T)


RESULT = Result("affine_gaussian", STATEMENT, CITATION, check, figure)
