"""What materialized features give, and what it is worth: features, kernels, and closed-form errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rfkernels import partials
from rfkernels._arrays import accumulator, broadcasting, namespace, stopped
from rfkernels._checks import (
    broadcast_batch,
    check_array,
    check_finite_arrays,
    check_flags,
    check_qk,
    require_finite_arrays,
)
from rfkernels.features import SideName
from rfkernels.materialized import hybrid, maclaurin, monomials, polynomial
from rfkernels.materialized._records import register_pytree
from rfkernels.materialized.hybrid import AngularHybrid
from rfkernels.materialized.maclaurin import Maclaurin
from rfkernels.materialized.monomials import Monomials
from rfkernels.partials import Partial

Materialized = Monomials | Maclaurin | AngularHybrid


class _Kind(NamedTuple):
    """Functions of one record: log |φ| and its sign, and the log of E (k̂/k − 1)² at scaled inputs."""

    columns: Callable[..., tuple[Any, Any]]
    log_error: Callable[..., Any]
    static: str


def _mean_of(log_moment: Callable[..., Any]) -> Callable[..., Any]:
    """Return the log error of the mean of independent unbiased columns from the log E (k̂/k)² of one."""

    def log_error(x: Any, y: Any, features: Any) -> Any:
        log = log_moment(x, y, features)
        with np.errstate(divide="ignore"):
            return log + np.log(-np.expm1(-log)) - math.log(features.count)

    return log_error


def _monomial_error(x: Any, y: Any, features: Monomials) -> Any:
    if features.law != "taylor":
        return _mean_of(monomials.pair_log_moment)(x, y, features)
    return 2 * polynomial.log_remainder(np.sum(x * y, -1), int(features.parameter))[0]


_KINDS: dict[type, _Kind] = {
    Monomials: _Kind(monomials.columns, _monomial_error, "law"),
    Maclaurin: _Kind(maclaurin.columns, _mean_of(maclaurin.pair_log_moment), "law"),
    AngularHybrid: _Kind(hybrid.columns, hybrid.log_variance, "sampler"),
}


@broadcasting
def transform(x: Any, features: Materialized, *, side: SideName, log: bool = False, check_finite: bool = True) -> Any:
    """Return φ(x), to be given to `rfkernels.linear_attention` or summed over keys.

    Parameters
    ----------
    x : array, shape (*batch, length, dim)
        Queries or keys, NumPy's or JAX's.
    features : Monomials, Maclaurin or AngularHybrid
        The features.
    side : {"query", "key"}
        Whose columns: those of an `AngularHybrid` differ.
    log : bool, default False
        Return log |φ| and the sign of φ, which hold where φ itself would overflow or vanish.
    check_finite : bool, default True
        Whether NaN and infinity are refused.

    Returns
    -------
    array, shape (*batch, length, count), or a tuple of two such arrays
        φ with φ(x)·φ(y) an estimate of exp(scale · x·y), in the dtype of x; logs in the accumulation dtype. Derivatives
        hold but with respect to coordinates of monomials, and factors of products, that are exactly zero: there they
        are taken as zero.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, or a value is not finite.
    """
    check_array("x", x, 2)
    kind = _check(features, "x", x)
    if side not in ("query", "key"):
        raise ValueError(f"side must be 'query' or 'key', got {side!r}")
    check_flags(log=log, check_finite=check_finite)
    if check_finite:
        check_finite_arrays(x=x)
    xp = namespace(x)
    values, signs = kind.columns(xp, x.astype(accumulator(xp, x)), features, side)
    return (values, signs) if log else (signs * xp.exp(values)).astype(x.dtype)


@broadcasting
def log_kernel(x: Any, y: Any, features: Materialized, *, check_finite: bool = True) -> tuple[Any, Any]:
    """Estimate exp(scale · x·y), pair by pair: log |φ(x)·φ(y)| and its sign, which may be negative.

    Parameters
    ----------
    x, y : array, shape (*batch, dim)
        Points of the query and the key side; batch axes broadcast against each other.
    features : Monomials, Maclaurin or AngularHybrid
        The features.
    check_finite : bool, default True
        Whether NaN and infinity are refused.

    Returns
    -------
    tuple of two arrays, shape (*batch)
        In the accumulation dtype; (−inf, 0) where the estimate is zero.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, or a value is not finite.
    """
    check_qk(x, y, names=("x", "y"), pairs=True)
    kind = _check(features, "x", x[..., None, :])
    check_flags(check_finite=check_finite)
    if check_finite:
        check_finite_arrays(x=x, y=y)
    xp = namespace(x, y)
    dtype = accumulator(xp, x, y)
    log_x, sign_x = kind.columns(xp, x.astype(dtype)[..., None, :], features, "query")
    log_y, sign_y = kind.columns(xp, y.astype(dtype)[..., None, :], features, "key")
    log, sign = (log_x + log_y)[..., 0, :], (sign_x * sign_y)[..., 0, :]
    top = stopped(xp, xp.max(log, -1))
    base = xp.where(top == -xp.inf, 0, top)
    total = xp.sum(sign * xp.exp(log - base[..., None]), -1)
    return partials.log_denominator(xp, Partial(total[..., None], total, base))


def relative_error(x: Any, y: Any, features: Materialized, *, log: bool = False) -> Any:
    """Return E (k̂/k − 1)² for k = exp(scale · x·y), over the draw of features of this kind, pair by pair.

    The closed forms, of one column at scaled inputs with L = x·y: Poisson exp(Σ_l (λ_l − x_l y_l)²/λ_l) − 1; geometric
    Π_l I₀(2|x_l y_l|/√(1 − p_l)) e^{−2L} / p_l − 1; Maclaurin exp(λ + c/λ − 2L) − 1 (see `draw_maclaurin`); all divided
    by the count. Taylor features are not random: the square of `relative_bias`. Angular hybrids: see
    `draw_angular_hybrid`, with the covariance of orthogonal rows counted exactly.

    Parameters
    ----------
    x, y : array, shape (*batch, dim)
        Points, not yet scaled; batch axes broadcast against each other.
    features : Monomials, Maclaurin or AngularHybrid
        Only the law of the features, their count and scale matter, not what was drawn.
    log : bool, default False
        Return the log, which holds where the error itself would overflow.

    Returns
    -------
    numpy.ndarray, shape (*batch)
        In float64, computed by NumPy; inf where the number overflows.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If arguments do not fit together, or the rows of a hybrid are coupled in a way of which no closed form is known.
    """
    check_flags(log=log)
    kind, x, y = _scaled_pairs(x, y, features)
    found = kind.log_error(x, y, features)
    with np.errstate(over="ignore"):
        return found if log else np.exp(found)


def relative_bias(x: Any, y: Any, features: Materialized) -> Any:
    """Return E k̂/k − 1 for k = exp(scale · x·y): zero, but for Taylor features.

    Theirs is T_N(L) e^{−L} − 1 = −L^{N+1}/(N+1)! ₁F₁(N+1; N+2; −L) at L = scale · x·y: −P(N+1, L) for L > 0, P the
    regularized incomplete gamma function, so always above −1; it grows like e^{|L|} for L < 0.

    Parameters
    ----------
    x, y : array, shape (*batch, dim)
        Points, not yet scaled; batch axes broadcast against each other.
    features : Monomials, Maclaurin or AngularHybrid
        The features.

    Returns
    -------
    numpy.ndarray, shape (*batch)
        In float64, computed by NumPy; ±inf where the number overflows.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together.
    """
    _, x, y = _scaled_pairs(x, y, features)
    dot = np.sum(x * y, -1)
    if not (isinstance(features, Monomials) and features.law == "taylor"):
        return np.zeros_like(dot)
    log, sign = polynomial.log_remainder(dot, int(features.parameter))
    with np.errstate(over="ignore"):
        return sign * np.exp(log)


def _scaled_pairs(x: Any, y: Any, features: Any) -> tuple[_Kind, Any, Any]:
    check_qk(x, y, names=("x", "y"), pairs=True)
    kind = _check(features, "x", x[..., None, :], batch=False)
    require_finite_arrays(x=x, y=y)
    root = np.sqrt(np.asarray(features.scale, np.float64))
    x, y = np.broadcast_arrays(*(np.asarray(v).astype(np.float64) * root for v in (x, y)))
    return kind, x, y


def _check(features: Any, name: str, x: Any, batch: bool = True) -> _Kind:
    kind = _KINDS.get(type(features))
    if kind is None:
        raise TypeError(f"features must be drawn by rfkernels.materialized, got {type(features).__name__}")
    register_pytree(type(features), kind.static)
    if features.dim != x.shape[-1]:
        raise ValueError(f"features are of dim {features.dim}, but {name} has shape {x.shape}")
    if batch:
        broadcast_batch(features=features.batch, **{name: x.shape[:-2]})
    return kind
