"""The tables of rankings are what they were measured to be, and the results behind them notice what is broken."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rfkernels as rfk
from rfkernels import fitting

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # theory/ is not part of the package; last, so that the library stays the installed one

rankings, gerf, dense, affine_gaussian = (
    importlib.import_module(f"theory.{name}") for name in ("rankings", "gerf", "dense", "affine_gaussian")
)

# Tables ---------------------------------------------------------------------------------------------------------------

C1 = """
 16 .25  -1.67  -1.60  -1.70  -1.86  -1.67  -1.95  -1.78  -1.95  -2.27  -2.55
 16 .5   -0.69  -0.68  -0.71  -0.73  -0.69  -0.76  -1.17  -1.29  -1.37  -1.51
 16 1     1.07   1.07   1.06   1.06   1.07   1.06  -0.32  -0.35  -0.36  -0.40
 16 2     4.54   4.54   4.54   4.54   4.54   4.54   0.86   0.86   0.86   0.85
 16 4    11.49  11.49  11.49  11.49  11.49  11.49   2.38   2.38   2.38   2.38
 64 .25  -0.69  -0.68  -0.74  -0.77  -0.69  -0.81  -0.86  -0.95  -1.00  -1.08
 64 .5    1.07   1.07   1.06   1.06   1.07   1.06   0.46   0.45   0.45   0.44
 64 1     4.54   4.54   4.54   4.54   4.54   4.54   2.64   2.63   2.63   2.63
 64 2    11.49  11.49  11.49  11.49  11.49  11.49   5.96   5.96   5.96   5.96
 64 4    25.39  25.39  25.39  25.39  25.39  25.39  10.66  10.66  10.66  10.66
128 .25   0.05   0.05   0.03   0.02   0.05   0.00  -0.14  -0.17  -0.19  -0.21
128 1     7.42   7.42   7.42   7.42   7.42   7.42   5.25   5.25   5.25   5.25
128 2    17.25  17.25  17.25  17.25  17.25  17.25  10.69  10.69  10.69  10.69
128 4    36.90  36.90  36.90  36.90  36.90  36.90  18.68  18.68  18.68  18.68
"""
COLUMNS = [
    "trig-iid",
    "PRF-iid",
    "PRF-ort",
    "PRF-sim",
    "hyp-iid",
    "hyp-ort",
    "OPRF-iid",
    "OPRF-ort",
    "OPRF-sim",
    "OPRF-anti+ort",
]


@pytest.mark.parametrize("line", C1.strip().splitlines())
def test_the_closed_forms_to_the_digits_shown(line: str) -> None:
    dim, tau, *printed = line.split()
    found = rankings.typical(int(dim), float(tau))
    assert list(found) == COLUMNS
    assert [f"{value:.2f}".replace("-0.00", "0.00") for value in found.values()] == printed


def test_four_times_the_columns_are_a_quarter_of_the_error() -> None:
    some, more = (rankings.typical(16, 0.5, columns) for columns in (256, 1024))
    for name in ("trig-iid", "PRF-iid", "hyp-iid", "OPRF-iid"):
        np.testing.assert_allclose(some[name] - more[name], np.log10(4))


# log10 of the variance per column as measured of one data set that is not kept: centred estimators depend little on the
# data set, the others on the cosine of the means, and vary by up to 0.6 (one standard deviation) between data sets.
C2 = {
    (16, 1.0): {
        "trig": 3.94,
        "PRF": 5.43,
        "OPRF": 2.81,
        "ADERF": 2.38,
        "SDERF": 1.84,
        "cPRF": 2.47,
        "cOPRF": 1.63,
        "cFull": 1.35,
        "cFull+anti": 1.33,
    },
    (64, 1.0): {
        "trig": 3.66,
        "PRF": 6.31,
        "OPRF": 4.68,
        "ADERF": 3.96,
        "SDERF": 1.97,
        "cPRF": 2.48,
        "cOPRF": 2.14,
        "cFull": 1.38,
        "cFull+anti": 1.36,
    },
}


@pytest.mark.parametrize("setting", C2)
def test_variances_on_anisotropic_data(setting: tuple[int, float]) -> None:
    found = rankings.per_column(rankings.heads(*setting, 0))
    for name, printed in C2[setting].items():
        margin = 0.25 if name in ("trig", "PRF", "OPRF", "ADERF") else 0.08
        np.testing.assert_allclose(found[name], printed, rtol=margin)
    if setting == (64, 1.0):
        expected = ["cFull+anti", "cFull", "SDERF", "cOPRF", "cPRF", "trig", "ADERF", "OPRF", "PRF"]
        assert sorted(expected, key=lambda name: found[name]) == expected


def test_errors_of_attention_on_anisotropic_data() -> None:
    """As measured with 1024 columns and τ = 1 of another data set; 256 columns, of few draws, do not tell all apart."""
    printed = {"uniform": 0.830, "PRF-ort": 0.880, "OPRF-ort": 0.942, "SDERF-ort": 0.581, "cPRF+anti": 0.639}
    printed |= {"cFull-ort": 0.411, "cFull-sim": 0.405, "cFull+anti": 0.381, "tilt1+anti": 0.323, "tilt1.5": 0.282}
    found = rankings.attention_errors(rankings.heads(64, 1.0, 0), 1024, 3)
    for name, error in printed.items():
        np.testing.assert_allclose(found[name], error, rtol=0.2)
    classes = [
        ["tilt1+anti", "tilt1.5"],
        ["cFull-ort", "cFull-sim", "cFull+anti"],
        ["SDERF-ort", "cPRF+anti"],
        ["PRF-ort", "OPRF-ort"],
    ]
    for better, worse in itertools.pairwise(classes):
        assert max(found[name] for name in better) < min(found[name] for name in worse)


def test_data_are_as_stated() -> None:
    data = rankings.heads(64, 2.0, 3, length=20000)
    x, y = (v - v.mean(0) for v in data)
    spectrum = np.exp(-np.arange(64) / 4)
    spectrum *= 2 / np.sqrt(np.sum(spectrum**2))
    np.testing.assert_allclose(x.var(0), spectrum, rtol=0.1)
    np.testing.assert_allclose((x[:2000] @ y[:2000].T).std(), 2, rtol=0.05)
    for v in data:
        np.testing.assert_allclose(v.mean(0) @ v.mean(0), spectrum.sum(), rtol=0.05)
    assert 0.2 < data.q.mean(0) @ data.k.mean(0) / spectrum.sum() < 0.8


def test_the_command_prints_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert rankings.main(["c1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "c1"
    assert lines[1].split() == ["d", "tau", "s", *COLUMNS]
    assert lines[2].split() == ["16", "0.25", "2.0", *C1.split()[2:12]]
    with pytest.raises(SystemExit):
        rankings.main(["c4"])


# Results --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [gerf, dense, affine_gaussian], ids=lambda module: module.RESULT.name)
def test_the_result_holds(module: Any, tmp_path: Path) -> None:
    verdict = module.RESULT.check()
    assert verdict.holds, str(verdict)
    module.RESULT.figure().savefig(tmp_path / "figure.png")


@pytest.mark.parametrize(
    "spread",
    [
        lambda xp, energy: xp.asarray(1.0),
        lambda xp, energy: 1 + energy,
        lambda xp, energy: 1 - (1 - 2 * energy - xp.sqrt((2 * energy + 1) ** 2 + 8 * energy)),
    ],
    ids=["none", "half of it", "one eighth for one sixteenth"],
)
def test_another_spread_fails(spread: Any) -> None:
    failing = {one.method for one in gerf.check(spread).measured if not one.holds}
    assert failing == {"minimisation"}


def changed(**fields: Any) -> Any:
    """`choose` with something else in what it returns."""

    def choose(*args: Any, **options: Any) -> Any:
        found = fitting.choose(*args, **options)
        new = {name: change(found) for name, change in fields.items()}
        return found._replace(**new)

    return choose


BROKEN = {
    "wider rows": changed(proposal=lambda c: rfk.proposals.Gaussian(1.1 * c.proposal.root)),
    "plain rows": changed(proposal=lambda c: rfk.proposals.Gaussian(np.eye(len(c.proposal.root)))),
    "no balance": changed(
        query=lambda c: c.query._replace(matrix=np.eye(len(c.proposal.root))),
        key=lambda c: c.key._replace(matrix=np.eye(len(c.proposal.root))),
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_another_choice_is_not_the_best(broken: Any) -> None:
    assert any(one.method == "search" and not one.holds for one in affine_gaussian.check(broken).measured)
    assert any(one.method == "search" and not one.holds for one in dense.check(broken).measured)


def test_other_centres_are_not_the_best() -> None:
    broken = changed(query=lambda c: c.query._replace(centre=c.query.centre + 0.1))
    assert not affine_gaussian.check(broken).holds
