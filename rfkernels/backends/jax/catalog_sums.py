"""Sums over all items on the devices of JAX: the estimates of `rfkernels.catalog.estimates`, of any weights.

Every query takes the same number of dot products: those with the means of cells, and one for each of its places. The
first places hold runs of items drawn from closed groups, the others all items of opened groups; how many groups are
opened is decided for each query, and no place is wasted on padding.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rfkernels._arrays import matmul, stopped
from rfkernels.backends.jax.catalog_arguments import check_key, check_places, each_query, numbers_of, parts_of
from rfkernels.backends.jax.catalog_plan import Places, Plan, finite, guessed, placed, planned
from rfkernels.backends.jax.catalog_rays import along
from rfkernels.backends.jax.tables import DeviceTable, Sharded
from rfkernels.catalog.plan import RUN, Guess
from rfkernels.catalog.rays import most_along
from rfkernels.catalog.records import Estimate
from rfkernels.catalog.scans import NOTHING
from rfkernels.catalog.trust import FEW

_ABOVE = 40.0
"""How far above all logits that were met a guess may lie for the control variate to be used.

Next to a stale one that lies farther above, they would be nothing in single precision.
"""


class Weights(Protocol):
    """What items weigh; equal ones are compiled for once. `scale` is the caller's, and may be traced."""

    @property
    def controlled(self) -> bool:
        """Whether there is a control variate, which takes logits to be q·y."""

    def known(self, table: DeviceTable, queries: Any, scale: Any) -> Any:
        """Return what all queries share."""

    def guess(self, table: DeviceTable, known: Any, query: Any, scale: Any) -> Guess:
        """Return what is expected of each group."""

    def logits(self, rows: Any, query: Any, scale: Any) -> Any:
        """Return logs of what rows weigh, none of them −inf."""


class Softmax(NamedTuple):
    """Weights exp(q·y)."""

    controlled: bool = True

    def known(self, table: DeviceTable, queries: Any, scale: Any) -> None:
        """Return nothing."""

    def guess(self, table: DeviceTable, known: None, query: Any, scale: Any) -> Guess:
        """Return what `catalog_plan.guessed` does."""
        return guessed(table, query)

    def logits(self, rows: Any, query: Any, scale: Any) -> Any:
        """Return q·y."""
        return matmul(jnp, rows, query)


SOFTMAX = Softmax()


def summed(table: DeviceTable | Sharded, queries: Any, budget: int, key: Any, weights: Weights, scale: Any) -> Estimate:
    """Estimate logs of sums of weights over the items of a table, for queries that were checked."""
    own = parts_of(table)[0]
    places = check_places(table, budget)
    check_key(key)
    if isinstance(table, Sharded):
        how = {"places": places, "mesh": table.mesh, "axis": table.axis}
        return Estimate(*_of_mesh(own, queries, key, scale, weights=weights, **how))
    return Estimate(*_of_device(own, queries, key, scale, weights=weights, places=places))


@partial(jax.jit, static_argnames=("weights", "places"))
def _of_device(table: DeviceTable, queries: Any, key: Any, scale: Any, *, weights: Weights, places: int) -> Any:
    log, log_error, taken = _estimated(table, queries, key, scale, weights, places)
    return _ended(log), jnp.exp(log_error - stopped(jnp, finite(log))), taken + sum(table.means.shape)


@partial(jax.jit, static_argnames=("weights", "places", "mesh", "axis"))
def _of_mesh(
    table: DeviceTable, queries: Any, key: Any, scale: Any, *, weights: Weights, places: int, mesh: Any, axis: str
) -> Any:
    def part(table: DeviceTable, queries: Any, key: Any, scale: Any) -> Any:
        own = jax.tree.map(lambda x: x[0], table)
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        log, log_error, taken = _estimated(own, queries, key, scale, weights, places)
        top = finite(jax.lax.pmax(stopped(jnp, log), axis))
        square = jnp.exp(2 * (log_error - top))
        total, square, dots = jax.lax.psum((jnp.exp(log - top), square, taken + sum(own.means.shape)), axis)
        error = jnp.sqrt(square) / stopped(jnp, jnp.where(total > 0, total, 1))
        return _ended(top + jnp.log(total)), error, dots

    spec, whole = jax.sharding.PartitionSpec(axis), jax.sharding.PartitionSpec()
    specs = (spec, whole, whole, whole)
    # Loops within JAX's own functions do not say that their counts differ between devices.
    run = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
    return run(table, queries, key, scale)


def _ended(log: Any) -> Any:
    """Return logs of sums of which nothing was met but zeros as they are."""
    return jnp.where(log < NOTHING / 2, -jnp.inf, log)


def _estimated(table: DeviceTable, queries: Any, key: Any, scale: Any, weights: Weights, places: int) -> Any:
    """Return log-normalizers, logs of standard errors and how many items were taken; queries are under way in part."""
    if not len(table.count) or not len(table.rows):
        nothing = jnp.full(len(queries), -jnp.inf, queries.dtype)
        return nothing, nothing, jnp.zeros(len(queries), jnp.int32)
    known = weights.known(*jax.tree.map(partial(stopped, jnp), (table, queries, scale)))

    def one(query: Any, number: Any) -> Any:
        guess = weights.guess(table, known, query, scale)
        looked = along(table, query, guess.cell_logits, most_along(places)) if weights.controlled else False
        plan = planned(table, guess, places, looked)
        plan = plan if weights.controlled else plan._replace(slopes=jnp.zeros_like(plan.slopes))
        held, expected = placed(table, plan, jax.random.fold_in(key, number), places)
        rows = table.rows.at[held.row].get(mode="promise_in_bounds")
        return _one(table, plan, held, expected, weights.logits(rows, query, scale))

    return each_query(one, (queries, jnp.arange(len(queries))), numbers_of(table, places, queries.shape[1]))


def _one(table: DeviceTable, plan: Plan, held: Places, expected: Any, logits: Any) -> tuple[Any, Any, Any]:
    run = jnp.arange(len(expected)) < plan.runs
    taken = jnp.where(jnp.repeat(run, RUN) | held.opened, logits, -jnp.inf)
    largest = jnp.max(taken)
    likely = plan.top - largest < _ABOVE
    top = jnp.maximum(jnp.where(likely & jnp.any(plan.slopes > 0), plan.top, -jnp.inf), largest)
    weights = jnp.exp(taken - finite(top))
    cell = table.cell[held.group]
    # Over a whole cell this part sums to 0: what opened groups have of it, the others lack.
    slopes = jnp.where(likely & (plan.slopes > 0), jnp.exp(jnp.minimum(plan.top - finite(top), 0)) * plan.slopes, 0)
    moved = slopes[cell] * (logits - plan.centre[cell])
    head, known = (jnp.sum(jnp.where(held.opened, x, 0)) for x in (weights, moved))
    expected = jnp.where(run, expected, 1)
    plain, bent = (jnp.where(run, jnp.sum(x.reshape(-1, RUN), -1) / expected, 0) for x in (weights, weights - moved))
    total = head + jnp.sum(bent) - known
    parts = jnp.where(total > 0, bent, plain)
    total = jnp.where(total > 0, total, head + jnp.sum(plain))  # only where the error is larger than the sum itself
    pairs = parts[: len(parts) // 2 * 2].reshape(-1, 2)
    log, count = top + jnp.log(total), plan.runs // 2
    apart = jnp.where(jnp.arange(len(pairs)) < count, pairs[:, 0] - pairs[:, 1], 0) / jnp.where(total > 0, total, 1)
    predicted = jnp.exp(2 * (plan.log_error - finite(log)))
    error = _trusted(stopped(jnp, apart) ** 2, jnp.where(jnp.any(parts != 0), count, 0), plan.runs, predicted)
    # Where nothing but zeros was met, no more is known than before.
    log_error = jnp.where(log < NOTHING / 2, plan.log_error, log + jnp.log(error))
    return log, stopped(jnp, log_error), plan.ends[-1] + RUN * plan.runs


def _trusted(square: Any, alike: Any, runs: Any, predicted: Any) -> Any:
    """Return the standard error that `rfkernels.catalog.trust.trusted_error` specifies; no runs have none."""
    seen, beyond = variances(square, alike, runs, predicted)
    return jnp.where(runs > 0, jnp.sqrt(seen + beyond), 0)


def variances(square: Any, alike: Any, runs: Any, predicted: Any) -> tuple[Any, Any]:
    """Return from squared differences of pairs of runs what `rfkernels.catalog.trust.variances` specifies.

    `alike` is how many differences there are in effect if they are all zero.
    """
    most = jnp.max(square)
    relative = square / jnp.where(most > 0, most, 1)  # fourth powers would be less than the smallest number
    effective = jnp.where(most > 0, jnp.sum(relative) ** 2 / jnp.maximum(jnp.sum(relative**2), 1), alike)
    seen = jnp.sum(square) * runs / jnp.maximum(runs // 2 * 2, 1)
    share = FEW**2 / (effective**2 + FEW**2)
    return seen, share * jnp.maximum(predicted - seen, 0)
