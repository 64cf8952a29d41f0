"""Timing by turns: every case is sampled once in each round, so that a machine that drifts slows all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Call = Callable[[], Any]
Sampler = Callable[[], float]
"""Does some work once and returns the seconds it took."""

PAUSE = 0.15
"""Seconds between samples, in which worker threads measured before stop spinning: OpenBLAS waits 0.1 s."""


class Unavailable(Exception):
    """Something could not be measured here; the message says why."""


@dataclass(frozen=True)
class Timings:
    """Seconds of each case, round by round, and why the others are missing."""

    samples: Mapping[str, list[float]]
    missing: Mapping[str, str] = field(default_factory=dict)

    def median(self, case: str) -> float:
        """Return the median time of a case."""
        return statistics.median(self.samples[case])

    def quotients(self, over: str, under: str) -> list[float]:
        """Return the quotients of two cases, each of one round."""
        return [a / b for a, b in zip(self.samples[over], self.samples[under], strict=True)]

    def ratio(self, over: str, under: str) -> float:
        """Return the median of the quotients, which drift between rounds does not reach."""
        return statistics.median(self.quotients(over, under))


def timed(call: Call, seconds: float = 0.1, clock: Callable[[], float] = time.perf_counter) -> Sampler:
    """Return a sampler of the time of one call, averaged over enough calls to fill `seconds`.

    Parameters
    ----------
    call : callable
        What is timed. It is called here twice, to compile and warm up and to find out how often to call it; once if
        `seconds` is 0.
    seconds : float, default 0.1
        How long a sample lasts at least; 0 for one call per sample.
    clock : callable
        Returns the time in seconds.

    Returns
    -------
    callable
        Returns the seconds of one call.
    """

    def sample(number: int) -> float:
        start = clock()
        for _ in range(number):
            call()
        return (clock() - start) / number

    call()
    number = max(1, math.ceil(seconds / max(sample(1), 1e-9))) if seconds > 0 else 1
    return lambda: sample(number)


def interleave(
    samplers: Mapping[str, Sampler], rounds: int, sleep: Callable[[float], None] = time.sleep
) -> dict[str, list[float]]:
    """Sample every case once per round, in an order that rotates from round to round.

    Parameters
    ----------
    samplers : mapping of str to sampler
        The cases.
    rounds : int
        How many samples each case gets.
    sleep : callable
        Waits for the seconds given.

    Returns
    -------
    dict of str to list of float
        The seconds of each case, by round.
    """
    names = list(samplers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            sleep(PAUSE)
            samples[name].append(samplers[name]())
    return samples


def measure(builders: Mapping[str, Callable[[], Call]], rounds: int, seconds: float) -> Timings:
    """Build, warm up and time cases by turns; a case that cannot be built or called is left out, with the reason.

    Parameters
    ----------
    builders : mapping of str to callable
        Each returns the call to be timed, with its inputs ready.
    rounds : int
        How many samples each case gets.
    seconds : float
        How long a sample lasts at least (see `timed`).

    Returns
    -------
    Timings
    """
    samplers, missing = prepare(builders, seconds)
    return Timings(interleave(samplers, rounds), missing)


def prepare(builders: Mapping[str, Callable[[], Call]], seconds: float) -> tuple[dict[str, Sampler], dict[str, str]]:
    """Build and warm up cases: return their samplers, and why others are left out."""
    samplers: dict[str, Sampler] = {}
    missing: dict[str, str] = {}
    for name, build in builders.items():
        try:
            samplers[name] = timed(build(), seconds)
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way, and the others are measured all the same
            missing[name] = reason(error)
    return samplers, missing


def reason(error: BaseException) -> str:
    """Say in one line why something could not be measured."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    text = str(error).strip()
    if isinstance(error, Unavailable):
        return text
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
