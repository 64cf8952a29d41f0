"""The picture of advice: a row for each head, a column for each way to compute it."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from rfkernels.advise import Report

_LOW, _HIGH = 0.01, 1.0
_NUMBERED = 48  # rows; more of them leave no room for numbers


def draw_advice(report: Report) -> bytes:
    """Draw the errors of all heads and what each is to use, and return the PNG file."""
    heads, columns = len(report.heads), len(report.rows)
    height = 2.6 + min(0.24 * heads, 40)
    figure = Figure(figsize=(3.5 + 0.42 * columns, height), dpi=100, layout="constrained")
    axes = figure.subplots()
    errors = np.array([row.errors for row in report.rows]).T
    norm = LogNorm(_LOW, _HIGH, clip=True)
    shown = np.clip(np.where(np.isfinite(errors), errors, _HIGH), _LOW, _HIGH)
    image = axes.imshow(shown, norm=norm, cmap="YlOrRd", aspect="auto", interpolation="nearest")
    axes.set_xticks(range(columns), [row.label for row in report.rows], rotation=90, fontsize=7)
    names = [",".join(map(str, head)) or "head" for head in report.heads]
    if heads <= _NUMBERED:
        axes.set_yticks(range(heads), names, fontsize=7)
        for i, j in np.ndindex(heads, columns):
            colour = "white" if norm(shown[i, j]) > 0.7 else "black"
            axes.text(j, i, _number(float(errors[i, j])), ha="center", va="center", fontsize=6, color=colour)
    _mark(axes, report)
    kind = "causal" if report.causal else "bidirectional"
    axes.set(ylabel="head", title=f"Relative error, {kind}; boxed: what to use within {report.tolerance:g}")
    figure.colorbar(image, ax=axes, shrink=0.8, label="relative error", extend="both")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _number(error: float) -> str:
    return f"{error:.2f}".removeprefix("0") if error < 9.995 else "≥10"


def _mark(axes: Axes, report: Report) -> None:
    """Box what each head is to use; a head without a box is to use exact attention."""
    labels = [row.label for row in report.rows]
    for i, verdict in enumerate(report.verdicts):
        if verdict.label in labels:
            j = labels.index(verdict.label)
            box = ([j - 0.5, j + 0.5, j + 0.5, j - 0.5, j - 0.5], [i - 0.5, i - 0.5, i + 0.5, i + 0.5, i - 0.5])
            axes.plot(*box, color="black", linewidth=1.8)
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(report.verdicts) - 0.5, -0.5))
