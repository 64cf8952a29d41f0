"""What estimates are computed by: compiled code, or the specification."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog import estimates, means, pilots, radial, sampling, tops
from rfkernels.catalog.arguments import check_fit, takes_all
from rfkernels.catalog.compiled import compiled
from rfkernels.catalog.means import Weighed
from rfkernels.catalog.records import Draws, Estimate, Table, Top


class Engine(NamedTuple):
    """The functions of modules of these names and `estimates`, or others that return the same to rounding."""

    estimate: Callable[..., Estimate]
    expect: Callable[..., Weighed]
    radial: Callable[..., Estimate]
    exact_radial: Callable[..., Estimate]
    exact: Callable[..., Estimate]
    sample: Callable[..., Draws]
    top: Callable[..., Top]


@cache
def choose(backend: str) -> Engine:
    """Return an engine by name."""
    if backend == "numpy":
        sums = radial.radial_sums, radial.exact_radial_sums, estimates.exact
        return Engine(estimates.estimate, means.expect, *sums, sampling.sample, tops.top)
    if backend == "numba":
        modules = "", "_means", "_radial", "_radial", "_exact", "_sampling", "_tops"
        names = "estimate", "expect", "radial_sums", "exact_radial_sums", "exact", "sample", "top"
        return Engine(*(getattr(compiled(f"catalog{x}"), name) for x, name in zip(modules, names, strict=True)))
    raise ValueError(f"backend must be one of numba, numpy, got {backend!r}")


def estimated(
    table: Table, queries: Any, budget: int, error: float | None, seed: int, backend: str, *, coded: bool = True
) -> Estimate:
    """Estimate log-normalizers, with as many dot products as the relative error asks for if one is given.

    Codes of items are read where that is of use, unless `coded` forbids it.
    """
    found = _estimated(table, queries, budget, seed, backend, coded)
    if error is None:
        return found

    def again(same: Any, own: int) -> Estimate:
        better = _estimated(table, queries[same], own, pilots.seed_of(seed, -1), backend, coded)
        return better._replace(dots=found.dots[same] + better.dots)

    return pilots.aimed(found, found.standard_error / error, budget, int(table.count.sum()), again)


def _estimated(table: Table, queries: Any, budget: int, seed: int, backend: str, coded: bool) -> Estimate:
    engine = choose(backend)
    if not len(table.count):
        return Estimate(np.full(len(queries), -np.inf), np.zeros(len(queries)), np.zeros(len(queries), np.int64))
    found = (
        engine.exact(table, queries)
        if takes_all(table, budget)
        else engine.estimate(table, queries, budget, seed, coded)
    )
    check_fit(found.log_normalizer, table.rows.dtype)
    return found
