"""Standard errors of attention and of sums of kernels, from groups of features that were drawn independently.

Features are cut into eight groups or a few more, each of which estimates everything by itself, in one call: as many
products as in one pass with all features, and more to write and to combine. What all say together is their average on
one log scale, which is what all features say; how far they differ is how far that may be off (delete-one jackknife).

Where features are few for the kernel, nearly all of a sum is in rows that are rarely drawn. Then groups agree and are
all wrong, and nothing computed from them tells. Errors are therefore compared with those of a sample of queries that
exact attention is computed of, and multiplied by what it takes for 95 % intervals to hold there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from rfkernels._arrays import accumulator, broadcasting, dtype_name, in_one, is_jax, namespace, stopped, unmasked
from rfkernels._checks import check_mask, check_qkv, check_segments, is_number, is_tracer, result_dtype
from rfkernels.backends import choose
from rfkernels.features import Features, check_features
from rfkernels.grouping import BlockState, Groups
from rfkernels.state import DecodeState, State
from rfkernels.streaming import AttentionResult, Errors, batch_of, check_state
from rfkernels.uncertainty import _check, _groups
from rfkernels.uncertainty._jackknife import Estimate, combine, rounding

__all__ = ["LIMIT", "UntrustedErrorWarning", "attend", "half_width", "trusted"]

LIMIT = 3.0
"""The largest inflation of standard errors that are to be trusted."""


_NARROW = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
"""Units of rounding of the dtypes that are not computed in."""


class UntrustedErrorWarning(UserWarning):
    """Standard errors are not to be trusted, or could not be checked."""


@broadcasting
def attend(
    run: Callable[..., AttentionResult],
    q: Any,
    k: Any,
    v: Any,
    features: Features | None,
    *,
    causal: bool = False,
    mask: Any = None,
    segment_ids: Any = None,
    state: State | DecodeState | None = None,
    check: int = 32,
    stacklevel: int = 2,
    **options: Any,
) -> AttentionResult:
    """Compute attention and its standard errors.

    A window is taken once for each of the 8 groups or a few more, and memory for the output is needed as often; time
    is one and a half times that of `attention` or more, the more the fewer the features (benchmarks/error_bars.py).

    Parameters
    ----------
    run : callable
        `attention`.
    q, k, v, features, causal, mask, segment_ids, state
        As in `attention`. Features are drawn in independent blocks, of which there are at least eight, or are not
        coupled but to lower errors, which are then estimated too large if anything.
    check : int, default 32
        Of how many queries, spread evenly, exact attention is computed. Standard errors are multiplied, in each
        element of the batch, by what it takes for 95 % intervals to hold there, at least 1, and infinite where nothing
        does (`Errors`). It takes time linear in the number of keys. 0 for no check; there is none with `state`, whose
        keys are gone, nor without a kernel.
    stacklevel : int, default 2
        That of the warning: 2 is the line that calls `attend`.
    **options
        As in `attention`.

    Returns
    -------
    AttentionResult
        Its `error` has what `Errors` describes. The output is that of `attention`, to rounding. With `heavy` or
        `groups` its state is None.

    Raises
    ------
    TypeError, ValueError
        As `attention`; and if it is not known which rows of the features were drawn together, or they do not divide
        into 8 to 32 equal groups.

    Warns
    -----
    UntrustedErrorWarning
        If an inflation is above `LIMIT`: errors are then of the right size on average, but say little of which outputs
        are off. Also if errors were not checked. Never under `jax.jit`.
    """
    check_qkv(q, k, v)
    if features is None:
        raise TypeError(
            "features must be given (see rfkernels.draw) where errors are wanted: groups= alone have none, as nothing "
            "about them is random"
        )
    check_features(features, "k", k)
    if isinstance(check, bool) or not isinstance(check, int | np.integer) or check < 0:
        raise ValueError(f"check must be an integer of at least 0, got {check!r}")
    if isinstance(state, BlockState):
        raise ValueError("a standard error cannot be had of a pass with groups= or heavy= that is resumed from a state")
    check_mask(mask, k, q=q.shape[:-2], v=v.shape[:-2], features=features.batch, state=batch_of(state))
    check_segments(segment_ids, q, k, v=v.shape[:-2], features=features.batch, state=batch_of(state))
    if isinstance(state, State | DecodeState):
        check_state(state.state if isinstance(state, DecodeState) else state, features, v.shape[-1])
    index = _groups.partition(features)
    shapes = [x.shape[:-2] for x in (q, k, v)] + [x.shape[:-1] for x in (mask, segment_ids) if x is not None]
    heavy: Any = options.get("heavy")
    groups: Any = options.get("groups")
    shapes += [heavy.shape[:-1]] if isinstance(heavy, np.ndarray) or is_jax(heavy) else []
    shapes += [groups.batch] if isinstance(groups, Groups) else []
    axes = max(len(shape) for shape in (*shapes, features.batch, batch_of(state)))
    xp = namespace(q, k, v)
    if is_tracer(v) or not options.get("check_finite", True):
        v = unmasked(v, mask)
    dtype, kind = result_dtype(xp, q, k, v), accumulator(xp, q, k, v)
    # Groups of half floats would be compared at their precision.
    q, k, v = (x.astype(kind, copy=False) for x in (q, k, v))
    done = run(
        q,
        k,
        v,
        _groups.features_of(features, index, axes),
        causal=causal,
        mask=mask,
        segment_ids=segment_ids,
        state=_groups.state_of(state, features, index, axes),
        full=True,
        **options,
    )
    chosen = choose(options.get("backend"), q, k, v)
    freedom, unit = len(index) - 1, _unit(xp, done.output)
    outputs = done.output if unit is None else done.output / unit
    found = combine(xp, outputs, done.log_normalizer, done.sign, features.count, chosen.spread)
    if unit is not None:
        found = found._replace(output=found.output * unit, error=found.error * unit)
    largest = _largest(xp, v) if state is None else xp.inf
    least = rounding(xp, found.output, largest, _NARROW.get(dtype_name(dtype), 0.0))
    found = found._replace(error=xp.maximum(found.error, least))
    error = Errors(found.error, found.log_error, found.effective, freedom)
    if check and state is None and features.map.kernel is not None:
        at = _check.positions(q.shape[-2], int(check))
        exact = _check.exact_rows(q, k, v, features, at, causal, mask, segment_ids, chosen.few_rows)
        given = at, _quantile(freedom, _check.LEVEL), _check.reach(xp, q, v, at, causal, mask, segment_ids)
        output, log, *factors = in_one(xp, _inflated)(xp, found, exact, *given)
        error = Errors(output, log, found.effective, freedom, *factors)
    _warn(error, stacklevel + 2)
    after = None if isinstance(done.state, BlockState) else _groups.whole_state(done.state, features, index)
    return AttentionResult(found.output.astype(dtype), after, found.log_normalizer, found.sign, error)


def _unit(xp: Any, outputs: Any) -> Any:
    """Return what outputs are divided by, (*batch, length, width): 1 where squares of differences stay in range.

    Elsewhere it is the largest of what groups say. None of NumPy's if it is 1 everywhere.
    """
    limits, size = xp.finfo(outputs.dtype), stopped(xp, xp.max(xp.abs(outputs), 0))
    fits = (size > limits.tiny**0.5 / limits.eps) & (size < limits.max**0.5 * limits.eps)
    fits = fits | (size == 0) | ~xp.isfinite(size)
    return None if xp is np and fits.all() else xp.where(fits, 1, size)


def _largest(xp: Any, v: Any) -> Any:
    """Return the largest value of each column, (*batch, 1, width); infinity of one that has NaN."""
    size = xp.max(xp.abs(stopped(xp, v)), -2, keepdims=True, initial=0)
    return xp.where(xp.isnan(size), xp.inf, size)


def _inflated(xp: Any, found: Estimate, exact: Any, *given: Any) -> tuple[Any, Any, Any, Any]:
    """Return errors that are multiplied by their inflations, and these."""
    output, log = _check.inflations(xp, found, exact, *given)
    error = _multiplied(xp, found.error, output[..., None, None])
    return error, _multiplied(xp, found.log_error, log[..., None]), output, log


def _multiplied(xp: Any, error: Any, factor: Any) -> Any:
    """Multiply errors; all are infinite, those of zero too, where the factor is."""
    endless = (factor == xp.inf) | (error == xp.inf)
    return xp.where(endless, xp.inf, xp.where(endless, 1, error) * xp.where(endless, 1, factor))


def trusted(error: Errors) -> Any:
    """Return where no inflation is above `LIMIT`.

    Parameters
    ----------
    error : Errors
        Of `attend`.

    Returns
    -------
    array of bool, shape (*batch)
        False without axes if errors were not checked.

    Raises
    ------
    TypeError
        If `error` is no Errors.
    """
    if not isinstance(error, Errors):
        raise TypeError(f"error must be Errors, such as result.error, got {type(error).__name__}")
    if error.inflation is None:
        return np.asarray(False)
    return (error.inflation <= LIMIT) & (error.log_inflation <= LIMIT)


def half_width(error: Any, freedom: int, level: float = 0.95) -> Any:
    """Return half the width of intervals that hold the exact value with some probability.

    Parameters
    ----------
    error : array
        Standard errors, such as ``result.error.output``.
    freedom : int
        ``result.error.freedom``.
    level : float, default 0.95
        The probability. Inflations are chosen for 0.95: where they are much above 1, intervals of lower levels hold
        more often than they say, and those of higher levels less often.

    Returns
    -------
    array, of the shape of error
        The standard error times a quantile of Student's t distribution.

    Raises
    ------
    ValueError
        If the level is not between 0 and 1, or freedom is no positive integer.
    """
    if isinstance(freedom, bool) or not hasattr(freedom, "__index__") or freedom < 1:
        raise ValueError(f"freedom must be a positive integer, got {freedom!r}")
    if not (is_number(level) and 0 < level < 1):
        raise ValueError(f"level must be above 0 and below 1, got {level!r}")
    return error * _quantile(int(freedom), level)


def _quantile(freedom: int, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


_UNCHECKED = "standard errors were not compared with exact attention (no check= was possible or wanted)"
_UNTRUSTED = (
    "standard errors are not to be trusted: features are too few for these queries and keys, and those in hand do not "
    "show it. Intervals hold on average over the queries but say little of which outputs are off; see "
    "result.error.inflation. Take more features, fit them (rfkernels.fit), or add a window"
)


def _warn(error: Errors, stacklevel: int) -> None:
    """Warn unless errors are trusted, or JAX traces them."""
    if is_tracer(error.output):
        return
    if error.inflation is None:
        warnings.warn(_UNCHECKED, UntrustedErrorWarning, stacklevel=stacklevel)
    elif not bool(trusted(error).all()):
        warnings.warn(_UNTRUSTED, UntrustedErrorWarning, stacklevel=stacklevel)
