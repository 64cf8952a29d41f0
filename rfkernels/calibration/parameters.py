"""What is learned of features: taken out of them, and put back."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from rfkernels._arrays import namespace, read_only
from rfkernels._checks import broadcast_batch
from rfkernels.features import Features, Side, check_features
from rfkernels.fitting.choices import check_map


def full(start: Features) -> Features:
    """Return the same features with both sides written out."""
    xp, dtype = namespace(start.projection), start.projection.dtype

    def side(given: Side) -> Side:
        matrix, linear = given.matrix, given.linear
        if matrix is None:
            matrix = xp.broadcast_to(
                xp.sqrt(start.scale) * xp.eye(start.dim, dtype=dtype), (*start.batch, *[start.dim] * 2)
            )
        if linear is None:
            linear = xp.zeros((*start.batch, start.dim), dtype)
        return Side(matrix, given.centre, linear)

    return replace(start, query=side(start.query), key=side(start.key))


def _arrays(features: Features) -> dict[str, Any]:
    """Return the arrays that are learned, by name."""
    sides = {"query": features.query, "key": features.key}
    named = {f"{name}_{part}": getattr(side, part) for name, side in sides.items() for part in ("matrix", "linear")}
    return {"projection": features.projection, "log_weight": features.log_weight, **named}


def flattened(features: Features) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is learned and what is not, in float32 with heads in the first axis."""
    jnp, axes, heads = import_module("jax.numpy"), len(features.batch), math.prod(features.batch)

    def flat(x: Any) -> Any:
        return None if x is None else jnp.asarray(x, jnp.float32).reshape(heads, *x.shape[axes:])

    scale = jnp.broadcast_to(jnp.asarray(features.scale, jnp.float32), (heads,))
    fixed = {"query_centre": flat(features.query.centre), "key_centre": flat(features.key.centre), "scale": scale}
    return {name: flat(x) for name, x in _arrays(features).items()}, fixed


def kept(start: Features, complete: Features, learned: dict[str, Any], best: Any) -> Features:
    """Return what was learned of heads that a step improved, and the start of the others."""
    if not np.any(best):
        return start
    xp = namespace(start.projection)

    def chosen(name: str, old: Any) -> Any:
        new = xp.asarray(np.asarray(learned[name]) if xp is np else learned[name], old.dtype).reshape(old.shape)
        both = xp.where(best.reshape(*best.shape, *[1] * (old.ndim - best.ndim)) > 0, new, old)
        return read_only(both) if xp is np else both

    found = {name: chosen(name, old) for name, old in _arrays(complete).items()}
    query, key = (
        Side(found[f"{name}_matrix"], side.centre, found[f"{name}_linear"])
        for name, side in (("query", complete.query), ("key", complete.key))
    )
    rows, log_weight = found["projection"], found["log_weight"]
    return replace(complete, projection=rows, log_weight=log_weight, query=query, key=key, blocks=None)


def widened(features: Features, k: Any, batch: tuple[int, ...]) -> Features:
    """Require features to start from; give them the batch axes of keys."""
    check_features(features, "k", k)
    check_map(features.map)
    if broadcast_batch(features=features.batch, k=batch) != batch:
        raise ValueError(f"features must have no batch axes that k lacks, got {features.batch} and {batch}")
    xp = namespace(features.projection)

    def wide(x: Any, axes: int) -> Any:
        return None if x is None else xp.broadcast_to(x, (*batch, *x.shape[x.ndim - axes :]))

    query, key = (Side(wide(s.matrix, 2), wide(s.centre, 1), wide(s.linear, 1)) for s in (features.query, features.key))
    rows, log_weight = wide(features.projection, 2), wide(features.log_weight, 1)
    return replace(features, projection=rows, log_weight=log_weight, query=query, key=key)
