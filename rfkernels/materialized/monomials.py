r"""Monomials of Taylor's series of the exponential: all of them up to a degree, or some drawn at random.

exp(x·y) = Σ_α x^α y^α / α! over multi-indices α of `dim` exponents, with x^α = Π_l x_l^{α_l} and α! = Π_l α_l!. With
indices drawn from any law q that is positive everywhere, φ_j(x) = x^α / √(m α! q(α)) has φ(x)·φ(y) as an unbiased
estimate. The discrete features of Chefs' Random Tables (arXiv 2205.15317) are this importance sampling with a Poisson
and a geometric law for each coordinate; all indices up to a degree, each with weight 1/α!, are Taylor features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rfkernels._arrays import matmul
from rfkernels._checks import check_batch
from rfkernels.features import SideName
from rfkernels.materialized._records import (
    host_generator,
    parameters,
    read_only,
    register_pytree,
    scale_of,
    size,
)

Law = Literal["poisson", "geometric", "taylor"]

_NEAR = 0.5
"""Below this |t|/√(1 − p), t = x_l y_l, the second moment of geometric features is computed without cancellation."""


@dataclass(frozen=True, eq=False)
class Monomials:
    """Features exp(b_j) x^{α_j} of inputs times √scale: what `draw_poisson`, `draw_geometric` and `taylor` return.

    A pytree under JAX.

    Parameters
    ----------
    law : {"poisson", "geometric", "taylor"}
        How the exponents were chosen, from which `relative_error` knows what estimates are worth.
    exponents : array of int, shape (*batch, count, dim)
        α_j, one multi-index for each column.
    log_weight : array, shape (*batch, count)
        b_j = −½ log(m α! q(α)), or −½ log α! of Taylor features.
    parameter : array, shape (dim,) or ()
        The rates λ of Poisson laws, the probabilities p of geometric laws, or the degree.
    scale : array, shape ()
        The kernel is estimated at inputs multiplied by √scale on both sides.
    """

    law: Law
    exponents: Any
    log_weight: Any
    parameter: Any
    scale: Any

    def __post_init__(self) -> None:
        register_pytree(Monomials, "law")

    @property
    def dim(self) -> int:
        """The width of queries and keys."""
        return int(self.exponents.shape[-1])

    @property
    def count(self) -> int:
        """How many feature columns there are, m."""
        return int(self.exponents.shape[-2])

    @property
    def batch(self) -> tuple[int, ...]:
        """Batch axes of the arrays, which broadcast against those of keys."""
        return tuple(self.exponents.shape[:-2])


def draw_poisson(
    dim: int,
    count: int,
    *,
    rate: Any,
    scale: float | None = None,
    batch: tuple[int, ...] = (),
    rng: Any,
) -> Monomials:
    """Draw Poisson features: φ_j(x) = m^-½ Π_l e^{λ_l/2} λ_l^{−w_l/2} x_l^{w_l}, w_l ~ Poisson(λ_l).

    Unbiased for exp(scale · x·y) whatever the rates; an estimate from one column has the relative variance
    exp(Σ_l (λ_l − x_l y_l)² / λ_l) − 1 at the scaled inputs (PoisRF of Chefs' Random Tables, arXiv 2205.15317, for one
    rate). Columns are positive for nonnegative inputs only.

    Parameters
    ----------
    dim : int
        The width of queries and keys.
    count : int
        Feature columns, m.
    rate : float or array of shape (dim,)
        λ, of all coordinates or of each; see `optimal_rate`.
    scale : float, optional
        Multiplies q·k; split evenly over both sides. 1/√dim by default.
    batch : tuple of int, default ()
        Draw independent columns for each element of these batch axes.
    rng : int, numpy.random.SeedSequence or numpy.random.Generator
        Source of randomness; the same integer gives the same columns on every backend.

    Returns
    -------
    Monomials
        Arrays are NumPy's and read-only.

    Raises
    ------
    TypeError
        If `rng` is none of these.
    ValueError
        If a size or a number is out of its range, or `rng` is a JAX key.
    """
    dim, count = size("dim", dim), size("count", count)
    rate, scale = parameters("rate", rate, (dim,)), scale_of(scale, dim)
    check_batch(batch)
    drawn = host_generator(rng, "Poisson features").poisson(rate, (*batch, count, dim))
    log_weight = log_weights("poisson", drawn, rate) - math.log(count) / 2
    return Monomials("poisson", read_only(drawn), read_only(log_weight), rate, scale)


def draw_geometric(
    dim: int,
    count: int,
    *,
    probability: Any,
    scale: float | None = None,
    batch: tuple[int, ...] = (),
    rng: Any,
) -> Monomials:
    """Draw geometric features: φ_j(x) = m^-½ Π_l p^-½ (1 − p)^{−w_l/2} (w_l!)^-½ x_l^{w_l}, P(w_l = n) = p (1 − p)ⁿ.

    Unbiased for exp(scale · x·y) whatever the probabilities; an estimate from one column has the relative second moment
    Π_l I₀(2|x_l y_l| / √(1 − p_l)) e^{−2 x_l y_l} / p_l at the scaled inputs, I₀ the modified Bessel function (GeomRF
    of Chefs' Random Tables, arXiv 2205.15317, for one p). Columns are positive for nonnegative inputs only.

    Parameters
    ----------
    dim : int
        The width of queries and keys.
    count : int
        Feature columns, m.
    probability : float or array of shape (dim,)
        p, between 0 and 1: of all coordinates or of each; see `optimal_probability`.
    scale : float, optional
        Multiplies q·k; split evenly over both sides. 1/√dim by default.
    batch : tuple of int, default ()
        Draw independent columns for each element of these batch axes.
    rng : int, numpy.random.SeedSequence or numpy.random.Generator
        Source of randomness; the same integer gives the same columns on every backend.

    Returns
    -------
    Monomials
        Arrays are NumPy's and read-only.

    Raises
    ------
    TypeError
        If `rng` is none of these.
    ValueError
        If a size or a number is out of its range, or `rng` is a JAX key.
    """
    dim, count = size("dim", dim), size("count", count)
    probability, scale = parameters("probability", probability, (dim,), 1.0), scale_of(scale, dim)
    check_batch(batch)
    drawn = host_generator(rng, "geometric features").geometric(probability, (*batch, count, dim)) - 1
    log_weight = log_weights("geometric", drawn, probability) - math.log(count) / 2
    return Monomials("geometric", read_only(drawn), read_only(log_weight), probability, scale)


def log_weights(law: Law, exponents: Any, parameter: Any) -> Any:
    """Return −½ log(α! q(α)) of each multi-index, and −½ log α! of Taylor features; see `Monomials`."""
    if law == "poisson":  # the factorials of the law cancel
        return (np.sum(parameter) - exponents @ np.log(parameter)) / 2
    from scipy.special import gammaln

    log_law = 0.0
    if law == "geometric":
        log_law = np.sum(np.log(parameter)) + exponents @ np.log1p(-parameter)
    return -(log_law + np.sum(gammaln(exponents + 1), -1)) / 2


def columns(xp: Any, x: Any, features: Monomials, side: SideName) -> tuple[Any, Any]:
    """Return log |φ(x)| and its sign; 0⁰ = 1.

    All that is computed is three products of matrices: powers become multiples of logs, whose sum no order of factors
    makes overflow.
    """
    exponents = xp.swapaxes(xp.asarray(features.exponents), -1, -2)
    dtype = x.dtype
    t = x * xp.sqrt(xp.asarray(features.scale, dtype))
    logs = xp.log(xp.where(t == 0, 1, xp.abs(t)))
    log = matmul(xp, logs, exponents.astype(dtype))
    log = log + xp.asarray(features.log_weight, dtype)[..., None, :]
    vanishes = matmul(xp, (t == 0).astype(dtype), (exponents > 0).astype(dtype)) > 0
    odd = matmul(xp, (t < 0).astype(dtype), (exponents % 2).astype(dtype)) % 2
    return xp.where(vanishes, -xp.inf, log), xp.where(vanishes, 0, 1 - 2 * odd)


def pair_log_moment(x: Any, y: Any, features: Monomials) -> Any:
    """Return log E (k̂/k)² of a single column at scaled inputs, for NumPy arrays (*batch, dim)."""
    terms = x * y
    if features.law == "poisson":
        return np.sum((features.parameter - terms) ** 2 / features.parameter, -1)
    from scipy.special import i0e

    stop = 1 - features.parameter
    root = np.abs(terms) / np.sqrt(stop)
    near = (root < _NEAR) & (stop < 0.5)  # p is not known from 1 − p where it is small, and nothing cancels then
    close = _near_moment(np.where(near, terms, 0), np.where(near, stop, 0.5), np.where(near, root, 0) ** 2)
    each = np.where(near, close, np.log(i0e(2 * root)) + 2 * (root - terms) - np.log(features.parameter))
    return np.maximum(np.sum(each, -1), 0.0)  # at least 0 but for rounding


def _near_moment(terms: Any, stop: Any, square: Any) -> Any:
    """Return log(I₀(2|t|/√q) e^(−2t) / (1 − q)) for small t²/q, where its parts may cancel to a quarter of q².

    It is (q − t)²/q − (log(1 − q) + q) + (log I₀ − t²/q), of which only the last is negative, and the smaller part.
    """
    rest = np.zeros_like(square)
    for k in range(12, 1, -1):
        rest = (1 + rest) * square / k**2
    rest = rest * square  # I₀ − 1 − t²/q
    return (stop - terms) ** 2 / stop - _log1p_rest(-stop) + _log1p_rest(square + rest) + rest


def _log1p_rest(u: Any) -> Any:
    """Return log(1 + u) − u."""
    small = np.abs(u) < 0.1
    inside = np.where(small, u, 0)
    series = np.zeros_like(inside)
    for k in range(18, 1, -1):
        series = 1 / k - series * inside
    return np.where(small, -series * inside * inside, np.log1p(np.where(small, 0, u)) - u)
