"""Time of the whole of all-MiniLM-L6-v2 against the length of a document, with its own attention and without."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

import rfkernels as rfk
from benchmarks.pretrained_estimators import FEATURES, GROUPS, WINDOW, Array, Attend
from benchmarks.pretrained_model import swapped
from rfkernels.benchmark.timing import Sampler, Timings, interleave

LENGTHS = (128, 256, 512, 1024, 2048, 4096)
ORIGINAL = "original"


def table(dim: int) -> dict[str, Attend | None]:
    """What is timed: the model's own attention, drawn features, and groups of each input, on NumPy arrays."""
    features = rfk.draw("positive", dim, FEATURES, rng=0)

    def drawn(q: Array, k: Array, v: Array, layer: int) -> Array:
        return np.asarray(rfk.attention(q, k, v, features, window=WINDOW))

    def grouped(q: Array, k: Array, v: Array, layer: int) -> Array:
        return np.asarray(rfk.attention(q, k, v, groups=GROUPS, window=WINDOW))

    near = f"window {WINDOW}"
    return {ORIGINAL: None, f"drawn {FEATURES}, {near}": drawn, f"{GROUPS} groups, {near}": grouped}


def document(texts: Sequence[Sequence[int]], length: int) -> list[int]:
    """Put what is inside documents one after another, over again where there is not enough, between their ends."""
    inner = [token for text in texts for token in text[1:-1]]
    return [texts[0][0], *np.resize(inner, length - 2).tolist(), texts[0][-1]]


def forward(model: Any, tokens: list[int]) -> Callable[[], Any]:
    """Return a pass over one document; positions beyond those that the model was trained with begin anew."""
    given = {"input_ids": torch.tensor([tokens])}
    given["position_ids"] = torch.arange(len(tokens))[None] % model.config.max_position_embeddings
    given["token_type_ids"] = torch.zeros_like(given["input_ids"])

    def call() -> Any:
        with torch.no_grad():
            return model(**given).last_hidden_state[0].numpy()

    return call


def sampler(model: Any, attend: Attend | None, call: Callable[[], Any]) -> Sampler:
    """Return what times one pass with this attention."""

    def sample() -> float:
        with swapped(model, attend):
            start = time.perf_counter()
            call()
            return time.perf_counter() - start

    sample()  # compiles
    return sample


def against_length(
    model: Any,
    texts: Sequence[Sequence[int]],
    attends: Mapping[str, Attend | None],
    lengths: Sequence[int],
    rounds: int,
) -> Iterator[tuple[int, Timings]]:
    """Time one document of each length, the attentions by turns."""
    for length in lengths:
        call = forward(model, document(texts, length))
        samplers = {name: sampler(model, attend, call) for name, attend in attends.items()}
        yield length, Timings(interleave(samplers, rounds))


def report(found: Iterable[tuple[int, Timings]], attends: Mapping[str, Attend | None]) -> None:
    """Print medians in ms, and in brackets the median of quotients by the original."""
    print("  length" + "".join(f"{name:>28s}" for name in attends))
    for length, timings in found:
        cells = (f"{1e3 * timings.median(name):.1f} ({timings.ratio(name, ORIGINAL):.2f})" for name in attends)
        print(f"{length:8,d}" + "".join(f"{cell:>28s}" for cell in cells), flush=True)
