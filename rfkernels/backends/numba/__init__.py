"""The Numba backend: fused tile pipelines for NumPy arrays on the CPU, on all cores."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rfkernels._arrays import dtype_name
from rfkernels._checks import broadcast_batch, check_finite_arrays
from rfkernels.backends import Backend, Pass
from rfkernels.backends.numba import blocks, exact, given, heads, passes
from rfkernels.backends.numba.exact_rows import few_rows
from rfkernels.backends.numba.finite import check_finite
from rfkernels.backends.numba.group_steps import STEPS
from rfkernels.backends.numba.heads import Heads
from rfkernels.backends.numba.internal import to_internal, to_state
from rfkernels.backends.numba.jit import host_width, machine
from rfkernels.backends.numba.packed import packed
from rfkernels.backends.numba.packing import Layout, layout, pack_weights
from rfkernels.backends.numba.spreads import spread
from rfkernels.backends.numba.threads import thread_count
from rfkernels.backends.numba.transforms import transform
from rfkernels.core import Options
from rfkernels.features import Features
from rfkernels.state import State


def describe() -> dict[str, str]:
    """Say what kernels are compiled for and how many threads run them."""
    import llvmlite.binding as llvm

    return {
        "cpu": llvm.get_host_cpu_name(),
        "vector bytes": f"{machine().width} (host {host_width()})",
        "threads": str(thread_count()),
    }


def _layout(features: Features, state: State, dtype: Any, width: int, check: bool, **arrays: Any) -> Layout:
    double = any(x.dtype == np.float64 for x in (state.kv, *arrays.values()))
    names = tuple(dtype_name(arrays[name].dtype) if name in arrays else "float32" for name in ("q", "k", "v"))
    out = dtype_name(np.dtype(dtype))
    return layout(features, 64 if double else 32, width, (*names, out), check)


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
    if options.window is not None and (options.kernel is None or options.kernel.norm_weight is None):
        raise ValueError(
            "window= with this map's kernel is not in the numba backend, which joins exponential kernels only; "
            "pass backend='numpy'"
        )
    given = _layout(features, state, dtype, v.shape[-1], check, q=q, k=k, v=v)
    batch = state.z.shape[:-1]
    outer = broadcast_batch(q=q.shape[:-2], keys=batch)
    out, logs = heads.outputs(outer, q.shape[-2], v.shape[-1], dtype, given.dtype, options.full)
    weights = pack_weights(given, features)
    arrays = {"q": q, "k": k, "v": v, "out": out, "mask": mask}
    h = heads.heads(given, features, weights, batch, arrays, logs, options.window)
    start = to_internal(given, features, state)
    run = partial(_run, options)
    if segments is None:
        fine, after = run(h, start)
    else:
        fine, after = packed(h, segments, batch, start, run)
        after = after if options.causal or options.window is None else None
    if not fine or (check and q.shape[-2] == 0):
        check_finite_arrays(q=q, k=k, v=v)
    log, sign = heads.log_normalizers(logs)
    return Pass(out, log, sign, None if after is None or not options.full else to_state(given, features, after, batch))


def _run(options: Options, h: Heads, start: State | None) -> tuple[bool, State | None]:
    """Run a pass over whole heads; return whether inputs were finite, and the states after it."""
    if options.causal:
        return passes.causal(h, start)
    if options.window is not None:
        return passes.two_sided(h), None  # no state goes with it
    return passes.bidirectional(h, start)


def _write(state: State, k: Any, v: Any, features: Features, mask: Any, check: bool) -> State:
    given = _layout(features, state, k.dtype, v.shape[-1], check, k=k, v=v)
    batch = state.z.shape[:-1]
    h = heads.heads(given, features, pack_weights(given, features), batch, {"k": k, "v": v, "mask": mask}, None)
    fine, after = passes.write(h, to_internal(given, features, state))
    if not fine:
        check_finite_arrays(k=k, v=v)
    return to_state(given, features, after, batch)


def _read(state: State, q: Any, features: Features, full: bool, check: bool, dtype: Any) -> Pass:
    width = state.kv.shape[-1]
    given = _layout(features, state, dtype, width, check, q=q)
    batch = np.broadcast_shapes(state.z.shape[:-1], features.batch)
    wide = State(
        np.broadcast_to(state.kv, (*batch, *state.kv.shape[-2:])),
        np.broadcast_to(state.z, (*batch, state.z.shape[-1])),
        np.broadcast_to(state.shift, (*batch, state.z.shape[-1])),
    )
    outer = np.broadcast_shapes(q.shape[:-2], batch)
    out, logs = heads.outputs(outer, q.shape[-2], width, dtype, given.dtype, full)
    h = heads.heads(given, features, pack_weights(given, features), batch, {"q": q, "out": out}, logs)
    if not passes.read(h, to_internal(given, features, wide)):
        check_finite_arrays(q=q)
    log, sign = heads.log_normalizers(logs)
    return Pass(out, log, sign, state)


BACKEND = Backend(
    "numba",
    _attend,
    _write,
    _read,
    blocks.attend,
    steps=STEPS,
    check_finite=check_finite,
    spread=spread,
    few_rows=few_rows,
    exact=exact.attend,
    transform=transform,
    given=given.attend,
)

__all__ = ["BACKEND", "describe"]
