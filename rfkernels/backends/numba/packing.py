"""Turn arrays into what schedules take: plans, packed weights, scratch memory, addresses of heads."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from rfkernels.backends.numba import kernels
from rfkernels.backends.numba.emitter import LINE
from rfkernels.backends.numba.hadamard_kernels import projections
from rfkernels.backends.numba.jit import Code, Machine, machine
from rfkernels.backends.numba.lowering import lowered
from rfkernels.backends.numba.records import Held
from rfkernels.backends.numba.schedule_records import Plan, Scratch, Weights
from rfkernels.backends.numba.structured import frozen, hadamard
from rfkernels.features import Features, Side
from rfkernels.samplers._structured import Factors

TILE = 64
"""Positions in a tile: a multiple of every register tile."""

PART = 32
"""Of them, so many are written to the state at a time where each query sees the keys before it: a multiple likewise."""

NEAR_TILE = 192
"""Keys in a tile of exact weights: with a window of 128, all that a tile of queries sees."""

_PLANS = 64
"""That are kept for each map."""

_SHAPES = 256
"""Of arrays for which it is kept where their heads lie."""

_KEPT_BYTES = 1 << 17
"""In each: where there are many heads, to find them takes no time beside what is done with them."""

_OF_MAPS = (
    "key_activation",
    "key_activation_ragged",
    "key_shift",
    "query_activation",
    "hadamard_columns",
    "hadamard_rows",
)
_ADDRESSES = Plan._fields[: Plan._fields.index("element")]


def up(n: int, step: int) -> int:
    """Round up to a multiple."""
    return -(-n // step) * step


class Layout(NamedTuple):
    """The machine, the element type and the plan of a pass, and the code that the plan's addresses lie in.

    `shape` is what packed weights depend on: the sizes, and not which kernels read them.
    """

    machine: Machine
    dtype: Any
    held: Held[Plan]
    sentinel: float
    code: tuple[Code, ...]
    shape: tuple[Any, ...]
    factors: Factors | None

    @property
    def plan(self) -> Plan:
        """The plan, as Python reads it."""
        return self.held.record


def layout(features: Features, bits: int, width: int, names: tuple[str, ...], check: bool) -> Layout:
    """Lay out a pass over arrays of the dtypes named (q, k, v and the output)."""
    target, programs = machine(), features.map.programs()
    # Held by the layout: of threads that compile at once, all but one get code that no cache keeps.
    factors = hadamard(features, target.step(bits))
    code = (
        kernels.shared(target, bits),
        lowered(target, bits, programs, features.map.slopes),
        *(() if factors is None else (projections(target, bits, features.dim),)),
    )
    sizes = features.dim, features.rows, len(programs), width
    known, key = _plans.setdefault(code[1], {}), (code[0], *code[2:], target, bits, sizes, names, check)
    found = known.get(key)
    if found is None:
        if len(known) >= _PLANS:
            known.clear()
        found = known[key] = plan_of(target, bits, code, sizes, names, check)
    held, shape = found
    dtype = np.float32 if bits == 32 else np.float64
    return Layout(target, dtype, held, kernels.SENTINEL[bits], code, shape, factors)


_plans: WeakKeyDictionary[Code, dict[tuple[Any, ...], tuple[Held[Plan], tuple[Any, ...]]]] = WeakKeyDictionary()


def plan_of(
    target: Machine,
    bits: int,
    code: tuple[Code, ...],
    sizes: tuple[int, int, int, int],
    names: tuple[str, ...],
    check: bool,
    tile: int = TILE,
    projects: bool = True,
) -> tuple[Held[Plan], tuple[Any, ...]]:
    """Return a plan, and what packed weights depend on: the sizes, and whether rows are factored."""
    shared, *own = (part.addresses for part in code)
    dim, rows, activations, width = sizes
    q, k, v, out = names
    step = target.step(bits)
    pad = up(rows, step)
    functions = {
        **{name: address for name, address in shared.items() if name in Plan._fields},
        **dict.fromkeys(_OF_MAPS, 0),
        **{name: address for part in own for name, address in part.items()},
        "pack_q": shared[f"pack_{q}"],
        "pack_k": shared[f"pack_{k}"],
        "pack_v": shared[f"pack_{v}"],
        "unpack": shared[f"unpack_{out}"],
    }
    plan = Plan(
        **functions,
        element=bits // 8,
        tile=tile,
        part=PART,
        band_tile=NEAR_TILE,
        row_step=target.rows,
        rows_at_once=target.rows_at_once,
        column_step=step,
        dim=dim,
        dim_pad=up(dim, step),
        rows=rows,
        pad=pad,
        # Rows a power of two apart would share a few sets of the cache.
        weight_row=pad + LINE * 8 // bits if projects else 0,
        total=pad * activations,
        width=width,
        width_pad=up(width, step),
        check=int(check),
    )
    sizes_alone = plan._replace(**dict.fromkeys(_ADDRESSES, 0), check=0)
    return Held(plan), (target, bits, sizes_alone, plan.hadamard_rows != 0)


_memory = threading.local()


def scratch(given: Layout) -> int:
    """Return the address of this thread's working memory, which is kept between calls."""
    known = getattr(_memory, "scratch", None)
    if known is None or known[0] != given.plan:
        _memory.scratch = None  # an interrupt may leave the buffer of another plan
        known = _memory.scratch = given.plan, Held(_allocate(given))
    return int(known[1].address)


def _allocate(given: Layout) -> Scratch:
    p = given.plan
    x, u, near = p.dim_pad + p.column_step, p.tile + p.column_step, p.band_tile + p.column_step
    sizes = {
        "x": p.tile * x,
        "xt": p.dim_pad * u,
        "y": max(up(p.dim, p.row_step) * u, p.tile * p.dim_pad),
        "offsets": u,
        "valid": u,
        "u": p.total * u,
        "sums": p.total,
        "new": p.total,
        "add": p.total,
        "v": p.tile * p.width_pad,
        "query": p.tile * (p.total + p.column_step),
        "scores": p.tile * u,
        "out": p.tile * p.width_pad,
        "denominator": u,
        "top": u,
        "near_x": p.band_tile * x,
        "near_xt": p.dim_pad * near,
        "near_v": p.band_tile * p.width_pad,
        "near_valid": near,
        "near_term": near,
        "near_scores": p.rows_at_once * near,
        "query_x": p.tile * x,
        "query_term": u,
    }
    made = Scratch(**placed(_memory, sizes, p.element))
    return made if p.weight_row else made._replace(u=made.xt)


def placed(memory: Any, sizes: dict[str, int], element: int) -> dict[str, int]:
    """Return an aligned address for each of so many elements, in a buffer that a thread keeps and that only grows."""
    bytes_of = {name: up(size * element + 64, 64) for name, size in sizes.items()}
    total = sum(bytes_of.values()) + 64
    if getattr(memory, "buffer", None) is None or memory.buffer.nbytes < total:
        memory.buffer = np.zeros(total, np.uint8)
    position = up(memory.buffer.ctypes.data, 64)
    addresses = {}
    for name, size in bytes_of.items():
        addresses[name] = position
        position += size
    return addresses


class PackedWeights(NamedTuple):
    """Addresses for each set of features, and the arrays that they point into."""

    sets: list[Held[Weights]]
    arrays: list[Any]

    def addresses(self, own: tuple[int, ...], batch: tuple[int, ...]) -> Any:
        """Return where the weights of heads are, of sets whose batch axes are their own; a number if there is one."""
        found = [x.address for x in self.sets]
        return found[0] if len(found) == 1 else np.broadcast_to(np.array(found).reshape(own), batch).ravel()


_packed: WeakKeyDictionary[Features, dict[tuple[Any, ...], PackedWeights]] = WeakKeyDictionary()


def pack_weights(given: Layout, features: Features) -> PackedWeights:
    """Return the packed arrays of features, kept for as long as features whose arrays nobody can change."""
    if not frozen(features):
        return _pack_weights(given, features)
    known = _packed.setdefault(features, {})
    shape = given.shape
    if shape not in known:
        known[shape] = _pack_weights(given, features)
    return known[shape]


def _pack_weights(given: Layout, features: Features) -> PackedWeights:
    """Fold the preprocessing of each side into its projection, padded to register tiles."""
    p = given.plan
    sets = math.prod(features.batch)
    activations = len(features.map.activations)
    arrays: list[Any] = []

    def keep(array: Any) -> tuple[int, int]:
        try:
            with np.errstate(over="raise"):
                packed = np.ascontiguousarray(array, given.dtype)
        except FloatingPointError as error:
            raise ValueError(
                f"features must fit {np.dtype(given.dtype)}, in which arrays of these dtypes are computed, also times "
                f"their scale, got scale {float(features.scale):.3g}; give arrays of float64 or a smaller scale"
            ) from error
        arrays.append(packed)
        return packed.ctypes.data, packed.nbytes // max(sets, 1)

    def flat(array: Any, *tail: int) -> Any:
        return np.broadcast_to(np.asarray(array, np.float64), (*features.batch, *tail)).reshape(sets, *tail)

    projection = flat(features.projection, p.rows, p.dim)
    scale = float(features.scale)
    log_weight = np.zeros((sets, activations, p.pad))
    log_weight[:, :, : p.rows] = flat(features.log_weight, p.rows)[:, None]
    zeros = np.zeros(max(p.total, p.dim_pad, p.width_pad, p.tile + p.column_step))
    fields: dict[str, tuple[int, int]] = {"log_weight": keep(log_weight)}
    fields |= _projections(given, features, keep, lambda side: _folded(p, projection, side, scale, flat))
    for name, side in (("query", features.query), ("key", features.key)):
        fields |= {f"{name}_{part}": found for part, found in _affine(p, features, name, side, flat, keep).items()}
    kernel = features.map.kernel
    near = kernel.norm_weight if kernel is not None and kernel.norm_weight is not None else 0.0
    constants = {
        "near_parameters": keep(np.array([near * scale, 0.0])),
        "scale": keep(np.array([scale])),
        "zeros": keep(zeros),
        "base": keep(np.full(p.tile + p.column_step, -math.log(features.count))),
        "lowest": keep(np.full(p.tile + p.column_step, given.sentinel)),
    }
    centred = int(features.query.centre is not None or features.key.centre is not None)
    shared = {name: address for name, (address, _) in constants.items()}
    centres = {name: shared["zeros"] for name in ("query_centre", "key_centre") if fields[name][0] == 0}
    packed = []
    for i in range(sets):
        own = {name: address + i * size if address else 0 for name, (address, size) in fields.items()}
        packed.append(Held(Weights(**{**own, **shared, **centres}, centred=centred)))
    return PackedWeights(packed, arrays)


def _projections(given: Layout, features: Features, keep: Any, folded: Any) -> dict[str, tuple[int, int]]:
    """Pack what projects queries and keys: rows, or the factors of Hadamard rows and the scale of these."""
    if given.factors is not None:
        # Each round takes its own part of the scale of H, lest sums between rounds outgrow the projections.
        signs = given.factors.signs / math.sqrt(features.dim)
        norms = given.factors.norms * math.sqrt(float(features.scale))
        return {"query": (0, 0), "key": (0, 0), "signs": keep(signs), "norms": keep(norms)}
    query = keep(folded(features.query))
    plain = features.query.matrix is None and features.key.matrix is None
    key = query if plain else keep(folded(features.key))
    return {"query": query, "key": key, "signs": (0, 0), "norms": (0, 0)}


def _folded(p: Plan, projection: Any, side: Side, scale: float, flat: Any) -> Any:
    """Return Tᵀ W, (sets, dim, weight_row)."""
    weights = np.zeros((len(projection), p.dim, p.weight_row))
    folded = projection * math.sqrt(scale) if side.matrix is None else projection @ flat(side.matrix, p.dim, p.dim)
    weights[:, :, : p.rows] = np.swapaxes(folded, 1, 2)
    return weights


def _affine(p: Plan, features: Features, name: str, side: Side, flat: Any, keep: Any) -> dict[str, tuple[int, int]]:
    """Pack what enters the offset a = weight |·|² + linear · (x − centre) + constant of one side."""
    scale, exponential = float(features.scale), features.map.exponential
    sets = math.prod(features.batch)
    centre = np.zeros((sets, p.dim_pad)) if side.centre is None else _padded(p, flat(side.centre, p.dim))
    constant = np.zeros(sets)
    if name == "query" and exponential:
        constant -= math.log(features.count)
    fields = {"matrix": (0, 0), "linear": (0, 0), "centre": (0, 0)}
    if side.centre is not None:
        fields["centre"] = keep(centre)
    if side.linear is not None:
        linear = _padded(p, flat(side.linear, p.dim))
        constant += np.sum(linear * centre, 1)
        fields["linear"] = keep(linear)
    weight = features.map.offset
    if side.matrix is None:
        weight *= scale
    elif weight != 0:
        matrix = np.zeros((sets, up(p.dim, p.row_step), p.dim_pad))
        given = flat(side.matrix, p.dim, p.dim)
        matrix[:, : p.dim, : p.dim] = np.swapaxes(given, 1, 2) if name == "query" else given
        fields["matrix"] = keep(matrix)
    fields["parameters"] = keep(np.stack([np.full(sets, weight), constant], 1))
    return fields


def _padded(p: Plan, vectors: Any) -> Any:
    padded = np.zeros((len(vectors), p.dim_pad))
    padded[:, : p.dim] = vectors
    return padded


_HEADER = object.__basicsize__
"""Bytes that CPython has before what NumPy's array begins with, which is the address of its first element."""

_word = ctypes.c_size_t.from_address


def address(array: Any) -> int:
    """Return the address of an array's first element: `array.ctypes.data`, which takes eight times as long."""
    return _word(id(array) + _HEADER).value


def point(table: Any, arrays: dict[str, Any], at: Any = None) -> None:
    """Write addresses into a table, (heads,): of element i of arrays for head i, or of those at other places."""
    places = np.arange(len(table)) if at is None else at
    for name, x in arrays.items():
        table[name] = address(x) + places * x.strides[0]


def addresses(array: Any, batch: tuple[int, ...], own: int) -> Any:
    """Return the address of each batch element of an array with `own` axes of its own, broadcast to `batch`, flat."""
    return address(array) + places(array.shape, array.strides, batch, own)


def kept_by_shape(find: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the arrays that a function of shapes and strides returns, if they are small."""
    known: dict[Any, Any] = {}

    @wraps(find)
    def kept(*args: Any) -> Any:
        found = known.get(args)
        if found is None:
            found = find(*args)
            if found.nbytes <= _KEPT_BYTES:
                if len(known) >= _SHAPES:
                    known.clear()
                known[args] = found
        return found

    return kept


@kept_by_shape
def places(shape: tuple[int, ...], strides: tuple[int, ...], batch: tuple[int, ...], own: int) -> Any:
    """Return how many bytes behind the first the batch elements of an array lie, broadcast to `batch`, flat."""
    found, outer = np.zeros(batch, np.int64), len(shape) - own
    for axis, (size, stride) in enumerate(zip(shape[:outer], strides, strict=False), len(batch) - outer):
        if size != 1:
            found += np.arange(size).reshape(size, *(1,) * (len(batch) - axis - 1)) * stride
    return found.ravel()
