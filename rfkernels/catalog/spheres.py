"""What groups weigh by a kernel of a distance if their items lie on spheres, namespace first: NumPy's and JAX's.

Tables over squared distances have so many nodes in each octave, evenly spaced: those of a number are its first bits.
Between nodes they are linear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

GUESSED = 8
"""Nodes in an octave of squared distances."""

LEVELS = 16
"""Spreads of groups that guesses are made for."""

APART = 2.0**8
"""How many times as wide or narrow as what the middle item lies in groups may be for guesses to tell."""

COORDINATES = 24
"""Coordinates on a sphere that guesses are sums over."""

SPREADS = (0.25, 0.15), (0.6, 0.2), (1.0, 0.3), (1.4, 0.2), (1.75, 0.15)
"""Squared distances from the mean that items of a group have, in its spread, and the share of each.

With one alone kernels that end at some distance miss groups that lie at its edge.
"""

LINE = 1.5
"""Dimensions below which items are taken to lie on a line, where a sphere has only two ends."""

ON_LINES, APART_ON_LINES, SHARE_ON_LINES = 14, 0.15, 0.3
"""Distances from the mean that are tried on lines besides those of `SPREADS`, how far apart in deviations, and what
share of the items is taken to lie there: narrow kernels would be missed between the others. Of evenly spread items none
is more than √3 deviations out.
"""

LEAST_HALF = 0.05
"""The least of half the dimension of a sphere: in one dimension there are only two ends."""

LEAST_EDGE = 2.0**-20
"""The least number of deviations that items lie apart: where there is one alone, they do not."""

LOCAL = 0.65
"""What part of their dimensions items have where they lie near each other: nearest ones are nearer than all would tell.

With all of them intervals of sharp kernels hold too seldom, with half of them standard errors are too large: what share
of intervals holds `python benchmarks/catalog.py densities` prints.
"""

DROP = 10.0
"""What the log of a kernel where that is 0 falls by in each octave of the squared distance from where it is not: items
that codes take to be there may be elsewhere, and must be looked at.
"""


def dimension(xp: Any, shape: Any) -> Any:
    """Return in how many dimensions, in effect, items lie near each other: a part of (tr Σ)² / tr Σ², at least 1."""
    square = xp.sum(shape * shape)
    some = square > 0
    return xp.where(some, xp.maximum(LOCAL * xp.trace(shape) ** 2 / xp.where(some, square, 1), 1), 1)


def edge(xp: Any, dim: Any, items: Any) -> Any:
    """Return how many deviations from the centre the farthest of so many items lies on a sphere: less than √dim."""
    part = -xp.expm1(-2 * xp.log(items) / dim)
    return xp.sqrt(dim * xp.minimum(part, 1 - 2.0**-40))


def nodes(xp: Any, first: Any, octaves: int, steps: int) -> Any:
    """Return where tables have nodes, the end among them."""
    place = xp.arange(octaves * steps + 1)
    return xp.ldexp(1 + place % steps / steps, first + place // steps)


def placed(xp: Any, x: Any, first: Any, steps: int) -> tuple[Any, Any]:
    """Return the number of the node before each of some numbers, and that node."""
    part, exponent = xp.frexp(x)
    within = xp.floor((2 * part - 1) * steps)
    return (exponent - 1 - first) * steps + within.astype(exponent.dtype), xp.ldexp(1 + within / steps, exponent - 1)


def middle_spread(xp: Any, spread: Any, count: Any) -> Any:
    """Return that of the group that the middle item lies in, of those that have any, where there is a group."""
    order = xp.argsort(spread)
    before = xp.cumsum(xp.where(spread > 0, count, 0)[order])
    return spread[order][xp.searchsorted(before, before[-1] / 2)]


def ends(xp: Any, spread: Any, count: Any) -> tuple[Any, Any, Any]:
    """Return between which spreads guesses are told apart of groups of so many items, and the largest of all.

    Those of most items matter, from what the middle one has: one far item makes its group as wide as it is far.
    """
    spread, middle = xp.where(count > 0, spread, 0), middle_spread(xp, spread, count)
    least, most = xp.min(xp.where(spread > 0, spread, xp.inf)), xp.max(spread)
    high = xp.minimum(most, APART * middle)
    return xp.maximum(xp.minimum(least, high / 2), middle / APART), high, most


def ladder(xp: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """Return the log of the least of LEVELS spreads, and that of what each is of the one before it."""
    return xp.log(low), xp.log(high / low) / (LEVELS - 1)


def levels(xp: Any, spread: Any, level: Any, step: Any) -> tuple[Any, Any]:
    """Return between which of the spreads some lie, and how far from the lesser one."""
    at = xp.clip((xp.log(spread) - level) / step, 0, LEVELS - 1)
    at = xp.where(at == at, at, LEVELS - 1)  # spreads may be infinite, as all levels then are
    lesser = xp.minimum(at.astype(xp.int32), LEVELS - 2)
    return lesser, at - lesser


def interpolated(
    xp: Any, tables: tuple[Any, Any], first: Any, x: Any, cell: Any, between: tuple[Any, Any]
) -> tuple[Any, Any]:
    """Return what two tables (nodes, LEVELS) say of groups of some cells, about means of cells at squared distances x.

    `between` is what `levels` returned for the groups.
    """
    place, node = placed(xp, x, first, GUESSED)
    part = ((x - node) / xp.ldexp(xp.asarray(1.0 / GUESSED, x.dtype), xp.frexp(x)[1] - 1))[:, None]
    (level, beyond), found = between, []
    for table in tables:
        rows = table[place] + part * (table[place + 1] - table[place])
        found.append(rows[cell, level] + beyond * (rows[cell, level + 1] - rows[cell, level]))
    return found[0], found[1]


def filled(xp: Any, logs: Any, fall: float) -> Any:
    """Return logs that are numbers everywhere, where each may be less than the next by so much: see `DROP`."""
    some = logs > -xp.inf
    down = (fall * xp.arange(len(logs), dtype=logs.dtype)).reshape(-1, *(1,) * (logs.ndim - 1))
    rising = xp.maximum.accumulate(logs + down, 0) - down
    falling = xp.maximum.accumulate((logs - down)[::-1], 0)[::-1] + down
    least = xp.min(xp.where(some, logs, xp.inf)) - 700
    near = xp.maximum(xp.maximum(rising, falling), least)
    return xp.where(some, logs, xp.where(xp.any(some), near, 0))


def tried(xp: Any, dtype: Any, dim: Any) -> tuple[Any, Any, Any]:
    """Return squared distances from the mean that items are tried at, shares, and 1 for those that are tried on lines.

    What lies between the latter is taken to be as near as it may be there.
    """
    distances, shares = xp.asarray(SPREADS, dtype).T
    line, none = xp.where(dim < LINE, xp.ones(ON_LINES, dtype), 0), 0 * shares
    places = APART_ON_LINES * (xp.arange(ON_LINES, dtype=dtype) + 0.5)
    others = xp.where(line > 0, places**2, 1)  # elsewhere they stand for no items
    there = SHARE_ON_LINES * line
    both = xp.concatenate([there / ON_LINES, (1 - there[0]) * shares])
    return xp.concatenate([others, distances]), both, xp.concatenate([line, none])


def means(
    xp: Any, log: Callable[[Any], Any], x: Any, spread: Any, dim: Any, edge: Any, betainc: Callable[..., Any]
) -> tuple[Any, Any]:
    """Return logs of what items of groups of some spreads weigh, on average, about means at squared distances x.

    These are nodes. Also returned are logs of the mean of squares less twice those.

    About the mean m of the cell, |y − p|² = |m − p|² + |y − m|² + 2 (m − p)·(y − m). The last term has the law of a
    coordinate on a sphere, of which one of all items lies at each edge, and the one before it differs within a group.
    """
    edge = xp.maximum(edge, LEAST_EDGE)
    ends = edge * xp.linspace(-1, 1, COORDINATES + 1, dtype=edge.dtype)
    half = xp.maximum((dim - 1) / 2, LEAST_HALF)  # ½ + z / 2 √dim is of a beta distribution
    place = xp.maximum(1 + ends[: COORDINATES // 2 + 1] / xp.sqrt(dim), 0) / 2
    lower = xp.diff(betainc(half, half, place))  # to their last digits
    weights = xp.concatenate([lower, lower[::-1]])
    outermost = xp.reshape(xp.maximum(1 - edge**2 / dim, 0) ** (dim / 2), 1)  # one of all items: see `edge`
    weights = xp.concatenate([outermost, weights / xp.maximum(weights.sum(), LEAST_EDGE**2), outermost])
    coordinates = xp.concatenate([ends[:1], (ends[1:] + ends[:-1]) / 2, ends[-1:]])
    distances, shares, near = tried(xp, x.dtype, dim)
    own = distances[:, None, None, None] * spread
    wide = 2 * xp.sqrt(x[:, None]) * xp.sqrt(own / dim)
    squares = xp.maximum(x[:, None] + own + wide * coordinates[:, None, None], 0)
    nearer = near[:, None, None, None] * (xp.sqrt(x[:, None] / 2) / GUESSED + APART_ON_LINES / 2 * xp.sqrt(spread))
    squares = xp.where(nearer > 0, xp.maximum(xp.sqrt(squares) - nearer, 0) ** 2, squares)
    found = log(squares).reshape(-1, len(x), len(spread))
    share = xp.outer(shares, weights / weights.sum()).ravel()
    top = found.max(0)
    some = top > -xp.inf
    each = xp.exp(found - xp.where(some, top, 0))
    one, two = (xp.log(xp.tensordot(share, power, 1)) for power in (each, each * each))
    log_mean = filled(xp, top + one, DROP / GUESSED)
    return log_mean, xp.where(some, xp.maximum(two - 2 * xp.where(some, one, 0), 0), 0)
