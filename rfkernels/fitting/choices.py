"""What each method chooses, from moments alone, and the features that come of it."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from rfkernels import kernels, maps
from rfkernels._arrays import accumulator, matmul, namespace, read_only
from rfkernels._checks import is_number
from rfkernels.features import Blocks, Features, Side
from rfkernels.fitting.algebra import apply, balance, between, regular, rows_root, second_moment
from rfkernels.fitting.statistics import Moments, attended, check_moments, moments
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
    scale = _check_moments(queries, keys, scale, prior, cross)
    chosen, xp = _method(method), namespace(*queries, *keys)
    queries, keys = _broadcast(xp, queries, keys)
    a, b = (x.mean if chosen.centred else xp.zeros_like(x.mean) for x in (queries, keys))
    first, second = second_moment(xp, queries, a, scale), second_moment(xp, keys, b, scale)
    shrunk = regular(xp, first, queries, prior, scale), regular(xp, second, keys, prior, scale)
    t, s = balance(xp, chosen.balance, *shrunk)
    left, right = (math.sqrt(scale) * apply(xp, m, v) for m, v in ((t, queries.mean - a), (s, keys.mean - b)))
    mixed = left[..., :, None] * right[..., None, :]
    if cross is not None:
        mixed = mixed + scale * between(xp, t, cross, s)
    energy = between(xp, t, first, t) + between(xp, s, second, s) + mixed + xp.swapaxes(mixed, -1, -2)
    root = rows_root(xp, chosen.spread, energy)
    matrices = [None if chosen.balance == "none" else math.sqrt(scale) * m for m in (t, s)]
    affine = ((a, scale * b), (b, scale * a)) if chosen.centred else ((None, None), (None, None))
    query, key = (Side(m, *given) for m, given in zip(matrices, affine, strict=True))
    return Choice(query, key, Gaussian(root), -scale * xp.sum(a * b, -1) / 2, scale)


def decide(queries: Any, keys: Any, *, method: str, scale: float, prior: float) -> Choice:
    """Return what a method of `fit` decides from samples, "tilted" included."""
    if method == "tilted":
        of_queries, of_keys, cross = attended(queries, keys, scale)
        return choose(of_queries, of_keys, scale=scale, prior=prior, cross=cross)
    return choose(moments(queries), moments(keys), method=method, scale=scale, prior=prior)


def _broadcast(xp: Any, *given: Moments) -> tuple[Moments, ...]:
    """Give all moments the same batch axes."""
    batch, dim = np.broadcast_shapes(*(x.count.shape for x in given)), given[0].mean.shape[-1]
    shapes = batch, (*batch, dim), (*batch, dim, dim)
    return tuple(Moments(*(xp.broadcast_to(x, shape) for x, shape in zip(m, shapes, strict=True))) for m in given)


def bind(
    given: Choice, rows: Any, *, feature_map: str | FeatureMap = "positive", blocks: Blocks | None = None
) -> Features:
    """Return features with standard normal rows put through what a method decided.

    Parameters
    ----------
    given : Choice
        Of `choose`.
    rows : array, shape (*batch, rows, dim)
        Standard normal rows, each N(0, I) by itself.
    feature_map : str or FeatureMap, default "positive"
        As in `fit`.
    blocks : Blocks, optional
        Which rows were drawn together, as ``draw(...).blocks`` says; unknown by default.

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
    check_choice(given)
    feature_map = check_map(feature_map)
    xp = namespace(rows, given.proposal.root, given.log_weight)
    dtype = accumulator(xp, given.proposal.root)
    rows, root = xp.asarray(rows, dtype), xp.asarray(given.proposal.root, dtype)
    if rows.ndim < 2 or rows.shape[-1] != root.shape[-1]:
        raise ValueError(f"rows must have shape (*batch, rows, {root.shape[-1]}), got {rows.shape}")
    drawn = matmul(xp, rows, xp.swapaxes(root, -1, -2))
    if given.proposal.mean is not None:
        drawn = drawn + xp.asarray(given.proposal.mean, dtype)[..., None, :]
    log_ratio = xp.linalg.slogdet(root)[1][..., None] + (xp.sum(rows * rows, -1) - xp.sum(drawn * drawn, -1)) / 2
    log_weight = log_ratio / 2 + given.log_weight[..., None]

    def kept(array: Any) -> Any:
        if array is None:
            return None
        return read_only(array) if xp is np else xp.asarray(array, dtype)

    query, key = (Side(*(kept(x) for x in side)) for side in (given.query, given.key))
    scale = kept(xp.asarray(given.scale, dtype))
    return Features(feature_map, kept(drawn), kept(log_weight), query, key, scale, blocks)


def check_choice(given: Any) -> None:
    """Require what `choose` returns."""
    if not isinstance(given, Choice):
        raise TypeError(f"given must be a Choice (see rfkernels.fitting.choose), got {type(given).__name__}")


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
    if not (is_number(scale) and scale > 0):
        raise ValueError(f"scale must be a positive finite number, got {scale!r}")
    return float(scale)


def _check_moments(queries: Moments, keys: Moments, scale: Any, prior: Any, cross: Any) -> float:
    """Require moments that go together; return the scale."""
    check_moments(queries=queries, keys=keys)
    dim = queries.mean.shape[-1]
    for name, given in (("queries", queries), ("keys", keys)):
        if namespace(given.count) is np and not np.all(np.asarray(given.count) > 0):
            raise ValueError(f"moments of {name} must be of at least one vector, got a count of {np.min(given.count)}")
    if not (is_number(prior) and prior > 0):
        raise ValueError(f"prior must be a positive finite number, got {prior!r}")
    if cross is not None and np.shape(cross)[-2:] != (dim, dim):
        raise ValueError(f"cross must have shape (*batch, {dim}, {dim}), got {np.shape(cross)}")
    return check_scale(scale, dim)
