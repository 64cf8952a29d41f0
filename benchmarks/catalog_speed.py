"""Queries a second against NumPy's exact computation with the same threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, product
from typing import Any

import numpy as np
import threadpoolctl

import rfkernels as rfk
from benchmarks.catalog_accuracy import BUDGET, HIGH, MEDIAN, OTHERWISE
from benchmarks.glove import Array, Setting, errors
from rfkernels.benchmark.line import Line, Ratio, meets, ratio_line, show_seconds
from rfkernels.benchmark.plan import allowed_threads, thread_count
from rfkernels.benchmark.timing import Timings, interleave, timed
from rfkernels.catalog.plan import fewest_dots

CHUNKS = (1 << 10, 1 << 12, 1 << 14, 1 << 16)
ROUNDS, SECONDS = 7, {time.perf_counter: 0.5, time.process_time: 0.1}
"""How often and how long things are timed: by the wall clock longer, as some kernels run threads that wake up after a
pause on one processor for the first 30 ms."""

BATCH = 250
BUDGETS = 1_000, 2_000, BUDGET
"""Dot products a query."""

STEP = 250
"""What budgets that are looked for are multiples of."""

Exact = Callable[[Array], Array]
Clock = Callable[[], float]
Call = Callable[[], Any]
Weigh = Callable[[Array], Array]


def exponentials(logits: Array) -> Array:
    """Return exp of logits, in their place."""
    return np.asarray(np.exp(logits, out=logits))


def sums(queries: Array, items: Array, weigh: Weigh) -> Array:
    """Return sums of weights of q·y, in float32 and without a shift: less work than what cannot overflow."""
    return np.asarray(weigh(queries @ items.T).sum(1))


def exact(items: Array, chunk: int, threads: int, weigh: Weigh = exponentials) -> Exact:
    """Return exact log Z as NumPy computes it, a chunk of items at a time, with so many threads over chunks.

    With one, the threads of the product are those that the process allows.
    """
    chunks = [items[i : i + chunk] for i in range(0, len(items), chunk)]
    if threads == 1:
        return lambda queries: _log(sum(sums(queries, y, weigh) for y in chunks))
    pool, blas = ThreadPoolExecutor(threads), threadpoolctl.ThreadpoolController()

    def log_normalizer(queries: Array) -> Array:
        with blas.limit(limits=1):
            return _log(sum(pool.map(partial(sums, queries, weigh=weigh), chunks)))

    return log_normalizer


def _log(x: Any) -> Array:
    """Return logs, −∞ of sums that are 0 in single precision."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(x))


def fastest_exact(
    items: Array, queries: Array, threads: int, clock: Clock = time.perf_counter, weigh: Weigh = exponentials
) -> tuple[str, Exact]:
    """Return the fastest of NumPy's ways for such queries, and what it is."""
    ways = {f"{chunk:,} items at a time": exact(items, chunk, 1, weigh) for chunk in CHUNKS}
    if threads > 1:
        ways |= {
            f"{chunk:,} items at a time, threads over these": exact(items, chunk, threads, weigh) for chunk in CHUNKS
        }
    took = interleave({name: timed(partial(way, queries), 0, clock) for name, way in ways.items()}, 3)
    best = min(took, key=lambda name: min(took[name]))
    return best, ways[best]


def speed(settings: list[Setting]) -> Iterator[Line]:
    """Compare wall-clock times, and processor times of one thread, which what else the machine does disturbs less.

    In one setting at all budgets, in the others at the least at which errors are what `BUDGET` is to reach.
    """
    threads, catalogs = allowed_threads(), {id(x.held): x.held.catalog() for x in settings}
    for setting, counts in product(settings, (BATCH, 1)):
        catalog, count = catalogs[id(setting.held)], min(counts, len(setting.queries))
        for budget in BUDGETS if setting is settings[1] else (enough(setting, catalog),):
            yield from compared(setting, catalog, count, budget, threads, time.perf_counter)
            with thread_count(1), threadpoolctl.threadpool_limits(1):
                yield from compared(setting, catalog, count, budget, 1, time.process_time)


def enough(setting: Setting, catalog: rfk.Catalog) -> int:
    """Return the least multiple of STEP at which errors are what they are to be, or the largest."""
    return least_budget(setting, catalog, lambda budget: catalog.log_normalizer(setting.queries, budget=budget, rng=0))


def least_budget(setting: Setting, catalog: rfk.Catalog, estimated: Callable[[int], Array]) -> int:
    """Return the same of some way to estimate the first log-normalizers, as many as it returns."""
    targets = MEDIAN, HIGH.get(setting.name, OTHERWISE)
    for budget in range(-(-fewest_dots(catalog.table) // STEP) * STEP, BUDGET + 1, STEP):
        found = estimated(budget)
        reached = np.quantile(errors(found, setting.exact[: len(found)]), (0.5, 0.95)).tolist()
        if all(meets(Line("", value, "", target, "")) for value, target in zip(reached, targets, strict=True)):
            return budget
    return BUDGET


def compared(
    setting: Setting, catalog: rfk.Catalog, count: int, budget: int, threads: int, clock: Clock
) -> Iterator[Line]:
    queries = setting.queries
    way, numpy = fastest_exact(setting.items, queries[:count], threads, clock)
    np.testing.assert_allclose(numpy(queries[:count]), setting.exact[:count], rtol=1e-4)
    cases: dict[str, Call] = {"ours": _ours(catalog, queries, count, budget), "NumPy": partial(numpy, queries[:count])}
    timings = Timings(interleave({name: timed(call, SECONDS[clock], clock) for name, call in cases.items()}, ROUNDS))
    what = f"{count:,} queries" if count > 1 else "one query"
    found = catalog.log_normalizer(queries, budget=budget, rng=0)
    median, high = np.quantile(np.abs(np.expm1(found - setting.exact)), (0.5, 0.95))
    what += f" of {budget:,} dots"
    kind = "processor time, 1 thread" if clock is time.process_time else "time"
    least = {name: min(times) for name, times in timings.samples.items()}
    note = (
        f"error of Z: median {median:.2g}, 95th percentile {high:.2g}; fastest {show_seconds(least['NumPy'])}, "
        f"{show_seconds(least['ours'])}; NumPy: {way}"
    )
    name = f"{setting.name}, {what}: {kind} of NumPy / ours"
    yield ratio_line(timings, Ratio(name, "NumPy", "ours", ">= 25", note=note), threads)
    rate = count / timings.median("ours")
    yield Line(
        f"{setting.name}, {what}: queries a second, {kind}", rate, "/s", "", f"fastest {count / least['ours']:.0f}"
    )


def _ours(catalog: rfk.Catalog, queries: Array, count: int, budget: int) -> Call:
    """Return a call that takes the next `count` queries, so that what one query reads is not in the cache for it."""
    starts = cycle(range(0, len(queries) - count + 1, count))

    def call() -> Any:
        start = next(starts)
        return catalog.log_normalizer(queries[start : start + count], budget=budget, rng=0)

    return call
