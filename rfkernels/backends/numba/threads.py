"""The library's own small thread pool, safe to use from many threads at once and after a fork."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()

SERIAL_WORK = 1 << 24
"""Multiplications of a pass below which handing work to other threads costs more than it saves."""

_LOOK = 100
"""Microseconds after which those who wait for a task look whether it is done."""

LIGHT_WORK = 1 << 19
"""The same of work that is done as fast as memory is read."""


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
    if not (given.isascii() and given.isdigit() and int(given) >= 1):
        raise ValueError(f"RFKERNELS_NUM_THREADS must be a positive integer, got {given!r}")
    return int(given)


class _Turns:
    """Hands out the numbers of tasks in order, each once the task that it comes after is done.

    Threads that wait look again and again, which is rare and short: locks and conditions of the standard library can be
    left taken by an interrupt.
    """

    def __init__(self, count: int, after: Sequence[int | None]) -> None:
        self._remaining, self._after, self._done = iter(range(count)), after, [False] * count
        self._taking, self._stopped, self.complete = threading.Lock(), False, False

    def take(self, done: int | None) -> int | None:
        """Return the next number, None if there is none; `done` is what the caller took before."""
        if done is not None:
            self._done[done] = True
        with self._taking:
            number = next(self._remaining, None)
        before = self._after[number] if number is not None and self._after else None
        while before is not None and not self._done[before] and not self._stopped:
            time.sleep(_LOOK / 1_000_000)
        return None if self._stopped else number

    def stop(self) -> None:
        """Hand out no more."""
        self._stopped = True


def run(tasks: Sequence[Callable[[], int]], threads: int, after: Sequence[int | None] = ()) -> int:
    """Run all tasks, the calling thread among the workers; return the sum of what they return.

    Tasks know arrays by address only, so however this ends (an interrupt, an exception in a task) it does not end
    before every task that was begun has returned.

    Parameters
    ----------
    tasks : sequence of callable
        What is run, begun in this order.
    threads : int
        How many threads take part.
    after : sequence of int or None, optional
        For each task the number of one before it, which must be done first; None for those that need not wait.
    """
    if len(tasks) == 1 or threads == 1:
        return sum(task() for task in tasks)
    turns = _Turns(len(tasks), after)

    def work() -> int:
        total = 0
        try:
            number = turns.take(None)
            while number is not None:
                total += tasks[number]()
                number = turns.take(number)
        except BaseException:
            turns.stop()
            raise
        return total

    pending = _submit(work, min(threads, len(tasks)) - 1, threads)
    try:
        total = work()
        turns.complete = True
    finally:
        interrupted = _wait(pending, turns)
    if interrupted is not None:
        raise interrupted
    return total + sum(future.result() for future in pending)


def _submit(work: Callable[[], int], helpers: int, threads: int) -> list[Future[int]]:
    pending: list[Future[int]] = []
    if helpers < 1:
        return pending
    with _lock:
        pool = _pools.setdefault(threads, ThreadPoolExecutor(threads, thread_name_prefix="rfkernels"))
    try:
        pending.extend(pool.submit(work) for _ in range(helpers))
    except RuntimeError as error:
        # The interpreter is shutting down and starts no more threads: the calling thread does the work.
        if "shutdown" not in str(error) and "can't start new thread" not in str(error):
            raise
    return pending


def _wait(pending: Sequence[Future[int]], turns: _Turns) -> BaseException | None:
    """Wait for the helpers whatever happens; return an interrupt that came meanwhile.

    One may have come before the turns were stopped, and helpers wait for a task that nobody does.
    """
    interrupted: BaseException | None = None
    while True:
        try:
            if interrupted is not None or not turns.complete:
                turns.stop()
            wait(pending)
            return interrupted
        except KeyboardInterrupt as error:
            interrupted = error
