"""Captured sequences put side by side, and the queries of each part: training, validation, test."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import accumulator, namespace
from rfkernels._checks import check_kv, check_qk, require_finite_arrays
from rfkernels.fitting.statistics import pooled

BLOCK = 64
"""Queries that are taken at once, all of one sequence."""

_RUN = 16


class Sequences(NamedTuple):
    """Sequences padded to one length, heads in one axis.

    Parameters
    ----------
    q : array, shape (sequences, heads, groups, length, dim)
        The queries that share a head's keys are its groups.
    k : array, shape (sequences, heads, keys, dim)
    v : array, shape (sequences, heads, keys, width), or None
    length, keys : numpy.ndarray, shape (sequences,)
        How many queries and keys are no padding.
    """

    q: Any
    k: Any
    v: Any
    length: Any
    keys: Any


class Blocks(NamedTuple):
    """Blocks of queries: the sequence of each, (blocks,), positions, (blocks, BLOCK), and which are no padding."""

    sequence: Any
    position: Any
    valid: Any


class Split(NamedTuple):
    """Positions of queries in each part: a list of arrays, one for each sequence and perhaps empty."""

    train: list[Any]
    validation: list[Any]
    test: list[Any]


def listed(name: str, given: Any) -> list[Any]:
    """Return a list of sequences, from one or from a list or tuple of them."""
    if not isinstance(given, list | tuple):
        return [given]
    if not given:
        raise ValueError(f"{name} must be an array or a list of at least one, got an empty {type(given).__name__}")
    return list(given)


def check_sequences(q: list[Any], k: list[Any], v: list[Any] | None) -> tuple[int, ...]:
    """Require sequences that fit together, of the same heads; return the batch axes of keys."""
    for name, given in (("q", q), ("v", v)):
        if given is not None and len(given) != len(k):
            raise ValueError(f"q, k and v must be as many sequences, got {len(given)} of {name} and {len(k)} of k")
    for i, (one, other) in enumerate(zip(q, k, strict=True)):
        check_qk(one, other)
        for name, x, first in (("q", one, q[0]), ("k", other, k[0])):
            if x.shape[-2] == 0:
                raise ValueError(f"{name} must hold at least one vector, got shape {x.shape} for sequence {i}")
            if (*x.shape[:-2], x.shape[-1]) != (*first.shape[:-2], first.shape[-1]):
                raise ValueError(
                    f"all sequences of {name} must agree but for their length, got {x.shape} and {first.shape}"
                )
        require_finite_arrays(q=one, k=other)
    shapes = f"got q {q[0].shape} and k {k[0].shape}"
    if q[0].shape[-1] == 0:
        raise ValueError(f"q and k must be at least one wide, {shapes}")
    if 0 in (*q[0].shape[:-2], *k[0].shape[:-2]):
        raise ValueError(f"there must be at least one head, {shapes}")
    _check_range(q=q, k=k)
    for other, values in zip(k, v or [], strict=v is not None):
        check_kv(other, values)
        if values.shape[:-2] != other.shape[:-2] or values.shape[-1] != (v or [])[0].shape[-1]:
            raise ValueError(f"v must have the batch axes of k and one width, got {values.shape} and {other.shape}")
        if values.shape[-1] == 0:
            raise ValueError(f"v must be at least one wide, got shape {values.shape}")
        require_finite_arrays(v=values)
    return tuple(k[0].shape[:-2])


def _check_range(**sequences: list[Any]) -> None:
    """Require finite arrays to be so in float32."""
    for name, given in sequences.items():
        largest = max(float(abs(x).max()) for x in given)
        if largest > float(np.finfo(np.float32).max):
            raise ValueError(
                f"{name} must fit float32, in which features are learned, got a number of size {largest:.3g}"
            )


def together(q: list[Any], k: list[Any], v: list[Any] | None) -> Sequences:
    """Pad sequences to one length, in float32; queries move to the head whose keys they share.

    Values are divided by the largest of their head: errors are relative, and squares must not leave float32.
    """
    batch = tuple(k[0].shape[:-2])
    heads = math.prod(batch)
    queries = []
    for x in q:
        own = pooled(x, batch)
        own = namespace(x).broadcast_to(own, (*batch, *own.shape[-2:]))
        queries.append(own.reshape(heads, -1, x.shape[-2], x.shape[-1]))
    flat = [[x.reshape(heads, *x.shape[-2:]) for x in given] for given in (k, v or [])]
    length, keys = (np.array([x.shape[-2] for x in given], np.int32) for given in (queries, k))
    return Sequences(_padded(queries), _padded(flat[0]), _padded(_in_units(flat[1])) if v else None, length, keys)


def _in_units(v: list[Any]) -> list[Any]:
    xp = namespace(*v)
    wide = [x.astype(accumulator(xp, x)) for x in v]
    unit = reduce(xp.maximum, (xp.max(abs(x), (-2, -1), keepdims=True) for x in wide))
    return [x / xp.where(unit > 0, unit, 1) for x in wide]


def _padded(given: list[Any]) -> Any:
    longest = max(x.shape[-2] for x in given)
    xp = namespace(*given)
    none = [(0, 0)] * (given[0].ndim - 2)
    return xp.stack([xp.pad(x.astype(xp.float32), [*none, (0, longest - x.shape[-2]), (0, 0)]) for x in given])


def split(length: Any, holdout: float, rng: np.random.Generator) -> Split:
    """Hold out a share of the sequences for validation and as many for test; of one or two sequences, runs of queries.

    Neighbouring queries are alike, so that single positions would let the held-out ones be seen.
    """
    if len(length) > 2:
        units = [(i, np.arange(n)) for i, n in enumerate(length)]
    else:
        run = max(1, min(_RUN, min(length) // 10))
        units = [(i, np.arange(a, min(a + run, n))) for i, n in enumerate(length) for a in range(0, n, run)]
    held = max(1, round(holdout * len(units)))
    if 2 * held >= len(units):
        raise ValueError(
            f"holdout={holdout} of {len(units)} {'sequences' if len(length) > 2 else 'runs of queries'} for validation "
            "and as many for test leave nothing to learn from; give more of them, or a smaller holdout"
        )
    order = rng.permutation(len(units))
    parts = order[2 * held :], order[:held], order[held : 2 * held]
    return Split(*([_positions(units, part, i) for i in range(len(length))] for part in parts))


def _positions(units: list[tuple[int, Any]], part: Any, sequence: int) -> Any:
    found = [units[u][1] for u in sorted(part) if units[u][0] == sequence]
    return np.concatenate([np.zeros(0, np.int64), *found])


def every(part: list[Any], most: int) -> Blocks:
    """Return blocks of the queries of a part: all, or so many evenly spread ones that they are `most` in all."""
    total = sum(len(positions) for positions in part)
    rows = []
    for i, positions in enumerate(part):
        wanted = len(positions) if total <= most else math.ceil(len(positions) * most / total)
        chosen = positions[np.linspace(0, len(positions) - 1, wanted).round().astype(int)]
        rows += [(i, chosen[a : a + BLOCK]) for a in range(0, wanted, BLOCK)]
    return _blocks(rows)


def drawn(part: list[Any], count: int, rng: np.random.Generator) -> Blocks:
    """Draw blocks of queries of a part: a sequence in proportion to its queries, and distinct ones of these."""
    sizes = np.array([len(positions) for positions in part])
    chosen = rng.choice(len(part), count, p=sizes / sizes.sum())
    return _blocks([(i, rng.choice(part[i], min(BLOCK, sizes[i]), replace=False)) for i in chosen])


def _blocks(rows: list[tuple[int, Any]]) -> Blocks:
    position, valid = np.zeros((len(rows), BLOCK), np.int32), np.zeros((len(rows), BLOCK), bool)
    for own, real, (_, positions) in zip(position, valid, rows, strict=True):
        own[: len(positions)], real[: len(positions)] = positions, True
    return Blocks(np.array([i for i, _ in rows], np.int32), position, valid)
