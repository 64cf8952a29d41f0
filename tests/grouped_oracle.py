"""What passes over blocks should give: each query by itself, in float64, with the sums of its far keys taken afresh."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

import rfkernels as rfk

SCALE, DIM, WIDTH = 0.7, 4, 3


class Call(NamedTuple):
    """Arguments of `attention`; `heavy` are positions (*batch, heavy)."""

    q: Any
    k: Any
    v: Any
    features: Any = None
    groups: Any = None
    causal: bool = False
    window: int | None = None
    heavy: Any = None
    mask: Any = None

    def options(self) -> dict[str, Any]:
        return dict(zip(self._fields[3:], self[3:], strict=True))


class Expected(NamedTuple):
    output: Any
    log_normalizer: Any


def make_groups(
    rng: np.random.Generator, count: int, batch: tuple[int, ...] = (), dim: int = DIM, scale: float = SCALE
) -> rfk.Groups:
    """Return groups that suit nothing: what is computed from them is specified all the same."""
    roots = rng.normal(size=(2, *batch, dim, dim)) / np.sqrt(dim)
    metric, spread = roots @ np.swapaxes(roots, -1, -2)
    return rfk.Groups(
        centres=rng.normal(size=(*batch, count, dim)), metric=metric, spread=spread / 5, cross=None, scale=scale
    )


def moving(call: Call, batch: tuple[int, ...] = ()) -> Call:
    """Let values move along with what a query prefers within a group."""
    cross = np.random.default_rng(9).normal(size=(*batch, DIM, call.v.shape[-1])) / 5
    return call._replace(groups=call.groups._replace(cross=cross))


def make_call(
    length: int,
    keys: int,
    causal: bool,
    window: int | None,
    *,
    heavy: Any = None,
    masked: tuple[int, ...] | None = None,
    groups: int = 5,
    features: int = 0,
    batches: dict[str, tuple[int, ...]] | None = None,
) -> Call:
    """Return a call with random arguments; `masked` are the batch axes of a mask, if there is to be one."""
    rng, of = np.random.default_rng(length + 1000 * keys), batches or {}
    q, k, v = (
        rng.normal(size=(*of.get(name, ()), rows, width))
        for name, rows, width in (("q", length, DIM), ("k", keys, DIM), ("v", keys, WIDTH))
    )
    return Call(
        q,
        k,
        v,
        rfk.draw("positive", DIM, features, scale=SCALE, batch=of.get("features", ()), rng=1) if features else None,
        make_groups(rng, groups, of.get("groups", ())) if groups else None,
        causal,
        window,
        None if heavy is None else np.array(heavy),
        None if masked is None else rng.random((*masked, keys)) < 0.7,
    )


def blocks(window: int | None, causal: bool) -> tuple[int, int]:
    """Return how long a block is and how many on each side are seen exactly, −1 for not even one's own."""
    if window is None:
        return 64, 0 if causal else -1
    size, reach = 16, 0
    while size < 64 and size * 2 <= window:
        size *= 2
    while reach * size < window - 1:
        reach += 1
    return size, reach


def expect(call: Call) -> Expected:
    """Return outputs and log-normalisers, with all batch axes."""
    keys = call.k.shape[-2]
    given = {"q": call.q, "k": call.k, "v": call.v, "mask": call.mask, "heavy": call.heavy}
    given["mask"] = np.ones(keys, bool) if call.mask is None else call.mask
    given["heavy"] = np.zeros(0, int) if call.heavy is None else call.heavy
    if call.groups is not None:
        parts = (
            ("centres", "metric", "spread") if call.groups.cross is None else ("centres", "metric", "spread", "cross")
        )
        given |= {name: getattr(call.groups, name) for name in parts}
    tails = {name: 1 if name in ("mask", "heavy") else 2 for name in given}
    own = () if call.features is None else call.features.batch
    batch = np.broadcast_shapes(own, *(x.shape[: x.ndim - tails[name]] for name, x in given.items()))
    wide = {n: np.broadcast_to(x, (*batch, *x.shape[x.ndim - tails[n] :])) for n, x in given.items()}
    output, log = np.zeros((*batch, call.q.shape[-2], call.v.shape[-1])), np.zeros((*batch, call.q.shape[-2]))
    for at in np.ndindex(batch):
        one = {name: x[at] for name, x in wide.items()}
        one = {name: x.astype(np.float64) if x.dtype.kind not in "bi" else x for name, x in one.items()}
        one["features"] = None if call.features is None else _taken(call.features, batch, at)
        one["nearest"] = np.zeros(keys, int) if call.groups is None else [_nearest(one, s) for s in range(keys)]
        for t in range(call.q.shape[-2]):
            output[(*at, t)], log[(*at, t)] = _row(one, t, call)
    return Expected(output, log)


def _taken(features: rfk.Features, batch: tuple[int, ...], at: tuple[int, ...]) -> rfk.Features:
    """Return the features of one batch element."""
    arrays = features.projection, features.log_weight
    projection, weight = (
        np.broadcast_to(x, (*batch, *x.shape[x.ndim - tail :]))[at] for x, tail in zip(arrays, (2, 1), strict=True)
    )
    return dataclasses.replace(features, projection=projection, log_weight=weight)


def _nearest(one: dict[str, Any], s: int) -> int:
    apart = one["k"][s] - one["centres"]
    return int(np.argmin([x @ one["metric"] @ x for x in apart]))


def _row(one: dict[str, Any], t: int, call: Call) -> tuple[Any, Any]:
    """Return output and log-normaliser of one query."""
    keys, scale = len(one["k"]), float((call.features or call.groups).scale)
    position = t + keys - len(one["q"]) if call.causal else t
    size, reach = blocks(call.window, call.causal)
    logits, values, far = [], [], {}
    for s in range(keys):
        if not one["mask"][s] or (call.causal and s > position):
            continue
        if s in one["heavy"] or abs(s // size - position // size) <= reach:
            logits.append(scale * one["q"][t] @ one["k"][s])
            values.append(one["v"][s])
        else:
            far.setdefault(one["nearest"][s], []).append(s)
    for group, members in sorted(far.items()):
        estimate = _as_one_key if call.features is None else _by_features
        more, theirs = estimate(one, scale * one["q"][t], t, group, members)
        logits += list(more)
        values += list(theirs)
    if not logits:
        return 0.0, -np.inf
    shift = max(logits)
    weight = np.exp(np.array(logits) - shift)
    return weight @ np.array(values) / weight.sum(), shift + np.log(weight.sum())


def _as_one_key(one: dict[str, Any], x: Any, t: int, group: int, members: list[int]) -> tuple[Any, Any]:
    k = one["k"][members]
    mean = k.mean(0)
    within = np.mean([y @ one["metric"] @ y for y in k - mean])
    along = x @ one["spread"] @ x
    bend = min(within * along / 2, 1.0)
    moved = 2 * bend / along * (x @ one["cross"]) if "cross" in one else 0
    return [x @ mean + bend + np.log(len(members))], [one["v"][members].mean(0) + moved]


def _by_features(one: dict[str, Any], x: Any, t: int, group: int, members: list[int]) -> tuple[Any, Any]:
    """Return keys with weights that features estimate of what is left of them once the centre is taken away."""
    centre = one["centres"][group] if "centres" in one else np.zeros_like(x)
    left = one["k"][members] - centre
    query = np.broadcast_to(one["q"][t], left.shape)
    return x @ centre + rfk.log_kernel(query, left, one["features"]), one["v"][members]


CASES: dict[str, Call] = {
    **{
        f"length {n}, {'causal' if causal else 'both sides'}, window {window}": make_call(n, n, causal, window)
        for n in (0, 1, 15, 16, 17, 130)
        for causal, window in ((False, None), (False, 5), (True, 20), (True, None))
    },
    "many blocks": make_call(300, 300, False, 1, groups=3),
    "many blocks, one key heavy": make_call(300, 300, True, 5, groups=3, heavy=[0]),
    "long blocks": make_call(200, 200, False, 64, heavy=[3, 199, 40]),
    "window over two blocks": make_call(200, 200, True, 100, heavy=[3, 199, 40]),
    "window 32": make_call(110, 110, True, 32),
    "window beyond the sequence": make_call(40, 40, False, 1000),
    "causal, heavy keys of each head": make_call(
        90,
        90,
        True,
        20,
        heavy=[[3, 89, 40], [1, 2, 0]],
        masked=(2,),
        batches=dict.fromkeys(("q", "k", "v", "groups"), (2,)),
    ),
    "heavy keys of each head": make_call(
        90,
        90,
        False,
        20,
        heavy=[[3, 89, 40], [1, 2, 0]],
        masked=(2,),
        batches=dict.fromkeys(("q", "k", "v", "groups"), (2,)),
    ),
    "causal, more keys": make_call(50, 130, True, 20, heavy=[3, 129, 40], masked=()),
    "more keys": make_call(50, 130, False, 20, heavy=[3, 129, 40], masked=()),
    "more queries": make_call(130, 50, False, 20, heavy=[3], masked=()),
    "causal, grouped queries": make_call(
        70,
        70,
        True,
        16,
        heavy=[0, 1],
        masked=(2, 1, 1),
        batches={"q": (2, 2, 2), "k": (2, 2, 1), "v": (2, 2, 1), "groups": (2, 1)},
    ),
    "grouped queries": make_call(
        70,
        70,
        False,
        16,
        heavy=[0, 1],
        masked=(2, 1, 1),
        batches={"q": (2, 2, 2), "k": (2, 2, 1), "v": (2, 2, 1), "groups": (2, 1)},
    ),
    "causal, features in groups": make_call(90, 90, True, 16, heavy=[0, 77], masked=(), features=6),
    "features in groups": make_call(90, 90, False, 16, heavy=[0, 77], masked=(), features=6),
    "features in groups, no window": make_call(90, 90, False, None, features=6),
    "causal, features and heavy keys": make_call(90, 90, True, 16, heavy=[0, 77], masked=(), features=6, groups=0),
    "features and heavy keys": make_call(90, 90, False, None, heavy=[0, 77], masked=(), features=6, groups=0),
    "features and groups of each head": make_call(
        50, 50, True, 5, heavy=[0, 7], features=6, batches=dict.fromkeys(("q", "features", "groups"), (2,))
    ),
    "several values to each key": make_call(50, 50, False, 5, features=6, batches={"v": (2,)}),
    "causal, several values to each key": make_call(50, 50, True, 5, batches={"v": (2,)}),
    "groups of each head, keys of none": make_call(50, 50, False, None, batches={"groups": (2,)}),
    "values that move": moving(make_call(70, 70, False, 5, heavy=[3], masked=())),
    "causal, values that move": moving(make_call(70, 70, True, 5, batches={"v": (2,)}), (2,)),
    "nothing allowed": make_call(20, 20, True, 5)._replace(mask=np.zeros(20, bool)),
}


CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def attend(call: Call, **options: Any) -> Any:
    return rfk.attention(*call[:3], **{**call.options(), **options})


def centred(k: Any) -> rfk.Groups:
    """Return groups with these centres, in the metric of Euclid."""
    return rfk.Groups(centres=k, metric=np.eye(DIM), spread=np.eye(DIM), cross=None, scale=SCALE)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def pieces(call: Call, cuts: list[int], **options: Any) -> Any:
    """Run a causal call in pieces; return outputs, log-normalisers and the last state."""
    state, outputs, logs, q, k, v = None, [], [], *call[:3]
    for start, stop in zip([0, *cuts], [*cuts, k.shape[-2]], strict=True):
        part = slice(start, stop)
        given = {**call.options(), "mask": None if call.mask is None else call.mask[..., part], **options}
        done = rfk.attention(q[..., part, :], k[..., part, :], v[..., part, :], state=state, full=True, **given)
        state = done.state
        outputs.append(done.output)
        logs.append(done.log_normalizer)
    return np.concatenate(outputs, -2), np.concatenate(logs, -1), state


# Groups that are merged: every group is a list of keys, and all that is known of it is found anew from them


def merged_attention(q: Any, k: Any, v: Any, count: int, window: int, heavy: list[int], mask: Any) -> Any:
    """Attend causally, a query at a time, merging the keys that have left the window into `count` groups; one head."""
    size = min(max(2 ** int(np.log2(window)), 16), 64)
    reach, scale, outputs = -(-(window - 1) // size), q.shape[-1] ** -0.5, []
    groups: list[list[int]] = []
    received: dict[int, float] = {}  # by groups, −1, −2, ..., and by keys
    for t in range(len(q)):
        block = t // size
        if t and t % size == 0:
            gone = range(max(block - 1 - reach, 0) * size, max(block - reach, 0) * size)
            leaving = [i for i in gone if mask[i] and i not in heavy]
            groups = fewer([*groups, *([i] for i in leaving)], count, k, received, len(groups))
            received = {}
        near = [i for i in range(max(block - reach, 0) * size, t + 1) if mask[i] and i not in heavy]
        exact = near + [i for i in heavy if i <= t and mask[i]]
        logits, values = [scale * q[t] @ k[i] for i in exact], [v[i] for i in exact]
        own, moved = seen_merged(scale * q[t], groups, k, v)
        weight = np.exp(np.array(logits + own))
        weight /= weight.sum() if len(weight) else 1
        outputs.append(sum((w * x for w, x in zip(weight, values + moved, strict=True)), np.zeros(v.shape[-1])))
        for name, w in zip([*exact, *range(-1, -len(groups) - 1, -1)], weight, strict=True):
            received[name] = received.get(name, 0.0) + (0 if name in heavy else w)
    return np.array(outputs)


def seen_merged(q: Any, groups: list[list[int]], k: Any, v: Any) -> tuple[list[float], list[Any]]:
    """Return the logits of a scaled query with groups, and their values moved along with it."""
    spread, cross = np.zeros((k.shape[-1], k.shape[-1])), np.zeros((k.shape[-1], v.shape[-1]))
    for keys in groups:
        for i in keys:
            apart = k[i] - k[keys].mean(0)
            spread += np.outer(apart, apart)
            cross += np.outer(apart, v[i] - v[keys].mean(0))
    total = np.trace(spread)
    logits, values = [], []
    for keys in groups:
        mean, bend, move = k[keys].mean(0), 0.0, np.zeros(v.shape[-1])
        if total > 0:
            own = np.mean([np.sum((k[i] - mean) ** 2) for i in keys]) / total
            bend = own * (q @ spread @ q) / 2
            move = own * (q @ cross) * (min(bend, 1.0) / bend if bend > 0 else 1)
        logits.append(q @ mean + np.log(len(keys)) + min(bend, 1.0))
        values.append(v[keys].mean(0) + move)
    return logits, values


def fewer(points: list[list[int]], count: int, k: Any, received: dict[int, float], old: int) -> list[list[int]]:
    """Merge points until `count` are left: each with that which costs least, by the cheapest ties of a round at once."""
    if len(points) <= count:
        return points
    mass = [received.get(-1 - i if i < old else keys[0], 0.0) for i, keys in enumerate(points)]
    total, keys_in_all = sum(mass) or 1.0, sum(map(len, points))
    made = [
        (list(keys), k[keys].mean(0), m / total + len(keys) / keys_in_all) for keys, m in zip(points, mass, strict=True)
    ]
    while len(made) > count:
        cost = np.full((len(made), len(made)), np.inf)
        for i, (_, x, a) in enumerate(made):
            for j, (_, y, b) in enumerate(made):
                if i != j:
                    cost[i, j] = a * b / (a + b) * np.sum((x - y) ** 2)
        ties = {frozenset((i, int(j))): cost[i, j] for i, j in enumerate(cost.argmin(1))}
        parts = [{i} for i in range(len(made))]
        for tie in sorted(ties, key=lambda tie: ties[tie])[: len(made) - count]:
            joined = [part for part in parts if part & tie]
            parts = [part for part in parts if not part & tie] + [set().union(*joined)]
        made = [_one([made[i] for i in sorted(part)]) for part in sorted(parts, key=min)]
    return [keys for keys, _, _ in made]


def _one(points: list[tuple[list[int], Any, float]]) -> tuple[list[int], Any, float]:
    weight = sum(w for _, _, w in points)
    return [i for keys, _, _ in points for i in keys], sum(w * x for _, x, w in points) / weight, weight
