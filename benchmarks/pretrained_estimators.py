"""What takes the place of exact attention: functions of q, k and v of shape (heads, length, dim), and of the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import rfkernels as rfk

FEATURES, WINDOW = 256, 64
ROWS = (
    64  # a sample of the queries and keys, to which "tilted" is fitted: it multiplies all of one with all of the other
)

Array = np.ndarray[Any, Any]
Attend = Callable[[Array, Array, Array, int], Array]
Kept = list[tuple[Array, Array, Array]]  # q, k and v of each layer, (documents, heads, length, dim)


def exact(window: int | None = None) -> Attend:
    return lambda q, k, v, layer: np.asarray(rfk.exact_attention(q, k, v, window=window))


def average(q: Array, k: Array, v: Array, layer: int) -> Array:
    return np.broadcast_to(v.mean(-2, keepdims=True), (*q.shape[:-1], v.shape[-1]))


def estimated(make: Callable[[Array, Array, int], rfk.Features], window: int | None = None) -> Attend:
    return lambda q, k, v, layer: np.asarray(rfk.attention(q, k, v, make(q, k, layer), window=window))


def drawn(q: Array, k: Array, layer: int) -> rfk.Features:
    return rfk.draw("positive", q.shape[-1], FEATURES, batch=k.shape[:-2], rng=layer)


def affine(q: Array, k: Array, layer: int) -> rfk.Features:
    return rfk.fit(q, k, FEATURES, rng=layer)


def tilted(q: Array, k: Array, layer: int) -> rfk.Features:
    step = max(1, k.shape[-2] // ROWS)
    return rfk.fit(q[..., ::step, :], k[..., ::step, :], FEATURES, method="tilted", rng=layer)


def calibrated(kept: Kept) -> Callable[[Array, Array, int], rfk.Features]:
    """Fit features once, for each layer and head, to what was kept of some documents."""
    fitted = [rfk.fit(pooled(q), pooled(k), FEATURES, rng=layer) for layer, (q, k, _) in enumerate(kept)]
    return lambda q, k, layer: fitted[layer]


def pooled(x: Array) -> Array:
    """Put documents one after another: (documents, heads, length, dim) to (heads, documents · length, dim)."""
    return np.concatenate(list(x), axis=-2)


def estimators(kept: Kept) -> dict[str, Attend]:
    """Every estimator by its name."""
    near = f", window {WINDOW}"
    table = {"exact": exact(), "plain average of v": average, f"exact within{near} only": exact(WINDOW)}
    makers = {"drawn": drawn, "affine": affine, "tilted": tilted, "calibrated affine": calibrated(kept)}
    for name, make in makers.items():
        table[f"{name} {FEATURES}"] = estimated(make)
        table[f"{name} {FEATURES}{near}"] = estimated(make, WINDOW)
    return table
