"""Options and profiles of the suite: `pytest` takes minutes at most, `pytest --long` everything.

`pytest --hypothesis-profile=long` puts 10,000 random examples to each property test; no test says itself how many.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import xla
from hypothesis import HealthCheck, settings

import rfkernels

EXAMPLES = {"default": 25, "more": 400, "long": 10_000}

for _name, _examples in EXAMPLES.items():
    settings.register_profile(
        _name,
        max_examples=_examples,
        derandomize=_name != "long",  # a failure of "long" prints what reproduces it
        print_blob=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run what takes minutes, and more Hypothesis examples")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep neighbours in the alphabet apart: workers that start them together compile the same twice."""
    files = {path: i for i, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=lambda item: files[item.path] % 8)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Free what JAX compiled for a file: it is of no use to the next, and adds up to gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


def pytest_configure(config: pytest.Config) -> None:
    gc.set_threshold(
        100_000, 20, 100
    )  # tracing makes millions of objects that live; looking for others took a tenth of the time
    expected = os.environ.get("RFKERNELS_UNDER_TEST")
    if expected is not None and not Path(rfkernels.__file__).is_relative_to(expected):
        raise pytest.UsageError(
            f"the package under test should lie in {expected}, but {rfkernels.__file__} was imported"
        )
    long = config.getoption("--long") or config.option.markexpr == "long"
    if config.getoption("--long") and config.option.markexpr == "not long":
        config.option.markexpr = ""
    if not long:
        xla.be_quick()
    if config.getoption("--hypothesis-profile") is None:
        settings.load_profile("more" if long else "default")
