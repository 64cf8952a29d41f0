"""Find out whether the rows of features can be multiplied by without multiplying."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from rfkernels._arrays import is_frozen
from rfkernels.features import Features
from rfkernels.samplers._structured import Factors, factors

_WIDEST = 32
"""Steps of the widest rows: registers are transformed in straight-line code."""

_known: WeakKeyDictionary[Features, Factors | None] = WeakKeyDictionary()


def frozen(features: Features) -> bool:
    """Whether nobody can change the arrays of features, so that what is derived from them can be kept."""
    sides = (x for side in (features.query, features.key) for x in side if x is not None)
    arrays: tuple[Any, ...] = (features.projection, features.log_weight, features.scale, *sides)
    return all(map(is_frozen, arrays))


def hadamard(features: Features, step: int) -> Factors | None:
    """Return the factors of frozen features whose rows are Hadamard rows of 1 to 32 times `step` coordinates.

    None for all others, and for features that multiply inputs by a matrix first.
    """
    if features.dim % step or features.dim > _WIDEST * step or not frozen(features):
        return None
    if features.query.matrix is not None or features.key.matrix is not None:
        return None
    if features not in _known:
        _known[features] = factors(features.projection)
    return _known[features]
