"""Arrays of catalogs begin at cache lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import in_memory

from rfkernels.catalog import Catalog, aligned


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
