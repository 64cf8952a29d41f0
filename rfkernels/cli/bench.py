"""`rfkernels bench`: this machine's speed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click
from rich.table import Table

from rfkernels.cli.output import BadInput, console, print_json, table

if TYPE_CHECKING:
    from rfkernels.benchmark import Line


@click.command(short_help="Time this machine against exact attention and installed peers.")
@click.option("--quick", is_flag=True, help="Small sizes: under a minute instead of five.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def bench(quick: bool, as_json: bool) -> None:
    """Time linear attention on this machine against exact attention and the other libraries that are installed.

    Ratios come from one run. Each line goes to stderr as soon as it is measured, all of them to stdout at the end.

    \b
    Example: rfkernels bench --quick
    """  # noqa: D301 - \b keeps click from joining lines
    from rfkernels import benchmark
    from rfkernels.benchmark.plan import allowed_threads

    try:
        allowed_threads()
    except ValueError as error:
        raise BadInput(str(error)) from error
    errors = console(stderr=True)

    def report(line: Line) -> None:
        measured = line.detail if math.isnan(line.value) else f"{_value(line)} ({line.detail})"
        errors.print(f"{line.name}: {measured}", soft_wrap=True)

    lines = benchmark.run(quick=quick, report=report)
    if as_json:
        print_json({"quick": quick, "lines": [{**line._asdict(), "met": _met(line, quick)} for line in lines]})
    else:
        console().print(_table(lines, quick))


def _table(lines: list[Line], quick: bool) -> Table:
    made = table(("what", "left"), ("measured", "right"), ("target", "left"), ("", "left"))
    for line in lines:
        met = _met(line, quick)
        made.add_row(line.name, _value(line), line.target, "" if met is None else "met" if met else "missed")
    return made


def _value(line: Line) -> str:
    return "not measured" if math.isnan(line.value) else f"{line.value:.3g} {line.unit}".rstrip()


def _met(line: Line, quick: bool) -> bool | None:
    """Say whether the target is reached; targets are those of the full sizes."""
    from rfkernels.benchmark import meets

    return None if quick else meets(line)
