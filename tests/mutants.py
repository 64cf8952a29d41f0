"""Break the library on purpose, one line at a time, and see that the suite notices each.

``python tests/mutants.py`` copies the package, applies every mutant in turn, and runs the part of the suite that ought to
kill it; ``python tests/mutants.py epsilon merge`` only those whose name contains one of the words. The exit status is 1 if a
mutant survives. A mutant whose text does not occur exactly once in its file is an error: the library has moved on, and the
mutant has to follow.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutations import MUTANTS

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 600


def environment(place: Path) -> dict[str, str]:
    """Return an environment in which the copy is imported, and nothing that is compiled or cached lies outside it."""
    return {
        **os.environ,
        "PYTHONPATH": str(place),
        "PYTHONDONTWRITEBYTECODE": "1",  # files change faster than the times that bytecode is checked by
        "NUMBA_CACHE_DIR": str(place / "compiled"),
        "RFKERNELS_UNDER_TEST": str(place),
    }


def copy(place: Path) -> None:
    """Copy what a run needs, so that the current directory holds the copy and not the original."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "rfkernels", place / "rfkernels", ignore=ignored)
    shutil.copytree(ROOT / "tests", place / "tests", ignore=ignored)
    for name in ("pyproject.toml", "theory", "docs", "README.md"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, place)
    code = "import rfkernels; print(rfkernels.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment(place), capture_output=True, text=True, check=True
    )
    if not Path(found.stdout.strip()).is_relative_to(place):
        raise SystemExit(f"mutants: the copy is in {place}, but {found.stdout.strip()} is what is imported")


def run(place: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Run pytest in the copy; return whether it passed, and its first failure or last line."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "--tb=no",
        "-n",
        "0",
        *tests,
    ]
    try:
        done = subprocess.run(
            command, cwd=place, env=environment(place), capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no end after {TIMEOUT} s"
    if "ImportError while loading conftest" in done.stderr:
        return False, "the library cannot be imported"
    if done.returncode not in (0, 1):
        raise SystemExit(f"mutants: pytest ended with status {done.returncode}\n{done.stdout}\n{done.stderr}")
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, (failed or lines or ["nothing was printed"])[-1]


def check_texts() -> None:
    """Require every mutant's text to occur exactly once."""
    for mutant in MUTANTS:
        count = (ROOT / "rfkernels" / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if count != 1:
            raise SystemExit(f"mutants: {mutant.name!r}: its text occurs {count} times in rfkernels/{mutant.file}")
    names = [mutant.name for mutant in MUTANTS]
    if len(set(names)) != len(names):
        raise SystemExit("mutants: two have the same name")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="run only mutants whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="list the mutants, check their texts, run nothing")
    words = parser.parse_args().words
    check_texts()
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    if parser.parse_args().list:
        print("\n".join(f"{mutant.name} ({mutant.file})" for mutant in chosen))
        return 0
    survived = []
    with tempfile.TemporaryDirectory(prefix="rfkernels-mutants-") as name:
        place = Path(name).resolve()
        copy(place)
        for tests in dict.fromkeys(mutant.tests for mutant in chosen):
            passed, line = run(place, tests)
            if not passed:
                raise SystemExit(f"mutants: {' '.join(tests)} fails without any mutant: {line}")
        for mutant in chosen:
            path, start = place / "rfkernels" / mutant.file, time.monotonic()
            original, times = path.read_text(encoding="utf-8"), path.stat()
            path.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
            passed, line = run(place, mutant.tests)
            path.write_text(original, encoding="utf-8")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # Numba's cache goes by it
            print(
                f"{'SURVIVED' if passed else 'killed':9}{mutant.name:45}{time.monotonic() - start:6.1f} s  {line[:110]}",
                flush=True,
            )
            survived += [mutant.name] * passed
    print(f"{len(chosen) - len(survived)} of {len(chosen)} mutants were killed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
