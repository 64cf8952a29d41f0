"""Time of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def fastest(call: Callable[[], Any], repeats: int = 6, enough: float = 0.8) -> tuple[Any, float]:
    """Return the result of a call and the least time of `repeats` of them, fewer where they take `enough` seconds.

    The least, because what other processes add is noise, and on a busy machine more than the call itself.
    """
    times: list[float] = []
    while not times or (len(times) < repeats and sum(times) < enough):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return result, min(times)
