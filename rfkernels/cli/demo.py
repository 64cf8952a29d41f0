"""`rfkernels demo`: exact against linear attention on heads of a trained transformer."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from rfkernels.cli import measure, words
from rfkernels.cli.files import check_target, whole_file
from rfkernels.cli.measure import Heads, Plan, Report, Row
from rfkernels.cli.output import Integer, as_bytes, as_error, as_time, console, print_json, table

_PICTURE = "rfkernels-demo.png"


@click.command(short_help="Exact against linear attention on real heads.")
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Directory of the picture; the current one if not given.",
)
@click.option("--seed", type=Integer(min=0), default=0, show_default=True, help="Seed of the random features.")
@click.option("--quick", is_flag=True, help="Fewer heads, features and draws: a smaller and rougher demonstration.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def demo(folder: Path, seed: int, quick: bool, as_json: bool) -> None:
    """Compare linear with exact attention on twelve heads of a trained transformer that come with the package.

    Prints a table of errors, times and memory, says what the numbers mean, and writes rfkernels-demo.png.

    \b
    Example: rfkernels demo --out /tmp
    """  # noqa: D301 - \b keeps click from joining lines
    picture = folder / _PICTURE
    check_target(picture, force=True)
    start = time.perf_counter()
    plan = measure.QUICK if quick else measure.FULL
    heads = measure.load_heads(plan.heads)
    report = _measured(heads, plan, seed)
    from rfkernels.cli import pictures  # imports matplotlib

    with whole_file(picture, force=True) as file:
        file.write(pictures.draw_report(report, heads, plan.window))
    spent = time.perf_counter() - start
    if as_json:
        print_json({**report._asdict(), "words": words.sentences(report), "picture": str(picture), "seconds": spent})
    else:
        _show(report, picture, spent)


def _measured(heads: Heads, plan: Plan, seed: int) -> Report:
    errors = console(stderr=True)
    columns = TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("compiling", total=measure.steps(plan))
        return measure.measure(heads, plan, seed, lambda what: progress.update(task, advance=1, description=what))


def _show(report: Report, picture: Path, spent: float) -> None:
    out = console()
    out.print(
        f"{report.heads} attention heads of a trained transformer (all-MiniLM-L6-v2), {report.length} tokens of text, "
        f"{report.dim} wide, float32.\n"
    )
    out.print(_table(report))
    out.print()
    out.print(_legend(report))
    out.print()
    for sentence in words.sentences(report):
        out.print(f"- {sentence}")
    out.print(f"\npicture: {picture}\nThis took {as_time(spent)}.")


def _legend(report: Report) -> str:
    draws = f" x {report.draws} draws of the features" if report.draws > 1 else ""
    return (
        f"error, worst  |output - exact output| / |exact output|: median and largest of {report.heads} heads{draws}\n"
        "time          one call for all heads, the fastest of a few\n"
        "memory        what the keys and values of one head are reduced to, of the same size at any length;\n"
        f"              of exact attention: the {report.length} x {report.length} weights of one head\n"
        "window        keys less than this many positions away have exact softmax weights\n"
        "groups        keys beyond the window are read as so many groups, found in each call; their memory is that of\n"
        "              decoding, the keys of the window included"
    )


def _table(report: Report) -> Table:
    made = table(
        ("\nmap", "left"),
        ("features,\ngroups", "right"),
        ("\nwindow", "right"),
        ("bidir.\nerror", "right"),
        ("\nworst", "right"),
        ("\ntime", "right"),
        ("causal\nerror", "right"),
        ("\nworst", "right"),
        ("\ntime", "right"),
        ("\nmemory", "right"),
    )
    causal = {_key(row): row for row in report.rows if row.causal}
    for row in report.rows:
        if not row.causal and (row.name == measure.GROUPS or row.features not in measure.ONLY_DRAWN):
            number = "" if row.features is None else str(row.features)
            window = "" if row.window is None else str(row.window)
            cells = (*_cells(row), *_cells(causal[_key(row)]))
            made.add_row(row.name, number, window, *cells, as_bytes(row.memory))
    return made


def _key(row: Row) -> tuple[str, int | None, int | None]:
    return row.name, row.features, row.window


def _cells(row: Row) -> tuple[str, str, str]:
    return as_error(row.error), as_error(row.worst), "" if row.seconds is None else as_time(row.seconds)
