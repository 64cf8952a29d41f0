"""Attention from features that are given: the same passes, which project nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from rfkernels._arrays import dtype_name
from rfkernels._checks import broadcast_batch, check_finite_arrays
from rfkernels.activations import Program
from rfkernels.backends.numba import heads, kernels, passes
from rfkernels.backends.numba.jit import Machine, machine
from rfkernels.backends.numba.lowering import lowered
from rfkernels.backends.numba.packing import Layout, PackedWeights, address, plan_of
from rfkernels.backends.numba.records import Held
from rfkernels.backends.numba.schedule_records import Weights

_UNCHANGED = (Program((), "u"),)
"""The activation of features that are given."""


def attend(phi_q: Any, phi_k: Any, v: Any, causal: bool, mask: Any, check: bool, dtype: Any) -> Any:
    """Do what `rfkernels.backends.given` does."""
    bits = 64 if np.float64 in (phi_q.dtype, phi_k.dtype, v.dtype) else 32
    names = tuple(dtype_name(np.dtype(x)) for x in (phi_q.dtype, phi_k.dtype, v.dtype, dtype))
    layout, weights = _prepared(machine(), bits, (phi_k.shape[-1], v.shape[-1]), names, check)
    own = {} if mask is None else {"mask": mask.shape[:-1]}
    batch = broadcast_batch(phi_k=phi_k.shape[:-2], v=v.shape[:-2], **own)
    outer = broadcast_batch(phi_q=phi_q.shape[:-2], keys=batch)
    out, _ = heads.outputs(outer, phi_q.shape[-2], v.shape[-1], dtype, layout.dtype, False)
    arrays = {"q": phi_q, "k": phi_k, "v": v, "out": out, "mask": mask}
    h = heads.heads(layout, None, weights, batch, arrays, None)
    fine, _ = (passes.causal if causal else passes.bidirectional)(h, None)
    if not fine:
        check_finite_arrays(phi_q=phi_q, phi_k=phi_k, v=v)
    return out


@lru_cache(256)
def _prepared(
    target: Machine, bits: int, sizes: tuple[int, int], names: tuple[str, ...], check: bool
) -> tuple[Layout, PackedWeights]:
    """Lay out passes over so many columns of features and of values."""
    count, width = sizes
    code = kernels.shared(target, bits), lowered(target, bits, _UNCHANGED, None)
    held, shape = plan_of(target, bits, code, (count, count, 1, width), names, check, projects=False)
    dtype = np.dtype(f"f{bits // 8}")
    zeros = np.zeros(max(held.record.total, held.record.width_pad, held.record.tile + held.record.column_step), dtype)
    places = dict.fromkeys(Weights._fields, 0)
    own = "log_weight", "query_parameters", "key_parameters", "query_centre", "key_centre"
    places |= dict.fromkeys((*own, "zeros", "base", "lowest"), address(zeros))
    weights = PackedWeights([Held(Weights(**places))], [zeros])
    return Layout(target, dtype.type, held, kernels.SENTINEL[bits], code, shape, None), weights
