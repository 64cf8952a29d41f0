"""The machine's best rate of matrix multiplication, ours as a fraction of it, and what no pass can exceed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

from rfkernels.benchmark import peers
from rfkernels.benchmark.children import ProductWorker
from rfkernels.benchmark.line import Line, Ratio, ratio_line, show_threads
from rfkernels.benchmark.plan import Plan, allowed_threads, inputs, ours
from rfkernels.benchmark.timing import Call, Sampler, Timings, interleave, prepare, reason, timed

_OURS, _PERFORMER, _PLAIN, _CAUSAL = "rfkernels", "performer-pytorch", "jax.jit", ", causal"
_ALONE = "matrix multiplications alone"
_BOUND = "what no pass can exceed that multiplies the same matrices"
_FINALISTS = 3
_SCREENING_ROUNDS = 2


class Rival(NamedTuple):
    """A way to multiply matrices: how many operations one sample takes, and the sampler."""

    operations: float
    sampler: Sampler


def fraction(plan: Plan) -> Iterator[Line]:
    """Compare the rate of bidirectional attention with the best matrix multiplication of the same minutes.

    Peers are compared with what the products of a pass would take at that rate, if it did nothing else.
    """
    operations = attention_operations(plan)
    mine = timed(ours(plan, inputs(plan, plan.length)), plan.seconds)
    with rivals(plan) as (found, left_out):
        screened = interleave({name: rival.sampler for name, rival in found.items()}, _SCREENING_ROUNDS)
        rates = {name: rival.operations / min(screened[name]) for name, rival in found.items()}
        finalists = sorted(rates, key=rates.__getitem__, reverse=True)[:_FINALISTS]
        samples = interleave({_OURS: mine, **{name: found[name].sampler for name in finalists}}, plan.rounds)
        rates |= {name: found[name].operations / statistics.median(samples[name]) for name in finalists}
        best = max(finalists, key=rates.__getitem__)
        cases, missing = prepare(_turns(plan), plan.seconds)
        timings = Timings(interleave({**cases, best: found[best].sampler}, plan.slow_rounds), missing)
    scale = operations / found[best].operations
    quotients = [scale * other / own for own, other in zip(samples[_OURS], samples[best], strict=True)]
    name = f"rate of bidirectional L={plan.length:,} / best matrix multiply"
    detail = _detail(operations / statistics.median(samples[_OURS]), quotients, rates, left_out)
    yield Line(name, statistics.median(quotients), "x", ">= 0.70", detail)
    yield from _bounds(plan, timings, best, scale)


def _turns(plan: Plan) -> dict[str, Callable[[], Call]]:
    arrays, short = inputs(plan, plan.length), inputs(plan, plan.slow_length)
    return {
        _OURS: lambda: ours(plan, arrays),
        _PERFORMER: lambda: peers.performer(plan, arrays, causal=False),
        _PLAIN: lambda: peers.jax_plain(plan, arrays),
        _OURS + _CAUSAL: lambda: ours(plan, short, causal=True),
        _PERFORMER + _CAUSAL: lambda: peers.performer(plan, short, causal=True),
    }


def _bounds(plan: Plan, timings: Timings, best: str, scale: float) -> Iterator[Line]:
    """Say how many times longer peers take than the products of a pass at the best rate: `scale` of those of `best`."""
    for case, mine, length in (
        (_PERFORMER, _OURS, plan.length),
        (_PLAIN, _OURS, plan.length),
        (_PERFORMER + _CAUSAL, _OURS + _CAUSAL, plan.slow_length),
    ):
        alone = [scale * length / plan.length * seconds for seconds in timings.samples[best]]
        own = Timings({**timings.samples, _ALONE: alone}, timings.missing)
        reached = "" if {case, mine} & own.missing.keys() else f"{mine} {own.ratio(case, mine):.3g} in these rounds; "
        ratio = Ratio(f"L={length:,}: {case} / {_ALONE}", case, _ALONE, note=reached + _BOUND)
        yield ratio_line(own, ratio, allowed_threads())


def _detail(rate: float, quotients: list[float], rates: Mapping[str, float], left_out: Mapping[str, str]) -> str:
    ordered = sorted(rates, key=rates.__getitem__, reverse=True)
    parts = [
        f"{_OURS} {rate / 1e9:.0f} GFLOP/s",
        f"rounds {min(quotients):.3g} to {max(quotients):.3g}",
        show_threads(allowed_threads()),
        "matrix multiply " + ", ".join(f"{name} {rates[name] / 1e9:.0f}" for name in ordered),
        *(f"without {name} ({why})" for name, why in left_out.items()),
    ]
    return "; ".join(parts)


def attention_operations(plan: Plan) -> float:
    """Floating-point operations of two projections and two contractions: 8 L H d m."""
    return 8.0 * plan.length * plan.heads * plan.dim * plan.count


@contextmanager
def rivals(plan: Plan) -> Iterator[tuple[dict[str, Rival], dict[str, str]]]:
    """Start everything that multiplies matrices: what was found, warmed up, and what was left out and why."""
    found: dict[str, Rival] = {}
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        for name, order, build in _candidates(plan, stack):
            try:
                found[f"{name} {order}"] = Rival(2.0 * order**3, build())
            except Exception as error:  # noqa: BLE001 - whatever a rival fails of, the others are compared with
                left_out[name] = reason(error)
        yield found, left_out


def _candidates(plan: Plan, stack: ExitStack) -> Iterator[tuple[str, int, Callable[[], Sampler]]]:
    for core_type in ("", *plan.core_types):
        worker = ProductWorker(core_type, allowed_threads())
        stack.callback(worker.close)
        name = f"NumPy as {core_type}" if core_type else "NumPy"
        for order in plan.products:
            yield name, order, partial(_warm, partial(worker.seconds, order))
    for order in plan.products:
        yield "jax.jit", order, partial(_jax, order)


def _warm(sampler: Sampler) -> Sampler:
    sampler()
    return sampler


def _jax(order: int) -> Sampler:
    return timed(peers.jax_product(order), 0)
