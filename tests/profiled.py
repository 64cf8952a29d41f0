"""Kernels that are functions of a distance, and their exact sums."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import logsumexp

import rfkernels as rfk
from rfkernels.kernels import Kernel


def epanechnikov(xp: Any, squared: Any) -> Any:
    inside = squared < 1
    return xp.where(inside, xp.log(xp.where(inside, 1 - squared, 1)), -float("inf"))


def box(xp: Any, squared: Any) -> Any:
    return xp.where(squared < 1, 0 * squared, -float("inf"))


def ring(xp: Any, squared: Any) -> Any:
    """Nothing near, a peak at some distance, nothing beyond."""
    return xp.where((squared > 0.25) & (squared < 2), -squared, -float("inf"))


def rising(xp: Any, squared: Any) -> Any:
    return xp.sqrt(squared) / 4


KERNELS = {
    "laplacian": rfk.lookup("laplacian").kernel,
    "matern52": rfk.lookup("matern52").kernel,
    "cauchy": rfk.lookup("cauchy").kernel,
    "epanechnikov": Kernel.of_distance("epanechnikov", epanechnikov),
    "box": Kernel.of_distance("box", box),
    "ring": Kernel.of_distance("ring", ring),
    "rising": Kernel.of_distance("rising", rising),
}


def squares(items: Any, queries: Any) -> Any:
    return np.stack([((items.astype(np.float64) - q) ** 2).sum(1) for q in queries.astype(np.float64)])


def exact(items: Any, queries: Any, kernel: Kernel, scale: float) -> Any:
    assert kernel.profile is not None
    with np.errstate(divide="ignore"):
        return logsumexp(kernel.profile(np, scale * squares(items, queries)), axis=1)


def whole(items: Any, queries: Any, kernel: Kernel, scale: float) -> Any:
    """Return logs of exact sums of any kernel."""
    if kernel.profile is not None:
        return exact(items, queries, kernel, scale)
    x, y = queries.astype(np.float64), items.astype(np.float64)
    return logsumexp(kernel.log(np, scale * (x @ y.T), scale * (x**2).sum(1)[:, None], scale * (y**2).sum(1)), axis=1)
