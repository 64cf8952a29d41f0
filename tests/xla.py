"""XLA told to compile in a quarter of the time, which is most of the time of tests on JAX.

`conftest.py` tells it so unless everything runs (`--long`). Neither fusion nor LLVM's optimisations then show, so that tests of
what XLA makes of the library, with its rounding and its errors, compile by `jit` as users do.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
DEFAULT = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


def be_quick() -> None:
    """Set XLA_FLAGS of this process, whose JAX must not have run, and of those it starts, if this jaxlib knows them."""
    if importlib.util.find_spec("jax") is None or QUICK in os.environ.get("XLA_FLAGS", ""):
        return
    flags = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    code = "import jax; jax.devices()"  # a process ends if it does not know a flag
    if subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False).returncode == 0:
        os.environ["XLA_FLAGS"] = flags


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` of an outermost function as XLA compiles by default."""
    import jax

    quick = QUICK in os.environ.get("XLA_FLAGS", "")
    return jax.jit(function, compiler_options=DEFAULT if quick else None, **options)


def default() -> dict[str, str]:
    """An environment for a process that compiles by default, and finds the library and the tests that are found here."""
    flags = os.environ.get("XLA_FLAGS", "").replace(QUICK, "").strip()  # XLA takes a blank for the name of a file
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "XLA_FLAGS": flags}
