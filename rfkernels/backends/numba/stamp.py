"""Names of compiled functions on disk, which change with every file that they may be compiled from."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def _digest() -> str:
    found = 0
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found = zlib.crc32(path.read_bytes(), found)
    return f"{found:08x}"


def stamped(function: Function) -> Function:
    """Name a function by the text of all files here.

    Numba's cache goes by that name and by the function's own file: it would not notice a change of what is called.
    """
    function.__qualname__ = f"{function.__qualname__}_{_digest()}"
    return function
