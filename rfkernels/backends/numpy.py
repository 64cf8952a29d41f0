"""The NumPy backend: the executable specification as it is. Slow when causal, and the oracle in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels import core, packed, partials
from rfkernels._arrays import accumulator
from rfkernels._checks import check_finite_arrays
from rfkernels.backends import Backend, Pass
from rfkernels.core import Options
from rfkernels.features import Features
from rfkernels.grouping import BlockState, Far, Plan, schedule
from rfkernels.grouping.schedule import Rows
from rfkernels.partials import Partial
from rfkernels.state import State


def _prepare(state: State, *arrays: Any) -> tuple[Any, ...]:
    dtype = accumulator(np, state.kv, *arrays)
    kv, z, shift, *rest = (np.asarray(x).astype(dtype) for x in (*state, *arrays))
    return State(kv, z, shift), *rest


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
    state, q, k, v = _prepare(state, q, k, v)
    part, after = packed.attend(np, q, k, v, features, options, mask, segments, state)
    return _finish(part, after, dtype)


def _write(state: State, k: Any, v: Any, features: Features, mask: Any, check: bool) -> State:
    if check:
        check_finite_arrays(k=k, v=v)
    state, k, v = _prepare(state, k, v)
    return core.write(np, state, k, v, features, mask)


def _read(state: State, q: Any, features: Features, full: bool, check: bool, dtype: Any) -> Pass:
    if check:
        check_finite_arrays(q=q)
    state, q = _prepare(state, q)
    return _finish(core.read(np, state, q, features), state, dtype)


def _finish(part: Partial, state: State | None, dtype: Any) -> Pass:
    log, sign = partials.log_denominator(np, part)
    return Pass(partials.normalize(np, part).astype(dtype), log, sign, state)


def blocks(rows: Rows, far: Far, plan: Plan, state: BlockState | None, dtype: Any) -> Pass:
    """Run a pass over blocks as it is specified."""
    sums = accumulator(np, rows.q, rows.k, rows.v, None if state is None else state.keys)
    q, k, v = (x.astype(sums) for x in rows[:3])
    part, after = schedule.attend(np, Rows(q, k, v, rows.mask, rows.heavy), far, plan, state)
    log, sign = partials.log_denominator(np, part)
    return Pass(partials.normalize(np, part).astype(dtype), log, sign, after if plan.full else None)


BACKEND = Backend("numpy", _attend, _write, _read, blocks)
