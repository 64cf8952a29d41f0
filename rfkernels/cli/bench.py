"""`rfkernels bench`: this machine's speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rfkernels.cli.output import console, print_json, table

if TYPE_CHECKING:
    from rfkernels.benchmark import Line


@click.command(short_help="Time this machine against exact attention and installed peers.")
@click.option("--quick", is_flag=True, help="Smaller sizes and fewer repetitions.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def bench(quick: bool, as_json: bool) -> None:
    """Time linear attention on this machine against exact attention and the other libraries that are installed.

    Ratios come from one run. Lines are printed to stderr as they are measured, all of them as a table at the end.

    \b
    Example: rfkernels bench --quick
    """
    from rfkernels.benchmark import run

    errors = console(stderr=True)

    def report(line: Line) -> None:
        errors.print(f"{line.name}: {line.value:.4g} {line.unit}".rstrip())

    lines = run(quick=quick, report=report)
    if as_json:
        print_json({"quick": quick, "lines": [line._asdict() for line in lines]})
        return
    made = table(("what", "left"), ("measured", "right"), ("unit", "left"), ("target", "left"), ("detail", "left"))
    for line in lines:
        made.add_row(line.name, f"{line.value:.4g}", line.unit, line.target, line.detail)
    console().print(made)
