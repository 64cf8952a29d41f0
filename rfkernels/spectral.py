"""Feature maps of stationary kernels: cosines and sines of projections drawn from the kernel's spectral measure.

A continuous positive definite function of x − y with value 1 at 0 is the characteristic function E cos(w·(x − y)) of
some law of w (Bochner), so that φ(x) = n^-½ [cos(w_j·x), sin(w_j·x)] has φ(x)·φ(y) → k(x − y) (Rahimi and Recht, Random
features for large-scale kernel machines, 2007). Kernels of |x − y| here have normal rows times independent radii, so
that every sampler of normal rows serves them, blocks of orthogonal directions included.

Inputs are multiplied by √scale as everywhere: ``draw(..., scale=1 / length**2)`` for a length scale, and
``scale=2 * gamma`` for exp(−γ|x − y|²). The maps are bounded, and so are not declared exponential: no sum needs a
logarithm for its scale, and a proposal, whose log-weights are for exponential maps, is refused by `draw`. Estimates can
be negative where the kernel is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from rfkernels._arrays import namespace
from rfkernels._checks import is_number
from rfkernels.kernels import Kernel, squared_distance
from rfkernels.maps import FeatureMap, Radii, register
from rfkernels.samplers import Normal


@dataclass(frozen=True)
class _With:
    """A function whose last arguments are given: equal to its copies and pickles, as `functools.partial` is not."""

    function: Callable[..., Any]
    given: tuple[Any, ...]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments, *self.given)


def _cosine(xp: Any, u: Any, a: Any) -> Any:
    return math.sqrt(2) * xp.cos(u)


def _sine(xp: Any, u: Any, a: Any) -> Any:
    return math.sqrt(2) * xp.sin(u)


def _root(xp: Any, x: Any) -> Any:
    """Return √x with the derivative 0 at 0, in place of none."""
    return xp.where(x > 0, xp.sqrt(xp.where(x > 0, x, 1)), 0)


def _log_gaussian(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    return -squared_distance(xp, dot, xx, yy) / 2


def _log_matern(xp: Any, squared: Any, order: float) -> Any:
    """Return log of e^-t Σ_i c_i tⁱ with t = √(2 order) |x − y| and c_0 = 1, summed in powers of 1/t where t > 1."""
    p = round(order - 0.5)
    c = [2**i * math.comb(p, i) * math.factorial(2 * p - i) / math.factorial(2 * p) for i in range(p + 1)]
    t = _root(xp, 2 * order * squared)
    near, far = xp.where(t > 1, 1, t), xp.where(t > 1, t, 1)
    rising, falling = 0 * near, 0 * near
    for i in range(p, 0, -1):
        rising = (rising + c[i]) * near
    for i in range(p + 1):
        falling = falling / far + c[i]
    return xp.where(t > 1, p * xp.log(far) + xp.log(falling), xp.log1p(rising)) - t


def _log_rational(xp: Any, squared: Any, alpha: float, width: float) -> Any:
    return -alpha * xp.log1p(squared / width)


def _log_variance(xp: Any, dot: Any, xx: Any, yy: Any, log: Any) -> Any:
    """Return log of (1 + k(2δ))/2 − k(δ)², the variance of cos(w·δ), up to about ε/|δ|³ of it."""
    squared = squared_distance(xp, dot, xx, yy)
    variance = xp.expm1(log(xp, 4 * squared)) / 2 - xp.expm1(2 * log(xp, squared))
    return xp.where(variance > 0, xp.log(xp.where(variance > 0, variance, 1)), -xp.inf)


def _log_variance_gaussian(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    shape = -xp.expm1(-squared_distance(xp, dot, xx, yy))
    return xp.where(shape > 0, 2 * xp.log(xp.where(shape > 0, shape, 1)) - math.log(2), -xp.inf)


def _chi(normal: Normal, count: int, degrees: int) -> Any:
    squares = normal((count, degrees)) ** 2
    xp = namespace(squares)
    return xp.sqrt(xp.sum(squares, -1))


def _student(normal: Normal, count: int, degrees: int) -> Any:
    """Radii √(degrees / χ²), which make a normal row one of Student's t."""
    chi = _chi(normal, count, degrees)
    xp = namespace(chi)
    return math.sqrt(degrees) / xp.maximum(chi, xp.finfo(chi.dtype).eps)  # a normal of float32 may be 0


def _gamma(normal: Normal, count: int, degrees: int, width: float) -> Any:
    """Radii √(χ² / width): their squares are gamma-distributed, of shape degrees / 2 and mean degrees / width."""
    return _chi(normal, count, degrees) / math.sqrt(width)


def _stationary(name: str, log: Any, radii: Radii | None) -> FeatureMap:
    kernel = Kernel.of_distance(name, log)
    return FeatureMap((_cosine, _sine), kernel=kernel, log_variance=_With(_log_variance, (log,)), radii=radii)


def fourier() -> FeatureMap:
    """Return the map of cosines and sines alone, which estimates whatever kernel the rows are drawn for.

    φ(x)·φ(y) is the mean of cos(w_j·(x − y)): an estimate of the characteristic function of a symmetric law of w. The
    map names no kernel, as it depends on the sampler, and kernels of more than |x − y| have no closed form here:

    - ``sampler="cauchy"``: exp(−√scale |x − y|₁), scikit-learn's ``laplacian_kernel`` with ``scale=gamma**2``;
    - ``sampler="laplace"``: Π_i 1 / (1 + scale (x_i − y_i)²), the Cauchy kernel of Rahimi and Recht (2007);
    - normal rows: exp(−scale |x − y|²/2), for which `gaussian` is the map that knows its kernel.

    Returns
    -------
    FeatureMap
        Two columns for each row.
    """
    return _FOURIER


def gaussian() -> FeatureMap:
    """Return the map of k(x, y) = exp(−|x − y|²/2), whose spectral measure is N(0, I).

    One row has the variance (1 − exp(−|x − y|²))²/2. scikit-learn's ``rbf_kernel`` is that with ``scale=2 * gamma``.

    Returns
    -------
    FeatureMap
        Two columns for each row.
    """
    return _GAUSSIAN


def matern(order: float) -> FeatureMap:
    """Return the map of the Matérn kernel of half-integer order ν, as a function of r = |x − y|.

    k = exp(−r) for ν = ½, (1 + √3 r) exp(−√3 r) for ν = 3/2, (1 + √5 r + 5r²/3) exp(−√5 r) for ν = 5/2, and so on
    (Rasmussen and Williams, Gaussian processes for machine learning, section 4.2). A row of its spectral measure is a
    normal one times √(2ν / χ²) with 2ν degrees of freedom: Student's t. One row has the variance (1 + k(2r))/2 − k(r)².

    Parameters
    ----------
    order : float
        ν, one of ½, 3/2, 5/2, …

    Returns
    -------
    FeatureMap
        Two columns for each row; the same object for the same order.

    Raises
    ------
    ValueError
        If 2ν is not a positive odd number.
    """
    return _matern(_doubled("order", order, "one of 1/2, 3/2, 5/2, …", step=2))


@cache
def _matern(degrees: int) -> FeatureMap:
    log = _With(_log_matern, (degrees / 2,))
    return _stationary(f"matern({degrees}/2)", log, _With(_student, (degrees,)))


def laplacian() -> FeatureMap:
    """Return the map of k(x, y) = exp(−|x − y|), with the Euclidean norm: the Matérn kernel of order ½.

    For the sum of absolute differences in place of the norm see `fourier`.

    Returns
    -------
    FeatureMap
        Two columns for each row.
    """
    return matern(0.5)


def rational_quadratic(alpha: float) -> FeatureMap:
    """Return the map of k(x, y) = (1 + |x − y|²/(2α))^−α.

    It is the mean of exp(−τ|x − y|²/2) over τ of the gamma distribution of shape α and mean 1, so that a row of its
    spectral measure is a normal one times √τ. One row has the variance (1 + k(2r))/2 − k(r)².

    Parameters
    ----------
    alpha : float
        α, a positive multiple of ½: 2α is the number of normals that τ is drawn from.

    Returns
    -------
    FeatureMap
        Two columns for each row; the same object for the same α.

    Raises
    ------
    ValueError
        If 2α is not a positive whole number.
    """
    return _rational_quadratic(_doubled("alpha", alpha, "a positive multiple of 1/2", step=1))


@cache
def _rational_quadratic(degrees: int) -> FeatureMap:
    log = _With(_log_rational, (degrees / 2, degrees))
    return _stationary(f"rational_quadratic({degrees}/2)", log, _With(_gamma, (degrees, degrees)))


def cauchy() -> FeatureMap:
    """Return the map of k(x, y) = 1 / (1 + |x − y|²): the rational quadratic kernel of α = 1 at √2 times the inputs.

    For the product over coordinates in place of the norm see `fourier`.

    Returns
    -------
    FeatureMap
        Two columns for each row.
    """
    return _CAUCHY


def _doubled(name: str, value: float, expected: str, step: int) -> int:
    """Return twice the value, which must be 1 plus a multiple of the step."""
    if not (is_number(value) and value > 0 and (2 * value - 1) % step == 0):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return round(2 * value)


_FOURIER = FeatureMap((_cosine, _sine))
_GAUSSIAN = FeatureMap(
    (_cosine, _sine), kernel=Kernel("gaussian", _log_gaussian, norm_weight=-0.5), log_variance=_log_variance_gaussian
)
_CAUCHY = _stationary("cauchy", _With(_log_rational, (1, 1)), _With(_gamma, (2, 1)))

NAMED = {
    "cauchy": cauchy(),
    "gaussian": gaussian(),
    "laplacian": laplacian(),
    "matern32": matern(1.5),
    "matern52": matern(2.5),
}
"""The maps that importing this module registers by name."""

for _name, _map in NAMED.items():
    register(_name, _map)
