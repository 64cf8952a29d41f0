"""The relative mean squared error of kernel estimates."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import broadcasting
from rfkernels._checks import check_flags
from rfkernels.maps import FeatureMap
from rfkernels.proposals import Proposal
from rfkernels.samplers import Rows, Sampler
from rfkernels.variance import _series, _sphere
from rfkernels.variance._rows import (
    Form,
    Pair,
    Spread,
    check_count,
    check_proposed,
    cosine_of,
    coupled_pairs,
    directions,
    form_of,
    log_second_moment,
    mean_excess,
    resolve,
    scaled_pair,
    spread_of,
)


@broadcasting
def relative(
    feature_map: str | FeatureMap,
    x: Any,
    y: Any,
    *,
    count: int,
    sampler: str | Sampler | Rows = "orthogonal",
    scale: float = 1.0,
    proposal: Proposal | None = None,
    log: bool = False,
) -> Any:
    """Return E (k̂(x, y) / k(x, y) − 1)², the relative mean squared error of an estimated kernel.

    For exponential maps, whose rows v = R w + μ come from a Gaussian proposal (R = I, μ = 0 for none), one row has the
    relative variance RV below, where s = |x + y|², δ = |x − y|², z = x + y − μ; of an isotropic proposal σ² I the
    number ρ = 2σ² − 1 and G = ((1 + ρ)²/4ρ)^(dim/2) matter, and G = ρ = 1 without one:

    - positive, exp: G exp(|z|²/ρ) − 1; in antithetic pairs, a pair counted once, ½ G (exp(|z|²/ρ) + exp(−|z|²)) − 1;
    - hyperbolic (μ = 0): ½ G (exp(s/ρ) + exp(−s)) − 1, which is 2 sinh²(s/2) for G = 1;
    - trigonometric (and `spectral.gaussian`): ½ G (exp(−δ/ρ) + exp(δ)) − 1, which is 2 sinh²(δ/2) for G = 1

    (lemma 2 of Performers, arXiv 2009.14794; Chefs' random tables, arXiv 2205.15317). n independent rows have RV/n. In
    blocks of dim rows with coupled directions N of the n² pairs of rows, J dim (dim − 1) + r (r − 1) for
    n = J dim + r, are coupled and the error is RV/n − N (1 − C)/n², with C of `coupling_moment` (of −δ for
    trigonometric features), whatever the isotropic proposal. Rows of the "regularized" sampler are biased; the square
    of the bias is included.

    Parameters
    ----------
    feature_map : str or FeatureMap
        A registered name or a map. One that is not of a form above must have `log_variance` and `kernel`.
    x, y : array, shape (*batch, dim)
        Points; batch axes broadcast. Differentiable under JAX.
    count : int
        Feature columns, as in `rfkernels.draw`.
    sampler : str, Sampler or callable, default "orthogonal"
        How rows are coupled.
    scale : float, default 1
        Multiplies x·y.
    proposal : proposals.Gaussian, optional
        The distribution of rows, as in `rfkernels.draw`.
    log : bool, default False
        Return the natural logarithm, which does not overflow.

    Returns
    -------
    array, shape (*batch)
        0 (log: −inf too) where estimates are exact, as where nothing varies, and where the error is below the range of
        the type of the points; inf where their variance is infinite, the kernel is 0 and estimates are not, or the
        number overflows.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If shapes or sizes do not fit, or if no closed form is known: for a map without one, for a coupling other than
        independent, orthogonal and simplex, for coupled rows of a map that is not of a form above or of a proposal
        that is not isotropic, for a mixture, and for a proposal with a mean for trigonometric features, or for coupled
        rows of hyperbolic ones.

    Examples
    --------
    >>> import numpy as np
    >>> import rfkernels as rfk
    >>> from rfkernels import variance
    >>> x, y = np.array([0.6, 0.0, 0.3, 0.0]), np.array([0.0, 0.5, 0.3, 0.1])
    >>> print(f"{variance.relative('positive', x, y, count=64, sampler='iid'):.4f}")
    0.0260
    >>> print(f"{variance.relative('positive', x, y, count=64):.4f}")
    0.0231
    """
    check_flags(log=log)
    feature_map, sampler = resolve(feature_map, sampler)
    draws = check_count(feature_map, sampler, count)
    xp, pair = scaled_pair(x, y, scale)
    form = form_of(feature_map)
    if form is not None and sampler.law != "normal":
        scaled, top = _sphere.error(xp, form, pair, draws, sampler, proposal)
    else:
        parts = parts_of(xp, feature_map, pair, sampler, proposal, coupled=coupled_pairs(draws, x.shape[-1]) > 0)
        scaled, top = mean_error(parts, draws, x.shape[-1]), parts.top
    if log:
        return log_of(xp, scaled, top)
    with np.errstate(over="ignore"):
        half = xp.exp(top / 2)
        return half * (half * scaled)


def log_of(xp: Any, scaled: Any, top: Any) -> Any:
    """Return the log of scaled · e^top; NaN of NaN, which is not exact."""
    nothing = scaled <= 0
    return xp.where(nothing, -xp.inf, xp.log(xp.where(nothing, 1, scaled)) + top)


class Parts(NamedTuple):
    """What errors are made of: the variance of one draw of rows and 1 − C of two in a block, both times e^(−top)."""

    one: Any
    gap: Any
    top: Any


def mean_error(parts: Parts, draws: int, dim: int) -> Any:
    """Return the error of a mean of draws times e^(−top)."""
    total = parts.one / draws
    return total if parts.gap is None else total - parts.gap * (coupled_pairs(draws, dim) / draws**2)


def parts_of(
    xp: Any, feature_map: FeatureMap, pair: Pair, sampler: Sampler, proposal: Proposal | None, coupled: bool
) -> Parts:
    """Return the parts for normal rows; without 1 − C if rows are independent or no two of a block are drawn."""
    form = form_of(feature_map)
    if form is None:
        return _of_any_map(xp, feature_map, pair, sampler, proposal)
    check_proposed(feature_map, proposal)
    dim = pair.x.shape[-1]
    cosine = cosine_of(sampler, dim)
    spread = spread_of(xp, proposal, dim, pair.x.dtype)
    points = directions(xp, form, pair, spread)
    turns = (1, -1) if sampler.antithetic else (1,)
    pairs = [(points[0], other) for other in points]
    if spread.mean is not None:
        pairs = [(one, other) for one in points for other in points]
    sign = form.square_sign
    exponents = [log_second_moment(xp, spread, sign, *two, turn) for two in pairs for turn in turns]
    squared = sign * xp.sum(points[0] * points[0], -1)
    moment = mean_excess(xp, exponents, floor=-squared)
    if cosine is None or not coupled:
        return Parts(moment.scaled, None, moment.top)
    require_isotropic(form, sampler, spread)
    gap = _series.gap(squared, dim, cosine, moment.top, even=sampler.antithetic or len(form.signs) == 2)
    return Parts(moment.scaled, gap, moment.top)


def require_isotropic(form: Form, sampler: Sampler, spread: Spread) -> None:
    half = f"'iid' or samplers.antithetic('iid') instead of {sampler.name!r}"
    if not spread.equal:
        raise ValueError(
            f"no closed form is known for coupled rows of a proposal whose root is not isotropic; ask for {half}"
        )
    if spread.mean is not None and len(form.signs) == 2:
        raise ValueError(
            f"no closed form is known for coupled rows of even features under a proposal with a mean; ask for {half}"
        )


def _of_any_map(xp: Any, feature_map: FeatureMap, pair: Pair, sampler: Sampler, proposal: Proposal | None) -> Parts:
    """Return the parts from a map's own variance of a row."""
    name = f"the map of kernel {feature_map.kernel.name!r}" if feature_map.kernel else "a map without a kernel"
    if feature_map.log_variance is None or feature_map.kernel is None:
        raise ValueError(f"no closed form of the variance of {name} is known: its log_variance and kernel must be set")
    if proposal is not None:
        raise ValueError(f"no closed form is known for {name} under a proposal")
    if sampler.law != "normal" or sampler.coupling != "independent" or sampler.antithetic:
        raise ValueError(
            f"for {name} the variance is known of independent normal rows only, not of the sampler {sampler.name!r}; "
            "ask for sampler='iid'"
        )
    x, y = pair
    inner = xp.sum(x * y, -1), xp.sum(x * x, -1), xp.sum(y * y, -1)
    spread, kernel = feature_map.log_variance(xp, *inner), feature_map.kernel.log(xp, *inner)
    varies, nothing = spread > -xp.inf, kernel == -xp.inf
    logs = xp.where(varies, spread, 0) - 2 * xp.where(nothing, 0, kernel)
    logs = xp.where(varies, xp.where(nothing, xp.inf, logs), -xp.inf)
    return Parts(xp.where(logs == -xp.inf, 0.0, 1.0), None, xp.where(logs == -xp.inf, 0, logs))
