"""Validation of arguments: errors name the argument, what came and what was expected."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rfkernels._arrays import FLOATS, broadcast_shapes, dtype_name, is_jax, namespace

_BLOCK = 1 << 18
_FEW = 1 << 10
_NOT_PLAIN = np.ma.MaskedArray, np.matrix


def check_array(name: str, x: Any, axes: int, masked: str = "masks are given by mask=") -> None:
    """Require a NumPy or JAX array of a real floating dtype with at least `axes` axes."""
    if not (isinstance(x, np.ndarray) or is_jax(x)):
        raise TypeError(f"{name} must be a numpy.ndarray or jax.Array, got {type(x).__name__}")
    check_plain(name, x, masked)
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        raise TypeError(
            f"{name} must be in this machine's byte order, got {x.dtype.str}; x.astype(x.dtype.newbyteorder('='))"
        )
    if dtype_name(x.dtype) not in FLOATS:
        hint = "; of a file of bfloat16, x.view(ml_dtypes.bfloat16) is what was saved" if x.dtype == "V2" else ""
        raise TypeError(f"{name} must have one of the dtypes {', '.join(FLOATS)}, got {x.dtype}{hint}")
    if x.ndim < axes:
        expected = "(*batch, length, dim)" if axes == 2 else "(*batch, dim)"
        raise ValueError(f"{name} must have shape {expected}, got {x.shape}")


def check_plain(name: str, x: Any, hint: str) -> None:
    """Refuse arrays of NumPy that mean something else than their numbers, such as masked ones."""
    if isinstance(x, _NOT_PLAIN):
        raise TypeError(f"{name} must be a plain array, got {type(x).__name__}; {hint}")


def check_known(batch: bool = False, **arrays: Any) -> None:
    """Require lengths that are numbers, and with `batch` all axes: exports of JAX may have symbols in their place."""
    for name, x in arrays.items():
        if is_jax(x) and not all(isinstance(n, int) for n in (x.shape if batch else x.shape[-2:])):
            known = "have axes that are known with groups= or heavy=" if batch else "have a length that is known"
            raise ValueError(
                f"{name} must {known}, got shape {x.shape}: of an export only batch axes may be symbolic, and with "
                "groups= or heavy= none"
            )


def broadcast_batch(**shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Broadcast batch axes, naming the arguments that disagree."""
    some = {shape for shape in shapes.values() if shape}
    if len(some) < 2:  # most often, and NumPy takes ten times as long
        return next(iter(some), ())
    try:
        return broadcast_shapes(*shapes.values())
    except ValueError as error:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"batch axes do not broadcast: {listed}. Shapes are (*batch, length, dim) with heads as batch axes; "
            "were length and heads swapped?"
        ) from error


def check_qk(q: Any, k: Any, names: tuple[str, str] = ("q", "k"), pairs: bool = False) -> None:
    """Require two arrays of equal width whose batch axes broadcast; with `pairs` every axis but the last is one."""
    own = 1 if pairs else 2
    check_array(names[0], q, own)
    check_array(names[1], k, own)
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"{names[0]} and {names[1]} must agree in dim, got shapes {q.shape} and {k.shape}")
    broadcast_batch(**{names[0]: q.shape[:-own], names[1]: k.shape[:-own]})


def check_kv(k: Any, v: Any, names: tuple[str, str] = ("k", "v")) -> None:
    """Require keys and values of equal length whose batch axes broadcast."""
    check_array(names[0], k, 2)
    check_array(names[1], v, 2)
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"{names[0]} and {names[1]} must agree in length, got shapes {k.shape} and {v.shape}")
    broadcast_batch(**{names[0]: k.shape[:-2], names[1]: v.shape[:-2]})


def check_qkv(q: Any, k: Any, v: Any) -> None:
    """Require queries, keys and values that fit together."""
    check_qk(q, k)
    check_kv(k, v)
    check_known(q=q, k=k, v=v)
    broadcast_batch(q=q.shape[:-2], k=k.shape[:-2], v=v.shape[:-2])


def check_mask(mask: Any, k: Any, **shapes: tuple[int, ...]) -> None:
    """Require a boolean key mask (*batch, keys) that adds no batch axes to `shapes`, those of the other arguments."""
    if mask is None:
        return
    if not (isinstance(mask, np.ndarray) or is_jax(mask)):
        raise TypeError(f"mask must be a boolean array, got {type(mask).__name__}")
    check_plain("mask", mask, "what it masks may not be attended: mask.filled(False)")
    if mask.dtype != bool:
        raise TypeError(f"mask must be of dtype bool (True = may be attended), got {mask.dtype}")
    keys = k.shape[-2]
    batch = broadcast_batch(k=k.shape[:-2], **shapes)
    if not _over_keys(mask, keys, batch):
        raise ValueError(
            f"mask must be over keys, (*batch, {keys}) with axes that broadcast to {batch}, got {mask.shape}; "
            "a mask over pairs of queries and keys cannot be honoured; attention has causal= and window= instead"
        )


def check_segments(segments: Any, q: Any, k: Any, **shapes: tuple[int, ...]) -> None:
    """Require integers (*batch, keys) that never decrease, one for each position of queries and keys alike."""
    if segments is None:
        return
    if not (isinstance(segments, np.ndarray) or is_jax(segments)):
        raise TypeError(f"segment_ids must be an array of integers, got {type(segments).__name__}")
    check_plain("segment_ids", segments, "masks are given by mask=")
    if segments.dtype.kind not in "iu":
        raise TypeError(f"segment_ids must be of an integer dtype, got {segments.dtype}")
    length, keys = q.shape[-2], k.shape[-2]
    if length != keys:
        raise ValueError(
            f"segment_ids= is for self-attention, where q and k have the same length, got lengths {length} and {keys}"
        )
    batch = broadcast_batch(q=q.shape[:-2], k=k.shape[:-2], **shapes)
    if not _over_keys(segments, keys, batch):
        raise ValueError(
            f"segment_ids must have shape (*batch, {keys}) with axes that broadcast to {batch}, got {segments.shape}"
        )
    if not is_tracer(segments):
        given = np.asarray(segments)
        falls = np.argwhere(given[..., 1:] < given[..., :-1])
        if len(falls):
            *leading, last = (int(i) for i in falls[0])
            raise ValueError(
                f"segment_ids must not decrease, but segment_ids{[*leading, last + 1]} is less than before"
            )


def _over_keys(x: Any, keys: int, batch: tuple[int, ...]) -> bool:
    """Whether an array is (*batch, keys) or broadcasts to that without more axes."""
    if x.ndim < 1 or x.shape[-1] != keys:
        return False
    try:
        return bool(broadcast_shapes(x.shape[:-1], batch) == batch)
    except ValueError:
        return False


def is_number(x: Any) -> bool:
    """Whether `x` is a finite real number, which a bool is not."""
    if isinstance(x, bool) or not isinstance(x, int | float | np.floating | np.integer):
        return False
    try:
        return math.isfinite(x)
    except OverflowError:
        return False


def check_scale(scale: Any, optional: bool = True) -> None:
    """Require a positive finite number, which may be an array of no axes; None passes if it is optional.

    What JAX traces has no value to look at.
    """
    if scale is None and optional:
        return
    array = isinstance(scale, np.ndarray) or is_jax(scale)
    if array and scale.ndim == 0 and (scale.dtype.kind in "iu" or dtype_name(scale.dtype) in FLOATS):
        if is_tracer(scale):
            return
        scale = scale.item()
    if not (is_number(scale) and scale > 0):
        raise ValueError(f"scale must be a positive finite number, got {scale!r}")


def scale_or_default(scale: Any, dim: int) -> Any:
    """Return the scale, 1/√dim if it is None; of vectors of no width, whose products are 0 under any, 1."""
    return 1 / math.sqrt(max(dim, 1)) if scale is None else scale


def check_batch(batch: Any) -> None:
    """Require a tuple of sizes."""
    if not isinstance(batch, tuple) or not all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 0 for n in batch
    ):
        raise ValueError(f"batch must be a tuple of sizes of at least 0, got {batch!r}")


def check_flags(**flags: Any) -> None:
    """Require bools, as Python or NumPy has them."""
    for name, flag in flags.items():
        if flag is True or flag is False or isinstance(flag, np.bool_):
            continue
        raise TypeError(f"{name} must be True or False, got {flag!r}{static_hint(flag)}")


def static_hint(x: Any, what: str = "it") -> str:
    """Return what an error says of an argument that is no array, but traced by JAX."""
    return f"; under jax.jit {what} must be static (static_argnames)" if is_tracer(x) else ""


def is_key(x: Any) -> bool:
    """Whether an array is one key of JAX's random numbers, typed or raw."""
    import jax

    try:
        typed = jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
        return bool((x if typed else jax.random.wrap_key_data(x)).ndim == 0)
    except (TypeError, ValueError):
        return False


def check_key(rng: Any) -> None:
    """Require an array of JAX to be one key of its random numbers, typed or raw."""
    if not is_key(rng):
        raise TypeError(
            "rng must be an int, SeedSequence, numpy Generator or a single JAX key, got a jax.Array of dtype "
            f"{rng.dtype} and shape {rng.shape}{static_hint(rng, 'an int')}"
        )


def generator_of(rng: Any, expected: str = "an int, SeedSequence or numpy Generator") -> np.random.Generator:
    """Return NumPy's generator of a seed, or the one given; nothing else stands for one, so that chance is chosen."""
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer | np.random.SeedSequence | np.random.Generator):
        raise TypeError(f"rng must be {expected}, got {rng!r} of type {type(rng).__name__}")
    if isinstance(rng, int | np.integer) and rng < 0:
        raise ValueError(f"rng must be at least 0 if it is an int, got {rng}")
    return np.random.default_rng(rng)


def check_window(window: Any) -> None:
    """Require a positive integer or None."""
    if window is None:
        return
    if isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 1:
        raise ValueError(f"window must be a positive integer or None, got {window!r}{static_hint(window)}")


def check_finite_arrays(**arrays: Any) -> None:
    """Refuse NaN and infinity where `check_finite=False` lets them pass."""
    for name, x in arrays.items():
        require_finite(name, x, "; check_finite=False lets it pass")


def require_finite_arrays(**arrays: Any) -> None:
    """Refuse NaN and infinity, for good."""
    for name, x in arrays.items():
        require_finite(name, x)


def require_finite(name: str, x: Any, hint: str = "") -> None:
    """Refuse NaN and infinity with the argument's name and the first bad index; tracers pass."""
    index = first_nonfinite(x)
    if index is not None:
        value = np.asarray(x)[index].astype(np.float64).item()
        raise ValueError(f"{name} must be finite, but {name}{list(index) or ''} is {value}{hint}")


def first_nonfinite(x: Any) -> tuple[int, ...] | None:
    """Return the first index of an array that is NaN or infinite; NumPy arrays are taken in blocks."""
    if is_jax(x):
        if is_tracer(x) or _all_finite(x):
            return None
        x = np.asarray(x)
    if x.size <= _BLOCK and (_plainly_finite(x) or np.logical_and.reduce(np.isfinite(x), axis=None)):
        return None
    if x.ndim == 0:
        return ()
    if x.ndim == 1:
        found = _first_bad_row(x[None])
        return None if found is None else found[1:]
    rows = x.reshape(-1, x.shape[-1]) if x.flags.c_contiguous else None
    if rows is None:
        for leading in np.ndindex(x.shape[:-2]):
            found = _first_bad_row(x[leading])
            if found is not None:
                return (*leading, *found)
        return None
    found = _first_bad_row(rows)
    if found is None:
        return None
    return (*(int(i) for i in np.unravel_index(found[0], x.shape[:-1])), found[1])


def _plainly_finite(x: Any) -> bool:
    """Whether a few numbers have a finite sum of squares, which takes less time than to look at each."""
    return x.size <= _FEW and x.dtype.char in "fd" and math.isfinite(np.vdot(x, x))


def _first_bad_row(matrix: Any) -> tuple[int, int] | None:
    step = max(1, _BLOCK // max(1, matrix.shape[-1]))
    for start in range(0, len(matrix), step):
        bad = ~np.isfinite(matrix[start : start + step])
        if bad.any():
            row, column = np.argwhere(bad)[0]
            return start + int(row), int(column)
    return None


def _all_finite(x: Any) -> bool:
    """Return whether an array of JAX is finite, now: inside `jax.jit` it may be a constant of what is traced."""
    import jax

    with jax.ensure_compile_time_eval():
        return bool(namespace(x).isfinite(x).all())


def magnitude(x: Any) -> float:
    """Return the largest magnitude in an array, 0 of none; of one of JAX's now, as `_all_finite`."""
    if not is_jax(x):
        return float(np.max(np.abs(x), initial=0))
    import jax

    with jax.ensure_compile_time_eval():
        return float(jax.numpy.max(jax.numpy.abs(x), initial=0))


def is_tracer(x: Any) -> bool:
    """Whether JAX traces `x`, so that it has no value to look at."""
    if not is_jax(x):
        return False
    import jax

    return isinstance(x, jax.core.Tracer)


def check_untraced(**given: Any) -> None:
    """Refuse what JAX traces where the other arrays are NumPy's, and so is what computes."""
    for name, x in given.items():
        if is_tracer(x):
            raise TypeError(
                f"{name} is traced by JAX, but the others are NumPy arrays; give them as jax.numpy.asarray makes them"
            )


def result_dtype(xp: Any, *arrays: Any) -> Any:
    """Return the common dtype of the arrays, which must be one that is computed in."""
    try:
        dtype = xp.result_type(*arrays)
    except TypeError as error:
        listed = ", ".join(str(x.dtype) for x in arrays)
        raise TypeError(f"the arrays have no common dtype: {listed}") from error
    return dtype


def common_dtype(xp: Any, held: Any, added: Any) -> Any:
    """Return the dtype of what a state holds and what comes to it, which JAX may have been told to refuse."""
    if xp is np:
        return result_dtype(xp, held, added)
    import jax

    with jax.numpy_dtype_promotion("standard"):
        return result_dtype(xp, held, added)
