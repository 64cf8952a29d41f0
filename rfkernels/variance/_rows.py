"""What one row of exponential features estimates, and how pairs of rows depend on each other.

Relative to the kernel, the estimate of a row v is an average over ζ of exp(v·ζ − ζ·ζ/2), where ζ = x + y for positive
features, ±(x + y) for hyperbolic and ±i (x − y) for trigonometric ones: so one formula of Gaussian integrals has them
all, and squares of ζ only change their sign.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels import maps, samplers, spectral
from rfkernels._arrays import accumulator, matmul, namespace, stopped
from rfkernels._checks import check_qk, check_scale, require_finite_arrays
from rfkernels.activations import Program
from rfkernels.maps import FeatureMap
from rfkernels.proposals import Gaussian, Mixture, Proposal, check_proposal
from rfkernels.samplers import Rows, Sampler


class Form(NamedTuple):
    """The directions ζ = ±(x + key_sign · y) of an exponential map, and the sign of ζ·ζ."""

    signs: tuple[int, ...]
    key_sign: int
    square_sign: int


_FORMS: dict[tuple[Program, ...], Form] = {
    maps.lookup("positive").programs(): Form((1,), 1, 1),
    maps.lookup("hyperbolic").programs(): Form((1, -1), 1, 1),
    maps.lookup("trigonometric").programs(): Form((1, -1), -1, -1),
    spectral.gaussian().programs(): Form((1, -1), -1, -1),
}
"""By what activations compute; the offset of a map only changes its kernel, which all is relative to."""


def form_of(feature_map: FeatureMap) -> Form | None:
    """Return the form of an exponential map of normal rows, None if it is of no known one."""
    return None if feature_map.radii is not None else _FORMS.get(feature_map.programs())


def check_proposed(feature_map: FeatureMap, proposal: Proposal | None) -> None:
    """Require a map that `rfkernels.draw` takes with a proposal."""
    if proposal is not None and not feature_map.exponential:
        raise ValueError("proposal needs an exponential map, whose features take a log-weight")


class Spread(NamedTuple):
    """A Gaussian proposal in the axes of its root's left singular vectors: v = U diag(sigma) w + mean."""

    axes: Any  # None for the identity
    sigma: Any  # (dim,) or ()
    mean: Any  # None for zero

    @property
    def equal(self) -> bool:
        """Whether it is the same in all directions, as far as that is known without looking at traced arrays."""
        return bool(self.sigma.ndim == 0)


def spread_of(xp: Any, proposal: Proposal | None, dim: int, dtype: Any) -> Spread:
    """Return what a proposal does to standard normal rows."""
    if proposal is None:
        return Spread(None, xp.ones((), dtype), None)
    check_proposal(proposal, dim)
    if isinstance(proposal, Mixture):
        raise ValueError(
            "the second moment under a Mixture proposal has no closed form, as the mixture stands in a denominator; "
            "a Gaussian proposal has one"
        )
    return _spread(xp, proposal, dim, dtype)


def _spread(xp: Any, proposal: Gaussian, dim: int, dtype: Any) -> Spread:
    root = xp.asarray(proposal.root, dtype)
    mean = None if proposal.mean is None else xp.asarray(proposal.mean, dtype)
    if root.ndim == 2:
        axes, sigma, _ = xp.linalg.svd(root)
    else:
        axes, sigma = None, abs(root)
    if sigma.ndim and (dim == 1 or (xp is np and np.all(sigma == sigma[0]))):
        sigma = sigma[0]
    return Spread(None if sigma.ndim == 0 else axes, sigma, mean)


class Pair(NamedTuple):
    """Points of a batch, scaled and in the dtype of sums."""

    x: Any
    y: Any


def scaled_pair(x: Any, y: Any, scale: Any, names: tuple[str, str] = ("x", "y")) -> tuple[Any, Pair]:
    """Check points and return their namespace and √scale times each."""
    check_qk(x, y, names=names, pairs=True)
    check_width(names[0], x)
    check_scale(scale, optional=False)
    require_finite_arrays(**dict(zip(names, (x, y), strict=True)))
    xp = namespace(x, y, scale)
    dtype = accumulator(xp, x, y)
    root = xp.sqrt(xp.asarray(scale, dtype))
    return xp, Pair(xp.asarray(x, dtype) * root, xp.asarray(y, dtype) * root)


def directions(xp: Any, form: Form, pair: Pair, spread: Spread) -> list[Any]:
    """Return ζ − mean for each sign of a form, in the axes of the proposal, (*batch, dim)."""
    sums = pair.x + form.key_sign * pair.y
    found = [sums if sign == 1 else -sums for sign in form.signs]
    if spread.mean is not None:
        if form.square_sign < 0:
            raise ValueError("a proposal with a mean has no real closed form for trigonometric features")
        found = [z - spread.mean for z in found]
    return found if spread.axes is None else [matmul(xp, z, spread.axes) for z in found]


def log_second_moment(xp: Any, spread: Spread, square_sign: int, one: Any, other: Any, turn: int) -> Any:
    """Return log E X_g(w) X_g'(turn · w) for g and g' of `directions`: +inf where it diverges, for sigma² ≤ ½.

    With ρ = 2 sigma² − 1 and m = (g + turn · g')/2 it is Σ ½ log((1 + ρ)²/4ρ) + m²/ρ − (g − turn · g')²/4 over the
    axes (arXiv 2205.15317 for a common sigma).
    """
    excess = 2 * (spread.sigma - 1) * (spread.sigma + 1)  # ρ − 1
    exists = excess > -1
    excess = xp.where(exists, excess, 0)
    middle, apart = (one + turn * other) / 2, one - turn * other
    quadratic = middle * middle / (1 + excess) - apart * apart / 4
    volume = xp.log1p(excess / (1 + excess) * excess / 4) / 2  # in which no square overflows
    total = xp.sum(square_sign * quadratic + volume, -1)
    return xp.where(xp.all(exists), total, xp.inf)


class Moment(NamedTuple):
    """(Σ_i share_i e^(e_i) − 1) e^(−top), of which top is at least every e_i and 0."""

    scaled: Any
    top: Any


def mean_excess(xp: Any, exponents: list[Any], floor: Any = 0.0) -> Moment:
    """Return the mean of e^(e_i), less 1, without cancellation where exponents are near zero."""
    stacked = xp.stack(exponents, -1)
    top = stopped(xp, xp.maximum(xp.maximum(xp.max(stacked, -1), floor), 0.0))
    near = xp.max(abs(stacked), -1) < 1
    small = xp.where(near[..., None], stacked, 0)
    middle = xp.mean(small, -1)
    rest = small - middle[..., None]
    close = (xp.expm1(middle) + xp.exp(middle) * xp.mean(_expm1_rest(xp, rest), -1)) * xp.exp(-top)
    infinite = xp.isinf(top)
    shift = xp.where(infinite, 0, top)
    far = xp.mean(xp.exp(xp.where(infinite[..., None], 0, stacked) - shift[..., None]), -1) - xp.exp(-shift)
    return Moment(xp.where(near, close, xp.where(infinite, 1, far)), top)


def _expm1_rest(xp: Any, h: Any) -> Any:
    """Return e^h − 1 − h."""
    small = abs(h) < 0.5
    inside = xp.where(small, h, 0)
    series = xp.zeros_like(h)
    for k in range(17, 1, -1):
        series = (series + 1) * inside / k
    return xp.where(small, series * inside, xp.expm1(h) - h)


def cosine_of(sampler: Sampler, dim: int) -> float | None:
    """Return the cosine between rows of a block, None for independent rows; ValueError for couplings without one."""
    if sampler.coupling == "independent":
        return None
    if sampler.coupling in ("orthogonal", "simplex") and dim == 1:  # a block is a single row
        return None
    if sampler.coupling == "orthogonal":
        return 0.0
    if sampler.coupling == "simplex":
        return -1 / (dim - 1)
    raise ValueError(
        f"no closed form is known for the coupling of the sampler {sampler.name!r}; "
        "one is for independent, orthogonal and simplex rows and their antithetic pairs"
    )


def check_width(name: str, x: Any) -> None:
    """Require points of at least one coordinate."""
    if x.shape[-1] == 0:
        raise ValueError(f"{name} must be at least one wide, got shape {x.shape}")


def check_dim(dim: Any) -> None:
    """Require a width."""
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < 1:
        raise ValueError(f"dim must be a positive integer, got {dim!r}")


def check_squares(s: Any, least: float = 0.0, name: str = "s") -> tuple[Any, Any]:
    """Return the namespace and squared norms as floats; those of NumPy must be finite and at least `least`."""
    xp = namespace(s)
    s = xp.asarray(s)
    if s.dtype.kind in "iu":
        s = s.astype(float)
    if s.dtype.kind != "f":
        raise TypeError(f"{name} must hold real numbers, got dtype {s.dtype}")
    if xp is np and not (np.all(np.isfinite(s)) and np.all(s >= least)):
        raise ValueError(f"{name} must be finite{'' if least == -np.inf else f' and at least {least:g}'}, got {s}")
    return xp, s


def check_count(feature_map: FeatureMap, sampler: Sampler, count: Any) -> int:
    """Return how many independent draws of rows `count` columns have: pairs of an antithetic sampler count once."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"count must be a positive integer, got {count!r}")
    columns = columns_per_draw(feature_map, sampler)
    if count % columns:
        pairs = " in antithetic pairs" if sampler.antithetic else ""
        raise ValueError(
            f"count must be a multiple of {columns}, for {len(feature_map.activations)} activations of rows{pairs}, "
            f"got {count}"
        )
    return int(count) // columns


def columns_per_draw(feature_map: FeatureMap, sampler: Sampler) -> int:
    """Return the columns that a row, or an antithetic pair of rows, has."""
    return len(feature_map.activations) * (2 if sampler.antithetic else 1)


def coupled_pairs(draws: Any, dim: int) -> Any:
    """Return how many ordered pairs of different rows stand in one block of `dim` rows."""
    whole, rest = draws // dim, draws % dim
    return whole * dim * (dim - 1) + rest * (rest - 1)


def resolve(feature_map: str | FeatureMap, sampler: str | Sampler | Rows) -> tuple[FeatureMap, Sampler]:
    """Return the records behind names."""
    return maps.resolve(feature_map), samplers.resolve(sampler)
