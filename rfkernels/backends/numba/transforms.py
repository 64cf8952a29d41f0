"""Features of rows themselves: projected, activated and written, tile by tile."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from llvmlite import ir

from rfkernels._arrays import dtype_name
from rfkernels._checks import check_finite_arrays
from rfkernels.activations import Program
from rfkernels.backends.numba import heads, kernels, passes, threads
from rfkernels.backends.numba.compiling import call, entry, up
from rfkernels.backends.numba.emitter import Emitter
from rfkernels.backends.numba.hadamard_kernels import projections
from rfkernels.backends.numba.jit import Code, Machine, compile_module, machine
from rfkernels.backends.numba.lowering import emit
from rfkernels.backends.numba.packing import Layout, address, pack_weights, plan_of, scratch
from rfkernels.backends.numba.passes import Tasks
from rfkernels.backends.numba.records import Held
from rfkernels.backends.numba.schedule_records import queries_at
from rfkernels.backends.numba.schedule_steps import load_queries, records
from rfkernels.backends.numba.structured import hadamard
from rfkernels.features import Features, SideName


def transform(x: Any, features: Features, side: SideName, check: bool) -> Any:
    """Do what `rfkernels.backends.transform` does."""
    batch = np.broadcast_shapes(x.shape[:-2], features.batch)
    out = np.empty((*batch, x.shape[-2], features.count), x.dtype)
    own = features if side == "query" else _turned(features)
    given, activation = _layout(own, x, check)
    h = heads.heads(given, own, pack_weights(given, own), batch, {"q": x, "out": out}, None)
    tasks, tile = Tasks(h), given.plan.tile
    # Attention divides by the count, which the exponents of its queries hold; features are to be divided by the root.
    root = math.sqrt(own.count)
    divisor = np.full(tile + given.plan.column_step, 1 / root if own.map.exponential else root, given.dtype)

    def write(some: tuple[int, int], low: int, high: int) -> int:
        own = given.held.address, scratch(given), tasks.at(0), activation.addresses["features"], address(divisor)
        return write_features(*own, given.plan.rows * out.itemsize, *some, low, high)

    count = h.threads if h.worth_threads else 1
    spans = passes.cut(h.length, max(1, min(4 * count, h.length // tile)) if count > 1 else 1, tile)
    work = [partial(write, some, *span) for span in spans for some in h.runs()]
    if threads.run(work, count) != 0:
        check_finite_arrays(x=x)
    return out


@entry
def write_features(
    plan: int,
    scratch: int,
    tasks: int,
    activation: int,
    divisor: int,
    apart: int,
    first: int,
    last: int,
    low: int,
    high: int,
) -> int:
    """Write the features of rows low <= i < high of heads first <= h < last; return 1 if some input is not finite.

    Those of one activation lie so many bytes apart from those of the next.
    """
    for head in range(first, last):
        p, w, s, t = records(plan, scratch, tasks, head)
        g, i, q_row = queries_at(t.queries, 0), low, p.total + p.column_step
        while i < high:
            n = min(p.tile, high - i)
            if load_queries(p, w, s, t, g.q + i * t.q_row, n, 1)[0] == 0:
                return 1
            call(activation, (s.query, q_row, s.offsets, w.log_weight, p.pad, up(n, p.row_step)))
            out = g.out + i * t.out_row
            for start in range(0, p.total, p.pad):
                call(p.unpack, (s.query + start * p.element, q_row, divisor, n, p.rows, out, t.out_row))
                out += apart
            i += n
    return 0


_turned_features: WeakKeyDictionary[Features, Features] = WeakKeyDictionary()


def _turned(features: Features) -> Features:
    """Return features whose queries are what were keys."""
    if all(x is None for side in (features.query, features.key) for x in side):
        return features
    if features not in _turned_features:
        _turned_features[features] = replace(features, query=features.key, key=features.query)
    return _turned_features[features]


def _layout(features: Features, x: Any, check: bool) -> tuple[Layout, Code]:
    """Lay out a pass that writes features, and return it with the code of their activations."""
    target, bits = machine(), 64 if x.dtype == np.float64 else 32
    programs, factors = features.map.programs(), hadamard(features, target.step(bits))
    activation = _activation(target, bits, programs)
    code = (kernels.shared(target, bits), *(() if factors is None else (projections(target, bits, features.dim),)))
    sizes = features.dim, features.rows, len(programs), features.dim
    held, shape = _plan(target, bits, code, sizes, dtype_name(x.dtype), check)
    dtype = np.float32 if bits == 32 else np.float64
    return Layout(target, dtype, held, kernels.SENTINEL[bits], code, shape, factors), activation


@lru_cache(64)
def _plan(
    target: Machine, bits: int, code: tuple[Code, ...], sizes: tuple[int, int, int, int], name: str, check: bool
) -> tuple[Held[Any], tuple[Any, ...]]:
    wide = f"float{bits}"
    return plan_of(target, bits, code, sizes, (name, wide, wide, name), check)


@lru_cache(64)
def _activation(target: Machine, bits: int, programs: tuple[Program, ...]) -> Code:
    """Compile what activates projections (row r of u is x_r) in place; activation i writes from column i · pad on."""
    module, lanes = ir.Module(name="rfkernels_features"), target.lanes(bits)
    e = Emitter(module, "features", "u u_row offsets add pad count", bits, lanes)
    u, u_row, offsets, add, pad, count = e.arguments
    m, starts = e.math, [e.mul(pad, i) for i in range(len(programs))]
    with e.loop(0, count) as r:
        row, offset = e.mul(r, u_row), m.splat(e.load(offsets, r))
        with e.loop(0, pad, lanes) as j:
            projected = e.load_vector(u, e.add(row, j))
            for program, start in zip(programs, starts, strict=True):
                value = emit(program, m, projected, m.add(offset, e.load_vector(add, e.add(start, j))))
                e.store_vector(value, u, e.add(row, start, j))
    e.finish()
    return compile_module(module, target.width)
