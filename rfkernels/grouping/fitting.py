"""Groups that suit given queries and keys, and the keys that are best left out of any group."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from rfkernels._arrays import accumulator, matmul, namespace
from rfkernels._checks import check_finite_arrays, check_kv, check_mask, check_qk
from rfkernels.fitting import pooled, softmax
from rfkernels.fitting.choices import check_scale
from rfkernels.grouping.records import Groups
from rfkernels.grouping.summaries import labels

_QUERIES, _KEYS = 32, 2048
"""Queries that say which keys matter, and keys that centres are found from."""

_EVEN = 0.1
"""What share of the attention of all is spread evenly when keys are weighed, so that none weighs nothing."""


def fit_groups(q: Any, k: Any, count: int, *, v: Any = None, scale: float | None = None, mask: Any = None) -> Groups:
    """Divide keys into groups, finely where attention is.

    Centres are keys, chosen one after another: each time that for which the squared distance from the nearest centre
    so far, times the attention it receives from a sample of 32 queries, is largest (farthest-first traversal, Gonzalez
    1985, with weights). Keys that matter most become groups of their own. Distances are those that logits see:
    (k − c)ᵀ M (k − c), M being the second moment of queries. Of more than 2,048 keys, the 1,024 that receive most
    attention and as many evenly spaced ones are considered.

    Parameters
    ----------
    q : array, shape (*batch, length, dim)
        A sample of queries.
    k : array, shape (*batch, keys, dim)
        A sample of keys. There are groups for each of its batch axes, such as heads; queries are pooled along axes
        that k lacks or has of size 1, as in grouped-query attention.
    count : int
        Groups. Where there are fewer different keys, some have none.
    v : array, shape (*batch, keys, width), optional
        The values of the keys. If they are given, how they go along with keys within groups is found as well, which
        makes attention more accurate.
    scale : float, optional
        Multiplies q·k; 1/√dim by default.
    mask : array of bool, shape (*batch, keys), optional
        True where a key may be attended.

    Returns
    -------
    Groups
        For `attention`: ``groups=``. Groups that come of a sequence must not be used on it causally.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, a sample is empty or not finite, or a number is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import rfkernels as rfk
    >>> q, k, v = np.random.default_rng(0).normal(size=(3, 8, 512, 64))
    >>> groups = rfk.fit_groups(q, k, 128)
    >>> rfk.attention(q, k, v, groups=groups, window=32).shape
    (8, 512, 64)
    """
    q, k, scale = _checked(q, k, scale, mask)
    if v is not None:
        check_kv(k, v)
        check_finite_arrays(v=v)
        v = v.astype(k.dtype)
    check_count(count, "count")
    xp, keys = namespace(q, k), k.shape[-2]
    metric = matmul(xp, xp.swapaxes(q, -1, -2), q) / q.shape[-2]
    metric = xp.broadcast_to(metric, (*np.broadcast_shapes(q.shape[:-2], k.shape[:-2]), *metric.shape[-2:]))
    weight = _mass(xp, q, k, scale, mask) + (_EVEN / keys if mask is None else _EVEN / keys * mask)
    if keys > _KEYS:
        k, v, weight = _some(xp, k, v, weight)
    groups = Groups(
        _spread_out(xp, matmul(xp, k, metric), k, weight, count), metric, metric, None, xp.asarray(scale, k.dtype)
    )
    spread, cross = _within(xp, groups, k, v)
    return groups._replace(spread=spread, cross=cross)


def _within(xp: Any, groups: Groups, k: Any, v: Any) -> tuple[Any, Any]:
    """Return the covariance of keys within their groups, and that of keys and values, divided by the former's mean."""
    own = (labels(xp, groups, k)[..., None] == xp.arange(groups.size)).astype(k.dtype)
    total = xp.sum(own, -2)[..., None]

    def apart(x: Any) -> Any:
        means = matmul(xp, xp.swapaxes(own, -1, -2), x) / xp.where(total > 0, total, 1)
        return x - matmul(xp, own, means)

    turned = xp.swapaxes(apart(k), -1, -2)
    covariance = matmul(xp, turned, apart(k))
    mean = xp.sum(covariance * groups.metric, (-1, -2))
    mean = xp.where(mean > 0, mean, 1)[..., None, None]
    return covariance / mean, None if v is None else matmul(xp, turned, apart(v)) / mean


def heavy_keys(q: Any, k: Any, count: int, *, scale: float | None = None, mask: Any = None) -> Any:
    """Return the positions of the keys that receive the most attention from a sample of queries.

    Parameters
    ----------
    q, k, scale, mask
        As in `fit_groups`; the sample is 32 of the queries, evenly spaced.
    count : int
        How many positions; all if there are fewer keys.

    Returns
    -------
    array of int, shape (*batch, count)
        In ascending order, with the batch axes of k. Positions that come of a sequence must not be used on it causally.

    Raises
    ------
    TypeError, ValueError
        As `fit_groups`.
    """
    q, k, scale = _checked(q, k, scale, mask)
    check_count(count, "count")
    xp = namespace(q, k)
    mass = _mass(xp, q, k, scale, mask)
    return xp.sort(xp.argsort(-mass, -1)[..., : min(count, k.shape[-2])], -1)


def check_count(count: Any, name: str) -> None:
    """Require a positive integer."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"{name} must be a positive integer, got {count!r}")


def _checked(q: Any, k: Any, scale: Any, mask: Any) -> tuple[Any, Any, float]:
    """Return queries, pooled as keys are shared, and keys in the dtype of sums, and the scale."""
    check_qk(q, k)
    check_mask(mask, k)
    for name, x in (("q", q), ("k", k)):
        if x.shape[-2] == 0:
            raise ValueError(f"{name} must hold at least one vector, got shape {x.shape}")
    check_finite_arrays(q=q, k=k)
    scale = check_scale(scale, q.shape[-1])
    dtype = accumulator(namespace(q, k), q, k)
    return pooled(q, tuple(k.shape[:-2])).astype(dtype), k.astype(dtype), scale


def _mass(xp: Any, q: Any, k: Any, scale: float, mask: Any) -> Any:
    """Return the attention that each key receives on average from some of the queries."""
    length = q.shape[-2]
    rows = q[..., np.arange(min(_QUERIES, length)) * length // min(_QUERIES, length), :]
    logits = scale * matmul(xp, rows, xp.swapaxes(k, -1, -2))
    if mask is not None:
        logits = xp.where(mask[..., None, :], logits, xp.finfo(logits.dtype).min)
    mass = xp.mean(softmax(xp, logits), -2)
    return mass if mask is None else xp.where(mask, mass, 0)


def _some(xp: Any, k: Any, v: Any, weight: Any) -> tuple[Any, Any, Any]:
    """Return the keys that weigh most and evenly spaced ones, half each, with their values and weights."""
    half, keys = _KEYS // 2, k.shape[-2]
    heaviest = xp.argsort(-weight, -1)[..., :half]
    spaced = xp.broadcast_to(np.arange(half) * keys // half, heaviest.shape)
    chosen = xp.concatenate([heaviest, spaced], -1)

    def taken(x: Any) -> Any:
        batch = np.broadcast_shapes(x.shape[:-2], chosen.shape[:-1])
        return xp.take_along_axis(xp.broadcast_to(x, (*batch, *x.shape[-2:])), chosen[..., None], -2)

    return taken(k), None if v is None else taken(v), xp.take_along_axis(weight, chosen, -1)


def _spread_out(xp: Any, sent: Any, k: Any, weight: Any, count: int) -> Any:
    """Return keys each of which is the farthest from those before, by weight times squared distance; `sent` is M k."""
    batch = np.broadcast_shapes(sent.shape[:-2], k.shape[:-2], weight.shape[:-1])
    sent, k = (xp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (sent, k))
    square = xp.sum(sent * k, -1)

    def body(i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        nearest, picked = carry
        at = xp.argmax(weight * nearest, -1)[..., None]
        product = xp.sum(sent * xp.take_along_axis(k, at[..., None], -2), -1)
        distance = xp.maximum(square - 2 * product + xp.take_along_axis(square, at, -1), 0)
        nearest = xp.where(i == 0, distance, xp.minimum(nearest, distance))
        return nearest, xp.where(xp.arange(count) == i, at, picked)

    start = xp.ones((*batch, k.shape[-2]), k.dtype), xp.zeros((*batch, count), int)
    _, picked = _repeated(xp, count, body, start)
    return xp.take_along_axis(k, picked[..., None], -2)


def _repeated(xp: Any, count: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    if xp is not np:
        return sys.modules["jax"].lax.fori_loop(0, count, body, start)
    for i in range(count):
        start = body(i, start)
    return start
