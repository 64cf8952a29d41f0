"""The items of largest q·y on JAX: among all, in the groups that promise most, and on devices that share the items."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clustered import ITEMS, catalog, data

from rfkernels.backends.jax import catalog as on_device
from rfkernels.backends.jax import catalog_arguments
from rfkernels.catalog import Catalog, tops

DIM = 12
CELLS = 30
COUNT = 10


def table(dtype: str = "float32") -> Any:
    return on_device.device_table(catalog(DIM, dtype).table)


def largest(items: Any, queries: Any, count: int) -> tuple[Any, Any]:
    logits = queries.astype(np.float64) @ items.T.astype(np.float64)
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return ids, np.take_along_axis(logits, ids, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, COUNT, ITEMS])
def test_all_are_found_with_the_budget_of_all(count: int, dtype: str) -> None:
    items, queries = data(DIM, dtype)
    with jax.enable_x64(dtype == "float64"):
        found = on_device.top(table(dtype), queries, np.int64(count))
        for one, two in zip(found, on_device.top(table(dtype), queries, count, 10**12), strict=True):
            np.testing.assert_array_equal(one, two)
    ids, logits = largest(items, queries, count)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4 if dtype == "float32" else 1e-12, atol=1e-4)
    if count <= COUNT:
        np.testing.assert_array_equal(found.ids, ids)
    assert (np.sort(found.ids, 1) == np.sort(ids, 1)).all()


@pytest.mark.parametrize(("places", "count"), [(128, 1), (128, COUNT), (512, COUNT), (512, 100), (1500, COUNT)])
def test_what_the_specification_finds_is_found(places: int, count: int) -> None:
    """Of a group that does not fit some items are taken besides."""
    items, queries = data(DIM, "float64")
    own, host = places + CELLS + DIM, catalog(DIM, "float64").table._replace(codes=None)
    with jax.enable_x64(True):
        found = on_device.top(table("float64"), queries, count, own)
    expected = tops.top(host, queries, count, own)
    assert (np.asarray(found.logits) >= expected.logits - 1e-12).all()
    assert (np.diff(found.logits) <= 0).all()
    for ids, logits, query in zip(np.asarray(found.ids), np.asarray(found.logits), queries, strict=True):
        assert len(set(ids.tolist())) == count
        np.testing.assert_allclose(items[ids] @ query, logits, rtol=1e-12)
    best, _ = largest(items, queries, COUNT)
    if count == COUNT:
        recall = np.mean([np.isin(a, b).mean() for a, b in zip(np.asarray(found.ids), best, strict=True)])
        assert recall > {128: 0.3, 512: 0.6, 1500: 0.95}[places]


def test_under_jit_and_a_few_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _, queries = data(DIM, "float32")
    expected = [on_device.top(table(), queries, COUNT, own) for own in (600, ITEMS)]
    monkeypatch.setitem(catalog_arguments.NUMBERS, "cpu", 1)
    jax.clear_caches()
    for own, each in zip((600, ITEMS), expected, strict=True):
        found = jax.jit(lambda table, q, own=own: on_device.top(table, q, COUNT, own))(table(), queries)
        np.testing.assert_array_equal(found.ids, each.ids)
        np.testing.assert_allclose(found.logits, each.logits, rtol=1e-5)
    jax.clear_caches()
    assert on_device.top(table(), queries[:0], 3, 600).ids.shape == (0, 3)


def most_numbers(program: Any) -> int:
    """Return the size of the largest array that a program makes, and those that it calls."""
    found = 0
    for equation in program.eqns:
        inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(tuple(equation.params.values()))]
        found = max([found, *map(most_numbers, (x for x in inner if hasattr(x, "eqns")))])
        found = max([found, *(x.aval.size for x in equation.outvars)])
    return found


@pytest.mark.parametrize("name", ["top", "estimate"])
def test_what_is_under_way_and_what_derivatives_keep(name: str) -> None:
    """Traced with many groups, and with more queries than are taken at a time; nothing is run."""
    small = table()
    queries = jax.ShapeDtypeStruct((4096, DIM), jnp.float32)
    of_groups = "start", "count", "cell", "spread", "seen"
    grown = {field: jax.ShapeDtypeStruct((20_000,), getattr(small, field).dtype) for field in of_groups}

    def pulled(table: Any, queries: Any) -> Any:
        def run(queries: Any) -> Any:
            if name == "top":
                return on_device.top(table, queries, COUNT, CELLS + DIM + 128).logits
            return on_device.estimate(table, queries, CELLS + DIM + 128, jax.random.key(0)).log_normalizer

        return jax.vjp(run, queries)[1]

    program = jax.make_jaxpr(pulled)(small._replace(**grown), queries)
    assert most_numbers(program.jaxpr) <= catalog_arguments.NUMBERS["cpu"]


def test_items_that_are_not_there() -> None:
    """Rows of no item, and fewer items than are asked for."""
    items, queries = data(DIM, "float32")
    own = Catalog(items[:900], cells=5)
    grown = on_device.regrouped(on_device.device_table(own.table), jax.random.key(0))
    gone = grown._replace(ids=jnp.where(grown.ids < 890, -1, grown.ids))
    found = on_device.top(gone, queries, 20, 900)
    np.testing.assert_array_equal(np.sort(found.ids[:, :10], 1), np.tile(np.arange(890, 900), (len(queries), 1)))
    np.testing.assert_array_equal(found.ids[:, 10:], -1)
    np.testing.assert_array_equal(found.logits[:, 10:], -np.inf)


def test_derivatives_are_those_of_the_logits() -> None:
    items, queries = data(DIM, "float32")
    got = jax.grad(lambda q: on_device.top(table(), q, 1, 600).logits.sum())(jnp.asarray(queries))
    ids = on_device.top(table(), queries, 1, 600).ids
    np.testing.assert_allclose(got, items[ids[:, 0]], rtol=1e-5)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("own", [600, ITEMS])
def test_lowered_for_accelerators(own: int, platform: str) -> None:
    queries = jnp.asarray(data(DIM, "float32")[1])
    run = jax.jit(lambda table, q: tuple(on_device.top(table, q, COUNT, own)))
    assert jax.export.export(run, platforms=[platform])(table(), queries).platforms == (platform,)


def test_refusals() -> None:
    _, queries = data(DIM, "float32")
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        on_device.top(table(), queries, 0, 600)
    with pytest.raises(TypeError, match=r"k must be an int, got 1\.0"):
        on_device.top(table(), queries, 1.0, 600)
    with pytest.raises(ValueError, match="k must be at most 556, the items that a query may take, got 557"):
        on_device.top(table(), queries, 557, 600)
    with pytest.raises(
        ValueError, match=f"k must be at most {ITEMS}, the items that a query may take, got {ITEMS + 1}"
    ):
        on_device.top(table(), queries, ITEMS + 1, ITEMS)
    with pytest.raises(ValueError, match="budget must be at least 170"):
        on_device.top(table(), queries, 3, 169)
    with pytest.raises(ValueError, match=r"queries must have shape \(queries, 12\), got \(9, 11\)"):
        on_device.top(table(), queries[:, :11], 3, 600)
