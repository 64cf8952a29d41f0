"""The product of two matrices, in register tiles."""

from __future__ import annotations

from rfkernels.backends.numba.emitter import LINE, Emitter
from rfkernels.backends.numba.jit import Machine


def gemm(e: Emitter, machine: Machine, accumulate: bool) -> None:
    """C (+)= A B; A has any strides, rows and columns are multiples of the register tile.

    With arguments that say so, two stretches of memory are asked for meanwhile, so many bytes a register tile.
    """
    a, a_row, a_column, b, b_row, c, c_row, rows, columns, depth, *ahead = e.arguments
    stretches, size = [e.variable(start) for start in ahead[:-1]], ahead[-1] if ahead else e.integer(0)
    tile = [(r, v) for r in range(machine.rows) for v in range(machine.vectors)]
    with e.loop(0, columns, machine.vectors * e.lanes) as j, e.loop(0, rows, machine.rows) as i:
        for stretch in stretches:
            with e.loop(0, size, LINE) as byte:
                e.fetch(e.add(stretch.get(), byte))
            stretch.set(e.add(stretch.get(), size))
        at = [e.add(e.mul(e.add(i, r), c_row), j, v * e.lanes) for r, v in tile]
        zero = e.math.constant(0.0)
        sums = [e.variable(e.load_vector(c, index) if accumulate else zero) for index in at]
        starts = [e.mul(e.add(i, r), a_row) for r in range(machine.rows)]
        with e.loop(0, depth) as k:
            right = [e.load_vector(b, e.add(e.mul(k, b_row), j, v * e.lanes)) for v in range(machine.vectors)]
            along = e.mul(k, a_column)
            for r in range(machine.rows):
                left = e.math.splat(e.load(a, e.add(starts[r], along)))
                for v in range(machine.vectors):
                    total = sums[r * machine.vectors + v]
                    total.set(e.math.fma(left, right[v], total.get()))
        for index, total in zip(at, sums, strict=True):
            e.store_vector(total.get(), c, index)
    e.finish()
