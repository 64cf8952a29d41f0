"""`rfkernels softmax`: log-normalizers over the items of a file, with their standard errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import rfkernels as rfk
from rfkernels._checks import check_array, require_finite
from rfkernels.catalog.arguments import check_kernel
from rfkernels.cli.attend import Inputs, _usable
from rfkernels.cli.checking import Checked, Items, check_rows
from rfkernels.cli.columns import Columns, check_columns_target, listed, write_columns
from rfkernels.cli.files import load_array
from rfkernels.cli.output import BadInput, Integer, as_time, console, print_json

_FILE = click.Path(path_type=Path)
_POSITIVE = Integer(min=1)
_SEED = Integer(min=0, max=2**32 - 1)
SOFTMAX = "softmax"
_ASKED = 2_000
"""About how many queries cells are found for."""

_SCALES, _BANDWIDTHS = (1e-200, 1e200), (1e-100, 1e100)
"""What leaves room in float64 for products with squared distances of float32."""

Advance = Callable[[str, int, int], None]


class Settings(NamedTuple):
    """What is estimated and how; the options of the same names."""

    budget: int
    error: float | None
    kernel: str
    scale: float
    top: int | None
    check: int | None
    batch: int
    seed: int
    verify: bool


class Results(NamedTuple):
    """Columns with a row for each query, the comparison with exact values, and the seconds it took."""

    columns: Columns
    checked: Checked | None
    items: int
    grouping: float
    estimating: float


@click.command(short_help="Log-normalizers with error bars over your own .npy file of items.")
@click.argument("items", type=_FILE)
@click.argument("queries", type=_FILE)
@click.option("-o", "--out", type=_FILE, help="The file to write: .csv, .json or .npz.")
@click.option(
    "--budget",
    type=_POSITIVE,
    default=4096,
    show_default=True,
    help="Dot products a query; codes count by their bytes.",
)
@click.option("--error", type=float, help="A relative standard error to aim at, from a pilot of --budget.")
@click.option("--kernel", default=SOFTMAX, show_default=True, help="What is summed; or gaussian, or another map's.")
@click.option("--scale", type=float, help="Multiplies q·y, |q|² and |y|²; 1 if not given.")
@click.option("--bandwidth", type=float, help="Of the gaussian: exp(-|q-y|²/2h²), which is --scale 1/h².")
@click.option("--top", type=_POSITIVE, help="Add the largest items that are found, as ids and probabilities.")
@click.option("--check", type=_POSITIVE, help="Compare so many of the queries with their exact values.")
@click.option("--batch", type=_POSITIVE, default=1024, show_default=True, help="Queries at a time.")
@click.option("--seed", type=_SEED, default=0, show_default=True, help="Seed of what is drawn.")
@click.option(
    "--verify/--no-verify", default=True, show_default=True, help="Read all of a saved catalog first, to check it."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs; without --out with all columns.")
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
def softmax(
    items: Path,
    queries: Path,
    out: Path | None,
    scale: float | None,
    bandwidth: float | None,
    as_json: bool,
    force: bool,
    **options: Any,
) -> None:
    """Estimate log Z(q) for each row q of QUERIES over all rows y of ITEMS, with its standard error.

    QUERIES is a .npy file (m, dim), ITEMS one of (n, dim) or what Catalog.save wrote. Z is the sum of exp(scale q·y),
    or of another kernel. The standard error is that of Z as a part of Z, which to first order is that of log Z.

    \b
    Example: rfkernels softmax items.npy queries.npy -o out.csv --error 0.01 --check 100
    """  # noqa: D301 - \b keeps click from joining lines
    settings = Settings(**options, scale=_scale(options["kernel"], scale, bandwidth))
    _check(settings)
    if out is None and force:
        raise BadInput("--force is for --out, which is not given")
    if out is not None:
        check_columns_target(out, force)
    files = {"items": items, "queries": queries}
    arrays = {name: load_array(name, path) for name, path in files.items() if name == "queries" or not _saved(path)}
    inputs = Inputs(arrays, files)
    results = _watched(inputs, settings)
    if out is not None:
        write_columns(out, results.columns, force)
        console(stderr=True).print(f"wrote {out}: {', '.join(results.columns)}", soft_wrap=True)
    if as_json:
        print_json(_summary(inputs, settings, out, results))
    _say(results, settings, stderr=as_json or out is not None)


def _saved(path: Path) -> bool:
    """Whether a file starts as `Catalog.save` lets it start: eight bytes, and then a header in JSON."""
    try:
        if not path.is_file():  # a pipe may never be opened
            return False
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False  # `load_array` says why it cannot be read


def _scale(kernel: str, scale: float | None, bandwidth: float | None) -> float:
    """Return the scale that is given, or that a bandwidth stands for."""
    for option, given, (least, most) in (("scale", scale, _SCALES), ("bandwidth", bandwidth, _BANDWIDTHS)):
        if given is not None and not least <= given <= most:
            raise BadInput(f"--{option} must be a number from {least:g} to {most:g}, got {given}")
    if bandwidth is None:
        return 1.0 if scale is None else scale
    if kernel != "gaussian":
        raise BadInput(f"--bandwidth is for --kernel gaussian, got --kernel {kernel}")
    if scale is not None:
        raise BadInput(
            f"--bandwidth {bandwidth} and --scale {scale} contradict each other: a bandwidth h is the scale 1/h²"
        )
    return bandwidth**-2


def _check(settings: Settings) -> None:
    """Refuse what can be seen without the files."""
    _check_kernel(settings.kernel)
    if settings.error is not None and not 0 < settings.error < 1:
        raise BadInput(f"--error must be a number between 0 and 1, got {settings.error}")
    if settings.top is not None and settings.kernel != SOFTMAX:
        raise BadInput(f"--top is for --kernel {SOFTMAX}, got --kernel {settings.kernel}")


def _check_kernel(name: str) -> None:
    """Require a kernel whose sums have a log."""
    kernels = {known: rfk.lookup(known).kernel for known in rfk.names()}
    names = [SOFTMAX, *(known for known, kernel in kernels.items() if kernel is not None and kernel.sign is None)]
    if name not in names:
        expected = f"{SOFTMAX} or a map with a kernel that is not negative, one of {', '.join(names)}"
        raise BadInput(f"--kernel must be {expected}; got {name!r}")


def _watched(inputs: Inputs, settings: Settings) -> Results:
    errors = console(stderr=True)
    columns = TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("grouping items", total=None)

        def advance(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        with _usable(inputs, settings._fields):
            return _results(inputs, settings, advance)


def _results(inputs: Inputs, settings: Settings, advance: Advance) -> Results:
    start, queries = time.perf_counter(), inputs.arrays["queries"]
    if queries.ndim != 2:
        raise ValueError(f"queries must have shape (queries, dim), got {queries.shape}")
    check_array("queries", queries, 2)
    require_finite("queries", queries)
    catalog = _catalog(inputs, settings)
    grouped = time.perf_counter()
    columns = _estimated(catalog, queries, settings, advance)
    estimated = time.perf_counter()
    checked = None
    if settings.check is not None and len(queries) and len(catalog):
        chosen = np.random.default_rng(settings.seed).permutation(len(queries))[: settings.check]
        ids = catalog.ids
        items = Items(lambda part: catalog.items(ids[part]), len(ids))
        checked = check_rows(columns, chosen, queries, items, _kernel(settings), settings.scale, advance)
    return Results(columns, checked, len(catalog), grouped - start, estimated - grouped)


def _estimated(catalog: rfk.Catalog, queries: Any, settings: Settings, advance: Advance) -> Columns:
    """Return a row for each query, batch by batch; who stops it halfway is told that nothing is kept."""
    parts: list[dict[str, Any]] = []
    first, total = 0, len(queries)
    try:
        for first in range(0, max(total, 1), settings.batch):
            advance("estimating", first, total)
            batch = queries[first : first + settings.batch]
            parts.append(_batch(catalog, batch, settings, settings.seed + (first << 32)))
    except (KeyboardInterrupt, SystemExit):
        click.echo(f"stopped after {first:,} of {total:,} queries: nothing is written until all are done", err=True)
        raise
    columns = {"query": np.arange(total)}
    return columns | {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _asked(queries: Any, settings: Settings) -> Any:
    """Return some queries that cells are to suit; none for other kernels, or where these queries tell nothing."""
    if _kernel(settings).norm_weight != 0:
        return None
    some = queries[np.sort(np.random.default_rng(settings.seed).permutation(len(queries))[:_ASKED])]
    return some if np.isfinite(some).all() and np.any(some) else None


def _kernel(settings: Settings) -> rfk.Kernel:
    return check_kernel("positive" if settings.kernel == SOFTMAX else settings.kernel)


def _catalog(inputs: Inputs, settings: Settings) -> rfk.Catalog:
    items = inputs.arrays.get("items")
    if items is not None:
        if items.ndim != 2:
            raise ValueError(f"items must have shape (items, dim), got {items.shape}")
        queries, dim = inputs.arrays["queries"], items.shape[1]
        if queries.shape[1] != dim:
            raise ValueError(f"queries must have shape (queries, {dim}), got {queries.shape}")
        _check_top(settings, len(items))
        return rfk.Catalog(items, queries=_asked(queries, settings), rng=settings.seed)
    try:
        catalog = rfk.Catalog.load(inputs.files["items"], mapped=True, verify=settings.verify)
    except OSError as error:
        raise BadInput(f"items: {inputs.files['items']} cannot be read: {error.strerror or error}") from error
    _check_top(settings, len(catalog))
    return catalog


def _check_top(settings: Settings, items: int) -> None:
    if settings.top is not None and settings.top > items:
        raise ValueError(f"--top must be at most the number of items, {items}, got {settings.top}")


def _batch(catalog: rfk.Catalog, queries: Any, settings: Settings, seed: int) -> dict[str, Any]:
    how: dict[str, Any] = {"budget": settings.budget, "error": settings.error, "full": True, "rng": seed}
    if settings.kernel != SOFTMAX:
        found = catalog.kernel_sum(queries, settings.kernel, scale=settings.scale, **how)
        return dict(found._asdict())
    queries = _scaled(queries, settings.scale, catalog.table.rows.dtype)
    columns = dict(catalog.log_normalizer(queries, **how)._asdict())
    if settings.top is not None:
        ids, logits = catalog.top(queries, settings.top, budget=settings.budget)
        columns |= {"top": ids, "probability": np.exp(logits - columns["log_normalizer"][:, None])}
    return columns


def _scaled(queries: Any, scale: float, dtype: Any) -> Any:
    """Return queries times the scale, in the dtype of the items."""
    if scale == 1:
        return queries
    with np.errstate(over="ignore"):
        scaled = (queries.astype(np.float64) * scale).astype(dtype)
    if not np.isfinite(scaled).all():
        raise ValueError(f"--scale must keep queries finite in the items' dtype, {dtype}, got {scale}")
    return scaled


def _summary(inputs: Inputs, settings: Settings, out: Path | None, results: Results) -> dict[str, Any]:
    shapes = {name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in inputs.arrays.items()}
    return {
        "out": None if out is None else str(out),
        "inputs": {name: {"file": str(file), **shapes.get(name, {})} for name, file in inputs.files.items()},
        "items": results.items,
        **settings._asdict(),
        "seconds": {"grouping": results.grouping, "estimating": results.estimating},
        "check": results.checked,
        **({"columns": listed(results.columns)} if out is None else {}),
    }


def _say(results: Results, settings: Settings, stderr: bool) -> None:
    printed, columns = console(stderr=stderr), results.columns
    count = len(columns["query"])
    printed.print(
        f"{count:,} queries over {results.items:,} items; grouping or loading took {as_time(results.grouping)}, "
        f"estimating {as_time(results.estimating)}, compilation included where there was any",
        soft_wrap=True,
    )
    for name in ("log_normalizer", "standard_error", "dots") if count else ():
        low, middle, high = np.quantile(columns[name], [0, 0.5, 1], method="inverted_cdf")
        printed.print(f"{name}: median {middle:.4g}, {low:.4g} to {high:.4g}")
    missed = 0 if settings.error is None else int(np.sum(columns["standard_error"] > settings.error))
    if missed:
        printed.print(f"{missed:,} queries came out above --error {settings.error}: aim lower")
    if results.checked is not None:
        _say_checked(results.checked, printed.print)


def _say_checked(checked: Checked, say: Callable[..., None]) -> None:
    say(
        f"against exact values of {checked.queries} queries: relative error of Z, median {checked.median_error:.2g}, "
        f"95th percentile {checked.high_error:.2g}; {checked.covered} of {checked.queries} 95 % intervals hold",
        soft_wrap=True,
    )
    if checked.too_few:
        say("That is fewer than chance explains: standard errors are too small here. Raise --budget.")
