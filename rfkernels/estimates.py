"""Estimates outside attention: features themselves, kernels, log-normalisers."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from rfkernels import core, uncertainty
from rfkernels._arrays import accumulator, broadcasting, in_one, is_placed, namespace, over_rows
from rfkernels._checks import check_array, check_finite_arrays, check_flags, check_known, check_qk, check_untraced
from rfkernels.attention import attention
from rfkernels.backends import choose
from rfkernels.features import Features, SideName, check_features


@broadcasting
def transform(
    x: Any,
    features: Features,
    *,
    side: SideName,
    log: bool = False,
    backend: str | None = None,
    check_finite: bool = True,
) -> Any:
    """Return φ(x) itself.

    Parameters
    ----------
    x : array, shape (*batch, length, dim)
        Queries or keys.
    features : Features
        The features.
    side : {"query", "key"}
        Which preprocessing applies.
    log : bool, default False
        Return log |φ| and the sign of φ, which hold at norms where φ itself would overflow or vanish.
    backend : {"numba", "jax", "numpy"}, optional
        Chosen by the kind of array if not given: numba for numpy.ndarray, jax for jax.Array. Logs of NumPy arrays are
        computed in NumPy.
    check_finite : bool, default True
        Whether NaN and infinity are refused.

    Returns
    -------
    array, shape (*batch, length, count), or a tuple of two such arrays
        φ with φ(x)·φ(y) an estimate of the kernel; m^-½ is included.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together.
    """
    check_array("x", x, 2)
    check_features(features, "x", x)
    features.side(side)
    check_flags(log=log, check_finite=check_finite)
    chosen = choose(backend, x, features=features)
    if not log:
        return chosen.transform(x, features, side, check_finite)
    if check_finite:
        check_finite_arrays(x=x)
    xp = namespace(x)
    return core.transform(xp, x.astype(accumulator(xp, x)), features, side)


def _signed(log: Any, sign: Any, features: Features, return_sign: bool) -> Any:
    if return_sign:
        return log, sign
    if not features.map.nonnegative:
        raise ValueError(
            "estimates of this map can be negative: pass return_sign=True for the log of the magnitude and the sign"
        )
    return log


@broadcasting
def log_kernel(x: Any, y: Any, features: Features, *, return_sign: bool = False, check_finite: bool = True) -> Any:
    """Estimate log k(x, y), pair by pair: the log of φ(x)·φ(y), whose mean (not that of its log) is the kernel.

    Parameters
    ----------
    x, y : array, shape (*batch, dim)
        Points of the query and the key side; batch axes broadcast against each other.
    features : Features
        The features, without batch axes of their own or with axes that broadcast against those of x.
    return_sign : bool, default False
        Return ``(log, sign)``. Required of maps whose estimates can be negative.
    check_finite : bool, default True
        Whether NaN and infinity are refused.

    Returns
    -------
    array, shape (*batch), or a tuple of two such arrays
        In the accumulation dtype; −inf where the estimate is zero.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, or the map is signed and `return_sign` is False.
    """
    check_qk(x, y, names=("x", "y"), pairs=True)
    check_features(features, "x", x[..., None, :])
    check_flags(return_sign=return_sign, check_finite=check_finite)
    if check_finite:
        check_finite_arrays(x=x, y=y)
    xp = namespace(x, y)
    if xp is np:
        check_untraced(features=features.projection)
    dtype = accumulator(xp, x, y)
    log, sign = _in_turns(xp, x.astype(dtype), y.astype(dtype), features)
    return _signed(log, sign, features, return_sign)


_TERMS = 1 << 17
"""Terms of sums that NumPy takes at a time, so that they stay in the cache and take no more memory."""

_TERMS_OF_JAX = 1 << 22
"""Those that JAX takes at a time: enough to keep a device busy."""


def _in_turns(xp: Any, x: Any, y: Any, features: Features) -> tuple[Any, Any]:
    """Do what `core.log_kernel` does, some pairs at a time where two arrays hold as many points."""
    batch = x.shape[:-1]
    if features.batch or not batch or batch != y.shape[:-1]:
        return core.log_kernel(xp, x, y, features)
    if xp is not np:
        if is_placed(x, y) or math.prod(batch) * features.count <= _TERMS_OF_JAX:
            return core.log_kernel(xp, x, y, features)
        run = in_one(xp, _interleaved, "most", "programs")
        found: tuple[Any, Any] = run(xp, x, y, features, most=_TERMS_OF_JAX, programs=features.map.programs())
        return found

    def step(_: None, start: int, rows: tuple[Any, Any]) -> Any:
        log, sign = core.log_kernel(xp, *rows, features)
        return None, (log[:, None], sign[:, None])

    points = tuple(z.reshape(math.prod(batch), z.shape[-1]) for z in (x, y))
    _, (log, sign) = over_rows(xp, step, None, points, max(_TERMS // features.count, 1))
    return log.reshape(batch), sign.reshape(batch)


def _interleaved(xp: Any, x: Any, y: Any, features: Features, most: int, programs: Any) -> tuple[Any, Any]:
    """Take some pairs of every block of the longest axis at every turn: those spread over devices stay where they are.

    Blocks are so many, by powers of two and three, that each lies on one device of as many. What is left over of them,
    and turns of still more terms than `most`, are taken in turns, too; derivatives compute each turn anew.
    """
    batch, jax = x.shape[:-1], sys.modules["jax"]
    longest, terms = max(batch), math.prod(batch) * features.count
    if longest < 2 or terms <= most:
        return core.log_kernel(xp, x, y, features)
    turns = 1 << min(terms // most, longest // 2).bit_length()
    fit = 1 << (longest // turns).bit_length() - 1
    blocks = math.gcd(longest, max(3 * fit // 4, 1))
    axis, length = batch.index(longest), longest // blocks
    cut, whole = (*batch[:axis], blocks, length, *batch[axis + 1 :]), length // turns * turns
    points = tuple(xp.moveaxis(z.reshape(*cut, z.shape[-1]), axis + 1, 0) for z in (x, y))

    def some(pairs: tuple[Any, Any]) -> tuple[Any, Any]:
        return _interleaved(xp, *pairs, features, most, programs)

    parts = tuple(z[:whole].reshape(turns, whole // turns, *z.shape[1:]) for z in points)
    found = jax.lax.map(jax.checkpoint(some, prevent_cse=False), parts)
    left = some((points[0][whole:], points[1][whole:]))
    joined = (xp.concatenate([z.reshape(whole, *z.shape[2:]), rest]) for z, rest in zip(found, left, strict=True))
    log, sign = (xp.moveaxis(z, 0, axis + 1).reshape(batch) for z in joined)
    return log, sign


@broadcasting
def log_normalizer(
    queries: Any,
    keys: Any,
    features: Features | None = None,
    *,
    heavy: Any = None,
    groups: Any = None,
    scale: float | None = None,
    mask: Any = None,
    return_sign: bool = False,
    error: bool = False,
    backend: str | None = None,
    check_finite: bool = True,
) -> Any:
    """Estimate log Σ_s k(q, k_s) for each query, from a state: linear in the number of keys.

    Parameters
    ----------
    queries : array, shape (*batch, length, dim)
        Queries.
    keys : array, shape (*batch, keys, dim)
        Keys.
    features : Features, optional
        The features; ``draw(..., scale=1)`` for plain dot products. May be left out where there are groups.
    heavy : int or array of int, optional
        Keys whose kernels are exact, as in `attention`: so many, those that a sample of the queries finds largest, or
        those at these positions.
    groups : int or Groups, optional
        The other keys in groups, as in `attention`: biased without features, unbiased with them.
    scale : float, optional
        Multiplies q·k where groups are given as a number and there are no features; 1/√dim by default.
    mask : array of bool, shape (*batch, keys), optional
        True where a key counts.
    return_sign : bool, default False
        Return ``(log, sign)``. Required of maps whose estimates can be negative.
    error : bool, default False
        Return ``(log, errors)``, or ``(log, sign, errors)``: standard errors of the log as well, as in `attention`.
    backend, check_finite
        As in `attention`.

    Returns
    -------
    array, shape (*batch, length), or a tuple of two such arrays
        In the accumulation dtype; −inf where no key counts. With `error` an `Errors` follows.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, or the map is signed and `return_sign` is False.
    """
    check_qk(queries, keys, names=("queries", "keys"))
    check_known(queries=queries, keys=keys)
    check_flags(return_sign=return_sign, error=error, check_finite=check_finite)
    given = {"heavy": heavy, "groups": groups, "scale": scale, "mask": mask}
    given |= {"backend": backend, "check_finite": check_finite}
    arrays = queries, keys, keys[..., :0], features
    try:
        if error:
            result = uncertainty.attend(attention, *arrays, **given, stacklevel=4)
        else:
            result = attention(*arrays, **given, full=True)
    except ValueError:
        if check_finite:
            check_finite_arrays(queries=queries, keys=keys)
        raise
    if features is None:
        return (result.log_normalizer, result.sign) if return_sign else result.log_normalizer
    found = _signed(result.log_normalizer, result.sign, features, return_sign)
    if not error:
        return found
    return (*found, result.error) if return_sign else (found, result.error)
