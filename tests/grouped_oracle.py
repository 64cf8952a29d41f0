"""What passes over blocks should give: each query by itself, in float64, with the sums of its far keys taken afresh."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import rfkernels as rfk

FIELDS = ("q", "k", "v", "mask", "heavy", "centres", "metric", "spread")


class Given(NamedTuple):
    """A call: `groups` is a Groups or None, `heavy` positions (*batch, heavy) or None."""

    q: Any
    k: Any
    v: Any
    causal: bool = False
    window: int | None = None
    heavy: Any = None
    mask: Any = None
    groups: Any = None
    features: Any = None


class Expected(NamedTuple):
    output: Any
    log_normalizer: Any


def blocks(window: int | None, causal: bool) -> tuple[int, int]:
    """Return how long a block is and how many on each side are seen exactly, −1 for not even one's own."""
    if window is None:
        return 64, 0 if causal else -1
    size = 16
    while size < 64 and size * 2 <= window:
        size *= 2
    reach = 0
    while reach * size < window - 1:
        reach += 1
    return size, reach


def expect(given: Given) -> Expected:
    """Return outputs and log-normalisers, of all batch axes."""
    q, k, v = (np.asarray(x, np.float64) for x in given[:3])
    mask = np.ones(k.shape[-2], bool) if given.mask is None else np.asarray(given.mask)
    heavy = np.zeros(0, int) if given.heavy is None else np.asarray(given.heavy)
    tails = {"q": q, "k": k, "v": v, "mask": mask, "heavy": heavy}
    if given.groups is not None:
        tails |= {name: np.asarray(getattr(given.groups, name), np.float64) for name in FIELDS[5:]}
    sizes = {"mask": 1, "heavy": 1}
    shapes = [x.shape[: x.ndim - sizes.get(name, 2)] for name, x in tails.items()]
    if given.features is not None:
        shapes.append(given.features.batch)
    batch = np.broadcast_shapes(*shapes)
    wide = {n: np.broadcast_to(x, (*batch, *x.shape[x.ndim - sizes.get(n, 2) :])) for n, x in tails.items()}
    output, log = np.zeros((*batch, q.shape[-2], v.shape[-1])), np.zeros((*batch, q.shape[-2]))
    for at in np.ndindex(batch):
        one = {name: x[at] for name, x in wide.items()}
        for t in range(q.shape[-2]):
            output[(*at, t)], log[(*at, t)] = _row(one, t, given, batch, at)
    return Expected(output, log)


def _row(one: dict[str, Any], t: int, given: Given, batch: tuple[int, ...], at: tuple[int, ...]) -> tuple[Any, Any]:
    """Return output and log-normaliser of one query."""
    keys, scale = len(one["k"]), float((given.features or given.groups).scale)
    position = t + keys - len(one["q"]) if given.causal else t
    size, reach = blocks(given.window, given.causal)
    logits, values, far = [], [], []
    for s in range(keys):
        if not one["mask"][s] or (given.causal and s > position):
            continue
        if s in one["heavy"] or abs(s // size - position // size) <= reach:
            logits.append(scale * one["q"][t] @ one["k"][s])
            values.append(one["v"][s])
        else:
            far.append(s)
    if given.groups is None:
        members = [(np.zeros(one["k"].shape[-1]), far)] if far else []
    else:
        nearest = {s: _nearest(one, s) for s in far}
        members = [(one["centres"][c], [s for s in far if nearest[s] == c]) for c in sorted(set(nearest.values()))]
    for centre, group in members:
        more = (
            _estimated(one, t, centre, group, scale, given, batch, at) if given.features else _one(one, t, group, scale)
        )
        logits += more[0]
        values += more[1]
    if not logits:
        return 0.0, -np.inf
    shift = max(logits)
    weight = np.exp(np.array(logits) - shift)
    return weight @ np.array(values) / weight.sum(), shift + np.log(weight.sum())


def _nearest(one: dict[str, Any], s: int) -> int:
    apart = one["k"][s] - one["centres"]
    return int(np.argmin([x @ one["metric"] @ x for x in apart]))


def _one(one: dict[str, Any], t: int, group: list[int], scale: float) -> tuple[list[Any], list[Any]]:
    """Return a group as one key."""
    k, x = one["k"][group], scale * one["q"][t]
    mean = k.mean(0)
    within = np.mean([y @ one["metric"] @ y for y in k - mean])
    bend = min(within * (x @ one["spread"] @ x) / 2, 1.0)
    return [x @ mean + bend + np.log(len(group))], [one["v"][group].mean(0)]


def _estimated(
    one: dict[str, Any], t: int, centre: Any, group: list[int], scale: float, given: Given, batch: Any, at: Any
) -> tuple[list[Any], list[Any]]:
    """Return each key of a group with its estimated weight, from features of what is left of it."""
    x, y = one["q"][t], one["k"][group] - centre
    log = [
        rfk.log_kernel(np.broadcast_to(x, (*batch, len(x))), np.broadcast_to(r, (*batch, len(r))), given.features)[at]
        for r in y
    ]
    return [float(scale * x @ centre + own) for own in log], list(one["v"][group])
