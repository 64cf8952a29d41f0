"""The number that a coupling of rows changes."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels._arrays import broadcasting
from rfkernels._checks import check_flags, is_number
from rfkernels.variance import _series
from rfkernels.variance._rows import check_dim, check_squares

_KINDS = ("independent", "orthogonal", "simplex")


@broadcasting
def coupling_moment(kind: str | float, s: Any, dim: int, *, log: bool = False) -> Any:
    """Return C, the relative cross moment E X(w) X(w') / K² of two coupled rows of positive features.

    Rows have independent chi norms and Haar-distributed directions of cosine c:
    C = e^(−s) E 1F1(dim; dim/2; (s/2)(1 + 2c √(b (1 − b)))), b ~ Beta(dim/2, dim/2). Independent rows have 1,
    orthogonal ones e^(−s) 1F1(dim; dim/2; s/2), and C falls with c. It follows from the mean over a sphere of
    e^(z·(w + w')) and is the same for every isotropic proposal; theorem 2 of Performers (arXiv 2009.14794) bounds it
    for orthogonal rows. For pairs of cosines or hyperbolic cosines take the mean of C at c and −c.

    Parameters
    ----------
    kind : {"independent", "orthogonal", "simplex"} or float
        The coupling, or the cosine itself; "simplex" is −1/(dim − 1).
    s : array or float
        |x + y|² of the scaled points; −|x − y|² for trigonometric features.
    dim : int
        The width, at least 2 unless rows are independent.
    log : bool, default False
        Return log C, of s ≥ 0.

    Where s < 0, C is NaN if it is below about 4096 ε e^(−s), which rounding leaves little of: in float64, where C is
    about 1, at s < −28. On JAX, C is NaN beyond s = 256 (128 for a cosine of 1) unless rows are orthogonal and dim is
    even.

    Returns
    -------
    array, shape of s

    Raises
    ------
    ValueError
        If the kind is unknown, the cosine is not in [−1, 1], dim is too small, or a log is asked for s < 0.
    """
    check_flags(log=log)
    xp, s = check_squares(s, least=-np.inf)
    cosine = _cosine(kind, dim)
    if cosine is None:
        return xp.zeros_like(s) if log else xp.ones_like(s)
    if log:
        if xp is np and np.any(s < 0):
            raise ValueError("log=True needs s of at least 0, since C may be negative for s < 0")
        return _series.log_moment(s, dim, cosine)
    positive, negative = xp.where(s > 0, s, 0), xp.where(s < 0, -s, 0)
    scale = negative  # 1 − C grows like e^(−s) for s < 0
    left = xp.exp(-scale) - _series.gap(-negative, dim, cosine, scale)
    known = xp.abs(left) > 4096 * xp.finfo(s.dtype).eps
    with np.errstate(over="ignore"):
        turned = xp.where(known, xp.exp(negative) * xp.where(known, left, 1), xp.nan)
    return xp.where(s >= 0, xp.exp(_series.log_moment(positive, dim, cosine)), turned)


def _cosine(kind: Any, dim: int) -> float | None:
    check_dim(dim)
    if isinstance(kind, str) and kind in _KINDS:
        if kind == "independent":
            return None
        if dim < 2:
            raise ValueError(f"coupled directions need a dim of at least 2, got {dim}")
        return 0.0 if kind == "orthogonal" else -1 / (dim - 1)
    if is_number(kind) and -1 <= kind <= 1 and dim > 1:
        return float(kind)
    raise ValueError(
        f"kind must be 'independent', 'orthogonal', 'simplex' or a cosine of directions in more than one dimension, "
        f"got {kind!r} in {dim}"
    )
