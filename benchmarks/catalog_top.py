"""The ten items of largest q·y: how many are found, and how long others take to find as many."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import rfkernels as rfk
from benchmarks.glove import BLOCK, Array, Setting
from rfkernels.benchmark.line import Line, Ratio, missing_line, ratio_line, time_line
from rfkernels.benchmark.plan import allowed_threads
from rfkernels.benchmark.timing import Timings, interleave, timed

COUNT, BATCH = 10, 250
BUDGETS = 1_000, 4_000, 16_000, 64_000
"""Dot products a query; with the last, the codes of all items are read."""

ROUNDS, SECONDS = 5, 0.3
LISTS, PROBES = 640, (1, 2, 4, 8, 16, 32, 64, 128, 256, 640)
KEPT = 4, 16, 64
"""Items of codes of four bits, for each that is asked for, whose vectors are looked at."""

LINKS, WIDTHS = 32, (16, 32, 64, 128, 256, 512, 1024)
Find = Callable[[Array], Array]


def top(settings: list[Setting]) -> Iterator[Line]:
    """Compare with the indexes of faiss, built with as many threads, and with NumPy; τ changes no order."""
    for setting in {id(x.held): x for x in settings}.values():
        yield from _top(setting)


def _top(setting: Setting) -> Iterator[Line]:
    name, items, queries, threads = setting.name.split()[0], setting.items, setting.queries, allowed_threads()
    best, catalog = numpy_top(items, queries), setting.held.catalog()
    try:
        rivals = _faiss(items, threads)
    except ModuleNotFoundError as error:
        rivals = {}
        yield missing_line(f"{name}, top {COUNT}: time of faiss / ours", "x", "", f"{error.name} is not installed")
    ladder = {way: _judged(find, queries, best) for way, find in rivals.items()}
    for budget in (*BUDGETS, len(items)):
        ours = partial(_ours, catalog, budget)
        found, what = recall(ours(queries), best), f"{name}, top {COUNT} of {budget:,} dots"
        yield Line(f"{what}: share that is found", found, "", "", f"{len(queries):,} held-out queries")
        enough = {way: seconds for way, (share, seconds) in ladder.items() if share >= found}
        cases: dict[str, Find] = {"ours": ours, "NumPy": partial(numpy_top, items)}
        note = "no index of these found as many"
        if enough:
            way = min(enough, key=lambda way: enough[way])
            cases["faiss"], note = rivals[way], f"{way}: {ladder[way][0]:.3f} found"
        calls = {case: timed(_next(find, queries, BATCH), SECONDS) for case, find in cases.items()}
        timings = Timings(interleave(calls, ROUNDS))
        for rival in [x for x in ("faiss", "NumPy") if x in cases]:
            ratio = Ratio(f"{what}: time of {rival} / ours", rival, "ours", note=note if rival == "faiss" else "")
            yield ratio_line(timings, ratio, threads)
        if rivals and not enough:
            yield Line(f"{what}: time of faiss / ours", math.nan, "x", "", note)
        alone = Timings(interleave({"one": timed(_next(ours, queries, 1), SECONDS)}, ROUNDS))
        yield time_line(f"{what}: one query alone", alone, "one", threads, 1e6, "µs")


def numpy_top(items: Array, queries: Array) -> Array:
    """Return the places of the largest products, (queries, COUNT), a block of items at a time."""
    logits, places = np.full((len(queries), 0), 0, items.dtype), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(items), BLOCK):
        own = queries @ items[start : start + BLOCK].T
        most = min(COUNT, own.shape[1])
        own_places = np.argpartition(-own, most - 1, axis=1)[:, :most]
        logits = np.concatenate([logits, np.take_along_axis(own, own_places, 1)], axis=1)
        places = np.concatenate([places, own_places + start], axis=1)
    chosen = np.argpartition(-logits, COUNT - 1, axis=1)[:, :COUNT]
    return np.take_along_axis(places, chosen, 1)


def recall(found: Array, best: Array) -> float:
    """Return the share of the largest that was found."""
    return float(np.mean([np.isin(x, y).mean() for x, y in zip(best, found, strict=True)]))


def _ours(catalog: rfk.Catalog, budget: int, queries: Array) -> Array:
    return np.asarray(catalog.top(queries, COUNT, budget=budget).ids)


def _faiss(items: Array, threads: int) -> Mapping[str, Find]:
    """Return ways to search indexes of faiss: inverted lists, those of codes of four bits, and a graph."""
    faiss: Any = import_module("faiss")
    faiss.omp_set_num_threads(threads)
    product, dim = faiss.METRIC_INNER_PRODUCT, items.shape[1]
    lists = min(LISTS, len(items) // 40)
    plain, coded, graph = (
        faiss.index_factory(dim, kind, product)
        for kind in (f"IVF{lists},Flat", f"IVF{lists},PQ{dim // 2}x4fs,RFlat", f"HNSW{LINKS},Flat")
    )
    for index in (plain, coded, graph):
        index.train(items)
        index.add(items)
    ways: dict[str, Find] = {}
    for probes in PROBES:
        given = faiss.SearchParametersIVF(nprobe=probes)
        ways[f"IVF{lists} of {probes}"] = partial(_searched, plain, given)
        for kept in KEPT:
            refined = faiss.IndexRefineSearchParameters(k_factor=kept, base_index_params=given)
            ways[f"IVF{lists} of {probes}, codes, {kept * COUNT} again"] = partial(_searched, coded, refined)
    for width in WIDTHS:
        ways[f"HNSW{LINKS} of {width}"] = partial(_searched, graph, faiss.SearchParametersHNSW(efSearch=width))
    return ways


def _searched(index: Any, given: Any, queries: Array) -> Array:
    return np.asarray(index.search(queries, COUNT, params=given)[1])


def _judged(find: Find, queries: Array, best: Array) -> tuple[float, float]:
    """Return what share is found and the time of a batch, the least of three."""
    took = []
    for start in (0, BATCH, 2 * BATCH):
        own, begin = queries[start : start + BATCH], time.perf_counter()
        find(own)
        took.append((time.perf_counter() - begin) / max(len(own), 1))
    return recall(find(queries), best), min(took)


def _next(find: Find, queries: Array, count: int) -> Callable[[], Any]:
    """Return a call that takes the next queries."""
    count = min(count, len(queries))
    starts = itertools.cycle(range(0, len(queries) - count + 1, count))

    def call() -> Any:
        start = next(starts)
        return find(queries[start : start + count])

    return call
