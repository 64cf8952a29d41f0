"""Assertions by sampling whose probability of a false alarm is fixed and proven, heavy tails included.

No central limit theorem is appealed to: the test needs no more than a bound on the variance of estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rfkernels._checks import generator_of, is_number
from rfkernels.estimates import log_kernel
from rfkernels.features import draw
from rfkernels.maps import FeatureMap
from rfkernels.proposals import Proposal
from rfkernels.samplers import Rows, Sampler
from rfkernels.testing.comparison import check_pairs
from rfkernels.testing.grids import Array

FALSE_ALARM = 2e-9
"""The probability with which a normal variable is more than six standard errors from its mean."""

_LARGEST_SAMPLE = 10**8


def check_probability(name: str, value: float) -> None:
    """Require a probability that is neither 0 nor 1."""
    if not (is_number(value) and 0 < value < 1):
        raise ValueError(f"{name} must be a probability above 0 and below 1, got {value!r}")


def broadcast(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """Return an argument in the shape of what it is for."""
    given = np.asarray(value, np.float64)
    try:
        return np.broadcast_to(given, shape)
    except ValueError as error:
        raise ValueError(f"{name} must broadcast to the shape {shape}, got {given.shape}") from error


def assert_unbiased_by_sampling(
    estimator: Callable[[np.random.Generator], Any],
    exact: Any,
    *,
    variance: Any,
    detect: Any = None,
    false_alarm: float = FALSE_ALARM,
    miss: float = 1e-3,
    rng: Any = 0,
) -> None:
    r"""Assert that estimates have the mean `exact`, given a bound on their variance and nothing else.

    With ψ(t) = sign(t) log(1 + |t| + t²/2) and α = √(2 L / (n v)), the test statistic is Σ ψ(α (X_i − exact)) over n
    independent estimates, and fails if its magnitude is 2 L or more, L = log(2 / false_alarm). As ±ψ(t) ≤
    log(1 ± t + t²/2), E exp(± statistic) ≤ (1 + α² v / 2)ⁿ ≤ exp(L) if the mean is right and the variance at most v: by
    Markov's inequality the probability of a false alarm is at most `false_alarm`, for any distribution. (The influence
    function is Catoni's, arXiv 1009.2048; six standard errors would promise as much for normal estimates only.)

    The sample size is n = v/Δ² (L (3 + Δ²/v) + log(1/miss))² / (2 L), Δ the smaller of `detect` and √v: estimates of
    variance at most v whose mean is off by Δ pass with probability `miss` at most, by the same argument.

    Parameters
    ----------
    estimator : callable
        ``estimator(rng)``: an estimate of the shape of `exact`, or independent ones along leading axes, from a
        numpy.random.Generator.
    exact : array, any shape
        What is estimated. With several entries each gets an equal share of `false_alarm`.
    variance : array, broadcasts to the shape of `exact`
        v, a bound on the variance of one estimate. If it is too small the guarantee is void.
    detect : array, broadcasts to the shape of `exact`, optional
        Deviation that is to be noticed; one percent of `exact`, which then must not be zero, by default.
    false_alarm : float, default 2e-9
        Bound on the probability that a correct estimator fails.
    miss : float, default 1e-3
        Bound on the probability that a deviation of `detect` passes.
    rng : int, numpy.random.SeedSequence or numpy.random.Generator, default 0
        Source of randomness.

    Raises
    ------
    AssertionError
        If the mean is not `exact`; the message gives the worst entry.
    ValueError
        If variance or detect is not positive, `false_alarm` or `miss` no probability between 0 and 1, an estimate
        missing, or more than 10⁸ estimates would be needed.
    """
    exact = np.asarray(exact, np.float64)
    detect = np.abs(exact) / 100 if detect is None else detect
    _assert_mean("the mean of estimates", estimator, lambda x: x, exact, variance, detect, false_alarm, miss, rng)


def assert_variance_by_sampling(
    estimator: Callable[[np.random.Generator], Any],
    exact: Any,
    variance: Any,
    *,
    fourth: Any,
    detect: Any = None,
    false_alarm: float = FALSE_ALARM,
    miss: float = 1e-3,
    rng: Any = 0,
) -> None:
    """Assert that unbiased estimates have a given variance, given a bound on their fourth central moment.

    The mean of (X − exact)² is tested as that of X in `assert_unbiased_by_sampling`, with the same guarantee; its
    variance is the fourth central moment less the square of the second.

    Parameters
    ----------
    estimator, exact, false_alarm, miss, rng
        As in `assert_unbiased_by_sampling`.
    variance : array, broadcasts to the shape of `exact`
        What the variance of one estimate is claimed to be.
    fourth : array, broadcasts to the shape of `exact`
        A bound on E (X − exact)⁴, above the square of `variance`. If it is too small the guarantee is void.
    detect : array, broadcasts to the shape of `exact`, optional
        Deviation of the variance that is to be noticed; five percent of it by default.

    Raises
    ------
    AssertionError, ValueError
        As `assert_unbiased_by_sampling`.
    """
    exact = np.asarray(exact, np.float64)
    claimed = broadcast("variance", variance, exact.shape)
    spread = broadcast("fourth", fourth, exact.shape) - claimed**2
    if not np.all(spread > 0):
        raise ValueError(f"fourth must be above the square of variance, got {fourth} and variance {variance}")
    detect = claimed / 20 if detect is None else detect

    def squares(x: Any) -> Any:
        return (x - exact) ** 2

    _assert_mean("the variance of estimates", estimator, squares, claimed, spread, detect, false_alarm, miss, rng)


def drawn_estimates(
    feature_map: str | FeatureMap,
    x: Any,
    y: Any,
    count: int,
    *,
    sampler: str | Sampler | Rows = "orthogonal",
    proposal: Proposal | None = None,
    scale: float = 1.0,
    batch: int = 1000,
) -> Callable[[np.random.Generator], Array]:
    """Return an estimator for `assert_unbiased_by_sampling`: φ(x)·φ(y) of features that are drawn anew each time.

    It serves what cannot be integrated: rows that are coupled, and maps that have radii.

    Parameters
    ----------
    feature_map, count, sampler, proposal, scale
        As in `rfkernels.draw`; `scale` is 1 by default.
    x, y : array, shape (*pairs, dim)
        Points of the query and the key side; batch axes broadcast. All pairs read the same features.
    batch : int, default 1000
        Independent draws in each call.

    Returns
    -------
    callable
        What ``estimator(rng)`` returns is an array (batch, ...) over the pairs.
    """
    x, y = check_pairs(x, y)

    def estimate(rng: np.random.Generator) -> Array:
        features = draw(
            feature_map, x.shape[-1], count, sampler=sampler, proposal=proposal, scale=scale, batch=(batch,), rng=rng
        )
        log, sign = log_kernel(x[..., None, :], y[..., None, :], features, return_sign=True)
        return np.moveaxis(sign * np.exp(log), -1, 0)

    return estimate


def _assert_mean(
    what: str,
    estimator: Callable[[np.random.Generator], Any],
    of: Callable[[Any], Any],
    claimed: Array,
    variance: Any,
    detect: Any,
    false_alarm: float,
    miss: float,
    rng: Any,
) -> None:
    check_probability("false_alarm", false_alarm)
    check_probability("miss", miss)
    if claimed.size == 0 or not np.all(np.isfinite(claimed)):
        raise ValueError(f"what is claimed must be finite numbers, got {claimed}")
    variance, detect = (broadcast(*given, claimed.shape) for given in (("variance", variance), ("detect", detect)))
    if not all(np.all((a > 0) & (a < np.inf)) for a in (variance, detect)):
        raise ValueError(f"variances and deviations to detect must be positive and finite, got {variance} and {detect}")
    level = math.log(2 * claimed.size / false_alarm)
    size = _sample_size(variance, np.minimum(detect, np.sqrt(variance)), level, miss)
    if size > _LARGEST_SAMPLE:
        raise ValueError(f"{size:.3g} estimates would be needed: detect must be larger, or estimates vary less")
    slope = np.sqrt(2 * level / (size * variance))
    generator, taken = generator_of(rng), 0
    statistic, total = np.zeros(claimed.shape), np.zeros(claimed.shape)
    while taken < size:
        values = of(np.asarray(estimator(generator), np.float64))
        if values.shape[values.ndim - claimed.ndim :] != claimed.shape:
            raise ValueError(f"estimates must end in the shape {claimed.shape} of exact, got {values.shape}")
        if values.size == 0:
            raise ValueError(f"estimator must return at least one estimate, got shape {values.shape}")
        values = values.reshape(-1, *claimed.shape)[: size - taken]
        taken += len(values)
        scaled = slope * (values - claimed)
        statistic += np.sum(np.sign(scaled) * np.log1p(np.abs(scaled) + scaled**2 / 2), 0)
        total += values.sum(0)
    fails = ~(np.abs(statistic) < 2 * level)  # NaN fails
    if np.any(fails):
        badness = np.where(fails, np.nan_to_num(np.abs(statistic), nan=np.inf), 0.0)
        worst = np.unravel_index(int(np.argmax(badness)), claimed.shape)
        value, wanted = float(total[worst]) / size, float(claimed[worst])
        errors = abs(value - wanted) / math.sqrt(float(variance[worst]) / size)
        entry = f" at {tuple(int(i) for i in worst)}" if worst else ""
        raise AssertionError(
            f"{what}{entry} is not {wanted:.6g}: {size} of them average {value:.6g}, {errors:.1f} standard errors off; "
            f"the statistic is {float(statistic[worst]):.1f}, where {2 * level:.1f} has probability {false_alarm:.0e}"
        )


def _sample_size(variance: Array, detect: Array, level: float, miss: float) -> int:
    ratio = detect**2 / variance
    needed = (level * (3 + ratio) - math.log(miss)) ** 2 / (2 * level * ratio)
    return math.ceil(float(np.max(needed)))
