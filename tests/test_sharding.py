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
AWAITED = {"forward mode, True, 1", "forward mode, True, 2"}
"""Checks that fail because the derivative of the largest exponent of no keys, in a causal pass without a schedule, is NaN."""


def names() -> list[Any]:
    reason = "jvp of a causal pass on one device is NaN as well"
    marks = {name: [pytest.mark.xfail(reason=reason)] if name in AWAITED else [] for name in eight_devices.CHECKS}
    return [pytest.param(name, marks=marks[name]) for name in eight_devices.CHECKS]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> dict[str, str]:
    """What went wrong in each check that is asked for; all run in one process, whose start is dear."""
    asked = [item.callspec.params["name"] for item in request.session.items if item.module is request.module]
    library = str(Path(rfkernels.__file__).parents[1])
    path = os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(eight_devices.FLAGS)}
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
