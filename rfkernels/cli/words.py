"""What the numbers of the demonstration mean, said in sentences that are chosen by the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rfkernels.cli.measure import AVERAGE, EXACT, WINDOW_ONLY, Report, Row
from rfkernels.cli.output import as_bytes, as_error, as_time

_SOFTMAX = ("positive", "hyperbolic", "trigonometric")


def sentences(report: Report) -> list[str]:
    """Say what the numbers mean."""
    return [*_errors(report), *_window(report), *_others(report), *_cost(report)]


def compared(value: float, other: float) -> str:
    """Say how an error compares with another."""
    ratio = value / other
    for limit, phrase in ((0.5, "far better"), (0.85, "better"), (0.97, "hardly better"), (1.03, "no better")):
        if ratio < limit:
            return phrase
    return "worse" if ratio < 2 else "far worse"


def find(report: Report, name: str, features: int | None = None, window: int | None = None, causal: bool = False) -> Row:
    """Return the row of that method."""
    wanted = (name, features, window, causal)
    return next(row for row in report.rows if (row.name, row.features, row.window, row.causal) == wanted)


def best(report: Report, accept: Callable[[Row], bool]) -> Row:
    """Return the bidirectional softmax row of least error that is accepted."""
    rows = (row for row in report.rows if row.name in _SOFTMAX and not row.causal and accept(row))
    return min(rows, key=lambda row: row.error)


def _errors(report: Report) -> Iterator[str]:
    average = find(report, AVERAGE)
    counts = sorted({row.features for row in report.rows if row.features is not None})
    few, many = (find(report, "positive", count) for count in (min(256, counts[-1]), counts[-1]))
    yield (
        "The error is |output - exact output| / |exact output| of a head. Averaging the values, which ignores queries and "
        f"keys altogether, has an error of {as_error(average.error)}: what knows more should do better than that."
    )
    yield (
        f"Positive features (FAVOR+), {few.features} columns: {as_error(few.error)}, {compared(few.error, average.error)} "
        "than the average."
    )
    if many != few:
        factor = (many.features or 1) / (few.features or 1)
        yield (
            f"With {factor:.0f} times as many columns, {many.features}: {as_error(many.error)}. "
            + _progress(few.error, many.error, factor)
        )


def _progress(before: float, after: float, factor: float) -> str:
    ideal = before / factor**0.5
    if after < 1.15 * ideal:
        return f"That is what independent errors would do ({as_error(ideal)})."
    return (
        f"Errors that average out would have come down to {as_error(ideal)}; here a few rare features carry most of the "
        "sum, so more of them help slowly."
    )


def _window(report: Report) -> Iterator[str]:
    alone = next(row for row in report.rows if row.name == WINDOW_ONLY and not row.causal)
    plain = best(report, lambda row: row.window is None)
    near = best(report, lambda row: row.window is not None)
    yield (
        f"Exact softmax weights for keys less than {alone.window} positions away and nothing beyond: {as_error(alone.error)}, "
        f"{compared(alone.error, plain.error)} than the best features without a window ({plain.name}, {plain.features}: "
        f"{as_error(plain.error)})."
    )
    yield (
        f"The same window with features beyond ({near.name}, {near.features}): {as_error(near.error)}, "
        f"{compared(near.error, alone.error)} than the window alone."
    )


def _others(report: Report) -> Iterator[str]:
    signed = best(report, lambda row: row.name == "trigonometric")
    if signed.worst > 2:
        yield (
            f"Trigonometric features have an error of {as_error(signed.error)} at best and up to {as_error(signed.worst)}: "
            "their estimated weights can be negative, so that sums of weights come close to zero. Do not use them on heads "
            "like these."
        )
    yield (
        "ReLU and ELU+1 do not estimate softmax: they are attention of their own kind, for models that were trained with "
        "them, and their error here is a difference rather than a fault. More features do not remove it."
    )


def _cost(report: Report) -> Iterator[str]:
    linear = {t.length: t for t in report.timings if t.name != EXACT and not t.causal}
    exact = {t.length: t for t in report.timings if t.name == EXACT}
    first, last = min(exact), max(exact)
    ratio = exact[last].seconds / linear[last].seconds
    yield (
        f"Time, {exact[last].heads} heads of {last} tokens: {as_time(exact[last].seconds)} exactly (in NumPy), "
        f"{as_time(linear[last].seconds)} with {linear[last].features} features"
        + (f", {ratio:.0f} times as fast. " if ratio > 1.5 else ". ")
        + f"From {first} to {last} tokens the exact time grew {exact[last].seconds / exact[first].seconds:.0f}-fold, that of "
        f"features {linear[last].seconds / linear[first].seconds:.0f}-fold."
    )
    row = find(report, "positive", linear[last].features)
    pairs, held = find(report, EXACT).memory, 2 * report.length * report.dim * 4
    yield (
        f"Memory, one head: the sums over all keys take {as_bytes(row.memory)} with {row.features} features, at any length. "
        f"Exact attention weighs {report.length} x {report.length} pairs ({as_bytes(pairs)}) or computes the weights again "
        f"from all keys and values ({as_bytes(held)}); at twice the length that is {as_bytes(4 * pairs)} or "
        f"{as_bytes(2 * held)}."
    )
