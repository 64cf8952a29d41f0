"""How far estimated log-normalizers are from exact ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_ITEMS, _QUERIES = 1 << 14, 256  # at a time
_NORMAL = 1.96
_RARE = 0.01
_ROUNDING = 1e-5  # of float32 exponents, relative to the largest: the intervals of exact sums have no width


class Checked(NamedTuple):
    """Errors |Ẑ/Z − 1| of some queries, and how many nominal 95 % intervals hold the exact value.

    `too_few` says that so few would hold by chance less than once in a hundred times.
    """

    queries: int
    median_error: float
    high_error: float
    covered: int
    too_few: bool


def compare(estimate: Any, standard_error: Any, exact: Any) -> Checked:
    """Compare estimated with exact log-normalizers, all finite; the interval is Ẑ ± 1.96 standard errors."""
    rounding = _ROUNDING * np.maximum(1, np.abs(exact))
    with np.errstate(over="ignore"):  # Z may be any number of times an estimate that all but vanished
        off = np.abs(np.expm1(exact - estimate))
    covered = int(np.sum(off <= _NORMAL * standard_error + rounding))
    median, high = np.quantile(np.abs(np.expm1(estimate - exact)), [0.5, 0.95])
    count = len(exact)
    return Checked(count, float(median), float(high), covered, _at_most(covered, count) < _RARE)


def _at_most(covered: int, count: int, share: float = 0.95) -> float:
    """Return the probability that at most so many of `count` intervals hold when each does with probability `share`."""
    logs = (
        math.lgamma(count + 1)
        - math.lgamma(i + 1)
        - math.lgamma(count - i + 1)
        + i * math.log(share)
        + (count - i) * math.log1p(-share)
        for i in range(covered + 1)
    )
    return math.fsum(map(math.exp, logs))


def exact_log_normalizers(queries: Any, items: Any, gaussian: bool, advance: Callable[[int, int], None]) -> Any:
    """Return log Σ exp(q·y), or log Σ exp(−|q − y|²/2) if `gaussian`, for each query, in float64 throughout."""
    queries = queries.astype(np.float64)
    found = np.full(len(queries), -np.inf)
    for start in range(0, len(items), _ITEMS):
        advance(start, len(items))
        y = items[start : start + _ITEMS].astype(np.float64)
        for first in range(0, len(queries), _QUERIES):
            q, some = queries[first : first + _QUERIES], slice(first, first + _QUERIES)
            logits = q @ y.T
            if gaussian:
                logits -= (np.square(q).sum(1)[:, None] + np.square(y).sum(1)) / 2
            largest = logits.max(1)
            part = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
            found[some] = np.logaddexp(found[some], part)
    return found
