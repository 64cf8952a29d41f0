"""Swap every attention of a trained causal model, with no further training, over windows and sizes of what is far.

    python benchmarks/causal_swap.py --text FOLDER --weights MODEL.npz [--out FILE.json]

The model and its options are those of examples/rotary_lm.py, which trains it first if MODEL.npz is not there. Windows
are given with --windows, groups with --counts. Figures are perplexities over that of exact attention, on held-out text
as it is and with passages that come again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import rotary_lm
from rotary_swap import Way


def ways_of(window: int, counts: list[int], features: int) -> list[Way]:
    """Return what to compare at one window, by growing state."""
    merged = [Way(window, heavy, count) for count in counts for heavy in (0, 4)]
    calibrated = [Way(window, 4, count, calibrated=True) for count in counts]
    return [Way(window), Way(window, 4), Way(window, 4, features=features), *calibrated, *merged]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--windows", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 128])
    own, rest = parser.parse_known_args(arguments)
    given, console = rotary_lm.parse(rest), Console()
    ready = rotary_lm.prepare(given, console)
    ways = [Way(), *(way for window in own.windows for way in ways_of(window, own.counts, given.features))]
    found: dict[str, dict[str, float]] = {}
    for label, scores in rotary_lm.compare(ready, ways):
        found[label] = scores
        shown = (value / found[ways[0].label][name] if len(found) > 1 else value for name, value in scores.items())
        console.print(f"{label:<44}" + "".join(f"{x:>14.3f}" for x in shown))
    if given.out:
        given.out.write_text(json.dumps({"perplexity": found, "shape": ready.shape._asdict()}, indent=1))


if __name__ == "__main__":
    main()
