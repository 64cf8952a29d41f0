"""Sums over far keys: what is written of each key, and what a query reads.

A group of order 0 is read as one key at the mean of its n keys y, with the mean of its values and
log n + min(x·S x / 2, 1) added to its logit. S is the covariance of its keys, taken to be the spread of all groups
times a number of its own: the mean of exp(x·y) over normal keys is exp(x·mean + x·S x / 2), and less over others if
x·S x is large. The mean value moves along by Cᵀx, C being the covariance of keys and values, where it is known, and no
further than the logit does. All that is biased. With features exp(x·y) is exp(x·c) φ(x)·φ(y − c), c being the centre of
the group that holds y, and estimates are unbiased.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels import core
from rfkernels._arrays import matmul, stopped
from rfkernels.features import Features
from rfkernels.grouping.records import Far, Groups
from rfkernels.partials import Partial
from rfkernels.state import State

LARGEST_BEND = 1.0
"""What is added at most for the covariance of a group: beyond, keys are not normal enough."""


def columns(far: Far) -> int:
    """Return how many sums there are."""
    return (1 if far.groups is None else far.groups.size) * (1 if far.features is None else far.features.count)


def empty(xp: Any, far: Far, width: int, batch: tuple[int, ...], dtype: Any) -> State:
    """Return the sums of no keys; those of order 0 hold k, kᵀ M k and v."""
    shape = (*batch, columns(far))
    if far.features is None:
        assert far.groups is not None
        kv = xp.zeros((*shape, far.groups.dim + 1 + width), dtype)
        return State(kv, xp.zeros(shape, dtype), xp.zeros(shape, dtype))
    return State(xp.zeros((*shape, width), dtype), xp.zeros(shape, dtype), xp.full(shape, -np.inf, dtype))


def labels(xp: Any, groups: Groups, k: Any) -> Any:
    """Return the group of each key, (*batch, keys)."""
    centres, metric = (xp.asarray(x, k.dtype) for x in (groups.centres, groups.metric))
    drawn = matmul(xp, centres, metric)
    score = matmul(xp, k, xp.swapaxes(drawn, -1, -2)) - xp.sum(drawn * centres, -1)[..., None, :] / 2
    return xp.argmax(score, -1)


def write(xp: Any, far: Far, k: Any, v: Any, allowed: Any) -> State:
    """Return the sums of these keys alone, of those that are allowed."""
    batch = np.broadcast_shapes(k.shape[:-2], v.shape[:-2], allowed.shape[:-1], *far.batch)
    k, v = (xp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (k, v))
    if far.groups is None:
        member = allowed[..., None]
    else:
        member = (labels(xp, far.groups, k)[..., None] == xp.arange(far.groups.size)) & allowed[..., None]
    if far.features is None:
        assert far.groups is not None
        share = member.astype(k.dtype)
        both = xp.concatenate([k, squares(xp, far.groups.metric, k), v], -1)
        count = xp.sum(share, -2)
        return State(matmul(xp, xp.swapaxes(share, -1, -2), both), count, xp.zeros_like(count))
    residual = k
    if far.groups is not None:
        share = member.astype(k.dtype)
        residual = k - matmul(xp, share, xp.asarray(far.groups.centres, k.dtype))
    return _features(xp, far.features, residual, v, xp.broadcast_to(member, (*batch, *member.shape[-2:])))


def squares(xp: Any, metric: Any, k: Any) -> Any:
    """Return kᵀ M k, (*batch, keys, 1); a metric of None is that of Euclid."""
    sent = k if metric is None else matmul(xp, k, xp.asarray(metric, k.dtype))
    return xp.sum(sent * k, -1, keepdims=True)


def _features(xp: Any, features: Features, residual: Any, v: Any, member: Any) -> State:
    """Return sums of features of each group: (*batch, groups · count)."""
    u, exponent = core.key_exponents(xp, residual, features)
    own = xp.where(member[..., None], exponent[..., None, :], -np.inf)  # (*batch, keys, groups, count)
    shift = stopped(xp, xp.max(own, -3, initial=-np.inf))
    base = xp.where(shift == -np.inf, 0, shift)
    chosen = xp.sum(xp.where(member[..., None], base[..., None, :, :], 0), -2)  # of each key's own group
    phi = core.activate(xp, features, u, xp.where(xp.any(member, -1)[..., None], exponent - chosen, -np.inf))
    each = xp.where(member[..., None], phi[..., None, :], 0)
    batch, groups, count = shift.shape[:-2], shift.shape[-2], shift.shape[-1]
    flat = each.reshape(*each.shape[:-2], groups * count)
    kv = matmul(xp, xp.swapaxes(flat, -1, -2), v)
    return State(kv, xp.sum(flat, -2), shift.reshape(*batch, groups * count))


def read(xp: Any, far: Far, state: State, q: Any) -> Partial:
    """Sum estimated weights over the keys of a state, for each query."""
    if far.features is None:
        assert far.groups is not None
        groups = far.groups
        seen = seen_groups(xp, state, groups.dim, groups.metric, groups.spread, groups.cross)
        return weighted(xp, *order_zero(xp, seen, q * xp.asarray(far.scale, q.dtype)))
    if far.groups is None:
        return core.read(xp, state, q, far.features)
    centres = xp.asarray(far.groups.centres, q.dtype)
    near = matmul(xp, q, xp.swapaxes(centres, -1, -2)) * xp.asarray(far.scale, q.dtype)
    phi, sums = _query_features(xp, far.features, q)
    # log of what each column weighs: its features, its centre, and its sum
    filled = state.z > 0
    log_z = xp.where(filled, xp.log(xp.where(filled, state.z, 1)) + state.shift, -np.inf)
    both = near[..., :, None] + phi[..., None, :]
    logits = both.reshape(*both.shape[:-2], both.shape[-2] * both.shape[-1]) + log_z[..., None, :]
    values = state.kv / xp.where(filled, state.z, 1)[..., None]
    logits = logits + sums[..., None] - np.log(far.features.count)
    shift = stopped(xp, xp.max(logits, -1, initial=-np.inf))
    weight = xp.exp(logits - xp.where(shift == -np.inf, 0, shift)[..., None])
    return Partial(matmul(xp, weight, values), xp.sum(weight, -1), shift)


def _query_features(xp: Any, features: Features, q: Any) -> tuple[Any, Any]:
    """Return log-features of queries as a part of each column and one that all columns share."""
    u, a = core.project(xp, q, features, "query")
    return core.exponents(xp, features, u), a


class Seen(NamedTuple):
    """What groups are read as.

    Parameters
    ----------
    means, values : array, shape (*batch, groups, dim) and (*batch, groups, width)
    bias : array, shape (*batch, groups)
        The logarithm of how many keys there are.
    apart : array, shape (*batch, groups)
        The mean of (k − mean)ᵀ M (k − mean).
    spread, cross : array, shape (*batch, dim, dim) and (*batch, dim, width) or None
        As `Groups` has them.
    """

    means: Any
    values: Any
    bias: Any
    apart: Any
    spread: Any
    cross: Any


def seen_groups(xp: Any, state: State, dim: int, metric: Any, spread: Any, cross: Any) -> Seen:
    """Return what the groups of a state are read as; a metric of None is that of Euclid."""
    filled = state.z > 0
    count = xp.where(filled, state.z, 1)
    moments = state.kv / count[..., None]
    means = moments[..., :dim]
    apart = xp.maximum(moments[..., dim] - squares(xp, metric, means)[..., 0], 0)
    bias = xp.where(filled, xp.log(count), -np.inf)
    return Seen(means, moments[..., dim + 1 :], bias, apart, spread, cross)


def order_zero(xp: Any, seen: Seen, q: Any) -> tuple[Any, Any, Any]:
    """Return the logits of scaled queries with groups, the values, and what moves them: how far and where to.

    A value moves by 2 bend / (q·S q) times Cᵀq, which is s Cᵀq, s being `apart`, unless the bend is at its largest.
    """
    along = xp.sum(matmul(xp, q, xp.asarray(seen.spread, q.dtype)) * q, -1)
    bend = xp.minimum(along[..., :, None] * seen.apart[..., None, :] / 2, LARGEST_BEND)
    logits = matmul(xp, q, xp.swapaxes(seen.means, -1, -2)) + bend + seen.bias[..., None, :]
    return logits, seen.values, _moving(xp, seen, q, bend, along)


def _moving(xp: Any, seen: Seen, q: Any, bend: Any, along: Any) -> tuple[Any, Any] | None:
    if seen.cross is None:
        return None
    known = along > 0
    direction = matmul(xp, q, xp.asarray(seen.cross, q.dtype)) * (2 / xp.where(known, along, 1))[..., None]
    return bend, xp.where(known[..., None], direction, 0)


def weighted(xp: Any, logits: Any, values: Any, moving: Any) -> Partial:
    """Return the sums of values with these logits."""
    shift = stopped(xp, xp.max(logits, -1, initial=-np.inf))
    weight = xp.exp(logits - xp.where(shift == -np.inf, 0, shift)[..., None])
    numerator = matmul(xp, weight, values)
    if moving is not None:
        bend, direction = moving
        numerator = numerator + xp.sum(weight * bend, -1)[..., None] * direction
    return Partial(numerator, xp.sum(weight, -1), shift)
