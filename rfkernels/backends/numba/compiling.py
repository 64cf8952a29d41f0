"""How Python functions are compiled by Numba, kept on disk, and call what LLVM compiled elsewhere.

Numba's cache goes by a function's name and by its own file, and would not notice a change of what it calls into. So
names on disk hold a checksum of all files in this folder, whichever of them a function is made of.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def checksum(folder: Path) -> str:
    """Return a checksum of the Python files of a folder."""
    found = 0
    for path in sorted(folder.glob("*.py")):
        found = zlib.crc32(path.read_bytes(), found)
    return f"{found:08x}"


def jit_with(*fastmath: str) -> Callable[[Function], Function]:
    """Return what compiles a function with some of LLVM's fast-math flags, kept on disk where that is possible."""
    options: dict[str, Any] = {"nogil": True, "fastmath": set(fastmath) or False}

    def compiled(function: Function) -> Function:
        name = function.__qualname__
        function.__qualname__ = f"{name}_{checksum(Path(__file__).parent)}"
        try:
            return cast(Function, njit(cache=True, **options)(function))
        except RuntimeError:  # no directory can be written to: compile in every process
            return cast(Function, njit(**options)(function))

    return compiled


jit = jit_with()


def _call(context: Any, address: Any, arguments: Any) -> Any:
    signature = types.int64(address, arguments)

    def code(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        given = cgutils.unpack_tuple(builder, values[1])  # type: ignore[no-untyped-call]
        kinds = (
            signature.args[1].types if hasattr(signature.args[1], "types") else [signature.args[1].dtype] * len(given)
        )
        cast = [target.cast(builder, x, kind, types.int64) for x, kind in zip(given, kinds, strict=True)]
        integer = ir.IntType(64)
        function = ir.FunctionType(integer, [integer] * len(cast))
        return builder.call(builder.inttoptr(values[0], function.as_pointer()), cast)

    return signature, code


call = cast(Callable[[int, tuple[int, ...]], int], intrinsic(_call))
"""``call(address, arguments)`` calls the function at an address with a tuple of 64-bit integers."""


@jit
def up(n: int, step: int) -> int:
    """Return the smallest multiple of a step that is not below n."""
    return (n + step - 1) // step * step
