"""The results that the library rests on, each put to the proof on the library's own definitions.

One file has one result: its statement, its source, and a ``check`` that computes everything it reports. Run them with
``python -m theory``.
"""

from theory import unbiasedness, variances
from theory._verdict import Measured, Result, Verdict

RESULTS: tuple[Result, ...] = (
    unbiasedness.RESULT,
    variances.RESULT,
)
"""Every result, in the order in which they are run and written up."""

__all__ = ["RESULTS", "Measured", "Result", "Verdict"]
