"""Random Maclaurin features: products of random projections, as many factors as a drawn degree says."""

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

Law = Literal["rademacher", "normal"]


@dataclass(frozen=True, eq=False)
class Maclaurin:
    """Features exp(b_j) Π_{i ≤ N_j} w_{ji} · x of inputs times √scale: what `draw_maclaurin` returns.

    A pytree under JAX.

    Parameters
    ----------
    law : {"rademacher", "normal"}
        Of the entries of the rows.
    rows : array, shape (*batch, count, factors, dim)
        w_{ji}, of which the first N_j are used; `factors` is the largest degree drawn.
    degrees : array of int, shape (*batch, count)
        N_j.
    log_weight : array, shape (*batch, count)
        b_j = ½ (λ − N_j log λ − log m).
    rate : array, shape ()
        λ, the mean of the Poisson law of the degrees.
    scale : array, shape ()
        The kernel is estimated at inputs multiplied by √scale on both sides.
    """

    law: Law
    rows: Any
    degrees: Any
    log_weight: Any
    rate: Any
    scale: Any

    def __post_init__(self) -> None:
        register_pytree(Maclaurin, "law")

    @property
    def dim(self) -> int:
        """The width of queries and keys."""
        return int(self.rows.shape[-1])

    @property
    def count(self) -> int:
        """How many feature columns there are, m."""
        return int(self.rows.shape[-3])

    @property
    def batch(self) -> tuple[int, ...]:
        """Batch axes of the arrays, which broadcast against those of keys."""
        return tuple(self.rows.shape[:-3])


def draw_maclaurin(
    dim: int,
    count: int,
    *,
    rate: float,
    law: Law = "rademacher",
    scale: float | None = None,
    batch: tuple[int, ...] = (),
    rng: Any,
) -> Maclaurin:
    """Draw random Maclaurin features: φ_j(x) = m^-½ e^{λ/2} λ^{−N_j/2} Π_{i ≤ N_j} w_{ji} · x, N_j ~ Poisson(λ).

    Unbiased for exp(scale · x·y) = Σ_n (scale · x·y)ⁿ / n! whatever the rate, since E (w·x)(w·y) = x·y. An estimate
    from one column has the relative second moment exp(λ + c/λ − 2 x·y) at the scaled inputs, c = E (w·x)²(w·y)²:
    |x|²|y|² + 2 (x·y)² of normal rows, less 2 Σ_l x_l²y_l² of rows of signs. The idea, with a geometric law of the
    degree, is Kar and Karnick's (arXiv 1201.6530); the Poisson law makes the weights of all degrees powers of λ.

    Parameters
    ----------
    dim : int
        The width of queries and keys.
    count : int
        Feature columns, m.
    rate : float
        λ, the mean degree; see `optimal_degree`.
    law : {"rademacher", "normal"}, default "rademacher"
        Of the entries of w: ±1, whose estimates vary less at all inputs, or standard normal.
    scale : float, optional
        Multiplies q·k; split evenly over both sides. 1/√dim by default.
    batch : tuple of int, default ()
        Draw independent columns for each element of these batch axes.
    rng : int, numpy.random.SeedSequence or numpy.random.Generator
        Source of randomness; the same integer gives the same columns on every backend.

    Returns
    -------
    Maclaurin
        Arrays are NumPy's and read-only.

    Raises
    ------
    TypeError
        If `rng` is none of these.
    ValueError
        If a size, a number or the law is none of those allowed, or `rng` is a JAX key.
    """
    dim, count = size("dim", dim), size("count", count)
    rate, scale = parameters("rate", rate, ()), scale_of(scale, dim)
    if law not in ("rademacher", "normal"):
        raise ValueError(f"law must be 'rademacher' or 'normal', got {law!r}")
    check_batch(batch)
    generator = host_generator(rng, "Maclaurin features")
    degrees = np.asarray(generator.poisson(rate, (*batch, count)))
    shape = (*batch, count, int(degrees.max(initial=0)), dim)
    rows = generator.standard_normal(shape) if law == "normal" else 2.0 * generator.integers(0, 2, shape) - 1.0
    log_weight = log_weights(degrees, rate) - math.log(count) / 2
    return Maclaurin(law, read_only(rows), read_only(degrees), read_only(log_weight), rate, scale)


def log_weights(degrees: Any, rate: Any) -> Any:
    """Return ½ (λ − N log λ) of each degree N: −½ log(N! q(N)) of the Poisson law q."""
    return (rate - degrees * np.log(rate)) / 2


def columns(xp: Any, x: Any, features: Maclaurin, side: SideName) -> tuple[Any, Any]:
    """Return log |φ(x)| and its sign; an empty product is 1."""
    dtype = x.dtype
    rows = xp.asarray(features.rows, dtype)
    *batch, count, factors, dim = rows.shape
    t = x * xp.sqrt(xp.asarray(features.scale, dtype))
    u = matmul(xp, t, xp.swapaxes(rows.reshape(*batch, count * factors, dim), -1, -2))
    u = u.reshape(*u.shape[:-1], count, factors)
    used = xp.arange(factors) < xp.asarray(features.degrees)[..., None, :, None]
    u = xp.where(used, u, 1)
    log = xp.sum(xp.log(xp.where(u == 0, 1, xp.abs(u))), -1) + xp.asarray(features.log_weight, dtype)[..., None, :]
    sign = xp.prod(xp.sign(u), -1)
    return xp.where(sign == 0, -xp.inf, log), sign


def pair_log_moment(x: Any, y: Any, features: Maclaurin) -> Any:
    """Return log E (k̂/k)² of a single column at scaled inputs, for NumPy arrays (*batch, dim)."""
    dot = np.sum(x * y, -1)
    spread = np.sum(x * x, -1) * np.sum(y * y, -1) + dot**2  # c − (x·y)²
    if features.law == "rademacher":
        spread = np.maximum(spread - 2 * np.sum((x * y) ** 2, -1), 0.0)  # at least 0 but for rounding
    return ((features.rate - dot) ** 2 + spread) / features.rate
