"""What the records of this package share: arguments of their constructors, and that JAX sees them as pytrees."""

from __future__ import annotations

import math
import sys
from dataclasses import fields
from typing import Any

import numpy as np

from rfkernels._arrays import is_jax
from rfkernels._checks import generator_of


def size(name: str, value: Any, least: int = 1) -> int:
    """Require an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return int(value)


def scale_of(scale: Any, dim: int) -> Any:
    """Require a positive finite number; 1/√dim if none is given."""
    if scale is None:
        return read_only(1 / math.sqrt(dim))
    if isinstance(scale, bool) or not isinstance(scale, int | float | np.floating):
        raise ValueError(f"scale must be a positive finite number, got {scale!r}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive finite number, got {scale!r}")
    return read_only(float(scale))


def parameters(name: str, value: Any, shape: tuple[int, ...], below: float = math.inf) -> Any:
    """Require positive numbers below a bound, one or an array of that shape; return the array."""
    bound = "positive and finite" if below == math.inf else f"between 0 and {below:g}"
    given = np.asarray(value)
    if given.dtype.kind not in "iuf" or given.shape not in ((), shape):
        wanted = "a number" if shape == () else f"a number or an array of shape {shape}"
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    given = given.astype(np.float64)
    if not np.all((given > 0) & (given < below)):
        raise ValueError(f"{name} must be {bound}, got {value!r}")
    return read_only(np.broadcast_to(given, shape))


def host_generator(rng: Any, what: str) -> np.random.Generator:
    """Return NumPy's generator of a seed; a JAX key is refused, since its draws could not equal those of a seed."""
    if is_jax(rng):
        raise ValueError(
            f"{what} are drawn on the host, from laws that NumPy has and so that a seed means the same arrays on every "
            "backend: rng must be an int, a SeedSequence or a numpy Generator, got a JAX key"
        )
    return generator_of(rng)


def read_only(array: Any) -> Any:
    """Return a copy that nobody can write to."""
    copy = np.array(array)
    copy.setflags(write=False)
    return copy


_registered: set[type] = set()


def register_pytree(record: type, static: str | None = None) -> None:
    """Tell JAX, if the user imported it, that the record is a pytree with one field as its static part."""
    jax = sys.modules.get("jax")
    if record in _registered or not hasattr(jax, "tree_util"):
        return
    _registered.add(record)
    arrays = [field.name for field in fields(record) if field.name != static]
    meta = [] if static is None else [static]
    jax.tree_util.register_dataclass(record, data_fields=arrays, meta_fields=meta)  # type: ignore[union-attr]
