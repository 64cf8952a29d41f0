"""Catalogs of 399,000 GloVe vectors on a device of JAX: errors and speed against exact sums on the same device.

    python benchmarks/catalog_jax.py [--vectors FILE] [--quick] [--load FILE] [--out]

The settings, queries and past queries of `catalog.py`, of vectors rounded to half precision (`--vectors` takes a file
of either precision). A catalog is built on the host, by scikit-learn and Numba; `--save FILE` keeps what was built, and
`--load FILE` takes it where these are missing. Exact sums are `logsumexp(queries @ items.T)` on the device, with
products of float32 at the highest and at the default precision (TF32 on NVIDIA's), and of bfloat16 added in float32.

Functions are compiled ahead, which is timed apart. Every call is waited for; calls take turns with other queries, and
cases take turns in rounds. After `--seconds` measuring stops at the next line.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder that holds `benchmarks`

import jax
import jax.numpy as jnp
import numpy as np

import rfkernels as rfk
from benchmarks.catalog_items import of_kind
from benchmarks.catalog_jax_data import Case, built, loaded, save, vectors
from benchmarks.cpu import RESULTS, machine_facts, shown_value, write
from benchmarks.glove import Array, Setting, errors, share_held
from rfkernels.backends.jax import catalog as on_device
from rfkernels.benchmark.line import Line, missing_line, show_seconds
from rfkernels.benchmark.timing import Timings, interleave, timed
from rfkernels.catalog.records import Estimate

BUDGETS = 4000, 2000
EXACT = {"float32, highest precision": "highest", "float32, default precision": "default", "bfloat16": "bfloat16"}
OWN = {"raw": (1.0,), "unit": (20.0,)}
DRAWS = 256
TOP = 10
WAYS: dict[str, dict[str, Any]] = {"": {}, ", head=0, whole=False": {"head": 0, "whole": False}}
ROUNDS, SECONDS = 7, 0.05
FULL, QUICK = (400_000, 1000), (20_000, 100)


class Compiled(NamedTuple):
    """A compiled function, the seconds that took, and the bytes it works in beyond arguments and results."""

    call: Callable[..., Any]
    seconds: float
    memory: int

    def __str__(self) -> str:
        return f"compiled in {self.seconds:.1f} s, works in {self.memory / 1e6:,.0f} MB"


def compiled(function: Callable[..., Any], *given: Any) -> Compiled:
    start = time.perf_counter()
    call = jax.jit(function).lower(*given).compile()
    seconds = time.perf_counter() - start
    return Compiled(call, seconds, getattr(call.memory_analysis(), "temp_size_in_bytes", 0))


def exact(rows: Any, queries: Any, how: str) -> Any:
    """Return log Z by all logits of all queries at once."""
    precision = None if how == "bfloat16" else how
    queries = queries.astype(rows.dtype)
    logits = jnp.matmul(queries, rows.T, precision=precision, preferred_element_type=jnp.float32)
    return jax.nn.logsumexp(logits, axis=1)


class Measured:
    """The table of a case on the device, and functions compiled for it, each once."""

    def __init__(self, case: Case) -> None:
        self.settings, self.name = case.settings, case.kind
        self.table, self.key = on_device.device_table(case.table), jax.random.key(0)
        self.half = self.table.rows.astype(jnp.bfloat16)
        self._made: dict[Any, Compiled] = {}

    def _once(self, name: Any, function: Callable[..., Any], *given: Any) -> Compiled:
        if name not in self._made:
            self._made[name] = compiled(function, *given)
        return self._made[name]

    def exact(self, how: str, queries: Any) -> tuple[Callable[[Any], Any], Compiled]:
        """Return a function of so many queries."""
        rows = self.half if how == "bfloat16" else self.table.rows
        made = self._once((how, len(queries)), lambda rows, q: exact(rows, q, how), rows, queries)
        return lambda q: made.call(rows, q), made

    def estimate(self, budget: int, queries: Any) -> tuple[Callable[[Any], Any], Compiled]:
        def function(table: Any, q: Any, key: Any) -> Any:
            return on_device.estimate(table, q, budget, key)

        made = self._once((budget, len(queries)), function, self.table, queries, self.key)
        return lambda q: made.call(self.table, q, self.key), made

    def sample(self, way: str, queries: Any) -> tuple[Callable[[Any], Any], Compiled]:
        def function(table: Any, q: Any, key: Any) -> Any:
            return on_device.sample(table, q, DRAWS, key, **WAYS[way])

        made = self._once(("sample", way), function, self.table, queries, self.key)
        return lambda q: made.call(self.table, q, self.key), made

    def stated(self, way: str, queries: Any, ids: Any) -> tuple[Callable[[Any], Any], Compiled]:
        def function(table: Any, q: Any, ids: Any) -> Any:
            return on_device.log_probability(table, q, ids, **WAYS[way])

        made = self._once(("stated", way), function, self.table, queries, ids)
        return lambda q: made.call(self.table, q, ids), made

    def kernel_sum(self, kernel: str, scale: float, budget: int, queries: Any) -> tuple[Callable[[Any], Any], Compiled]:
        def function(table: Any, q: Any, key: Any, scale: Any) -> Any:
            return on_device.kernel_sum(table, q, kernel, budget, key, scale=scale)

        given = jnp.float32(scale)
        made = self._once((kernel, budget), function, self.table, queries, self.key, given)
        return lambda q: made.call(self.table, q, self.key, given), made

    def exact_distances(self, kernel: str, scale: float, queries: Any) -> tuple[Callable[[Any], Any], Compiled]:
        """Sums of a kernel by all distances, computed from products."""
        known, given = rfk.lookup(kernel).kernel, jnp.float32(scale)
        assert known is not None

        def function(rows: Any, q: Any, scale: Any) -> Any:
            dots = scale * jnp.matmul(q, rows.T, precision="highest")
            xx, yy = (scale * jnp.sum(x * x, 1) for x in (q, rows))
            return jax.nn.logsumexp(known.log(jnp, dots, xx[:, None], yy), axis=1)

        made = self._once((kernel, "exact"), function, self.table.rows, queries, given)
        return lambda q: made.call(self.table.rows, q, given), made

    def top(self, budget: int, queries: Any) -> tuple[Callable[[Any], Any], Compiled]:
        made = self._once(("top", budget), lambda table, q: on_device.top(table, q, TOP, budget), self.table, queries)
        return lambda q: made.call(self.table, q), made


def accuracy(measured: Measured) -> Iterator[Line]:
    """Errors of Z and of intervals in each setting; those of exact sums beside them."""
    for setting in measured.settings:
        queries = jnp.asarray(setting.queries)
        for budget in BUDGETS:
            found = measured.estimate(budget, queries)[0](queries)
            log, error, dots = (np.asarray(x, np.float64) for x in found)
            what = f"{setting.name}, {budget:,} dots"
            yield from _quantiles(what, errors(log, setting.exact), f"dots taken: {np.median(dots):.0f}")
            detail = f"median relative standard error {np.median(error):.2g}"
            held = share_held(log, error, setting.exact)
            yield Line(f"{what}: share of 95 % intervals that hold", 100 * held, "%", "", detail)
        for name, how in EXACT.items():
            log = np.asarray(measured.exact(how, queries)[0](queries), np.float64)
            yield from _quantiles(f"{setting.name}, exact, {name}", errors(log, setting.exact), "against NumPy's")


def of_items(measured: Measured) -> Iterator[Line]:
    """Errors of Z and of intervals where queries are items, times τ."""

    def find(queries: Array, budget: int) -> Any:
        given = jnp.asarray(queries)
        return Estimate(*measured.estimate(budget, given)[0](given))

    setting = measured.settings[0]
    yield from of_kind(measured.name, find, setting.items, len(setting.queries), OWN[measured.name], BUDGETS)


def _quantiles(what: str, error: Array, detail: str) -> Iterator[Line]:
    for name, q in (("median", 0.5), ("95th percentile", 0.95)):
        yield Line(f"{what}: error of Z, {name}", float(np.quantile(error, q)), "", "", detail)


def speed(measured: Measured) -> Iterator[Line]:
    """Queries a second of the first setting, in batches and alone."""
    setting = measured.settings[0]
    for count in (len(setting.queries), len(setting.queries) // 4, 1):
        batches = _batches(setting, count)
        cases = {f"{budget:,} dots": measured.estimate(budget, batches[0]) for budget in BUDGETS}
        cases |= {f"exact, {name}": measured.exact(how, batches[0]) for name, how in EXACT.items()}
        calls = {name: (call, str(made)) for name, (call, made) in cases.items()}
        if count == 1:  # as a user calls it who compiles nothing: arguments are checked, finite queries included
            eager = lambda q: on_device.estimate(measured.table, q, BUDGETS[0], measured.key)  # noqa: E731
            calls[f"{BUDGETS[0]:,} dots, not under jit"] = eager, ""
        yield from _rates(
            f"{setting.name}, {'one query' if count == 1 else f'{count:,} queries'}", count, calls, batches
        )


def sampling(measured: Measured) -> Iterator[Line]:
    """Draws of the first setting: how good, how fast, and whether probabilities stated later are the same."""
    setting = measured.settings[0]
    count = len(setting.queries) // 4
    batches, what = _batches(setting, count), f"{setting.name}, {DRAWS} draws"
    first, log_z = batches[0], setting.exact[:count, None]
    calls: dict[str, tuple[Callable[[Any], Any], str]] = {}
    for way in WAYS:
        draw, made = measured.sample(way, first)
        ids, log, logits = draw(first)
        again, stated = measured.stated(way, first, ids)
        calls |= {f"sample{way}": (draw, str(made)), f"log_probability{way}": (again, str(stated))}
        weight = np.exp(np.asarray(logits, np.float64) - np.asarray(log, np.float64) - log_z)
        low, middle = np.quantile(weight.mean(1) ** 2 / np.square(weight).mean(1), (0.05, 0.5))
        detail = f"5th percentile {low:.2f}; mean weight / Z {weight.mean():.4f} ± {_error(weight):.2g}"
        yield Line(f"{what}{way}: effective share, median", float(middle), "", "", detail)
        apart = float(np.max(np.abs(np.asarray(again(first)) - np.asarray(log))))
        yield Line(f"{what}{way}: log_probability of the draws less what they say, most", apart, "", "", "")
    yield from _rates(f"{what}, {count:,} queries", count, calls, batches)


def distances(measured: Measured) -> Iterator[Line]:
    """Sums of kernels of a distance, of queries that are not multiplied: errors, intervals and rates."""
    setting = measured.settings[0]
    queries, items = setting.queries / setting.tau, setting.items
    silverman = len(items) ** (-1 / (items.shape[1] + 4)) * float(np.sqrt(items.var(0).mean()))
    for name, kernel, multiple in (
        ("Gaussian", "gaussian", 4.0),
        ("exponential", "laplacian", 4 * items.shape[1] ** -0.5),
    ):
        scale = (multiple * silverman) ** -2
        count = len(queries) // 4
        batches = [jnp.asarray(queries[i : i + count]) for i in range(0, len(queries) - count + 1, count)]
        exactly, how = measured.exact_distances(kernel, scale, batches[0])
        truth = np.concatenate([np.asarray(exactly(q), np.float64) for q in batches])
        calls: dict[str, tuple[Callable[[Any], Any], str]] = {"exact, float32": (exactly, str(how))}
        for budget in BUDGETS:
            call, made = measured.kernel_sum(kernel, scale, budget, batches[0])
            calls[f"{budget:,} dots"] = call, str(made)
            log, error, _ = (np.concatenate(x) for x in zip(*(map(np.asarray, call(q)) for q in batches), strict=True))
            what = f"{measured.name}, {name} kernel, h={multiple * silverman:.2g}, {budget:,} dots"
            yield from _quantiles(what, errors(log.astype(np.float64), truth), "")
            detail = f"median relative standard error {np.median(error):.2g}"
            yield Line(
                f"{what}: share of 95 % intervals that hold", 100 * share_held(log, error, truth), "%", "", detail
            )
        yield from _rates(f"{measured.name}, {name} kernel, {count:,} queries", count, calls, batches)


def largest(measured: Measured) -> Iterator[Line]:
    """The ten items of largest q·y: how many of them are found, and rates."""
    setting = measured.settings[0]
    count = len(setting.queries) // 4
    batches = _batches(setting, count)
    exactly, how = measured.top(len(setting.items), batches[0])
    truth = [np.asarray(exactly(q).ids) for q in batches]
    calls: dict[str, tuple[Callable[[Any], Any], str]] = {"exact, budget of all": (exactly, str(how))}
    for budget in BUDGETS:
        call, made = measured.top(budget, batches[0])
        calls[f"{budget:,} dots"] = call, str(made)
        found = [np.asarray(call(q).ids) for q in batches]
        hits = [np.isin(a, b).mean() for x, y in zip(found, truth, strict=True) for a, b in zip(x, y, strict=True)]
        yield Line(f"{measured.name}, {budget:,} dots: found of the {TOP} largest", float(np.mean(hits)), "", "", "")
    yield from _rates(f"{measured.name}, {TOP} largest, {count:,} queries", count, calls, batches)


def _error(weight: Array) -> float:
    return float(np.std(weight.mean(1)) / len(weight) ** 0.5)


def _batches(setting: Setting, count: int) -> list[Any]:
    return [jnp.asarray(setting.queries[i : i + count]) for i in range(0, len(setting.queries) - count + 1, count)]


def _rates(
    what: str, count: int, calls: dict[str, tuple[Callable[[Any], Any], str]], batches: list[Any]
) -> Iterator[Line]:
    def waiting(call: Callable[[Any], Any]) -> Callable[[], Any]:
        following = cycle(batches)
        return lambda: jax.block_until_ready(call(next(following)))  # type: ignore[no-untyped-call]

    samplers = {name: timed(waiting(call), SECONDS) for name, (call, _) in calls.items()}
    timings = Timings(interleave(samplers, ROUNDS, lambda seconds: None))  # no threads spin between samples
    for name, (_, note) in calls.items():
        times = timings.samples[name]
        parts = [f"a call {show_seconds(timings.median(name))}, rounds {show_seconds(min(times))} to"]
        parts = [f"{parts[0]} {show_seconds(max(times))}", *([note] if note else [])]
        theirs = [other for other in calls if other.startswith("exact")]
        if theirs and not name.startswith("exact"):
            ratios = ", ".join(f"{other.removeprefix('exact, ')} {timings.ratio(other, name):.3g}" for other in theirs)
            parts.append(f"time of exact / ours: {ratios}")
        yield Line(f"{what}, {name}: queries a second", count / timings.median(name), "/s", "", "; ".join(parts))


def until(seconds: float, start: float, cases: list[Case]) -> Iterator[Line]:
    """Measure part after part, and say where time was over."""
    held = [Measured(case) for case in cases]
    for part in (accuracy, of_items, speed, sampling, distances, largest):
        for measured in held:
            for line in part(measured):
                yield line
                if time.perf_counter() - start > seconds:
                    yield missing_line("all that follows", "", "", f"{seconds:.0f} s are over")
                    return


def shown(line: Line) -> str:
    return f"{line.name:84s} {shown_value(line):>12s}  {line.detail}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, help="the .npy file of the package, as it is or in half precision")
    parser.add_argument("--quick", action="store_true", help="20,000 vectors and 100 queries")
    parser.add_argument("--seconds", type=float, default=110, help="stop after so many seconds (110)")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--save", type=Path, metavar="FILE.npz", help="build, write this file, and measure nothing")
    kept.add_argument("--load", type=Path, metavar="FILE.npz", help="take what was saved")
    default = RESULTS / f"catalog-jax-{datetime.date.today().isoformat()}.json"
    parser.add_argument("--out", type=Path, nargs="?", const=default, help="write JSON and a Markdown table beside it")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    device = f"{jax.devices()[0].device_kind} ({jax.default_backend()}), jax {jax.__version__}"
    print(device, flush=True)
    count, queries = QUICK if options.quick else FULL
    half = vectors(options.vectors, count)
    cases, how = loaded(options.load, half, queries) if options.load else built(half, queries)
    print(how, flush=True)
    if options.save:
        save(options.save, cases)
        return 0
    lines = []
    for line in until(options.seconds, start, cases):
        lines.append(line)
        print(shown(line), flush=True)
    facts = {"device": device, **machine_facts(), "run": f"{time.perf_counter() - start:.0f} s; {how}"}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    if options.out is not None:
        write(options.out, facts, lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
