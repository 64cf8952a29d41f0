"""The report as text: a table, a line per head, and what follows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rfkernels.advise._estimators import HEAVY
from rfkernels.advise._predict import IN_RANGE
from rfkernels.advise._report import Report, Row, Verdict, duration

_HEADS = 48  # more of them are counted, not listed


def text(report: Report) -> str:
    """Return the report for people."""
    parts = [_what(report), _table(report), _legend(report), _heads(report), _verdict(report)]
    return "\n\n".join(parts)


def saying(verdict: Verdict) -> str:
    """Return the verdict in a few words."""
    if verdict.kind == "exact":
        return "use exact attention"
    if verdict.kind == "average":
        return "a plain average of the values does as well"
    return f"use {verdict.label}"


def size(count: float) -> str:
    """Write an amount of memory."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB"):
        if count >= 999.5:
            count, unit = count / 1024, larger
    return f"{count:.3g} {unit}" if count < 999.5 else f"{count:,.0f} {unit}"


def _what(report: Report) -> str:
    number = len(report.heads)
    heads = f"{number} head{'s' if number > 1 else ''}"
    kind = "causal" if report.causal else "bidirectional"
    judged = "the weights themselves, as no values were given" if report.probes else "the output"
    return (
        f"{heads}, {kind}: {report.queries:,} queries, {report.keys:,} keys, {report.dim} wide, values {report.width} "
        f"wide.\nErrors are those of {judged}, measured on {report.sample} queries of each head against all keys."
    )


def _table(report: Report) -> str:
    at = f"at {report.length:,}"
    lines: list[tuple[str, ...]] = [
        ("", "", "", "error", "", "", "time", "memory"),
        ("estimator", "count", "window", "median", "worst", "predicted", at, at),
    ]
    lines += [_line(report.exact), *(_line(row) for row in report.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    sides = ["<", *">" * (len(widths) - 1)]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip()
        for line in lines
    )


def _line(row: Row) -> tuple[str, ...]:
    predicted = "" if row.predicted is None else _prediction(float(np.median(row.predicted)))
    count, window = ("" if x is None else str(x) for x in (row.count, row.window))
    errors = f"{row.median:.3f}", f"{row.worst:.3f}"
    return row.estimator, count, window, *errors, predicted, duration(row.seconds), size(row.memory)


def _prediction(error: float) -> str:
    return f"{error:.3f}" if error <= IN_RANGE else f"> {IN_RANGE:g}"


def _legend(report: Report) -> str:
    which = f"the first {HEAVY} keys" if report.causal else f"the {HEAVY} keys that most attend to"
    lines = [
        "error      |output - exact| / |exact| of a head; features are fitted to the first half of the positions, and",
        "           measured on queries of the second, with one draw of the features",
        f"heavy      {which} have exact weights, as those within the window",
        "groups     far keys act as one key and value for each group of them (count), which is biased",
        "predicted  median over heads, in closed form, for independent rows and a few queries; it says little above "
        f"{IN_RANGE:g}",
        f"time       of a call for all heads of {report.length:,} tokens on this machine's CPU, scaled from the arrays "
        "given:",
        "           linearly, and as the square for exact attention (this library's); without fitting",
        "memory     what the keys and values are reduced to, or those themselves for exact attention",
    ]
    if report.length > report.queries:
        lines.append(
            f"Errors are those at {report.queries:,} tokens: at {report.length:,} they may be larger, "
            "above all those with a window, as it reaches a smaller part of the keys."
        )
    return "\n".join(lines)


def _heads(report: Report) -> str:
    average = next(row for row in report.rows if row.count is None and row.window is None)
    lines = ["Each head by itself (in brackets the error of a plain average of its values):"]
    for i, (head, verdict) in enumerate(zip(report.heads, report.verdicts, strict=True)):
        if i == _HEADS:
            lines.append(f"  and {len(report.heads) - _HEADS} more")
            break
        name = ",".join(str(n) for n in head) or "the head"
        lines.append(f"  {name}: {saying(verdict)}: {verdict.reason} ({average.errors[i]:.3f})")
    return "\n".join(lines)


def _verdict(report: Report) -> str:
    verdict = report.verdict
    lines = [f"Verdict, for a tolerance of {report.tolerance:g}: {saying(verdict)}."]
    lines += [
        f"On the worst head, {verdict.reason}.",
        *_apart(report),
        *_redraws(report),
        *_reach(report),
        "",
        *_indented(verdict.call),
    ]
    return "\n".join(lines)


def _apart(report: Report) -> Iterator[str]:
    could = sum(verdict.kind != "exact" for verdict in report.verdicts)
    if report.verdict.kind == "exact" and could:
        yield f"{could} of {len(report.heads)} heads would do with less, each by itself."


def _redraws(report: Report) -> Iterator[str]:
    if report.redraws:
        errors = " and ".join(f"{error:.3f}" for error in report.redraws)
        more = ", more than is accepted: take a larger count" if max(report.redraws) > report.tolerance else ""
        yield f"With other seeds it is {errors}{more}."


def _reach(report: Report) -> Iterator[str]:
    """Say what a window is worth at another length than that of the errors."""
    window = next((row.window for row in report.rows if row.label == report.verdict.label), None)
    if window is not None and report.length > report.queries:
        near = window if report.causal else 2 * window - 1
        shares = [min(near / keys, 1) for keys in (report.keys, report.keys * report.length / report.queries)]
        yield (
            f"Its window reaches {shares[0]:.2g} of the {report.keys:,} keys given, and {shares[1]:.2g} of those at "
            "the length asked for: measure at that length before you rely on it."
        )


def _indented(call: str) -> list[str]:
    return [f"    {line}" for line in call.splitlines()]
