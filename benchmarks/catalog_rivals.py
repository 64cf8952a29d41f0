"""What a catalog is compared with: each estimates log Z of all queries from no more dot products a query."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from sklearn.cluster import KMeans

import rfkernels as rfk
from benchmarks.glove import Array, Setting

FEATURES = 2048
CELLS = 632  # the square root of the number of items
Rival = Callable[[Setting, int], Array]


def _log_mean(logits: Array, log_weight: Array | float) -> Array:
    """Return log Σ exp(logits + log_weight), row by row."""
    x = logits.astype(np.float64) + log_weight
    largest = x.max(-1, keepdims=True)
    return np.asarray(largest[..., 0] + np.log(np.exp(x - largest).sum(-1)))


def uniform(setting: Setting, budget: int) -> Array:
    """Items drawn at random, for each query anew, each counting for n/budget of them."""
    rng, items = np.random.default_rng(1), setting.items
    found = [
        _log_mean(items[rng.integers(len(items), size=budget)] @ q, np.log(len(items) / budget))
        for q in setting.queries
    ]
    return np.array(found)


def cells_of(items: Array, cells: int) -> tuple[Array, Array]:
    """Return (centres, cell of each item) by scikit-learn alone, as sparingly as a catalog: a sample of 60 a cell."""
    sample = np.random.default_rng(0).choice(len(items), min(len(items), 60 * cells), replace=False)
    means = KMeans(cells, init="random", n_init=1, max_iter=10, tol=0, random_state=0).fit(items[sample])
    return means.cluster_centers_, means.predict(items)


class Probes:
    """Cells of k-means; the cells that hold the most are summed exactly, half of the dots, and the others are drawn."""

    def __init__(self, items: Array) -> None:
        means, cell = cells_of(items, CELLS)
        self.order = np.argsort(cell, kind="stable")
        self.count = np.bincount(cell, minlength=CELLS)
        self.start = np.r_[0, np.cumsum(self.count)]
        self.items, self.centres = items[self.order], means
        apart = self.items - self.centres[cell[self.order]]
        self.shape = apart.T @ apart / len(items)
        spread = np.bincount(cell[self.order], np.square(apart).sum(1), minlength=CELLS) / np.maximum(self.count, 1)
        self.spread = spread / np.trace(self.shape)

    def estimate(self, q: Array, budget: int, rng: np.random.Generator) -> float:
        guess = self.centres @ q + (q @ self.shape @ q) * self.spread / 2
        best = np.argsort(-guess)
        probed = best[: int(np.searchsorted(np.cumsum(self.count[best]), (budget - CELLS) // 2))]
        inside = [self.items[self.start[i] : self.start[i + 1]] @ q for i in probed]
        taken = sum(map(len, inside))
        left = np.ones(CELLS, bool)
        left[probed] = False
        count = np.where(left, self.count, 0)
        ends = np.cumsum(count)
        place = rng.integers(ends[-1], size=budget - CELLS - taken)
        cell = np.searchsorted(ends, place, side="right")
        outside = self.items[self.start[cell] + place - (ends[cell] - count[cell])] @ q
        parts = [_log_mean(outside, np.log(ends[-1] / len(outside)))]
        return float(np.logaddexp.reduce([*parts, *([_log_mean(np.concatenate(inside), 0.0)] if inside else [])]))


def probes(setting: Setting, budget: int) -> Array:
    rng, cells = np.random.default_rng(2), Probes(setting.items)
    return np.array([cells.estimate(q, budget, rng) for q in setting.queries])


def _features(setting: Setting, budget: int, fitted: bool) -> Array:
    """Positive features: the sum over items is taken once, and a query takes as many dots as there are features."""
    del budget
    dim, past = setting.items.shape[1], setting.held.past(setting.tau)
    if fitted:
        features = rfk.fit(past, setting.items[:20_000], FEATURES, scale=1.0, rng=0)
    else:
        features = rfk.draw("positive", dim, FEATURES, sampler="orthogonal", scale=1.0, rng=0)
    return np.asarray(rfk.log_normalizer(setting.queries, setting.items, features), np.float64)


RIVALS: dict[str, Rival] = {
    "uniform sampling": uniform,
    "probed cells and uniform sampling": probes,
    f"FAVOR+ {FEATURES}": partial(_features, fitted=False),
    f"fit {FEATURES}": partial(_features, fitted=True),
}
