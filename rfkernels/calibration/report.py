"""What calibration tells while it runs and when it is done."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from rfkernels.features import Features


class Errors(NamedTuple):
    """Relative errors ‖o − o*‖ / ‖o*‖ of outputs over a held-out part, (*batch), before and after learning.

    Where all exact outputs are zero, 0 if the estimated ones are zero too, and infinite if not.
    """

    start: Any
    learned: Any


class History(NamedTuple):
    """Errors on the way, one entry for each check of the validation part; the first is that of the start.

    Parameters
    ----------
    step : numpy.ndarray of int, shape (checks,)
    seconds : numpy.ndarray, shape (checks,)
        Since learning began, compilation included.
    train : numpy.ndarray, shape (checks, *batch)
        Root mean square of the relative errors of the blocks of queries since the last check; NaN for the start.
    validation : numpy.ndarray, shape (checks, *batch)
    """

    step: Any
    seconds: Any
    train: Any
    validation: Any


class Progress(NamedTuple):
    """What a function given as `progress` receives at each check.

    Parameters
    ----------
    step, steps : int
        Steps taken, and the most that there will be.
    train : numpy.ndarray, shape (*batch)
        As in `History`.
    start, best : numpy.ndarray, shape (*batch)
        Validation error of the start, and the least so far.
    """

    step: int
    steps: int
    train: Any
    start: Any
    best: Any


class Calibration(NamedTuple):
    """Learned features, and how they were come by.

    Parameters
    ----------
    features : Features
        Those of least validation error: heads that no step improved have the arrays of `start`.
    start : Features
        What learning started from.
    best : numpy.ndarray of int, shape (*batch)
        The step after which each head was best; 0 is the start.
    stopped : numpy.ndarray of str, shape (*batch)
        Why a head stopped: "steps" (all were taken), "patience" or "not finite" (a loss, gradient or parameter).
    train : Errors
        Over the part that was learned from.
    validation : Errors
        Over the part by which steps were chosen: never worse than the start, and a little too good.
    test : Errors
        Over the part that nothing was chosen by: what to expect of other queries like these.
    history : History
    """

    features: Features
    start: Features
    best: Any
    stopped: Any
    train: Errors
    validation: Errors
    test: Errors
    history: History

    def __str__(self) -> str:
        heads, improved = np.size(self.best), np.count_nonzero(self.best)
        reasons = ", ".join(f"{np.sum(self.stopped == r)} {r}" for r in np.unique(self.stopped))
        lines = [
            f"{improved} of {heads} heads improved in {self.history.step[-1]} steps, "
            f"{self.history.seconds[-1]:.0f} s (stopped by: {reasons})",
            "relative error of the output      start  learned",
        ]
        for name, errors in (("training", self.train), ("validation", self.validation), ("test", self.test)):
            for word, reduce in (("median head", np.median), ("worst head", np.max)):
                before, after = (reduce(x) for x in errors)
                lines.append(f"  {name + ', ' + word:<30} {before:>6.3f}   {after:>6.3f}")
        return "\n".join(lines)


def bar(progress: Progress) -> None:
    """Write a line about progress to stderr, over the last one if that is a terminal."""
    step, steps, stream = progress.step, progress.steps, sys.stderr
    done = 20 * step // steps
    line = (
        f"calibrate [{'#' * done:.<20}] {step}/{steps}  held-out error, median head: "
        f"{np.median(progress.start):.3f} -> {np.median(progress.best):.3f}"
    )
    print(f"\r{line}" if stream.isatty() else line, end="" if stream.isatty() else "\n", file=stream, flush=True)


def end_bar() -> None:
    """Leave the line of `bar`."""
    if sys.stderr.isatty():
        print(file=sys.stderr)
