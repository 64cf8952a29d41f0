"""Exact attention of a sample of queries, and what it says of standard errors."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from rfkernels import partials
from rfkernels._arrays import accumulator, in_one, namespace, stopped
from rfkernels.exact import exact_block
from rfkernels.features import Features
from rfkernels.partials import Partial
from rfkernels.uncertainty._jackknife import UNITS, Estimate

Sums = Callable[..., Partial]

_TWENTIETHS = 19
LEVEL = _TWENTIETHS / 20
_KEYS = 1024
"""How many keys NumPy takes at a time, for the cache to hold it all; JAX, which compiles each time, takes more."""

_ROUNDING = 1000.0
"""How many units of rounding are no error of an estimate."""


def positions(length: int, count: int) -> Any:
    """Return up to `count` positions that are spread evenly."""
    count = min(length, count)
    return (2 * np.arange(count) + 1) * length // (2 * max(count, 1))


def exact_rows(
    q: Any,
    k: Any,
    v: Any,
    features: Features,
    at: Any,
    causal: bool,
    mask: Any,
    segment_ids: Any,
    sums: Sums = exact_block,
) -> Partial:
    """Sum exact weights for the queries at some positions: time linear in the number of keys, memory independent.

    `sums` is what the backend has for `exact_block`.
    """
    xp, kernel = namespace(q, k, v), features.map.kernel
    assert kernel is not None
    keys, rows = k.shape[-2], xp.take(q, at, -2)
    last = at[:, None] + keys - q.shape[-2]
    own = None if segment_ids is None else xp.take(segment_ids, at, -1)
    step = _KEYS if xp is np else 8 * _KEYS
    summed = in_one(xp, _summed, "causal", "kernel", "sums")
    parts: list[Partial] = []
    for start in range(0, max(keys, 1), step):
        part = slice(start, start + step)
        given = rows, k[..., part, :], v[..., part, :], features.scale, last - start
        seen = (None if x is None else x[..., part] for x in (mask, segment_ids))
        parts.append(summed(xp, *given, own, *seen, causal, kernel, sums))
    whole = parts[0]
    for other in parts[1:]:
        whole = partials.join(xp, whole, other)
    return whole


def reach(xp: Any, q: Any, v: Any, at: Any, causal: bool, mask: Any, segment_ids: Any) -> Any:
    """Return how far values lie apart, by column, that queries at some positions may see, (*batch, n or 1, width)."""
    halves = stopped(xp, v).astype(accumulator(xp, q, v)) / 2
    last = at + v.shape[-2] - q.shape[-2] if causal else None
    if segment_ids is not None:
        low, high = in_one(xp, _ends)(xp, halves, last, xp.take(segment_ids, at, -1), mask, segment_ids)
    else:
        low, high = (
            _end(xp, halves if mask is None else xp.where(mask[..., None], halves, none), last, none)
            for none in (xp.inf, -xp.inf)
        )
    return 2 * xp.where(low < high, high - low, 0)


def _end(xp: Any, x: Any, last: Any, none: float) -> Any:
    """Return the least numbers up to some rows, or of all, if `none` is infinite, or the largest if it is −inf."""
    least = none > 0
    if last is None:
        return (xp.min if least else xp.max)(x, -2, keepdims=True, initial=none)
    if xp is np:
        ends = (np.minimum if least else np.maximum).accumulate(x, axis=-2)
    else:
        lax = sys.modules["jax"].lax  # the method of jax.numpy is a loop over all rows
        ends = (lax.cummin if least else lax.cummax)(x, axis=x.ndim - 2)
    nothing = xp.full((*x.shape[:-2], np.count_nonzero(last < 0), x.shape[-1]), none, x.dtype)
    return xp.concatenate([nothing, xp.take(ends, last[last >= 0], -2)], -2)


def _ends(xp: Any, halves: Any, last: Any, own: Any, mask: Any, segment_ids: Any) -> tuple[Any, Any]:
    """Return the least and the largest numbers of each query's `own` segment."""
    allowed = own[..., None] == segment_ids[..., None, :]
    if last is not None:
        allowed = allowed & (xp.arange(halves.shape[-2]) <= last[:, None])
    if mask is not None:
        allowed = allowed & mask[..., None, :]

    def ends(allowed: Any, halves: Any) -> tuple[Any, Any]:
        low, high = (xp.where(allowed[..., None], halves, none) for none in (xp.inf, -xp.inf))
        return xp.min(low, -2, initial=xp.inf), xp.max(high, -2, initial=-xp.inf)

    each = xp.moveaxis(allowed, -2, 0)
    if xp is np:
        parts = [_near(x) for x in each]
        found = [ends(x[..., part], halves[..., part, :]) for x, part in zip(each, parts, strict=True)]
        low, high = map(np.stack, zip(*found, strict=True)) if found else ends(each[..., None, :], halves)
    else:
        low, high = sys.modules["jax"].lax.map(lambda x: ends(x, halves), each)
    return xp.moveaxis(low, 0, -2), xp.moveaxis(high, 0, -2)


def _near(allowed: Any) -> slice:
    """Return between which keys those lie that any row of a batch allows."""
    here = np.flatnonzero(allowed.reshape(-1, allowed.shape[-1]).any(0))
    return slice(here[0], here[-1] + 1) if len(here) else slice(0)


def _summed(
    xp: Any,
    q: Any,
    k: Any,
    v: Any,
    scale: Any,
    last: Any,
    own: Any,
    mask: Any,
    segment_ids: Any,
    causal: bool,
    kernel: Any,
    sums: Sums,
) -> Partial:
    """Sum exact weights of keys up to the `last` of each query, if causal, and of its `own` segment, if any."""
    dtype = accumulator(xp, q, k, v)
    root = xp.sqrt(xp.asarray(scale, dtype))
    shape = q.shape[-2], k.shape[-2]
    allowed = xp.arange(shape[1]) <= last if causal else xp.ones(shape, bool)
    if mask is not None:
        allowed = allowed & mask[..., None, :]
    if segment_ids is not None:
        allowed = allowed & (own[..., None] == segment_ids[..., None, :])
    return sums(xp, q.astype(dtype) * root, k.astype(dtype) * root, v.astype(dtype), allowed, kernel)


def inflations(xp: Any, found: Estimate, exact: Partial, at: Any, quantile: float, reach: Any) -> tuple[Any, Any]:
    """Return what standard errors of the output and of the log-normaliser have to be multiplied by, at least 1.

    Intervals of `quantile` standard errors then hold 95 % of what was compared. To which queries features do well or
    badly they decide together, so that the sampled ones stand for the others whatever the law of the errors is: as in
    split conformal prediction, the order statistic is that of n + 1, of those n whose error is finite: others hold
    whatever the factor, and must not vouch for them. No factor is enough where the error is zero and the estimate is
    not exact, or either logarithm alone is −inf: the ratio is infinite there. So is the factor where all errors are.

    Rounding is no error: of weights, in proportion to how far values lie apart (`reach`), and of the sums themselves.
    Each column has its own, lest one of large numbers, or far from zero, vouch for the others.
    """
    output, (log, _) = partials.normalize(xp, exact), partials.log_denominator(xp, exact)

    def factor(estimate: Any, error: Any, truth: Any, least: Any, tail: int) -> Any:
        estimate, error = (xp.take(x, at, -tail) for x in (estimate, error))
        alone = (estimate == -xp.inf) != (truth == -xp.inf)
        estimate, truth = (xp.where(x == -xp.inf, 0, x) for x in (estimate, truth))
        apart = xp.abs(estimate - truth)
        held = ~alone & (apart <= least)
        never, known = alone | (error == 0), error < xp.inf
        ratio = apart / xp.where(held | never | ~known, 1, error) / quantile
        ratio = xp.where(held, 0, xp.where(never, xp.inf, ratio))
        kept = ratio.ndim - tail
        if not math.prod(ratio.shape[kept:]):  # not reshaped: JAX knows no sharding of what is left
            return xp.max(ratio, tuple(range(kept, ratio.ndim)), initial=1)
        shape = (*ratio.shape[:kept], math.prod(ratio.shape[kept:]))
        return xp.maximum(_order_statistic(xp, ratio.reshape(shape), known.reshape(shape)), 1)

    eps = float(xp.finfo(log.dtype).eps)
    least = _ROUNDING * eps * reach + UNITS * eps * xp.abs(output)
    log_least = _ROUNDING * eps * xp.maximum(xp.where(log == -xp.inf, 0, xp.abs(log)), 1)
    return factor(found.output, found.error, output, least, 2), factor(
        found.log_normalizer, found.log_error, log, log_least, 1
    )


def _order_statistic(xp: Any, x: Any, known: Any) -> Any:
    """Return the quantile that 95 % of one more of the known values would be below, on average.

    Of values of which none is known it is infinite: nothing was found out.
    """
    n = x.shape[-1]
    x, count = xp.sort(xp.where(known, x, -1), -1), xp.sum(known, -1, keepdims=True)
    place = xp.clip(_TWENTIETHS * (count + 1) - 20, 0, 20 * (count - 1)) + 20 * (n - count)  # in twentieths
    low, share = place // 20, (place % 20 / 20).astype(x.dtype)
    below, above = (xp.take_along_axis(x, xp.minimum(at, n - 1), -1) for at in (low, low + 1))
    found = (1 - share) * below + share * xp.where(share == 0, 0, above)
    return xp.where(count == 0, xp.inf, found)[..., 0]
