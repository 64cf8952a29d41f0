"""Assertions about feature maps, by integration: what they say holds to rounding, and they never fail by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rfkernels.estimates import transform
from rfkernels.features import Features
from rfkernels.kernels import Kernel, LogKernel
from rfkernels.maps import FeatureMap
from rfkernels.proposals import Gaussian
from rfkernels.testing import integrals
from rfkernels.testing.binding import inner_points, with_rows
from rfkernels.testing.comparison import (
    Pairwise,
    Subject,
    check_pairs,
    closed_form,
    compare,
    kernel_of,
    map_of,
    name_of,
    scale_of,
)
from rfkernels.testing.grids import Array, plane
from rfkernels.testing.sampled import broadcast


def assert_unbiased(
    features: Subject,
    x: Any,
    y: Any,
    *,
    kernel: Kernel | Pairwise | None = None,
    scale: float | None = None,
    proposal: Gaussian | None = None,
    kinks: Sequence[float] | None = None,
    rtol: float = 1e-9,
) -> None:
    """Assert E φ(x)·φ(y) = k(√scale x, √scale y) for every pair.

    Parameters
    ----------
    features : str, FeatureMap or Features
        A map; or features, of which the affine preprocessing and a constant log-weight are kept and the rows replaced.
    x, y : array, shape (*batch, dim)
        Points of the query and the key side; batch axes broadcast.
    kernel : Kernel or callable, optional
        The kernel of the scaled points, or a function ``kernel(x, y)`` of the points as they are given, which returns
        values or an `Integral` of values and what to allow for them. By default the kernel that the map names.
    scale : float, optional
        Multiplies x·y, for a map; 1 by default. Features have theirs.
    proposal : proposals.Gaussian, optional
        Distribution of the rows of an exponential map instead of N(0, I), in at most three dimensions.
    kinks : sequence of float, optional
        Values of u where an activation has a kink or a jump. By default none for exponential maps, and zero for others.
    rtol : float, default 1e-9
        Allowed deviation, relative to the mean magnitude E |φ(x)·φ(y)| of one row, which of a nonnegative map is the
        kernel; beyond what rounding of w·x and w·y explains.

    Raises
    ------
    AssertionError
        If a pair deviates by more; the message gives the worst.
    QuadratureError
        If the expectation cannot be integrated, so that nothing is known.
    ValueError
        If no kernel is known, or arguments do not fit together.
    """
    x, y = check_pairs(x, y)
    expected, unsure = kernel_of(features, kernel, x, y, scale)
    found = integrals.mean(features, x, y, scale=scale, proposal=proposal, kinks=kinks, rtol=rtol)
    what = f"{name_of(features)} is biased: E φ(x)·φ(y)"
    compare(what, "the kernel", found.value, expected, found.allowed + unsure, x, y)


def assert_variance(
    features: Subject,
    x: Any,
    y: Any,
    *,
    log_variance: LogKernel | None = None,
    scale: float | None = None,
    proposal: Gaussian | None = None,
    kinks: Sequence[float] | None = None,
    rtol: float = 1e-6,
) -> None:
    """Assert that the variance of what one row estimates is the closed form, for every pair.

    Parameters
    ----------
    features, x, y, scale, proposal, kinks
        As in `assert_unbiased`.
    log_variance : callable, optional
        ``log_variance(xp, dot, xx, yy)``: the log of the variance from x·y, |x|² and |y|² of the scaled points. By
        default that of the map.
    rtol : float, default 1e-6
        Allowed relative deviation, beyond what rounding explains.

    Raises
    ------
    AssertionError
        If a pair deviates by more; the message gives the worst.
    QuadratureError, ValueError
        As `assert_unbiased`.
    """
    x, y = check_pairs(x, y)
    form = log_variance or map_of(features).log_variance
    if form is None:
        raise ValueError(f"{name_of(features)} has no log_variance to compare with: pass log_variance=")
    expected, unsure = closed_form(form, None, x, y, scale_of(features, scale))
    found = integrals.variance(features, x, y, scale=scale, proposal=proposal, kinks=kinks, rtol=rtol)
    what = f"{name_of(features)}: the variance of one row"
    compare(what, "the closed form", found.value, expected, found.allowed + unsure, x, y)


def assert_variance_at_most(
    features: Subject,
    x: Any,
    y: Any,
    bound: Any,
    *,
    scale: float | None = None,
    proposal: Gaussian | None = None,
    kinks: Sequence[float] | None = None,
    rtol: float = 1e-6,
) -> None:
    """Assert that the variance of what one row estimates is at most a bound, for every pair.

    Parameters
    ----------
    features, x, y, scale, proposal, kinks, rtol
        As in `assert_variance`.
    bound : array, shape (*batch) or (), or callable
        The bound, or a function ``bound(x, y)`` of the points as they are given.

    Raises
    ------
    AssertionError
        If a variance is larger; the message gives the worst.
    QuadratureError, ValueError
        As `assert_unbiased`.
    """
    x, y = check_pairs(x, y)
    limit = np.asarray(bound(x, y) if callable(bound) else bound, np.float64)
    found = integrals.variance(features, x, y, scale=scale, proposal=proposal, kinks=kinks, rtol=rtol)
    what = f"{name_of(features)}: the variance of one row"
    compare(what, "at most", found.value, limit, found.allowed, x, y, one_sided=True)


def assert_positive(features: Subject, x: Any, y: Any, *, scale: float | None = None, strict: bool = False) -> None:
    """Assert that no feature is negative, whatever the row.

    Rows point in 32 directions of the plane of x and y, with norms from 10⁻³ to 10².

    Parameters
    ----------
    features, x, y, scale
        As in `assert_unbiased`.
    strict : bool, default False
        Whether zero fails as well. Signs are taken before exp, so that a feature that vanishes in floating point is
        still positive if its log is finite.

    Raises
    ------
    AssertionError
        If a feature is negative (or zero) or no number; the message gives the side, the row and the point.
    ValueError
        If arguments do not fit together.
    """
    x, y = check_pairs(x, y)
    angles = 2 * math.pi * (np.arange(32) + 0.5) / 32
    circle = np.stack([np.cos(angles), np.sin(angles)], -1)
    directions = (np.logspace(-3, 2, 36)[:, None, None] * circle).reshape(-1, 2)
    given = integrals.features_of(features, scale, x.shape[-1])
    for index in np.ndindex(x.shape[:-1]):
        rows = directions @ plane(*inner_points(given, x[index], y[index]))
        bound = with_rows(given, rows)
        for side, point in (("query", x[index]), ("key", y[index])):
            _, sign = transform(point[None], bound, side=side, log=True)  # type: ignore[arg-type]
            bad = ~(sign[0] > 0 if strict else sign[0] >= 0)
            if np.any(bad):
                first = int(np.argmax(bad))
                what = "feature that is not positive" if strict else "negative feature"
                what = "feature that is no number" if np.isnan(sign[0, first]) else what
                raise AssertionError(
                    f"{name_of(features)} has a {what} on the {side} side: at {point.tolist()} for the row "
                    f"{rows[first % len(rows)].tolist()}"
                )


def assert_ordering(
    better: Subject | Pairwise,
    worse: Subject | Pairwise,
    x: Any,
    y: Any,
    *,
    scale: float | None = None,
    kinks: Sequence[float] | None = None,
    rtol: float = 1e-6,
) -> None:
    """Assert that one estimator varies no more than another at equal feature columns, for every pair.

    A map with J activations spends J columns on a row, so that its variance per column is J times that of one row.

    Parameters
    ----------
    better, worse : str, FeatureMap, Features or callable
        What is compared: maps of independent rows, whose variances are integrated; or functions ``variance(x, y)`` of
        the points as they are given, such as a closed form for coupled rows, both for the same number of columns. A
        map can be compared with a function that gives the variance of a single column.
    x, y, scale, kinks
        As in `assert_unbiased`.
    rtol : float, default 1e-6
        Allowed excess, relative to the variance, beyond what rounding explains.

    Raises
    ------
    AssertionError
        If the order is reversed for a pair; the message gives the worst.
    QuadratureError, ValueError
        As `assert_unbiased`.
    """
    x, y = check_pairs(x, y)
    left, right = (_per_column(one, x, y, scale, kinks, rtol) for one in (better, worse))
    what = f"the variance of {name_of(better)} at equal columns"
    allowed = np.asarray(left.allowed + right.allowed)
    compare(what, f"at most that of {name_of(worse)},", left.value, right.value, allowed, x, y, one_sided=True)


def _per_column(
    given: Subject | Pairwise, x: Array, y: Array, scale: float | None, kinks: Sequence[float] | None, rtol: float
) -> integrals.Integral:
    if not isinstance(given, str | FeatureMap | Features):
        integrals.check_tolerance(rtol)
        value = broadcast(name_of(given), given(x, y), x.shape[:-1])
        return integrals.Integral(value, rtol * np.abs(value))
    own = None if isinstance(given, Features) else scale
    found = integrals.variance(given, x, y, scale=own, kinks=kinks, rtol=rtol)
    columns = len(map_of(given).activations)
    return integrals.Integral(columns * found.value, columns * found.allowed)
