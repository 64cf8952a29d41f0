"""The law of a single row, judged by statistics whose distribution is known exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from rfkernels import samplers
from rfkernels._checks import generator_of
from rfkernels.samplers import Rows, Sampler
from rfkernels.testing.grids import Array
from rfkernels.testing.sampled import FALSE_ALARM, check_probability

LAWS = ("normal", "sphere", "cauchy", "laplace")


class _Finding(NamedTuple):
    """A statistic, and the probability that it comes out as far off if the claim is true."""

    what: str
    p_value: float


def assert_marginal_law(
    sampler: str | Sampler | Rows,
    dim: int,
    *,
    count: int = 20_000,
    rows: int | None = None,
    false_alarm: float = FALSE_ALARM,
    rng: Any = 0,
) -> None:
    """Assert that a row by itself has the law that its sampler claims, N(0, I) as a rule, however rows are coupled.

    Of each of `count` independent calls of the sampler one row is kept, of every position in turn, so that the rows
    which are judged are independent. Along the axes, two diagonals and as many random directions e as there are axes,
    √n times the mean of w·e is then exactly standard normal, n times that of (w·e)² exactly χ² of n degrees of freedom,
    and w·e and |w| are put to Kolmogorov–Smirnov tests; n times the squared norm of the mean of w is exactly χ² of dim
    degrees and Σ |w|² exactly χ² of n dim degrees, and the extreme singular values of all rows are held to the bound √n
    ± (√dim + t), exceeded with probability exp(−t²/2). Each statistic gets an equal share of `false_alarm`, which
    bounds the probability that a correct sampler fails, without any approximation.

    Parameters
    ----------
    sampler : str, Sampler or callable
        What is judged, as in `rfkernels.draw`; a Sampler by the law that it states.
    dim : int
        The dimension of rows.
    count : int, default 20000
        Independent calls. A mean of w·e that is off by 10 / √count along one of these directions is noticed all but
        surely; along any other, one off by (6 + 3 dim^¼) / √count; and rows that are too long by a factor that is off
        by 7 / √(count dim).
    rows : int, optional
        Rows of each call: dim, or dim + 1 where dim is odd, by default, which is a block of orthogonal rows.
    false_alarm : float, default 2e-9
        The bound.
    rng : int, numpy.random.SeedSequence or numpy.random.Generator, default 0
        Source of randomness.

    Raises
    ------
    AssertionError
        If a statistic is too improbable; the message gives the most improbable one.
    ValueError
        If the sampler's law is none that `assert_law_of_rows` knows, `dim` or `rows` is below 1, or `count` less than
        `dim`.
    """
    sampler = samplers.resolve(sampler)
    if sampler.law not in LAWS:
        raise ValueError(f"law of the sampler must be one of {', '.join(LAWS)} to be judged, got {sampler.law!r}")
    rows = dim + dim % 2 if rows is None else rows
    if dim < 1 or rows < 1:
        raise ValueError(f"dim and rows must be at least 1, got {dim} and {rows}")
    if count < dim:
        raise ValueError(f"count must be at least dim = {dim}, got {count}")
    generator = generator_of(rng)
    drawn = np.stack(
        [np.array(sampler(generator.standard_normal, rows, dim)[i % rows], np.float64) for i in range(count)]
    )
    what = f"rows of {sampler.name!r} in dimension {dim}"
    assert_law_of_rows(drawn, sampler.law, false_alarm=false_alarm, rng=generator, what=what)


def assert_law_of_rows(
    rows: Any, law: str = "normal", *, false_alarm: float = FALSE_ALARM, rng: Any = 0, what: str = "rows"
) -> None:
    """Assert that independent rows have the law that is claimed, as `assert_marginal_law` does of rows that it draws.

    Parameters
    ----------
    rows : array, shape (count, dim)
        Rows that are independent of each other, such as one of each block.
    law : {"normal", "sphere", "cauchy", "laplace"}, default "normal"
        N(0, I); uniform directions and the norm √dim; or independent coordinates of these standard laws.
    false_alarm : float, default 2e-9
        Bound on the probability that rows of this law fail.
    rng : int, numpy.random.SeedSequence or numpy.random.Generator, default 0
        Source of the norms that rows on a sphere are given.
    what : str, default "rows"
        What rows are called in messages.

    Raises
    ------
    AssertionError
        If a statistic is too improbable, where the message gives the most improbable one; or a row is not finite.
    ValueError
        If the law is another, there are fewer rows than dimensions, or `false_alarm` is no probability.
    """
    if law not in LAWS:
        raise ValueError(f"law must be one of {', '.join(LAWS)} to be judged, got {law!r}")
    drawn = np.asarray(rows, np.float64)
    if drawn.ndim != 2 or not 0 < drawn.shape[1] <= len(drawn):
        raise ValueError(f"rows must have shape (count, dim) with count at least dim, got {drawn.shape}")
    check_probability("false_alarm", false_alarm)
    finite = np.isfinite(drawn).all(1)
    if not finite.all():
        raise AssertionError(f"{what} are not finite: row {np.argmin(finite)} is {drawn[np.argmin(finite)].tolist()}")
    findings = list(_findings(_normal_of(law, drawn, generator_of(rng), what)))
    worst = min(findings, key=lambda one: one.p_value)
    if not worst.p_value * len(findings) >= false_alarm:
        raise AssertionError(
            f"{what} do not have the law {law!r}: {worst.what}, which has probability {worst.p_value:.1e}; "
            f"{false_alarm:.1e} / {len(findings)} was to be expected"
        )


def _normal_of(law: str, rows: Array, generator: np.random.Generator, what: str) -> Array:
    """Make rows of a law normal ones: by independent χ norms, or by the distribution function of each coordinate."""
    from scipy import stats

    count, dim = rows.shape
    if law == "sphere":
        norms = np.linalg.norm(rows, axis=-1)
        if np.max(np.abs(norms / math.sqrt(dim) - 1)) > 1e-6:
            raise AssertionError(f"{what} have norms from {norms.min():.9g} to {norms.max():.9g}, not √dim")
        chi = np.linalg.norm(generator.standard_normal((count, dim)), axis=-1)
        return rows * (chi / norms)[:, None]  # type: ignore[no-any-return]
    if law == "normal":
        return rows
    levels = np.maximum(getattr(stats, law).sf(np.abs(rows)), np.finfo(np.float64).tiny)  # rows far out stay finite
    normal: Array = np.sign(rows) * stats.norm.isf(levels)
    return normal


def _findings(rows: Array) -> Iterator[_Finding]:
    """What independent N(0, I) rows are judged by."""
    from scipy import stats

    count, dim = rows.shape
    diagonals = np.stack([np.ones(dim), (-1.0) ** np.arange(dim)]) / math.sqrt(dim)
    others = np.random.default_rng(12345).standard_normal((dim, dim))
    directions = {f"axis {i}": e for i, e in enumerate(np.eye(dim))}
    directions |= {"(1, 1, …)/√dim": diagonals[0], "(1, −1, …)/√dim": diagonals[1]}
    directions |= {f"direction {i}": e / np.linalg.norm(e) for i, e in enumerate(others)}
    for name, direction in directions.items():
        along = rows @ direction
        mean, square = float(along.mean()), float((along**2).mean())
        yield _Finding(f"the mean along {name} is {mean:.3g}", 2 * float(stats.norm.sf(math.sqrt(count) * abs(mean))))
        yield _Finding(f"the mean square along {name} is {square:.4g}", _by_chi2(count * square, count))
        found = stats.kstest(along, stats.norm.cdf)
        yield _Finding(f"the distribution along {name} is {found.statistic:.3g} from normal", float(found.pvalue))
    mean = float(np.linalg.norm(rows.mean(0)))
    yield _Finding(f"the mean has norm {mean:.3g}", float(stats.chi2.sf(count * mean**2, dim)))
    total = float(np.sum(rows**2))
    yield _Finding(f"the mean of |w|²/dim is {total / rows.size:.5g}", _by_chi2(total, rows.size))
    found = stats.kstest(np.linalg.norm(rows, axis=-1), stats.chi(dim).cdf)
    yield _Finding(f"the distribution of norms is {found.statistic:.3g} from χ of {dim} degrees", float(found.pvalue))
    values = np.linalg.svd(rows, compute_uv=False)
    high, low = float(values[0]), float(values[-1])
    excess = max(high - math.sqrt(count), math.sqrt(count) - low) - math.sqrt(dim)
    what = f"the singular values of the rows run from {low:.4g} to {high:.4g}, around √n = {math.sqrt(count):.4g}"
    yield _Finding(what, min(1.0, 2 * math.exp(-(max(excess, 0.0) ** 2) / 2)))


def _by_chi2(value: float, freedom: int) -> float:
    """Return the probability that χ² is as far off, to either side."""
    from scipy import stats

    return min(1.0, 2 * float(min(stats.chi2.cdf(value, freedom), stats.chi2.sf(value, freedom))))
