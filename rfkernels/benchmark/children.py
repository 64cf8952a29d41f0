"""What runs in processes of its own: matrix products under another OPENBLAS_CORETYPE, and peaks of memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rfkernels.benchmark.plan import Plan, inputs, ours
from rfkernels.benchmark.timing import Unavailable

TIMEOUT = 600


def run_child(code: str, *arguments: str, changes: Mapping[str, str] | None = None) -> str:
    """Run Python code in a new process and return what it prints.

    Parameters
    ----------
    code : str
        What follows ``python -c``.
    *arguments : str
        The process's further arguments.
    changes : mapping of str to str, optional
        Environment variables to set.

    Returns
    -------
    str

    Raises
    ------
    Unavailable
        If the process fails; the message is its last line.
    """
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, **(changes or {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Unavailable(f"a child process failed: {lines[-1]}")
    return done.stdout


class ProductWorker:
    """A process that multiplies matrices with NumPy under an OPENBLAS_CORETYPE, when asked to.

    Parameters
    ----------
    core_type : str
        The value of OPENBLAS_CORETYPE; empty to leave it unset.
    threads : int
        Threads of its BLAS.
    """

    def __init__(self, core_type: str, threads: int) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
        for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM"):
            environment[f"{library}_NUM_THREADS"] = str(threads)
        if core_type:
            environment["OPENBLAS_CORETYPE"] = core_type
        code = "from rfkernels.benchmark.children import serve_products; serve_products()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def seconds(self, order: int) -> float:
        """Multiply two matrices of that order and return the seconds it took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{order}\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Unavailable("its process crashed") from error
        answer = self._process.stdout.readline()
        if not answer:
            raise Unavailable("its process crashed")
        seconds = float(answer)
        if seconds < 0:
            raise Unavailable("its product is wrong")
        return seconds

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # a request to a process that crashed is still in the buffer
                    stream.close()


def serve_products() -> None:
    """Read orders from standard input, one a line, and print the seconds of such a product, −1 if it is wrong."""
    matrices: dict[int, tuple[Any, Any, Any]] = {}
    for line in sys.stdin:
        order = int(line)
        new = order not in matrices
        if new:
            x, y = np.random.default_rng(0).standard_normal((2, order, order), np.float32)
            matrices[order] = x, y, np.matmul(x, y)
        x, y, out = matrices[order]
        start = time.perf_counter()
        np.matmul(x, y, out=out)
        seconds = time.perf_counter() - start
        print(-1.0 if new and not _is_product(x, y, out) else seconds, flush=True)


def _is_product(x: Any, y: Any, out: Any) -> bool:
    """Compare some rows with a product in float64, whose code another core type leaves alone or breaks differently."""
    rows = np.linspace(0, len(x) - 1, 8).astype(int)
    columns = np.linspace(0, len(x) - 1, 64).astype(int)
    expected = np.sum(x[rows, None, :].astype(np.float64) * y.T[None, columns, :], -1)
    tolerance = 1e-5 * len(x) ** 0.5
    return bool(np.all(np.abs(out[np.ix_(rows, columns)] - expected) < tolerance))


def footprint(plan: Plan, length: int, options: Mapping[str, Any]) -> int:
    """Return the bytes that a call needs at its peak beyond its inputs and its output, measured in a new process."""
    case = {"heads": plan.heads, "dim": plan.dim, "count": plan.count, "backend": plan.backend}
    code = "import sys; from rfkernels.benchmark.children import print_footprint; print_footprint(sys.argv[1])"
    printed = run_child(code, json.dumps({"plan": case, "length": length, "options": dict(options)}))
    return int(printed.split()[-1])


def print_footprint(request: str) -> None:
    """Print how far the peak of resident memory rises above inputs and output in one call."""
    case = json.loads(request)
    plan, length, options = Plan(**case["plan"]), case["length"], case["options"]
    ours(plan, inputs(plan, min(length, 256)), **options)()  # compile, start threads
    call = ours(plan, inputs(plan, length), **options)
    _return_free_memory()
    before = _start_peak()
    output = call()
    print(max(0, _peak() - before - output.nbytes))


def _return_free_memory() -> None:
    """Give what was freed back to the system, as the call would take from it unseen."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # malloc_trim is of glibc
        ctypes.CDLL(None).malloc_trim(0)


def _start_peak() -> int:
    """Set the peak of resident memory to what is resident now, where the system can, and return it."""
    with contextlib.suppress(OSError):  # where it cannot, the peak so far stands, and what rises above it is counted
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak()


def _peak() -> int:
    """Return the peak of resident memory in bytes."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak if sys.platform == "darwin" else peak * 1024)
