"""Options and profiles of the suite: `pytest` takes minutes at most, `pytest --long` everything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import rfkernels

EXAMPLES = {"default": 40, "long": 400}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run what takes minutes, and more Hypothesis examples")


def pytest_configure(config: pytest.Config) -> None:
    expected = os.environ.get("RFKERNELS_UNDER_TEST")
    if expected is not None and not Path(rfkernels.__file__).is_relative_to(expected):
        raise pytest.UsageError(
            f"the package under test should lie in {expected}, but {rfkernels.__file__} was imported"
        )
    long = config.getoption("--long") or config.option.markexpr == "long"
    if config.getoption("--long") and config.option.markexpr == "not long":
        config.option.markexpr = ""
    for name, examples in EXAMPLES.items():
        settings.register_profile(
            name,
            max_examples=examples,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        )
    settings.load_profile("long" if long else "default")
