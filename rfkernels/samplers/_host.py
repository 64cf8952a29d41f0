"""Rows that only the host can draw: those that need quantiles or SciPy's sequences.

JAX has no inverse of the incomplete gamma function, which the quantiles of a norm are, nor quasi-random sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rfkernels.samplers._record import Normal
from rfkernels.samplers._rotations import haar

_BITS = 30
"""How finely SciPy's Sobol sequence divides the unit interval."""


def _chi_quantile(below: Any, above: Any, dim: int) -> Any:
    """Return the norm r of dim normals with P(norm < r) = below = 1 − above, accurate in both tails."""
    from scipy import special

    lower = special.gammaincinv(dim / 2, np.minimum(below, 0.5))
    upper = special.gammainccinv(dim / 2, np.minimum(above, 0.5))
    return np.sqrt(2 * np.where(below < 0.5, lower, upper))


def stratified(normal: Normal, count: int, dim: int) -> Any:
    """Haar directions at right angles, times norms of which one lies between any two quantiles i / count.

    Which row has which is a random permutation: every row by itself has a chi-distributed norm.
    """
    from scipy import special

    directions = haar(normal, count, dim)
    stratum, within = np.argsort(normal((count,))), normal((count,))
    below = (stratum + special.ndtr(within)) / count
    above = (count - 1 - stratum + special.ndtr(-within)) / count
    return directions * _chi_quantile(below, above, dim)[:, None]


def paired(normal: Normal, count: int, dim: int) -> Any:
    """Haar directions at right angles, rows 2i and 2i + 1 of a block with norms r, r' such that F(r) + F(r') = 1."""
    from scipy import special

    directions, blocks = haar(normal, count, dim), -(-count // dim)
    draws = normal((blocks, (dim + 1) // 2, 1)) * np.array([1.0, -1.0])
    draws = draws.reshape(blocks, -1)[:, :dim].reshape(-1)[:count]
    return directions * _chi_quantile(special.ndtr(draws), special.ndtr(-draws), dim)[:, None]


@dataclass(frozen=True)
class Sequence:
    """Rows of a scrambled sequence of SciPy, through the normal quantile."""

    engine: str

    def __call__(self, normal: Normal, count: int, dim: int) -> Any:
        from scipy import special
        from scipy.stats import qmc

        words = np.asarray(normal((8,)), np.float64).view(np.uint64)
        seed = np.random.default_rng(words.tolist())
        if self.engine == "sobol":
            points = qmc.Sobol(dim, seed=seed, bits=_BITS).random_base2((count - 1).bit_length())[:count]
        else:
            points = qmc.Halton(dim, seed=seed).random(count)
        # A point may be 0 or round to 1, whose quantiles are infinite: both ends move inwards by half a cell.
        return special.ndtri(points * (1 - 2.0**-_BITS) + 2.0 ** -(_BITS + 1))
