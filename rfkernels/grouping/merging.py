"""Groups that are merged from keys as they leave the window: causal, and with no data to calibrate on.

A block of keys that leaves joins the groups as points of one key each. Then points become one that cost least to
merge, until there are as many groups as wanted. The cost is that of Ward (1963): |x_i − x_j|² w_i w_j over w_i + w_j,
w being the attention that a point has received from the last block of queries. The first keys that leave are groups by
themselves; what is attended to is not merged with what is far from it, so that heavy keys tend to stay alone.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import differing, matmul, pooled_sum, stopped
from rfkernels.grouping.records import BlockState
from rfkernels.grouping.summaries import order_zero, seen_groups, squares, weighted
from rfkernels.partials import Partial
from rfkernels.state import State

_EVEN = 1.0
"""How much attention, of that of all queries of a block, is spread evenly over keys when points are weighed.

Where a query will look for what none has looked at yet, the attention of the present misleads.
"""


def read(
    xp: Any, state: BlockState, q: Any, k: Any, v: Any, allowed: Any, scale: Any, counts: Any = True
) -> tuple[BlockState, Partial]:
    """Attend to groups and to near and heavy keys, of which the oldest block comes first.

    Note what attention that block and groups receive from the queries that count.
    """
    q = q * xp.asarray(scale, q.dtype)
    dim, count = k.shape[-1], state.mass.shape[-1]
    total = xp.trace(state.within[..., :dim], axis1=-2, axis2=-1)
    within = state.within / xp.where(total > 0, total, 1)[..., None, None]
    seen = seen_groups(xp, state.sums, dim, None, within[..., :dim], within[..., dim:])
    logits, values, moving = order_zero(xp, seen, q)
    exact = xp.where(allowed, matmul(xp, q, xp.swapaxes(k, -1, -2)), -np.inf)
    logits = _beside(xp, logits, exact, -1)
    bend = _beside(xp, moving[0], xp.zeros_like(exact), -1)
    part = weighted(xp, logits, _beside(xp, values, v, -2), (bend, moving[1]))
    log = xp.where(part.denominator > 0, xp.log(xp.where(part.denominator > 0, part.denominator, 1)) + part.shift, 0)
    share = stopped(xp, xp.exp(logits[..., :count] - log[..., None]))
    return state._replace(
        mass=state.mass + pooled_sum(xp, xp.sum(xp.where(counts, share, 0), -2), state.mass.shape)
    ), part


def _beside(xp: Any, one: Any, other: Any, axis: int) -> Any:
    batch = np.broadcast_shapes(one.shape[:-2], other.shape[:-2])
    return xp.concatenate([xp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (one, other)], axis)


def absorb(xp: Any, state: BlockState, k: Any, v: Any, mask: Any) -> BlockState:
    """Merge a block of keys that leaves the window into the groups."""
    dim, size, real = k.shape[-1], state.sums.z.shape[-1], mask.astype(k.dtype)
    kv = xp.concatenate([state.sums.kv, xp.concatenate([k, squares(xp, None, k), v], -1) * real[..., None]], -2)
    number = xp.concatenate([state.sums.z, real], -1)
    means = kv / xp.where(number > 0, number, 1)[..., None]
    # Where logits overflow it is no number: without weights points are merged all the same, or nothing would end.
    mass = xp.where((state.mass > 0) & (state.mass < np.inf), state.mass, 0)
    received, total = (xp.sum(x, -1, keepdims=True) for x in (mass, number))
    weight = mass / xp.where(received > 0, received, 1) + _EVEN * number / xp.where(total > 0, total, 1)
    weight = xp.where(number > 0, xp.where(weight > 0, weight, 1), 0)
    label = reduced(xp, stopped(xp, means[..., :dim]), stopped(xp, weight), size)
    share = ((label[..., None] == xp.arange(size)) & (number > 0)[..., None]).astype(k.dtype)
    turned = xp.swapaxes(share, -1, -2)
    sums, z = matmul(xp, turned, kv), matmul(xp, turned, number[..., None])[..., 0]
    merged = matmul(xp, share, sums / xp.where(z > 0, z, 1)[..., None])
    apart = means - merged
    parts = xp.concatenate([apart[..., :dim], apart[..., dim + 1 :]], -1) * number[..., None]
    within = state.within + matmul(xp, xp.swapaxes(apart[..., :dim], -1, -2), parts)
    return state._replace(sums=State(sums, z, state.sums.shift), mass=xp.zeros_like(state.mass), within=within)


class _Points(NamedTuple):
    """Points (*batch, points, dim), what they weigh, what each was merged into, and how many to go."""

    x: Any
    weight: Any
    root: Any
    surplus: Any


def reduced(xp: Any, x: Any, weight: Any, size: int) -> Any:
    """Return a place, from 0 to size − 1, for each point of positive weight.

    Each point is tied to the one that it costs least to merge with, by the cheapest ties only, as many as there are
    points too many; points that ties connect become one. If even all ties are too few, that is done again. Of those
    that remain, the first `size` keep their place, and the others take what is free.
    """
    index = xp.arange(x.shape[-2])
    surplus = xp.maximum(xp.sum(weight > 0, -1, keepdims=True) - size, 0)
    points = _Points(x, weight, xp.broadcast_to(index, weight.shape), surplus)
    if xp is np:
        while (points.surplus > 0).any():
            points = _merged(xp, points)
    else:
        lax = sys.modules["jax"].lax
        points = points._replace(root=differing(xp, points.root, 1, (x, 2), (weight, 1)))
        points = points._replace(x=differing(xp, x, 2, (weight, 1)), weight=differing(xp, weight, 1, (x, 2)))
        points = lax.while_loop(lambda p: xp.any(p.surplus > 0), lambda p: _merged(xp, p), points)
    left = points.weight > 0
    free, rank = xp.cumsum(~left[..., :size], -1), xp.cumsum(left[..., size:], -1) - 1
    other = xp.sum(free[..., None, :] <= rank[..., :, None], -1)
    own = differing(xp, xp.broadcast_to(index[:size], (*other.shape[:-1], size)), 1, (other, 1))
    place = xp.concatenate([own, other], -1)
    return xp.take_along_axis(place, points.root, -1)


def _merged(xp: Any, points: _Points) -> _Points:
    x, weight, root, surplus = points
    index = xp.arange(x.shape[-2])
    nearest, least = _nearest(xp, x, weight)
    mutual = xp.take_along_axis(nearest, nearest, -1) == index
    least = xp.where(mutual & (index < nearest), np.inf, least)  # the tie of the other
    one, two = least[..., :, None], least[..., None, :]
    rank = xp.sum((two < one) | ((two == one) & (index < index[:, None])), -1)
    tied = (rank < surplus) & (least < np.inf)
    target = xp.where(tied, nearest, index)
    for _ in range(x.shape[-2].bit_length()):
        target = xp.take_along_axis(target, target, -1)
    share = xp.where(target[..., None, :] == index[:, None], weight[..., None, :], 0)
    both = xp.sum(share, -1)
    return _Points(
        matmul(xp, share, x) / xp.where(both > 0, both, 1)[..., None],
        both,
        xp.take_along_axis(target, root, -1),
        surplus - xp.sum(tied, -1, keepdims=True),
    )


def _nearest(xp: Any, x: Any, weight: Any) -> tuple[Any, Any]:
    """Return for each point the first one that costs least to merge with, and the cost; infinite if there is none."""
    index, left = xp.arange(x.shape[-2]), weight > 0
    square = xp.sum(x * x, -1)
    product = matmul(xp, x, xp.swapaxes(x, -1, -2))
    distance = square[..., :, None] + square[..., None, :] - (product + xp.swapaxes(product, -1, -2))
    one, two = weight[..., :, None], weight[..., None, :]
    pair = one * two / xp.where(one + two > 0, one + two, 1)
    apart = left[..., :, None] & left[..., None, :] & (index[:, None] != index)
    # Symmetric and finite, whatever the keys: else ties might go round in a circle, and nothing would end.
    most = xp.finfo(x.dtype).max
    cost = xp.where(apart, xp.nan_to_num(pair * xp.maximum(distance, 0), nan=most, posinf=most), np.inf)
    return xp.argmin(cost, -1), xp.min(cost, -1)
