"""Measure learned features against fitted ones: on the heads in the package, and on a model's heads over other texts.

Run with ``python benchmarks/calibration.py [--steps N] [--columns 64 256] [--window W]``. With ``--model DIR`` (a BERT
such as all-MiniLM-L6-v2, read by transformers) and ``--texts FILE ...`` the same heads are captured from the first 512
tokens of each text; texts of which a part is held out are drawn at random.
"""

from __future__ import annotations

import argparse
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from rfkernels.calibration import calibrate

LENGTH = 512


def shipped() -> dict[str, Any]:
    with files("rfkernels").joinpath("data", "minilm_heads.npz").open("rb") as file, np.load(file) as archive:
        return dict(archive)


def captured(directory: str, paths: list[str], layers: Any, heads: Any) -> list[tuple[Any, Any, Any]]:
    """Return queries, keys and values of the given heads for each text of at least 512 tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModel.from_pretrained(directory, local_files_only=True).eval()
    width = model.config.hidden_size // model.config.num_attention_heads
    found = []
    for path in paths:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        tokens = tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="pt")
        if tokens["input_ids"].shape[1] < LENGTH:
            print(f"left out, as it is shorter than {LENGTH} tokens: {path}")
            continue
        outputs: dict[tuple[str, int], Any] = {}

        def keep(name: str, layer: int, outputs: dict[tuple[str, int], Any] = outputs) -> Any:
            return lambda module, inputs, output: outputs.__setitem__((name, layer), output)

        hooks = [
            getattr(block.attention.self, name).register_forward_hook(keep(name, i))
            for i, block in enumerate(model.encoder.layer)
            for name in ("query", "key", "value")
        ]
        with torch.no_grad():
            model(**tokens)
        for hook in hooks:
            hook.remove()
        q, k, v = (
            np.stack([outputs[name, i][0].reshape(LENGTH, -1, width)[:, j] for i, j in zip(layers, heads, strict=True)])
            for name in ("query", "key", "value")
        )
        found.append((q, k, v))
    return found


def measure(title: str, given: tuple[Any, Any, Any], columns: int, steps: int, window: int | None) -> None:
    started = time.perf_counter()
    found = calibrate(*given, count=columns, steps=steps, window=window, progress=False, rng=0)
    print(
        f"\n{title}, {columns} columns, window {window}: {time.perf_counter() - started:.0f} s in all\n{found}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--columns", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--window", type=int)
    parser.add_argument("--model")
    parser.add_argument("--texts", nargs="+", default=[])
    options = parser.parse_args()
    data = shipped()
    one = (*(data[name].astype(np.float32) for name in "qkv"),)
    several = captured(options.model, options.texts, data["layer"], data["head"]) if options.model else []
    for columns in options.columns:
        if several:
            q, k, v = (list(x) for x in zip(*several, strict=True))
            measure(f"{len(several)} texts", (q, k, v), columns, options.steps, options.window)
        else:
            measure("one text", one, columns, options.steps, options.window)


if __name__ == "__main__":
    main()
