"""Sums of any kernel over all items on the devices of JAX: what is guessed of groups, as NumPy guesses it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc, logsumexp

from rfkernels._arrays import elementwise, is_jax, matmul
from rfkernels._checks import is_tracer
from rfkernels.backends.jax.catalog_arguments import check_count, check_queries, parts_of, places_of, promoting
from rfkernels.backends.jax.catalog_plan import finite, size_of
from rfkernels.backends.jax.catalog_rays import home
from rfkernels.backends.jax.catalog_sums import SOFTMAX, Weights, summed
from rfkernels.backends.jax.tables import DeviceTable, Sharded
from rfkernels.catalog import spheres
from rfkernels.catalog.arguments import check_kernel, check_logs, check_real
from rfkernels.catalog.homes import looked
from rfkernels.catalog.kernel_sums import NODE_WEIGHTS, NODES
from rfkernels.catalog.plan import FEWEST_RUNS, RUN, Guess
from rfkernels.catalog.profiles import BELOW, END, FIRST, MOST, ROUNDED
from rfkernels.catalog.radial import FLAT, SHARE, SIGNED, with_item
from rfkernels.catalog.records import Estimate
from rfkernels.catalog.scans import NOTHING
from rfkernels.catalog.spheres import GUESSED, LEVELS
from rfkernels.kernels import Kernel, LogKernel, LogProfile

_OCTAVES = MOST
"""Octaves of squared distances that are told apart."""

_UNEVEN = 60.0
"""The largest log of how much the mean square of weights may exceed the square of their mean, in single precision."""

_AT_MOST = 60.0
"""By how much an item at a point itself is taken to weigh more than others, in the log: as above."""


@promoting
def kernel_sum(
    table: DeviceTable | Sharded, queries: Any, kernel: str | Kernel, budget: int, key: Any, *, scale: Any = 1.0
) -> Estimate:
    """Estimate log Σ_i k(√scale q, √scale y_i) for any kernel that is not negative.

    What `Catalog.kernel_sum` estimates where items have no codes. Derivatives with respect to queries, items and scale
    are those of the estimate, with what was drawn held: of the log of a density they are its score. Standard errors are
    constants to them. Squared norms, and kernels that are made of them, are computed in the dtype of the items: where
    those overflow or vanish, so does the sum. Groups are guessed by tables that every call makes, in the time of some
    queries (under `jax.vmap` each element does): ask for many queries at once.

    Parameters
    ----------
    table, queries, budget, key
        As in `estimate`.
    kernel : str or Kernel
        A kernel, or the name of a map that has one (`rfkernels.names`). It is compiled for; kernels of equal names and
        functions are the same.
    scale : float or array of JAX, shape (), default 1
        Multiplies q·y, |q|² and |y|²: for the Gaussian, exp(−scale |q − y|²/2), 1/h² for a bandwidth h. It must be
        above 0, which is not checked of arrays.

    Returns
    -------
    Estimate
        Arrays of JAX, (queries,). A sum in which nothing but zeros was met has the log −inf and an infinite standard
        error, unless all items were taken.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, or the kernel can be negative or, outside `jax.jit`, sums to infinity or to no
        number.
    """
    queries, chosen = check_queries(table, queries), check_kernel(kernel)
    check_count("budget", budget)
    if not (is_jax(scale) and jnp.shape(scale) == () and jnp.issubdtype(scale.dtype, jnp.floating)):
        check_real("scale", scale)
    scale = jnp.asarray(scale, queries.dtype)
    points, size, constant, weights = _weights(chosen, queries, scale)
    budget, more = int(budget), 0
    if isinstance(weights, Distances):
        more = _homes_cost(table, budget)
        weights = replace(weights, homes=more > 0)
    found = summed(table, points, budget - more, key, weights, size)
    found = found._replace(log_normalizer=found.log_normalizer + constant, dots=found.dots + more)
    if not is_tracer(found.log_normalizer):
        check_logs(chosen, found.log_normalizer)
    return found


def _homes_cost(table: DeviceTable | Sharded, budget: int) -> int:
    """Return how many dot products homes take: none where all items are taken, or too few would be left to draw any."""
    own, devices = parts_of(table)
    more = devices * looked(own.means)
    exact = own.ids.shape[-1] <= places_of(table, budget)
    return 0 if exact or places_of(table, budget - more) < FEWEST_RUNS * RUN else more


def _weights(kernel: Kernel, queries: Any, scale: Any) -> tuple[Any, Any, Any, Weights]:
    """Return from what points and at what scale items are weighed, what is added to logs, and how."""
    weight = kernel.norm_weight
    if weight == 0:
        return scale * queries, jnp.ones_like(scale), 0, SOFTMAX
    if weight is not None and abs(weight) >= FLAT:  # κ |y − p|² and what belongs to the query, as `radial.points_of`
        beside = weight - 1 / (4 * weight)
        constant = scale * beside * jnp.sum(queries * queries, 1) if beside else 0
        profile = SIGNED[1 if weight > 0 else -1].profile
        assert profile is not None
        return -queries / (2 * weight), abs(weight) * scale, constant, Distances(kernel.name, profile)
    if kernel.profile is not None:
        return queries, scale, 0, Distances(kernel.name, kernel.profile)
    return queries, scale, 0, Products(kernel.name, kernel.log)


class Tables(NamedTuple):
    """What groups of some spreads are guessed to be, about means of cells at some distances: see `profiles.Profile`.

    Parameters
    ----------
    first : array of int32
        The power of 2 of the least squared distance.
    guesses : tuple of two arrays, shape (nodes, LEVELS)
        What `spheres.means` returns.
    levels : tuple of two arrays, shape (groups,)
        What `spheres.levels` returns.
    """

    first: Any
    guesses: tuple[Any, Any]
    levels: tuple[Any, Any]


@dataclass(frozen=True)
class Distances:
    """Weights exp(g(scale |y − q|²)), with an item at q itself expected in the group that it would join or not."""

    name: str
    profile: LogProfile
    controlled: bool = False
    homes: bool = False

    def known(self, table: DeviceTable, queries: Any, scale: Any) -> Tables:
        """Return tables over all distances that queries may have."""
        low, high, widest = _spreads(table, scale)
        away = jnp.sqrt(jnp.max(jnp.sum((table.means - table.means[0]) ** 2, 1)))
        reach = away + jnp.sqrt(jnp.max(jnp.sum((queries - table.means[0]) ** 2, 1), initial=0))
        farthest = jnp.clip(2 * (scale * reach * reach + widest), 2.0**FIRST, 2.0 ** (END - 1))
        end = -(-jnp.frexp(farthest)[1] // ROUNDED) * ROUNDED  # of many calls the same
        first = jnp.maximum(jnp.frexp(low)[1] - 1 - BELOW, end - _OCTAVES)
        first = jnp.clip(first, FIRST, END - _OCTAVES)
        level, step = spheres.ladder(jnp, low, high)
        x, spread = spheres.nodes(jnp, first, _OCTAVES, GUESSED), jnp.exp(level + step * jnp.arange(LEVELS))
        dim = spheres.dimension(jnp, table.shape)
        edge = spheres.edge(jnp, dim, jnp.maximum(jnp.sum(table.count), 1).astype(dim.dtype))
        guesses = spheres.means(jnp, self._logs, x.astype(dim.dtype), spread, dim, edge, betainc)
        return Tables(first, guesses, spheres.levels(jnp, scale * table.spread, level, step))

    def _logs(self, squares: Any) -> Any:
        found = self.profile(elementwise(jnp), squares)
        return _real(found, squares, ((), squares.shape), f"{self.name} has a profile that")

    def guess(self, table: DeviceTable, known: Tables, query: Any, scale: Any) -> Guess:
        """Guess groups as `radial.guess`."""
        square = scale * jnp.sum((table.means - query) ** 2, 1)
        least, most = jnp.ldexp(1.0, known.first), jnp.ldexp(2.0 - 2.0**-20, known.first + _OCTAVES - 1)
        x = jnp.clip(square, least.astype(square.dtype), most.astype(square.dtype))
        log, uneven = spheres.interpolated(jnp, known.guesses, known.first, x, table.cell, known.levels)
        log_all = _log_mean(table, log)
        if self.homes:
            group = home(table, query, square)
            top = jnp.max(jnp.where(table.count > 0, log, -jnp.inf))
            nearest = jnp.minimum(self._logs(least.astype(square.dtype)), top + _AT_MOST)
            own = with_item(jnp, log[group], uneven[group], nearest, table.count[group])
            at = jnp.where(group < 0, len(log), group)
            log, uneven = (old.at[at].set(new, mode="drop") for old, new in zip((log, uneven), own, strict=True))
        return _shared(table, log, jnp.expm1(jnp.clip(uneven, 0, _UNEVEN)), log_all)

    def logits(self, rows: Any, query: Any, scale: Any) -> Any:
        """Return logs of the kernel."""
        return jnp.maximum(self._logs(scale * jnp.sum((rows - query) ** 2, -1)), NOTHING)


@dataclass(frozen=True)
class Products:
    """Weights that are given by their logs as a function of q·y, |q|² and |y|²."""

    name: str
    log: LogKernel
    controlled: bool = False

    def _logs(self, dots: Any, xx: Any, yy: Any) -> Any:
        found = self.log(jnp, dots, xx, yy)
        return _real(found, dots, ((), dots.shape, dots.shape[-1:]), f"{self.name} has a log that")

    def known(self, table: DeviceTable, queries: Any, scale: Any) -> None:
        """Return nothing."""

    def guess(self, table: DeviceTable, known: None, query: Any, scale: Any) -> Guess:
        """Guess groups from four points each, as `kernel_sums.guess`."""
        norms, own = jnp.sum(table.means**2, 1)[table.cell] + table.spread, jnp.sum(query * query)
        reach = jnp.sqrt(own * norms)
        away = jnp.asarray(NODES, norms.dtype)[:, None] * (size_of(table, query) * jnp.sqrt(table.spread))
        dots = jnp.clip(matmul(jnp, table.means, query)[table.cell] + away, -reach, reach)
        each = self._logs(scale * dots, scale * own, scale * norms)
        each = jnp.where(jnp.any((each > -jnp.inf) & (table.count > 0)), each, 0)  # nothing tells groups apart
        top = jnp.max(each, 0)
        part = jnp.exp(each - jnp.where(top > -jnp.inf, top, 0))
        share = jnp.asarray(NODE_WEIGHTS, norms.dtype)
        one, two = matmul(jnp, share, part), matmul(jnp, share, part * part)
        uneven = jnp.where(one > 0, two / jnp.where(one > 0, one * one, 1) - 1, 0)
        log = top + jnp.log(one)
        return _shared(table, log, jnp.maximum(uneven, 0), _log_mean(table, log))

    def logits(self, rows: Any, query: Any, scale: Any) -> Any:
        """Return logs of the kernel."""
        dot, yy = matmul(jnp, rows, query), jnp.sum(rows * rows, -1)
        return jnp.maximum(self._logs(scale * dot, scale * jnp.sum(query * query), scale * yy), NOTHING)


def _real(found: Any, given: Any, shapes: tuple[Any, ...], what: str) -> Any:
    """Return what a kernel has returned for each of some numbers; refuse what are not as many real logs."""
    found = found if hasattr(found, "dtype") else np.asarray(found)
    if found.shape not in shapes or not any(jnp.issubdtype(found.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise ValueError(
            f"kernel must return a real log for each number, but {what} "
            f"returned shape {found.shape} of {found.dtype} for {given.shape}"
        )
    return jnp.broadcast_to(jnp.asarray(found, given.dtype), given.shape)


def _log_mean(table: DeviceTable, log_mean: Any) -> Any:
    """Return the log of what an item is guessed to weigh on average over all groups."""
    items = jnp.maximum(jnp.sum(table.count), 1).astype(log_mean.dtype)
    return logsumexp(jnp.where(table.count > 0, log_mean, -jnp.inf), b=table.count) - jnp.log(items)


def _shared(table: DeviceTable, log_mean: Any, uneven: Any, log_all: Any) -> Guess:
    """Return a guess in which every item has a share of the mean of all, from its own and the variance beside that."""
    log = jnp.where(table.count > 0, jnp.logaddexp(log_mean, log_all + math.log(SHARE)), -jnp.inf)
    part = jnp.exp(log_mean - finite(log))
    return Guess(log, uneven * part**2 + SHARE, jnp.zeros(len(table.means), log.dtype), 0.0)


def _spreads(table: DeviceTable, scale: Any) -> tuple[Any, Any, Any]:
    """Return between which scaled spreads tables are made, and the largest, as `profiles.profile_of`."""
    low, high, widest = spheres.ends(jnp, table.spread, table.count)
    high = jnp.maximum(scale * high, 2.0 ** (FIRST + LEVELS))
    # No product of the least is to be less than numbers are.
    return jnp.maximum(scale * low, high * 2.0**-LEVELS), high, jnp.maximum(scale * widest, high)
