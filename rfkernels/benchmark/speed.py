"""Ratios of times at one length: against the peers, and between the library's own options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from rfkernels.attention import linear_attention
from rfkernels.baseline import exact_attention
from rfkernels.benchmark import peers
from rfkernels.benchmark.line import Line, Ratio, missing_line, ratio_line, show_threads, time_line
from rfkernels.benchmark.plan import Plan, allowed_threads, inputs, ours
from rfkernels.benchmark.timing import Call, Timings, measure
from rfkernels.estimates import transform
from rfkernels.features import draw
from rfkernels.maps import FeatureMap

_OURS = "rfkernels"
_FAST = "rfkernels, hyperbolic on Hadamard rows"
_EXACT = "rfkernels exact"
_PERFORMER = "performer-pytorch"
_RBF = "scikit-learn's RBFSampler"
_DIRECTIONS = {"bidirectional": False, "causal": True}


def bidirectional(plan: Plan) -> Iterator[Line]:
    """Time bidirectional attention against three peers."""
    arrays = inputs(plan, plan.length)
    builders = {
        _OURS: lambda: ours(plan, arrays),
        _FAST: lambda: ours(plan, arrays, "hyperbolic", "hadamard"),
        _PERFORMER: lambda: peers.performer(plan, arrays, causal=False),
        "jax.jit": lambda: peers.jax_plain(plan, arrays),
        "torch exact": lambda: peers.torch_exact(plan, arrays, causal=False),
    }
    timings = measure(builders, plan.rounds, plan.seconds)
    where = f"bidirectional L={plan.length:,}"
    yield time_line(where, timings, _OURS, allowed_threads())
    yield time_line(f"{where}: hyperbolic on Hadamard rows", timings, _FAST, allowed_threads())
    same = "" if {_OURS, "jax.jit"} & timings.missing.keys() else _difference(builders[_OURS](), builders["jax.jit"]())
    for peer, mine, target, note in (
        (_PERFORMER, _OURS, ">= 20", ""),
        (_PERFORMER, _FAST, ">= 20", _errors(builders, (_OURS, _FAST, _PERFORMER), timings)),
        ("jax.jit", _OURS, ">= 4", f"the plain mathematics{same}"),
        ("torch exact", _OURS, "", ""),
    ):
        yield _line(timings, Ratio(f"{where}: {peer} / {mine}", peer, mine, target, note=note))


def _errors(builders: Mapping[str, Callable[[], Call]], cases: tuple[str, ...], timings: Timings) -> str:
    """Say how far outputs are from exact attention, relative to how far that is from its mean over positions."""
    exact = "torch exact"
    if timings.missing.keys() & {exact, *cases}:
        return ""
    right = np.asarray(builders[exact]()())
    size = np.sqrt(np.mean((right - right.mean(-2, keepdims=True)) ** 2))
    errors = {case: np.sqrt(np.mean((np.asarray(builders[case]()()) - right) ** 2)) / size for case in cases}
    return "errors: " + ", ".join(f"{case} {error:.3g}" for case, error in errors.items())


def _difference(mine: Call, other: Call) -> str:
    """Say how far two outputs differ, relative to the largest value."""
    x, y = np.asarray(mine()), np.asarray(other())
    return f", whose output differs by {np.max(np.abs(x - y)) / np.max(np.abs(y)):.1g}"


def causal(plan: Plan) -> Iterator[Line]:
    """Time causal attention against bidirectional attention, and against the slow causal pass of performer-pytorch."""
    arrays = inputs(plan, plan.length)
    builders = {name: partial(ours, plan, arrays, causal=value) for name, value in _DIRECTIONS.items()}
    timings = measure(builders, plan.rounds, plan.seconds)
    where = f"causal L={plan.length:,}"
    yield time_line(where, timings, "causal", allowed_threads())
    yield _line(timings, Ratio(f"{where} / bidirectional", "causal", "bidirectional", "<= 1.3"))
    short = inputs(plan, plan.slow_length)
    slow: dict[str, Any] = {
        _OURS: lambda: ours(plan, short, causal=True),
        _FAST: lambda: ours(plan, short, "hyperbolic", "hadamard", causal=True),
        _PERFORMER: lambda: peers.performer(plan, short, causal=True),
    }
    timings = measure(slow, plan.slow_rounds, plan.seconds)
    for mine in (_OURS, _FAST):
        name, note = f"causal L={plan.slow_length:,}: {_PERFORMER} / {mine}", "its causal pass without CUDA code"
        yield _line(timings, Ratio(name, _PERFORMER, mine, ">= 200", note=note))


def crossover(plan: Plan) -> Iterator[Line]:
    """Time torch's exact attention against ours at several lengths, and find from which one on ours is faster."""
    for direction, target in (("bidirectional", 512), ("causal", 1024)):
        is_causal = _DIRECTIONS[direction]
        ratios: dict[int, float] = {}
        for length in plan.crossover:
            arrays = inputs(plan, length)
            builders = {
                "torch exact": partial(peers.torch_exact, plan, arrays, is_causal),
                _OURS: partial(ours, plan, arrays, causal=is_causal),
                _EXACT: partial(_exact, plan, arrays, is_causal),
            }
            timings = measure(builders, plan.rounds, plan.seconds)
            name = f"{direction} L={length:,}: torch exact"
            line = _line(timings, Ratio(f"{name} / {_OURS}", "torch exact", _OURS, "> 1" if length >= target else ""))
            ratios[length] = line.value
            yield line
            yield _line(timings, Ratio(f"{name} / {_EXACT}", "torch exact", _EXACT))
        yield _first_faster(direction, ratios, f"<= {target}")


def _exact(plan: Plan, arrays: Any, causal: bool) -> Call:
    return partial(exact_attention, *arrays, causal=causal, backend=plan.backend)


def _first_faster(direction: str, ratios: Mapping[int, float], target: str) -> Line:
    name = f"{direction}: shortest length from which on ours is faster than torch exact"
    if any(math.isnan(value) for value in ratios.values()):
        return missing_line(name, "positions", target, "a length above was not measured")
    tried = ", ".join(f"{length:,}" for length in sorted(ratios))
    detail = f"of {tried}; {show_threads(allowed_threads())}"
    return Line(name, first_faster(ratios), "positions", target, detail)


def first_faster(ratios: Mapping[int, float]) -> float:
    """Return the smallest length from which on every ratio exceeds 1; infinity if the longest does not."""
    first = math.inf
    for length in sorted(ratios, reverse=True):
        if not ratios[length] > 1:
            break
        first = length
    return first


def _squared_leaky_relu_plus(xp: Any, u: Any, a: Any) -> Any:
    return xp.square(xp.maximum(u, 0.1 * u)) + 0.5


def maps(plan: Plan) -> Iterator[Line]:
    """Time other feature maps against positive features, at equal counts."""
    custom = FeatureMap((_squared_leaky_relu_plus,), nonnegative=True)
    named: dict[str, tuple[str | FeatureMap, str, str]] = {
        "relu": ("relu", "orthogonal", "<= 1"),
        "custom, (leaky ReLU)² + ½,": (custom, "orthogonal", "<= 1"),
        "hyperbolic": ("hyperbolic", "orthogonal", ""),
        "trigonometric": ("trigonometric", "orthogonal", ""),
        "positive on Hadamard rows": ("positive", "hadamard", ""),
        "hyperbolic on Hadamard rows": ("hyperbolic", "hadamard", ""),
    }
    arrays = inputs(plan, plan.length)
    for direction, is_causal in _DIRECTIONS.items():
        builders = {"positive": partial(ours, plan, arrays, causal=is_causal)}
        for name, (feature_map, sampler, _) in named.items():
            builders[name] = partial(ours, plan, arrays, feature_map, sampler, causal=is_causal)
        timings = measure(builders, plan.rounds, plan.seconds)
        for name, (_, _, target) in named.items():
            yield _line(timings, Ratio(f"{direction} L={plan.length:,}: {name} / positive", name, "positive", target))


def window(plan: Plan) -> Iterator[Line]:
    """Time attention with an exact window against attention without."""
    arrays = inputs(plan, plan.length)
    for direction, is_causal in _DIRECTIONS.items():
        builders = {
            "window": partial(ours, plan, arrays, causal=is_causal, window=plan.window),
            "none": partial(ours, plan, arrays, causal=is_causal),
        }
        timings = measure(builders, plan.rounds, plan.seconds)
        name = f"{direction} L={plan.length:,}: window of {plan.window} / none"
        yield _line(timings, Ratio(name, "window", "none", "<= 1.35"))


def features(plan: Plan) -> Iterator[Line]:
    """Time features themselves against what users would otherwise write or pick."""
    x = inputs(plan, plan.single, 1)[0][0]
    for name, peer, build in (("positive", "torch", peers.torch_positive), ("gaussian", _RBF, peers.rbf_sampler)):
        timings = measure(
            {name: partial(_features, plan, x, name), peer: partial(build, plan, x)}, plan.rounds, plan.seconds
        )
        yield _line(timings, Ratio(f"{plan.single:,} rows of features: {peer} / {name}", peer, name))
    rng, (*_, v) = np.random.default_rng(0), inputs(plan, plan.length)
    phi_q, phi_k = rng.random((2, plan.heads, plan.length, plan.count), np.float32)
    timings = measure(
        {
            _OURS: lambda: partial(linear_attention, phi_q, phi_k, v, backend=plan.backend),
            "torch": partial(peers.torch_given, phi_q, phi_k, v),
        },
        plan.rounds,
        plan.seconds,
    )
    yield _line(timings, Ratio(f"L={plan.length:,} from given features: torch / {_OURS}", "torch", _OURS))


def _features(plan: Plan, x: Any, name: str) -> Call:
    drawn = draw(name, plan.dim, plan.count, scale=1, rng=0)
    return partial(transform, x, drawn, side="query", backend=plan.backend)


def dtypes(plan: Plan) -> Iterator[Line]:
    """Compare the throughput in other dtypes with that in float32."""
    names = ("float64", "float16", "bfloat16")
    for direction, is_causal in _DIRECTIONS.items():
        builders = {name: partial(_in_dtype, plan, name, is_causal) for name in ("float32", *names)}
        timings = measure(builders, plan.rounds, plan.seconds)
        for name in names:
            yield _line(
                timings, Ratio(f"{direction} L={plan.length:,}: throughput in {name} / float32", "float32", name)
            )


def _in_dtype(plan: Plan, name: str, is_causal: bool) -> Call:
    dtype: Any = name
    if name == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    return ours(plan, inputs(plan, plan.length, dtype=dtype), causal=is_causal)


def _line(timings: Timings, ratio: Ratio) -> Line:
    return ratio_line(timings, ratio, allowed_threads())
