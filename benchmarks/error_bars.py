"""Measure how often 95 % intervals hold on the heads of a trained transformer, and what standard errors cost.

Run with ``python benchmarks/error_bars.py [--quick]``. The limit above which errors are not trusted was chosen on the
heads of even number; those of odd number are reported beside them. Queries that the check looked at are left out.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

import rfkernels as rfk
from rfkernels import uncertainty

CHECK = 32


class Held(NamedTuple):
    """Of each draw and head: if errors are trusted, and the share of intervals that hold with the check and without."""

    trusted: Any
    output: Any
    log: Any
    plain_output: Any
    plain_log: Any


def heads() -> tuple[Any, ...]:
    with np.load(str(files("rfkernels") / "data" / "minilm_heads.npz")) as data:
        return tuple(data[name].astype(np.float32) for name in "qkv")


def features_for(method: str, count: int, q: Any, k: Any, seed: int) -> rfk.Features:
    if method == "draw":
        return rfk.draw("positive", q.shape[-1], count, batch=(len(q),), rng=seed)
    return rfk.fit(q, k, count, method=method, rng=seed)


def measured(method: str, count: int, causal: bool, window: int | None, seeds: int) -> Held:
    q, k, v = heads()
    exact = rfk.exact_attention(q, k, v, causal=causal)
    at = np.arange(q.shape[-2])
    score = np.asarray(q @ np.swapaxes(k, -1, -2), np.float64) / np.sqrt(q.shape[-1])
    exact_log = np.log(np.exp(np.where((at <= at[:, None]) | (not causal), score, -np.inf)).sum(-1))
    others = np.setdiff1d(at, uncertainty._check.positions(len(at), CHECK))
    rows = []
    for seed in range(seeds):
        features = features_for(method, count, q, k, seed)
        found = uncertainty.attend(rfk.attention, q, k, v, features, causal=causal, window=window, check=CHECK)
        error = found.error
        assert error is not None
        width, log_width = (uncertainty.half_width(x, error.freedom) for x in (error.output, error.log_normalizer))
        off, log_off = np.abs(found.output - exact), np.abs(found.log_normalizer - exact_log)
        factor, log_factor = error.inflation[:, None, None], error.log_inflation[:, None]
        shares = [
            np.mean((a <= b)[:, others], axis=tuple(range(1, a.ndim)))
            for a, b in ((off, width), (log_off, log_width), (off, width / factor), (log_off, log_width / log_factor))
        ]
        rows.append(Held(uncertainty.trusted(error), *shares))
    return Held(*(np.array(x) for x in zip(*rows, strict=True)))


def percent(x: Any) -> str:
    return f"{100 * np.mean(x):5.1f}" if np.size(x) else "    –"


def table(seeds: int, methods: tuple[str, ...], counts: tuple[int, ...]) -> None:
    print("share of 95 % intervals that hold, in %: outputs / log-normalisers")
    print("features   count causal window heads | no warning | where none     | everywhere     | without the check")
    for method, count, causal, window in itertools.product(methods, counts, (False, True), (None, 32)):
        held = measured(method, count, causal, window, seeds)
        for name, part in (("even", slice(0, None, 2)), ("odd", slice(1, None, 2))):
            own = Held(*(x[:, part] for x in held))
            ok, (_, *shares) = own.trusted, own
            usual = np.sum(np.mean(ok, 0) > 0.5)
            cells = [f"{percent(a)} / {percent(b)}" for a, b in (shares[:2], shares[2:])]
            there = f"{percent(own.output[ok])} / {percent(own.log[ok])}"
            print(
                f"{method:9} {count:6} {causal!s:6} {window!s:6} {name:5} | {percent(ok)} %, {usual}/6 | {there} | "
                f"{cells[0]} | {cells[1]}",
                flush=True,
            )


def used(call: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Seconds by the clock and of processor time, each the least over some rounds."""
    call()
    found = []
    for _ in range(rounds):
        start, busy = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - start, time.process_time() - busy))
    return min(a for a, _ in found), min(b for _, b in found)


def costs(length: int, rounds: int) -> None:
    print(f"\ntime over that of attention without errors, H=4 L={length} d=64 float32: clock / processor")
    q, k, v = np.random.default_rng(0).standard_normal((3, 4, length, 64), dtype=np.float32)
    for count, causal, window in itertools.product((256, 1024), (False, True), (None, 64)):
        features = rfk.draw("positive", 64, count, rng=0)
        options: dict[str, Any] = {"causal": causal, "window": window}

        def plain(features: rfk.Features = features, options: dict[str, Any] = options) -> Any:
            return rfk.attention(q, k, v, features, **options)

        def errors(check: int, features: rfk.Features = features, options: dict[str, Any] = options) -> Any:
            return uncertainty.attend(rfk.attention, q, k, v, features, check=check, **options)

        once, unchecked, checked = (used(f, rounds) for f in (plain, lambda: errors(0), lambda: errors(CHECK)))
        cells = [f"{x[0] / once[0]:.2f} / {x[1] / once[1]:.2f}" for x in (unchecked, checked)]
        print(f"m={count:4} causal={causal!s:5} window={window!s:4}: {cells[0]}, with the check {cells[1]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one draw and the best method only, under a minute")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore", uncertainty.UntrustedErrorWarning)
    if quick:
        table(1, ("tilted",), (1024,))
    else:
        table(8, ("draw", "affine", "tilted"), (256, 1024))
    costs(2048 if quick else 8192, 3 if quick else 5)


if __name__ == "__main__":
    main()
