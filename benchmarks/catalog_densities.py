"""Sums of kernels of a distance over the items, as density estimation takes them: errors, intervals, and times.

In all 50 dimensions, and in the first 8 and 2 principal components, at bandwidths that are multiples of Silverman's
n^(−1/(d + 4)) times the root mean square deviation of a coordinate; of exponential kernels so much divided by √d, and
of Epanechnikov's times √(d + 4), as they reach farther, and less far, than Gaussian ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import KernelDensity

import rfkernels as rfk
from benchmarks.catalog_speed import BATCH, ROUNDS, SECONDS, Weigh, exponentials, fastest_exact
from benchmarks.glove import Array, Setting, errors, share_held
from rfkernels.benchmark.line import Line, Ratio, ratio_line
from rfkernels.benchmark.plan import allowed_threads
from rfkernels.benchmark.timing import Timings, interleave, timed

CASES = {
    50: {"gaussian": (4.0, 2.0, 1.0), "exponential": (4.0, 2.0)},
    8: {"gaussian": (2.0, 1.0, 0.5), "exponential": (2.0, 1.0), "epanechnikov": (2.0, 1.0)},
    2: {"gaussian": (2.0, 1.0, 0.5), "exponential": (2.0, 1.0), "epanechnikov": (2.0, 1.0)},
}
"""Multiples of Silverman's bandwidth for each number of dimensions, and kernels as scikit-learn calls them."""


def _epanechnikov(xp: Any, squared: Any) -> Any:
    inside = squared < 1
    return xp.where(inside, xp.log(xp.where(inside, 1 - squared, 1)), -float("inf"))


def _exponentials_of_roots(halves: Array) -> Array:
    np.multiply(halves, -2, out=halves)
    np.sqrt(np.maximum(halves, 0, out=halves), out=halves)
    return exponentials(np.negative(halves, out=halves))


def _parabola(halves: Array) -> Array:
    np.multiply(halves, 2, out=halves)
    np.add(halves, 1, out=halves)
    return np.asarray(np.maximum(halves, 0, out=halves))


class Form(NamedTuple):
    """A kernel, what it is of −|q − y|²/2h² in NumPy, and what bandwidths are multiplied by in some dimensions."""

    kernel: rfk.Kernel
    weigh: Weigh
    factor: Callable[[int], float]


def _known(name: str) -> rfk.Kernel:
    kernel = rfk.lookup(name).kernel
    assert kernel is not None
    return kernel


FORMS = {
    "gaussian": Form(_known("gaussian"), exponentials, lambda dim: 1.0),
    "exponential": Form(_known("laplacian"), _exponentials_of_roots, lambda dim: dim**-0.5),
    "epanechnikov": Form(
        rfk.Kernel.of_distance("epanechnikov", _epanechnikov), _parabola, lambda dim: (dim + 4.0) ** 0.5
    ),
}

BUDGETS = 1_024, 4_096
TOLERANCE, TREE_QUERIES = 0.05, 20
"""The relative tolerance of scikit-learn's trees, and how many queries are timed, as one may take a second."""


class Density(NamedTuple):
    """Items, queries that are not among them, a kernel, a bandwidth, and the exact log of the sum for each query."""

    name: str
    kernel: str
    items: Array
    queries: Array
    bandwidth: float
    exact: Array

    @property
    def scale(self) -> float:
        return 1 / self.bandwidth**2

    @property
    def form(self) -> Form:
        return FORMS[self.kernel]


def densities(settings: list[Setting]) -> Iterator[Line]:
    """Compare in each case; items and queries are those of the raw setting where queries are not multiplied."""
    held = next(setting for setting in settings if setting.tau == 1)
    for dim, kernels in CASES.items():
        items, queries = _components(held.items, held.queries, dim)
        catalog = rfk.Catalog(items, rng=0)
        squares = _squares(items, queries)
        tree = KernelDensity(algorithm="ball_tree", rtol=TOLERANCE).fit(items) if dim < 50 else None
        silverman = len(items) ** (-1 / (dim + 4)) * float(np.sqrt(items.var(0).mean()))
        for kernel, multiples in kernels.items():
            for multiple in multiples:
                bandwidth = multiple * silverman * FORMS[kernel].factor(dim)
                found = _log_sums(squares, FORMS[kernel].kernel, bandwidth)
                some = found > -np.inf
                name = f"{dim} dimensions, {kernel}, h={bandwidth:.2g}"
                given = Density(name, kernel, items, queries[some], bandwidth, found[some])
                if not some.all():
                    yield Line(f"{name}: share of queries with no item within h, left out", 1 - some.mean(), "", "", "")
                yield from _errors(given, catalog)
                yield from _times(given, catalog, tree)


def _components(items: Array, queries: Array, dim: int) -> tuple[Array, Array]:
    if dim == items.shape[1]:
        return items, queries
    found = PCA(dim, random_state=0).fit(items[:20_000])
    few, some = (np.ascontiguousarray(found.transform(x), np.float32) for x in (items, queries))
    return few, some


def _squares(items: Array, queries: Array) -> Array:
    """Return |q − y|², computed in float64, (queries, items)."""
    wide, found = items.astype(np.float64), np.empty((len(queries), len(items)), np.float32)
    norms = np.square(wide).sum(1)
    for i, query in enumerate(queries.astype(np.float64)):
        found[i] = norms - 2 * wide @ query + query @ query if len(query) > 8 else _near(wide, query)
    return found


def _near(items: Array, query: Array) -> Array:
    return np.asarray(np.square(items - query).sum(1))


def _log_sums(squares: Array, kernel: rfk.Kernel, bandwidth: float) -> Array:
    found = []
    for first in range(0, len(squares), 50):
        wide = squares[first : first + 50].astype(np.float64) / bandwidth**2
        with np.errstate(divide="ignore"):
            log = kernel.log(np, 0, 0, wide)
            found.append(np.logaddexp.reduce(log, axis=1))
    return np.concatenate(found)


def _errors(given: Density, catalog: rfk.Catalog) -> Iterator[Line]:
    for budget in BUDGETS:
        found = _sums(given, catalog, budget=budget, full=True, rng=0)
        off, uniform = errors(found.log_normalizer, given.exact), errors(_uniform(given, budget), given.exact)
        name = f"{given.name}, {budget:,} dots"
        note = (
            f"items drawn at random: median {np.median(uniform):.3g}, 95th percentile {np.quantile(uniform, 0.95):.3g}"
        )
        yield Line(f"{name}: error of sums, median", float(np.median(off)), "", "", note)
        yield Line(f"{name}: error of sums, 95th percentile", float(np.quantile(off, 0.95)), "", "", "")
        holds = share_held(found.log_normalizer, found.standard_error, given.exact)
        detail = f"{holds:.1%} hold; median standard error {np.median(found.standard_error):.2g}"
        yield Line(f"{name}: share of 95 % intervals that hold", holds, "", "", detail)


def _uniform(given: Density, budget: int) -> Array:
    """Return what items drawn at random say, for each query anew."""
    rng, found = np.random.default_rng(1), []
    for query in given.queries.astype(np.float64):
        own = given.items[rng.integers(len(given.items), size=budget)]
        with np.errstate(divide="ignore"):
            log = given.form.kernel.log(np, 0, 0, _near(own, query) * given.scale)
            found.append(np.logaddexp.reduce(log) + np.log(len(given.items) / budget))
    return np.array(found)


def _sums(given: Density, catalog: rfk.Catalog, queries: Array | None = None, **keywords: Any) -> Any:
    own = given.queries if queries is None else queries
    return catalog.kernel_sum(own, given.form.kernel, scale=given.scale, **keywords)


def _times(given: Density, catalog: rfk.Catalog, tree: KernelDensity | None) -> Iterator[Line]:
    """Compare with NumPy: −|q − y|²/2 is a dot product of as many numbers and two more."""
    clock, threads = time.perf_counter, allowed_threads()
    halves = [np.square(x).sum(1, keepdims=True) / -2 for x in (given.items, given.queries)]
    wide = np.concatenate([given.items, halves[0], np.ones_like(halves[0])], 1)
    scaled = np.float32(given.scale) * np.concatenate([given.queries, np.ones_like(halves[1]), halves[1]], 1)
    for count in (min(BATCH, len(given.queries)), 1):
        note, exact = fastest_exact(wide, scaled[:count], threads, weigh=given.form.weigh)
        cases: dict[str, Callable[[], object]] = {"NumPy": partial(exact, scaled[:count])}
        cases |= {f"{budget:,}": _ours(given, catalog, count, budget) for budget in BUDGETS}
        timings = Timings(interleave({name: timed(x, SECONDS[clock], clock) for name, x in cases.items()}, ROUNDS))
        what = f"{count:,} queries" if count > 1 else "one query"
        for budget in BUDGETS:
            name = f"{given.name}, {what} of {budget:,} dots: time of NumPy / ours"
            yield ratio_line(timings, Ratio(name, "NumPy", f"{budget:,}", "", note=f"NumPy: {note}"), threads)
    if tree is not None:
        yield from _tree(given, catalog, tree)


def _tree(given: Density, catalog: rfk.Catalog, tree: KernelDensity) -> Iterator[Line]:
    some, clock = given.queries[:TREE_QUERIES], time.perf_counter
    tree.set_params(bandwidth=given.bandwidth, kernel=given.kernel)
    tree.bandwidth_ = given.bandwidth
    cases = {
        "scikit-learn": partial(tree.score_samples, some),
        "ours": partial(_sums, given, catalog, some, budget=BUDGETS[-1]),
    }
    timings = Timings(interleave({name: timed(x, 0, clock) for name, x in cases.items()}, 3))
    name = f"{given.name}, {len(some)} queries of {BUDGETS[-1]:,} dots: time of scikit-learn / ours"
    note = f"KernelDensity, a ball tree, rtol={TOLERANCE}"
    yield ratio_line(timings, Ratio(name, "scikit-learn", "ours", "", note=note), allowed_threads())


def _ours(given: Density, catalog: rfk.Catalog, count: int, budget: int) -> Callable[[], Array]:
    starts = cycle(range(0, len(given.queries) - count + 1, count))

    def call() -> Array:
        start = next(starts)
        own = given.queries[start : start + count]
        return np.asarray(_sums(given, catalog, own, budget=budget, rng=0))

    return call
