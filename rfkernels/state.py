"""The monoid of sums over keys: an identity, an associative merge, no inverse."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, overload

import numpy as np

from rfkernels._arrays import broadcasting, is_jax, namespace, record, stopped
from rfkernels._checks import broadcast_batch, check_array, check_batch
from rfkernels.features import Features


@record
class State(NamedTuple):
    """Sums over keys of feature j, both divided by exp(shift_j): Σ φ_j(k) vᵀ and Σ φ_j(k).

    Parameters
    ----------
    kv : array, shape (*batch, count, width)
        Σ φ_j(k) vᵀ e^-shift_j.
    z : array, shape (*batch, count)
        Σ φ_j(k) e^-shift_j.
    shift : array, shape (*batch, count)
        The largest exponent of feature j over the keys, −inf before the first; 0 throughout for maps that are not
        exponential.
    """

    kv: Any
    z: Any
    shift: Any


@record
class DecodeState(NamedTuple):
    """A state that a windowed causal pass is resumed from: keys leave the window for `state` as new ones arrive.

    Parameters
    ----------
    state : State
        Sums over the keys that every later query sees through features.
    keys, values : array, shape (*batch, window, dim) and (*batch, window, width)
        The last keys and values, which later queries still see exactly.
    mask : array of bool, shape (*batch, window)
        Which of them exist and may be attended.
    position : int or array, shape ()
        How many keys were seen.
    """

    state: State
    keys: Any
    values: Any
    mask: Any
    position: Any


@overload
def empty_state(
    features: Features, width: int, batch: tuple[int, ...] = (), dtype: Any = None, *, window: None = None
) -> State: ...
@overload
def empty_state(
    features: Features, width: int, batch: tuple[int, ...] = (), dtype: Any = None, *, window: int
) -> DecodeState: ...
@overload
def empty_state(
    features: Features, width: int, batch: tuple[int, ...] = (), dtype: Any = None, *, window: int | None
) -> State | DecodeState: ...
def empty_state(
    features: Features, width: int, batch: tuple[int, ...] = (), dtype: Any = None, *, window: int | None = None
) -> State | DecodeState:
    """Return the state of no keys, the identity of `merge_states`.

    Parameters
    ----------
    features : Features
        The features that will write to it.
    width : int
        The width of values.
    batch : tuple of int, default ()
        Batch axes of the keys to come.
    dtype : dtype, optional
        float32 (the default) or float64. Sums are promoted when float64 keys are written, and stay in float64 whatever
        is written to them, which long streams of single tokens are better for.
    window : int, optional
        Return a `DecodeState` for causal attention with that window instead.

    Returns
    -------
    State or DecodeState

    Raises
    ------
    ValueError
        If `dtype` is neither float32 nor float64, or a size is negative.
    """
    if not isinstance(features, Features):
        raise TypeError(f"features must be a Features (see rfkernels.draw), got {type(features).__name__}")
    for name, size, least in (("width", width, 0), ("window", 1 if window is None else window, 1)):
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {size!r}")
    check_batch(batch)
    try:
        kind = np.dtype(np.float32 if dtype is None else dtype)
    except TypeError:
        kind = None
    if kind is None or kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}")
    xp = namespace(features.projection)
    state = empty_sums(xp, features, width, batch, kind)
    if window is None:
        return state
    keys, values = xp.zeros((*batch, window, features.dim), kind), xp.zeros((*batch, window, width), kind)
    return DecodeState(state, keys, values, xp.zeros((*batch, window), bool), 0)


def check_sums(name: str, state: State) -> None:
    """Require sums in arrays of a real floating dtype, of one count."""
    kv, z, shift = state
    plain = type(kv) is type(z) is type(shift) is np.ndarray  # most often, and in less time
    if not (plain and kv.dtype == z.dtype == shift.dtype and kv.dtype.char in "fd"):
        for field, x in zip(State._fields, state, strict=True):
            check_array(f"{name}.{field}", x, 0)
    if kv.ndim < 2 or not kv.shape[:-1] == z.shape == shift.shape:
        raise ValueError(
            f"{name} must have kv (*batch, count, width), z and shift (*batch, count), got {kv.shape}, {z.shape} and "
            f"{shift.shape}"
        )


def check_position(position: Any) -> None:
    """Require how many keys a state has seen: an integer, or an array of one, of at least 0 where it is known."""
    array = hasattr(position, "dtype") and position.dtype.kind in "iu" and position.ndim == 0
    if isinstance(position, bool) or not (isinstance(position, int) or array):
        raise TypeError(f"state.position must be an integer or an array of one, got {position!r}")
    if not is_jax(position) and position < 0:
        raise ValueError(f"state.position must be at least 0, got {position}")


def empty_sums(xp: Any, features: Features, width: int, batch: tuple[int, ...], dtype: Any) -> State:
    """Return the state of no keys as arrays of the namespace `xp`."""
    shape = (*batch, features.count)
    shift = xp.full(shape, _lowest(features), dtype)
    return State(xp.zeros((*shape, width), dtype), xp.zeros(shape, dtype), shift)


def no_sums(features: Features, width: int, batch: tuple[int, ...], dtype: Any) -> State:
    """Return the state of no keys as read-only arrays of NumPy, each a single number in memory."""
    return _no_sums((*batch, features.count), width, dtype, _lowest(features))


@lru_cache(64)
def _no_sums(shape: tuple[int, ...], width: int, dtype: Any, lowest: float) -> State:
    shapes = zip(((*shape, width), shape, shape), (0.0, 0.0, lowest), strict=True)
    return State(*(np.broadcast_to(np.asarray(value, dtype), own) for own, value in shapes))


def is_empty(state: State, features: Features) -> bool:
    """Whether a state, of one number to an array, holds no keys."""
    return bool(state.kv.size and [x.item(0) for x in state] == [0.0, 0.0, _lowest(features)])


def _lowest(features: Features) -> float:
    return -math.inf if features.map.exponential else 0.0


@broadcasting
def merge_states(first: State, second: State) -> State:
    """Return the state of the keys of both: associative and commutative, with `empty_state` as identity.

    Parameters
    ----------
    first, second : State
        States written with the same features; their batch axes broadcast.

    Returns
    -------
    State

    Raises
    ------
    TypeError
        If an argument is not a State, or holds what is no array of a real floating dtype.
    ValueError
        If counts or widths differ, or batch axes do not broadcast.
    """
    for name, state in (("first", first), ("second", second)):
        if not isinstance(state, State):
            raise TypeError(f"{name} must be a State, got {type(state).__name__}")
        check_sums(name, state)
    if first.kv.shape[-2:] != second.kv.shape[-2:]:
        raise ValueError(
            f"first and second must agree in (count, width), got {first.kv.shape[-2:]} and {second.kv.shape[-2:]}"
        )
    broadcast_batch(first=first.kv.shape[:-2], second=second.kv.shape[:-2])
    return merged(first, second)


def merged(first: State, second: State) -> State:
    """Do what `merge_states` does with states that fit, and whose numbers may be symbols."""
    xp = namespace(first.kv, second.kv)
    shift = stopped(xp, xp.maximum(first.shift, second.shift))
    base = xp.where(shift == -xp.inf, 0, shift)
    one, two = xp.exp(first.shift - base), xp.exp(second.shift - base)
    kv = first.kv * one[..., None] + second.kv * two[..., None]
    return State(kv, first.z * one + second.z * two, shift)
