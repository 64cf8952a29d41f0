"""What takes the place of exact attention: functions of q, k and v of shape (heads, length, dim), and of the layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rfkernels as rfk

FEATURES, GROUPS, HEAVY, WINDOW, NARROW = 256, 128, 16, 64, 16
ROWS = (
    64  # a sample of the queries and keys, to which "tilted" is fitted: it multiplies all of one with all of the other
)

Array = np.ndarray[Any, Any]
Attend = Callable[[Array, Array, Array, int], Array]
Kept = list[tuple[Array, Array, Array]]  # q, k and v of each layer, (documents, heads, length, dim)


def compiled(function: Callable[..., Any], fitted: Callable[[int], Any] | None = None) -> Attend:
    """Compile a function of q, k, v and, if there is any, of what was fitted to the layer before."""
    run = jax.jit(function)

    def attend(q: Array, k: Array, v: Array, layer: int) -> Array:
        given = [jnp.asarray(x) for x in (q, k, v)]
        return np.array(run(*given) if fitted is None else run(*given, fitted(layer)))

    return attend


def average(q: Any, k: Any, v: Any) -> Any:
    return jnp.broadcast_to(v.mean(-2, keepdims=True), (*q.shape[:-1], v.shape[-1]))


def drawn(q: Any, k: Any) -> rfk.Features:
    return rfk.draw("positive", q.shape[-1], FEATURES, batch=k.shape[:-2], rng=0)


def affine(q: Any, k: Any) -> rfk.Features:
    return rfk.fit(q, k, FEATURES, rng=0)


def tilted(q: Any, k: Any) -> rfk.Features:
    step = max(1, k.shape[-2] // ROWS)
    return rfk.fit(q[..., ::step, :], k[..., ::step, :], FEATURES, method="tilted", rng=0)


def estimated(make: Callable[[Any, Any], rfk.Features], **options: Any) -> Attend:
    return compiled(lambda q, k, v: rfk.attention(q, k, v, make(q, k), **options))


def grouped(count: int, **options: Any) -> Attend:
    return lambda q, k, v, layer: np.asarray(rfk.attention(q, k, v, groups=count, **options))


def calibrated(kept: Kept) -> dict[str, Attend]:
    """Features and groups that were fitted once, for each layer and head, to what was kept of some documents."""

    @cache
    def features(layer: int) -> rfk.Features:
        q, k, _ = kept[layer]
        return rfk.fit(pooled(q), pooled(k), FEATURES, rng=0)

    @cache
    def groups(layer: int) -> rfk.Groups:
        q, k, v = (pooled(x) for x in kept[layer])
        return rfk.fit_groups(q, k, GROUPS, v=v)

    return {
        f"calibrated affine {FEATURES}, window {WINDOW}": compiled(
            lambda q, k, v, fitted: rfk.attention(q, k, v, fitted, window=WINDOW), features
        ),
        f"calibrated {GROUPS} groups, window {WINDOW}": compiled(
            lambda q, k, v, fitted: rfk.attention(q, k, v, groups=fitted, window=WINDOW), groups
        ),
    }


def pooled(x: Array) -> Array:
    """Put documents one after another: (documents, heads, length, dim) to (heads, documents · length, dim)."""
    return np.concatenate(list(x), axis=-2)


def estimators(kept: Kept) -> dict[str, Attend]:
    """Every estimator by its name."""
    near = f"window {WINDOW}"
    return {
        "exact": compiled(rfk.exact_attention),
        "plain average of v": compiled(average),
        f"{near} alone": compiled(lambda q, k, v: rfk.exact_attention(q, k, v, window=WINDOW)),
        f"drawn {FEATURES}": estimated(drawn),
        f"drawn {FEATURES}, {near}": estimated(drawn, window=WINDOW),
        f"affine {FEATURES}": estimated(affine),
        f"affine {FEATURES}, {near}": estimated(affine, window=WINDOW),
        f"tilted {FEATURES}, {near}": estimated(tilted, window=WINDOW),
        f"tilted {FEATURES}, {near}, {HEAVY} heavy": estimated(tilted, window=WINDOW, heavy=HEAVY),
        f"{GROUPS} groups": grouped(GROUPS),
        f"{GROUPS} groups, window {NARROW}": grouped(GROUPS, window=NARROW),
        f"{GROUPS} groups, {near}": grouped(GROUPS, window=WINDOW),
        f"{GROUPS} groups, window {2 * WINDOW}": grouped(GROUPS, window=2 * WINDOW),
        f"{2 * GROUPS} groups, {near}": grouped(2 * GROUPS, window=WINDOW),
        f"{2 * GROUPS} groups, window {2 * WINDOW}": grouped(2 * GROUPS, window=2 * WINDOW),
        f"{3 * GROUPS} groups, {near}": grouped(3 * GROUPS, window=WINDOW),
        f"{3 * GROUPS} groups, window {2 * WINDOW}": grouped(3 * GROUPS, window=2 * WINDOW),
        **calibrated(kept),
    }
