"""`rfkernels attend`: linear attention of arrays in files."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

import rfkernels as rfk
from rfkernels._checks import check_mask, check_qkv
from rfkernels.cli.compare import Comparison, compare_rows
from rfkernels.cli.files import check_suffix, check_target, load_array, whole_file
from rfkernels.cli.output import BadInput, Integer, as_bytes, as_error, as_time, console, print_json

_FILE = click.Path(path_type=Path)


class Inputs(NamedTuple):
    """The arrays by the names of their arguments, and the files they came from."""

    arrays: dict[str, Any]
    files: dict[str, Path]


class Settings(NamedTuple):
    """How attention is computed; the options of the same names."""

    map: str
    features: int
    sampler: str
    causal: bool
    window: int | None
    scale: float | None
    backend: str
    seed: int


@click.command(short_help="Linear attention of your own .npy files.")
@click.argument("q", type=_FILE)
@click.argument("k", type=_FILE)
@click.argument("v", type=_FILE)
@click.option("-o", "--out", type=_FILE, required=True, help="The .npy file to write.")
@click.option("--map", default="positive", show_default=True, help=f"One of {', '.join(rfk.names())}.")
@click.option("--features", type=Integer(min=1), default=256, show_default=True, help="Feature columns.")
@click.option("--sampler", default="orthogonal", show_default=True, help=f"One of {', '.join(rfk.samplers.names())}.")
@click.option("--causal", is_flag=True, help="Query t sees keys up to t only.")
@click.option("--window", type=Integer(min=1), help="Exact weights for keys less than this many positions away.")
@click.option("--mask", type=_FILE, help="A .npy file of bool, (*batch, keys): True where a key may be attended.")
@click.option("--scale", type=float, help="Multiplies q·k; 1/√dim if not given.")
@click.option(
    "--backend", type=click.Choice(["numba", "numpy"]), default="numba", show_default=True, help="Compiled or not."
)
@click.option("--seed", type=Integer(min=0), default=0, show_default=True, help="Seed of the random features.")
@click.option("--compare", is_flag=True, help="Measure the error against exact attention on at most 256 query rows.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary to stdout as JSON.")
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
def attend(
    q: Path, k: Path, v: Path, out: Path, mask: Path | None, compare: bool, as_json: bool, force: bool, **options: Any
) -> None:
    """Compute linear attention of the arrays in the files Q, K and V.

    Each holds one array (*batch, length, dim); heads are batch axes. The output file appears only when it is complete.

    \b
    Example: rfkernels attend q.npy k.npy v.npy -o out.npy --causal --window 128 --compare
    """  # noqa: D301 - \b keeps click from joining lines
    check_suffix(out, [".npy"])
    check_target(out, force)
    files = {"q": q, "k": k, "v": v} | ({} if mask is None else {"mask": mask})
    inputs = Inputs({name: load_array(name, path) for name, path in files.items()}, files)
    settings = Settings(**options)
    compared = None
    with console(stderr=True).status("attending"):
        output, seconds = _attend(inputs, settings)
        if compare:
            compared = compare_rows(
                output, **inputs.arrays, scale=settings.scale, causal=settings.causal, seed=settings.seed
            )
    with whole_file(out, force) as file:
        np.save(file, output, allow_pickle=False)
    if as_json:
        print_json(_summary(inputs, settings, out, output, seconds, compared))
    _say(out, output, seconds, compared)


def _attend(inputs: Inputs, settings: Settings) -> tuple[Any, float]:
    q, k, v = (inputs.arrays[name] for name in "qkv")
    mask = inputs.arrays.get("mask")
    with _usable(inputs):
        check_qkv(q, k, v)
        check_mask(mask, k)
    features = _draw(q.shape[-1], settings)
    start = time.perf_counter()
    with _usable(inputs):
        output = rfk.attention(
            q, k, v, features, causal=settings.causal, window=settings.window, mask=mask, backend=settings.backend
        )
    return output, time.perf_counter() - start


def _draw(dim: int, settings: Settings) -> rfk.Features:
    scale, seed = settings.scale, settings.seed
    try:
        return rfk.draw(settings.map, dim, settings.features, sampler=settings.sampler, scale=scale, rng=seed)
    except (MemoryError, ValueError) as error:
        given = f"--map {settings.map} --features {settings.features} --sampler {settings.sampler}"
        reason = _as_typed(str(error), settings._fields)
        raise BadInput(f"{reason}\n  with {given}" + ("" if scale is None else f" --scale {scale}")) from error


@contextmanager
def _usable(inputs: Inputs, options: Collection[str] = ()) -> Iterator[None]:
    """Turn the library's refusals into errors that name the files, and options as they are typed.

    A package that is missing is one too.
    """
    try:
        yield
    except ImportError as error:
        raise BadInput(str(error)) from error
    except (TypeError, ValueError) as error:
        reason = _as_typed(str(error).removesuffix("; check_finite=False lets it pass"), options)
        listed = [f"{name} = {inputs.files[name]}: {x.dtype} {x.shape}" for name, x in inputs.arrays.items()]
        raise BadInput("\n  ".join([reason, *listed])) from error


def _as_typed(reason: str, options: Collection[str]) -> str:
    """Return a message in which options have dashes."""
    reason = reason.replace("pass backend='numpy'", "pass --backend numpy")
    return f"--{reason}" if reason.split(" ")[0] in options else reason


def _summary(
    inputs: Inputs, settings: Settings, out: Path, output: Any, seconds: float, compared: Comparison | None
) -> dict[str, Any]:
    scale = settings.scale
    return {
        "out": str(out),
        "shape": list(output.shape),
        "dtype": str(output.dtype),
        "seconds": seconds,
        "inputs": {
            name: {"file": str(inputs.files[name]), "shape": list(x.shape), "dtype": str(x.dtype)}
            for name, x in inputs.arrays.items()
        },
        **settings._asdict(),
        "scale": inputs.arrays["q"].shape[-1] ** -0.5 if scale is None else scale,
        "compare": None if compared is None else compared._asdict(),
    }


def _say(out: Path, output: Any, seconds: float, compared: Comparison | None) -> None:
    errors = console(stderr=True)
    errors.print(
        f"wrote {out}: {output.dtype} {output.shape}, {as_bytes(output.nbytes)}; attention took {as_time(seconds)}, "
        "compilation included where there was any"
    )
    if compared is not None:
        errors.print(
            f"relative error against exact attention on {compared.rows} query rows: {as_error(compared.error)}\n"
            f"averaging the values, which ignores queries and keys: {as_error(compared.average_error)}"
        )
        if compared.error > 0 and compared.error >= compared.average_error:
            errors.print("These features are of no use here: try more of them, or --window for exact weights nearby.")
