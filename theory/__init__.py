"""The results that the library rests on, each put to the proof on the library's own definitions.

One file has one result: its statement, its source, and a ``check`` that computes everything it reports. Run them with
``python -m theory``.
"""

from theory import (
    affine_gaussian,
    approximation,
    couplings,
    dense,
    discrete,
    generalized,
    gerf,
    hybrid,
    maclaurin,
    monoid,
    orthogonality,
    regularized,
    tails,
    taylor,
    unbiasedness,
    uniform_convergence,
    variances,
)
from theory._verdict import Measured, Result, Verdict

RESULTS: tuple[Result, ...] = (
    unbiasedness.RESULT,
    variances.RESULT,
    generalized.RESULT,
    orthogonality.RESULT,
    couplings.RESULT,
    regularized.RESULT,
    tails.RESULT,
    uniform_convergence.RESULT,
    approximation.RESULT,
    gerf.RESULT,
    dense.RESULT,
    affine_gaussian.RESULT,
    hybrid.RESULT,
    discrete.RESULT,
    maclaurin.RESULT,
    taylor.RESULT,
    monoid.RESULT,
)
"""Every result, in the order in which they are run and written up."""

__all__ = ["RESULTS", "Measured", "Result", "Verdict"]
