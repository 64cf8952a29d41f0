"""Sums of kernels at points that are items, as densities at data are: the item itself is not missed."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

from rfkernels.catalog import Catalog
from rfkernels.catalog.homes import homes, looked
from rfkernels.catalog.plan import fewest_dots
from rfkernels.kernels import Kernel

ITEMS, DIM, BUDGET = 6_000, 100, 500
KERNELS = {
    "laplacian": (0.1, lambda squared: -np.sqrt(squared)),
    "cauchy": (0.03, lambda squared: -np.log1p(squared)),
}
"""Widths, in distances of the middle item, and logs."""


@cache
def items() -> Any:
    return np.random.default_rng(0).normal(size=(ITEMS, DIM)).astype(np.float32)


@cache
def built() -> Catalog:
    return Catalog(items())


def squares(points: Any) -> Any:
    return np.array([((items().astype(np.float64) - point) ** 2).sum(1) for point in points])


def kernel(name: str) -> Any:
    return Kernel.of_distance("cauchy_of_one", lambda xp, squared: -xp.log1p(squared)) if name == "cauchy" else name


def groups_of(catalog: Catalog, ids: Any) -> Any:
    t = catalog.table
    rows = np.flatnonzero(np.isin(t.ids, ids))
    order = np.argsort(t.start)
    own = order[np.searchsorted(t.start[order], rows, side="right") - 1]
    return own[np.argsort(t.ids[rows])]


@pytest.mark.parametrize("told", [False, True])
def test_homes_are_the_groups_of_items(told: bool) -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=(3_000, 6)).astype(np.float32)
    own = Catalog(y, cells=20, queries=rng.normal(size=(50, 6)) * [5, 1, 1, 1, 1, 0.2] if told else None)
    assert (homes(own.table, y) == groups_of(own, np.arange(3_000))).all()
    more = rng.normal(size=(400, 6)).astype(np.float32)
    own.update(np.arange(400), more)
    assert (homes(own.table, more) == groups_of(own, np.arange(400))).all()
    assert (homes(own.table, 40 * y[:50]) == -1).all()  # farther out than any item of a group can be
    assert homes(own.table, np.full((1, 6), np.inf)).tolist() == [-1]
    assert homes(own.table, np.full((1, 6), 1e200)).tolist() == [-1]


def test_items_far_from_the_origin_have_homes() -> None:
    """Means are rounded there by as much as the few items of a cell lie apart."""
    y = 1e6 + 0.05 * np.random.default_rng(2).normal(size=(600, 12))
    own = Catalog(y.astype(np.float32), cells=100)
    assert (homes(own.table, own.table.rows[own.table.ids >= 0]) >= 0).all()


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("name", KERNELS)
def test_points_that_are_items(name: str, backend: str) -> None:
    """Without homes about half of these were off by more than five standard errors."""
    points, (width, log) = items()[:40], KERNELS[name]
    apart = squares(points)
    s = 1 / (width**2 * np.median(apart))
    found = built().kernel_sum(points, kernel(name), scale=s, budget=BUDGET, full=True, backend=backend)
    off = np.abs(found.log_normalizer - logsumexp(log(s * apart), axis=1))
    assert (off < 5 * found.standard_error + 1e-4).all()
    assert np.median(off) < 0.01
    assert (found.dots <= BUDGET).all()


@pytest.mark.parametrize("name", ["gaussian", *KERNELS])
def test_backends_agree(name: str) -> None:
    points = np.concatenate([items()[:9], items()[:9] + np.float32(0.3)])
    for s in (0.05, 0.3):
        how = {"scale": s, "budget": BUDGET, "full": True}
        one, other = (built().kernel_sum(points, kernel(name), **how, backend=b) for b in ("numba", "numpy"))
        np.testing.assert_allclose(one.log_normalizer, other.log_normalizer, rtol=0, atol=1e-3)
        np.testing.assert_allclose(one.standard_error, other.standard_error, rtol=0.01, atol=1e-6)
        np.testing.assert_array_equal(one.dots, other.dots)


def test_backends_agree_where_homes_seemed_to_count_most() -> None:
    y, points = np.split(np.random.default_rng(3).normal(size=(3_060, 2)).astype(np.float32), [3_000])
    own = Catalog(y)
    given = {"scale": 1.0, "budget": 1_500, "full": True}
    found, expected = (own.kernel_sum(points, backend=x, **given) for x in ("numba", "numpy"))
    np.testing.assert_array_equal(found.dots, expected.dots)
    np.testing.assert_allclose(found.log_normalizer, expected.log_normalizer, rtol=1e-5)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_homes_without_the_item_hide_nothing(backend: str) -> None:
    """What an item at the point would weigh is e^60 times what there is: guesses of other groups stay what they are."""
    points = items()[:40] + np.float32(0.5) * np.random.default_rng(2).normal(size=(40, DIM)).astype(np.float32)
    apart = squares(points)
    s = 120 / np.median(apart.min(1))
    found = built().kernel_sum(points, scale=s, budget=BUDGET, full=True, backend=backend)
    off = np.abs(found.log_normalizer - logsumexp(-0.5 * s * apart, axis=1))
    assert (off < 5 * found.standard_error + 1e-4).all()
    assert (off < 0.01).mean() > 0.8


def test_small_budgets_leave_homes_out() -> None:
    t, points = built().table, items()[:3]
    few = fewest_dots(t)
    for budget in (few, few + looked(t.means) - 1, few + looked(t.means)):
        assert (built().kernel_sum(points, scale=0.1, budget=budget, full=True).dots <= budget).all()
