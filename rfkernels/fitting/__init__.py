"""Fit positive random features to data: FAVOR++, FAVOR# and the best of all affine Gaussian choices.

For any vectors a, b and invertible T, x·y = T(x − a)·T⁻ᵀ(y − b) + x·b + a·y − a·b, and positive features of the first
term may draw their rows from any normal distribution. Every method here is one choice of the centres a and b, the
balance T and the covariance of the rows, made from means and covariances of queries and keys. Estimates are unbiased
whatever the choice; what it decides is their variance. With z = T(x − a) + T⁻ᵀ(y − b), and rows that have the variance
(1 + ρ)/2 along each of an orthonormal set of axes, a single row has the relative variance

    ∏ (1 + ρ) / (2 √ρ) · exp(z² / ρ) − 1    (a factor for each axis, z being the coordinate along it),

whose logarithm, the 1 aside, is on average over all pairs the least at ρ = ½ (1 + 2λ + √((1 + 2λ)² + 8λ)), λ = E z².
"""

from __future__ import annotations

from typing import Any

from rfkernels import samplers
from rfkernels._arrays import broadcasting
from rfkernels._checks import check_qk
from rfkernels.features import Features, draw
from rfkernels.fitting.choices import METHODS, Choice, bind, check_map, check_scale, choose, decide
from rfkernels.fitting.errors import relative
from rfkernels.fitting.gains import Gain, gain
from rfkernels.fitting.statistics import Moments, check_samples, merge, moments, pooled, softmax
from rfkernels.maps import FeatureMap
from rfkernels.samplers import Rows, Sampler

__all__ = [
    "Choice",
    "Gain",
    "Moments",
    "bind",
    "check_map",
    "check_scale",
    "choose",
    "fit",
    "gain",
    "merge",
    "methods",
    "moments",
    "pooled",
    "relative",
    "softmax",
]


def methods() -> tuple[str, ...]:
    """Names of the methods that `fit` knows, sorted."""
    return tuple(sorted([*METHODS, "tilted"]))


@broadcasting
def fit(
    q: Any,
    k: Any,
    count: int,
    *,
    method: str = "affine",
    feature_map: str | FeatureMap = "positive",
    sampler: str | Sampler | Rows = "antithetic",
    scale: float | None = None,
    prior: float = 10.0,
    rng: Any,
) -> Features:
    """Draw positive random features that suit such queries and keys.

    Estimates of exp(scale q·k) are unbiased for any queries and keys, given the features; the data decide how far they
    spread. Parameters that come of a sequence must not be used on it causally, as they would let later positions
    touch earlier outputs: fit to other data, and keep the features.
    Keep the features, and do not differentiate `fit`: where eigenvalues coincide, as those of a few vectors do, its
    derivatives are not finite.

    Parameters
    ----------
    q : array, shape (*batch, length, dim)
        A sample of queries.
    k : array, shape (*batch, keys, dim)
        A sample of keys, of any length. There is one set of features for each of its batch axes, such as heads; queries
        are pooled along axes that k lacks or has of size 1, as in grouped-query attention. Move an axis that is not to
        have its own features, such as that of sequences, into the length.
    count : int
        Feature columns, m.
    method : str, default "affine"
        What is chosen from the data:

        - "isotropic": one variance for all rows and axes, FAVOR++ (arXiv 2205.15317), with λ = mean |x_i + y_j|² / dim.
        - "symmetric": a variance for each eigenvector of the second moment of x + y (SDERF, arXiv 2302.00787).
        - "asymmetric": T that makes the second moments of queries and keys equal, and one variance (ADERF).
        - "balanced": diagonal T = (mean y² / mean x²)^¼, then as "symmetric" (SADERF).
        - "centred": the means are subtracted, and nothing else.
        - "centred_isotropic": means subtracted, and one variance.
        - "affine": means subtracted, T that makes both covariances equal, and a variance for each of their axes: of all
          these choices together, the least mean over pairs of the log of 1 + the relative variance of a row.
        - "tilted": as "affine", but over pairs drawn from the weights of softmax attention between the samples, which
          takes all products of queries and keys; usually the best for attention.
    feature_map : str or FeatureMap, default "positive"
        "positive", "hyperbolic" or a map of your own that is exponential, nonnegative and of the exponential kernel.
    sampler : str, Sampler or callable, default "antithetic"
        As in `draw`; rows must be normal, and of "antithetic" ones an even number. Hyperbolic features have pairs ±w
        already, and take "orthogonal".
    scale : float, optional
        Multiplies q·k; split evenly over both sides. 1/√dim (the default) is that of attention.
    prior : float, default 10.0
        How many samples, spread alike in all directions, are added to those given before T is chosen, which makes it
        invertible. They enter nothing but T, and hardly matter there to a sample of many more vectors than dim; more
        of them suit samples that are few or unlike what is to come.
    rng : int, numpy.random.SeedSequence, numpy.random.Generator or JAX key
        Source of the rows, as in `draw`.

    Returns
    -------
    Features
        With the batch axes of k. NumPy float64 arrays, from NumPy samples and no JAX key; JAX arrays otherwise, in the
        accumulation dtype of the samples.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If shapes do not fit, a sample is empty or not finite or has squares beyond the range of floats, a name is
        unknown, the map has another optimum than positive features, the rows of the sampler are not normal, or a
        number is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import rfkernels as rfk
    >>> q, k, v = np.random.default_rng(0).normal(size=(3, 512, 64)) + 1
    >>> features = rfk.fit(q, k, 256, rng=0)
    >>> rfk.attention(q, k, v, features).shape
    (512, 64)
    """
    feature_map, dim = check_map(feature_map), _check_samples(q, k)
    scale = check_scale(scale, dim)
    law = samplers.resolve(sampler).law
    if law != "normal":
        raise ValueError(f"fit needs normal rows, but the law of the sampler {sampler!r} is {law!r}")
    if method not in methods():
        raise ValueError(f"unknown method {method!r}; known are: {', '.join(methods())}")
    batch = tuple(k.shape[:-2])
    chosen = decide(pooled(q, batch), k, method=method, scale=scale, prior=prior)
    drawn = draw(feature_map, dim, count, sampler=sampler, scale=scale, batch=batch, rng=rng)
    return bind(chosen, drawn.projection, feature_map=feature_map, blocks=drawn.blocks)


def _check_samples(q: Any, k: Any) -> int:
    """Require samples of at least one finite vector each; return their width."""
    check_qk(q, k)
    for name, x in (("q", q), ("k", k)):
        if 0 in x.shape[-2:]:
            what = "hold at least one vector to fit to" if x.shape[-1] else "be at least one wide"
            raise ValueError(f"{name} must {what}, got shape {x.shape}")
    check_samples(q=q, k=k)
    return int(q.shape[-1])
