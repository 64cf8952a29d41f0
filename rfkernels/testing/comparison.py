"""What is expected of an estimator, and how what was found is held against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rfkernels import maps
from rfkernels.features import Features
from rfkernels.kernels import Kernel, LogKernel
from rfkernels.maps import FeatureMap
from rfkernels.testing.grids import Array
from rfkernels.testing.integrals import Integral

Subject = str | FeatureMap | Features
Pairwise = Callable[[Any, Any], Any]

_DOT_ROUNDING = 64 * float(np.finfo(np.float64).eps)
"""Error of x·y relative to |x||y|, generously."""


def map_of(features: Subject) -> FeatureMap:
    """Return the map of features, or that of a name."""
    return features.map if isinstance(features, Features) else maps.resolve(features)


def scale_of(features: Subject, scale: float | None) -> float:
    """Return what multiplies x·y: the scale of features, or the one given, which is 1 by default."""
    if isinstance(features, Features):
        return float(features.scale)
    return 1.0 if scale is None else scale


def name_of(given: Any) -> str:
    """What an estimator is called in messages: its registered name, or that of its activations or function."""
    if isinstance(given, str):
        return repr(given)
    if isinstance(given, Features | FeatureMap):
        feature_map = map_of(given)
        registered = next((name for name in maps.names() if maps.lookup(name) is feature_map), None)
        return repr(registered) if registered else ", ".join(name_of(one) for one in feature_map.activations)
    return str(getattr(given, "__name__", repr(given)))


def check_pairs(x: Any, y: Any) -> tuple[Array, Array]:
    """Require finite points of one dimension, at least one pair of them, and broadcast them."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim == 0 or y.ndim == 0 or x.shape[-1] != y.shape[-1] or x.shape[-1] == 0:
        raise ValueError(f"x and y must be of shape (*batch, dim) with one dim above 0, got {x.shape} and {y.shape}")
    if not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
        raise ValueError("x and y must be finite")
    first, second = np.broadcast_arrays(x, y)
    if first.size == 0:
        raise ValueError(f"x and y hold no pair, got shapes {x.shape} and {y.shape}")
    return first, second


def kernel_of(features: Subject, kernel: Kernel | Pairwise | None, x: Array, y: Array, scale: float | None) -> Integral:
    """What is to be estimated, and how far rounding of x·y may have moved it."""
    kernel = kernel or map_of(features).kernel
    if kernel is None:
        raise ValueError(f"{name_of(features)} names no kernel to compare with: pass kernel=")
    if isinstance(kernel, Kernel):
        return kernel_value(kernel, x, y, scale=scale_of(features, scale))
    given = kernel(x, y)
    return given if isinstance(given, Integral) else Integral(np.asarray(given, np.float64), 0.0)


def kernel_value(kernel: Kernel, x: Any, y: Any, *, scale: float = 1.0) -> Integral:
    """Return k(√scale x, √scale y), and how far rounding of x·y may have moved it.

    Parameters
    ----------
    kernel : Kernel
        The closed form.
    x, y : array, shape (*batch, dim)
        The points; batch axes broadcast.
    scale : float, default 1
        Multiplies x·y.

    Returns
    -------
    Integral
        The values, with their sign, and the deviations to allow for.
    """
    return closed_form(kernel.log, kernel.sign, np.asarray(x), np.asarray(y), scale)


def closed_form(log: LogKernel, sign: LogKernel | None, x: Array, y: Array, scale: float) -> Integral:
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
    with np.errstate(invalid="ignore"):  # infinity less infinity: no allowance
        moved = [np.nan_to_num(np.abs(value(dot + step) - middle), posinf=0.0) for step in (-shift, shift)]
    return Integral(middle, np.maximum(*moved))


def compare(
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
        raise ValueError(
            f"expected values have shape {np.shape(expected)}, but there are pairs {x.shape[:-1]}"
        ) from error
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
        f"{relative}, where {float(allowed[worst]):.1e} is allowed, "
        f"for x = {x[worst].tolist()}, y = {y[worst].tolist()}{at}"
    )
