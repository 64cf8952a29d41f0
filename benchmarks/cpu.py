"""Measure rfkernels on this machine, print a table, and keep the result as JSON and Markdown.

python benchmarks/cpu.py [--quick] [--out [benchmarks/results/cpu-YYYY-MM-DD.json]]
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from rfkernels.benchmark import Line, meets, run
from rfkernels.benchmark.plan import allowed_threads

RESULTS = Path(__file__).parent / "results"

PACKAGES = (
    "rfkernels",
    "numpy",
    "scipy",
    "numba",
    "llvmlite",
    "jax",
    "jaxlib",
    "torch",
    "performer-pytorch",
    "ml_dtypes",
)
FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "sve")

HEADER = ("what", "measured", "target", "met", "detail")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure rfkernels on this machine.")
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    default = RESULTS / f"cpu-{datetime.date.today().isoformat()}.json"
    parser.add_argument(
        "--out", type=Path, nargs="?", const=default, help="write this JSON file and a Markdown table beside it"
    )
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    lines = run(quick=options.quick, report=lambda line: print(_progress(line), file=sys.stderr, flush=True))
    facts = {**machine_facts(), "run": f"{_kind(options.quick)}, {time.perf_counter() - start:.0f} s"}
    print(markdown(facts, lines))
    if options.out is not None:
        write(options.out, facts, lines)
    return 0


def _kind(quick: bool) -> str:
    return "quick (small sizes; the targets are those of the full run)" if quick else "full"


def _progress(line: Line) -> str:
    return f"{line.name}: {shown_value(line)}  {line.detail}"


def write(path: Path, facts: dict[str, str], lines: list[Line]) -> None:
    """Write JSON to `path` and a Markdown table beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**line._asdict(), "value": line.value if math.isfinite(line.value) else None} for line in lines]
    path.write_text(
        json.dumps({"machine": facts, "lines": rows}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    path.with_suffix(".md").write_text(markdown(facts, lines), encoding="utf-8")


def markdown(facts: dict[str, str], lines: list[Line]) -> str:
    """Lay out the facts as a list and the lines as a table, aligned so that it reads well as plain text too."""
    met = {True: "yes", False: "no", None: ""}
    rows = [(line.name, shown_value(line), line.target, met[meets(line)], line.detail) for line in lines]
    widths = [max(len(row[i]) for row in (HEADER, *rows)) for i in range(len(HEADER) - 1)]

    def laid_out(row: tuple[str, ...]) -> str:
        return "| " + " | ".join([*(x.ljust(n) for x, n in zip(row, widths, strict=False)), row[-1]]) + " |"

    rule = "| " + " | ".join("-" * n for n in (*widths, 6)) + " |"
    bullets = [f"- {name}: {value}" for name, value in facts.items()]
    return "\n".join([*bullets, "", laid_out(HEADER), rule, *map(laid_out, rows), ""])


def shown_value(line: Line) -> str:
    """Write a value with three digits and its unit."""
    if math.isnan(line.value):
        return "not measured"
    if math.isinf(line.value):
        return "none"
    digits = f"{line.value:.3g}" if line.value < 1000 else f"{line.value:,.0f}"
    return f"{digits} {line.unit}".rstrip()


def machine_facts() -> dict[str, str]:
    """Say what was measured on: nothing that identifies the machine or its owner."""
    model, flags = _processor()
    facts = {
        "processor": model,
        "flags of note": flags,
        "cores": f"{os.cpu_count()}, of which {allowed_threads()} used",
        "last-level cache": _cache(),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(_versions()),
        "BLAS of NumPy": _blas(),
        "date": datetime.date.today().isoformat(),
        "revision": _revision(),
    }
    return {name: value for name, value in facts.items() if value}


def _processor() -> tuple[str, str]:
    text = _read("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    present = set(fields.get("flags", fields.get("Features", "")).split())
    return fields.get("model name", platform.processor() or platform.machine()), " ".join(
        flag for flag in FLAGS if flag in present
    )


def _cache() -> str:
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    return _read(caches[-1] / "size").strip() if caches else ""


def _memory() -> str:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return f"{int(line.split()[1]) * 1024 / 1e9:.0f} GB"
    return ""


def _versions() -> Iterator[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            yield f"no {package}"


def _blas() -> str:
    """Which kernels NumPy's BLAS picked for this processor by itself."""
    try:
        import threadpoolctl
    except ImportError:
        return ""
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    own = [pool for pool in pools if "numpy" in pool["filepath"]] or pools  # SciPy brings another
    return ", ".join(f"{pool['internal_api']} {pool['version']} as {pool.get('architecture')}" for pool in own[:1])


def _revision() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        revision = git("rev-parse", "--short", "HEAD")
        return revision + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


if __name__ == "__main__":
    raise SystemExit(main())
