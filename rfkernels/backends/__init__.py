"""Backends: records of functions, imported only when arrays of their kind arrive."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from rfkernels import core, kernels, partials
from rfkernels._arrays import accumulator, in_one, is_jax, namespace
from rfkernels._checks import check_finite_arrays, check_untraced
from rfkernels._forks import loading
from rfkernels.core import Options
from rfkernels.exact import exact_block, exact_partial
from rfkernels.features import Features, SideName, register_pytree
from rfkernels.grouping import BlockState, Far, Plan
from rfkernels.grouping.fitting import STEPS, Steps
from rfkernels.grouping.schedule import Rows
from rfkernels.state import State


class Pass(NamedTuple):
    """What a pass returns: the output and, where asked for, its normaliser and the state after the last key."""

    output: Any
    log_normalizer: Any
    sign: Any
    state: Any


def exact(
    q: Any, k: Any, v: Any, options: Options, scale: Any, mask: Any, segments: Any, check: bool, dtype: Any
) -> Pass:
    """Run a pass with exact weights of the kernel in the options; the log-normaliser is returned if these ask for it.

    `dtype` is the output's.
    """
    if check:
        check_finite_arrays(q=q, k=k, v=v)
    xp, causal, window = namespace(q, k, v), options.causal, options.window
    kernel = kernels.EXPONENTIAL if options.kernel is None else options.kernel
    seen = {"causal": causal, "window": window, "mask": mask, "segment_ids": segments}
    part = exact_partial(q, k, v, scale=scale, kernel=kernel, **seen)
    log, sign = partials.log_denominator(xp, part) if options.full else (None, None)
    return Pass(partials.normalize(xp, part).astype(dtype), log, sign, None)


def transform(x: Any, features: Features, side: SideName, check: bool) -> Any:
    """Return φ(x), (*batch, length, count), in the dtype of x."""
    if check:
        check_finite_arrays(x=x)
    xp = namespace(x)
    wide = x.astype(accumulator(xp, x))
    if not features.map.exponential:
        return core.columns(xp, wide, features, side).astype(x.dtype)
    log, sign = core.transform(xp, wide, features, side)
    return (sign * xp.exp(log)).astype(x.dtype)


def given(phi_q: Any, phi_k: Any, v: Any, causal: bool, mask: Any, check: bool, dtype: Any) -> Any:
    """Return attention from features that are given; `dtype` is the output's."""
    if check:
        check_finite_arrays(phi_q=phi_q, phi_k=phi_k, v=v)
    xp = namespace(phi_q, phi_k, v)
    sums = accumulator(xp, phi_q, phi_k, v)
    run = in_one(xp, core.linear_attention, "causal")
    return run(xp, phi_q.astype(sums), phi_k.astype(sums), v.astype(sums), causal, mask).astype(dtype)


class Backend(NamedTuple):
    """The functions that a backend provides.

    Parameters
    ----------
    name : str
        What it is called.
    attend : callable
        ``attend(q, k, v, features, options, mask, segments, state, check_finite, dtype)``: a whole pass; `dtype` is the
        output's. `segments` is None or the segment of each key, (*batch, keys), of at least one key and no fewer than
        queries: query t is of the segment of key t + keys − length. The state belongs to the first segment of its row
        on the way in, and to the last on the way out.
    write : callable
        ``write(state, k, v, features, mask, check_finite)``: the state with keys added.
    read : callable
        ``read(state, q, features, full, check_finite, dtype)``: a pass over the keys of a state.
    blocks : callable
        ``blocks(rows, far, plan, state, dtype)``: a whole pass over blocks, as `rfkernels.grouping.schedule` has it.
        The arrays of `rows` were checked and are of any dtype; the state is a BlockState or None.
    steps : Steps
        What groups and heavy keys are found with.
    check_finite : callable
        ``check_finite(q=q, k=k, v=v)``: refuses NaN and infinity, as `check_finite_arrays` does.
    spread : callable
        ``spread(xp, outputs, share, ratio)``: as `rfkernels.partials.spread`.
    few_rows : callable
        ``few_rows(xp, q, k, v, allowed, kernel)``: as `rfkernels.exact.exact_block`.
    exact : callable
        ``exact(q, k, v, options, scale, mask, segments, check_finite, dtype)``: as `exact`.
    transform : callable
        ``transform(x, features, side, check_finite)``: as `transform`.
    given : callable
        ``given(phi_q, phi_k, v, causal, mask, check_finite, dtype)``: as `given`.
    """

    name: str
    attend: Callable[[Any, Any, Any, Features, Options, Any, Any, State, bool, Any], Pass]
    write: Callable[[State, Any, Any, Features, Any, bool], State]
    read: Callable[[State, Any, Features, bool, bool, Any], Pass]
    blocks: Callable[[Rows, Far, Plan, BlockState | None, Any], Pass]
    steps: Steps = STEPS
    check_finite: Callable[..., None] = check_finite_arrays
    spread: Callable[..., tuple[Any, Any]] = partials.spread
    few_rows: Callable[..., partials.Partial] = exact_block
    exact: Callable[[Any, Any, Any, Options, Any, Any, Any, bool, Any], Pass] = exact
    transform: Callable[[Any, Features, SideName, bool], Any] = transform
    given: Callable[[Any, Any, Any, bool, Any, bool, Any], Any] = given


_MODULES = {"jax": "rfkernels.backends.jax", "numba": "rfkernels.backends.numba", "numpy": "rfkernels.backends.numpy"}


@cache
def load(name: str) -> Backend:
    """Import the backend of that name."""
    if name not in _MODULES:
        raise ValueError(f"unknown backend {name!r}; known are: {', '.join(sorted(_MODULES))}")
    try:
        with loading:
            backend: Backend = import_module(_MODULES[name]).BACKEND
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"backend {name!r} needs the package {error.name!r}: pip install 'rfkernels[{name}]'"
        ) from error
    register_pytree()  # what imported JAX may have been this
    return backend


def choose(name: str | None, *arrays: Any, **others: Any) -> Backend:
    """Return the named backend, or the one for these arrays: jax for jax.Array, numba for numpy.ndarray.

    The `others` follow the arrays' kind: a backend for NumPy arrays refuses them, by name, if they are JAX's; of
    features it refuses those alone that JAX traces.
    """
    any_jax = any(is_jax(x) for x in arrays)
    if name is None:
        return _fitting(load("jax" if any_jax else "numba"), others)
    if not isinstance(name, str):
        raise TypeError(f"backend must be a name or None, got {type(name).__name__}")
    backend = load(name)
    if any_jax and name != "jax":
        raise TypeError(f"backend {name!r} takes numpy arrays, got a jax.Array; convert with numpy.asarray")
    return _fitting(backend, others)


def _fitting(backend: Backend, others: dict[str, Any]) -> Backend:
    if backend.name == "jax":
        return backend
    for name, given in others.items():
        features = isinstance(given, Features)
        arrays = (given.projection,) if features else given if isinstance(given, tuple) else (given,)
        for x in filter(is_jax, arrays):
            check_untraced(**{name: x})
            if not features:
                raise TypeError(
                    f"{name} holds a jax.Array, but the others are NumPy arrays; convert it with numpy.asarray"
                )
    return backend
