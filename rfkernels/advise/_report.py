"""What was found, and what follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from rfkernels.advise._estimators import AVERAGE


@dataclass(frozen=True)
class Row:
    """One way to compute the output of all heads.

    Parameters
    ----------
    estimator : str
        Its name in the table.
    count, window : int or None
        Feature columns and the window, None where there are none.
    errors : tuple of float
        Of each head, |output − exact| / |exact| in Frobenius norms over the queries measured.
    predicted : tuple of float, optional
        The same in closed form, from a few of those queries. Above 0.3 it is out of range: read "does not work".
    seconds : float
        Of one call for all heads at the report's length, scaled from that of the arrays.
    setup_seconds : float
        Of drawing or fitting, once, not part of `seconds`.
    memory : int
        Bytes that the keys and values of all heads are reduced to at the report's length.
    call : str
        Python that computes it from q, k and v; `rfk` is rfkernels, `np` is numpy.
    """

    estimator: str
    count: int | None
    window: int | None
    errors: tuple[float, ...]
    predicted: tuple[float, ...] | None
    seconds: float
    setup_seconds: float
    memory: int
    call: str

    @property
    def median(self) -> float:
        """The median error of the heads."""
        return float(np.median(self.errors))

    @property
    def worst(self) -> float:
        """The largest error of the heads."""
        return max(self.errors)

    @property
    def label(self) -> str:
        """The estimator with its count and window."""
        count = "" if self.count is None else f", {self.count}"
        return f"{self.estimator}{count}" + ("" if self.window is None else f", window {self.window}")


@dataclass(frozen=True)
class Verdict:
    """What to use.

    Parameters
    ----------
    kind : {"estimate", "average", "exact"}
        Use the estimator named; a plain average does as well; use exact attention.
    label : str
        The row meant.
    error : float
        Its error: of the head, or of the worst head.
    call : str
        Python to paste.
    reason : str
        A sentence with the numbers that decided.
    """

    kind: Literal["estimate", "average", "exact"]
    label: str
    error: float
    call: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What `advise` found; ``str(report)`` is the text.

    Parameters
    ----------
    heads : tuple of tuple of int
        The index of each head in the batch axes; everything per head is in this order.
    queries, keys, dim, width : int
        Sizes of what was given.
    causal : bool
    length : int
        The number of queries that times and memory are for.
    sample : int
        How many queries of each head were measured, all from the second half; features were fitted to the first.
    probes : bool
        Whether values were missing, so that errors are those of the weights themselves.
    tolerance : float
        The error that is accepted.
    exact : Row
        Exact attention, what has to be beaten.
    rows : tuple of Row
        All that was tried.
    verdicts : tuple of Verdict
        One for each head, as if it were alone.
    verdict : Verdict
        One call for all heads.
    redraws : tuple of float
        The error of the worst head with each of two other draws of what the verdict uses; empty if nothing is drawn.
    """

    heads: tuple[tuple[int, ...], ...]
    queries: int
    keys: int
    dim: int
    width: int
    causal: bool
    length: int
    sample: int
    probes: bool
    tolerance: float
    exact: Row
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    verdict: Verdict
    redraws: tuple[float, ...]

    def __str__(self) -> str:
        """Return the text for people."""
        from rfkernels.advise._words import text

        return text(self)

    def to_json(self) -> str:
        """Return strict JSON of all fields: what is not finite is null."""
        return json.dumps(plain(asdict(self)), indent=2, allow_nan=False)

    def find(self, estimator: str, count: int | None = None, window: int | None = None) -> Row:
        """Return the row of that estimator, count and window.

        Raises
        ------
        KeyError
            If there is none.
        """
        for row in self.rows:
            if (row.estimator, row.count, row.window) == (estimator, count, window):
                return row
        there = "; ".join(row.label for row in self.rows)
        raise KeyError(f"no row {estimator!r} with count {count} and window {window}; there are: {there}")


def plain(value: Any) -> Any:
    """Return what strict JSON can hold."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def duration(seconds: float) -> str:
    """Write a time with two digits."""
    value, unit = (1e3 * seconds, "ms") if seconds < 1 else (seconds, "s")
    return f"{value:.2g} {unit}" if value < 99.5 else f"{value:,.0f} {unit}"


def decide(rows: Sequence[Row], exact: Row, errors: Sequence[float], tolerance: float) -> Verdict:
    """Return what to use, given one error for each row.

    Of the rows within tolerance that are faster than exact attention, the fastest; a plain average if that is one of
    those within tolerance, since nothing costs less; exact attention if there is none.
    """
    pairs = list(zip(rows, errors, strict=True))
    best, least = min(pairs, key=lambda pair: pair[1])
    within = [pair for pair in pairs if pair[1] <= tolerance]
    for row, error in within:
        if row.estimator == AVERAGE:
            reason = f"it ignores queries and keys, and its error is {error:.3f}"
            if row is not best:
                reason += f"; the least is {least:.3f} ({best.label})"
            return Verdict("average", row.label, error, row.call, reason)
    if not within:
        average = next(error for row, error in pairs if row.estimator == AVERAGE)
        reason = f"nothing is within {tolerance:g}; the least error is {least:.3f} ({best.label})"
        if least > 0.9 * average:
            reason += f", hardly better than a plain average of the values ({average:.3f})"
        return Verdict("exact", exact.label, 0.0, exact.call, reason)
    row, error = min(within, key=lambda pair: pair[0].seconds)
    times = f"{duration(row.seconds)} for all heads against {duration(exact.seconds)} of exact attention"
    if row.seconds >= exact.seconds:
        reason = f"the fastest within {tolerance:g} is {row.label}, and takes {times}"
        return Verdict("exact", exact.label, 0.0, exact.call, reason)
    return Verdict("estimate", row.label, error, row.call, f"its error is {error:.3f}, and it takes {times}")
