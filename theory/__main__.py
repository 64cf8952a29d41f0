"""Run results: ``python -m theory [NAME ...] [--out DIR]``, all of them by default.

Prints a verdict line for each and writes an index with figures; the exit status is 1 if one is false.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from theory import RESULTS, Result
from theory._running import run_all


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
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        default=os.cpu_count() or 1,
        help="how many results are checked at once, each in a process of its own (default: one for each processor)",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which results (default: all): {', '.join(names)}")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.names) - set(names)):
        parser.error(f"no result has the name {', '.join(unknown)}; known are: {', '.join(names)}")
    if given.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {given.jobs}")
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
    wanted = [result for result in results if not given.names or result.name in given.names]
    sections, held = [], []
    for line, written, holds in run_all(wanted, given.out, given.jobs):
        print(line, flush=True)
        sections.append(written)
        held.append(holds)
    heading = "# Results, as checked\n\nWritten by `python -m theory`.\n"
    index = given.out / "index.md"
    index.write_text("\n".join([heading, *sections]), encoding="utf-8")
    print(f"{sum(held)} of {len(held)} results hold; written to {index}")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
