"""The functions that the numba backend emits as vector LLVM IR, against double-length NumPy references."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

llvm = pytest.importorskip("llvmlite.binding")

from llvmlite import ir  # noqa: E402

from rfkernels.activations import FUNCTIONS, Constant, Program, trace  # noqa: E402
from rfkernels.backends.numba.lowering import emit  # noqa: E402
from rfkernels.backends.numba.vectormath import VectorMath  # noqa: E402

Array = Any
Body = Callable[[VectorMath, ir.Value, ir.Value], ir.Value]

SHAPES = [(32, 4), (32, 8), (32, 16), (64, 2), (64, 4), (64, 8)]
DTYPES: dict[int, Any] = {32: np.float32, 64: np.float64}
I64 = ir.IntType(64)


def target_machine() -> Any:
    """The machine of this process, with all its features; a new one each time, as an engine takes and frees its own."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )


def build_module(body: Body, bits: int, lanes: int) -> Any:
    """Compile ``void f(i64 u, i64 a, i64 out, i64 count)``, which applies `body` to `count` whole vectors."""
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 4), "f")
    u, a, out, count = function.args
    entry, loop, done = (function.append_basic_block(name) for name in ("entry", "loop", "done"))
    ir.IRBuilder(entry).branch(loop)
    builder = ir.IRBuilder(loop)
    math = VectorMath(builder, bits, lanes)
    index = builder.phi(I64)
    offset = builder.mul(index, ir.Constant(I64, lanes * bits // 8))
    pointers = [builder.inttoptr(builder.add(p, offset), math.vector.as_pointer()) for p in (u, a, out)]
    inputs = [builder.load(p, align=bits // 8) for p in pointers[:2]]
    builder.store(body(math, *inputs), pointers[2], align=bits // 8)
    following = builder.add(index, ir.Constant(I64, 1))
    index.add_incoming(ir.Constant(I64, 0), entry)
    index.add_incoming(following, loop)
    builder.cbranch(builder.icmp_unsigned("<", following, count), loop, done)
    ir.IRBuilder(done).ret_void()
    compiled = llvm.parse_assembly(str(module))
    compiled.verify()
    passes = llvm.create_pass_builder(target_machine(), llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(compiled, passes)
    return compiled


def compile_body(body: Body, bits: int, lanes: int) -> Callable[..., Array]:
    """A function of one or two arrays of the element type that applies `body`."""
    engine = llvm.create_mcjit_compiler(build_module(body, bits, lanes), target_machine())
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(engine.get_function_address("f"))

    def apply(u: Array, a: Array | None = None) -> Array:
        count = -(-u.size // lanes)
        padded = [np.ones(count * lanes, DTYPES[bits]) for _ in range(3)]
        padded[0][: u.size] = u
        padded[1][: u.size] = u if a is None else a
        function(*(x.ctypes.data for x in padded), count)
        return padded[2][: u.size]

    apply.engine = engine  # type: ignore[attr-defined]
    return apply


def compile_program(program: Program, bits: int, lanes: int) -> Callable[..., Array]:
    """A function of `u` and `a` that runs a traced program."""
    return compile_body(lambda math, u, a: emit(program, math, u, a), bits, lanes)


@cache
def unary(name: str, bits: int, lanes: int) -> Callable[..., Array]:
    """One function of `VectorMath`, compiled."""
    return compile_body(lambda math, u, a: getattr(math, name)(u), bits, lanes)


def points(low: float, high: float, bits: int) -> Array:
    """Even, random and, around zero, logarithmic points of an interval."""
    rng = np.random.default_rng(0)
    near = np.concatenate([np.logspace(-30, 0, 3000), -np.logspace(-30, 0, 3000), [0.0, -0.0, low, high]])
    x = np.concatenate([np.linspace(low, high, 20000), rng.uniform(low, high, 20000), rng.uniform(-2, 2, 20000), near])
    x = x.astype(DTYPES[bits])
    return x[(x >= low) & (x <= high)]


def long_erf(x: Array) -> Array:
    """2/√π exp(−x²) Σ 2ⁿ x²ⁿ⁺¹ / (2n + 1)!!, all of one sign, in the precision of x; 1 beyond 8."""
    size = np.minimum(np.abs(x), 8)
    term = total = size
    for n in range(1, 300):
        term = term * 2 * size**2 / (2 * n + 1)
        total = total + term
    return np.sign(x) * np.where(size < 8, 2 * np.exp(-(size**2)) * total / np.sqrt(np.arccos(-np.ones_like(x))), 1)


def reference(name: str, x: Array) -> Array:
    """NumPy's function in the longest precision it has."""
    if name == "erf":
        return long_erf(x.astype(np.longdouble))
    with np.errstate(all="ignore"):
        return getattr(np, name)(x.astype(np.longdouble))


def relative_error(got: Array, want: Array) -> float:
    """The largest relative error, where both zero counts as none."""
    error = np.abs(got - want) / np.where(want == 0, 1, np.abs(want))
    return float(error.max())


# name: interval and bound for float32, then for float64
RELATIVE: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "erf": ((-12, 12, 1e-7), (-12, 12, 2.5e-16)),
    "exp": ((-87, 88.7, 1.5e-7), (-700, 709.7, 4e-16)),
    "expm1": ((-100, 88.7, 5e-7), (-100, 709.7, 2e-15)),
    "log": ((1.2e-38, 3e38, 2e-7), (2.3e-308, 1e308, 4e-16)),
    "log1p": ((-0.9999, 1e30, 5e-7), (-0.9999, 1e300, 2e-15)),
    "tanh": ((-20, 20, 5e-7), (-30, 30, 2e-15)),
    "sqrt": ((0, 1e30, 1e-7), (0, 1e300, 2e-16)),
    "square": ((-1e15, 1e15, 1e-7), (-1e15, 1e15, 2e-16)),
}
ABSOLUTE = {"sin": ((1e4, 2e-7), (1e6, 1e-15)), "cos": ((1e4, 2e-7), (1e6, 1e-15))}


@pytest.mark.parametrize(("bits", "lanes"), SHAPES)
@pytest.mark.parametrize("name", RELATIVE)
def test_relative_accuracy(name: str, bits: int, lanes: int) -> None:
    low, high, bound = RELATIVE[name][bits == 64]
    x = points(low, high, bits)
    if name in {"log", "log1p"}:
        scales = np.geomspace(1.2e-38, 1e38, 20000).astype(DTYPES[bits])
        x = np.concatenate([x, scales[scales >= low]])
    if name == "square":
        x = x[np.abs(x) > 1e-15]
    want = reference(name, x)
    got = unary(name, bits, lanes)(x)
    assert relative_error(got, want) <= bound


@pytest.mark.parametrize(("bits", "lanes"), SHAPES)
@pytest.mark.parametrize("name", ABSOLUTE)
def test_absolute_accuracy(name: str, bits: int, lanes: int) -> None:
    limit, bound = ABSOLUTE[name][bits == 64]
    multiples = np.arange(-3000, 3000) * (np.pi / 2)
    x = np.concatenate([points(-limit, limit, bits), points(-10, 10, bits), multiples.astype(DTYPES[bits])])
    got = unary(name, bits, lanes)(x)
    assert np.abs(got - reference(name, x)).max() <= bound
    assert np.abs(got).max() <= 1


@pytest.mark.parametrize(("bits", "lanes"), SHAPES)
@pytest.mark.parametrize("name", ABSOLUTE)
def test_large_arguments_stay_bounded(name: str, bits: int, lanes: int) -> None:
    x = np.geomspace(1e4, 3e38, 5000).astype(DTYPES[bits])
    got = unary(name, bits, lanes)(np.concatenate([x, -x]))
    assert np.isfinite(got).all()
    assert np.abs(got).max() <= 1


EDGES: dict[str, list[tuple[float, float]]] = {
    "abs": [(-0.0, 0.0), (-np.inf, np.inf), (-2.5, 2.5)],
    "cos": [(0.0, 1.0), (np.inf, np.nan), (-np.inf, np.nan), (np.nan, np.nan)],
    "erf": [(0.0, 0.0), (6.0, 1.0), (-6.0, -1.0), (1e30, 1.0), (-np.inf, -1.0), (np.inf, 1.0), (np.nan, np.nan)],
    "exp": [(0.0, 1.0), (-0.0, 1.0), (-1e30, 0.0), (-np.inf, 0.0), (np.inf, np.inf), (1e30, np.inf), (np.nan, np.nan)],
    "expm1": [(0.0, 0.0), (-1e30, -1.0), (-np.inf, -1.0), (np.inf, np.inf), (1e30, np.inf), (np.nan, np.nan)],
    "log": [(1.0, 0.0), (0.0, -np.inf), (-0.0, -np.inf), (np.inf, np.inf), (-1.0, np.nan), (-np.inf, np.nan)],
    "log1p": [(0.0, 0.0), (-1.0, -np.inf), (np.inf, np.inf), (-2.0, np.nan), (-np.inf, np.nan), (np.nan, np.nan)],
    "sin": [(0.0, 0.0), (-0.0, 0.0), (np.inf, np.nan), (-np.inf, np.nan), (np.nan, np.nan)],
    "sqrt": [(0.0, 0.0), (np.inf, np.inf), (-1.0, np.nan), (4.0, 2.0)],
    "square": [(-3.0, 9.0), (-np.inf, np.inf)],
    "tanh": [(0.0, 0.0), (1e30, 1.0), (-1e30, -1.0), (np.inf, 1.0), (-np.inf, -1.0), (30.0, 1.0)],
}


@pytest.mark.parametrize(("bits", "lanes"), SHAPES)
@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str, bits: int, lanes: int) -> None:
    x, want = np.array(EDGES[name], DTYPES[bits]).T
    np.testing.assert_array_equal(unary(name, bits, lanes)(x), want)


@pytest.mark.parametrize("bits", [32, 64])
def test_erf_is_odd_monotone_and_joined_at_one(bits: int) -> None:
    dtype = DTYPES[bits]
    joint = np.nextafter(np.array(1, dtype), np.array([0, 2], dtype))
    x = np.sort(np.concatenate([points(-7, 7, bits), joint]))
    got = unary("erf", bits, 4)(x)
    np.testing.assert_array_equal(unary("erf", bits, 4)(-x), -got)
    assert np.diff(got).min() >= -np.finfo(dtype).eps
    assert np.abs(got).max() == 1


@pytest.mark.parametrize(("bits", "low", "high"), [(32, -87.0, 88.72283), (64, -708.0, 709.782712893384)])
def test_exp_at_its_limits(bits: int, low: float, high: float) -> None:
    dtype = DTYPES[bits]
    ends = np.array([low, high], dtype)
    apply = unary("exp", bits, 4)
    np.testing.assert_allclose(apply(ends), np.exp(ends), rtol=4 * np.finfo(dtype).eps)
    beyond = np.nextafter(ends, np.array([-np.inf, np.inf], dtype))
    np.testing.assert_array_equal(apply(beyond), [0.0, np.inf])


@pytest.mark.parametrize(("bits", "lanes"), SHAPES)
def test_exp_of_an_exponent_is_as_good_as_its_argument(bits: int, lanes: int) -> None:
    """An exponent of ln 2 in one term and, in float32, a term less of the polynomial: 1, to the bit, at zero."""
    dtype = DTYPES[bits]
    apply = unary("exp_of_exponent", bits, lanes)
    x = points(-80, 10, bits)
    wide = x.astype(np.longdouble)
    error = np.abs(apply(x) / np.exp(wide) - 1)
    eps, of_ln2 = np.finfo(dtype).eps, {32: 0.03, 64: 0.2}[bits]
    assert np.all(error <= (1.5 + of_ln2 * np.abs(wide)) * eps)
    assert apply(np.zeros(1, dtype))[0] == 1
    below = np.array([np.nextafter(dtype(-87 if bits == 32 else -708), dtype(-np.inf))])
    assert apply(below)[0] == 0


ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "softplus": lambda xp, u, a: xp.log1p(xp.exp(-xp.abs(u))) + xp.maximum(u, 0),
    "elu": lambda xp, u, a: xp.where(u > 0, u + 1, xp.exp(xp.minimum(u, 0))),
    "cube": lambda xp, u, a: u**3,
    "conditions": lambda xp, u, a: xp.where((u > 0) & (a < 1), u / (1 + a * a), 2.0),
    "either": lambda xp, u, a: xp.where(~(u >= 0) | (a <= u), xp.tanh(a) - u, -a),
    "waves": lambda xp, u, a: xp.cos(u) * xp.sin(a) + xp.sqrt(xp.square(u) + 1),
    "expm1": lambda xp, u, a: xp.expm1(u) + xp.log(a * a + 1),
    "input": lambda xp, u, a: a,
}


@pytest.mark.parametrize(("bits", "lanes"), SHAPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_traced_activations(name: str, bits: int, lanes: int) -> None:
    h = ACTIVATIONS[name]
    u, a = np.random.default_rng(1).normal(scale=3, size=(2, 4001)).astype(DTYPES[bits])
    got = compile_program(trace(h), bits, lanes)(u, a)
    want = h(np, u.astype(np.longdouble), a.astype(np.longdouble))
    tolerance = 16 * np.finfo(DTYPES[bits]).eps
    np.testing.assert_allclose(got, want.astype(np.float64), rtol=tolerance, atol=tolerance)


def test_constant_result_is_a_vector() -> None:
    got = compile_program(Program((), Constant((2.5).hex())), 32, 8)(np.zeros(16, np.float32))
    np.testing.assert_array_equal(got, np.full(16, 2.5))


@pytest.mark.parametrize(("bits", "lanes"), SHAPES)
def test_reductions_and_splat(bits: int, lanes: int) -> None:
    x = np.random.default_rng(2).integers(-99, 99, size=(50, lanes)).astype(DTYPES[bits])
    for name, want in (("reduce_max", x.max(1)), ("reduce_add", x.sum(1))):

        def body(math: VectorMath, u: ir.Value, a: ir.Value, name: str = name) -> ir.Value:
            return math.splat(getattr(math, name)(u))

        apply = compile_body(body, bits, lanes)
        np.testing.assert_array_equal(apply(x.ravel()).reshape(x.shape), np.repeat(want[:, None], lanes, 1))


@pytest.mark.parametrize("operation", ["maximum", "minimum"])
def test_maximum_and_minimum(operation: str) -> None:
    u = np.array([1, -1, np.inf, -np.inf, np.nan, 3], np.float32)
    a = np.array([2, -np.inf, 5, 7, 0, 3], np.float32)
    got = compile_body(lambda math, u, a: getattr(math, operation)(u, a), 32, 4)(u, a)
    np.testing.assert_array_equal(got, getattr(np, operation)(u, a))


@pytest.mark.parametrize(("bits", "lanes"), SHAPES)
def test_nothing_is_left_to_link(bits: int, lanes: int) -> None:
    def body(math: VectorMath, u: ir.Value, a: ir.Value) -> ir.Value:
        total = math.fma(u, a, u)
        for name, arity in FUNCTIONS.items():
            operands = [math.gt(u, a), u, a] if name == "where" else [u, a][:arity]
            total = math.add(total, getattr(math, name)(*operands))
        return total

    assembly = target_machine().emit_assembly(build_module(body, bits, lanes))
    assert not re.search(r"^\s*(call[a-z]*|bl|blr)\s", assembly, re.MULTILINE)


@pytest.mark.parametrize(("bits", "lanes"), [(16, 8), (32, 1), (32, 6)])
def test_unsupported_vectors_are_refused(bits: int, lanes: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        VectorMath(ir.IRBuilder(), bits, lanes)
