"""What a query of a catalog does, in static shapes: `rfkernels.catalog.plan` for JAX."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rfkernels._arrays import matmul, stopped
from rfkernels.backends.jax.tables import DeviceTable
from rfkernels.catalog.plan import BUCKETS, FEWEST_RUNS, FLOOR, PER_NAT, RUN, STEPS, TRUSTED, Guess

TICKS = 1 << 28
"""In how many parts probability is counted, so that the one of each group is known exactly."""


class Plan(NamedTuple):
    """What is done for one query.

    Parameters
    ----------
    centre : array, shape (cells,)
        Logits of the means of cells.
    top : array
        The largest log of what an item of a closed group is guessed to weigh, which weights and slopes are relative to.
    weight : array, shape (groups,)
        What a group is guessed to weigh if it is closed, that is drawn from, up to a factor; 0 for those opened.
    closed : array of bool, shape (groups,)
        Whether a group has items and is drawn from.
    ends : array of int, shape (groups,)
        How many items the opened groups up to each have.
    runs : array of int
        How many runs are drawn.
    slopes : array, shape (cells,)
        Coefficients of q·(y − mean) in the control variate.
    log_error : array
        Log of the predicted standard error of the sum, −inf if everything is taken.
    """

    centre: Any
    top: Any
    weight: Any
    closed: Any
    ends: Any
    runs: Any
    slopes: Any
    log_error: Any


class Places(NamedTuple):
    """What each place holds: whether an item of an opened group, the group, and the row of the item."""

    opened: Any
    group: Any
    row: Any


def finite(log: Any) -> Any:
    """Return 0 for −inf, which would not cancel."""
    return jnp.where(log == -jnp.inf, 0, log)


def _log_mean_exp(deviation: Any, edge: Any) -> Any:
    low = jnp.minimum(deviation, edge)
    return low * (deviation - low / 2)


def size_of(table: DeviceTable, query: Any) -> Any:
    """Return the standard deviation of q·y about the mean of the cell where the spread is 1."""
    return jnp.sqrt(jnp.maximum(matmul(jnp, query, matmul(jnp, table.shape, query)), 0))


def rounded_size(table: DeviceTable, query: Any) -> Any:
    """Return the size to a power of the STEPS-th root of 2."""
    return jnp.exp2(jnp.rint(STEPS * jnp.log2(size_of(table, query))) / STEPS)


def guessed(table: DeviceTable, query: Any) -> Guess:
    """Guess weights exp(q·y), as `rfkernels.catalog.plan.guess`; the log mean of no items is −inf."""
    centre = matmul(jnp, table.means, query)
    deviation = rounded_size(table, query) * jnp.sqrt(table.spread * table.seen)
    edge = jnp.sqrt(2 * jnp.log(jnp.sum(table.count).astype(deviation.dtype)))
    raised = _log_mean_exp(deviation, edge)
    apart = _log_mean_exp(2 * deviation, edge) - 2 * raised
    some = table.count > 0
    log = jnp.where(some, centre[table.cell] + raised, -jnp.inf)
    return Guess(log, jnp.expm1(apart) - apart + FLOOR, centre)


def planned(table: DeviceTable, guess: Guess, places: int, looked: Any = False) -> Plan:
    """Open the groups of the largest second moments, as many as the predicted variance is least with.

    Those that are to be looked at, a flag for each, are opened whatever is guessed of them.

    All but `centre` is constant to derivatives: with the proposal held, that of an unbiased estimate is unbiased too.
    """
    log, variance = stopped(jnp, guess.log_mean), stopped(jnp, guess.variance)
    left, all_fit = jnp.where(looked, 0, table.count), jnp.sum(table.count) <= places
    score = jnp.where(left > 0, 2 * (log - finite(jnp.max(log))) + jnp.log(variance), -jnp.inf)
    closed, runs = _closed(left, places - jnp.sum(table.count - left), log, variance, score)
    closed &= ~all_fit
    # Relative to the largest of their own: next to opened groups all of them may be less than the smallest number.
    own = jnp.where(closed, log, -jnp.inf)
    top = finite(jnp.max(own))
    weight = table.count * jnp.exp(own - top)
    expected = jnp.sum(weight) * jnp.sum(weight * variance) / jnp.maximum(RUN * runs, 1)
    trusted = ~all_fit & (jnp.sqrt(expected) <= TRUSTED * jnp.sum(weight))
    slopes = jnp.where(trusted & table.settled, _slopes(table, weight, closed), 0)
    predicted = jnp.sum(weight) * jnp.sum(weight * (variance - guess.floor)) / jnp.maximum(RUN * runs, 1)
    predicts = ~all_fit & (predicted > 0)
    log_error = jnp.where(predicts, top + jnp.log(jnp.where(predicts, predicted, 1)) / 2, -jnp.inf)
    ends = jnp.cumsum(jnp.where(closed, 0, table.count))
    return Plan(guess.cell_logits, top, weight, closed, ends, jnp.where(all_fit, 0, runs), slopes, log_error)


def _closed(count: Any, places: Any, log: Any, variance: Any, score: Any) -> tuple[Any, Any]:
    """Return which groups of so many items are drawn from, and how many runs are drawn.

    Where these are those of the last bucket, they are told apart, as `rfkernels.catalog.plan.plan` has it.
    """
    some, last = count > 0, BUCKETS - 1

    def chosen(highest: Any, first: Any) -> tuple[Any, Any, Any]:
        depth = jnp.where(some, jnp.clip(first + PER_NAT * (highest - finite(score)), 0, last), last)
        bucket = depth.astype(jnp.int32)
        own = jnp.max(jnp.where(some & (bucket >= first), log, -jnp.inf))
        weight = count * jnp.exp(jnp.minimum(log - finite(own), 0))

        def of_buckets(x: Any) -> Any:
            return jnp.zeros(BUCKETS, x.dtype).at[bucket].add(x)

        def left(x: Any) -> Any:
            return jnp.cumsum(of_buckets(x)[::-1])[::-1]

        counts = of_buckets(count)
        runs = (places - (jnp.cumsum(counts) - counts)) // RUN
        spread = left(weight) * left(weight * variance) / jnp.maximum(RUN * runs, 1)
        allowed = (runs >= FEWEST_RUNS) & (jnp.arange(BUCKETS) >= first)
        best = jnp.maximum(jnp.argmin(jnp.where(allowed, spread, jnp.inf)), first)
        return some & (bucket >= best), runs[best], bucket

    def deep(state: Any) -> Any:
        closed, _, bucket = state
        return jnp.any(closed) & (jnp.min(jnp.where(closed, bucket, last)) == last)

    def deeper(state: Any) -> Any:
        closed, _, _ = state
        return chosen(jnp.max(jnp.where(closed, score, -jnp.inf)), 1)

    closed, runs, _ = jax.lax.while_loop(deep, deeper, chosen(finite(jnp.max(score)), 0))
    return closed, runs


def _slopes(table: DeviceTable, weight: Any, closed: Any) -> Any:
    """Return what an item of each cell is guessed to weigh, on average over its closed groups."""
    nothing = jnp.zeros(len(table.means), weight.dtype)
    items = nothing.at[table.cell].add(jnp.where(closed, table.count, 0).astype(weight.dtype))
    return nothing.at[table.cell].add(weight) / jnp.maximum(items, 1)


def placed(table: DeviceTable, plan: Plan, key: Any, places: int) -> tuple[Places, Any]:
    """Lay out runs, then the items of opened groups; return with how many draws are expected of an item of each run."""
    drawn, first, chance = _drawn(table, plan, key, places // RUN)
    count = jnp.maximum(table.count[drawn], 1)
    in_run = table.start[drawn][:, None] + (first[:, None] + jnp.arange(RUN)) % count[:, None]
    place = jnp.arange(places)
    is_opened = (table.count > 0) & ~plan.closed
    begin = RUN * plan.runs + plan.ends - table.count
    marked = jnp.zeros(places, jnp.int32).at[jnp.where(is_opened, begin, places)]
    group = jax.lax.cummax(marked.set(jnp.arange(len(table.count), dtype=jnp.int32), mode="drop"))
    opened = (place >= RUN * plan.runs) & (place < RUN * plan.runs + plan.ends[-1])
    row = table.start[group] + place - begin[group]
    is_run = place < RUN * plan.runs
    held = Places(
        opened,
        jnp.where(is_run, jnp.repeat(drawn, RUN), group),
        jnp.where(is_run, in_run.reshape(-1), jnp.where(opened, row, 0)),
    )
    return held, RUN * plan.runs * chance / count


def _drawn(table: DeviceTable, plan: Plan, key: Any, runs: int) -> Any:
    """Draw a group for each run, one in each of as many equal parts of all probability; where it begins; its chance.

    Probability is counted in whole numbers, so that a group's is what its draws have, to the last bit. The parts begin
    at random, so that what the division leaves over is as likely to be anywhere.
    """
    begin_key, tick_key, first_key = jax.random.split(key, 3)
    total = jnp.sum(plan.weight)
    share = plan.weight / jnp.where(total > 0, total, 1)
    ticks = jnp.where(plan.closed, jnp.maximum(jnp.floor(share * TICKS), 1), 0).astype(jnp.int32)
    ends = jnp.cumsum(ticks)
    size = jnp.maximum(ends[-1], 1)
    width = jnp.maximum(size // jnp.maximum(plan.runs, 1), 1)
    begin = jax.random.randint(begin_key, (), 0, size)
    tick = (begin + jnp.arange(runs) * width + jax.random.randint(tick_key, (runs,), 0, width)) % size
    group = jnp.minimum(jnp.searchsorted(ends, tick, side="right"), len(ticks) - 1)
    first = jax.random.randint(first_key, (runs,), 0, jnp.maximum(table.count[group], 1))
    return group, first, (ticks[group] / size).astype(plan.weight.dtype)
