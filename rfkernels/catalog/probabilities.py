"""Probabilities of items that a query names."""

from __future__ import annotations

from typing import Any

import numpy as np


def of_items(rows: Any, queries: Any, items: Any, log_normalizer: Any) -> Any:
    """Return exp(q·y) / Z for items by row: (items,), the same for all queries, or (queries, items)."""
    items = np.broadcast_to(items, (len(queries), items.shape[-1]))
    each = zip(items, queries.astype(np.float64), log_normalizer, strict=True)
    return np.reshape([np.exp(rows[own].astype(np.float64) @ query - z) for own, query, z in each], items.shape)
