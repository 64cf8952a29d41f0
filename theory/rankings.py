"""Which estimators of softmax are better, and by how much: ``python -m theory.rankings [c1|c2|c3]``.

Three tables, of which the first is exact and the others are of random data sets that are stated in full.

c1: log10 of the relative mean squared error of 256 columns for a typical pair, x·y = 0 and |x|² = |y|² = τ √d. Closed
    forms throughout. Trigonometric, hyperbolic and antithetic features have two columns for each row (128 rows);
    orthogonal rows come in blocks of d with independent norms, simplex rows likewise at the cosine −1/(d − 1). OPRF are
    the features of FAVOR++ with the ρ that is best for the pair itself, φ = |x + y|²/d; "anti+ort" are 128 pairs ±w of
    orthogonal rows. An n-fold number of columns lowers the log10 of an independent sampler by log10 n exactly.
c2: log10 of the relative variance per column, its geometric mean over all pairs of queries and keys of `heads`:
    x = m_x + Λ^½ g with Λ ∝ diag(e^(−l/4)), l < d, the same for queries and keys, and scaled to tr Λ² = τ², so that
    centred logits have the standard deviation τ; |m_x|² = |m_y|² = tr Λ, m_x ∝ u + v_x and m_y ∝ u + v_y with standard
    normal u, v_x and v_y, so that the cosine of the means is about ½. Closed forms given the data, of independent rows
    or independent pairs ±w.
c3: the relative Frobenius error of the row-normalised attention matrix on such data of d = 64 and length 192, the
    median of draws.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import rfkernels as rfk
from rfkernels import fitting, variance
from rfkernels.fitting import statistics

Array = NDArray[np.float64]

COLUMNS = 256
LENGTH = 192

# c1: a typical pair, in closed form -----------------------------------------------------------------------------------


COUPLINGS = {"iid": "iid", "ort": "orthogonal", "sim": "simplex", "anti+ort": "antithetic"}

TYPICAL_ESTIMATORS = {
    "trig": ("trigonometric", ["iid"]),
    "PRF": ("positive", ["iid", "ort", "sim"]),
    "hyp": ("hyperbolic", ["iid", "ort"]),
    "OPRF": ("positive", ["iid", "ort", "sim", "anti+ort"]),
}


def typical(dim: int, tau: float, columns: int = COLUMNS) -> dict[str, float]:
    """Return log10 of the relative mean squared error of each estimator for the typical pair."""
    x, y = math.sqrt(tau * math.sqrt(dim)) * np.eye(dim)[:2]
    errors = {}
    for name, (feature_map, couplings) in TYPICAL_ESTIMATORS.items():
        proposal = variance.optimal_proposal(x[None], y[None]) if name == "OPRF" else None
        for coupling in couplings:
            options: dict[str, Any] = {
                "count": columns,
                "sampler": COUPLINGS[coupling],
                "proposal": proposal,
                "log": True,
            }
            errors[f"{name}-{coupling}"] = float(variance.relative(feature_map, x, y, **options) / math.log(10))
    return errors


TYPICAL = [
    *((16, tau) for tau in (0.25, 0.5, 1, 2, 4)),
    *((64, tau) for tau in (0.25, 0.5, 1, 2, 4)),
    *((128, tau) for tau in (0.25, 1, 2, 4)),
]


# c2: data like those of trained heads ---------------------------------------------------------------------------------


class Heads(NamedTuple):
    """Queries and keys of a head, scaled: (length, dim) each."""

    q: Array
    k: Array


def heads(dim: int, tau: float, seed: int, length: int = LENGTH) -> Heads:
    """Draw the data of c2 and c3."""
    rng = np.random.default_rng(seed)
    spectrum = np.exp(-np.arange(dim) / 4)
    spectrum *= tau / np.sqrt(np.sum(spectrum**2))
    centred = rng.standard_normal((2, length, dim)) * np.sqrt(spectrum)
    shared, *own = rng.standard_normal((3, dim))
    means = [math.sqrt(spectrum.sum()) * (shared + v) / np.linalg.norm(shared + v) for v in own]
    return Heads(centred[0] + means[0], centred[1] + means[1])


ESTIMATORS = {
    "PRF": None,
    "OPRF": "isotropic",
    "ADERF": "asymmetric",
    "SADERF": "balanced",
    "SDERF": "symmetric",
    "cPRF": "centred",
    "cOPRF": "centred_isotropic",
    "cFull": "affine",
}
"""The methods of `rfkernels.fitting` by the names of the table."""

TINY = 1e-9
"""A prior that leaves T as the data have it."""


def pair_terms(data: Heads, method: str | None) -> tuple[Array, Array]:
    """Return log E X²/K² and log E X X₋/K² of all pairs, X₋ being the estimate of the row −w."""
    side, rho, axes = rfk.Side(), np.ones(data.q.shape[-1]), np.eye(data.q.shape[-1])
    key = side
    if method is not None:
        given = fitting.moments(data.q), fitting.moments(data.k)
        chosen = fitting.choose(*given, method=method, scale=1.0, prior=TINY)
        variances, axes = np.linalg.eigh(chosen.proposal.root @ chosen.proposal.root.T)
        side, key, rho = chosen.query, chosen.key, 2 * variances - 1
    x, y = (_sent(given, points) @ axes for given, points in ((side, data.q), (key, data.k)))
    volume = float(np.sum(np.log((1 + rho) / (2 * np.sqrt(rho)))))
    return volume + sums_of_squares(x / np.sqrt(rho), y / np.sqrt(rho)), volume - sums_of_squares(x, y)


def sums_of_squares(x: Array, y: Array) -> Array:
    """Return |x_i + y_j|² of all pairs."""
    squares: Array = np.sum(x**2, -1)[:, None] + 2 * x @ y.T + np.sum(y**2, -1)
    return squares


def _sent(side: rfk.Side, points: Array) -> Array:
    apart = points if side.centre is None else points - side.centre
    sent: Array = apart if side.matrix is None else apart @ side.matrix.T
    return sent


def per_column(data: Heads) -> dict[str, float]:
    """Return log10 of the relative variance per column, as geometric means over pairs."""
    apart = sums_of_squares(data.q, -data.k)
    logs = {"trig": apart + 2 * np.log(-np.expm1(-apart))}  # 4 sinh²(δ/2)
    for name, method in ESTIMATORS.items():
        logs[name] = _log_expm1(pair_terms(data, method)[0])
    log, crossed = pair_terms(data, "affine")
    logs["cFull+anti"] = log + np.log(1 + np.exp(crossed - log) - 2 * np.exp(-log))
    return {name: float(np.mean(value) / math.log(10)) for name, value in logs.items()}


def _log_expm1(x: Array) -> Array:
    logs: Array = x + np.log(-np.expm1(-x))
    return logs


ANISOTROPIC = [(16, 1.0), (64, 0.5), (64, 1.0), (64, 2.0), (64, 4.0), (128, 1.0)]


# c3: attention --------------------------------------------------------------------------------------------------------


def attention_estimators() -> dict[str, Callable[[Heads, int, int], rfk.Features]]:
    """Return the estimators of c3: features from data, columns and a seed."""

    def plain(data: Heads, columns: int, seed: int) -> rfk.Features:
        return rfk.draw("positive", data.q.shape[-1], columns, scale=1.0, rng=seed)

    def fitted(method: str, sampler: str) -> Callable[[Heads, int, int], rfk.Features]:
        return lambda data, columns, seed: fitting.fit(
            *data, columns, method=method, sampler=sampler, scale=1.0, prior=TINY, rng=seed
        )

    def tilted(sharpness: float) -> Callable[[Heads, int, int], rfk.Features]:
        def features(data: Heads, columns: int, seed: int) -> rfk.Features:
            of_q, of_k, cross = statistics.attended(*data, sharpness)
            chosen = fitting.choose(of_q, of_k, scale=1.0, prior=TINY, cross=cross)
            rows = rfk.draw("positive", data.q.shape[-1], columns, sampler="antithetic", rng=seed).projection
            return fitting.bind(chosen, rows)

        return features

    return {
        "PRF-ort": plain,
        "OPRF-ort": fitted("isotropic", "orthogonal"),
        "SDERF-ort": fitted("symmetric", "orthogonal"),
        "cPRF+anti": fitted("centred", "antithetic"),
        "cFull-ort": fitted("affine", "orthogonal"),
        "cFull-sim": fitted("affine", "simplex"),
        "cFull+anti": fitted("affine", "antithetic"),
        "tilt1+anti": tilted(1.0),
        "tilt1.5": tilted(1.5),
    }


def attention_errors(data: Heads, columns: int, draws: int) -> dict[str, float]:
    """Return the median relative Frobenius error of the row-normalised attention matrix; that of 1/L for "uniform"."""
    exact = rfk.exact_attention(*data, np.eye(len(data.k)), scale=1.0)
    size = np.linalg.norm(exact)
    errors = {"uniform": float(np.linalg.norm(exact - 1 / len(data.k)) / size)}
    for name, features in attention_estimators().items():
        found = [np.linalg.norm(_weights(data, features(data, columns, seed)) - exact) / size for seed in range(draws)]
        errors[name] = float(np.median(found))
    return errors


def _weights(data: Heads, features: rfk.Features) -> Any:
    """Return the estimated attention matrix."""
    log_q = rfk.transform(data.q, features, side="query", log=True)[0]
    log_k = rfk.transform(data.k, features, side="key", log=True)[0]
    shift = np.max(log_k, 0)  # of each column; the largest of a row of queries is taken after it, and both cancel
    log_q = log_q + shift
    weights = np.exp(log_q - np.max(log_q, -1, keepdims=True)) @ np.exp(log_k - shift).T
    return weights / weights.sum(-1, keepdims=True)


ATTENTION = [(64, 0.5), (256, 0.5), (1024, 0.5), (64, 1.0), (256, 1.0), (1024, 1.0), (256, 2.0), (1024, 2.0)]
"""Columns and τ."""


# The command ----------------------------------------------------------------------------------------------------------


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def table(heading: Sequence[str], rows: Sequence[tuple[Sequence[str], dict[str, float]]], digits: int = 2) -> str:
    """Lay out a table: leading cells of each row, then its numbers under their names."""
    names = list(rows[0][1])
    lines = [[*heading, *names], *([*lead, *(f"{row[name]:.{digits}f}" for name in names)] for lead, row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(_line(line, widths) for line in lines)


def c1() -> str:
    """Return the first table."""
    rows = [([str(dim), f"{tau:g}", f"{2 * tau * math.sqrt(dim):.1f}"], typical(dim, tau)) for dim, tau in TYPICAL]
    return table(["d", "tau", "s"], rows)


def c2(seeds: int = 8) -> str:
    """Return the second table: for each setting the mean over data sets, and the standard deviation of one below."""
    rows: list[tuple[Sequence[str], dict[str, float]]] = []
    for dim, tau in ANISOTROPIC:
        found = [per_column(heads(dim, tau, seed)) for seed in range(seeds)]
        for label, reduce in (("", np.mean), ("±", np.std)):
            lead = [str(dim), f"{tau:g}", label]
            rows.append((lead, {name: float(reduce([one[name] for one in found])) for name in found[0]}))
    return table(["d", "tau", ""], rows)


def c3(draws: int = 30) -> str:
    """Return the third table, of the data set of seed 0 for each τ."""
    rows = [([str(n), f"{tau:g}"], attention_errors(heads(64, tau, 0), n, draws)) for n, tau in ATTENTION]
    return table(["r", "tau"], rows, digits=3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables that are named, all by default."""
    tables = {"c1": c1, "c2": c2, "c3": c3}
    parser = argparse.ArgumentParser(prog="python -m theory.rankings", description="Print tables of rankings.")
    parser.add_argument("tables", nargs="*", choices=[*tables, []], help="c1 (exact), c2 (variances), c3 (attention)")
    for name in parser.parse_args(arguments).tables or tables:
        print(f"{name}\n{tables[name]()}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
