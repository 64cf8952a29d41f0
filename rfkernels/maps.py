"""Feature maps: what is computed from a projection, and the table of the named ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from rfkernels import kernels, moments
from rfkernels._arrays import elementwise
from rfkernels._checks import check_flags, is_number
from rfkernels.activations import Activation, Program, trace
from rfkernels.kernels import Kernel, LogKernel

Radii = Callable[[Callable[[tuple[int, ...]], Any], int], Any]


@dataclass(frozen=True)
class FeatureMap:
    """An elementwise feature map φ(x) = m^-½ [h(u + …)] of projections u_j = w_j · x, without its arrays.

    With u_j = w_j · T(x − centre) and a = c |T(x − centre)|² + linear · x, column j of activation h is
    m^-½ h(xp, u_j, a + b_j): the general form of the random features of Performers (arXiv 2009.14794, eq. 5). The
    affine parts and the log-weights b belong to `Features`.

    Parameters
    ----------
    activations : tuple of callables
        Each is ``h(xp, u, a)``, elementwise, written once with arithmetic and the functions of the namespace `xp`. A
        projection row yields one column for each.
    offset : float, default 0.0
        c, the weight of the squared norm in a.
    slopes : tuple of float, optional
        For an exponential map, the slope of u in the exponent of each activation: the exponent is slope · u + a, and
        h(u, a + s) = eˢ h(u, a). None (the default) for a map that is not exponential; one that grows so and does not
        declare it overflows at large norms.
    nonnegative : bool, default False
        Whether no activation is ever negative, so that estimated kernels need no sign.
    kernel : Kernel, optional
        The closed form that the map estimates, if one is known.
    log_variance : callable, optional
        ``log_variance(xp, dot, xx, yy)``: the log of the variance of what a single row estimates, from x·y, |x|² and
        |y|² of the scaled inputs, if it is known.
    radii : callable, optional
        ``radii(normal, count)``: factors, shape (count,), that `draw` multiplies standard normal rows by, which makes
        their law a scale mixture of normals. None (the default) leaves rows normal.

    Raises
    ------
    TypeError
        If the kernel is no Kernel, a function is none, or `nonnegative` is no bool.
    ValueError
        If an activation is not elementwise code that every backend can run, the offset or the slopes are not finite
        numbers, a declared exponent does not hold, or an activation that is declared nonnegative is negative where it
        was tried.

    Examples
    --------
    >>> import rfkernels as rfk
    >>> softplus = rfk.FeatureMap((lambda xp, u, a: xp.log1p(xp.exp(-xp.abs(u))) + xp.maximum(u, 0),))
    >>> softplus.exponential
    False
    """

    activations: tuple[Activation, ...]
    offset: float = 0.0
    slopes: tuple[float, ...] | None = None
    nonnegative: bool = False
    kernel: Kernel | None = None
    log_variance: LogKernel | None = None
    radii: Radii | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.activations, tuple) or not self.activations:
            raise ValueError(f"activations must be a non-empty tuple of functions, got {self.activations!r}")
        self.programs()
        if not is_number(self.offset):
            raise ValueError(f"offset must be a finite number, got {self.offset!r}")
        if self.slopes is not None:
            self._check_exponents(self.slopes)
        self._check_declared()

    @property
    def exponential(self) -> bool:
        """Whether h(u, a + s) = eˢ h(u, a), so that sums are kept on a log scale."""
        return self.slopes is not None

    def programs(self) -> tuple[Program, ...]:
        """Trace the activations anew, closures and globals included: what they compute now. Some below never change."""
        return tuple(_traced(x) if x in _FIXED else trace(x) for x in self.activations)

    def _check_declared(self) -> None:
        """Require the other fields to be of their types, and no activation to be negative where none is said to be."""
        if self.kernel is not None and not isinstance(self.kernel, Kernel):
            raise TypeError(f"kernel must be a Kernel or None, got {self.kernel!r}")
        for name, function in (("log_variance", self.log_variance), ("radii", self.radii)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a function or None, got {function!r}")
        check_flags(nonnegative=self.nonnegative)
        if self.nonnegative:
            for activation in self.activations:
                _check_nonnegative(activation)

    def _check_exponents(self, slopes: tuple[float, ...]) -> None:
        if not isinstance(slopes, tuple) or not all(is_number(slope) for slope in slopes):
            raise ValueError(f"slopes must be a tuple of finite numbers or None, got {slopes!r}")
        if len(slopes) != len(self.activations):
            raise ValueError(f"slopes must have one entry per activation ({len(self.activations)}), got {slopes!r}")
        u, shift, xp = np.array([-1.7, -0.3, 0.4, 2.1]), 0.75, elementwise(np)
        for activation, slope in zip(self.activations, slopes, strict=True):
            value, shifted = activation(xp, u, -0.5), activation(xp, u, -0.5 + shift)
            if not np.allclose(shifted, math.exp(shift) * value, rtol=1e-6):
                raise ValueError(f"slopes declares {activation!r} exponential, but h(u, a + s) is not exp(s) h(u, a)")
            far = np.linspace(-30.0, 30.0, 241)
            if not np.all(np.abs(activation(xp, far, -slope * far)) <= math.e**2):
                raise ValueError(f"slopes declares the exponent {slope} u + a for {activation!r}, which outgrows it")


def _check_nonnegative(activation: Activation) -> None:
    """Require values of at least zero, but for rounding, near zero as well as far from it."""
    for reach in (1.0, 5.0, 30.0):
        u, a = np.linspace(-reach, reach, 121), np.array([[-reach / 10], [0.0], [reach / 10]])
        with np.errstate(all="ignore"):
            value = np.asarray(activation(elementwise(np), u, a))
        finite = np.where(np.isfinite(value), value, 0)
        if finite.min() < -1e-9 * np.abs(finite).max():
            raise ValueError(
                f"nonnegative declares that {activation!r} is never negative, but it can be {finite.min()}"
            )


def _exponential(xp: Any, u: Any, a: Any) -> Any:
    return xp.exp(u + a)


def _exponential_reflected(xp: Any, u: Any, a: Any) -> Any:
    return xp.exp(a - u)


def _wave(xp: Any, u: Any, a: Any) -> Any:
    return math.sqrt(2) * xp.cos(u) * xp.exp(a)


def _turned_wave(xp: Any, u: Any, a: Any) -> Any:
    return math.sqrt(2) * xp.sin(u) * xp.exp(a)


_FIXED = _exponential, _exponential_reflected, _wave, _turned_wave
_traced = cache(trace)


@dataclass(frozen=True)
class _Rectified:
    """max(u, 0) to a power; to the power 0, the step function."""

    power: int

    def __call__(self, xp: Any, u: Any, a: Any) -> Any:
        if self.power == 0:
            return xp.where(u > 0, 1.0, 0.0)
        positive = xp.maximum(u, 0)
        return positive if self.power == 1 else positive**self.power


def _sign(xp: Any, u: Any, a: Any) -> Any:
    return xp.where(u > 0, 1.0, 0.0) - xp.where(u < 0, 1.0, 0.0)


def _absolute(xp: Any, u: Any, a: Any) -> Any:
    return xp.abs(u)


def _square(xp: Any, u: Any, a: Any) -> Any:
    return xp.square(u)


def _cosine(xp: Any, u: Any, a: Any) -> Any:
    return xp.cos(u)


def _erf(xp: Any, u: Any, a: Any) -> Any:
    return xp.erf(u)


def _elu_plus_one(xp: Any, u: Any, a: Any) -> Any:
    return xp.where(u > 0, u + 1, xp.exp(xp.minimum(u, 0)))


_LARGEST_ORDER = 8


def arc_cosine(order: int) -> FeatureMap:
    """Return the map of max(u, 0)ⁿ, which estimates the arc-cosine kernel of an order n (`kernels.arc_cosine`).

    Orders 0, 1 and 2 are registered as "step", "relu" and "squared_relu".

    Parameters
    ----------
    order : int
        n, from 0 to 8; the power 0 is the step function, 1 for u > 0 and 0 otherwise.

    Returns
    -------
    FeatureMap
        With its kernel (Cho and Saul 2009) and the variance of a row, from the kernel of order 2n. Maps of equal order
        are equal.

    Raises
    ------
    ValueError
        If the order is not such an integer.

    Examples
    --------
    >>> import rfkernels as rfk
    >>> features = rfk.draw(rfk.maps.arc_cosine(3), dim=16, count=64, rng=0)
    >>> features.map == rfk.maps.arc_cosine(3)
    True
    """
    if isinstance(order, bool) or not isinstance(order, int) or not 0 <= order <= _LARGEST_ORDER:
        raise ValueError(f"order must be an int from 0 to {_LARGEST_ORDER}, got {order!r}")
    return _positive(
        (_Rectified(order),), kernel=kernels.arc_cosine(order), log_variance=moments.ArcCosineVariance(order)
    )


_positive = partial(FeatureMap, nonnegative=True)

_TABLE: dict[str, FeatureMap] = {
    "positive": _positive((_exponential,), -0.5, (1.0,), kernel=kernels.EXPONENTIAL, log_variance=moments.positive),
    "hyperbolic": _positive(
        (_exponential, _exponential_reflected),
        -0.5,
        (1.0, -1.0),
        kernel=kernels.EXPONENTIAL,
        log_variance=moments.hyperbolic,
    ),
    "trigonometric": FeatureMap(
        (_wave, _turned_wave), 0.5, (0.0, 0.0), kernel=kernels.EXPONENTIAL, log_variance=moments.trigonometric
    ),
    "exp": _positive(
        (_exponential,), 0.0, (1.0,), kernel=kernels.SHIFTED_GAUSSIAN, log_variance=moments.shifted_gaussian
    ),
    "step": arc_cosine(0),
    "relu": arc_cosine(1),
    "squared_relu": arc_cosine(2),
    "elu+1": _positive((_elu_plus_one,)),
    "sign": FeatureMap((_sign,), kernel=kernels.SIGN, log_variance=moments.sign),
    "abs": _positive((_absolute,), kernel=kernels.ABSOLUTE, log_variance=moments.absolute),
    "square": _positive((_square,), kernel=kernels.SQUARE, log_variance=moments.square),
    "cosine": FeatureMap((_cosine,), kernel=kernels.COSINE, log_variance=moments.cosine),
    "erf": FeatureMap((_erf,), kernel=kernels.ERF, log_variance=moments.erf),
}


def names() -> tuple[str, ...]:
    """Names of the registered feature maps, sorted."""
    return tuple(sorted(_TABLE))


def lookup(name: str) -> FeatureMap:
    """Return the registered feature map of that name.

    Parameters
    ----------
    name : str
        One of `names()`.

    Returns
    -------
    FeatureMap

    Raises
    ------
    ValueError
        If no map has that name; the message lists those known.
    """
    if not isinstance(name, str) or name not in _TABLE:
        raise ValueError(f"unknown feature map {name!r}; known are: {', '.join(names())}")
    return _TABLE[name]


def register(name: str, feature_map: FeatureMap, *, replace: bool = False) -> FeatureMap:
    """Make a feature map available by name.

    Parameters
    ----------
    name : str
        The new name.
    feature_map : FeatureMap
        The map.
    replace : bool, default False
        Whether a map that already has the name gives way.

    Returns
    -------
    FeatureMap
        The map given.

    Raises
    ------
    TypeError
        If `feature_map` is not a FeatureMap.
    ValueError
        If the name is empty, or taken and `replace` is False.
    """
    if not isinstance(feature_map, FeatureMap):
        raise TypeError(f"feature_map must be a FeatureMap, got {type(feature_map).__name__}")
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be a non-empty str, got {name!r}")
    check_flags(replace=replace)
    if name in _TABLE and not replace:
        raise ValueError(
            f"the feature map {name!r} exists; pass replace=True to replace it. Known: {', '.join(names())}"
        )
    _TABLE[name] = feature_map
    return feature_map


def resolve(feature_map: str | FeatureMap) -> FeatureMap:
    """Return the map itself, or the registered one of that name."""
    if isinstance(feature_map, FeatureMap):
        return feature_map
    if isinstance(feature_map, str):
        return lookup(feature_map)
    raise TypeError(f"feature_map must be a name or a FeatureMap, got {type(feature_map).__name__}")
