"""One chunk of positions: what its keys add to a state, and what its queries read of both."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from rfkernels import core, partials
from rfkernels._arrays import matmul, stopped
from rfkernels.backends.jax.chunks import TAILS, Rows, cut, join
from rfkernels.features import Features
from rfkernels.partials import Partial
from rfkernels.state import State

JUMP = 40.0
"""How far the shift of a chunk may lie above what a query sees, in powers of e: float32 ends at e^-87."""


class Carry(NamedTuple):
    """What goes from chunk to chunk: sums, and the segment whose keys they hold (None without segments)."""

    state: State
    segment: Any = None


def prepared(rows: Rows, dtype: Any) -> Rows:
    """Return a chunk in the dtype of sums, with zeros in place of masked keys: no derivative meets their values."""
    q = None if rows.q is None else rows.q.astype(dtype)
    if rows.k is None:
        return rows._replace(q=q)
    k, v = rows.k.astype(dtype), rows.v.astype(dtype)
    if rows.mask is not None:
        k, v = (jnp.where(rows.mask[..., None], x, 0) for x in (k, v))
    return rows._replace(q=q, k=k, v=v)


def kept(features: Features, state: State, keep: Any) -> State:
    """Return the state where `keep` (*batch,) holds, and the empty one elsewhere."""
    empty = core.empty_shift(jnp, features, state.shift)
    keep = keep[..., None]
    return State(
        jnp.where(keep[..., None], state.kv, 0), jnp.where(keep, state.z, 0), jnp.where(keep, state.shift, empty)
    )


def read(carry: Carry, rows: Rows, features: Features) -> Partial:
    """Read a state for each query of its segment."""
    found = core.read(jnp, carry.state, rows.q, features)
    if carry.segment is None:
        return found
    return only(found, rows.of_query == carry.segment[..., None])


def only(found: Partial, sees: Any) -> Partial:
    """Return the sums of those queries that see something, and those of no key for the others."""
    numerator = jnp.where(sees[..., None], found.numerator, 0)
    return Partial(numerator, jnp.where(sees, found.denominator, 0), jnp.where(sees, found.shift, -jnp.inf))


def causal(carry: Carry, rows: Rows, features: Features) -> tuple[Carry, Partial]:
    """Let each query of a chunk see the state and the keys of the chunk up to its own position.

    All keys of the chunk are put on the scale of the largest. If that is far above what an earlier query sees, the
    chunk is taken position by position, where there is nothing later to disturb.
    """
    if rows.of_key is not None:
        begins = carry.segment == rows.of_key[..., 0]
        carry = Carry(kept(features, carry.state, begins), rows.of_key[..., 0])
    u, exponent = core.key_exponents(jnp, rows.k, features, rows.mask)
    shift = core.raised(jnp, carry.state.shift, exponent, features)
    length = rows.k.shape[-2]
    if length == 1 or not features.map.exponential:
        return _at_once(carry, rows, features, u, exponent, shift)
    jumps = _anywhere(jnp.any(_jump(carry, rows, stopped(jnp, exponent), shift) >= JUMP))

    def whole(carry: Carry, rows: Rows, u: Any, exponent: Any, shift: Any) -> tuple[Carry, Partial]:
        return _at_once(carry, rows, features, u, exponent, shift)

    def pieces(carry: Carry, rows: Rows, u: Any, exponent: Any, shift: Any) -> tuple[Carry, Partial]:
        return _in_pieces(carry, rows, features)

    slow = jax.checkpoint(pieces, prevent_cse=False)
    done: tuple[Carry, Partial] = lax.cond(jumps, slow, whole, carry, rows, u, exponent, shift)
    return done


def together(carry: Carry, rows: Rows, features: Features) -> tuple[Carry, Partial]:
    """Take many chunks at once, (chunks, *batch, ...), each as `causal` does; there are no segments.

    If the keys of any are too far apart for one scale, they are taken one after another.
    """
    shapes, rank = [x.shape for x in carry.state], max(x.ndim for x in (rows.q, carry.state.kv[None])) - 3
    rows = Rows(*(None if x is None else _ranked(x, rank + 1 + tail, 1) for x, tail in zip(rows, TAILS, strict=True)))
    rows = prepared(rows, carry.state.kv.dtype)
    given = State(*(_ranked(x, rank + tail, 0) for x, tail in zip(carry.state, (2, 1, 1), strict=True)))
    u, exponent = core.key_exponents(jnp, rows.k, features, rows.mask)
    shift = core.raised(jnp, given.shift, exponent, features)
    shift = lax.cummax(jnp.broadcast_to(shift, (rows.k.shape[0], *given.shift.shape)))
    seen_before = Carry(given._replace(shift=jnp.concatenate([given.shift[None], shift[:-1]])))

    def whole(carry: Carry, rows: Rows, u: Any, exponent: Any) -> tuple[Carry, Partial]:
        phi_k = core.key_features(jnp, u, exponent, shift, features, rows.mask)
        kv, z = matmul(jnp, jnp.swapaxes(phi_k, -1, -2), rows.v), jnp.sum(phi_k, -2)
        held = _prefixes(carry.state, kv, z, shift)
        found = _seen(seen_before, held, rows, features, phi_k)
        return Carry(State(held.kv[-1] + kv[-1], held.z[-1] + z[-1], held.shift[-1])), found

    def apart(carry: Carry, rows: Rows, u: Any, exponent: Any) -> tuple[Carry, Partial]:
        one = jax.checkpoint(lambda carry, chunk: causal(carry, chunk, features), prevent_cse=False)
        found: tuple[Carry, Partial] = lax.scan(one, carry, rows)
        return found

    if features.map.exponential:
        jumps = _anywhere(jnp.any(_jump(seen_before, rows, stopped(jnp, exponent), shift) >= JUMP))
        slow = jax.checkpoint(apart, prevent_cse=False)
        carry, found = lax.cond(jumps, slow, whole, Carry(given), rows, u, exponent)
    else:
        carry, found = whole(Carry(given), rows, u, exponent)
    return Carry(State(*(x.reshape(shape) for x, shape in zip(carry.state, shapes, strict=True)))), found


def _ranked(x: Any, rank: int, axis: int) -> Any:
    """Put the batch axes that an array lacks where its own begin."""
    return x.reshape(*x.shape[:axis], *(1,) * (rank - x.ndim), *x.shape[axis:])


def _prefixes(state: State, kv: Any, z: Any, shift: Any) -> State:
    """Return what is before each of many chunks, on the scale `shift` of its end, as the sums of each chunk are."""
    count = shift.shape[0]
    base = jnp.where(shift == -jnp.inf, 0, shift)
    earlier = jnp.tri(count, k=-1, dtype=bool).reshape(count, count, *(1,) * (shift.ndim - 1))
    falls = jnp.exp(jnp.where(earlier, shift[None] - base[:, None], -jnp.inf))
    sums = jnp.concatenate([kv, z[..., None]], -1)
    sums = matmul(jnp, jnp.moveaxis(falls, (0, 1), (-2, -1)), jnp.moveaxis(sums, 0, -2))
    sums = jnp.moveaxis(sums, -2, 0)
    fall = jnp.exp(state.shift - base)
    return State(sums[..., :-1] + state.kv * fall[..., None], sums[..., -1] + state.z * fall, shift)


def _in_pieces(carry: Carry, rows: Rows, features: Features) -> tuple[Carry, Partial]:
    length = rows.k.shape[-2]

    def body(carry: Carry, piece: Rows) -> tuple[Carry, Partial]:
        return causal(carry, piece, features)

    pieces = cut(rows, 1)
    carry, found = lax.scan(jax.checkpoint(body, prevent_cse=False), carry, pieces)
    return carry, Partial(*(join(x, length, tail) for x, tail in zip(found, (2, 1, 1), strict=True)))


def _at_once(carry: Carry, rows: Rows, features: Features, u: Any, exponent: Any, shift: Any) -> tuple[Carry, Partial]:
    phi_k = core.key_features(jnp, u, exponent, shift, features, rows.mask)
    held = core.rescaled(jnp, carry.state, shift)
    return _after(carry, held, rows, features, phi_k, exponent), _seen(carry, held, rows, features, phi_k)


def _seen(carry: Carry, held: State, rows: Rows, features: Features, phi_k: Any) -> Partial:
    """Return what queries read of a state and of the keys up to their own position, both on the scale of `held`."""
    phi_q, top = core.query_features(jnp, held.shift, rows.q, features)
    read_kv, read_z = matmul(jnp, phi_q, held.kv), jnp.sum(phi_q * held.z[..., None, :], -1)
    visible = jnp.tri(rows.k.shape[-2], dtype=bool)
    if rows.of_key is not None:
        visible = visible & (rows.of_query[..., :, None] == rows.of_key[..., None, :])
        reads = rows.of_query == carry.segment[..., None]
        read_kv, read_z = jnp.where(reads[..., None], read_kv, 0), jnp.where(reads, read_z, 0)
    weight = jnp.where(visible, matmul(jnp, phi_q, jnp.swapaxes(phi_k, -1, -2)), 0)
    denominator = jnp.sum(weight, -1) + read_z
    found = Partial(matmul(jnp, weight, rows.v) + read_kv, denominator, jnp.broadcast_to(top, denominator.shape))
    if rows.mask is not None or rows.of_key is not None:
        found = only(found, _sees(carry, rows, visible))
    return found


def _sees(carry: Carry, rows: Rows, visible: Any) -> Any:
    """Return which queries see any key; without masks and segments all do."""
    seen = visible if rows.mask is None else visible & rows.mask[..., None, :]
    holds = _holds(carry)[..., None]
    if rows.of_key is not None:
        holds = holds & (rows.of_query == carry.segment[..., None])
    return jnp.any(seen, -1) | holds


def _holds(carry: Carry) -> Any:
    """Return whether a state holds keys; of a map without exponents it need not be known."""
    return jnp.any(carry.state.shift > -jnp.inf, -1)


def _after(carry: Carry, held: State, rows: Rows, features: Features, phi: Any, exponent: Any) -> Carry:
    if rows.of_key is None:
        state = State(held.kv + matmul(jnp, jnp.swapaxes(phi, -1, -2), rows.v), held.z + jnp.sum(phi, -2), held.shift)
        return Carry(state)
    last = rows.of_key[..., -1]
    stays = rows.of_key == last[..., None]
    phi = jnp.where(stays[..., None], phi, 0)
    goes_on = carry.segment == last
    before = kept(features, carry.state, goes_on)
    low = core.raised(jnp, before.shift, jnp.where(stays[..., None], exponent, -jnp.inf), features)
    nothing = low == -jnp.inf
    rise = jnp.where(nothing, 0, jnp.exp(jnp.where(nothing, 0, held.shift - low)))
    older = core.rescaled(jnp, before, low)
    kv = older.kv + matmul(jnp, jnp.swapaxes(phi, -1, -2), rows.v) * rise[..., None]
    return Carry(State(kv, older.z + jnp.sum(phi, -2) * rise, low), last)


def _jump(carry: Carry, rows: Rows, exponent: Any, shift: Any) -> Any:
    """Return how far the shift of each feature lies above what the queries that see least have of it."""
    own, first = stopped(jnp, carry.state.shift), exponent[..., 0, :]
    least = jnp.maximum(own, first)
    if rows.mask is None and rows.of_key is None:
        return shift - least
    holds = _holds(carry)[..., None]
    # Where a state is held the first position sees it; elsewhere, and in each later segment, the first key counts.
    rise = jnp.where(holds & (least > -jnp.inf), shift - least, 0)
    starts = _starts(rows)
    if rows.of_key is not None:
        holds = holds & (rows.of_key == carry.segment[..., None])
    starts = (starts & ~holds)[..., None]
    return jnp.maximum(rise, jnp.max(jnp.where(starts, shift[..., None, :] - exponent, 0), -2))


def _starts(rows: Rows) -> Any:
    """Return which keys are the first of their segment, in this chunk, that are not masked."""
    length = rows.k.shape[-2]
    seen = jnp.ones(length, bool) if rows.mask is None else rows.mask
    earlier = jnp.tri(length, k=-1, dtype=bool) & seen[..., None, :]
    if rows.of_key is not None:
        earlier = earlier & (rows.of_key[..., :, None] == rows.of_key[..., None, :])
    return seen & ~jnp.any(earlier, -1)


@custom_vmap
def _anywhere(flag: Any) -> Any:
    """Return the flag; under `vmap` whether it holds in any element, so that a branch remains one."""
    return flag


@_anywhere.def_vmap
def _(size: int, batched: list[bool], flag: Any) -> tuple[Any, bool]:
    return _anywhere(jnp.any(flag, 0) if batched[0] else flag), False


def normalized(part: Partial, dtype: Any, full: bool) -> tuple[Any, Any, Any]:
    """Return the output and, if asked for, the log-normaliser and its sign.

    Sums are divided by the denominator's own value, a constant to derivatives, first: what is left to divide by is one,
    and its powers in derivatives neither overflow nor vanish.
    """
    own = stopped(jnp, jnp.where(part.denominator == 0, 1, jnp.abs(part.denominator)))
    part = Partial(part.numerator / own[..., None], part.denominator / own, part.shift)
    output = partials.normalize(jnp, part).astype(dtype)
    if not full:
        return output, None, None
    log, sign = partials.log_denominator(jnp, part._replace(shift=part.shift + jnp.log(own)))
    return output, log, sign
