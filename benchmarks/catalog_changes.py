"""Updates a second, the time of building against that of k-means, and memory beyond the items."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import rfkernels as rfk
from benchmarks.catalog_rivals import cells_of
from benchmarks.glove import Array, Setting
from rfkernels.benchmark.line import Line, Ratio, ratio_line, show_threads
from rfkernels.benchmark.plan import allowed_threads
from rfkernels.benchmark.timing import Timings, interleave, timed

BATCHES = (1_000, 10_000)
CHANGED = 200_000
ROUNDS = 3


def changes(settings: list[Setting]) -> Iterator[Line]:
    items = settings[0].items
    yield from _building(items)
    yield from _memory(items)
    _compile(items[:1000])
    for batch in BATCHES:
        yield from _rates(items, min(batch, len(items) // 10))
    yield from _mapped(items, min(BATCHES[0], len(items) // 100))


def _compile(items: Array) -> None:
    """Change items once: the first time on a machine, or after an edit, waits for a compiler."""
    catalog, ids = rfk.Catalog(items, rng=0), np.arange(100)
    catalog.update(ids, items[ids])
    catalog.remove(ids)
    catalog.add(items[ids], ids)


def _rates(items: Array, batch: int) -> Iterator[Line]:
    """Give items the vectors of others, take them out, and put them in again, each batch at random."""
    catalog, rng = rfk.Catalog(items, rng=0), np.random.default_rng(3)
    count = min(CHANGED, len(items) // 2) // batch * batch
    parts = rng.permutation(len(items))[:count].reshape(-1, batch).astype(np.int32)
    given = items[rng.permutation(len(items))[:count]].reshape(len(parts), batch, -1)
    steps: tuple[tuple[str, str, Callable[[Array, Array], Any]], ...] = (
        ("updates", ">= 1e5", lambda ids, x: catalog.update(ids, x)),
        ("removals", "", lambda ids, _: catalog.remove(ids)),
        ("additions", "", lambda ids, x: catalog.add(x, ids)),
    )
    for what, target, change in steps:
        times, processor = [], time.process_time()
        for ids, x in zip(parts, given, strict=True):
            start = time.perf_counter()
            change(ids, x)
            times.append(time.perf_counter() - start)
        processor = time.process_time() - processor
        low, high = np.quantile(times, [0.5, 0.95]) * 1e3
        detail = f"{count:,} in batches of {batch:,}: {low:.3g} ms a batch (median), {high:.3g} ms (95th percentile)"
        detail += f"; {count / processor:,.0f} a second of processor time"
        yield Line(f"{what} a second, batches of {batch:,}", count / sum(times), "/s", target, detail)


def _mapped(items: Array, batch: int) -> Iterator[Line]:
    """Change a catalog in a file: what becomes this process's own memory, beside its items."""
    count = 10 * batch
    parts, ids = np.split(items[:count], 10), np.random.default_rng(4).permutation(len(items) - count)[:count]
    for what in ("additions to", "updates of"):
        with TemporaryDirectory() as folder:
            catalog = rfk.Catalog.create(Path(folder) / "items", items[count:], rng=0)
            before, start = _own_memory(), time.perf_counter()
            for part, some in zip(parts, np.split(ids, 10), strict=True):
                catalog.add(part) if what == "additions to" else catalog.update(some, part)
            seconds, grown = time.perf_counter() - start, _own_memory() - before
            del catalog
        name, detail = f"{count:,} {what} a mapped catalog", f"in batches of {batch:,}; {count / seconds:,.0f} a second"
        detail += f"; {grown / 1e6:.3g} MB beside {items.nbytes / 1e6:.3g} MB of items in the file"
        yield Line(f"{name}: memory of each", grown / count / 1e3, "kB", "", detail)


def _own_memory() -> float:
    """Return how many bytes belong to this process alone and to no file; NaN where the system does not tell."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return float("nan")
    return 1024.0 * int(text.split("Anonymous:")[1].split()[0])


def _building(items: Array) -> Iterator[Line]:
    """Time a build against the same cells by scikit-learn, and one pass over the items that sorts and sums them."""
    cells = len(rfk.Catalog(items, rng=0).table.means)

    def alone() -> None:
        _, cell = cells_of(items, cells)
        order = np.argsort(cell, kind="stable")
        np.add.reduceat(items[order], np.flatnonzero(np.diff(cell[order], prepend=-1)))

    cases: dict[str, Callable[[], Any]] = {"ours": lambda: rfk.Catalog(items, rng=0), "KMeans and one pass": alone}
    for kind, clock in (("time", time.perf_counter), ("processor time", time.process_time)):
        timings = Timings(interleave({name: timed(call, 0, clock) for name, call in cases.items()}, ROUNDS))
        note = f"{cells} cells; scikit-learn, 10 rounds on 60 items a cell, then predict"
        ratio = Ratio(f"{kind} of building / KMeans and one pass", "ours", "KMeans and one pass", "<= 1", note=note)
        yield ratio_line(timings, ratio, allowed_threads())


def _memory(items: Array) -> Iterator[Line]:
    """Trace what NumPy allocates: the catalog keeps its own copy of the items, which is not counted."""
    tracemalloc.start()
    catalog = rfk.Catalog(items, rng=0)
    held, peak = (x - items.nbytes for x in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    detail = f"{held / 1e6:.3g} MB beside {items.nbytes / 1e6:.3g} MB of items; {show_threads(allowed_threads())}"
    yield Line("memory beyond the items", held / items.nbytes, "x", "<= 0.25", f"{detail}; {len(catalog):,} items")
    yield Line("memory while building, beyond the items", peak / items.nbytes, "x", "", "at its peak, as traced")
