"""Angular hybrid features: hyperbolic features where points are opposed, trigonometric ones where they are aligned."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from rfkernels import core, samplers, variance
from rfkernels._arrays import is_jax, matmul
from rfkernels._checks import check_key
from rfkernels.features import Features, SideName, draw
from rfkernels.materialized._records import host_generator, read_only, register_pytree, size
from rfkernels.samplers import Rows, Sampler


@dataclass(frozen=True, eq=False)
class AngularHybrid:
    """Hyperbolic and trigonometric features, mixed by an estimate of the angle: what `draw_angular_hybrid` returns.

    A pytree under JAX.

    Parameters
    ----------
    sampler : Sampler
        What drew the projection rows of both, from which `relative_error` knows what estimates are worth.
    hyperbolic, trigonometric : Features
        Of independent rows.
    directions : array, shape (*batch, directions, dim)
        Independent normal vectors t_i, whose sides x and y are on estimate the angle between these.
    """

    sampler: Sampler
    hyperbolic: Features
    trigonometric: Features
    directions: Any

    def __post_init__(self) -> None:
        register_pytree(AngularHybrid, "sampler")

    @property
    def dim(self) -> int:
        """The width of queries and keys."""
        return self.hyperbolic.dim

    @property
    def count(self) -> int:
        """How many feature columns there are."""
        return (int(self.directions.shape[-2]) + 1) * (self.hyperbolic.count + self.trigonometric.count)

    @property
    def batch(self) -> tuple[int, ...]:
        """Batch axes of the arrays, which broadcast against those of keys."""
        return self.hyperbolic.batch

    @property
    def scale(self) -> Any:
        """The kernel is estimated at inputs multiplied by √scale on both sides."""
        return self.hyperbolic.scale


def draw_angular_hybrid(
    dim: int,
    count: int,
    *,
    directions: int,
    sampler: str | Sampler | Rows = "orthogonal",
    scale: float | None = None,
    batch: tuple[int, ...] = (),
    rng: Any,
) -> AngularHybrid:
    """Draw angular hybrid features: φ(x)·φ(y) = λ̂ k̂_hyp + (1 − λ̂) k̂_trig, λ̂ the estimate of θ/π from n directions.

    λ̂ = ½ (1 − Σ_i sgn(t_i·x) sgn(t_i·y) / n). Hyperbolic estimates are exact of opposed points of equal norm and
    trigonometric ones of equal points, where λ̂ is exactly 1 and 0. Unbiased for exp(scale · x·y), with the relative
    variance E λ̂² RV_hyp + E (1 − λ̂)² RV_trig, as the three are independent (hybrid random features, arXiv 2110.04367).
    The product of sums is a sum over pairs, which is why there are n + 1 columns for each of hyperbolic and
    trigonometric ones: at equal counts a hybrid has an (n + 1)-th of the rows. Queries and keys have different columns.

    Parameters
    ----------
    dim : int
        The width of queries and keys.
    count : int
        Feature columns, a multiple of 4 (directions + 1).
    directions : int
        n.
    sampler : str, Sampler or callable, default "orthogonal"
        What draws the rows of hyperbolic and, independently, of trigonometric features, count / 4 (n + 1) each. The
        directions are always independent.
    scale : float, optional
        Multiplies q·k; split evenly over both sides. 1/√dim by default.
    batch : tuple of int, default ()
        Draw independent arrays for each element of these batch axes.
    rng : int, numpy.random.SeedSequence, numpy.random.Generator or JAX key
        Source of randomness; the same integer gives the same columns on every backend.

    Returns
    -------
    AngularHybrid
        Arrays are NumPy's and read-only, or JAX arrays when `rng` is a JAX key.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a size or a number is out of its range, or the sampler's rows are not normal.
    """
    dim, count, directions = size("dim", dim), size("count", count), size("directions", directions)
    sampler, parts = samplers.resolve(sampler), 4 * (directions + 1)
    if count % parts:
        raise ValueError(f"count must be a multiple of 4 (directions + 1) = {parts}, got {count}")
    if sampler.law != "normal":
        raise ValueError(f"sampler must draw normal rows, but the law of {sampler.name!r} is {sampler.law!r}")
    if is_jax(rng):
        check_key(rng)
        first, second, third = sys.modules["jax"].random.split(rng, 3)
    else:
        first = second = third = host_generator(rng, "hybrid features")
    own = count // parts * 2
    hyperbolic = draw("hyperbolic", dim, own, sampler=sampler, scale=scale, batch=batch, rng=first)
    trigonometric = draw("trigonometric", dim, own, sampler=sampler, scale=scale, batch=batch, rng=second)
    shape = (*batch, directions, dim)
    towards = sys.modules["jax"].random.normal(third, shape) if is_jax(rng) else third.standard_normal(shape)
    return AngularHybrid(sampler, hyperbolic, trigonometric, towards if is_jax(rng) else read_only(towards))


def columns(xp: Any, x: Any, features: AngularHybrid, side: SideName) -> tuple[Any, Any]:
    """Return log |φ(x)| and its sign: [h, t, ∓σ₁h, σ₁t, …, ∓σₙh, σₙt] of h, t = φ_hyp, φ_trig and σ_i = sgn(t_i·x).

    Columns of the queries have the minus. A side is never 0, so that λ̂ is θ/π on average for all points, those at the
    origin at a right angle to any other.
    """
    pairs = [core.transform(xp, x, part, side) for part in (features.hyperbolic, features.trigonometric)]
    base, base_sign = (xp.concatenate(parts, -1) for parts in zip(*pairs, strict=True))
    towards = matmul(xp, x, xp.swapaxes(xp.asarray(features.directions, x.dtype), -1, -2))
    count = towards.shape[-1]
    sides = xp.where(towards < 0, -1, 1).astype(x.dtype)
    turned = base_sign
    if side == "query":
        turned = xp.where(xp.arange(base.shape[-1]) < features.hyperbolic.count, -base_sign, base_sign)
    products = sides[..., :, None] * turned[..., None, :]
    sign = xp.concatenate([base_sign, products.reshape(*products.shape[:-2], count * base.shape[-1])], -1)
    log = xp.concatenate([base - math.log(2) / 2] + [base - math.log(2 * count) / 2] * count, -1)
    return log, sign


def log_variance(x: Any, y: Any, features: AngularHybrid) -> Any:
    """Return log E (k̂/k − 1)² at scaled inputs, for NumPy arrays (*batch, dim)."""
    n = int(features.directions.shape[-2])
    share = _angle(x, y) / math.pi
    logs = [
        variance.relative(part.map, x, y, count=part.count, sampler=features.sampler, log=True)
        for part in (features.hyperbolic, features.trigonometric)
    ]
    with np.errstate(divide="ignore"):
        chances = np.log(share * (share + (1 - share) / n)), np.log((1 - share) * (1 - share + share / n))
    return np.logaddexp(chances[0] + logs[0], chances[1] + logs[1])


def _angle(x: Any, y: Any) -> Any:
    """Return the angle of two vectors; a right one if one of them is zero."""
    norms = [np.sqrt(np.sum(v * v, -1, keepdims=True)) for v in (x, y)]
    a, b = (v / np.where(norm == 0, 1, norm) for v, norm in zip((x, y), norms, strict=True))
    return 2 * np.arctan2(np.sqrt(np.sum((a - b) ** 2, -1)), np.sqrt(np.sum((a + b) ** 2, -1)))
