"""Rows of independent coordinates that are not normal."""

from __future__ import annotations

from typing import Any

from rfkernels._arrays import namespace
from rfkernels.samplers._record import Normal


def cauchy(normal: Normal, count: int, dim: int) -> Any:
    """Tangents of the angles of pairs of normals: their ratios, but finite where the second is zero."""
    first, second = normal((2, count, dim))
    xp = namespace(first)
    return xp.tan(xp.arctan2(first, second))


def laplace(normal: Normal, count: int, dim: int) -> Any:
    """Determinants of 2 × 2 matrices of normals, whose characteristic function is 1 / (1 + t²)."""
    a, b, c, d = normal((4, count, dim))
    return a * d - b * c
