"""Checks of `theory/` that would pass with another claim, or with a library that is off to one side, do not."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import pytest

import rfkernels as rfk

sys.path.append(str(Path(__file__).resolve().parent.parent))  # as in test_theory.py
orthogonality, regularized, tails = (
    importlib.import_module(f"theory.{name}") for name in ("orthogonality", "regularized", "tails")
)


def test_claims_are_those_of_the_statements() -> None:
    """Bounds far from what they bound would be passed with another constant or power: so, numbers had by hand."""
    off = {
        "theorem 3 at θ = 2, d = 4, m = 3, Λ = ½, s = 3": tails.theorem_3(2.0, 4, 3, 0.5, 3.0) - 4.5,
        "lower tail of 8 rows, ε = ½, RV + 1 = 2": tails.lower(8, 0.5, 2.0) - math.exp(-0.5),
        "Bernstein of 6 rows, ε = ½, RV = 2, M = 3": tails.bernstein(6, 0.5, 2.0, 3.0) - 2 * math.exp(-0.3),
        "theorem 2 at s = 2 log 2, d = 6": float(orthogonality.theorem_2(2 * math.log(2), 6)) - 1 / 16,
        "ρ at s = 4, d = 6": float(regularized.lower_bound(4, 6)) - 1 / 2,
    }
    assert {claim: apart for claim, apart in off.items() if abs(apart) > 1e-14} == {}


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_library_that_states_too_little_or_too_much_fails(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    stated, ratio = rfk.variance.relative, rfk.variance.regularized_ratio
    monkeypatch.setattr(rfk.variance, "relative", lambda *given, **options: factor * stated(*given, **options))
    monkeypatch.setattr(rfk.variance, "regularized_ratio", lambda *given: factor * ratio(*given))
    assert [one.holds for one in regularized.of_the_library()] == [False, False]
    assert not orthogonality.of_the_library(orthogonality.exact_moment).holds
