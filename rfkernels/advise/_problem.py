"""What is asked: the arrays, which of their queries are measured, and the exact answer for those."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels import kernels, partials
from rfkernels._checks import check_flags, check_qkv, check_scale, check_window, is_number, require_finite_arrays
from rfkernels.exact import exact_block

_PAIRS = 1 << 22
"""How many weights are held at a time."""

_FITTED = 2048
"""To how many queries and keys, at most, parameters are fitted."""


class Problem(NamedTuple):
    """Arrays on the host, and how they are attended.

    `growth` is the user's length divided by that of the queries given, `probes` whether values stand in for missing
    ones, `seed` the integer that features are drawn from.
    """

    q: Any
    k: Any
    v: Any
    causal: bool
    scale: float | None
    growth: float
    probes: bool
    seed: int

    @property
    def batch(self) -> tuple[int, ...]:
        """Batch axes of the output: an element of them is a head."""
        return np.broadcast_shapes(self.q.shape[:-2], self.k.shape[:-2], self.v.shape[:-2])

    @property
    def sizes(self) -> tuple[int, int]:
        """How many queries and how many keys there are."""
        return self.q.shape[-2], self.k.shape[-2]


def pose(
    q: Any, k: Any, v: Any, *, causal: bool, length: int | None, scale: float | None, sample: int, rng: int
) -> Problem:
    """Check what was given and move it to the host; values of ±1 stand in for those that are missing."""
    for name, value, least in (("length", length, 1), ("sample", sample, 1), ("rng", rng, 0)):
        wrong = isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least
        if wrong and not (name == "length" and value is None):
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    check_flags(causal=causal)
    check_qkv(q, k, k if v is None else v)
    check_scale(scale)
    arrays = {"q": q, "k": k} | ({} if v is None else {"v": v})
    require_finite_arrays(**arrays)
    queries, keys = q.shape[-2], k.shape[-2]
    if queries < 2 or keys < 2:
        raise ValueError(f"there must be at least two queries and two keys, got q {q.shape} and k {k.shape}")
    if causal and keys < queries:
        raise ValueError(f"causal=True needs a key for every query, got q {q.shape} and k {k.shape}")
    for name, x in arrays.items():
        if x.shape[-1] == 0:
            raise ValueError(f"{name} must be at least one wide, got shape {x.shape}")
    host = {name: np.asarray(x) for name, x in arrays.items()}
    values = host.get("v")
    if values is None:
        signs = np.random.default_rng(rng).integers(0, 2, host["k"].shape)
        values = (2 * signs - 1).astype(host["k"].dtype)
    growth = 1.0 if length is None else length / queries
    problem = Problem(host["q"], host["k"], values, bool(causal), scale, growth, v is None, int(rng))
    if math.prod(problem.batch) == 0:
        raise ValueError(f"there must be at least one head, got q {q.shape} and k {k.shape}")
    return problem


def check_settings(counts: Any, windows: Any, tolerance: Any) -> None:
    """Require counts, windows and a tolerance that can be used."""
    for name, given in (("counts", counts), ("windows", windows)):
        if not isinstance(given, tuple | list):
            raise TypeError(f"{name} must be a tuple, got {type(given).__name__}")
        if not given:
            raise ValueError(f"{name} must have at least one entry, got {given!r}")
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 2 or count % 2:
            raise ValueError(f"counts must be positive and even, for antithetic pairs of rows, got {count!r}")
    for window in windows:
        check_window(window)
    if not (is_number(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance must be a positive finite number, got {tolerance!r}")


def first_half(problem: Problem) -> tuple[Any, Any]:
    """Return the queries and keys that parameters are made from; errors are those of other queries."""
    (queries, keys), (q_step, k_step) = problem.sizes, strides(problem)
    return problem.q[..., : queries // 2 : q_step, :], problem.k[..., : keys // 2 : k_step, :]


def strides(problem: Problem) -> tuple[int, int]:
    """Return every how many queries and keys one is taken: "tilted" fits take the square of their number in time."""
    queries, keys = (max(1, -(-(size // 2) // _FITTED)) for size in problem.sizes)
    return queries, keys


def short(problem: Problem, positions: int) -> Problem:
    """Return the problem of the first positions alone."""
    q, k, v = (x[..., :positions, :] for x in (problem.q, problem.k, problem.v))
    return problem._replace(q=q, k=k, v=v)


def chosen_rows(problem: Problem, sample: int) -> Any:
    """Return positions of at most `sample` queries of the second half, in order."""
    queries = problem.sizes[0]
    held = np.arange(queries // 2, queries)
    return np.sort(np.random.default_rng(problem.seed).choice(held, min(sample, len(held)), replace=False))


def seen_at(problem: Problem, rows: Any) -> Any:
    """Return the position of each query among the keys."""
    queries, keys = problem.sizes
    return rows + (keys - queries if problem.causal else 0)


def root_scale(problem: Problem) -> float:
    """Return the root of what multiplies q·k."""
    return math.sqrt(1 / math.sqrt(problem.q.shape[-1]) if problem.scale is None else problem.scale)


def head_arrays(problem: Problem, head: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Return q, k and v of a head in float64."""
    arrays = (problem.q, problem.k, problem.v)
    q, k, v = (np.broadcast_to(x, (*problem.batch, *x.shape[-2:]))[head].astype(np.float64) for x in arrays)
    return q, k, v


def in_units(x: Any) -> Any:
    """Return numbers divided by the largest of them, so that no square leaves the range of floats."""
    unit = np.max(np.abs(x))
    return x / unit if unit > 0 else x


def exact_rows(problem: Problem, rows: Any) -> Any:
    """Return exact outputs of some queries, who see all their keys, (*batch, rows, width), in float64."""
    keys, root = problem.sizes[1], root_scale(problem)
    step = max(1, _PAIRS // keys)
    found = np.empty((*problem.batch, len(rows), problem.v.shape[-1]))
    for head in np.ndindex(*problem.batch):
        q, k, v = head_arrays(problem, head)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            allowed = np.ones((len(some), keys), bool)
            if problem.causal:
                allowed = np.arange(keys) <= seen_at(problem, some)[:, None]
            part = exact_block(np, q[some] * root, k * root, v, allowed, kernels.EXPONENTIAL)
            found[(*head, slice(start, start + step))] = partials.normalize(np, part)
    return found


def relative_errors(problem: Problem, out: Any, exact: Any) -> tuple[float, ...]:
    """Return |out − exact| / |exact| of each head, in Frobenius norms over its rows.

    It is infinite if only exact is zero, or `out` not finite.
    """
    out = out.astype(np.float64)
    finite = np.isfinite(out).all((-2, -1))
    out = np.where(finite[..., None, None], out, 0)
    unit = np.maximum(*(np.max(np.abs(x), (-2, -1), keepdims=True) for x in (out, exact)))
    out, exact = (x / np.where(unit > 0, unit, 1) for x in (out, exact))  # so that no square leaves the range
    apart, size = (np.linalg.norm(x, axis=(-2, -1)) for x in (out - exact, exact))
    pairs = zip(np.where(finite, apart, np.inf).ravel(), size.ravel(), strict=True)
    return tuple(float(a / s) if s > 0 else 0.0 if a == 0 else math.inf for a, s in pairs)
