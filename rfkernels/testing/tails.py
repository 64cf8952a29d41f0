"""Claims about probabilities, judged by how often something happened."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels.testing.sampled import FALSE_ALARM, broadcast, check_probability


def assert_probability_at_most(happened: Any, bound: Any, *, false_alarm: float = FALSE_ALARM) -> None:
    """Assert that the probability of an event is at most a bound, given independent trials.

    Fails where as many successes, or more, would have a probability below `false_alarm` if the bound were the
    probability: the exact binomial tail.

    Parameters
    ----------
    happened : array of bool, shape (trials, ...)
        Whether each event happened in each trial. Trials are independent; events of one trial need not be.
    bound : array, broadcasts to the axes behind trials, between 0 and 1
        What the probabilities are claimed not to exceed; more than 1 claims nothing.
    false_alarm : float, default 2e-9
        Bound on the probability that a correct claim fails; several events get an equal share each.

    Raises
    ------
    AssertionError
        If an event happened too often; the message gives the worst.
    ValueError
        If there are no trials, a bound is negative, or `false_alarm` is no probability between 0 and 1.
    """
    from scipy import stats

    happened = np.asarray(happened)
    if happened.dtype != np.bool_ or happened.ndim == 0 or happened.size == 0:
        raise ValueError(f"happened must be bool of shape (trials, *events), got {happened.dtype} of {happened.shape}")
    check_probability("false_alarm", false_alarm)
    bounds = broadcast("bound", bound, happened.shape[1:])
    if not np.all(bounds >= 0):
        raise ValueError(f"bound must not be negative, got {bound!r}")
    trials, counts = len(happened), happened.sum(0)
    chance = stats.binom.sf(counts - 1, trials, np.minimum(bounds, 1))
    if np.any(chance < false_alarm / counts.size):
        worst = np.unravel_index(int(np.argmin(chance)), counts.shape)
        entry = f" {tuple(int(i) for i in worst)}" if worst else ""
        raise AssertionError(
            f"event{entry} happened in {int(counts[worst])} of {trials} trials, which has probability "
            f"{float(chance[worst]):.1e} if its own is {float(bounds[worst]):.4g}"
        )
