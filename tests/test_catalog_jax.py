"""Catalogs on JAX: the specification's plan, unbiased sums with honest errors, and devices that share the items."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import eight_catalogs
import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from profiled import whole
from scipy import stats
from test_catalog_outliers import FACTORS, asked, share_held
from test_catalog_outliers import catalog as with_outliers

import rfkernels
from rfkernels.backends.jax import catalog as jax_catalog
from rfkernels.backends.jax import catalog_arguments, catalog_sums
from rfkernels.backends.jax.catalog_plan import Places, Plan, guessed, planned
from rfkernels.catalog import Catalog, estimates, plan

CELLS, DIM = eight_catalogs.CELLS, eight_catalogs.DIM
FIXED = CELLS + DIM
KEYS = 200


def log_sums(queries: Any, items: Any) -> Any:
    return np.log(np.exp(np.asarray(queries, np.float64) @ np.asarray(items, np.float64).T).sum(1))


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    """Items that came, went and moved, so that rows of no item lie between groups."""
    made, rng = Catalog(eight_catalogs.items(), cells=CELLS), np.random.default_rng(2)
    made.remove(rng.permutation(eight_catalogs.ITEMS)[:400])
    made.add(rng.standard_normal((300, DIM)))
    assert (made.table.ids == -1).any()
    return made


@pytest.fixture(scope="module")
def held(catalog: Catalog) -> Any:
    return catalog.items(catalog.ids)


def over_keys(table: Any, queries: Any, budget: int, count: int = KEYS) -> Any:
    """Return estimates (keys, queries)."""

    def one(seed: Any) -> Any:
        return jax_catalog.estimate(table, queries, budget, jax.random.key(seed))

    return jax.tree.map(np.asarray, jax.jit(lambda seeds: jax.lax.map(one, seeds))(jnp.arange(count)))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_exact_where_all_items_are_taken(catalog: Catalog, held: Any, dtype: str) -> None:
    budget, queries = len(catalog) + FIXED + 3, 3 * eight_catalogs.queries()
    with jax.enable_x64(dtype == "float64"):
        with np.errstate(all="ignore"):  # free rows hold whatever memory held
            rows = catalog.table.rows.astype(dtype)
        table = jax_catalog.device_table(catalog.table._replace(rows=rows))
        found = jax_catalog.estimate(table, queries, budget, jax.random.key(0))
        assert found.log_normalizer.dtype == dtype
    np.testing.assert_allclose(
        found.log_normalizer, log_sums(queries, held), rtol=1e-12 if dtype == "float64" else 1e-5
    )
    np.testing.assert_array_equal(found.standard_error, 0)
    np.testing.assert_array_equal(found.dots, len(catalog) + FIXED)


@partial(jax.jit, static_argnums=2)
def planned_of(table: Any, query: Any, places: int) -> Any:
    return planned(table, guessed(table, query), places)


@pytest.mark.parametrize("places", [128, 400, 1200, 2600])
@pytest.mark.parametrize("scale", [0.3, 1, 3, 10])
def test_plans_are_those_of_the_specification(catalog: Catalog, places: int, scale: float) -> None:
    with jax.enable_x64(True):
        table, host = jax_catalog.device_table(catalog.table), catalog.table
        for query in scale * eight_catalogs.queries():
            got = planned_of(table, jnp.asarray(query), places)
            expected = plan.plan(host, plan.guess(host, query), places + FIXED)
            np.testing.assert_array_equal(np.flatnonzero(got.closed), expected.far)
            assert got.runs == expected.runs
            np.testing.assert_allclose(got.log_error, expected.log_error, rtol=1e-9)
            np.testing.assert_allclose(got.slopes, expected.slopes, rtol=1e-9)
            np.testing.assert_allclose(np.asarray(got.weight)[expected.far], expected.weights, rtol=1e-9)


@pytest.mark.parametrize(("scale", "places"), [(0.5, 128), (1, 400), (3, 1800)])
def test_unbiased_and_as_uncertain_as_the_specification(catalog: Catalog, held: Any, scale: float, places: int) -> None:
    budget = places + FIXED
    with jax.enable_x64(True):
        queries = jnp.asarray(scale * eight_catalogs.queries())
        found = over_keys(jax_catalog.device_table(catalog.table), queries, budget)
    error = np.expm1(found.log_normalizer - log_sums(queries, held))
    spread = error.std(0, ddof=1)
    assert (np.abs(error.mean(0)) < 6 * spread / KEYS**0.5).all()
    assert (spread > 0).any()
    trusted = np.flatnonzero((found.standard_error < 0.1).all(0) & (spread > 0))
    assert len(trusted) >= 3
    seen = np.sqrt((found.standard_error**2).mean(0))
    ratio = seen[trusted] / spread[trusted]
    assert ratio.min() > 0.75
    assert ratio.max() < 2, "more than the share of a prediction"
    host = np.asarray(queries)
    spec = [estimates.estimate(catalog.table, host, budget, seed, False) for seed in range(100)]
    logs = np.stack([each.log_normalizer for each in spec])
    # There the runs of a group go around it and repeat no item, here they are independent.
    less = np.std(np.exp(logs - logs.mean(0)), 0)[trusted] / spread[trusted]
    assert (less < 1.4).all()
    assert (less > 0.4).all()
    assert (np.abs(found.dots[0] - spec[0].dots) < plan.RUN).all()
    assert (found.dots <= budget).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("predicted", [0.0, 0.03, 1e3])
def test_errors_are_as_predicted_where_tails_are_heavy(predicted: float, dtype: str) -> None:
    """Of parts that are all alike, of which few or one is large, that are the same, none, or next to nothing."""
    rng = np.random.default_rng(0)
    few = np.where(np.arange(71) % 20 == 3, 1.0, 1e-3)
    cases = rng.random(70), rng.random(71), few, np.eye(1, 40, 7)[0], np.ones(12), np.zeros(40), 1e-15 * rng.random(30)
    for parts in cases:
        chosen = plan.Plan(*[None] * 5, np.log(predicted) if predicted else -np.inf, None)
        expected = estimates.trusted_error(parts, 0.0, chosen)
        square = (parts[: len(parts) // 2 * 2].reshape(-1, 2) @ [1, -1]) ** 2
        with jax.enable_x64(dtype == "float64"):
            given = (
                jnp.asarray(square, dtype),
                len(square) * int(parts.any()),
                len(parts),
                jnp.asarray(predicted**2, dtype),
            )
            got = jax.jit(catalog_sums._trusted)(*given)
        np.testing.assert_allclose(got, expected, rtol=1e-12 if dtype == "float64" else 1e-4)
    with jax.enable_x64(True):
        assert catalog_sums._trusted(jnp.zeros(4), 0, 0, jnp.asarray(1.0)) == 0


def test_a_stale_guess_far_above_all_that_is_met_takes_no_digits() -> None:
    """Next to it all weights are zero in single precision, and so was the sum."""
    ones = jnp.ones(1)
    stale = Plan(100 * ones, 100.0, ones, ones > 0, jnp.zeros(1, int), 32, ones, 101.0)
    held = Places(jnp.zeros(128, bool), jnp.zeros(128, int), None)
    table = jax_catalog.device_table(Catalog(np.ones((1, DIM), np.float32)).table)
    log, _, _ = catalog_sums._one(table, stale, held, jnp.full(32, 4.0), jnp.zeros(128))
    assert log == pytest.approx(np.log(32))


def test_a_query_draws_the_same_in_any_company(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    table, queries = jax_catalog.device_table(catalog.table), np.float32(np.tile(eight_catalogs.queries(), (2, 1)))
    found = []
    for numbers in (1, 3 * 400 * DIM, 1 << 20):
        monkeypatch.setitem(catalog_arguments.NUMBERS, "cpu", numbers)
        run = jax.jit(partial(catalog_sums._estimated, weights=catalog_sums.SOFTMAX, places=400))
        found.append(run(table, jnp.asarray(queries), jax.random.key(3), 1.0))
    for one, two, three in zip(*found, strict=True):
        np.testing.assert_allclose(one, three, rtol=1e-5)
        np.testing.assert_allclose(two, three, rtol=1e-5)
    assert len(np.unique(found[0][0])) == len(queries), "equal queries draw independently"


def test_new_queries_are_not_compiled_for(catalog: Catalog) -> None:
    table, queries = jax_catalog.device_table(catalog.table), np.float32(eight_catalogs.queries())
    before = catalog_sums._of_device._cache_size()
    for i in range(3):
        jax_catalog.estimate(table, queries + i, 432 + FIXED, jax.random.key(i))
    assert catalog_sums._of_device._cache_size() == before + 1


def test_no_queries_and_no_items(catalog: Catalog) -> None:
    table, queries = jax_catalog.device_table(catalog.table), np.float32(eight_catalogs.queries())
    none = jax_catalog.estimate(table, queries[:0], 600, jax.random.key(0))
    assert [x.shape for x in none] == [(0,)] * 3
    catalog = Catalog(np.ones((1, DIM), np.float32))
    catalog.remove([0])
    found = jax_catalog.estimate(jax_catalog.device_table(catalog.table), queries, 600, jax.random.key(0))
    np.testing.assert_array_equal(found.log_normalizer, -np.inf)
    np.testing.assert_array_equal(found.standard_error, 0)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowered_for_accelerators(catalog: Catalog, platform: str) -> None:
    def run(table: Any, queries: Any, seed: Any) -> Any:
        return tuple(jax_catalog.estimate(table, queries, 600, jax.random.key(seed)))

    queries = jnp.asarray(eight_catalogs.queries(), jnp.float32)
    exported = jax.export.export(jax.jit(run), platforms=[platform])(
        jax_catalog.device_table(catalog.table), queries, 0
    )
    assert exported.platforms == (platform,)


def test_parts_hold_each_item_once_and_are_even(catalog: Catalog, held: Any) -> None:
    parts = jax_catalog.split(catalog.table, 5)
    rows = np.concatenate([part.rows for part in parts])
    np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(held, axis=0))
    assert len(rows) == len(held)
    sizes = [len(part.rows) for part in parts]
    assert max(sizes) <= 1.2 * min(sizes)
    for part in parts:
        for i, mean in enumerate(part.means):
            own = [part.rows[a : a + n] for a, n, c in zip(part.start, part.count, part.cell, strict=True) if c == i]
            np.testing.assert_allclose(np.concatenate(own).mean(0), mean, atol=1e-12)


def test_a_part_stays_as_it_is_while_the_catalog_changes() -> None:
    """Also one of all items, whose rows are those of the catalog where there is one group."""
    made = Catalog(eight_catalogs.items()[:40], cells=1)
    (held,), before = jax_catalog.split(made.table, 1), made.items(np.arange(40))
    made.update(np.arange(40), np.nextafter(before, 0))
    np.testing.assert_array_equal(held.rows, before[held.ids])


def test_refusals(catalog: Catalog) -> None:
    table, key = jax_catalog.device_table(catalog.table), jax.random.key(0)
    queries, mesh = np.ones((2, DIM)), jax.sharding.Mesh(np.array(jax.devices()[:1]), ("items",))
    with pytest.raises(ValueError, match=r"queries must have shape \(queries, 4\), got \(2, 3\)"):
        jax_catalog.estimate(table, queries[:, :3], 600, key)
    with pytest.raises(ValueError, match=r"queries must have shape \(queries, 4\), got \(4,\)"):
        jax_catalog.estimate(table, queries[0], 600, key)
    with pytest.raises(TypeError, match="queries must have one of the dtypes"):
        jax_catalog.estimate(table, queries.astype(int), 600, key)
    with pytest.raises(ValueError, match=r"queries must be finite, but queries\[1, 2\] is nan"):
        jax_catalog.estimate(table, np.where(np.arange(8).reshape(2, 4) == 6, np.nan, queries), 600, key)
    with pytest.raises(ValueError, match=f"budget must be at least {FIXED + 128} .* got {FIXED + 127}"):
        jax_catalog.estimate(table, queries, FIXED + 127, key)
    with pytest.raises(TypeError, match=r"budget must be an int, got 600\.0"):
        jax_catalog.estimate(table, queries, 600.0, key)
    with pytest.raises(ValueError, match=f"parts must be an integer from 1 to {CELLS}, got {CELLS + 1}"):
        jax_catalog.split(catalog.table, CELLS + 1)
    with pytest.raises(ValueError, match=r"parts must be an integer from 1 to .*, got 1\.5"):
        jax_catalog.split(catalog.table, 1.5)
    with pytest.raises(ValueError, match=r"axis must be an axis of the mesh, .* got 'rows'"):
        jax_catalog.sharded([catalog.table], mesh, "rows")
    for call in (
        lambda: jax_catalog.device_table(catalog),
        lambda: jax_catalog.split(catalog, 2),
        lambda: jax_catalog.sharded([catalog], mesh, "items"),
    ):
        with pytest.raises(TypeError, match=r"table must be that of a catalog, Catalog\.table, got Catalog"):
            call()
    with pytest.raises(TypeError, match="got DeviceTable"):
        jax_catalog.split(table, 2)
    grid = jax.sharding.AbstractMesh((2,), ("items",))
    with pytest.raises(TypeError, match=r"tables must be of items of one dtype, got \['float64', 'float32'\]"):
        jax_catalog.sharded([catalog.table, Catalog(np.ones((1, DIM), np.float32)).table], grid, "items")
    with pytest.raises(ValueError, match="tables must share no id, but 0 is in two of them"):
        jax_catalog.sharded([Catalog(np.ones((1, DIM))).table] * 2, grid, "items")
    with pytest.raises(ValueError, match="axis 'items' has 1 devices, but there are 2 tables"):
        jax_catalog.sharded([catalog.table] * 2, mesh, "items")


# Eight devices


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    target = tmp_path_factory.mktemp("eight") / "found.npz"
    library = str(Path(rfkernels.__file__).parents[1])
    path = os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(eight_catalogs.__file__), str(target)],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {eight_devices.FLAGS}",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(target) as file:
        return dict(file)


def test_devices_are_exact_where_all_items_are_taken(eight: dict[str, Any]) -> None:
    expected = log_sums(eight_catalogs.queries(), eight_catalogs.items())
    np.testing.assert_allclose(eight["all_log_normalizer"], expected, rtol=1e-12)
    np.testing.assert_array_equal(eight["all_standard_error"], 0)
    np.testing.assert_allclose(eight["apart"], expected, rtol=1e-12)
    few = np.concatenate([eight_catalogs.items()[:1000], eight_catalogs.items()[:1]])
    np.testing.assert_allclose(eight["small"], log_sums(eight_catalogs.queries(), few), rtol=1e-12)


def test_devices_are_unbiased_and_add_errors_in_squares(eight: dict[str, Any]) -> None:
    error = np.expm1(eight["log_normalizer"] - log_sums(eight_catalogs.queries(), eight_catalogs.items()))
    spread = error.std(0, ddof=1)
    assert (np.abs(error.mean(0)) < 6 * spread / eight_catalogs.KEYS**0.5).all()
    np.testing.assert_allclose(np.sqrt((eight["standard_error"] ** 2).mean(0)), spread, rtol=0.4)
    assert (eight["dots"] <= eight_catalogs.BUDGET).all()
    assert (eight["dots"] > 0.95 * eight_catalogs.BUDGET).all()


def test_devices_hold_a_part_each_and_send_four_numbers_a_query(eight: dict[str, Any]) -> None:
    np.testing.assert_array_equal(eight["devices"], eight_devices.DEVICES)
    assert eight["compiled"] == 1
    two, four = eight["bytes"]
    assert four == 2 * two
    assert two <= 2 * 4 * 8


def test_devices_draw_in_proportion_to_their_shares(eight: dict[str, Any]) -> None:
    exact, stated = np.exp(eight_catalogs.queries() @ eight_catalogs.items().T), np.exp(eight["stated"])
    np.testing.assert_allclose(stated.sum(1), 1, rtol=1e-12)
    assert (stated > 0).all()
    ids, draws = eight["drawn_ids"], eight_catalogs.DRAWS
    np.testing.assert_allclose(np.exp(eight["drawn_log_probability"]), np.take_along_axis(stated, ids, 1), rtol=1e-9)
    np.testing.assert_allclose(np.exp(eight["drawn_logits"]), np.take_along_axis(exact, ids, 1), rtol=1e-9)
    for one, own in zip(stated, ids, strict=True):
        counts, often = np.bincount(own, minlength=len(one)), one * draws >= 10
        seen, expected = (np.append(x[often], x[~often].sum()) for x in (counts, one * draws))
        assert stats.chi2.sf(((seen - expected) ** 2 / expected).sum(), len(seen) - 1) > 1e-6
    assert (exact.sum(1) ** 2 / (exact**2 / stated).sum(1) > 0.5).all()
    assert eight["draw_bytes"] <= len(ids) * 8 * (3 * 8 + 8), "8 draws of 3 numbers, and 8 sums, for each query"


def test_devices_take_means_and_probabilities_together(eight: dict[str, Any]) -> None:
    exact = np.exp(eight_catalogs.queries() @ eight_catalogs.items().T)
    exact /= exact.sum(1, keepdims=True)
    (every, few), (none, error) = eight["mean"], eight["mean_error"]
    np.testing.assert_allclose(every, exact @ eight_catalogs.values(), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(none, 0)
    assert (error > 0).all()
    assert (np.abs(few - every) < 6 * error).all()
    assert (np.abs(few - every) > 0.1 * error).any()
    np.testing.assert_allclose(eight["probability"], exact[:, :9], rtol=1e-9)
    np.testing.assert_allclose(eight["gradient"], exact @ eight_catalogs.items(), rtol=1e-9, atol=1e-12)


def test_devices_are_told_what_moved(eight: dict[str, Any]) -> None:
    items = eight_catalogs.items()
    items[:500] = eight_catalogs.moved()
    assert not eight["settled"].all()
    for name in ("renewed", "regrouped"):
        np.testing.assert_array_equal(np.sort(eight[f"{name}_ids"], axis=None)[-len(items) :], np.arange(len(items)))
        for ids, rows, count, cell, means in zip(*(eight[f"{name}_{x}"] for x in eight_catalogs.PARTS), strict=True):
            np.testing.assert_array_equal(rows[ids >= 0], items[ids[ids >= 0]])
            own = np.repeat(cell, count)
            for c in np.unique(own):
                np.testing.assert_allclose(means[c], rows[: len(own)][own == c].mean(0), rtol=1e-9, atol=1e-12)


def test_devices_sum_kernels_together(eight: dict[str, Any]) -> None:
    items, queries = eight_catalogs.items(), eight_catalogs.queries()
    for name in eight_catalogs.KERNELS:
        expected = whole(items, queries, eight_catalogs.KERNELS[name], eight_catalogs.SCALE)
        np.testing.assert_allclose(eight[f"{name}_all"], expected, rtol=1e-10)
        np.testing.assert_array_equal(eight[f"{name}_all_error"], 0)
        error = np.expm1(eight[f"{name}_sums"] - expected)
        spread = error.std(0)
        assert (spread > 1e-6).any()
        assert (np.abs(error.mean(0)) < 6 * spread / eight_catalogs.KEYS**0.5 + 1e-12).all()
        said = np.sqrt((eight[f"{name}_errors"] ** 2).mean(0))
        assert (said > 0.6 * spread).all()
        assert (said < 20).all(), "a device that meets nothing adds what was predicted of it"
    away = items - queries[:, None]  # the derivative of −√s |y − q| is √s (y − q) / |y − q|
    distance = np.sqrt((away**2).sum(-1))
    weight = np.exp(-np.sqrt(eight_catalogs.SCALE) * distance)
    weight *= np.sqrt(eight_catalogs.SCALE) / (distance * weight.sum(1, keepdims=True))
    np.testing.assert_allclose(eight["score"], (weight[..., None] * away).sum(1), rtol=1e-8)
    np.testing.assert_array_equal(eight["nowhere"], -np.inf)
    np.testing.assert_array_equal(eight["nowhere_error"], np.inf)


def test_devices_find_the_largest_together(eight: dict[str, Any]) -> None:
    count, products = eight_catalogs.COUNT, eight_catalogs.queries() @ eight_catalogs.items().T
    ids = np.argsort(-products, 1)[:, :count]
    logits = np.take_along_axis(products, ids, 1)
    np.testing.assert_array_equal(eight["top_all_ids"], ids)
    np.testing.assert_allclose(eight["top_all_logits"], logits, rtol=1e-12)
    np.testing.assert_array_equal(eight["top_ids"][:, 0], ids[:, 0])
    assert (eight["top_logits"] <= logits + 1e-12).all()
    assert np.mean([np.isin(a, b).mean() for a, b in zip(eight["top_ids"], ids, strict=True)]) > 0.8
    for name in ("top", "top_all"):
        assert eight[f"{name}_bytes"] <= len(ids) * 8 * count * 2 * 8, "ten of each device"


def test_tables_of_catalogs_that_were_told_queries() -> None:
    """Groups are cut by what queries see, and guessed by that: intervals hold, where plain spreads let them fail."""
    rng, looks = np.random.default_rng(0), np.where(np.arange(32) < 4, 2.0, 0.2).astype(np.float32)
    items, past, queries = (rng.normal(size=(n, 32)).astype(np.float32) for n in (12_000, 1_000, 200))
    told, plain = (Catalog(items, queries=x) for x in (looks * past, None))
    q, exact, held, size = looks * queries, np.log(np.exp((looks * queries) @ items.T).sum(1)), {}, {}
    table = jax_catalog.device_table(told.table)
    for name, one in (("seen", table), ("unseen", table._replace(seen=jnp.ones_like(table.seen)))):
        found = [jax_catalog.estimate(one, q, 1_200, jax.random.key(seed)) for seed in range(8)]
        off = np.array([x.log_normalizer for x in found]) - exact
        held[name] = np.mean(np.abs(off) <= 1.96 * np.array([x.standard_error for x in found]))
        size[name] = np.sqrt(np.mean(np.expm1(off) ** 2))
    assert held["seen"] > 0.93
    assert held["unseen"] < held["seen"] - 0.01
    assert size["seen"] < 0.9 * size["unseen"]
    assert float((table.spread * table.seen) @ table.count) == pytest.approx(
        float(table.spread @ table.count), rel=1e-4
    )
    assert (jax_catalog.device_table(plain.table).seen == 1).all()
    assert (jax_catalog.regrouped(table, jax.random.key(0)).seen == 1).all()
    parts = jax_catalog.split(told.table, 3)
    np.testing.assert_allclose(np.sort(np.concatenate([x.seen for x in parts])), np.sort(table.seen), rtol=0.1)


@pytest.mark.parametrize("factor", FACTORS)
def test_sums_are_found_below_outliers(factor: float) -> None:
    made, exact = with_outliers(factor)
    found = jax_catalog.estimate(jax_catalog.device_table(made.table), asked(), 1000, jax.random.key(0))
    found = jax.tree.map(np.asarray, found)
    assert (np.abs(found.log_normalizer - exact) > 0.5).sum() <= 1
    assert share_held(found, exact) > 0.95
