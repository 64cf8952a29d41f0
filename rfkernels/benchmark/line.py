"""What a benchmark reports: one line per measurement, with the target it is held against."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import NamedTuple

from rfkernels.benchmark.timing import Timings

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


class Line(NamedTuple):
    """One measurement.

    Parameters
    ----------
    name : str
        What was measured, with its sizes.
    value : float
        The result; NaN if it could not be measured, and `detail` says why.
    unit : str
        Its unit; "x" for a ratio of times.
    target : str
        What it should reach at the sizes of the full run, such as ``">= 20"``; empty if nothing was promised.
    detail : str
        The times behind it, their spread and the thread counts.
    """

    name: str
    value: float
    unit: str
    target: str
    detail: str


class Ratio(NamedTuple):
    """A line to be made of two timed cases: the time of `over` divided by that of `under`, times `factor`."""

    name: str
    over: str
    under: str
    target: str = ""
    factor: float = 1.0
    note: str = ""


def meets(line: Line) -> bool | None:
    """Say whether a line reaches its target; None if it has none or was not measured."""
    if not line.target or math.isnan(line.value):
        return None
    sign, bound = line.target.split()
    return _COMPARE[sign](line.value, float(bound))


def ratio_line(timings: Timings, ratio: Ratio, threads: int) -> Line:
    """Divide two cases round by round and take the median of the quotients."""
    for case in (ratio.over, ratio.under):
        if case in timings.missing:
            return missing_line(ratio.name, "x", ratio.target, f"{case}: {timings.missing[case]}")
    quotients = timings.quotients(ratio.over, ratio.under)
    low, high = min(quotients) * ratio.factor, max(quotients) * ratio.factor
    times = ", ".join(f"{case} {show_seconds(timings.median(case))}" for case in (ratio.over, ratio.under))
    parts = [times, f"rounds {low:.3g} to {high:.3g}", show_threads(threads), *([ratio.note] if ratio.note else [])]
    value = timings.ratio(ratio.over, ratio.under) * ratio.factor
    return Line(ratio.name, value, "x", ratio.target, "; ".join(parts))


def time_line(
    name: str, timings: Timings, case: str, threads: int, scale: float = 1e3, unit: str = "ms", target: str = ""
) -> Line:
    """Take the median time of one case, in units of which `scale` make a second."""
    if case in timings.missing:
        return missing_line(name, unit, target, timings.missing[case])
    times = [scale * seconds for seconds in timings.samples[case]]
    detail = f"rounds {min(times):.3g} to {max(times):.3g} {unit}; {show_threads(threads)}"
    return Line(name, scale * timings.median(case), unit, target, detail)


def missing_line(name: str, unit: str, target: str, reason: str) -> Line:
    """Return the line of something that could not be measured."""
    return Line(name, math.nan, unit, target, f"not measured: {reason}")


def show_seconds(seconds: float) -> str:
    """Write a time with three digits and the unit that suits it."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def show_threads(count: int) -> str:
    """Write a number of threads."""
    return f"{count} thread" if count == 1 else f"{count} threads"
