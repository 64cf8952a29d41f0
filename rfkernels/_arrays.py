"""Array namespaces and dtypes, found without importing what the user did not import."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

Record = TypeVar("Record", bound=type)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

FLOATS = ("float64", "float32", "float16", "bfloat16")


@cache
def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype; NumPy builds it anew at every request."""
    return str(dtype.name)


def is_jax(x: Any) -> bool:
    """Whether `x` is a JAX array or tracer."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(x, jax.Array)


_unnamed: list[type] = []


def record(kind: Record) -> Record:
    """Let exports of JAX hold named tuples of this kind."""
    _unnamed.append(kind)
    return kind


def name_records() -> None:
    """Tell JAX, if the user imported it, what records are called where exports are saved."""
    export = getattr(sys.modules.get("jax"), "export", None)
    while export is not None and _unnamed:
        kind = _unnamed.pop()
        export.register_namedtuple_serialization(kind, serialized_name=f"rfkernels.{kind.__name__}")


def namespace(*arrays: Any) -> Any:
    """Return jax.numpy if any array is JAX's, else numpy."""
    if any(is_jax(x) for x in arrays):
        return sys.modules["jax.numpy"]
    return np


def broadcasting(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let arrays of unequal rank broadcast within a function, as it documents, where JAX was told to refuse that."""

    @wraps(function)
    def broadcast(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        jax: Any = sys.modules.get("jax")
        if getattr(getattr(jax, "config", None), "jax_numpy_rank_promotion", "allow") == "allow":
            return function(*args, **kwargs)
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return broadcast


def accumulator(xp: Any, *arrays: Any) -> Any:
    """Return the dtype that sums are kept in: float64 if any array has it, and JAX may have it, else float32."""
    double = any(x.dtype == np.float64 for x in arrays if x is not None)
    if xp is not np:
        double = double and sys.modules["jax"].dtypes.canonicalize_dtype(np.float64) == np.float64
    return xp.float64 if double else xp.float32


def read_only(array: Any) -> Any:
    """Return a copy that nobody can write to, so that what is derived from it can be kept."""
    copy = np.array(array)
    copy.setflags(write=False)
    return copy


def is_frozen(array: Any) -> bool:
    """Whether an array is such a copy."""
    return isinstance(array, np.ndarray) and array.flags.owndata and not array.flags.writeable


def matmul(xp: Any, a: Any, b: Any) -> Any:
    """Multiply matrices at full precision: accelerators round float32 inputs by default, and these sit in exponents."""
    if xp is np:
        with np.errstate(invalid="ignore"):  # OpenBLAS may raise it for what lies behind short rows, which it drops
            return np.matmul(a, b)
    return xp.matmul(a, b, precision="highest")


def rows_at(xp: Any, x: Any, positions: Any) -> Any:
    """Return the rows at positions (*batch, count) of an array (*batch, length, width); batch axes broadcast."""
    batch = broadcast_shapes(x.shape[:-2], positions.shape[:-1])
    x = xp.broadcast_to(x, (*batch, *x.shape[-2:]))
    return xp.take_along_axis(x, xp.broadcast_to(positions, (*batch, positions.shape[-1]))[..., None], -2)


def unmasked(x: Any, mask: Any) -> Any:
    """Return keys or values with zeros where they are masked: what is there may be of any size, or not finite."""
    return x if x is None or mask is None else namespace(x).where(mask[..., None], x, x.dtype.type(0))


class Elementwise:
    """A namespace with the functions that activations may use and NumPy and jax.numpy lack: the error function."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, name)

    def erf(self, x: Any) -> Any:
        """Error function."""
        if hasattr(self._xp, "erf"):
            return self._xp.erf(x)
        if self._xp is not np:
            return sys.modules["jax"].lax.erf(x)
        from scipy.special import erf

        return erf(x)


@cache
def elementwise(xp: Any) -> Elementwise:
    """Return the namespace that activations are called with."""
    return Elementwise(xp)


def stopped(xp: Any, x: Any) -> Any:
    """Return `x` as a constant to derivatives: what a shift that cancels exactly may be, or a bound of rounding.

    A maximum must be: its derivative divides by how many numbers equal it, and these XLA may compute anew and round
    otherwise, so that none does.
    """
    return x if xp is np else sys.modules["jax"].lax.stop_gradient(x)


def root(xp: Any, x: Any) -> Any:
    """Return the square root, whose derivative at zero is taken to be zero."""
    return np.sqrt(x) if xp is np else xp.where(x == 0, 0, xp.sqrt(xp.where(x == 0, 1, x)))


@cache
def in_one(xp: Any, function: Any, *static: str) -> Any:
    """Return a function of ``xp`` and more, which JAX compiles as one, with arguments of the names `static` known."""
    return function if xp is np else sys.modules["jax"].jit(function, static_argnames=("xp", *static))


def over_rows(xp: Any, step: Any, carry: Any, rows: tuple[Any, ...], size: int) -> tuple[Any, tuple[Any, ...]]:
    """Apply ``step(carry, start, parts)``, which returns a carry and results, to `size` rows at a time.

    Rows and results are arrays (*batch, rows, n), or None. In JAX it is a scan, whose program does not grow with the
    number of rows: it fills up the last part with zeros, and derivatives compute each part anew.
    """
    length = next(x.shape[-2] for x in rows if x is not None)
    if xp is np or length <= size:
        found = []
        for start in range(0, max(length, 1), size):
            parts = (None if x is None else x[..., start : start + size, :] for x in rows)
            carry, results = step(carry, start, tuple(parts))
            found.append(results)
        return carry, tuple(xp.concatenate(x, -2) for x in zip(*found, strict=True))
    jax, count = sys.modules["jax"], -(-length // size)

    def cut(x: Any) -> Any:
        x = xp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, count * size - length), (0, 0)])
        return xp.moveaxis(x.reshape(*x.shape[:-2], count, size, x.shape[-1]), -3, 0)

    def joined(x: Any) -> Any:
        x = xp.moveaxis(x, 0, -3)
        return x.reshape(*x.shape[:-3], count * size, x.shape[-1])[..., :length, :]

    def body(carry: Any, given: Any) -> Any:
        return step(carry, *given)

    given = size * xp.arange(count), tuple(None if x is None else cut(x) for x in rows)
    carry, found = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), carry, given)
    return carry, tuple(map(joined, found))


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that all broadcast to; in exports of JAX sizes may be symbols, of which NumPy knows nothing."""
    if all(isinstance(n, int | np.integer) for shape in shapes for n in shape):
        return np.broadcast_shapes(*shapes)
    found: tuple[int, ...] = sys.modules["jax"].numpy.broadcast_shapes(*shapes)
    return found


def differing(xp: Any, x: Any, tail: int, *sources: tuple[Any, int]) -> Any:
    """Return `x`, which in JAX differs from device to device wherever one of the sources does.

    Of each a number says how many axes follow its batch axes. JAX tracks that inside `jax.shard_map` and on meshes with
    explicit axes, and refuses a loop that adds what differs to what does not. An empty sum over what differs is a zero
    that differs.
    """
    if xp is np:
        return x
    batch = x.shape[: x.ndim - tail]
    for source, own in sources:
        zero = xp.sum(source[..., None][..., :0], tuple(range(-own - 1, 0)))
        zero = pooled_sum(xp, zero, batch).astype(x.dtype)
        x = x + zero.reshape(*zero.shape, *(1,) * tail)
    return x


def is_placed(*arrays: Any) -> bool:
    """Whether shapes of arrays of JAX say more than numbers: they hold symbols, or lie on explicit axes of a mesh."""
    typeof = sys.modules["jax"].typeof
    symbolic = any(not isinstance(n, int | np.integer) for x in arrays for n in x.shape)
    return symbolic or any(axis is not None for x in arrays for axis in typeof(x).sharding.spec)


def pooled_sum(xp: Any, x: Any, shape: tuple[int, ...]) -> Any:
    """Sum over axes that an array of this shape lacks or has of size 1: those of query heads that share keys."""
    x = xp.sum(x, tuple(range(x.ndim - len(shape)))) if x.ndim > len(shape) else x
    axes = tuple(i - x.ndim for i in range(x.ndim) if shape[i - x.ndim] == 1 and x.shape[i] != 1)
    return xp.sum(x, axes, keepdims=True) if axes else x
