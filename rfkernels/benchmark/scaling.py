"""How time grows: with the length, with threads, and with the position while decoding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from rfkernels.attention import attention
from rfkernels.benchmark import peers
from rfkernels.benchmark.line import Line, Ratio, missing_line, ratio_line, time_line
from rfkernels.benchmark.plan import Arrays, Plan, allowed_threads, inputs, ours, require_memory, with_threads
from rfkernels.benchmark.timing import Call, Unavailable, measure
from rfkernels.features import draw
from rfkernels.state import empty_state

_DIRECTIONS = {"bidirectional": False, "causal": True}


def length(plan: Plan) -> Iterator[Line]:
    """Compare the time per token of long inputs with that at the plan's usual length."""
    for heads, long in plan.long:
        names = {
            direction: f"{direction} H={heads}: time per token, L={long:,} / L={plan.length:,}"
            for direction in _DIRECTIONS
        }
        try:
            require_memory(plan, long, heads)
        except Unavailable as error:
            yield from (missing_line(name, "x", "<= 1.15", str(error)) for name in names.values())
            continue
        arrays = {size: inputs(plan, size, heads) for size in (plan.length, long)}
        for direction, name in names.items():
            builders = {
                f"L={size:,}": partial(ours, plan, arrays[size], causal=_DIRECTIONS[direction]) for size in arrays
            }
            timings = measure(builders, plan.slow_rounds, plan.seconds)
            ratio = Ratio(name, f"L={long:,}", f"L={plan.length:,}", "<= 1.15", plan.length / long)
            yield ratio_line(timings, ratio, allowed_threads())


def threads(plan: Plan) -> Iterator[Line]:
    """Compare one thread with two on a single head."""
    arrays = inputs(plan, plan.single, 1)
    for direction, target in (("bidirectional", ">= 1.7"), ("causal", ">= 1.35")):
        name = f"{direction} H=1 L={plan.single:,}: one thread / two threads"
        if allowed_threads() < 2:
            yield missing_line(name, "x", target, "one core is allowed")
            continue
        builders = {
            label: partial(_limited, count, plan, arrays, _DIRECTIONS[direction])
            for label, count in (("one thread", 1), ("two threads", 2))
        }
        timings = measure(builders, plan.rounds, plan.seconds)
        yield ratio_line(timings, Ratio(name, "one thread", "two threads", target), 2)


def _limited(count: int, plan: Plan, arrays: Arrays, causal: bool) -> Call:
    return with_threads(count, ours(plan, arrays, causal=causal))


def decoding(plan: Plan) -> Iterator[Line]:
    """Time decoding token by token at an early and at a late position, and exact attention of one token beside it."""
    early, late = (f"position {position:,}" for position in plan.positions)
    for window in (None, plan.window):
        builders = {f"position {position:,}": partial(decoder, plan, position, window) for position in plan.positions}
        timings = measure(builders, plan.rounds, plan.seconds)
        where = f"decoding H={plan.heads}" + ("" if window is None else f" window={window}")
        name = f"{where}: time per token, {late} / {early}"
        yield ratio_line(timings, Ratio(name, late, early, "<= 1.15", note=_per_sample(plan)), allowed_threads())
        scale = 1e6 / plan.tokens
        yield time_line(f"{where}: time per token at {late}", timings, late, allowed_threads(), scale, "µs")
    yield from _beside_exact(plan)


def _beside_exact(plan: Plan) -> Iterator[Line]:
    for keys in plan.caches:
        q, k, v = inputs(plan, keys)
        builders = {
            "torch exact": partial(peers.torch_exact, plan, (q[:, -1:], k, v), causal=False),
            "rfkernels": partial(decoder, plan, min(plan.positions), None),
        }
        name = f"decoding H={plan.heads} after {keys:,} keys: torch exact / rfkernels"
        ratio = Ratio(name, "torch exact", "rfkernels", factor=plan.tokens, note=f"of ours, {_per_sample(plan)}")
        yield ratio_line(measure(builders, plan.rounds, plan.seconds), ratio, allowed_threads())


def _per_sample(plan: Plan) -> str:
    return f"times are of {plan.tokens} tokens"


def decoder(plan: Plan, position: int, window: int | None) -> Call:
    """Return a call that decodes the plan's number of tokens from a position on, always from the same state."""
    features = draw("positive", plan.dim, plan.count, rng=0)
    start = empty_state(features, plan.dim, (plan.heads,), window=window)

    def step(arrays: Arrays, state: Any) -> Any:
        return attention(*arrays, features, causal=True, window=window, state=state, full=True, backend=plan.backend)

    before = step(inputs(plan, position), start).state
    q, k, v = inputs(plan, plan.tokens)
    tokens = [(q[:, [t]], k[:, [t]], v[:, [t]]) for t in range(plan.tokens)]

    def decode() -> Any:
        state = before
        for token in tokens:
            state = step(token, state).state
        return state

    return decode
