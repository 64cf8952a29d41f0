"""Find groups that suit given queries and keys, and the keys that are best left out of any group, on a backend."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfkernels._arrays import broadcasting, read_only, unmasked
from rfkernels._checks import check_flags, check_kv
from rfkernels.backends import choose
from rfkernels.grouping import Groups
from rfkernels.grouping.fitting import check_count, checked, found, heaviest, received


@broadcasting
def fit_groups(
    q: Any,
    k: Any,
    count: int,
    *,
    v: Any = None,
    scale: float | None = None,
    mask: Any = None,
    backend: str | None = None,
    check_finite: bool = True,
) -> Groups:
    """Divide keys into groups, finely where attention is.

    Centres are keys, chosen one after another: each time that for which the squared distance from the nearest centre
    so far, times the attention it receives from a sample of 32 queries, is largest (farthest-first traversal, Gonzalez
    1985, with weights). Keys that matter most become groups of their own. Distances are those that logits see:
    (k − c)ᵀ M (k − c), M being the second moment of queries, of 1,024 of them if there are more. Of more than 2,048
    keys, the 1,024 that receive most attention and as many evenly spaced ones are considered.

    Parameters
    ----------
    q : array, shape (*batch, length, dim)
        A sample of queries.
    k : array, shape (*batch, keys, dim)
        A sample of keys. There are groups for each of its batch axes, such as heads; queries are pooled along axes
        that k lacks or has of size 1, as in grouped-query attention.
    count : int
        Groups. Where there are fewer different keys, some have none.
    v : array, shape (*batch, keys, width), optional
        The values of the keys. If they are given, how they go along with keys within groups is found as well, which
        makes attention more accurate.
    scale : float, optional
        Multiplies q·k; 1/√dim by default.
    mask : array of bool, shape (*batch, keys), optional
        True where a key may be attended: others have no influence. There are groups for each of its batch axes as well.
    backend : str, optional
        "numpy", "numba" or "jax"; by default "jax" for arrays of JAX, else "numba".
    check_finite : bool, default True
        Whether NaN and infinity are refused.

    Returns
    -------
    Groups
        For `attention`: ``groups=``. Groups that come of a sequence must not be used on it causally. Their arrays, if
        NumPy's, are read-only.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, a sample is empty or not finite, or a number is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import rfkernels as rfk
    >>> q, k, v = np.random.default_rng(0).normal(size=(3, 8, 512, 64))
    >>> groups = rfk.fit_groups(q, k, 128)
    >>> rfk.attention(q, k, v, groups=groups, window=32).shape
    (8, 512, 64)
    """
    check_flags(check_finite=check_finite)
    chosen = choose(backend, q, k, v, mask=mask)
    check = chosen.check_finite if check_finite else None
    q, k, scale = checked(q, k, scale, mask, check)
    if v is not None:
        check_kv(k, v)
        if check is not None:
            check(v=v)
        v = unmasked(v, mask)
    check_count(count, "count")
    groups = found(q, k, v, count, scale, mask, received(q, k, scale, mask, chosen.steps), chosen.steps)
    return Groups(*(read_only(x) if isinstance(x, np.ndarray) else x for x in groups))


@broadcasting
def heavy_keys(
    q: Any,
    k: Any,
    count: int,
    *,
    scale: float | None = None,
    mask: Any = None,
    backend: str | None = None,
    check_finite: bool = True,
) -> Any:
    """Return the positions of the keys that receive the most attention from a sample of queries.

    Parameters
    ----------
    q, k, scale, mask, backend, check_finite
        As in `fit_groups`; the sample is 32 of the queries, evenly spaced. Keys that may not be attended come last.
    count : int
        How many positions; all if there are fewer keys.

    Returns
    -------
    array of int, shape (*batch, count)
        In ascending order, with the batch axes of k. Positions that come of a sequence must not be used on it causally.

    Raises
    ------
    TypeError, ValueError
        As `fit_groups`.
    """
    check_flags(check_finite=check_finite)
    chosen = choose(backend, q, k, mask=mask)
    q, k, scale = checked(q, k, scale, mask, chosen.check_finite if check_finite else None)
    check_count(count, "count")
    return heaviest(received(q, k, scale, mask, chosen.steps), mask, count)
