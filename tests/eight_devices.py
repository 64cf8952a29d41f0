"""Checks of sharded attention, run as a script in a process of its own that simulates eight devices.

`test_sharding.py` starts it and reports each check as a test. Arguments are the names of checks, all by default. It prints one
line of JSON for each: its name, what went wrong (empty if nothing did), and how many seconds it took.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import math
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

FLAGS = "--xla_force_host_platform_device_count=8"
DEVICES, PART = 8, 70  # the positions of a device are more than a causal pass takes at a time
DIM, ROWS, WIDTH = 4, 4, 3
CHECKS: dict[str, Callable[[], None]] = {}
MAPS = ("positive", "trigonometric", "relu")

Arrays = dict[str, Any]


def check(*cases: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a check, once for each tuple of arguments."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__.replace("_", " ")
        for case in cases or [()]:
            label = ", ".join([name, *map(str, case)])
            CHECKS[label] = functools.partial(function, *case)
        return function

    return register


# Inputs and references


def mesh(devices: int = DEVICES, name: str = "sequence") -> Any:
    import jax

    return jax.sharding.Mesh(np.array(jax.devices()[:devices]), (name,))


def features(name: str = "positive", **options: Any) -> Any:
    import rfkernels as rfk

    return rfk.draw(name, DIM, ROWS * len(rfk.lookup(name).activations), rng=0, **options)


def inputs(length: int, seed: int = 0, batch: tuple[int, ...] = (2,), **batches: tuple[int, ...]) -> Arrays:
    import jax.numpy as jnp

    rng = np.random.default_rng(seed)
    width = {"q": DIM, "k": DIM, "v": WIDTH}
    return {x: jnp.asarray(rng.standard_normal((*batches.get(x, batch), length, n))) for x, n in width.items()}


def jumping(given: Arrays, part: int = PART) -> Arrays:
    """Make the norms of keys jump thirtyfold from device to device.

    In the first head up and down, large throughout at first; in the second only down, so that the keys of all devices weigh.
    """
    device = np.arange(given["k"].shape[-2]) // part
    size = np.array([[30, 30, 1, 1 / 30, 30, 1, 30, 1], [1, 1 / 30] * 4])[:, device]
    return {**given, "k": given["k"] * size[..., None]}


def dense(q: Any, k: Any, v: Any, f: Any, causal: bool = False, window: int | None = None, mask: Any = None) -> Any:
    """Attention from a weight for every pair, on one device."""
    import jax
    import jax.numpy as jnp

    import rfkernels as rfk

    pairs = q[..., :, None, :], k[..., None, :, :]
    if f.batch:
        # Pairs have two more axes than arrays, after those that features may have.
        wider = {
            name: getattr(f, name).reshape(*f.batch, 1, 1, *getattr(f, name).shape[len(f.batch) :])
            for name in ("projection", "log_weight")
        }
        f = dataclasses.replace(f, **wider)
    log, sign = rfk.log_kernel(*pairs, f, return_sign=True)
    position, key = jnp.arange(q.shape[-2])[:, None], jnp.arange(k.shape[-2])
    if window is not None:
        near = abs(position - key) < window
        log = jnp.where(near, rfk.exact_log_kernel(*pairs, scale=float(f.scale), kernel=f.map.kernel), log)
        sign = jnp.where(near, 1, sign)
    seen = key <= position if causal else jnp.ones((1, 1), bool)
    seen = seen if mask is None else seen & mask[..., None, :]
    top = jax.lax.stop_gradient(jnp.max(jnp.where(seen, log, -jnp.inf), -1, keepdims=True))
    base = jnp.where(top == -jnp.inf, 0, top)
    weight = jnp.where(seen, sign * jnp.exp(jnp.where(seen, log, base) - base), 0)
    total = weight.sum(-1)
    return jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))[..., None] * (weight @ v)


def expected(given: Arrays, f: Any, mask: Any = None, **options: Any) -> Any:
    """What `dense` returns, compiled as one."""
    import jax

    return jax.jit(functools.partial(dense, f=f, **options))(*given.values(), mask=mask)


def sharded(where: Any, **options: Any) -> Callable[..., Any]:
    from rfkernels.integrations.sharding import sharded_attention

    def run(q: Any, k: Any, v: Any, f: Any, **more: Any) -> Any:
        return sharded_attention(q, k, v, f, mesh=where, axis_name="sequence", **options, **more)

    return run


def derivatives(run: Callable[..., Any], given: Arrays, f: Any, mask: Any = None, **options: Any) -> Any:
    """The output and the gradients of a weighted sum of it."""
    import jax
    import jax.numpy as jnp

    def loss(q: Any, k: Any, v: Any, mask: Any) -> Any:
        out = run(q, k, v, f, mask=mask, **options)
        weight = np.random.default_rng(9).standard_normal(out.shape)
        return jnp.vdot(weight, out), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*given.values(), mask)
    return out, gradients


@functools.cache
def reference(name: str, length: int, jumps: bool, masked: bool, **options: Any) -> Any:
    return derivatives(dense, *case(name, length, jumps, masked), **options)


def case(name: str, length: int, jumps: bool, masked: bool, part: int = PART) -> tuple[Arrays, Any, Any]:
    given = inputs(length)
    mask = None
    if masked:
        mask = np.random.default_rng(1).random((2, length)) < 0.7
        mask[:, part : 3 * part] = False  # devices without any key, and queries that see none
        mask[0, :part] = False
    return jumping(given) if jumps else given, features(name), mask


def same(got: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Require trees of arrays to agree, relative to the largest number of each array."""
    import jax

    leaves, wanted = jax.tree.leaves(got), jax.tree.leaves(expected)
    assert len(leaves) == len(wanted)
    for i, (one, two) in enumerate(zip(leaves, wanted, strict=True)):
        one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
        assert one.shape == two.shape, (i, one.shape, two.shape)
        finite = np.isfinite(two)
        np.testing.assert_array_equal(one[~finite], two[~finite])
        error = np.max(np.abs(one[finite] - two[finite]), initial=0)
        assert error <= tolerance * max(np.max(np.abs(two[finite]), initial=0), 1e-3), (i, error)


def refused(text: str, run: Callable[[], Any], kind: type[Exception] = ValueError) -> None:
    try:
        run()
    except kind as error:
        assert text in str(error), str(error)
    else:
        raise AssertionError(f"nothing was refused where {text!r} was expected")


# Results and gradients


@check(*((name, causal) for name in MAPS for causal in (False, True)))
def equals_one_device(name: str, causal: bool) -> None:
    given = case(name, DEVICES * PART, jumps=False, masked=True)
    got = derivatives(sharded(mesh()), *given, causal=causal)
    same(got, reference(name, DEVICES * PART, False, True, causal=causal))


@check(*((devices, causal) for devices in (1, 2, 3, 5, 8) for causal in (False, True)))
def norms_that_jump_between_devices(devices: int, causal: bool) -> None:
    """Thirtyfold, up and down: also for a number of devices that is no power of two."""
    length = devices * PART
    got = derivatives(sharded(mesh(devices)), *case("positive", length, jumps=True, masked=False), causal=causal)
    same(got, reference("positive", length, True, False, causal=causal))


@check((True, 2, True), (False, 2, True), (False, 1, False))
def windows(causal: bool, window: int, masked: bool) -> None:
    options = {"causal": causal, "window": window}
    got = derivatives(sharded(mesh(3)), *case("positive", 3 * PART, jumps=False, masked=masked), **options)
    same(got, reference("positive", 3 * PART, False, masked, **options))


@check()
def grouped_queries_of_features_with_heads() -> None:
    f = features(batch=(2, 1))
    given = inputs(DEVICES * PART, q=(2, 3), k=(2, 1), v=(2, 1))
    same(derivatives(sharded(mesh()), given, f), derivatives(dense, given, f))


@check()
def queries_of_another_length() -> None:
    f, given = features(), {**inputs(DEVICES * PART), "q": inputs(DEVICES)["q"]}
    same(sharded(mesh())(*given.values(), f), expected(given, f))


@check((False, 2), (True, 2), (True, 1))
def forward_mode(causal: bool, order: int) -> None:
    """Derivatives along a direction, of the result or of its gradient (a Hessian-vector product)."""
    import jax
    import jax.numpy as jnp

    given, f, _ = case("positive", 3 * PART, jumps=False, masked=False)
    along = tuple(np.random.default_rng(2).standard_normal(x.shape) for x in given.values())

    def product(run: Callable[..., Any]) -> Any:
        def result(q: Any, k: Any, v: Any) -> Any:
            return run(q, k, v, f, causal=causal)

        gradient = jax.grad(lambda *x: jnp.sum(jnp.square(result(*x))), (0, 1, 2))
        return jax.jit(lambda *x: jax.jvp(result if order == 1 else gradient, x, along))(*given.values())

    same(product(sharded(mesh(3))), product(dense))


@check(("float32", 1e-4, False, 2), ("bfloat16", 2e-2, True, None))
def other_dtypes(dtype: str, tolerance: float, causal: bool, window: int | None) -> None:
    given, f, mask = case("positive", 3 * PART, jumps=False, masked=True)
    low = {name: x.astype(dtype) for name, x in given.items()}
    options = {"causal": causal, "window": window, "mask": mask}
    out = sharded(mesh(3))(*low.values(), f, **options)
    assert out.dtype == dtype
    same(out, expected({name: x.astype("float64") for name, x in low.items()}, f, **options), tolerance)


@check((False, None), (True, None), (True, 2))
def state_of_the_whole_sequence(causal: bool, window: int | None) -> None:
    import rfkernels as rfk

    given, f, mask = case("positive", 3 * PART, jumps=False, masked=True)
    options = {"causal": causal, "window": window, "mask": mask, "full": True}
    got = sharded(mesh(3))(*given.values(), f, **options)
    host = {name: np.asarray(x) for name, x in given.items()}
    expected = rfk.attention(*host.values(), f, **options, backend="numpy")
    if window is not None:
        assert got.state.mask.dtype == bool
        got, expected = got._replace(state=got.state._asdict()), expected._replace(state=expected.state._asdict())
        seen = np.broadcast_to(expected.state["mask"], (2, window))
        np.testing.assert_array_equal(got.state["mask"], seen)
        kept = [[x.state.pop(name) * seen[..., None] for name in ("keys", "values")] for x in (got, expected)]
        same(*kept)
    same(got, expected)


# What is communicated

KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast|send|recv"
INSTRUCTION = re.compile(rf"= (?P<shape>.*?) (?P<kind>{KINDS})(-start)?\(")
SIZES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "pred": 1, "s32": 4, "u32": 4, "s64": 8}


def compiled(run: Callable[..., Any], *arguments: Any) -> Any:
    import jax

    return jax.jit(run).lower(*arguments).compile()


def communicated(program: Any) -> dict[str, int]:
    """Bytes that a device hands to each kind of collective, from the text of the compiled program."""
    found: dict[str, int] = {}
    for line in program.as_text().splitlines():
        instruction = INSTRUCTION.search(line)
        if instruction is None:
            continue
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", instruction["shape"]):
            size = SIZES[dtype] * math.prod(int(n) for n in shape.split(",") if n)
            found[instruction["kind"]] = found.get(instruction["kind"], 0) + size
    return found


def loss_of(run: Callable[..., Any]) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    return jax.value_and_grad(lambda *x: jnp.sum(jnp.square(run(*x))), (0, 1, 2))


@check()
def communication_does_not_depend_on_the_length() -> None:
    """Bidirectional: one reduction of m (width + 2) numbers for each head. Causal: 1 + ⌈log₂ 7⌉ steps of as many."""
    f, heads = features(), 2
    state = heads * f.count * (WIDTH + 2) * 8
    for causal, expected in ((False, {"all-reduce": state}), (True, {"collective-permute": 4 * state})):
        run = functools.partial(sharded(mesh(), causal=causal), f=f)
        for length in (DEVICES * PART, DEVICES * (PART + 1)):
            assert communicated(compiled(run, *inputs(length).values())) == expected


@check((False,), (True,))
def communication_of_the_gradient_does_not_depend_on_the_length(causal: bool) -> None:
    f, heads = features(), 2
    state = heads * f.count * (WIDTH + 2) * 8
    run = loss_of(functools.partial(sharded(mesh(), causal=causal), f=f))
    found = [communicated(compiled(run, *inputs(DEVICES * part).values())) for part in (PART, PART + 1)]
    assert found[0] == found[1], found
    # The loss is a sum over devices, which is one number more.
    assert found[0].pop("all-reduce", 0) <= (8 if causal else 2 * state + 8), found
    assert not causal or found[0].pop("collective-permute") <= 2 * 4 * state
    assert not found[0]


@check((True,), (False,))
def a_window_adds_its_own_keys(causal: bool) -> None:
    f, heads, window = features(), 2, 2
    run = functools.partial(sharded(mesh(), causal=causal, window=window), f=f)
    found = [communicated(compiled(run, *inputs(DEVICES * part).values())) for part in (PART, PART + 1)]
    state, halo = heads * f.count * (WIDTH + 2) * 8, heads * (DIM + WIDTH) * 8
    assert found[0] == found[1]
    if causal:
        assert found[0] == {"collective-permute": 4 * state + window * halo}
    else:
        assert set(found[0]) == {"collective-permute"}
        assert found[0]["collective-permute"] <= 8 * state + 2 * window * halo + 2 * DEVICES


def on_a_grid(length: int) -> Any:
    """A mesh for batch and heads, and arrays and features with heads that are sharded over it."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    grid = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "heads"))
    f, given = features(batch=(4,)), inputs(length, batch=(2, 4))
    spread = NamedSharding(grid, PartitionSpec("data", "heads"))
    rows = NamedSharding(grid, PartitionSpec("heads"))
    placed = [jax.device_put(x, spread) for x in given.values()]
    own = jax.tree.map(lambda x: jax.device_put(x, rows if x.ndim else NamedSharding(grid, PartitionSpec())), f)
    return grid, spread, given, f, [*placed, own]


@check((False, None), (True, None), (True, 2))
def batch_and_heads_need_no_communication(causal: bool, window: int | None) -> None:
    """The gradient included, and more positions than the backend takes at a time."""
    import jax

    from rfkernels.integrations.sharding import sharded_attention

    grid, spread, given, f, placed = on_a_grid(70)
    options: dict[str, Any] = {"causal": causal, "window": window}

    def run(q: Any, k: Any, v: Any, f: Any) -> Any:
        own = {"mesh": grid, "batch_axes": ("data", "heads"), **options}
        out, back = jax.vjp(lambda *x: sharded_attention(*x, f, **own), q, k, v)
        return out, back(out)

    program = compiled(run, *placed)
    assert communicated(program) == {}
    got = program(*placed)
    assert got[0].sharding.is_equivalent_to(spread, 4)
    same(got[0], expected(given, f, **options))


@check((False,), (True,))
def ordinary_sharding_of_batch_and_heads(causal: bool) -> None:
    import jax

    import rfkernels as rfk

    _, _, given, f, placed = on_a_grid(70)
    same(jax.jit(functools.partial(rfk.attention, causal=causal))(*placed), expected(given, f, causal=causal))


@check((False, 3), (True, 3), (False, 70), (True, 70))
def ordinary_sharding_communicates_at_most_a_flag(causal: bool, length: int) -> None:
    """What the compiler makes of sharded arrays alone: a causal pass asks all heads whether norms jump."""
    import rfkernels as rfk

    found = communicated(compiled(functools.partial(rfk.attention, causal=causal), *on_a_grid(length)[-1]))
    assert found.keys() <= ({"all-reduce"} if causal else set())
    assert sum(found.values()) <= 8


@check((False,), (True,))
def a_pass_that_begins_from_nothing_in_a_shard_map_of_the_user(causal: bool) -> None:
    import jax
    from jax.sharding import PartitionSpec

    import rfkernels as rfk

    f, given = features(), inputs(2, batch=(DEVICES,))
    part = PartitionSpec("sequence")
    run = functools.partial(rfk.attention, features=f, causal=causal)
    mapped = jax.jit(jax.shard_map(run, mesh=mesh(), in_specs=(part,) * 3, out_specs=part))
    same(mapped(*given.values()), expected(given, f, causal=causal))


@check(("merged",), ("fitted",), ("fitted, window",), ("given, heavy, resumed",), ("features, heavy",))
def blocks_in_a_shard_map_of_the_user(kind: str) -> None:
    """Also where queries alone, or values alone, differ from device to device."""
    import jax
    from jax.sharding import PartitionSpec

    import rfkernels as rfk

    f, given = features(), inputs(70, batch=(DEVICES,))
    groups = rfk.fit_groups(*(np.asarray(given[x][0]) for x in "qk"), 3, scale=float(f.scale))
    options: dict[str, Any] = {
        "merged": {"groups": 4, "window": 16, "causal": True},
        "fitted": {"groups": 4},
        "fitted, window": {"groups": 4, "window": 16},
        "given, heavy, resumed": {"groups": groups, "features": f, "window": 20, "heavy": 2, "causal": True},
        "features, heavy": {"features": f, "heavy": 3, "window": 20},
    }[kind]

    def run(q: Any, k: Any, v: Any) -> Any:
        if "resumed" not in kind:
            return rfk.attention(q, k, v, **options)
        first = rfk.attention(*(x[..., :67, :] for x in (q, k, v)), full=True, **options)
        rest = rfk.attention(*(x[..., 67:, :] for x in (q, k, v)), state=first.state, **options)
        return jax.numpy.concatenate([first.output, rest], -2)

    part, whole, alone = PartitionSpec("sequence"), PartitionSpec(), jax.jit(run)
    for specs in ((part,) * 3, (part, whole, whole), (whole, whole, part)):
        arrays = [x if spec == part else x[:1] for x, spec in zip(given.values(), specs, strict=True)]
        mapped = jax.jit(jax.shard_map(run, mesh=mesh(), in_specs=specs, out_specs=part))
        rows = [
            alone(*(x[i : i + 1] if spec == part else x for x, spec in zip(arrays, specs, strict=True)))
            for i in range(0, DEVICES, 3)
        ]
        same(mapped(*arrays)[::3], jax.numpy.concatenate(rows))


@check()
def lowered_for_eight_accelerators() -> None:
    """The gradient of a causal pass, exported for eight devices of kinds that are not here."""
    import jax

    f = features()
    run = jax.jit(loss_of(functools.partial(sharded(mesh(), causal=True), f=f)))
    for platform in ("cuda", "tpu"):
        exported = jax.export.export(run, platforms=[platform])(*inputs(DEVICES * PART).values())
        assert exported.platforms == (platform,)
        assert exported.nr_devices == DEVICES
        assert "collective_permute" in exported.mlir_module()
        assert "all_gather" not in exported.mlir_module()


# Meshes


@check((False,), (True,))
def batch_and_sequence_together(full: bool) -> None:
    import jax

    grid = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "heads", "sequence"))
    f, given = features(batch=(2, 1)), inputs(2 * PART, q=(2, 2, 3), k=(2, 2, 1), v=(2, 2, 1))
    run = sharded(grid, batch_axes=("data", "heads"), causal=True, full=full)
    got = run(*given.values(), f)
    same(got.output if full else got, expected(given, f, causal=True))
    if full:
        assert got.state.kv.sharding.spec[:2] == ("data", "heads")


@check()
def two_mesh_axes_as_one() -> None:
    import jax

    from rfkernels.integrations.sharding import sharded_attention

    grid = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("outer", "inner"))
    given, f, mask = case("positive", DEVICES * PART, jumps=True, masked=True)
    options = {"causal": True, "mask": mask}
    got = sharded_attention(*given.values(), f, mesh=grid, axis_name=("outer", "inner"), **options)
    same(got, expected(given, f, **options))


@check((True, True), (True, False), (False, True), (False, False))
def inside_a_shard_map_of_the_user(check_vma: bool, causal: bool) -> None:
    import jax
    from jax.sharding import PartitionSpec

    from rfkernels.integrations.sharding import sequence_attention

    length = 2 * PART
    given, f, _ = case("positive", length, jumps=False, masked=False)
    spec = PartitionSpec(None, "sequence")
    own = functools.partial(sequence_attention, features=f, axis_name="sequence", causal=causal)
    mapped = jax.shard_map(own, mesh=mesh(2), in_specs=(spec,) * 3, out_specs=spec, check_vma=check_vma)

    def run(q: Any, k: Any, v: Any, f: Any, mask: Any) -> Any:
        return mapped(q, k, v)

    same(derivatives(run, given, f), reference("positive", length, False, False, causal=causal))


@check()
def a_mesh_with_explicit_axes() -> None:
    import jax

    grid = jax.make_mesh((3,), ("sequence",), (jax.sharding.AxisType.Explicit,), devices=jax.devices()[:3])
    given, f, _ = case("positive", 3 * PART, jumps=False, masked=False)
    same(sharded(grid, causal=True)(*given.values(), f), expected(given, f, causal=True))


@check((False,), (True,))
def batches_on_a_mesh_with_explicit_axes(causal: bool) -> None:
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    import rfkernels as rfk

    grid = jax.make_mesh((DEVICES,), ("data",), (jax.sharding.AxisType.Explicit,))
    f, given = features(), inputs(70, batch=(DEVICES,))
    placed = [jax.device_put(x, NamedSharding(grid, PartitionSpec("data"))) for x in given.values()]
    run = jax.jit(functools.partial(rfk.attention, causal=causal))
    same(run(*placed, f), expected(given, f, causal=causal))
    if causal:
        packed = {"segment_ids": np.arange(70) // 30}
        same(run(*placed, f, **packed), rfk.attention(*given.values(), f, causal=True, **packed))


@check()
def batches_and_heads_on_a_grid_with_explicit_axes() -> None:
    """Nothing but types can go wrong where one device is right: all are traced and not run."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    import rfkernels as rfk

    grid = jax.make_mesh((2, 4), ("data", "heads"), (jax.sharding.AxisType.Explicit,) * 2)
    f, own, given = rfk.draw("positive", DIM, 16, rng=0), features(batch=(4,)), inputs(20, batch=(2, 4))
    placed = [jax.device_put(x, NamedSharding(grid, PartitionSpec("data", "heads"))) for x in given.values()]
    kinds: tuple[dict[str, Any], ...] = ({"features": own}, {"groups": 4}, {"heavy": 2, "features": own})
    kinds += ({"groups": rfk.fit_groups(given["q"], given["k"], 4)},)
    for options in (*kinds, {"full": True, "error": True, "features": f}):
        options = {"causal": "error" not in options, **options}
        done = jax.eval_shape(functools.partial(rfk.attention, **options), *placed)
        assert jax.tree.leaves(done)[0].sharding.spec[:2] == ("data", "heads")
    for error in (False, True):
        done = jax.eval_shape(functools.partial(rfk.log_normalizer, error=error), *placed[:2], f)
        assert jax.tree.leaves(done)[0].sharding.spec[:2] == ("data", "heads")
    grid = jax.make_mesh((3,), ("data",), (jax.sharding.AxisType.Explicit,), devices=jax.devices()[:3])
    many = jax.ShapeDtypeStruct(((3 << 20) - 3, DIM), "float32", sharding=NamedSharding(grid, PartitionSpec("data")))
    assert jax.eval_shape(rfk.log_kernel, many, many, f).sharding.spec[:1] == ("data",)


@check()
def pairs_of_points_stay_on_their_devices() -> None:
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    import rfkernels as rfk

    for devices, shape, axis in (8, (1 << 20,), 0), (8, (1_000_000,), 0), (8, (8, 131_073), 0), (3, (2, 3 << 18), 1):
        grid = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
        spec = NamedSharding(grid, PartitionSpec(*[None] * axis, "data"))
        points = jax.ShapeDtypeStruct((*shape, DIM), "float32", sharding=spec)
        run = compiled(rfk.log_kernel, points, points, rfk.draw("positive", DIM, 256, rng=0))
        assert " while(" in run.as_text()  # in turns
        assert communicated(run) == {}, shape


# What is refused


@check()
def refusals() -> None:
    from rfkernels.integrations.sharding import sharded_attention

    f, given = features(), inputs(3 * PART)
    q, k, v = given.values()
    run = sharded(mesh(3))
    for causal in (False, True):
        wide = {"causal": causal, "window": PART + 1}
        refused(f"window={PART + 1} reaches past the neighbouring device", lambda wide=wide: run(q, k, v, f, **wide))
    refused("as many queries as keys", lambda: run(q[:, :3], k, v, f, causal=True))
    refused("the 3 devices of axis 'sequence' do not divide", lambda: run(q[:, :5], k, v, f))
    refused(
        "a mask over pairs of queries and keys cannot be honoured",
        lambda: run(q, k, v, f, mask=np.ones((2, 3, 3 * PART), bool)),
    )
    refused(
        "whose size does not divide",
        lambda: run(q, k, v, f, batch_axes=("sequence",)),
    )
    refused("batch_axes names 2 axes", lambda: run(q, k, v, f, batch_axes=(None, None)))
    refused("must name axes of the mesh", lambda: sharded_attention(q, k, v, f, mesh=mesh(3), axis_name="rows"))
    refused("nothing would be spread", lambda: sharded_attention(q, k, v, f, mesh=mesh(3)))
    refused("mesh must be", lambda: sharded_attention(q, k, v, f, mesh=3, axis_name="sequence"), TypeError)
    refused("closed form", lambda: run(q, k, v, features("elu+1"), causal=True, window=1))


@check()
def an_axis_that_nothing_maps_over() -> None:
    from rfkernels.integrations.sharding import sequence_attention

    given = inputs(PART)
    refused("not bound here", lambda: sequence_attention(*given.values(), features(), axis_name="sequence"))


@check()
def no_trace_for_another_seed() -> None:
    """New arrays and features of the same shape do not compile again."""
    import rfkernels as rfk
    from rfkernels.integrations import sharding

    run, given = sharded(mesh(2)), inputs(2 * PART)
    run(*given.values(), features())
    before = sharding._compiled()._cache_size()
    run(*inputs(2 * PART, seed=5).values(), rfk.draw("positive", DIM, ROWS, rng=7))
    assert sharding._compiled()._cache_size() == before


def main() -> None:
    import jax

    jax.config.update("jax_enable_x64", True)
    gc.set_threshold(100_000, 20, 100)  # as in `conftest`
    for name in sys.argv[1:] or CHECKS:
        start, failure = time.perf_counter(), ""
        try:
            CHECKS[name]()
        except Exception:  # noqa: BLE001 - it becomes the failure of a test
            failure = traceback.format_exc()
        print(json.dumps([name, failure, round(time.perf_counter() - start, 2)]), flush=True)


if __name__ == "__main__":
    main()
