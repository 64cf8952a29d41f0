"""Backends that run the executable specification as it is."""

from __future__ import annotations

from typing import Any

from rfkernels import core, packed, partials
from rfkernels._arrays import accumulator
from rfkernels._checks import check_finite_arrays
from rfkernels.backends import Backend, Pass
from rfkernels.core import Options
from rfkernels.features import Features
from rfkernels.partials import Partial
from rfkernels.state import State


def specification(name: str, xp: Any) -> Backend:
    """Return the backend that runs `rfkernels.core` on the namespace `xp`."""

    def prepare(state: State, *arrays: Any) -> tuple[Any, ...]:
        dtype = accumulator(xp, state.kv, *arrays)
        given = (xp.asarray(x).astype(dtype) for x in (*state, *arrays))
        kv, z, shift, *rest = given
        return State(kv, z, shift), *rest

    def attend(
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
        state, q, k, v = prepare(state, q, k, v)
        part, after = packed.attend(xp, q, k, v, features, options, mask, segments, state)
        return finish(part, after, dtype)

    def write(state: State, k: Any, v: Any, features: Features, mask: Any, check: bool) -> State:
        if check:
            check_finite_arrays(k=k, v=v)
        state, k, v = prepare(state, k, v)
        return core.write(xp, state, k, v, features, mask)

    def read(state: State, q: Any, features: Features, full: bool, check: bool, dtype: Any) -> Pass:
        if check:
            check_finite_arrays(q=q)
        state, q = prepare(state, q)
        return finish(core.read(xp, state, q, features), state, dtype)

    def finish(part: Partial, state: State | None, dtype: Any) -> Pass:
        log, sign = partials.log_denominator(xp, part)
        return Pass(partials.normalize(xp, part).astype(dtype), log, sign, state)

    return Backend(name, attend, write, read)
