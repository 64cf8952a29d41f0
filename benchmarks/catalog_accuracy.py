"""Errors of Z on held-out queries, how often intervals hold, and what other estimators do with as many dots."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import rfkernels as rfk
from benchmarks.catalog_rivals import RIVALS
from benchmarks.glove import Array, Setting, errors, share_held, with_catalogs
from rfkernels.benchmark.line import Line
from rfkernels.catalog import engines, scans
from rfkernels.catalog.codes import cost

BUDGET = 4000
OTHERS = 1_000, 15_000
"""Budgets at which intervals are to hold as well."""

MISSED, FAR = 0.05, 5
"""Errors, relative and in standard errors, beyond which a query is told nothing true of."""

MEDIAN, HIGH, OTHERWISE = "<= 0.01", {"raw τ=1": "<= 0.3"}, "<= 0.1"


def accuracy(settings: list[Setting]) -> Iterator[Line]:
    plain = {id(x.held): rfk.Catalog(x.items, rng=0) for x in settings}
    for setting, catalog in with_catalogs(settings):
        yield from _one(setting, catalog, plain[id(setting.held)])


def _intervals(name: str, log: Array, error: Array, exact: Array) -> Line:
    holds = share_held(log, error, exact)
    detail = f"{holds:.1%} hold; median relative standard error {np.median(error):.2g}"
    what = f"{name}: share of 95 % intervals that hold, distance from 0.95"
    return Line(what, round(abs(holds - 0.95), 6), "", "<= 0.03", detail)


def misses(name: str, off: Array, error: Array) -> Line:
    """Count queries that no standard error warns of."""
    missed = float(np.count_nonzero((off > MISSED) & (off > FAR * error)))
    what = f"{name}: queries off by {MISSED:.0%} and more than {FAR} standard errors"
    return Line(what, missed, "", "", f"of {len(off):,}; the largest error is {off.max():.2g}")


def _spent(catalog: rfk.Catalog, queries: Array) -> str:
    """Return what the dot products of most queries are."""
    table, kind = catalog.table, int(np.median(scans.kinds(catalog.table, queries)))
    spent = (*scans.shares(table, BUDGET, 0), None)[kind]
    if spent is None:
        return "no codes are read"
    codes = f"codes of {spent.scanned:,} items, {cost(table):.3g} each"
    return f"{' and '.join(map(str, table.means.shape))} for cells and spread, {codes}, and {spent.checked} items"


def _one(setting: Setting, catalog: rfk.Catalog, plain: rfk.Catalog) -> Iterator[Line]:
    found = catalog.log_normalizer(setting.queries, budget=BUDGET, full=True, rng=0)
    log, error = (np.asarray(x, np.float64) for x in (found.log_normalizer, found.standard_error))
    ours, exact, name = errors(log, setting.exact), setting.exact, setting.name
    queries = f"{len(ours):,} held-out queries, {len(setting.items):,} items"
    dots = f"dots a query: median {np.median(found.dots):.0f}; {_spent(catalog, setting.queries)}"
    median, high = float(np.median(ours)), float(np.quantile(ours, 0.95))
    yield Line(f"{name}: most dots a query", float(np.max(found.dots)), "", f"<= {BUDGET}", dots)
    yield Line(f"{name}: error of Z, median", median, "", MEDIAN, queries)
    yield Line(f"{name}: error of Z, 95th percentile", high, "", HIGH.get(name, OTHERWISE), queries)
    yield _intervals(name, log, error, exact)
    yield misses(name, ours, error)
    for budget in OTHERS:
        other = catalog.log_normalizer(setting.queries, budget=budget, full=True, rng=0)
        yield _intervals(f"{name}, {budget:,} dots", other.log_normalizer, other.standard_error, exact)
    alone = engines.estimated(catalog.table, setting.queries, BUDGET, None, 0, "numba", coded=False)
    untold = errors(plain.log_normalizer(setting.queries, budget=BUDGET, rng=0), exact)
    for what, q in (("median", 0.5), ("95th percentile", 0.95)):
        value = float(np.quantile(errors(alone.log_normalizer, exact), q))
        yield Line(f"{name}, no codes: error of Z, {what}", value, "", "", "every dot product one of single precision")
        yield Line(f"{name}, no past queries: error of Z, {what}", float(np.quantile(untold, q)), "", "", "")
    bias = np.expm1(np.minimum(log - exact, 700))
    mean = f"standard error {np.std(bias) / len(bias) ** 0.5:.2g}"
    yield Line(f"{name}: mean of Ẑ/Z − 1", float(np.mean(bias)), "", "", mean)
    rivals = {rival: errors(estimate(setting, BUDGET), exact) for rival, estimate in RIVALS.items()}
    for what, own, q in (("median", median, 0.5), ("95th percentile", high, 0.95)):
        theirs = {rival: float(np.quantile(x, q)) for rival, x in rivals.items()}
        least = min(theirs.values())
        detail = ", ".join(f"{rival} {value:.2g}" for rival, value in theirs.items())
        yield Line(f"{name}: {what} of the best rival / ours", least / own, "x", "> 1", detail)
