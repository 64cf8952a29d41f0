"""How items are compared when they are grouped: as they are, or as past queries tell them apart.

Queries vary within a cell by E (q·(y − μ))² = (y − μ)ᵀ M (y − μ), with M = E q qᵀ. k-means of M^½ y finds cells in
which that is least on the average, which the queries of the largest logits make up; with M^¼ y the others count, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels._checks import require_finite
from rfkernels.catalog.cells import check_plain, chunks
from rfkernels.catalog.tables import FAR

POWER = 0.25
"""The power of E q qᵀ that items are multiplied by.

With ½ errors are about the same, but tails heavier (GloVe, `benchmarks/catalog.py accuracy`), and with 0 cells know
nothing of queries.
"""

_ROUNDING = 2.0**-12


def metric_of(queries: Any, dim: int, dtype: Any) -> Any:
    """Return what items are multiplied by before they are compared, (dim, dim) of determinant 1, or (0, dim) for none.

    One query that looks in all directions alike is added to those given, so that a few of them determine a metric, and
    those more than FAR times as large as most count as if they were that large.

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
    check_plain("queries", queries)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"queries must have shape (queries, {dim}), got {queries.shape}")
    require_finite("queries", queries)
    given = np.asarray(queries)
    # Largest numbers first: squares of subnormal or huge ones are none.
    largest = np.concatenate([np.abs(given[part].astype(np.float64)).max(1) for part in chunks(*given.shape)] or [[]])
    if not largest.any():
        raise ValueError(f"queries must not all be 0, got {len(given)} of them")
    unit = float(largest.max())
    sizes = np.concatenate([_size(given[part].astype(np.float64) / unit) for part in chunks(*given.shape)])
    most, moment = FAR * np.median(sizes[sizes > 0]), np.zeros((dim, dim))
    for part in chunks(*given.shape):
        own = given[part].astype(np.float64) / unit * (most / np.maximum(sizes[part], most))[:, None]
        moment += own.T @ own
    size, axes = np.linalg.eigh(moment + np.trace(moment) / (len(given) * dim) * np.eye(dim))
    log = np.log(size)
    return ((axes * np.exp(POWER * (log - log.mean()))) @ axes.T).astype(dtype)


def _size(rows: Any) -> Any:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))


def alike(a: Any, b: Any) -> bool:
    """Return whether two metrics are the same, but for the rounding of other machines."""
    return a.shape == b.shape and bool(np.abs(a - b).max(initial=0) <= _ROUNDING * np.abs(a).max(initial=0))


def compared(metric: Any, items: Any) -> Any:
    """Return items, or differences of them, as they are compared; what does not fit comes out as no number."""
    if not len(metric):
        return items
    with np.errstate(over="ignore", invalid="ignore"):
        kind = np.result_type(items, metric)  # items of less precision may come, which are held in that of the metric
        return items.astype(kind, copy=False) @ metric.astype(kind, copy=False)


def restored(metric: Any, items: Any) -> Any:
    """Return what `compared` returns some items for."""
    if not len(metric):
        return items
    return np.linalg.solve(metric.astype(np.float64), items.astype(np.float64).T).T.astype(items.dtype)
