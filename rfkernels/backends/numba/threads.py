"""The library's own small thread pool, safe to use from many threads at once and after a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def _forget() -> None:
    """Drop pools whose threads did not survive a fork; they are made anew on demand."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def thread_count() -> int:
    """Return how many threads a call may use: RFKERNELS_NUM_THREADS, or the processors this process may run on."""
    given = os.environ.get("RFKERNELS_NUM_THREADS")
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdigit() or int(given) < 1:
        raise ValueError(f"RFKERNELS_NUM_THREADS must be a positive integer, got {given!r}")
    return int(given)


def run(tasks: Sequence[Callable[[], int]], threads: int) -> int:
    """Run all tasks, the calling thread among the workers; return the sum of what they return."""
    remaining = iter(tasks)
    taking = threading.Lock()

    def work() -> int:
        total = 0
        while True:
            with taking:
                task = next(remaining, None)
            if task is None:
                return total
            total += task()

    helpers = min(threads, len(tasks)) - 1
    if helpers < 1:
        return work()
    with _lock:
        pool = _pools.setdefault(threads, ThreadPoolExecutor(threads, thread_name_prefix="rfkernels"))
    pending = [pool.submit(work) for _ in range(helpers)]
    return work() + sum(future.result() for future in pending)
