"""Catalogs on JAX beyond the log-normalizer: draws with exact probabilities, expectations, and items that change."""

from __future__ import annotations

from typing import Any, NamedTuple

import eight_catalogs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rfkernels.backends.jax import catalog as jax_catalog
from rfkernels.backends.jax import catalog_draws, catalog_groups
from rfkernels.backends.jax.catalog_arguments import check_ids
from rfkernels.catalog import Catalog, means, sampling
from rfkernels.catalog.cells import shell_sizes
from rfkernels.catalog.plan import guess, plan, rows_of
from rfkernels.integrations.sampled_softmax import sampled_softmax_loss

CELLS, DIM, WIDTH, HEAD = 12, eight_catalogs.DIM, 3, 300
ITEMS = 1300
DRAWS, KEYS = 4000, 200
BUDGET = 400 + CELLS + DIM
WAYS = [(0, False), (HEAD, False), (HEAD, True)]


class Case(NamedTuple):
    """A catalog of items (n, dim), of ids that are not their places, and what it is on a device in float64."""

    catalog: Catalog
    table: Any
    ids: Any
    items: Any
    queries: Any


@pytest.fixture(autouse=True)
def double() -> Any:
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def case() -> Case:
    items, ids = eight_catalogs.items()[:ITEMS], 7 + 2 * np.random.default_rng(3).permutation(ITEMS)
    catalog = Catalog(items, ids=ids, cells=CELLS)
    catalog.remove(ids[:100])
    held = np.asarray(catalog.ids)
    with jax.enable_x64(True):
        table = jax_catalog.device_table(catalog.table)
        return Case(catalog, table, held, catalog.items(held), jnp.asarray(2 * eight_catalogs.queries()[:2]))


def weights(items: Any, queries: Any) -> Any:
    return np.exp(np.asarray(queries) @ items.T)


def effective(log_probability: Any, items: Any, queries: Any) -> Any:
    """Return Z² / E w², the effective share of draws."""
    exact = weights(items, queries)
    return exact.sum(1) ** 2 / (exact**2 / np.exp(log_probability)).sum(1)


@pytest.mark.parametrize(("head", "whole"), WAYS)
def test_draws_have_the_probability_that_they_state(case: Case, head: int, whole: bool) -> None:
    how: dict[str, Any] = {"head": head, "whole": whole}
    stated = np.exp(jax_catalog.log_probability(case.table, case.queries, case.ids, **how))
    np.testing.assert_allclose(stated.sum(1), 1, rtol=1e-12)
    assert (stated > 0).all()
    drawn = jax_catalog.sample(case.table, case.queries, DRAWS, jax.random.key(5), **how)
    place = np.searchsorted(case.ids, drawn.ids)
    np.testing.assert_array_equal(case.ids[place], drawn.ids)
    np.testing.assert_allclose(drawn.log_probability, np.log(np.take_along_axis(stated, place, 1)), rtol=1e-9)
    np.testing.assert_allclose(drawn.logits, np.einsum("qd,qnd->qn", case.queries, case.items[place]), rtol=1e-9)
    exact = weights(case.items, case.queries)
    for one, own, weight, log in zip(stated, place, exact, drawn.log_probability, strict=True):
        counts, often = np.bincount(own, minlength=len(one)), one * DRAWS >= 10
        seen, expected = (np.append(x[often], x[~often].sum()) for x in (counts, one * DRAWS))
        assert often.sum() > 20
        assert stats.chi2.sf(((seen - expected) ** 2 / expected).sum(), len(seen) - 1) > 1e-6
        spread = np.sqrt(((weight**2 / one).sum() - weight.sum() ** 2) / DRAWS)
        assert abs((weight[own] / np.exp(log)).mean() - weight.sum()) < 6 * spread


def test_probabilities_are_those_of_the_specification(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "HEAD", HEAD)
    table, expected = case.catalog.table._replace(codes=None), np.empty((2, len(case.ids)))  # devices have none
    for i, query in enumerate(np.asarray(case.queries)):
        log_sums, known = sampling._promising(table, query)
        assert 2 < len(known) < len(log_sums) - 2
        for group, share in enumerate(log_sums - sampling.log_sum(log_sums)):
            rows = rows_of(table, np.array([group]))
            own = table.rows[rows] @ query
            expected[i, np.searchsorted(case.ids, table.ids[rows])] = share + own - sampling.log_sum(own)
    got = np.asarray(jax_catalog.log_probability(case.table, case.queries, case.ids, head=HEAD))
    common = expected > np.log(1e-5)
    assert common.sum() > ITEMS
    np.testing.assert_allclose(got[common], expected[common], atol=1e-3)
    np.testing.assert_allclose(np.exp(got), np.exp(expected), rtol=1e-5, atol=1e-8)


def test_items_of_drawn_groups_are_taken_a_few_groups_at_a_time(case: Case) -> None:
    """However many are asked for: memory does not grow with 512 items for each; few or many, numbers are the same."""
    own, _ = catalog_draws.parts_of(case.table)
    every = jax_catalog.log_probability(case.table, case.queries, case.ids, head=HEAD)
    few = [jax_catalog.log_probability(case.table, case.queries, ids, head=HEAD) for ids in np.split(case.ids, 80)]
    assert len(few[0][0]) < len(own.count) < len(case.ids)
    np.testing.assert_allclose(np.concatenate(few, 1), every, rtol=1e-12)
    how, ids, key = catalog_draws.How(HEAD, True), jax.ShapeDtypeStruct((1, 50_000), jnp.int32), jax.random.key(0)
    lowered = (
        catalog_draws._stated.lower(own, case.queries[:1], ids, how=how),
        catalog_draws._sampled.lower(own, case.queries[:1], key, n=50_000, how=how),
    )
    sizes = [int(x.compile().memory_analysis().temp_size_in_bytes) for x in lowered]
    assert max(sizes) < 50_000 * 8 * 30 + 64 * 512 * 8 * 3 * DIM, "numbers of a draw, and items of 64 groups"


def test_more_dots_make_better_draws(case: Case) -> None:
    found = [
        effective(jax_catalog.log_probability(case.table, case.queries, case.ids, head=head, whole=whole), *case[3:])
        for head, whole in WAYS
    ]
    assert (np.diff(found, axis=0) > 0).all()
    assert found[-1].min() > 0.8


def test_no_item_is_out_of_reach_in_single_precision(case: Case) -> None:
    with jax.enable_x64(False):
        table = jax_catalog.device_table(case.catalog.table)
        queries = jnp.asarray(60 * np.asarray(case.queries), jnp.float32)
        for head, whole in WAYS:
            log = jax_catalog.log_probability(table, queries, case.ids, head=head, whole=whole)
            assert log.dtype == np.float32
            assert np.isfinite(log).all()
            np.testing.assert_allclose(np.exp(log, dtype=np.float64).sum(1), 1, rtol=1e-5)


def test_a_query_draws_by_its_place_and_the_key(case: Case) -> None:
    same = jnp.concatenate([case.queries[:1]] * 2)
    one, two = (jax_catalog.sample(case.table, same, 64, jax.random.key(i), head=0, whole=False).ids for i in (0, 1))
    assert len(np.unique(np.concatenate([one, two]), axis=0)) == 4


def test_in_a_training_step(case: Case) -> None:
    """Draws of a compiled step are constants to its derivatives; logits are not."""

    def loss(queries: Any, items: Any, table: Any, key: Any) -> Any:
        drawn = jax_catalog.sample(table, queries, 16, key, head=0, whole=False)
        place = jnp.searchsorted(case.ids, drawn.ids)
        targets = jnp.zeros(2, jnp.int32)
        return sampled_softmax_loss(queries, items, targets, place, log_probability=drawn.log_probability).sum()

    step = jax.jit(jax.value_and_grad(loss, 1))
    value, gradient = step(case.queries, jnp.asarray(case.items), case.table, jax.random.key(0))
    assert np.isfinite(value)
    assert 2 < (np.asarray(gradient) != 0).any(1).sum() <= 33

    def summed(queries: Any, name: str) -> Any:
        drawn = jax_catalog.sample(case.table, queries, 64, jax.random.key(5), head=64)
        return jnp.sum(getattr(drawn, name))

    names = "log_probability", "logits"
    for name, slope in zip(
        names, jax.jit(lambda q: [jax.grad(summed)(q, x) for x in names])(case.queries), strict=True
    ):
        assert np.isfinite(slope).all()
        assert (np.asarray(slope) != 0).any() == (name == "logits")


# Expectations


@pytest.fixture(scope="module")
def values() -> Any:
    made = 3 + np.random.default_rng(4).standard_normal((7 + 2 * ITEMS, WIDTH))
    made[::2] = np.nan  # of ids that are not there
    return made


def test_expectations_are_exact_where_all_items_are_taken(case: Case, values: Any) -> None:
    exact = weights(case.items, case.queries)
    exact /= exact.sum(1, keepdims=True)
    found = jax_catalog.expectation(case.table, case.queries, values, 2 * ITEMS, jax.random.key(0))
    np.testing.assert_allclose(found.mean, exact @ values[case.ids], rtol=1e-10)
    np.testing.assert_array_equal(found.standard_error, 0)
    each = case.ids[[[3, 0], [5, 5]]]
    some = jax_catalog.probabilities(case.table, case.queries, each, 2 * ITEMS, jax.random.key(0))
    np.testing.assert_allclose(some, np.take_along_axis(exact, np.array([[3, 0], [5, 5]]), 1), rtol=1e-10)


def test_expectations_err_as_they_say_and_as_the_specification(case: Case, values: Any) -> None:
    def one(seed: Any) -> Any:
        return jax_catalog.expectation(case.table, queries, values, BUDGET, jax.random.key(seed))

    queries = case.queries / 2
    found = jax.tree.map(np.asarray, jax.jit(lambda seeds: jax.lax.map(one, seeds))(jnp.arange(KEYS)))
    exact = weights(case.items, queries)
    error = found.mean - (exact @ values[case.ids]) / exact.sum(1, keepdims=True)
    spread = error.std(0, ddof=1)
    assert (spread > 0).all()
    assert (np.abs(error.mean(0)) < 6 * spread / KEYS**0.5).all()
    seen = np.sqrt((found.standard_error**2).mean(0))
    np.testing.assert_allclose(seen, spread, rtol=0.25)
    host, table = np.asarray(queries), case.catalog.table
    square = np.zeros((60, *seen.shape))
    for (seed, i), query in zip(np.ndindex(square.shape[:2]), np.tile(host, (60, 1)), strict=True):
        chosen = plan(table, guess(table, query), BUDGET)
        taken = means.by_rows(table, query, chosen, seed, i)
        square[seed, i] = means.weigh(taken, chosen, values[table.ids[taken.rows]])[1] ** 2
    np.testing.assert_allclose(np.sqrt(square.mean(0)), seen, rtol=0.15)


def test_equal_items_are_drawn_as_often_as_they_should_be_to_within_one() -> None:
    rng = np.random.default_rng(0)
    same, distinct = rng.integers(4, size=ITEMS), rng.normal(size=(4, DIM))
    items, values, queries = distinct[same], rng.normal(size=(4, WIDTH))[same], rng.normal(size=(40, DIM)) / 2
    table = jax_catalog.device_table(Catalog(items).table)
    found = jax_catalog.expectation(table, queries, values, BUDGET, jax.random.key(0))
    exact = np.exp(queries @ items.T)
    off = np.abs(found.mean - exact @ values / exact.sum(1, keepdims=True))
    assert (off < 4 * found.standard_error).all()


def test_expectations_of_few_items_say_what_draws_may_have_missed() -> None:
    """Where runs look alike without one of the few items that hold the softmax: 12 in 100 were off by five errors."""
    rng = np.random.default_rng(1)
    items, queries = rng.normal(size=(4_000, 16)), rng.normal(size=(40, 16))
    table = jax_catalog.device_table(Catalog(items).table)
    found = jax_catalog.expectation(table, queries, items, 600, jax.random.key(0))
    exact = np.exp(queries @ items.T)
    off = np.abs(found.mean - exact @ items / exact.sum(1, keepdims=True))
    assert (off < 5 * found.standard_error).mean() > 0.99


# Items that change


@pytest.fixture(scope="module")
def moved(case: Case) -> tuple[Any, Any]:
    """The items on one side moved away, in one direction, and the table that was told."""
    some = np.flatnonzero(case.items @ [1, -1, 0, 0] > 0)
    items = case.items.copy()
    items[some] = 1.3 * items[some] + [0.4, -0.4, 0.2, 0]
    with jax.enable_x64(True):
        ids = np.append(case.ids[some], [-1, -1])
        return items, jax_catalog.with_rows(case.table, ids, np.vstack([items[some], np.ones((2, DIM))]))


def test_stale_guesses_cost_variance_and_no_more(case: Case, moved: tuple[Any, Any]) -> None:
    items, table = moved
    np.testing.assert_array_equal(table.rows[table.slots[case.ids]], items)
    made = {"stale": table, "renewed": jax_catalog.refreshed(table), "found": jax_catalog.regrouped(table, KEY)}
    shares = {}
    for name, one in made.items():
        np.testing.assert_array_equal(one.rows[one.slots[case.ids]], items)
        log = np.asarray(jax_catalog.log_probability(one, case.queries, case.ids, head=HEAD))
        np.testing.assert_allclose(np.exp(log).sum(1), 1, rtol=1e-12)
        shares[name] = effective(
            jax_catalog.log_probability(one, case.queries, case.ids, head=0, whole=False), items, case.queries
        )
    assert (shares["stale"] < shares["renewed"]).all()
    assert (shares["renewed"] < shares["found"]).all()
    before, after = (
        jax_catalog.log_probability(x, case.queries, case.ids, head=0, whole=False) for x in (case.table, table)
    )
    np.testing.assert_array_equal(before, after)


KEY = np.array([0, 1], np.uint32)


def test_estimates_of_items_that_moved_are_unbiased(case: Case, moved: tuple[Any, Any]) -> None:
    items, queries = moved[0], case.queries / 4

    def one(table: Any, seed: Any) -> Any:
        return jax_catalog.estimate(table, queries, BUDGET, jax.random.key(seed)).log_normalizer

    many = jax.jit(lambda table: jax.lax.map(lambda seed: one(table, seed), jnp.arange(KEYS)))
    spreads = []
    for table in (moved[1], jax_catalog.refreshed(moved[1])):
        error = np.exp(np.asarray(many(table))) / weights(items, queries).sum(1) - 1
        spreads.append(error.std(0, ddof=1))
        assert (np.abs(error.mean(0)) < 6 * spreads[-1] / KEYS**0.5).all()
    assert (spreads[1] < spreads[0]).all(), "with the control variate again"


def test_renewed_guesses_are_those_of_the_items(case: Case, moved: tuple[Any, Any]) -> None:
    same = jax_catalog.refreshed(case.table)
    for name in ("means", "spread"):
        np.testing.assert_allclose(getattr(same, name), getattr(case.table, name), rtol=1e-9, atol=1e-12)
    renewed = jax_catalog.refreshed(moved[1])
    assert not np.asarray(moved[1].settled).all()
    assert np.asarray(renewed.settled).all()
    np.testing.assert_allclose(renewed.shape, _guesses(renewed)[2], rtol=1e-9, atol=1e-15)
    some = case.table.ids[int(case.table.start[-1]) :][:3]
    few = jax_catalog.with_rows(case.table, some, np.zeros((3, DIM)))
    np.testing.assert_array_equal(np.flatnonzero(~np.asarray(few.settled)), case.table.cell[-1:])


def _guesses(table: Any) -> tuple[Any, Any, Any]:
    """Return means, spreads and covariance of a table, in words: of the rows that are in its groups."""
    rows, start, count, cell = (np.asarray(x) for x in (table.rows, table.start, table.count, table.cell))
    of_group = [rows[a : a + n] for a, n in zip(start, count, strict=True)]
    means = np.zeros(table.means.shape)
    for c in np.unique(cell[count > 0]):
        means[c] = np.concatenate([own for own, i in zip(of_group, cell, strict=True) if i == c]).mean(0)
    apart = [own - means[c] for own, c in zip(of_group, cell, strict=True)]
    spread = np.array([(x**2).sum() / max(len(x), 1) for x in apart])
    product = np.concatenate(apart).T @ np.concatenate(apart)
    return means, spread, product / np.trace(product)


def test_cells_found_anew_are_cut_as_in_a_build(case: Case, moved: tuple[Any, Any]) -> None:
    table = jax_catalog.regrouped(moved[1], KEY)
    count, cell = np.asarray(table.count), np.asarray(table.cell)
    np.testing.assert_array_equal(table.start, np.cumsum(count) - count)
    assert count.sum() == len(case.ids)
    np.testing.assert_array_equal(table.ids[table.slots[case.ids]], case.ids)
    assert (np.asarray(table.slots) >= 0).sum() == len(case.ids)
    for name, expected in zip(("means", "spread", "shape"), _guesses(table), strict=True):
        np.testing.assert_allclose(getattr(table, name), expected, rtol=1e-9, atol=1e-12)
    for c in range(CELLS):
        own = [int(n) for n in count[(cell == c) & (count > 0)]]
        assert own == shell_sizes(sum(own))
        distance = np.sqrt(np.asarray(table.spread)[(cell == c) & (count > 0)])
        assert (np.diff(distance) < 0.1).all(), "the farthest come first"
    other = jax_catalog.regrouped(moved[1], np.array([0, 2], np.uint32))
    assert not np.array_equal(other.ids, table.ids), "items of a group are in random order"
    np.testing.assert_array_equal(other.count, table.count)


def test_a_training_run_on_the_device(case: Case) -> None:
    """Items move toward a point under `lax.scan`, told and found anew every few steps, and shapes stay."""
    target, every = jnp.ones(DIM), 4

    def step(table: Any, number: Any) -> tuple[Any, Any]:
        key = jax.random.fold_in(jax.random.key(0), number)
        drawn = jax_catalog.sample(table, case.queries[:1], 8, key, head=0, whole=False).ids[0]
        ids = jnp.unique(drawn, size=8, fill_value=-1)
        near = table.rows[table.slots[ids]] * 0.5 + target * 0.5
        table = jax_catalog.with_rows(table, ids, near)
        found = jax.lax.cond(
            number % every == every - 1, lambda x: jax_catalog.regrouped(x, key, rounds=1), lambda x: x, table
        )
        return found, jnp.abs(near - target).sum()

    start = jax_catalog.regrouped(case.table, KEY, rounds=1)
    end, _ = jax.jit(lambda table: jax.lax.scan(step, table, jnp.arange(2 * every)))(start)
    assert np.asarray(end.settled).all()
    before, after = (np.asarray(x.rows[x.slots[case.ids]]) for x in (start, end))
    changed = (before != after).any(1)
    assert 8 < changed.sum() <= 16 * every
    assert (np.abs(after - 1).sum(1)[changed] < np.abs(before - 1).sum(1)[changed]).all()


# Platforms and refusals


def everything(table: Any, queries: Any, values: Any, seed: Any) -> Any:
    key, ids = jax.random.key(seed), table.ids[:3]
    table = jax_catalog.regrouped(jax_catalog.refreshed(jax_catalog.with_rows(table, ids, queries[:3])), key)
    parts = (
        jax_catalog.sample(table, queries, 5, key),
        jax_catalog.log_probability(table, queries, ids),
        jax_catalog.expectation(table, queries, values, BUDGET, key),
        jax_catalog.probabilities(table, queries, ids, BUDGET, key),
    )
    return jax.tree.leaves(parts)


def test_nearest_means_far_from_the_origin() -> None:
    """Of items whose distances from the origin round by more than they lie apart in single precision."""
    rng = np.random.default_rng(0)
    means = np.float32(30_000 + rng.integers(-9, 9, (40, DIM)))
    rows = means[rng.integers(40, size=300)] + rng.integers(-3, 3, (300, DIM)).astype(np.float32)
    square = ((rows[:, None] - means.astype(np.float64)) ** 2).sum(-1)
    cell, least = catalog_groups._nearest(jnp.asarray(rows), jnp.asarray(means))
    np.testing.assert_array_equal(square[np.arange(300), np.asarray(cell)], square.min(1))
    np.testing.assert_array_equal(least, square.min(1))


def test_lowered_for_accelerators(case: Case, values: Any) -> None:
    with jax.enable_x64(False):
        table, queries = jax_catalog.device_table(case.catalog.table), jnp.ones((3, DIM), jnp.float32)
        exported = jax.export.export(jax.jit(everything), platforms=["cuda", "tpu"])(
            table, queries, jnp.asarray(values), 0
        )
    assert exported.platforms == ("cuda", "tpu")
    assert "callback" not in exported.mlir_module(), "the host would be called"


def test_a_table_is_a_copy() -> None:
    """Wherever the catalog's arrays happen to lie: a device may read the host's memory without copying it."""
    items = eight_catalogs.items()[:ITEMS].astype(np.float32)
    room = np.empty(items.nbytes + 64, np.uint8)
    aligned = room[-room.ctypes.data % 64 :][: items.nbytes].view(np.float32).reshape(items.shape)
    aligned[:] = Catalog(items, cells=CELLS).table.rows
    held = Catalog(items, cells=CELLS).table._replace(rows=aligned)
    table = jax_catalog.device_table(held)
    before = np.array(table.rows)
    aligned += 1
    np.testing.assert_array_equal(table.rows, before)


def test_ids_beyond_32_bits_are_not_cut(case: Case) -> None:
    with jax.enable_x64(False):
        table = jax_catalog.device_table(case.catalog.table)
        queries, far = jnp.asarray(case.queries, jnp.float32), np.array([int(case.ids[0]), 2**32 + int(case.ids[1])])
        with pytest.raises(KeyError, match=f"no item of id {far[1]}, which is ids\\[1\\]"):
            jax_catalog.probabilities(table, queries, far, BUDGET, jax.random.key(0))
        with pytest.raises(KeyError, match=f"no item of id {far[1]}, which is ids\\[1\\]"):
            jax_catalog.with_rows(table, far, np.ones((2, DIM), np.float32))
    with jax.enable_x64(True):
        with pytest.raises(KeyError, match=f"no item of id {far[1]}, which is ids\\[1\\]"):
            check_ids(jnp.asarray(far), (1,))
        seen = jax.jit(lambda ids: check_ids(ids, (1,)))(far)
    assert seen.tolist() == [far[0], np.iinfo(np.int32).max]


@pytest.mark.parametrize("budget", [ITEMS + CELLS + DIM, 2 * BUDGET])
def test_derivatives_are_those_of_the_sum(case: Case, budget: int) -> None:
    """Unbiased as the sum is; also where groups have no spread, as those that are free have none, and errors are 0."""
    table = jax_catalog.regrouped(case.table, jax.random.key(1))
    assert (table.spread == 0).any()

    def total(queries: Any, key: Any) -> Any:
        return jnp.exp(jax_catalog.estimate(table, queries, budget, key).log_normalizer).sum()

    keys = jax.random.split(jax.random.key(0), 1 if budget > ITEMS else KEYS)
    found = jax.lax.map(lambda key: jax.grad(total)(case.queries, key), keys, batch_size=25)
    expected, error = weights(case.items, case.queries) @ case.items, np.std(found, 0) / np.sqrt(len(keys))
    assert np.all(np.abs(np.mean(found, 0) - expected) <= 5 * error + 1e-9 * np.abs(expected))
    assert np.all(error < 0.05 * np.linalg.norm(expected, axis=1, keepdims=True))


def test_refusals(case: Case, values: Any) -> None:
    table, queries, key = case.table, case.queries, jax.random.key(0)
    with pytest.raises(TypeError, match=r"n must be an int, got 5\.0"):
        jax_catalog.sample(table, queries, 5.0, key)
    with pytest.raises(ValueError, match="head must be at least 0, got -1"):
        jax_catalog.sample(table, queries, 5, key, head=-1)
    with pytest.raises(ValueError, match=r"queries must have shape \(queries, 4\), got \(2, 3\)"):
        jax_catalog.sample(table, queries[:, :3], 5, key)
    with pytest.raises(KeyError, match=r"no item of id 8, which is ids\[1\]"):
        jax_catalog.log_probability(table, queries, np.array([int(case.ids[0]), 8]), head=0, whole=False)
    with pytest.raises(KeyError, match=r"no item of id -1, which is ids\[0\]"):
        jax_catalog.probabilities(table, queries, np.array([-1]), BUDGET, key)
    with pytest.raises(ValueError, match=r"ids must have shape \(items,\) or \(2, items\), got \(3, 1\)"):
        jax_catalog.log_probability(table, queries, np.zeros((3, 1), int))
    with pytest.raises(TypeError, match="ids must be of an integer dtype, got float64"):
        jax_catalog.log_probability(table, queries, np.zeros(1))
    with pytest.raises(ValueError, match=r"values must have shape \(at least \d+, width\).* got \(5, 3\)"):
        jax_catalog.expectation(table, queries, values[:5], BUDGET, key)
    with pytest.raises(ValueError, match=f"budget must be at least {CELLS + DIM + 128} .* got 5"):
        jax_catalog.expectation(table, queries, values, 5, key)
    with pytest.raises(ValueError, match=r"vectors must have shape \(2, 4\), a row for each id, got \(1, 4\)"):
        jax_catalog.with_rows(table, case.ids[:2], np.ones((1, DIM)))
    with pytest.raises(ValueError, match=f"ids must be distinct, but {case.ids[0]} occurs more than once"):
        jax_catalog.with_rows(table, case.ids[[0, 0]], np.ones((2, DIM)))
    with pytest.raises(KeyError, match=r"no item of id 8, which is ids\[0\]"):
        jax_catalog.with_rows(table, np.array([8]), np.ones((1, DIM)))
    with pytest.raises(ValueError, match=r"vectors must be finite, but vectors\[0, 0\] is nan"):
        jax_catalog.with_rows(table, case.ids[:1], np.full((1, DIM), np.nan))
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"vectors must be finite, but vectors\[0, 0\] is inf"):
        own = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, table)
        jax_catalog.with_rows(own, case.ids[:1], np.full((1, DIM), 1e300))
    with pytest.raises(TypeError, match="whole must be True or False, got 'no'"):
        jax_catalog.sample(table, queries, 5, key, whole="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="whole must be True or False, got 0"):
        jax_catalog.log_probability(table, queries, case.ids[:1], whole=0)  # type: ignore[arg-type]
    for given, told in ((0, "a key of jax.random, .* got 0"), (jax.random.split(key), r"a single key .* shape \(2,\)")):
        for call in (
            lambda given: jax_catalog.sample(table, queries, 5, given),
            lambda given: jax_catalog.expectation(table, queries, values, BUDGET, given),
            lambda given: jax_catalog.estimate(table, queries, BUDGET, given),
            lambda given: jax_catalog.regrouped(table, given),
        ):
            with pytest.raises(TypeError, match=f"key must be {told}"):
                call(given)
    with pytest.raises(TypeError, match=r"rounds must be an int, got 1\.5"):
        jax_catalog.regrouped(table, key, rounds=1.5)
    empty = Catalog(np.ones((1, DIM)))
    empty.remove([0])
    none = jax_catalog.device_table(empty.table)
    with pytest.raises(ValueError, match="table must hold items, it has none"):
        jax_catalog.sample(none, queries, 5, key)
    with pytest.raises(ValueError, match="table must hold items, it has none"):
        jax_catalog.probabilities(none, queries, np.zeros(1, int), BUDGET, key)
    large = case.catalog.table._replace(count=case.catalog.table.count + 512)
    with pytest.raises(ValueError, match=r"groups of 512 items at most, got one of \d+"):
        jax_catalog.device_table(large)
