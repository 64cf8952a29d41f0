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
import xla
from oracle import DTYPES, MAPS

import rfkernels as rfk
from rfkernels._arrays import namespace

Case = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # signed maps in float16

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
    "hadamard": "hadamard",
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


LONG = 64
"""Tokens of a stream up to which JAX compiles all of them as one program; for 200 that would take hours."""


def one_by_one(attend: Callable[..., Any]) -> Callable[..., Any]:
    import jax

    return jax.jit(attend, static_argnames=("causal", "window", "full", "backend"))


def in_pieces(run: Run, size: int, state: Any, **options: Any) -> tuple[rfk.AttentionResult, Any]:
    results, attend = [], functools.partial(rfk.attention, features=run.features)
    token = attend if run.backend != "jax" else one_by_one(attend)
    for rows, keys in pieces(run.q.shape[-2], run.k.shape[-2], size):
        mask = None if run.mask is None else run.mask[..., keys]
        q, k, v = run.q[..., rows, :], run.k[..., keys, :], run.v[..., keys, :]
        options.update(mask=mask, state=state, causal=True, full=True, backend=run.backend)
        alone = q.shape[-2] == k.shape[-2] == 1 and run.q.shape[-2] > LONG
        results.append((token if alone else attend)(q, k, v, **options))
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


def normalizer(run: Run) -> Any:
    result = bidirectional(run)
    options = {"mask": run.mask, "backend": run.backend, "return_sign": True}
    log, sign = rfk.log_normalizer(run.q, run.k, run.features, **options)
    batch = result.log_normalizer.shape  # which has the batch axes of the values as well
    xp = namespace(log)
    return result._replace(log_normalizer=xp.broadcast_to(log, batch), sign=xp.broadcast_to(sign, batch))


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
    "normalizer": Schedule(normalizer),
}

WHOLE = (bidirectional, causal, windowed_causal, windowed)
STREAMED = (streamed, windowed_streamed)

FACTORS: dict[str, tuple[Any, ...]] = {
    "map": tuple(MAPS),
    "sampler": tuple(SAMPLERS),
    "dtype": tuple(DTYPES),
    "lengths": LENGTHS,
    "dim": (1, 3, 16, 33, 64),
    "rows": (1, 2, 6, 33, 64, 66),
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
"""For JAX, where each case takes seconds to compile; some of the large ones join them, and all by ``pytest --long``."""


def forbidden(first: str, one: Any, second: str, two: Any) -> bool:
    """Whether two values cannot go together; the names of their factors are in alphabetical order."""
    if (first, second) == ("map", "schedule"):
        return SCHEDULES[two].window and MAPS[one].kernel is None
    if (first, second) == ("map", "sampler"):
        return two == "hadamard" and MAPS[one].radii is not None
    if (first, second) == ("rows", "sampler"):
        return two.startswith("antithetic") and one % 2 == 1
    return False


# Covering arrays


def clashes(case: Case, name: str, value: Any, forbid: Callable[[str, Any, str, Any], bool]) -> bool:
    """Whether a value of a factor cannot join a case."""
    return any(forbid(*pair_of(name, value, *other)) for other in case.items())


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


def pair_of(a: str, x: Any, b: str, y: Any) -> tuple[str, Any, str, Any]:
    """A pair of values in the order of the names of their factors."""
    return (a, x, b, y) if a < b else (b, y, a, x)


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
        gains = [sum(pair_of(name, value, *other) in uncovered for other in case.items()) for value in allowed]
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


def few(array: list[Case]) -> list[Case]:
    """Cases of a covering array in which every value of every factor occurs, and many pairs do."""
    cases, seen = [], set()
    for case in array:
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


_EXPECTED: dict[str, oracle.Expected] = {}
"""What cases that have been met should give: backends meet the same ones."""


def check_case(case: Case, backend: str) -> None:
    q, k, v, features, mask = arguments(case)
    schedule = SCHEDULES[case["schedule"]]
    window = case["window"] if schedule.window else None
    options = {"causal": schedule.causal, "window": window, "mask": mask}
    if backend == "numpy":  # every backend meets the same cases
        wide = [x.astype(np.float64) for x in (q, k, v)]
        specified = rfk.attention(*wide, features, backend="numpy", full=True, **options)
        oracle.check_result(specified, oracle.expect(*wide, features, **options), np.float64, "specification")
    if name_of(case) not in _EXPECTED:
        _EXPECTED[name_of(case)] = oracle.expect(q, k, v, features, **options)
    expected = _EXPECTED[name_of(case)]
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
        result = (compiled(run, schedule, max(case["lengths"])) if backend == "jax" else run)(*arrays)
        if schedule.run in WHOLE and backend != "jax":  # without the logs, which may take another path
            plain = {**options, "mask": arrays[3], "backend": backend}
            np.testing.assert_array_equal(rfk.attention(*arrays[:3], features, **plain), result.output)
    oracle.check_result(result, expected, q.dtype, case["schedule"])


def compiled(run: Callable[..., Any], schedule: Schedule, longest: int) -> Callable[..., Any]:
    """Compile for JAX: every operation by itself would take far longer, and a whole pass under jit must work anyway.

    XLA compiles passes of more than a chunk as it does for users. A long stream compiles its tokens itself.
    """
    import jax

    if schedule.run in STREAMED and longest > LONG:
        return run
    return xla.jit(run) if longest > LONG else jax.jit(run)


@pytest.mark.parametrize("case", all_cases(), ids=name_of)
@pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
def test_conformance(backend: str, case: Case) -> None:
    check_case(case, backend)


def of_many_chunks(array: list[Case], count: int) -> list[Case]:
    """Cases longer than a chunk, in which each schedule that does not take hundreds of steps occurs first."""
    cases = [case for case in array if max(case["lengths"]) > 64 and "streamed" not in case["schedule"]]
    firsts = {case["schedule"]: case for case in reversed(cases)}
    return list(firsts.values())[:count]


@pytest.mark.parametrize(
    "case", few(covering_array(SMALL, forbidden, seed=1)) + of_many_chunks(all_cases(), 5), ids=name_of
)
def test_conformance_on_jax(case: Case) -> None:
    check_case(case, "jax")


@pytest.mark.parametrize("case", few(all_cases()), ids=name_of)
@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("backend", oracle.backends("numba"))
def test_conformance_on_narrower_machines(
    backend: str, width: int, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RFKERNELS_VECTOR_BYTES", str(width))
    check_case(case, backend)


@pytest.mark.parametrize("schedule", ["bidirectional", "causal", "windowed", "windowed causal", "written"])
@pytest.mark.parametrize("backend", oracle.backends("numba"))
def test_sequences_are_cut_into_chunks(backend: str, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long enough that few heads are shared among threads by cutting the sequence, and not a multiple of anything."""
    from rfkernels.backends.numba import passes

    monkeypatch.setattr("rfkernels.backends.numba.threads.SERIAL_WORK", 0)
    monkeypatch.setattr(passes, "_PART_BYTES", 1 << 14)
    rng = np.random.default_rng(0)
    entry = SCHEDULES[schedule]
    window = 50 if entry.window else None
    for batch, length, keys, feature_map in (
        ((), 1045, 1045, "positive"),
        ((), 520, 710, "custom exponential"),
        ((), 710, 520, "trigonometric"),
        ((3,), 530, 540, "hyperbolic"),
    ):
        q, k, v = (oracle.normal(rng, *batch, n, w) for n, w in ((length, 5), (keys, 5), (keys, 3)))
        features = oracle.draw(feature_map, 5, 3)
        mask = rng.random(keys) < 0.9
        expected = oracle.expect(q, k, v, features, causal=entry.causal, window=window, mask=mask)
        for threads in (1, 2, 3, 8):
            monkeypatch.setenv("RFKERNELS_NUM_THREADS", str(threads))
            result = entry.run(Run(q, k, v, features, mask, 50, backend, batch))
            oracle.check_result(result, expected, np.float32, f"{batch} {length} {keys} {feature_map} {threads=}")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
def test_conformance_at_random(backend: str, seed: int) -> None:
    """5000 cases for each backend, of the full product of about 700 million."""
    for case in random_cases(FACTORS, 50, seed):
        check_case(case, backend)


@pytest.mark.long
@pytest.mark.parametrize("case", covering_array(SMALL, forbidden, seed=1) + all_cases(), ids=name_of)
def test_conformance_of_pairs_on_jax(case: Case) -> None:
    check_case(case, "jax")


# Exact attention, and attention from given features


def dense(weights: Any, v: Any, causal: bool, window: int | None, mask: Any) -> Any:
    """Normalise dense weights over what each query sees."""
    seen, near = oracle.seen_pairs(*weights.shape[-2:], causal, window)
    seen = near if window is not None else seen
    seen = seen if mask is None else seen & mask[..., None, :]
    weights = np.where(seen, weights, 0)
    total = weights.sum(-1, keepdims=True)
    return weights @ v / np.where(total == 0, 1, total)


KERNELS = (
    *(
        "EXPONENTIAL",
        "SHIFTED_GAUSSIAN",
        "ARC_COSINE_0",
        "ARC_COSINE_1",
        "ARC_COSINE_2",
        "ABSOLUTE",
        "SQUARE",
        "COSINE",
    ),
    *("SIGN", "ERF"),
)
DENSE_SHAPES = (
    *((n, n) for n in (0, 1, 127, 128, 129, 257)),
    *((5, 300), (300, 5), (130, 131), (0, 4), (4, 0)),
)


@pytest.mark.parametrize("lengths", DENSE_SHAPES, ids=str)
@pytest.mark.parametrize("backend", oracle.backends("numpy", "numba"))
def test_exact_attention(backend: str, lengths: tuple[int, int]) -> None:
    (length, keys), rng = lengths, np.random.default_rng(sum(lengths))
    q, k, v = (oracle.normal(rng, *shape) for shape in ((2, length, 4), (1, keys, 4), (1, keys, 3)))
    wide = [x.astype(np.float64) for x in (q, k, v)]
    for name in KERNELS:
        kernel, scale = getattr(rfk.kernels, name), float(rng.uniform(0.3, 1.0))
        pairs, signed = (wide[0][..., :, None, :], wide[1][..., None, :, :]), kernel.sign is not None
        log, sign = rfk.exact_log_kernel(*pairs, scale=scale, kernel=kernel, return_sign=True)
        weights = sign * np.exp(log)
        for causal, window, masked in itertools.product((False, True), (None, 1, 64, 200), (False, True)):
            mask = rng.random((1, keys)) < 0.6 if masked else None
            expected = dense(weights, wide[2], causal, window, mask)
            arrays = wide if signed else (q, k, v)  # whose sums may be nearly zero, and double what rounding did
            options = {"scale": scale, "mask": mask, "kernel": kernel, "backend": backend}
            got = rfk.exact_attention(*arrays, causal=causal, window=window, **options)
            assert got.dtype == arrays[0].dtype
            about = f"{name} {causal=} {window=} {masked=}"
            np.testing.assert_allclose(got, expected, rtol=1e-9 * signed, atol=1e-9 if signed else 3e-5, err_msg=about)
            if not causal and window is None:
                sums, signs = rfk.exact_log_normalizer(*wide[:2], return_sign=True, **options)
                seen = weights if mask is None else np.where(mask[..., None, :], weights, 0)
                np.testing.assert_allclose(signs * np.exp(sums), seen.sum(-1), rtol=1e-12, atol=1e-12 * keys * signed)


@pytest.mark.parametrize("name", ["SIGN", "ERF"])
def test_kernels_that_can_be_negative_have_signs(name: str) -> None:
    kernel = getattr(rfk.kernels, name)
    x, y = np.random.default_rng(0).standard_normal((2, 6, 3))
    for call in (rfk.exact_log_kernel, rfk.exact_log_normalizer):
        with pytest.raises(ValueError, match=f"the kernel '{name.lower()}' can be negative: pass return_sign=True"):
            call(x, y, kernel=kernel)
    log, sign = rfk.exact_log_kernel(x, y, kernel=kernel, return_sign=True)
    turned, opposite = rfk.exact_log_kernel(x, -y, kernel=kernel, return_sign=True)
    np.testing.assert_allclose(turned, log, rtol=1e-14)
    np.testing.assert_array_equal(opposite, -sign)
    assert {-1, 1} == set(sign)
    log, sign = rfk.exact_log_kernel(x, np.zeros_like(y), kernel=kernel, return_sign=True)
    assert (log == -np.inf).all()
    assert (sign == 0).all()
    log, sign = rfk.exact_log_kernel(x, 0 * y, kernel=rfk.kernels.ARC_COSINE_0, return_sign=True)
    assert (log == -np.inf).all()
    assert (sign == 0).all()


def test_exact_kernels_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 50, 3))
    scale = 0.7
    angle = np.arccos(np.clip((x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1), -1, 1))
    norms = scale * np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    opposite = np.pi - angle
    expected = {
        "EXPONENTIAL": np.exp(scale * (x * y).sum(-1)),
        "SHIFTED_GAUSSIAN": np.exp(scale / 2 * np.square(x + y).sum(-1)),
        "ARC_COSINE_1": norms * (np.sin(angle) + opposite * np.cos(angle)) / (2 * np.pi),
        "ARC_COSINE_2": norms**2
        * (3 * np.sin(angle) * np.cos(angle) + opposite * (1 + 2 * np.cos(angle) ** 2))
        / (2 * np.pi),
    }
    dot, xx, yy = (scale * z.sum(-1) for z in (x * y, x * x, y * y))
    expected |= {
        "ARC_COSINE_0": opposite / (2 * np.pi),
        "SIGN": 1 - 2 * angle / np.pi,
        "ABSOLUTE": 2 / np.pi * norms * (np.sin(angle) + (np.pi / 2 - angle) * np.cos(angle)),
        "SQUARE": norms**2 + 2 * dot**2,
        "COSINE": np.exp(-(xx + yy) / 2) * np.cosh(dot),
        "ERF": 2 / np.pi * np.arcsin(2 * dot / np.sqrt((1 + 2 * xx) * (1 + 2 * yy))),
    }
    assert set(expected) == set(KERNELS)
    for name, value in expected.items():
        log, sign = rfk.exact_log_kernel(x, y, scale=scale, kernel=getattr(rfk.kernels, name), return_sign=True)
        np.testing.assert_allclose(sign * np.exp(log), value, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("lengths", DENSE_SHAPES, ids=str)
def test_linear_attention(lengths: tuple[int, int]) -> None:
    (length, keys), rng = lengths, np.random.default_rng(sum(lengths))
    phi_q, phi_k = rng.random((2, 2, length, 6)), rng.random((2, 1, keys, 6))
    v = rng.standard_normal((2, 1, keys, 3))
    weights = phi_q @ np.swapaxes(phi_k, -1, -2)
    for causal, masked, name in itertools.product((False, True), (False, True), DTYPES):
        mask = rng.random((2, 1, keys)) < 0.6 if masked else None
        arrays = [x.astype(DTYPES[name]) for x in (phi_q, phi_k, v)]
        got = rfk.linear_attention(*arrays, causal=causal, mask=mask)
        expected = dense(weights, v, causal, None, mask)
        allowed = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}[name]
        assert got.dtype == DTYPES[name]
        np.testing.assert_allclose(got.astype(np.float64), expected, rtol=0, atol=allowed, err_msg=f"{causal=} {name}")


@pytest.mark.parametrize("name", list(MAPS))
def test_features_and_kernels_agree_with_attention(name: str) -> None:
    """φ itself, pairwise kernels and attention are one computation seen from three sides."""
    rng = np.random.default_rng(3)
    q, k, v = rng.standard_normal((3, 2, 9, 4))
    features = oracle.affine(oracle.draw(name, 4, 6, batch=(2,)), rng)
    phi_q, phi_k = (rfk.transform(x, features, side=side) for x, side in ((q, "query"), (k, "key")))
    assert phi_q.shape == (2, 9, features.count)
    for side, x, phi in (("query", q, phi_q), ("key", k, phi_k)):
        log, sign = rfk.transform(x, features, side=side, log=True)
        np.testing.assert_allclose(sign * np.exp(log), phi, rtol=1e-12, atol=1e-14)
    estimates = phi_q @ np.swapaxes(phi_k, -1, -2)
    log, sign = oracle.log_estimates(q, k, features)
    scale = np.abs(phi_q) @ np.abs(np.swapaxes(phi_k, -1, -2))
    np.testing.assert_array_less(np.abs(sign * np.exp(log) - estimates), 1e-12 * scale + 1e-300)
    expected = rfk.linear_attention(phi_q, phi_k, v)
    got = rfk.attention(q, k, v, features, backend="numpy")
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8)
