"""How far an output is from exact attention, on a sample of query rows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

import rfkernels as rfk

_ROWS, _RUN = 256, 16


class Comparison(NamedTuple):
    """Relative errors |estimate − exact| / |exact| over `rows` query rows: of the output, and of the average of v."""

    rows: int
    error: float
    average_error: float


def compare_rows(
    out: Any,
    *,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    scale: float | None = None,
    causal: bool = False,
    seed: int = 0,
) -> Comparison:
    """Compare an output with exact softmax attention on at most 256 query rows, drawn as runs of 16 neighbours."""
    length, keys = out.shape[-2], k.shape[-2]
    batch = out.shape[:-2]
    q, k, v, out = (np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (q, k, v, out))
    mask = None if mask is None else np.broadcast_to(mask, (*batch, keys))
    runs = -(-length // _RUN)
    available = math.prod(batch) * runs
    chosen = np.random.default_rng(seed).choice(available, min(available, _ROWS // _RUN), replace=False)
    rows, squares = 0, np.zeros(3)
    for index in chosen:
        head = np.unravel_index(index // runs, batch) if batch else ()
        start = int(index % runs) * _RUN
        stop = min(start + _RUN, length)
        seen = max(0, stop + keys - length) if causal else keys  # the last query of the run sees the last of these keys
        given = q[head][start:stop], k[head][:seen], v[head][:seen]
        chosen_mask = None if mask is None else mask[head][:seen]
        squares += _squares(out[head][start:stop], *given, scale=scale, causal=causal, mask=chosen_mask)
        rows += stop - start
    error, average, exact = np.sqrt(squares)
    return Comparison(rows, _ratio(error, exact), _ratio(average, exact))


def _squares(out: Any, q: Any, k: Any, v: Any, **how: Any) -> Any:
    exact = rfk.exact_attention(q, k, v, **how, check_finite=False).astype(np.float64)
    average = rfk.exact_attention(np.zeros_like(q), k, v, **how, check_finite=False)  # equal weights
    return np.array([np.sum(np.square(x)) for x in (out - exact, average - exact, exact)])


def _ratio(error: float, exact: float) -> float:
    return float(error / exact) if exact > 0 else 0.0 if error == 0 else math.inf
