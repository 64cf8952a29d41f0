"""Check results, write each up and draw it; several at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from theory import Result, Verdict


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


def run(out: Path, result: Result) -> tuple[str, str, bool]:
    """Check a result and draw its figure; return a line, its section of the index, and whether it holds."""
    start = time.perf_counter()
    verdict = result.check()
    line = f"{result.name}: {verdict} ({time.perf_counter() - start:.1f} s)"
    result.figure().savefig(out / f"{result.name}.png", dpi=120)
    return line, section(result, verdict), verdict.holds


def run_all(results: Sequence[Result], out: Path, jobs: int) -> Iterator[tuple[str, str, bool]]:
    """Run results, in so many processes if there are more than one of both; return what became of each, in order."""
    if min(jobs, len(results)) <= 1:
        yield from map(partial(run, out), results)
        return
    with ProcessPoolExecutor(min(jobs, len(results)), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(partial(run, out), results)
