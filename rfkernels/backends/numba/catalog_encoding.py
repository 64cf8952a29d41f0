"""Codes of items, compiled: `rfkernels.catalog.codes` says what they are."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rfkernels.backends.numba.catalog_groups import on_threads
from rfkernels.backends.numba.compiling import jit_with
from rfkernels.catalog.codes import (
    BLOCK,
    EXPONENT,
    FRACTION,
    LEVELS,
    MIDDLE,
    SQUARE_BITS,
    SQUARE_EXPONENT,
    SQUARE_FRACTION,
    STEP,
    STEP_BITS,
    TOGETHER,
)

_jit = jit_with("contract", entry=True)
"""With products and sums contracted."""

_fast = jit_with("contract", "reassoc", "nsz", "nnan")
"""With sums in any order."""

_WIDER, _TAILS = 1.5, 3.0
"""Steps are tried that are so many times larger, one after the other, where a number is this many deviations out."""


def encode_groups(rows: Any, groups: Any, place: tuple[Any, Any, Any], grid: tuple[Any, Any], codes: Any) -> None:
    """Write the codes of the items of some groups; `grid` are anchors and scales, the rest is as in `sum_groups`."""
    if codes.shape[1]:
        on_threads(partial(_with_room, np.asarray(rows)), groups, place, (*grid, codes), rows.shape[1])


def encode(rows: Any, chosen: Any, cells: Any, anchors: Any, scales: Any, codes: Any) -> None:
    """Write the codes of some rows of cells."""
    _encode_rows(rows, chosen, cells, anchors, codes, room_of(scales))


def room_of(scales: Any) -> Any:
    """Return room for an item, one over scales, parts of their squares, and room for codes and bits of a number."""
    codes, bits = np.zeros(len(scales) + TOGETHER, np.uint8), np.empty(1, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):  # those of no items are 0
        part = np.square(scales / scales.max())
        return np.empty_like(scales), 1 / scales, part / part.sum(), codes, (bits, bits.view(np.uint32))


def _with_room(rows: Any, groups: Any, start: Any, count: Any, cell: Any, anchors: Any, scales: Any, codes: Any) -> int:
    """Encode with room of its own, as threads do at once; NumPy makes it, which Numba would take seconds to compile."""
    return _encode_groups(rows, groups, start, count, cell, anchors, codes, room_of(scales))


@_jit
def _encode_groups(
    rows: Any, groups: Any, start: Any, count: Any, cell: Any, anchors: Any, codes: Any, room: Any
) -> int:
    for g in groups:
        for i in range(start[g], start[g] + count[g]):
            encode_row(rows[i], anchors[cell[g]], i, codes, room)
    return 0


@_jit
def _encode_rows(rows: Any, chosen: Any, cells: Any, anchors: Any, codes: Any, room: Any) -> int:
    for i in range(len(chosen)):
        encode_row(rows[chosen[i]], anchors[cells[i]], chosen[i], codes, room)
    return 0


@_fast
def _bits(x: Any, exponent: int, fraction: int, count: int, room: Any) -> Any:
    """Return the bits of the number nearest to x that an exponent and a fraction have, `count` in all."""
    number, bits = room
    number[0] = min(max(x, type(x)(2.0**exponent)), type(x)(2.0**127))
    found = (int(bits[0]) + (1 << (22 - fraction))) >> (23 - fraction)
    return min(found - ((127 + exponent) << fraction), (1 << count) - 1)


@_fast
def _number(found: int, exponent: int, fraction: int, room: Any) -> Any:
    """Return what bits stand for."""
    number, bits = room
    bits[0] = (found + ((127 + exponent) << fraction)) << (23 - fraction)
    return number[0]


@_fast
def encode_row(row: Any, anchor: Any, place: int, codes: Any, room: Any) -> None:
    """Write the code of an item: the step is that of normal numbers or, where some lie far out, the best of a few."""
    apart, inverse, part, numbers, bits = room
    dim, block, lane = len(row), place // BLOCK, place % BLOCK
    kind = type(row[0])
    square = away = kind(0)
    for k in range(dim):
        own = (row[k] - anchor[k]) * inverse[k]
        apart[k] = own
        square += own * own
        away += part[k] * own * own
    step = np.sqrt(square / kind(dim))
    scale = kind(0)
    if 0 < step < np.inf:
        best = step * kind(STEP)
        if _any_beyond(apart, kind(_TAILS) * step):
            best = _least(apart, best)
        scale = _quantised(apart, best, numbers)
    else:
        numbers[:dim] = MIDDLE
    found = _bits(scale, EXPONENT, FRACTION, STEP_BITS, bits)
    step = kind(_number(found, EXPONENT, FRACTION, bits)) / kind(STEP)
    square = _bits(away / (step * step), SQUARE_EXPONENT, SQUARE_FRACTION, SQUARE_BITS, bits)
    found = square >> 1 << STEP_BITS + 1 | found << 1 | square & 1
    half, beside = TOGETHER // 2, 1 <= dim % TOGETHER <= TOGETHER // 2
    at, last = half * lane, dim // TOGETHER * TOGETHER
    for k in range(0, last if beside else dim, TOGETHER):
        for j in range(half):
            codes[block, at + j] = numbers[k + j] | numbers[k + half + j] << 4
        at += half * BLOCK
    at += (4 if beside else 2) * lane - half * lane
    for j in range(2 if beside else 0):
        codes[block, at] = numbers[last + j] | numbers[last + 2 + j] << 4
        at += 1
    codes[block, at], codes[block, at + 1] = found & 0xFF, found >> 8


@_fast
def copy_code(codes: Any, to: int, given: int) -> None:
    """Copy the code of a row to that of another."""
    half = TOGETHER // 2
    for k in range(0, codes.shape[1], half * BLOCK):
        many = min(half, (codes.shape[1] - k) // BLOCK)  # steps alone are two bytes
        for j in range(many):
            codes[to // BLOCK, k + many * (to % BLOCK) + j] = codes[given // BLOCK, k + many * (given % BLOCK) + j]


@_fast
def _level(x: Any, inverse: Any) -> Any:
    """Return the number from 0 to 15 that stands for x, given one over the step, less the one that stands for 0."""
    kind = type(inverse)
    return min(max(np.rint(x * inverse), kind(-MIDDLE)), kind(LEVELS - 1 - MIDDLE))


@_fast
def _quantised(apart: Any, step: Any, numbers: Any) -> Any:
    """Write numbers from 0 to 15, and return the step that suits them best."""
    kind = type(step)
    inverse = kind(1) / step
    product = square = kind(0)
    for k in range(len(apart)):
        own = _level(apart[k], inverse)
        numbers[k] = np.uint8(own + kind(MIDDLE))
        product += own * apart[k]
        square += own * own
    return product / square


@_fast
def _any_beyond(apart: Any, limit: Any) -> bool:
    """Counted, as sums are vectorized and maxima are not."""
    count = 0
    for k in range(len(apart)):
        count += np.abs(apart[k]) > limit
    return count > 0


@_fast
def _least(apart: Any, step: Any) -> Any:
    """Return the step of the least squared error, of this one and wider ones, up to where none is cut off."""
    kind = type(step)
    best, least, largest = step, kind(np.inf), kind(0)
    for k in range(len(apart)):
        largest = max(largest, abs(apart[k]))
    while True:
        error, inverse = kind(0), kind(1) / step
        for k in range(len(apart)):
            own = _level(apart[k], inverse) * step - apart[k]
            error += own * own
        if error < least:
            best, least = step, error
        widest = largest / kind(LEVELS - 1 - MIDDLE)
        if step >= widest:
            return best
        step = min(step * kind(_WIDER), widest)
