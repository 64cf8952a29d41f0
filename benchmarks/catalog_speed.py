"""Queries a second against NumPy's exact computation with the same threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import threadpoolctl

import rfkernels as rfk
from benchmarks.catalog_accuracy import BUDGET
from benchmarks.glove import Array, Setting
from rfkernels.benchmark.line import Line, Ratio, ratio_line, time_line
from rfkernels.benchmark.plan import allowed_threads
from rfkernels.benchmark.timing import Timings, interleave, timed

CHUNKS = (1 << 10, 1 << 12, 1 << 14, 1 << 16)
ROUNDS, SECONDS = 7, 0.3
Exact = Callable[[Array], Array]


def sums(queries: Array, items: Array) -> Array:
    """Return Σ exp(q·y), in float32 and without a shift: less work than a computation that cannot overflow."""
    logits = queries @ items.T
    np.exp(logits, out=logits)
    return np.asarray(logits.sum(1))


def exact(items: Array, chunk: int, pool: ThreadPoolExecutor | None) -> Exact:
    """Return exact log Z as NumPy computes it, a chunk of items at a time: threads in the product, or over chunks."""
    chunks = [items[i : i + chunk] for i in range(0, len(items), chunk)]

    def log_normalizer(queries: Array) -> Array:
        if pool is None:
            return np.asarray(np.log(sum(sums(queries, y) for y in chunks)))
        with threadpoolctl.threadpool_limits(1):
            return np.asarray(np.log(sum(pool.map(partial(sums, queries), chunks))))

    return log_normalizer


def fastest_exact(items: Array, queries: Array, pool: ThreadPoolExecutor) -> tuple[str, Exact]:
    """Return the fastest of NumPy's ways for such queries, and what it is."""
    ways = {
        f"{chunk:,} items at a time, {'threads over chunks' if over else 'threads in the product'}": exact(
            items, chunk, pool if over else None
        )
        for chunk in CHUNKS
        for over in (False, True)
    }
    samplers = {name: timed(partial(way, queries), 0) for name, way in ways.items()}
    took = interleave(samplers, 3)
    best = min(took, key=lambda name: min(took[name]))
    return best, ways[best]


def speed(settings: list[Setting]) -> Iterator[Line]:
    setting = settings[1]
    catalog = rfk.Catalog(setting.items, rng=0)
    queries, threads = setting.queries, allowed_threads()
    with ThreadPoolExecutor(threads) as pool:
        for what, given in ((f"{len(queries):,} queries", queries), ("one query", queries[:1])):
            way, numpy = fastest_exact(setting.items, given, pool)
            log = np.asarray(numpy(queries[:10]), np.float64)
            np.testing.assert_allclose(log, setting.exact[:10], rtol=1e-4)
            cases: dict[str, Callable[[], Any]] = {
                "ours": _ours(catalog, queries, len(given)),
                "NumPy": partial(numpy, given),
            }
            timings = Timings(interleave({name: timed(call, SECONDS) for name, call in cases.items()}, ROUNDS))
            name = f"{setting.name}, {what}: time of NumPy / ours"
            yield ratio_line(timings, Ratio(name, "NumPy", "ours", ">= 25", note=f"NumPy: {way}"), threads)
            yield _rate(setting, what, timings, len(given), threads)


def _ours(catalog: rfk.Catalog, queries: Array, count: int) -> Callable[[], Any]:
    """Return a call that takes the next `count` queries, so that what one query reads is not in the cache for it."""
    starts = cycle(range(0, len(queries) - count + 1, count))

    def call() -> Any:
        start = next(starts)
        return catalog.log_normalizer(queries[start : start + count], budget=BUDGET, rng=0)

    return call


def _rate(setting: Setting, what: str, timings: Timings, count: int, threads: int) -> Line:
    one = time_line("", timings, "ours", threads)
    rate = count / timings.median("ours")
    return Line(f"{setting.name}, {what}: queries a second", rate, "/s", "", f"{one.value:.3g} ms a call; {one.detail}")
