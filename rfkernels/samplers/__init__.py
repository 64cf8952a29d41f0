"""Distributions of projection rows, each drawn from a source of standard normals.

A source is a function of a shape: ``normal(shape) -> array``. It may be a pseudo-random generator or a JAX key; a
sampler is ``sampler(normal, count, dim) -> rows`` of shape ``(count, dim)``. The record `Sampler` says besides which
law a row has by itself and how rows are coupled, from which `rfkernels.variance` knows what estimates are worth.

What JAX cannot draw from a key (`stratified`, `paired`, `quasi`) is drawn on the host, from an integer seed; such a
sampler says so in its field ``host``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from rfkernels._arrays import namespace
from rfkernels.samplers import _host, _laws, _rotations, _structured
from rfkernels.samplers._record import Coupling, Normal, Rows, Sampler

__all__ = [
    "Coupling",
    "Normal",
    "Rows",
    "Sampler",
    "antithetic",
    "cauchy",
    "hadamard",
    "halton",
    "iid",
    "laplace",
    "names",
    "orthogonal",
    "paired",
    "quasi",
    "regularized",
    "resolve",
    "simplex",
    "sobol",
    "stratified",
]

STANDS_FOR_NORMAL = frozenset({"normal", "sphere", "hadamard"})
"""Laws under which a map estimates its kernel, or what tends to it as dim grows."""

iid = Sampler("iid", _rotations.iid, coupling="independent")
"""Independent rows, each N(0, I)."""

orthogonal = Sampler("orthogonal", _rotations.orthogonal, coupling="orthogonal")
"""Haar-orthogonal blocks of `dim` rows, with independent chi-distributed norms.

Rows of one block are exactly orthogonal, each row is marginally N(0, I), and the variance of an estimate is lower than
with `iid` (Performers, arXiv 2009.14794, theorem 2).
"""

regularized = Sampler("regularized", _rotations.regularized, law="sphere", coupling="orthogonal")
"""Haar-orthogonal blocks of rows of norm √dim: uniform on a sphere, not normal.

Positive features then estimate the regularized softmax kernel SMREG (Performers, arXiv 2009.14794, theorem 1), which is
at most the softmax kernel and tends to it as dim grows.
"""

simplex = Sampler("simplex", _rotations.simplex, coupling="simplex")
"""Simplices of `dim` rows in Haar-distributed position, with independent chi-distributed norms.

Directions of one block are √(d/(d−1)) (e_i − 1/d), rotated: the cosine between any two is −1/(d−1), the least that all
can have. Each row is marginally N(0, I). Of all couplings of the directions, this has the least variance for positive
features (Simplex random features, arXiv 2301.13856). For features that are even in the row, "hyperbolic" and
"trigonometric", the sign of the cosine does not matter and `orthogonal` is better.
"""

hadamard = Sampler("hadamard", _structured.hadamard, law="hadamard", block=_structured.order)
"""Rows of (H D)³, Hadamard matrices between random signs, with independent norms: nearly normal.

No QR decomposition is needed: the rows of a block are drawn in n² log n operations, where n is the least power of two
that is not below dim. The rows themselves are returned; the numba backend tells them by their values, and projects on
a block in 3 n log₂ n additions instead of n² multiplications. It does so where dim is a power of two from 32 to 1,024
(less in float64, and on processors without AVX-512), rows are whole blocks of dim, arrays are read-only and float64, as
those of `draw` are (copies and pickles of them are not read-only), and features multiply inputs by no matrix.

A block has n rows of n coordinates, exactly orthogonal and with norms chi-distributed with n degrees of freedom, of
which the first dim coordinates are kept: what is orthogonal, and has norms chi-distributed with dim degrees, only if
dim is a power of two.

A row is symmetric in the sign of each coordinate and uncorrelated, with variances 1 exactly. Its fourth moments are
E w_i⁴ = 3 − 8/n² + 8/n³ and E w_i² w_j² = 1 + 8/n³, where those of a normal row are 3 and 1. To leading order positive
features are therefore off by −s²/(3n²), relative to the kernel, where x + y lies along an axis, and less elsewhere,
with s = |x + y|². Structured orthogonal blocks are those of Performers (arXiv 2009.14794, section 2.4).
"""

stratified = Sampler("stratified", _host.stratified, host=True)
"""Haar-orthogonal blocks of `dim` rows, whose norms are stratified: one between any two quantiles i / count.

Each row is marginally N(0, I), since its stratum is drawn at random. Any two norms are negatively dependent, so that
the variance of positive features is at most that of `orthogonal` (see `paired` for why). Drawn on the host.
"""

paired = Sampler("paired", _host.paired, host=True, block=int)
"""Haar-orthogonal blocks of `dim` rows, whose norms come in pairs of opposed quantiles: F(r) + F(r') = 1.

F is the distribution function of the chi distribution: F(r) is uniform and so is 1 − F(r), hence each row is marginally
N(0, I). Rows 2i and 2i + 1 of a block are a pair; the last of an odd block has no partner. The mean over directions of
e^(w·z) e^(w'·z) is ₀F₁(; d/2; (r² + r'²) |z|²/4), convex in r² + r'², and of all couplings of two norms this one makes
the mean of a convex function of such a sum least: positive features have a variance of at most that of `orthogonal`.
Drawn on the host.
"""


def quasi(engine: Literal["sobol", "halton"] = "sobol") -> Sampler:
    """Return a sampler of scrambled quasi-random points, taken through the quantile of the normal distribution.

    Each row is marginally N(0, I), up to the 2⁻³⁰ that a uniform coordinate is resolved to, and rows together fill the
    space evenly. A power of two is the best count for "sobol". Drawn on the host, with SciPy's `scipy.stats.qmc`, whose
    scrambling is seeded by the source of normals.

    Parameters
    ----------
    engine : {"sobol", "halton"}, default "sobol"
        The sequence. Sobol points exist in up to 21201 dimensions.

    Returns
    -------
    Sampler

    Raises
    ------
    ValueError
        If the engine is neither.
    """
    if engine not in ("sobol", "halton"):
        raise ValueError(f"engine must be 'sobol' or 'halton', got {engine!r}")
    return Sampler(engine, _host.Sequence(engine), host=True)


sobol = quasi("sobol")
"""Scrambled Sobol points (see `quasi`). Drawn on the host."""

halton = quasi("halton")
"""Scrambled Halton points (see `quasi`). Drawn on the host."""

cauchy = Sampler("cauchy", _laws.cauchy, law="cauchy", coupling="independent")
"""Independent rows of independent Cauchy coordinates: `spectral.fourier()` then estimates exp(−|x − y|₁)."""

laplace = Sampler("laplace", _laws.laplace, law="laplace", coupling="independent")
"""Independent rows of independent Laplace coordinates: `spectral.fourier()` then estimates Π 1 / (1 + (x − y)_i²)."""


def antithetic(sampler: str | Sampler | Rows) -> Sampler:
    """Modify a sampler: half the rows are its draws, the other half their negatives.

    Pairs ±w cancel the odd part of an estimate's error. Worthwhile for maps that are not already even in w; for
    "hyperbolic" and "trigonometric" features the second half repeats the first.

    Parameters
    ----------
    sampler : str, Sampler or callable
        What draws the first half.

    Returns
    -------
    Sampler
        Raises ValueError when asked for an odd count of rows.

    Raises
    ------
    ValueError
        If rows of the sampler are antithetic already.
    """
    half = resolve(sampler)
    if half.antithetic:
        raise ValueError(f"the rows of {half.name!r} are antithetic already")
    return replace(half, name=f"antithetic({half.name})", rows=_Pairs(half), antithetic=True)


@dataclass(frozen=True)
class _Pairs:
    """Rows of a sampler and their negatives."""

    half: Sampler

    def __call__(self, normal: Normal, count: int, dim: int) -> Any:
        if count % 2:
            raise ValueError(f"antithetic rows come in pairs: their count must be even, got {count}")
        first = self.half(normal, count // 2, dim)
        return namespace(first).concatenate([first, -first])


def names() -> tuple[str, ...]:
    """Names of the samplers that `rfkernels.draw` knows, sorted."""
    return tuple(sorted(_TABLE))


def resolve(sampler: str | Sampler | Rows) -> Sampler:
    """Return the sampler itself or the one of that name; a function is taken to draw normal rows, coupled somehow."""
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(sampler, str):
        if sampler not in _TABLE:
            raise ValueError(f"unknown sampler {sampler!r}; known are: {', '.join(names())}")
        return _TABLE[sampler]
    if not callable(sampler):
        raise TypeError(f"sampler must be a name or a function (normal, count, dim) -> rows, got {sampler!r}")
    return Sampler(getattr(sampler, "__name__", repr(sampler)), sampler)


_PLAIN = (iid, orthogonal, regularized, simplex, hadamard, stratified, paired, sobol, halton, cauchy, laplace)
_TABLE: dict[str, Sampler] = {sampler.name: sampler for sampler in _PLAIN} | {"antithetic": antithetic(orthogonal)}
