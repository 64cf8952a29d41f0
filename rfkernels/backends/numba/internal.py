"""States as schedules hold them: padded, with shifts that are finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels.backends.numba import kernels
from rfkernels.backends.numba.packing import Layout
from rfkernels.features import Features
from rfkernels.state import State, is_empty


def lowest(given: Layout, features: Features | None) -> float:
    """Return the shift of no keys: a sentinel that stands for −inf."""
    return given.sentinel if features is not None and features.map.exponential else 0.0


def to_internal(given: Layout, features: Features, state: State) -> State | None:
    """Copy a state to padded arrays (heads, count, width) with a finite shift; None if it is known to hold no keys."""
    if not any(any(x.strides) for x in state) and is_empty(state, features):
        return None
    p, n = given.plan, math.prod(state.z.shape[:-1])
    if p.pad == p.rows and p.width_pad == p.width:
        kv, z = (np.array(x, given.dtype, order="C").reshape(n, *x.shape[state.z.ndim - 1 :]) for x in state[:2])
        shift = np.maximum(state.shift.reshape(n, p.total), given.sentinel, order="C", dtype=given.dtype)
    else:
        kv, z, shift = _padded_state(given, features, state, n)
    unknown = np.isnan(shift)
    if unknown.any():  # comparisons pass NaN over: the sums keep it, which everything is made of
        kv[unknown], z[unknown], shift[unknown] = np.nan, np.nan, 0
    return State(kv, z, shift)


def _padded_state(given: Layout, features: Features, state: State, n: int) -> State:
    p = given.plan
    kv, z = np.zeros((n, p.total, p.width_pad), given.dtype), np.zeros((n, p.total), given.dtype)
    shift = np.full((n, p.total), lowest(given, features), given.dtype)
    for i in range(len(features.map.activations)):
        inside, outside = slice(i * p.pad, i * p.pad + p.rows), slice(i * p.rows, (i + 1) * p.rows)
        kv[:, inside, : p.width] = state.kv[..., outside, :].reshape(n, p.rows, p.width)
        z[:, inside] = state.z[..., outside].reshape(n, p.rows)
        shift[:, inside] = np.maximum(state.shift[..., outside].reshape(n, p.rows).astype(given.dtype), given.sentinel)
    return State(kv, z, shift)


def to_state(given: Layout, features: Features, internal: State, batch: tuple[int, ...]) -> State:
    """Undo `to_internal`."""
    p, m = given.plan, features.count
    rows: Any = slice(0, m)
    if p.pad > p.rows and m > p.rows:
        rows = np.concatenate([np.arange(p.rows) + i * p.pad for i in range(len(features.map.activations))])
    shift = internal.shift[:, rows]
    shift = np.where(shift <= kernels.ABSENT[p.element * 8], -np.inf, shift).astype(given.dtype)
    kv = np.ascontiguousarray(internal.kv[:, rows, : p.width])
    return State(kv.reshape(*batch, m, p.width), internal.z[:, rows].reshape(*batch, m), shift.reshape(*batch, m))
