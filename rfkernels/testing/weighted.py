"""Moments of estimates whose whole law is at hand: the values, and the weight of each."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels.testing.integrals import Integral, check_tolerance


def assert_moments(estimates: Any, weights: Any, *, mean: Any, variance: Any | None = None, rtol: float = 1e-9) -> None:
    """Assert the mean, and the variance, of estimates whose values and weights are all given.

    For features with a discrete law, whose values are enumerated with their probabilities, and for nodes of a
    quadrature in place of random rows: no assertion by chance is needed.

    Parameters
    ----------
    estimates : array, shape (*batch, n)
        The values that an estimator takes.
    weights : array, shape (n,)
        Their probabilities, or the weights of a quadrature.
    mean : array, shape (*batch) or (), or Integral
        What Σ weights · estimates should be. An `Integral` also says how far off it may be, such as by a tail that is
        not enumerated.
    variance : array, shape (*batch) or (), or Integral, optional
        What Σ weights · estimates² − mean² should be.
    rtol : float, default 1e-9
        Allowed deviation of the mean relative to Σ weights · |estimates|, and of the variance relative to
        Σ weights · estimates².

    Raises
    ------
    AssertionError
        If a moment deviates by more; the message gives the worst.
    ValueError
        If shapes do not fit, or `rtol` is no finite number of at least 0.
    """
    check_tolerance(rtol)
    estimates, weights = np.asarray(estimates, np.float64), np.asarray(weights, np.float64)
    if weights.ndim != 1 or estimates.shape[-1:] != weights.shape or estimates.size == 0:
        raise ValueError(
            "estimates must have one value for each weight along their last axis, and not be empty, got shapes "
            f"{estimates.shape} and {weights.shape}"
        )
    wanted = mean if isinstance(mean, Integral) else Integral(mean, 0.0)
    _compare("the mean", estimates @ weights, wanted, rtol * (np.abs(estimates) @ np.abs(weights)))
    if variance is not None:
        spread = variance if isinstance(variance, Integral) else Integral(variance, 0.0)
        with np.errstate(over="ignore"):
            second = estimates**2 @ weights
        _compare("the variance", second - np.asarray(wanted.value) ** 2, spread, rtol * second)


def _compare(what: str, found: Any, wanted: Integral, rounding: Any) -> None:
    shapes = [np.shape(part) for part in wanted]
    if any(shape not in ((), np.shape(found)) for shape in shapes):
        raise ValueError(f"{what} must have shape {np.shape(found)} or (), as estimates have, got {shapes[0]}")
    value, slack = (np.broadcast_to(np.asarray(part, np.float64), np.shape(found)) for part in wanted)
    with np.errstate(invalid="ignore"):
        excess, allowed = np.abs(found - value), slack + rounding
        holds = np.isfinite(found) & (excess <= allowed)
    if not np.all(holds):
        worst = np.unravel_index(int(np.argmax(np.where(holds, -1.0, np.nan_to_num(excess, nan=np.inf)))), holds.shape)
        entry = f" at {tuple(int(i) for i in worst)}" if worst else ""
        raise AssertionError(
            f"{what} of estimates{entry} is {float(found[worst]):.15g}, not {float(value[worst]):.15g}: "
            f"{float(excess[worst]):.2e} apart, where {float(allowed[worst]):.1e} is allowed"
        )
