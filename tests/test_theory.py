"""The results of `theory/` hold, and their checks notice definitions that are broken."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rfkernels as rfk

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # theory/ is not part of the package; last, so that the library stays the installed one

theory = importlib.import_module("theory")
unbiasedness = importlib.import_module("theory.unbiasedness")
variances = importlib.import_module("theory.variances")

POSITIVE, HYPERBOLIC, TRIGONOMETRIC, RELU = map(rfk.lookup, ("positive", "hyperbolic", "trigonometric", "relu"))


def changed(feature_map: rfk.FeatureMap, *activations: Any, **fields: Any) -> rfk.FeatureMap:
    if activations:
        fields["activations"] = activations
    return dataclasses.replace(feature_map, **fields)


def waves(amplitude: float) -> rfk.FeatureMap:
    return changed(
        TRIGONOMETRIC,
        lambda xp, u, a: amplitude * xp.cos(u) * xp.exp(a),
        lambda xp, u, a: amplitude * xp.sin(u) * xp.exp(a),
    )


BROKEN = {
    "offset -0.4": ("positive", changed(POSITIVE, offset=-0.4)),
    "no offset": ("hyperbolic", changed(HYPERBOLIC, offset=0.0)),
    "a factor": ("positive", changed(POSITIVE, lambda xp, u, a: xp.exp(u + a) * 1.000001)),
    "no square root of 2": ("trigonometric", waves(1.0)),
    "a rounded square root of 2": ("trigonometric", waves(1.41421356)),
}


@pytest.mark.parametrize("result", theory.RESULTS, ids=lambda result: result.name)
def test_the_result_holds(result: Any) -> None:
    verdict = result.check()
    assert verdict.holds, str(verdict)
    assert {one.method for one in verdict.measured} == {"cubature", "SymPy", "mpmath"}


def test_every_registered_kernel_is_checked() -> None:
    kernels = {name for name in rfk.names() if rfk.lookup(name).kernel is not None}
    assert kernels >= {"positive", "hyperbolic", "trigonometric", "relu", "squared_relu", "exp"}
    assert set(unbiasedness.known()) == kernels


@pytest.mark.parametrize(("name", "broken"), BROKEN.values(), ids=BROKEN)
def test_a_broken_definition_fails(name: str, broken: rfk.FeatureMap) -> None:
    for verdict in (unbiasedness.check({name: broken}), variances.check({name: broken})):
        failing = {one.method for one in verdict.measured if one.subject == name and not one.holds}
        assert not verdict.holds
        assert failing == {"cubature", "SymPy", "mpmath"}
        assert str(verdict).startswith(f"FALSE for {name}")


@pytest.mark.parametrize(
    "broken",
    [
        changed(RELU, lambda xp, u, a: xp.maximum(u, 0.001 * u), nonnegative=False),
        changed(RELU, kernel=rfk.kernels.ARC_COSINE_2),
    ],
    ids=["leaky", "another kernel"],
)
def test_a_broken_relu_fails(broken: rfk.FeatureMap) -> None:
    verdict = unbiasedness.check({"relu": broken})
    assert {one.method for one in verdict.measured if not one.holds} == {"cubature", "SymPy", "mpmath"}


def test_an_unbiased_map_may_have_another_variance() -> None:
    """Hyperbolic features in the place of positive ones are unbiased, but not what the lemma says of positive ones."""
    assert unbiasedness.check({"positive": HYPERBOLIC}).holds
    assert not variances.check({"positive": HYPERBOLIC}).holds


def test_nothing_measured_and_nan_are_not_proofs() -> None:
    assert not theory.Verdict(()).holds
    assert not theory.Measured("cubature", "x", math.nan, 1.0).holds


def test_a_false_result_makes_the_command_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    true, wrong = (theory.Measured("cubature", "x", error, 1e-12) for error in (1e-15, 1e-3))
    drawn = variances.RESULT.figure
    results = [theory.Result("good", "s", "c", lambda: theory.Verdict((true,)), drawn)]
    main = importlib.import_module("theory.__main__").main
    assert main(["--out", str(tmp_path)], results) == 0
    results.append(theory.Result("bad", "s", "c", lambda: theory.Verdict((true, wrong)), drawn))
    assert main(["--out", str(tmp_path)], results) == 1
    assert "bad: FALSE for x (cubature): cubature 1.0e-03 is not <= 1e-12" in capsys.readouterr().out
    assert "| NO |" in (tmp_path / "index.md").read_text(encoding="utf-8")


def test_the_command_runs_every_result(tmp_path: Path) -> None:
    library = str(Path(rfk.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "theory", "--out", str(tmp_path / "out")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([library, str(ROOT)])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == [result.name for result in theory.RESULTS]
    assert all(": holds: " in line for line in lines[:-1])
    index = (tmp_path / "out" / "index.md").read_text(encoding="utf-8")
    for result in theory.RESULTS:
        assert f"![{result.name}]({result.name}.png)" in index
        assert (tmp_path / "out" / f"{result.name}.png").read_bytes().startswith(b"\x89PNG")
