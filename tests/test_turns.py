"""The thread pool of the Numba backend: the order of its tasks, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

pool = pytest.importorskip("rfkernels.backends.numba.threads")


def timeline(seconds: dict[int, float], after: tuple[int | None, ...], threads: int) -> list[tuple[str, int]]:
    """Run tasks that take so long; return what began and ended, in order."""
    seen: list[tuple[str, int]] = []

    def task(number: int) -> Callable[[], int]:
        def run() -> int:
            seen.append(("begins", number))
            time.sleep(seconds.get(number, 0.0))
            seen.append(("ends", number))
            return number

        return run

    assert pool.run([task(i) for i in range(len(after))], threads, after) == sum(range(len(after)))
    return seen


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_tasks_wait_for_those_they_come_after(threads: int) -> None:
    after = None, None, None, 0, 1, 2, 2
    seen = timeline({0: 0.2, 2: 0.1}, after, threads)
    for number, before in enumerate(after):
        if before is not None:
            assert seen.index(("ends", before)) < seen.index(("begins", number))


def test_tasks_do_not_wait_for_others() -> None:
    """The first task lasts until all but the last are done, which comes after it."""
    done, others = [], threading.Event()

    def first() -> int:
        assert others.wait(10)
        done.append(0)
        return 0

    def task(number: int) -> int:
        done.append(number)
        if number == 3:
            others.set()
        return 0

    work = [first, *(partial(task, number) for number in (1, 2, 3, 4))]
    assert pool.run(work, 2, (None, None, 1, 2, 0)) == 0
    assert done == [1, 2, 3, 0, 4]


INTERRUPTS = """
import os
import random
import signal
import time
from rfkernels.backends.numba import threads

random.seed(1)
hits = 0

def interrupt(number, frame):
    names = set()
    while frame:
        names.add(frame.f_code.co_qualname)
        frame = frame.f_back
    if "_Turns.take" in names or "_Turns.stop" in names:  # not in the pool of the standard library
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
after = [None] * 4 + [0, 1, 2, 3]
end = time.monotonic() + 4
while time.monotonic() < end:
    signal.setitimer(signal.ITIMER_REAL, random.random() * 3e-4 + 1e-6)
    try:
        for _ in range(20):
            threads.run([lambda: 0] * 8, 3, after)
    except KeyboardInterrupt:
        hits += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(hits > 10, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="sends itself signals by a timer of POSIX")
def test_interrupts_while_tasks_are_handed_out() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"


FAILING = """
import threading
import time
from rfkernels.backends.numba import threads

begun = threading.Event()

def fails():
    assert begun.wait(10)
    time.sleep(0.05)  # until the other threads wait for this task
    raise ZeroDivisionError

def never():
    print("begun though what it comes after has failed")

try:
    threads.run([fails, lambda: begun.set() or 0, never, never], 3, (None, None, 0, 0))
except ZeroDivisionError:
    print("ended")
"""


def test_a_failure_ends_those_who_wait() -> None:
    """In a process of its own, which could not end otherwise."""
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "ended\n"


INTERRUPTED = """
import os
import signal
import threading
import time
from rfkernels.backends.numba import threads

stop, left, taken, begun = threads._Turns.stop, [1], [], threading.Event()

def interrupted_again(self):
    if left and threading.current_thread() is threading.main_thread():
        left.pop()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
    stop(self)

def task():
    if threading.current_thread() is threading.main_thread() and not taken:
        taken.append(1)
        begun.set()
        time.sleep(0.3)  # until the other threads wait for this task
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
    else:
        assert begun.wait(10)
    return 0

signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells take from what they run beside themselves
threads._Turns.stop = interrupted_again
try:
    threads.run([task] * 6, 3, (None, None, None, 0, 1, 2))
except KeyboardInterrupt:
    print("ended", left)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_second_interrupt_before_the_first_has_stopped_others() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "ended []\n"
