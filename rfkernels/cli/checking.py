"""How far estimated log-normalizers are from exact ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

import rfkernels as rfk
from rfkernels.cli.columns import Columns
from rfkernels.kernels import Kernel

_ITEMS = 1 << 14  # at a time
_NORMAL = 1.96
_RARE = 0.01
_ROUNDING = 1e-5  # of float32 exponents, relative to the largest: the intervals of exact sums have no width


class Items(NamedTuple):
    """Items that are read a part at a time, and how many there are."""

    read: Callable[[slice], Any]
    total: int


class Checked(NamedTuple):
    """Errors |Ẑ/Z − 1| of some queries, and how many nominal 95 % intervals hold the exact value.

    `too_few` says that so few would hold by chance less than once in a hundred times.
    """

    queries: int
    median_error: float
    high_error: float
    covered: int
    too_few: bool


def check_rows(
    columns: Columns,
    chosen: Any,
    queries: Any,
    items: Items,
    kernel: Kernel,
    scale: float,
    advance: Callable[[str, int, int], None],
) -> Checked:
    """Compare the estimates of the queries at some places with exact sums over all items, read in parts."""
    q, exact = queries[chosen].astype(np.float64), np.full(len(chosen), -np.inf)
    for start in range(0, items.total, _ITEMS):
        advance("checking", start, items.total)
        part = items.read(slice(start, start + _ITEMS)).astype(np.float64)
        exact = np.logaddexp(exact, rfk.exact_log_normalizer(q, part, scale=scale, kernel=kernel))
    return compare(columns["log_normalizer"][chosen], columns["standard_error"][chosen], exact)


def compare(estimate: Any, standard_error: Any, exact: Any) -> Checked:
    """Compare estimated with exact log-normalizers; the interval is Ẑ ± 1.96 standard errors.

    Sums of nothing but zeros, whose log is −inf, may be estimated right as well.
    """
    apart = np.subtract(estimate, exact, out=np.zeros(len(exact)), where=estimate != exact)
    rounding = _ROUNDING * np.maximum(1, np.where(np.isfinite(exact), np.abs(exact), 0))
    beyond = np.sign(apart) * np.maximum(np.abs(apart) - rounding, 0)
    with np.errstate(over="ignore"):  # Z may be any number of times an estimate that all but vanished, or a part of it
        errors, off = np.abs(np.expm1(apart)), np.abs(np.expm1(-beyond))
    covered, count = int(np.sum(off <= _NORMAL * standard_error)), len(exact)
    # Between a number and infinity lies nothing.
    between: Literal["linear", "higher"] = "linear" if np.isfinite(errors).all() else "higher"
    median, high = np.quantile(errors, [0.5, 0.95], method=between)
    return Checked(count, float(median), float(high), covered, _at_most(covered, count) < _RARE)


def _at_most(covered: int, count: int, share: float = 0.95) -> float:
    """Return the probability that at most so many of `count` intervals hold when each does with probability `share`."""
    all_ways = math.lgamma(count + 1)
    return math.fsum(
        math.exp(
            all_ways
            - math.lgamma(i + 1)
            - math.lgamma(count - i + 1)
            + i * math.log(share)
            + (count - i) * math.log1p(-share)
        )
        for i in range(covered + 1)
    )
