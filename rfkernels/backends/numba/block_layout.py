"""What passes over blocks and the steps that find groups share: plans, tasks and working memory."""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import Any, cast

import numpy as np

from rfkernels.backends.numba import kernels
from rfkernels.backends.numba.block_kernels import blockwise
from rfkernels.backends.numba.block_records import BlockPlan, BlockScratch, BlockTask
from rfkernels.backends.numba.jit import Machine, machine
from rfkernels.backends.numba.packing import TILE, addresses, placed, up
from rfkernels.backends.numba.records import Held, rows_of

_BAND = 320
"""Near keys in a tile at most."""

_LAYOUTS = 64
"""That are kept."""


def layout(
    names: tuple[str, ...], dtype: Any, near: int, joining: int = 0, **sizes: int
) -> tuple[Held[BlockPlan], Any]:
    """Lay out a pass over arrays of the dtypes named (q, k, v and the output); return its plan, and the code it calls.

    `near` is how many keys a block sees exactly, and `joining` how many at a time become groups; `sizes` are those of
    `BlockPlan` that are not derived from others.
    """
    return _layout(machine(), names, np.dtype(dtype), near, joining, tuple(sizes.items()))


@lru_cache(_LAYOUTS)
def _layout(
    target: Machine, names: tuple[str, ...], dtype: Any, near: int, joining: int, given: tuple[tuple[str, int], ...]
) -> tuple[Held[BlockPlan], Any]:
    sizes, bits = dict(given), dtype.itemsize * 8
    code = kernels.shared(target, bits), blockwise(target, bits)
    found = {**code[0].addresses, **code[1].addresses}
    step = target.step(bits)
    q, k, v, out = names
    packs = {"pack_q": f"pack_{q}", "pack_k": f"pack_{k}", "pack_v": f"pack_{v}", "unpack": f"unpack_{out}"}
    dim_pad, width_pad = up(sizes["dim"], step), up(sizes["width"], step)
    groups_pad = up(sizes["groups"], step)
    points = groups_pad + up(joining, step)
    plan = BlockPlan(
        **{name: found[name] for name in BlockPlan._fields if name in found},
        **{name: found[own] for name, own in packs.items()},
        element=bits // 8,
        tile=TILE,
        band_tile=up(max(min(near, _BAND), 1), step),
        row_step=target.rows,
        rows_at_once=target.rows_at_once,
        column_step=step,
        dim_pad=dim_pad,
        width_pad=width_pad,
        groups_pad=groups_pad,
        points=points,
        far_row=points + step,
        sums_row=dim_pad + width_pad + step,
        heavy_pad=up(sizes["heavy"], step),
        **sizes,
    )
    return Held(plan), code


def tasks(p: BlockPlan, batch: tuple[int, ...], dtype: Any, k: Any, v: Any, mask: Any, **same: int) -> Any:
    """Return a `BlockTask` for each head, (heads,), with some fields the same; all other addresses are 0.

    `v` may be missing.
    """
    made = rows_of(BlockTask, math.prod(batch))
    same |= {"k_row": k.strides[-2], "k_column": k.strides[-1], "keys": k.shape[-2], "together": 1}
    same |= {"k_plain": _plain(k, dtype, p.dim_pad), "v_plain": _plain(v, dtype, p.width_pad)}
    if v is not None:
        same |= {"v_row": v.strides[-2], "v_column": v.strides[-1]}
    if mask is not None:
        same["mask_row"] = mask.strides[-1]
    for name, x, own in (("k", k, 2), ("v", v, 2), ("mask", mask, 1)):
        if x is not None:
            made[name] = addresses(x, batch, own)
    for name, value in same.items():
        made[name] = value
    return made


def _plain(x: Any, dtype: Any, wanted: int) -> int:
    """Whether tiles of an array can be read where they lie: full rows of elements, one after the other."""
    if x is None or x.dtype != dtype or x.shape[-1] != wanted:
        return 0
    size = np.dtype(dtype).itemsize
    return int(x.strides[-2:] == (wanted * size, size) and x.flags.aligned)


_memory = threading.local()


def scratch(p: BlockPlan, shared: int) -> Held[BlockScratch]:
    """Return this thread's working memory for queries of `shared` heads, kept between calls."""
    known = getattr(_memory, "scratch", None)
    if known is not None and known[0] == (p, shared):
        return cast(Held[BlockScratch], known[1])
    _memory.scratch = None  # an interrupt may leave the buffer of another plan
    x = p.dim_pad + p.column_step
    tile, queries = max(p.band_tile, up(p.tile, p.column_step)), up(shared * p.tile, p.column_step)
    band = max(p.band_tile, p.heavy_pad) + p.column_step
    sizes = {
        "x": tile * x,
        "xt": p.dim_pad * (p.band_tile + p.column_step),
        "v": tile * p.width_pad,
        "term": tile,
        "y": queries * p.dim_pad,
        "scores": p.tile * max(p.groups_pad + p.column_step, band),
        "query": queries * x,
        "along": queries,
        "moved": queries,
        "direction": queries * p.width_pad,
        "out": queries * p.width_pad,
        "denominator": queries,
        "top": queries,
        "list": p.groups_pad,
        "flags": p.groups_pad,
        "mean": p.groups_pad * p.dim_pad,
        "mean_y": p.groups_pad * p.dim_pad,
        "squares": p.groups_pad,
        "dots": p.groups_pad,
        "far_x": p.points * p.dim_pad,
        "far_xt": p.dim_pad * p.far_row,
        "far_v": p.groups_pad * p.width_pad,
        "far_term": p.groups_pad,
        "far_bend": p.groups_pad,
    }
    made = Held(BlockScratch(**placed(_memory, sizes, p.element)))
    _memory.scratch = (p, shared), made
    return made
