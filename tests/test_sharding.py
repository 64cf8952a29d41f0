"""Attention on eight simulated devices gives what one device gives, and says how much it sends: checks of `eight_devices`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import eight_devices
import pytest

import rfkernels

TIMEOUT = 600
LONG = {
    *(f"norms that jump between devices, {devices}, False" for devices in (1, 2, 5, 8)),
    *(f"norms that jump between devices, {devices}, True" for devices in (1, 2, 5, 8)),
    *(f"equals one device, trigonometric, {causal}" for causal in (False, True)),
    "batch and heads need no communication, False, None",
    "forward mode, False, 2",
    "windows, False, 2, True",
    "windows, False, 1, False",
    "a window adds its own keys, False",
    "batch and heads need no communication, True, 2",
    "forward mode, True, 2",
    *(f"blocks in a shard map of the user, {kind}" for kind in ("merged", "fitted")),
    "other dtypes, bfloat16, 0.02, True, None",
    *(
        f"inside a shard map of the user, {vma}, {causal}"
        for vma, causal in ((True, False), (False, True), (False, False))
    ),
    "communication of the gradient does not depend on the length, False",
    "equals one device, relu, False",
}
"""Checks whose like runs by default."""


def names() -> list[Any]:
    assert set(eight_devices.CHECKS) >= LONG
    return [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in eight_devices.CHECKS]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> dict[str, str]:
    """What went wrong in each check that is asked for; all run in one process, whose start is dear."""
    asked = [item.callspec.params["name"] for item in request.session.items if item.module is request.module]
    library = str(Path(rfkernels.__file__).parents[1])
    path = os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{eight_devices.FLAGS} {os.environ.get('XLA_FLAGS', '')}",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", str(eight_devices.__file__), *asked],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: failure for name, failure, _ in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", names())
def test_eight_devices(name: str, outcomes: dict[str, str]) -> None:
    assert name in outcomes, "the check did not run"
    assert not outcomes[name], outcomes[name]
