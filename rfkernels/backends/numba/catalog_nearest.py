"""Nearest centres of items, compiled: a product of matrices whose results never leave registers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from llvmlite import ir

from rfkernels.backends.numba import threads
from rfkernels.backends.numba.compiling import call, entry, jit_with
from rfkernels.backends.numba.emitter import Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module, compiled_once, machine
from rfkernels.backends.numba.packing import up

Function = TypeVar("Function", bound=Callable[..., Any])

_ITEMS = 64
"""Items, or a few more, that meet a tile of centres while that is in the fastest cache: whole register tiles."""


class Packed(NamedTuple):
    """Centres, ready to be compared with items.

    Parameters
    ----------
    centres : array, shape (cells, dim)
        As they are.
    origin : array, shape (dim,)
        Their mean, which is subtracted from everything: far data round less.
    turned : array, shape (dim, cells padded)
        Centres less the origin, zeros where there are none.
    half : array, shape (cells padded,)
        −|e|²/2 of each of these, −∞ where there is none.
    """

    centres: Any
    origin: Any
    turned: Any
    half: Any


def pack(centres: Any) -> Packed:
    """Pack centres (cells, dim), at least one, for `nearest`."""
    target, (cells, dim) = machine(), centres.shape
    origin, padded = centres.mean(0), up(cells, target.vectors * target.lanes(8 * centres.itemsize))
    turned, half = np.zeros((dim, padded), centres.dtype), np.full(padded, -np.inf, centres.dtype)
    turned[:, :cells] = (centres - origin).T
    half[:cells] = -0.5 * np.einsum("ij,ij->j", turned[:, :cells], turned[:, :cells])
    return Packed(np.ascontiguousarray(centres), origin, turned, half)


def nearest(x: Any, packed: Packed) -> tuple[Any, Any]:
    """Return the nearest centre of each item, and its squared distance from there; the first of centres equally near.

    Parameters
    ----------
    x : array, shape (items, dim)
        C-contiguous and of the same dtype as the centres.
    packed : Packed
        What `pack` made of these.

    Returns
    -------
    label : array of int32, shape (items,)
    square : array, shape (items,)
        NaN or infinite where an item is, or is too far away for its dtype.
    """
    label, square = np.empty(len(x), np.int32), np.empty(len(x), x.dtype)
    target = machine()
    lanes, work = target.lanes(8 * x.itemsize), x.size * len(packed.centres)
    workers = 1 if work < threads.LIGHT_WORK else threads.thread_count()
    code = _kernel(target, 8 * x.itemsize)
    tile, many = target.tall, up(_ITEMS, target.tall)
    step = max(many, up(-(-len(x) // workers), many)) if len(x) < 4096 * workers else up(4096, many)
    kernel = code.addresses["nearest"], lanes, tile

    def task(a: int) -> int:
        room = (
            np.zeros((many, x.shape[1]), x.dtype),
            np.empty((many, lanes), x.dtype),
            np.empty((many, lanes), np.int32),
        )
        return _nearest(kernel, x[a : a + step], packed, label[a : a + step], square[a:], room)

    tasks = [partial(task, a) for a in range(0, len(x), step)]
    if len(tasks) == 1:
        tasks[0]()
    else:
        threads.run(tasks, workers)
    del code
    return label, square


@compiled_once
def _kernel(target: Machine, bits: int) -> Code:
    """Compile ``nearest``: go on with the largest score of each lane, and with the first centre that has it."""
    module = ir.Module(name=f"rfkernels_catalog_nearest_{bits}")
    names = "x dim turned row half rows top place"
    _emit(Emitter(module, "nearest", names, bits, target.lanes(bits)), target)
    return compile_module(module, target.width, keep=True)


def _emit(e: Emitter, target: Machine) -> None:
    """Scores are x·e − |e|²/2; rows are a multiple of the register tile, and so are centres."""
    x, dim, turned, row, half, rows, top, place = e.arguments
    b, m, number = e.builder, e.math, ir.VectorType(ir.IntType(32), e.lanes)
    tile = [(r, v) for r in range(target.tall) for v in range(target.vectors)]
    with e.loop(0, row, target.vectors * e.lanes) as j, e.loop(0, rows, target.tall) as i:
        sums = [e.variable(e.load_vector(half, e.add(j, v * e.lanes))) for _, v in tile]
        starts = [e.mul(e.add(i, r), dim) for r in range(target.tall)]
        with e.loop(0, dim) as k:
            right = [e.load_vector(turned, e.add(e.mul(k, row), j, v * e.lanes)) for v in range(target.vectors)]
            for r, start in enumerate(starts):
                left = m.splat(e.load(x, e.add(start, k)))
                for v, centre in enumerate(right):
                    total = sums[r * target.vectors + v]
                    total.set(m.fma(left, centre, total.get()))
        for r in range(target.tall):
            at = e.mul(e.add(i, r), e.lanes)
            best, where = e.load_vector(top, at), b.bitcast(e.load_vector(place, at, ir.IntType(32)), number)
            for v in range(target.vectors):
                score = sums[r * target.vectors + v].get()
                here = b.add(e.splat_number(e.add(j, v * e.lanes)), e.lane_numbers())
                better = m.gt(score, best)
                best, where = m.where(better, score, best), b.select(better, here, where)
            e.store_vector(best, top, at)
            e.store_vector(where, place, at)
    e.finish()


@entry
def _nearest(kernel: tuple[int, int, int], x: Any, packed: Any, label: Any, square: Any, room: Any) -> int:
    """Compare some items at a time with all centres; distances are taken from the items as they are."""
    (address, lanes, tile), (centres, origin, turned, half), (own, top, place) = kernel, packed, room
    (dim, cells), many = turned.shape, len(own)
    for first in range(0, len(x), many):
        here = min(many, len(x) - first)
        for i in range(here):
            for k in range(dim):
                own[i, k] = x[first + i, k] - origin[k]
        top[:], place[:] = -np.inf, 0
        rows = (here + tile - 1) // tile * tile
        arrays = own.ctypes.data, dim, turned.ctypes.data, cells, half.ctypes.data, rows
        call(address, (*arrays, top.ctypes.data, place.ctypes.data))
        for i in range(here):
            best, at = top[i, 0], place[i, 0]
            for lane in range(1, lanes):
                if top[i, lane] > best or (top[i, lane] == best and place[i, lane] < at):
                    best, at = top[i, lane], place[i, lane]
            label[first + i] = at
            square[first + i] = _square(x[first + i], centres[at])
    return 0


@jit_with("contract", "reassoc")
def _square(x: Any, centre: Any) -> float:
    total = 0.0
    for k in range(len(x)):
        apart = np.float64(x[k]) - np.float64(centre[k])
        total += apart * apart
    return total
