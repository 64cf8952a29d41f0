"""Compiled estimates over catalogs against their specification, however plans are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rfkernels.backends.numba import catalog as compiled
from rfkernels.backends.numba import catalog_layout
from rfkernels.catalog import estimates
from rfkernels.catalog.records import Table


def assert_as_specified(table: Table, q: Any, budget: int, seed: int, rtol: float = 1e-10, expected: Any = None) -> Any:
    """Whether plans are made cell by cell, group by group, or as it comes; return the estimates of the last.

    `expected` is what the specification estimates, if that is known.
    """
    expected = estimates.estimate(table, q, budget, seed) if expected is None else expected
    for groups_a_run in (0, len(table.start), None):
        with pytest.MonkeyPatch.context() as patch:
            if groups_a_run is not None:
                patch.setattr(catalog_layout, "GROUPS_A_RUN", groups_a_run)
            # Of another array of means nothing is known yet.
            own = table if groups_a_run is None else table._replace(means=table.means.copy())
            found = compiled.estimate(own, q, budget, seed)
        np.testing.assert_array_equal(found.dots, expected.dots)
        np.testing.assert_allclose(found.log_normalizer, expected.log_normalizer, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e3 * rtol, atol=rtol)
    return found
