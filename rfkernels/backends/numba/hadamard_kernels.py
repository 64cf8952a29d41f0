"""Projections on rows of Hadamard matrices between random signs, in 3 n log₂ n additions for each block of n rows.

Rows of a block are N H D₀ H D₁ H D₂, with H[i, j] = (−1)^(number of ones that i and j share in binary) and diagonal
matrices of signs D and norms N, which carry the scale of H.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from llvmlite import ir

from rfkernels.backends.numba.emitter import Emitter
from rfkernels.backends.numba.jit import Code, Machine, compile_module, compiled_once
from rfkernels.samplers._structured import ROUNDS

_I32 = ir.IntType(32)


@compiled_once
def projections(machine: Machine, bits: int, order: int) -> Code:
    """Compile projections on blocks of `order` rows, a power of two and a multiple of two vectors."""
    module = ir.Module(name=f"rfkernels_hadamard_{order}_{bits}")
    lanes = machine.lanes(bits)
    parameters = "x x_row signs norms out out_row count blocks"
    held = 16 if machine.width == 64 else 8  # vectors: half of the registers
    _columns(Emitter(module, "hadamard_columns", parameters, bits, lanes), order, held)
    _rows(Emitter(module, "hadamard_rows", parameters, bits, lanes), order, max(1, held * lanes // order))
    return compile_module(module, machine.width, keep=True)


class _Pass(NamedTuple):
    """Transforms over `size` elements at a stride; before each, signs of a round or none."""

    stride: int
    size: int
    rounds: tuple[int | None, ...]


def _passes(order: int, largest: int) -> list[_Pass]:
    """Cut three transforms into passes of at most so many elements.

    The transform of 2^(a + b) elements is that of 2^a and that of 2^b, in any order: every other one is taken in
    reverse, so that the last pass of one and the first of the next are over the same elements.
    """
    bits, most = order.bit_length() - 1, largest.bit_length() - 1
    count = -(-bits // most)
    cuts = [bits * i // count for i in range(count + 1)]
    parts = [(1 << low, 1 << (high - low)) for low, high in pairwise(cuts)]
    steps: list[tuple[tuple[int, int], int | None]] = []
    for number in reversed(range(ROUNDS)):
        turn = parts if number % 2 == 0 else parts[::-1]
        steps += [(part, number if part is turn[0] else None) for part in turn]
    joined = [(part, tuple(number for _, number in own)) for part, own in groupby(steps, lambda step: step[0])]
    return [_Pass(stride, size, rounds) for (stride, size), rounds in joined]


def _columns(e: Emitter, order: int, largest: int) -> None:
    """Project columns: row j of `out` is row j of the blocks times every column of x, `count` of them."""
    x, x_row, signs, norms, out, out_row, count, blocks = e.arguments
    m = e.math
    passes = _passes(order, largest)
    with e.loop(0, blocks) as block:
        first = e.mul(block, order)
        with e.loop(0, count, e.lanes) as c:
            for i, own in enumerate(passes):
                source, row, start = (x, x_row, e.integer(0)) if i == 0 else (out, out_row, first)
                with e.loop(0, order // own.size) as t:
                    # The bits of t stand below and above those that the pass is over.
                    below = e.builder.and_(t, e.integer(own.stride - 1))
                    j = e.add(e.mul(e.builder.sub(t, below), own.size), below)
                    at = [e.add(j, k * own.stride) for k in range(own.size)]
                    values = [e.load_vector(source, e.add(e.mul(e.add(start, k), row), c)) for k in at]
                    for number in own.rounds:
                        factors = None
                        if number is not None:
                            base = e.add(e.mul(first, ROUNDS), number * order)
                            factors = [m.splat(e.load(signs, e.add(base, k))) for k in at]
                        values = _transformed(e, values, factors)
                    if i == len(passes) - 1:
                        values = [
                            m.mul(v, m.splat(e.load(norms, e.add(first, k)))) for v, k in zip(values, at, strict=True)
                        ]
                    for v, k in zip(values, at, strict=True):
                        e.store_vector(v, out, e.add(e.mul(e.add(first, k), out_row), c))
    e.finish()


def _rows(e: Emitter, order: int, together: int) -> None:
    """Project rows: row r of `out` is row r of x times every row of the blocks; `count` of them."""
    x, x_row, signs, norms, out, out_row, count, blocks = e.arguments
    m = e.math
    starts = range(0, order, e.lanes)
    with e.loop(0, blocks) as block:
        first = e.mul(block, order)
        base = e.mul(first, ROUNDS)
        with e.loop(0, count, together) as r:
            rows = [e.add(r, i) for i in range(together)]
            values = [[e.load_vector(x, e.add(e.mul(row, x_row), j)) for j in starts] for row in rows]
            for number in reversed(range(ROUNDS)):
                factors = [e.load_vector(signs, e.add(base, number * order + j)) for j in starts]
                values = [_transformed(e, own, factors) for own in values]
                for width in _widths(e.lanes):
                    values = [[_within(e, v, width) for v in own] for own in values]
            for row, own in zip(rows, values, strict=True):
                for j, v in zip(starts, own, strict=True):
                    scaled = m.mul(v, e.load_vector(norms, e.add(first, j)))
                    e.store_vector(scaled, out, e.add(e.mul(row, out_row), first, j))
    e.finish()


def _widths(size: int) -> list[int]:
    """Return the distances of elements that a transform of so many adds and subtracts, one after the other."""
    return [1 << i for i in range(size.bit_length() - 1)]


def _transformed(e: Emitter, values: Sequence[Any], factors: Sequence[Any] | None) -> list[Any]:
    """Transform across vectors, each times its factor."""
    m, values = e.math, list(values)
    for width in _widths(len(values)):
        for i in (i for i in range(len(values)) if not i & width):
            one, two = values[i], values[i + width]
            if factors is not None and width == 1:
                two = m.mul(two, factors[i + 1])
                values[i], values[i + 1] = m.fma(one, factors[i], two), m.fma(one, factors[i], m.neg(two))
            else:
                values[i], values[i + width] = m.add(one, two), m.sub(one, two)
    return values


def _within(e: Emitter, value: Any, width: int) -> Any:
    """Transform elements of a vector that are `width` apart."""
    other = ir.Constant(ir.VectorType(_I32, e.lanes), [i ^ width for i in range(e.lanes)])
    sign = ir.Constant(value.type, [-1.0 if i & width else 1.0 for i in range(e.lanes)])
    return e.math.fma(value, sign, e.builder.shuffle_vector(value, value, other))
