"""How wrong estimates from fitted features are, in closed form."""

from __future__ import annotations

import math
from typing import Any

from rfkernels import variance
from rfkernels._arrays import accumulator, matmul, namespace
from rfkernels._checks import check_qk
from rfkernels.features import Side
from rfkernels.fitting.choices import Choice, check_choice, check_map
from rfkernels.maps import FeatureMap
from rfkernels.samplers import Rows, Sampler


def relative(
    given: Choice,
    x: Any,
    y: Any,
    *,
    count: int,
    sampler: str | Sampler | Rows = "iid",
    feature_map: str | FeatureMap = "positive",
    log: bool = False,
) -> Any:
    """Return E (k̂(x, y) / k(x, y) − 1)², the relative mean squared error of a kernel estimated by fitted features.

    It is that of `rfkernels.variance.relative` at T(x − a) and T⁻ᵀ(y − b): the rest of the kernel is exact.

    Parameters
    ----------
    given : Choice
        Of `choose`, without batch axes.
    x, y : array, shape (*batch, dim)
        A query and a key, unscaled; batch axes broadcast.
    count : int
        Feature columns.
    sampler : str, Sampler or callable, default "iid"
        How rows are coupled. Of orthogonal rows, and so of "antithetic" ones, a closed form is known only where the
        variance of rows is the same for all axes; of "iid" and ``samplers.antithetic("iid")`` always.
    feature_map : str or FeatureMap, default "positive"
        As in `fit`.
    log : bool, default False
        Return the natural logarithm, which does not overflow.

    Returns
    -------
    array, shape (*batch)

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, the choice has batch axes, or no closed form is known.
    """
    check_choice(given)
    check_qk(x, y, names=("x", "y"), pairs=True)
    if given.proposal.root.ndim != 2:
        raise ValueError(f"the choice must be without batch axes, got a root of shape {given.proposal.root.shape}")
    u, v = (_sent(side, points, given.scale) for side, points in ((given.query, x), (given.key, y)))
    options: dict[str, Any] = {"count": count, "sampler": sampler, "proposal": given.proposal, "log": log}
    return variance.relative(check_map(feature_map), u, v, **options)


def _sent(side: Side, points: Any, scale: Any) -> Any:
    xp = namespace(points)
    points = points.astype(accumulator(xp, points))
    apart = points if side.centre is None else points - side.centre
    return apart * math.sqrt(scale) if side.matrix is None else matmul(xp, apart, side.matrix.T)
