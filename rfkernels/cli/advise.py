"""`rfkernels advise`: which estimator suits arrays in files, if any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from rfkernels.advise import Report
from rfkernels.advise import advise as run
from rfkernels.cli.attend import Inputs, _usable
from rfkernels.cli.files import check_suffix, check_target, load_array, whole_file
from rfkernels.cli.output import BadInput, Integer, console

_FILE = click.Path(path_type=Path)
_POSITIVE = Integer(min=1)


@click.command(short_help="What to expect on your own .npy files, and what to use.")
@click.argument("q", type=_FILE)
@click.argument("k", type=_FILE)
@click.argument("v", type=_FILE, required=False)
@click.option("--causal", is_flag=True, help="Query t sees keys up to t only.")
@click.option("--length", type=_POSITIVE, help="State times and memory for so many queries; for those in Q by default.")
@click.option("--tolerance", type=float, default=0.1, show_default=True, help="The relative error that is accepted.")
@click.option(
    "--features",
    type=_POSITIVE,
    multiple=True,
    default=(64, 256, 1024),
    show_default=True,
    help="Feature columns to try; may be repeated.",
)
@click.option(
    "--window",
    type=_POSITIVE,
    multiple=True,
    default=(32, 128),
    show_default=True,
    help="Windows to try, besides none; may be repeated.",
)
@click.option("--scale", type=float, help="Multiplies q·k; 1/√dim if not given.")
@click.option("--sample", type=_POSITIVE, default=256, show_default=True, help="Queries of each head to measure.")
@click.option("--seed", type=Integer(min=0), default=0, show_default=True, help="Seed of the random features.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option("--picture", type=_FILE, help="Write a picture (PNG), with a row for each head, to this file.")
@click.option("--force", is_flag=True, help="Replace a picture that exists.")
def advise(
    q: Path,
    k: Path,
    v: Path | None,
    as_json: bool,
    picture: Path | None,
    force: bool,
    features: tuple[int, ...],
    window: tuple[int, ...],
    seed: int,
    **options: Any,
) -> None:
    """Say what suits the queries, keys and values in the files Q, K and V: an estimator, a plain average, or neither.

    Each holds one array (*batch, length, dim); heads are batch axes. Without V the weights themselves are judged.

    \b
    Example: rfkernels advise q.npy k.npy v.npy --causal --length 8192 --picture advice.png
    """  # noqa: D301 - \b keeps click from joining lines
    if picture is None and force:
        raise BadInput("--force is for --picture, which is not given")
    if picture is not None:
        check_suffix(picture, [".png"], "--picture")
        check_target(picture, force, "--picture")
    for count in features:
        if count % 2:
            raise BadInput(f"--features must be even, for antithetic pairs of rows, got {count}")
    files = {"q": q, "k": k} | ({} if v is None else {"v": v})
    inputs = Inputs({name: load_array(name, path) for name, path in files.items()}, files)
    report = _advised(inputs, counts=features, windows=(None, *window), rng=seed, **options)
    if picture is not None:
        from rfkernels.cli import heatmap  # imports matplotlib

        with whole_file(picture, force) as file:
            file.write(heatmap.draw_advice(report))
    click.echo(report.to_json() if as_json else str(report))


def _advised(inputs: Inputs, **options: Any) -> Report:
    errors = console(stderr=True)
    columns = TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("reading", total=None)

        def advance(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        with _usable(inputs, options):
            return run(**inputs.arrays, **options, progress=advance)
