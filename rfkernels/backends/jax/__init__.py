"""The JAX backend: chunked scans that every transformation and every platform of XLA can take."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rfkernels._arrays import accumulator
from rfkernels._checks import check_finite_arrays
from rfkernels.backends import Backend, Pass
from rfkernels.backends.jax import schedule, window
from rfkernels.backends.jax.chunks import Rows
from rfkernels.backends.jax.heads import Function, Given, Result, over_heads
from rfkernels.backends.jax.tiles import Carry, normalized
from rfkernels.core import Options
from rfkernels.features import Features
from rfkernels.partials import Partial
from rfkernels.state import State

_BRIEF = schedule.CAUSAL
"""Up to this many positions heads are never taken one by one."""


def _attend(
    q: Any, k: Any, v: Any, features: Features, options: Options, mask: Any, state: State, check: bool, dtype: Any
) -> Pass:
    if check:
        check_finite_arrays(q=q, k=k, v=v)
    given = _given(Rows(q, k, v, mask), features, state)
    return _pass(given, options, jnp.dtype(dtype), features.map.programs())


def _write(state: State, k: Any, v: Any, features: Features, mask: Any, check: bool) -> State:
    if check:
        check_finite_arrays(k=k, v=v)
    return _written(_given(Rows(k=k, v=v, mask=mask), features, state), features.map.programs())


def _read(state: State, q: Any, features: Features, full: bool, check: bool, dtype: Any) -> Pass:
    if check:
        check_finite_arrays(q=q)
    done = _reading(_given(Rows(q), features, state), full, jnp.dtype(dtype), features.map.programs())
    return Pass(*done, state)


def _given(rows: Rows, features: Features, state: State) -> Given:
    """Return arrays of JAX, the state in the dtype of sums."""
    dtype = accumulator(jnp, state.kv, rows.q, rows.k, rows.v)
    rows = Rows(*(None if x is None else jnp.asarray(x) for x in rows))
    return Given(rows, features, State(*(jnp.asarray(x).astype(dtype) for x in state)))


# What an activation computes may change while the function that it is stays the same, as when it reads a global: the
# traced programs are arguments so that compiled code is that of the present ones.


@partial(jax.jit, static_argnames=("options", "dtype", "programs"))
def _pass(given: Given, options: Options, dtype: Any, programs: Any) -> Pass:
    def finish(found: Partial) -> Any:
        return normalized(found, dtype, options.full)

    def run(given: Given) -> Result:
        rows, features, carry = given.rows, given.features, Carry(given.state)
        if options.window is not None:
            carry, found = window.attend(carry, rows, features, options, finish)
        elif options.causal:
            carry, found = schedule.causal(carry, rows, features, 0, finish)
        else:
            carry = schedule.write(carry, rows, features)
            found = schedule.read(carry, rows, features, finish)
        after = carry.state if options.full and (options.causal or options.window is None) else None
        return found, after

    found, after = _lifted(run, given)
    return Pass(*found, after)


@partial(jax.jit, static_argnames="programs")
def _written(given: Given, programs: Any) -> Any:
    def run(given: Given) -> Result:
        return (None, None, None), schedule.write(Carry(given.state), given.rows, given.features).state

    return _lifted(run, given)[1]


@partial(jax.jit, static_argnames=("full", "dtype", "programs"))
def _reading(given: Given, full: bool, dtype: Any, programs: Any) -> Any:
    def finish(found: Partial) -> Any:
        return normalized(found, dtype, full)

    def run(given: Given) -> Result:
        return schedule.read(Carry(given.state), given.rows, given.features, finish), None

    return _lifted(run, given)[0]


def _lifted(run: Function, given: Given) -> Result:
    longest = max(x.shape[-2] for x in (given.rows.q, given.rows.k) if x is not None)
    return run(given) if longest <= _BRIEF else over_heads(run, given)


BACKEND = Backend("jax", _attend, _write, _read)
