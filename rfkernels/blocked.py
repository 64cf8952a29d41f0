"""Attention over blocks: what `attention` does when keys are grouped or some of them are heavy."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels._arrays import is_jax, namespace, unmasked
from rfkernels._checks import (
    broadcast_batch,
    check_array,
    check_known,
    check_mask,
    check_plain,
    is_tracer,
    result_dtype,
    static_hint,
)
from rfkernels.backends import Pass, choose
from rfkernels.features import Features, check_features
from rfkernels.fitting import check_map
from rfkernels.grouping import BlockState, Far, Groups, Plan, plan_for, summaries
from rfkernels.grouping.fitting import Steps, check_count, checked, found, heaviest, received, scale_for
from rfkernels.grouping.schedule import Rows
from rfkernels.state import State, check_position, check_sums


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
    check_known(batch=True, q=q, k=k, v=v)
    length, keys = q.shape[-2], k.shape[-2]
    if causal and length > keys:
        raise ValueError(
            f"a causal pass with groups= or heavy= needs a key for each query, got lengths {length} and {keys}"
        )
    check_mask(mask, k, q=q.shape[:-2], v=v.shape[:-2])
    chosen = choose(backend, q, k, v, mask=mask)
    if check_finite:
        chosen.check_finite(q=q, k=k, v=v)
    k, v = unmasked(k, mask), unmasked(v, mask)
    sample = _Sample(q, k, v, mask, chosen.steps)
    far = _far(sample, features, groups, scale, causal)
    shapes = {"features": () if features is None else features.batch}
    if far.groups is not None:
        shapes["groups"] = far.groups.batch
    merged = 0 if far.groups is not None or far.features is not None else int(groups)
    plan = plan_for(window, causal, full, merged)
    if plan.reach is not None and state is None and not (causal and full):
        plan = plan._replace(reach=min(plan.reach, max(length, keys) // plan.block + 1))
    start = _state(state, far, plan, k, v)
    if start is not None:
        shapes["state"] = start.heavy_mask.shape[:-1]
    positions = _positions(heavy, sample, far, causal, start)
    shapes["heavy"] = positions.shape[:-1]
    broadcast_batch(q=q.shape[:-2], k=k.shape[:-2], v=v.shape[:-2], **shapes)
    check_mask(mask, k, q=q.shape[:-2], v=v.shape[:-2], **shapes)
    _check_seen(positions, start)
    xp = namespace(q, k, v)
    seen = xp.ones(keys, bool) if mask is None else mask
    chosen = choose(backend, q, k, v, mask=mask, state=start, groups=far.groups, heavy=positions)
    return chosen.blocks(Rows(q, k, v, seen, positions), far, plan, start, result_dtype(xp, q, k, v))


class _Sample:
    """What groups and heavy keys are found from; the attention that keys receive is found once, if it is needed."""

    def __init__(self, q: Any, k: Any, v: Any, mask: Any, steps: Steps) -> None:
        self.q, self.k, self.v, self.mask, self.steps = q, k, v, mask, steps
        self._received: tuple[Any, Any, Any, Any] | None = None

    @property
    def empty(self) -> bool:
        """Whether there are no keys, or no queries."""
        return not (self.q.shape[-2] and self.k.shape[-2])

    def _found(self, scale: Any) -> tuple[Any, Any, Any, Any]:
        """Return pooled queries and keys in the dtype of sums, the scale, and that attention."""
        if self._received is None:
            q, k, scale = checked(self.q, self.k, scale, self.mask, check_finite=None)
            self._received = q, k, scale, received(q, k, scale, self.mask, self.steps)
        return self._received

    def groups(self, count: int, scale: Any, moving: bool) -> Groups:
        """Return groups of these very keys, with their values if those are to move; of no keys any do."""
        if self.empty:
            xp, dim = namespace(self.q, self.k), self.k.shape[-1]
            nothing = xp.zeros((dim, dim), xp.float32)
            return Groups(xp.zeros((count, dim), xp.float32), nothing, nothing, None, scale)
        q, k, scale, mass = self._found(scale)
        return found(q, k, self.v if moving else None, count, scale, self.mask, mass, self.steps)

    def heavy(self, count: int, scale: Any) -> Any:
        """Do what `heavy_keys` does."""
        return np.zeros(0, int) if self.empty else heaviest(self._found(scale)[-1], self.mask, count)


def _far(sample: _Sample, features: Features | None, groups: Any, scale: Any, causal: bool) -> Far:
    """Return what stands for far keys."""
    k, v = sample.k, sample.v
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
    if not isinstance(groups, int | np.integer):
        raise TypeError(
            f"groups must be a Groups (see rfkernels.fit_groups) or a number of them, got {type(groups).__name__}"
            f"{static_hint(groups)}"
        )
    check_count(groups, "groups, if not a Groups (see rfkernels.fit_groups),")
    if causal and features is None:
        return Far(None, None, scale_for(scale, sample.q, k))
    if causal:
        raise ValueError(
            "groups must be a Groups (rfkernels.fit_groups) where a causal pass has features as well: groups that are "
            f"merged from the keys themselves have no centres for features to be of what is left; got {groups!r}"
        )
    scale = scale_for(scale, sample.q, k) if features is None else _number(features.scale)
    fitted = sample.groups(int(groups), scale, moving=features is None)
    return Far(fitted, features, fitted.scale)


def check_no_scale(scale: Any, owner: str) -> None:
    """Refuse a scale beside what has one."""
    if scale is not None:
        raise ValueError(
            f"scale= goes with groups= given as a number: {owner} have a scale of their own; got {scale!r}"
        )


def _check_groups(groups: Groups, k: Any, v: Any, features: Features | None) -> None:
    """Require centres of the keys' width, and the scale of the features."""
    dim, width = k.shape[-1], v.shape[-1]
    arrays = {name: getattr(groups, name) for name in ("centres", "metric", "spread", "cross")}
    arrays = {name: x for name, x in arrays.items() if name != "cross" or x is not None}
    for name, x in arrays.items():
        check_array(f"groups.{name}", x, 2)
    if groups.cross is not None and groups.cross.shape[-2:] != (dim, width):
        raise ValueError(
            f"groups.cross must have shape (*batch, {dim}, {width}), fitted with values such as v, got "
            f"{groups.cross.shape}"
        )
    shapes = [arrays[name].shape for name in ("centres", "metric", "spread")]
    if groups.size < 1 or groups.dim != dim or any(shape[-2:] != (dim, dim) for shape in shapes[1:]):
        raise ValueError(
            f"groups must have centres (*batch, count, {dim}), a metric and a spread (*batch, {dim}, {dim}) for these "
            f"keys, got {', '.join(str(shape) for shape in shapes)}"
        )
    broadcast_batch(**{f"groups.{name}": x.shape[:-2] for name, x in arrays.items()})
    if features is None or is_tracer(groups.scale) or is_tracer(features.scale):
        return
    if not np.isclose(float(groups.scale), float(features.scale), rtol=2**-20):
        raise ValueError(f"groups and features must have one scale, got {groups.scale} and {features.scale}")


def _number(scale: Any) -> Any:
    """Return a scale as a number unless JAX traces it."""
    return scale if is_tracer(scale) else float(scale)


def _positions(heavy: Any, sample: _Sample, far: Far, causal: bool, state: BlockState | None) -> Any:
    """Return the positions of heavy keys."""
    keys = sample.k.shape[-2]
    held = 0 if state is None else state.heavy_mask.shape[-1]
    if heavy is None:
        return np.full(held, -1)  # no other than those that were seen
    if isinstance(heavy, np.ndarray) or is_jax(heavy):
        positions = _check_positions(heavy, keys, causal)
    else:
        check_count(heavy, "heavy, if not an array of positions,")
        if not causal:
            return sample.heavy(heavy, _number(far.scale))
        positions = np.arange(heavy)
    if state is not None and positions.shape[-1] != held:
        raise ValueError(
            f"heavy must be as in the pass that the state comes from, of {held} positions, got {positions.shape[-1]}"
        )
    return positions


def _check_positions(heavy: Any, keys: int, causal: bool) -> Any:
    """Require different positions; of a causal pass they may be still to come."""
    check_plain("heavy", heavy, "leave out the positions that it masks")
    if heavy.dtype.kind not in "iu" or heavy.ndim < 1:
        raise ValueError(
            f"heavy must hold integers (*batch, heavy), got dtype {heavy.dtype} and shape {heavy.shape}"
            f"{static_hint(heavy, 'a number')}"
        )
    if is_tracer(heavy):
        return heavy
    given = np.sort(np.asarray(heavy), -1)
    if given.size and (given.min() < 0 or (given.max() >= keys and not causal)):
        raise ValueError(f"heavy must hold positions of at least 0 and less than {keys}, got {given.tolist()}")
    if np.any(given[..., 1:] == given[..., :-1]):
        raise ValueError(f"heavy must not hold a position twice, got {given.tolist()}")
    return heavy


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
    _check_held(state)
    assert plan.reach is not None
    dim, width, held = k.shape[-1], v.shape[-1], (plan.reach + 1) * plan.block
    if any((x is None) != (not plan.merged) for x in (state.mass, state.within)):
        raise ValueError(
            "state must come from a pass with the same groups; those that are merged from its keys are its own"
        )
    sums = plan.merged or summaries.columns(far), width + (dim + 1 if far.features is None else 0)
    parts: dict[str, tuple[Any, tuple[int, ...]]] = {
        "keys": (state.keys, (held, dim)),
        "values": (state.values, (held, width)),
        "mask": (state.mask, (plan.reach + 1, plan.block)),
        "heavy_keys": (state.heavy_keys, (state.heavy_mask.shape[-1], dim)),
        "heavy_values": (state.heavy_values, (state.heavy_mask.shape[-1], width)),
        "sums.kv": (state.sums.kv, sums),
    }
    if plan.merged:
        parts["mass"], parts["within"] = (state.mass, (sums[0] + plan.block,)), (state.within, (dim, dim + width))
    if any(x.shape[-len(tail) :] != tail for x, tail in parts.values()):
        listed = (
            f"{name} (*batch, {', '.join(map(str, tail))}), got {x.shape[-len(tail) :]}"
            for name, (x, tail) in parts.items()
        )
        raise ValueError(
            f"state must come from a pass with the same window, groups and features, and hold {'; '.join(listed)}"
        )
    return state


def _check_held(state: BlockState) -> None:
    """Require arrays of the types that a pass returned, as states that were saved and made again may not have."""
    if not isinstance(state.sums, State):
        raise TypeError(f"state.sums must be a State, got {type(state.sums).__name__}")
    check_sums("state.sums", state.sums)
    for name in ("keys", "values", "heavy_keys", "heavy_values"):
        check_array(f"state.{name}", getattr(state, name), 2)
    for name, axes in (("mask", 2), ("heavy_mask", 1)):
        x = getattr(state, name)
        if not (isinstance(x, np.ndarray) or is_jax(x)) or x.dtype != bool or x.ndim < axes:
            kind = getattr(x, "dtype", type(x).__name__)
            raise TypeError(f"state.{name} must be a boolean array with at least {axes} axes, got {kind}")
    check_position(state.position)


def _check_seen(positions: Any, state: BlockState | None) -> None:
    """Require of heavy keys that were seen that they are not still to come: they would be written over."""
    if state is None or not positions.size or any(map(is_tracer, (positions, state.heavy_mask, state.position))):
        return
    late = np.asarray(state.heavy_mask) & (np.asarray(positions) >= int(state.position))
    if late.any():
        never = sorted(set(np.broadcast_to(positions, late.shape)[late].tolist()))
        raise ValueError(
            "heavy must be as in the pass that the state comes from, which has seen its heavy keys among the first "
            f"{state.position}, got {never} in place of some of them"
        )
