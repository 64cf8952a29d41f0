"""What is refused and how it is said, and what is accepted in whatever memory layout it comes."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rfkernels as rfk

BACKENDS = oracle.backends("numpy", "numba")
EVERY = oracle.backends()
DIM, COUNT, WIDTH = 4, 6, 3
FEATURES = rfk.draw("positive", DIM, COUNT, rng=0)
RELU = rfk.draw("relu", DIM, COUNT, rng=0)
SIGNED = rfk.draw("trigonometric", DIM, COUNT, rng=0)
NO_KERNEL = rfk.draw("elu+1", DIM, COUNT, rng=0)
ERRORS = rfk.draw("positive", DIM, 8, sampler="iid", rng=0)


def ones(*shape: int, dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype)


Q, K, V = ones(2, 5, DIM), ones(2, 7, DIM), ones(2, 7, WIDTH)
STATE = rfk.empty_state(FEATURES, WIDTH)
TAYLOR = rfk.materialized.taylor(DIM, 1)
DECODE = rfk.empty_state(FEATURES, WIDTH, window=4)


def attend(q: Any = Q, k: Any = K, v: Any = V, features: Any = FEATURES, **options: Any) -> Any:
    return rfk.attention(q, k, v, features, **{"backend": oracle.DEFAULT, **options})


def write(state: Any = STATE, k: Any = K, v: Any = V, features: Any = FEATURES, **options: Any) -> Any:
    return rfk.write_state(state, k, v, features, **{"backend": oracle.DEFAULT, **options})


def read(state: Any = STATE, q: Any = Q, features: Any = FEATURES, **options: Any) -> Any:
    return rfk.read_state(state, q, features, **{"backend": oracle.DEFAULT, **options})


def draw(feature_map: Any = "positive", dim: Any = 3, count: Any = 4, **options: Any) -> Any:
    return rfk.draw(feature_map, dim, count, **{"rng": 0, **options})


def changed(state: Any, **fields: Any) -> Any:
    return state._replace(**fields)


EXACT: dict[str, Callable[..., Any]] = {
    "exact attention": lambda scale=1.0, **options: rfk.exact_attention(Q, K, V, scale=scale, **options),
    "exact kernels": lambda scale=1.0, **options: rfk.exact_log_kernel(Q, Q, scale=scale, **options),
    "exact sums": lambda scale=1.0, **options: rfk.exact_log_normalizer(Q, K, scale=scale, **options),
}


FLAGGED: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "attention": (attend, ("check_finite",)),
    "attention with groups": (lambda **options: attend(features=None, groups=2, **options), ("check_finite",)),
    "exact attention": (lambda **options: rfk.exact_attention(Q, K, V, **options), ("check_finite",)),
    "given features": (lambda **options: rfk.linear_attention(K, K, V, **options), ("check_finite",)),
    "exact kernels": (EXACT["exact kernels"], ("return_sign",)),
    "exact sums": (EXACT["exact sums"], ("return_sign",)),
    "features": (lambda **options: rfk.transform(Q, FEATURES, side="key", **options), ("log", "check_finite")),
    "kernels": (lambda **options: rfk.log_kernel(Q, Q, FEATURES, **options), ("return_sign", "check_finite")),
    "sums": (lambda **options: rfk.log_normalizer(Q, K, FEATURES, **options), ("return_sign", "error", "check_finite")),
    "writing": (write, ("check_finite",)),
    "reading": (read, ("full", "check_finite")),
}


def masked(name: str, call: Any) -> Any:
    """Hand over masked positions of keys, masks or segments."""
    given = {"mask": np.ones(7, bool), "segment_ids": np.zeros(7, int), "heavy": np.array([0, 2])}[name]
    features = (FEATURES,) if call is rfk.attention else ()
    return call(K, K, V, *features, **{name: np.ma.array(given, mask=np.arange(len(given)) == 1)})


# What is refused: what is called, the error, and what the message has to say.

Refusal = tuple[str, Callable[[], Any], type[Exception], tuple[str, ...]]

SHAPES: list[Refusal] = [
    ("q has one axis", lambda: attend(ones(DIM)), ValueError, ("q ", "(*batch, length, dim)", "(4,)")),
    ("q has no axis", lambda: attend(np.ones((), np.float32)), ValueError, ("q ", "()")),
    ("k has one axis", lambda: attend(k=ones(DIM)), ValueError, ("k ", "(*batch, length, dim)")),
    ("v has one axis", lambda: attend(v=ones(7)), ValueError, ("v ", "(7,)")),
    ("q and k differ in dim", lambda: attend(ones(2, 5, 3)), ValueError, ("q and k", "dim", "(2, 5, 3)", "(2, 7, 4)")),
    ("k and v differ in length", lambda: attend(v=ones(2, 6, 3)), ValueError, ("k and v", "length", "(2, 6, 3)")),
    ("batch axes differ", lambda: attend(ones(3, 5, DIM)), ValueError, ("broadcast", "q (3,)", "k (2,)")),
    ("batch axes of v", lambda: attend(v=ones(3, 7, 3)), ValueError, ("broadcast", "v (3,)")),
    (
        "length and heads swapped in q",
        lambda: attend(ones(1, 5, 2, DIM), ones(1, 2, 7, DIM), ones(1, 2, 7, DIM)),
        ValueError,
        ("broadcast", "length and heads swapped"),
    ),
    (
        "length and heads swapped in k and v",
        lambda: attend(ones(1, 2, 5, DIM), ones(1, 7, 2, DIM), ones(1, 7, 2, DIM)),
        ValueError,
        ("length and heads swapped",),
    ),
    (
        "length and heads swapped in v alone",
        lambda: attend(ones(1, 2, 7, DIM), ones(1, 2, 7, DIM), ones(1, 7, 2, DIM)),
        ValueError,
        ("k and v", "length"),
    ),
    ("dim of features", lambda: attend(*(ones(5, 8),) * 3), ValueError, ("features", "dim 4", "(5, 8)")),
    (
        "batch of features",
        lambda: attend(features=draw(dim=DIM, batch=(3,))),
        ValueError,
        ("broadcast", "features (3,)", "k (2,)"),
    ),
    (
        "mask over pairs",
        lambda: attend(mask=np.ones((5, 5), bool)),
        ValueError,
        ("mask", "over keys", "pairs of queries"),
    ),
    (
        "mask L×S, batched",
        lambda: attend(mask=np.ones((2, 7, 5), bool)),
        ValueError,
        ("mask", "(*batch, 7)", "cannot be honoured"),
    ),
    ("mask L×S of the right width", lambda: attend(mask=np.ones((5, 7), bool)), ValueError, ("mask",)),
    ("mask has no axis", lambda: attend(mask=np.array(True)), ValueError, ("mask", "()")),
    ("window is zero", lambda: attend(window=0), ValueError, ("window", "positive", "0")),
    ("window is negative", lambda: attend(window=-3), ValueError, ("window", "-3")),
    ("window is a float", lambda: attend(window=2.0), ValueError, ("window", "2.0")),
    ("window is a bool", lambda: attend(window=True), ValueError, ("window", "True")),
    ("window without a kernel", lambda: attend(features=NO_KERNEL, window=2), ValueError, ("window", "closed form")),
    ("rows of transform", lambda: rfk.transform(ones(4), FEATURES, side="key"), ValueError, ("x ", "(4,)")),
    ("dim of transform", lambda: rfk.transform(ones(4, 5), FEATURES, side="key"), ValueError, ("x ", "dim 4")),
    ("dim of pairs", lambda: rfk.log_kernel(ones(4), ones(5), FEATURES), ValueError, ("x and y", "dim")),
    ("pairs", lambda: rfk.log_kernel(ones(2, 4), ones(3, 4), FEATURES), ValueError, ("broadcast", "x (2,)", "y (3,)")),
    ("dim of pairs and features", lambda: rfk.log_kernel(ones(5), ones(5), FEATURES), ValueError, ("dim 4",)),
    ("exact pairs", lambda: rfk.exact_log_kernel(ones(4), ones(5)), ValueError, ("x and y", "dim")),
    ("queries and keys", lambda: rfk.log_normalizer(Q, ones(7, 5), FEATURES), ValueError, ("queries and keys", "dim")),
    ("exact queries", lambda: rfk.exact_log_normalizer(Q, ones(7, 5)), ValueError, ("queries and keys", "dim")),
    ("exact attention", lambda: rfk.exact_attention(Q, K, ones(2, 6, 3)), ValueError, ("k and v", "length")),
    ("exact mask", lambda: rfk.exact_attention(Q, K, V, mask=np.ones((5, 4), bool)), ValueError, ("mask", "keys")),
    ("exact window", lambda: rfk.exact_attention(Q, K, V, window=0), ValueError, ("window",)),
    ("exact scale", lambda: rfk.exact_attention(Q, K, V, scale=True), ValueError, ("scale", "positive finite", "True")),
    *(
        (
            f"{name} takes no scale {x!r}",
            lambda call=call, x=x: call(x),
            ValueError,
            ("scale", "positive finite number"),
        )
        for (name, call), x in itertools.product(
            EXACT.items(), ("0.5", np.array("0.5"), np.ones(4), [1.0], np.array(-1.0), np.array(True), 1j, 10**400)
        )
    ),
    *(
        (f"{name} takes no scale None", lambda call=call: call(None), ValueError, ("scale", "got None"))
        for name, call in EXACT.items()
        if name != "exact attention"
    ),
    (
        "counts of given features",
        lambda: rfk.linear_attention(ones(5, 3), ones(7, 4), V),
        ValueError,
        ("phi_q and phi_k",),
    ),
    (
        "given features and v",
        lambda: rfk.linear_attention(ones(5, 4), ones(6, 4), V),
        ValueError,
        ("phi_k and v", "length"),
    ),
    (
        "batch of given features",
        lambda: rfk.linear_attention(K, K, ones(3, 7, 2)),
        ValueError,
        ("phi_k (2,)", "v (3,)"),
    ),
]

TYPES: list[Refusal] = [
    ("q is a list", lambda: attend([[1.0] * DIM]), TypeError, ("q ", "numpy.ndarray or jax.Array", "list")),
    ("k is a scalar", lambda: attend(k=1.0), TypeError, ("k ", "float")),
    ("v is None", lambda: attend(v=None), TypeError, ("v ", "NoneType")),
    *(
        (
            f"{name} is of dtype {dtype}",
            lambda name=name, dtype=dtype: attend(**{name: np.ones((2, 7, 4), dtype)}),
            TypeError,
            (f"{name} ", "float64, float32, float16, bfloat16", np.dtype(dtype).name),
        )
        for name, dtype in itertools.product(
            "qkv", ("int64", "int8", "bool", "complex64", "complex128", "object", "longdouble")
        )
    ),
    ("q is of strings", lambda: attend(np.array([["a"] * DIM])), TypeError, ("q ", "<U1")),
    ("q is of dates", lambda: attend(np.ones((5, 4), "datetime64[s]")), TypeError, ("q ", "datetime64")),
    ("q is of float8", lambda: attend(np.ones((5, 4), ml_dtypes.float8_e4m3fn)), TypeError, ("q ", "float8")),
    ("q has fields", lambda: attend(np.ones((5, 4), [("x", "f4")])), TypeError, ("q ",)),
    (
        "dtypes without a common one",
        lambda: attend(Q.astype(np.float16), K.astype(ml_dtypes.bfloat16)),
        TypeError,
        ("common dtype", "float16", "bfloat16"),
    ),
    ("mask of integers", lambda: attend(mask=np.ones(7, int)), TypeError, ("mask", "bool", "int64")),
    ("mask of floats", lambda: attend(mask=ones(7)), TypeError, ("mask", "float32")),
    *(
        (
            f"{name} of {call.__name__} is masked",
            lambda name=name, call=call: masked(name, call),
            TypeError,
            (f"{name} must be a plain array, got MaskedArray",),
        )
        for name, call in (
            *itertools.product(("mask", "segment_ids"), (rfk.attention, rfk.exact_attention)),
            ("mask", rfk.linear_attention),
            ("heavy", rfk.attention),
        )
    ),
    (
        "mask written to is masked",
        lambda: write(mask=np.ma.array([True] * 7, mask=[False] * 6 + [True])),
        TypeError,
        ("mask must be a plain array", "filled(False)"),
    ),
    ("mask is a list", lambda: attend(mask=[True] * 7), TypeError, ("mask", "list")),
    *(
        (
            f"{name} is {x!r}",
            lambda name=name, x=x: attend(**{name: x}),
            TypeError,
            (f"{name} must be True or False", repr(x)),
        )
        for name, x in itertools.product(("causal", "full", "error"), (1, 0, None, "yes", np.array(True)))
    ),
    *(
        (
            f"{name} of {what} is {x!r}",
            lambda call=call, name=name, x=x: call(**{name: x}),
            TypeError,
            (f"{name} must be True or False",),
        )
        for (what, (call, names)), x in itertools.product(FLAGGED.items(), (1, None, "no"))
        for name in names
    ),
    ("causal of exact attention", lambda: rfk.exact_attention(Q, K, V, causal=1), TypeError, ("causal", "got 1")),
    ("causal of given features", lambda: rfk.linear_attention(K, K, V, causal=1), TypeError, ("causal", "got 1")),
    *(
        (
            f"{name} of a kernel {x!r:.20}",
            lambda call=call, x=x: call(kernel=x),
            TypeError,
            ("kernel must be a Kernel",),
        )
        for (name, call), x in itertools.product(EXACT.items(), ("relu", None, rfk.lookup("relu")))
    ),
    ("features is a name", lambda: attend(features="positive"), TypeError, ("features", "draw", "str")),
    ("features is a map", lambda: attend(features=rfk.lookup("relu")), TypeError, ("features", "FeatureMap")),
    ("backend is unknown", lambda: attend(backend="torch"), ValueError, ("'torch'", "jax, numba, numpy")),
    ("backend is no name", lambda: attend(backend=3), TypeError, ("backend", "int")),
    (
        "side is unknown",
        lambda: rfk.transform(Q, FEATURES, side="value"),
        ValueError,
        ("side", "query", "key", "value"),
    ),
    ("x of transform", lambda: rfk.transform([[1.0]], FEATURES, side="key"), TypeError, ("x ", "list")),
    ("integers in pairs", lambda: rfk.log_kernel(np.ones(4, int), ones(4), FEATURES), TypeError, ("x ", "int64")),
    ("integers in exact pairs", lambda: rfk.exact_log_kernel(np.ones(4, int), ones(4)), TypeError, ("x ", "int64")),
    ("integers in exact attention", lambda: rfk.exact_attention(Q, K, V.astype(int)), TypeError, ("v ", "int64")),
    ("integers in given features", lambda: rfk.linear_attention(Q.astype(int), K, V), TypeError, ("phi_q", "int64")),
    (
        "signed map without a sign",
        lambda: rfk.log_kernel(ones(4), ones(4), SIGNED),
        ValueError,
        ("negative", "return_sign=True"),
    ),
    ("signed normalizer", lambda: rfk.log_normalizer(Q, K, SIGNED), ValueError, ("negative", "return_sign=True")),
]

STATES: list[Refusal] = [
    (
        "state of another count",
        lambda: write(rfk.empty_state(draw(dim=DIM, count=8), WIDTH)),
        ValueError,
        ("state", "6", "8"),
    ),
    ("state of another width", lambda: write(rfk.empty_state(FEATURES, 2)), ValueError, ("width 2", "width 3")),
    ("attention from another width", lambda: attend(state=rfk.empty_state(FEATURES, 2)), ValueError, ("width 2",)),
    (
        "reading another count",
        lambda: read(rfk.empty_state(draw(dim=DIM, count=8), 3)),
        ValueError,
        ("state", "6", "8"),
    ),
    ("state with odd z", lambda: write(changed(STATE, z=STATE.z[:-1])), ValueError, ("state", "z")),
    ("state with odd shift", lambda: read(changed(STATE, shift=STATE.shift[:-1])), ValueError, ("state", "shift")),
    (
        "state of another batch",
        lambda: write(rfk.empty_state(FEATURES, WIDTH, (3,))),
        ValueError,
        ("broadcast", "state (3,)"),
    ),
    (
        "reading another batch",
        lambda: read(rfk.empty_state(FEATURES, WIDTH, (3,))),
        ValueError,
        ("broadcast", "state (3,)"),
    ),
    *(
        (
            f"{field} of a state {what}",
            lambda call=call, field=field, x=x: call(changed(STATE, **{field: x})),
            error,
            (f".{field} must",),
        )
        for (what, x, error), field, call in itertools.product(
            (
                ("is a list", [[0.0] * WIDTH] * COUNT, TypeError),
                ("is of integers", np.zeros((COUNT, WIDTH), int), TypeError),
                ("is complex", np.zeros((COUNT, WIDTH), complex), TypeError),
                ("is masked", np.ma.zeros((COUNT, WIDTH)), TypeError),
            ),
            rfk.State._fields,
            (write, read, lambda state: attend(state=state), lambda state: rfk.merge_states(STATE, state)),
        )
    ),
    (
        "merging sums of odd z",
        lambda: rfk.merge_states(changed(STATE, z=STATE.z[:-1]), STATE),
        ValueError,
        ("first must have kv",),
    ),
    ("sums of one axis", lambda: read(rfk.State(*(ones(COUNT),) * 3)), ValueError, ("state must have kv",)),
    (
        "dtype of a state is no dtype",
        lambda: rfk.empty_state(FEATURES, 3, dtype="wide"),
        ValueError,
        ("float32 or float64", "'wide'"),
    ),
    (
        "batch of a state is a bool",
        lambda: rfk.empty_state(FEATURES, 3, (True,)),
        ValueError,
        ("batch must", "(True,)"),
    ),
    ("state is a tuple", lambda: write(tuple(STATE)), TypeError, ("state", "tuple")),
    ("state is features", lambda: read(FEATURES), TypeError, ("state", "Features")),
    ("state is a result", lambda: attend(state=attend(full=True)), TypeError, ("state", "AttentionResult")),
    ("writing a decode state", lambda: write(DECODE), TypeError, ("state", "DecodeState")),
    ("writing to no state", lambda: write(None), TypeError, ("state must be a State", "NoneType")),
    ("looking up a list", lambda: rfk.lookup([1]), ValueError, ("unknown feature map [1]",)),
    *(
        (f"flag {name}, {i}", lambda call=call: call(), TypeError, (f"{name} must be True or False, got 'no'",))
        for i, (name, call) in enumerate(
            (
                ("replace", lambda: rfk.register("own", FEATURES.map, replace="no")),
                ("check_finite", lambda: rfk.fit_groups(Q, K, 2, check_finite="no")),
                ("check_finite", lambda: rfk.heavy_keys(Q, K, 2, check_finite="no")),
                ("log", lambda: rfk.variance.relative("positive", Q, Q, count=4, log="no")),
                ("log", lambda: rfk.variance.coupling_moment("simplex", 1.0, 3, log="no")),
                ("causal", lambda: rfk.variance.attention_error("positive", Q, K, V, count=4, causal="no")),
                ("relative", lambda: rfk.variance.attention_error("positive", Q, K, V, count=4, relative="no")),
                ("log", lambda: rfk.materialized.transform(Q, TAYLOR, side="key", log="no")),
                ("check_finite", lambda: rfk.materialized.log_kernel(Q, Q, TAYLOR, check_finite="no")),
                ("log", lambda: rfk.materialized.relative_error(Q, Q, TAYLOR, log="no")),
                ("each", lambda: rfk.materialized.optimal_rate(Q, Q, each="no")),
            )
        )
    ),
    ("reading a decode state", lambda: read(DECODE), TypeError, ("state", "DecodeState")),
    ("decode state without window", lambda: attend(causal=True, state=DECODE), TypeError, ("DecodeState", "window=")),
    (
        "state with window",
        lambda: attend(causal=True, window=4, state=STATE),
        TypeError,
        ("DecodeState", "window", "State"),
    ),
    (
        "decode state of a wider window",
        lambda: attend(causal=True, window=3, state=DECODE),
        ValueError,
        ("window of 4", "3"),
    ),
    *(
        (
            f"decode state with {field} of {type(x).__name__}",
            lambda field=field, x=x: attend(causal=True, window=4, state=DECODE._replace(**{field: x})),
            error,
            words,
        )
        for field, x, error, words in (
            ("keys", np.ones((4, DIM), int), TypeError, ("state.keys", "dtypes", "int64")),
            ("keys", [[1.0] * DIM] * 4, TypeError, ("state.keys", "list")),
            ("values", np.ma.ones((4, WIDTH)), TypeError, ("state.values", "MaskedArray")),
            ("values", np.ones((3, 4, WIDTH)), ValueError, ("state.values (3,)", "k (2,)")),
            ("mask", [True] * 4, TypeError, ("state.mask", "list")),
            ("mask", np.ones((3, 4), bool), ValueError, ("state.mask (3,)", "k (2,)")),
            ("position", "0", TypeError, ("state.position", "'0'")),
        )
    ),
    ("bidirectional decode state", lambda: attend(window=4, state=DECODE), ValueError, ("state=", "bidirectional")),
    ("bidirectional state and window", lambda: attend(window=4, state=STATE), ValueError, ("state=", "bidirectional")),
    ("merging features", lambda: rfk.merge_states(STATE, FEATURES), TypeError, ("second", "Features")),
    ("merging decode states", lambda: rfk.merge_states(DECODE, STATE), TypeError, ("first", "DecodeState")),
    (
        "merging other counts",
        lambda: rfk.merge_states(STATE, rfk.empty_state(draw(dim=DIM, count=8), WIDTH)),
        ValueError,
        ("count, width", "(6, 3)", "(8, 3)"),
    ),
    (
        "merging other widths",
        lambda: rfk.merge_states(STATE, rfk.empty_state(FEATURES, 2)),
        ValueError,
        ("count, width", "(6, 3)", "(6, 2)"),
    ),
    (
        "dtype of a state",
        lambda: rfk.empty_state(FEATURES, 3, dtype=np.float16),
        ValueError,
        ("float32 or float64", "float16"),
    ),
    ("width of a state", lambda: rfk.empty_state(FEATURES, -1), ValueError, ("width", "-1")),
    ("window of a state", lambda: rfk.empty_state(FEATURES, 3, window=0), ValueError, ("window", "0")),
]

DRAWING: list[Refusal] = [
    ("unknown map", lambda: draw("Positive"), ValueError, ("unknown", "'Positive'", ", ".join(rfk.names()))),
    ("map is a number", lambda: draw(3), TypeError, ("feature_map", "int")),
    ("map is a function", lambda: draw(oracle.softplus), TypeError, ("feature_map", "function")),
    ("unknown sampler", lambda: draw(sampler="sobel"), ValueError, ("'sobel'", "antithetic, cauchy, hadamard")),
    ("sampler is a number", lambda: draw(sampler=1), TypeError, ("sampler", "1")),
    (
        "sampler of another shape",
        lambda: draw(sampler=lambda n, m, d: n((d, m))),
        ValueError,
        ("sampler", "(3, 4)", "(4, 3)"),
    ),
    ("odd count of activations", lambda: draw("hyperbolic", count=5), ValueError, ("count", "multiple", "2", "5")),
    ("odd antithetic count", lambda: draw(count=5, sampler="antithetic"), ValueError, ("even", "5")),
    ("odd antithetic rows", lambda: draw("hyperbolic", count=6, sampler="antithetic"), ValueError, ("even", "3")),
    *((f"dim is {x!r}", lambda x=x: draw(dim=x), ValueError, ("dim", repr(x))) for x in (0, -1, 2.0, True, "4", None)),
    *((f"count is {x!r}", lambda x=x: draw(count=x), ValueError, ("count", repr(x))) for x in (0, -2, 4.0, True)),
    *(
        (f"scale is {x!r}", lambda x=x: draw(scale=x), ValueError, ("scale", "positive finite"))
        for x in (0.0, -1.0, float("nan"), float("inf"), "1", True)
    ),
    *(
        (
            f"rng is of type {type(x).__name__}",
            lambda x=x: draw(rng=x),
            TypeError,
            ("rng", "SeedSequence", type(x).__name__),
        )
        for x in (None, 1.5, "seed", True, np.random.RandomState(0))
    ),
    ("rng is left out", lambda: rfk.draw("positive", 3, 4), TypeError, ("rng",)),
]


@pytest.mark.parametrize("refusal", [*SHAPES, *TYPES, *STATES, *DRAWING], ids=lambda refusal: refusal[0])
def test_refused(refusal: Refusal) -> None:
    _, call, error, says = refusal
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) in (TypeError, ValueError)  # not one of NumPy's own
    for words in says:
        assert words in str(caught.value), f"{str(caught.value)!r} does not say {words!r}"


def test_scales_may_be_arrays_of_no_axes() -> None:
    for call in EXACT.values():
        for one in (np.array(0.5), np.float32(0.5), np.array(0.5, ml_dtypes.bfloat16)):
            np.testing.assert_array_equal(call(one), call(0.5))
        np.testing.assert_array_equal(call(np.array(2)), call(2.0))


def test_bad_values_of_exact_kernels_are_not_said_to_pass() -> None:
    bad = np.where(np.arange(DIM) == 1, np.nan, Q)
    for call in (rfk.exact_log_kernel, rfk.exact_log_normalizer):
        with pytest.raises(ValueError, match=r"must be finite, but (y|keys)\[0, 0, 1\] is nan$"):
            call(Q, bad)


@pytest.mark.parametrize("kind", ["draw", "fit", "hybrid"])
def test_what_is_no_single_key_is_named(kind: str) -> None:
    jax = pytest.importorskip("jax")
    sample = jax.numpy.asarray(K)
    make: dict[str, Callable[[Any], Any]] = {
        "draw": lambda rng: draw(rng=rng).projection,
        "fit": lambda rng: rfk.fit(sample, sample, 8, rng=rng).projection,
        "hybrid": lambda rng: rfk.materialized.draw_angular_hybrid(4, 16, directions=1, rng=rng).directions,
    }
    call, key, raw = make[kind], jax.random.key(0), jax.random.PRNGKey(0)
    for none in (jax.random.split(key, 3), jax.random.split(raw, 3), raw[:1], jax.numpy.ones(2), jax.numpy.array(3)):
        with pytest.raises(TypeError, match=rf"rng must be .* a single JAX key, got .*{re.escape(str(none.shape))}"):
            call(none)
    with pytest.raises(TypeError, match=r"rng must be .* got .*int32 and shape \(\).*static_argnames"):
        jax.jit(call)(3)
    for one in (key, raw):
        np.testing.assert_allclose(jax.jit(call)(one), call(one), rtol=1e-5, atol=1e-6)
    assert jax.jit(jax.vmap(call))(jax.random.split(key, 3)).shape == (3, *call(key).shape)


@pytest.mark.parametrize("name", ["causal", "full", "error"])
def test_a_traced_flag_is_named(name: str) -> None:
    jax = pytest.importorskip("jax")
    q, k, v = map(jax.numpy.asarray, (Q, K, V))
    with pytest.raises(TypeError, match=rf"{name} must be True or False, got .*bool\[\].*static_argnames"):
        jax.jit(lambda flag: rfk.attention(q, k, v, FEATURES, **{name: flag}))(True)
    for call in (rfk.exact_attention, rfk.linear_attention):
        with pytest.raises(TypeError, match=r"causal must be True or False, got .*static_argnames"):
            jax.jit(lambda flag, call=call: call(k, k, v, causal=flag))(True)


@pytest.mark.parametrize("backend", EVERY)
def test_flags_may_be_of_numpy(backend: str) -> None:
    q, k, v = (oracle.place(x, backend) for x in (K, K, V))
    want = rfk.attention(q, k, v, FEATURES, causal=True, full=True, backend=backend).output
    flags = {"causal": np.bool_(True), "full": np.bool_(True), "error": np.bool_(False)}
    np.testing.assert_array_equal(rfk.attention(q, k, v, FEATURES, **flags, backend=backend).output, want)


def test_jax_arrays_are_not_for_other_backends() -> None:
    import jax.numpy as jnp

    for backend in ("numpy", "numba"):
        with pytest.raises(TypeError, match=f"'{backend}' takes numpy arrays.*numpy.asarray"):
            attend(jnp.asarray(Q), jnp.asarray(K), jnp.asarray(V), backend=backend)
    with pytest.raises(TypeError, match="q must have one of the dtypes"):
        attend(jnp.ones((5, 4), int), backend="jax")


def test_numpy_arrays_go_to_jax_where_it_is_named() -> None:
    import jax

    calls: tuple[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]], ...] = (
        (rfk.transform, (Q, FEATURES), {"side": "query"}),
        (rfk.linear_attention, (Q, K, V), {}),
        (rfk.exact_attention, (Q, K, V), {}),
    )
    for call, arguments, options in calls:
        found = call(*arguments, backend="jax", **options)
        assert isinstance(found, jax.Array)
        np.testing.assert_allclose(found, call(*arguments, backend="numpy", **options), rtol=1e-4)


def test_a_backend_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from rfkernels import backends

    monkeypatch.setitem(backends._MODULES, "absent", "rfkernels_has_no_such_module")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rfkernels\[absent\]'"):
        attend(backend="absent")


# NaN and infinity


BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda x: x.copy(),
    "fortran": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(np.swapaxes(x, -2, -3)).swapaxes(-2, -3),
    "every second row": lambda x: np.repeat(x, 2, -2)[..., ::2, :],
    "every third column": lambda x: np.repeat(x, 3, -1)[..., ::3],
    "backwards": lambda x: x[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "heads backwards": lambda x: x[::-1].copy()[::-1],
    "inside a larger array": lambda x: np.pad(x, [(1, 2)] * x.ndim)[tuple(slice(1, -2) for _ in range(x.ndim))],
    "columns outermost": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0, -1),
    "not aligned": lambda x: _unaligned(x),
}


def _unaligned(x: Any) -> Any:
    buffer = np.zeros(x.nbytes + 1, np.uint8)
    view = buffer[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def refused(message: str, backend: str, arrays: dict[str, Any], **options: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(message)), oracle.precision(backend, arrays["q"].dtype):
        placed = {name: oracle.place(x, backend) for name, x in arrays.items()}
        rfk.attention(**placed, features=FEATURES, backend=backend, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_bad_value_is_named(backend: str, layout: str) -> None:
    rng = np.random.default_rng(0)
    for name, bad, dtype in itertools.product("qkv", BAD, ("float32", "float64", "bfloat16", "float16")):
        arrays = {
            x: rng.standard_normal((2, 3, 70, n)).astype(oracle.DTYPES[dtype])
            for x, n in zip("qkv", (4, 4, 3), strict=True)
        }
        shape = arrays[name].shape
        first, second = sorted(tuple(int(rng.integers(n)) for n in shape) for _ in range(2))
        arrays[name][first] = arrays[name][second] = BAD[bad]
        arrays[name] = LAYOUTS[layout](arrays[name])
        options = [{}, {"causal": True}, {"window": 5}, {"causal": True, "window": 5}][int(rng.integers(4))]
        refused(f"{name} must be finite, but {name}{list(first)} is {bad}", backend, arrays, **options)


@pytest.mark.parametrize("backend", EVERY)
def test_bad_values_are_found_wherever_they_are(backend: str) -> None:
    """In the first and the last row, in rows that no query sees, in short sequences, in broadcast arrays."""
    rng = np.random.default_rng(0)
    for name, position, options in itertools.product(
        "qkv", (0, 3, 4), ({}, {"causal": True}, {"causal": True, "window": 2})
    ):
        arrays = {x: rng.standard_normal((5, n)).astype(np.float32) for x, n in zip("qkv", (4, 4, 3), strict=True)}
        arrays[name][position, 1] = np.nan
        refused(f"{name} must be finite, but {name}[{position}, 1] is nan", backend, arrays, **options)
        if name != "q":  # fewer queries than keys, and none at all
            refused(f"{name}[{position}, 1] is nan", backend, {**arrays, "q": arrays["q"][:0]}, **options)
        else:
            nothing = {"k": arrays["k"][:0], "v": arrays["v"][:0]}
            refused(f"q[{position}, 1] is nan", backend, {**arrays, **nothing}, **options)
    arrays = {x: np.ones((3, 5, n), np.float32) for x, n in zip("qkv", (4, 4, 3), strict=True)}
    row = np.array([1, 1, np.inf, 1], np.float32)
    refused("k[0, 0, 2] is inf", backend, {**arrays, "k": np.broadcast_to(row, (3, 5, 4))})


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_values_in_a_stream_are_named_by_their_own_index(backend: str) -> None:
    """Not by that in the keys kept from before, to which the new ones are joined."""
    state = attend(ones(9, DIM), ones(9, DIM), ones(9, WIDTH), causal=True, window=4, full=True, backend=backend).state
    for name, index in itertools.product("qkv", (0, 2, 4)):
        arrays = {"q": ones(5, DIM), "k": ones(5, DIM), "v": ones(5, WIDTH)}
        arrays[name][index, 1] = np.nan
        refused(f"{name}[{index}, 1] is nan", backend, arrays, causal=True, window=4, state=state)


@pytest.mark.parametrize("backend", EVERY)
def test_masked_keys_are_checked_too(backend: str) -> None:
    for name, index in itertools.product("kv", (0, 69)):
        arrays = {"q": ones(70, DIM), "k": ones(70, DIM), "v": ones(70, WIDTH)}
        arrays[name][index, 2] = np.nan
        for mask, options in itertools.product(
            (np.arange(70) != index, np.zeros(70, bool)),
            ({}, {"causal": True}, {"causal": True, "window": 3})[: 1 if backend == "jax" else 3],
        ):
            refused(f"{name}[{index}, 2] is nan", backend, arrays, mask=oracle.place(mask, backend), **options)


@pytest.mark.filterwarnings("ignore::rfkernels.uncertainty.UntrustedErrorWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy says so of what is dropped afterwards
@pytest.mark.parametrize("backend", EVERY)
def test_masked_rows_that_are_let_pass_reach_nothing(backend: str) -> None:
    """Those that JAX traces are always let pass."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((6, DIM), dtype=np.float32) for _ in range(3))
    state, mask = rfk.empty_state(FEATURES, DIM), np.arange(6) != 3
    fixed = {"mask": oracle.place(mask, backend), "backend": backend, "check_finite": False}
    calls: dict[str, Callable[..., Any]] = {
        "exact": lambda k, v: rfk.exact_attention(q, k, v, **fixed),
        "given": lambda k, v: rfk.linear_attention(abs(q), abs(k), v, **fixed),
        "causal, given": lambda k, v: rfk.linear_attention(abs(q), abs(k), v, **fixed, causal=True),
    }
    if backend == "jax":
        import jax

        fixed["check_finite"] = True
        calls = {name: jax.jit(call) for name, call in calls.items()}
    else:
        calls["sums"] = lambda k, v: rfk.attention(q, k, v, FEATURES, **fixed)
        calls["causal"] = lambda k, v: rfk.attention(q, k, v, FEATURES, **fixed, causal=True, window=2)
        calls["errors"] = lambda k, v: rfk.attention(q, k, v, ERRORS, **fixed, full=True, error=True).error.output
        calls["written"] = lambda k, v: rfk.write_state(state, k, v, FEATURES, **fixed).kv
    for name, call in calls.items():
        expected = np.asarray(call(*(oracle.place(x, backend) for x in (k, v))))
        for number, of_values in itertools.product((np.nan, np.inf), (False, True)):
            rows = [k.copy(), v.copy()]
            rows[of_values][3, 0] = number
            got = np.asarray(call(*(oracle.place(x, backend) for x in rows)))
            np.testing.assert_allclose(got, expected, 1e-5, 1e-6, err_msg=f"{name} {number}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_no_width_all_keys_count_alike(backend: str) -> None:
    nothing, v = ones(4, 0), np.arange(8.0).reshape(4, 2)
    expected = np.broadcast_to(v.mean(0), v.shape)
    for groups in (None, 4):
        given = {} if groups is None else {"groups": groups}
        run = rfk.exact_attention if groups is None else rfk.attention
        np.testing.assert_allclose(run(nothing, nothing, v, backend=backend, **given), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_values_in_states_writes_and_kernels(backend: str) -> None:
    bad = ones(70, DIM)
    bad[66, 1] = np.inf
    calls = {
        "k": lambda: rfk.write_state(STATE, bad, ones(70, WIDTH), FEATURES, backend=backend),
        "v": lambda: rfk.write_state(rfk.empty_state(FEATURES, DIM), ones(70, DIM), bad, FEATURES, backend=backend),
        "q": lambda: rfk.read_state(STATE, bad, FEATURES, backend=backend),
        "x": lambda: rfk.transform(bad, FEATURES, side="query"),
        "phi_k": lambda: rfk.linear_attention(ones(70, DIM), bad, bad),
        "y": lambda: rfk.log_kernel(ones(70, DIM), bad, FEATURES),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=re.escape(f"{name} must be finite, but {name}[66, 1] is inf")):
            call()
    for call in (
        lambda: rfk.exact_attention(ones(70, DIM), bad, bad),
        lambda: rfk.exact_log_normalizer(ones(70, DIM), bad),
        lambda: rfk.log_normalizer(ones(70, DIM), bad, FEATURES, backend=backend),
    ):
        with pytest.raises(ValueError, match=re.escape("[66, 1] is inf")):
            call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_log_normalizer_names_its_own_arguments(backend: str) -> None:
    bad = ones(5, DIM)
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match=re.escape("queries must be finite, but queries[2, 1] is nan")):
        rfk.log_normalizer(bad, ones(5, DIM), FEATURES, backend=backend)
    with pytest.raises(ValueError, match=re.escape("keys must be finite, but keys[2, 1] is nan")):
        rfk.log_normalizer(ones(5, DIM), bad, FEATURES, backend=backend)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy says so where NaN and infinity are let pass
@pytest.mark.parametrize("backend", EVERY)
def test_check_finite_false_lets_bad_values_pass(backend: str) -> None:
    rng = np.random.default_rng(0)
    for name, options in itertools.product("qv", ({}, {"causal": True}, {"causal": True, "window": 2})):
        arrays = {x: rng.standard_normal((6, n)).astype(np.float32) for x, n in zip("qkv", (4, 4, 3), strict=True)}
        expected = rfk.attention(
            **{x: oracle.place(y, backend) for x, y in arrays.items()}, features=FEATURES, backend=backend, **options
        )
        arrays[name][4, 1] = np.nan
        placed = {x: oracle.place(y, backend) for x, y in arrays.items()}
        got = np.asarray(rfk.attention(**placed, features=FEATURES, backend=backend, check_finite=False, **options))
        assert np.isnan(got).any()
        if name == "q":  # a bad query spoils its own row alone
            rows = np.arange(6) != 4
            np.testing.assert_allclose(got[rows], np.asarray(expected)[rows], rtol=1e-5, atol=1e-6)
        else:  # a bad value spoils its own column alone
            np.testing.assert_allclose(got[:, [0, 2]], np.asarray(expected)[:, [0, 2]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", EVERY)
def test_a_refused_call_leaves_nothing_behind(backend: str) -> None:
    """After an error the same call with good input is right."""
    good = {"q": ones(70, DIM), "k": ones(70, DIM), "v": ones(70, WIDTH)}
    bad = {**good, "k": np.where(np.arange(70)[:, None] == 60, np.float32(np.nan), good["k"])}
    refused("k[60, 0] is nan", backend, bad)
    placed = {name: oracle.place(x, backend) for name, x in good.items()}
    np.testing.assert_allclose(np.asarray(rfk.attention(**placed, features=FEATURES, backend=backend)), 1, rtol=1e-6)


# Memory layouts


def in_layouts(one: str, two: str, three: str, dtype: Any, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays in three layouts, and the same in plain ones."""
    rng = np.random.default_rng(seed)
    plain = {x: rng.standard_normal((2, 3, 45, n)).astype(dtype) for x, n in zip("qkv", (4, 4, 19), strict=True)}
    return {x: LAYOUTS[layout](plain[x]) for x, layout in zip("qkv", (one, two, three), strict=True)}, plain


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=3, max_size=3),
    st.sampled_from(sorted(oracle.DTYPES)),
    st.sampled_from([{}, {"causal": True}, {"window": 5}, {"causal": True, "window": 40}]),
    st.integers(0, 1 << 16),
)
def test_any_memory_layout_gives_the_same(
    backend: str, layouts: list[str], dtype: str, options: dict[str, Any], seed: int
) -> None:
    given, plain = in_layouts(*layouts, oracle.DTYPES[dtype], seed)
    for x in given.values():
        x.flags.writeable = False
    kept = {name: x.copy() for name, x in given.items()}
    got = rfk.attention(**given, features=FEATURES, backend=backend, **options)
    expected = rfk.attention(**plain, features=FEATURES, backend=backend, **options)
    oracle.check_same(got, expected, 4.0, 10.0)
    assert got.dtype.isnative
    for name, x in given.items():
        np.testing.assert_array_equal(x, kept[name])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_memory_layout_in_every_function(backend: str, layout: str) -> None:
    for dtype in (np.float32, np.float64):
        given, plain = in_layouts(layout, layout, layout, dtype, 3)

        def results(q: Any, k: Any, v: Any) -> list[Any]:
            state = rfk.write_state(rfk.empty_state(FEATURES, 19, (2, 3)), k, v, FEATURES, backend=backend)
            return [
                rfk.read_state(state, q, FEATURES, backend=backend),
                rfk.transform(q, FEATURES, side="query"),
                rfk.log_normalizer(q, k, FEATURES, backend=backend),
                rfk.log_kernel(q, k, FEATURES),
                rfk.exact_attention(q, k, v),
                rfk.exact_log_normalizer(q, k),
                rfk.exact_log_kernel(q, k),
                rfk.linear_attention(np.abs(q), np.abs(k), v, causal=True),
            ]

        for got, expected in zip(results(**given), results(**plain), strict=True):
            oracle.check_same(got, expected, 16.0, 10.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_foreign_byte_order_is_refused(backend: str, kind: str) -> None:
    """As read from a file of another machine; by name, with what converts it."""
    plain = {name: np.ones((7, n), kind) for name, n in zip("qkv", (4, 4, 19), strict=True)}
    for name in plain:
        foreign = {**plain, name: plain[name].astype(plain[name].dtype.newbyteorder(">"))}
        with pytest.raises(TypeError, match=f"{name} must be in this machine's byte order, got >{kind}.*newbyteorder"):
            rfk.attention(*foreign.values(), FEATURES, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_broadcast_inputs_equal_their_copies(backend: str) -> None:
    rng = np.random.default_rng(0)
    row, column = rng.standard_normal(DIM).astype(np.float32), rng.standard_normal((70, 1)).astype(np.float32)
    keys, one = rng.standard_normal((70, DIM)).astype(np.float32), np.float32(1.5)
    for q, k, v in (
        (np.broadcast_to(row, (70, DIM)), keys, np.broadcast_to(column, (70, WIDTH))),
        (keys, np.broadcast_to(row, (70, DIM)), np.broadcast_to(one, (70, WIDTH))),
        (
            np.broadcast_to(keys, (2, 3, 70, DIM)),
            np.broadcast_to(keys, (2, 1, 70, DIM)),
            np.broadcast_to(column, (3, 70, WIDTH)),
        ),
    ):
        mask = np.broadcast_to(np.True_, k.shape[:-1])
        for options in ({}, {"causal": True}, {"causal": True, "window": 5}):
            got = rfk.attention(q, k, v, FEATURES, mask=mask, backend=backend, **options)
            copies = (x.copy() for x in (q, k, v))
            oracle.check_same(got, rfk.attention(*copies, FEATURES, backend=backend, **options), 4.0, 10.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_in_any_layout(backend: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 3, 70, n)) for n in (DIM, DIM, WIDTH))
    plain = rng.random((2, 3, 70)) < 0.5
    layouts = {
        "read-only": plain.copy(),
        "backwards": plain[..., ::-1].copy()[..., ::-1],
        "every second": np.repeat(plain, 2, -1)[..., ::2],
        "fortran": np.asfortranarray(plain),
        "odd bytes": plain.view(np.uint8).view(bool),
        "keys outermost": np.moveaxis(np.moveaxis(plain, -1, 0).copy(), 0, -1),
    }
    layouts["read-only"].flags.writeable = False
    for options in ({}, {"causal": True}, {"causal": True, "window": 5}, {"window": 5}):
        expected = rfk.attention(q, k, v, FEATURES, mask=plain, backend=backend, **options)
        for name, mask in layouts.items():
            got = rfk.attention(q, k, v, FEATURES, mask=mask, backend=backend, **options)
            oracle.check_same(got, expected, 4.0, 10.0, f"{name} {options}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_and_heads_swapped_by_a_view_are_taken_as_they_are(backend: str) -> None:
    """(B, L, H, d) arrays, as most frameworks keep them, without a copy."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 66, 3, n)).astype(np.float32) for n in (DIM, DIM, WIDTH))
    views = [np.swapaxes(x, 1, 2) for x in (q, k, v)]
    got = rfk.attention(*views, FEATURES, causal=True, backend=backend)
    oracle.check_output(got, oracle.expect(*views, FEATURES, causal=True), np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_own_their_memory(backend: str) -> None:
    """Results may be written to, share nothing with the inputs, and stay when the inputs change."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((3, 9, n)) for n in (DIM, DIM, WIDTH))
    mask = rng.random((3, 9)) < 0.8
    for options in ({}, {"causal": True}, {"causal": True, "window": 4}, {"window": 4}):
        inputs = [x.copy() for x in (q, k, v, mask)]
        result = rfk.attention(*inputs[:3], FEATURES, mask=inputs[3], full=True, backend=backend, **options)
        state = result.state
        parts = [state.state, state.keys, state.values, state.mask] if isinstance(state, rfk.DecodeState) else [state]
        found = [result.output, result.log_normalizer, result.sign]
        for part in parts:
            found.extend(part if isinstance(part, tuple) else [] if part is None else [part])
        kept = [x.copy() for x in found]
        assert result.output.flags.writeable
        assert all(not np.shares_memory(x, y) for x in found for y in inputs), options
        for x in inputs:
            x[...] = 0
        for x, y in zip(found, kept, strict=True):
            np.testing.assert_array_equal(x, y)
        result.output[...] = 7


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk", [1, 4, 10])
def test_a_state_outlives_a_buffer_that_is_used_again(backend: str, chunk: int) -> None:
    """Keys arrive in one buffer, chunk after chunk, as from a socket; and it keeps little alive but itself."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((40, n)) for n in (DIM, DIM, WIDTH))
    expected = rfk.attention(q, k, v, FEATURES, causal=True, window=6, backend="numpy")
    buffers, state, outputs = [np.empty((chunk, n)) for n in (DIM, DIM, WIDTH)], None, []
    for start in range(0, 40, chunk):
        for buffer, x in zip(buffers, (q, k, v), strict=True):
            buffer[...] = x[start : start + chunk]
        result = rfk.attention(*buffers, FEATURES, causal=True, window=6, state=state, full=True, backend=backend)
        state = result.state
        outputs.append(result.output)
        assert all(x.base is None or x.base.nbytes <= 2 * x.nbytes for x in (state.keys, state.values, state.mask))
    np.testing.assert_allclose(np.concatenate(outputs), expected, rtol=1e-9, atol=1e-9)


# Mixtures


@pytest.mark.parametrize("backend", EVERY)
def test_mixed_dtypes_promote(backend: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((6, n)) for n in (DIM, DIM, WIDTH))
    for one, two, three, result in (
        ("float32", "float64", "float16", "float64"),
        ("float16", "float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "float32", "float32"),
        ("float64", "bfloat16", "bfloat16", "float64"),
        ("bfloat16", "float32", "bfloat16", "float32"),
    ):
        arrays = [x.astype(oracle.DTYPES[name]) for x, name in zip((q, k, v), (one, two, three), strict=True)]
        expected = oracle.expect(*arrays, FEATURES)
        wide = np.float64 if "float64" in (one, two, three) else np.float32
        with oracle.precision(backend, wide):
            got = rfk.attention(*(oracle.place(x, backend) for x in arrays), FEATURES, backend=backend)
        oracle.check_output(got, expected, oracle.DTYPES[result])


def test_what_is_traced_beside_numpy_arrays_is_named() -> None:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    mask, segments = jnp.ones(7, bool), jnp.zeros(7, int)
    features = jax.tree.map(jnp.asarray, FEATURES)
    for name, traced, call in (
        ("mask", mask, lambda x: rfk.exact_attention(Q, K, V, mask=x)),
        ("mask", mask, lambda x: rfk.linear_attention(Q, K, V, mask=x)),
        ("segment_ids", segments, lambda x: rfk.exact_attention(K, K, V, segment_ids=x)),
        ("scale", 0.5, lambda x: rfk.exact_attention(Q, K, V, scale=x)),
        ("features", features, lambda x: rfk.attention(Q, K, V, x)),
        ("features", features, lambda x: rfk.write_state(STATE, K, V, x)),
        ("features", features, lambda x: rfk.read_state(STATE, Q, x)),
        ("features", features, lambda x: rfk.transform(Q, x, side="key")),
        ("features", features, lambda x: rfk.log_kernel(Q, Q, x)),
        ("features", features, lambda x: rfk.log_normalizer(Q, K, x)),
    ):
        with pytest.raises(TypeError, match=rf"{name} is traced by JAX, but the others are NumPy arrays"):
            jax.jit(call)(traced)
    out = jax.jit(lambda x: rfk.attention(Q, K, V, x, backend="jax"))(features)
    np.testing.assert_allclose(out, attend(), rtol=1e-5)


def test_jax_without_float64_takes_numpy_arrays_of_it() -> None:
    """NumPy's own dtype, beside arrays of JAX: without a warning, and as if it were float32."""
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(0)
    double = rng.standard_normal((6, DIM))
    with jax.enable_x64(False):
        single, one = jax.numpy.asarray(double), jax.numpy.asarray(rng.standard_normal((6, DIM)))
        calls: dict[str, Callable[[Any], Any]] = {
            "features": lambda k: rfk.attention(one, k, k, FEATURES, causal=True, full=True),
            "window": lambda k: rfk.attention(one, k, k, FEATURES, causal=True, window=2, full=True),
            "groups": lambda k: rfk.attention(one, k, k, groups=2, full=True),
            "merged groups": lambda k: rfk.attention(one, k, k, groups=2, causal=True, full=True),
            "given features": lambda k: rfk.linear_attention(one, k, k),
            "given features, causal": lambda k: rfk.linear_attention(one, k, k, causal=True),
            "exact": lambda k: rfk.exact_attention(one, k, k),
            "exact sums": lambda k: rfk.exact_log_normalizer(one, k),
            "exact kernels": lambda k: rfk.exact_log_kernel(one, k),
            "kernels": lambda k: rfk.log_kernel(one, k, FEATURES),
        }
        for name, call in calls.items():
            got, expected = jax.tree.leaves(call(double)), jax.tree.leaves(call(single))
            for x, y in zip(got, expected, strict=True):
                assert np.asarray(x).dtype == np.asarray(y).dtype, name
                np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg=name)


def test_numpy_arrays_with_jax_features_states_and_masks() -> None:
    """What was made by one library works with arrays of the other, or is refused with an error that says so."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((6, n)).astype(np.float32) for n in (DIM, DIM, WIDTH))
    mask = np.arange(6) != 2
    features = rfk.draw("positive", DIM, COUNT, rng=jax.random.key(0))
    plain = dataclasses.replace(
        features, **{name: np.asarray(getattr(features, name)) for name in ("projection", "log_weight", "scale")}
    )
    for backend in ("numpy", oracle.DEFAULT):
        got = rfk.attention(q, k, v, features, causal=True, backend=backend)
        assert isinstance(got, np.ndarray)
        oracle.check_output(got, oracle.expect(q, k, v, plain, causal=True), np.float32)
        try:
            got = rfk.attention(q, k, v, plain, mask=jnp.asarray(mask), backend=backend)
        except TypeError as error:
            assert "mask" in str(error)
        else:
            oracle.check_output(np.asarray(got), oracle.expect(q, k, v, plain, mask=mask), np.float32)
    on_jax = rfk.attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), plain, mask=mask)
    oracle.check_output(on_jax, oracle.expect(q, k, v, plain, mask=mask), np.float32)
    assert isinstance(on_jax, jax.Array)
    state = rfk.write_state(rfk.empty_state(plain, WIDTH), jnp.asarray(k), jnp.asarray(v), plain)
    try:
        got = rfk.read_state(state, q, plain)
    except TypeError as error:
        assert "jax" in str(error).lower()
    else:
        oracle.check_output(np.asarray(got), oracle.expect(q, k, v, plain), np.float32)
    try:
        got = rfk.attention(q, k, v, plain, state=state)
    except TypeError as error:
        assert "jax" in str(error).lower()
    else:
        twice = oracle.expect(q, np.concatenate([k, k]), np.concatenate([v, v]), plain)
        oracle.check_output(np.asarray(got), twice, np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_changed_in_place_are_read_anew(backend: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((6, n)) for n in (DIM, DIM, WIDTH))
    writable = {name: np.array(getattr(FEATURES, name)) for name in ("projection", "log_weight", "scale")}
    side = rfk.Side(np.eye(DIM), np.zeros(DIM), np.zeros(DIM))
    features = dataclasses.replace(FEATURES, **writable, query=side, key=side)
    for array in (*writable.values(), *side):
        rfk.attention(q, k, v, features, backend=backend)
        array[...] = rng.uniform(0.5, 1.0, array.shape)
        got = rfk.attention(q, k, v, features, backend=backend)
        oracle.check_output(got, oracle.expect(q, k, v, features), np.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("matrix", np.ones(DIM)),
        ("matrix", np.ones((DIM, DIM + 1))),
        ("centre", np.ones(1)),
        ("centre", np.ones((2, DIM))),
        ("linear", np.ones(())),
        ("linear", [0.0] * DIM),
        ("log_weight", np.zeros(1)),
        ("projection", np.ones(DIM)),
    ],
)
def test_features_made_by_hand_must_fit_together(backend: str, name: str, given: Any) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 6, n)) for n in (DIM, DIM, WIDTH))
    own = {name: given} if hasattr(FEATURES, name) else {"key": rfk.Side(**{name: given})}
    with pytest.raises(ValueError, match=rf"features\.(key\.)?{name} must be an array \(\*batch, "):
        rfk.attention(q, k, v, dataclasses.replace(FEATURES, **own), backend=backend)


def test_drawn_features_do_not_depend_on_what_was_drawn_before() -> None:
    one, two = draw(), draw()
    np.testing.assert_array_equal(one.projection, two.projection)
    sequence = np.random.SeedSequence(5)
    np.testing.assert_array_equal(draw(rng=sequence).projection, draw(rng=np.random.SeedSequence(5)).projection)
    generator = np.random.default_rng(5)
    first, second = draw(rng=generator), draw(rng=generator)
    assert not np.array_equal(first.projection, second.projection)
    np.testing.assert_array_equal(first.projection, draw(rng=np.random.default_rng(5)).projection)
    per_head = draw(batch=(2, 3))
    assert per_head.projection.shape == (2, 3, 4, 3)
    assert per_head.batch == (2, 3)
    assert len(np.unique(per_head.projection)) == per_head.projection.size
    assert float(draw(dim=16).scale) == 0.25
    assert float(draw(scale=2).scale) == 2.0


def test_nearly_everything_of_size_one_or_zero_works() -> None:
    for backend, length, keys, width in itertools.product(("numpy", oracle.DEFAULT), (0, 1), (0, 1), (0, 1)):
        features = rfk.draw("positive", 1, 1, rng=0)
        q, k, v = ones(length, 1), ones(keys, 1), ones(keys, width)
        for options in ({}, {"causal": True}, {"causal": True, "window": 1}, {"window": 1}):
            result = rfk.attention(q, k, v, features, full=True, backend=backend, **options)
            assert result.output.shape == (length, width)
            assert result.log_normalizer.shape == (length,)
            assert (result.output == min(keys, 1)).all()
