"""Calls of the kernels of fused passes: which blocks of which arrays each program sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rfkernels.backends.jax.tiles import JUMP
from rfkernels.maps import FeatureMap
from rfkernels.state import State


class Tile(NamedTuple):
    """Positions and projection rows at a time, and how Triton compiles: warps and stages."""

    positions: int
    rows: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tile of each kernel; that of `prefix` says how many states it loads at once."""

    write: Tile
    read: Tile
    causal: Tile
    prefix: Tile


Block = tuple[tuple[Any, ...], Callable[..., Any]]
"""The shape of a block and, from the place of a program in the grid, where it lies."""


class Side(NamedTuple):
    """Arrays of one side of a pass, as in `fused_kernels`; batch axes are flat, or of length 1 where all share one."""

    w: Any
    x: Any
    weight: Any
    extra: Any


def unit(pure: bool) -> float:
    """Return what exponents are multiplied by: those of features that are exponentials alone are in powers of two."""
    return math.log2(math.e) if pure else 1.0


class Given(NamedTuple):
    """Arrays of a pass, flat over batch axes, and how to run it."""

    query: Side
    key: Side
    b: Any
    keep: Any
    v: Any
    map: FeatureMap
    tiles: Tiles
    pure: bool
    interpret: bool

    @property
    def columns(self) -> tuple[int, int]:
        """Activations, and rows of W."""
        return len(self.map.activations), self.key.w.shape[-2]

    def run(
        self,
        kernel: str,
        tile: Tile,
        grid: tuple[int, ...],
        ins: list[tuple[Any, Block]],
        outs: list[tuple[Any, Block] | None],
        same: dict[int, int] | None = None,
    ) -> list[Any]:
        """Run a kernel over arrays and the blocks of them that each program sees; what is None is not there."""
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import triton

        from rfkernels.backends.jax import fused_kernels

        precision = lax.Precision.HIGHEST if self.interpret else lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        plan = fused_kernels.Plan(
            self.map, tile, self.v.dtype, precision, self.pure, JUMP * unit(self.pure), self.tiles.prefix.rows
        )
        there = [x is not None for x, _ in ins] + [x is not None for x in outs]

        def body(*refs: Any) -> None:
            given = iter(refs)
            getattr(fused_kernels, kernel)(*(next(given) if is_there else None for is_there in there), plan=plan)

        body.__name__ = body.__qualname__ = f"rfkernels_{kernel}"
        arrays = [(x, block) for x, block in ins if x is not None]
        made = [x for x in outs if x is not None]
        found = iter(
            pl.pallas_call(
                body,
                grid=grid,
                in_specs=[pl.BlockSpec(*block) for _, block in arrays],
                out_specs=[pl.BlockSpec(*block) for _, block in made],
                out_shape=[shape for shape, _ in made],
                compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
                input_output_aliases=same or {},
                interpret=self.interpret,
                name=body.__name__,
            )(*(x for x, _ in arrays))
        )
        return [None if x is None else next(found) for x in outs]


def _own(x: Any) -> Callable[[Any], Any]:
    """Return which element of the batch a program reads: its own, or the one that all share."""
    return (lambda e: 0) if x.shape[0] == 1 else (lambda e: e)


def _shape(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def written(given: Given, span: int, causal: bool) -> tuple[State, Any]:
    """Return states of stretches of keys, (batch, stretches, columns, ...), and exponents of the first key of each."""
    key, v, (acts, rows) = given.key, given.v, given.columns
    tile = given.tiles.write._replace(positions=min(given.tiles.write.positions, span))
    batch, length, dim = key.x.shape
    width, count, of_w, of_b = v.shape[-1], length // span, _own(key.w), _own(given.b)
    line: Block = (None, span), lambda i, s, e: (e, s)
    ins: list[tuple[Any, Block]] = [
        (key.w, ((None, key.w.shape[1], tile.rows, dim), lambda i, s, e: (of_w(e), 0, i, 0))),
        (given.b, ((None, tile.rows), lambda i, s, e: (of_b(e), i))),
        (key.x, ((None, span, dim), lambda i, s, e: (e, s, 0))),
        (key.weight, ((1,), lambda i, s, e: (0,))),
        (key.extra, line),
        (given.keep, line),
        (v, ((None, span, width), lambda i, s, e: (e, s, 0))),
    ]
    sums: Block = (None, None, acts, tile.rows), lambda i, s, e: (e, s, 0, i)
    block: Block = (None, None, acts, tile.rows, width), lambda i, s, e: (e, s, 0, i, 0)
    shape = batch, count, acts, rows
    outs: list[tuple[Any, Block] | None] = [
        (_shape((*shape, width), v.dtype if causal else jnp.float32), block),
        (_shape(shape), sums),
        (_shape(shape), sums),
        (_shape(shape), sums) if causal and given.map.exponential else None,
    ]
    found = given.run("write", tile, (rows // tile.rows, count, batch), ins, outs)
    *pieces, first = (None if x is None else x.reshape(batch, count, acts * rows, *x.shape[4:]) for x in found)
    return State(*pieces), first


def summed(given: Given, parts: State, first: Any, start: State, causal: bool) -> tuple[State, Any, State]:
    """Return the states before each stretch, whether its keys are too far apart, and the state after the last.

    The first two are None unless the pass is causal.
    """
    tile = given.tiles.prefix
    batch, count, columns, width = parts.kv.shape
    many: Block = (None, count, tile.rows), lambda i, e: (e, 0, i)
    wide: Block = (None, count, tile.rows, width), lambda i, e: (e, 0, i, 0)
    one: Block = (None, tile.rows), lambda i, e: (e, i)
    broad: Block = (None, tile.rows, width), lambda i, e: (e, i, 0)
    ins: list[tuple[Any, Block]] = [(parts.kv, wide), (parts.z, many), (parts.shift, many), (first, many)]
    ins += [(start.kv, broad), (start.z, one), (start.shift, one)]
    blocks, sums = columns // tile.rows, _shape((batch, count, columns))
    flags: Block = (None, count, 1), lambda i, e: (e, 0, i)
    outs: list[tuple[Any, Block] | None] = [
        *((_shape(parts.kv.shape, given.v.dtype), wide), (sums, many), (sums, many)),
        None if first is None else (_shape((batch, count, 1 << (blocks - 1).bit_length()), jnp.int32), flags),
    ]
    outs = outs if causal else [None] * 4
    outs += [(_shape(x.shape), block) for x, block in zip(start, (broad, one, one), strict=True)]
    found = given.run("prefix", tile, (blocks, batch), ins, outs)
    return State(*found[:3]), found[3], State(*found[4:])


def _split(state: State, given: Given) -> State:
    """Give activations and rows an axis each."""
    axis = state.z.ndim - 1
    return State(*(x.reshape(*x.shape[:axis], *given.columns, *x.shape[axis + 1 :]) for x in state))


def _side_blocks(side: Side, tile: Tile) -> list[tuple[Any, Block]]:
    of_w = _own(side.w)
    return [
        (side.w, ((None, *side.w.shape[1:]), lambda t, e: (of_w(e), 0, 0, 0))),
        (side.x, ((None, tile.positions, side.x.shape[-1]), lambda t, e: (e, t, 0))),
        (side.weight, ((1,), lambda t, e: (0,))),
        (side.extra, ((None, tile.positions), lambda t, e: (e, t))),
    ]


def _outputs(given: Given, tile: Tile, dtype: Any) -> list[tuple[Any, Block] | None]:
    batch, length, _ = given.query.x.shape
    width = given.v.shape[-1]
    row: Block = (None, tile.positions), lambda t, e: (e, t)
    whole: Block = (None, tile.positions, width), lambda t, e: (e, t, 0)
    return [(_shape((batch, length, width), dtype), whole), *[(_shape((batch, length)), row)] * 2]


def _log_weights(given: Given) -> tuple[Any, Block]:
    of_b = _own(given.b)
    return given.b, ((None, given.b.shape[-1]), lambda t, e: (of_b(e), 0))


def read(given: Given, state: State, dtype: Any) -> list[Any]:
    """Read one state for each query: outputs, denominators and what they are divided by, as exponents."""
    tile, query = given.tiles.read, given.query
    held = _split(state, given)
    batch, length, _ = query.x.shape
    w, x, weight, extra = _side_blocks(query, tile)
    ins = [w, _log_weights(given), x, weight, extra]
    ins += [(y, ((None, *y.shape[1:]), _first_axis(y.ndim))) for y in held]
    return given.run("read", tile, (length // tile.positions, batch), ins, _outputs(given, tile, dtype))


def _first_axis(rank: int) -> Callable[..., Any]:
    return lambda t, e: (e, *(0,) * (rank - 1))


def causal(given: Given, before: State, shift: Any, jumps: Any, dtype: Any) -> list[Any]:
    """Let each query see the state before its tile and the keys of the tile up to its own."""
    tile, held = given.tiles.causal, _split(before, given)
    batch, length, _ = given.query.x.shape
    acts, rows = given.columns
    grid = length // tile.positions, batch

    def of_tile(x: Any) -> tuple[Any, Block]:
        return x, ((None, None, *x.shape[2:]), lambda t, e: (e, t, *(0,) * (x.ndim - 2)))

    sides = [*_side_blocks(given.query, tile), *_side_blocks(given.key, tile), _log_weights(given)]
    keep = given.keep, ((None, tile.positions), lambda t, e: (e, t))
    value = given.v, ((None, tile.positions, given.v.shape[-1]), lambda t, e: (e, t, 0))
    states = [of_tile(x) for x in held]
    outs = _outputs(given, tile, dtype)
    ins = [*sides, keep, value, *states, of_tile(shift.reshape(batch, grid[0], acts, rows))]
    found = given.run("causal", tile, grid, ins, outs)
    if jumps is None:
        return found
    made = [(x, out[1]) for x, out in zip(found, outs, strict=True) if out is not None]
    ins = [of_tile(jumps), *sides, value, *states, *made]
    there = sum(x is not None for x, _ in ins)
    return given.run("mend", tile, grid, ins, outs, {there - 3 + i: i for i in range(3)})
