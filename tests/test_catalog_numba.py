"""Catalogs, compiled: the same numbers as the specification, however queries and rows come."""

from __future__ import annotations

import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
from both_plans import assert_as_specified
from scipy.special import logsumexp

from rfkernels.backends.numba import (
    catalog,
    catalog_exact,
    catalog_guesses,
    catalog_layout,
    catalog_means,
    catalog_plans,
    catalog_sampling,
    catalog_sums,
)
from rfkernels.backends.numba.catalog_plan_groups import complete
from rfkernels.backends.numba.catalog_plan_kernels import plan_kernels
from rfkernels.backends.numba.jit import machine
from rfkernels.catalog import Catalog, means, plan, sampling
from rfkernels.catalog.records import Table

CELLS = 12


def drawn(dtype: str, dim: int, groups: int, seed: int = 0) -> Table:
    """Items in groups of uneven size, with free rows between them, which lie in no order."""
    rng = np.random.default_rng(seed)
    count, cell = rng.integers(1, 40, groups), np.sort(rng.integers(CELLS, size=groups))
    count[:3] = 1, 2, 3
    room = count + rng.integers(0, 3, groups)
    place = rng.permutation(groups)
    start = np.empty(groups, np.int64)
    start[place] = np.cumsum(room[place]) - room[place]
    rows, ids = np.full((room.sum(), dim), np.nan, dtype), np.full(room.sum(), -1, np.int32)
    centres = rng.normal(size=(CELLS, dim))
    sums, items, spread = np.zeros((CELLS, dim)), np.zeros(CELLS), np.zeros(groups)
    for i in range(groups):
        own = centres[cell[i]] + 0.6 * rng.gamma(2, 0.4) * rng.normal(size=(count[i], dim))
        rows[start[i] : start[i] + count[i]] = own
        ids[start[i] : start[i] + count[i]] = 0
        sums[cell[i]] += rows[start[i] : start[i] + count[i]].sum(0, dtype=np.float64)
        items[cell[i]] += count[i]
    means = sums / np.maximum(items, 1)[:, None]
    for i in range(groups):
        own = rows[start[i] : start[i] + count[i]] - means[cell[i]]
        spread[i] = (own**2).sum(1).mean()
    shape = np.diag(rng.gamma(4, size=dim))
    return Table(
        rows, ids, start, count.astype(np.int32), cell.astype(np.int32), spread, means, shape / np.trace(shape)
    )


@cache
def table(dtype: str = "float64", dim: int = 6, groups: int = 130) -> Table:
    return drawn(dtype, dim, groups)


def queries(dim: int = 6, count: int = 9, scale: float = 1.0) -> Any:
    """Of many norms: some let the softmax be nearly flat, some have it filled by an item."""
    rng = np.random.default_rng(1)
    return scale * rng.normal(size=(count, dim)) * np.geomspace(0.05, 2, count)[:, None]


def items(t: Table) -> Any:
    return t.rows[t.ids >= 0].astype(np.float64)


BUDGET = 12 + 6 + 600


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5])
def test_as_specified(seed: int) -> None:
    found = assert_as_specified(table(), queries(), BUDGET, seed)
    exact = logsumexp(queries() @ items(table()).T, axis=1)
    assert (np.abs(found.log_normalizer - exact) <= 6 * found.standard_error + 1e-9).all()
    assert (found.standard_error > 0).any()


@pytest.mark.parametrize("dim", [1, 3, 7, 8, 16, 17, 50, 300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_width_of_rows(dtype: str, dim: int) -> None:
    t = table(dtype, dim)
    rtol = 1e-10 if dtype == "float64" else 2e-5
    assert_as_specified(t, queries(dim, scale=dim**-0.5).astype(dtype), CELLS + dim + 400, 3, rtol)


@pytest.mark.parametrize("width", ["16", "32"])
def test_narrower_machines(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFKERNELS_VECTOR_BYTES", width)
    assert_as_specified(table(), queries(), BUDGET, 4)
    np.testing.assert_allclose(catalog.exact(table(), queries())[0], logsumexp(queries() @ items(table()).T, axis=1))


@pytest.mark.parametrize("scale", [30.0, 1e4, 1e100])
def test_large_logits(scale: float) -> None:
    found = assert_as_specified(table(), queries(scale=scale), BUDGET, 5)
    assert np.isfinite(found.log_normalizer).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_errors_where_nothing_that_is_drawn_weighs_anything(dtype: str) -> None:
    """Beside one opened item: in single precision what is drawn may be nothing at all, and is not known by that."""
    rng = np.random.default_rng(0)
    spread = 0.6 * rng.gamma(2, 0.4, size=(8000, 1)) * rng.normal(size=(8000, 16))
    items = (spread + rng.normal(size=(40, 16))[rng.integers(40, size=8000)]).astype(dtype)
    catalog, queries = Catalog(items), (10 * rng.normal(size=(300, 16))).astype(dtype)
    found, expected = (
        catalog.log_normalizer(queries, budget=1000, full=True, backend=backend) for backend in ("numba", "numpy")
    )
    known = (expected.standard_error < 1) & (expected.standard_error > 1e-9)
    assert known.sum() > 20
    # Of a few queries other groups are opened, as logits of cells are not rounded alike.
    assert (found.standard_error[known] > 0.5 * expected.standard_error[known]).mean() > 0.95


def test_weights_of_far_groups_below_the_smallest_number() -> None:
    """One item of a far cell is opened, all others are some e^2000 below it, and still drawn in proportion."""
    t = table()
    centres = t.means.copy()
    centres[t.cell[0]] += 800.0
    rows = t.rows.copy()
    for group in np.flatnonzero(t.cell == t.cell[0]):
        rows[t.start[group] : t.start[group] + t.count[group]] += 800.0
    moved = t._replace(means=centres, rows=rows)
    q = np.full((1, 6), 0.5)
    values = np.random.default_rng(3).normal(size=(len(t.rows), 2))
    numbered = moved._replace(ids=np.arange(len(t.rows), dtype=np.int32))
    found, expected = (engine.expect(numbered, q, values, BUDGET, 0) for engine in (catalog_means, means))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    chosen = plan.plan(moved, plan.guess(moved, q[0]), BUDGET)
    assert len(means.by_rows(moved, q[0], chosen, 0, 0).rows) > 500


def test_a_few_groups_and_fewer_runs_than_items() -> None:
    t = drawn("float64", 6, 5)
    assert_as_specified(t, queries(), plan.fewest_dots(t) + 1, 0)


@pytest.mark.parametrize("width", ["16", ""])
def test_all_groups_in_a_cell(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are more than are looked through one by one; the other cells have none."""
    if width:
        monkeypatch.setenv("RFKERNELS_VECTOR_BYTES", width)
    t = drawn("float64", 6, 300)
    mean = items(t).mean(0)
    for cell in (0, 7, CELLS - 1):
        means = np.zeros_like(t.means)
        means[cell] = mean
        held = t._replace(cell=np.full_like(t.cell, cell), means=means)
        for budget in (BUDGET, 5 * BUDGET):
            assert_as_specified(held, queries(), budget, 1)


def test_groups_in_no_order_are_refused() -> None:
    with pytest.raises(ValueError, match="table must have groups in the order of their cells"):
        catalog.estimate(table()._replace(cell=table().cell[::-1]), queries(), BUDGET, 0)


def test_queries_that_cannot_be_written_to_are_compiled_for_no_more_than_others() -> None:
    """As those of JAX are."""
    t, q, fixed = table(), queries(), queries()
    fixed.flags.writeable = False
    known = []
    for given in (q, fixed):
        catalog.estimate(t, given, BUDGET, 0)
        catalog_sampling.sample(t, given, 3, np.random.default_rng(0))
        known.append(
            [len(f.signatures) for f in (catalog_plans.choose, catalog_sums.estimate, catalog_sampling._sample)]
        )
    assert known[0] == known[1]


@pytest.mark.parametrize(
    ("queries", "threads", "block"),
    [(1, 1, 1), (1, 2, 1), (250, 2, 128), (256, 1, 256), (300, 2, 128), (300, 4, 64), (512, 2, 256), (9_000, 2, 256)],
)
def test_blocks_are_large_and_leave_no_thread_idle(queries: int, threads: int, block: int) -> None:
    assert catalog._block(queries, 256, threads) == block
    assert catalog._block(queries, 7, threads) <= 4


@pytest.mark.parametrize(
    ("queries", "threads", "block"), [(0, 2, 1), (1, 2, 1), (250, 2, 125), (600, 2, 150), (7, 3, 3)]
)
def test_blocks_that_read_codes_are_as_long_on_all_threads(queries: int, threads: int, block: int) -> None:
    assert catalog.even(queries, threads) == block


def test_no_plan_has_fewer_runs_than_any_may_have() -> None:
    """Opening one group more would leave 31."""
    t = drawn("float64", 6, 60)._replace(count=np.full(60, 20, np.int32))
    rows = np.random.default_rng(0).normal(size=(1_200, 6))
    t = t._replace(rows=rows, ids=np.zeros(1_200, np.int32), start=20 * np.arange(60))
    sharp = np.full((1, 6), 3.0)
    assert_as_specified(t, sharp, CELLS + 6 + plan.FEWEST_RUNS * plan.RUN + 3 * 20 - 1, 0)


def test_rules_that_another_thread_found_first_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their code would be freed with them, under a call that is on its way."""
    t = drawn("float64", 6, 130)
    own, make, first = catalog_guesses.prepared(t), catalog_layout._rules, []

    def later(*given: Any) -> Any:
        if not first:
            first.append(None)
            first[0] = catalog_layout.rules(t, own)
        return make(*given)

    monkeypatch.setattr(catalog_layout, "_rules", later)
    assert catalog_layout.rules(t, own) is first[0]
    assert own.rules[machine(), False][0] is first[0]


def test_guesses_for_more_sizes_of_queries_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "1")  # so that all queries are of one block
    t, q = drawn("float64", 6, 130), queries(count=40)
    expected = catalog.estimate(table(), q, BUDGET, 1)
    known = catalog_guesses.prepared(t).guesses
    monkeypatch.setattr(known, "_most", 46_000)
    kept = []
    for _ in range(2):
        for own in (*np.split(q, 10), q):
            again, exact = catalog.estimate(t, own, BUDGET, 1), assert_as_specified(t, own, BUDGET, 1)
            np.testing.assert_allclose(again.log_normalizer, exact.log_normalizer, rtol=1e-10)
            kept.append(sum(x.nbytes for x in known._held[1].record))  # type: ignore[index]
    assert len(set(kept)) > 2
    assert max(kept) <= 46_000
    for part, own in zip(catalog.estimate(t, q, BUDGET, 1), expected, strict=True):
        np.testing.assert_array_equal(part, own)


def test_a_budget_for_every_item() -> None:
    t = table()
    found = assert_as_specified(t, queries(), len(items(t)) + CELLS + 6, 0)
    assert not found.standard_error.any()
    np.testing.assert_allclose(found.log_normalizer, logsumexp(queries() @ items(t).T, axis=1))


def test_same_numbers_however_queries_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    q = queries(count=37)
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "1")
    alone = catalog.estimate(table(), q, BUDGET, 1)
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "3")
    for block in (1, 8, 32):
        monkeypatch.setattr(catalog, "_BLOCK", block)
        for part, expected in zip(catalog.estimate(table(), q, BUDGET, 1), alone, strict=True):
            np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("width", ["16", "32", ""])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blocks_of_queries_are_as_specified(dtype: str, width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More queries than share places; so many runs that groups have several, which go around them."""
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "1")
    if width:
        monkeypatch.setenv("RFKERNELS_VECTOR_BYTES", width)
    q = queries(count=plan.SHARED + 6)[np.random.default_rng(2).permutation(plan.SHARED + 6)].astype(dtype)
    assert_as_specified(table(dtype), q, BUDGET, 3, 1e-10 if dtype == "float64" else 2e-5)


def test_threads_have_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    q = [queries(count=20 + i) for i in range(8)]
    expected = [catalog.estimate(table(), x, BUDGET, 1).log_normalizer for x in q]
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "2")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: catalog.estimate(table(), q[i % 8], BUDGET, 1).log_normalizer, range(80)))
    for i, own in enumerate(found):
        np.testing.assert_array_equal(own, expected[i % 8])


def test_parts_of_a_table_may_be_replaced() -> None:
    """What is known of a table by its means is not taken for another that shares them."""
    assert_as_specified(table(), queries(), BUDGET, 1)
    assert_as_specified(table()._replace(spread=2 * table().spread), queries(), BUDGET, 1)


def drawn_by_both(t: Table, q: Any, draws: int) -> Any:
    both = [engine.sample(t, q, draws, np.random.default_rng(4)) for engine in (catalog_sampling, sampling)]
    for part in both:
        assert np.isfinite(part.log_probability).all()
    return both


def numbered(t: Table) -> Table:
    return t._replace(ids=np.where(t.ids >= 0, np.arange(len(t.ids), dtype=np.int32), -1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_draws_are_as_specified(dtype: str) -> None:
    found, expected = drawn_by_both(numbered(table(dtype)), queries().astype(dtype), 300)
    np.testing.assert_array_equal(found.ids, expected.ids)
    tolerance = 1e-11 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(found.log_probability, expected.log_probability, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=tolerance, atol=tolerance)


def test_sharp_draws() -> None:
    """Guesses are some e^1000 above or below what the items of a group sum to."""
    t = numbered(drawn("float64", 6, 400))
    for scale in (30.0, 1e3):
        found, expected = drawn_by_both(t, queries(scale=scale), 50)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.log_probability, expected.log_probability, rtol=1e-9, atol=1e-9)


def test_draws_from_logits_beyond_the_dtype() -> None:
    t = numbered(table("float32"))
    with pytest.raises(ValueError, match="dot products with items that fit float32; query 1 has not"):
        catalog_sampling.sample(t, np.array([[1.0] * 6, [3e38] * 6], np.float32), 3, np.random.default_rng(0))


def test_no_queries() -> None:
    none = np.empty((0, 6))
    assert [x.shape for x in catalog.estimate(table(), none, BUDGET, 0)] == [(0,)] * 3
    found = catalog_means.expect(table(), none, np.ones((9, 2)), BUDGET, 0)
    assert [x.shape for x in found] == [(0, 2)] * 3 + [(0,)]
    assert [x.shape for x in catalog.exact(table(), none)] == [(0,)] * 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 3, 4, 9, 150])
def test_exact(dtype: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFKERNELS_NUM_THREADS", "2")
    t, q = table(dtype, 17), queries(17, count).astype(dtype)
    found = catalog.exact(t, q)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(found.log_normalizer, logsumexp(q @ items(t).T, axis=1), rtol=tolerance)
    assert not found.standard_error.any()
    assert (found.dots == len(items(t))).all()


def test_exact_of_large_logits_and_of_nothing() -> None:
    t = table()
    found = catalog.exact(t, queries(scale=1e4)).log_normalizer
    np.testing.assert_allclose(found, logsumexp(queries(scale=1e4) @ items(t).T, axis=1))
    nothing = t._replace(ids=np.full_like(t.ids, -1))
    assert np.isneginf(catalog.exact(nothing, queries()).log_normalizer).all()


def test_many_rows_take_many_products() -> None:
    assert len(drawn("float64", 3, 200).rows) > 3 * catalog_exact._ROWS
    t = drawn("float64", 3, 200)
    for count in (2, 20):
        q = queries(3, count)
        np.testing.assert_allclose(catalog.exact(t, q).log_normalizer, logsumexp(q @ items(t).T, axis=1), rtol=1e-12)


def unmixed(z: int) -> int:
    """The number that splitmix64 mixes to z."""
    for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        z = functools.reduce(lambda x, _: z ^ (x >> shift), range(3), z) * pow(factor, -1, 1 << 64) % (1 << 64)
    return z


def test_cells_of_no_mass_get_no_run() -> None:
    """Rounding may put the end of one beyond that of the cell before it, and a run between them."""
    code, runs, rng, found = plan_kernels(machine()), 700, np.random.default_rng(0), 0
    draw = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 7)(code.addresses["draw"])
    ends, reached = np.empty(64, np.int32), np.empty(65)
    for _ in range(400):
        mass = rng.gamma(0.3, size=64) * (rng.random(64) < 0.7)
        rate = np.array([runs / mass.sum()])

        def drawn(state: int, mass: Any = mass, rate: Any = rate) -> None:
            arrays = mass.ctypes.data, 64, state, runs, rate.ctypes.data, ends.ctypes.data, reached.ctypes.data
            draw(*arrays)

        drawn(1)
        for cell in np.flatnonzero((mass[1:] == 0) & (np.diff(reached)[1:] > 0)) + 1:
            run = int(reached[cell])
            within = int(np.ceil((reached[cell] - run) * 2.0**53))
            if reached[cell] - run <= within * 2.0**-53 < reached[cell + 1] - run:
                state = unmixed(within << 11) - (run + 1) * int(plan._GOLDEN)
                drawn((state + (1 << 63)) % (1 << 64) - (1 << 63))
                assert ends[cell] == ends[cell - 1]
                found += 1
    assert found > 3


@pytest.mark.parametrize("width", ["16", "32", ""])
def test_random_numbers_are_those_of_the_specification(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if width:
        monkeypatch.setenv("RFKERNELS_VECTOR_BYTES", width)
    code, sizes, out = plan_kernels(machine()), np.full(24, 2.0**30), np.empty(24, np.int32)
    with np.errstate(over="ignore"):
        state = int(plan._mix(np.uint64(11) + 5 * plan._GOLDEN).view(np.int64))
    given = sizes.ctypes.data, len(sizes), state, out.ctypes.data
    ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)(code.addresses["offsets"])(*given)
    np.testing.assert_array_equal(out, (plan.uniforms(11, 4, 24) * 2.0**30).astype(np.int32))


@pytest.mark.parametrize(
    ("ends", "mass", "expected"),
    [
        ([3, 5, 8], [1.0, 2.0, 3.0], [3, 5, 8]),  # all begin before the last end
        ([3, 5, 7], [1.0, 2.0, 3.0], [3, 5, 8]),
        ([3, 7, 7], [1.0, 5.0, 1e-9], [3, 8, 8]),  # the last is too small for any
        ([3, 7, 7], [1.0, 5.0, 0.0], [3, 8, 8]),
        ([0, 0], [0.0, 1.0], [0, 8]),
    ],
)
def test_runs_that_rounding_leaves_over_are_of_a_part_that_is_large(
    ends: list[int], mass: list[float], expected: list[int]
) -> None:
    given = np.array(ends)
    complete.py_func(given, np.array(mass), 8, sum(mass))
    np.testing.assert_array_equal(given, expected)
