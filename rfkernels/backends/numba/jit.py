"""Compile LLVM modules to function addresses, for the host or a narrower machine of its kind."""

from __future__ import annotations

import math
import os
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import llvmlite.binding as llvm
from llvmlite import ir
from llvmlite.binding import ffi
from numba.core.compiler_lock import global_compiler_lock

from rfkernels._forks import wait_for
from rfkernels.backends.numba import objects


@dataclass(frozen=True, eq=False)
class Code:
    """Compiled functions: their addresses by name, good for as long as this object lives.

    Parameters
    ----------
    addresses : dict of str to int
        Where each function begins.
    engine : llvmlite.binding.ExecutionEngine
        What owns the code.
    """

    addresses: dict[str, int]
    engine: Any


class Machine(NamedTuple):
    """What is compiled for.

    Parameters
    ----------
    width : int
        Bytes in a vector register.
    rows, vectors : int
        The register tile that sizes are padded to: `rows` times `vectors` accumulators.
    tall : int
        Rows of the register tiles of matrix products, where there are so many: all registers are in use.
    """

    width: int
    rows: int
    tall: int
    vectors: int = 2

    @property
    def rows_at_once(self) -> int:
        """The fewest rows that are whole register tiles of either height: what schedules multiply at once."""
        return math.lcm(self.rows, self.tall)

    def lanes(self, bits: int) -> int:
        """Elements of `bits` bits in a vector."""
        return self.width * 8 // bits

    def step(self, bits: int) -> int:
        """What sizes are padded to: whole register tiles, either way round."""
        return math.lcm(self.rows, self.vectors * self.lanes(bits))


P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.RLock()
wait_for(_lock, global_compiler_lock, ffi.lib._lock)


def compiled_once(make: Callable[P, R]) -> Callable[P, R]:
    """Keep what a function that compiles returns, for good: threads that ask at once get the same.

    Of results that `functools.cache` would let each of them have, all but one are freed, whose addresses may be known.
    """
    known: dict[Any, R] = {}

    @wraps(make)
    def found(*args: P.args, **kwargs: P.kwargs) -> R:
        key = args, tuple(kwargs.items())
        if key not in known:
            with _lock:
                if key not in known:
                    known[key] = make(*args, **kwargs)
        return known[key]

    return found


_TILES = {64: (8, 8), 32: (4, 6), 16: (4, 4)}
"""Rows of a register tile and of a tall one: AVX2 has registers for twelve sums, and keeps busy with ten or more."""

_LEFT_OUT = {64: (), 32: ("avx512",), 16: ("avx", "fma", "f16c", "vaes", "vpclmul", "gfni", "xop")}


@cache
def _initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@cache
def host_width() -> int:
    """Return the widest vector in bytes that the host computes with."""
    features = llvm.get_host_cpu_features()
    if all(features.get(name) for name in ("avx512f", "avx512dq", "avx512bw", "avx512vl")):
        return 64
    return 32 if features.get("avx2") and features.get("fma") else 16


def machine() -> Machine:
    """Return what to compile for: the host, or narrower if the variable RFKERNELS_VECTOR_BYTES says so."""
    return _machine(os.environ.get("RFKERNELS_VECTOR_BYTES"))


@cache
def _machine(given: str | None) -> Machine:
    host = host_width()
    width = str(host) if given is None else given
    if width not in {str(known) for known in _TILES if known <= host}:
        raise ValueError(f"RFKERNELS_VECTOR_BYTES must be 16, 32 or 64 and at most this host's {host}, got {given!r}")
    return Machine(int(width), *((8, 8) if platform.machine() in ("aarch64", "arm64") else _TILES[int(width)]))


def _target(width: int) -> tuple[Any, str]:
    """Return a new target machine, which its engine comes to own, and the processor and features it stands for."""
    _initialize()
    features = llvm.get_host_cpu_features()
    if width < host_width():
        for name in features:
            if name.startswith(_LEFT_OUT[width]):
                features[name] = False
    flags = features.flatten()
    cpu = llvm.get_host_cpu_name()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=cpu, features=flags, opt=3), f"{cpu}|{flags}"


def compile_module(module: ir.Module, width: int, keep: bool = False) -> Code:
    """Compile a module and return its functions.

    Parameters
    ----------
    module : llvmlite.ir.Module
        What to compile.
    width : int
        Bytes in a vector register.
    keep : bool, default False
        Whether object code is kept on disk for later processes, under a key made of the module's whole text, the
        target and LLVM's version.
    """
    machine, flags = _target(width)
    module.triple = llvm.get_default_triple()
    module.data_layout = str(machine.target_data)
    text = str(module)
    stored = objects.Stored("|".join((text, flags, str(llvm.llvm_version_info)))) if keep else None
    parsed = llvm.parse_assembly(text)
    names = [function.name for function in parsed.functions if not function.is_declaration]
    if stored is None or stored.code is None:
        parsed.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization = False
        options.slp_vectorization = False
        passes = llvm.create_pass_builder(machine, options)
        passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    if stored is not None:
        engine.set_object_cache(lambda _, code: stored.save(code), lambda _: stored.code)
    engine.finalize_object()
    return Code({name: engine.get_function_address(name) for name in names}, engine)
