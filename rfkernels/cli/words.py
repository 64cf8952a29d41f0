"""What the numbers of the demonstration mean, said in sentences that are chosen by the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rfkernels.cli.measure import AVERAGE, EXACT, GROUPS, TIMED_FEATURES, WINDOW_ALONE, Report, Row
from rfkernels.cli.output import as_bytes, as_error, as_factor, as_time

_SOFTMAX = ("positive", "hyperbolic", "trigonometric")


def sentences(report: Report) -> list[str]:
    """Say what the numbers mean."""
    return [*_features(report), *_window(report), *_groups(report), *_others(report), *_cost(report)]


def compared(value: float, other: float) -> str:
    """Say how an error compares with another."""
    ratio = value / other
    if abs(ratio - 1) < 0.03:
        return "no better and no worse than"
    if ratio > 1:
        return f"{ratio - 1:.0%} more than" if ratio < 2 else f"{ratio:,.0f} times that of"
    return f"{1 - ratio:.0%} less than"


def find(report: Report, name: str, features: int | None = None) -> Row:
    """Return the bidirectional row of that method without a window."""
    wanted = (name, features, None, False)
    return next(row for row in report.rows if (row.name, row.features, row.window, row.causal) == wanted)


def best(report: Report, accept: Callable[[Row], bool]) -> Row:
    """Return the bidirectional softmax row of least error that is accepted."""
    rows = (row for row in report.rows if row.name in _SOFTMAX and not row.causal and accept(row))
    return min(rows, key=lambda row: row.error)


def _beaten(report: Report, row: Row) -> str:
    return f"averaging is better on {row.beaten or 'none'} of the {report.heads} heads"


def _features(report: Report) -> Iterator[str]:
    average = find(report, AVERAGE)
    most = max(row.features for row in report.rows if row.features is not None)
    few, many = (find(report, "positive", count) for count in (min(TIMED_FEATURES, most), most))
    yield (
        "Bidirectional attention. Averaging the values, which ignores queries and keys altogether, has an error of "
        f"{as_error(average.error)}. Whatever looks at them should do better than that."
    )
    yield (
        f"Positive features (FAVOR+), {few.features} of them: {as_error(few.error)} on the median head, "
        f"{compared(few.error, average.error)} averaging; {_beaten(report, few)}."
    )
    if many != few:
        ideal = few.error / (most / TIMED_FEATURES) ** 0.5
        yield (
            f"More of them help {'slowly' if many.error > 1.2 * ideal else 'as expected'}: {as_error(many.error)} with "
            f"{most}. Falling with the square root of their number, it would be {as_error(ideal)}."
        )


def _window(report: Report) -> Iterator[str]:
    alone = next(row for row in report.rows if row.name == WINDOW_ALONE and not row.causal)
    plain = best(report, lambda row: row.window is None)
    count = min(TIMED_FEATURES, plain.features or 0)
    near = best(report, lambda row: row.window is not None and row.features == count)
    yield (
        f"Exact weights for the keys less than {alone.window} positions away and nothing beyond: "
        f"{as_error(alone.error)}, {compared(alone.error, plain.error)} the best features without a window "
        f"({plain.name}, {plain.features}: {as_error(plain.error)})."
    )
    yield (
        f"The same window with features beyond ({near.name}, {near.features}): {as_error(near.error)}, "
        f"{compared(near.error, alone.error)} the window alone; {_beaten(report, near)}."
    )


def _groups(report: Report) -> Iterator[str]:
    found = [row for row in report.rows if row.name == GROUPS and not row.causal]
    alone = min((row for row in found if row.window is None), key=lambda row: row.error)
    near = min((row for row in found if row.window is not None), key=lambda row: row.error)
    plain = best(report, lambda row: row.window is None)
    yield (
        f"Keys in {alone.features} groups, found in each call: {as_error(alone.error)}, "
        f"{compared(alone.error, plain.error)} the best features. With the window: {as_error(near.error)}, "
        f"{as_error(near.worst)} on the worst head. Groups are biased and features are not, but on heads like these "
        "groups are what to use."
    )


def _others(report: Report) -> Iterator[str]:
    signed = best(report, lambda row: row.name == "trigonometric")
    if signed.error > 1:
        yield (
            f"Trigonometric features: {as_error(signed.error)} at best. Their estimated weights can be negative, so "
            "the sum that the output is divided by can come out near zero. Do not use them on heads like these."
        )
    counts = sorted(row.features for row in report.rows if row.name == "relu" and row.features and not row.causal)
    few, many = find(report, "relu", counts[0]), find(report, "relu", counts[-1])
    stays = "stays with" if many.error > 0.9 * few.error else "changes with"
    yield (
        "ReLU and ELU+1 do not estimate softmax: they are attention of their own kind, for models trained with them. "
        f"Their error is a difference, not a fault, and {stays} more features (ReLU: {as_error(few.error)} with "
        f"{few.features}, {as_error(many.error)} with {many.features})."
    )


def _cost(report: Report) -> Iterator[str]:
    linear = {t.length: t for t in report.timings if t.name != EXACT and not t.causal}
    exact = {t.length: t for t in report.timings if t.name == EXACT}
    first, last = min(exact), max(exact)
    yield (
        f"Time, {exact[last].heads} heads of {last:,} tokens: {as_time(exact[last].seconds)} for exact attention (this "
        f"library's), {as_time(linear[last].seconds)} with {TIMED_FEATURES} features: a factor of "
        f"{as_factor(exact[last].seconds / linear[last].seconds)}. For {last // first} times the tokens ({first:,} to "
        f"{last:,}) exact attention took {as_factor(exact[last].seconds / exact[first].seconds)} times as long, "
        f"features {as_factor(linear[last].seconds / linear[first].seconds)} times."
    )
    if report.load > 0.3:
        yield (
            f"In the minute before, other processes took {min(report.load, 1):.0%} of this machine. If they went on, "
            "the times are too long, as threads wait for each other."
        )
    row = find(report, "positive", TIMED_FEATURES)
    pairs, held = find(report, EXACT).memory, 2 * report.length * report.dim * 4
    yield (
        f"Memory, one head: {as_bytes(row.memory)} of sums with {row.features} features, at any length. Exact "
        f"attention has {report.length} x {report.length} weights, {as_bytes(pairs)}, or computes them anew from all "
        f"keys and values, {as_bytes(held)}; twice the tokens need {as_bytes(4 * pairs)} or {as_bytes(2 * held)}."
    )
