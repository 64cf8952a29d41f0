"""Features learned by gradient descent from captured queries and keys, starting from those that `fit` gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from rfkernels._arrays import broadcasting, namespace
from rfkernels._checks import check_flags, check_window, generator_of, is_number
from rfkernels.calibration.data import Blocks, Sequences, Split, check_sequences, drawn, every, listed, split, together
from rfkernels.calibration.parameters import flattened, full, kept, widened
from rfkernels.calibration.report import Calibration, Errors, History, Progress, bar, end_bar
from rfkernels.features import Features
from rfkernels.fitting import fit

__all__ = ["Calibration", "Errors", "History", "Progress", "calibrate"]

_INTERVAL = 25
_VALIDATION, _TEST = 1024, 4096


@broadcasting
def calibrate(
    q: Any,
    k: Any,
    v: Any = None,
    *,
    count: int | None = None,
    features: Features | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    steps: int = 1000,
    learning_rate: float = 1 / 256,
    holdout: float = 0.2,
    patience: int = 250,
    progress: bool | Callable[[Progress], None] = True,
    rng: Any,
) -> Calibration:
    """Learn features for attention on queries and keys like these, by gradient descent on the error of its output.

    Learned are the rows, their log-weights and, of each side, `Side.matrix` and `Side.linear`, by Adam with a cosine
    schedule and clipped gradients, from blocks of 64 queries of a sequence against all its keys; in float32, each head
    by itself. The loss is Σ |o − o*|² / Σ |o*|², with o the estimated output and o* that of exact attention.

    Learned features are no random features: what they estimate of exp(scale q·k) is **biased**, neither
    `rfkernels.variance` nor another draw tells by how much, and on data unlike those given they may be worse than
    unfitted ones. They cost what any features of as many columns cost, and every backend runs them. As those of `fit`,
    they are parameters that come of the data: causal use is causal on other sequences only.

    Parameters
    ----------
    q, k : array, shape (*batch, length, dim) and (*batch, keys, dim), or a list of such arrays
        Captured queries and keys of one sequence, or of several, of any lengths. There is one set of features for each
        element of the batch axes of k, such as heads; axes that k lacks or has of size 1 are queries that share its
        keys.
    v : array, shape (*batch, keys, width), or a list of such arrays, optional
        Values, with the batch axes of k. Without them the loss is that of the rows of normalised weights,
        Σ |p − p*|² / Σ |p*|²: on average that of values which are white noise.
    count : int, optional
        Feature columns to start with, by ``fit(q, k, count, rng=rng)`` on the training part.
    features : Features, optional
        Start from these instead, which then are what errors are compared with. Either they or `count` must be given.
    scale : float, optional
        Multiplies q·k if `count` is given; 1/√dim by default.
    causal : bool, default False
        As in `attention`.
    window : int, optional
        As in `attention`: features are learned for what lies beyond it.
    steps : int, default 1000
        The most steps.
    learning_rate : float, default 1/256
        That of the first step; it falls to zero as a cosine.
    holdout : float, default 0.2
        Share for validation, and once more for test: other sequences, drawn at random, if there are at least three;
        runs of up to 16 consecutive queries, whose keys are not held out, of one or two.
    patience : int, default 250
        A head stops when so many steps have not lowered its validation error, which is computed every 25 steps.
    progress : bool or callable, default True
        A bar on stderr, nothing, or a function that is called with a `Progress`.
    rng : int, numpy.random.SeedSequence or numpy.random.Generator
        Source of the rows, of the split and of the blocks.

    Returns
    -------
    Calibration
        Its features are the best on the validation part (at most 1,024 queries of it), which never are worse there than
        the start. Its `test` is the error on the third part (at most 4,096), which decides nothing. Printed, it is a
        table.

    Raises
    ------
    ModuleNotFoundError
        If JAX or optax is not installed.
    TypeError
        If an argument has the wrong type.
    ValueError
        If shapes do not fit, there are no heads, keys or values are of width 0, a value is not finite, neither or both
        of `count` and `features` are given, the features are not of an exponential and nonnegative map, a number is out
        of range, or too little is left to learn from.

    Examples
    --------
    >>> import numpy as np
    >>> from rfkernels.calibration import calibrate
    >>> q, k, v = 1.5 * np.random.default_rng(0).standard_normal((3, 2, 256, 16))
    >>> found = calibrate(q, k, v, count=32, steps=50, progress=False, rng=0)
    >>> found.features.batch
    (2,)
    >>> bool((found.validation.learned <= found.validation.start).all())
    True
    """
    queries, keys = listed("q", q), listed("k", k)
    values = None if v is None else listed("v", v)
    batch = check_sequences(queries, keys, values)
    _check_numbers(steps, learning_rate, holdout, patience)
    check_window(window)
    check_flags(causal=causal)
    if not (isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress must be a bool or a callable, got {type(progress).__name__}")
    if (count is None) == (features is None):
        raise ValueError(f"give either count or features, got count={count!r} and features={type(features).__name__}")
    if features is not None and scale is not None:
        raise ValueError("scale= belongs to count=; features have their own")
    generator = generator_of(rng)
    for_split, for_blocks = generator.spawn(2)
    parts = split([x.shape[-2] for x in queries], holdout, for_split)
    learner = import_module("rfkernels.integrations.optax")
    if features is None:
        start = fit(*_training(queries, keys, parts), count, scale=scale, rng=generator)  # type: ignore[arg-type]
    else:
        start = widened(features, keys[0], batch)
    data = together(queries, keys, values)
    setting = learner.Setting(start.map, bool(causal), window and int(window))
    rates = learner.cosine(float(learning_rate), int(steps))
    return _learn(learner, setting, start, data, parts, rates, int(patience), progress, for_blocks)


def _learn(
    learner: Any,
    setting: Any,
    start: Features,
    data: Sequences,
    parts: Split,
    rates: Any,
    patience: int,
    progress: bool | Callable[[Progress], None],
    rng: np.random.Generator,
) -> Calibration:
    """Learn from the start, and measure it and what was learned."""
    batch, complete = start.batch, full(start)
    parameters, fixed = flattened(complete)
    train, validation, test = (every(part, most) for part, most in zip(parts, (_TEST, _VALIDATION, _TEST), strict=True))
    first = np.asarray(learner.errors(setting, parameters, fixed, data, validation))

    def blocks(number: int) -> Blocks:
        return drawn(parts.train, number, rng)

    def report(step: int, *errors: Any) -> None:
        if progress is not False:
            trained, best = (x.reshape(batch) for x in errors)
            tell = bar if progress is True else progress
            tell(Progress(step, len(rates), trained, first.reshape(batch), best))

    done = learner.learn(setting, parameters, fixed, data, validation, blocks, rates, patience, _INTERVAL, report)
    if progress is True:
        end_bar()

    def measured(part: Blocks) -> Errors:
        given = parameters, done.parameters
        return Errors(*(np.asarray(learner.errors(setting, x, fixed, data, part)).reshape(batch) for x in given))

    features = kept(start, complete, done.parameters, done.best.reshape(batch))
    curve = (x.reshape(len(x), *batch) for x in (done.train, done.validation))
    return Calibration(
        features,
        start,
        done.best.reshape(batch),
        done.stopped.reshape(batch),
        measured(train),
        measured(validation),
        measured(test),
        History(done.step, done.seconds, *curve),
    )


def _training(queries: list[Any], keys: list[Any], parts: Split) -> tuple[Any, Any]:
    """Return the queries of the training part, and the keys of its sequences, one after another."""
    xp = namespace(*queries, *keys)
    pairs = [(x[..., at, :], y) for x, y, at in zip(queries, keys, parts.train, strict=True) if len(at)]
    rows, columns = zip(*pairs, strict=True)
    return xp.concatenate(rows, -2), xp.concatenate(columns, -2)


def _check_numbers(steps: Any, learning_rate: Any, holdout: Any, patience: Any) -> None:
    for name, number in (("steps", steps), ("patience", patience)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"{name} must be a positive integer, got {number!r}")
    for name, number, most in (("learning_rate", learning_rate, math.inf), ("holdout", holdout, 0.5)):
        if not (is_number(number) and 0 < number < most):
            raise ValueError(f"{name} must be a number above 0 and below {most}, got {number!r}")
