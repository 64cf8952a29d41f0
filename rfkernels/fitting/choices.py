"""What each method chooses, from moments alone, and the features that come of it."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from rfkernels import features as drawing
from rfkernels import kernels, maps
from rfkernels._arrays import matmul, namespace
from rfkernels.features import Features, Side
from rfkernels.fitting.statistics import Moments
from rfkernels.maps import FeatureMap
from rfkernels.proposals import Gaussian


class Choice(NamedTuple):
    """What a method decides: both sides, the distribution of the rows, and a log-weight.

    Parameters
    ----------
    query, key : Side
        The affine preprocessing of each side.
    proposal : Gaussian
        Of the rows: root of shape (*batch, dim, dim); `choose` has no mean, which centred features do without.
    log_weight : array, shape (*batch)
        What is added to the log-weight of every row: −½ scale a·b.
    scale : float
        Multiplies q·k.
    """

    query: Side
    key: Side
    proposal: Gaussian
    log_weight: Any
    scale: Any


class Method(NamedTuple):
    """Whether means are subtracted, what T may be, and how variances of rows may differ between axes."""

    centred: bool
    balance: Literal["none", "diagonal", "full"]
    spread: Literal["unit", "isotropic", "axes"]


METHODS = {
    "affine": Method(True, "full", "axes"),
    "asymmetric": Method(False, "full", "isotropic"),
    "balanced": Method(False, "diagonal", "axes"),
    "centred": Method(True, "none", "unit"),
    "centred_isotropic": Method(True, "none", "isotropic"),
    "isotropic": Method(False, "none", "isotropic"),
    "symmetric": Method(False, "none", "axes"),
}


def best_spread(xp: Any, energy: Any) -> Any:
    """Return ρ, with rows of variance (1 + ρ)/2, from λ = E z² along an axis; 1 where there is nothing to gain.

    ρ = ½ (1 + 2λ + √((1 + 2λ)² + 8λ)), the least point of log((1 + ρ)/(2√ρ)) + λ/ρ (FAVOR++, arXiv
    2205.15317, with A = (1 − ρ)/8), written so that no square overflows.
    """
    energy = xp.maximum(energy, 0)
    double = 1 + 2 * energy
    return double / 2 * (1 + xp.sqrt(1 + 8 * (energy / double) / double))


def _regular(xp: Any, second: Any, given: Moments, prior: float, scale: float) -> Any:
    """Add `prior` samples that spread alike in all directions, so that a second moment is positive definite.

    They spread as much as those seen, and besides by |mean|²/n², lest few or equal vectors be taken for certain to
    return; by 1 if all were zero.
    """
    dim, eps = second.shape[-1], xp.finfo(second.dtype).eps
    count = given.count
    unseen = xp.maximum(1 / xp.maximum(count, 1) ** 2, eps) * scale * xp.sum(given.mean**2, -1)
    total = (xp.trace(second, axis1=-2, axis2=-1) + unseen) / dim
    total = xp.where(total > 0, total, 1) * prior / (count + prior)
    return second * (count / (count + prior))[..., None, None] + total[..., None, None] * xp.eye(
        dim, dtype=second.dtype
    )


def _balance(xp: Any, kind: str, first: Any, second: Any) -> tuple[Any, Any]:
    """Return T and T⁻ᵀ for second moments P of queries and Q of keys.

    In full, TᵀT is the geometric mean of P⁻¹ and Q, so that T P Tᵀ = T⁻ᵀ Q T⁻¹, and T is turned so that both are
    diagonal: with the singular value decomposition U S Vᵀ of P^½ Q^½, T = S^½ Uᵀ P^-½ (FAVOR#, arXiv 2302.00787, has
    this for uncentred moments).
    """
    if kind == "none":
        eye = xp.eye(first.shape[-1], dtype=first.dtype)
        return eye, eye
    if kind == "diagonal":
        own, other = (xp.diagonal(x, axis1=-2, axis2=-1) ** 0.25 for x in (first, second))
        stretch = other / own
        eye = xp.eye(first.shape[-1], dtype=first.dtype)
        return stretch[..., None] * eye, (1 / stretch)[..., None] * eye
    (roots, axes), (other_roots, other_axes) = _root(xp, first), _root(xp, second)
    between = matmul(xp, xp.swapaxes(axes, -1, -2), other_axes)
    left, common, _ = xp.linalg.svd(roots[..., :, None] * between * other_roots[..., None, :])
    common = xp.maximum(common, xp.finfo(common.dtype).eps * common[..., :1])
    whitened = xp.swapaxes(axes / roots[..., None, :], -1, -2)
    matrix = matmul(xp, xp.sqrt(common)[..., :, None] * xp.swapaxes(left, -1, -2), whitened)
    return matrix, xp.swapaxes(xp.linalg.inv(matrix), -1, -2)  # an inverse to rounding: unbiased however T came out


def _root(xp: Any, second: Any) -> tuple[Any, Any]:
    """Return roots of the eigenvalues of a positive definite matrix, and its eigenvectors in columns."""
    values, axes = xp.linalg.eigh(second)
    floor = second.shape[-1] * xp.finfo(second.dtype).eps * values[..., -1:]  # what rounding may have left of them
    return xp.sqrt(xp.maximum(values, floor)), axes


def _rows_root(xp: Any, kind: str, energy: Any) -> Any:
    """Return a root of the covariance of rows, from the second moment of z."""
    dim, eye = energy.shape[-1], xp.eye(energy.shape[-1], dtype=energy.dtype)
    if kind == "unit":
        return xp.broadcast_to(eye, energy.shape)
    if kind == "isotropic":
        rho = best_spread(xp, xp.trace(energy, axis1=-2, axis2=-1) / dim)
        return xp.sqrt((1 + rho) / 2)[..., None, None] * eye
    values, axes = xp.linalg.eigh(energy)
    return axes * xp.sqrt((1 + best_spread(xp, values)) / 2)[..., None, :]


def choose(
    queries: Moments,
    keys: Moments,
    *,
    method: str = "affine",
    scale: float | None = None,
    prior: float = 10.0,
    cross: Any = None,
) -> Choice:
    """Return what a method decides, from nothing but moments of queries and keys.

    Parameters
    ----------
    queries, keys : Moments
        Of the unscaled vectors, with batch axes that broadcast. At least one vector each.
    method : str, default "affine"
        As in `fit`, but not "tilted": that is "affine" from moments of pairs drawn from the attention weights.
    scale : float, optional
        Multiplies q·k; 1/√dim by default.
    prior : float, default 10.0
        As in `fit`.
    cross : array, shape (*batch, dim, dim), optional
        The covariance of queries (rows) and keys (columns) over the pairs whose estimates matter. None (the default)
        is zero, that of all pairs.

    Returns
    -------
    Choice
        Unbiased features come of them by `bind`.

    Raises
    ------
    TypeError, ValueError
        If the method is unknown, an argument is out of range, or dims differ.
    """
    scale = _check_moments(queries, keys, scale, prior)
    chosen, xp = _method(method), namespace(*queries, *keys)
    queries, keys = _broadcast(xp, queries, keys)
    a, b = (x.mean if chosen.centred else xp.zeros_like(x.mean) for x in (queries, keys))
    first, second = _second(xp, queries, a, scale), _second(xp, keys, b, scale)
    regular = _regular(xp, first, queries, prior, scale), _regular(xp, second, keys, prior, scale)
    t, s = _balance(xp, chosen.balance, *regular)
    left, right = (math.sqrt(scale) * _apply(xp, m, v) for m, v in ((t, queries.mean - a), (s, keys.mean - b)))
    mixed = left[..., :, None] * right[..., None, :]
    if cross is not None:
        mixed = mixed + scale * _between(xp, t, cross, s)
    energy = _between(xp, t, first, t) + _between(xp, s, second, s) + mixed + xp.swapaxes(mixed, -1, -2)
    root = _rows_root(xp, chosen.spread, energy)
    matrices = [None if chosen.balance == "none" else math.sqrt(scale) * m for m in (t, s)]
    affine = ((a, scale * b), (b, scale * a)) if chosen.centred else ((None, None), (None, None))
    query, key = (Side(m, *given) for m, given in zip(matrices, affine, strict=True))
    return Choice(query, key, Gaussian(root), -scale * xp.sum(a * b, -1) / 2, scale)


def _broadcast(xp: Any, *given: Moments) -> tuple[Moments, ...]:
    """Give all moments the same batch axes."""
    batch, dim = np.broadcast_shapes(*(x.count.shape for x in given)), given[0].mean.shape[-1]
    shapes = batch, (*batch, dim), (*batch, dim, dim)
    return tuple(Moments(*(xp.broadcast_to(x, shape) for x, shape in zip(m, shapes, strict=True))) for m in given)


def _second(xp: Any, given: Moments, centre: Any, scale: float) -> Any:
    """Return the second moment of scaled vectors about a centre."""
    apart = given.mean - centre
    covariance = given.scatter / given.count[..., None, None]
    return scale * (covariance + apart[..., :, None] * apart[..., None, :])


def _apply(xp: Any, matrix: Any, vector: Any) -> Any:
    return matmul(xp, matrix, vector[..., None])[..., 0]


def _between(xp: Any, left: Any, matrix: Any, right: Any) -> Any:
    return matmul(xp, matmul(xp, left, matrix), xp.swapaxes(right, -1, -2))


def bind(given: Choice, rows: Any, *, feature_map: str | FeatureMap = "positive") -> Features:
    """Return features with standard normal rows put through what a method decided.

    Parameters
    ----------
    given : Choice
        Of `choose`.
    rows : array, shape (*batch, rows, dim)
        Standard normal rows, each N(0, I) by itself.
    feature_map : str or FeatureMap, default "positive"
        As in `fit`.

    Returns
    -------
    Features
        Row w becomes v = root · w + mean, with the log-weight ½ log(p(v)/q(v)) − ½ scale a·b, p and q being the
        densities of N(0, I) and of the proposal.

    Raises
    ------
    TypeError, ValueError
        If the map has another optimum than positive features, or rows are not of that dim.
    """
    feature_map = check_map(feature_map)
    xp = namespace(rows, given.proposal.root, given.log_weight)
    dtype = xp.result_type(given.proposal.root.dtype, xp.float32)
    rows, root = xp.asarray(rows, dtype), xp.asarray(given.proposal.root, dtype)
    if rows.ndim < 2 or rows.shape[-1] != root.shape[-1]:
        raise ValueError(f"rows must have shape (*batch, rows, {root.shape[-1]}), got {rows.shape}")
    drawn = matmul(xp, rows, xp.swapaxes(root, -1, -2))
    if given.proposal.mean is not None:
        drawn = drawn + xp.asarray(given.proposal.mean, dtype)[..., None, :]
    log_ratio = xp.linalg.slogdet(root)[1][..., None] + (xp.sum(rows * rows, -1) - xp.sum(drawn * drawn, -1)) / 2
    log_weight = log_ratio / 2 + given.log_weight[..., None]

    def kept(array: Any) -> Any:
        return array if array is None or xp is not np else drawing._read_only(array)

    query, key = (Side(*(kept(x) for x in side)) for side in (given.query, given.key))
    return Features(feature_map, kept(drawn), kept(log_weight), query, key, kept(xp.asarray(given.scale, dtype)))


def check_map(feature_map: str | FeatureMap) -> FeatureMap:
    """Return the map if the optimum of positive features is its own."""
    found = maps.resolve(feature_map)
    if not (found.exponential and found.nonnegative and found.kernel == kernels.EXPONENTIAL):
        raise ValueError(
            "feature_map must be exponential, nonnegative and of the exponential kernel, such as 'positive' or "
            f"'hyperbolic', got {feature_map!r}"
        )
    return found


def _method(method: Any) -> Method:
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known are: {', '.join(sorted(METHODS))}")
    return METHODS[method]


def check_scale(scale: Any, dim: int) -> float:
    """Return a positive finite scale, 1/√dim if it is None."""
    if scale is None:
        return 1 / math.sqrt(dim)
    if isinstance(scale, bool) or not (
        isinstance(scale, int | float | np.floating) and math.isfinite(scale) and scale > 0
    ):
        raise ValueError(f"scale must be a positive finite number, got {scale!r}")
    return float(scale)


def _check_moments(queries: Moments, keys: Moments, scale: Any, prior: Any) -> float:
    """Require moments that go together; return the scale."""
    if not isinstance(queries, Moments) or not isinstance(keys, Moments):
        raise TypeError(
            f"queries and keys must be Moments (see moments), got {type(queries).__name__} and {type(keys).__name__}"
        )
    dim = queries.mean.shape[-1]
    if keys.mean.shape[-1] != dim:
        raise ValueError(
            f"queries and keys must agree in dim, got means of shapes {queries.mean.shape} and {keys.mean.shape}"
        )
    for name, given in (("queries", queries), ("keys", keys)):
        if isinstance(given.count, np.ndarray) and not np.all(given.count > 0):
            raise ValueError(f"moments of {name} must be of at least one vector, got a count of {np.min(given.count)}")
    if isinstance(prior, bool) or not (
        isinstance(prior, int | float | np.floating) and math.isfinite(prior) and prior > 0
    ):
        raise ValueError(f"prior must be a positive finite number, got {prior!r}")
    return check_scale(scale, dim)
