"""Arrays of catalogs begin at cache lines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import in_memory

from rfkernels.backends.numba import jit
from rfkernels.catalog import Catalog, aligned
from rfkernels.catalog.plan import fewest_dots


@pytest.mark.parametrize("shape", [0, 7, (3, 5), (0, 4)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_arrays_as_those_of_numpy(shape: Any, dtype: str) -> None:
    kept = [aligned.zeros(shape, dtype) for _ in range(3)] + [aligned.empty(shape, dtype)]
    kept += [aligned.copied(np.full(shape, 3, dtype))]
    for x in kept:
        assert x.ctypes.data % aligned.LINE == 0 or not x.size
        assert x.flags.c_contiguous
        assert x.flags.writeable
        assert (x.shape, x.dtype) == (np.zeros(shape, dtype).shape, np.dtype(dtype))
        x[...] = 7  # each has memory of its own
    for x in kept[:3]:
        x[...] = 0
    for x in kept[3:]:
        assert (x == 7).all()


def test_rows_and_codes_of_catalogs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    held, other = (Catalog(rng.normal(size=(900, 16)), cells=4, ids=np.arange(900) + a) for a in (0, 900))
    held.save(tmp_path / "a.safetensors")
    loaded = Catalog.load(tmp_path / "a.safetensors")
    merged = held.merge(other)
    for catalog in (held, loaded, merged):
        assert in_memory(catalog.store.rows)
        assert catalog.store.codes.ctypes.data % aligned.LINE == 0
    for catalog in (held, loaded):
        assert catalog.store.rows.ctypes.data % aligned.LINE == 0


@pytest.mark.parametrize("width", [x for x in (16, 32, 64) if x <= jit.host_width()])
def test_nothing_is_written_behind_arrays(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Compiled code writes whole vectors and more lanes than it lists: for these there is room in every array."""
    behind, mark, more = list[Any](), 0xA5, 1 << 12

    def marked(make: Any, shape: Any, dtype: Any) -> Any:
        made = make(math.prod(np.atleast_1d(shape)) * np.dtype(dtype).itemsize + more, np.uint8)
        behind.append(made[-more:])
        behind[-1][:] = mark
        return made[:-more].view(dtype).reshape(shape)

    monkeypatch.setattr(aligned, "_within", marked)
    monkeypatch.setenv("RFKERNELS_VECTOR_BYTES", str(width))
    rng = np.random.default_rng(width)
    for groups in (*range(1, 41), 300):
        items = rng.normal(size=(40 * groups if groups < 300 else groups, 8)).astype(np.float32)
        catalog = Catalog(np.round(items), cells=groups if groups < 300 else 1)
        least, every = fewest_dots(catalog.table), len(items) + catalog.table.means.size
        for budget in {least, least + 1, *rng.integers(least, every + least, 3).tolist(), every + 100}:
            for queries in 0.1 * items[:1], items[:3], 9 * items[:1]:
                catalog.log_normalizer(queries, budget=budget)
            catalog.kernel_sum(items[:1], budget=budget)
    assert len(behind) > 1_000
    assert all((x == mark).all() for x in behind)
