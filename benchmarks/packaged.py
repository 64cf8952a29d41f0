"""Data and models that come inside packages: where they are installed, and whether they are those that are meant."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path


def folder(module: str, requirement: str, option: str) -> Path:
    """Return the folder of an installed package; `option` is what names another place."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{module} is not installed: pip install {requirement}, or pass {option}")
    return Path(spec.origin).parent


def check_digest(path: Path, sha256: str) -> None:
    """Refuse a file that is not the one that was measured."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise SystemExit(f"{path} has sha256 {found}, expected {sha256}")
