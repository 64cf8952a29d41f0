"""`rfkernels doctor`: what is installed here, and whether it works."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import numpy as np

import rfkernels as rfk
from rfkernels.cli.output import console, print_json, table

_PACKAGES = ("rfkernels", "numpy", "scipy", "numba", "llvmlite", "jax", "jaxlib", "torch")
_JAX_SECONDS = 120
_JAX_PROBE = "import json; from rfkernels.cli.doctor import probe_jax; print(json.dumps(probe_jax()))"


@click.command(short_help="Versions, backends, threads, devices, and a self-test.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def doctor(as_json: bool) -> None:
    """Show versions, backends, threads and devices, and whether each backend works: what a report of a problem needs.

    The exit status is 1 if a backend that is installed and needed fails its self-test.

    \b
    Example: rfkernels doctor
    """  # noqa: D301 - \b keeps click from joining lines
    with console(stderr=True).status("examining"):
        found = examine()
    if as_json:
        print_json(found)
    else:
        _show(found)
    if not found["ok"]:
        sys.exit(1)


def examine() -> dict[str, Any]:
    """Collect everything."""
    backends = {name: _checked(name) for name in ("numba", "numpy")}
    jax = _jax()
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "machine": {"system": platform.platform(), "cpus": _cpus(), **_numba_details()},
        "caches": {"compiled code": _cache(_folder)},
        "backends": {**backends, "jax": {"works": jax["works"], "detail": jax["detail"]}},
        "jax_devices": jax["devices"],
        "ok": all(backend["works"] for backend in backends.values()),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _numba_details() -> dict[str, str]:
    """Return what the Numba backend says of itself: the CPU, its vectors, the threads in use."""
    try:
        from rfkernels.backends import numba

        return dict(numba.describe())
    except Exception as error:  # noqa: BLE001 - whatever is broken here is what is to be shown
        return {"numba backend": _reason(error)}


def _folder() -> Path:
    """Return where the Numba backend keeps what it compiled."""
    from rfkernels.backends.numba import objects

    found = objects.directory()
    if found is None:
        raise OSError("no directory is writable: set NUMBA_CACHE_DIR to one that is")
    return found


def _cache(find: Callable[[], Path]) -> dict[str, Any]:
    try:
        folder = find()
        with tempfile.TemporaryFile(dir=folder):
            return {"path": str(folder), "writable": True}
    except Exception as error:  # noqa: BLE001 - Numba raises RuntimeError where it finds no place, and whatever is broken
        return {"path": None, "writable": False, "reason": _reason(error)}


def _checked(backend: str) -> dict[str, Any]:
    try:
        error = self_test(backend)
    except Exception as failure:  # noqa: BLE001 - whatever is broken here is what is to be shown
        return {"works": False, "detail": _reason(failure)}
    return {"works": error < 1e-4, "detail": f"self-test: relative error {error:.1e}"}


def self_test(backend: str) -> float:
    """Return the relative error of a small causal pass against the same estimates taken pair by pair."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 70, 8))
    features = rfk.draw("positive", dim=8, count=16, rng=0)
    phi_q = rfk.transform(q, features, side="query", backend="numpy")
    phi_k = rfk.transform(k, features, side="key", backend="numpy")
    weights = np.tril(phi_q @ phi_k.swapaxes(-1, -2))
    expected = weights @ v / weights.sum(-1, keepdims=True)
    xp = import_module("jax.numpy" if backend == "jax" else "numpy")
    q, k, v = (xp.asarray(x, np.float32) for x in (q, k, v))
    out = np.asarray(rfk.attention(q, k, v, features, causal=True, backend=backend))
    return float(np.linalg.norm(out - expected) / np.linalg.norm(expected))


def _jax() -> dict[str, Any]:
    """Try JAX in a process of its own, which may hang or die without taking this one along."""
    if _version("jax") is None:
        return {"works": None, "detail": "not installed: pip install 'rfkernels[jax]'", "devices": []}
    command = [sys.executable, "-c", _JAX_PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_JAX_SECONDS, stdin=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"works": False, "detail": f"no answer within {_JAX_SECONDS} s", "devices": []}
    except (IndexError, ValueError):
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return {"works": False, "detail": last, "devices": []}
    return found


def probe_jax() -> dict[str, Any]:
    """Return JAX's devices and whether the backend works; for a process of its own."""
    import jax

    return {**_checked("jax"), "devices": [str(device) for device in jax.devices()]}


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _show(found: dict[str, Any]) -> None:
    made = table(("", "left"), ("", "left"))
    made.show_header = False
    for name, value in found["versions"].items():
        made.add_row(name, value or "not installed")
    for name, value in found["machine"].items():
        made.add_row(name, str(value))
    for name, cache in found["caches"].items():
        where = cache["path"] or f"none, what is not found is compiled anew by every process: {cache['reason']}"
        made.add_row(f"cache of {name}", where)
    for name, backend in found["backends"].items():
        state = {True: "ok", False: "FAILED", None: "absent"}[backend["works"]]
        made.add_row(f"backend {name}", f"{state} ({backend['detail']})")
    if found["jax_devices"]:
        made.add_row("jax devices", ", ".join(found["jax_devices"]))
    console().print(made)
