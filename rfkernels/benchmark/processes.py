"""What is measured from outside: memory, the time of the import and of the first call in a new process."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from rfkernels.benchmark.children import footprint, run_child
from rfkernels.benchmark.line import Line, missing_line, show_threads, time_line
from rfkernels.benchmark.plan import Plan, allowed_threads, require_memory
from rfkernels.benchmark.timing import Timings, Unavailable, interleave, timed

_PROCESSES = 5

_FIRST_CALL = """
import time
start = time.perf_counter()
import json, sys
import numpy as np
import rfkernels as rfk
case = json.loads(sys.argv[1])
q, k, v = np.random.default_rng(0).standard_normal((3, case["heads"], 128, case["dim"]), dtype=np.float32)
features = rfk.draw("positive", dim=case["dim"], count=case["count"], rng=0)
rfk.attention(q, k, v, features, causal=case["causal"], backend=case["backend"])
print(time.perf_counter() - start)
"""


def memory(plan: Plan) -> Iterator[Line]:
    """Measure the peak of memory beyond inputs and output, each in a new process."""
    cases: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("bidirectional", {}),
        ("causal", {"causal": True}),
        (f"bidirectional window={plan.window}", {"window": plan.window}),
        (f"causal window={plan.window}", {"causal": True, "window": plan.window}),
    )
    for what, options in cases:
        for length in plan.memory:
            yield _memory_line(plan, f"{what} H={plan.heads} L={length:,}", length, options)


def _memory_line(plan: Plan, where: str, length: int, options: Mapping[str, Any]) -> Line:
    name, target = f"{where}: memory beyond inputs and output", "<= 32"
    try:
        require_memory(plan, length, plan.heads)
        beyond = footprint(plan, length, options)
    except Unavailable as error:
        return missing_line(name, "MB", target, str(error))
    array = 4e-6 * plan.heads * length * plan.dim
    detail = f"one input is {array:.3g} MB; after a call on 256 positions; {show_threads(allowed_threads())}"
    return Line(name, beyond / 1e6, "MB", target, detail)


def import_time(plan: Plan) -> Iterator[Line]:
    """Measure how much longer a process takes that imports the library than one that does nothing."""
    del plan
    codes = {"bare": "pass", "NumPy": "import numpy", "import": "import rfkernels"}
    with tempfile.TemporaryDirectory() as place:
        run = partial(run_child, changes=_bytecode(place))
        samplers = {name: timed(partial(run, code), 0) for name, code in codes.items()}
        timings = Timings(interleave(samplers, _PROCESSES))
    differences = [a - b for a, b in zip(timings.samples["import"], timings.samples["bare"], strict=True)]
    detail = (
        f"a process that imports it {timings.median('import'):.3g} s, a bare one {timings.median('bare'):.3g} s, "
        f"one that imports NumPy {timings.median('NumPy'):.3g} s; "
        f"rounds {min(differences):.3g} to {max(differences):.3g} s"
    )
    yield Line("import rfkernels", statistics.median(differences), "s", "< 0.25", detail)


def _bytecode(place: str) -> dict[str, str]:
    """Return what lets processes keep bytecode at a place, as pip leaves it beside what it installs."""
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": place}


def first_call(plan: Plan) -> Iterator[Line]:
    """Measure import, draw and first result in a new process, with a warm and with an empty cache of compiled code."""
    if not plan.first_call:
        return
    for direction, causal in (("bidirectional", False), ("causal", True)):
        case = json.dumps(
            {"heads": plan.heads, "dim": plan.dim, "count": plan.count, "causal": causal, "backend": plan.backend}
        )
        with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as place:
            bytecode = _bytecode(place)
            run_child(_FIRST_CALL, case, changes=bytecode)
            samples = interleave({"first": partial(_first_call, case, bytecode)}, _PROCESSES)
            seconds = _first_call(case, bytecode | {"NUMBA_CACHE_DIR": empty, "XDG_CACHE_HOME": empty})
        name = f"first call in a new process, warm cache, {direction}"
        yield time_line(name, Timings(samples), "first", allowed_threads(), 1.0, "s", "< 1.5")
        name = f"first call in a new process, empty cache, {direction}"
        yield Line(name, seconds, "s", "", "import, compilation and result; one sample")


def _first_call(case: str, changes: Mapping[str, str]) -> float:
    return float(run_child(_FIRST_CALL, case, changes=changes).split()[-1])
