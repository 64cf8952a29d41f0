"""Time attention with groups, heavy keys and a window against plain linear attention on this machine.

python benchmarks/blocks.py [--quick]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import rfkernels as rfk
from rfkernels.benchmark.peers import torch_exact
from rfkernels.benchmark.plan import FULL
from rfkernels.benchmark.timing import Call, Timings, interleave, timed

Arrays = tuple[Any, Any, Any]


def inputs(heads: int, length: int, dim: int) -> Arrays:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((heads, length, dim), dtype=np.float32) for _ in range(3))
    return q, k, v


def measure(calls: Mapping[str, Call], rounds: int, seconds: float) -> Timings:
    return Timings(interleave({name: timed(call, seconds) for name, call in calls.items()}, rounds))


def report(title: str, timings: Timings, base: Mapping[str, str]) -> None:
    """Print median times, and for each case with one in `base` the median of its quotients by that."""
    print(f"\n{title}")
    for name in timings.samples:
        under = base.get(name)
        ratio = "" if under is None else f"   {timings.ratio(name, under):.2f} times {under}"
        print(f"  {name:34s} {1e3 * timings.median(name):9.2f} ms{ratio}")


class Case(NamedTuple):
    """Sizes, and what plain linear attention is given beside its 256 features."""

    title: str
    shape: tuple[int, int, int]
    sample: int
    near: dict[str, Any]
    linear: dict[str, Any]


_TOKENS = 64

EVERYTHING = Case(
    "8 heads, 8,192 positions, d = 64; 256 positive features; 128 groups, 16 heavy keys, window 128",
    (8, 8192, 64),
    2048,
    {"window": 128, "heavy": 16},
    {},
)
SHORT = Case(
    "12 heads, 512 positions, d = 32, window 32; 256 positive features or 128 groups",
    (12, 512, 32),
    512,
    {"window": 32},
    {"window": 32},
)


def compare(case: Case, rounds: int, seconds: float) -> None:
    q, k, v = inputs(*case.shape)
    features = rfk.draw("positive", case.shape[-1], 256, rng=0)
    few = slice(case.sample)
    groups = rfk.fit_groups(q[:, few], k[:, few], 128, v=v[:, few])
    linear, near = (
        partial(rfk.attention, q, k, v, features, **case.linear),
        partial(rfk.attention, q, k, v, **case.near),
    )
    cases = {
        "linear": linear,
        "linear, causal": partial(linear, causal=True),
        "groups fitted to the input": partial(near, groups=128),
        "groups given": partial(near, groups=groups),
        "groups given, causal": partial(near, groups=groups, causal=True),
        "groups merged, causal": partial(near, groups=128, causal=True),
    }
    if "heavy" in case.near:
        beside = partial(rfk.attention, q, k, v, features, **case.near)
        cases |= {"features, heavy keys": beside, "features, heavy keys, causal": partial(beside, causal=True)}
    under = {
        name: "linear, causal" if "causal" in name else "linear" for name in cases if not name.startswith("linear")
    }
    report(case.title, measure(cases, rounds, seconds), under)


def fitting(rounds: int, seconds: float) -> None:
    q, k, v = inputs(8, 8192, 64)
    backends = {"NumPy": "numpy", "Numba": "numba"}
    cases = {name: partial(rfk.fit_groups, q, k, 128, v=v, backend=backend) for name, backend in backends.items()}
    timings = measure(cases, rounds, seconds)
    report("finding 128 groups for 8 heads of 8,192 positions, d = 64", timings, {"Numba": "NumPy"})


def _each(calls: list[Call]) -> None:
    for call in calls:
        call()


def decoding(rounds: int, seconds: float, lengths: list[int]) -> None:
    """Time tokens of 8 heads, one after the other, after so many: from a state, and exactly over all keys before.

    Exact attention need not put the tokens' own keys anywhere, nor return anything but the output.
    """
    whole = inputs(8, _TOKENS, 64)
    tokens = [tuple(x[:, i : i + 1] for x in whole) for i in range(_TOKENS)]
    features = rfk.draw("positive", 64, 256, rng=0)

    def decode(state: Any, **options: Any) -> None:
        for token in tokens:
            state = rfk.attention(*token, **options, state=state).state

    for length in lengths:
        q, k, v = inputs(8, length, 64)
        beside = {"heavy": 16, "window": 128}
        groups = rfk.fit_groups(q[:, :512], k[:, :512], 128, v=v[:, :512])
        ways: dict[str, dict[str, Any]] = {
            "linear": {"features": features},
            "linear, window": {"features": features, "window": 128},
            "groups merged": {"groups": 128, **beside},
            "groups given": {"groups": groups, **beside},
            "features, heavy keys": {"features": features, **beside},
        }
        exact = [torch_exact(FULL, (token[0], k, v), causal=False) for token in tokens]
        calls: dict[str, Call] = {"exact, torch": partial(_each, exact)}
        for name, options in ways.items():
            options |= {"causal": True, "full": True}
            calls[name] = partial(decode, rfk.attention(q, k, v, **options).state, **options)
        title = (
            f"{_TOKENS} tokens of 8 heads one by one after {length:,}; 256 positive features, 128 groups, 16 heavy keys"
        )
        report(f"{title}, window 128", measure(calls, rounds, seconds), dict.fromkeys(ways, "exact, torch"))


def growth(rounds: int, lengths: list[int]) -> None:
    """Time per token of one head; each length in a process of its own, for its peak memory."""
    print("\none head, d = 64, 128 groups, 16 heavy keys, window 128; groups found in the input, given, or merged")
    for way in ("bidirectional", "causal", "merged"):
        for length in lengths:
            done = subprocess.run(
                [sys.executable, __file__, "--one", str(length), way, str(rounds)],
                capture_output=True,
                text=True,
                check=True,
            )
            print(f"  {way:14s} {length:9,d} positions: {done.stdout.strip()}")


def one(length: int, way: str, rounds: int) -> None:
    q, k, v = inputs(1, length, 64)
    causal = way != "bidirectional"
    groups = rfk.fit_groups(q[:, :2048], k[:, :2048], 128, v=v[:, :2048]) if way == "causal" else 128
    call: Callable[[], Any] = partial(rfk.attention, q, k, v, groups=groups, heavy=16, window=128, causal=causal)
    small = partial(
        rfk.attention, *(x[:, :4096] for x in (q, k, v)), groups=groups, heavy=16, window=128, causal=causal
    )
    small()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    seconds = min(interleave({"": timed(call, 0)}, rounds)[""])
    print(f"{1e9 * seconds / length:7.0f} ns a token, peak memory grows by {grown / 2**20:6.0f} MiB,", end=" ")
    print(f"of which {4 * 64 * length / 2**20:.0f} are the output")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and lengths")
    parser.add_argument("--one", nargs=3, metavar=("LENGTH", "WAY", "ROUNDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(int(options.one[0]), options.one[1], int(options.one[2]))
        return
    rounds, seconds = (3, 0.0) if options.quick else (9, 0.2)
    for case in (EVERYTHING, SHORT):
        compare(case, rounds, seconds)
    fitting(rounds, seconds)
    decoding(rounds, seconds, [1024, 16_384] if options.quick else [512, 1024, 2048, 4096, 16_384])
    growth(3, [8192, 65536] if options.quick else [8192, 65536, 262_144, 1_048_576])


if __name__ == "__main__":
    main()
