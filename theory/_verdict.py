"""What a result of the theory is, and what became of checking it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure


def greatest(*values: Any) -> Any:
    """Return the greatest of some numbers; NaN if there is one, which `max` loses unless it comes first."""
    return next((value for value in values if value != value), max(values))


@dataclass(frozen=True)
class Measured:
    """How far a claim and the library's definitions are apart, as measured.

    Parameters
    ----------
    method : str
        How it was measured: "cubature", "SymPy", "mpmath", …
    subject : str
        What was measured, such as the name of a map.
    error : float
        The largest deviation found.
    threshold : float
        The precision that is claimed; 0.0 of a symbolic proof.
    detail : str, default ""
        What is left over where a symbolic proof fails.
    """

    method: str
    subject: str
    error: float
    threshold: float
    detail: str = ""

    @property
    def holds(self) -> bool:
        """Whether the claim is met; NaN does not meet it."""
        return self.error <= self.threshold

    @property
    def figures(self) -> tuple[str, str]:
        """The error and the threshold as text; those of a proof are exact."""
        error = "exact" if self.error == 0 else f"{self.error:.1e}"
        return error, "exact" if self.threshold == 0 else f"{self.threshold:.0e}"

    def __str__(self) -> str:
        error, threshold = self.figures
        left_over = f" (left over: {self.detail})" if self.detail else ""
        if self.threshold == 0:
            return error if self.holds else f"off by {error}{left_over}"
        return f"{error} {'<=' if self.holds else 'is not <='} {threshold}"


@dataclass(frozen=True)
class Verdict:
    """All that was measured for one result.

    Parameters
    ----------
    measured : tuple of Measured
        Claims and how far off they are.
    findings : tuple of str, default ()
        What else the check found, with its numbers: where a result is loose, vacuous, or false as it is stated.
    """

    measured: tuple[Measured, ...]
    findings: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every claim was met, and there was one."""
        return bool(self.measured) and all(one.holds for one in self.measured)

    def worst(self, method: str) -> Measured:
        """Return the measurement of that method which comes closest to its threshold or exceeds it most."""
        return max((one for one in self.measured if one.method == method), key=lambda one: (not one.holds, one.error))

    def __str__(self) -> str:
        methods = dict.fromkeys(one.method for one in self.measured)
        said = [f"{method} {self.worst(method)}" for method in methods]
        broken = [f"{one.subject} ({one.method})" for one in self.measured if not one.holds]
        return ("holds: " if self.holds else f"FALSE for {', '.join(broken) or 'want of a check'}: ") + "; ".join(said)


@dataclass(frozen=True)
class Result:
    """A result of the papers and how the library's own definitions are put to the proof.

    Parameters
    ----------
    name : str
        Of the file, the figure and the verdict line.
    statement : str
        What is claimed, in Markdown with formulas.
    citation : str
        Who says so, and where.
    check : callable
        ``check()``: measure everything.
    figure : callable
        ``figure()``: draw it, from computed values.
    """

    name: str
    statement: str
    citation: str
    check: Callable[[], Verdict]
    figure: Callable[[], Figure]
