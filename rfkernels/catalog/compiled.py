"""What is compiled for catalogs, found by name when it is first needed: backends stand above and know catalogs."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from rfkernels._forks import loading


@cache  # nor does it wait for a fork that waits for who compiles
def compiled(name: str) -> Any:
    """Return a module of the Numba backend."""
    with loading:
        return import_module(f"rfkernels.backends.numba.{name}")
