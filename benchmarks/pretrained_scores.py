"""How near a model with replaced attention is to the original."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

TIE = 1e-3
"""Neighbours whose cosines differ by less are as near as each other."""


class Scores(NamedTuple):
    """Cosines of document embeddings, nearest neighbours kept, and the error of token states."""

    mean: float
    least: float
    nearest: float  # share of documents whose nearest neighbour is the same
    tied: float  # share of those whose nearest neighbour is as near as that one in the original, but for TIE in cosine
    five: float  # share of the five nearest that are among the five nearest still
    states: float  # median over documents of the relative error of the last hidden states

    def __str__(self) -> str:
        shares = "  ".join(f"{share:6.1%}" for share in (self.nearest, self.tied, self.five))
        return f"{self.mean:.4f}  {self.least:.4f}  {shares}  {self.states:6.3f}"


def compare(states: Array, original: Array) -> Scores:
    """Compare last hidden states, (documents, length, width), with those of the original."""
    ours, theirs = embeddings(states), embeddings(original)
    cosine = np.sum(ours * theirs, -1)
    few = min(5, len(states) - 1)
    mine, true = neighbours(ours, few), neighbours(theirs, few)
    kept = [len(set(a) & set(b)) / few for a, b in zip(mine, true, strict=True)]
    error = np.linalg.norm(states - original, axis=(1, 2)) / np.linalg.norm(original, axis=(1, 2))
    nearest = float(np.mean(mine[:, 0] == true[:, 0]))
    lost = np.sum(theirs * (theirs[true[:, 0]] - theirs[mine[:, 0]]), -1)
    tied, five = float(np.mean(lost < TIE)), float(np.mean(kept))
    return Scores(float(cosine.mean()), float(cosine.min()), nearest, tied, five, float(np.median(error)))


def embeddings(states: Array) -> Array:
    """Average hidden states over tokens and normalise, as the model's card says."""
    mean = states.mean(-2)
    return np.asarray(mean / np.linalg.norm(mean, axis=-1, keepdims=True))


def neighbours(embedded: Array, few: int) -> Array:
    """Return the numbers of the `few` other documents of the largest cosine, nearest first."""
    cosine = embedded @ embedded.T
    np.fill_diagonal(cosine, -np.inf)
    return np.argsort(-cosine, axis=1, kind="stable")[:, :few]
