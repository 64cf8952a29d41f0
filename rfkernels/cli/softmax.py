"""`rfkernels softmax`: log-normalizers over the items of a file, with their standard errors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import rfkernels as rfk
from rfkernels.cli.attend import Inputs, _usable
from rfkernels.cli.checking import Checked, compare, exact_log_normalizers
from rfkernels.cli.columns import Columns, check_columns_target, listed, write_columns
from rfkernels.cli.files import load_array
from rfkernels.cli.output import BadInput, as_time, console, print_json

_FILE = click.Path(path_type=Path)
_POSITIVE = click.IntRange(min=1)
_ABOVE_ZERO = click.FloatRange(min=0, min_open=True)
KERNELS = ("softmax", "gaussian")


class Settings(NamedTuple):
    """What is estimated and how; the options of the same names."""

    kernel: str
    scale: float
    bandwidth: float
    budget: int
    error: float | None
    top: int | None
    check: int | None
    batch: int
    seed: int


Advance = Callable[[str, int, int], None]


class Results(NamedTuple):
    """Columns with a row for each query, the comparison with exact values, and the seconds it took."""

    columns: Columns
    checked: Checked | None
    items: int
    building: float
    estimating: float


@click.command(short_help="Log-normalizers with error bars over your own .npy file of items.")
@click.argument("items", type=_FILE)
@click.argument("queries", type=_FILE)
@click.option("-o", "--out", type=_FILE, help="The file to write: .csv, .json or .npz.")
@click.option("--budget", type=_POSITIVE, default=4096, show_default=True, help="Dot products a query.")
@click.option("--error", type=_ABOVE_ZERO, help="The relative standard error to reach; fewer dot products if possible.")
@click.option("--kernel", type=click.Choice(KERNELS), default="softmax", show_default=True, help="What is summed.")
@click.option("--scale", type=_ABOVE_ZERO, default=1.0, show_default=True, help="Multiplies q·y (softmax).")
@click.option("--bandwidth", type=_ABOVE_ZERO, default=1.0, show_default=True, help="The width h (gaussian).")
@click.option("--top", type=_POSITIVE, help="Add the items of largest probability, so many, as ids and probabilities.")
@click.option("--check", type=_POSITIVE, help="Compare so many of the queries with their exact values.")
@click.option("--batch", type=_POSITIVE, default=1024, show_default=True, help="Queries at a time.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of what is drawn.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs; without --out with all columns.")
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
def softmax(items: Path, queries: Path, out: Path | None, as_json: bool, force: bool, **options: Any) -> None:
    """Estimate log Z(q) for each row q of QUERIES over all rows y of ITEMS, with its standard error.

    ITEMS and QUERIES are .npy files, (n, dim) and (m, dim). Z is the sum of exp(scale q·y), or with --kernel gaussian
    of exp(-|q-y|²/2h²). The standard error is that of Z as a part of Z, which to first order is that of log Z.

    \b
    Example: rfkernels softmax items.npy queries.npy -o out.csv --error 0.01 --check 100
    """  # noqa: D301 - \b keeps click from joining lines
    settings = Settings(**options)
    _check_options(settings)
    if out is not None:
        check_columns_target(out, force)
    files = {"items": items, "queries": queries}
    inputs = Inputs({name: load_array(name, path) for name, path in files.items()}, files)
    results = _estimated(inputs, settings)
    if out is not None:
        write_columns(out, results.columns, force)
        console(stderr=True).print(f"wrote {out}: {', '.join(results.columns)}", soft_wrap=True)
    if as_json:
        print_json(_summary(inputs, settings, out, results))
    _say(results, settings, stderr=as_json or out is not None)


def _check_options(settings: Settings) -> None:
    for option in ("error", "scale", "bandwidth"):
        given = getattr(settings, option)
        if given is not None and not math.isfinite(given):
            raise BadInput(f"--{option} must be finite, got {given}")
    for option, kernel in (("scale", "softmax"), ("bandwidth", "gaussian")):
        given = getattr(settings, option)
        if given != 1 and settings.kernel != kernel:
            raise BadInput(f"--{option} {given} is for --kernel {kernel}, got --kernel {settings.kernel}")


def _estimated(inputs: Inputs, settings: Settings) -> Results:
    errors = console(stderr=True)
    columns = TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("grouping items", total=None)

        def advance(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        with _usable(inputs):
            return _run(inputs.arrays["items"], inputs.arrays["queries"], settings, advance)


def _run(items: Any, queries: Any, settings: Settings, advance: Advance) -> Results:
    start = time.perf_counter()
    gaussian = settings.kernel == "gaussian"
    factor = 1 / settings.bandwidth if gaussian else settings.scale
    items = _scaled(items, factor if gaussian else 1)
    catalog = rfk.Catalog(items, kernel="gaussian" if gaussian else None, rng=settings.seed)
    built = time.perf_counter()
    rng, parts = np.random.default_rng(settings.seed), []
    for first in range(0, max(len(queries), 1), settings.batch):
        advance("estimating", first, len(queries))
        parts.append(_batch(catalog, _scaled(queries[first : first + settings.batch], factor), settings, rng))
    columns = {"query": np.arange(len(queries))}
    columns |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    estimated = time.perf_counter()
    checked = None
    if settings.check is not None and len(queries):
        chosen = np.random.default_rng(settings.seed).permutation(len(queries))[: settings.check]
        given = _scaled(queries[chosen], factor)
        exact = exact_log_normalizers(given, items, gaussian, lambda *done: advance("checking", *done))
        checked = compare(columns["log_normalizer"][chosen], columns["standard_error"][chosen], exact)
    return Results(columns, checked, len(catalog), built - start, estimated - built)


def _scaled(x: Any, factor: float) -> Any:
    """Return x times a factor in its own dtype; what is mapped from a file stays so where there is nothing to do."""
    return x if factor == 1 else x * x.dtype.type(factor)


def _batch(catalog: Any, queries: Any, settings: Settings, rng: np.random.Generator) -> dict[str, Any]:
    estimate = catalog.log_normalizer(queries, budget=settings.budget, error=settings.error, full=True, rng=rng)
    columns = estimate._asdict()
    if settings.top is not None:
        ids, logits = catalog.top(queries, settings.top)
        columns |= {"top": ids, "probability": np.exp(logits - estimate.log_normalizer[:, None])}
    return columns


def _summary(inputs: Inputs, settings: Settings, out: Path | None, results: Results) -> dict[str, Any]:
    return {
        "out": None if out is None else str(out),
        "inputs": {
            name: {"file": str(inputs.files[name]), "shape": list(x.shape), "dtype": str(x.dtype)}
            for name, x in inputs.arrays.items()
        },
        **settings._asdict(),
        "seconds": {"grouping": results.building, "estimating": results.estimating},
        "check": None if results.checked is None else results.checked._asdict(),
        **({"columns": listed(results.columns)} if out is None else {}),
    }


def _say(results: Results, settings: Settings, stderr: bool) -> None:
    printed = console(stderr=stderr)
    columns, count = results.columns, len(results.columns["query"])
    printed.print(
        f"{count:,} queries over {results.items:,} items; grouping took {as_time(results.building)}, "
        f"estimating {as_time(results.estimating)}, compilation included where there was any"
    )
    if not count:
        return
    for name, what in (
        ("log_normalizer", "log normalizer"),
        ("standard_error", "relative standard error"),
        ("dots", "dot products a query"),
    ):
        low, middle, high = np.quantile(columns[name], [0, 0.5, 1], method="inverted_cdf")
        printed.print(f"{what}: median {middle:.4g}, {low:.4g} to {high:.4g}")
    missed = 0 if settings.error is None else int(np.sum(columns["standard_error"] > settings.error))
    if missed:
        printed.print(f"{missed:,} queries did not reach --error {settings.error}: raise --budget ({settings.budget})")
    if results.checked is not None:
        _say_checked(results.checked, printed.print)


def _say_checked(checked: Checked, say: Callable[[str], None]) -> None:
    say(
        f"against exact values of {checked.queries} queries: relative error of Z, median {checked.median_error:.2g}, "
        f"95th percentile {checked.high_error:.2g}; {checked.covered} of {checked.queries} 95 % intervals hold"
    )
    if checked.too_few:
        say("That is fewer than chance explains: standard errors are too small here. Raise --budget.")
