"""Kernels of fused passes, written with Pallas for one tile each: a stretch of positions by some rows of W.

Arguments are references to the blocks of arrays that one program sees; what is None is not there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from rfkernels._arrays import elementwise
from rfkernels.backends.jax.fused_calls import Tile
from rfkernels.maps import FeatureMap


class Plan(NamedTuple):
    """What a kernel computes, beyond its arrays.

    Parameters
    ----------
    map : FeatureMap
    tile : Tile
    dtype : dtype
        Of features and of what they are multiplied by.
    precision : Precision or DotAlgorithmPreset
        That of products of float32.
    pure : bool
        Whether features are exponentials and nothing else. W, exponents and shifts are then in powers of two.
    jump : float
        How far the shift of a tile may lie above what a query sees of it.
    flagged : int
        For how many columns `prefix` says whether they do.
    """

    map: FeatureMap
    tile: Tile
    dtype: Any
    precision: Any
    pure: bool
    jump: float
    flagged: int

    @property
    def activations(self) -> int:
        """How many columns a row of W has."""
        return len(self.map.activations)

    def exp(self, x: Any) -> Any:
        """Return e to the power of x, or 2."""
        return jnp.exp2(x) if self.pure else jnp.exp(x)


class Side(NamedTuple):
    """References of one side of a pass.

    Parameters
    ----------
    w : (parts, rows, dim)
        Rows of W, in parts that add up.
    x : (positions, dim)
    weight : (1,)
        The weight of |x|² in the exponent.
    extra : (positions,), optional
        What else is in it: −inf for keys that are masked.
    """

    w: Any
    x: Any
    weight: Any
    extra: Any


def _dot(a: Any, b: Any, axes: tuple[int, int], plan: Plan) -> Any:
    precision = plan.precision if a.dtype == jnp.float32 else None
    numbers = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)


def _projected(w: Any, rows: Any, x: Any, plan: Plan) -> Any:
    """Return u, (positions, rows)."""
    parts = [_dot(x, w[i, rows, :], (1, 1), plan) for i in range(w.shape[0])]
    return sum(parts[1:], parts[0])


def _offset(side: Side, x: Any, at: Any) -> Any:
    """Return a of each position."""
    wide = x.astype(jnp.float32)
    a = side.weight[0] * jnp.sum(wide * wide, 1)
    return a if side.extra is None else a + side.extra[at]


def _activated(plan: Plan, i: int, u: Any, own: Any) -> Any:
    """Return h(u, own) of activation i; for an exponential map `own` is the whole exponent less a shift."""
    if plan.pure:
        return jnp.exp2(own)
    if plan.map.slopes is not None:
        own = own - plan.map.slopes[i] * u
    value = plan.map.activations[i](elementwise(jnp), u, own)
    return jnp.broadcast_to(jnp.asarray(value, u.dtype), u.shape)


def _finite(shift: Any) -> Any:
    return jnp.where(shift == -jnp.inf, 0.0, shift)


def write(w: Any, b: Any, x: Any, weight: Any, extra: Any, keep: Any, v: Any, kv: Any, z: Any, top: Any, first: Any,
          *, plan: Plan) -> None:  # fmt: skip
    """Write a stretch of keys to states of its own, and the exponents of its first key."""
    side, size, rows = Side(w, x, weight, extra), plan.tile.positions, w.shape[1]
    log_weight = b[:]

    def body(step: Any, carry: Any) -> Any:
        at = pl.ds(step * size, size)
        keys, value = x[at, :], v[at, :]
        parts = [_dot(w[i, :, :], keys, (1, 1), plan) for i in range(w.shape[0])]
        u, own = sum(parts[1:], parts[0]), _offset(side, keys, at)[None, :] + log_weight[:, None]
        done = []
        for i, (sums, total, shift) in enumerate(carry):
            if plan.map.slopes is None:
                phi = _activated(plan, i, u, own)
                if keep is not None:
                    phi = phi * keep[at][None, :]
            else:
                exponent = own + plan.map.slopes[i] * u
                new = jnp.maximum(shift, jnp.max(exponent, 1))
                base = _finite(new)
                phi, decay = _activated(plan, i, u, exponent - base[:, None]), plan.exp(shift - base)
                sums, total, shift = sums * decay[:, None], total * decay, new
            phi = phi.astype(plan.dtype)
            done.append((sums + _dot(phi, value, (1, 0), plan), total + jnp.sum(phi.astype(jnp.float32), 1), shift))
        return tuple(done)

    low = -jnp.inf if plan.map.exponential else 0.0
    start = jnp.zeros((rows, v.shape[1]), jnp.float32), jnp.zeros(rows, jnp.float32), jnp.full(rows, low, jnp.float32)
    steps = x.shape[0] // size
    carry = (start,) * plan.activations
    for i, (sums, total, shift) in enumerate(lax.fori_loop(0, steps, body, carry) if steps > 1 else body(0, carry)):
        kv[i, :, :], z[i, :], top[i, :] = sums.astype(kv.dtype), total, shift
    if first is not None:
        one = x[0, :].astype(jnp.float32)
        u = sum(jnp.sum(w[i, :, :].astype(jnp.float32) * one[None, :], 1) for i in range(w.shape[0]))
        a = weight[0] * jnp.sum(one * one) + (0.0 if extra is None else extra[0])
        for i, slope in enumerate(plan.map.slopes or ()):
            first[i, :] = slope * u + a + log_weight


def prefix(kv: Any, z: Any, shift: Any, first: Any, start_kv: Any, start_z: Any, start_shift: Any,
           before: Any, before_z: Any, low: Any, jumps: Any, last_kv: Any, last_z: Any, last_shift: Any,
           *, plan: Plan) -> None:  # fmt: skip
    """Sum the states of stretches: what is before each, whether its keys are too far apart, what is after the last."""
    count = kv.shape[0]
    unroll = next(n for n in range(plan.tile.positions, 0, -1) if count % n == 0)

    def merged(i: Any, carry: Any, own: Any, own_z: Any, own_shift: Any) -> Any:
        held, total, top = carry
        new = jnp.maximum(top, own_shift)
        base = _finite(new)
        if before is not None:
            before[i, :, :], before_z[i, :], low[i, :] = held.astype(before.dtype), total, top
        if jumps is not None:
            jumps[i, 0] = jnp.max(jnp.where(new - jnp.maximum(top, first[i, :]) >= plan.jump, 1, 0))
        decay, rise = plan.exp(top - base), plan.exp(own_shift - base)
        held = held * decay[:, None] + own.astype(jnp.float32) * rise[:, None]
        return held, total * decay + own_z * rise, new

    def body(step: Any, carry: Any) -> Any:
        places = [step * unroll + j for j in range(unroll)]
        loaded = [(kv[i, :, :], z[i, :], shift[i, :]) for i in places]
        for i, one in zip(places, loaded, strict=True):
            carry = merged(i, carry, *one)
        return carry

    carry = start_kv[:, :], start_z[:], start_shift[:]
    last_kv[:, :], last_z[:], last_shift[:] = lax.fori_loop(0, count // unroll, body, carry)


def _start(width: int, plan: Plan) -> tuple[Any, Any, Any]:
    size, low = plan.tile.positions, -jnp.inf if plan.map.exponential else 0.0
    return jnp.zeros((size, width), jnp.float32), jnp.zeros(size, jnp.float32), jnp.full(size, low, jnp.float32)


def _query_features(plan: Plan, i: int, u: Any, a: Any, weight: Any, shift: Any, top: Any) -> tuple[Any, Any, Any]:
    """Return h of queries on the scale of `top` raised, that, and by what earlier sums are multiplied."""
    if plan.map.slopes is None:
        return _activated(plan, i, u, a[:, None] + weight[None, :]), top, jnp.ones_like(top)
    own = plan.map.slopes[i] * u + (weight + shift)[None, :]
    new = jnp.maximum(top, jnp.max(own, 1))
    return _activated(plan, i, u, own - new[:, None]), new, plan.exp(top - new)


def _early(query: Side, plan: Plan) -> Any:
    """Return a of queries where features depend on it; of an exponential map it is a factor, and there no sooner."""
    return None if plan.map.exponential else _offset(query, query.x[:, :], slice(None))


def _read(query: Side, b: Any, kv: Any, z: Any, shift: Any, plan: Plan) -> tuple[Any, Any, Any]:
    """Return what queries read of a state."""
    x = query.x[:, :]
    a = _early(query, plan)

    def body(step: Any, carry: Any) -> Any:
        numerator, denominator, top = carry
        at = pl.ds(step * plan.tile.rows, plan.tile.rows)
        u = _projected(query.w, at, x, plan)
        for i in range(plan.activations):
            phi, top, decay = _query_features(plan, i, u, a, b[at], _finite(shift[i, at]), top)
            phi = phi.astype(plan.dtype)
            numerator = numerator * decay[:, None] + _dot(phi, kv[i, at, :].astype(plan.dtype), (1, 0), plan)
            denominator = denominator * decay + jnp.sum(phi.astype(jnp.float32) * z[i, at][None, :], 1)
        return numerator, denominator, top

    start = _start(kv.shape[2], plan)
    found: tuple[Any, Any, Any] = lax.fori_loop(0, query.w.shape[1] // plan.tile.rows, body, start)
    return found


def _finish(query: Side, found: tuple[Any, Any, Any], out: Any, below: Any, scale: Any, plan: Plan) -> None:
    numerator, denominator, top = found
    nothing = denominator == 0
    quotient = numerator / jnp.where(nothing, 1.0, denominator)[:, None]
    out[:, :] = jnp.where(nothing[:, None], 0.0, quotient).astype(out.dtype)
    below[:] = denominator
    scale[:] = top + _offset(query, query.x[:, :], slice(None)) if plan.map.exponential else top


def read(w: Any, b: Any, x: Any, weight: Any, extra: Any, kv: Any, z: Any, shift: Any, out: Any, below: Any, scale: Any,
         *, plan: Plan) -> None:  # fmt: skip
    """Read one state for each query."""
    query = Side(w, x, weight, extra)
    _finish(query, _read(query, b, kv, z, shift, plan), out, below, scale, plan)


def _lower(size: int) -> Any:
    """Return which keys of a tile each query sees."""
    return lax.broadcasted_iota(jnp.int32, (size, size), 0) >= lax.broadcasted_iota(jnp.int32, (size, size), 1)


def causal(wq: Any, q: Any, weight_q: Any, extra_q: Any, wk: Any, k: Any, weight_k: Any, extra_k: Any, b: Any,
           keep: Any, v: Any, kv: Any, z: Any, low: Any, shift: Any, out: Any, below: Any, scale: Any,
           *, plan: Plan) -> None:  # fmt: skip
    """Let each query of a tile see the state before it and the keys of the tile up to its own position."""
    query, key, size = Side(wq, q, weight_q, extra_q), Side(wk, k, weight_k, extra_k), plan.tile.positions
    queries, keys = q[:, :], k[:, :]
    of_query, of_key = _early(query, plan), _offset(key, keys, slice(None))

    def body(step: Any, carry: Any) -> Any:
        numerator, denominator, top, near = carry
        at = pl.ds(step * plan.tile.rows, plan.tile.rows)
        u_q, u_k, weight = _projected(wq, at, queries, plan), _projected(wk, at, keys, plan), b[at]
        for i in range(plan.activations):
            before = low[i, at]
            high = _finite(jnp.maximum(before, shift[i, at]))
            phi, top, decay = _query_features(plan, i, u_q, of_query, weight, high, top)
            own = of_key[:, None] + weight[None, :]
            if plan.map.slopes is None:
                other = _activated(plan, i, u_k, own)
                if keep is not None:
                    other = other * keep[:][:, None]
            else:
                other = _activated(plan, i, u_k, own + plan.map.slopes[i] * u_k - high[None, :])
            fall, held = plan.exp(before - high), kv[i, at, :]
            phi = phi.astype(plan.dtype)
            held = (held.astype(jnp.float32) * fall[:, None]).astype(plan.dtype)
            numerator = numerator * decay[:, None] + _dot(phi, held, (1, 0), plan)
            denominator = denominator * decay + jnp.sum(phi.astype(jnp.float32) * (z[i, at] * fall)[None, :], 1)
            near = near * decay[:, None] + _dot(phi, other.astype(plan.dtype), (1, 1), plan)
        return numerator, denominator, top, near

    start = (*_start(v.shape[1], plan), jnp.zeros((size, size), jnp.float32))
    numerator, denominator, top, near = lax.fori_loop(0, wq.shape[1] // plan.tile.rows, body, start)
    near = jnp.where(_lower(size), near, 0.0)
    value = v[:, :]
    numerator = numerator + _dot(near.astype(plan.dtype), value, (1, 0), plan)
    _finish(query, (numerator, denominator + jnp.sum(near, 1), top), out, below, scale, plan)


def mend(jumps: Any, wq: Any, q: Any, weight_q: Any, extra_q: Any, wk: Any, k: Any, weight_k: Any, extra_k: Any,
         b: Any, v: Any, kv: Any, z: Any, low: Any, _out: Any, _below: Any, _scale: Any,
         out: Any, below: Any, scale: Any, *, plan: Plan) -> None:  # fmt: skip
    """Take a tile again whose keys' exponents are too far apart for one scale: each pair on a scale of its own."""
    flags = lax.broadcasted_iota(jnp.int32, jumps.shape, 0) < wq.shape[1] * plan.activations // plan.flagged

    @pl.when(jnp.max(jnp.where(flags, jumps[:], 0)) > 0)
    def _() -> None:
        query, key = Side(wq, q, weight_q, extra_q), Side(wk, k, weight_k, extra_k)
        size, f32 = plan.tile.positions, jnp.float32
        numerator, denominator, top = _read(query, b, kv, z, low, plan)
        of_q, of_k = q[:, :].astype(f32), k[:, :].astype(f32)
        offset = _offset(key, of_k, slice(None))

        def one(row: Any, carry: Any) -> Any:
            near, height = carry
            u_q, u_k = (jnp.sum(x * _row(w, row)[None, :], 1) for x, w in ((of_q, wq), (of_k, wk)))
            for i, slope in enumerate(plan.map.slopes or ()):
                own = (slope * u_q + b[row])[:, None] + (slope * u_k + offset + b[row])[None, :]
                new = jnp.maximum(height, own)
                base = _finite(new)
                value = plan.exp(own - base) if plan.pure else _pairs(plan, i, u_q, u_k) * plan.exp(own - base)
                near, height = near * plan.exp(height - base) + value, new
            return near, height

        start = jnp.zeros((size, size), f32), jnp.full((size, size), -jnp.inf, f32)
        near, height = lax.fori_loop(0, wq.shape[1], one, start)
        height = jnp.where(_lower(size), height, -jnp.inf)
        top = jnp.where(denominator == 0, -jnp.inf, top)
        new = _finite(jnp.maximum(top, jnp.max(height, 1)))
        near, decay = near * plan.exp(height - new[:, None]), plan.exp(top - new)
        numerator = numerator * decay[:, None] + _dot(near, v[:, :].astype(f32), (1, 0), plan)
        _finish(query, (numerator, denominator * decay + jnp.sum(near, 1), new), out, below, scale, plan)


def _pairs(plan: Plan, i: int, u_q: Any, u_k: Any) -> Any:
    """Return h(u) h(u') of each pair, free of exponents."""
    one, other = (_activated(plan, i, u, jnp.zeros_like(u)) for u in (u_q, u_k))
    return one[:, None] * other[None, :]


def _row(w: Any, row: Any) -> Any:
    """Return one row of W."""
    parts = [w[i, row, :].astype(jnp.float32) for i in range(w.shape[0])]
    return sum(parts[1:], parts[0])
