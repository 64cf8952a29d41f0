"""Run results: ``python -m theory [NAME ...] [--out DIR]``, all of them by default.

Prints a verdict line for each and writes an index with figures; the exit status is 1 if one is false.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from theory import RESULTS, Result, Verdict


def section(result: Result, verdict: Verdict) -> str:
    """Write up one result in Markdown, with everything that was measured."""
    rows = [
        f"| {one.method} | {one.subject} | {' | '.join(one.figures)} | {'yes' if one.holds else 'NO'} |"
        for one in verdict.measured
    ]
    table = ["| method | of | largest deviation | claimed | holds |", "| --- | --- | --- | --- | --- |", *rows]
    parts = [f"## {result.name}", result.statement.strip(), result.citation, f"**{verdict}**", "\n".join(table)]
    if verdict.findings:
        parts.append("\n".join(["Found besides:", "", *(f"- {finding}" for finding in verdict.findings)]))
    parts.append(f"![{result.name}]({result.name}.png)")
    return "\n\n".join(parts) + "\n"


def options(arguments: Sequence[str] | None, names: Sequence[str]) -> argparse.Namespace:
    """Read the command line and make the directory that it names."""
    parser = argparse.ArgumentParser(prog="python -m theory", description="Run results; write an index and figures.")
    where = Path(__file__).parent / "out"
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=where,
        help="where the index and the figures go (default: theory/out)",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which results (default: all): {', '.join(names)}")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.names) - set(names)):
        parser.error(f"no result has the name {', '.join(unknown)}; known are: {', '.join(names)}")
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def main(arguments: Sequence[str] | None = None, results: Sequence[Result] = RESULTS) -> int:
    """Run the results, print a line for each and write index.md with figures.

    Parameters
    ----------
    arguments : sequence of str, optional
        Of the command line; those of the process by default.
    results : sequence of Result, optional
        What to run.

    Returns
    -------
    int
        0 if every result holds, else 1.
    """
    given = options(arguments, [result.name for result in results])
    sections, held = [], []
    for result in results:
        if given.names and result.name not in given.names:
            continue
        start = time.perf_counter()
        verdict = result.check()
        print(f"{result.name}: {verdict} ({time.perf_counter() - start:.1f} s)", flush=True)
        result.figure().savefig(given.out / f"{result.name}.png", dpi=120)
        sections.append(section(result, verdict))
        held.append(verdict.holds)
    heading = "# Results, as checked\n\nWritten by `python -m theory`.\n"
    index = given.out / "index.md"
    index.write_text("\n".join([heading, *sections]), encoding="utf-8")
    print(f"{sum(held)} of {len(held)} results hold; written to {index}")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
