"""Feature maps: the registry, what an activation may be written with, and that its meaning is never a stale one."""

from __future__ import annotations

import dataclasses
import functools
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rfkernels as rfk
from rfkernels import maps
from rfkernels._arrays import elementwise
from rfkernels.activations import CONSTANTS, FUNCTIONS, Constant, Program, trace

BACKENDS = oracle.backends()
RELU = rfk.lookup("relu")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, rfk.FeatureMap]:
    """A copy of the table of names, put back after the test."""
    copy = dict(maps._TABLE)
    monkeypatch.setattr(maps, "_TABLE", copy)
    return copy


# The registry


def test_the_named_maps() -> None:
    assert rfk.names() == (
        "abs", "cauchy", "cosine", "elu+1", "erf", "exp", "gaussian", "hyperbolic", "laplacian", "matern32", "matern52",
        "positive", "relu", "sign", "square", "squared_relu", "step", "trigonometric",
    )  # fmt: skip
    for name in rfk.names():
        feature_map = rfk.lookup(name)
        assert isinstance(feature_map, rfk.FeatureMap)
        assert hash(feature_map) == hash(dataclasses.replace(feature_map))
        assert feature_map == dataclasses.replace(feature_map)
        with pytest.raises(dataclasses.FrozenInstanceError):
            feature_map.offset = 1.0


@pytest.mark.usefixtures("table")
def test_registering_and_looking_up() -> None:
    mine = rfk.FeatureMap((oracle.softplus,), nonnegative=True)
    assert rfk.register("softplus", mine) is mine
    assert rfk.lookup("softplus") is mine
    assert "softplus" in rfk.names()
    assert rfk.draw("softplus", 3, 4, rng=0).map is mine
    with pytest.raises(ValueError, match=r"'softplus' exists.*replace=True") as caught:
        rfk.register("softplus", RELU)
    assert "positive" in str(caught.value)
    assert rfk.lookup("softplus") is mine
    rfk.register("softplus", RELU, replace=True)
    assert rfk.lookup("softplus") is RELU
    with pytest.raises(ValueError, match="'relu' exists"):
        rfk.register("relu", mine)


@pytest.mark.usefixtures("table")
def test_names_that_are_no_names() -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"unknown feature map 'performer'; known are: {', '.join(rfk.names())}")
    ):
        rfk.lookup("performer")
    for name in ("", None, 3, ("relu",)):
        with pytest.raises(ValueError, match="name must be a non-empty str"):
            rfk.register(name, RELU)
    for feature_map in (oracle.softplus, "relu", (oracle.softplus,), None):
        with pytest.raises(TypeError, match="feature_map must be a FeatureMap"):
            rfk.register("mine", feature_map)
    assert "mine" not in rfk.names()


# What an activation may be written with

ALLOWED = re.escape(", ".join(sorted(FUNCTIONS)))

REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "a function no backend has": (lambda xp, u, a: xp.gamma(u), f"xp.gamma.*allowed are: {ALLOWED}"),
    "a function NumPy has": (lambda xp, u, a: xp.cumsum(u), f"xp.cumsum.*{ALLOWED}"),
    "a reduction": (lambda xp, u, a: xp.exp(u - xp.max(u)), "xp.max"),
    "a submodule": (lambda xp, u, a: xp.linalg.norm(u), "xp.linalg"),
    "a method": (lambda xp, u, a: u.sum(), f"could not be traced.*{ALLOWED}"),
    "an index": (lambda xp, u, a: u[0], "could not be traced.*elementwise"),
    "a length": (lambda xp, u, a: u * len(u), "could not be traced"),
    "a shape": (lambda xp, u, a: xp.exp(u) / u.shape[-1], "could not be traced"),
    "iteration": (lambda xp, u, a: sum(x for x in u), "could not be traced"),
    "numpy itself": (lambda xp, u, a: np.exp(u), "could not be traced|namespace xp"),
    "numpy's maximum": (lambda xp, u, a: np.maximum(u, 0), "could not be traced|namespace xp"),
    "math": (lambda xp, u, a: math.exp(u), "functions of its namespace xp, not those of math or numpy"),
    "float()": (lambda xp, u, a: float(u), "namespace xp"),
    "a branch": (lambda xp, u, a: u if u > 0 else 0 * u, r"cannot branch.*xp.where\(condition, x, y\) instead of if"),
    "a branch on a number": (lambda xp, u, a: u if u else a, "xp.where"),
    "and": (lambda xp, u, a: xp.where(u > 0 and a > 0, u, a), "xp.where"),
    "a chained comparison": (lambda xp, u, a: xp.where(0 < u < 1, u, a), "xp.where"),
    "Python's max": (lambda xp, u, a: max(u, 0), "xp.where"),
    "equality": (lambda xp, u, a: xp.where(u == 0, a, u), "cannot use =="),
    "a power that is no integer": (lambda xp, u, a: u**0.5, "power.*int from 1 to 8.*0.5"),
    "a power of zero": (lambda xp, u, a: u**0, "power.*0"),
    "a large power": (lambda xp, u, a: u**9, "power.*9"),
    "a negative power": (lambda xp, u, a: u**-1, "power.*-1"),
    "an exponent": (lambda xp, u, a: 2**u, "could not be traced|power"),
    "an array": (lambda xp, u, a: u * np.ones(3), "real numbers|could not be traced"),
    "a complex number": (lambda xp, u, a: u * 1j, "real numbers.*1j"),
    "a string": (lambda xp, u, a: u + "1", "real numbers"),
    "None": (lambda xp, u, a: None, "real numbers.*None"),
    "a condition as the result": (lambda xp, u, a: u > 0, "a condition where a number is needed"),
    "arithmetic with a condition": (lambda xp, u, a: u * (u > 0), "a condition where a number is needed"),
    "a number as a condition": (lambda xp, u, a: xp.where(u, u, a), "a number where a condition is needed"),
    "a constant as a condition": (lambda xp, u, a: xp.where(True, u, a), "condition"),
    "too few arguments": (lambda xp, u, a: xp.maximum(u), "xp.maximum takes 2 arguments.*got 1"),
    "too many arguments": (lambda xp, u, a: xp.exp(u, a), "xp.exp takes 1 arguments.*got 2"),
    "a keyword": (lambda xp, u, a: xp.where(u > 0, x=u, y=a), "could not be traced"),
    "an axis": (lambda xp, u, a: xp.square(u, axis=-1), "could not be traced"),
    "too few parameters": (lambda xp, u: xp.exp(u), "could not be traced"),
    "two results": (lambda xp, u, a: (u, a), "real numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_activations_that_some_backend_could_not_run(name: str) -> None:
    activation, says = REFUSED[name]
    with pytest.raises(ValueError, match=says):
        rfk.FeatureMap((activation,))


def test_maps_that_are_no_maps() -> None:
    for activations in ((), [oracle.softplus], oracle.softplus, None):
        with pytest.raises(ValueError, match="activations must be a non-empty tuple of functions"):
            rfk.FeatureMap(activations)
    for activation in (None, "exp", 3, math):
        with pytest.raises(ValueError, match="an activation must be a function h"):
            rfk.FeatureMap((activation,))


NUMBERS = (float("nan"), float("inf"), "x", None, True, np.ones(1), 1j)


@pytest.mark.parametrize("offset", NUMBERS, ids=repr)
def test_offsets_that_are_no_finite_numbers(offset: Any) -> None:
    with pytest.raises(ValueError, match=r"offset must be a finite number, got"):
        rfk.FeatureMap((oracle.softplus,), offset)


@pytest.mark.parametrize("slopes", [[1.0], 1.0, np.ones(1), "1", {1.0}, *((x,) for x in NUMBERS)], ids=repr)
def test_slopes_that_are_no_tuples_of_finite_numbers(slopes: Any) -> None:
    with pytest.raises(ValueError, match=r"slopes must be a tuple of finite numbers or None, got"):
        rfk.FeatureMap((lambda xp, u, a: xp.exp(u + a),), -0.5, slopes)


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, int], ids=repr)
def test_offsets_and_slopes_of_any_real_type(number: Any) -> None:
    feature_map = rfk.FeatureMap((lambda xp, u, a: xp.exp(u + a),), number(-1), (number(1),))
    q = np.ones((3, 4), np.float32)
    out, other = (rfk.attention(q, q, q, rfk.draw(feature_map, 4, 8, rng=0), backend=b) for b in ("numpy", "numba"))
    np.testing.assert_allclose(out, other, rtol=1e-5)


FIELDS = {
    "kernel": (("exponential", rfk.lookup("relu"), 1), TypeError, "a Kernel or None"),
    "log_variance": ((1.0, "x"), TypeError, "a function or None"),
    "radii": ((np.ones(3), 2), TypeError, "a function or None"),
    "nonnegative": ((1, "yes", None), TypeError, "True or False"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_other_types(name: str) -> None:
    values, error, says = FIELDS[name]
    for value in values:
        with pytest.raises(error, match=f"{name} must be {says}, got"):
            rfk.FeatureMap((oracle.softplus,), **{name: value})


NEGATIVE = {
    "the identity": lambda xp, u, a: u,
    "below zero near zero alone": lambda xp, u, a: xp.exp(u) - 1,
    "below zero far out alone": lambda xp, u, a: 20 - xp.abs(u),
    "below zero by the norm": lambda xp, u, a: 1 + a + 0 * u,
    "a constant": lambda xp, u, a: -1e-12,
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_maps_that_are_negative_are_not_declared_nonnegative(name: str) -> None:
    assert not rfk.FeatureMap((NEGATIVE[name],)).nonnegative
    with pytest.raises(ValueError, match=r"nonnegative declares that <function .* is never negative, but it can be -"):
        rfk.FeatureMap((oracle.softplus, NEGATIVE[name]), nonnegative=True)


def test_rounding_makes_no_map_negative() -> None:
    for activation in (
        lambda xp, u, a: xp.sqrt(1 + u * u) - 1,
        lambda xp, u, a: 1 - xp.cos(u),
        lambda xp, u, a: 0.0 * u,
    ):
        assert rfk.FeatureMap((activation,), nonnegative=True).nonnegative


EXPONENTS: dict[str, tuple[Any, ...]] = {
    "not exponential in a": (lambda xp, u, a: xp.exp(u), (1.0,), r"not exp\(s\) h\(u, a\)"),
    "exponential in 2a": (lambda xp, u, a: xp.exp(u + 2 * a), (1.0,), r"not exp\(s\) h\(u, a\)"),
    "an added constant": (lambda xp, u, a: xp.exp(u + a) + 1e-3, (1.0,), r"not exp\(s\) h\(u, a\)"),
    "another slope": (lambda xp, u, a: xp.exp(2 * u + a), (1.0,), "outgrows"),
    "the other sign": (lambda xp, u, a: xp.exp(a - u), (1.0,), "outgrows"),
    "no slope": (lambda xp, u, a: xp.exp(u + a), (0.0,), "outgrows"),
    "a polynomial factor": (lambda xp, u, a: xp.exp(u + a) * u * u, (1.0,), "outgrows"),
    "too few slopes": (lambda xp, u, a: xp.exp(u + a), (), "one entry per activation"),
    "too many slopes": (lambda xp, u, a: xp.exp(u + a), (1.0, 1.0), "one entry per activation"),
}


@pytest.mark.parametrize("name", EXPONENTS)
def test_declared_exponents_that_do_not_hold(name: str) -> None:
    activation, slopes, says = EXPONENTS[name]
    with pytest.raises(ValueError, match=says):
        rfk.FeatureMap((activation,), -0.5, slopes)


# What activations compute


def grid() -> tuple[Any, Any]:
    u, a = np.meshgrid(np.linspace(-3, 3, 41), np.linspace(-2, 1, 7))
    return u.ravel(), a.ravel()


def evaluate(program: Program, u: Any, a: Any) -> Any:
    """Run a program on arrays: an interpreter written from its description alone."""
    operations: dict[str, Callable[..., Any]] = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
        "gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal,
        "and": np.logical_and, "or": np.logical_or, "not": np.logical_not,
        **{name: getattr(elementwise(np), name) for name in FUNCTIONS},
    }  # fmt: skip
    results: list[Any] = []

    def value(operand: Any) -> Any:
        if isinstance(operand, Constant):
            return operand.value
        return {"u": u, "a": a}[operand] if isinstance(operand, str) else results[operand]

    for name, operands in program.instructions:
        results.append(operations[name](*map(value, operands)))
    return value(program.result) + np.zeros_like(u)


ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "every function of one argument": lambda xp, u, a: (
        xp.abs(u) + xp.cos(u) + xp.exp(u) + xp.expm1(a) + xp.log(2 + xp.square(u)) + xp.log1p(xp.abs(a)) + xp.sin(a)
        + xp.sqrt(xp.abs(u)) + xp.square(a) + xp.tanh(u) + xp.erf(a - u)
    ),
    "every function of more": lambda xp, u, a: xp.maximum(u, a) + 3 * xp.minimum(u, 0.5) + xp.where(u > a, u, -a),
    "comparisons": lambda xp, u, a: xp.where(u > 0, 1.0, 0.0) + 2 * xp.where(u >= a, 1, 0) + 4 * xp.where(u < 1, 1, 0)
    + 8 * xp.where(a <= 0.5, 1, 0) + 16 * xp.where(u > 0.25, 1, 0),
    "booleans": lambda xp, u, a: xp.where((u > 0) & (a > 0), 1, 0) + 2 * xp.where((u > 1) | (a < -1), 1, 0)
    + 4 * xp.where(~(u > 0.5), 1, 0),
    "powers": lambda xp, u, a: u**1 + u ** np.int64(2) - u**3 / 7 + a**4 / 3 + (u / 2) ** 8,
    "arithmetic": lambda xp, u, a: -u + (+a) - 2 * u / (3 + abs(a)) + 1 / (2 + u * u) - (1 - u) * (a - 1) + 0.5,
    "constants": lambda xp, u, a: xp.pi * u + xp.e * a + math.pi + np.float32(0.25) + np.float64(0.5) + True * 0 + 3,
    "u alone": lambda xp, u, a: u,
    "a alone": lambda xp, u, a: a,
    "a constant alone": lambda xp, u, a: 2.5,
    "a step that nothing uses": lambda xp, u, a: (xp.exp(u), u * 2)[1],
    "a step used twice": lambda xp, u, a: (lambda y: y * y + y)(xp.tanh(u)),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_program_computes_what_the_function_does(name: str) -> None:
    u, a = grid()
    expected = ACTIVATIONS[name](elementwise(np), u, a)
    np.testing.assert_allclose(evaluate(trace(ACTIVATIONS[name]), u, a), expected + np.zeros_like(u), rtol=1e-14)


def test_the_maps_compute_what_they_say() -> None:
    u, a = grid()
    formulas = {
        "positive": [np.exp(u + a)],
        "hyperbolic": [np.exp(a + u), np.exp(a - u)],
        "trigonometric": [math.sqrt(2) * np.cos(u) * np.exp(a), math.sqrt(2) * np.sin(u) * np.exp(a)],
        "relu": [np.maximum(u, 0)],
        "squared_relu": [np.maximum(u, 0) ** 2],
        "elu+1": [np.where(u > 0, u + 1, np.exp(np.minimum(u, 0)))],
        "exp": [np.exp(u)],
        "step": [np.heaviside(u, 0)],
        "sign": [np.sign(u)],
        "abs": [np.abs(u)],
        "square": [u * u],
        "cosine": [np.cos(u)],
        "erf": [[math.erf(x) for x in u]],
    }
    waves = [math.sqrt(2) * np.cos(u), math.sqrt(2) * np.sin(u)]
    formulas |= dict.fromkeys(rfk.spectral.NAMED, waves)
    assert set(formulas) == set(rfk.names())
    for name, expected in formulas.items():
        feature_map = rfk.lookup(name)
        inside = np.zeros_like(a) if name == "exp" else a
        for program, value in zip(feature_map.programs(), expected, strict=True):
            np.testing.assert_allclose(evaluate(program, u, inside), value, rtol=1e-14)
    offsets = {"positive": -0.5, "hyperbolic": -0.5, "trigonometric": 0.5}
    assert {name: rfk.lookup(name).offset for name in rfk.names()} == {
        name: offsets.get(name, 0.0) for name in rfk.names()
    }


@pytest.mark.parametrize("order", range(9))
def test_arc_cosine_maps(order: int) -> None:
    feature_map = maps.arc_cosine(order)
    u, a = grid()
    (program,) = feature_map.programs()
    np.testing.assert_allclose(evaluate(program, u, a), np.where(u > 0, u**order, 0), rtol=1e-14)
    assert feature_map.nonnegative
    assert feature_map == maps.arc_cosine(order) == pickle.loads(pickle.dumps(feature_map))
    assert hash(feature_map) == hash(maps.arc_cosine(order))
    assert feature_map != maps.arc_cosine((order + 1) % 9)
    assert feature_map.kernel == rfk.kernels.arc_cosine(order)
    named = {0: "step", 1: "relu", 2: "squared_relu"}
    assert order not in named or rfk.lookup(named[order]) == feature_map


@pytest.mark.parametrize("order", [-1, 9, 1.0, True, "1", None])
def test_orders_that_are_none(order: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"order must be an int from 0 to 8, got {order!r}")):
        maps.arc_cosine(order)
    if order != 9:
        with pytest.raises(ValueError, match=re.escape(f"order must be an int from 0 to 16, got {order!r}")):
            rfk.kernels.arc_cosine(order)


def test_constants_take_the_dtype_of_their_argument() -> None:
    """Of zeros and ones alone, features in float32 do not become float64."""
    q, k, v = (x.astype(np.float32) for x in np.random.default_rng(0).standard_normal((3, 5, 4)))
    for name in ("step", "sign"):
        features = rfk.draw(name, 4, 6, rng=0)
        assert rfk.transform(q, features, side="query").dtype == np.float32
        assert rfk.log_kernel(q, k, features, return_sign=True)[0].dtype == np.float32
        assert rfk.attention(q, k, v, features, backend="numpy").dtype == np.float32


def test_equal_code_has_equal_programs() -> None:
    def one(xp: Any, u: Any, a: Any) -> Any:
        return xp.exp(u) + 1

    def two(xp: Any, u: Any, a: Any) -> Any:
        y = xp.exp(u)
        return y + 1.0

    assert trace(one) == trace(two)
    assert hash(trace(one)) == hash(trace(two))
    assert trace(one) != trace(lambda xp, u, a: xp.exp(u) + 2)
    assert trace(one) != trace(lambda xp, u, a: 1 + xp.exp(u) * 1)
    assert set(CONSTANTS) == {"pi", "e"}


# In attention


def attend(backend: str, activation: Any, q: Any, k: Any, v: Any, seed: int = 0, **options: Any) -> Any:
    features = rfk.draw(rfk.FeatureMap((activation,)), q.shape[-1], 8, rng=seed)
    return attend_with(backend, features, q, k, v, **options)


def attend_with(backend: str, features: rfk.Features, q: Any, k: Any, v: Any, **options: Any) -> Any:
    with oracle.precision(backend, q.dtype):
        return np.asarray(
            rfk.attention(*(oracle.place(x, backend) for x in (q, k, v)), features, backend=backend, **options)
        )


def by_hand(activation: Any, features: rfk.Features, q: Any, k: Any, v: Any) -> Any:
    """Attention from features that NumPy evaluates, in float64."""
    root = np.sqrt(np.asarray(features.scale))
    xp = elementwise(np)
    phi_q, phi_k = (activation(xp, root * x @ features.projection.T, np.zeros(())) for x in (q, k))
    weights = (phi_q + np.zeros((len(q), features.count))) @ (phi_k + np.zeros((len(k), features.count))).T
    return weights @ v / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_custom_maps_equal_their_evaluation_by_numpy(backend: str, name: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((21, n)) for n in (4, 4, 3))

    def positive(xp: Any, u: Any, a: Any) -> Any:  # so that normalizers stay away from zero
        return xp.exp(0.1 * xp.tanh(ACTIVATIONS[name](xp, u, a))) + xp.square(0.1 * ACTIVATIONS[name](xp, u, a))

    features = rfk.draw(rfk.FeatureMap((positive,)), 4, 8, rng=0)
    expected = by_hand(positive, features, q, k, v)
    np.testing.assert_allclose(attend_with(backend, features, q, k, v), expected, rtol=1e-9, atol=1e-9)
    if backend != "jax":
        singles = (x.astype(np.float32) for x in (q, k, v))
        np.testing.assert_allclose(attend_with(backend, features, *singles), expected, rtol=2e-4, atol=2e-4)


LEVEL = 1.0


def of_a_global(xp: Any, u: Any, a: Any) -> Any:
    return xp.maximum(u, 0) + LEVEL


class Box:
    level = 1.0


def changing() -> list[tuple[str, Any, Callable[[float], None]]]:
    """Activations whose meaning depends on something outside them, and how that is changed."""
    cell, values, box = 1.0, [1.0], Box()

    def of_a_cell(xp: Any, u: Any, a: Any) -> Any:
        return xp.maximum(u, 0) + cell

    def set_cell(level: float) -> None:
        nonlocal cell
        cell = level

    def of_a_list(xp: Any, u: Any, a: Any) -> Any:
        return xp.maximum(u, 0) + values[0]

    def of_a_default(xp: Any, u: Any, a: Any, level: float = 1.0) -> Any:
        return xp.maximum(u, 0) + level

    def inner(xp: Any, u: Any) -> Any:
        return xp.maximum(u, 0) + box.level

    def of_another_function(xp: Any, u: Any, a: Any) -> Any:
        return inner(xp, u)

    return [
        ("cell", of_a_cell, set_cell),
        ("list", of_a_list, lambda level: values.__setitem__(0, level)),
        ("global", of_a_global, lambda level: globals().__setitem__("LEVEL", level)),
        ("default", of_a_default, lambda level: setattr(of_a_default, "__defaults__", (level,))),
        ("attribute", of_another_function, lambda level: setattr(box, "level", level)),
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_map_means_what_it_means_now(backend: str) -> None:
    """The same Features, after a closure cell, global, default or attribute has changed, and changed back."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((5, n)) for n in (4, 4, 3))
    for i, (kind, activation, change) in enumerate(changing()):
        features = rfk.draw(rfk.FeatureMap((activation,), nonnegative=True), 4, 8, rng=0)
        results = []
        for level in (1.0, 5.0, 1.0, 0.25):
            change(level)
            expected = by_hand(lambda xp, u, a, level=level: xp.maximum(u, 0) + level, features, q, k, v)
            got = attend_with(backend, features, q, k, v, causal=i % 2 == 0)
            np.testing.assert_allclose(got[-1], expected[-1], rtol=1e-9, atol=1e-9, err_msg=f"{kind} {level}")
            state = rfk.write_state(rfk.empty_state(features, 3, dtype=np.float64), k, v, features, backend="numpy")
            results.append(rfk.read_state(state, q, features, backend="numpy"))
        np.testing.assert_array_equal(results[0], results[2])
        assert not np.allclose(results[0], results[1])
        change(1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_function_whose_code_is_replaced(backend: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((5, n)) for n in (4, 4, 3))

    def activation(xp: Any, u: Any, a: Any) -> Any:
        return xp.exp(0.5 * u)

    def other(xp: Any, u: Any, a: Any) -> Any:
        return xp.square(u) + 1

    features = rfk.draw(rfk.FeatureMap((activation,)), 4, 8, rng=0)
    before = attend_with(backend, features, q, k, v)
    np.testing.assert_allclose(before, by_hand(activation, features, q, k, v), rtol=1e-9, atol=1e-9)
    activation.__code__ = other.__code__
    after = attend_with(backend, features, q, k, v)
    np.testing.assert_allclose(after, by_hand(other, features, q, k, v), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("table")
def test_replacing_a_name_changes_no_features_already_drawn() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((5, n)) for n in (4, 4, 3))
    features = rfk.draw("relu", 4, 8, rng=0)
    before = attend_with("numpy", features, q, k, v)
    rfk.register("relu", rfk.lookup("squared_relu"), replace=True)
    np.testing.assert_array_equal(attend_with("numpy", features, q, k, v), before)
    assert rfk.draw("relu", 4, 8, rng=0).map is rfk.lookup("squared_relu")


@functools.cache
def polynomial(coefficients: tuple[float, ...]) -> rfk.FeatureMap:
    """A program of random shape. Kept, as compiled code is freed with its map."""

    def activation(xp: Any, u: Any, a: Any) -> Any:
        total = 0.0 * u
        for i, c in enumerate(coefficients):
            total = xp.where(u > c, total * u + c, xp.minimum(total - c, u) * (i + 1))
        return 1 + xp.square(xp.tanh(total))

    return rfk.FeatureMap((activation,), nonnegative=True)


@given(st.lists(st.sampled_from([-1.5, -0.1, 0.0, 0.7]), min_size=1, max_size=4), st.integers(0, 1 << 16))
def test_random_polynomials_and_switches(coefficients: list[float], seed: int) -> None:
    """On the backend that compiles them, 340 programs in all."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((9, n)) for n in (3, 3, 2))
    features = rfk.draw(polynomial(tuple(coefficients)), 3, 5, rng=seed)
    expected = by_hand(features.map.activations[0], features, q, k, v)
    for backend in ("numpy", oracle.DEFAULT):
        got = rfk.attention(q, k, v, features, backend=backend)
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8)
