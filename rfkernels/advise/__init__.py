"""A verdict before you start: which estimator, if any, suits given queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rfkernels.advise._measure import Plan, measure, redrawn
from rfkernels.advise._problem import check_settings, pose
from rfkernels.advise._report import Report, Row, Verdict, decide

__all__ = ["Report", "Row", "Verdict", "advise"]


def advise(
    q: Any,
    k: Any,
    v: Any = None,
    *,
    causal: bool = False,
    length: int | None = None,
    counts: tuple[int, ...] = (64, 256, 1024),
    windows: tuple[int | None, ...] = (None, 32, 128),
    tolerance: float = 0.1,
    scale: float | None = None,
    sample: int = 256,
    rng: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Measure how well, how fast and in what memory each estimator computes attention of such arrays.

    Every estimator runs on all heads, queries and keys. Errors are |output − exact| / |exact|, in Frobenius norms over
    a sample of the queries. Parameters are fitted to the first half of the queries and keys, and errors measured on
    queries of the second half (of long arrays, to every second position, or third, so that no more than 2,048 are
    left, as the call to paste says); only the groups of a bidirectional pass are made from the keys that are attended,
    as they are in use. Beside the errors stands, of positive features without heavy keys, what closed forms predict
    from a few queries (as `rfkernels.variance.attention_error`). Times are those of this machine's CPU, scaled to
    `length` from the arrays given: linearly, and as the square for exact attention.

    The estimators are a plain average of the values; exact weights within a window and nothing beyond; positive
    features, drawn and fitted ("affine" and "tilted"), without and with 16 heavy keys; and groups of keys, without and
    with heavy keys. All but the first two take a count, and all but the first a window. Of those within tolerance that
    are faster than exact attention the fastest is named, or exact attention if there is none, or a plain average if
    that is within tolerance. Errors of random features are those of one draw;
    the report adds those of two other draws of what it names.

    Parameters
    ----------
    q : array, shape (*batch, length, dim)
        Queries, as a model gives them to its attention; batch axes are heads. Arrays of JAX are moved to the host.
    k : array, shape (*batch, keys, dim)
        Keys. There is one set of features for each of their batch axes.
    v : array, shape (*batch, keys, width), optional
        Values. Without them the weights A themselves are judged, by |Â − A| / |A|: random values of ±1, `dim` of them
        for each key, make that the error of the output to within a few percent.
    causal : bool, default False
        Whether query t sees keys up to t only; the last query is aligned with the last key.
    length : int, optional
        How many queries times and memory are for; that of q by default. There are keys in proportion. Errors are
        always those of the arrays given.
    counts : tuple of int, default (64, 256, 1024)
        Feature columns to try; even. There are half as many groups, as one keeps a key besides a value, and none of
        fewer than four keys on average.
    windows : tuple of int or None, default (None, 32, 128)
        Windows to try, None for no window. One that reaches all keys is left out: it is exact attention.
    tolerance : float, default 0.1
        The error that is accepted.
    scale : float, optional
        Multiplies q·k; 1/√dim by default.
    sample : int, default 256
        At most how many queries of each head are measured.
    rng : int, default 0
        Seed of the features, of the queries measured, and of the values that stand in for missing ones.
    progress : callable ``(what, done, total) -> None``, optional
        Called before each step, and at the end.

    Returns
    -------
    Report
        ``print(report)`` for the text, ``report.verdict.call`` for the call to paste, ``report.to_json()``.

    Raises
    ------
    TypeError, ValueError
        If arrays do not fit together, a value is not finite, there are no heads or fewer than two queries or keys,
        arrays are of width 0, or another argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from rfkernels.advise import advise
    >>> q, k, v = np.random.default_rng(0).normal(size=(3, 4, 256, 32)) / 10
    >>> advise(q, k, v + 1).verdict.kind
    'average'
    """
    check_settings(counts, windows, tolerance)
    problem = pose(q, k, v, causal=causal, length=length, scale=scale, sample=sample, rng=rng)
    kept = tuple(w for w in windows if w is None or w < problem.sizes[1])
    measured = measure(problem, Plan(tuple(counts), kept, sample), progress)
    exact, rows = measured.exact, measured.rows
    verdict = decide(rows, exact, [row.worst for row in rows], tolerance)
    heads, (queries, keys) = tuple(np.ndindex(*problem.batch)), problem.sizes
    alone = tuple(decide(rows, exact, [row.errors[i] for row in rows], tolerance) for i in range(len(heads)))
    return Report(
        heads=heads,
        queries=queries,
        keys=keys,
        dim=problem.q.shape[-1],
        width=problem.v.shape[-1],
        causal=problem.causal,
        length=round(queries * problem.growth),
        sample=len(measured.positions),
        probes=problem.probes,
        tolerance=tolerance,
        exact=exact,
        rows=tuple(rows),
        verdicts=alone,
        verdict=verdict,
        redraws=redrawn(problem, measured, verdict.label),
    )
