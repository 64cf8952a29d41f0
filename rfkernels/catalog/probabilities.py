"""Probabilities of items that a query names."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels.catalog.arguments import takes_all
from rfkernels.catalog.compiled import compiled
from rfkernels.catalog.records import Table

COARSE = 2.0**-10
"""What rounding of log Z is seen in probabilities, which logits are then rounded alike for."""


def of_items(table: Table, queries: Any, items: Any, log_normalizer: Any, budget: int) -> Any:
    """Return exp(q·y) / Z for items by row: (items,), the same for all queries, or (queries, items).

    Products are taken in float64, but where log Z is so large that its own, of the dtype of rows, are off by too much:
    there they are those that Z is the sum of at such a budget, 0 for one that is not known.
    """
    items, code = np.broadcast_to(items, (len(queries), items.shape[-1])), compiled("catalog_exact")
    many, out = takes_all(table, budget) and len(queries) >= code.FEW, np.empty(items.shape)
    coarse = np.abs(log_normalizer) * np.finfo(table.rows.dtype).eps > COARSE
    for i, (own, query) in enumerate(zip(items, queries, strict=True)):
        if coarse[i] and len(own):
            logits = code.logits(table, query, own, many)
        else:
            logits = table.rows[own].astype(np.float64) @ query.astype(np.float64)
        out[i] = np.exp(logits - log_normalizer[i])
    return out
