"""How wrong attention is with random features: figure 4 of Performers, with error bars and every estimator.

``python -m theory.approximation`` prints the table of every estimator that the library has.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from rfkernels import variance
from theory._cubature import Array
from theory._estimators import DIM, EVERY, OURS, PAPER, Estimator, Phi
from theory._verdict import Measured, Result, Verdict

STATEMENT = r"""
Figure 4 of the paper: attention with $L = 4096$ and $d = 16$ against the number of features $m$, 15 draws; orthogonal
rows have smaller errors than independent ones, and positive features than trigonometric ones. Which inputs it used we
do not know, so ours are stated: entries of queries and keys $N(0, \sigma^2)$, values $N(0, 1)$, all drawn anew with
the features, at $\sigma = \frac12$ (logits of standard deviation $\frac14$,
$\mathbb{E}|x + y|^2 = 2$) and $\sigma = 1$ (logits of standard deviation 1, $\mathbb{E}|x + y|^2 = 8$). The error is
$|\hat A - A|_F / |A|_F$ of the attention matrix, whose rows sum to 1, over 128 queries and all 4096 keys; error
bars are standard errors over draws. All estimators see the same inputs.

The orders that are claimed are those of the table below: that of the paper for $\sigma = 1$, and for $\sigma = \frac12$
that of independent and orthogonal trigonometric features; but positive features are *worse* than trigonometric ones
there, and at $\sigma = 1$ the plain average, $A_{ts} = 1/L$, is better than all of them. Each is judged by the
mean difference of the logarithms of paired errors over its standard error, $z \le -4$. Errors of the unnormalised
kernel are those of `rfkernels.variance`.

Of every estimator of the library (`python -m theory.approximation`, $m = 128$) only biased ones beat the plain average
at $\sigma = 1$: regularised rows, narrowly, and Taylor features of degree 2, by far the best at $\sigma = \frac12$ too.
These are independent normal inputs: they say nothing of trained models, whose queries and keys have structure to fit.
"""

CITATION = "Choromanski et al., Rethinking Attention with Performers, arXiv 2009.14794, figure 4 and section 4.2."

LENGTH, QUERIES, DRAWS = 4096, 128, 15
COUNTS = (64, 128, 256)
SIZES = (0.5, 1.0)


class Inputs(NamedTuple):
    """Queries, keys and values, exact log kernels of all queries and keys, and attention."""

    q: Array
    k: Array
    v: Array
    log_kernel: Array
    attention: Array


@cache
def inputs(size: float, draw: int) -> Inputs:
    """Draw inputs and compute their exact attention matrix."""
    rng = np.random.default_rng([draw, int(1000 * size)])
    q, k = size * rng.standard_normal((QUERIES, DIM)), size * rng.standard_normal((LENGTH, DIM))
    logits = q @ k.T / math.sqrt(DIM)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return Inputs(q, k, rng.standard_normal((LENGTH, DIM)), logits, weights / weights.sum(-1, keepdims=True))


class Errors(NamedTuple):
    """Relative errors of one estimate: of the attention matrix, of its output, and of the unnormalised kernel."""

    matrix: float
    output: float
    kernel: float


def _relative(found: Array, exact: Array) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def errors(given: Inputs, phi: Phi) -> Errors:
    """Compare the attention that features give with the exact one."""
    estimated = phi[0] @ phi[1].T
    attention = estimated / estimated.sum(-1, keepdims=True)
    matrix = _relative(attention, given.attention)
    return Errors(
        matrix,
        _relative(attention @ given.v, given.attention @ given.v),
        _relative(estimated, np.exp(given.log_kernel)),
    )


def average(size: float, draws: int = DRAWS) -> Array:
    """Return the error of attention that weighs all keys alike, for each draw."""
    return np.array([_relative(np.full(1, 1 / LENGTH), inputs(size, draw).attention) for draw in range(draws)])


def study(
    estimators: Mapping[str, Estimator], size: float, counts: Iterable[int], draws: int = DRAWS
) -> dict[tuple[str, int], Array]:
    """Return errors of each estimator and count, (draws, 3): inputs and features are drawn anew each time."""
    return {
        (name, count): np.array(
            [
                errors(given, estimate(given.q, given.k, count, draw))
                for draw in range(draws)
                for given in (inputs(size, draw),)
            ]
        )
        for name, estimate in estimators.items()
        for count in counts
    }


def mean_and_error(values: Array) -> tuple[float, float]:
    """Return the mean over draws and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


@cache
def library_study(size: float) -> dict[tuple[str, int], Array]:
    """Return the study of the library's own estimators, once for the check and the figure."""
    return study({**PAPER, **OURS}, size, COUNTS)


def order(name: str, smaller: Array, larger: Array) -> Measured:
    """Judge whether one error is smaller than another of the same draws."""
    apart = np.log(smaller) - np.log(larger)
    mean, error = mean_and_error(apart)
    return Measured("paired draws", f"{name}: z", mean / error if error else math.nan, SIGMAS)


SIGMAS = -4.0
"""How many standard errors below zero a difference must be."""


def orders(found: Mapping[float, Mapping[tuple[str, int], Array]], counts: Iterable[int]) -> list[Measured]:
    """Judge the orders that are claimed."""
    small, large = ({key: value[:, 0] for key, value in found[size].items()} for size in SIZES)
    plain, measured = average(SIZES[1], len(next(iter(large.values())))), []
    for m in counts:
        claims = (
            ("σ = ½: trigonometric, orthogonal < iid", small, "trigonometric, orthogonal", "trigonometric, iid"),
            ("σ = ½: trigonometric < positive, orthogonal", small, "trigonometric, orthogonal", "positive, orthogonal"),
            ("σ = ½: FAVOR++, antithetic < positive", small, "FAVOR++, antithetic", "positive, orthogonal"),
            ("σ = 1: positive < trigonometric, iid", large, "positive, iid", "trigonometric, iid"),
            ("σ = 1: positive < trigonometric, orthogonal", large, "positive, orthogonal", "trigonometric, orthogonal"),
        )
        measured += [order(f"{name}, m = {m}", of[one, m], of[other, m]) for name, of, one, other in claims]
        best = min((name for name, count in large if count == m), key=lambda name: float(np.mean(large[name, m])))
        measured.append(order(f"σ = 1: plain average < the best ({best}), m = {m}", plain, large[best, m]))
    return measured


def kernel_errors(draws: int = 200, count: int = 64) -> list[Measured]:
    """Compare mean squared errors of kernels at σ = ½ with those of `rfkernels.variance`, in standard errors."""
    given = inputs(SIZES[0], 0)
    q, k = given.q[:32], given.k[:256]
    exact, scale = np.exp(given.log_kernel[:32, :256]), 1 / math.sqrt(DIM)
    measured = []
    for name in PAPER:
        feature_map, sampler = name.split(", ")
        relative = variance.relative(
            feature_map, q[:, None, :], k[None, :, :], count=count, sampler=sampler, scale=scale
        )
        predicted = np.sum(exact**2 * relative) / np.sum(exact**2)
        phis = (PAPER[name](q, k, count, seed) for seed in range(draws))
        found = np.array([_relative(phi[0] @ phi[1].T, exact) ** 2 for phi in phis])
        mean, error = mean_and_error(found)
        measured.append(Measured("draws", f"kernel, {name}: |z| against variance", abs(mean - predicted) / error, 6.0))
    return measured


def findings(found: Mapping[float, Mapping[tuple[str, int], Array]], counts: Sequence[int]) -> tuple[str, ...]:
    """Say what came out."""
    said = []
    for size in SIZES:
        mean, error = mean_and_error(average(size))
        said.append(f"σ = {size:g}, plain average: {mean:.3f} ± {error:.3f}.")
        for name in dict.fromkeys(key[0] for key in found[size]):
            parts = []
            for count in counts:
                mean, error = mean_and_error(found[size][name, count][:, 0])
                parts.append(f"{mean:.3g} ± {error:.2g} (m = {count})")
            said.append(f"σ = {size:g}, {name}: {', '.join(parts)}.")
    return tuple(said)


def check(
    estimators: Mapping[str, Estimator] | None = None, counts: Sequence[int] = COUNTS, draws: int = DRAWS
) -> Verdict:
    """Run the study.

    Parameters
    ----------
    estimators : mapping of str to callable, optional
        To take for those of the library by the same names.
    counts : sequence of int, optional
        Numbers of features.
    draws : int, optional
        Draws of inputs and features.
    """
    if estimators is None and tuple(counts) == COUNTS and draws == DRAWS:
        found = {size: library_study(size) for size in SIZES}
    else:
        chosen = {**PAPER, **OURS, **(estimators or {})}
        found = {size: study(chosen, size, counts, draws) for size in SIZES}
    return Verdict((*orders(found, counts), *kernel_errors()), findings(found, counts))


def figure() -> Figure:
    """Draw errors against the number of features, with standard errors over draws."""
    drawn_figure = Figure(figsize=(9, 4), layout="constrained")
    axes = drawn_figure.subplots(1, 2)
    for axis, size in zip(axes, SIZES, strict=True):
        found = library_study(size)
        for i, name in enumerate({**PAPER, **OURS}):
            points = [mean_and_error(found[name, count][:, 0]) for count in COUNTS]
            means, bars = zip(*points, strict=True)
            axis.errorbar(COUNTS, means, bars, color=f"C{i}", marker="o", markersize=3, capsize=3, label=name)
        axis.axhline(float(np.mean(average(size))), color="black", linestyle="--", label="plain average")
        axis.set(xscale="log", yscale="log", title=f"σ = {size:g}: error of the attention matrix", xlabel="features m")
    axes[0].legend(fontsize="x-small")
    return drawn_figure


def table(count: int, draws: int) -> str:
    """Return the errors of every estimator in Markdown."""
    lines = [
        f"L = {LENGTH}, d = {DIM}, m = {count}, {draws} draws: mean ± standard error of relative errors.",
        "",
        "| estimator | matrix, σ = ½ | output, σ = ½ | matrix, σ = 1 | output, σ = 1 | median of matrix, σ = 1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    plain = [mean_and_error(average(size, draws)) for size in SIZES]
    cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in plain]
    lines.append(f"| plain average | {cells[0]} | | {cells[1]} | | {plain[1][0]:.3f} |")
    for name, estimate in EVERY.items():
        row = [name]
        for size in SIZES:
            found = study({name: estimate}, size, (count,), draws)[name, count]
            row += ["{:.3g} ± {:.2g}".format(*mean_and_error(found[:, i])) for i in range(2)]
        lines.append("| " + " | ".join([*row, f"{np.median(found[:, 0]):.3g}"]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of every estimator."""
    parser = argparse.ArgumentParser(prog="python -m theory.approximation", description=main.__doc__)
    parser.add_argument("--count", type=int, default=128, help="feature columns (default: 128)")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"draws (default: {DRAWS})")
    given = parser.parse_args(arguments)
    print(table(given.count, given.draws))
    return 0


RESULT = Result("approximation", STATEMENT, CITATION, check, figure)

if __name__ == "__main__":
    sys.exit(main())
