"""Heads one after another on a CPU, where a head's chunks stay in cache, and all at once elsewhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax

from rfkernels._arrays import broadcast_shapes, differing
from rfkernels.backends.jax.chunks import TAILS, Rows
from rfkernels.backends.jax.fused import instead
from rfkernels.backends.jax.schedule import CPU, SAVED, Sizes, accelerator
from rfkernels.features import Features, Side
from rfkernels.state import State


class Given(NamedTuple):
    """The arrays of a pass."""

    rows: Rows
    features: Features
    state: State


Result = tuple[Any, State | None]
"""Sums of each query, as `schedule.Found` has them, and a state."""

Function = Callable[[Given, Sizes], Result]
Tree = TypeVar("Tree")


def _tails(given: Given) -> list[int]:
    """Return how many axes of each leaf follow its batch axes."""
    return _of_leaves(Given(TAILS, _counted(given.features), State(2, 1, 1)), given)


def feature_tails(features: Features) -> list[int]:
    """Return how many axes of each leaf of features follow its batch axes."""
    return _of_leaves(_counted(features), features)


def _counted(features: Features) -> Features:
    side = Side(2, 1, 1)
    return dataclasses.replace(features, projection=2, log_weight=1, query=side, key=side, scale=0)


def _of_leaves(counts: Any, given: Any) -> list[int]:
    there = jax.tree.map(lambda x: x is not None, given, is_leaf=lambda x: x is None)
    return [count for count, held in zip(jax.tree.leaves(counts), jax.tree.leaves(there), strict=True) if held]


_TOGETHER = 1 << 24
"""Numbers in the rows of a causal pass up to which a CPU takes all heads at once.

The gradient takes a quarter less time than with one head after another, the pass itself a little more; but a scan over
chunks of all heads copies its rows.
"""


_SYMBOL = 64
"""What the size of a batch axis that an export does not know is taken to be where an accelerator's memory is shared."""


def over_heads(
    function: Function, given: Given, causal: bool = False, kernels: Callable[[Given], Result] | None = None
) -> Result:
    """Apply a function to the arrays of each head, or of all: whichever suits the platform it is lowered for.

    The platform is asked for when the program is lowered, not when it is traced, so that an export for an accelerator
    has its layout. Sequences that one chunk holds are the same on all. Where a CPU stands for several devices, heads
    may be spread over them, and taking them one after another would gather them first. With CUDA `kernels`, if given,
    compute the same.
    """
    given = _varying(given)
    longest = max(x.shape[-2] for x in (given.rows.q, given.rows.k) if x is not None)
    if longest <= CPU.causal:
        return function(given, CPU)

    def on_cpu(given: Given) -> Result:
        own, rows = given.state.kv.shape[:-2], [x.shape for x in given.rows if x is not None]
        if _cpus() > 1 or not _known(own, *rows) or math.prod(own) <= 1:
            return function(given, CPU)
        if causal and sum(map(math.prod, rows)) <= _TOGETHER:
            return function(given, CPU)
        return _one_by_one(lambda head: function(head, CPU), given)

    def elsewhere(given: Given) -> Result:
        batch = broadcast_shapes(given.state.kv.shape[:-2], *(x.shape[:-2] for x in given.rows[:2] if x is not None))
        heads = math.prod(n if _known((n,)) else _SYMBOL for n in batch)
        return function(given, accelerator(heads, given.features.count))

    if kernels is None:
        return lax.platform_dependent(given, cpu=on_cpu, default=elsewhere)  # type: ignore[no-any-return]
    on_gpu = partial(instead, kernels, elsewhere)
    return lax.platform_dependent(given, cpu=on_cpu, cuda=on_gpu, default=elsewhere)  # type: ignore[no-any-return]


def _known(*shapes: tuple[int, ...]) -> bool:
    """Whether sizes are numbers, none of them a symbol of an export."""
    return all(isinstance(n, int) for shape in shapes for n in shape)


def _cpus() -> int:
    """Return how many devices the CPU stands for: none where JAX was told to leave it out."""
    try:
        return len(jax.local_devices(backend="cpu"))
    except RuntimeError:
        return 0


def _varying(given: Given) -> Given:
    """Return the same arrays, the state differing from device to device wherever keys, values and features do."""
    rows = given.rows.q if given.rows.k is None else given.rows.k
    given = given._replace(features=spread_as(rows, given.features, feature_tails(given.features)))
    own = given._replace(rows=given.rows._replace(q=None, of_query=None))
    sources = list(zip(jax.tree.leaves((own.rows, own.features)), _tails(own), strict=False))
    state = State(*(differing(jnp, x, tail, *sources) for x, tail in zip(given.state, (2, 1, 1), strict=True)))
    return given._replace(state=state)


def spread_as(rows: Any, given: Tree, tails: list[int]) -> Tree:
    """Return arrays, those of each head differing from device to device wherever rows (*batch, length, dim) do.

    On meshes with explicit axes JAX multiplies no others. `tails` are how many axes of each follow its batch axes.
    """
    leaves, tree = jax.tree.flatten(given)
    both = zip(leaves, tails, strict=True)
    leaves = [differing(jnp, x, tail, (rows, 2)) if x.ndim > tail else x for x, tail in both]
    return cast(Tree, jax.tree.unflatten(tree, leaves))


def _one_by_one(function: Callable[[Given], Result], given: Given) -> Result:
    """Map over the batch axes of the state; axes that queries alone have (grouped queries) stay together."""
    leaves, tree = jax.tree.flatten(given)
    counts = _tails(given)
    own = given.state.kv.shape[:-2]
    rank = max(x.ndim - count for x, count in zip(leaves, counts, strict=True))
    own = (1,) * (rank - len(own)) + own
    mapped = [axis for axis in range(rank) if own[axis] > 1]
    groups = [axis for axis in range(rank) if own[axis] == 1]
    leaves = [_split(x, count, rank, mapped, groups) for x, count in zip(leaves, counts, strict=True)]

    def innermost(leaves: list[Any]) -> Result:
        return function(jax.tree.unflatten(tree, leaves))

    found, state = _mapped(innermost, leaves, len(mapped))
    back = [
        None if x is None else _restored(x, tail, rank, mapped, groups)
        for x, tail in zip(found, (2, 1, 1), strict=True)
    ]
    if state is not None:
        state = State(*(x.reshape(y.shape) for x, y in zip(state, given.state, strict=True)))
    return (back[0], back[1], back[2]), state


def _split(x: Any, tail: int, rank: int, mapped: list[int], groups: list[int]) -> Any:
    """Give an array all batch axes, those that are mapped first, and drop the others if it has none of them."""
    shape = (1,) * (rank - (x.ndim - tail)) + x.shape
    kept = groups if any(shape[axis] > 1 for axis in groups) else []
    x = x.reshape(shape)
    x = jnp.transpose(x, [*mapped, *groups, *range(rank, rank + tail)])
    return x if kept else x.reshape(x.shape[: len(mapped)] + x.shape[rank:])


def _mapped(function: Callable[[list[Any]], Any], leaves: list[Any], depth: int) -> Any:
    if depth == 0:
        return function(leaves)
    wide = [x.shape[0] > 1 for x in leaves]
    narrow = [x[0] for x, is_wide in zip(leaves, wide, strict=True) if not is_wide]

    def body(slices: list[Any]) -> Any:
        some, others = iter(slices), iter(narrow)
        return _mapped(function, [next(some) if is_wide else next(others) for is_wide in wide], depth - 1)

    saved = jax.checkpoint_policies.save_only_these_names(SAVED)
    body = jax.checkpoint(body, prevent_cse=False, policy=saved)
    return lax.map(body, [x for x, is_wide in zip(leaves, wide, strict=True) if is_wide])


def _restored(x: Any, tail: int, rank: int, mapped: list[int], groups: list[int]) -> Any:
    missing = rank + tail - x.ndim
    x = x.reshape(x.shape[: len(mapped)] + (1,) * missing + x.shape[len(mapped) :])
    order = [*mapped, *groups]
    return jnp.transpose(x, [*(order.index(axis) for axis in range(rank)), *range(rank, rank + tail)])
