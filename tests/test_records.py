"""Records at an address: compiled functions read what the named tuple holds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from rfkernels.backends.numba.compiling import entry
from rfkernels.backends.numba.records import ElementRows, Elements, Flags, Floats, Held, IntRows, view_like


class Sample(NamedTuple):
    count: int
    flags: Flags
    rows: IntRows
    rate: float
    elements: Elements
    matrix: ElementRows
    last: Floats


def sample(dtype: Any) -> Sample:
    rows = np.arange(6, dtype=np.int32).reshape(2, 3)
    given = np.arange(4).astype(dtype), np.full((3, 1), 7, dtype)
    return Sample(-5, np.array([True, False]), rows, 0.25, *given, np.array([1.0, 2.5]))


@entry
def _read(address: int, like: Any, out: Any) -> int:
    s = view_like(Sample, address, like)
    out[0], out[1], out[2] = s.count, s.flags[0], s.flags[1]
    out[3], out[4], out[5] = s.rows[1, 2], s.rate, s.elements[3]
    out[6], out[7], out[8] = s.matrix[2, 0], s.last[1], s.rows.strides[0]
    s.elements[0] = out[6]
    return len(s.elements) + 10 * s.rows.shape[0] + 100 * s.rows.shape[1] + 1000 * s.matrix.shape[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fields_are_those_of_the_tuple(dtype: Any) -> None:
    held, out = Held(sample(dtype), dtype), np.zeros(9)
    assert _read(held.address, np.zeros(1, dtype), out) == 3324
    np.testing.assert_array_equal(out, [-5, 1, 0, 5, 0.25, 3, 7, 2.5, 12])
    assert held.record.elements[0] == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flags", np.zeros(2, np.int8)),
        ("rows", np.zeros(6, np.int32)),
        ("rows", np.zeros((3, 2), np.int32).T),
        ("elements", np.zeros(4, np.float64)),
        ("last", np.zeros(4)[::2]),
    ],
)
def test_arrays_of_another_kind_are_refused(name: str, value: Any) -> None:
    with pytest.raises(
        TypeError, match=f"{name} must be an aligned array of .* in C order with . axes, got {value.dtype}"
    ):
        Held(sample(np.float32)._replace(**{name: value}), np.float32)
