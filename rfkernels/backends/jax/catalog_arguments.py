"""Arguments of a catalog on the devices of JAX: what is refused, and how many queries are under way at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rfkernels._arrays import is_jax
from rfkernels._checks import check_array, is_key, is_tracer, require_finite
from rfkernels.backends.jax.tables import DeviceTable, Sharded
from rfkernels.catalog.plan import FEWEST_RUNS, RUN

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

NUMBERS = {"cpu": 1 << 20}
_NUMBERS_ELSEWHERE = 1 << 25
"""How many numbers the items of the queries under way may be: what a cache holds, or what keeps a device busy."""


def promoting(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let ranks and dtypes be promoted within a function, where JAX was told to refuse that."""

    @wraps(function)
    def promote(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return promote


def each_query(one: Callable[..., Any], given: Any, numbers: int) -> Any:
    """Map over queries, and what belongs to each, so many of them at a time as fit if each takes so many numbers.

    Derivatives compute anew what they need of a query, or they would keep that of all.
    """
    limit = NUMBERS.get(jax.default_backend(), _NUMBERS_ELSEWHERE)
    again = jax.checkpoint(lambda x: one(*x), prevent_cse=False)
    return jax.lax.map(again, given, batch_size=max(1, limit // numbers))


def numbers_of(table: DeviceTable, places: int, width: int) -> int:
    """Return how many numbers a query takes that looks at all groups, and at as many rows as it has places."""
    return int(places * width + len(table.means) + len(table.count))


def parts_of(table: DeviceTable | Sharded) -> tuple[DeviceTable, int]:
    """Return the arrays of a table, and on how many devices they are."""
    if not isinstance(table, DeviceTable | Sharded):
        raise TypeError(f"table must be what device_table or sharded returns, got {type(table).__name__}")
    return (table.table, table.table.rows.shape[0]) if isinstance(table, Sharded) else (table, 1)


def check_queries(table: DeviceTable | Sharded, queries: Any) -> Any:
    """Require finite queries as wide as items; return them in the dtype of these."""
    own, _ = parts_of(table)
    dim = own.means.shape[-1]
    check_array("queries", queries, 1)
    if queries.ndim != 2 or queries.shape[-1] != dim:
        raise ValueError(f"queries must have shape (queries, {dim}), got {queries.shape}")
    if not isinstance(queries.shape[0], int):
        raise ValueError(f"queries must be so many as is known when a function is exported, got shape {queries.shape}")
    with np.errstate(over="ignore"):
        held = jnp.asarray(queries, own.rows.dtype)
    require_finite("queries", held)
    return held


def check_key(key: Any) -> None:
    """Require one key of JAX's random numbers."""
    if not (isinstance(key, np.ndarray) or is_jax(key)):
        raise TypeError(f"key must be a key of jax.random, as jax.random.key(0) is, got {key!r}")
    if not is_key(key):
        raise TypeError(f"key must be a single key of jax.random, got {key.dtype} of shape {key.shape}")


def check_count(name: str, x: Any, least: int = 0) -> None:
    """Require an integer that is known when JAX traces, as shapes depend on it."""
    if isinstance(x, bool) or not isinstance(x, int | np.integer):
        raise TypeError(f"{name} must be an int, got {x!r}")
    if x < least:
        raise ValueError(f"{name} must be at least {least}, got {x}")


def check_places(table: DeviceTable | Sharded, budget: Any) -> int:
    """Return how many items each query may take on each device; a budget that draws nothing is refused."""
    own, devices = parts_of(table)
    check_count("budget", budget)
    places = places_of(table, int(budget))
    if places < FEWEST_RUNS * RUN:
        least = devices * (sum(own.means.shape[-2:]) + FEWEST_RUNS * RUN)
        raise ValueError(f"budget must be at least {least} (cells, dim and a sample on each device), got {budget}")
    every = max(-(-own.ids.shape[-1] // RUN), FEWEST_RUNS) * RUN
    return int(min(places, every))


def places_of(table: DeviceTable | Sharded, budget: int) -> int:
    """Return for how many items on each device a budget has room."""
    own, devices = parts_of(table)
    return int((budget // devices - sum(own.means.shape[-2:])) // RUN * RUN)


def check_filled(table: DeviceTable | Sharded) -> None:
    """Refuse a table without rows; whether the rows of others hold items is not looked at."""
    if parts_of(table)[0].ids.shape[-1] == 0:
        raise ValueError("table must hold items, it has none")


def check_ids(ids: Any, axes: tuple[int, ...]) -> Any:
    """Require an array of integers."""
    if not (isinstance(ids, np.ndarray) or is_jax(ids)):
        raise TypeError(f"ids must be an array of integers, got {type(ids).__name__}")
    if isinstance(ids, np.ma.MaskedArray):
        raise TypeError("ids must not be masked, got MaskedArray; ids.compressed() has those that are not")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids must be of an integer dtype, got {ids.dtype}")
    if ids.ndim not in axes:
        raise ValueError(f"ids must have {' or '.join(map(str, axes))} axes, got shape {ids.shape}")
    own, held = np.iinfo(ids.dtype), np.iinfo(np.int32)
    wide = own.max > held.max  # JAX would cut them to 32 bits
    if isinstance(ids, np.ndarray) or (wide and not is_tracer(ids)):
        ids = np.asarray(ids)
        wrong = np.argwhere((ids < -1) | (ids > held.max - 1))
        if len(wrong):
            _refuse(ids, wrong[0])
    elif wide:
        ids = jnp.clip(ids, max(own.min, held.min), held.max)
    return jnp.asarray(ids.astype(np.int32))


def check_known(ids: Any, known: Any) -> None:
    """Refuse ids that are not known, unless JAX traces them."""
    if is_tracer(known) or is_tracer(ids):
        return
    wrong = np.argwhere(~np.asarray(known))
    if len(wrong):
        _refuse(ids, wrong[0][-np.ndim(ids) :])


def _refuse(ids: Any, index: Any) -> None:
    at = tuple(index.tolist())
    raise KeyError(f"the table has no item of id {int(np.asarray(ids)[at])}, which is ids{list(at)}")
