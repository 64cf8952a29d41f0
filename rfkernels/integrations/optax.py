"""Gradient descent on features with optax: what `rfkernels.calibration` runs, each head by itself."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import optax
    from jaxlib.version import __version__ as jaxlib_version
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"rfkernels.calibrate needs the package {error.name!r}: pip install 'rfkernels[calibrate]'"
    ) from error

import numpy as np

from rfkernels import core, partials
from rfkernels._arrays import matmul, stopped
from rfkernels.calibration.data import Blocks, Sequences
from rfkernels.features import Features, Side
from rfkernels.maps import FeatureMap
from rfkernels.partials import Partial

_LARGEST_GRADIENT = 1.0


def _options() -> dict[str, Any] | None:
    """On a CPU, keep XLA from fusing products with what follows, which jaxlib 0.10.2 gets wrong (jax-ml/jax #39103)."""
    version = tuple(int(x) for x in re.findall(r"\d+", jaxlib_version)[:3])
    concerned = jax.default_backend() == "cpu" and (0, 10, 2) <= version < (0, 12)
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if concerned else None


_OPTIONS = _options()


class Setting(NamedTuple):
    """What a compiled step depends on beyond its arrays."""

    map: FeatureMap
    causal: bool
    window: int | None


class Learned(NamedTuple):
    """Parameters after the step of the least validation error of each head, and the errors on the way.

    Parameters
    ----------
    parameters : dict of array
        With heads in the first axis.
    best : numpy.ndarray of int, shape (heads,)
    stopped : numpy.ndarray of str, shape (heads,)
    step, seconds : numpy.ndarray, shape (checks,)
    train, validation : numpy.ndarray, shape (checks, heads)
    """

    parameters: dict[str, Any]
    best: Any
    stopped: Any
    step: Any
    seconds: Any
    train: Any
    validation: Any


def bound(setting: Setting, parameters: dict[str, Any], fixed: dict[str, Any]) -> Features:
    """Return features of these parameters."""
    query, key = (
        Side(parameters[f"{side}_matrix"], fixed[f"{side}_centre"], parameters[f"{side}_linear"])
        for side in ("query", "key")
    )
    return Features(setting.map, parameters["projection"], parameters["log_weight"], query, key, fixed["scale"])


def _squares(setting: Setting, features: Features, data: Sequences, block: Blocks) -> tuple[Any, Any]:
    """Sum |o − o*|² and |o*|² over a block of queries of one sequence and head, o being estimated and o* exact.

    Without values o is the row of normalised weights, as if values were the identity.
    """
    q, positions = data.q[:, block.position], block.position[:, None] + (data.keys - data.length) * setting.causal
    key = jnp.arange(data.k.shape[-2])
    real = key < data.keys
    seen = jnp.broadcast_to(real, (positions.shape[0], key.shape[0]))
    if setting.causal:
        seen = seen & (key <= positions)
    logits = features.scale * matmul(jnp, q, data.k.T)
    if setting.window is None:
        estimated = _estimated(features, q, data, real, seen)
    else:
        near = seen & (jnp.abs(positions - key) < setting.window)
        far = _estimated(features, q, data, real, seen & ~near)
        estimated = partials.join(jnp, far, _exact(logits, data.v, near))
    exact = partials.normalize(jnp, _exact(logits, data.v, seen))
    apart = partials.normalize(jnp, estimated) - exact
    error, size = (jnp.sum(jnp.where(block.valid, jnp.sum(x * x, -1), 0)) for x in (apart, exact))
    return error, size


def _estimated(features: Features, q: Any, data: Sequences, real: Any, seen: Any) -> Partial:
    u, exponent = core.key_exponents(jnp, data.k, features, real)
    shift = stopped(jnp, jnp.max(exponent, -2))
    phi_q, own = core.query_features(jnp, shift, q, features)
    weight = jnp.where(seen, matmul(jnp, phi_q, core.key_features(jnp, u, exponent, shift, features).T), 0)
    return Partial(_valued(weight, data.v), jnp.sum(weight, -1), own)


def _exact(logits: Any, v: Any, seen: Any) -> Partial:
    logits = jnp.where(seen, logits, -jnp.inf)
    shift = stopped(jnp, jnp.max(logits, -1))
    weight = jnp.exp(logits - jnp.where(shift == -jnp.inf, 0, shift)[..., None])
    return Partial(_valued(weight, v), jnp.sum(weight, -1), shift)


def _valued(weight: Any, v: Any) -> Any:
    return weight if v is None else matmul(jnp, weight, v)


def _relative(error: Any, size: Any) -> Any:
    """Divide; where the exact output is zero, 0 if the estimated one is zero too, and infinite if not."""
    nothing = size == 0
    return jnp.where(nothing, jnp.where(error == 0, 0.0, jnp.inf), error / jnp.where(nothing, 1, size))


def _of_sequence(data: Sequences, block: Blocks) -> Sequences:
    return Sequences(*(None if x is None else x[block.sequence] for x in data))


_HEADS = Sequences(0, 0, 0, None, None)


@partial(jax.jit, static_argnames="setting", compiler_options=_OPTIONS)
def errors(setting: Setting, parameters: Any, fixed: Any, data: Sequences, blocks: Blocks) -> Any:
    """Return ‖o − o*‖ / ‖o*‖ over all blocks, for each head."""

    def squares(parameters: Any, fixed: Any, own: Sequences, block: Blocks) -> tuple[Any, Any]:
        return _squares(setting, bound(setting, parameters, fixed), own, block)

    def add(sums: Any, block: Blocks) -> tuple[Any, None]:
        found = jax.vmap(squares, (0, 0, _HEADS, None))(parameters, fixed, _of_sequence(data, block), block)
        return jax.tree.map(jnp.add, sums, found), None

    none = jnp.zeros(data.k.shape[1], jnp.float32)
    (error, size), _ = jax.lax.scan(add, (none, none), blocks)
    return jnp.sqrt(_relative(error, size))


class _Run(NamedTuple):
    """Parameters, what the optimiser keeps, whether a head still learns, and whether all was finite so far."""

    parameters: Any
    moments: Any
    learning: Any
    finite: Any


_OPTIMIZER = optax.chain(optax.clip_by_global_norm(_LARGEST_GRADIENT), optax.scale_by_adam())


def _step(setting: Setting, run: _Run, fixed: Any, data: Sequences, block: Blocks, rate: Any) -> tuple[_Run, Any]:
    """Take a step of one head, unless it has stopped or something is not finite."""

    def loss(parameters: Any) -> Any:
        error, size = _squares(setting, bound(setting, parameters, fixed), data, block)
        return _relative(error, size)

    value, gradient = jax.value_and_grad(loss)(run.parameters)
    updates, moments = _OPTIMIZER.update(gradient, run.moments)
    parameters = jax.tree.map(lambda x, update: x - rate * update, run.parameters, updates)
    sound = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((value, gradient, parameters))]
    finite = run.finite & (jnp.all(jnp.stack(sound)) | ~run.learning)
    go = finite & run.learning
    new, old = (parameters, moments), (run.parameters, run.moments)
    parameters, moments = jax.tree.map(lambda after, before: jnp.where(go, after, before), new, old)
    return _Run(parameters, moments, go, finite), jnp.sqrt(value)


@partial(jax.jit, static_argnames="setting", compiler_options=_OPTIONS)
def _steps(setting: Setting, run: _Run, fixed: Any, data: Sequences, blocks: Blocks, rates: Any) -> tuple[_Run, Any]:
    """Take a step for each block and rate; return the errors before each of them as well."""

    def one(run: _Run, given: tuple[Blocks, Any]) -> tuple[_Run, Any]:
        block, rate = given
        step = jax.vmap(partial(_step, setting), (0, 0, _HEADS, None, None))
        return step(run, fixed, _of_sequence(data, block), block, rate)

    return jax.lax.scan(one, run, (blocks, rates))


def cosine(learning_rate: float, steps: int) -> Any:
    """Return the rate of each step, which falls to zero as a cosine."""
    return optax.cosine_decay_schedule(learning_rate, steps)(jnp.arange(steps))


def learn(
    setting: Setting,
    parameters: dict[str, Any],
    fixed: dict[str, Any],
    data: Sequences,
    validation: Blocks,
    draw: Callable[[int], Blocks],
    rates: Any,
    patience: int,
    interval: int,
    report: Callable[[int, Any, Any], None],
) -> Learned:
    """Take a step for each rate and check validation errors after every `interval` of them; keep the best of a head."""
    started, heads = time.perf_counter(), data.k.shape[1]
    ones = jnp.ones(heads, bool)
    run = _Run(parameters, jax.vmap(_OPTIMIZER.init)(parameters), ones, ones)
    least = np.asarray(errors(setting, parameters, fixed, data, validation))
    best, kept, stopped = np.zeros(heads, int), parameters, np.full(heads, "steps", dtype="<U10")
    history: list[tuple[int, float, Any, Any]] = [(0, 0.0, np.full(heads, np.nan, np.float32), least)]
    step = 0
    while step < len(rates) and np.any(stopped == "steps"):
        now = rates[step : step + interval]
        run, train = _steps(setting, run, fixed, data, draw(len(now)), now)
        found = np.asarray(errors(setting, run.parameters, fixed, data, validation))
        step += len(now)
        finite = np.asarray(run.finite) & np.isfinite(found)
        better = finite & (found < least) & (stopped == "steps")
        least, best = np.where(better, found, least), np.where(better, step, best)
        kept = jax.tree.map(partial(_chosen, jnp.asarray(better)), run.parameters, kept)
        stopped[(stopped == "steps") & ~finite] = "not finite"
        stopped[(stopped == "steps") & (step - best >= patience)] = "patience"
        run = run._replace(learning=run.learning & jnp.asarray(stopped == "steps"))
        history.append((step, time.perf_counter() - started, np.sqrt(np.mean(np.asarray(train) ** 2, 0)), found))
        report(step, history[-1][2], least)
    steps, seconds, trained, validated = (np.array(x) for x in zip(*history, strict=True))
    return Learned(kept, best, stopped, steps, seconds, trained, validated)


def _chosen(better: Any, new: Any, old: Any) -> Any:
    return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
