"""Several processes on this machine attend together as one would; when one is killed, the others end and do not hang.

They talk over the loopback interface only. Whatever a test does, its processes are gone when it returns.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import one_process
import pytest

import rfkernels as rfk

START, GRACE = 90, 15  # seconds that a loaded machine may take to start, and to notice after the time-out


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def cluster(folder: Path, processes: int, heartbeat: int, *, endless: bool) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start processes; what they print and write is in `folder`."""
    library = str(Path(rfk.__file__).parents[1])
    path = os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    port, started = free_port(), []
    with contextlib.ExitStack() as files:
        try:
            for number in range(processes):
                target = "-" if endless else str(folder / f"{number}.npz")
                arguments = [port, processes, number, heartbeat, target]
                printed = [files.enter_context(open(folder / f"{number}.{kind}", "wb")) for kind in ("out", "err")]
                command = [sys.executable, "-W", "error", str(one_process.__file__), *map(str, arguments)]
                started.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.DEVNULL, stdout=printed[0], stderr=printed[1]
                    )
                )
            yield started
        finally:
            for process in started:
                process.kill()
            for process in started:
                process.wait(30)


def words(folder: Path) -> str:
    return "\n".join(f"{path.name}:\n{path.read_text(errors='replace')}" for path in sorted(folder.glob("*.err")))


def test_two_processes_equal_one(tmp_path: Path) -> None:
    with cluster(tmp_path, 2, 30, endless=False) as processes:
        for process in processes:
            process.wait(START)
        assert [process.returncode for process in processes] == [0, 0], words(tmp_path)
    parts = [np.load(tmp_path / f"{number}.npz") for number in range(2)]
    given, features = [jnp.asarray(x) for x in one_process.arrays(2)], one_process.drawn()

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(eight_devices.dense(q, k, v, features, causal=True)))

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*given)
    expected = dict(zip("qkv", gradients, strict=True))
    expected["out"] = rfk.attention(*one_process.arrays(2), features, causal=True, backend="numpy")
    for name, array in expected.items():
        got = np.concatenate([part[name] for part in parts], axis=1)
        # 16 ε times the largest exponent, which is a thousand for keys of thirty times the norm
        np.testing.assert_allclose(got, array, rtol=0, atol=2e-3 * np.abs(array).max(), err_msg=name)
    for part in parts:
        np.testing.assert_allclose(part["value"], value, rtol=2e-3)


@pytest.mark.parametrize(
    ("processes", "victim", "heartbeat"),
    [
        pytest.param(2, 1, 3, id="a worker of two"),
        pytest.param(3, 1, 10, id="a worker of three", marks=pytest.mark.long),
        pytest.param(3, 0, 10, id="the coordinator", marks=pytest.mark.long),
    ],
)
def test_survivors_of_a_killed_process_end(tmp_path: Path, processes: int, victim: int, heartbeat: int) -> None:
    with cluster(tmp_path, processes, heartbeat, endless=True) as started:
        limit = time.monotonic() + START
        while any(len((tmp_path / f"{n}.out").read_bytes().splitlines()) < 3 for n in range(processes)):
            assert time.monotonic() < limit, "the processes did not get to work:\n" + words(tmp_path)
            assert all(process.poll() is None for process in started), words(tmp_path)
            time.sleep(0.1)
        started[victim].kill()
        limit = time.monotonic() + heartbeat + GRACE
        survivors = [process for number, process in enumerate(started) if number != victim]
        for process in survivors:
            try:
                process.wait(max(0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                pytest.fail(f"a process was still there {GRACE} s after the heartbeat time-out:\n{words(tmp_path)}")
        assert all(process.returncode not in (0, None) for process in survivors), words(tmp_path)
        print([process.returncode for process in survivors], time.monotonic() - limit + heartbeat + GRACE)
