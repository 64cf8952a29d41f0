"""Kernels of a distance in any form: what guesses and codes take them to be, from tables of the log of the kernel.

Tables begin at a power of 2 and have so many nodes in each octave, evenly spaced: those of a number are its first bits.
Between nodes they are linear. They say what is looked at; what counts is the kernel itself.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import elementwise
from rfkernels.catalog import spheres
from rfkernels.catalog.records import Table
from rfkernels.catalog.spheres import DROP, GUESSED, LEVELS
from rfkernels.kernels import Kernel, LogProfile

CODED = 32
"""Nodes in an octave of squared distances for what codes say of items."""

OFF = 0.4
"""How much squares are off as codes have them, relative to them and to 1 / √dimension.

With half of it intervals of kernels that change at once hold less often, with more of it errors grow.
"""

FARTHEST, LESS = 4.0, 2.0
"""Up to how many deviations items are seen to as they might be, and by how much in the log they count for less."""

SMALL = 10.0
"""What items weigh less by, in the log, that all together change nothing in single precision but its last digits."""

BELOW, MOST = 8, 64
"""Octaves below the least spread of groups where tables begin, and how many they have at most."""

ROUNDED = 4
"""The end of tables is a multiple of so many octaves, so that calls may share them."""

FIRST, END = -120, 120
"""Powers of 2 that tables lie between: numbers of them fit single precision."""

_KEPT = 32
"""Tables that are kept."""

_TINY = 2.0**-126

_ALIKE = 2.0**-20
"""How much logs may depend on which others are taken beside them."""


class Profile(NamedTuple):
    """The log of a kernel as a function of squared distances, which are multiplied by a scale.

    Parameters
    ----------
    key : tuple
        What tables are made for, the name of the kernel and its profile first: equal ones are the same.
    log : callable
        From arrays of squared distances to those of logs, in float64.
    first : int
        The power of 2 where tables begin.
    coded : array, shape (3, nodes)
        Logs at nodes, slopes from there on, and sizes of slopes as far as codes are off.
    plain : array, shape (2, nodes)
        Logs at nodes as they are, and by how much they change there as squares do by a part of themselves.
    log_means, uneven : array, shape (nodes, LEVELS)
        For squared distances of the mean of a cell and for spreads of groups, what `radial.guess` makes of them.
    level, step : float
        The log of the least of these spreads, and that of what each is of the one before it.
    """

    key: tuple[Any, ...]
    log: Callable[[Any], Any]
    first: int
    coded: Any
    plain: Any
    log_means: Any
    uneven: Any
    level: float
    step: float

    @property
    def nearest(self) -> float:
        """The log at the least squared distance that tables have."""
        return float(self.plain[0, 0])


class Outline(NamedTuple):
    """Where items of a table lie: spreads of groups, means of cells within some distance of a point, dimension."""

    low: float
    high: float
    widest: float
    origin: Any
    farthest: float
    dim: float
    edge: float


def outline_of(table: Table, dim: float, edge: float) -> Outline:
    """Return where items lie; on spheres of some dimension, up to an edge."""
    spread, count = table.spread.astype(np.float64), table.count.astype(np.int64)
    low, high, widest = spheres.ends(np, spread, count) if len(count) else (0.0, 0.0, 0.0)
    means = table.means.astype(np.float64)
    farthest = float(np.sqrt(((means - means[0]) ** 2).sum(1).max()))
    return Outline(float(low), float(high), float(widest), means[0], farthest, dim, edge)


def profile_of(kernel: Kernel, items: Outline, scale: float, points: Any) -> Profile:
    """Return tables for a kernel of squared distances, which are multiplied by a scale, from some points."""
    high = max(scale * items.high, _TINY)
    low, away = max(scale * items.low, high * 2.0**-LEVELS), points - items.origin
    with np.errstate(over="ignore"):
        reach = items.farthest + float(np.sqrt((away * away).sum(1).max(initial=0)))
    farthest = 2 * (scale * reach * reach + max(scale * items.widest, high))
    end = -(-math.frexp(min(farthest, sys.float_info.max))[1] // ROUNDED) * ROUNDED
    first = min(max(math.frexp(low)[1] - 1 - BELOW, end - MOST, FIRST), END - ROUNDED)
    span = first, max(min(end, END) - first, ROUNDED)
    assert kernel.profile is not None
    return _profile(kernel.name, kernel.profile, *span, low, high, items.dim, items.edge)


@lru_cache(maxsize=_KEPT)
def _profile(
    name: str, profile: LogProfile, first: int, octaves: int, low: float, high: float, dim: float, edge: float
) -> Profile:
    from scipy.special import betainc  # which takes a while to import

    log, x = partial(_log, name, profile), spheres.nodes(np, first, octaves, CODED)
    found = log(x)
    if not np.allclose(log(x[1::3].copy()), found[1::3], _ALIKE, _ALIKE, equal_nan=True):
        raise ValueError(
            f"kernel must have a profile that takes squared distances one by one, but that of {name} returned "
            "other logs for some of them without the others"
        )
    if np.isnan(found).any() or (found == np.inf).any():
        bad = int(np.flatnonzero(np.isnan(found) | (found == np.inf))[0])
        raise ValueError(
            f"kernel must have logs below infinity, but that of {name} is {found[bad]} "
            f"at a squared distance of {x[bad]:.6g}, scaled"
        )
    filled = spheres.filled(np, found, DROP / CODED)
    change = np.pad(np.abs(np.diff(filled) / np.diff(np.log(x))), 1)
    plain = np.stack([filled, np.maximum(change[:-1], change[1:])])
    found = _widened(filled, dim)
    slopes = np.stack([found[:-1], np.diff(found) / np.diff(x), _steep(found, x, dim)[:-1]])
    level, step = spheres.ladder(np, low, high)
    at, spread = spheres.nodes(np, first, octaves, GUESSED), np.exp(level + step * np.arange(LEVELS))
    with np.errstate(divide="ignore"):
        guesses = spheres.means(np, log, at, spread, np.float64(dim), edge, betainc)
    key = name, profile, first, octaves, low, high, dim, edge
    return Profile(key, log, first, slopes, plain, *guesses, level, step)


def clipped(x: Any, profile: Profile) -> Any:
    """Return numbers that tables have, the least of them for NaN."""
    octaves = profile.coded.shape[1] // CODED
    least, most = np.ldexp(1.0, profile.first), np.ldexp(2.0 - 2.0**-20, profile.first + octaves - 1)
    return np.fmin(np.fmax(x, least), most)


def coded(profile: Profile, squares: Any) -> tuple[Any, Any]:
    """Return what logs are taken to be, and sizes of their slopes."""
    x = clipped(squares, profile)
    place, node = spheres.placed(np, x, profile.first, CODED)
    value, slope, steep = profile.coded[:, place]
    return value + slope * (x - node), steep


def guessed(profile: Profile, squares: Any, cell: Any, spread: Any) -> tuple[Any, Any]:
    """Return logs of means, and of means of squares less twice those, of groups of some cells and scaled spreads."""
    tables, x = (profile.log_means, profile.uneven), clipped(squares, profile)
    return spheres.interpolated(np, tables, profile.first, x, cell, levels(profile, spread))


def levels(profile: Profile, spread: Any) -> tuple[Any, Any]:
    """Return between which of the spreads of tables some lie, and how far from the lesser one."""
    with np.errstate(divide="ignore"):
        return spheres.levels(np, spread, profile.level, profile.step)


def sensitivity(profile: Profile, sums: Any, items: int) -> Any:
    """Return by how much logs of sums over so many items may be off, relative to how much squared distances are.

    Items that weigh less than a sum divided by their number and e^SMALL have no part in it.
    """
    logs, change = profile.plain
    order = np.argsort(logs)
    most = np.maximum.accumulate(change[order][::-1])[::-1]
    place = np.searchsorted(logs[order], np.nan_to_num(sums, nan=-np.inf) - np.log(items) - SMALL)
    return np.where(np.isnan(sums), np.nan, np.append(most, 0.0)[place])


def _log(name: str, profile: LogProfile, squares: Any) -> Any:
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        found = np.asarray(profile(elementwise(np), np.asarray(squares, np.float64)))
    if found.shape not in ((), np.shape(squares)) or found.dtype.kind not in "fiu":
        raise ValueError(
            f"kernel must have a profile that returns a real log for each squared distance, but that of {name} "
            f"returned shape {found.shape} of {found.dtype} for {np.shape(squares)}"
        )
    return np.broadcast_to(found.astype(np.float64), np.shape(squares))


def _widened(logs: Any, dim: float) -> Any:
    """Return logs of no less than those of squares that codes may be off by, in proportion: see `OFF`."""
    reach = int(np.ceil(FARTHEST * OFF / np.sqrt(dim) * CODED / np.log(2)))
    padded, found = np.pad(logs, reach, constant_values=-np.inf), logs
    for step in range(-reach, reach + 1):
        deviations = step * np.log(2) / CODED / (OFF / np.sqrt(dim))
        found = np.maximum(found, padded[reach + step : reach + step + len(logs)] - deviations**2 / 2 - LESS)
    return found


def _steep(logs: Any, x: Any, dim: float) -> Any:
    """Return sizes of slopes between squares that codes may take for each other."""
    place, reach = np.arange(len(logs)), max(1, round(OFF / np.sqrt(dim) * CODED / np.log(2)))
    low, high = np.maximum(place - reach, 0), np.minimum(place + reach, len(logs) - 1)
    return np.abs((logs[high] - logs[low]) / (x[high] - x[low]))
