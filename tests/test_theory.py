"""The results of `theory/` hold, and their checks notice definitions that are broken."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rfkernels as rfk
from rfkernels import core
from rfkernels.fitting.algebra import best_spread
from rfkernels.state import merged

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # theory/ is not part of the package; last, so that the library stays the installed one

theory = importlib.import_module("theory")
(
    approximation, couplings, generalized, gerf, monoid, orthogonality, regularized, tails, unbiasedness, uniform_convergence,
    variances,
) = MODULES = [
    importlib.import_module(f"theory.{name}")
    for name in (
        "approximation", "couplings", "generalized", "gerf", "monoid", "orthogonality", "regularized", "tails", "unbiasedness",
        "uniform_convergence", "variances",
    )
]  # fmt: skip
ring = importlib.import_module("theory._ring")
greatest = importlib.import_module("theory._verdict").greatest
SPECTRAL = {"cauchy", "gaussian", "laplacian", "matern32", "matern52"}
"""Maps of rows with a law of their own, which have tests of their own."""
RESULTS = {result.name: result for result in (*theory.RESULTS, *(module.RESULT for module in MODULES))}

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


DEAR = {"approximation", "generalized", "unbiasedness", "uniform_convergence", "discrete", "hybrid", "couplings"}
"""Results that take seconds to half a minute each; `python -m theory`, which `.ci/run` runs, checks them all."""


@pytest.mark.parametrize(
    "result",
    [pytest.param(result, id=name, marks=pytest.mark.long if name in DEAR else ()) for name, result in RESULTS.items()],
)
def test_the_result_holds(result: Any) -> None:
    verdict = result.check()
    assert verdict.holds, str(verdict)
    assert len({one.method for one in verdict.measured}) > 1  # no result rests on one way of computing it
    assert len({(one.method, one.subject) for one in verdict.measured}) == len(verdict.measured)


def test_every_registered_kernel_is_checked() -> None:
    named = {name: rfk.lookup(name) for name in rfk.names()}
    kernels = {name for name, given in named.items() if given.kernel is not None} - SPECTRAL
    assert kernels >= {"positive", "hyperbolic", "trigonometric", "relu", "squared_relu", "exp"}
    assert {*unbiasedness.known(), *generalized.library()} >= kernels


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
        pytest.param(changed(RELU, kernel=rfk.kernels.ARC_COSINE_2), marks=pytest.mark.long),
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


def failing(measured: Any) -> set[str]:
    return {one.subject for one in measured if not one.holds}


# The monoid


def merge_without_shifts(first: Any, second: Any) -> Any:
    whole = merged(first, second)
    return whole._replace(kv=first.kv + second.kv, z=first.z + second.z)


def merge_with_the_least_shift(first: Any, second: Any) -> Any:
    whole = merged(first, second)
    return whole._replace(shift=np.minimum(first.shift, second.shift))


def write_without_rescaling(xp: Any, state: Any, k: Any, v: Any, features: Any) -> Any:
    alone = core.write(xp, state._replace(kv=0 * state.kv, z=0 * state.z), k, v, features)
    return alone._replace(kv=alone.kv + state.kv, z=alone.z + state.z)


def attend_one_key_late(xp: Any, q: Any, k: Any, v: Any, features: Any, options: Any, mask: Any, state: Any) -> Any:
    part, after = core.attend(xp, q, k, v, features, options, mask, state)
    return part._replace(numerator=xp.roll(part.numerator, 1, 0)), after


def test_broken_merges_are_not_monoids() -> None:
    assert failing(monoid.by_symbols(merge_without_shifts)) == {"adds the sums"}
    assert failing(monoid.by_symbols(merge_with_the_least_shift)) >= {"adds the sums", "identity"}
    assert failing(monoid.by_symbols(lambda first, second: merged(first, first))) >= {
        "commutative",
        "identity",
    }


def test_broken_passes_are_not_sums() -> None:
    assert not monoid.of_parts("positive", merge_without_shifts, core.write).holds
    assert not monoid.of_parts("positive", merged, write_without_rescaling).holds
    assert monoid.of_parts("relu", merged, write_without_rescaling).holds  # nothing to rescale
    assert not monoid.of_causal("relu", attend_one_key_late).holds


def test_a_broken_merge_is_found_by_the_check() -> None:
    assert not monoid.check(merge=merge_without_shifts).holds


def test_exact_numbers() -> None:
    one, third = ring.exact([1, "1/3"])
    assert one / third == 3
    assert (third.exp() * third.exp()).value == (2 * third).exp().value
    assert third.exp() != third
    assert ring.apart(ring.exact([0.1]), ring.exact(["1/10"])) == 1  # a float is the fraction that it holds
    assert ring.apart(ring.exact([1, 2]), ring.exact([1])) == 2


# Orthogonal, regularised and coupled rows


def without_signs(normal: Any, count: int, dim: int) -> Any:
    """The rows that a QR decomposition gives without the signs of the diagonal of R."""
    basis = np.linalg.qr(normal((-(-count // dim), dim, dim)))[0]
    norms = np.linalg.norm(normal((count, dim)), axis=-1, keepdims=True)
    return np.swapaxes(basis, -1, -2).reshape(-1, dim)[:count] * norms


SAMPLERS = {
    "no signs": dataclasses.replace(rfk.samplers.orthogonal, rows=without_signs),
    "norms √d": dataclasses.replace(rfk.samplers.regularized, law="normal"),
    "simplex": rfk.samplers.simplex,
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_broken_orthogonal_rows_fail(sampler: Any) -> None:
    measured = [*orthogonality.by_cubature(sampler, orthogonality.exact_moment), orthogonality.pairs_in_blocks(sampler)]
    found = failing(measured)
    expected = {
        "no signs": {"positive: unbiased"},
        "norms √d": {"positive: unbiased", "hyperbolic: unbiased", "positive: C", "hyperbolic: C"},
        "simplex": {"positive: C", "hyperbolic: C", "pairs at a right angle"},
    }
    name = next(name for name, given in SAMPLERS.items() if given is sampler)
    assert found >= expected[name]


def test_broken_claims_of_orthogonality_fail() -> None:
    assert not orthogonality.by_quadrature(lambda s, dim: 0.999 * orthogonality.exact_moment(s, dim)).holds
    greater = orthogonality.by_many_digits(
        orthogonality.exact_moment, lambda s, dim: 1.001 * orthogonality.theorem_2(s, dim)
    )
    assert failing(greater) == {"theorem 2 exceeded by", "theorem 2 is an equality as s → 0"}
    assert failing(orthogonality.by_symbols(lambda d: 2 / (d + 1))) == {"1 − τ(1, 1)"}
    assert not orthogonality.check(bound=lambda s, dim: orthogonality.theorem_2(s, dim - 1)).holds


def test_broken_regularised_kernels_fail() -> None:
    assert not regularized.check(sampler=rfk.samplers.orthogonal).holds
    assert not regularized.check(feature_map=changed(POSITIVE, offset=-0.49)).holds
    assert not regularized.check(regularised=lambda s, dim: regularized.share(s, dim + 1)).holds
    assert failing(regularized.by_many_digits(lambda s, dim: regularized.lower_bound(s, dim + 1))) >= {
        "ρ below its bound by"
    }


def test_broken_couplings_fail() -> None:
    turned = {"orthogonal": 0.0, "simplex": 0.2, "independent": "independent"}

    def moment(kind: Any, s: float, dim: int) -> float:
        return couplings.library_moment(turned.get(kind, kind) if isinstance(kind, str) else -kind, s, dim)

    assert not couplings.by_quadrature(moment).holds
    assert failing(couplings.in_order(moment)) == {
        "C falls with c by", "antithetic ≤ simplex ≤ orthogonal ≤ independent broken by"
    }  # fmt: skip
    assert not couplings.by_many_digits(lambda c, s, dim: 1.0000001 * couplings.library_moment(c, s, dim)).holds
    assert failing(couplings.by_cubature(rfk.samplers.orthogonal, couplings.library_moment)) == {
        "orthogonal, positive: mean and C", "orthogonal, hyperbolic: mean and C"
    }  # fmt: skip
    assert not couplings.of_antithetic_pairs(changed(POSITIVE, offset=-0.45)).holds


def test_norms_that_are_not_opposed_fail() -> None:
    def rows(normal: Any, count: int, dim: int) -> Any:
        return np.repeat(rfk.samplers.paired(normal, count, dim)[::2], 2, axis=0)

    assert "paired: mean and C" in failing(
        couplings.of_opposed_norms(dataclasses.replace(rfk.samplers.paired, rows=rows))
    )


# Tails, generalised attention, uniform convergence and the study


def test_broken_tails_fail() -> None:
    def gap(theta: float, dim: int, count: int, factor: float, square: float) -> float:
        return 40 * theta**-2 * tails.theorem_3(theta, dim, count, factor, square)

    assert failing(tails.by_quadrature(POSITIVE, gap)) == {"theorem 3 exceeded by"}
    assert not tails.of_lower_tails(lambda m, error, second: tails.lower(8 * m, error, second)).holds
    assert failing(tails.of_bounded_terms(lambda m, error, *rest: tails.bernstein(8 * m, error, *rest)))
    assert not tails.of_the_library(POSITIVE, lambda variance: rfk.proposals.isotropic(variance + 1e-9)).holds
    assert not tails.of_the_library(changed(POSITIVE, offset=-0.5 - 1e-9), rfk.proposals.isotropic).holds


GENERALIZED = {
    "sign": changed(rfk.lookup("sign"), log_variance=rfk.lookup("step").log_variance),
    "abs": changed(rfk.lookup("abs"), lambda xp, u, a: xp.abs(u) + 1e-6),
    "step": changed(rfk.lookup("step"), kernel=rfk.kernels.ARC_COSINE_1),
    "cosine": changed(rfk.lookup("cosine"), lambda xp, u, a: xp.cos(1.00001 * u)),
}


@pytest.mark.parametrize(
    "name", ["sign", "step", *(pytest.param(name, marks=pytest.mark.long) for name in ("abs", "cosine"))]
)
def test_broken_generalised_maps_fail(name: str) -> None:
    verdict = generalized.check({name: GENERALIZED[name]})
    assert {one.method for one in verdict.measured if not one.holds} == {"cubature", "SymPy"}


def test_a_broken_error_function_fails() -> None:
    broken = changed(rfk.lookup("erf"), lambda xp, u, a: xp.erf(u) * 1.0000001)
    assert failing(generalized.by_cubature("erf", broken)) == {"erf", "erf, variance"}


def test_broken_uniform_convergence_fails() -> None:
    assert not uniform_convergence.identity(waves(1.414)).holds
    assert not uniform_convergence.identity(POSITIVE).holds
    high, _, rows = uniform_convergence.certainty(TRIGONOMETRIC, lambda dim, radius, delta: 24, "iid")
    assert rows == 24
    assert high > uniform_convergence.DELTA


def test_the_certificate_bounds_what_a_finer_grid_finds() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 2))
    low, high = uniform_convergence.certified(rows, 2.0, 20)
    finer, _ = uniform_convergence.certified(rows, 2.0, 200)
    assert low <= finer <= high < 2 * low


def test_a_study_that_claims_too_much_fails() -> None:
    same = {"trigonometric, orthogonal": approximation.PAPER["trigonometric, iid"]}
    verdict = approximation.check(same, counts=(64,), draws=6)
    assert "σ = ½: trigonometric, orthogonal < iid, m = 64: z" in failing(verdict.measured)
    one = np.array([1.0, 1.1, 0.9, 1.05])
    assert not approximation.order("no order", one, one[::-1]).holds
    assert not approximation.order("the same", one, one).holds


def test_nan_is_not_lost_among_numbers() -> None:
    assert math.isnan(greatest(0.0, math.nan, 1.0))
    assert greatest(0.0, 2.0, 1.0) == 2.0

    def spread(xp: Any, phi: Any) -> Any:
        return best_spread(xp, phi) if phi > 1e-3 else xp.full_like(phi, xp.nan)

    assert failing(gerf.by_minimisation(spread)) == {"log(1 + RV) at the library's ρ*", "excess over positive features"}
    lost = r"\b(\w+) = m(?:ax|in)\(\s*\1\b"  # is what `greatest` is for
    assert not [path.name for path in (ROOT / "theory").glob("*.py") if re.search(lost, path.read_text("utf-8"))]


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
    assert main(["--jobs", "1", "--out", str(tmp_path)], results) == 1
    assert "bad: FALSE for x (cubature): cubature 1.0e-03 is not <= 1e-12" in capsys.readouterr().out
    assert "| NO |" in (tmp_path / "index.md").read_text(encoding="utf-8")


def test_results_are_run_by_name_and_findings_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module("theory.__main__").main
    good = theory.Measured("cubature", "x", 1e-15, 1e-12)
    drawn = variances.RESULT.figure
    results = [
        theory.Result(name, "s", "c", lambda: theory.Verdict((good,), ("It is loose.",)), drawn)
        for name in ("one", "two")
    ]
    assert main(["two", "--out", str(tmp_path)], results) == 0
    assert capsys.readouterr().out.startswith("two: holds")
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert "## two" in index
    assert "## one" not in index
    assert "Found besides:\n\n- It is loose." in index
    with pytest.raises(SystemExit):
        main(["three", "--out", str(tmp_path)], results)
    assert "no result has the name three; known are: one, two" in capsys.readouterr().err


def test_the_command_runs_results_in_processes(tmp_path: Path) -> None:
    library = str(Path(rfk.__file__).parents[1])
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "theory",
            "maclaurin",
            "taylor",
            "--jobs",
            "2",
            "--out",
            str(tmp_path / "out"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([library, str(ROOT)])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(": ")[:2] for line in lines[:2]] == [["maclaurin", "holds"], ["taylor", "holds"]]
    assert lines[2].startswith("2 of 2 results hold")
    index = (tmp_path / "out" / "index.md").read_text(encoding="utf-8")
    for name in ("maclaurin", "taylor"):
        assert f"![{name}]({name}.png)" in index
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_every_result_has_a_figure_and_is_written_up(result: Any) -> None:
    """Figures of results that take seconds are drawn by the command; here only those are whose curves are cheap."""
    assert result.statement.strip()
    assert "arXiv" in result.citation
    if result.name in ("orthogonality", "regularized", "variances"):
        assert len(result.figure().axes) == 2
