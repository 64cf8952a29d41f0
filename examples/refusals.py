"""What an example cannot do is refused before hours of work, not after; errors name the option."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path


def refuse_less(parser: argparse.ArgumentParser, given: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Refuse numbers below the least that each of these options may be."""
    for name, number in least.items():
        if getattr(given, name) < number:
            parser.error(f"--{name} must be at least {number}, got {getattr(given, name)}")


def refuse_missing(parser: argparse.ArgumentParser, option: str, text: Path) -> None:
    """Refuse a text that is not there, or a folder of none."""
    if not text.exists():
        parser.error(f"--{option} must be a text or a folder of texts, got {text}, which is not there")
    if text.is_dir() and not any(text.glob("*.txt")):
        parser.error(f"--{option} must hold texts, files that end in .txt, got {text}, which has none")


def refuse_target(parser: argparse.ArgumentParser, option: str, file: Path | None, suffix: str) -> None:
    """Refuse a file that could not be written in the end."""
    if file is None:
        return
    if file.suffix != suffix:
        parser.error(f"--{option} must end in {suffix}, got {file}")
    if file.is_dir() or not file.parent.is_dir():
        parser.error(f"--{option} must be a file in a folder that is there, got {file}")


def refuse_short(text: Path, parts: Mapping[str, int], length: int) -> None:
    """Refuse a text of which a part is no longer than --length."""
    for part, count in parts.items():
        if count <= length:
            raise SystemExit(f"--text must be longer for --length {length}: {text} has {count:,} {part}")
