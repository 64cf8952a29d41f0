"""Assertions about feature maps, by integration: what they say holds to rounding, and they never fail by chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rfkernels import maps
from rfkernels.estimates import transform
from rfkernels.features import Features
from rfkernels.kernels import Kernel, LogKernel
from rfkernels.maps import FeatureMap
from rfkernels.proposals import Gaussian
from rfkernels.testing import integrals
from rfkernels.testing.grids import Array, plane

_DOT_ROUNDING = 64 * float(np.finfo(np.float64).eps)
"""Error of x·y relative to |x||y|, generously."""

Subject = str | FeatureMap | Features
Pairwise = Callable[[Any, Any], Any]


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
        The kernel of the scaled points, or a function ``kernel(x, y)`` of the points as they are given. By default the
        kernel that the map names.
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
    x, y = _points(x, y)
    expected, unsure = _kernel(features, kernel, x, y, scale)
    found = integrals.mean(features, x, y, scale=scale, proposal=proposal, kinks=kinks, rtol=rtol)
    what = f"{_name(features)} is biased: E φ(x)·φ(y)"
    _compare(what, "the kernel", found.value, expected, found.allowed + unsure, x, y)


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
    x, y = _points(x, y)
    form = log_variance or _map(features).log_variance
    if form is None:
        raise ValueError(f"{_name(features)} has no log_variance to compare with: pass log_variance=")
    expected, unsure = _closed_form(form, None, x, y, _scale(features, scale))
    found = integrals.variance(features, x, y, scale=scale, proposal=proposal, kinks=kinks, rtol=rtol)
    what = f"{_name(features)}: the variance of one row"
    _compare(what, "the closed form", found.value, expected, found.allowed + unsure, x, y)


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
    x, y = _points(x, y)
    limit = np.asarray(bound(x, y) if callable(bound) else bound, np.float64)
    found = integrals.variance(features, x, y, scale=scale, proposal=proposal, kinks=kinks, rtol=rtol)
    what = f"{_name(features)}: the variance of one row"
    _compare(what, "at most", found.value, limit, found.allowed, x, y, one_sided=True)


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
        If a feature is negative (or zero); the message gives the side, the row and the point.
    """
    x, y = _points(x, y)
    angles = 2 * math.pi * (np.arange(32) + 0.5) / 32
    circle = np.stack([np.cos(angles), np.sin(angles)], -1)
    directions = (np.logspace(-3, 2, 36)[:, None, None] * circle).reshape(-1, 2)
    for index in np.ndindex(x.shape[:-1]):
        rows = directions @ plane(x[index], y[index])
        given = features if isinstance(features, Features) else integrals.bind(features, rows, scale=_scale(features, scale))
        bound = integrals.with_rows(given, rows)
        for side, point in (("query", x[index]), ("key", y[index])):
            _, sign = transform(point[None], bound, side=side, log=True)  # type: ignore[arg-type]
            bad = sign[0] <= 0 if strict else sign[0] < 0
            if np.any(bad):
                row = rows[int(np.argmax(bad)) % len(rows)]
                raise AssertionError(
                    f"{_name(features)} has a {'feature that is not positive' if strict else 'negative feature'} on "
                    f"the {side} side: at {point.tolist()} for the row {row.tolist()}"
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
    x, y = _points(x, y)
    left, right = (_per_column(one, x, y, scale, kinks, rtol) for one in (better, worse))
    what = f"the variance of {_name(better)} at equal columns"
    allowed = np.asarray(left.allowed + right.allowed)
    _compare(what, f"at most that of {_name(worse)},", left.value, right.value, allowed, x, y, one_sided=True)


def _per_column(
    given: Subject | Pairwise, x: Array, y: Array, scale: float | None, kinks: Sequence[float] | None, rtol: float
) -> integrals.Integral:
    if not isinstance(given, str | FeatureMap | Features):
        value = np.asarray(given(x, y), np.float64)
        return integrals.Integral(value, rtol * np.abs(value))
    own = None if isinstance(given, Features) else scale
    found = integrals.variance(given, x, y, scale=own, kinks=kinks, rtol=rtol)
    columns = len(_map(given).activations)
    return integrals.Integral(columns * found.value, columns * found.allowed)


def _map(features: Subject) -> FeatureMap:
    return features.map if isinstance(features, Features) else maps.resolve(features)


def _scale(features: Subject, scale: float | None) -> float:
    if isinstance(features, Features):
        return float(features.scale)
    return 1.0 if scale is None else scale


def _name(given: Any) -> str:
    """What an estimator is called in messages: its registered name, or that of its activations or function."""
    if isinstance(given, str):
        return repr(given)
    if isinstance(given, Features | FeatureMap):
        feature_map = _map(given)
        registered = next((name for name in maps.names() if maps.lookup(name) is feature_map), None)
        return repr(registered) if registered else ", ".join(_name(one) for one in feature_map.activations)
    return str(getattr(given, "__name__", repr(given)))


def _points(x: Any, y: Any) -> tuple[Array, Array]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim == 0 or y.ndim == 0 or x.shape[-1] != y.shape[-1] or x.shape[-1] == 0:
        raise ValueError(f"x and y must be of shape (*batch, dim) with one dim above 0, got {x.shape} and {y.shape}")
    if not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
        raise ValueError("x and y must be finite")
    first, second = np.broadcast_arrays(x, y)
    if first.size == 0:
        raise ValueError(f"x and y hold no pair, got shapes {x.shape} and {y.shape}")
    return first, second


def _kernel(
    features: Subject, kernel: Kernel | Pairwise | None, x: Array, y: Array, scale: float | None
) -> tuple[Array, Any]:
    """What is to be estimated, and how far rounding of x·y may have moved it."""
    kernel = kernel or _map(features).kernel
    if kernel is None:
        raise ValueError(f"{_name(features)} names no kernel to compare with: pass kernel=")
    if not isinstance(kernel, Kernel):
        return np.asarray(kernel(x, y), np.float64), 0.0
    return _closed_form(kernel.log, getattr(kernel, "sign", None), x, y, _scale(features, scale))


def _closed_form(log: LogKernel, sign: LogKernel | None, x: Array, y: Array, scale: float) -> tuple[Array, Array]:
    """Value of a function of x·y, |x|² and |y|², and how much it moves with the rounding of x·y.

    That is much where points are nearly parallel and the function has a steep angle there, or nearly opposed and
    |x + y|² is a difference of larger numbers.
    """
    dot, xx, yy = (scale * np.sum(a * b, -1) for a, b in ((x, y), (x, x), (y, y)))
    shift = _DOT_ROUNDING * np.sqrt(xx * yy)

    def value(dot: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found: Array = np.exp(np.asarray(log(np, dot, xx, yy)))
            return found if sign is None else found * np.asarray(sign(np, dot, xx, yy))

    middle = value(dot)
    moved = [np.nan_to_num(np.abs(value(dot + step) - middle)) for step in (-shift, shift)]
    return middle, np.maximum(*moved)


def _compare(
    what: str,
    against: str,
    found: Any,
    expected: Any,
    allowed: Any,
    x: Array,
    y: Array,
    one_sided: bool = False,
) -> None:
    """Require found = expected, or found <= expected, within what is allowed; NaN is refused."""
    try:
        expected = np.broadcast_to(expected, np.shape(found))
    except ValueError as error:
        raise ValueError(f"expected values have shape {np.shape(expected)}, but there are pairs {x.shape[:-1]}") from error
    excess = found - expected if one_sided else np.abs(found - expected)
    holds = excess <= allowed
    if np.all(holds):
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        badness = np.where(holds, -1.0, np.nan_to_num(excess / allowed, nan=np.inf))
    worst = np.unravel_index(int(np.argmax(badness)), np.shape(found))
    value, wanted, apart = float(found[worst]), float(expected[worst]), float(excess[worst])
    relative = f", {apart / abs(wanted):.2e} of it" if wanted != 0 else ""
    at = f" (pair {tuple(int(i) for i in worst)}, {int(np.sum(~holds))} of {holds.size} fail)" if worst else ""
    raise AssertionError(
        f"{what} is {value:.15g}, not {against} {wanted:.15g}: {apart:.2e} too {'much' if one_sided else 'far apart'}"
        f"{relative}, where {float(allowed[worst]):.1e} is allowed, for x = {x[worst].tolist()}, y = {y[worst].tolist()}{at}"
    )
