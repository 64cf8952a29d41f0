"""Executable specification of linear attention, in terms of a namespace: NumPy's or jax.numpy's.

Causal passes go a key at a time, so nothing can leak from later keys and every norm is handled exactly. In float64 on
NumPy this is the oracle that faster schedules are tested against.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from rfkernels import partials
from rfkernels._arrays import elementwise, matmul, over_rows, stopped
from rfkernels.exact import exact_partial
from rfkernels.features import Features, SideName
from rfkernels.kernels import Kernel
from rfkernels.partials import Partial
from rfkernels.state import State

ANYWHERE = 0.75
"""What is activated in place of masked keys, which are zeros: there, unlike at 0, √ and the like have a derivative."""


class Options(NamedTuple):
    """What a pass computes, beyond its arrays; `full` asks for the state and the normaliser as well."""

    causal: bool = False
    window: int | None = None
    kernel: Kernel | None = None
    full: bool = False


def project(xp: Any, x: Any, features: Features, side: SideName) -> tuple[Any, Any]:
    """Return u = w · T(x − centre), (*batch, length, rows), and c |T(x − centre)|² + linear · x, (*batch, length)."""
    dtype = x.dtype
    given = features.side(side)
    t = x if given.centre is None else x - xp.asarray(given.centre, dtype)[..., None, :]
    if given.matrix is None:
        t = t * xp.sqrt(xp.asarray(features.scale, dtype))
    else:
        t = matmul(xp, t, xp.swapaxes(xp.asarray(given.matrix, dtype), -1, -2))
    u = matmul(xp, t, xp.swapaxes(xp.asarray(features.projection, dtype), -1, -2))
    a = features.map.offset * xp.sum(t * t, -1)
    if given.linear is not None:
        a = a + matmul(xp, x, xp.asarray(given.linear, dtype)[..., None])[..., 0]
    return u, a


def log_weights(xp: Any, features: Features, dtype: Any) -> Any:
    """Return b for each column, (*batch, 1, count)."""
    b = xp.asarray(features.log_weight, dtype)[..., None, :]
    return xp.concatenate([b] * len(features.map.activations), -1)


def exponents(xp: Any, features: Features, u: Any) -> Any:
    """Return what is added to a in the exponent of each column: slope · u + b."""
    assert features.map.slopes is not None
    b = xp.asarray(features.log_weight, u.dtype)[..., None, :]
    return xp.concatenate([slope * u + b for slope in features.map.slopes], -1)


def activate(xp: Any, features: Features, u: Any, a: Any) -> Any:
    """Return h(u, a) for each column; `a` has one entry per column or broadcasts.

    For an exponential map `a` stands for the whole exponent that a column shall have, at most zero: the largest of a
    column is then exactly zero, and no norm is large enough for rounding to make it overflow or vanish.
    """
    columns, rows = [], features.rows
    a = xp.broadcast_to(a, (*a.shape[:-1], features.count))
    for i, activation in enumerate(features.map.activations):
        own = a[..., i * rows : (i + 1) * rows]
        if features.map.slopes is not None:
            own = own - features.map.slopes[i] * u
        value = xp.asarray(activation(elementwise(xp), u, own), u.dtype)  # one that is constant has no dtype of its own
        columns.append(xp.broadcast_to(value, xp.broadcast_shapes(u.shape, own.shape)))
    return xp.concatenate(columns, -1)


def key_exponents(xp: Any, k: Any, features: Features, mask: Any = None) -> tuple[Any, Any]:
    """Return u and the exponent of each key and column, −inf where masked; of maps that have none, a + b."""
    u, a = project(xp, k, features, "key")
    if not features.map.exponential:
        return u, a[..., None] + log_weights(xp, features, u.dtype)
    exponent = exponents(xp, features, u) + a[..., None]
    return u, exponent if mask is None else xp.where(mask[..., None], exponent, -xp.inf)


def raised(xp: Any, shift: Any, exponent: Any, features: Features) -> Any:
    """Return the shift of a state once keys of these exponents are in it."""
    if not features.map.exponential:
        return shift
    return stopped(xp, xp.maximum(shift, xp.max(exponent, -2, initial=-xp.inf)))


def key_features(xp: Any, u: Any, exponent: Any, shift: Any, features: Features, mask: Any = None) -> Any:
    """Return h of keys, divided by exp(shift), and zero where masked."""
    base = xp.where(shift == -xp.inf, 0, shift)
    if mask is not None:
        u = xp.where(mask[..., None], u, ANYWHERE)
    phi = activate(xp, features, u, exponent - base[..., None, :])
    return phi if mask is None else xp.where(mask[..., None], phi, 0)


def query_features(xp: Any, shift: Any, q: Any, features: Features) -> tuple[Any, Any]:
    """Return h of queries times exp(shift), divided by exp of the second result: −inf if no key is held."""
    u, a = project(xp, q, features, "query")
    empty = xp.all(shift == -xp.inf, -1)[..., None]
    base = xp.where(shift == -xp.inf, 0, shift)[..., None, :]
    if features.map.exponential:
        exponent = exponents(xp, features, u) + base
        top = stopped(xp, xp.max(exponent, -1))
        phi, own = activate(xp, features, u, exponent - top[..., None]), top + a
    else:
        phi, own = activate(xp, features, u, log_weights(xp, features, u.dtype) + a[..., None]), xp.zeros_like(a)
    return phi, xp.where(empty, -xp.inf, own - math.log(features.count))


def rescaled(xp: Any, state: State, shift: Any) -> State:
    """Return the same sums with a shift that is at least that of the state."""
    decay = xp.exp(state.shift - xp.where(shift == -xp.inf, 0, shift))
    return State(state.kv * decay[..., None], state.z * decay, shift)


def write(xp: Any, state: State, k: Any, v: Any, features: Features, mask: Any = None) -> State:
    """Add keys and values to a state."""
    u, exponent = key_exponents(xp, k, features, mask)
    shift = raised(xp, state.shift, exponent, features)
    phi = key_features(xp, u, exponent, shift, features, mask)
    held = rescaled(xp, state, shift)
    return State(held.kv + matmul(xp, xp.swapaxes(phi, -1, -2), v), held.z + xp.sum(phi, -2), shift)


def read(xp: Any, state: State, q: Any, features: Features) -> Partial:
    """Sum estimated kernels over the keys of a state, for each query."""
    phi, shift = query_features(xp, state.shift, q, features)
    denominator = xp.sum(phi * state.z[..., None, :], -1)
    return Partial(matmul(xp, phi, state.kv), denominator, xp.broadcast_to(shift, denominator.shape))


def attend(
    xp: Any, q: Any, k: Any, v: Any, features: Features, options: Options, mask: Any, state: State
) -> tuple[Partial, State | None]:
    """Run a whole pass: sums for each query over what it sees, and the state after the last key.

    The state is that of the keys which the next query would see through features; None after a bidirectional pass with
    a window, which has no such set.
    """
    if options.causal:
        part, after = _causal(xp, q, k, v, features, options.window or 0, mask, state)
    elif options.window is None:
        after = write(xp, state, k, v, features, mask)
        part = read(xp, after, q, features)
    else:
        part, after = _two_sided(xp, q, k, v, features, options.window, mask, state), None
    if options.window is not None:
        assert options.kernel is not None
        near = exact_partial(
            q,
            k,
            v,
            scale=features.scale,
            causal=options.causal,
            window=options.window,
            mask=mask,
            kernel=options.kernel,
        )
        part = partials.join(xp, part, near)
    return part, after


def _causal(
    xp: Any, q: Any, k: Any, v: Any, features: Features, lag: int, mask: Any, state: State
) -> tuple[Partial, State]:
    """Let query t see keys s <= t + (keys - length) - lag."""
    length, keys = q.shape[-2], k.shape[-2]

    def absorb(state: State, start: int, stop: int) -> State:
        part = slice(max(start, 0), max(stop, 0))
        seen = None if mask is None else mask[..., part]
        return write(xp, state, k[..., part, :], v[..., part, :], features, seen)

    first = keys - length - lag
    state = absorb(state, 0, first)
    parts = [read(xp, state, q[..., :0, :], features)]
    for t in range(length):
        if t + first >= 0:
            state = absorb(state, t + first, t + first + 1)
        parts.append(read(xp, state, q[..., t : t + 1, :], features))
    return partials.stack(xp, parts), state


def _two_sided(xp: Any, q: Any, k: Any, v: Any, features: Features, window: int, mask: Any, state: State) -> Partial:
    """Let query t see keys s with |t − s| >= window: a pass over prefixes, and one over suffixes read backwards."""
    length, keys = q.shape[-2], k.shape[-2]
    lag = window + keys - length
    empty = State(xp.zeros_like(state.kv), xp.zeros_like(state.z), empty_shift(xp, features, state.shift))
    before, _ = _causal(xp, q, k, v, features, lag, mask, state)
    backward = (xp.flip(q, -2), xp.flip(k, -2), xp.flip(v, -2))
    turned = None if mask is None else xp.flip(mask, -1)
    after, _ = _causal(xp, *backward, features, window, turned, empty)
    flipped = Partial(xp.flip(after.numerator, -2), xp.flip(after.denominator, -1), xp.flip(after.shift, -1))
    return partials.join(xp, before, flipped)


def empty_shift(xp: Any, features: Features, like: Any) -> Any:
    """Return the shift of no keys."""
    return xp.full_like(like, -xp.inf if features.map.exponential else 0.0)


def transform(xp: Any, x: Any, features: Features, side: SideName) -> tuple[Any, Any]:
    """Return log |φ(x)| and its sign, both (*batch, length, count), to be trusted at any norm."""
    if features.map.exponential:
        u, a = project(xp, x, features, side)
        value = activate(xp, features, u, xp.zeros_like(u[..., :1]))
        shift = exponents(xp, features, u) + a[..., None] - math.log(features.count) / 2
    else:
        value, shift = columns(xp, x, features, side), 0.0
    magnitude = xp.abs(value)
    log = xp.log(xp.where(magnitude == 0, 1, magnitude)) + shift
    return xp.where(magnitude == 0, -xp.inf, log), xp.sign(value)


def columns(xp: Any, x: Any, features: Features, side: SideName) -> Any:
    """Return φ(x) itself, (*batch, length, count), of a map that is not exponential."""
    u, a = project(xp, x, features, side)
    return activate(xp, features, u, log_weights(xp, features, u.dtype) + a[..., None]) / math.sqrt(features.count)


def log_kernel(xp: Any, x: Any, y: Any, features: Features) -> tuple[Any, Any]:
    """Return the log and sign of φ(x)·φ(y), pair by pair; x and y are (*batch, dim)."""
    alone = min(x.ndim, y.ndim) == 1 or bool(features.batch)
    if alone:
        x, y = x[..., None, :], y[..., None, :]
    total, shift = (_exponential_sum if features.map.exponential else _sum)(xp, x, y, features)
    log, sign = partials.log_denominator(xp, Partial(total[..., None], total, shift))
    return (log[..., 0], sign[..., 0]) if alone else (log, sign)


def _exponential_sum(xp: Any, x: Any, y: Any, features: Features) -> tuple[Any, Any]:
    """Return φ(x)·φ(y) divided by exp of the second result, the largest exponent of a term."""
    (u, a), (w, b) = project(xp, x, features, "query"), project(xp, y, features, "key")
    exponent = exponents(xp, features, u) + exponents(xp, features, w) + (a + b)[..., None]
    top = stopped(xp, xp.max(exponent, -1))
    terms = activate(xp, features, u, exponent - top[..., None]) * activate(xp, features, w, xp.zeros_like(w[..., :1]))
    return xp.sum(terms, -1), top - math.log(features.count)


def _sum(xp: Any, x: Any, y: Any, features: Features) -> tuple[Any, Any]:
    """Do what `_exponential_sum` does for a map that has no exponents."""
    log_x, sign_x = transform(xp, x, features, "query")
    log_y, sign_y = transform(xp, y, features, "key")
    log = log_x + log_y
    top = stopped(xp, xp.max(log, -1))
    base = xp.where(top == -xp.inf, 0, top)
    return xp.sum(sign_x * sign_y * xp.exp(log - base[..., None]), -1), base


def linear_attention(xp: Any, phi_q: Any, phi_k: Any, v: Any, causal: bool, mask: Any, chunk: int = 128) -> Any:
    """Normalise φ_q (φ_kᵀ v) for features that are given, a chunk of positions at a time when causal."""
    if mask is not None:
        phi_k = xp.where(mask[..., None], phi_k, 0)
    if not causal:
        kv, z = matmul(xp, xp.swapaxes(phi_k, -1, -2), v), xp.sum(phi_k, -2)
        numerator = matmul(xp, phi_q, kv)
        denominator = matmul(xp, phi_q, z[..., None])[..., 0]
        return partials.normalize(xp, Partial(numerator, denominator, xp.zeros_like(denominator)))
    early, done = (max(n, 0) for n in (phi_q.shape[-2] - phi_k.shape[-2], phi_k.shape[-2] - phi_q.shape[-2]))
    first_k, first_v = phi_k[..., :done, :], v[..., :done, :]
    sums = matmul(xp, xp.swapaxes(first_k, -1, -2), first_v), xp.sum(first_k, -2)

    def step(sums: Any, start: Any, rows: Any) -> Any:
        (kv, z), (q, k, v) = sums, rows
        near = xp.where(xp.tri(q.shape[-2], dtype=bool), matmul(xp, q, xp.swapaxes(k, -1, -2)), 0)
        numerator = matmul(xp, q, kv) + matmul(xp, near, v)
        denominator = matmul(xp, q, z[..., None])[..., 0] + xp.sum(near, -1)
        found = partials.normalize(xp, Partial(numerator, denominator, xp.zeros_like(denominator)))
        return (kv + matmul(xp, xp.swapaxes(k, -1, -2), v), z + xp.sum(k, -2)), (found,)

    aligned = phi_q[..., early:, :], phi_k[..., done:, :], v[..., done:, :]
    _, (found,) = over_rows(xp, step, sums, aligned, chunk)
    nothing = xp.zeros((*found.shape[:-2], early, found.shape[-1]), found.dtype)
    return xp.concatenate([nothing, found], -2) if early else found
