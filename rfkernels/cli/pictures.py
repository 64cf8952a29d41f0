"""The picture of the demonstration."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

import rfkernels as rfk
from rfkernels.cli import measure
from rfkernels.cli.measure import AVERAGE, EXACT, GROUPS, WINDOW_ALONE, Heads, Report, Row

_COLOURS = {
    "positive": "#0072b2",
    "hyperbolic": "#d55e00",
    "trigonometric": "#cc79a7",
    "relu": "#009e73",
    "elu+1": "#e69f00",
    GROUPS: "#000000",
}
_TOP = 2.0  # errors above are named, not drawn
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0)
_LEAST_WEIGHT = 1e-4


def draw_report(report: Report, heads: Heads, window: int) -> bytes:
    """Draw errors, times and weights, and return the PNG file."""
    figure = Figure(figsize=(13.5, 9.2), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(1, 1.05))
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    errors, causal, times = upper.subplots(1, 3)
    causal.sharey(errors)
    _draw_errors(errors, report, causal=False)
    _draw_errors(causal, report, causal=True)
    handles, labels = errors.get_legend_handles_labels()
    upper.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    _draw_times(times, report)
    _draw_weights(lower, heads, report, window)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_errors(axes: Axes, report: Report, causal: bool) -> None:
    above = []
    for label, style, line in _lines(report, causal):
        features, errors = [row.features or 0 for row in line], [row.error for row in line]
        if min(errors) > _TOP:
            above.append(f"{label}: {max(errors):.0f} to {min(errors):.0f}")
        else:
            axes.plot(features, errors, style, color=_COLOURS[line[0].name], markersize=4, label=label)
    for row in report.rows:
        if row.causal == causal and row.name in (AVERAGE, WINDOW_ALONE):
            style, label = (":", "average of v") if row.name == AVERAGE else ("-.", f"window {row.window} alone")
            axes.axhline(row.error, color="0.3", linestyle=style, linewidth=1.3, label=label)
    if above:
        text = "off the scale\n" + "\n".join(above)
        axes.text(0.97, 0.97, text, transform=axes.transAxes, ha="right", va="top", fontsize=7.5)
    kind = "causal" if causal else "bidirectional"
    axes.set(xscale="log", yscale="log", xlabel="features or groups", title=f"Error against exact attention, {kind}")
    axes.set_ylabel(f"relative error, median of {report.heads} heads")
    counts = sorted({row.features for row in report.rows if row.features is not None})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(FixedLocator(_TICKS))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(top=1.35 * axes.dataLim.ymax)  # room for the text
    axes.grid(alpha=0.3)


def _lines(report: Report, causal: bool) -> list[tuple[str, str, list[Row]]]:
    made = []
    for windowed, style in ((False, "o-"), (True, "s--")):
        for name in _COLOURS:
            line = [row for row in report.rows if (row.name, row.causal) == (name, causal)]
            line = [row for row in line if (row.window is not None) == windowed]
            if line:
                made.append((f"{name}, window {line[0].window}" if windowed else name, style, line))
    return made


def _draw_times(axes: Axes, report: Report) -> None:
    for name, causal, style, colour in (
        (EXACT, False, "^-", "black"),
        ("positive", False, "o-", _COLOURS["positive"]),
        ("positive", True, "o--", _COLOURS["positive"]),
    ):
        line = [t for t in report.timings if (t.name, t.causal) == (name, causal)]
        kind = "causal" if causal else "bidirectional"
        label = f"exact (NumPy), {kind}" if name == EXACT else f"{name}, {line[0].features} features, {kind}"
        axes.plot([t.length for t in line], [t.seconds for t in line], style, color=colour, markersize=4, label=label)
    lengths = sorted({t.length for t in report.timings})
    axes.set(xscale="log", yscale="log", xlabel="tokens (the sequence repeated)", ylabel="seconds")
    axes.set_title(f"Time of a call, {report.timings[0].heads} heads")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=30)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=7.5)
    axes.grid(alpha=0.3)


def _draw_weights(figure: SubFigure, heads: Heads, report: Report, window: int) -> None:
    """Draw the matrix of weights of one head: exact, by features, and by groups beyond an exact window."""
    one, count = _middle(heads), measure.TIMED_FEATURES
    features = measure.draw(one, "positive", count, report.seed)
    groups = max(row.features or 0 for row in report.rows if row.name == GROUPS)
    identity = np.eye(one.k.shape[-2], dtype=one.k.dtype)[None]  # attention of these values is the weights themselves
    given = one.q, one.k, identity
    shown = {
        "exact": rfk.exact_attention(*given),
        f"positive, {count} features": rfk.attention(*given, features),
        f"{groups} groups, window {window}": rfk.attention(*given, groups=groups, window=window),
    }
    norm = LogNorm(_LEAST_WEIGHT, float(np.quantile(shown["exact"], 0.9995)), clip=True)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, (title, weights) in zip(panels, shown.items(), strict=True):
        image = axes.imshow(weights[0], norm=norm, cmap="magma", interpolation="nearest")
        axes.set(title=title, xlabel="key")
    panels[0].set_ylabel("query")
    figure.colorbar(image, ax=list(panels), shrink=0.85, label="weight (each row sums to 1)", extend="both")
    figure.suptitle(f"Weights of one head (layer {one.layer[0]}, head {one.head[0]}), on the same colour scale")


def _middle(heads: Heads) -> Heads:
    """Return the head on which the average of v has its median error."""
    exact = rfk.exact_attention(heads.q, heads.k, heads.v)
    average = np.broadcast_to(heads.v.mean(-2, keepdims=True), heads.v.shape)
    order = np.argsort(measure.relative_errors(average, exact))
    middle = order[len(order) // 2]
    return Heads(*(x[middle : middle + 1] for x in heads))
