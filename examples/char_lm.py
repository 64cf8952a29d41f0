"""Train a small character model with exact attention, softmax features and ReLU features, and sample from a state.

    python examples/char_lm.py --quick                 # under a minute, on the sonnets beside this file
    python examples/char_lm.py --text FILE_OR_FOLDER   # the full run; texts/README.md says where more text is
    python examples/char_lm.py --bench                 # a training step against exact attention, by length

All runs begin from the same parameters and see the same batches. Features are drawn once and stay as they are, or are
drawn anew every so many steps with --redraw, from the seed and the step. The picture and the figures go to --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import char_model
import jax
import jax.numpy as jnp
import numpy as np
import optax
from char_model import Attention, Shape
from char_training import Corpus, Run, batches, read_corpus, train, training_step, ways_of
from matplotlib.figure import Figure
from refusals import refuse_less, refuse_missing, refuse_short
from rich.console import Console
from rich.progress import Progress

import rfkernels as rfk

HERE = Path(__file__).resolve().parent


def stream_error(run: Run, corpus: Corpus, shape: Shape, length: int) -> float:
    """Largest difference between the logits of one parallel pass and those of a stream, over the largest logit."""
    tokens, window = jnp.asarray(corpus.held_out[None, :length]), run.way.window

    @jax.jit
    def both(parameters: Any, features: Any) -> tuple[Any, Any]:
        how = Attention(features, window)
        whole, _ = char_model.logits(parameters, tokens, shape, how)
        return whole, char_model.streamed_logits(parameters, tokens, shape, how)

    whole, streamed = both(run.parameters, run.how.features)
    return float(jnp.abs(whole - streamed).max() / jnp.abs(whole).max())


def sampled(run: Run, corpus: Corpus, shape: Shape, given: argparse.Namespace) -> str:
    """Continue the beginning of the held-out text from the states."""
    prompt = jnp.asarray(corpus.held_out[:64])
    draw = partial(char_model.sample, shape=shape, length=given.sample, temperature=given.temperature)
    tokens = jax.jit(lambda p, features, key: draw(p, prompt[None], key, how=Attention(features, run.way.window)))(
        run.parameters, run.how.features, jax.random.key(given.seed)
    )
    return corpus.decode(prompt) + "|" + corpus.decode(tokens[0])


def draw_picture(runs: list[Run], title: str) -> Figure:
    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for run, colour in zip(runs, ("black", "#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=False):
        span = max(1, len(run.losses) // 50)
        smooth = np.convolve(run.losses, np.ones(span) / span, "valid")
        axes.plot(np.arange(span, len(run.losses) + 1), smooth, color=colour, linewidth=1, alpha=0.5)
        steps, scores = zip(*run.held_out, strict=True)
        axes.plot(steps, scores, "o-", color=colour, markersize=3, label=f"{run.way.label}: {scores[-1]:.3f}")
    axes.set(xlabel="step", ylabel="nats per character", title=title)
    axes.legend(title="held out (thin: training)")
    axes.grid(alpha=0.3)
    return figure


def bench(given: argparse.Namespace, console: Console, vocabulary: int = 80) -> list[dict[str, float]]:
    """Time a training step by turns, at an equal number of tokens, and print the median of the quotients."""
    shape, optimizer, rows = Shape(vocabulary, given.layers, given.heads, given.dim), optax.adamw(1e-3), []
    ways = ways_of(given)
    console.print(
        f"Time of a training step with exact attention over that with features; {shape}, {given.features} features"
    )
    console.print(f"{'length':>6} {'batch':>5} {'exact, s':>9}  " + "  ".join(way.label for way in ways[1:]))
    for length in given.lengths:
        batch = max(1, given.tokens // length)
        tokens = next(batches(np.arange(2 * length) % vocabulary, batch, length, 0))
        calls = []
        for way in ways:
            parameters = char_model.initial(shape, 0)
            how = char_model.attention(shape, way.map, given.features, way.window, 0)
            calls.append(
                [training_step(shape, way.window, optimizer), parameters, optimizer.init(parameters), how.features]
            )
        times: list[list[float]] = []
        for _ in range(given.rounds + 1):
            times.append([])
            for call in calls:
                start = time.perf_counter()
                call[1], call[2], loss = call[0](*call[1:], tokens)
                loss.block_until_ready()
                times[-1].append(time.perf_counter() - start)
        del times[0]  # compiles
        ratios = [statistics.median(one[0] / one[i] for one in times) for i in range(1, len(ways))]
        exact = statistics.median(one[0] for one in times)
        console.print(
            f"{length:6} {batch:5} {exact:9.3f}  "
            + "  ".join(f"{ratio:{len(way.label)}.2f}" for ratio, way in zip(ratios, ways[1:], strict=True))
        )
        rows.append(
            {"length": length, "batch": batch, "exact_seconds": exact}
            | dict(zip((w.label for w in ways[1:]), ratios, strict=True))
        )
    return rows


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", type=Path, default=HERE / "texts" / "sonnets.txt", help="a text, or a folder of texts")
    add("--out", type=Path, default=Path("char-lm"), help="where char_lm.png and char_lm.json go")
    add("--quick", action="store_true", help="a tiny model and few steps")
    add("--bench", action="store_true", help="time training steps and do nothing else")
    add("--length", type=int, default=256)
    add("--batch", type=int, default=16)
    add("--steps", type=int, default=1000)
    add("--every", type=int, default=50, help="steps between scores on held-out text")
    add("--rate", type=float, default=2e-3)
    add("--layers", type=int, default=3)
    add("--heads", type=int, default=4)
    add("--dim", type=int, default=32)
    add("--features", type=int, default=128)
    add("--window", type=int, default=32, help="of the run with exact weights nearby; 0 leaves it out")
    add("--redraw", type=int, default=0, help="draw new features every so many steps; 0 keeps the first ones")
    add("--sample", type=int, default=400, help="characters to sample")
    add("--temperature", type=float, default=0.7)
    add("--seed", type=int, default=0)
    add("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096], help="of --bench")
    add("--tokens", type=int, default=4096, help="of a step of --bench, whatever the length")
    add("--rounds", type=int, default=5, help="of --bench")
    quick = {
        "length": 64,
        "batch": 8,
        "steps": 40,
        "every": 10,
        "layers": 2,
        "heads": 2,
        "features": 64,
        "window": 8,
        "sample": 120,
    }
    early, _ = parser.parse_known_args(arguments)
    if early.quick:
        parser.set_defaults(**quick)
    given = parser.parse_args(arguments)
    names = ("length", "batch", "steps", "every", "layers", "heads", "dim", "features", "sample", "tokens", "rounds")
    refuse_less(parser, given, dict.fromkeys(names, 1) | {"window": 0, "redraw": 0, "seed": 0})
    if not given.temperature > 0:
        parser.error(f"--temperature must be more than 0, got {given.temperature}")
    refuse_missing(parser, "text", given.text)
    return given


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    given, console = parse(arguments), Console(highlight=False, markup=False, soft_wrap=True)
    if given.bench:
        return {"bench": bench(given, console)}
    given.out.mkdir(parents=True, exist_ok=True)  # or what was trained could not be written
    corpus = read_corpus(given.text)
    counts = {"characters to train on": len(corpus.train), "held out": len(corpus.held_out)}
    refuse_short(given.text, counts, given.length)
    shape = Shape(len(corpus.characters), given.layers, given.heads, given.dim)
    ways = ways_of(given)
    console.print(
        f"{len(corpus.train):,} characters to train on, {len(corpus.held_out):,} held out, {given.features} features"
    )
    runs = []
    with Progress(console=Console(stderr=True)) as progress:
        for way in ways:
            task = progress.add_task(way.label, total=given.steps)
            runs.append(train(way, corpus, shape, given, partial(progress.advance, task)))
    report = summary(runs, corpus, shape, given, console)
    (given.out / "char_lm.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw_picture(runs, f"{given.text.name}: {given.layers} layers, {given.features} features").savefig(
        given.out / "char_lm.png"
    )
    console.print(f"Wrote char_lm.json and char_lm.png to {given.out}")
    return report


def summary(
    runs: list[Run], corpus: Corpus, shape: Shape, given: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Print and return what each run came to."""
    rows = []
    for run in runs:
        row: dict[str, Any] = {"way": run.way.label, "held_out": run.held_out, "losses": run.losses}
        row["seconds"] = round(run.seconds, 1)
        console.print(
            f"\n{run.way.label}: {run.held_out[-1][1]:.3f} nats per held-out character, {run.seconds:.0f} s in all"
        )
        if run.how.features is not None:
            row["stream_error"] = stream_error(run, corpus, shape, given.length)
            row["sample"] = sampled(run, corpus, shape, given)
            console.print(f"parallel and streamed logits differ by {row['stream_error']:.1e} of the largest")
            console.print(row["sample"])
        rows.append(row)
    settings = {name: value for name, value in vars(given).items() if not isinstance(value, Path)}
    versions = {"rfkernels": rfk.__version__, "jax": jax.__version__, "device": jax.devices()[0].device_kind}
    return {"text": given.text.name, "settings": settings, "versions": versions, "runs": rows}


if __name__ == "__main__":
    main()
