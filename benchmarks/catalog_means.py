"""Means of the items under the softmax: how far off, how often intervals hold, and the time against NumPy's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import numpy as np

import rfkernels as rfk
from benchmarks.catalog_speed import BATCH, CHUNKS, ROUNDS, SECONDS
from benchmarks.glove import BLOCK, NORMAL, Array, Setting, with_catalogs
from rfkernels.benchmark.line import Line, Ratio, ratio_line
from rfkernels.benchmark.plan import allowed_threads
from rfkernels.benchmark.timing import Timings, interleave, timed

BUDGETS = 1_000, 4_000


def means(settings: list[Setting]) -> Iterator[Line]:
    """Compare at some budgets; values are the items themselves, errors in standard deviations under the softmax."""
    for setting, catalog in with_catalogs(settings):
        mean, deviation = _moments(setting, setting.queries[:BATCH])
        for budget in BUDGETS:
            yield from _errors(setting, catalog, budget, mean, deviation)
        for count in (min(BATCH, len(setting.queries)), 1):
            yield from _times(setting, catalog, count)


def _moments(setting: Setting, queries: Array) -> tuple[Array, Array]:
    """Return exact means and standard deviations: float32 products, all else in float64."""
    items, log = setting.items, setting.exact[: len(queries), None]
    mean, square = (np.zeros((len(queries), items.shape[1])) for _ in range(2))
    for first in range(0, len(items), BLOCK):
        own = items[first : first + BLOCK]
        p = np.exp(queries @ own.T - log)
        mean += p @ own
        square += p @ own.astype(np.float64) ** 2
    return mean, np.sqrt(square - mean**2)


def _errors(setting: Setting, catalog: rfk.Catalog, budget: int, mean: Array, deviation: Array) -> Iterator[Line]:
    found = catalog.expectation(setting.queries[: len(mean)], setting.items, budget=budget, full=True, rng=0)
    off = np.sqrt((((found.mean - mean) / deviation) ** 2).mean(1))
    name, detail = (
        f"{setting.name}, {budget:,} dots",
        f"{len(mean)} held-out queries, {mean.shape[1]} columns of values",
    )
    yield Line(f"{name}: error of means, median", float(np.median(off)), "", "", detail)
    yield Line(f"{name}: error of means, 95th percentile", float(np.quantile(off, 0.95)), "", "", detail)
    holds = float((np.abs(found.mean - mean) <= NORMAL * found.standard_error).mean())
    said = float(np.median(np.sqrt(((found.standard_error / deviation) ** 2).mean(1))))
    what = f"{holds:.1%} hold; median standard error {said:.2g} deviations"
    yield Line(f"{name}: share of 95 % intervals of means that hold", holds, "", "", what)


def _numpy(queries: Array, items: Array, chunk: int) -> Array:
    """Return exact means, in float32 and without a shift: less work than a computation that cannot overflow."""
    sums, whole = np.zeros((len(queries), items.shape[1]), np.float32), np.zeros(len(queries), np.float32)
    for first in range(0, len(items), chunk):
        own = items[first : first + chunk]
        logits = queries @ own.T
        np.exp(logits, out=logits)
        sums += logits @ own
        whole += logits.sum(1)
    return np.asarray(sums / whole[:, None])


def _times(setting: Setting, catalog: rfk.Catalog, count: int) -> Iterator[Line]:
    queries, items, clock = setting.queries, setting.items, time.perf_counter
    ways = {chunk: partial(_numpy, queries[:count], items, chunk) for chunk in CHUNKS}
    took = interleave({str(chunk): timed(way, 0, clock) for chunk, way in ways.items()}, 2)
    chunk = min(ways, key=lambda x: min(took[str(x)]))
    cases: dict[str, Callable[[], Array]] = {"NumPy": ways[chunk]}
    cases |= {f"{budget:,}": _ours(catalog, setting, count, budget) for budget in BUDGETS}
    timings = Timings(interleave({name: timed(call, SECONDS[clock], clock) for name, call in cases.items()}, ROUNDS))
    what = f"{count:,} queries" if count > 1 else "one query"
    for budget in BUDGETS:
        name = f"{setting.name}, means, {what} of {budget:,} dots: time of NumPy / ours"
        note = f"NumPy: {chunk:,} items at a time"
        yield ratio_line(timings, Ratio(name, "NumPy", f"{budget:,}", "", note=note), allowed_threads())


def _ours(catalog: rfk.Catalog, setting: Setting, count: int, budget: int) -> Callable[[], Array]:
    starts, queries = cycle(range(0, len(setting.queries) - count + 1, count)), setting.queries

    def call() -> Array:
        start = next(starts)
        return np.asarray(catalog.expectation(queries[start : start + count], setting.items, budget=budget, rng=0))

    return call
