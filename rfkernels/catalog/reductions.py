"""What is returned of expectations, and probabilities of items that a query names."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Expectation(NamedTuple):
    """Softmax-weighted means of values.

    Parameters
    ----------
    mean : array, shape (queries, width)
        Σ p_i v_i, with p the softmax: the ratio of two unbiased estimates, whose bias falls as one over the budget.
    standard_error : array, shape (queries, width)
        Its standard error to first order, as differences of draws show it, and for what few draws do not show, what is
        predicted of the sum of weights, as if values varied along; 0 where every item was taken, and for a column in
        which those taken do not differ. On devices of JAX without that prediction: too small where a tail was missed.
    """

    mean: Any
    standard_error: Any


def probabilities(rows: Any, queries: Any, items: Any, log_normalizer: Any) -> Any:
    """Return exp(q·y) / Z for items by row: (items,), the same for all queries, or (queries, items)."""
    items = np.broadcast_to(items, (len(queries), items.shape[-1]))
    each = zip(items, queries.astype(np.float64), log_normalizer, strict=True)
    return np.reshape([np.exp(rows[own].astype(np.float64) @ query - z) for own, query, z in each], items.shape)
