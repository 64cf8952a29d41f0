"""Errors of Z where queries are items themselves, times τ: whoever asks for what is like an item asks so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.catalog_accuracy import misses
from benchmarks.glove import NORMAL, Array, Setting, errors, exact_logs, with_catalogs
from rfkernels.benchmark.line import Line

BUDGETS = 1_000, 2_000, 4_000
TAUS = {"raw": (0.3, 1.0, 2.0), "unit": (10.0, 20.0, 40.0)}
FIRST = 2_000
"""Items before this one are what catalogs are told as past queries."""

ROUNDED = 1e-4
"""What products of single precision may be off by, which standard errors do not know of."""


def of_items(settings: list[Setting]) -> Iterator[Line]:
    """Compare for each kind of vectors, from those that make sums of many items to those that make sums of few."""
    done: set[int] = set()
    for setting, catalog in with_catalogs(settings):
        if id(setting.held) not in done:
            done.add(id(setting.held))
            kind = setting.name.split()[0]
            find = partial(catalog.log_normalizer, full=True, rng=0)
            yield from of_kind(kind, find, setting.items, len(setting.queries), TAUS[kind], BUDGETS)


def of_kind(
    kind: str, find: Callable[..., Any], items: Array, count: int, taus: Sequence[float], budgets: Sequence[int]
) -> Iterator[Line]:
    """Compare what ``find(queries, budget=)`` returns with exact sums."""
    own = items[FIRST : FIRST + count]
    exact = exact_logs(own, items, list(taus))
    for tau, right in exact.items():
        shares = np.exp(tau * np.einsum("ij,ij->i", own, own, dtype=np.float64) - right)
        detail = f"{len(own):,} items as queries, which are {np.median(shares):.2g} of their sums in the median"
        for budget in budgets:
            found = find(np.float32(tau) * own, budget=budget)
            log, error = (np.asarray(x, np.float64) for x in (found.log_normalizer, found.standard_error))
            off, name = errors(log, right), f"{kind} τ={tau:g}, queries are items, {budget:,} dots"
            yield Line(f"{name}: error of Z, median", float(np.median(off)), "", "", detail)
            yield Line(f"{name}: error of Z, 95th percentile", float(np.quantile(off, 0.95)), "", "", detail)
            holds = float((errors(right, log) <= NORMAL * error + ROUNDED).mean())
            said = f"or {ROUNDED:g} beside; median relative standard error {np.median(error):.2g}"
            yield Line(f"{name}: share of 95 % intervals that hold", holds, "", "", said)
            yield misses(name, off, error)
