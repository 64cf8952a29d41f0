"""Items in clusters, catalogs of them, and estimates of both backends that must be the same."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from rfkernels.catalog import Catalog, engines
from rfkernels.catalog.radial import Points
from rfkernels.catalog.records import Estimate, Table

WIDTHS = ("16", "32", "")
"""Bytes of vectors: those of other machines, and of this one."""

ITEMS, BUDGET, FEW = 4_000, 700, 220
"""With few dot products codes of some groups are read in part; with more of them, in whole."""


@cache
def data(dim: int, dtype: str = "float64") -> tuple[Any, Any]:
    """Items in clusters, and queries that lie among them."""
    rng = np.random.default_rng(dim)
    items = 1.5 * rng.normal(size=(20, dim))[rng.integers(20, size=ITEMS)] + rng.normal(size=(ITEMS, dim))
    return items.astype(dtype), (items[:9] + 0.3 * rng.normal(size=(9, dim))).astype(dtype)


@cache
def catalog(dim: int, dtype: str = "float64") -> Catalog:
    return Catalog(data(dim, dtype)[0], cells=30)


def assert_as_specified(
    t: Table, given: Points, budget: int, seed: int, off: float, widths: tuple[str, ...] = ("",)
) -> Estimate:
    """Logs may be off by so much, and standard errors by a hundred times that part of them, for vectors of any width."""
    expected = engines.choose("numpy").radial(t, given, budget, seed)
    for width in widths:
        with pytest.MonkeyPatch.context() as patch:
            if width:
                patch.setenv("RFKERNELS_VECTOR_BYTES", width)
            found = engines.choose("numba").radial(t, given, budget, seed)
        np.testing.assert_allclose(found.log_normalizer, expected.log_normalizer, rtol=0, atol=off)
        np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=100 * off, atol=off)
        np.testing.assert_array_equal(found.dots, expected.dots)
        assert (found.dots <= budget).all()
    return found
