"""Exports of JAX that hold the library's records: saved, loaded in another process, and called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import rfkernels as rfk
from rfkernels.backends.jax import catalog as on_device
from rfkernels.catalog.records import Estimate

LOADED = """
import pathlib, sys
import jax
import numpy as np
import rfkernels as rfk
from jax import export

step = export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
features = rfk.draw("positive", dim=4, count=8, rng=0)
state = rfk.empty_state(features, 3, (2,), window=5)
x = np.ones((2, 1, 4), np.float32)
for _ in range(7):
    done = step.call(*jax.tree.map(jax.numpy.asarray, (features, state, x, x, x[..., :3])))
    state = done.state
print(type(done).__name__, type(done.state).__name__, round(float(done.output.sum()), 4))
"""


def decode(features: Any, state: Any, q: Any, k: Any, v: Any) -> Any:
    return rfk.attention(q, k, v, features, causal=True, window=5, state=state, full=True)


def given() -> tuple[Any, ...]:
    features = rfk.draw("positive", dim=4, count=8, rng=0)
    x = np.ones((2, 1, 4), np.float32)
    state = rfk.empty_state(features, 3, (2,), window=5)
    return tuple(jax.tree.map(jnp.asarray, (features, state, x, x, x[..., :3])))


def test_a_decode_step_is_saved_and_called_by_another_process(tmp_path: Path) -> None:
    saved = tmp_path / "step"
    saved.write_bytes(export.export(jax.jit(decode))(*given()).serialize())
    run = [sys.executable, "-W", "error", "-c", LOADED, str(saved)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["AttentionResult", "DecodeState", "6.0"], done.stderr


def test_blocks_and_errors() -> None:
    q = jnp.asarray(np.random.default_rng(0).standard_normal((2, 20, 4)), jnp.float32)
    features = jax.tree.map(jnp.asarray, rfk.draw("positive", dim=4, count=8, rng=0))
    groups = rfk.fit_groups(q, q, 3, v=q, scale=0.5)

    def blocks(groups: Any, q: Any) -> Any:
        return rfk.attention(q, q, q, groups=groups, causal=True, full=True)

    def errors(features: Any, q: Any) -> Any:
        return rfk.attention(q, q, q, features, full=True, error=True)

    for run, first in ((blocks, groups), (errors, features)):
        loaded = export.deserialize(export.export(jax.jit(run))(first, q).serialize())
        jax.tree.map(np.testing.assert_array_equal, loaded.call(first, q), jax.jit(run)(first, q))


def test_tables_of_catalogs_are_arguments_of_exports() -> None:
    table = on_device.device_table(rfk.Catalog(np.zeros((2, 4), np.float32)).table)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), table)
    run = export.export(jax.jit(lambda table, queries: on_device.estimate(table, queries, 200, jax.random.key(0))))
    loaded = export.deserialize(run(shapes, jax.ShapeDtypeStruct((3, 4), jnp.float32)).serialize())
    (given, _), _ = jax.tree.unflatten(loaded.in_tree, loaded.in_avals)
    found = jax.tree.unflatten(loaded.out_tree, loaded.out_avals)
    assert (type(given), type(found)) == (on_device.DeviceTable, Estimate)
    with pytest.raises(ValueError, match=r"queries must be so many as is known .* got shape \(b, 4\)"):
        run(shapes, jax.ShapeDtypeStruct((*export.symbolic_shape("b"), 4), jnp.float32))


def test_features_of_a_map_without_a_name() -> None:
    q = given()[2]
    unnamed = rfk.draw(rfk.FeatureMap((lambda xp, u, a: xp.exp(u / 2 + a),)), dim=4, count=8, rng=0)
    unnamed = jax.tree.map(jnp.asarray, unnamed)

    def run(features: Any, q: Any) -> Any:
        return rfk.attention(q, q, q, features)

    with pytest.raises(ValueError, match=r"by the name of their map, which rfkernels\.register gives; got FeatureMap"):
        export.export(jax.jit(run))(unnamed, q).serialize()


def test_a_batch_of_any_size_is_exported_with_masks_heads_and_more_than_one_chunk() -> None:
    features = jax.tree.map(jnp.asarray, rfk.draw("positive", dim=4, count=8, batch=(2,), rng=0))
    (batch,) = export.symbolic_shape("b")

    def run(x: Any, mask: Any) -> Any:
        return rfk.attention(x, x, x, features, mask=mask)

    given = ((batch, 2, 70, 4), jnp.float32), ((batch, 1, 70), bool)
    saved = export.export(jax.jit(run), platforms=("cpu", "tpu"))(*(jax.ShapeDtypeStruct(*x) for x in given))
    assert [x.shape for x in saved.out_avals] == [(batch, 2, 70, 4)]
    pairs, own = jax.ShapeDtypeStruct((batch, 4), jnp.float32), rfk.draw("positive", dim=4, count=8, rng=0)
    saved = export.export(jax.jit(lambda x: rfk.log_kernel(x, x, own)))(pairs)
    assert [x.shape for x in saved.out_avals] == [(batch,)]


PASSES: dict[str, Any] = {
    "attention": lambda x, f: rfk.attention(x, x, x, f),
    "causal": lambda x, f: rfk.attention(x, x, x, f, causal=True),
    "window": lambda x, f: rfk.attention(x, x, x, f, window=4),
    "linear": lambda x, f: rfk.linear_attention(x, x, x, causal=True),
    "exact": lambda x, f: rfk.exact_attention(x, x, x),
    "exact normalizer": lambda x, f: rfk.exact_log_normalizer(x, x),
    "normalizer": lambda x, f: rfk.log_normalizer(x, x, f),
    "read": lambda x, f: rfk.read_state(rfk.empty_state(f, 4), x, f),
    "write": lambda x, f: rfk.write_state(rfk.empty_state(f, 4), x, x, f),
    "groups": lambda x, f: rfk.attention(x, x, x, groups=3),
}


@pytest.mark.parametrize("name", list(PASSES))
def test_only_batch_axes_may_be_symbolic(name: str) -> None:
    features, (batch, length) = given()[0], export.symbolic_shape("b, l")
    run = export.export(jax.jit(lambda x: PASSES[name](x, features)))
    with pytest.raises(
        ValueError, match=r" must have a length that is known, got shape \(2, l, 4\): of an export only"
    ):
        run(jax.ShapeDtypeStruct((2, length, 4), jnp.float32))
    many = jax.ShapeDtypeStruct((batch, 8, 4), jnp.float32)
    if name == "groups":
        with pytest.raises(
            ValueError, match=r"q must have axes that are known with groups= or heavy=, got shape \(b, "
        ):
            run(many)
    elif name != "write":  # a state has no axis of a batch that is not known
        x = np.random.default_rng(0).standard_normal((3, 8, 4)).astype(np.float32)
        np.testing.assert_allclose(run(many).call(x), PASSES[name](jnp.asarray(x), features), rtol=1e-6, atol=1e-6)
