"""Draws: do they follow the probabilities that are stated, how good are their weights, and what does one cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from scipy import stats

import rfkernels as rfk
from benchmarks.catalog_speed import ROUNDS, SECONDS, fastest_exact
from benchmarks.glove import Array, Setting, with_catalogs
from rfkernels.benchmark.line import Line, Ratio, ratio_line
from rfkernels.benchmark.plan import allowed_threads
from rfkernels.benchmark.timing import Timings, interleave, timed
from rfkernels.catalog.sampling import HEAD

DRAWS = 100_000
EXPECTED = 10  # an item counts alone from so many expected draws on
P_VALUE = 1e-3
TESTED, WEIGHED = 3, 100  # queries
TAIL = 50  # parts of equal expectation that the tail of the softmax is cut into


def sampling(settings: list[Setting]) -> Iterator[Line]:
    halves = 0
    for setting, catalog in with_catalogs(settings):
        yield _stated(setting, catalog)
        yield _softmax(setting, catalog)
        share = _effective(setting, catalog)
        halves += share.value >= 0.5
        yield share
        if setting.name == settings[1].name:
            yield from _cost(setting, catalog)
    yield Line("settings with an effective sample of half the draws or more", halves, "", ">= 4", "")


def _p_value(counts: Array, expected: Array, missing: float = 0.0) -> float:
    """Return the p-value of counts, those expected less than ten times as one, with `missing` ones that never came."""
    counts, expected = np.append(counts, 0), np.append(expected, missing)
    few = expected < EXPECTED
    few[-1] = True
    counts, expected = (np.append(x[~few], x[few].sum()) for x in (counts, expected))
    kept = expected > 0
    return float(stats.chisquare(counts[kept], expected[kept] * counts[kept].sum() / expected[kept].sum()).pvalue)


def _stated(setting: Setting, catalog: rfk.Catalog) -> Line:
    """Test draws against their stated probabilities: items expected ten times or more apart, others by group.

    Within a group probabilities are in proportion to exp(q·y), so what is stated of one item says what of the group.
    """
    found, bins, uneven = [], 0, 0.0
    for i in range(TESTED):
        drawn = catalog.sample(setting.queries[i : i + 1], DRAWS, 10 + i)
        counts, expected, spread = _grouped(catalog, setting.queries[i], np.asarray(drawn.ids)[0], drawn)
        uneven, bins = max(uneven, spread), max(bins, int((expected >= EXPECTED).sum()))
        short = abs(expected.sum() / DRAWS - 1) > 0.01  # groups that never came are short of that only if they are many
        found.append(0.0 if short else _p_value(counts, expected, max(DRAWS - expected.sum(), 0)))
    detail = (
        f"least of {TESTED} queries (times {TESTED}), {DRAWS:,} draws each, up to {bins:,} parts; {uneven:.1g} uneven"
    )
    name = f"{setting.name}: p-value against stated probabilities"
    return Line(name, min(1.0, TESTED * min(found)), "", f">= {P_VALUE}", detail)


def _grouped(catalog: rfk.Catalog, query: Array, ids: Array, drawn: Any) -> tuple[Array, Array, float]:
    """Return counts and expectations of parts, and how unlike the shares of one group come out."""
    table, slots = catalog.table, catalog.store.slots
    group = np.full(len(table.rows), -1)
    for g, (start, count) in enumerate(zip(table.start, table.count, strict=True)):
        group[start : start + count] = g
    held = group >= 0
    sums = np.bincount(group[held], np.exp(table.rows[held].astype(np.float64) @ query), len(table.start))
    items, first, times = np.unique(ids, return_index=True, return_counts=True)
    own = group[slots[items]]
    probability = np.exp(np.asarray(drawn.log_probability, np.float64)[0, first])
    stated = probability * sums[own] / np.exp(np.asarray(drawn.logits, np.float64)[0, first])
    share = np.zeros(len(table.start))
    share[own] = stated
    apart = probability * DRAWS >= EXPECTED
    rest = share - np.bincount(own[apart], probability[apart], len(share))
    counts = np.concatenate([times[apart], np.bincount(own[~apart], times[~apart], len(share))])
    expected = np.concatenate([probability[apart], np.maximum(rest, 0)]) * DRAWS
    return counts, expected, float(np.max(np.abs(stated / share[own] - 1)))


def _softmax(setting: Setting, catalog: rfk.Catalog) -> Line:
    """Test exact draws against the softmax: its head apart, its tail in parts of equal probability."""
    found = []
    for i in range(TESTED):
        query = setting.queries[i : i + 1]
        drawn = np.asarray(catalog.sample(query, DRAWS, 20 + i, exact=True).ids)[0]
        probability = np.exp((setting.items @ query[0]).astype(np.float64) - setting.exact[i])
        probability /= probability.sum()
        tail = np.flatnonzero(probability * DRAWS < EXPECTED)
        part = np.full(len(probability), -1)
        part[tail] = np.minimum(np.cumsum(probability[tail]) / probability[tail].sum() * TAIL, TAIL - 1).astype(int)
        head = np.flatnonzero(part < 0)
        part[head] = TAIL + np.arange(len(head))
        expected = np.bincount(part, probability, TAIL + len(head)) * DRAWS
        counts = np.bincount(part[drawn], minlength=len(expected))
        found.append(_p_value(counts, expected))
    detail = f"least of {TESTED} queries (times {TESTED}), {DRAWS:,} draws each, tail in {TAIL} parts"
    return Line(
        f"{setting.name}: p-value of exact draws against the softmax",
        min(1, TESTED * min(found)),
        "",
        f">= {P_VALUE}",
        detail,
    )


def _effective(setting: Setting, catalog: rfk.Catalog) -> Line:
    """Estimate (E w)² / E w² of the weights w = exp(q·y) / p(y), with E w = Z known."""
    drawn = catalog.sample(setting.queries[:WEIGHED], 10_000, 30)
    log_weight = np.asarray(drawn.logits, np.float64) - np.asarray(drawn.log_probability, np.float64)
    weight = np.exp(log_weight - setting.exact[:WEIGHED, None])
    share = 1 / np.mean(np.square(weight), axis=1)
    apart = (weight.mean(1) - 1) / (weight.std(1) / weight.shape[1] ** 0.5 + 1e-6)  # rounding
    low, middle, high = np.quantile(np.minimum(share, 1), [0.05, 0.5, 0.95])
    detail = (
        f"{WEIGHED} queries, 5th to 95th percentile {low:.2f} to {high:.2f}; mean weight less Z in standard errors: "
        f"mean {np.mean(apart):.2f}, root mean square {np.sqrt(np.mean(apart**2)):.2f}"
    )
    return Line(
        f"{setting.name}: effective sample as a share of the draws, median", float(middle), "", ">= 0.5", detail
    )


def _cost(setting: Setting, catalog: rfk.Catalog) -> Iterator[Line]:
    queries, threads = setting.queries, allowed_threads()
    way, numpy = fastest_exact(setting.items, queries[:1], threads)
    turn = cycle(range(len(queries)))

    def draw(count: int, exact: bool = False) -> Any:
        i = next(turn)
        return catalog.sample(queries[i : i + 1], count, i, exact=exact)

    cases = {
        "one draw": partial(draw, 1),
        "1,000 draws": partial(draw, 1000),
        "one exact draw": partial(draw, 1, True),
        "full evaluation": partial(numpy, queries[:1]),
    }
    timings = Timings(
        interleave({name: timed(call, SECONDS[time.perf_counter]) for name, call in cases.items()}, ROUNDS)
    )
    what = f"{setting.name}: time of"
    for name, draws, target in (
        ("one draw", 1, "<= 0.05"),
        ("1,000 draws", 1000, "<= 0.05"),
        ("one exact draw", 1, ""),
    ):
        each = " / 1,000" if draws > 1 else ""
        full = f"{what} {name}{each} / full evaluation"
        ratio = Ratio(full, name, "full evaluation", target, 1 / draws, f"NumPy: {way}")
        yield ratio_line(timings, ratio, threads)
    dots = sum(catalog.table.means.shape) + HEAD + int(catalog.table.count.max())
    share = dots / len(catalog)
    yield Line("dots of the first draw of a query / full evaluation", share, "", "<= 0.05", f"at most {dots:,}")
