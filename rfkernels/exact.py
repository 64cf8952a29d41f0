"""Sums of exact weights, as they are specified; `rfkernels.baseline` has what is public."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from rfkernels import kernels, partials
from rfkernels._arrays import accumulator, in_one, matmul, namespace, over_rows, stopped
from rfkernels.kernels import Kernel, evaluated
from rfkernels.partials import Partial

_BLOCK = 128
_SCANS = 8
"""Scans of a causal pass: one alone would take twice the time, as it cuts keys to the same number for all queries."""


def exact_partial(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: Any,
    causal: bool = False,
    window: int | None = None,
    mask: Any = None,
    segment_ids: Any = None,
    kernel: Kernel = kernels.EXPONENTIAL,
) -> Partial:
    """Sum exact weights over the keys that each query sees (arguments as `exact_attention`)."""
    xp = namespace(q, k, v)
    dtype = accumulator(xp, q, k, v)
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    root = xp.sqrt(xp.asarray(scale, dtype))
    q, k = q * root, k * root
    run = in_one(xp, _sums, "seen", "kernel")
    reach = None if window is None else min(int(window), q.shape[-2] + k.shape[-2])
    part: Partial = run(xp, q, k, v, mask, segment_ids, _Seen(bool(causal), reach), kernel)
    return part


class _Seen(NamedTuple):
    """Which keys each query sees, by their positions; those of queries are aligned with those of keys."""

    causal: bool
    window: int | None

    def span(self, first: int, last: int, keys: int) -> tuple[int, int]:
        """Return from where to where there are keys that queries from `first` to before `last` see."""
        low = 0 if self.window is None else first - self.window + 1
        high = last if self.causal else keys if self.window is None else last - 1 + self.window
        low = min(max(low, 0), keys)
        return low, min(max(high, low), keys)

    def allowed(self, xp: Any, position: Any, key: Any) -> Any:
        """Return whether a query sees a key."""
        allowed = key <= position if self.causal else xp.ones(xp.broadcast_shapes(position.shape, key.shape), bool)
        return allowed if self.window is None else allowed & (abs(position - key) < self.window)


class _Band(NamedTuple):
    """Keys from position `low` on, each array (*batch, keys, n); what is not there is None."""

    low: Any
    k: Any
    v: Any
    mask: Any
    of_key: Any

    def part(self, xp: Any, first: Any, count: int) -> _Band:
        """Return so many keys, from position `first` on as far as they reach; where may not be known before."""
        start, lax = xp.clip(first - self.low, 0, self.k.shape[-2] - count), sys.modules["jax"].lax
        parts = (None if x is None else lax.dynamic_slice_in_dim(x, start, count, x.ndim - 2) for x in self[1:])
        return _Band(self.low + start, *parts)


def _sums(xp: Any, q: Any, k: Any, v: Any, mask: Any, segments: Any, seen: _Seen, kernel: Kernel) -> Partial:
    """Sum weights of queries and keys that are scaled; in JAX by a few scans, each over keys of a number of its own."""
    length, keys = q.shape[-2], k.shape[-2]
    offset = keys - length if seen.causal else 0
    mask, segments = (None if x is None else xp.asarray(x)[..., None] for x in (mask, segments))
    stage, parts = _BLOCK, []
    if xp is not np:
        scans = _SCANS if seen.causal and seen.window is None else 1
        stage = max(-(-length // (scans * _BLOCK)), 1) * _BLOCK
    for first in range(0, max(length, 1), stage):
        last = min(first + stage, length)
        low, high = seen.span(first + offset, last + offset, keys)
        band = _Band(low, *(None if x is None else x[..., low:high, :] for x in (k, v, mask, segments)))
        rows = q[..., first:last, :], None if segments is None else segments[..., first:last, :]
        parts.append(_over_band(xp, rows, first + offset, band, seen, kernel))
    return partials.stack(xp, parts)


def _over_band(xp: Any, rows: Any, first: int, band: _Band, seen: _Seen, kernel: Kernel) -> Partial:
    """Sum weights of queries, and their segments, from position `first` on, a block of them at a time."""
    length, held = rows[0].shape[-2], band.k.shape[-2]
    count = held if seen.window is None else min(held, _BLOCK + 2 * (seen.window - 1))

    def step(_: None, start: Any, block: Any) -> Any:
        q, of_query = block
        position = first + start + xp.arange(q.shape[-2])[:, None]
        near = band if count == held else band.part(xp, position[0, 0] - seen.window + 1, count)
        allowed = seen.allowed(xp, position, near.low + xp.arange(count)) & (position < first + length)
        if near.mask is not None:
            allowed = allowed & xp.swapaxes(near.mask, -1, -2)
        if of_query is not None:
            allowed = allowed & (of_query == xp.swapaxes(near.of_key, -1, -2))
        part = exact_block(xp, q, near.k, near.v, allowed, kernel)
        return None, (part.numerator, part.denominator[..., None], part.shift[..., None])

    _, (numerator, denominator, shift) = over_rows(xp, step, None, rows, _BLOCK)
    return Partial(numerator, denominator[..., 0], shift[..., 0])


def exact_block(xp: Any, q: Any, k: Any, v: Any, allowed: Any, kernel: Kernel) -> Partial:
    """Sum exact weights over the keys that are allowed, all at once; q and k are scaled already."""
    dot, xx, yy = matmul(xp, q, xp.swapaxes(k, -1, -2)), _squares(xp, q)[..., :, None], _squares(xp, k)[..., None, :]
    if kernel.norm_weight is None:  # its derivative may have no value where nothing is allowed, as at zero
        dot, xx, yy = (xp.where(allowed, x, one) for x, one in ((dot, 0), (xx, 1), (yy, 1)))
    log_weight = xp.where(allowed, evaluated(kernel.log, xp, dot, xx, yy), -xp.inf)
    shift = stopped(xp, xp.max(log_weight, -1, initial=-xp.inf))
    weight = xp.exp(log_weight - xp.where(shift == -xp.inf, 0, shift)[..., None])
    if kernel.sign is not None:
        weight = weight * evaluated(kernel.sign, xp, dot, xx, yy)
    return Partial(matmul(xp, weight, v), xp.sum(weight, -1), shift)


def _squares(xp: Any, x: Any) -> Any:
    return xp.sum(x * x, -1)
