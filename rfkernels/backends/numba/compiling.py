"""How Python functions are compiled by Numba, kept on disk, and call what LLVM compiled elsewhere.

Numba's cache goes by a function's name and by its own file, and would not notice a change of what it calls into. So
names on disk hold a checksum of all files in this folder, whichever of them a function is made of, and of those that
specify catalogs, whose constants are compiled in.
"""

from __future__ import annotations

import hashlib
import pickle
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import njit, types
from numba.core import caching, cgutils, serialize
from numba.extending import intrinsic

from rfkernels.backends.numba import objects

_FOLDERS = Path(__file__).parent, Path(__file__).parents[2] / "catalog"


class _Files:
    """What Numba keeps of a function, with a file for each signature and target.

    Numba has an index of the files of a function, which two processes can write at once: code of one signature is then
    found for another. It takes files that are not whole for whole, too.
    """

    def __init__(self, start: str, told: tuple[Any, ...]) -> None:
        self._start, self._told = start, told

    def _name(self, key: tuple[Any, ...]) -> str:
        digest = hashlib.sha256(repr((self._told, key)).encode()).hexdigest()
        return f"{self._start}.{digest[:32]}.nbc"

    def load(self, key: tuple[Any, ...]) -> Any:
        found = objects.read(self._name(key))
        return None if found is None else pickle.loads(found)

    def save(self, key: tuple[Any, ...], data: Any) -> None:
        objects.write(self._name(key), serialize.dumps(data))  # type: ignore[no-untyped-call]


class _Text(caching._CacheLocator):
    """What Numba asks of the text of a function. Where code is kept `objects` decides: Numba wants to write there."""

    def __init__(self, function: Callable[..., Any], path: str) -> None:
        self._py_file, self._line = path, function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, function: Callable[..., Any], path: str) -> _Text | None:
        return cls(function, path) if Path(path).is_file() else None

    def ensure_cache_path(self) -> None:
        pass

    def get_cache_path(self) -> str:
        return str(objects.directory())

    def get_source_stamp(self) -> bytes:
        return hashlib.sha256(Path(self._py_file).read_bytes()).digest()

    def get_disambiguator(self) -> str:
        return str(self._line)


class _Results(caching.CompileResultCacheImpl):
    _locator_classes: Any = (_Text,)


class _Cache(caching.FunctionCache):
    """Numba's cache of a function that makes do without files where these cannot be read or written."""

    _impl_class = _Results

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        told = numba.__version__, self._impl.locator.get_source_stamp()
        self._cache_file: Any = _Files(self._impl.filename_base, told)

    def _guard_against_spurious_io_errors(self) -> Any:
        return suppress(OSError)


Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def checksum(*folders: Path) -> str:
    """Return a checksum of the Python files of folders."""
    found = 0
    for path in sorted(path for folder in folders for path in folder.glob("*.py")):
        found = zlib.crc32(path.read_bytes(), found)
    return f"{found:08x}"


def jit_with(*fastmath: str, entry: bool = False, allocates: bool = False) -> Callable[[Function], Function]:
    """Return what compiles a function with some of LLVM's fast-math flags, kept on disk where that is possible.

    Only an `entry` may be called by Python: code that takes arguments out of Python's objects has to be compiled, too.
    Only functions that allocate arrays count references to those they are given.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": set(fastmath) or False}
    options |= {"no_cpython_wrapper": not entry, "no_cfunc_wrapper": True, "_nrt": allocates}

    def compiled(function: Function) -> Function:
        name = function.__qualname__
        function.__qualname__ = f"{name}_{checksum(*_FOLDERS)}"
        made: Any = njit(**options)(function)
        if made is function:
            return cast(Function, _not_compiled)
        with suppress(RuntimeError):  # its text is in no file: compile in every process
            made._cache = _Cache(function)
        _compile_once(made)
        if not entry:
            _refuse_python(made, name)
        return cast(Function, made)

    return compiled


def _not_compiled(*arguments: Any, **keywords: Any) -> None:
    """Stand for a function that Numba leaves as it is: it calls what no interpreter can."""
    raise RuntimeError(
        "the numba backend runs compiled code only, which NUMBA_DISABLE_JIT forbids: unset it, or pass backend='numpy'"
    )


def _compile_once(made: Any) -> None:
    """See to it that calls with a 0 or 1 in their text are calls with a number: Numba would compile one for each."""
    template: Any = made.get_call_template
    plain: Any = types.unliteral

    def get_call_template(given: Any, named: Any) -> Any:
        return template(tuple(map(plain, given)), {name: plain(x) for name, x in named.items()})

    made.get_call_template = get_call_template


def _refuse_python(made: Any, name: str) -> None:
    """See to it that a call by Python is an error: Numba would jump to nowhere."""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise TypeError(f"{name}() can only be called by compiled functions: it is no entry")

    made._insert, made._compile_for_args = (lambda *_, **__: None), refuse


jit, entry = jit_with(), jit_with(entry=True)


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
