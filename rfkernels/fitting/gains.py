"""What fitting is worth on given data, in closed form, before anything is drawn."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rfkernels import variance
from rfkernels._checks import check_qk
from rfkernels.features import Side
from rfkernels.fitting.choices import METHODS, Choice, check_scale, decide
from rfkernels.fitting.errors import relative
from rfkernels.fitting.statistics import check_samples, pooled
from rfkernels.proposals import Gaussian

_QUERIES, _KEYS = 64, 256


class Gain(NamedTuple):
    """Means over pairs of log(1 + RV), RV being the relative variance of what a single row estimates.

    Parameters
    ----------
    methods : tuple of str
        "unfitted", for positive features of rows N(0, I), and then the methods of `fit`.
    pairs : numpy.ndarray, one row for each method, then the batch axes
        Means over all pairs: what every method but "tilted" makes small.
    attended : numpy.ndarray, one row for each method, then the batch axes
        Means over pairs drawn from the weights of softmax attention, which matter to its output.
    """

    methods: tuple[str, ...]
    pairs: Any
    attended: Any

    @property
    def columns(self) -> Any:
        """How many unfitted columns one column of each method is worth, (methods, *batch).

        The geometric mean over attended pairs of the quotients of 1 + RV: of the numbers of columns at equal error,
        where RV is large. Thousands and more say that unfitted features are useless, not that errors differ as much.
        """
        with np.errstate(over="ignore"):
            return np.exp(self.attended[0] - self.attended)

    def __str__(self) -> str:
        def mean(x: Any) -> Any:
            return x.reshape(len(self.methods), -1).mean(1)

        heads = math.prod(self.pairs.shape[1:])
        rows = zip(self.methods, mean(self.pairs), mean(self.attended), strict=True)
        title = f"mean of log(1 + relative variance of a row), {heads} head{'s' * (heads != 1)}"
        lines = [title, f"{'method':<18}{'all pairs':>10}{'attended':>10}{'worth (columns)':>17}"]
        first = mean(self.attended)[0]
        with np.errstate(over="ignore"):
            lines += [f"{name:<18}{a:>10.2f}{b:>10.2f}{np.exp(first - b):>17.3g}" for name, a, b in rows]
        return "\n".join(lines)


def gain(
    q: Any,
    k: Any,
    *,
    methods: tuple[str, ...] | None = None,
    scale: float | None = None,
    prior: float = 10.0,
    on: tuple[Any, Any] | None = None,
) -> Gain:
    """Predict what each method of `fit` gains on such queries and keys over positive features that are not fitted.

    In closed form (`relative`), over the pairs of at most 64 queries and 256 keys, evenly spread over the samples;
    nothing is drawn. It is about single kernels: errors of attention outputs also depend on how they average out.

    Parameters
    ----------
    q, k : array, shape (*batch, length, dim) and (*batch, keys, dim)
        Samples, with batch axes as in `fit`.
    methods : tuple of str, optional
        All that `fit` knows by default.
    scale : float, optional
        Multiplies q·k; 1/√dim by default.
    prior : float, default 10.0
        As in `fit`.
    on : tuple of two arrays, optional
        Queries and keys to predict the gain on, of the same batch axes as `q` and `k`, such as those of another text.
        By default the samples themselves, which flatters samples of few vectors.

    Returns
    -------
    Gain
        Of NumPy arrays in float64. Printed, it is a table of means over heads.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, a sample is empty or not finite, a method is unknown or a number is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from rfkernels import fitting
    >>> q, k = np.random.default_rng(0).normal(size=(2, 4, 256, 16)) + 1
    >>> print(fitting.gain(q, k, methods=("isotropic", "affine")))
    mean of log(1 + relative variance of a row), 4 heads
    method             all pairs  attended  worth (columns)
    unfitted               24.03     29.76                1
    isotropic               9.49     10.72         1.86e+08
    affine                  4.75      5.68         2.86e+10
    """
    names = (*sorted(METHODS), "tilted") if methods is None else methods
    known = {*METHODS, "tilted"}
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) and name in known for name in names):
        raise ValueError(f"methods must be a tuple of names, each of {', '.join(sorted(known))}; got {methods!r}")
    if on is not None and not isinstance(on, tuple | list):
        raise TypeError(f"on must be a tuple of queries and keys, got {type(on).__name__}")
    if on is not None and len(on) != 2:
        raise ValueError(f"on must be queries and keys, got {len(on)} of them")
    samples = _checked(q, k)
    asked = samples if on is None else _checked(*on, names=("queries of on", "keys of on"))
    if (asked[1].shape[:-2], asked[1].shape[-1]) != (samples[1].shape[:-2], samples[1].shape[-1]):
        raise ValueError(f"on must have the batch axes and dim of k, got {asked[1].shape} and {samples[1].shape}")
    scale = check_scale(scale, samples[0].shape[-1])
    batch = samples[1].shape[:-2]
    choices = [decide(*samples, method=name, scale=scale, prior=prior) for name in names]
    found = np.empty((2, 1 + len(names), *batch))
    for head in np.ndindex(batch):
        x, y = (_spread(given[head], most) for given, most in zip(asked, (_QUERIES, _KEYS), strict=True))
        weight = _weights(scale * x @ y.T)
        pairs = x[:, None], y[None]
        logs = [variance.relative("positive", *pairs, count=1, sampler="iid", scale=scale, log=True)]
        logs += [relative(_of_head(chosen, head), *pairs, count=1, log=True) for chosen in choices]
        for i, log in enumerate(np.logaddexp(0, log) for log in logs):
            found[(0, i, *head)], found[(1, i, *head)] = np.mean(log), np.sum(weight * log)
    return Gain(("unfitted", *names), *found)


def _checked(q: Any, k: Any, names: tuple[str, str] = ("q", "k")) -> tuple[Any, Any]:
    """Require samples that fit together; return them in float64 with the batch axes of keys."""
    check_qk(q, k, names)
    samples = dict(zip(names, (q, k), strict=True))
    for name, x in samples.items():
        if x.shape[-2] == 0:
            raise ValueError(f"{name} must hold at least one vector to fit to, got shape {x.shape}")
    check_samples(**samples)
    keys = np.asarray(k, np.float64)
    queries = pooled(np.asarray(q, np.float64), keys.shape[:-2])
    return np.broadcast_to(queries, (*keys.shape[:-2], *queries.shape[-2:])), keys


def _spread(x: Any, most: int) -> Any:
    length = len(x)
    return x if length <= most else x[np.linspace(0, length - 1, most).round().astype(int)]


def _weights(logits: Any) -> Any:
    """Return softmax weights, all queries alike in sum and 1 together."""
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True) / len(logits)


def _of_head(chosen: Choice, head: tuple[int, ...]) -> Choice:
    def own(x: Any) -> Any:
        return None if x is None else x[head]

    query, key = (Side(own(s.matrix), own(s.centre), own(s.linear)) for s in (chosen.query, chosen.key))
    return Choice(query, key, Gaussian(chosen.proposal.root[head]), chosen.log_weight[head], chosen.scale)
