"""How items are compared when they are grouped: as they are, or as past queries tell them apart.

Queries vary within a cell by E (q·(y − μ))² = (y − μ)ᵀ M (y − μ), with M = E q qᵀ. k-means of M^½ y finds cells in
which that is least on the average, which the queries of the largest logits make up; with M^¼ y the others count, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels._checks import check_array, require_finite

POWER = 0.25
"""The power of E q qᵀ that items are multiplied by.

With ½ errors are about the same, but tails heavier (GloVe, `benchmarks/catalog.py accuracy`), and with 0 cells know
nothing of queries.
"""

_ROUNDING = 2.0**-12


def metric_of(queries: Any, dim: int, dtype: Any) -> Any:
    """Return what items are multiplied by before they are compared, (dim, dim) of determinant 1, or (0, dim) for none.

    One query that looks in all directions alike is added to those given, so that a few of them determine a metric.

    Parameters
    ----------
    queries : array, shape (count, dim), or None
        Past queries, at least one of them not 0.
    dim : int
        Width of the items.
    dtype : dtype
        What the metric is held in, that of the items.

    Raises
    ------
    TypeError, ValueError
        If queries are no array of such rows, are not finite, or are all 0.
    """
    if queries is None:
        return np.empty((0, dim), dtype)
    check_array("queries", queries, 1)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"queries must have shape (queries, {dim}), got {queries.shape}")
    require_finite("queries", queries)
    wide = np.asarray(queries).astype(np.float64)
    largest = float(np.abs(wide).max(initial=0))
    if not largest:
        raise ValueError(f"queries must not all be 0, got {len(queries)} of them")
    wide /= largest
    moment = wide.T @ wide
    size, axes = np.linalg.eigh(moment + np.trace(moment) / (len(wide) * dim) * np.eye(dim))
    log = np.log(size)
    return ((axes * np.exp(POWER * (log - log.mean()))) @ axes.T).astype(dtype)


def alike(a: Any, b: Any) -> bool:
    """Return whether two metrics are the same, but for the rounding of other machines."""
    return a.shape == b.shape and bool(np.abs(a - b).max(initial=0) <= _ROUNDING * np.abs(a).max(initial=0))


def compared(metric: Any, items: Any) -> Any:
    """Return items, or differences of them, as they are compared; what does not fit comes out as no number."""
    if not len(metric):
        return items
    with np.errstate(over="ignore", invalid="ignore"):
        return items @ metric.astype(items.dtype, copy=False)


def restored(metric: Any, items: Any) -> Any:
    """Return what `compared` returns some items for."""
    if not len(metric):
        return items
    return np.linalg.solve(metric.astype(np.float64), items.astype(np.float64).T).T.astype(items.dtype)
