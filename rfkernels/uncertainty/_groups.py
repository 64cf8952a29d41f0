"""Features in groups of rows that are drawn alike and independently, and the states that belong to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from rfkernels._arrays import namespace
from rfkernels.features import Features
from rfkernels.state import DecodeState, State

FEWEST, MOST = 8, 32


def partition(features: Features) -> Any:
    """Return which rows are in which group, (groups, rows of a group): 8 groups or as few more as divide the rows.

    Groups are made of whole blocks if there are enough, and of parts of blocks otherwise. Rows of one block are coupled
    so that their errors cancel in part: errors estimated from parts of it as if they were independent are too large if
    anything. Antithetic rows stay together.

    Raises
    ------
    ValueError
        If it is not known which rows were drawn together, or they cannot be divided equally.
    """
    if features.blocks is None:
        raise ValueError(
            "a standard error needs rows that are drawn independently, in blocks that features.blocks names: those of "
            "quasi-random and stratified samplers all depend on each other, as do learned ones, and of features made "
            "by hand it is not known (Features(..., blocks=))"
        )
    size, copies = features.blocks
    rows = features.rows // copies
    if size < 1 or copies < 1 or features.rows % copies:
        raise ValueError(f"features have {features.rows} rows, which blocks={features.blocks} do not divide")
    groups = None if rows % size else _divisor(rows // size)
    groups = _divisor(rows) if groups is None else groups
    if groups is None:
        raise ValueError(
            f"a standard error needs {FEWEST} to {MOST} groups of equally many rows: features have {features.rows} in "
            f"{copies} copies, and a multiple of {FEWEST * copies} is wanted"
        )
    first = np.arange(rows).reshape(groups, 1, -1)
    return (first + rows * np.arange(copies)[:, None]).reshape(groups, -1)


def _divisor(units: int) -> int | None:
    return next((groups for groups in range(FEWEST, MOST + 1) if units % groups == 0), None)


def features_of(features: Features, index: Any, axes: int) -> Features:
    """Return the groups as one more batch axis, before `axes` others."""
    projection, log_weight = _split(features.projection, index, 2, axes), _split(features.log_weight, index, 1, axes)
    return replace(features, projection=projection, log_weight=log_weight, blocks=None)


def _columns(features: Features, index: Any) -> Any:
    """Return which feature columns the rows of each group have, in the order that a group's own state has them."""
    return np.concatenate([index + i * features.rows for i in range(len(features.map.activations))], -1)


def _split(x: Any, index: Any, tail: int, axes: int) -> Any:
    """Turn the axis that `tail` counts from the end into groups, which go before `axes` batch axes."""
    xp, axis, own = namespace(x), x.ndim - tail, x.ndim - tail
    taken = xp.take(x, index.reshape(-1), axis)
    parts = taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return xp.moveaxis(parts, axis, 0).reshape(
        len(index), *[1] * (axes - own), *x.shape[:axis], *parts.shape[axis + 1 :]
    )


def _whole(x: Any, index: Any, tail: int) -> Any:
    """Undo `_split`."""
    xp = namespace(x)
    axis = x.ndim - tail - 1
    joined = xp.moveaxis(x, 0, axis)
    joined = joined.reshape(*joined.shape[:axis], index.size, *joined.shape[axis + 2 :])
    return xp.take(joined, np.argsort(index, axis=None), axis)


def _sums(state: Any, change: Callable[[Any, int], Any]) -> Any:
    if isinstance(state, DecodeState):
        return state._replace(state=_sums(state.state, change))
    return State(change(state.kv, 2), change(state.z, 1), change(state.shift, 1))


def state_of(state: Any, features: Features, index: Any, axes: int) -> Any:
    """Return the state of each group, from that of all features; None and what is no state are returned as they are."""
    if not isinstance(state, State | DecodeState):
        return state
    columns = _columns(features, index)
    return _sums(state, lambda x, tail: _split(x, columns, tail, axes))


def whole_state(state: Any, features: Features, index: Any) -> Any:
    """Return the state of all features from those of the groups."""
    if state is None:
        return None
    columns = _columns(features, index)
    return _sums(state, lambda x, tail: _whole(x, columns, tail))
