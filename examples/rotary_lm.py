"""Swap the attention of a trained causal model, with no further training, and see what it does to perplexity.

    python examples/rotary_lm.py --quick                 # on the sonnets beside this file: shows that it runs, no more
    python examples/rotary_lm.py --text FILE_OR_FOLDER   # half an hour; texts/README.md says where more text is

The model has rotary keys, grouped queries and a first token that all see. It is trained here with exact attention, on
words, with passages that come again: what makes distant keys matter. Then each way to attend is given the same held-out
sequences. What is fitted (features, calibrated centres) is fitted to training text. --weights keeps the trained model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rotary_model
from refusals import refuse_less, refuse_missing, refuse_short, refuse_target
from rich.console import Console
from rich.progress import Progress
from rotary_model import Parameters, Shape
from rotary_swap import Way, captured, fitted, streamed_logits, swapped, way_losses
from rotary_training import batches, read_words, train

HERE = Path(__file__).resolve().parent
SHORTEST = 25
"""Words of a sequence in which passages can come again."""


def ways_of(window: int, groups: int, features: int) -> list[Way]:
    """Return the ways to compare, exact attention first."""
    return [
        Way(),
        Way(window),
        Way(window, 4),
        Way(window, 4, features=features),
        Way(window, 4, groups, calibrated=True),
        Way(window, 4, groups),
    ]


def first_mass(parameters: Parameters, rows: Any, shape: Shape) -> float:
    """Return the largest share of attention that a head of queries gives the first token, on average."""
    shares, exact = [], rotary_model.exact()

    def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        first = jnp.zeros_like(v).at[..., 0, :].set(1)
        shares.append(jnp.mean(exact(i, q, k, first)[..., 0], (0, -1)))
        return exact(i, q, k, v)

    rotary_model.logits(parameters, rows, shape, attend)
    return float(jnp.max(jnp.stack(shares)))


class Ready(NamedTuple):
    """A trained model, held-out sequences by name, and others to fit to."""

    shape: Shape
    parameters: Parameters
    tests: dict[str, np.ndarray]
    others: np.ndarray


def compare(ready: Ready, ways: list[Way]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the label of each way and its perplexity on each set of sequences."""
    samples = captured(ready.parameters, ready.others, ready.shape)
    for way in ways:
        score = jax.jit(partial(way_losses, shape=ready.shape, way=way, given=fitted(way, samples)))
        losses = {name: [score(ready.parameters, row[None]) for row in rows] for name, rows in ready.tests.items()}
        yield way.label, {name: float(np.exp(np.mean(each))) for name, each in losses.items()}


def stream_error(ready: Ready, way: Way) -> float:
    """Largest difference between the logits of one parallel pass and those of a stream, over the largest logit."""
    shape, parameters, rows = ready.shape, ready.parameters, ready.tests["with copies"][:1, :-1]
    given = fitted(way, captured(parameters, ready.others, shape))
    whole = jax.jit(lambda tokens: rotary_model.logits(parameters, tokens, shape, swapped(way, given)))(rows)
    streamed = jax.jit(lambda tokens: streamed_logits(parameters, tokens, shape, way, given))(rows)
    return float(jnp.abs(whole - streamed).max() / jnp.abs(whole).max())


def load_or_train(given: argparse.Namespace, tokens: np.ndarray, shape: Shape, console: Console) -> Parameters:
    """Read the model from --weights if it is there; train it, and keep it there if that was given, if not."""
    like = rotary_model.initial(shape, given.seed)
    if given.weights and given.weights.exists():
        return read_weights(given.weights, like)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("training", total=given.steps)
        sizes = {"steps": given.steps, "batch": given.batch, "length": given.length, "copies": given.copies}
        parameters = train(tokens, shape, **sizes, seed=given.seed, advance=lambda loss: progress.advance(task))
    if given.weights:
        partial_file = given.weights.with_suffix(".part.npz")
        np.savez(partial_file, *(np.asarray(x, np.float16) for x in jax.tree.leaves(parameters)))
        partial_file.replace(given.weights)
    return parameters


def read_weights(file: Path, like: Parameters) -> Parameters:
    """Read a model, which must be of the shapes that are asked for."""
    with np.load(file) as stored:
        leaves = [jnp.asarray(stored[name]) for name in stored.files]
    wanted = jax.tree.leaves(like)
    if [x.shape for x in leaves] != [x.shape for x in wanted]:
        raise SystemExit(
            f"--weights must hold a model of the --vocabulary, --layers and --dim that are asked for, got {file} of "
            "other shapes: name another file, or remove it"
        )
    read: Parameters = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return read


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=HERE / "texts")
    parser.add_argument("--quick", action="store_true", help="a small model and short sequences")
    parser.add_argument("--weights", type=Path, help="file .npz to read the trained model from, or keep it in")
    parser.add_argument("--out", type=Path, help="file .json for the figures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", type=int, default=4, help="held-out sequences")
    numbers = {"steps": 1000, "batch": 1, "length": 1022, "vocabulary": 2048, "layers": 3, "dim": 64}
    for name, value in (numbers | {"window": 128, "groups": 64, "features": 256}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--copies", type=float, default=0.3, help="share of a sequence that is copied from before")
    quick = {"steps": 200, "batch": 4, "length": 254, "vocabulary": 512, "layers": 2, "dim": 16, "tests": 1}
    quick |= {"window": 32, "groups": 32, "features": 64}
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**quick)
    given = parser.parse_args(arguments)
    least = dict.fromkeys(("tests", "steps", "batch", "layers", "dim", "window", "groups", "features"), 1)
    refuse_less(parser, given, least | {"vocabulary": 2, "length": SHORTEST, "seed": 0})
    if not 0 <= given.copies <= 1:
        parser.error(f"--copies must be a share from 0 to 1, got {given.copies}")
    refuse_missing(parser, "text", given.text)
    refuse_target(parser, "weights", given.weights, ".npz")
    refuse_target(parser, "out", given.out, ".json")
    return given


def prepare(given: argparse.Namespace, console: Console) -> Ready:
    """Read the text, train the model or read it, and choose sequences."""
    shape = Shape(given.vocabulary, given.layers, dim=given.dim)
    tokens, held_out = read_words(given.text, given.vocabulary)
    refuse_short(given.text, {"words to train on": len(tokens), "held out": len(held_out)}, given.length)
    parameters = load_or_train(given, tokens, shape, console)

    def drawn(source: np.ndarray, share: float, count: int, seed: int) -> np.ndarray:
        return np.concatenate([next(batches(source, 1, given.length, share, [seed, i])) for i in range(count)])

    named = {"as it is": 0.0, "with copies": given.copies}
    tests = {name: drawn(held_out, share, given.tests, 1) for name, share in named.items()}
    ready = Ready(shape, parameters, tests, drawn(tokens, given.copies, 4, 2)[:, :-1])
    share = first_mass(parameters, ready.others, shape)
    console.print(f"{shape}\nThe first token receives up to {share:.2f} of the attention of a head")
    console.print(f"{'perplexity over that of exact attention':<44}" + "".join(f"{name:>14}" for name in tests))
    return ready


def main(arguments: list[str] | None = None) -> None:
    given, console = parse(arguments), Console()
    ready, found = prepare(given, console), {}
    ways = ways_of(given.window, given.groups, given.features)
    for label, scores in compare(ready, ways):
        found[label] = scores
        shown = (value / found[ways[0].label][name] if len(found) > 1 else value for name, value in scores.items())
        console.print(f"{label:<44}" + "".join(f"{x:>14.3f}" for x in shown))
    streamed, label = stream_error(ready, ways[-1]), ways[-1].label
    console.print(f"{label}, a token at a time: logits differ by {streamed:.1e} of the largest", soft_wrap=True)
    if given.out:
        figures = {"perplexity": found, "stream": streamed, "shape": ready.shape._asdict()}
        given.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
