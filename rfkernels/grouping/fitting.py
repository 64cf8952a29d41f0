"""Groups that suit given queries and keys, and the keys that are best left out of any group."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import accumulator, differing, in_one, matmul, namespace, rows_at, stopped, unmasked
from rfkernels._checks import check_mask, check_qk, check_scale, check_untraced, is_tracer, scale_or_default
from rfkernels.fitting import pooled, softmax
from rfkernels.grouping.records import Groups
from rfkernels.grouping.summaries import labels

_QUERIES, MEASURE, KEYS = 32, 1024, 2048
"""Queries that say which keys matter, those that say how far apart keys are, and keys that centres are found from."""

EVEN = 0.1
"""What share of the attention of all is spread evenly when keys are weighed, so that none weighs nothing."""

_USUAL = 24
"""Powers of two up to which products of two queries, two keys and their number are in the range of float32."""


class Steps(NamedTuple):
    """The steps that take time, of which a backend may have faster ones, with the same results up to rounding.

    Parameters
    ----------
    mass : callable
        ``mass(xp, rows, k, scale, mask)``: the attention that each key receives on average from these queries.
    find : callable
        ``find(q, k, v, count, scale, mask, mass)``: what `fit_groups` returns, `mass` being what keys `received`.
    """

    mass: Callable[..., Any]
    find: Callable[..., Groups]


def found(q: Any, k: Any, v: Any, count: int, scale: Any, mask: Any, mass: Any, steps: Steps) -> Groups:
    """Do what `fit_groups` does, with arguments checked and in the dtype of sums; `mass` is what keys `received`.

    Products of two queries and two keys may leave the range of float32: those of unusual size are measured in units of
    their own. A factor of the metric is free, and one halfway between both units keeps what is made of it in range.
    """
    xp = namespace(q, k)
    groups: Groups = in_one(xp, _found, "count", "steps")(xp, q, k, v, int(count), scale, mask, mass, steps)
    return groups


def _found(xp: Any, q: Any, k: Any, v: Any, count: int, scale: Any, mask: Any, mass: Any, steps: Steps) -> Groups:
    v = v if v is None or v.dtype == k.dtype else v.astype(k.dtype)
    of_q, of_k = _unit(xp, q), _unit(xp, k)
    if xp is np and not (of_q.any() or of_k.any()):
        return steps.find(q, k, v, count, scale, mask, mass)

    def power(exponent: Any) -> Any:
        return xp.ldexp(xp.ones_like(exponent, k.dtype), exponent)

    groups = steps.find(q * power(-of_q), k * power(-of_k), v, count, scale, mask, mass)
    half = (of_q - of_k) // 2
    metric, spread = groups.metric * power(half), groups.spread * power(-half)
    cross = None if groups.cross is None else groups.cross * power(-half - of_k)
    return Groups(groups.centres * power(of_k), metric, spread, cross, groups.scale)


def _unit(xp: Any, x: Any) -> Any:
    """Return the exponent of the largest number of each head, (*batch, 1, 1), of two; 0 where that is of usual size.

    Of subnormal numbers it is that of the least normal one, whose inverse is in range.
    """
    largest = xp.max(xp.abs(stopped(xp, x)), (-2, -1), keepdims=True, initial=0)
    exponent = xp.maximum(xp.frexp(largest)[1], xp.finfo(x.dtype).minexp)
    return xp.where((abs(exponent) > _USUAL) & (largest > 0) & (largest < np.inf), exponent, 0)


def _find(q: Any, k: Any, v: Any, count: int, scale: Any, mask: Any, mass: Any) -> Groups:
    xp, keys = namespace(q, k), k.shape[-2]
    q = spaced(q, MEASURE)
    metric = matmul(xp, xp.swapaxes(q, -1, -2), q) / q.shape[-2]
    metric = xp.broadcast_to(metric, (*np.broadcast_shapes(q.shape[:-2], k.shape[:-2]), *metric.shape[-2:]))
    weight = mass + EVEN / keys * (1 if mask is None else mask.astype(k.dtype))
    if keys > KEYS:
        k, v, weight = _some(xp, k, v, weight, KEYS // 2)
    spread_out = in_one(xp, _spread_out, "count")
    centres = rows_at(xp, k, spread_out(xp, k, metric, weight, int(count)))
    groups = Groups(centres, metric, metric, None, xp.asarray(scale, k.dtype))
    return with_spread(xp, groups, *_within(xp, groups, k, v, weight > 0))


def with_spread(xp: Any, groups: Groups, covariance: Any, cross: Any) -> Groups:
    """Return the groups with what is left within them, per unit of what distances see of it."""
    mean = xp.sum(covariance * groups.metric, (-1, -2))
    mean = xp.where(mean > 0, mean, 1)[..., None, None]
    return groups._replace(spread=covariance / mean, cross=None if cross is None else cross / mean)


def heaviest(mass: Any, mask: Any, count: int) -> Any:
    """Return the positions of the keys that receive the most attention."""
    xp = namespace(mass)
    if mask is not None:
        mass = xp.where(mask, mass, -1)  # weights of others may have vanished, too
    count = min(count, mass.shape[-1])
    if xp is np and np.isfinite(mass).all():  # the same positions without sorting all
        least = -np.partition(-mass, count - 1, -1)[..., count - 1, None]
        chosen = mass >= least
        if np.count_nonzero(chosen) != count * math.prod(mass.shape[:-1]):  # the last of them has equals
            above, equal = mass > least, mass == least
            chosen = above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdims=True)))
        return np.nonzero(chosen)[-1].reshape(*mass.shape[:-1], count)
    return xp.sort(xp.argsort(-mass, -1, stable=True)[..., :count], -1)


def check_count(count: Any, name: str) -> None:
    """Require a positive integer."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"{name} must be a positive integer, got {count!r}")


def checked(q: Any, k: Any, scale: Any, mask: Any, check_finite: Callable[..., None] | None) -> tuple[Any, Any, Any]:
    """Return queries, pooled as keys are shared, and keys in the dtype of sums, and the scale."""
    check_qk(q, k)
    check_mask(mask, k, q=q.shape[:-2])
    for name, x in (("q", q), ("k", k)):
        if x.shape[-2] == 0:
            raise ValueError(f"{name} must hold at least one vector, got shape {x.shape}")
    if check_finite is not None:
        check_finite(q=q, k=k)
    xp = namespace(q, k)
    if xp is np:
        check_untraced(mask=mask)
    scale = scale_for(scale, q, k)
    dtype = accumulator(xp, q, k)
    if mask is not None:
        k = xp.broadcast_to(unmasked(k, mask), (*np.broadcast_shapes(k.shape[:-2], mask.shape[:-1]), *k.shape[-2:]))
    q, k = (x if x.dtype == dtype else x.astype(dtype) for x in (pooled(q, tuple(k.shape[:-2])), k))
    return q, k, scale


def scale_for(scale: Any, q: Any, k: Any) -> Any:
    """Return a positive finite number, 1/√dim if it is None, or what JAX traces beside arrays of its own."""
    check_scale(scale)
    if is_tracer(scale):
        if namespace(q, k) is np:
            check_untraced(scale=scale)
        return scale
    return float(scale_or_default(scale, q.shape[-1]))


def received(q: Any, k: Any, scale: Any, mask: Any, steps: Steps) -> Any:
    """Return the attention that each key receives on average from some of the queries."""
    xp = namespace(q, k)
    return in_one(xp, steps.mass)(xp, spaced(q, _QUERIES), k, scale, mask)


def spaced(q: Any, count: int) -> Any:
    """Return that many queries, evenly spaced, or all if there are no more."""
    length = q.shape[-2]
    if length % count == 0:
        return q[..., :: max(length // count, 1), :]  # no copy
    return q if length < count else q[..., np.arange(count) * length // count, :]


def _mass(xp: Any, rows: Any, k: Any, scale: Any, mask: Any) -> Any:
    logits = scale * matmul(xp, rows, xp.swapaxes(k, -1, -2))
    if mask is not None:
        logits = xp.where(mask[..., None, :], logits, xp.finfo(logits.dtype).min)
    mass = xp.mean(softmax(xp, logits), -2)
    return mass if mask is None else xp.where(mask, mass, 0)


def _some(xp: Any, k: Any, v: Any, weight: Any, half: int) -> tuple[Any, Any, Any]:
    heaviest = xp.argsort(-weight, -1, stable=True)[..., :half]
    spaced = xp.broadcast_to(np.arange(half) * k.shape[-2] // half, heaviest.shape)
    chosen = xp.concatenate([heaviest, spaced], -1)
    values = None if v is None else rows_at(xp, v, chosen)
    return rows_at(xp, k, chosen), values, xp.take_along_axis(weight, chosen, -1)


def _within(xp: Any, groups: Groups, k: Any, v: Any, allowed: Any) -> tuple[Any, Any]:
    member = (labels(xp, groups, k)[..., None] == xp.arange(groups.size)) & allowed[..., None]
    own = member.astype(k.dtype)
    total = xp.sum(own, -2)[..., None]

    def apart(x: Any) -> Any:
        means = matmul(xp, xp.swapaxes(own, -1, -2), x) / xp.where(total > 0, total, 1)
        return xp.where(allowed[..., None], x - matmul(xp, own, means), 0)

    turned = xp.swapaxes(apart(k), -1, -2)
    return matmul(xp, turned, apart(k)), None if v is None else matmul(xp, turned, apart(v))


def _spread_out(xp: Any, k: Any, metric: Any, weight: Any, count: int) -> Any:
    sent = matmul(xp, k, metric)
    batch = np.broadcast_shapes(sent.shape[:-2], k.shape[:-2], weight.shape[:-1])
    sent, k = (xp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (sent, k))
    square = xp.sum(sent * k, -1)
    first = xp.argmax(weight > 0, -1)[..., None]

    def body(i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        nearest, picked = carry
        at = xp.argmax(weight * nearest, -1)[..., None]
        at = xp.where(xp.take_along_axis(weight * nearest, at, -1) > 0, at, first)  # keys that differ may have run out
        product = xp.sum(sent * xp.take_along_axis(k, at[..., None], -2), -1)
        distance = xp.maximum(square - 2 * product + xp.take_along_axis(square, at, -1), 0)
        nearest = xp.where(i == 0, distance, xp.minimum(nearest, distance))
        return nearest, xp.where(xp.arange(count) == i, at, picked)

    nothing = xp.ones((*batch, k.shape[-2]), k.dtype), xp.zeros((*batch, count), int)
    start = tuple(differing(xp, x, 1, (sent, 2), (k, 2), (weight, 1)) for x in nothing)
    return _repeated(xp, count, body, start)[1]


def _repeated(xp: Any, count: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    if xp is not np:
        return sys.modules["jax"].lax.fori_loop(0, count, body, start)
    for i in range(count):
        start = body(i, start)
    return start


STEPS = Steps(_mass, _find)
"""The steps for any kind of array."""
