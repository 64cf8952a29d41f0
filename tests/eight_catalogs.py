"""Estimates of catalogs sharded over eight simulated devices; a script that writes what it finds to the file it is told.

`test_catalog_jax.py` starts it in a process of its own and judges what it wrote.
"""

from __future__ import annotations

import gc
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import profiled
from eight_devices import DEVICES, communicated, compiled

from rfkernels.backends.jax import catalog as jax_catalog
from rfkernels.backends.jax import catalog_sums
from rfkernels.catalog import Catalog
from rfkernels.kernels import ARC_COSINE_1

ITEMS, DIM, CELLS, KEYS = 3000, 4, 26, 100
BUDGET, ENOUGH = 1600, 8000
DRAWS = 20_000
COUNT, SCALE = 10, 0.7
KERNELS = {
    "laplacian": profiled.KERNELS["laplacian"],
    "epanechnikov": profiled.KERNELS["epanechnikov"],
    "sine": ARC_COSINE_1,
}
PARTS = ("ids", "rows", "count", "cell", "means")


def items() -> Any:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((12, DIM))[rng.integers(0, 12, ITEMS)] + 0.6 * rng.standard_normal((ITEMS, DIM))) / 1.2


def queries() -> Any:
    return np.random.default_rng(1).standard_normal((5, DIM))


def found() -> dict[str, Any]:
    x, q = items(), jnp.asarray(queries())
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("items",))
    table = Catalog(x, cells=CELLS).table
    one = jax_catalog.sharded(jax_catalog.split(table, DEVICES), mesh, "items")
    for i in range(2):
        jax_catalog.estimate(one, q, BUDGET, jax.random.key(i))
    results = {"compiled": np.array(catalog_sums._of_mesh._cache_size())}
    results |= over_keys(lambda key: jax_catalog.estimate(one, q, BUDGET, key))

    def log(q: Any) -> Any:
        whole = jax_catalog.estimate(one, q, ENOUGH, jax.random.key(0))
        return whole.log_normalizer.sum(), whole

    (_, whole), results["gradient"] = jax.jit(jax.value_and_grad(log, has_aux=True))(q)
    results |= {f"all_{name}": np.asarray(value) for name, value in whole._asdict().items()}
    results["devices"] = np.array([len(x.sharding.device_set) for x in jax.tree.leaves(one.table)])
    run = partial(catalog_sums._of_mesh, weights=catalog_sums.SOFTMAX, places=128, mesh=mesh, axis="items")
    sent = [communicated(compiled(run, one.table, q[:n], jax.random.key(0), 1.0)) for n in (2, 4)]
    results["bytes"] = np.array([sum(kinds.values()) for kinds in sent])
    # Built apart, of different sizes, on an axis of a mesh that has another.
    grid = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("copies", "items"))
    parts = [
        Catalog(x[a:b], cells=cells, ids=np.arange(a, b)).table for a, b, cells in ((0, 1000, 5), (1000, ITEMS, 9))
    ]
    apart = jax_catalog.estimate(jax_catalog.sharded(parts, grid, "items"), q, ENOUGH, jax.random.key(0))
    results["apart"] = np.asarray(apart.log_normalizer)
    empty = jax_catalog.sharded([parts[0], Catalog(x[:1], ids=[ITEMS]).table], grid, "items")
    results["small"] = np.asarray(jax_catalog.estimate(empty, q, ENOUGH, jax.random.key(0)).log_normalizer)
    return results | drawn(one, q) | summed(one, q) | largest(one, q)


def over_keys(run: Any) -> dict[str, Any]:
    """Estimates from so many keys, one after the other in one program: to start eight devices is dear."""
    keys = jax.vmap(jax.random.key)(jnp.arange(KEYS))
    return {name: np.asarray(x) for name, x in jax.jit(partial(jax.lax.map, run))(keys)._asdict().items()}


def summed(table: Any, q: Any) -> dict[str, Any]:
    """Sums of kernels of a table that is spread over the devices."""

    def log(q: Any, kernel: Any) -> Any:
        every = jax_catalog.kernel_sum(table, q, kernel, ENOUGH, jax.random.key(0), scale=SCALE)
        return every.log_normalizer.sum(), every

    found = {}
    for name, kernel in KERNELS.items():
        if name == "laplacian":
            (_, every), found["score"] = jax.jit(jax.value_and_grad(log, has_aux=True), static_argnums=1)(q, kernel)
        else:
            _, every = log(q, kernel)
        found |= {
            f"{name}_all": np.asarray(every.log_normalizer),
            f"{name}_all_error": np.asarray(every.standard_error),
        }
        far = jnp.concatenate([q, q + 1e3]) if name == "epanechnikov" else q
        few = over_keys(partial(jax_catalog.kernel_sum, table, far, kernel, BUDGET, scale=SCALE))
        sums, errors = few["log_normalizer"], few["standard_error"]
        found |= {f"{name}_sums": sums[:, : len(q)], f"{name}_errors": errors[:, : len(q)]}
        if name == "epanechnikov":
            found |= {"nowhere": sums[:, len(q) :], "nowhere_error": errors[:, len(q) :]}
    return found


def largest(table: Any, q: Any) -> dict[str, Any]:
    """The items of largest q·y of a table that is spread over the devices."""
    found = {}
    for name, own in (("top", BUDGET), ("top_all", ENOUGH)):
        program = compiled(partial(jax_catalog.top, table, k=COUNT, budget=own), q)
        found |= {f"{name}_{x}": np.asarray(y) for x, y in program(q)._asdict().items()}
        found[f"{name}_bytes"] = np.array(sum(communicated(program).values()))
    return found


def values() -> Any:
    return np.random.default_rng(2).standard_normal((ITEMS, 2))


def moved() -> Any:
    """The first items moved, as `drawn` tells the table."""
    return items()[:500] + 0.3


def drawn(table: Any, q: Any) -> dict[str, Any]:
    """Draws, expectations and changes of a table that is spread over the devices."""
    key, every, how = jax.random.key(3), np.arange(ITEMS), {"head": 100, "whole": False}
    found = {f"drawn_{x}": np.asarray(y) for x, y in jax_catalog.sample(table, q, DRAWS, key, **how)._asdict().items()}
    found["stated"] = np.asarray(jax_catalog.log_probability(table, q, every, **how))
    means = [jax_catalog.expectation(table, q, values(), budget, key) for budget in (ENOUGH, BUDGET)]
    found["mean"], found["mean_error"] = (np.stack(x) for x in zip(*means, strict=True))
    found["probability"] = np.asarray(jax_catalog.probabilities(table, q, every[:9], ENOUGH, key))
    run = partial(jax_catalog.sample, table, n=8, key=key, **how)
    found["draw_bytes"] = np.array(sum(communicated(compiled(run, q)).values()))
    told = jax.jit(jax_catalog.with_rows)(table, jnp.asarray(every[:500]), jnp.asarray(moved()))
    found["settled"] = np.asarray(told.table.settled)
    for name, one in (("renewed", jax_catalog.refreshed(told)), ("regrouped", jax_catalog.regrouped(told, key))):
        found |= {f"{name}_{field}": np.asarray(getattr(one.table, field)) for field in PARTS}
    return found


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    gc.set_threshold(100_000, 20, 100)  # as in `conftest`
    np.savez(sys.argv[1], **found())
