"""The product of two matrices, in register tiles."""

from __future__ import annotations

from typing import Any

from rfkernels.backends.numba.emitter import LINE, Emitter
from rfkernels.backends.numba.jit import Machine

_ROW = 4
"""Register tiles of columns that a row is multiplied with together: a sum is there four or five cycles later."""


def gemm(e: Emitter, machine: Machine, accumulate: bool) -> None:
    """C (+)= A B; A has any strides, rows and columns are multiples of what the machine pads these to.

    With arguments that say so, two stretches of memory are asked for meanwhile, so many bytes for each of the rows and
    columns that sizes are padded to.
    """
    (rows, columns), ahead = e.arguments[7:9], e.arguments[10:]
    stretches, size = [e.variable(start) for start in ahead[:-1]], ahead[-1] if ahead else e.integer(0)
    whole = e.mul(e.builder.sdiv(rows, e.integer(machine.rows_at_once)), machine.rows_at_once)
    spans = [(e.integer(0), whole, machine.tall), (whole, rows, machine.rows)]
    with e.loop(0, columns, machine.vectors * e.lanes) as j:
        for first, last, height in spans:
            with e.loop(first, last, height) as i:
                fetched = e.builder.sdiv(e.mul(size, height), e.integer(machine.rows))
                for stretch in stretches:
                    with e.loop(0, fetched, LINE) as byte:
                        e.fetch(e.add(stretch.get(), byte))
                    stretch.set(e.add(stretch.get(), fetched))
                _tile(e, (height, machine.vectors), (i, j), accumulate)
    e.finish()


def gemm_row(e: Emitter, machine: Machine) -> None:
    """C = A B for one row: of as many columns together as there are sums to wait for."""
    columns = e.arguments[8]
    vectors = _ROW * machine.vectors
    step = vectors * e.lanes
    whole = e.mul(e.builder.sdiv(columns, e.integer(step)), step)
    for first, last, many in ((e.integer(0), whole, vectors), (whole, columns, machine.vectors)):
        with e.loop(first, last, many * e.lanes) as j:
            _tile(e, (1, many), (e.integer(0), j), accumulate=False)
    e.finish()


def _tile(e: Emitter, shape: tuple[int, int], at: tuple[Any, Any], accumulate: bool) -> None:
    """Compute so many rows and vectors of C from row i and column j on in registers."""
    a, a_row, a_column, b, b_row, c, c_row, _, _, depth, *_ = e.arguments
    (height, vectors), (i, j) = shape, at
    places = [e.add(e.mul(e.add(i, r), c_row), j, v * e.lanes) for r in range(height) for v in range(vectors)]
    zero = e.math.constant(0.0)
    sums = [e.variable(e.load_vector(c, place) if accumulate else zero) for place in places]
    starts = [e.mul(e.add(i, r), a_row) for r in range(height)]
    with e.loop(0, depth) as k:
        right = [e.load_vector(b, e.add(e.mul(k, b_row), j, v * e.lanes)) for v in range(vectors)]
        along = e.mul(k, a_column)
        for r in range(height):
            left = e.math.splat(e.load(a, e.add(starts[r], along)))
            for total, one in zip(sums[r * vectors : (r + 1) * vectors], right, strict=True):
                total.set(e.math.fma(left, one, total.get()))
    for place, total in zip(places, sums, strict=True):
        e.store_vector(total.get(), c, place)
