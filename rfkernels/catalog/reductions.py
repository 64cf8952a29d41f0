"""What is made of the items that a query takes: expectations, and probabilities of items that it names."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels.catalog.plan import RUN
from rfkernels.catalog.records import Evaluated


class Expectation(NamedTuple):
    """Softmax-weighted means of values.

    Parameters
    ----------
    mean : array, shape (queries, width)
        Σ p_i v_i, with p the softmax: the ratio of two unbiased estimates, whose bias falls as one over the budget.
    standard_error : array, shape (queries, width)
        Its standard error to first order, as the items taken show it: too small where they miss a tail, which the
        standard error of the log-normalizer tells; 0 where every item was taken.
    """

    mean: Any
    standard_error: Any


def expectation(taken: Evaluated, values: Any) -> Expectation:
    """Return softmax-weighted means of values (…, width), which the rows of `taken` are places in."""
    found = [_mean(*one, values) for one in zip(*taken, strict=True)]
    mean, error = zip(*found, strict=True) if found else ((), ())
    shape = len(found), values.shape[1]
    return Expectation(np.reshape(mean, shape), np.reshape(error, shape))


def _mean(rows: Any, logits: Any, log_weights: Any, values: Any) -> tuple[Any, Any]:
    used, weight = _weights(rows, logits, log_weights)
    rows, drawn = rows[used], log_weights[used] != 0
    mean = weight @ values[rows]
    parts = weight[drawn, None] * (values[rows[drawn]] - mean)
    pairs = len(parts) // (2 * RUN)
    parts = parts[: pairs * 2 * RUN].reshape(pairs, 2, RUN, values.shape[1]).sum(2)
    return mean, np.sqrt(((parts[:, 0] - parts[:, 1]) ** 2).sum(0))


def _weights(rows: Any, logits: Any, log_weights: Any) -> tuple[Any, Any]:
    used = rows >= 0
    log = logits[used] + log_weights[used]
    weight = np.exp(log - log.max())
    return used, weight / weight.sum()


def relative_error(taken: Evaluated, values: Any, found: Expectation) -> Any:
    """Return the largest standard error of a column in standard deviations of its values under the softmax.

    (queries,); a column of values that do not vary, but for rounding, has none.
    """
    out, rounding = np.zeros(len(found.mean)), 4096 * np.finfo(np.float64).eps * np.abs(values).max(0, initial=0)
    for i, (rows, *logs) in enumerate(zip(*taken, strict=True)):
        used, weight = _weights(rows, *logs)
        deviation = np.sqrt(weight @ (values[rows[used]] - found.mean[i]) ** 2)
        ratio = found.standard_error[i] / np.where(deviation > rounding, deviation, np.inf)
        out[i] = ratio.max(initial=0)
    return out


def probabilities(rows: Any, queries: Any, items: Any, log_normalizer: Any) -> Any:
    """Return exp(q·y) / Z for items by row: (items,), the same for all queries, or (queries, items)."""
    items = np.broadcast_to(items, (len(queries), items.shape[-1]))
    each = zip(items, queries.astype(np.float64), log_normalizer, strict=True)
    return np.reshape([np.exp(rows[own].astype(np.float64) @ query - z) for own, query, z in each], items.shape)
