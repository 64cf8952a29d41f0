"""Attention over blocks: what `attention` does when keys are grouped or some of them are heavy."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels._arrays import is_jax, namespace
from rfkernels._checks import broadcast_batch, check_finite_arrays, check_mask, result_dtype
from rfkernels.backends import Pass, choose
from rfkernels.features import Features, check_features
from rfkernels.fitting import check_map, check_scale
from rfkernels.grouping import BlockState, Far, Groups, Plan, fit_groups, heavy_keys, plan_for
from rfkernels.grouping.fitting import check_count
from rfkernels.grouping.schedule import Rows


def attend(
    q: Any,
    k: Any,
    v: Any,
    features: Features | None,
    groups: Any,
    heavy: Any,
    *,
    scale: float | None,
    causal: bool,
    window: int | None,
    mask: Any,
    segment_ids: Any,
    state: Any,
    full: bool,
    backend: str | None,
    check_finite: bool,
) -> Pass:
    """Run a pass with near and heavy keys exact and all others in sums (arguments as `attention`, checked there)."""
    if segment_ids is not None:
        raise ValueError("segment_ids= cannot be combined with groups= or heavy=: run each sequence by itself")
    length, keys = q.shape[-2], k.shape[-2]
    if causal and length > keys:
        raise ValueError(
            f"a causal pass with groups= or heavy= needs a key for each query, got lengths {length} and {keys}"
        )
    if check_finite:
        check_finite_arrays(q=q, k=k, v=v)
    far = _far(q, k, v, features, groups, scale, mask, causal)
    shapes = {"features": () if features is None else features.batch}
    if far.groups is not None:
        shapes["groups"] = far.groups.batch
    merged = 0 if far.groups is not None or far.features is not None else int(groups)
    plan = plan_for(window, causal, full, merged)
    start = _state(state, far, plan, k, v)
    if start is not None:
        shapes["state"] = start.mask.shape[:-1]
    positions = _positions(heavy, q, k, mask, far, causal, start)
    shapes["heavy"] = positions.shape[:-1]
    broadcast_batch(q=q.shape[:-2], k=k.shape[:-2], v=v.shape[:-2], **shapes)
    check_mask(mask, k, q=q.shape[:-2], v=v.shape[:-2], **shapes)
    xp = namespace(q, k, v)
    seen = xp.ones(keys, bool) if mask is None else mask
    chosen = choose(backend, q, k, v, mask=mask, state=start, groups=far.groups, heavy=positions)
    return chosen.blocks(Rows(q, k, v, seen, positions), far, plan, start, result_dtype(xp, q, k, v))


def _far(q: Any, k: Any, v: Any, features: Features | None, groups: Any, scale: Any, mask: Any, causal: bool) -> Far:
    """Return what stands for far keys."""
    if features is not None:
        check_features(features, "k", k)
        try:
            check_map(features.map)
        except ValueError as error:
            raise ValueError(
                "groups= and heavy= join exact weights of the exponential kernel with those of features, which must be "
                "exponential, nonnegative and of that kernel, such as 'positive' ones"
            ) from error
        check_no_scale(scale, "features")
    if groups is None:
        if features is None:
            raise TypeError("features must be given, or groups=: heavy= alone says nothing of the other keys")
        return Far(None, features, features.scale)
    if isinstance(groups, Groups):
        check_no_scale(scale, "groups")
        _check_groups(groups, k, v, features)
        return Far(groups, features, groups.scale)
    check_count(groups, "groups, if not a Groups (see rfkernels.fit_groups),")
    if causal and features is None:
        return Far(None, None, check_scale(scale, k.shape[-1]))
    if causal:
        raise ValueError(
            "groups must be a Groups (rfkernels.fit_groups) where a causal pass has features as well: groups that are "
            f"merged from the keys themselves have no centres for features to be of what is left; got {groups!r}"
        )
    scale = scale if features is None else _number(features.scale)
    found = fit_groups(q, k, groups, v=v if features is None else None, scale=scale, mask=mask)
    return Far(found, features, found.scale)


def check_no_scale(scale: Any, owner: str) -> None:
    """Refuse a scale beside what has one."""
    if scale is not None:
        raise ValueError(
            f"scale= goes with groups= given as a number: {owner} have a scale of their own; got {scale!r}"
        )


def _check_groups(groups: Groups, k: Any, v: Any, features: Features | None) -> None:
    """Require centres of the keys' width, and the scale of the features."""
    if groups.cross is not None and groups.cross.shape[-2:] != (k.shape[-1], v.shape[-1]):
        raise ValueError(f"groups were fitted with values of width {groups.cross.shape[-1]}, but v has shape {v.shape}")
    dim = groups.centres.shape[-1]
    if dim != k.shape[-1] or groups.metric.shape[-2:] != (dim, dim):
        raise ValueError(
            f"groups must have centres (*batch, count, {k.shape[-1]}) and a metric (*batch, {k.shape[-1]}, "
            f"{k.shape[-1]}), got {groups.centres.shape} and {groups.metric.shape}"
        )
    if features is None or is_jax(groups.scale) or is_jax(features.scale):
        return
    if not np.isclose(float(groups.scale), float(features.scale), rtol=2**-20):
        raise ValueError(f"groups and features must have one scale, got {groups.scale} and {features.scale}")


def _number(scale: Any) -> float | None:
    """Return a scale as a number; None, that of attention, if JAX traces it."""
    try:
        return float(scale)
    except TypeError:
        return None


def _positions(heavy: Any, q: Any, k: Any, mask: Any, far: Far, causal: bool, state: BlockState | None) -> Any:
    """Return the positions of heavy keys."""
    keys = k.shape[-2]
    if heavy is None:
        return np.zeros(0 if state is None else state.heavy_mask.shape[-1], int)
    if isinstance(heavy, np.ndarray) or is_jax(heavy):
        return _check_positions(heavy, keys, causal)
    check_count(heavy, "heavy, if not an array of positions,")
    if causal:
        return np.arange(heavy)
    return heavy_keys(q, k, heavy, scale=_number(far.scale), mask=mask)


def _check_positions(heavy: Any, keys: int, causal: bool) -> Any:
    """Require different positions; of a causal pass they may be still to come."""
    if heavy.dtype.kind not in "iu" or heavy.ndim < 1:
        raise ValueError(f"heavy must hold integers (*batch, heavy), got dtype {heavy.dtype} and shape {heavy.shape}")
    if _traced(heavy):
        return heavy
    given = np.sort(np.asarray(heavy), -1)
    if given.size and (given.min() < 0 or (given.max() >= keys and not causal)):
        raise ValueError(f"heavy must hold positions of at least 0 and less than {keys}, got {given.tolist()}")
    if np.any(given[..., 1:] == given[..., :-1]):
        raise ValueError(f"heavy must not hold a position twice, got {given.tolist()}")
    return heavy


def _traced(x: Any) -> bool:
    if not is_jax(x):
        return False
    import jax

    return isinstance(x, jax.core.Tracer)


def _state(state: Any, far: Far, plan: Plan, k: Any, v: Any) -> BlockState | None:
    """Require a state of such a pass."""
    if state is None:
        return None
    if not plan.causal:
        raise ValueError(
            "state= cannot be combined with groups= or heavy= in a bidirectional pass: its keys have no position"
        )
    if not isinstance(state, BlockState):
        raise TypeError(
            "state must be a BlockState with groups= or heavy= (such a pass with full=True returns one), got "
            f"{type(state).__name__}"
        )
    assert plan.reach is not None
    held = (plan.reach + 1) * plan.block
    if state.keys.shape[-2:] != (held, k.shape[-1]) or state.values.shape[-2:] != (held, v.shape[-1]):
        raise ValueError(
            f"state must hold keys (*batch, {held}, {k.shape[-1]}) and values (*batch, {held}, {v.shape[-1]}) for this "
            f"window, got {state.keys.shape} and {state.values.shape}"
        )
    return state
