"""The JAX backend: chunked scans that every transformation and every platform of XLA can take."""

from __future__ import annotations

from functools import partial
from typing import Any

try:
    import jax
    import jax.numpy as jnp
    from jax.dtypes import canonicalize_dtype
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"rfkernels.backends.jax needs the package {error.name!r}: pip install 'rfkernels[jax]'", name=error.name
    ) from error

from rfkernels import backends
from rfkernels._arrays import accumulator
from rfkernels._checks import check_finite_arrays
from rfkernels.backends import Backend, Pass
from rfkernels.backends.jax import blocks, fused, schedule, window
from rfkernels.backends.jax.chunks import Rows
from rfkernels.backends.jax.heads import Given, Result, over_heads
from rfkernels.backends.jax.schedule import Finish, Found, Sizes
from rfkernels.backends.jax.tiles import Carry, kept, normalized
from rfkernels.core import Options
from rfkernels.features import Features, SideName
from rfkernels.partials import Partial
from rfkernels.state import State


def _attend(
    q: Any,
    k: Any,
    v: Any,
    features: Features,
    options: Options,
    mask: Any,
    segments: Any,
    state: State,
    check: bool,
    dtype: Any,
) -> Pass:
    if check:
        check_finite_arrays(q=q, k=k, v=v)
    of_query = None if segments is None else segments[..., k.shape[-2] - q.shape[-2] :]
    given = _given(Rows(q, k, v, mask, of_query, segments), features, state)
    done: Pass = _pass(given, options, jnp.dtype(dtype), features.map.programs())
    return done


def _write(state: State, k: Any, v: Any, features: Features, mask: Any, check: bool) -> State:
    if check:
        check_finite_arrays(k=k, v=v)
    after: State = _written(_given(Rows(k=k, v=v, mask=mask), features, state), features.map.programs())
    return after


def _read(state: State, q: Any, features: Features, full: bool, check: bool, dtype: Any) -> Pass:
    if check:
        check_finite_arrays(q=q)
    done = _reading(_given(Rows(q), features, state), full, jnp.dtype(dtype), features.map.programs())
    output, log, sign = done
    return Pass(output, log, sign, state)


def _given(rows: Rows, features: Features, state: State) -> Given:
    """Return arrays of JAX; the features and the state in the dtype of sums."""
    dtype = accumulator(jnp, state.kv, rows.q, rows.k, rows.v)
    rows = Rows(*(None if x is None else jnp.asarray(x) for x in rows))
    features, state = jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), (features, state))
    return Given(rows, features, state)


# What an activation computes may change while the function that it is stays the same, as when it reads a global: the
# traced programs are arguments so that compiled code is that of the present ones.


@partial(jax.jit, static_argnames=("options", "dtype", "programs"))
def _pass(given: Given, options: Options, dtype: Any, programs: Any) -> Pass:
    def finish(found: Partial) -> Any:
        return normalized(found, dtype, options.full)

    def run(given: Given, sizes: Sizes) -> Result:
        rows, features, segments = given.rows, given.features, given.rows.of_key
        carry = Carry(given.state, None if segments is None else segments[..., 0])
        after, found = _scheduled(carry, rows, features, options, finish, sizes)
        if not options.full or (options.window is not None and not options.causal):
            return found, None
        if segments is None:
            return found, after.state
        return found, kept(features, after.state, after.segment == segments[..., -1])

    def kernels(given: Given) -> Result:
        found, after = fused.attend(given.rows, given.features, given.state, options.causal, dtype)
        return (found, after) if options.full else ((found[0], None, None), None)

    quick = kernels if fused.usable(*given, options) else None
    (output, log, sign), after = over_heads(run, given, options.causal and options.window is None, quick)
    return Pass(output, log, sign, after)


def _scheduled(
    carry: Carry, rows: Rows, features: Features, options: Options, finish: Finish, sizes: Sizes
) -> tuple[Carry, Found]:
    if options.window is not None:
        return window.attend(carry, rows, features, options, finish, sizes)
    if options.causal:
        return schedule.causal(carry, rows, features, 0, finish, sizes)
    if rows.of_key is not None:
        after, found = schedule.two_sided(carry, rows, features, 0, 1, sizes)
        return after, finish(found)
    after = schedule.write(carry, rows, features, sizes)
    return after, schedule.read(after, rows, features, finish, sizes)


@partial(jax.jit, static_argnames="programs")
def _written(given: Given, programs: Any) -> Any:
    def run(given: Given, sizes: Sizes) -> Result:
        return (None, None, None), schedule.write(Carry(given.state), given.rows, given.features, sizes).state

    return over_heads(run, given)[1]


@partial(jax.jit, static_argnames=("full", "dtype", "programs"))
def _reading(given: Given, full: bool, dtype: Any, programs: Any) -> Any:
    def finish(found: Partial) -> Any:
        return normalized(found, dtype, full)

    def run(given: Given, sizes: Sizes) -> Result:
        return schedule.read(Carry(given.state), given.rows, given.features, finish, sizes), None

    return over_heads(run, given)[0]


def _exact(
    q: Any, k: Any, v: Any, options: Options, scale: Any, mask: Any, segments: Any, check: bool, dtype: Any
) -> Pass:
    q, k, v = map(jnp.asarray, (q, k, v))
    return backends.exact(q, k, v, options, scale, mask, segments, check, canonicalize_dtype(dtype))


def _transform(x: Any, features: Features, side: SideName, check: bool) -> Any:
    return backends.transform(jnp.asarray(x), features, side, check)


def _from_features(phi_q: Any, phi_k: Any, v: Any, causal: bool, mask: Any, check: bool, dtype: Any) -> Any:
    phi_q, phi_k, v = map(jnp.asarray, (phi_q, phi_k, v))
    return backends.given(phi_q, phi_k, v, causal, mask, check, canonicalize_dtype(dtype))


BACKEND = Backend(
    "jax",
    _attend,
    _write,
    _read,
    blocks.attend,
    exact=_exact,
    transform=_transform,
    given=_from_features,
)
