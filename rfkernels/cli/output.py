"""What the commands print: people's tables and words, programs' JSON, and errors."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table

_WIDTH = 120  # of what is not a terminal: files, pipes, logs


class BadInput(click.ClickException):
    """What the user gave cannot be used."""

    exit_code = 2


class Integer(click.IntRange):
    """Integers in a range, which help and refusals call integers, not "integer ranges"."""

    name = "integer"


def console(stderr: bool = False) -> Console:
    """Return a console that never colours numbers or reads markup in what it prints."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """Print strict JSON of ASCII, for names of files that no output could encode: what is not finite becomes null."""
    click.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """Return a value of JSON's types in which what is not finite is None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(*columns: tuple[str, str]) -> Table:
    """Return an empty table; each column is its heading and "left" or "right"."""
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading, side in columns:
        made.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    return made


def as_error(value: float) -> str:
    """Write a relative error with two or three digits."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def as_factor(ratio: float) -> str:
    """Write how many times as much."""
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"


def as_time(seconds: float) -> str:
    """Write a duration."""
    if seconds < 0.0995:
        return f"{1e3 * seconds:.1f} ms" if seconds < 0.00995 else f"{1e3 * seconds:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def as_bytes(count: float) -> str:
    """Write an amount of memory."""
    if count < 1024:
        return f"{count:.0f} B"
    power = min(int(math.log(count, 1024)), 3)
    scaled = count / 1024**power
    return f"{scaled:.1f} {'KMG'[power - 1]}iB" if scaled < 10 else f"{scaled:.0f} {'KMG'[power - 1]}iB"
