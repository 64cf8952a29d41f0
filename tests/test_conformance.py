"""Every backend × map × sampler × dtype × shape × schedule × mask × preprocessing gives what the definition says.

Oracles: dense weights in float64 (`oracle.expect`), and the executable specification in float64. By default the cases form
a covering array: every two values of different factors meet in one case. ``pytest --long`` adds thousands of cases drawn at
random from the full product.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest
from oracle import DTYPES, MAPS

import rfkernels as rfk
from rfkernels._arrays import namespace

Case = dict[str, Any]

BATCHES: dict[str, dict[str, tuple[int, ...]]] = {
    "none": {},
    "three": {"q": (3,), "k": (3,), "v": (3,)},
    "two three": {"q": (2, 3), "k": (2, 3), "v": (2, 3)},
    "nothing": {"q": (0, 2), "k": (0, 2), "v": (0, 2)},
    "grouped": {"q": (2, 2, 3), "k": (2, 2, 1), "v": (2, 2, 1)},
    "crossed": {"q": (2, 1), "k": (3,), "v": (1, 3)},
    "values only": {"v": (3,)},
    "keys only": {"k": (3,)},
    "queries only": {"q": (3,)},
    "feature heads": {"q": (2, 3), "k": (2, 3), "v": (2, 3), "features": (3,)},
    "feature groups": {"q": (2, 2, 3), "k": (2, 2, 1), "v": (2, 2, 1), "features": (2, 1)},
}
SAMPLERS: dict[str, Any] = {
    "iid": "iid",
    "orthogonal": "orthogonal",
    "antithetic": "antithetic",
    "antithetic iid": rfk.samplers.antithetic(rfk.samplers.iid),
}
LENGTHS = (
    *((n, n) for n in (0, 1, 2, 7, 63, 64, 65, 130, 200)),
    *((0, 5), (5, 0), (7, 65), (65, 7), (130, 1), (1, 130)),
)


# What a schedule does with a case


class Run(NamedTuple):
    """The arguments of one case, placed on its backend."""

    q: Any
    k: Any
    v: Any
    features: rfk.Features
    mask: Any
    window: int
    backend: str
    batch: tuple[int, ...]  # of a state

    @property
    def options(self) -> dict[str, Any]:
        return {"mask": self.mask, "backend": self.backend, "full": True}

    def empty(self, window: int | None = None) -> Any:
        dtype = np.float64 if self.k.dtype == np.float64 else np.float32
        return rfk.empty_state(self.features, self.v.shape[-1], self.batch, dtype, window=window)

    def write(self, state: Any, start: int, stop: int) -> Any:
        mask = None if self.mask is None else self.mask[..., start:stop]
        k, v = self.k[..., start:stop, :], self.v[..., start:stop, :]
        return rfk.write_state(state, k, v, self.features, mask=mask, backend=self.backend)


def pieces(length: int, keys: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Consecutive slices of queries and of keys whose ends are aligned: chunks of a causal pass."""
    offset = keys - length
    if offset or not length:  # keys before the first query, or queries before the first key
        yield slice(0, max(-offset, 0)), slice(0, max(offset, 0))
    for start in range(max(-offset, 0), length, size):
        stop = min(start + size, length)
        yield slice(start, stop), slice(start + offset, stop + offset)


def in_pieces(run: Run, size: int, state: Any, **options: Any) -> tuple[rfk.AttentionResult, Any]:
    results = []
    for rows, keys in pieces(run.q.shape[-2], run.k.shape[-2], size):
        mask = None if run.mask is None else run.mask[..., keys]
        q, k, v = run.q[..., rows, :], run.k[..., keys, :], run.v[..., keys, :]
        options.update(mask=mask, state=state, causal=True, full=True, backend=run.backend)
        results.append(rfk.attention(q, k, v, run.features, **options))
        state = results[-1].state
    concatenate = namespace(run.q).concatenate
    output = concatenate([x.output for x in results], -2)
    log = concatenate([x.log_normalizer for x in results], -1)
    return rfk.AttentionResult(output, state, log, concatenate([x.sign for x in results], -1))


def bidirectional(run: Run) -> Any:
    return rfk.attention(run.q, run.k, run.v, run.features, **run.options)


def causal(run: Run) -> Any:
    return rfk.attention(run.q, run.k, run.v, run.features, causal=True, **run.options)


def windowed_causal(run: Run) -> Any:
    return rfk.attention(run.q, run.k, run.v, run.features, causal=True, window=run.window, **run.options)


def windowed(run: Run) -> Any:
    return rfk.attention(run.q, run.k, run.v, run.features, window=run.window, **run.options)


def chunked(run: Run) -> Any:
    return in_pieces(run, 33, None)


def streamed(run: Run) -> Any:
    return in_pieces(run, 1, run.empty())


def windowed_chunked(run: Run) -> Any:
    return in_pieces(run, 33, None, window=run.window)


def windowed_streamed(run: Run) -> Any:
    return in_pieces(run, 1, run.empty(run.window), window=run.window)


def resumed(run: Run) -> Any:
    half = run.k.shape[-2] // 2
    state = run.write(run.empty(), 0, half)
    mask = None if run.mask is None else run.mask[..., half:]
    rest = {**run.options, "mask": mask, "state": state}
    return rfk.attention(run.q, run.k[..., half:, :], run.v[..., half:, :], run.features, **rest)


def written(run: Run) -> Any:
    keys, state = run.k.shape[-2], run.empty()
    for start, stop in itertools.pairwise((0, keys // 3, keys // 3, keys // 2, keys)):
        state = run.write(state, start, stop)
    return rfk.read_state(state, run.q, run.features, full=True, backend=run.backend)


def merged(run: Run) -> Any:
    half, keys = run.k.shape[-2] // 2, run.k.shape[-2]
    first, second = run.write(run.empty(), 0, half), run.write(run.empty(), half, keys)
    state = rfk.merge_states(first, second)
    return rfk.read_state(state, run.q, run.features, full=True, backend=run.backend)


class Schedule(NamedTuple):
    run: Callable[[Run], Any]
    causal: bool = False
    window: bool = False


SCHEDULES = {
    "bidirectional": Schedule(bidirectional),
    "causal": Schedule(causal, causal=True),
    "chunked": Schedule(chunked, causal=True),
    "streamed": Schedule(streamed, causal=True),
    "windowed causal": Schedule(windowed_causal, causal=True, window=True),
    "windowed": Schedule(windowed, window=True),
    "windowed chunked": Schedule(windowed_chunked, causal=True, window=True),
    "windowed streamed": Schedule(windowed_streamed, causal=True, window=True),
    "resumed": Schedule(resumed),
    "written": Schedule(written),
    "merged": Schedule(merged),
}

FACTORS: dict[str, tuple[Any, ...]] = {
    "map": tuple(MAPS),
    "sampler": tuple(SAMPLERS),
    "dtype": tuple(DTYPES),
    "lengths": LENGTHS,
    "dim": (1, 3, 16, 33, 64),
    "rows": (1, 2, 6, 33, 66),
    "width": (0, 1, 5, 64),
    "batch": tuple(BATCHES),
    "schedule": tuple(SCHEDULES),
    "window": (1, 2, 33, 64, 300),
    "mask": ("none", "random", "all false", "leading", "trailing"),
    "preprocessing": ("plain", "scale", "affine"),
}
SMALL = {
    **FACTORS,
    "lengths": ((0, 0), (1, 1), (3, 3), (6, 6), (2, 5), (5, 2)),
    "dim": (1, 3, 16),
    "rows": (2, 6),
    "width": (0, 1, 5),
    "window": (1, 2, 7),
}
"""For JAX, where each case is compiled with all its steps in a row."""


def forbidden(first: str, one: Any, second: str, two: Any) -> bool:
    """Whether two values cannot go together; the names of their factors are in alphabetical order."""
    if (first, second) == ("map", "schedule"):
        return SCHEDULES[two].window and MAPS[one].kernel is None
    if (first, second) == ("rows", "sampler"):
        return two.startswith("antithetic") and one % 2 == 1
    return False


# Covering arrays


def clashes(case: Case, name: str, value: Any, forbid: Callable[[str, Any, str, Any], bool]) -> bool:
    """Whether a value of a factor cannot join a case."""
    for other, chosen in case.items():
        one, two = sorted(((name, value), (other, chosen)), key=lambda pair: pair[0])
        if forbid(*one, *two):
            return True
    return False


def covering_array(
    factors: dict[str, tuple[Any, ...]], forbid: Callable[[str, Any, str, Any], bool], seed: int = 0
) -> list[Case]:
    """Return cases in which every allowed pair of values of two factors occurs: greedy, the same for the same seed."""
    rng = np.random.default_rng(seed)
    pair = {
        (a, x, b, y): None  # a dict keeps its order, a set of strings does not
        for a, b in itertools.combinations(sorted(factors), 2)
        for x, y in itertools.product(factors[a], factors[b])
        if not forbid(a, x, b, y)
    }
    cases = []
    while pair:
        tries = [_extend(next(iter(pair)), factors, forbid, pair, rng) for _ in range(4)]
        case = max(tries, key=lambda case: sum(key in pair for key in pairs_of(case)))
        for key in pairs_of(case):
            pair.pop(key, None)
        cases.append(case)
    return cases


def pairs_of(case: Case) -> Iterator[tuple[str, Any, str, Any]]:
    """The pairs of values in a case, in the order of the names of their factors."""
    for a, b in itertools.combinations(sorted(case), 2):
        yield a, case[a], b, case[b]


def _extend(
    start: tuple[str, Any, str, Any],
    factors: dict[str, tuple[Any, ...]],
    forbid: Callable[[str, Any, str, Any], bool],
    uncovered: dict[tuple[str, Any, str, Any], None],
    rng: np.random.Generator,
) -> Case:
    """Complete a pair to a case, each further value the one that covers most, ties broken at random."""
    case: Case = {start[0]: start[1], start[2]: start[3]}
    for name in rng.permutation([name for name in factors if name not in case]).tolist():
        allowed = [value for value in factors[name] if not clashes(case, name, value, forbid)]
        gains = [sum(key in uncovered for key in pairs_of({**case, name: value}) if name in key[::2]) for value in allowed]
        best = [value for value, gain in zip(allowed, gains, strict=True) if gain == max(gains)]
        case[name] = best[int(rng.integers(len(best)))]
    return {name: case[name] for name in factors}


def random_cases(factors: dict[str, tuple[Any, ...]], count: int, seed: int) -> list[Case]:
    """Return cases drawn uniformly from the allowed part of the product."""
    rng, cases = np.random.default_rng(seed), []
    while len(cases) < count:
        case = {name: values[int(rng.integers(len(values)))] for name, values in factors.items()}
        if not any(forbidden(*key) for key in pairs_of(case)):
            cases.append(case)
    return cases


def test_covering_array_covers_every_allowed_pair() -> None:
    factors = {"x": (0, 1, 2), "y": ("a", "b"), "z": (0, 1, 2, 3), "w": (True, False)}

    def forbid(first: str, one: Any, second: str, two: Any) -> bool:
        return (first, one, second, two) in {("x", 1, "y", "b"), ("w", True, "z", 3)}

    cases = covering_array(factors, forbid)
    found = {key for case in cases for key in pairs_of(case)}
    product = itertools.product(*factors.values())
    everything = {key for values in product for key in pairs_of(dict(zip(factors, values, strict=True)))}
    assert found == everything - {("x", 1, "y", "b"), ("w", True, "z", 3)}
    assert cases == covering_array(factors, forbid)
    assert len(cases) <= 16


def test_conformance_cases_cover_every_allowed_pair() -> None:
    found = {key for case in all_cases() for key in pairs_of(case)}
    for a, b in itertools.combinations(sorted(FACTORS), 2):
        for x, y in itertools.product(FACTORS[a], FACTORS[b]):
            assert ((a, x, b, y) in found) is not forbidden(a, x, b, y)


@functools.cache
def all_cases() -> list[Case]:
    return covering_array(FACTORS, forbidden)


@functools.cache
def few_cases() -> list[Case]:
    """Cases for JAX in which every value of every factor occurs, and many pairs do."""
    cases, seen = [], set()
    for case in covering_array(SMALL, forbidden, seed=1):
        if not seen.issuperset(case.items()):
            cases.append(case)
            seen.update(case.items())
    return cases


# The suite


def name_of(case: Case) -> str:
    return "-".join(str(value).replace(" ", "_") for value in case.values())


def make_mask(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """A key mask; padding is the same for every batch element if leading, and differs if trailing."""
    keys = shape[-1]
    if kind == "none":
        return None
    if kind == "leading":
        return np.arange(keys) >= keys // 3
    if kind == "trailing":
        return np.arange(keys) < rng.integers(0, keys + 1, (*shape[:-1], 1))
    mask = rng.random(shape) < 0.6
    if kind == "all false":
        mask &= (np.arange(int(np.prod(shape[:-1]))) % 2 == 1).reshape(*shape[:-1], 1)
    return mask


def arguments(case: Case) -> tuple[Any, Any, Any, rfk.Features, Any]:
    """Queries, keys, values, features and mask of a case, the same in every process."""
    rng = np.random.default_rng(zlib.crc32(repr(sorted(case.items())).encode()))
    batch, (length, keys), dim, dtype = BATCHES[case["batch"]], case["lengths"], case["dim"], DTYPES[case["dtype"]]
    q = oracle.normal(rng, *batch.get("q", ()), length, dim, dtype=dtype)
    k = oracle.normal(rng, *batch.get("k", ()), keys, dim, dtype=dtype)
    v = oracle.normal(rng, *batch.get("v", ()), keys, case["width"], dtype=dtype)
    scale = {"scale": 0.4} if case["preprocessing"] == "scale" else {}
    features = oracle.draw(
        case["map"],
        dim,
        case["rows"],
        sampler=SAMPLERS[case["sampler"]],
        batch=batch.get("features", ()),
        rng=int(rng.integers(1 << 30)),
        **scale,
    )
    if case["preprocessing"] == "affine":
        features = oracle.affine(features, rng)
    return q, k, v, features, make_mask(case["mask"], k.shape[:-1], rng)


def check_case(case: Case, backend: str) -> None:
    q, k, v, features, mask = arguments(case)
    schedule = SCHEDULES[case["schedule"]]
    window = case["window"] if schedule.window else None
    options = {"causal": schedule.causal, "window": window, "mask": mask}
    if backend == "numpy":  # every backend meets the same cases
        wide = [x.astype(np.float64) for x in (q, k, v)]
        specified = rfk.attention(*wide, features, backend="numpy", full=True, **options)
        oracle.check_result(specified, oracle.expect(*wide, features, **options), np.float64, "specification")
    expected = oracle.expect(q, k, v, features, **options)
    batch = np.broadcast_shapes(k.shape[:-2], v.shape[:-2], features.batch, () if mask is None else mask.shape[:-1])
    with oracle.precision(backend, q.dtype):
        arrays = [oracle.place(x, backend) for x in (q, k, v, mask)]

        def run(q: Any, k: Any, v: Any, mask: Any) -> Any:
            result = schedule.run(Run(q, k, v, features, mask, case["window"], backend, batch))
            return result._replace(state=None)

        if backend == "numba" and schedule.window and features.map.kernel.norm_weight is None:
            with pytest.raises(ValueError, match="backend='numpy'"):
                run(*arrays)
            return
        result = compiled(run)(*arrays) if backend == "jax" else run(*arrays)
    oracle.check_result(result, expected, q.dtype, case["schedule"])


def compiled(run: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for JAX: every operation by itself would take far longer, and a whole pass under jit must work anyway."""
    import jax

    return jax.jit(run)


@pytest.mark.parametrize("case", all_cases(), ids=name_of)
@pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
def test_conformance(backend: str, case: Case) -> None:
    check_case(case, backend)


@pytest.mark.parametrize("case", few_cases(), ids=name_of)
def test_conformance_on_jax(case: Case) -> None:
    check_case(case, "jax")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
def test_conformance_at_random(backend: str, seed: int) -> None:
    """5000 cases for each backend, of the full product of about 700 million."""
    for case in random_cases(FACTORS, 50, seed):
        check_case(case, backend)


@pytest.mark.long
@pytest.mark.parametrize("case", covering_array(SMALL, forbidden, seed=1), ids=name_of)
def test_conformance_of_pairs_on_jax(case: Case) -> None:
    check_case(case, "jax")
