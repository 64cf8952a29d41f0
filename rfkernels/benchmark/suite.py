"""The whole benchmark: every measurement in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rfkernels.benchmark import plan as plans
from rfkernels.benchmark import processes, products, scaling, speed
from rfkernels.benchmark.line import Line, missing_line
from rfkernels.benchmark.plan import Plan
from rfkernels.benchmark.timing import reason

Measurement = Callable[[Plan], Iterator[Line]]

MEASUREMENTS: dict[str, Measurement] = {
    "bidirectional attention": speed.bidirectional,
    "rate of matrix multiplication": products.fraction,
    "causal attention": speed.causal,
    "exact attention": speed.crossover,
    "feature maps": speed.maps,
    "window": speed.window,
    "features themselves": speed.features,
    "time per token": scaling.length,
    "memory": processes.memory,
    "threads": scaling.threads,
    "decoding": scaling.decoding,
    "import": processes.import_time,
    "first call": processes.first_call,
    "dtypes": speed.dtypes,
}


def run(quick: bool = False, report: Callable[[Line], None] | None = None) -> list[Line]:
    """Measure speed and memory on this machine.

    The library and its peers use all the cores that the process may run on, or RFKERNELS_NUM_THREADS of them if that is
    set (JAX, which has no such setting, then still uses all).

    Parameters
    ----------
    quick : bool, default False
        Use small sizes and leave out what needs many processes: under a minute instead of five.
    report : callable, optional
        Called with each line as soon as it is measured.

    Returns
    -------
    list of Line
        In the order measured. What could not be measured has the value NaN and the reason as its detail.
    """
    plan = plans.QUICK if quick else plans.FULL
    lines: list[Line] = []
    with plans.thread_count(plans.allowed_threads()):
        for name, measurement in MEASUREMENTS.items():
            for line in _lines(name, measurement, plan):
                lines.append(line)
                if report is not None:
                    report(line)
    return lines


def _lines(name: str, measurement: Measurement, plan: Plan) -> Iterator[Line]:
    try:
        yield from measurement(plan)
    except Exception as error:  # noqa: BLE001 - one failure must not cost the other measurements
        yield missing_line(name, "", "", reason(error))
